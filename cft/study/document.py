"""A report as a list of blocks, and its renderings: a terminal, Markdown, and one HTML page that needs no network."""

import base64
import html
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from cft.system.tables import Row, as_markdown, as_text


@dataclass(frozen=True)
class Heading:
    """Of a part, from level 1 (the whole report) down."""

    text: str
    level: int = 2


@dataclass(frozen=True)
class Text:
    """A paragraph, or a list if there are several entries. name: by which it can be asked for, if it has one."""

    entries: list[str]
    name: str = ""


@dataclass(frozen=True)
class Table:
    """name: of its files. caption: what its numbers are. rows: the header first."""

    name: str
    caption: str
    rows: Sequence[Row]


@dataclass(frozen=True)
class Picture:
    """caption: what it shows. svg: its file; a PNG of the same name stands beside it."""

    caption: str
    svg: Path


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
            parts.append(f"\n{block.text}\n{'=' * len(block.text) if block.level == 1 else '-' * len(block.text)}")
        elif isinstance(block, Text):
            parts.append(_paragraph(block))
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
            parts.append(_paragraph(block))
        elif isinstance(block, Table):
            caption = f"\n\n*{block.caption}*" if block.caption else ""
            parts.append(as_markdown(block.rows) + caption)
        else:
            path = block.svg.with_suffix(".png")
            link = path.relative_to(folder) if path.is_relative_to(folder) else path
            parts.append(f"![{block.caption}]({link})")
    return "\n\n".join(parts) + "\n"


_STYLE = """
body { font: 16px/1.5 system-ui, sans-serif; color: #1d2530; max-width: 62rem; margin: 2rem auto; padding: 0 1rem }
h1 { font-size: 1.7rem } h2 { font-size: 1.35rem; margin-top: 2.5rem; border-top: 1px solid #e3e8ed; padding-top: 1rem }
h3 { font-size: 1.05rem; margin-bottom: .3rem }
table { border-collapse: collapse; font-size: .9rem; font-variant-numeric: tabular-nums; margin: .6rem 0 .2rem }
th, td { padding: .25rem .7rem; border-bottom: 1px solid #e3e8ed; text-align: right; white-space: nowrap }
th:first-child, td:first-child { text-align: left } thead th { border-bottom: 2px solid #9aa5b1 }
tr.last td { font-weight: 600 }
.scroll { overflow-x: auto } .caption, figcaption { color: #5b6770; font-size: .85rem }
figure { margin: 1.2rem 0 } img { max-width: 100%; height: auto }
.higher { color: #1c7a45 } .lower { color: #b3402a } .missing { color: #b3402a; font-style: italic }
"""


def to_html(document: Document) -> str:
    """One page that holds its pictures and its style; all text is escaped."""
    parts = [_as_html(block) for block in document.blocks]
    policy = "default-src 'none'; img-src data:; style-src 'unsafe-inline'"
    return (
        '<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        f"<title>{html.escape(document.title)}</title>\n"
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f'<meta http-equiv="Content-Security-Policy" content="{policy}">\n<style>{_STYLE}</style>\n</head>\n<body>\n'
        + "\n".join(parts)
        + "\n</body>\n</html>\n"
    )


def _as_html(block: Block) -> str:
    if isinstance(block, Heading):
        return f"<h{block.level}>{html.escape(block.text)}</h{block.level}>"
    if isinstance(block, Text):
        if len(block.entries) == 1:
            return f"<p>{html.escape(block.entries[0])}</p>"
        return "<ul>" + "".join(f"<li>{html.escape(entry)}</li>" for entry in block.entries) + "</ul>"
    if isinstance(block, Table):
        header, *rows = block.rows
        head = "".join(f"<th>{html.escape(cell)}</th>" for cell in header)
        body = "\n".join(_row(row) for row in rows)
        return (
            f'<div class="scroll"><table><thead><tr>{head}</tr></thead><tbody>\n{body}\n</tbody></table></div>\n'
            f'<p class="caption">{html.escape(block.caption)}</p>'
        )
    picture = base64.b64encode(block.svg.read_bytes()).decode()
    caption = html.escape(block.caption)
    image = f'<img src="data:image/svg+xml;base64,{picture}" alt="{caption}">'
    return f"<figure>{image}<figcaption>{caption}</figcaption></figure>"


def _row(row: Row) -> str:
    return "<tr>" + "".join(f"<td{_class(cell)}>{html.escape(cell)}</td>" for cell in row) + "</tr>"


def _class(cell: str) -> str:
    """A verdict or a gap stands out."""
    for word in ("higher", "lower", "missing", "failed", "stale"):
        if cell.startswith(word) or cell.endswith(f"({word})"):
            return f' class="{word if word in ("higher", "lower") else "missing"}"'
    return ""


def _paragraph(text: Text) -> str:
    return text.entries[0] if len(text.entries) == 1 else "\n".join(f"- {entry}" for entry in text.entries)
