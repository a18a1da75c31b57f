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

_BEGIN = re.compile(r"<!-- ([\w.-]+): ([\w, -]+) -->")
_END = "<!-- end -->"


def fill(page: Path, reports: Mapping[str, Document]) -> str:
    """The page's text with the parts of these reports written anew; marks of other reports stay as they are.

    Args:
        page: Markdown with marks; pictures are linked relative to its folder. reports: by the experiment's name.

    Raises:
        UserError: naming the line, for a mark without an end or a part that the report does not have; if the page has
            no mark of a report.
    """
    kept: list[str] = []
    inside: str | None = None
    missing = set(reports)
    said: set[str] = set()
    for number, line in enumerate(page.read_text(encoding="utf-8").splitlines(), 1):
        mark = _BEGIN.fullmatch(line.strip())
        if inside is not None and mark:
            raise UserError(f"{page}:{number}: {inside} has no line {_END} before the next mark")
        if mark and mark[1] in reports:
            inside = mark[0]
            missing.discard(mark[1])
            wanted = [name.strip() for name in mark[2].split(",")]
            kept += [line, "", _parts(reports[mark[1]], wanted, page, number, said), ""]
        elif inside is None:
            kept.append(line)
            said.add(line.strip("*"))
        elif line.strip() == _END:
            inside = None
            kept.append(line)
    if inside is not None:
        raise UserError(f"{page}: {inside} has no line {_END} after it")
    if missing:
        name = min(missing)
        raise UserError(f"{page} has no mark for {name}, as in: <!-- {name}: sentences, scores --> and, below, {_END}")
    return "\n".join(kept) + "\n"


def _parts(report: Document, wanted: list[str], page: Path, number: int, said: set[str]) -> str:
    known: dict[str, Block] = {}
    for block in report.blocks:
        if isinstance(block, Table) or (isinstance(block, Text) and block.name):
            known[block.name] = block
        elif isinstance(block, Picture):
            known[block.svg.stem] = block
    for name in wanted:
        if name not in known:
            raise UserError(f"{page}:{number}: the report has no part {name!r}; it has {', '.join(known)}")
    chosen = []
    for name in wanted:
        block = known[name]
        if isinstance(block, Table):
            block = replace(block, caption="" if block.caption in said else block.caption)
            said.add(block.caption)
        chosen.append(block)
    return to_markdown(Document(report.title, chosen), page.parent).rstrip("\n")
