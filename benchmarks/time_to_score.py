"""How long it takes to a score: cft's recipe, the paper's settings, and sentence-transformers with the same training.

    python benchmarks/time_to_score.py --triplets nli.jsonl.gz --sts FOLDER --rows 200 --steps 60   # hours on two cores
    python benchmarks/time_to_score.py --triplets nli.jsonl.gz --dev dev.jsonl.gz --steps 30 --batch 32

cft trains by `cft.train`; after each of its steps sentence-transformers makes one, so that both have the same machine.
It has the same base model, LoRA, loss, learning rate, schedule and batches, and no trainer around its loop. The paper's
settings (lr 5e-5) are trained afterwards. Only training is timed: neither loading nor scoring. Between two looks a
score is taken to lie on the straight line.
"""

import argparse
import itertools
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from encoding import their_vectors
from matplotlib import pyplot as plt
from peers import its_version
from publish import Comparison, Found, publish, save_png
from training_step import CPU, their_training

import cft
from cft.config.compose import compose_config
from cft.config.schema import Config
from cft.data.records import ScoredPair
from cft.data.sampling import batches
from cft.data.sts import load_eval_sets
from cft.data.training_data import load_training_data
from cft.evaluation.scores import evaluate
from cft.job import figures
from cft.job.run_folder import RunFolder
from cft.model.embedder import Embedder
from cft.system.console import set_up_console
from cft.system.overrides import unquoted
from cft.training.schedule import learning_rate

Sets = dict[str, list[ScoredPair]]

RECIPE, PLAIN, PAPER = "cft's recipe", "the same without its prompt", "cft, the paper's settings"
TARGETS = (50, 60, 65, 70, 75, 80)
_SIZE = 32  # of the batches in which sentence-transformers embeds; not timed
_LOOKS = (0, 2, 5, 10, 15, 20, 30, 45, 60, 90, 120, 180, 240, 420, 840)


@dataclass
class Curve:
    """One side: seconds of training until each look, and the score there, Spearman x 100."""

    seconds: list[float] = field(default_factory=list)
    scores: list[float] = field(default_factory=list)

    def until(self, target: float) -> float | None:
        """Seconds until a score is reached; None if it is not."""
        if self.scores[0] >= target:
            return 0.0
        for place in range(1, len(self.scores)):
            before, after = self.scores[place - 1 : place + 1]
            if after >= target:
                share = (target - before) / (after - before)
                return self.seconds[place - 1] + share * (self.seconds[place] - self.seconds[place - 1])
        return None


@dataclass(frozen=True)
class Race:
    """What all sides share. words: settings of cft.train, without the rate. looks: steps, 0 the untrained model."""

    words: list[str]
    sets: Sets
    looks: list[int]
    recipe: Config

    def score(self, encoder: Any) -> float:
        """The mean over the sets."""
        return evaluate(encoder, self.sets).mean


class _Theirs:
    """Sentence-transformers' model as what cft's evaluation scores."""

    def __init__(self, whole: Any) -> None:
        self._whole = whole

    def encode(self, texts: Sequence[str], *, progress: str | None = None) -> Any:
        self._whole.eval()
        found = their_vectors(self._whole, list(texts), _SIZE)
        self._whole.train()
        return found

    def in_role(self, role: Any) -> "_Theirs":
        return self


def their_loop(race: Race) -> Callable[[int], tuple[float, float | None]]:
    """A function that makes their next step and gives its seconds and, at a look, the score behind it."""
    config = race.recipe
    step_of, whole = their_training(config.model, CPU, config.lora)
    rows = load_training_data(config.data, seed=config.seed).triplets
    numbers = batches(len(rows), config.train.batch_size, seed=config.seed, start=0, stop=config.train.steps)
    weights = [weight for weight in whole.parameters() if weight.requires_grad]
    optimizer = torch.optim.AdamW(weights, lr=config.lr, weight_decay=config.train.weight_decay)
    whole.train()

    def next_step(step: int) -> tuple[float, float | None]:
        began = time.perf_counter()
        step_of([rows[int(number)] for number in next(numbers)])
        torch.nn.utils.clip_grad_norm_(weights, config.train.max_grad_norm)
        for group in optimizer.param_groups:
            group["lr"] = learning_rate(config.schedule, config.lr, step - 1, config.train.steps)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        seconds = time.perf_counter() - began
        return seconds, race.score(_Theirs(whole)) if step in race.looks else None

    return next_step


def ours(
    race: Race, words: list[str], templates: list[str], beside: Callable[[int], None] | None = None
) -> list[Curve]:
    """Train, and score the embedders of the looks, a curve for each template around texts.

    `beside` runs after each step, and is not timed.
    """
    seconds, spent, last = {0: 0.0}, 0.0, 0.0  # until each step; of all steps; the clock behind the last

    def on_row(row: dict) -> None:
        nonlocal spent, last
        now = time.perf_counter()
        # before the first step come the imports and the model, which no row tells: its own seconds must do
        spent += now - last if last else row["seconds"]
        seconds[row["step"]] = spent
        print(f"  step {row['step']}: loss {row['loss']:.3f}", file=sys.stderr)
        if beside:
            beside(row["step"])
        last = time.perf_counter()

    keep = ",".join(map(str, race.looks[1:-1]))
    with tempfile.TemporaryDirectory() as outputs:
        cft.train([*race.words, *words, f"train.keep=[{keep}]", f"outputs={outputs}"], callbacks=[on_row])
        (run,) = (path.parent for path in Path(outputs).glob("*/contract.json"))
        folders = [*(RunFolder(run).of_step(step).path for step in race.looks[1:-1]), run]
        embedders = itertools.chain([Embedder.base(race.recipe.model)], map(Embedder.load, folders))  # one at a time
        scores = [[race.score(embedder.with_template(text)) for text in templates] for embedder in embedders]
    times = [seconds[step] for step in race.looks]
    return [Curve(times, list(of_template)) for of_template in zip(*scores, strict=True)]


def race_of_two(race: Race) -> dict[str, Curve]:
    """The curves of the recipe and of sentence-transformers, which take turns."""
    their_step, them = their_loop(race), Curve([0.0], [])
    spent = 0.0

    def beside(step: int) -> None:
        nonlocal spent
        seconds, score = their_step(step)
        spent += seconds
        if score is not None:
            them.seconds.append(spent)
            them.scores.append(score)
            print(f"  {its_version()} after {step} steps: {score:.2f}", file=sys.stderr)

    recipe, plain = ours(race, ["experiment=recipe"], [race.recipe.prompt.template, "{text}"], beside)
    them.scores.insert(0, plain.scores[0])  # the same weights
    return {RECIPE: recipe, PLAIN: plain, its_version(): them}


def table_of(curves: dict[str, Curve]) -> list[tuple[str, ...]]:
    """By side: its best, and the time to each score, where the recipe's whole training is 1."""
    whole = curves[RECIPE].seconds[-1]
    reached = [target for target in TARGETS if any(curve.until(target) for curve in curves.values())]
    rows = [("side", "best", "time of all its steps", *(f"to {target}" for target in reached), "to its best")]
    for name, curve in curves.items():
        times = [curve.until(target) for target in (*reached, max(curve.scores))]
        shown = ["not reached" if one is None else f"{one / whole:.2f}" for one in times]
        rows.append((name, f"{max(curve.scores):.2f}", f"{curve.seconds[-1] / whole:.2f}", *shown))
    return rows


def comparisons_of(curves: dict[str, Curve]) -> list[Comparison]:
    """The ratio to sentence-transformers, at every score that both reach."""
    other = its_version()
    found = []
    for target in TARGETS:
        ours, theirs = curves[RECIPE].until(target), curves[other].until(target)
        if ours and theirs:
            aim = 4.0 if target == 75 else None
            found.append(Comparison(f"training to a score of {target}, the recipe", other, theirs / ours, aim))
    return found


def draw(curves: dict[str, Curve], what: str) -> None:
    """Scores over time."""
    whole = curves[RECIPE].seconds[-1]
    figure, axes = plt.subplots(figsize=(7.5, 4.2), layout="constrained")
    for name, curve in curves.items():
        axes.plot([one / whole for one in curve.seconds], curve.scores, marker="o", markersize=3, label=name)
    axes.set_xlabel("time of training (all steps of the recipe = 1)")
    axes.set_ylabel(what)
    axes.legend(frameon=False, loc="lower right")
    figures.clean(axes)
    save_png(figure, "time_to_score")


def main() -> None:
    """Train all sides and publish one table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--triplets", required=True, help="a file of triplets: sent0, sent1, hard_neg")
    parser.add_argument("--sts", help="folder of the nine sets, whose mean is the score")
    parser.add_argument("--dev", help="in their place, a file of scored pairs")
    parser.add_argument("--rows", type=int, help="at most so many pairs of each set; all without")
    parser.add_argument("--model", default="smollm2", help="a choice of conf/model")
    parser.add_argument("--steps", type=int, default=60)
    parser.add_argument("--batch", type=int, default=60, help="triplets a step; the paper's 60")
    parser.add_argument("--no-paper", action="store_true", help="leave the paper's settings out")
    given = parser.parse_args()
    if bool(given.sts) == bool(given.dev):
        parser.error("give --sts or --dev, one of them")
    set_up_console()
    race = race_of(given)
    curves = race_of_two(race)
    publish_race(race, curves, given)
    if not given.no_paper:  # what there is so far is kept, should this be stopped
        (curves[PAPER],) = ours(race, [], ["{text}"])
        publish_race(race, curves, given)


def publish_race(race: Race, curves: dict[str, Curve], given: argparse.Namespace) -> None:
    """One table and one picture of all sides so far."""
    pairs = sum(map(len, race.sets.values()))
    what = f"Spearman x 100, {pairs:,} pairs" + (f" of {len(race.sets)} sets" if given.sts else "")
    draw(curves, what)
    words = ["--triplets FILE", "--sts FOLDER" if given.sts else "--dev FILE"]
    words += [f"--rows {given.rows}"] if given.rows else []
    words += [f"--model {given.model}"] if given.model != "smollm2" else []
    words += [f"--steps {given.steps}", f"--batch {given.batch}"] + ([] if PAPER in curves else ["--no-paper"])
    note = (
        f"{race.recipe.model.name}, {given.steps} steps of {given.batch} triplets, one seed; {what}. Time of all steps "
        f"of the recipe = 1. {its_version()} has the recipe's learning rate, schedule, LoRA and batches, and no "
        "prompt; the two took turns, step by step. Loading and scoring are left out on all sides; between looks "
        "scores are taken to lie on a line."
    )
    same = (
        f"Without the prompt it is {its_version()}'s training but for dropout's random numbers: as far as their scores "
        "differ behind the same step, scores of so few pairs and one seed are not to be trusted."
    )
    command = "python benchmarks/time_to_score.py " + " ".join(words)
    publish("time_to_score", Found("Time to a score", command, table_of(curves), comparisons_of(curves), [note, same]))


def race_of(given: argparse.Namespace) -> Race:
    """What the command line asks for, checked."""
    folder, file = ["eval=sts", unquoted("eval.folder", given.sts)], ["eval=pairs", unquoted("eval.file", given.dev)]
    scored = folder if given.sts else file
    scored += [f"eval.rows={given.rows}"] if given.rows else []
    words = [f"model={given.model}", "data=files", unquoted("data.train", given.triplets), "data.holdout=0"]
    words += ["train=paper", f"train.steps={given.steps}", f"train.batch_size={given.batch}", "train.epochs=1000"]
    words += ["train.eval_every=0", "train.precision=fp32", "baseline=none", "logger=none"]
    config = compose_config([*words, *scored, "experiment=recipe"])
    looks = [step for step in _LOOKS if step < given.steps] + [given.steps]
    return Race([*words, "eval=none"], load_eval_sets(config.eval), looks, config)


if __name__ == "__main__":
    main()
