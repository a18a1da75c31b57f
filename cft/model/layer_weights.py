"""Trained weights of a model's layers: what is pooled is the weighted sum of the states of all of them."""

from collections.abc import Sequence
from typing import Any, cast

import torch
from torch import nn

from cft.batching.layout import Batching, sample_sequences
from cft.system.errors import UserError

# What they are called on a trunk, and in an adapter's file, by PEFT's way of naming what stands on a trunk.
_NAME = "layer_weights"
TENSOR = f"base_model.model.{_NAME}.logits"

# Keeps a state of zeros from being divided by zero.
_EPSILON = 1e-12


class LayerWeights(nn.Module):
    """The weighted sum of the states of all layers, each token's state divided by its root mean square.

    Layers hand on states of very different sizes (only the last one's are behind a norm): without the division a weight
    would say little of how much a layer counts. All weigh the same at first: a logit moves by about the learning rate a
    step, so that layers which had no weight at the start would hardly get any.

    Source: Tang and Yang 2024, arXiv 2409.02727, for pooling over all layers; Peters et al. 2018, arXiv 1802.05365, for
    a scalar a layer behind a softmax.
    """

    def __init__(self, layers: int) -> None:
        super().__init__()
        self.logits = nn.Parameter(torch.zeros(layers, dtype=torch.float32))

    def forward(self, states: Sequence[torch.Tensor]) -> torch.Tensor:
        """States (N, D) of every layer to their weighted sum (N, D) in float32."""
        with torch.autocast(states[0].device.type, enabled=False):  # which would round it to bfloat16
            total = torch.zeros_like(states[0], dtype=torch.float32)
            for share, of_layer in zip(torch.softmax(self.logits, dim=0), states, strict=True):
                wide = of_layer.float()
                total = total + share * (wide * torch.rsqrt(wide.square().mean(dim=-1, keepdim=True) + _EPSILON))
        return total


def add_layer_weights(trunk: Any, batching: Batching) -> None:
    """Put weights of all layers beside a trunk's own, in place; frozen, as the trunk is.

    Raises:
        UserError: if the model does not hand out the states of its layers.
    """
    device = next(trunk.parameters()).device
    inputs = batching.layout(sample_sequences(trunk, ()), device).inputs()
    with torch.no_grad():
        states = getattr(trunk(**inputs, use_cache=False, output_hidden_states=True), "hidden_states", None)
    layers = getattr(trunk.config, "num_hidden_layers", None)
    if states is None or len(states) - 1 != layers or len({each.shape for each in states}) > 1:
        raise UserError(
            f"{type(trunk).__name__} does not give the states of all its layers, one as wide as the other: leave "
            "model.layer_weights at false"
        )
    trunk.add_module(_NAME, LayerWeights(layers).to(device).requires_grad_(False).train(trunk.training))


def layer_weights_of(model: nn.Module) -> LayerWeights | None:
    """The layer weights that stand on a model, with an adapter on it or without; None for a model that has none."""
    found = [module for module in model.modules() if isinstance(module, LayerWeights)]
    return cast(LayerWeights, found[0]) if found else None


def train_layer_weights(model: nn.Module) -> None:
    """Have them trained beside an adapter, which froze all that was there before it; nothing for a model without."""
    weights = layer_weights_of(model)
    if weights is not None:
        weights.requires_grad_(True)
