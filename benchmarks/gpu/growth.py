"""How a step's time and memory grow with the triplets of a batch and the tokens of a text."""

from typing import Any

import torch

from cft.data.records import Triplet
from cft.model.lora import trainable
from cft.system.memory import OutOfMemory
from cft.training.chunking import choose_chunking
from gpu.kit import Kit, Note, gib
from gpu.shapes import random_embedder
from gpu.steps import Batch, reference_rate, timed_steps

SHAPE = "minicpm"
_TRIPLETS, _LENGTH = (16, 64, 256, 1024), 18  # of a batch that grows; tokens of its texts
_LENGTHS, _FEW = (16, 32, 64, 128, 256, 512), 16  # of texts that grow; triplets of a batch


def run(kit: Kit, note: Note) -> dict[str, Any]:
    """Seconds and peak bytes at each size, by as few chunks as memory holds."""
    embedder = random_embedder(SHAPE, kit.device, tiny=kit.tiny)
    optimizer = torch.optim.AdamW(trainable(embedder.model).values(), lr=5e-5)
    reference = reference_rate(kit)
    sizes = [(triplets, _LENGTH) for triplets in _TRIPLETS] + [(_FEW, length) for length in _LENGTHS]
    if kit.tiny:
        sizes = [(2, 8), (4, 8), (2, 16)]
    vocabulary = embedder.backbone.vocabulary
    facts: dict[str, Any] = {"shape": SHAPE, "sizes": {}}
    for triplets, length in sizes:
        batches = [_batch(triplets, length, vocabulary, seed) for seed in range(2 if kit.tiny else 3)]
        name = f"{triplets} triplets of {length} tokens a text"
        facts["sizes"][name] = {"error": "out of memory"}
        with OutOfMemory() as ended:
            budget = choose_chunking(embedder, texts=3 * triplets, bf16=True, chunk_tokens=None).tokens
            facts["sizes"][name] = timed_steps(embedder, optimizer, batches, max(budget, length), reference)
        if ended:
            optimizer.zero_grad(set_to_none=True)
            ended.free()
        note(facts)
    return facts | {"table": _table(facts["sizes"])}


def _batch(triplets: int, length: int, vocabulary: int, seed: int) -> Batch:
    """Texts of one length that share no beginning, so that every token goes through the model."""
    generator = torch.Generator().manual_seed(seed)
    ids = torch.randint(3, vocabulary, (3 * triplets, length), generator=generator)
    ids[:, -1] = 2
    rows = [Triplet(f"anchor {n}", f"positive {n}", (f"negative {n}",)) for n in range(triplets)]
    return rows, [tuple(row) for row in ids.tolist()]


def _table(sizes: dict[str, dict[str, Any]]) -> list[tuple[str, ...]]:
    table = [("step", "s", "µs a token", "chunks", "of the matrix rate", "peak GiB")]
    for name, found in sizes.items():
        if "error" in found:
            table.append((name, found["error"], "", "", "", ""))
            continue
        a_token = f"{1e6 * found['median_seconds'] / found['nodes']:.1f}"
        mfu = "" if found["mfu"] is None else f"{found['mfu']:.1%}"
        peak = "" if found["peak_bytes"] is None else gib(found["peak_bytes"])
        table.append((name, f"{found['median_seconds']:.4f}", a_token, str(found["chunks"]), mfu, peak))
    return table
