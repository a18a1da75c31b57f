"""Several processes that train one model give what one process gives."""

import json
import signal
import socket
import time
from pathlib import Path

import numpy as np
import pytest
import rank_worker
import torch
from forked import Commands, Started
from jobs import QUICK, run_folder
from safetensors import safe_open
from safetensors.torch import load_file

from cft.config.schema import Role
from cft.system.distributed import SINGLE_PROCESS, World, device_of_rank
from cft.system.errors import UserError
from cft.training import checkpoint

TESTS = Path(__file__).resolve().parents[1]


def start(commands: Commands, size: int, *command: str) -> list[Started]:
    """Processes as torchrun starts them."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    given = {"WORLD_SIZE": str(size), "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    return [commands.start(*command, env={**given, "RANK": str(rank), "LOCAL_RANK": str(rank)}) for rank in range(size)]


def finish(processes: list[Started], timeout: float = 180) -> list[str]:
    """What all of them said; they must all end well."""
    try:
        ended = [process.wait(timeout) for process in processes]
    finally:
        for process in processes:
            process.kill()
    said = [one.out + one.err for one in ended]
    assert [one.status for one in ended] == [0] * len(ended), "\n".join(said)
    return said


@pytest.fixture(scope="module", params=[2, 4])
def together(request, commands, tmp_path_factory) -> Path:
    path = tmp_path_factory.mktemp("ranks") / "gradients.safetensors"
    finish(start(commands, request.param, str(TESTS / "rank_worker.py"), str(path)))
    return path


@pytest.fixture(scope="module")
def alone() -> dict[str, tuple[float, dict[str, torch.Tensor]]]:
    return rank_worker.measure(SINGLE_PROCESS)


@pytest.mark.parametrize("case", rank_worker.CASES)
def test_the_split_over_processes_changes_neither_loss_nor_gradients(alone, together, case):
    loss, expected = alone[case]
    with safe_open(together, framework="pt") as stream:
        assert json.loads(stream.metadata()["losses"])[case] == pytest.approx(loss, rel=1e-5)
        found = {key: stream.get_tensor(f"{case}/{key}") for key in expected}
    whole = torch.cat([gradient.flatten() for gradient in expected.values()]).norm()
    assert whole > 1e-3
    for name, gradient in expected.items():
        assert (found[name] - gradient).norm() < 1e-5 * whole, name


def test_texts_that_all_processes_embed_have_the_vectors_of_one(together):
    with safe_open(together, framework="pt") as stream:
        found, counts = stream.get_tensor("vectors").numpy(), json.loads(stream.metadata()["counts"])
    embedder = rank_worker.tuned().with_prompts(rank_worker.PROMPTS)
    documents = embedder.in_role(Role.document).encode(rank_worker.TEXTS[:9])
    expected = [embedder.encode(rank_worker.TEXTS), documents, embedder.encode(["x"])]
    np.testing.assert_allclose(found, np.concatenate(expected), atol=1e-6)
    assert sum(counts) == len(set(rank_worker.TEXTS)) + len(set(rank_worker.TEXTS[:9])) + 1
    assert max(counts) - min(counts) <= 3, "the shares are equal, but for the text that is alone"


JOB = [*(entry for entry in QUICK if not entry.startswith("lora.dropout")), "lora.dropout=0"]


@pytest.fixture(scope="module")
def trained(commands, tmp_path_factory) -> tuple[Path, Path, list[str]]:
    """The same job by one process and by two, and what the two said."""
    one, two = tmp_path_factory.mktemp("one"), tmp_path_factory.mktemp("two")
    finish([commands.start("cft.run", *JOB, f"outputs={one}")])
    said = finish(start(commands, 2, "cft.run", *JOB, f"outputs={two}"))
    return one, two, said


def test_a_job_of_two_processes_has_the_result_of_one(trained):
    one, two, _ = trained
    assert run_folder(one).name == run_folder(two).name, "how many processes trained it is not part of what it is"
    rows = [
        [json.loads(line) for line in (run_folder(outputs) / "history.jsonl").read_text().splitlines()]
        for outputs in (one, two)
    ]
    for alone, shared in zip(*rows, strict=True):
        assert shared["event"] == alone["event"]
        if alone["event"] == "step":
            assert shared["loss"] == pytest.approx(alone["loss"], rel=1e-5)
            assert shared["gradient_norm"] == pytest.approx(alone["gradient_norm"], rel=1e-3)
            assert shared["tokens"] == alone["tokens"]
    weights = [load_file(run_folder(outputs) / "adapter" / "adapter_model.safetensors") for outputs in (one, two)]
    for name, tensor in weights[0].items():
        assert torch.allclose(weights[1][name], tensor, atol=1e-4), name
    scores = [sorted(outputs.glob("*/evaluations/*/cosines.npz")) for outputs in (one, two)]
    assert len(scores[0]) == 4
    for alone, shared in zip(*scores, strict=True):
        atol = 1e-6 if alone.parts[-4].startswith("base") else 1e-3
        with np.load(alone) as of_one, np.load(shared) as of_two:
            for name in [name for name in of_one.files if of_one[name].dtype.kind == "f"]:
                np.testing.assert_allclose(of_two[name], of_one[name], atol=atol, err_msg=name)
    assert json.loads((run_folder(two) / "environment.json").read_text())["processes"] == 2


def test_only_the_first_process_speaks_and_writes(trained):
    _, two, (first, second) = trained
    assert "on 2 processes" in first and "before and after 6 steps" in first
    assert "step" not in second and "loading" not in second
    assert len(list(two.glob("tiny-*"))) == 1


def test_the_others_end_with_a_clear_error_when_one_dies(commands, tmp_path):
    first, second = start(commands, 2, "cft.run", *JOB, "train.steps=5000", "train.epochs=1000", f"outputs={tmp_path}")
    try:
        deadline = time.monotonic() + 120
        while not list(tmp_path.glob("tiny-*/checkpoint.safetensors")):
            assert time.monotonic() < deadline and first.poll() is None, "no checkpoint in time"
            time.sleep(0.2)
        second.send_signal(signal.SIGKILL)
        ended = first.wait(60)
    finally:
        for process in (first, second):
            process.kill()
    assert ended.status == 2
    said = ended.out + ended.err
    assert "another process of this training has ended or cannot be reached" in said and "Traceback" not in said
    assert list(tmp_path.glob("tiny-*/checkpoint.safetensors")), "what was done is kept"


def test_all_processes_leave_after_the_same_step(commands, tmp_path):
    """Only one of them is asked, as a signal may reach the others later."""
    both = start(commands, 2, "cft.run", *JOB, "train.steps=5000", "train.epochs=1000", f"outputs={tmp_path}")
    try:
        deadline = time.monotonic() + 120
        while not list(tmp_path.glob("tiny-*/checkpoint.safetensors")):
            assert time.monotonic() < deadline and both[0].poll() is None, "no checkpoint in time"
            time.sleep(0.2)
        both[1].send_signal(signal.SIGTERM)
        ended = [process.wait(60) for process in both]
    finally:
        for process in both:
            process.kill()
    said = [one.out + one.err for one in ended]
    assert [one.status for one in ended] == [143, 143], said
    assert not any("Traceback" in text for text in said)
    assert checkpoint.step_of(run_folder(tmp_path)) > 0


def test_shares_cover_every_row_once():
    for size in (1, 2, 3, 7):
        for count in (7, 12, 60):
            parts = [World(rank, size).shard(count) for rank in range(size)]
            assert [row for part in parts for row in range(count)[part]] == list(range(count))
            assert all(len(range(count)[part]) >= count // size for part in parts)


def test_more_processes_than_triplets_are_refused():
    from jobs import composed

    from cft.job import training_stage

    with pytest.raises(UserError, match=r"gives 8 triplets to 9 processes: raise it, or start fewer"):
        training_stage.require_enough_triplets(composed(*QUICK), World(0, 9))


def test_each_process_of_a_machine_has_its_own_gpu(monkeypatch):
    monkeypatch.setenv("LOCAL_RANK", "3")
    assert device_of_rank(torch.device("cuda")) == torch.device("cuda", 3)
    assert device_of_rank(torch.device("cpu")) == torch.device("cpu")
    monkeypatch.delenv("LOCAL_RANK")
    assert device_of_rank(torch.device("cuda")) == torch.device("cuda")


def test_a_study_is_not_for_torchrun(commands):
    done = commands.run("cft.study", "run", "table2", "--scale", "smoke", env={"WORLD_SIZE": "2"})
    assert done.status == 2 and "torchrun is for cft.run" in done.err
