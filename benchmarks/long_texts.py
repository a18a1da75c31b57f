"""Long texts that share no beginnings: a training step and embedding on prefix trees against padded batches.

    python benchmarks/long_texts.py

Questions of 8 to 20 tokens look for documents of half of a length up to all of it. Both sides have the same weights and
token ids; losses and vectors are compared first, then the sides take turns.
"""

import argparse
from collections.abc import Callable
from dataclasses import replace

import numpy as np
import torch
from peers import medians
from publish import Comparison, Found, publish

from cft.config.compose import compose_model
from cft.config.schema import Batches, LoraSettings, LossSettings, ModelSettings
from cft.data.records import Triplet
from cft.model.embedder import Embedder
from cft.model.lora import add_lora
from cft.training.contrastive import BatchSetup, contrastive_backward
from cft.training.memory import peak_bytes

LENGTHS = (64, 128, 256, 512)
TOKENS = 2048  # of a batch's documents, at most: as many as 60 NLI triplets have
LOSS = LossSettings(hard_negatives=False)
# Of the loss, and of a vector's coordinates: the same sums in another order.
TOLERANCE = 1e-4
CPU = torch.device("cpu")


def sequences(length: int, vocabulary: int) -> list[tuple[int, ...]]:
    """Token ids of a batch: questions, then their documents, which begin differently."""
    draw = np.random.default_rng(length)
    rows = TOKENS // length
    lengths = [*draw.integers(8, 21, rows), *draw.integers(length // 2, length + 1, rows)]
    return [tuple(draw.integers(5, vocabulary, size).tolist()) for size in lengths]


def side(settings: ModelSettings, kind: Batches, length: int) -> Embedder:
    """The model with a LoRA to train, without dropout, on one kind of batch."""
    base = Embedder.base(replace(settings, batches=kind, max_length=length))
    tuned = Embedder(add_lora(base.model, LoraSettings(dropout=0.0), seed=0), base.backbone, base.contract)
    tuned.model.train()
    return tuned


def work(embedder: Embedder, ids: list[tuple[int, ...]]) -> tuple[Callable[[], float], Callable[[], torch.Tensor]]:
    """A step, which gives its loss, and embedding the documents without gradient."""
    rows = [Triplet(f"a{number}", f"p{number}", ()) for number in range(len(ids) // 2)]

    def step() -> float:
        return contrastive_backward(embedder, rows, BatchSetup(LOSS), sequences=ids).loss

    def encode() -> torch.Tensor:
        with torch.no_grad():
            return embedder.forward(embedder.layout(ids[len(rows) :]))

    return step, encode


def main() -> None:
    """Compare both sides at every length and publish one table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", default="smollm2", help="a choice of conf/model")
    parser.add_argument("--repeats", type=int, default=3)
    given = parser.parse_args()
    settings = compose_model(given.model)
    table: list[tuple[str, ...]] = [("longest document, tokens", "step", "embedding", "memory of a step")]
    comparisons = []
    for length in LENGTHS:
        embedders = {kind: side(settings, kind, length) for kind in (Batches.tree, Batches.padded)}
        ids = sequences(length, embedders[Batches.tree].backbone.vocabulary)
        (step, encode), (padded_step, padded_encode) = (work(each, ids) for each in embedders.values())
        assert abs(step() - padded_step()) < TOLERANCE
        assert (encode() - padded_encode()).abs().max() < TOLERANCE
        steps = medians({"tree": step, "padded": padded_step}, given.repeats)
        vectors = medians({"tree": encode, "padded": padded_encode}, given.repeats)
        peaks = {"tree": peak_bytes(step, CPU), "padded": peak_bytes(padded_step, CPU)}
        ratios = [found["padded"] / found["tree"] for found in (steps, vectors, peaks)]
        table.append((str(length), *(f"{ratio:.2f}" for ratio in ratios)))
        what = f"questions and documents of {length // 2} to {length} tokens, {given.model}"
        comparisons.append(Comparison(f"training step, {what}", "padded batches", ratios[0], 1.0))
    publish(
        "long_texts",
        Found(
            title="Long texts",
            command="python benchmarks/long_texts.py",
            table=table,
            comparisons=comparisons,
            notes=[
                "Padded batches' time and memory, prefix trees' = 1, where texts share no beginnings and a tree saves "
                f"nothing but padding. Documents of up to {TOKENS} tokens a batch; medians of {given.repeats} turns.",
            ],
        ),
    )


if __name__ == "__main__":
    main()
