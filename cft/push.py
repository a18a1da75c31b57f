"""Send a finished embedder to the Hugging Face hub: `python -m cft.push run=RUN repo=OWNER/NAME [dry_run=true]`.

Only files of a fixed list are sent, and each text among them is searched for secrets and paths of this machine first.
"""

from cft.config.command_line import CommandLine
from cft.deploy.push import PushOptions, push

COMMAND = CommandLine(
    "cft.push", PushOptions, example="run=outputs/smollm2-files-1a2b3c4d5e6f repo=me/my-embedder dry_run=true"
)


def main() -> None:
    """Run the command line."""
    COMMAND.run(push)


if __name__ == "__main__":
    main()
