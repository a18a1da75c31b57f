"""A whole job on a tiny random model: what it leaves, that it resumes, and that it is not done twice."""

import dataclasses
import json
import shutil
import signal
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from forked import ROOT
from jobs import QUICK, SCORED, adapter_bytes, history, run_folder, scores, settings

from cft.config.compose import check_overrides
from cft.job import runner, scoring
from cft.job.plan import RECIPE, TRAINING_RECIPE, make_plan
from cft.model.embedder import Embedder
from cft.system.errors import UserError
from cft.training import checkpoint, trainer


def test_a_job_leaves_a_complete_record(finished):
    folder = run_folder(finished)
    for name in (
        "config.json contract.json adapter/adapter_model.safetensors adapter/adapter_config.json metrics.json "
        "history.jsonl log.txt environment.json data.json training.json training.png training.svg"
    ).split():
        assert (folder / name).stat().st_size > 0, name
    assert not (folder / checkpoint.FILE_NAME).exists()
    assert not list(folder.rglob("*.part"))
    metrics = scores(finished)
    assert metrics["before"]["sets"]["captions"]["pairs"] == 40
    assert metrics["after"]["mean"] != metrics["before"]["mean"], "training must have changed the scores"
    (evaluation,) = folder.glob("evaluations/captions-*")
    for name in ("metrics.json", "cosines.npz", "table.md", "scores.png", "scores.svg", "similarities.png"):
        assert (evaluation / name).stat().st_size > 0, name
    with np.load(evaluation / "cosines.npz", allow_pickle=False) as arrays:
        assert arrays["set/captions"].shape == (40,) and np.isfinite(arrays["set/captions"]).all()


def test_the_history_has_every_step_and_the_development_scores(finished):
    rows = history(run_folder(finished))
    steps = [row for row in rows if row["event"] == "step"]
    assert [row["step"] for row in steps] == [1, 2, 3, 4, 5, 6]
    assert [row["step"] for row in rows if row["event"] == "dev"] == [3, 6]
    assert all(row["candidates"] == 16 and 0 < row["nodes"] <= row["tokens"] for row in steps)
    assert steps[0]["lr"] == 0.0 and steps[1]["lr"] == pytest.approx(5e-4)


def test_the_stored_embedder_gives_the_stored_scores(finished):
    folder = run_folder(finished)
    embedder = Embedder.load(folder)
    vectors = embedder.encode(["A man is playing.", "A man plays."])
    assert vectors.shape == (2, 32)
    record = json.loads((folder / "contract.json").read_text())
    assert record["suffix_ids"] == [1] and record["model"] == "random:llama" and len(record["adapter"]) == 64


def test_a_finished_job_is_not_done_again(finished, monkeypatch):
    before = adapter_bytes(finished)
    monkeypatch.setattr(runner, "train", lambda *a, **k: pytest.fail("trained again"))
    monkeypatch.setattr(scoring, "evaluate", lambda *a, **k: pytest.fail("evaluated again"))
    assert runner.run(settings(finished)).startswith("mean ")
    assert adapter_bytes(finished) == before


def test_a_prompt_at_evaluation_never_retrains(finished, tmp_path, monkeypatch):
    outputs = tmp_path / "copy"
    shutil.copytree(finished, outputs)
    monkeypatch.setattr(runner, "train", lambda *a, **k: pytest.fail("trained again"))
    runner.run(settings(outputs, "prompt=prompt2"))
    assert len(list(run_folder(outputs).glob("evaluations/captions-*"))) == 2
    entries = json.loads((run_folder(outputs) / "metrics.json").read_text()).values()
    assert {entry["prompt"] for entry in entries} == {"{text}", "This sentence {text} means: "}
    assert len({entry["after"]["mean"] for entry in entries}) == 2


def test_a_prompt_for_after_training_is_the_embedders_and_not_the_trainings(finished, tmp_path):
    outputs = tmp_path / "after"
    runner.run(settings(outputs, "prompt=prompt2", "prompt.use=after"))
    folder, plain = run_folder(outputs), run_folder(finished)
    assert adapter_bytes(outputs) == adapter_bytes(finished) and folder.name != plain.name

    embedder = Embedder.load(folder)
    assert embedder.contract.template == scores(outputs)["prompt"] == "This sentence {text} means: "
    texts = ["A man is playing.", "A man plays."]
    by_hand = Embedder.load(plain).with_template(embedder.contract.template).encode(texts)
    np.testing.assert_array_equal(embedder.encode(texts), by_hand)

    looks = [[row for row in history(one) if row["event"] == "dev"] for one in (folder, plain)]
    assert [row["step"] for row in looks[0]] == [3, 6] and looks[0] != looks[1]
    card = (folder / "README.md").read_text()
    assert "| prompt in training | none |" in card
    assert "| prompt of the embedder | `This sentence {text} means: ` |" in card


@pytest.mark.parametrize(
    "override",
    ["lr=1e-4", "seed=1", "loss=in_batch", "loss.temperature=0.1", "lora.rank=4", "train.steps=5", "data.rows=199"],
)
def test_what_changes_the_result_changes_the_folder(override, tmp_path):
    one, other = (make_plan(settings(tmp_path, *extra)).folder for extra in ([], [override]))
    assert one != other


def test_another_seed_trains_anew_on_the_same_data(tmp_path):
    one, other = (make_plan(settings(tmp_path, f"seed={seed}")) for seed in (0, 1))
    assert one.data.content == other.data.content and one.sets == other.sets
    assert one.scores_folder(one.base_folder) == other.scores_folder(other.base_folder)
    assert one.folder != other.folder


def test_the_last_step_is_always_followed_by_a_look_at_the_development_data(tmp_path):
    runner.run(settings(tmp_path, "train.eval_every=100"))
    rows = history(run_folder(tmp_path))
    assert [row["step"] for row in rows if row["event"] == "dev"] == [6]


@pytest.mark.parametrize("override", ["train.checkpoint_every=3", "prompt=prompt1", "logger.project=x", "eval.rows=50"])
def test_what_does_not_change_the_result_keeps_the_folder(override, tmp_path):
    one, other = (make_plan(settings(tmp_path, *extra)).folder for extra in ([], [override]))
    assert one == other


@pytest.mark.parametrize("stop_after", [1, 2, 4, 5])
def test_a_training_stopped_after_any_step_ends_with_the_same_bytes(finished, tmp_path, monkeypatch, stop_after):
    real = trainer._step
    done = []

    def stop(*arguments, **keywords):
        if len(done) == stop_after:
            raise KeyboardInterrupt
        done.append(keywords["step"])
        return real(*arguments, **keywords)

    monkeypatch.setattr(trainer, "_step", stop)
    with pytest.raises(KeyboardInterrupt):
        runner.run(settings(tmp_path))
    monkeypatch.setattr(trainer, "_step", real)
    torch.manual_seed(999)  # the global random state must not matter
    runner.run(settings(tmp_path))
    assert adapter_bytes(tmp_path) == adapter_bytes(finished)
    one, other = ((run_folder(o) / "metrics.json").read_bytes() for o in (tmp_path, finished))
    assert one == other
    strip = [
        [
            {k: v for k, v in json.loads(line).items() if k != "seconds"}
            for line in (run_folder(o) / "history.jsonl").open()
        ]
        for o in (tmp_path, finished)
    ]
    assert strip[0] == strip[1]


def test_a_killed_process_is_continued_by_the_same_command(commands, finished, tmp_path):
    command = ["cft.run", *QUICK, f"outputs={tmp_path}"]
    process = commands.start(*command)
    deadline = time.monotonic() + 120
    while not list(tmp_path.glob(f"tiny-*/{checkpoint.FILE_NAME}")):
        assert process.poll() is None, "it ended before it could be killed"
        assert time.monotonic() < deadline
        time.sleep(0.002)
    process.send_signal(signal.SIGKILL)
    process.wait()
    result = commands.run(*command)
    assert result.status == 0, result.err
    assert adapter_bytes(tmp_path) == adapter_bytes(finished)
    again = commands.run(*command)
    assert "already trained" in again.out and "captions" in again.out


def test_an_interrupted_job_says_how_to_go_on(commands, tmp_path):
    process = commands.start("cft.run", *QUICK, "train.steps=25", f"outputs={tmp_path}")
    deadline = time.monotonic() + 120
    while not list(tmp_path.glob(f"tiny-*/{checkpoint.FILE_NAME}")):
        assert process.poll() is None and time.monotonic() < deadline
        time.sleep(0.002)
    process.send_signal(signal.SIGINT)
    ended = process.wait()
    assert ended.status == 130
    assert "the same command goes on from the last checkpoint" in ended.err and "Traceback" not in ended.err


def test_a_damaged_checkpoint_is_named(tmp_path, monkeypatch):
    real = trainer._step

    def stop(*arguments, **keywords):
        if keywords["step"] == 3:
            raise KeyboardInterrupt
        return real(*arguments, **keywords)

    monkeypatch.setattr(trainer, "_step", stop)
    with pytest.raises(KeyboardInterrupt):
        runner.run(settings(tmp_path))
    path = run_folder(tmp_path) / checkpoint.FILE_NAME
    path.write_bytes(path.read_bytes()[:100])
    with pytest.raises(UserError, match="is damaged .* delete it to start this training over"):
        runner.run(settings(tmp_path))


def test_a_loss_that_is_not_finite_stops_the_training_and_names_step_and_rows(tmp_path, monkeypatch):
    real = trainer.contrastive_backward

    def broken(*arguments, **keywords):
        return dataclasses.replace(real(*arguments, **keywords), loss=float("nan"))

    monkeypatch.setattr(trainer, "contrastive_backward", broken)
    with pytest.raises(
        UserError, match=r"the loss of step 1 is nan; triplets (\d+, ){7}\d+ made it .* anchors begin '"
    ):
        runner.run(settings(tmp_path))
    assert not (run_folder(tmp_path) / "training.json").exists()


def test_the_golden_run(finished):
    """Guards the numbers of a tiny seeded run; they may only change with plan.RECIPE or plan.TRAINING_RECIPE."""
    rows = history(run_folder(finished))
    losses = [row["loss"] for row in rows if row["event"] == "step"]
    metrics = scores(finished)
    assert (RECIPE, TRAINING_RECIPE) == (2, 2)
    assert losses == pytest.approx(GOLDEN_LOSSES, abs=5e-5)
    assert metrics["before"]["mean"] == pytest.approx(GOLDEN_BEFORE, abs=0.1)


GOLDEN_LOSSES = [2.69284, 2.68863, 2.65597, 2.66326, 2.63685, 2.65016]
GOLDEN_BEFORE = 86.547


@pytest.mark.parametrize(
    "overrides",
    [["lora=none"], ["train.accumulation=2"], ["train.gradient_checkpointing=true"], ["train.precision=bf16"]],
)
def test_other_ways_to_train_run_to_the_end(tmp_path, overrides):
    runner.run(settings(tmp_path, *overrides))
    folder = run_folder(tmp_path)
    assert (folder / "training.json").exists()
    assert Embedder.load(folder).encode(["a"]).shape == (1, 32)


def test_without_steps_only_the_base_model_is_scored(tmp_path):
    assert runner.run(settings(tmp_path, "train.steps=0")).startswith("mean ")
    (folder,) = tmp_path.iterdir()
    assert folder.name.startswith("base-tiny-")
    assert list(folder.glob("evaluations/captions-*/table.md"))


def test_training_data_that_nothing_is_trained_on_are_said_not_to_be_read(tmp_path, caplog):
    caplog.set_level("INFO", logger="cft")
    runner.run(settings(tmp_path, "data=files", "data.train=nowhere.csv", "train.steps=0", *SCORED))
    assert "train.steps=0: nothing is trained, and nowhere.csv is not read" in caplog.text


def test_development_pairs_that_are_learnt_or_tested_are_said(tmp_path, caplog):
    rows = [{"sent0": f"a {n}", "sent1": f"b {n}", "hard_neg": f"c {n}"} for n in range(20)]
    (tmp_path / "t.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    # in either order, case and marks aside; an anchor with another row's positive is no row of the training
    (tmp_path / "scored.csv").write_text("sentence1,sentence2,score\nd 1,e 1,1\nd 2,e 2,0\n")
    pairs = ["B 3!,a 3", "a 4,c 4", "a 5,b 6", "b 7,c 7", "e 2,d 2", "x 1,y 1"]
    lines = ["sentence1,sentence2,score", *(f"{pair},{n}" for n, pair in enumerate(pairs))]
    (tmp_path / "dev.csv").write_text("\n".join(lines))
    (tmp_path / "test.csv").write_text("sentence1,sentence2,score\ny 1,x 1,1\nz 1,x 2,0\n")
    words = ["data=files", f"data.train={tmp_path / 't.jsonl'}", f"data.dev={tmp_path / 'dev.csv'}", "data.holdout=0"]
    words += [f"data.scored={tmp_path / 'scored.csv'}", "train=paper", "eval=pairs", "eval.name=mine"]
    words += ["loss.scored=cosent", "train.scored_batch=2", "train.steps=1", "train.batch_size=4", "data.rows=null"]
    runner.run(settings(tmp_path / "o", *words, f"eval.file={tmp_path / 'test.csv'}"))
    assert "3 of 6 development pairs are trained on, as scored pairs or as an anchor with its positive" in caplog.text
    assert "1 of 6 development pairs stand in the test sets (test)" in caplog.text


def test_unknown_lora_targets_are_refused_before_anything_is_evaluated(tmp_path, monkeypatch):
    monkeypatch.setattr(scoring, "evaluate", lambda *a, **k: pytest.fail("evaluated first"))
    with pytest.raises(UserError, match="no linear layer named 'Wqkv'; its linear layers are down_proj, gate_proj"):
        runner.run(settings(tmp_path, "lora.targets=[Wqkv]"))


def test_too_few_triplets_for_a_batch_are_refused(tmp_path):
    with pytest.raises(UserError, match="5 training triplets do not fill one batch of train.batch_size=8"):
        runner.run(settings(tmp_path, "data.rows=5"))


def test_a_training_that_no_gradient_reaches_is_refused(tmp_path, monkeypatch):
    """As when a kernel without a gradient stands between the trained weights and the embedding."""
    forward = Embedder.forward

    def cut_off(embedder, layout):
        return forward(embedder, layout).detach().requires_grad_(True)

    monkeypatch.setattr(Embedder, "forward", cut_off)
    with pytest.raises(UserError, match="no gradient reaches the trained weights"):
        runner.run(settings(tmp_path))


def test_a_device_that_is_not_there_is_refused(tmp_path):
    with pytest.raises(UserError, match="device=tpu: must be auto, cpu, cuda or mps"):
        runner.run(settings(tmp_path, "device=tpu"))


def test_a_sweep_runs_every_job_and_reports_a_failing_one_at_once(commands, tmp_path):
    overrides = [*QUICK, f"outputs={tmp_path}", "data.rows=200,5,199"]
    check_overrides(overrides)
    result = commands.run("cft.run", "-m", *overrides)
    assert result.status == 2, "a job failed for a reason that the user can mend"
    assert len(list(tmp_path.glob("tiny-*/training.json"))) == 2
    assert "5 training triplets do not fill one batch" in result.err
    assert "Traceback" not in result.err
    assert result.out.count("before and after 6 steps") == 2
    assert not list(ROOT.glob("multirun")), "it ran there"


def test_a_sweep_over_the_learning_rate_gives_a_run_each_and_one_wandb_group(commands, tmp_path):
    overrides = [*QUICK, f"outputs={tmp_path}", "logger=wandb_offline", "lr=1e-5,5e-5,1e-4"]
    result = commands.run("cft.run", "-m", *overrides, env={"WANDB_MODE": "offline"}, timeout=300)
    assert result.status == 0, result.err
    assert len(list(tmp_path.glob("tiny-*/training.json"))) == 3
    assert result.out.count("lr=") >= 3
    runs = list(tmp_path.glob("wandb/offline-run-*/*.wandb"))
    assert len(runs) == 3
    (sweep,) = (tmp_path / "sweeps").iterdir()
    assert all(sweep.name.encode() in run.read_bytes() for run in runs)


def step_adapter(outputs: Path, step: int) -> bytes:
    return (run_folder(outputs) / "steps" / f"{step:06}" / "adapter" / "adapter_model.safetensors").read_bytes()


def test_an_earlier_step_is_scored_and_the_training_goes_on_from_there(tmp_path, finished, monkeypatch):
    done = []
    step = trainer._step
    monkeypatch.setattr(trainer, "_step", lambda *a, **k: done.append(k["step"]) or step(*a, **k))
    outcome = runner.run(settings(tmp_path, "eval.step=3"))
    assert done == [0, 1, 2], "no further than asked"
    assert "steps/000003" in outcome and not (run_folder(tmp_path) / "training.json").exists()
    runner.run(settings(tmp_path))
    assert done == [0, 1, 2, 3, 4, 5], "no step twice"
    assert adapter_bytes(tmp_path) == adapter_bytes(finished)
    assert step_adapter(tmp_path, 3) != adapter_bytes(tmp_path)
    runner.run(settings(tmp_path, "eval.step=3"))
    assert len(done) == 6


def test_a_step_that_was_not_kept_is_trained_again_and_is_the_same_as_one_that_was(tmp_path, finished):
    kept, again = tmp_path / "kept", tmp_path / "again"
    runner.run(settings(kept, "train.keep=[2,5]"))
    shutil.copytree(finished, again)
    runner.run(settings(again, "eval.step=5"))
    assert step_adapter(again, 5) == step_adapter(kept, 5) != step_adapter(kept, 2)
    assert adapter_bytes(again) == adapter_bytes(kept) == adapter_bytes(finished)
    assert not list(again.rglob("again"))


def test_a_step_beyond_the_data_is_refused(tmp_path):
    with pytest.raises(UserError, match="asks for step 30, but the data end the training at step 22"):
        runner.run(settings(tmp_path, "train.steps=50", "eval.step=30"))


def test_a_setting_that_came_later_changes_no_name_at_its_default():
    from cft.config.schema import LossSettings
    from cft.job.plan import named

    before = {"hard_negatives", "temperature", "mask_false_negatives"}
    assert set(named(LossSettings())) == before
    assert set(named(LossSettings(both_directions=True))) == before | {"both_directions"}
