"""MTEB's own STS and retrieval code gives our scores, on live embedders and on exported ones."""

import json
import random
from pathlib import Path

import numpy as np
import pytest
from conftest import make_tiny
from jobs import composed

from cft.data.records import ScoredPair
from cft.data.retrieval import load_retrieval_sets
from cft.deploy.mteb import MtebEncoder
from cft.evaluation.retrieval import evaluate_retrieval
from cft.evaluation.scores import evaluate
from cft.model.quantize import quantize


@pytest.fixture(autouse=True, scope="module")
def _installed() -> None:
    """Here and not above: every test process would import it, for seconds, only to know the tests' names."""
    pytest.importorskip("mteb", reason="mteb is not installed (the extra `mteb`)")


WORDS = "a cat dog bird sleeps sings runs near the river house quickly while two men play a loud flute".split()


def pairs(count: int = 60) -> list[ScoredPair]:
    draw = random.Random(0)

    def text() -> str:
        return " ".join(draw.choices(WORDS, k=draw.randint(3, 9)))

    return [ScoredPair(text(), text(), round(draw.uniform(0, 5), 1)) for _ in range(count)]


def task(rows: list[ScoredPair]):
    """An STS task of MTEB whose data come from here."""
    from datasets import Dataset, DatasetDict
    from mteb.abstasks.sts import AbsTaskSTS
    from mteb.abstasks.task_metadata import TaskMetadata

    class LocalSTS(AbsTaskSTS):
        metadata = TaskMetadata(
            name="LocalSTS",
            dataset={"path": "local/sts", "revision": "1"},
            description="Pairs of this test.",
            type="STS",
            category="t2t",
            modalities=["text"],
            eval_splits=["test"],
            eval_langs=["eng-Latn"],
            main_score="cosine_spearman",
            reference=None,
            date=None,
            domains=None,
            task_subtypes=None,
            license=None,
            annotations_creators=None,
            dialect=None,
            sample_creation=None,
            bibtex_citation=None,
        )

        def load_data(self, **_: object) -> None:
            columns = {name: [getattr(row, name) for row in rows] for name in ("sentence1", "sentence2", "score")}
            self.dataset = DatasetDict(test=Dataset.from_dict(columns))
            self.data_loaded = True

    return LocalSTS()


def score(model, rows: list[ScoredPair], folder) -> float:
    import mteb
    from mteb.cache import ResultCache

    found = mteb.evaluate(model, tasks=[task(rows)], cache=ResultCache(folder), overwrite_strategy="always")
    return 100 * found.task_results[0].scores["test"][0]["cosine_spearman"]


@pytest.mark.parametrize("prompt", ["{text}", "query: {text}"])
def test_a_live_embedder_has_our_score_in_mteb(tmp_path, prompt):
    embedder = make_tiny("llama").with_template(prompt)
    ours = evaluate(embedder, {"local": pairs()}).scores["local"]
    assert score(MtebEncoder(embedder), pairs(), tmp_path) == pytest.approx(ours, abs=1e-4)


def test_an_exported_embedder_has_our_score_in_mteb(tmp_path, trained):
    sentence_transformers = pytest.importorskip("sentence_transformers")
    from cft.deploy import export
    from cft.export import COMMAND
    from cft.model.embedder import Embedder

    export.export(COMMAND.read([f"run={trained}", str(tmp_path / "exported")]))
    model = sentence_transformers.SentenceTransformer(str(tmp_path / "exported"), device="cpu")
    ours = evaluate(Embedder.load(trained), {"local": pairs()}).scores["local"]
    assert score(model, pairs(), tmp_path) == pytest.approx(ours, abs=1e-4)


def test_a_live_embedder_has_our_retrieval_scores_in_mteb(tmp_path, tiny, monkeypatch):
    """On a set with titles, grades and documents that are queries: ArguAna leaves these out, SciFact does not."""
    monkeypatch.syspath_prepend(str(Path(__file__).resolve().parents[2] / "benchmarks"))
    monkeypatch.setenv("CFT_CACHE", str(tmp_path / "cache"))
    import retrieval_published

    draw = random.Random(1)
    texts = [" ".join(draw.choices(WORDS, k=draw.randint(3, 9))) for _ in range(60)]
    corpus = [
        {"_id": f"d{n}", "title": "A title" * (n % 2), "text": f" {text} "} for n, text in enumerate([*texts, "a"])
    ]
    queries = [{"_id": f"q{n}", "text": text} for n, text in enumerate(texts[:20])]
    corpus += [{"_id": query["_id"], "title": "", "text": query["text"]} for query in queries[1::2]]
    judged = "".join(f"q{n}\td{n}\t2\nq{n}\td{n + 20}\t1\nq{n}\td{n + 1}\t0\n" for n in range(20))
    for name in ("ArguAna", "SciFact"):
        (tmp_path / name / "qrels").mkdir(parents=True)
        for kind, rows in (("corpus", corpus), ("queries", queries)):
            (tmp_path / name / f"{kind}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
        (tmp_path / name / "qrels" / "test.tsv").write_text(f"query-id\tcorpus-id\tscore\n{judged}")
    config = composed("eval=retrieval", f"eval.folder={tmp_path}")
    sets = load_retrieval_sets(config.eval)
    found = retrieval_published.by_mteb(config, sets, tiny)
    for name, data in sets.items():
        ours = evaluate_retrieval(data, tiny.encode, tiny.encode).means
        assert found[name] == {name: pytest.approx(ours[name], abs=2e-3) for name in found[name]}
    assert found["ArguAna"]["ndcg@10"] > found["SciFact"]["ndcg@10"] + 5 > 20
    table, agree = retrieval_published.table_of(dict.fromkeys(("live", "exported", "mteb"), found), {})
    assert agree and len(table) == 7
    far = {**found, "SciFact": {**found["SciFact"], "map@10": found["SciFact"]["map@10"] + 0.03}}
    table, agree = retrieval_published.table_of({"live": found, "exported": found, "mteb": far}, {})
    assert not agree and [row[-1] for row in table].count("NOT EQUAL") == 1


def test_two_embedders_have_two_revisions():
    one, other = MtebEncoder(make_tiny("llama")), MtebEncoder(make_tiny("llama").with_template("x {text}"))
    assert one.mteb_model_meta.revision != other.mteb_model_meta.revision
    assert one.mteb_model_meta.revision == MtebEncoder(make_tiny("llama")).mteb_model_meta.revision
    assert one.mteb_model_meta.name == "cft/random:llama"


def test_similarities_are_cosines():
    vectors = make_tiny("llama").encode(["a", "b", "c"])
    encoder = MtebEncoder(make_tiny("llama"))
    np.testing.assert_allclose(encoder.similarity(vectors, vectors).numpy(), vectors @ vectors.T, atol=1e-6)
    np.testing.assert_allclose(encoder.similarity_pairwise(vectors, vectors).numpy(), np.ones(3), atol=1e-6)


def test_vectors_in_fewer_bytes_are_multiplied_as_float32():
    vectors = make_tiny("llama").encode(["a", "b", "c"])
    encoder, small = MtebEncoder(make_tiny("llama")), quantize(vectors, "int8")
    wide = small.astype(np.int64)
    assert np.abs(wide @ wide.T).max() > 127
    np.testing.assert_array_equal(encoder.similarity(small, small).numpy(), wide @ wide.T)
    np.testing.assert_array_equal(encoder.similarity_pairwise(small, small).numpy(), (wide * wide).sum(axis=1))
    half = vectors.astype(np.float16)
    np.testing.assert_allclose(encoder.similarity(half, vectors).numpy(), vectors @ vectors.T, atol=1e-3)
    np.testing.assert_allclose(encoder.similarity_pairwise(vectors, half).numpy(), np.ones(3), atol=1e-3)
