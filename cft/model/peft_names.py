"""Adapters of causal-LM models by the names of their bare trunk.

PEFT names layers from the model that an adapter was put on. People put it on the causal-LM model, in which the trunk is
one part (`model.layers.0...`); cft has the trunk alone (`layers.0...`). Every entry of an adapter that names layers is
translated here and nowhere else, by PEFT's own rules of matching, so that the adapter sits where PEFT would put it.
"""

import re
from collections.abc import Iterable
from typing import Any

import torch
from peft.tuners.tuners_utils import check_target_module_exists
from peft.utils.other import get_pattern_key

from cft.system.errors import UserError

_PREFIX = "base_model.model."
_HEADS = ("lm_head", "embed_out")

# Entries that name layers in a way that cannot be put on a bare trunk, and what they do.
_REFUSED = {
    "modules_to_save": "replaces whole layers",
    "trainable_token_indices": "trains single tokens",
    "target_parameters": "changes parameters that are no layers of their own",
    "layer_replication": "repeats layers",
}


def refuse_untranslatable(config: Any, path: str) -> None:
    """Refuse an adapter that changes more than layers in their place.

    Raises:
        UserError: naming the entry of its configuration.
    """
    for name, effect in _REFUSED.items():
        value = getattr(config, name, None)
        if value:
            raise UserError(
                f"{path} also {effect} ({name}: {', '.join(map(str, value))}): merge it into its base model and name "
                "that by model.path"
            )


def is_of_head(name: str) -> bool:
    """Whether a tensor belongs to a language-model head, which no embedding runs through."""
    return any(part in _HEADS for part in name.split("."))


def tensors_on(trunk: torch.nn.Module, tensors: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """An adapter's tensors by their names on the trunk, those of a head left out."""
    outer = _outer_name(trunk, tensors)
    longer = f"{_PREFIX}{outer}."
    return {
        _PREFIX + name.removeprefix(longer) if name.startswith(longer) else name: tensor
        for name, tensor in tensors.items()
        if not is_of_head(name)
    }


def translate(config: Any, trunk: torch.nn.Module, tensors: Iterable[str]) -> None:
    """Change the entries of an adapter's configuration that name layers to the names of the trunk, in place.

    Args:
        config: PEFT's.
        trunk: the bare trunk.
        tensors: names of the adapter's tensors, as they are on file.
    """
    outer = _outer_name(trunk, tensors)
    if outer is None or not _names_places(config):
        return
    longer = {f"{outer}.{name}": name for name, _ in trunk.named_modules() if name}
    places = {key: name for key, name in longer.items() if _is_matched(config, key)}
    for entry, value in vars(config).items():
        if isinstance(value, dict) and entry.endswith("_pattern"):
            keys = {key: get_pattern_key(list(value), key) for key in places}
            setattr(config, entry, {places[key]: value[found] for key, found in keys.items() if found in value})
    if getattr(config, "feedforward_modules", None):
        named = config.feedforward_modules
        config.feedforward_modules = [name for key, name in places.items() if _ends_in(named, key)]
    config.target_modules = sorted(places.values())
    for entry in ("exclude_modules", "layers_to_transform", "layers_pattern"):
        if hasattr(config, entry):
            setattr(config, entry, None)


def _outer_name(trunk: torch.nn.Module, tensors: Iterable[str]) -> str | None:
    """The name that the trunk has in the causal-LM model, if an adapter's tensors are named from there."""
    outer = getattr(trunk, "base_model_prefix", "")
    if not outer or hasattr(trunk, outer):
        return None
    return outer if any(name.startswith(f"{_PREFIX}{outer}.") for name in tensors) else None


def _names_places(config: Any) -> bool:
    """Whether a configuration says more than the last parts of layers' names, which are the same on the trunk."""
    simple = isinstance(config.target_modules, (list, set)) and not any("." in name for name in config.target_modules)
    more = ("exclude_modules", "layers_to_transform", "layers_pattern")
    patterns = [value for entry, value in vars(config).items() if entry.endswith("_pattern")]
    return not simple or any(getattr(config, entry, None) for entry in more) or any(patterns)


def _is_matched(config: Any, key: str) -> bool:
    matched = check_target_module_exists(config, key)
    # PEFT has an object of its own for what a configuration excludes; it has been true and false in versions of PEFT.
    return bool(matched) and type(matched).__name__ != "_ExcludedModule"


def _ends_in(names: Any, key: str) -> bool:
    """Whether PEFT's IA3 takes a layer as one of these; a text is a pattern."""
    return bool(re.fullmatch(names, key)) if isinstance(names, str) else any(key.endswith(name) for name in names)
