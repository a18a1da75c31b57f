"""A model is tried once on a machine, and again whenever anything differs that could change what was found."""

import dataclasses
import json

import pytest
import torch
from batches import tuned
from conftest import make_tiny
from transformers.models.llama.modeling_llama import LlamaMLP

from cft.batching import trials
from cft.batching.layout import Batching
from cft.config.schema import Batches, LoraVariant, ModelSettings, Pooling
from cft.model.embedder import Embedder
from cft.system.errors import UserError
from cft.training import memory, trainer

TINY = ModelSettings(name="tiny", path="random:llama", max_length=40)


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("CFT_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache" / "trials"


@pytest.fixture
def tried(monkeypatch) -> list[str]:
    """The models that were tried."""
    real, found = trials.choose_batching, []
    monkeypatch.setattr(trials, "choose_batching", lambda *a: found.append(a[1].path) or real(*a))
    return found


@pytest.mark.parametrize("batches", ["auto", "padded"])
def test_a_model_is_tried_once_and_is_the_same_afterwards(tried, batches):
    settings = dataclasses.replace(TINY, batches=Batches(batches))
    first, again = Embedder.base(settings), Embedder.base(settings)
    assert tried == ["random:llama"]
    assert first.backbone.batching == again.backbone.batching
    assert first.model.config._attn_implementation == again.model.config._attn_implementation
    texts = ["a cat", "a cat sleeps on the mat"]
    torch.testing.assert_close(torch.tensor(first.encode(texts)), torch.tensor(again.encode(texts)), rtol=0, atol=0)


@pytest.mark.parametrize(
    "change",
    [
        {"path": "random:qwen2"},
        {"max_length": 41},
        {"layer": 1},
        {"batches": Batches.padded},
        {"append_eos": False, "path": "random:gemma"},
    ],
    ids=str,
)
def test_another_model_or_setting_is_tried_anew(tried, change):
    Embedder.base(TINY)
    Embedder.base(dataclasses.replace(TINY, **change))
    assert len(tried) == 2


def test_other_weights_precision_libraries_and_code_are_tried_anew(monkeypatch):
    trunk = make_tiny("llama").model
    trunk.set_attn_implementation("sdpa")

    def named(weights: str = "one") -> str:
        return trials.digest(trials._tried(trunk, TINY, (1,), weights))

    names = [named(), named("other")]
    for module, name, value in (
        (trials.torch, "__version__", "9.9"),
        (trials, "version", lambda package: "9.9"),
        (trials, "_code", lambda part: ["another"]),
        (trials.torch.backends.cpu, "get_cpu_capability", lambda: "AVX9"),
    ):
        with monkeypatch.context() as patch:
            patch.setattr(module, name, value)
            names.append(named())
    trunk.config.rope_parameters = {**trunk.config.rope_parameters, "rope_theta": 7.0}
    names.append(named())
    trunk.to(torch.bfloat16)
    names.append(named())
    assert len(set(names)) == len(names)


def test_a_model_that_computes_otherwise_is_tried_anew(tried, monkeypatch):
    """As packages that speed up transformers have it do, under its classes' own names."""
    Embedder.base(TINY)
    real = LlamaMLP.forward
    monkeypatch.setattr(LlamaMLP, "forward", lambda self, x: real(self, x) * 1.0)
    Embedder.base(TINY)
    monkeypatch.setattr(LlamaMLP, "forward", lambda self, x: real(self, x) + 0.0)
    Embedder.base(TINY)
    assert len(tried) == 3


def test_a_refusal_is_not_kept(tried, cache):
    odd = dataclasses.replace(TINY, path="random:falcon_mamba", batches=Batches.tree)
    for _ in range(2):
        with pytest.raises(UserError, match="model.batches=tree"):
            Embedder.base(odd)
    assert len(tried) == 2 and not list(cache.glob("*"))


@pytest.mark.parametrize("content", ["", "{", "[]", json.dumps({"kind": "tree"})])
def test_what_cannot_be_read_is_tried_again(tried, cache, content):
    Embedder.base(TINY)
    (path,) = cache.glob("*.json")
    path.write_text(content)
    assert Embedder.base(TINY).backbone.batching.kind is Batches.tree
    assert len(tried) == 2 and trials.read_record(path, Batching).kind is Batches.tree


def test_what_was_changed_by_hand_is_not_believed(tried, cache):
    padded = dataclasses.replace(TINY, batches=Batches.padded)
    Embedder.base(padded)
    (path,) = cache.glob("*.json")
    path.write_text(path.read_text().replace('"padded"', '"tree"'))
    assert Embedder.base(padded).backbone.batching.kind is Batches.padded


def test_a_cache_that_cannot_be_written_costs_the_trial_alone(tried, tmp_path, monkeypatch):
    (tmp_path / "file").write_text("no folder")
    monkeypatch.setenv("CFT_CACHE", str(tmp_path / "file"))
    for _ in range(2):
        assert Embedder.base(TINY).backbone.batching.kind is Batches.tree
    assert len(tried) == 2


@pytest.fixture
def measured(monkeypatch) -> list[bool]:
    """The trials of the memory of a step, by whether in bfloat16."""
    real, found = memory._try_longest, []
    monkeypatch.setattr(memory, "_try_longest", lambda *a, **k: found.append(k["bf16"]) or real(*a, **k))
    return found


def test_the_memory_of_a_step_is_measured_once(measured):
    first = memory.estimate_longest(tuned(dropout=0.1), bf16=False)
    assert memory.estimate_longest(tuned(dropout=0.1), bf16=False) == first
    assert measured == [False] and first.by_token > 0


@pytest.mark.parametrize(
    "change",
    [
        {"bf16": True},
        {"dropout": 0.2},
        {"family": "qwen2"},
        {"max_length": 41},
        {"batches": Batches.padded},
        {"pooling": Pooling.mean},
        {"lora": {"rank": 8}},
        {"lora": {"targets": ["query"]}},
        {"lora": {"variant": LoraVariant.dora}},
        {"recomputed": True},
        {"code": "training"},
        {"code": "model"},
    ],
    ids=str,
)
def test_the_memory_of_another_step_is_measured_anew(measured, monkeypatch, change):
    memory.estimate_longest(tuned(dropout=0.1), bf16=False)
    bf16, recomputed, part = (change.pop(name, None) for name in ("bf16", "recomputed", "code"))
    embedder = tuned(**{"dropout": 0.1, **change})
    if recomputed:
        trainer.recompute_activations(embedder.model)
    real = trials._code
    monkeypatch.setattr(trials, "_code", lambda of: ["another"] if of == part else real(of))
    memory.estimate_longest(embedder, bf16=bool(bf16))
    assert len(measured) == 2
