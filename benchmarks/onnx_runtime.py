"""An exported ONNX graph in onnxruntime, beside cft: the same vectors, the score on scored pairs, and the speed.

    python benchmarks/onnx_runtime.py --pairs STSBenchmark.jsonl.gz model=minilm

The embedder is exported in float32 and in 8 bits. Both sides embed the pairs' sentences on the CPU with as many
threads, onnxruntime in padded batches of 32 in the order of their lengths; of --rounds, which take turns, the best one
counts. The status is 1 if in float32 a coordinate of a vector differs by more than 1e-4. Where openvino is installed,
it runs the same graph.
"""

import argparse
import importlib.util
import shutil
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import exported
import numpy as np
import torch
from transformers import AutoTokenizer

from cft.config.schema import Role
from cft.data.files import read_scored_pairs
from cft.deploy import onnx_file, portable
from cft.deploy.export import export
from cft.deploy.load import load_embedder
from cft.evaluation.scores import spearman
from cft.export import COMMAND
from cft.system.tables import Row, as_markdown, as_text

BATCH = 32

Encoder = Callable[[list[str]], np.ndarray]


def in_batches(run: Encoder, texts: Sequence[str]) -> np.ndarray:
    """Vectors (texts, D) of batches of texts of like lengths, in the texts' order."""
    order = sorted(range(len(texts)), key=lambda number: len(texts[number]))
    batches = [order[start : start + BATCH] for start in range(0, len(order), BATCH)]
    made = np.concatenate([run([texts[number] for number in batch]) for batch in batches])
    vectors = np.empty_like(made)
    vectors[order] = made
    return vectors


def in_onnxruntime(folder: Path, words: str, threads: int) -> Encoder:
    """What embeds texts with a folder's graph."""
    tokenizer = AutoTokenizer.from_pretrained(folder)
    session = onnx_file.open_session(folder / onnx_file.FILE_NAME, threads=threads)
    run: Encoder = lambda texts: onnx_file.run(session, tokenizer, [words + text for text in texts])  # noqa: E731
    return lambda texts: in_batches(run, texts)


def in_openvino(folder: Path, words: str, threads: int) -> Encoder:
    """The same graph in OpenVINO."""
    import openvino

    tokenizer = AutoTokenizer.from_pretrained(folder)
    model: Any = openvino.Core().compile_model(
        folder / onnx_file.FILE_NAME, "CPU", {"INFERENCE_NUM_THREADS": threads, "INFERENCE_PRECISION_HINT": "f32"}
    )

    def run(texts: list[str]) -> np.ndarray:
        rows = tokenizer([words + text for text in texts], padding=True, truncation=True, return_tensors="np")
        return model(dict(rows))[onnx_file.VECTORS]

    return lambda texts: in_batches(run, texts)


def measure(encoders: dict[str, Encoder], texts: list[str], rounds: int) -> tuple[dict[str, np.ndarray], list[float]]:
    """Vectors by encoder, and the least seconds of each, in the order of the encoders."""
    vectors, seconds = {}, dict.fromkeys(encoders, float("inf"))
    for encode in encoders.values():
        encode(texts[:BATCH])  # what is only done once
    for _ in range(rounds):
        for name, encode in encoders.items():
            start = time.perf_counter()
            vectors[name] = encode(texts)
            seconds[name] = min(seconds[name], time.perf_counter() - start)
    return vectors, list(seconds.values())


def compare(arguments: argparse.Namespace) -> int:
    """Export, embed on both sides, and print."""
    pairs = read_scored_pairs(arguments.pairs)[0][: arguments.most]
    texts = list(dict.fromkeys(text for pair in pairs for text in (pair.sentence1, pair.sentence2)))
    row = {text: number for number, text in enumerate(texts)}

    def score(vectors: np.ndarray) -> float:
        left, right = ([row[getattr(pair, side)] for pair in pairs] for side in ("sentence1", "sentence2"))
        cosines = (vectors[left] * vectors[right]).sum(axis=1)
        return spearman(cosines, [pair.score for pair in pairs], arguments.pairs.name)

    threads = torch.get_num_threads()
    embedder = load_embedder(**dict(option.split("=", 1) for option in arguments.options), device="cpu")
    encoders: dict[str, Encoder] = {"cft, float32": embedder.encode}
    words, sizes = portable.words_before(embedder.in_role(Role.text)), [""]
    with tempfile.TemporaryDirectory() as scratch:
        whole, small = Path(scratch) / "f32", Path(scratch) / "int8"
        export(COMMAND.read([*arguments.options, "format=onnx", str(whole)]))
        shutil.copytree(whole, small)
        onnx_file.quantise(small)  # as dtype=int8 does
        for folder in (whole, small):
            files = [file for file in folder.iterdir() if file.name.startswith(onnx_file.FILE_NAME)]
            sizes.append(f"{sum(file.stat().st_size for file in files) / 2**20:.0f}")
            encoders[f"onnxruntime, {folder.name}"] = in_onnxruntime(folder, words, threads)
        if importlib.util.find_spec("openvino"):
            encoders["OpenVINO, f32"] = in_openvino(whole, words, threads)
            sizes.append(sizes[1])
        vectors, seconds = measure(encoders, texts, arguments.rounds)
    own = vectors["cft, float32"]
    off = [float(np.abs(made - own).max()) for name, made in vectors.items() if name.endswith("f32")]
    table: list[Row] = [("embedder", "MiB", "least cosine", "Spearman x 100", "texts a second, of cft's")]
    for (name, made), size, taken in zip(vectors.items(), sizes, seconds, strict=True):
        beside = (f"{(made * own).sum(axis=1).min():.6f}", f"{seconds[0] / taken:.2f}") if size else ("", "1")
        table.append((name, size, beside[0], f"{score(made):.2f}", beside[1]))
    agree = max(off) <= onnx_file.TOLERANCE
    print(as_markdown(table) if arguments.markdown else as_text(table))
    outcome = "the same" if agree else "NOT the same"
    print(
        f"{len(texts):,} sentences of {len(pairs):,} pairs, {threads} threads: {outcome} in float32 (to {max(off):.1e})"
    )
    return 0 if agree else 1


def main() -> int:
    """Print the table; the status says whether onnxruntime gives what cft gives."""
    rounds = {"type": int, "default": 3, "help": "so many times each side embeds them (3)"}
    return exported.run(__doc__.splitlines()[0], compare, rounds=rounds)


if __name__ == "__main__":
    sys.exit(main())
