"""From the command line to a typed Config: composition, near matches for typos, one crossing out of OmegaConf."""

import dataclasses
import itertools
import re
import typing
from pathlib import Path
from typing import Any

from hydra import compose, initialize_config_dir
from hydra.core.config_store import ConfigStore
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Override
from hydra.errors import HydraException
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from cft.config.rules import LONGEST_NAME, require_valid
from cft.config.schema import TEACHER, Config
from cft.system.errors import UserError
from cft.system.hub import last_part
from cft.system.shipped import shipped_folder
from cft.system.text import did_you_mean, shorten_words

CONFIG_NAME = "config"


def conf_folder() -> Path:
    """The folder of the configuration's YAML files."""
    return shipped_folder("conf")


ConfigStore.instance().store(name="schema", node=Config)


def to_config(composed: DictConfig, overrides: list[str]) -> Config:
    """Leave OmegaConf behind.

    Args:
        composed: by Hydra. overrides: that it was composed with; a model that only its path names is called by it.

    Raises:
        UserError: if a value is missing or no job could run with it.
    """
    try:
        config = OmegaConf.to_object(composed)
    except OmegaConfBaseException as error:
        raise UserError(f"the configuration is not complete: {error}") from error
    assert isinstance(config, Config)
    keys_given = {override.split("=", 1)[0].lstrip("+") for override in overrides}
    for prefix, model in (("model", config.model), (TEACHER, config.distill.model)):
        if model and f"{prefix}.path" in keys_given and f"{prefix}.name" not in keys_given:
            model.name = _name_of(model.path) or model.name
    require_valid(config)
    return config


def _name_of(path: str) -> str:
    """What folders and tables call a model that is known by its path; random ones keep their group's name."""
    if path.startswith("random:"):
        return ""
    return re.sub(r"[^A-Za-z0-9._-]+", "-", last_part(path)).strip("-.")[:LONGEST_NAME]


def check_overrides(overrides: list[str]) -> list[Config]:
    """Compose what a command line asks for, every value of a sweep included, before anything is loaded.

    Args:
        overrides: as typed, such as `model=phi2` or `lr=1e-5,5e-5`.

    Returns:
        Jobs in which every value occurs.

    Raises:
        UserError: naming the key or choice at fault and the nearest valid one.
    """
    return [_compose(job) for job in _jobs(_parse(overrides))]


def compose_config(overrides: list[str]) -> Config:
    """The configuration of one job, without a command line.

    Args:
        overrides: as they would be typed, such as `model=phi2` or `lr=1e-5`; no sweeps.

    Raises:
        UserError: as `check_overrides` does, or if an override has several values.
    """
    several = [override.input_line for override in _parse(overrides) if override.is_sweep_override()]
    if several:
        raise UserError(f"{several[0]}: one value is wanted here, not several")
    return _compose(overrides)


@dataclasses.dataclass(frozen=True)
class Dimension:
    """What a search may choose a setting from: values, or an interval.

    key: a setting or group. choices: as they are typed; none for an interval. low, high: of the interval. log: whether
    it is searched by orders of magnitude. whole: whether only integers will do.
    """

    key: str
    choices: tuple[str, ...] = ()
    low: float = 0.0
    high: float = 0.0
    log: bool = False
    whole: bool = False


def search_space(overrides: list[str]) -> tuple[list[str], list[Dimension]]:
    """Split a command line into what is fixed and what is searched, in Hydra's own words for sweeps.

    Args:
        overrides: such as `model=tiny`, `lora.rank=4,8,16` or `lr=tag(log,interval(1e-5,1e-3))`.

    Raises:
        UserError: if a key or a value, or an interval's end, is one that no job could run with.
    """
    fixed: list[str] = []
    dimensions: list[Dimension] = []
    for override in _parse(overrides):
        line = override.input_line or ""
        if not override.is_sweep_override():
            fixed.append(line)
        elif override.is_interval_sweep():
            dimensions.append(_interval(override))
        else:
            key = line.split("=", 1)[0]
            values = tuple(value.split("=", 1)[1] for value in _values(override))
            dimensions.append(Dimension(key, choices=values))
    first = {d.key: f"{d.key}={d.choices[0] if d.choices else _typed(d, d.low)}" for d in dimensions}
    for dimension in dimensions:
        ends = dimension.choices or (_typed(dimension, dimension.low), _typed(dimension, dimension.high))
        for end in ends:
            _compose([*fixed, *(first | {dimension.key: f"{dimension.key}={end}"}).values()])
    return fixed, dimensions


def _interval(override: Override) -> Dimension:
    sweep: Any = override.value()
    low, high = sweep.start, sweep.end
    if low is None or high is None or not low < high:
        raise UserError(f"{override.input_line}: an interval needs two ends, the smaller first")
    log = "log" in sweep.tags
    if log and low <= 0:
        raise UserError(f"{override.input_line}: an interval searched by orders of magnitude must begin above 0")
    whole = isinstance(low, int) and isinstance(high, int)
    return Dimension(override.key_or_group, low=float(low), high=float(high), log=log, whole=whole)


def _typed(dimension: Dimension, value: float) -> str:
    return str(int(value)) if dimension.whole else repr(float(value))


def flatten(settings: dict[str, Any], prefix: str = "") -> dict[str, str]:
    """Every setting by its dotted key, as YAML has it; settings as `store.plain` gives them."""
    found: dict[str, str] = {}
    for name, value in settings.items():
        key = f"{prefix}{name}"
        if isinstance(value, dict):
            found |= flatten(value, f"{key}.")
        elif isinstance(value, list):
            found[key] = ", ".join(map(str, value))
        else:
            found[key] = "null" if value is None else str(value).lower() if isinstance(value, bool) else str(value)
    return found


def _parse(overrides: list[str]) -> list[Override]:
    """Read overrides and check their keys and choices."""
    try:
        parsed = OverridesParser.create().parse_overrides(overrides)
    except HydraException as error:
        raise UserError(
            f"cannot read the command line: {str(error).splitlines()[0]}; a value with blanks, commas or braces needs "
            "quotes inside quotes, as in \"prompt.template='Query, {text}'\""
        ) from error
    for override in parsed:
        _check_names(override)
    return parsed


def _compose(overrides: list[str]) -> Config:
    of_teacher = [override for override in overrides if override.startswith(("distill.", f"model@{TEACHER}="))]
    if of_teacher and _compose([each for each in overrides if each not in of_teacher]).distill.model is None:
        told = shorten_words(of_teacher[0])
        raise UserError(f"{told}: there is no teacher to change; choose one first: distill=minilm {told}")
    try:
        with initialize_config_dir(str(conf_folder()), version_base="1.3"):
            return to_config(compose(CONFIG_NAME, overrides=overrides), overrides)
    except HydraException as error:
        raise UserError(_cause(error)) from error


def _jobs(parsed: list[Override]) -> list[list[str]]:
    """Command lines that try every value of every sweep once, the other sweeps at their first value."""
    values = [_values(override) for override in parsed]
    usual = [options[0] for options in values]
    jobs = [usual]
    for place, options in enumerate(values):
        jobs += [[*usual[:place], option, *usual[place + 1 :]] for option in options[1:]]
    return [[option for option in job if option] for job in jobs]


def _values(override: Override) -> list[str]:
    """The override itself, or each value of a sweep as an override of its own; empty text where Hydra must decide."""
    line = override.input_line or ""
    if not override.is_sweep_override():
        return [line]
    if not (override.is_choice_sweep() or override.is_range_sweep()):
        return [""]
    key = line.split("=", 1)[0]
    return [f"{key}={value}" for value in override.sweep_string_iterator()]


def all_groups() -> dict[str, list[str]]:
    """Choices of every config group."""
    folder = conf_folder()
    found: dict[str, list[str]] = {}
    for path in sorted(folder.glob("*/*.yaml")):
        found.setdefault(path.parent.name, []).append(path.stem)
    return found


def all_keys(kind: type = Config, prefix: str = "") -> list[str]:
    """Every dotted key of the configuration."""
    names = []
    for field in dataclasses.fields(kind):
        name = f"{prefix}{field.name}"
        names.append(name)
        # Of settings that may be missing altogether (a type or None), the type's.
        for kind_of_one in (field.type, *typing.get_args(field.type)):
            if isinstance(kind_of_one, type) and dataclasses.is_dataclass(kind_of_one):
                names += all_keys(kind_of_one, f"{name}.")
    return names


def _check_names(override: Override) -> None:
    key = override.key_or_group
    if key.split(".")[0].split("/")[0] == "hydra":
        return
    if override.is_add() or override.is_delete():
        raise UserError(f"{override.input_line}: keys cannot be added or removed, only set; leave out the + or ~")
    if key == TEACHER and override.value() is not None:
        named = str(override.value()) in all_groups()["model"]
        another = f"model@{TEACHER}={override.value()}" if named else f"{TEACHER}.path={override.value()}"
        raise UserError(f"{override.input_line}: is a whole section, not a name; write distill=minilm {another}")
    choices = all_groups()
    if key in choices:
        for choice in _choices_asked(override):
            if choice not in choices[key]:
                may_be = ", ".join(choices[key])
                raise UserError(
                    f"{key}={choice}: no such choice; {key} may be {may_be}{nearest_names(choice, choices[key])}"
                )
        return
    names = all_keys()
    if key not in names:
        section = key.split(".")[0]
        within = [name for name in names if name.startswith(f"{section}.")] or [n for n in names if "." not in n]
        raise UserError(f"{key}: no such key{nearest_names(key, names)} Keys there: {', '.join(within)}.")


def _choices_asked(override: Override) -> list[str]:
    if override.is_sweep_override():
        if not override.is_choice_sweep():
            return []
        return [str(value) for value in itertools.islice(override.sweep_string_iterator(), 1000)]
    return [str(override.value())]


def nearest_names(word: str, words: list[str]) -> str:
    """The end of an error message: the nearest of some words, if one is near."""
    return f".{did_you_mean(word, words, sentence=True, cutoff=0.5)}"


def _cause(error: BaseException) -> str:
    """Hydra's message with the reason under it, less the object dumps."""
    lines = [str(error).splitlines()[0]]
    if error.__cause__ is not None:
        lines.append(str(error.__cause__).splitlines()[0])
    message = ": ".join(lines)
    enumerated = re.search(r"Invalid value '(.*)', expected one of \[(.*)\]", message)
    if "is not a ListConfig" in message:
        message += " Write a list in brackets, as in data.negative_columns='[wrong_answer]'"
    message += nearest_names(enumerated[1], enumerated[2].split(", ")) if enumerated else ""
    return shorten_words(message)
