"""Scores by hand, against scipy's definition, and the published numbers of a finished encoder."""

import tracemalloc

import numpy as np
import pytest
from jobs import composed

from cft.data.records import ScoredPair, Triplet
from cft.evaluation import scores as scoring
from cft.evaluation.scores import Evaluation, evaluate, load_evaluation, save_evaluation, spearman, uniformity
from cft.model.embedder import Embedder
from cft.system.errors import UserError

# Spearman x 100 that MTEB publishes for all-MiniLM-L6-v2, to two decimals.
PUBLISHED = {
    "STS12": 72.37,
    "STS13": 80.60,
    "STS14": 75.59,
    "STS15": 85.39,
    "STS16": 78.99,
    "STS17": 87.59,
    "STSBenchmark": 82.03,
    "BIOSSES": 81.64,
    "SICK-R": 77.58,
}


class Letters:
    """An embedder whose vector counts the letters a, b and c."""

    def __init__(self):
        self.seen: list[str] = []

    def in_role(self, role):
        return self

    def encode(self, texts, progress=None):
        self.seen += texts
        counts = np.array([[text.count(letter) for letter in "abc"] for text in texts], dtype=np.float32)
        return counts / np.linalg.norm(counts, axis=1, keepdims=True)


def test_only_the_order_of_scores_counts():
    assert spearman(np.array([0.1, 0.5, 0.9]), [1, 2, 30], "x") == pytest.approx(100)
    assert spearman(np.array([0.9, 0.5, 0.1]), [1, 2, 3], "x") == pytest.approx(-100)
    # ranks 1 2 3 4 against 1 3 2 4: 1 - 6 * 2 / (4 * 15) = 0.8
    assert spearman(np.array([0.1, 0.2, 0.3, 0.4]), [1, 3, 2, 4], "x") == pytest.approx(80)


def test_ties_share_their_mean_rank():
    # ranks 1.5 1.5 3 against 1 2 3: Pearson of the ranks is sqrt(3) / 2
    assert spearman(np.array([0.1, 0.1, 0.3]), [1, 2, 3], "x") == pytest.approx(100 * np.sqrt(3) / 2)


@pytest.mark.parametrize(
    ("cosines", "scores", "message"),
    [
        ([0.1], [1], "the set X has 1 pairs"),
        ([0.1, 0.2], [3, 3], "all scores of the set X are equal"),
        ([0.5, 0.5], [1, 2], "the embedding has collapsed: all cosines of the set X are equal"),
    ],
)
def test_an_undefined_correlation_is_refused_by_set(cosines, scores, message):
    with pytest.raises(UserError, match=message):
        spearman(np.array(cosines, dtype=np.float32), scores, "X")


def test_every_distinct_text_of_all_sets_is_encoded_once():
    embedder = Letters()
    sets = {
        "one": [ScoredPair("a", "ab", 3), ScoredPair("a", "c", 0)],
        "two": [ScoredPair("ab", "abb", 4), ScoredPair("a", "b", 1)],
    }
    found = evaluate(embedder, sets, [Triplet("a", "ab", ("c", "b")), Triplet("b", "a", ())])
    assert sorted(embedder.seen) == ["a", "ab", "abb", "b", "c"]
    assert found.cosines["one"] == pytest.approx([1 / np.sqrt(2), 0])
    assert found.scores == {"one": pytest.approx(100), "two": pytest.approx(100)}
    assert found.positives == pytest.approx([1 / np.sqrt(2)]) and found.negatives == pytest.approx([0])
    assert found.triplet_accuracy == 1.0


def test_the_overall_score_is_the_mean_and_the_population_deviation():
    # The paper's Table 2, Gemma: 81.56 +- 4.83.
    gemma = [75.80, 85.45, 80.08, 85.02, 83.33, 88.22, 85.61, 73.83, 76.69]
    none = np.empty(0)
    found = Evaluation({str(n): score for n, score in enumerate(gemma)}, {}, none, none)
    assert (round(found.mean, 2), round(found.deviation, 2)) == (81.56, 4.83)
    assert found.triplet_accuracy is None


def test_stored_scores_keep_the_order_of_their_sets(tmp_path, tiny):
    sets = {name: [ScoredPair("a", "ab", 3), ScoredPair("a", "c", 0)] for name in ("STS12", "BIOSSES")}
    found = evaluate(tiny, sets)
    save_evaluation(tmp_path, found, tiny.contract, data="1a2b", seconds=1.0)
    stored = load_evaluation(tmp_path)
    assert list(stored.scores) == ["STS12", "BIOSSES"] and stored.scores == found.scores


@pytest.mark.slow
def test_the_evaluator_gives_the_published_scores_of_minilm_on_all_nine_sets(real_data):
    from cft.data.sts import load_eval_sets

    config = composed("model=minilm", "eval=sts", f"eval.folder={real_data / 'sts'}")
    found = evaluate(Embedder.base(config.model), load_eval_sets(config.eval))
    assert found.scores == {name: pytest.approx(score, abs=0.02) for name, score in PUBLISHED.items()}


@pytest.mark.parametrize("broken", [np.nan, np.inf])
def test_vectors_that_are_no_numbers_are_refused_by_their_text_wherever_they_are_used(broken):
    class Broken:
        def in_role(self, role):
            return self

        def encode(self, texts, *, progress=None):
            vectors = np.eye(len(texts), dtype=np.float32)
            vectors[texts.index("bad")] = broken
            return vectors

    pairs = [ScoredPair("a", "b", 1.0), ScoredPair("c", "bad", 2.0), ScoredPair("d", "e", 3.0)]
    triplets = [Triplet("a", "b", ("bad",))]
    for sets, rows in (({"x": pairs}, []), ({}, triplets)):
        with pytest.raises(UserError, match="vectors of 1 of . texts are not finite, the first that of 'bad'"):
            evaluate(Broken(), sets, rows)
    with pytest.raises(UserError, match="1 cosines of the set x are not finite"):
        spearman(np.array([0.1, broken, 0.3]), [1.0, 2.0, 3.0], "x")


def unit_vectors(count: int, width: int = 8) -> np.ndarray:
    vectors = np.random.default_rng(0).normal(size=(count, width)).astype(np.float32)
    return vectors / np.linalg.norm(vectors, axis=1, keepdims=True)


@pytest.mark.parametrize("count", [2, 3, 6, 7, 8, 50])
def test_uniformity_is_that_of_all_pairs_whatever_the_blocks(monkeypatch, count):
    vectors = unit_vectors(count)
    pairs = [(i, j) for i in range(count) for j in range(i)]
    distances = [float(((vectors[i].astype(np.float64) - vectors[j]) ** 2).sum()) for i, j in pairs]
    expected = np.log(np.mean(np.exp(-2 * np.array(distances))))
    for block in (1, 3, 7, 2048):
        monkeypatch.setattr(scoring, "_UNIFORMITY_BLOCK", block)
        assert uniformity(vectors) == pytest.approx(expected, abs=1e-6)
    assert uniformity(vectors[:1]) is None


def test_uniformity_of_many_vectors_takes_flat_memory():
    def peak(count: int) -> int:
        vectors = unit_vectors(count)
        tracemalloc.start()
        uniformity(vectors)
        found = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        return found

    assert peak(10_000) < 1.1 * peak(5_000) < 200e6, "all cosines of 10,000 vectors at once would take 800 MB"


@pytest.mark.parametrize(
    ("file", "message"),
    [
        ("overall.csv", "the mean over the sets is called 'overall'; rename the set"),
        ("Mean.csv", "the mean over the sets is called 'Mean'"),
        (".hidden.csv", "a set has no name; give it one"),
    ],
)
def test_a_set_that_is_called_as_the_mean_is_refused(tmp_path, file, message):
    """Tables, verdicts and trackers would show one of the two for both."""
    from cft.data.sts import load_eval_sets

    (tmp_path / file).write_text("sentence1,sentence2,score\na,b,1\nc,d,2\n")
    with pytest.raises(UserError, match=message):
        load_eval_sets(composed(*["eval=pairs", f"eval.file={tmp_path / file}"]).eval)
    name = file.partition(".")[0]
    with pytest.raises(UserError, match=message):
        composed(*["eval=sts", f"eval.folder={tmp_path}", f"eval.sets=['{name}',b]"])
