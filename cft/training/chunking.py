"""How much of a batch goes through the model at once: all of it if it fits, else as much as does.

A training has one budget of tokens, known before its first step and applied to every batch: a batch within it goes
whole, any other in chunks. It stands in the history, from where a training that goes on takes it.
"""

import json
import logging
import os
from dataclasses import dataclass, field
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

# Names the rows of a history that say which budget holds from a step on.
EVENT = "chunking"


@dataclass
class Chunking:
    """The tokens that go through the model at once, and since when."""

    tokens: int  # as `Embedder.load` counts them
    longest: int  # tokens of the longest text that can come, which no budget can be below
    rows: list[dict] = field(default_factory=list)  # of the history, since they were last taken

    def take_rows(self) -> list[dict]:
        """Rows for the history that have arisen since the last call."""
        rows, self.rows = self.rows, []
        return rows

    def set(self, tokens: int, step: int, why: str) -> None:
        """Set the budget from a step on.

        Args:
            tokens: the budget.
            step: steps done before.
            why: chosen, configured, out of memory, less memory, or killed.
        """
        self.tokens = max(tokens, min(self.longest, self.tokens))
        self.rows.append({"event": EVENT, "step": step, "tokens": self.tokens, "why": why})

    def shrink(self, batch_tokens: int, longest: int, step: int) -> None:
        """Halve the budget after a batch ran out of memory.

        Args:
            batch_tokens: of the batch.
            longest: tokens of its longest text, which no chunk can be below.
            step: steps done before.

        Raises:
            UserError: if a chunk is a single text already.
        """
        before = min(self.tokens, batch_tokens)
        if before <= longest:
            raise UserError(
                f"out of memory with a single text of {longest} tokens: lower model.max_length={longest} or more, set "
                "train.gradient_checkpointing=true, or take a smaller model"
            )
        self.tokens = before
        self.longest = min(self.longest, longest)
        self.set(max(before // 2, longest), step, "out of memory")
        log.info("out of memory: from here on at most %d tokens go through the model at once", self.tokens)


def choose_chunking(
    embedder: Embedder,
    *,
    texts: int,
    bf16: bool,
    chunk_tokens: int | None,
    optimizer_bytes: int,
    before: dict | None = None,
    step: int = 0,
) -> Chunking:
    """Choose the budget of a training, by the memory that a token of the longest text takes and that is free.

    Args:
        embedder: set up for training.
        texts: most texts of a micro-batch, of this process.
        bf16: whether the model is trained under autocast to bfloat16.
        chunk_tokens: as configured; None to choose.
        optimizer_bytes: that the optimiser has yet to take.
        before: the history's last row on chunking, of a training that goes on. Its budget is kept while the free
            memory holds it at all, so that the training ends with the bytes that it would have had undisturbed.
        step: steps done before.

    Raises:
        UserError: if a single text does not fit into memory.
    """
    # So many parameters because a training that goes on keeps what it had.
    longest = embedder.contract.max_length
    kept = before["tokens"] if before else None
    if chunk_tokens is not None:
        chunking = Chunking(chunk_tokens, longest)
        if chunk_tokens != kept and not (before and before["why"] == "out of memory" and kept < chunk_tokens):
            chunking.set(chunk_tokens, step, "configured")
        else:
            chunking.tokens = kept
        return chunking
    largest = texts * longest
    need = memory.estimate_longest(embedder, bf16=bf16)
    available = available_bytes(embedder.device) // processes_on_this_device(embedder.device.type)
    free = available - optimizer_bytes
    if kept is not None and need.bytes_for(min(kept, largest)) <= free:
        return Chunking(kept, longest)
    fit = int((_SHARE * free - max(need.fixed, 0.0)) / need.by_token) if need.by_token > 0 else largest
    tokens = min(max(fit, longest), largest)
    if kept is not None:
        log.warning(
            "the training's budget of %s tokens at once does not fit into the %s that are free now: from step %d on it "
            "is %s",
            *(f"{kept:,}", byte_size(max(free, 0)), step + 1, f"{tokens:,}"),
        )
    elif tokens < largest:
        log.info(
            "a batch of texts of model.max_length=%d would need %s and %s are free: at most %s tokens go through the "
            "model at once, a larger batch by gradient caching, which gives the whole batch's gradient at twice the "
            "forward time",
            *(longest, byte_size(need.bytes_for(largest)), byte_size(max(free, 0)), f"{tokens:,}"),
        )
    chunking = Chunking(largest, longest)
    chunking.set(tokens, step, "chosen" if kept is None else "less memory")
    return chunking


def processes_on_this_device(kind: str) -> int:
    """How many processes of this training share the memory: those of a machine on a CPU, where each has no GPU."""
    return max(int(os.environ.get("LOCAL_WORLD_SIZE", "1")), 1) if kind == "cpu" else 1


def last_row(history: list[dict]) -> dict | None:
    """The row of a history that says which budget holds at its end; None in a history without."""
    return next((row for row in reversed(history) if row["event"] == EVENT), None)


@dataclass(frozen=True)
class StepMark:
    """A file that says which step is being computed, left behind by a process that was killed in it."""

    folder: Path

    NAME = "step.json"

    def begin(self, step: int, tokens: int) -> None:
        """Note that a step has begun.

        Args:
            step: steps done before.
            tokens: most that go through the model at once in it.
        """
        note = {"step": step, "tokens": tokens, "kills": kills_by_memory(), "boot": _boot()}
        with atomic_write(self.folder / self.NAME) as part:
            part.write_text(json.dumps(note))

    def end(self) -> None:
        """Note that the process is well."""
        (self.folder / self.NAME).unlink(missing_ok=True)

    def killed_at(self) -> int | None:
        """Tokens that went through the model when the system killed the process for want of memory; None if not."""
        try:
            note = json.loads((self.folder / self.NAME).read_text())
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
