"""A batch of token sequences laid out as the tree of its distinct prefixes.

A causal model gives equal prefixes equal hidden states, so each distinct prefix needs one state, not one per
sequence. The layout names those prefixes *nodes*: node n stands for one token at one depth, after one particular
prefix. All N nodes go through every linear layer and norm as a single row of tokens without padding. Only
attention has to see sequences; `tree_attention` gathers queries, keys and values from nodes into padded blocks,
attends, and takes each node's output from one sequence that passes through it. The result is exact, whatever the
texts share. With dropout a shared prefix also shares its dropout mask.

Models that look both ways get the same layout without sharing: there a token's state depends on what follows.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from transformers import AttentionInterface

from cft.system.errors import UserError

ATTENTION_NAME = "cft_tree"

# Sequences whose lengths round up to the same multiple share one padded attention block. 16 keeps the padding below
# a fifth for NLI sentences and the number of blocks (and so of kernel launches) below ten at 150 tokens.
_BLOCK_STEP = 16

# Tokens up to which attention weights may be kept for the backward pass: at 64, no more than a layer's other states.
_SHORT = 64


@dataclass(frozen=True)
class AttentionBlock:
    """B sequences of like length, padded to L tokens on the right."""

    nodes: torch.Tensor  # (B * L,) node of every cell, row by row; padding cells point at a real node, never read
    # (B, 1, 1, L) True at real cells; None for causal models, where no real token sees the padding to its right
    keys: torch.Tensor | None
    rows: int  # B
    length: int  # L


@dataclass(frozen=True)
class TreeLayout:
    """Where every token of a batch of B sequences stands among the N nodes."""

    token_ids: torch.Tensor  # (1, N)
    positions: torch.Tensor  # (1, N), a node's depth
    blocks: tuple[AttentionBlock, ...]  # how attention sees the nodes
    outputs: torch.Tensor  # (N,) the cell, counted through all blocks, that gives each node's attention output
    last: torch.Tensor  # (B,) the node of every sequence's last token, in the order the sequences came in
    paths: torch.Tensor  # (B, L) the nodes of every sequence from first token to last, padded with 0 on the right
    lengths: torch.Tensor  # (B,) tokens in every sequence
    causal: bool  # whether prefixes are shared (and later tokens hidden)

    @property
    def nodes(self) -> int:
        """Number of nodes N: the tokens that go through the model."""
        return self.token_ids.shape[1]

    @property
    def tokens(self) -> int:
        """Number of tokens in all sequences, shared or not."""
        return int(self.lengths.sum())

    def inputs(self) -> dict[str, Any]:
        """The model's arguments."""
        return {"input_ids": self.token_ids, "position_ids": self.positions, "layout": self}


def build_tree(sequences: Sequence[Sequence[int]], *, causal: bool, device: torch.device | str = "cpu") -> TreeLayout:
    """Lay token sequences out as a prefix tree.

    Args:
        sequences: B sequences of token ids, each with at least one; equal ones cost nothing extra.
        causal: True shares prefixes; False gives every distinct sequence nodes of its own.
        device: where the index tensors go.

    Raises:
        ValueError: if there is no sequence, or one is empty.
    """
    if not sequences or any(len(sequence) == 0 for sequence in sequences):
        raise ValueError("a layout needs at least one sequence, and a token in each")
    # Sorting brings equal prefixes together, so that comparing each row with the one above finds all sharing.
    distinct = sorted({tuple(sequence) for sequence in sequences})
    row_of = {sequence: row for row, sequence in enumerate(distinct)}
    lengths = np.fromiter(map(len, distinct), dtype=np.int64, count=len(distinct))
    real = np.arange(lengths.max()) < lengths[:, None]
    tokens = np.zeros(real.shape, dtype=np.int64)
    tokens[real] = np.concatenate([np.asarray(sequence, dtype=np.int64) for sequence in distinct])

    shared = np.zeros_like(real)
    if causal:
        same = (tokens[1:] == tokens[:-1]) & real[1:] & real[:-1]
        shared[1:] = np.logical_and.accumulate(same, axis=1)
    fresh = real & ~shared
    ids = np.zeros(real.shape, dtype=np.int64)
    ids[fresh] = np.arange(fresh.sum())
    # A shared cell has the node of the cell above; node ids grow downwards, so that is the largest so far.
    node = np.maximum.accumulate(ids, axis=0) if causal else ids
    node[~real] = 0

    blocks, outputs = _attention_blocks(node, fresh, lengths, causal=causal, device=device)
    order = np.fromiter((row_of[tuple(sequence)] for sequence in sequences), dtype=np.int64, count=len(sequences))

    def tensor(array: np.ndarray) -> torch.Tensor:
        return torch.from_numpy(np.ascontiguousarray(array)).to(device)

    return TreeLayout(
        token_ids=tensor(tokens[fresh])[None],
        positions=tensor(np.nonzero(fresh)[1])[None],
        blocks=blocks,
        outputs=tensor(outputs),
        last=tensor(node[np.arange(len(distinct)), lengths - 1][order]),
        paths=tensor(node[order]),
        lengths=tensor(lengths[order]),
        causal=causal,
    )


def _attention_blocks(
    node: np.ndarray, fresh: np.ndarray, lengths: np.ndarray, *, causal: bool, device: torch.device | str
) -> tuple[tuple[AttentionBlock, ...], np.ndarray]:
    """Group the rows of `node` (R, L) by length; returns the blocks, and each node's output cell (N,)."""
    outputs = np.empty(fresh.sum(), dtype=np.int64)
    blocks = []
    offset = 0
    steps = -(-lengths // _BLOCK_STEP)
    for step in np.unique(steps):
        rows = np.flatnonzero(steps == step)
        length = int(lengths[rows].max())
        cells = node[rows, :length]
        starts = fresh[rows, :length]
        outputs[cells[starts]] = offset + np.flatnonzero(starts)
        keys = None
        if not causal:
            keys = torch.from_numpy(np.arange(length) < lengths[rows, None])[:, None, None, :].to(device)
        nodes = torch.from_numpy(np.ascontiguousarray(cells).reshape(-1)).to(device)
        blocks.append(AttentionBlock(nodes=nodes, keys=keys, rows=len(rows), length=length))
        offset += cells.size
    return tuple(blocks), outputs


# Its parameters are those that transformers calls an attention with, and ours that models hand through.
def tree_attention(
    module: torch.nn.Module,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor | None,
    *,
    scaling: float | None = None,
    dropout: float = 0.0,
    layout: TreeLayout | None = None,
    seen: list[torch.nn.Module] | None = None,
    **features: object,
) -> tuple[torch.Tensor, None]:
    """Attention over a prefix tree, with the parameters that transformers gives (`AttentionInterface`).

    Args:
        module: the attention layer that calls.
        query: (1, H, N, D). key, value: (1, K, N, D) with K heads dividing H.
        attention_mask: None, as transformers makes no mask for an attention it does not know.
        scaling: factor of the logits; None for 1 / sqrt(D).
        dropout: probability of dropping an attention weight.
        layout: the batch's layout, handed through the model from its caller.
        seen: collects the layers that call, to see whether all do.
        features: what else the model asks of its attention; what is not computed here is refused.

    Returns:
        (1, N, H, D) and, for the attention weights, None.

    Raises:
        UserError: if the model asks for a feature that this attention does not compute.
    """
    # So many parameters because transformers calls it with them.
    if layout is None:
        raise UserError(
            f"{type(module).__name__} did not hand the batch layout on to its attention, so prefix-tree batches "
            "cannot run this model; set model.batches=padded"
        )
    if seen is not None:
        seen.append(module)
    if attention_mask is not None:
        raise UserError(f"{type(module).__name__} brings a mask of its own, which prefix-tree batches do not compute")
    _require_supported(module, layout, features)
    heads, depth = query.shape[1], value.shape[-1]
    by_node = [states[0].transpose(0, 1) for states in (query, key, value)]  # (N, heads, D)
    outs = []
    for block in layout.blocks:
        q, k, v = (
            states.index_select(0, block.nodes).view(block.rows, block.length, *states.shape[1:]).transpose(1, 2)
            for states in by_node
        )
        if not dropout and _fused_is_slow(q):
            out = _attend_by_products(q, k, v, block.keys, causal=layout.causal, scaling=scaling)
        else:
            options: dict[str, Any] = {"is_causal": layout.causal, "scale": scaling, "enable_gqa": k.shape[1] != heads}
            out = F.scaled_dot_product_attention(q, k, v, attn_mask=block.keys, dropout_p=dropout, **options)
        outs.append(out.transpose(1, 2).reshape(-1, heads, depth))
    cells = outs[0] if len(outs) == 1 else torch.cat(outs)
    return cells.index_select(0, layout.outputs)[None], None


def _fused_is_slow(query: torch.Tensor) -> bool:
    """Whether the fused attention would be slower than plain products, for queries (B, H, L, D).

    PyTorch's fused kernel for the CPU takes 3 to 8 times as long in bfloat16, backward pass included, as plain products
    (benchmarks/attention.py). Products keep all weights for the backward pass, too many of them for long texts.
    """
    if query.device.type != "cpu" or query.dtype is not torch.bfloat16:
        return False
    return query.requires_grad and query.shape[2] <= _SHORT


def _attend_by_products(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    visible: torch.Tensor | None,
    *,
    causal: bool,
    scaling: float | None,
) -> torch.Tensor:
    """Attention by two matrix products around a softmax in float32.

    Args:
        query: (B, H, L, D). key, value: (B, K, L, D), K dividing H.
        visible: (B, 1, 1, L) True at keys that count, or None for all.
        causal: hide later keys.
        scaling: factor of the logits; None for 1 / sqrt(D).

    Returns:
        (B, H, L, D).
    """
    rows, heads, length, depth = query.shape
    groups = key.shape[1]
    # The heads that share a key are more queries of it: one product serves them all.
    stacked = query.reshape(rows, groups, heads // groups * length, depth)
    logits = torch.matmul(stacked, key.transpose(-1, -2)) * (depth**-0.5 if scaling is None else scaling)
    if causal:
        earlier = torch.ones(length, length, dtype=torch.bool, device=query.device).tril().repeat(heads // groups, 1)
        visible = earlier if visible is None else visible & earlier
    if visible is not None:
        logits = logits.masked_fill(~visible, -torch.inf)
    weights = torch.softmax(logits, dim=-1, dtype=torch.float32).to(value.dtype)
    return torch.matmul(weights, value).view(rows, heads, length, value.shape[-1])


def _require_supported(module: torch.nn.Module, layout: TreeLayout, features: dict) -> None:
    """Refuse a model whose attention wants more than scores, scale and causality: it would be silently wrong."""
    name = type(module).__name__
    for feature in ("softcap", "s_aux", "sinks", "position_bias", "alibi"):
        if features.get(feature) is not None:
            raise UserError(f"{name} asks its attention for '{feature}', which prefix-tree batches do not compute")
    window = features.get("sliding_window")
    longest = int(layout.paths.shape[1])
    if isinstance(window, int) and window < longest:
        raise UserError(
            f"{name} attends over a sliding window of {window} tokens, shorter than a text of {longest}: set "
            f"model.max_length={window} or less"
        )


AttentionInterface.register(ATTENTION_NAME, tree_attention)
