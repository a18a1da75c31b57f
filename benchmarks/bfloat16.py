"""What bfloat16 brings on a CPU that multiplies it, and what it costs in scores.

    python benchmarks/bfloat16.py --triplets nli.jsonl.gz --sts FOLDER --run outputs/FOLDER

A training step and the embedding of texts in float32 and in bfloat16, by this package and by sentence-transformers,
which has the batch size that is fastest for it; all sides take turns. Then a finished embedder is scored in both
precisions on the same pairs, with a paired test. Refused where this CPU gains nothing.
"""

import argparse
import sys
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from encoding import BATCH_SIZES, best_size, their_vectors
from peers import its_version, medians, sentence_transformer
from publish import Comparison, Found, publish
from training_step import CPU, Where, batch_of, ours, theirs

from cft.config.compose import compose_config
from cft.config.schema import ModelSettings
from cft.data.sts import load_eval_sets
from cft.evaluation.bootstrap import resample
from cft.evaluation.pairs import describe
from cft.evaluation.scores import evaluate
from cft.model.embedder import Embedder
from cft.model.precision import LEAST_GAIN, bfloat16_gain
from cft.model.sources import fetch

ROUNDED = Where(bf16=True)
PRECISIONS = {"float32": CPU, "bfloat16": ROUNDED}
AIMS = {"step": 4.5, "texts": 4.0}
WHY = {
    "step": "only matrix products gain by it",
    "texts": "its batches by length gain by it as well",
}
_APART = 0.05  # of a loss of about 4, and of a cosine


def main() -> None:
    """Compare the sides and publish one table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--triplets", required=True, help="a file of triplets: sent0, sent1, hard_neg")
    parser.add_argument("--sts", required=True, help="folder of the nine sets")
    parser.add_argument("--run", required=True, help="a finished run, which is scored in both precisions")
    parser.add_argument("--model", default="smollm2", help="a choice of conf/model, which is timed")
    parser.add_argument("--batch", type=int, default=60, help="triplets of the step")
    parser.add_argument("--texts", type=int, default=1000, help="texts of the sets that are embedded for time")
    parser.add_argument("--rows", type=int, help="at most so many pairs of each set are scored; all without")
    parser.add_argument("--repeats", type=int, default=3)
    arguments = parser.parse_args()
    model, rows = batch_of(arguments.model, arguments.triplets)
    gain = bfloat16_gain(model, fetch(model))
    if gain < LEAST_GAIN:
        sys.exit(f"bfloat16 brings {gain:.2f} here, less than {LEAST_GAIN}: nothing to measure")
    batch = rows[: arguments.batch]
    few = [f"eval.rows={arguments.rows}"] if arguments.rows else []
    sets = load_eval_sets(compose_config(["eval=sts", f"eval.folder={arguments.sts}", *few]).eval)
    distinct = list(dict.fromkeys(text for pairs in sets.values() for pair in pairs for text in pair[:2]))
    texts = distinct[:: max(len(distinct) // arguments.texts, 1)]

    parts = {
        "step": (f"training step of {model.name}, {len(batch)} triplets", _steps(model, batch)),
        "texts": (f"embedding {len(texts):,} texts, {model.name}", _texts(model, texts)),
    }
    table: list[tuple[str, ...]] = [("what", "side", "float32", "bfloat16")]
    comparisons = []
    for part, (what, sides) in parts.items():
        found = medians(sides, arguments.repeats)
        best = found["cft, bfloat16"]
        for name in dict.fromkeys(side.rpartition(", ")[0] for side in found):
            table.append((what, name, *(f"{found[f'{name}, {each}'] / best:.2f}" for each in PRECISIONS)))
        comparisons.append(Comparison(f"{what}, in bfloat16", "cft, float32", found["cft, float32"] / best))
        best_of_theirs = min(found[f"{its_version()}, {each}"] for each in PRECISIONS)
        against = f"{its_version()}, at its best precision"
        comparisons.append(Comparison(f"{what}, in bfloat16", against, best_of_theirs / best, AIMS[part], WHY[part]))
    notes = [
        f"Time, cft's in bfloat16 = 1; medians of {arguments.repeats} turns. The trial of two layers found {gain:.1f} "
        "times as fast.",
        _scored(arguments.run, sets),
    ]
    command = "python benchmarks/bfloat16.py --triplets FILE --sts FOLDER --run FOLDER"
    command += f" --rows {arguments.rows}" if arguments.rows else ""
    publish("bfloat16", Found("bfloat16 on a CPU", command, table, comparisons, notes), "float32 and bfloat16")


def _steps(model: ModelSettings, batch: list) -> dict[str, Callable[[], Any]]:
    """A step of every side, with equal losses but for rounding."""
    sides: dict[str, Callable[[], Any]] = {}
    losses, models = [], []
    for precision, where in PRECISIONS.items():
        step, embedder = ours(model, batch, where)
        other, whole = theirs(model, batch, where)
        sides |= {f"cft, {precision}": step, f"{its_version()}, {precision}": other}
        models += [embedder.model.eval(), whole.eval()]
        losses += [step(), other()]
    assert max(losses) - min(losses) < _APART * min(losses), losses
    for each in models:
        each.train()
        each.zero_grad(set_to_none=True)
    return sides


def _texts(model: ModelSettings, texts: list[str]) -> dict[str, Callable[[], Any]]:
    """The embedding of texts by every side, with equal vectors but for rounding."""
    sides: dict[str, Callable[[], Any]] = {}
    sample = texts[::5]
    exact = Embedder.base(model).encode(sample)
    for precision, where in PRECISIONS.items():
        embedder, whole = Embedder.base(model, dtype=where.dtype), sentence_transformer(model, dtype=where.dtype)
        size = best_size(whole, sample, BATCH_SIZES)
        for vectors in (embedder.encode(sample), their_vectors(whole, sample, size)):
            assert (1 - (vectors * exact).sum(axis=1)).max() < _APART, precision
        sides[f"cft, {precision}"] = lambda embedder=embedder: embedder.encode(texts)
        sides[f"{its_version()}, {precision}"] = lambda whole=whole, size=size: their_vectors(whole, texts, size)
    return sides


def _scored(run: str, sets: dict) -> str:
    """The scores of a finished embedder in both precisions, and whether they differ, in a sentence."""
    found = [evaluate(Embedder.load(run, precision=each), sets) for each in ("fp32", "bf16")]
    data = describe(sets, None)
    (by_set,) = resample([[each.cosines] for each in found], data.scores, data.identity).differences([(1, 0)])
    change = by_set[list(by_set)[-1]]
    apart = np.abs([found[1].scores[name] - found[0].scores[name] for name in sets])
    return (
        f"A finished embedder on {sum(map(len, sets.values())):,} pairs of {len(sets)} sets, Spearman x 100: "
        f"{found[0].mean:.2f} in float32, {found[1].mean:.2f} in bfloat16 ({change.value:+.3f} [{change.low:+.3f}, "
        f"{change.high:+.3f}], {change.verdict}); sets differ by {apart.max():.2f} at most."
    )


if __name__ == "__main__":
    torch.manual_seed(0)
    main()
