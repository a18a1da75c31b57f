"""Contrastive fine-tuning of small causal language models into text embedders (arXiv 2408.00690)."""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from cft.model.embedder import Embedder

__all__ = ["Embedder", "__version__"]

__version__ = "0.1.0"


def __getattr__(name: str) -> Any:
    """Import the embedder when it is asked for: the command line's help must not wait for torch."""
    if name == "Embedder":
        from cft.model.embedder import Embedder

        return Embedder
    raise AttributeError(f"module 'cft' has no attribute {name!r}")
