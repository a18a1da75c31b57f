"""One of several processes that take a batch's gradient together; run by tests/test_ranks.py.

rank_worker.py OUT: saves, from the first process, the loss and gradients of every case in CASES, vectors that all
processes embedded together, and how many texts went through the model of each.
"""

import json
import sys
from typing import Any

import numpy as np
import torch
from batches import a_teacher, scored_pairs, triplets, tuned
from safetensors.torch import save_file

from cft.config.schema import LossSettings, Pooling, Prompts, Role
from cft.job.sharing import help_out, helped, shared
from cft.model.embedder import Embedder
from cft.model.lora import trainable
from cft.system.distributed import SINGLE_PROCESS, World, join_world
from cft.training.contrastive import BatchSetup, Guide, contrastive_backward

ECHO = "texts that go in twice, uneven, in chunks"
LAYERS = "all layers by their weights, uneven, in chunks"
TAUGHT = "taught, both ways, uneven, in chunks"
SCORED = "scored pairs, uneven, in chunks"
GUIDED = "guided, all candidates, uneven, in chunks"

# Loss, hard negatives a triplet, rows of the batch, tokens of a chunk.
CASES = {
    "eq. 1": (LossSettings(), 1, 12, None),
    "eq. 1 in chunks": (LossSettings(), 1, 12, 60),
    "eq. 2": (LossSettings(hard_negatives=False), 1, 12, None),
    "uneven shares, three negatives": (LossSettings(), 3, 7, None),
    "masked, uneven, in chunks": (LossSettings(mask_false_negatives=True), 2, 7, 60),
    "anchors, both ways, uneven, in chunks": (
        LossSettings(both_directions=True, anchors_as_negatives=True, mask_false_negatives=True),
        2,
        7,
        60,
    ),
    ECHO: (LossSettings(both_directions=True), 1, 7, 100),
    LAYERS: (LossSettings(both_directions=True), 1, 7, 60),
    TAUGHT: (LossSettings(both_directions=True), 2, 7, 60),
    SCORED: (LossSettings(scored="cosent", scored_weight=2.0), 1, 7, 60),
    "angle, uneven": (LossSettings(scored="angle", dimensions=[16]), 1, 7, None),
    "scored pairs alone, uneven, in chunks": (LossSettings(scored="cosent", hard_negatives=False), 0, 0, 40),
    "angle alone, uneven": (LossSettings(scored="angle", hard_negatives=False, dimensions=[16]), 0, 0, None),
    GUIDED: (LossSettings(both_directions=True, anchors_as_negatives=True, guide="tiny", guide_margin=0.05), 2, 7, 60),
}

# How texts are pooled, of cases in which it is not by the last token of the last layer.
POOLED: dict[str, dict[str, Any]] = {
    ECHO: {"echo": True, "pooling": Pooling.weighted_mean},
    LAYERS: {"layer_weights": True, "pooling": Pooling.mean},
}


def measure(world: World) -> dict[str, tuple[float, dict[str, torch.Tensor]]]:
    """Loss and gradients of every case, summed over the processes."""
    found = {}
    for name, (loss, negatives, rows, chunk_tokens) in CASES.items():
        batch = triplets(rows, negatives)
        if batch:  # or scored pairs alone
            batch[3] = batch[3]._replace(positive=batch[1].positive)
        embedder = tuned(**POOLED.get(name, {}))
        teacher = a_teacher(share=0.7) if name == TAUGHT else None
        guide = Guide(a_teacher().embedder) if name == GUIDED else None
        setup = BatchSetup(loss, teacher=teacher, guide=guide, chunk_tokens=chunk_tokens, world=world)
        part = contrastive_backward(embedder, batch, setup, pairs=scored_pairs(5) if loss.scored else ())
        weights = trainable(embedder.model)
        unused = torch.nn.Parameter(torch.ones(2))  # a weight that no process has a gradient for
        world.all_reduce_gradients([*weights.values(), unused])
        assert unused.grad is None
        found[name] = (part.loss + part.scored, {key: weight.grad for key, weight in weights.items()})
    return found


TEXTS = [f"{number % 17} birds in {word}" for number in range(40) for word in ("a tree", "trees")] + ["one"]
PROMPTS = Prompts("q: {text}", document="d: {text}")


def embed(world: World) -> tuple[np.ndarray, list[int]]:
    """Vectors of TEXTS, of some of them as documents, and of one alone; and the texts that each process embedded."""
    embedded: list[str] = []
    whole = Embedder.encode
    Embedder.encode = lambda self, texts, **options: embedded.extend(texts) or whole(self, texts, **options)
    found = np.empty(0)
    if world.is_main:
        with helped(world):
            embedder = shared(tuned(), "tuned", world).with_prompts(PROMPTS)
            parts = [embedder.encode(TEXTS), embedder.in_role(Role.document).encode(TEXTS[:9]), embedder.encode(["x"])]
            found = np.concatenate(parts)
    else:
        help_out({"tuned": tuned}, world)
    Embedder.encode = whole
    counts = [world.all_reduce_max(len(embedded) if rank == world.rank else 0) for rank in range(world.size)]
    return found, counts


def main() -> None:
    """Measure as one of several and save what the first process finds."""
    world = join_world(torch.device("cpu"))
    assert world != SINGLE_PROCESS
    found = measure(world)
    vectors, counts = embed(world)
    with world.main_process_first():
        if world.is_main:
            tensors = {f"{name}/{key}": grad for name, (_, grads) in found.items() for key, grad in grads.items()}
            losses = {name: loss for name, (loss, _) in found.items()}
            tensors["vectors"] = torch.from_numpy(vectors)
            save_file(tensors, sys.argv[1], metadata={"losses": json.dumps(losses), "counts": json.dumps(counts)})


if __name__ == "__main__":
    main()
