"""Retrieval sets: queries, documents, and judgements of which documents answer a query.

BEIR's layout, a folder a set; each file also gzipped, or as Parquet:

    FOLDER/SET/corpus.jsonl        _id, title (may be missing), text
    FOLDER/SET/queries.jsonl       _id, text
    FOLDER/SET/qrels/SPLIT.tsv     query-id, corpus-id, score (a whole number; above 0 is relevant)
"""

import contextlib
import logging
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

import numpy as np

from cft.config.schema import EvalSettings, EvalSource
from cft.data import docstrings
from cft.data.cells import BadRow, id_of, number_of, text_of
from cft.data.files import BadRows, Skipped, stream_rows
from cft.data.formats import ENDINGS, Source
from cft.data.records import Triplet, content_digest
from cft.data.sts import HubSet, fetch_dataset, not_here
from cft.data.texts import normalized
from cft.data.training_data import TrainingData
from cft.system.errors import UserError
from cft.system.files import user_path
from cft.system.overrides import override
from cft.system.text import did_you_mean, printable, shorten

log = logging.getLogger(__name__)

_Row = TypeVar("_Row")
_Text = tuple[str, str]  # id and text
_Judgement = tuple[str, str, int]  # ids of query and document, and the grade

_ID, _TITLE, _TEXT = "_id", "title", "text"
_QUERY, _DOCUMENT, _GRADE = "query-id", "corpus-id", "score"

# Larger grades are slips; sums of them would not be exact.
_LARGEST_GRADE = 1_000_000

# What tables call the set of held-out rows.
OWN = "held-out rows"

# The one part of data whose parts are not told apart.
_WHOLE = frozenset([""])

_ID_LENGTH = 80  # of an id in a message

# Repositories and revisions as MTEB 2.26.24 pins them for the tasks of the same names; the small ones of NanoBEIR keep
# their 50 queries in a split called train.
HUB_SETS = {
    entry.name: entry
    for entry in (
        HubSet("SciFact", "mteb/scifact", "d56462d0e63a25450459c4f213e49ffdb866f7f9"),
        HubSet("ArguAna", "mteb/arguana", "c22ab2a51041ffd869aaddef7af8d8215647e41a"),
        HubSet("NFCorpus", "mteb/nfcorpus", "ec0fa4fe99da2ff19ca1214b7966684033a58814"),
        HubSet("FiQA2018", "mteb/fiqa", "27a168819829fe9bcd655c2df245fb19452e8e06"),
        HubSet("SCIDOCS", "mteb/scidocs", "f8c2fcf00f625baaa80f62ec5bd9e1fff3b8ae88"),
        *(
            HubSet(f"Nano{name}Retrieval", f"mteb/Nano{name}Retrieval", revision, split="train")
            for name, revision in {
                "ArguAna": "63ac9f026e8f6b85dc0622f3d630ed7a1758e9ec",
                "ClimateFever": "ccb5552bc17e87afe0f9479fb4346898213a71db",
                "DBPedia": "2d088f80d7a640eac0be5c66408d68c3f782baa1",
                "FEVER": "a6490dfeed0f13c2a052e39c6ddaeb6086afd4a8",
                "FiQA2018": "ede84da4793cd2d4e61bba0dd08fc58de90f3681",
                "HotpotQA": "a38a2615f29adba8b47a42905031aa9c137d8fae",
                "MSMARCO": "5a5aa0c3df65d6883d85c8f5cdc88e679633595e",
                "NFCorpus": "2eec9d63140fb9af7c75ad0fdbf6350aaf20e94e",
                "NQ": "e3973b405feb9e94d07fd971d690d24d7f45264a",
                "Quora": "3ee153e5710da83a7f35df0cb1db4a0ad036072a",
                "SciFact": "8c5f7bbe90bb865f46c67710221afa7d9096251b",
                "SCIDOCS": "cf39b8741a6f2e984d0b8f4796b2dd5bb65390f9",
                "Touche2020": "ff81c0caff8b6febe1495eae9f2ca3eddad074b8",
            }.items()
        ),
    )
}

# Of these, the sets in which MTEB leaves the document of the query's own id out of the ranking; in the others equal ids
# mean nothing to it.
WITHOUT_OWN_DOCUMENT = ("ArguAna", "FiQA2018")


class Document(NamedTuple):
    """A document as it is embedded: its title and text in one."""

    id: str
    text: str
    title_length: int = 0  # of the text, how many characters are its title and the blank behind it


@dataclass(frozen=True)
class RetrievalSet:
    """Queries that look for their documents in one collection."""

    name: str
    query_ids: list[str]
    queries: list[str]  # those with judgements
    document_ids: list[str]
    documents: list[str]  # title and text
    judgements: list[dict[str, int]]  # of each query, grades by the document's id; above 0 is relevant
    content: str  # digest of all that
    title_lengths: list[int] = field(default_factory=list)  # of each document's text; none where none has a title

    @property
    def untitled(self) -> Iterator[str]:
        """The documents' texts, without the title of those that have one."""
        lengths = self.title_lengths or [0] * len(self.documents)
        return (text[length:] for text, length in zip(self.documents, lengths, strict=True))

    @property
    def own_document(self) -> list[str | None]:
        """Of each query, the document that is left out of its ranking: that of the query's own id, if not judged.

        MTEB leaves it out too, where queries are documents (ArguAna). One that is judged is another text that only
        has the same number. In MTEB's other sets, none is left out.
        """
        if self.name in HUB_SETS and self.name not in WITHOUT_OWN_DOCUMENT:
            return [None] * len(self.query_ids)
        known = set(self.query_ids).intersection(self.document_ids)
        pairs = zip(self.query_ids, self.judgements, strict=True)
        return [query if query in known and query not in judged else None for query, judged in pairs]


def load_retrieval_sets(settings: EvalSettings) -> dict[str, RetrievalSet]:
    """Load the sets of an evaluation, by name.

    Args:
        settings: conf/eval.

    Raises:
        UserError: naming the file and row, or the set that is neither in the folder nor on the hub.
    """
    if settings.source is EvalSource.docstrings:
        return {docstrings.NAME: make_set(docstrings.NAME, *docstrings.standard_library(settings.rows))}
    if settings.folder is None:
        unknown = [name for name in settings.sets if name not in HUB_SETS]
        if unknown:
            raise UserError(
                f"eval.sets: {', '.join(unknown)} unknown on the hub; choose from {', '.join(HUB_SETS)}, or name "
                "the folder of your own sets by eval.folder=FOLDER"
            )
    return {name: _load(name, settings) for name in settings.sets}


def make_set(
    name: str,
    queries: Iterable[_Text],
    documents: Iterable[_Text | Document],
    judgements: Iterable[_Judgement],
    place: Path | None = None,
) -> RetrievalSet:
    """Put a set together: only queries with judgements stay, in their order.

    Args:
        name: what tables call it. queries, documents: ids, each once, with texts. judgements: at most one for each
            pair of query and document. place: its folder, which messages name too.

    Raises:
        UserError: if there is nothing to find, or nothing to tell it from.
    """
    where = f"the set {name} ({printable(str(place))})" if place else f"the set {name}"
    grades: dict[str, dict[str, int]] = {}
    for query, document, grade in judgements:
        grades.setdefault(query, {})[document] = grade
    judged = [(id, text) for id, text in queries if id in grades]
    kept = [Document(*document) for document in documents]
    if len(kept) < 2:
        documents_word = "document" if len(kept) == 1 else "documents"
        raise UserError(f"{where} has {len(kept)} {documents_word}: there is nothing to rank with fewer than 2")
    relevant = {id for of_query in grades.values() for id, grade in of_query.items() if grade > 0}
    if not relevant:
        raise UserError(f"no judgement of {where} is above 0: there is nothing to find")
    known = {document.id for document in kept}
    if relevant.isdisjoint(known):
        raise UserError(
            f"{where}: its corpus holds no document that is judged relevant, such as {_quoted(min(relevant))}: there "
            "is nothing to find"
        )
    absent = sum(document not in known for of_query in grades.values() for document in of_query)
    if absent:
        log.warning("%s: %d judged documents are not in the corpus; they count as not found", name, absent)
    of_queries = [grades[id] for id, _ in judged]
    return RetrievalSet(
        name=name,
        query_ids=[id for id, _ in judged],
        queries=[text for _, text in judged],
        document_ids=[document.id for document in kept],
        documents=[document.text for document in kept],
        judgements=of_queries,
        content=content_digest(judged, [document[:2] for document in kept], of_queries),
        title_lengths=[document.title_length for document in kept] if any(each.title_length for each in kept) else [],
    )


def rows_as_sets(data: TrainingData, documents: int, seed: int) -> dict[str, RetrievalSet]:
    """Held-out rows as queries that look for their positives: one set or, where data.train's entries differ, one each.

    Among the documents of a set are the positives and negatives of all its held-out rows and, up to `documents`, others
    of the same file, drawn evenly over it. Texts that differ in case, blanks or punctuation alone are one document. An
    entry of which no row is held out has no set.

    Raises:
        UserError: if no row is held out, or there is one document alone.
    """
    if not data.holdout:
        raise UserError(
            "eval=rows scores held-out rows, and there are none: raise data.holdout, bring more rows, or add "
            "eval=none, which trains on all of them and scores nothing"
        )
    if not data.holdout_parts:
        return {OWN: _rows_as_set(OWN, data.holdout, data.triplets, documents, seed)}
    found = {}
    for number, part in enumerate(data.parts):
        held = [row for row in data.holdout if part.name in data.holdout_parts[row]]
        triplets = data.triplets_of_part(number)
        if held:
            name = f"{OWN} of {part.name}"
            found[name] = _rows_as_set(name, held, data.triplets[triplets.start : triplets.stop], documents, seed)
    return found


def _rows_as_set(
    name: str, held: Sequence[Triplet], others: Sequence[Triplet], documents: int, seed: int
) -> RetrievalSet:
    """Held-out rows of one kind, and as many of the others as are needed for so many documents."""
    ids: dict[str, str] = {}  # of documents, by their text without case, blanks and punctuation
    texts: list[str] = []

    def id_of(text: str) -> str:
        key = normalized(text)
        if key not in ids:
            ids[key] = f"{len(texts)}"
            texts.append(text)
        return ids[key]

    judged = [(row.anchor, id_of(row.positive)) for row in held]
    for row in held:
        for text in row.negatives:
            id_of(text)
    for number in np.random.default_rng([seed, 2]).permutation(len(others)):
        if len(texts) >= documents:
            break
        row = others[int(number)]
        for text in (row.positive, *row.negatives):
            id_of(text)
    queries = {anchor: f"query {number}" for number, anchor in enumerate(dict.fromkeys(row.anchor for row in held))}
    return make_set(
        name,
        [(id, anchor) for anchor, id in queries.items()],
        [(str(number), text) for number, text in enumerate(texts)],
        [(queries[anchor], document, 1) for anchor, document in judged],
    )


def watched_sets(data: TrainingData) -> dict[str, RetrievalSet]:
    """Held-out anchors and texts, to watch a training by; none where pairs do that, or there are too few."""
    if data.dev:
        return {}
    texts: dict[str, set[str]] = {}  # of each part
    for row in data.watched:
        for part in data.holdout_parts.get(row, _WHOLE):
            texts.setdefault(part, set()).update(normalized(text) for text in (row.positive, *row.negatives))
    rows = [row for row in data.watched if all(len(texts[part]) > 1 for part in data.holdout_parts.get(row, _WHOLE))]
    return rows_as_sets(replace(data, holdout=rows), 0, 0) if rows else {}


def require_readable(settings: EvalSettings) -> None:
    """Look for the files of a user's own sets, and at the first query and document of each, before anything is loaded.

    Raises:
        UserError: as `load_retrieval_sets`, which reads all of them.
    """
    if settings.source is not EvalSource.retrieval or settings.folder is None:
        return
    for name in settings.sets:
        place = _place_of(name, user_path(settings.folder))
        documents, queries, _ = _files_of(name, place, settings.split)
        next(_stream_queries(queries))
        next(_stream_documents(documents))


def _load(name: str, settings: EvalSettings) -> RetrievalSet:
    if settings.folder is None:
        place, (queries, documents, judgements) = None, _from_hub(HUB_SETS[name])
    else:
        place = _place_of(name, user_path(settings.folder))
        queries, documents, judgements = _from_folder(name, place, settings.split)
    judged = {query for query, _, _ in judgements}
    queries = [query for query in queries if query[0] in judged]
    if settings.rows is not None and len(queries) > settings.rows:
        queries = [queries[number * len(queries) // settings.rows] for number in range(settings.rows)]
        kept = {id for id, _ in queries}
        judgements = [row for row in judgements if row[0] in kept]
    found = make_set(name, queries, documents, judgements, place)
    left_out = sum(id is not None for id in found.own_document)
    if left_out:
        log.info(
            "%s: %s a document of the same id, which is left out of the ranking, as MTEB does; where it is another "
            "text, give queries and documents ids of their own",
            *(name, "1 query has" if left_out == 1 else f"{left_out:,} queries have"),
        )
    return found


_Parts = tuple[list[_Text], list[Document], list[_Judgement]]


def _from_folder(name: str, place: Path, split: str) -> _Parts:
    """Queries, documents and judgements of a set's files, which are in the folder `place`."""
    documents, queries, qrels = _files_of(name, place, split)
    of_queries = list(_stream_queries(queries))
    known = {id for id, _ in of_queries}
    return (
        of_queries,
        list(_stream_documents(documents)),
        list(_read(qrels, (_QUERY, _DOCUMENT, _GRADE), _judgement_reader(known, printable(str(queries))))),
    )


def _files_of(name: str, place: Path, split: str) -> tuple[Path, Path, Path]:
    """The files of a set's documents, queries and judgements."""
    return (
        _find(place, "corpus", name, f"{_ID}, {_TITLE} and {_TEXT}"),
        _find(place, "queries", name, f"{_ID} and {_TEXT}"),
        _find(place / "qrels", split, name, f"{_QUERY}, {_DOCUMENT} and {_GRADE}", _other_splits(place)),
    )


def _stream_queries(path: Path) -> Iterator[_Text]:
    return _read(path, (_ID, _TEXT), _reader(_query))


def _stream_documents(path: Path) -> Iterator[Document]:
    return _read(path, (_ID, _TEXT), _reader(_document), optional=(_TITLE,))


def _place_of(name: str, folder: Path) -> Path:
    """The folder of a set."""
    try:
        if not folder.is_dir():
            raise UserError(f"{override('eval.folder', folder)}: no such folder")
        if (folder / name).is_dir():
            return folder / name
        if any((folder / f"corpus{ending}").exists() for ending in ENDINGS):
            raise UserError(
                f"{override('eval.folder', folder)} is itself a set, not a folder of sets: write "
                f"{override('eval.folder', folder.parent)} "
                f"{override('eval.sets', [folder.name])}"
            )
        there = sorted(entry.name for entry in folder.iterdir() if (entry / "qrels").is_dir())
    except OSError as error:
        raise UserError(f"{override('eval.folder', folder)}: cannot be read ({error.strerror or error})") from error
    listed = ", ".join(there) or "none"
    raise UserError(
        f"{override('eval.folder', folder)} holds no set {name}; sets there: {listed}{did_you_mean(name, there)}"
    )


def _find(place: Path, stem: str, name: str, columns: str, others: str = "") -> Path:
    """A file of a set, whatever its format."""
    for ending in (".jsonl", ".tsv", *ENDINGS):
        path = place / f"{stem}{ending}"
        if path.exists() or path.is_symlink():  # reading reports a broken link
            return path
    forms = ".tsv, .tsv.gz" if place.name == "qrels" else ".jsonl, .jsonl.gz"
    raise UserError(
        f"the set {name} has no {place / stem}{{{forms}, .parquet}}, a file with the columns {columns}{others}"
    )


def _other_splits(place: Path) -> str:
    """The splits that a set has, at the end of an error."""
    with contextlib.suppress(OSError):
        files = [entry.name for entry in (place / "qrels").iterdir()]
        names = {name.removesuffix(ending) for name in files for ending in ENDINGS if name.endswith(ending)}
        return f"; splits there: {', '.join(sorted(names))} (eval.split=SPLIT)" if names else ""
    return ""


def _read(
    path: Path, columns: tuple[str, ...], convert: Callable[[dict[str, Any]], _Row], optional: tuple[str, ...] = ()
) -> Iterator[_Row]:
    source = Source(
        path,
        "eval.folder",
        dict.fromkeys(columns, ""),
        column_advice=f"BEIR's layout has {', '.join((*columns, *optional))} here",
        row_advice="mend or drop it",
        optional=optional,
    )
    rows = stream_rows(source, convert, BadRows.RAISE)
    try:
        for row in rows:
            assert not isinstance(row, Skipped)
            yield row
    except UserError as error:
        # Files of all sets have the same names: a row alone would not say which file it is in.
        if not str(error).startswith("data row "):
            raise
        raise UserError(f"{printable(str(path.parent))}: {error}") from error


def _reader(make: Callable[[str, dict[str, Any]], _Row]) -> Callable[[dict[str, Any]], _Row]:
    """Reads queries or documents, each id once."""
    seen: set[str] = set()

    def read(cells: dict[str, Any]) -> _Row:
        id = id_of(cells, _ID, _ID)
        if id in seen:
            raise BadRow(f"has the {_ID} {_quoted(id)} of a row before it; every text needs its own")
        seen.add(id)
        return make(id, cells)

    return read


def _judgement_reader(queries: set[str], where: str) -> Callable[[dict[str, Any]], _Judgement]:
    """Reads judgements of known queries, which may be repeated but not contradicted; `where` these queries are."""
    seen: dict[tuple[str, str], int] = {}

    def read(cells: dict[str, Any]) -> _Judgement:
        query, document = id_of(cells, _QUERY, _QUERY), id_of(cells, _DOCUMENT, _DOCUMENT)
        grade = number_of(cells, _GRADE, _GRADE)
        if grade != int(grade) or abs(grade) > _LARGEST_GRADE:
            least = f", at most {_LARGEST_GRADE:,}" if grade == int(grade) else ""
            raise BadRow(f"has {grade:g} as {_GRADE!r}, which is not a whole number{least}")
        if query not in queries:
            raise BadRow(f"names the query {_quoted(query)}, which {where} does not hold")
        if seen.setdefault((query, document), int(grade)) != int(grade):
            raise BadRow(f"gives {_quoted(query)} and {_quoted(document)} another score than a row before it")
        return query, document, int(grade)

    return read


def _quoted(id: str) -> str:
    """An id in a message, which may be of any length."""
    return repr(shorten(id, _ID_LENGTH))


def _query(id: str, cells: dict[str, Any]) -> _Text:
    return id, text_of(cells, _TEXT, _TEXT)


def _document(id: str, cells: dict[str, Any]) -> Document:
    """Title and text in one, as MTEB joins them."""
    text = cells.get(_TEXT)
    if isinstance(text, str) and not text.strip():
        if not str(cells.get(_TITLE) or "").strip():
            raise BadRow(f"has neither a {_TITLE!r} nor a {_TEXT!r}: there is nothing to embed")
        return Document(id, text_of(cells, _TITLE, _TITLE).strip())
    text = text_of(cells, _TEXT, _TEXT)
    title = text_of(cells, _TITLE, _TITLE) if str(cells.get(_TITLE) or "").strip() else ""
    joined = f"{title} {text}".strip()
    return Document(id, joined, len(joined) - len(text.strip()))


def _from_hub(entry: HubSet) -> _Parts:
    """Queries, documents and judgements out of a repository in MTEB's layout."""
    queries, documents = _reader(_query), _reader(_document)
    try:
        of_queries = [queries(row) for row in _hub_rows(entry, "queries")]
        judgement = _judgement_reader({id for id, _ in of_queries}, entry.repository)
        return (
            of_queries,
            [documents(row) for row in _hub_rows(entry, "corpus")],
            [judgement(row) for row in _hub_rows(entry, "default", "qrels")],
        )
    except BadRow as reason:
        raise UserError(f"the set {entry.name} ({entry.repository}): a row {reason}") from None


def _hub_rows(entry: HubSet, *subsets: str) -> Iterator[dict[str, Any]]:
    """Rows of the first of these subsets that a repository has: of the set's split, or of the only one."""
    cause: Exception | None = None
    for subset in subsets:
        try:
            splits = fetch_dataset(entry.repository, subset, revision=entry.revision)
        except (OSError, ValueError) as error:
            cause = error
            continue
        split = entry.split if entry.split in splits else next(iter(splits))
        for row in splits[split]:
            yield {_ID: str(row["id"]), **row} if "id" in row and _ID not in row else row
        return
    raise not_here(entry) from cause
