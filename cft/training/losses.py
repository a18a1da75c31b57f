"""The contrastive objective, in both forms that the paper compares."""

from typing import NamedTuple

import torch
import torch.nn.functional as F


class ContrastiveLoss(NamedTuple):
    """The loss of some anchors."""

    loss: torch.Tensor  # scalar mean over the anchors, in nats
    accuracy: float  # share of anchors whose own positive scored highest
    candidates: float  # mean number of texts that an anchor chose from


def info_nce(
    anchor: torch.Tensor,
    positive: torch.Tensor,
    negatives: torch.Tensor | None = None,
    *,
    temperature: float,
    false_negatives: torch.Tensor | None = None,
    first: int = 0,
    targets: torch.Tensor | None = None,
) -> ContrastiveLoss:
    """InfoNCE: each anchor must pick its own positive among all candidates of the batch.

    The candidates are the positives (every other row's is an in-batch negative) and, when given, the M hard
    negatives of all rows. Without them this is the paper's eq. 2; with them, its eq. 1. Similarity is the cosine,
    in float32 whatever comes in, because bfloat16 blurs close pairs.

    Args:
        anchor: (B, D).
        positive: (P, D), row first + i belongs to anchor i. P = B, or more where other processes' positives and all
            other candidates stand behind them.
        negatives: (M, D), any number a row, or None for in-batch negatives only.
        temperature: > 0, no unit; smaller is sharper. The paper uses 0.05.
        false_negatives: (B, P + M) True where a candidate repeats the anchor's positive and must not count against
            it; None counts every candidate, as the paper does.
        first: row of `positive` that belongs to anchor 0.
        targets: (B, P + M) target distribution over the candidates, rows sum to 1, 0 where false_negatives is True
            (see `distillation_targets`); None for the anchor's own positive alone.

    Raises:
        ValueError: if the shapes do not fit.

    Source: van den Oord et al. 2018, arXiv 1807.03748; Gao et al. 2021 (SimCSE), arXiv 2104.08821, for eq. 1.
    """
    # So many parameters because they are the objective's own: tensors, temperature, and what is masked or wanted.
    if anchor.ndim != 2 or anchor.shape[1:] != positive.shape[1:] or first + len(anchor) > len(positive):
        raise ValueError(f"anchor {tuple(anchor.shape)} and positive {tuple(positive.shape)} must both be (B, D)")
    if negatives is not None and negatives.shape[1:] != anchor.shape[1:]:
        raise ValueError(f"negatives {tuple(negatives.shape)} must be (M, {anchor.shape[1]})")
    candidates = positive if negatives is None else torch.cat([positive, negatives])
    logits = F.normalize(anchor.float(), dim=-1) @ F.normalize(candidates.float(), dim=-1).T / temperature
    if false_negatives is not None:
        logits = logits.masked_fill(false_negatives, float("-inf"))
    own = first + torch.arange(len(anchor), device=anchor.device)
    if targets is None:
        loss = F.cross_entropy(logits, own)
    else:
        # A candidate with target 0 adds nothing; without the fill a masked one would add 0 * -inf, which is NaN.
        loss = -(targets * logits.log_softmax(dim=-1).masked_fill(targets == 0, 0)).sum(dim=-1).mean()
    accuracy = (logits.argmax(dim=-1) == own).float().mean().item()
    if false_negatives is None:
        return ContrastiveLoss(loss, accuracy, float(len(candidates)))
    return ContrastiveLoss(loss, accuracy, torch.isfinite(logits).sum(dim=-1).float().mean().item())


def guided_mask(
    anchor: torch.Tensor, candidates: torch.Tensor, *, margin: float, relative: bool, first: int = 0
) -> torch.Tensor:
    """Mark the candidates that a guide finds as near to an anchor as the anchor's own positive, or nearer.

    Args:
        anchor: (B, D) the guide's embeddings.
        candidates: (C, D) the guide's embeddings; row first + i is anchor i's positive.
        margin: what a candidate's cosine must be lower than the positive's by, to count.
        relative: whether the margin is a share of the positive's cosine.
        first: row of `candidates` that belongs to anchor 0.

    Returns:
        (B, C) bool; an anchor's own positive is never marked.

    Source: Solatorio 2024 (GISTEmbed), arXiv 2402.16829; of margins, sentence-transformers' GISTEmbedLoss.
    """
    cosines = F.normalize(anchor.float(), dim=-1) @ F.normalize(candidates.float(), dim=-1).T
    rows = torch.arange(len(anchor), device=anchor.device)
    own = cosines[rows, first + rows][:, None]
    marked = cosines > own - (own.abs() * margin if relative else margin)
    marked[rows, first + rows] = False
    return marked


def distillation_targets(
    anchor: torch.Tensor,
    candidates: torch.Tensor,
    *,
    share: float,
    temperature: float,
    false_negatives: torch.Tensor | None = None,
    first: int = 0,
) -> torch.Tensor:
    """Target distributions: a teacher's similarities, mixed with the one-hot label of the anchor's positive.

    Args:
        anchor: (B, D) the teacher's embeddings.
        candidates: (C, D) the teacher's embeddings; row first + i is anchor i's positive.
        share: the teacher's share of the target, 0 to 1.
        temperature: > 0, of the softmax over the teacher's cosines.
        false_negatives: (B, C) True for candidates that do not count; None for none.
        first: row of `candidates` that belongs to anchor 0.

    Returns:
        (B, C) float32, rows sum to 1.

    Source: Hinton et al. 2015, arXiv 1503.02531, with a batch's candidates for classes.
    """
    cosines = F.normalize(anchor.float(), dim=-1) @ F.normalize(candidates.float(), dim=-1).T
    if false_negatives is not None:
        cosines = cosines.masked_fill(false_negatives, float("-inf"))
    label = torch.zeros_like(cosines)
    own = torch.arange(len(anchor), device=anchor.device)
    label[own, first + own] = 1.0
    return (1 - share) * label + share * (cosines / temperature).softmax(dim=-1)


def false_negative_mask(positives: list[str], negatives: list[str]) -> torch.Tensor:
    """Mark the candidates that repeat an anchor's own positive word for word.

    Args:
        positives: B texts. negatives: M texts.

    Returns:
        (B, B + M) bool; the diagonal of the left part, an anchor's own positive, is never marked.
    """
    ids = {text: index for index, text in enumerate(dict.fromkeys(positives + negatives))}
    candidates = torch.tensor([ids[text] for text in positives + negatives])
    own = candidates[: len(positives)]
    same = own[:, None] == candidates[None, :]
    same[torch.arange(len(own)), torch.arange(len(own))] = False
    return same


def cosent(similarities: torch.Tensor, scores: torch.Tensor, *, temperature: float) -> torch.Tensor:
    """CoSENT: of two pairs of sentences, the one that is scored higher must have the higher similarity.

    Only the order of the scores counts; pairs with equal scores are not compared.

    Args:
        similarities: (P,) of the pairs. scores: (P,) by people, on any scale.
        temperature: > 0, no unit; smaller is sharper. 0.05 is 1 / 20, the scale of its source.

    Returns:
        log(1 + sum of exp((similarity of the lower - similarity of the higher) / temperature)), a scalar.

    Source: Su 2022, CoSENT (kexue.fm/archives/8847); sentence-transformers' CoSENTLoss.
    """
    logits = similarities.float() / temperature
    gaps = logits[None, :] - logits[:, None]  # of the lower over the higher, where row is scored above column
    wrong = gaps[scores[:, None] > scores[None, :]]
    return torch.cat([wrong.new_zeros(1), wrong]).logsumexp(dim=0)


def angle_similarity(one: torch.Tensor, other: torch.Tensor) -> torch.Tensor:
    """The similarity of AnglE: both halves of a vector as real and imaginary parts, divided number by number.

    Angles between complex numbers still change where cosines are near 1 or -1 and hardly have a gradient.

    Args:
        one, other: (P, D), D even.

    Returns:
        (P,), 0 or more.

    Raises:
        ValueError: if D is odd.

    Source: Li and Li 2023 (AnglE), arXiv 2309.12871; without its angle's mean, as in sentence-transformers' AnglELoss.
    """
    if one.shape[1] % 2:
        raise ValueError(f"vectors of {one.shape[1]} numbers have no two halves")
    (a, b), (c, d) = (F.normalize(each.float(), dim=-1).chunk(2, dim=1) for each in (one, other))
    real, imaginary = a * c + b * d, b * c - a * d
    return (real + imaginary).sum(dim=1).abs()


def scored_loss(
    one: torch.Tensor, other: torch.Tensor, scores: torch.Tensor, *, temperature: float, kind: str
) -> torch.Tensor:
    """CoSENT of scored pairs by their cosines (kind "cosent") or by AnglE's similarity ("angle").

    Args:
        one, other: (P, D) embeddings of both sentences. scores: (P,). temperature: > 0. kind: which similarity.
    """
    similarity = angle_similarity(one, other) if kind == "angle" else F.cosine_similarity(one.float(), other.float())
    return cosent(similarity, scores, temperature=temperature)
