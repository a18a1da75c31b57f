"""Starting from trained weights: a run of ours, or any PEFT adapter in a folder or on the hub.

An adapter that is evaluated or trained further is exactly that adapter on exactly its base model, or an error says
what does not match.
"""

import logging
import re
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from cft.config.schema import LoraBias, LoraSettings, LoraVariant
from cft.model import contract
from cft.model.contract import Contract
from cft.model.embedder import Embedder
from cft.model.lora import Targets, find_targets, keep_roles
from cft.model.sources import ADAPTER_FOLDER
from cft.model.weights import (
    ADAPTER_FILES,
    adapter_config,
    adapter_layers,
    load_weights,
    require_promised_weights,
    weights_digest,
)
from cft.system.digest import to_plain
from cft.system.errors import UserError
from cft.system.files import user_path
from cft.system.hub import fetch_repository, last_part, may_be_repository
from cft.system.overrides import override, overrides

log = logging.getLogger(__name__)

_SAMPLES = ["A man is playing a flute.", "Nobody is at home."]


@dataclass(frozen=True)
class Adapter:
    """Trained weights that are ready to be put on their base model."""

    name: str  # as the user gave it
    folder: Path  # with the weights
    identity: str  # SHA-256 of the weights and of how they are put on a model
    config: Any  # PEFT's configuration; None for all the weights of a model
    contract: Contract | None  # written beside the weights by a run; None for other adapters


def fetch_adapter(name: str, revision: str | None) -> Adapter:
    """Find an adapter: a run's folder, an adapter's own folder, or a hub repository.

    Raises:
        UserError: if there is none, only a pickled one, or one that was changed after its contract was written.
    """
    folder = user_path(name)
    if folder.is_dir() and revision is not None:
        raise UserError(
            f"{override('adapter_revision', revision)}: {override('adapter', name)} is a folder here, which has no "
            "revisions; leave it out"
        )
    if not folder.is_dir():
        if not may_be_repository(name):
            below = Path("outputs") / name
            guess = f"; did you mean {override('adapter', str(below))}?" if name and below.is_dir() else ""
            raise UserError(
                f"{override('adapter', name)}: no such folder (a hub repository is named OWNER/NAME){guess}"
            )
        folder = fetch_repository("adapter", name, revision, ADAPTER_FILES)
    promised = None
    for run in (folder, folder.parent):
        if (run / contract.FILE_NAME).exists() and folder in (run, run / ADAPTER_FOLDER):
            promised = Contract.load(run)
            # `cft.export format=peft` puts weights and contract into one folder
            folder = run / ADAPTER_FOLDER if (run / ADAPTER_FOLDER).is_dir() else run
            break
    if promised is None and not all((folder / file).exists() for file in ADAPTER_FILES):
        pickled = " (a pickled adapter_model.bin is not loaded: convert it with safetensors first)"
        raise UserError(
            f"{override('adapter', name)}: needs {' and '.join(ADAPTER_FILES)}, or the folder of a finished run"
            + (pickled if list(folder.glob("*.bin")) else "")
        )
    identity = require_promised_weights(folder, promised) if promised else weights_digest(folder)
    return Adapter(name, folder, identity, adapter_config(folder), promised)


def attach(base: Embedder, adapter: Adapter, *, lora: LoraSettings | None = None, any_base: bool = False) -> Embedder:
    """Put an adapter on a base model, which is changed in place.

    Args:
        base: the base model as it is configured.
        adapter: from `fetch_adapter`.
        lora: settings of the training that goes on from it; None only to use it.
        any_base: accept an adapter that names another base model.

    Raises:
        UserError: if base model, contract or LoRA settings do not match, a tensor of the adapter has no place, or
            the adapter changes no embedding.
    """
    require_named_base(adapter, base.contract.model, any_base=any_base)
    _check_contract(base, adapter)
    targets = _check_lora(base, adapter, lora) if lora else None
    before = base.encode(_SAMPLES)
    try:
        model = load_weights(base.model, adapter.folder, dropout=lora.dropout if lora else None)
    except UserError as error:
        cut = base.contract.layer
        raise UserError(f"{error}" + (f"; model.layer={cut} drops the layers behind it" if cut else "")) from error
    if targets:
        keep_roles(model, targets)
    pissa = adapter.contract is not None and adapter.contract.pissa
    embedder = Embedder(model, base.backbone, replace(base.contract, adapter=adapter.identity, pissa=pissa))
    change = float(np.abs(embedder.encode(_SAMPLES) - before).max())
    if change == 0:
        raise UserError(
            f"{override('adapter', adapter.name)} changes no embedding: its updates are zero, or on unused layers"
        )
    log.info("adapter %s: all its tensors are in place and move embeddings by up to %.2g", adapter.name, change)
    return embedder


def require_named_base(adapter: Adapter, model_path: str, *, any_base: bool) -> None:
    """Refuse an adapter that names another base model than `model.path`; one of ours is held to its contract instead.

    It needs no weights, so that it is done before stored scores are shown as well.

    Raises:
        UserError: naming both.
    """
    name = adapter.config.base_model_name_or_path if adapter.config and not adapter.contract else None
    if name and not any_base and _short(name) != _short(model_path):
        raise UserError(
            f"{override('adapter', adapter.name)} names {name} as its base model, and model.path is {model_path}; if "
            "these are the "
            "same weights, set adapter_any_base=true"
        )


def _check_contract(base: Embedder, adapter: Adapter) -> None:
    """Refuse weights of ours on another base model than they were trained on."""
    if adapter.contract is None:
        return
    try:
        adapter.contract.require(base.contract)
    except UserError as error:
        settings = _settings_of(adapter.contract, base.contract)
        raise UserError(f"{override('adapter', adapter.name)}: {error}{settings}") from error


def _settings_of(promised: Contract, actual: Contract) -> str:
    """The end of an error message: settings under which the base model keeps an adapter's contract, if there are."""
    same = promised.has_weights_of(actual) or promised.model == actual.model
    fixes = {} if same else {"model.path": promised.model}
    for name in contract.SETTINGS:
        value = to_plain(getattr(promised, name))
        if value != to_plain(getattr(actual, name)):
            fixes[f"model.{name}"] = value
    return f"\nits own settings: {overrides(fixes)}" if fixes else ""


def _short(path: str) -> str:
    """The last part of a model's path, without the punctuation that people write differently."""
    return re.sub(r"[-_. ]", "", last_part(path).lower())


def _check_lora(base: Embedder, adapter: Adapter, lora: LoraSettings) -> Targets | None:
    """The layers that a training goes on with; refuses LoRA settings other than the adapter's own."""
    if adapter.config is None:
        if lora.rank:
            raise UserError(
                f"{override('adapter', adapter.name)} is a whole model: train it on with lora=none; for a LoRA on top "
                "of it, name "
                "the weights by model.path"
            )
        return None
    if adapter.config.peft_type != "LORA":
        raise UserError(
            f"{override('adapter', adapter.name)} is no LoRA: it can be evaluated (train.steps=0), not trained on"
        )
    if not lora.rank:
        raise UserError(
            f"{override('adapter', adapter.name)} is a LoRA: with lora=none it could not be trained on; choose "
            "lora=paper"
        )
    targets = find_targets(base.model, lora)
    configured = {"rank": lora.rank, "alpha": lora.alpha, "targets": sorted(targets.names), "variant": lora.variant}
    layers = adapter_layers(adapter.folder)
    own = {"rank": adapter.config.r, "alpha": float(adapter.config.lora_alpha), "targets": layers}
    configured["bias"], own["bias"] = lora.bias, LoraBias(adapter.config.bias)
    own["variant"] = LoraVariant.dora if adapter.config.use_dora else LoraVariant.plain
    if adapter.config.use_rslora:
        own["variant"] = LoraVariant.rslora
    different = [name for name in own if own[name] != configured[name]]
    if different:
        fix = overrides({f"lora.{name}": own[name] for name in different})
        raise UserError(
            f"{override('adapter', adapter.name)} has another LoRA than the one configured "
            f"(lora.{', lora.'.join(different)}); to "
            f"train it on as it is: {fix}"
        )
    return targets
