"""Texts of the test sets that stand in the training data: counted once, kept beside the scores, and said.

    FOLDER/overlap.json    by set, how many pairs, queries and documents there are and how many of them were trained on

Texts that differ in case, blanks or punctuation alone are equal. A document is its title and text in one, or its text
alone.
"""

import hashlib
import logging
from collections.abc import Iterable
from pathlib import Path

import numpy as np

from cft.data.retrieval import RetrievalSet
from cft.data.texts import normalized
from cft.data.training_data import TrainingData
from cft.evaluation.pairs import Arrays, earlier_of
from cft.system.files import read_json, write_record

log = logging.getLogger(__name__)

FILE_NAME = "overlap.json"

# Of a set, numbers by kind: "pairs" and "pairs_seen", or "queries", "queries_seen", "documents" and "documents_seen".
Counts = dict[str, dict[str, int]]

_ALIKE = "case, blanks and punctuation aside"


def report(
    folder: Path, pairs: Arrays, retrieval: dict[str, RetrievalSet], data: TrainingData, *, adapter: str | None = None
) -> Counts:
    """Say what an embedder's training data share with the sets that it is scored on, and keep it beside the scores.

    Args:
        folder: of the scores, which is named by its data: what is counted there already is not counted again, unless
            the texts of a first stage are not counted in.
        pairs: of sets of scored pairs, how many sentences of each pair were trained on (`pairs.describe`).
        retrieval: sets of queries and documents. data: of the training; its held-out rows do not count.
        adapter: what the training went on from, if nothing is known of the texts that this had learnt from.

    Raises:
        UserError: if the record that is there is damaged.
    """
    path, earlier = folder / FILE_NAME, earlier_of(data)
    record = read_json(path) if path.exists() else {}
    if record and earlier in (None, record.get("earlier")):
        counts: Counts = record["sets"]
    else:
        counts = {name: {"pairs": len(seen), "pairs_seen": int(np.sum(seen > 0))} for name, seen in pairs.items()}
        counts |= count_retrieval(retrieval, data) if retrieval else {}
        write_record(path, {"sets": counts} | ({"earlier": earlier} if earlier else {}))
    beside = f"; what {adapter} had been trained on is not known" if adapter else ""
    shared = {name: of_set for name, of_set in counts.items() if any(map(of_set.get, _seen_kinds(of_set)))}
    if shared:
        listed = "; ".join(f"{name}: {_sentence(of_set)}" for name, of_set in shared.items())
        log.warning("the training data hold texts of the test sets (%s): %s%s", _ALIKE, listed, beside)
    elif counts:
        log.info("no text of %s stands in the training data (%s)%s", ", ".join(counts), _ALIKE, beside)
    return counts


def count_retrieval(sets: dict[str, RetrievalSet], data: TrainingData) -> Counts:
    """Queries and documents that are anchors, positives or negatives of a training, by eight bytes a text."""
    trained = np.unique(_digests(data.texts()))
    return {
        name: {
            "queries": len(of_set.queries),
            "queries_seen": int(np.isin(_digests(of_set.queries), trained).sum()),
            "documents": len(of_set.documents),
            "documents_seen": int(_documents_seen(of_set, trained).sum()),
        }
        for name, of_set in sets.items()
    }


def _documents_seen(of_set: RetrievalSet, trained: np.ndarray) -> np.ndarray:
    """(documents,) whether each was trained on, with its title or without."""
    seen = np.isin(_digests(of_set.documents), trained)
    return seen | np.isin(_digests(of_set.untitled), trained) if of_set.title_lengths else seen


def _digests(texts: Iterable[str]) -> np.ndarray:
    """64 bits of each text (n,), the same for equal texts; among millions, others do not share them."""
    hashed = (hashlib.blake2b(normalized(text).encode(), digest_size=8).digest() for text in texts)
    return np.fromiter((int.from_bytes(each, "little") for each in hashed), dtype=np.uint64)


def _seen_kinds(of_set: dict[str, int]) -> list[str]:
    return [kind for kind in of_set if kind.endswith("_seen")]


def _sentence(of_set: dict[str, int]) -> str:
    parts = []
    for kind in _seen_kinds(of_set):
        of = kind.removesuffix("_seen")
        parts.append(f"{of_set[kind]:,} of {of_set[of]:,} {of}")
    return " and ".join(parts)
