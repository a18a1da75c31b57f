"""Embed the texts of a file: `python -m cft.encode run=RUN INPUT OUTPUT`.

Texts are embedded in blocks, each kept beside the output until all are done; a command that was interrupted goes on
where it was. The output comes last, whole.
"""

import shutil
import sys

from cft.deploy.encode import _PIPE, COMMAND, _count, _file, encode_file
from cft.system.console import exit_statuses, set_up_console


def main() -> None:
    """Run the command line and end with status 0, 1 (a defect), 2 (the user can mend it) or 130 (Ctrl-C)."""
    set_up_console()
    with exit_statuses("the same command goes on where it was"):
        values = COMMAND.read(sys.argv[1:])
        with _file(values["input"], ".txt") as source, _file(values["output"], ".npy") as target:
            if values["input"] == _PIPE:
                with source.open("wb") as stream:
                    shutil.copyfileobj(sys.stdin.buffer, stream)
            rows, skipped = encode_file(values, source, target)
            if values["output"] == _PIPE:
                with target.open("rb") as stream:
                    shutil.copyfileobj(stream, sys.stdout.buffer)
            left_out = f", {_count(skipped, 'row')} left out" if skipped else ""
            sys.stderr.write(f"{_count(rows, 'text')} embedded{left_out}: {values['output']}\n")


if __name__ == "__main__":
    main()
