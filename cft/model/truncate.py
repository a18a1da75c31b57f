"""A trunk cut off after one of its layers: for embeddings out of the middle of a model."""

from typing import Any

import torch
from torch import nn

from cft.system.errors import UserError


def blocks_of(trunk: Any) -> tuple[nn.Module, str, nn.ModuleList]:
    """A trunk's list of layers: the module that holds it, its attribute there, and the list.

    Raises:
        UserError: if there is no such list.
    """
    depth = getattr(trunk.config, "num_hidden_layers", None)
    for owner in trunk.modules():
        for name, child in owner.named_children():
            if isinstance(child, nn.ModuleList) and len(child) == depth:
                return owner, name, child
    raise UserError(f"{type(trunk).__name__} has no list of layers that could be cut: leave model.layer at null")


def keep_layers(trunk: Any, layer: int, *, token_ids: list[int]) -> Any:
    """Cut a trunk off after a layer, so that its last hidden state is that layer's output.

    The output is what transformers calls `hidden_states[layer]`: without the final norm, which belongs to the last
    layer. A trial on the given tokens verifies it. Layers count from 1, or backwards from the last, -1.

    Raises:
        UserError: if there is no such layer, or the trunk cannot be cut.
    """
    owner, name, blocks = blocks_of(trunk)
    depth = layer if layer > 0 else len(blocks) + 1 + layer
    if not 1 <= depth <= len(blocks):
        raise UserError(f"model.layer={layer}: this model has layers 1 to {len(blocks)} (or -1 to -{len(blocks)})")
    if depth == len(blocks):
        return trunk
    batch = torch.tensor([token_ids], device=next(trunk.parameters()).device)
    with torch.no_grad():
        expected = trunk(input_ids=batch, output_hidden_states=True, use_cache=False).hidden_states[depth]
        setattr(owner, name, blocks[:depth])
        trunk.config.num_hidden_layers = depth
        _drop_final_norms(owner, name)
        states = trunk(input_ids=batch, use_cache=False).last_hidden_state
    if states.shape != expected.shape or not torch.allclose(states, expected, atol=1e-5, rtol=1e-3):
        raise UserError(f"{type(trunk).__name__} cannot be cut after layer {depth}: leave model.layer at null")
    return trunk


def _drop_final_norms(owner: nn.Module, name: str) -> None:
    """Replace norms that stand behind the list of layers, or are called final, by the identity."""
    children = [child for child, _ in owner.named_children()]
    behind = children[children.index(name) + 1 :]
    for child in children:
        if (child in behind or "final" in child) and "norm" in type(getattr(owner, child)).__name__.lower():
            setattr(owner, child, nn.Identity())
