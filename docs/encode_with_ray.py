"""Embed the texts of many files with Ray Data, on one machine or on a cluster (docs/scaling.md).

pip install 'ray[data]'
python docs/encode_with_ray.py outputs/NAME corpus/*.jsonl --into vectors --copies 4
python docs/encode_with_ray.py outputs/NAME s3://bucket/part-1.parquet --into s3://bucket/vectors --copies 16 --gpus 1

Every copy of the embedder takes `--cores` cores and `--gpus` GPUs of whatever machine has them free. The result is
Parquet files of the input's columns and a column `vector`; their rows have no order: an input should have ids.
"""

import argparse
from typing import Any

import ray
import ray.data

from cft import Embedder


class Embed:
    """One copy of the embedder, in a process of its own, which is loaded once and takes batch after batch."""

    def __init__(self, run: str, column: str, role: str) -> None:
        embedder = Embedder.load(run)
        self.encode = {"query": embedder.encode_query, "document": embedder.encode_document}.get(role, embedder.encode)
        self.column = column

    def __call__(self, batch: dict[str, Any]) -> dict[str, Any]:
        """A batch of rows with their vectors, (rows, D) float32; what is no text stops all of it."""
        return {**batch, "vector": self.encode(list(batch[self.column]))}


def main() -> None:
    """Read the command line, embed, and say how many there were."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", help="an embedder's folder, at a place that all machines see")
    parser.add_argument("texts", nargs="+", help="files that Ray reads: JSON lines, or Parquet by the first's ending")
    parser.add_argument("--into", required=True, help="a new folder, or an address of one")
    parser.add_argument("--column", default="text", help="of the texts")
    parser.add_argument("--role", default="text", choices=["text", "query", "document"], help="whose prompt is used")
    parser.add_argument("--copies", type=int, default=1, help="of the embedder, at once; leave a core for reading")
    parser.add_argument("--cores", type=int, default=1, help="of each copy")
    parser.add_argument("--gpus", type=float, default=0, help="of each copy")
    parser.add_argument("--batch", type=int, default=2000, help="texts that a copy takes at once")
    options = parser.parse_args()
    read = ray.data.read_parquet if options.texts[0].endswith(".parquet") else ray.data.read_json
    rows = read(options.texts).map_batches(
        Embed,
        fn_constructor_args=(options.run, options.column, options.role),
        batch_size=options.batch,
        compute=ray.data.ActorPoolStrategy(size=options.copies),
        num_cpus=options.cores,
        num_gpus=options.gpus,
    )
    rows.write_parquet(options.into, mode=ray.data.SaveMode.ERROR)
    print(f"{ray.data.read_parquet(options.into).count():,} texts embedded: {options.into}")


if __name__ == "__main__":
    main()
