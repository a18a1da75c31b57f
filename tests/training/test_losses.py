"""InfoNCE by hand."""

import math

import pytest
import torch

from cft.training.losses import false_negative_mask, info_nce


def test_orthogonal_texts_cost_log_of_one_plus_the_others_over_e_to_the_inverse_temperature():
    e = torch.eye(3)
    # own similarity 1, two others 0: -log(e^20 / (e^20 + 2))
    expected = math.log(1 + 2 * math.exp(-1 / 0.05))
    assert info_nce(e, e, temperature=0.05).loss.item() == pytest.approx(expected, abs=1e-7)
    assert info_nce(e, e, temperature=1.0).loss.item() == pytest.approx(math.log(1 + 2 * math.exp(-1)), rel=1e-6)


def test_a_hard_negative_equal_to_the_positive_adds_log_two():
    e = torch.eye(3)  # every row then has two equal winners instead of one
    gap = info_nce(e, e, e, temperature=0.05).loss - info_nce(e, e, None, temperature=0.05).loss
    assert gap.item() == pytest.approx(math.log(2), rel=1e-5)


def test_every_row_sees_the_hard_negatives_of_all_rows():
    anchor = torch.tensor([[1.0, 0.0], [0.0, 1.0]])
    negatives = torch.tensor([[1.0, 0.0]])  # one hard negative in the whole batch, equal to the first anchor
    found = info_nce(anchor, anchor, negatives, temperature=1.0)
    first = -math.log(math.e / (math.e + 1 + math.e))
    second = -math.log(math.e / (math.e + 1 + 1))
    assert found.loss.item() == pytest.approx((first + second) / 2, rel=1e-6)
    assert found.candidates == 3


def test_several_hard_negatives_a_row_are_so_many_candidates():
    e = torch.eye(4)
    assert info_nce(e[:2], e[:2], torch.cat([e, e[:2]]), temperature=0.1).candidates == 8


def test_the_length_of_a_vector_does_not_matter():
    a, p, n = torch.randn(3, 5, 7, generator=torch.Generator().manual_seed(0))
    one = info_nce(a, p, n, temperature=0.05).loss
    other = info_nce(3 * a, 0.2 * p, 70 * n, temperature=0.05).loss
    assert one.item() == pytest.approx(other.item(), rel=1e-5)


def test_similarities_are_float32_even_for_bfloat16_vectors():
    a, p = torch.randn(2, 5, 7, generator=torch.Generator().manual_seed(0)).bfloat16()
    loss = info_nce(a, p, temperature=0.05).loss
    assert loss.dtype == torch.float32
    assert loss.item() == info_nce(a.float(), p.float(), temperature=0.05).loss.item()


def test_a_masked_duplicate_costs_nothing_and_an_unmasked_one_costs_log_two():
    e = torch.eye(3)
    positives = e[[0, 0, 2]]
    anchors = e[[0, 0, 2]]
    mask = false_negative_mask(["x", "x", "y"], [])
    assert mask.tolist() == [[False, True, False], [True, False, False], [False, False, False]]
    plain = info_nce(anchors, positives, temperature=0.05)
    masked = info_nce(anchors, positives, temperature=0.05, false_negatives=mask)
    assert plain.loss.item() == pytest.approx(2 / 3 * math.log(2), rel=1e-4)
    assert masked.loss.item() == pytest.approx(0.0, abs=1e-6)
    assert (plain.candidates, masked.candidates) == (3, pytest.approx(7 / 3))


def test_a_hard_negative_that_repeats_the_positive_of_another_row_is_masked_for_that_row_only():
    mask = false_negative_mask(["x", "y"], ["y", "z"])
    assert mask.tolist() == [[False, False, False, False], [False, False, True, False]]


def test_accuracy_counts_the_anchors_whose_own_positive_wins():
    anchor = torch.eye(2)
    positive = torch.tensor([[1.0, 0.0], [1.0, 0.1]])  # the second anchor is nearer to its own than to the first's
    negatives = torch.tensor([[0.0, 1.0]])  # but nearest to this
    assert info_nce(anchor, positive, temperature=0.05).accuracy == 1.0
    assert info_nce(anchor, positive, negatives, temperature=0.05).accuracy == 0.5


@pytest.mark.parametrize(
    ("positive", "negatives", "message"),
    [
        (torch.zeros(2, 3), None, r"anchor \(3, 3\) and positive \(2, 3\)"),
        (torch.zeros(3, 3), torch.zeros(2, 4), r"negatives \(2, 4\) must be \(M, 3\)"),
    ],
)
def test_shapes_that_do_not_fit_are_refused(positive, negatives, message):
    with pytest.raises(ValueError, match=message):
        info_nce(torch.zeros(3, 3), positive, negatives, temperature=0.05)
