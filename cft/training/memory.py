"""How much memory a training step or an evaluation batch takes, measured on small ones and laid out to large ones."""

import weakref
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from cft.model.embedder import Embedder, in_mode
from cft.model.lora import trainable
from cft.training.losses import info_nce


@dataclass(frozen=True)
class MemoryEstimate:
    """Bytes that something takes beside the weights.

    fixed: whatever the batch. by_token: for every token that goes through the model.
    """

    fixed: float
    by_token: float

    def bytes_for(self, tokens: int) -> int:
        """Bytes for a batch of so many tokens."""
        return round(max(self.fixed, 0.0) + self.by_token * tokens)


class _AllocationMeter(TorchDispatchMode):
    """Counts the bytes of tensors that live at one time, those of before not counted."""

    def __init__(self) -> None:
        super().__init__()
        self.now = self.peak = 0
        self._known: set[int] = set()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        before = {_storage(tensor)._cdata for tensor in _tensors((args, kwargs))}
        result = func(*args, **(kwargs or {}))
        for tensor in _tensors(result):
            storage = _storage(tensor)
            if storage._cdata not in before and storage._cdata not in self._known:
                self._count(storage)
        return result

    def _count(self, storage: Any) -> None:
        key, size = storage._cdata, storage.nbytes()
        self._known.add(key)
        self.now += size
        self.peak = max(self.peak, self.now)
        weakref.finalize(storage, self._forget, key, size)

    def _forget(self, key: int, size: int) -> None:
        self._known.discard(key)
        self.now -= size


def _storage(tensor: torch.Tensor) -> Any:
    return tensor.untyped_storage()


def _tensors(value: Any) -> list[torch.Tensor]:
    if isinstance(value, torch.Tensor):
        return [value]
    if isinstance(value, dict):
        value = list(value.values())
    return [tensor for entry in value for tensor in _tensors(entry)] if isinstance(value, (list, tuple)) else []


class PeakMemory:
    """The most memory in use since this was made: the GPU's tensors, or the whole process where there is no GPU."""

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._begun = True
        if device.type == "cuda":
            torch.cuda.reset_peak_memory_stats(device)
            return
        try:  # Linux forgets a process's highest use when asked so
            Path("/proc/self/clear_refs").write_text("5")
        except OSError:
            self._begun = False

    def bytes(self) -> int | None:
        """Of now; None where the system does not tell."""
        if self._device.type == "cuda":
            return torch.cuda.max_memory_allocated(self._device)
        if not self._begun:
            return None
        try:
            lines = Path("/proc/self/status").read_text().splitlines()
        except OSError:
            return None
        kibibytes = [int(line.split()[1]) for line in lines if line.startswith("VmHWM:")]
        return kibibytes[0] * 1024 if kibibytes else None


def peak_bytes(work: Callable[[], None], device: torch.device) -> int:
    """Most bytes that `work` holds at one time beyond those that are held before it begins."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
        before = torch.cuda.memory_allocated(device)
        torch.cuda.reset_peak_memory_stats(device)
        work()
        torch.cuda.synchronize(device)
        return torch.cuda.max_memory_allocated(device) - before
    with _AllocationMeter() as meter:
        work()
    return meter.peak


def estimate_training(embedder: Embedder, *, length: int, negatives: int, bf16: bool) -> MemoryEstimate:
    """Activations and gradients of one micro-batch, its backward pass included.

    Args:
        embedder: with trainable weights, set up as it is to be trained. length: tokens of a text.
        negatives: hard negatives a triplet. bf16: whether it is trained under autocast.
    """

    def step(rows: int) -> tuple[int, int]:
        layout = embedder.layout(_texts(embedder, rows * (2 + negatives), length))

        def work() -> None:
            with torch.autocast(embedder.device.type, torch.bfloat16, enabled=bf16):
                vectors = embedder.forward(layout)
            anchor, positive, negative = vectors.split([rows, rows, rows * negatives])
            loss = info_nce(anchor, positive, negative if negatives else None, temperature=0.05).loss
            loss.backward()

        try:
            return layout.nodes, peak_bytes(work, embedder.device)
        finally:
            for weight in trainable(embedder.model).values():
                weight.grad = None

    with in_mode(embedder.model, training=True):
        return _linear_fit(step(2), step(4))


def estimate_evaluation(embedder: Embedder, *, length: int) -> MemoryEstimate:
    """One batch of texts through the model without gradients."""

    def batch(rows: int) -> tuple[int, int]:
        layout = embedder.layout(_texts(embedder, rows, length))

        def work() -> None:
            with torch.inference_mode():
                embedder.forward(layout)

        return layout.nodes, peak_bytes(work, embedder.device)

    with in_mode(embedder.model, training=False):
        return _linear_fit(batch(8), batch(16))


def weight_bytes(model: torch.nn.Module) -> int:
    """Of all weights and buffers, as they lie in memory."""
    return sum(tensor.numel() * tensor.element_size() for tensor in [*model.parameters(), *model.buffers()])


def optimizer_bytes(model: torch.nn.Module) -> int:
    """AdamW's two moments of every trainable weight."""
    return 2 * sum(weight.numel() * weight.element_size() for weight in trainable(model).values())


def available_bytes(device: torch.device) -> int:
    """Memory that is free for this process: the device's, or the machine's."""
    if device.type == "cuda":
        return torch.cuda.mem_get_info(device)[0]
    return psutil.virtual_memory().available


def _linear_fit(small: tuple[int, int], large: tuple[int, int]) -> MemoryEstimate:
    by_token = (large[1] - small[1]) / (large[0] - small[0])
    return MemoryEstimate(fixed=small[1] - by_token * small[0], by_token=by_token)


def _texts(embedder: Embedder, rows: int, length: int) -> list[tuple[int, ...]]:
    """Sequences of one length that share no beginning, so that every token is a node."""
    vocabulary = embedder.backbone.vocabulary
    generator = torch.Generator().manual_seed(0)
    drawn = torch.randint(0, vocabulary, (rows, length), generator=generator)
    drawn[:, 0] = torch.randperm(vocabulary, generator=generator)[:rows]
    return [tuple(row) for row in drawn.tolist()]
