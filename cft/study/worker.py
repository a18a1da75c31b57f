"""Some runs of a study in a process of a Hydra launcher; `cft.study run --launcher NAME` starts it.

python -m cft.study.worker -m runs=FILE group=0,1,2 hydra/launcher=joblib
"""

import logging
from dataclasses import dataclass, field
from pathlib import Path

import hydra
from hydra.core.config_store import ConfigStore
from hydra.errors import CompactHydraException
from omegaconf import MISSING

from cft.config.schema import Config
from cft.system import signals
from cft.system.console import exit_statuses, set_up_console
from cft.system.devices import work_on_own_device
from cft.system.digest import from_plain
from cft.system.files import read_json


@dataclass
class Settings:
    """Settings of the worker, and of Hydra: what it logs and writes goes nowhere."""

    runs: str = MISSING  # a file of runs and groups, as `cft.study.runner` writes it
    group: int = 0  # which of the groups to do
    defaults: list = field(
        default_factory=lambda: [{"override hydra/job_logging": "none"}, {"override hydra/hydra_logging": "none"}]
    )
    hydra: dict = field(default_factory=lambda: {"output_subdir": None, "sweep": {"subdir": "."}})


ConfigStore.instance().store(name="study_worker", node=Settings)


class _GroupFailed(CompactHydraException):
    """Tells the launcher that runs failed whose causes have been reported already."""


@hydra.main(config_path=None, config_name="study_worker", version_base="1.3")
def work(settings: Settings) -> None:
    """Do one group, one run after the other."""
    set_up_console()
    work_on_own_device(Path(settings.runs).parent)
    from cft.study import runner  # after the device is chosen: torch looks at the variable once

    launched = read_json(Path(settings.runs))
    failed = 0
    with signals.handle_signals():  # in a process of the launcher nobody has arranged that
        for name in launched["groups"][settings.group]:
            logging.getLogger("cft").info("\n# group %d, run %s", settings.group, name)
            failed += not runner.carry_out(name, from_plain(Config, launched["runs"][name]))
    if failed:
        raise _GroupFailed(f"{failed} runs of group {settings.group} failed; the causes are given above")


if __name__ == "__main__":
    with exit_statuses("the study's command goes on from there"):
        work()
