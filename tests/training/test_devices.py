"""Training, scoring and embedding on a device that is not the CPU, in the ways of the code that a GPU takes."""

import contextlib
import functools

import numpy as np
import pytest
import torch
from batches import a_teacher, triplets, tuned
from conftest import make_tiny
from elsewhere import META, Elsewhere
from jobs import CAPTIONS, composed

from cft.batching import layout
from cft.config.schema import Attention, Batches, LossSettings, ModelSettings, Pooling
from cft.data.records import ScoredPair
from cft.data.training_data import load_training_data
from cft.evaluation.scores import evaluate
from cft.model import backbone
from cft.model.embedder import Embedder
from cft.model.lora import trainable
from cft.model.sources import fetch
from cft.training import chunking, trainer
from cft.training.contrastive import BatchSetup, Guide, contrastive_backward
from cft.training.trainer import TrainingRun, recompute_activations


@pytest.fixture(autouse=True)
def no_autocast(monkeypatch) -> None:
    """The other device has none."""
    monkeypatch.setattr(torch, "autocast", lambda *given, **options: contextlib.nullcontext())


def moved(embedder: Embedder) -> Embedder:
    embedder.model.to(META)
    return embedder


LOSSES = {
    "plain": LossSettings(),
    "masked": LossSettings(mask_false_negatives=True),
    "both ways": LossSettings(both_directions=True, mask_false_negatives=True),
    "anchors": LossSettings(anchors_as_negatives=True),
    "widths": LossSettings(dimensions=[8, 16]),
    "in batch": LossSettings(hard_negatives=False),
}


def test_what_is_on_two_devices_is_refused():
    here, there = torch.ones(3), torch.ones(3, device=META)
    with Elsewhere() as mode:
        torch.testing.assert_close((there * torch.tensor(2.0)).shape, torch.Size([3]))
        for mix in (
            lambda: here + there,
            lambda: there.index_select(0, torch.tensor([0])),
            lambda: torch.stack([there.sum(), torch.tensor(1.0)]),
        ):
            with pytest.raises(AssertionError, match="mixes devices"):
                mix()
        with pytest.raises(AssertionError, match="runs on the CPU"):
            torch.ones(2, 2) @ torch.ones(2, 2)
        with pytest.raises(TypeError, match="meta"):
            there.numpy()
    assert mode.operations > 1 and not mode.copies


@pytest.mark.parametrize("chunk", [None, 250], ids=["whole", "in chunks"])
@pytest.mark.parametrize("loss", LOSSES)
def test_a_step_mixes_no_devices(loss, chunk):
    embedder = moved(tuned(dropout=0.1))
    setup = BatchSetup(LOSSES[loss], chunk_tokens=chunk)
    with Elsewhere() as mode:
        stats = contrastive_backward(embedder, triplets(6), setup)
    assert stats.chunks == 1 if chunk is None else stats.chunks > 1
    assert mode.operations > 200
    gradients = [weight.grad for weight in trainable(embedder.model).values()]
    assert gradients and all(gradient is not None and gradient.device == META for gradient in gradients)


@pytest.mark.parametrize("beside", ["teacher", "guide", "checkpointing"])
def test_a_step_with_a_model_beside_it_or_recomputed_layers_mixes_no_devices(beside):
    embedder, setup = moved(tuned(dropout=0.1)), BatchSetup(LossSettings(), chunk_tokens=250)
    if beside == "teacher":
        teacher = a_teacher(share=0.5)
        moved(teacher.embedder)
        setup = BatchSetup(LossSettings(mask_false_negatives=True), teacher=teacher, chunk_tokens=250)
    elif beside == "guide":
        setup = BatchSetup(LossSettings(), guide=Guide(moved(make_tiny("llama"))), chunk_tokens=250)
    else:
        recompute_activations(embedder.model)
    with Elsewhere() as mode:
        contrastive_backward(embedder, triplets(6), setup)
    assert mode.operations > 200
    assert all(weight.grad.device == META for weight in trainable(embedder.model).values())


@pytest.mark.parametrize("pooling", list(Pooling), ids=str)
@pytest.mark.parametrize(
    "family, settings",
    [
        ("llama", {}),
        ("llama", {"batches": Batches.padded}),
        ("gpt2", {}),
        ("phi", {}),
        ("gemma", {}),
        ("bert", {"attention": Attention.bidirectional}),
        ("bloom", {}),  # padded by a trial
    ],
    ids=str,
)
def test_embedding_and_scoring_mix_no_devices(family, settings, pooling):
    embedder = moved(make_tiny(family, pooling=pooling, **settings))
    pairs = [ScoredPair(row.anchor, row.positive, float(number)) for number, row in enumerate(triplets(8))]
    with Elsewhere() as mode:
        found = evaluate(embedder, {"set": pairs}, triplets(5))
    assert np.isfinite(found.scores["set"]) and found.triplet_accuracy is not None
    assert mode.copies, "the vectors came from the other device"


@pytest.mark.parametrize("family", ["llama", "phi", "gemma", "bloom"])
def test_the_trial_at_loading_mixes_no_devices(family, monkeypatch):
    look = layout._attends_ahead
    monkeypatch.setattr(layout, "_attends_ahead", lambda *given: bool(look(*given)) and False)  # numbers are made up
    model = ModelSettings(name="tiny", path=f"random:{family}")
    with Elsewhere() as mode:
        found = backbone.load_backbone(model, fetch(model), dtype=torch.bfloat16, device=META)
    assert mode.operations > 200 and found.batching.kind in Batches
    assert next(found.trunk.parameters()).device == META


def test_a_whole_training_mixes_no_devices_and_goes_on_from_its_checkpoint(tmp_path, monkeypatch):
    config = composed(
        *CAPTIONS,
        *"model=tiny logger=none train.steps=4 train.batch_size=8 data.rows=80 data.holdout=8 eval.rows=20".split(),
        *"train.eval_every=2 train.checkpoint_every=1 train.best=true lora.dropout=0.1".split(),
    )
    data = load_training_data(config.data, seed=0)
    monkeypatch.setattr(chunking, "available_bytes", lambda device: 2**40)
    rows: list[dict] = []
    run = functools.partial(TrainingRun, config, data, tmp_path, steps=4)
    for stop in (2, 4):
        embedder = moved(tuned())
        with Elsewhere() as mode:
            trainer.train(embedder, run(stop_at=stop), on_row=rows.append, on_step=lambda step: None)
        assert mode.operations > 1000
    assert [row["step"] for row in rows if row["event"] == "step"] == [1, 2, 3, 4]
    assert [row["step"] for row in rows if row["event"] == "dev"] == [2, 4]
