"""A probe: the scores of every layer of a model with every pooling, kept with tables and a picture."""

import logging
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np

from cft.config.schema import Config, Pooling
from cft.data.sts import load_eval_sets
from cft.evaluation.layer_scores import LayerScores, score_layers
from cft.job import figures
from cft.job.plan import named
from cft.job.start import find_starting_point
from cft.model.adapters import fetch_adapter
from cft.system.digest import digest
from cft.system.errors import UserError
from cft.system.files import exclusive_lock, read_json, write_record, write_text
from cft.system.tables import Row, as_markdown, as_text

log = logging.getLogger("cft.probe")

RECORD = "probe.json"
MEAN = "mean over sets"

# Raise when a change to the code changes what a probe gives.
_RECIPE = 2


def probe_job(config: Config) -> str:
    """Probe a model, or show what an earlier probe of the same model found.

    Returns:
        The table and what to read from it.

    Raises:
        UserError: for whatever the user can mend.
    """
    own = fetch_adapter(config.adapter, config.adapter_revision).contract if config.adapter else None
    # An adapter of ours is held to what it was trained with: of one on a cut model, all layers are those up to the cut.
    if config.model.layer is not None and not (own and own.layer == config.model.layer):
        raise UserError(f"model.layer={config.model.layer}: a probe scores all layers; leave it at null")
    if config.model.layer_weights and not (own and own.layer_weights):
        raise UserError("model.layer_weights=true: a probe scores each layer by itself; leave it out")
    sets = load_eval_sets(config.eval)
    if not sets:
        raise UserError(
            f"eval={config.eval.name}: a probe scores pairs, and there are none; choose eval=sts, or your own by "
            "eval=pairs eval.file=FILE (sentence1, sentence2, score)"
        )
    start = find_starting_point(config)
    facts = {
        "recipe": _RECIPE,
        "weights": start.files.all_read,
        "adapter": start.adapter.identity if start.adapter else None,
        "model": named(replace(config.model, name="", path="", revision=None, sha256=None, pooling=Pooling.last)),
        "dtype": str(start.dtype(config)),
        "template": config.prompt.eval_template,
        "sets": sets,
    }
    folder = Path(config.outputs) / "probes" / f"{config.model.name}-{config.eval.name}-{digest(facts)}"
    with exclusive_lock(folder, wait=True):
        layer_scores = _stored(folder)
        if layer_scores is None:
            embedder = start.load(config, trainable=False).with_template(config.prompt.eval_template)
            layer_scores = score_layers(embedder, sets)
            scores = {name: _plain(cells) for name, cells in layer_scores.scores.items()}
            contract = asdict(embedder.contract)
            write_record(folder / RECORD, {"scores": scores, "poolings": layer_scores.poolings, "contract": contract})
        else:
            log.info("already probed: %s", folder)
        return _report(config, layer_scores, folder, ours=bool(start.adapter and start.adapter.contract))


def _plain(scores: np.ndarray) -> list[list[float | None]]:
    return [[None if np.isnan(value) else float(value) for value in row] for row in scores]


def _stored(folder: Path) -> LayerScores | None:
    if not (folder / RECORD).exists():
        return None
    record: dict[str, Any] = read_json(folder / RECORD)
    scores = {name: np.array(rows, dtype=float) for name, rows in record["scores"].items()}
    return LayerScores(scores, tuple(record["poolings"]))


def _report(config: Config, layers: LayerScores, folder: Path, *, ours: bool) -> str:
    """Write the tables and the picture; returns what to print."""
    layer, pooling, score = layers.best
    title = f"{config.model.name} on {config.eval.name}, layer by layer"
    if config.adapter:
        title += f", with {config.adapter}"
    table = _table(layers, layers.mean)
    pages = [f"# {title} (Spearman x 100)", f"## {MEAN if len(layers.scores) > 1 else ''}".rstrip(" #")]
    pages += [as_markdown(table)]
    if len(layers.scores) > 1:
        for name, scores in layers.scores.items():
            pages += [f"## {name}", as_markdown(_table(layers, scores))]
    write_text(folder / "table.md", "\n\n".join(page for page in pages if page) + "\n")
    figures.save(figures.layers(layers.scores, layers.mean, layers.poolings, title), folder, "layers")
    last = layers.mean[-1, layers.poolings.index(config.model.pooling.value)]
    is_last = layer == len(layers.mean) and config.model.layer is None
    chosen = f"model.pooling={pooling}" + ("" if is_last else f" model.layer={layer}")
    configured = "alone" if config.model.layer_weights else "as configured"
    lines = [
        f"{title} (mean Spearman x 100 over {len(layers.scores)} set{'s' if len(layers.scores) > 1 else ''})\n",
        as_text(table),
        f"\nbest: layer {layer}, {pooling}: {score:.2f} ({chosen}); the last layer, {config.model.pooling.value}, "
        f"{configured}: {_shown(last)}",
        *(["The adapter was trained for the layer and pooling of its contract; these would be for a new one."] * ours),
        "The best of many cells on one set of pairs flatters itself: choose on development pairs, report on others.",
        f"written: {folder / 'table.md'}, {folder / 'layers.png'}",
    ]
    return "\n".join(lines)


def _table(layers: LayerScores, scores: np.ndarray) -> list[Row]:
    rows: list[Row] = [("layer", *(name.replace("_", " ") for name in layers.poolings))]
    for number, row in enumerate(scores, start=1):
        name = f"{number} (last)" if number == len(scores) else str(number)
        rows.append((name, *map(_shown, row)))
    return rows


def _shown(score: float) -> str:
    return "—" if np.isnan(score) else f"{score:.2f}"
