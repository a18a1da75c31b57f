"""What lies ahead of a training: rows, texts that are cut, steps and passes, the rate, and about how long it takes."""

import time
from collections import Counter

import torch

from cft.config.schema import Config
from cft.data.training_data import TrainingData
from cft.job.lengths import Cut
from cft.model.embedder import Embedder
from cft.system.tables import as_lines
from cft.training.contrastive import texts_of
from cft.training.schedule import warmup_steps

# Tokens that the trial puts through the model, unless a batch has fewer: with 500 a CPU takes as long for each as with
# more, which would keep the first step waiting. And triplets whose texts are counted.
_TRIED_ON_CPU, _TRIED, _COUNTED = 500, 1500, 200

# A step takes about as long as so many forward passes: one, one back to the activations, and one more to the weights
# where all of them are trained.
_FORWARD_PASSES, _WHOLE_MODEL = 2, 3


def outlook(config: Config, data: TrainingData, steps: int, cut: Cut, seconds: float) -> str:
    """A table of what lies ahead.

    Args:
        config: the job. data: its data. steps: of the whole training. cut: texts that are too long. seconds: of a step.
    """
    rows, batch, noun = data.rows, config.rows_a_step, data.noun
    sample = "" if cut.triplets == len(data.measured) else f", by {cut.triplets:,} {noun}"
    drawn = f", each with one of its positives ({len(data.triplets):,} in all)" if data.starts is not None else ""
    share = f"{cut.texts / cut.of:.1%}" if cut.texts else "none"
    warmup = warmup_steps(config.schedule, steps)
    facts = [
        ("  rows", f"{rows:,} {noun} to train on{drawn}, {len(data.holdout):,} held out"),
        ("  texts that are cut", f"{share} (longer than model.max_length={cut.max_length} tokens{sample})"),
        ("  steps", f"{steps:,} of {batch} {noun}, {steps * batch / rows:.3g} passes"),
        *_parts(data, steps, batch),
        ("  learning rate", f"{config.lr:g} after {warmup} warm-up steps, then {config.schedule.kind.value}"),
        ("  time", f"about {_duration(steps * seconds)}, {_duration(seconds)} a step, by a trial"),
    ]
    return f"the training\n{as_lines(facts)}"


def _parts(data: TrainingData, steps: int, batch: int) -> list[tuple[str, str]]:
    """For each part of the data, how often it is drawn from."""
    if not data.parts:
        return []
    drawn = "batches" if data.by_part else "each batch"
    held = Counter(part for row in data.holdout for part in data.holdout_parts[row])
    return [
        (
            f"  {part.name}",
            f"{share:.1%} of {drawn}, {part.rows:,} rows, {share * steps * batch / part.rows:.3g} passes, "
            f"{held[part.name]:,} held out",
        )
        for part, share in zip(data.parts, data.mixture.normalized, strict=True)
    ]


def _duration(seconds: float) -> str:
    if seconds < 1:
        return f"{seconds:.1g} seconds"
    if seconds < 90:
        return f"{seconds:.0f} seconds"
    return f"{seconds / 60:.0f} minutes" if seconds < 5400 else f"{seconds / 3600:.1f} hours"


def seconds_a_step(embedder: Embedder, config: Config, data: TrainingData, *, processes: int = 1) -> float:
    """About how long a step takes, by embedding a few texts; changes nothing.

    Args:
        embedder: under the prompt of training. config: the job. data: its data. processes: that share a step.
    """
    count = min(len(data.measured), _COUNTED)
    sample = [data.measured[number * len(data.measured) // count] for number in range(count)]
    batch = config.rows_a_step / processes
    rows = sample[: max(1, round(batch))]
    whole = _nodes(embedder, texts_of(rows, config.loss)) * batch / len(rows)
    on_cpu = embedder.device.type == "cpu"
    most = _TRIED_ON_CPU if on_cpu else _TRIED
    texts = texts_of(rows[: max(1, round(len(rows) * min(1.0, most / whole)))], config.loss)
    tried = _nodes(embedder, texts)
    seconds = 0.0
    for warms_up in (True, False):  # a GPU, whose kernels are chosen by shapes, with all of it; a CPU with one row
        began = time.perf_counter()
        embedder.encode(texts_of(rows[:1], config.loss) if warms_up and on_cpu else texts)
        if embedder.device.type == "cuda":
            torch.cuda.synchronize()
        seconds = time.perf_counter() - began
    # Texts beside the triplets, taken to be as long as theirs.
    scored = 2 * config.train.scored_batch / processes if data.scored and not data.is_scored_alone else 0
    return (
        (_FORWARD_PASSES if config.lora.rank else _WHOLE_MODEL)
        * seconds
        * whole
        / tried
        * (1 + scored / (batch * len(texts_of(rows, config.loss)) / len(rows)))
    )


def _nodes(embedder: Embedder, texts: list[str]) -> int:
    """Tokens that go through the model for a batch of texts."""
    return embedder.layout(embedder.tokenize(texts)).nodes
