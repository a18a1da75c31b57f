"""Every key of the configuration with values of every type and range: refused by name, or a job that can run."""

import copy
import dataclasses
import functools
import itertools
import math
import os
import random
import re
import types
import typing
from enum import Enum
from pathlib import Path

import hydra
import pytest
from forked import Commands
from hydra import initialize_config_dir
from hydra.errors import HydraException
from jobs import quick

from cft.config import compose
from cft.config.compose import compose_config
from cft.config.rules import require_valid
from cft.config.schema import Config
from cft.system.errors import UserError

FACTOR = int(os.environ.get("CFT_FUZZ", "1"))

TYPED = {
    int: "-1 0 1 2 7 2147483648 9223372036854775807 18446744073709551616 -9223372036854775808 1.5 1e3 nan".split(),
    float: "-1 -0.0 0 1 0.5 1e-300 1e300 1e400 nan inf -inf .inf 3e-5 1_000".split(),
    bool: "true false 1 0 2 yes off".split(),
    str: ["x", "''", "' '", "a.b", "'é 😀 שלום'", "../up", "a/b", "'a\\nb'", "0x", "'{text}'", "'{}'", "'${lr}'"],
    list[str]: ["[]", "[a]", "[a,b]", "['']", "[null]", "[[a]]", "[1,2.5,true]", "{a:1}", "a"],
    list[int]: ["[]", "[1]", "[0]", "[-1]", "[1,1]", "[x]", "[null]", "[1.5]", "3"],
}
ANY_TYPE = ["null", "", "x", "'" + "y" * 5000 + "'", "[]", "{}", "[1,2]", "{a:{b:c}}", "${oc.env:HOME}", "???", "1,2"]

# Infinity means something here: no clipping.
MAY_BE_INFINITE = {"train.max_grad_norm"}

SMALL = "model=tiny logger=none train.steps=2 train.batch_size=4 data.rows=20 data.holdout=4".split()


def leaves(kind: type = Config, prefix: str = "") -> dict[str, type]:
    found: dict[str, type] = {}
    hints = typing.get_type_hints(kind)
    for field in dataclasses.fields(kind):
        of_key = hints[field.name]
        (of_key,) = [one for one in typing.get_args(of_key) if dataclasses.is_dataclass(one)] or [of_key]
        if dataclasses.is_dataclass(of_key):
            found |= leaves(of_key, f"{prefix}{field.name}.")
        else:
            found[f"{prefix}{field.name}"] = of_key
    return found


def values(kind: type) -> list[str]:
    if isinstance(kind, types.UnionType):
        (kind,) = (one for one in kind.__args__ if one is not type(None))
    if isinstance(kind, type) and issubclass(kind, Enum):
        return [*(member.value for member in kind), *ANY_TYPE, *TYPED[int]]
    return [*TYPED[str if kind is typing.Any else kind], *ANY_TYPE]


KEYS = leaves()
ALL = [(key, value) for key, kind in KEYS.items() for value in values(kind)]


def chosen() -> list[tuple[str, str]]:
    """Three values of every key, others in every longer run."""
    draw = random.Random(1)
    found = []
    for _, group in itertools.groupby(ALL, key=lambda entry: entry[0]):
        entries = list(group)
        found += draw.sample(entries, min(3 * FACTOR, len(entries)))
    return found


def needed(key: str) -> list[str]:
    """What must be chosen for there to be such a key."""
    sections = {"distill.model.": "distill=minilm", "baseline.model.": "baseline=minilm", "first.data.": "first=nli"}
    return [choice for section, choice in sections.items() if key.startswith(section)]


def composed(overrides: list[str]) -> Config | UserError:
    """The configuration, or why there is none; anything else that is raised fails the test."""
    try:
        return compose_config(overrides)
    except UserError as error:
        return error


@functools.cache
def _composed_once(*overrides: str) -> Config:
    return compose_config(list(overrides))


def fresh(*overrides: str) -> Config:
    """A configuration of one's own, to be spoilt."""
    return copy.deepcopy(_composed_once(*overrides))


@pytest.mark.parametrize("key", KEYS)
def test_whatever_a_key_is_set_to_is_refused_by_name_or_composes(key):
    for _, value in [entry for entry in chosen() if entry[0] == key]:
        found = composed([*needed(key), f"{key}={value}"])
        if isinstance(found, UserError):
            told = str(found)
            assert key.rsplit(".", 1)[-1] in told or f"{key.split('.')[0]}." in told, (value, told)
            assert len(told) < 1500 and "Traceback" not in told and "object at 0x" not in told
        else:
            require_valid(found)  # and so it does however the configuration came to be


def by_hydra(overrides: list[str]) -> Config | UserError:
    """What Hydra alone makes of words, of which cft sets single values itself in what Hydra composed before."""
    try:
        with initialize_config_dir(str(compose.conf_folder()), version_base="1.3"):
            return compose.to_config(hydra.compose(compose.CONFIG_NAME, overrides=overrides), overrides)
    except UserError as error:
        return error
    except HydraException as error:
        return UserError(compose._cause(error, overrides))


@pytest.mark.parametrize("part", range(6))
def test_values_that_are_set_in_a_copy_are_what_hydra_composes(part):
    for key, value in chosen()[part::60]:
        words = [*needed(key), "train.steps=7", f"{key}={value}"]
        try:
            found: Config | UserError = compose.compose_job(words)
        except UserError as error:
            found = error
        expected = by_hydra(words)
        assert str(found) == str(expected) if isinstance(expected, UserError) else found == expected, words


LISTS = [key for key, kind in KEYS.items() if typing.get_origin(kind) is list or kind is typing.Any]


@pytest.mark.parametrize("value", ["[[a]]", "[[1]]", "[1,[2]]", "[{a:1}]"])
@pytest.mark.parametrize("key", LISTS)
def test_a_list_within_a_list_is_refused_by_name(key, value):
    found = composed([*needed(key), f"{key}={value}"])
    assert isinstance(found, UserError) and key.rsplit(".", 1)[-1] in str(found), found
    assert "unhashable" not in str(found) and "Traceback" not in str(found)


FLOATS = [key for key, kind in KEYS.items() if kind is float]


@pytest.mark.parametrize("key", FLOATS)
def test_no_number_is_nan_and_only_a_bound_may_be_infinite(key):
    for value in (math.nan, math.inf, -math.inf):
        config = fresh("model=tiny")
        section, _, name = key.rpartition(".")
        setattr(getattr(config, section) if section else config, name, value)
        if key in MAY_BE_INFINITE and value == math.inf:
            require_valid(config)
            continue
        with pytest.raises(UserError, match=re.escape(f"{key}={value}")):
            require_valid(config)


@pytest.mark.parametrize("key", ["model.name", "data.name", "eval.name"])
@pytest.mark.parametrize("name", ["../up", "a/b", "/tmp/x", "", " ", ".", "..", ".hidden", "a\nb", "a\0b", "y" * 300])
def test_a_name_that_would_be_no_single_folder_is_refused(key, name):
    config = fresh()
    section, _, field = key.partition(".")
    setattr(getattr(config, section), field, name)
    with pytest.raises(UserError, match=key):
        require_valid(config)


CONTRADICTIONS = [
    (["prompt.template='no place'"], "\"prompt.template='no place'\": must hold {text} exactly once"),
    (["prompt.template='{text} {text}'"], "must hold {text} exactly once"),
    (["data=files", "data.train=x.csv", "data.negative_columns=[]"], "data.negative_columns is empty"),
    (["model.max_length=1"], "model.max_length=1: a token and the EOS need at least 2"),
    (["distill=minilm", "distill.model.layer=0"], "distill.model.layer=0: the embedding layer"),
    (["eval=sts", "eval.sets=[]"], "eval.sets is empty"),
    (["eval=none", "eval.rows=20"], "eval.rows=20 would not be used: add eval=sts, pairs, retrieval or docstrings"),
    (["eval.step=99", "train.steps=9"], "eval.step=99: must be a step of the training"),
    (["train.keep=[99]", "train.steps=9"], "train.keep=[99]: must be steps of the training"),
    (["train.batch_size=10", "train.accumulation=3"], "is not a multiple of train.accumulation=3"),
    (["train.chunk_tokens=10"], "train.chunk_tokens=10: must hold a text of model.max_length=150 tokens"),
    (["model.quantization=nf4", "lora=none"], "quantised weights cannot be trained themselves"),
    (["model.eos_token=x", "model.append_eos=false"], "model.eos_token=x would not be appended"),
    (["model.echo=true", "model.attention=bidirectional"], "model.echo=true: where attention is bidirectional"),
    (["distill=minilm", "distill.model.echo=true"], "distill.model.echo=true: where attention is bidirectional"),
    (["model.layer_weights=true", "model.layer=1"], "model.layer=1: with model.layer_weights=true all layers count"),
    (["distill=minilm", "distill.model.layer_weights=true"], "distill.model.layer_weights=true: this model is used as"),
    (["model.echo=true", "model.max_length=2"], "model.max_length=2: with model.echo=true a token, the same again"),
    (["adapter_revision=abc"], "adapter_revision=abc has no adapter to belong to"),
    (["adapter_any_base=true"], "adapter_any_base=true has no adapter to belong to"),
    (["outputs='~/o'"], f"would be a folder called ~ here; write outputs={Path.home()}/o"),
    (["seed=4294967296"], "seed=4294967296: must be 0 to 4294967295"),
    (["vector_cache_gb=-1"], "vector_cache_gb=-1.0"),
]


@pytest.mark.parametrize(("overrides", "message"), CONTRADICTIONS, ids=lambda value: str(value)[:50])
def test_a_contradiction_is_refused_by_name(overrides, message):
    found = composed(overrides)
    assert isinstance(found, UserError) and message in str(found), found


RUNS = [
    ["schedule.warmup_ratio=0.99"],
    ["model.layer=99"],
    ["model.layer=-9"],
    ["device=cuda"],
    ["device=x"],
    ["train.steps=1"],
    ["train.batch_size=1000000"],
    ["data.rows=1"],
    ["data.holdout=1000000"],
    ["lora.targets=[no_such_layer]"],
    ["lora.targets=['']"],
    ["lora.rank=4096"],
    ["lora.alpha=1e300"],
    ["lr=1e300"],
    ["lr=1e-300"],
    ["loss.temperature=1e-300"],
    ["loss.temperature=1e300"],
    ["train.weight_decay=1e300"],
    ["train.max_grad_norm=1e-300"],
    ["model.max_length=2"],
    ["model.echo=true", "model.max_length=3"],
    ["model.max_length=9223372036854775807"],
    ["model.eos_token=nowhere"],
    ["model.revision=x"],
    ["model.path=random:nothing"],
    ["model.path='wheel:x'"],
    ["eval=sts", "eval.folder=/nowhere"],
    ["data=files", "data.train=/nowhere.csv"],
    ["adapter=/nowhere"],
    ["prompt.template='" + "w " * 300 + "{text}'"],
    ["seed=4294967295"],
    ["train.checkpoint_every=9223372036854775807"],
    ["train.chunk_tokens=9223372036854775807"],
    ["eval.rows=9"],
    ["vector_cache_gb=1e-9"],
    ["vector_cache_gb=1e300"],
    ["outputs=/dev/null/x"],
    ["distill=minilm", "model@distill.model=tiny", "distill.temperature=1e-300"],
    ["distill=minilm", "model@distill.model=tiny", "distill.model.layer=99"],
    ["distill=minilm", "distill.model.path=/nowhere"],
]


@pytest.mark.parametrize("overrides", RUNS, ids=lambda overrides: overrides[-1][:40])
def test_a_job_at_the_edge_of_what_is_allowed_runs_or_says_why_not(commands: Commands, tmp_path, overrides):
    ended = commands.run("cft.run", *quick(*overrides, job=SMALL), f"outputs={tmp_path}", *overrides)
    assert ended.status in (0, 2), ended.err[-2000:]
    assert "Traceback" not in ended.err + ended.out and "unexpected" not in ended.err, ended.err[-2000:]
    if ended.status == 2:
        message = [line for line in ended.err.splitlines() if line.startswith("cft: ")][-1]
        assert 20 < len(message) < 1200, message
