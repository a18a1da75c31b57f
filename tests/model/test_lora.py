"""Low-rank updates: which layers a role is in each family, and fused layers updated in part."""

import pytest
import torch
from conftest import make_tiny, write_model
from families import PADDED, TREE, cases

from cft.config.schema import Attention, LoraSettings, ModelSettings
from cft.model.embedder import Embedder
from cft.model.lora import add_lora, find_targets, fused_rows, trainable
from cft.system.errors import UserError

PAPER = LoraSettings()
SEPARATE = {"q_proj", "v_proj"}
# Families that fuse queries, keys and values in one layer, by that layer's name.
FUSED = {"gpt2": "c_attn", "gpt_neox": "query_key_value", "phi3": "qkv_proj", "persimmon": "query_key_value"}
FUSED |= {
    "gpt_bigcode": "c_attn",
    "bloom": "query_key_value",
    "falcon": "query_key_value",
    "mpt": "Wqkv",
    "codegen": "qkv_proj",
}


def touched(model) -> set[str]:
    return {name.split(".lora_")[0].rsplit(".", 1)[-1] for name in trainable(model)}


@pytest.mark.parametrize("family", cases([*TREE, *(family for family in PADDED if family != "mamba")]))
def test_the_papers_lora_is_queries_and_values_in_every_family(family):
    model = add_lora(make_tiny(family).model, PAPER, seed=0)
    expected = {FUSED[family]} if family in FUSED else SEPARATE
    assert touched(model) == expected


@pytest.mark.parametrize(("family", "expected"), [("bert", {"query", "value"}), ("distilbert", {"q_lin", "v_lin"})])
def test_encoders_have_queries_and_values_by_their_own_names(family, expected):
    model = add_lora(make_tiny(family, attention=Attention.bidirectional).model, PAPER, seed=0)
    assert touched(model) == expected


def state_with_noise(embedder, fused: str, rows: torch.Tensor, position: int, sequence: tuple[int, ...]):
    """The last token's state behind the first layer when some outputs of its fused layer are moved at one position."""
    (layer,) = [m for name, m in embedder.model.named_modules() if name.rsplit(".", 1)[-1] == fused]

    def move(module, given, out):
        noise = torch.zeros_like(out)
        noise[:, position, rows] = torch.linspace(-3, 3, len(rows))
        return out + noise

    handle = layer.register_forward_hook(move)
    with torch.no_grad():
        state = embedder.forward(embedder.layout([sequence]))[0]
    handle.remove()
    return state


VARIANTS = [(family, {}) for family in FUSED if family != "codegen"]  # whose order of rows is not known
VARIANTS += [("falcon", {"multi_query": False}), ("falcon", {"new_decoder_architecture": True, "num_kv_heads": 2})]
VARIANTS += [("gpt_bigcode", {"multi_query": False}), ("phi3", {"num_key_value_heads": 4})]


@pytest.mark.parametrize(("family", "config"), VARIANTS, ids=str)
def test_the_rows_of_a_fused_layer_belong_to_the_roles_they_are_said_to(family, config, tmp_path):
    """A lone token attends to itself whatever its query; the last of two sees no other's query, but every key."""
    folder = write_model(tmp_path, family, **config)
    embedder = Embedder.base(ModelSettings(path=str(folder), layer=1))
    (layer,) = [m for name, m in embedder.model.named_modules() if name.rsplit(".", 1)[-1] == FUSED[family]]
    width = getattr(layer, "nf", None) or layer.out_features
    rows = fused_rows(embedder.model.config, width)
    assert sorted(torch.cat(list(rows.values())).tolist()) == list(range(width))

    def moved(role, position, sequence):
        still = state_with_noise(embedder, FUSED[family], rows[role][:0], 0, sequence)
        return bool((state_with_noise(embedder, FUSED[family], rows[role], position, sequence) - still).norm() > 1e-4)

    alone, two = (5,), (5, 60)
    assert [moved(role, 0, alone) for role in ("query", "key", "value")] == [False, False, True]
    assert [moved(role, 0, two) for role in ("query", "key", "value")] == [False, True, True]
    assert moved("query", 1, two)


def test_training_leaves_the_keys_of_a_fused_layer_alone():
    base = make_tiny("gpt2")
    model = add_lora(base.model, LoraSettings(dropout=0.0), seed=0)
    embedder = Embedder(model, base.backbone, base.contract)
    optimizer = torch.optim.AdamW(trainable(model).values(), lr=1e-2, weight_decay=0.1)
    for _ in range(3):
        vectors = embedder.forward(embedder.layout([(5, 6, 7), (5, 6, 8, 9), (6, 1)]))
        torch.cdist(vectors, vectors).sum().backward()
        optimizer.step()
        optimizer.zero_grad()
    for name, weight in trainable(model).items():
        if "lora_B" in name:
            query, key, value = weight.split(32)
            assert key.abs().max() == 0, name
            assert query.abs().max() > 0 and value.abs().max() > 0, name


def test_asking_for_all_three_updates_all_of_a_fused_layer():
    targets = find_targets(make_tiny("gpt2").model, LoraSettings(targets=["query", "key", "value"]))
    assert targets.names == ["c_attn"] and not targets.is_partial
    named = find_targets(make_tiny("gpt2").model, LoraSettings(targets=["c_attn"]))
    assert named.names == ["c_attn"] and not named.is_partial


def test_an_unknown_order_of_rows_is_said(caplog):
    caplog.set_level("INFO", logger="cft")
    model = make_tiny("gpt2").model
    model.config.model_type = "gpt_new"
    add_lora(model, PAPER, seed=0)
    assert "gpt_new fuses queries, keys and values in an order unknown to cft: all three are updated" in caplog.text


def test_a_role_that_a_model_has_no_layer_for_is_refused():
    with pytest.raises(UserError, match=r"no layer known to compute its query; its linear layers are .*in_proj"):
        add_lora(make_tiny("mamba").model, PAPER, seed=0)


def test_unknown_lora_targets_list_the_models_own_layers(tiny):
    with pytest.raises(
        UserError, match=r"no linear layer named 'q_prj'; its linear layers are .*k_proj.*v_proj.*Did you mean q_proj\?"
    ):
        add_lora(tiny.model, LoraSettings(targets=["q_prj"]), seed=0)


def test_all_linear_means_every_linear_layer(tiny):
    model = add_lora(tiny.model, LoraSettings(targets=["all-linear"]), seed=0)
    touched = {name.split(".lora_")[0].rsplit(".", 1)[-1] for name in trainable(model)}
    assert touched == {"q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"}


def test_the_papers_lora_trains_queries_and_values_alone(tiny):
    model = add_lora(tiny.model, LoraSettings(), seed=0)
    touched = {name.split(".lora_")[0].rsplit(".", 1)[-1] for name in trainable(model)}
    assert touched == {"q_proj", "v_proj"}


def test_the_same_seed_starts_lora_the_same_and_another_does_not():
    starts = [
        torch.cat([w.flatten() for w in trainable(add_lora(make_tiny("llama").model, LoraSettings(), seed=s)).values()])
        for s in (1, 1, 2)
    ]
    assert torch.equal(starts[0], starts[1]) and not torch.equal(starts[0], starts[2])
