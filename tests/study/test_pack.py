"""A study's records kept apart from what they were made of, and reported from there."""

import io
import json
import re
import zipfile

import captions
import numpy as np
import pytest
from jobs import SCORED

from cft.config.compose import compose_config
from cft.evaluation import pairs
from cft.evaluation.scores import COSINES, METRICS
from cft.study import pack, plan, report, runner, spec
from cft.system.errors import UserError
from cft.system.files import read_json, write_record

# Where this machine has the texts that records are kept without.
FILES = [f"data.train={captions.TRIPLETS}", f"eval.file={captions.PAIRS}"]


@pytest.fixture
def packed(paper, tmp_path):
    """The records of Table 6 at the smoke scale."""
    folder = tmp_path / "records"
    pack.pack([paper.studies["table6"]], folder)
    return folder


def files_of(path) -> dict[str, bytes]:
    """What a file of records holds, by name."""
    with zipfile.ZipFile(path) as archive:
        return {name: archive.read(name) for name in archive.namelist()}


def arrays_of(content: bytes) -> dict[str, np.ndarray]:
    with np.load(io.BytesIO(content), allow_pickle=False) as stored:
        return {name: stored[name] for name in stored.files if name != "checksum"}


def tables_of(document) -> list:
    return [table.rows for table in document.tables()]


def test_a_report_from_records_alone_equals_the_one_from_outputs(paper, packed):
    here, _ = report.write(["table6"], "smoke", [f"outputs={paper.outputs}"])
    there, page = report.write(["table6"], "smoke", [f"outputs={packed}", *FILES])
    assert tables_of(there) == tables_of(here) and len(tables_of(here)) >= 4
    assert page.is_relative_to(packed)
    assert "stale" not in report.render(there, "text")


def test_records_hold_no_weights_no_sentences_and_no_human_scores(paper, packed):
    assert [path.name for path in packed.iterdir()] == ["table6-smoke.zip"]
    files = files_of(packed / "table6-smoke.zip")
    kept = {name.split("/")[-1] for name in files}
    assert kept == {
        *("plan.json", METRICS, COSINES, "history.jsonl", "training.json"),
        *("environment.json", "config.json", "data.json"),
        *(f"{name}.json" for name in paper.studies["table6"].runs),
    }
    names = {entry for name, content in files.items() if name.endswith(".npz") for entry in arrays_of(content)}
    assert names == {"set/captions", "positives", "negatives"}
    for name, content in files.items():
        assert str(paper.outputs).encode() not in content and str(packed).encode() not in content, name


def test_records_packed_twice_are_the_same_file(paper, packed, tmp_path):
    pack.pack([paper.studies["table6"]], tmp_path / "again")
    assert (tmp_path / "again" / "table6-smoke.zip").read_bytes() == (packed / "table6-smoke.zip").read_bytes()


def test_cosines_that_do_not_give_the_recorded_score_are_refused(packed):
    path = packed / "table6-smoke.zip"
    report.write(["table6"], "smoke", [f"outputs={packed}", *FILES])
    files = files_of(path)
    name = next(name for name in files if re.fullmatch(r"tiny-[^/]*/evaluations/captions-[^/]*/cosines\.npz", name))
    arrays, spoilt = arrays_of(files[name]), io.BytesIO()
    np.savez(spoilt, **arrays | {"set/captions": np.sort(arrays["set/captions"])})
    with zipfile.ZipFile(path, "w") as archive:
        for entry, content in (files | {name: spoilt.getvalue()}).items():
            archive.writestr(entry, content)
    with pytest.raises(
        UserError, match="the pairs of captions are not those that table6-smoke was scored on, or .*npz"
    ):
        report.write(["table6"], "smoke", [f"outputs={packed}", *FILES])


def test_a_damaged_file_of_records_is_named(packed):
    path = packed / "table6-smoke.zip"
    whole = path.read_bytes()
    for content in (b"", whole[:1000], whole[:60] + bytes(200) + whole[260:]):
        path.write_bytes(content)
        with pytest.raises(UserError, match="cannot read .*table6-smoke.zip: .*pack the study again"):
            pack.unpack(packed, "table6-smoke")
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("../outside.txt", "not a record")
    with pytest.raises(UserError, match="table6-smoke.zip holds no records of table6-smoke"):
        pack.unpack(packed, "table6-smoke")
    assert not list(packed.parent.rglob("outside.txt")) or list(packed.rglob("outside.txt")), (
        "nothing leaves the folder"
    )


def test_records_of_files_want_those_files(packed):
    frozen = pack.unpack(packed, "table6-smoke")
    for config in frozen.runs.values():
        config.eval.folder, config.data.train = "sts", "nli.csv"
    with pytest.raises(UserError, match="kept without the human scores: name the test sets' folder by eval.folder="):
        pack.restore(frozen, [])
    with pytest.raises(UserError, match="name the triplets' file by data.train="):
        pack.restore(frozen, ["eval.folder=elsewhere"])
    for config in frozen.runs.values():
        config.eval.folder = None
    with pytest.raises(UserError, match="name the scored pairs' file by eval.file="):
        pack.restore(frozen, [FILES[0]])
    with pytest.raises(UserError, match=r"eval.file=.*nowhere.*captions.jsonl"):
        pack.restore(frozen, [FILES[0], f"eval.file={captions.FOLDER / 'nowhere' / 'captions.jsonl'}"])
    assert not list(packed.rglob(pairs.FILE_NAME))


def test_other_rows_than_were_trained_on_are_refused(tmp_path):
    for name in ("mine", "other"):
        rows = [f"{name} {n},a {name} {n * n}" for n in range(40)]
        (tmp_path / f"{name}.csv").write_text("\n".join(["sent0,sent1", *rows]))
    path = tmp_path / "files.yaml"
    path.write_text("title: t\nquestion: q\ncells:\n  - {name: a}\n")
    own = ["data=files", "data.negative_columns=[]", "loss=in_batch", "train.steps=1", "train.keep=[]"]
    own += [f"data.train={tmp_path / 'mine.csv'}", f"outputs={tmp_path}", *SCORED]
    study = plan.compose_study(spec.load(str(path), "smoke", own), own, [], compose_config)
    assert runner.run([study], only_failed=False, dry_run=False, launcher=None, launcher_overrides=[]) == 0
    pack.pack([study], tmp_path / "records")
    unpacked = pack.unpack(tmp_path / "records", study.name)
    with pytest.raises(UserError, match="other.csv: these are not the rows that files-smoke was trained on"):
        pack.restore(unpacked, [f"data.train={tmp_path / 'other.csv'}", FILES[1]])
    assert not list((tmp_path / "records").rglob(pairs.FILE_NAME))
    pack.restore(unpacked, [f"data.train={tmp_path / 'mine.csv'}", FILES[1]])
    (missing,) = tmp_path.glob("base-*/evaluations/triplets-*/metrics.json")
    missing.unlink()
    with pytest.raises(UserError, match="metrics.json is missing: run the study again"):
        pack.pack([study], tmp_path / "records")
    assert list((tmp_path / "records").rglob(pairs.FILE_NAME))


def test_a_study_that_is_not_done_cannot_be_packed(paper, tmp_path, monkeypatch):
    monkeypatch.setattr(plan, "state_of", lambda outputs, run: plan.RunState("failed", "x"))
    with pytest.raises(UserError, match="of table6-smoke is not done: finish the study, then pack it"):
        pack.pack([paper.studies["table6"]], tmp_path)


def test_places_of_this_machine_are_told(paper, tmp_path, caplog):
    paper.studies["table6"].overrides.append("data.train=/home/me/nli.csv")
    try:
        pack.pack([paper.studies["table6"]], tmp_path)
    finally:
        paper.studies["table6"].overrides.pop()
    assert re.search(r"the records name places of this machine \(.*data.train=/home/me/nli.csv", caplog.text)


def test_places_in_the_settings_of_a_training_are_told(paper, tmp_path, caplog):
    training = next(filter(None, (plan.state_of(paper.outputs, run).training for run in paper.studies["table6"].runs)))
    path = paper.outputs / training / "config.json"
    before = path.read_bytes()
    settings = read_json(path)
    write_record(path, settings | {"data": settings["data"] | {"dev": "/home/me/dev.csv"}})
    try:
        pack.pack([paper.studies["table6"]], tmp_path)
    finally:
        path.write_bytes(before)
    assert re.search(r"the records name places of this machine \(.*data.dev=/home/me/dev.csv", caplog.text)


def test_packing_from_the_command_line(paper, commands, tmp_path):
    def run(*arguments):
        return commands.run("cft.study", "pack", "--scale", "smoke", f"outputs={paper.outputs}", *arguments)

    assert "name the folder that the records go to: --to FOLDER" in run("table6").err
    told = run("table6", "table1", "--to", str(tmp_path / "r"))
    assert told.status == 0 and re.search(r"1 study, 0\.\d MB of records in ", told.out), told.err
    files = files_of(tmp_path / "r" / "table6-smoke.zip")
    assert json.loads(files["studies/table6-smoke/plan.json"])["packed"] is True
    other = commands.run(
        "cft.study", "pack", "table6", "--scale", "smoke", f"outputs={tmp_path}", "--to", str(tmp_path)
    )
    assert other.status == 2 and "table6-smoke was never run under" in other.err
