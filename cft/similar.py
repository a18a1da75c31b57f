"""The texts of a file that are most like a query: `python -m cft.similar run=RUN "a query" FILE`."""

import sys

from cft.deploy.similar import COMMAND, nearest
from cft.system.console import exit_statuses, set_up_console
from cft.system.tables import as_text


def main() -> None:
    """Run the command line and end with status 0, 1 (a defect), 2 (the user can mend it) or 130 (Ctrl-C)."""
    set_up_console()
    with exit_statuses("the same command starts over"):
        values = COMMAND.read(sys.argv[1:])
        sys.stdout.write(as_text(nearest(values)) + "\n")


if __name__ == "__main__":
    main()
