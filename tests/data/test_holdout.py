"""No text of a held-out row is known from training."""

import logging

import pytest

from cft.data.holdout import hold_out
from cft.data.records import Triplet
from cft.data.texts import normalized


def split(rows, count, seed=0):
    numbers, held = hold_out(rows, count, seed)
    return [rows[n] for n in numbers], held


def texts(rows):
    return {normalized(text) for row in rows for text in (row.anchor, row.positive)}


def distinct(count):
    return [Triplet(f"anchor {n}", f"positive {n}", ()) for n in range(count)]


def test_rows_that_share_nothing_are_held_out_one_by_one():
    trained, held = split(distinct(100), 7)
    assert len(held) == 7 and len(trained) == 93 and not texts(trained) & texts(held)
    assert split(distinct(100), 7) == (trained, held) and split(distinct(100), 7, seed=1)[1] != held
    assert split(distinct(100), 0) == (distinct(100), [])
    assert len(split(distinct(100), 500)[1]) == 10


def test_repeated_rows_are_held_out_once_and_in_no_other_row():
    rows = distinct(8) * 10
    trained, held = split(rows, 500)
    assert len(held) == 1 and len(trained) == 70 and not texts(trained) & texts(held)


VARIANTS = {
    "case and punctuation": lambda n: Triplet(f"ANCHOR, {n}!", f"other {n}", ()),
    "a common positive": lambda n: Triplet(f"question {n}", f"positive {n}", ()),
    "a positive that is another's anchor": lambda n: Triplet(f"positive {n}", f"other {n}", ()),
    "anchor and positive changed places": lambda n: Triplet(f"positive {n}", f"anchor {n}", ()),
}


@pytest.mark.parametrize("variant", VARIANTS.values(), ids=VARIANTS)
@pytest.mark.parametrize("seed", range(5))
def test_rows_that_share_a_text_stay_together(variant, seed):
    rows = distinct(60) + [variant(n) for n in range(60)]
    trained, held = split(rows, 12, seed)
    assert len(held) == 12 and len(trained) == 108 and not texts(trained) & texts(held)


def test_a_chain_of_common_texts_is_one_group():
    chain = [Triplet(f"link {n}", f"link {n + 1}", ()) for n in range(50)]
    trained, held = split(chain + distinct(50), 10)
    assert set(held) <= set(distinct(50)) and len(held) == 10 and not texts(trained) & texts(held)


def test_where_all_share_a_few_positives_anchors_are_told_apart_and_it_is_said(caplog):
    rows = [Triplet(f"anchor {n // 2}", f"label {n % 3}", ()) for n in range(120)]
    with caplog.at_level(logging.WARNING):
        trained, held = split(rows, 12)
    assert len(held) == 12 and not {row.anchor for row in trained} & {row.anchor for row in held}
    assert "their positives stand in training too" in caplog.text


def test_rows_of_one_anchor_are_not_held_out_and_it_is_said(caplog):
    rows = [Triplet("anchor", f"positive {n}", ()) for n in range(100)]
    assert split(rows, 10) == (rows, [])
    assert "no rows are held out: too many share one anchor" in caplog.text


def test_signs_alone_are_texts_too():
    rows = [Triplet(sign * n, f"positive {sign * n}", ()) for sign in "!?." for n in range(1, 31)]
    assert len(split(rows, 9)[1]) == 9
