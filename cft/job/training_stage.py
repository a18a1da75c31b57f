"""A job's training: its records before the first step, its callbacks, and its result."""

import functools
import logging
import math
import time
from collections.abc import Iterator, Sequence
from dataclasses import replace

import numpy as np
import torch

from cft.config.schema import TEACHER, Config, LossSettings
from cft.data.records import ScoredPair
from cft.data.retrieval import watched_sets
from cft.data.training_data import TrainingData
from cft.evaluation import pairs
from cft.job.lengths import Cut, find_cut
from cft.job.outlook import outlook, seconds_a_step
from cft.job.plan import Plan, require_width
from cft.job.run_folder import Finished, RunFolder
from cft.model.embedder import Embedder
from cft.model.lora import add_lora, fitting_targets, kept_in_checkpoints, trainable
from cft.model.weights import weights_in_memory
from cft.system.disk import require_room
from cft.system.distributed import World
from cft.system.environment import describe_environment
from cft.system.errors import UserError, renaming_keys
from cft.system.files import write_record
from cft.training import checkpoint
from cft.training.best import best_step, is_over, scored_steps
from cft.training.contrastive import Guide, Teacher
from cft.training.memory import PeakMemory
from cft.training.schedule import warmup_steps
from cft.training.trainer import RowCallback, TrainingRun

log = logging.getLogger(__name__)


def require_trainable(plan: Plan, base: Embedder) -> None:
    """Refuse a model without the layers to be trained, before minutes go into an evaluation."""
    require_width(plan.config.loss, base.width)
    if plan.config.lora.rank and not plan.start.adapter:
        fitting_targets(base.model, plan.config.lora)


def require_enough_triplets(config: Config, world: World) -> None:
    """Refuse more processes than a batch has triplets."""
    size = config.train.batch_size // config.train.accumulation
    if size < world.size and not config.data.is_scored_alone:
        raise UserError(
            f"train.batch_size={config.train.batch_size} with train.accumulation={config.train.accumulation} gives "
            f"{size} triplets to {world.size} processes: raise it, or start fewer"
        )
    pairs = config.train.scored_batch // config.train.accumulation
    if config.data.scored is not None and pairs < world.size:
        raise UserError(
            f"train.scored_batch={config.train.scored_batch} with train.accumulation={config.train.accumulation} gives "
            f"{pairs} scored pairs to {world.size} processes: raise it, or start fewer"
        )


class TrainingStage:
    """The training of a job, up to the step that the job scores."""

    def __init__(self, plan: Plan, base: Embedder, world: World, callbacks: Sequence[RowCallback | None] = ()) -> None:
        """Write the training's records and make its weights.

        Args:
            plan: the job, which trains something.
            base: what the job starts from; it is changed in place.
            world: the processes that train together; the main one writes.
            callbacks: called with every row of the history; None is left out.
        """
        assert plan.data is not None
        self._plan, self._callbacks = plan, [callback for callback in callbacks if callback]
        self.embedder = _trainable_embedder(plan, base)
        if world.is_main:
            prompts_of = functools.partial(plan.data.prompts_of, others=self.embedder.contract.prompts)
            self._cut = find_cut(self.embedder, plan.data.measured, prompts_of)
            _write_records(plan, world, self._cut)
        self._steps_to_keep = {step for step in (*plan.config.train.keep, plan.stop_at) if step < plan.steps}
        folder = plan.training
        if world.is_main:
            weights = kept_in_checkpoints(self.embedder.model).values()
            require_room(
                folder.path, sum(each.numel() * each.element_size() for each in weights), len(self._steps_to_keep)
            )
            self._digest_before = weights_in_memory(self.embedder.model)
            _log_plan(plan, self.embedder.model, world)
            seconds = seconds_a_step(self.embedder, plan.config, plan.data, processes=world.size)
            log.info("\n%s\n", outlook(plan.config, plan.data, plan.steps, self._cut, seconds))
            if goes_again(plan):
                log.info(
                    "step %d was not kept: training again up to there; train.keep=[%d] keeps it",
                    *(plan.stop_at, plan.stop_at),
                )
                folder = RunFolder(plan.result / "again")
        self._began, self._memory = time.perf_counter(), PeakMemory(self.embedder.device)
        self.run = TrainingRun(
            config=plan.config,
            data=plan.data,
            folder=folder.path,
            steps=plan.steps,
            stop_at=plan.stop_at,
            bf16=plan.start.bf16,
            teacher=_load_teacher(plan),
            guide=_load_guide(plan),
            looked_for=watched_sets(plan.data) if plan.config.train.eval_every else {},
            world=world,
        )

    def on_row(self, row: dict) -> None:
        """Pass a row of the history on."""
        for callback in self._callbacks:
            callback(row)

    def on_step(self, step: int) -> None:
        """Keep the weights of a step that is to be kept."""
        kept = self._plan.run_of_step(step)
        if step in self._steps_to_keep and not kept.has_embedder:
            _save(self._plan, self.embedder, kept)

    def finish(self, history: list[dict]) -> None:
        """Check that the weights have changed and, after the last step, leave the training's result.

        Raises:
            UserError: if the training changed nothing.
        """
        from cft.job import figures  # here, as the import of its library would keep the first step waiting

        plan, folder = self._plan, self._plan.training
        if weights_in_memory(self.embedder.model) == self._digest_before:
            raise UserError(
                f"{plan.stop_at} steps changed none of the trained weights: the learning rate was 0 all along, or too "
                f"small for float32 (lr={plan.config.lr:g}, {warmup_steps(plan.config.schedule, plan.steps)} warm-up "
                "steps)"
            )
        if plan.stop_at == plan.steps:
            weights = _save(plan, self.embedder, folder)
            figures.save(figures.training(history), folder.path, "training")
            steps = [row for row in history if row["event"] == "step"]
            best = _chosen_step(plan.config, history)
            chunk_tokens = list(dict.fromkeys(row["chunk_tokens"] for row in steps if "chunk_tokens" in row))
            seconds = round(time.perf_counter() - self._began, 1)
            record = Finished(
                facts=plan.training_facts,
                steps=steps[-1]["step"],
                best_step=best,
                final_loss=steps[-1]["loss"],
                seconds=seconds,
                peak_memory=self._memory.bytes(),
                weights=weights,
                chunk_tokens=chunk_tokens,
            )
            folder.finish(record, history)
        if self.run.folder != folder.path:
            checkpoint.remove(self.run.folder)
            self.run.folder.rmdir()
        if self.run.world.is_main:  # at the end, as all rows are read for it, which would keep the first step waiting
            _warn_of_learnt_pairs(self.run.data)
            _warn_of_learnt_rows(self.run.data)


def _chosen_step(config: Config, history: list[dict]) -> int | None:
    """The step whose weights the result has, if a development score chose it; what was chosen is said."""
    scores = scored_steps(history)
    if not config.train.chooses or not scores:
        return None
    best, (last, at_last) = best_step(history), scores[-1]
    done = max(row["step"] for row in history)
    if config.train.patience and is_over(history, config.train.patience):
        log.info("ended after step %d: no better development score in %d looks", done, config.train.patience)
    if not config.train.best:
        return None
    log.info(
        "the result has the weights of step %d, whose development score was best: %.2f; the last, of step %d, was %.2f",
        *(best, dict(scores)[best] if best else math.nan, last, at_last),
    )
    return best


def _choices(loss: LossSettings, data: TrainingData) -> Iterator[tuple[str, LossSettings, float]]:
    """Whose anchors choose, by what loss, and how many hard negatives a row has: of each part if batches are of one."""
    found = [float(of_part.mean()) for of_part in data.negatives_by_part]
    if data.parts and data.by_part:
        for part, negatives in zip(data.parts, found, strict=True):
            yield f"each anchor of {part.name}", replace(loss, **part.loss), negatives
    else:
        yield "each anchor", loss, float(np.dot(data.mixture.normalized, found))


def _write_records(plan: Plan, world: World, cut: Cut) -> None:
    """Write what the training is, what it runs on and what it learns from."""
    data, folder = plan.data, plan.training
    assert data is not None
    write_record(folder.file(RunFolder.CONFIG), plan.config)
    environment = describe_environment(plan.start.device) | {"processes": world.size}
    write_record(folder.file(RunFolder.ENVIRONMENT), environment)
    counts = {"triplets": len(data.triplets), "held_out": len(data.holdout), "development_pairs": len(data.dev)}
    portraits = {"portrait": data.portraits} if data.portraits else {}
    parts = {"parts": data.parts} if data.parts else {}
    counts |= {"rows": data.rows} if data.starts is not None or data.is_scored_alone else {}
    counts |= {"scored_pairs": len(data.scored)} if data.scored else {}
    facts = {"content": data.content, "skipped_rows": data.skipped, "steps": plan.steps, **counts, "cut": cut}
    facts |= {**portraits, **parts}
    write_record(folder.file(RunFolder.DATA), facts)


def _trainable_embedder(plan: Plan, base: Embedder) -> Embedder:
    """The base model with weights to train, freshly initialised, under the prompt of training."""
    config = plan.config
    # An adapter to start from is in place, and trainable, already.
    fresh = plan.start.adapter is None
    model = add_lora(base.model, config.lora, seed=config.seed).to(plan.start.device) if fresh else base.model
    contract = base.contract.with_prompts(config.prompt.in_training)
    return Embedder(model, base.backbone, replace(contract, dimensions=tuple(config.loss.dimensions)))


def _load_teacher(plan: Plan) -> Teacher | None:
    """The teacher, on the device of the training."""
    settings = plan.config.distill
    if plan.teacher is None or settings.model is None:
        return None
    log.info("loading the teacher %s (%s)", settings.model.name, settings.model.path)
    with renaming_keys(TEACHER):
        return Teacher(Embedder.base(settings.model, files=plan.teacher, device=plan.start.device), settings)


def _load_guide(plan: Plan) -> Guide | None:
    """What says which candidates do not count, on the device of the training."""
    if plan.guide is None:
        return None
    settings, files = plan.guide
    log.info("loading the guide %s (%s)", settings.name, settings.path)
    return Guide(Embedder.base(settings, files=files, device=plan.start.device))


def goes_again(plan: Plan) -> bool:
    """Whether the training went past the step to be scored without keeping it: it is then trained anew, apart."""
    past = plan.training.is_finished or checkpoint.step_of(plan.folder) >= plan.stop_at
    return past and plan.stop_at < plan.steps and not plan.is_trained


def _save(plan: Plan, embedder: Embedder, folder: RunFolder) -> str:
    """Write the trained weights and then their contract; returns the weights' digest."""
    return embedder.with_prompts(plan.config.prompt.saved).save(folder.path)


def _log_plan(plan: Plan, model: torch.nn.Module, world: World) -> None:
    """Report what is about to be trained, in numbers."""
    config, steps, data = plan.config, plan.steps, plan.data
    assert data is not None
    micro_batch = config.train.batch_size // config.train.accumulation
    log.info(
        "training %s weights for %s steps of %d %s (%d at hand%s), learning rate %g after %d warm-up steps, %s%s",
        f"{sum(weight.numel() for weight in trainable(model).values()):,}",
        steps if plan.stop_at == steps else f"the first {plan.stop_at} of {steps}",
        config.rows_a_step,
        data.noun,
        data.rows,
        f", {data.skipped} bad rows skipped" if data.skipped else "",
        config.lr,
        warmup_steps(config.schedule, steps),
        "bf16" if plan.start.bf16 else "float32",
        f", on {world.size} processes" if world.size > 1 else "",
    )
    for portrait in data.portraits.values():
        for warning in portrait.warnings_of_batches(micro_batch, redrawn=data.starts is not None):
            log.warning("%s", warning)
    if steps < config.train.steps:
        log.info(
            "that is all of the data, train.epochs=%d time(s): raise it to come to train.steps=%d",
            config.train.epochs,
            config.train.steps,
        )
    if config.train.eval_every and not (data.dev or data.holdout):
        why = f"no {data.noun} are held out, and there are no scored pairs; data.holdout=N or data.dev=FILE gives one"
        log.info("no score during training: %s", "data.dev=FILE gives one" if data.is_scored_alone else why)
    _warn_of_tested_pairs(plan, data)
    if data.is_scored_alone:
        log.info("pairs scored higher must be nearer (%s); there are no triplets", config.loss.scored)
    else:
        _log_loss(config, data)


def _warn_of_learnt_pairs(data: TrainingData) -> None:
    """Say of development pairs by which nothing may be chosen, as they were trained on."""
    learnt = pairs.trained_on(data.dev, data)
    if learnt:
        log.warning(
            "%d of %d development pairs are trained on, as scored pairs or as an anchor with its positive or negative: "
            "choose no settings by them",
            *(learnt, len(data.dev)),
        )


def _warn_of_learnt_rows(data: TrainingData) -> None:
    """Say of held-out rows that are trained on all the same: only the triplets beside them are free of them."""
    if not (data.scored or data.earlier):
        return
    held = [ScoredPair(row.anchor, row.positive, 0.0) for row in dict.fromkeys([*data.holdout, *data.watched])]
    learnt = pairs.trained_on(held, data)
    if learnt:
        log.warning(
            "%d of %d held-out rows are trained on all the same, as scored pairs or by the first stage: what is scored "
            "on them flatters the result",
            *(learnt, len(held)),
        )


def _warn_of_tested_pairs(plan: Plan, data: TrainingData) -> None:
    """Say of development pairs by which nothing may be chosen, as they are test data."""
    overlap = pairs.overlapping(data.dev, plan.sets)
    if overlap:
        log.warning(
            "%d of %d development pairs stand in the test sets (%s): choose no settings by them",
            len(overlap),
            len(data.dev),
            ", ".join(sorted(set(overlap))),
        )


def _log_loss(config: Config, data: TrainingData) -> None:
    """Report what the loss chooses among and what else it has."""
    micro_batch = config.train.batch_size // config.train.accumulation
    for anchor, loss, negatives in _choices(config.loss, data):
        hard = round(micro_batch * negatives) if loss.hard_negatives else 0
        anchors = micro_batch - 1 if loss.anchors_as_negatives else 0
        log.info(
            "%s chooses among %d candidates: its positive, %d in-batch negatives, %d hard negatives%s",
            *(anchor, micro_batch + hard + anchors, micro_batch - 1, hard),
            f", {anchors} other anchors" if anchors else "",
        )
    if data.scored:
        log.info(
            "and %d of %s scored pairs a step, whose loss (%s) counts %g times",
            *(config.train.scored_batch, f"{len(data.scored):,}", config.loss.scored, config.loss.scored_weight),
        )
    if config.loss.guide:
        log.info("candidates that %s finds as near as the positive do not count", config.loss.guide)
    if config.distill.model:
        share = f"{config.distill.share:.0%} of the target"
        log.info("%s is the teacher's: the similarities of %s", share, config.distill.model.name)
