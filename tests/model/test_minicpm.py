"""MiniCPM held by Granite, against its arithmetic written out in plain torch."""

import pytest
import torch
from minicpm_weights import SHAPES, random_tensors, settings, write_checkpoint

from cft.config.schema import ModelSettings
from cft.model.embedder import Embedder
from cft.system.errors import UserError


def minicpm_states(config: dict, w: dict[str, torch.Tensor], ids: list[int]) -> torch.Tensor:
    """Final hidden states (T, D) of one text, line by line as MiniCPM defines them."""
    heads, grouped = config["num_attention_heads"], config["num_key_value_heads"]
    size = config["hidden_size"] // heads
    length = len(ids)

    def norm(x, name):
        return x / torch.sqrt(x.pow(2).mean(-1, keepdim=True) + config["rms_norm_eps"]) * w[name]

    angles = torch.arange(length)[:, None] / 10_000 ** (torch.arange(0, size, 2) / size)

    def rotate(x):  # (T, heads, size): the halves of a head are the two coordinates of each rotation
        cos, sin = angles.cos()[:, None], angles.sin()[:, None]
        a, b = x[..., : size // 2], x[..., size // 2 :]
        return torch.cat([a * cos - b * sin, b * cos + a * sin], dim=-1)

    h = w["model.embed_tokens.weight"][ids] * config["scale_emb"]
    depth = config["scale_depth"] / config["num_hidden_layers"] ** 0.5
    hidden_future = torch.full((length, length), float("-inf")).triu(1)
    for layer in range(config["num_hidden_layers"]):
        name = f"model.layers.{layer}."
        x = norm(h, f"{name}input_layernorm.weight")
        q, k, v = (x @ w[f"{name}self_attn.{p}_proj.weight"].T for p in "qkv")
        q, k = rotate(q.view(length, heads, size)), rotate(k.view(length, grouped, size))
        v = v.view(length, grouped, size)
        k, v = (t.repeat_interleave(heads // grouped, dim=1) for t in (k, v))
        scores = torch.einsum("ihd,jhd->hij", q, k) / size**0.5 + hidden_future
        mixed = torch.einsum("hij,jhd->ihd", scores.softmax(-1), v).reshape(length, -1)
        h = h + mixed @ w[f"{name}self_attn.o_proj.weight"].T * depth
        x = norm(h, f"{name}post_attention_layernorm.weight")
        gate = torch.nn.functional.silu(x @ w[f"{name}mlp.gate_proj.weight"].T)
        h = h + (gate * (x @ w[f"{name}mlp.up_proj.weight"].T)) @ w[f"{name}mlp.down_proj.weight"].T * depth
    return norm(h, "model.norm.weight")


@pytest.mark.parametrize("shards", [1, 2])
@pytest.mark.parametrize("shape", SHAPES, ids=["all key-value heads", "grouped key-value heads"])
def test_a_minicpm_checkpoint_gives_the_states_of_its_own_arithmetic(tmp_path, shape, shards):
    config = settings(shape)
    tensors = random_tensors(config)
    write_checkpoint(tmp_path, config, tensors, shards)
    embedder = Embedder.base(ModelSettings(name="minicpm", path=str(tmp_path)))
    sequences = embedder.tokenize(["A man is playing.", "A man is sleeping.", "No."])
    with torch.no_grad():
        found = embedder.forward(embedder.layout(sequences))
    for row, sequence in zip(found, sequences, strict=True):
        expected = minicpm_states(config, tensors, list(sequence))[-1]
        assert expected.abs().max() > 0.1
        assert torch.allclose(row, expected, atol=1e-5, rtol=1e-5)


def test_a_checkpoint_with_a_tensor_missing_or_left_over_is_refused(tmp_path):
    config = settings(SHAPES[0])
    tensors = random_tensors(config)
    lost = tensors.pop("model.norm.weight")
    write_checkpoint(tmp_path, config, tensors, 1)
    with pytest.raises(
        UserError,
        match=r"no whole MiniCPM checkpoint: 1 tensors are missing, left over or of another shape \(norm.weight",
    ):
        Embedder.base(ModelSettings(name="minicpm", path=str(tmp_path)))
    write_checkpoint(tmp_path, config, tensors | {"model.norm.weight": lost, "model.extra": lost.clone()}, 1)
    with pytest.raises(UserError, match="extra"):
        Embedder.base(ModelSettings(name="minicpm", path=str(tmp_path)))


def test_in_bfloat16_positions_stay_exact(tmp_path):
    """A rotary frequency rounded to bfloat16 is off by up to a 256th: by half a turn at position 1,000."""
    config = settings(SHAPES[1])
    tensors = random_tensors(config)
    write_checkpoint(tmp_path, config, tensors, 1)
    trunk = Embedder.base(ModelSettings(path=str(tmp_path)), dtype=torch.bfloat16).model
    assert trunk.layers[0].mlp.up_proj.weight.dtype is torch.bfloat16
    assert torch.equal(trunk.layers[1].mlp.up_proj.weight, tensors["model.layers.1.mlp.up_proj.weight"].bfloat16())
    exact = Embedder.base(ModelSettings(path=str(tmp_path))).model.rotary_emb.inv_freq
    assert trunk.rotary_emb.inv_freq.dtype is torch.float32 and torch.equal(trunk.rotary_emb.inv_freq, exact)


def test_a_tensor_of_another_shape_is_refused(tmp_path):
    config = settings(SHAPES[0])
    tensors = random_tensors(config) | {"model.norm.weight": torch.ones(7)}
    write_checkpoint(tmp_path, config, tensors, 1)
    with pytest.raises(UserError, match=r"1 tensors are missing, left over or of another shape \(norm.weight"):
        Embedder.base(ModelSettings(name="minicpm", path=str(tmp_path)))
