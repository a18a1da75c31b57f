"""Low-rank updates (LoRA): the layers that they go on in each family, and putting them there.

`lora.targets` names roles (query, key, value, output) or layers. Families give the layer of a role different names,
and some compute queries, keys and values in one fused layer: there the update is kept out of the rows of other roles,
so that "queries and values" means the same for every model.
"""

import logging
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, cast

import torch
from peft import LoraConfig, TaskType, get_peft_model
from torch import nn

from cft.config.schema import LoraBias, LoraSettings, LoraVariant
from cft.model.dropout import replace_dropout
from cft.model.fused import fuse_blocks, fuse_updates
from cft.model.layer_weights import train_layer_weights
from cft.model.pissa import begin_with_principal, initial_factors
from cft.system.errors import UserError
from cft.system.text import did_you_mean

log = logging.getLogger(__name__)

ALL_LINEAR = "all-linear"
_QKV = ("query", "key", "value")
# Names that families have for the layer of a role.
_NAMES = {
    "query": ("q_proj", "query", "q_lin", "wq", "query_proj"),
    "key": ("k_proj", "key", "k_lin", "wk", "key_proj"),
    "value": ("v_proj", "value", "v_lin", "wv", "value_proj"),
    "output": ("o_proj", "out_proj", "out_lin", "wo"),
}
_FUSED = ("c_attn", "query_key_value", "qkv_proj", "Wqkv", "qkv", "W_pack")


@dataclass(frozen=True)
class Targets:
    """The layers that an update goes on."""

    names: list[str]  # as PEFT takes them: the last parts of layers' names
    fused: tuple[str, ...] = ()  # those among them that compute queries, keys and values at once
    roles: tuple[str, ...] = _QKV  # the roles that are updated in fused layers

    @property
    def is_partial(self) -> bool:
        """Whether only some rows of fused layers are updated."""
        return bool(self.fused) and set(self.roles) != set(_QKV)


def find_targets(trunk: nn.Module, lora: LoraSettings) -> Targets:
    """The layers that `lora.targets` means in this model.

    Raises:
        UserError: if a role has no known layer, or a name is no linear layer of the model, listing those that are.
    """
    layers = sorted({last_name(name) for name, module in trunk.named_modules() if _is_linear(module)})
    if lora.targets == [ALL_LINEAR]:
        return Targets(layers)
    fused_layers = [name for name in _FUSED if name in layers]
    names: list[str] = []
    fused_roles: list[str] = []
    for target in lora.targets:
        separate = [target] if target in layers else [name for name in _NAMES.get(target, ()) if name in layers]
        if not separate:
            if target not in _QKV or not fused_layers:
                raise UserError(_no_such_layer(target, layers))
            fused_roles.append(target)
        names += separate or fused_layers
    roles = tuple(role for role in _QKV if role in fused_roles)
    return Targets(list(dict.fromkeys(names)), tuple(fused_layers) if roles else (), roles or _QKV)


def last_name(name: str) -> str:
    """A layer's own name, without those of the modules around it or of LoRA's tensors on it."""
    return name.split(".lora_")[0].rsplit(".", 1)[-1]


def _is_linear(module: nn.Module) -> bool:
    kind = type(module).__name__
    # GPT-2's Conv1D is a linear layer in all but name; a router of experts is none, though Llama 4's inherits it.
    return kind == "Conv1D" or (isinstance(module, nn.Linear) and "Router" not in kind)


def _no_such_layer(target: str, layers: list[str]) -> str:
    guess = did_you_mean(target, [name for name in (*layers, *_NAMES) if name != target], sentence=True)
    what = f"no layer known to compute its {target}" if target in _NAMES else f"no linear layer named {target!r}"
    return (
        f"lora.targets: this model has {what}; its linear layers are {', '.join(layers)}.{guess} Name them, or "
        "lora=all_linear takes them all"
    )


def fitting_targets(trunk: nn.Module, lora: LoraSettings) -> Targets:
    """The layers that an update goes on, which can have it.

    Raises:
        UserError: as `find_targets` does; if DoRA, PiSSA or a bias is to change some rows of a fused layer alone,
            PiSSA to take more singular values than a weight has, or biases to be trained where there are none.
    """
    targets = find_targets(trunk, lora)
    fused = f"{', '.join(targets.fused)} computes queries, keys and values at once, and"
    if lora.variant is LoraVariant.dora and targets.is_partial:
        raise UserError(
            f"lora.variant=dora: {fused} DoRA changes the length of all its rows; name that layer in lora.targets, or "
            "choose rslora or plain"
        )
    if lora.principal and targets.is_partial:
        raise UserError(
            f"lora.init={lora.init}: {fused} PiSSA trains the singular values of all its rows; name that layer in "
            "lora.targets, or choose gaussian or kaiming"
        )
    _require_biases(trunk, lora, targets, fused)
    if lora.principal:
        layers = ((name, module) for name, module in trunk.named_modules() if last_name(name) in targets.names)
        most, name = min((min(cast(Any, module).weight.shape), name) for name, module in layers if _is_linear(module))
        if lora.rank > most:
            raise UserError(
                f"lora.init={lora.init}: the weight of {name} has {most} singular values, fewer than "
                f"lora.rank={lora.rank}; set lora.rank={most} or less, or choose gaussian or kaiming"
            )
    return targets


def _require_biases(trunk: nn.Module, lora: LoraSettings, targets: Targets, fused: str) -> None:
    """Refuse biases that are to be trained, and of which the model has none, or some of other roles too."""
    if lora.bias is LoraBias.none:
        return
    if lora.bias is LoraBias.lora_only and targets.is_partial:
        raise UserError(
            f"lora.bias=lora_only: {fused} its bias is of all of them; name that layer in lora.targets, or choose "
            "lora.bias=all"
        )
    with_bias = {
        last_name(name.removesuffix(".bias")) for name, _ in trunk.named_parameters() if name.endswith(".bias")
    }
    if not with_bias:
        raise UserError(f"lora.bias={lora.bias.value}: no layer of this model has a bias; leave it out")
    if lora.bias is LoraBias.lora_only and not with_bias & set(targets.names):
        raise UserError(
            f"lora.bias=lora_only: no {' or '.join(targets.names)} of this model has a bias; lora.bias=all trains "
            f"those of {', '.join(sorted(with_bias))}"
        )


def add_lora(trunk: nn.Module, lora: LoraSettings, *, seed: int) -> nn.Module:
    """Freeze a trunk in place and put trainable low-rank updates on it; at rank 0 the trunk itself is trained.

    Raises:
        UserError: as `fitting_targets` does.

    Source: Hu et al. 2021, arXiv 2106.09685; Kalajdzievski 2023, arXiv 2312.03732 (rslora); Liu et al. 2024,
    arXiv 2402.09353 (dora); Meng et al. 2024, arXiv 2404.02948 (pissa).
    """
    if lora.rank == 0:
        fuse_blocks(trunk)
        return trunk.requires_grad_(True)
    targets = fitting_targets(trunk, lora)
    config = LoraConfig(
        task_type=TaskType.FEATURE_EXTRACTION,
        r=lora.rank,
        lora_alpha=lora.alpha,  # type: ignore[arg-type]  # PEFT only divides it by the rank
        lora_dropout=lora.dropout,
        init_lora_weights="gaussian" if lora.init == "gaussian" else True,
        use_rslora=lora.variant is LoraVariant.rslora,
        use_dora=lora.variant is LoraVariant.dora,
        target_modules=targets.names,
        bias=lora.bias.value,  # type: ignore[arg-type]  # an enumeration's value is any text to mypy
        fan_in_fan_out=any(type(module).__name__ == "Conv1D" for module in trunk.modules()),
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = with_adapter(trunk, config)
        if lora.principal:
            with _peft_quiet():
                begin_with_principal(model, lora.init)
    keep_roles(model, targets)
    train_layer_weights(model)
    return model


def with_adapter(trunk: nn.Module, config: Any) -> nn.Module:
    """PEFT's model of a trunk; to be trained, with LoRA's dropout replaced by ours and fewer passes over memory."""
    if not config.inference_mode:
        fuse_blocks(trunk)
    with _peft_quiet():
        model = get_peft_model(cast(Any, trunk), config)
    replace_dropout(model)
    if not config.inference_mode:
        fuse_updates(model)
    return model


@contextmanager
def _peft_quiet() -> Iterator[None]:
    with warnings.catch_warnings():  # PEFT asks transformers about checkpointing by a name that is deprecated there
        warnings.filterwarnings("ignore", category=FutureWarning, message=".*is_gradient_checkpointing.*")
        warnings.filterwarnings("ignore", message=".*fan_in_fan_out.*")
        yield


def trainable(model: nn.Module) -> dict[str, nn.Parameter]:
    """The parameters that training changes, by name."""
    return {name: weight for name, weight in model.named_parameters() if weight.requires_grad}


def kept_in_checkpoints(model: nn.Module) -> dict[str, nn.Parameter]:
    """The parameters that are not the base model's, or no longer: those that training changes, and PiSSA's first."""
    return trainable(model) | initial_factors(model)


def keep_roles(model: nn.Module, targets: Targets) -> None:
    """Keep training out of the rows of fused layers that belong to other roles.

    The update of those rows starts at 0, and with its gradient at 0 it stays there, weight decay or not.
    """
    if not targets.is_partial:
        return
    config = cast(Any, model).config
    for name, module in model.named_modules():
        if last_name(name) not in targets.fused or not hasattr(module, "lora_B"):
            continue
        weight = module.lora_B["default"].weight
        rows = fused_rows(config, weight.shape[0])
        if rows is None:
            family = config.model_type
            log.info("%s fuses queries, keys and values in an order unknown to cft: all three are updated", family)
            return
        mask = torch.zeros_like(weight)
        for role in targets.roles:
            mask[rows[role]] = 1
        weight.register_hook(mask.mul)


def fused_rows(config: Any, width: int) -> dict[str, torch.Tensor] | None:
    """The numbers of the rows, of a fused layer of `width` rows, that compute each role.

    None for a family whose order of rows is not known here.
    """
    heads, keys = config.num_attention_heads, _key_heads(config)
    size = getattr(config, "head_dim", None) or config.hidden_size // heads
    if keys is None or width != (heads + 2 * keys) * size:
        return None
    rows = torch.arange(width)
    if config.model_type in ("gpt2", "phi3", "mpt"):  # all queries, then all keys, then all values
        parts = rows.split([heads * size, keys * size, keys * size])
    else:  # for each key head its queries, itself and its value
        parts = rows.view(keys, heads // keys + 2, size).split([heads // keys, 1, 1], dim=1)
    return {role: part.flatten() for role, part in zip(_QKV, parts, strict=True)}


def _key_heads(config: Any) -> int | None:
    """Number of key heads in a fused layer; None for an unknown family."""
    family, heads = config.model_type, config.num_attention_heads
    if family in ("gpt2", "mpt", "gpt_neox", "bloom", "persimmon"):
        return heads
    if family == "phi3":
        return config.num_key_value_heads
    if family not in ("falcon", "gpt_bigcode"):
        return None
    if getattr(config, "new_decoder_architecture", False):
        return config.num_kv_heads
    return 1 if config.multi_query else heads
