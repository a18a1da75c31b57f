"""Trackers of a training besides its own history file: Weights & Biases, Trackio, TensorBoard, a CSV file, or none.

None of them may stop a training or slow it down: one that fails or hangs is reported once and left out.
"""

import csv
import logging
import os
import queue
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, redirect_stdout
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from cft.config.schema import LoggerKind, LoggerSettings
from cft.job.run_folder import RunFolder
from cft.system.errors import GivenUp
from cft.system.files import atomic_write
from cft.system.tables import Row

log = logging.getLogger(__name__)

CSV_FILE = "history.csv"
SCORES_FILE = "scores.csv"
TENSORBOARD_FOLDER = "tensorboard"

# Seconds that a service may take to begin, and to end, before the job goes on without it.
_PATIENCE = 60

_COLUMNS = (
    "event step loss accuracy candidates lr gradient_norm tokens nodes seconds triplets_per_second tokens_per_second "
    "tokens_saved spearman ndcg@10 scored_loss"
).split()


_SCORE_COLUMNS = ("score", "value", "evaluation", "step")


@dataclass(frozen=True)
class Job:
    """The job that is tracked."""

    name: str
    identity: str  # unique, and the same when the job is resumed
    kind: str  # train, or evaluate if it is only scored again
    folder: Path  # of its training, which several jobs may score
    shared: Path  # of all jobs
    config: dict  # nested
    triplets: int  # of a batch; 0 where there are scored pairs alone
    evaluation: str = ""  # which of its training's evaluations it makes, and of which earlier step
    again: bool = False  # whether the steps to come were made before, and are in the folder's history


@dataclass(frozen=True)
class Result:
    """The outcome of a job."""

    scores: dict[str, float]  # by name, as in after/STS12
    table: list[Row]  # for people, its header first
    pictures: dict[str, Path]  # by name
    step: int  # of the training, whose weights were scored
    adapter: Path  # folder of the weights
    outcome: str  # in one line


class Tracker:
    """Tracks nothing; the interface of the trackers below."""

    works = True  # whether all that it was given was taken, as far as is known

    def watch(self, row: dict) -> None:
        """Take a row of the training history."""

    def finish(self, result: Result) -> None:
        """Take the outcome."""

    def close(self, *, failed: bool) -> None:
        """Be done, whether the job is or not."""


def measures(row: dict, triplets: int) -> dict[str, float]:
    """A history row's numbers, and what follows from them: rates, and the share of tokens that sharing saved."""
    numbers = {key: value for key, value in row.items() if isinstance(value, (int, float))}
    if row.get("seconds"):
        if triplets:
            numbers["triplets_per_second"] = triplets / row["seconds"]
        numbers["tokens_per_second"] = row["tokens"] / row["seconds"]
    if row.get("tokens"):
        numbers["tokens_saved"] = 1 - row["nodes"] / row["tokens"]
    return numbers


def _under_event(row: dict, triplets: int) -> dict[str, float]:
    """A history row's numbers by the names of event and number."""
    return {f"{row['event']}/{key}": value for key, value in measures(row, triplets).items()}


def _over_steps(result: Result) -> list[tuple[int, dict[str, float]]]:
    """Final scores at the steps whose weights have them: before at 0, after at the one that was scored."""
    found = []
    for step, side in ((0, "before"), (result.step, "after")):
        names = (name for name in result.scores if name.partition("/")[0] == side)
        found.append((step, {f"score/{name.partition('/')[2]}": result.scores[name] for name in names}))
    return found


def _beside(result: Result) -> dict[str, float]:
    """Final scores of what stands beside the result, its baseline, by its name."""
    return {name: value for name, value in result.scores.items() if name.partition("/")[0] not in ("before", "after")}


class CsvTracker(Tracker):
    """The history as a spreadsheet; a resumed training writes over what it repeats."""

    def __init__(self, job: Job) -> None:
        self._job = job
        self._begun = False

    def watch(self, row: dict) -> None:
        """Add a line."""
        if self._job.again:
            return
        path = self._job.folder / CSV_FILE
        if not self._begun:
            self._keep_before(path, row["step"])
            self._begun = True
        with path.open("a", encoding="utf-8", newline="") as stream:
            values = {"event": row["event"], **measures(row, self._job.triplets)}
            csv.DictWriter(stream, _COLUMNS, extrasaction="ignore").writerow(values)

    def _keep_before(self, path: Path, step: int) -> None:
        rows = list(csv.DictReader(path.open(encoding="utf-8", newline=""))) if path.exists() else []
        with atomic_write(path) as part, part.open("w", encoding="utf-8", newline="") as stream:
            writer = csv.DictWriter(stream, _COLUMNS)
            writer.writeheader()
            writer.writerows(row for row in rows if int(row["step"]) < step)

    def finish(self, result: Result) -> None:
        """Write the scores, and the history anew: a killed training may have left rows that waited."""
        rows = RunFolder(self._job.folder).history()
        if rows:
            with (
                atomic_write(self._job.folder / CSV_FILE) as part,
                part.open("w", encoding="utf-8", newline="") as stream,
            ):
                writer = csv.DictWriter(stream, _COLUMNS, extrasaction="ignore")
                writer.writeheader()
                writer.writerows({"event": row["event"], **measures(row, self._job.triplets)} for row in rows)
        self._write_scores(result)

    def _write_scores(self, result: Result) -> None:
        """Enter the scores beside those of other evaluations, and of the weights of other steps."""
        path, own = self._job.folder / SCORES_FILE, {"evaluation": self._job.evaluation, "step": str(result.step)}
        known = list(csv.DictReader(path.open(encoding="utf-8", newline=""))) if path.exists() else []
        # Rows of earlier versions do not say what they are of.
        rows = [row for row in known if any(row.get(key) != value for key, value in own.items())]
        rows += [{"score": name, "value": value, **own} for name, value in result.scores.items()]
        with atomic_write(path) as part, part.open("w", encoding="utf-8", newline="") as stream:
            writer = csv.DictWriter(stream, _SCORE_COLUMNS, extrasaction="ignore")
            writer.writeheader()
            writer.writerows(rows)


class TensorBoardTracker(Tracker):
    """Event files in the training's folder: its history, and in a folder of its own each evaluation's scores."""

    def __init__(self, job: Job) -> None:
        from torch.utils.tensorboard import SummaryWriter

        self._job = job
        self._make = SummaryWriter
        self._writer: Any = None

    def watch(self, row: dict) -> None:
        """Add a row's numbers under its event."""
        if self._job.again:
            return
        if self._writer is None:  # a resumed training's repeated steps take the place of the first ones
            self._writer = self._make(str(self._job.folder / TENSORBOARD_FOLDER), purge_step=row["step"])
        for name, value in measures(row, self._job.triplets).items():
            if name != "step":
                self._writer.add_scalar(f"{row['event']}/{name}", value, row["step"])

    def finish(self, result: Result) -> None:
        """Add the scores: before at step 0, after at the step that was scored, and there those beside it."""
        # One tag in one folder is one curve, so that evaluations must not share it.
        with self._make(str(self._job.folder / TENSORBOARD_FOLDER / self._job.evaluation)) as writer:
            for step, scores in [*_over_steps(result), (result.step, _beside(result))]:
                for name, value in scores.items():
                    writer.add_scalar(name, value, step)

    def close(self, *, failed: bool) -> None:
        """Write what is left."""
        if self._writer is not None:
            self._writer.close()


class WandbTracker(Tracker):
    """One W&B run a job."""

    def __init__(self, job: Job, run: Any, *, artifact: bool) -> None:
        self._job = job
        self._run = run
        self._artifact = artifact

    def watch(self, row: dict) -> None:
        """Log a row under its event, at its step."""
        self._run.log(_under_event(row, self._job.triplets), step=row["step"])

    def finish(self, result: Result) -> None:
        """Log final scores as summary and over steps, the table, the pictures and, on request, the adapter."""
        import wandb

        self._run.define_metric("score/*", step_metric="score/step")
        self._run.summary.update(result.scores)
        for step, scores in _over_steps(result):
            self._run.log({"score/step": step, **scores})
        header, *rows = result.table
        images = {name: wandb.Image(str(path)) for name, path in result.pictures.items()}
        self._run.log({"result": wandb.Table(columns=list(header), data=[list(row) for row in rows]), **images})
        if self._artifact:
            artifact = wandb.Artifact(self._job.name, type="model")
            artifact.add_dir(str(result.adapter))
            self._run.log_artifact(artifact)

    def close(self, *, failed: bool) -> None:
        """End the run."""
        self._run.finish(exit_code=1 if failed else 0)


class TrackioTracker(Tracker):
    """One run of Trackio's a job, in a database on this machine."""

    def __init__(self, job: Job, run: Any) -> None:
        self._job = job
        self._run = run

    def watch(self, row: dict) -> None:
        """Log a row under its event, at its step."""
        self._run.log(_under_event(row, self._job.triplets), step=row["step"])

    def finish(self, result: Result) -> None:
        """Log final scores over steps and those beside them, the table and the pictures."""
        import trackio

        for step, scores in [*_over_steps(result), (result.step, _beside(result))]:
            if scores:
                self._run.log(scores, step=step)
        header, *rows = result.table
        images = {name: trackio.Image(str(path)) for name, path in result.pictures.items()}
        table = trackio.Table(columns=list(header), data=[list(row) for row in rows])
        self._run.log({"result": table, **images}, step=result.step)

    def close(self, *, failed: bool) -> None:
        """End the run."""
        with _quiet():
            self._run.finish()


@contextmanager
def _quiet() -> Iterator[None]:
    """Leave out what a service prints of itself: it would break the progress bars."""
    with open(os.devnull, "w", encoding="utf-8") as nowhere, redirect_stdout(nowhere):
        yield


class _Isolated(Tracker):
    """Another tracker in a thread of its own, left out after its first failure; it is closed all the same."""

    def __init__(self, tracker: Tracker, name: str) -> None:
        self._tracker, self._name = tracker, name
        self._calls: queue.SimpleQueue[Callable[[], None] | None] = queue.SimpleQueue()
        self._thread = threading.Thread(target=self._serve, daemon=True)
        self._thread.start()

    def watch(self, row: dict) -> None:
        self._calls.put(lambda: self._tracker.watch(row) if self.works else None)

    def finish(self, result: Result) -> None:
        self._calls.put(lambda: self._tracker.finish(result) if self.works else None)

    def close(self, *, failed: bool) -> None:
        """Wait until all calls are done, but not for ever."""
        self._calls.put(lambda: self._tracker.close(failed=failed))
        self._calls.put(None)
        self._thread.join(_PATIENCE)
        if self._thread.is_alive():
            self.works = False
            log.warning("%s has not finished within %d seconds; the job goes on without it", self._name, _PATIENCE)

    def _serve(self) -> None:
        while (call := self._calls.get()) is not None:
            try:
                call()
            except Exception as error:  # a full disk, a service's own errors: whatever it is, the training goes on
                if self.works:
                    log.warning("%s failed and is left out from here on: %s", self._name, error)
                self.works = False


@contextmanager
def tracking(settings: LoggerSettings, job: Job) -> Iterator[Tracker]:
    """Track one job and close the tracker, however the job ends."""
    tracker = _start(settings, job)
    try:
        yield tracker
    except BaseException as error:
        tracker.close(failed=not isinstance(error, GivenUp))
        raise
    tracker.close(failed=False)


def _start(settings: LoggerSettings, job: Job) -> Tracker:
    names = {LoggerKind.csv: "the CSV file", LoggerKind.tensorboard: "TensorBoard", LoggerKind.trackio: "Trackio"}
    name = names.get(settings.kind, "Weights & Biases")
    try:
        if settings.kind is LoggerKind.none:
            return Tracker()
        if settings.kind is LoggerKind.csv:
            return _Isolated(CsvTracker(job), name)
        if settings.kind is LoggerKind.tensorboard:
            return _Isolated(TensorBoardTracker(job), name)
        if settings.kind is LoggerKind.trackio:
            return _Isolated(TrackioTracker(job, _start_trackio(settings, job)), name)
        return _Isolated(WandbTracker(job, _start_wandb(settings, job), artifact=settings.artifact), name)
    except Exception as error:  # see _Isolated
        log.warning("%s did not start, the job goes on without it: %s", name, error)
        tracker = Tracker()
        tracker.works = False
        return tracker


def _start_trackio(settings: LoggerSettings, job: Job) -> Any:
    import trackio

    with _quiet():
        return trackio.init(
            project=settings.project,
            name=f"{job.name} {job.identity}",  # by its name a run is found again
            group=settings.group,
            config=job.config | {"job": job.kind},
            resume="allow",
            embed=False,
            auto_log_gpu=False,
            auto_log_cpu=False,
        )


def _start_wandb(settings: LoggerSettings, job: Job) -> Any:
    os.environ.setdefault("WANDB_SILENT", "true")  # its banner would break the progress bars
    job.shared.mkdir(parents=True, exist_ok=True)
    import wandb

    online = settings.kind is LoggerKind.wandb
    return wandb.init(
        project=settings.project,
        name=job.name,
        id=job.identity,
        resume="allow" if online else None,
        group=settings.group,
        job_type=job.kind,
        tags=settings.tags,
        config=job.config,
        dir=str(job.shared),
        mode="online" if online else "offline",
        settings=wandb.Settings(console="off", silent=True, init_timeout=_PATIENCE),
        reinit="finish_previous",
    )
