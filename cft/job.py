"""One job: score the base model, train it, score the result, and leave a complete record.

Every stage has a folder named by what determines its result, so that a stage done once is never done again, by this
job or by another that shares it:

    OUTPUTS/base-MODEL-DIGEST/evaluations/EVAL-DIGEST/    the base model's scores
    OUTPUTS/MODEL-DATA-DIGEST/                            a training: adapter, contract, history, log, record
    OUTPUTS/MODEL-DATA-DIGEST/evaluations/EVAL-DIGEST/    its scores, table and pictures
"""

import gc
import logging
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import replace
from functools import cached_property
from pathlib import Path

import torch

from cft import checkpoint, figures, report, results
from cft.backbone import ADAPTER_FOLDER, add_lora, save_weights, trainable
from cft.data import TrainingData, load_training_data
from cft.embedder import Embedder
from cft.environment import describe
from cft.errors import UserError
from cft.evaluator import Evaluation, evaluate
from cft.records import ScoredPair, Triplet
from cft.schedule import warmup_steps
from cft.settings import Config, LoggerKind, Precision, check
from cft.sources import ModelFiles, fetch
from cft.store import append_line, digest, held, plain, read_json, replacing, write_json, write_text
from cft.sts import load_eval_sets
from cft.tracking import Tracker, tracking
from cft.trainer import plan_steps, train

log = logging.getLogger(__name__)

# Raise when a change to the code changes what a training or an evaluation gives: old results are then not reused.
RECIPE = 1

FINISHED = "training.json"


def run(config: Config) -> str:
    """Do one job, or what is left of it.

    Returns:
        One line that says what came out.

    Raises:
        UserError: for whatever the user can mend.
    """
    check(config)
    return _Job(config).run()


class _Job:
    """What the stages of one job share: its data, its base model, its folders."""

    def __init__(self, config: Config) -> None:
        self.config = config
        self.outputs = Path(config.outputs)
        self.device = _device(config.device)
        self.bf16 = _wants_bf16(config.train.precision, self.device)
        self.trains = config.train.steps > 0
        # Data first: a bad row should be named before gigabytes of weights are fetched.
        self.data = load_training_data(config.data, seed=config.seed) if self.trains else None
        self.steps = plan_steps(config.train, len(self.data.triplets)) if self.data else 0
        self.sets = load_eval_sets(config.eval, seed=config.seed)
        self.files: ModelFiles = fetch(config.model)

    @cached_property
    def base_facts(self) -> dict:
        """What the base model's vectors depend on, the prompt excepted."""
        model = self.config.model
        return {
            "recipe": RECIPE,
            "weights": self.files.identity,
            "pooling": model.pooling,
            "attention": model.attention,
            "append_eos": model.append_eos,
            "max_length": model.max_length,
            "dtype": str(self._dtype),
        }

    @cached_property
    def training_facts(self) -> dict:
        """What the trained weights depend on."""
        config = self.config
        assert self.data is not None
        settings = {
            key: getattr(config.train, key)
            for key in ("batch_size", "accumulation", "weight_decay", "max_grad_norm", "eval_every")
        }
        return {
            "base": self.base_facts,
            "lora": config.lora,
            "loss": config.loss,
            "template": config.prompt.train_template,
            "schedule": config.schedule,
            "lr": config.lr,
            "seed": config.seed,
            "steps": self.steps,
            "train": settings,
            "bf16": self.bf16,
            "data": self.data.content,
        }

    @property
    def base_folder(self) -> Path:
        """Where results of the untrained model are kept."""
        return self.outputs / f"base-{self.config.model.name}-{digest(self.base_facts)}"

    @property
    def folder(self) -> Path:
        """Where this training is kept."""
        return self.outputs / f"{self.config.model.name}-{self.config.data.name}-{digest(self.training_facts)}"

    @property
    def _dtype(self) -> torch.dtype:
        """Of the base weights: frozen ones may be bfloat16, weights in training stay float32."""
        return torch.bfloat16 if self.bf16 and self.config.lora.rank > 0 else torch.float32

    @cached_property
    def base(self) -> Embedder:
        """The base model, loaded when first needed."""
        log.info("loading %s (%s)", self.config.model.name, self.config.model.path)
        return Embedder.base(self.config.model, files=self.files, device=self.device, dtype=self._dtype)

    @cached_property
    def tuned(self) -> Embedder:
        """The trained model as anybody else would load it: out of its folder, held to its contract."""
        return Embedder.load(self.folder, device=self.device)

    def run(self) -> str:
        """All stages in turn."""
        before = self.evaluation(self.base_folder, lambda: self.base, "the base model")
        if not self.trains:
            folder = self.report_folder(self.base_folder)
            table = report.rows(before, None)
            _say_table(self.config, table, "the base model alone (train.steps=0)")
            write_text(folder / "table.md", report.as_markdown(table) + "\n")
            _say_files(folder, [])
            return f"mean {before.mean:.2f}"
        with held(self.folder), _log_file(self.folder / "log.txt"), self.tracker() as tracker:
            if (self.folder / FINISHED).exists():
                log.info("already trained: %s holds the result of this very configuration", self.folder)
            else:
                self.train(tracker)
            after = self.evaluation(self.folder, lambda: self.tuned, "the result")
            pictures = self.write_report(before, after)
            tracker.finish(
                {f"before/{name}": score for name, score in before.scores.items()}
                | {f"after/{name}": score for name, score in after.scores.items()}
                | {"before/mean": before.mean, "after/mean": after.mean},
                pictures,
            )
        self.release()
        return f"mean {before.mean:.2f} before, {after.mean:.2f} after ({self.folder})"

    def tracker(self) -> AbstractContextManager[Tracker]:
        """Whoever follows this job; nobody, if it only shows what it finds."""
        scores = self.report_folder(self.folder)
        finished = (self.folder / FINISHED).exists() and results.read(scores) is not None
        return tracking(
            replace(self.config.logger, kind=LoggerKind.none) if finished else self.config.logger,
            name=self.folder.name,
            folder=self.outputs,
            config=plain(self.config),
            identity=digest([self.folder.name, scores.name]),
        )

    def train(self, tracker: Tracker) -> None:
        """Train, and leave adapter, contract and record; the file FINISHED comes last and says that all is there."""
        config, data = self.config, self.data
        assert data is not None
        write_json(self.folder / "config.json", config)
        write_json(self.folder / "environment.json", describe(self.device))
        write_json(
            self.folder / "data.json",
            {
                "content": data.content,
                "triplets": len(data.triplets),
                "held_out": len(data.holdout),
                "development_pairs": len(data.dev),
                "skipped_rows": data.skipped,
            },
        )
        embedder = self.base.with_template(config.prompt.train_template)
        model = add_lora(embedder.model, config.lora, seed=config.seed).to(self.device)
        embedder = Embedder(model, embedder.backbone, embedder.contract)
        _say_plan(config, data, self.steps, model, self.bf16)
        began = time.perf_counter()
        history = train(
            embedder, data, config, folder=self.folder, steps=self.steps, bf16=self.bf16, watch=tracker.watch
        )
        weights = save_weights(model, self.folder / ADAPTER_FOLDER, config.model.path)
        embedder.save(self.folder, weights)
        with replacing(self.folder / "history.jsonl") as part:
            for row in history:
                append_line(part, row)
        figures.save(figures.training(history), self.folder, "training")
        write_json(
            self.folder / FINISHED,
            {
                "facts": self.training_facts,
                "steps": self.steps,
                "final_loss": [row["loss"] for row in history if row["event"] == "step"][-1],
                "seconds": round(time.perf_counter() - began, 1),
                "weights": weights,
            },
        )
        checkpoint.remove(self.folder)
        del model, embedder
        self.release()

    def release(self) -> None:
        """Let go of the models: what comes next needs the memory."""
        self.__dict__.pop("base", None)
        self.__dict__.pop("tuned", None)
        gc.collect()
        if self.device.type == "cuda":
            torch.cuda.empty_cache()

    def evaluation(self, owner: Path, embedder: Callable[[], Embedder], what: str) -> Evaluation:
        """Scores of an embedder on the sets and on the held-out triplets: stored ones, or made now and stored."""
        by_set = self._stage(owner, self.config.eval.name, self.sets, [], embedder, what)
        if not self.holdout:
            return by_set
        in_order = self._stage(owner, "triplets", {}, self.holdout, embedder, what)
        return replace(by_set, positives=in_order.positives, negatives=in_order.negatives)

    def _stage(
        self,
        owner: Path,
        name: str,
        sets: dict[str, list[ScoredPair]],
        triplets: list[Triplet],
        embedder: Callable[[], Embedder],
        what: str,
    ) -> Evaluation:
        folder = self._stage_folder(owner, name, sets, triplets)
        stored = results.read(folder)
        if stored:
            log.info("already evaluated %s on %s: %s", what, name, folder)
            return stored
        prompted = embedder().with_template(self.config.prompt.eval_template)
        found = evaluate(prompted, sets, triplets, progress=f"evaluating {what} on {name}")
        results.write(folder, found, prompted.contract)
        return found

    def _stage_folder(self, owner: Path, name: str, sets: dict[str, list[ScoredPair]], triplets: list[Triplet]) -> Path:
        facts = {
            "recipe": RECIPE,
            "template": self.config.prompt.eval_template,
            "sets": sets,
            "triplets": triplets,
        }
        return owner / "evaluations" / f"{name}-{digest(facts)}"

    def report_folder(self, owner: Path) -> Path:
        """Where an embedder's scores on the sets, their table and their pictures are kept."""
        return self._stage_folder(owner, self.config.eval.name, self.sets, [])

    @property
    def holdout(self) -> list[Triplet]:
        """Held-out triplets, none when nothing is trained."""
        return self.data.holdout if self.data else []

    def write_report(self, before: Evaluation, after: Evaluation) -> dict[str, Path]:
        """Print and save the before/after table and its pictures; returns the pictures by name."""
        folder = self.report_folder(self.folder)
        table = report.rows(before, after)
        title = f"{self.config.model.name} on {self.config.data.name}, before and after {self.steps} steps"
        _say_table(self.config, table, title)
        write_text(folder / "table.md", f"# {title}\n\n{report.as_markdown(table)}\n")
        self._note_scores(folder.name, before, after)
        pictures = figures.save(figures.scores(before, after), folder, "scores")
        if len(after.negatives):
            pictures += figures.save(figures.similarities(before, after), folder, "similarities")
        pictures += [path for path in sorted(self.folder.glob("training.*")) if path.suffix in (".png", ".svg")]
        _say_files(folder, pictures, trained=self.folder)
        return {path.stem: path for path in pictures if path.suffix == ".png"}

    def _note_scores(self, evaluation: str, before: Evaluation, after: Evaluation) -> None:
        """Enter one evaluation into the run's own summary, beside those made under other prompts or on other data."""
        path = self.folder / results.METRICS
        known = read_json(path) if path.exists() else {}
        known[evaluation] = {
            "prompt": self.config.prompt.eval_template,
            "before": before.record(),
            "after": after.record(),
        }
        write_json(path, known)


def _device(name: str) -> torch.device:
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    if name not in ("cpu", "cuda"):
        raise UserError(f"device={name}: must be auto, cpu or cuda")
    if name == "cuda" and not torch.cuda.is_available():
        raise UserError("device=cuda: torch sees no CUDA device here; set device=cpu, or install a CUDA build of torch")
    return torch.device(name)


def _wants_bf16(precision: Precision, device: torch.device) -> bool:
    if precision is Precision.auto:
        return device.type == "cuda" and torch.cuda.is_bf16_supported()
    return precision is Precision.bf16


@contextmanager
def _log_file(path: Path) -> Iterator[None]:
    """Copy what is reported into the run's own log, with times."""
    handler = logging.FileHandler(path, encoding="utf-8")
    handler.setFormatter(logging.Formatter("%(asctime)s %(message)s"))
    package = logging.getLogger("cft")
    level = package.level
    package.setLevel(logging.INFO)
    package.addHandler(handler)
    try:
        yield
    finally:
        package.removeHandler(handler)
        package.setLevel(level)
        handler.close()


def _say_plan(config: Config, data: TrainingData, steps: int, model: torch.nn.Module, bf16: bool) -> None:
    micro = config.train.batch_size // config.train.accumulation
    negatives = sum(len(row.negatives) for row in data.triplets) / len(data.triplets)
    hard = round(micro * negatives) if config.loss.hard_negatives else 0
    count = sum(weight.numel() for weight in trainable(model).values())
    log.info(
        "training %s weights for %d steps of %d triplets (%d at hand%s), learning rate %g after %d warm-up steps, %s",
        f"{count:,}",
        steps,
        config.train.batch_size,
        len(data.triplets),
        f", {data.skipped} bad rows skipped" if data.skipped else "",
        config.lr,
        warmup_steps(config.schedule, steps),
        "bf16" if bf16 else "float32",
    )
    log.info(
        "each anchor chooses among %d candidates: its positive, %d in-batch negatives, %d hard negatives",
        micro + hard,
        micro - 1,
        hard,
    )


def _say_table(config: Config, table: list[tuple[str, ...]], title: str) -> None:
    log.info("\n%s (Spearman x 100, prompt %r)\n\n%s\n", title, config.prompt.eval_template, report.as_text(table))


def _say_files(folder: Path, pictures: list[Path], trained: Path | None = None) -> None:
    """Name what was written and the next thing to try."""
    lines = ["written:", f"  table     {folder / 'table.md'}"]
    lines += [f"  picture   {path}" for path in pictures if path.suffix == ".png"]
    if trained:
        lines.append(f"  embedder  {trained} (adapter/, contract.json, history.jsonl, log.txt)")
        lines.append("next: your own triplets, python -m cft.run data=files data.train=FILE.csv")
    log.info("\n".join(lines))
