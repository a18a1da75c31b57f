"""An embedder in the form that the `mteb` package evaluates.

import mteb
from cft import Embedder, MtebEncoder

mteb.evaluate(MtebEncoder(Embedder.load("outputs/...")), tasks=mteb.get_tasks(tasks=["Banking77Classification"]))
"""

from typing import Any

import numpy as np
import torch

from cft.config.schema import Role
from cft.model.embedder import Embedder
from cft.system.digest import digest
from cft.system.errors import UserError
from cft.system.hub import last_part
from cft.system.text import described


def _as_rows(vectors: Any) -> torch.Tensor:
    """Vectors (n, D), or one (D,), in float32: sums of products of small numbers overflow in their own kind."""
    try:
        rows = torch.as_tensor(vectors).to(torch.float32)
    except (TypeError, ValueError, RuntimeError) as error:
        raise UserError(f"vectors must be numbers (n, D), as encode gives them, not {described(vectors)}") from error
    if rows.ndim not in (1, 2):
        raise UserError(f"vectors must be (n, D), as encode gives them, not {tuple(rows.shape)}")
    return rows


def _require_alike(first: torch.Tensor, second: torch.Tensor, alike: bool) -> None:
    if not alike:
        raise UserError(f"vectors {tuple(first.shape)} and {tuple(second.shape)} do not go together")


class MtebEncoder:
    """MTEB's encoder interface around an embedder.

    Prompts are the embedder's (`with_template`, `with_prompts`), not MTEB's; MTEB says which texts are queries and
    which are documents.
    """

    def __init__(self, embedder: Embedder, name: str | None = None) -> None:
        """Wrap an embedder.

        Args:
            embedder: trained or not. name: OWNER/NAME for MTEB's tables; by default cft/ and the model's name.
        """
        if not isinstance(embedder, Embedder):
            raise UserError(f"MtebEncoder takes an Embedder, not {described(embedder)}: Embedder.load gives one")
        self._embedder = embedder
        self._name = name or f"cft/{last_part(embedder.contract.model)}"

    def encode(self, inputs: Any, *, prompt_type: Any = None, **task: Any) -> np.ndarray:
        """Vectors (texts, D) of length 1.

        Args:
            inputs: batches with the key "text". prompt_type: MTEB's word for queries or documents, or None. task:
                MTEB's task, split and encoding options, which change nothing.
        """
        try:
            texts = [text for batch in inputs for text in batch["text"]]
        except (TypeError, KeyError, IndexError) as error:
            raise UserError(
                'inputs must be batches that hold texts under the key "text", as MTEB makes them; for a list of texts '
                "use the embedder's own encode"
            ) from error
        role = {"query": Role.query, "document": Role.document}.get(
            getattr(prompt_type, "value", prompt_type), Role.text
        )
        return self._embedder.in_role(role).encode(texts)

    def similarity(self, left: Any, right: Any) -> torch.Tensor:
        """Cosines (n, m) of unit vectors (n, D) and (m, D)."""
        first, second = _as_rows(left), _as_rows(right)
        _require_alike(first, second, first.shape[-1] == second.shape[-1])
        return first @ second.T

    def similarity_pairwise(self, left: Any, right: Any) -> torch.Tensor:
        """Cosines (n,) of unit vectors (n, D) and (n, D)."""
        first, second = _as_rows(left), _as_rows(right)
        _require_alike(first, second, first.shape == second.shape)
        return (first * second).sum(dim=-1)

    @property
    def mteb_model_meta(self) -> Any:
        """Name, revision and size; the revision is the contract's digest, so two embedders are never mixed up."""
        from mteb.models.model_meta import ModelMeta

        contract = self._embedder.contract
        trunk: Any = self._embedder.backbone.trunk
        return ModelMeta.create_empty(
            overwrites={
                "name": self._name,
                "revision": digest(contract.facts),
                "max_tokens": contract.max_length,
                "embed_dim": trunk.config.hidden_size,
                "similarity_fn_name": "cosine",
                "framework": ["PyTorch"],
            }
        )
