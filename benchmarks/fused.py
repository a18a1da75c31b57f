"""One training step on a CPU: parts of a block as one function each, against transformers' and PEFT's own.

    python benchmarks/fused.py --triplets nli.jsonl.gz
    python benchmarks/fused.py --triplets nli.jsonl.gz --bf16        # where the CPU multiplies it

All sides are the same model, which is switched between turns; its loss and gradient are compared before anything is
timed.
"""

import argparse
import statistics
import time
from collections.abc import Callable
from types import MethodType
from typing import Any

import torch
from publish import Comparison, Found, publish
from training_step import CPU, Where, batch_of, ours

from cft.model.embedder import Embedder
from cft.model.lora import trainable

OWN = "transformers and PEFT"
# By the functions that modules are given.
PARTS = {
    "_norm_forward": "norms",
    "_gated_forward": "gated layers",
    "forward": "rotations",
    "_updated_forward": "low-rank updates",
}


def switches(model: torch.nn.Module) -> dict[str, list[tuple[torch.nn.Module, MethodType]]]:
    """The modules that run as one function, by part, and those functions."""
    found: dict[str, list[tuple[torch.nn.Module, MethodType]]] = {name: [] for name in PARTS.values()}
    for module in model.modules():
        forward = module.__dict__.get("forward")
        if forward is not None:
            found[PARTS[forward.__func__.__name__]].append((module, forward))
    return found


def use(parts: dict[str, list[tuple[torch.nn.Module, MethodType]]], wanted: tuple[str, ...]) -> None:
    """Have the modules of the wanted parts run as one function, and the others as their classes do."""
    for name, modules in parts.items():
        for module, forward in modules:
            module.__dict__.pop("forward", None)
            if name in wanted:
                module.forward = forward


def gradient_of(step: Callable[[], float], embedder: Embedder) -> torch.Tensor:
    """Of all trained weights, without dropout."""
    embedder.model.eval()
    embedder.model.zero_grad(set_to_none=True)
    step()
    found = torch.cat([weight.grad.flatten() for weight in trainable(embedder.model).values()])
    embedder.model.train()
    return found


def main() -> None:
    """Compare the parts and publish one table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--triplets", help="a file of triplets: sent0, sent1, hard_neg; docstrings without")
    parser.add_argument("--model", default="smollm2", help="a choice of conf/model")
    parser.add_argument("--batch", type=int, default=60)
    parser.add_argument("--repeats", type=int, default=9)
    parser.add_argument("--bf16", action="store_true", help="in bfloat16 instead of float32")
    arguments = parser.parse_args()
    model, rows = batch_of(arguments.model, arguments.triplets)
    step, embedder = ours(model, rows[: arguments.batch], Where(CPU.device, bf16=arguments.bf16))
    parts = switches(embedder.model)
    sides: dict[str, tuple[str, ...]] = {OWN: ()} | {name: (name,) for name, found in parts.items() if found}
    sides["all of them"] = tuple(parts)
    apart = compared(step, embedder, parts, sides)
    seconds: dict[str, list[float]] = {name: [] for name in sides}
    for turn in range(arguments.repeats):
        order = list(sides)
        for name in order[turn % len(order) :] + order[: turn % len(order)]:  # none is always behind the same one
            use(parts, sides[name])
            began = time.perf_counter()
            step()
            seconds[name].append(time.perf_counter() - began)
    # turn by turn: a shared machine is faster in one minute than in another
    share = {
        name: statistics.median(one / own for one, own in zip(taken, seconds[OWN], strict=True))
        for name, taken in seconds.items()
    }
    precision = "bfloat16" if arguments.bf16 else "float32"
    what = f"training step of {model.name}, {arguments.batch} triplets, {precision}"
    table: list[tuple[str, ...]] = [("one function each", "modules", f"time, {OWN} = 1")]
    table += [(name, str(len(parts.get(name, ())) or ""), f"{each:.2f}") for name, each in share.items()]
    publish(
        "fused_bf16" if arguments.bf16 else "fused",
        Found(
            title=f"Parts of a block as one function each, {precision}",
            command="python benchmarks/fused.py"
            + (" --triplets FILE" if arguments.triplets else "")
            + (" --bf16" if arguments.bf16 else ""),
            table=table,
            comparisons=[
                Comparison(what, "the same model as transformers and PEFT compute it", 1 / share["all of them"])
            ],
            notes=[
                f"Medians of {arguments.repeats} turns. Gradients of all trained weights differ from the first row's "
                f"by {apart:.0e} of their length at most."
            ],
        ),
        precision,
    )


def compared(
    step: Callable[[], float], embedder: Embedder, parts: dict[str, Any], sides: dict[str, tuple[str, ...]]
) -> float:
    """The largest distance of a side's gradient from the first one's, as a share of its length."""
    gradients = []
    for wanted in sides.values():
        use(parts, wanted)
        gradients.append(gradient_of(step, embedder))
    furthest = max(((each - gradients[0]).norm() / gradients[0].norm()).item() for each in gradients[1:])
    assert furthest < (0.1 if next(embedder.model.parameters()).dtype is torch.bfloat16 else 1e-5), furthest
    return furthest


if __name__ == "__main__":
    main()
