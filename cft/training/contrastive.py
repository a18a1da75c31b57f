"""One batch's loss and its gradient, whatever the memory and the number of processes.

A batch that does not fit into memory goes through the model in chunks, by gradient caching: embed all chunks without
gradient; take the loss and its gradient with respect to the embeddings; run each chunk once more, with gradient and
the same dropout, and backpropagate its part. The gradient is that of the whole batch, at twice the forward time.

Source: Gao et al. 2021, arXiv 2101.06983.
"""

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import torch

from cft.batching.places import Places
from cft.config.schema import Batches, DistillSettings, LossSettings, Prompts, Role
from cft.data.records import ScoredPair, Triplet
from cft.model.dropout import Draw, drawing, drops
from cft.model.embedder import Embedder
from cft.system.distributed import SINGLE_PROCESS, World
from cft.system.errors import UserError
from cft.training.losses import (
    ContrastiveLoss,
    distillation_targets,
    false_negative_mask,
    guided_mask,
    info_nce,
    scored_loss,
)

# Anchors per block of the loss: the similarities of a large batch would take more memory than a chunk of the model.
_ANCHORS = 256

# Vectors that a guide keeps: texts that come again, in another epoch, are not embedded again.
_GUIDE_BYTES = 500_000_000


@dataclass(frozen=True)
class StepStats:
    """Statistics of one batch, over all processes but for `chunks`."""

    loss: float  # of the triplets: mean over the anchors, in nats; 0 without any, as are the next two
    accuracy: float  # share of anchors whose own positive scored highest
    candidates: float  # mean number of texts that an anchor chose from
    tokens: int  # of all texts
    nodes: int  # that went through the model in place of the tokens
    chunks: int  # in which this process's texts went through the model
    scored: float = 0.0  # loss of the scored pairs, before its weight; 0 without any


@dataclass(frozen=True)
class Teacher:
    """A finished embedder whose similarities are part of the target."""

    embedder: Embedder
    settings: DistillSettings  # conf/distill


class Guide:
    """A finished embedder that says which candidates do not count; the vectors of the texts it has seen are kept."""

    def __init__(self, embedder: Embedder) -> None:
        """Begin without vectors."""
        self._embedder = embedder
        self._kept: dict[str, np.ndarray] = {}

    def encode(self, texts: Sequence[str]) -> np.ndarray:
        """Unit vectors (texts, D) float32."""
        new = [text for text in dict.fromkeys(texts) if text not in self._kept]
        found = dict(zip(new, self._embedder.encode(new), strict=True)) if new else {}
        vectors = np.stack([found[text] if text in found else self._kept[text] for text in texts])
        if len(self._kept) * vectors[0].nbytes < _GUIDE_BYTES:
            self._kept |= found
        return vectors


@dataclass(frozen=True)
class BatchSetup:
    """How batches become gradients: what does not change from one batch to the next."""

    loss: LossSettings
    teacher: Teacher | None = None
    guide: Guide | None = None
    world: World = SINGLE_PROCESS  # the processes that share a batch
    chunk_tokens: int | None = None  # most that go through the model at once; None for the whole batch
    autocast: Callable[[], AbstractContextManager] = nullcontext  # the precision that models run in


def contrastive_backward(
    embedder: Embedder,
    batch: Sequence[Triplet],
    setup: BatchSetup,
    *,
    pairs: Sequence[ScoredPair] = (),
    sequences: Sequence[tuple[int, ...]] | None = None,
    scale: float = 1.0,
    seed: int = 0,
) -> StepStats:
    """Add the gradient of one batch's loss, of triplets, scored pairs or both, to those of the trained weights.

    With several processes each adds the part that its own texts make; the caller sums the weights' gradients.

    Args:
        embedder: with trainable weights.
        batch: B triplets, the same on every process; none where there are scored pairs alone.
        setup: loss, teacher, processes, memory and precision.
        pairs: scored pairs whose loss (`loss.scored`) is added, the same on every process.
        sequences: what `tokens_of` gives for the batch, then `tokens_of_pairs`, if they are tokenized already.
        scale: what the loss is multiplied by.
        seed: of LoRA's dropout, whose masks are the same in chunks and as a whole. What else a model draws at random
            comes from torch's generator: as it stands, or seeded anew for each of several chunks.

    Raises:
        UserError: if the batch needs chunks, and the model mixes the texts that go through it together.
    """
    # So many parameters because a batch has rows of two kinds, and may be one of several whose gradients add up.
    world = setup.world
    if sequences is None:
        of_batch = tokens_of(embedder, batch, setup.loss, world) if batch else []
        sequences = of_batch + tokens_of_pairs(embedder, pairs, world)

    # 1. Embed all chunks; without gradient, if there are several.
    chunks = _Chunks(embedder, sequences, setup, seed)
    embeddings = chunks.embed()

    # 2. Take the loss and its gradient with respect to the embeddings, that of triplets in blocks of anchors.
    leaf = embeddings.detach().requires_grad_(True)
    of_pairs = len(leaf) - 2 * _local_count(len(pairs), world)
    widths = [None, *setup.loss.dimensions]  # the whole vectors first: their accuracy is the step's
    own = [0.0, 0.0, 0.0]  # this process's part of the loss, the accuracy and the number of candidates
    if batch:
        student, directions = _contrasts(leaf[:of_pairs], batch, setup)
        rows, blocks = student.rows, []
        for start in range(0, rows, _ANCHORS):
            end = min(start + _ANCHORS, rows)
            losses = [info_nce(**direction.block(start, end, width)) for width in widths for direction in directions]
            block_loss = torch.stack([each.loss for each in losses]).mean()
            (block_loss * ((end - start) / len(batch) * scale)).backward()
            blocks.append((losses[0]._replace(loss=block_loss.detach()), (end - start) / rows))
        student.backward()
        local, share = _mean_over_blocks(blocks), rows / len(batch)
        own = [local.loss.item() * share, local.accuracy * share, local.candidates * share]
    scored = _scored_backward(leaf[of_pairs:], pairs, setup, scale) if pairs else 0.0

    # 3. Run each chunk once more, with gradient, and backpropagate its part.
    assert leaf.grad is not None
    chunks.backward(embeddings, leaf.grad)

    values = [*own, chunks.tokens, chunks.nodes]
    total_loss, accuracy, candidates, tokens, nodes = world.all_reduce_sum(values, leaf.device)
    return StepStats(total_loss, accuracy, candidates, int(tokens), int(nodes), len(chunks.rows), scored)


def _contrasts(vectors: torch.Tensor, batch: Sequence[Triplet], setup: BatchSetup) -> "tuple[_Pool, list[_Direction]]":
    """The pool of this process's vectors (texts, D), in the order of `texts_of`, and what is told apart among them."""
    student = _Pool(vectors, batch, setup)
    teacher = _pool_of(setup.teacher.embedder, batch, setup, vectors.device) if setup.teacher else None
    guide = _pool_of(setup.guide, batch, setup, vectors.device) if setup.guide else None
    return student, _directions(_Pools(student, teacher, guide), batch, setup)


def _local_count(count: int, world: World) -> int:
    """How many of so many rows are this process's."""
    own = world.shard(count)
    return own.stop - own.start


def _scored_backward(vectors: torch.Tensor, pairs: Sequence[ScoredPair], setup: BatchSetup, scale: float) -> float:
    """Add the gradient of the scored pairs' loss; returns that loss, of all processes' pairs.

    Args:
        vectors: (2 * own pairs, D) this process's first sentences, then its second ones. pairs: of all processes.
        setup: loss and processes. scale: what the loss is multiplied by.
    """
    loss, world = setup.loss, setup.world
    counts = [_local_count(len(pairs), World(rank, world.size)) for rank in range(world.size)]
    own = counts[world.rank]
    gathered = world.all_gather(torch.cat([vectors[:own], vectors[own:]], dim=1), counts)
    one, other = gathered.chunk(2, dim=1)
    scores = torch.tensor([pair.score for pair in pairs], dtype=torch.float64, device=vectors.device)
    temperature, kind, widths = loss.scored_temperature, str(loss.scored), [None, *loss.dimensions]
    found = torch.stack(
        [scored_loss(one[:, :width], other[:, :width], scores, temperature=temperature, kind=kind) for width in widths]
    ).mean()
    # Every process has the whole of this loss, and their gradients are added up.
    (found * (loss.scored_weight * scale / world.size)).backward()
    return float(found.detach())


def tokens_of(
    embedder: Embedder,
    batch: Sequence[Triplet],
    loss: LossSettings,
    world: World = SINGLE_PROCESS,
    *,
    prompts: Sequence[Prompts] | None = None,
) -> list[tuple[int, ...]]:
    """Token ids of this process's texts of a batch, in the order of `texts_of`.

    Anchors have the prompt of queries, positives and negatives that of documents: of the embedder's prompts or,
    where they are given, of each row's own.
    """
    rows = batch[world.shard(len(batch))]
    texts = texts_of(rows, loss)
    if prompts is None:
        queries, documents = embedder.in_role(Role.query), embedder.in_role(Role.document)
        if queries is documents:  # no role has a prompt of its own
            return embedder.tokenize(texts)
        return queries.tokenize(texts[: len(rows)]) + documents.tokenize(texts[len(rows) :])
    own = prompts[world.shard(len(batch))]
    negatives = [each for each, row in zip(own, rows, strict=True) for _ in _hard_negatives([row], loss)]
    templates = [each.of(Role.query) for each in own] + [each.of(Role.document) for each in (*own, *negatives)]
    found: dict[int, tuple[int, ...]] = {}
    for template in dict.fromkeys(templates):
        places = [place for place, each in enumerate(templates) if each == template]
        rows_of = embedder.with_template(template).tokenize([texts[place] for place in places])
        found |= dict(zip(places, rows_of, strict=True))
    return [found[place] for place in range(len(texts))]


def tokens_of_pairs(
    embedder: Embedder, pairs: Sequence[ScoredPair], world: World = SINGLE_PROCESS
) -> list[tuple[int, ...]]:
    """Token ids of this process's scored pairs: their first sentences, then their second ones."""
    own = pairs[world.shard(len(pairs))]
    texts = [pair.sentence1 for pair in own] + [pair.sentence2 for pair in own]
    return embedder.in_role(Role.text).tokenize(texts) if texts else []


def texts_of(rows: Sequence[Triplet], loss: LossSettings) -> list[str]:
    """Anchors, then positives, then hard negatives if they count."""
    return [row.anchor for row in rows] + [row.positive for row in rows] + _hard_negatives(rows, loss)


def _hard_negatives(rows: Sequence[Triplet], loss: LossSettings) -> list[str]:
    return [text for row in rows for text in row.negatives] if loss.hard_negatives else []


def require_separable(model: torch.nn.Module) -> None:
    """Refuse gradient caching for a model whose texts change one another's vectors.

    Raises:
        UserError: naming the layer.
    """
    for name, module in model.named_modules():
        if isinstance(module, torch.nn.modules.batchnorm._BatchNorm):
            raise UserError(
                f"this model has batch normalisation ({name}), which mixes the texts that go through it together: a "
                "batch cannot go in chunks (gradient caching, train.chunk_tokens); take a train.batch_size that fits "
                "as a whole, and train.chunk_tokens=null"
            )


class _Chunks:
    """A process's texts of a batch, in chunks that go through the model one after the other."""

    def __init__(self, embedder: Embedder, sequences: Sequence[tuple[int, ...]], setup: BatchSetup, seed: int) -> None:
        self.rows = [list(range(len(sequences)))]  # of each chunk
        batching = embedder.backbone.batching
        if setup.chunk_tokens is not None and batching.tokens_in_memory(sequences) > setup.chunk_tokens:
            require_separable(embedder.model)
            self.rows = list(embedder.batches(sequences, setup.chunk_tokens))
        self.tokens = self.nodes = 0
        self._embedder, self._sequences, self._autocast, self._seed = embedder, sequences, setup.autocast, seed
        self._places: Places | None = None
        # The nodes of a whole tree are in the order of their numbers already.
        if drops(embedder.model) and (len(self.rows) > 1 or batching.kind is Batches.padded):
            self._places = Places(sequences, batching)
        self._draw = Draw(seed)  # of the chunk that went through the model last

    def embed(self) -> torch.Tensor:
        """Embeddings (texts, D) in the order of the sequences; with a graph if there is one chunk alone."""
        with torch.set_grad_enabled(len(self.rows) == 1):
            parts = [self._forward(number, count=True) for number in range(len(self.rows))]
        place = torch.tensor([row for rows in self.rows for row in rows], device=parts[0].device)
        return torch.cat(parts)[place.argsort()]

    def backward(self, embeddings: torch.Tensor, gradient: torch.Tensor) -> None:
        """Backpropagate the gradient (texts, D) of what `embed` gave, chunk by chunk."""
        if len(self.rows) == 1:
            self._backward(embeddings, gradient)
            return
        for number, rows in enumerate(self.rows):
            self._backward(self._forward(number), gradient[rows])

    def _forward(self, number: int, *, count: bool = False) -> torch.Tensor:
        rows = self.rows[number]
        if len(self.rows) > 1:  # the second pass must draw what the first drew; torch takes seeds below 2^63
            torch.manual_seed((self._seed * 65_537 + number) % 2**63)
        layout = self._embedder.layout([self._sequences[row] for row in rows])
        if count:
            self.tokens += layout.tokens
            self.nodes += layout.nodes
        self._draw = Draw(self._seed, None if self._places is None else self._places.of(layout, rows))
        with self._autocast(), drawing(self._embedder.model, self._draw):
            return self._embedder.forward(layout)

    def _backward(self, embeddings: torch.Tensor, gradient: torch.Tensor) -> None:
        # Gradient checkpointing runs layers forward once more in here.
        with drawing(self._embedder.model, self._draw):
            embeddings.backward(gradient)


class _Pool:
    """Embeddings of one model: this process's own, and all processes' by role, gathered with gradient."""

    def __init__(self, local: torch.Tensor, batch: Sequence[Triplet], setup: BatchSetup) -> None:
        world, loss = setup.world, setup.loss
        shards = [batch[World(rank, world.size).shard(len(batch))] for rank in range(world.size)]
        sizes = [len(shard) for shard in shards]
        self.local = local  # (texts, D) in the order of `texts_of`
        self.rows = rows = sizes[world.rank]
        self._gathered = {"positives": world.all_gather(local[rows : 2 * rows], sizes)}
        if any(_hard_negatives(batch, loss)):
            counts = [len(_hard_negatives(shard, loss)) for shard in shards]
            self._gathered["negatives"] = world.all_gather(local[2 * rows :], counts)
        if loss.anchors_as_negatives or loss.both_directions:
            self._gathered["anchors"] = world.all_gather(local[:rows], sizes)
        self._leaves = {role: vectors.detach().requires_grad_(True) for role, vectors in self._gathered.items()}

    def candidates(self, roles: Sequence[str]) -> torch.Tensor:
        """Embeddings (C, D) of all processes' texts in these roles."""
        return torch.cat([self._leaves[role] for role in roles if role in self._leaves])

    def backward(self) -> None:
        """Send the candidates' gradients back to the processes that embedded them."""
        leaves = [self._leaves[role].grad for role in self._gathered]
        torch.autograd.backward(list(self._gathered.values()), leaves)


class _Pools(NamedTuple):
    """Embeddings of the same texts by the model that is trained, and by those beside it."""

    student: _Pool
    teacher: _Pool | None
    guide: _Pool | None


def _pool_of(finished: Embedder | Guide, batch: Sequence[Triplet], setup: BatchSetup, device: torch.device) -> _Pool:
    """A finished embedder's embeddings of the same texts."""
    with setup.autocast():
        vectors = finished.encode(texts_of(batch[setup.world.shard(len(batch))], setup.loss))
    return _Pool(torch.from_numpy(vectors).to(device), batch, setup)


@dataclass(frozen=True)
class _Direction:
    """Queries of this process, each of which must pick its own text among candidates of all processes."""

    queries: torch.Tensor  # (rows, D) of this process
    candidates: torch.Tensor  # (C, D) of all processes, first those that belong to the rows of the batch
    mask: torch.Tensor | None  # (batch, C) True for candidates that do not count; None if all do
    first: int  # row of the batch that the first query is of
    loss: LossSettings
    teacher: tuple[torch.Tensor, torch.Tensor] | None  # the teacher's embeddings of the queries and the candidates
    guide: tuple[torch.Tensor, torch.Tensor] | None  # the guide's
    distill: DistillSettings

    def block(self, start: int, end: int, width: int | None = None) -> dict[str, Any]:
        """Arguments of `info_nce` for the queries from `start` to `end`, with the first `width` numbers of vectors.

        A teacher's similarities are those of its whole vectors, which may have another width.
        """
        first = self.first + start
        mask = None if self.mask is None else self.mask[first : self.first + end].to(self.queries.device)
        if self.guide:
            marked = guided_mask(
                self.guide[0][start:end],
                self.guide[1],
                margin=self.loss.guide_margin,
                relative=self.loss.guide_relative,
                first=first,
            )
            mask = marked if mask is None else mask | marked
        targets = None
        if self.teacher:
            targets = distillation_targets(
                self.teacher[0][start:end],
                self.teacher[1],
                share=self.distill.share,
                temperature=self.distill.temperature,
                false_negatives=mask,
                first=first,
            )
        return {
            "anchor": self.queries[start:end, :width],
            "positive": self.candidates[:, :width],
            "temperature": self.loss.temperature,
            "false_negatives": mask,
            "first": first,
            "targets": targets,
        }


def _directions(pools: _Pools, batch: Sequence[Triplet], setup: BatchSetup) -> list[_Direction]:
    """Anchors that pick positives and, in both directions, positives that pick anchors."""
    loss, student, rows = setup.loss, pools.student, pools.student.rows

    def beside(pool: _Pool | None, queries: slice, roles: list[str]) -> tuple[torch.Tensor, torch.Tensor] | None:
        return (pool.local[queries], pool.candidates(roles).detach()) if pool else None

    def direction(queries: slice, roles: list[str], mask: torch.Tensor | None) -> _Direction:
        return _Direction(
            queries=student.local[queries],
            candidates=student.candidates(roles),
            mask=mask,
            first=setup.world.shard(len(batch)).start,
            loss=loss,
            teacher=beside(pools.teacher, queries, roles),
            guide=beside(pools.guide, queries, roles),
            distill=setup.teacher.settings if setup.teacher else DistillSettings(),
        )

    roles = ["positives", "negatives", *(["anchors"] if loss.anchors_as_negatives else [])]
    directions = [direction(slice(rows), roles, _mask_of_anchors(batch, loss))]
    if loss.both_directions:
        mask = false_negative_mask([row.anchor for row in batch], []) if loss.mask_false_negatives else None
        directions.append(direction(slice(rows, 2 * rows), ["anchors"], mask))
    return directions


def _mask_of_anchors(batch: Sequence[Triplet], loss: LossSettings) -> torch.Tensor | None:
    """(B, C) True for candidates that do not count against an anchor; None if all do."""
    anchors, positives = [row.anchor for row in batch], [row.positive for row in batch]
    negatives = _hard_negatives(batch, loss)
    mask = false_negative_mask(positives, negatives) if loss.mask_false_negatives else None
    if not loss.anchors_as_negatives:
        return mask
    # An anchor is no negative of itself, nor is its twin: triplets of one premise have equal anchors.
    twins = false_negative_mask(anchors, anchors)[:, len(anchors) :]
    if mask is None:
        mask = torch.zeros(len(batch), len(positives) + len(negatives), dtype=torch.bool)
    else:
        twins |= false_negative_mask(positives, anchors)[:, len(positives) :]
    return torch.cat([mask, twins], dim=1)


def _mean_over_blocks(blocks: list[tuple[ContrastiveLoss, float]]) -> ContrastiveLoss:
    """The mean over blocks of anchors, each with its share of the anchors."""
    return ContrastiveLoss(
        loss=torch.stack([block.loss * share for block, share in blocks]).sum(),
        accuracy=sum(block.accuracy * share for block, share in blocks),
        candidates=sum(block.candidates * share for block, share in blocks),
    )
