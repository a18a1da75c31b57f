"""Studies at the smoke scale: every table and figure, each training once, killed and gone on with, frozen, retried."""

import json
import os
import re
import signal
import subprocess
import time
from pathlib import Path

import numpy as np
import pytest
from jobs import DEV, SCORED

from cft.config.command_line import CommandLine
from cft.config.compose import compose_config
from cft.job.run_folder import RunFolder
from cft.study import findings, plan, runner, sections, spec
from cft.study.__main__ import RunOptions
from cft.study.arguments import outputs_of
from cft.system.errors import UserError
from cft.training import trainer


def studies(outputs: Path, names: list[str], *overrides: str, seeds: tuple[int, ...] = (), scale: str = "smoke"):
    given = [f"outputs={outputs}", *overrides]
    found = [plan.compose_study(spec.load(name, scale, given), given, list(seeds), compose_config) for name in names]
    for study in found:
        study.save(plan.study_folder(outputs, study.name))
    return found


def run(found, *, only_failed: bool = False) -> int:
    return runner.run(found, only_failed=only_failed, dry_run=False, launcher=None, launcher_overrides=[])


@pytest.fixture
def steps(monkeypatch) -> list[int]:
    """Numbers of all the training steps that are carried out."""
    done: list[int] = []
    step = trainer._step
    monkeypatch.setattr(trainer, "_step", lambda *a, **k: done.append(k["step"]) or step(*a, **k))
    return done


def test_the_paper_is_run_once_and_trainings_are_shared(paper):
    assert paper.missing == 0
    # tuned with and without hard negatives for 6 steps each, and two other learning rates for 3
    assert sorted(paper.steps) == sorted([*range(6), *range(6), *range(3), *range(3)])
    assert "20 cells in 15 runs, 0 of them done; 4 trainings, 0 of them done" in paper.said
    assert re.search(r"about \d+ min to go: \d+ training steps, \d+ evaluations", paper.said)
    cells = [
        ("table2", "tiny"),
        ("table5", "tuned, no prompt"),
        ("table6", "hard negatives (eq. 1)"),
        ("figure1", "step 6"),
    ]
    runs = {paper.studies[name].cells[cell][0] for name, cell in cells}
    folders = {plan.state_of(paper.outputs, run).scores for run in runs}
    assert len(folders) == 1, "one training stands in four tables"


def test_the_paper_run_again_is_a_no_op(paper, steps, caplog):
    caplog.set_level("INFO", logger="cft")
    before = {path: path.stat().st_mtime_ns for path in paper.outputs.glob("tiny-*/**/*") if path.is_file()}
    assert run(list(paper.studies.values())) == 0
    assert steps == []
    assert "15 runs, 15 of them done; 4 trainings, 4 of them done" in caplog.text
    assert "loading" not in caplog.text, "no model is needed to see that all is done"
    assert before == {path: path.stat().st_mtime_ns for path in before}


def test_a_killed_sweep_goes_on_where_it_was(commands, tmp_path, steps):
    command = ["cft.study", "run", "table4", "--scale", "smoke", f"outputs={tmp_path}"]
    process = commands.start(*command, new_session=True)
    states = tmp_path / "studies" / "runs"
    deadline = time.monotonic() + 120
    while not list(states.glob("*.json")) and process.poll() is None and time.monotonic() < deadline:
        time.sleep(0.02)
    os.killpg(process.pid, signal.SIGKILL)
    process.wait()
    finished = len(list(states.glob("*.json")))
    assert 1 <= finished < 3, "killed between the first cell's end and the last one's"
    found = studies(tmp_path, ["table4"])
    assert run(found) == 0
    assert len(steps) <= 3 * (3 - finished), "what was finished is not trained again"
    assert all(plan.state_of(tmp_path, name).state == "done" for name in found[0].runs)


USER_STUDY = """
title: Two data files
question: Does the second file help?
layout: overall
cells:
  - {name: broken, overrides: [data=files, data.train=DIR/later.csv, "data.negative_columns=[hard_neg]"]}
  - {name: fine, overrides: [lr=1e-4]}
baseline: fine
"""


def test_a_failed_cell_is_reported_at_once_the_others_go_on_and_retry_runs_just_it(tmp_path, steps, capsys, caplog):
    caplog.set_level("INFO", logger="cft")
    path = tmp_path / "mine.yaml"
    path.write_text(USER_STUDY.replace("DIR", str(tmp_path)))
    found = studies(tmp_path, [str(path)], "train.batch_size=4", "train.keep=[]", "data.holdout=0", *SCORED)
    assert run(found) == 1
    assert "later.csv" in capsys.readouterr().err
    assert len(steps) == 6
    (shown,) = [cell for cell in findings.collect(found[0], []).cells if cell.status]
    assert shown.cell.name == "broken" and "later.csv" in shown.status

    rows = [f"a man {n} runs,a man {n} moves,a man {n} sits" for n in range(30)]
    (tmp_path / "later.csv").write_text("\n".join(["sent0,sent1,hard_neg", *rows]))
    del steps[:]
    assert run(found, only_failed=True) == 0
    assert len(steps) == 6, "one training, the one that had failed"
    assert "to be retried: 1" in caplog.text


def test_a_plan_is_frozen_when_it_starts(commands, tmp_path):
    path = tmp_path / "mine.yaml"
    told = "title: t\nquestion: q\ncells:\n  - {name: a, overrides: [lr=1e-4]}\n  - {name: b, overrides: [lr=RATE]}\n"
    path.write_text(told.replace("RATE", "2e-4"))
    arguments = ["cft.study", "plan", str(path), "--scale", "smoke", f"outputs={tmp_path}"]
    studies(tmp_path, [str(path)])
    path.write_text(told.replace("RATE", "9e-4"))
    said = commands.run(*arguments)
    assert said.status == 0, said.err
    assert "going on with the plan that was frozen" in said.out and "other things for: b" in said.out
    frozen = plan.load(tmp_path / "studies" / "mine-smoke")
    assert [config.lr for config in frozen.runs.values()] == [1e-4, 2e-4]
    anew = commands.run(*arguments, "--replan")
    assert anew.status == 0 and "going on" not in anew.out, anew.err


def test_a_finished_study_is_not_planned_anew_unless_asked(tmp_path, monkeypatch, caplog):
    from cft.study.__main__ import RunOptions, _study

    caplog.set_level("INFO", logger="cft")
    path = tmp_path / "mine.yaml"
    told = "title: t\nquestion: q\ncells:\n  - {name: a, overrides: [lr=1e-4]}\n  - {name: b, overrides: [lr=RATE]}\n"
    path.write_text(told.replace("RATE", "2e-4"))
    studies(tmp_path, [str(path)])
    monkeypatch.setattr(plan, "state_of", lambda outputs, run: plan.RunState(state=plan.DONE))
    path.write_text(told.replace("RATE", "9e-4"))
    given = [f"outputs={tmp_path}"]
    options = RunOptions([str(path)], "run", overrides=given, scale="smoke", seeds=[])
    assert [config.lr for config in _study(str(path), options, given).runs.values()] == [1e-4, 2e-4]
    assert "finished by the plan that was frozen" in caplog.text and "other things for: b (--replan" in caplog.text
    options = RunOptions([str(path)], "run", overrides=given, scale="smoke", seeds=[], replan=True)
    assert [config.lr for config in _study(str(path), options, given).runs.values()] == [1e-4, 9e-4]


def test_a_study_compares_what_queries_find(tmp_path, monkeypatch):
    rows = [{"sent0": f"what is thing {n}?", "sent1": f"thing {n} is number {n * n}"} for n in range(120)]
    (tmp_path / "mine.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    path = tmp_path / "mine.yaml"
    path.write_text(
        "title: Rates\nquestion: Which?\nlayout: sets\ncells:\n  - {name: before, base: true}\n"
        "  - {name: slow, overrides: [lr=1e-5]}\n  - {name: fast, overrides: [lr=2e-2]}\nbaseline: slow\n"
    )
    own = ["data=files", f"data.train={tmp_path / 'mine.jsonl'}", "data.negative_columns=[]", "loss=in_batch"]
    own += ["eval=rows", "train.eval_every=0"]
    (study,) = studies(tmp_path, [str(path)], *own, "data.holdout=12", seeds=(1, 2))
    assert run([study]) == 0
    found = findings.collect(study, [])
    assert found.of_queries and found.sets == {"held-out rows": 12} and found.distinct == 12
    by_name = {cell.name: cell for cell in found.cells}
    assert len(by_name["fast"].by_seed) == 2 and by_name["fast"].intervals["held-out rows"].low >= 0
    comparison = next(each for each in found.comparisons if each.left == "fast")
    expected = np.mean(by_name["fast"].overall) - np.mean(by_name["slow"].overall)
    assert comparison.differences["held-out rows"].value == pytest.approx(expected, abs=1e-3)
    text = "\n".join(map(str, sections.blocks(found, tmp_path / "report")))
    assert "nDCG@10 x 100 with 95% bootstrap intervals over queries" in text
    assert "'set', 'queries'" in text and "on 12 different queries" in text
    with pytest.raises(UserError, match="seeds=1,2,1: a seed named twice is one training, not two"):
        studies(tmp_path, ["table5"], seeds=(1, 2, 1))
    with pytest.raises(UserError, match="eval=none: a study compares scores"):
        studies(tmp_path, ["table5"], "eval=none")


def test_a_report_tells_of_the_settings_that_the_data_chose(tmp_path):
    rows = [{"sent0": f"what is thing {n}?", "sent1": f"thing {n} is number {n * n}"} for n in range(200)]
    (tmp_path / "mine.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    path, scale = tmp_path / "mine.yaml", tmp_path / "scale.yaml"
    path.write_text("title: Own\nquestion: Which?\ncells:\n  - {name: mine, overrides: []}\n")
    own = [f"data.train={tmp_path / 'mine.jsonl'}", "data.negative_columns=[]", "loss=in_batch", "train.steps=3"]
    scale.write_text(json.dumps({"overrides": ["model=tiny", "data=files", "logger=none", *own]}))
    (study,) = studies(tmp_path, [str(path)], scale=str(scale))
    assert run([study]) == 0
    (cell,) = findings.collect(study, []).cells
    trained = json.loads((cell.training.path / "config.json").read_text())
    assert trained["train"]["batch_size"] != 60 and trained["lr"] == cell.lr != 5e-5 and cell.step == 3
    assert cell.costs[0].triplets == 3 * trained["train"]["batch_size"]


def test_a_frozen_plan_comes_back_as_it_was(tmp_path):
    (study,) = studies(tmp_path, ["table5"], seeds=(1, 2))
    loaded = plan.load(plan.study_folder(tmp_path, study.name))
    assert loaded == study
    assert list(loaded.cells) == [cell.name for cell in study.experiment.cells]
    assert [len(names) for names in loaded.cells.values()] == [2] * 4 + [1] * 4, "untrained models have no seed"


def test_a_plan_of_another_version_is_explained(tmp_path):
    (study,) = studies(tmp_path, ["table3"])
    path = plan.study_folder(tmp_path, study.name) / plan.FILE_NAME
    told = json.loads(path.read_text())
    next(iter(told["runs"].values()))["train"]["momentum"] = 1
    path.write_text(json.dumps(told))
    with pytest.raises(UserError, match="is not a plan of this version of cft .*momentum.*remove it"):
        plan.load(path.parent)


def test_a_plan_from_before_there_was_a_setting_is_not_stale(tmp_path):
    (study,) = studies(tmp_path, ["table4"])
    path = plan.study_folder(tmp_path, study.name) / plan.FILE_NAME
    told = json.loads(path.read_text())
    older = {
        f"old-{name}": {key: value for key, value in run.items() if key != "distill"}
        for name, run in told["runs"].items()
    }
    cells = {cell: [f"old-{name}" for name in names] for cell, names in told["cells"].items()}
    path.write_text(json.dumps(told | {"runs": older, "cells": cells}))
    loaded = plan.load(path.parent)
    assert plan.differences(loaded, study) == []
    first = next(iter(loaded.cells))
    loaded.runs[loaded.cells[first][0]].distill.share = 0.4
    assert plan.differences(loaded, study) == [first]


@pytest.mark.slow
def test_cells_go_through_submitit(commands, tmp_path):
    pytest.importorskip("hydra_plugins.hydra_submitit_launcher", reason="needs cft[slurm]")
    ended = commands.run(
        "cft.study", "run", "table6", "--scale", "smoke", f"outputs={tmp_path}", "--launcher", "submitit_local",
        "hydra.launcher.timeout_min=5",
    )  # fmt: skip
    assert ended.status == 0, ended.out + ended.err
    assert "2 groups of runs go to hydra/launcher=submitit_local" in ended.out
    assert "missing" not in ended.out
    assert len(list((tmp_path / "studies" / "runs").glob("*.json"))) == 2


def test_cells_go_through_a_launcher_whose_failures_are_noted_and_told(commands, tmp_path):
    pytest.importorskip("hydra_plugins.hydra_joblib_launcher", reason="needs cft[joblib]")
    path = tmp_path / "mine.yaml"
    path.write_text(USER_STUDY.replace("DIR", str(tmp_path)))
    ended = commands.run(
        "cft.study", "run", "table6", str(path), "--scale", "smoke", f"outputs={tmp_path}", "--launcher", "joblib",
        "hydra.launcher.n_jobs=2",
    )  # fmt: skip
    assert ended.status == 2, ended.out + ended.err
    assert "4 groups of runs go to hydra/launcher=joblib" in ended.out
    (missing,) = re.findall("^.* is missing: .*$", ended.out, re.MULTILINE)
    assert missing.startswith("mine-smoke: broken is missing") and "later.csv" in missing
    assert re.search(r"fine +\d", ended.out)
    runs = plan.load(plan.study_folder(tmp_path, "table6-smoke")).runs
    assert len(runs) == 2 and all(plan.state_of(tmp_path, name).state == plan.DONE for name in runs)
    assert len(list((tmp_path / "studies" / "runs").glob("*.json"))) == 2 + 2


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ("run table6 to=x", "to=x would not be read by run: it goes with pack"),
        ("pack table6 to=x seeds=1,2 launcher=joblib", "seeds=.* launcher=joblib would not be read by pack"),
        ("run table6 hydra.launcher.n_jobs=4", "hydra.launcher.n_jobs=4 would not be read without a launcher"),
    ],
)
def test_what_a_command_would_not_read_is_refused(words, message):
    with pytest.raises(UserError, match=message):
        CommandLine("cft.study", RunOptions).read(words.split())


def test_what_cannot_be_planned_is_told_before_anything_runs(commands, tmp_path):
    path = tmp_path / "mine.yaml"
    path.write_text(USER_STUDY.replace("DIR", str(tmp_path)))
    result = commands.run("cft.study", "plan", str(path), "--scale", "smoke", f"outputs={tmp_path}")
    assert result.status == 2
    assert re.search(r"mine: broken cannot run: .*later.csv: no such file", result.err)
    assert "not counted: 1 runs that cannot start" in result.out
    assert not (tmp_path / "studies").exists(), "a plan that was only said is not frozen"


@pytest.mark.parametrize("word", ["outputs='my results, 2'", "outputs=${oc.env:RESULTS}", "outputs=my/results", ""])
def test_a_study_looks_for_its_runs_where_its_jobs_leave_them(monkeypatch, word):
    monkeypatch.setenv("RESULTS", "my results")
    words = [word] if word else []
    assert outputs_of(words) == Path(compose_config(words).outputs) and "'" not in str(outputs_of(words))


def test_every_table_and_figure_is_a_make_target():
    root = Path(__file__).resolve().parents[2]
    # the tests are run by make too, whose own flags must not reach this one
    environment = {key: value for key, value in os.environ.items() if not key.startswith(("MAKE", "MFLAGS"))}
    for name in spec.available():
        result = subprocess.run(
            ["make", "--dry-run", "--always-make", name, "SCALE=smoke", "SEEDS=1,2", "STS=folder"],
            capture_output=True, text=True, cwd=root, check=True, env=environment,
        )  # fmt: skip
        last = result.stdout.strip().splitlines()[-1]
        assert name in last and "--scale smoke" in last
        assert name == "table1" or ("--seeds 1,2" in last and "eval.folder=folder" in last)


def test_seeds_train_a_cell_several_times_and_share_the_untrained_model(tmp_path, steps):
    path = tmp_path / "mine.yaml"
    path.write_text(
        "title: t\nquestion: q\ncells:\n  - {name: tuned, overrides: [lr=5e-3]}\n  - {name: base, base: true}\n"
        "baseline: base\n"
    )
    found = studies(tmp_path, [str(path)], seeds=(1, 2))
    assert run(found) == 0
    assert len(steps) == 12
    tuned, base = findings.collect(found[0], [], resamples=20).cells
    assert len(tuned.by_seed) == 2 and len(base.by_seed) == 1
    assert tuned.overall[0] != tuned.overall[1], "seeds must differ"
    assert tuned.intervals["overall"].value == pytest.approx(sum(tuned.overall) / 2, abs=1e-4)


def test_the_cost_of_seeds_that_ended_at_different_steps_is_that_of_each(tmp_path):
    path = tmp_path / "mine.yaml"
    path.write_text("title: t\nquestion: q\ncells:\n  - {name: tuned, overrides: [lr=5e-3]}\n")
    patient = ["train.steps=10", "train.eval_every=1", "train.patience=1", "train.keep=[]", DEV]
    (study,) = studies(tmp_path, [str(path)], *patient, seeds=(4, 3, 2, 1))
    assert run([study]) == 0
    (tuned,) = findings.collect(study, [], resamples=20).cells
    states = [plan.state_of(study.outputs, name) for name in study.cells["tuned"]]
    ends = [RunFolder(tmp_path / state.training).finished().steps for state in states]
    assert ends[0] < max(ends) and [cost.triplets for cost in tuned.costs] == [8 * end for end in ends]


def test_a_training_that_the_data_end_is_drawn_at_its_last_step(tmp_path):
    path = tmp_path / "mine.yaml"
    path.write_text("title: t\nquestion: q\nlayout: curve\ncells:\n  - {name: base, base: true}\n  - {name: last}\n")
    short = ["data.rows=50", "data.holdout=5", "train.steps=100", "train.epochs=1", "train.keep=[]"]
    (study,) = studies(tmp_path, [str(path)], *short)
    assert run([study]) == 0
    base, last = findings.collect(study, [], resamples=20).cells
    assert (base.step, last.step) == (0, 5)
    assert last.costs[0].triplets == 5 * 8, "as many as a step has, times the steps"


def scored_by(tmp_path: Path, names: str = "AB") -> list[str]:
    """Settings that score random pairs of files, one a set."""
    generator = np.random.default_rng(0)
    for name in names:
        rows = [f"{name} thing {n},a matter {n * n},{generator.random():.3f}" for n in range(12)]
        (tmp_path / f"{name}.csv").write_text("\n".join(["sentence1,sentence2,score", *rows]) + "\n")
    return ["eval=sts", f"eval.folder={tmp_path}", "train.steps=1", "train.keep=[]"]


def test_sets_that_were_scored_in_another_order_before_are_the_same(tmp_path):
    from cft.job import runner as job

    settings = [*scored_by(tmp_path), "model=tiny", "data.rows=200", "data.holdout=20", "logger=none"]
    settings += ["lr=5e-4", "train.batch_size=8", "train.eval_every=2", f"outputs={tmp_path}"]
    job.run(compose_config([*settings, "seed=2", "eval.sets=[B,A]"]))
    path = tmp_path / "mine.yaml"
    path.write_text("title: t\nquestion: q\ncells:\n  - {name: base, base: true}\n  - {name: a}\nbaseline: base\n")
    (study,) = studies(tmp_path, [str(path)], *scored_by(tmp_path), "eval.sets=[A,B]", seeds=(1, 2))
    assert run([study]) == 0
    cell = next(cell for cell in findings.collect(study, [], resamples=20).cells if cell.name == "a")
    assert [list(each.by_set) for each in cell.by_seed] == [["A", "B"], ["B", "A"]], "the second was there before"
    means = [np.mean([each.by_set[name] for each in cell.by_seed]) for name in "AB"]
    assert cell.deviation == pytest.approx(np.std(means))


def test_trainings_of_a_cell_that_were_scored_on_different_pairs_are_no_mean(tmp_path):
    settings = scored_by(tmp_path, "A")
    path = tmp_path / "mine.yaml"
    path.write_text("title: t\nquestion: q\ncells:\n  - {name: a}\n")
    (study,) = studies(tmp_path, [str(path)], *settings, "eval.sets=[A]", seeds=(1, 2))
    assert run([study]) == 0
    content = (tmp_path / "A.csv").read_text()
    (tmp_path / "A.csv").write_text(content + "one thing,another matter,0.5\n")
    name = study.cells["a"][0]
    assert runner.carry_out(name, study.runs[name]), "and killed before the second"
    with pytest.raises(UserError, match="the trainings of cell 'a' were scored on different pairs: the test sets have"):
        findings.collect(study, [], resamples=20)


def test_a_run_that_begins_anew_on_other_files_has_no_results_until_it_is_done(tmp_path, monkeypatch):
    path = tmp_path / "mine.yaml"
    path.write_text("title: t\nquestion: q\ncells:\n  - {name: a, base: true}\n")
    (study,) = studies(tmp_path, [str(path)], *scored_by(tmp_path, "A"), "eval.sets=[A]")
    assert run([study]) == 0 and not findings.collect(study, [], resamples=20).cells[0].status
    with (tmp_path / "A.csv").open("a") as stream:
        stream.write("one thing,another matter,0.5\n")

    def killed(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr(runner, "carry_out", killed)
    with pytest.raises(KeyboardInterrupt):
        run([study])
    assert findings.collect(study, [], resamples=20).cells[0].status == "missing"


def test_a_cell_that_is_not_trained_is_scored_once_whatever_the_seeds(tmp_path):
    path = tmp_path / "mine.yaml"
    path.write_text("title: t\nquestion: q\ncells:\n  - {name: a, overrides: [train.steps=0, 'train.keep=[]']}\n")
    (study,) = studies(tmp_path, [str(path)], seeds=(1, 2))
    assert len(study.cells["a"]) == 1


def test_a_hidden_cell_that_failed_is_told_as_the_comparison_with_it_is_missing(tmp_path):
    path = tmp_path / "mine.yaml"
    path.write_text(
        "title: t\nquestion: q\ncells:\n  - {name: base, base: true}\n  - {name: other, hidden: true, "
        "overrides: [data=files, data.train=nowhere.csv, 'train.keep=[]']}\nbaseline: other\n"
    )
    (study,) = studies(tmp_path, [str(path)])
    assert run([study]) == 1
    text = "\n".join(map(str, sections.blocks(findings.collect(study, [], resamples=20), tmp_path / "report")))
    assert "other: failed: data.train=nowhere.csv: no such file" in text


def test_a_folder_that_the_scale_names_is_where_the_report_looks_too(tmp_path, monkeypatch):
    from cft.study import report

    monkeypatch.chdir(tmp_path)
    Path("mine.yaml").write_text("title: t\nquestion: q\ncells:\n  - {name: base, base: true}\n")
    Path("other.yaml").write_text("title: u\nquestion: q\ncells:\n  - {name: base, base: true}\n")
    Path("place.yaml").write_text("like: smoke\noverrides: [outputs=elsewhere]\n")
    (study,) = found = [plan.compose_study(spec.load("mine.yaml", "place.yaml", []), [], [], compose_config)]
    study.save(plan.study_folder(study.outputs, study.name))
    assert run(found) == 0
    document, page = report.write(["mine.yaml"], "place.yaml", [])
    assert page == Path("elsewhere/studies/mine-place/report.html") and not Path("outputs").exists()
    assert "missing" not in report.render(document, "text")

    document, page = report.write(["mine.yaml", "other.yaml"], "place.yaml", ["outputs='else where'"])
    assert page == Path("else where/studies/report-place.html")
    assert [table.name for table in document.tables()] == ["scores", "scores"], "each has its own, equal or not"

    cells = "cells:\n  - {name: a, overrides: [outputs=x]}\n  - {name: b, base: true}\n"
    Path("mine.yaml").write_text(f"title: t\nquestion: q\n{cells}")
    with pytest.raises(
        UserError, match="mine: its cells have outputs=x and outputs=elsewhere; all of a study is in one"
    ):
        plan.compose_study(spec.load("mine.yaml", "place.yaml", []), [], [], compose_config)


def test_two_files_of_one_name_are_not_one_study(tmp_path):
    from cft.study.arguments import StudyOptions

    for place in ("one", "two"):
        (tmp_path / place).mkdir()
        (tmp_path / place / "mine.yaml").write_text("title: t\nquestion: q\ncells:\n  - {name: base, base: true}\n")
    paths = [str(tmp_path / place / "mine.yaml") for place in ("one", "two")]
    with pytest.raises(UserError, match="one/mine.yaml and .*two/mine.yaml are both called 'mine'"):
        _ = StudyOptions(paths, overrides=[]).names
    same = ["table2", str(spec.folder() / "table2.yaml")]
    assert StudyOptions(same, overrides=[]).names == same
