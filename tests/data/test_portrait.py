"""What a file of training rows is like is counted right, and what is wrong with it is said."""

import json
from dataclasses import asdict

import pytest

from cft.data.portrait import Painter, Portrait, portrait_from, warnings_of_pairs
from cft.data.records import ScoredPair, Triplet
from cft.system.errors import UserError

GOOD = [Triplet(f"anchor {n}", f"positive {n}", (f"negative {n}",)) for n in range(40)]


def portrait(rows) -> Portrait:
    painter = Painter()
    for row in rows:
        painter.add(row)
    return painter.portrait()


def test_what_is_counted():
    rows = [*GOOD[:8], GOOD[0], Triplet("x", "x", ("y",)), Triplet("p", "q", ("q", "p"))]
    found = portrait(rows)
    assert (found.rows, found.duplicate_rows) == (11, 1)
    assert (found.positive_is_anchor, found.negative_is_positive, found.negative_is_anchor) == (1, 1, 1)
    assert found.first == {"positive_is_anchor": 10, "negative_is_positive": 11, "negative_is_anchor": 11}
    assert {name: (column.texts, column.distinct) for name, column in found.columns.items()} == {
        "anchors": (11, 10),
        "positives": (11, 10),
        "negatives": (12, 11),
    }
    assert found.columns["anchors"].lengths == (8, 8, 8) and found.columns["negatives"].lengths == (10, 10, 10)
    assert list(found.lines())[0] == "11 rows, 10 distinct anchors, 10 distinct positives, 11 distinct negatives"
    assert "negatives" not in portrait([Triplet("a", "b", ())]).columns


def test_a_record_is_a_portrait_again():
    found = portrait(GOOD)
    assert portrait_from(json.loads(json.dumps(asdict(found)))) == found


def test_nothing_is_said_about_good_rows():
    assert list(portrait(GOOD).warnings()) == [] and list(portrait(GOOD).warnings_of_batches(20)) == []
    portrait(GOOD).require_sound("data.train=x")


SUSPICIOUS = {
    "duplicates": ([*GOOD, *GOOD[:3]], "3 of 43 rows stand there before, word for word"),
    "equal positive": ([*GOOD, Triplet("a", "a", ("b",))], r"1 of 41 rows have their anchor as positive .* row 41"),
    "equal negative": ([Triplet("a", "b", ("b",)), *GOOD], r"1 of 41 rows have their positive among .* row 1\b"),
    "negative anchor": ([Triplet("a", "b", ("a",)), *GOOD], r"1 of 41 rows have their anchor among the negatives"),
    "labels": (
        [row._replace(positive="yes" if n % 2 else "no") for n, row in enumerate(GOOD)],
        "100% of the positives",
    ),
    "lists": (
        [row._replace(anchor=f"['a {n}', \"b\"]") for n, row in enumerate(GOOD)],
        "every text of the anchors reads",
    ),
    "JSON": (
        [row._replace(negatives=(f'["a {n}"]',)) for n, row in enumerate(GOOD)],
        "every text of the negatives reads",
    ),
}


@pytest.mark.parametrize(("rows", "message"), SUSPICIOUS.values(), ids=SUSPICIOUS)
def test_what_is_suspicious_is_one_line(rows, message):
    import re

    (line,) = portrait(rows).warnings()
    assert re.search(message, line) and "\n" not in line


FAULTS = {
    "anchor as positive": [row._replace(positive=row.anchor) for row in GOOD],
    "positive as negative": [row._replace(negatives=(row.positive,)) for row in GOOD],
}


@pytest.mark.parametrize("rows", FAULTS.values(), ids=FAULTS)
def test_rows_from_which_nothing_can_be_learned_are_refused(rows):
    with pytest.raises(UserError, match=r"data.train=x: all 40 rows have their .* are two columns the same\?"):
        portrait(rows).require_sound("data.train=x")


def test_repeated_texts_are_counted_for_a_batch():
    repeated = [row for row in GOOD[:8] for _ in range(10)]
    found = portrait(repeated)
    assert found.same_positive == pytest.approx(9 / 79) and found.same_anchor == 0
    (line,) = found.warnings_of_batches(16)
    assert "of an anchor's 15 in-batch negatives 1.7 are its own positive" in line and "mask_false_negatives" in line
    several = portrait([Triplet(f"a {n // 10}", f"b {n}", ()) for n in range(80)])
    assert several.same_anchor == pytest.approx(9 / 79) and several.same_positive == 0
    (line,) = several.warnings_of_batches(16)
    assert "1.7 are another positive of its own" in line


def test_scored_pairs_have_warnings_too():
    good = [ScoredPair(f"a {n}", f"b {n}", n) for n in range(30)]
    assert list(warnings_of_pairs(good)) == []
    assert list(warnings_of_pairs([*good, good[0]])) == ["1 of 31 pairs stand there before, with the same score"]
    assert "a sentence with itself" in "".join(warnings_of_pairs([p._replace(sentence2=p.sentence1) for p in good]))
    assert "column sentence2 are one of two" in "".join(warnings_of_pairs([p._replace(sentence2="x") for p in good]))
