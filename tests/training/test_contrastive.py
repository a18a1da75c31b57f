"""A batch's gradient is the batch's, in however many chunks it goes through the model."""

import pytest
import torch
import torch.nn.functional as F
from batches import assert_same, gradients, triplets, tuned

from cft.config.schema import LoraVariant, LossSettings, Pooling
from cft.model import dropout
from cft.training import contrastive, memory
from cft.training.contrastive import texts_of
from cft.training.losses import false_negative_mask, info_nce
from cft.training.trainer import recompute_activations

LOSSES = {
    "eq. 1": (LossSettings(), 1),
    "eq. 2": (LossSettings(hard_negatives=False), 1),
    "three negatives": (LossSettings(temperature=0.2), 3),
    "false negatives masked": (LossSettings(mask_false_negatives=True), 2),
    "both directions": (LossSettings(both_directions=True), 1),
    "first numbers": (LossSettings(both_directions=True, dimensions=[16, 8]), 1),
    "anchors, masked, both ways": (
        LossSettings(both_directions=True, anchors_as_negatives=True, mask_false_negatives=True),
        2,
    ),
}


@pytest.mark.parametrize("kind", LOSSES)
@pytest.mark.parametrize("family", ["llama", "bloom"])
def test_chunks_of_any_size_give_the_whole_batchs_loss_and_gradient(family, kind):
    loss, negatives = LOSSES[kind]
    batch = triplets(10, negatives)
    batch[3] = batch[3]._replace(anchor=batch[2].anchor, positive=batch[1].positive)  # false negatives
    embedder = tuned(family)
    whole = contrastive.contrastive_backward(embedder, batch, contrastive.BatchSetup(loss))
    expected = gradients(embedder)
    assert whole.chunks == 1
    for tokens in (40, 300):
        found = contrastive.contrastive_backward(embedder, batch, contrastive.BatchSetup(loss, chunk_tokens=tokens))
        assert found.chunks >= 2 and found.tokens == whole.tokens
        assert (found.loss, found.accuracy) == pytest.approx((whole.loss, whole.accuracy), rel=1e-5)
        assert_same(gradients(embedder), expected)


POOLED = {
    "in twice": {"echo": True, "pooling": Pooling.mean},
    "all layers": {"layer_weights": True, "pooling": Pooling.weighted_mean},
}


@pytest.mark.parametrize("kind", POOLED)
@pytest.mark.parametrize("family", ["llama", "bloom"])
def test_chunks_give_the_same_however_texts_are_pooled(family, kind):
    batch, embedder = triplets(8), tuned(family, dropout=0.2, **POOLED[kind])
    whole = contrastive.contrastive_backward(embedder, batch, contrastive.BatchSetup(LossSettings()), seed=3)
    expected = gradients(embedder)
    setup = contrastive.BatchSetup(LossSettings(), chunk_tokens=120)
    found = contrastive.contrastive_backward(embedder, batch, setup, seed=3)
    assert found.chunks >= 2 and found.tokens == whole.tokens
    assert found.loss == pytest.approx(whole.loss, rel=1e-5)
    assert_same(gradients(embedder), expected)


LORAS = [{"variant": variant} for variant in LoraVariant] + [{"init": "pissa"}]


@pytest.mark.parametrize("lora", LORAS, ids=str)
def test_chunks_draw_the_same_dropout_under_every_variant_of_lora(lora):
    batch = triplets(8, 1)
    embedder = tuned(dropout=0.2, lora=lora)
    whole = contrastive.contrastive_backward(embedder, batch, contrastive.BatchSetup(LossSettings()), seed=5)
    expected = gradients(embedder)
    found = contrastive.contrastive_backward(
        embedder, batch, contrastive.BatchSetup(LossSettings(), chunk_tokens=40), seed=5
    )
    assert found.chunks >= 2 and found.loss == pytest.approx(whole.loss, rel=1e-5)
    assert_same(gradients(embedder), expected)


def test_it_is_the_loss_of_all_vectors_by_plain_autograd():
    batch = triplets(6, 2)
    embedder = tuned()
    found = contrastive.contrastive_backward(
        embedder, batch, contrastive.BatchSetup(LossSettings(mask_false_negatives=True))
    )
    with_cache = gradients(embedder)
    vectors = embedder.forward(embedder.layout(embedder.tokenize(texts_of(batch, LossSettings()))))
    masked = false_negative_mask([row.positive for row in batch], [text for row in batch for text in row.negatives])
    loss = info_nce(vectors[:6], vectors[6:12], vectors[12:], temperature=0.05, false_negatives=masked).loss
    loss.backward()
    assert found.loss == pytest.approx(loss.item(), rel=1e-6)
    assert_same(with_cache, gradients(embedder), share=1e-6)


@pytest.mark.parametrize("masked", [False, True])
def test_both_directions_and_anchors_as_negatives_are_what_they_say(masked):
    batch = triplets(5)
    batch[3] = batch[3]._replace(anchor=batch[1].anchor)
    batch[4] = batch[4]._replace(anchor=batch[0].positive)
    embedder = tuned()
    settings = LossSettings(both_directions=True, anchors_as_negatives=True, mask_false_negatives=masked)
    found = contrastive.contrastive_backward(embedder, batch, contrastive.BatchSetup(settings))
    taken = gradients(embedder)
    vectors = F.normalize(embedder.forward(embedder.layout(embedder.tokenize(texts_of(batch, settings)))), dim=-1)
    anchors, positives, negatives = vectors.split(5)
    losses = []
    for row, triplet in enumerate(batch):
        candidates = [(positives[j], j == row) for j in range(5)] + [(negative, False) for negative in negatives]
        candidates += [
            (anchors[j], False)
            for j in range(5)
            if batch[j].anchor != triplet.anchor and not (masked and batch[j].anchor == triplet.positive)
        ]
        scores = torch.stack([anchors[row] @ vector / 0.05 for vector, _ in candidates])
        losses.append(torch.logsumexp(scores, 0) - scores[[own for _, own in candidates].index(True)])
        others = [j for j in range(5) if j == row or not (masked and batch[j].anchor == triplet.anchor)]
        back = torch.stack([positives[row] @ anchors[j] / 0.05 for j in others])
        losses.append(torch.logsumexp(back, 0) - back[others.index(row)])
    expected = torch.stack(losses).mean()
    expected.backward()
    assert found.loss == pytest.approx(expected.item(), rel=1e-5)
    assert_same(taken, gradients(embedder))


@pytest.mark.parametrize("way", ["drawn", "hashed"])
@pytest.mark.parametrize("recompute", [False, True], ids=["kept", "recomputed"])
@pytest.mark.parametrize("family", ["llama", "gpt2", "bloom"])
def test_dropout_does_not_depend_on_chunks(monkeypatch, family, recompute, way):
    if way == "hashed":  # as on other devices
        monkeypatch.setattr(dropout, "_drawn", dropout._hashed)
    batch, loss, embedder = triplets(10), LossSettings(), tuned(family, dropout=0.1)
    for module in embedder.model.modules():  # a model's own dropout comes from torch, chunk by chunk
        if type(module) is torch.nn.Dropout:
            module.p = 0.0
    whole = contrastive.contrastive_backward(embedder, batch, contrastive.BatchSetup(loss), seed=7)
    expected = gradients(embedder)
    if recompute:
        recompute_activations(embedder.model)
    for tokens in (40, 100, 300, 10_000):
        setup = contrastive.BatchSetup(loss, chunk_tokens=tokens)
        found = contrastive.contrastive_backward(embedder, batch, setup, seed=7)
        assert found.chunks > 2 or tokens > 100
        assert found.loss == pytest.approx(whole.loss, rel=1e-5)
        assert_same(gradients(embedder), expected)
    contrastive.contrastive_backward(embedder, batch, contrastive.BatchSetup(loss), seed=8)
    other = gradients(embedder)
    assert any((other[name] - expected[name]).abs().max() > 1e-4 for name in expected), "dropout must do something"


def test_any_seed_of_any_process_will_do():
    contrastive.contrastive_backward(
        tuned(), triplets(8), contrastive.BatchSetup(LossSettings(), chunk_tokens=120), seed=2**62 + (1000 << 40)
    )


@pytest.mark.parametrize("kind", ["false negatives masked", "anchors, masked, both ways"])
def test_blocks_of_anchors_change_nothing(monkeypatch, kind):
    batch, embedder, loss = triplets(10), tuned(), LOSSES[kind][0]
    whole = contrastive.contrastive_backward(embedder, batch, contrastive.BatchSetup(loss))
    expected = gradients(embedder)
    monkeypatch.setattr(contrastive, "_ANCHORS", 3)
    found = contrastive.contrastive_backward(embedder, batch, contrastive.BatchSetup(loss))
    assert (found.loss, found.accuracy, found.candidates) == pytest.approx(
        (whole.loss, whole.accuracy, whole.candidates), rel=1e-6
    )
    assert_same(gradients(embedder), expected)


def test_a_batch_of_4096_triplets_takes_little_more_memory_than_one_of_64():
    embedder = tuned()
    small, large = triplets(64), triplets(4096)
    tokens = sum(map(len, embedder.tokenize(texts_of(small, LossSettings()))))

    def peak(batch, chunk_tokens):
        return memory.peak_bytes(
            lambda: (
                contrastive.contrastive_backward(
                    embedder, batch, contrastive.BatchSetup(LossSettings(), chunk_tokens=chunk_tokens)
                )
                and None
            ),
            embedder.device,
        )

    whole = peak(small, None)
    assert peak(triplets(128), None) > 1.7 * whole, "without chunks memory grows with the batch"
    # The vectors themselves, their gradients and a block of similarities remain: 64 times as many texts of width 32.
    vectors = 4 * 3 * 4096 * 32 * 6
    similarities = 4 * 256 * 8192 * 4
    assert peak(large, tokens) < 1.2 * whole + vectors + similarities


def test_first_numbers_are_the_matryoshka_loss_of_sentence_transformers():
    losses = pytest.importorskip("sentence_transformers.losses")
    batch, settings = triplets(6, 1), LossSettings(dimensions=[8, 16])
    embedder = tuned()
    found = contrastive.contrastive_backward(embedder, batch, contrastive.BatchSetup(settings))
    ours = gradients(embedder)

    class Theirs(torch.nn.Module):
        """What their losses ask of a model: vectors of features that hold them."""

        def forward(self, features):
            return {"sentence_embedding": features["vectors"]}

        def get_embedding_dimension(self):
            return 32

    model = Theirs()
    ranking = losses.MultipleNegativesRankingLoss(model, scale=1 / settings.temperature)
    loss = losses.MatryoshkaLoss(model, ranking, [32, 16, 8], matryoshka_weights=[1 / 3] * 3)
    vectors = embedder.forward(embedder.layout(embedder.tokenize(texts_of(batch, settings))))
    value = loss([{"vectors": part} for part in vectors.split(6)], torch.empty(0))
    value.backward()
    assert found.loss == pytest.approx(value.item(), rel=1e-6)
    assert_same(ours, gradients(embedder), share=1e-6)
