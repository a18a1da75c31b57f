"""Embedding the nine STS sets, or made-up texts, in bfloat16, float32 and TF32."""

from typing import Any

import numpy as np
import torch
from peers import timed

from cft.data.records import ScoredPair
from cft.evaluation.scores import evaluate
from cft.model.embedder import Embedder
from cft.training import memory
from gpu.kit import Kit, Note, generated, gib

_MADE_UP = 10_000  # triplets, of three texts each, where no sets are given
_WAYS = (
    ("bfloat16", torch.bfloat16, "highest"),
    ("float32", torch.float32, "highest"),
    ("TF32", torch.float32, "high"),
)
_BUDGETS = (8192, 32768)  # tokens of a forward pass: what cft takes on a GPU, and more


def run(kit: Kit, note: Note) -> dict[str, Any]:
    """Texts a second, scores, and how far vectors are from float32's."""
    sets = _sets(kit)
    made_up = [text for row in generated(60 if kit.tiny else _MADE_UP) for text in (row.anchor, row.positive)]
    every = [text for pairs in sets.values() for pair in pairs for text in (pair.sentence1, pair.sentence2)]
    texts = list(dict.fromkeys(every or made_up))
    facts: dict[str, Any] = {
        "texts": len(texts),
        "sets": {name: len(pairs) for name, pairs in sets.items()},
        "ways": {},
    }
    vectors: dict[str, np.ndarray] = {}
    before = torch.get_float32_matmul_precision()
    try:
        for name, dtype, products in _WAYS:
            torch.set_float32_matmul_precision(products)
            facts["ways"][name], vectors[name] = _embedded(kit, texts, sets, dtype)
            note(facts)
    finally:
        torch.set_float32_matmul_precision(before)
    for name, found in facts["ways"].items():
        cosines = np.einsum("nd,nd->n", vectors[name], vectors["float32"])
        found["least_cosine_with_float32"] = float(cosines.min())
    return facts | {"table": _table(facts["ways"])}


def _sets(kit: Kit) -> dict[str, list[ScoredPair]]:
    if kit.sts is None:
        return {}
    from cft.config.compose import compose_config
    from cft.data.sts import load_eval_sets

    return load_eval_sets(compose_config(["model=tiny", "eval=sts", f"eval.folder={kit.sts}"]).eval)


def _embedded(
    kit: Kit, texts: list[str], sets: dict[str, list[ScoredPair]], dtype: torch.dtype
) -> tuple[dict[str, Any], np.ndarray]:
    """What embedding the texts takes, and their vectors."""
    embedder = Embedder.base(kit.base(), device=kit.device, dtype=dtype)
    tokenizing = timed(lambda: embedder.tokenize(texts))
    tokens = sum(map(len, embedder.tokenize(texts)))
    embedder.encode(texts[: len(texts) // 4])  # warms up
    peak = memory.PeakMemory(embedder.device)
    found: list[np.ndarray] = []
    seconds = {
        budget: timed(lambda budget=budget: found.append(embedder.encode(texts, token_budget=budget)), embedder.device)
        for budget in _BUDGETS
    }
    best = min(seconds.values())
    scores = evaluate(embedder, sets).scores if sets else {}
    facts = {
        "seconds_by_budget": {str(budget): value for budget, value in seconds.items()},
        "seconds": best,
        "texts_a_second": len(texts) / best,
        "tokens_a_second": tokens / best,
        "tokenizing_seconds": tokenizing,
        "peak_bytes": peak.bytes(),
        "scores": scores,
        "mean": float(np.mean(list(scores.values()))) if scores else None,
    }
    return facts, found[0]


def _table(ways: dict[str, dict[str, Any]]) -> list[tuple[str, ...]]:
    table = [("precision", "texts/s", "tokens/s", "s", "tokenizing, s", "peak GiB", "least cosine", "mean score")]
    for name, found in ways.items():
        rates = [f"{found[key]:,.0f}" for key in ("texts_a_second", "tokens_a_second")]
        seconds = [f"{found[key]:.3f}" for key in ("seconds", "tokenizing_seconds")]
        peak = "" if found["peak_bytes"] is None else gib(found["peak_bytes"])
        mean = "" if found["mean"] is None else f"{found['mean']:.2f}"
        table.append((name, *rates, *seconds, peak, f"{found['least_cosine_with_float32']:.5f}", mean))
    return table
