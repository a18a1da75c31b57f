"""Who follows a training besides its own history file: Weights & Biases, or nobody."""

import logging
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from cft.settings import LoggerKind, LoggerSettings

log = logging.getLogger(__name__)


class Tracker:
    """Follows nothing; what the trackers below share."""

    def watch(self, row: dict) -> None:
        """Take a row of the training history."""

    def finish(self, scores: dict[str, float], pictures: dict[str, Path]) -> None:
        """Take the final scores, by name, and pictures to show."""


class WandbTracker(Tracker):
    """One W&B run a job. A failure of W&B is reported once and never stops the training."""

    def __init__(self, run: Any) -> None:
        self._run = run
        self._works = True

    def watch(self, row: dict) -> None:
        """Log a row under its event, at its step."""
        values = {f"{row['event']}/{key}": value for key, value in row.items() if isinstance(value, (int, float))}
        self._guard(lambda: self._run.log(values, step=row["step"]))

    def finish(self, scores: dict[str, float], pictures: dict[str, Path]) -> None:
        """Log final scores as the run's summary, and the pictures."""
        import wandb

        self._guard(lambda: self._run.summary.update(scores))
        self._guard(lambda: self._run.log({name: wandb.Image(str(path)) for name, path in pictures.items()}))

    def _guard(self, action: Callable[[], object]) -> None:
        if not self._works:
            return
        try:
            action()
        except Exception as error:  # W&B raises its own, requests' and the system's errors alike
            self._works = False
            log.warning("Weights & Biases failed and is left out from here on: %s", error)


@contextmanager
def tracking(settings: LoggerSettings, *, name: str, folder: Path, config: dict, identity: str) -> Iterator[Tracker]:
    """Follow one job, and end its W&B run however the job ends.

    Args:
        settings: conf/logger.
        name: of the run, readable. identity: of the run, unique and the same when it is resumed.
        folder: where offline runs are written.
        config: what W&B shows as the run's configuration, nested.
    """
    if settings.kind is LoggerKind.none:
        yield Tracker()
        return
    run = _start(settings, name=name, folder=folder, config=config, identity=identity)
    if run is None:
        yield Tracker()
        return
    try:
        yield WandbTracker(run)
    except BaseException:
        run.finish(exit_code=1)
        raise
    run.finish()


def _start(settings: LoggerSettings, *, name: str, folder: Path, config: dict, identity: str) -> Any:
    """Begin a W&B run; None, with a warning, where that fails."""
    os.environ.setdefault("WANDB_SILENT", "true")  # its banner would break the progress bars
    folder.mkdir(parents=True, exist_ok=True)
    try:
        import wandb

        return wandb.init(
            project=settings.project,
            name=name,
            id=identity,
            resume="allow" if settings.kind is LoggerKind.wandb else None,
            group=settings.group,
            tags=settings.tags,
            config=config,
            dir=str(folder),
            mode="online" if settings.kind is LoggerKind.wandb else "offline",
            settings=wandb.Settings(console="off", silent=True),
            reinit="finish_previous",
        )
    except Exception as error:  # see WandbTracker._guard
        log.warning("Weights & Biases did not start, the job goes on without it: %s", error)
        return None
