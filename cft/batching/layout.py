"""Which kind of batch a model can be run on, found out by trying it.

A model is given a few short sequences one by one, with its own attention; whatever batch is used must give the same
states. So a model whose attention adds something of its own (ALiBi, soft caps, sinks, a convolution between layers)
is not embedded slightly wrong on prefix trees: the trial at loading shows it, and the model runs on padded batches.
"""

import itertools
import logging
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any

import torch

from cft.batching.padded import PaddedLayout, pad
from cft.batching.prefix_tree import ATTENTION_NAME, TreeLayout, build_tree
from cft.config.schema import Attention, Batches, ModelSettings
from cft.system.errors import UserError, first_line
from cft.system.overrides import override

log = logging.getLogger(__name__)

Layout = TreeLayout | PaddedLayout

# Tokens of the longest text of the trial: enough to cross the windows and blocks of most models, and quick.
_LONGEST_TRIED = 512

# Largest distance between two computations of the same states, as a share of the distance between the states of
# different texts. Rounding stays far below it (1e-6 in float32, 1e-2 in bfloat16), a term left out far above.
_TOLERANCE = {torch.float32: 1e-3, torch.bfloat16: 0.1, torch.float16: 0.03}


@dataclass(frozen=True)
class Batching:
    """How a model's batches are laid out, and why."""

    kind: Batches  # tree or padded
    reason: str  # why not a tree, for people; empty for a tree
    causal: bool  # whether tokens see only what is before them, as configured
    difference: float  # largest distance from one-by-one states, as a share of the distance between texts
    own_attention: str  # transformers' name of the model's attention without trees
    filler: int = 0  # token id in padding cells
    made_bidirectional: bool = False  # whether a causal model was made to look both ways

    @property
    def attention(self) -> str:
        """Transformers' name of the attention that goes with these batches."""
        return ATTENTION_NAME if self.kind is Batches.tree else self.own_attention

    def layout(self, sequences: Sequence[Sequence[int]], device: torch.device | str) -> Layout:
        """A batch of token sequences for this model."""
        if self.kind is Batches.padded:
            return pad(sequences, filler=self.filler, device=device)
        return build_tree(sequences, causal=self.causal, device=device)

    def forward_tokens(self, total: int, rows: int, longest: int) -> int:
        """Upper bound of the tokens that a batch of `rows` sequences and `total` tokens puts through the model."""
        return total if self.kind is Batches.tree else rows * longest

    def tokens_in_memory(self, sequences: Sequence[tuple[int, ...]]) -> int:
        """Tokens that a batch of sequences counts for against a budget; at most their sum for prefix trees.

        A token that sequences share goes through the model once, but attention sees it in each of them: it counts half
        where it is not the first.
        """
        distinct = sorted(set(sequences))
        if self.kind is Batches.padded:
            return self.forward_tokens(0, len(distinct), max(map(len, distinct)))
        total = sum(map(len, distinct))
        if not self.causal:
            return total
        return total - sum(_common_beginning(one, two) for one, two in itertools.pairwise(distinct)) // 2


def _common_beginning(one: Sequence[int], two: Sequence[int]) -> int:
    """Tokens with which both begin."""
    return next((i for i, (a, b) in enumerate(zip(one, two, strict=False)) if a != b), min(len(one), len(two)))


class LooksBothWays(UserError):
    """A model that is configured as causal and is not."""


def choose_batching(trunk: Any, model: ModelSettings, prefix_ids: tuple[int, ...]) -> Batching:
    """Try a trunk, on its device and with its own attention, on batches; leave it with the attention of the exact kind.

    Raises:
        UserError: if the model cannot be run, cannot look as configured (`LooksBothWays`), or not on the kind of batch
            wanted.
    """
    _require_fixed_positions(trunk.config, model.max_length)
    own = trunk.config._attn_implementation
    sequences = [sequence[: model.max_length] for sequence in sample_sequences(trunk, prefix_ids)]
    expected = _states_one_by_one(trunk, sequences, model)
    ahead, causal = _attends_ahead(trunk, sequences[0]), model.attention is Attention.causal
    if ahead and causal:
        raise LooksBothWays("this model's attention looks both ways: set model.attention=bidirectional")
    made_bidirectional = not (ahead or causal)
    reason = "model.batches=padded asks for it"
    if model.batches is not Batches.padded:
        difference, reason = _try_tree(trunk, sequences, expected, causal=not ahead)
        reason = reason or _short_window(trunk, model.max_length)
        if not reason:
            tree = Batching(Batches.tree, "", causal, difference, own, made_bidirectional=made_bidirectional)
            _require_independent(trunk, tree, sequences[0], model.max_length)
            return tree
    _set_attention(trunk, own)
    if made_bidirectional:
        raise UserError(
            "model.attention=bidirectional: this model looks only backwards of itself, and can be turned around on "
            f"prefix-tree batches alone, which it does not run on ({reason})"
        )
    if model.batches is Batches.tree:
        raise UserError(f"model.batches=tree: this model does not run on prefix trees ({reason})")
    padded = Batching(Batches.padded, reason, causal, 0.0, own, getattr(trunk.config, "pad_token_id", None) or 0)
    states, layout = padded_states(trunk, sequences, padded)
    difference = relative_distance(states[layout.last], expected)
    if not difference <= tolerance(trunk):
        raise UserError(
            f"{type(trunk).__name__} gives other states in a padded batch than one by one (off by {difference:.2g} of "
            "the distance between texts): it cannot be run in batches"
        )
    _require_independent(trunk, padded, sequences[0], model.max_length)
    padded = replace(padded, difference=difference)
    use_batching(trunk, padded)
    return padded


def use_batching(trunk: Any, batching: Batching) -> None:
    """Give a trunk the attention of a kind of batch that was found exact for it."""
    _set_attention(trunk, batching.attention)


def sample_sequences(trunk: Any, prefix_ids: tuple[int, ...]) -> list[tuple[int, ...]]:
    """Short token sequences that share beginnings, differ in length and use the model's whole vocabulary."""
    rows = trunk.get_input_embeddings().num_embeddings
    special: set[Any] = set()
    for name in ("pad_token_id", "bos_token_id", "eos_token_id"):
        value = getattr(trunk.config, name, None)
        special.update(value if isinstance(value, (list, tuple)) else [value])
    tokens = [token for token in range(rows // 37, rows, max(rows // 37, 1)) if token not in special]
    cuts = [tokens[:7], tokens[:10], [*tokens[:7], *tokens[12:14]], tokens[3:5], tokens[5:30], tokens[:1]]
    return [(*prefix_ids, *cut) for cut in cuts]


def _require_fixed_positions(config: Any, max_length: int) -> None:
    """Refuse rotary positions that are scaled by the longest text of a batch: a text's vector would depend on others.

    This is read in the configuration, as the difference may drown in the rounding of bfloat16.
    """
    limits = [limit for limit in _changes_of_positions(config.to_dict()) if limit < max_length]
    if limits:
        raise UserError(
            f"model.max_length={max_length}: this model scales the positions of a whole batch otherwise as soon as one "
            f"of its texts has more than {min(limits)} tokens: a text's vector would depend on the texts beside "
            f"it; set model.max_length={min(limits)}"
        )


def _changes_of_positions(
    settings: dict[str, Any], positions: int | None = None, original: int | None = None
) -> Iterator[int]:
    """Numbers of tokens beyond which rotary positions are scaled otherwise, wherever a configuration has them."""
    positions = settings.get("max_position_embeddings", positions)
    kind, limit = str(settings.get("rope_type", settings.get("type"))), None
    if kind in ("longrope", "su") and settings.get("long_factor") != settings.get("short_factor"):
        limit = settings.get("original_max_position_embeddings", original)
    elif "dynamic" in kind:
        limit = positions
    if isinstance(limit, int):
        yield limit
    original = settings.get("original_max_position_embeddings", original or positions)
    for value in settings.values():
        if isinstance(value, dict):
            yield from _changes_of_positions(value, positions, original)


def _require_independent(trunk: Any, batching: Batching, sequence: tuple[int, ...], max_length: int) -> None:
    """Try a short text beside one that is as long as a text may be: it must keep its own state.

    Raises:
        UserError: if it does not.
    """
    tokens = [token for other in sample_sequences(trunk, ()) for token in other]
    length = min(max_length, _LONGEST_TRIED)
    if length <= len(sequence):
        return
    long = tuple(tokens[place % len(tokens)] for place in range(length))
    short, device = sequence, next(trunk.parameters()).device
    layout = batching.layout([short, long], device)
    if batching.made_bidirectional:  # its own attention looks backwards only
        alone = torch.stack([_forward(trunk, batching.layout([each], device))[-1] for each in (short, long)])
    else:
        _set_attention(trunk, batching.own_attention)
        alone = torch.stack([_states_alone(trunk, each)[-1] for each in (short, long)])
        _set_attention(trunk, batching.attention)
    difference = relative_distance(_forward(trunk, layout)[layout.last], alone)
    if not difference <= tolerance(trunk):
        raise UserError(
            f"model.max_length={max_length}: {type(trunk).__name__} gives a short text another state beside one of "
            f"{length} tokens than alone (off by {difference:.2g} of the distance between texts): its vector would "
            "depend on the texts beside it; lower model.max_length"
        )


def padded_states(model: Any, sequences: Sequence[Sequence[int]], batching: Batching) -> tuple[torch.Tensor, Layout]:
    """Run sequences as one padded batch under the model's own attention, whatever kind its batches are.

    Returns:
        (R * L, D) states in float32, and the layout that says where each sequence stands.
    """
    layout = pad(sequences, filler=batching.filler, device=next(model.parameters()).device)
    with own_attention(model, batching):
        return _forward(model, layout), layout


@contextmanager
def own_attention(model: Any, batching: Batching) -> Iterator[None]:
    """Have a model attend in its own way for a while, whatever kind its batches are."""
    before = model.config._attn_implementation
    _set_attention(model, batching.own_attention)
    try:
        yield
    finally:
        _set_attention(model, before)


def relative_distance(states: torch.Tensor, expected: torch.Tensor) -> float:
    """Largest distance between rows (B, D) of the same text, as a share of the mean distance between two texts."""
    between = torch.pdist(expected.float()).mean()
    return float((states.float() - expected.float()).norm(dim=-1).max() / between)


def tolerance(trunk: Any) -> float:
    """The relative distance that rounding alone may cause."""
    return _TOLERANCE.get(_dtype(trunk), 1e-3)


def _dtype(trunk: Any) -> torch.dtype:
    """Of the weights that are not quantised."""
    return next(weight.dtype for weight in trunk.parameters() if weight.is_floating_point())


def _forward(trunk: Any, layout: Layout, **options: object) -> torch.Tensor:
    """States (nodes, D) in float32."""
    with torch.no_grad():
        return trunk(**layout.inputs(), use_cache=False, **options).last_hidden_state.flatten(0, 1).float()


def _set_attention(trunk: Any, name: str) -> None:
    if trunk.config._attn_implementation != name:
        trunk.set_attn_implementation(name)


def _states_alone(trunk: Any, sequence: tuple[int, ...]) -> torch.Tensor:
    """States (T, D) of a sequence run by itself."""
    return _forward(trunk, pad([sequence], device=next(trunk.parameters()).device))


def _states_one_by_one(trunk: Any, sequences: list[tuple[int, ...]], model: ModelSettings) -> torch.Tensor:
    """The reference: last-token states (B, D) of sequences run by themselves."""
    try:
        states = torch.stack([_states_alone(trunk, sequence)[-1] for sequence in sequences])
    except Exception as error:  # whatever a model's own code raises
        raise UserError(
            f"{override('model.path', model.path)}: {type(trunk).__name__} cannot be run on token ids alone "
            f"({first_line(error)[:200]})"
        ) from error
    if not torch.isfinite(states).all():
        raise UserError(f"{override('model.path', model.path)}: its hidden states are not finite in {_dtype(trunk)}")
    return states


def _attends_ahead(trunk: Any, sequence: tuple[int, ...]) -> bool:
    """Whether a token's state depends on tokens behind it."""
    states, changed = _states_alone(trunk, sequence), _states_alone(trunk, (*sequence[:-1], sequence[-2]))
    moved = (states - changed)[:-1].norm(dim=-1).max() / states.norm(dim=-1).mean()
    # Equal arithmetic gives equal bits; experts that get other tokens round differently, in bfloat16 visibly.
    exact = _dtype(trunk) in (torch.float32, torch.float64)
    return bool(moved > (1e-6 if exact else 1e-2))


def _try_tree(
    trunk: Any, sequences: list[tuple[int, ...]], expected: torch.Tensor, *, causal: bool
) -> tuple[float, str]:
    """The relative distance of tree batches from the reference, and why they cannot be used, empty if they can."""
    name = type(trunk).__name__
    if any(isinstance(module, torch.nn.Conv1d) for module in trunk.modules()):
        return float("inf"), f"{name} mixes neighbouring tokens by convolutions between its layers"
    layout = build_tree(sequences, causal=causal, device=expected.device)
    attending: list[torch.nn.Module] = []
    try:
        trunk.set_attn_implementation(ATTENTION_NAME)
        if trunk.config._attn_implementation != ATTENTION_NAME:
            return float("inf"), f"{name} has no exchangeable attention"
        states = _forward(trunk, layout, seen=attending)[layout.last]
    except Exception as error:  # whatever a model's own code raises when it is given a tree
        return float("inf"), first_line(error)[:200].replace("; set model.batches=padded", "")
    layers = getattr(trunk.config, "num_hidden_layers", 0)
    if len(attending) < layers:
        return float("inf"), f"only {len(attending)} of {name}'s {layers} layers attend in a way that can be exchanged"
    difference = relative_distance(states, expected)
    if difference <= tolerance(trunk):
        return difference, ""
    return difference, (
        f"prefix-tree batches of {name} give other states than one by one (off by {difference:.2g} of the distance "
        "between texts), so its layers look at more than this attention computes"
    )


def _short_window(trunk: Any, max_length: int) -> str:
    """Why a text of `max_length` tokens would be attended to in part only; empty if it is not."""
    if getattr(trunk.config, "use_sliding_window", True) is False:
        return ""
    for name in ("sliding_window", "attention_chunk_size", "window_size", "local_attention"):
        window = getattr(trunk.config, name, None)
        if isinstance(window, int) and 0 < window < max_length:
            return f"its {name} of {window} tokens is shorter than model.max_length={max_length}"
    return ""
