"""Scores of an embedder on a job's evaluation data: stored ones, or made now and stored."""

import logging
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np

from cft.config.schema import EvalSource, Role
from cft.data.records import ScoredPair, Triplet
from cft.data.retrieval import RetrievalSet
from cft.evaluation import overlap, pairs
from cft.evaluation.retrieval import RetrievalScores, evaluate_retrieval
from cft.evaluation.scores import Evaluation, evaluate, load_evaluation, save_evaluation
from cft.evaluation.vector_cache import CachedEncoder
from cft.job.lengths import find_cut_texts
from cft.job.plan import RECIPE, Plan
from cft.job.run_folder import RunFolder, evaluation_name
from cft.model.embedder import Embedder, first_numbers
from cft.system.digest import digest
from cft.system.files import exclusive_lock

log = logging.getLogger(__name__)


class _FirstNumbers:
    """An encoder of which the first numbers of each vector are taken, as users of `dimensions` take them."""

    def __init__(self, encoder: CachedEncoder, dimensions: int) -> None:
        self._encoder, self._dimensions = encoder, dimensions

    def encode(self, texts: Sequence[str], *, progress: str | None = None) -> np.ndarray:
        """As `Embedder.encode`."""
        return first_numbers(self._encoder.encode(texts, progress=progress), self._dimensions)

    def in_role(self, role: Role) -> "_FirstNumbers":
        """The same in a role; itself if all roles have the same prompt."""
        encoder = self._encoder.in_role(role)
        return self if encoder is self._encoder else _FirstNumbers(encoder, self._dimensions)


def score_dimensions(plan: Plan, owner: Path, embedder: Callable[[], Embedder], what: str) -> dict[int, Evaluation]:
    """Scores on the sets with the first numbers of vectors alone, as many as `loss.dimensions` says.

    Args:
        plan, owner, embedder, what: as `score` takes them.
    """
    if not (plan.sets or plan.retrieval):
        return {}
    return {
        width: _score(plan, plan.scores_folder(owner), embedder, what, sets=plan.sets, dimensions=width)
        for width in plan.config.loss.dimensions
    }


def score(plan: Plan, owner: Path, embedder: Callable[[], Embedder], what: str) -> Evaluation:
    """Scores of an embedder on the sets and on the held-out triplets.

    Args:
        plan: the job. owner: the embedder's folder. embedder: loads it, if anything must be scored. what: its name in
            messages.
    """
    if plan.sets or plan.retrieval:
        scores = _score(plan, plan.scores_folder(owner), embedder, what, sets=plan.sets)
    else:
        scores = Evaluation({}, {}, np.empty(0, np.float32), np.empty(0, np.float32))
    folder, trained_on = plan.scores_folder(owner), plan.data if owner != plan.base_folder else None
    pairs.write_once(folder, plan.sets, trained_on)
    if trained_on and plan.config.eval.source is not EvalSource.rows:  # whose documents are the training's on purpose
        adapter = plan.start.adapter.name if plan.start.adapter and not trained_on.earlier else None
        overlap.report(folder, pairs.read(folder).seen or {}, plan.retrieval, trained_on, adapter=adapter)
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
    dimensions: int | None = None,
) -> Evaluation:
    # So many parameters because sets, triplets and first numbers are scored alike, each into a folder of its own.
    name = evaluation_name(folder.name)
    if dimensions is not None:
        folder = folder / RunFolder.DIMENSIONS / str(dimensions)
    of_base = folder.is_relative_to(plan.base_folder)  # what of texts is cut is the same before and after: said once
    with exclusive_lock(folder, wait=True):  # another job may be making the same scores at this moment
        stored = load_evaluation(folder)
        if stored:
            log.info("already evaluated %s: %s", what, folder)
            if stored.texts_cut and of_base:
                log.warning("%s: %d texts were too long to be read whole", folder, stored.texts_cut)
            return stored
        began = time.perf_counter()
        prompted = embedder().with_prompts(plan.config.prompt.in_evaluation)
        caption = f"evaluating {what} on {name}"
        whole = CachedEncoder(prompted, gigabytes=plan.config.vector_cache_gb, version=RECIPE)
        encoder = _FirstNumbers(whole, dimensions) if dimensions is not None else whole
        caption += "" if dimensions is None else f", {dimensions} numbers"
        pairs_of_sets = [pair for rows in (sets or {}).values() for pair in rows]
        rows, looked_for = triplets or [], plan.retrieval if triplets is None else {}
        found_in = looked_for.values()
        texts = {
            Role.text: [text for pair in pairs_of_sets for text in (pair.sentence1, pair.sentence2)],
            Role.query: [*(row.anchor for row in rows), *(text for each in found_in for text in each.queries)],
            Role.document: [
                *(text for row in rows for text in (row.positive, *row.negatives)),
                *(text for each in found_in for text in each.documents),
            ],
        }
        # Whole vectors were scored before their first numbers.
        cut = find_cut_texts(prompted, texts, name, quiet=not of_base) if dimensions is None else 0
        found = {name: _look_for(encoder, data, f"{caption}, {name}") for name, data in looked_for.items()}
        scores = evaluate(encoder, sets or {}, triplets or [], progress=caption)
        scores = replace(scores, texts_cut=cut, retrieval=found)
        data = digest([sets, triplets, {name: each.content for name, each in looked_for.items()}])
        save_evaluation(folder, scores, prompted.contract, data=data, seconds=time.perf_counter() - began)
        return scores


def _look_for(encoder: "CachedEncoder | _FirstNumbers", data: RetrievalSet, caption: str) -> RetrievalScores:
    """Let a set's queries look for their documents."""
    queries, documents = encoder.in_role(Role.query), encoder.in_role(Role.document)
    return evaluate_retrieval(
        data,
        lambda texts: queries.encode(texts, progress=f"{caption}: queries"),
        lambda texts: documents.encode(texts, progress=f"{caption}: documents"),
    )
