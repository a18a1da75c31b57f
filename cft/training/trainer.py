"""Contrastive fine-tuning: the loop from triplets to trained weights."""

import functools
import itertools
import logging
import math
import time
import warnings
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import AbstractContextManager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
from tqdm import tqdm

from cft.config.schema import Config, LossSettings, Role
from cft.data.records import ScoredPair, Triplet, noun_of
from cft.data.retrieval import RetrievalSet
from cft.data.sampling import batches, count_batches, source_without_batch
from cft.data.training_data import TrainingData
from cft.evaluation.retrieval import HEADLINE, MEASURE_NAMES, evaluate_retrieval
from cft.evaluation.scores import evaluate
from cft.model.embedder import Embedder
from cft.model.lora import kept_in_checkpoints, trainable
from cft.system import signals
from cft.system.distributed import SINGLE_PROCESS, World
from cft.system.errors import UserError
from cft.system.memory import OutOfMemory, unless_out_of_memory
from cft.training import checkpoint
from cft.training.best import BestWeights, is_over
from cft.training.chunking import Chunking, KillMark, choose_chunking
from cft.training.contrastive import (
    BatchSetup,
    Guide,
    StepStats,
    Teacher,
    contrastive_backward,
    texts_of,
    tokens_of,
    tokens_of_pairs,
)
from cft.training.schedule import learning_rate

log = logging.getLogger(__name__)

# Row numbers of a step's triplets, and of its scored pairs; one of them may be empty.
_Rows = tuple[np.ndarray, np.ndarray]
_NONE = np.empty(0, dtype=np.int64)

RowCallback = Callable[[dict], None]
StepCallback = Callable[[int], None]


@dataclass(frozen=True)
class TrainingRun:
    """What to train: everything but the weights."""

    config: Config
    data: TrainingData
    folder: Path  # of the checkpoints
    steps: int  # of the whole training, as `plan_steps` gives them; the schedule spans them
    stop_at: int  # step after which to stop, `steps` for all; a later call goes on from there
    bf16: bool = False  # run the model under autocast to bfloat16
    teacher: Teacher | None = None  # whose similarities are part of the target
    guide: Guide | None = None  # which says what candidates do not count
    # queries and documents of held-out rows score the training where there are no scored pairs
    looked_for: Mapping[str, RetrievalSet] = field(default_factory=dict)
    world: World = SINGLE_PROCESS  # the processes that train together


@dataclass(frozen=True)
class _State:
    """A training in progress."""

    run: TrainingRun
    embedder: Embedder
    optimizer: torch.optim.Optimizer
    chunking: Chunking
    history: list[dict] = field(default_factory=list)

    @property
    def weights(self) -> dict[str, torch.nn.Parameter]:
        """The trained weights by name."""
        return trainable(self.embedder.model)

    def autocast(self) -> AbstractContextManager:
        """The precision that models run in."""
        return torch.autocast(self.embedder.device.type, torch.bfloat16, enabled=self.run.bf16)


@dataclass(frozen=True)
class _Batch:
    """What one step is trained on."""

    rows: np.ndarray  # numbers in the data of the triplets or, where there are none, of the pairs
    triplets: list[Triplet]
    sequences: list[list[tuple[int, ...]]]  # token ids of this process's texts, a list a micro-batch
    tokens: int  # most tokens of a micro-batch, as they count against the budget
    loss: LossSettings = field(default_factory=LossSettings)  # of its rows
    pairs: list[ScoredPair] = field(default_factory=list)  # that are trained on beside the triplets, or alone

    @property
    def known_by(self) -> Sequence[Triplet] | Sequence[ScoredPair]:
        """What the row numbers are of."""
        return self.triplets or self.pairs


def plan_steps(config: Config, data: TrainingData) -> int:
    """Steps that a training takes: as many as configured, but at most its epochs have full batches for.

    Raises:
        UserError: if the data does not fill one batch.
    """
    train = config.train
    if data.scored and len(data.scored) < train.scored_batch:
        raise UserError(
            f"{len(data.scored)} pairs of data.scored do not fill one batch of "
            f"train.scored_batch={train.scored_batch}; lower it, or bring more"
        )
    within = {"epochs": train.epochs, "most": train.steps}
    if data.is_scored_alone:
        return count_batches(len(data.scored), train.scored_batch, seed=config.seed, shared=None, **within)
    rows = data.rows
    per_epoch = rows // train.batch_size
    if per_epoch == 0:
        held = f"; {len(data.holdout)} more are held out, which data.holdout=0 takes back" if data.holdout else ""
        raise UserError(
            f"{rows} training {noun_of(data.triplets)} do not fill one batch of train.batch_size={train.batch_size}; "
            + (f"bring more, or set train.batch_size={rows} or less" if rows > 1 else "bring more")
            + held
        )
    if data.parts:
        _require_batches(config, data, per_epoch)
    shared = data.shared if train.no_duplicates else None
    found = count_batches(data.mixture, train.batch_size, seed=config.seed, shared=shared, **within)
    if not found:
        raise UserError(
            f"train.no_duplicates=true: no batch of train.batch_size={train.batch_size} rows can be made without a "
            f"text that stands in it twice, as {len(data.shared):,} of {rows:,} rows share texts; lower "
            "train.batch_size"
        )
    dry = source_without_batch(data.mixture, train.batch_size, seed=config.seed, steps=found, shared=shared)
    if dry is not None:
        raise UserError(
            f"data.train[{dry}] ({data.parts[dry].name}): train.no_duplicates=true: when its turn comes, no batch of "
            f"train.batch_size={train.batch_size} of its {data.parts[dry].rows:,} rows can be made without a text that "
            "stands in it twice; lower train.batch_size, leave the entry out, or write data.mixing=rows"
        )
    return found


def _require_batches(config: Config, data: TrainingData, steps: int) -> None:
    """Refuse parts of the data that fill no batch, or never have a turn; `steps` is how many an epoch has.

    Raises:
        UserError: naming the entry of data.train.
    """
    size, mixture = config.train.batch_size, data.mixture
    turns = mixture.counts(steps if mixture.by_source else mixture.count)
    for number, (part, share, turn) in enumerate(zip(data.parts, mixture.normalized, turns, strict=True)):
        name = f"data.train[{number}] ({part.name})"
        if not turn:
            what = f"none of the {steps} batches of an epoch" if mixture.by_source else "no row"
            raise UserError(f"{name}: a share of {share:.2g} gives it {what}; raise its share, or leave it out")
        if mixture.by_source and part.rows < size:
            raise UserError(
                f"{name}: its {part.rows} rows do not fill one batch of train.batch_size={size}, and data.mixing=files "
                "gives it batches of its own; lower train.batch_size, or write data.mixing=rows"
            )
        if not mixture.by_source and share * size > part.rows:
            raise UserError(
                f"{name}: a share of {share:.2g} is {share * size:.0f} rows of a batch of train.batch_size={size}, and "
                f"it has {part.rows}: lower its share, or train.batch_size"
            )


def train(embedder: Embedder, run: TrainingRun, *, on_row: RowCallback, on_step: StepCallback) -> list[dict]:
    """Train an embedder's trainable weights in place, from the last checkpoint in the run's folder if there is one.

    Args:
        embedder: under the prompt of training, its trainable weights freshly initialised.
        run: what to train.
        on_row: called on the main process with every row of the history as it arises.
        on_step: called on the main process with the number of every step after its update, before its checkpoint.

    Returns:
        The history: a row a step (`event` "step") and a row a development evaluation ("dev").

    Raises:
        UserError: on a loss or gradient that is not finite, naming the step and rows.
    """
    settings, world = run.config.train, run.world
    if settings.gradient_checkpointing:
        recompute_activations(embedder.model)
    embedder.model.train()
    state, start = _resume(embedder, run)

    def note(row: dict) -> None:
        state.history.append(row)
        if world.is_main:
            on_row(row)

    best = BestWeights(checkpoint.load_best(run.folder)) if settings.best and world.is_main else None
    rows = _rows_of_steps(run, start, state.history)
    with (
        tqdm(desc="training", unit="step", initial=start, total=run.stop_at, disable=not world.is_main) as bar,
        signals.deferred_to_step_end() as signal_received,
        KillMark(run.folder) as mark,
    ):
        for step, batch in enumerate(_prefetch(rows, functools.partial(_load_batch, state)), start=start):
            if world.is_main:
                mark.begin(min(batch.tokens, state.chunking.tokens))
            row = _step(state, batch, step=step)
            note(row)
            bar.set_postfix(_shown(row), refresh=False)
            bar.update()
            # A signal may reach the processes on both sides of a step; all must leave after the same one.
            signal = world.all_reduce_max(signal_received())
            done, over = step + 1, False
            if world.is_main:
                if _development_is_due(run, done):
                    note(_score_development_data(state, done))
                    if best:
                        best.see(state.history, state.weights)
                    over = is_over(state.history, settings.patience)
                on_step(done)
                if done % settings.checkpoint_every == 0 or done in (run.stop_at, run.steps) or signal or over:
                    _save(state, done, best)
            if signal:
                raise signals.Interrupted(signal)
            if settings.patience and world.all_reduce_max(int(over)):
                break
    embedder.model.eval()
    if best:
        best.put_back(state.weights)
    return state.history


def _shown(row: dict) -> dict[str, str]:
    """What the progress bar shows of a step's row of the history."""
    right = {"right": f"{row['accuracy']:.0%}"} if "accuracy" in row else {}
    return {"loss": f"{row['loss']:.3f}"} | right


def _save(state: _State, step: int, best: BestWeights | None) -> None:
    """Write the checkpoint after a step."""
    kept = best.kept if best else None
    history, weights, optimizer = state.history, kept_in_checkpoints(state.embedder.model), state.optimizer
    checkpoint.save(state.run.folder, step=step, history=history, weights=weights, optimizer=optimizer, best=kept)


def _rows_of_steps(run: TrainingRun, start: int, history: list[dict]) -> Iterator[_Rows]:
    """The rows of every step to come; none where the training has given up already."""
    train, world = run.config.train, run.world
    if train.patience and world.broadcast_object(is_over(history, train.patience)):
        return iter(())
    size, seed = train.batch_size, run.config.seed
    pairs: Iterable[np.ndarray] = itertools.repeat(_NONE)
    if run.data.scored:
        pairs = batches(len(run.data.scored), train.scored_batch, seed=seed, start=start, stop=run.stop_at)
    if run.data.is_scored_alone:
        return ((_NONE, of_step) for of_step in pairs)
    shared = run.data.shared if train.no_duplicates else None
    chosen = batches(run.data.mixture, size, seed=seed, start=start, stop=run.stop_at, shared=shared)
    rows = (run.data.triplets_of(of_step, seed=seed, step=step) for step, of_step in enumerate(chosen, start))
    return zip(rows, pairs, strict=bool(run.data.scored))


def _resume(embedder: Embedder, run: TrainingRun) -> tuple[_State, int]:
    """The state of a training and the steps it has done; only the main process needs to see the checkpoint."""
    config, world, weights = run.config, run.world, trainable(embedder.model)
    groups = _groups(weights, config.lora.lr_ratio)
    optimizer = torch.optim.AdamW(groups, lr=config.lr, weight_decay=config.train.weight_decay)
    kept = kept_in_checkpoints(embedder.model)
    step, history = checkpoint.load(run.folder, weights=kept, optimizer=optimizer) if world.is_main else (0, [])
    if world.size > 1:
        step = world.broadcast_object(step)
        world.broadcast_tensors(weight.data for weight in kept.values())
        moments = (checkpoint.moments(optimizer, weight, step=step).values() for weight in weights.values())
        world.broadcast_tensors(moment for of_weight in moments for moment in of_weight)
    if step:
        log.info("continuing after step %d of %d", step, run.steps)
    return _State(run, embedder, optimizer, _chunking(embedder, run, step, history), history), step


def _groups(weights: dict[str, torch.nn.Parameter], lr_ratio: float) -> list[dict[str, Any]]:
    """The weights by their learning rate: `lr_ratio` is that of LoRA's second factors over that of all others.

    Source: Hayou et al. 2024, arXiv 2402.12354 (LoRA+).
    """
    second = [weight for name, weight in weights.items() if ".lora_B." in name and lr_ratio != 1]
    first = [weight for name, weight in weights.items() if ".lora_B." not in name or lr_ratio == 1]
    return [{"params": first}, *([{"params": second, "lr_ratio": lr_ratio}] if second else [])]


def _chunking(embedder: Embedder, run: TrainingRun, step: int, history: list[dict]) -> Chunking:
    """The budget of tokens from a step on, the same on every process; only the main one needs the history."""
    train, world = run.config.train, run.world
    kept = next((row.get("chunk_tokens") for row in reversed(history) if row["event"] == "step"), None)
    killed = KillMark(run.folder).killed_at() if world.is_main else None
    kept, killed = world.broadcast_object((kept, killed))
    share = world.shard(0 if run.data.is_scored_alone else train.batch_size // train.accumulation)
    pairs = world.shard(train.scored_batch // train.accumulation if run.data.scored else 0)
    counted = run.config.loss.hard_negatives or any(part.loss.get("hard_negatives") for part in run.data.parts)
    # files have them, or not
    negatives = max(int(of_part.max()) for of_part in run.data.negatives_by_part) if counted else 0
    chunking = choose_chunking(
        embedder,
        texts=(share.stop - share.start) * (2 + negatives) + 2 * (pairs.stop - pairs.start),
        bf16=run.bf16,
        chunk_tokens=train.chunk_tokens,
        kept=kept,
        step=step,
    )
    if killed is not None and killed // 2 < chunking.tokens:
        chunking.tokens = max(killed // 2, min(killed, embedder.contract.max_length))
        log.warning(
            "the system killed this training for want of memory while %d tokens went through the model at once: from "
            "step %d on it is %d",
            *(killed, step + 1, chunking.tokens),
        )
    chunking.tokens = -world.all_reduce_max(-chunking.tokens)
    return chunking


def _load_batch(state: _State, numbers: _Rows) -> _Batch:
    config, data, (rows, chosen) = state.run.config, state.run.data, numbers
    pairs = [data.scored[number] for number in chosen]
    triplets = [data.triplets[row] for row in rows]
    parts = [data.part_of(row) for row in rows] if data.parts else []
    loss = replace(config.loss, **parts[0].loss) if data.by_part else config.loss
    own = [part.prompts(state.embedder.contract.prompts) for part in parts] or None
    world, sequences = state.run.world, []
    for number in range(config.train.accumulation):
        part, of_pairs = (_micro_batch(each, number, config.train.accumulation) for each in (triplets, pairs))
        of_part = []
        if triplets:
            of_part = tokens_of(state.embedder, triplets[part], loss, world, prompts=own and own[part])
        sequences.append(of_part + tokens_of_pairs(state.embedder, pairs[of_pairs], world))
    batching = state.embedder.backbone.batching
    known_by = rows if triplets else chosen
    return _Batch(known_by, triplets, sequences, max(map(batching.tokens_in_memory, sequences)), loss, pairs)


def _micro_batch(rows: Sequence[Any], number: int, count: int) -> slice:
    """One of `count` parts of equal sizes."""
    size = len(rows) // count
    return slice(number * size, (number + 1) * size)


def _prefetch(steps: Iterable[_Rows], load: Callable[[_Rows], _Batch]) -> Iterator[_Batch]:
    """Read and tokenize the next batch while this one is trained on: a GPU would wait for it."""
    with ThreadPoolExecutor(max_workers=1) as worker:
        pending: deque[Future[_Batch]] = deque()
        for rows in steps:
            pending.append(worker.submit(load, rows))
            if len(pending) > 1:
                yield pending.popleft().result()
        while pending:
            yield pending.popleft().result()


def _step(state: _State, batch: _Batch, *, step: int) -> dict:
    """One update of the weights; returns its row of the history."""
    began = time.perf_counter()
    run, optimizer, settings = state.run, state.optimizer, state.run.config.train
    rate = learning_rate(run.config.schedule, run.config.lr, step, run.steps)
    for group in optimizer.param_groups:
        group["lr"] = rate * group.get("lr_ratio", 1.0)
    # All randomness of a step (dropout) follows from the seed and the step, so that resuming needs no random state.
    seed = run.config.seed * 1_000_003 + step + (run.world.rank << 40)
    size = len(batch.triplets) // settings.accumulation
    stats: list[StepStats] = []
    while not stats:
        torch.manual_seed(seed)
        setup = BatchSetup(batch.loss, run.teacher, run.guide, run.world, state.chunking.tokens, state.autocast)
        with OutOfMemory() as ended:
            for number, sequences in enumerate(batch.sequences):
                part = _micro_batch(batch.known_by, number, settings.accumulation)
                triplets, scale = batch.triplets[part], 1 / settings.accumulation
                pairs = batch.pairs[_micro_batch(batch.pairs, number, settings.accumulation)]
                more: dict[str, Any] = {"sequences": sequences, "scale": scale, "seed": seed + part.start}
                stats.append(contrastive_backward(state.embedder, triplets, setup, pairs=pairs, **more))
                found = stats[-1].loss + stats[-1].scored
                _require_finite(found, "loss", step, batch.rows[part], batch.known_by[part])
        if ended:
            stats.clear()
            optimizer.zero_grad(set_to_none=True)
            ended.free()
            _shrink_chunks(state, batch)
    norm = unless_out_of_memory(lambda: _update(state, batch, step=step))
    if norm is None:
        raise UserError(
            f"out of memory in the update of step {step + 1}, where every trained weight has its gradient and two "
            "moments in memory: lower train.chunk_tokens, train fewer weights (lora.rank, lora.targets), or take a "
            "smaller model"
        )
    means = _means(batch, stats)
    if step == 0 and run.guide and means["candidates"] < 2:
        log.warning(
            "the guide finds nearly all texts as near as the positives: of %d candidates it leaves an anchor %.1f, its "
            "positive among them, and there is little to learn; lower loss.guide_margin=%g, or take another guide",
            *(_candidates(batch.triplets[:size], batch.loss), means["candidates"], run.config.loss.guide_margin),
        )
    return {
        "event": "step",
        "step": step + 1,
        **means,
        "lr": rate,
        "gradient_norm": norm,
        **{name: sum(getattr(part, name) for part in stats) for name in ("tokens", "nodes")},
        "chunk_tokens": state.chunking.tokens,
        "seconds": round(time.perf_counter() - began, 3),
    }


def _means(batch: _Batch, stats: Sequence[StepStats]) -> dict[str, float]:
    """What a step's row of the history says of its losses; of scored pairs alone, theirs is the loss."""

    def mean(name: str) -> float:
        return sum(getattr(part, name) for part in stats) / len(stats)

    if not batch.triplets:
        return {"loss": mean("scored"), "scored_loss": mean("scored")}
    of_triplets = {name: mean(name) for name in ("loss", "accuracy", "candidates")}
    return of_triplets | ({"scored_loss": mean("scored")} if batch.pairs else {})


def _candidates(rows: Sequence[Triplet], loss: LossSettings) -> int:
    """How many of the texts of a micro-batch an anchor chooses from, where none is left out."""
    return len(texts_of(rows, loss)) - (1 if loss.anchors_as_negatives else len(rows))


def _update(state: _State, batch: _Batch, *, step: int) -> float:
    """Change the weights by the gradient at them, which is gone then; returns its norm."""
    weights = list(state.weights.values())
    norm = _clipped_gradient_norm(state, weights)
    _require_finite(norm, "gradient", step, batch.rows, batch.known_by)
    state.optimizer.step()
    state.optimizer.zero_grad(set_to_none=True)
    # A finite gradient can still push a weight too far, and no checkpoint may hold such weights.
    largest = torch.stack([weight.detach().abs().max().float() for weight in weights]).max()
    _require_finite(float(largest), "largest weight after the update", step, batch.rows, batch.known_by)
    return norm


def _clipped_gradient_norm(state: _State, weights: list[torch.nn.Parameter]) -> float:
    """Sum the gradients over the processes and clip them; returns their norm before."""
    state.run.world.all_reduce_gradients(weights)
    if all(weight.grad is None for weight in weights):
        raise UserError(
            "no gradient reaches the trained weights: lora.targets name layers that no embedding runs through"
        )
    return float(torch.nn.utils.clip_grad_norm_(weights, state.run.config.train.max_grad_norm))


def _shrink_chunks(state: _State, batch: _Batch) -> None:
    """Take smaller chunks after a batch ran out of memory."""
    if state.run.world.size > 1:  # the others wait for what this process has not sent
        raise UserError(
            "out of memory; with several processes, name the tokens that go through the model at once: "
            f"train.chunk_tokens={min(state.chunking.tokens, batch.tokens) // 2}"
        )
    state.chunking.shrink(batch.tokens, max(len(sequence) for sequences in batch.sequences for sequence in sequences))


def _development_is_due(run: TrainingRun, done: int) -> bool:
    every = run.config.train.eval_every
    return bool(every and (done % every == 0 or done == run.steps) and has_development_score(run))


def has_development_score(run: TrainingRun) -> bool:
    """Whether there are scored pairs, queries and documents, or held-out triplets that can be in order."""
    return bool(run.data.dev or run.looked_for) or any(row.negatives for row in run.data.watched)


def _score_development_data(state: _State, done: int) -> dict:
    """Score the embedder on development data, under the prompt that it will be saved with."""
    data = state.run.data
    embedder = state.embedder.with_prompts(state.run.config.prompt.saved)
    looked_for = {} if data.dev else state.run.looked_for
    with state.autocast():
        scores = evaluate(embedder, {"dev": data.dev} if data.dev else {}, data.watched, progress="development data")
        found = _look_for(embedder, looked_for) if looked_for else {}
    row = {"event": "dev", "step": done, "spearman": scores.scores.get("dev"), "accuracy": scores.triplet_accuracy}
    row |= found
    parts = [f"Spearman {row['spearman']:.2f}" if row["spearman"] is not None else ""]
    parts += [f"{MEASURE_NAMES[name]} {value:.2f}, {_sizes(looked_for)}" for name, value in found.items()]
    parts += [f"{row['accuracy']:.1%} of held-out triplets in order" if row["accuracy"] is not None else ""]
    log.info("step %d, development data: %s", done, ", ".join(filter(None, parts)))
    return row


def _sizes(sets: Mapping[str, RetrievalSet]) -> str:
    """Of what a development score is: the result is scored among more documents, and may differ."""
    queries = sum(len(data.queries) for data in sets.values())
    documents = sum(len(data.documents) for data in sets.values())
    mean = f", mean over {len(sets)} files" if len(sets) > 1 else ""
    return f"{queries:,} held-out queries among {documents:,} documents{mean}"


def _look_for(embedder: Embedder, sets: Mapping[str, RetrievalSet]) -> dict[str, float]:
    """The headline of held-out anchors that look for their positives among the held-out texts, its mean over sets."""
    queries, documents = embedder.in_role(Role.query), embedder.in_role(Role.document)
    found = [evaluate_retrieval(data, queries.encode, documents.encode).means[HEADLINE] for data in sets.values()]
    return {HEADLINE: sum(found) / len(found)}


def _require_finite(
    value: float, what: str, step: int, rows: np.ndarray, batch: Sequence[Triplet] | Sequence[ScoredPair]
) -> None:
    """Stop before a broken update: weights that are NaN once stay NaN."""
    if math.isfinite(value):
        return
    numbers = ", ".join(str(row + 1) for row in rows)
    beginnings = "; ".join(repr(row[0][:40]) for row in batch[:3])
    triplets = [row for row in batch if isinstance(row, Triplet)]
    noun = noun_of(triplets) if triplets else "scored pairs"
    how = "counted without the holdout; their anchors" if triplets else "their first sentences"
    key = "loss.temperature" if triplets else "loss.scored_temperature"
    raise UserError(
        f"the {what} of step {step + 1} is {value}; {noun} {numbers} made it ({how} begin {beginnings}). The last "
        f"checkpoint is kept. Lower lr, raise {key}, or set train.precision=fp32"
    )


def recompute_activations(model: torch.nn.Module) -> None:
    """Turn on gradient checkpointing, in the form that works with frozen embeddings."""
    with warnings.catch_warnings():  # the call's newer name is not in all the versions that cft runs with
        warnings.simplefilter("ignore", FutureWarning)
        cast(Any, model).gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
