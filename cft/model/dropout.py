"""LoRA's dropout on a CPU, where torch's own takes a seventh of a training step.

Random bits come from numpy's SFC64, sixteen an element, and the mask is drawn again in the backward pass instead of
being kept. The seed of each mask is drawn from torch's generator: gradient caching and gradient checkpointing, which
restore its state, see the same masks again.
"""

from typing import Any

import numpy as np
import torch
from torch import nn

_LEVELS = 1 << 16


class CpuDropout(nn.Dropout):
    """Zero each element with probability p (to 1/65,536) and scale the others; torch's own dropout on other devices."""

    def forward(self, input: torch.Tensor) -> torch.Tensor:
        """Drop in training; return the input in evaluation."""
        if not self.training or self.p == 0 or input.device.type != "cpu":
            return super().forward(input)
        return _Drop.apply(input, self.p)


def replace_dropout(model: nn.Module) -> None:
    """Replace LoRA's dropout layers by `CpuDropout`."""
    for module in model.modules():
        layers = getattr(module, "lora_dropout", None)
        if isinstance(layers, nn.ModuleDict):
            for name, layer in layers.items():
                if type(layer) is nn.Dropout:
                    layers[name] = CpuDropout(layer.p).train(layer.training)


class _Drop(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: torch.Tensor, p: float) -> torch.Tensor:
        ctx.seed, ctx.p = int(torch.randint(2**62, ())), p
        return x * _mask(x, ctx.seed, p)

    @staticmethod
    def backward(ctx: Any, *gradients: torch.Tensor) -> tuple[torch.Tensor, None]:
        return gradients[0] * _mask(gradients[0], ctx.seed, ctx.p), None


def _mask(like: torch.Tensor, seed: int, p: float) -> torch.Tensor:
    """0 with probability p, else the factor that keeps the expectation; shape and dtype of `like`."""
    count = like.numel()
    words = np.random.SFC64(seed).random_raw(-(-count // 4))
    levels = torch.from_numpy(words.view(np.int16))[:count].view(like.shape)
    dropped = round(p * _LEVELS)
    mask = torch.empty(like.shape, dtype=torch.float32)
    torch.ge(levels, dropped - _LEVELS // 2, out=mask)
    return mask.mul_(_LEVELS / (_LEVELS - dropped)).to(like.dtype)
