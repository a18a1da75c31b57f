"""Texts that go in twice, and states of all layers by weights that are trained."""

import shutil
from dataclasses import asdict, replace

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from batches import assert_same, gradients, triplets, tuned
from conftest import make_tiny
from jobs import adapter_bytes, run_folder, settings
from peft import PeftModel
from safetensors.torch import load_file

from cft.config.schema import Batches, LossSettings, Pooling, Prompts, Role
from cft.deploy.export import ExportOptions, export
from cft.job import runner
from cft.job.plan import make_plan
from cft.model.contract import Contract
from cft.model.embedder import Embedder
from cft.model.layer_weights import TENSOR, add_layer_weights, layer_weights_of
from cft.model.tokenizer import byte_tokenizer
from cft.system import signals
from cft.system.errors import UserError
from cft.system.files import write_record
from cft.training.contrastive import BatchSetup, contrastive_backward
from cft.training.trainer import recompute_activations

EOS = byte_tokenizer().eos_token_id
TEXTS = ["abc", "abd", "a much longer text", "a much longer one", "x"]
POOLINGS = [Pooling.last, Pooling.mean, Pooling.weighted_mean]


def test_a_text_goes_in_twice_between_the_special_tokens_its_prompt_around_it():
    once, twice = make_tiny("llama"), make_tiny("llama", echo=True)
    for template in ("{text}", "so: {text} means "):
        (ids,) = once.with_template(template).tokenize(["abc"])
        (found,) = twice.with_template(template).tokenize(["abc"])
        assert found == (*ids[:-1], *ids[:-1], EOS)


@pytest.mark.parametrize("max_length", [10, 11])
def test_both_copies_are_cut_alike_and_keep_the_words_behind_the_text(max_length):
    embedder = make_tiny("llama", echo=True, max_length=max_length)
    (ids,) = embedder.tokenize(["0123456789"])
    room = (max_length - 1) // 2
    assert len(ids) == 2 * room + 1 and ids[:room] == ids[room:-1] and ids[-1] == EOS
    (prompted,) = embedder.with_template("{text}!").tokenize(["0123456789"])
    (alone,) = make_tiny("llama").tokenize(["0123456789"[: room - 1] + "!"])
    assert prompted == (*alone[:-1], *alone)
    fits, cut = "0" * room, "0" * (room + 1)
    assert (embedder.count_cut([fits]), embedder.count_cut([fits, cut])) == (0, 1)


def test_a_prompt_that_fills_half_of_the_length_leaves_no_room_and_says_how_much_it_needs():
    embedder = make_tiny("llama", echo=True, max_length=11)
    with pytest.raises(UserError, match=r"room for 5 in each of its copies.*raise model.max_length by 4 at least"):
        embedder.with_template("123456{text}")
    with pytest.raises(UserError, match="model.max_length=2 leaves no room"):
        make_tiny("llama", echo=True, max_length=2)


@pytest.mark.parametrize("pooling", POOLINGS)
@pytest.mark.parametrize("family", ["llama", "bloom"])
def test_only_the_second_occurrence_is_pooled_in_every_kind_of_batch(family, pooling):
    """The reference: each text alone under the model's own attention, its states averaged by hand."""
    embedder = make_tiny(family, echo=True, pooling=pooling)
    assert embedder.backbone.batching.kind is (Batches.tree if family == "llama" else Batches.padded)
    found = embedder.encode(TEXTS)
    once = make_tiny(family)
    trunk = once.model
    trunk.set_attn_implementation("eager")
    for text, vector in zip(TEXTS, found, strict=True):
        ids = once.tokenize([text])[0][:-1]
        with torch.no_grad():
            states = trunk(input_ids=torch.tensor([[*ids, *ids, EOS]])).last_hidden_state[0]
        second = states[len(ids) :]
        weights = {
            Pooling.last: torch.tensor([0.0] * len(ids) + [1.0]),
            Pooling.mean: torch.ones(len(second)),
            Pooling.weighted_mean: torch.arange(1.0, len(second) + 1),
        }[pooling]
        expected = F.normalize((second * weights[:, None]).sum(dim=0), dim=0)
        assert np.abs(vector - expected.numpy()).max() < 1e-5
    if pooling is not Pooling.last:
        whole = Embedder(embedder.model, embedder.backbone, replace(embedder.contract, echo=False))
        twice = whole.forward(whole.layout(embedder.tokenize(TEXTS)))
        assert np.abs(F.normalize(twice, dim=-1).detach().numpy() - found).max() > 1e-3


def test_sentence_transformers_pools_the_same_where_it_is_told_what_to_leave_out():
    pooling = pytest.importorskip("sentence_transformers.models").Pooling
    embedder = make_tiny("llama", echo=True, pooling=Pooling.mean)
    for ids in embedder.tokenize(TEXTS):
        layout = embedder.layout([ids])
        with torch.no_grad():
            states = embedder.hidden_states(layout)[-1]
        features = {"token_embeddings": states[None], "attention_mask": torch.ones(1, len(ids))}
        module = pooling(states.shape[-1], "mean", include_prompt=False)
        expected = module(features | {"prompt_length": len(ids) // 2})["sentence_embedding"]
        assert torch.allclose(embedder.pool(states, layout), expected, atol=1e-6)


def test_it_works_with_special_tokens_on_both_sides():
    embedder = make_tiny("llama", echo=True, pooling=Pooling.mean)
    contract = replace(embedder.contract, prefix_ids=(0, 0), suffix_ids=(1, 0, 1))
    around = Embedder(embedder.model, embedder.backbone, contract)
    sequences = around.tokenize(["abc", "a longer text"])
    assert sequences[0] == (0, 0, 66, 67, 68, 66, 67, 68, 1, 0, 1)
    layout = around.layout(sequences)
    states = torch.arange(float(layout.nodes))[:, None]
    for row, (ids, vector) in enumerate(zip(sequences, around.pool(states, layout), strict=True)):
        path = layout.paths[row, 2 + (len(ids) - 5) // 2 : len(ids)]
        assert float(vector) == pytest.approx(float(states[path].mean()))


TWICE = ["model.echo=true", "model.pooling=mean", "lr=1e-2"]
ALL_LAYERS = ["model.layer_weights=true", "model.pooling=mean", "lr=1e-2"]


def test_a_trained_one_keeps_it_in_its_contract_and_is_loaded_with_it(tmp_path):
    runner.run(settings(tmp_path, *TWICE, "prompt.query='ask: {text}'", "prompt.use=both"))
    folder = run_folder(tmp_path)
    embedder = Embedder.load(folder)
    assert embedder.contract.echo and embedder.contract.prompts == Prompts(query="ask: {text}")
    (ids,) = embedder.in_role(Role.query).tokenize(["a"])
    assert ids[: len(ids) // 2] == ids[len(ids) // 2 : -1]
    again = settings(tmp_path / "again", *TWICE[1:], f"adapter={folder}")
    with pytest.raises(
        UserError, match=r"echo: the contract says True, the loaded model has False(.|\n)*model.echo=true"
    ):
        runner.run(again)
    older = {name: value for name, value in asdict(embedder.contract).items() if name != "echo"}
    write_record(tmp_path / "older" / "contract.json", older)
    older = Contract.load(tmp_path / "older")
    assert older == replace(embedder.contract, echo=False)
    assert "echo" not in older.facts and embedder.contract.facts["echo"] is True
    assert "goes in twice, and is pooled the second time (echo)" in (folder / "README.md").read_text()


@pytest.mark.parametrize("job", [TWICE, ALL_LAYERS, [*ALL_LAYERS, "train.best=true"]], ids=str)
def test_a_killed_one_ends_with_the_same_bytes(tmp_path, job):
    job = [*job, "eval=none"]
    runner.run(settings(tmp_path / "whole", *job))

    def interrupt(row: dict) -> None:
        if row["event"] == "step" and row["step"] == 5:
            raise signals.Interrupted(15)

    with pytest.raises(signals.Interrupted):
        runner.run(settings(tmp_path / "killed", *job), on_row=interrupt)
    runner.run(settings(tmp_path / "killed", *job))
    assert adapter_bytes(tmp_path / "killed") == adapter_bytes(tmp_path / "whole")


@pytest.mark.parametrize("key", ["echo", "layer_weights"])
def test_only_a_job_that_uses_it_has_another_name(tmp_path, key):
    plans = [make_plan(settings(tmp_path, f"model.{key}={value}")) for value in ("false", "true")]
    assert key not in plans[0].base_facts and plans[1].base_facts[key] is True
    assert plans[0].folder != plans[1].folder and plans[0].base_folder != plans[1].base_folder


@pytest.mark.parametrize("pooling", POOLINGS)
@pytest.mark.parametrize("family", ["llama", "bloom", "gpt2"])
def test_the_states_of_all_layers_are_summed_by_their_weights(family, pooling):
    """The reference: transformers' hidden states of each text alone, put together by hand."""
    embedder = make_tiny(family, layer_weights=True, pooling=pooling)
    logits = torch.tensor([0.7, -0.4])
    layer_weights_of(embedder.model).load_state_dict({"logits": logits})
    found = embedder.encode(TEXTS)
    plain = make_tiny(family, pooling=pooling)
    plain.model.set_attn_implementation("eager")
    shares = logits.exp() / logits.exp().sum()
    for ids, vector in zip(plain.tokenize(TEXTS), found, strict=True):
        with torch.no_grad():
            states = plain.model(input_ids=torch.tensor([ids]), output_hidden_states=True).hidden_states[1:]
        assert len(states) == 2
        sizes = [each[0].norm(dim=-1, keepdim=True) / each.shape[-1] ** 0.5 for each in states]
        total = sum(share * each[0] / size for share, each, size in zip(shares, states, sizes, strict=True))
        weights = {
            Pooling.last: torch.tensor([0.0] * (len(ids) - 1) + [1.0]),
            Pooling.mean: torch.ones(len(ids)),
            Pooling.weighted_mean: torch.arange(1.0, len(ids) + 1),
        }[pooling]
        expected = F.normalize((total * weights[:, None]).sum(dim=0), dim=0)
        assert np.abs(vector - expected.numpy()).max() < 1e-5
    assert np.abs(make_tiny(family, pooling=pooling).encode(TEXTS) - found).max() > 1e-3


def test_an_untrained_one_has_all_layers_alike_and_one_far_ahead_alone():
    embedder = make_tiny("llama", layer_weights=True)
    weights = layer_weights_of(embedder.model)
    assert torch.equal(weights.logits, torch.zeros(2)) and not weights.logits.requires_grad
    weights.load_state_dict({"logits": torch.tensor([-50.0, 50.0])})
    assert np.abs(embedder.encode(TEXTS) - make_tiny("llama").encode(TEXTS)).max() < 1e-6


def test_recomputed_activations_give_the_same_gradient():
    batch, setup = triplets(4), BatchSetup(LossSettings())
    found = []
    for recomputed in (False, True):
        embedder = tuned(layer_weights=True, pooling=Pooling.mean)
        if recomputed:
            recompute_activations(embedder.model)
        contrastive_backward(embedder, batch, setup)
        found.append(gradients(embedder))
    assert "base_model.model.layer_weights.logits" in found[0]
    assert_same(found[1], found[0])


@pytest.mark.parametrize("lora", ["paper", "none"])
def test_trained_weights_of_layers_are_saved_loaded_and_trained_on(tmp_path, lora):
    job = [*ALL_LAYERS, "eval=none", f"lora={lora}", "train.weight_decay=0"]
    runner.run(settings(tmp_path / "first", *job))
    folder = run_folder(tmp_path / "first")
    embedder = Embedder.load(folder)
    logits = layer_weights_of(embedder.model).logits
    assert embedder.contract.layer_weights and logits.abs().max() > 1e-3 and not logits.requires_grad
    (path,) = (folder / "adapter").glob("*.safetensors")
    name = "layer_weights.logits" if lora == "none" else TENSOR
    assert torch.equal(load_file(path)[name], logits)
    runner.run(settings(tmp_path / "on", *job, f"adapter={folder}"))
    onward = layer_weights_of(Embedder.load(run_folder(tmp_path / "on")).model).logits
    assert (onward - logits).abs().max() > 1e-3
    embedder.save(tmp_path / "saved")
    assert (Embedder.load(tmp_path / "saved").encode(TEXTS) == embedder.encode(TEXTS)).all()
    with pytest.raises(UserError, match="layer_weights: the contract says True, the loaded model has False"):
        runner.run(settings(tmp_path / "off", *job[1:], f"adapter={folder}"))


def test_an_adapter_of_others_is_trained_on_with_weights_of_layers_that_begin_alike(tmp_path):
    runner.run(settings(tmp_path / "first", "eval=none", "lr=1e-2"))
    theirs = run_folder(tmp_path / "first") / "adapter"
    shutil.copytree(theirs, tmp_path / "theirs")
    job = [*ALL_LAYERS, "eval=none", f"adapter={tmp_path / 'theirs'}", "adapter_any_base=true"]
    runner.run(settings(tmp_path / "on", *job))
    assert layer_weights_of(Embedder.load(run_folder(tmp_path / "on")).model).logits.abs().max() > 1e-3


def test_peft_alone_loads_the_adapter_that_holds_them_too(tmp_path):
    runner.run(settings(tmp_path, *ALL_LAYERS))
    folder = run_folder(tmp_path)
    assert "mean of all tokens' states, of all layers' summed by trained weights" in (folder / "README.md").read_text()
    embedder, trunk = Embedder.load(folder), make_tiny("llama").model
    model = PeftModel.from_pretrained(trunk, str(folder / "adapter")).eval()
    layout = embedder.layout(embedder.tokenize(TEXTS))
    with torch.no_grad():
        found = model(**layout.inputs(), output_hidden_states=True).hidden_states
        for one, other in zip(found, embedder.hidden_states(layout), strict=True):
            assert torch.allclose(one.flatten(0, 1), other, atol=1e-6)
    said = export(ExportOptions(run=str(folder), output=tmp_path / "peft", format="peft"))
    assert f"weigh the states of all layers by the softmax of {TENSOR}" in said
    assert (Embedder.load(tmp_path / "peft").encode(TEXTS) == embedder.encode(TEXTS)).all()


def test_a_model_that_hides_its_layers_is_refused():
    embedder = make_tiny("llama")
    embedder.model.config.num_hidden_layers = 3
    with pytest.raises(
        UserError, match="does not give the states of all its layers.*leave model.layer_weights at false"
    ):
        add_layer_weights(embedder.model, embedder.backbone.batching)
