"""Send a finished embedder to the Hugging Face hub: `python -m cft.push run=RUN repo=OWNER/NAME [dry_run=true]`.

Only files that are listed here are sent, and each text among them is searched for secrets and paths of this machine
first.
"""

import sys

from cft.deploy.push import COMMAND, push
from cft.system.console import exit_statuses, set_up_console


def main() -> None:
    """Run the command line and end with status 0, 1 (a defect), 2 (the user can mend it) or 130 (Ctrl-C)."""
    set_up_console()
    with exit_statuses("the same command starts over"):
        sys.stdout.write(push(COMMAND.read(sys.argv[1:])) + "\n")


if __name__ == "__main__":
    main()
