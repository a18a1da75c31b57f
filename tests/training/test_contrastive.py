"""A batch's gradient is the batch's, in however many chunks it goes through the model."""

import json

import pytest
import torch
import torch.nn.functional as F
from batches import WORDS, assert_same, gradients, triplets, tuned
from conftest import make_tiny
from jobs import run_folder, settings

from cft.config.schema import LossSettings
from cft.job import runner
from cft.model.embedder import Embedder
from cft.system.errors import UserError
from cft.training import chunking, contrastive, memory
from cft.training.contrastive import texts_of
from cft.training.losses import false_negative_mask, info_nce

LOSSES = {
    "eq. 1": (LossSettings(), 1),
    "eq. 2": (LossSettings(hard_negatives=False), 1),
    "three negatives": (LossSettings(temperature=0.2), 3),
    "false negatives masked": (LossSettings(mask_false_negatives=True), 2),
    "both directions": (LossSettings(both_directions=True), 1),
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


def test_with_dropout_a_chunk_is_the_same_both_times():
    """The gradient is that of the very vectors the loss was made of: by one graph over all chunks, at the same seeds."""
    batch, loss = triplets(8), LossSettings()
    embedder = tuned(dropout=0.3)
    found = contrastive.contrastive_backward(embedder, batch, contrastive.BatchSetup(loss, chunk_tokens=120), seed=7)
    cached = gradients(embedder)
    sequences = embedder.tokenize(texts_of(batch, loss))
    chunks = list(embedder.batches(sequences, 120))
    assert len(chunks) == found.chunks > 2
    vectors = torch.empty(len(sequences), 32)
    parts = []
    for number, chunk in enumerate(chunks):
        torch.manual_seed(7 * 65_537 + number)
        parts.append(embedder.forward(embedder.layout([sequences[row] for row in chunk])))
    order = torch.tensor([row for chunk in chunks for row in chunk]).argsort()
    vectors = torch.cat(parts)[order]
    info_nce(vectors[:8], vectors[8:16], vectors[16:], temperature=0.05).loss.backward()
    assert_same(cached, gradients(embedder))
    contrastive.contrastive_backward(embedder, batch, contrastive.BatchSetup(loss, chunk_tokens=120), seed=8)
    other = gradients(embedder)
    assert any((other[name] - cached[name]).abs().max() > 1e-4 for name in cached), "dropout must do something"


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


# Choosing chunks.


def runs_out_of_memory(monkeypatch, limit: int) -> list[int]:
    """Let the model fail on batches of more nodes than `limit`; returns the sizes that went through."""
    through = []
    forward = Embedder.forward

    def small_memory(embedder, layout):
        if layout.nodes > limit:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB")
        through.append(layout.nodes)
        return forward(embedder, layout)

    monkeypatch.setattr(Embedder, "forward", small_memory)
    return through


def losses_of(outputs) -> list[float]:
    rows = [json.loads(line) for line in (run_folder(outputs) / "history.jsonl").read_text().splitlines()]
    return [row["loss"] for row in rows if row["event"] == "step"]


def test_out_of_memory_leads_to_smaller_chunks_and_the_same_training(tmp_path, monkeypatch, caplog):
    quiet = ["lora.dropout=0", "train.eval_every=0", "train.steps=3", "data.holdout=0"]
    runner.run(settings(tmp_path / "whole", *quiet))
    caplog.set_level("INFO", logger="cft")
    monkeypatch.setattr(memory, "estimate_training", lambda *a, **k: memory.MemoryEstimate(0, 0))
    through = runs_out_of_memory(monkeypatch, 500)
    runner.run(settings(tmp_path / "small", *quiet))
    assert "out of memory: from here on at most" in caplog.text
    assert through and max(through) <= 500
    assert losses_of(tmp_path / "small") == pytest.approx(losses_of(tmp_path / "whole"), rel=1e-4)


def test_a_text_that_alone_is_too_large_is_said(tmp_path, monkeypatch):
    state = chunking.Chunking()
    seen = []
    with pytest.raises(UserError, match="out of memory with a single text of 30 tokens: lower model.max_length"):
        for _ in range(20):
            state.shrink(960, 30)
            seen.append(state.tokens)
    assert seen == [480, 240, 120, 60, 30]


def test_chunks_are_chosen_by_what_is_free(monkeypatch, caplog):
    caplog.set_level("INFO", logger="cft")
    embedder, batch = tuned(), triplets(40)
    assert chunking.choose_chunking(embedder, batch, LossSettings(), bf16=False, chunk_tokens=None).tokens is None
    assert chunking.choose_chunking(embedder, batch, LossSettings(), bf16=False, chunk_tokens=500).tokens == 500
    monkeypatch.setattr(memory, "available_bytes", lambda device: 4 * 2**20)
    chosen = chunking.choose_chunking(embedder, batch, LossSettings(), bf16=False, chunk_tokens=None).tokens
    layout = embedder.layout(embedder.tokenize(texts_of(batch, LossSettings())))
    assert 20 < chosen < layout.nodes / 2
    assert f"at most {chosen:,} tokens go through the model at once, by gradient caching" in caplog.text
    found = contrastive.contrastive_backward(
        embedder, batch, contrastive.BatchSetup(LossSettings(), chunk_tokens=chosen)
    )
    assert found.chunks > 2


def test_an_evaluation_that_runs_out_of_memory_goes_on_in_halves(monkeypatch):
    embedder = make_tiny("llama")
    texts = [f"{word} {other}" for word in WORDS for other in WORDS]
    expected = embedder.encode(texts)
    through = runs_out_of_memory(monkeypatch, 100)
    assert abs(embedder.encode(texts) - expected).max() < 1e-6
    assert max(through) <= 100
    runs_out_of_memory(monkeypatch, 5)
    with pytest.raises(UserError, match=r"out of memory with a single text of \d+ tokens"):
        embedder.encode(texts)


def test_chunks_that_hold_no_text_are_refused(tmp_path):
    with pytest.raises(UserError, match="train.chunk_tokens=100: must hold a text of model.max_length=150 tokens"):
        settings(tmp_path, "train.chunk_tokens=100")
