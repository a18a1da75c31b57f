"""Every setting of a job as plain typed data, and the checks that need no model.

The dataclasses are what `conf/*.yaml` fills; each key is explained there. Below the command line nobody sees Hydra
or OmegaConf: modules take these, or plain values out of them.
"""

import math
import re
from collections.abc import Iterator
from dataclasses import dataclass, field, fields, is_dataclass
from enum import Enum
from typing import Any

from cft.system.errors import UserError
from cft.system.text import shorten_words

PLACEHOLDER = "{text}"

# Where another model than the trained one has its settings; there are none without a teacher.
TEACHER = "distill.model"


class Pooling(str, Enum):
    """How a text's hidden states become one vector."""

    last = "last"
    mean = "mean"
    weighted_mean = "weighted_mean"
    first = "first"


class Attention(str, Enum):
    """Which tokens a token sees: those before it, or all of the text."""

    causal = "causal"
    bidirectional = "bidirectional"


class Batches(str, Enum):
    """How texts are laid out for the model: sharing prefixes, or padded to one length."""

    auto = "auto"
    tree = "tree"
    padded = "padded"


class Quantization(str, Enum):
    """How the frozen base weights are held in memory."""

    none = "none"
    nf4 = "nf4"


class PromptUse(str, Enum):
    """Where the prompt template applies."""

    train = "train"
    eval = "eval"
    both = "both"
    after = "after"


class ScheduleKind(str, Enum):
    """How the learning rate goes on after warm-up."""

    cosine = "cosine"
    linear = "linear"
    constant = "constant"


class Precision(str, Enum):
    """Arithmetic of the model; similarities and the loss are float32 whatever this says."""

    auto = "auto"
    bf16 = "bf16"
    fp32 = "fp32"


class DataSource(str, Enum):
    """Where training triplets come from."""

    scenes = "scenes"
    hub = "hub"
    files = "files"


class EvalSource(str, Enum):
    """Where scored pairs come from."""

    scenes = "scenes"
    sts = "sts"


class LoggerKind(str, Enum):
    """Who follows the training besides the run's own history file."""

    none = "none"
    wandb = "wandb"
    wandb_offline = "wandb_offline"
    csv = "csv"
    tensorboard = "tensorboard"


@dataclass
class ModelSettings:
    """conf/model: the base model and how it turns a text into a vector."""

    name: str = "???"
    path: str = "???"
    revision: str | None = None
    sha256: str | None = None
    pooling: Pooling = Pooling.last
    layer: int | None = None
    attention: Attention = Attention.causal
    append_eos: bool = True
    eos_token: str | None = None
    max_length: int = 150
    batches: Batches = Batches.auto
    quantization: Quantization = Quantization.none

    def __post_init__(self) -> None:
        if self.layer == -1:  # two words for the last layer would make two runs of one
            self.layer = None


@dataclass
class LoraSettings:
    """conf/lora: which low-rank updates are trained; rank 0 trains the whole model instead."""

    rank: int = 8
    alpha: float = 32.0
    dropout: float = 0.1
    init: str = "gaussian"
    targets: list[str] = field(default_factory=lambda: ["query", "value"])


@dataclass
class LossSettings:
    """conf/loss: InfoNCE with (eq. 1) or without (eq. 2) hard negatives."""

    hard_negatives: bool = True
    temperature: float = 0.05
    mask_false_negatives: bool = False
    both_directions: bool = False
    anchors_as_negatives: bool = False


@dataclass
class DistillSettings:
    """conf/distill: a finished embedder whose similarities are part of the target."""

    model: ModelSettings | None = None
    share: float = 0.5
    temperature: float = 0.05


@dataclass
class PromptSettings:
    """conf/prompt: the words around the text."""

    template: str = PLACEHOLDER
    use: PromptUse = PromptUse.eval

    @property
    def train_template(self) -> str:
        """The template in training."""
        return PLACEHOLDER if self.use in (PromptUse.eval, PromptUse.after) else self.template

    @property
    def saved_template(self) -> str:
        """The template that the trained embedder keeps, and is looked at under during training."""
        return self.template if self.use is PromptUse.after else self.train_template

    @property
    def eval_template(self) -> str:
        """The template in evaluation."""
        return PLACEHOLDER if self.use is PromptUse.train else self.template


@dataclass
class ScheduleSettings:
    """conf/schedule: the learning rate over the steps."""

    kind: ScheduleKind = ScheduleKind.cosine
    warmup_ratio: float = 0.1


@dataclass
class DataSettings:
    """conf/data: the training triplets, and the development data that training is watched with."""

    name: str = "???"
    source: DataSource = DataSource.scenes
    train: str | None = None
    revision: str | None = None
    anchor_column: str = "sent0"
    positive_column: str = "sent1"
    negative_columns: list[str] = field(default_factory=lambda: ["hard_neg"])
    on_bad_row: str = "raise"
    rows: int | None = None
    holdout: int = 500
    dev: str | None = None


@dataclass
class EvalSettings:
    """conf/eval: the scored pairs that a finished embedder is judged by."""

    name: str = "???"
    source: EvalSource = EvalSource.scenes
    folder: str | None = None
    sets: list[str] = field(default_factory=list)
    rows: int | None = None
    pairs: int = 1000
    step: int | None = None


@dataclass
class LoggerSettings:
    """conf/logger: Weights & Biases, TensorBoard, a CSV file or nothing."""

    kind: LoggerKind = LoggerKind.wandb_offline
    project: str = "cft"
    group: str | None = None
    tags: list[str] = field(default_factory=list)
    artifact: bool = False


@dataclass
class TrainSettings:
    """conf/train: how long, how large, how careful."""

    steps: int = 1000
    epochs: int = 1
    batch_size: int = 60
    accumulation: int = 1
    weight_decay: float = 1e-4
    max_grad_norm: float = 1.0
    precision: Precision = Precision.auto
    gradient_checkpointing: bool = False
    chunk_tokens: int | None = None
    eval_every: int = 100
    checkpoint_every: int = 20
    keep: list[int] = field(default_factory=list)


@dataclass
class Config:
    """One job."""

    model: ModelSettings = field(default_factory=ModelSettings)
    lora: LoraSettings = field(default_factory=LoraSettings)
    loss: LossSettings = field(default_factory=LossSettings)
    distill: DistillSettings = field(default_factory=DistillSettings)
    prompt: PromptSettings = field(default_factory=PromptSettings)
    schedule: ScheduleSettings = field(default_factory=ScheduleSettings)
    data: DataSettings = field(default_factory=DataSettings)
    eval: EvalSettings = field(default_factory=EvalSettings)
    logger: LoggerSettings = field(default_factory=LoggerSettings)
    train: TrainSettings = field(default_factory=TrainSettings)
    lr: float = 5e-5
    adapter: str | None = None
    adapter_revision: str | None = None
    adapter_any_base: bool = False
    seed: int = 0
    device: str = "auto"
    outputs: str = "outputs"
    vector_cache_gb: float = 2.0


def require_valid(config: Config) -> None:
    """Refuse values that no job could run with, all of them in one message.

    Raises:
        UserError: naming every key at fault, its value and what it may be.
    """
    rules = [*_by_type(config), *_names(config), *_rules(config)]
    problems = [f"  {shorten_words(message)}" for holds, message in rules if not holds]
    if problems:
        raise UserError("\n".join(["the configuration cannot run:", *problems]))


_Rule = tuple[bool, str]

# Torch draws its random numbers from 64 bits, of which a step's number takes a part.
_SEEDS = 2**32
# Of a model, data or an evaluation: part of a folder's name, with a digest behind it.
LONGEST_NAME = 100


def _by_type(config: Config) -> Iterator[_Rule]:
    """What every number and every text must be."""
    for key, value in _leaves(config):
        if isinstance(value, float):
            # Only the gradients' bound may be infinite, which means that there is none.
            unbounded = key == "train.max_grad_norm" and value == math.inf
            yield math.isfinite(value) or unbounded, f"{key}={value}: must be a finite number"
        elif isinstance(value, str):
            # Names of files may hold other bytes, which Python shows as halves of characters; no record could.
            odd = any("\ud800" <= sign <= "\udfff" for sign in value)
            yield not odd, f"{key}={value!a}: is not UTF-8; rename what it names"


def _names(config: Config) -> list[_Rule]:
    """Names that become parts of folders' names."""
    named = {"model.name": config.model.name, "data.name": config.data.name, "eval.name": config.eval.name}
    return [
        (
            name == name.strip()
            and name.isprintable()
            and bool(re.fullmatch(r"[^./\\][^/\\]*", name))
            and len(name) <= LONGEST_NAME,
            f"{key}={name[:LONGEST_NAME]!r}: names folders, so it takes 1 to {LONGEST_NAME} printable characters, none "
            "of which is / or \\, and the first of which is no dot",
        )
        for key, name in named.items()
    ]


def _leaves(value: Any, key: str = "") -> Iterator[tuple[str, Any]]:
    """Every number, text and choice, those in lists one by one, with its key."""
    if is_dataclass(value):
        for entry in fields(value):
            yield from _leaves(getattr(value, entry.name), f"{key}.{entry.name}" if key else entry.name)
    elif isinstance(value, list):
        for each in value:
            yield from _leaves(each, key)
    else:
        yield key, value


def _model_rules(model: ModelSettings, key: str) -> list[_Rule]:
    return [
        (model.max_length >= 2, f"{key}.max_length={model.max_length}: a token and the EOS need at least 2"),
        (
            model.layer is None or model.layer != 0,
            f"{key}.layer=0: the embedding layer has seen no other token; layers count from 1, or from the last by -1",
        ),
        (
            model.pooling is not Pooling.first or model.attention is Attention.bidirectional,
            f"{key}.pooling=first: the first token of a causal model sees nothing of the text behind it; choose last, "
            f"mean or weighted_mean, or set {key}.attention=bidirectional",
        ),
        (
            model.append_eos or model.eos_token is None,
            f"{key}.eos_token={model.eos_token} would not be appended: {key}.append_eos is false",
        ),
    ]


def _rules(config: Config) -> list[_Rule]:
    model, lora, loss, prompt, distill = config.model, config.lora, config.loss, config.prompt, config.distill
    data, evaluation, train = config.data, config.eval, config.train
    micro_batch = train.batch_size // max(train.accumulation, 1)
    return [
        (0 < config.lr <= 1, f"lr={config.lr}: the learning rate must be above 0 and at most 1 (the paper uses 5e-5)"),
        (
            0 <= config.vector_cache_gb <= 1e6,
            f"vector_cache_gb={config.vector_cache_gb}: gigabytes, 0 (keep no vectors) to a million",
        ),
        (0 <= config.seed < _SEEDS, f"seed={config.seed}: must be 0 to {_SEEDS - 1}"),
        *_model_rules(model, "model"),
        *(_model_rules(distill.model, "distill.model") if distill.model else []),
        (
            model.quantization is Quantization.none or lora.rank > 0 or train.steps == 0,
            f"model.quantization={model.quantization.value}: quantised weights cannot be trained themselves; choose "
            "lora=paper",
        ),
        (
            config.adapter is not None or config.adapter_revision is None,
            f"adapter_revision={config.adapter_revision} has no adapter to belong to",
        ),
        (lora.rank >= 0, f"lora.rank={lora.rank}: must be 0 (train the whole model) or more"),
        (lora.rank == 0 or bool(lora.targets), "lora.targets is empty: name layers, or choose lora=none"),
        (lora.alpha > 0, f"lora.alpha={lora.alpha}: must be above 0"),
        (0 <= lora.dropout < 1, f"lora.dropout={lora.dropout}: must be at least 0 and below 1"),
        (lora.init in ("gaussian", "kaiming"), f"lora.init={lora.init}: must be gaussian or kaiming"),
        (loss.temperature > 0, f"loss.temperature={loss.temperature}: must be above 0 (the paper uses 0.05)"),
        (
            0 < distill.share <= 1,
            f"distill.share={distill.share}: must be above 0 and at most 1 (distill=none: no teacher)",
        ),
        (distill.temperature > 0, f"distill.temperature={distill.temperature}: must be above 0"),
        (
            prompt.template.count(PLACEHOLDER) == 1,
            f"prompt.template={prompt.template!r}: must hold {PLACEHOLDER} exactly once, where the text goes",
        ),
        (
            0 <= config.schedule.warmup_ratio < 1,
            f"schedule.warmup_ratio={config.schedule.warmup_ratio}: a share of the steps, at least 0 and below 1",
        ),
        (
            data.source is not DataSource.files or data.train is not None or train.steps == 0,
            "data.train is not set: name your file, as in data.train=triplets.csv",
        ),
        (
            data.train is None or data.source is DataSource.files,
            f"data.train={data.train} would not be read: add data=files",
        ),
        (
            data.dev is None or data.source is not DataSource.scenes,
            f"data.dev={data.dev} would not be read: scenes bring their own development pairs",
        ),
        (
            evaluation.folder is None or evaluation.source is EvalSource.sts,
            f"eval.folder={evaluation.folder} would not be read: add eval=sts",
        ),
        (
            evaluation.rows is None or evaluation.source is EvalSource.sts,
            f"eval.rows={evaluation.rows} would not be used: add eval=sts, or set eval.pairs for scenes",
        ),
        (
            not loss.hard_negatives or bool(data.negative_columns) or data.source is DataSource.scenes,
            "loss.hard_negatives=true but data.negative_columns is empty: name the column, or choose loss=in_batch",
        ),
        (data.on_bad_row in ("raise", "skip"), f"data.on_bad_row={data.on_bad_row}: must be raise or skip"),
        (data.rows is None or data.rows > 0, f"data.rows={data.rows}: must be above 0, or null for all"),
        (data.holdout >= 0, f"data.holdout={data.holdout}: must be 0 or more"),
        (
            evaluation.source is not EvalSource.sts or bool(evaluation.sets),
            "eval.sets is empty: name the sets to score, as in eval.sets='[STS12,STSBenchmark]'",
        ),
        (
            evaluation.rows is None or evaluation.rows >= 2,
            f"eval.rows={evaluation.rows}: a rank correlation needs at least 2 pairs a set; null takes all",
        ),
        (
            evaluation.step is None or 1 <= evaluation.step <= train.steps,
            f"eval.step={evaluation.step}: must be a step of the training, 1 to train.steps={train.steps}, or null for "
            "the last",
        ),
        (evaluation.pairs >= 2, f"eval.pairs={evaluation.pairs}: a rank correlation needs at least 2"),
        (train.steps >= 0, f"train.steps={train.steps}: must be 0 (evaluate only) or more"),
        (train.epochs >= 1, f"train.epochs={train.epochs}: must be 1 or more"),
        (train.accumulation >= 1, f"train.accumulation={train.accumulation}: must be 1 or more"),
        (
            micro_batch * max(train.accumulation, 1) == train.batch_size,
            f"train.batch_size={train.batch_size} is not a multiple of train.accumulation={train.accumulation}",
        ),
        (
            micro_batch >= 2,
            f"train.batch_size={train.batch_size} with train.accumulation={train.accumulation} leaves {micro_batch} "
            "triplets to choose among: in-batch negatives need at least 2",
        ),
        (
            train.chunk_tokens is None or train.chunk_tokens >= model.max_length,
            f"train.chunk_tokens={train.chunk_tokens}: must hold a text of model.max_length={model.max_length} tokens, "
            "or be null for as many as memory holds",
        ),
        (train.weight_decay >= 0, f"train.weight_decay={train.weight_decay}: must be 0 or more"),
        (train.max_grad_norm > 0, f"train.max_grad_norm={train.max_grad_norm}: must be above 0 (.inf for no clipping)"),
        (train.eval_every >= 0, f"train.eval_every={train.eval_every}: must be 0 (never) or more"),
        (
            all(1 <= step <= train.steps for step in train.keep),
            f"train.keep={train.keep}: must be steps of the training, 1 to train.steps={train.steps}",
        ),
        (train.checkpoint_every >= 1, f"train.checkpoint_every={train.checkpoint_every}: must be 1 or more"),
    ]
