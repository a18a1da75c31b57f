"""Commands that are told KEY=VALUE, as the main one is, but have few keys and no groups."""

import re
import sys
from collections.abc import Sequence
from dataclasses import dataclass, field

from cft.system.errors import UserError
from cft.system.text import did_you_mean


@dataclass(frozen=True)
class Key:
    """One KEY=VALUE. default: its value if it is not given; None if it must be. choices: its values, if few."""

    help: str
    default: str | None = None
    choices: tuple[str, ...] = ()


@dataclass(frozen=True)
class Command:
    """A command line.

    name: as in `python -m NAME`. purpose: one sentence. keys: by name. places: what is given by its place, in order,
    with a line of help each. example: arguments that work.
    """

    name: str
    purpose: str
    keys: dict[str, Key]
    places: dict[str, str] = field(default_factory=dict)
    example: str = ""

    def read(self, given: Sequence[str]) -> dict[str, str]:
        """Values by key and place; prints the help and exits if that is asked for.

        Raises:
            UserError: if something is unknown, missing, given twice or no value that its key can have.
        """
        if any(entry in ("-h", "--help", "help") for entry in given):
            sys.stdout.write(self.help())
            sys.exit(0)
        found: dict[str, str] = {}
        free: list[str] = []
        for entry in given:
            name = self._key_of(entry)
            if name is None:
                free.append(entry)
            elif name in found:
                raise UserError(f"{name}= is given twice")
            else:
                found[name] = self._checked(name, entry.partition("=")[2])
        return self._placed(free) | self._with_defaults(found)

    def _key_of(self, entry: str) -> str | None:
        """The key that an argument sets; None for one that is taken by its place, which may hold a = too."""
        match = re.match(r"([a-z_]+)=", entry)
        if match is None or match[1] in self.keys:
            return match[1] if match else None
        guess = did_you_mean(match[1], self.keys, show="{}=".format)
        if guess or not self.places:
            hint = guess or f"; there are {', '.join(f'{key}=' for key in self.keys)}"
            raise UserError(f"{self.name} has no key {match[1]!r}{hint}")
        return None

    def _checked(self, name: str, value: str) -> str:
        choices = self.keys[name].choices
        if choices and value not in choices:
            raise UserError(f"{name}={value}: must be {' or '.join(choices)}")
        return value

    def _placed(self, free: list[str]) -> dict[str, str]:
        names = list(self.places)
        if len(free) > len(names):
            raise UserError(f"{free[len(names)]!r} is one argument too many; {self._usage()}")
        if len(free) < len(names):
            missing = names[len(free)]
            raise UserError(f"{missing} is missing ({self.places[missing]}); {self._usage()}")
        return dict(zip(names, free, strict=True))

    def _with_defaults(self, found: dict[str, str]) -> dict[str, str]:
        for name, key in self.keys.items():
            if name not in found and key.default is None:
                raise UserError(f"{name}= is missing ({key.help}); {self._usage()}")
        return {name: found.get(name, key.default or "") for name, key in self.keys.items()}

    def _usage(self) -> str:
        needed = [f"{name}=..." for name, key in self.keys.items() if key.default is None]
        return " ".join(
            ["usage: python -m", self.name, *needed, *(name.upper() for name in self.places), "[KEY=VALUE ...]"]
        )

    def help(self) -> str:
        """What the command can be told."""
        rows = [(name.upper(), text) for name, text in self.places.items()]
        for name, key in self.keys.items():
            more = f" ({' or '.join(key.choices)})" if key.choices else ""
            default = "" if key.default is None else f" [{key.default or 'none'}]"
            rows.append((f"{name}=", f"{key.help}{more}{default}"))
        width = max(len(name) for name, _ in rows)
        lines = [f"{self._usage()}\n", self.purpose, "", *(f"  {name.ljust(width)}  {text}" for name, text in rows)]
        lines += ["", f"example: python -m {self.name} {self.example}"] if self.example else []
        return "\n".join(lines) + "\n"


def whole_number(name: str, value: str, *, least: int = 1) -> int:
    """A key's value as an integer.

    Raises:
        UserError: if it is none, or too small.
    """
    if not re.fullmatch(r"\d+", value) or int(value) < least:
        raise UserError(f"{name}={value}: must be a whole number, {least} or more")
    return int(value)
