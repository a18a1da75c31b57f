"""The library's door: public functions take what their types say, and refuse the rest by its place in what was given."""

import collections
import inspect
import io
import itertools

import numpy as np
import pytest
from conftest import make_tiny

import cft
from cft import Embedder, MtebEncoder
from cft.data.texts import checked_texts
from cft.evaluation.vector_cache import CachedEncoder
from cft.system.errors import UserError

TEXTS = ["A man is playing.", "No.", "A man is playing.", "x"]


@pytest.fixture(scope="module")
def embedder() -> Embedder:
    return make_tiny("llama")


@pytest.fixture(scope="module")
def expected(embedder) -> np.ndarray:
    return embedder.encode(TEXTS)


class Column:
    """What pandas calls a Series: one dimension, texts in order."""

    ndim = 1

    def __iter__(self):
        return iter(TEXTS)


class Table(Column):
    """What pandas calls a DataFrame: it iterates over the names of its columns."""

    ndim = 2


ITERABLES = {
    "tuple": lambda: tuple(TEXTS),
    "generator": lambda: (text for text in TEXTS),
    "map": lambda: map(str, TEXTS),
    "iterator": lambda: iter(TEXTS),
    "deque": lambda: collections.deque(TEXTS),
    "array of str": lambda: np.array(TEXTS),
    "array of objects": lambda: np.array(TEXTS, dtype=object),
    "column": Column,
    "islice": lambda: itertools.islice(itertools.cycle(TEXTS[:2]), 2),
}


@pytest.mark.parametrize("kind", ITERABLES)
def test_every_iterable_with_an_order_gives_all_its_vectors(kind, embedder, expected):
    vectors = embedder.encode(ITERABLES[kind]())
    assert np.array_equal(vectors, expected[: len(vectors)]) and len(vectors) == (2 if kind == "islice" else 4)


@pytest.mark.parametrize(
    "empty", [[], (), iter([]), np.array([], dtype=str)], ids=["list", "tuple", "iterator", "array"]
)
def test_no_texts_give_no_vectors_of_the_models_width(empty, embedder):
    assert embedder.encode(empty).shape == (0, 32)


REFUSED = {
    "str": ("one text", "not one str: put the one text into a list"),
    "bytes": (b"one text", "not one bytes"),
    "None": (None, "not None"),
    "int": (7, r"not 7 \(int\)"),
    "open file": (io.StringIO("a\nb\n"), "not an open file"),
    "binary file": (io.BytesIO(b"a\nb\n"), "not an open file"),
    "dict": ({"text": "a"}, "not a dict, which has no order"),
    "set": ({"a", "b"}, "not a set, which has no order"),
    "table": (Table(), "not a Table of 2 dimensions: give one column"),
    "matrix": (np.array([["a", "b"]]), "not a ndarray of 2 dimensions"),
    "scalar array": (np.array("a"), "not a ndarray of 0 dimensions"),
    "pairs": ([("a", "b"), ("c", "d")], r"text 1 of 2 is no text but \('a', 'b'\) \(tuple\)"),
    "lists": ([["a"], ["b"]], r"text 1 of 2 is no text but \['a'\] \(list\)"),
    "dicts": ([{"text": "a"}], "text 1 of 1 is no text but"),
    "None among equals": (["a"] * 5 + [None], "text 6 of 6 is no text but None"),
    "NaN": (["a", "b", float("nan")], r"text 3 of 3 is no text but nan \(float\)"),
    "number": (np.array([1.0, 2.0]), "text 1 of 2 is no text but"),
    "bytes among texts": (["a", "a", b"b"], "text 3 of 3 is no text but b'b'"),
    "empty": (["a", "a", ""], "text 3 of 3 is empty"),
    "blank": (["a", " \n\t"], "text 2 of 2 is empty"),
    "surrogate": (["a", "a", "a", "\ud800"], "text 4 of 4 holds half a character"),
    "NUL": (["a", "b\0"], "text 2 of 2 holds a NUL byte"),
}


def doors(embedder: Embedder) -> dict:
    """Every public function that takes texts."""
    cached = CachedEncoder(embedder, gigabytes=0, version=1)
    return {
        "encode": embedder.encode,
        "count": embedder.count_cut,
        "tokenize": embedder.tokenize,
        "cached": cached.encode,
        "texts": checked_texts,
    }


@pytest.mark.parametrize("case", REFUSED)
@pytest.mark.parametrize("door", ["encode", "count", "tokenize", "cached", "texts"])
def test_what_is_no_list_of_texts_is_refused_by_its_place(door, case, embedder):
    given, message = REFUSED[case]
    with pytest.raises(UserError, match=message):
        doors(embedder)[door](given)


@pytest.mark.parametrize("case", [case for case in REFUSED if isinstance(REFUSED[case][0], list)])
def test_mteb_batches_are_checked_too(case, embedder):
    given, message = REFUSED[case]
    with pytest.raises(UserError, match=message):
        MtebEncoder(embedder).encode([{"text": given}])


@pytest.mark.parametrize("inputs", [["a", "b"], [{"body": ["a"]}], None, 3, [None]])
def test_what_is_no_batch_of_mtebs_is_refused(inputs, embedder):
    with pytest.raises(UserError, match='batches that hold texts under the key "text"'):
        MtebEncoder(embedder).encode(inputs)


@pytest.mark.parametrize("thing", [None, "outputs/run", 7])
def test_mteb_wraps_embedders_alone(thing):
    with pytest.raises(UserError, match="MtebEncoder takes an Embedder"):
        MtebEncoder(thing)


@pytest.mark.parametrize("budget", [0, -1, 1.5, "many"])
def test_a_token_budget_is_a_number_above_0(budget, embedder):
    with pytest.raises(UserError, match="token_budget="):
        embedder.encode(["a"], token_budget=budget)


@pytest.mark.parametrize("template", ["query:", "{text} {text}", "", None, 3, ["{text}"]])
def test_a_prompt_has_one_place_for_the_text(template, embedder):
    with pytest.raises(UserError, match="must hold {text} exactly once"):
        embedder.with_template(template)


@pytest.mark.parametrize("device", ["gpu", "cuda:99", "tpu", "", None, 3.5])
def test_a_device_that_is_not_there_is_refused(device, tmp_path, embedder):
    embedder.save(tmp_path)
    with pytest.raises(UserError, match="device="):
        Embedder.load(tmp_path, device=device)


@pytest.mark.parametrize("folder", ["nosuch", "outputs/a/b", "./nosuch", "/nosuch/run", "~/nosuch"])
def test_a_folder_that_is_not_there_is_named(folder, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UserError, match="no such folder"):
        Embedder.load(folder)


def test_a_run_under_outputs_that_is_not_there_is_no_repository(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for outputs in (False, True):
        if outputs:
            (tmp_path / "outputs").mkdir()
        with pytest.raises(UserError, match="outputs/nosuch: no such folder"):
            Embedder.load("outputs/nosuch")


def test_every_public_class_has_been_tried_here():
    """A class that joins the package's door joins this table."""
    assert set(cft.__all__) == {"Embedder", "MtebEncoder", "__version__"}
    public = {
        name
        for name, member in inspect.getmembers(Embedder, callable)
        if not name.startswith("_") and "texts" in inspect.signature(member).parameters
    }
    assert public == {"encode", "tokenize", "count_cut"}
