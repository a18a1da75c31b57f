"""The model under the embedding: a trunk without a language-model head, and its tokenizer."""

import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import torch
from transformers import AutoConfig, AutoModel, AutoTokenizer
from transformers.utils import logging as transformers_logging

from cft.batching.layout import Batching, sample_sequences
from cft.batching.trials import find_batching
from cft.config.schema import PLACEHOLDER, ModelSettings, Quantization
from cft.model import minicpm
from cft.model.contract import SETTINGS, Contract
from cft.model.layer_weights import add_layer_weights
from cft.model.sources import ADAPTER_CONFIG, ModelFiles
from cft.model.tokenizer import byte_tokenizer, cached_tokenizer, special_tokens, tokenizer_digest
from cft.model.truncate import keep_layers
from cft.system.cores import use_granted_cores
from cft.system.errors import UserError, first_line
from cft.system.overrides import override

# Small enough for a test to take milliseconds, with grouped key-value heads so that no test misses them.
_TINY: dict[str, Any] = {
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 256,
    "pad_token_id": 0,
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
    """A trunk (token ids to hidden states) and the tokenizer that goes with it."""

    trunk: torch.nn.Module
    tokenizer: Any
    contract: Contract  # of the base model, without a prompt
    batching: Batching  # how batches are laid out
    unused: tuple[str, ...] = ()  # tensors of the checkpoint that are no part of the trunk
    place: Path | None = None  # the user's folder or file that it came from, if it did
    gguf: Path | None = None  # the GGUF file that it was converted from, if it was

    @property
    def vocabulary(self) -> int:
        """Number of token embeddings."""
        # of the weight: an adapter may stand in the layer's place
        return cast(Any, self.trunk).get_input_embeddings().weight.shape[0]

    def check_attention(self) -> None:
        """Refuse an attention other than the one that batches were tried with: a tree would be silently wrong.

        Raises:
            RuntimeError: naming both.
        """
        used, tried = cast(Any, self.trunk).config._attn_implementation, self.batching.attention
        if used != tried:
            raise RuntimeError(f"the model's attention is {used}, but its batches were found exact with {tried}")


def load_backbone(
    model: ModelSettings, files: ModelFiles, *, dtype: torch.dtype, device: torch.device | str = "cpu"
) -> Backbone:
    """Load trunk and tokenizer, cut to the chosen layer, and find the kind of batch that is exact for the model.

    From here on torch has no more threads than this process has cores.

    Raises:
        UserError: if transformers cannot read the model, weights are missing, it cannot be run in batches, or its
            tokenizer has no EOS though one is to be appended.
    """
    _quiet_transformers()
    use_granted_cores()
    unused: tuple[str, ...] = ()
    tokenizer = load_tokenizer(model, files)
    if files.folder is None:
        trunk = _random_trunk(model, dtype)
    else:
        trunk, unused = _load_trunk(model, files.folder, dtype)
    trunk = trunk.to(device).eval()
    trunk.config.use_cache = False
    prefix, suffix = special_tokens(model, tokenizer, getattr(trunk.config, "eos_token_id", None))
    _check_vocabulary(model, trunk, (*prefix, *suffix))
    _check_positions(model, trunk)
    if model.layer is not None:
        trunk = keep_layers(trunk, model.layer, token_ids=list(sample_sequences(trunk, prefix)[0]))
    settings: dict[str, Any] = {name: getattr(model, name) for name in SETTINGS}
    contract = Contract(
        model=model.path,
        weights=files.identity,
        tokenizer=tokenizer_digest(tokenizer, (prefix, suffix)),
        prefix_ids=prefix,
        suffix_ids=suffix,
        template=PLACEHOLDER,
        dtype=str(dtype).removeprefix("torch."),
        content=None if files.content == files.identity else files.content,
        **settings,
    )
    tokenizer = cached_tokenizer(contract.tokenizer, tokenizer)
    batching = find_batching(trunk, model, prefix, files.all_read)
    if model.layer_weights:
        add_layer_weights(trunk, batching)
    return Backbone(trunk, tokenizer, contract, batching, unused, files.place, files.gguf)


def _quiet_transformers() -> None:
    """Loading takes a second; progress bars and notes, of texts that are cut later, or of heads, would only alarm."""
    transformers_logging.disable_progress_bar()
    transformers_logging.set_verbosity_error()


@contextmanager
def _explaining(model: ModelSettings, what: str) -> Iterator[None]:
    """Turn whatever transformers raises into an error that names the model."""
    try:
        yield
    except Exception as error:
        raise UserError(
            f"{override('model.path', model.path)}: transformers cannot load {what} ({first_line(error)})"
        ) from error


def load_tokenizer(model: ModelSettings, files: ModelFiles) -> Any:
    """A base model's tokenizer; one of bytes for random weights.

    Raises:
        UserError: if there is none, or transformers cannot read it.
    """
    if files.folder is None:
        return byte_tokenizer()
    _quiet_transformers()
    folder = files.folder
    if not any(list(folder.glob(pattern)) for pattern in _TOKENIZER_FILES):
        # transformers would make up a tokenizer without words
        raise UserError(
            f"{override('model.path', model.path)}: holds no tokenizer files (tokenizer.json, tokenizer.model, "
            "vocab.txt, ...): "
            "save the model's tokenizer into the same folder"
        )
    with _explaining(model, "its tokenizer"):
        return AutoTokenizer.from_pretrained(folder, trust_remote_code=False)


def _load_trunk(model: ModelSettings, folder: Path, dtype: torch.dtype) -> tuple[Any, tuple[str, ...]]:
    """The trunk, and the names of tensors in the checkpoint that are no part of it."""
    if minicpm.is_minicpm(folder):
        if model.quantization is not Quantization.none:
            raise UserError("model.quantization: MiniCPM is held by other classes than its own, which cannot be done")
        return minicpm.load(folder, dtype), ()
    with _explaining(model, "it"):
        config = AutoConfig.from_pretrained(folder, trust_remote_code=False)
    _check_kind(model, config)
    quantization = None if model.quantization is Quantization.none else _four_bits(dtype)
    with _explaining(model, "it"):
        trunk, keys = _from_pretrained(
            folder,
            dtype=dtype,
            use_safetensors=True,
            trust_remote_code=False,
            output_loading_info=True,
            ignore_mismatched_sizes=True,  # they are refused below, by name
            quantization_config=quantization,
        )
    missing = [name for name in keys["missing_keys"] if not name.startswith(_UNUSED_PARTS)]
    missing += [str(entry[0] if isinstance(entry, tuple) else entry) for entry in keys["mismatched_keys"]]
    if missing:
        # transformers would fill them with random numbers and go on
        raise UserError(
            f"{override('model.path', model.path)}: {len(missing)} tensors of {type(trunk).__name__} are not in the "
            "checkpoint or "
            f"have another shape there ({', '.join(sorted(missing)[:3])}); it is not whole, or of another model"
        )
    for module in trunk.modules():
        # On some CPUs bitsandbytes repacks 4-bit weights when they are first used without gradients, for a kernel that
        # has none, and does not undo it: a model that was evaluated once would get no gradient in training.
        if hasattr(module, "support_avx512bf16_for_cpu"):
            module.support_avx512bf16_for_cpu = False
    return trunk, tuple(sorted(keys["unexpected_keys"]))


def _from_pretrained(folder: Path, **options: Any) -> Any:
    """What `AutoModel.from_pretrained` gives for the base model alone: it would put an adapter in the folder on it."""
    if not (folder / ADAPTER_CONFIG).exists():
        return AutoModel.from_pretrained(folder, **options)
    with tempfile.TemporaryDirectory() as view:
        for path in folder.iterdir():
            if path.is_file() and path.name != ADAPTER_CONFIG:
                (Path(view) / path.name).symlink_to(path.resolve())
        return AutoModel.from_pretrained(view, **options)


def _check_kind(model: ModelSettings, config: Any) -> None:
    if getattr(config, "is_encoder_decoder", False):
        raise UserError(
            f"{override('model.path', model.path)}: {config.model_type} has an encoder and a decoder; cft embeds with "
            "models that "
            "are one of both"
        )


def _four_bits(dtype: torch.dtype) -> Any:
    """Holds the base in 4 bits (QLoRA: Dettmers et al. 2023, arXiv 2305.14314)."""
    try:
        import bitsandbytes  # noqa: F401
        from transformers import BitsAndBytesConfig
    except ImportError as error:
        raise UserError(
            "model.quantization=nf4 needs the package bitsandbytes: pip install 'cft[qlora]', or leave it at none"
        ) from error
    return BitsAndBytesConfig(
        load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_use_double_quant=True, bnb_4bit_compute_dtype=dtype
    )


def _random_trunk(model: ModelSettings, dtype: torch.dtype) -> Any:
    """A tiny model of an architecture, with the same random weights every time."""
    architecture = model.path.removeprefix("random:")
    try:
        sizes = _TINY | _TINY_OF.get(architecture, {})
        config = AutoConfig.for_model(architecture, vocab_size=len(byte_tokenizer()), **sizes)
    except ValueError as error:
        raise UserError(f"{override('model.path', model.path)}: transformers knows no such architecture") from error
    _check_kind(model, config)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return AutoModel.from_config(config, dtype=dtype)


def _check_vocabulary(model: ModelSettings, trunk: Any, special: tuple[int, ...]) -> None:
    rows = trunk.get_input_embeddings().num_embeddings
    beyond = [token for token in special if token >= rows]
    if beyond:
        raise UserError(
            f"{override('model.path', model.path)}: its tokenizer's special token {beyond[0]} is beyond the model's "
            f"{rows} "
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
