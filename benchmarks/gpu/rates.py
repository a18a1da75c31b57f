"""The rate of matrix products, at sizes of the models: what a step's rate is to be compared with."""

from typing import Any

import torch
from peers import timed

from gpu.kit import Kit, Note

# Rows are tokens of 60 and of 1,024 NLI triplets as prefix trees; then what goes in and out of a layer.
_SIZES = {
    "square": (8192, 8192, 8192),
    "SmolLM2, 60 triplets": (2814, 576, 1536),
    "Phi-2, 60 triplets": (2814, 2560, 10240),
    "Gemma-2B, 60 triplets": (2814, 2048, 16384),
    "MiniCPM-2B, 60 triplets": (2814, 2304, 5760),
    "Phi-2, 16,384 tokens": (16384, 2560, 10240),
    "LoRA, 60 triplets": (2814, 2560, 8),
}
_TINY = {"square": (128, 128, 128), "LoRA": (64, 32, 4)}
# Name, type, and what torch calls the precision of products of float32.
_PRECISIONS = (
    ("float32", torch.float32, "highest"),
    ("TF32", torch.float32, "high"),
    ("bfloat16", torch.bfloat16, "highest"),
)
_SECONDS = 0.15  # that each is tried for


def run(kit: Kit, note: Note) -> dict[str, Any]:
    """TFLOP a second of every size in every precision."""
    rates: dict[str, dict[str, float]] = {}
    before = torch.get_float32_matmul_precision()
    try:
        for name, (rows, inner, columns) in (_TINY if kit.tiny else _SIZES).items():
            rates[name] = {}
            for precision, dtype, products in _PRECISIONS:
                torch.set_float32_matmul_precision(products)
                left = torch.randn(rows, inner, device=kit.device).to(dtype)
                right = torch.randn(inner, columns, device=kit.device).to(dtype)
                seconds = _seconds(left, right, 0.005 if kit.tiny else _SECONDS, kit.device)
                rates[name][precision] = 2 * rows * inner * columns / seconds / 1e12
            note({"rates": rates})
    finally:
        torch.set_float32_matmul_precision(before)
    table = [("product", *(name for name, *_ in _PRECISIONS))]
    table += [(name, *(f"{rate:.3g}" for rate in by.values())) for name, by in rates.items()]
    return {"unit": "TFLOP/s", "rates": rates, "best": best(rates), "table": table}


def best(rates: dict[str, dict[str, float]]) -> dict[str, float]:
    """The highest rate of each precision."""
    return {precision: max(by[precision] for by in rates.values()) for precision, *_ in _PRECISIONS}


def _seconds(left: torch.Tensor, right: torch.Tensor, wanted: float, device: torch.device) -> float:
    """Of one product, by many in a row."""
    out = left @ right
    for _ in range(3):
        torch.mm(left, right, out=out)
    once = timed(lambda: torch.mm(left, right, out=out), device)
    times = max(int(wanted / max(once, 1e-6) / 3), 1)

    def many() -> None:
        for _ in range(times):
            torch.mm(left, right, out=out)

    return sorted(timed(many, device) for _ in range(3))[1] / times
