"""One job, carried out: train the base model, score it as it was and as it is now, and leave a complete record."""

import functools
import gc
import logging
import re
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, suppress
from dataclasses import fields, replace
from pathlib import Path

import numpy as np
import torch

from cft.config.schema import (
    BASELINE,
    BaselineSettings,
    Config,
    DataSettings,
    DistillSettings,
    EvalSettings,
    EvalSource,
    FirstSettings,
    LoggerKind,
    LoggerSettings,
    PromptSettings,
    TrainSettings,
)
from cft.evaluation.scores import Evaluation
from cft.job.plan import InputCache, Plan, make_plan
from cft.job.report import report_base, report_training, say_next
from cft.job.run_folder import RunFolder
from cft.job.scoring import score, score_dimensions
from cft.job.sharing import all_see, help_out, helped, shared
from cft.job.start import choose_device
from cft.job.tracking import Job, Tracker, tracking
from cft.job.training_stage import TrainingStage, goes_again, require_enough_triplets, require_trainable
from cft.job.verdicts import Baseline, Shortened
from cft.model.embedder import Embedder
from cft.system import secrets
from cft.system.digest import digest, to_plain
from cft.system.disk import require_writable
from cft.system.distributed import SINGLE_PROCESS, World, join_world
from cft.system.errors import GivenUp, UserError, renaming_keys
from cft.system.files import exclusive_lock, read_json, write_json
from cft.system.logs import log_file
from cft.training.trainer import RowCallback, train

log = logging.getLogger(__name__)

# Passes over the rows of a first stage, which its steps bound.
_ENDLESS = 10**6

# What a training calls settings that are those of the section `first` where it is a first stage.
_DATA = "|".join(each.name for each in fields(DataSettings))
_OF_FIRST_STAGE = re.compile(rf"(?<![\w.@/])(?:train\.(batch_size|steps)|(lr|data\.(?:{_DATA})))\b")

# Beside scores, which trackers have them; written last, so that a killed job reports them again.
REPORTED = "reported.json"


def run(
    config: Config, inputs: InputCache | None = None, on_row: RowCallback | None = None, *, alone: bool = True
) -> str:
    """Do one job, or what is left of it.

    Args:
        config: the job.
        inputs: data and base models that other jobs have loaded.
        on_row: called with every row of the training's history as it arises.
        alone: whether no other jobs follow, so that it can be said what to do next.

    Returns:
        One line that says what came out.

    Raises:
        UserError: for whatever the user can mend.
    """
    inputs = inputs or InputCache()
    world = join_world(choose_device(config.device))
    with world.main_process_first():
        if world.is_main:
            require_writable(Path(config.outputs))
        plan = _planned(config, inputs, world)
    with _Models(plan) as models:
        if plan.data is None:
            return _score_base_alone(plan, models, world)
        require_enough_triplets(config, world)
        if not world.is_main:
            # The main process broadcasts below whether there is a result already; else all train together.
            if not world.broadcast_object(plan.is_trained):
                stage = TrainingStage(plan, models.base, world)
                train(stage.embedder, stage.run, on_row=stage.on_row, on_step=stage.on_step)
                del stage
            if all_see(lambda: plan.is_trained, world):
                models.release()
                help_out(models.by_name, world)
            return ""
        if not plan.is_trained:
            require_trainable(plan, models.base)

        with _exclusive_work(plan) as tracker:
            if world.broadcast_object(plan.is_trained):
                log.info("already trained: %s holds the result of this very configuration", plan.result)
            else:
                stage = TrainingStage(plan, models.base, world, [tracker.watch, on_row])
                stage.finish(train(stage.embedder, stage.run, on_row=stage.on_row, on_step=stage.on_step))
                del stage  # it holds the base model and the teacher
            models.release()
            before, after, shortened = _score_both(plan, models, world)
            result = report_training(plan, before, after, score_baseline(plan, inputs), shortened)
            tracker.finish(result)
            if alone:
                say_next(plan)
        if tracker.works:  # else the same command reports them when it does
            path, kinds = _reported(plan)
            write_json(path, {"loggers": sorted({*kinds, config.logger.kind.value, _told(config)})})
    return result.outcome


def _score_both(plan: Plan, models: "_Models", world: World) -> tuple[Evaluation, Evaluation, Shortened]:
    """Scores of what the training started from and of its result, and those of first numbers alone.

    The start is scored behind the training too: the first step need not wait for minutes of embedding.
    """
    with helped(world if all_see(lambda: plan.is_trained, world) else SINGLE_PROCESS) as scorers:
        base, tuned = (functools.partial(models.shared, which, scorers) for which in ("base", "tuned"))
        before = score(plan, plan.base_folder, base, plan.start_name)
        first_before = score_dimensions(plan, plan.base_folder, base, plan.start_name)
        after = score(plan, plan.result, tuned, "the result")
        _require_effect(plan, before, after)
        return before, after, Shortened(first_before, score_dimensions(plan, plan.result, tuned, "the result"))


def result_of(config: Config, inputs: InputCache) -> Path:
    """The folder of the embedder that a job has left, which trained something.

    Args:
        config: the job. inputs: as `run` had them.
    """
    return make_plan(_after_first_stage(config, inputs, SINGLE_PROCESS), inputs).result


def train_only(
    config: Config, inputs: InputCache | None = None, on_row: RowCallback | None = None, *, wait: bool = False
) -> Path:
    """Do a job's training, its first stage included, or what is left of it, and score nothing; returns its folder.

    Args:
        config: the job.
        inputs: data and base models that other jobs have loaded.
        on_row: called with every row of the history; may raise GivenUp to end the training, which can go on later.
        wait: for another process that trains the same, instead of giving up.

    Raises:
        UserError: for whatever the user can mend.
    """
    plan = _planned(config, inputs or InputCache(), SINGLE_PROCESS)
    if plan.data is None:
        raise UserError("train.steps=0: there is nothing to train")
    with _Models(plan) as models, _exclusive_work(plan, wait=wait) as tracker:
        if not plan.is_trained:
            stage = TrainingStage(plan, models.base, SINGLE_PROCESS, [tracker.watch, on_row])
            stage.finish(train(stage.embedder, stage.run, on_row=stage.on_row, on_step=stage.on_step))
    return plan.folder


def _planned(config: Config, inputs: InputCache, world: World) -> Plan:
    """The job, on top of its first stage if it has one, whose texts the result was trained on too."""
    plan = make_plan(_after_first_stage(config, inputs, world), inputs)
    if plan.data is None or config.first.data is None:
        return plan
    return replace(plan, data=replace(plan.data, earlier=inputs.data(config.first.data)))


def _after_first_stage(config: Config, inputs: InputCache, world: World) -> Config:
    """The job on top of its first stage, which is trained if it was not yet; the job itself if it has none."""
    stage = first_stage(config, inputs)
    if stage is None:
        return config
    if world.size > 1:
        raise UserError("a first stage runs on one process: write first=none, and name that stage's run by adapter")
    log.info("the first stage: %d steps on %s", stage.train.steps, stage.data.name)
    with _naming_first_stage():
        folder = train_only(stage, inputs, wait=True)  # jobs of a launcher that run at a time may have it in common
    log.info("the second stage, from %s", folder)
    return replace(config, adapter=str(folder), first=FirstSettings())


@contextmanager
def _naming_first_stage() -> Iterator[None]:
    """In errors raised within, call the settings of a first stage as those have them who give them."""
    try:
        yield
    except UserError as error:
        raise UserError(_OF_FIRST_STAGE.sub(lambda found: f"first.{found[1] or found[2]}", str(error))) from error


def first_stage(config: Config, inputs: InputCache) -> Config | None:
    """The job that is a job's first stage; None if it has none.

    Args:
        config: the job. inputs: data and base models that other jobs have loaded.
    """
    first = config.first
    if first.data is None or not config.train.steps:
        return None
    config = make_plan(config, inputs).config  # the first stage reads as long texts as the second will
    loss = config.loss.without_scored()
    train = replace(config.train, steps=first.steps, batch_size=first.batch_size, accumulation=1, epochs=_ENDLESS)
    return replace(
        config,
        data=first.data,
        loss=replace(loss, hard_negatives=loss.hard_negatives and first.data.may_have_negatives),
        train=replace(train, keep=[], eval_every=0, best=False, patience=None, scored_batch=TrainSettings.scored_batch),
        lr=first.lr,
        first=FirstSettings(),
        eval=EvalSettings(name="none", source=EvalSource.none),
        logger=LoggerSettings(kind=LoggerKind.none),
    )


class _Models:
    """The base model and the trained one, each loaded when first needed and released at the end of the block."""

    def __init__(self, plan: Plan) -> None:
        self._plan = plan

    @functools.cached_property
    def base(self) -> Embedder:
        """What the job starts from; training changes it in place, so it is released then."""
        plan = self._plan
        return plan.start.load(plan.config, trainable=plan.data is not None and not plan.is_trained)

    @functools.cached_property
    def tuned(self) -> Embedder:
        """The trained model as any user would load it: out of its folder, held to its contract."""
        self.release()  # of the base model, for which there may be no room beside it
        return Embedder.load(self._plan.result, device=self._plan.start.device)

    @property
    def by_name(self) -> dict[str, Callable[[], Embedder]]:
        """What each of them is loaded by."""
        return {"base": lambda: self.base, "tuned": lambda: self.tuned}

    def shared(self, which: str, world: World) -> Embedder:
        """One of them by its name, as all processes embed with it."""
        return shared(self.by_name[which](), which, world)

    def release(self) -> None:
        """Let go of both: what comes next needs the memory."""
        self.__dict__.pop("base", None)
        self.__dict__.pop("tuned", None)
        gc.collect()
        if self._plan.start.device.type == "cuda":
            torch.cuda.empty_cache()

    def __enter__(self) -> "_Models":
        return self

    def __exit__(self, *_: object) -> None:
        self.release()


def score_baseline(plan: Plan, inputs: InputCache) -> Baseline | None:
    """Scores of the job's baseline on the job's data, without a prompt; None if it has none, or starts from it."""
    model, config = plan.config.baseline.model, plan.config
    if model is None or not (plan.sets or plan.retrieval) or (model == config.model and not plan.start.adapter):
        return None
    alone = replace(
        config,
        model=model,
        distill=DistillSettings(),
        baseline=BaselineSettings(),
        prompt=PromptSettings(),
        train=replace(config.train, steps=0, keep=[], chunk_tokens=None),
        eval=replace(config.eval, step=None),
        adapter=None,
        adapter_revision=None,
        adapter_any_base=False,
    )
    try:
        with renaming_keys(BASELINE):
            beside = make_plan(alone, inputs)
            with _Models(beside) as models:
                return Baseline(model.name, score(beside, beside.base_folder, lambda: models.base, model.name))
    except UserError as error:
        log.warning("no baseline (baseline=none leaves it out): %s", error)
        return None


def _score_base_alone(plan: Plan, models: _Models, world: World) -> str:
    if not world.is_main:
        help_out(models.by_name, world)
        return ""
    with helped(world):
        before = score(plan, plan.base_folder, lambda: models.shared("base", world), plan.start_name)
    report_base(plan, before)
    return f"mean {before.headline:.2f}"


def _require_effect(plan: Plan, before: Evaluation, after: Evaluation) -> None:
    """Refuse a result that embeds exactly as what it was trained from: its weights are not in use."""
    same = [np.array_equal(cosines, after.cosines[name]) for name, cosines in before.cosines.items()]
    if same and all(same):
        raise UserError(
            f"the trained weights in {plan.result} change no cosine of any evaluated pair: they are without effect; "
            "remove the folder, and see by `python -m cft.doctor` whether lora.targets names layers that are used"
        )


@contextmanager
def _exclusive_work(plan: Plan, *, wait: bool = False) -> Iterator[Tracker]:
    """Be the one process at work on a training: its lock, its log, its tracker, and a record if it fails."""
    with (
        exclusive_lock(plan.folder, wait=wait or plan.is_trained),
        log_file(plan.training.file(RunFolder.LOG)),
        _failure_noted(plan.training),
        _tracker(plan) as tracker,
    ):
        yield tracker


@contextmanager
def _failure_noted(folder: RunFolder) -> Iterator[None]:
    """Leave the cause in a training's folder when it fails, until it goes well."""
    try:
        yield
    except GivenUp:
        raise
    except Exception as error:
        cause = str(error) if isinstance(error, UserError) else f"{type(error).__name__}: {error}"
        with suppress(OSError):  # a full disk, of all causes, must not be hidden by this
            folder.note_failure(secrets.masked(cause))
        raise
    folder.file(RunFolder.FAILED).unlink(missing_ok=True)


def _tracker(plan: Plan) -> AbstractContextManager[Tracker]:
    """The job's tracker; none if the job only shows what was reported to one of its kind before."""
    scores = plan.scores_folder(plan.result)
    reported = plan.is_trained and _told(plan.config) in _reported(plan)[1]
    return tracking(
        replace(plan.config.logger, kind=LoggerKind.none) if reported else plan.config.logger,
        Job(
            name=plan.folder.name,
            identity=digest([plan.folder.name, *([plan.stop_at] if plan.stop_at < plan.steps else []), scores.name]),
            kind="evaluate" if plan.is_trained else "train",
            folder=plan.folder,
            shared=plan.outputs,
            config=to_plain(plan.config),
            triplets=0 if plan.config.data.is_scored_alone else plan.config.train.batch_size,
            evaluation=scores.name if plan.stop_at == plan.steps else f"{scores.name}-step-{plan.stop_at}",
            again=goes_again(plan),
        ),
    )


def _told(config: Config) -> str:
    """What a job tells a tracker of its kind: its scores and, if it has a baseline, those of this one too."""
    baseline = config.baseline.model
    return f"{config.logger.kind.value} beside {baseline.name}" if baseline else config.logger.kind.value


def _reported(plan: Plan) -> tuple[Path, list[str]]:
    """The file that says which kinds of trackers have the job's scores, and which do."""
    path = plan.scores_folder(plan.result) / REPORTED
    record = read_json(path) if path.exists() else {}
    return path, record.get("loggers", [record["logger"]] if "logger" in record else [])  # one, in older records
