"""LoRA's dropout: a token's mask follows from the seed, the layer and the token's number in the whole batch.

So a batch that goes through the model in chunks, or whose activations are computed again in the backward pass, sees
the masks that it sees as a whole. The mask is drawn again in the backward pass instead of being kept.

On a CPU, random bits come from numpy's SFC64, sixteen an element, in blocks of tokens with a seed each: torch's own
dropout takes a seventh of a training step there. On other devices they are a hash of seed, layer, token and column.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import nn

_LEVELS = 1 << 16
# Tokens whose bits come from one seed. Seeding takes as long as drawing for fifty tokens of a small model.
_BLOCK = 256


@dataclass(frozen=True)
class Draw:
    """What the masks of one forward pass follow from."""

    seed: int  # of the batch; 0 or more
    places: np.ndarray | None = None  # (N,) numbers of the tokens in the whole batch; None for 0 to N - 1


class _Current:
    """The draw of the forward pass that a model is in; all its dropout layers look at the same one."""

    draw: Draw | None = None


class TokenDropout(nn.Dropout):
    """Zero each element with probability p (to 1/65,536) and scale the others.

    Outside of `drawing`, the seed comes from torch's generator.
    """

    def __init__(self, p: float, number: int = 0, current: _Current | None = None) -> None:
        """Make a layer.

        Args:
            p: probability of a zero.
            number: of this layer among those of its model.
            current: what the layers of the model share.
        """
        super().__init__(p)
        self.number, self.current = number, current or _Current()

    def forward(self, input: torch.Tensor) -> torch.Tensor:
        """Drop in training, in the last dimension of (..., D); return the input in evaluation."""
        masking = self.masking(input)
        return input if masking is None else _Drop.apply(input, *masking)

    def masking(self, input: torch.Tensor) -> tuple[float, Draw, int] | None:
        """What `kept` needs for the mask of this pass of (..., D); None where nothing is dropped."""
        if not self.training or self.p == 0:
            return None
        draw = self.current.draw or Draw(int(torch.randint(2**62, ())))
        if draw.places is not None and len(draw.places) * input.shape[-1] != input.numel():
            # The tokens were sorted anew on the way here, as for experts: they are numbered as they come.
            draw = Draw(draw.seed)
        return self.p, draw, self.number


def replace_dropout(model: nn.Module) -> None:
    """Replace LoRA's dropout layers by `TokenDropout`, numbered in the order of the model's modules."""
    current, number = _Current(), 0
    for module in model.modules():
        layers = getattr(module, "lora_dropout", None)
        if isinstance(layers, nn.ModuleDict):
            for name, layer in layers.items():
                if type(layer) is nn.Dropout:
                    layers[name] = TokenDropout(layer.p, number, current).train(layer.training)
                    number += 1


def drops(model: nn.Module) -> bool:
    """Whether a model has a `TokenDropout` that drops in training."""
    return any(isinstance(module, TokenDropout) and module.p > 0 for module in model.modules())


@contextmanager
def drawing(model: nn.Module, draw: Draw) -> Iterator[None]:
    """Have all masks of a model follow from `draw`: around a forward pass, and around its backward pass too."""
    shared = next((module.current for module in model.modules() if isinstance(module, TokenDropout)), _Current())
    shared.draw = draw
    try:
        yield
    finally:
        shared.draw = None


class _Drop(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: torch.Tensor, p: float, draw: Draw, number: int) -> torch.Tensor:
        ctx.key = p, draw, number
        return x * mask(x, *ctx.key)

    @staticmethod
    def backward(ctx: Any, *gradients: torch.Tensor) -> tuple[torch.Tensor, None, None, None]:
        return gradients[0] * mask(gradients[0], *ctx.key), None, None, None


def mask(like: torch.Tensor, p: float, draw: Draw, number: int) -> torch.Tensor:
    """0 with probability p, else the factor that keeps the expectation; shape, dtype and device of `like`."""
    if like.dim() == 0 or like.numel() == 0:
        return torch.ones_like(like)
    return kept(like, p, draw, number).mul_(factor(p))


def factor(p: float) -> float:
    """What keeps the expectation of an element that is zero with probability p."""
    return _LEVELS / (_LEVELS - round(p * _LEVELS))


def kept(like: torch.Tensor, p: float, draw: Draw, number: int) -> torch.Tensor:
    """0 with probability p, else 1; shape, dtype and device of `like`, (..., D) and not empty."""
    rows, width = like.numel() // like.shape[-1], like.shape[-1]
    levels = (_drawn if like.device.type == "cpu" else _hashed)(draw, number, rows, width, like.device)
    found = torch.empty(like.shape, dtype=like.dtype, device=like.device)
    return torch.ge(levels.view(like.shape), round(p * _LEVELS) - _LEVELS // 2, out=found)


def _drawn(draw: Draw, number: int, rows: int, width: int, device: torch.device) -> torch.Tensor:
    """(rows, width) int16, uniform, drawn in blocks of tokens."""
    if draw.places is None:
        blocks = [(block, min(_BLOCK, rows - block * _BLOCK)) for block in range(-(-rows // _BLOCK))]
    else:
        highest = np.full(draw.places.max() // _BLOCK + 1, -1)
        np.maximum.at(highest, draw.places // _BLOCK, draw.places % _BLOCK)
        blocks = [(int(block), int(highest[block]) + 1) for block in np.flatnonzero(highest >= 0)]
    words = -(-width // 4)  # of 64 bits a token
    parts = [_bits(draw.seed, number, block).random_raw(count * words) for block, count in blocks]
    levels = (parts[0] if len(parts) == 1 else np.concatenate(parts)).view(np.int16).reshape(-1, 4 * words)[:, :width]
    if draw.places is not None:
        # From a token's number to its row among the blocks that were drawn.
        before = np.zeros(len(highest), dtype=np.int64)
        before[[block for block, _ in blocks]] = np.cumsum([0, *(count for _, count in blocks[:-1])])
        places = before[draw.places // _BLOCK] + draw.places % _BLOCK
        if len(places) != len(levels) or (places[1:] != places[:-1] + 1).any():
            levels = levels.take(places, axis=0)
    return torch.from_numpy(np.ascontiguousarray(levels))


def _bits(seed: int, number: int, block: int) -> np.random.SFC64:
    return np.random.SFC64((seed << 64) | (number << 32) | block)


def _hashed(draw: Draw, number: int, rows: int, width: int, device: torch.device) -> torch.Tensor:
    """(rows, width) int32 from -32,768 to 32,767, uniform, a hash of each element's place."""
    (salt,) = np.random.SeedSequence((draw.seed << 32) | number).generate_state(1)
    places = torch.arange(rows) if draw.places is None else torch.from_numpy(draw.places)
    by_row = _mixed((places.to(device) + 1).to(torch.int32) * -1640531527 + int(salt.view(np.int32)))
    by_column = _mixed(torch.arange(width, dtype=torch.int32, device=device) * 97 + 13)
    return _mixed(by_row[:, None] + by_column) >> 16


def _mixed(words: torch.Tensor) -> torch.Tensor:
    """Spread every bit of int32 words over all of them, in place: the last step of MurmurHash3 (Appleby 2011)."""
    for shift, factor in ((16, -2048144789), (13, -1028477387)):
        words ^= (words >> shift) & ((1 << (32 - shift)) - 1)
        words *= factor
    words ^= (words >> 16) & 0xFFFF
    return words
