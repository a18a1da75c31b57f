"""Choices in training that an ablation can sweep: which step is kept, which rows go together, which numbers do alone."""

import json
import logging
import re

import numpy as np
import pytest
from jobs import ROWS, SCORED, adapter_bytes, history, pairs_file, run_folder, scores, settings
from safetensors.numpy import load_file

from cft.config.rules import require_valid
from cft.data.sampling import shared_texts
from cft.data.training_data import load_training_data
from cft.evaluation import pairs
from cft.job import runner, tracking
from cft.job.plan import InputCache, make_plan
from cft.model.embedder import Embedder, first_numbers
from cft.system import signals
from cft.system.errors import UserError
from cft.training import best as best_module
from cft.training.best import best_step, is_over


def dev(step: int, score: float | None) -> dict:
    return {"event": "dev", "step": step, "spearman": None, "accuracy": None if score is None else score / 100}


def test_the_best_step_is_the_first_of_the_best_and_patience_counts_from_it():
    rows = [dev(1, 5.0), dev(2, 9.0), dev(3, 9.0), dev(4, None), dev(5, 8.0)]
    assert best_step(rows) == 2 and best_step(rows[3:4]) is None
    assert [is_over(rows, patience) for patience in (1, 2, 3, None)] == [True, True, False, False]
    assert not is_over([], 1) and not is_over(rows[:2], 1) and is_over(rows[:3], 1)
    assert best_step([{"event": "dev", "step": 7, "spearman": 3.0, "accuracy": 0.9}, dev(8, 4.0)]) == 8


@pytest.fixture
def scores_of_looks(monkeypatch):
    """Development scores that a test chooses, in place of measured ones."""

    def use(*values: float) -> None:
        coming = {3 * number: value for number, value in enumerate(values, start=1)}
        real = best_module.development_score
        monkeypatch.setattr(
            best_module,
            "development_score",
            lambda row: None if real(row) is None else coming.get(row["step"], 0.0),
        )

    return use


JOB = ["train.steps=12", "train.eval_every=3", "eval=none", "lr=1e-2"]


def test_the_result_has_the_weights_of_the_best_step_and_says_so(tmp_path, caplog, scores_of_looks):
    caplog.set_level("INFO", "cft")
    scores_of_looks(1.0, 5.0, 2.0, 4.0)
    runner.run(settings(tmp_path / "best", *JOB, "train.best=true"))
    assert (
        "the weights of step 6, whose development score was best: 5.00; the last, of step 12, was 4.00" in caplog.text
    )
    record = json.loads((run_folder(tmp_path / "best") / "training.json").read_text())
    assert (record["steps"], record["best_step"]) == (12, 6)
    assert "before and after 6 steps" in caplog.text
    runner.run(settings(tmp_path / "kept", *JOB, "train.keep=[6]"))
    (kept,) = (tmp_path / "kept").glob("tiny-*/steps/000006/adapter/adapter_model.safetensors")
    assert adapter_bytes(tmp_path / "best") == kept.read_bytes()


def test_a_training_without_better_scores_ends_early_with_its_last_weights(tmp_path, caplog, scores_of_looks):
    caplog.set_level("INFO", "cft")
    scores_of_looks(5.0, 2.0, 4.0, 9.0)
    runner.run(settings(tmp_path / "early", *JOB, "train.patience=2"))
    folder = run_folder(tmp_path / "early")
    assert [row["step"] for row in history(folder) if row["event"] == "step"] == list(range(1, 10))
    assert "ended after step 9: no better development score in 2 looks" in caplog.text
    assert json.loads((folder / "training.json").read_text())["steps"] == 9


@pytest.mark.parametrize("after", [4, 7, 9])
def test_a_killed_one_keeps_what_one_that_never_stopped_keeps(tmp_path, monkeypatch, scores_of_looks, after):
    scores_of_looks(5.0, 7.0, 4.0, 3.0)
    job = [*JOB, "train.best=true", "train.patience=1"]
    runner.run(settings(tmp_path / "whole", *job))

    def interrupt(row: dict) -> None:
        if row["event"] == "step" and row["step"] == after:
            raise signals.Interrupted(15)

    with pytest.raises(signals.Interrupted):
        runner.run(settings(tmp_path / "killed", *job), on_row=interrupt)
    runner.run(settings(tmp_path / "killed", *job))
    assert adapter_bytes(tmp_path / "killed") == adapter_bytes(tmp_path / "whole")
    assert [row["step"] for row in history(run_folder(tmp_path / "killed")) if row["event"] == "step"][-1] == 9


def test_rows_that_choose_the_step_do_not_score_the_result(tmp_path, caplog):
    caplog.set_level("INFO", "cft")
    job = [*ROWS, f"data.train={pairs_file(tmp_path)}", "train.steps=4"]
    plan = make_plan(settings(tmp_path, *job, "train.best=true"))
    (found,) = plan.retrieval.values()
    assert len(found.queries) == len(plan.data.watched) == 6
    assert not {row.anchor for row in plan.data.watched} & set(found.queries)
    assert "train.best=true: 6 held-out rows choose the step, and the other 6 score the result" in caplog.text
    whole = make_plan(settings(tmp_path, *job))
    assert len(whole.retrieval["held-out rows"].queries) == 12 and plan.folder != whole.folder


def test_rows_that_give_no_score_cannot_choose_the_step(tmp_path):
    """Of 24 rows two are held out, and the one that would choose has nothing to find its positive among."""
    job = [*ROWS, f"data.train={pairs_file(tmp_path, 24)}", "data.holdout=2", "train.steps=4", "train.batch_size=4"]
    with pytest.raises(UserError, match=r"train.best=true needs a development score, and of 2 held-out rows the 1 to"):
        make_plan(settings(tmp_path, *job, "train.best=true"))


def test_a_step_that_moved_no_weight_is_never_the_best(tmp_path, monkeypatch):
    """A warm-up begins at a rate of 0, so that the first step's score is that of the start."""
    monkeypatch.setattr(
        best_module,
        "development_score",
        lambda row: {1: 99.0, 3: 7.0}.get(row["step"], 5.0) if row["event"] == "dev" else None,
    )
    job = [*(each for each in JOB if not each.startswith("train.eval_every")), "train.eval_every=1", "train.best=true"]
    runner.run(settings(tmp_path, *job, "train.steps=4", "schedule.warmup_ratio=0.25"))
    rates = [row["lr"] for row in history(run_folder(tmp_path)) if row["event"] == "step"]
    assert rates[0] == 0 and rates[1] > 0
    assert json.loads((run_folder(tmp_path) / "training.json").read_text())["best_step"] == 3


def test_what_trains_alike_has_one_name_and_what_draws_otherwise_another(tmp_path):
    def name(*overrides: str) -> str:
        return make_plan(settings(tmp_path, *overrides)).folder.name

    assert name("lora.targets=[value,query,query]") == name("lora.targets=[query,value]") == name()
    assert name("lora=none") == name("lora.rank=0")
    assert name("model.batches=padded", "lora.dropout=0") == name("lora.dropout=0")
    assert name("model.batches=padded", "lora.dropout=0.1") != name("lora.dropout=0.1")


def test_a_tracker_is_told_the_step_whose_weights_were_scored(tmp_path, monkeypatch, scores_of_looks):
    scores_of_looks(5.0, 7.0, 4.0, 3.0)
    told = []
    real = tracking.CsvTracker.finish

    def finish(self, result):
        told.append(result.step)
        return real(self, result)

    monkeypatch.setattr(tracking.CsvTracker, "finish", finish)
    runner.run(settings(tmp_path, *JOB, "train.best=true", "logger=csv"))
    assert told == [6]


def test_a_first_stage_takes_its_last_step_whatever_chooses_that_of_the_second(tmp_path, caplog):
    caplog.set_level("INFO", "cft")
    first = ["first=docstrings", "first.data.packages=[jinja2]", "first.steps=2", "first.batch_size=8"]
    job = [*ROWS, f"data.train={pairs_file(tmp_path)}", "train.steps=4", "train.batch_size=8"]
    job += ["train.best=true", "train.patience=9", "train.eval_every=2"]
    runner.run(settings(tmp_path, *job, *first))
    assert "the first stage: 2 steps" in caplog.text and "the result has the weights of step" in caplog.text


def test_texts_of_a_first_stage_count_as_trained_on(tmp_path, caplog):
    first = ["first=docstrings", "first.data.packages=[jinja2]", "first.steps=2", "first.batch_size=8"]
    job = [*ROWS, f"data.train={pairs_file(tmp_path)}", "train.steps=2", "train.batch_size=8"]
    rows = load_training_data(settings(tmp_path, *job, *first).first.data, seed=0).triplets
    read = [{"sentence1": rows[n].anchor, "sentence2": rows[n + 20].positive, "score": n} for n in range(12)]
    (tmp_path / "read.jsonl").write_text("".join(json.dumps(row) + "\n" for row in read))
    runner.run(settings(tmp_path, *job, *first, "eval=pairs", f"eval.file={tmp_path / 'read.jsonl'}"))
    assert "the training data hold texts of the test sets" in caplog.text
    (record,) = tmp_path.glob("tiny-files-*/evaluations/pairs-*/overlap.json")
    assert json.loads(record.read_text())["sets"] == {"read": {"pairs": 12, "pairs_seen": 12}}
    assert "is not known" not in caplog.text
    more = [f"adapter={record.parents[2]}", "eval=pairs", f"eval.file={tmp_path / 'read.jsonl'}"]
    runner.run(settings(tmp_path, *job, *more))
    assert "no text of read stands in the training data" in caplog.text
    assert f"; what {record.parents[2]} had been trained on is not known" in caplog.text


def test_development_pairs_that_a_first_stage_learns_are_said(tmp_path, caplog):
    first = ["first=docstrings", "first.data.packages=[jinja2]", "first.steps=2", "first.batch_size=8"]
    job = [*ROWS, f"data.train={pairs_file(tmp_path)}", "train.steps=2", "train.batch_size=8", "eval=none"]
    rows = load_training_data(settings(tmp_path, *job, *first).first.data, seed=0).triplets
    learnt = [{"sentence1": rows[n].positive, "sentence2": rows[n].anchor, "score": n} for n in range(3)]
    others = [{"sentence1": f"a text {n}", "sentence2": rows[n].anchor, "score": n} for n in range(5)]
    (tmp_path / "dev.jsonl").write_text("".join(json.dumps(row) + "\n" for row in learnt + others))
    runner.run(settings(tmp_path, *job, *first, f"data.dev={tmp_path / 'dev.jsonl'}"))
    assert "3 of 8 development pairs are trained on" in caplog.text


def test_held_out_rows_that_are_trained_on_all_the_same_are_said(tmp_path, caplog):
    first = ["first=docstrings", "first.data.source=files", f"first.data.train={pairs_file(tmp_path)}"]
    first += ["first.data.negative_columns=[]", "first.steps=2", "first.batch_size=8"]
    job = [*ROWS, f"data.train={tmp_path / 'pairs.jsonl'}", "train.steps=2", "train.batch_size=8"]
    held = make_plan(settings(tmp_path, *job)).holdout
    runner.run(settings(tmp_path / "plain", *job))
    assert "are trained on" not in caplog.text
    lines = [{"sentence1": row.positive, "sentence2": row.anchor, "score": n} for n, row in enumerate(held[:5])]
    (tmp_path / "scored.jsonl").write_text("".join(json.dumps(row) + "\n" for row in lines))
    scored = [f"data.scored={tmp_path / 'scored.jsonl'}", "loss.scored=cosent", "train.scored_batch=2"]
    for more, count in ((scored, 5), (first, len(held))):
        caplog.clear()
        runner.run(settings(tmp_path / str(count), *job, *more))
        assert f"{count} of {len(held)} held-out rows are trained on all the same" in caplog.text


def test_texts_of_a_first_stage_count_where_its_run_was_gone_on_with_as_an_adapter_before(tmp_path, caplog):
    first = ["first=docstrings", "first.data.packages=[jinja2]", "first.steps=2", "first.batch_size=8"]
    job = [*ROWS, f"data.train={pairs_file(tmp_path)}", "train.steps=2", "train.batch_size=8", "eval=pairs"]
    job.append(f"eval.file={tmp_path / 'read.jsonl'}")
    whole, inputs = settings(tmp_path, *job, *first), InputCache()
    rows = inputs.data(whole.first.data).triplets
    read = [{"sentence1": rows[n].anchor, "sentence2": rows[n + 20].positive, "score": n} for n in range(12)]
    (tmp_path / "read.jsonl").write_text("".join(json.dumps(row) + "\n" for row in read))
    stage = runner.train_only(runner.first_stage(whole, inputs), inputs)
    runner.run(settings(tmp_path, *job, f"adapter={stage}"), inputs)
    assert "no text of read stands in the training data" in caplog.text
    (record,) = tmp_path.glob("tiny-files-*/evaluations/pairs-*/overlap.json")
    for again in (
        whole,
        settings(tmp_path, *job, f"adapter={stage}"),
    ):  # the same training, and it is known from now on
        caplog.clear()
        runner.run(again, inputs)
        assert "the training data hold texts of the test sets" in caplog.text
        assert json.loads(record.read_text())["sets"] == {"read": {"pairs": 12, "pairs_seen": 12}}
        assert (pairs.read(record.parent).seen["read"] == 2).all()


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (
            ["train.best=true", "train.eval_every=0"],
            "train.best=true needs a development score, and train.eval_every=0",
        ),
        (["train.patience=2", "train.eval_every=0"], "train.patience=2 needs a development score"),
        (["train.patience=0"], "train.patience=0: must be 1 or more"),
        (["train.patience=2", "train.keep=[3]"], "may end the training before the steps"),
        (["train.best=true", "eval.step=3"], "eval.step=3: train.best=true chooses the step itself"),
        (["lora.lr_ratio=0.5"], "lora.lr_ratio=0.5: must be 1"),
        (
            ["lora=none", "lora.variant=dora"],
            "lora.variant=dora would not be read at lora.rank=0",
        ),
        (["lora=none", "lora.alpha=16"], "lora.alpha=16 would not be read at lora.rank=0 (lora=none)"),
        (["lora.rank=0", "lora.targets=[key]"], "'lora.targets=[key]' would not be read at lora.rank=0"),
        (["loss.scored=angle", "loss.dimensions=[4,7]"], "AnglE takes a vector in two halves; name even numbers"),
        (["loss.dimensions=[0,4]"], "loss.dimensions=[0,4]': numbers of a vector, each 1 or more"),
    ],
)
def test_choices_that_contradict_are_refused_by_name(tmp_path, overrides, message):
    with pytest.raises(UserError, match=re.escape(message)):
        require_valid(settings(tmp_path, *overrides))


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["train.best=true"], "train.best=true needs a development score: no rows are held out"),
        (["loss.dimensions=[8,32]"], "a vector of this model has 32 numbers, and all of them always count"),
    ],
)
def test_choices_that_data_or_model_cannot_serve_are_refused_before_anything_is_scored(tmp_path, overrides, message):
    job = [*ROWS, f"data.train={pairs_file(tmp_path)}", "data.holdout=0", *SCORED, "train.steps=4"]
    with pytest.raises(UserError, match=re.escape(message)):
        runner.run(settings(tmp_path, *job, *overrides))
    assert not list(tmp_path.glob("*/evaluations"))


def repeated_pairs(folder) -> str:
    path = folder / "pairs.jsonl"
    rows = [{"sent0": f"what is thing {n // 3}?", "sent1": f"thing {n} is number {n * n}"} for n in range(120)]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(path)


def test_a_training_without_duplicates_never_sets_two_answers_of_one_question_against_each_other(tmp_path, monkeypatch):
    job = [*ROWS, f"data.train={repeated_pairs(tmp_path)}", "train.no_duplicates=true", "train.steps=12", "eval=none"]
    seen: list[list[str]] = []
    from cft.training import trainer

    real = trainer.contrastive_backward

    def look(embedder, batch, setup, **rest):
        seen.append([row.anchor for row in batch])
        return real(embedder, batch, setup, **rest)

    monkeypatch.setattr(trainer, "contrastive_backward", look)
    runner.run(settings(tmp_path / "o", *job))
    assert len(seen) == 12 and all(len(set(anchors)) == len(anchors) for anchors in seen)


def test_rows_of_one_question_alone_are_refused(tmp_path):
    path = tmp_path / "pairs.jsonl"
    path.write_text("".join(json.dumps({"sent0": "what?", "sent1": f"answer {n}"}) + "\n" for n in range(40)))
    job = [*ROWS, f"data.train={path}", "data.holdout=0", "train.no_duplicates=true", *SCORED]
    message = "no batch of train.batch_size=8 rows can be made without a text that stands in it twice, as 40 of 40"
    with pytest.raises(UserError, match=message):
        make_plan(settings(tmp_path, *job))


def test_first_numbers_are_trained_scored_kept_and_used(drawn_in_full, tmp_path, caplog):
    caplog.set_level("INFO", "cft")
    runner.run(settings(tmp_path, "loss.dimensions=[16,8]"))
    folder = run_folder(tmp_path)
    embedder = Embedder.load(folder)
    assert embedder.contract.dimensions == (8, 16)
    whole, short = embedder.encode(["a man", "a dog"]), embedder.encode(["a man", "a dog"], dimensions=8)
    assert short.shape == (2, 8) and np.allclose(short, first_numbers(whole, 8), atol=1e-6)
    assert np.allclose(np.linalg.norm(short, axis=1), 1, atol=1e-6)
    (place,) = folder.glob("evaluations/captions-*")
    by_width = scores(tmp_path)["dimensions"]
    assert set(by_width) == {"8", "16"} and (place / "dimensions.png").exists()
    stored = json.loads((place / "dimensions" / "8" / "metrics.json").read_text())
    assert stored["mean"] == by_width["8"]["after"]
    assert "| 8 |" in (place / "table.md").read_text()
    caplog.clear()
    with pytest.raises(UserError, match="dimensions=33: must be a whole number from 1 to 32"):
        embedder.encode(["a man"], dimensions=33)
    caplog.set_level(logging.WARNING, "cft")
    for _ in range(2):
        embedder.encode(["a man"], dimensions=9)
    assert caplog.text.count("was not trained to do with its first 9 numbers (the first 8, 16 were") == 1


def test_first_numbers_change_what_is_learned_and_nothing_else_does(tmp_path):
    job = ["train.steps=3", "eval=none", "lr=1e-2"]
    names = {}
    for dimensions in ("[]", "[8]", "[8,16]", "[16,8]"):
        folder = make_plan(settings(tmp_path, *job, f"loss.dimensions={dimensions}")).folder
        names[dimensions] = folder.name
    assert len(set(names.values())) == 3 and names["[8,16]"] == names["[16,8]"]
    weights = []
    for place, dimensions in (("whole", "[]"), ("first", "[8]")):
        runner.run(settings(tmp_path / place, *job, f"loss.dimensions={dimensions}"))
        weights.append(load_file(run_folder(tmp_path / place) / "adapter" / "adapter_model.safetensors"))
    assert any(not np.array_equal(weights[0][name], weights[1][name]) for name in weights[0])


def test_shared_texts_of_data_are_found_once(tmp_path):
    data = make_plan(settings(tmp_path, *ROWS, f"data.train={repeated_pairs(tmp_path)}", "train.steps=2")).data
    assert data.shared == shared_texts(data.triplets) and data.shared is data.shared


@pytest.mark.parametrize("variant", ["rslora", "dora"])
def test_a_variant_of_lora_is_trained_saved_and_loaded(tmp_path, variant):
    job = ["train.steps=3", "eval=none", "lr=1e-2"]
    runner.run(settings(tmp_path / variant, *job, f"lora.variant={variant}"))
    runner.run(settings(tmp_path / "plain", *job))
    folders = [run_folder(tmp_path / name) for name in (variant, "plain")]
    assert folders[0].name != folders[1].name
    record = json.loads((folders[0] / "adapter" / "adapter_config.json").read_text())
    assert record["use_rslora"] is (variant == "rslora") and record["use_dora"] is (variant == "dora")
    vectors = [Embedder.load(folder).encode(["a man sings"]) for folder in folders]
    assert np.abs(vectors[0] - vectors[1]).max() > 1e-5
    runner.run(settings(tmp_path / "on", *job, f"adapter={folders[0]}", f"lora.variant={variant}"))
    with pytest.raises(UserError, match=f"another LoRA .*lora.variant={variant}"):
        runner.run(settings(tmp_path / "on", *job, f"adapter={folders[0]}"))


def test_dora_is_refused_where_it_would_change_rows_of_other_roles():
    from conftest import make_tiny

    from cft.config.schema import LoraSettings, LoraVariant
    from cft.model.lora import add_lora

    with pytest.raises(UserError, match="lora.variant=dora: c_attn computes queries, keys and values at once"):
        add_lora(make_tiny("gpt2").model, LoraSettings(variant=LoraVariant.dora), seed=0)


def test_the_second_factor_learns_at_a_multiple_of_the_rate(tmp_path):
    job = ["train.steps=1", "eval=none", "lr=1e-3", "train.weight_decay=0", "schedule.warmup_ratio=0"]
    moved = {}
    for ratio in (1, 4):
        runner.run(settings(tmp_path / str(ratio), *job, f"lora.lr_ratio={ratio}"))
        weights = load_file(run_folder(tmp_path / str(ratio)) / "adapter" / "adapter_model.safetensors")
        moved[ratio] = {name: value for name, value in weights.items()}
    for name, value in moved[1].items():
        if "lora_B" in name:  # which starts at 0, and moves by the rate at AdamW's first step
            assert np.allclose(moved[4][name], 4 * value, rtol=1e-3) and np.abs(value).max() > 0
        else:
            assert np.allclose(moved[4][name], value)
