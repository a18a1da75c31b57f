"""What is promised of a training on a CPU holds on a GPU: the same assertions on both.

    pytest -m gpu tests/promises/test_gpu.py

Tolerances follow from the precision: u is its unit roundoff, half the distance from 1 to the next number.
"""

import gc
import math
import os
from contextlib import nullcontext

import numpy as np
import pytest
import torch
from batches import assert_same, gradients, triplets, tuned
from conftest import make_tiny, write_model
from jobs import adapter_bytes, history, run_folder, settings
from safetensors.torch import load
from torch.nn.attention import SDPBackend, sdpa_kernel

from cft.batching.layout import padded_states
from cft.config.schema import Batches, LossSettings, ModelSettings, Quantization
from cft.data.records import ScoredPair
from cft.evaluation.scores import evaluate
from cft.job import runner
from cft.model import dropout
from cft.model.embedder import Embedder
from cft.model.lora import trainable
from cft.training import memory, trainer
from cft.training.contrastive import BatchSetup, contrastive_backward

# cuBLAS reads it when it is first used; without it its products may differ from one call to the next.
os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")

NO_GPU = "torch sees no CUDA device here"
CUDA = pytest.param(
    "cuda", marks=[pytest.mark.gpu, pytest.mark.skipif(torch.cuda.device_count() == 0, reason=NO_GPU)], id="cuda"
)
DEVICES = [pytest.param("cpu", id="cpu"), CUDA]
PRECISIONS = [torch.float32, torch.bfloat16]
# Of attention; the others would only be chosen again on a CPU.
KERNELS = [
    *(pytest.param(device.values[0], None, marks=device.marks, id=f"{device.id}-chosen") for device in DEVICES),
    pytest.param("cuda", SDPBackend.FLASH_ATTENTION, marks=CUDA.marks, id="cuda-flash"),
    pytest.param("cuda", SDPBackend.EFFICIENT_ATTENTION, marks=CUDA.marks, id="cuda-efficient"),
]

# Roundings in a row that a state of a tiny model went through, a layer: two norms, queries, keys and values with their
# rotation, scores, softmax, mean of values, output, gate, activation, product, down, and two sums.
STAGES, LAYERS = 16, 2
LONGEST_SUM = 64  # terms of a tiny model's sums: float32 rounds after each, bfloat16's are added up in float32


def rounding(precision: torch.dtype, *, stages: int = STAGES * LAYERS) -> float:
    """How far apart, relative to their size, two computations of the same states may be.

    Roundings have no common sign: n in a row come to about sqrt(n) u (Higham and Mary 2019, probabilistic error
    analysis). A sum's are as many as its terms in float32, and one in bfloat16. Two computations are twice as far apart.
    """
    unit = torch.finfo(precision).eps / 2
    return 2 * math.sqrt(stages * (LONGEST_SUM if precision is torch.float32 else 1)) * unit


def of_loss(precision: torch.dtype) -> float:
    """How far apart losses may be.

    A cosine of two vectors of width D moves by sqrt(2 / D) of what they do, as most of that is across them; a logit by
    1 / temperature as much, and a loss by no more than its logits.
    """
    return rounding(precision) * math.sqrt(2 / 32) / 0.05


def of_gradient(precision: torch.dtype) -> float:
    """How far apart gradients may be, relative to their size.

    The gradient at the vectors follows the softmax over candidates, whose shares move relatively as much as logits do;
    the way back has as many stages as the way there.
    """
    return rounding(precision) * (math.sqrt(2 / 32) / 0.05 + 1)


def sequences_of(embedder: Embedder, count: int) -> list[tuple[int, ...]]:
    texts = [text for row in triplets(count) for text in (row.anchor, row.positive, *row.negatives)]
    return embedder.tokenize([*texts, *(f"{text} and {texts[0]}" for text in texts)])


def to(embedder: Embedder, device: str, precision: torch.dtype = torch.float32) -> Embedder:
    embedder.model.to(device)
    for name, weight in embedder.model.named_parameters():
        if not weight.requires_grad or "lora" not in name:
            weight.data = weight.data.to(precision)
    return embedder


@pytest.mark.parametrize("device, kernel", KERNELS)
@pytest.mark.parametrize("precision", PRECISIONS, ids=str)
@pytest.mark.parametrize("family", ["llama", "phi"])  # with and without heads that share keys
def test_a_prefix_tree_gives_the_states_of_a_padded_batch(family, precision, kernel, device):
    embedder = to(make_tiny(family), device, precision)
    batching = embedder.backbone.batching
    assert batching.kind is Batches.tree
    sequences = sequences_of(embedder, 20)
    expected, layout = padded_states(embedder.model, sequences, batching)
    expected = expected[layout.last]
    try:
        with torch.no_grad(), sdpa_kernel(kernel) if kernel else nullcontext():
            found = embedder.forward(embedder.layout(sequences))
    except RuntimeError as error:
        if "No available kernel" not in str(error):
            raise
        pytest.skip(f"{kernel} attention does not take {precision} of {family}")
    assert_close_to(found, expected, rounding(precision))


def assert_close_to(found: torch.Tensor, expected: torch.Tensor, share: float) -> None:
    """Rows are within a share of their size, which is less than what tells two texts apart."""
    apart = (found - expected).norm(dim=-1) / expected.norm(dim=-1)
    assert apart.max() < share, f"{apart.max():.2g}"
    assert torch.pdist(expected.unique(dim=0)).mean() > 2 * share * expected.norm(dim=-1).mean(), "it says nothing"


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("precision", PRECISIONS, ids=str)
@pytest.mark.parametrize("family", ["llama", "phi"])
def test_loss_and_gradients_of_a_step_are_those_of_padded_batches(family, precision, device):
    batch, found = triplets(24), {}
    autocast = lambda: torch.autocast(device, torch.bfloat16, enabled=precision is torch.bfloat16)  # noqa: E731
    for kind in (Batches.tree, Batches.padded):
        embedder = to(tuned(family, batches=kind), device, precision)
        assert embedder.backbone.batching.kind is kind
        stats = contrastive_backward(embedder, batch, BatchSetup(LossSettings(), autocast=autocast))
        found[kind] = stats.loss, gradients(embedder)
    assert abs(found[Batches.tree][0] - found[Batches.padded][0]) < of_loss(precision)
    assert_same(found[Batches.tree][1], found[Batches.padded][1], share=of_gradient(precision))


@pytest.mark.gpu
@pytest.mark.skipif(torch.cuda.device_count() == 0, reason=NO_GPU)
def test_a_step_on_a_gpu_is_that_on_a_cpu():
    found = {}
    for device in ("cpu", "cuda"):
        embedder = to(tuned(), device)
        stats = contrastive_backward(embedder, triplets(24), BatchSetup(LossSettings()))
        found[device] = stats.loss, {name: gradient.cpu() for name, gradient in gradients(embedder).items()}
    assert found["cuda"][0] == pytest.approx(found["cpu"][0], abs=of_loss(torch.float32))
    assert_same(found["cuda"][1], found["cpu"][1], share=of_gradient(torch.float32))


@pytest.mark.parametrize("device", DEVICES)
def test_the_masks_of_dropout_follow_from_the_place_alone(device):
    draw = dropout.Draw(seed=12345, places=np.arange(3, 300)[::-1].copy())
    expected = dropout._hashed(draw, 7, 297, 40, torch.device("cpu"))
    assert torch.equal(dropout._hashed(draw, 7, 297, 40, torch.device(device)).cpu(), expected)
    assert expected.min() < -30_000 and expected.max() > 30_000


@pytest.mark.parametrize("device", DEVICES)
def test_chunks_give_the_gradient_of_the_whole_batch_with_dropout(device):
    found = {}
    for chunk in (None, 300):
        embedder = to(tuned(dropout=0.2), device)
        stats = contrastive_backward(embedder, triplets(24), BatchSetup(LossSettings(), chunk_tokens=chunk), seed=5)
        found[chunk] = stats.loss, gradients(embedder)
        assert (stats.chunks > 1) == (chunk is not None)
    assert found[300][0] == pytest.approx(found[None][0], abs=of_loss(torch.float32))
    assert_same(found[300][1], found[None][1], share=of_gradient(torch.float32))


class Killed(Exception):
    """The end of a process."""


QUIET = ["train.eval_every=0", "data.holdout=0", "train.steps=6", "train.checkpoint_every=1"]


def disturbed_and_not(folder, device: str) -> tuple[bytes, bytes]:
    """The adapters of a training that was killed after three steps and went on, and of one that was not."""

    def on_row(row: dict) -> None:
        if row["step"] == 4:
            raise Killed

    given = [*QUIET, f"device={device}", "train.precision=fp32"]
    with pytest.raises(Killed):
        runner.run(settings(folder / "disturbed", *given), on_row=on_row)
    for name in ("disturbed", "undisturbed"):
        runner.run(settings(folder / name, *given))
    return adapter_bytes(folder / "disturbed"), adapter_bytes(folder / "undisturbed")


@pytest.mark.parametrize("device", DEVICES)
def test_a_killed_training_that_goes_on_gives_the_same_bytes(tmp_path, device):
    """On a GPU only with torch's deterministic kernels: gradients of shared tokens are added up in any order else."""
    before = torch.are_deterministic_algorithms_enabled()
    torch.use_deterministic_algorithms(device == "cuda", warn_only=True)
    try:
        one, other = disturbed_and_not(tmp_path, device)
    finally:
        torch.use_deterministic_algorithms(before)
    assert one == other


@pytest.mark.parametrize("device", DEVICES)
def test_with_any_kernels_it_gives_the_same_training_up_to_rounding(tmp_path, device):
    one, other = map(load, disturbed_and_not(tmp_path, device))
    losses = [
        [row["loss"] for row in history(run_folder(tmp_path / name)) if row["event"] == "step"]
        for name in ("disturbed", "undisturbed")
    ]
    assert losses[0] == pytest.approx(losses[1], abs=1e-3)
    # AdamW moves a weight by at most about lr a step, in a direction that rounding may turn where a gradient is near 0
    rate = max(row["lr"] for row in history(run_folder(tmp_path / "disturbed")) if row["event"] == "step")
    for name, weight in one.items():
        assert (weight - other[name]).abs().max() <= 2 * 6 * rate, name
        assert (weight - other[name]).norm() <= 0.05 * rate * math.sqrt(weight.numel()), name


def one_step(folder, device: str, monkeypatch, *given: str) -> tuple[dict[str, torch.Tensor], list[int]]:
    """The gradients of a training's only step, and the budgets of tokens that it had."""
    kept, update = {}, trainer._update

    def look(state, batch, *, step):
        kept.update({name: weight.grad.clone() for name, weight in trainable(state.embedder.model).items()})
        return update(state, batch, step=step)

    with monkeypatch.context() as patch:
        patch.setattr(trainer, "_update", look)
        more = ["train.steps=1", "train.batch_size=1200", "data.rows=1400", "train.precision=fp32", f"device={device}"]
        runner.run(settings(folder, *QUIET, *more, *given))
    return kept, [row["chunk_tokens"] for row in history(run_folder(folder)) if row["event"] == "step"]


@pytest.mark.gpu
@pytest.mark.skipif(torch.cuda.device_count() == 0, reason=NO_GPU)
def test_a_gpu_out_of_memory_leads_to_chunks_and_the_same_gradients(tmp_path, monkeypatch):
    """The other ways that memory runs out are made up in training/test_chunking.py; this one is real."""
    device, plenty = torch.device("cuda"), ["train.chunk_tokens=10000000"]
    peaks, step = [], trainer._step
    with monkeypatch.context() as patch:

        def measured(state, batch, *, step_of=step, **options):
            rows = []
            peaks.append(memory.peak_bytes(lambda: rows.append(step_of(state, batch, **options)), device))
            return rows[0]

        patch.setattr(trainer, "_step", measured)
        expected, budgets = one_step(tmp_path / "whole", "cuda", monkeypatch, *plenty)
    assert budgets == [10_000_000]
    gc.collect()
    torch.cuda.empty_cache()
    limit = torch.cuda.memory_reserved(device) + 0.6 * peaks[0]
    torch.cuda.set_per_process_memory_fraction(limit / torch.cuda.get_device_properties(device).total_memory)
    try:
        found, budgets = one_step(tmp_path / "little", "cuda", monkeypatch, *plenty)
    finally:
        torch.cuda.set_per_process_memory_fraction(1.0)
    assert budgets[0] < 10_000_000, "memory did not run out"
    assert_same(found, expected, share=of_gradient(torch.float32))


@pytest.mark.parametrize("device", DEVICES)
def test_four_bit_weights_are_trained_on(tmp_path, device):
    pytest.importorskip("bitsandbytes", reason="needs bitsandbytes: pip install 'cft[qlora]' runs this test")
    sizes = {"hidden_size": 256, "intermediate_size": 512, "num_key_value_heads": 4, "head_dim": 64}
    folder = write_model(tmp_path / "model", "llama", **sizes)
    texts = ["A man is playing.", "Two dogs run.", "Nobody sleeps here."]
    exact = Embedder.base(ModelSettings(path=str(folder)), device=device).encode(texts)
    small = Embedder.base(ModelSettings(path=str(folder), quantization=Quantization.nf4), device=device)
    assert small.device.type == device
    cosines = (exact * small.encode(texts)).sum(axis=1)
    assert (cosines > 0.95).all() and (cosines < 0.9999).all()
    given = [f"model.path={folder}", "model.quantization=nf4", f"device={device}"]
    runner.run(settings(tmp_path / "outputs", *QUIET, *given))
    rows = history(run_folder(tmp_path / "outputs"))
    assert all(math.isfinite(row["loss"]) for row in rows)
    loaded = Embedder.load(run_folder(tmp_path / "outputs"), device=device)
    assert np.abs(loaded.encode(texts) - small.encode(texts)).max() > 1e-6


@pytest.mark.parametrize("device", DEVICES)
def test_scores_are_those_of_a_cpu_in_float32(trained, device):
    rows = triplets(150)
    pairs = [ScoredPair(row.anchor, row.positive, float(n % 7)) for n, row in enumerate(rows)]
    here, there = Embedder.load(trained, device=device), Embedder.load(trained, device="cpu")
    assert here.device.type == device
    # A vector of length 1 moves by at most so much in every number, and a cosine by twice that.
    share = rounding(torch.float32)
    texts = [row.anchor for row in rows]
    assert np.abs(here.encode(texts) - there.encode(texts)).max() < share
    found, expected = evaluate(here, {"set": pairs}, rows), evaluate(there, {"set": pairs}, rows)
    assert np.abs(found.cosines["set"] - expected.cosines["set"]).max() < 2 * share
    assert found.scores["set"] == pytest.approx(expected.scores["set"], abs=0.1)
    assert found.triplet_accuracy == pytest.approx(expected.triplet_accuracy, abs=2 / len(rows))


def test_the_assertions_see_a_tree_that_is_wrong(monkeypatch):
    """The tolerances are not so wide that a mistake would pass: a text's last token is taken for the one before."""
    embedder = make_tiny("llama")
    sequences = sequences_of(embedder, 20)
    expected, layout = padded_states(embedder.model, sequences, embedder.backbone.batching)
    wrong = embedder.forward(embedder.layout([(*s[:-2], s[-1]) for s in sequences])).detach()
    for precision in PRECISIONS:
        with pytest.raises(AssertionError):
            assert_close_to(wrong, expected[layout.last], rounding(precision))
