"""An embedder in the form that the `mteb` package evaluates.

import mteb
from cft import Embedder
from cft.mteb import MtebEncoder

mteb.evaluate(MtebEncoder(Embedder.load("outputs/...")), tasks=mteb.get_tasks(tasks=["Banking77Classification"]))
"""

from typing import Any

import numpy as np
import torch

from cft.model.embedder import Embedder
from cft.system.digest import digest
from cft.system.hub import last_part


class MtebEncoder:
    """What MTEB asks of an encoder; prompts are the embedder's own (`with_template`), not MTEB's."""

    def __init__(self, embedder: Embedder, name: str | None = None) -> None:
        """Wrap an embedder.

        Args:
            embedder: trained or not. name: OWNER/NAME for MTEB's tables; None makes one up.
        """
        self._embedder = embedder
        self._name = name or f"cft/{last_part(embedder.contract.model)}"

    def encode(self, inputs: Any, **told: Any) -> np.ndarray:
        """Vectors (texts, D) of length 1.

        Args:
            inputs: batches with the key "text", as MTEB gives them.
            told: which task and split it is, and how MTEB would encode; nothing here depends on it.
        """
        return self._embedder.encode([text for batch in inputs for text in batch["text"]])

    def similarity(self, one: Any, other: Any) -> torch.Tensor:
        """Cosines (n, m) of unit vectors (n, D) and (m, D)."""
        return torch.as_tensor(one) @ torch.as_tensor(other).T

    def similarity_pairwise(self, one: Any, other: Any) -> torch.Tensor:
        """Cosines (n,) of unit vectors (n, D) and (n, D)."""
        return (torch.as_tensor(one) * torch.as_tensor(other)).sum(dim=-1)

    @property
    def mteb_model_meta(self) -> Any:
        """Name, version and size; the version is the contract's, so that MTEB never mixes up two embedders."""
        from mteb.models.model_meta import ModelMeta

        contract = self._embedder.contract
        trunk: Any = self._embedder.backbone.trunk
        return ModelMeta.create_empty(
            overwrites={
                "name": self._name,
                "revision": digest(contract),
                "max_tokens": contract.max_length,
                "embed_dim": trunk.config.hidden_size,
                "similarity_fn_name": "cosine",
                "framework": ["PyTorch"],
            }
        )
