"""A search over settings: judged by development pairs alone, given up early, resumed, reported."""

import json
import subprocess
import sys

import pytest
from jobs import CAPTIONS, DEV, ROWS, history, pairs_file

from cft.config.compose import compose_config
from cft.config.sweeps import Dimension, search_space
from cft.job import runner
from cft.job.plan import InputCache
from cft.job.runs import list_runs
from cft.study import search
from cft.system.errors import UserError

pytest.importorskip("optuna", reason="optuna is not installed (the extra `optuna`)")

QUICK = "model=tiny logger=none train.steps=4 train.batch_size=8 data.rows=60 data.holdout=0 eval.rows=10".split()
QUICK += [*CAPTIONS, DEV, "train.eval_every=2", "train.checkpoint_every=1"]
SPACE = ["lr=tag(log,interval(1e-4,1e-2))", "lora.rank=2,4"]


def run(tmp_path, *more: str, trials: int = 3, space=SPACE, prune: bool = False):
    return search.search("s", [*QUICK, *space, f"outputs={tmp_path}", *more], trials=trials, prune=prune)


def test_what_is_searched_is_said_in_hydras_words():
    fixed, space = search_space(["model=tiny", "lora.rank=int(interval(2,8))", "loss=hard_neg,in_batch", *SPACE[:1]])
    assert fixed == ["model=tiny"]
    assert space == [
        Dimension("lora.rank", low=2.0, high=8.0, whole=True),
        Dimension("loss", choices=("hard_neg", "in_batch")),
        Dimension("lr", low=1e-4, high=1e-2, log=True),
    ]


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["lr=tag(log,interval(0,1))"], "must begin above 0"),
        (["lr=interval(1,1)"], "the smaller first"),
        (["lr=interval(-1.0,1.0)"], "lr=-1.0: the learning rate must be above 0"),
        (["loss=hard_neg,in_bach"], "Did you mean in_batch"),
        (["lora.rnak=2,4"], "no such key"),
    ],
)
def test_values_that_no_job_could_run_with_are_refused_at_once(overrides, message):
    with pytest.raises(UserError, match=message):
        search_space(overrides)


def test_trials_are_ranked_by_their_development_scores(drawn_in_full, tmp_path, monkeypatch):
    monkeypatch.setattr(runner, "score", lambda *a: pytest.fail("a test set was scored"))
    header, *rows = run(tmp_path)
    assert header == ("trial", "lr", "lora.rank", "development Spearman", "run")
    assert len(rows) == 3 and sorted((float(row[3]) for row in rows), reverse=True) == [float(row[3]) for row in rows]
    for row in rows:
        history = [json.loads(line) for line in (tmp_path / row[4] / "history.jsonl").read_text().splitlines()]
        assert f"{history[-1]['spearman']:.2f}" == row[3] and history[-1]["event"] == "dev"
    folder = tmp_path / "searches" / "s"
    report = (folder / "report.md").read_text()
    assert rows[0][4] in report and "best: `lr=" in report and (folder / "search.png").stat().st_size > 10_000


def test_held_out_rows_judge_where_there_are_no_scored_pairs(tmp_path, monkeypatch):
    monkeypatch.setattr(runner, "score", lambda *a: pytest.fail("the other half was scored"))
    rows = ["model=tiny", "logger=none", *ROWS, f"data.train={pairs_file(tmp_path)}", "train=paper", "baseline=none"]
    rows += ["train.steps=4", "train.eval_every=2", "train.best=true", "train.batch_size=8", f"outputs={tmp_path}"]
    header, *found = search.search("s", [*rows, "lora.rank=2,4", "data.holdout=8,12"], trials=4, prune=False)
    assert header == ("trial", "lora.rank", "data.holdout", "development nDCG@10", "run")
    done, failed = found[:2], found[2:]
    for row in done:
        steps = history(tmp_path / row[4])
        assert f"{max(each['ndcg@10'] for each in steps if each['event'] == 'dev'):.2f}" == row[3]
    assert len({row[2] for row in done}) == 1 and len(failed) == 2
    assert all("failed: would be judged by other held-out rows than trial" in row[3] for row in failed)
    report = (tmp_path / "searches" / "s" / "report.md").read_text()
    assert "nDCG@10 x 100 on half of the held-out rows" in report


def test_trials_that_other_pairs_would_judge_are_not_compared(tmp_path):
    for name in ("a", "b"):
        (tmp_path / f"{name}.csv").write_text(f"sentence1,sentence2,score\n{name} 1,b,1\nc,d,2\ne,f,3\n")
    _, *rows = run(tmp_path, space=[f"data.dev={tmp_path}/a.csv,{tmp_path}/b.csv"])
    assert len(rows) == 2 and "failed: would be judged by other pairs than trial 0" in rows[1][2]


def test_trials_have_their_first_stage_as_the_same_job_has(tmp_path):
    first = ["first=docstrings", "first.data.packages=[jinja2]", "first.steps=2", "first.batch_size=8"]
    settings = [*first, "lr=1e-3,2e-3"]
    _, *rows = run(tmp_path, space=settings, trials=2)
    (stage,) = tmp_path.glob("tiny-docstrings-*")
    assert len(rows) == 2 and len(list(tmp_path.glob("tiny-*"))) == 3
    assert run(tmp_path, space=settings, trials=2)[1:] == rows
    config = compose_config([*QUICK, *first, f"lr={rows[0][1]}", f"outputs={tmp_path}"])
    assert runner.result_of(config, InputCache()).name == rows[0][3]
    assert (stage / "training.json").exists()


def test_a_search_goes_on_where_it_was(tmp_path, monkeypatch):
    trained = []
    train = runner.train_only
    monkeypatch.setattr(runner, "train_only", lambda config, *a: trained.append(config.lr) or train(config, *a))
    run(tmp_path, trials=2)
    run(tmp_path, trials=3)
    assert len(trained) == 3 and len(set(trained)) == 3
    run(tmp_path, trials=3)
    assert len(trained) == 3


def test_an_interrupted_trial_is_made_again_with_its_settings(tmp_path, monkeypatch):
    tried = []
    train = runner.train_only

    def interrupted(config, *a):
        tried.append((config.lr, config.lora.rank))
        if len(tried) == 2:
            raise KeyboardInterrupt
        return train(config, *a)

    monkeypatch.setattr(runner, "train_only", interrupted)
    with pytest.raises(KeyboardInterrupt):
        run(tmp_path)
    _, *rows = run(tmp_path)
    assert len(rows) == 3 and tried[2] == tried[1]


def test_trainings_that_fall_behind_are_given_up(tmp_path, monkeypatch):
    steps = []

    def train(config, inputs, watch):
        number = len(steps)
        steps.append(0)
        for step in (2, 4):
            steps[-1] = step
            watch({"event": "dev", "step": step, "spearman": 50.0 - number})
        folder = tmp_path / f"run{number}"
        folder.mkdir()
        rows = [{"event": "dev", "step": 4, "spearman": 50.0 - number}]
        (folder / "history.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
        return folder

    monkeypatch.setattr(runner, "train_only", train)
    _, *rows = run(tmp_path, trials=7, prune=True)
    assert steps == [4, 4, 4, 4, 2, 2, 2]
    assert [row[3] for row in rows[4:]] == [f"{50.0 - n:.2f} at step 2, given up" for n in (4, 5, 6)]


def test_a_training_that_was_given_up_has_not_failed(tmp_path, monkeypatch):
    monkeypatch.setattr("optuna.trial.Trial.should_prune", lambda self: self.number == 1)
    _, *rows = run(tmp_path, trials=2, space=["lora.rank=2,4"])
    assert "at step 2, given up" in rows[1][2] and not list(tmp_path.glob("*/failed.json"))
    assert sorted(row[1] for row in list_runs(tmp_path, [])[1:]) == ["4 steps", "at step 1 of 4"]
    logs = "".join(path.read_text() for path in tmp_path.glob("*/log.txt"))
    assert "given up at step 2" in logs and "failed" not in logs


def test_a_trial_that_came_to_its_end_is_not_given_up(tmp_path, monkeypatch):
    steps = []

    def train(config, inputs, watch):
        steps.append(4)
        watch({"event": "dev", "step": 4, "spearman": 50.0 - len(steps)})
        folder = tmp_path / f"run{len(steps)}"
        folder.mkdir()
        (folder / "history.jsonl").write_text(json.dumps({"event": "dev", "step": 4, "spearman": 50.0 - len(steps)}))
        return folder

    monkeypatch.setattr(runner, "train_only", train)
    _, *rows = run(tmp_path, trials=7, prune=True)
    assert len(rows) == 7 and not any("given up" in row[3] for row in rows)


def test_two_processes_do_not_search_in_one_folder(tmp_path):
    code = "import sys,time,pathlib; from cft.system.files import exclusive_lock\nwith exclusive_lock(pathlib.Path(sys.argv[1])): print(1, flush=True); time.sleep(60)"  # noqa: E501
    other = subprocess.Popen([sys.executable, "-c", code, str(tmp_path / "searches" / "s")], stdout=subprocess.PIPE)
    try:
        other.stdout.read(1)
        with pytest.raises(UserError, match=f"process {other.pid} is at work"):
            run(tmp_path, trials=1)
    finally:
        other.kill()
        other.wait()


def test_a_small_space_is_gone_through_once(tmp_path):
    _, *rows = run(tmp_path, trials=9, space=["lora.rank=2,4", "loss=hard_neg,in_batch"])
    assert len(rows) == 4 and len({(row[1], row[2]) for row in rows}) == 4


def test_a_value_that_is_named_twice_is_searched_once():
    _, (rate, rank) = search_space(["lr=1e-3,0.001,1e-2", "lora.rank=4,8,4"])
    assert (rate.choices, rank.choices) == (("0.001", "0.01"), ("4", "8"))


def test_a_refused_search_leaves_its_name_free(tmp_path):
    path = tmp_path / "t.csv"
    path.write_text("sent0,sent1,hard_neg\n" + "".join(f"a {n},b {n},c {n}\n" for n in range(40)))
    (tmp_path / "dev.csv").write_text("sentence1,sentence2,score\na,b,1\nc,d,2\ne,f,3\n")
    with pytest.raises(UserError, match="judged by development pairs"):
        run(tmp_path, f"data.train={path}", "data.dev=null", trials=1)
    assert len(run(tmp_path, f"data.train={path}", f"data.dev={tmp_path / 'dev.csv'}", trials=1)) == 2


def test_a_trial_that_fails_does_not_end_the_search(tmp_path, monkeypatch, capsys):
    calls = []
    train = runner.train_only

    def fails(config, *a):
        calls.append(config)
        if len(calls) == 1:
            raise UserError("the loss of step 1 is nan")
        return train(config, *a)

    monkeypatch.setattr(runner, "train_only", fails)
    _, *rows = run(tmp_path)
    assert [row[3] for row in rows[2:]] == ["failed: the loss of step 1 is nan"]
    said = capsys.readouterr()
    assert "the loss of step 1 is nan" in said.err and "Traceback" not in said.err + said.out
    assert len(run(tmp_path)) == len(rows) + 1 and len(calls) == 3  # it counts as one of the trials


def test_a_search_in_which_all_fail_says_so(tmp_path, monkeypatch):
    def fails(config, *a):
        raise UserError("the loss is nan")

    monkeypatch.setattr(runner, "train_only", fails)
    with pytest.raises(UserError, match="no trial came to its end: trial 0, lr=.*: the loss is nan; trial 1"):
        run(tmp_path, trials=2)


def test_a_trial_that_cannot_run_is_kept_as_failed_and_said_at_the_end(tmp_path, caplog):
    """Its fault is found before anything is trained: the batch is larger than the data, or no batch at all."""
    space = ["train.batch_size=8,6000"]
    _, *rows = run(tmp_path, space=space)
    assert [row[1] for row in rows] == ["8", "6000"]
    assert rows[1][2].startswith("failed: ") and "do not fill one batch" in rows[1][2]
    assert "1 of 2 trials failed" in caplog.text and "train.batch_size=6000: " in caplog.text
    assert "train.batch_size=6000" in (tmp_path / "searches" / "s" / "report.md").read_text().split("## Failed")[1]
    caplog.clear()
    assert run(tmp_path, trials=9, space=space)[1:] == rows, "nothing is proposed again"
    assert "# trial" not in caplog.text and "1 of 2 trials failed" in caplog.text


def test_settings_that_failed_are_not_proposed_again_beside_an_interval(tmp_path, monkeypatch):
    tried = []

    def fails(config, *a):
        tried.append((config.train.batch_size, config.lora.rank))
        raise UserError("it cannot be")

    monkeypatch.setattr(runner, "train_only", fails)
    space = ["lora.rank=int(interval(1,2))", "train.batch_size=4,8"]
    with pytest.raises(UserError, match="no trial came to its end"):
        run(tmp_path, trials=12, space=space)
    assert len(tried) == len(set(tried)) <= 4


def test_a_cause_of_several_lines_is_told_with_its_reason(tmp_path):
    _, *rows = run(tmp_path, trials=4, space=["train.batch_size=8,7", "train.accumulation=1,2"])
    (failed,) = [row for row in rows if "failed" in str(row)]
    assert "train.batch_size=7 is not a multiple of train.accumulation=2" in str(failed)


@pytest.mark.parametrize("more", [["eval.step=2"], ["eval.step=4"]])
def test_a_step_to_be_scored_is_refused_as_a_search_is_judged_by_the_last(tmp_path, more):
    with pytest.raises(UserError, match="eval.step=.: a search judges every training by its last step"):
        run(tmp_path, *more)
    assert not (tmp_path / "searches" / "s" / search.SPACE_FILE).exists()


def test_a_trial_without_anything_to_judge_it_by_fails_alone(tmp_path):
    _, *rows = run(tmp_path, space=["train.eval_every=2,0"])
    assert len(rows) == 2 and "judged by development pairs" in rows[1][2]


def test_trials_on_other_data_are_not_compared(tmp_path):
    path = tmp_path / "t.csv"
    dev = tmp_path / "dev.csv"
    given = ["data=files", f"data.train={path}", f"data.dev={dev}"]
    dev.write_text("sentence1,sentence2,score\na,b,1\nc,d,2\ne,f,3\n")
    path.write_text("sent0,sent1,hard_neg\n" + "".join(f"a {n},b {n},c {n}\n" for n in range(40)))
    run(tmp_path, *given, trials=1)
    run(tmp_path, *given, trials=2)
    for changed in (path, dev):
        before = changed.read_text()
        changed.write_text(
            before + before.splitlines()[-1] + "x\n" if changed == path else before.replace("a,b", "a,z")
        )
        with pytest.raises(UserError, match="holds trials on other files than there are now"):
            run(tmp_path, *given, trials=3)
        changed.write_text(before)
    assert len(run(tmp_path, *given, trials=2)) == 3


def test_another_search_of_that_name_is_refused(tmp_path):
    run(tmp_path, trials=1)
    with pytest.raises(UserError, match="holds another search"):
        run(tmp_path, trials=1, space=["lora.rank=2,8"])


def test_nothing_to_search_or_to_judge_by_is_refused(tmp_path):
    with pytest.raises(UserError, match="nothing is searched"):
        run(tmp_path, space=[])
    path = tmp_path / "t.csv"
    path.write_text("sent0,sent1,hard_neg\n" + "".join(f"a {n},b {n},c {n}\n" for n in range(40)))
    with pytest.raises(UserError, match="judged by development pairs.*data.dev=FILE"):
        run(tmp_path, f"data.train={path}", "data.dev=null")


def test_development_pairs_of_the_test_sets_are_refused(tmp_path):
    path = tmp_path / "t.csv"
    path.write_text("sent0,sent1,hard_neg\n" + "".join(f"a {n},b {n},c {n}\n" for n in range(40)))
    rows = "sentence1,sentence2,score\na cat,a dog,1\none bird,two birds,4\n"
    (tmp_path / "dev.csv").write_text(rows)
    (tmp_path / "Mine.csv").write_text("sentence1,sentence2,score\nA dog!,a cat,1\nx,y,2\n")
    told = ["data=files", f"data.train={path}", f"data.dev={tmp_path / 'dev.csv'}", "eval=sts", "eval.sets=[Mine]"]
    told = [entry for entry in QUICK if not entry.startswith("eval.")] + told + [f"eval.folder={tmp_path}"]
    with pytest.raises(UserError, match=r"1 of 2 development pairs stand in the test sets \(Mine\)"):
        search.search("s", [*told, *SPACE, f"outputs={tmp_path}"], trials=1)
