"""Settings that the data choose: how long texts are, how many steps, how large a batch, how fast.

What was chosen is said with its reason, and every setting can be given instead (`train.fitted` then has one fewer).
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import numpy as np

from cft.config.schema import Attention, Config, TrainSettings
from cft.data.records import Triplet
from cft.data.training_data import TrainingData
from cft.model.backbone import load_tokenizer
from cft.model.contract import Contract
from cft.model.sources import ModelFiles
from cft.system.overrides import overrides

# Triplets whose texts are measured, at even distances over the data.
_SAMPLE = 500

# Tokens at most of 95 of 100 texts are read whole, as long as that is no more than the second number, or twice that
# where texts go in twice.
_QUANTILE = 0.95
_SHORTEST, _LONGEST, _MULTIPLE = 32, 256, 16

# Of a training: the paper's batch, but at least so many batches a pass; steps aimed at, passes and steps at most. Of
# few rows, batches of so many, two a pass: in smaller ones there is little to choose from (docs/results.md).
_BATCH, _LEAST_BATCHES, _LEAST_ROWS = 60, 8, 16
_STEPS, _PASSES, _MOST_STEPS = 100, 10, 1000
_LOOKS = 5  # at the development data, at most: of a short training they would take most of the time

# Peak learning rates of LoRA at the hidden size of SmolLM2-135M, and how many steps make a training long
# (docs/study.md); of whole models, the paper's.
_SHORT_RATE, _LONG_RATE, _LONG = 2e-3, 1e-3, 200
_WIDTH = 576
_WHOLE_RATE = 5e-5
# Of these, what a finished encoder is changed with. On medical questions half found more than a tenth, on two sets of
# questions about Wikipedia neither changed what was found (docs/results.md).
_ENCODER = 0.5


@dataclass(frozen=True)
class Fitted:
    """A configuration without open settings, and what was chosen for it."""

    config: Config
    reasons: list[str]  # a line for each choice


def fit(
    config: Config,
    data: TrainingData,
    files: Callable[[], ModelFiles],
    *,
    adapter: Contract | None = None,
    trains: bool = True,
) -> Fitted:
    """Choose the settings that `train.fitted` names.

    Args:
        config: the job. data: its data. files: fetches the base model. adapter: the contract of the adapter that the
            job starts from, if there is one. trains: whether there are steps to be chosen.
    """
    left = set(config.train.fitted)
    reasons: list[str] = []
    if "model.max_length" in left and adapter is not None:
        config = replace(config, model=replace(config.model, max_length=adapter.max_length))
        reasons.append(f"model.max_length={adapter.max_length}: the adapter's")
    elif "model.max_length" in left:
        config, reason = _with_length(config, data, files())
        reasons.append(reason)
    if trains:
        config, of_steps = _with_steps(config, data.rows, left)
        reasons += of_steps
    if trains and "lr" in left:
        config, reason = _with_rate(config, files())
        reasons.append(reason)
    return Fitted(replace(config, train=replace(config.train, fitted=[])), reasons)


def _with_length(config: Config, data: TrainingData, files: ModelFiles) -> tuple[Config, str]:
    tokenizer = load_tokenizer(config.model, files)
    rows = _sample([*data.holdout, *_sample(data.measured)])
    prompts = config.prompt.prompts
    words = max((template for template in (prompts.text, prompts.query, prompts.document) if template), key=len)
    texts = list(dict.fromkeys(text for row in rows for text in (row.anchor, row.positive, *row.negatives)))
    prompted, echo = [words.replace("{text}", text) for text in texts], config.model.echo
    encoded = tokenizer(prompted, add_special_tokens=True)["input_ids"]
    lengths = np.array([len(ids) for ids in encoded]) + config.model.append_eos
    longest = _LONGEST
    if echo:  # once more, without special tokens
        lengths += [len(ids) for ids in tokenizer(prompted, add_special_tokens=False)["input_ids"]]
        longest *= 2
    usual = int(np.quantile(lengths, _QUANTILE, method="higher"))
    limit = min(longest, _positions(files) or longest)
    length = min(max(_SHORTEST, math.ceil(usual / _MULTIPLE) * _MULTIPLE), limit)
    cut = float(np.mean(lengths > length))
    reason = (
        f"model.max_length={length}: 95 of 100 texts have at most {usual:,} tokens{', going in twice' if echo else ''}"
    )
    if usual > length:
        reason += f"; {cut:.0%} are longer than {length} and are cut, as longer texts take longer to train on"
    return replace(config, model=replace(config.model, max_length=length)), reason


def _sample(rows: Sequence[Triplet]) -> list[Triplet]:
    count = min(len(rows), _SAMPLE)
    return [rows[number * len(rows) // count] for number in range(count)]


def _positions(files: ModelFiles) -> int | None:
    """The positions that a model was made for, as far as its configuration says."""
    found = files.setting("max_position_embeddings")
    return found - 2 if found else None  # RoBERTa's first two are not for texts


def _with_steps(config: Config, rows: int, left: set[str]) -> tuple[Config, list[str]]:
    """The configuration with its steps, and the reason, which names what was chosen alone; none if nothing was."""
    train, scored = config.train, config.data.is_scored_alone
    chosen = ["epochs", "steps", "eval_every"] if scored else ["batch_size", "epochs", "steps", "eval_every"]
    chosen = [name for name in chosen if f"train.{name}" in left]
    if not chosen:
        return config, []
    if "batch_size" in chosen:
        size = min(_BATCH, max(2, rows // _LEAST_BATCHES, min(_LEAST_ROWS, rows // 2)))
        train = replace(train, batch_size=max(1, size // train.accumulation) * train.accumulation)
    size = train.scored_batch if scored else train.batch_size
    a_pass = max(1, rows // size)
    train = _passes(train, a_pass, left)
    if "eval_every" in chosen:
        train = replace(train, eval_every=math.ceil(min(train.steps, train.epochs * a_pass) / _LOOKS))
    values = overrides({f"train.{name}": getattr(train, name) for name in chosen})
    reason = (
        f"{values}: {rows:,} rows make {a_pass:,} batches of {size} a pass, and {_STEPS} steps are aimed at, with "
        f"{_PASSES} passes, {_MOST_STEPS:,} steps and {_LOOKS} looks at the development data at most"
    )
    return replace(config, train=train), [reason]


def _passes(train: TrainSettings, a_pass: int, left: set[str]) -> TrainSettings:
    """Passes and steps, of which one may be given."""
    if "train.epochs" in left:
        wanted = _STEPS if "train.steps" in left else train.steps
        most = _PASSES if "train.steps" in left else wanted
        train = replace(train, epochs=max(1, min(most, math.ceil(wanted / a_pass))))
    if "train.steps" in left:
        most = _MOST_STEPS if "train.epochs" in left else train.epochs * a_pass
        train = replace(train, steps=max(1, min(most, train.epochs * a_pass), max(train.keep, default=0)))
    return train


def _with_rate(config: Config, files: ModelFiles) -> tuple[Config, str]:
    if not config.lora.rank:
        return replace(config, lr=_WHOLE_RATE), f"lr={_WHOLE_RATE:g}: the paper's, for a model that is trained whole"
    long = config.train.steps > _LONG
    width = files.setting("hidden_size") or _WIDTH
    rate = (_LONG_RATE if long else _SHORT_RATE) * min(1.0, _WIDTH / width)
    encoder = config.model.attention is Attention.bidirectional
    rate = float(f"{rate * (_ENCODER if encoder else 1):.1e}")
    if encoder:
        return replace(config, lr=rate), f"lr={rate:g}: half of a language model's, as an encoder has less to learn"
    reason = (
        f"lr={rate:g}: found best for LoRA trainings of {'more than' if long else 'up to'} {_LONG} steps on SmolLM2"
    )
    if width > _WIDTH:
        reason += f", and lowered for a hidden size of {width:,}"
    return replace(config, lr=rate), reason
