"""A GGUF file gives the embedder's vectors, or is refused; llama.cpp itself is met by benchmarks/llama_cpp.py."""

import numpy as np
import pytest
from exports import exported, train
from gguf import GGUFReader
from gguf_models import IN_TRANSFORMERS, write_gguf

from cft.config.schema import ModelSettings
from cft.deploy import export, gguf_file
from cft.deploy.portable import SAMPLES
from cft.export import COMMAND
from cft.model.embedder import Embedder
from cft.model.sources import convert_gguf
from cft.system.errors import UserError


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("CFT_CACHE", str(tmp_path / "cache"))


def of_file(path, **settings) -> Embedder:
    """The embedder that a GGUF file holds, as cft reads it."""
    return Embedder.base(ModelSettings(name="file", path=str(path), **settings))


def cosines(one, other):
    return (one.encode(SAMPLES) * other.encode(SAMPLES)).sum(axis=1)


@pytest.mark.parametrize("architecture", IN_TRANSFORMERS)
def test_every_architecture_gives_the_same_vectors(tmp_path, architecture):
    base = write_gguf(tmp_path / "base.gguf", architecture)
    folder = train(tmp_path, f"model.path={base}", "model.max_length=64")
    embedder = Embedder.load(folder)
    before = of_file(base, max_length=64)
    assert cosines(before, embedder).min() < 0.999, "the adapter must matter"
    target, said = exported(folder, tmp_path, "format=gguf", name="out.gguf")
    assert cosines(of_file(target, max_length=64), embedder).min() > 0.9999
    assert "read again by transformers, it gives the same tokens" in said


def test_the_file_says_how_a_text_becomes_a_vector(tmp_path):
    base = write_gguf(tmp_path / "base.gguf", "llama")
    for pooling, number in (("last", 3), ("mean", 1)):
        folder = train(tmp_path / pooling, f"model.path={base}", f"model.pooling={pooling}")
        target, _ = exported(folder, tmp_path / pooling, "format=gguf", name="out.gguf")
        fields = {name: field.contents() for name, field in GGUFReader(target).fields.items()}
        assert fields["llama.pooling_type"] == number
        assert fields["tokenizer.ggml.add_eos_token"] is True and fields["tokenizer.ggml.add_bos_token"] is False
        assert fields["tokenizer.ggml.eos_token_id"] == 0
        known = {name: field.contents() for name, field in GGUFReader(base).fields.items()}
        own = {"llama.pooling_type", "general.name", "general.file_type", "tokenizer.ggml.add_eos_token"}
        same = known.keys() - own - {"GGUF.kv_count"}
        assert {name: fields[name] for name in same} == {name: known[name] for name in same}


@pytest.mark.parametrize(("precision", "kinds"), [("f32", {0}), ("f16", {0, 1}), ("q8_0", {0, 8})])
def test_precisions(tmp_path, precision, kinds):
    base = write_gguf(tmp_path / "base.gguf", "llama")
    folder = train(tmp_path, f"model.path={base}")
    target, _ = exported(folder, tmp_path, "format=gguf", f"dtype={precision}", name="out.gguf")
    assert {int(tensor.tensor_type) for tensor in GGUFReader(target).tensors} == kinds
    assert cosines(of_file(target), Embedder.load(folder)).min() > gguf_file._LEAST_COSINE[precision]


def test_what_was_trained_in_bfloat16_is_written_as_float32_computes_it(tmp_path):
    """Its own vectors are rounded otherwise, by more than the check of what was written allows."""
    base = write_gguf(tmp_path / "base.gguf", "llama")
    folder = train(tmp_path, f"model.path={base}", "train.precision=bf16")
    target, report = exported(folder, tmp_path, "format=gguf", "dtype=f32", name="out.gguf")
    assert cosines(of_file(target), Embedder.load(folder, precision="fp32")).min() > gguf_file._LEAST_COSINE["f32"]
    assert cosines(of_file(target), Embedder.load(folder)).min() < gguf_file._LEAST_COSINE["f32"]
    assert "(it was trained in bfloat16: these are its vectors under precision=fp32)" in report


def test_a_base_that_came_otherwise_takes_settings_and_tokenizer_of_a_named_file(tmp_path):
    base = write_gguf(tmp_path / "base.gguf", "qwen2")
    convert_gguf(base, tmp_path / "folder")
    folder = train(tmp_path, f"model.path={tmp_path / 'folder'}")
    with pytest.raises(UserError, match=r"did not come as a GGUF file.*base_gguf=FILE\.gguf.*convert_hf_to_gguf"):
        exported(folder, tmp_path, "format=gguf", name="out.gguf")
    other = write_gguf(tmp_path / "llama.gguf", "llama")
    with pytest.raises(UserError, match="the GGUF file is not of this base model: .*bias has the shape"):
        exported(folder, tmp_path, "format=gguf", f"base_gguf={other}", name="out.gguf")
    assert not list(tmp_path.glob("*out.gguf*")), "nothing half written"
    target, _ = exported(folder, tmp_path, "format=gguf", f"base_gguf={base}", name="out.gguf")
    assert cosines(of_file(target), Embedder.load(folder)).min() > 0.9999


@pytest.mark.parametrize("architecture", ["llama", "gemma3"])
def test_weights_in_another_form_are_found_out(tmp_path, monkeypatch, architecture):
    base = write_gguf(tmp_path / "base.gguf", architecture)
    folder = train(tmp_path, f"model.path={base}")
    monkeypatch.setattr(gguf_file, "_in_form", lambda weight, *_: weight)
    with pytest.raises(UserError, match="the file gives other vectors .* it is not written"):
        exported(folder, tmp_path, "format=gguf", name="out.gguf")
    assert not list(tmp_path.glob("*out.gguf*"))


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (["model.pooling=weighted_mean"], "pooling=weighted_mean, which llama.cpp does not know"),
        (
            ["prompt.query='query: {text}'", "prompt.use=both"],
            "prompts .*, for which a GGUF file has no place: export under",
        ),
        (["model.layer=1"], "cut after layer 1"),
        (["model.layer_weights=true"], "a weighted sum of all layers' states"),
        (["model.echo=true"], "a text goes in twice and is pooled the second time"),
        (["model.attention=bidirectional"], "run it backwards only"),
    ],
)
def test_what_the_file_cannot_hold_is_refused(tmp_path, settings, message):
    base = write_gguf(tmp_path / "base.gguf", "llama")
    folder = train(tmp_path, f"model.path={base}", *settings)
    with pytest.raises(UserError, match=message):
        exported(folder, tmp_path, "format=gguf", name="out.gguf")
    assert not list(tmp_path.glob("*out.gguf*"))


def test_a_prompt_is_left_to_the_caller_where_one_says_so(tmp_path):
    base = write_gguf(tmp_path / "base.gguf", "llama")
    folder = train(tmp_path, f"model.path={base}", "prompt.query='query: {text}'", "prompt.use=both")
    target, _ = exported(folder, tmp_path, "format=gguf", "prompt={text}", name="out.gguf")
    texts = [f"query: {text}" for text in SAMPLES[:2]]
    own = Embedder.load(folder).encode_query(list(SAMPLES[:2]))
    assert (of_file(target).encode(texts) * own).sum(axis=1).min() > 0.9999


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["format=gguf", "folder"], "folder: format=gguf writes one file, whose name ends in .gguf"),
        (["dtype=f32", "folder"], "dtype=f32 would not be read: add format=gguf"),
        (["base_gguf=x.gguf", "folder"], "base_gguf=x.gguf would not be read: add format=gguf"),
        (["format=gguf", "dtype=q4_0", "x.gguf"], "dtype=q4_0"),
        (["format=gguf", "adapter=keep", "x.gguf"], "adapter=keep goes with format=sentence-transformers"),
        (["format=gguf", "base_gguf=none.gguf", "x.gguf"], "base_gguf=none.gguf: no such file"),
    ],
)
def test_settings_that_do_not_go_together_are_refused(tmp_path, monkeypatch, words, message):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UserError, match=message):
        export.export(COMMAND.read(["model=tiny", *words]))


def test_a_damaged_base_and_an_unknown_architecture_are_refused(tmp_path):
    damaged = tmp_path / "damaged.gguf"
    damaged.write_bytes(b"GGUF" + bytes(40))
    with pytest.raises(UserError, match="damaged.gguf is no GGUF file that can be read"):
        gguf_file.open_base(damaged)
    content = write_gguf(tmp_path / "llama.gguf", "llama").read_bytes()
    (tmp_path / "other.gguf").write_bytes(content.replace(b"llama", b"mamba", 1).replace(b"llama", b"mamba", 1))
    with pytest.raises(UserError, match="of the architecture mamba, and cft writes llama, .*convert_hf_to_gguf"):
        gguf_file.open_base(tmp_path / "other.gguf")


def test_a_file_that_exists_is_not_written_over(tmp_path):
    (tmp_path / "x.gguf").write_bytes(b"mine")
    with pytest.raises(UserError, match="exists; name another file"):
        export.export(COMMAND.read(["model=tiny", "format=gguf", str(tmp_path / "x.gguf")]))
    assert (tmp_path / "x.gguf").read_bytes() == b"mine"


def test_a_base_model_alone_is_written_too(tmp_path):
    base = write_gguf(tmp_path / "base.gguf", "llama")
    target = tmp_path / "out.gguf"
    export.export(COMMAND.read([f"path={base}", "format=gguf", "dtype=f32", str(target)]))
    assert np.abs(of_file(target).encode(SAMPLES) - of_file(base).encode(SAMPLES)).max() < 1e-5
