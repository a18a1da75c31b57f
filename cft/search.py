"""Search for good settings: `python -m cft.search [--trials N] NAME KEY=VALUES... KEY=VALUE...`.

python -m cft.search --trials 20 lr-and-rank 'lr=tag(log,interval(1e-5,1e-3))' lora.rank=4,8,16 data=files ...

Optuna proposes settings; each is trained, and judged by its Spearman correlation on development pairs during the
training. The test sets are not looked at. Trainings that fall behind are given up early. Everything is kept under
outputs/searches/NAME, and the same command goes on where it was.
"""

import argparse
import logging
import sys

from cft.study.search import search
from cft.system.console import exit_statuses, set_up_console
from cft.system.tables import as_text

log = logging.getLogger("cft.search")  # also where this module is the command itself


def main() -> None:
    """Run the command line and end with status 0, 1 (a defect), 2 (the user can mend it) or 130 (interrupted)."""
    set_up_console()
    parser = argparse.ArgumentParser(prog="python -m cft.search", description="Search for good settings with Optuna.")
    parser.add_argument("name", metavar="NAME", help="of the search; its folder under outputs/searches/")
    parser.add_argument(
        "what",
        nargs="+",
        metavar="KEY=VALUE",
        help="settings; several values (lora.rank=4,8) or an interval ('lr=tag(log,interval(1e-5,1e-3))') are searched",
    )
    parser.add_argument("--trials", type=int, default=20, help="how many in all, those of earlier calls counted in")
    parser.add_argument("--seed", type=int, default=0, help="of the proposals")
    parser.add_argument("--no-pruning", action="store_true", help="train every trial to its end")
    given = parser.parse_intermixed_args()
    with exit_statuses("the same command goes on where it was"):
        table = search(given.name, given.what, trials=given.trials, seed=given.seed, prune=not given.no_pruning)
        sys.stdout.write("\n" + as_text(table) + "\n")


if __name__ == "__main__":
    main()
