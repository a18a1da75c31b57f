"""A small MiniCPM checkpoint of random weights."""

import json

import torch
from safetensors.torch import save_file

from cft.model.tokenizer import byte_tokenizer

SHAPES = [
    {"hidden_size": 48, "num_attention_heads": 4, "num_key_value_heads": 4, "num_hidden_layers": 3},
    {"hidden_size": 64, "num_attention_heads": 8, "num_key_value_heads": 2, "num_hidden_layers": 2},
]


def settings(shape: dict) -> dict:
    fixed = {
        "model_type": "minicpm",
        "architectures": ["MiniCPMForCausalLM"],
        "auto_map": {"AutoModel": "modeling_minicpm.MiniCPMModel", "AutoConfig": "configuration_minicpm.MiniCPMConfig"},
        "vocab_size": len(byte_tokenizer()),
        "intermediate_size": 80,
        "hidden_act": "silu",
        "max_position_embeddings": 256,
        "rms_norm_eps": 1e-5,
        "scale_emb": 12,
        "scale_depth": 1.4,
        "dim_model_base": 16,
        "eos_token_id": 1,
    }
    return fixed | shape


def random_tensors(config: dict) -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    width, inner = config["hidden_size"], config["intermediate_size"]
    grouped = width // config["num_attention_heads"] * config["num_key_value_heads"]
    shapes = {"model.embed_tokens.weight": (config["vocab_size"], width), "model.norm.weight": (width,)}
    for layer in range(config["num_hidden_layers"]):
        name = f"model.layers.{layer}."
        shapes |= {f"{name}self_attn.{p}_proj.weight": (width, width) for p in "qo"}
        shapes |= {f"{name}self_attn.{p}_proj.weight": (grouped, width) for p in "kv"}
        shapes |= {f"{name}mlp.{p}_proj.weight": (inner, width) for p in ("gate", "up")}
        shapes |= {f"{name}mlp.down_proj.weight": (width, inner)}
        shapes |= {f"{name}{p}_layernorm.weight": (width,) for p in ("input", "post_attention")}
    return {n: torch.randn(s, generator=generator) * (0.2 if len(s) > 1 else 1.0) for n, s in shapes.items()}


def write_checkpoint(folder, config: dict, tensors: dict[str, torch.Tensor], shards: int) -> None:
    (folder / "config.json").write_text(json.dumps(config))
    names = sorted(tensors)
    for shard in range(shards):
        part = {name: tensors[name].contiguous() for name in names[shard::shards]}
        save_file(part, folder / f"model-{shard + 1:05d}-of-{shards:05d}.safetensors", metadata={"format": "pt"})
    byte_tokenizer().save_pretrained(folder)
