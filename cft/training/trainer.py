"""Contrastive fine-tuning: the loop from triplets to trained weights."""

import logging
import math
import time
import warnings
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
from accelerate import Accelerator
from accelerate.state import AcceleratorState
from tqdm import tqdm

from cft.config.schema import Config, TrainSettings
from cft.data.records import Triplet
from cft.data.training_data import TrainingData, batches
from cft.evaluation.scores import evaluate
from cft.model.embedder import Embedder
from cft.model.lora import trainable
from cft.system import signals
from cft.system.distributed import SINGLE_PROCESS, World
from cft.system.errors import UserError
from cft.training import checkpoint
from cft.training.chunking import Chunking, choose_chunking
from cft.training.contrastive import StepStats, Teacher, contrastive_backward, tokens_of
from cft.training.schedule import learning_rate

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


@dataclass(frozen=True)
class _Work:
    """What every step of a training works with. embedder: with the model that Accelerate prepared."""

    accelerator: Accelerator
    embedder: Embedder
    optimizer: torch.optim.Optimizer
    config: Config
    steps: int
    world: World
    chunking: Chunking
    teacher: Teacher | None

    @property
    def weights(self) -> dict[str, torch.nn.Parameter]:
        """The trained weights by name."""
        return trainable(self.embedder.model)


@dataclass(frozen=True)
class _Batch:
    """What a step is made on. rows: numbers of its triplets. sequences: tokens, a list a micro-batch."""

    rows: np.ndarray
    triplets: list[Triplet]
    sequences: list[list[tuple[int, ...]]]


def train(
    embedder: Embedder,
    data: TrainingData,
    config: Config,
    *,
    folder: Path,
    steps: int,
    stop_at: int,
    bf16: bool,
    watch: Watcher,
    reached: Callable[[int], None],
    world: World = SINGLE_PROCESS,
    teacher: Teacher | None = None,
) -> list[dict]:
    """Train an embedder's trainable weights in place, from its last checkpoint in `folder` if there is one.

    Args:
        embedder: under the prompt of training, its trainable weights freshly initialised.
        data: triplets, holdout and development pairs.
        config: the job.
        folder: where checkpoints go.
        steps: what `plan_steps` gave: the schedule is laid over them.
        stop_at: the step to stop after, `steps` for all; a later call goes on from there.
        bf16: run the model in bfloat16 where torch's autocast allows it.
        watch: called with every row of the history as it arises; on the first process only.
        reached: called with the number of every step once its update is done, before a checkpoint goes past it; on
            the first process only.
        world: the processes that train together; only the first evaluates and writes.
        teacher: whose similarities are part of the target, if anybody's are.

    Returns:
        The history: a row a step (`event` "step") and a row a development evaluation ("dev").

    Raises:
        UserError: on a loss or gradient that is not finite, naming the step and rows.
    """
    settings = config.train
    with _accelerator(embedder.device, bf16) as accelerator:
        if settings.gradient_checkpointing:
            recompute_activations(embedder.model)
        # Only set up for its precision: gradients of several processes are summed by us, after all of their chunks.
        model = accelerator.prepare_model(embedder.model, evaluation_mode=True)
        model.train()
        embedder = Embedder(model, embedder.backbone, embedder.contract)
        weights = trainable(model)
        optimizer = torch.optim.AdamW(weights.values(), lr=config.lr, weight_decay=settings.weight_decay)
        start, history = _resume(folder, weights, optimizer, world)
        if start:
            log.info("continuing after step %d of %d", start, steps)
        rows = batches(len(data.triplets), settings.batch_size, seed=config.seed, start=start, stop=stop_at)
        chunking = _chunking(embedder, data, config, world, bf16=bf16)
        work = _Work(accelerator, embedder, optimizer, config, steps, world, chunking, teacher)

        def note(row: dict) -> None:
            history.append(row)
            if world.is_main:
                watch(row)

        quiet = not world.is_main
        coming = _ahead(rows, lambda chosen: _prepare(work, data, chosen))
        with (
            tqdm(coming, desc="training", unit="step", initial=start, total=stop_at, disable=quiet) as bar,
            signals.deferred_to_step_end() as asked_to_end,
        ):
            for step, batch in enumerate(bar, start=start):
                row = _step(work, batch, step=step)
                note(row)
                bar.set_postfix(loss=f"{row['loss']:.3f}", right=f"{row['accuracy']:.0%}", refresh=False)
                done = step + 1
                # A signal may reach the processes on both sides of a step; all must leave after the same one.
                signal = world.all_reduce_max(asked_to_end())
                if quiet:
                    _leave_if(signal)
                    continue
                due = settings.eval_every and (done % settings.eval_every == 0 or done == steps)
                if due and (data.dev or data.holdout):
                    note(_develop(embedder.with_template(config.prompt.saved_template), data, done))
                reached(done)
                if done % settings.checkpoint_every == 0 or done in (stop_at, steps) or signal:
                    checkpoint.save(folder, step=done, history=history, weights=weights, optimizer=optimizer)
                _leave_if(signal)
        model.eval()
    return history


def _leave_if(signal: int) -> None:
    if signal:
        raise signals.Interrupted(signal)


def _prepare(work: _Work, data: TrainingData, rows: np.ndarray) -> _Batch:
    config = work.config
    triplets = [data.triplets[row] for row in rows]
    size = len(triplets) // config.train.accumulation
    micros = [triplets[start : start + size] for start in range(0, len(triplets), size)]
    return _Batch(rows, triplets, [tokens_of(work.embedder, micro, config.loss, work.world) for micro in micros])


def _ahead(steps: Iterable[np.ndarray], prepare: Callable[[np.ndarray], _Batch]) -> Iterator[_Batch]:
    """Read and tokenise the next batch while this one is trained on: a GPU would wait for it."""
    with ThreadPoolExecutor(max_workers=1) as worker:
        waiting: deque[Future[_Batch]] = deque()
        for rows in steps:
            waiting.append(worker.submit(prepare, rows))
            if len(waiting) > 1:
                yield waiting.popleft().result()
        while waiting:
            yield waiting.popleft().result()


def _resume(
    folder: Path, weights: dict[str, torch.nn.Parameter], optimizer: torch.optim.Optimizer, world: World
) -> tuple[int, list[dict]]:
    """The first process's checkpoint, on all processes: others need not see its file system."""
    start, history = checkpoint.load(folder, weights=weights, optimizer=optimizer) if world.is_main else (0, [])
    if world.size == 1:
        return start, history
    start = world.broadcast_object(start)
    world.broadcast_tensors(weight.data for weight in weights.values())
    world.broadcast_tensors(
        moment for weight in weights.values() for moment in checkpoint.moments(optimizer, weight, step=start).values()
    )
    return start, history


def _chunking(embedder: Embedder, data: TrainingData, config: Config, world: World, *, bf16: bool) -> Chunking:
    size = config.train.batch_size // config.train.accumulation
    batch = data.triplets[world.shard(size)]
    return choose_chunking(embedder, batch, config.loss, bf16=bf16, asked=config.train.chunk_tokens)


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
        yield accelerator
    finally:
        accelerator.free_memory()
        AcceleratorState._reset_state(reset_partial_state=True)


def _step(work: _Work, batch: _Batch, *, step: int) -> dict:
    """One update of the weights; returns its row of the history."""
    began = time.perf_counter()
    config, settings = work.config, work.config.train
    rate = learning_rate(config.schedule, config.lr, step, work.steps)
    for group in work.optimizer.param_groups:
        group["lr"] = rate
    while True:
        try:
            parts = _gradients(work, batch, step=step)
            break
        except torch.OutOfMemoryError as error:
            work.optimizer.zero_grad(set_to_none=True)
            _shrink(work, batch.sequences[0], error)
    work.world.all_reduce_gradients(work.weights.values())
    if all(weight.grad is None for weight in work.weights.values()):
        raise UserError(
            "no gradient reaches the trained weights: lora.targets name layers that no embedding runs through"
        )
    norm = work.accelerator.clip_grad_norm_(work.weights.values(), settings.max_grad_norm)
    _require_finite(float(norm), "gradient", step, batch.rows, batch.triplets)
    work.optimizer.step()
    work.optimizer.zero_grad(set_to_none=True)
    # A finite gradient can still push a weight too far, and no checkpoint may take such weights in.
    largest = torch.stack([weight.detach().abs().max().float() for weight in work.weights.values()]).max()
    _require_finite(float(largest), "largest weight after the update", step, batch.rows, batch.triplets)
    count = len(parts)
    return {
        "event": "step",
        "step": step + 1,
        "loss": sum(part.loss for part in parts) / count,
        "accuracy": sum(part.accuracy for part in parts) / count,
        "candidates": sum(part.candidates for part in parts) / count,
        "lr": rate,
        "gradient_norm": float(norm),
        "tokens": sum(part.tokens for part in parts),
        "nodes": sum(part.nodes for part in parts),
        "seconds": round(time.perf_counter() - began, 3),
    }


def _gradients(work: _Work, batch: _Batch, *, step: int) -> list[StepStats]:
    """Add up the gradients of a batch's micro-batches."""
    config = work.config
    # All randomness of a step (dropout) follows from the seed and the step, so that resuming needs no random state.
    seed = config.seed * 1_000_003 + step + (work.world.rank << 40)
    torch.manual_seed(seed)
    parts = []
    size = len(batch.triplets) // config.train.accumulation
    for number, sequences in enumerate(batch.sequences):
        start = number * size
        micro = batch.triplets[start : start + size]
        part = contrastive_backward(
            work.embedder,
            micro,
            config.loss,
            teacher=work.teacher,
            sequences=sequences,
            scale=1 / config.train.accumulation,
            seed=seed + start,
            chunk_tokens=work.chunking.tokens,
            world=work.world,
            autocast=work.accelerator.autocast,
        )
        _require_finite(part.loss, "loss", step, batch.rows[start : start + size], micro)
        parts.append(part)
    return parts


def _shrink(work: _Work, sequences: list[tuple[int, ...]], error: torch.OutOfMemoryError) -> None:
    """Smaller chunks after a batch ran out of memory; other processes would wait for what this one has not sent."""
    if work.world.size > 1:
        raise UserError(
            "out of memory; with several processes, name the tokens that go through the model at once: "
            f"train.chunk_tokens={work.chunking.tokens // 2 if work.chunking.tokens else 4096}"
        ) from error
    lengths = [len(sequence) for sequence in sequences]
    work.chunking.shrink(sum(lengths), max(lengths))


def _develop(embedder: Embedder, data: TrainingData, step: int) -> dict:
    """Score the embedder as it stands on development data, under the prompt that it will be saved with."""
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
