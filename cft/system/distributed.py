"""The processes that train one model together, as torchrun or accelerate starts them: one a device.

Every process holds the model and reads the same data; each embeds its part of a batch. Embeddings are gathered, with
gradient, so that every anchor has the candidates of the whole batch; gradients of the weights are summed. So the split
over processes changes who computes, not what is computed.
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

# Others wait this long for the first process: it alone evaluates.
_PATIENCE = timedelta(hours=12)
# Small gradients travel together.
_BUCKET = 1 << 24


@dataclass(frozen=True)
class World:
    """This process among those that train together.

    rank: its number, 0 for the one that writes. size: how many they are.
    """

    rank: int = 0
    size: int = 1

    @property
    def is_main(self) -> bool:
        """Whether this process is the one that evaluates, writes and reports."""
        return self.rank == 0

    def shard(self, count: int) -> slice:
        """This process's share of `count` rows; shares differ by one row at most."""
        return slice(*(count * rank // self.size for rank in (self.rank, self.rank + 1)))

    def all_gather(self, vectors: torch.Tensor, counts: Sequence[int]) -> torch.Tensor:
        """All processes' vectors, in rank order, with gradient.

        Args:
            vectors: (n, D) of this process. counts: n of every process.

        Returns:
            (sum of counts, D).
        """
        return vectors if self.size == 1 else _Gather.apply(vectors, self, tuple(counts))

    def all_reduce_sum(self, values: Sequence[float], device: torch.device) -> list[float]:
        """Sums over the processes, of each value."""
        if self.size == 1:
            return list(values)
        tensor = torch.tensor(values, dtype=torch.float64, device=device)
        with _translate_communication_errors():
            dist.all_reduce(tensor)
        return tensor.tolist()

    def all_reduce_gradients(self, weights: Iterable[torch.nn.Parameter]) -> None:
        """Replace every gradient by its sum over the processes; one that no process has stays None."""
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
        """The largest of the processes' values."""
        if self.size == 1:
            return value
        device = f"cuda:{torch.cuda.current_device()}" if dist.get_backend() == "nccl" else "cpu"
        tensor = torch.tensor(value, dtype=torch.int64, device=device)
        with _translate_communication_errors():
            dist.all_reduce(tensor, op=dist.ReduceOp.MAX)
        return int(tensor)

    def broadcast_object(self, value: Any) -> Any:
        """The first process's value, whatever this one has."""
        if self.size == 1:
            return value
        box = [value]
        with _translate_communication_errors():
            dist.broadcast_object_list(box, src=0)
        return box[0]

    def broadcast_tensors(self, tensors: Iterable[torch.Tensor]) -> None:
        """Overwrite tensors by the first process's."""
        if self.size > 1:
            with _translate_communication_errors():
                for tensor in tensors:
                    dist.broadcast(tensor, src=0)

    @contextlib.contextmanager
    def main_process_first(self) -> Iterator[None]:
        """Let the first process through a block, then the others: what it fetches or converts, they find done."""
        if not self.is_main:
            self.barrier()
        yield
        if self.is_main:
            self.barrier()

    def barrier(self) -> None:
        """Until all processes are here."""
        if self.size > 1:
            # Not a message: a process often ends after this. Before torch 2.8, a thread of gloo may then still be
            # freeing the message's tensor, for which it wants the interpreter's lock; destroying the group holds that
            # lock and waits for the thread.
            devices = [torch.cuda.current_device()] if dist.get_backend() == "nccl" else None
            with _translate_communication_errors():
                dist.barrier(device_ids=devices)


SINGLE_PROCESS = World()


def join_world(device: torch.device) -> World:
    """The processes that torchrun or accelerate started with this one; this one alone if neither did.

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
        # Left to the end of the interpreter, its threads may be cut off at work, which aborts a process that did well.
        atexit.register(_leave)
    return World(rank=dist.get_rank(), size=dist.get_world_size())


def _leave() -> None:
    if dist.is_initialized():
        dist.destroy_process_group()


def device_of_rank(device: torch.device) -> torch.device:
    """The device of this process: with several on one machine, each has its own."""
    if device.type != "cuda" or "LOCAL_RANK" not in os.environ:
        return device
    return torch.device("cuda", int(os.environ["LOCAL_RANK"]))


class _Gather(torch.autograd.Function):
    """Concatenate over the processes; the gradient of a part is the sum of what all of them made of it."""

    @staticmethod
    def forward(ctx: Any, vectors: torch.Tensor, world: World, counts: tuple[int, ...]) -> torch.Tensor:
        ctx.own = slice(sum(counts[: world.rank]), sum(counts[: world.rank + 1]))
        # Not every backend gathers tensors of different lengths.
        padded = vectors.new_zeros(max(counts), vectors.shape[1])
        padded[: len(vectors)] = vectors
        found = [torch.empty_like(padded) for _ in counts]
        with _translate_communication_errors():
            dist.all_gather(found, padded)
        return torch.cat([part[:count] for part, count in zip(found, counts, strict=True)])

    @staticmethod
    def backward(ctx: Any, *gradients: torch.Tensor) -> tuple[torch.Tensor, None, None]:
        gradient = gradients[0].contiguous()
        with _translate_communication_errors():
            dist.all_reduce(gradient)
        return gradient[ctx.own], None, None


@contextlib.contextmanager
def _translate_communication_errors() -> Iterator[None]:
    """Say in words that another process is gone; the libraries below speak of sockets."""
    try:
        yield
    except (RuntimeError, ValueError, OSError) as error:
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
