"""Exported embedders give the same vectors in the real libraries, or are refused."""

import json
import shutil
from dataclasses import replace

import numpy as np
import pytest
import torch
from conftest import make_tiny, write_model
from exports import exported, train
from transformers import AutoModel, AutoTokenizer

from cft.config.compose import compose_config
from cft.config.schema import Role
from cft.deploy import portable
from cft.deploy.encode import EncodeOptions, encode_file
from cft.deploy.load import load_embedder
from cft.deploy.portable import SAMPLES
from cft.model.embedder import Embedder
from cft.system.errors import UserError


def in_sentence_transformers(folder):
    package = pytest.importorskip("sentence_transformers", reason="sentence-transformers is not installed")
    return package.SentenceTransformer(str(folder), device="cpu")


@pytest.mark.parametrize("pooling", ["last", "mean", "weighted_mean"])
def test_sentence_transformers_gives_the_same_vectors(tmp_path, pooling):
    folder = train(tmp_path, "model=tiny", f"model.pooling={pooling}", "model.max_length=24")
    embedder = Embedder.load(folder)
    base = make_tiny("llama", pooling=pooling, max_length=24)
    assert np.abs(embedder.encode(SAMPLES) - base.encode(SAMPLES)).max() > 1e-3
    target, said = exported(folder, tmp_path)
    model = in_sentence_transformers(target)
    assert "sentence-transformers gives the same vectors" in said
    np.testing.assert_allclose(model.encode(list(SAMPLES)), embedder.encode(SAMPLES), atol=1e-5)
    assert model.max_seq_length == 24
    card = (target / "README.md").read_text()
    assert 'SentenceTransformer("FOLDER")' in card and "library_name: sentence-transformers" in card
    assert "from cft" not in card and "contract.json" not in card
    # of its own kind, without anything of ours
    assert {path.name for path in target.iterdir()} >= {"modules.json", "model.safetensors", "tokenizer.json"}


def test_the_card_names_the_prompt_that_the_export_has(tmp_path, trained):
    for form in ("peft", "merged"):
        target, _ = exported(trained, tmp_path, f"format={form}", "prompt=a|b: {text}", name=form)
        card = (target / "README.md").read_text()
        assert "\n| prompt of the embedder | `a\\|b: {text}` |\n" in card and "| prompt in training | none |" in card
    plain, _ = exported(trained, tmp_path, "format=peft", name="plain")
    assert "\n| prompt of the embedder | none |\n" in (plain / "README.md").read_text()


def test_a_chat_template_does_not_wrap_texts(tmp_path):
    base = write_model(tmp_path / "base", "llama")
    told = json.loads((base / "tokenizer_config.json").read_text())
    told["chat_template"] = "{% for message in messages %}<turn>{{ message['content'] }}{% endfor %}"
    (base / "tokenizer_config.json").write_text(json.dumps(told))
    assert AutoTokenizer.from_pretrained(base).chat_template
    folder = train(tmp_path, f"model.path={base}")
    target, _ = exported(folder, tmp_path)
    model = in_sentence_transformers(target)
    np.testing.assert_allclose(model.encode(list(SAMPLES)), Embedder.load(folder).encode(SAMPLES), atol=1e-5)


def test_minicpm_held_as_granite_round_trips(tmp_path):
    from minicpm_weights import SHAPES, random_tensors, settings, write_checkpoint

    base = tmp_path / "minicpm"
    base.mkdir()
    config = settings(SHAPES[1])
    write_checkpoint(base, config, random_tensors(config), 1)
    folder = train(tmp_path, f"model.path={base}")
    with pytest.raises(UserError, match="held by another class than its own"):
        exported(folder, tmp_path, "adapter=keep")
    target, _ = exported(folder, tmp_path)
    assert json.loads((target / "config.json").read_text())["model_type"] == "granite"
    model = in_sentence_transformers(target)
    np.testing.assert_allclose(model.encode(list(SAMPLES)), Embedder.load(folder).encode(SAMPLES), atol=1e-5)


def test_a_prompt_goes_along_and_is_put_on_by_default(tmp_path):
    folder = train(tmp_path, "model=tiny", "prompt.use=both", "prompt.template='query: {text}'")
    target, _ = exported(folder, tmp_path)
    model = in_sentence_transformers(target)
    expected = Embedder.load(folder).encode(SAMPLES)
    np.testing.assert_allclose(model.encode(list(SAMPLES)), expected, atol=1e-5)
    np.testing.assert_allclose(model.encode(list(SAMPLES), prompt_name="query"), expected, atol=1e-5)


@pytest.mark.parametrize("template", ["This sentence {text} means: ", "{text} is: "])
def test_words_behind_the_text_are_put_there_by_the_tokenizer(tmp_path, template):
    folder = train(tmp_path, "model=tiny", "prompt.use=after", f"prompt.template='{template}'")
    target, _ = exported(folder, tmp_path)
    expected = Embedder.load(folder).encode(SAMPLES)
    np.testing.assert_allclose(in_sentence_transformers(target).encode(list(SAMPLES)), expected, atol=1e-5)
    without = Embedder.load(folder).with_template("{text}").encode(SAMPLES)
    assert np.abs(expected - without).max() > 1e-3


def test_the_adapter_can_be_kept_beside_its_base_model(tmp_path):
    base = write_model(tmp_path / "base", "llama")
    folder = train(tmp_path, f"model.path={base}")
    target, said = exported(folder, tmp_path, "adapter=keep")
    assert f"an adapter on {base}" in said and not (target / "model.safetensors").exists()
    model = in_sentence_transformers(target)
    np.testing.assert_allclose(model.encode(list(SAMPLES)), Embedder.load(folder).encode(SAMPLES), atol=1e-5)
    untrained = Embedder.base(compose_config([f"model.path={base}"]).model).encode(SAMPLES)
    assert np.abs(model.encode(list(SAMPLES)) - untrained).max() > 1e-3


def test_a_base_model_that_was_moved_is_said_and_its_content_checked(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    write_model(tmp_path / "models" / "mini", "llama")
    folder = train(tmp_path, "model.path=models/mini")
    expected = Embedder.load(folder).encode(SAMPLES)
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    kept, _ = exported(folder, tmp_path, "adapter=keep")
    np.testing.assert_allclose(in_sentence_transformers(kept).encode(list(SAMPLES)), expected, atol=1e-5)
    (tmp_path / "models" / "mini").rename(tmp_path / "moved")
    (tmp_path / "texts.txt").write_text("\n".join(SAMPLES))
    with pytest.raises(UserError, match="model_path=FOLDER on the command line"):
        encode_file(EncodeOptions(str(tmp_path / "texts.txt"), str(tmp_path / "x.npy"), run=str(folder)))
    moved = EncodeOptions(
        str(tmp_path / "texts.txt"), str(tmp_path / "x.npy"), run=str(folder), model_path=str(tmp_path / "moved")
    )
    encode_file(moved)
    np.testing.assert_allclose(np.load(tmp_path / "x.npy"), expected, atol=1e-6)
    write_model(tmp_path / "moved", "llama", initializer_range=0.5)
    with pytest.raises(UserError, match="weights"):
        encode_file(replace(moved, output=str(tmp_path / "y.npy")))


def test_an_adapter_is_not_kept_beside_a_model_that_nobody_finds(tmp_path, trained):
    with pytest.raises(UserError, match="neither a folder nor on the hub"):
        exported(trained, tmp_path, "adapter=keep")


def test_a_model_trained_whole_is_exported_too(tmp_path):
    folder = train(tmp_path, "model=tiny", "lora=none", "lr=1e-3")
    target, said = exported(folder, tmp_path)
    assert "no coordinate of a unit vector moved by more than 0.0e+00" in said
    model = in_sentence_transformers(target)
    np.testing.assert_allclose(model.encode(list(SAMPLES)), Embedder.load(folder).encode(SAMPLES), atol=1e-5)


def test_the_merged_model_is_one_that_transformers_loads(tmp_path, trained):
    target, _ = exported(trained, tmp_path, "format=merged")
    model, tokenizer = AutoModel.from_pretrained(target), AutoTokenizer.from_pretrained(target)
    assert not (target / "modules.json").exists()
    with torch.no_grad():
        states = [
            model(**tokenizer(text, return_tensors="pt", truncation=True)).last_hidden_state[0, -1] for text in SAMPLES
        ]
    found = torch.nn.functional.normalize(torch.stack(states), dim=-1).numpy()
    np.testing.assert_allclose(found, Embedder.load(trained).encode(SAMPLES), atol=1e-5)


def test_the_adapter_alone_works_in_peft(tmp_path):
    from peft import PeftModel

    base = write_model(tmp_path / "base", "llama")
    folder = train(tmp_path, f"model.path={base}")
    target, said = exported(folder, tmp_path, "format=peft")
    assert str(base) in said and f'Embedder.load("{target}")' in said and "append the token 1 to each text" in said
    np.testing.assert_array_equal(Embedder.load(target).encode(SAMPLES), Embedder.load(folder).encode(SAMPLES))
    model = PeftModel.from_pretrained(AutoModel.from_pretrained(base), str(target)).eval()
    embedder = Embedder.load(folder)
    with torch.no_grad():
        states = [model(torch.tensor([ids])).last_hidden_state[0, -1] for ids in embedder.tokenize(SAMPLES)]
    found = torch.nn.functional.normalize(torch.stack(states), dim=-1).numpy()
    np.testing.assert_allclose(found, embedder.encode(SAMPLES), atol=1e-5)


def test_the_adapter_alone_is_told_with_all_that_peft_leaves_out(tmp_path):
    parts = ["model.layer=1", "model.attention=bidirectional", "prompt=query_passage", "prompt.use=both"]
    folder = train(tmp_path, *parts, "model.max_length=40")
    target, report = exported(folder, tmp_path, "format=peft")
    assert "stop after layer 1" in report and "see the whole text" in report and "longer than 40 tokens" in report
    assert "query: {text}" in report and "passage: {text}" in report
    card = (target / "README.md").read_text()
    assert (
        "| embedding | the last token's state after layer 1, scaled to length 1; each token sees the whole text |"
        in card
    )
    plain, report = exported(train(tmp_path / "other"), tmp_path, "format=peft", name="plain")
    assert "layer" not in report and "whole text" not in report and "words of the prompt" not in report
    assert "| embedding | the last token's state, scaled to length 1 |" in (plain / "README.md").read_text()


def test_the_adapter_alone_knows_where_its_base_model_is(tmp_path, monkeypatch):
    (tmp_path / "here" / "models").mkdir(parents=True)
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    write_model(tmp_path / "here" / "models" / "mini", "llama")
    folder = train(tmp_path / "here", "model.path=models/mini")
    expected = Embedder.load(folder).encode(SAMPLES)
    monkeypatch.chdir(tmp_path / "elsewhere")
    target, _ = exported(folder, tmp_path, "format=peft")
    np.testing.assert_array_equal(Embedder.load(target).encode(SAMPLES), expected)
    again, _ = exported(target, tmp_path, "format=peft", name="again")
    np.testing.assert_array_equal(Embedder.load(again).encode(SAMPLES), expected)
    moved = tmp_path / "moved"
    (tmp_path / "here" / "models" / "mini").rename(moved)
    with pytest.raises(UserError, match="is not there any more"):
        Embedder.load(target)
    told, _ = exported(folder, tmp_path, "format=peft", f"model_path={moved}", name="told")
    np.testing.assert_array_equal(Embedder.load(told).encode(SAMPLES), expected)


ROLES = ["model=tiny", "prompt=query_passage", "prompt.use=both", "loss.dimensions=[8,16]"]


def test_the_merged_model_has_its_prompts_beside_it_and_says_so(tmp_path):
    folder = train(tmp_path, *ROLES)
    target, said = exported(folder, tmp_path, "format=merged")
    prompts = json.loads((target / "config_sentence_transformers.json").read_text())["prompts"]
    assert "words before a text are the caller's too; they are in config_sentence_transformers.json" in said
    model, tokenizer = AutoModel.from_pretrained(target), AutoTokenizer.from_pretrained(target)
    trained = Embedder.load(folder)
    assert prompts["query"] != prompts["document"]
    for role, words in prompts.items():
        with torch.no_grad():
            rows = [tokenizer(words + text, return_tensors="pt", truncation=True) for text in SAMPLES]
            states = [model(**row).last_hidden_state[0, -1] for row in rows]
        found = torch.nn.functional.normalize(torch.stack(states), dim=-1).numpy()
        np.testing.assert_allclose(found, trained.in_role(Role(role)).encode(SAMPLES), atol=1e-5)
    one, said = exported(folder, tmp_path, "format=merged", "prompt=query: {text}", name="one")
    assert "tokenizer(['query: a text']" in said
    with_none, said = exported(folder, tmp_path, "format=merged", "prompt={text}", name="none")
    assert "words before" not in said and not (with_none / "config_sentence_transformers.json").exists()


@pytest.mark.parametrize(
    "settings",
    [[*ROLES, "model.pooling=weighted_mean"], ["model=tiny", "prompt.template='Q: {text} is:'", "prompt.use=both"]],
    ids=["roles", "words behind"],
)
def test_cft_reads_how_its_own_merged_model_embeds(tmp_path, settings, caplog):
    folder = train(tmp_path, *settings, "model.max_length=24")
    target, _ = exported(folder, tmp_path, "format=merged")
    loaded, embedder = load_embedder(path=str(target)), Embedder.load(folder)
    for role in Role:
        found, expected = (each.in_role(role).encode(SAMPLES) for each in (loaded, embedder))
        np.testing.assert_allclose(found, expected, atol=1e-5)
    assert "does not say how it embeds" not in caplog.text


@pytest.mark.parametrize("more", [[], ["format=merged"], ["adapter=keep"]], ids=["whole", "merged", "kept"])
def test_first_numbers_that_were_trained_stay_known(tmp_path, more, caplog):
    base = write_model(tmp_path / "base", "llama")
    folder = train(tmp_path, *ROLES[1:], f"model.path={base}")
    target, _ = exported(folder, tmp_path, *more)
    loaded = load_embedder(path=str(target))
    assert loaded.contract.dimensions == (8, 16)
    caplog.clear()
    assert loaded.encode(["a"], dimensions=8).shape == (1, 8) and "not trained to do" not in caplog.text
    loaded.encode(["a"], dimensions=4)
    assert "the first 8, 16 were" in caplog.text
    if not more:
        assert in_sentence_transformers(target).encode(["a"]).shape == (1, 32)
    plain, _ = exported(train(tmp_path / "plain", "model=tiny"), tmp_path, name="plainly")
    assert not (plain / "cft_dimensions.json").exists() and load_embedder(path=str(plain)).contract.dimensions == ()
    (plain / "cft_dimensions.json").write_text('{"dimensions": [8, "x"]}')
    assert load_embedder(path=str(plain)).contract.dimensions == ()


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["model.layer=1"], "cut after layer 1"),
        (["model.layer_weights=true"], "a weighted sum of all layers' states"),
        (["model.echo=true"], "a text goes in twice and is pooled the second time"),
        (["model.attention=bidirectional", "model.pooling=mean"], "looks backwards"),
    ],
)
def test_what_others_cannot_hold_is_refused_and_leaves_nothing(tmp_path, overrides, message):
    folder = train(tmp_path, "model=tiny", *overrides)
    with pytest.raises(UserError, match=message):
        exported(folder, tmp_path)
    assert not (tmp_path / "exported").exists() and not list(tmp_path.glob("tmp*"))


@pytest.mark.parametrize("more", [[], ["adapter=keep"], ["format=merged"]], ids=" ".join)
def test_what_was_trained_in_bfloat16_is_exported_as_float32_computes_it(tmp_path, more):
    base = write_model(tmp_path / "base", "llama")
    folder = train(tmp_path, f"model.path={base}", "train.precision=bf16")
    exact, rounded = (Embedder.load(folder, precision=each).encode(SAMPLES) for each in ("fp32", "trained"))
    target, report = exported(folder, tmp_path, *more)
    assert "(it was trained in bfloat16: these are its vectors under precision=fp32)" in report
    if not more or "adapter=keep" in more:
        found = in_sentence_transformers(target).encode(SAMPLES, normalize_embeddings=True)
        np.testing.assert_allclose(found, exact, atol=1e-5)
        assert np.abs(found - rounded).max() > 1e-4
    else:
        np.testing.assert_allclose(load_embedder(path=str(target)).encode(SAMPLES), exact, atol=1e-5)


@pytest.mark.parametrize("joined", ["s s", ". !"])
def test_words_behind_that_share_a_token_with_the_text_are_left_to_the_user(tmp_path, joined):
    """`s s` is seen on the words that are tried first, `. !` only on a sample that ends with a full stop."""
    base = write_model(tmp_path / "base", "llama")
    path = base / "tokenizer.json"
    tokenizer = json.loads(path.read_text())
    vocabulary = tokenizer["model"]["vocab"]
    vocabulary[joined.replace(" ", "")] = vocabulary.pop("Ń")  # some byte that no sample holds
    tokenizer["model"]["merges"] = [joined]
    path.write_text(json.dumps(tokenizer))
    folder = train(tmp_path, f"model.path={base}", "prompt.use=both", f"prompt.template='{{text}}{joined[-1]}'")
    with pytest.raises(UserError, match="words behind the text that share tokens.*prompt='{text}'"):
        exported(folder, tmp_path)
    assert not (tmp_path / "exported").exists()
    target, _ = exported(folder, tmp_path, "prompt={text}")
    expected = Embedder.load(folder).with_template("{text}").encode(SAMPLES)
    np.testing.assert_allclose(in_sentence_transformers(target).encode(list(SAMPLES)), expected, atol=1e-5)


def test_a_difference_over_there_is_an_error(tmp_path, trained, monkeypatch):
    monkeypatch.setattr(portable, "sentence_transformers_difference", lambda folder, expected: 0.01)
    with pytest.raises(UserError, match="other vectors of it"):
        exported(trained, tmp_path)
    assert not (tmp_path / "exported").exists()


def test_without_sentence_transformers_it_says_that_nobody_tried(tmp_path, trained, monkeypatch):
    monkeypatch.setattr(portable, "sentence_transformers_difference", lambda folder, expected: None)
    _, said = exported(trained, tmp_path)
    assert "not tried in sentence-transformers" in said


def test_another_prompt_goes_into_the_contract(tmp_path, trained):
    target, _ = exported(trained, tmp_path, "format=peft", "prompt=query: {text}")
    expected = Embedder.load(trained).with_template("query: {text}").encode(SAMPLES)
    np.testing.assert_array_equal(Embedder.load(target).encode(SAMPLES), expected)


def test_nothing_is_overwritten(tmp_path, trained):
    (tmp_path / "exported").mkdir()
    with pytest.raises(UserError, match="exists; name another folder"):
        exported(trained, tmp_path)


def test_a_tokenizer_that_gives_other_tokens_is_noticed(tmp_path):
    embedder = make_tiny("llama")
    tokenizer = portable.portable_tokenizer(embedder)
    tokenizer.save_pretrained(tmp_path)
    portable.check_tokens(embedder, tmp_path)
    shutil.rmtree(tmp_path)
    embedder.backbone.tokenizer.save_pretrained(tmp_path)  # which appends no EOS
    with pytest.raises(UserError, match="other tokens"):
        portable.check_tokens(embedder, tmp_path)
