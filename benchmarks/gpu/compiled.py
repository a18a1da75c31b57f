"""Whether torch.compile or a CUDA graph would make a step faster: tried and reported, nothing is changed.

The step is a forward and backward pass of one batch without dropout, as cft's masks are drawn between the kernels. A
graph replays one layout alone, and every batch has another: its ratio is a bound, what launching kernels costs.
"""

import statistics
from collections.abc import Callable
from typing import Any

import torch
from peers import timed

from cft.batching.layout import Layout
from cft.config.schema import LoraSettings, LossSettings
from cft.model.embedder import Embedder
from cft.model.lora import trainable
from cft.training.contrastive import texts_of
from gpu.kit import Kit, Note, words_as_tokens
from gpu.shapes import random_embedder

Step = Callable[[Layout], None]

SHAPE = "minicpm"  # the paper's own, and the one with most layers
GRAPH = "CUDA graph of one layout"
WORTH = 1.1  # what would be kept
_CLOSE = 0.05  # of a gradient's size: bfloat16, added up in another order


def run(kit: Kit, note: Note) -> dict[str, Any]:
    """Ratios of the plain step's time to each way's, above 1 where the way is faster; a way that fails says why."""
    embedder = random_embedder(SHAPE, kit.device, tiny=kit.tiny, lora=LoraSettings(dropout=0.0))
    layouts = _layouts(kit, embedder, 2)
    repeats = 2 if kit.tiny else 8
    plain = _plain(embedder)
    seconds = _median(lambda: plain(layouts[0]), repeats, kit.device)
    expected = _gradient(embedder)
    facts: dict[str, Any] = {"shape": SHAPE, "nodes": [each.nodes for each in layouts], "seconds": seconds, "ways": {}}
    ways: dict[str, Callable[[], Step]] = {
        "compiled feed-forward blocks": lambda: _compiled(kit, embedder, "mlp"),
        # A capture that fails may spoil what comes after it, and compiling layers may take all the time that is left.
        GRAPH: lambda: _graph(embedder, layouts[0]),
        "compiled layers": lambda: _compiled(kit, embedder, "layers"),
    }
    if kit.tiny:  # minutes of tracing on a CPU that is busy
        del ways["compiled layers"]
    for name, make in ways.items():
        usable = layouts[:1] if name == GRAPH else layouts
        facts["ways"][name] = _tried(kit, embedder, make, usable, (repeats, seconds, expected))
        note(facts)
    table = [("way", "s", "plain is 1", "first time, s", "another layout, s", "worth it")]
    table.append(("plain", f"{seconds:.4f}", "1.00", "", "", ""))
    for name, found in facts["ways"].items():
        if "error" in found:
            table.append((name, found["error"][:120], "", "", "", ""))
            continue
        cells = [f"{found['seconds']:.4f}", f"{found['ratio']:.2f}", f"{found['first']:.1f}"]
        other = "" if found["other_layout"] is None else f"{found['other_layout']:.2f}"
        table.append((name, *cells, other, "yes" if found["ratio"] >= WORTH else "no"))
    return facts | {"table": table}


def _layouts(kit: Kit, embedder: Embedder, count: int) -> list[Layout]:
    size = 4 if kit.tiny else 60
    rows = kit.rows(size * count)
    vocabulary = embedder.backbone.vocabulary
    parts = (rows[start : start + size] for start in range(0, size * count, size))
    return [embedder.layout(words_as_tokens(texts_of(part, LossSettings()), vocabulary)) for part in parts]


def _plain(embedder: Embedder) -> Step:
    def step(layout: Layout) -> None:
        for weight in trainable(embedder.model).values():
            if weight.grad is not None:
                weight.grad.zero_()  # in place: a graph writes where it wrote before
        # a cast that was kept in another pass would be no part of a graph
        with torch.autocast(embedder.device.type, torch.bfloat16, cache_enabled=False):
            vectors = embedder.forward(layout)
        vectors.square().mean().backward()

    return step


def _gradient(embedder: Embedder) -> torch.Tensor:
    """Of all trained weights, as one vector, in float32."""
    found = [weight.grad for weight in trainable(embedder.model).values()]
    return torch.cat([gradient.detach().float().flatten() for gradient in found if gradient is not None])


def _graph(embedder: Embedder, layout: Layout) -> Step:
    if embedder.device.type != "cuda":
        raise RuntimeError("CUDA graphs are CUDA's alone")
    step = _plain(embedder)
    beside = torch.cuda.Stream()
    beside.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(beside):
        for _ in range(3):
            step(layout)
    torch.cuda.current_stream().wait_stream(beside)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        step(layout)
    return lambda _: graph.replay()


def _compiled(kit: Kit, embedder: Embedder, what: str) -> Step:
    torch._dynamo.reset()
    options: dict[str, Any] = {"dynamic": True, "backend": "eager" if kit.tiny else "inductor"}
    for layer in embedder.backbone.trunk.layers:
        (layer.mlp if what == "mlp" else layer).compile(**options)
    return _plain(embedder)


def _tried(
    kit: Kit,
    embedder: Embedder,
    make: Callable[[], Step],
    layouts: list[Layout],
    plain: tuple[int, float, torch.Tensor],
) -> dict[str, Any]:
    """One way beside the plain step, of which repeats, seconds and gradient are given; a graph has one layout alone."""
    repeats, seconds, expected = plain
    try:
        made: list[Step] = []
        first = timed(lambda: made.append(make()) or made[0](layouts[0]), kit.device)
        (step,) = made
        apart = float((_gradient(embedder) - expected).norm() / expected.norm())
        assert apart < _CLOSE, f"its gradient is off by {apart:.2g} of its size"
        other = None if len(layouts) == 1 else timed(lambda: step(layouts[1]), kit.device)
        median = _median(lambda: step(layouts[0]), repeats, kit.device)
        return {
            "seconds": median,
            "ratio": seconds / median,
            "first": first,
            "other_layout": other,
            "gradient_apart": apart,
        }
    except Exception as error:  # whatever compilers raise is the answer to whether it works
        return {"error": f"{type(error).__name__}: {str(error).strip().splitlines()[0] if str(error) else ''}"}
    finally:
        for layer in embedder.backbone.trunk.layers:
            layer._compiled_call_impl = layer.mlp._compiled_call_impl = None


def _median(work: Callable[[], Any], repeats: int, device: torch.device) -> float:
    timed(work, device)
    return statistics.median(timed(work, device) for _ in range(repeats))
