"""A look at a model before it is trained: contract, tokens, memory, exactness of batches."""

import functools
import logging
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch

from cft.batching.layout import own_attention, tolerance
from cft.config.schema import TEACHER, Attention, Batches, Config, DataSource, Quantization
from cft.data.records import Triplet
from cft.data.training_data import TrainingData
from cft.job.lengths import find_cut
from cft.job.outlook import outlook, seconds_a_step
from cft.job.plan import InputCache, find_guide, fitted
from cft.job.start import find_starting_point
from cft.model.embedder import Embedder, token_budget_on
from cft.model.layer_weights import layer_weights_of
from cft.model.lora import Targets, add_lora, find_targets, trainable
from cft.system.errors import UserError, renaming_keys
from cft.system.memory import available_bytes
from cft.system.tables import Row, as_lines, as_text
from cft.system.text import byte_size
from cft.training import memory
from cft.training.contrastive import texts_of
from cft.training.trainer import plan_steps, recompute_activations

log = logging.getLogger("cft.doctor")

FAILED_STATUS = 1

# Tokens of a text where no data say better: NLI sentences have about as many.
USUAL_LENGTH = 20

_EXAMPLE = "A man is playing a flute."
_TEXTS = [
    _EXAMPLE,
    "A man is playing a guitar in front of a crowd.",
    "A man is sleeping.",
    "Nobody plays.",
    "Two dogs run over a field that was green before the summer came, and bark at everything that moves on it.",
    "A man is playing a flute.",
]
_POOLINGS = {
    "last": "the last token's state",
    "first": "the first token's state",
    "mean": "the mean of all tokens' states",
    "weighted_mean": "the mean of all tokens' states, later ones weighing more",
}


@dataclass(frozen=True)
class Check:
    """The outcome of one check."""

    name: str  # what must hold
    found: str
    allowed: str
    holds: bool


def examine(config: Config) -> tuple[str, bool]:
    """Everything about a job's model, as text, and whether all checks hold.

    Raises:
        UserError: for whatever the user can mend.
    """
    trains = config.train.steps > 0
    inputs = InputCache()
    data = _data(config, inputs) if trains else None
    config = fitted(config, data, inputs)
    if data:
        plan_steps(config, data)  # too few rows for a batch are refused here as they would be there
    start = find_starting_point(config)
    triplets = list(data.measured[: config.rows_a_step]) if data else []
    base = start.load(config, trainable=trains)
    embedder = base.with_prompts(config.prompt.in_evaluation)
    checks = [*_token_checks(embedder), *_batch_checks(embedder)]
    parts = [_model(embedder, config), _contract(embedder), _example(embedder)]
    if trains:
        fresh = config.lora.rank > 0 and start.adapter is None
        targets = find_targets(base.model, config.lora) if fresh else None
        model = base.model if start.adapter else add_lora(base.model, config.lora, seed=config.seed).to(start.device)
        if config.train.gradient_checkpointing:
            recompute_activations(model)
        embedder = Embedder(model, base.backbone, base.contract.with_prompts(config.prompt.in_training))
        parts.append(_trained(model, config, targets))
        if data:
            parts.append(_portrait(data, embedder, config))
        if config.first.data:
            stage = f"{config.first.steps} steps on {config.first.data.name} before all this, which nothing here counts"
            parts.append(as_lines([("first stage", stage)]))
    beside = _beside(config, inputs, start.device) if trains else {}
    with torch.random.fork_rng():
        parts.append(_memory(embedder, config, triplets, beside, bf16=start.bf16))
    rows: list[Row] = [("check", "found", "allowed", "")]
    rows += [(check.name, check.found, check.allowed, "holds" if check.holds else "FAILS") for check in checks]
    parts.append(as_text(rows))
    return "\n\n".join(parts), all(check.holds for check in checks)


def _beside(config: Config, inputs: InputCache, device: torch.device) -> dict[str, Embedder]:
    """The finished embedders that a training holds beside its model, by what they are to it."""
    found = {}
    if config.distill.model:
        with renaming_keys(TEACHER):
            found["teacher"] = Embedder.base(config.distill.model, device=device)
    if config.loss.guide:
        settings, files = find_guide(config.loss.guide, inputs)
        found["guide"] = Embedder.base(settings, files=files, device=device)
    return found


def _data(config: Config, inputs: InputCache) -> TrainingData | None:
    """The training data; None if they are on the hub and cannot be had here.

    Raises:
        UserError: if a file is missing, or cannot be trained on.
    """
    try:
        return inputs.data(config.data)
    except UserError as error:
        if config.data.source is not DataSource.hub:
            raise
        log.info("without the training data, %d tokens a text are assumed: %s", USUAL_LENGTH, error)
        return None


def _portrait(data: TrainingData, embedder: Embedder, config: Config) -> str:
    """What the training learns from, and what of it is suspicious."""
    lines = [("data", f"{len(data.measured):,} {data.noun} to train on, {len(data.holdout):,} held out")]
    batch = config.train.batch_size // config.train.accumulation
    for name, portrait in data.portraits.items():
        lines += [(f"  {name}", line) for line in portrait.lines()]
        warnings = (*portrait.warnings(), *portrait.warnings_of_batches(batch, redrawn=data.starts is not None))
        lines += [("  suspicious", warning) for warning in warnings]
    cut = find_cut(embedder, data.measured, functools.partial(data.prompts_of, others=embedder.contract.prompts))
    seconds = seconds_a_step(embedder, config, data)
    return f"{as_lines(lines)}\n\n{outlook(config, data, plan_steps(config, data), cut, seconds)}"


def _model(embedder: Embedder, config: Config) -> str:
    trunk: Any = embedder.backbone.trunk
    count = sum(weight.numel() for weight in embedder.model.parameters())
    batching = embedder.backbone.batching
    unused = embedder.backbone.unused
    four_bits = embedder.contract.quantization is Quantization.nf4
    kept = "4 bits (nf4, two weights counted as one)" if four_bits else embedder.contract.dtype
    lines = [
        ("model", f"{config.model.name}: {config.model.path}"),
        (
            "weights",
            f"{embedder.contract.weights}, {count:,} in {kept}, {byte_size(memory.weight_bytes(trunk))}",
        ),
        (
            "held by",
            f"{type(trunk).__name__}: {trunk.config.num_hidden_layers} layers, hidden size {trunk.config.hidden_size}",
        ),
    ]
    if embedder.contract.adapter:
        lines.append(("adapter", f"{config.adapter}, SHA-256 {embedder.contract.adapter[:16]}..."))
    if unused:
        lines.append(("not used", f"{len(unused)} tensors of the checkpoint ({', '.join(unused[:3])})"))
    if batching.kind is Batches.padded:
        kind = f"padded: {batching.reason}"
    else:
        kind = "prefix trees, exact by trial" if batching.causal else "one row without padding, exact by trial"
    lines += [("batches", kind), ("device", _kernels(embedder))]
    return as_lines(lines)


def _kernels(embedder: Embedder) -> str:
    """Device and attention in words."""
    attention = embedder.backbone.batching.attention
    by = "torch's scaled_dot_product_attention" if attention in ("cft_tree", "sdpa") else f"{attention} attention"
    device = embedder.device
    if device.type != "cuda":
        return f"cpu, {torch.get_num_threads()} threads, {by}"
    backends = torch.backends.cuda
    flags = {"flash": backends.flash_sdp_enabled(), "memory-efficient": backends.mem_efficient_sdp_enabled()}
    flags |= {"cudnn": backends.cudnn_sdp_enabled(), "math": backends.math_sdp_enabled()}
    return f"{torch.cuda.get_device_name(device)}, {by} ({', '.join(name for name, on in flags.items() if on)} kernels)"


def _contract(embedder: Embedder) -> str:
    contract, backbone = embedder.contract, embedder.backbone
    tokenizer = backbone.tokenizer
    before, after = (
        " ".join(tokenizer.convert_ids_to_tokens(list(ids))) or "nothing"
        for ids in (contract.prefix_ids, contract.suffix_ids)
    )
    layer = "the last layer" if contract.layer is None else f"layer {contract.layer}"
    layer = "all layers, summed by trained weights" if contract.layer_weights else layer
    how = "our EOS" if contract.append_eos else "the tokenizer's own"
    fast = "fast" if getattr(tokenizer, "is_fast", False) else "in Python"
    return "the contract\n" + as_lines(
        [
            (
                "  tokenizer",
                f"{type(tokenizer).__name__} ({fast}), {len(tokenizer)} tokens of {backbone.vocabulary} rows",
            ),
            ("  before a text", before),
            ("  after a text", f"{after} ({how})"),
            ("  prompt", repr(contract.template)),
            *([("  echo", "the text goes in twice, and is pooled the second time")] if contract.echo else []),
            ("  embedding", f"{_POOLINGS[contract.pooling.value]} of {layer}"),
            ("  attention", "both ways" if contract.attention is Attention.bidirectional else "backwards only"),
            ("  longest", f"{contract.max_length} tokens, special ones included; longer texts are cut, not the prompt"),
        ]
    )


def _example(embedder: Embedder) -> str:
    (ids,) = embedder.tokenize([_EXAMPLE])
    tokens = embedder.backbone.tokenizer.convert_ids_to_tokens(list(ids))
    return f"{_EXAMPLE!r} becomes\n" + as_text(
        [("", *map(str, range(len(ids)))), ("token", *tokens), ("id", *map(str, ids))]
    )


def _trained(model: Any, config: Config, targets: Targets | None) -> str:
    weights = trainable(model)
    count, whole = sum(w.numel() for w in weights.values()), sum(w.numel() for w in model.parameters())
    layers = sorted({name.split(".lora_")[0].rsplit(".", 1)[-1] for name in weights if ".lora_" in name})
    where = f"LoRA of rank {config.lora.rank} on {', '.join(layers)}" if layers else "the whole model"
    if targets is not None and config.lora.principal:
        where += f", begun by PiSSA and saved as a plain LoRA of rank {2 * config.lora.rank}"
    if targets is not None and targets.is_partial:
        where += f" (only the rows of {' and '.join(targets.roles)})"
    biases = sum(name.endswith(".bias") for name in weights)
    if layers and biases:
        where += f" and {biases:,} biases"
    if layers and layer_weights_of(model) is not None:
        where += " and a weight for each layer"
    return as_lines([("trained", f"{where}: {count:,} of {whole:,} weights ({count / whole:.2%})")])


def _memory(
    embedder: Embedder, config: Config, triplets: list[Triplet], beside: dict[str, Embedder], *, bf16: bool
) -> str:
    """Memory of a training step and an evaluation batch, extrapolated from small batches.

    Args:
        beside: teacher and guide, loaded already, so that their weights do not count as free memory.
    """
    weights = memory.weight_bytes(embedder.model)
    all_weights = weights + sum(memory.weight_bytes(other.model) for other in beside.values())
    rows: list[Row] = [("memory needed", "tokens", "weights", "optimiser", "batch", "together")]
    needs: list[tuple[str, int]] = []

    def row(name: str, tokens: int, optimizer: int, batch: int, model: int = weights) -> None:
        figures = [byte_size(size) for size in (model, optimizer, batch, model + optimizer + batch)]
        rows.append((name, f"{tokens:,}", *figures))
        needs.append((name, optimizer + batch))

    length = USUAL_LENGTH
    if config.train.steps:
        micro = config.rows_a_step // config.train.accumulation
        negatives = max((len(row.negatives) for row in triplets), default=1) if config.loss.hard_negatives else 0
        expected, length = _size(embedder, config, triplets[:micro], micro * (2 + negatives))
        pairs = config.train.scored_batch // config.train.accumulation if config.has_pairs_beside else 0
        expected += 2 * pairs * length
        longest = (micro * (2 + negatives) + 2 * pairs) * config.model.max_length
        estimate = memory.estimate_training(embedder, length=length, negatives=negatives, bf16=bf16)
        optimizer = memory.optimizer_bytes(embedder.model)
        what = f"the first {micro} of {config.data.name}" if triplets else f"{micro} triplets of usual length"
        more = f" and {pairs} scored pairs" if pairs else ""
        row(f"training, {what}{more}", expected, optimizer, estimate.bytes_for(expected), all_weights)
        what = f"training, {micro} triplets{more} of max_length"
        row(what, longest, optimizer, estimate.bytes_for(longest), all_weights)
        for name, other in beside.items():
            budget = token_budget_on(other.device)
            batch = memory.estimate_evaluation(other, length=length).bytes_for(budget)
            row(f"training, a full batch of the {name}", budget, optimizer, batch, all_weights)
    estimate = memory.estimate_evaluation(embedder, length=length)
    budget = token_budget_on(embedder.device)
    row("evaluation, a full batch", budget, 0, estimate.bytes_for(budget))
    free = available_bytes(embedder.device)
    counted = "".join(f"; a {name}'s weights stay beside the model's" for name in beside)
    text = (
        as_text(rows)
        + f"\n(measured on small batches; {byte_size(free)} are free now, with the weights loaded{counted})"
    )
    too_large = [name for name, need in needs if need > free]
    if too_large:
        text += (
            f"\nmore than is free: {'; '.join(too_large)}. Less memory: train.gradient_checkpointing=true, a smaller "
            "train.batch_size or model.max_length"
        )
    return text


def _size(embedder: Embedder, config: Config, triplets: list[Triplet], texts: int) -> tuple[int, int]:
    """Tokens that a micro-batch of so many texts puts through the model, and tokens of one of its texts."""
    if not triplets:
        return texts * USUAL_LENGTH, USUAL_LENGTH
    batch = texts_of(triplets, config.loss)
    layout = embedder.layout(embedder.tokenize(batch))
    return layout.nodes, round(layout.tokens / len(batch))


def _token_checks(embedder: Embedder) -> list[Check]:
    """EOS, or whatever comes last, stands once at the end, of short texts and of cut ones."""
    contract = embedder.contract
    suffix = contract.suffix_ids
    if not suffix:
        return []
    sequences = embedder.tokenize([*_TEXTS, " ".join(_TEXTS * 40)])
    # OPT's BOS is its EOS; and a prompt may hold it.
    (name,) = embedder.backbone.tokenizer.convert_ids_to_tokens([suffix[-1]])
    elsewhere = contract.prefix_ids.count(suffix[-1]) + contract.copies * contract.template.count(name)
    once = sum(ids[-len(suffix) :] == suffix and ids.count(suffix[-1]) == 1 + elsewhere for ids in sequences)
    # that is max_length, or one token less where a text goes in twice
    cut, longest = len(sequences[-1]), len(contract.prefix_ids) + contract.copies * contract.room + len(suffix)
    return [
        Check(f"{name} stands once, at the end", f"{once} of {len(sequences)} texts", "all", once == len(sequences)),
        Check("a long text is cut to max_length", f"{cut} tokens", f"{longest} tokens", cut == longest),
    ]


def _batch_checks(embedder: Embedder) -> list[Check]:
    """A text has one embedding, however it is batched."""
    batching = embedder.backbone.batching
    together = embedder.encode(_TEXTS)
    alone = np.concatenate([embedder.encode([text]) for text in _TEXTS])
    spread = float(np.linalg.norm(together[:, None] - together[None], axis=-1).max())
    allowed = tolerance(embedder.backbone.trunk)

    def check(name: str, other: np.ndarray) -> Check:
        share = float(np.linalg.norm(together - other, axis=-1).max()) / spread
        return Check(name, f"{share:.1e}", f"{allowed:.0e}", share <= allowed)

    checks = [check("one text alone = among others", alone)]
    if not batching.made_bidirectional:  # its own attention would look backwards only
        checks.append(check("= padded, with the model's own attention", _padded(embedder, _TEXTS)))
    return [replace(entry, name=f"{entry.name} (share of distance)") for entry in checks]


def _padded(embedder: Embedder, texts: list[str]) -> Any:
    """Embeddings by one padded batch under the attention that the model came with."""
    model, backbone = embedder.model, embedder.backbone
    padded = replace(backbone, batching=replace(backbone.batching, kind=Batches.padded))
    with own_attention(model, backbone.batching):
        return Embedder(model, padded, embedder.contract).encode(texts)
