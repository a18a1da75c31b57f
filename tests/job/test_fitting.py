"""Settings that the data choose, and what a training says of itself before it begins."""

import json
import logging
import math
from pathlib import Path

import pytest
from filelock import FileLock
from jobs import composed, run_folder, settings

from cft.config.compose import compose_config
from cft.config.schema import FITTED
from cft.job import runner
from cft.job.plan import InputCache, make_plan
from cft.system.errors import UserError


def pairs_file(folder: Path, count: int, words: int = 6) -> str:
    rows = [{"sent0": f"what is {n}?", "sent1": f"{n} " + "word " * words} for n in range(count)]
    path = folder / "pairs.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return f"data.train={path}"


OWN = ["model=tiny", "logger=none", "data=files", "data.negative_columns=[]", "loss=in_batch", "baseline=none"]


@pytest.mark.parametrize(
    ("rows", "batch", "epochs", "steps"),
    [(20, 9, 10, 20), (40, 16, 10, 20), (300, 33, 10, 80), (600, 60, 10, 90), (6000, 60, 2, 182)],
)
def test_batch_passes_and_steps_follow_from_the_number_of_rows(tmp_path, rows, batch, epochs, steps):
    train = make_plan(composed(*OWN, pairs_file(tmp_path, rows))).config.train
    assert (train.batch_size, train.epochs, train.steps, train.fitted) == (batch, epochs, steps, [])
    assert 4 <= math.ceil(steps / train.eval_every) <= 5, "looks at the development data"


@pytest.mark.parametrize("steps", range(1, 13))
def test_a_short_training_looks_at_its_development_data_at_most_five_times(tmp_path, steps):
    train = make_plan(composed(*OWN, pairs_file(tmp_path, 300), f"train.steps={steps}")).config.train
    assert math.ceil(steps / train.eval_every) in (min(steps, 3), 4, 5)


def test_what_is_given_stays(tmp_path):
    path = pairs_file(tmp_path, 300)
    given = make_plan(composed(*OWN, path, "train.steps=25", "lr=1e-4", "model.max_length=77"))
    assert (given.config.lr, given.config.model.max_length, given.steps) == (1e-4, 77, 25)
    passes = make_plan(composed(*OWN, path, "train.epochs=12", "train.batch_size=27"))
    assert passes.steps == 12 * 10
    recipe = make_plan(composed(*OWN, path, "experiment=recipe"))
    assert recipe.config.lr == 2e-3 and recipe.config.prompt.use.value == "after"
    paper = make_plan(composed(*OWN, path, "train=paper"))
    assert (paper.config.lr, paper.steps, paper.config.model.max_length) == (5e-5, 4, 150)
    encoder = make_plan(composed(*OWN, path, "model.attention=bidirectional", "model.pooling=mean"))
    assert encoder.config.lr == 1e-3
    whole = make_plan(composed(*OWN, path, "lora=none"))
    assert whole.config.lr == 5e-5
    with pytest.raises(UserError, match="must be some of model.max_length, train.batch_size"):
        composed(*OWN, path, "train.fitted=[seed]")


@pytest.mark.parametrize(("words", "length"), [(1, 32), (20, 112), (200, 256)])
def test_texts_may_be_as_long_as_most_are(tmp_path, words, length):
    # the tiny model reads bytes
    assert make_plan(composed(*OWN, pairs_file(tmp_path, 40, words))).config.model.max_length == length


def test_texts_that_go_in_twice_may_be_twice_as_long(tmp_path, caplog):
    caplog.set_level("INFO", "cft")
    for words, length in ((20, 208), (200, 512)):
        own = [*OWN, pairs_file(tmp_path, 40, words), "model.echo=true"]
        assert make_plan(composed(*own)).config.model.max_length == length
    assert "tokens, going in twice" in caplog.text


def test_the_choices_are_said_with_their_reasons_and_recorded_as_values(tmp_path, caplog):
    caplog.set_level("INFO", "cft")
    job = ["data=files", "data.negative_columns=[]", "loss=in_batch", pairs_file(tmp_path, 200, 200)]
    runner.run(settings(tmp_path / "o", *job))
    logged = caplog.text
    assert "chosen by the data; each can be given instead:" in logged
    assert "model.max_length=256: 95 of 100 texts have at most 1,00" in logged and "are cut" in logged
    assert "lr=0.002: found best for LoRA trainings of up to 200 steps" in logged
    table = logged.partition("the training\n")[2]
    assert "180 pairs to train on, 20 held out" in table and "6 of 8 pairs, 0.267 passes" in table
    assert "50.0% (longer than model.max_length=256 tokens)" in table and "a step, by a trial" in table
    assert "step 3, development data: nDCG@10 " in logged and "step 6, development data: nDCG@10 " in logged
    kept = json.loads((run_folder(tmp_path / "o") / "config.json").read_text())
    assert kept["train"]["fitted"] == [] and kept["lr"] == 0.002 and kept["model"]["max_length"] == 256


def test_what_was_given_is_not_said_to_be_chosen(tmp_path, caplog):
    caplog.set_level("INFO", "cft")
    own = [*OWN, pairs_file(tmp_path, 40)]
    train = make_plan(composed(*own)).config.train
    assert f"  train.batch_size={train.batch_size} train.epochs={train.epochs} " in caplog.text
    assert (
        f" train.steps={train.steps} train.eval_every={train.eval_every}: 36 rows make 2 batches of 16" in caplog.text
    )
    caplog.clear()
    make_plan(composed(*own, "train.batch_size=12", "train.steps=7"))
    assert "  train.epochs=3 train.eval_every=2: 36 rows make 3 batches of 12 a pass" in caplog.text
    caplog.clear()
    given = ["train.batch_size=12", "train.epochs=1", "train.steps=3", "train.eval_every=1"]
    make_plan(composed(*own, *given))
    assert "  lr=0.002: " in caplog.text and "batches of" not in caplog.text


def test_a_model_that_is_only_scored_reads_as_much_as_one_that_is_trained(tmp_path):
    path = pairs_file(tmp_path, 40, 20)
    trained, scored = (make_plan(composed(*OWN, path, *more)) for more in ([], ["train.steps=0"]))
    assert trained.config.model == scored.config.model and trained.base_folder == scored.base_folder
    assert trained.scores_folder(trained.base_folder) == scored.scores_folder(scored.base_folder)


def test_an_adapter_keeps_the_length_that_it_was_trained_with(tmp_path, trained):
    plan = make_plan(composed(*OWN, pairs_file(tmp_path, 40, 20), f"adapter={trained}"))
    assert plan.config.model.max_length == plan.start.adapter.contract.max_length == 150


def test_every_setting_that_may_be_chosen_is_chosen_for_a_file():
    assert set(composed(*OWN, "data.train=x.csv").train.fitted) == set(FITTED)
    assert composed("model=tiny").train.fitted == []


def test_all_rows_can_be_trained_on_without_a_score(tmp_path, caplog):
    caplog.set_level("INFO", "cft")
    path = pairs_file(tmp_path, 40)
    job = ["data=files", "data.negative_columns=[]", "loss=in_batch", path, "data.holdout=0", "eval=none"]
    assert runner.run(settings(tmp_path / "o", *job)).startswith("trained, not scored")
    assert "40 pairs to train on, 0 held out" in caplog.text and "evaluating" not in caplog.text
    with pytest.raises(UserError, match="eval=none with train.steps=0: nothing would be trained, and nothing scored"):
        settings(tmp_path, "eval=none", "train.steps=0")


def test_a_baseline_is_scored_as_it_was_published_and_left_out_where_it_cannot_be_had(tmp_path, caplog):
    caplog.set_level("INFO", "cft")
    job = ["data=files", "data.negative_columns=[]", "loss=in_batch", pairs_file(tmp_path, 200), f"outputs={tmp_path}"]
    other = ["baseline=minilm", "model@baseline.model=tiny", "baseline.model.path=random:gpt2"]
    runner.run(settings(tmp_path, *job, *other, "prompt=query_passage", "prompt.use=both"))
    assert "after is, beside gpt2" in caplog.text or "after is, beside tiny" in caplog.text
    caplog.clear()
    runner.run(settings(tmp_path, *job, "baseline=minilm", f"baseline.model.path={tmp_path}/nowhere"))
    assert "no baseline (baseline=none leaves it out)" in caplog.text and "beside" not in caplog.text
    (entry,) = json.loads((sorted(tmp_path.glob("tiny-files-*"))[0] / "metrics.json").read_text()).values()
    assert entry["change"]["low"] <= entry["change"]["value"] <= entry["change"]["high"]


def test_a_baseline_is_no_matter_of_the_settings_of_a_training(tmp_path, trained, caplog):
    rows = ["data=files", "data.negative_columns=[]", "loss=in_batch", pairs_file(tmp_path, 200)]
    other = ["baseline=minilm", "model@baseline.model=tiny", "baseline.model.path=random:gpt2"]
    own = ["train.chunk_tokens=150", "baseline.model.max_length=200", f"adapter={trained}", "adapter_any_base=true"]
    inputs = InputCache()
    found = runner.score_baseline(make_plan(settings(tmp_path / "o", *rows, *other, *own), inputs), inputs)
    assert "no baseline" not in caplog.text and found.name == "tiny"


def test_a_first_stage_may_have_pairs_where_ones_own_rows_have_hard_negatives(tmp_path):
    triplets = "".join(f"a {n},b {n},c {n}\n" for n in range(30))
    (tmp_path / "own.csv").write_text(f"sent0,sent1,hard_neg\n{triplets}")
    general = ["first=docstrings", "first.data.source=files", f"first.{pairs_file(tmp_path, 40)}"]
    own = ["data=files", f"data.train={tmp_path}/own.csv", *general, "first.data.negative_columns=[]"]
    job = settings(tmp_path / "o", *own, "data.holdout=0", "eval=none", "first.steps=2", "first.batch_size=8")
    stage = runner.first_stage(job, InputCache())
    assert job.loss.hard_negatives and not stage.loss.hard_negatives
    assert runner.run(job).startswith("trained, not scored")


def test_a_first_stage_that_is_left_out_as_nothing_is_trained_is_said(tmp_path, caplog):
    make_plan(settings(tmp_path, "first=docstrings", "train.steps=0"))
    assert "train.steps=0: nothing is trained, and so the first stage is not either" in caplog.text


def test_what_is_wrong_with_a_first_stage_is_told_by_its_own_keys(tmp_path):
    rows = "".join(f"a {n},b {n},c {n}\n" for n in range(20))
    (tmp_path / "data.csv").write_text(f"sent0,sent1,hard_neg\n{rows}")
    own = ["data=files", "data.negative_columns=[]", "loss=in_batch", pairs_file(tmp_path, 60)]
    first = ["first=docstrings", "first.data.source=files", f"first.data.train={tmp_path}/data.csv"]
    told = r"20 training triplets do not fill one batch of first.batch_size=50; .* set first.batch_size=20 or less$"
    with pytest.raises(UserError, match=told):
        runner.run(settings(tmp_path / "o", *own, *first, "first.batch_size=50"))
    told = rf"^first.data.train={tmp_path}/data.csv: has no column 'x' \(first.data.anchor_column names it\)"
    with pytest.raises(UserError, match=told):
        runner.run(settings(tmp_path / "o", *own, *first, "first.data.anchor_column=x"))


def test_a_first_stage_that_another_job_is_training_is_waited_for(tmp_path, monkeypatch, caplog):
    own = ["data=files", "data.negative_columns=[]", "loss=in_batch", pairs_file(tmp_path, 60)]
    first = ["first=docstrings", "first.data.packages=[peft]", "first.data.rows=40", "first.steps=2"]
    job = settings(tmp_path / "o", *own, *first, "first.batch_size=8")
    stage = make_plan(runner.first_stage(job, InputCache())).folder
    held, released = FileLock(stage / ".lock"), []
    stage.mkdir(parents=True)
    held.acquire()

    class Watch(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            if "waiting for it" in record.getMessage() and not released:
                released.append(record)
                held.release()

    caplog.set_level("INFO", "cft")
    package = logging.getLogger("cft")
    monkeypatch.setattr(package, "handlers", [*package.handlers, Watch()])
    runner.run(job)
    assert released and (stage / "training.json").exists()


def test_one_command_does_a_general_stage_and_then_ones_own(tmp_path, caplog):
    caplog.set_level("INFO", "cft")
    own = ["data=files", "data.negative_columns=[]", "loss=in_batch", pairs_file(tmp_path, 60)]
    first = [
        "first=docstrings",
        "first.data.packages=[peft]",
        "first.data.rows=40",
        "first.steps=2",
        "first.batch_size=8",
    ]
    job = settings(tmp_path / "o", *own, *first, "first.data.name=general")
    outcome = runner.run(job)
    general, finished = (next((tmp_path / "o").glob(f"tiny-{name}-*")) for name in ("general", "files"))
    assert "the first stage: 2 steps on general" in caplog.text and "already trained" not in caplog.text
    kept = [json.loads((folder / "config.json").read_text()) for folder in (general, finished)]
    assert kept[0]["model"] == kept[1]["model"] and kept[0]["train"]["steps"] == 2
    assert kept[1]["adapter"] == str(general) and kept[1]["first"]["data"] is None
    caplog.clear()
    assert runner.run(job) == outcome and "already trained" in caplog.text and "training 1," not in caplog.text
    with pytest.raises(UserError, match="has had its first stage: leave it out, or write first=none"):
        settings(tmp_path, *own, "first=nli", f"adapter={general}")
    with pytest.raises(UserError, match="there is no first stage to change; choose one first: first=docstrings"):
        compose_config(["first.steps=3"])
    with pytest.raises(UserError, match="is a whole section, not a name; write first=docstrings or first=nli"):
        compose_config(["first.data=nli"])
    with pytest.raises(UserError, match="first.data.train is not set"):
        settings(tmp_path, *own, "first=docstrings", "first.data.source=files")
    with pytest.raises(UserError, match="first.data.holdout=-1: must be 0 or more"):
        settings(tmp_path, *own, "first=docstrings", "first.data.holdout=-1")
