"""Rules of a configuration that hold for every key, or between sections; a section's own are beside its settings."""

import math
import re
import typing
from collections.abc import Iterator
from dataclasses import fields, is_dataclass
from pathlib import Path
from typing import Any

from cft.config.schema import Config, DataSource, EvalSource, LossSettings, Quantization, TrainSettings
from cft.system.errors import UserError
from cft.system.files import user_path
from cft.system.overrides import override
from cft.system.text import shorten_words

# Torch draws its random numbers from 64 bits, of which a step's number takes a part.
_SEEDS = 2**32
# Of a model, data or an evaluation: part of a folder's name, with a digest behind it.
LONGEST_NAME = 100


# What scored pairs have in its place.
_OF_PAIRS = {
    "loss.temperature": "; loss.scored_temperature is that of scored pairs",
    "train.batch_size": "; train.scored_batch is that of scored pairs",
}


def require_valid(config: Config) -> None:
    """Refuse values that no job could run with, all of them in one message.

    Raises:
        UserError: naming every key at fault, its value and what it may be.
    """
    # The other rules go through lists.
    messages = list(_no_lists(config)) or _problems(config)
    problems = [f"  {shorten_words(message)}" for message in messages]
    if problems:
        raise UserError("\n".join(["the configuration cannot run:", *problems]))


def _problems(config: Config) -> Iterator[str]:
    yield from _malformed_values(config)
    yield from _unfit_names(config)
    if not 0 < config.lr <= 1:
        yield f"lr={config.lr}: the learning rate must be above 0 and at most 1 (the paper uses 5e-5)"
    if not 0 <= config.vector_cache_gb <= 1e6:
        yield f"vector_cache_gb={config.vector_cache_gb}: gigabytes, 0 (keep no vectors) to a million"
    if not 0 <= config.seed < _SEEDS:
        yield f"seed={config.seed}: must be 0 to {_SEEDS - 1}"
    if config.adapter is None and config.adapter_revision is not None:
        yield f"{override('adapter_revision', config.adapter_revision)} has no adapter to belong to"
    if config.adapter is None and config.adapter_any_base:
        yield "adapter_any_base=true has no adapter to belong to"
    home = str(user_path(config.outputs))
    if home != str(Path(config.outputs)):  # commands that read results know `~`, and would look elsewhere
        written, meant = override("outputs", config.outputs), override("outputs", home)
        yield f"{written}: would be a folder called ~ here; write {meant}"
    for section in fields(config):
        settings = getattr(config, section.name)
        yield from settings.problems() if hasattr(settings, "problems") else ()
    yield from _contradictions(config)


def _contradictions(config: Config) -> Iterator[str]:
    """Values of one section that do not go with another's."""
    model, data, evaluation, train = config.model, config.data, config.eval, config.train
    if model.quantization is not Quantization.none and config.lora.rank <= 0 and train.steps:
        yield (
            f"model.quantization={model.quantization.value}: quantised weights cannot be trained themselves; choose "
            "lora=paper"
        )
    yield from _no_start_for_pissa(config) if config.lora.principal and train.steps else ()
    if data.source is DataSource.files and data.train is None and train.steps:
        alone = "; for scored pairs without triplets write data=scored" if data.scored is not None else ""
        yield f"data.train is not set: name your file, as in data.train=triplets.csv{alone}"
    if config.loss.hard_negatives and not data.may_have_negatives:
        yield "loss.hard_negatives=true but data.negative_columns is empty: name the column, or choose loss=in_batch"
    yield from train.problems_of_batches(triplets=not data.is_scored_alone, pairs=data.scored is not None)
    if data.is_scored_alone:
        yield from _problems_without_triplets(config)
    elif (data.scored is None) != (config.loss.scored is None):
        missing = "loss.scored=cosent (or angle)" if config.loss.scored is None else "data.scored=pairs.csv"
        given = ("data.scored", data.scored) if data.scored is not None else ("loss.scored", config.loss.scored)
        yield f"{override(*given)} would not be read without {missing}: data.scored and loss.scored go together"
    elif data.scored is None and train.scored_batch != TrainSettings.scored_batch:
        yield f"train.scored_batch={train.scored_batch} would not be used: add data.scored=pairs.csv loss.scored=cosent"
    if config.first.data is not None and config.adapter is not None:
        yield f"{override('adapter', config.adapter)} has had its first stage: leave it out, or write first=none"
    if evaluation.source is EvalSource.none and not train.steps:
        yield "eval=none with train.steps=0: nothing would be trained, and nothing scored"
    if evaluation.step is not None and not 1 <= evaluation.step <= train.steps:
        yield (
            f"eval.step={evaluation.step}: must be a step of the training, 1 to train.steps={train.steps}, or null for "
            "the last"
        )
    if evaluation.step is not None and train.chooses:
        yield f"eval.step={evaluation.step}: {train.chooses} chooses the step itself; leave one out"
    if train.chunk_tokens is not None and train.chunk_tokens < model.max_length:
        yield (
            f"train.chunk_tokens={train.chunk_tokens}: must hold a text of model.max_length={model.max_length} tokens, "
            "or be null for as many as memory holds"
        )


def _problems_without_triplets(config: Config) -> Iterator[str]:
    """What is missing where scored pairs alone are trained on, and what would not be read."""
    loss, usual = config.loss, LossSettings(hard_negatives=False)
    if config.data.scored is None and config.train.steps:
        yield "data.scored is not set: name your file, as in data.scored=pairs.csv"
    if loss.scored is None:
        yield f"{override('data.source', 'scored')} has no other loss than loss.scored: choose cosent or angle"
    of_triplets = {
        f"loss.{key}": getattr(loss, key)
        for key in (
            *("hard_negatives", "temperature", "mask_false_negatives", "both_directions", "anchors_as_negatives"),
            *("guide", "guide_margin", "guide_relative", "scored_weight"),
        )
        if getattr(loss, key) != getattr(usual, key)
    }
    if config.distill.model is not None:
        of_triplets["distill"] = config.distill.model.name
    if config.train.no_duplicates:
        of_triplets["train.no_duplicates"] = True
    if config.train.batch_size not in (TrainSettings.batch_size, config.train.scored_batch):
        of_triplets["train.batch_size"] = config.train.batch_size
    for key, value in of_triplets.items():
        instead = _OF_PAIRS.get(key, "")
        yield f"{override(key, value)} would not be read: there are no triplets with data=scored{instead}"
    if config.eval.source is EvalSource.rows:
        yield "eval=rows scores held-out triplets, and data=scored has none: add eval=pairs eval.file=test.csv"


def _no_start_for_pissa(config: Config) -> Iterator[str]:
    """Weights that PiSSA cannot divide, or has divided already."""
    init = f"lora.init={config.lora.init}"
    if config.model.quantization is not Quantization.none:
        yield (
            f"{init}: the singular values of weights in {config.model.quantization.value} cannot be taken out of "
            "them; choose lora.init=gaussian, or model.quantization=none"
        )
    if config.adapter is not None:
        yield f"{init}: {override('adapter', config.adapter)} has its factors already; leave lora.init out"
    if config.first.data is not None:
        yield (
            f"{init}: the second stage would go on from a plain LoRA of twice the rank, which the first one leaves; "
            "choose lora.init=gaussian, or write first=none"
        )


def _malformed_values(config: Config) -> Iterator[str]:
    """Numbers that are not finite, and texts that are not UTF-8."""
    for key, value in _leaves(config):
        if isinstance(value, float) and not math.isfinite(value):
            # Only the gradients' bound may be infinite, which means that there is none.
            if not (key == "train.max_grad_norm" and value == math.inf):
                yield f"{override(key, value)}: must be a finite number"
        # Names of files may hold other bytes, which Python shows as halves of characters; no record could.
        elif isinstance(value, str) and any("\ud800" <= sign <= "\udfff" for sign in value):
            yield key + f"={value!a}: is not UTF-8; rename what it names"  # nobody could paste it


def _no_lists(settings: Any, prefix: str = "") -> Iterator[str]:
    """Lists for which another value stands, as an interpolation may bring one in, or that hold more than values."""
    kinds = typing.get_type_hints(type(settings))
    for entry in fields(settings):
        value = getattr(settings, entry.name)
        if is_dataclass(value):
            yield from _no_lists(value, f"{prefix}{entry.name}.")
        elif typing.get_origin(kinds[entry.name]) is list:
            key = override(f"{prefix}{entry.name}", value)
            if not isinstance(value, list):
                yield f"{key}: must be a list, as in [1,2]"
            elif any(isinstance(each, (list, dict)) for each in value):
                yield f"{key}: must be a list of plain values, as in [1,2], without lists in it"


def _leaves(value: Any, key: str = "") -> Iterator[tuple[str, Any]]:
    """Every number, text and choice, those in lists one by one, with its key."""
    if is_dataclass(value):
        for entry in fields(value):
            yield from _leaves(getattr(value, entry.name), f"{key}.{entry.name}" if key else entry.name)
    elif isinstance(value, list):
        for each in value:
            yield from _leaves(each, key)
    elif isinstance(value, dict):
        for name, each in value.items():
            yield from _leaves(each, f"{key}.{name}")
    else:
        yield key, value


def _unfit_names(config: Config) -> Iterator[str]:
    """Names that cannot be parts of folders' names."""
    names = {"model.name": config.model.name, "data.name": config.data.name, "eval.name": config.eval.name}
    for key, name in names.items():
        fits = name == name.strip() and name.isprintable() and re.fullmatch(r"[^./\\][^/\\]*", name)
        if not fits or len(name) > LONGEST_NAME:
            yield (
                f"{override(key, name[:LONGEST_NAME])}: names folders, so it takes 1 to {LONGEST_NAME} printable "
                "characters, "
                "none of which is / or \\, and the first of which is no dot"
            )
