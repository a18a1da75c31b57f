"""What the cells of experiments/study/choices.yaml read: rows with mined negatives, and trainings merged.

    python benchmarks/choices.py [--triplets FILE] [--pairs FILE ...]    # into outputs/choices/; what is there stays

mined_by_minilm.jsonl   hard negatives of the study's rows out of their positives, mined by all-MiniLM-L6-v2
mined_by_itself.jsonl   the same by the study's first training
merged/                 that training and those of two more seeds, merged with equal weights
labels.jsonl            of NLI triplets, each row's two labelled pairs, for experiments/study/scored.yaml
nli.jsonl               the same triplets as they are, for experiments/study/roles.yaml
questions.jsonl         960 question-answer pairs, as many of each file, for the same
"""

import argparse
import json
import random
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from cft.config.compose import compose_config
from cft.data.files import Skipped, TripletColumns, stream_triplets
from cft.deploy.merge import MergeOptions, merge_runs
from cft.deploy.mine import MineOptions, PairSource, mine_file
from cft.job.runner import train_only
from cft.study.spec import load
from cft.system.console import exit_statuses, set_up_console
from cft.system.files import atomic_write

SEEDS = (1, 2, 3)
QUESTIONS = 960  # 30 steps of 32


def made_folder(cells: dict[str, list[str]]) -> Path:
    """Where the study looks for what is made here."""
    words = [word for overrides in cells.values() for word in overrides]
    return next(Path(word.removeprefix("adapter=")).parent for word in words if word.startswith("adapter="))


def write_rows(rows: Iterable[dict[str, str]], out: Path) -> None:
    """Rows as JSON lines, unless the file is there."""
    if not out.exists():
        with atomic_write(out) as scratch, scratch.open("w", encoding="utf-8") as stream:
            stream.writelines(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)


def nli_rows(path: Path) -> Iterator[dict[str, str]]:
    """NLI triplets, their columns named as the data choices name them."""
    for row in stream_triplets(path, TripletColumns("sent0", "sent1", ["hard_neg"])):
        if not isinstance(row, Skipped):
            yield {"sent0": row.anchor, "sent1": row.positive, "hard_neg": row.negatives[0]}


def labelled_pairs(path: Path) -> Iterator[dict[str, str]]:
    """Each triplet as the two labelled pairs that it was made of."""
    for row in nli_rows(path):
        for column, label in (("sent1", "entailment"), ("hard_neg", "contradiction")):
            yield {"sentence1": row["sent0"], "sentence2": row[column], "label": label}


def questions(paths: list[Path]) -> list[dict[str, str]]:
    """QUESTIONS pairs in random order, drawn from the files, as many of each."""
    drawn = []
    for path in paths:
        rows = [
            row
            for row in stream_triplets(path, TripletColumns("anchor", "positive", []))
            if not isinstance(row, Skipped)
        ]
        drawn += random.Random(1).sample(rows, QUESTIONS // len(paths))
    random.Random(2).shuffle(drawn)
    return [{"anchor": row.anchor, "positive": row.positive} for row in drawn]


def mine(out: Path, rows: int, **by: Any) -> None:
    """Negatives for the study's rows."""
    if not out.exists():
        print(mine_file(MineOptions(data=PairSource.docstrings, rows=rows, out=str(out), **by)))


def main() -> None:
    """Make what is missing."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--triplets", type=Path, help="NLI triplets with columns sent0, sent1, hard_neg")
    parser.add_argument("--pairs", type=Path, nargs="+", help="question-answer pairs with columns anchor, positive")
    given = parser.parse_args()
    cells = {cell.name: cell.overrides for cell in load("study/choices", "choices").cells}
    first, made = next(iter(cells.values())), made_folder(cells)
    made.mkdir(parents=True, exist_ok=True)
    if given.triplets:
        write_rows(labelled_pairs(given.triplets), made / "labels.jsonl")
        write_rows(nli_rows(given.triplets), made / "nli.jsonl")
    if given.pairs:
        write_rows(questions(given.pairs), made / "questions.jsonl")
    configs = [compose_config([*first, f"seed={seed}"]) for seed in SEEDS]
    rows = configs[0].data.rows
    assert rows is not None  # the scale names them
    mine(made / "mined_by_minilm.jsonl", rows, model="minilm")
    runs = [train_only(config) for config in configs]
    mine(made / "mined_by_itself.jsonl", rows, run=str(runs[0]))
    if not (made / "merged").exists():
        print(merge_runs(MergeOptions(runs=[str(run) for run in runs], out=str(made / "merged"))))


if __name__ == "__main__":
    set_up_console()
    with exit_statuses("what was made stays, and the same command goes on"):
        main()
