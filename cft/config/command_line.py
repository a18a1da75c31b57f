"""Reads the words of a command into a dataclass, whose fields are `Annotated[type, help]`.

A positional field is given by its place or named, a keyword-only one as KEY=VALUE, and the list `overrides` takes every
other KEY=VALUE. The dialect is Hydra's: quotes around a value are taken off, `null` is None. `--key VALUE`,
`--key=VALUE`, `--flag` and `--no-flag` mean the same as `key=VALUE`, `flag=true` and `flag=false`. OmegaConf does not
read the values: in a text such as `is ${HOME} a word?` it would see an interpolation.
"""

import dataclasses
import inspect
import math
import re
import sys
import typing
from collections.abc import Callable, Iterator, Sequence
from enum import Enum
from pathlib import Path
from typing import Any, Generic, TypeVar

from cft.system.console import exit_statuses, set_up_console
from cft.system.errors import UserError
from cft.system.files import user_path
from cft.system.overrides import shell_word
from cft.system.text import described, did_you_mean

Options = TypeVar("Options")

# An argument that is a key and its value rather than a text: a word, and no blank around the =.
_LIKE_A_KEY = re.compile(r"[a-z][a-z_.]*=(?:[^\s=].*)?", re.DOTALL)
_NUMBER = re.compile(r"-?(\d+\.?\d*|\.\d+)(e-?\d+)?")


@dataclasses.dataclass(frozen=True)
class Rules:
    """What else holds for a key, behind its help."""

    least: int = 1  # smallest integer
    dashed: str = ""  # its name after two dashes, if it is another one
    leads: bool = False  # stands before the other places, though it may be left out
    called: str = ""  # its key, if that is not the field's name: one of cft.run, as data.train


class _Word:
    """A field of the options, as the command line sees it."""

    def __init__(self, field: dataclasses.Field, hint: Any) -> None:
        self.field, self.by_place = field.name, not field.kw_only
        self.type, (self.help, *rules) = hint.__origin__, hint.__metadata__
        self.rules: Rules = rules[0] if rules else Rules()
        self.name = self.rules.called or self.field
        self.is_list = typing.get_origin(self.type) is list
        self.is_int = not self.is_list and int in (self.type, *typing.get_args(self.type))
        self.is_float = not self.is_list and float in (self.type, *typing.get_args(self.type))
        # a list at a place, and that of overrides, takes what is left, perhaps nothing
        takes_left = self.by_place or self.name == "overrides"
        empty = self.is_list and (takes_left or field.default_factory is not dataclasses.MISSING)
        self.default = [] if empty else field.default
        self.required = self.default is dataclasses.MISSING
        self.choices: dict[str, Any] = {each: each for each in typing.get_args(self.type) if isinstance(each, str)}
        if self.type is bool:
            self.choices = {"true": True, "false": False}
        elif isinstance(self.type, type) and issubclass(self.type, Enum):
            self.choices = {member.value: member for member in self.type}

    def value(self, text: str) -> Any:
        """A text as a value of the type: str, int, bool, Path, an Enum, a Literal, integers, or one of them or None."""
        label, rule = f"{self.name} " if self.by_place else f"{self.name}=", ""
        members = typing.get_args(self.type)
        if type(None) in members and text == "null":
            return None
        if self.choices and text not in self.choices:
            rule = " or ".join(self.choices) + did_you_mean(text, self.choices)
        elif self.is_int and not (re.fullmatch(r"\d+", text) and int(text) >= self.rules.least):
            rule = f"a whole number, {self.rules.least} or more"
        elif self.is_float and not _NUMBER.fullmatch(text):
            rule = "a number"
        if rule:
            raise UserError(f"{label}{text}: must be {rule}")
        if self.choices:
            return self.choices[text]
        if self.is_list:
            return self._listed(label, text)
        if Path in (self.type, *members):
            return user_path(text)
        return int(text) if self.is_int else float(text) if self.is_float else text

    def _listed(self, label: str, text: str) -> list[Any]:
        """The parts of a text, with commas between and perhaps in brackets."""
        parts = [part.strip() for part in re.sub(r"^\[(.*)\]$", r"\1", text, flags=re.DOTALL).split(",")]
        kind = typing.get_args(self.type)[0]
        form, named = {
            int: (r"-?\d+", "whole numbers with commas between, as in 1,2,3"),
            float: (_NUMBER.pattern, "numbers with commas between, as in 2,1.5"),
            str: (r"(?s:.+)", "words with commas between, as in [a,b]"),
        }[kind]
        if not all(re.fullmatch(form, part) for part in parts):
            raise UserError(f"{label}{text}: must be {named}")
        return [kind(part) for part in parts]

    def checked(self, value: Any) -> Any:
        """A value that Python code gave: one of the type, a text for a path or a choice, or a path for a text."""
        kinds = {self.type, *typing.get_args(self.type)} if not self.choices else set()
        if isinstance(value, (str, Path)) and "\0" in str(value):
            raise UserError(f"{self._shown(value)}: holds a NUL byte")
        if self.choices:
            if isinstance(value, str) and value in self.choices:
                return self.choices[value]
            if any(value is each for each in self.choices.values()):
                return value
            wanted = " or ".join(self.choices)
        elif Path in kinds:
            if isinstance(value, (str, Path)) or (value is None and type(None) in kinds):
                return user_path(value) if value is not None else None
            wanted = "a path"
        elif self.is_float:
            if value is None and type(None) in kinds:
                return None
            if isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value):
                return float(value)
            wanted = "a number"
        elif self.is_int:
            if value is None and type(None) in kinds:
                return None
            if isinstance(value, int) and not isinstance(value, bool) and value >= self.rules.least:
                return value
            wanted = f"a whole number, {self.rules.least} or more"
        elif self.is_list:
            return self._checked_list(value)
        elif str in kinds:
            if isinstance(value, (str, Path)) or (value is None and type(None) in kinds):
                return str(value) if value is not None else None
            wanted = "a text"
        else:
            return value
        raise UserError(f"{self._shown(value)}: must be {wanted}")

    def _checked_list(self, value: Any) -> list[Any]:
        """A list that Python code gave, its members of the type; paths are taken for texts, integers for numbers."""
        kind: Any = typing.get_args(self.type)[0]
        kinds: tuple[type, ...] = {int: (int,), float: (int, float), str: (str, Path)}[kind]
        if not isinstance(value, (list, tuple)):
            raise UserError(f"{self._shown(value)}: must be a list")
        for each in value:
            odd = isinstance(each, bool) or not isinstance(each, kinds)
            if odd or (kind is float and not math.isfinite(float(each))):  # type: ignore[arg-type]  # a number, see odd
                raise UserError(f"{self._shown(each)}: must be {'a text' if kind is str else 'a number'}")
            if kind is str and "\0" in str(each):
                raise UserError(f"{self._shown(each)}: holds a NUL byte")
        return [kind(each) for each in value]

    def _shown(self, value: Any) -> str:
        """What Python code gave, in words; no shell could be given it."""
        return "=".join((self.name, "None" if value is None else described(value)))

    def line(self) -> tuple[str, str]:
        """For the help: its name and meaning, with the choices and the default of a key."""
        if self.by_place:
            return self.name.upper(), self.help
        choices = f" ({' or '.join(self.choices)})" if self.choices else ""
        default = next((word for word, value in self.choices.items() if value == self.default), self.default)
        default = "none" if default in (None, "", []) else default
        return f"{self.name}=", self.help + choices + ("" if self.required else f" [{default}]")


def _words_of(options: type) -> list[_Word]:
    hints = typing.get_type_hints(options, include_extras=True)
    return [_Word(field, hints[field.name]) for field in dataclasses.fields(typing.cast(Any, options))]


def check_options(options: Any) -> None:
    """Hold a frozen dataclass of options to its types and rules, as a command line does; for its `__post_init__`.

    Raises:
        UserError: naming the field and what it must be.
    """
    for word in _words_of(type(options)):
        object.__setattr__(options, word.field, word.checked(getattr(options, word.field)))


class CommandLine(Generic[Options]):
    """A command line; the docstring of its options says what the command does.

    Args:
        name: as in `python -m NAME`. options: a dataclass, see above; lists at places may be empty.
        example: words that work. notes: the end of the help.
    """

    def __init__(self, name: str, options: type[Options], *, example: str = "", notes: str = "") -> None:
        self.name, self.options, self.example, self.notes = name, options, example, notes
        words = _words_of(options)
        self.overrides = next((word for word in words if word.name == "overrides"), None)
        self.keys = {word.name: word for word in words if not word.by_place and word is not self.overrides}
        # a list takes what the other places leave; what stands at a place may be named too
        places = sorted(words, key=lambda word: (word.is_list, not word.rules.leads))
        self.places = {word.name: word for word in places if word.by_place}
        self._named = self.keys | {name: word for name, word in self.places.items() if not word.is_list}

    def run(
        self,
        action: Callable[[Options], str | None],
        interrupted: str = "the same command starts over",
        *,
        data_on_stdout: bool = False,
    ) -> None:
        """Read the command line, carry out the action and print what it returns.

        Ends with status 0, 1 (a defect), 2 (the user can mend it) or 130 (Ctrl-C). `interrupted` says what to do then.
        With `data_on_stdout`, messages go to stderr, so that another program can read what the action writes.
        """
        set_up_console(on_stderr=data_on_stdout)
        with exit_statuses(interrupted):
            text = action(self.read(sys.argv[1:]))
            sys.stdout.write(f"{text}\n" if text else "")

    def read(self, arguments: Sequence[str]) -> Options:
        """Options out of a command's arguments; prints the help and exits if that is asked for.

        Raises:
            UserError: if an argument is unknown, missing, given twice or no value of its key.
        """
        values: dict[str, Any] = {}
        free: list[str] = []
        remaining = iter(arguments)
        for argument in remaining:
            if argument in ("-h", "--help") or [*arguments] == ["help"]:
                sys.stdout.write(self.help())
                sys.exit(0)
            name, text = self._setting(argument, remaining)
            if name in values:
                raise UserError(f"{name}= is given twice")
            if name:
                values[name] = self._named[name].value(re.sub(r"^(['\"])(.*)\1$", r"\2", text, flags=re.DOTALL))
            else:
                free.append(argument)
        if self.overrides:
            values["overrides"] = [each for each in free if "=" in each]
            free = [each for each in free if "=" not in each]
        waiting = {name: word for name, word in self.places.items() if name not in values}
        needed = sum(word.required and not word.is_list for word in waiting.values())
        for name, word in waiting.items():
            if word.rules.leads and len(free) <= needed:
                continue  # a word too few: it is this place that is left out
            if word.rules.leads and not free[0]:
                raise UserError(f"{name} is empty ({word.help})")
            if free:
                values[name], free = (free, []) if word.is_list else (word.value(free[0]), free[1:])
        if free:
            raise UserError(f"{free[0]!r} is one argument too many; {self._usage()}")
        for name, word in (self.places | self.keys).items():
            if word.required and name not in values:
                raise UserError(f"{name}{'' if word.by_place else '='} is missing ({word.help}); {self._usage()}")
            if word.is_list:
                values.setdefault(name, [])  # a fresh one
        fields = {word.name: word.field for word in (*self.places.values(), *self.keys.values())}
        return self.options(**{fields.get(name, name): value for name, value in values.items()})

    def _setting(self, argument: str, remaining: Iterator[str]) -> tuple[str, str]:
        """A key and its text, with dashes out of the next argument; the key is empty if it is none of the command.

        A text may hold a = too: it is refused only if it looks like a key and its value.
        """
        dashed = argument.startswith("--")
        name, equals, text = argument.removeprefix("--").partition("=")
        if dashed:
            name = name.replace("-", "_")
            name = next((key for key, word in self.keys.items() if word.rules.dashed == name), name)
            flag = name.removeprefix("no_")
            if not equals and flag in self.keys and self.keys[flag].type is bool:
                return flag, str(flag == name).lower()
        if name in self._named and (equals or (dashed and name in self.keys)):
            return name, text if equals else next(remaining, "")
        hint = did_you_mean(name, self.keys, show="{}=".format)
        if not dashed:
            takes_any = self.overrides or any(word.is_list for word in self.places.values())
            if takes_any or not _LIKE_A_KEY.fullmatch(argument):
                return "", ""
        there = f"; there are {', '.join(self.keys) or 'none'}"
        place = next((name for name in self._named if name not in self.keys), "") if not dashed else ""
        given = (
            f"; if it is no key, name its place: {shell_word('='.join((place, argument)))}"
            if place and not hint
            else ""
        )
        raise UserError(f"{self.name} has no key {name!r}{hint or there}{given}")

    def _usage(self) -> str:
        words = [f"{name}=..." for name, word in self.keys.items() if word.required]
        for name, word in self.places.items():
            words.append(f"[{name.upper()}]" if word.rules.leads else f"{name.upper()}{' ...' * word.is_list}")
        return " ".join(["usage: python -m", self.name, *words, "[KEY=VALUE ...]"])

    def help(self) -> str:
        """What the command does and which words it takes."""
        rows = [word.line() for word in (self.places | self.keys).values()]
        rows += [("KEY=VALUE", self.overrides.help)] if self.overrides else []
        width = max(len(name) for name, _ in rows)
        lines = [self._usage(), "", inspect.getdoc(self.options) or "", ""]
        lines += [f"  {name.ljust(width)}  {text}" for name, text in rows]
        lines += ["", f"example: python -m {self.name} {self.example}"] if self.example else []
        return "\n".join([*lines, self.notes]).rstrip() + "\n"
