"""The GPU kit runs through without a GPU, on tiny shapes, and keeps what its stages found, whatever ends them."""

import math
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace

import pytest

from cft.system.files import read_json

ROOT = Path(__file__).resolve().parents[2]
SCRIPT = ROOT / "benchmarks" / "gpu_kit.py"
STAGES = [
    "matrix_rate",
    "steps_minicpm",
    "steps_phi2",
    "steps_gemma",
    "tests",
    "peer",
    "compile",
    "nine_sets",
    "growth",
    "paper",
]


@pytest.fixture
def kit(monkeypatch, tmp_path):
    """The kit's modules, and a kit that looks at no device."""
    monkeypatch.syspath_prepend(str(ROOT / "benchmarks"))
    from gpu import report, stages
    from gpu.kit import Kit

    monkeypatch.setattr(stages, "machine", lambda kit: {"device": "CPU (made up)", "torch": "0"})
    return SimpleNamespace(stages=stages, report=report, kit=Kit(out=tmp_path, tiny=True, triplets="one", budget=60.0))


def run_all(kit, **stages) -> dict[str, dict]:
    """The records of stages with these functions, or times and functions."""
    given = [
        kit.stages.Stage(name, run, 20.0) if callable(run) else kit.stages.Stage(name, *run)
        for name, run in stages.items()
    ]
    kit.stages.run_all(kit.kit, given, again=False, last_needs=0.0)
    return kit.report.records(kit.kit.out)


def fine(kit, note) -> dict:
    return {"number": 1.5, "table": [("what", "value"), ("number", "1.5")]}


def test_a_stage_that_fails_is_recorded_and_the_others_go_on(kit, capsys):
    def fails(kit, note):
        note({"found": 2})
        raise RuntimeError("CUDA out of memory. Tried to allocate 2.00 GiB")

    def exits(kit, note):
        raise SystemExit("no such package")

    def is_killed(kit, note):
        os.kill(os.getpid(), signal.SIGKILL)

    found = run_all(kit, first=fails, second=exits, third=is_killed, fourth=fine)
    assert {name: record["status"] for name, record in found.items()} == {
        "first": "failed", "second": "failed", "third": "failed", "fourth": "done",
    }  # fmt: skip
    assert found["first"]["error"] == "RuntimeError: CUDA out of memory. Tried to allocate 2.00 GiB"
    assert found["first"]["result"] == {"found": 2} and "in fails" in found["first"]["traceback"]
    assert "no such package" in found["second"]["error"] and found["third"]["error"].endswith("status -9")
    assert found["fourth"]["result"]["number"] == 1.5 and found["fourth"]["device"] == "CPU (made up)"
    said = capsys.readouterr().out
    assert "first: failed" in said and "fourth: done" in said
    page = kit.report.page(kit.kit.out, ["first", "second", "third", "fourth", "fifth"])
    assert "CUDA out of memory" in page and "| number | 1.5 |" in page and "Not run yet: fifth." in page
    assert "CPU (made up): tiny shapes on a CPU: no result" in page


def test_a_stage_that_takes_too_long_is_stopped_with_what_it_started_and_what_it_noted(kit):
    def hangs(kit, note):
        child = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"])
        note({"child": child.pid})
        time.sleep(600)

    found = run_all(kit, slow=(hangs, 5.0), next=fine)
    assert found["slow"]["status"] == "stopped" and "stopped after 5 s" in found["slow"]["error"]
    assert found["next"]["status"] == "done"
    child = found["slow"]["result"]["child"]
    until = time.monotonic() + 10
    while time.monotonic() < until and Path(f"/proc/{child}").exists():
        if "State:\tZ" in Path(f"/proc/{child}/status").read_text():
            break
        time.sleep(0.05)
    else:
        assert not Path(f"/proc/{child}").exists(), "what it started lives on"


def test_a_second_call_redoes_what_is_missing_was_cut_off_or_had_other_settings(kit, monkeypatch):
    calls = kit.kit.out / "calls"

    def counts(name):
        def run(kit, note):
            with calls.open("a") as stream:
                stream.write(f"{name}\n")
            return fine(kit, note)

        return run

    def called() -> list[str]:
        found = calls.read_text().split() if calls.exists() else []
        calls.unlink(missing_ok=True)
        return found

    stages = {"one": counts("one"), "two": (counts("two"), 20.0, ("triplets",)), "three": counts("three")}
    run_all(kit, **stages)
    assert called() == ["one", "two", "three"]
    run_all(kit, **stages)
    assert called() == []
    from cft.system.files import write_json

    write_json(kit.kit.out / "three.json", read_json(kit.kit.out / "three.json") | {"status": "running"})
    (kit.kit.out / "one.json").unlink()
    run_all(kit, **stages)
    assert called() == ["one", "three"], "the kit was killed in one, and another's record is gone"
    from dataclasses import replace

    kit.kit = replace(kit.kit, triplets="other")
    run_all(kit, **stages)
    assert called() == ["two"], "it alone depends on the triplets"


def test_a_stage_that_failed_is_only_tried_again_on_request(kit):
    tries = kit.kit.out / "tries"

    def fails(kit, note):
        with tries.open("a") as stream:
            stream.write("x")
        raise RuntimeError

    stage = kit.stages.Stage("bad", fails, 20.0)
    for again in (False, False, True):
        kit.stages.run_all(kit.kit, [stage], again=again, last_needs=0.0)
    assert tries.read_text() == "xx"


def test_what_does_not_fit_into_the_budget_is_left_to_the_next_call(kit, capsys):
    stages = [kit.stages.Stage(name, fine, 20.0) for name in ("first", "last")]
    kit.stages.run_all(kit.kit, stages, again=False, last_needs=58.0)
    assert list(kit.report.records(kit.kit.out)) == ["last"]
    assert "first: not begun" in capsys.readouterr().out


def numbers(value) -> list[float]:
    if isinstance(value, bool):
        return []
    if isinstance(value, (int, float)):
        return [value]
    entries = value.values() if isinstance(value, dict) else value if isinstance(value, list) else ()
    return [number for entry in entries for number in numbers(entry)]


def call(*words: str) -> subprocess.CompletedProcess:
    environment = os.environ | {"PYTHONPATH": os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")])}
    command = [sys.executable, str(SCRIPT), *words]
    return subprocess.run(command, env=environment, capture_output=True, text=True, cwd=ROOT, check=False)


@pytest.fixture(scope="module")
def tiny(tmp_path_factory) -> SimpleNamespace:
    """The kit, run through once on tiny shapes."""
    out = tmp_path_factory.mktemp("kit") / "out"
    done = call("--tiny", "--out", str(out))
    assert done.returncode == 0, done.stderr
    return SimpleNamespace(out=out, said=done.stdout)


def test_every_stage_leaves_finite_numbers(tiny):
    found = {name: read_json(tiny.out / f"{name}.json") for name in STAGES}
    for name, record in found.items():
        why = "\n".join([str(record.get("error")), (tiny.out / f"{name}.log").read_text()[-2000:]])
        if name == "peer" and "ImportError" in why or "ModuleNotFoundError" in why:
            continue  # sentence-transformers is not here
        assert record["status"] == "done", f"{name}: {why}"
        values = numbers(record["result"])
        assert values and all(map(math.isfinite, values)), name
        assert record["device"] and record["torch"] and record["settings"]["tiny"] is True
    rates = found["matrix_rate"]["result"]["best"]
    assert set(rates) == {"float32", "TF32", "bfloat16"} and all(rate > 0 for rate in rates.values())
    for shape in ("minicpm", "phi2", "gemma"):
        result = found[f"steps_{shape}"]["result"]
        assert result["batches"] == "tree" and len(result["cases"]) == 4
        chunked = {name for name, case in result["cases"].items() if case["chunks"] > 1}
        assert chunked == {"4 triplets, in 4 chunks"}
        assert all(case["mfu"] > 0 and case["median_seconds"] > 0 for case in result["cases"].values())
    assert found["tests"]["result"]["counts"]["failed"] == 0
    assert sum(found["tests"]["result"]["counts"].values()) > 15
    assert found["nine_sets"]["result"]["ways"]["bfloat16"]["least_cosine_with_float32"] > 0.99
    assert len(found["growth"]["result"]["sizes"]) == 3
    assert found["paper"]["result"]["steps"] == 4
    assert set(found["paper"]["result"]["means"]) == {"before", "after"}


def test_the_page_says_that_tiny_shapes_are_no_result(tiny):
    page = (tiny.out / "report.md").read_text()
    assert re.search(r"^\*\*CPU \(.*\): tiny shapes on a CPU: no result\*\*$", page, re.MULTILINE) or "GPU" in page
    assert [line[3:] for line in page.splitlines() if line.startswith("## ")] == STAGES
    assert page in tiny.said


def test_a_second_call_redoes_nothing(tiny):
    before = {path.name: path.stat().st_mtime_ns for path in tiny.out.glob("*.json")}
    done = call("--tiny", "--out", str(tiny.out))
    assert done.returncode == 0 and [f"{name}: done before" in done.stdout for name in STAGES] == [True] * len(STAGES)
    assert {path.name: path.stat().st_mtime_ns for path in tiny.out.glob("*.json")} == before


def test_without_a_gpu_it_says_how_to_see_it_run():
    import torch

    if torch.cuda.device_count():
        pytest.skip("there is a GPU here")
    done = call()
    assert done.returncode == 2 and "make gpu TINY=1" in done.stderr and not done.stdout
