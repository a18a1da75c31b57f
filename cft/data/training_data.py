"""Training triplets and development data: loaded, shuffled, split and named by content."""

import glob
import itertools
import logging
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from cft.config.schema import DataSettings, DataSource, Prompts, TrainFile
from cft.data import docstrings
from cft.data.arrow_cache import Corpus, Rows, open_corpus
from cft.data.delimited import sign_of
from cft.data.files import (
    BadRows,
    Skipped,
    TripletColumns,
    apart,
    stream_scored_pairs,
    stream_triplet_rows,
    warn_of_skipped,
)
from cft.data.formats import log_note
from cft.data.holdout import halves, hold_out
from cft.data.mixture import Mixture, plain, shares_of
from cft.data.portrait import Painter, Portrait, warnings_of_pairs
from cft.data.records import ScoredPair, Triplet, content_digest, noun_of, require_rankable
from cft.data.sampling import draw_positives, shared_texts
from cft.data.scored import read_scored, stream_scored
from cft.data.sts import DEV_SET, load_hub_set
from cft.system.errors import UserError
from cft.system.files import user_path
from cft.system.hub import OFFLINE_HINT, hub_answers
from cft.system.overrides import override
from cft.system.text import printable

log = logging.getLogger(__name__)

NLI_REPOSITORY = "princeton-nlp/datasets-for-simcse"
NLI_FILE = "nli_for_simcse.csv"

# A file, and the columns that are read of it.
_File = tuple[Path, tuple[str, ...]]

# Rows by which it is said whether rows have hard negatives.
_TOLD_BY = 10_000

# Triplets, of each part of the data, whose negatives are counted before the first step.
_COUNTED = 10_000


@dataclass(frozen=True)
class Part:
    """The rows to train on of one entry of data.train, and what they have for themselves."""

    name: str  # its file or pattern, without folders
    rows: int  # that are trained on
    share: float  # of the batches, or of each batch's rows
    query: str | None = None  # words around its anchors; None: the job's
    document: str | None = None  # words around its positives and negatives; None: the job's
    loss: dict[str, Any] = field(default_factory=dict)  # settings of the loss in place of the job's

    def prompts(self, others: Prompts) -> Prompts:
        """The words around its texts, where `others` are the job's."""
        query, document = self.query, self.document
        return Prompts(
            others.text, others.query if query is None else query, others.document if document is None else document
        )


@dataclass(frozen=True)
class TrainingData:
    """Triplets to train on, and what evaluates the training while it runs."""

    triplets: Sequence[Triplet]  # to train on, in memory or on disk
    holdout: list[Triplet]  # kept out of training
    dev: list[ScoredPair]  # development pairs, perhaps none
    content: str  # digest of all three
    skipped: int  # how many bad rows were left out
    portraits: dict[str, Portrait] = field(default_factory=dict)  # what the rows are like, by file
    parts: tuple[Part, ...] = ()  # entries of data.train that are told apart, in the order of their rows; usually none
    scored: tuple[ScoredPair, ...] = ()  # pairs to train on beside the triplets
    by_part: bool = False  # whether a batch has rows of one part only
    # the parts that each held-out row is of, by name, where parts are told apart: usually one
    holdout_parts: Mapping[Triplet, frozenset[str]] = field(default_factory=dict, compare=False)
    # held-out rows that watch the training, where those of `holdout` are kept for its result alone; None: the same ones
    watching: list[Triplet] | None = None
    # (rows,) where one positive of each row is drawn at a time, the row's first triplet, which the others follow; None
    # where each triplet is a row
    starts: np.ndarray | None = field(default=None, compare=False)
    earlier: "TrainingData | None" = field(default=None, compare=False)  # what a first stage trained on

    @property
    def is_scored_alone(self) -> bool:
        """Whether there are scored pairs alone, and no triplets."""
        return bool(self.scored) and not self.triplets

    @property
    def rows(self) -> int:
        """Rows that batches are made of."""
        if self.is_scored_alone:
            return len(self.scored)
        return len(self.triplets) if self.starts is None else len(self.starts)

    @cached_property
    def measured(self) -> Sequence[Triplet]:
        """Rows whose texts are measured before a training: triplets or, where there are none, scored pairs as such."""
        if not self.is_scored_alone:
            return self.triplets
        return [Triplet(pair.sentence1, pair.sentence2, ()) for pair in self.scored]

    @property
    def noun(self) -> str:
        """What the rows are called."""
        return "scored pairs" if self.is_scored_alone else noun_of(itertools.islice(self.triplets, _TOLD_BY))

    def triplets_of(self, chosen: np.ndarray, *, seed: int, step: int) -> np.ndarray:
        """(b,) numbers of the triplets that a step has of these rows (b,)."""
        if self.starts is None:
            return chosen
        return draw_positives(self.starts, len(self.triplets), chosen, seed=seed, step=step)

    def part_of(self, triplet: int) -> Part:
        """The part of the data that a triplet is of, where parts are told apart."""
        row = triplet if self.starts is None else int(np.searchsorted(self.starts, triplet, side="right")) - 1
        return self.parts[self.mixture.source_of(row)]

    def prompts_of(self, measured: int, others: Prompts) -> Prompts:
        """The words around the texts of a row of `measured`, where `others` are the job's."""
        if self.is_scored_alone:  # whose texts have no roles
            return Prompts(others.text)
        return self.part_of(measured).prompts(others) if self.parts else others

    def triplets_of_part(self, number: int) -> range:
        """The numbers of a part's triplets, which follow one another."""
        first, end = (*self.mixture.starts, self.rows)[number : number + 2]
        if self.starts is not None:
            first, end = np.append(self.starts, len(self.triplets))[[first, end]].tolist()
        return range(first, end)

    @cached_property
    def negatives_by_part(self) -> list[np.ndarray]:
        """How many hard negatives triplets have (n,), at even distances: of each part, or of all if there are none."""
        parts = [self.triplets_of_part(number) for number in range(len(self.parts))] or [range(len(self.triplets))]
        looked_at = [part[:: len(part) // _COUNTED + 1] for part in parts]
        return [np.array([len(self.triplets[row].negatives) for row in part], dtype=np.int64) for part in looked_at]

    @cached_property
    def shared(self) -> dict[int, frozenset[int]]:
        """The texts of each row to train on that stand in another one too; see `sampling.shared_texts`."""
        return shared_texts(self.triplets, self.starts)

    def texts(self) -> Iterator[str]:
        """Every text that is trained on, by a first stage too, as often as it stands there."""
        if self.earlier:
            yield from self.earlier.texts()
        for row in self.triplets:
            yield from (row.anchor, row.positive, *row.negatives)
        for pair in self.scored:
            yield from (pair.sentence1, pair.sentence2)

    @cached_property
    def mixture(self) -> Mixture:
        """Where the rows to train on come from, and how often each source is drawn from."""
        if not self.parts:
            return plain(self.rows)
        shares = tuple(part.share for part in self.parts)
        return Mixture(tuple(part.rows for part in self.parts), shares, by_source=self.by_part)

    @property
    def watched(self) -> list[Triplet]:
        """The held-out rows that score the training while it runs."""
        return self.holdout if self.watching is None else self.watching

    def halved(self) -> "TrainingData":
        """The same with half of the held-out rows to watch the training, and the others to score its result."""
        result, watching = halves(self.holdout)
        return replace(self, holdout=result, watching=watching)


def load_training_data(settings: DataSettings, *, seed: int) -> TrainingData:
    """Load triplets, set the holdout aside and load the development pairs.

    Args:
        settings: conf/data.
        seed: of docstrings' order and negatives, and of the choice of held-out rows.

    Raises:
        UserError: naming the file and row, the package that is not installed, or the hub file that is neither on this
            machine nor to be had.
    """
    corpora: dict[_File, Corpus] = {}
    portraits: dict[str, Portrait] = {}
    parts: tuple[Part, ...] = ()
    holdout_parts: dict[Triplet, frozenset[str]] = {}
    starts: np.ndarray | None = None
    if settings.is_scored_alone:
        rows: Sequence[Triplet] = []
        holdout: list[Triplet] = []
        dev = _read_dev(settings)
    elif settings.source is DataSource.docstrings:
        documented = docstrings.training_rows(settings.packages, seed)[: settings.rows]
        numbers, holdout = hold_out(documented, settings.holdout, seed)
        rows = [documented[number] for number in numbers]
        dev = _read_dev(settings)
        portraits = {settings.name: _portrait(documented)}
    else:
        corpora, ends = _open_files(settings)
        known = _first_rows(Rows.joined([corpus.rows for corpus in corpora.values()]), settings)
        sources = _sources(settings, ends, len(known))
        numbers, holdout = hold_out(known, settings.holdout, seed, sources)
        holdout_parts = _parts_of_held_out(known, numbers, sources)
        rows = known.select(numbers)
        starts = _starts(rows, settings)
        dev = _read_dev(settings)
        portraits = _by_name(corpora)
        own = numbers if starts is None else numbers[starts]
        parts = _parts(settings, sources, np.diff(np.searchsorted(own, ends), prepend=0).tolist())
    return TrainingData(
        rows,
        holdout,
        dev,
        content=content_digest(rows, holdout, dev),
        skipped=sum(corpus.skipped for corpus in corpora.values()),
        portraits=portraits,
        parts=parts,
        holdout_parts=holdout_parts,
        by_part=settings.mixing == "files" and bool(parts),
        scored=tuple(read_scored(settings)),
        starts=starts,
    )


def require_readable(settings: DataSettings) -> None:
    """Read the first row of each of a user's files: a wrong path or column is known before anything is loaded.

    Raises:
        UserError: as `load_training_data`, which reads the other rows too.
    """
    if settings.source is DataSource.files:
        for entry in settings.entries:
            for path in _named_files(entry.file):
                next(stream_triplet_rows(path, _columns(settings, entry)))
    next(stream_scored(settings), None)
    if settings.dev not in (None, DEV_SET.name):
        next(_stream_dev(settings))


def _first_rows(known: Rows, settings: DataSettings) -> Rows:
    """As many rows as `data.rows` says, each with all of its positives where one of them is drawn at a time."""
    if settings.positives != "redraw" or settings.rows is None:
        return known[: settings.rows]
    starts = known.starts()
    return known[: int(starts[settings.rows])] if settings.rows < len(starts) else known


def _starts(rows: Rows, settings: DataSettings) -> np.ndarray | None:
    """The first triplet of each row, where one positive is drawn at a time; None where each triplet is a row."""
    if settings.positives != "redraw":
        return None
    starts = rows.starts()
    if len(starts) < len(rows):
        return starts
    log.warning("data.positives=redraw: no row to train on has a list of several positives, and there is none to draw")
    return None


def _open_files(settings: DataSettings) -> tuple[dict[_File, Corpus], list[int]]:
    """The rows by file and columns, and how many there are up to the end of each entry of data.train."""
    if settings.source is DataSource.hub:
        corpus = _open_triplets(path := _hub_file(settings), settings, TrainFile(str(path)))
        return {(path, ()): corpus}, [len(corpus.rows)]
    corpora: dict[_File, Corpus] = {}
    ends: list[int] = []
    for number, entry in enumerate(settings.entries):
        anchor, positive, negatives = settings.columns_of(entry)
        columns = (anchor, positive, *negatives)
        files = {(path.resolve(), columns): path for path in _named_files(entry.file)}
        new = {file: path for file, path in files.items() if file not in corpora}
        if settings.is_mixed and len(new) < len(files):
            twice = next(path for file, path in files.items() if file not in new)
            raise UserError(f"data.train[{number}]: {printable(twice.name)} is of an earlier entry already")
        corpora |= {file: _open_triplets(path, settings, entry) for file, path in new.items()}
        ends.append(sum(len(corpus.rows) for corpus in corpora.values()))
    return corpora, ends


def _sources(settings: DataSettings, ends: Sequence[int], count: int) -> dict[str, int]:
    """The rows of each entry of data.train by its name; none if entries are not told apart.

    Args:
        settings: conf/data. ends: where each entry ends, of all rows. count: rows that are taken, from the first on.
    """
    if not settings.is_mixed:
        return {}
    sizes = np.diff(np.minimum(ends, count), prepend=0).tolist()
    return dict(zip(_distinct([Path(entry.file).name for entry in settings.entries]), sizes, strict=True))


def _parts_of_held_out(known: Rows, numbers: np.ndarray, sources: Mapping[str, int]) -> dict[Triplet, frozenset[str]]:
    """The parts that each held-out row is of, by name; numbers are those of the rows that are trained on."""
    if not sources:
        return {}
    held = np.delete(np.arange(len(known)), numbers)
    names, ends = list(sources), np.cumsum(list(sources.values()))
    parts: dict[Triplet, frozenset[str]] = {}
    for number in held.tolist():
        row = known[number]
        parts[row] = parts.get(row, frozenset()) | {names[int(np.searchsorted(ends, number, side="right"))]}
    return parts


def _parts(settings: DataSettings, names: Iterable[str], rows: Sequence[int]) -> tuple[Part, ...]:
    """The entries of data.train with the rows to train on that each has; none if they are not told apart."""
    if not settings.is_mixed:
        return ()
    entries = settings.entries
    for number, (entry, count) in enumerate(zip(entries, rows, strict=True)):
        if not count:
            why = f"; data.rows={settings.rows} counts rows of all files, the first ones first" if settings.rows else ""
            raise UserError(
                f"data.train[{number}]: no row of {printable(Path(entry.file).name)} is left to train on{why}"
            )
    given = [entry.share for entry in entries if entry.share is not None]
    shares = [share / sum(given) for share in given] or shares_of(rows, settings.evenness)
    return tuple(
        Part(name, count, share, entry.query, entry.document, _loss(entry.loss))
        for name, entry, count, share in zip(names, entries, rows, shares, strict=True)
    )


def _loss(given: Mapping[str, Any]) -> dict[str, Any]:
    """Settings of a loss, numbers as they go into names."""
    return {key: value if isinstance(value, bool) else float(value) for key, value in given.items()}


def _portrait(rows: Sequence[Triplet]) -> Portrait:
    """What rows in memory are like."""
    painter = Painter()
    for row in rows:
        painter.add(row)
    return painter.portrait()


def _by_name(corpora: Mapping[_File, Corpus]) -> dict[str, Portrait]:
    """Portraits by the names of the files alone: records say nothing of machines."""
    portraits = (corpus.portrait for corpus in corpora.values())
    return dict(zip(_distinct([path.name for path, _ in corpora]), portraits, strict=True))


def _distinct(names: Iterable[str]) -> list[str]:
    """Names as they can be shown, numbered from the second on where they are the same."""
    distinct: list[str] = []
    for name in map(printable, names):
        taken = sum(other == name or other.startswith(f"{name} (") for other in distinct)
        distinct.append(f"{name} ({taken + 1})" if taken else name)
    return distinct


def _named_files(name: str) -> list[Path]:
    """The file of a path, or those of a pattern by name."""
    path = user_path(name)
    if path.exists() or not glob.has_magic(str(path)):
        return [path]
    found = sorted(Path(each) for each in glob.glob(str(path), recursive=True))
    paths = [each for each in found if each.is_file()]
    if not paths:
        raise UserError(f"{override('data.train', name)}: no file fits this pattern")
    return paths


def _columns(settings: DataSettings, entry: TrainFile) -> TripletColumns:
    return TripletColumns(
        *settings.columns_of(entry),
        BadRows(settings.on_bad_row),
        draw=settings.positives == "draw",
        delimiter=sign_of(settings.delimiter),
    )


def _open_triplets(path: Path, settings: DataSettings, entry: TrainFile) -> Corpus:
    columns = _columns(settings, entry)
    # the file's name is in messages, and its ending says how it is read
    corpus = open_corpus(path, [path.name, columns], lambda note: stream_triplet_rows(path, columns, note=note))
    for note in corpus.notes:
        log_note(note)
    warn_of_skipped(corpus.reasons, corpus.skipped)
    name = printable(path.name)
    corpus.portrait.require_sound(override("data.train", path))
    log.info("%s: %s", name, next(corpus.portrait.lines()))
    for warning in corpus.portrait.warnings():
        log.warning("%s: %s", name, warning)
    return corpus


def _hub_file(settings: DataSettings) -> Path:
    from huggingface_hub import hf_hub_download
    from huggingface_hub.errors import HfHubHTTPError

    try:
        local = not hub_answers()
        path = hf_hub_download(
            NLI_REPOSITORY, NLI_FILE, repo_type="dataset", revision=settings.revision, local_files_only=local
        )
    except (OSError, HfHubHTTPError) as error:
        raise UserError(
            f"data={settings.name}: {NLI_REPOSITORY}/{NLI_FILE} is not on this machine and the hub does not answer; "
            f"{OFFLINE_HINT}"
        ) from error
    return Path(path)


def _read_dev(settings: DataSettings) -> list[ScoredPair]:
    if settings.dev is None:
        return []
    if settings.dev == DEV_SET.name:
        return load_hub_set(DEV_SET)
    pairs = apart(_stream_dev(settings))[0]
    require_rankable([pair.score for pair in pairs], override("data.dev", settings.dev))
    for warning in warnings_of_pairs(pairs):
        log.warning("%s: %s", override("data.dev", settings.dev), warning)
    return pairs


def _stream_dev(settings: DataSettings) -> Iterator[ScoredPair | Skipped]:
    return stream_scored_pairs(
        user_path(str(settings.dev)),
        columns=settings.dev_columns,
        delimiter=sign_of(settings.delimiter),
        key="data.dev",
    )
