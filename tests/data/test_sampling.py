"""Which rows make a batch: everything once an epoch, and no text twice where that is wanted."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from cft.data.mixture import Mixture, shares_of
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


MIXTURE = st.lists(st.tuples(st.integers(6, 40), st.integers(1, 5)), min_size=2, max_size=4).map(
    lambda sources: Mixture(tuple(rows for rows, _ in sources), tuple(float(share) for _, share in sources))
)


@given(mixture=MIXTURE, draws=st.integers(1, 300))
def test_every_prefix_of_the_turns_keeps_the_shares(mixture, draws):
    turns = mixture.turns(draws)
    assert len(turns) == draws
    for source, share in enumerate(mixture.normalized):
        drawn = np.cumsum(turns == source)
        assert abs(drawn[-1] - share * draws) < 1
        assert np.abs(drawn - share * np.arange(1, draws + 1)).max() <= len(mixture.rows)


@given(mixture=MIXTURE, seed=st.integers(0, 3))
def test_batches_of_one_source_each_take_turns_and_go_through_every_row_before_one_comes_again(mixture, seed):
    mixture = Mixture(mixture.rows, mixture.shares, by_source=True)
    steps = mixture.count // 3
    found = list(batches(mixture, 3, seed=seed, start=0, stop=4 * steps))
    sources = [{mixture.source_of(row) for row in batch.tolist()} for batch in found]
    assert all(len(each) == 1 for each in sources)
    owners = [each.pop() for each in sources]
    for source, rows in enumerate(mixture.rows):
        assert abs(owners[:steps].count(source) - mixture.normalized[source] * steps) < 1
        drawn = [row for owner, batch in zip(owners, found, strict=True) if owner == source for row in batch.tolist()]
        a_pass = rows // 3 * 3  # rows that do not fill a batch are left out of a pass
        for first in range(0, len(drawn), a_pass):
            assert len(set(drawn[first : first + a_pass])) == len(drawn[first : first + a_pass])


@given(mixture=MIXTURE, seed=st.integers(0, 3))
def test_batches_of_all_sources_have_rows_by_their_shares_and_no_row_twice(mixture, seed):
    if any(share * 6 > rows for share, rows in zip(mixture.normalized, mixture.rows, strict=True)):
        return
    found = list(batches(mixture, 6, seed=seed, start=0, stop=mixture.count // 6))
    assert all(len(set(batch.tolist())) == 6 for batch in found)
    owners = np.array([mixture.source_of(row) for batch in found for row in batch.tolist()])
    for source, share in enumerate(mixture.normalized):
        assert abs((owners == source).sum() - share * len(owners)) <= 6 + len(mixture.rows)


@given(mixture=MIXTURE, by_source=st.booleans(), start=st.integers(0, 20), repeats=st.booleans())
def test_a_training_on_several_sources_goes_on_with_the_batches_of_one_that_never_stopped(
    mixture, by_source, start, repeats
):
    mixture = Mixture(mixture.rows, mixture.shares, by_source)
    rows = [Triplet(f"a{n % 11}", f"p{n}", ()) for n in range(mixture.count)]
    shared = shared_texts(rows) if repeats else None
    whole = [batch.tolist() for batch in batches(mixture, 3, seed=1, start=0, stop=20, shared=shared)]
    rest = [batch.tolist() for batch in batches(mixture, 3, seed=1, start=start, stop=20, shared=shared)]
    assert rest == whole[start:]


@given(mixture=MIXTURE, by_source=st.booleans())
def test_no_text_stands_twice_in_a_batch_of_several_sources(mixture, by_source):
    mixture = Mixture(mixture.rows, mixture.shares, by_source)
    rows = [Triplet(f"a{n % 13}", f"p{n % 17}", ()) for n in range(mixture.count)]
    for batch in batches(mixture, 3, seed=0, start=0, stop=10, shared=shared_texts(rows)):
        texts = [text for row in batch.tolist() for text in texts_of(rows[row])]
        assert len(texts) == len(set(texts))


def test_one_source_is_sampled_as_rows_without_sources_are():
    plain = [batch.tolist() for batch in batches(50, 4, seed=3, start=0, stop=30)]
    for mixture in (Mixture((50,)), Mixture((20, 30)), Mixture((50,), (2.0,))):
        assert [batch.tolist() for batch in batches(mixture, 4, seed=3, start=0, stop=30)] == plain


def test_shares_by_size_even_out_as_the_temperature_rises():
    assert shares_of([900, 100], 1) == pytest.approx([0.9, 0.1])
    assert shares_of([900, 100], 2) == pytest.approx([0.75, 0.25])
    assert shares_of([900, 100], 1e9) == pytest.approx([0.5, 0.5])
