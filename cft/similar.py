"""Search the texts of a file: `python -m cft.similar run=RUN "a query" FILE`.

Queries may also stand in a file (queries=FILE), come through a pipe, or be typed one after the other.
"""

from cft.config.command_line import CommandLine
from cft.deploy.similar import SimilarOptions, search_file

COMMAND = CommandLine(
    "cft.similar",
    SimilarOptions,
    example='run=outputs/smollm2-files-1a2b3c4d5e6f "how do I reset my password" faq.csv column=question',
)


def main() -> None:
    """Run the command line."""
    COMMAND.run(search_file, "texts that were embedded are kept, and the same command goes on", data_on_stdout=True)


if __name__ == "__main__":
    main()
