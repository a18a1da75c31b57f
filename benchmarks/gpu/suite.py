"""The tests that want a GPU."""

import os
import xml.etree.ElementTree as ElementTree
from pathlib import Path
from typing import Any

import pytest

from gpu.kit import Kit, Note

_ROOT = Path(__file__).resolve().parents[2]
_MARKED = "pytest.mark.gpu"


def run(kit: Kit, note: Note) -> dict[str, Any]:
    """How many passed, failed and were skipped, and what they said.

    Raises:
        RuntimeError: if pytest did not run them.
    """
    # only the files that have any: collecting all takes longer than they do
    files = sorted(str(path) for path in (_ROOT / "tests").rglob("test_*.py") if _MARKED in path.read_text())
    report = kit.out / "tests.xml"
    report.unlink(missing_ok=True)
    words = ["-m", "gpu", "-p", "no:cacheprovider", "--rootdir", str(_ROOT), f"--junitxml={report}", *files]
    note({"command": ["pytest", *words]})
    os.chdir(_ROOT)
    status = int(pytest.main(words))  # this process is the stage's own, and has imported most of it
    if not report.exists():
        raise RuntimeError(f"pytest ended with status {status} and wrote no report; the stage's log says why")
    found = outcomes(report)
    table = [("outcome", "tests"), *((name, str(len(found[name]))) for name in ("passed", "failed", "skipped"))]
    table += [(f"failed: {name}: {why}", "") for name, why in found["failed"].items()]
    counts = {name: len(tests) for name, tests in found.items()}
    return {"status": status, "counts": counts, "outcomes": found, "table": table}


def outcomes(report: Path) -> dict[str, dict[str, str]]:
    """Tests by outcome, each with what was said of it, out of pytest's report."""
    found: dict[str, dict[str, str]] = {"passed": {}, "failed": {}, "skipped": {}}
    for case in ElementTree.parse(report).iter("testcase"):
        said = {child.tag: (child.get("message") or "").strip() for child in case}
        bad = said.get("failure", said.get("error"))
        outcome = "failed" if bad is not None else "skipped" if "skipped" in said else "passed"
        found[outcome][case.get("name", "")] = (bad or said.get("skipped") or "")[:500]
    return found
