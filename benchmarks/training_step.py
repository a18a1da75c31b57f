"""One training step on a CPU: this package against sentence-transformers, the original's way, and the machine's limit.

    python benchmarks/training_step.py --triplets nli.jsonl.gz        # needs sentence-transformers for its part
    python benchmarks/training_step.py                                # on generated scenes

Same weights, texts, batch, loss and LoRA on all sides, in float32; losses (without dropout) are compared before
anything is timed, and the sides take turns. The limit is the time that the step's own matrix products take alone.
"""

import argparse
import json
import statistics
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch.utils._python_dispatch import TorchDispatchMode
from transformers import AutoConfig, AutoModelForCausalLM

from cft import memory
from cft.config import compose_config
from cft.contrast import contrast, texts_of
from cft.data import load_training_data
from cft.embedder import Embedder
from cft.lora import add_lora
from cft.losses import info_nce
from cft.settings import LoraSettings, LossSettings, ModelSettings
from cft.sources import fetch
from cft.tables import as_text

PADDED_TO = 150  # the reference code's
LOSS = LossSettings()


def ours(model: ModelSettings, batch: list) -> tuple[Callable[[], float], Embedder]:
    """This package: one prefix tree."""
    base = Embedder.base(model)
    embedder = Embedder(add_lora(base.model, LoraSettings(), seed=0), base.backbone, base.contract)
    return lambda: contrast(embedder, batch, LOSS).loss, embedder


def sentence_transformers(model: ModelSettings, batch: list) -> tuple[Callable[[], float], Any]:
    """Its loss in a loop: three padded passes, last-token pooling, EOS written behind every text."""
    from sentence_transformers import SentenceTransformer, losses
    from sentence_transformers.models import Normalize, Pooling, Transformer

    with tempfile.TemporaryDirectory() as folder:
        _without_chat_template(fetch(model).folder, Path(folder))
        transformer = Transformer(folder, max_seq_length=model.max_length)
    tokenizer = transformer.tokenizer
    tokenizer.pad_token = tokenizer.pad_token or tokenizer.eos_token
    whole = SentenceTransformer(
        modules=[
            transformer,
            Pooling(transformer.get_word_embedding_dimension(), pooling_mode="lasttoken"),
            Normalize(),
        ],
        device="cpu",
    )
    add_lora(transformer.auto_model, LoraSettings(), seed=0)
    loss = losses.MultipleNegativesRankingLoss(whole, scale=1 / LOSS.temperature)
    columns = [[row.anchor for row in batch], [row.positive for row in batch], [row.negatives[0] for row in batch]]
    eos = tokenizer.eos_token

    def step() -> float:
        features = [whole.preprocess([text + eos for text in column]) for column in columns]
        value = loss(features, torch.empty(0))
        value.backward()
        return value.item()

    return step, whole


def _without_chat_template(folder: Path, copy: Path) -> None:
    """The same model, but texts are not silently wrapped into a conversation."""
    for path in folder.iterdir():
        if path.name == "tokenizer_config.json":
            told = json.loads(path.read_text())
            told.pop("chat_template", None)
            (copy / path.name).write_text(json.dumps(told))
        elif path.name != "chat_template.jinja":
            (copy / path.name).symlink_to(path.resolve())


def original(model: ModelSettings, batch: list, embedder: Embedder) -> tuple[Callable[[], float], Any]:
    """The reference code's way: three passes padded to 150 on the left, language-model head, all hidden states."""
    folder = fetch(model).folder
    causal = AutoModelForCausalLM.from_config(AutoConfig.from_pretrained(folder))
    causal.base_model.load_state_dict(Embedder.base(model).model.state_dict())
    causal.set_attn_implementation("sdpa")
    add_lora(causal.base_model, LoraSettings(), seed=0)
    columns = [[row.anchor for row in batch], [row.positive for row in batch], [row.negatives[0] for row in batch]]
    filler = embedder.contract.suffix_ids[-1]

    def embed(texts: list[str]) -> torch.Tensor:
        sequences = embedder.tokenize(texts)
        ids = torch.tensor([[filler] * (PADDED_TO - len(s)) + list(s) for s in sequences])
        mask = torch.tensor([[0] * (PADDED_TO - len(s)) + [1] * len(s) for s in sequences])
        positions = (mask.cumsum(dim=1) - 1).clamp(min=0)
        out = causal(input_ids=ids, attention_mask=mask, position_ids=positions, output_hidden_states=True)
        return out.hidden_states[-1][:, -1]

    def step() -> float:
        anchor, positive, negative = (F.normalize(embed(column), dim=-1) for column in columns)
        value = info_nce(anchor, positive, negative, temperature=LOSS.temperature).loss
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


def medians(sides: dict[str, Callable[[], Any]], repeats: int) -> dict[str, float]:
    """Median seconds of each side, after one warm-up, the sides taking turns."""
    times: dict[str, list[float]] = {name: [] for name in sides}
    for turn in range(repeats + 1):
        for name, step in sides.items():
            began = time.perf_counter()
            step()
            if turn:
                times[name].append(time.perf_counter() - began)
        print(f"  turn {turn} of {repeats} done", file=sys.stderr)
    return {name: statistics.median(values) for name, values in times.items()}


def main() -> None:
    """Compare the sides and print one table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--triplets", help="a file of triplets: sent0, sent1, hard_neg; generated scenes without")
    parser.add_argument("--model", default="smollm2", help="a choice of conf/model")
    parser.add_argument("--batch", type=int, default=60, help="the paper's 60")
    parser.add_argument("--original-batch", type=int, default=7, help="what the reference script gave each GPU")
    parser.add_argument("--repeats", type=int, default=5)
    arguments = parser.parse_args()
    data = ["data=files", f"data.train={arguments.triplets}"] if arguments.triplets else []
    config = compose_config([f"model={arguments.model}", *data])
    rows = load_training_data(config.data, seed=0).triplets
    batch, small = rows[: arguments.batch], rows[: arguments.original_batch]
    table = [("step", "triplets", "time, cft's = 1", "peak memory, cft's = 1")]

    step, embedder = ours(config.model, batch)
    embedder.model.eval()
    loss = step()
    sides = {"cft": step}
    models: dict[str, Any] = {"cft": embedder.model}
    try:
        theirs, whole = sentence_transformers(config.model, batch)
        whole.eval()
        other = theirs()
        assert abs(other - loss) < 1e-4 * loss, (loss, other)
        sides["sentence-transformers"], models["sentence-transformers"] = theirs, whole
    except ImportError:
        print("sentence-transformers is not installed: its part is left out", file=sys.stderr)
    for model in models.values():
        model.train()
        model.zero_grad(set_to_none=True)
    found = medians(sides, arguments.repeats)
    layout = embedder.lay_out(embedder.tokenize(texts_of(batch, LOSS)))
    for name, seconds in found.items():
        table.append((name, str(len(batch)), f"{seconds / found['cft']:.2f}", ""))
    seconds, flops = limit(step)
    table.append(("cft's matrix products alone", str(len(batch)), f"{seconds / found['cft']:.2f}", ""))
    print(f"{flops / seconds / 1e9:.0f} GFLOP/s in matrix products, {flops / 1e9:.0f} GFLOP a step", file=sys.stderr)
    sides.clear()
    models.clear()

    step, embedder = ours(config.model, small)
    old, causal = original(config.model, small, embedder)
    embedder.model.eval()
    causal.eval()
    assert abs(old() - step()) < 1e-4 * step(), (old(), step())
    for model in (embedder.model, causal):
        model.train()
        model.zero_grad(set_to_none=True)
    found = medians({"cft": step, "the original's way": old}, max(arguments.repeats // 2, 1))
    peaks = {}
    for name, one, model in (("cft", step, embedder.model), ("original", old, causal)):
        model.zero_grad(set_to_none=True)
        peaks[name] = memory.peak_bytes(lambda one=one: one() and None, torch.device("cpu")) / 2**30
    table.append(("cft", str(len(small)), "1.00", "1.00"))
    ratios = found["the original's way"] / found["cft"], peaks["original"] / peaks["cft"]
    table.append(("the original's way", str(len(small)), *(f"{ratio:.2f}" for ratio in ratios)))
    print(
        f"\n{config.model.name}: {layout.nodes:,} nodes stand for the {layout.tokens:,} tokens of {len(batch)} triplets"
    )
    print(f"losses are equal ({loss:.5f}); medians of {arguments.repeats} on {torch.get_num_threads()} threads\n")
    print(as_text(table))


if __name__ == "__main__":
    main()
