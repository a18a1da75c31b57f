"""docs/study_tables.md against the records that are kept beside it."""

import io
import re
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import numpy as np
import pytest

from cft.study import pack
from cft.study.spec import available_beside

DOCS = Path(__file__).resolve().parents[2] / "docs"
RECORDS = DOCS / "records"
PAGE = DOCS / "study_tables.md"
MARK = re.compile(r"^<!-- ([\w.-]+): .* -->$", re.MULTILINE)


def named() -> list[str]:
    return list(dict.fromkeys(MARK.findall(PAGE.read_text())))


def tracked() -> list[Path]:
    kept = subprocess.run(["git", "ls-files", "-z", str(RECORDS)], cwd=DOCS, capture_output=True, check=True, text=True)
    return [DOCS / name for name in kept.stdout.split("\0") if name]


def test_every_table_of_the_page_has_its_records_and_the_other_way_round(tmp_path):
    kept = {path.stem for path in RECORDS.glob("*.zip")}
    assert kept == {f"{name}-study" for name in named()}
    for name in kept:
        shutil.copy(RECORDS / f"{name}.zip", tmp_path)
        study = pack.unpack(tmp_path, name)
        states = study.outputs / "studies" / "runs"
        assert study.packed and all((states / f"{run}.json").exists() for run in study.runs)


def test_the_records_are_small_and_hold_no_sentences_and_no_human_scores():
    files = tracked()
    assert files and sum(path.stat().st_size for path in files) < 5_000_000
    assert {path.suffix for path in files} == {".zip", ".png"}
    for path in RECORDS.glob("*.zip"):
        assert path.stat().st_size < 1_000_000
        with zipfile.ZipFile(path) as archive:
            names = archive.namelist()
            assert {name.rpartition(".")[2] for name in names} <= {"json", "jsonl", "npz"}
            assert not [name for name in names if name.endswith("pairs.npz")]
            for name in names:
                content = archive.read(name)
                if name.endswith(".npz"):
                    with np.load(io.BytesIO(content), allow_pickle=False) as stored:
                        assert all(
                            re.fullmatch(r"set/.*|positives|negatives|checksum", array) for array in stored.files
                        )
                else:
                    assert b'"/' not in content, f"{path.name}: {name} names a place of some machine"


def test_the_pictures_beside_the_records_are_those_that_the_page_shows():
    shown = {DOCS / link for link in re.findall(r"\]\((records/.*?\.png)\)", PAGE.read_text())}
    assert shown == {path for path in tracked() if path.suffix == ".png"}


@pytest.mark.slow
def test_the_page_is_what_its_records_give(tmp_path, real_data):
    """Every interval and verdict again, and the page with them: no character of it changes."""
    shutil.copytree(RECORDS, tmp_path / "records", ignore=shutil.ignore_patterns(pack.UNPACKED, "studies"))
    page = shutil.copy(PAGE, tmp_path / PAGE.name)
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
    assert (tmp_path / PAGE.name).read_text() == PAGE.read_text(), "run make verdicts"
