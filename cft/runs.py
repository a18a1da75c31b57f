"""What is under outputs/: `python -m cft.runs list|compare|remove`.

python -m cft.runs list lr=5e-4 model=smollm2      trainings, those with these settings
python -m cft.runs compare RUN RUN                 settings that differ, beside scores that differ, with verdicts
python -m cft.runs remove RUN...                   delete trainings with all their scores
"""

import argparse
import sys
from pathlib import Path

from cft.config.schema import Config
from cft.job.runs import compare_runs, find_run, list_runs, remove_runs
from cft.system.console import exit_statuses, set_up_console
from cft.system.errors import UserError
from cft.system.tables import as_text


def main() -> None:
    """Run the command line and end with status 0, 1 (a defect) or 2 (the user can mend it)."""
    set_up_console()
    parser = argparse.ArgumentParser(prog="python -m cft.runs", description="List, compare and remove runs.")
    parser.add_argument("--outputs", default=Config.outputs, type=Path, help="the folder of all results")
    commands = parser.add_subparsers(dest="command", required=True)
    listing = commands.add_parser("list", help="trainings and their scores")
    listing.add_argument("filters", nargs="*", metavar="KEY=VALUE", help="any setting, as in lr=5e-4 or model=phi2")
    comparing = commands.add_parser("compare", help="two runs: settings and scores, with verdicts")
    comparing.add_argument("runs", nargs=2, metavar="RUN", help="a folder, or the end of its name")
    removing = commands.add_parser("remove", help="delete trainings with all their scores")
    removing.add_argument("runs", nargs="+", metavar="RUN", help="a folder, or the end of its name")
    removing.add_argument("--yes", action="store_true", help="do not ask")
    arguments = parser.parse_args()
    with exit_statuses("the same command starts over"):
        if arguments.command == "list":
            table = list_runs(arguments.outputs, arguments.filters)
            if len(table) == 1:
                raise UserError(f"no training under {arguments.outputs}{' that fits' if arguments.filters else ''}")
            sys.stdout.write(as_text(table) + "\n")
        elif arguments.command == "compare":
            one, other = (find_run(arguments.outputs, name) for name in arguments.runs)
            sys.stdout.write(compare_runs(one, other) + "\n")
        else:
            remove_runs([find_run(arguments.outputs, name) for name in arguments.runs], sure=arguments.yes)


if __name__ == "__main__":
    main()
