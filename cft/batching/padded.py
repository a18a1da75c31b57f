"""A batch of token sequences padded on the right to one length, for models that prefix trees cannot run.

Such models keep their own attention, whatever it adds to the scores (ALiBi, soft caps, sinks), and their own way
through time (Mamba). Padding on the right leaves every real token at its own position, behind which it does not look.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch


@dataclass(frozen=True)
class PaddedLayout:
    """Where every token of a batch of B sequences stands in R rows of L cells, one row a distinct sequence.

    token_ids, mask: (R, L) what the model is given; mask is 1 at real tokens.
    last: (B,) the cell of every sequence's last token, counted row by row.
    paths: (B, L) the cells of every sequence; those beyond its length are padding.
    lengths: (B,) tokens in every sequence.
    """

    token_ids: torch.Tensor
    mask: torch.Tensor
    last: torch.Tensor
    paths: torch.Tensor
    lengths: torch.Tensor

    @property
    def nodes(self) -> int:
        """Number of cells: the tokens that go through the model, padding included."""
        return self.token_ids.numel()

    @property
    def tokens(self) -> int:
        """Number of tokens in all sequences."""
        return int(self.lengths.sum())

    def inputs(self) -> dict[str, Any]:
        """What the model is called with."""
        return {"input_ids": self.token_ids, "attention_mask": self.mask}


def pad(sequences: Sequence[Sequence[int]], *, filler: int = 0, device: torch.device | str = "cpu") -> PaddedLayout:
    """Lay token sequences out as padded rows.

    Args:
        sequences: B sequences of token ids, each with at least one; equal ones share a row.
        filler: the token in padding cells, which models that count positions by it want to be their padding token.
        device: where the tensors go.

    Raises:
        ValueError: if there is no sequence, or one is empty.
    """
    if not sequences or any(len(sequence) == 0 for sequence in sequences):
        raise ValueError("a layout needs at least one sequence, and a token in each")
    row_of = {sequence: row for row, sequence in enumerate(dict.fromkeys(map(tuple, sequences)))}
    width = max(map(len, row_of))
    token_ids = torch.full((len(row_of), width), filler, dtype=torch.long)
    mask = torch.zeros_like(token_ids)
    for sequence, row in row_of.items():
        token_ids[row, : len(sequence)] = torch.tensor(sequence)
        mask[row, : len(sequence)] = 1
    rows = torch.tensor([row_of[tuple(sequence)] for sequence in sequences])
    lengths = torch.tensor([len(sequence) for sequence in sequences])
    paths = rows[:, None] * width + torch.arange(width)
    return PaddedLayout(
        token_ids=token_ids.to(device),
        mask=mask.to(device),
        last=(rows * width + lengths - 1).to(device),
        paths=paths.to(device),
        lengths=lengths.to(device),
    )
