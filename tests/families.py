"""Model families, as transformers names them, and the kind of batch that each is expected to run on.

docs/models.md lists the same; a test compares.
"""

from collections.abc import Iterable
from typing import Any

import pytest

TREE = [
    "llama", "phi", "gemma", "gpt2", "qwen2", "qwen3", "mistral", "granite", "gpt_neox", "gemma3_text", "opt",
    "starcoder2", "olmo", "olmo2", "olmo3", "cohere", "cohere2", "phi3", "smollm3", "granitemoe", "mixtral",
    "exaone4", "glm", "glm4", "gpt_bigcode", "biogpt", "ernie4_5", "persimmon", "apertus", "arcee", "seed_oss",
    "llama4_text", "nanochat",
]  # fmt: skip
# Why not a tree, in the words of the message.
PADDED = {
    "gemma2": "softcap",
    "gpt_oss": "s_aux",
    "bloom": "BloomModel has no exchangeable attention",
    "mpt": "MptModel has no exchangeable attention",
    "falcon": "FalconModel has no exchangeable attention",
    "gptj": "GPTJModel has no exchangeable attention",
    "codegen": "CodeGenModel has no exchangeable attention",
    "gpt_neo": "GPTNeoModel has no exchangeable attention",
    "xglm": "XGLMModel has no exchangeable attention",
    "stablelm": "did not hand the batch layout on",
    "nemotron": "did not hand the batch layout on",
    "mamba": "convolutions between its layers",
    "minimax": "only 1 of MiniMaxModel's 2 layers attend",
    "falcon_h1": "convolutions between its layers",
}
ENCODERS = {"bert": "tree", "distilbert": "tree", "modernbert": "padded", "roberta": "padded"}


def cases(families: Iterable[str]) -> list[Any]:
    """Families as parameters of a test; one takes half a minute to load, and is for `make test-slow`."""
    return [pytest.param(name, marks=pytest.mark.slow) if name == "falcon_h1" else name for name in families]
