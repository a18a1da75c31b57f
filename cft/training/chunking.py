"""How much of a batch goes through the model at once: all of it if it fits, else as much as does.

A training has one budget of tokens, known before its first step and applied to every batch: a batch within it goes
whole, any other in chunks. Every step's row of the history says which budget it had, and a training that goes on keeps
the last one.
"""

import json
import logging
import os
from dataclasses import dataclass
from pathlib import Path

from cft.model.embedder import Embedder
from cft.system.errors import UserError
from cft.system.files import atomic_write
from cft.system.memory import available_bytes, kills_by_memory
from cft.system.text import byte_size
from cft.training import memory

log = logging.getLogger(__name__)

# Share of the free memory that a batch may take: what else is running differs, and so does what libraries take.
_SHARE = 0.8


@dataclass
class Chunking:
    """The most tokens that go through the model at once, as `Batching.tokens_in_memory` counts them."""

    tokens: int

    def shrink(self, batch_tokens: int, longest: int) -> None:
        """Halve the budget after a batch ran out of memory.

        Args:
            batch_tokens: of the batch.
            longest: tokens of its longest text, which no chunk can be below.

        Raises:
            UserError: if a chunk is a single text already.
        """
        before = min(self.tokens, batch_tokens)
        if before <= longest:
            raise UserError(
                f"out of memory with a single text of {longest} tokens: lower model.max_length={longest} or more, set "
                "train.gradient_checkpointing=true, or take a smaller model"
            )
        self.tokens = max(before // 2, longest)
        log.info("out of memory: from here on at most %d tokens go through the model at once", self.tokens)


def choose_chunking(
    embedder: Embedder,
    *,
    texts: int,
    bf16: bool,
    chunk_tokens: int | None,
    kept: int | None = None,
    step: int = 0,
) -> Chunking:
    """Choose the budget of a training, by the memory that a token of the longest text takes and that is free.

    Args:
        embedder: set up for training.
        texts: most texts of a micro-batch, of this process.
        bf16: whether the model is trained under autocast to bfloat16.
        chunk_tokens: as configured; None to choose.
        kept: the budget so far of a training that goes on. It holds on while the free memory suffices for it, so that
            the training ends with the bytes that it would have had undisturbed.
        step: steps done before.

    Raises:
        UserError: if a single text does not fit into memory.
    """
    longest = embedder.contract.max_length
    if chunk_tokens is not None:
        if kept is not None and kept < chunk_tokens:
            log.info("train.chunk_tokens=%d: this training goes on with the %d of step %d", chunk_tokens, kept, step)
            return Chunking(kept)
        return Chunking(chunk_tokens)
    largest = texts * longest
    need = memory.estimate_longest(embedder, bf16=bf16)
    available = available_bytes(embedder.device) // processes_on_this_device(embedder.device.type)
    # A training that goes on has the optimiser's moments in memory already.
    free = available - (0 if step else memory.optimizer_bytes(embedder.model))
    if kept is not None and need.bytes_for(min(kept, largest)) <= free:
        return Chunking(kept)
    fit = int((_SHARE * free - max(need.fixed, 0.0)) / need.by_token) if need.by_token > 0 else largest
    tokens = min(max(fit, longest), largest)
    if kept is not None:
        tokens = min(tokens, kept)
        log.warning(
            "%s tokens went through the model at once so far; only %s are free now, so from step %d on it is %s. The "
            "result equals an undisturbed training's up to rounding, not byte for byte",
            *(f"{kept:,}", byte_size(max(free, 0)), step + 1, f"{tokens:,}"),
        )
    elif tokens < largest:
        log.info(
            "a batch of texts of model.max_length=%d would need %s and %s are free: at most %s tokens go through the "
            "model at once, a larger batch by gradient caching, which gives the whole batch's gradient at twice the "
            "forward time",
            *(longest, byte_size(need.bytes_for(largest)), byte_size(max(free, 0)), f"{tokens:,}"),
        )
    return Chunking(tokens)


def processes_on_this_device(kind: str) -> int:
    """How many processes of this training share the memory: those of a machine on a CPU, one on a GPU."""
    return max(int(os.environ.get("LOCAL_WORLD_SIZE", "1")), 1) if kind == "cpu" else 1


class KillMark:
    """A file beside the checkpoint that says how much went through the model, while a training runs.

    A process that the system kills for want of memory leaves it behind, and can say nothing else. The training that
    goes on takes half as much.
    """

    NAME = "running.json"

    def __init__(self, folder: Path) -> None:
        """Name the folder; nothing is written yet."""
        self._path = folder / self.NAME
        self._tokens = 0

    def __enter__(self) -> "KillMark":
        return self

    def begin(self, tokens: int) -> None:
        """Note that so many tokens are about to go through the model at once; written where it is more than before."""
        if tokens > self._tokens:
            self._tokens = tokens
            with atomic_write(self._path) as part:
                part.write_text(json.dumps({"tokens": tokens, "kills": kills_by_memory(), "boot": _boot()}))

    def __exit__(self, kind: object, *_: object) -> None:
        # Of several processes another one may have been killed.
        if kind is None or self.killed_at() is None:
            self._path.unlink(missing_ok=True)

    def killed_at(self) -> int | None:
        """Tokens that went through the model when this machine killed for want of memory; None if it did not."""
        try:
            note = json.loads(self._path.read_text())
            kills = kills_by_memory()
            if None in (kills, note["kills"]) or note["boot"] != _boot() or kills <= note["kills"]:
                return None
            return int(note["tokens"])
        except (OSError, ValueError, KeyError, TypeError):
            return None


def _boot() -> str:
    """Changes with every start of the machine, with which the count of kills begins anew."""
    try:
        return Path("/proc/sys/kernel/random/boot_id").read_text().strip()
    except OSError:
        return ""
