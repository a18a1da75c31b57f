"""A smaller retrieval set out of a large one, for a machine on which the large one takes hours.

    python benchmarks/smaller_set.py FOLDER/SciFact SMALLER/SciFact --queries 300 --documents 1000

Takes queries of qrels/test.tsv, evenly spaced, every document that is judged for one of them, those of the queries' own
ids (queries of ArguAna are documents too), and others, evenly spaced, up to the number. Both folders are in BEIR's
layout, their JSON lines gzipped. Scores on it are higher than on the whole set and compare with none but their like.
"""

import argparse
import csv
import gzip
import json
from collections.abc import Sequence
from pathlib import Path
from typing import TypeVar

Item = TypeVar("Item")


def spaced(items: Sequence[Item], count: int) -> list[Item]:
    """At most so many of them, evenly spaced, in their order."""
    count = min(count, len(items))
    return [items[number * len(items) // count] for number in range(count)]


def read(path: Path) -> dict[str, str]:
    """The lines of a file of JSON lines, by their ids."""
    with gzip.open(path, "rt", encoding="utf-8") as stream:
        return {json.loads(line)["_id"]: line for line in stream}


def write(path: Path, lines: Sequence[str]) -> None:
    """Write lines as they are."""
    with gzip.open(path, "wt", encoding="utf-8") as stream:
        stream.writelines(lines)


def main() -> None:
    """Write the smaller set, and say how large it is."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("source", type=Path)
    parser.add_argument("out", type=Path)
    parser.add_argument("--queries", type=int, default=300)
    parser.add_argument("--documents", type=int, default=1000)
    given = parser.parse_args()
    queries, documents = (read(given.source / f"{name}.jsonl.gz") for name in ("queries", "corpus"))
    with (given.source / "qrels" / "test.tsv").open(encoding="utf-8", newline="") as stream:
        judgements = list(csv.DictReader(stream, delimiter="\t"))
    chosen = spaced(list(dict.fromkeys(row["query-id"] for row in judgements)), given.queries)
    kept = [row for row in judgements if row["query-id"] in set(chosen)]
    wanted = {row["corpus-id"] for row in kept}.union(chosen).intersection(documents)
    others = [name for name in documents if name not in wanted]
    wanted.update(spaced(others, max(0, given.documents - len(wanted))))
    (given.out / "qrels").mkdir(parents=True)
    write(given.out / "queries.jsonl.gz", [queries[name] for name in chosen])
    write(given.out / "corpus.jsonl.gz", [line for name, line in documents.items() if name in wanted])
    with (given.out / "qrels" / "test.tsv").open("w", encoding="utf-8", newline="") as stream:
        rows = csv.DictWriter(stream, list(judgements[0]), delimiter="\t")
        rows.writeheader()
        rows.writerows(kept)
    print(f"{given.out}: {len(chosen):,} queries, {len(wanted):,} documents, {len(kept):,} judgements")


if __name__ == "__main__":
    main()
