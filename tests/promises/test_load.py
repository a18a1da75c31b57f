"""Many jobs in one process, and very many texts: neither memory nor file handles grow with their number."""

import json
import os
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from jobs import CAPTIONS

JOB = "model=tiny logger=csv train.steps=2 train.batch_size=4 data.rows=20 data.holdout=2 eval.rows=6".split()

# Jobs in one process, as a sweep of the command line or one after the other, that note what their process holds.
WATCHED = """
import json, sys
import psutil
from cft import run as command
from cft.config.compose import compose_config
from cft.job import runner

process, real, notes = psutil.Process(), runner.run, []

def watched(*arguments, **keywords):
    outcome = real(*arguments, **keywords)
    notes.append([process.memory_info().rss, process.num_fds(), process.num_threads()])
    return outcome

runner.run = watched
how, count, note_file, *overrides = sys.argv[1:]
if how == "sweep":
    sys.argv[1:] = ["-m", *overrides, f"seed=range({count})"]
    command.main()
else:
    for seed in range(int(count)):
        runner.run(compose_config([*overrides, f"seed={seed}"]))
with open(note_file, "w") as stream:
    json.dump(notes, stream)
"""


def in_a_fresh_process(*command: str) -> None:
    environment = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": os.environ["PYTHONPATH"] + os.pathsep + "."}
    ended = subprocess.run([sys.executable, *command], capture_output=True, text=True, env=environment)
    assert ended.returncode == 0, ended.stderr[-2000:]


def watched(tmp_path: Path, how: str, jobs: int, run: Callable[..., object] = in_a_fresh_process) -> np.ndarray:
    """(jobs, 3): MiB of memory, file handles and threads after each of some jobs that differ by their seed."""
    notes = tmp_path / "notes.json"
    overrides = [*CAPTIONS, *JOB, f"outputs={tmp_path / 'o'}"]
    script = tmp_path / "watched.py"
    script.write_text(WATCHED)
    run(str(script), how, str(jobs), str(notes), *overrides)
    assert len(list((tmp_path / "o").glob("tiny-*/training.json"))) == jobs
    return np.array(json.loads(notes.read_text())) / [2**20, 1, 1]


def slope(values: np.ndarray) -> tuple[float, float]:
    """Growth a job of a straight line through the values, and its standard error."""
    place = np.arange(len(values))
    (rate, _), covariance = np.polyfit(place, values, 1, cov=True)
    return float(rate), float(np.sqrt(covariance[0, 0]))


def test_a_short_sweep_leaves_no_file_open(commands, tmp_path):
    def run(*command: str) -> None:
        ended = commands.run(*command)
        assert ended.status == 0, ended.err[-2000:]

    _, handles, threads = watched(tmp_path, "sweep", 8, run).T
    assert handles[-1] <= handles[3] and threads[-1] <= threads[3]


# What 200 jobs were measured to add, in MiB a job (docs/reliability.md), with room for other machines. Of a sweep's, 0.07
# is Hydra's, which keeps the configuration of every job until the last one's end.
ONE_BY_ONE, SWEEP = 0.06, 0.15


@pytest.mark.slow
@pytest.mark.parametrize(("how", "limit"), [("one by one", ONE_BY_ONE), ("sweep", SWEEP)])
def test_200_jobs_in_one_process_hold_no_file_and_next_to_no_memory(tmp_path, capsys, how, limit):
    memory, handles, threads = watched(tmp_path, how, 200).T
    settled = memory[50:]  # libraries are imported, and the allocator has its pools
    rate, error = slope(settled)
    with capsys.disabled():
        said = (
            f"{settled[0]:.0f} MiB after 50 jobs, {settled[-1]:.0f} after 200: {1024 * rate:+.0f} +- {1024 * error:.0f}"
        )
        sys.stdout.write(f"\n200 jobs, {how}: {said} KiB a job; {handles[50]:.0f} and {handles[-1]:.0f} file handles\n")
    assert handles[-1] <= handles[50] and threads[-1] <= threads[50]
    assert rate < limit, "MiB a job"


@pytest.mark.slow
def test_a_million_texts_are_embedded_in_flat_memory(tmp_path, trained, capsys):
    """The peak with ten times the texts may differ by what they are kept in while they are sorted, and no more."""
    peaks = {}
    for count in (100_000, 1_000_000):
        source, target = tmp_path / f"{count}.txt", tmp_path / f"{count}.npy"
        with source.open("w") as stream:
            stream.writelines(f"text {number}\n" for number in range(count))
        code = (
            "import resource, subprocess, sys; done = subprocess.run(sys.argv[1:], capture_output=True, text=True); "
            "print(done.returncode, resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss, done.stderr[-500:])"
        )
        command = [sys.executable, "-c", code, sys.executable, "-m", "cft.encode", f"run={trained}", str(source)]
        ended = subprocess.run([*command, str(target)], capture_output=True, text=True)
        found = re.match(r"(\d+) (\d+) ", ended.stdout)
        assert found and found[1] == "0", ended.stdout + ended.stderr
        assert np.load(target, mmap_mode="r").shape == (count, 32)
        peaks[count] = int(found[2]) / 1024
    with capsys.disabled():
        sys.stdout.write(f"\npeak memory of cft.encode: {peaks[100_000]:.0f} MiB for 100,000 texts, ")
        sys.stdout.write(f"{peaks[1_000_000]:.0f} MiB for 1,000,000\n")
    assert peaks[1_000_000] < peaks[100_000] + 64
