"""Trained weights on disk: an adapter in PEFT's layout, or the whole trunk, written and put back."""

import hashlib
from pathlib import Path
from typing import Any

import torch
from peft import PeftConfig, PeftModel, PeftType
from peft.utils import get_peft_model_state_dict, set_peft_model_state_dict
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file, save_file
from torch import nn

from cft.model.lora import trainable, with_adapter
from cft.system.digest import sha256_of_file
from cft.system.errors import UserError, first_line
from cft.system.files import atomic_write, write_json

ADAPTER_FOLDER = "adapter"
ADAPTER_WEIGHTS = "adapter_model.safetensors"
ADAPTER_CONFIG = "adapter_config.json"
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
    record["base_model_name_or_path"] = base_name
    record["inference_mode"] = True
    for name, value in record.items():
        if isinstance(value, set):
            record[name] = sorted(value)
    write_json(folder / ADAPTER_CONFIG, record)
    return weights_digest(folder)


def weights_in_memory(model: nn.Module) -> str:
    """SHA-256 of the trained weights as they are now."""
    state = hashlib.sha256()
    for _, weight in sorted(trainable(model).items()):
        state.update(weight.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().data)
    return state.hexdigest()


def load_weights(trunk: nn.Module, folder: Path, *, dropout: float | None = None) -> nn.Module:
    """Put trained weights back on their base model: ours, or any adapter that PEFT wrote.

    Args:
        trunk: the base model, changed in place.
        folder: with an adapter, or with a whole trunk.
        dropout: of an adapter that is to be trained on; None for one that is only used.

    Raises:
        UserError: if a tensor has no place in the model, or another shape there.
    """
    if (folder / FULL_WEIGHTS).exists():
        try:
            trunk.load_state_dict(_read_tensors(folder / FULL_WEIGHTS))
        except RuntimeError as error:
            raise UserError(f"the weights in {folder} are not those of this base model: {first_line(error)}") from error
        return trunk.requires_grad_(dropout is not None)
    config = adapter_config(folder)
    tensors = {_name_in(trunk, name): tensor for name, tensor in _read_tensors(folder / ADAPTER_WEIGHTS).items()}
    tensors = {name: tensor for name, tensor in tensors.items() if not _is_of_head(name)}
    config.inference_mode = dropout is None
    if dropout is not None:
        config.lora_dropout = dropout
    config.base_model_name_or_path = None  # which base model this is has been checked
    config.task_type = "FEATURE_EXTRACTION"  # whatever it was trained as: here it embeds
    by_pattern = isinstance(getattr(config, "target_modules", None), str)
    if by_pattern or getattr(config, "layers_to_transform", None) is not None:
        # Patterns over names are written for the names of the causal-LM model, which are longer than the trunk's.
        config.target_modules, config.layers_to_transform = _modules_of(tensors), None
    try:
        model = with_adapter(trunk, config)
        outcome: Any = set_peft_model_state_dict(model, tensors)
    except (ValueError, RuntimeError, KeyError) as error:
        raise UserError(f"the adapter in {folder} does not fit this base model: {first_line(error)}") from error
    ours = {name for name in get_peft_model_state_dict(model)}
    odd = sorted(ours ^ set(tensors)) + list(outcome.unexpected_keys)
    if odd:
        raise UserError(
            f"the adapter in {folder} does not fit this base model (first differences: {', '.join(odd[:3])})"
        )
    return model.eval()


def adapter_config(folder: Path) -> Any:
    """The configuration that PEFT wrote beside an adapter.

    Raises:
        UserError: if it is missing, unreadable, or of a kind that does not sit on layers.
    """
    try:
        config = PeftConfig.from_pretrained(str(folder))
    except (ValueError, OSError, KeyError, TypeError) as error:
        raise UserError(f"cannot read {folder / ADAPTER_CONFIG}: {first_line(error)}") from error
    kind = str(getattr(config.peft_type, "value", config.peft_type))
    if kind not in _ON_LAYERS:
        raise UserError(
            f"{folder / ADAPTER_CONFIG} is an adapter of the kind {kind}, which adds tokens instead of weights; cft "
            f"takes {', '.join(_ON_LAYERS)}"
        )
    if config.peft_type == PeftType.LORA and getattr(config, "modules_to_save", None):
        whole = ", ".join(config.modules_to_save)
        raise UserError(
            f"{folder / ADAPTER_CONFIG} also replaces whole layers ({whole}): merge it into its base model and name "
            "that by model.path"
        )
    return config


def head_tensors(folder: Path) -> list[str]:
    """Tensors of an adapter that belong to a language-model head, which no embedding runs through."""
    return sorted(name for name in _names(folder / ADAPTER_WEIGHTS) if _is_of_head(name))


def adapter_layers(folder: Path) -> list[str]:
    """The layers that a LoRA sits on, by the last parts of their names."""
    names = (name for name in _names(folder / ADAPTER_WEIGHTS) if ".lora_" in name and not _is_of_head(name))
    return sorted({name.split(".lora_")[0].rsplit(".", 1)[-1] for name in names})


def _is_of_head(name: str) -> bool:
    return ".lm_head." in name or ".embed_out." in name


def _name_in(trunk: nn.Module, name: str) -> str:
    """An adapter's tensor by its name on a bare trunk: adapters of causal-LM models have one part more."""
    outer = getattr(trunk, "base_model_prefix", "")
    longer = f"{_PREFIX}{outer}."
    if outer and name.startswith(longer) and not hasattr(trunk, outer):
        return _PREFIX + name.removeprefix(longer)
    return name


def _modules_of(tensors: dict[str, torch.Tensor]) -> list[str]:
    """The layers that some adapter tensors sit on, by their full names."""
    return sorted({name.removeprefix(_PREFIX).split(".lora_")[0] for name in tensors})


def _write_tensors(path: Path, tensors: dict[str, torch.Tensor]) -> None:
    with atomic_write(path) as part:
        save_file(
            {name: tensor.detach().cpu().contiguous() for name, tensor in sorted(tensors.items())},
            part,
            metadata={"format": "pt"},
        )


def _names(path: Path) -> list[str]:
    """Names of a file's tensors, which are not read."""
    try:
        with safe_open(path, framework="pt") as stream:
            return list(stream.keys())
    except (OSError, SafetensorError) as error:
        raise UserError(f"cannot read {path}: {first_line(error)}") from error


def _read_tensors(path: Path) -> dict[str, torch.Tensor]:
    try:
        return load_file(path)
    except (OSError, SafetensorError) as error:
        raise UserError(f"cannot read {path}: {first_line(error)}") from error


def weights_digest(folder: Path) -> str:
    """SHA-256 of a folder's trained weights.

    Raises:
        UserError: if the folder holds none.
    """
    for name in (ADAPTER_WEIGHTS, FULL_WEIGHTS):
        if (folder / name).exists():
            return sha256_of_file(folder / name)
    raise UserError(f"{folder} holds neither {ADAPTER_WEIGHTS} nor {FULL_WEIGHTS}")
