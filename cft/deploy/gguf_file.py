"""A finished embedder as a GGUF file, which llama.cpp, Ollama and what is built on them run.

Settings and tokenizer are those of a GGUF file of the base model; the weights are the embedder's. What says how a text
becomes a vector is in the file's metadata: whether the tokenizer appends EOS, and the pooling.

The file is read again by transformers, whose reader knows nothing of this writer, and must give the same vectors.
"""

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import torch

from cft.config.schema import PLACEHOLDER, ModelSettings, Pooling, Role
from cft.deploy import portable
from cft.model.embedder import Embedder
from cft.model.sources import convert_gguf
from cft.system.errors import UserError
from cft.system.overrides import override

if TYPE_CHECKING:
    from gguf import GGUFReader, GGUFWriter

Precision = Literal["f32", "f16", "q8_0"]

# llama.cpp's numbers for a pooling.
_POOLING = {Pooling.last: 3, Pooling.mean: 1, Pooling.first: 2}
# llama.cpp turns queries and keys by pairs of neighbours where transformers takes halves, in these architectures.
_INTERLEAVED = ("llama",)
# These have norms that multiply by 1 + weight, and llama.cpp's by the weight.
_SHIFTED = ("gemma2", "gemma3")
# Those whose tensors are the same in both.
_ALIKE = ("qwen2", "qwen3", "phi3")
ARCHITECTURES = (*_INTERLEAVED, *_SHIFTED, *_ALIKE)
# Least cosine between a sample's vector and the one that the file gives, in 32 and 16 bits; of 8 it is only shown.
_LEAST_COSINE = {"f32": 0.999999, "f16": 0.9999, "q8_0": 0.9}

_CONVERTER = "export with format=merged, and let llama.cpp's convert_hf_to_gguf.py make a file of that folder"


def require_holdable(embedder: Embedder) -> None:
    """Refuse an embedder that a GGUF file cannot hold.

    Raises:
        UserError: saying why, and what to do.
    """
    portable.check_portable(embedder)
    contract = embedder.contract
    if contract.pooling not in _POOLING:
        raise UserError(f"this embedder has pooling={contract.pooling.value}, which llama.cpp does not know")
    if any(contract.prompts.of(role) != PLACEHOLDER for role in Role):
        raise UserError(
            f"this embedder has prompts ({contract.prompts}), for which a GGUF file has no place: export under "
            "prompt='{text}', and put the words around each text yourself"
        )
    special = [("before", contract.prefix_ids), ("after", contract.suffix_ids)]
    for where, ids in special:
        if len(ids) > 1:
            raise UserError(
                f"this embedder has {len(ids)} special tokens {where} a text, and a GGUF file has a place for one"
            )


def open_base(path: Path) -> "GGUFReader":
    """The GGUF file of a base model.

    Raises:
        UserError: if it is none, or of an architecture that cannot be written.
    """
    from gguf import GGUFReader

    if not path.is_file():
        raise UserError(f"{override('base_gguf', path)}: no such file")
    try:
        reader = GGUFReader(path)
        architecture = _value(reader, "general.architecture")
    except Exception as error:  # the reader raises whatever its arithmetic comes to
        raise UserError(f"{path} is no GGUF file that can be read; fetch it again") from error
    if architecture not in ARCHITECTURES:
        raise UserError(
            f"{path} is of the architecture {architecture}, and cft writes {', '.join(ARCHITECTURES)}: {_CONVERTER}"
        )
    return reader


def require_base(embedder: Embedder) -> Path:
    """The GGUF file that the base model came as.

    Raises:
        UserError: if it did not.
    """
    if embedder.backbone.gguf is None:
        raise UserError(
            f"the base model {embedder.contract.model} did not come as a GGUF file, whose settings and tokenizer are "
            f"needed: name one of the same model by base_gguf=FILE.gguf (in any precision), or {_CONVERTER}"
        )
    return embedder.backbone.gguf


def write(embedder: Embedder, base: "GGUFReader", path: Path, precision: Precision) -> list[str]:
    """Write the file and read it again; the embedder is used up.

    Args:
        embedder: for which `require_holdable` has nothing to refuse.
        base: settings and tokenizer, from `open_base`.
        path: of the file.
        precision: of the matrices; what has one dimension is in 32 bits.

    Returns:
        How it was made and checked.

    Raises:
        UserError: if the base's file is of another model, or what was written gives other vectors.
    """
    expected = embedder.encode(portable.SAMPLES)
    tokens = embedder.tokenize(portable.SAMPLES)
    trunk, drift = portable.merge_adapter(embedder)
    _write_file(trunk, embedder, base, path, precision)
    cosine = _cosine_when_read(embedder, path, expected, tokens)
    if cosine < _LEAST_COSINE[precision]:
        raise UserError(
            f"the file gives other vectors (a cosine of {cosine:.6f} where {_LEAST_COSINE[precision]} is the least): "
            "it is not written"
        )
    return [
        f"merged in float32: no coordinate of a unit vector moved by more than {drift:.1e}",
        f"read again by transformers, it gives the same tokens, and vectors with a cosine of {cosine:.6f} or more",
    ]


def _write_file(trunk: Any, embedder: Embedder, base: "GGUFReader", path: Path, precision: Precision) -> None:
    from gguf import GGMLQuantizationType, GGUFWriter, LlamaFileType, quants

    architecture = _value(base, "general.architecture")
    kind, file_type = {
        "f32": (GGMLQuantizationType.F32, LlamaFileType.ALL_F32),
        "f16": (GGMLQuantizationType.F16, LlamaFileType.MOSTLY_F16),
        "q8_0": (GGMLQuantizationType.Q8_0, LlamaFileType.MOSTLY_Q8_0),
    }[precision]
    writer = GGUFWriter(path, architecture)
    _copy_settings(base, writer, _own_settings(embedder, architecture, path.stem, int(file_type)))
    written = set()
    for name, tensor in _tensors(trunk, architecture, base):
        written.add(name)
        of_matrix = tensor.ndim > 1 and (precision != "q8_0" or tensor.shape[-1] % 32 == 0)
        own = kind if of_matrix else GGMLQuantizationType.F16 if tensor.ndim > 1 else GGMLQuantizationType.F32
        writer.add_tensor(name, quants.quantize(tensor, own), raw_dtype=own)
    for other in base.tensors:  # such as a head of its own, which no vector passes through, or factors of positions
        if other.name not in written:
            writer.add_tensor(other.name, other.data, raw_dtype=other.tensor_type)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def _own_settings(embedder: Embedder, architecture: str, name: str, file_type: int) -> dict[str, Any]:
    """What the file says of itself, and how a text becomes a vector."""
    contract = embedder.contract
    own = {
        "general.name": name,
        "general.file_type": file_type,
        f"{architecture}.pooling_type": _POOLING[contract.pooling],
        "tokenizer.ggml.add_bos_token": bool(contract.prefix_ids),
        "tokenizer.ggml.add_eos_token": bool(contract.suffix_ids),
    }
    if contract.prefix_ids:
        own["tokenizer.ggml.bos_token_id"] = contract.prefix_ids[0]
    if contract.suffix_ids:
        own["tokenizer.ggml.eos_token_id"] = contract.suffix_ids[0]
    return own


def _copy_settings(base: "GGUFReader", writer: "GGUFWriter", own: dict[str, Any]) -> None:
    """The base file's metadata, but for what is the embedder's own."""
    from gguf import GGUFValueType

    kinds = {str: GGUFValueType.STRING, bool: GGUFValueType.BOOL, int: GGUFValueType.UINT32}
    for field in base.fields.values():
        if field.name.startswith("GGUF.") or field.name in own or field.name == "general.architecture":
            continue
        kind = field.types[0]
        inner = field.types[-1] if kind is GGUFValueType.ARRAY else None
        writer.add_key_value(field.name, field.contents(), kind, sub_type=inner)
    for name, value in own.items():
        writer.add_key_value(name, value, kinds[type(value)])


def _tensors(trunk: Any, architecture: str, base: "GGUFReader") -> Iterator[tuple[str, np.ndarray]]:
    """The trunk's tensors by llama.cpp's names and in its form.

    Raises:
        UserError: if one of them has no place in the base's file.
    """
    from gguf import MODEL_ARCH_NAMES, get_tensor_name_map

    number = next(number for number, name in MODEL_ARCH_NAMES.items() if name == architecture)
    config = trunk.config
    names = get_tensor_name_map(number, config.num_hidden_layers)
    shapes = {tensor.name: tuple(int(size) for size in reversed(tensor.shape)) for tensor in base.tensors}
    for name, weight in trunk.state_dict().items():
        own = names.get_name(f"model.{name}", try_suffixes=(".weight", ".bias"))
        if own is None or shapes.get(own) != tuple(weight.shape):
            held = f"there it is {shapes[own]}" if own in shapes else "it is not there"
            raise UserError(
                f"the GGUF file is not of this base model: {name} has the shape {tuple(weight.shape)}, {held}"
            )
        yield own, _in_form(weight.float(), name, architecture, config).contiguous().numpy()


def _in_form(weight: torch.Tensor, name: str, architecture: str, config: Any) -> torch.Tensor:
    """A tensor as llama.cpp wants it."""
    if architecture in _SHIFTED and name.endswith("norm.weight"):
        return weight + 1
    if architecture in _INTERLEAVED and ("q_proj" in name or "k_proj" in name):
        heads = config.num_attention_heads if "q_proj" in name else config.num_key_value_heads
        halves = weight.reshape(heads, 2, weight.shape[0] // heads // 2, *weight.shape[1:])
        return halves.transpose(1, 2).reshape(weight.shape)
    return weight


def _cosine_when_read(embedder: Embedder, path: Path, expected: np.ndarray, tokens: list[tuple[int, ...]]) -> float:
    """The least cosine between the vectors (samples, D) expected and those of the file, read by transformers.

    Raises:
        UserError: if the file gives the samples other tokens.
    """
    contract = embedder.contract
    folder = path.parent / "read"
    convert_gguf(path, folder)
    settings = ModelSettings(
        name=path.stem,
        path=str(folder),
        pooling=contract.pooling,
        append_eos=bool(contract.suffix_ids),
        max_length=contract.max_length,
    )
    again = Embedder.base(settings)
    for text, own, other in zip(portable.SAMPLES, tokens, again.tokenize(portable.SAMPLES), strict=True):
        if own != other:
            raise UserError(f"the file gives {text[:40]!r} other tokens than this embedder has: it is not written")
    return float((again.encode(portable.SAMPLES) * expected).sum(axis=1).min())


def _value(reader: "GGUFReader", name: str) -> Any:
    return reader.fields[name].contents()
