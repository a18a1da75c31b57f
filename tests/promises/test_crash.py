"""Killed at any moment and started again, a training and a sweep end as if nothing had happened."""

import csv
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest
import torch
from forked import ROOT, Commands, Ended
from jobs import SCORED, settings
from safetensors.torch import load_file
from tqdm import tqdm

from cft.job import runner
from cft.system import signals
from cft.system.console import exit_statuses
from cft.system.errors import UserError
from cft.training import checkpoint, trainer

# How often each is killed; `make fuzz` multiplies it. A sweep, which takes twice as long, only adds its own files to
# what is killed in a training.
FACTOR = int(os.environ.get("CFT_FUZZ", "1"))
MOMENTS, MOMENTS_OF_A_SWEEP = 16 * FACTOR, 10 * FACTOR

STEPS, CHECKPOINT_EVERY = 6, 2
JOB = [
    "model=tiny",
    "logger=csv",
    f"train.steps={STEPS}",
    "train.batch_size=4",
    "train.eval_every=3",
    f"train.checkpoint_every={CHECKPOINT_EVERY}",
    "train.keep=[3]",
    "data=files",
    "data.train=triplets.csv",
    "data.dev=pairs.csv",
    "data.holdout=6",
    *SCORED,
    "baseline=none",
    "eval.rows=10",
]
TRIPLETS = ["sent0,sent1,hard_neg", *(f"a man reads {n},somebody reads {n},nobody reads {n}" for n in range(40))]
PAIRS = ["sentence1,sentence2,score", *(f"a dog runs {n},a cat runs {n % 3},{n % 5}" for n in range(10))]
SWEEP = ["-m", *JOB, "train.steps=2", "train.keep=[]", "data.holdout=0", "lr=1e-4,5e-4"]


class Kill:
    """A moment: a change to the disk, counted from 1, or a share of the time that the whole takes."""

    def __init__(self, place: int) -> None:
        self.draw = random.Random(place)
        self.by_change = place % 10 < 7

    def arguments(self, undisturbed: Ended) -> dict:
        assert undisturbed.events
        if self.by_change:
            return {"kill_at": self.draw.randint(1, undisturbed.events)}
        return {"signal_after": self.draw.uniform(0.1, 1) * undisturbed.seconds}


def run(commands: Commands, root: Path, command: list[str], **how) -> Ended:
    """Run a command whose data, outputs and cache are all in a folder of its own."""
    write_data(root)
    cache = {"CFT_CACHE": str(root / "cache")}
    return commands.run("cft.run", *command, "outputs=outputs", cwd=root, env=cache, watched=root, **how)


def write_data(root: Path) -> None:
    root.mkdir(exist_ok=True)
    for name, lines in (("triplets.csv", TRIPLETS), ("pairs.csv", PAIRS)):
        if not (root / name).exists():
            (root / name).write_text("\n".join(lines))


def left(root: Path) -> dict[str, object]:
    """All that lies in the outputs, as comparable content: without times, memory and what is said at another time."""
    found: dict[str, object] = {}
    for path in sorted((root / "outputs").rglob("*")):
        name = str(path.relative_to(root))
        # multirun.yaml is Hydra's and names the folder where the command was given; pictures are compared as PNG.
        if not path.is_file() or path.name in ("log.txt", ".lock", "multirun.yaml") or path.suffix == ".svg":
            continue
        if path.suffix in (".json", ".jsonl"):
            found[name] = [timeless(json.loads(part)) for part in parts(path)]
        elif path.suffix == ".csv":
            found[name] = [timeless(row) for row in csv.DictReader(path.open())]
        else:
            found[name] = path.read_bytes()
    return found


def parts(path: Path) -> list[str]:
    text = path.read_text()
    return text.splitlines() if path.suffix == ".jsonl" else [text]


def timeless(value: object) -> object:
    if not isinstance(value, dict):
        return value
    kept = {key: timeless(entry) for key, entry in value.items() if "second" not in key and key != "peak_memory"}
    if len(kept) < len(
        value
    ):  # a checksum is of the times too, and so is that of the history, which is compared itself
        kept = {key: entry for key, entry in kept.items() if key not in ("checksum", "history")}
    return kept


def assert_same(one: dict[str, object], other: dict[str, object]) -> None:
    assert one.keys() == other.keys()
    for name in one:
        assert one[name] == other[name], name


@pytest.fixture(scope="module")
def undisturbed(commands, tmp_path_factory) -> tuple[Path, Ended]:
    root = tmp_path_factory.mktemp("undisturbed")
    ended = run(commands, root, JOB)
    assert ended.status == 0, ended.err
    return root, ended


@pytest.fixture(scope="module")
def undisturbed_sweep(commands, tmp_path_factory) -> tuple[Path, Ended]:
    root = tmp_path_factory.mktemp("undisturbed-sweep")
    ended = run(commands, root, SWEEP)
    assert ended.status == 0, ended.err
    return root, ended


def test_the_same_command_leaves_the_same_bytes(commands, undisturbed, tmp_path):
    assert run(commands, tmp_path, JOB).status == 0
    assert_same(left(tmp_path), left(undisturbed[0]))


def run_on_its_own(root: Path, command: list[str], **environment: str) -> str:
    """The same without the server, whose processes cannot have workers of their own; returns what it printed."""
    write_data(root)
    environment |= {"CFT_CACHE": str(root / "cache")}
    environment["PYTHONPATH"] = os.pathsep.join([os.environ["PYTHONPATH"], str(ROOT)])
    whole = [sys.executable, "-m", "cft.run", *command, "outputs=outputs"]
    ended = subprocess.run(whole, capture_output=True, text=True, cwd=root, env=os.environ | environment)
    assert ended.returncode == 0, ended.stderr
    return ended.stdout


def test_a_sweep_in_parallel_workers_leaves_the_same_bytes(commands, tmp_path):
    one, other = tmp_path / "one", tmp_path / "other"
    assert run(commands, one, SWEEP, drawn_in_full=True).status == 0
    printed = run_on_its_own(other, [*SWEEP, "hydra/launcher=joblib", "hydra.launcher.n_jobs=2"], OMP_NUM_THREADS="1")
    assert_same(left(other), left(one))
    jobs = [line.strip().split("  ->  ") for line in printed.partition("all jobs")[2].strip().splitlines()]
    assert [words for words, _ in jobs] == ["lr=0.0001", "lr=0.0005"] and all("mean" in outcome for _, outcome in jobs)


def test_a_sweep_by_joblib_in_one_process_leaves_the_same_bytes(commands, undisturbed_sweep, tmp_path):
    ended = run(commands, tmp_path, [*SWEEP, "hydra/launcher=joblib", "hydra.launcher.n_jobs=1"])
    assert ended.status == 0, ended.err
    assert_same(left(tmp_path), left(undisturbed_sweep[0]))


WITH_FOUR_THREADS = """
import runpy, sys
import torch

torch.set_num_threads(4)
sys.argv[0] = "cft.run"
try:
    runpy.run_module("cft.run", run_name="__main__", alter_sys=True)
finally:
    assert torch.get_num_threads() == 4
"""


def test_the_number_of_threads_moves_a_result_by_rounding_alone(commands, undisturbed, tmp_path):
    """What docs/reliability.md promises across machines, whose threads and instructions differ."""
    write_data(tmp_path)
    (tmp_path / "four.py").write_text(WITH_FOUR_THREADS)
    environment = {"CFT_CACHE": str(tmp_path / "cache")}
    ended = commands.run(str(tmp_path / "four.py"), *JOB, "outputs=outputs", cwd=tmp_path, env=environment)
    assert ended.status == 0, ended.err
    roots = (tmp_path, undisturbed[0])
    one, other = (load_file(next(root.glob("outputs/tiny-*/adapter/*.safetensors"))) for root in roots)
    assert one.keys() == other.keys()
    for name in one:
        torch.testing.assert_close(one[name], other[name], rtol=0, atol=1e-5)
    means = []
    for root in roots:
        (entry,) = json.loads(next(root.glob("outputs/tiny-*/metrics.json")).read_text()).values()
        means.append([entry[side]["mean"] for side in ("before", "after")])
    assert means[0] == pytest.approx(means[1], abs=0.1)


@pytest.mark.parametrize("moment", range(MOMENTS))
def test_a_training_killed_at_any_moment_ends_with_the_same_bytes(commands, undisturbed, tmp_path, moment):
    killed = run(commands, tmp_path, JOB, **Kill(moment).arguments(undisturbed[1]))
    assert killed.status in (-signal.SIGKILL, 0)  # a moment drawn by time may come after the end
    saved, done = progress(tmp_path)
    assert done - saved <= CHECKPOINT_EVERY, "more than the work since the last checkpoint is lost"

    again = run(commands, tmp_path, JOB)

    assert again.status == 0, again.err
    if 0 < saved:
        assert f"continuing after step {saved} of {STEPS}" in again.out
    assert_same(left(tmp_path), left(undisturbed[0]))
    assert not list(tmp_path.rglob("*.part"))


def progress(root: Path) -> tuple[int, int]:
    """The step of the checkpoint, and the last step that was done and noted; (0, 0) without a checkpoint to lose."""
    for folder in (root / "outputs").glob("tiny-*"):
        spreadsheet = folder / "history.csv"
        rows = list(csv.DictReader(spreadsheet.open())) if spreadsheet.exists() else []
        steps = [int(row["step"]) for row in rows if row["event"] == "step"]
        if (folder / "training.json").exists() or (folder / "adapter").exists():
            return checkpoint.step_of(folder), checkpoint.step_of(folder)
        return checkpoint.step_of(folder), max(steps, default=0)
    return 0, 0


@pytest.mark.parametrize("moment", range(MOMENTS_OF_A_SWEEP))
def test_a_sweep_killed_at_any_moment_ends_with_the_same_bytes(commands, undisturbed_sweep, tmp_path, moment):
    killed = run(commands, tmp_path, SWEEP, **Kill(1000 + moment).arguments(undisturbed_sweep[1]))
    assert killed.status in (-signal.SIGKILL, 0)
    again = run(commands, tmp_path, SWEEP)
    assert again.status == 0, again.err
    assert "all jobs" in again.out
    assert_same(left(tmp_path), left(undisturbed_sweep[0]))
    assert not list(tmp_path.rglob("*.part"))


@pytest.mark.parametrize("sent, status", [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_a_signal_ends_a_training_after_a_checkpoint_with_a_status_of_its_own(
    commands, undisturbed, tmp_path, sent, status
):
    long = [*JOB, "train.checkpoint_every=1000", "train.eval_every=0"]
    ended = run(commands, tmp_path, [*long, "train.steps=2000", "train.epochs=1000", "train.keep=[]"],
                signal_after=undisturbed[1].seconds, sent=sent)  # fmt: skip
    assert ended.status == status, ended.err
    assert f"{sent.name}: ending after this step and a checkpoint" in ended.err
    assert "the same command goes on from the last checkpoint" in ended.err
    assert "Traceback" not in ended.err + ended.out
    saved, done = progress(tmp_path)
    assert saved == done > 0, "the checkpoint holds every step that was done"


def test_an_interrupted_training_ends_with_the_same_bytes(commands, undisturbed, tmp_path):
    ended = run(commands, tmp_path, JOB, signal_after=undisturbed[1].seconds * 0.6, sent=signal.SIGTERM)
    assert ended.status in (143, 0), ended.err
    assert run(commands, tmp_path, JOB).status == 0
    assert_same(left(tmp_path), left(undisturbed[0]))


def send(number: int = signal.SIGTERM) -> None:
    os.kill(os.getpid(), number)


def test_a_second_signal_ends_it_at_once():
    with pytest.raises(signals.Interrupted) as caught:
        with signals.handle_signals(), signals.deferred_to_step_end() as asked:
            send()
            assert asked() == signal.SIGTERM
            send()
            pytest.fail("it went on")
    assert caught.value.status == 143
    with signals.handle_signals(), signals.deferred_to_step_end() as asked:
        assert asked() == 0, "what one command was asked is nothing to the next"


def test_a_signal_that_no_step_looked_at_ends_the_command_at_the_end_of_that_training():
    with signals.handle_signals():
        with pytest.raises(signals.Interrupted):
            with signals.deferred_to_step_end():
                send()
        with signals.deferred_to_step_end() as asked:  # of the next training
            assert asked() == 0


def test_a_signal_is_not_lost_with_a_training_that_fails(capsys):
    with pytest.raises(SystemExit) as caught:
        with exit_statuses("go on"), signals.deferred_to_step_end():
            send()
            raise UserError("the loss of step 3 is nan")
    assert caught.value.code == 143
    said = capsys.readouterr().err
    assert "the loss of step 3 is nan" in said and "interrupted; go on" in said


@pytest.mark.parametrize("moment", ["_score_development_data", "score"])
def test_a_signal_during_the_last_evaluations_ends_the_job_and_the_next_goes_on(tmp_path, monkeypatch, moment):
    """The first is the one after the last step, within the training; the second is that of the result."""
    config = settings(tmp_path, "train.steps=3")
    module = trainer if moment == "_score_development_data" else runner
    evaluate, calls = getattr(module, moment), []

    def signalled(*arguments):
        calls.append(arguments)
        found = evaluate(*arguments)
        if module is trainer or len(calls) == 2:
            send()
        return found

    monkeypatch.setattr(module, moment, signalled)
    with signals.handle_signals():
        with pytest.raises(signals.Interrupted):
            runner.run(config)
        monkeypatch.undo()
        assert not list(tmp_path.glob("tiny-*/metrics.json")), "the job ended there"
        monkeypatch.setattr(trainer, "_step", lambda *a, **k: pytest.fail("a step was made again"))
        assert "after" in runner.run(config)
        monkeypatch.undo()
        assert "after" in runner.run(settings(tmp_path, "train.steps=3", "seed=1")), "no signal is left over"


def test_a_child_is_passed_the_signal_and_may_end_by_itself(tmp_path):
    code = (
        "import signal, sys, time, pathlib\n"
        "def end(*_): time.sleep(0.5); pathlib.Path(sys.argv[1]).write_text('ended'); sys.exit(7)\n"
        "signal.signal(signal.SIGTERM, end)\n"
        "pathlib.Path(sys.argv[1]).write_text('begun'); time.sleep(60)"
    )
    mark = tmp_path / "mark"

    def send_when_begun() -> None:
        while not mark.exists() or mark.read_text() != "begun":
            time.sleep(0.05)
        send()

    with signals.handle_signals(), pytest.raises(signals.Interrupted):
        threading.Thread(target=send_when_begun).start()
        signals.run_child([sys.executable, "-S", "-c", code, str(mark)])
    assert mark.read_text() == "ended"


def test_outside_a_training_a_signal_is_heeded_at_once():
    before = signal.getsignal(signal.SIGTERM)
    with signals.handle_signals(), pytest.raises(signals.Interrupted):
        os.kill(os.getpid(), signal.SIGTERM)
    assert signal.getsignal(signal.SIGTERM) is before


def test_a_signal_is_not_hidden_by_an_error_of_what_cleans_up_after_it():
    """Tried with what hid one: tqdm's class makes its lock, is interrupted there, and gives the lock back."""

    class Bar(tqdm):
        @classmethod
        def get_lock(cls):
            send()

    with pytest.raises(signals.Interrupted) as caught, signals.handle_signals():
        Bar.write("a line")
    assert caught.value.status == 143 and caught.value.__cause__ is None
    with pytest.raises(KeyError, match="its own"), signals.handle_signals():
        try:
            raise ValueError("another")
        except ValueError:
            raise KeyError("its own") from None


def test_a_signal_that_was_ignored_stays_ignored():
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        with signals.handle_signals():
            os.kill(os.getpid(), signal.SIGINT)
    finally:
        signal.signal(signal.SIGINT, before)


def test_comparing_sees_a_difference(undisturbed, tmp_path):
    shutil.copytree(undisturbed[0] / "outputs", tmp_path / "outputs")
    (weights,) = (tmp_path / "outputs").glob("tiny-*/adapter/adapter_model.safetensors")
    content = bytearray(weights.read_bytes())
    content[-1] ^= 1
    weights.write_bytes(content)
    with pytest.raises(AssertionError):
        assert_same(left(tmp_path), left(undisturbed[0]))
