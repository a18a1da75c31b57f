"""Resampled scores against scipy's, coverage of intervals, and verdicts that hold where they must."""

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import spearmanr

from cft.evaluation.bootstrap import (
    _COUNT_OF,
    LEAST_PAIRS,
    MEAN,
    TOO_FEW,
    Difference,
    _Set,
    holm,
    resample,
    undefined_note,
)


@settings(deadline=None, max_examples=60)
@given(st.data())
def test_spearman_under_counts_is_scipys_on_the_repeated_pairs(data):
    n = data.draw(st.integers(3, 40))
    few = st.integers(0, 4).map(float)  # equal values on both sides
    gold = np.array(data.draw(st.lists(few, min_size=n, max_size=n)))
    cosines = np.array(data.draw(st.lists(few, min_size=n, max_size=n)), dtype=np.float32)
    counts = np.array(data.draw(st.lists(st.integers(0, 3), min_size=n, max_size=n)))
    rows = np.repeat(np.arange(n), counts)
    if len(set(gold[rows])) < 2 or len(set(cosines[rows])) < 2:
        return
    (found,) = _Set(gold, [[cosines]]).spearman(counts[:, None].astype(np.float32))[:, 0]
    assert found == pytest.approx(100 * spearmanr(gold[rows], cosines[rows]).statistic, abs=1e-6)


def test_counts_are_poisson_of_mean_one():
    assert _COUNT_OF.mean() == pytest.approx(1, abs=1e-4)
    assert [(_COUNT_OF == count).mean() for count in range(4)] == pytest.approx(
        [math.exp(-1) / math.factorial(count) for count in range(4)], abs=2e-5
    )


def pairs_of(correlation: float, n: int, generator: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    one = generator.normal(size=n)
    return one, correlation * one + math.sqrt(1 - correlation**2) * generator.normal(size=n)


@pytest.mark.parametrize("correlation", [0.3, 0.8])
def test_95_of_100_intervals_hold_the_true_correlation(correlation):
    true = 100 * 6 / math.pi * math.asin(correlation / 2)  # Spearman's of a bivariate normal
    generator = np.random.default_rng(7)
    held = 0
    for _ in range(1000):
        gold, cosines = pairs_of(correlation, 250, generator)
        drawn = resample([[{"x": cosines}]], {"x": gold}, {"x": np.arange(250)}, resamples=500, seed=3)
        interval = drawn.interval(0, "x")
        held += interval.low <= true <= interval.high
    assert 930 <= held <= 970


def test_a_run_against_itself_is_never_distinguishable():
    generator = np.random.default_rng(0)
    gold, cosines = pairs_of(0.7, 100, generator)
    drawn = resample([[{"x": cosines}], [{"x": cosines}]], {"x": gold}, {"x": np.arange(100)}, resamples=300)
    (found,) = drawn.differences([(0, 1)])
    for difference in found.values():
        assert (difference.value, difference.low, difference.high) == (0, 0, 0)
        assert difference.p == difference.corrected == 1.0
        assert difference.verdict == "not distinguishable"


def test_a_clear_difference_is_told_with_its_direction_and_noise_is_not():
    generator = np.random.default_rng(0)
    gold = generator.normal(size=400)
    good, equal, bad = ({"x": gold + generator.normal(0, noise, 400)} for noise in (0.5, 0.5, 3.0))
    drawn = resample([[good], [bad], [equal]], {"x": gold}, {"x": np.arange(400)}, resamples=2000)
    better, worse, same = (found["x"].verdict for found in drawn.differences([(0, 1), (1, 0), (0, 2)]))
    assert (better, worse, same) == ("higher", "lower", "not distinguishable")


def test_a_difference_over_the_same_pairs_is_surer_than_two_intervals_say():
    generator = np.random.default_rng(1)
    gold = generator.normal(size=300)
    one = gold + generator.normal(0, 1, 300)
    other = one + generator.normal(0, 0.2, 300)
    drawn = resample([[{"x": one}], [{"x": other}]], {"x": gold}, {"x": np.arange(300)}, resamples=1000)
    (found,) = drawn.differences([(0, 1)])
    alone = drawn.interval(0, "x")
    assert found["x"].high - found["x"].low < 0.5 * (alone.high - alone.low)


def test_pairs_that_two_sets_share_are_drawn_once():
    generator = np.random.default_rng(2)
    gold, cosines = pairs_of(0.6, 200, generator)
    shared = resample([[{"a": cosines, "b": cosines}]], {"a": gold, "b": gold}, dict.fromkeys("ab", np.arange(200)))
    apart = {"a": np.arange(200), "b": np.arange(200, 400)}
    independent = resample([[{"a": cosines, "b": cosines}]], {"a": gold, "b": gold}, apart)
    assert np.array_equal(shared.drawn[0, 0], shared.drawn[0, 1])
    # the mean of two copies of one set is no surer than the one set; of two independent ones it is, by sqrt(2)
    assert shared.drawn[0, 2].std() == pytest.approx(shared.drawn[0, 0].std())
    assert independent.drawn[0, 2].std() == pytest.approx(shared.drawn[0, 2].std() / math.sqrt(2), rel=0.05)


def test_seeds_are_averaged_in_every_resample():
    generator = np.random.default_rng(3)
    gold, one = pairs_of(0.6, 50, generator)
    other = generator.normal(size=50)
    numbers = {"x": np.arange(50)}
    both = resample([[{"x": one}, {"x": other}]], {"x": gold}, numbers, resamples=50)
    alone = resample([[{"x": one}], [{"x": other}]], {"x": gold}, numbers, resamples=50)
    assert both.drawn[0, 0] == pytest.approx(alone.drawn[:, 0].mean(axis=0), rel=1e-5)
    assert both.values[0, 0] == pytest.approx(alone.values[:, 0].mean())


def test_the_overall_score_is_the_mean_over_sets():
    generator = np.random.default_rng(4)
    sets = {name: pairs_of(0.5, 60, generator) for name in "ab"}
    gold = {name: pair[0] for name, pair in sets.items()}
    drawn = resample([[{n: p[1] for n, p in sets.items()}]], gold, dict.fromkeys("ab", np.arange(60)), resamples=10)
    expected = [100 * spearmanr(*sets[name]).statistic for name in "ab"]
    assert drawn.interval(0, MEAN).value == pytest.approx(np.mean(expected))


def test_holm_by_hand():
    # 3 x 0.01, then 2 x 0.02 = 0.04, then 1 x 0.03, which may not fall below the one before
    assert holm(np.array([0.02, 0.01, 0.03])) == pytest.approx([0.04, 0.03, 0.04])
    assert holm(np.array([0.9, 0.8])) == pytest.approx([1.0, 1.0])


def test_correction_can_take_a_verdict_away():
    assert Difference(1, 0.1, 2, p=0.04, corrected=0.04, pairs=50).verdict == "higher"
    assert Difference(1, 0.1, 2, p=0.04, corrected=0.4, pairs=50).verdict == "not distinguishable"


@pytest.mark.parametrize(("distinct", "copies"), [(2, 1), (2, 20), (9, 1), (9, 100)])
def test_a_few_distinct_pairs_give_no_verdict_however_often_they_recur(distinct, copies):
    """Two embedders that agree with the scores fully, and not at all."""
    gold = np.repeat(np.arange(distinct, dtype=float), copies)
    numbers = {"x": np.repeat(np.arange(distinct), copies)}
    drawn = resample([[{"x": gold}], [{"x": -gold}]], {"x": gold}, numbers, resamples=400)
    (found,) = drawn.differences([(0, 1)])
    for difference in found.values():
        assert difference.value == pytest.approx(200) and difference.verdict == TOO_FEW
        assert difference.p == difference.corrected == 1.0
        assert (difference.low, difference.high) == (-200, 200), "nothing is known of it"
        assert str(difference) == "+200.00", "an interval of all that may be says nothing"
        assert difference.verdict_on("queries") == "no verdict (fewer than 10 queries)"
    assert undefined_note(found.values()) == "", "of intervals that are not shown"
    interval = drawn.interval(0, "x")
    assert (interval.low, interval.high) == (-100, 100)


def test_enough_pairs_give_one():
    gold = np.arange(float(LEAST_PAIRS))
    numbers = {"x": np.arange(LEAST_PAIRS)}
    drawn = resample([[{"x": gold}], [{"x": -gold}]], {"x": gold}, numbers, resamples=1000)
    (found,) = drawn.differences([(0, 1)])
    assert found["x"].verdict == found[MEAN].verdict == "higher"


def test_a_small_set_takes_the_verdict_from_itself_and_the_mean_and_no_share_of_the_correction():
    generator = np.random.default_rng(5)
    gold = {"large": generator.normal(size=300), "small": np.arange(3.0)}
    numbers = {"large": np.arange(300), "small": np.arange(300, 303)}
    bad = {"large": generator.normal(size=300), "small": -gold["small"]}
    drawn = resample([[gold], [bad]], gold, numbers, resamples=500)
    (found,) = drawn.differences([(0, 1)])
    assert {name: each.verdict for name, each in found.items()} == {"large": "higher", "small": TOO_FEW, MEAN: TOO_FEW}
    assert found["large"].corrected == found["large"].p < 0.01
    assert (found["large"].pairs, found["small"].pairs, found[MEAN].pairs) == (300, 3, 3)


def test_resamples_without_a_score_are_counted_and_speak_for_no_side():
    """Twelve pairs, of which all but one have the same human score: a third of the resamples do not draw that one."""
    gold = np.array([1.0, *[0.0] * 11])
    numbers = {"x": np.arange(12)}
    drawn = resample([[{"x": gold + 0.0}], [{"x": np.arange(12.0)}]], {"x": gold}, numbers, resamples=2000)
    (found,) = drawn.differences([(0, 1)])
    assert found["x"].undefined == pytest.approx(math.exp(-1), abs=0.05)
    assert found["x"].p > 0.6 and found["x"].verdict == "not distinguishable"
    assert math.isfinite(found["x"].low) and math.isfinite(found["x"].high)
    assert "of the resamples a score is not defined" in undefined_note(found.values())
    assert undefined_note([]) == ""


@pytest.mark.parametrize("n", [2, 5, 10, 20])
def test_verdicts_on_few_pairs_are_no_more_often_false_than_they_say(n):
    """Both embedders are equally good; few false verdicts are right, and none at all where there are too few pairs."""
    generator, false = np.random.default_rng(n), 0
    for _ in range(200):
        gold = generator.normal(size=n)
        one, other = ({"x": gold + generator.normal(size=n)} for _ in range(2))
        drawn = resample([[one], [other]], {"x": gold}, {"x": np.arange(n)}, resamples=399)
        false += drawn.differences([(0, 1)])[0]["x"].verdict in ("higher", "lower")
    assert false <= 16
