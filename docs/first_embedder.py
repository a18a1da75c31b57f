"""From a CSV file to a loaded embedder: questions of a library's readers, and the answers that belong to them.

python docs/first_embedder.py             # a few minutes on two cores; docs/first_embedder.md shows what it prints
python docs/first_embedder.py model=tiny  # seconds, to see that it runs: random weights learn little
"""

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

# Questions that the file does not hold, and the number of the answer that they want (data row, from 1).
ASKED = {
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
    """Train, load and ask."""
    if any(entry in ("-h", "--help") for entry in sys.argv[1:]):
        sys.exit(__doc__)
    set_up_console()
    # 1. The settings: your file and its columns. Pairs have no hard negatives, so the loss uses the batch's alone.
    config = compose_config(
        [
            "data=files",
            f"data.train={FAQ}",
            "data.anchor_column=question",
            "data.positive_column=answer",
            "data.negative_columns=[]",
            "data.holdout=0",
            "loss=in_batch",
            "train.steps=20",
            "train.batch_size=20",
            "train.epochs=10",
            "lr=5e-4",
            "logger=none",
            *sys.argv[1:],
        ]
    )

    # 2. What the training starts from (the base model, or adapter=...), to know what the training was worth.
    answers = [line.rsplit(",", 1)[-1] if '"' not in line else line.split('"')[1] for line in FAQ.open()][1:]
    answers = [answer.strip() for answer in answers]
    before = ranks(find_starting_point(config).load(config, trainable=False), answers)

    # 3. The training; the same call again finds its result.
    began = time.monotonic()
    run(config)
    folder = make_plan(config).result

    # 4. The embedder, loaded as anybody would load it.
    embedder = Embedder.load(folder)
    after = ranks(embedder, answers)

    print(f"\n{'question':52}{'before':>8}{'after':>8}")
    for question, old, new in zip(ASKED, before, after, strict=True):
        print(f"{question:52}{old:8}{new:8}")
    print(f"{'mean rank of the right answer, of ' + str(len(answers)):52}{np.mean(before):8.1f}{np.mean(after):8.1f}")
    print(f"\ntrained and scored in {(time.monotonic() - began) / 60:.1f} min; the embedder: {folder}")


def ranks(embedder: Embedder, answers: list[str]) -> list[int]:
    """At which place of all answers the right one stands, for every question; 1 is best."""
    cosines = embedder.encode(list(ASKED)) @ embedder.encode(answers).T
    return [int((row > row[right - 1]).sum()) + 1 for row, right in zip(cosines, ASKED.values(), strict=True)]


if __name__ == "__main__":
    main()
