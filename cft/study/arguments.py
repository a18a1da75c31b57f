"""Words that name studies on the command line."""

from dataclasses import KW_ONLY, dataclass
from pathlib import Path
from typing import Annotated

from cft.config.compose import compose_config
from cft.study.spec import available, find
from cft.system.errors import UserError


@dataclass(frozen=True)
class StudyOptions:
    """Which studies, at which scale."""

    experiments: Annotated[list[str], "names, all for each of the paper's, or .yaml files of your own"]
    _: KW_ONLY
    overrides: Annotated[list[str], "settings of all jobs, as for cft.run"]
    scale: Annotated[str, "paper, small, smoke, or a .yaml file"] = "paper"

    @property
    def names(self) -> list[str]:
        """Names of the experiments, "all" replaced by each of the paper's.

        Raises:
            UserError: if one is unknown, or two files would be one study.
        """
        names = [each for name in self.experiments for each in (available() if name == "all" else [name])]
        called: dict[str, str] = {}
        for name in names:
            other = called.setdefault(Path(name).stem, name)
            if find(other).resolve() != find(name).resolve():
                raise UserError(
                    f"{other} and {name} are both called {Path(name).stem!r}, by which a study's plan and report are "
                    "kept: rename one of them, or run one with other outputs="
                )
        return names


def outputs_of(overrides: list[str]) -> Path:
    """The folder that `outputs=` names, of overrides that hold all that a scale or a cell says of it."""
    return Path(compose_config([entry for entry in overrides if entry.startswith("outputs=")][-1:]).outputs)
