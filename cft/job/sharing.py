"""Embedding on all processes of a job: the main one says which texts, and each embeds its share of them.

The others wait in `help_out` for what the main process embeds by a `SharedEmbedder`, whatever it does in between.
"""

import contextlib
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from cft.config.schema import Prompts
from cft.data.texts import checked_texts
from cft.model.embedder import Embedder
from cft.system.distributed import World
from cft.system.errors import UserError


@dataclass(frozen=True)
class _Task:
    """Texts to embed."""

    which: str  # of the embedders that all processes can load
    prompts: Prompts
    texts: list[str]


class SharedEmbedder(Embedder):
    """The main process's embedder, whose `encode` has the others embed their shares."""

    def __init__(self, embedder: Embedder, which: str, world: World) -> None:
        """Share an embedder.

        Args:
            embedder: of the main process. which: its name to the others. world: of all processes.
        """
        super().__init__(embedder.model, embedder.backbone, embedder.contract)
        self._which, self._world = which, world

    def with_prompts(self, prompts: Prompts) -> "SharedEmbedder":
        """As `Embedder.with_prompts`, still shared."""
        return SharedEmbedder(super().with_prompts(prompts), self._which, self._world)

    def in_role(self, role: Any) -> "SharedEmbedder":
        """As `Embedder.in_role`, still shared."""
        embedder = super().in_role(role)
        return self if embedder is self else SharedEmbedder(embedder, self._which, self._world)

    def encode(self, texts: Iterable[str], *, progress: str | None = None, **options: Any) -> np.ndarray:
        """As `Embedder.encode` for whole float32 vectors; those of others are made by this process alone."""
        texts = checked_texts(texts)
        distinct = sorted(dict.fromkeys(texts))  # neighbours share prefixes, so a share is a stretch of them
        if options or len(distinct) < self._world.size:
            return super().encode(texts, progress=progress, **options)
        self._world.broadcast_object(_Task(self._which, self.contract.prompts, distinct))
        alone = Embedder(self.model, self.backbone, self.contract)
        vectors = _embed_share(alone, distinct, self._world, progress)
        self.texts_cut += alone.texts_cut
        row_of = {text: row for row, text in enumerate(distinct)}
        return vectors[[row_of[text] for text in texts]]


def shared(embedder: Embedder, which: str, world: World) -> Embedder:
    """An embedder that all processes embed with; itself where there is but one."""
    return embedder if world.size == 1 else SharedEmbedder(embedder, which, world)


def all_see(there: Callable[[], bool], world: World) -> bool:
    """Whether all processes see what the main one has written; on other machines they may not."""
    world.barrier()
    return world.all_reduce_max(int(not there())) == 0


def _embed_share(embedder: Embedder, texts: list[str], world: World, progress: str | None) -> np.ndarray:
    """The vectors (n, D) of all texts, of which this process makes its share."""
    shares = [World(rank, world.size).shard(len(texts)) for rank in range(world.size)]
    own = torch.from_numpy(embedder.encode(texts[shares[world.rank]], progress=progress)).to(embedder.device)
    return world.all_gather(own, [share.stop - share.start for share in shares]).cpu().numpy()


def help_out(embedders: Mapping[str, Callable[[], Embedder]], world: World) -> None:
    """Embed what the main process says, until it has no more.

    Args:
        embedders: by their names to the main process, each loaded when it is first wanted. world: of all processes.
    """
    while (task := world.broadcast_object(None)) is not None:
        _embed_share(embedders[task.which]().with_prompts(task.prompts), task.texts, world, None)


@contextlib.contextmanager
def helped(world: World) -> Iterator[World]:
    """A block of the main process, at whose end the others are let go, however it ends."""
    try:
        yield world
    finally:
        if world.size > 1:
            # Where another process is gone, the block itself has said so.
            with contextlib.suppress(UserError):
                world.broadcast_object(None)
