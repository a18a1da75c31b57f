"""Retrieval sets: BEIR's layout in every format, and every fault named by file and row."""

import gzip
import json
import re
from pathlib import Path

import pyarrow
import pyarrow.parquet
import pytest

from cft.config.schema import EvalSettings, EvalSource
from cft.data import sts
from cft.data.retrieval import HUB_SETS, WITHOUT_OWN_DOCUMENT, load_retrieval_sets
from cft.system.errors import UserError

CORPUS = [
    {"_id": "d1", "title": "Cats", "text": "They sleep."},
    {"_id": "d2", "title": "", "text": "Dogs bark."},
    {"_id": "d3", "title": "Only a title", "text": ""},
    {"_id": "q1", "title": "", "text": "What do cats do?"},
]
QUERIES = [
    {"_id": "q2", "text": "Who barks?"},
    {"_id": "q1", "text": "What do cats do?"},
    {"_id": "q3", "text": "unjudged"},
]
QRELS = [("q1", "d1", 2), ("q2", "d2", 1), ("q2", "gone", 1), ("q1", "d2", 0)]


def rows_of_qrels(qrels) -> list[dict]:
    return [dict(zip(("query-id", "corpus-id", "score"), row, strict=True)) for row in qrels]


def write_set(folder: Path, *, corpus=CORPUS, queries=QUERIES, qrels=QRELS, ending="", name="Set") -> Path:
    """A set in BEIR's layout; `ending` is "", ".gz" or ".parquet"."""
    place = folder / name
    (place / "qrels").mkdir(parents=True)
    tables = {"corpus.jsonl": corpus, "queries.jsonl": queries, "qrels/test.tsv": rows_of_qrels(qrels)}
    for file, rows in tables.items():
        if ending == ".parquet":
            table = pyarrow.Table.from_pylist(rows)
            pyarrow.parquet.write_table(table, (place / file).with_suffix(".parquet"))
            continue
        if file.endswith(".tsv"):
            text = "query-id\tcorpus-id\tscore\n" + "".join("\t".join(map(str, row)) + "\n" for row in qrels)
        else:
            text = "".join(json.dumps(row) + "\n" for row in rows)
        (place / f"{file}{ending}").write_bytes(gzip.compress(text.encode()) if ending else text.encode())
    return folder


def load(folder: Path, **settings):
    settings = {"name": "retrieval", "sets": ["Set"], "folder": str(folder), **settings}
    return load_retrieval_sets(EvalSettings(source=EvalSource.retrieval, **settings))["Set"]


@pytest.mark.parametrize("ending", ["", ".gz", ".parquet"])
def test_every_format_gives_the_same_set(tmp_path, ending):
    found = load(write_set(tmp_path, ending=ending))
    assert (found.query_ids, found.queries) == (["q2", "q1"], ["Who barks?", "What do cats do?"])
    assert found.documents == ["Cats They sleep.", "Dogs bark.", "Only a title", "What do cats do?"]
    assert found.judgements == [{"d2": 1, "gone": 1}, {"d1": 2, "d2": 0}]
    assert found.own_document == [None, "q1"]
    assert found.content == load(write_set(tmp_path / "again")).content


def test_a_document_that_is_judged_is_not_left_out_for_its_number(tmp_path):
    numbered = [{"_id": 1, "text": "a"}, {"_id": 2, "text": "b"}]
    found = load(write_set(tmp_path, corpus=numbered, queries=numbered, qrels=[(1, 1, 1), (2, 1, 1)]))
    assert found.own_document == [None, "2"]


@pytest.mark.parametrize(("name", "own"), [("ArguAna", "2"), ("NFCorpus", None), ("Mine", "2")])
def test_the_querys_own_document_is_left_out_where_mteb_leaves_it_out(tmp_path, name, own):
    numbered = [{"_id": 1, "text": "a"}, {"_id": 2, "text": "b"}]
    write_set(tmp_path, corpus=numbered, queries=numbered, qrels=[(1, 1, 1), (2, 1, 1)], name=name)
    settings = EvalSettings(name="retrieval", source=EvalSource.retrieval, folder=str(tmp_path), sets=[name])
    assert load_retrieval_sets(settings)[name].own_document == [None, own]


def test_documents_that_are_left_out_are_said(tmp_path, caplog):
    caplog.set_level("INFO", "cft")
    load(write_set(tmp_path))
    assert "Set: 1 query has a document of the same id, which is left out of the ranking, as MTEB does" in caplog.text


def test_a_set_with_a_dot_in_its_splits_name_is_listed_whole(tmp_path):
    place = write_set(tmp_path) / "Set" / "qrels"
    (place / "test.tsv").rename(place / "dev.v2.tsv")
    with pytest.raises(UserError, match=re.escape("splits there: dev.v2 (eval.split=SPLIT)")):
        load(tmp_path)
    assert load(tmp_path, split="dev.v2").query_ids == ["q2", "q1"]


def test_a_quick_look_takes_queries_evenly(tmp_path):
    queries = [{"_id": f"q{number}", "text": f"query {number}"} for number in range(10)]
    write_set(tmp_path, queries=queries, qrels=[(query["_id"], "d1", 1) for query in queries])
    found = load(tmp_path, rows=2)
    assert found.query_ids == ["q0", "q5"] and len(found.documents) == len(CORPUS)


def test_content_depends_on_every_part(tmp_path):
    changed = [
        {},
        {"corpus": [*CORPUS[:3], {"_id": "q1", "title": "", "text": "other"}]},
        {"queries": [{"_id": "q2", "text": "Who barked?"}, *QUERIES[1:]]},
        {"qrels": [("q1", "d1", 1), *QRELS[1:]]},
    ]
    contents = {load(write_set(tmp_path / str(number), **each)).content for number, each in enumerate(changed)}
    assert len(contents) == len(changed)


FAULTS = {
    "duplicate document": (
        {"corpus": [*CORPUS, CORPUS[0]]},
        r"data row 5 \(corpus.jsonl:5\) has the _id 'd1' of a row",
    ),
    "duplicate query": ({"queries": [*QUERIES, QUERIES[0]]}, r"data row 4 \(queries.jsonl:4\) has the _id 'q2'"),
    "empty query": ({"queries": [{"_id": "q1", "text": " "}]}, r"data row 1 \(queries.jsonl:1\) has an empty 'text'"),
    "empty document": (
        {"corpus": [*CORPUS, {"_id": "x", "title": "", "text": ""}]},
        r"data row 5 \(corpus.jsonl:5\) has neither a 'title' nor a 'text'",
    ),
    "no id": ({"queries": [{"_id": None, "text": "a"}]}, r"data row 1 \(queries.jsonl:1\) has no '_id'"),
    "unknown query": (
        {"qrels": [*QRELS, ("q9", "d1", 1)]},
        r"data row 5 \(test.tsv:6\) names the query 'q9', which .*",
    ),
    "half a grade": ({"qrels": [("q1", "d1", 0.5)]}, "has 0.5 as 'score', which is not a whole number"),
    "huge grade": ({"qrels": [("q1", "d1", 10**20)]}, r"has 1e\+20 as 'score', .* at most 1,000,000; mend"),
    "nothing there": (
        {"qrels": [("q1", "gone", 1)]},
        r"Set\): its corpus holds no document .* such as 'gone': there is",
    ),
    "contradiction": (
        {"qrels": [("q1", "d1", 1), ("q1", "d1", 0)]},
        r"data row 2 .* gives 'q1' and 'd1' another score",
    ),
    "one document": ({"corpus": CORPUS[:1]}, r"the set Set \(.*Set\) has 1 document: there is nothing to rank"),
    "nothing relevant": ({"qrels": [("q1", "d1", 0)]}, r"no judgement of the set Set \(.*Set\) is above 0"),
    "another column": ({"corpus": [{"id": "d1", "text": "a"}]}, "has no column '_id'; its columns are 'id', 'text'"),
    "NUL": ({"corpus": [*CORPUS, {"_id": "x", "text": "a\0b"}]}, "has a NUL byte in 'text'"),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_a_fault_is_named_by_file_and_row(tmp_path, fault):
    changed, message = FAULTS[fault]
    with pytest.raises(UserError, match=message) as error:
        load(write_set(tmp_path, **changed))
    assert "\n" not in str(error.value)


def test_missing_files_are_named_with_what_is_there(tmp_path):
    write_set(tmp_path)
    with pytest.raises(
        UserError, match=r"no .*qrels/dev\{.tsv, .tsv.gz, .parquet\}.*; splits there: test \(eval.split="
    ):
        load(tmp_path, split="dev")
    with pytest.raises(UserError, match="holds no set Sett; sets there: Set; did you mean Set"):
        load(tmp_path, sets=["Sett"])
    with pytest.raises(UserError, match=f"is itself a set.*eval.folder={tmp_path} 'eval.sets=\\[Set\\]'"):
        load(tmp_path / "Set")
    with pytest.raises(UserError, match="no such folder"):
        load(tmp_path / "nowhere")
    (tmp_path / "Set" / "corpus.jsonl").unlink()
    with pytest.raises(
        UserError, match=r"no .*corpus\{.jsonl, .jsonl.gz, .parquet\}, a file with the columns _id, title"
    ):
        load(tmp_path)


def test_judged_documents_that_are_absent_are_counted(tmp_path, caplog):
    load(write_set(tmp_path))
    assert "1 judged documents are not in the corpus; they count as not found" in caplog.text


def test_the_hub_gives_mtebs_layout_at_a_pinned_revision(monkeypatch):
    asked = []

    def load_dataset(repository, subset, *, revision):
        asked.append((repository, subset, revision))
        if subset == "default":
            raise ValueError("no such subset")
        rows = {"corpus": CORPUS, "queries": QUERIES, "qrels": rows_of_qrels(QRELS)}[subset]
        return {"train": rows}

    monkeypatch.setattr("datasets.load_dataset", load_dataset)
    monkeypatch.setattr(sts, "hub_answers", lambda: True)
    entry = HUB_SETS["NanoSciFactRetrieval"]
    settings = EvalSettings(name="retrieval", source=EvalSource.retrieval, sets=[entry.name])
    found = load_retrieval_sets(settings)[entry.name]
    assert found.judgements == [{"d2": 1, "gone": 1}, {"d1": 2, "d2": 0}]
    assert {(repository, revision) for repository, _, revision in asked} == {(entry.repository, entry.revision)}
    assert sum(name.startswith("Nano") for name in HUB_SETS) == 13
    with pytest.raises(UserError, match="eval.sets: Nowhere unknown on the hub"):
        load_retrieval_sets(EvalSettings(name="retrieval", source=EvalSource.retrieval, sets=["Nowhere"]))


def test_pinned_revisions_and_rules_are_those_that_mteb_names():
    mteb = pytest.importorskip("mteb")
    for name, entry in HUB_SETS.items():
        task = mteb.get_task(name)
        dataset = task.metadata.dataset
        assert (dataset["path"], dataset["revision"]) == (entry.repository, entry.revision), name
        assert task.metadata.eval_splits == [entry.split], name
        assert task.ignore_identical_ids == (name in WITHOUT_OWN_DOCUMENT), name


def test_the_real_sets_have_the_sizes_that_their_publishers_give(beir):
    settings = EvalSettings(
        name="retrieval", source=EvalSource.retrieval, folder=str(beir), sets=["SciFact", "ArguAna"]
    )
    found = load_retrieval_sets(settings)
    sizes = {name: (len(each.queries), len(each.documents)) for name, each in found.items()}
    assert sizes == {"SciFact": (300, 5183), "ArguAna": (1406, 8674)}
    assert sum(map(len, found["SciFact"].judgements)) == 339
    assert sum(own is not None for own in found["ArguAna"].own_document) == 1298
