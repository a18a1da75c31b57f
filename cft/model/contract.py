"""The embedding contract: everything that turns a text into a vector, in one small record.

It is written beside an adapter when training ends. Whoever loads the adapter gets the same vectors or an error that
names the difference, never slightly different vectors.
"""

from dataclasses import MISSING, asdict, dataclass, fields, replace
from pathlib import Path
from typing import Any

from cft.config.schema import PLACEHOLDER, Attention, Pooling, Prompts, Quantization, Role
from cft.system.digest import from_plain, to_plain
from cft.system.errors import UserError
from cft.system.files import read_json, write_record

FILE_NAME = "contract.json"
_PLACE = "place_of_base"  # beside the fields: where the base model is says nothing about vectors
PRECISION_OF = {"float32": "fp32", "bfloat16": "bf16"}  # a configuration's word for a contract's dtype
# Settings of a model that are part of its contract, by the names that both have for them.
SETTINGS = (
    "pooling",
    "layer",
    "layer_weights",
    "attention",
    "append_eos",
    "eos_token",
    "echo",
    "max_length",
    "quantization",
)


@dataclass(frozen=True)
class Contract:
    """What turns a text into a vector."""

    model: str  # where the base model comes from (`model.path`)
    weights: str  # its version, as a commit or a hash
    tokenizer: str  # digest of the tokenizer
    prefix_ids: tuple[int, ...]  # tokens before every text (BOS)
    suffix_ids: tuple[int, ...]  # tokens after every text (EOS)
    append_eos: bool  # whether the suffix is our EOS rather than the tokenizer's own
    template: str  # the prompt around the text
    pooling: Pooling
    attention: Attention
    max_length: int  # tokens at most, prefix and suffix included
    dtype: str  # of the base model's weights
    adapter: str | None = None  # SHA-256 of the trained weights; None for the base model
    layer: int | None = None  # the layer whose states are pooled; None for the last
    eos_token: str | None = None  # the token that is our EOS, if not the tokenizer's
    quantization: Quantization = Quantization.none  # how the base weights are held
    query_template: str | None = None  # the prompt around a query; None for that around any text
    document_template: str | None = None  # the same of a document
    content: str | None = None  # hash of the base weights where `weights` is a commit; None if unknown or the same
    dimensions: tuple[int, ...] = ()  # so many first numbers were trained to do alone too (loss.dimensions)
    echo: bool = False  # whether a text goes in twice, so that its second occurrence is pooled
    layer_weights: bool = False  # whether what is pooled is the sum of all layers' states, by trained weights
    # Whether the update began by PiSSA, so that half of its factors only take off what the others began with.
    pissa: bool = False

    def __post_init__(self) -> None:
        for template in map(self.prompts.of, Role):
            if not isinstance(template, str) or template.count(PLACEHOLDER) != 1:
                raise UserError(f"the prompt {template!r} must hold {PLACEHOLDER} exactly once")
        if self.room < 1:
            raise UserError(f"model.max_length={self.max_length} leaves no room for text beside the special tokens")

    @property
    def room(self) -> int:
        """Tokens of a prompted text that fit between prefix and suffix, as often as it goes in."""
        return (self.max_length - len(self.prefix_ids) - len(self.suffix_ids)) // self.copies

    @property
    def copies(self) -> int:
        """How often a prompted text goes in."""
        return 2 if self.echo else 1

    @property
    def prompts(self) -> Prompts:
        """The prompts by role."""
        return Prompts(self.template, self.query_template, self.document_template)

    def with_template(self, template: str) -> "Contract":
        """The same contract under another prompt, which is that of every role."""
        return self.with_prompts(Prompts(template))

    def with_prompts(self, prompts: Prompts) -> "Contract":
        """The same contract under other prompts."""
        text, query, document = prompts
        return replace(self, template=text, query_template=query, document_template=document)

    @property
    def facts(self) -> dict[str, Any]:
        """All that whole vectors depend on: not where the weights come from, only which they are."""
        absent = {"query_template", "document_template"} if not self.prompts.differ else set()
        # vectors that were made before there was such a field are found again
        absent |= {name for name in ("echo", "layer_weights") if not getattr(self, name)}
        return {
            name: value
            for name, value in asdict(self).items()
            if name not in {"model", "content", "dimensions", "pissa"} | absent
        }

    def has_weights_of(self, other: "Contract") -> bool:
        """Whether both stand on the same base weights, wherever those were found."""
        return bool({self.weights, self.content} & {other.weights, other.content} - {None})

    def save(self, folder: Path, *, place: Path | None = None) -> None:
        """Write the record into a folder; `place` is where this machine has the base model, as a hint."""
        hint = {_PLACE: str(place.absolute())} if place else {}
        record = asdict(self)
        if not self.pissa:
            del record["pissa"]  # so that versions without this field read all other embedders
        write_record(folder / FILE_NAME, record | hint)

    @staticmethod
    def place_of_base(folder: Path) -> Path | None:
        """Where the base model was when the record of a folder was written; None if it was not a folder or file."""
        place = read_json(folder / FILE_NAME).get(_PLACE)
        return Path(place) if place else None

    @classmethod
    def load(cls, folder: Path) -> "Contract":
        """Read the record of a folder.

        Raises:
            UserError: if there is none, or it lacks a field that has no default, or has an unknown one.
        """
        if (folder / "modules.json").exists() and not (folder / FILE_NAME).exists():
            raise UserError(f"{folder} was written for sentence-transformers: load it by SentenceTransformer")
        if not (folder / FILE_NAME).exists():
            raise UserError(f"{folder} holds no trained embedder: name the folder that the run named at its end")
        record: dict[str, Any] = read_json(folder / FILE_NAME)
        record.pop(_PLACE, None)
        needed = {entry.name for entry in fields(cls) if entry.default is MISSING}
        odd = set(record) - {entry.name for entry in fields(cls)} | needed - set(record)
        if odd:
            raise UserError(f"{folder / FILE_NAME} does not fit this version of cft (fields: {', '.join(sorted(odd))})")
        record |= {name: tuple(record.get(name, ())) for name in ("prefix_ids", "suffix_ids", "dimensions")}
        try:
            return from_plain(cls, record)
        except ValueError as error:
            raise UserError(f"{folder / FILE_NAME} does not fit this version of cft ({error})") from error

    def require(self, loaded: "Contract") -> None:
        """Refuse a model that does not keep this contract; what is free of the base model is not compared.

        Base weights are compared by content: the same ones may be at another place.

        Raises:
            UserError: naming every field that differs and both its values.
        """
        actual = asdict(loaded)
        free = ["template", "query_template", "document_template", "adapter", "content", "dimensions", "pissa"]
        free += ["model", "weights"] if self.has_weights_of(loaded) else []
        differences = [
            f"  {name}: the contract says {to_plain(promised)!r}, the loaded model has {to_plain(actual[name])!r}"
            for name, promised in asdict(self).items()
            if name not in free and promised != actual[name]
        ]
        if differences:
            raise UserError("\n".join(["the embedding contract does not hold:", *differences]))
