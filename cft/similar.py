"""The texts of a file that are most like a query: `python -m cft.similar run=RUN "a query" FILE`."""

from cft.config.command_line import CommandLine
from cft.deploy.similar import SimilarOptions, nearest
from cft.system.tables import as_text

COMMAND = CommandLine(
    "cft.similar",
    SimilarOptions,
    example='run=outputs/smollm2-files-1a2b3c4d5e6f "how do I reset my password" faq.csv column=question',
)


def main() -> None:
    """Run the command line."""
    COMMAND.run(lambda options: as_text(nearest(options)))


if __name__ == "__main__":
    main()
