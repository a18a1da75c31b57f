"""One of several processes that take a batch's gradient together; run by tests/test_ranks.py.

rank_worker.py OUT: saves, from the first process, the loss and gradients of every case in CASES.
"""

import json
import sys
from typing import Any

import torch
from batches import a_teacher, scored_pairs, triplets, tuned
from safetensors.torch import save_file

from cft.config.schema import LossSettings, Pooling
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


def main() -> None:
    """Measure as one of several and save what the first process finds."""
    world = join_world(torch.device("cpu"))
    assert world != SINGLE_PROCESS
    found = measure(world)
    with world.main_process_first():
        if world.is_main:
            tensors = {f"{name}/{key}": grad for name, (_, grads) in found.items() for key, grad in grads.items()}
            losses = {name: loss for name, (loss, _) in found.items()}
            save_file(tensors, sys.argv[1], metadata={"losses": json.dumps(losses)})


if __name__ == "__main__":
    main()
