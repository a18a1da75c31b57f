"""What tests share: tiny models, reference encodings, a private cache."""

import os
from pathlib import Path

import pytest
import torch

from cft.embedder import Embedder
from cft.settings import ModelSettings

# W&B must not look for a network, nor anything for a hub.
os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("WANDB_MODE", "offline")

REAL_DATA = Path(__file__).resolve().parents[2] / "shared" / "data"


@pytest.fixture(scope="session")
def real_data() -> Path:
    """The folder with the nine STS sets and NLI triplets, where a machine has it."""
    folder = Path(os.environ.get("CFT_REAL_DATA", REAL_DATA))
    if not (folder / "sts" / "STS12.jsonl.gz").exists():
        pytest.skip("the real STS and NLI files are not here; set CFT_REAL_DATA to their folder to run this test")
    return folder


@pytest.fixture
def tiny() -> Embedder:
    """A Llama of 2 layers with random weights."""
    return make_tiny("llama")


def make_tiny(architecture: str, **settings: object) -> Embedder:
    """A tiny random model as an embedder, in float32 on the CPU."""
    return Embedder.base(ModelSettings(name="tiny", path=f"random:{architecture}", **settings))


def padded_states(trunk: torch.nn.Module, sequences: list[tuple[int, ...]], side: str) -> torch.Tensor:
    """Reference: last-token states (B, D) of sequences padded to one length, by transformers' own attention.

    The padding side decides where position 0 is, so position ids are given for both.
    """
    width = max(map(len, sequences))
    ids = torch.zeros(len(sequences), width, dtype=torch.long)
    mask = torch.zeros(len(sequences), width, dtype=torch.long)
    for row, sequence in enumerate(sequences):
        cells = slice(0, len(sequence)) if side == "right" else slice(width - len(sequence), width)
        ids[row, cells] = torch.tensor(sequence)
        mask[row, cells] = 1
    positions = (mask.cumsum(dim=1) - 1).clamp(min=0)
    states = trunk(input_ids=ids, attention_mask=mask, position_ids=positions, use_cache=False).last_hidden_state
    last = torch.tensor([len(s) - 1 if side == "right" else width - 1 for s in sequences])
    return states[torch.arange(len(sequences)), last]


def with_own_attention(trunk: torch.nn.Module) -> torch.nn.Module:
    """The same model with transformers' own attention instead of the tree's."""
    trunk.set_attn_implementation("sdpa")
    return trunk
