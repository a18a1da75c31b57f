"""One page of what the stages found."""

from pathlib import Path
from typing import Any

from cft.system.files import read_json, write_text
from cft.system.tables import as_markdown

PAGE = "report.md"


def records(out: Path) -> dict[str, dict[str, Any]]:
    """What every stage left, by its name."""
    found = {path.stem: read_json(path) for path in sorted(out.glob("*.json"))}
    return {name: record for name, record in found.items() if "stage" in record}


def page(out: Path, stages: list[str]) -> str:
    """The page, with the stages in their order and those that are missing named."""
    kept = records(out)
    text = ["# What the GPU kit found"]
    where = {(record["device"], record["tiny"]) for record in kept.values() if record.get("device")}
    for device, tiny in sorted(where):
        warning = f": tiny shapes on {'a CPU' if device.startswith('CPU') else 'a GPU'}: no result" if tiny else ""
        text.append(f"**{device}{warning}**")
    if len(where) > 1:
        text.append("Stages ran on different devices, or with different shapes: their numbers do not go together.")
    missing = [name for name in stages if name not in kept]
    if missing:
        text.append(f"Not run yet: {', '.join(missing)}. The same command goes on with them.")
    for name in [*(each for each in stages if each in kept), *sorted(kept.keys() - set(stages))]:
        text += _section(name, kept[name])
    return "\n\n".join(text) + "\n"


def write(out: Path, stages: list[str]) -> str:
    """Write the page beside the records; returns it."""
    found = page(out, stages)
    write_text(out / PAGE, found)
    return found


def _section(name: str, record: dict[str, Any]) -> list[str]:
    state = record["status"] + (f", {record['seconds']:.0f} s" if record.get("seconds") is not None else "")
    text = [f"## {name}", f"{state}; {record.get('device') or 'no device'}, torch {record.get('torch')}"]
    if record.get("error"):
        text.append(f"    {record['error'].splitlines()[0][:300]}")
    table = (record.get("result") or {}).get("table")
    if table:
        width = len(table[0])
        text.append(as_markdown([tuple(str(cell) for cell in row) for row in table if len(row) == width]))
    return text
