"""Starting from trained weights: runs of ours, and adapters that others made with PEFT."""

import copy
import dataclasses
import json
import re
import shlex
import shutil

import numpy as np
import peft
import pytest
import torch
from conftest import make_tiny, write_model
from jobs import adapter_bytes, run_folder, scores, settings
from minicpm_weights import SHAPES, random_tensors, write_checkpoint
from minicpm_weights import settings as minicpm_settings
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM

from cft.config.schema import LoraSettings, ModelSettings, Pooling
from cft.job import runner
from cft.model.adapters import attach, fetch_adapter
from cft.model.embedder import Embedder
from cft.system.errors import UserError
from cft.training import trainer

TEXTS = ["A man is playing.", "A man is sleeping.", "No."]
WEIGHTS, CONFIG = "adapter_model.safetensors", "adapter_config.json"


def shaken(model):
    """The same PEFT model with an adapter that does something."""
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for weight in model.parameters():
            if weight.requires_grad:
                weight.add_(torch.randn(weight.shape, generator=generator) * 0.1)
    return model


def foreign(folder, family: str, *, config=None, base_name: str = "owner/base"):
    """An adapter as a stranger makes it: on the causal-LM model, saved by PEFT itself; returns their model too."""
    base = make_tiny(family)
    causal = AutoModelForCausalLM.from_config(copy.deepcopy(base.model.config))
    causal.base_model.load_state_dict(base.model.state_dict())
    causal.set_attn_implementation("sdpa")
    model = shaken(peft.get_peft_model(causal, config or peft.LoraConfig(r=4, target_modules=targets(family))))
    model.peft_config["default"].base_model_name_or_path = base_name
    model.save_pretrained(folder)
    return base, model.eval()


def targets(family: str) -> list[str]:
    return {"gpt2": ["c_attn"], "gpt_neox": ["query_key_value"]}.get(family, ["q_proj", "v_proj"])


def their_states(model, embedder, texts=TEXTS):
    trunk = model.get_base_model().base_model
    with torch.no_grad():
        ids = [torch.tensor([s]) for s in embedder.tokenize(texts)]
        return torch.stack([trunk(input_ids=i, use_cache=False).last_hidden_state[0, -1] for i in ids])


def our_states(embedder, texts=TEXTS):
    with torch.no_grad():
        return embedder.forward(embedder.layout(embedder.tokenize(texts)))


def named(base: Embedder, name: str = "owner/base") -> Embedder:
    return Embedder(base.model, base.backbone, dataclasses.replace(base.contract, model=name))


@pytest.mark.parametrize("family", ["llama", "phi", "gemma", "gpt2", "gpt_neox", "qwen3", "mistral"])
def test_a_strangers_adapter_embeds_as_their_own_model_does(family, tmp_path):
    base, theirs = foreign(tmp_path, family)
    expected = their_states(theirs, base)
    plain = our_states(base)
    found = attach(named(base), fetch_adapter(str(tmp_path), None))
    assert torch.allclose(our_states(found), expected, atol=1e-5, rtol=0)
    assert (expected - plain).abs().max() > 1e-3, "the adapter must do something for this to mean anything"
    assert found.contract.adapter == fetch_adapter(str(tmp_path), None).identity


def test_a_revision_of_a_folder_is_refused_as_it_would_not_be_looked_at(tmp_path):
    with pytest.raises(UserError, match="adapter_revision=abc: adapter=.* is a folder here, which has no revisions"):
        fetch_adapter(str(tmp_path), "abc")


def test_an_adapter_of_minicpms_own_code_goes_on_the_classes_that_hold_it(tmp_path):
    """Its names are those of a causal-LM model: base_model.model.model.layers.N.self_attn.q_proj."""
    config = minicpm_settings(SHAPES[1])
    (tmp_path / "base").mkdir()
    write_checkpoint(tmp_path / "base", config, random_tensors(config), 1)
    base = Embedder.base(ModelSettings(path=str(tmp_path / "base")))
    generator = torch.Generator().manual_seed(0)
    tensors = {}
    for layer in range(config["num_hidden_layers"]):
        for name, width in (("q_proj", 64), ("v_proj", 16)):
            prefix = f"base_model.model.model.layers.{layer}.self_attn.{name}"
            tensors[f"{prefix}.lora_A.weight"] = torch.randn(4, 64, generator=generator) * 0.1
            tensors[f"{prefix}.lora_B.weight"] = torch.randn(width, 4, generator=generator) * 0.1
    adapter = tmp_path / "adapter-of-minicpm"
    adapter.mkdir()
    save_file(tensors, adapter / WEIGHTS, metadata={"format": "pt"})
    record = {"peft_type": "LORA", "r": 4, "lora_alpha": 8, "target_modules": ["q_proj", "v_proj"]}
    record |= {"task_type": "CAUSAL_LM", "base_model_name_or_path": "../pretrained/base/"}
    (adapter / CONFIG).write_text(json.dumps(record))
    found = attach(base, fetch_adapter(str(adapter), None))
    # the same by adding the updates to the weights themselves
    merged = random_tensors(config)
    for name in list(tensors):
        if name.endswith("lora_A.weight"):
            target = name.removeprefix("base_model.model.").replace("lora_A.", "")
            merged[target] += 2 * tensors[name.replace("lora_A", "lora_B")] @ tensors[name]
    (tmp_path / "merged").mkdir()
    write_checkpoint(tmp_path / "merged", config, merged, 1)
    expected = our_states(Embedder.base(ModelSettings(path=str(tmp_path / "merged"))))
    assert torch.allclose(our_states(found), expected, atol=1e-4, rtol=1e-5)


Q, V = "self_attn.q_proj", "self_attn.v_proj"
FIRST = f"model.layers.0.{Q}"
CONFIGS = {
    "IA3": peft.IA3Config(target_modules=["k_proj", "v_proj", "down_proj"], feedforward_modules=["down_proj"]),
    "IA3 by whole names": peft.IA3Config(
        target_modules=[FIRST, "model.layers.1.mlp.down_proj"], feedforward_modules=["model.layers.1.mlp.down_proj"]
    ),
    "IA3 by a pattern": peft.IA3Config(
        target_modules=r".*\.(k_proj|down_proj)", feedforward_modules=r"model.*down_proj"
    ),
    "LoHa": peft.LoHaConfig(target_modules=["q_proj"], r=4),
    "LoHa with a pattern": peft.LoHaConfig(target_modules=["q_proj", "v_proj"], r=4, rank_pattern={FIRST: 2}),
    "LoKr": peft.LoKrConfig(target_modules=[f"model.layers.1.{V}"], r=4, alpha_pattern={"model.layers.1": 3}),
    "VeRA": peft.VeraConfig(target_modules=["q_proj"], r=4),
    "OFT": peft.OFTConfig(target_modules=[FIRST], oft_block_size=4),
    "LN tuning": peft.LNTuningConfig(target_modules=["model.layers.0.input_layernorm", "model.norm"]),
    "DoRA": peft.LoraConfig(target_modules=["q_proj", "v_proj"], r=4, use_dora=True, use_rslora=True),
    "pattern": peft.LoraConfig(target_modules=r"model\.layers\.1\.self_attn\.(q|v)_proj", r=4),
    "one layer": peft.LoraConfig(target_modules=["q_proj"], r=4, rank_pattern={"q_proj": 2}, layers_to_transform=[1]),
    "layers by a pattern": peft.LoraConfig(
        target_modules=["q_proj"], r=4, layers_to_transform=[0], layers_pattern="layers"
    ),
    "alpha of one layer": peft.LoraConfig(target_modules=["q_proj"], r=4, alpha_pattern={FIRST: 64}),
    "rank of one layer": peft.LoraConfig(target_modules=["q_proj"], r=4, rank_pattern={FIRST: 2}),
    "patterns with anchors": peft.LoraConfig(
        target_modules=["q_proj", "v_proj"],
        r=4,
        rank_pattern={r"^model\.layers\.0\..*v_proj": 2},
        alpha_pattern={r"model\.layers\.[01]\.self_attn\.q_proj": 1, "v_proj": 80},
    ),
    "whole names": peft.LoraConfig(target_modules=[FIRST, f"model.layers.1.{V}"], r=4),
    "names from the middle": peft.LoraConfig(target_modules=[f"layers.0.{Q}", "v_proj"], r=4),
    "excluded names": peft.LoraConfig(target_modules=["q_proj", "v_proj"], exclude_modules=[FIRST, "lm_head"], r=4),
    "excluded pattern": peft.LoraConfig(target_modules="all-linear", exclude_modules=r"model\.layers\.1\..*", r=4),
    "all linear": peft.LoraConfig(target_modules="all-linear", r=4),
    "with the head": peft.LoraConfig(target_modules=["q_proj", "lm_head"], r=4, alpha_pattern={"lm_head": 2, FIRST: 9}),
    "embeddings": peft.LoraConfig(target_modules=["q_proj", "embed_tokens"], r=4),
    "embeddings by their whole name": peft.LoraConfig(target_modules=["model.embed_tokens", FIRST], r=4),
    "biases": peft.LoraConfig(target_modules=["q_proj"], bias="lora_only", r=4),
}


@pytest.mark.parametrize("name", CONFIGS)
def test_an_adapter_embeds_here_as_peft_has_it_on_the_causal_model(name, tmp_path):
    base, theirs = foreign(tmp_path, "llama", config=CONFIGS[name])
    plain, expected = our_states(base), their_states(theirs, base)
    assert (expected - plain).abs().max() > 1e-3, "the adapter must do something for this to mean anything"
    attached = attach(named(base), fetch_adapter(str(tmp_path), None))
    assert torch.allclose(our_states(attached), expected, atol=1e-5, rtol=0)
    attached.encode(TEXTS)


@pytest.mark.parametrize("family", ["gpt2", "phi", "gpt_neox", "gemma"])
def test_names_are_translated_in_families_that_name_their_trunk_otherwise(family, tmp_path):
    base = make_tiny(family)
    last = targets(family)[0]
    places = [place for place, _ in base.model.named_modules() if place.endswith(f".{last}")]
    outer = base.model.base_model_prefix
    base, theirs = foreign(
        tmp_path,
        family,
        config=peft.LoraConfig(
            r=4, target_modules=[f"{outer}.{place}" for place in places], alpha_pattern={f"{outer}.{places[1]}": 64}
        ),
    )
    expected = their_states(theirs, base)
    assert torch.allclose(our_states(attach(named(base), fetch_adapter(str(tmp_path), None))), expected, atol=1e-5)


@pytest.mark.parametrize(
    ("config", "message"),
    [
        (peft.LoraConfig(r=4, target_modules=["q_proj"], modules_to_save=["norm"]), "replaces whole layers .*norm"),
        (
            peft.LoraConfig(r=4, target_modules=["q_proj"], trainable_token_indices=[1, 2]),
            "trains single tokens .*1, 2",
        ),
        (peft.LoraConfig(r=4, target_modules=["q_proj"], layer_replication=[(0, 1), (0, 2)]), "repeats layers"),
    ],
)
def test_an_adapter_that_changes_more_than_layers_in_their_place_is_refused(config, message, tmp_path):
    foreign(tmp_path, "llama", config=config)
    with pytest.raises(UserError, match=message):
        fetch_adapter(str(tmp_path), None)


def test_a_training_goes_on_from_an_adapter_with_patterns_as_it_is(tmp_path):
    config = peft.LoraConfig(r=8, lora_alpha=32, target_modules=["q_proj", "v_proj"], alpha_pattern={FIRST: 64})
    foreign(tmp_path / "adapter", "llama", base_name="random:llama", config=config)
    runner.run(settings(tmp_path, f"adapter={tmp_path / 'adapter'}", "train.steps=2"))
    record = json.loads((run_folder(tmp_path) / "adapter" / CONFIG).read_text())
    assert record["alpha_pattern"] == {f"layers.0.{Q}": 64}
    Embedder.load(run_folder(tmp_path)).encode(TEXTS)


def test_an_adapter_that_adds_tokens_instead_of_weights_is_refused(tmp_path):
    foreign(tmp_path, "llama", config=peft.PrefixTuningConfig(num_virtual_tokens=4, task_type="CAUSAL_LM"))
    with pytest.raises(UserError, match="of the kind PREFIX_TUNING, which adds tokens instead of weights"):
        fetch_adapter(str(tmp_path), None)


def test_updates_of_the_language_model_head_are_left_out_and_said(tmp_path, caplog):
    caplog.set_level("INFO", logger="cft")
    base, theirs = foreign(
        tmp_path, "llama", config=peft.LoraConfig(r=4, target_modules=["q_proj", "v_proj", "lm_head"])
    )
    expected = their_states(theirs, base)
    found = attach(named(base), fetch_adapter(str(tmp_path), None))
    assert torch.allclose(our_states(found), expected, atol=1e-5, rtol=0)
    assert "of its tensors belong to a language-model head" in caplog.text
    assert "all its tensors are in place and move embeddings by up to" in caplog.text


@pytest.mark.parametrize(
    ("base_name", "path", "fits"),
    [
        ("microsoft/phi-2", "microsoft/phi-2", True),
        ("../pretrained/Phi-2/", "microsoft/phi-2", True),
        ("C:\\models\\phi_2", "microsoft/phi-2", True),
        ("", "microsoft/phi-2", True),
        ("google/gemma-2b-it", "google/gemma-2b", False),
        ("openbmb/MiniCPM-2B-dpo-bf16", "microsoft/phi-2", False),
    ],
)
def test_an_adapter_that_names_another_base_is_refused_unless_told_otherwise(base_name, path, fits, tmp_path):
    base, _ = foreign(tmp_path, "llama", base_name=base_name)
    adapter = fetch_adapter(str(tmp_path), None)
    if not fits:
        message = rf"names {base_name} as its base model, and model\.path is {path}; .*adapter_any_base=true"
        with pytest.raises(UserError, match=message):
            attach(named(base, path), adapter)
    assert attach(named(base, path), adapter, any_base=not fits).contract.adapter == adapter.identity


def change_tensors(folder, change):
    tensors = load_file(folder / WEIGHTS)
    change(tensors)
    save_file(tensors, folder / WEIGHTS, metadata={"format": "pt"})


def lose_one(tensors):
    del tensors[sorted(tensors)[0]]


def one_too_many(tensors):
    tensors["base_model.model.model.layers.7.self_attn.q_proj.lora_A.weight"] = torch.zeros(4, 32)


def another_shape(tensors):
    name = sorted(tensors)[0]
    tensors[name] = torch.zeros(5, 32)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lose_one, r"first differences: .*layers\.0\.self_attn\.q_proj\.lora_A"),
        (one_too_many, r"first differences: .*layers\.7\.self_attn\.q_proj\.lora_A"),
        (another_shape, r"does not fit this base model: .*"),
    ],
)
def test_an_adapter_whose_tensors_do_not_all_find_their_place_is_refused(change, message, tmp_path):
    base, _ = foreign(tmp_path, "llama")
    change_tensors(tmp_path, change)
    with pytest.raises(UserError, match=message):
        attach(named(base), fetch_adapter(str(tmp_path), None))


def test_an_adapter_for_layers_that_the_model_has_not_is_refused(tmp_path):
    foreign(tmp_path, "gpt2")
    with pytest.raises(UserError, match=r"does not fit this base model: .*c_attn"):
        attach(named(make_tiny("llama")), fetch_adapter(str(tmp_path), None))


def test_an_adapter_that_changes_nothing_is_refused(tmp_path):
    base, _ = foreign(tmp_path, "llama")
    change_tensors(tmp_path, lambda tensors: [t.zero_() for name, t in tensors.items() if "lora_B" in name])
    with pytest.raises(UserError, match="changes no embedding: its updates are zero"):
        attach(named(base), fetch_adapter(str(tmp_path), None))


@pytest.mark.parametrize(
    ("files", "message"),
    [
        ({}, "needs adapter_config.json and adapter_model.safetensors, or the folder of a finished run$"),
        ({"adapter_model.bin": b"", CONFIG: b"{}"}, r"a pickled adapter_model\.bin is not loaded"),
        ({WEIGHTS: b"", CONFIG: b"not json"}, "cannot read .*adapter_config.json"),
        ({WEIGHTS: b"", CONFIG: b'{"peft_type": "NEW"}'}, "cannot read .*adapter_config.json"),
    ],
)
def test_a_folder_that_holds_no_adapter_is_refused(files, message, tmp_path):
    for name, content in files.items():
        (tmp_path / name).write_bytes(content)
    with pytest.raises(UserError, match=message):
        fetch_adapter(str(tmp_path), None)


def test_an_adapter_in_its_base_models_own_folder_is_meant_and_not_the_model(tmp_path):
    foreign(tmp_path, "llama")
    together = tmp_path / "together"
    write_model(together, "llama")
    for name in (CONFIG, WEIGHTS):
        shutil.copy(tmp_path / name, together / name)
    adapter = fetch_adapter(str(together), None)
    assert adapter.config.peft_type == "LORA"
    assert adapter.identity == fetch_adapter(str(tmp_path), None).identity


@pytest.mark.parametrize("name", ["./nowhere", "/nowhere/adapter", "nowhere", "outputs/nowhere"])
def test_an_adapter_that_is_nowhere_is_refused(name, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "outputs").mkdir()
    with pytest.raises(UserError, match="no such folder"):
        fetch_adapter(name, None)


def test_the_hub_is_asked_for_an_adapters_two_files_and_its_revision(tmp_path, monkeypatch):
    base, theirs = foreign(tmp_path, "phi", base_name="microsoft/phi-2")
    asked = {}
    monkeypatch.setattr(
        "huggingface_hub.snapshot_download", lambda name, **given: asked.update(given, name=name) or str(tmp_path)
    )
    adapter = fetch_adapter("trapoom555/Phi-2-Text-Embedding-cft", "abc")
    assert asked["name"] == "trapoom555/Phi-2-Text-Embedding-cft" and asked["revision"] == "abc"
    assert asked["allow_patterns"] == [CONFIG, WEIGHTS]
    expected = their_states(theirs, base)
    assert torch.allclose(our_states(attach(named(base, "microsoft/phi-2"), adapter)), expected, atol=1e-5, rtol=0)


# Runs of ours.


@pytest.fixture(scope="module")
def first_stage(tmp_path_factory):
    """A finished training's folder."""
    outputs = tmp_path_factory.mktemp("first")
    runner.run(settings(outputs))
    return run_folder(outputs)


@pytest.mark.parametrize("part", ["", "adapter"])
def test_a_run_of_ours_is_evaluated_by_its_folder(first_stage, part, tmp_path, caplog):
    caplog.set_level("INFO", logger="cft")
    said = runner.run(settings(tmp_path, f"adapter={first_stage / part}", "train.steps=0"))
    after = scores(first_stage.parent)["after"]["mean"]
    assert said == f"mean {after:.2f}"
    assert f"the adapter {first_stage / part} on tiny alone (train.steps=0)" in caplog.text


def test_training_goes_on_from_a_run_and_its_result_stands_alone(first_stage, tmp_path):
    second = settings(tmp_path, f"adapter={first_stage}", "seed=1")
    runner.run(second)
    found = scores(tmp_path)
    assert found["before"]["mean"] == pytest.approx(scores(first_stage.parent)["after"]["mean"], abs=1e-9)
    assert adapter_bytes(tmp_path) != (first_stage / "adapter" / WEIGHTS).read_bytes()
    loaded = Embedder.load(run_folder(tmp_path))  # needs nothing of the first stage
    assert np.abs(loaded.encode(TEXTS) - Embedder.load(first_stage).encode(TEXTS)).max() > 1e-4
    runner.run(settings(tmp_path / "fresh", "seed=1"))
    assert run_folder(tmp_path / "fresh").name != run_folder(tmp_path).name, "another start is another training"


@pytest.mark.parametrize(
    ("prompt", "said"),
    [
        ([], "the adapter was saved with the prompt '{text}: '; this job drops it (prompt.template='...' prompt.use="),
        (["prompt.template='{text}: '", "prompt.use=both"], "the adapter was saved with the prompt '{text}: '\n"),
    ],
)
def test_a_prompt_that_an_adapter_was_saved_with_is_not_dropped_in_silence(prompt, said, tmp_path, caplog):
    runner.run(settings(tmp_path / "first", "prompt.template='{text}: '", "prompt.use=after"))
    caplog.set_level("INFO", logger="cft")
    runner.run(settings(tmp_path, f"adapter={run_folder(tmp_path / 'first')}", "train.steps=0", *prompt))
    assert said in caplog.text


def test_the_first_step_of_a_second_stage_stands_on_the_first_stages_weights(first_stage, tmp_path, monkeypatch):
    starts = []
    step = trainer._step

    def spy(work, *rest, **more):
        starts.append({name: weight.detach().clone() for name, weight in work.weights.items()})
        return step(work, *rest, **more)

    monkeypatch.setattr(trainer, "_step", spy)
    runner.run(settings(tmp_path, f"adapter={first_stage}", "train.steps=1", "lora.dropout=0.5"))
    kept = load_file(first_stage / "adapter" / WEIGHTS)
    assert len(starts[0]) == len(kept)
    for name, weight in starts[0].items():
        assert torch.equal(weight, kept[name.replace(".default", "")]), name


def test_a_whole_model_is_trained_on_with_lora_none(tmp_path):
    whole = ["lora=none", "train.steps=2"]
    runner.run(settings(tmp_path / "one", *whole))
    first = run_folder(tmp_path / "one")
    runner.run(settings(tmp_path / "two", *whole, f"adapter={first}"))
    found = scores(tmp_path / "two")["before"]["mean"]
    assert found == pytest.approx(scores(tmp_path / "one")["after"]["mean"], abs=1e-9)
    with pytest.raises(UserError, match="is a whole model: train it on with lora=none"):
        runner.run(settings(tmp_path / "three", f"adapter={first}"))


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("model.pooling=mean", r"\n  pooling: the contract says 'last', .*\nits own settings: model\.pooling=last$"),
        ("model.max_length=99", r"max_length: the contract says 150, the loaded model has 99"),
        (
            "model.path=random:phi",
            r"model: the contract says 'random:llama'.*(?s:.*)its own settings: model\.path=random:llama",
        ),
        ("lora.rank=4", r"another LoRA than the one configured \(lora\.rank\); .* as it is: lora\.rank=8$"),
        ("lora.targets=[query]", r"as it is: 'lora\.targets=\[q_proj,v_proj\]'$"),
        ("lora=none", "is a LoRA: with lora=none it could not be trained on"),
    ],
)
def test_a_training_that_does_not_match_its_start_is_refused_first(first_stage, override, message, tmp_path):
    with pytest.raises(UserError, match=message):
        runner.run(settings(tmp_path, f"adapter={first_stage}", override))
    assert not list(tmp_path.rglob("metrics.json")), "nothing was evaluated before"


def test_what_an_error_says_to_do_works(tmp_path):
    foreign(
        tmp_path / "adapter", "llama", base_name="random:llama", config=peft.LoraConfig(r=2, target_modules=r".*k_proj")
    )
    given = [f"adapter={tmp_path / 'adapter'}", "train.steps=2"]
    with pytest.raises(UserError) as caught:
        runner.run(settings(tmp_path, *given))
    fix = shlex.split(re.search(r"as it is: (.*)$", str(caught.value))[1])
    assert fix == ["lora.rank=2", "lora.alpha=8", "lora.targets=[k_proj]"]
    runner.run(settings(tmp_path, *given, *fix))
    ours, theirs = (load_file(folder / WEIGHTS) for folder in (run_folder(tmp_path) / "adapter", tmp_path / "adapter"))
    assert ours.keys() == {name.replace("model.model.", "model.") for name in theirs}


def test_weights_that_were_exchanged_after_training_are_refused(first_stage, tmp_path):
    copy = tmp_path / "copy"
    shutil.copytree(first_stage, copy)
    change_tensors(copy / "adapter", lambda tensors: [t.mul_(2) for t in tensors.values()])
    with pytest.raises(UserError, match="are not those that their contract was written for"):
        fetch_adapter(str(copy), None)


def test_an_adapter_that_is_only_evaluated_is_not_trainable(first_stage):
    found = attach(make_tiny("llama"), fetch_adapter(str(first_stage), None))
    assert not trainer.trainable(found.model)
    going_on = attach(make_tiny("llama"), fetch_adapter(str(first_stage), None), lora=LoraSettings(dropout=0.3))
    assert set(trainer.trainable(going_on.model)) and going_on.model.peft_config["default"].lora_dropout == 0.3


def test_a_pooling_of_another_kind_is_not_what_the_adapter_was_made_for(first_stage):
    with pytest.raises(UserError, match="pooling: the contract says 'last', the loaded model has 'mean'"):
        attach(make_tiny("llama", pooling=Pooling.mean), fetch_adapter(str(first_stage), None))


def test_an_adapter_for_layers_that_are_cut_off_says_so(tmp_path):
    foreign(tmp_path, "llama")
    with pytest.raises(UserError, match="does not fit this base model .*; model.layer=1 drops the layers behind it"):
        attach(named(make_tiny("llama", layer=1)), fetch_adapter(str(tmp_path), None))


def test_a_run_named_without_its_place_is_guessed(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "outputs" / "tiny-files-0123").mkdir(parents=True)
    with pytest.raises(UserError, match=r"no such folder .*; did you mean adapter=outputs/tiny-files-0123\?$"):
        fetch_adapter("tiny-files-0123", None)
    with pytest.raises(UserError, match=r"OWNER/NAME\)$"):
        fetch_adapter("another", None)
