"""What a job's own table says: intervals, verdicts, a finished encoder beside it, and chance."""

import re

import hypothesis
import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from jobs import composed, settings

from cft.data.retrieval import make_set
from cft.evaluation.pairs import Pairs
from cft.evaluation.retrieval import MEASURES, Ranking, RetrievalScores, guessing, score
from cft.evaluation.scores import Evaluation
from cft.job import runner
from cft.job.report import odd_losses
from cft.job.verdicts import Baseline, compare
from cft.training.losses import distillation_targets, info_nce

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


# Losses of forty steps over 32 candidates, whose guessing has 3.47, and what is said of them.
LEARNED = [3.4 - 0.07 * step for step in range(40)]
LOSSES = {
    "it learned": (LEARNED, None),
    "it was good from the start": ([0.4 - 0.005 * step for step in range(40)], None),
    "it went up and down": ([0.6 + 0.5 * (step % 2) for step in range(40)], None),
    "it forgot": (
        [0.4, 0.7, *(min(3.45, 0.7 + 0.2 * step) for step in range(38))],
        r"the loss rose from 0.76 \(steps 1 to 5\) to 3.45 at the end, and guessing among its 32 candidates has 3.47: "
        "the training lost what was known, as steps were too large; lower lr=0.01",
    ),
    "it learned and then forgot": (
        [*LEARNED[:25], *(min(3.3, 1.8 + 0.3 * step) for step in range(15))],
        r"the loss rose from 1.8\d \(steps 2\d to \d+\) to 3.30",
    ),
    "it guessed": ([3.5, 3.4] * 20, "ended at a loss of 3.45, .* has learned next to nothing; raise lr or train.steps"),
    "it guessed for four steps": ([3.5, 3.4, 3.5, 3.4], "has learned next to nothing"),
    "one step": ([0.4], None),
}


@pytest.mark.parametrize("kind", LOSSES)
def test_a_training_that_learned_nothing_is_told_from_one_that_forgot(kind):
    losses, sentence = LOSSES[kind]
    found = odd_losses(losses, 32.0, composed("model=tiny", "lr=1e-2"))
    assert len(found) == (sentence is not None)
    assert sentence is None or re.search(sentence, found[0]), found


def test_the_ratio_of_rates_is_named_where_it_made_steps_large():
    found = odd_losses(LOSSES["it forgot"][0], 32.0, composed("model=tiny", "lr=1e-3", "lora.lr_ratio=16"))
    assert found[0].endswith("lower lr=0.001, or lora.lr_ratio=16")


def test_a_loss_that_a_teacher_keeps_high_is_not_said_to_be_guessing():
    """That of vectors which are the teacher's own, than which no loss is lower."""
    vectors = torch.nn.functional.normalize(torch.randn(32, 64, generator=torch.Generator().manual_seed(0)), dim=1)
    targets = distillation_targets(vectors, vectors, share=1.0, temperature=1.0)
    loss = float(info_nce(vectors, vectors, temperature=1.0, targets=targets).loss)
    job = ["distill=minilm", "distill.share=1", "distill.temperature=1"]
    assert odd_losses([loss] * 40, 32.0, composed("model=tiny"))
    assert odd_losses([loss] * 40, 32.0, composed("model=tiny", *job)) == []


def test_a_job_says_what_was_odd_and_keeps_it(tmp_path, caplog):
    caplog.set_level("INFO", "cft")
    runner.run(settings(tmp_path, "train.steps=2", "lr=1e-6", "eval.rows=10"))
    (table,) = tmp_path.glob("tiny-*/evaluations/*/table.md")
    assert "has learned next to nothing" in caplog.text and "has learned next to nothing" in table.read_text()
