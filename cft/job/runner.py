"""One job, carried out: score the base model, train it, score the result, and leave a complete record."""

import gc
import itertools
import logging
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, suppress
from dataclasses import replace
from functools import cached_property
from pathlib import Path

import numpy as np
import torch

from cft.config.schema import TEACHER, Config, DataSource, EvalSource, LoggerKind
from cft.data.records import ScoredPair, Triplet
from cft.data.training_data import TrainingData
from cft.evaluation import pairs, results
from cft.evaluation.scores import Evaluation, evaluate
from cft.evaluation.vector_cache import CachedEncoder
from cft.job import figures, report
from cft.job.card import HUB, write_card
from cft.job.plan import FAILED, FINISHED, RECIPE, InputCache, Plan, make_plan
from cft.job.start import choose_device
from cft.job.tracking import Job as Followed
from cft.job.tracking import Result, Tracker, tracking
from cft.model.embedder import Embedder
from cft.model.lora import add_lora, find_targets, trainable
from cft.model.weights import ADAPTER_FOLDER, save_weights, weights_in_memory
from cft.system import secrets, tables
from cft.system.digest import digest, to_plain
from cft.system.disk import require_room, require_writable
from cft.system.distributed import SINGLE_PROCESS, World, join_world
from cft.system.environment import describe_environment
from cft.system.errors import UserError, renaming_keys
from cft.system.files import append_line, atomic_write, exclusive_lock, read_json, write_json, write_text
from cft.training import checkpoint
from cft.training.contrastive import Teacher
from cft.training.memory import PeakMemory
from cft.training.schedule import warmup_steps
from cft.training.trainer import Watcher, train

log = logging.getLogger(__name__)

# Beside scores that whoever follows the job was told of; it comes last, so that a killed job tells them again.
REPORTED = "reported.json"


def run(config: Config, inputs: InputCache | None = None, watch: Watcher | None = None) -> str:
    """Do one job, or what is left of it.

    Args:
        config: the job.
        inputs: what other jobs loaded already.
        watch: called with every row of the training's history as it arises.

    Returns:
        One line that says what came out.

    Raises:
        UserError: for whatever the user can mend.
    """
    world = join_world(choose_device(config.device))
    with world.main_process_first():
        if world.is_main:
            require_writable(Path(config.outputs))
        plan = make_plan(config, inputs)
    models = _Models(plan)
    try:
        if not world.is_main:
            return _train_along(plan, models, world)
        return _train_and_score(plan, models, watch, world) if plan.data else _score_base(plan, models)
    finally:
        models.release()


def train_only(config: Config, inputs: InputCache | None = None, watch: Watcher | None = None) -> Path:
    """Do a job's training, or what is left of it, and score nothing; returns its folder.

    Args:
        config: the job.
        inputs: what other jobs loaded already.
        watch: called with every row of the history as it arises; may raise to end the training, which can go on later.

    Raises:
        UserError: for whatever the user can mend.
    """
    plan = make_plan(config, inputs)
    if plan.data is None:
        raise UserError("train.steps=0: there is nothing to train")
    models = _Models(plan)
    try:
        with _at_work(plan) as tracker:
            if not plan.is_trained:
                _train(plan, models.base, tracker, watch, SINGLE_PROCESS)
    finally:
        models.release()
    return plan.folder


class _Models:
    """The base model and the trained one, each loaded when first needed."""

    def __init__(self, plan: Plan) -> None:
        self._plan = plan

    @cached_property
    def base(self) -> Embedder:
        """What the job starts from; training changes it in place, so it is released then."""
        plan = self._plan
        return plan.start.load(plan.config, trainable=plan.data is not None and not plan.is_trained)

    @cached_property
    def tuned(self) -> Embedder:
        """The trained model as anybody else would load it: out of its folder, held to its contract."""
        return Embedder.load(self._plan.result, device=self._plan.start.device)

    def release(self) -> None:
        """Let go of both: what comes next needs the memory."""
        self.__dict__.pop("base", None)
        self.__dict__.pop("tuned", None)
        gc.collect()
        if self._plan.start.device.type == "cuda":
            torch.cuda.empty_cache()


def _start(plan: Plan) -> str:
    """What the job starts from, in words."""
    name = plan.config.model.name
    return f"the adapter {plan.start.adapter.name} on {name}" if plan.start.adapter else f"the base model {name}"


def _score_base(plan: Plan, models: _Models) -> str:
    """Only evaluate what a training would start from."""
    before = _evaluation(plan, plan.base_folder, lambda: models.base, _start(plan))
    folder = plan.scores_folder(plan.base_folder)
    table = report.scores(before)
    _say_table(plan.config, table, f"{_start(plan)} alone (train.steps=0)")
    write_text(folder / "table.md", f"# {_start(plan)} on {plan.config.eval.name}\n\n{tables.as_markdown(table)}\n")
    _say_files(folder, [])
    return f"mean {before.mean:.2f}"


def _train_along(plan: Plan, models: _Models, world: World) -> str:
    """What processes beside the first do: their share of the training's batches, and nothing else."""
    if plan.data is None or world.broadcast_object(plan.is_trained):
        return ""
    _check_share(plan.config, world)
    train(
        _trainable_embedder(plan, models.base),
        plan.data,
        plan.config,
        teacher=_teacher(plan),
        folder=plan.folder,
        steps=plan.steps,
        stop_at=plan.stop_at,
        bf16=plan.start.bf16,
        watch=lambda row: None,
        reached=lambda step: None,
        world=world,
    )
    return ""


def _check_share(config: Config, world: World) -> None:
    """Refuse more processes than a batch has triplets."""
    size = config.train.batch_size // config.train.accumulation
    if size < world.size:
        raise UserError(
            f"train.batch_size={config.train.batch_size} with train.accumulation={config.train.accumulation} gives "
            f"{size} triplets to {world.size} processes: raise it, or start fewer"
        )


def _trainable_embedder(plan: Plan, base: Embedder) -> Embedder:
    """The base model with weights to train, freshly initialised, under the prompt of training."""
    config = plan.config
    # An adapter to start from is in place, and trainable, already.
    fresh = plan.start.adapter is None
    model = add_lora(base.model, config.lora, seed=config.seed).to(plan.start.device) if fresh else base.model
    return Embedder(model, base.backbone, base.contract.with_template(config.prompt.train_template))


def _teacher(plan: Plan) -> Teacher | None:
    """Whom to learn from, on the device of the training."""
    settings = plan.config.distill
    if plan.teacher is None or settings.model is None:
        return None
    log.info("loading the teacher %s (%s)", settings.model.name, settings.model.path)
    with renaming_keys(TEACHER):
        return Teacher(Embedder.base(settings.model, files=plan.teacher, device=plan.start.device), settings)


def _train_and_score(plan: Plan, models: _Models, watch: Watcher | None, world: World) -> str:
    """Evaluate, train and evaluate again."""
    _check_share(plan.config, world)
    if not plan.is_trained and (plan.start.adapter or plan.config.lora.rank):
        base = models.base  # what does not match should be said before minutes go into an evaluation
        if not plan.start.adapter:
            find_targets(base.model, plan.config.lora)
    before = _evaluation(plan, plan.base_folder, lambda: models.base, _start(plan))
    with _at_work(plan) as tracker:
        if world.broadcast_object(plan.is_trained):
            log.info("already trained: %s holds the result of this very configuration", plan.result)
        else:
            _train(plan, models.base, tracker, watch, world)
        models.release()
        after = _evaluation(plan, plan.result, lambda: models.tuned, "the result")
        _require_effect(plan, before, after)
        pictures = _write_report(plan, before, after)
        scores = {f"before/{name}": score for name, score in before.scores.items()}
        scores |= {f"after/{name}": score for name, score in after.scores.items()}
        scores |= {"before/mean": before.mean, "after/mean": after.mean}
        table = report.comparison(before, after)
        tracker.finish(Result(scores, table, pictures, plan.stop_at, plan.result / ADAPTER_FOLDER))
    write_json(plan.scores_folder(plan.result) / REPORTED, {"logger": plan.config.logger.kind})
    return f"mean {before.mean:.2f} before, {after.mean:.2f} after ({plan.result})"


def _require_effect(plan: Plan, before: Evaluation, after: Evaluation) -> None:
    """Refuse a result that embeds exactly as what it was trained from: its weights are not in use."""
    same = [np.array_equal(cosines, after.cosines[name]) for name, cosines in before.cosines.items()]
    if same and all(same):
        raise UserError(
            f"the trained weights in {plan.result} change no cosine of any evaluated pair: they are without effect; "
            "remove the folder, and see by `python -m cft.doctor` whether lora.targets names layers that are used"
        )


@contextmanager
def _at_work(plan: Plan) -> Iterator[Tracker]:
    """Be the one process at work on a training: its log, its followers, and a note if it fails."""
    with (
        exclusive_lock(plan.folder, wait=plan.is_trained),
        _log_file(plan.folder / "log.txt"),
        _failure_noted(plan.folder),
    ):
        with _tracker(plan) as tracker:
            yield tracker


@contextmanager
def _failure_noted(folder: Path) -> Iterator[None]:
    """Leave the reason in a training's folder when it fails, until it goes well."""
    path = folder / FAILED
    try:
        yield
    except Exception as error:
        cause = str(error) if isinstance(error, UserError) else f"{type(error).__name__}: {error}"
        with suppress(OSError):  # a full disk, of all reasons, must not be hidden by this
            write_json(path, {"step": checkpoint.step_of(folder), "cause": secrets.masked(cause)})
        raise
    path.unlink(missing_ok=True)


def _tracker(plan: Plan) -> AbstractContextManager[Tracker]:
    """Whoever follows this job; nobody, if it only shows what it finds."""
    scores = plan.scores_folder(plan.result)
    reported = plan.is_trained and (scores / REPORTED).exists()
    return tracking(
        replace(plan.config.logger, kind=LoggerKind.none) if reported else plan.config.logger,
        Followed(
            name=plan.folder.name,
            identity=digest([plan.folder.name, *([plan.stop_at] if plan.stop_at < plan.steps else []), scores.name]),
            kind="evaluate" if plan.is_trained else "train",
            folder=plan.folder,
            shared=plan.outputs,
            config=to_plain(plan.config),
            triplets=plan.config.train.batch_size,
        ),
    )


def _train(plan: Plan, base: Embedder, tracker: Tracker, watch: Watcher | None, world: World) -> None:
    """Train as far as this job needs, and leave record, adapter and contract."""
    config, data, folder = plan.config, plan.data, plan.folder
    assert data is not None
    write_json(folder / "config.json", config)
    write_json(folder / "environment.json", {**describe_environment(plan.start.device), "processes": world.size})
    counts = {"triplets": len(data.triplets), "held_out": len(data.holdout), "development_pairs": len(data.dev)}
    write_json(folder / "data.json", {"content": data.content, "skipped_rows": data.skipped, **counts})

    embedder = _trainable_embedder(plan, base)
    wanted = {step for step in (*config.train.keep, plan.stop_at) if step < plan.steps}

    def keep(step: int) -> None:
        if step in wanted and not plan.has_kept(step):
            _save(plan, embedder, plan.step_folder(step))

    def note(row: dict) -> None:
        tracker.watch(row)
        if watch:
            watch(row)

    sizes = [weight.numel() * weight.element_size() for weight in trainable(embedder.model).values()]
    require_room(folder, sum(sizes), len(wanted))
    before = weights_in_memory(embedder.model)
    _say_plan(plan, data, embedder.model, world)
    work = plan.step_folder(plan.stop_at) / "again" if _is_past(plan) else folder
    began, memory = time.perf_counter(), PeakMemory(embedder.device)
    history = train(
        embedder,
        data,
        config,
        teacher=_teacher(plan),
        folder=work,
        steps=plan.steps,
        stop_at=plan.stop_at,
        bf16=plan.start.bf16,
        watch=note,
        reached=keep,
        world=world,
    )
    if weights_in_memory(embedder.model) == before:
        raise UserError(
            f"{plan.stop_at} steps changed none of the trained weights: the learning rate was 0 all along, or too "
            f"small for float32 (lr={config.lr:g}, {warmup_steps(config.schedule, plan.steps)} warm-up steps)"
        )
    if plan.stop_at == plan.steps:
        _finish(plan, embedder, history, seconds=time.perf_counter() - began, memory=memory.bytes())
    if work != folder:
        checkpoint.remove(work)
        work.rmdir()


def _is_past(plan: Plan) -> bool:
    """Whether the training went past the step that is wanted now and did not keep it."""
    past = plan.is_finished or checkpoint.step_of(plan.folder) >= plan.stop_at
    if past and plan.stop_at < plan.steps:
        log.info(
            "step %d was not kept: training again up to there; train.keep=[%d] keeps it", plan.stop_at, plan.stop_at
        )
        return True
    return False


def _save(plan: Plan, embedder: Embedder, folder: Path) -> str:
    """Write the trained weights and then their contract; returns the weights' digest."""
    weights = save_weights(embedder.model, folder / ADAPTER_FOLDER, plan.config.model.path)
    embedder.with_template(plan.config.prompt.saved_template).save(folder, weights)
    return weights


def _finish(plan: Plan, embedder: Embedder, history: list[dict], *, seconds: float, memory: int | None) -> None:
    """Leave a whole training's result; the file FINISHED comes last and says that all is there.

    Args:
        seconds, memory: of this call alone, which may have gone on from a checkpoint; the history has every step's
            seconds. memory: the highest use in bytes, if it is known.
    """
    folder = plan.folder
    weights = _save(plan, embedder, folder)
    with atomic_write(folder / figures.HISTORY) as part:
        for row in history:
            append_line(part, row)
    figures.save(figures.training(history), folder, "training")
    losses = [row["loss"] for row in history if row["event"] == "step"]
    write_json(
        folder / FINISHED,
        {
            "facts": plan.training_facts,
            "steps": plan.steps,
            "final_loss": losses[-1],
            "seconds": round(seconds, 1),
            "peak_memory": memory,
            "weights": weights,
        },
    )
    checkpoint.remove(folder)


def _evaluation(plan: Plan, owner: Path, embedder: Callable[[], Embedder], what: str) -> Evaluation:
    """Scores of an embedder on the sets and on the held-out triplets: stored ones, or made now and stored."""

    def stage(folder: Path, sets: dict[str, list[ScoredPair]], triplets: list[Triplet]) -> Evaluation:
        with exclusive_lock(folder, wait=True):  # another job may be making the same scores at this moment
            stored = results.load_evaluation(folder)
            if stored:
                log.info("already evaluated %s: %s", what, folder)
                return stored
            began = time.perf_counter()
            prompted = embedder().with_template(plan.config.prompt.eval_template)
            caption = f"evaluating {what} on {folder.name.rsplit('-', 1)[0]}"
            remembering = CachedEncoder(prompted, gigabytes=plan.config.vector_cache_gb, version=RECIPE)
            found = evaluate(remembering, sets, triplets, progress=caption)
            results.save_evaluation(folder, found, prompted.contract, seconds=time.perf_counter() - began)
            return found

    by_set = stage(plan.scores_folder(owner), plan.sets, [])
    pairs.write_once(plan.scores_folder(owner), plan.sets, plan.data if owner != plan.base_folder else None)
    if not plan.holdout:
        return by_set
    in_order = stage(plan.triplets_folder(owner), {}, plan.holdout)
    return replace(by_set, positives=in_order.positives, negatives=in_order.negatives, uniformity=in_order.uniformity)


def _write_report(plan: Plan, before: Evaluation, after: Evaluation) -> dict[str, Path]:
    """Print and save the before/after table and its pictures; returns the pictures by name."""
    config, folder = plan.config, plan.scores_folder(plan.result)
    table = report.comparison(before, after)
    title = f"{config.model.name} on {config.data.name}, before and after {plan.stop_at} steps"
    _say_table(config, table, title)
    write_text(folder / "table.md", f"# {title}\n\n{tables.as_markdown(table)}\n")
    _note_scores(plan, folder.name, before, after)
    write_card(plan.result, config, read_json(plan.folder / "data.json"))
    pictures = figures.save(figures.scores(before, after), folder, "scores")
    if len(after.negatives):
        pictures += figures.save(figures.similarities(before, after), folder, "similarities")
    if plan.is_finished:
        pictures.append(plan.folder / "training.png")
    _say_files(folder, pictures)
    _say_next(plan)
    return {path.stem: path for path in pictures if path.suffix == ".png"}


def _note_scores(plan: Plan, evaluation: str, before: Evaluation, after: Evaluation) -> None:
    """Enter one evaluation into the run's own summary, beside those made under other prompts or on other data."""
    path = plan.result / results.METRICS
    known = read_json(path) if path.exists() else {}
    from_hub = plan.config.eval.source is EvalSource.sts and plan.config.eval.folder is None
    known[evaluation] = {
        "source": HUB if from_hub else "elsewhere",
        "prompt": plan.config.prompt.eval_template,
        "before": before.record(),
        "after": after.record(),
    }
    write_json(path, known)


class _File(logging.FileHandler):
    """A log that cannot be written ends nothing: what it says stands on the terminal too."""

    def handleError(self, record: logging.LogRecord) -> None:
        """Without the traceback that logging would print for every line."""


def _exc_info(error: BaseException | None) -> tuple | None:
    return (type(error), error, error.__traceback__) if error else None


@contextmanager
def _log_file(path: Path) -> Iterator[None]:
    """Copy what is reported into the run's own log, with times."""
    try:
        handler = _File(path, encoding="utf-8")
    except OSError as error:
        error.filename = str(path)
        raise
    handler.setFormatter(secrets.Masking("%(asctime)s %(message)s"))
    package = logging.getLogger("cft")
    level = package.level
    package.setLevel(logging.INFO)
    package.addHandler(handler)
    try:
        yield
    except Exception as error:
        # What the user can mend needs no traceback; for the rest there may be no second chance to see it.
        traceback = None if isinstance(error, (UserError, OSError)) else error
        handler.handle(package.makeRecord("cft", logging.ERROR, "", 0, f"failed: {error}", (), _exc_info(traceback)))
        raise
    finally:
        package.removeHandler(handler)
        package.setLevel(level)
        handler.close()


def _say_plan(plan: Plan, data: TrainingData, model: torch.nn.Module, world: World) -> None:
    """What is about to happen, in numbers."""
    config, steps = plan.config, plan.steps
    micro = config.train.batch_size // config.train.accumulation
    some = list(itertools.islice(data.triplets, 10_000))
    negatives = sum(len(row.negatives) for row in some) / len(some)
    hard = round(micro * negatives) if config.loss.hard_negatives else 0
    count = sum(weight.numel() for weight in trainable(model).values())
    log.info(
        "training %s weights for %s steps of %d triplets (%d at hand%s), learning rate %g after %d warm-up steps, %s%s",
        f"{count:,}",
        steps if plan.stop_at == steps else f"the first {plan.stop_at} of {steps}",
        config.train.batch_size,
        len(data.triplets),
        f", {data.skipped} bad rows skipped" if data.skipped else "",
        config.lr,
        warmup_steps(config.schedule, steps),
        "bf16" if plan.start.bf16 else "float32",
        f", on {world.size} processes" if world.size > 1 else "",
    )
    if steps < config.train.steps:
        log.info(
            "that is all of the data, train.epochs=%d time(s): raise it to come to train.steps=%d",
            config.train.epochs,
            config.train.steps,
        )
    seen = pairs.overlapping(data.dev, plan.sets)
    if seen:
        log.warning(
            "%d of %d development pairs stand in the test sets (%s): choose no settings by them",
            len(seen),
            len(data.dev),
            ", ".join(sorted(set(seen))),
        )
    log.info(
        "each anchor chooses among %d candidates: its positive, %d in-batch negatives, %d hard negatives",
        micro + hard,
        micro - 1,
        hard,
    )
    if config.distill.model:
        taught = f"{config.distill.share:.0%} of what it should choose is said by {config.distill.model.name}"
        log.info("%s, whose knowledge the result then has, too", taught)


def _say_table(config: Config, table: list[tuple[str, ...]], title: str) -> None:
    log.info("\n%s (Spearman x 100, prompt %r)\n\n%s\n", title, config.prompt.eval_template, tables.as_text(table))


def _say_files(folder: Path, pictures: list[Path]) -> None:
    """Name the table and pictures that were written."""
    lines = ["written:", f"  table     {folder / 'table.md'}"]
    lines += [f"  picture   {path}" for path in pictures if path.suffix == ".png"]
    log.info("\n".join(lines))


def _say_next(plan: Plan) -> None:
    """Name the embedder and what to do with it, or, after the demo, what to try on real text."""
    log.info("  embedder  %s (adapter/, contract.json; README.md is its model card)", plan.result)
    if plan.config.data.source is DataSource.scenes:
        log.info("next: your own triplets, python -m cft.run data=files data.train=FILE.csv")
    else:
        log.info('next: from cft import Embedder; Embedder.load("%s").encode(["a text"])', plan.result)
