"""Data-parallel training: the processes that torchrun or accelerate starts, one a device.

Every process holds the model and reads the same data; each embeds its shard of a batch. Embeddings are gathered with
gradient, so that every anchor has the candidates of the whole batch, and the gradients of the weights are summed. The
result is that of one process.
"""

import atexit
import contextlib
import os
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from datetime import timedelta
from typing import Any

import torch
import torch.distributed as dist

from cft.system.errors import UserError, first_line
from cft.system.memory import is_out_of_memory

# The others wait this long for the main process, which alone draws, resamples and scores a baseline.
_PATIENCE = timedelta(hours=12)
# Values in one all-reduce of gradients: small ones go together.
_BUCKET = 1 << 24


@dataclass(frozen=True)
class World:
    """This process's place among the processes that train together."""

    rank: int = 0  # of this process; 0 is the main one
    size: int = 1  # number of processes

    @property
    def is_main(self) -> bool:
        """Whether this is the process that evaluates, writes and reports."""
        return self.rank == 0

    def shard(self, count: int) -> slice:
        """This process's rows out of `count`; shards differ by one row at most."""
        return slice(*(count * rank // self.size for rank in (self.rank, self.rank + 1)))

    def all_gather(self, vectors: torch.Tensor, counts: Sequence[int]) -> torch.Tensor:
        """All processes' vectors, in rank order, with gradient.

        Args:
            vectors: (n, D) of this process.
            counts: n of every process.

        Returns:
            (sum of counts, D).
        """
        return vectors if self.size == 1 else _Gather.apply(vectors, self, tuple(counts))

    def all_reduce_sum(self, values: Sequence[float], device: torch.device) -> list[float]:
        """Sum each value over the processes."""
        if self.size == 1:
            return list(values)
        tensor = torch.tensor(values, dtype=torch.float64, device=device)
        with _translate_communication_errors():
            dist.all_reduce(tensor)
        return tensor.tolist()

    def all_reduce_gradients(self, weights: Iterable[torch.nn.Parameter]) -> None:
        """Sum every gradient over the processes, in place; one that no process has stays None."""
        if self.size == 1:
            return
        weights = list(weights)
        has = torch.tensor([weight.grad is not None for weight in weights], dtype=torch.int32, device=weights[0].device)
        with _translate_communication_errors():
            dist.all_reduce(has, op=dist.ReduceOp.MAX)
            for bucket in _buckets([weight for weight, any_has in zip(weights, has.tolist(), strict=True) if any_has]):
                flat = torch.cat([_gradient(weight).flatten() for weight in bucket])
                dist.all_reduce(flat)
                for weight, part in zip(bucket, flat.split([w.numel() for w in bucket]), strict=True):
                    weight.grad = part.view_as(weight)

    def all_reduce_max(self, value: int) -> int:
        """The maximum of the processes' values."""
        if self.size == 1:
            return value
        device = f"cuda:{torch.cuda.current_device()}" if dist.get_backend() == "nccl" else "cpu"
        tensor = torch.tensor(value, dtype=torch.int64, device=device)
        with _translate_communication_errors():
            dist.all_reduce(tensor, op=dist.ReduceOp.MAX)
        return int(tensor)

    def broadcast_object(self, value: Any) -> Any:
        """The main process's value."""
        if self.size == 1:
            return value
        box = [value]
        with _translate_communication_errors():
            dist.broadcast_object_list(box, src=0)
        return box[0]

    def broadcast_tensors(self, tensors: Iterable[torch.Tensor]) -> None:
        """Overwrite tensors by the main process's."""
        if self.size > 1:
            with _translate_communication_errors():
                for tensor in tensors:
                    dist.broadcast(tensor, src=0)

    @contextlib.contextmanager
    def main_process_first(self) -> Iterator[None]:
        """Run a block on the main process first, then on the others, which find what it fetched or converted."""
        if not self.is_main:
            self.barrier()
        yield
        if self.is_main:
            self.barrier()

    def barrier(self) -> None:
        """Wait for all processes."""
        if self.size > 1:
            # Not a message: a process often ends after this. Before torch 2.8, a thread of gloo may then still be
            # freeing the message's tensor, for which it wants the interpreter's lock; destroying the group holds that
            # lock and waits for the thread.
            devices = [torch.cuda.current_device()] if dist.get_backend() == "nccl" else None
            with _translate_communication_errors():
                dist.barrier(device_ids=devices)


SINGLE_PROCESS = World()


def join_world(device: torch.device) -> World:
    """Join the processes that torchrun or accelerate started; a single process joins nothing.

    Raises:
        UserError: if the others cannot be reached.
    """
    size = int(os.environ.get("WORLD_SIZE", "1"))
    if size == 1:
        return SINGLE_PROCESS
    if not dist.is_initialized():
        if device.type == "cuda":
            torch.cuda.set_device(device_of_rank(device))
        with _translate_communication_errors():
            dist.init_process_group("nccl" if device.type == "cuda" else "gloo", timeout=_PATIENCE)
        # At interpreter exit its threads may be cut off at work, which aborts a process that succeeded.
        atexit.register(_leave)
    return World(rank=dist.get_rank(), size=dist.get_world_size())


def _leave() -> None:
    if dist.is_initialized():
        dist.destroy_process_group()


def device_of_rank(device: torch.device) -> torch.device:
    """The device of this process: each process of a machine has its own GPU."""
    if device.type != "cuda" or "LOCAL_RANK" not in os.environ:
        return device
    return torch.device("cuda", int(os.environ["LOCAL_RANK"]))


class _Gather(torch.autograd.Function):
    """Concatenate over the processes; a shard's gradient is the sum of all processes' gradients of it."""

    @staticmethod
    def forward(ctx: Any, vectors: torch.Tensor, world: World, counts: tuple[int, ...]) -> torch.Tensor:
        ctx.own = slice(sum(counts[: world.rank]), sum(counts[: world.rank + 1]))
        # Not every backend gathers tensors of different lengths.
        padded = vectors.new_zeros(max(counts), vectors.shape[1])
        padded[: len(vectors)] = vectors
        gathered = [torch.empty_like(padded) for _ in counts]
        with _translate_communication_errors():
            dist.all_gather(gathered, padded)
        return torch.cat([part[:count] for part, count in zip(gathered, counts, strict=True)])

    @staticmethod
    def backward(ctx: Any, *gradients: torch.Tensor) -> tuple[torch.Tensor, None, None]:
        gradient = gradients[0].contiguous()
        with _translate_communication_errors():
            dist.all_reduce(gradient)
        return gradient[ctx.own], None, None


@contextlib.contextmanager
def _translate_communication_errors() -> Iterator[None]:
    """Report that another process is gone; the libraries' own errors are about sockets."""
    try:
        yield
    except (RuntimeError, ValueError, OSError) as error:
        if is_out_of_memory(error):  # of this process: the others are well
            raise
        raise UserError(
            "another process of this training has ended or cannot be reached "
            f"({first_line(error)[:200]}); its own output says why. The same command goes on from the last checkpoint"
        ) from error


def _gradient(weight: torch.nn.Parameter) -> torch.Tensor:
    return torch.zeros_like(weight) if weight.grad is None else weight.grad


def _buckets(weights: list[torch.nn.Parameter]) -> Iterator[list[torch.nn.Parameter]]:
    bucket: list[torch.nn.Parameter] = []
    for weight in weights:
        if bucket and sum(w.numel() for w in bucket) + weight.numel() > _BUCKET:
            yield bucket
            bucket = []
        bucket.append(weight)
    if bucket:
        yield bucket
