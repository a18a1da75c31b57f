"""Attention forward and backward on a CPU in bfloat16, as in a training step: plain products against the fused kernel.

    python benchmarks/attention.py

Both sides attend over the same queries, keys and values, of SmolLM2-135M's shape; their outputs are compared first.
"""

import time
from statistics import median

import torch
import torch.nn.functional as F
from publish import Comparison, Found, publish

from cft.batching.prefix_tree import _attend_by_products

HEADS, GROUPS, DEPTH = 9, 3, 64
BLOCKS = [(98, 16), (66, 31), (11, 48), (5, 58)]  # texts and tokens of 60 NLI triplets, as a batch of them is laid out
TURNS = 9


def main() -> None:
    """Time both sides in turns and publish their ratio."""
    rows, comparisons = [("texts", "tokens", "products", "fused kernel")], []
    for precision in (torch.bfloat16, torch.float32):
        name = str(precision).removeprefix("torch.")
        totals = [0.0, 0.0]
        for texts, tokens in BLOCKS:
            seconds = compare(texts, tokens, precision)
            rows.append((f"{texts}, {name}", str(tokens), "1.00", f"{seconds[1] / seconds[0]:.2f}"))
            totals = [total + one for total, one in zip(totals, seconds, strict=True)]
        if precision is torch.bfloat16:
            comparisons.append(Comparison("attention in bfloat16, both ways", "PyTorch's", totals[1] / totals[0]))
    publish(
        "attention",
        Found(
            title="Attention on a CPU",
            command="python benchmarks/attention.py",
            table=rows,
            comparisons=comparisons,
            notes=[f"Time, cft's products = 1; medians of {TURNS} turns. Products are used in bfloat16 alone."],
        ),
        precision="bfloat16 and float32",
    )


def compare(texts: int, tokens: int, precision: torch.dtype) -> list[float]:
    """Median seconds of products and of the fused kernel."""
    generator = torch.Generator().manual_seed(0)
    states = [
        torch.randn(texts, tokens, heads, DEPTH, generator=generator).to(precision).transpose(1, 2).requires_grad_()
        for heads in (HEADS, GROUPS, GROUPS)
    ]

    def products() -> torch.Tensor:
        return _attend_by_products(*states, None, causal=True, scaling=None)

    def fused() -> torch.Tensor:
        return F.scaled_dot_product_attention(*states, is_causal=True, enable_gqa=True)

    torch.testing.assert_close(products(), fused(), rtol=0.02, atol=0.02)
    taken: list[list[float]] = [[], []]
    for _ in range(TURNS):
        for times, side in zip(taken, (products, fused), strict=True):
            began = time.perf_counter()
            side().sum().backward()
            times.append(time.perf_counter() - began)
    return [median(times) for times in taken]


if __name__ == "__main__":
    main()
