"""Which layer and which pooling of a model embed best: `python -m cft.probe [GROUP=CHOICE ...] [KEY=VALUE ...]`.

Takes the same overrides as cft.run, runs every text through the model once, scores every layer with every pooling, and
draws the scores as a heat map. With adapter=RUN it looks into a trained model.
"""

from dataclasses import dataclass
from typing import Annotated

from cft.config.command_line import CommandLine


@dataclass(frozen=True, kw_only=True)
class ProbeOptions:
    """Score every layer of a model with every pooling, as a heat map."""

    overrides: Annotated[list[str], "as for cft.run, such as model=phi2 eval=sts"]


COMMAND = CommandLine("cft.probe", ProbeOptions, example="model=smollm2 eval=sts eval.folder=FOLDER")


def main() -> None:
    """Run the command line."""
    COMMAND.run(_probe)


def _probe(options: ProbeOptions) -> str:
    from cft.config.compose import compose_config
    from cft.job.probe import probe_job

    return probe_job(compose_config(options.overrides))


if __name__ == "__main__":
    main()
