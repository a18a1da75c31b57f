"""Contrastive fine-tuning of small causal language models into text embedders (arXiv 2408.00690)."""

import importlib
import os
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from cft.deploy.mteb import MtebEncoder
    from cft.job.library import train
    from cft.model.embedder import Embedder
    from cft.model.quantize import quantize

__all__ = ["Embedder", "MtebEncoder", "__version__", "quantize", "train"]

__version__ = "0.2.0"

# OpenMP's threads wait for one another after every operation, by default turning on the spot for milliseconds. Beside
# other work that takes the very core that the awaited thread needs; a short turn before they sleep loses nothing alone.
# GNU's OpenMP, which torch brings, reads this when torch is imported; whoever set a policy has chosen.
if "OMP_WAIT_POLICY" not in os.environ:
    os.environ.setdefault("GOMP_SPINCOUNT", "1000")

_HOMES = {
    "Embedder": "cft.model.embedder",
    "MtebEncoder": "cft.deploy.mteb",
    "quantize": "cft.model.quantize",
    "train": "cft.job.library",
}


def __getattr__(name: str) -> Any:
    """Import a part when it is asked for: the command line's help must not wait for torch."""
    if name in _HOMES:
        return getattr(importlib.import_module(_HOMES[name]), name)
    raise AttributeError(f"module 'cft' has no attribute {name!r}")
