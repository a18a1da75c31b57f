"""Who follows a training besides its own history file: Weights & Biases, TensorBoard, a CSV file, or nobody.

None of them may stop a training or slow it down: what fails or hangs is reported once and left out.
"""

import csv
import logging
import os
import queue
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from cft.config.schema import LoggerKind, LoggerSettings
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
    "tokens_saved spearman"
).split()


@dataclass(frozen=True)
class Job:
    """What is followed.

    name: readable. identity: unique, and the same when the job is resumed. kind: train, or evaluate for what is only
    scored again. folder: the job's own. shared: the folder of all jobs. config: nested. triplets: of a batch.
    """

    name: str
    identity: str
    kind: str
    folder: Path
    shared: Path
    config: dict
    triplets: int


@dataclass(frozen=True)
class Result:
    """What came out. scores: by name, as in after/STS12. table: for people, its header first. pictures: by name.

    step: of the training that was scored. adapter: the folder of its weights.
    """

    scores: dict[str, float]
    table: list[Row]
    pictures: dict[str, Path]
    step: int
    adapter: Path


class Tracker:
    """Follows nothing; what the trackers below share."""

    def watch(self, row: dict) -> None:
        """Take a row of the training history."""

    def finish(self, result: Result) -> None:
        """Take the outcome."""

    def close(self, *, failed: bool) -> None:
        """Be done, whether the job is or not."""


def measures(row: dict, triplets: int) -> dict[str, float]:
    """A history row's numbers, and what follows from them: rates, and the share of tokens that sharing saved."""
    found = {key: value for key, value in row.items() if isinstance(value, (int, float))}
    if row.get("seconds"):
        found["triplets_per_second"] = triplets / row["seconds"]
        found["tokens_per_second"] = row["tokens"] / row["seconds"]
    if row.get("tokens"):
        found["tokens_saved"] = 1 - row["nodes"] / row["tokens"]
    return found


class CsvTracker(Tracker):
    """The history as a spreadsheet; a resumed training writes over what it repeats."""

    def __init__(self, job: Job) -> None:
        self._job = job
        self._begun = False

    def watch(self, row: dict) -> None:
        """Add a line."""
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
        """Write the scores beside it."""
        path = self._job.folder / SCORES_FILE
        with atomic_write(path) as part, part.open("w", encoding="utf-8", newline="") as stream:
            csv.writer(stream).writerows([("score", "value"), *result.scores.items()])


class TensorBoardTracker(Tracker):
    """Event files in the job's folder."""

    def __init__(self, job: Job) -> None:
        from torch.utils.tensorboard import SummaryWriter

        self._job = job
        self._make = SummaryWriter
        self._writer: Any = None

    def _open(self, step: int) -> Any:
        if self._writer is None:  # a resumed training's repeated steps take the place of the first ones
            self._writer = self._make(str(self._job.folder / TENSORBOARD_FOLDER), purge_step=step)
        return self._writer

    def watch(self, row: dict) -> None:
        """Add a row's numbers under its event."""
        writer = self._open(row["step"])
        for name, value in measures(row, self._job.triplets).items():
            if name != "step":
                writer.add_scalar(f"{row['event']}/{name}", value, row["step"])

    def finish(self, result: Result) -> None:
        """Add the scores: before at step 0, after at the step that was scored."""
        writer = self._open(result.step + 1)
        for name, value in result.scores.items():
            side, _, what = name.partition("/")
            writer.add_scalar(f"score/{what}", value, 0 if side == "before" else result.step)

    def close(self, *, failed: bool) -> None:
        """Write what is left."""
        if self._writer is not None:
            self._writer.close()


class _Cautious(Tracker):
    """Another tracker, left out after its first failure."""

    def __init__(self, tracker: Tracker, whose: str) -> None:
        self._tracker = tracker
        self._whose = whose
        self._works = True

    def watch(self, row: dict) -> None:
        self._guard(lambda: self._tracker.watch(row))

    def finish(self, result: Result) -> None:
        self._guard(lambda: self._tracker.finish(result))

    def close(self, *, failed: bool) -> None:
        self._guard(lambda: self._tracker.close(failed=failed))

    def _guard(self, call: Callable[[], object]) -> None:
        if not self._works:
            return
        try:
            call()
        except Exception as error:  # a full disk, a file that somebody opened: whatever it is, the training goes on
            self._works = False
            log.warning("%s failed and is left out from here on: %s", self._whose, error)


class WandbTracker(Tracker):
    """One W&B run a job, fed by a thread of its own."""

    def __init__(self, job: Job, run: Any, *, artifact: bool) -> None:
        self._job = job
        self._run = run
        self._artifact = artifact
        self._work = _Background("Weights & Biases")
        self._work.do(lambda: run.define_metric("score/*", step_metric="score/step"))

    def watch(self, row: dict) -> None:
        """Log a row under its event, at its step."""
        values = {f"{row['event']}/{key}": value for key, value in measures(row, self._job.triplets).items()}
        self._work.do(lambda: self._run.log(values, step=row["step"]))

    def finish(self, result: Result) -> None:
        """Log final scores as summary and over steps, the table, the pictures and, on request, the adapter."""
        self._work.do(lambda: self._finish(result))

    def _finish(self, result: Result) -> None:
        import wandb

        self._run.summary.update(result.scores)
        for step, side in ((0, "before"), (result.step, "after")):
            of_side = {name.partition("/")[2]: value for name, value in result.scores.items() if name.startswith(side)}
            self._run.log({"score/step": step, **{f"score/{name}": value for name, value in of_side.items()}})
        header, *rows = result.table
        shown = {name: wandb.Image(str(path)) for name, path in result.pictures.items()}
        self._run.log({"result": wandb.Table(columns=list(header), data=[list(row) for row in rows]), **shown})
        if self._artifact:
            artifact = wandb.Artifact(self._job.name, type="model")
            artifact.add_dir(str(result.adapter))
            self._run.log_artifact(artifact)

    def close(self, *, failed: bool) -> None:
        """End the run."""
        self._work.do(lambda: self._run.finish(exit_code=1 if failed else 0), always=True)
        self._work.end()


class _Background:
    """Calls that are made in order by another thread; after the first that fails, none is made."""

    def __init__(self, whose: str) -> None:
        self._whose = whose
        self._works = True
        self._calls: queue.SimpleQueue = queue.SimpleQueue()
        self._thread = threading.Thread(target=self._serve, daemon=True)
        self._thread.start()

    def do(self, call: Callable[[], object], *, always: bool = False) -> None:
        """Have it called soon; `always`, even after a failure."""
        self._calls.put((call, always))

    def _serve(self) -> None:
        while (entry := self._calls.get()) is not None:
            call, always = entry
            if not self._works and not always:
                continue
            try:
                call()
            except Exception as error:  # W&B raises its own, requests' and the system's errors alike
                if self._works:
                    log.warning("%s failed and is left out from here on: %s", self._whose, error)
                self._works = False

    def end(self) -> None:
        """Wait until all is done, but not for ever."""
        self._calls.put(None)
        self._thread.join(_PATIENCE)
        if self._thread.is_alive():
            log.warning("%s has not finished within %d seconds; the job goes on without it", self._whose, _PATIENCE)


@contextmanager
def tracking(settings: LoggerSettings, job: Job) -> Iterator[Tracker]:
    """Follow one job, however it ends."""
    tracker = _start(settings, job)
    try:
        yield tracker
    except BaseException:
        tracker.close(failed=True)
        raise
    tracker.close(failed=False)


def _start(settings: LoggerSettings, job: Job) -> Tracker:
    if settings.kind is LoggerKind.none:
        return Tracker()
    try:
        if settings.kind is LoggerKind.csv:
            return _Cautious(CsvTracker(job), "the CSV file")
        if settings.kind is LoggerKind.tensorboard:
            return _Cautious(TensorBoardTracker(job), "TensorBoard")
        return WandbTracker(job, _start_wandb(settings, job), artifact=settings.artifact)
    except Exception as error:  # see _Background
        name = {LoggerKind.tensorboard: "TensorBoard"}.get(settings.kind, "Weights & Biases")
        log.warning("%s did not start, the job goes on without it: %s", name, error)
        return Tracker()


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
