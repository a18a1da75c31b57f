"""The command line: `python -m cft.run [-m] [GROUP=CHOICE ...] [KEY=VALUE ...]`."""

import logging
import os
import sys
from pathlib import Path

import hydra
from hydra._internal.utils import get_args_parser
from hydra.core.hydra_config import HydraConfig
from hydra.errors import CompactHydraException
from hydra.types import RunMode
from omegaconf import DictConfig

from cft.config.compose import CONFIG_NAME, check_overrides, conf_folder, to_config
from cft.system.console import exit_statuses, report_error, set_up_console
from cft.system.digest import digest
from cft.system.disk import require_writable

log = logging.getLogger("cft")


class _JobFailed(CompactHydraException):
    """Tells Hydra that a job failed and that its cause has been reported already."""


def main() -> None:
    """Run the command line and end with status 0, 1 (a defect), 2 (the user can mend it), 130 or 143 (interrupted)."""
    set_up_console()
    arguments = get_args_parser().parse_args()
    asks_only = any([arguments.help, arguments.hydra_help, arguments.info, arguments.shell_completion, arguments.cfg])
    elsewhere = any([arguments.config_dir, arguments.config_path, arguments.config_name])
    failures: list[int] = []
    results: list[tuple[list[str], str]] = []

    started_by = os.getpid()
    # A sweep that is started again, even by another launcher, has its old folder; launched processes inherit the name.
    os.environ["CFT_SWEEP"] = digest(sorted(entry for entry in arguments.overrides if not entry.startswith("hydra")))

    @hydra.main(config_path=str(conf_folder()), config_name=CONFIG_NAME, version_base="1.3")
    def job(composed: DictConfig) -> None:
        _job(composed, failures, results, started_by)

    try:
        with exit_statuses("the same command goes on from the last checkpoint, if there is one yet"):
            if not (asks_only or elsewhere):
                for config in check_overrides(arguments.overrides):
                    require_writable(Path(config.outputs))  # Hydra goes there before any job does
            job()
    finally:
        _summarize(results)
    if failures:
        sys.exit(min(failures))  # a defect, 1, is the graver


def _job(composed: DictConfig, failures: list[int], results: list[tuple[list[str], str]], started_by: int) -> None:
    """One job of a sweep, or the only one. A failure is reported at once: Hydra would wait for the other jobs.

    failures: exit statuses of the jobs that failed. results: overrides and outcomes of those that did not.
    """
    from cft.job import runner

    context = HydraConfig.get()
    sweeping = context.mode is RunMode.MULTIRUN
    try:
        config = to_config(composed, list(context.overrides.task))
        if sweeping:
            log.info("\n# job %s: %s", context.job.num, " ".join(context.overrides.task))
            config.logger.group = config.logger.group or Path(context.sweep.dir).name
        outcome = runner.run(config)
    except Exception as error:
        failures.append(report_error(error))
        if os.getpid() != started_by:  # a launcher's own process: only an exception tells the first one
            raise _JobFailed("the cause is given above") from None
        return
    results.append((list(context.overrides.task), outcome))


def _summarize(results: list[tuple[list[str], str]]) -> None:
    """After a sweep, one line a job: what set it apart, and what came out."""
    if len(results) < 2:
        return
    log.info("\nall jobs")
    common = set.intersection(*(set(overrides) for overrides, _ in results))
    for overrides, outcome in results:
        log.info("  %s  ->  %s", " ".join(entry for entry in overrides if entry not in common), outcome)


if __name__ == "__main__":
    main()
