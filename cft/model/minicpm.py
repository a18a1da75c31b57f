"""MiniCPM without its remote code: the same arithmetic, held by transformers' Granite classes.

MiniCPM is Llama with three constants, which Granite has too under other names: embeddings are multiplied by
`scale_emb`, each residual branch by `scale_depth / sqrt(layers)`, and logits divided by `hidden / dim_model_base`.
Source: Hu et al. 2024, arXiv 2404.06395, and the checkpoint's own configuration.
"""

import json
import math
from pathlib import Path
from typing import Any, cast

import torch
from transformers import GraniteConfig, GraniteModel

from cft.model.weights import read_tensors
from cft.system.errors import UserError

# Names with the same meaning in both configurations.
_SHARED = (
    "vocab_size",
    "hidden_size",
    "intermediate_size",
    "num_hidden_layers",
    "num_attention_heads",
    "num_key_value_heads",
    "hidden_act",
    "max_position_embeddings",
    "rms_norm_eps",
    "bos_token_id",
    "eos_token_id",
    "pad_token_id",
    "initializer_range",
)


def is_minicpm(folder: Path) -> bool:
    """Whether a model's folder holds a MiniCPM checkpoint."""
    return config_of(folder).get("model_type") == "minicpm"


def config_of(folder: Path) -> dict[str, Any]:
    """A checkpoint's configuration as it is written."""
    return json.loads((folder / "config.json").read_text(encoding="utf-8"))


def granite_config(minicpm: dict) -> GraniteConfig:
    """MiniCPM's configuration in Granite's words.

    Raises:
        UserError: if it has a feature that Granite lacks.
    """
    if minicpm.get("rope_scaling"):
        raise UserError("this MiniCPM scales its rotary positions, which is not supported")
    heads = minicpm["num_attention_heads"]
    config: Any = GraniteConfig(
        **{key: minicpm[key] for key in _SHARED if minicpm.get(key) is not None},
        embedding_multiplier=minicpm["scale_emb"],
        residual_multiplier=minicpm["scale_depth"] / math.sqrt(minicpm["num_hidden_layers"]),
        attention_multiplier=(minicpm["hidden_size"] // heads) ** -0.5,
        logits_scaling=minicpm["hidden_size"] / minicpm["dim_model_base"],
        rope_parameters={"rope_type": "default", "rope_theta": minicpm.get("rope_theta", 10_000.0)},
        tie_word_embeddings=minicpm.get("tie_word_embeddings", True),
    )
    config.stands_for = "minicpm"  # an export has to know that the name of this class is not the model's own
    return config


def load(folder: Path, dtype: torch.dtype) -> torch.nn.Module:
    """Load a MiniCPM checkpoint's trunk; every tensor but the language-model head's must find its place.

    Raises:
        UserError: if a setting or tensor is missing, or a tensor is left over.
    """
    try:
        config = granite_config(config_of(folder))
    except KeyError as error:
        raise UserError(f"{folder / 'config.json'} lacks MiniCPM's {error}") from error
    tensors = {
        name.removeprefix("model."): tensor
        for shard in sorted(folder.glob("*.safetensors"))
        for name, tensor in read_tensors(shard).items()
        if not (name.startswith("lm_head.") or name.endswith("rotary_emb.inv_freq"))
    }
    # Unlike `.to(dtype)`, this leaves the rotary frequencies in float32: in bfloat16 positions would blur.
    trunk, keys = cast(Any, GraniteModel).from_pretrained(
        None, config=config, state_dict=tensors, dtype=dtype, output_loading_info=True, ignore_mismatched_sizes=True
    )
    odd = [*keys["missing_keys"], *keys["unexpected_keys"], *(entry[0] for entry in keys["mismatched_keys"])]
    if odd:
        raise UserError(
            f"{folder} is no whole MiniCPM checkpoint: {len(odd)} tensors are missing, left over or of another shape "
            f"({sorted(odd)[0]})"
        )
    return trunk
