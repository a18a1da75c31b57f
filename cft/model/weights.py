"""Trained weights on disk: an adapter in PEFT's layout, or the whole trunk, written and put back."""

import hashlib
import logging
from pathlib import Path
from typing import Any

import torch
from peft import PeftConfig, PeftModel, PeftType
from peft.utils import get_peft_model_state_dict, set_peft_model_state_dict
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import nn

from cft.model.lora import last_name, trainable, with_adapter
from cft.system.digest import sha256_of_file
from cft.system.errors import UserError, first_line
from cft.system.files import atomic_write, write_json

log = logging.getLogger(__name__)

ADAPTER_FOLDER = "adapter"
ADAPTER_WEIGHTS = "adapter_model.safetensors"
ADAPTER_CONFIG = "adapter_config.json"
ADAPTER_FILES = [ADAPTER_CONFIG, ADAPTER_WEIGHTS]
FULL_WEIGHTS = "model.safetensors"

# Kinds of adapters that sit on layers, so that every kind of batch runs through them.
_ON_LAYERS = ("LORA", "ADALORA", "IA3", "LOHA", "LOKR", "VERA", "OFT", "BOFT", "HRA", "LN_TUNING")
_PREFIX = "base_model.model."


def save_weights(model: nn.Module, folder: Path, base_name: str) -> str:
    """Write what was trained: an adapter in PEFT's layout, or the whole trunk. Returns the weights' SHA-256.

    Written by hand rather than by `save_pretrained`, so that the bytes follow from the weights alone and
    the base model is called by its own name, not by a folder of this machine.
    """
    folder.mkdir(parents=True, exist_ok=True)
    if not isinstance(model, PeftModel):
        _write_tensors(folder / FULL_WEIGHTS, model.state_dict())
        return weights_digest(folder)
    _write_tensors(folder / ADAPTER_WEIGHTS, get_peft_model_state_dict(model))
    record = model.peft_config["default"].to_dict()
    record |= {"base_model_name_or_path": base_name, "inference_mode": True}
    sets = {name: sorted(value) for name, value in record.items() if isinstance(value, set)}
    write_json(folder / ADAPTER_CONFIG, record | sets)
    return weights_digest(folder)


def weights_in_memory(model: nn.Module) -> str:
    """SHA-256 of the trained weights as they are now."""
    state = hashlib.sha256()
    for _, weight in sorted(trainable(model).items()):
        state.update(weight.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().data)
    return state.hexdigest()


def weights_digest(folder: Path) -> str:
    """SHA-256 of a folder's trained weights.

    Raises:
        UserError: if the folder holds none.
    """
    for name in (ADAPTER_WEIGHTS, FULL_WEIGHTS):
        if (folder / name).exists():
            return sha256_of_file(folder / name)
    raise UserError(f"{folder} holds neither {ADAPTER_WEIGHTS} nor {FULL_WEIGHTS}")


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
        return trunk.requires_grad_(dropout is not None)
    content = read_tensors(folder / ADAPTER_WEIGHTS)
    tensors = {_name_on(trunk, name): tensor for name, tensor in content.items() if not _is_of_head(name)}
    _set_up(config, tensors, dropout)
    misfit = f"the adapter in {folder} does not fit this base model"
    try:
        model = with_adapter(trunk, config)
        outcome: Any = set_peft_model_state_dict(model, tensors)
    except (ValueError, RuntimeError, KeyError) as error:
        raise UserError(f"{misfit}: {first_line(error)}") from error
    odd = sorted(set(get_peft_model_state_dict(model)) ^ set(tensors)) + list(outcome.unexpected_keys)
    if odd:
        raise UserError(f"{misfit} (first differences: {', '.join(odd[:3])})")
    if len(tensors) < len(content):
        ignored = len(content) - len(tensors)
        log.info(
            "%s: %d of its tensors belong to a language-model head, which no embedding runs through", folder, ignored
        )
    return model.eval()


def _set_up(config: Any, tensors: dict[str, torch.Tensor], dropout: float | None) -> None:
    """Change an adapter's configuration for the bare trunk that it is put on."""
    config.inference_mode = dropout is None
    if dropout is not None:
        config.lora_dropout = dropout
    config.base_model_name_or_path = None  # which base model this is has been checked
    config.task_type = "FEATURE_EXTRACTION"  # whatever it was trained as: here it embeds
    by_pattern = isinstance(getattr(config, "target_modules", None), str)
    if by_pattern or getattr(config, "layers_to_transform", None) is not None:
        # Patterns over names are written for the names of the causal-LM model, which are longer than the trunk's.
        config.target_modules = sorted({name.removeprefix(_PREFIX).split(".lora_")[0] for name in tensors})
        config.layers_to_transform = None


def adapter_config(folder: Path) -> Any:
    """The configuration that PEFT wrote beside an adapter; None where the folder holds a whole trunk.

    Raises:
        UserError: if it is missing, unreadable, or of a kind that does not sit on layers.
    """
    if (folder / FULL_WEIGHTS).exists():
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
    if config.peft_type == PeftType.LORA and getattr(config, "modules_to_save", None):
        raise UserError(
            f"{path} also replaces whole layers ({', '.join(config.modules_to_save)}): merge it into its base model "
            "and name that by model.path"
        )
    return config


def adapter_layers(folder: Path) -> list[str]:
    """The layers that a LoRA sits on, by the last parts of their names."""
    names = read_tensors(folder / ADAPTER_WEIGHTS)
    return sorted({last_name(name) for name in names if ".lora_" in name and not _is_of_head(name)})


def _is_of_head(name: str) -> bool:
    return ".lm_head." in name or ".embed_out." in name


def _name_on(trunk: nn.Module, name: str) -> str:
    """An adapter's tensor by its name on a bare trunk: adapters of causal-LM models have one part more."""
    outer = getattr(trunk, "base_model_prefix", "")
    longer = f"{_PREFIX}{outer}."
    if outer and name.startswith(longer) and not hasattr(trunk, outer):
        return _PREFIX + name.removeprefix(longer)
    return name


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
