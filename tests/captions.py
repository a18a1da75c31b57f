"""A small data set for tests: triplets of captions, and pairs of them scored by how much they share."""

import atexit
import itertools
import json
import random
import shutil
import tempfile
from pathlib import Path

PARTS = (
    "man woman boy girl painter baker sailor farmer dancer doctor".split(),
    "washing lifting watching painting selling hiding counting moving".split(),
    "box car chair bottle lamp drum coat basket bike boat".split(),
    "in a kitchen, on a beach, by a river, at a market, in a garden, on a roof".split(", "),
)
MEANINGS = list(itertools.product(*PARTS))


def caption(meaning: tuple[str, ...]) -> str:
    actor, action, thing, place = meaning
    return f"A {actor} is {action} a {thing} {place}."


def triplets(count: int) -> list[dict[str, str]]:
    """Each anchor with the same said otherwise, and with something else done to the same thing; no text comes twice."""
    chance = random.Random(1)
    rows = []
    for actor, action, thing, place in chance.sample(MEANINGS, count):
        row = {"sent0": caption((actor, action, thing, place))}
        row["sent1"] = f"{place.capitalize()} a {thing} is what the {actor} is {action}."
        row["hard_neg"] = (
            f"A {actor}, not {action} but {chance.choice([w for w in PARTS[1] if w != action])}, has a {thing} {place}."
        )
        rows.append(row)
    return rows


def pairs(count: int, seed: int) -> list[dict[str, str | float]]:
    """Captions that share none to all of their four parts; the score is how many."""
    chance = random.Random(seed)
    rows: list[dict[str, str | float]] = []
    for _ in range(count):
        one = chance.choice(MEANINGS)
        kept = set(chance.sample(range(4), chance.randrange(5)))
        other = tuple(one[n] if n in kept else chance.choice([w for w in PARTS[n] if w != one[n]]) for n in range(4))
        rows.append({"sentence1": caption(one), "sentence2": caption(other), "score": float(len(kept))})
    return rows


def write(name: str, rows: list[dict]) -> str:
    path = FOLDER / name
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(path)


FOLDER = Path(tempfile.mkdtemp(prefix="cft-captions-"))
atexit.register(shutil.rmtree, FOLDER, ignore_errors=True)

TRIPLETS = write("triplets.jsonl", triplets(220))
DEV = write("dev.jsonl", pairs(40, seed=1))
PAIRS = write("captions.jsonl", pairs(100, seed=2))
