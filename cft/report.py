"""What a job found, as a table for people: before and after, set by set."""

from collections.abc import Sequence

from cft.evaluator import Evaluation

HEADER = ("set", "pairs", "before", "after", "change")


def rows(before: Evaluation, after: Evaluation | None) -> list[tuple[str, ...]]:
    """Cells of the before/after table; without an `after` the last two columns stay empty."""
    table: list[tuple[str, ...]] = []
    for name, score in before.scores.items():
        tuned = None if after is None else after.scores[name]
        table.append((name, str(len(before.cosines[name])), f"{score:.2f}", *_change(score, tuned)))
    if len(before.scores) > 1:
        overall = (f"{e.mean:.2f} ± {e.deviation:.2f}" if e else "" for e in (before, after))
        table.append(("mean over sets", "", *overall, f"{after.mean - before.mean:+.2f}" if after else ""))
    if before.triplet_accuracy is not None:
        tuned = None if after is None or after.triplet_accuracy is None else 100 * after.triplet_accuracy
        share = 100 * before.triplet_accuracy
        count = str(len(before.positives))
        table.append(("held-out triplets in order, %", count, f"{share:.2f}", *_change(share, tuned)))
    return table


def _change(before: float, after: float | None) -> tuple[str, str]:
    return ("", "") if after is None else (f"{after:.2f}", f"{after - before:+.2f}")


def as_text(table: Sequence[tuple[str, ...]]) -> str:
    """The table for a terminal."""
    cells = [HEADER, *table]
    widths = [max(len(row[column]) for row in cells) for column in range(len(HEADER))]

    def line(row: tuple[str, ...]) -> str:
        first = row[0].ljust(widths[0])
        return "  ".join([first, *(cell.rjust(width) for cell, width in zip(row[1:], widths[1:], strict=True))])

    rule = "  ".join("-" * width for width in widths)
    return "\n".join([line(HEADER), rule, *map(line, table)])


def as_markdown(table: Sequence[tuple[str, ...]]) -> str:
    """The table for a README."""
    lines = ["| " + " | ".join(HEADER) + " |", "| --- |" + " ---: |" * (len(HEADER) - 1)]
    return "\n".join([*lines, *("| " + " | ".join(row) + " |" for row in table)])
