"""Embed the texts of a file: `python -m cft.encode run=RUN INPUT OUTPUT`.

Texts are embedded in blocks, each kept beside the output until all are done; a command that was interrupted goes on
where it was. The output comes last, whole.
"""

from cft.config.command_line import CommandLine
from cft.deploy.encode import EncodeOptions, encode_file

COMMAND = CommandLine(
    "cft.encode", EncodeOptions, example="run=outputs/smollm2-files-1a2b3c4d5e6f texts.txt vectors.npy"
)


def main() -> None:
    """Run the command line."""
    COMMAND.run(_encode, "the same command goes on where it was", data_on_stdout=True)


def _encode(options: EncodeOptions) -> None:
    encode_file(options)  # says what it did on stderr: stdout may take the vectors


if __name__ == "__main__":
    main()
