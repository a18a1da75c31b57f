"""PiSSA: a low-rank update that begins with the largest singular values of the weight that it is put on.

The paper takes them out of the base weight and trains them. Here the base weight stays as it is, and a second update
that is never trained takes them off: in all, a layer computes

    W x + s B A x - s B0 A0 x        (s: the update's scale; A0 and B0: what A and B begin with; W = s B0 A0 + the rest)

which is the paper's layer, and the base model's before training. Saved, both updates are one plain LoRA of twice the
rank, exact on the untouched base model, so that who loads it knows nothing of PiSSA. As A0 and B0 are in checkpoints,
a training that goes on needs no second decomposition, whose last bits another machine may have otherwise.

Source: Meng et al. 2024, arXiv 2404.02948; the plain LoRA of twice the rank is PEFT's conversion.
"""

import copy
import re
from collections.abc import Iterator
from typing import Any, cast

import torch
from torch import nn

_TRAINED, _INITIAL = "default", "initial"


def begin_with_principal(model: nn.Module, init: str) -> None:
    """Have a fresh LoRA begin with the largest singular values of its layers' weights, in place.

    Args:
        model: PEFT's, of the base model.
        init: "pissa", or "pissa_niter_N" for Halko's method with N passes, which is faster and nearly the same.

    Random numbers of Halko's method come from torch's generator of the CPU.
    """
    peft = cast(Any, model)
    config = copy.deepcopy(peft.peft_config[_TRAINED])
    config.lora_dropout, config.bias = 0.0, "none"
    peft.add_adapter(_INITIAL, config)
    peft.base_model.set_adapter([_TRAINED, _INITIAL])
    for _, layer in _layers(model):
        weight = layer.get_base_layer().weight.detach().to("cpu", torch.float32)
        first, second = principal_factors(weight.T if layer.fan_in_fan_out else weight, layer.r[_TRAINED], init)
        share = layer.scaling[_TRAINED] ** -0.5
        for name, sign in ((_TRAINED, 1), (_INITIAL, -1)):
            layer.lora_A[name].weight.data.copy_(first * share)
            layer.lora_B[name].weight.data.copy_(second * (share * sign))
    for weight in initial_factors(model).values():
        weight.requires_grad_(False)


def principal_factors(weight: torch.Tensor, rank: int, init: str) -> tuple[torch.Tensor, torch.Tensor]:
    """Factors (rank, in) and (out, rank) whose product is the best approximation of a weight (out, in) of that rank.

    Each has the root of the singular values. The largest number of each row of the first is above 0: singular vectors
    have no sign of their own.
    """
    passes = re.fullmatch(r"pissa_niter_(\d+)", init)
    if passes:
        left, values, right = torch.svd_lowrank(weight, rank, niter=int(passes[1]))
        right = right.T
    else:
        left, values, right = torch.linalg.svd(weight, full_matrices=False)
        left, values, right = left[:, :rank], values[:rank], right[:rank]
    sign = right.gather(1, right.abs().argmax(dim=1, keepdim=True)).sign().flatten()
    root = values.sqrt() * sign
    return root[:, None] * right, left * root


def initial_factors(model: nn.Module) -> dict[str, nn.Parameter]:
    """What PiSSA began with, by the names of parameters; none under another initialisation, or of a loaded adapter."""
    return {name: weight for name, weight in model.named_parameters() if f".{_INITIAL}." in name and ".lora_" in name}


def as_plain_lora(
    model: nn.Module, tensors: dict[str, torch.Tensor], record: dict[str, Any]
) -> tuple[dict[str, torch.Tensor], dict[str, Any]]:
    """An adapter's tensors and configuration as those of a plain LoRA on the untouched base model.

    Args:
        model: PEFT's.
        tensors: of the update that is trained, by PEFT's names.
        record: its configuration.

    Returns:
        Both, of twice the rank; as they are where the update did not begin by PiSSA.
    """
    initial = initial_factors(model)
    if not initial:
        return tensors, record
    joined = dict(tensors)
    for name, factor in initial.items():
        own = name.replace(f".{_INITIAL}.", ".")
        joined[own] = torch.cat([tensors[own], factor.to(tensors[own].device)], dim=int(".lora_B." in own))
    # A scale of alpha / rank, or of alpha / sqrt(rank), that stays what it is.
    growth = 2**0.5 if record["use_rslora"] else 2
    return joined, record | {"r": 2 * record["r"], "lora_alpha": growth * record["lora_alpha"]}


def _layers(model: nn.Module) -> Iterator[tuple[str, Any]]:
    for name, module in model.named_modules():
        if _INITIAL in getattr(module, "lora_A", {}):
            yield name, module
