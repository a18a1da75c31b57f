"""Every family gives the states that it gives one by one, on the kind of batch that a trial chose for it."""

import pytest
import torch
from conftest import make_tiny, one_by_one
from families import ENCODERS, PADDED, TREE

from cft.settings import Attention, Batches

BATCH = [(2, 3, 4, 5), (2, 3, 4, 5, 6, 7), (2, 3), (9,), (2, 3, 4, 5), tuple(range(2, 30)), (2,) * 20]


def states(embedder, batch=BATCH):
    with torch.no_grad():
        return embedder.forward(embedder.lay_out(batch))


@pytest.mark.parametrize("family", [*TREE, *PADDED])
def test_a_decoder_gives_its_one_by_one_states(family):
    embedder = make_tiny(family)
    expected = one_by_one(embedder, BATCH)
    assert expected.std() > 1e-2, "the reference must not be constant for the comparison to mean anything"
    assert torch.allclose(states(embedder), expected, atol=1e-5, rtol=0)


@pytest.mark.parametrize("family", TREE)
def test_families_whose_attention_can_be_exchanged_share_prefixes(family):
    batching = make_tiny(family).backbone.batching
    assert (batching.kind, batching.reason) == (Batches.tree, "")
    assert batching.difference < 1e-5


@pytest.mark.parametrize(("family", "reason"), PADDED.items())
def test_families_whose_attention_cannot_be_exchanged_are_padded_and_say_why(family, reason, caplog):
    caplog.set_level("INFO", logger="cft")
    batching = make_tiny(family).backbone.batching
    assert batching.kind is Batches.padded
    assert reason in batching.reason
    assert f"texts are padded instead of sharing prefixes: {batching.reason}" in caplog.text


@pytest.mark.parametrize(("family", "kind"), ENCODERS.items())
def test_an_encoder_gives_its_one_by_one_states(family, kind):
    embedder = make_tiny(family, attention=Attention.bidirectional)
    assert embedder.backbone.batching.kind.value == kind
    expected = one_by_one(embedder, BATCH)
    assert torch.allclose(states(embedder), expected, atol=1e-5, rtol=0)
