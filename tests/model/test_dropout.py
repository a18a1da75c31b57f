"""Dropout that is cheap on a CPU and still dropout."""

import pytest
import torch
from conftest import make_tiny

from cft.config.schema import LoraSettings
from cft.model.dropout import CpuDropout
from cft.model.lora import add_lora


@pytest.mark.parametrize("p", [0.1, 0.5, 0.9])
def test_so_many_are_zero_and_the_mean_stays(p):
    torch.manual_seed(0)
    found = CpuDropout(p).train()(torch.ones(400, 500))
    zero = (found == 0).float().mean().item()
    assert zero == pytest.approx(p, abs=5 * (p * (1 - p) / 200_000) ** 0.5)
    assert found.mean().item() == pytest.approx(1, abs=0.02 / (1 - p))
    assert found.max().item() == pytest.approx(1 / (1 - p), rel=1e-3)
    rows = (found == 0).float().mean(dim=0)
    assert rows.std() < 3 * (p * (1 - p) / 400) ** 0.5, "columns must not share their luck"


def test_the_gradient_passes_where_the_value_did():
    x = torch.randn(50, 40, requires_grad=True)
    out = CpuDropout(0.3).train()(x)
    out.sum().backward()
    kept = out != 0
    assert torch.allclose(x.grad[kept], torch.full((), 1 / 0.7), rtol=1e-3) and (x.grad[~kept] == 0).all()
    assert torch.allclose(out[kept], (x / 0.7)[kept], rtol=1e-3)


def test_torchs_generator_decides():
    layer, x = CpuDropout(0.5).train(), torch.ones(30, 30)
    torch.manual_seed(3)
    first, second = layer(x), layer(x)
    torch.manual_seed(3)
    assert torch.equal(layer(x), first) and not torch.equal(first, second)


def test_evaluation_drops_nothing():
    x = torch.randn(5, 5)
    assert torch.equal(CpuDropout(0.5).eval()(x), x)
    assert torch.equal(CpuDropout(0.0).train()(x), x)


def test_bfloat16_stays_bfloat16():
    assert CpuDropout(0.5).train()(torch.ones(8, 8, dtype=torch.bfloat16)).dtype is torch.bfloat16


def test_lora_uses_it():
    model = add_lora(make_tiny("llama").model, LoraSettings(dropout=0.1), seed=0)
    kinds = {type(module) for name, module in model.named_modules() if name.endswith("lora_dropout.default")}
    assert kinds == {CpuDropout}


def test_gradient_checkpointing_replays_its_masks():
    def gradient(recompute: bool) -> torch.Tensor:
        torch.manual_seed(0)
        layer, weight = CpuDropout(0.5).train(), torch.ones(20, 20, requires_grad=True)

        def work(x: torch.Tensor) -> torch.Tensor:
            return layer(x * 2).sin()

        out = torch.utils.checkpoint.checkpoint(work, weight, use_reentrant=False) if recompute else work(weight)
        out.sum().backward()
        return weight.grad

    assert torch.equal(gradient(True), gradient(False))
