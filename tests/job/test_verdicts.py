"""What a job's own table says: intervals, verdicts, a finished encoder beside it, and chance."""

import hypothesis
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from cft.data.retrieval import make_set
from cft.evaluation.pairs import Pairs
from cft.evaluation.retrieval import MEASURES, Ranking, RetrievalScores, guessing, score
from cft.evaluation.scores import Evaluation
from cft.job.verdicts import Baseline, compare

NOTHING = np.empty(0, dtype=np.float32)


def found(values) -> Evaluation:
    """An evaluation whose queries have these nDCG@10."""
    values = np.asarray(values, dtype=np.float64)
    numbers = np.zeros(len(values), dtype=np.int64)
    scores = RetrievalScores(dict.fromkeys(MEASURES, values), numbers, NOTHING, numbers, np.zeros(100))
    return Evaluation({}, {}, NOTHING, NOTHING, retrieval={"mine": scores})


def queries(count: int, documents: int):
    texts = [(f"d{n}", f"text {n}") for n in range(documents)]
    texts_of_queries = [(f"q{n}", f"question {n}") for n in range(count)]
    return {"mine": make_set("mine", texts_of_queries, texts, [(f"q{n}", f"d{n}", 1) for n in range(count)])}


def test_a_result_is_told_from_before_from_a_finished_encoder_and_from_chance():
    rng, sets = np.random.default_rng(0), queries(60, 200)
    low, high = rng.random(60) * 0.2, 0.6 + rng.random(60) * 0.2
    beside = Baseline("minilm", found(high + 0.1))
    compared = compare(found(low), found(high), Pairs({}, {}, None), sets, beside)
    header, row = compared.table
    assert header == ("set", "queries", "before", "after", "change", "after is", "minilm", "after is, beside minilm")
    assert (row[0], row[1], row[5], row[7]) == ("mine", "60", "higher", "lower")
    assert compared.change.low < 100 * (high - low).mean() < compared.change.high
    assert row[2:4] == (f"{100 * low.mean():.2f}", f"{100 * high.mean():.2f}")
    (sentence,) = compared.sentences
    assert sentence == (
        f"the result is better than before ({compared.change}) and worse than minilm as it was published "
        f"({compared.lead})"
    )


def test_a_result_where_chance_is_says_so():
    sets = queries(80, 100)
    by_chance = guessing(sets["mine"])
    rng = np.random.default_rng(1)
    guessed = np.where(rng.random(80) < 0.1, rng.random(80), 0.0) * by_chance.mean() * 20
    compared = compare(found(by_chance * 0.9), found(guessed), Pairs({}, {}, None), sets)
    assert compared.at_chance and "the result is where chance is" in compared.sentences[-1]
    assert f"random order have {100 * by_chance.mean():.2f}" in compared.sentences[-1]
    clear = compare(found(by_chance), found(np.full(80, 0.9)), Pairs({}, {}, None), sets)
    assert not clear.at_chance and "chance" not in " ".join(clear.sentences)


def test_too_few_queries_give_no_verdict():
    compared = compare(found([0.1] * 5), found([0.9] * 5), Pairs({}, {}, None), queries(5, 10))
    assert compared.table[1][4:] == ("+80.00", "no verdict (fewer than 10 queries)")
    assert compared.sentences == ["fewer than 10 queries: too few to say whether the result is better"]


def test_scored_pairs_and_triplets_have_intervals_and_verdicts_too():
    rng = np.random.default_rng(2)
    scores = np.round(rng.random(200) * 5, 1)
    noise = rng.normal(size=(2, 200))
    cosines = [(scores + scale * noise[row]).astype(np.float32) for row, scale in ((0, 8.0), (1, 1.0))]
    order = rng.random((2, 300)).astype(np.float32)
    before, after = (
        Evaluation({"A": float(side)}, {"A": cosines[side]}, order[side] + side, order[1 - side]) for side in (0, 1)
    )
    data = Pairs({"A": scores}, {"A": np.arange(200)}, None)
    compared = compare(before, after, data, {})
    assert [row[5] for row in compared.table[1:]] == ["higher", "higher"] and compared.table[2][1] == "300"
    assert compared.table[2][0] == "held-out triplets in order, %" and "[" in compared.table[2][4]
    assert len(compared.sentences) == 1


def test_nothing_scored_is_no_change():
    empty = Evaluation({}, {}, NOTHING, NOTHING)
    compared = compare(empty, empty, Pairs({}, {}, None), {})
    assert compared.change is None and compared.table == [("set", "pairs", "before", "after", "change", "after is")]


@hypothesis.settings(max_examples=25, deadline=None)
@given(st.integers(2, 30), st.lists(st.integers(0, 3), min_size=1, max_size=8), st.integers(0, 2**20))
def test_guessing_is_the_mean_over_random_orders(documents, grades, seed):
    texts = [(f"d{n}", f"text {n}") for n in range(documents)]
    judged = {n: grade for n, grade in enumerate([1, *grades])}  # of which one at least is there
    data = make_set("mine", [("q", "question")], texts, [("q", f"d{n}", grade) for n, grade in judged.items()])
    rng, orders = np.random.default_rng(seed), 2000
    ranks = np.full((orders, 100), -1, dtype=np.int64)
    ranks[:, :documents] = rng.permuted(np.tile(np.arange(documents), (orders, 1)), axis=1)
    scores = score(Ranking(ranks, np.zeros(ranks.shape, dtype=np.float32)), [judged] * orders).measures["ndcg@10"]
    assert guessing(data)[0] == pytest.approx(scores.mean(), abs=1e-6 + 5 * scores.std() / orders**0.5)
