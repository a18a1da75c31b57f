"""Models of full size with random weights, made on the device that they run on."""

from typing import Any

import torch
from full_size import SHAPES
from transformers import AutoConfig, AutoModel

from cft.batching.layout import choose_batching
from cft.config.schema import PLACEHOLDER, LoraSettings, ModelSettings
from cft.model.backbone import Backbone
from cft.model.contract import SETTINGS, Contract
from cft.model.embedder import Embedder
from cft.model.lora import add_lora
from cft.model.minicpm import granite_config
from cft.model.tokenizer import byte_tokenizer

# What makes a shape tiny; its family stays.
_TINY = {"hidden_size": 80, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4}
_TINY_VOCABULARY = 300


def random_embedder(name: str, device: torch.device, *, tiny: bool, lora: LoraSettings | None = None) -> Embedder:
    """A shape as an embedder with the paper's LoRA, its base in bfloat16; EOS is token 2."""
    told = dict(SHAPES[name])
    if tiny:
        told |= _TINY | {"vocab_size": _TINY_VOCABULARY}
        told |= {"head_dim": 8} if "head_dim" in told else {}
        told |= {"num_key_value_heads": 1 if name == "gemma" else 4} if "num_key_value_heads" in told else {}
    config: Any = granite_config(told) if name == "minicpm" else AutoConfig.for_model(**told)
    config.pad_token_id = 0
    torch.manual_seed(0)
    with device:
        trunk = AutoModel.from_config(config, dtype=torch.bfloat16)
    trunk = trunk.to(device).eval()
    trunk.config.use_cache = False
    model = ModelSettings(name=name, path=f"random:{name}")
    settings: dict[str, Any] = {key: getattr(model, key) for key in SETTINGS}
    contract = Contract(
        model=model.path,
        weights="random",
        tokenizer="none",
        prefix_ids=(),
        suffix_ids=(2,),
        template=PLACEHOLDER,
        dtype="bfloat16",
        **settings,
    )
    backbone = Backbone(trunk, byte_tokenizer(), contract, choose_batching(trunk, model, ()))
    tuned = add_lora(trunk, lora or LoraSettings(), seed=0).to(device)
    return Embedder(tuned.train(), backbone, contract)


def product_weights(model: torch.nn.Module) -> tuple[int, int]:
    """How many weights are in matrix products that every token goes through: frozen ones, and LoRA's."""
    frozen = trained = 0
    for name, weight in model.named_parameters():
        if weight.dim() != 2 or "embed" in name:
            continue
        if "lora_" in name:
            trained += weight.numel()
        else:
            frozen += weight.numel()
    return frozen, trained


def step_flops(model: torch.nn.Module, tokens: int, *, cached: bool) -> float:
    """Floating-point operations of a step's matrix products, without attention's: a few in a hundred at NLI's lengths.

    Frozen weights take one product forward and one backward, as they get no gradient; LoRA's take one more. Gradient
    caching goes forward twice.
    """
    frozen, trained = product_weights(model)
    forward = 2 if cached else 1
    return 2.0 * tokens * (frozen * (forward + 1) + trained * (forward + 2))
