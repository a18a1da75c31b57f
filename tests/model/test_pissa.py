"""PiSSA: it begins as the base model, trains the largest singular values, and is saved as a plain LoRA."""

import copy
import json

import numpy as np
import peft
import pytest
import torch
from batches import WORDS
from conftest import make_tiny
from jobs import adapter_bytes, run_folder, run_killed_at, settings

from cft.config.schema import LoraSettings, LoraVariant
from cft.job import runner
from cft.model.embedder import Embedder
from cft.model.lora import add_lora, kept_in_checkpoints, trainable
from cft.model.pissa import principal_factors
from cft.system.errors import UserError

pytestmark = pytest.mark.filterwarnings("ignore:.*is_gradient_checkpointing.*:FutureWarning")

TEXTS = [" ".join(WORDS[start : start + 5]) for start in range(8)]
INITS = ["pissa", "pissa_niter_16"]
JOB = ["eval=none", "train.steps=4", "lr=1e-2", "lora.init=pissa"]


def begun(family: str = "llama", **settings: object) -> tuple[Embedder, Embedder]:
    """A base model, and the same under a fresh PiSSA."""
    base = make_tiny(family)
    lora = LoraSettings(**{"rank": 4, "init": "pissa", "targets": ["all-linear"], "dropout": 0.0} | settings)
    return base, Embedder(add_lora(copy.deepcopy(base.model), lora, seed=0), base.backbone, base.contract)


def moved(embedder: Embedder) -> Embedder:
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for weight in trainable(embedder.model).values():
            weight += 0.05 * torch.randn(weight.shape, generator=generator)
    return embedder


@pytest.mark.parametrize("init", INITS)
@pytest.mark.parametrize("variant", [LoraVariant.plain, LoraVariant.rslora])
@pytest.mark.parametrize("family", ["llama", "gpt2"])
def test_it_begins_as_the_base_model_and_is_saved_as_it_is(tmp_path, family, variant, init):
    base, fresh = begun(family, variant=variant, init=init)
    assert np.abs(fresh.encode(TEXTS) - base.encode(TEXTS)).max() < 1e-5
    assert all(".initial." not in name for name in trainable(fresh.model))
    expected = moved(fresh).encode(TEXTS)
    assert np.abs(expected - base.encode(TEXTS)).max() > 1e-3
    fresh.save(tmp_path)
    assert np.abs(Embedder.load(tmp_path).encode(TEXTS) - expected).max() < 1e-6
    record = json.loads((tmp_path / "adapter" / "adapter_config.json").read_text())
    assert (record["r"], record["init_lora_weights"]) == (8, True)
    theirs = peft.PeftModel.from_pretrained(make_tiny(family).model, str(tmp_path / "adapter"))
    found = Embedder(theirs.eval(), base.backbone, base.contract).encode(TEXTS)
    assert np.abs(found - expected).max() < 1e-6


@pytest.mark.parametrize("family", ["llama", "gpt2"])
def test_its_layers_and_gradients_are_those_of_peft(family):
    base, ours = begun(family)
    config = peft.LoraConfig(
        r=4,
        lora_alpha=32,
        init_lora_weights="pissa",
        target_modules=sorted({name.split(".lora_")[0].rsplit(".", 1)[-1] for name in trainable(ours.model)}),
        fan_in_fan_out=family == "gpt2",
    )
    theirs = peft.get_peft_model(copy.deepcopy(base.model), config)
    expected, signs = trainable(theirs), {}
    for name, weight in trainable(ours.model).items():
        if ".lora_A." in name:
            signs[name] = torch.sign((weight * expected[name]).sum(dim=1))
            assert torch.allclose(weight, signs[name][:, None] * expected[name], atol=1e-5), name
    other = Embedder(theirs, base.backbone, base.contract)
    layout = base.layout(base.tokenize(TEXTS))
    direction = torch.randn(len(TEXTS), base.width, generator=torch.Generator().manual_seed(0))
    for embedder in (ours, other):
        (embedder.forward(layout) * direction).sum().backward()
    for name, weight in trainable(ours.model).items():
        turn = signs[name.replace(".lora_B.", ".lora_A.")]
        turn = turn[:, None] if ".lora_A." in name else turn
        scale = expected[name].grad.norm()
        assert scale > 0 and (weight.grad - turn * expected[name].grad).norm() < 1e-4 * scale, name


@pytest.mark.parametrize("init", INITS)
def test_the_product_of_the_factors_is_the_best_of_its_rank(init):
    weight = torch.randn(24, 16, generator=torch.Generator().manual_seed(0)) * 0.5 ** torch.arange(16)
    first, second = principal_factors(weight, 5, init)
    assert (first.shape, second.shape) == ((5, 16), (24, 5))
    values = torch.linalg.svdvals(weight)
    assert (weight - second @ first).norm() == pytest.approx(values[5:].norm().item(), rel=1e-4)
    largest = first.gather(1, first.abs().argmax(dim=1, keepdim=True))
    assert (largest > 0).all()
    assert torch.allclose(first.norm(dim=1) ** 2, values[:5], rtol=1e-3)


def test_a_killed_training_ends_with_the_same_bytes_and_moves_the_model(tmp_path, monkeypatch):
    runner.run(settings(tmp_path / "whole", *JOB))

    job = [*JOB, "train.checkpoint_every=1"]
    run_killed_at(3, settings(tmp_path / "killed", *job))
    # Another machine's decomposition: other last bits, and another sign.
    real = torch.linalg.svd
    monkeypatch.setattr(torch.linalg, "svd", lambda *a, **k: [part * (1 + 1e-6) for part in real(*a, **k)])
    runner.run(settings(tmp_path / "killed", *job))
    assert adapter_bytes(tmp_path / "killed") == adapter_bytes(tmp_path / "whole")
    base, trained = make_tiny("llama"), Embedder.load(run_folder(tmp_path / "whole"))
    assert np.abs(trained.encode(TEXTS) - base.encode(TEXTS)).max() > 1e-3


def test_decay_and_training_leave_what_it_began_with(tmp_path):
    _, embedder = begun()
    fixed = {name: weight.clone() for name, weight in kept_in_checkpoints(embedder.model).items() if "initial" in name}
    assert len(fixed) * 2 == len(kept_in_checkpoints(embedder.model))
    optimizer = torch.optim.AdamW(trainable(embedder.model).values(), lr=0.1, weight_decay=0.5)
    embedder.forward(embedder.layout(embedder.tokenize(TEXTS))).sum().backward()
    optimizer.step()
    now = dict(embedder.model.named_parameters())
    assert all(torch.equal(now[name], weight) for name, weight in fixed.items())


def test_its_result_is_trained_on_as_the_plain_lora_that_it_is(tmp_path):
    runner.run(settings(tmp_path / "first", *JOB))
    adapter = f"adapter={run_folder(tmp_path / 'first')}"
    with pytest.raises(UserError, match="lora.init=pissa: .*has its factors already"):
        settings(tmp_path / "second", *JOB, adapter)
    job = ["eval=none", "train.steps=2", adapter]
    with pytest.raises(UserError, match=r"another LoRA .*as it is: lora\.rank=16 lora\.alpha=64"):
        runner.run(settings(tmp_path / "second", *job))
    runner.run(settings(tmp_path / "second", *job, "lora.rank=16", "lora.alpha=64"))


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["lora.init=pissa", "lora.variant=dora"], "DoRA takes the lengths of rows from weights that PiSSA divides"),
        (["lora.init=pissa", "model.quantization=nf4"], "the singular values of weights in nf4 cannot be taken out"),
        (["lora.init=pissa", "first=docstrings"], "the second stage would go on from a plain LoRA of twice the rank"),
        (["lora.init=pissa", "lora=none"], "lora.init=pissa would not be read at lora.rank=0"),
        (["lora.init=pissa_niter_0"], "must be gaussian, kaiming, pissa, or pissa_niter_N as in pissa_niter_16"),
    ],
)
def test_it_is_refused_by_name_where_it_means_nothing(tmp_path, overrides, message):
    with pytest.raises(UserError, match=message):
        settings(tmp_path, *overrides)


def test_it_is_refused_where_a_layer_has_no_such_factors(tmp_path):
    with pytest.raises(UserError, match="lora.init=pissa: c_attn computes queries, keys and values at once"):
        begun("gpt2", targets=["query", "value"])
    with pytest.raises(
        UserError,
        match=r"the weight of layers\.0\.self_attn\.v_proj has 16 .*, fewer than lora.rank=17; set lora.rank=16 or",
    ):
        runner.run(settings(tmp_path, "lora.init=pissa", "lora.rank=17"))
    assert not list(tmp_path.glob("*/evaluations")), "it was scored before"
