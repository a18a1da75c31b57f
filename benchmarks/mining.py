"""Hard-negative mining over stored vectors: time and memory of `cft.mine`'s search beside sentence-transformers'.

    python benchmarks/mining.py

Both sides get the same random unit vectors, so that nothing is embedded, the same rules, and a process of their own.
Memory is how far resident memory rose, at its highest, above what it was with the vectors in it.
"""

import argparse
import json
import statistics
import subprocess
import sys
import time
from collections.abc import Iterator

import numpy as np
from publish import Comparison, Found, publish
from retrieval_memory import resident, unit_vectors

from cft.deploy.mining import MiningRules, search_negatives

QUERIES, DOCUMENTS, WIDTH = 10_000, 100_000, 384
BLOCK = 50_000  # documents at a time, as `cft.mine` reads them
RULES = {"num_negatives": 4, "range_max": 100, "relative_margin": 0.05}
SIDES = ("cft", "sentence-transformers")
ROUNDS = 3
MIB = 2**20
_WHY = "documents come in blocks, anew for every thousand queries, so that memory stays flat"


class Stored:
    """What sentence-transformers asks of a model: vectors, which are there already."""

    device = "cpu"

    def __init__(self, queries: np.ndarray, documents: np.ndarray) -> None:
        """Keep both."""
        self._queries, self._documents = queries, documents

    def encode_query(self, texts: list[str], **_: object) -> np.ndarray:
        """The vectors of all queries."""
        return self._queries

    def encode_document(self, texts: list[str], **_: object) -> np.ndarray:
        """The vectors of documents, whose texts are their numbers."""
        return self._documents[[int(text[1:]) for text in texts]]

    def similarity(self, one: np.ndarray, other: np.ndarray) -> object:
        """All products."""
        import torch

        return torch.as_tensor(one) @ torch.as_tensor(other).T

    def similarity_pairwise(self, one: np.ndarray, other: np.ndarray) -> object:
        """Products of the vectors at the same places."""
        import torch

        return (torch.as_tensor(one) * torch.as_tensor(other)).sum(dim=1)


def mined(side: str, queries: np.ndarray, documents: np.ndarray) -> list[list[int]]:
    """The negatives of every query; the document of its own number is its positive."""
    if side == "cft":
        rules = MiningRules(**RULES)
        cosines = np.einsum("qd,qd->q", queries, documents[: len(queries)])

        def blocks() -> Iterator[np.ndarray]:
            return (documents[start : start + BLOCK] for start in range(0, len(documents), BLOCK))

        found = search_negatives(queries, blocks, [[number] for number in range(len(queries))], cosines, rules)
        return [numbers.tolist() for numbers in found.negatives]
    from datasets import Dataset
    from sentence_transformers.util import mine_hard_negatives

    texts = [f"d{number}" for number in range(len(documents))]
    pairs = Dataset.from_dict({"q": [f"q{number}" for number in range(len(queries))], "d": texts[: len(queries)]})
    stored, quiet = Stored(queries, documents), {"output_format": "n-tuple", "verbose": False}
    rows = mine_hard_negatives(pairs, stored, corpus=texts, **quiet, batch_size=1024, **RULES)
    return [[int(row[name][1:]) for name in row if name.startswith("negative")] for row in rows]


def measured(side: str) -> dict:
    """Seconds, bytes and the first rows, of this process."""
    generator = np.random.default_rng(0)
    documents = unit_vectors(generator, np.empty((DOCUMENTS, WIDTH), dtype=np.float32))
    # Each query lies beside its own document, as trained queries do.
    queries = unit_vectors(generator, np.empty((QUERIES, WIDTH), dtype=np.float32)) * 0.7 + documents[:QUERIES]
    queries /= np.linalg.norm(queries, axis=1, keepdims=True)
    mined(side, queries[:64], documents[:512])  # imports, threads and buffers are nobody's cost
    with open("/proc/self/clear_refs", "w") as file:
        file.write("5")  # sets the highest so far to what there is now
    before, began = resident("VmRSS"), time.perf_counter()
    found = mined(side, queries, documents)
    return {
        "seconds": time.perf_counter() - began,
        "bytes": resident("VmHWM") - before,
        "rows": len(found),
        "first": found[:500],
    }


def in_a_process(side: str) -> dict:
    """The same in a new process."""
    done = subprocess.run([sys.executable, __file__, "--side", side], capture_output=True, text=True, check=True)
    found = json.loads(done.stdout.splitlines()[-1])
    print(f"  {side}: {found['seconds']:.1f} s", file=sys.stderr)
    return found


def main() -> None:
    """Measure both sides in turns and publish the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--side", choices=SIDES, help=argparse.SUPPRESS)
    side = parser.parse_args().side
    if side:
        print(json.dumps(measured(side)))
        return
    rounds = [{side: in_a_process(side) for side in SIDES} for _ in range(ROUNDS)]
    ours, theirs = ([turn[side] for turn in rounds] for side in SIDES)
    # Products in blocks of other sizes have other last bits: of nearly equal documents, either may come first.
    same = np.mean([one == other for one, other in zip(ours[0]["first"], theirs[0]["first"], strict=True)])
    if ours[0]["rows"] != theirs[0]["rows"] or same < 0.98:
        raise SystemExit(f"{same:.0%} of the first rows are the same: nothing was compared")
    faster = statistics.median(turn[SIDES[1]]["seconds"] / turn[SIDES[0]]["seconds"] for turn in rounds)
    memory = [max(turn["bytes"] for turn in of_side) for of_side in (ours, theirs)]
    against = "sentence-transformers"
    publish(
        "mining",
        Found(
            title="Mining hard negatives",
            command="python benchmarks/mining.py",
            table=[
                ("", "time, cft = 1", "memory over the vectors, MiB"),
                ("cft", "1.00", f"{memory[0] / MIB:,.0f}"),
                (against, f"{faster:.2f}", f"{memory[1] / MIB:,.0f}"),
            ],
            comparisons=[
                Comparison("mining, time", against, faster, 1.0, _WHY if faster < 1 else ""),
                Comparison("mining, memory", against, memory[1] / memory[0], 2.0),
            ],
            notes=[
                f"{QUERIES:,} queries, {DOCUMENTS:,} documents, vectors of {WIDTH} numbers that are there already, "
                f"{RULES['num_negatives']} negatives a row within {RULES['range_max']} ranks. The median of {ROUNDS} "
                f"turns; {same:.1%} of the rows compared are the same on both sides."
            ],
        ),
    )


if __name__ == "__main__":
    main()
