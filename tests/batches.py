"""Batches of triplets, tuned tiny models and their gradients."""

from collections.abc import Mapping
from types import MappingProxyType

import torch
from conftest import make_tiny

from cft.config.schema import Attention, DistillSettings, LoraSettings, Pooling
from cft.data.records import ScoredPair, Triplet
from cft.model.embedder import Embedder
from cft.model.lora import add_lora, trainable
from cft.training.contrastive import Teacher

WORDS = "man woman dog plays sleeps runs guitar field nobody two small red house reads book".split()

NONE: Mapping[str, object] = MappingProxyType({})

TEACHER = ["distill=minilm", "model@distill.model=tiny", "distill.model.path=random:bert"]
TEACHER = [*TEACHER, "distill.model.attention=bidirectional", "distill.model.pooling=mean"]


def triplets(count: int, negatives: int = 1) -> list[Triplet]:
    generator = torch.Generator().manual_seed(count)

    def text() -> str:
        return " ".join(WORDS[i] for i in torch.randint(len(WORDS), (4,), generator=generator))

    return [Triplet(text(), text(), tuple(text() for _ in range(negatives))) for _ in range(count)]


def scored_pairs(count: int) -> list[ScoredPair]:
    return [ScoredPair(row.anchor, row.positive, float(n % 3)) for n, row in enumerate(triplets(count))]


def tuned(
    family: str = "llama", dropout: float = 0.0, lora: Mapping[str, object] = NONE, **settings: object
) -> Embedder:
    """A tiny model whose LoRA does something, in training mode; `lora`: more of its settings."""
    base = make_tiny(family, **settings)
    given = LoraSettings(**{"rank": 4, "dropout": dropout, "targets": ["all-linear"], **lora})
    model = add_lora(base.model, given, seed=0)
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for name, weight in trainable(model).items():
            if "lora_B" in name:
                weight.normal_(0, 0.05, generator=generator)
    return Embedder(model.train(), base.backbone, base.contract)


def gradients(embedder: Embedder) -> dict[str, torch.Tensor]:
    found = {name: weight.grad.clone() for name, weight in trainable(embedder.model).items()}
    embedder.model.zero_grad(set_to_none=True)
    return found


def assert_same(found: dict, expected: dict, share: float = 1e-5) -> None:
    whole = torch.cat([gradient.flatten() for gradient in expected.values()]).norm()
    assert whole > 1e-3 and found.keys() == expected.keys()
    for name, gradient in expected.items():
        assert (found[name] - gradient).norm() < share * whole, name


def a_teacher(**settings: float) -> Teacher:
    return Teacher(
        make_tiny("bert", attention=Attention.bidirectional, pooling=Pooling.mean), DistillSettings(**settings)
    )
