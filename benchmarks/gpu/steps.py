"""Training steps of the paper's models at full size, with random weights and texts of NLI's lengths."""

import statistics
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from peers import timed

from cft.batching.prefix_tree import TreeLayout
from cft.config.schema import LoraSettings, LossSettings
from cft.data.records import Triplet
from cft.model.embedder import Embedder
from cft.model.lora import trainable
from cft.system.files import read_json
from cft.system.memory import OutOfMemory
from cft.training import memory
from cft.training.chunking import choose_chunking
from cft.training.contrastive import BatchSetup, contrastive_backward, texts_of
from gpu import rates
from gpu.kit import Kit, Note, gib, words_as_tokens
from gpu.shapes import random_embedder, step_flops

_LOSS = LossSettings()


@dataclass(frozen=True)
class Case:
    """One kind of step that is timed."""

    name: str
    triplets: int
    repeats: int
    chunks: int | None = 1  # in which the batch goes through the model; None for as few as memory holds
    dropout: bool = True  # LoRA's


_CASES = (
    Case("whole", 60, 6),
    Case("without dropout", 60, 6, dropout=False),
    Case("in 4 chunks", 60, 4, chunks=4),
    Case("as memory holds", 1024, 2, chunks=None),
)


def run(kit: Kit, note: Note, shape: str) -> dict[str, Any]:
    """Seconds, tokens a second, share of the matrix rate and peak memory of every case.

    Args:
        kit: how the kit was called. note: takes what was found so far. shape: of full_size.
    """
    device = kit.device
    embedder = random_embedder(shape, device, tiny=kit.tiny)
    batching = embedder.backbone.batching
    facts: dict[str, Any] = {
        "parameters": sum(weight.numel() for weight in embedder.backbone.trunk.parameters()),
        "weights_bytes": memory.weight_bytes(embedder.model),
        "batches": batching.kind.value,
        "why_no_tree": batching.reason,
        "difference": batching.difference,
        "cases": {},
    }
    reference = reference_rate(kit)
    facts["bfloat16_tflops"] = reference
    optimizer = torch.optim.AdamW(trainable(embedder.model).values(), lr=5e-5)
    for case in _CASES:
        if kit.tiny:
            case = replace(case, triplets=max(case.triplets // 128, 4), repeats=1)
        facts["cases"][f"{case.triplets} triplets, {case.name}"] = _measured(kit, embedder, optimizer, case, reference)
        note(facts)
    if device.type == "cuda":
        facts["kernels"] = tried(lambda: _top_kernels(kit, embedder))
        facts["attention"] = tried(lambda: _attention_kernels(kit, embedder))
    return facts | {"table": _table(facts["cases"])}


def reference_rate(kit: Kit) -> float | None:
    """The measured rate of products in bfloat16, TFLOP a second; None if that stage has no result."""
    path = kit.out / "matrix_rate.json"
    found = read_json(path).get("result") if path.exists() else None
    return rates.best(found["rates"])["bfloat16"] if found and found.get("best") else None


def tried(work: Callable[[], Any]) -> Any:
    """What it finds, or its error: what is only good to know must not cost what was measured."""
    try:
        return work()
    except Exception as error:
        return f"{type(error).__name__}: {error}"


Batch = tuple[list[Triplet], list[tuple[int, ...]]]


def _batches(kit: Kit, embedder: Embedder, triplets: int, count: int) -> Iterator[Batch]:
    """Batches of other rows each, with their token ids."""
    rows = kit.rows(triplets * count)
    for start in range(0, len(rows) - triplets + 1, triplets):
        part = rows[start : start + triplets]
        yield part, words_as_tokens(texts_of(part, _LOSS), embedder.backbone.vocabulary)


def _measured(
    kit: Kit, embedder: Embedder, optimizer: torch.optim.Optimizer, case: Case, reference: float | None
) -> dict[str, Any]:
    """One case, or the error that it ended with."""
    _set_dropout(embedder, LoraSettings().dropout if case.dropout else 0.0)
    with OutOfMemory() as ended:
        return _case(kit, embedder, optimizer, case, reference)
    optimizer.zero_grad(set_to_none=True)  # type: ignore[unreachable]
    ended.free()
    return {"error": "out of memory"}


def _set_dropout(embedder: Embedder, probability: float) -> None:
    for name, module in embedder.model.named_modules():
        if ".lora_dropout." in name and hasattr(module, "p"):
            module.p = probability


def _case(
    kit: Kit, embedder: Embedder, optimizer: torch.optim.Optimizer, case: Case, reference: float | None
) -> dict[str, Any]:
    batches = list(_batches(kit, embedder, case.triplets, case.repeats + 1))
    return timed_steps(embedder, optimizer, batches, _budget(embedder, batches[0][1], case), reference)


def timed_steps(
    embedder: Embedder,
    optimizer: torch.optim.Optimizer,
    batches: Sequence[Batch],
    budget: int | None,
    reference: float | None,
) -> dict[str, Any]:
    """What a step takes, by one on each batch; that on the first warms up.

    Args:
        embedder: that is trained. optimizer: of its weights. batches: two or more. budget: tokens at once, or None.
        reference: TFLOP a second that the device does, or None.
    """
    device = embedder.device
    setup = BatchSetup(_LOSS, chunk_tokens=budget, autocast=lambda: torch.autocast(device.type, torch.bfloat16))
    stats = []

    def step(batch: Batch) -> None:
        rows, sequences = batch
        stats.append(contrastive_backward(embedder, rows, setup, sequences=sequences, seed=len(stats)))
        torch.nn.utils.clip_grad_norm_(trainable(embedder.model).values(), 1.0)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)

    peak = memory.PeakMemory(device)
    step(batches[0])
    seconds = [timed(lambda batch=batch: step(batch), device) for batch in batches[1:]]
    median = statistics.median(seconds)
    nodes, tokens = (statistics.median(getattr(each, name) for each in stats[1:]) for name in ("nodes", "tokens"))
    flops = step_flops(embedder.model, int(nodes), cached=stats[-1].chunks > 1)
    return {
        "seconds": seconds,
        "median_seconds": median,
        "tokens": tokens,
        "nodes": nodes,
        "tokens_a_second": tokens / median,
        "nodes_a_second": nodes / median,
        "chunks": max(each.chunks for each in stats),
        "chunk_tokens": budget,
        "product_flops": flops,
        "mfu": flops / median / (reference * 1e12) if reference else None,
        "peak_bytes": peak.bytes(),
        "loss": stats[-1].loss,
    }


def _budget(embedder: Embedder, sequences: Sequence[tuple[int, ...]], case: Case) -> int | None:
    """Tokens that go through the model at once."""
    if case.chunks is None:
        return choose_chunking(embedder, texts=3 * case.triplets, bf16=True, chunk_tokens=None).tokens
    return None if case.chunks == 1 else sum(map(len, sequences)) // case.chunks


def _top_kernels(kit: Kit, embedder: Embedder, most: int = 15) -> list[dict[str, Any]]:
    """The kernels that a whole step of 60 triplets spends most time in."""
    from torch.profiler import ProfilerActivity, profile

    _set_dropout(embedder, LoraSettings().dropout)
    rows, sequences = next(_batches(kit, embedder, 4 if kit.tiny else 60, 1))
    setup = BatchSetup(_LOSS, autocast=lambda: torch.autocast("cuda", torch.bfloat16))
    with profile(activities=[ProfilerActivity.CPU, ProfilerActivity.CUDA]) as found:
        contrastive_backward(embedder, rows, setup, sequences=sequences)
        torch.cuda.synchronize()
    embedder.model.zero_grad(set_to_none=True)
    kernels = [each for each in found.key_averages() if each.device_type.name == "CUDA"]
    total = sum(each.self_device_time_total for each in kernels)
    kernels.sort(key=lambda each: -each.self_device_time_total)
    top = [
        {"kernel": each.key[:100], "calls": each.count, "ms": each.self_device_time_total / 1e3}
        for each in kernels[:most]
    ]
    return [{"kernel": "all", "calls": sum(each.count for each in kernels), "ms": total / 1e3}, *top]


def _attention_kernels(kit: Kit, embedder: Embedder) -> dict[str, Any]:
    """Which of torch's attention kernels take the largest block of a batch."""
    from torch.backends.cuda import SDPAParams, can_use_efficient_attention, can_use_flash_attention

    _, sequences = next(_batches(kit, embedder, 4 if kit.tiny else 60, 1))
    layout = embedder.layout(sequences)
    if not isinstance(layout, TreeLayout):
        return {"batches": "padded"}
    config: Any = embedder.backbone.trunk.config
    heads = config.num_attention_heads
    keys = getattr(config, "num_key_value_heads", None) or heads
    depth = getattr(config, "head_dim", None) or config.hidden_size // heads
    block = max(layout.blocks, key=lambda each: each.rows)
    query, key = (
        torch.empty(block.rows, count, block.length, depth, device=embedder.device, dtype=torch.bfloat16)
        for count in (heads, keys)
    )
    asked = SDPAParams(query, key, key, None, 0.0, True, keys != heads)
    return {
        "rows": block.rows,
        "length": block.length,
        "heads": heads,
        "key_heads": keys,
        "depth": depth,
        "flash": can_use_flash_attention(asked),
        "efficient": can_use_efficient_attention(asked),
    }


def _table(cases: dict[str, dict[str, Any]]) -> list[tuple[str, ...]]:
    table = [("step", "s", "tokens/s", "through the model/s", "chunks", "of the matrix rate", "peak GiB")]
    for name, found in cases.items():
        if "error" in found:
            table.append((name, found["error"], "", "", "", "", ""))
            continue
        mfu = "" if found["mfu"] is None else f"{found['mfu']:.1%}"
        rate = [f"{found[key]:,.0f}" for key in ("tokens_a_second", "nodes_a_second")]
        peak = "" if found["peak_bytes"] is None else gib(found["peak_bytes"])
        table.append((name, f"{found['median_seconds']:.4f}", *rate, str(found["chunks"]), mfu, peak))
    return table
