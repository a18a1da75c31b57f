"""Which precision a model computes in: what is configured, what this machine gains, and what was trained in what."""

import contextlib
import dataclasses
import json
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import make_tiny
from jobs import QUICK, composed
from transformers import BertConfig, Gemma3TextConfig, LlamaConfig

from cft.batching import trials
from cft.config.schema import Attention, ModelSettings, Precision, Quantization
from cft.deploy.encode import EncodeOptions, encode_file
from cft.deploy.load import load_embedder
from cft.deploy.similar import SimilarOptions, open_index
from cft.job import start
from cft.job.plan import make_plan
from cft.job.runner import run
from cft.model import precision
from cft.model.embedder import Embedder
from cft.model.sources import ModelFiles
from cft.system.errors import UserError

CPU = torch.device("cpu")
WIDE = {
    "llama": (LlamaConfig(hidden_size=256, intermediate_size=512, num_hidden_layers=5), Attention.causal),
    "bert": (BertConfig(hidden_size=256, num_attention_heads=4, num_hidden_layers=3), Attention.bidirectional),
    "gemma3": (
        Gemma3TextConfig(
            hidden_size=256, intermediate_size=512, num_hidden_layers=6, num_attention_heads=4, head_dim=64
        ),
        Attention.causal,
    ),
}


def of(tmp_path, family: str = "llama", **settings) -> tuple[ModelSettings, ModelFiles]:
    """A model of which only the configuration is there: the trial needs no weights."""
    config, attention = WIDE[family]
    config.save_pretrained(tmp_path / family)
    model = ModelSettings(name=family, path=str(tmp_path / family), attention=attention, **settings)
    return model, ModelFiles(folder=tmp_path / family, identity=family)


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("CFT_CACHE", str(tmp_path / "cache"))


@pytest.fixture
def gaining(monkeypatch):
    """A machine on which every model is so many times as fast in bfloat16."""

    def set_to(factor: float) -> None:
        for module in (precision, start):
            monkeypatch.setattr(module, "bfloat16_gain", lambda model, files: factor)

    return set_to


def trained(*words: str) -> Path:
    """The folder of a job's embedder."""
    config = composed(*words)
    run(config)
    return make_plan(config).result


@pytest.mark.parametrize("family", WIDE)
def test_a_piece_of_a_model_is_timed_both_ways(family, tmp_path, monkeypatch):
    run_in = []
    real = precision._pass_of
    monkeypatch.setattr(precision, "_pass_of", lambda trunk, model: run_in.append(trunk) or real(trunk, model))
    before = torch.get_rng_state()
    assert precision.bfloat16_gain(*of(tmp_path, family)) > 0
    assert [next(trunk.parameters()).dtype for trunk in run_in] == [torch.float32, torch.bfloat16]
    assert all(trunk.config.num_hidden_layers == 2 for trunk in run_in)
    assert torch.equal(before, torch.get_rng_state())  # or a training would hang on whether this was tried before it


def test_what_was_found_is_kept_and_found_again(tmp_path, monkeypatch):
    """A training's name holds its precision: a second trial, beside other work, must not find another one."""
    found = iter([3.0, 0.4, 0.5, 0.6])
    monkeypatch.setattr(precision, "_measured", lambda trunk, model: next(found))
    assert [precision.bfloat16_gain(*of(tmp_path)) for _ in range(3)] == [3.0] * 3
    monkeypatch.setattr(precision, "processor", lambda: "another CPU")
    assert precision.bfloat16_gain(*of(tmp_path)) == 0.4
    assert precision.bfloat16_gain(*of(tmp_path, "bert")) == 0.5
    monkeypatch.setattr(trials, "version", lambda package: "9.9")
    assert precision.bfloat16_gain(*of(tmp_path)) == 0.6


def test_what_cannot_gain_is_not_tried(tmp_path, monkeypatch):
    monkeypatch.setattr(precision, "_measured", lambda trunk, model: pytest.fail("was tried"))
    model, files = of(tmp_path)
    assert precision.bfloat16_gain(dataclasses.replace(model, quantization=Quantization.nf4), files) == 0
    assert precision.bfloat16_gain(model, dataclasses.replace(files, folder=None)) == 0  # random weights
    LlamaConfig(hidden_size=128, num_attention_heads=4).save_pretrained(files.folder)
    assert precision.bfloat16_gain(model, files) == 0


def test_a_model_that_cannot_be_tried_stays_in_float32(tmp_path):
    model, files = of(tmp_path, "bert")
    assert precision.bfloat16_gain(dataclasses.replace(model, attention=Attention.causal), files) == 0
    (files.folder / "config.json").write_text(json.dumps({"model_type": "unheard_of", "hidden_size": 512}))
    assert precision.bfloat16_gain(model, files) == 0


@pytest.mark.parametrize(("gain", "expected"), [(0.0, False), (0.7, False), (1.4, False), (1.6, True)])
def test_auto_takes_what_is_clearly_faster(gain, expected):
    assert precision.wants_bf16(Precision.auto, CPU, lambda: gain) is expected
    assert precision.wants_bf16(Precision.bf16, CPU, lambda: gain) is True
    assert precision.wants_bf16(Precision.fp32, CPU, lambda: gain) is False


def test_a_job_takes_it_says_it_and_keeps_it_apart(tmp_path, gaining, caplog):
    caplog.set_level("INFO")
    words = [*QUICK, "train.precision=auto"]
    plain = trained(*words, f"outputs={tmp_path / 'one'}")
    assert "bfloat16" not in caplog.text
    gaining(2.0)
    rounded = trained(*words, f"outputs={tmp_path / 'other'}")
    assert "(random:llama), in bfloat16 (2.0 times as fast as float32 here, by a trial)" in caplog.text
    assert plain.name != rounded.name
    types = [json.loads((each / "contract.json").read_text())["dtype"] for each in (plain, rounded)]
    assert types == ["float32", "bfloat16"]
    cards = [(each / "README.md").read_text() for each in (plain, rounded)]
    assert ["| trained and scored in | bfloat16 (" in card for card in cards] == [False, True]
    gaining(0.5)  # what was trained in bfloat16 is so everywhere
    assert Embedder.load(rounded).contract.dtype == "bfloat16"


class _Killed(Exception):
    """The end of a process."""


@pytest.mark.parametrize(("gains", "dtype"), [((0.5, 2.0), "float32"), ((2.0, 0.5), "bfloat16")])
@pytest.mark.parametrize("stop", [None, 2], ids=["finished", "killed"])
def test_what_one_machine_has_begun_another_goes_on_with(tmp_path, gaining, caplog, gains, dtype, stop):
    """Machines of a cluster find different precisions: none of them may begin anew what another has begun."""
    caplog.set_level("INFO")
    config = composed(*QUICK, f"outputs={tmp_path}", "train.precision=auto", "train.checkpoint_every=1")

    def on_row(row: dict) -> None:
        if row["step"] == stop:
            raise _Killed

    gaining(gains[0])
    with pytest.raises(_Killed) if stop else contextlib.nullcontext():
        run(config, on_row=on_row)
    begun = make_plan(config).folder
    gaining(gains[1])
    assert make_plan(config).folder == begun
    caplog.clear()
    run(config)
    assert f"{begun} was begun in {dtype}, and is gone on with in it" in caplog.text
    assert ("already trained" if stop is None else "continuing after step 1 of 6") in caplog.text
    assert Embedder.load(begun).contract.dtype == dtype
    assert [path.parent for path in tmp_path.glob("*/training.json")] == [begun]
    other = {"float32": "bf16", "bfloat16": "fp32"}[dtype]
    assert make_plan(composed(*QUICK, f"outputs={tmp_path}", f"train.precision={other}")).folder != begun


@pytest.mark.parametrize(("kind", "gain"), [("bf16", 0.5), ("fp32", 3.0)])
def test_what_goes_on_from_an_adapter_computes_as_it_did(tmp_path, gaining, kind, gain):
    """Its contract holds in its own precision alone: `auto` must not choose another one and then refuse it."""
    first = trained(*QUICK, f"outputs={tmp_path}", f"train.precision={kind}")
    gaining(gain)
    second = trained(*QUICK, f"outputs={tmp_path}", "train.precision=auto", f"adapter={first}")
    assert Embedder.load(second).contract.dtype == Embedder.load(first).contract.dtype
    other = {"bf16": "fp32", "fp32": "bf16"}[kind]
    with pytest.raises(
        UserError, match=f"goes on in it alone; leave train.precision out, or set train.precision={kind}"
    ):
        run(composed(*QUICK, f"outputs={tmp_path}", f"train.precision={other}", f"adapter={first}"))


def test_a_finished_embedder_in_another_precision(tmp_path, gaining, caplog):
    folder = tmp_path / "run"
    make_tiny("llama").save(folder)
    texts = ["a cat sleeps", "a dog runs", "rain"]
    as_trained, rounded = Embedder.load(folder), Embedder.load(folder, precision="bf16")
    assert (as_trained.contract.dtype, rounded.contract.dtype) == ("float32", "bfloat16")
    cosines = (as_trained.encode(texts) * rounded.encode(texts)).sum(axis=1)
    assert cosines.min() > 0.999 and cosines.min() < 1 - 1e-7
    assert as_trained.contract.facts != rounded.contract.facts  # by which vectors are found again
    for gain, dtype in ((0.5, "float32"), (2.0, "bfloat16")):
        gaining(gain)
        assert load_embedder(folder, precision="auto").contract.dtype == dtype
        assert load_embedder(model="tiny", precision="auto").contract.dtype == dtype
        assert load_embedder(model="tiny").contract.dtype == "float32"
    rounded.save(tmp_path / "bf16")
    gaining(0.5)
    np.testing.assert_array_equal(Embedder.load(tmp_path / "bf16").encode(texts), rounded.encode(texts))
    assert "this CPU is slower in bfloat16, in which it was trained" in caplog.text
    assert Embedder.load(tmp_path / "bf16", precision="auto").contract.dtype == "float32"


@pytest.mark.parametrize("wrong", ["fp16", "BF16", "", None, 16])
def test_an_unknown_precision_is_refused_by_name(tmp_path, wrong):
    make_tiny("llama").save(tmp_path)
    with pytest.raises(UserError, match="precision=.*must be trained, auto, bf16 or fp32"):
        Embedder.load(tmp_path, precision=wrong)


def test_vectors_of_two_precisions_are_not_taken_for_each_other(tmp_path):
    make_tiny("llama").save(tmp_path / "run")
    (tmp_path / "texts.txt").write_text("a cat\na dog\nrain\n")
    made = []
    for name in ("fp32", "bf16", "trained"):
        target = tmp_path / f"{name}.npy"
        options = EncodeOptions(str(tmp_path / "texts.txt"), str(target), run=str(tmp_path / "run"), precision=name)
        encode_file(options)
        made.append((np.load(target), target.with_suffix(".contract.json").read_text()))
    assert not np.array_equal(made[0][0], made[1][0]) and '"dtype": "bfloat16"' in made[1][1]
    np.testing.assert_array_equal(made[0][0], made[2][0])

    def first(**more) -> str:
        of_bf16 = {"run": str(tmp_path / "run"), "vectors": str(tmp_path / "bf16.npy")}
        with open_index(SimilarOptions(tmp_path / "texts.txt", **of_bf16, **more)) as index:
            return index.search(["a dog"])[0][0].text

    with pytest.raises(UserError, match="computed in bfloat16, here in float32; add precision=bf16, or embed it again"):
        first()
    assert first(precision="bf16") == "a dog"
