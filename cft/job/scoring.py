"""Scores of an embedder on a job's evaluation data: stored ones, or made now and stored."""

import logging
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

from cft.data.records import ScoredPair, Triplet
from cft.evaluation import pairs
from cft.evaluation.scores import Evaluation, evaluate, load_evaluation, save_evaluation
from cft.evaluation.vector_cache import CachedEncoder
from cft.job.lengths import warn_of_cut
from cft.job.plan import RECIPE, Plan
from cft.job.run_folder import evaluation_name
from cft.model.embedder import Embedder
from cft.system.files import exclusive_lock

log = logging.getLogger(__name__)


def score(plan: Plan, owner: Path, embedder: Callable[[], Embedder], what: str) -> Evaluation:
    """Scores of an embedder on the sets and on the held-out triplets.

    Args:
        plan: the job. owner: the embedder's folder. embedder: loads it, if anything must be scored. what: its name in
            messages.
    """
    scores = _score(plan, plan.scores_folder(owner), embedder, what, sets=plan.sets)
    pairs.write_once(plan.scores_folder(owner), plan.sets, plan.data if owner != plan.base_folder else None)
    if not plan.holdout:
        return scores
    order = _score(plan, plan.triplets_folder(owner), embedder, what, triplets=plan.holdout)
    return replace(scores, positives=order.positives, negatives=order.negatives, uniformity=order.uniformity)


def _score(
    plan: Plan,
    folder: Path,
    embedder: Callable[[], Embedder],
    what: str,
    *,
    sets: dict[str, list[ScoredPair]] | None = None,
    triplets: list[Triplet] | None = None,
) -> Evaluation:
    with exclusive_lock(folder, wait=True):  # another job may be making the same scores at this moment
        stored = load_evaluation(folder)
        if stored:
            log.info("already evaluated %s: %s", what, folder)
            if stored.texts_cut:
                log.warning("%s: %d texts were too long to be read whole", folder, stored.texts_cut)
            return stored
        began = time.perf_counter()
        prompted = embedder().with_prompts(plan.config.prompt.in_evaluation)
        caption = f"evaluating {what} on {evaluation_name(folder.name)}"
        encoder = CachedEncoder(prompted, gigabytes=plan.config.vector_cache_gb, version=RECIPE)
        texts = [text for rows in (sets or {}).values() for pair in rows for text in (pair.sentence1, pair.sentence2)]
        texts += [text for row in triplets or [] for text in (row.anchor, row.positive, *row.negatives)]
        cut = warn_of_cut(prompted, texts, evaluation_name(folder.name))
        scores = replace(evaluate(encoder, sets or {}, triplets or [], progress=caption), texts_cut=cut)
        save_evaluation(folder, scores, prompted.contract, seconds=time.perf_counter() - began)
        return scores
