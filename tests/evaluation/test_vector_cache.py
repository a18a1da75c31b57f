"""Vectors that are kept: the same ones, computed once, of this embedder alone, within their limit."""

import logging
import os
import shutil

import numpy as np
import pytest
from conftest import make_tiny
from jobs import SCORED

from cft.evaluation import vector_cache
from cft.evaluation.vector_cache import CachedEncoder
from cft.job.plan import RECIPE
from cft.model.embedder import Embedder

TEXTS = ["a cat", "a dog", "a cat", "two birds sing"]


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("CFT_CACHE", str(tmp_path))
    return tmp_path / "vectors"


@pytest.fixture
def embedded(monkeypatch) -> list[str]:
    """Texts that went through a model."""
    seen: list[str] = []
    encode = Embedder.encode

    def watched(self, texts, **options):
        seen.extend(texts)
        return encode(self, texts, **options)

    monkeypatch.setattr(Embedder, "encode", watched)
    return seen


def remembering(embedder, gigabytes=1.0, version=RECIPE) -> CachedEncoder:
    return CachedEncoder(embedder, gigabytes=gigabytes, version=version)


def test_a_second_look_runs_no_text_and_gives_the_same_bytes(tiny, embedded):
    first = remembering(tiny).encode(TEXTS)
    assert embedded == ["a cat", "a dog", "two birds sing"]
    embedded.clear()
    # another process would have another model object of the same contract
    second = remembering(make_tiny("llama")).encode(TEXTS[::-1])
    assert embedded == [] and second[::-1].tobytes() == first.tobytes()


def test_only_new_texts_are_run(tiny, embedded):
    remembering(tiny).encode(["a cat"])
    embedded.clear()
    found = remembering(tiny).encode(["a dog", "a cat", "a dog"])
    assert embedded == ["a dog"]
    np.testing.assert_allclose(found, tiny.encode(["a dog", "a cat", "a dog"]), atol=1e-6)


@pytest.mark.parametrize(
    "other",
    [
        lambda: remembering(make_tiny("llama").with_template("query: {text}")),
        lambda: remembering(make_tiny("llama", pooling="mean")),
        lambda: remembering(make_tiny("gpt2")),
        lambda: remembering(make_tiny("llama"), version=RECIPE + 1),
    ],
    ids=["prompt", "pooling", "model", "version"],
)
def test_another_contract_or_version_has_vectors_of_its_own(tiny, embedded, other):
    remembering(tiny).encode(["a cat"])
    other = other()
    embedded.clear()
    other.encode(["a cat"])
    assert embedded == ["a cat"]


def test_vectors_of_other_texts_are_not_held_in_memory(tiny):
    encoder = remembering(tiny)
    encoder.encode([f"text {number}" for number in range(50)])
    encoder.encode(["a cat"])
    key = vector_cache._key("a cat")
    loaded = encoder._load({key, vector_cache._key("never seen")})
    assert list(loaded) == [key]
    assert loaded[key].base.shape == (1, loaded[key].size), "a row of a part that is mapped or copied whole"


def test_damaged_vectors_are_computed_again(tiny, cache, embedded, caplog):
    first = remembering(tiny).encode(TEXTS)
    (part,) = cache.glob("*/*.npy")
    content = bytearray(part.read_bytes())
    content[-3] ^= 1
    part.write_bytes(content)
    with caplog.at_level(logging.WARNING):
        second = remembering(tiny).encode(TEXTS)
    assert "is damaged" in caplog.text and second.tobytes() == first.tobytes()
    part.write_bytes(b"not an array")
    assert remembering(tiny).encode(TEXTS).tobytes() == first.tobytes()
    assert len(list(cache.glob("*/*.npy"))) == 1


def test_the_embedders_not_used_for_longest_make_room(tiny, cache):
    one = remembering(tiny)
    one.encode(["a cat"])
    (folder,) = cache.iterdir()
    size = sum(path.stat().st_size for path in folder.iterdir())
    os.utime(folder, (1, 1))
    prompts = ["b {text}", "c {text}"]
    for prompt in prompts:
        remembering(tiny.with_template(prompt), gigabytes=2.5 * size / 1e9).encode(["a cat"])
    assert not folder.exists() and len(list(cache.iterdir())) == 2


def test_using_vectors_keeps_them_young(tiny, cache):
    remembering(tiny).encode(["a cat"])
    (folder,) = cache.iterdir()
    os.utime(folder, (1, 1))
    remembering(tiny).encode(["a cat"])
    assert folder.stat().st_mtime > 1


def test_nothing_is_kept_without_room_or_a_place_to_write(tiny, cache, monkeypatch, caplog):
    remembering(tiny, gigabytes=0).encode(["a cat"])
    assert not cache.exists()

    def full(path):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(vector_cache, "atomic_write", full)
    with caplog.at_level(logging.WARNING):
        assert remembering(tiny).encode(["a cat"]).shape == (1, tiny.model.config.hidden_size)
    assert "No space left on device" in caplog.text


def test_a_read_only_cache_is_read(tiny, embedded, monkeypatch):
    first = remembering(tiny).encode(TEXTS)
    embedded.clear()

    def refuse(*_, **__):
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(vector_cache.os, "utime", refuse)
    assert remembering(tiny).encode(TEXTS).tobytes() == first.tobytes() and embedded == []


def test_a_job_scored_again_elsewhere_embeds_nothing(tmp_path, embedded):
    from jobs import composed

    from cft.job.runner import run

    told = ["model=tiny", "train.steps=0", *SCORED, "eval.rows=20", "logger=none"]
    run(composed(*told, f"outputs={tmp_path / 'one'}"))
    assert embedded
    embedded.clear()
    run(composed(*told, f"outputs={tmp_path / 'two'}"))
    assert embedded == []
    metrics = [next((tmp_path / name).rglob("cosines.npz")).read_bytes() for name in ("one", "two")]
    assert metrics[0] == metrics[1]
    shutil.rmtree(tmp_path / "vectors")
    run(composed(*told, f"outputs={tmp_path / 'three'}", "eval.rows=10"))
    assert len(embedded) <= 20
