"""Listing, comparing and removing runs; one GPU for each of several processes."""

import json
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from cft.config.compose import compose_config
from cft.job import runs
from cft.system import devices
from cft.system.digest import to_plain
from cft.system.errors import UserError
from cft.system.files import exclusive_lock, write_json


def test_runs_are_listed_with_settings_and_scores_and_filtered_by_any_key(paper):
    header, *rows = runs.list_runs(paper.outputs, [])
    assert header[0] == "run" and {row[2] for row in rows} == {"tiny"}
    assert {row[7] for row in rows} >= {"captions, {text}", "step 2, captions, {text}"}
    assert {row[4] for row in runs.list_runs(paper.outputs, ["lr=5e-3"])[1:]} == {"0.005"}
    assert {row[1] for row in runs.list_runs(paper.outputs, ["lr=0.005"])[1:]} == {"at step 3 of 6"}
    assert {row[5] for row in runs.list_runs(paper.outputs, ["loss=false", "model=TINY"])[1:]} == {"false"}
    assert runs.list_runs(paper.outputs, ["train.batch_size=99"]) == [header]
    with pytest.raises(UserError, match="lrr=1: a filter is KEY=VALUE .* Did you mean lr"):
        runs.list_runs(paper.outputs, ["lrr=1"])


@pytest.mark.parametrize(
    ("word", "other"),
    [
        ("loss=in_batch", "loss=hard_neg"),
        ("schedule=cosine", "schedule=linear"),
        ("eval=pairs", "eval=sts"),
        ("logger=none", "logger=csv"),
        ("data.negative_columns=[hard_neg]", "data.negative_columns=[]"),
        ("loss.dimensions=[8, 16]", "loss.dimensions=[8,24]"),
        ("prompt.template='{text}, is'", "prompt.template='{text}, was'"),
    ],
)
def test_a_filter_is_written_as_the_setting_was(tmp_path, word, other):
    given = ["model=tiny", "data=files", "data.train=a.csv", "eval=pairs", "eval.file=b.csv", "logger=none"]
    config = to_plain(
        compose_config([*given, "loss=in_batch", "loss.dimensions=[8,16]", "prompt.template='{text}, is'"])
    )
    (tmp_path / "run").mkdir()
    write_json(tmp_path / "run" / "config.json", config)
    assert len(runs.list_runs(tmp_path, [word])) == 2
    assert len(runs.list_runs(tmp_path, [other])) == 1


def test_a_filter_by_a_group_of_settings_is_refused_as_no_run_could_fit(tmp_path):
    with pytest.raises(UserError, match="lora=paper: lora is a group of settings; .*such as lora.rank=VALUE"):
        runs.list_runs(tmp_path, ["lora=paper"])


def test_two_runs_are_compared_by_settings_and_scores_with_a_verdict(paper):
    one, other = (runs.list_runs(paper.outputs, [f"loss={loss}", "lr=5e-4"])[1][0] for loss in ("false", "true"))
    text = runs.compare_runs(paper.outputs / one, paper.outputs / other)
    settings, _, table = text.partition("\n\n")
    assert [line.split()[0] for line in settings.splitlines()[2:]] == ["loss.hard_negatives"]
    assert "prompt '{text}'" in table
    row = next(line for line in table.splitlines() if line.startswith("captions "))
    found = re.search(r"([+-][\d.]+) \[([+-][\d.]+), ([+-][\d.]+)\] +(.+?)$", row)
    difference, lowest, highest = (float(number) for number in found.groups()[:3])
    assert lowest < difference < highest
    expected = "higher" if lowest > 0 else "lower" if highest < 0 else "not distinguishable"
    assert found[4] == expected, "the verdict is what the interval says"
    base = next(paper.outputs.glob("base-*"))
    assert "the first is" in text and "first minus second" in text
    scores = [float(number) for number in re.findall(r"(?<= )-?[\d.]+(?= )", row)[:2]]
    assert scores[0] - scores[1] == pytest.approx(float(found[1]), abs=0.011)
    assert "the first is" in runs.compare_runs(base, paper.outputs / one)


def test_a_run_compared_with_itself_is_not_distinguishable(paper):
    folder = paper.outputs / runs.list_runs(paper.outputs, ["lr=5e-4"])[1][0]
    text = runs.compare_runs(folder, folder)
    assert text.startswith("the settings are the same") and "+0.00 [+0.0, +0.0]" in text
    assert "higher" not in text and "lower" not in text


def test_settings_that_change_no_result_are_not_compared(trained, tmp_path):
    other = tmp_path / "other"
    shutil.copytree(trained, other)
    config = json.loads((other / "config.json").read_text())
    del config["checksum"]
    config["vector_cache_gb"], config["seed"] = 0.5, 7
    config["train"] |= {"chunk_tokens": 4096, "gradient_checkpointing": True, "keep": [1], "checkpoint_every": 3}
    (other / "config.json").write_text(json.dumps(config))
    table = runs.compare_runs(trained, other).split("\n\n")[0].splitlines()
    assert [line.split() for line in table[2:]] == [["seed", "0", "7"]]


def test_runs_are_compared_and_found_by_the_precision_that_was_taken(trained, tmp_path):
    for name, dtype in (("one", "float32"), ("other", "bfloat16")):
        shutil.copytree(trained, tmp_path / name)
        for file, changed in (("config.json", {"seed": 3}), ("contract.json", {"dtype": dtype})):
            record = json.loads((tmp_path / name / file).read_text()) | changed
            del record["checksum"]
            (tmp_path / name / file).write_text(json.dumps(record))
    assert runs.settings_of(runs.RunFolder(tmp_path / "one"))["train.precision"] == "auto"
    table = runs.compare_runs(tmp_path / "one", tmp_path / "other").split("\n\n")[0].splitlines()
    assert [line.split() for line in table[2:]] == [["train.precision", "fp32", "bf16"]]
    for value, named in (("bf16", {"other"}), ("fp32", {"one"}), ("auto", {"one", "other"})):
        assert {row[0] for row in runs.list_runs(tmp_path, [f"train.precision={value}"])[1:]} == named


def test_a_run_is_found_by_the_end_of_its_name(paper, tmp_path):
    name = runs.list_runs(paper.outputs, ["lr=5e-3"])[1][0]
    assert (
        runs.find_run(paper.outputs, name[-6:])
        == runs.find_run(paper.outputs, str(paper.outputs / name))
        == paper.outputs / name
    )
    with pytest.raises(UserError, match="zzz: no such run under .*; there: .*tiny-captions-"):
        runs.find_run(paper.outputs, "zzz")
    elsewhere = tmp_path / "elsewhere" / "tiny-captions-1"
    elsewhere.mkdir(parents=True)
    with pytest.raises(UserError, match=f"{elsewhere} is not under .*: add outputs={elsewhere.parent}"):
        runs.find_run(paper.outputs, str(elsewhere))


def pretend(outputs: Path, *names: str) -> None:
    """Folders that look like runs."""
    for name in names:
        (outputs / name).mkdir(parents=True)
        (outputs / name / "config.json").write_text("{}")


@pytest.mark.parametrize("name", ["", " "])
@pytest.mark.parametrize("command", [["remove", "--yes"], ["compare", "tiny-a1"]])
def test_an_empty_name_names_no_run(tmp_path, commands, name, command):
    pretend(tmp_path, "tiny-a1")
    result = commands.run("cft.runs", f"outputs={tmp_path}", *command, name)
    assert result.status == 2 and "names no run: give its folder, or the end of its name" in result.err
    assert (tmp_path / "tiny-a1").exists()


def test_a_whole_name_is_not_taken_for_the_end_of_another(tmp_path):
    pretend(tmp_path, "tiny-1", "xtiny-1")
    assert runs.find_run(tmp_path, "tiny-1") == runs.find_run(tmp_path, "tiny-1/") == tmp_path / "tiny-1"
    with pytest.raises(UserError, match="ny-1: several runs end so"):
        runs.find_run(tmp_path, "ny-1")


def test_a_run_that_is_named_twice_is_removed_once(tmp_path, commands):
    pretend(tmp_path, "tiny-a1", "tiny-b2", "tiny-c3")
    named = ["a1", "tiny-a1", str(tmp_path / "tiny-a1"), "b2"]
    result = commands.run("cft.runs", f"outputs={tmp_path}", "remove", *named, "--yes")
    assert result.status == 0, result.err
    assert result.out.count("tiny-a1") == 1 and result.out.endswith("removed 2\n")
    assert [path.name for path in tmp_path.iterdir()] == ["tiny-c3"]


def test_of_a_link_to_a_run_nothing_is_removed(tmp_path):
    for name in ("tiny-captions-1", "tiny-captions-2"):
        (tmp_path / name).mkdir()
    link = tmp_path / "link"
    link.symlink_to("tiny-captions-2")
    with pytest.raises(UserError, match="link is a link to tiny-captions-2: name that folder; nothing was removed"):
        runs.remove_runs([tmp_path / "tiny-captions-1", link], sure=True)
    assert {path.name for path in tmp_path.iterdir()} == {"tiny-captions-1", "tiny-captions-2", "link"}


def test_a_run_is_removed_when_asked_twice_and_not_while_it_works(paper, commands, tmp_path):
    outputs = tmp_path / "copy"
    shutil.copytree(paper.outputs, outputs)
    name = runs.list_runs(outputs, ["lr=5e-3"])[1][0]
    command = ["cft.runs", "--outputs", str(outputs), "remove", name]
    result = commands.run(*command)
    assert result.status == 2 and "add --yes" in result.err and (outputs / name).exists()
    with exclusive_lock(outputs / name):
        result = commands.run(*command, "--yes")
    assert result.status == 2 and "is at work in" in result.err and (outputs / name).exists()
    assert commands.run(*command, "--yes").status == 0
    assert not (outputs / name).exists()


def test_processes_claim_different_gpus(tmp_path, monkeypatch):
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "0,1")
    code = (
        "import sys; from pathlib import Path; from cft.system.devices import claim_device; "
        f"folder = Path({str(tmp_path)!r}); "
        "print(claim_device(folder), claim_device(folder), flush=True); sys.stdin.read()"
    )
    started = [
        subprocess.Popen(
            [sys.executable, "-c", code],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            cwd=Path(__file__).parents[2],
        )
        for _ in range(2)
    ]
    claims = sorted(process.stdout.readline().split() for process in started)
    assert claims == [["0", "0"], ["1", "1"]], "each its own, and the same one when asked again"
    for process in started:
        process.communicate("")


def test_a_gpu_of_another_machine_is_another_one(tmp_path, monkeypatch):
    """Machines of a cluster have the folder in common, and GPUs of the same names."""
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "0,1")
    kept = []  # an open file is a claim
    for machine in ("one", "other"):
        monkeypatch.setattr("socket.gethostname", lambda machine=machine: machine)
        monkeypatch.setattr(devices, "_claimed", {})
        assert devices.claim_device(tmp_path) == "0"
        kept.append(devices._claimed)
    monkeypatch.setattr(devices, "_claimed", {})
    assert devices.claim_device(tmp_path) == "1"


@pytest.mark.parametrize("visible", ["", "3"])
def test_without_a_choice_of_gpus_nothing_is_claimed(tmp_path, monkeypatch, visible):
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", visible)
    assert devices.claim_device(tmp_path) is None and not list(tmp_path.iterdir())
