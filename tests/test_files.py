"""Users' files: every format gives the same rows, and every bad row is named."""

import gzip
import json
from pathlib import Path

import pyarrow
import pyarrow.parquet
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cft.errors import UserError
from cft.files import BadRows, read_scored_pairs, read_triplets
from cft.records import ScoredPair, Triplet

ROWS = [
    {"sent0": "A man, playing.", "sent1": 'He "plays".', "hard_neg": "Two\nlines"},
    {"sent0": "Émile 🎻", "sent1": "مرحبا", "hard_neg": "tab\there"},
]
COLUMNS = {"anchor": "sent0", "positive": "sent1", "negatives": ["hard_neg"]}


def quoted(rows: list[dict], delimiter: str) -> str:
    lines = [list(rows[0])] + [list(row.values()) for row in rows]
    cells = [delimiter.join('"' + cell.replace('"', '""') + '"' for cell in line) for line in lines]
    return "\n".join(cells) + "\n"


def write(folder: Path, ending: str, rows: list[dict]) -> Path:
    path = folder / f"rows{ending}"
    if ending == ".parquet":
        pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows), path)
        return path
    kind = ending.removesuffix(".gz")
    delimiter = {".csv": ",", ".tsv": "\t"}.get(kind)
    text = quoted(rows, delimiter) if delimiter else "".join(json.dumps(row) + "\n" for row in rows)
    data = text.encode()
    path.write_bytes(gzip.compress(data) if ending.endswith(".gz") else data)
    return path


@pytest.mark.parametrize("ending", [".csv", ".tsv", ".jsonl", ".ndjson", ".csv.gz", ".tsv.gz", ".jsonl.gz", ".parquet"])
def test_every_format_gives_the_same_triplets(tmp_path, ending):
    found, skipped = read_triplets(write(tmp_path, ending, ROWS), **COLUMNS)
    assert found == [Triplet(row["sent0"], row["sent1"], (row["hard_neg"],)) for row in ROWS]
    assert skipped == []


TEXT = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0\r"), min_size=1).filter(str.strip)


@pytest.mark.parametrize("ending", [".csv", ".tsv", ".jsonl", ".parquet"])
@given(st.lists(st.tuples(TEXT, TEXT, TEXT), min_size=1, max_size=5))
@settings(max_examples=40, deadline=None)
def test_texts_are_read_back_verbatim(tmp_path_factory, ending, rows):
    path = write(tmp_path_factory.mktemp("x"), ending, [dict(zip(ROWS[0], row, strict=True)) for row in rows])
    assert read_triplets(path, **COLUMNS)[0] == [Triplet(a, p, (n,)) for a, p, n in rows]


def test_several_negative_columns_may_be_empty_after_the_first(tmp_path):
    path = tmp_path / "x.csv"
    path.write_text("a,p,n1,n2\nq,r,s,t\nq,r,s,\n")
    found, _ = read_triplets(path, anchor="a", positive="p", negatives=["n1", "n2"])
    assert [row.negatives for row in found] == [("s", "t"), ("s",)]


def test_a_cell_may_hold_a_list_of_negatives(tmp_path):
    path = tmp_path / "x.jsonl"
    path.write_text('{"a": "q", "p": "r", "n": ["s", "t"]}\n')
    assert read_triplets(path, anchor="a", positive="p", negatives=["n"])[0] == [Triplet("q", "r", ("s", "t"))]


def test_pairs_without_negatives_are_triplets_with_none(tmp_path):
    path = tmp_path / "x.csv"
    path.write_text("a,p\nq,r\n")
    assert read_triplets(path, anchor="a", positive="p", negatives=[])[0] == [Triplet("q", "r", ())]


def test_a_byte_order_mark_crlf_and_blank_lines_do_no_harm(tmp_path):
    path = tmp_path / "x.csv"
    path.write_bytes("sent0,sent1,hard_neg\r\na,b,c\r\n\r\nd,e,f\r\n".encode("utf-8-sig"))
    assert [row.anchor for row in read_triplets(path, **COLUMNS)[0]] == ["a", "d"]


def test_a_text_of_a_million_characters_is_read(tmp_path):
    path = tmp_path / "x.csv"
    path.write_text(f"sent0,sent1,hard_neg\n{'x' * 1_000_000},b,c\n")
    assert len(read_triplets(path, **COLUMNS)[0][0].anchor) == 1_000_000


BAD_ROWS = [
    (
        ".csv",
        'sent0,sent1,hard_neg\na,b,c\n"x\ny",,c\n',
        "data row 2 (rows.csv:3) has an empty 'positive' (column 'sent1')",
    ),
    (".csv", "sent0,sent1,hard_neg\na,b\n", "data row 1 (rows.csv:2) has 2 cells where the header has 3 columns"),
    (".csv", "sent0,sent1,hard_neg\na,b,c,d\n", "data row 1 (rows.csv:2) has 4 cells where the header has 3"),
    (".csv", "sent0,sent1,hard_neg\na,b,\n", "has an empty 'negative' (column 'hard_neg')"),
    (".csv", "sent0,sent1,hard_neg\n  ,b,c\n", "has an empty 'anchor' (column 'sent0')"),
    (
        ".jsonl",
        '{"sent0": "a", "sent1": "b", "hard_neg": "c"}\n{"sent0": \n',
        "data row 2 (rows.jsonl:2) is not valid JSON",
    ),
    (".jsonl", '["a", "b"]\n', "is a JSON list, not an object"),
    (
        ".jsonl",
        '{"sent0": 3, "sent1": "b", "hard_neg": "c"}\n',
        "has a int (3) where 'anchor' (column 'sent0') should be",
    ),
    (
        ".jsonl",
        '{"sent0": null, "sent1": "b", "hard_neg": "c"}\n',
        "has no 'anchor' (column 'sent0'): the cell is null",
    ),
    (".jsonl", '{"sent0": "a\\u0000", "sent1": "b", "hard_neg": "c"}\n', "has a NUL byte in 'anchor'"),
    (".jsonl", '{"sent0": "\\ud800", "sent1": "b", "hard_neg": "c"}\n', "an unpaired surrogate) in 'anchor'"),
    (".jsonl", '{"sent0": "a", "sent1": "b", "hard_neg": []}\n', "has an empty list as 'negative'"),
    (
        ".jsonl",
        '{"sent0": "a", "sent1": "b", "hard_neg": "c"}\n{"sent0": "a"}\n',
        "data row 2 (rows.jsonl:2) has no 'negative'",
    ),
]


@pytest.mark.parametrize(("ending", "content", "message"), BAD_ROWS, ids=range(len(BAD_ROWS)))
def test_a_bad_row_is_named_with_what_to_do(tmp_path, ending, content, message):
    path = tmp_path / f"rows{ending}"
    path.write_text(content)
    with pytest.raises(UserError) as error:
        read_triplets(path, **COLUMNS)
    assert message in str(error.value)
    assert "mend or drop it, or set data.on_bad_row=skip" in str(error.value)


def test_bad_rows_are_skipped_and_listed_on_request(tmp_path):
    path = tmp_path / "rows.csv"
    path.write_text("sent0,sent1,hard_neg\na,,c\nd,e,f\ng,h\n")
    found, skipped = read_triplets(path, **COLUMNS, on_bad_row=BadRows.SKIP)
    assert [row.anchor for row in found] == ["d"]
    assert [row.where for row in skipped] == ["data row 1 (rows.csv:2)", "data row 3 (rows.csv:4)"]


def test_a_file_of_bad_rows_alone_is_refused_even_when_skipping(tmp_path):
    path = tmp_path / "rows.csv"
    path.write_text("sent0,sent1,hard_neg\na,,c\nd,,f\n")
    with pytest.raises(UserError, match="none of its 2 rows can be used: data row 1"):
        read_triplets(path, **COLUMNS, on_bad_row=BadRows.SKIP)


BAD_FILES = [
    ("rows.csv", b"", "is empty"),
    ("rows.csv", b"sent0,sent1,hard_neg\n", "has no data rows"),
    ("rows.jsonl", b"", "has no data rows"),
    ("rows.csv", b"sent0,sent_1,hard_neg\na,b,c\n", "has no column 'sent1' (data.positive_column names it)"),
    ("rows.csv", b"sent0,sent_1,hard_neg\na,b,c\n", "Did you mean 'sent_1'?"),
    ("rows.csv", b"sent0,sent1,sent1,hard_neg\na,b,c,d\n", "has the column 'sent1' more than once"),
    ("rows.csv", b'sent0,sent1,hard_neg\n"a,b,c\n', "line 2: broken quoting"),
    ("rows.csv", b"sent0,sent1,hard_neg\n\xff\xfe,b,c\n", "not valid UTF-8"),
    ("rows.jsonl", b'{"sent0": "\xff"}\n', "not valid UTF-8"),
    ("rows.csv.gz", b"sent0,sent1", "not a whole gzip file"),
    ("rows.csv.gz", gzip.compress(b"sent0,sent1,hard_neg\na,b,c\n" * 99)[:-9], "not a whole gzip file"),
    ("rows.parquet", b"PAR1 not really", "not a whole Parquet file"),
    ("rows.xlsx", b"x", "unknown kind of file; these are read: .csv, .tsv"),
]


@pytest.mark.parametrize(("name", "content", "message"), BAD_FILES, ids=range(len(BAD_FILES)))
@pytest.mark.parametrize("on_bad_row", BadRows)
def test_a_bad_file_is_refused_even_when_skipping(tmp_path, name, content, message, on_bad_row):
    (tmp_path / name).write_bytes(content)
    with pytest.raises(UserError) as error:
        read_triplets(tmp_path / name, **COLUMNS, on_bad_row=on_bad_row)
    assert message in str(error.value) and str(error.value).startswith(f"data.train={tmp_path / name}: ")


def test_a_missing_file_is_named_with_its_key_and_the_nearest_there_is(tmp_path):
    write(tmp_path, ".csv", ROWS)
    with pytest.raises(UserError, match=r"data.train=.*row\.csv: no such file; did you mean .*rows\.csv\?"):
        read_triplets(tmp_path / "row.csv", **COLUMNS)
    with pytest.raises(UserError, match="is a folder"):
        read_triplets(tmp_path, **COLUMNS)


def test_scored_pairs_are_read_whatever_else_their_rows_hold(tmp_path):
    path = tmp_path / "STS12.jsonl.gz"
    row = {"sentence1": "a b", "sentence2": "c d", "score": 4.4, "subset": "MSRpar"}
    path.write_bytes(gzip.compress(json.dumps(row).encode()))
    assert read_scored_pairs(path)[0] == [ScoredPair("a b", "c d", 4.4)]


@pytest.mark.parametrize("score", ['"high"', "null", "true", "NaN", "Infinity", '""', "[1]"])
def test_a_score_that_is_no_finite_number_is_refused(tmp_path, score):
    path = tmp_path / "x.jsonl"
    path.write_text(f'{{"sentence1": "a", "sentence2": "b", "score": {score}}}\n')
    with pytest.raises(UserError, match=r"data row 1 \(x.jsonl:1\) has .* as 'score', which is not a finite number"):
        read_scored_pairs(path)
