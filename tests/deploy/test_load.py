"""Which embedder is meant: a run, a choice of conf/model, or any folder that can be read; all others are refused."""

import json
import logging
import shutil

import numpy as np
import pytest
from conftest import make_tiny, write_model

from cft.config.compose import compose_config
from cft.config.schema import Attention, ModelSettings, Pooling, Prompts
from cft.deploy import export, load, portable
from cft.deploy.load import find_source, load_embedder
from cft.export import COMMAND as EXPORT
from cft.model.embedder import Embedder
from cft.system.errors import UserError

TEXTS = ["a cat sleeps", "two birds, singing", "A text that is longer than the others by far, and cut. " * 4]


def publish(folder, *, pooling: str, length: int | None, **prompts: str) -> None:
    """Write what sentence-transformers would beside a model."""
    kinds = ("Transformer", "Pooling", "Normalize")
    modules = [{"path": f"{n}_{kind}" if n else "", "type": f"x.{kind}"} for n, kind in enumerate(kinds)]
    records = {
        "modules": modules,
        "1_Pooling/config": {f"pooling_mode_{pooling}": True},
        "sentence_bert_config": {"max_seq_length": length},
        "config_sentence_transformers": {"prompts": prompts, "default_prompt_name": None},
    }
    (folder / "1_Pooling").mkdir()
    for name, record in records.items():
        (folder / f"{name}.json").write_text(json.dumps(record))


def same(one: Embedder, other: Embedder, atol: float = 1e-6) -> None:
    np.testing.assert_allclose(one.encode(TEXTS), other.encode(TEXTS), atol=atol)
    np.testing.assert_allclose(one.encode_query(TEXTS), other.encode_query(TEXTS), atol=atol)
    np.testing.assert_allclose(one.encode_document(TEXTS), other.encode_document(TEXTS), atol=atol)


def test_an_embedder_is_found_by_folder_name_and_end_of_name(trained):
    outputs = trained.parent
    assert load.find_embedder(str(trained)) == trained
    assert load.find_embedder(trained.name, outputs) == trained
    assert load.find_embedder(trained.name[-6:], outputs) == trained
    with pytest.raises(
        UserError, match=f"run=zzz: no such folder, nor does a finished embedder end so; there: {trained}$"
    ):
        load.find_embedder("zzz", outputs)
    mistyped = trained.name[-8:-1] + "?"
    with pytest.raises(UserError, match=rf"did you mean run={trained.name}\?$"):
        load.find_embedder(mistyped, outputs)
    with pytest.raises(UserError, match="none under"):
        load.find_embedder("zzz", outputs / "nowhere")


def test_a_whole_name_is_not_taken_for_the_end_of_another_and_an_empty_one_names_none(tmp_path, monkeypatch):
    places = [tmp_path / name for name in ("tiny-1", "xtiny-1", "tiny-1/steps/000002", "xtiny-1/steps/000002")]
    for place in places:
        place.mkdir(parents=True)
        (place / "contract.json").write_text("{}")
    assert load.find_embedder("tiny-1", tmp_path) == places[0]
    assert load.find_embedder("tiny-1/steps/000002", tmp_path) == places[2]
    for ambiguous in ("ny-1", "000002"):
        with pytest.raises(UserError, match="several embedders end so"):
            load.find_embedder(ambiguous, tmp_path)
    monkeypatch.chdir(places[0])
    for name in ("", " "):
        with pytest.raises(UserError, match="run='.*: names no embedder; give its folder, or the end of its name"):
            load.find_embedder(name, tmp_path)


@pytest.mark.parametrize("choice", ["tiny", "minilm", "smollm2"])
def test_a_choice_of_a_model_has_the_settings_that_a_job_gives_it(choice):
    source = find_source(model=choice)
    assert source.model == compose_config([f"model={choice}"]).model and source.trained is None


def test_a_base_model_is_loaded_by_its_choice():
    same(load_embedder(model="tiny"), make_tiny("llama"))
    same(load_embedder(model="tiny", prompt="q: {text}"), make_tiny("llama").with_template("q: {text}"))


@pytest.mark.parametrize("choice", ["smolm2", "a=b", "tiny,minilm", "{", "../tiny", "'"])
def test_an_unknown_choice_is_named_with_all_that_are_there(choice):
    with pytest.raises(
        UserError, match="no such choice; model may be gemma, gemma3, minicpm, minilm, phi2, smollm2, tiny"
    ):
        load_embedder(model=choice)
    if choice == "smolm2":
        with pytest.raises(UserError, match=r"Did you mean smollm2\?"):
            load_embedder(model=choice)


def test_a_path_is_a_runs_folder_its_adapter_or_an_export_with_its_contract(trained, tmp_path):
    export.export(EXPORT.read([f"path={trained}", "format=peft", str(tmp_path / "peft")]))
    expected = Embedder.load(trained)
    for place in (trained, trained / "adapter", tmp_path / "peft"):
        found = load_embedder(path=place)
        same(found, expected)
        assert found.contract == expected.contract


def test_an_adapter_of_pefts_stands_on_the_base_model_that_it_names_or_that_is_said(trained, tmp_path, caplog):
    shutil.copytree(trained / "adapter", tmp_path / "lora")
    same(load_embedder(path=tmp_path / "lora"), Embedder.load(trained))
    assert "random:llama does not say how it embeds; assumed: pooling=last, an EOS behind every text" in caplog.text
    config = tmp_path / "lora" / "adapter_config.json"
    settings = json.loads(config.read_text())
    base = write_model(tmp_path / "base", "llama")
    config.write_text(json.dumps(settings | {"base_model_name_or_path": "/gone/model"}))
    with pytest.raises(UserError, match="^model_path=/gone/model: no such folder"):
        load_embedder(path=tmp_path / "lora")
    same(load_embedder(path=tmp_path / "lora", model_path=str(base)), Embedder.load(trained))
    config.write_text(json.dumps(settings | {"base_model_name_or_path": None}))
    with pytest.raises(UserError, match="does not name its base model; give it by model_path="):
        load_embedder(path=tmp_path / "lora")


def test_a_folder_of_sentence_transformers_embeds_as_it_was_published(tmp_path, caplog, monkeypatch):
    folder = write_model(tmp_path / "model", "llama")
    publish(folder, pooling="mean_tokens", length=24, query="Q: ", passage="P: ")
    with caplog.at_level(logging.WARNING):
        found = load_embedder(path=folder)
    assert not caplog.records
    prompts = Prompts("{text}", "Q: {text}", "P: {text}")
    same(found, make_tiny("llama", pooling="mean", append_eos=False, max_length=24).with_prompts(prompts))
    assert np.abs(found.encode(TEXTS) - load_embedder(model="tiny").encode(TEXTS)).max() > 1e-2
    # an export of it is such a folder too
    monkeypatch.setattr(portable, "sentence_transformers_difference", lambda folder, expected: None)
    export.export(EXPORT.read([f"path={folder}", str(tmp_path / "exported")]))
    same(load_embedder(path=tmp_path / "exported"), found, atol=1e-5)


def test_an_exported_run_gives_the_runs_vectors(trained, tmp_path, monkeypatch):
    monkeypatch.setattr(portable, "sentence_transformers_difference", lambda folder, expected: None)
    export.export(EXPORT.read([f"run={trained}", "prompt=q: {text} is:", str(tmp_path / "exported")]))
    expected = Embedder.load(trained).with_template("q: {text} is:")
    same(load_embedder(path=tmp_path / "exported"), expected, atol=1e-5)


@pytest.mark.parametrize("length", ["tokenizer", "positions"])
def test_a_length_that_is_not_recorded_is_its_tokenizers_or_its_positions(tmp_path, length):
    folder = write_model(tmp_path / "model", "llama")
    publish(folder, pooling="lasttoken", length=None)
    record = json.loads((folder / "tokenizer_config.json").read_text())
    record["model_max_length"] = 77 if length == "tokenizer" else 10**30
    (folder / "tokenizer_config.json").write_text(json.dumps(record))
    assert load_embedder(path=folder).contract.max_length == (77 if length == "tokenizer" else 256)


def test_a_pooling_that_cft_lacks_is_refused_by_path(tmp_path):
    folder = write_model(tmp_path / "model", "llama")
    publish(folder, pooling="max_tokens", length=24)
    with pytest.raises(UserError, match=r"^path=.*was published with pooling=max_tokens, which cft lacks"):
        load_embedder(path=folder)


@pytest.mark.parametrize(("architecture", "pooling"), [("llama", "last"), ("bert", "mean")])
def test_a_model_without_a_record_is_taken_as_its_kind_usually_is_and_that_is_said(
    tmp_path, caplog, architecture, pooling
):
    contract = load_embedder(path=write_model(tmp_path / "model", architecture)).contract
    assert contract.pooling is Pooling(pooling)
    assert contract.attention is (Attention.causal if architecture == "llama" else Attention.bidirectional)
    assert f"does not say how it embeds; assumed: pooling={pooling}" in caplog.text


def test_a_gguf_file_is_a_model(tmp_path):
    (tmp_path / "m.Q4.gguf").write_bytes(b"GGUF")
    source = find_source(path=tmp_path / "m.Q4.gguf")
    assert source.model == ModelSettings(name="m.Q4", path=str(tmp_path / "m.Q4.gguf")) and not source.configured


def test_what_cannot_be_read_is_refused_by_name(trained, tmp_path):
    (tmp_path / "a.bin").write_bytes(b"x")
    (tmp_path / "empty").mkdir()
    for place in (tmp_path / "a.bin", tmp_path / "empty"):
        with pytest.raises(UserError, match=r"is none that can be read; an embedder is a \.gguf file or a folder with"):
            load_embedder(path=place)
    with pytest.raises(UserError, match="^path=nowhere: no such folder or file"):
        load_embedder(path="nowhere")
    (tmp_path / "empty" / "config.json").write_text("{}")
    with pytest.raises(UserError, match=r"^path=.*needs config.json and \*.safetensors"):
        load_embedder(path=tmp_path / "empty")
    shutil.copy(trained / "adapter" / "adapter_config.json", tmp_path / "empty")
    with pytest.raises(UserError, match="holds a model and an adapter"):
        load_embedder(path=tmp_path / "empty")
    with pytest.raises(UserError, match="model_path=x: says where the base model of trained weights is"):
        load_embedder(model="tiny", model_path="x")


def test_a_base_model_has_no_adapter_to_export(tmp_path):
    for words in (["format=peft"], ["adapter=keep", f"path={write_model(tmp_path / 'base', 'llama')}"]):
        named = words if len(words) > 1 else ["model=tiny", *words]
        with pytest.raises(UserError, match="a base model alone has no adapter"):
            export.export(EXPORT.read([*named, str(tmp_path / "out")]))
        assert not (tmp_path / "out").exists()
