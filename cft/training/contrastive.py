"""One batch's loss and its gradient, whatever the memory and the number of processes.

A batch that does not fit goes through the model in chunks, by gradient caching (Gao et al. 2021, arXiv 2101.06983):
first all vectors without gradient, then the loss and its gradient with respect to them, then each chunk again, now
with gradient, its random state replayed. The gradient is the whole batch's, at twice the forward time.
"""

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import NamedTuple

import torch

from cft.config.schema import DistillSettings, LossSettings
from cft.data.records import Triplet
from cft.model.embedder import Embedder
from cft.system.distributed import SINGLE_PROCESS, World
from cft.training.losses import ContrastiveLoss, distillation_targets, false_negative_mask, info_nce

# Anchors whose similarities to all candidates are held at one time.
_ANCHORS = 256


@dataclass(frozen=True)
class StepStats:
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


@dataclass(frozen=True)
class Teacher:
    """Whose similarities are learnt, and how: settings is conf/distill."""

    embedder: Embedder
    settings: DistillSettings


class _Lesson(NamedTuple):
    """A teacher's vectors of this process's texts, in the order of `texts_of`, and what is made of them."""

    vectors: torch.Tensor
    settings: DistillSettings


def contrastive_backward(
    embedder: Embedder,
    batch: Sequence[Triplet],
    loss: LossSettings,
    *,
    teacher: Teacher | None = None,
    scale: float = 1.0,
    seed: int = 0,
    sequences: Sequence[tuple[int, ...]] | None = None,
    chunk_tokens: int | None = None,
    world: World = SINGLE_PROCESS,
    autocast: Callable[[], AbstractContextManager] = nullcontext,
) -> StepStats:
    """Add the gradient of one batch's loss to the trained weights' gradients.

    Args:
        embedder: with trainable weights.
        batch: B triplets, the same on every process.
        loss: which objective, at which temperature.
        teacher: whose similarities are part of the target; None for none.
        scale: what the loss is multiplied by.
        seed: draws the dropout of chunks; without chunks the generator goes on as it stands.
        sequences: what `tokens_of` gives for the batch, if that was done already.
        chunk_tokens: tokens that go through the model at once; None for all.
        world: the processes that share the batch. The caller sums the weights' gradients over them.
        autocast: the precision that the model runs in.
    """
    mine = batch[world.shard(len(batch))]
    sequences = tokens_of(embedder, batch, loss, world) if sequences is None else sequences
    chunks = [list(range(len(sequences)))]
    if chunk_tokens is not None:
        chunks = list(embedder.chunks(embedder.order(sequences), sequences, chunk_tokens))
    whole = len(chunks) == 1
    sizes: list[tuple[int, int]] = []

    def vectors_of(number: int) -> torch.Tensor:
        if not whole:
            torch.manual_seed((seed * 65_537 + number) % 2**63)  # torch takes no more
        layout = embedder.layout([sequences[row] for row in chunks[number]])
        sizes.append((layout.tokens, layout.nodes))
        with autocast():
            return embedder.forward(layout)

    with torch.set_grad_enabled(whole):
        parts = [vectors_of(number) for number in range(len(chunks))]
    place = torch.tensor([row for chunk in chunks for row in chunk], device=parts[0].device)
    vectors = torch.cat(parts)[place.argsort()]
    leaf = vectors.detach().requires_grad_(True)
    lesson = None
    if teacher is not None:
        with autocast():
            known = teacher.embedder.encode(texts_of(mine, loss))
        lesson = _Lesson(torch.from_numpy(known).to(leaf.device), teacher.settings)
    found, share = _loss(leaf, batch, len(mine), loss, world, scale=scale, lesson=lesson)
    values = [found.loss.item() * share, found.accuracy * share, found.candidates * share]
    values += [sum(size) for size in zip(*sizes, strict=True)]
    assert leaf.grad is not None
    if whole:
        vectors.backward(leaf.grad)
    else:
        for number, chunk in enumerate(chunks):
            vectors_of(number).backward(leaf.grad[chunk])
    cost, accuracy, candidates, tokens, nodes = world.all_reduce_sum(values, leaf.device)
    return StepStats(cost, accuracy, candidates, int(tokens), int(nodes), len(chunks))


def tokens_of(
    embedder: Embedder, batch: Sequence[Triplet], loss: LossSettings, world: World = SINGLE_PROCESS
) -> list[tuple[int, ...]]:
    """Token ids of this process's texts of a batch, in the order of `texts_of`."""
    return embedder.tokenize(texts_of(batch[world.shard(len(batch))], loss))


def texts_of(rows: Sequence[Triplet], loss: LossSettings) -> list[str]:
    """Anchors, then positives, then hard negatives if they count."""
    negatives = [text for row in rows for text in row.negatives] if loss.hard_negatives else []
    return [row.anchor for row in rows] + [row.positive for row in rows] + negatives


class _Question(NamedTuple):
    """Which texts each row of a batch must choose among.

    asked: place of the first row's vector among this process's own. among: what the candidates are; the rows' right
    ones come first. masked: (B, candidates) True for those that do not count; None where all do.
    """

    asked: int
    among: list[str]
    masked: torch.Tensor | None


def _loss(
    leaf: torch.Tensor,
    batch: Sequence[Triplet],
    rows: int,
    loss: LossSettings,
    world: World,
    *,
    scale: float,
    lesson: _Lesson | None,
) -> tuple[ContrastiveLoss, float]:
    """The loss of this process's anchors among everybody's candidates, its gradient put on `leaf`.

    Args:
        leaf: this process's vectors, in the order of `texts_of`. rows: this process's share of the batch. lesson: what
            a teacher makes of the same texts.

    Returns:
        The loss, and these anchors' share of all.
    """
    questions = _questions(batch, rows, loss)
    named = {name for question in questions for name in question.among}
    gathered = _gather(leaf, batch, rows, loss, world, named)
    everybody = {name: vectors.detach().requires_grad_(True) for name, vectors in gathered.items()}
    candidates = [torch.cat([everybody[name] for name in question.among]) for question in questions]
    lessons: list[torch.Tensor] = []
    if lesson is not None:
        known = _gather(lesson.vectors, batch, rows, loss, world, named)
        lessons = [torch.cat([known[name] for name in question.among]) for question in questions]
    first = world.shard(len(batch)).start
    # Anchors in blocks: the similarities of a large batch would take more memory than a chunk of the model.
    parts = []
    for start in range(0, rows, _ANCHORS):
        end = min(start + _ANCHORS, rows)
        answers = []
        for number, (asked, _, masked) in enumerate(questions):
            own = slice(asked + start, asked + end)
            excluded = masked[first + start : first + end].to(leaf.device) if masked is not None else None
            targets = None
            if lesson is not None:
                targets = distillation_targets(
                    lesson.vectors[own],
                    lessons[number],
                    share=lesson.settings.share,
                    temperature=lesson.settings.temperature,
                    false_negatives=excluded,
                    first=first + start,
                )
            answers.append(
                info_nce(
                    leaf[own],
                    candidates[number],
                    temperature=loss.temperature,
                    false_negatives=excluded,
                    first=first + start,
                    targets=targets,
                )
            )
        cost = torch.stack([answer.loss for answer in answers]).mean()
        (cost * ((end - start) / len(batch) * scale)).backward()
        parts.append((answers[0]._replace(loss=cost.detach()), (end - start) / rows))
    torch.autograd.backward(list(gathered.values()), [vectors.grad for vectors in everybody.values()])
    return _mean(parts), rows / len(batch)


def _gather(
    vectors: torch.Tensor, batch: Sequence[Triplet], rows: int, loss: LossSettings, world: World, named: set[str]
) -> dict[str, torch.Tensor]:
    """Everybody's vectors by what they are of, out of one process's own."""
    shares = [batch[World(rank, world.size).shard(len(batch))] for rank in range(world.size)]
    sizes = [len(share) for share in shares]
    found = {"positives": world.all_gather(vectors[rows : 2 * rows], sizes)}
    if "negatives" in named:
        found["negatives"] = world.all_gather(vectors[2 * rows :], [_hard(share, loss) for share in shares])
    if "anchors" in named:
        found["anchors"] = world.all_gather(vectors[:rows], sizes)
    return found


def _hard(rows: Sequence[Triplet], loss: LossSettings) -> int:
    """Hard negatives that count."""
    return sum(len(row.negatives) for row in rows) if loss.hard_negatives else 0


def _questions(batch: Sequence[Triplet], rows: int, loss: LossSettings) -> list[_Question]:
    """What an anchor must choose among, and, in both directions, what a positive must."""
    masked, masked_back = _not_wrong(batch, loss)
    among = ["positives"]
    among += ["negatives"] if _hard(batch, loss) else []
    among += ["anchors"] if loss.anchors_as_negatives else []
    found = [_Question(0, among, masked)]
    if loss.both_directions:
        found.append(_Question(rows, ["anchors"], masked_back))
    return found


def _not_wrong(batch: Sequence[Triplet], loss: LossSettings) -> tuple[torch.Tensor | None, torch.Tensor | None]:
    """Which candidates do not count against an anchor, and which anchors do not count against a positive.

    Returns:
        (B, candidates) and (B, B) bool; None where all count.
    """
    anchors, positives = [row.anchor for row in batch], [row.positive for row in batch]
    negatives = [text for row in batch for text in row.negatives] if loss.hard_negatives else []
    masked = false_negative_mask(positives, negatives) if loss.mask_false_negatives else None
    if loss.anchors_as_negatives:
        # An anchor is no negative of itself, nor is its twin: triplets of one premise have equal anchors.
        twins = false_negative_mask(anchors, anchors)[:, len(anchors) :]
        if masked is None:
            masked = torch.zeros(len(batch), len(positives) + len(negatives), dtype=torch.bool)
        else:
            twins |= false_negative_mask(positives, anchors)[:, len(positives) :]
        masked = torch.cat([masked, twins], dim=1)
    back = false_negative_mask(anchors, []) if loss.mask_false_negatives and loss.both_directions else None
    return masked, back


def _mean(parts: list[tuple[ContrastiveLoss, float]]) -> ContrastiveLoss:
    """Over blocks of anchors, each with its share."""
    return ContrastiveLoss(
        loss=torch.stack([part.loss * share for part, share in parts]).sum(),
        accuracy=sum(part.accuracy * share for part, share in parts),
        candidates=sum(part.candidates * share for part, share in parts),
    )
