"""Parts of a block as one function each: the model's own values and gradients, and nothing else than those."""

import copy

import pytest
import torch
from conftest import make_tiny
from peft import LoraConfig, get_peft_model
from torch import nn

from cft.config.schema import Attention, Batches, LoraBias, LoraSettings, LoraVariant
from cft.model import fused
from cft.model.dropout import Draw, drawing, replace_dropout
from cft.model.fused import fuse_blocks, fuse_updates
from cft.model.lora import add_lora, with_adapter

# Norms that add 1 to their weight, that round first or last; SiLU and GELU; rotations; none of them (gpt2, bert).
FAMILIES = ["llama", "gemma", "gemma2", "qwen3", "olmo2", "granite", "mistral", "phi", "gpt2", "bert"]
FUSED = {"_NormBackward", "_GatedBackward", "_RotatedBackward", "_UpdatedBackward"}


def _noisy(model: nn.Module) -> nn.Module:
    """Weights that no formula can be mixed up by: norms start at ones, the second factors of updates at zeros."""
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for weight in model.parameters():
            weight += 0.1 * torch.randn(weight.shape, generator=generator)
    return model


def _twins(family: str, lora: LoraSettings, dtype: torch.dtype = torch.float32) -> tuple[nn.Module, nn.Module]:
    """A model with an update that runs as PEFT and transformers wrote it, and the same one fused."""
    attention = Attention.bidirectional if family == "bert" else Attention.causal
    plain = (
        _noisy(make_tiny(family, batches=Batches.padded, attention=attention).model)
        .to(dtype)
        .requires_grad_(lora.rank == 0)
    )
    whole = copy.deepcopy(plain)
    fuse_blocks(whole)
    if lora.rank:
        plain, whole = (_with_update(model, lora) for model in (plain, whole))
        fuse_updates(whole)
    return plain.train(), whole.train()


def _with_update(model: nn.Module, lora: LoraSettings) -> nn.Module:
    """PEFT's model, with dropout that both twins draw alike."""
    config = LoraConfig(
        r=lora.rank, lora_alpha=lora.alpha, lora_dropout=lora.dropout, target_modules="all-linear", bias=lora.bias.value
    )
    torch.manual_seed(3)
    model = get_peft_model(model, config)
    _noisy(model)
    replace_dropout(model)
    return model


def _run(
    model: nn.Module, dtype: torch.dtype = torch.float32, seed: int = 5
) -> tuple[torch.Tensor, torch.Tensor, set[str]]:
    """States, the gradient of all trained weights, and the names of the steps back."""
    ids = torch.arange(3, 33).view(3, 10)
    torch.manual_seed(3)  # for what models drop of themselves
    with drawing(model, Draw(seed)), torch.autocast("cpu", torch.bfloat16, enabled=dtype is torch.bfloat16):
        states = model(input_ids=ids, use_cache=False).last_hidden_state
        names, seen, open_steps = set(), set(), [states.grad_fn]
        while open_steps:
            step = open_steps.pop()
            if step is not None and step not in seen:
                seen.add(step)
                names.add(type(step).__name__)
                open_steps += [before for before, _ in step.next_functions]
        model.zero_grad(set_to_none=True)
        (states.float() * torch.linspace(-1, 1, states.numel()).view_as(states)).sum().backward()
    gradients = [weight.grad.flatten().float() for weight in model.parameters() if weight.grad is not None]
    return states.detach().float(), torch.cat(gradients), names


def _distance(found: torch.Tensor, expected: torch.Tensor) -> float:
    return ((found - expected).norm() / expected.norm()).item()


@pytest.mark.parametrize("rank", [4, 0])
@pytest.mark.parametrize("family", FAMILIES)
def test_values_and_gradients_are_the_models_own(family, rank):
    plain, whole = _twins(family, LoraSettings(rank=rank, dropout=0.3))
    expected, expected_gradient, names = _run(plain)
    found, gradient, fused_names = _run(whole)
    assert not names & FUSED
    # Rounding adds up over layers of noisy weights; each part by itself is held to 1e-6 below.
    assert _distance(found, expected) < 1e-5 and _distance(gradient, expected_gradient) < 1e-5
    parts = fused_names & FUSED
    assert ("_UpdatedBackward" in parts) == (rank > 0 and family != "gpt2")
    others = parts - {"_UpdatedBackward"}
    assert others == (
        set()
        if family in ("gpt2", "bert")
        else {"_RotatedBackward"}
        if family == "phi"
        else FUSED - {"_UpdatedBackward"}
    )


@pytest.mark.parametrize("family", ["llama", "gemma", "qwen3"])
def test_bfloat16_is_as_near_to_float32_as_it_was(family):
    lora = LoraSettings(rank=4, dropout=0.3)
    reference, (plain, whole) = _twins(family, lora)[0], _twins(family, lora, torch.bfloat16)
    for model in (plain, whole):  # trained weights are in float32
        for name, weight in model.named_parameters():
            if "lora_" in name:
                weight.data = weight.data.float()
    off: dict[str, list[float]] = {"states": [], "gradient": [], "fused states": [], "fused gradient": []}
    for seed in range(8):
        states, gradient, _ = _run(reference, seed=seed)
        for prefix, model in (("", plain), ("fused ", whole)):
            found, found_gradient, names = _run(model, torch.bfloat16, seed)
            assert (names >= FUSED) == (model is whole)
            off[f"{prefix}states"].append(_distance(found, states))
            off[f"{prefix}gradient"].append(_distance(found_gradient, gradient))
    mean = {what: sum(each) / len(each) for what, each in off.items()}
    assert mean["fused states"] < 1.1 * mean["states"] and mean["fused gradient"] < 1.1 * mean["gradient"], mean


def _parts() -> dict[str, tuple[nn.Module, nn.Module]]:
    """Modules of a block, each beside its fused twin, and what they are called."""
    plain, whole = _twins("llama", LoraSettings(rank=4, dropout=0.3))
    gemma, gemma_whole = _twins("gemma", LoraSettings(rank=0))
    llama = ["layers.0.input_layernorm", "layers.0.mlp", "layers.0.self_attn.q_proj"]
    twins = [(plain.base_model.model, whole.base_model.model, llama), (gemma, gemma_whole, ["norm", "layers.0.mlp"])]
    return {
        f"{type(model).__name__} {name}": (model.get_submodule(name), other.get_submodule(name))
        for model, other, names in twins
        for name in names
    }


def test_each_part_is_the_models_own_to_rounding():
    for name, (plain, whole) in _parts().items():
        assert "forward" in whole.__dict__ and "forward" not in plain.__dict__, name
        width = next(weight.shape[-1] for weight in plain.parameters())
        x = torch.randn(30, width, generator=torch.Generator().manual_seed(2))
        results = []
        for module in (plain, whole):
            rows = x.clone().requires_grad_(True)
            torch.manual_seed(4)  # of dropout
            value = module(rows)
            (value * value.detach().roll(1)).sum().backward()
            results.append([value.detach(), rows.grad, *(w.grad for w in module.parameters() if w.grad is not None)])
        for found, expected in zip(results[1], results[0], strict=True):
            assert _distance(found, expected) < 1e-6, name


def test_rotation_is_the_models_own_to_rounding():
    import transformers.models.llama.modeling_llama as llama

    generator = torch.Generator().manual_seed(2)
    queries, keys = (torch.randn(2, heads, 7, 16, generator=generator).requires_grad_(True) for heads in (4, 2))
    # unlike halves: no family has them, and a mistake between the two would not be seen in equal ones
    cos, sin = (torch.randn(2, 7, 16, generator=generator) for _ in range(2))
    results = []
    for rotate in (llama.apply_rotary_pos_emb, fused._rotation(llama.apply_rotary_pos_emb)):
        values = rotate(queries, keys, cos, sin)
        gradients = torch.autograd.grad(sum((value**3).sum() for value in values), (queries, keys))
        results.append([*values, *gradients])
    assert type(results[1][0].grad_fn).__name__ == "_RotatedBackward"
    for found, expected in zip(results[1], results[0], strict=True):
        assert _distance(found.detach(), expected.detach()) < 1e-6


def test_passes_without_gradients_are_the_models_own():
    plain, whole = _twins("llama", LoraSettings(rank=4, dropout=0.0))
    ids = torch.arange(3, 33).view(3, 10)
    with torch.no_grad():
        assert torch.equal(plain(input_ids=ids).last_hidden_state, whole(input_ids=ids).last_hidden_state)


@pytest.mark.parametrize("how", ["disabled", "merged", "dora", "bias", "two adapters"])
def test_what_is_unusual_goes_peft_s_way(how):
    lora = LoraSettings(
        rank=4,
        dropout=0.0,
        targets=["q_proj"],
        variant=LoraVariant.dora if how == "dora" else LoraVariant.plain,
        bias=LoraBias.all if how == "bias" else LoraBias.none,
    )
    family = "qwen2" if how == "bias" else "llama"  # Llama's layers have no bias
    whole = _noisy(add_lora(make_tiny(family, batches=Batches.padded).model, lora, seed=0)).train()
    if how == "two adapters":
        whole.add_adapter("other", LoraConfig(r=2, target_modules=["q_proj"]))
        whole.base_model.set_adapter(["default", "other"])
    if how == "disabled":
        whole.base_model.disable_adapter_layers()
    if how == "merged":
        whole.merge_adapter()
    plain = copy.deepcopy(whole)
    for module in plain.modules():
        module.__dict__.pop("forward", None)
    ids = torch.arange(3, 33).view(3, 10)
    for model in (plain, whole):
        model.get_input_embeddings().weight.requires_grad_(True)
    found, expected = (model(input_ids=ids, use_cache=False).last_hidden_state for model in (whole, plain))
    assert _distance(found, expected) < 1e-5
    (found**3).sum().backward()
    (expected**3).sum().backward()
    for (name, weight), twin in zip(whole.named_parameters(), plain.parameters(), strict=True):
        assert (weight.grad is None) == (twin.grad is None), name
        assert weight.grad is None or (weight.grad - twin.grad).norm() <= 1e-5 * twin.grad.norm(), name


class OddRMSNorm(nn.Module):
    """Looks like a root mean square norm and is none."""

    def __init__(self) -> None:
        super().__init__()
        self.weight, self.eps = nn.Parameter(torch.ones(8)), 1e-6

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.weight * x / (x.abs().mean(-1, keepdim=True) + self.eps)


class TwoRMSNorm(OddRMSNorm):
    """Looks like a root mean square norm and wants more than states."""

    def forward(self, x: torch.Tensor, gate: torch.Tensor) -> torch.Tensor:
        return super().forward(x) * gate


@pytest.mark.parametrize("kind", [OddRMSNorm, TwoRMSNorm])
def test_a_part_that_computes_something_else_is_left_alone(kind):
    odd = kind()
    gated = copy.deepcopy(make_tiny("llama", batches=Batches.padded).model.layers[0].mlp)
    gated.act_fn = nn.Mish()
    fuse_blocks(nn.ModuleList([odd, gated]))
    assert "forward" not in odd.__dict__ and "forward" not in gated.__dict__


class GatedWithLimit(type(make_tiny("llama").model.layers[0].mlp)):
    """As families of large models clamp it."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.down_proj(self.act_fn(self.gate_proj(x).clamp(max=16.0)) * self.up_proj(x).clamp(-16.0, 16.0))


class GatedWithDropout(type(make_tiny("llama").model.layers[0].mlp)):
    """As SeedOss has it: no module of its own says so."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return nn.functional.dropout(super().forward(x), p=0.1, training=self.training)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("kind", [GatedWithLimit, GatedWithDropout])
def test_a_gated_layer_with_a_limit_or_with_dropout_is_left_alone(kind, dtype):
    gated = kind(make_tiny("llama").model.config).to(dtype).eval()  # as a model is when it is fused
    with torch.no_grad():
        for weight in gated.parameters():
            weight.normal_(std=0.02, generator=torch.Generator().manual_seed(1))
    before = torch.random.get_rng_state()
    fuse_blocks(nn.ModuleList([gated]))
    assert "forward" not in gated.__dict__
    assert not gated.training and not gated.gate_proj.training and (torch.random.get_rng_state() == before).all()


def test_other_models_of_the_process_keep_their_rotation():
    import transformers.models.llama.modeling_llama as llama

    own = llama.apply_rotary_pos_emb
    other = make_tiny("llama", batches=Batches.padded).model
    fuse_blocks(make_tiny("llama", batches=Batches.padded).model)
    assert llama.apply_rotary_pos_emb is own
    assert not any("forward" in module.__dict__ for module in other.modules())


@pytest.mark.parametrize("inference", [True, False])
def test_only_what_is_trained_is_changed(inference):
    """Exports write down what a finished embedder computes: those are the model's own operations."""
    trunk = make_tiny("llama", batches=Batches.padded).model
    config = LoraConfig(r=4, lora_dropout=0.1, target_modules="all-linear", inference_mode=inference)
    model = with_adapter(trunk, config)
    assert any("forward" in module.__dict__ for module in model.modules()) == (not inference)


def test_a_copy_has_its_own_weights():
    model = make_tiny("llama", batches=Batches.padded).model
    fuse_blocks(model)
    twin = copy.deepcopy(model)
    with torch.no_grad():
        twin.norm.weight.zero_()
    x = torch.ones(2, twin.norm.weight.numel(), requires_grad=True)
    assert (twin.norm(x) == 0).all() and (model.norm(x) != 0).all()


def test_a_norm_whose_weight_is_trained_gets_its_gradient():
    norm = _noisy(make_tiny("gemma").model.norm).requires_grad_(True)
    plain = copy.deepcopy(norm)
    fuse_blocks(norm)
    x = torch.randn(3, 5, norm.weight.numel())
    for module in (norm, plain):
        (module(x) ** 3).sum().backward()
    assert "forward" in norm.__dict__ and torch.allclose(norm.weight.grad, plain.weight.grad, rtol=1e-4)


def test_recomputed_activations_see_the_same_masks():
    def gradient(recompute: bool) -> torch.Tensor:
        model = _twins("llama", LoraSettings(rank=4, dropout=0.5))[1]
        if recompute:
            model.gradient_checkpointing_enable({"use_reentrant": False})
            model.enable_input_require_grads()
        return _run(model)[1]

    assert torch.allclose(gradient(True), gradient(False), rtol=1e-5, atol=1e-6)


def test_dropout_keeps_the_expectation():
    lora = LoraSettings(rank=4, dropout=0.5, targets=["q_proj"])
    model = _noisy(add_lora(make_tiny("llama", batches=Batches.padded).model, lora, seed=0))
    layer = model.base_model.model.layers[0].self_attn.q_proj
    x = torch.randn(1, 4, layer.in_features)
    expected = layer.eval()(x)
    layer.train()
    mean = torch.stack([layer(x).detach() for _ in range(3000)]).mean(0)
    assert _distance(mean, expected) < 0.05
