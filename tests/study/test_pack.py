"""A study's records kept apart from what they were made of, and reported from there."""

import json
import re

import numpy as np
import pytest

from cft.evaluation import pairs
from cft.evaluation.scores import COSINES, METRICS
from cft.study import pack, plan, report
from cft.system.errors import UserError
from cft.system.files import read_arrays, write_arrays


@pytest.fixture
def packed(paper, tmp_path):
    """The records of Table 6 at the smoke scale."""
    folder = tmp_path / "records"
    pack.pack([paper.studies["table6"]], folder)
    return folder


def tables_of(document) -> list:
    return [table.rows for table in document.tables()]


def test_a_report_from_records_alone_equals_the_one_from_outputs(paper, packed):
    here, _ = report.write(["table6"], "smoke", [f"outputs={paper.outputs}"])
    there, page = report.write(["table6"], "smoke", [f"outputs={packed}"])
    assert tables_of(there) == tables_of(here) and len(tables_of(here)) >= 4
    assert page.is_relative_to(packed)
    assert "stale" not in report.render(there, "text")


def test_records_hold_no_weights_no_sentences_and_no_human_scores(paper, packed):
    kept = {path.name for path in packed.rglob("*") if path.is_file()}
    assert kept == {
        *("plan.json", METRICS, COSINES, "history.jsonl", "training.json"),
        *("environment.json", "config.json", "data.json"),
        *(path.name for path in (packed / "studies" / "runs").iterdir()),
    }
    names = {entry for path in packed.rglob("*.npz") for entry in read_arrays(path)}
    assert names == {"set/scenes", "positives", "negatives"}
    for path in packed.rglob("*.json*"):
        assert str(paper.outputs) not in path.read_text() and str(packed) not in path.read_text(), path


def test_cosines_that_do_not_give_the_recorded_score_are_refused(packed):
    path = next(packed.glob("tiny-*/evaluations/scenes-*/cosines.npz"))
    arrays = read_arrays(path)
    write_arrays(path, arrays | {"set/scenes": np.sort(arrays["set/scenes"])})
    with pytest.raises(UserError, match="the pairs of scenes are not those that table6-smoke was scored on, or .*npz"):
        report.write(["table6"], "smoke", [f"outputs={packed}"])


def test_records_of_files_want_those_files(packed):
    frozen = plan.load(packed / "studies" / "table6-smoke")
    frozen = pack.moved(frozen, packed)
    for config in frozen.runs.values():
        config.eval.folder, config.data.train = "sts", "nli.csv"
    with pytest.raises(UserError, match="kept without the human scores: name the test sets' folder by eval.folder="):
        pack.restore(frozen, [])
    with pytest.raises(UserError, match="name the triplets' file by data.train="):
        pack.restore(frozen, ["eval.folder=elsewhere"])
    assert not list(packed.rglob(pairs.FILE_NAME))


def test_a_study_that_is_not_done_cannot_be_packed(paper, tmp_path, monkeypatch):
    monkeypatch.setattr(plan, "state_of", lambda outputs, run: {"state": "failed", "cause": "x"})
    with pytest.raises(UserError, match="of table6-smoke is not done: finish the study, then pack it"):
        pack.pack([paper.studies["table6"]], tmp_path)


def test_places_of_this_machine_are_told(paper, tmp_path, caplog):
    paper.studies["table6"].overrides.append("data.train=/home/me/nli.csv")
    try:
        pack.pack([paper.studies["table6"]], tmp_path)
    finally:
        paper.studies["table6"].overrides.pop()
    assert "the records name places of this machine (data.train=/home/me/nli.csv)" in caplog.text


def test_packing_from_the_command_line(paper, commands, tmp_path):
    def run(*arguments):
        return commands.run("cft.study", "pack", "--scale", "smoke", f"outputs={paper.outputs}", *arguments)

    assert "name the folder that the records go to: --to FOLDER" in run("table6").err
    told = run("table6", "table1", "--to", str(tmp_path / "r"))
    assert told.status == 0 and re.search(r"1 study, 0\.\d MB of records in ", told.out), told.err
    assert json.loads((tmp_path / "r" / "studies" / "table6-smoke" / "plan.json").read_text())["packed"] is True
    other = commands.run(
        "cft.study", "pack", "table6", "--scale", "smoke", f"outputs={tmp_path}", "--to", str(tmp_path)
    )
    assert other.status == 2 and "table6-smoke was never run under" in other.err
