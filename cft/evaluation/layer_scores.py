"""Scores of every layer of a model with every pooling, as if each had been configured, in one pass over the texts."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from tqdm import tqdm

from cft.config.schema import Attention, Pooling
from cft.data.records import ScoredPair
from cft.evaluation.scores import ROUNDING, spearman
from cft.model.embedder import Embedder, in_mode
from cft.system.errors import UserError

# Tokens of one batch; the states of all its layers are in memory at once.
_TOKEN_BUDGET = 4096


@dataclass(frozen=True)
class LayerScores:
    """Spearman x 100 of every layer with every pooling; NaN where no rank correlation is defined."""

    scores: dict[str, np.ndarray]  # (layers, poolings) by set; row 0 is layer 1
    poolings: tuple[str, ...]  # names of the columns

    @property
    def mean(self) -> np.ndarray:
        """Mean over the sets, (layers, poolings); NaN where a set's score is."""
        return np.mean(list(self.scores.values()), axis=0)

    @property
    def best(self) -> tuple[int, str, float]:
        """Layer, pooling and mean score of the best cell.

        Raises:
            UserError: naming the sets, if no layer and pooling has a score on all of them.
        """
        if np.isnan(self.mean).all():
            unscored = [name for name, cells in self.scores.items() if np.isnan(cells).all()] or list(self.scores)
            raise UserError(
                f"no layer with any pooling orders the pairs of {', '.join(unscored)}: the cosines of each are equal "
                "up to rounding, or not finite. See whether the model's weights were loaded (python -m cft.doctor), "
                "whether prompt.template leaves room for the text, and whether the pairs differ in their first tokens"
            )
        row, column = np.unravel_index(np.nanargmax(self.mean), self.mean.shape)
        return int(row) + 1, self.poolings[column], float(self.mean[row, column])


def score_layers(embedder: Embedder, sets: dict[str, list[ScoredPair]]) -> LayerScores:
    """Score every layer with every pooling; each batch holds both texts of its pairs.

    Args:
        embedder: under the prompt that evaluation is to use.
        sets: scored pairs by the name of their set.

    Raises:
        UserError: if a text is empty, or a set has fewer than two pairs or equal scores.
    """
    pairs = sorted({(pair.sentence1, pair.sentence2) for rows in sets.values() for pair in rows})
    texts = list(dict.fromkeys(text for pair in pairs for text in pair))
    ids = dict(zip(texts, embedder.tokenize(texts), strict=True))
    sequences = [ids[left] + ids[right] for left, right in pairs]
    parts, order = [], []
    with (
        in_mode(embedder.model, training=False),
        torch.inference_mode(),
        tqdm(total=len(pairs), desc="probing", unit="pair", leave=False) as bar,
    ):
        for batch in embedder.batches(sequences, _TOKEN_BUDGET):
            parts.append(_cosines(embedder, [pairs[index] for index in batch], ids))
            order += batch
            bar.update(len(batch))
    cosines = np.concatenate(parts, axis=-1)[..., np.argsort(order)]  # (layers, poolings, pairs)
    if embedder.contract.attention is Attention.causal:
        # the first state sees no later token: equal for texts that begin alike, and ranked by rounding alone
        cosines[:, list(Pooling).index(Pooling.first)] = np.nan
    column_of = {pair: column for column, pair in enumerate(pairs)}
    scores = {}
    for name, rows in sets.items():
        of_set = cosines[:, :, [column_of[pair.sentence1, pair.sentence2] for pair in rows]]
        human = [pair.score for pair in rows]
        scores[name] = np.array([[_score(cell, human, name) for cell in layer] for layer in of_set])
    return LayerScores(scores, tuple(pooling.value for pooling in Pooling))


def _score(cosines: np.ndarray, human: Sequence[float], name: str) -> float:
    collapsed = not np.isfinite(cosines).all() or float(np.ptp(cosines)) <= ROUNDING
    return float("nan") if collapsed else spearman(cosines, human, name)


def _cosines(embedder: Embedder, pairs: list[tuple[str, str]], ids: dict[str, tuple[int, ...]]) -> np.ndarray:
    """Cosines (layers, poolings, pairs) of one batch, without the embedding layer, which sees no other token."""
    row_of = {text: row for row, text in enumerate(dict.fromkeys(text for pair in pairs for text in pair))}
    layout = embedder.layout([ids[text] for text in row_of])
    left, right = ([row_of[pair[side]] for pair in pairs] for side in (0, 1))
    cosines = []
    for states in embedder.hidden_states(layout)[1:]:
        vectors = [F.normalize(embedder.pool(states, layout, pooling), dim=-1) for pooling in Pooling]
        cosines.append(torch.stack([(of_texts[left] * of_texts[right]).sum(dim=-1) for of_texts in vectors]))
    return torch.stack(cosines).cpu().numpy()
