"""Mine hard negatives: `python -m cft.mine run=RUN data.train=pairs.csv corpus=docs.jsonl out=triplets.jsonl`.

Vectors are kept by embedder and content, so that a command that was interrupted goes on, and another one over the same
documents begins at once. The output comes last, whole.
"""

from cft.config.command_line import CommandLine
from cft.deploy.mine import MineOptions, mine_file

COMMAND = CommandLine(
    "cft.mine",
    MineOptions,
    example="model=minilm data.train=pairs.csv corpus=docs.jsonl out=triplets.jsonl",
)


def main() -> None:
    """Run the command line."""
    COMMAND.run(mine_file, "texts that were embedded are kept, and the same command goes on")


if __name__ == "__main__":
    main()
