"""The model under the embedding: a trunk without a language-model head, and its tokenizer."""

import logging
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import torch
from safetensors import SafetensorError
from transformers import AutoConfig, AutoModel, AutoTokenizer
from transformers.utils import logging as transformers_logging

from cft.batching.layout import Batching, choose_batching, sample_sequences
from cft.config.schema import ModelSettings, Quantization
from cft.model import minicpm
from cft.model.sources import ModelFiles
from cft.model.tokenizer import byte_tokenizer, cached_tokenizer, special_tokens, tokenizer_digest
from cft.model.truncate import keep_layers
from cft.system.errors import UserError, first_line

log = logging.getLogger(__name__)

# Small enough for a test to take milliseconds, with grouped key-value heads so that no test misses them.
_TINY: dict[str, Any] = {
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 256,
}
# Families whose own defaults do not go with those sizes.
_TINY_OF: dict[str, dict[str, Any]] = {
    "gptj": {"rotary_dim": 4},
    "codegen": {"rotary_dim": 4},
    "gpt_neo": {"attention_types": [[["global", "local"], 1]]},
}

_TOKENIZER_FILES = ("tokenizer*", "vocab*", "spiece*", "sentencepiece*", "*.tiktoken")

# Parts that a checkpoint may lack, as no embedding runs through them.
_UNUSED_PARTS = ("pooler.",)


@dataclass(frozen=True)
class Backbone:
    """A trunk (token ids to hidden states) and the tokenizer that goes with it.

    tokenizer_digest names the tokenizer's content. prefix_ids and suffix_ids are the special tokens around a text.
    batching: how its batches are laid out. unused: tensors of the checkpoint that are no part of the trunk.
    """

    trunk: torch.nn.Module
    tokenizer: Any
    tokenizer_digest: str
    prefix_ids: tuple[int, ...]
    suffix_ids: tuple[int, ...]
    batching: Batching
    unused: tuple[str, ...] = ()

    @property
    def vocabulary(self) -> int:
        """Number of token embeddings."""
        return cast(Any, self.trunk).get_input_embeddings().num_embeddings

    def check_attention(self) -> None:
        """Stop if somebody exchanged the attention that batches were tried with: a tree would be silently wrong.

        Raises:
            RuntimeError: naming both.
        """
        used, tried = cast(Any, self.trunk).config._attn_implementation, self.batching.attention
        if used != tried:
            raise RuntimeError(f"the model's attention is {used}, but its batches were found exact with {tried}")


def load_backbone(
    model: ModelSettings,
    files: ModelFiles,
    *,
    dtype: torch.dtype,
    device: torch.device | str = "cpu",
    seed: int = 0,
) -> Backbone:
    """Load trunk and tokenizer, cut to the chosen layer, and find the kind of batch that is exact for the model.

    Args:
        model: the settings of the base model.
        files: what `sources.fetch` brought for it.
        dtype: of the weights in memory.
        device: where the trunk goes.
        seed: draws the weights of a random model.

    Raises:
        UserError: if transformers cannot read the model, weights are missing, it cannot be run in batches, or its
            tokenizer has no EOS though one is to be appended.
    """
    # Loading takes a second; bars and notes about the missing language-model head would only alarm.
    transformers_logging.disable_progress_bar()
    transformers_logging.set_verbosity_error()
    unused: tuple[str, ...] = ()
    if files.folder is None:
        trunk, tokenizer = _random_trunk(model.path.removeprefix("random:"), seed, dtype), byte_tokenizer()
    else:
        tokenizer = _tokenizer(model, files.folder)
        trunk, unused = _pretrained(model, files.folder, dtype)
    trunk = trunk.to(device).eval()
    trunk.config.use_cache = False
    prefix, suffix = special_tokens(model, tokenizer, _number(getattr(trunk.config, "eos_token_id", None)))
    _check_vocabulary(model, trunk, (*prefix, *suffix))
    _check_positions(model, trunk)
    if model.layer is not None:
        trunk = keep_layers(trunk, model.layer, token_ids=list(sample_sequences(trunk, prefix)[0]))
    named = tokenizer_digest(tokenizer, (prefix, suffix))
    return Backbone(
        trunk=trunk,
        tokenizer=cached_tokenizer(named, tokenizer),
        tokenizer_digest=named,
        prefix_ids=prefix,
        suffix_ids=suffix,
        batching=choose_batching(trunk, model, prefix),
        unused=unused,
    )


def _tokenizer(model: ModelSettings, folder: Path) -> Any:
    if not any(list(folder.glob(pattern)) for pattern in _TOKENIZER_FILES):
        # transformers would make up a tokenizer without words
        raise UserError(
            f"model.path={model.path}: holds no tokenizer files (tokenizer.json, tokenizer.model, vocab.txt, ...): "
            "save the model's tokenizer into the same folder"
        )
    try:
        return AutoTokenizer.from_pretrained(folder, trust_remote_code=False)
    except (ValueError, OSError, KeyError, TypeError, ImportError, AttributeError) as error:
        raise UserError(
            f"model.path={model.path}: transformers cannot load its tokenizer ({first_line(error)})"
        ) from error


def _pretrained(model: ModelSettings, folder: Path, dtype: torch.dtype) -> tuple[Any, tuple[str, ...]]:
    """The trunk, and the names of tensors in the checkpoint that are no part of it."""
    if minicpm.is_minicpm(folder):
        if model.quantization is not Quantization.none:
            raise UserError("model.quantization: MiniCPM is held by other classes than its own, which cannot be done")
        return minicpm.load(folder, dtype), ()
    try:
        config = AutoConfig.from_pretrained(folder, trust_remote_code=False)
        _check_kind(model, config)
        trunk, found = AutoModel.from_pretrained(
            folder,
            dtype=dtype,
            use_safetensors=True,
            trust_remote_code=False,
            output_loading_info=True,
            ignore_mismatched_sizes=True,  # they are refused below, by name
            **_quantization(model, dtype),
        )
    except UserError:
        raise
    except (ValueError, OSError, KeyError, TypeError, ImportError, RuntimeError, SafetensorError) as error:
        raise UserError(f"model.path={model.path}: transformers cannot load it ({first_line(error)})") from error
    missing = [name for name in found["missing_keys"] if not name.startswith(_UNUSED_PARTS)]
    missing += [str(entry[0] if isinstance(entry, tuple) else entry) for entry in found["mismatched_keys"]]
    if missing:
        # transformers would fill them with random numbers and go on
        raise UserError(
            f"model.path={model.path}: {len(missing)} tensors of {type(trunk).__name__} are not in the checkpoint or "
            f"have another shape there ({', '.join(sorted(missing)[:3])}); it is not whole, or of another model"
        )
    for module in trunk.modules():
        # On some CPUs bitsandbytes repacks 4-bit weights when they are first used without gradients, for a kernel that
        # has none, and does not undo it: a model that was evaluated once would get no gradient in training.
        if hasattr(module, "support_avx512bf16_for_cpu"):
            module.support_avx512bf16_for_cpu = False
    return trunk, tuple(sorted(found["unexpected_keys"]))


def _check_kind(model: ModelSettings, config: Any) -> None:
    if getattr(config, "is_encoder_decoder", False):
        raise UserError(
            f"model.path={model.path}: {config.model_type} has an encoder and a decoder; cft embeds with models that "
            "are one of both"
        )


def _quantization(model: ModelSettings, dtype: torch.dtype) -> dict[str, Any]:
    """Arguments that hold the base in 4 bits (QLoRA: Dettmers et al. 2023, arXiv 2305.14314)."""
    if model.quantization is Quantization.none:
        return {}
    try:
        import bitsandbytes  # noqa: F401
        from transformers import BitsAndBytesConfig
    except ImportError as error:
        raise UserError(
            "model.quantization=nf4 needs the package bitsandbytes: pip install 'cft[qlora]', or leave it at none"
        ) from error
    settings = BitsAndBytesConfig(
        load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_use_double_quant=True, bnb_4bit_compute_dtype=dtype
    )
    return {"quantization_config": settings}


def _random_trunk(architecture: str, seed: int, dtype: torch.dtype) -> Any:
    vocabulary = len(byte_tokenizer())
    try:
        sizes = _TINY | _TINY_OF.get(architecture, {})
        config = AutoConfig.for_model(architecture, vocab_size=vocabulary, pad_token_id=0, **sizes)
    except ValueError as error:
        raise UserError(f"model.path=random:{architecture}: transformers knows no such architecture") from error
    _check_kind(ModelSettings(path=f"random:{architecture}"), config)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return AutoModel.from_config(config, dtype=dtype)


def _check_vocabulary(model: ModelSettings, trunk: Any, special: Iterable[int]) -> None:
    rows = trunk.get_input_embeddings().num_embeddings
    beyond = [token for token in special if token >= rows]
    if beyond:
        raise UserError(
            f"model.path={model.path}: its tokenizer's special token {beyond[0]} is beyond the model's {rows} "
            "embeddings; tokenizer and model do not belong together, or tokens were added without the model"
        )


def _check_positions(model: ModelSettings, trunk: Any) -> None:
    """Refuse texts longer than the positions that a model was made for: its own code would fail at such a text."""
    limits = [getattr(trunk.config, "max_position_embeddings", None)]
    for name, module in trunk.named_modules():
        if isinstance(module, torch.nn.Embedding) and ("position" in name or name.endswith("wpe")):
            # RoBERTa counts from behind its padding token, OPT from an offset
            unused = module.padding_idx + 1 if module.padding_idx is not None else getattr(module, "offset", 0)
            limits.append(module.num_embeddings - unused)
    limit = min((value for value in limits if isinstance(value, int) and value > 0), default=model.max_length)
    if model.max_length > limit:
        raise UserError(
            f"model.max_length={model.max_length}: this model has positions for {limit} tokens only; set it to that"
        )


def _number(value: Any) -> int | None:
    """The first, where a configuration lists several."""
    if isinstance(value, (list, tuple)):
        value = value[0] if value else None
    return value if isinstance(value, int) else None
