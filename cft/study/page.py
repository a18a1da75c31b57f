"""Reports inside a page of one's own: what stands between two marks is written anew, the rest stays.

    <!-- table2: sentences, scores, sets -->
    this is replaced by those three parts of table2's report
    <!-- end -->

A part is a table or a picture by the name of its file, or `sentences`, the verdicts in words. What stands under a table
is said once a page, under the first that it goes with.
"""

import re
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

from cft.study.document import Block, Document, Picture, Table, Text, to_markdown
from cft.system.errors import UserError

_BEGIN = re.compile(r"<!-- ([^:]+): ([\w, -]+) -->")
_END = "<!-- end -->"


def fill(page: Path, reports: Mapping[str, Document]) -> str:
    """The page's text with the parts of these reports written anew; marks of other reports stay as they are.

    Args:
        page: Markdown with marks; pictures are linked relative to its folder. reports: by the experiment's name.

    Raises:
        UserError: naming the line, for a mark without an end or a part that the report does not have; if the page has
            no mark of a report.
    """
    lines: list[str] = []
    mark: str | None = None  # whose end is still to come
    unmarked = set(reports)
    captions: set[str] = set()  # that the page has already, among all its other lines
    for number, line in enumerate(_read(page).split("\n"), 1):
        begin = _BEGIN.fullmatch(line.strip())
        if mark is not None and begin:
            raise UserError(f"{page}:{number}: {mark} has no line {_END} before the next mark")
        if begin and begin[1] in reports:
            mark, name = begin[0], begin[1]
            unmarked.discard(name)
            parts = _parts(reports[name], begin[2].split(","), captions, where=f"{page}:{number}")
            end = "\r" if line.endswith("\r") else ""
            written = ["", *to_markdown(Document(reports[name].title, parts), page.parent).split("\n")]
            lines += [line, *(each + end for each in written)]
        elif mark is None:
            lines.append(line)
            captions.add(line.rstrip("\r").strip("*"))
        elif line.strip() == _END:
            mark = None
            lines.append(line)
    if mark is not None:
        raise UserError(f"{page}: {mark} has no line {_END} after it")
    if unmarked:
        name = min(unmarked)
        raise UserError(f"{page} has no mark for {name}, as in: <!-- {name}: sentences, scores --> and, below, {_END}")
    return "\n".join(lines)


def _read(page: Path) -> str:
    """The page's text, its ends of lines as they are."""
    try:
        return page.read_bytes().decode()
    except UnicodeDecodeError as error:
        raise UserError(f"{page} is not in UTF-8 (byte {error.start + 1}): save it so, and give it again") from error


def _parts(report: Document, names: list[str], captions: set[str], *, where: str) -> list[Block]:
    """Parts of a report by name, without captions that the page has already; the others are added to those."""
    parts: dict[str, Block] = {}
    for block in report.blocks:
        if isinstance(block, Table) or (isinstance(block, Text) and block.name):
            parts[block.name] = block
        elif isinstance(block, Picture):
            parts[block.svg.stem] = block
    chosen: list[Block] = []
    for name in map(str.strip, names):
        if name not in parts:
            raise UserError(f"{where}: the report has no part {name!r}; it has {', '.join(parts)}")
        block = parts[name]
        if isinstance(block, Table):
            block = replace(block, caption="" if block.caption in captions else block.caption)
            captions.add(block.caption)
        chosen.append(block)
    return chosen
