"""Rows that are kept out of training, so that none of them is known from it."""

import logging
from collections.abc import Iterator, Mapping, Sequence

import numpy as np

from cft.data.records import Triplet
from cft.data.texts import normalized

log = logging.getLogger(__name__)

# A small file keeps at least about nine tenths of its rows for training.
_LARGEST_SHARE = 10

# A group of rows that belong together is held out only if it has no more rows than twice those asked for.
_LARGEST_GROUP = 2

# With fewer than this share of the rows asked for, groups are told apart by anchors alone.
_ENOUGH = 0.5


def hold_out(
    rows: Sequence[Triplet], count: int, seed: int, sources: Mapping[str, int] | None = None
) -> tuple[np.ndarray, list[Triplet]]:
    """Set rows aside whose anchors and positives stand in no other row, as anchor or as positive.

    Rows that are joined by a common text, or by near-duplicates, are held out together or not at all. Where that leaves
    too few to choose from, as where all rows share a few positives, only the anchors are kept apart.

    Args:
        rows: of all sources, one after the other.
        count: rows to hold out; about a tenth of all, if that is fewer.
        seed: of the choice.
        sources: the rows of each by its name, where rows of each are to be held out: as many of one as of the other,
            but at most about a tenth of its own.

    Returns:
        (n,) ascending numbers of the rows to train on, and the distinct ones of those held out.
    """
    sizes = list(sources.values()) if sources else [len(rows)]
    wanted = _wanted(count, sizes)
    if sources and count:
        for (name, size), share in zip(sources.items(), wanted, strict=True):
            if not share:
                log.warning(
                    "%s: %d rows are too few to hold one out, and nothing scores what is learnt of them", name, size
                )
    if not any(wanted):
        return np.arange(len(rows)), []
    order = np.random.default_rng([seed, 1]).permutation(len(rows))
    texts = _numbered(rows)
    joined = _joined(texts)
    ends = np.cumsum(sizes)
    chosen = [
        _choose_enough(
            joined, texts[:, 0], order[(order >= end - size) & (order < end)], share, of=f" of {name}" if name else ""
        )
        for name, size, end, share in zip(sources or [""], sizes, ends, wanted, strict=True)
        if share
    ]
    held = np.unique(np.concatenate(chosen))
    rest = np.delete(np.arange(len(rows)), held)
    return rest, list(dict.fromkeys(_at(rows, held)))


def _wanted(count: int, sizes: Sequence[int]) -> list[int]:
    """How many rows of each source to hold out: alike, and what small ones cannot give is taken of the larger ones."""
    wanted = [0] * len(sizes)
    left = count
    for place, number in enumerate(sorted(range(len(sizes)), key=lambda number: sizes[number])):
        wanted[number] = min(left // (len(sizes) - place), sizes[number] // _LARGEST_SHARE)
        left -= wanted[number]
    return wanted


def _choose_enough(joined: np.ndarray, anchors: np.ndarray, order: np.ndarray, count: int, *, of: str) -> np.ndarray:
    """(m,) ascending numbers of rows to hold out: whole groups or, where too few can be, all rows of some anchors."""
    held = _choose(joined, order, count)
    if len(held) < _ENOUGH * count:
        by_anchor = _choose(anchors, order, count)
        if len(by_anchor) > len(held):
            held = by_anchor
            log.warning(
                "most rows%s share their positives with other rows: the %d held-out rows have anchors of their own, "
                "but their positives stand in training too",
                *(of, len(held)),
            )
    if not len(held):
        log.warning("no rows%s are held out: too many share one anchor", of)
    return held


def halves(rows: Sequence[Triplet]) -> tuple[list[Triplet], list[Triplet]]:
    """Rows in two parts of about one size; those that are joined by a common text, or by near-duplicates, in one."""
    groups: dict[int, list[Triplet]] = {}
    if rows:
        for row, group in zip(rows, _joined(_numbered(rows)).tolist(), strict=True):
            groups.setdefault(group, []).append(row)
    one: list[Triplet] = []
    other: list[Triplet] = []
    for group in groups.values():
        (one if len(one) <= len(other) else other).extend(group)
    return one, other


def _at(rows: Sequence[Triplet], numbers: np.ndarray) -> Iterator[Triplet]:
    return (rows[int(number)] for number in numbers)


def _numbered(rows: Sequence[Triplet]) -> np.ndarray:
    """(n, 2) a number for every anchor and positive, equal for near-duplicates, below twice the number of rows."""
    pairs = (hash(normalized(text)) for row in rows for text in (row.anchor, row.positive))
    hashes = np.fromiter(pairs, dtype=np.int64, count=2 * len(rows))
    return np.unique(hashes, return_inverse=True)[1].reshape(-1, 2)


def _joined(texts: np.ndarray) -> np.ndarray:
    """(n,) a group for every row; rows with a common text, and whatever is joined through others, have the same one."""
    from scipy.sparse import coo_array
    from scipy.sparse.csgraph import connected_components

    size = int(texts.max()) + 1
    graph = coo_array((np.ones(len(texts), dtype=np.int8), (texts[:, 0], texts[:, 1])), shape=(size, size))
    return connected_components(graph, directed=False)[1][texts[:, 0]]


def _choose(groups: np.ndarray, order: np.ndarray, count: int) -> np.ndarray:
    """(m,) ascending numbers of the rows of whole groups, in the order of their first rows, until there are enough."""
    by_group = np.argsort(groups, kind="stable")
    ends = np.cumsum(np.bincount(groups))
    sizes = np.diff(ends, prepend=0)
    held: list[np.ndarray] = []
    taken: set[int] = set()
    found = 0
    for row in order:
        group = int(groups[row])
        if found >= count:
            break
        if group in taken or sizes[group] > _LARGEST_GROUP * count:
            continue
        taken.add(group)
        held.append(by_group[ends[group] - sizes[group] : ends[group]])
        found += int(sizes[group])
    return np.sort(np.concatenate(held)) if held else np.empty(0, dtype=np.int64)
