"""A job whose embedder is judged by the documents that it finds: of one's own rows, or of sets in BEIR's layout."""

import json
import shlex

import numpy as np
import pytest
from jobs import ROWS, pairs_file, run_folder, settings

from cft.config.compose import compose_config
from cft.evaluation.bootstrap import MEAN, resample_means
from cft.evaluation.retrieval import MEASURES, load_retrieval
from cft.evaluation.scores import load_evaluation
from cft.job import runner, runs
from cft.job.plan import make_plan
from cft.system.errors import UserError


def beir(folder, name: str = "Mine") -> None:
    place = folder / name
    (place / "qrels").mkdir(parents=True)
    corpus = [{"_id": f"d{n}", "title": f"thing {n}", "text": f"it is number {n * n}"} for n in range(40)]
    queries = [{"_id": f"q{n}", "text": f"what is thing {n}?"} for n in range(15)]
    for kind, rows in (("corpus", corpus), ("queries", queries)):
        (place / f"{kind}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    judged = "".join(f"q{n}\td{n}\t1\n" for n in range(15))
    (place / "qrels" / "test.tsv").write_text(f"query-id\tcorpus-id\tscore\n{judged}")


def test_held_out_rows_look_for_their_positives_before_and_after(drawn_in_full, tmp_path, caplog):
    caplog.set_level("INFO", "cft")
    job = [*ROWS, f"data.train={pairs_file(tmp_path)}", f"outputs={tmp_path / 'o'}"]
    outcome = runner.run(settings(tmp_path, *job))
    folder = run_folder(tmp_path / "o")
    (place,) = folder.glob("evaluations/rows-*")
    after = load_evaluation(place)
    found = after.retrieval["held-out rows"]
    assert len(found.first) == 12 and f"{after.headline:.2f} after" in outcome
    assert set(json.loads((place / "metrics.json").read_text())["retrieval"]["held-out rows"]) == {*MEASURES, "queries"}
    assert (place / "recall.png").exists() and "nDCG@10 x 100" in caplog.text
    shown = caplog.text.partition("query   ")[2]
    assert shown.count("before  ") == 3 and shown.count("now     ") == 3
    table = (place / "table.md").read_text()
    assert "| held-out rows | 12 |" in table and "recall@100" in table and "query   what is thing" in table
    card = (folder / "README.md").read_text()
    assert "held-out rows, nDCG@10" in card and "type: Retrieval" in card and "ndcg_at_10" in card
    assert runs.list_runs(tmp_path / "o", [])[1][-1] == f"{after.headline:.2f}"
    caplog.clear()
    runner.run(settings(tmp_path, *job))
    assert "already evaluated the result" in caplog.text


def test_documents_are_those_of_held_out_rows_and_others_of_the_file(tmp_path):
    job = [*ROWS, f"data.train={pairs_file(tmp_path)}"]
    plan = make_plan(settings(tmp_path, *job, "eval.documents=50"))
    (data,) = plan.retrieval.values()
    assert len(data.queries) == 12 and len(data.documents) == 50
    assert {row.positive for row in plan.holdout} <= set(data.documents)
    trained = {row.positive for row in plan.data.triplets}
    assert not trained & {data.documents[int(id)] for grades in data.judgements for id in grades}
    names = {
        str(make_plan(settings(tmp_path, *job, f"eval.documents={count}")).scores_folder(tmp_path))
        for count in (50, 60)
    }
    assert len(names) == 2
    with pytest.raises(UserError, match="eval=rows scores held-out rows, and there are none"):
        make_plan(settings(tmp_path, *job, "data.holdout=0"))


def test_sets_of_a_folder_are_scored_alone_and_after_training_under_prompts_by_role(tmp_path, caplog):
    caplog.set_level("INFO", "cft")
    beir(tmp_path / "sets")
    job = ["eval=retrieval", f"eval.folder={tmp_path / 'sets'}", "eval.sets=[Mine]", f"outputs={tmp_path / 'o'}"]
    runner.run(settings(tmp_path, *job, "train.steps=0"))
    assert "nDCG@10" in caplog.text and "recall@100" in caplog.text
    runner.run(settings(tmp_path, *job, "lr=1e-2"))
    runner.run(settings(tmp_path, *job, "lr=1e-2", "prompt=query_passage", "prompt.use=eval"))
    places = sorted(run_folder(tmp_path / "o").glob("evaluations/retrieval-*"))
    plain, prompted = (load_retrieval(place)["Mine"].cosine for place in places)
    assert len(places) == 2 and not np.array_equal(plain, prompted)


def test_what_was_trained_on_of_the_test_sets_is_counted_and_said(tmp_path, caplog):
    caplog.set_level("INFO", "cft")
    beir(tmp_path / "sets")
    rows = [{"sent0": f"What is THING {n}", "sent1": f"thing {n}: it is number {n * n}!"} for n in (3, 30)]
    rows += [{"sent0": "another", "sent1": "is what is thing 4?"}, {"sent0": "it is number 4", "sent1": "thing 2"}] * 8
    path = tmp_path / "seen.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    job = ["data=files", f"data.train={path}", "data.negative_columns=[]", "data.holdout=0", "loss=in_batch"]
    job += ["train.steps=1", "train.eval_every=0", "eval=retrieval", f"eval.folder={tmp_path / 'sets'}", "lr=1e-2"]
    runner.run(settings(tmp_path / "o", *job, "eval.sets=[Mine]"))
    (kept,) = run_folder(tmp_path / "o").glob("evaluations/*/overlap.json")
    counts = {"queries": 15, "queries_seen": 1, "documents": 40, "documents_seen": 3}
    assert json.loads(kept.read_text())["sets"] == {"Mine": counts}
    overlap = "Mine: 1 of 15 queries and 3 of 40 documents"
    (line,) = [record for record in caplog.records if overlap in record.getMessage()]
    assert line.levelname == "WARNING"
    assert not list((tmp_path / "o").glob("base-*/evaluations/*/overlap.json")), "what is not trained has seen nothing"


def test_two_runs_are_compared_over_queries(tmp_path):
    beir(tmp_path / "sets")
    job = ["eval=retrieval", f"eval.folder={tmp_path / 'sets'}", "eval.sets=[Mine]"]
    for rate in ("1e-2", "1e-5"):
        runner.run(settings(tmp_path, *job, f"lr={rate}"))
    one, other = sorted(path for path in tmp_path.iterdir() if path.name.startswith("tiny-"))
    text = runs.compare_runs(one, other)
    assert "nDCG@10" in text and "on 15 queries of the set" in text and "Mine" in text


def test_runs_are_compared_as_each_will_be_used_and_on_every_measure(tmp_path):
    beir(tmp_path / "sets")
    job = ["eval=retrieval", f"eval.folder={tmp_path / 'sets'}", "eval.sets=[Mine]", "prompt.use=both"]
    runner.run(settings(tmp_path, *job, "lr=1e-2"))
    runner.run(settings(tmp_path, *job, "lr=1e-3", "prompt=query_passage"))
    one, other = sorted(tmp_path.glob("tiny-*"), key=lambda path: path.stat().st_mtime)
    text = runs.compare_runs(one, other)
    assert "prompts '{text}' and queries 'query: {text}', documents 'passage: {text}'" in text
    assert all(f"Mine, {measure}" in text for measure in MEASURES[1:]) and "no evaluation" not in text


def test_where_two_runs_have_no_evaluation_in_common_the_command_that_makes_one_is_printed(tmp_path):
    beir(tmp_path / "sets")
    runner.run(settings(tmp_path, "lr=1e-2"))
    overrides = ["eval=retrieval", f"eval.folder={tmp_path / 'sets'}", "eval.sets=[Mine]"]
    runner.run(settings(tmp_path, *overrides, "lr=1e-3", "model.pooling=mean"))
    captioned, judged = sorted(tmp_path.glob("tiny-*"), key=lambda path: path.stat().st_mtime)
    text = runs.compare_runs(judged, captioned)
    assert f"this one scores {captioned.name} as {judged.name} was scored" in text
    words = shlex.split(text.partition("python -m cft.run ")[2])
    runner.run(compose_config(words))
    assert len(list(tmp_path.glob("tiny-*"))) == 2, "the same run was scored, not another one trained"
    text = runs.compare_runs(judged, captioned)
    assert "Mine" in text and "no evaluation" not in text


def test_pairs_of_ones_own_have_an_evaluation_of_their_own(tmp_path):
    rows = [f"text {n},text {n % 7},{n % 2}" for n in range(40)]
    (tmp_path / "mine.csv").write_text("\n".join(["left,right,same", *rows]))
    own = ["eval=pairs", f"eval.file={tmp_path / 'mine.csv'}", "eval.columns=[left,right,same]"]
    plan = make_plan(settings(tmp_path, *own))
    assert list(plan.sets) == ["mine"] and len(plan.sets["mine"]) == 40
    assert make_plan(settings(tmp_path, *own, "eval.rows=16")).sets["mine"][1].sentence1 == "text 2"
    with pytest.raises(UserError, match="name your scored pairs, as in eval.file=pairs.csv"):
        settings(tmp_path, "eval=pairs")
    with pytest.raises(UserError, match="would not be read: add eval=pairs"):
        settings(tmp_path, "eval=none", own[1])
    with pytest.raises(UserError, match="two files are called 'mine'"):
        make_plan(settings(tmp_path, "eval=pairs", f"eval.file=[{tmp_path}/mine.csv,{tmp_path}/mine.tsv]"))
    with pytest.raises(UserError, match="eval.file=.*nowhere.csv"):
        make_plan(settings(tmp_path, "eval=pairs", "eval.file=nowhere.csv"))


def test_resampled_means_are_those_of_resampled_queries():
    generator = np.random.default_rng(0)
    embedders = [{"a": generator.random(400), "b": generator.random(60)} for _ in range(2)]
    drawn = resample_means(embedders, resamples=4000)
    assert drawn.names == ["a", "b", MEAN] and drawn.pairs == [400, 60, 60]
    for place, arrays in enumerate(embedders):
        for column, name in enumerate("ab"):
            values = 100 * arrays[name]
            assert drawn.values[place, column] == pytest.approx(values.mean(), abs=1e-4)
            error = values.std() / np.sqrt(len(values))
            interval = drawn.interval(place, name)
            assert interval.low == pytest.approx(values.mean() - 1.96 * error, abs=0.25 * error)
            assert interval.high == pytest.approx(values.mean() + 1.96 * error, abs=0.25 * error)
    (same,) = resample_means([embedders[0], embedders[0]]).differences([(0, 1)])
    assert same["a"].value == 0 and same["a"].verdict == "not distinguishable"
