"""Dropout by the token: still dropout, the same in whatever part of a batch, and cheap on a CPU."""

import numpy as np
import pytest
import torch
from conftest import make_tiny

from cft.config.schema import LoraSettings
from cft.model import dropout
from cft.model.dropout import Draw, TokenDropout, drawing, mask
from cft.model.lora import add_lora


@pytest.fixture(params=["drawn", "hashed"])
def way(request, monkeypatch) -> str:
    """How random bits come about on a CPU, and on other devices."""
    if request.param == "hashed":
        monkeypatch.setattr(dropout, "_drawn", dropout._hashed)
    return request.param


@pytest.mark.parametrize("p", [0.1, 0.5, 0.9])
@pytest.mark.usefixtures("way")
def test_so_many_are_zero_and_the_mean_stays(p):
    torch.manual_seed(0)
    found = TokenDropout(p).train()(torch.ones(400, 500))
    zero = (found == 0).float().mean().item()
    assert zero == pytest.approx(p, abs=5 * (p * (1 - p) / 200_000) ** 0.5)
    assert found.mean().item() == pytest.approx(1, abs=0.02 / (1 - p))
    assert found.max().item() == pytest.approx(1 / (1 - p), rel=1e-3)
    rows = (found == 0).float().mean(dim=0)
    assert rows.std() < 3 * (p * (1 - p) / 400) ** 0.5, "columns must not share their luck"


def test_the_gradient_passes_where_the_value_did():
    x = torch.randn(50, 40, requires_grad=True)
    out = TokenDropout(0.3).train()(x)
    out.sum().backward()
    kept = out != 0
    assert torch.allclose(x.grad[kept], torch.full((), 1 / 0.7), rtol=1e-3) and (x.grad[~kept] == 0).all()
    assert torch.allclose(out[kept], (x / 0.7)[kept], rtol=1e-3)


def test_torchs_generator_decides():
    layer, x = TokenDropout(0.5).train(), torch.ones(30, 30)
    torch.manual_seed(3)
    first, second = layer(x), layer(x)
    torch.manual_seed(3)
    assert torch.equal(layer(x), first) and not torch.equal(first, second)


def test_evaluation_drops_nothing():
    x = torch.randn(5, 5)
    assert torch.equal(TokenDropout(0.5).eval()(x), x)
    assert torch.equal(TokenDropout(0.0).train()(x), x)


def test_bfloat16_stays_bfloat16():
    assert TokenDropout(0.5).train()(torch.ones(8, 8, dtype=torch.bfloat16)).dtype is torch.bfloat16


def test_lora_uses_it():
    model = add_lora(make_tiny("llama").model, LoraSettings(dropout=0.1), seed=0)
    kinds = {type(module) for name, module in model.named_modules() if name.endswith("lora_dropout.default")}
    assert kinds == {TokenDropout}


def test_gradient_checkpointing_replays_its_masks():
    def gradient(recompute: bool) -> torch.Tensor:
        torch.manual_seed(0)
        layer, weight = TokenDropout(0.5).train(), torch.ones(20, 20, requires_grad=True)

        def work(x: torch.Tensor) -> torch.Tensor:
            return layer(x * 2).sin()

        out = torch.utils.checkpoint.checkpoint(work, weight, use_reentrant=False) if recompute else work(weight)
        out.sum().backward()
        return weight.grad

    assert torch.equal(gradient(True), gradient(False))


@pytest.mark.parametrize("width", [1, 5, 64])
@pytest.mark.usefixtures("way")
def test_a_tokens_mask_follows_from_its_number_alone(width):
    whole = mask(torch.ones(1, 1000, width), 0.5, Draw(3), 2)[0]
    generator = np.random.default_rng(0)
    for places in (np.arange(1000), np.arange(300, 700), generator.permutation(1000)[:77], np.array([999, 0, 0, 256])):
        found = mask(torch.ones(len(places), width), 0.5, Draw(3, places), 2)
        assert torch.equal(found, whole[torch.from_numpy(places)])


@pytest.mark.usefixtures("way")
def test_seed_layer_token_and_column_are_independent():
    like = torch.ones(2000, 64)
    masks = [mask(like, 0.5, Draw(seed), number) != 0 for seed in (0, 1, 2**70) for number in (0, 1, 300)]
    for one in range(len(masks)):
        for other in range(one):
            assert (masks[one] == masks[other]).float().mean().item() == pytest.approx(0.5, abs=0.008)
    for shift, dim in ((1, 0), (7, 0), (256, 0), (1, 1), (4, 1), (32, 1)):
        agree = (masks[0] == masks[0].roll(shift, dim)).float().mean().item()
        assert agree == pytest.approx(0.5, abs=0.008), (shift, dim)


def test_layers_are_numbered_and_share_one_draw_that_does_not_outlive_its_block():
    model = add_lora(make_tiny("llama").model, LoraSettings(dropout=0.5, targets=["all-linear"]), seed=0)
    layers = [module for module in model.modules() if isinstance(module, TokenDropout)]
    assert [layer.number for layer in layers] == list(range(len(layers))) and len(layers) > 3
    x = torch.ones(9, 8)
    with drawing(model, Draw(5)):
        first = [layer.train()(x) for layer in layers]
    assert all(layer.current.draw is None for layer in layers)
    assert not torch.equal(first[0], first[1])
    with pytest.raises(ZeroDivisionError), drawing(model, Draw(5)):
        assert torch.equal(layers[0](x), first[0])
        _ = 1 / 0
    assert layers[0].current.draw is None


def test_two_models_do_not_share_a_draw():
    one, other = (add_lora(make_tiny("llama").model, LoraSettings(dropout=0.5), seed=0) for _ in range(2))
    (first, second) = (next(m for m in model.modules() if isinstance(m, TokenDropout)) for model in (one, other))
    with drawing(one, Draw(1)):
        assert first.current.draw is not None and second.current.draw is None
