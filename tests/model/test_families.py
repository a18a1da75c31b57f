"""Every family gives the states that it gives one by one, on the kind of batch that a trial chose for it."""

import pytest
import torch
from conftest import make_tiny, one_by_one, write_model
from families import ENCODERS, PADDED, TREE, cases
from safetensors.torch import load_file, save_file

from cft.config.schema import Attention, Batches, LoraSettings, ModelSettings, Pooling
from cft.model.embedder import Embedder
from cft.model.lora import add_lora, trainable
from cft.system.errors import UserError
from cft.training.losses import info_nce

BATCH = [(2, 3, 4, 5), (2, 3, 4, 5, 6, 7), (2, 3), (9,), (2, 3, 4, 5), tuple(range(2, 30)), (2,) * 20]


def states(embedder, batch=BATCH):
    with torch.no_grad():
        return embedder.forward(embedder.layout(batch))


@pytest.mark.parametrize("family", cases([*TREE, *PADDED]))
def test_a_decoder_gives_its_one_by_one_states(family):
    embedder = make_tiny(family)
    expected = one_by_one(embedder, BATCH)
    assert expected.std() > 1e-2, "the reference must not be constant for the comparison to mean anything"
    assert torch.allclose(states(embedder), expected, atol=1e-5, rtol=0)


@pytest.mark.parametrize("family", TREE)
def test_families_whose_attention_can_be_exchanged_share_prefixes(family):
    batching = make_tiny(family).backbone.batching
    assert (batching.kind, batching.reason) == (Batches.tree, "")
    assert batching.difference < 1e-5


@pytest.mark.parametrize("family", cases(PADDED))
def test_families_whose_attention_cannot_be_exchanged_are_padded_and_say_why(family, caplog):
    reason = PADDED[family]
    caplog.set_level("INFO", logger="cft")
    batching = make_tiny(family).backbone.batching
    assert batching.kind is Batches.padded
    assert reason in batching.reason
    assert f"texts are padded instead of sharing prefixes: {batching.reason}" in caplog.text


@pytest.mark.parametrize(("family", "kind"), ENCODERS.items())
def test_an_encoder_gives_its_one_by_one_states(family, kind):
    embedder = make_tiny(family, attention=Attention.bidirectional)
    assert embedder.backbone.batching.kind.value == kind
    expected = one_by_one(embedder, BATCH)
    assert torch.allclose(states(embedder), expected, atol=1e-5, rtol=0)


def gradients(embedder, own_attention: bool) -> tuple[float, dict[str, torch.Tensor]]:
    """Loss of two triplets and the gradient of every LoRA weight; own attention runs them one by one."""
    lora = LoraSettings(rank=2, dropout=0.0, targets=["all-linear"])
    if own_attention:
        embedder.model.set_attn_implementation(embedder.backbone.batching.own_attention)
    model = add_lora(embedder.model, lora, seed=1)
    generator = torch.Generator().manual_seed(3)  # LoRA starts at zero: its first factor would have no gradient
    for name, weight in trainable(model).items():
        if "lora_B" in name:
            torch.nn.init.normal_(weight, std=0.1, generator=generator)
    batch = [(5, 6, 7, 1), (5, 6, 7, 8, 1), (5, 6, 1), (9, 4, 1), (5, 6, 7, 1), (9, 9, 9, 3, 1)]
    if own_attention:
        found = [model(input_ids=torch.tensor([s]), use_cache=False).last_hidden_state[0, -1] for s in batch]
        vectors = torch.stack(found)
    else:
        vectors = Embedder(model, embedder.backbone, embedder.contract).forward(embedder.layout(batch))
    loss = info_nce(vectors[:2], vectors[2:4], vectors[4:], temperature=0.05).loss
    loss.backward()
    return loss.item(), {name: weight.grad for name, weight in trainable(model).items() if weight.grad is not None}


@pytest.mark.parametrize("family", [*TREE, *(f for f in PADDED if f not in ("mamba", "falcon_h1", "minimax"))])
def test_training_gives_the_loss_and_gradients_of_texts_one_by_one(family):
    # In float64, where the family's code can: float32's rounding comes to 1e-4 of some gradients on random weights.
    dtype = torch.float32 if family in ("granitemoe", "mixtral", "gpt_oss", "xglm") else torch.float64
    settings = ModelSettings(path=f"random:{family}")
    loss, found = gradients(Embedder.base(settings, dtype=dtype), own_attention=False)
    expected_loss, expected = gradients(Embedder.base(settings, dtype=dtype), own_attention=True)
    assert loss == pytest.approx(expected_loss, rel=1e-5)
    assert found.keys() == expected.keys() and len(found) >= 8
    whole = torch.cat([gradient.flatten() for gradient in expected.values()]).norm()
    assert whole > 1e-3
    for name, gradient in expected.items():
        assert (found[name] - gradient).norm() < 1e-5 * whole, name


@pytest.mark.parametrize("family", ["llama", "gpt2", "qwen3", "mistral", "gemma", "phi"])
def test_a_decoder_can_look_both_ways(family):
    """As LLM2Vec does: the mask alone is lifted."""
    embedder = make_tiny(family, attention=Attention.bidirectional, pooling=Pooling.mean)
    trunk = embedder.model
    found = states(embedder)
    trunk.set_attn_implementation("sdpa")
    for row, sequence in enumerate(BATCH):
        everything = torch.ones(1, 1, len(sequence), len(sequence), dtype=torch.bool)
        with torch.no_grad():
            out = trunk(input_ids=torch.tensor([sequence]), attention_mask=everything, use_cache=False)
        assert torch.allclose(found[row], out.last_hidden_state[0].mean(dim=0), atol=1e-5, rtol=0)
    backwards = make_tiny(family, pooling=Pooling.mean)
    assert (states(backwards) - found).abs().max() > 1e-3, "both directions must differ from one"


def test_a_decoder_that_only_runs_padded_cannot_be_turned_around():
    with pytest.raises(UserError, match=r"model\.attention=bidirectional: .*BloomModel has no exchangeable attention"):
        make_tiny("bloom", attention=Attention.bidirectional)


def test_padded_batches_can_be_asked_for_and_give_the_same():
    tree, padded = make_tiny("llama"), make_tiny("llama", batches=Batches.padded)
    assert padded.backbone.batching.kind is Batches.padded
    assert torch.allclose(states(tree), states(padded), atol=1e-5, rtol=0)
    texts = ["one", "a text", "another text that is longer", "a text"] * 10
    assert abs(tree.encode(texts) - padded.encode(texts, token_budget=40)).max() < 1e-5


def test_a_tree_that_is_asked_for_and_would_be_wrong_is_refused():
    with pytest.raises(UserError, match=r"model\.batches=tree: this model does not run on prefix trees \(BloomModel"):
        make_tiny("bloom", batches=Batches.tree)


@pytest.mark.parametrize(("family", "key"), [("mistral", "sliding_window"), ("llama4_text", "attention_chunk_size")])
def test_a_window_shorter_than_a_text_may_be_is_left_to_the_models_own_attention(family, key, tmp_path):
    wide = write_model(tmp_path / "wide", family, **{key: 40})
    reason = Embedder.base(ModelSettings(path=str(wide))).backbone.batching.reason
    assert reason == f"its {key} of 40 tokens is shorter than model.max_length=150"
    folder = write_model(tmp_path / "narrow", family, **{key: 8})
    embedder = Embedder.base(ModelSettings(name=family, path=str(folder)))
    assert embedder.backbone.batching.kind is Batches.padded
    assert torch.allclose(states(embedder), one_by_one(embedder, BATCH), atol=1e-5, rtol=0)
    short = Embedder.base(ModelSettings(name=family, path=str(folder), max_length=8))
    assert short.backbone.batching.kind is Batches.tree
    # the window must matter, or this would show nothing
    assert (states(Embedder.base(ModelSettings(path=str(wide)))) - states(embedder)).abs().max() > 1e-4


def test_a_window_that_the_configuration_switches_off_does_not_count(tmp_path):
    folder = write_model(tmp_path, "qwen2", sliding_window=8, use_sliding_window=False)
    assert Embedder.base(ModelSettings(path=str(folder))).backbone.batching.kind is Batches.tree


def test_bfloat16_is_told_from_an_attention_that_is_wrong():
    for family, kind in (("llama", Batches.tree), ("gpt2", Batches.tree), ("bloom", Batches.padded)):
        embedder = Embedder.base(ModelSettings(path=f"random:{family}"), dtype=torch.bfloat16)
        assert embedder.backbone.batching.kind is kind
        assert embedder.backbone.batching.difference < 0.05


@pytest.mark.parametrize("family", ["llama", "phi", "gemma", "gpt2", "qwen3", "granite", "gpt_neox", "opt", "bert"])
@pytest.mark.parametrize("layer", [1, -3])
def test_a_layer_gives_the_hidden_states_that_transformers_names_by_it(family, layer, tmp_path):
    attention = Attention.bidirectional if family == "bert" else Attention.causal
    folder = write_model(tmp_path, family, num_hidden_layers=4)
    settings = {"path": str(folder), "attention": attention, "append_eos": family != "bert"}
    whole = Embedder.base(ModelSettings(**settings))
    cut = Embedder.base(ModelSettings(**settings, layer=layer))
    number = layer if layer > 0 else 5 + layer
    assert cut.model.config.num_hidden_layers == number
    whole.model.set_attn_implementation(whole.backbone.batching.own_attention)
    for row, sequence in zip(states(cut), BATCH, strict=True):
        with torch.no_grad():
            out = whole.model(input_ids=torch.tensor([sequence]), output_hidden_states=True, use_cache=False)
        assert torch.allclose(row, out.hidden_states[number][0, -1], atol=1e-5, rtol=0)


def test_minus_one_is_the_last_layer_by_another_name():
    assert ModelSettings(layer=-1) == ModelSettings(layer=None)


def test_the_last_layer_is_the_model_itself_with_its_norm():
    assert torch.equal(states(make_tiny("llama", layer=-1)), states(make_tiny("llama")))
    assert torch.equal(states(make_tiny("llama", layer=2)), states(make_tiny("llama")))


@pytest.mark.parametrize("layer", [3, -3])
def test_a_layer_that_does_not_exist_is_refused(layer):
    with pytest.raises(UserError, match=rf"model\.layer={layer}: this model has layers 1 to 2 \(or -1 to -2\)"):
        make_tiny("llama", layer=layer)


def test_a_checkpoint_without_all_its_tensors_is_refused_instead_of_filled_with_random_numbers(tmp_path):
    folder = write_model(tmp_path, "llama")
    tensors = load_file(folder / "model.safetensors")
    del tensors["layers.1.mlp.up_proj.weight"]
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(UserError, match=r"1 tensors of LlamaModel are not in the checkpoint .*layers\.1\.mlp\.up_proj"):
        Embedder.base(ModelSettings(path=str(folder)))


def test_a_checkpoint_whose_tensors_have_other_shapes_is_refused(tmp_path):
    folder = write_model(tmp_path, "llama")
    tensors = load_file(folder / "model.safetensors") | {"norm.weight": torch.ones(7)}
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(UserError, match=r"1 tensors of LlamaModel .* have another shape there \(norm\.weight\)"):
        Embedder.base(ModelSettings(path=str(folder)))


def test_tensors_that_no_embedding_runs_through_are_named(tmp_path):
    from transformers import AutoModelForCausalLM

    folder = write_model(tmp_path, "phi")
    config = make_tiny("phi").model.config
    config.tie_word_embeddings = False
    AutoModelForCausalLM.from_config(config).save_pretrained(folder)
    assert Embedder.base(ModelSettings(path=str(folder))).backbone.unused == ("lm_head.bias", "lm_head.weight")


def test_a_model_with_encoder_and_decoder_is_refused(tmp_path):
    folder = write_model(tmp_path, "llama")
    (folder / "config.json").write_text('{"model_type": "t5"}')
    for path in (str(folder), "random:t5"):
        with pytest.raises(UserError, match="t5 has an encoder and a decoder"):
            Embedder.base(ModelSettings(path=path))


@pytest.mark.parametrize("family", ["llama", "gpt2", "opt", "bert"])
def test_texts_longer_than_a_models_positions_are_refused_at_once(family, tmp_path):
    folder = write_model(tmp_path, family, max_position_embeddings=100)
    told = {"path": str(folder), "attention": Attention.bidirectional if family == "bert" else Attention.causal}
    with pytest.raises(UserError, match="model.max_length=150: this model has positions for 100 tokens only"):
        Embedder.base(ModelSettings(**told))
    longest = Embedder.base(ModelSettings(**told, max_length=100))
    assert longest.encode(["x" * 300]).shape == (1, 32)


def test_roberta_counts_its_positions_from_behind_its_padding(tmp_path):
    folder = write_model(tmp_path, "roberta", max_position_embeddings=100, pad_token_id=1)
    told = {"path": str(folder), "attention": Attention.bidirectional}
    with pytest.raises(UserError, match="this model has positions for 98 tokens only"):
        Embedder.base(ModelSettings(**told, max_length=99))
    assert Embedder.base(ModelSettings(**told, max_length=98)).encode(["x" * 300]).shape == (1, 32)


FACTORS = {"short_factor": [1.0] * 4, "long_factor": [1.5, 2.0, 3.0, 4.0]}
ROTARY = {"rope_theta": 10_000.0, "original_max_position_embeddings": 64}
BY_LONGEST = {
    "phi3": ("phi3", {"original_max_position_embeddings": 64, "rope_parameters": ROTARY | FACTORS}, "longrope"),
    "llama": ("llama", {"rope_parameters": ROTARY | FACTORS}, "longrope"),
    "old names": ("phi3", {"original_max_position_embeddings": 64, "rope_scaling": FACTORS}, "longrope"),
}


@pytest.mark.parametrize("case", BY_LONGEST)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_positions_that_depend_on_the_longest_text_of_a_batch_are_refused(case, dtype, tmp_path):
    family, settings, kind = BY_LONGEST[case]
    rope = {name: value | {"rope_type": kind, "type": kind} for name, value in settings.items() if "rope" in name}
    if case == "old names":
        rope["rope_parameters"] = None
    folder = write_model(tmp_path, family, **(settings | rope))
    with pytest.raises(UserError, match=r"model\.max_length=150: .*more than 64 tokens.* set model\.max_length=64"):
        Embedder.base(ModelSettings(path=str(folder)), dtype=dtype)
    embedder = Embedder.base(ModelSettings(path=str(folder), max_length=64), dtype=dtype)
    alone, beside = embedder.encode(["short"]), embedder.encode(["short", "x" * 300])
    assert abs(alone[0] - beside[0]).max() < 1e-6


@pytest.mark.parametrize("kind", ["yarn", "llama3", "linear", "dynamic"])
def test_positions_that_are_scaled_once_and_for_all_are_no_matter(kind, tmp_path):
    more = {"rope_type": kind, "factor": 4.0} | (
        {"low_freq_factor": 1.0, "high_freq_factor": 4.0} if kind == "llama3" else {}
    )
    folder = write_model(tmp_path, "llama", rope_parameters=ROTARY | more)
    embedder = Embedder.base(ModelSettings(path=str(folder)))
    assert abs(embedder.encode(["short"])[0] - embedder.encode(["short", "x" * 300])[0]).max() < 1e-6


@pytest.mark.parametrize("batches", ["tree", "padded"])
def test_the_trial_at_loading_crosses_the_length_of_the_longest_text(batches, monkeypatch):
    """A model that no rule knows: from 100 tokens in a batch on, every state is another."""
    from transformers import LlamaModel

    real = LlamaModel.forward

    def forward(self, input_ids=None, position_ids=None, **more):
        out = real(self, input_ids=input_ids, position_ids=position_ids, **more)
        longest = input_ids.shape[1] if position_ids is None else int(position_ids.max()) + 1
        if longest > 100:
            out.last_hidden_state = out.last_hidden_state + 0.05
        return out

    monkeypatch.setattr(LlamaModel, "forward", forward)
    with pytest.raises(
        UserError, match=r"gives a short text another state beside one of 150 tokens .*lower model\.max"
    ):
        make_tiny("llama", batches=Batches(batches))
    assert make_tiny("llama", batches=Batches(batches), max_length=100).encode(["x"]).shape == (1, 32)


@pytest.mark.parametrize("length", [2, 3, 7, 8])
def test_very_short_limits_are_tried_too(length):
    assert make_tiny("llama", max_length=length).encode(["some text"]).shape == (1, 32)


def test_a_file_that_is_no_safetensors_is_refused(tmp_path):
    folder = write_model(tmp_path, "llama")
    (folder / "model.safetensors").write_bytes(b"junk!")
    with pytest.raises(UserError, match="transformers cannot load it .*header too small"):
        Embedder.base(ModelSettings(path=str(folder)))


def test_a_folder_without_a_tokenizer_is_refused(tmp_path):
    folder = write_model(tmp_path, "qwen2")
    for path in folder.glob("tokenizer*"):
        path.unlink()
    with pytest.raises(UserError, match="holds no tokenizer files"):
        Embedder.base(ModelSettings(path=str(folder)))
