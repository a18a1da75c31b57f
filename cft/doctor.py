"""Look a model over before it is trained: `python -m cft.doctor [GROUP=CHOICE ...] [KEY=VALUE ...]`.

Takes the same overrides as cft.run and reports how that job would embed: the contract, a tokenised example, which
layers are trained, how texts are batched, how much memory is needed. It also tests whether a text has the same
embedding alone, in a batch, and padded with the model's own attention.
"""

import sys
from dataclasses import dataclass
from typing import Annotated

from cft.config.command_line import CommandLine


@dataclass(frozen=True, kw_only=True)
class DoctorOptions:
    """Look a model over before it is trained: how it embeds, what it needs, and whether batches are exact."""

    overrides: Annotated[list[str], "as for cft.run (whose --help lists all), such as model=phi2"]


COMMAND = CommandLine("cft.doctor", DoctorOptions, example="model=smollm2 data=files data.train=triplets.csv")


def main() -> None:
    """Run the command line; the status is 1 if a check failed."""
    COMMAND.run(_examine, "nothing was changed")


def _examine(options: DoctorOptions) -> None:
    from cft.config.compose import compose_config
    from cft.job.doctor import FAILED_STATUS, examine

    text, healthy = examine(compose_config(options.overrides))
    sys.stdout.write(text + "\n")
    if not healthy:
        sys.exit(FAILED_STATUS)


if __name__ == "__main__":
    main()
