"""Biases that are trained beside low-rank updates: which they are, and that they are kept with the updates."""

import copy
import json

import numpy as np
import peft
import pytest
import torch
from batches import WORDS
from conftest import make_tiny
from jobs import adapter_bytes, run_folder, run_killed_at, settings

from cft.config.schema import LoraBias, LoraSettings
from cft.job import runner
from cft.model.embedder import Embedder
from cft.model.lora import add_lora, trainable
from cft.system.errors import UserError

pytestmark = pytest.mark.filterwarnings("ignore:.*is_gradient_checkpointing.*:FutureWarning")

TEXTS = [" ".join(WORDS[start : start + 5]) for start in range(8)]
JOB = ["eval=none", "model.max_length=40", "train.steps=4", "lr=1e-2"]
# A family with biases of its own layers each, one with fused layers, one whose updated layers alone have them.
FAMILIES = {"phi": ["query", "value"], "gpt2": ["c_attn"], "qwen2": ["query", "value"], "bert": ["query", "value"]}


def fresh(family: str, bias: LoraBias, **more: object) -> tuple[Embedder, Embedder]:
    """A base model, and the same under a LoRA that has trained nothing yet."""
    base = make_tiny(family, **({"attention": "bidirectional", "pooling": "mean"} if family == "bert" else {}))
    lora = LoraSettings(**{"rank": 4, "targets": FAMILIES[family], "dropout": 0.0, "bias": bias} | more)
    return base, Embedder(add_lora(copy.deepcopy(base.model), lora, seed=0), base.backbone, base.contract)


@pytest.mark.parametrize("more", [{}, {"init": "pissa"}, {"variant": "rslora"}], ids=["lora", "pissa", "rslora"])
@pytest.mark.parametrize("bias", [LoraBias.lora_only, LoraBias.all])
@pytest.mark.parametrize("family", FAMILIES)
def test_its_biases_are_trained_saved_and_loaded_by_peft_too(tmp_path, family, bias, more):
    base, embedder = fresh(family, bias, **more)
    biases = {name for name in trainable(embedder.model) if name.endswith(".bias")}
    everywhere = {name for name, _ in base.model.named_parameters() if name.endswith(".bias")}
    if bias is LoraBias.all:
        assert len(biases) == len(everywhere)
    else:
        assert biases and all("base_layer.bias" in name for name in biases)
        assert len(biases) * 3 == len(trainable(embedder.model)), "two factors and a bias a layer"
    assert np.abs(embedder.encode(TEXTS) - base.encode(TEXTS)).max() < 1e-5
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for name in sorted(biases):
            weight = trainable(embedder.model)[name]
            weight += 0.05 * torch.randn(weight.shape, generator=generator)
    expected = embedder.encode(TEXTS)
    assert np.abs(expected - base.encode(TEXTS)).max() > 1e-3, "a bias alone moves the vectors"
    embedder.save(tmp_path)
    assert json.loads((tmp_path / "adapter" / "adapter_config.json").read_text())["bias"] == bias.value
    assert np.abs(Embedder.load(tmp_path).encode(TEXTS) - expected).max() < 1e-6
    theirs = peft.PeftModel.from_pretrained(copy.deepcopy(base.model), str(tmp_path / "adapter"))
    assert np.abs(Embedder(theirs.eval(), base.backbone, base.contract).encode(TEXTS) - expected).max() < 1e-6


@pytest.mark.parametrize("bias", ["lora_only", "all"])
def test_a_killed_training_ends_with_the_same_bytes_and_small_chunks_change_nothing(tmp_path, bias):
    job = [*JOB, "model.path=random:phi", "model.name=tiny", f"lora.bias={bias}", "lora.dropout=0"]
    runner.run(settings(tmp_path / "whole", *job))

    killed = [*job, "train.checkpoint_every=1"]
    run_killed_at(3, settings(tmp_path / "killed", *killed))
    runner.run(settings(tmp_path / "killed", *killed))
    assert adapter_bytes(tmp_path / "killed") == adapter_bytes(tmp_path / "whole")
    runner.run(settings(tmp_path / "chunks", *job, "train.chunk_tokens=40"))
    runner.run(settings(tmp_path / "plain", *job, "lora.bias=none"))
    whole, chunks, plain = (
        Embedder.load(run_folder(tmp_path / name)).encode(TEXTS) for name in ("whole", "chunks", "plain")
    )
    assert np.abs(whole - chunks).max() < 1e-4 and np.abs(whole - plain).max() > 1e-3
    again = [*job, f"adapter={run_folder(tmp_path / 'whole')}", "train.steps=1"]
    runner.run(settings(tmp_path / "on", *again))
    with pytest.raises(UserError, match=f"another LoRA .*as it is: lora.bias={bias}"):
        runner.run(settings(tmp_path / "on", *again, "lora.bias=none"))


def test_biases_are_part_of_the_name_only_where_they_are_trained(tmp_path):
    from cft.job.plan import named

    assert "bias" not in named(LoraSettings()) and named(LoraSettings(bias=LoraBias.all))["bias"] == "all"


@pytest.mark.parametrize(
    ("family", "targets", "bias", "message"),
    [
        ("llama", ["query"], "all", "lora.bias=all: no layer of this model has a bias; leave it out"),
        ("llama", ["query"], "lora_only", "lora.bias=lora_only: no layer of this model has a bias"),
        (
            "qwen2",
            ["output"],
            "lora_only",
            "lora.bias=lora_only: no o_proj of this model has a bias; .* of k_proj, q_pr",
        ),
        ("gpt2", ["query", "value"], "lora_only", "lora.bias=lora_only: c_attn computes .* its bias is of all of them"),
    ],
)
def test_they_are_refused_where_there_are_none_or_too_many(family, targets, bias, message):
    with pytest.raises(UserError, match=message):
        add_lora(make_tiny(family).model, LoraSettings(targets=targets, bias=LoraBias(bias)), seed=0)


def test_they_are_refused_without_an_update(tmp_path):
    with pytest.raises(UserError, match="lora.bias=all would not be read at lora.rank=0"):
        settings(tmp_path, "lora=none", "lora.bias=all")
