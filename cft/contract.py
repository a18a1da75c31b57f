"""The embedding contract: everything that turns a text into a vector, in one small record.

It is written beside an adapter when training ends. Whoever loads the adapter gets the same vectors or an error that
names the difference, never slightly different vectors.
"""

from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path
from typing import Any

from cft.errors import UserError
from cft.settings import PLACEHOLDER, Attention, Pooling
from cft.store import read_json, write_json

FILE_NAME = "contract.json"


@dataclass(frozen=True)
class Contract:
    """What turns a text into a vector.

    model: where the base model comes from (`model.path`). weights: which version of it, as a commit or a hash.
    tokenizer: hash of the tokenizer. prefix_ids, suffix_ids: tokens put before and after every text (BOS; EOS).
    append_eos: whether the suffix is our EOS rather than the tokenizer's own.
    template: the prompt around the text. max_length: tokens at most, prefix and suffix counted in.
    adapter: SHA-256 of the trained weights, or None for the base model. dtype: of the base model's weights.
    """

    model: str
    weights: str
    tokenizer: str
    prefix_ids: tuple[int, ...]
    suffix_ids: tuple[int, ...]
    append_eos: bool
    template: str
    pooling: Pooling
    attention: Attention
    max_length: int
    dtype: str
    adapter: str | None = None

    def __post_init__(self) -> None:
        if self.template.count(PLACEHOLDER) != 1:
            raise UserError(f"the prompt {self.template!r} must hold {PLACEHOLDER} exactly once")
        room = self.max_length - len(self.prefix_ids) - len(self.suffix_ids)
        if room < 1:
            raise UserError(f"model.max_length={self.max_length} leaves no room for text beside the special tokens")

    @property
    def room(self) -> int:
        """Tokens of a prompted text that fit between prefix and suffix."""
        return self.max_length - len(self.prefix_ids) - len(self.suffix_ids)

    def with_template(self, template: str) -> "Contract":
        """The same contract with other words around the text."""
        return replace(self, template=template)

    def save(self, folder: Path) -> None:
        """Write the record into a folder."""
        write_json(folder / FILE_NAME, asdict(self))

    @classmethod
    def load(cls, folder: Path) -> "Contract":
        """Read the record of a folder.

        Raises:
            UserError: if there is none, or it lacks a field or has one too many.
        """
        if not (folder / FILE_NAME).exists():
            raise UserError(f"{folder} holds no trained embedder: name the folder that the run named at its end")
        record: dict[str, Any] = read_json(folder / FILE_NAME)
        names = {entry.name for entry in fields(cls)}
        if set(record) != names:
            odd = ", ".join(sorted(set(record) ^ names))
            raise UserError(f"{folder / FILE_NAME} does not fit this version of cft (fields: {odd})")
        record["pooling"], record["attention"] = Pooling(record["pooling"]), Attention(record["attention"])
        record["prefix_ids"], record["suffix_ids"] = tuple(record["prefix_ids"]), tuple(record["suffix_ids"])
        return cls(**record)

    def require(self, found: "Contract") -> None:
        """Refuse a model that does not keep this contract; prompt and adapter are the caller's to choose.

        Raises:
            UserError: naming every field that differs and both its values.
        """
        free = {"template", "adapter"}
        differences = [
            f"  {name}: the contract says {promised!r}, the loaded model has {getattr(found, name)!r}"
            for name, promised in asdict(self).items()
            if name not in free and promised != getattr(found, name)
        ]
        if differences:
            raise UserError("\n".join(["the embedding contract does not hold:", *differences]))
