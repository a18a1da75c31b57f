"""Search for good settings: `python -m cft.search NAME KEY=VALUES... KEY=VALUE... [trials=N]`.

python -m cft.search lr-and-rank trials=20 'lr=tag(log,interval(1e-5,1e-3))' lora.rank=4,8,16 data=files ...

Optuna proposes settings; each is trained, and judged during the training: by its Spearman correlation on development
pairs or, with train.best=true, by how well half of the held-out rows are found. The test sets are not looked at.
Trainings that fall behind are given up early. Everything is kept under outputs/searches/NAME, and the same command goes
on where it was.
"""

from dataclasses import KW_ONLY, dataclass
from typing import Annotated

from cft.config.command_line import CommandLine, Rules
from cft.system.tables import as_text


@dataclass(frozen=True)
class SearchOptions:
    """Search for good settings with Optuna, judged by development pairs or by held-out rows."""

    name: Annotated[str, "of the search; its folder under outputs/searches/"]
    _: KW_ONLY
    overrides: Annotated[
        list[str],
        "settings; several values (lora.rank=4,8) or an interval ('lr=tag(log,interval(1e-5,1e-3))') are searched",
    ]
    trials: Annotated[int, "how many in all, those of earlier calls counted in"] = 20
    proposal_seed: Annotated[int, "of the proposals, also --seed; seed= is the training's", Rules(0, dashed="seed")] = 0
    pruning: Annotated[bool, "give up trainings that fall behind"] = True


COMMAND = CommandLine(
    "cft.search", SearchOptions, example="first lora.rank=4,8 data=files data.train=triplets.csv data.dev=dev.csv"
)


def main() -> None:
    """Run the command line."""
    COMMAND.run(_search, "the same command goes on where it was")


def _search(options: SearchOptions) -> str:
    from cft.study.search import search

    seed, prune = options.proposal_seed, options.pruning
    return "\n" + as_text(search(options.name, options.overrides, trials=options.trials, seed=seed, prune=prune))


if __name__ == "__main__":
    main()
