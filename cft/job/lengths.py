"""Texts that are longer than the embedder reads: how many there are, and what is lost with their ends."""

import functools
import logging
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass

from cft.config.schema import Prompts, Role
from cft.data.records import Triplet
from cft.model.embedder import Embedder

log = logging.getLogger(__name__)

# Triplets that are looked at before a training, at even distances over the data.
_SAMPLE = 2000

_Prompted = tuple[Embedder, str]  # a text, and the embedder under the prompt that it has


@dataclass(frozen=True)
class Cut:
    """Texts of a training, or of a sample of it, that are longer than `model.max_length`."""

    texts: int  # that are cut
    of: int  # distinct texts that were looked at
    equal: int  # triplets in which a cut made the positive or a negative equal to another text of the row
    triplets: int  # that were looked at
    max_length: int  # tokens


def find_cut_texts(embedder: Embedder, texts: Mapping[Role, Iterable[str]], what: str, *, quiet: bool) -> int:
    """Count the texts to be scored that are too long to be read whole, and say so unless it is to be quiet."""
    by_role = {role: embedder.in_role(role) for role in texts}
    count, of = _count([(by_role[role], text) for role, of_role in texts.items() for text in of_role])
    if count and not quiet:
        log.warning("%s: %s", what, _sentence(count, of, embedder.contract.max_length))
    return count


def find_cut(
    embedder: Embedder, triplets: Sequence[Triplet], prompts_of: Callable[[int], Prompts] | None = None
) -> Cut:
    """Look for texts that are too long in a training, in 2,000 of its triplets at most, and say so if there are some.

    A text is as long as it is under the prompt of its role.

    Args:
        embedder: under the prompts of training.
        triplets: to train on.
        prompts_of: the prompts of a triplet, by its number; None for the embedder's.
    """
    count = min(len(triplets), _SAMPLE)
    under = functools.cache(embedder.with_template)
    rows: list[list[_Prompted]] = []
    for number in (number * len(triplets) // count for number in range(count)):
        prompts = prompts_of(number) if prompts_of else embedder.contract.prompts
        triplet, query, document = triplets[number], under(prompts.of(Role.query)), under(prompts.of(Role.document))
        rows.append([(query, triplet.anchor)] + [(document, each) for each in (triplet.positive, *triplet.negatives)])
    long, of = _count([text for row in rows for text in row])
    cut = Cut(long, of, _made_equal(rows) if long else 0, count, embedder.contract.max_length)
    if cut.texts:
        sampled = "" if count == len(triplets) else f" of {count:,} triplets out of {len(triplets):,}"
        sentence = _sentence(cut.texts, cut.of, cut.max_length)
        log.warning("training data%s: %s%s", sampled, sentence, _by_role(rows))
    if cut.equal:
        log.warning(
            "in %d of %d triplets two different texts are equal after the cut: the model is asked to tell apart what "
            "it reads as one",
            cut.equal,
            cut.triplets,
        )
    return cut


def _count(texts: Sequence[_Prompted]) -> tuple[int, int]:
    """How many distinct texts are cut, and of how many."""
    by_prompt: dict[Embedder, list[str]] = {}
    for embedder, text in dict.fromkeys(texts):
        by_prompt.setdefault(embedder, []).append(text)
    cut = sum(embedder.count_cut(of_prompt) for embedder, of_prompt in by_prompt.items())
    return cut, sum(map(len, by_prompt.values()))


def _by_role(rows: Sequence[Sequence[_Prompted]]) -> str:
    """Whose ends are lost: where anchors are short, a share of all texts says too little of the others."""
    roles = ([row[0] for row in rows], [text for row in rows for text in row[1:]])
    counts = ["{:,} of {:,}".format(*_count(texts)) for texts in roles]
    return f". Of anchors it is {counts[0]}, of positives and negatives {counts[1]}"


def _sentence(count: int, of: int, max_length: int) -> str:
    return (
        f"{count:,} of {of:,} texts ({count / of:.1%}) are longer than model.max_length={max_length} tokens; what is "
        "behind is not read. Raise model.max_length to read more"
    )


def _made_equal(rows: Sequence[Sequence[_Prompted]]) -> int:
    """Triplets in which different texts have the same tokens."""
    count = 0
    for row in rows:
        texts = list(dict.fromkeys(row))
        if _count(texts)[0] > 1:
            count += len({ids for embedder, text in texts for ids in embedder.tokenize([text])}) < len(texts)
    return count
