"""Which layer and which pooling of a model embed best: `python -m cft.probe [GROUP=CHOICE ...] [KEY=VALUE ...]`.

It takes the words of cft.run, runs every text through the model once, scores every layer with every pooling, and
draws the scores as a heat map. With adapter=RUN it looks into a trained model.
"""

import argparse
import logging
import sys

from cft.config.compose import compose_config
from cft.system.console import exit_statuses, set_up_console

log = logging.getLogger("cft.probe")  # not __name__, which is __main__ when this is the command


def main() -> None:
    """Run the command line and end with status 0, 1 (a defect) or 2 (the user can mend it)."""
    set_up_console()
    parser = argparse.ArgumentParser(
        prog="python -m cft.probe", description="Score every layer of a model with every pooling, as a heat map."
    )
    parser.add_argument("overrides", nargs="*", metavar="KEY=VALUE", help="as for cft.run, such as model=phi2 eval=sts")
    arguments = parser.parse_args()
    with exit_statuses("the same command starts over"):
        config = compose_config(arguments.overrides)
        from cft.job.probe import probe_job

        sys.stdout.write(probe_job(config) + "\n")


if __name__ == "__main__":
    main()
