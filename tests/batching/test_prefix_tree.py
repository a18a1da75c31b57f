"""A prefix-tree batch gives what one-by-one and padded encoding by the unmodified model give."""

import copy

import pytest
import torch
import torch.nn.functional as F
from conftest import make_tiny, padded_states, with_own_attention
from hypothesis import given, settings
from hypothesis import strategies as st

from cft.batching import prefix_tree
from cft.batching.prefix_tree import _attend_by_products, build_tree, tree_attention
from cft.config.schema import Attention, LoraSettings, Pooling
from cft.model.embedder import Embedder
from cft.model.lora import add_lora, trainable
from cft.system.errors import UserError
from cft.training.losses import info_nce

# Few distinct tokens, so that drawn sequences share prefixes, repeat and contain one another.
SEQUENCE = st.lists(st.integers(2, 5), min_size=1, max_size=40).map(tuple)
BATCH = st.lists(SEQUENCE, min_size=1, max_size=12)


def states_of(embedder: Embedder, sequences: list[tuple[int, ...]]) -> torch.Tensor:
    layout = embedder.layout(sequences)
    with torch.no_grad():
        return embedder.forward(layout)


def test_a_tree_has_one_node_for_each_distinct_prefix():
    layout = build_tree([(1, 2, 3), (1, 2, 4), (1, 2), (5,), (1, 2, 3)], causal=True)
    # prefixes: 1, 12, 123, 124, 5
    assert layout.nodes == 5
    assert layout.tokens == 12
    assert layout.token_ids.tolist() == [[1, 2, 3, 4, 5]]
    assert layout.positions.tolist() == [[0, 1, 2, 2, 0]]
    assert layout.last.tolist() == [2, 3, 1, 4, 2]


def test_without_sharing_every_distinct_sequence_has_its_own_nodes():
    layout = build_tree([(1, 2, 3), (1, 2, 4), (1, 2, 3)], causal=False)
    assert layout.nodes == 6
    assert layout.last.tolist() == [2, 5, 2]


@given(BATCH)
@settings(max_examples=60, deadline=None)
def test_every_path_of_a_tree_spells_its_sequence(batch):
    layout = build_tree(batch, causal=True)
    for row, sequence in enumerate(batch):
        path = layout.paths[row, : len(sequence)]
        assert layout.token_ids[0, path].tolist() == list(sequence)
        assert layout.positions[0, path].tolist() == list(range(len(sequence)))
    assert layout.nodes == len({s[:n] for s in batch for n in range(1, len(s) + 1)})


def test_an_empty_sequence_is_refused():
    with pytest.raises(ValueError, match="at least one sequence, and a token in each"):
        build_tree([(1,), ()], causal=True)


REFERENCE = with_own_attention(make_tiny("llama").model)
TREE = make_tiny("llama")


@given(BATCH, st.sampled_from(["left", "right"]))
@settings(max_examples=40, deadline=None)
def test_embeddings_equal_those_of_padded_batches_on_either_side(batch, side):
    with torch.no_grad():
        expected = padded_states(REFERENCE, batch, side)
    assert torch.allclose(states_of(TREE, batch), expected, atol=1e-5, rtol=0)


def test_an_encoder_gives_its_padded_mean_without_sharing():
    embedder = make_tiny("bert", attention=Attention.bidirectional, pooling=Pooling.mean)
    batch = [(2, 3, 4, 5), (2, 3, 4, 5, 6, 7), (2, 3), (9,), tuple(range(2, 30))]
    found = states_of(embedder, batch)
    trunk = with_own_attention(embedder.model)
    with torch.no_grad():
        expected = torch.cat([trunk(torch.tensor([s])).last_hidden_state.mean(dim=1) for s in batch])
    assert torch.allclose(found, expected, atol=1e-5, rtol=0)


def test_an_encoder_configured_as_causal_is_refused():
    with pytest.raises(UserError, match="set model.attention=bidirectional"):
        make_tiny("bert")


@pytest.mark.parametrize("side", ["left", "right"])
def test_loss_and_every_lora_gradient_equal_those_of_padded_batches(side):
    texts = ["A man is playing.", "A man is playing a flute.", "A dog.", "A man sleeps.", "A man is playing."]
    texts += ["Nobody is playing.", "A man is playing the flute.", "B", "A man"]
    tree = make_tiny("llama")
    lora = LoraSettings(dropout=0.0)
    twin = copy.deepcopy(tree.model)
    tuned = Embedder(add_lora(tree.model, lora, seed=1), tree.backbone, tree.contract)
    reference = add_lora(with_own_attention(twin), lora, seed=1)
    for model in (tuned.model, reference):  # LoRA starts at zero: without this its first factor has no gradient
        for name, weight in trainable(model).items():
            if "lora_B" in name:
                torch.nn.init.normal_(weight, std=0.2, generator=torch.Generator().manual_seed(3))
    sequences = tuned.tokenize(texts)

    def loss(states):
        return info_nce(states[:3], states[3:6], states[6:], temperature=0.05).loss

    found = loss(tuned.forward(tuned.layout(sequences)))
    expected = loss(padded_states(reference, sequences, side))
    found.backward()
    expected.backward()
    assert found.item() == pytest.approx(expected.item(), rel=1e-5)
    gradients = {name: weight.grad for name, weight in trainable(tuned.model).items()}
    assert gradients and all(g is not None and g.abs().max() > 0 for g in gradients.values()), "no gradient to compare"
    for name, weight in trainable(reference).items():
        difference = (gradients[name] - weight.grad).norm() / weight.grad.norm()
        assert difference < 1e-5, f"{name}: {difference}"


def test_gradient_checkpointing_gives_the_same_gradients():
    texts = ["A man is playing.", "A man is playing a flute.", "A dog.", "A man sleeps."]
    grads = []
    for checkpointing in (False, True):
        embedder = make_tiny("llama")
        model = add_lora(embedder.model, LoraSettings(dropout=0.0), seed=1).train()
        if checkpointing:
            model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
        tuned = Embedder(model, embedder.backbone, embedder.contract)
        states = tuned.forward(tuned.layout(tuned.tokenize(texts)))
        info_nce(states[:2], states[2:], temperature=0.05).loss.backward()
        grads.append([w.grad for n, w in sorted(trainable(model).items()) if "lora_B" in n])
    assert grads[0] and all(g.abs().max() > 0 for g in grads[0])
    for plain, recomputed in zip(*grads, strict=True):
        assert torch.allclose(plain, recomputed, rtol=1e-5, atol=1e-8)


@pytest.mark.parametrize("feature", ["softcap", "s_aux", "position_bias"])
def test_attention_features_that_the_tree_does_not_compute_are_refused(feature):
    layout = build_tree([(1, 2)], causal=True)
    states = torch.zeros(1, 1, 2, 4)
    with pytest.raises(UserError, match=f"asks its attention for '{feature}'"):
        tree_attention(torch.nn.Identity(), states, states, states, None, layout=layout, **{feature: 1.0})


def test_a_sliding_window_shorter_than_a_text_is_refused_and_a_longer_one_is_not():
    layout = build_tree([(1, 2, 3)], causal=True)
    states = torch.zeros(1, 1, 3, 4)
    with pytest.raises(UserError, match="sliding window of 2 tokens, shorter than a text of 3"):
        tree_attention(torch.nn.Identity(), states, states, states, None, layout=layout, sliding_window=2)
    tree_attention(torch.nn.Identity(), states, states, states, None, layout=layout, sliding_window=3)


@pytest.mark.parametrize("causal", [True, False])
def test_attention_by_products_equals_the_fused_one_with_gradients(causal):
    torch.manual_seed(0)
    lengths = torch.tensor([5, 7, 3])
    seen = None if causal else (torch.arange(7) < lengths[:, None])[:, None, None, :]
    states = [torch.randn(3, heads, 7, 8, requires_grad=True) for heads in (6, 2, 2)]
    fused = F.scaled_dot_product_attention(*states, attn_mask=seen, is_causal=causal, scale=0.3, enable_gqa=True)
    products = _attend_by_products(*states, seen, causal=causal, scaling=0.3)
    torch.testing.assert_close(products, fused)
    weight = torch.randn_like(fused)
    for one, other in zip(
        torch.autograd.grad((products * weight).sum(), states),
        torch.autograd.grad((fused * weight).sum(), states),
        strict=True,
    ):
        torch.testing.assert_close(one, other)


def test_training_in_bfloat16_attends_by_products_up_to_a_length(tiny, monkeypatch):
    used = []
    real = prefix_tree._attend_by_products
    monkeypatch.setattr(
        prefix_tree, "_attend_by_products", lambda q, *a, **k: used.append(q.shape[2]) or real(q, *a, **k)
    )
    tuned = Embedder(add_lora(tiny.model, LoraSettings(dropout=0.0), seed=1), tiny.backbone, tiny.contract)
    for precision, length, expected in (
        (torch.float32, 64, False),
        (torch.bfloat16, 64, True),
        (torch.bfloat16, 65, False),
    ):
        used.clear()
        tuned.model.to(precision)
        with torch.autocast("cpu", torch.bfloat16, enabled=precision is torch.bfloat16):
            tuned.forward(tuned.layout([list(range(3, 3 + length))])).sum().backward()
        assert bool(used) is expected, (precision, length)
