"""The page of the library is what its docstrings say, and their examples run."""

import doctest
import importlib
import sys
from pathlib import Path

import pytest

import cft

ROOT = Path(__file__).parents[2]


@pytest.fixture
def writer(monkeypatch):
    monkeypatch.syspath_prepend(str(ROOT / "docs"))
    return importlib.import_module("write_api")


def test_the_page_is_what_the_docstrings_say(writer):
    assert (ROOT / "docs/api.md").read_text() == writer.page(), "python docs/write_api.py writes it anew"
    for name in cft.__all__:
        assert f"cft.{name}" in writer.page()


@pytest.mark.parametrize("name", ["Embedder", "quantize", "train"])
def test_the_examples_of_the_docstrings_run(name, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("CFT_CACHE", str(tmp_path / "cache"))
    member = getattr(cft, name)
    tests = doctest.DocTestFinder(recurse=False).find(member, name, module=sys.modules[member.__module__])
    examples = [test for test in tests if test.examples]
    assert examples, "an example shows how it is used"
    for test in examples:
        assert doctest.DocTestRunner(optionflags=doctest.ELLIPSIS).run(test).failed == 0
