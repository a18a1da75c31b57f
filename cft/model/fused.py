"""Parts of a block as one function each, with a backward pass of its own: fewer passes over memory in a training step.

On a CPU a third of a step is spent reading and writing states between matrix products. PyTorch keeps and computes a
tensor for every operation of a norm, a gated layer or a low-rank update; here each is one function that keeps its
inputs and works in place. Values are the model's own to rounding (tests hold both directions to 1e-6): a part of
the model is replaced only where a trial with its own weights shows that it computes the formula. Passes without
gradients, other devices and anything unusual (DoRA, several adapters, trained biases, 4-bit weights) go the model's own
way.
"""

from collections.abc import Callable
from types import FunctionType, MethodType
from typing import Any

import torch
import torch.nn.functional as F
from peft.tuners.lora import Linear as LoraLinear
from torch import nn
from torch.autograd.function import once_differentiable

from cft.model.dropout import Draw, TokenDropout, factor, kept

# Lengths of a trial's rows: some so short that an epsilon counts, and one beyond any limit that values are clamped to.
_LENGTHS = (1e-3, 0.03, 1.0, 30.0, 1e4)
# Largest difference of a trial in float32, as a share of the largest value; and, where values are rounded to fewer
# bits, the largest share of values that are not the same: multiplying before rounding instead of after changes a third.
_TOLERANCE, _UNEQUAL = 1e-5, 0.01


def fuse_blocks(trunk: nn.Module) -> None:
    """Have a trunk's norms, gated layers and rotations run as one function each in training on a CPU."""
    for module in trunk.modules():
        if _is_norm(module):
            _fuse_norm(module)
        elif _is_gated(module):
            _fuse_gated(module)
        elif _rotates(type(module).forward):
            _fuse_rotation(module)


def fuse_updates(model: nn.Module) -> None:
    """Have the linear layers of PEFT's model run as one function each, with their low-rank update and its dropout."""
    for module in model.modules():
        if type(module) is LoraLinear and type(module.base_layer) is nn.Linear:
            _set_forward(module, _updated_forward)


def _set_forward(module: Any, forward: Callable[..., torch.Tensor]) -> None:
    """Give one module another forward pass; its class keeps its own."""
    module.forward = MethodType(forward, module)


def _own(module: Any, *args: Any, **kwargs: Any) -> torch.Tensor:
    """What the module's class computes."""
    return type(module).forward(module, *args, **kwargs)


def _applies(x: torch.Tensor) -> bool:
    return x.device.type == "cpu" and torch.is_grad_enabled() and x.numel() > 0


def _tried(module: nn.Module, width: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Rows (5, width) of very different lengths, and what the module makes of them in training, if it can."""
    weight = next(module.parameters())
    generator = torch.Generator().manual_seed(0)
    lengths = torch.tensor(_LENGTHS)[:, None]
    rows = (torch.randn(len(_LENGTHS), width, generator=generator) * lengths).to(weight.dtype)
    # In training, as that is where the function takes its place: a module may drop something of its own there alone.
    modes = {each: each.training for each in module.modules()}
    module.train()
    try:
        with torch.no_grad(), torch.random.fork_rng(devices=[]):
            return rows, _own(module, rows)
    except Exception:  # it takes other arguments than its likes
        return rows, rows[:0]
    finally:
        for each, mode in modes.items():
            each.training = mode


def _same(found: torch.Tensor, expected: torch.Tensor) -> bool:
    """Whether two results of a trial, row by row, are the same but for rounding."""
    if found.shape != expected.shape or found.dtype != expected.dtype or not found.isfinite().all():
        return False
    if found.dtype is torch.float32:
        largest = expected.abs().amax(dim=-1, keepdim=True)
        return bool(((found - expected).abs() <= _TOLERANCE * largest).all())
    return bool((found != expected).float().mean() <= _UNEQUAL)


# --- root mean square norms -----------------------------------------------------------------------------------------


def _is_norm(module: nn.Module) -> bool:
    """Whether a module looks like a root mean square norm (Zhang and Sennrich 2019, arXiv 1910.07467)."""
    names = [name for name, _ in module.named_parameters()]
    weight: Any = getattr(module, "weight", None)
    return type(module).__name__.endswith("RMSNorm") and names == ["weight"] and _on_cpu(weight) and weight.dim() == 1


def _on_cpu(weight: Any) -> bool:
    return isinstance(weight, torch.Tensor) and weight.device.type == "cpu" and weight.is_floating_point()


def _epsilon(module: nn.Module) -> Any:
    return getattr(module, "variance_epsilon", getattr(module, "eps", None))


def _fuse_norm(module: Any) -> None:
    epsilon = _epsilon(module)
    if not isinstance(epsilon, float):
        return
    rows, expected = _tried(module, len(module.weight))
    # Gemma's weight is a difference from 1; families differ in whether they round before or after multiplying by it.
    for offset in (False, True):
        for round_first in (True, False):
            with torch.no_grad():
                found = _Norm.apply(rows, module.weight, epsilon, offset, round_first)
            if _same(found, expected):
                module.norm_form = offset, round_first
                _set_forward(module, _norm_forward)
                return


def _norm_forward(module: Any, x: torch.Tensor) -> torch.Tensor:
    if not _applies(x) or x.dtype is not module.weight.dtype:
        return _own(module, x)
    return _Norm.apply(x, module.weight, _epsilon(module), *module.norm_form)


class _Norm(torch.autograd.Function):
    """y = x / sqrt(mean(x * x) + epsilon) * weight, over the last dimension, computed in float32."""

    @staticmethod
    def forward(
        ctx: Any, x: torch.Tensor, weight: torch.Tensor, epsilon: float, offset: bool, round_first: bool
    ) -> torch.Tensor:
        wide = x.float()
        scale = torch.linalg.vector_norm(wide, dim=-1, keepdim=True)
        scale = scale.square_().div_(x.shape[-1]).add_(epsilon).rsqrt_()
        ctx.save_for_backward(x, weight, scale)
        ctx.form = offset, round_first
        normed = wide * scale
        if round_first:
            return normed.to(x.dtype).mul_(_factor(weight, offset))
        return normed.mul_(_factor(weight.float(), offset)).to(x.dtype)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: torch.Tensor) -> tuple[torch.Tensor | None, torch.Tensor | None, None, None, None]:
        x, weight, scale = ctx.saved_tensors
        offset, round_first = ctx.form
        wide = x.float()
        of_weight = None
        if ctx.needs_input_grad[1]:
            normed = (wide * scale).to(x.dtype if round_first else torch.float32)
            of_weight = (normed * gradient).flatten(0, -2).sum(dim=0).to(weight.dtype)
        if not ctx.needs_input_grad[0]:
            return None, of_weight, None, None, None
        if round_first:
            through = (gradient * _factor(weight, offset)).float()
        else:
            through = gradient.float() * _factor(weight.float(), offset)
        # dx = scale * (through - x * scale^2 * mean(through * x))
        along = torch.linalg.vecdot(through, wide).unsqueeze(-1)
        along = along.mul_(scale).mul_(scale).div_(-x.shape[-1])
        return through.addcmul_(wide, along).mul_(scale).to(x.dtype), of_weight, None, None, None


def _factor(weight: torch.Tensor, offset: bool) -> torch.Tensor:
    return weight + 1 if offset else weight


# --- gated layers -----------------------------------------------------------------------------------------------------

_Activation = tuple[Callable[[torch.Tensor], torch.Tensor], Callable[[torch.Tensor, torch.Tensor], torch.Tensor]]


def _silu_backward(gradient: torch.Tensor, x: torch.Tensor) -> torch.Tensor:
    return torch.ops.aten.silu_backward.grad_input(gradient, x, grad_input=gradient)


def _gelu_backward(gradient: torch.Tensor, x: torch.Tensor) -> torch.Tensor:
    return torch.ops.aten.gelu_backward.grad_input(gradient, x, approximate="tanh", grad_input=gradient)


# Each with its backward pass, which writes over the gradient.
_ACTIVATIONS: dict[str, _Activation] = {
    "silu": (F.silu, _silu_backward),
    "gelu_tanh": (lambda x: F.gelu(x, approximate="tanh"), _gelu_backward),
}


def _is_gated(module: Any) -> bool:
    """Whether a module looks like a gated layer (Shazeer 2020, arXiv 2002.05202), as most families write it."""
    children = dict(module.named_children())
    linear = [children.pop(name, None) for name in ("gate_proj", "up_proj", "down_proj")]
    return (
        all(isinstance(layer, nn.Linear) and _on_cpu(layer.weight) for layer in linear)
        and list(children) == ["act_fn"]
        and not list(children["act_fn"].parameters())
    )


def _fuse_gated(module: Any) -> None:
    rows, expected = _tried(module, module.gate_proj.in_features)
    for name in _ACTIVATIONS:
        with torch.no_grad():
            found = module.down_proj(_Gated.apply(module.gate_proj(rows), module.up_proj(rows), name))
        if _same(found, expected):
            module.gate_form = name
            _set_forward(module, _gated_forward)
            return


def _gated_forward(module: Any, x: torch.Tensor) -> torch.Tensor:
    if not _applies(x):
        return _own(module, x)
    gate, up = module.gate_proj(x), module.up_proj(x)
    return module.down_proj(_Gated.apply(gate, up, module.gate_form))


class _Gated(torch.autograd.Function):
    """y = activation(gate) * up; the activation is computed again in the backward pass instead of being kept."""

    @staticmethod
    def forward(ctx: Any, gate: torch.Tensor, up: torch.Tensor, name: str) -> torch.Tensor:
        ctx.save_for_backward(gate, up)
        ctx.name = name
        return _ACTIVATIONS[name][0](gate).mul_(up)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, None]:
        gate, up = ctx.saved_tensors
        activation, backward = _ACTIVATIONS[ctx.name]
        return backward(gradient * up, gate), activation(gate).mul_(gradient), None


# --- rotary positions -------------------------------------------------------------------------------------------------

_TOKENS = 4  # of a trial
_ROTATE = "apply_rotary_pos_emb"  # what the modules of transformers' families call their function


def _rotates(forward: Any) -> bool:
    """Whether a class's forward pass is a plain function that calls its family's rotation of queries and keys."""
    return (
        isinstance(forward, FunctionType)
        and not hasattr(forward, "__wrapped__")
        and _ROTATE in forward.__code__.co_names
    )


def _fuse_rotation(module: Any) -> None:
    """Give an attention its own forward pass with another rotation, in no other module of the process."""
    weight = next(module.parameters())
    own: Any = type(module).forward
    rotate = own.__globals__.get(_ROTATE)
    if not callable(rotate) or not _on_cpu(weight):
        return
    generator = torch.Generator().manual_seed(0)
    # In float32 whatever the model's precision: in fewer bits, rounding once instead of three times is not the same.
    queries, keys = (torch.randn(1, heads, _TOKENS, 8, generator=generator) for heads in (2, 1))
    cos, sin = (torch.randn(1, _TOKENS, 4, generator=generator).repeat(1, 1, 2) for _ in range(2))
    try:
        expected = rotate(queries, keys, cos, sin)
    except Exception:  # another function of that name, with other arguments
        return
    found = [_Rotated.apply(x, cos.unsqueeze(1), sin.unsqueeze(1)) for x in (queries, keys)]
    if len(expected) == 2 and all(map(_same, found, expected)):
        names = own.__globals__ | {_ROTATE: _rotation(rotate)}
        forward = FunctionType(own.__code__, names, own.__name__, own.__defaults__, own.__closure__)
        forward.__kwdefaults__ = own.__kwdefaults__
        _set_forward(module, forward)


def _rotation(own: Callable[..., Any]) -> Callable[..., Any]:
    """A family's rotation, as one function where that applies."""

    def rotate(queries: torch.Tensor, keys: torch.Tensor, *args: Any, **kwargs: Any) -> Any:
        if len(args) != 2 or kwargs or not _applies(queries) or not _turns_whole(queries, keys, *args):
            return own(queries, keys, *args, **kwargs)
        cos, sin = (each.unsqueeze(1) for each in args)
        return _Rotated.apply(queries, cos, sin), _Rotated.apply(keys, cos, sin)

    return rotate


def _turns_whole(queries: torch.Tensor, *others: Any) -> bool:
    """Whether whole heads are turned, in one precision; some families turn a part, and have fewer angles."""
    return all((each.dtype, each.shape[-1]) == (queries.dtype, queries.shape[-1]) for each in others)


class _Rotated(torch.autograd.Function):
    """The first half of a head's numbers turned against its second half (Su et al. 2021, arXiv 2104.09864)."""

    @staticmethod
    def forward(ctx: Any, x: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor) -> torch.Tensor:
        ctx.save_for_backward(cos, sin)
        return _turned(x, cos, sin, back=False)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: torch.Tensor) -> tuple[torch.Tensor, None, None]:
        return _turned(gradient, *ctx.saved_tensors, back=True), None, None


def _turned(x: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor, *, back: bool) -> torch.Tensor:
    """X (..., D) turned by angles, or its gradient turned back."""
    half = x.shape[-1] // 2
    first, second = slice(None, half), slice(half, None)
    # A gradient goes by the sine of the half that its value went to.
    of_first, of_second = (second, first) if back else (first, second)
    y = x * cos
    y[..., first].addcmul_(x[..., second], sin[..., of_first], value=1 if back else -1)
    y[..., second].addcmul_(x[..., first], sin[..., of_second], value=-1 if back else 1)
    return y


# --- low-rank updates -------------------------------------------------------------------------------------------------


def _updated_forward(module: Any, x: torch.Tensor, *args: Any, **kwargs: Any) -> torch.Tensor:
    adapters = module.active_adapters
    if args or kwargs or not _applies(x) or len(adapters) != 1 or not _is_plain(module, adapters[0], x):
        return _own(module, x, *args, **kwargs)
    (name,) = adapters
    down, up, dropout = module.lora_A[name].weight, module.lora_B[name].weight, module.lora_dropout[name]
    drop = dropout.masking(x) if isinstance(dropout, TokenDropout) else None
    base = module.base_layer
    return _Updated.apply(x, base.weight, base.bias, down, up, module.scaling[name], drop)


def _is_plain(module: Any, name: str, x: torch.Tensor) -> bool:
    """Whether a layer's update is what `_Updated` computes, of a frozen layer and in one precision."""
    base = module.base_layer
    frozen = not base.weight.requires_grad and (base.bias is None or not base.bias.requires_grad)
    autocast = not torch.is_autocast_enabled("cpu") or torch.get_autocast_dtype("cpu") is x.dtype
    return (
        name in module.lora_A
        and not (module.disable_adapters or module.merged or module.fan_in_fan_out)
        and name not in module.lora_variant
        and module.lora_A[name].bias is None
        and module.lora_B[name].bias is None
        and isinstance(module.lora_dropout[name], TokenDropout | nn.Identity)
        and frozen
        and autocast
        and base.weight.dtype is x.dtype
    )


class _Updated(torch.autograd.Function):
    """y = x W^T + bias + scaling * dropout(x) A^T B^T, with W and bias frozen (Hu et al. 2021, arXiv 2106.09685).

    The mask is drawn again in the backward pass, and what it lets through of x computed again, instead of being kept.
    """

    @staticmethod
    def forward(
        ctx: Any,
        x: torch.Tensor,
        weight: torch.Tensor,
        bias: torch.Tensor | None,
        down: torch.Tensor,
        up: torch.Tensor,
        scaling: float,
        drop: tuple[float, Draw, int] | None,
    ) -> torch.Tensor:
        # So many parameters because autograd asks for each tensor by itself.
        rows = x.reshape(-1, x.shape[-1])
        scaling *= factor(drop[0]) if drop else 1.0
        low = (rows if drop is None else kept(rows, *drop).mul_(rows)) @ down.to(x.dtype).t()
        ctx.save_for_backward(x, weight, down, up, low)
        ctx.scaling, ctx.drop = scaling, drop
        y = F.linear(x, weight, bias)  # in its final shape: a view could not be changed in place by the model
        y.view(-1, y.shape[-1]).addmm_(low, up.to(x.dtype).t(), alpha=scaling)
        return y

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        x, weight, down, up, low = ctx.saved_tensors
        rows, gradient = x.reshape(-1, x.shape[-1]), gradient.reshape(-1, gradient.shape[-1])
        of_low = (gradient @ up.to(x.dtype)).mul_(ctx.scaling)
        of_up = (gradient.t() @ low).to(up.dtype).mul_(ctx.scaling)
        mask = None if ctx.drop is None else kept(rows, *ctx.drop)
        of_down = (of_low.t() @ (rows if mask is None else rows * mask)).to(down.dtype)
        of_x = None
        if ctx.needs_input_grad[0]:
            of_x = gradient @ weight
            if mask is None:
                of_x.addmm_(of_low, down.to(x.dtype))
            else:
                of_x.addcmul_(of_low @ down.to(x.dtype), mask)
            of_x = of_x.view_as(x)
        return of_x, None, None, of_down, of_up, None, None
