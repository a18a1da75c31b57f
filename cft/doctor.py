"""Look a model over before it is trained: `python -m cft.doctor [GROUP=CHOICE ...] [KEY=VALUE ...]`.

It takes the words of cft.run and says how that job would embed: the contract, a tokenised example, which layers are
trained, how texts are batched, how much memory is needed; and it tries whether a text has the same embedding alone,
among others, and padded with the model's own attention.
"""

import argparse
import logging
import sys

from cft.config.compose import compose_config
from cft.job.doctor import FAILED_STATUS, examine
from cft.system.console import exit_statuses, set_up_console

log = logging.getLogger("cft.doctor")  # not __name__, which is __main__ when this is the command


def main() -> None:
    """Run the command line and end with status 0, 1 (a check failed or a defect) or 2 (the user can mend it)."""
    set_up_console()
    parser = argparse.ArgumentParser(
        prog="python -m cft.doctor",
        description="Look a model over before it is trained: how it embeds, what it needs, and whether batches are "
        "exact.",
    )
    parser.add_argument(
        "overrides", nargs="*", metavar="KEY=VALUE", help="as for cft.run (whose --help lists all), such as model=phi2"
    )
    arguments = parser.parse_args()
    with exit_statuses("nothing was changed"):
        text, healthy = examine(compose_config(arguments.overrides))
        sys.stdout.write(text + "\n")
    if not healthy:
        sys.exit(FAILED_STATUS)


if __name__ == "__main__":
    main()
