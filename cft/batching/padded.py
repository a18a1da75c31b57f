"""A batch of token sequences padded on the right to one length, for models that prefix trees cannot run.

Such models keep their own attention, whatever it adds to the scores (ALiBi, soft caps, sinks), and their own way
through time (Mamba). Padding on the right leaves every real token at its own position, behind which it does not look.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch.nn.utils.rnn import pad_sequence


@dataclass(frozen=True)
class PaddedLayout:
    """Where every token of a batch of B sequences stands in R rows of L cells, one row for each distinct sequence."""

    token_ids: torch.Tensor  # (R, L)
    mask: torch.Tensor  # (R, L), 1 at real tokens
    last: torch.Tensor  # (B,) the cell of every sequence's last token, counted row by row
    paths: torch.Tensor  # (B, L) the cells of every sequence; those beyond its length are padding
    lengths: torch.Tensor  # (B,) tokens in every sequence

    @property
    def nodes(self) -> int:
        """Number of cells: the tokens that go through the model, padding included."""
        return self.token_ids.numel()

    @property
    def tokens(self) -> int:
        """Number of tokens in all sequences."""
        return int(self.lengths.sum())

    def inputs(self) -> dict[str, Any]:
        """The model's arguments."""
        return {"input_ids": self.token_ids, "attention_mask": self.mask}


def pad(sequences: Sequence[Sequence[int]], *, filler: int = 0, device: torch.device | str = "cpu") -> PaddedLayout:
    """Lay B token sequences out as padded rows; equal ones share a row.

    Models that count positions by their padding token need it as the `filler` of padding cells.

    Raises:
        ValueError: if there is no sequence, or one is empty.
    """
    if not sequences or any(len(sequence) == 0 for sequence in sequences):
        raise ValueError("a layout needs at least one sequence, and a token in each")
    row_of = {sequence: row for row, sequence in enumerate(dict.fromkeys(map(tuple, sequences)))}
    token_ids = pad_sequence([torch.tensor(sequence) for sequence in row_of], batch_first=True, padding_value=filler)
    mask = pad_sequence([torch.ones(len(sequence), dtype=torch.long) for sequence in row_of], batch_first=True)
    width = token_ids.shape[1]
    first = torch.tensor([row_of[tuple(sequence)] * width for sequence in sequences])
    lengths = torch.tensor([len(sequence) for sequence in sequences])
    return PaddedLayout(
        token_ids=token_ids.to(device),
        mask=mask.to(device),
        last=(first + lengths - 1).to(device),
        paths=(first[:, None] + torch.arange(width)).to(device),
        lengths=lengths.to(device),
    )
