"""Whatever was read and can move a number is in a name, or its change is refused.

Every file of a base model, of an adapter and of a run is changed in turn; the same command then works in another
folder, or is refused by name. A file that may change in silence is listed below with the reason.
"""

import hashlib
import json
import shutil
from pathlib import Path

import numpy as np
import peft
import pytest
import torch
from conftest import make_tiny
from jobs import run_folder, scores, settings
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM

from cft.config.schema import ModelSettings
from cft.job import runner, runs
from cft.job.plan import make_plan
from cft.job.run_folder import RunFolder
from cft.model.embedder import Embedder
from cft.model.sources import fetch
from cft.model.tokenizer import byte_tokenizer
from cft.system.errors import UserError

TEXTS = ["A man is playing.", "A man is sleeping.", "No."]
Q = "q_proj"

# Files of a run from which no number is read again.
UNREAD = {
    ".lock": "a lock",
    "README.md": "written for people",
    "log.txt": "written for people",
    "failed.json": "there for failed trainings alone",
    "reported.json": "says which tracker was given the scores",
}
PICTURES = (".png", ".pdf", ".svg", ".txt", ".md", ".tex", ".csv", ".html")


def base_model(folder: Path) -> Path:
    """A tiny Llama with its tokenizer, as transformers writes it."""
    trunk = make_tiny("llama").model
    trunk.set_attn_implementation("sdpa")
    trunk.save_pretrained(folder)
    byte_tokenizer().save_pretrained(folder)
    return folder


def peft_adapter(folder: Path, **options) -> Path:
    """An adapter on that model as PEFT writes it."""
    causal = AutoModelForCausalLM.from_config(make_tiny("llama").model.config)
    model = peft.get_peft_model(causal, peft.LoraConfig(target_modules=[Q], **{"r": 4, **options}))
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for weight in model.parameters():
            if weight.requires_grad:
                weight.add_(torch.randn(weight.shape, generator=generator) * 0.1)
    model.save_pretrained(folder)
    record = json.loads((folder / "adapter_config.json").read_text())
    (folder / "adapter_config.json").write_text(json.dumps(record | {"base_model_name_or_path": "random:llama"}))
    return folder


def change(path: Path) -> None:
    """Change what a file says: a number in it, a tensor, or a line."""
    if path.suffix == ".safetensors":
        with_metadata = {"format": "pt"}
        save_file({name: tensor * 1.01 for name, tensor in load_file(path).items()}, path, metadata=with_metadata)
    elif path.suffix == ".npz":
        with np.load(path) as stored:
            arrays = dict(stored)
        np.savez(path, **{name: array * 1.01 if array.dtype.kind == "f" else array for name, array in arrays.items()})
    elif path.suffix == ".json":
        path.write_text(json.dumps(changed(json.loads(path.read_text()))))
    else:
        path.write_text(path.read_text().replace("0", "1", 1) + "\n")


def changed(value):
    """The same JSON with its first number changed, or a key more."""
    if isinstance(value, dict):
        for key, entry in sorted(value.items(), key=lambda item: isinstance(item[1], (dict, list))):
            other = changed(entry)
            if other != entry and key != "checksum":
                return value | {key: other}
        return value | {"added": 1}
    if isinstance(value, list):
        return [changed(value[0]), *value[1:]] if value else [1]
    if isinstance(value, (int, float)) and not isinstance(value, bool):
        return value * 2 + 1
    return value


@pytest.fixture(scope="module")
def model(tmp_path_factory) -> Path:
    return base_model(tmp_path_factory.mktemp("model"))


@pytest.fixture(scope="module")
def adapter(tmp_path_factory) -> Path:
    return peft_adapter(tmp_path_factory.mktemp("adapter"))


@pytest.fixture(scope="module")
def run(tmp_path_factory) -> Path:
    outputs = tmp_path_factory.mktemp("outputs")
    runner.run(settings(outputs, "train.keep=[3]"))
    return run_folder(outputs)


def files_of(folder: Path) -> list[str]:
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file())


def of_model(folder: Path) -> str:
    return str(make_plan(settings(Path("outputs"), f"model.path={folder}", "train.steps=0")).base_folder)


def test_every_file_of_a_base_model_is_in_the_names_of_its_scores(model, tmp_path):
    expected = of_model(model)
    assert of_model(Path(shutil.copytree(model, tmp_path / "same"))).split("-")[-1] == expected.split("-")[-1]
    for number, name in enumerate(files_of(model)):
        copy = Path(shutil.copytree(model, tmp_path / f"copy{number}"))
        change(copy / name)
        assert of_model(copy).split("-")[-1] != expected.split("-")[-1], name


def of_adapter(folder: Path) -> str:
    plan = make_plan(settings(Path("outputs"), f"adapter={folder}", "lora.rank=4", "lora.targets=[q_proj]"))
    return f"{plan.base_folder} {plan.folder}"


def test_every_file_of_an_adapter_is_in_the_names_of_its_scores_and_trainings(adapter, tmp_path):
    expected = of_adapter(adapter)
    assert of_adapter(Path(shutil.copytree(adapter, tmp_path / "same"))) == expected
    for number, name in enumerate(files_of(adapter)):
        if name == "README.md":
            continue
        copy = Path(shutil.copytree(adapter, tmp_path / f"copy{number}"))
        change(copy / name)
        try:
            base, training = of_adapter(copy).split()
        except UserError:
            continue
        assert base != expected.split()[0] and training != expected.split()[1], name


@pytest.mark.parametrize("entry", [{"lora_alpha": 64}, {"use_rslora": True}, {"alpha_pattern": {Q: 1}}, {"r": 2}])
def test_each_entry_of_an_adapters_configuration_makes_another_adapter(adapter, entry, tmp_path):
    copy = Path(shutil.copytree(adapter, tmp_path / "copy"))
    path = copy / "adapter_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | entry))
    assert of_adapter(copy).split()[0] != of_adapter(adapter).split()[0]


def test_stored_scores_of_another_alpha_are_not_shown(tmp_path):
    adapter = peft_adapter(tmp_path / "adapter", lora_alpha=8)
    evaluate = ["train.steps=0", "vector_cache_gb=1"]
    before = runner.run(settings(tmp_path / "out", f"adapter={adapter}", *evaluate))
    copy = Path(shutil.copytree(adapter, tmp_path / "copy"))
    path = copy / "adapter_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"lora_alpha": 64}))
    shown = runner.run(settings(tmp_path / "out", f"adapter={copy}", *evaluate))
    alone = runner.run(settings(tmp_path / "fresh", f"adapter={copy}", "train.steps=0", "vector_cache_gb=0"))
    assert shown == alone != before


def test_stored_scores_are_not_shown_for_an_adapter_of_another_base(tmp_path):
    adapter = peft_adapter(tmp_path / "adapter")
    path = adapter / "adapter_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"base_model_name_or_path": "owner/other"}))
    job = [f"adapter={adapter}", "train.steps=0"]
    runner.run(settings(tmp_path, *job, "adapter_any_base=true"))
    with pytest.raises(UserError, match="names owner/other as its base model"):
        runner.run(settings(tmp_path, *job))


def read_everything(folder: Path) -> str:
    """All that commands read of a finished run, as text."""
    run = RunFolder(folder)
    parts = [np.round(Embedder.load(folder).encode(TEXTS), 6).tolist()]
    parts += [runner.run(settings(folder.parent, "train.keep=[3]")), run.history(), run.finished()]
    parts += [runs.list_runs(folder.parent, []), run.cost(batch_size=8, stop_at=6), scores(folder.parent)]
    return repr(parts)


def test_every_file_of_a_run_is_refused_when_it_was_changed(run, tmp_path):
    read_everything(run)
    names = [name for name in files_of(run) if Path(name).name not in UNREAD and not name.endswith(PICTURES)]
    assert len(names) > 12
    for number, name in enumerate(names):
        if name.startswith("steps/"):
            continue  # a run of its own, read by eval.step alone
        outputs = Path(shutil.copytree(run.parent, tmp_path / str(number)))
        change(outputs / run.name / name)
        with pytest.raises(UserError):
            read_everything(outputs / run.name)
            pytest.fail(f"{name} was changed and nobody minded")
    for name in [name for name in names if name.startswith("steps/") and "adapter" in name]:
        outputs = Path(shutil.copytree(run.parent, tmp_path / name.replace("/", "-")))
        change(outputs / run.name / name)
        with pytest.raises(UserError, match="are not those that their contract was written for"):
            Embedder.load(outputs / run.name / "steps" / "000003")


def test_a_base_model_is_scored_without_the_adapter_that_lies_in_its_folder(model, adapter, tmp_path, caplog):
    both = Path(shutil.copytree(model, tmp_path / "both"))
    for path in adapter.iterdir():
        shutil.copy(path, both / path.name)
    caplog.set_level("INFO", logger="cft")
    alone, beside = (Embedder.base(ModelSettings(name="x", path=str(path))) for path in (model, both))
    assert np.array_equal(alone.encode(TEXTS), beside.encode(TEXTS))
    assert fetch(ModelSettings(path=str(model))).identity == fetch(ModelSettings(path=str(both))).identity
    assert "also holds an adapter, which is not used" in caplog.text
    runner.run(settings(tmp_path / "out", f"model.path={both}", "train.steps=2"))
    with pytest.raises(UserError, match=r"is an adapter without its base model; name it by adapter="):
        fetch(ModelSettings(path=str(adapter)))


# Where a base model is.


@pytest.fixture
def project(tmp_path, monkeypatch) -> Path:
    """A folder with models/mini and a run that was trained on it, named from there."""
    project = tmp_path / "project"
    base_model(project / "models" / "mini")
    monkeypatch.chdir(project)
    runner.run(settings(Path("outputs"), "model.path=models/mini", "model.name=tiny"))
    return project


def test_an_embedder_finds_its_base_from_any_folder(project, tmp_path, monkeypatch):
    folder = run_folder(project / "outputs")
    expected = Embedder.load(folder).encode(TEXTS)
    monkeypatch.chdir(tmp_path)
    assert np.array_equal(Embedder.load(folder).encode(TEXTS), expected)
    copy = shutil.copytree(folder, tmp_path / "elsewhere" / "run")
    assert np.array_equal(Embedder.load(copy).encode(TEXTS), expected), "by where the base was"
    moved = tmp_path / "moved"
    project.rename(moved)
    assert np.array_equal(Embedder.load(moved / "outputs" / folder.name).encode(TEXTS), expected), "all moved together"
    shutil.move(moved / "models" / "mini", tmp_path / "weights")
    with pytest.raises(UserError, match=r"base model models/mini is not there any more; .*model_path=FOLDER"):
        Embedder.load(moved / "outputs" / folder.name)
    found = Embedder.load(moved / "outputs" / folder.name, model_path=tmp_path / "weights")
    assert np.array_equal(found.encode(TEXTS), expected)


def test_another_model_at_the_old_place_is_refused(project, tmp_path):
    folder = run_folder(project / "outputs")
    change(project / "models" / "mini" / "model.safetensors")
    with pytest.raises(UserError, match="weights: the contract says"):
        Embedder.load(folder)


def test_a_run_goes_on_with_the_same_weights_at_another_place(project, tmp_path):
    folder = run_folder(project / "outputs")
    other = shutil.copytree(project / "models" / "mini", tmp_path / "other-name")
    job = [f"model.path={other}", "model.name=tiny", f"adapter={folder}", "train.steps=0"]
    before = scores(project / "outputs")["after"]["mean"]
    assert runner.run(settings(tmp_path / "out", *job)) == f"mean {before:.2f}"
    same = make_plan(settings(project / "outputs", f"model.path={other}", "model.name=tiny"))
    assert same.is_trained, "the same weights make the same training"


def test_a_hub_model_is_known_by_its_content_too(project, tmp_path, monkeypatch):
    """The hub's cache names large files by their SHA-256, so that no gigabytes are read."""
    blobs, snapshot = tmp_path / "blobs", tmp_path / "snapshots" / ("0" * 40)
    blobs.mkdir()
    snapshot.mkdir(parents=True)
    mini = project / "models" / "mini"
    for path in mini.iterdir():
        content = fetch_sha(path)
        shutil.copy(path, blobs / content)
        (snapshot / path.name).symlink_to(blobs / content)
    monkeypatch.setattr("huggingface_hub.snapshot_download", lambda *a, **k: str(snapshot))
    here = fetch(ModelSettings(path=str(mini)))
    there = fetch(ModelSettings(path="owner/mini", revision="0" * 40))
    assert there.identity == f"commit:{'0' * 40}" and there.content == here.identity
    outputs = tmp_path / "out"
    runner.run(settings(outputs, "model.path=owner/mini", "model.name=tiny"))
    folder = run_folder(outputs)
    expected = Embedder.load(folder).encode(TEXTS)
    assert np.array_equal(Embedder.load(folder, model_path=mini).encode(TEXTS), expected)


def fetch_sha(path: Path) -> str:

    return hashlib.sha256(path.read_bytes()).hexdigest()
