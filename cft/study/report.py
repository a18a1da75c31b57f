"""A study's report: put together, rendered, written in every format."""

from dataclasses import replace
from pathlib import Path
from typing import Literal

from cft.config.compose import compose_config, flatten
from cft.study import spec
from cft.study.arguments import outputs_of
from cft.study.document import Block, Document, Heading, Table, Text, to_html, to_markdown, to_text
from cft.study.page import fill
from cft.study.spec import Experiment
from cft.system.digest import to_plain
from cft.system.errors import UserError
from cft.system.files import write_text
from cft.system.tables import Row, as_csv, as_latex

Format = Literal["text", "markdown", "csv", "latex"]


def render(document: Document, form: Format) -> str:
    """A report in a format; csv and latex hold its tables alone."""
    if form == "text":
        return to_text(document)
    if form == "markdown":
        return to_markdown(document, Path())
    if form == "csv":
        return "\n".join(as_csv(table.rows) for table in document.tables())
    return "\n".join(as_latex(table.rows, table.caption) for table in document.tables())


def write(names: list[str], scale: str, overrides: list[str], *, into: Path | None = None) -> tuple[Document, Path]:
    """Write the reports of some studies, and of several one page for all.

    Args:
        names: of experiments.
        scale: of all.
        overrides: as given when they were run.
        into: a page that marks which parts of the reports it holds; they are written anew.

    Returns:
        The report, and the HTML page that holds it.

    Raises:
        UserError: for whatever the user can mend.
    """
    if not names:
        raise UserError(f"name an experiment: {', '.join(spec.available())}, all, or a .yaml file")
    reports = {Path(name).stem: _write_one(name, scale, overrides) for name in names}
    if into:
        write_text(into.resolve(), fill(into, {name: document for name, (document, _) in reports.items()}))
    if len(reports) == 1:
        return next(iter(reports.values()))
    blocks: list[Block] = [Heading(f"Studies at scale {Path(scale).stem}", 1)]
    for document, page in reports.values():
        # tables on the same pairs have the same overlaps: once is enough
        blocks += [block for block in document.blocks if not (_is_of_overlaps(block) and block in blocks)]
        studies = page.parent.parent
    return _write_pages(
        Document(f"cft studies, scale {Path(scale).stem}", blocks), studies / f"report-{Path(scale).stem}.html"
    )


def _is_of_overlaps(block: Block) -> bool:
    return isinstance(block, Table) and block.name in ("overlap", "without_overlap")


def _write_pages(document: Document, page: Path) -> tuple[Document, Path]:
    write_text(page, to_html(document))
    write_text(page.with_suffix(".md"), to_markdown(document, page.parent))
    return document, page


def _write_one(name: str, scale: str, overrides: list[str]) -> tuple[Document, Path]:
    from cft.study.plan import study_folder  # torch takes seconds to import, and a typo should be told before

    experiment = spec.load(name, scale, overrides, check_inputs=False)
    first = experiment.cells[0].overrides if experiment.cells else spec.common_overrides(scale, overrides)
    outputs = outputs_of(first)  # which the scale may name too
    folder = study_folder(outputs, f"{experiment.name}-{experiment.scale}")
    if experiment.layout == "config":
        blocks = _configuration(experiment, scale, overrides)
    else:
        blocks = _study(name, scale, overrides, outputs, folder)
    document = Document(experiment.title, blocks)
    for table in document.tables():
        write_text(folder / f"{table.name}.csv", as_csv(table.rows))
        write_text(folder / f"{table.name}.tex", as_latex(table.rows, f"{experiment.title}. {table.caption}"))
    return _write_pages(document, folder / "report.html")


def _configuration(experiment: Experiment, scale: str, overrides: list[str]) -> list[Block]:
    """What the configuration says beside what the paper says."""
    values = flatten(to_plain(compose_config(spec.common_overrides(scale, overrides))))
    rows: list[Row] = [("setting", "key", "here", "paper", "")]
    for key, label, paper in experiment.rows:
        if key not in values:
            raise UserError(f"experiment {experiment.name}: rows name {key!r}, which is no key of the configuration")
        rows.append((label, key, values[key], paper, "same" if values[key] == paper else "differs"))
    caption = f"The configuration at this scale ({experiment.about_scale}) beside the paper's."
    return [Heading(experiment.title), Text([experiment.question]), Table("configuration", caption, rows)]


def _study(name: str, scale: str, overrides: list[str], outputs: Path, folder: Path) -> list[Block]:
    from cft.study import findings, pack, plan, sections

    frozen = plan.load(folder) or pack.unpack(outputs, folder.name)
    if frozen and frozen.packed:
        pack.restore(frozen, overrides)
        overrides = [entry for entry in overrides if entry.partition("=")[0] not in pack.READERS_FILES]
    try:
        given = [*(frozen.overrides if frozen else []), *overrides]
        seeds = frozen.seeds if frozen else []
        fresh = plan.compose_study(spec.load(name, scale, given), given, seeds, compose_config)
    except UserError:
        if frozen is None:
            raise
        fresh = frozen  # what was run can be shown whatever became of the files
    stale = plan.differences(frozen, fresh) if frozen else []
    if frozen and not stale and not frozen.packed:  # what is compared, and the words, are as the files say by now
        frozen = replace(frozen, experiment=fresh.experiment)
    return sections.blocks(findings.collect(frozen or fresh, stale), folder)
