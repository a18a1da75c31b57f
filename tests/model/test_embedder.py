"""Texts to token ids to vectors, and the contract they are held to."""

import dataclasses
import json

import numpy as np
import pytest
import torch
from conftest import make_tiny

from cft.config.schema import Attention, LoraSettings, Pooling
from cft.model import weights
from cft.model.contract import Contract
from cft.model.embedder import Embedder, pool
from cft.model.lora import add_lora, trainable
from cft.model.sources import ADAPTER_FOLDER
from cft.model.tokenizer import byte_tokenizer
from cft.system.errors import UserError

EOS = byte_tokenizer().eos_token_id


def test_eos_is_appended_once_and_truncation_keeps_it():
    short, long = make_tiny("llama", max_length=8).tokenize(["abc", "a text much longer than that"])
    assert len(short) == 4 and short[-1] == EOS and short.count(EOS) == 1
    assert len(long) == 8 and long[-1] == EOS and long.count(EOS) == 1


def test_the_template_stands_around_the_text(tiny):
    prompted = tiny.with_template("This sentence: {text} means: ")
    assert prompted.tokenize(["x"]) == tiny.tokenize(["This sentence: x means: "])


def test_a_text_that_holds_the_placeholder_is_not_a_template(tiny):
    assert tiny.with_template("{text} is: ").tokenize(["{text}"]) == tiny.tokenize(["{text} is: "])


def test_without_eos_the_last_word_is_embedded():
    (ids,) = make_tiny("llama", append_eos=False).tokenize(["ab"])
    assert len(ids) == 2 and EOS not in ids


@pytest.mark.parametrize("text", ["", "  ", "\n\t"])
def test_an_empty_text_is_refused_by_its_number(tiny, text):
    with pytest.raises(UserError, match="text 2 of 3 is empty"):
        tiny.encode(["a", text, "b"])


def test_what_is_no_text_is_refused_by_its_number(tiny):
    with pytest.raises(UserError, match="text 2 of 2 is no text but None"):
        tiny.encode(["a", None])


def test_encode_gives_unit_vectors_in_the_order_of_the_texts(tiny):
    texts = ["one", "two", "one", "three and more", "tw"]
    vectors = tiny.encode(texts)
    assert vectors.shape == (5, 32) and vectors.dtype == np.float32
    assert np.linalg.norm(vectors, axis=1) == pytest.approx(np.ones(5), abs=1e-6)
    assert (vectors[0] == vectors[2]).all()
    one_by_one = np.concatenate([tiny.encode([text]) for text in texts])
    assert np.abs(vectors - one_by_one).max() < 1e-6
    assert np.abs(vectors[0] - vectors[1]).max() > 1e-3, "different texts must differ for this to mean anything"


def test_small_token_budgets_change_nothing(tiny):
    texts = [f"text number {n} of the same beginning" for n in range(20)]
    assert np.abs(tiny.encode(texts) - tiny.encode(texts, token_budget=50)).max() < 1e-6


def test_one_text_instead_of_a_list_is_refused(tiny):
    with pytest.raises(UserError, match="put the one text into a list"):
        tiny.encode("abc")


def test_encoding_nothing_gives_nothing(tiny):
    assert tiny.encode([]).shape == (0, 32)


def test_an_attention_that_was_exchanged_behind_its_back_is_not_used(tiny):
    tiny.model.set_attn_implementation("sdpa")
    with pytest.raises(RuntimeError, match="attention is sdpa, but its batches were found exact with cft_tree"):
        tiny.encode(["a"])


def test_encode_leaves_the_model_in_training_mode_if_it_was(tiny):
    tiny.model.train()
    tiny.encode(["a"])
    assert tiny.model.training


def test_mean_pooling_is_the_mean_over_a_texts_own_tokens():
    embedder = make_tiny("llama", pooling=Pooling.mean)
    sequences = embedder.tokenize(["abc", "abd", "a much longer text"])
    with torch.no_grad():
        layout = embedder.layout(sequences)
        found = embedder.forward(layout)
        states = embedder.model(input_ids=layout.token_ids, position_ids=layout.positions, layout=layout)
    for row, sequence in enumerate(sequences):
        path = layout.paths[row, : len(sequence)]
        assert torch.allclose(found[row], states.last_hidden_state[0, path].mean(dim=0), atol=1e-6)


@pytest.mark.parametrize("pooling", [Pooling.mean, Pooling.weighted_mean, Pooling.last])
def test_a_model_in_bfloat16_is_pooled_in_float32(pooling):
    embedder = make_tiny("llama", pooling=pooling)
    layout = embedder.layout(embedder.tokenize(["abc", "abd", "a much longer text"]))
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
        found = embedder.forward(layout)
        states = embedder.model(**layout.inputs(), use_cache=False).last_hidden_state.flatten(0, 1)
    expected = pool(states, layout, pooling)  # outside autocast
    assert found.dtype == expected.dtype == torch.float32
    assert torch.equal(found, expected)


def test_a_vector_that_is_not_finite_is_refused(tiny):
    with torch.no_grad():
        tiny.model.norm.weight.fill_(float("nan"))
    with pytest.raises(UserError, match="the embedding of 'hello' is not finite"):
        tiny.encode(["hello"])


def tuned(folder, *, rank: int = 4) -> Embedder:
    """A tiny model whose LoRA does something, saved into a folder as a training would."""
    base = make_tiny("llama")
    model = add_lora(base.model, LoraSettings(rank=rank, dropout=0.0), seed=0)
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for weight in trainable(model).values():
            weight.add_(torch.randn(weight.shape, generator=generator) * 0.1)
    embedder = Embedder(model, base.backbone, base.contract.with_template("{text}!"))
    embedder.save(folder)
    return embedder


@pytest.mark.parametrize("rank", [4, 0], ids=["adapter", "whole model"])
def test_a_saved_embedder_loads_to_the_same_vectors(tmp_path, rank):
    expected = tuned(tmp_path, rank=rank).encode(["a text", "another"])
    loaded = Embedder.load(tmp_path)
    assert (loaded.encode(["a text", "another"]) == expected).all()
    assert loaded.contract.template == "{text}!"
    assert np.abs(make_tiny("llama").with_template("{text}!").encode(["a text", "another"]) - expected).max() > 1e-3


KINDS = {"an adapter over a whole model": (0, 4), "a whole model over an adapter": (4, 0)}


@pytest.mark.parametrize("kind", KINDS)
def test_saving_over_an_embedder_of_the_other_kind_leaves_nothing_of_it(tmp_path, kind):
    before, after = KINDS[kind]
    old = tuned(tmp_path / "it", rank=before).encode(["a text"])
    expected = tuned(tmp_path / "it", rank=after)
    assert np.abs(expected.encode(["a text"]) - old).max() > 1e-3
    loaded = Embedder.load(tmp_path / "it")
    assert (loaded.encode(["a text"]) == expected.encode(["a text"])).all()
    assert loaded.contract.adapter == tuned(tmp_path / "alone", rank=after).save(tmp_path / "alone")
    names = [{path.name for path in (tmp_path / each / ADAPTER_FOLDER).iterdir()} for each in ("it", "alone")]
    assert names[0] == names[1]


@pytest.mark.parametrize("kind", KINDS)
def test_saving_that_is_killed_leaves_no_other_embedder_that_loads(tmp_path, kind, monkeypatch):
    before, after = KINDS[kind]
    tuned(tmp_path, rank=before)
    whole = weights._remove
    message = "holds an adapter .* and a whole model .*: move the files of one"
    for cut, said in ((lambda *_: killed(), message), (lambda *of: (whole(*of), killed()), "are not those that their")):
        monkeypatch.setattr(weights, "_remove", cut)
        with pytest.raises(KeyboardInterrupt):
            tuned(tmp_path, rank=after)
        with pytest.raises(UserError, match=said):
            Embedder.load(tmp_path)
    monkeypatch.setattr(weights, "_remove", whole)
    expected = tuned(tmp_path, rank=after)
    assert (Embedder.load(tmp_path).encode(["a text"]) == expected.encode(["a text"])).all()


def killed():
    raise KeyboardInterrupt


def test_peft_itself_loads_the_saved_adapter(tmp_path):
    from peft import PeftModel

    expected = tuned(tmp_path)
    model = PeftModel.from_pretrained(make_tiny("llama").model, str(tmp_path / ADAPTER_FOLDER)).eval()
    other = Embedder(model, expected.backbone, expected.contract)
    assert (other.encode(["a text"]) == expected.encode(["a text"])).all()


@pytest.mark.parametrize(
    ("field", "value"),
    [("tokenizer", "0" * 16), ("weights", "random:phi"), ("suffix_ids", [7]), ("prefix_ids", [3])],
)
def test_a_model_that_breaks_the_contract_is_refused_by_field(tmp_path, field, value):
    tuned(tmp_path)
    edit_contract(tmp_path, **{field: value})
    with pytest.raises(UserError, match=rf"the embedding contract does not hold:\n  {field}: the contract says"):
        Embedder.load(tmp_path)


def test_weights_that_were_exchanged_are_refused(tmp_path):
    tuned(tmp_path)
    other = tmp_path / "other"
    tuned(other, rank=2)
    (other / ADAPTER_FOLDER / "adapter_model.safetensors").replace(
        tmp_path / ADAPTER_FOLDER / "adapter_model.safetensors"
    )
    with pytest.raises(UserError, match="are not those that their contract was written for"):
        Embedder.load(tmp_path)


def edit_contract(folder, **changes):
    """As another version of cft might have written it: with a checksum that fits."""
    path = folder / "contract.json"
    record = json.loads(path.read_text())
    del record["checksum"]
    path.write_text(json.dumps(record | changes))


def test_a_folder_without_a_contract_is_refused_by_name(tmp_path):
    with pytest.raises(UserError, match="holds no trained embedder: name the folder"):
        Embedder.load(tmp_path)


def test_a_contract_survives_its_file(tmp_path):
    contract = make_tiny("llama", pooling=Pooling.mean).contract
    contract.save(tmp_path)
    assert Contract.load(tmp_path) == contract


def test_a_contract_of_another_version_is_refused(tmp_path):
    make_tiny("llama").contract.save(tmp_path)
    edit_contract(tmp_path, colour="red")
    with pytest.raises(UserError, match=r"fields: colour"):
        Contract.load(tmp_path)


def test_a_maximum_length_without_room_for_text_is_refused():
    with pytest.raises(UserError, match="max_length=1 leaves no room"):
        dataclasses.replace(make_tiny("llama").contract, max_length=1)


def test_an_encoder_keeps_its_tokenizers_own_suffix():
    embedder = make_tiny("bert", attention=Attention.bidirectional, append_eos=False)
    (ids,) = embedder.tokenize(["ab"])
    assert len(ids) == 2
