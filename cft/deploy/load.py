"""An embedder, named by one of three ways and loaded: a finished run, a base model of conf/model, or any folder."""

import logging
import re
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

from cft.config.command_line import check_options
from cft.config.schema import Attention, ModelSettings, Pooling, Prompts, Role
from cft.data.files import BadRows
from cft.model.contract import FILE_NAME as CONTRACT
from cft.model.sources import ADAPTER_CONFIG, fetch
from cft.system.errors import UserError
from cft.system.files import named, user_path
from cft.system.overrides import override, overrides
from cft.system.text import described, did_you_mean

if TYPE_CHECKING:
    import torch

    from cft.model.adapters import Adapter
    from cft.model.embedder import Embedder
    from cft.model.sources import ModelFiles

log = logging.getLogger(__name__)

_MOST_LISTED = 6  # embedders in an error message

_WAYS = (
    "run=NAME (a finished run), model=CHOICE (a base model of conf/model, such as model=minilm) or path=FOLDER (any "
    "model's folder, or a .gguf file)"
)

Device = Literal["auto", "cpu", "cuda", "mps"]
Computed = Literal["trained", "auto", "bf16", "fp32"]

# Options that several commands have.
PromptWords = Annotated[str, "words around every text, as in 'query: {text}'; none takes those of its training"]
PlaceOfBase = Annotated[str, "where its base model is now, if that was moved; its content is checked"]


@dataclass(frozen=True, kw_only=True)
class EmbedderOptions:
    """Which embedder, named by `run`, `model` or `path`, under which prompt."""

    run: Annotated[str, "the embedder, by one of three keys: a run's folder, or the end of its name under outputs/"] = (
        ""
    )
    model: Annotated[str, "or a base model as it is: a choice of conf/model, such as minilm"] = ""
    path: Annotated[
        str,
        "or a folder (of a run, an export, a PEFT adapter, a model for transformers or sentence-transformers) or .gguf "
        "file",
    ] = ""
    prompt: PromptWords = ""
    model_path: PlaceOfBase = ""

    def __post_init__(self) -> None:
        """Refuse what Python code gives that no command line could, and another number of embedders than one."""
        check_options(self)
        _require_one(self.run, self.model, self.path)

    @property
    def embedder(self) -> dict[str, Any]:
        """Which embedder that is, as `load_embedder` takes it."""
        names = ("run", "model", "path", "prompt", "model_path")
        return {name: getattr(self, name) for name in names}


@dataclass(frozen=True, kw_only=True)
class TextFileOptions(EmbedderOptions):
    """How a file's texts are read, and where they are embedded."""

    column: Annotated[str, "the column that holds the texts, in files that have columns"] = "text"
    on_bad_row: Annotated[BadRows, "what to do with a row that holds no text"] = BadRows.RAISE
    device: Annotated[Device, "where it runs"] = "auto"
    precision: Annotated[
        Computed, "what it computes in: trained: as its training did; auto: bf16 where that is faster here, else fp32"
    ] = "trained"

    @property
    def embedder(self) -> dict[str, Any]:
        """As without these options, and where and how it runs."""
        return super().embedder | {"device": self.device, "precision": self.precision}


def require_columns(path: str, **named: str) -> None:
    """Refuse columns of what has none.

    Args:
        path: the file; none for what is no file, such as a pipe's lines.
        named: the options that name columns, and their values; the usual ones say nothing of the file.

    Raises:
        UserError: if a column is named and the file is of plain lines, or there is none.
    """
    if path and not path.lower().endswith((".txt", ".txt.gz")):
        return
    for key, column in named.items():
        if column not in ("", TextFileOptions.column):
            lacking = "lines of plain text have no columns" if path else "there is no file of columns"
            raise UserError(f"{override(key, column)}: {lacking}; leave it out")


@dataclass(frozen=True)
class Source:
    """Where an embedder comes from; one of the three is set."""

    run: Path | None = None  # a folder with a contract and trained weights
    adapter: Path | None = None  # a folder with an adapter of PEFT's and no contract
    model: ModelSettings | None = None  # a base model
    configured: bool = True  # whether the model's settings are those of conf/model; they are to be found out otherwise

    @property
    def trained(self) -> Path | None:
        """The folder of its trained weights; None for a base model."""
        return self.run or self.adapter


def find_embedder(name: str | Path, outputs: Path = Path("outputs")) -> Path:
    """A finished embedder's folder, by its path, its name or the end of its name.

    Raises:
        UserError: if there is none, or several, naming those that are there.
    """
    if not isinstance(name, (str, Path)) or "\0" in str(name):
        raise UserError(f"run={described(name)}: must be a folder, or the end of a run's name")
    path, name = user_path(name), str(name)
    if not name.strip():
        raise UserError(f"{override('run', name)}: names no embedder; give its folder, or the end of its name")
    if (path / CONTRACT).exists():
        return path
    final, kept = (_newest_first(outputs.glob(f"{place}/{CONTRACT}")) for place in ("*", "*/steps/*"))
    folders = [*final, *kept]
    matches = named(name, folders, outputs)
    if len(matches) == 1:
        return matches[0]
    listed = matches or final or kept
    names = ", ".join(map(str, listed[:_MOST_LISTED])) or f"none under {outputs}"
    names += f" and {len(listed) - _MOST_LISTED} more" if len(listed) > _MOST_LISTED else ""
    if matches:
        raise UserError(f"run={name}: several embedders end so: {names}")
    missing = "holds no finished embedder" if path.is_dir() else "no such folder, nor does a finished embedder end so"
    by_ending = {end: folder.name for folder in final for end in (folder.name, folder.name[-len(name) :])}
    guess = did_you_mean(name, by_ending, show=lambda end: f"run={by_ending[end]}", cutoff=0.8)
    raise UserError(f"run={name}: {missing}; there: {names}{guess}")


def _newest_first(contracts: Iterable[Path]) -> list[Path]:
    return sorted((path.parent for path in contracts), key=lambda folder: folder.stat().st_mtime, reverse=True)


def find_source(run: str | Path = "", *, model: str = "", path: str | Path = "", model_path: str = "") -> Source:
    """Decide which embedder is meant, without loading it.

    Args:
        run: as `find_embedder` takes it. model: a choice of conf/model. path: a folder or a .gguf file. model_path:
            where the base model of trained weights is now. Exactly one of the first three is given.

    Raises:
        UserError: if none or several are given, there is no such thing, or it is nothing that can be read.
    """
    _require_one(run, model, path)
    if not _absent(model):
        source = Source(model=_of_choice(model))
    else:
        source = _at(path) if not _absent(path) else Source(run=find_embedder(run))
    if model_path and source.trained is None:
        raise UserError(
            f"{override('model_path', model_path)}: says where the base model of trained weights is, and there are "
            f"none; {override('path', model_path)} alone names a model"
        )
    return source


def load_embedder(
    run: str | Path = "",
    *,
    model: str = "",
    path: str | Path = "",
    prompt: str = "",
    device: Device = "auto",
    model_path: str = "",
    precision: Computed = "trained",
) -> "Embedder":
    """Load an embedder, named by one of `run`, `model` and `path`.

    Args:
        run: a finished run, as `find_embedder` takes it. model: a choice of conf/model: the base model alone.
        path: a folder of a run, an export, a PEFT adapter or a model, or a .gguf file.
        prompt: words around every text; none takes those it was trained or published with.
        device: where it runs. model_path: where the base model of trained weights is now; none for where it was.
        precision: as `Embedder.load` takes it; of what has no training of its own here, `trained` is fp32.

    Raises:
        UserError: if not exactly one is named, it cannot be had, or a prompt has no place for the text.
    """
    # So many parameters because each is an option of the commands that load one.
    source = find_source(run, model=model, path=path, model_path=model_path)
    from cft.job.start import choose_device
    from cft.model.embedder import Embedder

    place = _Place(choose_device(device), precision)
    if source.run:
        embedder = Embedder.load(source.run, device=place.device, model_path=model_path or None, precision=precision)
    elif source.adapter:
        embedder = _adapted(source.adapter, place, prompt, model_path)
    else:
        assert source.model is not None
        if source.configured:
            options = place.options(source.model, fetch(source.model))
            embedder = Embedder.base(source.model, templates=_templates(prompt), **options)
        else:
            with _naming("path"):
                embedder = _of_folder(source.model, place, prompt)
    return embedder.with_template(prompt) if prompt else embedder


@dataclass(frozen=True)
class _Place:
    """Where an embedder runs and what it computes in, as configured."""

    device: "torch.device"
    precision: Computed

    def options(self, model: ModelSettings, files: "ModelFiles") -> dict[str, Any]:
        """A base model's files, device and type, as `Embedder.base` takes them."""
        import torch

        from cft.model.precision import chosen_dtype

        dtype = chosen_dtype(self.precision, self.device, model, files)
        return {"files": files, "device": self.device, "dtype": getattr(torch, dtype)}


def _require_one(run: Any, model: Any, path: Any) -> None:
    named = {key: name for key, name in (("run", run), ("model", model), ("path", path)) if not _absent(name)}
    if len(named) == 1:
        return
    problem = f"{overrides(named)}: name one embedder, not {len(named)}" if named else "which embedder is not said"
    raise UserError(f"{problem}; give one of {_WAYS}")


def _absent(name: Any) -> bool:
    return isinstance(name, str) and not name


def _of_choice(choice: Any) -> ModelSettings:
    if not isinstance(choice, str):
        raise UserError(f"model={described(choice)}: must be the name of a choice of conf/model")
    from cft.config.compose import compose_model

    return compose_model(choice)


def _at(path: Any) -> Source:
    """What is in a folder, or the .gguf file, by its files alone."""
    if not isinstance(path, (str, Path)) or "\0" in str(path):
        raise UserError(f"path={described(path)}: must be a folder, or a .gguf file")
    name, place = override("path", str(path)), user_path(path)
    if not place.exists():
        raise UserError(f"{name}: no such folder or file")
    if (place / "model.onnx").exists() and not (place / "config.json").exists():
        raise UserError(f"{name}: holds an ONNX export, which cft does not run: name its run, or another export")
    for run in (place, place.parent if place.name == "adapter" else place):
        if (run / CONTRACT).exists():
            return Source(run=run)
    has_config = (place / "config.json").exists()
    if (place / ADAPTER_CONFIG).exists():
        if has_config:
            raise UserError(f"{name}: holds a model and an adapter; put the adapter into a folder of its own")
        return Source(adapter=place)
    if has_config or (place.is_file() and place.suffix.lower() == ".gguf"):
        return Source(model=ModelSettings(name=place.stem or "model", path=str(path)), configured=False)
    raise UserError(
        f"{name}: is none that can be read; an embedder is a .gguf file or a folder with {CONTRACT} (of a run or its "
        f"adapter), {ADAPTER_CONFIG} (of PEFT), or config.json, *.safetensors and a tokenizer (of transformers or "
        "sentence-transformers)"
    )


def _templates(prompt: str, prompts: Prompts | None = None) -> list[str]:
    """The words that texts will have around them."""
    return [prompt] if prompt else [*dict.fromkeys((prompts or Prompts()).of(role) for role in Role)]


def _of_folder(model: ModelSettings, place: _Place, prompt: str, record: Path | None = None) -> "Embedder":
    """A model that stands in no configuration, as sentence-transformers recorded it, or as can be assumed.

    Args:
        record: the folder that says how it embeds, if that is not the model's own.
    """
    from cft.batching.layout import LooksBothWays
    from cft.model.embedder import Embedder
    from cft.model.published import published_dimensions, published_settings

    files = fetch(model)
    recorded = [folder for folder in (record, files.folder) if folder]
    published = next(filter(None, (published_settings(folder, model) for folder in recorded)), None)
    settings, prompts = published or (model, Prompts())
    templates = _templates(prompt, prompts)
    try:
        embedder = Embedder.base(settings, templates=templates, **place.options(settings, files))
    except LooksBothWays:  # an encoder; only a trial shows it
        settings = replace(settings, attention=Attention.bidirectional)
        if not published:
            settings = replace(settings, pooling=Pooling.mean, append_eos=False)
        embedder = Embedder.base(settings, templates=templates, **place.options(settings, files))
    if not published:
        log.warning(
            "%s does not say how it embeds; assumed: pooling=%s, %s, %d tokens at most",
            model.path,
            settings.pooling.value,
            "an EOS behind every text" if settings.append_eos else "special tokens of its tokenizer",
            settings.max_length,
        )
    trained = next(filter(None, (published_dimensions(folder, embedder.width) for folder in recorded)), ())
    contract = replace(embedder.contract, dimensions=trained)
    return Embedder(embedder.model, embedder.backbone, contract).with_prompts(prompts)


def _adapted(folder: Path, place: _Place, prompt: str, model_path: str) -> "Embedder":
    """A PEFT adapter without a contract, on the base model that it names, or that stands at `model_path`."""
    from cft.model.adapters import attach, fetch_adapter

    with _naming("path"):
        adapter = fetch_adapter(str(folder), None)
    base = model_path or _named_base(adapter)
    with _naming("model_path"):
        embedder = _of_folder(ModelSettings(name=folder.name or "model", path=base), place, prompt, folder)
        return attach(embedder, adapter, any_base=bool(model_path))


def _named_base(adapter: "Adapter") -> str:
    base = adapter.config.base_model_name_or_path if adapter.config else None
    if not base:
        raise UserError(f"{override('path', adapter.name)}: does not name its base model; give it by model_path=FOLDER")
    return str(base)


@contextmanager
def _naming(key: str) -> Iterator[None]:
    """In errors raised within, call by its option here what a configuration calls `model.path` or `adapter`."""
    try:
        yield
    except UserError as error:
        raise UserError(re.sub(r"(?<![\w.@])(model\.path|adapter)=", f"{key}=", str(error))) from error
