"""From the command line to a typed Config: composition, near matches for typos, one crossing out of OmegaConf."""

import contextlib
import copy
import functools
import itertools
import math
import os
import re
import typing
from collections.abc import Iterator
from dataclasses import fields, is_dataclass, replace
from pathlib import Path
from typing import Any

from hydra import compose, initialize_config_dir
from hydra.core.config_store import ConfigStore
from hydra.core.global_hydra import GlobalHydra
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Glob, Override, OverrideType
from hydra.core.utils import JobRuntime
from hydra.errors import ConfigCompositionException, HydraException
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import InterpolationKeyError, OmegaConfBaseException

from cft.config.advice import known_elsewhere, misfit, no_setting
from cft.config.rules import LONGEST_NAME, require_valid
from cft.config.schema import BASELINE, FIRST, TEACHER, Config, ModelSettings
from cft.system.errors import UserError, first_line
from cft.system.hub import last_part
from cft.system.overrides import override as written
from cft.system.overrides import shell_word
from cft.system.shipped import shipped_folder
from cft.system.text import did_you_mean, shorten_words

# Values of a long range that are tried before the first job.
_VALUES_OF_A_RANGE = 10

# How a value names a variable of the environment.
_VARIABLE = re.compile(r"oc\.env:\s*(\w+)")

CONFIG_NAME = "config"

# Groups that bring a section of another group, if any: its name, what it is, and a choice that brings one.
_OPTIONAL = {
    "distill": ("model", "teacher", "minilm"),
    "baseline": ("model", "baseline", "minilm"),
    "first": ("data", "first stage", "docstrings"),
}


def conf_folder() -> Path:
    """The folder of the configuration's YAML files."""
    return shipped_folder("conf")


ConfigStore.instance().store(name="schema", node=Config)


def to_config(composed: DictConfig, overrides: list[str]) -> Config:
    """A composed configuration as plain dataclasses.

    Args:
        composed: by Hydra.
        overrides: that it was composed with; a model that is given by its path alone is named after it.

    Raises:
        UserError: if a value is missing or no job could run with it.
    """
    try:
        config = OmegaConf.to_object(composed)
    except OmegaConfBaseException as error:
        raise UserError(_not_complete(error, overrides)) from error
    assert isinstance(config, Config)
    keys = {override.split("=", 1)[0].lstrip("+") for override in overrides}
    config = replace(config, model=_of_path(config.model, "model", keys))
    if config.distill.model:
        teacher = _of_path(config.distill.model, TEACHER, keys)
        config = replace(config, distill=replace(config.distill, model=teacher))
    if config.baseline.model:
        beside = _of_path(config.baseline.model, BASELINE, keys)
        config = replace(config, baseline=replace(config.baseline, model=beside))
    if config.loss.guide is not None:
        _require_choice("loss.guide", config.loss.guide, all_groups()["model"])
    given = [*keys, *_set_by_experiment(overrides)]  # no set: a wrong configuration may hold a list in the list
    fitted = [key for key in config.train.fitted if key not in given]
    config = replace(config, train=replace(config.train, fitted=fitted))
    require_valid(config)
    return config


def _set_by_experiment(overrides: list[str]) -> set[str]:
    """Keys that the chosen experiment gives a value of its own."""
    choices = [override.partition("=")[2] for override in overrides if override.startswith("experiment=")]
    if not choices:
        return set()
    path = conf_folder() / "experiment" / f"{choices[-1]}.yaml"
    return set(flatten(typing.cast(dict, OmegaConf.to_container(OmegaConf.load(path))))) if path.exists() else set()


def _of_path(model: ModelSettings, section: str, keys: set[str]) -> ModelSettings:
    """A model's settings where its path was given: what the group says of another path's content does not hold.

    Its name is taken from the path unless it was given too; random models keep their name.
    """
    if f"{section}.path" not in keys:
        return model
    model = replace(
        model,
        sha256=model.sha256 if f"{section}.sha256" in keys else None,
        revision=model.revision if f"{section}.revision" in keys else None,
        license=model.license if f"{section}.license" in keys else None,
    )
    if f"{section}.name" in keys or model.path.startswith("random:"):
        return model
    name = re.sub(r"[^A-Za-z0-9._-]+", "-", last_part(model.path)).strip("-.")[:LONGEST_NAME]
    return replace(model, name=name or model.name)


def require_settings(words: list[str]) -> None:
    """Refuse options that the command line does not know: most people mean a setting.

    Raises:
        UserError: naming the first, and what to write.
    """
    if words:
        _parse(words[0])  # raises what is wrong with it
        # argparse takes one run of words, and what an option cuts off is none of it
        raise UserError(
            f"{shorten_words(shell_word(words[0]))}: this setting is cut off from those before it by an option, such "
            "as -m; write options first, and all settings behind them"
        )


def check_overrides(overrides: list[str]) -> list[Config]:
    """Compose what a command line asks for, every value of a sweep included, before anything is loaded.

    Args:
        overrides: as typed, such as `model=phi2` or `lr=1e-5,5e-5`.

    Returns:
        Jobs in which every value occurs.

    Raises:
        UserError: naming the key or choice at fault and the nearest valid one.
    """
    return [compose_job(job) for job in _jobs(parse_overrides(overrides))]


def count_jobs(overrides: list[str]) -> int:
    """How many jobs a sweep has, as far as Hydra's own sweeper decides it.

    Raises:
        UserError: naming a word that cannot be read.
    """
    return math.prod(len(sweep_values(override)) for override in parse_overrides(overrides))


def compose_config(overrides: list[str]) -> Config:
    """The configuration of one job, without a command line.

    Args:
        overrides: as they would be typed, such as `model=phi2` or `lr=1e-5`; no sweeps.

    Raises:
        UserError: as `check_overrides` does, or if an override has several values.
    """
    several = [override.input_line for override in parse_overrides(overrides) if override.is_sweep_override()]
    if several:
        raise UserError(f"{several[0]}: one value is wanted here, not several")
    return compose_job(overrides)


def compose_model(choice: str) -> ModelSettings:
    """The settings of a choice of conf/model, without a job around them.

    Raises:
        UserError: if there is no such choice, naming the nearest and all.
    """
    _require_choice("model", choice, all_groups()["model"])
    return compose_job([f"model={choice}"]).model


def flatten(settings: dict[str, Any], prefix: str = "") -> dict[str, str]:
    """Every setting by its dotted key, as YAML has it; `settings` are nested dicts, as `to_plain` makes them."""
    flat: dict[str, str] = {}
    for name, value in settings.items():
        key = f"{prefix}{name}"
        if isinstance(value, dict):
            flat |= flatten(value, f"{key}.")
        elif isinstance(value, list):
            flat[key] = ", ".join(map(str, value))
        else:
            flat[key] = "null" if value is None else str(value).lower() if isinstance(value, bool) else str(value)
    return flat


def parse_overrides(overrides: list[str]) -> list[Override]:
    """Read overrides and check their keys and choices."""
    return [_parse(word) for word in overrides]


def _parse(word: str) -> Override:
    try:
        (parsed,) = OverridesParser.create().parse_overrides([word])
    except HydraException as error:
        raise UserError(shorten_words(no_setting(word, all_groups(), all_keys()))) from error
    _check_names(parsed)
    return parsed


def compose_job(overrides: list[str]) -> Config:
    """The configuration of one job, of overrides whose names are checked.

    Raises:
        UserError: if a value is missing, of another type, or one that no job could run with.
    """
    for group, (section, what, choice) in _OPTIONAL.items():
        keys = (f"{group}.", f"{section}@{group}.{section}=")
        given = [override for override in overrides if override.startswith(keys)]
        without = [override for override in overrides if override not in given]
        if given and getattr(getattr(compose_job(without), group), section) is None:
            word = shorten_words(given[0])
            raise UserError(f"{word}: there is no {what} to change; choose one first: {group}={choice} {word}")
    try:
        return copy.deepcopy(_composed(tuple(overrides), _surroundings(overrides)))
    except HydraException as error:
        raise UserError(_cause(error, overrides)) from error


@functools.lru_cache(maxsize=512)  # studies of the same cells ask for the same
def _composed(overrides: tuple[str, ...], surroundings: tuple) -> Config:
    """Hydra composes the choices of groups; single values, which change nothing of that, are set in a copy."""
    parsed = OverridesParser.create().parse_overrides(list(overrides))
    values = [override for override in parsed if _sets_a_value(override)]
    others = tuple(override.input_line or "" for override in parsed if override not in values)
    composed = copy.deepcopy(_composed_choices(others, surroundings))
    for override in values:
        try:
            OmegaConf.update(composed, override.key_or_group, override.value(), merge=True)
        except OmegaConfBaseException as error:  # as Hydra says it
            raise ConfigCompositionException(f"Error merging override {override.input_line}") from error
    return to_config(composed, list(overrides))


def _sets_a_value(override: Override) -> bool:
    """Whether it is a plain KEY=VALUE of a key that is no group: all else is Hydra's to read."""
    key = override.key_or_group
    plain = override.type is OverrideType.CHANGE and override.package is None and not override.is_sweep_override()
    return plain and key in all_keys() and key not in all_groups()


@functools.lru_cache(maxsize=64)  # a third of a second each
def _composed_choices(overrides: tuple[str, ...], _surroundings: tuple) -> DictConfig:
    with _beside_a_job_of_hydra(), initialize_config_dir(str(conf_folder()), version_base="1.3"):
        return compose(CONFIG_NAME, overrides=list(overrides))


@contextlib.contextmanager
def _beside_a_job_of_hydra() -> Iterator[None]:
    """Put away what Hydra knows of the job that it runs, of which it allows one a process, as for `loss.guide`."""
    running, runtime = GlobalHydra.instance().hydra, copy.deepcopy(JobRuntime.instance().conf)
    GlobalHydra.instance().clear()
    try:
        yield
    finally:
        GlobalHydra.instance().hydra = running
        JobRuntime.instance().conf = runtime


def _surroundings(overrides: list[str]) -> tuple:
    """What else a configuration depends on: the files, and the environment's variables that they or a word name."""
    files = tuple(sorted((path, path.stat().st_mtime_ns) for path in conf_folder().rglob("*.yaml")))
    names = {*_variables_in(files), *itertools.chain(*map(_VARIABLE.findall, overrides))}
    return files, tuple((name, os.environ.get(name)) for name in sorted(names))


@functools.lru_cache(maxsize=1)
def _variables_in(files: tuple[tuple[Path, int], ...]) -> list[str]:
    return [name for path, _ in files for name in _VARIABLE.findall(path.read_text(encoding="utf-8", errors="replace"))]


def _jobs(parsed: list[Override]) -> list[list[str]]:
    """Command lines that try every value of every sweep once, the other sweeps at their first value.

    Of a long range, whose values are numbers of one kind, only some are tried, its ends among them.
    """
    values = [_some_values(override) for override in parsed]
    first_job = [options[0] for options in values]
    jobs = [first_job]
    for place, options in enumerate(values):
        jobs += [[*first_job[:place], option, *first_job[place + 1 :]] for option in options[1:]]
    return [[option for option in job if option] for job in jobs]


def _some_values(override: Override) -> list[str]:
    values = sweep_values(override)
    if not override.is_range_sweep() or len(values) <= _VALUES_OF_A_RANGE:
        return values
    return [values[number * (len(values) - 1) // (_VALUES_OF_A_RANGE - 1)] for number in range(_VALUES_OF_A_RANGE)]


def sweep_values(override: Override) -> list[str]:
    """The override itself, or each value of a sweep as an override of its own; empty text where Hydra must decide."""
    line = override.input_line or ""
    if not override.is_sweep_override():
        return [line]
    if not (override.is_choice_sweep() or override.is_range_sweep()):
        return [""]
    key = line.split("=", 1)[0]
    return [f"{key}={value}" for value in _swept(override)]


def _swept(override: Override) -> Iterator[str]:
    """The values of a sweep as they are typed; Hydra itself knows a group's choices only once it composes."""
    value = override.value()
    if not isinstance(value, Glob):
        return override.sweep_string_iterator()
    fitting = value.filter(all_groups().get(override.key_or_group, []))
    if not fitting:
        raise UserError(f"{override.input_line}: glob() names choices of a group, and none fits")
    return iter(fitting)


def all_groups() -> dict[str, list[str]]:
    """Choices of every config group."""
    groups: dict[str, list[str]] = {}
    for path in sorted(conf_folder().glob("*/*.yaml")):
        groups.setdefault(path.parent.name, []).append(path.stem)
    return groups


def all_keys(kind: type = Config, prefix: str = "") -> list[str]:
    """Every dotted key of the configuration."""
    names = []
    for field in fields(kind):
        name = f"{prefix}{field.name}"
        names.append(name)
        for section in (field.type, *typing.get_args(field.type)):  # an optional section is a union of it and None
            if isinstance(section, type) and is_dataclass(section):
                names += all_keys(section, f"{name}.")
    return names


def _check_names(override: Override) -> None:
    key = override.key_or_group
    if key.split(".")[0].split("/")[0] == "hydra":
        return
    if override.is_add() or override.is_delete():
        raise UserError(f"{override.input_line}: keys cannot be added or removed, only set; leave out the + or ~")
    if key == FIRST and override.value() is not None:
        raise UserError(f"{override.input_line}: is a whole section, not a name; write first=docstrings or first=nli")
    if key in (TEACHER, BASELINE) and override.value() is not None:
        named = str(override.value()) in all_groups()["model"]
        another = written(f"model@{key}" if named else f"{key}.path", override.value())
        group = key.split(".")[0]
        raise UserError(f"{override.input_line}: is a whole section, not a name; write {group}=minilm {another}")
    choices = all_groups()
    if key in choices:
        for choice in _choices_of(override):
            _require_choice(key, choice, choices[key])
        return
    names = all_keys()
    if key not in names:
        section = key.split(".")[0]
        within = [name for name in names if name.startswith(f"{section}.")] or [n for n in names if "." not in n]
        elsewhere = known_elsewhere(key, _typed_value(override), names)
        if elsewhere:
            raise UserError(f"{key}: no such key{elsewhere}")
        guess = nearest_names(key, [*names, *choices])
        raise UserError(f"{key}: no such key{guess} Keys there: {', '.join(within)}.")


def _require_choice(group: str, choice: str, there: list[str]) -> None:
    if choice not in there:
        may_be = ", ".join(there)
        message = f"{group}={choice}: no such choice; {group} may be {may_be}{nearest_names(choice, there)}"
        raise UserError(shorten_words(message))


def _choices_of(override: Override) -> list[str]:
    if override.is_sweep_override():
        if not override.is_choice_sweep():
            return []
        return list(itertools.islice(_swept(override), 1000))
    return [_typed_value(override)]


def _typed_value(override: Override) -> str:
    return (override.input_line or "").partition("=")[2]


def nearest_names(word: str, words: list[str]) -> str:
    """The end of an error message: the nearest of some words, if one is near."""
    return f".{did_you_mean(word, words, sentence=True, cutoff=0.5)}"


def _cause(error: BaseException, overrides: list[str]) -> str:
    """Why overrides cannot be composed: ours where one of them does not fit its key, else Hydra's without its dumps."""
    first = str(error).splitlines()[0]
    merged = [line for line in overrides if first.startswith(f"Error merging override {line}")]
    line = max(merged, key=len, default="")
    if line and misfit(line):
        return shorten_words(misfit(line))
    lines = [first, str(error.__cause__).splitlines()[0]] if error.__cause__ is not None else [first]
    return shorten_words(": ".join(lines))


def _not_complete(error: OmegaConfBaseException, overrides: list[str]) -> str:
    """Why a composed configuration has no value for a key."""
    key = getattr(error, "full_key", None)
    typed = next((line.partition("=")[2] for line in overrides if line.startswith(f"{key}=")), None)
    if key and typed is not None and isinstance(error, InterpolationKeyError):
        text = written(key, re.sub(r"^(['\"])(.*)\1$", r"\2", typed, flags=re.DOTALL))
        return f"{key}: what stands in ${{}} is read as the name of another setting; as a text it is written {text}"
    problem = first_line(error)
    return f"the configuration is not complete: {f'{key}: ' if key and key not in problem else ''}{problem}"
