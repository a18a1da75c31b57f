"""Documented definitions in Python source files, read by `ast` alone: nothing is imported or run.

CACHE/docstrings/DIGEST.json    what a folder of source files defines; the digest is of their names, sizes and times
"""

import ast
import contextlib
import os
import re
import sys
import time
import warnings
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

from cft.system.digest import digest
from cft.system.errors import UserError
from cft.system.files import cache_folder, read_json, write_json

# Raise when the same files would be read as other definitions.
_FORMAT = 3

# Larger files are tables in the form of code.
_MOST_BYTES = 1_000_000

_LEAST_WORDS, _MOST_CHARACTERS = 4, 250  # of a summary
_MOST_READ = 4000  # characters of a paragraph
_MOST_PARAMETERS = 2  # in a document

# Folders and files that do not define what others are to call.
_ASIDE = re.compile(r"tests?|testing|conftest|test_.*|.*_tests?|_?vendor(ed)?|_?externals?|examples?|benchmarks?|docs?")

_UNUSED_DAYS = 30

_Function = (ast.FunctionDef, ast.AsyncFunctionDef)


class Definition(NamedTuple):
    """A public function, method, property or class with a docstring."""

    module: str
    name: str  # in its module, such as DataFrame.merge
    parameters: str  # in brackets; empty for a property
    summary: str  # the first sentence of its docstring
    is_class: bool = False

    @property
    def qualified(self) -> str:
        """Module and name."""
        return f"{self.module}.{self.name}"

    @property
    def words(self) -> str:
        """The name in words: `read_csv` is "read csv", `DataFrame.merge` is "data frame merge"."""
        return in_words(self.name)

    @property
    def document(self) -> str:
        """What a search finds: the call, and its name in words.

        Documents of one module begin alike, so that a prefix tree holds them in two thirds of their tokens.
        """
        return f"{self.qualified}{self.parameters}: {self.words}"


@dataclass(frozen=True)
class Source:
    """What a folder of source files defines."""

    definitions: list[Definition]  # by file name, then in their order in the file
    passed_over: int  # files that cannot be read or parsed, or are too large


_CAMEL = re.compile(r"(?<=[a-z0-9])(?=[A-Z])|(?<=[A-Z])(?=[A-Z][a-z])")


def in_words(name: str) -> str:
    """A name's words in lower case: snake_case and CamelCase are split."""
    return " ".join(re.sub(r"[_.]+", " ", _CAMEL.sub(" ", name)).lower().split())


# ---------------------------------------------------------------------------------------------------------------------
# Summaries
# ---------------------------------------------------------------------------------------------------------------------

_BLANK_LINE = re.compile(r"\n[^\S\n]*\n\s*")
# A paragraph that is a call, as functions written in C begin their docstrings with, or Sphinx's and doctest's own.
_NO_PROSE = re.compile(r"[\w.]+\s*\(.*\)(\s*->.*)?$|\.\. |>>>|:\w+|[-=~^*#]{3,}|[@\\|+]", re.S)
# What follows belongs to the sentence after "e.g.", "vs." and single letters.
_SENTENCE_END = re.compile(r"(?<!\b[a-zA-Z]\.)(?<!\bvs\.)(?<!\betc\.)(?<=[.!?])\s+(?=[A-Z\"'(`])")
_MARKUP = [
    (re.compile(r"!?\[([^\[\]]*)\]\([^()\s]*\)"), r"\1"),  # [text](address)
    (re.compile(r"`([^`<>]+?)\s*<[^`<>]*>`(__?)?"), r"\1"),  # `text <address>`_
    (re.compile(r":[a-zA-Z][\w:+.-]*:`[~!.]*([^`]*)`"), r"\1"),  # :func:`name`
    (re.compile(r":[a-zA-Z]+:(?=[^\s:])"), ""),  # :func:name, as some write it
    (re.compile(r"`{1,2}[~!.]*([^`]*)`{1,2}(__?)?"), r"\1"),  # ``code``, `name`, `link`_
    (re.compile(r"\[([\w.]+)\]_?"), r"\1"),  # [name], [1]_
    (re.compile(r"(?<![\w*])(\*{1,2})(?![\s*])([^*]*[^\s*])\1(?![\w*])"), r"\2"),  # *emphasis*
    (re.compile(r"\|(\w+)\|"), r"\1"),  # |substitution|
]
_RUBBLE = re.compile(r">>>|\\|`|::|:\w+:|\.\. |https?:|[-=~^]{4,}")
_LETTER = re.compile(r"[^\W\d_]")


def summary_of(docstring: str) -> str | None:
    """The first sentence of a docstring, without markup; None if it is no sentence that says something.

    Args:
        docstring: with its indentation removed.
    """
    paragraphs = [each.strip()[:_MOST_READ] for each in _BLANK_LINE.split(docstring.strip(), maxsplit=2)]
    prose = [paragraph for paragraph in paragraphs[:2] if not _NO_PROSE.match(paragraph)]
    text = " ".join(prose[0].split()) if prose else ""
    for pattern, replacement in _MARKUP:
        text = pattern.sub(replacement, text)
    text = " ".join(_SENTENCE_END.split(text, maxsplit=1)[0].split())
    words = sum(_LETTER.search(word) is not None for word in text.split())
    says = words >= _LEAST_WORDS and len(text) <= _MOST_CHARACTERS and not text.endswith(":")
    return text if says and text.isprintable() and not _RUBBLE.search(text) else None


# ---------------------------------------------------------------------------------------------------------------------
# Files
# ---------------------------------------------------------------------------------------------------------------------


def read_source(place: Path, module: str, without: Sequence[str] = ()) -> Source:
    """What the source files of a folder define, or one file; read anew only if one of them was changed.

    Args:
        place: a package's folder, or a module's file. module: its name, or empty for a folder of modules.
        without: folders and files in it, by their names without ending, that are left out.
    """
    files = sorted(_files(place, set(without)))
    facts = [[name, status.st_size, status.st_mtime_ns] for name, _, status in files]
    path = cache_folder() / "docstrings" / f"{digest([_FORMAT, sys.version_info[:2], str(place), module, facts])}.json"
    cached = _cached(path)
    if cached is None:
        definitions, passed_over = [], 0
        for name, file, status in files:
            found = _definitions(file, _module(module, name)) if status.st_size <= _MOST_BYTES else None
            passed_over += found is None
            definitions += found or []
        cached = Source(definitions, passed_over)
        with contextlib.suppress(OSError):  # without it reading only takes longer
            write_json(path, {"definitions": [list(each) for each in definitions], "passed_over": passed_over})
            _tidy(path.parent)
    return cached


def _cached(path: Path) -> Source | None:
    """What was read before; None if that is missing or damaged."""
    try:
        record = read_json(path)
        source = Source([Definition(*each) for each in record["definitions"]], record["passed_over"])
        path.touch()  # by which `_tidy` knows when it was used
    except (UserError, TypeError, OSError):
        return None
    return source


def _tidy(folder: Path) -> None:
    """Remove what nothing has used for a month; it can be read again."""
    for path in folder.glob("*.json"):
        with contextlib.suppress(OSError):
            if time.time() - path.stat().st_mtime > _UNUSED_DAYS * 86_400:
                path.unlink()


def _files(place: Path, without: set[str]) -> Iterator[tuple[str, Path, os.stat_result]]:
    """Relative name, path and status of each source file."""
    if place.is_file():
        yield "__init__.py", place, place.stat()
        return
    for parent, folders, names in os.walk(place):
        folders[:] = [name for name in folders if name.isidentifier() and _is_offered(name, without)]
        for name in names:
            stem, ending = os.path.splitext(name)
            path = Path(parent, name)
            if ending == ".py" and stem.isidentifier() and _is_offered(stem, without):
                with contextlib.suppress(OSError):  # a broken link
                    yield path.relative_to(place).as_posix(), path, path.stat()


def _is_offered(name: str, without: set[str]) -> bool:
    return name not in without and not _ASIDE.fullmatch(name)


def _module(package: str, name: str) -> str:
    """The module's name out of its file's within the package, as others call it: without the private parts in it.

    `sklearn/svm/_classes.py` is sklearn.svm, from where what it defines is imported.
    """
    first, *inner = [*filter(None, [package]), *name.removesuffix(".py").split("/")]
    return ".".join([first, *(part for part in inner if not part.startswith("_"))])


def _definitions(path: Path, module: str) -> list[Definition] | None:
    """What a file defines; None if Python could not read it either."""
    from cft.system.memory import unless_out_of_memory  # brings torch, for which a look at a user's file does not wait

    try:
        text = path.read_bytes().decode("utf-8-sig")
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of other people's code
            tree = unless_out_of_memory(lambda: ast.parse(text))
    except (OSError, ValueError, SyntaxError, RecursionError):  # bytes that are not UTF-8, and NUL, are ValueErrors
        return None
    return None if tree is None else list(_public(tree.body, module, ()))


def _public(body: Sequence[ast.stmt], module: str, classes: tuple[str, ...]) -> Iterator[Definition]:
    """The public definitions in a block, and in the classes and branches in it; functions keep theirs to themselves."""
    for node in body:
        if isinstance(node, (ast.If, ast.Try)):
            blocks = [node.body, node.orelse, *(each.body for each in getattr(node, "handlers", []))]
            for block in blocks:
                yield from _public(block, module, classes)
        if not isinstance(node, (*_Function, ast.ClassDef)) or node.name.startswith("_"):
            continue
        decorators = {_last_name(each) for each in node.decorator_list}
        if decorators & {"setter", "deleter", "overload"}:  # of what is defined once more
            continue
        names = (*classes, node.name)
        summary, is_class = summary_of(ast.get_docstring(node) or ""), isinstance(node, ast.ClassDef)
        if summary is not None:
            parameters = "" if any("property" in name for name in decorators) else _parameters(node, classes)
            yield Definition(module, ".".join(names), parameters, summary, is_class)
        if isinstance(node, ast.ClassDef):
            yield from _public(node.body, module, names)


def _parameters(node: ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef, classes: tuple[str, ...]) -> str:
    """The names of the first parameters in brackets, less `self`; of a class, those of its `__init__`."""
    if isinstance(node, ast.ClassDef):
        made = [each for each in node.body if isinstance(each, _Function) and each.name == "__init__"]
        return _parameters(made[0], (*classes, node.name)) if made else "()"
    given = node.args
    names = [each.arg for each in (*given.posonlyargs, *given.args)]
    if classes and "staticmethod" not in map(_last_name, node.decorator_list):
        names = names[1:]
    names += [f"*{given.vararg.arg}"] if given.vararg else []
    names += [each.arg for each in given.kwonlyargs]
    names += [f"**{given.kwarg.arg}"] if given.kwarg else []
    shown = [*names[:_MOST_PARAMETERS], *(["..."] if len(names) > _MOST_PARAMETERS else [])]
    return f"({', '.join(shown)})"


def _last_name(node: ast.expr) -> str:
    """The last part of a decorator's name."""
    node = node.func if isinstance(node, ast.Call) else node
    return node.attr if isinstance(node, ast.Attribute) else getattr(node, "id", "")
