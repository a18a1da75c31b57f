"""Pictures of a job, looked at as matplotlib holds them."""

import pytest

from cft.job import figures


def history(score: float) -> list[dict]:
    steps = [{"event": "step", "step": n, "loss": 3.0 / n, "candidates": 8} for n in range(1, 9)]
    return [*steps, *({"event": "dev", "step": n, "spearman": None, "ndcg@10": score} for n in (4, 8))]


@pytest.mark.parametrize("score", [0.0, 40.0, 98.77, 100.0])
def test_a_flat_development_score_has_an_axis_that_ends_where_scores_do(score):
    figure = figures.training(history(score))
    loss, development = figure.axes
    low, high = development.get_ylim()
    assert low < score < high <= 100.5 and "nDCG@10" in development.get_ylabel()
    assert loss.get_ylim()[0] == 0 and "InfoNCE" in loss.get_ylabel()
    figures.plt.close(figure)
