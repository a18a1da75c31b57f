"""Vectors in fewer bytes: what sentence-transformers makes of them, and what is left of them."""

import numpy as np
import pytest
from conftest import make_tiny

import cft
from cft.model.quantize import DTYPES, quantize, ranges_of, restore
from cft.system.errors import UserError


def unit_vectors(count: int, width: int, seed: int = 0) -> np.ndarray:
    drawn = np.random.default_rng(seed).standard_normal((count, width)).astype(np.float32)
    return drawn / np.linalg.norm(drawn, axis=1, keepdims=True)


@pytest.mark.parametrize("dtype", ["float32", "int8", "uint8", "binary", "ubinary"])
@pytest.mark.parametrize(("count", "width"), [(7, 16), (100, 24), (2, 8)])
def test_vectors_are_sentence_transformers_own(dtype, count, width):
    package = pytest.importorskip("sentence_transformers", reason="sentence-transformers is not installed")
    vectors, calibration = unit_vectors(count, width), unit_vectors(150, width, seed=1)
    theirs = package.util.quantize_embeddings(vectors, precision=dtype)
    assert quantize(vectors, dtype).dtype == theirs.dtype and (quantize(vectors, dtype) == theirs).all()
    ranges = ranges_of(calibration)
    assert (quantize(vectors, dtype, ranges) == package.util.quantize_embeddings(vectors, dtype, ranges=ranges)).all()


@pytest.mark.parametrize(("dtype", "most"), [("float32", 0.0), ("float16", 3e-4), ("int8", 0.01), ("uint8", 0.01)])
def test_what_is_left_is_near(dtype, most):
    vectors = unit_vectors(200, 32)
    ranges = ranges_of(vectors)
    left = restore(quantize(vectors, dtype, ranges), dtype, ranges, width=32)
    assert left.dtype == np.float32 and np.abs(left - vectors).max() <= most


@pytest.mark.parametrize("dtype", ["binary", "ubinary"])
@pytest.mark.parametrize("width", [8, 13, 384])
def test_bits_are_signs(dtype, width):
    vectors = unit_vectors(5, width)
    left = restore(quantize(vectors, dtype), dtype, width=width)
    assert (left == np.where(vectors > 0, 1, -1)).all()


def test_a_column_of_one_number_and_no_vectors_are_no_problem():
    vectors = np.full((3, 4), 0.5, dtype=np.float32)
    assert (quantize(vectors, "uint8") == 0).all()
    for dtype in DTYPES:
        assert quantize(np.empty((0, 16), dtype=np.float32), dtype).shape == (0, 2 if "binary" in dtype else 16)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((unit_vectors(2, 4), "int4"), "dtype='int4': must be float32, .*mean int8"),
        ((unit_vectors(2, 4), None), "dtype=None: must be"),
        ((np.zeros(4), "int8"), r"must be \(n, D\) floats, not float64 of shape \(4,\)"),
        ((np.zeros((2, 4), dtype=np.int8), "int8"), "must be .* floats, not int8"),
        ((np.array([[1.0, 0.0], [np.nan, 0.0]]), "binary"), "vectors hold NaN or infinity, first in row 2 of 2"),
        ((np.full((3, 4), np.inf, dtype=np.float32), "int8"), "vectors hold NaN or infinity, first in row 1 of 3"),
        ((unit_vectors(1, 4), "int8"), "need ranges, or two vectors or more"),
        ((unit_vectors(2, 4), "int8", np.zeros((2, 3))), r"ranges must be \(2, 4\)"),
        ((unit_vectors(2, 4), "int8", np.array([[1.0] * 4, [0.0] * 4])), r"ranges must be"),
        ((unit_vectors(2, 4), "int8", np.full((2, 4), np.nan)), r"ranges must be"),
        ((unit_vectors(2, 4), "int8", "x"), r"ranges must be \(2, 4\) finite numbers, not 'x' \(str\)"),
        ((unit_vectors(2, 4), "uint8", [[1.0], [1.0, 2.0]]), r"ranges must be \(2, 4\) finite numbers, not .*list"),
        ((unit_vectors(2, 4), "int8", object()), r"ranges must be \(2, 4\) finite numbers, not .*object"),
    ],
)
def test_what_cannot_be_is_refused(arguments, message):
    with pytest.raises(UserError, match=message):
        cft.quantize(*arguments)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("method", ["encode", "encode_query", "encode_document"])
def test_an_embedder_makes_them(method, dtype):
    embedder, texts = make_tiny("llama"), ["a man", "a dog sleeps", "nobody", "a man"]
    whole = embedder.encode(texts, dimensions=16)
    made = getattr(embedder, method)(texts, dimensions=16, dtype=dtype)
    assert made.dtype == quantize(whole, dtype).dtype and (made == quantize(whole, dtype)).all()
    assert getattr(embedder, method)([], dtype=dtype).shape == (0, 4 if "binary" in dtype else 32)


def test_an_embedder_refuses_another_kind_before_it_runs():
    with pytest.raises(UserError, match="dtype='half': must be"):
        make_tiny("llama").encode(["a"], dtype="half")
