"""What a job will do, known before any weights are loaded: its data, its base model, and the folders of its results.

Every stage has a folder named by what determines its result, so that a stage done once is never done again, by this
job or by another that shares it:

    OUTPUTS/base-MODEL-DIGEST/evaluations/EVAL-DIGEST/    the base model's scores
    OUTPUTS/adapter-MODEL-DIGEST/evaluations/EVAL-DIGEST/ scores of an adapter that is only evaluated, or started from
    OUTPUTS/MODEL-DATA-DIGEST/                            a training: adapter, contract, history, log, record
    OUTPUTS/MODEL-DATA-DIGEST/evaluations/EVAL-DIGEST/    its scores, table and pictures
    OUTPUTS/MODEL-DATA-DIGEST/steps/000500/               the same of an earlier step: adapter, contract, evaluations
"""

import logging
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from cft.config.compose import compose_model
from cft.config.rules import require_valid
from cft.config.schema import (
    TEACHER,
    Batches,
    Config,
    DataSettings,
    EvalSettings,
    EvalSource,
    LossSettings,
    ModelSettings,
    Precision,
    Prompts,
    Role,
)
from cft.data.records import ScoredPair, Triplet, content_digest
from cft.data.retrieval import RetrievalSet, load_retrieval_sets, rows_as_sets, watched_sets
from cft.data.sts import load_eval_sets
from cft.data.training_data import TrainingData, load_training_data
from cft.job.fitting import fit
from cft.job.run_folder import RunFolder
from cft.job.start import StartingPoint, choose_device, find_starting_point
from cft.model.adapters import fetch_adapter
from cft.model.precision import has_bf16
from cft.model.sources import ModelFiles, fetch
from cft.system.digest import digest, to_plain
from cft.system.errors import UserError, renaming_keys
from cft.system.overrides import override
from cft.training.schedule import warmup_steps
from cft.training.trainer import plan_steps

log = logging.getLogger(__name__)

# Raise when a change to the code changes what a training or an evaluation gives: old results are then not reused.
RECIPE = 2
# The same for what a training alone gives: 2 draws dropout by the token's number in the batch.
TRAINING_RECIPE = 2

# Docstrings and the holdout are the same for every `seed=`, so that runs of different seeds can be compared.
DATA_SEED = 0


# Settings that came later: a training that leaves them at these values keeps the name that it had before.
_SINCE = {
    "both_directions": False,
    "anchors_as_negatives": False,
    "dimensions": [],
    "guide": None,
    "guide_margin": 0.0,
    "guide_relative": False,
    "scored": None,
    "scored_weight": 1.0,
    "scored_temperature": 0.05,
    "variant": "plain",
    "bias": "none",
    "lr_ratio": 1.0,
    "echo": False,
    "layer_weights": False,
}


def named(settings: Any) -> dict:
    """Settings as they go into a name."""
    return {key: value for key, value in to_plain(settings).items() if key not in _SINCE or _SINCE[key] != value}


@dataclass(frozen=True)
class Plan:
    """One job, ready to be carried out."""

    config: Config
    data: TrainingData | None  # None when nothing is trained
    steps: int  # of the whole training; 0 for none
    sets: dict[str, list[ScoredPair]]  # evaluation data by the name of the set
    start: StartingPoint  # the base model, and the adapter on it if there is one
    teacher: ModelFiles | None = None  # the embedder to distill, if any
    guide: tuple[ModelSettings, ModelFiles] | None = None  # that of loss.guide
    retrieval: dict[str, RetrievalSet] = field(default_factory=dict)  # queries and documents by the name of the set

    @property
    def outputs(self) -> Path:
        """Where everything goes."""
        return Path(self.config.outputs)

    @property
    def start_name(self) -> str:
        """What the job starts from, in words."""
        name = self.config.model.name
        return f"the adapter {self.start.adapter.name} on {name}" if self.start.adapter else f"the base model {name}"

    @property
    def holdout(self) -> list[Triplet]:
        """Held-out triplets, none when nothing is trained."""
        return self.data.holdout if self.data else []

    @property
    def base_facts(self) -> dict:
        """What the base model's vectors depend on, the prompt excepted."""
        return {
            "recipe": RECIPE,
            **_embedding(self.config.model, self.start.files),
            "dtype": str(self.start.dtype(self.config)),
            **({"adapter": self.start.adapter.identity} if self.start.adapter else {}),
        }

    @property
    def training_facts(self) -> dict:
        """What the trained weights and their history depend on."""
        config, prompt = self.config, self.config.prompt
        assert self.data is not None
        # Without triplets nothing depends on how many of them a step would have.
        size = () if self.data.is_scored_alone else ("batch_size",)
        settings = (*size, "accumulation", "weight_decay", "max_grad_norm", "eval_every")
        return {
            "base": self.base_facts,
            "lora": named(replace(config.lora, targets=config.lora.layers)),
            "loss": named(config.loss),
            "template": prompt.train_template,
            "schedule": config.schedule,
            "lr": config.lr,
            "seed": config.seed,
            "steps": self.steps,
            "train": {key: getattr(config.train, key) for key in settings}
            | {
                key: getattr(config.train, key)
                for key in ("best", "patience", "no_duplicates")
                if getattr(config.train, key)
            },
            "bf16": self.start.bf16,
            "data": self.data.content,
            **({"redrawn": digest(self.data.starts.tolist())} if self.data.starts is not None else {}),
            **({"mixture": _mixture(self.data)} if self.data.parts else {}),
            **({"scored_pairs": _scored(self.data, config)} if self.data.scored else {}),
            **self._teaching,
            **({"guide": _embedding(*self.guide)} if self.guide else {}),
            # Without dropout a training gives what it gave under the first recipe.
            **({"training_recipe": TRAINING_RECIPE} if config.lora.dropout else {}),
            # With it, padded rows draw other random numbers than trees.
            **({"batches": "padded"} if config.lora.dropout and config.model.batches is Batches.padded else {}),
            # Part of the result only where training itself is under another prompt.
            **({"saved_template": prompt.saved_template} if prompt.saved_template != prompt.train_template else {}),
            **_roles("roles", prompt.in_training),
            **(_roles("saved_roles", prompt.saved) if prompt.saved != prompt.in_training else {}),
        }

    @property
    def _teaching(self) -> dict:
        """What the teacher adds to what a training depends on; nothing without one."""
        distill = self.config.distill
        if self.teacher is None or distill.model is None:
            return {}
        model = _embedding(distill.model, self.teacher)
        return {"distill": {"model": model, "share": distill.share, "temperature": distill.temperature}}

    @property
    def base_folder(self) -> Path:
        """Where results of what the job starts from are kept: the untrained model, or the adapter on it."""
        kind = "adapter" if self.start.adapter else "base"
        return self.outputs / f"{kind}-{self.config.model.name}-{digest(self.base_facts)}"

    @property
    def folder(self) -> Path:
        """Where this training is kept."""
        return self.outputs / f"{self.config.model.name}-{self.config.data.name}-{digest(self.training_facts)}"

    @property
    def stop_at(self) -> int:
        """The step whose weights are scored."""
        return self.config.eval.step or self.steps

    @property
    def result(self) -> Path:
        """Where the embedder to be scored is kept: the training's folder, or an earlier step's folder within."""
        return self.scored.path

    @property
    def training(self) -> RunFolder:
        """The training's folder and what is in it."""
        return RunFolder(self.folder)

    @property
    def scored(self) -> RunFolder:
        """The folder of the embedder to be scored."""
        return self.run_of_step(self.stop_at)

    def run_of_step(self, step: int) -> RunFolder:
        """Where the weights after a step are kept."""
        return self.training if step == self.steps else self.training.of_step(step)

    @property
    def is_trained(self) -> bool:
        """Whether the weights to be scored are there already."""
        return self.training.is_finished if self.stop_at == self.steps else self.scored.has_embedder

    def scores_folder(self, owner: Path) -> Path:
        """Where an embedder's scores on the sets, with table and pictures, are kept; `owner` is its own folder."""
        return self._evaluation_folder(owner, self.config.eval.name, self.sets, [])

    def triplets_folder(self, owner: Path) -> Path:
        """Where an embedder's cosines of the held-out triplets are kept."""
        return self._evaluation_folder(owner, "triplets", {}, self.holdout)

    def _evaluation_folder(
        self, owner: Path, name: str, sets: dict[str, list[ScoredPair]], triplets: list[Triplet]
    ) -> Path:
        looked_for = {name: each.content for name, each in self.retrieval.items()}
        facts = {
            "recipe": RECIPE,
            "template": self.config.prompt.eval_template,
            "sets": sets,
            "triplets": triplets,
            # Scored pairs have no roles.
            **(_roles("roles", self.config.prompt.in_evaluation) if triplets or self.retrieval else {}),
            **({"retrieval": looked_for} if looked_for and not triplets else {}),
            **({"measures": ["order", "uniformity"]} if triplets else {}),
        }
        return owner / RunFolder.EVALUATIONS / f"{name}-{digest(facts)}"


def _scored(data: TrainingData, config: Config) -> dict:
    """What scored pairs to train on add to a name."""
    return {"content": content_digest(data.scored), "batch_size": config.train.scored_batch}


def _mixture(data: TrainingData) -> dict:
    """What several parts of the data, and how they are mixed, add to a name."""
    parts = [
        {"rows": part.rows, "share": share, "prompts": [part.query, part.document], "loss": part.loss}
        for part, share in zip(data.parts, data.mixture.normalized, strict=True)
    ]
    return {"by_part": data.by_part, "parts": parts}


def _roles(key: str, prompts: Prompts) -> dict:
    """What prompts of queries and documents add to a name; nothing where they are those of any text."""
    return {key: [prompts.of(Role.query), prompts.of(Role.document)]} if prompts.differ else {}


def _embedding(model: ModelSettings, files: ModelFiles) -> dict:
    """What a model's vectors depend on, prompt and precision excepted."""
    return {
        "weights": files.all_read,
        "pooling": model.pooling,
        "layer": model.layer,
        "attention": model.attention,
        "append_eos": model.append_eos,
        "eos_token": model.eos_token,
        "max_length": model.max_length,
        "quantization": model.quantization,
        **{name: True for name in ("echo", "layer_weights") if getattr(model, name)},
    }


def require_width(loss: LossSettings, width: int | None) -> None:
    """Refuse a loss that vectors of this width cannot have; None for a width that is not known yet.

    Raises:
        UserError: naming them.
    """
    if width is not None and loss.dimensions and loss.dimensions[-1] >= width:
        raise UserError(
            f"{override('loss.dimensions', loss.dimensions)}: a vector of this model has {width} numbers, and all of "
            f"them always count; name fewer than {width}"
        )
    if width is not None and width % 2 and loss.scored == "angle":
        raise UserError(
            f"loss.scored=angle: AnglE takes a vector in two halves, and those of this model have {width} numbers; "
            "choose loss.scored=cosent"
        )


def find_guide(choice: str, inputs: "InputCache") -> tuple[ModelSettings, ModelFiles]:
    """The settings and the files of what says which candidates do not count.

    Raises:
        UserError: naming the choice of loss.guide.
    """
    try:
        settings = compose_model(choice)
        return settings, inputs.files(settings)
    except UserError as error:
        raise UserError(f"{override('loss.guide', choice)}: {error}") from error


class InputCache:
    """Data and base models, each loaded once for all the jobs that share it."""

    def __init__(self) -> None:
        self._known: dict[str, Any] = {}

    def _once(self, settings: Any, load: Callable[[], Any]) -> Any:
        name = f"{type(settings).__name__}-{digest(settings)}"  # plain data, or a tuple of them
        if name not in self._known:
            self._known[name] = load()
        return self._known[name]

    def data(self, settings: DataSettings) -> TrainingData:
        """Training data."""
        return self._once(settings, lambda: load_training_data(settings, seed=DATA_SEED))

    def sets(self, settings: EvalSettings) -> dict[str, list[ScoredPair]]:
        """Scored pairs; the same ones for every step that is scored on them."""
        settings = replace(settings, step=None)
        return self._once(settings, lambda: load_eval_sets(settings))

    def retrieval(self, settings: EvalSettings, data: DataSettings, *, halved: bool) -> dict[str, RetrievalSet]:
        """Queries and documents; none where pairs are scored. `halved`: out of half of the held-out rows."""
        settings = replace(settings, step=None)
        if settings.source is EvalSource.rows:

            def load() -> dict[str, RetrievalSet]:
                rows = self.data(data).halved() if halved else self.data(data)
                return rows_as_sets(rows, settings.documents, DATA_SEED)

            return self._once((settings, data, halved), load)
        if settings.source in (EvalSource.retrieval, EvalSource.docstrings):
            return self._once((settings, "retrieval"), lambda: load_retrieval_sets(settings))
        return {}

    def files(self, settings: ModelSettings) -> ModelFiles:
        """A base model's files."""
        return self._once(settings, lambda: fetch(settings))


def fitted(config: Config, data: TrainingData | None, inputs: InputCache) -> Config:
    """The configuration with the settings that the data choose; what was chosen is said.

    Args:
        config: the job. data: to train on; None where nothing is trained, or they cannot be had. inputs: data and
            models that were loaded.
    """
    scored = config.eval.source is EvalSource.rows and not config.train.steps
    rows = data or (inputs.data(config.data) if scored else None)
    if not config.train.fitted or rows is None:
        return config
    adapter = fetch_adapter(config.adapter, config.adapter_revision).contract if config.adapter else None
    found = fit(config, rows, lambda: inputs.files(config.model), adapter=adapter, trains=data is not None)
    log.info("chosen by the data; each can be given instead:")
    for reason in found.reasons:
        log.info("  %s", reason)
    return found.config


def _is_halved(config: Config) -> bool:
    """Whether half of the held-out rows choose the step, so that the others alone may judge the result."""
    return bool(config.train.chooses) and config.data.dev is None


def _with_rows_to_choose_by(config: Config, data: TrainingData) -> TrainingData:
    """The data with held-out rows of their own for the choice of the step, where no scored pairs choose it."""
    if not data.dev and not data.holdout:
        raise UserError(
            f"{config.train.chooses} needs a development score: "
            + (
                "data.dev=FILE gives one"
                if data.is_scored_alone
                else "no rows are held out, and there are no scored pairs; data.holdout=N or data.dev=FILE gives one"
            )
        )
    if not _is_halved(config):
        return data
    data = data.halved()
    if not watched_sets(data) and not any(row.negatives for row in data.watched):
        raise UserError(
            f"{config.train.chooses} needs a development score, and of {len(data.watched) + len(data.holdout)} "
            f"held-out rows the {len(data.watched)} to choose by give none: raise data.holdout (about a tenth of the "
            "rows can be held out), bring more rows, or give scored pairs by data.dev=FILE"
        )
    log.info(
        "%s: %d held-out rows choose the step, and the other %d score the result",
        *(config.train.chooses, len(data.watched), len(data.holdout)),
    )
    return data


def make_plan(config: Config, inputs: InputCache | None = None) -> Plan:
    """Load a job's data and fetch its base model, so that its folders are known.

    Args:
        config: the job.
        inputs: what other jobs loaded already.

    Raises:
        UserError: for whatever the user can mend.
    """
    require_valid(config)
    inputs = inputs or InputCache()
    choose_device(config.device)  # a device that is not here should be named before anything is fetched
    # Data first: a bad row should be named before gigabytes of weights are fetched.
    data = inputs.data(config.data) if config.train.steps else None
    if data and config.train.chooses:
        data = _with_rows_to_choose_by(config, data)
    if data is None and config.data.train is not None and config.eval.source is not EvalSource.rows:
        named = ", ".join(str(entry.file) for entry in config.data.entries)
        log.info("train.steps=0: nothing is trained, and %s is not read", named)
    if data is None and config.first.data is not None:
        log.warning("train.steps=0: nothing is trained, and so the first stage is not either")
    config = fitted(config, data, inputs)
    steps = plan_steps(config, data) if data else 0
    if steps and warmup_steps(config.schedule, steps) >= steps:
        raise UserError(
            f"schedule.warmup_ratio={config.schedule.warmup_ratio}: the warm-up would take all {steps} steps of this "
            "training; lower it"
        )
    late = [step for step in (*config.train.keep, config.eval.step or 0) if step > steps]
    if late:
        raise UserError(
            f"train.keep or eval.step asks for step {late[0]}, but the data end the training at step {steps}: raise "
            "train.epochs, or ask for an earlier step"
        )
    teacher = None
    if config.distill.model and data:
        with renaming_keys(TEACHER):
            teacher = inputs.files(config.distill.model)
    guide = find_guide(config.loss.guide, inputs) if config.loss.guide and data else None
    files = inputs.files(config.model)
    if data:
        require_width(config.loss, files.setting("hidden_size"))
    start = find_starting_point(config, files)
    plan = Plan(
        config=config,
        data=data,
        steps=steps,
        sets=inputs.sets(config.eval),
        start=start,
        teacher=teacher,
        guide=guide,
        retrieval=inputs.retrieval(config.eval, config.data, halved=_is_halved(config)),
    )
    return _as_begun(plan)


def _as_begun(plan: Plan) -> Plan:
    """The plan in the precision that its training was begun in, where `auto` finds the other one on this machine.

    Machines of one cluster differ: what was begun on one must go on, or count as done, on another.
    """
    start, configured = plan.start, plan.config.train.precision
    if plan.data is None or configured is not Precision.auto or plan.training.has_begun:
        return plan
    other = replace(plan, start=replace(start, bf16=not start.bf16, gain=None))
    if not other.training.has_begun or (other.start.bf16 and not has_bf16(start.device)):
        return plan
    now, instead = ("bfloat16", "fp32") if other.start.bf16 else ("float32", "bf16")
    log.info(
        "%s was begun in %s, and is gone on with in it (%s begins another in what suits this machine)",
        *(other.folder, now, override("train.precision", instead)),
    )
    return other
