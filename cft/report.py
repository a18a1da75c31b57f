"""Show studies beside the paper: `python -m cft.report EXPERIMENT... [--scale SCALE] [KEY=VALUE ...]`.

Every report is also written into the study's folder: Markdown, one self-contained HTML page, CSV, LaTeX, SVG and PNG.
`--into PAGE.md` writes parts of it into a page that says where (cft/page.py).
"""

import argparse
import sys
from pathlib import Path

from cft import experiment
from cft.config import compose_config, flat
from cft.console import exit_statuses, set_up_console
from cft.document import Block, Document, Heading, Table, Text, to_html, to_markdown, to_text
from cft.errors import UserError
from cft.experiment import Experiment
from cft.page import fill
from cft.store import plain, write_text
from cft.tables import Row, as_csv, as_latex

FORMATS = ("text", "markdown", "csv", "latex")


def main() -> None:
    """Run the command line and end with status 0, 1 (a defect) or 2 (the user can mend it)."""
    set_up_console()
    parser = argparse.ArgumentParser(
        prog="python -m cft.report", description="Show studies beside the paper's numbers."
    )
    experiment.add_arguments(parser)
    parser.add_argument("--format", choices=FORMATS, default="text", help="what is printed; all are written")
    parser.add_argument("--into", type=Path, metavar="PAGE.md", help="also write parts into a page that marks them")
    arguments = parser.parse_intermixed_args()
    with exit_statuses("the same command writes the report anew"):
        names, overrides = experiment.split_arguments(arguments.what)
        if arguments.into and not arguments.into.is_file():
            raise UserError(f"--into {arguments.into}: there is no such page")
        reports = write_each(names, arguments.scale, overrides)
        document, page = _joined(reports, arguments.scale, overrides)
        if arguments.into:
            write_text(arguments.into, fill(arguments.into, {name: report for name, (report, _) in reports.items()}))
    sys.stdout.write(render(document, arguments.format))
    if arguments.format == "text":
        sys.stdout.write(
            f"\nwritten: {page} (one page, opens without a network), with .md, .csv, .tex, .svg and .png beside\n"
        )


def render(document: Document, form: str) -> str:
    """A report in one of FORMATS; csv and latex hold its tables alone."""
    if form == "text":
        return to_text(document)
    if form == "markdown":
        return to_markdown(document, Path())
    if form == "csv":
        return "\n".join(as_csv(table.rows) for table in document.tables())
    return "\n".join(as_latex(table.rows, table.caption) for table in document.tables())


def write(names: list[str], scale: str, overrides: list[str]) -> tuple[Document, Path]:
    """Write the reports of some studies, and of several one page for all; otherwise as `write_each`.

    Returns:
        The report, and the HTML page that holds it.
    """
    return _joined(write_each(names, scale, overrides), scale, overrides)


def write_each(names: list[str], scale: str, overrides: list[str]) -> dict[str, tuple[Document, Path]]:
    """Write the reports of some studies.

    Args:
        names: of experiments. scale: of all. overrides: as given when they were run.

    Returns:
        By the experiment's name, the report and the HTML page that holds it.

    Raises:
        UserError: for whatever the user can mend.
    """
    if not names:
        raise UserError(f"name an experiment: {', '.join(experiment.known())}, all, or a .yaml file")
    outputs = experiment.outputs_of(overrides)
    return {Path(name).stem: _one(name, scale, overrides, outputs) for name in names}


def _joined(reports: dict[str, tuple[Document, Path]], scale: str, overrides: list[str]) -> tuple[Document, Path]:
    if len(reports) == 1:
        return next(iter(reports.values()))
    outputs = experiment.outputs_of(overrides)
    blocks: list[Block] = [Heading(f"Studies at scale {Path(scale).stem}", 1)]
    for document, _ in reports.values():
        # tables on the same pairs have the same overlaps: once is enough
        blocks += [block for block in document.blocks if not (isinstance(block, Table) and block in blocks)]
    whole = Document(f"cft studies, scale {Path(scale).stem}", blocks)
    page = outputs / "studies" / f"report-{Path(scale).stem}.html"
    write_text(page, to_html(whole))
    write_text(page.with_suffix(".md"), to_markdown(whole, page.parent))
    return whole, page


def _one(name: str, scale: str, overrides: list[str], outputs: Path) -> tuple[Document, Path]:
    from cft.study_plan import study_folder

    told = experiment.load(name, scale, overrides, check_inputs=False)
    folder = study_folder(outputs, f"{told.name}-{told.scale}")
    if told.layout == "config":
        blocks = _configuration(told, scale, overrides)
    else:
        blocks = _study(name, scale, overrides, folder)
    document = Document(told.title, blocks)
    for table in document.tables():
        write_text(folder / f"{table.name}.csv", as_csv(table.rows))
        write_text(folder / f"{table.name}.tex", as_latex(table.rows, f"{told.title}. {table.caption}"))
    write_text(folder / "report.md", to_markdown(document, folder))
    write_text(folder / "report.html", to_html(document))
    return document, folder / "report.html"


def _configuration(told: Experiment, scale: str, overrides: list[str]) -> list[Block]:
    """What the configuration says beside what the paper says."""
    values = flat(plain(compose_config(experiment.common_overrides(scale, overrides))))
    rows: list[Row] = [("setting", "key", "here", "paper", "")]
    for key, label, paper in told.rows:
        if key not in values:
            raise UserError(f"experiment {told.name}: rows name {key!r}, which is no key of the configuration")
        here = values[key]
        rows.append((label, key, here, paper, "same" if here == paper else "differs"))
    caption = f"The configuration at this scale ({told.about_scale}) beside the paper's."
    return [Heading(told.title), Text([told.question]), Table("configuration", caption, rows)]


def _study(name: str, scale: str, overrides: list[str], folder: Path) -> list[Block]:
    from cft import findings, study_pack, study_plan, study_report

    frozen = study_plan.load(folder)
    if frozen and frozen.packed:
        frozen = study_pack.moved(frozen, experiment.outputs_of(overrides))
        study_pack.restore(frozen, overrides)
        overrides = [entry for entry in overrides if entry.partition("=")[0] not in study_pack.PLACES]
    try:
        given = [*(frozen.overrides if frozen else []), *overrides]
        seeds = frozen.seeds if frozen else []
        fresh = study_plan.compose_study(experiment.load(name, scale, given), given, seeds, compose_config)
    except UserError:
        if frozen is None:
            raise
        fresh = frozen  # what was run can be shown whatever became of the files
    stale = study_plan.differences(frozen, fresh) if frozen else []
    return study_report.blocks(findings.collect(frozen or fresh, stale), folder)


if __name__ == "__main__":
    main()
