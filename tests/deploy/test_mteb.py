"""MTEB's own STS code gives our scores, on live embedders and on exported ones."""

import random

import numpy as np
import pytest
from conftest import make_tiny

from cft.data.records import ScoredPair
from cft.deploy.mteb import MtebEncoder
from cft.evaluation.scores import evaluate

mteb = pytest.importorskip("mteb", reason="mteb is not installed (the extra `mteb`)")

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
