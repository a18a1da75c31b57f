"""Embedding files from the command line: every format, interrupted work, bad rows, ids."""

import csv
import gzip
import io
import json
from dataclasses import replace

import numpy as np
import pyarrow
import pyarrow.parquet
import pytest
from conftest import make_tiny

from cft import encode as encode_command
from cft.config.schema import Pooling, Prompts
from cft.deploy import encode, vectors
from cft.deploy.load import load_embedder
from cft.deploy.similar import SimilarOptions, search_file
from cft.model.embedder import Embedder
from cft.model.quantize import quantize, ranges_of
from cft.system.errors import UserError

TEXTS = ["a cat sleeps", "two birds, singing", "a cat sleeps", "Émile 🎻 plays"]


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("CFT_CACHE", str(tmp_path / "cache"))


def embed(trained, source, target, *more: str) -> tuple[int, int]:
    return encode.encode_file(encode_command.COMMAND.read([f"run={trained}", *more, str(source), str(target)]))


def write(folder, ending: str, column: str = "text"):
    path = folder / f"texts{ending}"
    if ending == ".txt":
        path.write_text("\n".join(TEXTS) + "\n")
    elif ending == ".txt.gz":
        path.write_bytes(gzip.compress("\r\n".join(TEXTS).encode()))
    elif ending == ".csv":
        path.write_text(f"n,{column}\n" + "".join(f'{n},"{text}"\n' for n, text in enumerate(TEXTS)))
    elif ending == ".jsonl":
        path.write_text("".join(json.dumps({column: text}) + "\n" for text in TEXTS))
    else:
        pyarrow.parquet.write_table(pyarrow.table({column: TEXTS}), path)
    return path


@pytest.mark.parametrize("ending", [".txt", ".txt.gz", ".csv", ".jsonl", ".parquet"])
@pytest.mark.parametrize("target", ["v.npy", "v.parquet"])
def test_every_format_gives_the_embedders_own_vectors_in_order(tmp_path, trained, ending, target):
    assert embed(trained, write(tmp_path, ending), tmp_path / target) == (4, 0)
    if target == "v.npy":
        found = np.load(tmp_path / target)
    else:
        table = pyarrow.parquet.read_table(tmp_path / target)
        assert table["text"].to_pylist() == TEXTS
        found = np.array(table["vector"].to_pylist(), dtype=np.float32)
    assert found.dtype == np.float32
    np.testing.assert_allclose(found, Embedder.load(trained).encode(TEXTS), atol=1e-6)
    assert [path.name for path in tmp_path.iterdir() if "part" in path.name] == []


def test_another_column_and_prompt(tmp_path, trained):
    source = write(tmp_path, ".csv", column="question")
    embed(trained, source, tmp_path / "v.npy", "column=question", "prompt=query: {text}")
    expected = Embedder.load(trained).with_template("query: {text}").encode(TEXTS)
    np.testing.assert_allclose(np.load(tmp_path / "v.npy"), expected, atol=1e-6)


@pytest.mark.parametrize(("role", "prompt"), [("query", "q: {text}"), ("document", "d: {text}"), ("text", "{text}")])
def test_texts_have_the_prompt_of_their_role(tmp_path, role, prompt):
    embedder = make_tiny("llama").with_prompts(Prompts("{text}", "q: {text}", "d: {text}"))
    embedder.save(tmp_path / "run")
    source = write(tmp_path, ".txt")
    embed(tmp_path / "run", source, tmp_path / "v.npy", f"role={role}")
    np.testing.assert_allclose(np.load(tmp_path / "v.npy"), embedder.with_template(prompt).encode(TEXTS), atol=1e-6)
    if role == "document":  # as a search embeds a corpus
        options = SimilarOptions(
            run=str(tmp_path / "run"), query="a cat", corpus=source, vectors=str(tmp_path / "v.npy")
        )
        assert search_file(options) == ""


def test_interrupted_work_goes_on_where_it_was(tmp_path, trained, monkeypatch):
    monkeypatch.setattr(vectors, "_BLOCK", 10)
    texts = [f"text {n}" for n in range(35)]
    source = tmp_path / "many.txt"
    source.write_text("\n".join(texts))
    whole, seen = Embedder.encode, []

    def dies(self, block, **options):
        if len(seen) == 2:
            raise KeyboardInterrupt
        seen.append(block)
        return whole(self, block, **options)

    monkeypatch.setattr(Embedder, "encode", dies)
    with pytest.raises(KeyboardInterrupt):
        embed(trained, source, tmp_path / "v.npy")
    assert not (tmp_path / "v.npy").exists()
    monkeypatch.setattr(Embedder, "encode", lambda self, block, **options: seen.append(block) or whole(self, block))
    embed(trained, source, tmp_path / "v.npy")
    assert seen == [texts[:10], texts[10:20], texts[20:30], texts[30:]]
    np.testing.assert_allclose(np.load(tmp_path / "v.npy"), whole(Embedder.load(trained), texts), atol=1e-6)


def test_blocks_of_other_texts_are_not_taken(tmp_path, trained, monkeypatch):
    source = tmp_path / "a.txt"
    source.write_text("one text")
    monkeypatch.setattr(vectors.Blocks, "write_npy", lambda *_: (_ for _ in ()).throw(KeyboardInterrupt))
    with pytest.raises(KeyboardInterrupt):
        embed(trained, source, tmp_path / "v.npy")
    monkeypatch.undo()
    source.write_text("another text")
    embed(trained, source, tmp_path / "v.npy")
    np.testing.assert_allclose(np.load(tmp_path / "v.npy"), Embedder.load(trained).encode(["another text"]), atol=1e-6)


def test_bad_rows_are_named_before_anything_is_embedded_or_left_out(tmp_path, trained, monkeypatch, capsys):
    source = tmp_path / "a.txt"
    source.write_text("one\n\ntwo\n")
    monkeypatch.setattr(encode, "load_embedder", lambda *a, **k: pytest.fail("the model was loaded"))
    with pytest.raises(UserError, match=r"data row 2 \(a.txt:2\) has an empty 'text'; .*on_bad_row=skip"):
        embed(trained, source, tmp_path / "v.npy")
    monkeypatch.undo()
    assert embed(trained, source, tmp_path / "v.npy", "on_bad_row=skip") == (2, 1)
    assert len(np.load(tmp_path / "v.npy")) == 2
    assert "skipped data row 2 (a.txt:2)" in capsys.readouterr().err


def test_texts_that_are_too_long_are_counted(tmp_path, trained, capsys):
    source = tmp_path / "a.txt"
    source.write_text("short\n" + "long " * 400 + "\n")
    embed(trained, source, tmp_path / "v.npy")
    assert "1 text reached the 150 tokens that this embedder reads at most" in capsys.readouterr().err


def test_texts_that_were_too_long_before_an_interruption_are_counted_too(tmp_path, trained, monkeypatch, capsys):
    monkeypatch.setattr(vectors, "_BLOCK", 4)
    source = tmp_path / "a.txt"
    source.write_text("\n".join(f"{number} {'long ' * 400 * (number % 2)}" for number in range(10)))
    whole, calls = Embedder.encode, []

    def dies(self, block, **options):
        calls.append(block)
        if len(calls) == 3:
            raise KeyboardInterrupt
        return whole(self, block, **options)

    monkeypatch.setattr(Embedder, "encode", dies)
    with pytest.raises(KeyboardInterrupt):
        embed(trained, source, tmp_path / "v.npy")
    monkeypatch.setattr(Embedder, "encode", whole)
    embed(trained, source, tmp_path / "v.npy")
    assert "5 texts reached the 150 tokens" in capsys.readouterr().err
    for shard in ("1/2", "2/2"):
        embed(trained, source, tmp_path / "w.npy", f"shard={shard}")
    capsys.readouterr()
    embed(trained, source, tmp_path / "w.npy")
    assert "5 texts reached the 150 tokens" in capsys.readouterr().err, "those of all shards"


@pytest.mark.parametrize(
    ("source", "target", "message"),
    [
        ("none.txt", "v.npy", "none.txt: no such file; did you mean"),
        ("nine.txt", "v.bin", "must end in .npy or .parquet"),
        ("nine.txt", "nowhere/v.npy", "there is no folder"),
        ("nine.txt", "there.npy", "exists; name another output, or set overwrite=true"),
        ("nine.doc", "v.npy", "unknown kind of file"),
    ],
)
def test_what_cannot_be_done_is_said_by_name(tmp_path, trained, source, target, message):
    for name in ("nine.txt", "nine.doc", "there.npy"):
        (tmp_path / name).write_text("one\n")
    with pytest.raises(UserError, match=message):
        embed(trained, tmp_path / source, tmp_path / target)


def test_texts_that_change_while_they_are_embedded_are_noticed(tmp_path, trained, monkeypatch):
    source = write(tmp_path, ".txt")
    whole = load_embedder

    def changes(*arguments, **options):
        source.write_text("another text\n" * 4)
        return whole(*arguments, **options)

    monkeypatch.setattr(encode, "load_embedder", changes)
    with pytest.raises(UserError, match="changed while they were embedded"):
        embed(trained, source, tmp_path / "v.npy")
    assert not (tmp_path / "v.npy").exists() and not list(tmp_path.glob(".v.npy.parts/*.npy"))


def test_vectors_of_a_base_model_are_those_of_its_configuration(tmp_path):
    source = write(tmp_path, ".txt")
    encode.encode_file(encode_command.COMMAND.read(["model=tiny", str(source), str(tmp_path / "v.npy")]))
    np.testing.assert_allclose(np.load(tmp_path / "v.npy"), make_tiny("llama").encode(TEXTS), atol=1e-6)


def test_an_output_is_replaced_on_request(tmp_path, trained):
    (tmp_path / "v.npy").write_text("old")
    embed(trained, write(tmp_path, ".txt"), tmp_path / "v.npy", "overwrite=true")
    assert len(np.load(tmp_path / "v.npy")) == 4


def test_pipes(commands, trained):
    done = commands.run("cft.encode", f"run={trained}", "-", "-", stdin="\n".join(TEXTS))
    assert done.status == 0, done.err
    np.testing.assert_allclose(np.load(io.BytesIO(done.raw)), Embedder.load(trained).encode(TEXTS), atol=1e-6)
    assert "4 texts embedded" in done.err


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (b"", "cft: stdin: is empty"),
        (b"one\n\xff\xfe\xfa\n", "cft: stdin: line 2 is not valid UTF-8"),
        (b"\xff\xfea\0", "cft: stdin: is text in UTF-16"),
        (b"one\n\ntwo\n", "cft: data row 2 (stdin:2) has an empty 'text'"),
    ],
)
def test_what_comes_through_a_pipe_is_called_stdin(trained, monkeypatch, capsys, given, message):
    monkeypatch.setattr("sys.stdin", io.TextIOWrapper(io.BytesIO(given)))
    monkeypatch.setattr("sys.argv", ["cft.encode", f"run={trained}", "-", "-"])
    with pytest.raises(SystemExit):
        encode_command.main()
    said = capsys.readouterr().err
    assert message in said and "pipe.txt" not in said


def write_rows(path) -> None:
    rows = [{"key": 7, "text": "a"}, {"key": "b,2", "text": ""}, {"key": "c", "text": "c"}, {"key": "d", "text": "d"}]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))


def test_progress_is_shown_wherever_it_goes_and_within_a_block(commands, trained, tmp_path):
    """A log file of a long job is all that its owner sees of it."""
    ended = commands.run("cft.encode", f"run={trained}", str(write(tmp_path, ".txt")), str(tmp_path / "v.npy"))
    assert ended.status == 0 and "embedding: 100%" in ended.err and "texts 1 to 4:" in ended.err, ended.err


def test_rows_that_are_left_out_leave_the_numbers_of_the_others_beside_the_vectors(tmp_path, trained):
    source, target = tmp_path / "t.jsonl", tmp_path / "v.npy"
    write_rows(source)
    assert embed(trained, source, target, "on_bad_row=skip") == (3, 1)
    assert (tmp_path / "v.rows.csv").read_text().split() == ["row", "1", "3", "4"]
    with pytest.raises(UserError, match=r"v\.npy exists"):
        embed(trained, source, target, "on_bad_row=skip")
    source.write_text('{"text": "a"}\n')
    assert embed(trained, source, target, "overwrite=true") == (1, 0)
    assert not (tmp_path / "v.rows.csv").exists(), "all rows, in their order"
    (tmp_path / "new.rows.csv").write_text("mine")
    with pytest.raises(UserError, match=r"new\.rows\.csv exists"):
        embed(trained, source, tmp_path / "new.npy")


def test_the_file_of_texts_is_not_written_over_even_on_request(tmp_path, trained):
    first, texts = tmp_path / "t.txt", tmp_path / "v.parquet"
    first.write_text("a\nb\n")
    embed(trained, first, texts)
    before = texts.read_bytes()
    with pytest.raises(UserError, match=r"v\.parquet is read, and would be written over; name another output"):
        embed(trained, texts, texts, "overwrite=true")
    assert texts.read_bytes() == before
    rows = tmp_path / "v.rows.csv"
    rows.write_text("text\na\n")
    with pytest.raises(UserError, match=r"v\.rows\.csv is read, and would be written over"):
        embed(trained, rows, tmp_path / "v.npy", "overwrite=true")
    assert rows.read_text() == "text\na\n"


@pytest.mark.parametrize("skip", [True, False])
def test_ids_are_kept_beside_the_vectors(tmp_path, trained, skip):
    source = tmp_path / "t.jsonl"
    write_rows(source)
    if not skip:
        source.write_text("\n".join(line for line in source.read_text().split("\n") if '"text": ""' not in line))
    words = ["id_column=key", *(["on_bad_row=skip"] if skip else [])]
    embed(trained, source, tmp_path / "v.npy", *words)
    numbers = [1, 3, 4] if skip else [1, 2, 3]
    rows = list(csv.reader(io.StringIO((tmp_path / "v.rows.csv").read_text())))
    assert rows == [["row", "id"], *([str(n), id] for n, id in zip(numbers, ["7", "c", "d"], strict=True))]
    embed(trained, source, tmp_path / "v.parquet", *words)
    table = pyarrow.parquet.read_table(tmp_path / "v.parquet")
    assert table.column_names == ["row", "id", "text", "vector"]
    assert table["row"].to_pylist() == numbers and table["id"].to_pylist() == ["7", "c", "d"]
    np.testing.assert_allclose(np.array(table["vector"].to_pylist()), np.load(tmp_path / "v.npy"), atol=1e-7)


def test_parquet_has_the_rows_numbers_always(tmp_path, trained):
    embed(trained, write(tmp_path, ".csv"), tmp_path / "v.parquet")
    table = pyarrow.parquet.read_table(tmp_path / "v.parquet")
    assert table.column_names == ["row", "text", "vector"] and table["row"].to_pylist() == [1, 2, 3, 4]


@pytest.mark.parametrize(
    ("rows", "words", "message"),
    [
        ('{"text": "a"}\n', "id_column=key", "key"),
        ('{"text": "a", "key": null}\n', "id_column=key", "'id' \\(column 'key'\\)"),
        ('{"text": "a", "key": 1.5}\n', "id_column=key", "'id' \\(column 'key'\\)"),
        ('{"text": "a", "key": ""}\n', "id_column=key", "'id' \\(column 'key'\\)"),
    ],
)
def test_a_row_without_an_id_is_a_bad_row(tmp_path, trained, rows, words, message):
    source = tmp_path / "t.jsonl"
    source.write_text(rows)
    with pytest.raises(UserError, match=message):
        embed(trained, source, tmp_path / "v.npy", words)


def test_plain_lines_and_pipes_have_no_ids(tmp_path, trained):
    with pytest.raises(UserError, match="id_column=key: lines of plain text have no columns"):
        embed(trained, write(tmp_path, ".txt"), tmp_path / "v.npy", "id_column=key")
    with pytest.raises(UserError, match="name an output instead of -"):
        embed(trained, write(tmp_path, ".csv"), "-", "id_column=n")


@pytest.mark.parametrize("source", ["texts.txt", "texts.TXT.gz", "-"])
def test_plain_lines_have_no_column(source):
    with pytest.raises(UserError, match=r"^column=nonsense: lines of plain text have no columns; leave it out"):
        encode_command.COMMAND.read(["run=r", "column=nonsense", source, "v.npy"])
    assert encode_command.COMMAND.read(["run=r", "column=text", source, "v.npy"]).column == "text"


def test_a_role_and_a_prompt_are_not_both_taken():
    with pytest.raises(
        UserError, match=r"^role=document takes the prompt of its training, and .*zz \{text\}.* is another"
    ):
        encode_command.COMMAND.read(["run=r", "role=document", "prompt=zz {text}", "t.txt", "v.npy"])
    assert encode_command.COMMAND.read(["run=r", "role=text", "prompt=zz {text}", "t.txt", "v.npy"]).prompt


@pytest.mark.parametrize("dtype", ["float16", "int8", "uint8", "binary", "ubinary"])
@pytest.mark.parametrize("target", ["v.npy", "v.parquet"])
def test_vectors_in_fewer_bytes_are_those_of_all_texts_at_once(tmp_path, trained, monkeypatch, dtype, target):
    monkeypatch.setattr(vectors, "_BLOCK", 3)  # the ranges are of all blocks
    source = tmp_path / "many.txt"
    texts = [f"text number {n}" for n in range(8)]
    source.write_text("\n".join(texts))
    embed(trained, source, tmp_path / target, f"dtype={dtype}")
    expected = quantize(Embedder.load(trained).encode(texts), dtype)
    if target == "v.npy":
        found = np.load(tmp_path / target)
        assert found.dtype == expected.dtype
    else:
        table = pyarrow.parquet.read_table(tmp_path / target)
        found = np.array(table["vector"].to_pylist())
        facts = json.loads(table.schema.metadata[b"cft"])
        assert facts["dtype"] == dtype and (facts["ranges"] is None) == (not dtype.endswith("int8"))
    # what a step apart is the rounding of another batch
    assert np.abs(found.astype(np.float32) - expected.astype(np.float32)).max() <= (0 if "binary" in dtype else 1)
    assert (found == expected).mean() > 0.95


def test_ranges_of_an_earlier_file_are_taken_or_refused(tmp_path, trained):
    source, other = tmp_path / "a.txt", tmp_path / "b.txt"
    source.write_text("a man\na dog sleeps\nnobody")
    other.write_text("one text")
    embed(trained, source, tmp_path / "a.npy", "dtype=int8")
    embed(trained, other, tmp_path / "b.npy", "dtype=int8", f"ranges={tmp_path / 'a.npy'}")
    embedder = Embedder.load(trained)
    ranges = ranges_of(embedder.encode(["a man", "a dog sleeps", "nobody"]))
    assert (np.load(tmp_path / "b.npy") == quantize(embedder.encode(["one text"]), "int8", ranges)).mean() > 0.95
    with pytest.raises(UserError, match="dtype=int8: one text has no ranges; take those of an earlier file"):
        embed(trained, other, tmp_path / "c.npy", "dtype=int8")
    with pytest.raises(UserError, match=r"a\.npy is read, and would be written over"):
        embed(trained, other, tmp_path / "a.npy", "dtype=int8", f"ranges={tmp_path / 'a.npy'}", "overwrite=true")
    with pytest.raises(UserError, match="ranges=.*goes with dtype=int8 or dtype=uint8"):
        embed(trained, other, tmp_path / "c.npy", f"ranges={tmp_path / 'a.npy'}")
    with pytest.raises(UserError, match="ranges=.*: has 32 numbers a vector, not 8"):
        embed(trained, other, tmp_path / "c.npy", "dtype=int8", f"ranges={tmp_path / 'a.npy'}", "dimensions=8")
    with pytest.raises(UserError, match=r"ranges=.*: no \.npy file with its"):
        embed(trained, other, tmp_path / "c.npy", "dtype=int8", f"ranges={tmp_path / 'none.npy'}")
    embed(trained, other, tmp_path / "f.npy", "dtype=float16")
    with pytest.raises(UserError, match="ranges=.*: was made without ranges"):
        embed(trained, other, tmp_path / "c.npy", "dtype=int8", f"ranges={tmp_path / 'f.npy'}")


def test_ranges_of_another_embedder_or_kind_are_refused_and_of_another_prompt_taken(tmp_path, trained):
    source, other = tmp_path / "a.txt", tmp_path / "b.txt"
    source.write_text("a man\na dog sleeps\nnobody")
    other.write_text("one text")
    embed(trained, source, tmp_path / "a.npy", "dtype=int8")
    named = f"ranges={tmp_path / 'a.npy'}"

    def made(*words: str) -> None:
        encode.encode_file(encode_command.COMMAND.read([*words, named, str(other), str(tmp_path / "b.npy")]))

    with pytest.raises(
        UserError,
        match=r"^ranges=.*: made by another embedder: a training of random:llama \(adapter .*\) there, random:llama, "
        "untrained here$",
    ):
        made("model=tiny", "dtype=int8")
    pooled = tmp_path / "pooled"
    embedder = Embedder.load(trained)
    changed = replace(embedder.contract, pooling=Pooling.mean)
    Embedder(embedder.model, embedder.backbone, changed).save(pooled)
    with pytest.raises(UserError, match=r"^ranges=.*: made by another embedder \(pooling 'last' there, 'mean' here\)$"):
        made(f"run={pooled}", "dtype=int8")
    with pytest.raises(UserError, match="^ranges=.*: holds int8, and dtype=uint8 is not comparable with it; set dtype"):
        made(f"run={trained}", "dtype=uint8")
    assert not (tmp_path / "b.npy").exists()
    made(f"run={trained}", "dtype=int8", "prompt=query: {text}")
    assert np.load(tmp_path / "b.npy").shape == (1, 32)


def test_shards_side_by_side_and_the_file_of_all(tmp_path, trained, monkeypatch, capsys):
    monkeypatch.setattr(vectors, "_BLOCK", 4)
    source = tmp_path / "many.txt"
    source.write_text("\n".join(f"text number {n}" for n in range(23)))  # six blocks
    embed(trained, source, tmp_path / "whole.npy")
    seen, whole = [], Embedder.encode
    monkeypatch.setattr(
        Embedder, "encode", lambda self, texts, **o: seen.append(list(texts)) or whole(self, texts, **o)
    )
    capsys.readouterr()
    for number, blocks, left in ((3, [2, 5], 4), (1, [0, 3], 2), (3, [], 2), (2, [1, 4], 0)):
        seen.clear()
        embed(trained, source, tmp_path / "v.npy", f"shard={number}/3")
        assert [texts[0] for texts in seen] == [f"text number {4 * block}" for block in blocks]
        said = capsys.readouterr().err
        assert f"shard {number}/3 is embedded, " in said and "texts embedded" not in said
        assert (f"{left} blocks of other shards to come" if left else "all blocks are there") in said
        assert not (tmp_path / "v.npy").exists()
    seen.clear()
    embed(trained, source, tmp_path / "v.npy")
    assert seen == [] and (tmp_path / "v.npy").read_bytes() == (tmp_path / "whole.npy").read_bytes()
    assert not list(tmp_path.glob(".*parts")), "the blocks are gone"


def test_shards_of_other_settings_neither_lose_nor_take_one_anothers_blocks(tmp_path, trained, monkeypatch):
    monkeypatch.setattr(vectors, "_BLOCK", 4)
    source, target = tmp_path / "many.txt", tmp_path / "v.npy"
    source.write_text("\n".join(f"text number {n}" for n in range(23)))
    embed(trained, source, tmp_path / "whole.npy")
    embed(trained, source, target, "shard=1/2")
    refused = r"\.v\.npy\.parts holds 3 blocks of other texts, another embedder or other settings"
    for others in (["shard=2/2", "dimensions=8"], ["dimensions=8"], ["shard=1/2", "prompt=a {text}"]):
        with pytest.raises(UserError, match=refused):
            embed(trained, source, target, *others)
    text = source.read_text()
    source.write_text("another text\n" + text)
    for others in (["shard=2/2"], []):
        with pytest.raises(UserError, match=refused):
            embed(trained, source, target, *others)
    source.write_text(text)
    embed(trained, source, target, "shard=2/2")
    embed(trained, source, target)
    assert target.read_bytes() == (tmp_path / "whole.npy").read_bytes()
    embed(trained, source, target, "dimensions=8", "overwrite=true")
    assert np.load(target).shape == (23, 8), "nothing is left of what the shards did"


def test_the_file_is_written_though_a_shard_is_missing(tmp_path, trained, monkeypatch):
    monkeypatch.setattr(vectors, "_BLOCK", 4)
    source = tmp_path / "many.txt"
    source.write_text("\n".join(f"text number {n}" for n in range(10)))
    embed(trained, source, tmp_path / "whole.npy")
    embed(trained, source, tmp_path / "v.npy", "shard=2/2")
    embed(trained, source, tmp_path / "v.npy")
    assert (tmp_path / "v.npy").read_bytes() == (tmp_path / "whole.npy").read_bytes()


@pytest.mark.parametrize("shard", ["0/2", "3/2", "2", "a/b", "1/0", "-1/2", "1/2/3"])
def test_shards_that_are_none_are_refused(tmp_path, trained, shard):
    source = write(tmp_path, ".txt")
    with pytest.raises(UserError, match="shard=.*: must be NUMBER/OF, as in shard=3/64"):
        embed(trained, source, tmp_path / "v.npy", f"shard={shard}")
    with pytest.raises(UserError, match="shard=1/2: several jobs need a file"):
        embed(trained, "-", tmp_path / "v.npy", "shard=1/2")
