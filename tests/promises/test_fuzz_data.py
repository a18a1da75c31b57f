"""Hundreds of spoilt files: each is read, good rows verbatim and in order, or refused in one readable message.

CFT_FUZZ=20 makes twenty times as many, from further seeds.
"""

import contextlib
import itertools
import json
import math
import os
import re
import resource
import signal
import sys
from collections import Counter
from pathlib import Path

import mutations
import pytest
from forked import Commands
from mutations import PAIRS, TRIPLETS, Input

from cft.config.schema import DataSettings, DataSource, EvalSettings, EvalSource
from cft.data import cells, formats, training_data
from cft.data.arrow_cache import open_corpus
from cft.data.files import BadRows, Skipped, TripletColumns, read_scored_pairs, stream_texts, stream_triplets
from cft.data.records import ScoredPair, Triplet
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
            corpus = open_corpus(path, [path.name], lambda note: stream_triplets(path, columns, note=note))
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
        check_pairs(lambda: load_eval_sets(evaluation, seed=0)[name], path, good, error)
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
    quick = f"model=tiny logger=none train.steps=2 data=files outputs={tmp_path / 'outputs'}".split()
    assert re.search(message, run(commands, "cft.run", *quick, f"data.train={path}"))
    assert not list(tmp_path.glob("outputs/*-*"))  # the folder of a training, or of scores


def test_a_training_is_refused_for_the_pairs_that_it_is_to_be_scored_by(commands, tmp_path):
    quick = f"model=tiny logger=none train.steps=2 outputs={tmp_path / 'outputs'}".split()
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
