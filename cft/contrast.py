"""One batch's loss and its gradient, whatever the memory and the number of processes.

A batch that does not fit goes through the model in chunks, by gradient caching (Gao et al. 2021, arXiv 2101.06983):
first all vectors without gradient, then the loss and its gradient with respect to them, then each chunk again, now
with gradient, its random state replayed. The gradient is the whole batch's, at twice the forward time.
"""

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass

import torch

from cft.embedder import Embedder
from cft.losses import ContrastiveLoss, find_false_negatives, info_nce
from cft.ranks import ALONE, Ranks
from cft.records import Triplet
from cft.settings import LossSettings

# Anchors whose similarities to all candidates are held at one time.
_ANCHORS = 256


@dataclass(frozen=True)
class Contrast:
    """What one batch cost.

    loss, accuracy, candidates: as in ContrastiveLoss, over all processes. tokens: of all texts. nodes: what the model
    ran on in their stead. chunks: in how many parts this process did its share.
    """

    loss: float
    accuracy: float
    candidates: float
    tokens: int
    nodes: int
    chunks: int


def contrast(
    embedder: Embedder,
    batch: Sequence[Triplet],
    loss: LossSettings,
    *,
    scale: float = 1.0,
    seed: int = 0,
    sequences: Sequence[tuple[int, ...]] | None = None,
    chunk_tokens: int | None = None,
    ranks: Ranks = ALONE,
    autocast: Callable[[], AbstractContextManager] = nullcontext,
) -> Contrast:
    """Add the gradient of one batch's loss to the trained weights' gradients.

    Args:
        embedder: with trainable weights.
        batch: B triplets, the same on every process.
        loss: which objective, at which temperature.
        scale: what the loss is multiplied by.
        seed: draws the dropout of chunks; without chunks the generator goes on as it stands.
        sequences: what `tokens_of` gives for the batch, if that was done already.
        chunk_tokens: tokens that go through the model at once; None for all.
        ranks: the processes that share the batch. The caller sums the weights' gradients over them.
        autocast: the precision that the model runs in.
    """
    mine = batch[ranks.part(len(batch))]
    sequences = tokens_of(embedder, batch, loss, ranks) if sequences is None else sequences
    chunks = [list(range(len(sequences)))]
    if chunk_tokens is not None:
        chunks = list(embedder.chunks(embedder.order(sequences), sequences, chunk_tokens))
    whole = len(chunks) == 1
    sizes: list[tuple[int, int]] = []

    def vectors_of(number: int) -> torch.Tensor:
        if not whole:
            torch.manual_seed((seed * 65_537 + number) % 2**63)  # torch takes no more
        layout = embedder.lay_out([sequences[row] for row in chunks[number]])
        sizes.append((layout.tokens, layout.nodes))
        with autocast():
            return embedder.forward(layout)

    with torch.set_grad_enabled(whole):
        parts = [vectors_of(number) for number in range(len(chunks))]
    place = torch.tensor([row for chunk in chunks for row in chunk], device=parts[0].device)
    vectors = torch.cat(parts)[place.argsort()]
    leaf = vectors.detach().requires_grad_(True)
    found, share = _loss(leaf, batch, len(mine), loss, ranks, scale=scale)
    values = [found.loss.item() * share, found.accuracy * share, found.candidates * share]
    values += [sum(size) for size in zip(*sizes, strict=True)]
    assert leaf.grad is not None
    if whole:
        vectors.backward(leaf.grad)
    else:
        for number, chunk in enumerate(chunks):
            vectors_of(number).backward(leaf.grad[chunk])
    cost, accuracy, candidates, tokens, nodes = ranks.total(values, leaf.device)
    return Contrast(cost, accuracy, candidates, int(tokens), int(nodes), len(chunks))


def tokens_of(
    embedder: Embedder, batch: Sequence[Triplet], loss: LossSettings, ranks: Ranks = ALONE
) -> list[tuple[int, ...]]:
    """Token ids of this process's texts of a batch, in the order of `texts_of`."""
    return embedder.tokenize(texts_of(batch[ranks.part(len(batch))], loss))


def texts_of(rows: Sequence[Triplet], loss: LossSettings) -> list[str]:
    """Anchors, then positives, then hard negatives if they count."""
    negatives = [text for row in rows for text in row.negatives] if loss.hard_negatives else []
    return [row.anchor for row in rows] + [row.positive for row in rows] + negatives


def _loss(
    leaf: torch.Tensor, batch: Sequence[Triplet], rows: int, loss: LossSettings, ranks: Ranks, *, scale: float
) -> tuple[ContrastiveLoss, float]:
    """The loss of this process's anchors among everybody's candidates, its gradient put on `leaf`.

    Returns:
        The loss, and these anchors' share of all.
    """
    shares = [batch[Ranks(rank, ranks.size).part(len(batch))] for rank in range(ranks.size)]
    sizes = [len(share) for share in shares]
    counts = [sum(len(row.negatives) for row in share) if loss.hard_negatives else 0 for share in shares]
    gathered = {"positives": ranks.gather(leaf[rows : 2 * rows], sizes)}
    if sum(counts):
        gathered["negatives"] = ranks.gather(leaf[2 * rows :], counts)
    if loss.both_directions or loss.anchors_as_negatives:
        gathered["anchors"] = ranks.gather(leaf[:rows], sizes)
    everybody = {name: vectors.detach().requires_grad_(True) for name, vectors in gathered.items()}
    wrong = [everybody["negatives"]] if sum(counts) else []
    wrong += [everybody["anchors"]] if loss.anchors_as_negatives else []
    negatives = torch.cat(wrong) if wrong else None
    masked, masked_back = _not_wrong(batch, loss)
    first = ranks.part(len(batch)).start
    # Anchors in blocks: the similarities of a large batch would take more memory than a chunk of the model.
    parts = []
    for start in range(0, rows, _ANCHORS):
        end = min(start + _ANCHORS, rows)
        block = leaf[start:end]
        own = slice(first + start, first + end)
        part = info_nce(
            block,
            everybody["positives"],
            negatives,
            temperature=loss.temperature,
            false_negatives=masked[own].to(leaf.device) if masked is not None else None,
            first=own.start,
        )
        if loss.both_directions:
            back = info_nce(
                leaf[rows + start : rows + end],
                everybody["anchors"],
                temperature=loss.temperature,
                false_negatives=masked_back[own].to(leaf.device) if masked_back is not None else None,
                first=own.start,
            )
            part = part._replace(loss=(part.loss + back.loss) / 2)
        (part.loss * (len(block) / len(batch) * scale)).backward()
        parts.append((part._replace(loss=part.loss.detach()), len(block) / rows))
    torch.autograd.backward(list(gathered.values()), [vectors.grad for vectors in everybody.values()])
    return _mean(parts), rows / len(batch)


def _not_wrong(batch: Sequence[Triplet], loss: LossSettings) -> tuple[torch.Tensor | None, torch.Tensor | None]:
    """Which candidates do not count against an anchor, and which anchors do not count against a positive.

    Returns:
        (B, candidates) and (B, B) bool; None where all count.
    """
    anchors, positives = [row.anchor for row in batch], [row.positive for row in batch]
    negatives = [text for row in batch for text in row.negatives] if loss.hard_negatives else []
    masked = find_false_negatives(positives, negatives) if loss.mask_false_negatives else None
    if loss.anchors_as_negatives:
        # An anchor is no negative of itself, nor is its twin: triplets of one premise have equal anchors.
        twins = find_false_negatives(anchors, anchors)[:, len(anchors) :]
        if masked is None:
            masked = torch.zeros(len(batch), len(positives) + len(negatives), dtype=torch.bool)
        else:
            twins |= find_false_negatives(positives, anchors)[:, len(positives) :]
        masked = torch.cat([masked, twins], dim=1)
    back = find_false_negatives(anchors, []) if loss.mask_false_negatives and loss.both_directions else None
    return masked, back


def _mean(parts: list[tuple[ContrastiveLoss, float]]) -> ContrastiveLoss:
    """Over blocks of anchors, each with its share."""
    return ContrastiveLoss(
        loss=torch.stack([part.loss * share for part, share in parts]).sum(),
        accuracy=sum(part.accuracy * share for part, share in parts),
        candidates=sum(part.candidates * share for part, share in parts),
    )
