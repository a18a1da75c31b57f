"""Words that name studies on the command line."""

from dataclasses import KW_ONLY, dataclass
from pathlib import Path
from typing import Annotated

from cft.config.compose import compose_config
from cft.study.spec import available


@dataclass(frozen=True)
class StudyOptions:
    """Which studies, at which scale."""

    experiments: Annotated[list[str], "names, all for each of the paper's, or .yaml files of your own"]
    _: KW_ONLY
    overrides: Annotated[list[str], "settings of all jobs, as for cft.run"]
    scale: Annotated[str, "paper, small, smoke, or a .yaml file"] = "paper"

    @property
    def names(self) -> list[str]:
        """Names of the experiments, "all" replaced by each of the paper's."""
        return [each for name in self.experiments for each in (available() if name == "all" else [name])]


def outputs_of(overrides: list[str]) -> Path:
    """The folder that `outputs=` names."""
    given = [entry for entry in overrides if entry.startswith("outputs=")]
    return Path(compose_config(given[-1:]).outputs)
