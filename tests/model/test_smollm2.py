"""The embedded default with its real weights: slow, as 135 M weights go through two processors."""

import copy
import gzip
import itertools
import json

import pytest
import torch
from conftest import padded_states, with_own_attention
from jobs import composed

from cft.config.schema import LoraSettings
from cft.model.embedder import Embedder
from cft.model.lora import add_lora, trainable
from cft.training.losses import info_nce

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def smollm2() -> Embedder:
    return Embedder.base(composed("model=smollm2").model)


def test_its_tokenizer_puts_nothing_before_a_text_and_one_eos_after(smollm2):
    tokenizer = smollm2.backbone.tokenizer
    (ids,) = smollm2.tokenize(["A man is playing."])
    assert smollm2.contract.prefix_ids == ()
    assert tokenizer.convert_ids_to_tokens(list(ids)) == ["A", "Ġman", "Ġis", "Ġplaying", ".", "<|im_end|>"]


@pytest.mark.parametrize("side", ["left", "right"])
def test_real_triplets_cost_what_they_cost_in_a_padded_batch(smollm2, real_data, side):
    with gzip.open(real_data / "nli" / "dev.jsonl.gz", "rt") as stream:
        rows = [json.loads(line) for line in itertools.islice(stream, 12)]
    texts = [row[column] for column in ("sent0", "sent1", "hard_neg") for row in rows]
    twin = with_own_attention(copy.deepcopy(smollm2.model))
    lora = LoraSettings(dropout=0.0)
    found, expected = add_lora(copy.deepcopy(smollm2.model), lora, seed=0), add_lora(twin, lora, seed=0)
    generator = torch.Generator()
    for model in (found, expected):
        generator.manual_seed(0)
        for name, weight in trainable(model).items():
            if "lora_B" in name:
                torch.nn.init.normal_(weight, std=0.01, generator=generator)
    tree = Embedder(found, smollm2.backbone, smollm2.contract)
    sequences = tree.tokenize(texts)
    layout = tree.layout(sequences)
    assert layout.nodes < layout.tokens, "real triplets share prefixes"
    losses = []
    for states in (tree.forward(layout), padded_states(expected, sequences, side)):
        loss = info_nce(states[:12], states[12:24], states[24:], temperature=0.05).loss
        loss.backward()
        losses.append(loss.item())
    assert losses[0] == pytest.approx(losses[1], rel=1e-5)
    for name, weight in trainable(expected).items():
        gradient = trainable(found)[name].grad
        assert weight.grad.norm() > 0, f"{name} received no gradient"
        assert (gradient - weight.grad).norm() / weight.grad.norm() < 1e-5, name
