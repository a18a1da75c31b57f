"""Users' files: every format gives the same rows, and every bad row is named."""

import csv
import gzip
import json
import os
import sys
from pathlib import Path

import pyarrow
import pyarrow.parquet
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cft.data.files import BadRows, Skipped, TripletColumns, read_scored_pairs, stream_texts, stream_triplets
from cft.data.records import ScoredPair, Triplet
from cft.system.errors import UserError

TEXT_ENDINGS = [".csv", ".tsv", ".jsonl", ".ndjson", ".json"]
ENDINGS = [*TEXT_ENDINGS, *(f"{ending}.gz" for ending in TEXT_ENDINGS), ".parquet"]
ROWS = [
    {"sent0": "A man, playing.", "sent1": 'He "plays".', "hard_neg": "Two\nlines"},
    {"sent0": "Émile 🎻", "sent1": " مرحبا ", "hard_neg": "tab\there"},
]
COLUMNS = {"anchor": "sent0", "positive": "sent1", "negatives": ["hard_neg"]}
HEADER = "sent0,sent1,hard_neg\n"


def write(folder: Path, ending: str, rows: list[dict]) -> Path:
    """Write rows in the format of an ending."""
    path = folder / f"rows{ending}"
    if ending == ".parquet":
        pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows), path)
        return path
    opener = gzip.open if ending.endswith(".gz") else open
    with opener(path, "wt", encoding="utf-8", newline="") as stream:
        kind = ending.removesuffix(".gz")
        if kind == ".json":
            json.dump(rows, stream, indent=1)
        elif kind in (".csv", ".tsv"):
            writer = csv.writer(stream, delimiter="," if kind == ".csv" else "\t", quoting=csv.QUOTE_ALL)
            writer.writerows([rows[0].keys(), *(row.values() for row in rows)])
        else:
            stream.writelines(json.dumps(row) + "\n" for row in rows)
    return path


def read_triplets(path: Path, **options: object) -> tuple[list[Triplet], list[Skipped]]:
    """Everything that `stream_triplets` gives, sorted into what can be used and what was left out."""
    found = list(stream_triplets(path, TripletColumns(**options)))
    return [row for row in found if isinstance(row, Triplet)], [row for row in found if isinstance(row, Skipped)]


def as_json(**changes: object) -> str:
    """A line of JSONL: a good row with changed cells."""
    return json.dumps({"sent0": "a", "sent1": "b", "hard_neg": "c", **changes}) + "\n"


# What is read


def test_a_row_with_several_positives_gives_a_triplet_for_each_or_for_one(tmp_path):
    path = tmp_path / "rows.jsonl"
    path.write_text(as_json(sent0="q", sent1=["b", "d", "e"], hard_neg=["c", "f"]) + as_json(sent0="x", sent1="y"))
    all_of_them = [Triplet("q", each, ("c", "f")) for each in "bde"]
    assert read_triplets(path, **COLUMNS)[0] == [*all_of_them, Triplet("x", "y", ("c",))]
    (drawn, other) = read_triplets(path, **COLUMNS, draw=True)[0]
    assert drawn in all_of_them and other == Triplet("x", "y", ("c",))
    path.write_text(as_json() + path.read_text())
    assert read_triplets(path, **COLUMNS, draw=True)[0][1:] == [drawn, other]


FLAG_ROWS = [
    {"query": "q", "pos": ["b", "d"], "neg": ["c"], "pos_scores": [1, 2], "id": "7"},
    {"query": "x", "pos": ["y"], "neg": ["z", "w"]},
]


@pytest.mark.parametrize("ending", [".jsonl", ".json", ".json.gz", ".parquet"])
def test_rows_as_flagembedding_writes_them_are_read(tmp_path, ending):
    path = write(tmp_path, ending, FLAG_ROWS)
    found = read_triplets(path, **COLUMNS)[0]
    assert found == [Triplet("q", "b", ("c",)), Triplet("q", "d", ("c",)), Triplet("x", "y", ("z", "w"))]
    pairs = read_triplets(path, **{**COLUMNS, "negatives": []})[0]
    assert pairs == [Triplet("q", "b", ()), Triplet("q", "d", ()), Triplet("x", "y", ())]


def test_rows_as_flagembedding_writes_them_without_negatives_are_named(tmp_path):
    path = write(tmp_path, ".jsonl", [{"query": "q", "pos": ["b"]}])
    with pytest.raises(UserError, match=r"data row 1 \(rows.jsonl:1\) has no 'negative' \(column 'neg'\)"):
        read_triplets(path, **COLUMNS)


def test_a_column_that_is_missing_is_looked_for_among_those_of_the_likeliest_separator(tmp_path):
    path = tmp_path / "h.csv"
    path.write_text("Nr;Frage, lang;Antwort\n1;wie;so\n2;wo;dort\n")
    with pytest.raises(UserError, match="its columns are 'Nr', 'Frage, lang', 'Antwort'"):
        list(stream_texts(path, column="question"))


def test_a_delimiter_can_be_said(tmp_path):
    path = tmp_path / "rows.csv"
    path.write_text("sent0|sent1|hard_neg\na, b|c; d|e\n")
    assert read_triplets(path, **COLUMNS)[0] == read_triplets(path, **COLUMNS, delimiter="|")[0]
    assert read_triplets(path, **COLUMNS)[0] == [Triplet("a, b", "c; d", ("e",))]
    with pytest.raises(UserError, match="has no column 'hard_neg' .*its columns are 'sent0|sent1|hard_neg'"):
        read_triplets(path, **COLUMNS, delimiter=";")


@pytest.mark.parametrize("name", ["rows.csv", "rows.jsonl.gz", "rows.parquet"])
def test_a_git_lfs_pointer_is_called_one(tmp_path, name):
    (tmp_path / name).write_text("version https://git-lfs.github.com/spec/v1\noid sha256:12\nsize 1\n")
    with pytest.raises(UserError, match=f"{name}: is a Git LFS pointer, not the file itself"):
        read_triplets(tmp_path / name, **COLUMNS)


@pytest.mark.parametrize("ending", ENDINGS)
def test_every_format_gives_the_same_triplets(tmp_path, ending):
    found, skipped = read_triplets(write(tmp_path, ending, ROWS), **COLUMNS)
    assert found == [Triplet(row["sent0"], row["sent1"], (row["hard_neg"],)) for row in ROWS]
    assert skipped == []


@pytest.mark.parametrize("ending", ENDINGS)
def test_every_format_gives_the_same_scored_pairs(tmp_path, ending):
    rows = [{"sentence1": "a b", "sentence2": "c, d", "score": score} for score in (4.4, 0.0, -1e-3)]
    found, skipped = read_scored_pairs(write(tmp_path, ending, rows))
    assert found == [ScoredPair("a b", "c, d", score) for score in (4.4, 0.0, -1e-3)]
    assert skipped == []


TEXT = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0"), min_size=1).filter(str.strip)


@pytest.mark.parametrize("ending", [".csv", ".tsv", ".jsonl", ".parquet"])
@given(rows=st.lists(st.tuples(TEXT, TEXT, TEXT), min_size=1, max_size=5))
@settings(max_examples=40, deadline=None)
def test_texts_are_read_back_verbatim(tmp_path_factory, ending, rows):
    path = write(tmp_path_factory.mktemp("x"), ending, [dict(zip(ROWS[0], row, strict=True)) for row in rows])
    assert read_triplets(path, **COLUMNS)[0] == [Triplet(a, p, (n,)) for a, p, n in rows]


def test_scored_pairs_are_read_whatever_else_their_rows_hold(tmp_path):
    path = tmp_path / "STS12.jsonl.gz"
    row = {"sentence1": "a b", "sentence2": "c d", "score": 4.4, "subset": "MSRpar"}
    path.write_bytes(gzip.compress(json.dumps(row).encode()))
    assert read_scored_pairs(path) == ([ScoredPair("a b", "c d", 4.4)], [])


def test_scored_pairs_may_have_columns_of_other_names(tmp_path):
    path = tmp_path / "x.tsv"
    path.write_text("left\tright\tgold\na\tb\t 3 \n")
    assert read_scored_pairs(path, columns=["left", "right", "gold"])[0] == [ScoredPair("a", "b", 3.0)]


def test_several_negative_columns_may_be_empty_after_the_first(tmp_path):
    path = tmp_path / "x.csv"
    path.write_text("a,p,n1,n2\nq,r,s,t\nq,r,s,\nq,r,s, \n")
    found, _ = read_triplets(path, anchor="a", positive="p", negatives=["n1", "n2"])
    assert [row.negatives for row in found] == [("s", "t"), ("s",), ("s",)]


@pytest.mark.parametrize("ending", [".jsonl", ".parquet"])
def test_a_cell_may_hold_a_list_of_negatives(tmp_path, ending):
    path = write(tmp_path, ending, [{"a": "q", "p": "r", "n": ["s", "t"]}, {"a": "q", "p": "r", "n": ["u"]}])
    found, _ = read_triplets(path, anchor="a", positive="p", negatives=["n"])
    assert [row.negatives for row in found] == [("s", "t"), ("u",)]


def test_pairs_without_negatives_are_triplets_with_none(tmp_path):
    path = tmp_path / "x.csv"
    path.write_text("a,p\nq,r\n")
    assert read_triplets(path, anchor="a", positive="p", negatives=[])[0] == [Triplet("q", "r", ())]


def test_an_anchor_may_be_its_own_positive(tmp_path):
    path = tmp_path / "x.csv"
    path.write_text("text\nq\n")
    assert read_triplets(path, anchor="text", positive="text", negatives=[])[0] == [Triplet("q", "q", ())]


def test_the_first_json_object_may_lack_a_further_negative_that_another_has(tmp_path):
    path = tmp_path / "x.jsonl"
    path.write_text(as_json() + as_json(more="d"))
    found, _ = read_triplets(path, anchor="sent0", positive="sent1", negatives=["hard_neg", "more"])
    assert [row.negatives for row in found] == [("c",), ("c", "d")]


def test_a_column_in_another_unicode_form_is_called_that(tmp_path):
    path = tmp_path / "rows.csv"
    path.write_text("re\u0301ponse,sent1,hard_neg\na,b,c\n")
    with pytest.raises(UserError, match="One of them is this one in another of Unicode's forms"):
        read_triplets(path, anchor="r\u00e9ponse", positive="sent1", negatives=["hard_neg"])


def test_a_row_in_the_place_of_a_header_is_called_that(tmp_path):
    path = tmp_path / "rows.csv"
    path.write_text("a,b,b\nc,d,e\n")
    with pytest.raises(UserError, match="has the column 'b' more than once; rename one, or give the file a header"):
        read_triplets(path, **COLUMNS)


@pytest.mark.parametrize("ending", [".jsonl", ".json"])
def test_an_object_with_a_key_twice_is_a_bad_row(tmp_path, ending):
    """Python would take the last, and CSV and Parquet files with a column twice are refused."""
    path = tmp_path / f"rows{ending}"
    twice = '{"sent0": "a", "sent1": "b", "hard_neg": "c", "sent0": "d"}'
    good = '{"sent0": "e", "sent1": "f", "hard_neg": "g"}'
    path.write_text(f"[{good}, {twice}]" if ending == ".json" else f"{good}\n{twice}\n")
    with pytest.raises(UserError, match=r"row 2 .*has the key 'sent0' more than once; keep one; mend or drop it"):
        read_triplets(path, **COLUMNS)
    good_rows, skipped = read_triplets(path, **COLUMNS, on_bad_row=BadRows.SKIP)
    assert good_rows == [Triplet("e", "f", ("g",))] and len(skipped) == 1


def test_a_byte_order_mark_crlf_and_blank_lines_do_no_harm(tmp_path):
    (tmp_path / "x.csv").write_bytes("\r\nsent0,sent1,hard_neg\r\na,b,c\r\n\r\nd,e,f\r\n".encode("utf-8-sig"))
    (tmp_path / "x.jsonl").write_bytes(f"{as_json()}\r\n\n{as_json(sent0='d')}".encode("utf-8-sig"))
    for name in ("x.csv", "x.jsonl"):
        assert [row.anchor for row in read_triplets(tmp_path / name, **COLUMNS)[0]] == ["a", "d"]


def test_a_text_of_a_million_characters_is_read(tmp_path):
    path = tmp_path / "x.csv"
    path.write_text(f"{HEADER}{'x' * 1_000_000},b,c\n")
    assert len(read_triplets(path, **COLUMNS)[0][0].anchor) == 1_000_000


def test_the_case_of_an_ending_does_not_matter(tmp_path):
    path = tmp_path / "X.CSV"
    path.write_text(f"{HEADER}a,b,c\n")
    assert read_triplets(path, **COLUMNS)[0] == [Triplet("a", "b", ("c",))]


# Bad rows: what the file holds, and how the message begins

BAD_ROWS = {
    "an empty text": (".csv", HEADER + "a,,c\n", "data row 1 (rows.csv:2) has an empty 'positive' (column 'sent1')"),
    "white space alone": (
        ".csv",
        HEADER + " \t,b,c\n",
        "data row 1 (rows.csv:2) has an empty 'anchor' (column 'sent0')",
    ),
    "an empty first negative": (
        ".csv",
        HEADER + "a,b,\n",
        "data row 1 (rows.csv:2) has an empty 'negative' (column 'hard_neg')",
    ),
    "a row after one of two lines": (
        ".csv",
        HEADER + '"x\ny",b,c\na,,c\n',
        "data row 2 (rows.csv:4) has an empty 'positive'",
    ),
    "a row of two lines": (
        ".csv",
        HEADER + 'a,b,c\n\n"x\ny",,c\n',
        "data row 2 (rows.csv:4) has an empty 'positive'",
    ),
    "too few cells": (".csv", HEADER + "a,b\n", "data row 1 (rows.csv:2) has too few cells: 2 where the header has 3"),
    "too many cells": (
        ".tsv",
        HEADER.replace(",", "\t") + "a\tb\tc\td\n",
        "data row 1 (rows.tsv:2) has too many cells: 4 where the header has 3",
    ),
    "broken JSON": (
        ".jsonl",
        as_json() + '{"sent0": \n',
        "data row 2 (rows.jsonl:2) is not valid JSON (Expecting value at character 11); a line holds one object",
    ),
    "JSON too deep": (".jsonl", "[" * 100_000 + "\n", "data row 1 (rows.jsonl:1) is not JSON that can be read"),
    "a JSON list": (
        ".jsonl",
        '["a", "b"]\n',
        "data row 1 (rows.jsonl:1) is not a JSON object but ['a', 'b'] (list)",
    ),
    "JSON null": (".jsonl", "\nnull\n", "data row 1 (rows.jsonl:2) is not a JSON object but null"),
    "a number for a text": (
        ".jsonl",
        as_json(sent0=3),
        "data row 1 (rows.jsonl:1) has 3 (int) as 'anchor' (column 'sent0'), which is not a text",
    ),
    "a list for a text": (
        ".jsonl",
        as_json(sent0=["b"]),
        "data row 1 (rows.jsonl:1) has ['b'] (list) as 'anchor' (column 'sent0'), which is not a text",
    ),
    "null for a text": (
        ".jsonl",
        as_json(sent0=None),
        "data row 1 (rows.jsonl:1) has no 'anchor' (column 'sent0'): the cell is null",
    ),
    "a missing key": (
        ".jsonl",
        as_json() + '{"sent0": "a", "sent1": "b"}\n',
        "data row 2 (rows.jsonl:2) has no 'negative' (column 'hard_neg')",
    ),
    "a NUL in JSON": (".jsonl", as_json(sent0="a\0"), "data row 1 (rows.jsonl:1) has a NUL byte in 'anchor'"),
    "half a character": (
        ".jsonl",
        as_json(sent0="\ud800"),
        "data row 1 (rows.jsonl:1) has half a character (an unpaired surrogate) in 'anchor' (column 'sent0')",
    ),
    "an empty list of positives": (
        ".jsonl",
        as_json(sent1=[]),
        "data row 1 (rows.jsonl:1) has an empty list as 'positive' (column 'sent1')",
    ),
    "an empty list of negatives": (
        ".jsonl",
        as_json(hard_neg=[]),
        "data row 1 (rows.jsonl:1) has an empty list as 'negative' (column 'hard_neg')",
    ),
    "an empty text in a list": (
        ".jsonl",
        as_json(hard_neg=["c", ""]),
        "data row 1 (rows.jsonl:1) has an empty 'negative' (column 'hard_neg')",
    ),
    "a number in a list": (
        ".jsonl",
        as_json(hard_neg=["c", 1.5]),
        "data row 1 (rows.jsonl:1) has 1.5 (float) as 'negative' (column 'hard_neg'), which is not a text",
    ),
}


@pytest.mark.parametrize(("ending", "content", "message"), BAD_ROWS.values(), ids=BAD_ROWS)
def test_a_bad_row_is_named_with_what_to_do(tmp_path, ending, content, message):
    path = tmp_path / f"rows{ending}"
    path.write_text(content)
    with pytest.raises(UserError) as error:
        read_triplets(path, **COLUMNS)
    assert str(error.value).startswith(message)
    assert str(error.value).endswith("; mend or drop it, or set data.on_bad_row=skip")


@pytest.mark.parametrize(("ending", "content", "message"), BAD_ROWS.values(), ids=BAD_ROWS)
def test_a_bad_row_between_good_ones_is_skipped_on_request(tmp_path, ending, content, message):
    path = tmp_path / f"rows{ending}"
    good = {".csv": "d,e,f\n", ".tsv": "d\te\tf\n", ".jsonl": as_json(sent0="d")}[ending]
    path.write_text(content + good)
    found, (skipped,) = read_triplets(path, **COLUMNS, on_bad_row=BadRows.SKIP)
    assert found[-1].anchor == "d"
    assert f"{skipped.where} {skipped.reason}".startswith(message)


@pytest.mark.skipif(sys.version_info < (3, 11), reason="the csv module of 3.10 refuses a file with a NUL by itself")
def test_a_nul_byte_in_csv_is_named(tmp_path):
    path = tmp_path / "rows.csv"
    path.write_text(HEADER + "a,b\0,c\n")
    with pytest.raises(UserError, match=r"data row 1 \(rows.csv:2\) has a NUL byte in 'positive' \(column 'sent1'\)"):
        read_triplets(path, **COLUMNS)


@pytest.mark.parametrize(
    ("cell", "message"),
    [
        (None, "data row 2 (rows.parquet) has no 'anchor' (column 'sent0'): the cell is null"),
        ("", "data row 2 (rows.parquet) has an empty 'anchor' (column 'sent0')"),
    ],
)
def test_a_bad_parquet_row_is_named_without_a_line(tmp_path, cell, message):
    path = write(tmp_path, ".parquet", [ROWS[0], {**ROWS[1], "sent0": cell}])
    with pytest.raises(UserError) as error:
        read_triplets(path, **COLUMNS)
    assert str(error.value).startswith(message)


@pytest.mark.parametrize(
    ("cell", "kind"),
    [(2**30, "date32[day]"), (2**61, "timestamp[us]"), (2**62, "duration[s]"), (2**40, "timestamp[us, tz=No/Where]")],
)
def test_a_parquet_cell_that_python_has_no_value_for_is_a_bad_row_like_others(tmp_path, cell, kind):
    types = {"date32[day]": pyarrow.date32(), "duration[s]": pyarrow.duration("s")}
    wanted = types.get(kind) or pyarrow.timestamp("us", tz="No/Where" if "tz" in kind else None)
    table = pyarrow.table({"text": pyarrow.array([cell, None], type=wanted)})
    pyarrow.parquet.write_table(table, tmp_path / "rows.parquet")
    reason = f"has a {kind} in column 'text' that cannot be read"
    with pytest.raises(UserError) as error:
        list(stream_texts(tmp_path / "rows.parquet"))
    assert str(error.value) == f"data row 1 (rows.parquet) {reason}; mend or drop it, or set on_bad_row=skip"
    with pytest.raises(UserError, match="none of its 2 rows can be used: data row 1 .*; data row 2 .* is null"):
        list(stream_texts(tmp_path / "rows.parquet", on_bad_row=BadRows.SKIP))


def test_a_parquet_column_of_numbers_is_refused_as_text(tmp_path):
    path = write(tmp_path, ".parquet", [{"sent0": 1, "sent1": "b", "hard_neg": "c"}])
    with pytest.raises(UserError, match=r"data row 1 \(rows.parquet\) has 1 \(int\) as 'anchor'"):
        read_triplets(path, **COLUMNS)


def test_a_message_stays_short_whatever_a_cell_holds(tmp_path):
    nested = "a text"
    for _ in range(5):
        nested = [{f"a key of some length {n}": nested for n in range(4)}, nested]
    (tmp_path / "rows.jsonl").write_text(as_json(sent0=nested) + json.dumps(nested) + "\n")
    with pytest.raises(UserError, match=r"none of its 2 rows can be used: data row 1 \(rows.jsonl:1\) has \[") as error:
        read_triplets(tmp_path / "rows.jsonl", **COLUMNS, on_bad_row=BadRows.SKIP)
    assert len(str(error.value)) < 500 and "(list) as 'anchor'" in str(error.value)


def test_skipped_rows_are_listed_with_place_and_reason(tmp_path):
    path = tmp_path / "rows.csv"
    path.write_text(HEADER + "a,,c\nd,e,f\ng,h\n")
    found, skipped = read_triplets(path, **COLUMNS, on_bad_row=BadRows.SKIP)
    assert found == [Triplet("d", "e", ("f",))]
    assert skipped == [
        Skipped("data row 1 (rows.csv:2)", "has an empty 'positive' (column 'sent1')"),
        Skipped("data row 3 (rows.csv:4)", "has too few cells: 2 where the header has 3"),
    ]


def test_a_file_of_bad_rows_alone_is_refused_with_three_reasons_even_when_skipping(tmp_path):
    path = tmp_path / "rows.csv"
    path.write_text(HEADER + "a,,c\nd\n,e,f\ng,h,\n")
    with pytest.raises(
        UserError, match="none of its 4 rows can be used: data row 1 .*; data row 2 .*; data row 3 "
    ) as error:
        read_triplets(path, **COLUMNS, on_bad_row=BadRows.SKIP)
    assert "data row 4" not in str(error.value)


@pytest.mark.parametrize(
    ("score", "told"),
    [
        ('"high"', "'high' (str)"),
        ("true", "True (bool)"),
        ("NaN", "nan (float)"),
        ('"nan"', "'nan' (str)"),
        ("-Infinity", "-inf (float)"),
        ("1e999", "inf (float)"),
        ("1" + "0" * 400, "(int)"),
        ('""', "'' (str)"),
        ('"4,4"', "'4,4' (str)"),
        ('"4_4"', "'4_4' (str)"),
        ("[1]", "[1] (list)"),
    ],
)
def test_a_score_that_is_no_finite_number_is_refused(tmp_path, score, told):
    path = tmp_path / "x.jsonl"
    path.write_text(f'{{"sentence1": "a", "sentence2": "b", "score": {score}}}\n')
    with pytest.raises(UserError) as error:
        read_scored_pairs(path)
    message = str(error.value)
    assert message.startswith("data row 1 (x.jsonl:1) has ")
    # No setting skips evaluation rows, so none is recommended.
    assert message.endswith(f"{told} as 'score', which is not a finite number; mend or drop it")


def test_a_null_score_is_refused(tmp_path):
    path = write(tmp_path, ".jsonl", [{"sentence1": "a", "sentence2": "b", "score": None}])
    with pytest.raises(UserError, match=r"data row 1 \(rows.jsonl:1\) has no 'score': the cell is null"):
        read_scored_pairs(path)


def test_bad_scores_are_skipped_on_request(tmp_path):
    path = tmp_path / "x.csv"
    path.write_text("sentence1,sentence2,score\na,b,4.4\na,b,inf\n")
    found, skipped = read_scored_pairs(path, on_bad_row=BadRows.SKIP)
    assert found == [ScoredPair("a", "b", 4.4)]
    assert [row.where for row in skipped] == ["data row 2 (x.csv:3)"]


# Bad files: name, content, and what the message says

GOOD = (HEADER + "a,b,c\n").encode()
TEXTS = pyarrow.table({name: [f"{name} {n}" for n in range(20_000)] for name in ROWS[0]})


def parquet_bytes(table: pyarrow.Table, **options: object) -> bytes:
    """A table as the content of a Parquet file."""
    stream = pyarrow.BufferOutputStream()
    pyarrow.parquet.write_table(table, stream, **options)
    return stream.getvalue().to_pybytes()


def not_text() -> pyarrow.Array:
    """A text column whose second cell is not UTF-8, which pyarrow takes from a buffer unchecked."""
    return pyarrow.Array.from_buffers(pyarrow.string(), 2, pyarrow.array([b"good", b"\xff\xfe"]).buffers())


BAD_FILES = {
    "an empty CSV": ("rows.csv", b"", "is empty"),
    "an empty JSONL": ("rows.jsonl", b"", "is empty"),
    "an empty Parquet": ("rows.parquet", b"", "is empty"),
    "an empty file, gzipped": ("rows.csv.gz", gzip.compress(b""), "is empty"),
    "blank lines alone": ("rows.csv", b"\n\n", "is empty"),
    "a header alone": ("rows.csv", HEADER.encode(), "has no data rows"),
    "JSONL of blank lines": ("rows.jsonl", b"\n \n", "has no data rows"),
    "a table without rows": ("rows.parquet", parquet_bytes(TEXTS.slice(0, 0)), "has no data rows"),
    "a missing column": (
        "rows.csv",
        b"sent0,sent_1,hard_neg\na,b,c\n",
        "has no column 'sent1' (data.positive_column names it); its columns are 'sent0', 'sent_1', 'hard_neg'. Did you "
        "mean 'sent_1'? Set data.anchor_column, data.positive_column and data.negative_columns to columns of the file "
        "(pairs without negatives: data.negative_columns='[]' loss=in_batch).",
    ),
    "a missing anchor": ("rows.csv", b"x,sent1,hard_neg\na,b,c\n", "no column 'sent0' (data.anchor_column names it)"),
    "a missing negative": ("rows.csv", b"sent0,sent1\na,b\n", "no column 'hard_neg' (data.negative_columns names it)"),
    "a key that no object has": (
        "rows.jsonl",
        b'{"sent0": "a"}\n[]\n{"sent1": "b"}\n',
        "has no column 'hard_neg' (data.negative_columns names it); its columns are 'sent0', 'sent1'.",
    ),
    "a missing Parquet column": (
        "rows.parquet",
        parquet_bytes(TEXTS.drop_columns("sent1")),
        "has no column 'sent1' (data.positive_column names it); its columns are 'sent0', 'hard_neg'.",
    ),
    "a hundred columns": ("rows.csv", ",".join(f"x{n}" for n in range(100)).encode(), "'x18', 'x19' and 80 more."),
    "a column twice": (
        "rows.csv",
        b"sent0,sent1,sent1,hard_neg\na,b,c,d\n",
        "has the column 'sent1' more than once; rename one",
    ),
    "a Parquet column twice": (
        "rows.parquet",
        parquet_bytes(TEXTS.rename_columns(["sent0", "sent0", "sent1"])),
        "has the column 'sent0' more than once; rename one",
    ),
    "an open quote": ("rows.csv", GOOD + b'"a,b,c\nd,e,f\n', "the row that starts on line 3 has broken quoting"),
    "a quote in a quote": ("rows.csv", GOOD + b'"a" b,c,d\n', "the row that starts on line 3 has broken quoting"),
    "not UTF-8": ("rows.csv", HEADER.encode() + b"\xff,b,c\n", "line 2 is not valid UTF-8 (invalid start byte); save"),
    "not UTF-8 far down": ("rows.csv", GOOD + b"a,b,c\n" * 9000 + b"caf\xe9,b,c\n", "line 9003 is not valid UTF-8"),
    "JSONL not UTF-8": (
        "rows.jsonl",
        as_json().encode() * 9000 + b'{"sent0": "\xff"}\n',
        "line 9001 is not valid UTF-8",
    ),
    "gzip not UTF-8": ("rows.csv.gz", gzip.compress(GOOD + b"\xff,b,c\n"), "line 3 is not valid UTF-8"),
    "Parquet not UTF-8": (
        "rows.parquet",
        parquet_bytes(pyarrow.table(dict.fromkeys(ROWS[0], not_text()))),
        "data row 2 is not valid UTF-8",
    ),
    "a Parquet column whose name is not UTF-8": (
        "rows.parquet",
        parquet_bytes(TEXTS.slice(0, 9), store_schema=False).replace(b"sent0", b"\xffent0"),
        "the name of a column is not valid UTF-8",
    ),
    "not gzip": ("rows.csv.gz", GOOD, "not a whole gzip file (Not a gzipped file"),
    "cut gzip": ("rows.csv.gz", gzip.compress(GOOD + os.urandom(999).hex().encode())[:-99], "not a whole gzip file"),
    "gzip with a flipped checksum": ("rows.csv.gz", gzip.compress(GOOD)[:-8] + bytes(8), "not a whole gzip file"),
    "not Parquet": ("rows.parquet", b"PAR1 not really", "not a whole Parquet file"),
    "cut Parquet": ("rows.parquet", parquet_bytes(TEXTS)[:-99], "not a whole Parquet file"),
    "a spoilt Parquet page": (
        "rows.parquet",
        parquet_bytes(TEXTS)[:1000] + b"\xff" * 5000 + parquet_bytes(TEXTS)[6000:],
        "not a whole Parquet file",
    ),
    "UTF-16": ("rows.csv", GOOD.decode().encode("utf-16"), "is text in UTF-16; save it as UTF-8"),
    "UTF-16 without a mark": ("rows.jsonl", as_json().encode("utf-16-be"), "looks like text in UTF-16 (every other by"),
    "UTF-32, gzipped": ("rows.csv.gz", gzip.compress(GOOD.decode().encode("utf-32")), "is text in UTF-32; save it as"),
    "gzip not named so": ("rows.csv", gzip.compress(GOOD), "is gzip; let its name end in .gz"),
    "gzip twice": ("rows.csv.gz", gzip.compress(gzip.compress(GOOD)), "is gzip within gzip; unpack it once"),
    "Parquet not named so": ("rows.csv", parquet_bytes(TEXTS), "holds Parquet; let its name end in .parquet"),
    "a spreadsheet": ("rows.csv", b"PK\3\4\x14", "is a zip file or a spreadsheet; unpack it, or save it as CSV"),
    "broken quoting by tabs": (
        "rows.tsv",
        b'"sent0"\t"sent1"\t"hard_neg"\n"a"b\tc\td\n',
        r"('\t' expected",
    ),
    "columns of another case": (
        "rows.csv",
        b"SENT0, Sent1 ,HARD_NEG\na,b,c\n",
        "has no column 'hard_neg' (data.negative_columns names it); its columns are 'SENT0', ' Sent1 ', 'HARD_NEG'. "
        "Did you mean 'HARD_NEG'? Set",
    ),
    "objects without keys": ("rows.jsonl", b"{}\n", "has no column 'hard_neg' (data.negative_columns names it); its c"),
    "an unknown ending": (
        "rows.xlsx",
        b"x",
        "unknown kind of file; these are read: .csv, .tsv, .jsonl, .ndjson, .json, .csv.gz",
    ),
}


@pytest.mark.parametrize(("name", "content", "message"), BAD_FILES.values(), ids=BAD_FILES)
@pytest.mark.parametrize("on_bad_row", BadRows)
def test_a_bad_file_is_refused_even_when_skipping(tmp_path, name, content, message, on_bad_row):
    (tmp_path / name).write_bytes(content)
    with pytest.raises(UserError) as error:
        read_triplets(tmp_path / name, **COLUMNS, on_bad_row=on_bad_row)
    assert str(error.value).startswith(f"data.train={tmp_path / name}: ")
    assert message in str(error.value)


@pytest.mark.parametrize(
    "names", [["a long sentence " * 99] * 2, [f"{n} a long sentence {'.' * 999}" for n in range(9)]]
)
def test_a_message_stays_short_whatever_a_file_has_for_a_header(tmp_path, names):
    (tmp_path / "rows.csv").write_text(",".join(names) + "\n")
    with pytest.raises(UserError, match="a long sentence") as error:
        list(stream_texts(tmp_path / "rows.csv"))
    assert len(str(error.value)) < 400


def test_a_cause_that_pyarrow_gives_is_printable(tmp_path, monkeypatch):
    def refuse(*_: object, **__: object) -> None:
        raise pyarrow.ArrowInvalid(f"TException: unknown type: \x0e {'long ' * 200}\n at line 3")

    monkeypatch.setattr(pyarrow.parquet, "ParquetFile", refuse)
    with pytest.raises(UserError, match=r"not a whole Parquet file \(unknown type: \\x0e long .*\.\.\.\)") as error:
        read_triplets(write(tmp_path, ".parquet", ROWS), **COLUMNS)
    assert len(str(error.value)) < 500 and str(error.value).isprintable()


def test_a_missing_score_column_is_named_with_what_scored_pairs_need(tmp_path):
    path = tmp_path / "x.csv"
    path.write_text("sentence1,sentence2,scores\na,b,1\n")
    with pytest.raises(UserError) as error:
        read_scored_pairs(path)
    assert str(error.value) == (
        f"eval.folder={path}: has no column 'score' (eval.columns names it); its columns are 'sentence1', 'sentence2', "
        "'scores'. Did you mean 'scores'? Scored pairs need two columns of sentences and one of scores: set "
        "eval.columns to their names."
    )


def test_a_missing_file_is_named_with_its_key_and_the_nearest_there_is(tmp_path):
    near = write(tmp_path, ".csv", ROWS)
    (tmp_path / "rows11.csv").mkdir()  # nearer, but no file
    with pytest.raises(UserError) as error:
        read_scored_pairs(tmp_path / "rows1.csv", key="data.dev")
    assert str(error.value) == f"data.dev={tmp_path / 'rows1.csv'}: no such file; did you mean {near}?"


def test_a_missing_file_that_resembles_no_other_is_named_alone(tmp_path):
    with pytest.raises(UserError, match="no such file$"):
        read_triplets(tmp_path / "rows.csv", **COLUMNS)


def test_a_missing_folder_is_named(tmp_path):
    with pytest.raises(UserError, match=r"no such file, nor is there a folder .*/nowhere$"):
        read_triplets(tmp_path / "nowhere" / "rows.csv", **COLUMNS)


def test_a_folder_is_no_file(tmp_path):
    with pytest.raises(UserError, match="is a folder; name a file in it"):
        read_triplets(tmp_path, **COLUMNS)


@pytest.mark.parametrize("ending", [".csv", ".csv.gz", ".parquet"])
def test_a_file_that_may_not_be_read_is_not_called_broken(tmp_path, monkeypatch, ending):
    path = write(tmp_path, ending, ROWS)

    def refuse(*_: object, **__: object) -> None:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(Path, "open", refuse)
    monkeypatch.setattr(gzip, "open", refuse)
    with pytest.raises(UserError, match=r"cannot be read \(Permission denied\)"):
        read_triplets(path, **COLUMNS)


@pytest.mark.parametrize("ending", ENDINGS)
def test_a_pipe_is_refused_and_not_waited_for(tmp_path, ending):
    os.mkfifo(tmp_path / f"rows{ending}")
    with pytest.raises(
        UserError, match=f"rows{ending}: is a pipe or a device, not a regular file; write what it gives"
    ):
        read_triplets(tmp_path / f"rows{ending}", **COLUMNS)


def test_a_link_to_a_device_is_refused(tmp_path):
    (tmp_path / "rows.csv").symlink_to("/dev/zero")
    with pytest.raises(UserError, match="is a pipe or a device"):
        read_triplets(tmp_path / "rows.csv", **COLUMNS)


def test_a_link_is_followed_and_named_where_it_leads_nowhere(tmp_path):
    (tmp_path / "link.csv").symlink_to(write(tmp_path, ".csv", ROWS))
    assert len(read_triplets(tmp_path / "link.csv", **COLUMNS)[0]) == 2
    (tmp_path / "rows.csv").unlink()
    with pytest.raises(UserError, match=r"link.csv: is a link to .*/rows.csv, which is not there"):
        read_triplets(tmp_path / "link.csv", **COLUMNS)
    (tmp_path / "round.csv").symlink_to("round.csv")
    with pytest.raises(UserError, match=r"round.csv: is a link to round.csv, which is not there"):
        read_triplets(tmp_path / "round.csv", **COLUMNS)


@pytest.mark.parametrize("name", ["two\nlines.csv", "red\x1b[31m.csv", os.fsdecode(b"caf\xe9.csv")])
def test_a_name_of_a_file_cannot_break_a_message(tmp_path, name):
    path = tmp_path / name
    path.write_text(HEADER + "a,,c\nd,e,f\n")
    _, (skipped,) = read_triplets(path, **COLUMNS, on_bad_row=BadRows.SKIP)
    assert skipped.where == f"data row 1 ({repr(name)[1:-1]}:2)"
    path.write_text(HEADER)
    with pytest.raises(UserError) as error:
        read_triplets(path, **COLUMNS)
    assert str(error.value) == f"data.train={tmp_path}/{repr(name)[1:-1]}: has no data rows"
