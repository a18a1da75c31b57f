"""docs/study.md against the records that are kept beside it."""

import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from cft.study.plan import FILE_NAME, load
from cft.study.spec import available_beside

DOCS = Path(__file__).resolve().parents[2] / "docs"
RECORDS = DOCS / "records"
MARK = re.compile(r"^<!-- ([\w.-]+): .* -->$", re.MULTILINE)


def named() -> list[str]:
    return list(dict.fromkeys(MARK.findall((DOCS / "study.md").read_text())))


def test_every_table_of_the_page_has_its_records_and_the_other_way_round():
    kept = {path.parent.name for path in RECORDS.glob(f"studies/*/{FILE_NAME}")}
    assert kept == {f"{name}-study" for name in named()}
    for name in kept:
        study = load(RECORDS / "studies" / name)
        assert study.packed and all((RECORDS / "studies" / "runs" / f"{run}.json").exists() for run in study.runs)


def test_the_records_are_small_and_hold_no_sentences_and_no_human_scores():
    kept = subprocess.run(["git", "ls-files", "-z", str(RECORDS)], cwd=DOCS, capture_output=True, check=True, text=True)
    files = [DOCS / name for name in kept.stdout.split("\0") if name]
    assert files and sum(path.stat().st_size for path in files) < 5_000_000
    assert {path.suffix for path in files} == {".json", ".jsonl", ".npz", ".png"}
    assert not [path for path in files if path.name == "pairs.npz"]


@pytest.mark.slow
def test_the_page_is_what_its_records_give(tmp_path, real_data):
    """Every interval and verdict again, and the page with them: no character of it changes."""
    shutil.copytree(RECORDS, tmp_path / "records", ignore=shutil.ignore_patterns("pairs.npz", "*.html", "report*"))
    page = shutil.copy(DOCS / "study.md", tmp_path / "study.md")
    own = {name.split("/")[1]: name for name in available_beside()}
    subprocess.run(
        [
            *(sys.executable, "-m", "cft.report", *(own.get(name, name) for name in named()), "--scale", "study"),
            *("--into", str(page), f"outputs={tmp_path / 'records'}"),
            *(f"data.train={real_data / 'nli' / 'train.jsonl.gz'}", f"eval.folder={real_data / 'sts'}"),
        ],
        check=True,
        capture_output=True,
        cwd=tmp_path,
    )
    assert (tmp_path / "study.md").read_text() == (DOCS / "study.md").read_text(), "run make verdicts"
