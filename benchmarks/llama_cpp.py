"""An exported GGUF file in llama.cpp itself, beside cft: the same vectors, and the same score on scored pairs.

    npm install node-llama-cpp@3.22.1 --prefix FOLDER       # llama.cpp, ready built, for Node 20
    python benchmarks/llama_cpp.py --node FOLDER --pairs STSBenchmark.jsonl.gz run=NAME

The embedder is exported at 16 and at 8 bits. llama.cpp embeds the pairs' sentences with nothing but the file, whose
metadata name EOS and pooling. The status is 1 if at 16 bits a cosine is below 0.9999 or the score is off by 0.1 points.
"""

import argparse
import json
import subprocess
import sys
import tempfile
from pathlib import Path

import exported
import numpy as np

from cft.data.files import read_scored_pairs
from cft.deploy.export import export
from cft.deploy.load import load_embedder
from cft.evaluation.scores import spearman
from cft.export import COMMAND
from cft.system.tables import Row, as_markdown, as_text

LEAST_COSINE, MOST_POINTS = 0.9999, 0.1

# One thread: several of llama.cpp's wait for one another in a busy loop.
SCRIPT = """
import {readFileSync, writeFileSync} from "node:fs";
import {getLlama} from "node-llama-cpp";
const [model, texts, vectors] = process.argv.slice(2);
const llama = await getLlama({gpu: false, build: "never", skipDownload: true, maxThreads: 1});
const context = await (await llama.loadModel({modelPath: model})).createEmbeddingContext({contextSize: 2048});
const found = [];
for (const text of JSON.parse(readFileSync(texts, "utf8"))) found.push((await context.getEmbeddingFor(text)).vector);
writeFileSync(vectors, JSON.stringify(found));
"""


def in_llama_cpp(node: Path, model: Path, texts: list[str]) -> np.ndarray:
    """Unit vectors (texts, D) that llama.cpp makes of the texts."""
    with tempfile.TemporaryDirectory(dir=node) as scratch:  # there Node finds the package
        script, asked, answered = (Path(scratch) / name for name in ("embed.mjs", "texts.json", "vectors.json"))
        script.write_text(SCRIPT, encoding="utf-8")
        asked.write_text(json.dumps(texts), encoding="utf-8")
        subprocess.run(["node", script, model, asked, answered], check=True)
        vectors = np.array(json.loads(answered.read_text(encoding="utf-8")), dtype=np.float32)
    return vectors / np.linalg.norm(vectors, axis=1, keepdims=True)


def main() -> int:
    """Print the table; the status says whether llama.cpp gives what cft gives."""
    node = {"required": True, "type": Path, "help": "folder where node-llama-cpp was installed"}
    return exported.run(__doc__.splitlines()[0], compare, node=node)


def compare(arguments: argparse.Namespace) -> int:
    """Export, embed on both sides, and print."""
    pairs = read_scored_pairs(arguments.pairs)[0][: arguments.most]
    texts = list(dict.fromkeys(text for pair in pairs for text in (pair.sentence1, pair.sentence2)))
    gold = [pair.score for pair in pairs]

    def score(vectors: np.ndarray) -> float:
        row = {text: number for number, text in enumerate(texts)}
        left = vectors[[row[pair.sentence1] for pair in pairs]]
        right = vectors[[row[pair.sentence2] for pair in pairs]]
        return spearman((left * right).sum(axis=1), gold, arguments.pairs.name)

    own = load_embedder(**dict(option.split("=", 1) for option in arguments.options)).encode(texts)
    table: list[Row] = [("embedder", "MiB", "least cosine", "mean cosine", "Spearman x 100")]
    table.append(("cft, float32", "", "", "", f"{score(own):.2f}"))
    agree = True
    with tempfile.TemporaryDirectory() as scratch:
        for precision in ("f16", "q8_0"):
            path = Path(scratch) / f"{precision}.gguf"
            export(COMMAND.read([*arguments.options, "format=gguf", f"dtype={precision}", str(path)]))
            vectors = in_llama_cpp(arguments.node.absolute(), path, texts)
            cosines = (vectors * own).sum(axis=1)
            size = f"{path.stat().st_size / 2**20:.0f}"
            near = f"{cosines.min():.6f}", f"{cosines.mean():.6f}"
            table.append((f"llama.cpp, {precision}", size, *near, f"{score(vectors):.2f}"))
            if precision == "f16":
                agree = cosines.min() >= LEAST_COSINE and abs(score(vectors) - score(own)) <= MOST_POINTS
    print(as_markdown(table) if arguments.markdown else as_text(table))
    outcome = "the same" if agree else "NOT the same"
    print(f"{len(texts):,} sentences of {len(pairs):,} pairs: {outcome} at 16 bits")
    return 0 if agree else 1


if __name__ == "__main__":
    sys.exit(main())
