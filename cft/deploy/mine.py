"""Triplets out of pairs: each anchor gets hard negatives out of a file of documents, found by an embedder."""

import contextlib
import itertools
import json
import sys
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from enum import Enum
from pathlib import Path
from typing import Annotated

import numpy as np
from tqdm import tqdm

from cft.config.command_line import Rules
from cft.config.schema import Role
from cft.data.docstrings import training_rows
from cft.data.files import Skipped, TripletColumns, stream_triplet_rows
from cft.data.records import Triplet
from cft.deploy import corpora
from cft.deploy.load import TextFileOptions, load_embedder, require_columns
from cft.deploy.mining import Mined, MiningRules, Sampling, search_negatives
from cft.job.plan import DATA_SEED
from cft.system.errors import UserError
from cft.system.files import atomic_write, require_output, user_path
from cft.system.overrides import override, overrides
from cft.system.tables import Row, as_text
from cft.system.text import counted, shorten


class PairSource(str, Enum):
    """Where pairs come from."""

    files = "files"
    docstrings = "docstrings"


_EXAMPLES, _EXAMPLE_LENGTH = 5, 90
_MOST_LOOKED_AT = 100  # of the nearest documents, where range_max= says nothing


@dataclass(frozen=True, kw_only=True)
class MineOptions(TextFileOptions):
    """Find hard negatives for pairs: documents that an embedder puts near an anchor and that are not its positive.

    The rules are those of sentence-transformers' mine_hard_negatives. OUT is a file for cft.run: data.train=OUT.
    """

    data: Annotated[PairSource, "where pairs are: in data.train, or in the docstrings of installed packages"] = (
        PairSource.files
    )
    train: Annotated[str, "a file of pairs: anchors (queries) and their positives", Rules(called="data.train")] = ""
    rows: Annotated[
        int | None,
        "write the first so many rows alone; the answers of all rows are read, and are no negatives of their anchors",
        Rules(called="data.rows"),
    ] = None
    out: Annotated[str, "a .jsonl for sent0, sent1 and hard_neg, the list of the negatives"]
    corpus: Annotated[
        str, "the documents: a .txt of one text a line, .csv, .tsv, .jsonl or .parquet; none: positives"
    ] = ""
    anchor_column: Annotated[str, "column of the anchors", Rules(called="data.anchor_column")] = "sent0"
    positive_column: Annotated[str, "column of their positives", Rules(called="data.positive_column")] = "sent1"
    num_negatives: Annotated[int, "negatives a row, at most"] = 1
    range_min: Annotated[int, "pass over so many of the nearest that pass the other rules", Rules(least=0)] = 0
    range_max: Annotated[int | None, f"look at so many of the nearest [{_MOST_LOOKED_AT}, or all]"] = None
    absolute_margin: Annotated[float | None, "a negative's cosine is lower than its positive's by this, at least"] = (
        None
    )
    relative_margin: Annotated[float | None, "the same as a share of the positive's cosine; null for none"] = 0.05
    max_score: Annotated[float | None, "a negative's cosine is at most this"] = None
    min_score: Annotated[float | None, "a negative's cosine is at least this"] = None
    sampling_strategy: Annotated[Sampling, "the nearest of those that are left, or any of them"] = Sampling.top
    seed: Annotated[int, "of random sampling", Rules(least=0)] = 0
    overwrite: Annotated[bool, "replace an out= that exists"] = False
    vector_cache_gb: Annotated[int, "disk for vectors of all files, in gigabytes; 0 keeps none", Rules(least=0)] = 2

    def __post_init__(self) -> None:
        """Refuse what cannot be meant."""
        super().__post_init__()
        if self.data is PairSource.files and not self.train:
            raise UserError("data.train= is missing: a file of pairs; data=docstrings needs none")
        if self.data is PairSource.docstrings and self.train:
            raise UserError(
                f"{override('data.train', self.train)} would not be read with data=docstrings; leave one out"
            )
        for name, key in (("anchor_column", "data.anchor_column"), ("positive_column", "data.positive_column")):
            value = getattr(self, name)
            if self.data is PairSource.docstrings and value != getattr(MineOptions, name):
                raise UserError(f"{override(key, value)} would not be read with data=docstrings; leave one out")
        if self.seed and self.sampling_strategy is Sampling.top:
            raise UserError(f"seed={self.seed} would not be used: add sampling_strategy=random")
        require_columns(self.corpus, column=self.column)
        if self.range_max is not None and self.range_max - self.range_min < self.num_negatives:
            raise UserError(
                f"num_negatives={self.num_negatives}: between range_min={self.range_min} and "
                f"range_max={self.range_max} there are {max(0, self.range_max - self.range_min)} ranks"
            )
        for name in ("absolute_margin", "relative_margin"):
            value = getattr(self, name)
            if value is not None and not 0 <= value <= 2:
                raise UserError(f"{override(name, value)}: must be 0 to 2, or null for none")
        if self.min_score is not None and self.max_score is not None and self.min_score > self.max_score:
            raise UserError(f"min_score={self.min_score:g} is above max_score={self.max_score:g}: nothing is between")


@dataclass(frozen=True)
class _Pairs:
    """Pairs, and the documents among which their negatives are looked for."""

    rows: list[list[Triplet]]  # that are written, a triplet for each positive
    positives: dict[str, list[str]]  # of every distinct anchor of theirs, its distinct positives
    known: dict[str, dict[str, None]]  # the same in all rows of the file: what is no negative of the anchor
    corpus: corpora.Corpus
    others: corpora.Corpus  # positives that are not in the corpus: negatives of other anchors, too
    numbers: dict[str, int]  # documents by their text, of those that are an anchor or a positive
    texts: int  # distinct documents

    def document(self, number: int) -> str:
        """The text of a document."""
        inside = len(self.corpus.distinct)
        if number < inside:
            return self.corpus.text(int(self.corpus.distinct[number]))
        return self.others.text(number - inside)


def mine_file(options: MineOptions) -> str:
    """Write triplets; returns what was found, in words.

    Raises:
        UserError: naming a file, row or rule that cannot be used, before a model is loaded.
    """
    out = user_path(options.out)
    named = [user_path(name) for name in (options.train, options.corpus) if name]
    require_output(out, (".jsonl",), overwrite=options.overwrite, read=named)
    with contextlib.ExitStack() as stack:
        pairs = _read(options, stack)
        rules = _rules(options, pairs.texts)
        mined = _search(pairs, rules, options, stack)
        of_anchor = dict(zip(pairs.positives, range(len(pairs.positives)), strict=True))
        written = [row for row in pairs.rows if len(mined.negatives[of_anchor[row[0].anchor]])]
        if not written:
            raise UserError(f"no document passes the rules for any row ({_removed(mined)}); loosen them")
        with atomic_write(out) as scratch, scratch.open("w", encoding="utf-8") as stream:
            for row in written:
                anchor, positives = row[0].anchor, [triplet.positive for triplet in row]
                negatives = [pairs.document(int(number)) for number in mined.negatives[of_anchor[anchor]]]
                # What was a list stays one: training may draw from it.
                answer = positives if len(positives) > 1 else positives[0]
                entry = {"sent0": anchor, "sent1": answer, "hard_neg": negatives}
                stream.write(json.dumps(entry, ensure_ascii=False) + "\n")
        return _report(pairs, mined, of_anchor, out)


def _read(options: MineOptions, stack: contextlib.ExitStack) -> _Pairs:
    read = _pairs(options)
    rows = list(itertools.islice(read, options.rows))
    positives: dict[str, dict[str, None]] = {}
    for triplet in itertools.chain.from_iterable(rows):
        positives.setdefault(triplet.anchor, {})[triplet.positive] = None
    known = {anchor: dict(found) for anchor, found in positives.items()}
    for triplet in itertools.chain.from_iterable(read):  # an answer is one in whichever row it stands
        if triplet.anchor in known:
            known[triplet.anchor][triplet.positive] = None
    answers = list(dict.fromkeys(triplet.positive for row in rows for triplet in row))
    corpus = corpora.of_file(user_path(options.corpus), options) if options.corpus else _of_texts(answers)
    stack.callback(corpus.close)
    named = {*positives}.union(*known.values())
    numbers: dict[str, int] = {}
    for place, number in enumerate(corpus.distinct.tolist()):
        text = corpus.text(number)
        if text in named:
            numbers[text] = place
    missing = [text for text in answers if text not in numbers]
    inside = len(corpus.distinct)
    numbers |= {text: inside + place for place, text in enumerate(missing)}
    others = _of_texts(missing)
    stack.callback(others.close)
    every = {anchor: list(found) for anchor, found in positives.items()}
    return _Pairs(rows, every, known, corpus, others, numbers, inside + len(missing))


def _pairs(options: MineOptions) -> Iterator[list[Triplet]]:
    """The rows, each a list of its positives', in the order in which `cft.run` takes the first data.rows of them."""
    if options.data is PairSource.docstrings:
        yield from ([row] for row in training_rows(None, DATA_SEED))
        return
    columns = TripletColumns(options.anchor_column, options.positive_column, (), options.on_bad_row)
    for row in stream_triplet_rows(user_path(options.train), columns):
        if isinstance(row, Skipped):
            sys.stderr.write(f"skipped {row.where}: {row.reason}\n")
        else:
            yield row


def _of_texts(texts: Sequence[str]) -> corpora.Corpus:
    return corpora.Corpus(enumerate(texts, start=1))


def _rules(options: MineOptions, documents: int) -> MiningRules:
    """The rules of the options.

    Raises:
        UserError: if there are fewer documents than ranks are asked for.
    """
    last_rank = options.range_max if options.range_max is not None else options.range_min + options.num_negatives
    if documents < last_rank:
        beside = "range_min" if documents >= options.num_negatives else "num_negatives"
        name = "range_max" if options.range_max is not None else beside
        raise UserError(
            f"{override(name, getattr(options, name))}: there are {documents:,} distinct documents, and ranks up to "
            f"{last_rank} are to be looked at; lower it, or bring more documents"
        )
    return MiningRules(
        num_negatives=options.num_negatives,
        range_min=options.range_min,
        range_max=options.range_max or options.range_min + max(_MOST_LOOKED_AT, options.num_negatives),
        absolute_margin=options.absolute_margin,
        relative_margin=options.relative_margin,
        max_score=options.max_score,
        min_score=options.min_score,
        sampling_strategy=options.sampling_strategy,
        seed=options.seed,
    )


def _search(pairs: _Pairs, rules: MiningRules, options: MineOptions, stack: contextlib.ExitStack) -> Mined:
    """Embed anchors and documents, unless their vectors are kept, and choose every anchor's negatives."""
    embedder = load_embedder(**options.embedder)
    of_documents, of_queries = embedder.in_role(Role.document), embedder.in_role(Role.query)
    cached = (stack, options.vector_cache_gb)
    parts = [(pairs.corpus, corpora.vectors_of(of_documents, pairs.corpus, *cached))]
    if len(pairs.others.distinct):
        parts.append((pairs.others, corpora.vectors_of(of_documents, pairs.others, *cached)))
    anchors = _of_texts(list(pairs.positives))
    stack.callback(anchors.close)
    queries = corpora.vectors_of(of_queries, anchors, *cached)
    own = [_own(pairs, anchor) for anchor in pairs.positives]
    farthest = _farthest(pairs, queries, parts)

    def blocks() -> Iterator[np.ndarray]:
        for corpus, vectors in parts:
            yield from corpora.distinct_vectors(corpus, vectors)

    with tqdm(total=len(own), desc="mining", unit="anchor") as bar:
        return search_negatives(queries, blocks, own, farthest, rules, on_queries=bar.update)


def _own(pairs: _Pairs, anchor: str) -> list[int]:
    """Documents that are no negatives of an anchor: its positives in any row, and the anchor itself."""
    texts = dict.fromkeys([*pairs.known[anchor], anchor])
    return [pairs.numbers[text] for text in texts if text in pairs.numbers]


def _farthest(pairs: _Pairs, queries: np.ndarray, parts: Sequence[tuple[corpora.Corpus, np.ndarray]]) -> np.ndarray:
    """(anchors,) cosine of each anchor with the farthest of its positives."""
    inside = len(pairs.corpus.distinct)

    def vector(number: int) -> np.ndarray:
        if number < inside:
            return parts[0][1][pairs.corpus.distinct[number]]
        return parts[1][1][number - inside]

    found = np.empty(len(pairs.positives), dtype=np.float32)
    for row, positives in enumerate(pairs.positives.values()):
        found[row] = min(float(queries[row] @ vector(pairs.numbers[text])) for text in positives)
    return found


def _removed(mined: Mined) -> str:
    return ", ".join(f"{name} {count:,}" for name, count in mined.removed.items()) or "no rule took any out"


def _report(pairs: _Pairs, mined: Mined, of_anchor: Mapping[str, int], out: Path) -> str:
    """How many rows have how many negatives, what the rules took out, and some rows."""
    counts = Counter(len(mined.negatives[of_anchor[row[0].anchor]]) for row in pairs.rows)
    table: list[Row] = [("negatives", "rows"), *((str(many), f"{counts[many]:,}") for many in sorted(counts))]
    left = f"; {counted(counts[0], 'row')} without any are not written" if counts[0] else ""
    lines = [
        as_text(table),
        "",
        f"of {mined.looked_at:,} documents near {counted(len(of_anchor), 'anchor')}, taken out: {_removed(mined)}",
        "",
        *_examples(pairs, mined, of_anchor),
        f"{counted(len(pairs.rows) - counts[0], 'row')}: {out}{left}",
        "next: python -m cft.run " + overrides({"data": "files", "data.train": str(out)}),
    ]
    return "\n".join(lines)


def _examples(pairs: _Pairs, mined: Mined, of_anchor: Mapping[str, int]) -> Iterator[str]:
    """Rows at even distances, with their negatives."""
    rows = [row for row in pairs.rows if len(mined.negatives[of_anchor[row[0].anchor]])]
    for row in rows[:: max(1, len(rows) // _EXAMPLES)][:_EXAMPLES]:
        place = of_anchor[row[0].anchor]
        yield f"anchor    {shorten(row[0].anchor, _EXAMPLE_LENGTH)}"
        for triplet in row:
            yield f"positive  {shorten(triplet.positive, _EXAMPLE_LENGTH)}"
        for number, cosine in zip(mined.negatives[place], mined.cosines[place], strict=True):
            yield f"negative  {shorten(pairs.document(int(number)), _EXAMPLE_LENGTH)} ({cosine:.3f})"
        yield ""
