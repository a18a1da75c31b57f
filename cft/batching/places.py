"""The number of every token in a whole batch, whichever part of the batch it goes through the model in.

What is drawn at random for a token (dropout) follows from its number, so that a batch in chunks draws what it draws as
a whole. Chunks are cut along the same order, so that the numbers of a chunk lie close together.
"""

from collections.abc import Sequence

import numpy as np

from cft.batching.layout import Batching, Layout
from cft.batching.prefix_tree import build_tree
from cft.config.schema import Batches


class Places:
    """Numbers of the tokens of a batch of B sequences; a token that sequences share has one number."""

    def __init__(self, sequences: Sequence[Sequence[int]], batching: Batching) -> None:
        """Number the tokens.

        Args:
            sequences: B sequences of token ids, of the whole batch.
            batching: how the model's batches are laid out.
        """
        self._lengths = np.fromiter(map(len, sequences), dtype=np.int64, count=len(sequences))
        if batching.kind is Batches.tree:
            self._numbers = build_tree(sequences, causal=batching.causal).paths.numpy()
        else:
            self._numbers = _text_by_text(sequences)

    def of(self, layout: Layout, rows: Sequence[int]) -> np.ndarray:
        """Numbers of a layout's nodes or cells.

        Args:
            layout: of the sequences `rows` of the batch, in this order.
            rows: which sequences.

        Returns:
            (nodes,) int64. Cells of padding, whose states nobody reads, have the number of some token.
        """
        paths = layout.paths.cpu().numpy()
        real = np.arange(paths.shape[1]) < self._lengths[rows, None]
        numbers = self._numbers[rows, : paths.shape[1]][real]
        found = np.full(layout.nodes, numbers.min(), dtype=np.int64)
        found[paths[real]] = numbers
        return found


def _text_by_text(sequences: Sequence[Sequence[int]]) -> np.ndarray:
    """(B, L) numbers by distinct sequence, the short ones first, as padded chunks are cut; equal ones share theirs."""
    first: dict[tuple[int, ...], int] = {}
    for row, sequence in enumerate(sequences):
        first.setdefault(tuple(sequence), row)
    starts, count = {}, 0
    for sequence in sorted(first, key=lambda sequence: (len(sequence), first[sequence])):
        starts[sequence] = count
        count += len(sequence)
    start = np.array([starts[tuple(sequence)] for sequence in sequences])
    return start[:, None] + np.arange(max(map(len, sequences)))
