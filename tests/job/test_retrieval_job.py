"""A job whose embedder is judged by the documents that it finds: of one's own rows, or of sets in BEIR's layout."""

import json

import numpy as np
import pytest
from jobs import run_folder, settings

from cft.evaluation.bootstrap import MEAN, resample_means
from cft.evaluation.retrieval import MEASURES, load_retrieval
from cft.evaluation.scores import load_evaluation
from cft.job import runner, runs
from cft.job.plan import make_plan
from cft.system.errors import UserError

ROWS = ["data=files", "data.negative_columns=[]", "loss=in_batch", "eval=rows", "lr=5e-3", "data.holdout=12"]


def pairs_file(folder, count: int = 120) -> str:
    path = folder / "pairs.jsonl"
    rows = [{"sent0": f"what is thing {n}?", "sent1": f"thing {n} is number {n * n}"} for n in range(count)]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(path)


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
    assert "ndcg@10" in caplog.text and "recall@100" in caplog.text
    runner.run(settings(tmp_path, *job, "lr=1e-2"))
    runner.run(settings(tmp_path, *job, "lr=1e-2", "prompt=query_passage", "prompt.use=eval"))
    places = sorted(run_folder(tmp_path / "o").glob("evaluations/retrieval-*"))
    plain, prompted = (load_retrieval(place)["Mine"].cosine for place in places)
    assert len(places) == 2 and not np.array_equal(plain, prompted)


def test_two_runs_are_compared_over_queries(tmp_path):
    beir(tmp_path / "sets")
    job = ["eval=retrieval", f"eval.folder={tmp_path / 'sets'}", "eval.sets=[Mine]"]
    for rate in ("1e-2", "1e-5"):
        runner.run(settings(tmp_path, *job, f"lr={rate}"))
    one, other = sorted(path for path in tmp_path.iterdir() if path.name.startswith("tiny-"))
    text = runs.compare_runs(one, other)
    assert "nDCG@10" in text and "on 15 queries of the set" in text and "Mine" in text


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
