"""Contrastive fine-tuning: the loop from triplets to trained weights."""

import logging
import math
import time
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
from accelerate import Accelerator
from accelerate.state import AcceleratorState
from tqdm import tqdm

from cft import checkpoint
from cft.data import TrainingData, batches
from cft.embedder import Embedder
from cft.errors import UserError
from cft.evaluator import evaluate
from cft.lora import trainable
from cft.losses import ContrastiveLoss, find_false_negatives, info_nce
from cft.records import Triplet
from cft.schedule import learning_rate
from cft.settings import Config, LossSettings, TrainSettings

log = logging.getLogger(__name__)

Watcher = Callable[[dict], None]


def plan_steps(train: TrainSettings, rows: int) -> int:
    """Steps that a training takes: as many as asked, but at most its epochs have full batches for.

    Raises:
        UserError: if the data does not fill one batch.
    """
    per_epoch = rows // train.batch_size
    if per_epoch == 0:
        raise UserError(
            f"{rows} training triplets do not fill one batch of train.batch_size={train.batch_size}; "
            + (f"bring more, or set train.batch_size={rows} or less" if rows > 1 else "bring more")
        )
    return min(train.steps, train.epochs * per_epoch)


def train(
    embedder: Embedder,
    data: TrainingData,
    config: Config,
    *,
    folder: Path,
    steps: int,
    until: int,
    bf16: bool,
    watch: Watcher,
    reached: Callable[[int], None],
) -> list[dict]:
    """Train an embedder's trainable weights in place, from its last checkpoint in `folder` if there is one.

    Args:
        embedder: under the prompt of training, its trainable weights freshly initialised.
        data: triplets, holdout and development pairs.
        config: the job.
        folder: where checkpoints go.
        steps: what `plan_steps` gave: the schedule is laid over them.
        until: the step to stop after, `steps` for all; a later call goes on from there.
        bf16: run the model in bfloat16 where torch's autocast allows it.
        watch: called with every row of the history as it arises.
        reached: called with the number of every step once its update is done, before a checkpoint goes past it.

    Returns:
        The history: a row a step (`event` "step") and a row a development evaluation ("dev").

    Raises:
        UserError: on a loss or gradient that is not finite, naming the step and rows.
    """
    settings = config.train
    with _accelerator(embedder.device, bf16) as accelerator:
        if settings.gradient_checkpointing:
            recompute_activations(embedder.model)
        model = accelerator.prepare_model(embedder.model)
        embedder = Embedder(model, embedder.backbone, embedder.contract)
        weights = trainable(model)
        optimizer = torch.optim.AdamW(weights.values(), lr=config.lr, weight_decay=settings.weight_decay)
        start, history = checkpoint.load(folder, weights=weights, optimizer=optimizer)
        if start:
            log.info("continuing after step %d of %d", start, steps)

        def note(row: dict) -> None:
            history.append(row)
            watch(row)

        model.train()
        rows = batches(len(data.triplets), settings.batch_size, seed=config.seed, start=start, stop=until)
        with tqdm(rows, desc="training", unit="step", initial=start, total=until) as bar:
            for step, chosen in enumerate(bar, start=start):
                batch = [data.triplets[row] for row in chosen]
                row = _step(accelerator, embedder, optimizer, batch, config, rows=chosen, step=step, steps=steps)
                note(row)
                bar.set_postfix(loss=f"{row['loss']:.3f}", right=f"{row['accuracy']:.0%}", refresh=False)
                done = step + 1
                due = settings.eval_every and (done % settings.eval_every == 0 or done == steps)
                if due and (data.dev or data.holdout):
                    note(_develop(embedder, data, done))
                reached(done)
                if done % settings.checkpoint_every == 0 or done in (until, steps):
                    checkpoint.save(folder, step=done, history=history, weights=weights, optimizer=optimizer)
        model.eval()
    return history


def recompute_activations(model: torch.nn.Module) -> None:
    """Gradient checkpointing, in the form that works with frozen embeddings."""
    with warnings.catch_warnings():  # the call's newer name is not in all the versions that cft runs with
        warnings.simplefilter("ignore", FutureWarning)
        cast(Any, model).gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})


@contextmanager
def _accelerator(device: torch.device, bf16: bool) -> Iterator[Accelerator]:
    """One device set up by Accelerate, and its process-wide state cleared for the next job of a sweep."""
    accelerator = Accelerator(cpu=device.type == "cpu", mixed_precision="bf16" if bf16 else "no")
    try:
        if accelerator.num_processes > 1:
            raise UserError("training on several devices is not supported yet: start one process")
        yield accelerator
    finally:
        accelerator.free_memory()
        AcceleratorState._reset_state(reset_partial_state=True)


def _step(
    accelerator: Accelerator,
    embedder: Embedder,
    optimizer: torch.optim.Optimizer,
    batch: list[Triplet],
    config: Config,
    *,
    rows: np.ndarray,
    step: int,
    steps: int,
) -> dict:
    """One update of the weights on `batch`, whose row numbers are `rows`; returns its row of the history."""
    began = time.perf_counter()
    settings = config.train
    # All randomness of a step (dropout) follows from the seed and the step, so that resuming needs no random state.
    torch.manual_seed(config.seed * 1_000_003 + step)
    rate = learning_rate(config.schedule, config.lr, step, steps)
    for group in optimizer.param_groups:
        group["lr"] = rate
    parts = []
    tokens = nodes = 0
    size = len(batch) // settings.accumulation
    for start in range(0, len(batch), size):
        micro = batch[start : start + size]
        with accelerator.autocast():
            part, layout_tokens, layout_nodes = contrast(embedder, micro, config.loss)
        _require_finite(part.loss.item(), "loss", step, rows[start : start + size], micro)
        accelerator.backward(part.loss / settings.accumulation)
        parts.append(part)
        tokens, nodes = tokens + layout_tokens, nodes + layout_nodes
    if all(weight.grad is None for weight in trainable(embedder.model).values()):
        raise UserError(
            "no gradient reaches the trained weights: lora.targets name layers that no embedding runs through"
        )
    norm = accelerator.clip_grad_norm_(trainable(embedder.model).values(), settings.max_grad_norm)
    _require_finite(float(norm), "gradient", step, rows, batch)
    optimizer.step()
    optimizer.zero_grad(set_to_none=True)
    count = len(parts)
    return {
        "event": "step",
        "step": step + 1,
        "loss": sum(part.loss.item() for part in parts) / count,
        "accuracy": sum(part.accuracy for part in parts) / count,
        "candidates": sum(part.candidates for part in parts) / count,
        "lr": rate,
        "gradient_norm": float(norm),
        "tokens": tokens,
        "nodes": nodes,
        "seconds": round(time.perf_counter() - began, 3),
    }


def contrast(embedder: Embedder, batch: Sequence[Triplet], loss: LossSettings) -> tuple[ContrastiveLoss, int, int]:
    """The loss of one batch: all its texts through the model as one prefix tree.

    Args:
        embedder: with gradient.
        batch: B triplets.
        loss: which objective, at which temperature.

    Returns:
        The loss, the tokens of all texts, and the nodes that the model ran on in their stead.
    """
    anchors = [row.anchor for row in batch]
    positives = [row.positive for row in batch]
    negatives = [text for row in batch for text in row.negatives] if loss.hard_negatives else []
    layout = embedder.lay_out(embedder.tokenize(anchors + positives + negatives))
    vectors = embedder.forward(layout)
    anchor, positive, negative = vectors.split([len(anchors), len(positives), len(negatives)])
    masked = find_false_negatives(positives, negatives).to(vectors.device) if loss.mask_false_negatives else None
    # Autocast would put the similarities into bfloat16.
    with torch.autocast(vectors.device.type, enabled=False):
        result = info_nce(
            anchor,
            positive,
            negative if negatives else None,
            temperature=loss.temperature,
            false_negatives=masked,
        )
    return result, layout.tokens, layout.nodes


def _develop(embedder: Embedder, data: TrainingData, step: int) -> dict:
    """Score the embedder as it stands on development data, under the prompt of training."""
    found = evaluate(embedder, {"dev": data.dev} if data.dev else {}, data.holdout, progress="development data")
    row = {"event": "dev", "step": step, "spearman": found.scores.get("dev"), "accuracy": found.triplet_accuracy}
    said = [f"Spearman {row['spearman']:.2f}" if row["spearman"] is not None else ""]
    said += [f"{row['accuracy']:.1%} of held-out triplets in order" if row["accuracy"] is not None else ""]
    log.info("step %d, development data: %s", step, ", ".join(filter(None, said)))
    return row


def _require_finite(value: float, what: str, step: int, rows: np.ndarray, batch: Sequence[Triplet]) -> None:
    """Stop before a broken update: weights that are NaN once stay NaN."""
    if math.isfinite(value):
        return
    numbers = ", ".join(str(row + 1) for row in rows)
    anchors = "; ".join(repr(row.anchor[:40]) for row in batch[:3])
    raise UserError(
        f"the {what} of step {step + 1} is {value}; triplets {numbers} made it (counted without the holdout; their "
        f"anchors begin {anchors}). The last checkpoint is kept. Lower lr, raise loss.temperature, or set "
        "train.precision=fp32"
    )
