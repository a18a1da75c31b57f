"""Whether a model computes sooner in bfloat16 than in float32 on a CPU, found out by trying a piece of it.

A CPU with units for bfloat16 (AMX) multiplies matrices of it several times as fast as those of float32; one without is
slower. What a model gains hangs on its width, its attention and its batches too, so two layers of its shape, of random
weights, are timed both ways. What was found is kept, as a training's name says in which precision it was made: a second
trial, beside other work, must not find another one.
"""

import copy
import functools
import logging
import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from transformers import AutoConfig, AutoModel

from cft.batching.layout import choose_batching, sample_sequences
from cft.batching.trials import circumstances, keep, recall
from cft.config.schema import ModelSettings, Precision, Quantization
from cft.model import minicpm
from cft.model.sources import ModelFiles
from cft.system.cores import use_granted_cores
from cft.system.environment import processor
from cft.system.errors import UserError
from cft.system.overrides import override
from cft.system.text import described, did_you_mean

log = logging.getLogger(__name__)

TRAINED = "trained"  # the precision in which an embedder's training computed
LEAST_GAIN = 1.5  # less is within what times vary by on a busy machine, and not worth the rounding
_LEAST_WIDTH = 256  # of hidden states: products of narrower ones are too small a part of a pass
_LAYERS, _VOCABULARY = 2, 512  # of the piece
_TEXTS, _TOKENS = 8, 32  # of its batch
_TURNS = 3


def has_bf16(device: torch.device) -> bool:
    """Whether a model can run in bfloat16 there, however slowly."""
    return device.type != "cuda" or torch.cuda.is_bf16_supported()


def wants_bf16(
    precision: Precision,
    device: torch.device,
    gain: Callable[[], float] = lambda: 0.0,
    *,
    key: str = "train.precision",
) -> bool:
    """Whether a model runs in bfloat16: if configured, or by `auto` on a GPU that has it or a CPU that gains by it.

    Args:
        precision: what is configured, by `key`. device: where the model runs.
        gain: how many times as fast the model is in bfloat16 on this CPU; called where that decides.

    Raises:
        UserError: if it is configured on a GPU without it.
    """
    if precision is Precision.auto:
        if device.type == "cpu":
            return gain() >= LEAST_GAIN
        return device.type == "cuda" and has_bf16(device)
    if precision is Precision.bf16 and not has_bf16(device):
        name = torch.cuda.get_device_name(device)
        raise UserError(f"{override(key, 'bf16')}: {name} has no bfloat16; set {override(key, 'fp32')}, or auto")
    return precision is Precision.bf16


def chosen_dtype(
    precision: str, device: torch.device, model: ModelSettings, files: ModelFiles, *, trained: str = "float32"
) -> str:
    """The type of the weights that a finished embedder computes with, as torch calls it.

    Args:
        precision: trained, auto, bf16 or fp32. trained: what its training computed with.

    Raises:
        UserError: if there is no such precision, or the device lacks it.
    """
    gain = functools.partial(bfloat16_gain, model, files)
    if precision == TRAINED:
        if trained == "bfloat16" and device.type == "cpu" and 0 < gain() < 1:
            log.warning("this CPU is slower in bfloat16, in which it was trained, than in float32 (precision=fp32)")
        return trained
    known = [TRAINED, *(each.value for each in Precision)]
    if not isinstance(precision, str) or precision not in known:
        guess = did_you_mean(precision, known) if isinstance(precision, str) else ""
        raise UserError(f"precision={described(precision)}: must be {', '.join(known[:-1])} or {known[-1]}{guess}")
    return "bfloat16" if wants_bf16(Precision(precision), device, gain, key="precision") else "float32"


@dataclass(frozen=True)
class Gain:
    """What bfloat16 brings."""

    factor: float  # float32's time, as so many times bfloat16's


def bfloat16_gain(model: ModelSettings, files: ModelFiles) -> float:
    """How many times as fast a model's forward pass is in bfloat16 on this CPU; 0 where that could not be tried.

    Models narrower than 256, random ones, and those held in 4 bits are not tried.
    """
    if files.folder is None or model.quantization is not Quantization.none:
        return 0.0
    use_granted_cores()
    try:
        config = _piece_of(files)
        if getattr(config, "hidden_size", 0) < _LEAST_WIDTH:
            return 0.0
        with torch.random.fork_rng(devices=[]):  # a training's random numbers must not hang on whether this was tried
            trunk = AutoModel.from_config(config, dtype=torch.float32).eval()
        tried = {
            **circumstances(trunk, ("batching",)),
            "settings": [model.attention, model.batches, model.max_length],
            # not the number of threads: processes of one study have different ones, and must find the same
            "machine": processor(),
            "trial": "bfloat16",
        }
        kept = recall(tried, Gain)
        if kept is None:
            kept = Gain(_measured(trunk, model))
            keep(tried, kept)
    except Exception as error:  # whatever a model's own code raises at this size; loading it will say what is wrong
        log.debug("bfloat16 is not tried: %s", error)
        return 0.0
    return kept.factor


def _piece_of(files: ModelFiles) -> Any:
    """The model's configuration with few layers and tokens."""
    assert files.folder is not None
    if minicpm.is_minicpm(files.folder):
        config: Any = minicpm.granite_config(minicpm.config_of(files.folder))
    else:
        config = copy.deepcopy(AutoConfig.from_pretrained(files.folder, trust_remote_code=False))
    if getattr(config, "layer_types", None):
        config.layer_types = config.layer_types[:_LAYERS]
    config.num_hidden_layers, config.vocab_size = _LAYERS, _VOCABULARY
    config.pad_token_id, config.bos_token_id, config.eos_token_id = 0, None, None
    return config


def _measured(trunk: Any, model: ModelSettings) -> float:
    """Medians of turns about, of the same batch."""
    passes = [_pass_of(each, model) for each in (trunk, copy.deepcopy(trunk).to(torch.bfloat16))]
    seconds: list[list[float]] = [[], []]
    for turn in range(_TURNS + 1):  # the first one is not counted
        for run, taken in zip(passes, seconds, strict=True):
            began = time.perf_counter()
            run()
            if turn:
                taken.append(time.perf_counter() - began)
    return statistics.median(seconds[0]) / statistics.median(seconds[1])


def _pass_of(trunk: Any, model: ModelSettings) -> Callable[[], Any]:
    """A forward pass of a piece, on the kind of batch that it runs on."""
    batching = choose_batching(trunk, model, ())
    tokens = [token for sequence in sample_sequences(trunk, ()) for token in sequence]
    texts = [[tokens[(text + 3 * place) % len(tokens)] for place in range(_TOKENS)] for text in range(_TEXTS)]
    layout = batching.layout(texts, "cpu")

    def run() -> Any:
        with torch.inference_mode():
            return trunk(**layout.inputs(), use_cache=False).last_hidden_state

    return run
