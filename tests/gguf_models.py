"""Tiny base models as GGUF files: random weights, and a tokenizer of bytes and a few merges."""

from pathlib import Path
from typing import Any

import numpy as np
import torch
from gguf import MODEL_ARCH_NAMES, GGUFWriter, TokenType, get_tensor_name_map
from transformers import AutoConfig, AutoModel

from cft.model.tokenizer import byte_tokenizer

WIDTH, LAYERS, HEADS, KEYS, HIDDEN = 64, 2, 4, 2, 96

# What a name of an architecture is in transformers.
IN_TRANSFORMERS = {name: name for name in ("llama", "qwen2", "qwen3", "phi3", "gemma2")} | {"gemma3": "gemma3_text"}

# Those whose tokenizer is like Llama's own; all others have one like GPT-2's.
_OF_WORDS = ("gemma2", "gemma3", "phi3")


def write_gguf(path: Path, architecture: str, *, without: str = "") -> Path:
    """A file of that architecture, as a converter of llama.cpp's would write it, perhaps without one of its tensors."""
    tokens = _of_words(path, architecture) if architecture in _OF_WORDS else _of_bytes(path, architecture)
    writer, count = tokens
    settings: dict[str, Any] = {
        "context_length": 256,
        "embedding_length": WIDTH,
        "block_count": LAYERS,
        "feed_forward_length": HIDDEN,
        "attention.head_count": HEADS,
        "attention.head_count_kv": KEYS,
        "attention.layer_norm_rms_epsilon": 1e-6,
        "rope.freq_base": 10000.0,
        "rope.dimension_count": _head(architecture),
        "attention.key_length": _head(architecture),
        "attention.value_length": _head(architecture),
        **({"attention.sliding_window": 64} if architecture in _OF_WORDS else {}),
    }
    for name, value in settings.items():
        (writer.add_float32 if isinstance(value, float) else writer.add_uint32)(f"{architecture}.{name}", value)
    chance = np.random.default_rng(0)
    for name, shape in _shapes(architecture, count):
        if name == without:
            continue
        drawn = chance.standard_normal(shape).astype(np.float32)
        writer.add_tensor(name, 1 + 0.1 * drawn if "norm" in name else drawn / 8)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def _head(architecture: str) -> int:
    """Numbers of a head; transformers reads no other than 128 of a file of Qwen3's."""
    return 128 if architecture == "qwen3" else WIDTH // HEADS


def _shapes(architecture: str, count: int) -> list[tuple[str, tuple[int, ...]]]:
    config = AutoConfig.for_model(
        IN_TRANSFORMERS[architecture],
        vocab_size=count,
        hidden_size=WIDTH,
        intermediate_size=HIDDEN,
        num_hidden_layers=LAYERS,
        num_attention_heads=HEADS,
        num_key_value_heads=KEYS,
        head_dim=_head(architecture),
        pad_token_id=0,
    )
    with torch.device("meta"):
        trunk = AutoModel.from_config(config)
    number = next(number for number, name in MODEL_ARCH_NAMES.items() if name == architecture)
    names = get_tensor_name_map(number, LAYERS)
    return [
        (names.get_name(f"model.{name}", try_suffixes=(".weight", ".bias")), tuple(weight.shape))
        for name, weight in trunk.state_dict().items()
    ]


def _of_bytes(path: Path, architecture: str) -> tuple[GGUFWriter, int]:
    """A tokenizer like GPT-2's."""
    letters = sorted(set(byte_tokenizer().get_vocab()) - {"<pad>", "<eos>"})
    merges = ["t h", "th e", "Ġ a"]
    tokens = ["<|end|>", *letters, "th", "the", "Ġa"]
    writer = GGUFWriter(path, architecture)
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("default")
    writer.add_token_list(tokens)
    writer.add_token_types([TokenType.CONTROL, *[TokenType.NORMAL] * (len(tokens) - 1)])
    writer.add_token_merges(merges)
    writer.add_eos_token_id(0)
    writer.add_bos_token_id(0)
    writer.add_add_bos_token(False)
    return writer, len(tokens)


def _of_words(path: Path, architecture: str) -> tuple[GGUFWriter, int]:
    """A tokenizer like Llama's: pieces with scores, and bytes for what is none of them."""
    special = ["<unk>", "<s>", "</s>"]
    single = [f"<0x{number:02X}>" for number in range(256)]
    pieces = ["▁", *"abcdefghijklmnopqrstuvwxyz.", "th", "the", "▁a"]
    writer = GGUFWriter(path, architecture)
    writer.add_tokenizer_model("llama")
    writer.add_tokenizer_pre("default")
    writer.add_token_list([*special, *single, *pieces])
    writer.add_token_scores([0.0] * (len(special) + len(single)) + [-float(number) for number in range(len(pieces))])
    kinds = [TokenType.UNKNOWN, TokenType.CONTROL, TokenType.CONTROL]
    writer.add_token_types([*kinds, *[TokenType.BYTE] * 256, *[TokenType.NORMAL] * len(pieces)])
    writer.add_bos_token_id(1)
    writer.add_eos_token_id(2)
    writer.add_unk_token_id(0)
    writer.add_pad_token_id(0)
    writer.add_add_bos_token(True)
    return writer, len(special) + len(single) + len(pieces)
