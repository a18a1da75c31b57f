"""Rows with a list of positives, of which one is drawn at a time (data.positives=redraw)."""

import json
import logging
from pathlib import Path

import numpy as np
import pytest
from jobs import ROWS, adapter_bytes, history, run_folder, settings

from cft.config.rules import require_valid
from cft.config.schema import DataSettings, DataSource
from cft.data.portrait import Painter
from cft.data.records import Triplet
from cft.data.retrieval import rows_as_sets
from cft.data.sampling import batches, draw_positives, shared_texts
from cft.data.training_data import load_training_data
from cft.job import runner
from cft.job.plan import make_plan
from cft.system.errors import UserError
from cft.training import trainer


def positives_of(n: int) -> list[str]:
    return [f"answer {k} to {n}" for k in range(1 + n % 4)]


def write(folder: Path, numbers, name: str = "rows.jsonl") -> str:
    rows = [{"sent0": f"what is {n}?", "sent1": positives_of(n), "hard_neg": [f"no {n}", f"nor {n}"]} for n in numbers]
    (folder / name).write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(folder / name)


def load(train, **more):
    return load_training_data(
        DataSettings(name="f", source=DataSource.files, train=train, **({"positives": "redraw", "holdout": 0} | more)),
        seed=0,
    )


def test_a_draw_is_of_the_rows_own_positives_by_seed_and_step_alone_and_each_of_them_comes():
    starts, count = np.array([0, 1, 4, 6]), 10
    chosen = np.array([3, 0, 2, 1])
    drawn = [draw_positives(starts, count, chosen, seed=5, step=step).tolist() for step in range(200)]
    assert all(a in range(6, 10) and b == 0 and c in (4, 5) and d in (1, 2, 3) for a, b, c, d in drawn)
    assert [len(set(of_row)) for of_row in zip(*drawn, strict=True)] == [4, 1, 2, 3]
    assert draw_positives(starts, count, chosen, seed=5, step=7).tolist() == drawn[7]
    assert draw_positives(starts, count, chosen, seed=6, step=7).tolist() != drawn[7]


def test_rows_keep_their_positives_together_over_files_held_out_rows_and_a_limit(tmp_path):
    files = [write(tmp_path, range(30), "a.jsonl"), write(tmp_path, range(30, 65), "b.jsonl")]
    data = load(files, holdout=6)
    held = {row.anchor for row in data.holdout}
    left = [n for n in range(65) if f"what is {n}?" not in held]
    assert 0 < len(held) and data.rows == len(left) < len(data.triplets)
    for n, start, end in zip(left, data.starts, [*data.starts[1:], len(data.triplets)], strict=True):
        own = [Triplet(f"what is {n}?", each, (f"no {n}", f"nor {n}")) for each in positives_of(n)]
        assert [data.triplets[row] for row in range(start, end)] == own
    assert load(files, rows=40).rows == 40
    assert len(load(files, rows=40).triplets) == sum(len(positives_of(n)) for n in range(40))
    assert load(files, positives="all").starts is None


def test_an_epoch_has_every_row_once_and_steps_count_rows(tmp_path):
    job = [
        f"data.train={write(tmp_path, range(40))}",
        "data=files",
        "data.holdout=0",
        "eval=none",
        "train.steps=99",
        "train.epochs=1",
    ]
    plan = make_plan(settings(tmp_path / "o", *job, "data.positives=redraw"))
    assert plan.steps == 5 and make_plan(settings(tmp_path / "o", *job)).steps == 100 // 8
    data = plan.data
    drawn = [
        data.triplets[row].anchor
        for step, chosen in enumerate(batches(data.mixture, 8, seed=0, start=0, stop=5))
        for row in data.triplets_of(chosen, seed=0, step=step)
    ]
    assert sorted(drawn) == sorted(f"what is {n}?" for n in range(40))


def test_no_text_of_any_positive_is_shared_within_a_batch_without_duplicates():
    rows = [Triplet(f"q {n}", f"p {n}", ()) for n in range(8)]
    rows[3] = rows[3]._replace(positive="p 6")
    starts = np.array([0, 2, 4, 5, 6, 7])
    shared = shared_texts(rows, starts)
    assert set(shared) == {1, 4}  # rows 2-3 and 6 of the triplets; anchors of one row are not shared with others
    for batch in batches(6, 3, seed=0, start=0, stop=8, shared=shared):
        assert not {1, 4} <= set(batch.tolist())


def test_a_draw_is_the_file_of_its_part_and_of_its_share(tmp_path):
    files = [write(tmp_path, range(30), "a.jsonl"), write(tmp_path, range(30, 40), "b.jsonl")]
    train = [{"file": files[0], "share": 1, "query": "A: {text}"}, {"file": files[1], "share": 1}]
    data = load(train)
    assert [part.rows for part in data.parts] == [30, 10]
    for step, chosen in enumerate(batches(data.mixture, 8, seed=0, start=0, stop=6)):
        for row in data.triplets_of(chosen, seed=0, step=step):
            first = int(data.triplets[row].anchor.split()[-1].rstrip("?")) < 30
            assert data.part_of(row).name == ("a.jsonl" if first else "b.jsonl")


def test_all_positives_of_a_held_out_row_are_right_answers(tmp_path):
    data = load(write(tmp_path, range(80)), holdout=8)
    found = rows_as_sets(data, 1000, 0)["held-out rows"]
    for anchor, judged in zip(found.queries, found.judgements, strict=True):
        n = int(anchor.split()[-1].rstrip("?"))
        answers = {found.documents[int(found.document_ids.index(id))] for id in judged}
        assert answers == set(positives_of(n))


@pytest.mark.parametrize("more", [[], ["train.no_duplicates=true"], ["train.accumulation=2", "loss.guide=tiny"]])
def test_a_job_draws_says_so_and_resumes_to_the_same_bytes(tmp_path, monkeypatch, caplog, more):
    job = [f"data.train={write(tmp_path, range(40))}", "data=files", "data.positives=redraw", "data.holdout=0"]
    job += ["eval=none", "train.steps=12", "train.batch_size=8", "train.epochs=9", "train.eval_every=0", *more]
    seen: list[tuple[str, str]] = []
    real = trainer.contrastive_backward

    def look(embedder, batch, setup, **rest):
        seen.extend((row.anchor, row.positive) for row in batch)
        return real(embedder, batch, setup, **rest)

    monkeypatch.setattr(trainer, "contrastive_backward", look)
    with caplog.at_level(logging.INFO):
        runner.run(settings(tmp_path / "whole", *job))
    assert "40 triplets to train on, each with one of its positives (100 in all)" in caplog.text
    whole, by_epoch = list(seen), [dict(seen[:40]), dict(seen[40:80])]
    assert len(by_epoch[0]) == len(by_epoch[1]) == 40 and by_epoch[0] != by_epoch[1]
    seen.clear()

    class Ended(Exception):
        pass

    def stop(row: dict) -> None:
        if row["step"] == 7:
            raise Ended

    with pytest.raises(Ended):
        runner.run(settings(tmp_path / "ended", *job), on_row=stop)
    seen.clear()
    runner.run(settings(tmp_path / "ended", *job))
    assert seen == whole[6 * 8 :]
    assert adapter_bytes(tmp_path / "ended") == adapter_bytes(tmp_path / "whole")
    record = json.loads((run_folder(tmp_path / "whole") / "data.json").read_text())
    assert (record["rows"], record["triplets"]) == (40, 100) and len(history(run_folder(tmp_path / "whole"))) == 12


def test_the_name_says_that_positives_are_drawn_and_of_which_rows(tmp_path, caplog):
    def name(text: str, positives: str) -> str:
        (tmp_path / "rows.jsonl").write_text(text)
        job = [f"data.train={tmp_path / 'rows.jsonl'}", "data=files", "loss=in_batch", "data.negative_columns=[]"]
        more = ["data.holdout=0", "eval=none", "train.batch_size=2", f"data.positives={positives}"]
        return make_plan(settings(tmp_path / "o", *job, *more)).folder.name

    lists = [json.dumps({"sent0": f"q {n}", "sent1": ["a", "b"]}) for n in range(4)]
    single = [json.dumps({"sent0": f"q {n}", "sent1": each}) for n in range(4) for each in "ab"]
    assert name("\n".join(lists), "all") == name("\n".join(single), "all") != name("\n".join(lists), "redraw")
    others = [json.dumps({"sent0": "q 0", "sent1": "a"}), json.dumps({"sent0": "q 0", "sent1": "b"}), *lists[1:]]
    assert name("\n".join(others), "redraw") != name("\n".join(lists), "redraw")
    with caplog.at_level(logging.WARNING):
        assert name("\n".join(single), "redraw") == name("\n".join(single), "all")
    assert "no row to train on has a list of several positives" in caplog.text


@pytest.mark.parametrize(
    ("cell", "reason"),
    [
        ([], "has an empty list as 'positive' \\(column 'sent1'\\)"),
        (["a", " "], "has an empty 'positive' \\(column 'sent1'\\)"),
        (["a", None], "has null as 'positive' \\(column 'sent1'\\), which is not a text"),
        ([["a"]], "has .*list.* as 'positive' \\(column 'sent1'\\), which is not a text"),
    ],
)
def test_empty_lists_and_blanks_are_bad_rows(tmp_path, cell, reason):
    rows = [{"sent0": "q", "sent1": ["a", "b"]}, {"sent0": "r", "sent1": cell}]
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    with pytest.raises(UserError, match=f"data row 2 \\(rows.jsonl:2\\) {reason}; mend or drop it"):
        load(str(tmp_path / "rows.jsonl"), negative_columns=[])
    found = load(str(tmp_path / "rows.jsonl"), negative_columns=[], on_bad_row="skip")
    assert found.skipped == 1 and found.rows == 1 and len(found.triplets) == 2


def test_positives_that_are_drawn_do_not_meet_and_are_not_warned_of():
    painter = Painter()
    for n in range(80):
        painter.add(Triplet(f"a {n // 10}", f"b {n}", ()), again=n % 10 > 0)
    found = painter.portrait()
    assert "data.positives=redraw" in "".join(found.warnings_of_batches(16))
    assert list(found.warnings_of_batches(16, redrawn=True)) == []


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["data=docstrings", "data.positives=redraw"], "data.positives=redraw would not be read: add data=files"),
        (["data.positives=first", *ROWS], "data.positives=first: must be all, draw or redraw"),
    ],
)
def test_words_that_are_not_meant_are_refused(tmp_path, overrides, message):
    with pytest.raises(UserError, match=message):
        require_valid(settings(tmp_path, *overrides))
