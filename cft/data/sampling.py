"""Which rows make a batch: a shuffle an epoch, with or without room for one text twice in a batch."""

import hashlib
import itertools
from array import array
from collections import deque
from collections.abc import Iterable, Iterator, Mapping, Sequence
from itertools import islice, repeat

import numpy as np

from cft.data.mixture import Mixture, cycled, plain, shuffled, shuffled_source
from cft.data.records import Triplet

# Texts of a row that stand in another row too, as numbers; rows without any are left out.
Shared = Mapping[int, frozenset[int]]


def batches(
    rows: int | Mixture, batch_size: int, *, seed: int, start: int, stop: int, shared: Shared | None = None
) -> Iterator[np.ndarray]:
    """Row numbers of the batches of steps `start` to `stop`, which depend on the seed and the step alone.

    Each epoch is a new shuffle; the rows behind its last full batch are dropped. With `shared`, a row of which a text
    stands in the batch already waits for the next batch, ahead of those that have not come yet. In a mixture with
    shares a source begins anew when its rows are used up, and a row never stands in a batch twice.

    Args:
        rows: how many, or the sources that they come from. batch_size: rows of a batch. seed: of the shuffles.
        start, stop: steps.
        shared: what `shared_texts` gives, for batches in which no text stands twice; None for batches as they fall.

    Yields:
        (batch_size,) row numbers.
    """
    mixture = rows if isinstance(rows, Mixture) else plain(rows)
    if mixture.by_source:
        yield from islice(_by_source(mixture, batch_size, seed, start, shared), stop - start)
    elif shared is None and mixture.is_plain:
        epoch, skipped = divmod(start, mixture.count // batch_size)
        shuffles = (shuffled(mixture.count, seed, each) for each in itertools.count(epoch))
        yield from islice(_as_they_fall(shuffles, batch_size), skipped, skipped + stop - start)
    else:
        yield from islice(_without_repeats(_orders(mixture, seed), batch_size, shared, mixture), start, stop)


def count_batches(
    rows: int | Mixture, batch_size: int, *, seed: int, epochs: int, most: int, shared: Shared | None
) -> int:
    """How many batches so many epochs have, counted up to `most`."""
    mixture = rows if isinstance(rows, Mixture) else plain(rows)
    if mixture.by_source or (shared is None and mixture.is_plain):
        return min(most, epochs * (mixture.count // batch_size))
    orders = islice(_orders(mixture, seed), epochs)
    return sum(1 for _ in islice(_without_repeats(orders, batch_size, shared, mixture), most))


def source_without_batch(
    mixture: Mixture, batch_size: int, *, seed: int, steps: int, shared: Shared | None
) -> int | None:
    """The source whose turn comes within so many steps and that has no batch then; None if all steps have one.

    With `shared`, rows that are enough for a batch may still make none without a text that stands in it twice.
    """
    if shared is None or not mixture.by_source:
        return None
    found = sum(1 for _ in batches(mixture, batch_size, seed=seed, start=0, stop=steps, shared=shared))
    return None if found == steps else next(cycled(mixture, mixture.count // batch_size, found))[0]


def _orders(mixture: Mixture, seed: int) -> Iterator[np.ndarray]:
    return (mixture.order(seed, epoch) for epoch in itertools.count())


def _by_source(mixture: Mixture, batch_size: int, seed: int, start: int, shared: Shared | None) -> Iterator[np.ndarray]:
    """Batches of one source each, from step `start` on; every source has its own sequence of batches."""
    sequences: dict[int, Iterator[np.ndarray]] = {}
    for source, before in cycled(mixture, mixture.count // batch_size, start):
        if source not in sequences:
            sequences[source] = _of_source(mixture, source, batch_size, seed, before, shared)
        found = next(sequences[source], None)
        if found is None:
            return
        yield found


def _of_source(
    mixture: Mixture, source: int, batch_size: int, seed: int, skipped: int, shared: Shared | None
) -> Iterator[np.ndarray]:
    """All batches of one source from its batch number `skipped` on, as global row numbers."""
    rows, first = mixture.rows[source], mixture.starts[source]
    passes = itertools.count()
    if shared is None:
        begun, skipped = divmod(skipped, rows // batch_size)
        passes = itertools.count(begun)
    orders = (first + shuffled_source(rows, seed, source, each) for each in passes)
    if shared is None:
        return islice(_as_they_fall(orders, batch_size), skipped, None)
    return islice(_without_repeats(orders, batch_size, shared, None), skipped, None)


def _as_they_fall(orders: Iterable[np.ndarray], batch_size: int) -> Iterator[np.ndarray]:
    for order in orders:
        for first in range(0, len(order) - batch_size + 1, batch_size):
            yield order[first : first + batch_size]


def _without_repeats(
    orders: Iterable[np.ndarray], batch_size: int, shared: Shared | None, mixture: Mixture | None
) -> Iterator[np.ndarray]:
    """Batches in which no text, or at least no row of a mixture, stands twice, epoch by epoch."""
    recurring = mixture is not None and not mixture.is_plain
    for order in orders:
        found = 0
        owned = _Owned(shared or {}, recurring)
        for batch in _epoch_without_repeats(order.tolist(), batch_size, owned):
            found += 1
            yield batch
        if not found:  # another shuffle might have one, but who could count on it
            return


class _Owned:
    """What may stand in a batch once: the texts that a row shares with others and, if rows recur, the row itself."""

    def __init__(self, shared: Shared, recurring: bool) -> None:
        self._shared, self._recurring = shared, recurring
        self._nothing: frozenset[int] = frozenset()

    def __getitem__(self, row: int) -> frozenset[int]:
        own = self._shared.get(row, self._nothing)
        return own | {-1 - row} if self._recurring else own


def _epoch_without_repeats(order: Sequence[int], batch_size: int, owned: _Owned) -> Iterator[np.ndarray]:
    """Batches of one epoch in which nothing stands twice, in the rows' order as far as that goes.

    Args:
        order: row numbers. batch_size: rows of a batch. owned: what of a row may stand in a batch once.
    """
    # By the text that they wait for: a batch takes one of them at most, however many there are.
    waiting: dict[int, deque[int]] = {}
    coming = iter(order)
    while True:
        batch: list[int] = []
        texts: set[int] = set()
        for text in list(waiting):
            if len(batch) < batch_size and texts.isdisjoint(owned[waiting[text][0]]):
                batch.append(waiting[text].popleft())
                texts |= owned[batch[-1]]
                if not waiting[text]:
                    del waiting[text]
        while len(batch) < batch_size:
            row = next(coming, None)
            if row is None:
                return
            own = owned[row]
            if texts.isdisjoint(own):
                batch.append(row)
                texts |= own
            else:
                waiting.setdefault(min(texts & own), deque()).append(row)
        yield np.array(batch, dtype=np.int64)


def shared_texts(rows: Sequence[Triplet], starts: np.ndarray | None = None) -> dict[int, frozenset[int]]:
    """The texts of each row that stand in another row too, whatever their role; rows without any are left out.

    Memory holds 8 bytes a text, and the texts that are shared.

    Args:
        rows: of the data.
        starts: (r,) where several triplets count as one row, the first one of each; None where each is a row.
    """
    owners, keys = array("q"), array("Q")
    for number, of_row in _grouped(rows, starts):
        own = {_key(text) for row in of_row for text in (row.anchor, row.positive, *row.negatives)}
        keys.extend(own)
        owners.extend(repeat(number, len(own)))
    _, number_of, counts = np.unique(np.frombuffer(keys, dtype=np.uint64), return_inverse=True, return_counts=True)
    found: dict[int, set[int]] = {}
    for place in np.flatnonzero(counts[number_of] > 1).tolist():
        found.setdefault(owners[place], set()).add(int(number_of[place]))
    return {row: frozenset(texts) for row, texts in found.items()}


def _grouped(rows: Sequence[Triplet], starts: np.ndarray | None) -> Iterator[tuple[int, list[Triplet]]]:
    """Numbered rows, each with its triplets."""
    remaining = iter(rows)
    if starts is None:
        yield from ((number, [row]) for number, row in enumerate(remaining))
        return
    for number, size in enumerate(np.diff(starts, append=len(rows)).tolist()):
        yield number, list(islice(remaining, size))


def draw_positives(starts: np.ndarray, count: int, chosen: np.ndarray, *, seed: int, step: int) -> np.ndarray:
    """One triplet of each row of a batch, which depends on the seed and the step alone.

    Args:
        starts: (r,) the first triplet of each row of the data; the others follow it. count: of all triplets.
        chosen: (b,) row numbers of the batch. seed: of the draws. step: that the batch is of.

    Returns:
        (b,) numbers of triplets.

    Source: FlagEmbedding's training data, of whose positives one is drawn whenever a row's turn comes.
    """
    sizes = np.append(starts, count)[chosen + 1] - starts[chosen]
    places = np.random.default_rng([seed, 4, step]).random(len(chosen)) * sizes
    return starts[chosen] + places.astype(np.int64)


def _key(text: str) -> int:
    return int.from_bytes(hashlib.blake2b(text.encode("utf-8", "surrogatepass"), digest_size=8).digest(), "little")
