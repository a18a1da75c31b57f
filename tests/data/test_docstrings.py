"""Docstrings of packages as training rows and as a search: what is read, how it is cleaned, and what is kept apart."""

import json
import os
import sys
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cft.config.schema import DataSettings, DataSource, EvalSettings, EvalSource
from cft.data import docstrings, python_source
from cft.data.python_source import Definition, in_words, read_source, summary_of
from cft.data.retrieval import load_retrieval_sets
from cft.data.texts import normalized
from cft.data.training_data import load_training_data
from cft.system.errors import UserError

READERS = '''
"""A module's own docstring is about no function."""
from typing import overload

raise RuntimeError("this file was run")

def read_csv(path, sep, *, header, names, **rest):
    """Read a table from
    a file of commas.  More is said here."""

def _private(path):
    """Read what nobody else may read."""

def empty(path):
    """"""

def short(path):
    """Read a file."""

def without(path):
    return path

@overload
def to_text(value: int) -> str: ...
@overload
def to_text(value: str) -> str: ...
def to_text(value, /):
    """Turn any value into its text."""
    def inner():
        """Count the letters of the text."""

try:
    from fast import shout
except ImportError:
    async def shout(*words):
        """Say all the words very loudly."""

class TableReader(Base):
    """Reads tables, row after row."""

    def __init__(self, path, limit=3):
        """Open the file of a table."""

    @property
    def row_count(self):
        """Number of rows in the table."""

    @row_count.setter
    def row_count(self, value):
        """Pretend that there are other rows."""

    @staticmethod
    def sniff(sample):
        """Guess which sign parts the columns."""

    def _step(self):
        """Go on by one single row."""

class Plain:
    """A thing with nothing in it."""
'''

WRITERS = '''
def write_csv(rows, path):
    """Write rows of a table into a file."""

def copy_of(rows):
    """read a table, from a file of commas"""

def tree_copy(rows):
    """Say all the words very loudly indeed."""

def write_sql(rows, path):
    """Copy a whole folder of files!"""
'''

LIBRARY = '''
def copytree(source, target):
    """Copy a whole folder of files."""

def treecopy(source, target):
    """Copy a whole: folder of files"""

def remove(path):
    """Delete a file for good."""

class Error(OSError):
    """Raised when something is not there."""
'''


def write(folder: Path, **files: str | bytes) -> Path:
    for name, content in files.items():
        path = folder / f"{name.replace('__', '/')}.py"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return folder


@pytest.fixture
def place(tmp_path, monkeypatch) -> Path:
    """A folder of packages of which one is sound in parts, and a standard library of three functions."""
    monkeypatch.setenv("CFT_CACHE", str(tmp_path / "cache"))
    packages = tmp_path / "packages"
    write(
        packages / "fakepack",
        io__readers=READERS,
        io__writers=WRITERS,
        io___private='def of_use(thing):\n    """Be called by its public name."""\n',
        bad__syntax="def f(:\n",
        bad__nul=b'def nul():\n    """Return the byte that is nothing."""\n\0',
        bad__latin='def f():\n    """Gibt den größten Wert zurück, schön."""\n'.encode("latin-1"),
        bad__deep="x = " + "-" * 100_000 + "1",
        tests__test_readers='def f():\n    """Test that reading a file works."""\n',
        _vendor__other='def f():\n    """Do what another package does better."""\n',
    )
    (packages / "fakepack" / "__init__.py").write_text("import nothing_of_this_name\n")
    (packages / "fakepack" / "notes.txt").write_text("def f(): ...")
    write(packages, fakemodule='def add_all(numbers):\n    """Add up all of the numbers."""\n')
    library = write(
        tmp_path / "library",
        shutil=LIBRARY,
        _private='def f():\n    """Do what only Python itself does."""\n',
        tkinter__window='def f():\n    """Open a window on the screen."""\n',
    )
    write(library / "site-packages", fakepack2='def f():\n    """Be installed beside the standard library."""\n')
    monkeypatch.syspath_prepend(packages)
    monkeypatch.setattr(docstrings, "_library_folder", lambda: library)
    return packages


def test_public_definitions_are_read_in_order_and_the_rest_is_passed_over(place):
    found = read_source(place / "fakepack" / "io", "fakepack.io")
    module = "fakepack.io.readers"
    assert [row for row in found.definitions if row.module == module] == [
        Definition(module, "read_csv", "(path, sep, ...)", "Read a table from a file of commas."),
        Definition(module, "to_text", "(value)", "Turn any value into its text."),
        Definition(module, "shout", "(*words)", "Say all the words very loudly."),
        Definition(module, "TableReader", "(path, limit)", "Reads tables, row after row.", True),
        Definition(module, "TableReader.row_count", "", "Number of rows in the table."),
        Definition(module, "TableReader.sniff", "(sample)", "Guess which sign parts the columns."),
        Definition(module, "Plain", "()", "A thing with nothing in it.", True),
    ]
    assert found.definitions[5].document == "fakepack.io.readers.TableReader.row_count: table reader row count"


def test_files_that_python_could_not_read_are_counted(place):
    found = read_source(place / "fakepack", "fakepack")
    assert found.passed_over == 4
    assert {row.module for row in found.definitions} == {"fakepack.io", "fakepack.io.readers", "fakepack.io.writers"}
    (place / "fakepack" / "huge.py").write_text("#" * 1_000_001)
    assert read_source(place / "fakepack", "fakepack").passed_over == 5


def test_rows_are_these_and_neither_repeat_one_another_nor_the_evaluation(place):
    rows = docstrings.training_rows(["fakepack", "fakemodule"], seed=0)
    assert {row.anchor: row.positive for row in rows} == {
        "Be called by its public name.": "fakepack.io.of_use(thing): of use",
        "Read a table from a file of commas.": "fakepack.io.readers.read_csv(path, sep, ...): read csv",
        "Turn any value into its text.": "fakepack.io.readers.to_text(value): to text",
        "Say all the words very loudly.": "fakepack.io.readers.shout(*words): shout",
        "Reads tables, row after row.": "fakepack.io.readers.TableReader(path, limit): table reader",
        "Number of rows in the table.": "fakepack.io.readers.TableReader.row_count: table reader row count",
        "Guess which sign parts the columns.": "fakepack.io.readers.TableReader.sniff(sample): table reader sniff",
        "A thing with nothing in it.": "fakepack.io.readers.Plain(): plain",
        "Write rows of a table into a file.": "fakepack.io.writers.write_csv(rows, path): write csv",
        "Add up all of the numbers.": "fakemodule.add_all(numbers): add all",
    }  # no copy_of (its summary is read_csv's), no tree_copy and no write_sql (name and summary are the evaluation's)
    queries, documents, _ = docstrings.standard_library()
    assert not {normalized(row.anchor) for row in rows} & {normalized(text) for _, text in queries}
    judged = {normalized(text.split(": ")[1]) for _, text in documents}
    assert not judged & {normalized(text.split(": ")[1]) for row in rows for text in (row.positive, *row.negatives)}


def test_negatives_are_other_functions_of_the_module_or_else_of_the_package_or_else_any(place):
    def module(document: str) -> str:
        return (
            document.split(": ")[0].split("(")[0].removesuffix(".row_count").rpartition(".")[0].partition(".Table")[0]
        )

    for seed in range(5):
        rows = docstrings.training_rows(["fakepack", "fakemodule"], seed=seed)
        assert all(len(row.negatives) == 1 and row.negatives[0] != row.positive for row in rows)
        origins = {(module(row.positive), module(row.negatives[0])) for row in rows}
        readers = {negative for positive, negative in origins if positive == "fakepack.io.readers"}
        assert readers == {"fakepack.io.readers"}
        alone = {negative for positive, negative in origins if positive in ("fakepack.io.writers", "fakepack.io")}
        assert all(negative.startswith("fakepack") for negative in alone)
        assert any(positive == "fakemodule" for positive, _ in origins)


def test_the_same_seed_gives_the_same_rows_and_another_one_others(place):
    first = docstrings.training_rows(["fakepack", "fakemodule"], seed=3)
    assert docstrings.training_rows(["fakepack", "fakemodule"], seed=3) == first
    python_source.cache_folder().rename(place / "moved")
    assert docstrings.training_rows(["fakepack", "fakemodule"], seed=3) == first
    assert docstrings.training_rows(["fakepack", "fakemodule"], seed=4) != first


def test_files_are_parsed_once_and_again_only_when_one_of_them_changes(place, monkeypatch):
    parsed = []
    parse = python_source._definitions
    monkeypatch.setattr(
        python_source, "_definitions", lambda path, module: parsed.append(path.name) or parse(path, module)
    )
    first = read_source(place / "fakepack", "fakepack")
    assert len(parsed) == 8 and read_source(place / "fakepack", "fakepack") == first and len(parsed) == 8
    (cached,) = (python_source.cache_folder() / "docstrings").iterdir()
    cached.write_text("{}")  # damaged
    assert read_source(place / "fakepack", "fakepack") == first and len(parsed) == 16
    os.utime(place / "fakepack" / "io" / "readers.py", ns=(1, 1))
    assert read_source(place / "fakepack", "fakepack") == first and len(parsed) == 24


def test_without_a_cache_that_can_be_written_the_files_are_read_all_the_same(place, tmp_path, monkeypatch):
    monkeypatch.setenv("CFT_CACHE", str(tmp_path / "cache-file" / "below"))
    (tmp_path / "cache-file").write_text("no folder")
    assert len(read_source(place / "fakepack", "fakepack").definitions) == 12


def test_no_package_is_imported(place):
    docstrings.training_rows(["fakepack", "fakemodule"], seed=0)
    assert not {"fakepack", "fakemodule", "fakepack.io"} & set(sys.modules)


def test_the_standard_library_is_looked_through_without_private_modules_and_toolkits(place):
    evaluation = EvalSettings(name="docstrings", source=EvalSource.docstrings)
    (found,) = load_retrieval_sets(evaluation).values()
    assert found.queries == ["Copy a whole folder of files.", "Delete a file for good."]
    assert found.documents == [
        "shutil.copytree(source, target): copytree",
        "shutil.treecopy(source, target): treecopy",
        "shutil.remove(path): remove",
    ]
    assert found.judgements == [{"shutil.copytree": 1, "shutil.treecopy": 1}, {"shutil.remove": 1}]
    assert found.own_document == [None, None]
    evaluation.rows = 1
    (fewer,) = load_retrieval_sets(evaluation).values()
    assert len(fewer.queries) == 1 and fewer.documents == found.documents


def test_a_python_without_sources_of_its_library_says_so(place, tmp_path, monkeypatch):
    (tmp_path / "bare").mkdir()
    monkeypatch.setattr(docstrings, "_library_folder", lambda: tmp_path / "bare")
    with pytest.raises(UserError, match=r"bare holds no source files with docstrings"):
        docstrings.standard_library()


@pytest.mark.parametrize(
    ("packages", "message"),
    [
        (["fakepac"], r"data.packages=\[fakepac\].*fakepac is not installed here.*did you mean"),
        (["fakepack", "json"], "json is part of the standard library"),
        (["../fakepack"], "is not installed here"),
        (["fakepack.nothing"], "is not installed here"),
        (["scikit-learn"], "is imported by another name; write sklearn"),
        (["fakepack.bad"], "0 documented functions are too few"),
    ],
)
def test_packages_that_cannot_be_read_are_named(place, monkeypatch, packages, message):
    owners = {"sklearn": ["scikit-learn"], "fakepack": ["fakepack"]}
    monkeypatch.setattr(docstrings, "packages_distributions", lambda: owners)
    with pytest.raises(UserError, match=message):
        docstrings.training_rows(packages, seed=0)


def test_the_usual_packages_are_those_that_are_installed(place, monkeypatch):
    monkeypatch.setattr(docstrings, "PACKAGES", ["fakepack", "nothing_of_this_name"])
    assert docstrings.training_rows(None, seed=1) == docstrings.training_rows(["fakepack"], seed=1)
    assert len(docstrings.training_rows(["fakepack.io.readers"], seed=0)) == 7
    monkeypatch.setattr(docstrings, "PACKAGES", ["nothing_of_this_name"])
    with pytest.raises(UserError, match="none of nothing_of_this_name is installed beside cft; name packages"):
        docstrings.training_rows(None, seed=0)


def test_training_data_hold_rows_out_and_are_named_by_content(place):
    settings = DataSettings(
        name="docstrings", source=DataSource.docstrings, packages=["fakepack", "fakemodule"], rows=10, holdout=1
    )
    found = load_training_data(settings, seed=0)
    assert len(found.triplets) == 9 and len(found.holdout) == 1
    assert found.portraits["docstrings"].rows == 10
    assert load_training_data(settings, seed=0).content == found.content
    write(place, fakemodule='def add_all(numbers):\n    """Add up all the numbers there are."""\n')
    assert load_training_data(settings, seed=0).content != found.content


@pytest.mark.parametrize(
    ("docstring", "summary"),
    [
        ("Return the sum of two numbers.", "Return the sum of two numbers."),
        ("Return the sum\n of  two numbers.  Then rest.", "Return the sum of two numbers."),
        ("add(a, b) -> int\n\nReturn the sum of two numbers.", "Return the sum of two numbers."),
        (".. deprecated:: 2.0\n   Use other.\n\nReturn the sum of two numbers.", "Return the sum of two numbers."),
        ("See :func:`~numpy.sum` and :class:`Array <x.Array>` for this.", "See numpy.sum and Array for this."),
        ("Use ``sum`` or `this page <there>`_ or *that* **now**.", "Use sum or this page or that now."),
        ("Take *args and **kwargs as they are.", "Take *args and **kwargs as they are."),
        ("Like [`Model`] in [the guide](https://x.y), but faster.", "Like Model in the guide, but faster."),
        ("Take numbers, e.g. Pi or E, as given.", "Take numbers, e.g. Pi or E, as given."),
        ("Say that it is done", "Say that it is done"),
        ("Too short a", None),
        ("1 2 3 4 5 6", None),
        (">>> print('a b c d e f')", None),
        ("An example of it is >>> print(1)", None),
        (":param x: the number that is taken", None),
        ("Parameters of the function that follows:", None),
        ("The NUL \0 is in this text", None),
        ("Half a \ud800 character is in this text", None),
        (r"The value of \alpha in the formula", None),
        ("The whole heading here\n======================", None),
        ("word " * 60, None),
        ("A0A0A0A", None),
        ("a-b-c-d e", None),
        ("", None),
    ],
)
def test_summaries(docstring, summary):
    assert summary_of(docstring) == summary


@given(st.text() | st.text(alphabet=":`*_~<>[]()|.!\\\n\0\ud800 aB\t-=@e.g"))
def test_a_summary_is_one_printable_line_of_words_or_none(docstring):
    for text in (docstring, f"Return the sum of two {docstring}"):
        summary = summary_of(text)
        if summary is not None:
            assert summary.strip() == summary and summary.isprintable() and "\0" not in summary
            assert len(summary.split()) >= 4 and "`" not in summary and ">>>" not in summary
            json.dumps(summary).encode()


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("read_csv", "read csv"),
        ("DataFrame.merge", "data frame merge"),
        ("HTTPServer2.doGET", "http server2 do get"),
        ("isASCII_", "is ascii"),
    ],
)
def test_names_in_words(name, words):
    assert in_words(name) == words
