"""A report as a list of blocks, and its renderings: a terminal, Markdown, and one HTML page that needs no network."""

import base64
import os
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from urllib.parse import quote

from jinja2 import Environment
from markupsafe import Markup

from cft.system.tables import Row, as_markdown, as_text


@dataclass(frozen=True)
class Heading:
    """Title of a part."""

    text: str
    level: int = 2  # 1 for the whole report


@dataclass(frozen=True)
class Text:
    """A paragraph, or a list if there are several entries."""

    entries: list[str]
    name: str = ""  # by which pages ask for it

    def __str__(self) -> str:
        return self.entries[0] if len(self.entries) == 1 else "\n".join(f"- {entry}" for entry in self.entries)


@dataclass(frozen=True)
class Table:
    """A table with what its numbers are."""

    name: str  # of its files
    caption: str
    rows: Sequence[Row]  # the header first


@dataclass(frozen=True)
class Picture:
    """A figure with what it shows."""

    caption: str
    svg: Path  # a PNG of the same name stands beside it

    @property
    def base64(self) -> str:
        """The picture as a page holds it."""
        return base64.b64encode(self.svg.read_bytes()).decode()


Block = Heading | Text | Table | Picture


@dataclass
class Document:
    """Blocks in order."""

    title: str
    blocks: list[Block] = field(default_factory=list)

    def tables(self) -> list[Table]:
        """All tables."""
        return [block for block in self.blocks if isinstance(block, Table)]


def to_text(document: Document) -> str:
    """For a terminal; pictures are named."""
    parts = []
    for block in document.blocks:
        if isinstance(block, Heading):
            parts.append(f"\n{block.text}\n{('=' if block.level == 1 else '-') * len(block.text)}")
        elif isinstance(block, Text):
            parts.append(str(block))
        elif isinstance(block, Table):
            parts.append(f"{as_text(block.rows)}\n({block.caption})")
        else:
            parts.append(f"picture: {block.svg.with_suffix('.png')}")
    return "\n\n".join(parts).strip() + "\n"


def to_markdown(document: Document, folder: Path) -> str:
    """For a repository; pictures are linked relative to `folder`."""
    parts = []
    for block in document.blocks:
        if isinstance(block, Heading):
            parts.append(f"{'#' * block.level} {block.text}")
        elif isinstance(block, Text):
            parts.append(str(block))
        elif isinstance(block, Table):
            parts.append(as_markdown(block.rows) + (f"\n\n*{block.caption}*" if block.caption else ""))
        else:
            link = Path(os.path.relpath(block.svg.with_suffix(".png"), folder)).as_posix()
            parts.append(f"![{block.caption}]({quote(link)})")
    return "\n\n".join(parts) + "\n"


_TEMPLATE = Path(__file__).with_name("report.html.jinja")


def to_html(document: Document) -> str:
    """One page that holds its pictures and its style; all text is escaped."""
    environment = Environment(autoescape=True, trim_blocks=True, keep_trailing_newline=True)
    environment.filters["mark"] = _mark
    template = environment.from_string(_TEMPLATE.read_text(encoding="utf-8"))
    return template.render(title=document.title, blocks=[(type(block).__name__, block) for block in document.blocks])


def _mark(cell: str) -> Markup:
    """The class of a table's cell: a verdict or a gap stands out."""
    for word in ("higher", "lower", "missing", "failed", "stale"):
        if cell.startswith(word) or cell.endswith(f"({word})"):
            return Markup(f' class="{word if word in ("higher", "lower") else "missing"}"')
    return Markup()
