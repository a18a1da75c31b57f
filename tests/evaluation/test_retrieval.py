"""Retrieval measures against trec_eval, and exact search against a full sort."""

import tracemalloc
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from jobs import composed

from cft.data.retrieval import load_retrieval_sets, make_set
from cft.evaluation import retrieval
from cft.evaluation.retrieval import DEPTH, MEASURES, TopDocuments, evaluate_retrieval
from cft.evaluation.vector_cache import CachedEncoder
from cft.model.embedder import Embedder

pytrec_eval = pytest.importorskip("pytrec_eval")

TREC = {
    "ndcg@10": "ndcg_cut_10",
    "recall@1": "recall_1",
    "recall@10": "recall_10",
    "recall@100": "recall_100",
    "map@10": "map_cut_10",
}


@st.composite
def cases(draw):
    """Cosines of few values, so that many are equal, and graded judgements, some of them of absent documents."""
    count, queries = draw(st.integers(2, 150)), draw(st.integers(1, 4))
    values = draw(st.integers(1, 6))
    seed = draw(st.integers(0, 2**32 - 1))
    generator = np.random.default_rng(seed)
    scores = generator.integers(0, values, (queries, count)) / values - 0.4
    ids = [str(number) for number in generator.permutation(count * 3 + 9)[: count + 5]]
    judgements = {
        f"q{query}": {
            ids[number]: int(generator.integers(-1, 4)) for number in generator.permutation(count + 5)[: 1 + count // 3]
        }
        for query in range(queries)
    }
    judgements["q0"][ids[0]] = 1  # something is there to be found
    return scores.astype(np.float32), ids[:count], judgements


def evaluated(scores, ids, judgements):
    """The measures of given cosines: a query's vector picks its row out of the documents' vectors."""
    count = len(scores)
    data = make_set(
        "set",
        [(f"q{number}", f"query {number}") for number in range(count)],
        [(id, id) for id in ids],
        [(query, document, grade) for query, of in judgements.items() for document, grade in of.items()],
    )
    column_of = {id: column for column, id in enumerate(ids)}
    unit = np.eye(count, dtype=np.float32)
    return evaluate_retrieval(
        data,
        lambda texts: unit[[int(text.split()[1]) for text in texts]],
        lambda texts: scores[:, [column_of[text] for text in texts]].T.copy(),
    )


@given(cases())
@settings(max_examples=150, deadline=None)
def test_measures_are_those_of_trec_eval(case):
    scores, ids, judgements = case
    found = evaluated(scores, ids, judgements)
    run = {f"q{n}": dict(zip(ids, map(float, row), strict=True)) for n, row in enumerate(scores)}
    cuts = {"ndcg_cut.10", "recall.1,10,100", "map_cut.10"}
    expected = pytrec_eval.RelevanceEvaluator(judgements, cuts).evaluate(run)
    for query in range(len(scores)):
        for ours, theirs in TREC.items():
            assert found.measures[ours][query] == pytest.approx(expected[f"q{query}"][theirs], abs=1e-6), ours
    ten = {
        query: dict(sorted(of.items(), key=lambda pair: (pair[1], pair[0]), reverse=True)[:10])
        for query, of in run.items()
    }
    reciprocal = pytrec_eval.RelevanceEvaluator(judgements, {"recip_rank"}).evaluate(ten)
    for query in range(len(scores)):
        assert found.measures["mrr@10"][query] == pytest.approx(reciprocal[f"q{query}"]["recip_rank"], abs=1e-6)
    assert set(found.measures) == set(MEASURES)
    assert found.recall[[0, 9, 99]] == pytest.approx([found.measures[f"recall@{cut}"].mean() for cut in (1, 10, 100)])


@given(cases(), st.integers(1, 3), st.integers(1, 40), st.integers(1, 30))
@settings(max_examples=60, deadline=None)
def test_search_in_blocks_is_a_full_stable_sort(case, queries, documents, depth):
    scores, _, _ = case
    unit = np.eye(len(scores), dtype=np.float32)
    before = retrieval._QUERIES, retrieval._DOCUMENTS
    retrieval._QUERIES, retrieval._DOCUMENTS = queries, documents
    try:
        search = TopDocuments(unit, depth)
        for part in np.array_split(scores.T, 3):
            search.add(part)
    finally:
        retrieval._QUERIES, retrieval._DOCUMENTS = before
    found = search.ranking()
    order = np.argsort(-scores, axis=1, kind="stable")[:, :depth]
    assert np.array_equal(found.documents, order)
    assert np.array_equal(found.scores, np.take_along_axis(scores, order, axis=1))


def test_zeros_of_both_signs_are_equal_and_scores_keep_their_bits():
    search = TopDocuments(np.ones((1, 1), dtype=np.float32), 5)
    values = np.array([[-0.0], [0.0], [-0.25], [1.0], [-1e-30]], dtype=np.float32)
    search.add(values)
    found = search.ranking()
    assert found.documents.tolist() == [[3, 0, 1, 4, 2]]
    assert np.array_equal(found.scores[0], values[found.documents[0], 0])


def test_the_querys_own_document_is_left_out():
    ids = ["a", "q0", "b"]
    scores = np.array([[0.5, 1.0, 0.2]], dtype=np.float32)
    found = evaluated(scores, ids, {"q0": {"b": 1}})
    assert found.first.tolist() == [0] and found.cosine == pytest.approx([0.5]) and found.found.tolist() == [2]
    judged = evaluated(scores, ids, {"q0": {"q0": 1}})
    assert judged.first.tolist() == [1] and judged.found.tolist() == [1]


def test_relevant_documents_beyond_the_last_rank_are_missed():
    count = DEPTH + 20
    scores = np.linspace(1, 0, count, dtype=np.float32)[None]
    ids = [f"{number:04}" for number in range(count)]
    found = evaluated(scores, ids, {"q0": {ids[DEPTH]: 1, ids[-1]: 1}})
    assert found.found.tolist() == [0] and found.recall[-1] == 0
    assert all(values.tolist() == [0] for values in found.measures.values())


def peak_of(work) -> int:
    """The most bytes that Python and NumPy allocate meanwhile."""
    tracemalloc.start()
    work()
    found = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    return found


def test_memory_does_not_grow_with_the_number_of_documents():
    queries = np.random.default_rng(0).standard_normal((64, 16)).astype(np.float32)
    block = np.random.default_rng(1).standard_normal((20_000, 16)).astype(np.float32)

    def search(blocks: int) -> None:
        found = TopDocuments(queries, DEPTH)
        for _ in range(blocks):
            found.add(block)

    assert peak_of(lambda: search(12)) < 1.1 * peak_of(lambda: search(3))


def test_memory_grows_with_the_queries_by_what_they_find_alone(monkeypatch):
    monkeypatch.setattr(retrieval, "_QUERIES", 16)
    generator = np.random.default_rng(0)
    block = generator.standard_normal((4000, 4)).astype(np.float32)

    def peak(count: int) -> int:
        queries = generator.standard_normal((count, 4)).astype(np.float32)
        return peak_of(lambda: TopDocuments(queries, DEPTH).add(block))

    kept = (320 - 32) * DEPTH * 8  # bytes of the best documents of the further queries
    assert peak(320) < peak(32) + 4 * kept < 320 * len(block) * 8, "one number for every query and document"


@pytest.mark.parametrize("embedded", [1, 7, 40])
def test_documents_embedded_a_few_at_a_time_are_found_as_if_all_at_once(monkeypatch, tmp_path, tiny, embedded):
    monkeypatch.setenv("CFT_CACHE", str(tmp_path))
    texts = [f"thing {number} is number {number * number}" for number in range(40)]
    data = make_set(
        "set",
        [(f"q{number}", f"what is thing {number}?") for number in range(12)],
        [(f"d{number}", text) for number, text in enumerate(texts)],
        [(f"q{number}", f"d{number}", 1) for number in range(12)],
    )
    whole = evaluate_retrieval(data, tiny.encode, tiny.encode)
    monkeypatch.setattr(retrieval, "_EMBEDDED", embedded)
    blocks: list[int] = []
    encoder = CachedEncoder(tiny, gigabytes=1, version=0)

    def documents(texts):
        blocks.append(len(texts))
        return encoder.encode(texts)

    parts = evaluate_retrieval(data, encoder.encode, documents)
    assert max(blocks) == embedded and sum(blocks) == len(texts)
    assert {name: values.tolist() for name, values in parts.measures.items()} == {
        name: values.tolist() for name, values in whole.measures.items()
    }
    assert np.array_equal(parts.first, whole.first) and np.array_equal(parts.found, whole.found)
    np.testing.assert_allclose(parts.cosine, whole.cosine, atol=1e-6)


@pytest.mark.slow
def test_the_evaluator_gives_the_published_scores_of_minilm_on_scifact_and_arguana(beir, monkeypatch):
    monkeypatch.syspath_prepend(str(Path(__file__).resolve().parents[2] / "benchmarks"))
    from retrieval_published import PUBLISHED, TOLERANCE

    config = composed("model=minilm", "eval=retrieval", f"eval.folder={beir}")
    embedder = Embedder.base(config.model)
    for name, data in load_retrieval_sets(config.eval).items():
        found = evaluate_retrieval(data, embedder.encode, embedder.encode).means
        published = PUBLISHED[name]
        assert {measure: found[measure] for measure in published} == pytest.approx(published, abs=TOLERANCE), name
