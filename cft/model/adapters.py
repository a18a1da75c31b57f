"""Starting from trained weights: a run of ours, or any PEFT adapter in a folder or on the hub.

Whoever evaluates an adapter, or trains it further, gets exactly that adapter on exactly its base model, or an error
that says what does not match.
"""

import logging
import re
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from cft.config.schema import LoraSettings
from cft.model import contract
from cft.model.contract import Contract
from cft.model.embedder import Embedder
from cft.model.lora import Targets, find_targets, keep_roles
from cft.model.weights import (
    ADAPTER_CONFIG,
    ADAPTER_FOLDER,
    ADAPTER_WEIGHTS,
    FULL_WEIGHTS,
    adapter_config,
    adapter_layers,
    head_tensors,
    load_weights,
    weights_digest,
)
from cft.system.digest import to_plain
from cft.system.errors import UserError
from cft.system.hub import fetch_repository, last_part, may_be_repository

log = logging.getLogger(__name__)

_SAMPLES = ["A man is playing a flute.", "Nobody is at home."]


@dataclass(frozen=True)
class Adapter:
    """Trained weights that are ready to be put on their base model.

    name: as the user gave it. folder: with the weights. identity: SHA-256 of the weights. contract: the one that was
    written beside them, None if they are not a run's of ours.
    """

    name: str
    folder: Path
    identity: str
    contract: Contract | None

    @property
    def is_whole(self) -> bool:
        """Whether these are all the weights of a model rather than an adapter."""
        return (self.folder / FULL_WEIGHTS).exists()


def fetch_adapter(name: str, revision: str | None) -> Adapter:
    """Find an adapter: a run's folder, an adapter's own folder, or a hub repository.

    Raises:
        UserError: if there is none, or only a pickled one.
    """
    local = Path(name).expanduser()
    if local.is_dir():
        folder = local
    elif not may_be_repository(name):
        raise UserError(f"adapter={name}: no such folder (a hub repository is named OWNER/NAME)")
    else:
        folder = fetch_repository("adapter", name, revision, [ADAPTER_CONFIG, ADAPTER_WEIGHTS])
    run = next((path for path in (folder, folder.parent) if (path / contract.FILE_NAME).exists()), None)
    if run is not None and folder in (run, run / ADAPTER_FOLDER):
        weights = run / ADAPTER_FOLDER
        return _checked(Adapter(name, weights, weights_digest(weights), Contract.load(run)))
    if not (folder / ADAPTER_WEIGHTS).exists() or not (folder / ADAPTER_CONFIG).exists():
        pickled = " (a pickled adapter_model.bin is not loaded: convert it with safetensors first)"
        raise UserError(
            f"adapter={name}: needs {ADAPTER_CONFIG} and {ADAPTER_WEIGHTS}, or the folder of a finished run"
            + (pickled if list(folder.glob("*.bin")) else "")
        )
    return _checked(Adapter(name, folder, weights_digest(folder), None))


def _checked(adapter: Adapter) -> Adapter:
    if adapter.contract is not None and adapter.contract.adapter != adapter.identity:
        raise UserError(f"the weights in {adapter.folder} are not those that their contract was written for")
    if not adapter.is_whole:
        adapter_config(adapter.folder)
    return adapter


def attach(base: Embedder, adapter: Adapter, *, lora: LoraSettings | None = None, any_base: bool = False) -> Embedder:
    """Put an adapter on a base model, which is changed in place.

    Args:
        base: the base model as it is configured.
        adapter: what `fetch_adapter` found.
        lora: the settings of the training that goes on from it; None only to use it.
        any_base: take an adapter that names another base model.

    Raises:
        UserError: if base model, contract or LoRA settings do not match, a tensor of the adapter finds no place, or
            the adapter changes no embedding.
    """
    _check_base(base, adapter, any_base=any_base)
    targets = _targets(base, adapter, lora) if lora is not None else None
    without = base.encode(_SAMPLES)
    try:
        model = load_weights(base.model, adapter.folder, dropout=lora.dropout if lora else None)
    except UserError as error:
        cut = base.contract.layer
        raise UserError(f"{error}" + (f"; model.layer={cut} drops the layers behind it" if cut else "")) from error
    if targets is not None:
        keep_roles(model, targets)
    found = Embedder(model, base.backbone, replace(base.contract, adapter=adapter.identity))
    change = float(np.abs(found.encode(_SAMPLES) - without).max())
    if change == 0:
        raise UserError(f"adapter={adapter.name} changes no embedding: its updates are zero, or on unused layers")
    _say(adapter, change)
    return found


def _say(adapter: Adapter, change: float) -> None:
    log.info("adapter %s: all its tensors are in place and move embeddings by up to %.2g", adapter.name, change)
    ignored = [] if adapter.is_whole else head_tensors(adapter.folder)
    if ignored:
        log.info("%d of its tensors belong to a language-model head, which no embedding runs through", len(ignored))


def _check_base(base: Embedder, adapter: Adapter, *, any_base: bool) -> None:
    """Refuse weights of another model: by our contract, or by the name that a foreign adapter has for its base."""
    if adapter.contract is not None:
        try:
            adapter.contract.require(base.contract)
        except UserError as error:
            raise UserError(
                f"adapter={adapter.name}: {error}{_its_settings(adapter.contract, base.contract)}"
            ) from error
        return
    named = adapter_config(adapter.folder).base_model_name_or_path
    if named and not any_base and _short(named) != _short(base.contract.model):
        raise UserError(
            f"adapter={adapter.name} names {named} as its base model, and model.path is {base.contract.model}; if "
            "these are the same weights, set adapter_any_base=true"
        )


def _its_settings(promised: Contract, found: Contract) -> str:
    """The end of an error message: settings that would keep an adapter's contract, if settings can."""
    told, here = to_plain(promised), to_plain(found)
    keys = {"model": "path"} | {name: name for name in _SETTABLE}
    wrong = [name for name in keys if told[name] != here[name]]
    values = {name: "null" if told[name] is None else str(told[name]).lower() for name in wrong if name != "model"}
    values |= {"model": promised.model} if "model" in wrong else {}
    return "\nits own settings: " + " ".join(f"model.{keys[n]}={values[n]}" for n in wrong) if wrong else ""


_SETTABLE = ("pooling", "layer", "attention", "append_eos", "eos_token", "max_length", "quantization")


def _short(path: str) -> str:
    """The last part of a model's path, without what people write differently."""
    return re.sub(r"[-_. ]", "", last_part(path).lower())


def _targets(base: Embedder, adapter: Adapter, lora: LoraSettings) -> Targets | None:
    """The layers that a training goes on with; refuses settings that are not the adapter's, which would be ignored."""
    if adapter.is_whole:
        if lora.rank:
            raise UserError(
                f"adapter={adapter.name} is a whole model: train it on with lora=none; for a LoRA on top of it, name "
                "the weights by model.path"
            )
        return None
    config: Any = adapter_config(adapter.folder)
    if config.peft_type != "LORA":
        raise UserError(f"adapter={adapter.name} is no LoRA: it can be evaluated (train.steps=0), not trained on")
    if not lora.rank:
        raise UserError(
            f"adapter={adapter.name} is a LoRA: with lora=none it could not be trained on; choose lora=paper"
        )
    targets = find_targets(base.model, lora)
    wanted = {"rank": lora.rank, "alpha": lora.alpha, "targets": sorted(targets.names)}
    has = {"rank": config.r, "alpha": float(config.lora_alpha), "targets": adapter_layers(adapter.folder)}
    different = [name for name in wanted if wanted[name] != has[name]]
    if different:
        shown = {name: f"[{','.join(value)}]" if isinstance(value, list) else value for name, value in has.items()}
        fix = " ".join(f"lora.{name}={shown[name]}" for name in different)
        raise UserError(
            f"adapter={adapter.name} has another LoRA than the one configured (lora.{', lora.'.join(different)}); to "
            f"train it on as it is: {fix}"
        )
    return targets
