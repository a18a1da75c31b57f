"""The page of all settings, out of the commented schema and the YAML files: `python -m cft.config.reference [FILE]`."""

import enum
import inspect
import re
import typing
from dataclasses import dataclass, fields, is_dataclass
from pathlib import Path
from typing import Annotated

import yaml

from cft.config.command_line import CommandLine
from cft.config.compose import all_groups, compose_config, conf_folder, flatten
from cft.config.schema import Config
from cft.system.digest import to_plain
from cft.system.files import write_text
from cft.system.tables import Row, as_markdown

_ABOVE = re.compile(r"(?P<meaning>(?:^ {4}# .+\n)+) {4}(?P<key>\w+): ", re.MULTILINE)
_BESIDE = re.compile(r"^ {4}(?P<key>\w+): .+?  # (?P<meaning>.+)$", re.MULTILINE)

_CALLED = {"str": "text", "int": "integer", "float": "number", "bool": "true, false"}
_CALLED |= {"Any": "text, or list of them", "ModelSettings": "like `model`", "DataSettings": "like `data`"}


@dataclass(frozen=True)
class ReferenceOptions:
    """Write the page of all settings, or print it."""

    output: Annotated[Path | None, "a file (.md); printed without one"] = None


def main() -> None:
    """Run the command line."""
    CommandLine("cft.config.reference", ReferenceOptions, example="docs/configuration.md").run(_write)


def _write(options: ReferenceOptions) -> str | None:
    if options.output is None:
        return page()
    write_text(options.output, page())
    return None


def page() -> str:
    """Every group with its choices, and every key with its type, its value in each choice and what it means."""
    parts = [
        "# Settings",
        "Written by `make docs` out of `cft/config/schema.py` and `conf/`; a test compares. `GROUP=CHOICE` takes a "
        "file of a group, `KEY=VALUE` sets one value; `python -m cft.run --cfg job ...` shows what a command composes.",
        "## At the top",
        as_markdown(_top(), left=True),
    ]
    for name, choices in all_groups().items():
        if name in ("hydra", "help"):
            continue
        parts += [f"## {name}", *(_experiments(choices) if name == "experiment" else _group(name, choices))]
    return "\n\n".join(parts) + "\n"


def _top() -> list[Row]:
    types = typing.get_type_hints(Config)
    meanings = _meanings(Config)
    defaults = to_plain(Config())
    table: list[Row] = [("key", "type", "default", "meaning")]
    for entry in fields(Config):
        if not is_dataclass(types[entry.name]):
            default = "(by `train`)" if entry.name == "lr" else _code(_written(defaults[entry.name]))
            table.append((f"`{entry.name}`", _type(types[entry.name]), default, _cell(meanings[entry.name])))
    return table


def _group(name: str, choices: list[str]) -> list[str]:
    kind = typing.get_type_hints(Config)[name]
    types, meanings = typing.get_type_hints(kind), _meanings(kind)
    files = {choice: conf_folder() / name / f"{choice}.yaml" for choice in choices}
    values = {choice: to_plain(kind()) | _values_in(path, name) for choice, path in files.items()}
    table: list[Row] = [("choice", "what it is")]
    table += [(f"`{name}={choice}`", _cell(_heading(path))) for choice, path in files.items()]
    keys: list[Row] = [("key", "type", "values of the choices", "meaning")]
    for entry in fields(kind):
        by_choice = {choice: _written(settings[entry.name]) for choice, settings in values.items()}
        keys.append(
            (f"`{name}.{entry.name}`", _type(types[entry.name]), _values(by_choice), _cell(meanings[entry.name]))
        )
    return [as_markdown(table, left=True), as_markdown(keys, left=True)]


def _meanings(kind: type) -> dict[str, str]:
    """The comment beside or above each field of a settings class."""
    source = inspect.getsource(kind)
    return {
        match["key"]: " ".join(line.strip().removeprefix("# ") for line in match["meaning"].splitlines())
        for pattern in (_ABOVE, _BESIDE)
        for match in pattern.finditer(source)
    }


def _values_in(path: Path, group: str) -> dict:
    """What a choice's file sets in its group; a model that it takes from another group by that group's choice."""
    content = yaml.safe_load(path.read_text(encoding="utf-8")) or {}
    content = content.get(group, content)
    settings = {key: value for key, value in content.items() if key not in ("defaults", group, "lr")}
    for entry in content.get("defaults", []):
        for key, choice in entry.items() if isinstance(entry, dict) else ():
            if "@" in key:
                settings[key.split("@")[1]] = choice
    return settings


def _experiments(choices: list[str]) -> list[str]:
    """What each choice of the group that sets other groups' choices and values stands for."""
    table: list[Row] = [("choice", "what it is", "sets")]
    usual = flatten(to_plain(compose_config([])))
    for choice in choices:
        path = conf_folder() / "experiment" / f"{choice}.yaml"
        chosen = flatten(to_plain(compose_config([f"experiment={choice}"])))
        differing = [f"`{key}={value}`" for key, value in chosen.items() if usual[key] != value]
        table.append((f"`experiment={choice}`", _cell(_heading(path)), _cell(", ".join(differing)) or "nothing"))
    return [as_markdown(table, left=True)]


def _written(value: object) -> str:
    """A value as YAML has it."""
    if isinstance(value, list):
        return f"[{', '.join(map(str, value))}]"
    if isinstance(value, dict):  # a section of another group, by that group's choice
        return str(value.get("name", ""))
    if value is None or isinstance(value, bool):
        return "null" if value is None else str(value).lower()
    return str(value).replace("\n", "\\n")


def _values(values: dict[str, str]) -> str:
    """One value if all choices agree, else each choice's."""
    if len(set(values.values())) == 1:
        return _code(next(iter(values.values())))
    return "; ".join(f"{choice}: {_code(value)}" for choice, value in values.items())


def _heading(path: Path) -> str:
    """The comment at the top of a file."""
    lines = path.read_text(encoding="utf-8").splitlines()
    return " ".join(line.lstrip("# ") for line in lines[:4] if line.startswith("# ") and not line.startswith("# @"))


def _type(kind: object) -> str:
    if isinstance(kind, type) and issubclass(kind, enum.Enum):
        return ", ".join(str(member.value) for member in kind)
    if isinstance(kind, type):
        return _CALLED.get(kind.__name__, kind.__name__)
    arguments = typing.get_args(kind)
    if typing.get_origin(kind) is list:
        return f"list of {_type(arguments[0])}"
    return ", ".join(_type(argument) for argument in arguments if argument is not type(None)) + " or null"


def _code(value: str) -> str:
    return value if value.startswith("(") else f"`{_cell(value)}`"


def _cell(text: str) -> str:
    return text.replace("|", "\\|")


if __name__ == "__main__":
    main()
