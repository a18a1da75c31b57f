"""QLoRA: base weights in 4 bits, where the package bitsandbytes is."""

import sys

import numpy as np
import pytest
from conftest import write_model
from jobs import adapter_bytes, composed, run_folder, settings

from cft.config.schema import ModelSettings, Quantization
from cft.job import runner
from cft.model.embedder import Embedder
from cft.system.errors import UserError

WITHOUT = "needs bitsandbytes: pip install 'cft[qlora]' runs this test"
TEXTS = ["A man is playing.", "Two dogs run.", "Nobody sleeps here."]


@pytest.fixture
def folder(tmp_path):
    """A small model whose layers are wide enough for the blocks that 4-bit weights are scaled by."""
    sizes = {"hidden_size": 256, "intermediate_size": 512, "num_key_value_heads": 4, "head_dim": 64}
    return write_model(tmp_path / "model", "llama", **sizes)


def test_the_base_is_held_in_4_bits_and_embeds_nearly_the_same(folder):
    pytest.importorskip("bitsandbytes", reason=WITHOUT)
    exact = Embedder.base(ModelSettings(path=str(folder)))
    small = Embedder.base(ModelSettings(path=str(folder), quantization=Quantization.nf4))
    assert type(small.model.layers[0].mlp.up_proj).__name__ == "Linear4bit"
    cosines = (exact.encode(TEXTS) * small.encode(TEXTS)).sum(axis=1)
    assert (cosines > 0.95).all() and (cosines < 0.9999).all()
    assert small.contract.quantization is Quantization.nf4


def test_a_low_rank_update_is_trained_on_it_after_it_was_evaluated_and_keeps_its_contract(folder, tmp_path):
    pytest.importorskip("bitsandbytes", reason=WITHOUT)
    given = [f"model.path={folder}", "model.name=tiny", "model.quantization=nf4", "train.steps=3", "lora.dropout=0"]
    runner.run(settings(tmp_path / "one", *given))
    run = run_folder(tmp_path / "one")
    loaded = Embedder.load(run)
    assert loaded.contract.quantization is Quantization.nf4
    untrained = Embedder.base(composed("model=tiny", *given[:3]).model)
    assert np.abs(loaded.encode(TEXTS) - untrained.encode(TEXTS)).max() > 1e-3
    runner.run(settings(tmp_path / "two", *given))
    assert adapter_bytes(tmp_path / "one") == adapter_bytes(tmp_path / "two")
    runner.run(settings(tmp_path / "one", f"model.path={folder}", "model.name=tiny", "train.steps=3", "lora.dropout=0"))
    assert len([path for path in (tmp_path / "one").iterdir() if path.name.startswith("tiny-")]) == 2


def test_without_the_package_it_is_said_what_to_install(folder, monkeypatch):
    monkeypatch.setitem(sys.modules, "bitsandbytes", None)
    with pytest.raises(UserError, match=r"needs the package bitsandbytes: pip install 'cft\[qlora\]'"):
        Embedder.base(ModelSettings(path=str(folder), quantization=Quantization.nf4))


def test_quantised_weights_cannot_be_trained_themselves():
    with pytest.raises(UserError, match="quantised weights cannot be trained themselves; choose lora=paper"):
        composed("model=tiny", "model.quantization=nf4", "lora=none")
