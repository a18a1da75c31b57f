"""Hundreds of spoilt files: each is read, good rows verbatim and in order, or refused in one readable message.

CFT_FUZZ=20 makes twenty times as many, from further seeds.
"""

import contextlib
import itertools
import json
import math
import os
import random
import re
import resource
import signal
import sys
from collections import Counter
from pathlib import Path

import captions
import mutations
import pytest
from forked import Commands
from mutations import PAIRS, TRIPLETS, Input

from cft.config.schema import DataSettings, DataSource, EvalSettings, EvalSource
from cft.data import cells, formats, training_data
from cft.data.arrow_cache import open_corpus
from cft.data.files import (
    BadRows,
    Skipped,
    TripletColumns,
    read_scored_pairs,
    stream_texts,
    stream_triplet_rows,
    stream_triplets,
)
from cft.data.records import ScoredPair, Triplet
from cft.data.retrieval import RetrievalSet, load_retrieval_sets
from cft.data.sts import load_eval_sets
from cft.system.errors import UserError

DRAWN = mutations.draw(mutations.factor())
LONGEST_MESSAGE = 600
SECONDS = 20
MEGABYTES = 400

# How it went, by kind: "read", "read in part" (skipping) or "refused".
OUTCOMES: Counter = Counter()


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("CFT_CACHE", str(tmp_path / "cache"))


@contextlib.contextmanager
def limited():
    """Fail where reading hangs, or takes more memory than a file of a few megabytes can ask for."""

    def give_up(*_):
        raise AssertionError(f"still at work after {SECONDS} seconds")

    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    previous = signal.signal(signal.SIGALRM, give_up)
    signal.alarm(SECONDS)
    try:
        yield
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, previous)
    grown = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 1024
    assert grown < MEGABYTES, f"{grown:.0f} MB more"


def read(kind, path: Path, on_bad_row: BadRows) -> tuple[list, list[Skipped], UserError | None]:
    """Good rows, skipped rows, and the error that ended it; any other exception goes through."""
    good, skipped = [], []
    try:
        if kind is PAIRS:
            good, skipped = read_scored_pairs(path, on_bad_row=on_bad_row)
            return good, skipped, None
        columns = TripletColumns("sent0", "sent1", ["hard_neg"], on_bad_row)
        stream = stream_triplets(path, columns) if kind is TRIPLETS else None
        for row in stream or stream_texts(path, on_bad_row=on_bad_row):
            (skipped if isinstance(row, Skipped) else good).append(row)
    except UserError as error:
        return good, skipped, error
    return good, skipped, None


# The property


def assert_readable(message: str, path: Path) -> None:
    """One line that a person can read, which names the file."""
    message, name = message.replace(str(path.parent), ""), path.name  # how long that is, is not the message's doing
    assert len(message) <= LONGEST_MESSAGE, f"{len(message)} characters: {message[:2000]}"
    assert message.isprintable(), repr(message)
    assert name in message, message
    foreign = re.search(r"Traceback|<class|<\w+ object|pyarrow|\w(Error|Exception)\b|\.py\b", message)
    assert not foreign, message


def assert_sound(row: object) -> None:
    """A good row of a file of which nobody knows what it holds."""
    texts = (
        [row]
        if isinstance(row, str)
        else [row.anchor, row.positive, *row.negatives]
        if isinstance(row, Triplet)
        else row[:2]
    )
    for text in texts:
        assert isinstance(text, str) and text.strip() and "\0" not in text
        text.encode()
    if isinstance(row, ScoredPair):
        assert isinstance(row.score, float) and math.isfinite(row.score)


def place(made: Input, number: int) -> str:
    """How messages call a row."""
    line = made.rows[number].line
    return f"data row {number + 1} ({made.name}{'' if line is None else f':{line}'})"


def check(made: Input, path: Path) -> str:
    """Hold one file to the property; says how it went."""
    outcomes = [check_once(made, path, on_bad_row) for on_bad_row in BadRows]
    return outcomes[0] if outcomes[0] == "read" else outcomes[1]


def check_once(made: Input, path: Path, on_bad_row: BadRows) -> str:
    good, skipped, error = read(made.kind, path, on_bad_row)
    message = str(error)
    if error:
        assert_readable(message, path)
    for row in skipped:
        assert on_bad_row is BadRows.SKIP
        assert row.where.startswith("data row ") and made.name in row.where
        assert_readable(f"{row.where} {row.reason}", path)
    if made.refused and not made.damaged:
        assert error, f"was not refused: {good}"
    if made.rows is None or (made.damaged and error):  # what is damaged is found at its end, after other rows
        check_unknown(made, good, message if error else None, on_bad_row)
    else:
        check_known(made, good, skipped, message if error else None, on_bad_row)
    return "refused" if error else "read in part" if skipped else "read"


def check_unknown(made: Input, good: list, message: str | None, on_bad_row: BadRows) -> None:
    for row in good:
        assert_sound(row)
    if made.refused and not made.damaged and not (on_bad_row is BadRows.RAISE and message.startswith("data row ")):
        assert re.search(f"{made.refused}|none of its", message), message


def check_known(made: Input, good: list, skipped: list[Skipped], message: str | None, on_bad_row: BadRows) -> None:
    bad = [number for number, row in enumerate(made.rows) if row.wrong]
    values = [row.value for row in made.rows if not row.wrong]
    assert good == values[: len(good)], "other rows, or in another order"
    for row, number in zip(skipped, bad, strict=False):
        assert row.where == place(made, number)
        assert re.search(made.rows[number].wrong, row.reason), row.reason
    if on_bad_row is BadRows.RAISE and message and message.startswith("data row "):
        assert message.startswith(f"{place(made, bad[0])} "), message
        assert re.search(made.rows[bad[0]].wrong, message), message
        assert re.search("; mend or drop it(, or set .*on_bad_row=skip)?$", message), message
        assert made.kind is PAIRS or good == [row.value for row in made.rows[: bad[0]]]
    elif not values and message and not bad:
        assert re.search("has no data rows|is empty", message) or re.search(made.refused, message), message
    elif made.refused:
        assert re.search(made.refused, message) or (not values and "none of its" in message), message
    elif on_bad_row is BadRows.RAISE:
        assert not bad and message is None and good == values, message
    elif values:
        assert message is None and good == values and len(skipped) == len(bad), message
    else:
        assert f"none of its {len(bad)} rows can be used: {place(made, 0)}" in message, message


@pytest.mark.parametrize("label", DRAWN)
def test_a_file_is_read_or_refused_in_one_readable_message(tmp_path, label):
    made = DRAWN[label]()
    sys.stdout.write(f"{made.content[:2000]!r}\n")  # which pytest shows where it fails
    path = tmp_path / made.name
    path.write_bytes(made.content)
    with limited():
        OUTCOMES[made.kind.name, check(made, path)] += 1
        check_other_readers(made, path)


def check_other_readers(made: Input, path: Path) -> None:
    """What stands between the reader and the product gives the same rows, or the same error."""
    if made.kind is TRIPLETS:
        good, skipped, error = read(made.kind, path, BadRows.SKIP)
        try:
            columns = TripletColumns("sent0", "sent1", ["hard_neg"], BadRows.SKIP)
            corpus = open_corpus(path, [path.name], lambda note: stream_triplet_rows(path, columns, note=note))
        except UserError as told:
            assert str(told) == str(error)
        else:
            assert error is None and list(corpus.rows) == good
            assert corpus.skipped == len(skipped) and corpus.reasons == skipped[:10]
    elif made.kind is PAIRS:
        good, _, error = read(made.kind, path, BadRows.RAISE)
        ending = next(ending for ending in formats.ENDINGS[::-1] if made.name.endswith(ending))
        name = made.name.removesuffix(ending)
        evaluation = EvalSettings(name="sts", source=EvalSource.sts, folder=str(path.parent), sets=[name])
        check_pairs(lambda: load_eval_sets(evaluation)[name], path, good, error)
        settings = DataSettings(name="files", source=DataSource.files, dev=str(path))
        check_pairs(lambda: training_data._read_dev(settings), path, good, error)


def check_pairs(load, path: Path, good: list[ScoredPair], error: UserError | None) -> None:
    """Pairs that have no rank correlation are refused as soon as they are read."""
    try:
        found = load()
    except UserError as told:
        assert_readable(str(told), path)
        assert error or len({row.score for row in good}) < 2, str(told)
    else:
        assert error is None and found == good and len({row.score for row in good}) > 1


# Retrieval sets, which are three files in a folder

CORPUS = [{"_id": f"d{n}", "title": "é" * (n % 2), "text": f"document {n}"} for n in range(6)]
QUERIES = [{"_id": f"q{n}", "text": f"query {n}?"} for n in range(4)]
QRELS = "query-id\tcorpus-id\tscore\n" + "".join(f"q{n}\td{n}\t{n % 2 + 1}\n" for n in range(4))
FILES = ("corpus.jsonl", "queries.jsonl", "qrels/test.tsv")


def objects(rows: list) -> bytes:
    return "".join(json.dumps(row) + "\n" for row in rows).encode()


def write_retrieval_set(folder: Path, ending: str = "") -> Path:
    """A sound set; `ending` is "" or ".gz"."""
    (folder / "Mine" / "qrels").mkdir(parents=True)
    for name, content in zip(FILES, (objects(CORPUS), objects(QUERIES), QRELS.encode()), strict=True):
        (folder / "Mine" / f"{name}{ending}").write_bytes(mutations.zipped(content) if ending else content)
    return folder / "Mine"


def load_set(place: Path) -> RetrievalSet:
    settings = EvalSettings(
        name="retrieval", source=EvalSource.retrieval, folder=str(place.parent), sets=[place.name], split="test"
    )
    return load_retrieval_sets(settings)[place.name]


# What one of the files holds instead (None: it is not there), and a pattern of what is said of it.
SPOILT_SETS = {
    "no judgements": (
        "qrels/test.tsv",
        None,
        r"has no .*qrels/test\{.tsv, .*the columns query-id, corpus-id and score",
    ),
    "no queries": ("queries.jsonl", None, r"has no .*queries\{.jsonl, .*the columns _id and text"),
    "no corpus": ("corpus.jsonl", None, r"has no .*corpus\{.jsonl, .*the columns _id, title and text"),
    "empty judgements": ("qrels/test.tsv", b"", "qrels/test.tsv: is empty"),
    "a header alone": ("qrels/test.tsv", b"query-id\tcorpus-id\tscore\n", "test.tsv: has no data rows"),
    "no header": (
        "qrels/test.tsv",
        b"q1\td1\t1\nq2\td2\t1\n",
        "has no column 'query-id'; its columns are 'q1', 'd1', '1'. BEIR",
    ),
    "trec's columns": ("qrels/test.tsv", b"q1 0 d1 1\nq2 0 d2 1\n", "has no column 'query-id'; its .* 'q1 0 d1 1'"),
    "other columns": ("qrels/test.tsv", QRELS.replace("corpus-id", "doc").encode(), "has no column 'corpus-id'"),
    "a cell too few": ("qrels/test.tsv", f"{QRELS}q3\td1\n".encode(), r"\(test.tsv:6\) has too few cells"),
    "a cell too many": ("qrels/test.tsv", f"{QRELS}q3\td1\t1\t0\n".encode(), r"\(test.tsv:6\) has too many cells"),
    "a word for a grade": ("qrels/test.tsv", f"{QRELS}q3\td1\tyes\n".encode(), r"tsv:6\) has 'yes' .* 'score'"),
    "half a grade": ("qrels/test.tsv", f"{QRELS}q3\td1\t0.5\n".encode(), "has 0.5 as 'score', which is not a whole"),
    "no number": ("qrels/test.tsv", f"{QRELS}q3\td1\tnan\n".encode(), "'score', which is not a finite number"),
    "a huge grade": ("qrels/test.tsv", f"{QRELS}q3\td1\t1e300\n".encode(), "has 1e.300 as 'score'.*at most 1,000,000"),
    "an unknown query": (
        "qrels/test.tsv",
        f"{QRELS}q9\td1\t1\n".encode(),
        "names the query 'q9', which .*queries.jsonl",
    ),
    "an endless query id": (
        "qrels/test.tsv",
        f"{QRELS}{'q' * 9999}\td1\t1\n".encode(),
        "names the query 'q{79}…', which",
    ),
    "an endless document id": (
        "corpus.jsonl",
        objects([{"_id": "d\n" * 999, "text": "a"}] * 2),
        r"row 2 \(corpus.jsonl:2\) has the _id '.{,170}' of a row before it",
    ),
    "unknown documents": (
        "qrels/test.tsv",
        b"query-id\tcorpus-id\tscore\nq1\tx\t1\n",
        r"Mine\): its corpus holds no document that is judged relevant, such as 'x'",
    ),
    "nothing relevant": (
        "qrels/test.tsv",
        QRELS.encode().replace(b"2\n", b"0\n").replace(b"1\n", b"0\n"),
        "is above 0",
    ),
    "a contradiction": ("qrels/test.tsv", f"{QRELS}q1\td1\t7\n".encode(), "gives 'q1' and 'd1' another score"),
    "no queries in the file": ("queries.jsonl", b"", "queries.jsonl: is empty"),
    "blank lines": ("queries.jsonl", b"\n\n", "queries.jsonl: has no data rows"),
    "a query twice": ("queries.jsonl", objects([*QUERIES, QUERIES[0]]), r"row 5 \(queries.jsonl:5\) has the _id 'q0'"),
    "a list for a row": (
        "queries.jsonl",
        objects([*QUERIES, [1]]),
        r"\(queries.jsonl:5\) is not a JSON object but \[1",
    ),
    "a text for a row": ("corpus.jsonl", objects(["d1", *CORPUS]), r"\(corpus.jsonl:1\) is not a JSON object but 'd1'"),
    "null for a row": ("corpus.jsonl", objects([None, *CORPUS]), r"\(corpus.jsonl:1\) is not a JSON object but null"),
    "half an object": ("queries.jsonl", objects(QUERIES)[:-9], r"\(queries.jsonl:4\) is not valid JSON"),
    "a list for a text": ("corpus.jsonl", objects([*CORPUS, {"_id": "x", "text": ["a"]}]), "as 'text', which is not a"),
    "a list for a title": (
        "corpus.jsonl",
        objects([*CORPUS, {"_id": "x", "title": [1], "text": "a"}]),
        r"\(corpus.jsonl:7\) has \[1\] \(list\) as 'title', which is not a text",
    ),
    "a document twice": ("corpus.jsonl", objects([*CORPUS, CORPUS[2]]), r"row 7 \(corpus.jsonl:7\) has the _id 'd2'"),
    "an empty corpus": ("corpus.jsonl", b"", "corpus.jsonl: is empty"),
    "one document": ("corpus.jsonl", objects(CORPUS[:1]), r"the set Mine \(.*Mine\) has 1 document: there is nothing"),
    "Latin-1": ("corpus.jsonl", '{"_id": "d1", "text": "é"}'.encode("latin-1"), "jsonl: line 1 is not valid UTF-8"),
    "UTF-16": ("queries.jsonl", objects(QUERIES).decode().encode("utf-16"), "queries.jsonl: is text in UTF-16"),
    **{
        f"cut gzip, {name}": (f"{name}.gz", mutations.zipped(b"\n" * 9999)[:-9], f"{name}.gz: not a whole gzip")
        for name in FILES
    },
    "no gzip": ("queries.jsonl.gz", objects(QUERIES), "queries.jsonl.gz: not a whole gzip file"),
}


def assert_readable_of_set(message: str, place: Path) -> None:
    """The property, where the folder of a set is named if no file of it is."""
    named = [name for name in FILES if Path(name).name in message]
    assert_readable(message, place / named[0] if named else place)


@pytest.mark.parametrize("label", SPOILT_SETS)
def test_a_fault_of_a_retrieval_set_is_one_readable_message(tmp_path, label):
    name, content, pattern = SPOILT_SETS[label]
    place = write_retrieval_set(tmp_path, ".gz" if name.endswith(".gz") else "")
    (place / name).unlink()
    if content is not None:
        (place / name).write_bytes(content)
    with limited(), pytest.raises(UserError, match=pattern) as error:
        load_set(place)
    assert_readable_of_set(str(error.value), place)


def spoilt(content: bytes, draw: random.Random) -> bytes:
    """A file with one thing wrong that nobody planned."""
    lines, place = content.splitlines(keepends=True), draw.randrange(len(content))
    line, other = draw.randrange(len(lines)), draw.randrange(len(lines))
    return draw.choice(
        [
            lambda: content[:place],
            lambda: content[:place] + bytes([draw.randrange(256)]) + content[place + 1 :],
            lambda: content[:place] + draw.randbytes(3) + content[place:],
            lambda: content[:place] + content[place + draw.randrange(1, 9) :],
            lambda: b"".join(lines[:line] + lines[line + 1 :]),
            lambda: b"".join([*lines[:line], lines[other], *lines[line:]]),
            lambda: content.replace(draw.choice([b'"', b"\t", b"\n", b":", b"d", b"q", b"1"]), b"", 1),
        ]
    )()


def test_a_retrieval_set_spoilt_at_random_is_sound_or_refused_in_one_readable_message(tmp_path):
    outcomes: Counter = Counter()
    for number in range(120 * mutations.factor()):
        draw = random.Random(number)
        ending = draw.choice(["", "", ".gz"])
        place = write_retrieval_set(tmp_path / str(number), ending)
        path = place / f"{draw.choice(FILES)}{ending}"
        path.write_bytes(spoilt(path.read_bytes(), draw))
        sys.stdout.write(f"{number} {path.name} {path.read_bytes()[:400]!r}\n")
        try:
            with limited():
                found = load_set(place)
        except UserError as error:
            assert_readable_of_set(str(error), place)
            outcomes["refused"] += 1
        else:
            for ids, texts in ((found.query_ids, found.queries), (found.document_ids, found.documents)):
                assert len(set(ids)) == len(ids) == len(texts) > 0
                list(map(assert_sound, texts))
            assert len(found.judgements) == len(found.queries) and len(found.documents) > 1
            assert any(grade > 0 for grades in found.judgements for grade in grades.values())
            outcomes["read"] += 1
    assert min(outcomes["read"], outcomes["refused"]) > 15, outcomes


# That the property can fail


BREAKAGES = {
    "texts are stripped": (cells, "_checked_text", lambda whole: lambda value, what: whole(value, what).strip()),
    "blanks are texts": (cells, "_checked_text", lambda whole: lambda value, what: value),
    "rows are dropped": (formats, "read_rows", lambda whole: lambda source: itertools.islice(whole(source), 2)),
    "rows are doubled": (
        formats,
        "read_rows",
        lambda whole: lambda source: (row for row in whole(source) for _ in range(2)),
    ),
    "rows are not counted": (
        formats,
        "read_rows",
        lambda whole: lambda source: (row._replace(number=1) for row in whole(source)),
    ),
    "lines are not counted": (
        formats,
        "read_rows",
        lambda whole: lambda source: (row._replace(line=1) for row in whole(source)),
    ),
    "names are told whole": (formats, "_named", lambda whole: repr),
    "messages are not printable": (formats, "printable", lambda whole: lambda text: text),
    "another exception comes out": (formats, "_json_object", lambda whole: json.loads),
    "what the file is is not looked at": (formats, "_check_beginning", lambda whole: lambda source: None),
}


@pytest.mark.parametrize(("module", "name", "broken"), BREAKAGES.values(), ids=BREAKAGES)
def test_a_broken_reader_is_noticed(tmp_path, monkeypatch, module, name, broken):
    monkeypatch.setattr(module, name, broken(getattr(module, name)))
    with pytest.raises((AssertionError, ValueError, IndexError)) as noticed:
        for make in DRAWN.values():
            made = make()
            (tmp_path / made.name).write_bytes(made.content)
            check(made, tmp_path / made.name)
    assert not isinstance(noticed.value, UserError)


# The whole command

COMMANDS = {
    "a bad row": (
        "bad.csv",
        b"sent0,sent1,hard_neg\na,b,c\nd,,f\n",
        r"data row 2 \(bad.csv:3\) has an empty 'positive'",
    ),
    "a pipe": ("bad.csv", None, "data.train=.*bad.csv: is a pipe or a device, not a regular file"),
    "cut gzip": (
        "bad.csv.gz",
        mutations.zipped(b"sent0,sent1,hard_neg\n" * 99)[:-9],
        "bad.csv.gz: not a whole gzip file",
    ),
}


def run(commands: Commands, *arguments: object) -> str:
    """What a command says that a user can mend."""
    done = commands.run(*map(str, arguments))
    assert done.status == 2, done.err
    assert "Traceback" not in done.err + done.out
    assert done.err.startswith("cft: ") and done.err.count("\n") == 1
    return done.err


def written(folder: Path, name: str, content: bytes | None) -> Path:
    """A file, or a pipe."""
    if content is None:
        os.mkfifo(folder / name)
    else:
        (folder / name).write_bytes(content)
    return folder / name


@pytest.mark.parametrize(("name", "content", "message"), COMMANDS.values(), ids=COMMANDS)
def test_a_training_ends_with_status_2_and_the_files_name(commands, tmp_path, name, content, message):
    path = written(tmp_path, name, content)
    quick = f"model=tiny logger=none train.steps=2 data=files baseline=none outputs={tmp_path / 'outputs'}".split()
    assert re.search(message, run(commands, "cft.run", *quick, f"data.train={path}"))
    assert not list(tmp_path.glob("outputs/*-*"))  # the folder of a training, or of scores


def test_a_training_is_refused_for_the_pairs_that_it_is_to_be_scored_by(commands, tmp_path):
    quick = ["model=tiny", "logger=none", "data=files", f"data.train={captions.TRIPLETS}", "baseline=none"]
    quick += ["train.steps=2", f"outputs={tmp_path / 'outputs'}"]
    path = written(tmp_path, "mine.csv", b"sentence1,sentence2,score\na,b,1\nc,d,1\n")
    message = run(commands, "cft.run", *quick, "eval=sts", f"eval.folder={tmp_path}", "eval.sets=[mine]")
    assert f"all scores of the set mine (eval.folder={path}) are equal" in message
    assert not list(tmp_path.glob("outputs/*-*"))  # the folder of a training, or of scores


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("bad.txt", "one\ntwo\n".encode("utf-16"), "bad.txt: is text in UTF-16; save it as UTF-8"),
        ("bad.jsonl", None, "bad.jsonl: is a pipe or a device"),
    ],
)
def test_an_embedding_ends_with_status_2_and_the_files_name(commands, tmp_path, name, content, message):
    # the texts are looked at before the embedder, which need not be there
    path = written(tmp_path, name, content)
    assert message in run(commands, "cft.encode", "run=nowhere", path, tmp_path / "vectors.npy")


def test_enough_files_were_read_and_refused_of_every_kind():
    if sum(OUTCOMES.values()) < len(DRAWN):
        pytest.skip("not all files were made in this run")
    assert len(DRAWN) >= 300
    for kind in mutations.KINDS:
        for outcome in ("read", "read in part", "refused"):
            assert OUTCOMES[kind.name, outcome] >= 15, (kind.name, outcome, OUTCOMES)
