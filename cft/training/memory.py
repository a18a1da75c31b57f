"""Memory of a training step or an evaluation batch, extrapolated from small ones; peak memory."""

import weakref
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode

from cft.batching import trials
from cft.model.embedder import Embedder, in_mode
from cft.model.lora import trainable
from cft.system.errors import UserError
from cft.system.memory import unless_out_of_memory
from cft.training.losses import info_nce

# Tokens of the longest text that is tried before a training: more would take seconds on a CPU.
_TRIAL_LENGTH = 256


@dataclass(frozen=True)
class MemoryEstimate:
    """Memory of a batch besides the weights."""

    fixed: float  # bytes, whatever the batch
    by_token: float  # bytes for every token that goes through the model

    def bytes_for(self, tokens: int) -> int:
        """Bytes that a batch of `tokens` takes."""
        return round(max(self.fixed, 0.0) + self.by_token * tokens)


class _AllocationMeter(TorchDispatchMode):
    """Counts the bytes of live tensors; tensors from before it was entered are not counted."""

    def __init__(self) -> None:
        super().__init__()
        self.now = self.peak = 0
        self._counted: set[int] = set()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        before = {_storage(tensor)._cdata for tensor in _tensors((args, kwargs))}
        result = func(*args, **(kwargs or {}))
        for tensor in _tensors(result):
            storage = _storage(tensor)
            if storage._cdata not in before and storage._cdata not in self._counted:
                self._count(storage)
        return result

    def _count(self, storage: Any) -> None:
        key, size = storage._cdata, storage.nbytes()
        self._counted.add(key)
        self.now += size
        self.peak = max(self.peak, self.now)
        weakref.finalize(storage, self._forget, key, size)

    def _forget(self, key: int, size: int) -> None:
        self._counted.discard(key)
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
    """Peak memory since this was made: of the GPU's tensors, or of the whole process on a CPU."""

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._is_reset = True
        if device.type == "cuda":
            torch.cuda.reset_peak_memory_stats(device)
            return
        try:  # Linux resets a process's peak on request
            Path("/proc/self/clear_refs").write_text("5")
        except OSError:
            self._is_reset = False

    def bytes(self) -> int | None:
        """Peak bytes so far, or None if the OS does not report it."""
        if self._device.type == "cuda":
            return torch.cuda.max_memory_allocated(self._device)
        if not self._is_reset:
            return None
        try:
            lines = Path("/proc/self/status").read_text().splitlines()
        except OSError:
            return None
        kibibytes = [int(line.split()[1]) for line in lines if line.startswith("VmHWM:")]
        return kibibytes[0] * 1024 if kibibytes else None


def peak_bytes(work: Callable[[], None], device: torch.device) -> int:
    """Peak bytes that `work` allocates beyond what is allocated before it."""
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
    """Memory of activations and gradients of one micro-batch.

    Args:
        embedder: with trainable weights, set up for training.
        length: tokens of a text.
        negatives: hard negatives a triplet.
        bf16: whether it is trained under autocast.
    """

    def step(rows: int) -> tuple[int, int]:
        def loss(vectors: torch.Tensor) -> torch.Tensor:
            anchor, positive, negative = vectors.split([rows, rows, rows * negatives])
            return info_nce(anchor, positive, negative if negatives else None, temperature=0.05).loss

        return _trial_step(embedder, _texts(embedder, rows * (2 + negatives), length), loss, bf16=bf16)

    with in_mode(embedder.model, training=True):
        return _linear_fit(step(2), step(4))


def estimate_longest(embedder: Embedder, *, bf16: bool) -> MemoryEstimate:
    """Memory of activations and gradients of a batch of texts as long as the contract's limit; measured once, and kept.

    Attention may take more memory for a token of a longer text. So two lengths are tried, the longer one of at most
    `_TRIAL_LENGTH` tokens, and what a token takes is extrapolated to the limit along a line, but never below a trial's.

    Args:
        embedder: with trainable weights, set up for training.
        bf16: whether it is trained under autocast.

    Raises:
        UserError: if a text of the trials does not fit into memory.
    """
    tried = _tried(embedder, bf16=bf16)
    found = trials.recall(tried, MemoryEstimate)
    if found is None:
        found = _try_longest(embedder, bf16=bf16)
        trials.keep(tried, found)
    return found


def _tried(embedder: Embedder, *, bf16: bool) -> dict[str, Any]:
    """All that the memory of a step depends on."""
    model = embedder.model
    return {
        **trials.circumstances(model, ("batching", "model", "training")),
        "memory": bf16,
        "shapes": [(tuple(weight.shape), weight.requires_grad) for weight in model.parameters()],
        "recomputed": [getattr(module, "gradient_checkpointing", False) for module in model.modules()],
        "dropout": [module.p for module in model.modules() if isinstance(module, torch.nn.Dropout)],
        "batching": asdict(embedder.backbone.batching),
        "contract": asdict(embedder.contract),
    }


def _try_longest(embedder: Embedder, *, bf16: bool) -> MemoryEstimate:
    longest = embedder.contract.max_length
    long = min(longest, _TRIAL_LENGTH)
    short = max(long // 2, 1)

    def step(rows: int, length: int) -> tuple[int, int]:
        texts = _texts(embedder, rows, length)
        return _trial_step(embedder, texts, lambda vectors: vectors.square().mean(), bf16=bf16)

    with in_mode(embedder.model, training=True):
        at_short = _linear_fit(step(1, short), step(2, short))
        tokens, peak = step(1, long)
    by_token = (peak - at_short.fixed) / tokens
    slope = (by_token - at_short.by_token) / max(long - short, 1)
    return replace(at_short, by_token=max(by_token, at_short.by_token) + max(slope, 0.0) * (longest - long))


def _trial_step(
    embedder: Embedder, texts: list[tuple[int, ...]], loss: Callable[[torch.Tensor], torch.Tensor], *, bf16: bool
) -> tuple[int, int]:
    """Tokens and peak bytes of a forward and backward pass; no gradient is left.

    Raises:
        UserError: if memory runs out.
    """

    def work() -> None:
        with torch.autocast(embedder.device.type, torch.bfloat16, enabled=bf16):
            vectors = embedder.forward(layout)
        loss(vectors).backward()

    layout = embedder.layout(texts)
    try:
        return layout.nodes, _peak_of_trial(work, len(texts), len(texts[0]), embedder.device)
    finally:
        for weight in trainable(embedder.model).values():
            weight.grad = None


def _peak_of_trial(work: Callable[[], None], texts: int, length: int, device: torch.device) -> int:
    peak = unless_out_of_memory(lambda: peak_bytes(work, device))
    if peak is None:
        raise UserError(
            f"out of memory in a trial with {texts} texts of {length} tokens: lower model.max_length, set "
            "train.gradient_checkpointing=true, take a smaller model, or wait until more memory is free"
        )
    return peak


def estimate_evaluation(embedder: Embedder, *, length: int) -> MemoryEstimate:
    """Memory of a forward pass without gradients, of texts of `length` tokens.

    Raises:
        UserError: if memory runs out.
    """

    def batch(rows: int) -> tuple[int, int]:
        layout = embedder.layout(_texts(embedder, rows, length))

        def work() -> None:
            with torch.inference_mode():
                embedder.forward(layout)

        return layout.nodes, _peak_of_trial(work, rows, length, embedder.device)

    with in_mode(embedder.model, training=False):
        return _linear_fit(batch(8), batch(16))


def weight_bytes(model: torch.nn.Module) -> int:
    """Bytes of all weights and buffers in memory."""
    return sum(tensor.numel() * tensor.element_size() for tensor in [*model.parameters(), *model.buffers()])


def optimizer_bytes(model: torch.nn.Module) -> int:
    """Bytes of AdamW's two moments of every trainable weight."""
    return 2 * sum(weight.numel() * weight.element_size() for weight in trainable(model).values())


def _linear_fit(small: tuple[int, int], large: tuple[int, int]) -> MemoryEstimate:
    by_token = (large[1] - small[1]) / (large[0] - small[0])
    return MemoryEstimate(fixed=small[1] - by_token * small[0], by_token=by_token)


def _texts(embedder: Embedder, rows: int, length: int) -> list[tuple[int, ...]]:
    """Random sequences of one length without shared prefixes, so that every token is a node."""
    vocabulary = embedder.backbone.vocabulary
    generator = torch.Generator().manual_seed(0)
    ids = torch.randint(0, vocabulary, (rows, length), generator=generator)
    ids[:, 0] = torch.randperm(vocabulary, generator=generator)[:rows]
    return [tuple(row) for row in ids.tolist()]
