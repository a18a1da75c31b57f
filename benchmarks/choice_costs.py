"""What a training choice costs: a step with it beside one without it, and the tokens that it sends through the model.

    python benchmarks/choice_costs.py                       # all-MiniLM-L6-v2, minutes on two cores
    python benchmarks/choice_costs.py --model smollm2 --only model.echo=true model.layer_weights=true

Every choice is a training of its own by `cft.train`, on the same docstrings, and they take turns. A step is timed from
the row of the step before to its own, so that reading rows and making batches count too; the first of each is left out.
"""

import argparse
import json
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
from publish import Found, publish

import cft
from cft.config.compose import compose_model
from cft.data.docstrings import training_rows
from cft.data.records import Triplet
from cft.model.embedder import Embedder
from cft.system.console import set_up_console

AS_IT_IS, AGAIN = "as it is", "as it is, again"
GUIDE = "minilm"

CHOICES = {
    AS_IT_IS: [],
    AGAIN: [],
    "train.no_duplicates=true": ["train.no_duplicates=true"],
    "loss.both_directions=true": ["loss.both_directions=true"],
    "loss.mask_false_negatives=true": ["loss.mask_false_negatives=true"],
    "loss.dimensions": ["loss.dimensions=[96,192]"],
    f"loss.guide={GUIDE}": [f"loss.guide={GUIDE}"],
    "loss=hard_neg": ["loss=hard_neg"],
    "loss.scored=cosent": ["loss.scored=cosent"],
    "loss.scored=angle": ["loss.scored=angle"],
    "lora.variant=rslora": ["lora.variant=rslora"],
    "lora.variant=dora": ["lora.variant=dora"],
    "lora.init=pissa": ["lora.init=pissa"],
    "lora.lr_ratio=16": ["lora.lr_ratio=16"],
    "lora.bias=all": ["lora.bias=all"],
    "model.layer_weights=true": ["model.layer_weights=true"],
    "model.echo=true": ["model.echo=true"],
}
# all-MiniLM-L6-v2 reads a text in both directions, where echo is refused; SmolLM2 has no biases.
REFUSED = {"minilm": ["model.echo=true"], "smollm2": ["lora.bias=all"]}

# A backward pass takes twice the products of a forward pass; the guide has none.
PASSES = 3


@dataclass(frozen=True)
class Step:
    """One training step: its seconds, and the tokens that went through the model."""

    seconds: float
    nodes: int


def write_rows(rows: list[Triplet], folder: Path) -> dict[str, Path]:
    """The rows as triplets, and as pairs with scores: an anchor with its positive, and with its hard negative."""
    triplets = [{"sent0": row.anchor, "sent1": row.positive, "hard_neg": row.negatives[0]} for row in rows]
    pairs = [(row.anchor, text, score) for row in rows for text, score in ((row.positive, 1), (row.negatives[0], 0))]
    scored = [{"sentence1": one, "sentence2": other, "score": score} for one, other, score in pairs]
    paths = {"triplets": folder / "triplets.jsonl", "scored": folder / "scored.jsonl"}
    for path, lines in zip(paths.values(), (triplets, scored), strict=True):
        path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    return paths


def steps_of(overrides: list[str], files: dict[str, Path], settings: list[str]) -> list[Step]:
    """Train with these overrides; the steps behind the first."""
    times: list[float] = []
    nodes: list[int] = []

    def note(row: dict) -> None:
        times.append(time.perf_counter())
        nodes.append(row["nodes"])

    scored = [f"data.scored={files['scored']}"] if any("loss.scored" in word for word in overrides) else []
    with tempfile.TemporaryDirectory() as outputs:
        data = ["data=files", f"data.train={files['triplets']}", "data.holdout=0", f"outputs={outputs}"]
        loss = [] if "loss=hard_neg" in overrides else ["loss=in_batch"]
        cft.train([*settings, *data, *loss, *scored, *overrides], callbacks=[note])
    return [Step(after - before, count) for before, after, count in zip(times[:-1], times[1:], nodes[1:], strict=True)]


def weights_in_products(model: str) -> int:
    """Weights that each token is multiplied with: all of a model's but its vocabulary's."""
    trunk = Embedder.base(compose_model(model)).model
    vocabulary = {id(module.weight) for module in trunk.modules() if isinstance(module, torch.nn.Embedding)}
    return sum(weight.numel() for weight in trunk.parameters() if id(weight) not in vocabulary)


def work_of_guide(model: str) -> float:
    """What a guide's forward pass over the same texts adds, where a step without it is 1."""
    return weights_in_products(GUIDE) / (PASSES * weights_in_products(model))


def main() -> None:
    """Measure every choice in turns and publish one table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", default="minilm", help="a choice of conf/model")
    parser.add_argument("--only", nargs="*", help="of the choices in the table")
    parser.add_argument("--batch", type=int, default=16)
    parser.add_argument("--steps", type=int, default=6)
    parser.add_argument("--repeats", type=int, default=2)
    given = parser.parse_args()
    set_up_console()
    refused = REFUSED.get(given.model, [])
    names = [AS_IT_IS, AGAIN, *given.only] if given.only else [name for name in CHOICES if name not in refused]
    rows = training_rows(None, seed=0)[: given.batch * given.steps]
    settings = [f"model={given.model}", "train.precision=fp32", f"train.batch_size={given.batch}"]
    settings += [f"train.steps={given.steps}", "train.eval_every=0", "eval=none", "baseline=none", "logger=none"]
    found: dict[str, list[Step]] = {name: [] for name in names}
    with tempfile.TemporaryDirectory() as folder:
        files = write_rows(rows, Path(folder))
        for turn in range(given.repeats):
            for name in names:
                found[name] += steps_of(CHOICES[name], files, [*settings, f"seed={turn}"])
            print(f"  turn {turn + 1} of {given.repeats} done", file=sys.stderr)
    publish_costs(given.model, given.repeats * (given.steps - 1), found, command_of(given, parser))


def command_of(given: argparse.Namespace, parser: argparse.ArgumentParser) -> str:
    """The command line again."""
    words = ["python benchmarks/choice_costs.py"]
    words += [f"--model {given.model}"] if given.model != parser.get_default("model") else []
    words += ["--only " + " ".join(given.only)] if given.only else []
    return " ".join(words)


def publish_costs(model: str, steps: int, found: dict[str, list[Step]], command: str) -> None:
    """One table of what was measured."""
    plain = found[AS_IT_IS]
    table = [("choice", "time of a step", "tokens through the model", "time / tokens")]
    for name, taken in found.items():
        time_ratio = _ratio(taken, plain, lambda step: step.seconds)
        work = _ratio(taken, plain, lambda step: step.nodes)
        work += work_of_guide(model) if name.startswith("loss.guide") else 0
        table.append((name, f"{time_ratio:.2f}", f"{work:.2f}", f"{time_ratio / work:.2f}"))
    publish(
        f"choice_costs_{model}",
        Found(
            title=f"What a training choice costs, {model}",
            command=command,
            table=table,
            notes=[
                f"Medians of {steps} steps of the same docstrings each, in turns; a step as it is = 1, and what it "
                "is again says how far times are to be trusted. A guide only goes forward: its tokens count a third, "
                "times its weights over the model's."
            ],
        ),
    )


def _ratio(taken: list[Step], plain: list[Step], of: Callable[[Step], float]) -> float:
    return statistics.median(map(of, taken)) / statistics.median(map(of, plain))


if __name__ == "__main__":
    main()
