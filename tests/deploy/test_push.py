"""What goes to the hub: the listed files, no secret, and an embedder that loads from there."""

import shutil
from pathlib import Path

import numpy as np
import pytest
from conftest import write_model
from exports import train
from jobs import CAPTIONS

from cft.config.compose import compose_config
from cft.deploy.push import PushOptions, look_over, push
from cft.job.runner import run
from cft.model.contract import Contract
from cft.model.embedder import Embedder
from cft.push import COMMAND
from cft.system.errors import UserError


class Hub:
    """Stands in for the hub's client: keeps what it is sent."""

    def __init__(self, folder: Path):
        self.folder, self.made = folder, []

    def create_repo(self, repository, *, private, exist_ok):
        self.made.append((repository, private))

    def upload_folder(self, *, repo_id, folder_path, commit_message):
        shutil.copytree(folder_path, self.folder)


@pytest.fixture
def hub(tmp_path, monkeypatch) -> Hub:
    found = Hub(tmp_path / "hub")
    monkeypatch.setattr("huggingface_hub.HfApi", lambda: found)
    return found


def told(folder, *more: str) -> PushOptions:
    return COMMAND.read([f"run={folder}", "repo=me/embedder", *more])


def test_a_dry_run_lists_everything_and_sends_nothing(trained, hub):
    said = push(told(trained, "dry_run=true"))
    for name in ("README.md", "adapter_config.json", "adapter_model.safetensors", "contract.json", "training.png"):
        assert name in said
    assert "config.json\n" not in said.replace("adapter_config.json", "") and "log.txt" not in said
    assert "nothing was sent" in said and hub.made == [] and not hub.folder.exists()


def test_what_was_sent_loads_from_there(trained, hub, monkeypatch):
    assert "sent to https://huggingface.co/me/embedder" in push(told(trained))
    assert hub.made == [("me/embedder", True)]
    assert 'Embedder.load("me/embedder")' in (hub.folder / "README.md").read_text()
    asked = []

    def fetched(key, name, revision, patterns):
        asked.append((name, patterns))
        return hub.folder

    monkeypatch.setattr("cft.model.embedder.fetch_repository", fetched)
    texts = ["a cat", "two dogs"]
    np.testing.assert_array_equal(Embedder.load("me/embedder").encode(texts), Embedder.load(trained).encode(texts))
    assert asked == [("me/embedder", ["contract.json", "adapter_config.json", "adapter_model.safetensors"])]


def test_the_whole_model_goes_on_request(trained, hub):
    push(told(trained, "format=sentence-transformers", "private=false"))
    assert (hub.folder / "modules.json").exists() and (hub.folder / "model.safetensors").exists()
    assert hub.made == [("me/embedder", False)]


def test_where_this_machine_has_the_base_model_is_not_sent(tmp_path, hub, monkeypatch):
    monkeypatch.chdir(tmp_path)
    write_model(tmp_path / "models" / "mini", "llama")
    folder = train(tmp_path, "model.path=models/mini")
    assert Contract.place_of_base(folder) == tmp_path / "models" / "mini"
    monkeypatch.setattr("cft.deploy.push._require_public_base", lambda staged: None)
    push(told(folder, f"model_path={tmp_path / 'models' / 'mini'}"))
    assert Contract.place_of_base(hub.folder) is None and Contract.load(hub.folder) == Contract.load(folder)


def test_a_base_model_in_a_folder_that_is_named_like_a_repository_is_not_taken_for_one(tmp_path, hub, monkeypatch):
    monkeypatch.chdir(tmp_path)
    write_model(tmp_path / "models" / "mini", "llama")
    folder = train(tmp_path, "model.path=models/mini")
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")  # where there is no folder of that name
    with pytest.raises(UserError, match="a folder or file of this machine, which nobody else has"):
        push(told(folder))
    assert hub.made == []


def test_an_adapter_for_a_model_of_this_machine_alone_is_not_sent(tmp_path, hub):
    base = write_model(tmp_path / "base", "llama")
    quick = "logger=none train.steps=2 train.batch_size=8 data.rows=40 data.holdout=0 eval.rows=10 train.eval_every=0"
    run(compose_config([*CAPTIONS, *quick.split(), f"model.path={base}", f"outputs={tmp_path / 'outputs'}"]))
    (folder,) = (path.parent for path in (tmp_path / "outputs").glob("*/contract.json"))
    with pytest.raises(UserError, match="nobody else has; send the whole model"):
        push(told(folder))
    push(told(folder, "format=sentence-transformers"))
    assert (hub.folder / "modules.json").exists()
    assert str(base) not in "".join(path.read_text() for path in hub.folder.rglob("*.json"))


def test_a_folder_without_a_card_is_told_how_it_gets_one(trained, hub, tmp_path):
    shutil.copytree(trained, tmp_path / "run")
    (tmp_path / "run/README.md").unlink()
    with pytest.raises(UserError, match=r"run has no model card \(README.md\): write one there, or .*merge its runs"):
        push(told(tmp_path / "run"))


def test_what_was_trained_whole_goes_as_a_whole_model_and_that_is_said(tmp_path, hub):
    folder = train(tmp_path, "model=tiny", "lora=none")
    with pytest.raises(UserError, match=r"there is no adapter; choose format=sentence-transformers, the whole model$"):
        push(told(folder))
    push(told(folder, "format=sentence-transformers"))
    assert (hub.folder / "modules.json").exists()


@pytest.mark.parametrize(
    ("text", "what"),
    [
        ("see hf_" + "a" * 34, "a Hugging Face token"),
        ("AKIA" + "B" * 16, "an AWS key"),
        ('"api_key": "0123456789abcdef0123"', "an API key"),
        ("-----BEGIN RSA PRIVATE KEY-----", "a private key"),
        ("the value canary-of-this-test here", "the value of WANDB_API_KEY"),
        (f"{Path.home()}/models", "a path in your home folder"),
    ],
)
def test_secrets_and_paths_are_never_sent(tmp_path, monkeypatch, text, what):
    monkeypatch.setenv("WANDB_API_KEY", "canary-of-this-test")
    (tmp_path / "README.md").write_text(text)
    with pytest.raises(UserError, match=f"nothing was sent: README.md holds {what}") as error:
        look_over(tmp_path)
    assert "canary" not in str(error.value) and "aaaa" not in str(error.value)


def test_harmless_files_pass(tmp_path):
    (tmp_path / "README.md").write_text("a card about passwords, secrets and hf_hub")
    (tmp_path / "model.safetensors").write_bytes(b"\xff\x00")
    look_over(tmp_path)


def test_a_secret_in_a_run_stops_the_whole_push(trained, hub, tmp_path):
    folder = tmp_path / trained.name
    shutil.copytree(trained, folder)
    (folder / "README.md").write_text((folder / "README.md").read_text() + "hf_" + "b" * 34)
    with pytest.raises(UserError, match="nothing was sent"):
        push(told(folder))
    assert hub.made == []


def test_what_the_hub_says_is_passed_on_with_a_remedy(trained, hub, monkeypatch):
    def refuse(*args, **options):
        class OfTheNetworkLibrary(Exception):
            pass

        raise OfTheNetworkLibrary("401 Unauthorized\nmore")

    monkeypatch.setattr(hub, "create_repo", refuse)
    with pytest.raises(UserError, match=r"did not take it \(401 Unauthorized\); log in with `hf auth login`"):
        push(told(trained))


def test_a_repository_must_be_one(trained):
    with pytest.raises(UserError, match="repo=mine: must be OWNER/NAME"):
        push(COMMAND.read([f"run={trained}", "repo=mine"]))
    assert COMMAND.keys["private"].default is True
