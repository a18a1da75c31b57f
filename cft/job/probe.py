"""Scores of every layer of a model with every pooling."""

import logging
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from cft.config.schema import Attention, Config, Pooling
from cft.system.digest import digest
from cft.system.errors import UserError
from cft.system.files import exclusive_lock, read_json, write_json, write_text
from cft.system.tables import Row, as_markdown, as_text

if TYPE_CHECKING:
    from cft.data.records import ScoredPair
    from cft.model.embedder import Embedder
log = logging.getLogger("cft.probe")


RECORD = "probe.json"


MEAN = "mean over sets"


# Tokens of one batch; every layer's states are kept until the batch is scored.
_TOKEN_BUDGET = 4096


# Raise when a change to the code changes what a probe gives.
_RECIPE = 2


@dataclass(frozen=True)
class Probe:
    """Spearman x 100 of every layer and pooling.

    scores: (layers, poolings) a set, NaN where no rank correlation is defined, as when all embeddings are one.
    poolings: names of the columns. Row 0 is layer 1, the last row the model's last layer.
    """

    scores: dict[str, np.ndarray]
    poolings: tuple[str, ...]

    @property
    def mean(self) -> np.ndarray:
        """Mean over the sets, (layers, poolings); NaN where one of them is."""
        return np.mean(list(self.scores.values()), axis=0)

    @property
    def best(self) -> tuple[int, str, float]:
        """Layer, pooling and mean score of the best cell."""
        row, column = np.unravel_index(np.nanargmax(self.mean), self.mean.shape)
        return int(row) + 1, self.poolings[column], float(self.mean[row, column])


def probe_job(config: Config) -> str:
    """Probe a model, or show what an earlier probe of the same found.

    Returns:
        The table and what to read from it.

    Raises:
        UserError: for whatever the user can mend.
    """
    from cft.data.sts import load_eval_sets
    from cft.job.plan import DATA_SEED
    from cft.job.start import find_starting_point

    if config.model.layer is not None:
        raise UserError(f"model.layer={config.model.layer}: a probe scores all layers; leave it at null")
    sets = load_eval_sets(config.eval, seed=DATA_SEED)
    start = find_starting_point(config)
    facts = {
        "recipe": _RECIPE,
        "weights": start.files.identity,
        "adapter": start.adapter.identity if start.adapter else None,
        "model": replace(config.model, name="", path="", revision=None, sha256=None, pooling=Pooling.last),
        "dtype": str(start.dtype(config)),
        "template": config.prompt.eval_template,
        "sets": sets,
    }
    folder = Path(config.outputs) / "probes" / f"{config.model.name}-{config.eval.name}-{digest(facts)}"
    with exclusive_lock(folder, wait=True):
        found = _stored(folder)
        if found is None:
            embedder = start.load(config, trainable=False).with_template(config.prompt.eval_template)
            found = probe(embedder, sets)
            record = {"scores": found.scores, "poolings": found.poolings}
            record["scores"] = {name: _plain(scores) for name, scores in found.scores.items()}
            write_json(folder / RECORD, {**record, "contract": asdict(embedder.contract)})
        else:
            log.info("already probed: %s", folder)
        return _report(config, found, folder, ours=bool(start.adapter and start.adapter.contract))


def probe(embedder: "Embedder", sets: dict[str, list["ScoredPair"]]) -> Probe:
    """Score every layer with every pooling; every text goes through the model with those of its pairs.

    Args:
        embedder: under the prompt that evaluation is to use. sets: scored pairs by the name of their set.

    Raises:
        UserError: if a text is empty or a set has fewer than two pairs or equal scores.
    """
    import torch
    from tqdm import tqdm

    from cft.evaluation.scores import spearman

    pairs = sorted({(pair.sentence1, pair.sentence2) for rows in sets.values() for pair in rows})
    place = {pair: index for index, pair in enumerate(pairs)}
    parts = []
    embedder.model.eval()
    with torch.inference_mode(), tqdm(total=len(pairs), desc="probing", unit="pair", leave=False) as bar:
        for chunk in _chunks(embedder, pairs):
            parts.append(_cosines(embedder, chunk))
            bar.update(len(chunk))
    cosines = np.concatenate(parts, axis=-1)  # (layers, poolings, pairs)

    def score(of_pairs: np.ndarray, rows: list["ScoredPair"], name: str) -> float:
        # rounding alone must not rank pairs of one and the same embedding
        flat = not np.isfinite(of_pairs).all() or float(np.ptp(of_pairs)) < 1e-6
        return float("nan") if flat else spearman(of_pairs, [pair.score for pair in rows], name)

    if embedder.contract.attention is Attention.causal:
        # texts that begin alike have one first state, and rounding alone would rank them
        cosines[:, list(Pooling).index(Pooling.first)] = np.nan

    def scored(name: str, rows: list["ScoredPair"]) -> np.ndarray:
        of_set = cosines[:, :, [place[pair.sentence1, pair.sentence2] for pair in rows]]
        return np.array([[score(cell, rows, name) for cell in layer] for layer in of_set])

    return Probe({name: scored(name, rows) for name, rows in sets.items()}, tuple(entry.value for entry in Pooling))


def _chunks(embedder: "Embedder", pairs: list[tuple[str, str]]) -> list[list[tuple[str, str]]]:
    """Cut pairs into batches by the tokens of their texts; neighbours in the alphabet share prefixes."""
    lengths = {text: len(ids) for text, ids in _token_ids(embedder, [text for pair in pairs for text in pair]).items()}
    chunks: list[list[tuple[str, str]]] = [[]]
    tokens = 0
    for pair in pairs:
        size = sum(lengths[text] for text in pair)
        if chunks[-1] and tokens + size > _TOKEN_BUDGET:
            chunks.append([])
            tokens = 0
        chunks[-1].append(pair)
        tokens += size
    return chunks


def _token_ids(embedder: "Embedder", texts: list[str]) -> dict[str, tuple[int, ...]]:
    distinct = list(dict.fromkeys(texts))
    return dict(zip(distinct, embedder.tokenize(distinct), strict=True))


def _cosines(embedder: "Embedder", pairs: list[tuple[str, str]]) -> np.ndarray:
    """Cosines (layers, poolings, pairs) of one batch; the embedding layer, which sees no other token, is left out."""
    import torch
    import torch.nn.functional as F

    from cft.model.embedder import pool

    ids = _token_ids(embedder, [text for pair in pairs for text in pair])
    row = {text: number for number, text in enumerate(ids)}
    layout = embedder.layout(list(ids.values()))
    left, right = ([row[pair[side]] for pair in pairs] for side in (0, 1))
    found = []
    for states in embedder.hidden_states(layout)[1:]:
        unit = [F.normalize(pool(states, layout, pooling), dim=-1) for pooling in Pooling]
        found.append(torch.stack([(vectors[left] * vectors[right]).sum(dim=-1) for vectors in unit]))
    return torch.stack(found).cpu().numpy()


def _plain(scores: np.ndarray) -> list[list[float | None]]:
    return [[None if np.isnan(value) else float(value) for value in row] for row in scores]


def _stored(folder: Path) -> Probe | None:
    if not (folder / RECORD).exists():
        return None
    record: dict[str, Any] = read_json(folder / RECORD)
    scores = {name: np.array(rows, dtype=float) for name, rows in record["scores"].items()}
    return Probe(scores, tuple(record["poolings"]))


def _report(config: Config, found: Probe, folder: Path, *, ours: bool) -> str:
    """Write the tables and the picture; returns what to print."""
    from cft.job import figures

    title = f"{config.model.name} on {config.eval.name}, layer by layer"
    if config.adapter:
        title += f", with {config.adapter}"
    table = _table(found, found.mean)
    pages = [f"# {title} (Spearman x 100)", f"## {MEAN if len(found.scores) > 1 else ''}".rstrip(" #")]
    pages += [as_markdown(table)]
    if len(found.scores) > 1:
        for name, scores in found.scores.items():
            pages += [f"## {name}", as_markdown(_table(found, scores))]
    write_text(folder / "table.md", "\n\n".join(page for page in pages if page) + "\n")
    figures.save(figures.layers(found.scores, found.mean, found.poolings, title), folder, "layers")
    layer, pooling, score = found.best
    last = found.mean[-1, found.poolings.index(config.model.pooling.value)]
    chosen = f"model.pooling={pooling}" + ("" if layer == len(found.mean) else f" model.layer={layer}")
    lines = [
        f"{title} (mean Spearman x 100 over {len(found.scores)} set{'s' if len(found.scores) > 1 else ''})\n",
        as_text(table),
        f"\nbest: layer {layer}, {pooling}: {score:.2f} ({chosen}); the last layer, {config.model.pooling.value}, as "
        f"configured: {last:.2f}",
        *(["The adapter was trained for the layer and pooling of its contract; these would be for a new one."] * ours),
        "The best of many cells on one set of pairs flatters itself: choose on development pairs, report on others.",
        f"written: {folder / 'table.md'}, {folder / 'layers.png'}",
    ]
    return "\n".join(lines)


def _table(found: Probe, scores: np.ndarray) -> list[Row]:
    rows: list[Row] = [("layer", *(name.replace("_", " ") for name in found.poolings))]
    for number, row in enumerate(scores, start=1):
        name = f"{number} (last)" if number == len(scores) else str(number)
        rows.append((name, *("—" if np.isnan(value) else f"{value:.2f}" for value in row)))
    return rows
