"""A device that every machine has and that is not the CPU: torch's "meta", whose tensors have shapes but no numbers.

What mixes tensors of two devices, or computes on the CPU what belongs on the model's device, fails here as it would on
a GPU, and takes the ways of the code that a GPU takes.
"""

from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode

META = torch.device("meta")

# Copies between devices are what they are for; indices may be on the CPU, from where CUDA takes them by itself.
_MAY_MIX = {"_to_copy", "to", "copy_", "index", "index_put", "index_put_", "_index_put_impl_"}
# A number on the CPU goes into element by element operations, but not into these.
_WANT_ALL = {"cat", "stack", "index_select", "gather", "embedding", "mm", "bmm", "addmm"}
_PRODUCTS = {"mm", "bmm", "addmm", "_softmax", "_log_softmax", "embedding"}


class Elsewhere(TorchDispatchMode):
    """Refuses operations on tensors of two devices, and the heavy ones on a CPU; makes up the numbers read back.

    Attributes:
        operations: how many there were on the other device.
        copies: shapes of the tensors that came back to the CPU.
    """

    def __init__(self) -> None:
        super().__init__()
        self.operations = 0
        self.copies: list[tuple[int, ...]] = []
        self._generator = torch.Generator().manual_seed(0)

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        name = func.overloadpacket.__name__
        tensors = list(_tensors((args, kwargs)))
        devices = {tensor.device.type for tensor in tensors if tensor.dim() or name in _WANT_ALL}
        if name not in _MAY_MIX:
            shapes = [(tuple(tensor.shape), tensor.device.type) for tensor in tensors]
            assert len(devices) <= 1, f"{name} mixes devices: {shapes}"
            assert name not in _PRODUCTS or devices != {"cpu"}, f"{name} runs on the CPU: {shapes}"
        if devices != {"meta"} and not any(tensor.device == META for tensor in tensors):
            return func(*args, **kwargs)
        self.operations += 1
        if name in ("_local_scalar_dense", "item", "is_nonzero"):
            dtype = tensors[0].dtype
            return True if dtype is torch.bool else 0.0 if dtype.is_floating_point else 1
        if name == "nonzero":
            return torch.empty(0, tensors[0].dim(), dtype=torch.long, device=META)
        if name in ("_to_copy", "to") and torch.device(kwargs.get("device") or META).type == "cpu":
            return self._made_up(tensors[0], kwargs.get("dtype") or tensors[0].dtype)
        if name == "copy_" and args[0].device.type == "cpu":
            return args[0].copy_(self._made_up(args[1], args[0].dtype))
        return func(*args, **kwargs)

    def _made_up(self, like: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
        self.copies.append(tuple(like.shape))
        if not dtype.is_floating_point:
            return torch.zeros(like.shape, dtype=dtype)
        found = torch.randn(like.shape, generator=self._generator)
        return (found / found.norm(dim=-1, keepdim=True) if like.dim() > 1 else found).to(dtype)


def _tensors(value: Any) -> Any:
    if isinstance(value, torch.Tensor):
        yield value
    elif isinstance(value, dict):
        for entry in value.values():
            yield from _tensors(entry)
    elif isinstance(value, (list, tuple)):
        for entry in value:
            yield from _tensors(entry)
