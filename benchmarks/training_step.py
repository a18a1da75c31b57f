"""One training step on a CPU: this package against sentence-transformers, the original's way, and the machine's limit.

    python benchmarks/training_step.py --triplets nli.jsonl.gz        # needs sentence-transformers for its part
    python benchmarks/training_step.py                                # on docstrings of installed packages

Same weights, texts, batch, loss and LoRA on all sides, in float32; losses (without dropout) are compared before
anything is timed, and the sides take turns. The limit is the time that the step's own matrix products take alone.
"""

import argparse
import statistics
import sys
import time
from collections import Counter
from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from peers import its_version, medians, original, original_vectors, put_lora, sentence_transformer
from publish import Comparison, Found, publish
from torch.utils._python_dispatch import TorchDispatchMode

from cft.config.compose import compose_config
from cft.config.schema import LoraSettings, LossSettings, ModelSettings
from cft.data.training_data import load_training_data
from cft.model.embedder import Embedder
from cft.model.lora import add_lora
from cft.training import memory
from cft.training.contrastive import BatchSetup, contrastive_backward, texts_of
from cft.training.losses import info_nce

LOSS = LossSettings()
OLD_WAY = "the original's way"
WHY_LIMIT = "attention, SiLU, sums, copies and dropout are the rest"
WHY_OLD_WAY = "450 padded tokens a triplet stand against about 50 real ones, and both run at the machine's rate"


def batch_of(model: str, triplets: str | None) -> tuple[ModelSettings, list]:
    """The settings of a choice of conf/model, and the rows of a file or, without one, docstrings."""
    data = ["data=files", f"data.train={triplets}"] if triplets else []
    config = compose_config([f"model={model}", *data])
    return config.model, list(load_training_data(config.data, seed=0).triplets)


@dataclass(frozen=True)
class Where:
    """What a side runs on: the device, and whether in bfloat16, as trainings on GPUs do."""

    device: torch.device = torch.device("cpu")
    bf16: bool = False

    @property
    def dtype(self) -> torch.dtype:
        """Of the frozen base weights."""
        return torch.bfloat16 if self.bf16 else torch.float32

    def autocast(self) -> AbstractContextManager:
        """The precision that models run in."""
        return torch.autocast(self.device.type, torch.bfloat16, enabled=self.bf16)


CPU = Where()


def ours(model: ModelSettings, batch: list, where: Where = CPU) -> tuple[Callable[[], float], Embedder]:
    """This package: one prefix tree."""
    base = Embedder.base(model, device=where.device, dtype=where.dtype)
    tuned = add_lora(base.model, LoraSettings(), seed=0).to(where.device)
    embedder = Embedder(tuned, base.backbone, base.contract)
    setup = BatchSetup(LOSS, autocast=where.autocast)
    return lambda: contrastive_backward(embedder, batch, setup).loss, embedder


def _columns(batch: list) -> list[list[str]]:
    return [[row.anchor for row in batch], [row.positive for row in batch], [row.negatives[0] for row in batch]]


def theirs(model: ModelSettings, batch: list, where: Where = CPU) -> tuple[Callable[[], float], Any]:
    """Sentence-transformers: its loss in a loop, three padded passes, EOS written behind every text."""
    step, whole = their_training(model, where)
    return lambda: step(batch), whole


def their_training(
    model: ModelSettings, where: Where = CPU, lora: LoraSettings | None = None
) -> tuple[Callable[[list], float], Any]:
    """Sentence-transformers' passes, forward and backward, for any batch of triplets, and its model."""
    from sentence_transformers import losses

    whole = sentence_transformer(model, device=where.device, dtype=where.dtype)
    put_lora(whole[0].auto_model, lora)
    whole.to(where.device)
    loss = losses.MultipleNegativesRankingLoss(whole, scale=1 / LOSS.temperature)
    eos = whole.tokenizer.eos_token

    def step(batch: list) -> float:
        features = [whole.preprocess([text + eos for text in column]) for column in _columns(batch)]
        features = [
            {name: cell.to(where.device) if torch.is_tensor(cell) else cell for name, cell in one.items()}
            for one in features
        ]
        with where.autocast():
            value = loss(features, torch.empty(0, device=where.device))
        value.backward()
        return value.item()

    return step, whole


def old_way(model: ModelSettings, batch: list, embedder: Embedder) -> tuple[Callable[[], float], Any]:
    """The reference code's step: three passes padded to 150, language-model head, all hidden states."""
    causal = original(model)
    put_lora(causal.base_model)

    def step() -> float:
        found = [original_vectors(causal, embedder.tokenize(column)) for column in _columns(batch)]
        value = info_nce(*(F.normalize(vectors, dim=-1) for vectors in found), temperature=LOSS.temperature).loss
        value.backward()
        return value.item()

    return step, causal


class _Products(TorchDispatchMode):
    """Counts the matrix products of a step by their shapes."""

    def __init__(self) -> None:
        super().__init__()
        self.shapes: Counter = Counter()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = func.overloadpacket.__name__
        if name in ("mm", "bmm", "addmm"):
            one, other = args[1:3] if name == "addmm" else args[:2]
            self.shapes[(tuple(one.shape), tuple(one.stride()), tuple(other.shape), tuple(other.stride()))] += 1
        return func(*args, **(kwargs or {}))


def limit(step: Callable[[], Any]) -> tuple[float, float]:
    """Seconds of a step's matrix products run alone, and their floating-point operations."""
    with _Products() as products:
        step()
    seconds = flops = 0.0
    for (one, one_strides, other, other_strides), count in products.shapes.items():
        left = torch.randn(1 + sum((n - 1) * s for n, s in zip(one, one_strides, strict=True))).as_strided(
            one, one_strides
        )
        right_size = 1 + sum((n - 1) * s for n, s in zip(other, other_strides, strict=True))
        right = torch.randn(right_size).as_strided(other, other_strides)
        left @ right
        times = []
        for _ in range(3):
            began = time.perf_counter()
            left @ right
            times.append(time.perf_counter() - began)
        seconds += statistics.median(times) * count
        flops += 2.0 * left.numel() * other[-1] * count
    return seconds, flops


def _ready(models: list[Any]) -> None:
    """Have models in training mode, with dropout and without old gradients."""
    for model in models:
        model.train()
        model.zero_grad(set_to_none=True)


def main() -> None:
    """Compare the sides and publish one table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--triplets", help="a file of triplets: sent0, sent1, hard_neg; docstrings without")
    parser.add_argument("--model", default="smollm2", help="a choice of conf/model")
    parser.add_argument("--batch", type=int, default=60, help="the paper's 60")
    parser.add_argument("--original-batch", type=int, default=7, help="what the reference script gave each GPU")
    parser.add_argument("--repeats", type=int, default=5)
    arguments = parser.parse_args()
    model, rows = batch_of(arguments.model, arguments.triplets)
    batch, small = rows[: arguments.batch], rows[: arguments.original_batch]
    table: list[tuple[str, ...]] = [("step", "triplets", "time, cft's = 1", "peak memory, cft's = 1")]
    what = f"training step of {model.name}, {len(batch)} triplets"

    step, embedder = ours(model, batch)
    embedder.model.eval()
    loss = step()
    sides = {"cft": step}
    models = [embedder.model]
    try:
        other, whole = theirs(model, batch)
        whole.eval()
        their_loss = other()
        assert abs(their_loss - loss) < 1e-4 * loss, (their_loss, loss)
        sides[its_version()] = other
        models.append(whole)
    except ImportError:
        print("sentence-transformers is not installed: its part is left out", file=sys.stderr)
    _ready(models)
    found = medians(sides, arguments.repeats)
    layout = embedder.layout(embedder.tokenize(texts_of(batch, LOSS)))
    table += [(name, str(len(batch)), f"{seconds / found['cft']:.2f}", "") for name, seconds in found.items()]
    alone, flops = limit(step)
    table.append(("cft's matrix products alone", str(len(batch)), f"{alone / found['cft']:.2f}", ""))
    comparisons = [Comparison(what, name, found[name] / found["cft"], 3.0) for name in found if name != "cft"]
    comparisons.append(Comparison(what, "its matrix products alone", alone / found["cft"], 0.85, WHY_LIMIT))
    sides.clear()
    models.clear()

    step, embedder = ours(model, small)
    old, causal = old_way(model, small, embedder)
    embedder.model.eval()
    causal.eval()
    assert abs(old() - step()) < 1e-4 * step(), (old(), step())
    _ready([embedder.model, causal])
    found = medians({"cft": step, OLD_WAY: old}, max(arguments.repeats // 2, 1))
    peaks = {}
    for name, one, trained in (("cft", step, embedder.model), (OLD_WAY, old, causal)):
        trained.zero_grad(set_to_none=True)
        peaks[name] = memory.peak_bytes(lambda one=one: one() and None, torch.device("cpu")) / 2**30
    table.append(("cft", str(len(small)), "1.00", "1.00"))
    ratios = found[OLD_WAY] / found["cft"], peaks[OLD_WAY] / peaks["cft"]
    table.append((OLD_WAY, str(len(small)), *(f"{ratio:.2f}" for ratio in ratios)))
    few = f"training step of {model.name}, {len(small)} triplets"
    comparisons += [
        Comparison(few, OLD_WAY, ratios[0], 25.0, WHY_OLD_WAY),
        Comparison(f"peak memory of a {few}", OLD_WAY, ratios[1], 5.0),
    ]
    publish(
        "training_step",
        Found(
            title="One training step",
            command="python benchmarks/training_step.py" + (" --triplets FILE" if arguments.triplets else ""),
            table=table,
            comparisons=comparisons,
            notes=[
                f"Losses are equal ({loss:.5f}), LoRA is the paper's, elsewhere as PEFT gives it, with torch's "
                f"dropout; medians of {arguments.repeats} turns. "
                f"{layout.nodes:,} nodes stand for the {layout.tokens:,} tokens of {len(batch)} triplets; matrix "
                f"products come to {flops / 1e9:.0f} GFLOP a step, here at {flops / alone / 1e9:.0f} GFLOP a second. "
                f"{OLD_WAY.capitalize()}: three passes padded to 150 tokens, language-model head, all hidden states.",
            ],
        ),
    )


if __name__ == "__main__":
    main()
