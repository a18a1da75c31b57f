"""A sweep as it is typed: how many jobs it has, what came of each, and what cannot be asked of it."""

import pytest
from jobs import CAPTIONS, DEV, settings

from cft import run as command
from cft.config.compose import check_overrides, count_jobs
from cft.config.sweeps import Dimension, search_space
from cft.deploy.load import find_embedder
from cft.job import runner, runs
from cft.system.errors import UserError

QUICK = [
    "model=tiny",
    *CAPTIONS,
    DEV,
    "logger=none",
    "train.steps=2",
    "train.batch_size=4",
    "eval.rows=20",
    "data.rows=30",
    "data.holdout=5",
    "lr=1e-3",
]


def test_the_closing_list_has_the_failed_jobs_and_their_causes_and_nobody_is_told_what_is_next(commands, tmp_path):
    sweep = ["-m", *QUICK, "lora.targets=[query],[nowhere]"]
    done = commands.run("cft.run", *sweep, cwd=tmp_path)
    assert done.status == 2 and "2 jobs" in done.out and "next:" not in done.out
    closing = done.out.partition("all jobs")[2].strip().splitlines()
    assert len(closing) == 2 and "->  mean" in closing[0]
    assert closing[1].strip().startswith("lora.targets=[nowhere]  ->  failed: ") and len(closing[1]) < 250
    alone = commands.run("cft.run", *QUICK, "lora.targets=[query]", cwd=tmp_path)
    assert alone.status == 0 and "next:" in alone.out


def test_what_shows_settings_shows_those_of_one_job(commands, tmp_path):
    done = commands.run("cft.run", "--cfg", "job", "-m", *QUICK, cwd=tmp_path)
    assert done.status == 2 and "leave one out" in done.err and "defect" not in done.err


def test_a_sweep_of_thousands_is_composed_in_small_batches(monkeypatch):
    monkeypatch.setattr("sys.argv", ["cft.run", "-m", "seed=range(0,20000)"])
    command._announce(count_jobs([*QUICK, "seed=range(0,20000)"]))
    assert "hydra.sweeper.max_batch_size=10" in command.sys.argv
    monkeypatch.setattr("sys.argv", ["cft.run", "-m", "seed=range(0,20000)", "hydra/launcher=joblib"])
    command._announce(20_000)
    assert not any("max_batch_size" in word for word in command.sys.argv), "another launcher would wait for each batch"


def test_a_sweep_goes_on_behind_its_first_batch(commands, tmp_path):
    done = commands.run("cft.run", "-m", *QUICK, "train.steps=0", "seed=range(0,12)", cwd=tmp_path)
    assert done.status == 0 and "12 jobs" in done.out
    assert [f"# job {number}:" in done.out for number in (0, 9, 10, 11, 12)] == [True] * 4 + [False]
    assert done.out.partition("all jobs")[2].count("->") == 12


@pytest.mark.parametrize(
    ("words", "count"),
    [([], 1), (["lr=1e-4,1e-5", "seed=1,2,3"], 6), (["seed=range(0,10000)"], 10000), (["lr=range(0.1,0.35,0.1)"], 3)],
)
def test_jobs_are_counted(words, count):
    assert count_jobs([*QUICK, *words]) == count


def test_choices_of_a_group_are_swept_by_their_form():
    assert count_jobs([*QUICK, "loss=glob(*)"]) == len(check_overrides([*QUICK, "loss=glob(*)"])) == 2
    assert search_space(["model=tiny", "loss=glob(in*)"])[1] == [Dimension("loss", choices=("in_batch",))]
    for word in ("loss=glob(x*)", "lr=glob(*)"):
        with pytest.raises(UserError, match="none fits"):
            count_jobs([word])


def test_of_a_long_range_the_ends_and_some_between_are_tried():
    assert len(check_overrides([*QUICK[:-1], "seed=range(0,10000)"])) == 10
    with pytest.raises(UserError, match=r"lr=111.5: the learning rate must be above 0"):
        check_overrides([*QUICK[:-1], "lr=range(0.5,1000,0.5)"])


def test_an_unfinished_run_is_at_a_step_of_those_that_its_data_allow(tmp_path):
    class Stop(Exception):
        pass

    def stop(row):
        raise Stop

    config = settings(tmp_path, "train.steps=1000", "data.rows=36", "data.holdout=0")
    with pytest.raises(Stop):
        runner.run(config, None, stop)
    planned = 36 // config.train.batch_size
    assert runs.list_runs(tmp_path, [])[1][1].endswith(f" of {planned}")


def test_an_unknown_run_is_answered_with_runs_and_not_with_their_steps(tmp_path):
    config = settings(tmp_path, "train.steps=2", "train.keep=[1]")
    runner.run(config)
    assert list(tmp_path.glob("*/steps/*/contract.json"))
    with pytest.raises(UserError, match="nor does a finished embedder end so; there: ") as error:
        find_embedder("nowhere", tmp_path)
    assert "/steps/" not in str(error.value)
