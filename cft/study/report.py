"""A study's report: put together, rendered, written in every format."""

from pathlib import Path
from typing import Literal

from cft.config.compose import compose_config, flatten
from cft.study import spec
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
    """Write the reports of some studies, and of several one page for all; otherwise as `write_each`.

    Args:
        names, scale, overrides: as `write_each` takes them. into: a page that marks which parts of them it holds.

    Returns:
        The report, and the HTML page that holds it.
    """
    reports = write_each(names, scale, overrides)
    joined = _joined(reports, scale, overrides)
    if into:
        write_text(into, fill(into, {name: document for name, (document, _) in reports.items()}))
    return joined


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
        raise UserError(f"name an experiment: {', '.join(spec.available())}, all, or a .yaml file")
    outputs = spec.outputs_of(overrides)
    return {Path(name).stem: _one(name, scale, overrides, outputs) for name in names}


def _joined(reports: dict[str, tuple[Document, Path]], scale: str, overrides: list[str]) -> tuple[Document, Path]:
    if len(reports) == 1:
        return next(iter(reports.values()))
    outputs = spec.outputs_of(overrides)
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
    from cft.study.plan import study_folder

    told = spec.load(name, scale, overrides, check_inputs=False)
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
    values = flatten(to_plain(compose_config(spec.common_overrides(scale, overrides))))
    rows: list[Row] = [("setting", "key", "here", "paper", "")]
    for key, label, paper in told.rows:
        if key not in values:
            raise UserError(f"experiment {told.name}: rows name {key!r}, which is no key of the configuration")
        here = values[key]
        rows.append((label, key, here, paper, "same" if here == paper else "differs"))
    caption = f"The configuration at this scale ({told.about_scale}) beside the paper's."
    return [Heading(told.title), Text([told.question]), Table("configuration", caption, rows)]


def _study(name: str, scale: str, overrides: list[str], folder: Path) -> list[Block]:
    from cft.study import findings, pack, plan, sections

    frozen = plan.load(folder)
    if frozen and frozen.packed:
        frozen = pack.moved(frozen, spec.outputs_of(overrides))
        pack.restore(frozen, overrides)
        overrides = [entry for entry in overrides if entry.partition("=")[0] not in pack.PLACES]
    try:
        given = [*(frozen.overrides if frozen else []), *overrides]
        seeds = frozen.seeds if frozen else []
        fresh = plan.compose_study(spec.load(name, scale, given), given, seeds, compose_config)
    except UserError:
        if frozen is None:
            raise
        fresh = frozen  # what was run can be shown whatever became of the files
    stale = plan.differences(frozen, fresh) if frozen else []
    return sections.blocks(findings.collect(frozen or fresh, stale), folder)
