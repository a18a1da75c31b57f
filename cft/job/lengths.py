"""Texts that are longer than the embedder reads: how many there are, and what is lost with their ends."""

import logging
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from cft.data.records import Triplet
from cft.model.embedder import Embedder

log = logging.getLogger(__name__)

# Triplets that are looked at before a training, at even distances over the data.
_SAMPLE = 2000


@dataclass(frozen=True)
class Cut:
    """Texts of a training, or of a sample of it, that are longer than `model.max_length`."""

    texts: int  # that are cut
    of: int  # distinct texts that were looked at
    equal: int  # triplets in which a cut made the positive or a negative equal to another text of the row
    triplets: int  # that were looked at
    max_length: int  # tokens


def find_cut_texts(embedder: Embedder, texts: Iterable[str], what: str, *, quiet: bool) -> int:
    """Count the texts to be scored that are too long to be read whole, and say so unless it is to be quiet."""
    distinct = list(dict.fromkeys(texts))
    count = embedder.count_cut(distinct)
    if count and not quiet:
        log.warning("%s: %s", what, _sentence(count, len(distinct), embedder.contract.max_length))
    return count


def find_cut(embedder: Embedder, triplets: Sequence[Triplet]) -> Cut:
    """Look for texts that are too long in a training, in 2,000 of its triplets at most, and say so if there are some.

    Args:
        embedder: under the prompt of training. triplets: to train on.
    """
    count = min(len(triplets), _SAMPLE)
    sample = [triplets[number * len(triplets) // count] for number in range(count)]
    texts = list(dict.fromkeys(text for row in sample for text in (row.anchor, row.positive, *row.negatives)))
    long = embedder.count_cut(texts)
    equal = _made_equal(embedder, sample) if long else 0
    cut = Cut(long, len(texts), equal, count, embedder.contract.max_length)
    if cut.texts:
        of = "" if count == len(triplets) else f" of {count:,} triplets out of {len(triplets):,}"
        roles = _by_role(embedder, sample)
        log.warning("training data%s: %s%s", of, _sentence(cut.texts, cut.of, cut.max_length), roles)
    if cut.equal:
        log.warning(
            "in %d of %d triplets two different texts are equal after the cut: the model is asked to tell apart what "
            "it reads as one",
            cut.equal,
            cut.triplets,
        )
    return cut


def _by_role(embedder: Embedder, triplets: Sequence[Triplet]) -> str:
    """Whose ends are lost: where anchors are short, a share of all texts says too little of the others."""
    anchors = list(dict.fromkeys(row.anchor for row in triplets))
    others = list(dict.fromkeys(text for row in triplets for text in (row.positive, *row.negatives)))
    counts = [f"{embedder.count_cut(texts):,} of {len(texts):,}" for texts in (anchors, others)]
    return f". Of anchors it is {counts[0]}, of positives and negatives {counts[1]}"


def _sentence(count: int, of: int, max_length: int) -> str:
    return (
        f"{count:,} of {of:,} texts ({count / of:.1%}) are longer than model.max_length={max_length} tokens; what is "
        "behind is not read. Raise model.max_length to read more"
    )


def _made_equal(embedder: Embedder, triplets: Sequence[Triplet]) -> int:
    """Triplets in which different texts have the same tokens."""
    count = 0
    for row in triplets:
        texts = list(dict.fromkeys((row.anchor, row.positive, *row.negatives)))
        if embedder.count_cut(texts) > 1:
            count += len(set(embedder.tokenize(texts))) < len(texts)
    return count
