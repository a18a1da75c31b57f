"""A training's folder: every file name in it, and its records as dataclasses."""

import json
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from cft.evaluation.retrieval import HEADLINE
from cft.model.contract import FILE_NAME as CONTRACT
from cft.model.sources import ADAPTER_FOLDER
from cft.system.digest import sha256_of_file
from cft.system.errors import UserError
from cft.system.files import append_line, atomic_write, read_json, read_record, write_json, write_record
from cft.training import checkpoint


def evaluation_name(folder: str) -> str:
    """The name of an evaluation out of its folder's, which ends in a digest."""
    return folder.rsplit("-", 1)[0]


def development_scores(history: Sequence[dict]) -> list[tuple[int, float]]:
    """Steps and development scores of a history: of scored pairs, else of the documents that were found."""
    rows = [(row["step"], row["spearman"], row.get(HEADLINE)) for row in history if row["event"] == "dev"]
    scores = [(step, spearman if spearman is not None else found) for step, spearman, found in rows]
    return [(step, score) for step, score in scores if score is not None]


@dataclass(frozen=True)
class Finished:
    """Record of a training that came to its last step."""

    facts: dict  # what the weights depend on; the folder's name is their digest
    steps: int
    final_loss: float  # in nats
    seconds: float  # of the last call alone, which may have gone on from a checkpoint
    peak_memory: int | None  # bytes that the last call held at most, if the system reports it
    weights: str  # SHA-256 of the adapter
    # The most tokens that went through the model at once, as it was lowered in time; None in older records.
    chunk_tokens: list[int] | None = None
    best_step: int | None = None  # whose weights the result has, if not the last one's
    history: str | None = None  # SHA-256 of the history; None in records of older versions


@dataclass(frozen=True)
class Failure:
    """Record of a training that failed."""

    step: int  # of the last checkpoint
    cause: str


@dataclass(frozen=True)
class Cost:
    """What the first steps of a training took, or all of them."""

    triplets: int
    tokens: int  # in the texts, prompts included
    nodes: int  # that went through the model in place of the tokens
    seconds: float  # of the steps alone
    peak_memory: int | None  # bytes that the whole training held at most, if known
    device: str


@dataclass(frozen=True)
class RunFolder:
    """The folder of one training, or of the weights of one of its earlier steps."""

    path: Path

    CONFIG = "config.json"
    DATA = "data.json"
    ENVIRONMENT = "environment.json"
    LOG = "log.txt"
    HISTORY = "history.jsonl"
    CURVE = "training.png"
    FINISHED = "training.json"
    FAILED = "failed.json"
    SCORES = "metrics.json"
    CARD = "README.md"
    MERGED = "merge.json"  # of what was not trained but merged out of trainings
    EVALUATIONS = "evaluations"
    DIMENSIONS = "dimensions"  # in an evaluation's folder: scores with the first numbers of vectors alone
    STEPS = "steps"

    def file(self, name: str) -> Path:
        """The path of one of the files above."""
        return self.path / name

    @property
    def adapter(self) -> Path:
        """The folder of the trained weights."""
        return self.path / ADAPTER_FOLDER

    @property
    def has_embedder(self) -> bool:
        """Whether the weights are there; their contract is written last."""
        return self.file(CONTRACT).exists()

    def of_step(self, step: int) -> "RunFolder":
        """The folder of an earlier step's weights."""
        return RunFolder(self.path / self.STEPS / f"{step:06}")

    def kept_steps(self) -> "list[RunFolder]":
        """Folders of the earlier steps that have scores, in their order."""
        return [RunFolder(path.parent) for path in sorted(self.path.glob(f"{self.STEPS}/*/{self.SCORES}"))]

    @property
    def has_begun(self) -> bool:
        """Whether there are steps to go on from, or all of them were made."""
        return self.is_finished or checkpoint.step_of(self.path) > 0

    @property
    def is_finished(self) -> bool:
        """Whether the training came to its last step."""
        return self.file(self.FINISHED).exists()

    def finished(self) -> Finished | None:
        """The record of the finished training; None before."""
        return read_record(self.file(self.FINISHED), Finished) if self.is_finished else None

    def failure(self) -> Failure | None:
        """Why the training failed; None if it did not."""
        path = self.file(self.FAILED)
        return read_record(path, Failure) if path.exists() else None

    def note_failure(self, cause: str) -> None:
        """Write why the training failed."""
        write_json(self.file(self.FAILED), Failure(checkpoint.step_of(self.path), cause))

    def finish(self, record: Finished, history: list[dict]) -> None:
        """Write the history and then the record, which says that all is there; the checkpoint goes."""
        with atomic_write(self.file(self.HISTORY)) as part:
            for row in history:
                append_line(part, row)
        write_record(self.file(self.FINISHED), replace(record, history=sha256_of_file(self.file(self.HISTORY))))
        checkpoint.remove(self.path)

    def history(self) -> list[dict]:
        """Rows of a finished training's history; empty while it is not finished."""
        path, finished = self.file(self.HISTORY), self.finished()
        if finished and finished.history and path.exists() and finished.history != sha256_of_file(path):
            raise UserError(
                f"{path} was changed after cft wrote it, so that it is no record of what was done; put the file back"
            )
        return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()] if path.exists() else []

    def development_scores(self) -> list[tuple[int, float]]:
        """Steps and development scores of a finished training; empty while it is not finished or has none."""
        return development_scores(self.history())

    def development_score(self) -> float:
        """The development score of a finished training's result: of the step that was chosen, or of the last."""
        finished, scores = self.finished(), self.development_scores()
        chosen = finished.best_step if finished else None
        return dict(scores).get(chosen, scores[-1][1]) if chosen else scores[-1][1]

    def cost(self, *, batch_size: int, stop_at: int | None) -> Cost | None:
        """What the steps up to `stop_at`, None for all, took, `batch_size` triplets each; None without a history."""
        steps = [row for row in self.history() if row["event"] == "step"]
        steps = [row for row in steps if stop_at is None or row["step"] <= stop_at]
        if not steps:
            return None
        environment = read_json(self.file(self.ENVIRONMENT))
        threads = f", {environment['threads']} threads" if environment["device"].endswith("CPU") else ""
        finished = self.finished()
        return Cost(
            triplets=batch_size * len(steps),
            tokens=sum(row["tokens"] for row in steps),
            nodes=sum(row["nodes"] for row in steps),
            seconds=sum(row["seconds"] for row in steps),
            peak_memory=finished.peak_memory if finished else None,
            device=f"{environment['device']}{threads}",
        )
