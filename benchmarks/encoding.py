"""Embedding the texts of STS sets on a CPU: this package against sentence-transformers and a loop over single texts.

    python benchmarks/encoding.py --sts FOLDER          # needs sentence-transformers for its part
    python benchmarks/encoding.py --sts FOLDER --rows 100

Same weights and texts on all sides, in float32; vectors are compared before anything is timed. Sentence-transformers
has the batch size that is fastest for it here, and gets every distinct text once; what it takes in the way that MTEB
calls it (each column of each set on its own) is laid out from that by the number of tokens.
"""

import argparse
import os
import sys
import tempfile
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from peers import PADDED_TO, its_version, original, original_vectors, sentence_transformer, timed
from publish import Comparison, Found, publish

from cft.config.compose import compose_config
from cft.config.schema import ModelSettings
from cft.data.sts import load_eval_sets
from cft.evaluation.vector_cache import CachedEncoder
from cft.model.embedder import Embedder

BATCH_SIZES = (8, 16, 32, 64, 128)
SAMPLE = 320


def main() -> None:
    """Compare the sides and publish one table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--sts", required=True, help="folder of the nine sets")
    parser.add_argument("--model", default="smollm2", help="a choice of conf/model")
    parser.add_argument("--rows", type=int, help="at most so many pairs of each set; all without")
    parser.add_argument("--loop", type=int, default=60, help="texts that the loop is timed on")
    arguments = parser.parse_args()
    rows = [f"eval.rows={arguments.rows}"] if arguments.rows else []
    config = compose_config([f"model={arguments.model}", "eval=sts", f"eval.folder={arguments.sts}", *rows])
    sets = load_eval_sets(config.eval)
    every = [text for pairs in sets.values() for pair in pairs for text in (pair.sentence1, pair.sentence2)]
    texts = list(dict.fromkeys(every))
    embedder = Embedder.base(config.model)
    sample = [texts[place * len(texts) // SAMPLE] for place in range(min(SAMPLE, len(texts)))]
    expected = embedder.encode(sample)
    pairs = sum(map(len, sets.values()))
    what = f"the {len(texts):,} texts of {len(sets)} STS sets, {config.model.name}"

    loop, looped = _one_by_one(embedder, config.model, sample[:: max(len(sample) // arguments.loop, 1)])
    print(f"embedding {what}", file=sys.stderr)
    ours, again = _ours(embedder, texts)
    table = [("side", "time, cft's = 1"), ("cft", "1.00"), ("cft, the second time", f"{again / ours:.4f}")]
    comparisons = []
    lengths = dict(zip(texts, map(len, embedder.tokenize(texts)), strict=True))
    try:
        best, theirs = _theirs(config.model, sample, expected, texts)
        name = f"{its_version()}, batches of {best}"
        as_mteb = theirs * sum(lengths[text] for text in every) / sum(lengths.values())
        table += [(name, f"{theirs / ours:.2f}"), ("the same, as MTEB calls it", f"{as_mteb / ours:.2f}")]
        both = f"both columns of {pairs:,} pairs"
        comparisons += [
            Comparison(what, name, theirs / ours, 2.0, "its batches by length are near the machine's rate too"),
            Comparison(both, f"{its_version()}, as MTEB calls it", as_mteb / ours, 2.0),
        ]
    except ImportError:
        print("sentence-transformers is not installed: its part is left out", file=sys.stderr)
    old = f"single texts padded to {PADDED_TO}, language-model head"
    scaled = loop / looped * len(texts)
    table.append((f"{old} ({looped} texts, scaled)", f"{scaled / ours:.2f}"))
    comparisons.append(Comparison(what, old, scaled / ours, 10.0))
    command = "python benchmarks/encoding.py --sts FOLDER" + (f" --rows {arguments.rows}" if arguments.rows else "")
    note = (
        f"{pairs:,} pairs have {len(every):,} texts, {len(texts):,} of them distinct, of "
        f"{sum(lengths.values()) / len(texts):.1f} tokens. Vectors of all sides are equal to 1e-4. The second time, "
        "vectors come from the cache and no text is run. As MTEB calls it, each column of each set on its own: laid "
        "out by tokens from the time of the distinct texts."
    )
    publish("encoding", Found("Embedding the STS sets", command, table, comparisons, [note]))


def _one_by_one(embedder: Embedder, model: ModelSettings, texts: list[str]) -> tuple[float, int]:
    """Seconds of the loop over some texts, and how many; all texts would take hours."""
    causal = original(model)
    sequences = embedder.tokenize(texts)

    def loop() -> np.ndarray:
        with torch.inference_mode():
            found = [F.normalize(original_vectors(causal, [sequence]), dim=-1) for sequence in sequences]
        return torch.cat(found).numpy()

    np.testing.assert_allclose(loop(), embedder.encode(texts), atol=1e-4)
    return timed(loop), len(texts)


def _ours(embedder: Embedder, texts: list[str]) -> tuple[float, float]:
    """Seconds of the first time, from an empty cache, and of the second."""
    before = os.environ.get("CFT_CACHE")
    with tempfile.TemporaryDirectory() as folder:
        os.environ["CFT_CACHE"] = folder
        remembering = CachedEncoder(embedder, gigabytes=8, version=0)
        found = timed(lambda: remembering.encode(texts, progress="cft")), timed(lambda: remembering.encode(texts))
    os.environ.pop("CFT_CACHE")
    os.environ.update({"CFT_CACHE": before} if before else {})
    return found


def _theirs(model: ModelSettings, sample: list[str], expected: np.ndarray, texts: list[str]) -> tuple[int, float]:
    """The batch size that suits sentence-transformers best, and its seconds."""
    whole = sentence_transformer(model)
    np.testing.assert_allclose(their_vectors(whole, sample, 32), expected, atol=1e-4)
    best = best_size(whole, sample, BATCH_SIZES)
    return best, timed(lambda: their_vectors(whole, texts, best, bar=True))


def their_vectors(whole: Any, texts: list[str], size: int, *, bar: bool = False) -> np.ndarray:
    """Unit vectors by sentence-transformers, EOS written behind every text."""
    eos = whole.tokenizer.eos_token
    with_eos = [text + eos for text in texts]
    return whole.encode(with_eos, batch_size=size, normalize_embeddings=True, show_progress_bar=bar)


def best_size(whole: Any, sample: list[str], sizes: tuple[int, ...]) -> int:
    """The batch size that is fastest for sentence-transformers; it has been run before."""
    by_size = {size: timed(lambda size=size: their_vectors(whole, sample, size), whole.device) for size in sizes}
    return min(by_size, key=lambda size: by_size[size])


if __name__ == "__main__":
    main()
