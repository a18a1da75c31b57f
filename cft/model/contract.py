"""The embedding contract: everything that turns a text into a vector, in one small record.

It is written beside an adapter when training ends. Whoever loads the adapter gets the same vectors or an error that
names the difference, never slightly different vectors.
"""

from dataclasses import MISSING, asdict, dataclass, fields, replace
from pathlib import Path
from typing import Any

from cft.config.schema import PLACEHOLDER, Attention, Pooling, Quantization
from cft.system.digest import from_plain, to_plain
from cft.system.errors import UserError
from cft.system.files import read_json, write_json

FILE_NAME = "contract.json"


@dataclass(frozen=True)
class Contract:
    """What turns a text into a vector.

    model: where the base model comes from (`model.path`). weights: which version of it, as a commit or a hash.
    tokenizer: hash of the tokenizer. prefix_ids, suffix_ids: tokens put before and after every text (BOS; EOS).
    append_eos: whether the suffix is our EOS rather than the tokenizer's own. eos_token: which, if not the
    tokenizer's. template: the prompt around the text. layer: the one whose states are pooled, None for the last.
    max_length: tokens at most, prefix and suffix counted in. dtype: of the base model's weights. quantization: how
    they are held. adapter: SHA-256 of the trained weights, or None for the base model.
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
    layer: int | None = None
    eos_token: str | None = None
    quantization: Quantization = Quantization.none

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
            UserError: if there is none, or it lacks a field or has one too many. Fields that came later than a
                record have their defaults.
        """
        if (folder / "modules.json").exists() and not (folder / FILE_NAME).exists():
            raise UserError(f"{folder} was written for sentence-transformers: load it by SentenceTransformer")
        if not (folder / FILE_NAME).exists():
            raise UserError(f"{folder} holds no trained embedder: name the folder that the run named at its end")
        record: dict[str, Any] = read_json(folder / FILE_NAME)
        needed = {entry.name for entry in fields(cls) if entry.default is MISSING}
        odd = set(record) - {entry.name for entry in fields(cls)} | needed - set(record)
        if odd:
            raise UserError(f"{folder / FILE_NAME} does not fit this version of cft (fields: {', '.join(sorted(odd))})")
        record["prefix_ids"], record["suffix_ids"] = tuple(record["prefix_ids"]), tuple(record["suffix_ids"])
        try:
            found: Contract = from_plain(cls, record)
        except ValueError as error:
            raise UserError(f"{folder / FILE_NAME} does not fit this version of cft ({error})") from error
        return found

    def require(self, found: "Contract") -> None:
        """Refuse a model that does not keep this contract; prompt and adapter are the caller's to choose.

        Raises:
            UserError: naming every field that differs and both its values.
        """
        free = {"template", "adapter"}
        differences = [
            f"  {name}: the contract says {to_plain(promised)!r}, the loaded model has "
            f"{to_plain(getattr(found, name))!r}"
            for name, promised in asdict(self).items()
            if name not in free and promised != getattr(found, name)
        ]
        if differences:
            raise UserError("\n".join(["the embedding contract does not hold:", *differences]))
