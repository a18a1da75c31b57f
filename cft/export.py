"""Write a finished embedder for other libraries: `python -m cft.export run=RUN format=sentence-transformers FOLDER`."""

from cft.config.command_line import CommandLine
from cft.deploy.export import ExportOptions, export

COMMAND = CommandLine("cft.export", ExportOptions, example="run=outputs/smollm2-files-1a2b3c4d5e6f my-embedder")


def main() -> None:
    """Run the command line."""
    COMMAND.run(export)


if __name__ == "__main__":
    main()
