"""Write a finished embedder for other libraries: `python -m cft.export run=RUN format=sentence-transformers FOLDER`."""

import sys

from cft.deploy.export import COMMAND, export
from cft.system.console import exit_statuses, set_up_console


def main() -> None:
    """Run the command line and end with status 0, 1 (a defect), 2 (the user can mend it) or 130 (Ctrl-C)."""
    set_up_console()
    with exit_statuses("the same command starts over"):
        values = COMMAND.read(sys.argv[1:])
        sys.stdout.write(export(values) + "\n")


if __name__ == "__main__":
    main()
