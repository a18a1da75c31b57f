"""Writes docs/api.md, the library's page, out of the docstrings: python docs/write_api.py."""

import inspect
from pathlib import Path
from typing import Any

import cft

PAGE = Path(__file__).with_name("api.md")

_HEAD = """# In Python

What `import cft` gives. Commands are in [Recipes](recipes.md). What is wrong with what is given is a
`cft.system.errors.UserError` that names it. This page is written out of the docstrings by `docs/write_api.py`.
"""


def page() -> str:
    """The page's text."""
    parts = [_HEAD]
    for name in sorted(cft.__all__, key=str.casefold):
        member = getattr(cft, name)
        if inspect.isclass(member):
            parts.append(_section(f"cft.{name}", member, level=2))
            parts += [_section(f"cft.{name}.{own}", each, level=3) for own, each in _methods(member)]
        elif callable(member):
            parts.append(_section(f"cft.{name}", member, level=2))
        else:
            parts.append(f"## cft.{name}\n\nThe version of the package.\n")
    return "\n".join(parts)


def _methods(kind: type) -> list[tuple[str, Any]]:
    """Public methods and properties of its own, in the order in which they are written."""
    found = []
    for name, member in vars(kind).items():
        own = member.__func__ if isinstance(member, classmethod | staticmethod) else member
        if not name.startswith("_") and (inspect.isfunction(own) or isinstance(own, property)):
            found.append((name, own))
    return found


def _section(name: str, member: Any, *, level: int) -> str:
    documented = inspect.getdoc(member) or ""
    signature = "" if isinstance(member, property) else f"    {name.rpartition('.')[2]}({_parameters(member)})\n\n"
    return f"{'#' * level} {name}\n\n{signature}```text\n{documented}\n```\n"


def _parameters(member: Any) -> str:
    """Names and defaults; types are in the docstring, in words."""
    words: list[str] = []
    for each in inspect.signature(member.__init__ if inspect.isclass(member) else member).parameters.values():
        if each.name in ("self", "cls"):
            continue
        if each.kind is each.KEYWORD_ONLY and "*" not in words:
            words.append("*")
        words.append(each.name if each.default is each.empty else f"{each.name}={each.default!r}")
    return ", ".join(words)


if __name__ == "__main__":
    PAGE.write_text(page(), encoding="utf-8")
    print(f"written: {PAGE}")
