"""Which rows make a batch: a shuffle an epoch, with or without room for one text twice in a batch."""

import hashlib
import itertools
from array import array
from collections import deque
from collections.abc import Iterator, Mapping, Sequence
from itertools import islice, repeat

import numpy as np

from cft.data.records import Triplet

# Texts of a row that stand in another row too, as numbers; rows without any are left out.
Shared = Mapping[int, frozenset[int]]


def batches(
    count: int, batch_size: int, *, seed: int, start: int, stop: int, shared: Shared | None = None
) -> Iterator[np.ndarray]:
    """Row numbers of the batches of steps `start` to `stop`, which depend on the seed and the step alone.

    Each epoch is a new shuffle; the rows behind its last full batch are dropped. With `shared`, a row of which a text
    stands in the batch already waits for the next batch, ahead of those that have not come yet.

    Args:
        count: rows. batch_size: rows of a batch. seed: of the shuffles. start, stop: steps.
        shared: what `shared_texts` gives, for batches in which no text stands twice; None for batches as they fall.

    Yields:
        (batch_size,) row numbers below `count`.
    """
    if shared is None:
        epoch, skipped = divmod(start, count // batch_size)
        yield from islice(_as_they_fall(count, batch_size, seed, epoch), skipped, skipped + stop - start)
    else:
        yield from islice(_without_repeats(count, batch_size, seed, shared), start, stop)


def count_batches(count: int, batch_size: int, *, seed: int, epochs: int, most: int, shared: Shared) -> int:
    """How many batches without repeated texts so many epochs have, counted up to `most`."""
    return sum(1 for _ in islice(_without_repeats(count, batch_size, seed, shared, epochs), most))


def _shuffled(count: int, seed: int, epoch: int) -> np.ndarray:
    return np.random.default_rng([seed, 0, epoch]).permutation(count)


def _as_they_fall(count: int, batch_size: int, seed: int, epoch: int) -> Iterator[np.ndarray]:
    while True:
        order = _shuffled(count, seed, epoch)
        for first in range(0, count - batch_size + 1, batch_size):
            yield order[first : first + batch_size]
        epoch += 1


def _without_repeats(
    count: int, batch_size: int, seed: int, shared: Shared, epochs: int | None = None
) -> Iterator[np.ndarray]:
    for epoch in range(epochs) if epochs is not None else itertools.count():
        found = 0
        for batch in _epoch_without_repeats(_shuffled(count, seed, epoch).tolist(), batch_size, shared):
            found += 1
            yield batch
        if not found:  # another shuffle might have one, but who could count on it
            return


def _epoch_without_repeats(order: Sequence[int], batch_size: int, shared: Shared) -> Iterator[np.ndarray]:
    """Batches of one epoch in which no text stands twice, in the rows' order as far as that goes.

    Args:
        order: row numbers. batch_size: rows of a batch. shared: what `shared_texts` gives.
    """
    # By the text that they wait for: a batch takes one of them at most, however many there are.
    waiting: dict[int, deque[int]] = {}
    coming = iter(order)
    nothing: frozenset[int] = frozenset()
    while True:
        batch: list[int] = []
        texts: set[int] = set()
        for text in list(waiting):
            if len(batch) < batch_size and texts.isdisjoint(shared[waiting[text][0]]):
                batch.append(waiting[text].popleft())
                texts |= shared[batch[-1]]
                if not waiting[text]:
                    del waiting[text]
        while len(batch) < batch_size:
            row = next(coming, None)
            if row is None:
                return
            own = shared.get(row, nothing)
            if texts.isdisjoint(own):
                batch.append(row)
                texts |= own
            else:
                waiting.setdefault(min(texts & own), deque()).append(row)
        yield np.array(batch, dtype=np.int64)


def shared_texts(rows: Sequence[Triplet]) -> dict[int, frozenset[int]]:
    """The texts of each row that stand in another row too, whatever their role; rows without any are left out.

    Memory holds 8 bytes a text, and the texts that are shared.
    """
    owners, keys = array("q"), array("Q")
    for number, row in enumerate(rows):
        own = {_key(text) for text in (row.anchor, row.positive, *row.negatives)}
        keys.extend(own)
        owners.extend(repeat(number, len(own)))
    _, number_of, counts = np.unique(np.frombuffer(keys, dtype=np.uint64), return_inverse=True, return_counts=True)
    found: dict[int, set[int]] = {}
    for place in np.flatnonzero(counts[number_of] > 1).tolist():
        found.setdefault(owners[place], set()).add(int(number_of[place]))
    return {row: frozenset(texts) for row, texts in found.items()}


def _key(text: str) -> int:
    return int.from_bytes(hashlib.blake2b(text.encode("utf-8", "surrogatepass"), digest_size=8).digest(), "little")
