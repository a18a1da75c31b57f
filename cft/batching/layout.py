"""Which kind of batch a model can be run on, found out by trying it.

A model is given a few short sequences one by one, with its own attention; whatever batch is used must give the same
states. So a model whose attention adds something of its own (ALiBi, soft caps, sinks, a convolution between layers)
is not embedded slightly wrong on prefix trees: it is found out when it is loaded, and runs on padded batches.
"""

import logging
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch

from cft.batching.padded import PaddedLayout, pad
from cft.batching.prefix_tree import ATTENTION_NAME, TreeLayout, build_tree
from cft.config.schema import Attention, Batches, ModelSettings
from cft.system.errors import UserError, first_line

log = logging.getLogger(__name__)

Layout = TreeLayout | PaddedLayout

# How far states of two computations of the same may be apart, as a share of the distance between the states of
# different texts. Rounding stays far below it (1e-6 in float32, 1e-2 in bfloat16), a term left out far above.
_TOLERANCE = {torch.float32: 1e-3, torch.bfloat16: 0.1, torch.float16: 0.03}


@dataclass(frozen=True)
class Batching:
    """How a model's batches are laid out.

    kind: tree or padded. reason: why not a tree, for people; empty for a tree. causal: whether tokens see only what
    is before them, as configured. difference: largest distance of a state from the one-by-one state, as a share of
    the distance between different texts' states. own_attention: transformers' name of the attention without trees.
    filler: the token in padding cells. made_bidirectional:
    whether a causal model was made to look both ways.
    """

    kind: Batches
    reason: str
    causal: bool
    difference: float
    own_attention: str
    filler: int = 0
    made_bidirectional: bool = False

    @property
    def attention(self) -> str:
        """Transformers' name of the attention that goes with these batches."""
        return ATTENTION_NAME if self.kind is Batches.tree else self.own_attention

    def layout(self, sequences: Sequence[Sequence[int]], device: torch.device | str) -> Layout:
        """A batch of token sequences for this model."""
        if self.kind is Batches.padded:
            return pad(sequences, filler=self.filler, device=device)
        return build_tree(sequences, causal=self.causal, device=device)

    def tokens_of(self, total: int, rows: int, longest: int) -> int:
        """Tokens that a batch puts through the model at most: so many in all, in so many rows, in its longest row."""
        return total if self.kind is Batches.tree else rows * longest


def choose_batching(trunk: Any, model: ModelSettings, prefix_ids: tuple[int, ...]) -> Batching:
    """Try a trunk on batches and set its attention up for the kind that is exact.

    Args:
        trunk: on its device, with its own attention; left with the attention that was chosen.
        model: which kind is wanted, and which way the attention is to look.
        prefix_ids: what every text begins with.

    Raises:
        UserError: if the model cannot be run, cannot look as configured, or not on the kind of batch asked for.
    """
    own = trunk.config._attn_implementation
    sequences = [sequence[: model.max_length] for sequence in sample_sequences(trunk, prefix_ids)]
    expected = _one_by_one(trunk, sequences, model)
    ahead = attends_ahead(trunk, sequences[0])
    if ahead and model.attention is Attention.causal:
        raise UserError("this model's attention looks both ways: set model.attention=bidirectional")
    made_bidirectional = not ahead and model.attention is Attention.bidirectional
    difference, reason = float("inf"), "model.batches=padded asks for it"
    if model.batches is not Batches.padded:
        difference, reason = _try_tree(trunk, sequences, expected, causal=not ahead)
        reason = reason or _window(trunk, model.max_length)
        if not reason:
            return Batching(
                Batches.tree,
                "",
                model.attention is Attention.causal,
                difference,
                own,
                made_bidirectional=made_bidirectional,
            )
    _attend(trunk, own)
    if made_bidirectional:
        raise UserError(
            "model.attention=bidirectional: this model looks only backwards of itself, and can be turned around on "
            f"prefix-tree batches alone, which it does not run on ({reason})"
        )
    if model.batches is Batches.tree:
        raise UserError(f"model.batches=tree: this model does not run on prefix trees ({reason})")
    filler = getattr(trunk.config, "pad_token_id", None) or 0
    difference = relative_distance(_padded_states(trunk, sequences, filler), expected)
    if not difference <= tolerance(trunk):
        raise UserError(
            f"{type(trunk).__name__} gives other states in a padded batch than one by one (off by {difference:.2g} of "
            "the distance between texts): it cannot be run in batches"
        )
    if model.batches is Batches.auto:
        log.info("texts are padded instead of sharing prefixes: %s", reason)
    return Batching(Batches.padded, reason, not ahead, difference, own, filler)


def sample_sequences(trunk: Any, prefix_ids: tuple[int, ...]) -> list[tuple[int, ...]]:
    """Short token sequences that share beginnings, differ in length and use the model's whole vocabulary."""
    rows = trunk.get_input_embeddings().num_embeddings
    special = [getattr(trunk.config, name, None) for name in ("pad_token_id", "bos_token_id", "eos_token_id")]
    drawn = [
        token
        for token in range(rows // 37, rows, max(rows // 37, 1))
        if not any(_is_special(s, token) for s in special)
    ]
    cuts = [drawn[:7], drawn[:10], [*drawn[:7], *drawn[12:14]], drawn[3:5], drawn[5:30], drawn[:1]]
    return [(*prefix_ids, *cut) for cut in cuts]


def _is_special(special: Any, token: int) -> bool:
    """Whether a configuration's special token, or one of several, is this one."""
    return token in special if isinstance(special, (list, tuple)) else token == special


def _one_by_one(trunk: Any, sequences: list[tuple[int, ...]], model: ModelSettings) -> torch.Tensor:
    try:
        device = next(trunk.parameters()).device
        states = [_forward(trunk, pad([sequence], device=device))[-1] for sequence in sequences]
    except Exception as error:  # whatever a model's own code raises: it cannot be run, and this is why
        raise UserError(
            f"model.path={model.path}: {type(trunk).__name__} cannot be run on token ids alone "
            f"({first_line(error)[:200]})"
        ) from error
    found = torch.stack(states)
    if not torch.isfinite(found).all():
        raise UserError(f"model.path={model.path}: its hidden states are not finite in {model_dtype(trunk)}")
    return found


def attends_ahead(trunk: Any, sequence: tuple[int, ...]) -> bool:
    """Whether a token's state depends on tokens behind it."""
    changed = (*sequence[:-1], sequence[-2])
    device = next(trunk.parameters()).device
    one, other = (_forward(trunk, pad([ids], device=device)) for ids in (sequence, changed))
    moved = (one - other)[:-1].norm(dim=-1).max() / one.norm(dim=-1).mean()
    # Equal arithmetic gives equal bits; experts that get other tokens round differently, in bfloat16 visibly.
    exact = model_dtype(trunk) in (torch.float32, torch.float64)
    return bool(moved > (1e-6 if exact else 1e-2))


def _try_tree(
    trunk: Any, sequences: list[tuple[int, ...]], expected: torch.Tensor, *, causal: bool
) -> tuple[float, str]:
    """How far tree batches are off, and why they cannot be used, empty if they can."""
    layout = build_tree(sequences, causal=causal, device=expected.device)
    if any(isinstance(module, torch.nn.Conv1d) for module in trunk.modules()):
        return float("inf"), f"{type(trunk).__name__} mixes neighbouring tokens by convolutions between its layers"
    try:
        trunk.set_attn_implementation(ATTENTION_NAME)
        if trunk.config._attn_implementation != ATTENTION_NAME:
            return float("inf"), f"{type(trunk).__name__} has no exchangeable attention"
        seen: list[torch.nn.Module] = []
        found = _forward(trunk, layout, seen=seen)[layout.last]
    except Exception as error:  # whatever a model's own code raises when it is given a tree
        return float("inf"), first_line(error)[:200].replace("; set model.batches=padded", "")
    layers = getattr(trunk.config, "num_hidden_layers", 0)
    if len(seen) < layers:
        kind = type(trunk).__name__
        return float("inf"), f"only {len(seen)} of {kind}'s {layers} layers attend in a way that can be exchanged"
    difference = relative_distance(found, expected)
    if difference <= tolerance(trunk):
        return difference, ""
    return difference, (
        f"prefix-tree batches of {type(trunk).__name__} give other states than one by one (off by {difference:.2g} of "
        "the distance between texts), so its layers look at more than this attention computes"
    )


def _window(trunk: Any, max_length: int) -> str:
    """Why texts of `max_length` tokens would be attended to in part only; empty if they are not."""
    config = trunk.config
    if getattr(config, "use_sliding_window", True) is False:
        return ""
    for name in ("sliding_window", "attention_chunk_size", "window_size", "local_attention"):
        window = getattr(config, name, None)
        if isinstance(window, int) and 0 < window < max_length:
            return f"its {name} of {window} tokens is shorter than model.max_length={max_length}"
    return ""


def _attend(trunk: Any, name: str) -> None:
    if trunk.config._attn_implementation != name:
        trunk.set_attn_implementation(name)


def _forward(trunk: Any, layout: Layout, **more: object) -> torch.Tensor:
    """States (nodes, D) in float32."""
    with torch.no_grad():
        return trunk(**layout.inputs(), use_cache=False, **more).last_hidden_state.flatten(0, 1).float()


def _padded_states(trunk: Any, sequences: list[tuple[int, ...]], filler: int) -> torch.Tensor:
    layout = pad(sequences, filler=filler, device=next(trunk.parameters()).device)
    return _forward(trunk, layout)[layout.last]


def relative_distance(found: torch.Tensor, expected: torch.Tensor) -> float:
    """Largest distance between rows of the same text, as a share of the mean distance between rows of other texts.

    Args:
        found, expected: (B, D), B at least 2.
    """
    between = torch.pdist(expected.float()).mean()
    return float((found.float() - expected.float()).norm(dim=-1).max() / between)


def tolerance(trunk: Any) -> float:
    """What `apart` may come to by rounding alone."""
    return _TOLERANCE.get(model_dtype(trunk), 1e-3)


def model_dtype(trunk: Any) -> torch.dtype:
    """Of the weights, those that are not quantised."""
    return next(weight.dtype for weight in trunk.parameters() if weight.is_floating_point())
