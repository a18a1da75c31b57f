"""An ONNX graph gives the embedder's vectors in onnxruntime, at any length and batch size, or is refused."""

import json
import shutil
from dataclasses import replace

import numpy as np
import pytest
import torch
from conftest import make_tiny, write_model
from exports import exported, train
from packaging.version import Version
from tokenizers import Tokenizer
from transformers import AutoTokenizer, BertTokenizer

from cft.config.schema import Attention, Pooling, Role
from cft.deploy import export, onnx_file, portable
from cft.deploy.load import load_embedder
from cft.export import COMMAND
from cft.model.contract import Contract
from cft.model.embedder import Embedder
from cft.system.errors import UserError

for package in ("onnx", "onnxscript", "onnxruntime"):
    pytest.importorskip(package, reason=f"{package} is not installed (the extra `onnx`)")
pytestmark = pytest.mark.skipif(
    Version(torch.__version__) < Version("2.13"), reason="torch's exporter was tried from torch 2.13 on"
)

# Of other lengths, and other numbers of texts, than those that the graph was made and checked with.
TEXTS = [
    "no",
    *(" ".join(["word", "and", "another"] * count) for count in (1, 4, 9)),
    "😀",
    "a",
    "b c",
    "Zwölf Boxkämpfer",
]


class Client:
    """What a user writes who has the folder, transformers and onnxruntime."""

    def __init__(self, folder):
        import onnxruntime

        self.session = onnxruntime.InferenceSession(folder / "model.onnx")
        self.tokenizer = AutoTokenizer.from_pretrained(folder)

    def encode(self, texts):
        rows = self.tokenizer(texts, padding=True, truncation=True, return_tensors="np")
        return self.session.run(["sentence_embedding"], dict(rows))[0]


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """A trained Llama with words for queries, and words behind every text."""
    prompts = ["prompt.use=both", "prompt.template='{text} !'", "prompt.query='ask: {text} !'"]
    return train(tmp_path_factory.mktemp("run"), "model=tiny", "model.max_length=40", *prompts)


@pytest.fixture(scope="module")
def folder(run, tmp_path_factory):
    """Its export, and what was said of it."""
    return exported(run, tmp_path_factory.mktemp("graph"), "format=onnx")


def test_any_client_gets_the_finished_vectors(run, folder):
    embedder, client = Embedder.load(run), Client(folder[0])
    base = load_embedder(model="tiny").with_prompts(embedder.contract.prompts)
    expected = embedder.encode(TEXTS)
    assert np.abs(expected - base.encode(TEXTS)).max() > 1e-3, "the adapter must matter"
    np.testing.assert_allclose(client.encode(TEXTS), expected, atol=1e-4)
    for size in (1, 2, 3):
        batches = [client.encode(TEXTS[start : start + size]) for start in range(0, len(TEXTS), size)]
        np.testing.assert_allclose(np.concatenate(batches), expected, atol=1e-4)
    np.testing.assert_allclose(np.linalg.norm(client.encode(TEXTS), axis=1), 1, atol=1e-5)
    assert "onnxruntime gives the same vectors to" in folder[1]


def test_padding_changes_nothing(folder):
    client = Client(folder[0])
    rows = client.tokenizer(TEXTS[:1], return_tensors="np")
    padded = {name: np.pad(rows[name], ((0, 0), (0, 30))) for name in rows}
    found = client.session.run(["sentence_embedding"], padded)[0]
    np.testing.assert_allclose(found, client.session.run(["sentence_embedding"], dict(rows))[0], atol=1e-6)


def test_words_before_a_text_are_in_a_file_and_those_behind_it_in_the_tokenizer(run, folder):
    prompts = json.loads((folder[0] / "config_sentence_transformers.json").read_text())["prompts"]
    assert prompts == {"text": "", "query": "ask: ", "document": ""}
    found = Client(folder[0]).encode([prompts["query"] + text for text in TEXTS])
    np.testing.assert_allclose(found, Embedder.load(run).encode_query(TEXTS), atol=1e-4)
    assert "words before a text, by its role, are in config_sentence_transformers.json" in folder[1]


def test_what_was_trained_in_bfloat16_is_exported_as_float32_computes_it(tmp_path):
    folder = train(tmp_path, "model=tiny", "train.precision=bf16")
    target, report = exported(folder, tmp_path, "format=onnx")
    found, exact = Client(target).encode(TEXTS), Embedder.load(folder, precision="fp32").encode(TEXTS)
    np.testing.assert_allclose(found, exact, atol=1e-5)
    assert np.abs(found - Embedder.load(folder).encode(TEXTS)).max() > 1e-4
    assert Contract.load(target).dtype == "float32"
    assert "(it was trained in bfloat16: these are its vectors under precision=fp32)" in report


def test_the_inputs_and_outputs_are_dynamic_and_named(folder):
    session = Client(folder[0]).session
    assert [(each.name, each.shape, each.type) for each in session.get_inputs()] == [
        ("input_ids", ["batch", "length"], "tensor(int64)"),
        ("attention_mask", ["batch", "length"], "tensor(int64)"),
    ]
    assert [(each.name, each.shape) for each in session.get_outputs()] == [
        ("sentence_embedding", ["batch", 32]),
        ("token_embeddings", ["batch", "length", 32]),
    ]


def test_tokenizer_json_alone_cuts_and_pads(run, folder):
    tokenizer = Tokenizer.from_file(str(folder[0] / "tokenizer.json"))
    rows = tokenizer.encode_batch(TEXTS)
    inputs = {
        "input_ids": np.array([row.ids for row in rows]),
        "attention_mask": np.array([row.attention_mask for row in rows]),
    }
    assert inputs["input_ids"].shape[1] == 40
    found = Client(folder[0]).session.run(["sentence_embedding"], inputs)[0]
    np.testing.assert_allclose(found, Embedder.load(run).encode(TEXTS), atol=1e-4)


def test_segment_ids_of_a_bert_tokenizer_are_not_wanted(tmp_path, monkeypatch):
    """BERT's own tokenizer gives them, and onnxruntime refuses an input that the graph lacks."""
    vocabulary = tmp_path / "vocab.txt"
    vocabulary.write_text("\n".join(["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "a", "text"]))
    tokenizer = BertTokenizer.from_pretrained(tmp_path)
    assert "token_type_ids" in tokenizer("a text")
    embedder = make_tiny("bert", attention=Attention.bidirectional)
    monkeypatch.setattr(portable, "check_tokens", lambda *_: None)  # its tokens are not this embedder's
    onnx_file._write_tokenizer(
        Embedder(embedder.model, replace(embedder.backbone, tokenizer=tokenizer), embedder.contract), tmp_path
    )
    assert set(AutoTokenizer.from_pretrained(tmp_path)("a text")) == {"input_ids", "attention_mask"}


def test_the_folder_holds_what_is_needed_and_nothing_of_this_machine(run, folder):
    assert {path.name for path in folder[0].iterdir()} == {
        "model.onnx", "tokenizer.json", "tokenizer_config.json", "config_sentence_transformers.json", "contract.json",
        "README.md",
    }  # fmt: skip
    assert Contract.load(folder[0]) == Embedder.load(run).contract
    graph = (folder[0] / "model.onnx").read_bytes()
    assert b"site-packages" not in graph and b".py" not in graph
    card = (folder[0] / "README.md").read_text()
    assert 'onnxruntime.InferenceSession("FOLDER/model.onnx")' in card and "from cft" not in card


def test_cft_does_not_take_it_for_an_embedder(folder):
    with pytest.raises(UserError, match=r"holds an ONNX export, which cft does not run: name its run"):
        load_embedder(path=folder[0])


def test_other_vectors_are_refused(run, folder):
    embedder = Embedder.load(run)
    expected, before = portable.sample_vectors(embedder), {role: "" for role in Role}
    before[Role.query] = "ask: "
    assert "the same vectors" in onnx_file._check_vectors(folder[0], expected, before, 1e-4)
    with pytest.raises(UserError, match="onnxruntime makes other vectors of it .*: it is not written"):
        onnx_file._check_vectors(folder[0], expected, before | {Role.query: "ask:"}, 1e-4)
    broken = expected | {Role.text: np.full_like(expected[Role.text], np.nan)}
    with pytest.raises(UserError, match=r"other vectors of it \(off by nan\)"):
        onnx_file._check_vectors(folder[0], broken, before, 1e-4)


def test_a_fixed_length_is_found_out(run, folder, monkeypatch):
    class Fixed(Client):
        def run(self, outputs, inputs):
            return self.session.run(outputs, {name: rows[:, :7] for name, rows in inputs.items()})

    monkeypatch.setattr(onnx_file, "open_session", lambda path: Fixed(path.parent))
    expected = portable.sample_vectors(Embedder.load(run))
    with pytest.raises(UserError, match="other vectors of it"):
        onnx_file._check_vectors(folder[0], expected, {Role.text: ""}, 1e-4)


def test_eight_bits_are_smaller_and_near(run, folder, tmp_path, monkeypatch):
    """The same graph is not made twice: what the command would export is copied."""
    whole = folder[0] / "model.onnx"
    monkeypatch.setattr(onnx_file, "_export", lambda graph, path: shutil.copy(whole, path))
    target, said = exported(run, tmp_path, "format=onnx", "dtype=int8")
    assert {path.name for path in target.iterdir()} == {path.name for path in folder[0].iterdir()}
    import onnx

    kinds = {tensor.data_type for tensor in onnx.load(target / "model.onnx").graph.initializer if len(tensor.dims) == 2}
    assert onnx.TensorProto.UINT8 in kinds and onnx.TensorProto.FLOAT not in kinds
    cosines = (Client(target).encode(TEXTS) * Embedder.load(run).encode(TEXTS)).sum(axis=1)
    assert 0.98 < cosines.min() < 0.99999999
    assert "in 8 bits (int8, dynamic), its vectors have a cosine of 0.9" in said
    monkeypatch.setattr(onnx_file, "_LEAST_COSINE", 1.1)
    with pytest.raises(UserError, match="in 8 bits the graph gives other vectors .*leave dtype at f32"):
        exported(run, tmp_path, "format=onnx", "dtype=int8", name="broken")
    assert not (tmp_path / "broken").exists()


def case(family, pooling, *, slow=False, **settings):
    """A family under some pooling; those that take a computation that others have too are slow."""
    settings |= {"pooling": pooling, "max_length": 120}
    return pytest.param(family, settings, marks=pytest.mark.slow if slow else (), id=family)


@pytest.mark.parametrize(
    ("family", "settings"),
    [
        case("bert", Pooling.mean, attention=Attention.bidirectional),
        case("gemma2", Pooling.last, slow=True),
        case("phi", Pooling.weighted_mean, slow=True),
        case("gemma3_text", Pooling.last, slow=True),
        case("qwen2", Pooling.mean, slow=True),
        case("qwen3", Pooling.mean, slow=True),
        case("bloom", Pooling.last, slow=True),
        case("roberta", Pooling.mean, attention=Attention.bidirectional, slow=True),
        case("modernbert", Pooling.first, attention=Attention.bidirectional, slow=True),
    ],
)
def test_families_and_poolings_give_the_same_vectors(tmp_path, family, settings):
    onnx_file.write(make_tiny(family, **settings), tmp_path, "f32", output=tmp_path)
    expected = make_tiny(family, **settings).encode(TEXTS)
    np.testing.assert_allclose(Client(tmp_path).encode(TEXTS), expected, atol=1e-4)


def test_a_decoder_that_looks_both_ways_cut_after_a_layer_with_weights_in_a_file_of_their_own(tmp_path, monkeypatch):
    monkeypatch.setattr(onnx_file, "_MOST_BYTES_WITHIN", 1000)
    settings = {"attention": Attention.bidirectional, "layer": 1, "pooling": Pooling.first}
    lines = onnx_file.write(make_tiny("llama", **settings), tmp_path, "f32", output=tmp_path)
    assert (tmp_path / "model.onnx.data").stat().st_size > 10_000
    moved = tmp_path.rename(tmp_path.with_name("moved"))
    expected = make_tiny("llama", **settings).encode(TEXTS)
    np.testing.assert_allclose(Client(moved).encode(TEXTS), expected, atol=1e-4)
    causal = make_tiny("llama", layer=1, pooling=Pooling.first).encode(TEXTS)
    assert np.abs(expected - causal).max() > 1e-2 and lines
    onnx_file.quantise(moved)
    assert (moved / "model.onnx.data").exists() and Client(moved).encode(TEXTS).shape == expected.shape


@pytest.mark.parametrize(
    ("key", "message"), [("echo", "goes in twice"), ("layer_weights", "sum of all layers' states")]
)
def test_what_the_graph_does_not_hold_is_refused(tmp_path, key, message):
    with pytest.raises(UserError, match=message):
        onnx_file.write(make_tiny("llama", **{key: True}), tmp_path, "f32", output=tmp_path)
    assert not list(tmp_path.iterdir())


def test_a_failure_of_torch_names_the_architecture_and_leaves_nothing(run, tmp_path, monkeypatch):
    def fail(*arguments, **options):
        try:
            raise ValueError("no such operator\nat length")
        except ValueError as error:
            raise RuntimeError("Failed to convert. Next steps: ...") from error

    monkeypatch.setattr(torch.onnx, "export", fail)
    message = r"torch .* cannot export LlamaModel as an ONNX graph \(no such operator\): it is not written"
    with pytest.raises(UserError, match=message):
        exported(run, tmp_path, "format=onnx")
    assert not list(tmp_path.iterdir())


@pytest.mark.slow
def test_an_architecture_that_cannot_be_exported_is_named_and_leaves_nothing(tmp_path):
    base = write_model(tmp_path / "base", "mamba")
    with pytest.raises(
        UserError, match=r"torch .* cannot export MambaModel as an ONNX graph \(.*\): it is not written"
    ):
        export.export(COMMAND.read([f"path={base}", "format=onnx", str(tmp_path / "out")]))
    assert [path.name for path in tmp_path.iterdir()] == ["base"]


def test_missing_packages_are_named_before_anything_is_loaded(tmp_path, monkeypatch):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(
        UserError, match=r"needs onnx, onnxscript, onnxruntime, not installed here: pip install 'cft\[onnx\]'"
    ):
        export.export(COMMAND.read(["model=nosuch", "format=onnx", str(tmp_path / "out")]))


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["format=onnx", "dtype=f16"], "dtype=f16 is no precision of format=onnx, which has f32 or int8"),
        (["format=gguf", "dtype=int8", "output=x.gguf"], "dtype=int8 is no precision of format=gguf, which has f16"),
        (["format=peft", "dtype=int8"], "dtype=int8 would not be read: add format=onnx"),
        (["dtype=f32"], "dtype=f32 would not be read: add format=gguf or format=onnx"),
        (["format=onnx", "adapter=keep"], "adapter=keep goes with format=sentence-transformers"),
        (["format=merged", "adapter=keep"], "adapter=keep goes with format=sentence-transformers; merged holds merged"),
        (["format=onnx", "base_gguf=x.gguf"], "base_gguf=x.gguf would not be read: add format=gguf"),
    ],
)
def test_settings_that_do_not_go_together_are_refused(words, message):
    place = [] if any(word.startswith("output=") for word in words) else ["folder"]
    with pytest.raises(UserError, match=message):
        COMMAND.read(["model=tiny", *words, *place])


def test_prompts_with_different_words_behind_are_refused(tmp_path):
    folder = train(
        tmp_path / "run", "model=tiny", "prompt.use=both", "prompt.query='{text} ?'", "prompt.document='{text} .'"
    )
    with pytest.raises(UserError, match="different words behind the text"):
        exported(folder, tmp_path, "format=onnx")
    assert not (tmp_path / "exported").exists()
