"""Merge trainings of one base model: `python -m cft.merge runs=[A,B,C] weights=[1,1,1]`."""

from cft.config.command_line import CommandLine
from cft.deploy.merge import MergeOptions, merge_runs

COMMAND = CommandLine("cft.merge", MergeOptions, example="runs=[outputs/smollm2-nli-1a2b3c,outputs/smollm2-nli-4d5e6f]")


def main() -> None:
    """Run the command line."""
    COMMAND.run(merge_runs)


if __name__ == "__main__":
    main()
