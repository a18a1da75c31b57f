"""From a CSV file to a loaded embedder: questions of a library's readers and their answers (docs/index.md).

python docs/first_embedder.py adapter=outputs/smollm2-files-... lr=1e-4   # after general triplets: better
python docs/first_embedder.py                                             # forty pairs alone: worse than before
python docs/first_embedder.py model=tiny                                  # seconds, a test: random weights learn little
"""

import csv
import sys
import time
from pathlib import Path

import numpy as np

from cft import Embedder
from cft.config.compose import compose_config
from cft.job.plan import make_plan
from cft.job.runner import run
from cft.job.start import find_starting_point
from cft.system.console import set_up_console

FAQ = Path(__file__).with_name("faq.csv")

# Questions that are not in the file, and the data row (from 1) of the right answer.
NEW_QUESTIONS = {
    "at what time do you shut at the weekend": 1,
    "what is the limit of items I can check out": 2,
    "my plastic card is gone, can I have a replacement": 6,
    "how do I connect my phone to the net": 11,
    "where may I leave my rucksack": 13,
    "I would like a title that you do not own yet": 15,
    "drop off a novel at midnight": 18,
    "settle what I owe": 26,
    "may my labrador accompany me": 35,
    "is there somewhere silent": 39,
}


def main() -> None:
    """Train an embedder, load it, and rank the answers to new questions before and after."""
    if any(entry in ("-h", "--help") for entry in sys.argv[1:]):
        sys.exit(__doc__)
    set_up_console()
    # 1. The settings: the file and its columns. Pairs have no hard negatives, so the loss uses in-batch negatives only.
    config = compose_config(
        [
            "data=files",
            f"data.train={FAQ}",
            "data.anchor_column=question",
            "data.positive_column=answer",
            "data.negative_columns=[]",
            "data.holdout=0",
            "eval=none",
            "model.max_length=150",
            "loss=in_batch",
            "train.steps=20",
            "train.batch_size=20",
            "train.epochs=10",
            "lr=5e-4",
            "logger=none",
            *sys.argv[1:],
        ]
    )

    # 2. The model before training: the base model, or adapter=...
    with FAQ.open(newline="") as file:
        answers = [row["answer"] for row in csv.DictReader(file)]
    before = ranks(find_starting_point(config).load(config, trainable=False), answers)

    # 3. The training. The same call again finds its result.
    began = time.monotonic()
    run(config)
    folder = make_plan(config).result

    # 4. The embedder, loaded from its folder.
    embedder = Embedder.load(folder)
    after = ranks(embedder, answers)

    print(f"\n{'question':52}{'before':>8}{'after':>8}")
    for question, old, new in zip(NEW_QUESTIONS, before, after, strict=True):
        print(f"{question:52}{old:8}{new:8}")
    print(f"{'mean rank of the right answer, of ' + str(len(answers)):52}{np.mean(before):8.1f}{np.mean(after):8.1f}")
    print(f"\ntrained and scored in {(time.monotonic() - began) / 60:.1f} min; the embedder: {folder}")


def ranks(embedder: Embedder, answers: list[str]) -> list[int]:
    """The rank of the right answer among all answers, for each question; 1 is best."""
    cosines = embedder.encode(list(NEW_QUESTIONS)) @ embedder.encode(answers).T
    return [int((row > row[right - 1]).sum()) + 1 for row, right in zip(cosines, NEW_QUESTIONS.values(), strict=True)]


if __name__ == "__main__":
    main()
