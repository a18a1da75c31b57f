"""Trained weights on disk: an adapter in PEFT's layout, or the whole trunk, written and put back."""

import hashlib
import logging
from pathlib import Path
from typing import Any

import torch
from peft import PeftConfig, PeftModel
from peft.utils import get_peft_model_state_dict, set_peft_model_state_dict
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import nn

from cft.model.contract import Contract
from cft.model.fused import fuse_blocks
from cft.model.layer_weights import TENSOR, layer_weights_of, train_layer_weights
from cft.model.lora import last_name, trainable, with_adapter
from cft.model.peft_names import is_of_head, refuse_untranslatable, tensors_on, translate
from cft.model.pissa import as_plain_lora
from cft.model.sources import ADAPTER_CONFIG, ADAPTER_WEIGHTS, require_whole
from cft.system.digest import canonical, sha256_of_file
from cft.system.errors import UserError, first_line
from cft.system.files import atomic_write, read_json, write_json

log = logging.getLogger(__name__)

ADAPTER_FILES = [ADAPTER_CONFIG, ADAPTER_WEIGHTS]
FULL_WEIGHTS = "model.safetensors"

_COPY_OF_BASE = "base_layer.weight"

# Entries of an adapter's configuration on which no vector depends.
_NO_EFFECT = (
    "auto_mapping",
    "base_model_name_or_path",
    "inference_mode",
    "lora_dropout",
    "peft_version",
    "revision",
    "task_type",
)

# Kinds of adapters that sit on layers, so that every kind of batch runs through them.
_ON_LAYERS = ("LORA", "ADALORA", "IA3", "LOHA", "LOKR", "VERA", "OFT", "BOFT", "HRA", "LN_TUNING")


def save_weights(model: nn.Module, folder: Path, base_name: str) -> str:
    """Write what was trained: an adapter in PEFT's layout, or the whole trunk. Returns their digest.

    Written by hand rather than by `save_pretrained`, so that the bytes follow from the weights alone and
    the base model is called by its own name, not by a folder of this machine. The digest is of `weights_digest`.

    Of an embedder of the other kind that the folder held, nothing is left. Its files go after these are written: in
    between, the folder holds both kinds and loads as neither, and before and afterwards its contract is of one of them.
    """
    folder.mkdir(parents=True, exist_ok=True)
    if not isinstance(model, PeftModel):
        _write_tensors(folder / FULL_WEIGHTS, model.state_dict())
        _remove(folder, ADAPTER_FILES)
        return weights_digest(folder)
    tensors, record = as_plain_lora(model, _adapter_tensors(model), model.peft_config["default"].to_dict())
    _write_tensors(folder / ADAPTER_WEIGHTS, tensors)
    record |= {"base_model_name_or_path": base_name, "inference_mode": True}
    sets = {name: sorted(value) for name, value in record.items() if isinstance(value, set)}
    write_json(folder / ADAPTER_CONFIG, record | sets)
    _remove(folder, [FULL_WEIGHTS])
    return weights_digest(folder)


def _remove(folder: Path, names: list[str]) -> None:
    for name in names:
        (folder / name).unlink(missing_ok=True)


def _holds_whole(folder: Path) -> bool:
    """Whether a folder's trained weights are a whole trunk.

    Raises:
        UserError: if it holds an adapter too, so that which of them is meant is not known.
    """
    if not (folder / FULL_WEIGHTS).exists():
        return False
    beside = [name for name in ADAPTER_FILES if (folder / name).exists()]
    if beside and (folder / "config.json").exists():
        return False  # the base model's own folder, into which somebody put its adapter
    if beside:
        raise UserError(
            f"{folder} holds an adapter ({beside[0]}) and a whole model ({FULL_WEIGHTS}), and which is meant is not "
            "known: move the files of one of them into a folder of their own, or save the embedder again"
        )
    return True


def _adapter_tensors(model: nn.Module) -> dict[str, torch.Tensor]:
    """An adapter's own tensors, and the layer weights beside it, by PEFT's names."""
    weights = layer_weights_of(model)
    beside = {TENSOR: weights.logits} if weights is not None else {}
    return get_peft_model_state_dict(model, save_embedding_layers=False) | beside


def weights_in_memory(model: nn.Module) -> str:
    """SHA-256 of the trained weights as they are now."""
    state = hashlib.sha256()
    for _, weight in sorted(trainable(model).items()):
        state.update(weight.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().data)
    return state.hexdigest()


def weights_digest(folder: Path) -> str:
    """SHA-256 of a folder's trained weights and, of an adapter, of all that says how they are put on a model.

    Raises:
        UserError: if the folder holds none, or both kinds.
    """
    tensors = tensors_digest(folder)
    if _holds_whole(folder):
        return tensors
    settings = read_json(folder / ADAPTER_CONFIG)
    kept = {name: value for name, value in settings.items() if name not in _NO_EFFECT}
    return hashlib.sha256(canonical([tensors, kept]).encode()).hexdigest()


def require_promised_weights(folder: Path, contract: Contract) -> str:
    """Refuse weights other than those that a contract was written for; returns their digest.

    Raises:
        UserError: naming the folder.
    """
    identity = weights_digest(folder)
    if contract.adapter == identity:
        return identity
    if contract.adapter == tensors_digest(folder):
        log.info("%s: its contract is of an older cft and holds the tensors alone, not %s", folder, ADAPTER_CONFIG)
        return identity
    raise UserError(
        f"the weights in {folder}, or the {ADAPTER_CONFIG} beside them, are not those that their contract was written "
        "for; put the files back as they were"
    )


def tensors_digest(folder: Path) -> str:
    """SHA-256 of a folder's trained tensors alone, which is all that older contracts name.

    Raises:
        UserError: if the folder holds none, or both kinds.
    """
    path = folder / (FULL_WEIGHTS if _holds_whole(folder) else ADAPTER_WEIGHTS)
    if not path.exists():
        raise UserError(f"{folder} holds neither {ADAPTER_WEIGHTS} nor {FULL_WEIGHTS}")
    require_whole(path)
    return sha256_of_file(path)


def load_weights(trunk: nn.Module, folder: Path, *, dropout: float | None = None) -> nn.Module:
    """Put trained weights back on their base model, in place: ours, or any adapter that PEFT wrote.

    `dropout` is that of an adapter to be trained further; None for one that is only used.

    Raises:
        UserError: if a tensor has no place in the model, or another shape there.
    """
    config = adapter_config(folder)
    if config is None:
        try:
            trunk.load_state_dict(read_tensors(folder / FULL_WEIGHTS))
        except RuntimeError as error:
            raise UserError(f"the weights in {folder} are not those of this base model: {first_line(error)}") from error
        if dropout is not None:
            fuse_blocks(trunk)
        return trunk.requires_grad_(dropout is not None)
    content = read_tensors(folder / ADAPTER_WEIGHTS)
    tensors = tensors_on(trunk, content)
    translate(config, trunk, content)
    _set_up(config, dropout)
    misfit = f"the adapter in {folder} does not fit this base model"
    try:
        model = with_adapter(trunk, config)
        outcome: Any = set_peft_model_state_dict(model, tensors)
    except (ValueError, RuntimeError, KeyError) as error:
        raise UserError(f"{misfit}: {first_line(error)}") from error
    # PEFT saves a copy of the base's token embeddings beside an update of them.
    own = {name for name in tensors if not name.endswith(_COPY_OF_BASE)}
    if TENSOR not in own and layer_weights_of(model) is not None:
        log.info("%s holds no weights of the layers, which begin alike", folder)
        own.add(TENSOR)
    odd = sorted(set(_adapter_tensors(model)) ^ own) + list(outcome.unexpected_keys)
    if odd:
        raise UserError(f"{misfit} (first differences: {', '.join(odd[:3])})")
    if len(tensors) < len(content):
        ignored = len(content) - len(tensors)
        log.info(
            "%s: %d of its tensors belong to a language-model head, which no embedding runs through", folder, ignored
        )
    if dropout is not None:
        train_layer_weights(model)
    return model.eval()


def _set_up(config: Any, dropout: float | None) -> None:
    """Change an adapter's configuration for the way that it is used here."""
    config.inference_mode = dropout is None
    if dropout is not None:
        config.lora_dropout = dropout
    config.base_model_name_or_path = None  # which base model this is has been checked
    config.task_type = "FEATURE_EXTRACTION"  # whatever it was trained as: here it embeds


def adapter_config(folder: Path) -> Any:
    """The configuration that PEFT wrote beside an adapter; None where the folder holds a whole trunk.

    Raises:
        UserError: if it is missing, unreadable, or of a kind that does not sit on layers; if both are there.
    """
    if _holds_whole(folder):
        return None
    path = folder / ADAPTER_CONFIG
    try:
        config = PeftConfig.from_pretrained(str(folder))
    except (ValueError, OSError, KeyError, TypeError) as error:
        raise UserError(f"cannot read {path}: {first_line(error)}") from error
    kind = str(getattr(config.peft_type, "value", config.peft_type))
    if kind not in _ON_LAYERS:
        raise UserError(
            f"{path} is an adapter of the kind {kind}, which adds tokens instead of weights; cft takes "
            f"{', '.join(_ON_LAYERS)}"
        )
    refuse_untranslatable(config, str(path))
    return config


def adapter_layers(folder: Path) -> list[str]:
    """The layers that a LoRA sits on, by the last parts of their names."""
    names = read_tensors(folder / ADAPTER_WEIGHTS)
    return sorted({last_name(name) for name in names if ".lora_" in name and not is_of_head(name)})


def _write_tensors(path: Path, tensors: dict[str, torch.Tensor]) -> None:
    content = {name: tensor.detach().cpu().contiguous() for name, tensor in sorted(tensors.items())}
    with atomic_write(path) as part:
        save_file(content, part, metadata={"format": "pt"})


def read_tensors(path: Path) -> dict[str, torch.Tensor]:
    """The tensors of a safetensors file.

    Raises:
        UserError: if it cannot be read.
    """
    try:
        return load_file(path)
    except (OSError, SafetensorError) as error:
        raise UserError(f"cannot read {path}: {first_line(error)}") from error
