"""What goes wrong around a job: numbers, disks, locks, homes, clocks. It is said, marked, and costs nothing made."""

import errno
import fcntl
import itertools
import json
import logging
import os
import shutil
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from forked import Commands
from jobs import QUICK, SCORED, adapter_bytes, run_folder, settings

from cft.config.schema import Precision
from cft.evaluation import scores
from cft.job import runner, runs
from cft.job.plan import make_plan
from cft.job.run_folder import RunFolder
from cft.job.start import wants_bf16
from cft.model.embedder import Embedder
from cft.system import console, errors, files
from cft.system import disk as space
from cft.system.errors import UserError
from cft.training import contrastive, trainer

CHECKPOINT = "checkpoint.safetensors"


@pytest.fixture(scope="module")
def undisturbed(commands: Commands, tmp_path_factory) -> Path:
    """The outputs of an undisturbed command, of a process with as many threads as the disturbed ones have."""
    outputs = tmp_path_factory.mktemp("undisturbed-command")
    ended = commands.run("cft.run", *QUICK, f"outputs={outputs}")
    assert ended.status == 0, ended.err
    return outputs


# Numbers


def break_step(monkeypatch, number: int, spoil) -> None:
    """Have something happen to the weights before a step."""
    real = trainer._step

    def step(work, batch, *, step):
        if step == number:
            spoil(work)
        return real(work, batch, step=step)

    monkeypatch.setattr(trainer, "_step", step)


def test_a_gradient_that_is_not_finite_stops_before_the_update_and_keeps_the_checkpoint(tmp_path, monkeypatch):
    def spoil(work):
        weight = next(iter(work.weights.values()))
        weight.register_hook(lambda gradient: torch.full_like(gradient, float("inf")))

    break_step(monkeypatch, 4, spoil)
    with pytest.raises(UserError, match=r"the gradient of step 5 is (nan|inf); triplets (\d+, ){7}\d+ made it"):
        runner.run(settings(tmp_path))
    assert files.read_json(run_folder(tmp_path) / RunFolder.FAILED)["step"] == 4, "the checkpoint of step 4 is kept"


def test_an_update_that_leaves_weights_not_finite_is_not_kept(tmp_path, monkeypatch, finished):  # noqa: F811
    def spoil(work):
        work.optimizer.step = lambda: next(iter(work.weights.values())).data.fill_(float("nan"))

    break_step(monkeypatch, 3, spoil)
    with pytest.raises(UserError, match="the largest weight after the update of step 4 is nan"):
        runner.run(settings(tmp_path))
    monkeypatch.undo()
    runner.run(settings(tmp_path))
    assert adapter_bytes(tmp_path) == adapter_bytes(finished), "it goes on from the last good checkpoint"


def test_a_failed_training_is_marked_until_it_goes_well(tmp_path, monkeypatch):
    break_step(monkeypatch, 4, lambda work: (_ for _ in ()).throw(UserError("step 5 says no")))
    with pytest.raises(UserError):
        runner.run(settings(tmp_path))
    folder = run_folder(tmp_path)
    assert files.read_json(folder / RunFolder.FAILED) == {"step": 4, "cause": "step 5 says no"}
    assert "failed at step 4 of 6" in runs.list_runs(tmp_path, [])[1]
    assert "failed: step 5 says no" in (folder / "log.txt").read_text()
    monkeypatch.undo()
    runner.run(settings(tmp_path))
    assert not (folder / RunFolder.FAILED).exists() and "6 steps" in runs.list_runs(tmp_path, [])[1]


def test_the_steps_of_a_failed_training_are_those_that_its_data_allow(tmp_path, monkeypatch):
    """Rows that share texts make fewer batches where no text may stand twice in one."""
    rows = tmp_path / "rows.jsonl"
    lines = [{"sent0": f"question {n}", "sent1": f"answer {max(n, 8)}", "hard_neg": f"other {n}"} for n in range(32)]
    rows.write_text("".join(f"{json.dumps(line)}\n" for line in lines))
    job = ["data=files", f"data.train={rows}", "train=paper", "eval=none", "baseline=none", "data.holdout=0"]
    config = settings(tmp_path, *job, "train.no_duplicates=true", "train.batch_size=8", "train.epochs=1")
    steps = make_plan(config).steps
    assert 2 < steps < 4
    break_step(monkeypatch, 2, lambda work: (_ for _ in ()).throw(UserError("step 3 says no")))
    with pytest.raises(UserError, match="step 3 says no"):
        runner.run(config)
    assert f"failed at step 2 of {steps}" in runs.list_runs(tmp_path, [])[1]


def test_a_defect_leaves_its_traceback_in_the_log(tmp_path, monkeypatch):
    break_step(monkeypatch, 2, lambda work: {}["a defect"])
    with pytest.raises(KeyError):
        runner.run(settings(tmp_path))
    log = (run_folder(tmp_path) / "log.txt").read_text()
    assert "Traceback" in log and "KeyError: 'a defect'" in log


def test_a_training_that_changes_nothing_is_an_error(tmp_path, monkeypatch):
    monkeypatch.setattr(trainer, "learning_rate", lambda *a, **k: 0.0)
    with pytest.raises(UserError, match="6 steps changed none of the trained weights: the learning rate was 0"):
        runner.run(settings(tmp_path, "train.weight_decay=0"))
    assert not (run_folder(tmp_path) / "training.json").exists()


def test_weights_without_effect_are_an_error(tmp_path, monkeypatch):
    load = Embedder.load

    def base_alone(folder, **keywords):
        tuned = load(folder, **keywords)
        for name, weight in tuned.model.named_parameters():
            if "lora_B" in name:
                weight.data.zero_()
        return tuned

    monkeypatch.setattr(runner.Embedder, "load", base_alone)
    with pytest.raises(UserError, match="change no cosine of any evaluated pair: they are without effect"):
        runner.run(settings(tmp_path, "vector_cache_gb=0"))


@pytest.mark.parametrize("noise", [0.0, 3e-7])
def test_a_collapsed_embedding_is_called_so_and_gets_no_score(noise):
    cosines = np.float32(0.999) + np.float32(noise) * np.random.default_rng(0).random(50, dtype=np.float32)
    with pytest.raises(UserError, match="the embedding has collapsed: all cosines of the set STS12 are equal up to"):
        scores.spearman(cosines, list(range(50)), "STS12")
    spread = np.linspace(0.999, 0.9995, 50, dtype=np.float32)
    assert scores.spearman(spread, list(range(50)), "STS12") == pytest.approx(100)


def test_an_embedding_that_is_not_finite_names_its_text(tiny):
    tiny.model.get_input_embeddings().weight.data[:] = float("nan")
    with pytest.raises(UserError, match="the embedding of 'a text' is not finite; 1 of 1 are not"):
        tiny.encode(["a text"])


# What cannot go together


def test_gradient_caching_is_refused_for_a_model_with_batch_normalisation(tiny):
    tiny.model.norm = torch.nn.BatchNorm1d(32)
    with pytest.raises(UserError, match=r"this model has batch normalisation \(norm\)"):
        contrastive.require_separable(tiny.model)


def test_bfloat16_is_refused_on_a_gpu_without_it(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda: False)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: "Tesla P100")
    with pytest.raises(UserError, match="train.precision=bf16: Tesla P100 has no bfloat16"):
        wants_bf16(Precision.bf16, torch.device("cuda"))
    assert not wants_bf16(Precision.auto, torch.device("cuda")) and wants_bf16(Precision.bf16, torch.device("cpu"))


# Disks


@pytest.fixture(scope="session")
def can_mount(tmp_path_factory) -> None:
    disk = tmp_path_factory.mktemp("disk")
    try:
        mount = ["mount", "-t", "tmpfs", "-o", "size=1m", "none", str(disk)]
        subprocess.run(["unshare", "--mount", *mount], capture_output=True, check=True)
    except (OSError, subprocess.CalledProcessError):
        pytest.skip("no right to mount a small disk here; the limit on file sizes is tested everywhere")


def test_a_disk_that_is_too_small_is_told_before_anything_is_loaded(can_mount, commands, tmp_path):
    ended = commands.run("cft.run", *QUICK, f"outputs={tmp_path}/o", disk=(tmp_path, "size=2m"))
    assert ended.status == 2, ended.err
    assert "the results of a job take up to 64 MiB, and 2 MiB are free there; make room" in ended.err
    assert "loading tiny" not in ended.out and "Traceback" not in ended.err
    assert not list(tmp_path.iterdir()), "it wrote to the disk that was its own"


def test_checkpoints_that_will_not_fit_are_told_before_the_first_step(tmp_path, monkeypatch):
    monkeypatch.setattr(trainer, "_step", lambda *a, **k: pytest.fail("trained"))
    monkeypatch.setattr(space.shutil, "disk_usage", lambda folder: shutil._ntuple_diskusage(0, 0, 65 << 20))
    runner.run(settings(tmp_path, "train.steps=0"))
    with pytest.raises(UserError, match=r"checkpoints and weights of this training take up to \d+ MiB, and 65 MiB"):
        runner.run(settings(tmp_path, "lora.rank=2048", "train.keep=[1,2,3]"))


@pytest.mark.parametrize("limit", [0, 100, 3000, 9000, 20_000, "the largest file's"])
def test_a_disk_that_fills_up_is_told_and_nothing_is_corrupted(commands: Commands, tmp_path, undisturbed, limit):
    """No file may go above a limit, from the kernel, at every kind of file that a job writes."""
    if isinstance(limit, str):
        limit = max(path.stat().st_size for path in undisturbed.rglob("*") if path.is_file()) - 1
    ended = commands.run("cft.run", *QUICK, f"outputs={tmp_path}", file_limit=limit)
    told = ended.out + ended.err
    assert ended.status == 2 and "Traceback" not in told and "Logging error" not in told, told[-3000:]
    assert "File too large; the disk or a limit (ulimit -f) takes no file of this size" in ended.err
    assert str(tmp_path) in ended.err, "the message names the file"
    again = commands.run("cft.run", *QUICK, f"outputs={tmp_path}")
    assert again.status == 0, again.err
    assert adapter_bytes(tmp_path) == adapter_bytes(undisturbed)


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EROFS, errno.EACCES, errno.EIO])
def test_errors_of_the_system_become_messages_that_name_the_file_and_what_to_do(number, capsys):
    status = console.report_error(OSError(number, os.strerror(number), "/disk/file"))
    said = capsys.readouterr().err
    assert status == 2 and said.startswith(f"cft: /disk/file: {os.strerror(number)}; ") and "Traceback" not in said


def test_an_error_of_the_system_that_is_our_own_fault_stays_a_defect(capsys):
    assert errors.explain_os_error(OSError(errno.EBADF, "Bad file descriptor")) is None
    assert console.report_error(OSError(errno.EBADF, "Bad file descriptor")) == 1
    assert "This is a defect of cft" in capsys.readouterr().err


def test_a_write_that_fails_in_another_language_names_the_file_too(tmp_path):
    with pytest.raises(OSError) as caught, files.atomic_write(tmp_path / "weights"):
        raise RuntimeError("I/O error: No space left on device (os error 28)")
    assert caught.value.errno == errno.ENOSPC and caught.value.filename == str(tmp_path / "weights")


def test_outputs_where_a_file_stands_are_told(commands, tmp_path):
    (tmp_path / "taken").write_text("mine")
    ended = commands.run("cft.run", *QUICK, f"outputs={tmp_path}/taken/outputs")
    assert ended.status == 2 and "a file stands where a folder is needed" in ended.err
    assert (tmp_path / "taken").read_text() == "mine"


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write everywhere")
def test_outputs_without_the_right_to_write_are_told(commands, tmp_path):
    tmp_path.chmod(0o500)
    ended = commands.run("cft.run", *QUICK, f"outputs={tmp_path}/outputs")
    assert ended.status == 2 and "Permission denied; name a folder that you may write by outputs=" in ended.err


def test_a_read_only_disk_is_told_before_anything_is_loaded(can_mount, commands, tmp_path):
    ended = commands.run("cft.run", *QUICK, f"outputs={tmp_path}/o", disk=(tmp_path, "size=2m,ro"))
    assert ended.status == 2 and "Read-only file system; name a folder that can be written" in ended.err
    assert "loading tiny" not in ended.out and "Traceback" not in ended.err


def test_a_home_that_cannot_be_written_needs_only_a_folder_for_the_cache(commands, tmp_path):
    home = tmp_path / "home"
    home.write_text("not a folder")
    rows = ["sent0,sent1,hard_neg", *(f"a {word},b {word},c {word}" for word in map(str, range(40)))]
    (tmp_path / "t.csv").write_text("\n".join(rows))
    elsewhere = {"HOME": str(home), "XDG_CACHE_HOME": "", "CFT_CACHE": "", "HF_HOME": str(tmp_path / "hf")}
    own = ["data=files", f"data.train={tmp_path / 't.csv'}", *SCORED, "baseline=none"]
    command = ["cft.run", *QUICK, *own, f"outputs={tmp_path / 'o'}"]
    ended = commands.run(*command, env=elsewhere)
    assert ended.status == 2 and "CFT_CACHE" in ended.err and str(home) in ended.err, ended.err
    ended = commands.run(*command, env=elsewhere | {"CFT_CACHE": str(tmp_path / "cache")})
    assert ended.status == 0, ended.err


def test_a_clock_that_jumps_back_changes_nothing(tmp_path, monkeypatch, finished):  # noqa: F811
    now = itertools.count(2_000_000_000, -86_400)
    monkeypatch.setattr(time, "time", lambda: float(next(now)))
    monkeypatch.setattr(time, "time_ns", lambda: next(now) * 10**9)
    runner.run(settings(tmp_path))
    assert adapter_bytes(tmp_path) == adapter_bytes(finished)
    rows = [json.loads(line) for line in (run_folder(tmp_path) / "history.jsonl").read_text().splitlines()]
    assert all(row["seconds"] >= 0 for row in rows if row["event"] == "step")


# Who is at work


def holder(folder: Path) -> subprocess.Popen:
    """Another process that is at work in a folder."""
    code = "import sys, time; from cft.system.files import exclusive_lock; from pathlib import Path\n"
    code += "with exclusive_lock(Path(sys.argv[1])): print('held', flush=True); time.sleep(600)"
    process = subprocess.Popen([sys.executable, "-c", code, str(folder)], stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None and process.stdout.readline() == "held\n"
    return process


def test_of_two_processes_on_one_training_the_second_says_who_is_at_work(commands, tmp_path, undisturbed):
    folder = tmp_path / run_folder(undisturbed).name
    other = holder(folder)
    try:
        ended = commands.run("cft.run", *QUICK, f"outputs={tmp_path}")
        assert ended.status == 2
        assert f"process {other.pid} is at work in {folder}; wait for it, or stop it" in ended.err
    finally:
        other.kill()
        other.wait()
    assert (folder / ".lock").read_text().strip() == str(other.pid), "the lock of the dead process is still there"
    ended = commands.run("cft.run", *QUICK, f"outputs={tmp_path}")
    assert ended.status == 0, "and is taken over"
    assert adapter_bytes(tmp_path) == adapter_bytes(undisturbed)


def test_a_file_system_without_locks_is_told(tmp_path, monkeypatch, capsys):
    def no_locks(stream, how):
        raise OSError(errno.ENOLCK, os.strerror(errno.ENOLCK))

    monkeypatch.setattr(fcntl, "flock", no_locks)
    with pytest.raises(OSError) as caught, files.exclusive_lock(tmp_path):
        pass
    assert console.report_error(caught.value) == 2
    assert "this file system has no locks" in capsys.readouterr().err


def test_what_a_dead_process_left_half_written_is_removed_and_a_living_ones_is_not(tmp_path):
    target = tmp_path / "file.json"
    dead = subprocess.run([sys.executable, "-c", "import os; print(os.getpid())"], capture_output=True, text=True)
    leftover = tmp_path / files._prefix(target).replace(str(os.getpid()), dead.stdout.strip())
    leftover = leftover.with_name(leftover.name + "abc.part")
    living = tmp_path / f"{files._prefix(target)}abc.part"
    of_another_file = tmp_path / leftover.name.replace("file.json", "other.json")
    for path in (leftover, living, of_another_file):
        path.write_text("half")
    files.write_text(target, "whole")
    assert not leftover.exists() and living.exists() and of_another_file.exists()


# What is said


def test_a_defect_is_told_in_two_lines_and_with_debug_in_full(monkeypatch, capsys):
    def fail():
        raise KeyError("what nobody thought of")

    def report() -> str:
        with pytest.raises(SystemExit) as ended, console.exit_statuses("start over"):
            fail()
        assert ended.value.code == 1
        return capsys.readouterr().err

    said = report()
    assert "Traceback" not in said and "unexpected KeyError at test_failures.py:" in said
    assert "what nobody thought of" in said and "--debug shows the traceback" in said
    monkeypatch.setenv("CFT_DEBUG", "1")
    assert "Traceback" in report()


def test_debug_is_taken_from_any_command_line(commands, tmp_path):
    wrong = ["cft.run", "model=tiny", "data=files", f"data.train={tmp_path}/nowhere.csv", f"outputs={tmp_path}"]
    silent, loud = commands.run(*wrong), commands.run(*wrong, "--debug")
    assert silent.status == loud.status == 2
    assert "Traceback" not in silent.err and "Traceback" in loud.err and "UserError" in loud.err
    assert "Traceback" in commands.run("cft.runs", "--debug", "compare", "a", "b").err


def test_a_reader_that_goes_away_is_no_error(tmp_path, finished):  # noqa: F811
    script = f'"{sys.executable}" -m cft.runs --outputs "{finished}" list | true; exit ${{PIPESTATUS[0]}}'
    ended = subprocess.run(["bash", "-c", script], capture_output=True, text=True)
    assert ended.returncode in (0, 141) and ended.stderr == ""


@pytest.mark.parametrize(
    ("settings", "complaint"),
    [
        (["data.train=rows.cvs"], "no such file; did you mean"),
        (["data.train=rows.csv"], "has no column 'sent1'"),
        (["data.train=none*.csv"], "no file fits this pattern"),
        (["data.train=bad.csv"], "data row 1 (bad.csv:2)"),
        (["data.train=[{file: good.csv, share: 1}, {file: gone.csv, share: 1}]"], "gone.csv: no such file"),
        (["data.train=good.csv", "data.dev=gone.csv"], "data.dev=gone.csv: no such file"),
        (["data.train=good.csv", "data.scored=gone.csv", "loss.scored=cosent"], "data.scored=gone.csv: no such file"),
        (["data.train=good.csv", "eval=pairs", "eval.file=rows.csv"], "has no column 'sentence1'"),
        (["data.train=good.csv", "eval=sts", "eval.folder=."], "holds no file for STS12"),
        (["data.train=good.csv", "eval=sts", "eval.folder=gone"], "eval.folder=gone: no such folder"),
        (["data.train=good.csv", "eval=retrieval", "eval.folder=.", "eval.sets=[one]"], "the set one has no "),
        (["data.train=good.csv", "eval=retrieval", "eval.folder=.", "eval.sets=[two]"], "data row 1 (corpus.jsonl:1)"),
    ],
    ids=lambda value: str(value)[:60],
)
def test_a_wrong_file_is_told_before_torch_is_imported(tmp_path, settings, complaint):
    (tmp_path / "rows.csv").write_text("sent0,answer\na man sleeps,a person sleeps\n")
    (tmp_path / "bad.csv").write_text("sent0,sent1\n,a person sleeps\n")
    (tmp_path / "good.csv").write_text("sent0,sent1\na man sleeps,a person sleeps\n")
    for name in ("one", "two"):
        (tmp_path / name / "qrels").mkdir(parents=True)
        (tmp_path / name / "queries.jsonl").write_text('{"_id": "q", "text": "who sleeps?"}\n')
    (tmp_path / "two" / "corpus.jsonl").write_text('{"_id": "d", "text": ""}\n')
    (tmp_path / "two" / "qrels" / "test.tsv").write_text("query-id\tcorpus-id\tscore\nq\td\t1\n")
    code = "import sys; from cft.run import main\n"
    code += "try: main()\nfinally: print('torch was imported:', 'torch' in sys.modules)"
    told = ["model=tiny", "data=files", "data.negative_columns=[]", "loss=in_batch", *settings]
    ended = subprocess.run([sys.executable, "-c", code, *told], capture_output=True, text=True, cwd=tmp_path)
    assert (ended.returncode, ended.stdout) == (2, "torch was imported: False\n"), ended.stderr
    assert complaint in ended.stderr


def test_how_a_file_is_read_is_said_once(tmp_path, commands):
    (tmp_path / "rows.csv").write_text("sent0;sent1\n" + "".join(f"a man {n};somebody {n}\n" for n in range(20)))
    (tmp_path / "dev.csv").write_text("sentence1;sentence2;score\n" + "".join(f"a {n};b;{n}\n" for n in range(5)))
    told = ["model=tiny", "data=files", "data.train=rows.csv", "data.negative_columns=[]", "loss=in_batch"]
    told += ["data.dev=dev.csv", "eval=none", "logger=none", "train.steps=1", "train.batch_size=4", "outputs=outputs"]
    ended = commands.run("cft.run", *told, cwd=tmp_path)
    assert ended.status == 0, ended.err
    said = [line for line in (ended.out + ended.err).splitlines() if "semicolon" in line or "';'" in line]
    assert len(said) == 2 and len(set(said)) == 2, said


def test_a_terminal_that_is_closed_does_not_end_a_training(tmp_path):
    handler = console._Console()
    read, write = os.pipe()
    os.close(read)
    with os.fdopen(write, "w") as closed:
        before, sys.stdout = sys.stdout, closed
        try:
            handler.emit(logging.LogRecord("cft", logging.INFO, "", 0, "x" * 100_000, (), None))
        finally:
            sys.stdout = before
            os.dup2(os.open(os.devnull, os.O_WRONLY), closed.fileno())
