"""Who follows a training gets all of it, and never stops or slows it."""

import csv
import json
import sys
import threading
import time
from dataclasses import replace
from pathlib import Path

import captions
import pytest
import yaml
from jobs import CAPTIONS, QUICK, TRIPLETS, composed

from cft.config.schema import LoggerKind, LoggerSettings
from cft.job import tracking as tracking_module
from cft.job.runner import run as run_job
from cft.job.tracking import Job, Result, Tracker, WandbTracker, measures, tracking

STEP = {"event": "step", "step": 3, "loss": 0.5, "seconds": 2.0, "tokens": 100, "nodes": 80}
DEV = {"event": "dev", "step": 3, "spearman": 40.0, "accuracy": None}


class Run:
    """Stands in for a W&B run."""

    def __init__(self, fails: bool = False):
        self.logged, self.finished, self.fails, self.summary, self.artifacts = [], [], fails, {}, []
        self.metrics = {}

    def define_metric(self, name, step_metric):
        self.metrics[name] = step_metric

    def log(self, values, step=None):
        if self.fails:
            raise ConnectionError("no network")
        self.logged.append((step, values))

    def log_artifact(self, artifact):
        self.artifacts.append(artifact)

    def finish(self, exit_code=0):
        self.finished.append(exit_code)


def job(folder: Path, **changes) -> Job:
    told = {"name": "n", "identity": "i", "kind": "train", "folder": folder, "shared": folder, "config": {"lr": 1}}
    return Job(**told | {"triplets": 60} | changes)


def result(folder: Path) -> Result:
    scores = {"before/STS12": 1.0, "after/STS12": 2.0, "before/mean": 1.0, "after/mean": 2.0}
    (folder / "adapter").mkdir(exist_ok=True)
    (folder / "adapter" / "weights").write_text("x")
    return Result(scores, [("set", "after"), ("STS12", "2.00")], {}, step=7, adapter=folder / "adapter", outcome="")


def follow(monkeypatch, run, **changes):
    asked = {}
    monkeypatch.setattr("wandb.init", lambda **options: asked.update(options) or run)
    settings = LoggerSettings(kind=LoggerKind.wandb_offline, group="sweep", tags=["a"], **changes)
    return asked, settings


def test_rates_and_saved_tokens_follow_from_a_row():
    assert measures(STEP, 60) == {
        "step": 3,
        "loss": 0.5,
        "seconds": 2.0,
        "tokens": 100,
        "nodes": 80,
        "triplets_per_second": 30.0,
        "tokens_per_second": 50.0,
        "tokens_saved": pytest.approx(0.2),
    }
    assert measures(DEV, 60) == {"step": 3, "spearman": 40.0}


# Weights & Biases


def test_rows_are_logged_by_event_at_their_step_and_the_run_is_finished(monkeypatch, tmp_path):
    run = Run()
    asked, settings = follow(monkeypatch, run)
    with tracking(settings, job(tmp_path)) as tracker:
        tracker.watch(STEP)
        tracker.watch(DEV)
        tracker.finish(result(tmp_path))
    (step, first), (_, dev), before, after, table = run.logged
    assert step == 3 and first["step/loss"] == 0.5 and first["step/triplets_per_second"] == 30.0
    assert dev == {"dev/step": 3, "dev/spearman": 40.0}
    assert before == (None, {"score/step": 0, "score/STS12": 1.0, "score/mean": 1.0})
    assert after == (None, {"score/step": 7, "score/STS12": 2.0, "score/mean": 2.0})
    assert table[1]["result"].data == [["STS12", "2.00"]]
    assert run.summary["after/mean"] == 2.0 and run.finished == [0] and run.artifacts == []
    assert run.metrics == {"score/*": "score/step"}
    assert asked["mode"] == "offline" and asked["group"] == "sweep" and asked["config"] == {"lr": 1}
    assert asked["job_type"] == "train" and asked["name"] == "n" and asked["id"] == "i" and asked["tags"] == ["a"]


def test_the_adapter_is_kept_on_request(monkeypatch, tmp_path):
    run = Run()
    _, settings = follow(monkeypatch, run, artifact=True)
    with tracking(settings, job(tmp_path)) as tracker:
        tracker.finish(result(tmp_path))
    (artifact,) = run.artifacts
    assert artifact.type == "model" and list(artifact.manifest.entries) == ["weights"]


def test_a_resumed_job_goes_on_with_its_run(monkeypatch, tmp_path):
    asked, settings = follow(monkeypatch, Run())
    settings.kind = LoggerKind.wandb
    with tracking(settings, job(tmp_path)):
        pass
    assert asked["resume"] == "allow" and asked["id"] == "i" and asked["mode"] == "online"


def test_the_run_is_finished_as_failed_when_the_job_fails(monkeypatch, tmp_path):
    run = Run()
    _, settings = follow(monkeypatch, run)
    with pytest.raises(KeyboardInterrupt), tracking(settings, job(tmp_path)):
        raise KeyboardInterrupt
    assert run.finished == [1]


def test_a_failing_wandb_is_reported_once_and_left_out(monkeypatch, tmp_path, caplog):
    run = Run(fails=True)
    _, settings = follow(monkeypatch, run)
    with tracking(settings, job(tmp_path)) as tracker:
        for step in (1, 2, 3):
            tracker.watch({"event": "step", "step": step})
    assert caplog.text.count("Weights & Biases failed and is left out from here on: no network") == 1
    assert run.finished == [0]


def test_a_hanging_wandb_holds_nobody_up(monkeypatch, tmp_path, caplog):
    release = threading.Event()
    run = Run()
    run.log = lambda values, step=None: release.wait(60)
    monkeypatch.setattr(tracking_module, "_PATIENCE", 0.2)
    _, settings = follow(monkeypatch, run)
    began = time.monotonic()
    with tracking(settings, job(tmp_path)) as tracker:
        for step in range(100):
            tracker.watch({"event": "step", "step": step})
    assert time.monotonic() - began < 30
    release.set()
    assert "has not finished" in caplog.text


def test_a_wandb_that_does_not_start_is_reported_and_the_job_goes_on(monkeypatch, tmp_path, caplog):
    def init(**_):
        raise RuntimeError("no key")

    monkeypatch.setattr("wandb.init", init)
    with tracking(LoggerSettings(), job(tmp_path)) as tracker:
        tracker.watch({"event": "step", "step": 1})
    assert type(tracker) is Tracker
    assert "did not start, the job goes on without it: no key" in caplog.text


def test_a_wandb_that_is_not_there_is_reported_and_the_job_goes_on(monkeypatch, tmp_path, caplog):
    monkeypatch.setitem(sys.modules, "wandb", None)
    with tracking(LoggerSettings(), job(tmp_path)) as tracker:
        assert type(tracker) is Tracker
    assert "did not start" in caplog.text


def test_no_logger_imports_no_wandb(monkeypatch, tmp_path):
    monkeypatch.setattr("wandb.init", lambda **_: pytest.fail("W&B was started"))
    with tracking(LoggerSettings(kind=LoggerKind.none), job(tmp_path)) as tracker:
        assert type(tracker) is Tracker
    assert isinstance(WandbTracker, type)


def test_a_sweep_file_gives_commands_that_compose():
    path = Path(__file__).resolve().parents[2] / "docs" / "wandb_sweep.yaml"
    told = yaml.safe_load(path.read_text())
    assert told["command"][:4] == ["${env}", "python", "-m", "cft.run"]
    assert told["command"][4] == "${args_no_hyphens}"  # W&B puts KEY=VALUE in its place
    fixed = [entry for entry in told["command"][5:]]
    for place in (0, -1):
        chosen = [f"{name}={entry['values'][place]}" for name, entry in told["parameters"].items()]
        config = composed(*chosen, *fixed)
        assert config.logger.kind is LoggerKind.wandb
        assert config.lr == told["parameters"]["lr"]["values"][place]
    metric = told["metric"]["name"]
    assert metric.startswith("dev/")  # never a test set


# CSV


def rows_of(path: Path) -> list[dict]:
    with path.open(newline="") as stream:
        return list(csv.DictReader(stream))


def test_a_spreadsheet_has_every_row_and_the_scores(tmp_path):
    with tracking(LoggerSettings(kind=LoggerKind.csv), job(tmp_path)) as tracker:
        tracker.watch(STEP)
        tracker.watch(DEV)
        tracker.finish(result(tmp_path))
    step, dev = rows_of(tmp_path / "history.csv")
    assert (step["event"], step["loss"], step["triplets_per_second"]) == ("step", "0.5", "30.0")
    assert (dev["event"], dev["spearman"], dev["loss"]) == ("dev", "40.0", "")
    assert {row["score"]: row["value"] for row in rows_of(tmp_path / "scores.csv")}["after/STS12"] == "2.0"


def test_a_resumed_training_takes_the_place_of_what_it_repeats(tmp_path):
    settings = LoggerSettings(kind=LoggerKind.csv)
    with tracking(settings, job(tmp_path)) as tracker:
        for step in (1, 2, 3):
            tracker.watch({"event": "step", "step": step, "loss": 9.0})
    with tracking(settings, job(tmp_path)) as tracker:
        for step in (2, 3, 4):
            tracker.watch({"event": "step", "step": step, "loss": 1.0})
    assert [(row["step"], row["loss"]) for row in rows_of(tmp_path / "history.csv")] == [
        ("1", "9.0"),
        ("2", "1.0"),
        ("3", "1.0"),
        ("4", "1.0"),
    ]


def test_a_full_disk_is_reported_once_and_does_not_stop_the_training(tmp_path, caplog):
    with tracking(LoggerSettings(kind=LoggerKind.csv), job(tmp_path / "nowhere")) as tracker:
        (tmp_path / "nowhere").write_text("a file where a folder should be")
        tracker.watch(STEP)
        tracker.watch(STEP)
    assert caplog.text.count("the CSV file failed and is left out") == 1


def test_a_whole_job_leaves_its_spreadsheet(tmp_path):
    told = "model=tiny logger=csv train.steps=3 train.batch_size=8 data.rows=60 data.holdout=10 eval.rows=10".split()
    run_job(composed(*CAPTIONS, f"data.dev={captions.DEV}", *told, "train.eval_every=3", f"outputs={tmp_path}"))
    (folder,) = (path.parent for path in tmp_path.glob("*/history.csv"))
    rows = rows_of(folder / "history.csv")
    assert [(row["event"], row["step"]) for row in rows] == [("step", "1"), ("step", "2"), ("step", "3"), ("dev", "3")]
    assert all(float(row["gradient_norm"]) > 0 and 0 <= float(row["tokens_saved"]) < 1 for row in rows[:3])
    assert "after/captions" in (folder / "scores.csv").read_text()


def test_where_held_out_triplets_alone_are_scored_the_spreadsheet_has_their_order_and_no_mean(tmp_path):
    told = "model=tiny logger=csv eval=none train.steps=2 train.batch_size=8 data.rows=60 data.holdout=10".split()
    run_job(composed(*TRIPLETS, "lr=5e-4", "baseline=none", *told, f"outputs={tmp_path}"))
    (path,) = tmp_path.glob("*/scores.csv")
    scores = {row["score"]: float(row["value"]) for row in rows_of(path)}
    (order,) = (json.loads(found.read_text()) for found in path.parent.glob("evaluations/triplets-*/metrics.json"))
    assert set(scores) == {"before/triplets_in_order", "after/triplets_in_order"}
    assert scores["after/triplets_in_order"] == pytest.approx(100 * order["triplet_accuracy"])


def test_rows_that_waited_when_a_training_was_killed_are_in_the_spreadsheet_of_its_result(tmp_path):
    config = composed(*QUICK, "logger=csv", f"outputs={tmp_path}")
    run_job(config)
    (folder,) = (path.parent for path in tmp_path.glob("*/history.csv"))
    whole = (folder / "history.csv").read_bytes()
    (folder / "history.csv").write_bytes(b"".join(whole.splitlines(keepends=True)[:-2]))
    for path in folder.glob("evaluations/*/reported.json"):
        path.unlink()  # the last thing that a job writes
    run_job(config)
    assert (folder / "history.csv").read_bytes() == whole


def test_a_finished_job_is_reported_to_a_tracker_that_it_did_not_have_before(tmp_path, monkeypatch):
    begun: list[Job] = []
    init = tracking_module.CsvTracker.__init__
    monkeypatch.setattr(tracking_module.CsvTracker, "__init__", lambda self, job: begun.append(job) or init(self, job))
    for logger in ("none", "csv", "none", "csv"):
        run_job(composed(*QUICK, f"logger={logger}", f"outputs={tmp_path}"))
    (folder,) = (path.parent for path in tmp_path.glob("*/history.csv"))
    assert "after/mean" in (folder / "scores.csv").read_text()
    assert len(begun) == 1


def test_a_finished_job_reports_a_baseline_that_it_did_not_have_before(tmp_path, monkeypatch):
    begun: list[Job] = []
    init = tracking_module.CsvTracker.__init__
    monkeypatch.setattr(tracking_module.CsvTracker, "__init__", lambda self, job: begun.append(job) or init(self, job))
    job = [word for word in QUICK if word != "baseline=none"]
    beside = ["baseline=minilm", "model@baseline.model=tiny", "baseline.model.path=random:gpt2"]
    for baseline in (["baseline=none"], beside, beside, ["baseline=none"]):
        run_job(composed(*job, *baseline, "logger=csv", f"outputs={tmp_path}"))
    (path,) = tmp_path.glob("*/scores.csv")
    assert "tiny/mean" in {row["score"] for row in rows_of(path)}
    assert len(begun) == 2


def test_a_finished_job_is_reported_again_to_a_tracker_that_failed(tmp_path, monkeypatch, caplog):
    class Broken(Tracker):
        def __init__(self, job: Job) -> None:
            raise OSError("no network")

    with monkeypatch.context() as patched:
        patched.setattr(tracking_module, "CsvTracker", Broken)
        run_job(composed(*QUICK, "logger=csv", f"outputs={tmp_path}"))
    assert "did not start" in caplog.text and not list(tmp_path.glob("*/history.csv"))
    run_job(composed(*QUICK, "logger=csv", f"outputs={tmp_path}"))
    assert len(list(tmp_path.glob("*/history.csv"))) == 1


def test_a_spreadsheet_tells_evaluations_apart_and_keeps_each(tmp_path):
    settings, first = LoggerSettings(kind=LoggerKind.csv), result(tmp_path)
    (tmp_path / "scores.csv").write_text("score,value\nafter/old,5.0\n")  # as earlier versions wrote it
    other = replace(first, scores={"before/mean": 3.0, "after/mean": 4.0}, step=2)
    for evaluation, found in (("sts-1", first), ("own-2-step-2", other), ("sts-1", first)):
        with tracking(settings, job(tmp_path, evaluation=evaluation)) as tracker:
            tracker.finish(found)
    rows = rows_of(tmp_path / "scores.csv")
    assert {(row["evaluation"], row["step"], row["score"]): row["value"] for row in rows} == {
        ("", "", "after/old"): "5.0",
        ("sts-1", "7", "before/STS12"): "1.0",
        ("sts-1", "7", "after/STS12"): "2.0",
        ("sts-1", "7", "before/mean"): "1.0",
        ("sts-1", "7", "after/mean"): "2.0",
        ("own-2-step-2", "2", "before/mean"): "3.0",
        ("own-2-step-2", "2", "after/mean"): "4.0",
    }
    assert len(rows) == 7


def test_a_job_tells_its_tracker_which_evaluation_it_makes_and_whether_its_steps_were_made_before(
    tmp_path, monkeypatch
):
    jobs: list[Job] = []

    class Kept(Tracker):
        def __init__(self, job: Job) -> None:
            jobs.append(job)

    monkeypatch.setattr(tracking_module, "CsvTracker", Kept)
    for more in ([], ["prompt.template='{text} is:'"], ["eval.step=2"]):
        run_job(composed(*QUICK, "logger=csv", f"outputs={tmp_path}", *more))
    first, prompted, earlier = (each.evaluation for each in jobs)
    assert len({first, prompted, earlier}) == 3 and earlier == f"{first}-step-2"
    assert [each.again for each in jobs] == [False, False, True]


# TensorBoard


def scalars(folder: Path, tag: str) -> list[tuple[int, float]]:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    found = EventAccumulator(str(folder))
    found.Reload()
    return [(event.step, event.value) for event in found.Scalars(tag)]


def test_scores_of_a_baseline_and_of_other_evaluations_are_no_points_of_tensorboards_curve(tmp_path):
    pytest.importorskip("tensorboard", reason="tensorboard is not installed")
    settings, found = LoggerSettings(kind=LoggerKind.tensorboard), result(tmp_path)
    with tracking(settings, job(tmp_path, evaluation="sts-1")) as tracker:
        for step in range(1, 8):
            tracker.watch({"event": "step", "step": step, "loss": 0.5})
        tracker.finish(replace(found, scores=found.scores | {"minilm/STS12": 9.0}))
    earlier = replace(found, scores={"before/STS12": 1.0, "after/STS12": 1.5}, step=2)
    with tracking(settings, job(tmp_path, evaluation="sts-1-step-2", again=True)) as tracker:
        for step in (1, 2):
            tracker.watch({"event": "step", "step": step, "loss": 0.5})
        tracker.finish(earlier)
    folder = tmp_path / "tensorboard"
    assert scalars(folder / "sts-1", "score/STS12") == [(0, 1.0), (7, 2.0)]
    assert scalars(folder / "sts-1", "minilm/STS12") == [(7, 9.0)]
    assert scalars(folder / "sts-1-step-2", "score/STS12") == [(0, 1.0), (2, 1.5)]
    assert [step for step, _ in scalars(folder, "step/loss")] == [*range(1, 8)], "no later step is taken out"


def test_tensorboard_has_every_row_and_scores_over_steps(tmp_path):
    pytest.importorskip("tensorboard", reason="tensorboard is not installed")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    settings = LoggerSettings(kind=LoggerKind.tensorboard)
    for last in (4, 5):  # the second job resumes after step 2
        with tracking(settings, job(tmp_path)) as tracker:
            for step in range(last - 3, last + 1):
                tracker.watch({"event": "step", "step": step, "loss": float(last)})
            tracker.finish(result(tmp_path))
    found = EventAccumulator(str(tmp_path / "tensorboard"))
    found.Reload()
    assert [(event.step, event.value) for event in found.Scalars("step/loss")] == [
        (1, 4.0),
        (2, 5.0),
        (3, 5.0),
        (4, 5.0),
        (5, 5.0),
    ]
    assert [(event.step, event.value) for event in found.Scalars("score/STS12")][-2:] == [(0, 1.0), (7, 2.0)]


class FakeTrackio:
    """Stands in for the package: what is logged, and what a table and a picture are made of."""

    def __init__(self):
        self.asked, self.run = {}, Run()

    def init(self, **options):
        sys.stdout.write("a banner\n")
        self.asked |= options
        return self.run

    @staticmethod
    def Table(columns, data):
        return columns, data

    @staticmethod
    def Image(path):
        return Path(path).name


def test_trackio_has_every_row_and_scores_over_steps(monkeypatch, tmp_path, capsys):
    fake = FakeTrackio()
    monkeypatch.setitem(sys.modules, "trackio", fake)
    settings = LoggerSettings(kind=LoggerKind.trackio, group="sweep", project="p")
    with tracking(settings, job(tmp_path)) as tracker:
        tracker.watch(STEP)
        tracker.watch(DEV)
        tracker.finish(replace(result(tmp_path), pictures={"scores": tmp_path / "scores.png"}))
    assert (fake.asked["project"], fake.asked["group"], fake.asked["resume"]) == ("p", "sweep", "allow")
    assert "i" in fake.asked["name"] and fake.asked["config"] == {"lr": 1, "job": "train"}
    steps = [step for step, _ in fake.run.logged]
    assert steps == [3, 3, 0, 7, 7] and fake.run.logged[0][1]["step/loss"] == 0.5
    assert fake.run.logged[2][1] == {"score/STS12": 1.0, "score/mean": 1.0}
    assert fake.run.logged[4][1] == {"result": (["set", "after"], [["STS12", "2.00"]]), "scores": "scores.png"}
    assert fake.run.finished == [0] and "a banner" not in capsys.readouterr().out


def test_trackio_has_the_scores_of_a_baseline_beside_the_curve(monkeypatch, tmp_path):
    fake, found = FakeTrackio(), result(tmp_path)
    monkeypatch.setitem(sys.modules, "trackio", fake)
    with tracking(LoggerSettings(kind=LoggerKind.trackio), job(tmp_path)) as tracker:
        tracker.finish(replace(found, scores=found.scores | {"minilm/STS12": 9.0, "minilm/mean": 9.0}))
    assert (7, {"minilm/STS12": 9.0, "minilm/mean": 9.0}) in fake.run.logged
    assert (7, {"score/STS12": 2.0, "score/mean": 2.0}) in fake.run.logged


def test_trackio_itself_keeps_what_is_logged(monkeypatch, tmp_path):
    pytest.importorskip("trackio", reason="trackio is not installed (the extra `trackio`)")
    monkeypatch.setattr("trackio.sqlite_storage.TRACKIO_DIR", tmp_path)
    from trackio.sqlite_storage import SQLiteStorage

    for step in (3, 4):  # the second is the first one, resumed
        with tracking(LoggerSettings(kind=LoggerKind.trackio, project="p"), job(tmp_path)) as tracker:
            tracker.watch(STEP | {"step": step})
    (name,) = SQLiteStorage.get_runs("p")
    assert [row["step"] for row in SQLiteStorage.get_logs("p", name)] == [3, 4]


def test_without_trackio_the_job_goes_on(monkeypatch, tmp_path, caplog):
    monkeypatch.setitem(sys.modules, "trackio", None)
    with tracking(LoggerSettings(kind=LoggerKind.trackio), job(tmp_path)) as tracker:
        tracker.watch(STEP)
    assert "Trackio did not start, the job goes on without it" in caplog.text


def test_without_tensorboard_the_job_goes_on(monkeypatch, tmp_path, caplog):
    monkeypatch.setitem(sys.modules, "tensorboard", None)
    monkeypatch.setitem(sys.modules, "torch.utils.tensorboard", None)
    with tracking(LoggerSettings(kind=LoggerKind.tensorboard), job(tmp_path)) as tracker:
        assert type(tracker) is Tracker
    assert "TensorBoard did not start" in caplog.text
