"""Search: the nearest texts, for queries of every kind, from vectors that are kept, into a table or a file."""

import builtins
import contextlib
import csv
import io
import json
import sys
import tracemalloc
from concurrent.futures import ThreadPoolExecutor
from threading import Barrier

import numpy as np
import pytest
from conftest import make_tiny

from cft.data.files import BadRows
from cft.deploy import corpora, similar, vectors
from cft.deploy.encode import EncodeOptions, encode_file
from cft.deploy.similar import SimilarOptions, open_index, search_file
from cft.evaluation.vector_cache import CachedEncoder
from cft.job.plan import RECIPE
from cft.model.embedder import Embedder
from cft.similar import COMMAND, main
from cft.system.errors import UserError

TEXTS = ["a cat sleeps", "two birds, singing", "a cat sleeps", "Émile 🎻 plays", "the end"]
QUERIES = ["a cat", "music", "Émile 🎻 plays"]


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("CFT_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache" / "vectors"


@pytest.fixture
def corpus(tmp_path):
    path = tmp_path / "texts.txt"
    path.write_text("\n".join(TEXTS) + "\n")
    return path


@pytest.fixture
def embedded(monkeypatch) -> list[str]:
    """Texts that went through a model."""
    seen, whole = [], Embedder.encode
    monkeypatch.setattr(Embedder, "encode", lambda self, texts, **o: seen.extend(texts) or whole(self, texts, **o))
    return seen


def options(corpus, **more) -> SimilarOptions:
    return SimilarOptions(**({"model": "tiny", "corpus": corpus} | more))


def hits(corpus, *queries: str, **more) -> list[list[similar.Hit]]:
    with open_index(options(corpus, **more)) as index:
        return index.search(queries)


def expected(query: str, embedder: Embedder | None = None) -> list[tuple[int, float]]:
    """Rows and cosines by one product of all with all; of equal texts the first."""
    embedder = embedder or make_tiny("llama")
    distinct = list(dict.fromkeys(TEXTS))
    cosines = embedder.encode_document(distinct) @ embedder.encode_query([query])[0]
    order = np.argsort(-cosines, kind="stable")
    return [(TEXTS.index(distinct[number]) + 1, float(cosines[number])) for number in order]


def test_each_query_finds_its_nearest_texts_in_order(corpus):
    found = hits(corpus, *QUERIES)
    for query, row in zip(QUERIES, found, strict=True):
        assert [hit.row for hit in row] == [number for number, _ in expected(query)]
        np.testing.assert_allclose([hit.cosine for hit in row], [cosine for _, cosine in expected(query)], atol=1e-6)
        assert [hit.rank for hit in row] == [1, 2, 3, 4] and all(hit.text == TEXTS[hit.row - 1] for hit in row)
    assert found[2][0].text == "Émile 🎻 plays" and found[2][0].cosine == pytest.approx(1, abs=1e-6)
    assert [len(row) for row in hits(corpus, *QUERIES, top=2)] == [2, 2, 2]


def test_a_trained_embedder_has_roles(corpus, trained):
    (found,) = hits(corpus, "cats", model="", run=str(trained), query_prompt="query: {text}", prompt="d: {text}")
    embedder = Embedder.load(trained)
    documents = embedder.with_template("d: {text}").encode(TEXTS)
    cosines = documents @ embedder.with_template("query: {text}").encode(["cats"])[0]
    assert [hit.row for hit in found][0] == int(np.argmax(cosines)) + 1
    assert found[0].cosine == pytest.approx(float(cosines.max()), abs=1e-6)


def test_blocks_give_the_same_as_the_whole(tmp_path, monkeypatch):
    texts = [f"text {number % 70}" for number in range(100)]
    (tmp_path / "many.txt").write_text("\n".join(texts))
    whole = hits(tmp_path / "many.txt", "text 69", "x")
    monkeypatch.setattr(corpora, "_ROWS", 7)
    monkeypatch.setattr(vectors, "_BLOCK", 9)
    monkeypatch.setattr(corpora, "_IN_MEMORY", 10)
    blocks = hits(tmp_path / "many.txt", "text 69", "x", vector_cache_gb=0)
    assert [[(hit.row, hit.text) for hit in row] for row in blocks] == [[(h.row, h.text) for h in row] for row in whole]
    assert whole[0][0].row == 70 and len({hit.text for hit in whole[0]}) == 10


def test_a_second_command_embeds_only_its_query(corpus, embedded, cache):
    first = hits(corpus, "birds")
    embedded.clear()
    assert hits(corpus, "birds") == first and embedded == ["birds"]
    # the same texts in another file have the same vectors; other ones have not
    other = corpus.with_name("other.csv")
    other.write_text("text\n" + "\n".join(f'"{text}"' for text in TEXTS))
    embedded.clear()
    assert hits(other, "birds") == first and embedded == ["birds"]
    other.write_text("text\nnew\n")
    hits(other, "birds")
    assert "new" in embedded
    embedded.clear()
    hits(corpus, "birds", prompt="q: {text}")
    assert embedded[:-1] == TEXTS and len(list(cache.iterdir())) == 3


def test_of_a_changed_file_only_new_texts_are_embedded(tmp_path, embedded, cache, monkeypatch, capfd):
    monkeypatch.setattr(vectors, "_BLOCK", 9)
    texts = [f"text {number % 40}" for number in range(50)]
    path = tmp_path / "many.txt"
    path.write_text("\n".join(texts))
    hits(path, "text 7")
    texts[3:5] = ["one of its own"]
    path.write_text("\n".join([*texts, "another of its own", "text 7"]))
    embedded.clear()
    (found,) = hits(path, "text 7", top=60)
    assert embedded == ["one of its own", "another of its own", "text 7"], "the last of them is the query"
    assert "50 of 51 texts" not in (told := capfd.readouterr().err) and "49 of 51 texts were embedded in" in told
    (whole,) = hits(path, "text 7", top=60, vector_cache_gb=0)
    assert [hit.row for hit in found] == [hit.row for hit in whole] and len(found) == 42
    np.testing.assert_allclose([hit.cosine for hit in found], [hit.cosine for hit in whole], atol=1e-6)
    # neither another embedder's vectors are taken, nor damaged ones
    embedded.clear()
    hits(path, "text 7", prompt="q: {text}")
    assert len(embedded) == 52
    for keys in cache.glob("*/texts-cpu.npy"):
        keys.write_bytes(b"damaged")
    path.write_text("\n".join(texts))
    embedded.clear()
    assert hits(path, "text 7", top=60)[0][0].row == whole[0].row and len(embedded) == 50


def test_two_searches_of_a_new_file_at_once_embed_it_once(corpus, embedded):
    start, embedder = Barrier(2), make_tiny("llama")

    def search() -> np.ndarray:
        with contextlib.ExitStack() as stack:
            texts = stack.enter_context(contextlib.closing(corpora.of_file(corpus, options(corpus))))
            start.wait()
            return np.array(corpora.vectors_of(embedder, texts, stack, 1))

    with ThreadPoolExecutor(2) as threads:
        first, second = (each.result() for each in [threads.submit(search) for _ in range(2)])
    assert (first == second).all() and embedded == TEXTS


def test_what_an_evaluation_embedded_is_not_embedded_again(corpus, embedded, cache):
    texts = corpus.read_text().splitlines()
    CachedEncoder(make_tiny("llama"), gigabytes=1, version=RECIPE).encode(texts[:2])
    CachedEncoder(make_tiny("llama"), gigabytes=1, version=RECIPE).encode(texts[1:3])
    CachedEncoder(make_tiny("llama"), gigabytes=1, version=RECIPE - 1).encode(texts)
    embedded.clear()
    (found,) = hits(corpus, "birds")
    assert embedded == [*texts[3:], "birds"]
    (whole,) = hits(corpus, "birds", vector_cache_gb=0)
    assert [hit.row for hit in found] == [hit.row for hit in whole]
    np.testing.assert_allclose([hit.cosine for hit in found], [hit.cosine for hit in whole], atol=1e-6)


def test_kept_vectors_that_were_damaged_are_made_anew(corpus, cache):
    first = hits(corpus, "birds")
    (path,) = cache.glob("*/index.npy")
    content = bytearray(path.read_bytes())
    content[-1] ^= 64
    path.write_bytes(content)
    assert hits(corpus, "birds") == first


def test_nothing_is_kept_on_request_and_the_limit_holds(corpus, cache):
    hits(corpus, "birds", vector_cache_gb=0)
    assert not list(cache.glob("*/*"))


def test_making_an_index_goes_on_where_it_was(corpus, embedded, monkeypatch):
    monkeypatch.setattr(vectors, "_BLOCK", 2)
    monkeypatch.setattr(vectors.Blocks, "write_npy", lambda self: (_ for _ in ()).throw(KeyboardInterrupt))
    with pytest.raises(KeyboardInterrupt):
        hits(corpus, "birds")
    monkeypatch.undo()
    monkeypatch.setattr(vectors, "_BLOCK", 2)
    monkeypatch.setenv("CFT_CACHE", str(corpus.parent / "cache"))
    seen, whole = [], Embedder.encode
    monkeypatch.setattr(Embedder, "encode", lambda self, texts, **o: seen.extend(texts) or whole(self, texts, **o))
    hits(corpus, "birds")
    assert seen == ["birds"]


# Vectors of cft.encode


@pytest.fixture
def encoded(corpus, tmp_path):
    encode_file(EncodeOptions(str(corpus), str(tmp_path / "v.npy"), model="tiny"))
    return tmp_path / "v.npy"


def test_vectors_that_encode_wrote_are_searched(corpus, encoded, embedded, cache):
    assert hits(corpus, "birds", vectors=str(encoded)) == hits(corpus, "birds")
    embedded.clear()
    hits(corpus, "birds", vectors=encoded, vector_cache_gb=0)
    assert embedded == ["birds"]


@pytest.mark.parametrize(
    ("dtype", "most"), [("float16", 1e-3), ("int8", 0.02), ("uint8", 0.02), ("binary", 0.5), ("ubinary", 0.5)]
)
def test_vectors_in_fewer_bytes_are_searched_by_whole_queries(corpus, tmp_path, dtype, most):
    encode_file(EncodeOptions(str(corpus), str(tmp_path / "s.npy"), model="tiny", dtype=dtype))
    (found,), (exact,) = (hits(corpus, "birds", **more) for more in ({"vectors": tmp_path / "s.npy"}, {}))
    cosines = {hit.text: hit.cosine for hit in exact}
    assert {hit.text for hit in found} == set(cosines)
    assert all(abs(hit.cosine - cosines[hit.text]) < most for hit in found)
    assert [hit.cosine for hit in found] == sorted((hit.cosine for hit in found), reverse=True)


def test_vectors_of_others_are_refused(corpus, encoded, tmp_path, trained):
    def refused(message: str, **more) -> None:
        with pytest.raises(UserError, match=message):
            hits(corpus, "birds", **({"vectors": encoded} | more))

    refused(
        "^vectors=.*made by another embedder: random:llama, untrained there, a training of random:llama \\(adapter ",
        model="",
        run=str(trained),
    )
    refused(r"under the prompt '\{text\}', but here documents have 'q: \{text\}'; .* with .prompt=", prompt="q: {text}")
    refused("no such file", vectors="nowhere.npy")
    refused(r"must be an \.npy file", vectors=corpus)
    np.save(tmp_path / "mine.npy", np.load(encoded))
    refused(r"has no mine.contract.json beside it", vectors=tmp_path / "mine.npy")
    for other in (TEXTS[:-1], [*TEXTS[:-1], "the End"], TEXTS[::-1]):
        corpus.write_text("\n".join(other))
        refused(r"its 5 vectors are not of the . texts of .*texts.txt: other texts")
    corpus.write_text("\n".join(TEXTS))
    np.save(encoded, np.load(encoded)[::-1])
    refused("was changed after it was written")


def test_vectors_of_rows_that_were_left_out_keep_their_numbers(tmp_path, capsys):
    corpus = tmp_path / "t.jsonl"
    corpus.write_text("".join(json.dumps({"text": text}) + "\n" for text in ["a", "", "c"]))
    skip = {"model": "tiny", "on_bad_row": BadRows.SKIP}
    encode_file(EncodeOptions(str(corpus), str(tmp_path / "v.npy"), **skip))
    capsys.readouterr()
    (found,) = hits(corpus, "c", vectors=tmp_path / "v.npy", **skip)
    assert (found[0].row, found[0].text) == (3, "c")
    assert "t.jsonl: 1 row left out" in capsys.readouterr().err


def test_the_record_of_vectors_is_not_overwritten_silently(corpus, tmp_path):
    (tmp_path / "v.contract.json").write_text("mine")
    with pytest.raises(UserError, match=r"v\.contract\.json exists; name another output, or set overwrite=true"):
        encode_file(EncodeOptions(str(corpus), str(tmp_path / "v.npy"), model="tiny"))


def test_memory_of_a_search_does_not_grow_with_the_vectors(tmp_path):
    """The index is a map of a file, of which a block at a time is compared."""

    def peak(count: int) -> int:
        (tmp_path / "n.txt").write_text("".join(f"{number}\n" for number in range(8)))
        with open_index(options(tmp_path / "n.txt")) as index:
            np.save(tmp_path / "big.npy", np.zeros((count, 32), dtype=np.float32))
            index._documents = np.asarray(np.load(tmp_path / "big.npy", mmap_mode="r"))
            index._corpus.distinct = np.arange(count)
            index._hit = lambda rank, number, cosine: number
            tracemalloc.start()
            index.search(["x"])
            found = tracemalloc.get_traced_memory()[1]
            tracemalloc.stop()
        return found

    small, large = peak(60_000), peak(240_000)
    assert large < 1.2 * small


# Queries and output


def test_a_query_prints_a_table(corpus, capsys):
    assert search_file(COMMAND.read(["model=tiny", "top=2", "a cat sleeps", str(corpus)])) == ""
    header, first, second = capsys.readouterr().out.splitlines()
    assert header.split() == ["cosine", "row", "text"] and first.split(maxsplit=2) == ["1.0000", "1", "a cat sleeps"]
    assert float(second.split()[0]) < 1


def test_a_text_is_shown_on_one_line_without_controls(tmp_path, capsys):
    corpus = tmp_path / "c.jsonl"
    corpus.write_text(json.dumps({"text": "a\n\x1b[31mred " + "long " * 50}))
    search_file(options(corpus, query="x"))
    shown = capsys.readouterr().out.splitlines()[1]
    assert "a [31mred long" in shown and "\x1b" not in shown and shown.endswith("…")


def test_queries_of_a_file_are_grouped_and_their_column_is_named(corpus, tmp_path, capsys):
    queries_file = tmp_path / "q.csv"
    queries_file.write_text("question\n" + "\n".join(QUERIES))
    search_file(options(corpus, queries=str(queries_file), query_column="question", top=1))
    blocks = capsys.readouterr().out.strip().split("\n\n")
    assert [block.splitlines()[0] for block in blocks] == QUERIES and all(len(b.splitlines()) == 3 for b in blocks)
    with pytest.raises(UserError, match=r"no column 'text' \(query_column names it\).*Set query_column="):
        search_file(options(corpus, queries=str(queries_file)))


def test_a_bad_query_of_a_file_is_named_before_anything_is_loaded(corpus, tmp_path, monkeypatch):
    (tmp_path / "q.txt").write_text("one\n\ntwo\n")
    monkeypatch.setattr(similar, "load_embedder", lambda **k: pytest.fail("the model was loaded"))
    with pytest.raises(UserError, match=r"data row 2 \(q.txt:2\) has an empty 'text'"):
        search_file(options(corpus, queries=str(tmp_path / "q.txt")))


@pytest.mark.parametrize("ending", ["csv", "tsv", "jsonl"])
def test_rows_of_a_file_hold_everything(corpus, tmp_path, ending):
    (tmp_path / "q.txt").write_text("\n".join(QUERIES))
    out = tmp_path / f"found.{ending}"
    output = search_file(options(corpus, queries=str(tmp_path / "q.txt"), out=str(out), top=2))
    assert output == f"3 queries, 6 rows: {out}"
    with out.open(encoding="utf-8", newline="") as stream:
        if ending == "jsonl":
            rows = [json.loads(line) for line in stream]
        else:
            rows = list(csv.DictReader(stream, delimiter="\t" if ending == "tsv" else ","))
    found = hits(corpus, *QUERIES, top=2)
    flat = [(query, hit) for query, row in zip(QUERIES, found, strict=True) for hit in row]
    assert len(rows) == len(flat)
    for row, (query, hit) in zip(rows, flat, strict=True):
        assert list(row) == ["query", "rank", "cosine", "row", "text"]
        assert (row["query"], int(row["rank"]), int(row["row"]), row["text"]) == (query, hit.rank, hit.row, hit.text)
        assert float(row["cosine"]) == pytest.approx(hit.cosine, abs=1e-6)


def test_an_output_is_not_overwritten_silently_nor_left_half_written(corpus, tmp_path, monkeypatch):
    out = tmp_path / "found.csv"
    out.write_text("mine")
    with pytest.raises(UserError, match=r"found\.csv exists; name another output, or set overwrite=true"):
        search_file(options(corpus, query="x", out=str(out)))
    for name, message in (("found.txt", "must end in .csv or .tsv or .jsonl"), ("no/found.csv", "there is no folder")):
        with pytest.raises(UserError, match=message):
            search_file(options(corpus, query="x", out=str(tmp_path / name)))
    monkeypatch.setattr(sys, "stdin", io.StringIO("one\n\n"))
    with pytest.raises(UserError, match="the query on line 2 of stdin is empty.*; drop it, or set on_bad_row=skip"):
        search_file(options(corpus, out=str(out), overwrite=True))
    assert out.read_text() == "mine"
    search_file(options(corpus, query="x", out=str(out), overwrite=True))
    assert out.read_text().startswith("query,rank")


@pytest.mark.parametrize("read", ["corpus", "queries"])
def test_no_file_that_is_read_is_written_over_even_on_request(tmp_path, read):
    mine = tmp_path / "mine.csv"
    mine.write_text("text,key\na cat,1\nthe end,2\n")
    (tmp_path / "other.csv").write_text("text\na dog\n")
    given = {"corpus": mine, "query": "x"} if read == "corpus" else {"queries": str(mine)}
    link = tmp_path / "link.csv"
    link.symlink_to(mine)
    for out in (mine, link):
        with pytest.raises(UserError, match=rf"{out.name} is read, and would be written over; name another output"):
            search_file(options(**({"corpus": tmp_path / "other.csv"} | given), out=str(out), overwrite=True))
    assert mine.read_text() == "text,key\na cat,1\nthe end,2\n"


def test_a_home_folder_is_one_in_queries_too(corpus, tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("HOME", str(tmp_path))
    (tmp_path / "q.txt").write_text("a cat\n")
    search_file(options(corpus, queries="~/q.txt", top=1))
    assert capsys.readouterr().out.startswith("a cat\n")


def test_a_byte_order_mark_is_no_part_of_the_first_query_of_a_pipe(corpus, monkeypatch, capsys):
    monkeypatch.setattr(sys, "stdin", io.StringIO("\ufeffa cat\n\ufeffa cat\n"))
    search_file(options(corpus, top=1))
    first, second = capsys.readouterr().out.strip().split("\n\n")
    assert first.startswith("a cat\n") and second.startswith("\ufeffa cat\n"), "only at the very beginning"


def test_each_line_of_a_pipe_is_a_query_that_is_answered_before_the_next_is_read(corpus, monkeypatch, capsys):
    answered = []

    class Pipe(io.StringIO):
        def __iter__(self):
            for line in ("a cat\n", "the end\n", "\n"):
                yield line
                answered.append(capsys.readouterr().out)

    monkeypatch.setattr(sys, "stdin", Pipe())
    monkeypatch.setattr(sys, "argv", ["cft.similar", "model=tiny", "top=1", str(corpus)])
    with pytest.raises(SystemExit) as done:
        main()
    assert done.value.code == 2 and "the query on line 3 of stdin is empty" in capsys.readouterr().err
    assert [table.splitlines()[0] for table in answered] == ["a cat", "the end"]
    assert all(table.splitlines()[1] == "cosine  row  text" for table in answered)


def test_blank_lines_of_a_pipe_are_left_out_on_request_and_none_is_no_query(corpus, monkeypatch, capsys):
    monkeypatch.setattr(sys, "stdin", io.StringIO("a cat\n\nthe end\r\n"))
    search_file(options(corpus, on_bad_row="skip", top=1))
    assert [block.splitlines()[0] for block in capsys.readouterr().out.strip().split("\n\n")] == ["a cat", "the end"]
    monkeypatch.setattr(sys, "stdin", io.StringIO(""))
    with pytest.raises(UserError, match="there is no query: give one in quotes"):
        search_file(options(corpus))


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


@pytest.mark.parametrize("piped", [False, True])
def test_queries_are_typed_until_an_empty_line_and_all_is_loaded_once(corpus, monkeypatch, embedded, capsys, piped):
    """With stdout in a pipe, no words of the prompt get into it."""
    typed = ["a cat", "the end", "", "never read"]
    monkeypatch.setattr(sys, "stdin", Terminal("\n".join(typed)))
    if not piped:
        lines = iter(typed)
        monkeypatch.setattr(builtins, "input", lambda prompt: next(lines))
        monkeypatch.setattr(sys.stdout, "isatty", lambda: True)
    loaded, whole = [], similar.load_embedder
    monkeypatch.setattr(similar, "load_embedder", lambda **k: loaded.append(k) or whole(**k))
    search_file(options(corpus, top=1))
    output = capsys.readouterr()
    assert output.out.count("cosine") == 2 and "query" not in output.out and "an empty line ends" in output.err
    assert len(loaded) == 1 and embedded == [*TEXTS, "a cat", "the end"]


def test_a_query_that_cannot_be_embedded_does_not_end_the_prompt(corpus, monkeypatch, capsys):
    monkeypatch.setattr(sys, "stdin", Terminal("a\0b\nthe end\n"))
    search_file(options(corpus, top=1))
    output = capsys.readouterr()
    assert "cft: text 1 of 1 holds a NUL byte" in output.err and output.out.count("cosine") == 1


def test_words_in_the_wrong_order_and_two_kinds_of_queries_are_noticed(corpus):
    with pytest.raises(UserError, match="the query comes before the file"):
        COMMAND.read(["model=tiny", str(corpus), "a query"])
    with pytest.raises(UserError, match="^long words .*: no such file, but .* is one; the query comes before the file"):
        COMMAND.read(["model=tiny", str(corpus), "long words " * 500])
    with pytest.raises(UserError, match="a query and queries= are both given"):
        COMMAND.read(["model=tiny", "queries=q.txt", "a query", str(corpus)])
    assert COMMAND.read(["model=tiny", "queries=q.txt", str(corpus)]).query == ""


def test_columns_of_plain_lines_and_of_no_file_are_refused_by_name(corpus):
    lines = "lines of plain text have no columns; leave it out"
    with pytest.raises(UserError, match=f"^column=body: {lines}"):
        options(corpus, query="x", column="body")
    with pytest.raises(UserError, match=f"^query_column=body: {lines}"):
        options(corpus, queries="q.txt", query_column="body")
    with pytest.raises(UserError, match="^query_column=body: there is no file of columns; leave it out"):
        options(corpus, query="x", query_column="body")


def test_hits_are_named_by_the_files_own_ids(tmp_path, capsys):
    path = tmp_path / "docs.jsonl"
    rows = [{"key": f"doc {n}", "text": text} for n, text in enumerate(TEXTS, start=10)]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    (found,) = hits(path, "cats", id_column="key")
    assert [hit.id for hit in found] == [f"doc {hit.row + 9}" for hit in found]
    search_file(options(path, query="cats", id_column="key"))
    header, first, *_ = capsys.readouterr().out.splitlines()
    assert header.split() == ["cosine", "key", "text"] and found[0].id in first
    for name in ("hits.csv", "hits.jsonl"):
        search_file(options(path, query="cats", id_column="key", out=str(tmp_path / name)))
    assert (tmp_path / "hits.csv").read_text().splitlines()[0] == "query,rank,cosine,row,text,id"
    assert json.loads((tmp_path / "hits.jsonl").read_text().splitlines()[0])["id"] == found[0].id
    with pytest.raises(UserError, match="id_column=key: lines of plain text have no columns"):
        options(tmp_path / "lines.txt", query="cats", id_column="key")
    with pytest.raises(UserError, match=r"docs\.jsonl.* has no column 'nokey' .*id_column names it"):
        hits(path, "cats", id_column="nokey")
