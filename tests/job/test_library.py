"""Training from Python: the command's own result, or one readable error."""

import json
from pathlib import Path

import numpy as np
import pytest
from jobs import SCORED, history, run_folder

import cft
from cft.config.compose import compose_config
from cft.data.records import Triplet
from cft.job import runner
from cft.job.library import train
from cft.model.embedder import Embedder
from cft.system.errors import UserError
from cft.system.overrides import unquoted

TEXTS = ["what is number 7?", "a text"]
PAIRS = [(f"what is number {n}?", f"it is {n} and no other") for n in range(64)]
TRIPLETS = [(*pair, f"it is {n + 1}") for n, pair in enumerate(PAIRS)]


def settings(tmp_path, *more: str) -> list[str]:
    return ["model=tiny", "train.steps=3", "eval=none", "logger=none", "lr=1e-2", f"outputs={tmp_path / 'o'}", *more]


def test_what_comes_back_is_what_the_command_leaves(tmp_path):
    seen = []
    embedder = cft.train(settings(tmp_path), triplets=TRIPLETS, callbacks=[seen.append])
    folder = run_folder(tmp_path / "o")
    np.testing.assert_array_equal(embedder.encode(TEXTS), Embedder.load(folder).encode(TEXTS))
    assert [row["step"] for row in seen if row["event"] == "step"] == [1, 2, 3]
    assert [row["loss"] for row in seen if row["event"] == "step"] == [
        row["loss"] for row in history(folder) if row["event"] == "step"
    ]
    (rows,) = (tmp_path / "o/rows").glob("*.jsonl")
    runner.run(compose_config([*settings(tmp_path), "data=files", f"data.train={rows}"]))  # the same run
    assert run_folder(tmp_path / "o") == folder


def test_rows_are_given_in_several_forms_and_trained_once(tmp_path):
    seen = []
    whole = train(settings(tmp_path), triplets=TRIPLETS, callbacks=[seen.append])
    for rows in (
        (Triplet(anchor, positive, (negative,)) for anchor, positive, negative in TRIPLETS),
        [{"anchor": anchor, "positive": positive, "negatives": negative} for anchor, positive, negative in TRIPLETS],
        [{"anchor": anchor, "positive": positive, "negatives": [negative]} for anchor, positive, negative in TRIPLETS],
        [list(row) for row in TRIPLETS],
    ):
        again = train(settings(tmp_path), triplets=rows, callbacks=[lambda _: pytest.fail("it was trained again")])
        np.testing.assert_array_equal(again.encode(TEXTS), whole.encode(TEXTS))
    assert len(seen) >= 3


@pytest.mark.parametrize("name", ["é ü", "a,b", "it's", 'say "no"', "C:\\b", "${x}", "[a]"])
def test_the_folder_may_be_called_whatever_a_folder_may(tmp_path, monkeypatch, name):
    monkeypatch.chdir(tmp_path)
    where = unquoted("outputs", name)
    train([*settings(tmp_path), "train.steps=1", where], triplets=PAIRS)
    assert (run_folder(tmp_path / name) / "contract.json").exists()


def test_rows_that_are_given_are_trained_on_though_their_file_was_changed(tmp_path):
    whole = train(settings(tmp_path), triplets=PAIRS).encode(TEXTS)
    (rows,) = (tmp_path / "o/rows").glob("*.jsonl")
    before = rows.read_text()
    rows.write_text("".join(before.splitlines(keepends=True)[:30]))
    np.testing.assert_array_equal(train(settings(tmp_path), triplets=PAIRS).encode(TEXTS), whole)
    assert rows.read_text() == before and len(list((tmp_path / "o").glob("tiny-*"))) == 1


def test_pairs_have_in_batch_negatives_alone_unless_another_loss_is_chosen(tmp_path):
    train(settings(tmp_path), triplets=PAIRS)
    record = json.loads((run_folder(tmp_path / "o") / "config.json").read_text())
    assert record["loss"]["hard_negatives"] is False and record["data"]["negative_columns"] == []


def test_settings_alone_train_what_they_name(tmp_path):
    one = train(settings(tmp_path, "data.rows=50", "data.holdout=0"))
    config = compose_config(settings(tmp_path, "data.rows=50", "data.holdout=0"))
    np.testing.assert_array_equal(train(config).encode(TEXTS), one.encode(TEXTS))


def test_settings_may_be_given_one_after_the_other(tmp_path):
    one = train((word for word in settings(tmp_path)), triplets=iter(PAIRS), callbacks=iter([]))
    assert [path.name for path in (tmp_path / "o").glob("tiny-*")] == [run_folder(tmp_path / "o").name]
    np.testing.assert_array_equal(Embedder.load(run_folder(tmp_path / "o")).encode(TEXTS), one.encode(TEXTS))


@pytest.mark.parametrize("callbacks", [print, None, 5, "print", [None], [print, 5], {"print": print}])
def test_callbacks_that_are_none_are_refused_before_anything_is_written(tmp_path, callbacks):
    with pytest.raises(UserError, match=r"callbacks are a list of functions such as \[print\], not "):
        train(settings(tmp_path), triplets=PAIRS, callbacks=callbacks)
    assert not (tmp_path / "o").exists()


@pytest.mark.parametrize("rows", [5, "text", b"text", {"anchor": ["a"], "positive": ["b"]}, print])
def test_triplets_that_are_no_rows_are_refused_before_anything_is_composed(monkeypatch, rows):
    monkeypatch.setattr("cft.job.library.compose_config", lambda _: pytest.fail("it was composed"))
    with pytest.raises(UserError, match="triplets are a list of rows, not .*; a row is "):
        train(["model=tiny"], triplets=rows)


def test_a_first_stage_and_an_earlier_step_are_found_again(tmp_path):
    first = ["first=docstrings", "first.data.packages=[omegaconf]", "first.steps=2", "first.batch_size=8"]
    embedder = train(settings(tmp_path, "eval.step=2", *SCORED, *first), triplets=TRIPLETS)
    (folder,) = (path.parent for path in (tmp_path / "o").glob("*/steps/000002/contract.json"))
    np.testing.assert_array_equal(embedder.encode(TEXTS), Embedder.load(folder).encode(TEXTS))


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        ([], "triplets: there are none"),
        (["a text"], "row 1 is .*; a row is"),
        ([("a", "b"), ("a",)], "row 2 is .*; a row is"),
        ([("a", "b"), ("a", "b", "c")], "row 1 has no negatives, and row 2 has"),
        ([("a", "b", "c"), ("a", "b")], "row 2 has no negatives, and row 1 has"),
        ([("a", "")], "a text of row 1 is empty"),
        ([("a", "b"), ("a", None)], "a text of row 2 is None"),
        ([("a", "b\0c")], "a text of row 1 holds"),
        ([{"anchor": "a"}], "row 1 has the keys anchor; a row is"),
        (
            [{"anchor": "a", "positive": "b", "negative": "c"}],
            "row 1 has the keys anchor, positive, negative; a row is",
        ),
        ([{"anchor": "a", "positive": "b", "negatives": 5}], "a text of row 1 is "),
        ([7], "row 1 is .*; a row is"),
    ],
)
def test_rows_that_are_none_are_named(tmp_path, rows, message):
    with pytest.raises(UserError, match=message):
        train(settings(tmp_path), triplets=rows)
    assert not Path(tmp_path / "o").exists()


@pytest.mark.parametrize(
    ("given", "more", "message"),
    [
        ("model=tiny", {}, "settings are a list of texts such as"),
        ([1], {}, r"settings are a list of texts such as .*, not \[1\] \(list\)"),
        ((each for each in [1]), {}, r"settings are a list of texts such as .*, not \[1\] \(list\)"),
        (None, {}, "settings are a list of texts such as .*, not None"),
        (5, {"triplets": PAIRS}, r"settings are a list of texts such as .*, not 5 \(int\)"),
        ({"lr": "1e-3"}, {}, "settings are a list of texts such as .*, not .*dict"),
        (["model=tny"], {}, "model=tny: no such choice"),
        (["model=tny"], {"triplets": PAIRS}, "model=tny: no such choice"),
        (["model=tiny", "train.steps=0"], {}, "train.steps=0: there is nothing to train"),
        (["data=nli"], {"triplets": PAIRS}, "data=nli names rows, and triplets are rows too"),
        (["data.train=a.csv"], {"triplets": PAIRS}, "data.train=a.csv names rows, and triplets are rows too"),
    ],
)
def test_settings_that_are_none_are_named(given, more, message):
    with pytest.raises(UserError, match=message):
        train(given, **more)


def test_a_whole_configuration_names_its_own_rows_and_ranks_use_the_command(tmp_path, monkeypatch):
    with pytest.raises(UserError, match="triplets go with a list of settings"):
        train(compose_config(settings(tmp_path)), triplets=PAIRS)
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(UserError, match="under torchrun, run `-m cft.run`"):
        train(settings(tmp_path))
