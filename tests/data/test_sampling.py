"""Which rows make a batch: everything once an epoch, and no text twice where that is wanted."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from cft.data.records import Triplet
from cft.data.sampling import batches, count_batches, shared_texts


def texts_of(row: Triplet) -> set[str]:
    return {row.anchor, row.positive, *row.negatives}


ROW = st.builds(
    lambda numbers: Triplet(f"t{numbers[0]}", f"t{numbers[1]}", (f"t{numbers[2]}",)),
    st.tuples(*(st.integers(0, 60) for _ in range(3))),
)


@given(rows=st.lists(ROW, min_size=4, max_size=80), size=st.integers(2, 6), seed=st.integers(0, 5))
def test_no_text_stands_twice_in_a_batch_and_no_row_comes_twice_in_an_epoch(rows, size, seed):
    shared = shared_texts(rows)
    count = count_batches(len(rows), size, seed=seed, epochs=1, most=1000, shared=shared)
    found = list(batches(len(rows), size, seed=seed, start=0, stop=count, shared=shared))
    assert len(found) == count <= len(rows) // size
    for batch in found:
        assert len(batch) == size
        texts = [text for row in batch for text in texts_of(rows[row])]
        assert len(texts) == len(set(texts))
    taken = np.concatenate(found).tolist() if found else []
    assert len(taken) == len(set(taken))
    # What is left over could not have made another batch out of rows that share nothing with any other.
    free = [row for row in range(len(rows)) if row not in shared and row not in taken]
    assert len(free) < size


@given(rows=st.lists(ROW, min_size=12, max_size=60), start=st.integers(0, 12))
def test_a_training_that_goes_on_has_the_batches_of_one_that_never_stopped(rows, start):
    shared = shared_texts(rows)
    whole = [batch.tolist() for batch in batches(len(rows), 3, seed=1, start=0, stop=12, shared=shared)]
    assert [batch.tolist() for batch in batches(len(rows), 3, seed=1, start=start, stop=12, shared=shared)] == whole[
        start:
    ]


def test_without_shared_texts_the_batches_are_those_of_a_plain_shuffle():
    rows = [Triplet(f"a{n}", f"p{n}", ()) for n in range(50)]
    assert shared_texts(rows) == {}
    plain = [batch.tolist() for batch in batches(50, 4, seed=3, start=0, stop=30)]
    assert [batch.tolist() for batch in batches(50, 4, seed=3, start=0, stop=30, shared={})] == plain


def test_an_anchor_in_half_of_the_rows_is_in_every_batch_once():
    rows = [Triplet("a" if n % 2 else f"a{n}", f"p{n}", ()) for n in range(80)]
    shared = shared_texts(rows)
    found = list(batches(80, 8, seed=0, start=0, stop=count_batches(80, 8, seed=0, epochs=1, most=99, shared=shared),
                         shared=shared))  # fmt: skip
    assert len(found) == 5  # 40 other rows, 7 of them a batch
    assert all(sum(rows[row].anchor == "a" for row in batch) == 1 for batch in found)


def test_rows_that_all_share_one_text_make_no_batch():
    rows = [Triplet("a", f"p{n}", ()) for n in range(8)]
    shared = shared_texts(rows)
    assert count_batches(8, 2, seed=0, epochs=10**6, most=100, shared=shared) == 0
    assert list(batches(8, 2, seed=0, start=0, stop=5, shared=shared)) == []


@pytest.mark.parametrize("role", ["positive", "negatives"])
def test_a_text_is_shared_whatever_its_role(role):
    other = Triplet("b", "x", ("y",))._replace(**{role: "a" if role == "positive" else ("a",)})
    assert set(shared_texts([Triplet("a", "p", ()), other, Triplet("c", "q", ())])) == {0, 1}
