"""The command line: `python -m cft.run [-m] [GROUP=CHOICE ...] [KEY=VALUE ...]`."""

import json
import logging
import os
import shutil
import sys
import tempfile
import time
from contextlib import suppress
from dataclasses import replace
from pathlib import Path

import hydra
from hydra._internal.utils import get_args_parser
from hydra.core.hydra_config import HydraConfig
from hydra.errors import CompactHydraException
from hydra.types import RunMode
from omegaconf import DictConfig

from cft.config.compose import CONFIG_NAME, check_overrides, conf_folder, count_jobs, require_settings, to_config
from cft.config.schema import Config
from cft.data.preview import require_readable
from cft.system.console import exit_statuses, report_error, set_up_console
from cft.system.devices import work_on_own_device
from cft.system.digest import digest
from cft.system.disk import require_writable
from cft.system.errors import UserError, first_line
from cft.system.text import shorten

log = logging.getLogger("cft")

# Jobs of a sweep that Hydra composes before the first of them starts, at a few a second.
_BATCH = 10

_LONGEST_CAUSE = 120


class _JobFailed(CompactHydraException):
    """Tells Hydra that a job failed and that its cause has been reported already."""


def main() -> None:
    """Run the command line and end with status 0, 1 (a defect), 2 (the user can mend it), 130 or 143 (interrupted)."""
    set_up_console()
    arguments, unknown = get_args_parser().parse_known_args()
    failures: list[int] = []  # exit statuses of the jobs that failed
    results: list[tuple[list[str], str]] = []  # overrides and outcomes of all
    main_process = os.getpid()
    # Outcomes of jobs in a launcher's own processes.
    elsewhere = Path(tempfile.gettempdir()) / f"cft-sweep-{main_process}-{time.time_ns()}"
    if arguments.multirun:
        with suppress(OSError):  # the summary can do without
            elsewhere.mkdir(mode=0o700)
    # A sweep that is started again, even by another launcher, has its old folder; launched processes inherit the name.
    os.environ["CFT_SWEEP"] = digest(sorted(entry for entry in arguments.overrides if not entry.startswith("hydra")))

    @hydra.main(config_path=str(conf_folder()), config_name=CONFIG_NAME, version_base="1.3")
    def job(composed: DictConfig) -> None:
        """One job; a failure is reported at once, as Hydra would wait for the other jobs of a sweep."""
        launched = os.getpid() != main_process
        if launched:
            work_on_own_device(Path(HydraConfig.get().sweep.dir))
        from cft.job import runner  # after the device is chosen: torch looks at the variable once

        overrides = list(HydraConfig.get().overrides.task)
        try:
            config = _as_part_of_sweep(to_config(composed, overrides), overrides)
            alone = HydraConfig.get().mode is not RunMode.MULTIRUN
            outcome, failed = runner.run(config, alone=alone), False
        except Exception as error:
            failures.append(report_error(error))
            outcome, failed = f"failed: {shorten(first_line(error), _LONGEST_CAUSE)}", True
        if not launched:
            results.append((overrides, outcome))
            return
        _leave_outcome(elsewhere, overrides, outcome)
        if failed:  # only an exception tells the main process
            raise _JobFailed("the cause is given above")

    only_shows = any([arguments.help, arguments.hydra_help, arguments.info, arguments.shell_completion, arguments.cfg])
    other_config = any([arguments.config_dir, arguments.config_path, arguments.config_name])
    try:
        with exit_statuses("the same command goes on from the last checkpoint, if there is one yet"):
            require_settings(unknown)
            if only_shows and arguments.multirun:
                raise UserError(
                    "-m runs the jobs of a sweep, and --cfg, --info and --help show the settings of one: leave one out"
                )
            if not (only_shows or other_config):
                if arguments.multirun:
                    _announce(count_jobs(arguments.overrides))
                for config in check_overrides(arguments.overrides):
                    require_writable(Path(config.outputs))  # Hydra goes there before any job does
                    if not arguments.multirun:  # a sweep's jobs may run where other files are
                        require_readable(config)
            job()
    finally:
        _log_summary(results + _outcomes_left(elsewhere))
        shutil.rmtree(elsewhere, ignore_errors=True)
    if failures:
        sys.exit(min(failures))  # a defect, 1, is the graver


def _as_part_of_sweep(config: Config, overrides: list[str]) -> Config:
    """The job's configuration, in the W&B group of its sweep if it is part of one."""
    context = HydraConfig.get()
    if context.mode is not RunMode.MULTIRUN:
        return config
    log.info("\n# job %s: %s", context.job.num, " ".join(overrides))
    group = config.logger.group or Path(context.sweep.dir).name
    return replace(config, logger=replace(config.logger, group=group))


def _leave_outcome(folder: Path, overrides: list[str], outcome: str) -> None:
    """Write what came out of a job where the main process looks for it, if that is on the same machine."""
    with suppress(OSError):
        (folder / f"{HydraConfig.get().job.num:06}.json").write_text(json.dumps([overrides, outcome]), encoding="utf-8")


def _outcomes_left(folder: Path) -> list[tuple[list[str], str]]:
    """What jobs in other processes wrote, in the order of their numbers."""
    found = []
    for path in sorted(folder.glob("*.json")):
        with suppress(OSError, ValueError):  # of a job that was killed as it wrote
            found.append(tuple(json.loads(path.read_text(encoding="utf-8"))))
    return found


def _announce(jobs: int) -> None:
    """Say how many jobs a sweep has; Hydra composes those of a batch before it starts the first of them."""
    log.info("%s jobs", f"{jobs:,}")
    if jobs > _BATCH and not any("sweeper" in word or "launcher" in word for word in sys.argv[1:]):
        sys.argv.append(f"hydra.sweeper.max_batch_size={_BATCH}")


def _log_summary(results: list[tuple[list[str], str]]) -> None:
    """After a sweep, one line a job: what set it apart, and what came out."""
    if len(results) < 2:
        return
    log.info("\nall jobs")
    common = set.intersection(*(set(overrides) for overrides, _ in results))
    for overrides, outcome in results:
        log.info("  %s  ->  %s", " ".join(entry for entry in overrides if entry not in common), outcome)


if __name__ == "__main__":
    main()
