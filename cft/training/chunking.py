"""How much of a batch goes through the model at once: all of it if it fits, else as much as does."""

import gc
import logging
from collections.abc import Sequence
from dataclasses import dataclass

import torch

from cft.config.schema import LossSettings
from cft.data.records import Triplet
from cft.model.embedder import Embedder
from cft.system.errors import UserError
from cft.system.text import byte_size
from cft.training import memory
from cft.training.contrastive import texts_of

log = logging.getLogger(__name__)

# Share of the free memory that a batch may take: batches differ, and so does what else is running.
_SHARE = 0.8


@dataclass
class Chunking:
    """Tokens that go through the model at once; None for a whole batch."""

    tokens: int | None = None

    def shrink(self, batch_tokens: int, longest: int) -> None:
        """Halve the chunks after a batch ran out of memory.

        Args:
            batch_tokens: of the batch. longest: tokens of its longest text, which no chunk can be below.

        Raises:
            UserError: if a chunk is a single text already.
        """
        before = min(self.tokens or batch_tokens, batch_tokens)
        if before <= longest:
            raise UserError(
                f"out of memory with a single text of {longest} tokens: lower model.max_length={longest} or more, set "
                "train.gradient_checkpointing=true, or take a smaller model"
            )
        self.tokens = max(before // 2, longest)
        gc.collect()
        if torch.cuda.is_available():
            torch.cuda.empty_cache()
        log.info("out of memory: from here on at most %d tokens go through the model at once", self.tokens)


def require_separable(model: torch.nn.Module) -> None:
    """Refuse gradient caching for a model whose texts change one another's vectors.

    Raises:
        UserError: naming the layer.
    """
    for name, module in model.named_modules():
        if isinstance(module, torch.nn.modules.batchnorm._BatchNorm):
            raise UserError(
                f"this model has batch normalisation ({name}), which mixes the texts that go through it together: a "
                "batch cannot go in chunks (gradient caching, train.chunk_tokens); take a train.batch_size that fits "
                "as a whole, and train.chunk_tokens=null"
            )


def choose_chunking(
    embedder: Embedder, batch: Sequence[Triplet], loss: LossSettings, *, bf16: bool, chunk_tokens: int | None
) -> Chunking:
    """Choose chunks for batches like this one, by the memory that small ones take and that is free.

    Args:
        embedder: set up for training.
        batch: this process's share.
        loss: whether hard negatives count.
        bf16: whether the model is trained under autocast to bfloat16.
        chunk_tokens: as configured; None to choose.
    """
    if chunk_tokens is not None:
        require_separable(embedder.model)
        return Chunking(chunk_tokens)
    texts = texts_of(batch, loss)
    layout = embedder.layout(embedder.tokenize(texts))
    negatives = max((len(row.negatives) for row in batch), default=0) if loss.hard_negatives else 0
    length = max(round(layout.tokens / len(texts)), 2)
    need = memory.estimate_training(embedder, length=length, negatives=negatives, bf16=bf16)
    free = _SHARE * memory.available_bytes(embedder.device) - memory.optimizer_bytes(embedder.model)
    if need.bytes_for(layout.nodes) <= free:
        return Chunking()
    require_separable(embedder.model)
    tokens = max(int((free - need.fixed) / need.by_token), length)
    log.info(
        "a batch of %s tokens needs %s and %s are free: at most %s tokens go through the model at once, by "
        "gradient caching, which gives the whole batch's gradient at twice the forward time",
        f"{layout.nodes:,}",
        byte_size(need.bytes_for(layout.nodes)),
        byte_size(max(free, 0)),
        f"{tokens:,}",
    )
    return Chunking(tokens)
