"""Show studies beside the paper: `python -m cft.report EXPERIMENT... [scale=SCALE] [KEY=VALUE ...]`.

Every report is also written into the study's folder: Markdown, one self-contained HTML page, CSV, LaTeX, SVG and PNG.
`into=PAGE.md` also writes parts of it into a page that marks their places (cft/study/page.py).
"""

import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

from cft.config.command_line import CommandLine
from cft.study.arguments import StudyOptions
from cft.study.report import Format, render, write
from cft.system.errors import UserError


@dataclass(frozen=True, kw_only=True)
class ReportOptions(StudyOptions):
    """Show studies beside the paper's numbers."""

    format: Annotated[Format, "what is printed; all are written"] = "text"
    into: Annotated[Path | None, "a page (.md) that marks which parts of reports it holds"] = None


COMMAND = CommandLine("cft.report", ReportOptions, example="table4 table6 scale=small format=latex")


def main() -> None:
    """Run the command line."""
    COMMAND.run(_report, "the same command writes the report anew")


def _report(options: ReportOptions) -> None:
    if options.into and not options.into.is_file():
        raise UserError(f"--into {options.into}: there is no such page")
    document, page = write(options.names, options.scale, options.overrides, into=options.into)
    sys.stdout.write(render(document, options.format))
    if options.format == "text":
        sys.stdout.write(
            f"\nwritten: {page} (one page, opens without a network), with .md, .csv, .tex, .svg and .png beside\n"
        )


if __name__ == "__main__":
    main()
