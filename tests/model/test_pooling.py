"""Texts that go in twice, and what is then pooled."""

from dataclasses import asdict, replace

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from conftest import make_tiny
from jobs import adapter_bytes, run_folder, settings

from cft.config.schema import Batches, Pooling, Prompts, Role
from cft.job import runner
from cft.job.plan import make_plan
from cft.model.contract import Contract
from cft.model.embedder import Embedder
from cft.model.tokenizer import byte_tokenizer
from cft.system import signals
from cft.system.errors import UserError
from cft.system.files import write_record

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


JOB = ["model.echo=true", "model.pooling=mean", "lr=1e-2"]


def test_a_trained_one_keeps_it_in_its_contract_and_is_loaded_with_it(tmp_path):
    runner.run(settings(tmp_path, *JOB, "prompt.query='ask: {text}'", "prompt.use=both"))
    folder = run_folder(tmp_path)
    embedder = Embedder.load(folder)
    assert embedder.contract.echo and embedder.contract.prompts == Prompts(query="ask: {text}")
    (ids,) = embedder.in_role(Role.query).tokenize(["a"])
    assert ids[: len(ids) // 2] == ids[len(ids) // 2 : -1]
    again = settings(tmp_path / "again", *JOB[1:], f"adapter={folder}")
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


def test_a_killed_one_ends_with_the_same_bytes(tmp_path):
    runner.run(settings(tmp_path / "whole", *JOB, "eval=none"))

    def interrupt(row: dict) -> None:
        if row["event"] == "step" and row["step"] == 4:
            raise signals.Interrupted(15)

    with pytest.raises(signals.Interrupted):
        runner.run(settings(tmp_path / "killed", *JOB, "eval=none"), on_row=interrupt)
    runner.run(settings(tmp_path / "killed", *JOB, "eval=none"))
    assert adapter_bytes(tmp_path / "killed") == adapter_bytes(tmp_path / "whole")


def test_only_a_job_that_uses_it_has_another_name(tmp_path):
    plans = [make_plan(settings(tmp_path, f"model.echo={value}")) for value in ("false", "true")]
    assert "echo" not in plans[0].base_facts and plans[1].base_facts["echo"] is True
    assert plans[0].folder != plans[1].folder and plans[0].base_folder != plans[1].base_folder
