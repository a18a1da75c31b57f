"""Memory that exact search takes over its input: flat in the number of documents, beside a matrix of all scores.

    python benchmarks/retrieval_memory.py

Every number is of a process of its own: how far its resident memory rose, at its highest, above what it had with the
queries and one block of documents in memory. Documents are made block by block from a seed, as `evaluate_retrieval`
embeds them, so that the input itself does not grow.
"""

import argparse
import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
from growth import slope
from publish import Comparison, Found, publish

from cft.evaluation.retrieval import DEPTH, TopDocuments

QUERIES, WIDTH = 1_000, 384
BLOCK = 50_000  # documents at a time
DOCUMENTS = (10_000, 100_000, 1_000_000)
NAIVE = 100_000
SIDES = ("blocks", "matrix")
MIB = 2**20


def unit_vectors(generator: np.random.Generator, into: np.ndarray) -> np.ndarray:
    """Random unit vectors, in place of what is in `into` (n, D) float32."""
    generator.standard_normal(out=into, dtype=np.float32)
    into /= np.sqrt(np.einsum("nd,nd->n", into, into))[:, None]
    return into


def grown(side: str, documents: int) -> tuple[int, list[int]]:
    """Bytes by which this process's resident memory rises, and what the first query finds."""
    queries = unit_vectors(np.random.default_rng(0), np.empty((QUERIES, WIDTH), dtype=np.float32))
    generator = np.random.default_rng(1)
    if side == "matrix":
        every = unit_vectors(generator, np.empty((documents, WIDTH), dtype=np.float32))
        found, rise = rise_of(lambda: by_matrix(queries, every))
        return rise, found[0].tolist()
    block = unit_vectors(generator, np.empty((min(documents, BLOCK), WIDTH), dtype=np.float32))

    def search() -> np.ndarray:
        top = TopDocuments(queries, DEPTH)
        for start in range(0, documents, BLOCK):
            top.add(block if start == 0 else unit_vectors(generator, block))
        return top.ranking().documents

    found, rise = rise_of(search)
    return rise, found[0].tolist()


def by_matrix(queries: np.ndarray, documents: np.ndarray) -> np.ndarray:
    """The same documents by the product of all queries with all documents: the plainest way."""
    scores = queries @ documents.T
    best = np.argpartition(-scores, DEPTH, axis=1)[:, :DEPTH]
    order = np.argsort(-np.take_along_axis(scores, best, axis=1), axis=1, kind="stable")
    return np.take_along_axis(best, order, axis=1)


def rise_of(work: Callable[[], np.ndarray]) -> tuple[np.ndarray, int]:
    """What a piece of work gives, and the bytes by which resident memory rose at its highest."""
    small = np.ones((64, 64), dtype=np.float32)
    small @ small  # the product's own buffers and threads are not the search's
    Path("/proc/self/clear_refs").write_text("5")  # sets the highest so far to what there is now
    before = resident("VmRSS")
    found = work()
    return found, resident("VmHWM") - before


def resident(entry: str) -> int:
    """Bytes of this process in memory: now (VmRSS), or at the highest (VmHWM)."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith(f"{entry}:"))


def measured(side: str, documents: int) -> tuple[int, list[int]]:
    """The same in a new process."""
    command = [sys.executable, __file__, "--side", side, "--documents", str(documents)]
    environment = {"PYTHONPATH": ":".join(sys.path), "MALLOC_TRIM_THRESHOLD_": "0"}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=True)
    rise, found = json.loads(done.stdout.splitlines()[-1])
    print(f"  {side}, {documents:,} documents: done", file=sys.stderr)
    return rise, found


def main() -> None:
    """Measure every size and publish one table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--side", choices=SIDES, help=argparse.SUPPRESS)
    parser.add_argument("--documents", type=int, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.side:
        print(json.dumps(grown(arguments.side, arguments.documents)))
        return
    blocks = {count: measured("blocks", count) for count in DOCUMENTS}
    matrix, found = measured("matrix", NAIVE)
    # Blocks of other sizes give products other last bits: of nearly equal documents, either may come first.
    same = len(set(found) & set(blocks[NAIVE][1])) / DEPTH
    if same < 0.98:
        raise SystemExit(f"the two ways share {same:.0%} of the first query's documents: nothing was compared")
    rises = {count: float(rise) for count, (rise, _) in blocks.items()}
    least, most = DOCUMENTS[0], DOCUMENTS[-1]
    table: list[tuple[str, ...]] = [
        ("documents", "vectors, MiB", "search in blocks, MiB", "to the smallest", "all scores, computed, MiB", "times"),
    ]
    for count, rise in rises.items():
        scores = QUERIES * count * 4
        table.append(
            (
                f"{count:,}",
                f"{count * WIDTH * 4 / MIB:,.0f}",
                f"{rise / MIB:,.0f}",
                f"{rise / rises[least]:.2f}",
                f"{scores / MIB:,.0f}",
                f"{scores / rise:.1f}",
            )
        )
    what = f"memory of exact search, {QUERIES:,} queries in {NAIVE:,} documents"
    publish(
        "retrieval_memory",
        Found(
            title="Memory of exact search",
            command="python benchmarks/retrieval_memory.py",
            table=table,
            comparisons=[Comparison(what, "a matrix of all scores", matrix / rises[NAIVE], 2.0)],
            notes=[
                f"{QUERIES:,} queries, vectors of {WIDTH} numbers, the best {DEPTH} of each query; documents come in "
                f"blocks of {BLOCK:,}, and neither they nor the queries are counted. From {NAIVE:,} to {most:,} "
                f"documents memory grows {rises[most] / rises[NAIVE]:.2f}x, exponent "
                f"{slope({count: rises[count] for count in DOCUMENTS[1:]}):.2f}; fewer documents than a block of "
                "scores need less. The last columns are the bytes of all scores in float32, and how many times the "
                "search's they are.",
                f"Measured at {NAIVE:,} documents, the product of all queries with all documents and its partial sort "
                f"take {matrix / MIB:,.0f} MiB over the vectors, which then have to be there all at once.",
            ],
        ),
    )


if __name__ == "__main__":
    main()
