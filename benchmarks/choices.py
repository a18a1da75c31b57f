"""What the cells of experiments/study/choices.yaml read: rows with mined negatives, and trainings merged.

    python benchmarks/choices.py [--triplets FILE]        # into outputs/choices/; what is there already stays as it is

mined_by_minilm.jsonl   hard negatives of the study's rows out of their positives, mined by all-MiniLM-L6-v2
mined_by_itself.jsonl   the same by the study's first training
merged/                 that training and those of two more seeds, merged with equal weights
labels.jsonl            of NLI triplets, each row's two labelled pairs, for experiments/study/scored.yaml
"""

import argparse
import json
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


def made_folder(cells: dict[str, list[str]]) -> Path:
    """Where the study looks for what is made here."""
    words = [word for overrides in cells.values() for word in overrides]
    return next(Path(word.removeprefix("adapter=")).parent for word in words if word.startswith("adapter="))


def write_labels(triplets: Path, out: Path) -> None:
    """Each triplet as the two labelled pairs that it was made of."""
    with atomic_write(out) as scratch, scratch.open("w", encoding="utf-8") as stream:
        for row in stream_triplets(triplets, TripletColumns("sent0", "sent1", ["hard_neg"])):
            if isinstance(row, Skipped):
                continue
            labelled = [(row.positive, "entailment"), *((text, "contradiction") for text in row.negatives)]
            for other, label in labelled:
                pair = {"sentence1": row.anchor, "sentence2": other, "label": label}
                stream.write(json.dumps(pair, ensure_ascii=False) + "\n")


def mine(out: Path, rows: int, **by: Any) -> None:
    """Negatives for the study's rows."""
    if not out.exists():
        print(mine_file(MineOptions(data=PairSource.docstrings, rows=rows, out=str(out), **by)))


def main() -> None:
    """Make what is missing."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--triplets", type=Path, help="NLI triplets with columns sent0, sent1, hard_neg")
    triplets = parser.parse_args().triplets
    cells = {cell.name: cell.overrides for cell in load("study/choices", "choices").cells}
    first, made = next(iter(cells.values())), made_folder(cells)
    made.mkdir(parents=True, exist_ok=True)
    if triplets and not (made / "labels.jsonl").exists():
        write_labels(triplets, made / "labels.jsonl")
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
