"""Show studies beside the paper: `python -m cft.report EXPERIMENT... [--scale SCALE] [KEY=VALUE ...]`.

Every report is also written into the study's folder: Markdown, one self-contained HTML page, CSV, LaTeX, SVG and PNG.
`--into PAGE.md` writes parts of it into a page that says where (cft/study/page.py).
"""

import argparse
import sys
from pathlib import Path

from cft.study.arguments import add_arguments, split_arguments
from cft.study.report import FORMATS, render, write
from cft.system.console import exit_statuses, set_up_console
from cft.system.errors import UserError


def main() -> None:
    """Run the command line and end with status 0, 1 (a defect) or 2 (the user can mend it)."""
    set_up_console()
    parser = argparse.ArgumentParser(
        prog="python -m cft.report", description="Show studies beside the paper's numbers."
    )
    add_arguments(parser)
    parser.add_argument("--format", choices=FORMATS, default="text", help="what is printed; all are written")
    parser.add_argument("--into", type=Path, metavar="PAGE.md", help="also write parts into a page that marks them")
    arguments = parser.parse_intermixed_args()
    with exit_statuses("the same command writes the report anew"):
        names, overrides = split_arguments(arguments.what)
        if arguments.into and not arguments.into.is_file():
            raise UserError(f"--into {arguments.into}: there is no such page")
        document, page = write(names, arguments.scale, overrides, into=arguments.into)
    sys.stdout.write(render(document, arguments.format))
    if arguments.format == "text":
        sys.stdout.write(
            f"\nwritten: {page} (one page, opens without a network), with .md, .csv, .tex, .svg and .png beside\n"
        )


if __name__ == "__main__":
    main()
