"""W&B follows, is always finished, and never stops a training."""

import pytest

from cft.settings import LoggerKind, LoggerSettings
from cft.tracking import Tracker, WandbTracker, tracking


class Run:
    """Stands in for a W&B run."""

    def __init__(self, fails: bool = False):
        self.logged, self.finished, self.fails, self.summary = [], [], fails, {}

    def log(self, values, step=None):
        if self.fails:
            raise ConnectionError("no network")
        self.logged.append((step, values))

    def finish(self, exit_code=0):
        self.finished.append(exit_code)


def follow(monkeypatch, run):
    asked = {}
    monkeypatch.setattr("wandb.init", lambda **options: asked.update(options) or run)
    settings = LoggerSettings(kind=LoggerKind.wandb_offline, group="sweep", tags=["a"])
    return asked, settings


def test_rows_are_logged_by_event_at_their_step_and_the_run_is_finished(monkeypatch, tmp_path):
    run = Run()
    asked, settings = follow(monkeypatch, run)
    with tracking(settings, name="n", folder=tmp_path, config={"lr": 1}, identity="i") as tracker:
        tracker.watch({"event": "step", "step": 3, "loss": 0.5})
        tracker.watch({"event": "dev", "step": 3, "spearman": 40.0, "accuracy": None})
        tracker.finish({"after/mean": 1.0}, {})
    assert run.logged[:2] == [(3, {"step/step": 3, "step/loss": 0.5}), (3, {"dev/step": 3, "dev/spearman": 40.0})]
    assert run.summary == {"after/mean": 1.0} and run.finished == [0]
    assert asked["mode"] == "offline" and asked["group"] == "sweep" and asked["config"] == {"lr": 1}


def test_the_run_is_finished_as_failed_when_the_job_fails(monkeypatch, tmp_path):
    run = Run()
    _, settings = follow(monkeypatch, run)
    with pytest.raises(KeyboardInterrupt), tracking(settings, name="n", folder=tmp_path, config={}, identity="i"):
        raise KeyboardInterrupt
    assert run.finished == [1]


def test_a_failing_wandb_is_reported_once_and_left_out(caplog):
    tracker = WandbTracker(Run(fails=True))
    for step in (1, 2, 3):
        tracker.watch({"event": "step", "step": step})
    assert caplog.text.count("Weights & Biases failed and is left out from here on: no network") == 1


def test_a_wandb_that_does_not_start_is_reported_and_the_job_goes_on(monkeypatch, tmp_path, caplog):
    def init(**_):
        raise RuntimeError("no key")

    monkeypatch.setattr("wandb.init", init)
    with tracking(LoggerSettings(), name="n", folder=tmp_path, config={}, identity="i") as tracker:
        tracker.watch({"event": "step", "step": 1})
    assert type(tracker) is Tracker
    assert "did not start, the job goes on without it: no key" in caplog.text


def test_no_logger_imports_no_wandb(monkeypatch, tmp_path):
    monkeypatch.setattr("wandb.init", lambda **_: pytest.fail("W&B was started"))
    with tracking(LoggerSettings(kind=LoggerKind.none), name="n", folder=tmp_path, config={}, identity="i") as tracker:
        assert type(tracker) is Tracker
