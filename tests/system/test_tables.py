"""The before/after table and the pictures."""

import numpy as np
import pytest
from scipy.stats import spearmanr

from cft.evaluation.pairs import Pairs
from cft.evaluation.scores import Evaluation
from cft.job import figures, report
from cft.job.verdicts import compare
from cft.system import tables

RNG = np.random.default_rng(0)


def evaluation(scores: dict[str, float], triplets: int = 20) -> Evaluation:
    cosines = {name: RNG.uniform(-1, 1, 30).astype(np.float32) for name in scores}
    positives = np.linspace(0.5, 1, triplets, dtype=np.float32)
    return Evaluation(scores, cosines, positives, positives[::-1].copy())


HUMAN = {name: RNG.integers(0, 6, 30).astype(float) for name in ("STS12", "BIOSSES")}


def compared(before: Evaluation, after: Evaluation) -> list[tables.Row]:
    """The before/after table over pairs with some scores."""
    scores = {name: HUMAN.get(name, HUMAN["STS12"]) for name in after.cosines}
    identity = {name: np.arange(30) + 30 * place for place, name in enumerate(scores)}
    return compare(before, after, Pairs(scores, identity, None), {}).table


BEFORE = evaluation({"STS12": 7.27, "BIOSSES": 18.03})
AFTER = evaluation({"STS12": 76.38, "BIOSSES": 80.38})


def test_a_row_a_set_then_the_mean_with_its_deviation_then_the_triplets():
    header, *rows = compared(BEFORE, AFTER)
    assert header == ("set", "pairs", "before", "after", "change", "after is")
    found = {name: 100 * spearmanr(AFTER.cosines[name], HUMAN[name]).statistic for name in HUMAN}
    assert [row[0] for row in rows[:2]] == ["STS12", "BIOSSES"] and {row[1] for row in rows[:2]} == {"30"}
    assert [float(row[3]) for row in rows[:2]] == pytest.approx(list(found.values()), abs=0.006)
    assert rows[2][:2] == ("mean over sets", "")
    assert float(rows[2][3]) == pytest.approx(np.mean(list(found.values())), abs=0.006)
    assert rows[3][:5] == ("held-out triplets in order, %", "20", "50.00", "50.00", "+0.00 [+0.0, +0.0]")


def test_one_set_has_no_mean_and_an_evaluation_alone_has_no_after():
    one = evaluation({"x": 1.0}, triplets=0)
    assert [row[0] for row in compared(one, one)] == ["set", "x"]
    assert report.scores(one) == [("set", "pairs", "score"), ("x", "30", "1.00")]
    assert report.scores(BEFORE)[1:] == [
        ("STS12", "30", "7.27"),
        ("BIOSSES", "30", "18.03"),
        ("mean over sets", "", "12.65 ± 5.38"),
    ]


def test_the_text_table_is_aligned_and_the_markdown_table_has_every_cell():
    rows = compared(BEFORE, AFTER)
    lines = tables.as_text(rows).splitlines()
    assert len({len(line) for line in lines}) == 1
    markdown = tables.as_markdown(rows).splitlines()
    assert len(markdown) == len(rows) + 1 and all(line.count("|") == 7 for line in markdown)


HISTORY = [{"event": "step", "step": n, "loss": 1 / n} for n in (1, 2, 3)]
HISTORY += [{"event": "dev", "step": 2, "spearman": 50.0, "accuracy": None}]


@pytest.mark.parametrize(
    ("draw", "shown"),
    [
        (lambda: figures.scores(BEFORE, AFTER), ["STS12", "BIOSSES", "before", "after", "78.4"]),
        (lambda: figures.similarities(BEFORE, AFTER), ["positive", "hard negative", "cosine similarity"]),
        (lambda: figures.training(HISTORY), ["InfoNCE loss, nats", "development Spearman"]),
    ],
    ids=["scores", "similarities", "training"],
)
def test_a_picture_shows_what_it_is_for_and_its_bytes_follow_from_its_data(drawn_in_full, tmp_path, draw, shown):
    bytes_of = []
    for _ in range(2):
        figure = draw()
        texts = " ".join(text.get_text() for text in figure.findobj(lambda artist: hasattr(artist, "get_text")))
        assert all(word in texts for word in shown)
        bytes_of.append([path.read_bytes() for path in figures.save(figure, tmp_path, "x")])
    assert bytes_of[0] == bytes_of[1]
    assert bytes_of[0][0].lstrip().startswith(b"<?xml") and bytes_of[0][1].startswith(b"\x89PNG")


def test_a_caption_reads_in_latex_as_it_was_written():
    told = tables.as_latex([("a",)], "5% of $x_1^2 ~ {a} \\ b")
    expected = r"5\% of \$x\_1\textasciicircum{}2 \textasciitilde{} \{a\} \textbackslash{} b"
    assert rf"\caption{{{expected}}}" in told
