"""Data files as users should not write them, made from a seed, and what a reader has to make of each.

A file is drafted as rows of cells; mutations change rows, columns, the text as a whole or its bytes, and note what
follows: rows that are bad and why, or that the file is to be refused. `draw` gives the files.
"""

import gzip
import io
import json
import os
import random
import re
import sys
from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import date
from decimal import Decimal
from functools import partial
from typing import Any, NamedTuple

import pyarrow
import pyarrow.parquet

from cft.data.records import ScoredPair, Triplet

SEED = 20240801
COMBINED = 120  # files a seed that unite several mutations, besides those of one mutation each

DELIMITERS = {"csv": ",", "tsv": "\t"}
ROWS_OF_TEXT = ("csv", "tsv", "jsonl")
DELIMITED = ("csv", "tsv")
TEXT = ("txt", *ROWS_OF_TEXT, "json")
COLUMNED = (*ROWS_OF_TEXT, "json", "parquet")
ALL = (*TEXT, "parquet")


class Kind(NamedTuple):
    """What a file is for: its columns, and a good row's value."""

    name: str
    columns: tuple[str, ...]
    forms: tuple[str, ...]

    def value(self, cells: dict[str, Any]) -> Any:
        """What the reader has to give for a good row."""
        found = [cells[column] for column in self.columns]
        if self.name == "triplets":
            return Triplet(found[0], found[1], tuple(found[2]) if isinstance(found[2], list) else (found[2],))
        return ScoredPair(found[0], found[1], float(found[2])) if self.name == "pairs" else found[0]


TRIPLETS = Kind("triplets", ("sent0", "sent1", "hard_neg"), COLUMNED)
PAIRS = Kind("pairs", ("sentence1", "sentence2", "score"), COLUMNED)
TEXTS = Kind("texts", ("text",), ALL)
KINDS = (TRIPLETS, PAIRS, TEXTS)


@dataclass
class Row:
    """raw: what a text file holds instead of the cells; blank: lines before it. wrong: a pattern of the reason that it is bad."""

    cells: dict[str, Any]
    raw: "Callable[[Draft], str] | None" = None
    wrong: str | None = None
    blank: int = 0


class Expected(NamedTuple):
    """Of one data row: its value, or why it has none, and the line that it starts on, if the format has lines."""

    value: Any
    wrong: str | None
    line: int | None


@dataclass(frozen=True)
class Input:
    """A file.

    rows: what its rows are; None where nobody can know. refused: a pattern of the message
    that refuses the whole file; None if it is to be read. damaged: it may be refused or read.
    """

    kind: Kind
    name: str
    content: bytes
    rows: list[Expected] | None
    refused: str | None
    damaged: bool


@dataclass
class Draft:
    """A file in the making."""

    rng: random.Random
    kind: Kind
    form: str
    rows: list[Row] = field(default_factory=list)
    header: list[str] = field(default_factory=list)
    types: dict[str, Any] = field(default_factory=dict)
    line_ends: tuple[str, ...] = ("\n",)
    delimiter: str = ""
    above: str = ""  # what stands above the header
    literal: bool = False  # whether quotation marks are written as they are
    last_end: bool = True
    table: Callable[[pyarrow.Table], pyarrow.Table] = lambda table: table
    options: dict[str, Any] = field(default_factory=dict)
    recode: Callable[["Draft", str], bytes] = lambda draft, text: text.encode()
    wrap: Callable[["Draft", bytes], bytes] = lambda draft, content: content
    ending: str = ""
    refused: str | None = None
    damaged: bool = False
    known: bool = True
    anything: bool = False

    @property
    def places(self) -> list[str]:
        """Columns that hold texts."""
        return [column for column in self.kind.columns if column != "score"]

    def some_place(self) -> str:
        """A column that holds texts."""
        return self.rng.choice(self.places)

    def put(self, *rows: Row) -> None:
        """Add rows anywhere."""
        for row in rows:
            self.rows.insert(self.rng.randint(0, len(self.rows)), row)

    def refuse(self, pattern: str) -> None:
        """The file is bad as a whole; either of several reasons will do."""
        self.refused = pattern if self.refused is None else f"{self.refused}|{pattern}"

    def good(self, **cells: Any) -> dict[str, Any]:
        """Cells of a good row, some of them given."""
        found = {column: some_text(self.rng, self.form) for column in self.places}
        if "score" in self.kind.columns:
            found["score"] = self.rng.choice([0.0, 5.0, -1e-3, 4.4, 1e300, float(self.rng.randint(0, 99)), 2.5e-9])
        return found | cells


# Texts

_WORDS = "a cat sleeps on the warm roof while two birds, singing loudly; fly: past it".split()
_ODD = [
    "Émile 🎻 plays", "مرحبا بالعالم", "שלום עולם", "\u202eright to left\u202c", "zero\u200bwidth\u200d\ufeffs", "👩‍👩‍👧‍👦",
    "line\u2028separator", "next\u0085line", "form\x0cfeed", "escape\x1b[31m", "bell\x07", "unit\x1fseparator",
    "file\x1cseparator", " leading and trailing ", "null", "NaN", "None", "-", "0", "#comment", "=1+1", "back\\slash",
    "\\n", "{}", "[]", "comma, comma", "semi;colon", "it's", 'He said "no"', "ﬁ ligature", "e\u0301 combining",
    "\U0010ffff", "\ufffe", "\ufdd0", "%s {0} {text}", "/etc/passwd", "true", "\u200b", "PAR1",
]  # fmt: skip
_ODD_OF_ROWS = [
    "two\nlines",
    "three\r\nlines\r\n!",
    "lone\rCR",
    '"',
    '"quoted"',
    '""',
    "tab\there",
    "\nfirst",
    "last\n",
]


def some_text(rng: random.Random, form: str) -> str:
    """A good text, often an odd one."""
    if rng.random() < 0.5:
        return " ".join(rng.choices(_WORDS, k=rng.randint(1, 9)))
    return rng.choice(_ODD if form == "txt" else _ODD + _ODD_OF_ROWS)


# Mutations

_Mutate = Callable[[Draft], None]


class Mutation(NamedTuple):
    """A change to a draft. stage: at most one of each stage but "rows" is combined."""

    name: str
    stage: str
    forms: tuple[str, ...]
    kinds: tuple[Kind, ...]
    apply: _Mutate


MUTATIONS: list[Mutation] = []


def mutation(stage: str, forms: tuple[str, ...] = ALL, kinds: tuple[Kind, ...] = KINDS) -> Callable[[_Mutate], _Mutate]:
    """Enter a mutation under the name of its function."""

    def enter(apply: _Mutate) -> _Mutate:
        MUTATIONS.append(Mutation(apply.__name__, stage, forms, kinds, apply))
        return apply

    return enter


def each(stage: str, forms: tuple[str, ...], kinds: tuple[Kind, ...], made: dict[str, _Mutate]) -> None:
    """Enter several mutations by name."""
    MUTATIONS.extend(Mutation(name, stage, forms, kinds, apply) for name, apply in made.items())


def bad_cell(value: Any, wrong: str, column: str | None = None) -> _Mutate:
    """Put a row that has one bad cell."""

    def apply(draft: Draft) -> None:
        draft.put(Row(draft.good(**{column or draft.some_place(): value}), wrong=wrong))

    return apply


def bad_line(raw: str, wrong: str) -> _Mutate:
    """Put a line that is no row."""
    return lambda draft: draft.put(Row({}, raw=lambda draft: raw, wrong=wrong))


def good_cell(value: Any, column: str | None = None) -> _Mutate:
    """Put a row that has an unusual cell and is good."""
    return lambda draft: draft.put(Row(draft.good(**{column or draft.some_place(): value})))


def _bushy(depth: int) -> Any:
    return [_bushy(depth - 1)] * 6 if depth else {f"a long key number {n}": "a long text in it" * 9 for n in range(4)}


each("rows", ALL, KINDS, {
    "empty text": bad_cell("", "has an empty"),
    "blanks alone": bad_cell(" \t \u3000", "has an empty"),
    "a million characters": good_cell("x" * 1_000_000),
    "a million characters of four bytes": good_cell("🎻" * 1_000_000),
    "zero width alone": good_cell("\u200b\u200d"),
})  # fmt: skip
if sys.version_info >= (3, 11):  # the csv module of 3.10 refuses the whole file
    each("rows", ALL, KINDS, {"NUL": bad_cell("a\0b", "has a NUL byte")})

each("rows", ("jsonl",), KINDS, {
    "number for a text": bad_cell(3, r"has 3 \(int\)"),
    "fraction for a text": bad_cell(1.5, r"has 1.5 \(float\)"),
    "NaN for a text": bad_cell(float("nan"), r"has nan \(float\)"),
    "boolean for a text": bad_cell(True, r"has True \(bool\)"),
    "null for a text": bad_cell(None, "the cell is null"),
    "object for a text": bad_cell({"a": {"b": [1]}}, r"\(dict\)"),
    "bushy object for a text": bad_cell({"a": _bushy(4)}, r"\(dict\)"),
    "long number for a text": bad_cell(10**4000, r"\(int\)"),
    "surrogate": bad_cell("half \ud800 a character", "half a character"),
    "surrogates the wrong way round": bad_cell("\udc00\ud800", "half a character"),
    "array line": bad_line('["a", "b", "c"]', "is not a JSON object but"),
    "bushy array line": bad_line(json.dumps(_bushy(4)), "is not a JSON object but"),
    "array of objects": bad_line('[{"sent0": "a", "sent1": "b", "hard_neg": "c"}]', "is not a JSON object but"),
    "number line": bad_line("17", "is not a JSON object but"),
    "text line": bad_line('"a text"', "is not a JSON object but"),
    "long text line": bad_line(json.dumps("x" * 100_000), "is not a JSON object but"),
    "null line": bad_line("null", "is not a JSON object but null"),
    "NaN line": bad_line("NaN", "is not a JSON object but"),
    "empty object": bad_line("{}", "has no "),
    "cut line": bad_line('{"sent0": "a", "sent1": "b', r"is not valid JSON \(Unterminated string starting at character \d+\)"),
    "cut at a colon": bad_line('{"text":', "is not valid JSON"),
    "trailing comma": bad_line('{"text": "a", "sent0": "b",}', "is not valid JSON"),
    "single quotes": bad_line("{'text': 'a'}", "is not valid JSON"),
    "comment line": bad_line("// a comment", "is not valid JSON"),
    "two objects": bad_line('{"text": "a"} {"text": "b"}', "is not valid JSON"),
    "raw control character": bad_line('{"text": "a\tb"}', "is not valid JSON"),
    "bad escape": bad_line(r'{"text": "\x41"}', "is not valid JSON"),
    "byte order mark within": bad_line('\ufeff{"x": "a"}', "is not valid JSON|has no "),
    "deep list": bad_line("[" * 100_000 + "]" * 100_000, "is not JSON that can be read"),
    "deep object": bad_line('{"text":' * 50_000 + "1" + "}" * 50_000, "is not JSON that can be read"),
    "huge integer": bad_line('{"text": ' + "9" * 5000 + "}", "is not JSON that can be read"),
    "million brackets": bad_line("[" * 1_000_000, "is not JSON that can be read"),
})  # fmt: skip


@mutation("rows", ("jsonl",))
def repeated_key(draft):
    cells, column = draft.good(), draft.some_place()
    twice = Row({}, raw=lambda draft: f"{{{json.dumps(column)}: 17, {json.dumps(cells)[1:]}", wrong="has the key ")
    draft.put(twice, Row(draft.good()))


@mutation("rows", ("jsonl",))
def missing_key(draft):
    cells, column = draft.good(), draft.some_place()
    del cells[column]
    draft.put(Row({}, raw=lambda draft: json.dumps(cells), wrong="has no "), Row(draft.good()))


@mutation("rows", ("jsonl",))
def odd_further_cells(draft):
    deep: Any = []
    for _ in range(200):
        deep = [deep]
    more = {"x": float("nan"), "y": -float("inf"), "z": deep, "": None, "\ud800": "\udfff", "n": 10**300}
    draft.put(Row(draft.good(**more)))


@mutation("rows", ("jsonl",), (TRIPLETS,))
def lists_of_negatives(draft):
    draft.put(
        Row(draft.good(hard_neg=["a", "b"])),
        Row(draft.good(hard_neg=[]), wrong="has an empty list"),
        Row(draft.good(hard_neg=["a", None]), wrong="null"),
        Row(draft.good(hard_neg=["a", ""]), wrong="has an empty"),
        Row(draft.good(hard_neg=[["a"]]), wrong="list"),
    )


_NO_NUMBER = "is not a finite number"
each("rows", COLUMNED, (PAIRS,), {
    "score NaN": bad_cell(float("nan"), _NO_NUMBER, "score"),
    "score infinite": bad_cell(float("-inf"), _NO_NUMBER, "score"),
    "score huge": good_cell(1.7e308, "score"),
    "score tiny": good_cell(5e-324, "score"),
})  # fmt: skip
each("rows", ROWS_OF_TEXT, (PAIRS,), {
    "score text": bad_cell("high", _NO_NUMBER, "score"),
    "score long text": bad_cell("high" * 100_000, _NO_NUMBER, "score"),
    "score long number": bad_cell("1" * 100_000, _NO_NUMBER, "score"),
    "score empty": bad_cell("", _NO_NUMBER, "score"),
    "score with comma": bad_cell("4,4", _NO_NUMBER, "score"),
    "score with underscore": bad_cell("4_4", _NO_NUMBER, "score"),
    "score past the largest": bad_cell("1e999", _NO_NUMBER, "score"),
    "score hexadecimal": bad_cell("0x10", _NO_NUMBER, "score"),
    "score as text": good_cell(" 3.5 ", "score"),
    "score in other digits": good_cell("٣", "score"),
})  # fmt: skip
each("rows", ("jsonl",), (PAIRS,), {
    "score true": bad_cell(True, _NO_NUMBER, "score"),
    "score null": bad_cell(None, "the cell is null", "score"),
    "score list": bad_cell([1.0], _NO_NUMBER, "score"),
    "score object": bad_cell({"value": _bushy(3)}, _NO_NUMBER, "score"),
    "score of 400 digits": bad_cell(10**400, _NO_NUMBER, "score"),
    "score of 4000 digits": bad_cell(10**4000, _NO_NUMBER, "score"),
})  # fmt: skip


def ragged(cells: int, draft: Draft) -> str:
    """A row of some cells, more or fewer than the header's."""
    return delimited(["x"] * (len(draft.header) + cells), draft)


each("rows", DELIMITED, (TRIPLETS, PAIRS), {
    "too few cells": lambda d: d.put(Row({}, raw=lambda draft: ragged(-1, draft), wrong="has too few cells")),
    "blanks for a row": bad_line("  ", "has too few cells"),
    "another delimiter": bad_line("x;y;z", "has too few cells"),
})  # fmt: skip
each("rows", DELIMITED, KINDS, {
    "too many cells": lambda d: d.put(Row({}, raw=lambda draft: ragged(1, draft), wrong="has too many cells")),
    "far too many cells": lambda d: d.put(Row({}, raw=lambda draft: ragged(50_000, draft), wrong="has too many cells")),
})  # fmt: skip


@mutation("rows", ROWS_OF_TEXT)
def blank_lines(draft):
    for row in draft.rng.sample(draft.rows, 2):
        row.blank = draft.rng.randint(1, 3)


# Mutations of columns


def lacks_column(draft: Draft) -> None:
    """The file is to be refused for a column; lines written by hand might have it."""
    draft.rows = [row for row in draft.rows if row.raw is None or draft.form != "jsonl"]
    draft.refuse("has no column '")


@mutation("columns", COLUMNED)
def missing_column(draft):
    draft.header.remove(draft.rng.choice(draft.header))
    draft.header.append("something")
    lacks_column(draft)


@mutation("columns", COLUMNED)
def odd_case(draft):
    place = draft.rng.randrange(len(draft.header))
    name = draft.header[place]
    draft.header[place] = draft.rng.choice([name.upper(), f" {name}", f"{name} ", name.title()])
    lacks_column(draft)
    draft.refused = f"has no column '{name}'.*Did you mean "


@mutation("columns", COLUMNED)
def blank_column_name(draft):
    draft.header[draft.rng.randrange(len(draft.header))] = draft.rng.choice(["", " "])
    lacks_column(draft)


@mutation("columns", (*DELIMITED, "parquet"))
def repeated_column(draft):
    draft.header.append(draft.rng.choice(draft.header))
    draft.refuse("more than once")


@mutation("columns", COLUMNED)
def long_column_names(draft):
    for n in range(30):
        draft.header.insert(0, f"{n} " + "a sentence as a column's name " * 500)
    if draft.rng.random() < 0.7:
        draft.header.remove(draft.rng.choice(draft.kind.columns))
        lacks_column(draft)


@mutation("columns", (*DELIMITED, "parquet"))
def long_column_name_twice(draft):
    draft.header += ["a long name " * 500] * 2
    draft.refuse("more than once")


@mutation("columns", COLUMNED)
def odd_column_names(draft):
    draft.header += ["", "a\nb", "\u202e", "\x1b[31m", "'", "a.b", "🎻"]


@mutation("columns", COLUMNED)
def ten_thousand_columns(draft):
    names = [f"column {n}" for n in range(1_000 if draft.form == "parquet" else 10_000)]  # pyarrow takes seconds
    draft.header[draft.rng.randint(0, len(draft.header)) :] += names
    draft.rows = draft.rows[:4] + [row for row in draft.rows[4:] if row.wrong]


@mutation("columns", COLUMNED)
def shuffled_columns(draft):
    draft.header.append("further")
    draft.rng.shuffle(draft.header)


@mutation("columns", DELIMITED)
def no_header(draft):
    draft.header = [*(["a long sentence that should have been a row " * 40] * (len(draft.header) - 1)), "x"]
    draft.header = [f"{n} {name}" for n, name in enumerate(draft.header)]
    draft.refuse("has no column '")


def other_delimiter(draft: Draft, delimiter: str) -> None:
    """Separate the columns by another sign, which is found out; lines written by hand might then be other rows."""
    draft.rows = [row for row in draft.rows if row.raw is None]
    draft.delimiter = delimiter


@mutation("columns", DELIMITED, (TRIPLETS, PAIRS))
def semicolons(draft):
    other_delimiter(draft, ";")


@mutation("columns", DELIMITED, (TRIPLETS, PAIRS))
def pipes(draft):
    other_delimiter(draft, "|")


@mutation("columns", DELIMITED, (TRIPLETS, PAIRS))
def the_other_delimiter(draft):
    other_delimiter(draft, {"csv": "\t", "tsv": ","}[draft.form])


@mutation("columns", DELIMITED, (TRIPLETS, PAIRS))
def a_line_for_excel(draft):
    other_delimiter(draft, draft.rng.choice(";,\t|"))
    draft.above = draft.rng.choice(["sep={}\n", "SEP={}\r\n", '"sep={}"\n', "\nsep={}\n"]).format(draft.delimiter)


@mutation("columns", DELIMITED, (TRIPLETS, PAIRS))
def a_delimiter_that_is_not_known(draft):
    draft.rows = [row for row in draft.rows if row.raw is None]
    draft.delimiter = "^"
    draft.refuse("has no column '|broken quoting")


@mutation("columns", ("tsv",), (TRIPLETS, PAIRS))
def quotes_without_a_pair(draft):
    draft.rows = [row for row in draft.rows if row.raw is None and row.wrong is None]
    odd = ['"Well', 'he said, "no"', 'no"', '"One" two', '"', '""', 'a "quoted" word', '"Well,", he said', '"quoted"']
    draft.rows += [Row(draft.good()) for _ in range(6)]
    for row in draft.rows:
        for column in draft.places:
            row.cells[column] = draft.rng.choice(odd)
    draft.rows.append(Row(draft.good(**dict.fromkeys(draft.places, '"Well, who knows" is no reply'))))
    draft.literal = True


@mutation("columns")
def no_rows(draft):
    draft.rows = []
    draft.refuse("has no data rows|is empty")


@mutation("columns")
def one_row(draft):
    draft.rows = [row for row in draft.rows if row.wrong is None][:1]


@mutation("columns", COLUMNED, (PAIRS,))
def equal_scores(draft):
    for row in draft.rows:
        if row.wrong is None:
            row.cells["score"] = 3.0


# Mutations of how text is written


def lines(*ends: str) -> _Mutate:
    """Set how lines end."""

    def apply(draft: Draft) -> None:
        draft.line_ends = ends

    return apply


each("lines", TEXT, KINDS, {"CRLF": lines("\r\n"), "lone CR": lines("\r"), "mixed ends": lines("\n", "\r\n")})


@mutation("lines", TEXT)
def no_end_of_the_last_line(draft):
    draft.last_end = False


@mutation("lines", TEXT)
def byte_order_mark(draft):
    draft.recode = lambda draft, text: text.encode("utf-8-sig")


@mutation("encoding", ROWS_OF_TEXT)
def two_byte_order_marks(draft):
    draft.recode = lambda draft, text: ("\ufeff" + text).encode("utf-8-sig")
    if draft.header == list(draft.kind.columns) and draft.form != "jsonl":
        draft.refuse("has no column '")
    else:
        draft.anything = True  # what comes first is bad; that may be a row, or a column that is not needed


def encoded(encoding: str, refused: str) -> _Mutate:
    """Write the text in another encoding, with a character in which it differs."""

    def apply(draft: Draft) -> None:
        cells = draft.good(**{draft.some_place(): "Émile"})
        # Escaped, it would be ASCII.
        raw = (lambda draft: as_json(cells, False)) if draft.form in ("json", "jsonl") else None
        draft.put(Row(cells, raw=raw))
        draft.recode = lambda draft, text: text.encode(encoding, errors="replace")
        draft.known = False
        draft.refuse(refused)

    return apply


each("encoding", TEXT, KINDS, {
    "latin-1": encoded("latin-1", r"line \d+ is not valid UTF-8 .*iconv -f cp1252"),
    "UTF-16": encoded("utf-16", "UTF-16"),
    "UTF-16 of the other order": encoded("utf-16-be", "UTF-16|not valid UTF-8"),
    "UTF-16 without mark": encoded("utf-16-le", "UTF-16|not valid UTF-8"),
    "UTF-32": encoded("utf-32", "UTF-32"),
})  # fmt: skip

_NO_UTF8 = [b"\xff", b"\xfe", b"\xc3", b"\x80", b"\xc0\x80", b"\xed\xa0\x80", b"\xf4\x90\x80\x80", b"\xe2\x82", b"\xf8"]


@mutation("encoding", TEXT)
def invalid_bytes(draft):
    def recode(draft: Draft, text: str) -> bytes:
        place = draft.rng.randint(0, len(text))
        before, bad = text[:place].encode(), draft.rng.choice(_NO_UTF8)
        line = 1 + len(re.findall(rb"\r\n?|\n", before))
        draft.refuse(f"line {line} is not valid UTF-8")
        return before + bad + text[place:].encode()

    draft.recode = recode


@mutation("encoding", TEXT)
def cut_within_a_character(draft):
    draft.recode = lambda draft, text: text.encode() + "é".encode()[:1]
    draft.refuse(r"line \d+ is not valid UTF-8")


def refuse_quoting(draft: Draft) -> None:
    """The file is bad for its quotes; between tabs they may as well be part of the texts."""
    if draft.form == "tsv" or draft.delimiter == "\t":
        draft.anything = True
    else:
        draft.refuse("broken quoting")


@mutation("encoding", DELIMITED)
def unbalanced_quote(draft):
    draft.recode = lambda draft, text: text.encode() + b'\n"an open quote, and \tno end\n'
    refuse_quoting(draft)


@mutation("encoding", DELIMITED)
def quote_within_quotes(draft):
    raw = draft.rng.choice(['"He said "no" to"', '"a"b'])
    draft.recode = lambda draft, text: text.encode() + f"\n{raw}\n".encode()
    refuse_quoting(draft)


@mutation("encoding", ("jsonl",))
def cut_last_line(draft):
    def recode(draft: Draft, text: str) -> bytes:
        return text.rstrip("\r\n")[: -draft.rng.randint(1, 5)].encode()

    draft.last_end = False
    draft.recode = recode
    draft.rows.append(Row({}, raw=lambda draft: json.dumps(draft.good()), wrong="is not valid JSON"))


@mutation("encoding", ("jsonl",))
def a_whole_array(draft):
    indent = draft.rng.choice([None, 2])
    draft.recode = lambda draft, text: json.dumps([row.cells for row in draft.rows], indent=indent).encode()
    draft.known = False
    draft.refuse(
        "holds one JSON list|none of its|has no column|has no data rows|is not a JSON object but|is not valid JSON"
    )


@mutation("encoding", TEXT)
def text_of_noise(draft):
    draft.recode = lambda draft, text: bytes(draft.rng.randrange(256) for _ in range(draft.rng.randint(1, 5000)))
    draft.anything = True


@mutation("encoding", TEXT)
def text_of_printable_noise(draft):
    some = [chr(code) for code in range(32, 127)] + ['"', ",", "\n", "\r", "\t", "{", "}", "[", "]", ":", "\\u", "\0"]
    draft.recode = lambda draft, text: "".join(draft.rng.choices(some, k=draft.rng.randint(1, 5000))).encode()
    draft.anything = True


@mutation("encoding", TEXT)
def bytes_flipped(draft):
    draft.recode = lambda draft, text: flipped(draft, text.encode())
    draft.anything = True


# Mutations of bytes and names


def flipped(draft: Draft, content: bytes) -> bytes:
    """The content with one to twenty bytes changed."""
    changed = bytearray(content or b"x")
    for _ in range(draft.rng.randint(1, 20)):
        changed[draft.rng.randrange(len(changed))] = draft.rng.randrange(256)
    return bytes(changed)


def wrapped(ending: str, wrap: Callable[[Draft, bytes], bytes], refused: str | None = None) -> _Mutate:
    """Put the content into another, under another ending."""

    def apply(draft: Draft) -> None:
        draft.ending, draft.wrap = ending, wrap
        if refused:
            draft.refuse(refused)

    return apply


def _cut(draft: Draft, content: bytes) -> bytes:
    return content[: draft.rng.randrange(1, len(content))]


def _members(draft: Draft, content: bytes) -> bytes:
    places = sorted(draft.rng.randint(0, len(content)) for _ in range(draft.rng.randint(1, 4)))
    starts = [0, *places]
    return b"".join(zipped(content[a:b]) for a, b in zip(starts, [*places, len(content)], strict=True))


def zipped(content: bytes) -> bytes:
    """Gzip without a clock in it."""
    return gzip.compress(content, compresslevel=1, mtime=0)


_NOT_WHOLE = "not a whole gzip file"
each("bytes", TEXT, KINDS, {
    "gzip": wrapped(".gz", lambda draft, content: zipped(content)),
    "gzip of members": wrapped(".gz", _members),
    "gzip and zeros": wrapped(".gz", lambda draft, content: zipped(content) + bytes(draft.rng.randint(1, 999))),
    "gzip and an empty member": wrapped(".gz", lambda draft, content: zipped(b"") + zipped(content) + zipped(b"")),
    "gzip and noise": wrapped(".gz", lambda draft, content: zipped(content) + b"noise", _NOT_WHOLE),
    "gzip cut": wrapped(".gz", lambda draft, content: _cut(draft, zipped(content)), _NOT_WHOLE),
    "gzip, second member cut": wrapped(
        ".gz", lambda draft, content: zipped(content) + _cut(draft, zipped(b"")), _NOT_WHOLE
    ),
    "plain named gzip": wrapped(".gz", lambda draft, content: b"x" + content, _NOT_WHOLE),
    "noise named gzip": wrapped(".gz", lambda draft, content: b"\1" + draft.rng.randbytes(999), _NOT_WHOLE),
    "noise in gzip": wrapped(
        ".gz", lambda draft, content: zipped(content + draft.rng.randbytes(99) + b"\xff"), "not valid UTF-8"
    ),
    "gzip twice": wrapped(".gz", lambda draft, content: zipped(zipped(content)), "gzip"),
    "gzip not named so": wrapped("", lambda draft, content: zipped(content), "gzip"),
})  # fmt: skip


@mutation("bytes", TEXT)
def gzip_flipped(draft):
    draft.ending, draft.wrap = ".gz", lambda draft, content: flipped(draft, zipped(content))
    draft.damaged = True  # a name or a time in its head may be what was changed


@mutation("bytes", TEXT)
def empty_file(draft):
    draft.ending, draft.wrap = draft.rng.choice(["", ".gz"]), lambda draft, content: b""
    draft.refuse("is empty")


@mutation("bytes", ROWS_OF_TEXT)
def text_named_parquet(draft):
    draft.ending = "parquet"
    draft.refuse("not a whole Parquet file")


@mutation("bytes", ("parquet",))
def parquet_named_as_text(draft):
    draft.ending = draft.rng.choice(["csv", "tsv", "jsonl", *(["txt"] if draft.kind is TEXTS else [])])
    draft.anything = draft.ending == "txt"  # where bytes make lines, some may be texts
    draft.known = False
    draft.refuse("Parquet|has no column|is empty|broken quoting|none of its|is not valid JSON|NUL byte")


@mutation("bytes", ("parquet",))
def parquet_flipped(draft):
    draft.anything, draft.wrap = True, flipped


each("bytes", ("parquet",), KINDS, {
    "Parquet cut": wrapped("", _cut, "not a whole Parquet file"),
    "Parquet of noise": wrapped("", lambda d, content: b"PAR1" + d.rng.randbytes(999) + b"PAR1", "not a whole Parquet"),
    "Parquet without its head": wrapped("", lambda d, content: content[-d.rng.randint(9, 99) :], "not a whole Parquet"),
    "gzip named Parquet": wrapped("", lambda draft, content: zipped(content), "not a whole Parquet file"),
})  # fmt: skip


# Mutations of Parquet


def typed(kind_of: Callable[[Draft], str], kind: Any, convert: Callable[[Any], Any], wrong: str | None) -> _Mutate:
    """Give a column another type, which makes all its cells good or bad."""

    def apply(draft: Draft) -> None:
        column = kind_of(draft)
        draft.types[column] = kind
        for row in draft.rows:
            row.cells[column] = convert(row.cells[column])
            mended = column == "score" and row.wrong == _NO_NUMBER
            row.wrong = "|".join(filter(None, [None if mended else row.wrong, wrong])) or None

    return apply


def _some_place(draft: Draft) -> str:
    return draft.some_place()


def _score(draft: Draft) -> str:
    return "score"


_TEXT = "is not a text"
each("types", ("parquet",), (TRIPLETS, PAIRS, TEXTS), {
    "large strings": typed(_some_place, pyarrow.large_string(), lambda cell: cell, None),
    "string views": typed(_some_place, pyarrow.string_view(), lambda cell: cell, None),
    "dictionary": typed(_some_place, pyarrow.dictionary(pyarrow.int32(), pyarrow.string()), lambda cell: cell, None),
    "integers": typed(_some_place, pyarrow.int64(), len, _TEXT),
    "booleans": typed(_some_place, pyarrow.bool_(), bool, _TEXT),
    "bytes": typed(_some_place, pyarrow.binary(), lambda cell: cell.encode(), _TEXT),
    "structs": typed(
        _some_place, pyarrow.struct([("a", pyarrow.string())]), lambda cell: {"a": cell[:999]}, _TEXT
    ),
    "maps": typed(
        _some_place, pyarrow.map_(pyarrow.string(), pyarrow.int8()), lambda cell: [(cell[:9], 1)], f"{_TEXT}|tuple"
    ),
    "nulls": typed(_some_place, pyarrow.null(), lambda cell: None, "the cell is null"),
    "decimals": typed(_some_place, pyarrow.decimal128(9, 2), lambda cell: Decimal("1.25"), _TEXT),
    "dates": typed(_some_place, pyarrow.date32(), lambda cell: date(2024, 8, 1), _TEXT),
    "dates far away": typed(_some_place, pyarrow.date32(), lambda cell: 2**30, "cannot be read|is not a text"),
    "times far away": typed(_some_place, pyarrow.timestamp("us"), lambda cell: 2**61, "cannot be read|is not a text"),
    "spans far away": typed(_some_place, pyarrow.duration("s"), lambda cell: 2**62, "cannot be read|is not a text"),
    "times nowhere": typed(
        _some_place, pyarrow.timestamp("us", tz="No/Where"), lambda cell: 2**40, "cannot be read|is not a text"
    ),
})  # fmt: skip
each("types", ("parquet",), (TRIPLETS,), {
    "lists": typed(lambda draft: "hard_neg", pyarrow.list_(pyarrow.string()), lambda cell: [cell, "more"], None),
})  # fmt: skip
each("types", ("parquet",), (PAIRS,), {
    "score of decimals": typed(_score, pyarrow.decimal128(9, 2), lambda cell: Decimal("1.25"), None),
    "score of integers": typed(_score, pyarrow.int8(), lambda cell: 3, None),
    "score of large integers": typed(_score, pyarrow.uint64(), lambda cell: 2**64 - 1, None),
    "score of small floats": typed(_score, pyarrow.float32(), lambda cell: 2.5, None),
    "score of half floats": typed(_score, pyarrow.float16(), lambda cell: 2.5, None),
    "score of texts": typed(_score, pyarrow.string(), lambda cell: "2.5", None),
    "score of booleans": typed(_score, pyarrow.bool_(), lambda cell: True, _NO_NUMBER),
    "score of times": typed(_score, pyarrow.timestamp("us"), lambda cell: 2**61, f"{_NO_NUMBER}|cannot be read"),
    "score of lists": typed(_score, pyarrow.list_(pyarrow.float64()), lambda cell: [2.5], _NO_NUMBER),
})  # fmt: skip


@mutation("types", ("parquet",))
def null_cells(draft):
    for row in draft.rng.sample(draft.rows, min(2, len(draft.rows))):
        row.cells[draft.rng.choice(draft.kind.columns)] = None
        row.wrong = "the cell is null" if row.wrong is None else f"{row.wrong}|the cell is null"


@mutation("types", ("parquet",))
def bytes_that_are_no_utf8(draft):
    place = draft.rng.randrange(len(draft.rows) or 1)
    column = draft.some_place()

    def table(table: pyarrow.Table) -> pyarrow.Table:
        if table.schema.get_field_index(column) < 0:  # another mutation took it away, or doubled it
            return table
        cells = [b"\xff\xfe" if n == place else b"text" for n in range(len(table))]
        raw = pyarrow.array(cells)
        column_of_it = pyarrow.Array.from_buffers(pyarrow.string(), len(cells), raw.buffers())
        return table.set_column(table.schema.get_field_index(column), column, column_of_it)

    draft.table, draft.known = table, False
    draft.refuse(f"data row {place + 1} is not valid UTF-8")


@mutation("types", ("parquet",))
def many_row_groups(draft):
    draft.options = {"row_group_size": 2, "compression": draft.rng.choice(["none", "gzip", "zstd", "snappy", "brotli"])}


# From a draft to a file


def delimited(cells: list[str], draft: Draft) -> str:
    """One row as CSV, in quotes where it must be and sometimes where it need not."""
    delimiter = draft.delimiter or DELIMITERS[draft.form]
    if draft.literal:
        return delimiter.join(cells)

    def quoted(cell: str) -> str:
        must = (
            cell == "" and len(cells) == 1 or cell.startswith('"') or any(sign in cell for sign in (delimiter, *"\r\n"))
        )
        return '"' + cell.replace('"', '""') + '"' if must or draft.rng.random() < 0.3 else cell

    return delimiter.join(map(quoted, cells))


def written(row: Row, draft: Draft) -> str:
    """A row as a line of a text file."""
    if draft.form == "txt":
        return str(row.cells[draft.kind.columns[0]])
    if draft.form in ("json", "jsonl"):
        more = {name: "more" for name in draft.header if name not in draft.kind.columns}
        cells = {
            name: cell for name, cell in row.cells.items() if name in draft.header or name not in draft.kind.columns
        }
        return as_json(cells | more, draft.rng.random() < 0.5)
    return delimited([as_cell(row.cells.get(name, "more")) for name in draft.header], draft)


def as_json(value: Any, ascii_only: bool) -> str:
    """JSON, in which halves of characters are escaped: UTF-8 has none."""
    text = json.dumps(value, ensure_ascii=ascii_only)
    return json.dumps(value) if re.search("[\ud800-\udfff]", text) else text


def as_cell(value: Any) -> str:
    """A value as CSV holds it."""
    return value if isinstance(value, str) else repr(value)


def text_of(draft: Draft) -> tuple[str, list[int]]:
    """The text of a draft, and the line on which each of its rows starts."""
    parts: list[str] = []
    starts: list[int] = []
    line = 1

    def add(text: str) -> None:
        nonlocal line
        parts.append(text)
        line += len(re.findall(r"\r\n?|\n", text))

    if draft.form == "json":
        add(f"[{draft.rng.choice(draft.line_ends)}")
    if draft.form in DELIMITED:
        add(draft.above)
        add(delimited(draft.header, draft) + draft.rng.choice(draft.line_ends))
    for number, row in enumerate(draft.rows, start=1):
        add("".join(draft.rng.choices(draft.line_ends, k=row.blank)))
        starts.append(line)
        text = written(row, draft) if row.raw is None else row.raw(draft)
        if draft.form == "json":
            text += "," * (number < len(draft.rows))
        ends = draft.last_end or number < len(draft.rows) or not text
        add(text + (draft.rng.choice(draft.line_ends) if ends else ""))
    if draft.form == "json":
        add("]")
    return "".join(parts), starts


def parquet_of(draft: Draft) -> bytes:
    """A draft as Parquet."""
    columns = [
        pyarrow.array(
            [row.cells.get(name, "more") for row in draft.rows],
            type=draft.types.get(name, pyarrow.float64() if name == "score" else pyarrow.string()),
        )
        for name in draft.header
    ]
    table = draft.table(pyarrow.Table.from_arrays(columns, names=draft.header))
    stream = io.BytesIO()
    pyarrow.parquet.write_table(table, stream, **draft.options)
    return stream.getvalue()


def finish(draft: Draft, number: int) -> Input:
    """Write a draft down."""
    if draft.form == "parquet":
        content, starts = parquet_of(draft), [None] * len(draft.rows)
    else:
        text, starts = text_of(draft)
        content = draft.recode(draft, text)
    content = draft.wrap(draft, content)
    if draft.ending in ("", ".gz"):
        name = f"rows{number}.{draft.form}{draft.ending}"
    else:
        name = f"rows{number}.{draft.ending}"
    rows = [
        Expected(None if row.wrong else draft.kind.value(row.cells), row.wrong, line)
        for row, line in zip(draft.rows, starts, strict=True)
    ]
    if draft.anything:
        rows, draft.refused, draft.damaged = [], None, True
    return Input(
        draft.kind,
        name,
        content,
        rows if draft.known and not draft.anything else None,
        draft.refused,
        draft.damaged,
    )


def blank_draft(rng: random.Random, kind: Kind, form: str) -> Draft:
    """Good rows, two to nine."""
    draft = Draft(rng, kind, form, header=list(kind.columns))
    draft.rows = [Row(draft.good()) for _ in range(rng.randint(2, 9))]
    return draft


_STAGES = ("rows", "columns", "types", "lines", "encoding", "bytes")


def plan_single() -> list[tuple[Kind, str, list[Mutation]]]:
    """Each mutation alone, for every kind it is for and one of its forms in turn."""
    found: list[tuple[Kind, str, list[Mutation]]] = [(kind, form, []) for kind in KINDS for form in kind.forms]
    for turn, entry in enumerate(MUTATIONS):
        for kind in entry.kinds:
            forms = [form for form in entry.forms if form in kind.forms]
            if forms:
                found.append((kind, forms[turn % len(forms)], [entry]))
    return found


def plan_combined(rng: random.Random) -> tuple[Kind, str, list[Mutation]]:
    """Several mutations that one file can have."""
    kind = rng.choice(KINDS)
    form = rng.choice(kind.forms)
    fit = [entry for entry in MUTATIONS if form in entry.forms and kind in entry.kinds]
    chosen: list[Mutation] = []
    for stage, chance in zip(_STAGES, (1.0, 0.25, 0.4, 0.4, 0.15, 0.4), strict=True):
        of_stage = [entry for entry in fit if entry.stage == stage]
        if of_stage and rng.random() < chance:
            chosen += rng.sample(of_stage, min(len(of_stage), rng.randint(1, 4) if stage == "rows" else 1))
    return kind, form, chosen


def draw(factor: int) -> dict[str, Callable[[], Input]]:
    """The inputs, by number and what is done to them; each is made when asked for, the same for the same number."""
    plans = []
    for turn in range(factor):
        rng = random.Random(f"{SEED} {turn}")
        plans += plan_single() + [plan_combined(rng) for _ in range(COMBINED)]
    return {f"{number} {described(*plan)}": partial(make, number, *plan) for number, plan in enumerate(plans)}


def described(kind: Kind, form: str, mutations: list[Mutation]) -> str:
    """A file and what is done to it."""
    return f"{kind.name} {form}: {', '.join(entry.name.replace('_', ' ') for entry in mutations) or 'nothing'}"


def make(number: int, kind: Kind, form: str, mutations: list[Mutation]) -> Input:
    """One input."""
    draft = blank_draft(random.Random(f"{SEED} input {number}"), kind, form)
    for entry in mutations:
        entry.apply(draft)
    return finish(draft, number)


def factor() -> int:
    """How many seeds, from the environment variable CFT_FUZZ."""
    return max(1, int(os.environ.get("CFT_FUZZ", "1")))
