"""The model under the embedding: a trunk without a language-model head, its tokenizer, and its LoRA."""

import difflib
import hashlib
import logging
import warnings
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import torch
from peft import LoraConfig, PeftModel, TaskType, get_peft_model
from peft.utils import get_peft_model_state_dict, set_peft_model_state_dict
from safetensors.torch import load_file, save_file
from transformers import AutoConfig, AutoModel, AutoTokenizer, PreTrainedTokenizerFast
from transformers.utils import logging as transformers_logging

from cft import minicpm
from cft.errors import UserError
from cft.prefix_tree import ATTENTION_NAME
from cft.settings import Attention, LoraSettings, ModelSettings
from cft.sources import ModelFiles
from cft.store import replacing, sha256_of_file, write_json

log = logging.getLogger(__name__)

ADAPTER_FOLDER = "adapter"
ADAPTER_WEIGHTS = "adapter_model.safetensors"
ADAPTER_CONFIG = "adapter_config.json"
FULL_WEIGHTS = "model.safetensors"

# Small enough for a test to take milliseconds, with grouped key-value heads so that no test misses them.
_TINY = {
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 256,
}


@dataclass(frozen=True)
class Backbone:
    """A trunk (token ids to hidden states) and the tokenizer that goes with it.

    tokenizer_digest names the tokenizer's content. prefix_ids and suffix_ids are the special tokens around a text.
    """

    trunk: torch.nn.Module
    tokenizer: Any
    tokenizer_digest: str
    prefix_ids: tuple[int, ...]
    suffix_ids: tuple[int, ...]


def load_backbone(model: ModelSettings, files: ModelFiles, *, dtype: torch.dtype, seed: int = 0) -> Backbone:
    """Load trunk and tokenizer, set up for prefix-tree batches.

    Args:
        model: the settings of the base model.
        files: what `sources.fetch` brought for it.
        dtype: of the weights in memory.
        seed: draws the weights of a random model.

    Raises:
        UserError: if transformers cannot read the model, or its tokenizer has no EOS though one is to be appended.
    """
    # Loading takes a second; bars and notes about the missing language-model head would only alarm.
    transformers_logging.disable_progress_bar()
    transformers_logging.set_verbosity_error()
    if files.folder is None:
        trunk, tokenizer = _random_trunk(model.path.removeprefix("random:"), seed).to(dtype), byte_tokenizer()
    else:
        trunk, tokenizer = _pretrained(model, files.folder, dtype)
    trunk.set_attn_implementation(ATTENTION_NAME)
    trunk.config.use_cache = False
    prefix, suffix = _special_tokens(model, tokenizer)
    content = tokenizer.backend_tokenizer.to_str() + repr((prefix, suffix))
    return Backbone(
        trunk=trunk.eval(),
        tokenizer=tokenizer,
        tokenizer_digest=hashlib.sha256(content.encode()).hexdigest()[:16],
        prefix_ids=prefix,
        suffix_ids=suffix,
    )


def _pretrained(model: ModelSettings, folder: Path, dtype: torch.dtype) -> tuple[Any, Any]:
    try:
        tokenizer = AutoTokenizer.from_pretrained(folder, trust_remote_code=False)
        if minicpm.is_minicpm(folder):
            return minicpm.load(folder, dtype), tokenizer
        trunk = AutoModel.from_pretrained(folder, dtype=dtype, use_safetensors=True, trust_remote_code=False)
    except UserError:
        raise
    except (ValueError, OSError, KeyError) as error:
        raise UserError(f"model.path={model.path}: transformers cannot load it ({error})") from error
    return trunk, tokenizer


def _random_trunk(architecture: str, seed: int) -> Any:
    try:
        config = AutoConfig.for_model(architecture, vocab_size=len(byte_tokenizer()), pad_token_id=0, **_TINY)
    except ValueError as error:
        raise UserError(f"model.path=random:{architecture}: transformers knows no such architecture") from error
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return AutoModel.from_config(config)


def byte_tokenizer() -> PreTrainedTokenizerFast:
    """A tokenizer that needs no file: one token a byte, an EOS and no BOS."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers

    special = {"<pad>": 0, "<eos>": 1}
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocabulary = special | {letter: len(special) + index for index, letter in enumerate(alphabet)}
    backend = Tokenizer(models.BPE(vocab=vocabulary, merges=[]))
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    return PreTrainedTokenizerFast(tokenizer_object=backend, eos_token="<eos>", pad_token="<pad>")


def _special_tokens(model: ModelSettings, tokenizer: Any) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """What goes before and after a text.

    The tokenizer says what comes before (BOS, CLS) by showing it on a sample. What comes after a causal model's
    text is our own EOS, because many tokenizers ignore `add_eos_token`; an encoder keeps its tokenizer's suffix.
    """
    bare = tokenizer("a", add_special_tokens=False)["input_ids"]
    full = tokenizer("a")["input_ids"]
    start = next(i for i in range(len(full)) if full[i : i + len(bare)] == bare)
    prefix, suffix = tuple(full[:start]), tuple(full[start + len(bare) :])
    if not model.append_eos:
        return prefix, suffix
    if tokenizer.eos_token_id is None:
        raise UserError(
            f"model.path={model.path}: its tokenizer has no EOS token to embed; set model.append_eos=false to embed "
            "the last word instead"
        )
    return prefix, (tokenizer.eos_token_id,)


def check_directions(trunk: torch.nn.Module, attention: Attention) -> None:
    """Refuse an encoder that is configured as causal: sharing prefixes would change its embeddings.

    Raises:
        UserError: if the model's attention looks both ways and `attention` says causal.
    """
    flags = [bool(module.is_causal) for module in trunk.modules() if hasattr(module, "is_causal")]
    if attention is Attention.causal and flags and not any(flags):
        raise UserError("this model's attention looks both ways: set model.attention=bidirectional")


def linear_layers(trunk: torch.nn.Module) -> list[str]:
    """The last part of the names of all linear layers, as `lora.targets` takes them."""
    kinds = (torch.nn.Linear,)
    names = {name.rsplit(".", 1)[-1] for name, module in trunk.named_modules() if isinstance(module, kinds)}
    # GPT-2's Conv1D is a linear layer in all but name.
    names |= {name.rsplit(".", 1)[-1] for name, m in trunk.named_modules() if type(m).__name__ == "Conv1D"}
    return sorted(names)


def add_lora(trunk: torch.nn.Module, lora: LoraSettings, *, seed: int) -> torch.nn.Module:
    """Freeze a trunk and put trainable low-rank updates on it; at rank 0 the trunk itself is trained.

    Args:
        trunk: the base model, changed in place.
        lora: rank, scale, dropout, initialisation and target layers.
        seed: draws the initial weights.

    Raises:
        UserError: if a target is no linear layer of the model, listing those that are.

    Source: Hu et al. 2021, arXiv 2106.09685.
    """
    if lora.rank == 0:
        return trunk.requires_grad_(True)
    targets = check_targets(trunk, lora)
    config = LoraConfig(
        task_type=TaskType.FEATURE_EXTRACTION,
        r=lora.rank,
        lora_alpha=lora.alpha,  # type: ignore[arg-type]  # PEFT only divides it by the rank
        lora_dropout=lora.dropout,
        init_lora_weights="gaussian" if lora.init == "gaussian" else True,
        target_modules=targets,
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return _with_adapter(trunk, config)


def _with_adapter(trunk: torch.nn.Module, config: LoraConfig) -> torch.nn.Module:
    """PEFT's model; it asks transformers about checkpointing by a name that transformers is giving up."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", category=FutureWarning, message=".*is_gradient_checkpointing.*")
        return get_peft_model(cast(Any, trunk), config)


def check_targets(trunk: torch.nn.Module, lora: LoraSettings) -> list[str]:
    """The layers that `lora.targets` means in this model.

    Raises:
        UserError: if a target is no linear layer of the model, listing those that are.
    """
    layers = linear_layers(trunk)
    if lora.targets == ["all-linear"]:
        return layers
    for target in lora.targets:
        if target not in layers:
            near = difflib.get_close_matches(target, layers, n=1)
            hint = f" Did you mean {near[0]}?" if near else ""
            raise UserError(
                f"lora.targets: this model has no linear layer named {target!r}; it has {', '.join(layers)}.{hint} "
                "lora=all_linear takes them all"
            )
    return list(lora.targets)


def trainable(model: torch.nn.Module) -> dict[str, torch.nn.Parameter]:
    """The parameters that training changes, by name."""
    return {name: weight for name, weight in model.named_parameters() if weight.requires_grad}


def save_weights(model: torch.nn.Module, folder: Path, base_name: str) -> str:
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


def load_weights(trunk: torch.nn.Module, folder: Path) -> torch.nn.Module:
    """Put trained weights of `save_weights` back on their base model.

    Raises:
        UserError: if a tensor has no place in the model.
    """
    if (folder / FULL_WEIGHTS).exists():
        trunk.load_state_dict(load_file(folder / FULL_WEIGHTS))
        return trunk
    config = LoraConfig.from_pretrained(str(folder))
    config.inference_mode = True
    config.base_model_name_or_path = None  # which base model this is, the contract has checked
    model = _with_adapter(trunk, config)
    outcome: Any = set_peft_model_state_dict(model, load_file(folder / ADAPTER_WEIGHTS))
    missing = [name for name in outcome.missing_keys if "lora_" in name]
    if outcome.unexpected_keys or missing:
        odd = ", ".join([*outcome.unexpected_keys, *missing][:3])
        raise UserError(f"the adapter in {folder} does not fit this base model (first differences: {odd})")
    return model.eval()


def _write_tensors(path: Path, tensors: dict[str, torch.Tensor]) -> None:
    with replacing(path) as part:
        save_file(
            {name: tensor.detach().cpu().contiguous() for name, tensor in sorted(tensors.items())},
            part,
            metadata={"format": "pt"},
        )


def weights_digest(folder: Path) -> str:
    """SHA-256 of a folder's trained weights.

    Raises:
        UserError: if the folder holds none.
    """
    for name in (ADAPTER_WEIGHTS, FULL_WEIGHTS):
        if (folder / name).exists():
            return sha256_of_file(folder / name)
    raise UserError(f"{folder} holds neither {ADAPTER_WEIGHTS} nor {FULL_WEIGHTS}")
