"""Every setting of a job as plain typed data: its key, type, default and meaning, and what its section forbids.

The comment at a field is the key's explanation; docs/configuration.md is made of them. `conf/*.yaml` sets what differs
from these defaults. Other modules take these dataclasses, or plain values out of them, and never see OmegaConf.
"""

import re
from collections.abc import Iterator
from dataclasses import dataclass, field, fields, replace
from enum import Enum
from typing import Any, ClassVar, NamedTuple

from cft.system.overrides import override

PLACEHOLDER = "{text}"

# The settings of the model that is learned from; None without a teacher.
TEACHER = "distill.model"
# The settings of the finished encoder whose scores stand beside the result's; None without one.
BASELINE = "baseline.model"
# The rows of a stage before the job's own; None without one.
FIRST = "first.data"


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


class Role(str, Enum):
    """What a text is for: to be compared with its like, to look for documents, or to be found."""

    text = "text"
    query = "query"
    document = "document"


class Prompts(NamedTuple):
    """The words around a text, by its role; {text} stands for the text."""

    text: str = PLACEHOLDER
    query: str | None = None  # None for those of a text
    document: str | None = None

    def of(self, role: Role) -> str:
        """The template of a role."""
        template = {Role.query: self.query, Role.document: self.document}.get(role)
        return self.text if template is None else template

    @property
    def differ(self) -> bool:
        """Whether queries or documents have words of their own."""
        return any(self.of(role) != self.text for role in Role)

    def __str__(self) -> str:
        if not self.differ:
            return repr(self.text)
        return f"queries {self.of(Role.query)!r}, documents {self.of(Role.document)!r}"


class LoraVariant(str, Enum):
    """How a low-rank update is scaled and put on its layer."""

    plain = "plain"
    rslora = "rslora"
    dora = "dora"


class LoraBias(str, Enum):
    """Which of the model's biases are trained beside its low-rank updates."""

    none = "none"
    lora_only = "lora_only"
    all = "all"


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
    """Where training triplets come from; or that there are none, and scored pairs alone."""

    docstrings = "docstrings"
    hub = "hub"
    files = "files"
    scored = "scored"


class EvalSource(str, Enum):
    """What an embedder is scored on: scored pairs, queries that look for documents, or nothing."""

    none = "none"
    docstrings = "docstrings"
    sts = "sts"
    pairs = "pairs"
    retrieval = "retrieval"
    rows = "rows"


class LoggerKind(str, Enum):
    """Where the training is logged besides the run's own history file."""

    none = "none"
    wandb = "wandb"
    wandb_offline = "wandb_offline"
    csv = "csv"
    tensorboard = "tensorboard"
    trackio = "trackio"


@dataclass
class ModelSettings:
    """conf/model: the base model and how it turns a text into a vector."""

    name: str = "???"  # what folders and tables call it
    # a hub repository, a local folder, a .gguf file, wheel:PACKAGE==VERSION/FILE [+ ...] or random:ARCHITECTURE
    path: str = "???"
    revision: str | None = None  # commit on the hub; null for models that are not from there
    sha256: str | None = None  # of a GGUF file; null checks nothing
    license: str | None = None  # what its use is bound to, shown before it is fetched; null shows nothing
    # last (token; with append_eos that is EOS, as in the paper), mean, weighted_mean, or first (bidirectional models)
    pooling: Pooling = Pooling.last
    # the layer whose states are pooled, 1 to the number of layers, or -1, -2, ... from the last; null for the last
    layer: int | None = None
    # true: what is pooled is the sum of all layers' states, each with a weight that is trained; not with model.layer
    layer_weights: bool = False
    # causal, or bidirectional: every token sees the whole text (encoders; decoders as in LLM2Vec)
    attention: Attention = Attention.causal
    append_eos: bool = True  # put the tokenizer's EOS after every text (paper); false embeds the last word
    eos_token: str | None = None  # the token to append, such as '</s>'; null for the tokenizer's own EOS
    # true: a text goes in twice, and the second time, when it has been seen, is pooled; max_length holds both
    echo: bool = False
    max_length: int = 150  # tokens at most, special ones counted in; 2 or more; 150 is the reference code's
    # tree (shared prefixes), padded, or auto: tree where a trial at loading shows it to be exact
    batches: Batches = Batches.auto
    # none, or nf4: frozen base weights in 4 bits (QLoRA), with the package bitsandbytes
    quantization: Quantization = Quantization.none

    def __post_init__(self) -> None:
        if self.layer == -1:  # two words for the last layer would make two runs of one
            self.layer = None

    def problems(self, key: str = "model") -> Iterator[str]:
        """What no job could run with; `key` is the section's name."""
        if self.max_length < 2:
            yield f"{key}.max_length={self.max_length}: a token and the EOS need at least 2"
        if self.layer == 0:
            yield (
                f"{key}.layer=0: the embedding layer has seen no other token; layers count from 1, or from the last "
                "by -1"
            )
        if self.pooling is Pooling.first and self.attention is not Attention.bidirectional:
            yield (
                f"{key}.pooling=first: the first token of a causal model sees nothing of the text behind it; choose "
                f"last, mean or weighted_mean, or set {key}.attention=bidirectional"
            )
        if self.layer_weights and self.layer is not None:
            yield f"{key}.layer={self.layer}: with {key}.layer_weights=true all layers count; leave one out"
        if self.layer_weights and key != "model":
            yield f"{key}.layer_weights=true: this model is used as it is, and its layers' weights never trained"
        if self.echo and self.attention is Attention.bidirectional:
            yield (
                f"{key}.echo=true: where attention is bidirectional, every token sees the whole text the first time; "
                "leave it out"
            )
        if self.echo and self.max_length == 2 and self.append_eos:
            yield f"{key}.max_length=2: with {key}.echo=true a token, the same again and the EOS need at least 3"
        if self.eos_token is not None and not self.append_eos:
            yield f"{key}.eos_token={self.eos_token} would not be appended: {key}.append_eos is false"


# Roles of a layer in the order of their names in folders, layers by name behind them.
_ROLES = ("query", "key", "value", "output")
_TARGETS = ("query", "value")


def _place_of_role(name: str) -> int:
    return _ROLES.index(name) if name in _ROLES else len(_ROLES)


@dataclass
class LoraSettings:
    """conf/lora: which low-rank updates are trained; rank 0 trains the whole model instead."""

    rank: int = 8  # width of the update; 1 or more, 0 trains the whole model
    alpha: float = 32.0  # the update is scaled by alpha / rank
    dropout: float = 0.1  # probability, 0 to below 1, on the update's input
    # gaussian (paper) or kaiming first factor and a second of 0; pissa, or pissa_niter_16 (faster): singular values
    init: str = "gaussian"
    # roles (query, key, value, output), whatever a family calls them; or layers by name
    targets: list[str] = field(default_factory=lambda: list(_TARGETS))
    # plain, rslora (scaled by alpha / sqrt(rank)) or dora (direction by the update, length of each row apart)
    variant: LoraVariant = LoraVariant.plain
    bias: LoraBias = LoraBias.none  # biases trained beside the updates: none, lora_only (of the updated layers), or all
    lr_ratio: float = 1.0  # LoRA+: the second factor's learning rate is so many times lr; 1 or more; 16 is its paper's

    def __post_init__(self) -> None:
        if self.rank == 0:  # one name with lora=none
            self.dropout = 0.0 if self.dropout == LoraSettings.dropout else self.dropout
            self.targets = [] if self.targets == list(_TARGETS) else self.targets

    @property
    def layers(self) -> list[str]:
        """`targets` in an order of their own: given in another, they are the same."""
        return sorted(set(self.targets), key=lambda name: (_place_of_role(name), name))

    @property
    def principal(self) -> bool:
        """Whether the update begins with the weight's largest singular values (PiSSA)."""
        return self.init.startswith("pissa")

    def problems(self) -> Iterator[str]:
        """What no job could run with."""
        if self.rank < 0:
            yield f"lora.rank={self.rank}: must be 0 (train the whole model) or more"
        if self.rank and not self.targets:
            yield "lora.targets is empty: name layers, or choose lora=none"
        if self.alpha <= 0:
            yield f"lora.alpha={self.alpha}: must be above 0"
        if not 0 <= self.dropout < 1:
            yield f"lora.dropout={self.dropout}: must be at least 0 and below 1"
        if self.init not in ("gaussian", "kaiming") and not re.fullmatch(r"pissa(_niter_[1-9]\d{0,2})?", self.init):
            yield f"lora.init={self.init}: must be gaussian, kaiming, pissa, or pissa_niter_N as in pissa_niter_16"
        if self.principal and self.variant is LoraVariant.dora:
            yield (
                f"lora.init={self.init}: DoRA takes the lengths of rows from weights that PiSSA divides; choose "
                "lora.variant=plain or rslora"
            )
        if not self.lr_ratio >= 1:
            yield f"lora.lr_ratio={self.lr_ratio}: must be 1 (one rate for both factors) or more"
        if not self.rank and (given := list(self._without_effect())):
            yield f"{' '.join(given)} would not be read at lora.rank=0 (lora=none), which trains the whole model"

    def _without_effect(self) -> Iterator[str]:
        """What was given of an update where there is none."""
        usual = LoraSettings(rank=0)
        for key in ("alpha", "dropout", "init", "targets", "variant", "bias", "lr_ratio"):
            if getattr(self, key) != getattr(usual, key):
                yield override(f"lora.{key}", getattr(self, key))


@dataclass
class LossSettings:
    """conf/loss: InfoNCE with (eq. 1) or without (eq. 2) hard negatives."""

    hard_negatives: bool = True  # whether hard negatives are candidates
    temperature: float = 0.05  # above 0, no unit; smaller is sharper; 0.05 is the paper's
    mask_false_negatives: bool = False  # true: a candidate that equals the anchor's positive does not count against it
    both_directions: bool = False  # true: each positive must pick its anchor too; the loss is the mean of both ways
    anchors_as_negatives: bool = False  # true: the other anchors of the batch are candidates too
    # a choice of conf/model, as in loss.guide=minilm: candidates that it finds as near as the positive do not count
    guide: str | None = None
    guide_margin: float = 0.0  # how much nearer the positive must be, of a cosine; -1 to 1; only with loss.guide
    guide_relative: bool = False  # true: the margin is a share of the positive's cosine
    # of data.scored: cosent (pairs scored higher must be nearer), angle (the same by AnglE's similarity), null for none
    scored: str | None = None
    scored_weight: float = 1.0  # what the loss of the scored pairs is multiplied by, above 0, before it is added
    scored_temperature: float = 0.05  # of the scored pairs' similarities, above 0; 0.05 is 1 / 20, its source's scale
    # Matryoshka: so many first numbers of vectors must do alone too, as in [64,128]; the loss is the mean of all widths
    dimensions: list[int] = field(default_factory=list)

    def __post_init__(self) -> None:
        if not self._odd_dimensions:
            self.dimensions = sorted(set(self.dimensions))  # two orders would make two runs of one

    def without_scored(self) -> "LossSettings":
        """The same for triplets alone."""
        return replace(self, scored=None, scored_weight=1.0, scored_temperature=0.05)

    @property
    def _odd_dimensions(self) -> bool:
        return any(not isinstance(width, int) or width < 1 for width in self.dimensions)

    def problems(self) -> Iterator[str]:
        """What no job could run with."""
        if self._odd_dimensions:
            yield f"{override('loss.dimensions', self.dimensions)}: numbers of a vector, each 1 or more"
        elif self.scored == "angle" and any(width % 2 for width in self.dimensions):
            yield (
                f"{override('loss.dimensions', self.dimensions)}: AnglE takes a vector in two halves; name even "
                "numbers, or choose loss.scored=cosent"
            )
        if not -1 <= self.guide_margin <= 1:
            yield f"loss.guide_margin={self.guide_margin:g}: must be -1 to 1"
        if self.guide is None and (self.guide_margin or self.guide_relative):
            yield "loss.guide_margin and loss.guide_relative would not be read: name a guide, as in loss.guide=minilm"
        if self.temperature <= 0:
            yield f"loss.temperature={self.temperature}: must be above 0 (the paper uses 0.05)"
        if self.scored not in (None, "cosent", "angle"):
            yield f"{override('loss.scored', self.scored)}: must be cosent, angle, or null for none"
        if self.scored is None and (self.scored_weight != 1 or self.scored_temperature != 0.05):
            yield "loss.scored_weight and loss.scored_temperature would not be read: choose loss.scored=cosent or angle"
        for key in ("scored_weight", "scored_temperature"):
            if not getattr(self, key) > 0:
                yield f"{override(f'loss.{key}', getattr(self, key))}: must be above 0"


@dataclass
class DistillSettings:
    """conf/distill: a finished embedder whose similarities are part of the target."""

    model: ModelSettings | None = None  # the teacher, a finished embedder in the keys of the group model; null for none
    share: float = 0.5  # of the target that is the teacher's, above 0; 1 leaves the positives without effect
    # of the teacher's similarities, above 0; smaller is nearer to picking the teacher's favourite
    temperature: float = 0.05

    def problems(self) -> Iterator[str]:
        """What no job could run with."""
        yield from self.model.problems(TEACHER) if self.model else ()
        if not 0 < self.share <= 1:
            yield f"distill.share={self.share}: must be above 0 and at most 1 (distill=none: no teacher)"
        if self.temperature <= 0:
            yield f"distill.temperature={self.temperature}: must be above 0"


@dataclass
class BaselineSettings:
    """conf/baseline: a finished encoder that is scored on the same data, as it was published."""

    model: ModelSettings | None = None  # the encoder, in the keys of the group model; null for none

    def problems(self) -> Iterator[str]:
        """What no job could run with."""
        yield from self.model.problems(BASELINE) if self.model else ()


@dataclass
class PromptSettings:
    """conf/prompt: the words around the text."""

    template: str = PLACEHOLDER  # {text} stands for the text, exactly once
    query: str | None = None  # around queries (the anchors of training) instead; null takes the template
    document: str | None = None  # around documents (positives and negatives) instead; null takes the template
    use: PromptUse = PromptUse.eval  # train, eval (paper's Table 5), both, or after (eval, and saved)

    @property
    def prompts(self) -> Prompts:
        """The templates by role, wherever they apply."""
        return Prompts(self.template, self.query, self.document)

    @property
    def in_training(self) -> Prompts:
        """The templates in training."""
        return Prompts() if self.use in (PromptUse.eval, PromptUse.after) else self.prompts

    @property
    def saved(self) -> Prompts:
        """The templates that the trained embedder keeps, and has when development data are scored."""
        return self.prompts if self.use is PromptUse.after else self.in_training

    @property
    def in_evaluation(self) -> Prompts:
        """The templates in evaluation."""
        return Prompts() if self.use is PromptUse.train else self.prompts

    @property
    def train_template(self) -> str:
        """The template in training."""
        return self.in_training.text

    @property
    def saved_template(self) -> str:
        """The template that the trained embedder keeps, and has when development data are scored."""
        return self.saved.text

    @property
    def eval_template(self) -> str:
        """The template in evaluation."""
        return self.in_evaluation.text

    def problems(self) -> Iterator[str]:
        """What no job could run with."""
        for key, template in {"template": self.template, "query": self.query, "document": self.document}.items():
            if template is not None and template.count(PLACEHOLDER) != 1:
                yield (
                    f"{override(f'prompt.{key}', template)}: must hold {PLACEHOLDER} exactly once, where the text goes"
                )


@dataclass
class ScheduleSettings:
    """conf/schedule: the learning rate over the steps."""

    kind: ScheduleKind = ScheduleKind.cosine  # cosine, linear or constant
    warmup_ratio: float = 0.1  # share of the steps, 0 to below 1; the paper's 100 of 1,000

    def problems(self) -> Iterator[str]:
        """What no job could run with."""
        if not 0 <= self.warmup_ratio < 1:
            yield f"schedule.warmup_ratio={self.warmup_ratio}: a share of the steps, at least 0 and below 1"


# Settings that the data may choose (cft/job/fitting.py).
FITTED = ("model.max_length", "train.batch_size", "train.epochs", "train.steps", "train.eval_every", "lr")

# What data.delimiter calls the signs that shells and YAML make hard to type.
DELIMITERS = {"comma": ",", "semicolon": ";", "tab": "\t", "pipe": "|"}


def _is_delimiter(name: str) -> bool:
    return name in DELIMITERS or (len(name) == 1 and not name.isalnum() and name not in '"\r\n')


# What tables and trackers call the mean over the test sets.
_MEANS = ("mean", "overall", "mean over sets")


def problem_of_set_name(name: str) -> str:
    """Why no test set can be called so; empty if it can."""
    if not name.strip():
        return "a set has no name; give it one"
    return f"the mean over the sets is called {name!r}; rename the set" if name.casefold() in _MEANS else ""


def _column_problems(key: str, columns: list[str]) -> Iterator[str]:
    if len(columns) != 3 or len(set(columns)) != 3:
        yield f"{override(key, columns)}: must name three columns, of a sentence, another sentence and their score"


# Of shares; sums of larger ones would not be numbers any more.
_LARGEST_SHARE = 1_000_000_000

# Settings of the loss that one of several files may have for itself, where batches are of one file each.
_OWN_LOSS = ("hard_negatives", "temperature", "mask_false_negatives", "both_directions", "anchors_as_negatives")


@dataclass
class TrainFile:
    """An entry of data.train: a file or a pattern, and what its rows have for themselves.

    What is null is as in the groups data and prompt.
    """

    file: str
    share: float | None = None  # of all batches or rows, beside the other entries' shares; above 0
    anchor_column: str | None = None
    positive_column: str | None = None
    negative_columns: list[str] | None = None
    query: str | None = None  # words around its anchors in training
    document: str | None = None  # words around its positives and negatives in training
    loss: dict[str, Any] = field(default_factory=dict)  # settings of conf/loss

    @property
    def has_columns(self) -> bool:
        """Whether it names a column."""
        return (self.anchor_column, self.positive_column, self.negative_columns) != (None, None, None)

    @property
    def has_words(self) -> bool:
        """Whether its texts have words of their own around them."""
        return (self.query, self.document) != (None, None)

    def problems(self, key: str) -> Iterator[str]:
        """What no job could run with; `key` is what users call it, as data.train[0]."""
        if not isinstance(self.file, str) or not self.file:
            yield f"{override(f'{key}.file', self.file)}: must be a file or a pattern"
        number = isinstance(self.share, (int, float)) and not isinstance(self.share, bool)
        if self.share is not None and not (number and 0 < self.share <= _LARGEST_SHARE):
            yield f"{override(f'{key}.share', self.share)}: must be a number above 0, at most {_LARGEST_SHARE:,}"
        columns = {name: getattr(self, f"{name}_column") for name in ("anchor", "positive")}
        for name, column in columns.items():
            if column is not None and (not isinstance(column, str) or not column):
                yield f"{override(f'{key}.{name}_column', column)}: must be the name of a column"
        many = self.negative_columns
        if many is not None and not (isinstance(many, list) and all(isinstance(each, str) and each for each in many)):
            yield f"{override(f'{key}.negative_columns', many)}: must be a list of columns"
        for name, template in (("query", self.query), ("document", self.document)):
            if template is not None and (not isinstance(template, str) or template.count(PLACEHOLDER) != 1):
                yield f"{override(f'{key}.{name}', template)}: must hold {PLACEHOLDER} exactly once"
        yield from self._problems_of_loss(key)

    def _problems_of_loss(self, key: str) -> Iterator[str]:
        if not isinstance(self.loss, dict):
            yield f"{override(f'{key}.loss', self.loss)}: must be settings, as in {{temperature: 0.02}}"
            return
        for name, value in self.loss.items():
            if name not in _OWN_LOSS:
                yield f"{override(f'{key}.loss.{name}', value)}: an entry may have its own {', '.join(_OWN_LOSS)}"
            elif name != "temperature" and not isinstance(value, bool):
                yield f"{override(f'{key}.loss.{name}', value)}: must be true or false"
            elif name == "temperature" and (
                isinstance(value, bool) or not isinstance(value, (int, float)) or value <= 0
            ):
                yield f"{override(f'{key}.loss.{name}', value)}: must be a number above 0"


@dataclass
class DataSettings:
    """conf/data: the training triplets, and the development data that training is watched with."""

    name: str = "???"  # what folders and tables call it
    # docstrings, hub or files; or scored: no triplets, and the pairs of data.scored alone
    source: DataSource = DataSource.docstrings
    # the file, as in data.train=triplets.csv, a pattern such as 'part-*.csv', or a list of them; only for data=files
    train: Any = None
    mixing: str = "rows"  # of several entries of data.train: rows (a batch has rows of all), files (of one of them)
    # 1 or more: without shares, an entry's is its rows to the power of 1 / this; 1 takes all alike, larger is evener
    evenness: int = 1
    # installed packages to read, as in [numpy,scipy.stats]; null for two dozen usual ones; only for data=docstrings
    packages: list[str] | None = None
    # a commit of princeton-nlp/datasets-for-simcse; null takes the newest; only for data=nli
    revision: str | None = None
    anchor_column: str = "sent0"  # column of the anchor (premise, query); columns are only read from files
    positive_column: str = "sent1"  # column of its positive (entailment, answer)
    # columns of its hard negatives (contradictions), any number; [] with loss=in_batch
    negative_columns: list[str] = field(default_factory=lambda: ["hard_neg"])
    # of a list of positives: all (a triplet each), draw (one, always the same), redraw (one, drawn anew each epoch)
    positives: str = "all"
    delimiter: str | None = None  # of CSV and TSV: comma, semicolon, tab, pipe or a sign; null finds it out
    on_bad_row: str = "raise"  # raise, or skip, which counts and lists what it skips
    rows: int | None = None  # the first so many rows; null for all
    # rows kept out of training, at most about a tenth, with all that share a text with them; for pictures and
    # development scores
    holdout: int = 500
    # scored pairs (sentence1, sentence2, score) for in-training evaluation: a file, STSBenchmark-dev (hub), or null
    dev: str | None = None
    # columns of the scored pairs: two sentences and the score
    dev_columns: list[str] = field(default_factory=lambda: ["sentence1", "sentence2", "score"])
    # scored pairs to train on, beside triplets or alone (data=scored): a file with scores or NLI labels; null for none
    scored: str | None = None
    # columns of the scored pairs to train on: two sentences, and a score or entailment, neutral, contradiction
    scored_columns: list[str] = field(default_factory=lambda: ["sentence1", "sentence2", "score"])

    @property
    def entries(self) -> list[TrainFile]:
        """What `train` names, without the entries that `problems` finds malformed."""
        known = [each.name for each in fields(TrainFile)]
        named = [each if isinstance(each, dict) else {"file": each} for each in self._listed]
        return [TrainFile(**each) for each in named if "file" in each and all(name in known for name in each)]

    @property
    def may_have_negatives(self) -> bool:
        """Whether rows may have hard negatives: of files, if a column is named for one entry at least."""
        columns = [self.columns_of(entry)[2] for entry in self.entries] or [self.negative_columns]
        return any(columns) or self.source not in (DataSource.hub, DataSource.files)

    @property
    def is_mixed(self) -> bool:
        """Whether rows of several entries are told apart in training."""
        entries = self.entries
        return len(entries) > 1 and (
            self.mixing != "rows"
            or self.evenness != 1
            or any(each.share is not None or each.has_words or each.loss for each in entries)
        )

    @property
    def _listed(self) -> list[Any]:
        if self.train is None:
            return []
        return self.train if isinstance(self.train, list) else [self.train]

    @property
    def is_scored_alone(self) -> bool:
        """Whether there are scored pairs alone, and no triplets."""
        return self.source is DataSource.scored

    def problems(self) -> Iterator[str]:
        """What no job could run with."""
        if self.train is not None and self.source is not DataSource.files:
            yield f"{override('data.train', self.train)} would not be read: add data=files"
        malformed = list(self._malformed_entries())
        yield from malformed or self._problems_of_entries()
        yield from self._problems_of_columns()
        if self.packages is not None:
            if self.source is not DataSource.docstrings:
                yield f"{override('data.packages', self.packages)} would not be read: add data=docstrings"
            if not self.packages:
                yield "data.packages is empty: name installed packages, as in data.packages=[numpy], or null"
        if self.positives not in ("all", "draw", "redraw"):
            yield f"{override('data.positives', self.positives)}: must be all, draw or redraw"
        yield from self._unread()
        if self.delimiter is not None and not _is_delimiter(self.delimiter):
            yield f"{override('data.delimiter', self.delimiter)}: must be {', '.join(DELIMITERS)} or one sign"
        yield from _column_problems("data.dev_columns", self.dev_columns)
        yield from _column_problems("data.scored_columns", self.scored_columns)
        if self.on_bad_row not in ("raise", "skip"):
            yield f"data.on_bad_row={self.on_bad_row}: must be raise or skip"
        if self.is_scored_alone and self.rows is not None:
            yield f"{override('data.rows', self.rows)} would not be read: data=scored takes all pairs of its file"
        if self.is_scored_alone and self.holdout:
            yield (
                f"{override('data.holdout', self.holdout)} would not be read: triplets alone are held out; "
                "data.dev=FILE watches a training by other pairs"
            )
        if self.rows is not None and self.rows <= 0:
            yield f"data.rows={self.rows}: must be above 0, or null for all"
        if self.holdout < 0:
            yield f"data.holdout={self.holdout}: must be 0 or more"

    def _unread(self) -> Iterator[str]:
        """What was given for files, where the rows come from elsewhere."""
        usual = DataSettings()
        for key in ("anchor_column", "positive_column", "negative_columns", "positives"):
            value = getattr(self, key)
            is_so_anyway = value == getattr(usual, key) or (self.is_scored_alone and value == [])
            if self.source not in (DataSource.files, DataSource.hub) and not is_so_anyway:
                yield f"{override(f'data.{key}', value)} would not be read: add data=files"
        if self.revision is not None and self.source is not DataSource.hub:
            yield f"{override('data.revision', self.revision)} would not be read: add data=nli"
        files = self.source is DataSource.files or self.scored is not None or self.dev not in (None, "STSBenchmark-dev")
        if self.delimiter is not None and not files and self.source is not DataSource.hub:
            yield f"{override('data.delimiter', self.delimiter)} would not be read: no file of this job has columns"

    def _malformed_entries(self) -> Iterator[str]:
        """Entries of `train` that are neither names nor settings of a file."""
        if self.train is not None and not self._listed:
            yield f"{override('data.train', self.train)}: must be a file, a pattern, or a list of them"
        known = [each.name for each in fields(TrainFile)]
        for number, entry in enumerate(self._listed):
            unknown = [name for name in entry if name not in known] if isinstance(entry, dict) else []
            if unknown or (isinstance(entry, dict) and "file" not in entry):
                what = f"has no setting {unknown[0]!r}; it may have {', '.join(known)}" if unknown else "names no file"
                yield f"{override('data.train', self.train)}: entry {number} {what}"
            elif isinstance(entry, dict):
                yield from TrainFile(**entry).problems(f"data.train[{number}]")
            elif not isinstance(entry, str) or not entry:
                yield f"{override('data.train', self.train)}: must be a file, a pattern, or a list of them"

    def _problems_of_entries(self) -> Iterator[str]:
        """Entries that do not go together."""
        entries, mixings = self.entries, ("rows", "files")
        if self.mixing not in mixings:
            yield f"{override('data.mixing', self.mixing)}: must be {' or '.join(mixings)}"
        if self.evenness < 1:
            yield f"data.evenness={self.evenness}: must be 1 (rows as often as there are) or more"
        if len(entries) < 2:
            if self.mixing != "rows" or self.evenness != 1:
                yield "data.mixing and data.evenness are of several entries of data.train, and there are not several"
            for entry in entries:
                if entry.share is not None or entry.has_words or entry.loss:
                    yield (
                        "data.train has one entry: its share is all, its words are those of the group prompt "
                        "(prompt.query, prompt.document), and its loss is that of the group loss"
                    )
        shares = [entry.share is not None for entry in entries]
        if any(shares) and not all(shares):
            yield f"data.train[{shares.index(False)}] has no share, and others have: give all of them one, or none"
        if all(shares) and shares and self.evenness != 1:
            yield f"data.evenness={self.evenness} would not be read, as the entries of data.train have shares"
        if self.mixing == "rows" and any(entry.loss for entry in entries):
            yield "an entry of data.train with a loss of its own needs batches of its own: data.mixing=files"

    def _problems_of_columns(self) -> Iterator[str]:
        """Roles that name one column."""
        roles = "data.anchor_column, data.positive_column and data.negative_columns"
        columns = {roles: (self.anchor_column, self.positive_column, list(self.negative_columns))}
        if not list(self._malformed_entries()):
            given = {
                f"data.train[{number}], where data's own stand for those that it lacks,": self.columns_of(entry)
                for number, entry in enumerate(self.entries)
                if entry.has_columns
            }
            columns = given | (columns if len(given) < len(self.entries) or not given else {})
        for keys, (anchor, positive, negatives) in columns.items():
            named = [anchor, positive, *negatives]
            twice = [column for column in dict.fromkeys(named) if named.count(column) > 1]
            if twice:
                yield f"the column {twice[0]!r} is named more than once by {keys}: each role has a column of its own"

    def columns_of(self, entry: TrainFile) -> tuple[str, str, list[str]]:
        """The columns of an entry's anchors, positives and negatives."""
        negatives = self.negative_columns if entry.negative_columns is None else entry.negative_columns
        return entry.anchor_column or self.anchor_column, entry.positive_column or self.positive_column, list(negatives)


@dataclass
class FirstSettings:
    """conf/first: general rows that a bare language model is trained on before the job's own."""

    data: DataSettings | None = None  # the rows, in the keys of the group data; null for none
    steps: int = 80  # updates at most, 1 or more
    batch_size: int = 32  # triplets an update, 2 or more
    lr: float = 2e-3  # learning rate at its peak, above 0

    def problems(self) -> Iterator[str]:
        """What no job could run with."""
        if self.data is not None:
            # the section speaks of its keys as the group data does
            yield from (re.sub(r"\bdata([.=])", r"first.data\1", problem, count=1) for problem in self.data.problems())
            if self.data.source is DataSource.files and self.data.train is None:
                yield f"{FIRST}.train is not set: name the file, as in first.data.train=general.csv"
            if self.data.source is DataSource.scored:
                yield f"{override(f'{FIRST}.source', 'scored')}: a first stage has triplets, as in first=docstrings"
            elif self.data.scored is not None:
                yield f"{override(f'{FIRST}.scored', self.data.scored)}: a first stage has triplets alone; leave it out"
        if self.steps < 1:
            yield f"first.steps={self.steps}: must be 1 or more (first=none: no first stage)"
        if self.batch_size < 2:
            yield f"first.batch_size={self.batch_size}: in-batch negatives need at least 2"
        if not 0 < self.lr <= 1:
            yield f"first.lr={self.lr}: must be above 0 and at most 1"


@dataclass
class EvalSettings:
    """conf/eval: what a finished embedder is judged by."""

    GONE: ClassVar = frozenset({"pairs"})  # of captions that version 0.1.0 generated

    name: str = "???"  # what folders and tables call it
    # docstrings (of the standard library), sts, pairs (one's own), retrieval, rows (held-out ones of one's own), none
    source: EvalSource = EvalSource.docstrings
    # of eval=sts, SET.jsonl.gz (or .jsonl, .csv, .tsv, .parquet) with sentence1, sentence2, score; of eval=retrieval,
    # folders SET in BEIR's layout; null takes the sets from the hub
    folder: str | None = None
    sets: list[str] = field(default_factory=list)  # names of the sets; with a folder, any; for eval=sts and retrieval
    # one's own pairs with graded or 0/1 scores: a file, or a list of them; only for eval=pairs
    file: Any = None
    # at most so many pairs or queries of each set, evenly spaced, for a quick look; null (the paper) takes all; only
    # for eval=sts, pairs, retrieval and docstrings
    rows: int | None = None
    split: str = "test"  # of the judgements in a folder, qrels/SPLIT.tsv; only for eval=retrieval
    documents: int = 2000  # that held-out anchors look through, if the file has as many; only for eval=rows
    # columns of the files: two sentences and their score; only for eval=sts and pairs
    columns: list[str] = field(default_factory=lambda: ["sentence1", "sentence2", "score"])
    step: int | None = None  # the step of the training whose weights are scored; null for the last

    def problems(self) -> Iterator[str]:
        """What no job could run with."""
        if self.name == "triplets":
            yield "eval.name=triplets is what the score of the held-out triplets is called: choose another name"
        yield from _column_problems("eval.columns", self.columns)
        yield from self._problems_of_files()
        queries = self.source in (EvalSource.retrieval, EvalSource.docstrings)
        if self.rows is not None and self.rows < 2 and not queries:
            yield f"eval.rows={self.rows}: a rank correlation needs at least 2 pairs a set; null takes all"
        if self.rows is not None and self.rows < 1:
            yield f"eval.rows={self.rows}: must be 1 or more queries; null takes all"
        if self.documents < 2:
            yield f"eval.documents={self.documents}: there is nothing to rank with fewer than 2"
        if not self.split or "/" in self.split:
            yield f"{override('eval.split', self.split)}: must be the name of a file in qrels, without its ending"

    @property
    def files(self) -> list[Any]:
        """The names of `file`, texts if they are right."""
        return self.file if isinstance(self.file, list) else [] if self.file is None else [self.file]

    def _problems_of_files(self) -> Iterator[str]:
        """Files, folders and sets that are not those of the source."""
        in_sets = self.source in (EvalSource.sts, EvalSource.retrieval)
        if self.folder is not None and not in_sets:
            yield f"{override('eval.folder', self.folder)} would not be read: add eval=sts, or eval=retrieval"
        if self.rows is not None and not in_sets and self.source not in (EvalSource.pairs, EvalSource.docstrings):
            yield f"eval.rows={self.rows} would not be used: add eval=sts, pairs, retrieval or docstrings"
        for problem in filter(None, map(problem_of_set_name, self.sets)):
            yield f"{override('eval.sets', self.sets)}: {problem}"
        if in_sets and not self.sets:
            example = ["STS12", "STSBenchmark"] if self.source is EvalSource.sts else ["SciFact", "ArguAna"]
            yield f"eval.sets is empty: name the sets to score, as in {override('eval.sets', example)}"
        named = all(isinstance(each, str) and each for each in self.files)
        if self.source is EvalSource.pairs and (not self.files or not named):
            yield f"{override('eval.file', self.file)}: name your scored pairs, as in eval.file=pairs.csv, or a list"
        if self.source is not EvalSource.pairs and self.file is not None:
            yield f"{override('eval.file', self.file)} would not be read: add eval=pairs"
        yield from self._unread(in_sets=in_sets)

    def _unread(self, *, in_sets: bool) -> Iterator[str]:
        """What was given for other sources; `in_sets` says whether this one has named sets."""
        usual, from_hub = EvalSettings(), in_sets and self.folder is None
        if self.sets and not in_sets:
            yield f"{override('eval.sets', self.sets)} would not be read: add eval=sts, or eval=retrieval"
        if self.split != usual.split and (self.source is not EvalSource.retrieval or from_hub):
            instead = (
                "the sets of the hub have their own; name a folder by eval.folder" if from_hub else "add eval=retrieval"
            )
            yield f"{override('eval.split', self.split)} would not be read: {instead}"
        if self.documents != usual.documents and self.source is not EvalSource.rows:
            yield f"eval.documents={self.documents} would not be used: add eval=rows"
        if self.columns != usual.columns and (self.source not in (EvalSource.sts, EvalSource.pairs) or from_hub):
            instead = (
                "the sets of the hub have their own; name a folder by eval.folder" if from_hub else "add eval=pairs"
            )
            yield f"{override('eval.columns', self.columns)} would not be read: {instead}"


@dataclass
class LoggerSettings:
    """conf/logger: Weights & Biases, Trackio, TensorBoard, a CSV file or nothing."""

    kind: LoggerKind = LoggerKind.wandb_offline  # none, wandb, wandb_offline, csv, tensorboard or trackio
    project: str = "cft"  # of W&B and Trackio
    group: str | None = None  # of W&B and Trackio; null groups the jobs of a sweep
    tags: list[str] = field(default_factory=list)  # of W&B
    artifact: bool = False  # true: W&B also keeps the adapter

    def problems(self) -> Iterator[str]:
        """What no job could run with. Without a tracker, what is said of one is only put off."""
        if self.kind in (LoggerKind.none, LoggerKind.wandb, LoggerKind.wandb_offline):
            return
        for key in ("tags", "artifact"):
            if getattr(self, key):
                value = override(f"logger.{key}", getattr(self, key))
                yield f"{value} would not be read by logger={self.kind.value}: add logger=wandb, or wandb_offline"


@dataclass
class TrainSettings:
    """conf/train: how long, how large, how careful."""

    steps: int = 1000  # updates at most; 0 only evaluates the base model
    epochs: int = 1  # passes over the data at most; whichever of the two ends first
    batch_size: int = 60  # triplets an update, over all micro-batches; of data=scored, see scored_batch
    accumulation: int = 1  # micro-batches an update; negatives are drawn from one's own micro-batch only
    weight_decay: float = 1e-4  # AdamW's, 0 or more
    max_grad_norm: float = 1.0  # gradients longer than this are shortened to it (transformers' default)
    precision: Precision = Precision.auto  # auto (bf16 on a GPU that has it or a CPU that gains by it), bf16 or fp32
    gradient_checkpointing: bool = False  # true: recompute activations in the backward pass, less memory for more time
    # most tokens that go through the model at once, a larger batch in chunks; null: what memory holds
    chunk_tokens: int | None = None
    eval_every: int = 100  # steps between looks at the development data; 0 never looks
    checkpoint_every: int = 20  # steps that a killed training repeats at most
    # steps whose weights are kept besides the last one's, to be scored by eval.step
    keep: list[int] = field(default_factory=list)
    best: bool = False  # true: the result has the weights of the step with the best development score, not the last's
    # end when so many looks at the development data, one after the other, were no better; null never
    patience: int | None = None
    no_duplicates: bool = False  # true: no text stands twice in a batch; rows that would bring it wait for the next
    scored_batch: int = 32  # scored pairs an update, over all micro-batches, 2 or more; only with data.scored
    # settings that the data choose, of those that were not given: model.max_length, train.batch_size, train.epochs,
    # train.steps, train.eval_every, lr
    fitted: list[str] = field(default_factory=list)

    @property
    def chooses(self) -> str:
        """The override by which a development score chooses among steps; empty if none does."""
        return "train.best=true" if self.best else f"train.patience={self.patience}" if self.patience else ""

    def problems_of_batches(self, *, triplets: bool, pairs: bool) -> Iterator[str]:
        """Batches that cannot be divided; `triplets` and `pairs` say which of the two are trained on."""
        micro_batch = self.batch_size // max(self.accumulation, 1)
        if triplets and micro_batch * max(self.accumulation, 1) != self.batch_size:
            yield f"train.batch_size={self.batch_size} is not a multiple of train.accumulation={self.accumulation}"
        if triplets and micro_batch < 2:
            yield (
                f"train.batch_size={self.batch_size} with train.accumulation={self.accumulation} leaves {micro_batch} "
                "triplets to choose among: in-batch negatives need at least 2"
            )
        of_pairs = self.scored_batch // max(self.accumulation, 1)
        if pairs and (of_pairs < 2 or of_pairs * max(self.accumulation, 1) != self.scored_batch):
            yield (
                f"train.scored_batch={self.scored_batch}: must be a multiple of "
                f"train.accumulation={self.accumulation}, with 2 pairs or more for each micro-batch"
            )

    def problems(self) -> Iterator[str]:
        """What no job could run with."""
        if self.steps < 0:
            yield f"train.steps={self.steps}: must be 0 (evaluate only) or more"
        if self.epochs < 1:
            yield f"train.epochs={self.epochs}: must be 1 or more"
        if self.accumulation < 1:
            yield f"train.accumulation={self.accumulation}: must be 1 or more"
        if self.weight_decay < 0:
            yield f"train.weight_decay={self.weight_decay}: must be 0 or more"
        if not self.max_grad_norm > 0:
            yield f"train.max_grad_norm={self.max_grad_norm}: must be above 0 (.inf for no clipping)"
        if self.eval_every < 0:
            yield f"train.eval_every={self.eval_every}: must be 0 (never) or more"
        if not all(1 <= step <= self.steps for step in self.keep):
            yield f"train.keep={self.keep}: must be steps of the training, 1 to train.steps={self.steps}"
        if self.patience is not None and self.patience < 1:
            yield f"train.patience={self.patience}: must be 1 or more looks, or null to never end early"
        if self.chooses and not self.eval_every:
            yield f"{self.chooses} needs a development score, and train.eval_every=0 never looks at one"
        if self.patience is not None and self.keep:
            yield (
                f"train.patience={self.patience} may end the training before the steps of "
                f"{override('train.keep', self.keep)}: leave one out"
            )
        unknown = [key for key in self.fitted if key not in FITTED]
        if unknown:
            yield f"{override('train.fitted', self.fitted)}: must be some of {', '.join(FITTED)}"
        if self.checkpoint_every < 1:
            yield f"train.checkpoint_every={self.checkpoint_every}: must be 1 or more"


@dataclass
class Config:
    """One job."""

    model: ModelSettings = field(default_factory=ModelSettings)
    lora: LoraSettings = field(default_factory=LoraSettings)
    loss: LossSettings = field(default_factory=LossSettings)
    distill: DistillSettings = field(default_factory=DistillSettings)
    baseline: BaselineSettings = field(default_factory=BaselineSettings)
    prompt: PromptSettings = field(default_factory=PromptSettings)
    schedule: ScheduleSettings = field(default_factory=ScheduleSettings)
    first: FirstSettings = field(default_factory=FirstSettings)
    data: DataSettings = field(default_factory=DataSettings)
    eval: EvalSettings = field(default_factory=EvalSettings)
    logger: LoggerSettings = field(default_factory=LoggerSettings)
    train: TrainSettings = field(default_factory=TrainSettings)
    lr: float = 5e-5  # learning rate at its peak, above 0; each choice of `train` brings one
    adapter: str | None = None  # start from it: a run's folder, any PEFT adapter's folder, or its repository on the hub
    adapter_revision: str | None = None  # commit of an adapter on the hub; null takes the newest
    adapter_any_base: bool = False  # true: take an adapter that names another base model than model.path
    seed: int = 0  # 0 or more; draws the LoRA's start, the order of the rows and dropout; the data stay the same
    device: str = "auto"  # auto (CUDA where there is one), cpu, cuda, or mps (Apple's GPUs, which cft was never run on)
    outputs: str = "outputs"  # folder for everything a run makes, relative to where the command is given
    # gigabytes on disk for vectors of evaluated texts, not to embed them again; 0 keeps none
    vector_cache_gb: float = 2.0

    @property
    def has_pairs_beside(self) -> bool:
        """Whether scored pairs are learnt beside triplets."""
        return self.data.scored is not None and not self.data.is_scored_alone

    @property
    def rows_a_step(self) -> int:
        """Triplets of an update or, where there are none, scored pairs."""
        return self.train.scored_batch if self.data.is_scored_alone else self.train.batch_size
