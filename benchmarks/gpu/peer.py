"""Sentence-transformers on the same device: a training step, and embedding; equal results come first."""

import functools
from typing import Any

import numpy as np
import torch
from encoding import best_size, their_vectors
from peers import its_version, medians, sentence_transformer
from training_step import Where, ours, theirs

from cft.data.records import Triplet
from cft.model.embedder import Embedder
from gpu.kit import Kit, Note

_SIZES = (64, 128, 256, 512, 1024)  # of its batches; the fastest counts
_TINY_SIZES = (8, 16)
# Losses of both sides: float32 rounds far below it, bfloat16 by a hundredth of a cosine, divided by the temperature.
_EXACT, _ROUNDED = 1e-4, 0.2
_LONG = 60  # words, which have fewer than 150 tokens


def run(kit: Kit, note: Note) -> dict[str, Any]:
    """Ratios of its time to cft's; above 1 is in favour of cft.

    Raises:
        ImportError: if it is not installed.
        AssertionError: if results differ.
    """
    facts: dict[str, Any] = {"peer": its_version()}
    facts["step"] = _step(kit)
    note(facts)
    facts["encoding"] = _encoding(kit)
    table = [("what", "precision", "cft's, s", f"{its_version()}, s", "ratio")]
    for what in ("step", "encoding"):
        for precision, found in facts[what]["by_precision"].items():
            seconds = [f"{found[side]:.4f}" for side in ("cft", "peer")]
            table.append((what, precision, *seconds, f"{found['ratio']:.2f}"))
    return facts | {"table": table}


def _short(kit: Kit, count: int) -> list[Triplet]:
    """Triplets that neither side cuts: it cuts the EOS away that was written behind a text, cft keeps it."""
    if kit.tiny:  # whose tokens are bytes
        return [Triplet(a[:60].strip(), p[:50].strip(), (n[0][:50].strip(),)) for a, p, n in kit.rows(count)]
    rows = [row for row in kit.rows(2 * count) if max(len(text.split()) for text in (*row[:2], *row[2])) < _LONG]
    return rows[:count]


def _step(kit: Kit) -> dict[str, Any]:
    rows = _short(kit, 6 if kit.tiny else 60)
    facts: dict[str, Any] = {"triplets": len(rows), "by_precision": {}}
    for precision in ("float32", "bfloat16"):
        where = Where(kit.device, bf16=precision == "bfloat16")
        mine, embedder = ours(kit.base(), rows, where)
        their, whole = theirs(kit.base(), rows, where)
        embedder.model.eval()
        whole.eval()
        losses = mine(), their()
        assert abs(losses[0] - losses[1]) < (_ROUNDED if where.bf16 else _EXACT * losses[0]), (precision, losses)
        for model in (embedder.model, whole):
            model.train()
            model.zero_grad(set_to_none=True)
        found = medians({"cft": mine, "peer": their}, 1 if kit.tiny else 8, device=kit.device)
        facts["by_precision"][precision] = {**found, "ratio": found["peer"] / found["cft"], "losses": losses}
    return facts


def _encoding(kit: Kit) -> dict[str, Any]:
    rows = _short(kit, 20 if kit.tiny else 5000)
    texts = list(dict.fromkeys(text for row in rows for text in (row.anchor, row.positive)))
    sample = texts[:: max(len(texts) // (20 if kit.tiny else 2048), 1)]
    facts: dict[str, Any] = {"texts": len(texts), "by_precision": {}}
    for precision, dtype in (("float32", torch.float32), ("bfloat16", torch.bfloat16)):
        embedder = Embedder.base(kit.base(), device=kit.device, dtype=dtype)
        whole = sentence_transformer(kit.base(), device=kit.device, dtype=dtype)
        sizes = _TINY_SIZES if kit.tiny else _SIZES
        mine, their = embedder.encode(sample), np.asarray(their_vectors(whole, sample, sizes[0]), dtype=np.float32)
        apart = float(np.abs(mine - their).max())
        assert apart < (1e-4 if dtype is torch.float32 else 0.1), (precision, apart)
        best = best_size(whole, sample, sizes)
        sides = {"cft": functools.partial(embedder.encode, texts)}
        sides["peer"] = functools.partial(their_vectors, whole, texts, best)
        seconds = medians(sides, 1 if kit.tiny else 3, device=kit.device)
        ratio = seconds["peer"] / seconds["cft"]
        facts["by_precision"][precision] = {**seconds, "ratio": ratio, "apart": apart, "its_batch": best}
    return facts
