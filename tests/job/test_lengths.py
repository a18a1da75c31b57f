"""Texts that are longer than the embedder reads are counted and said, and a prompt that leaves no room is refused."""

import json
import logging

import numpy as np
import pytest
from conftest import make_tiny
from jobs import run_folder, settings
from tokenizers import normalizers

from cft.data.records import Triplet
from cft.job import runner
from cft.job.doctor import examine
from cft.job.lengths import find_cut
from cft.job.plan import make_plan
from cft.model.tokenizer import byte_tokenizer
from cft.system.errors import UserError

BEGINNING = "the same first words " * 20


def triplets(count: int) -> list[Triplet]:
    return [Triplet(f"{BEGINNING}{i} a", f"{BEGINNING}{i} b", (f"{BEGINNING}{i} c",)) for i in range(count)]


def write(path, rows) -> str:
    path.write_text(
        "".join(
            json.dumps({"sent0": row.anchor, "sent1": row.positive, "hard_neg": row.negatives[0]}) + "\n"
            for row in rows
        )
    )
    return str(path)


def test_texts_that_a_cut_makes_equal_are_counted(caplog):
    embedder = make_tiny("llama")
    cut = find_cut(embedder, triplets(5))
    assert (cut.texts, cut.of, cut.equal, cut.triplets) == (15, 15, 5, 5)
    assert "training data: 15 of 15 texts (100.0%) are longer than model.max_length=150 tokens" in caplog.text
    assert "in 5 of 5 triplets two different texts are equal after the cut" in caplog.text
    assert not np.abs(np.diff(embedder.encode([triplets(1)[0].anchor, triplets(1)[0].positive]), axis=0)).max()


def test_short_texts_are_passed_over_in_silence(caplog):
    cut = find_cut(make_tiny("llama"), [Triplet("a", "b" * 149, ("c",))])
    assert (cut.texts, cut.equal) == (0, 0) and not caplog.records


def test_texts_are_measured_under_the_prompts_of_their_role_and_their_entry(tmp_path, caplog):
    rows = [Triplet(f"anchor {n:03}", f"positive {n:03}", (f"negative {n:03}",)) for n in range(40)]
    path, other = write(tmp_path / "a.jsonl", rows), write(tmp_path / "b.jsonl", rows[:20])
    long = "'some more words here: {text}'"  # longer than a text may be, with any of them
    job = ["train.steps=2", "data=files", "data.holdout=0", "model.max_length=32", "eval=none"]
    mixed = f"data.train=[{{file: {path}}},{{file: {other}, document: {long}}}]"
    for number, (words, cut, of) in enumerate(
        [
            ([f"data.train={path}", f"prompt.query={long}", "prompt.use=both"], 40, 120),
            ([f"data.train={path}", f"prompt.query={long}", "prompt.use=eval"], 0, 120),
            ([f"data.train={path}", f"prompt.document={long}", "prompt.use=train"], 80, 120),
            ([mixed], 40, 160),
        ]
    ):
        outputs = tmp_path / str(number)
        runner.run(settings(outputs, *job, *words))
        record = json.loads((run_folder(outputs) / "data.json").read_text())["cut"]
        assert (record["texts"], record["of"], record["equal"]) == (cut, of, 0), words
        assert cut == 0 or f"{cut} of {of} texts" in caplog.text


def test_texts_to_be_scored_are_measured_under_the_prompts_of_their_role(tmp_path):
    rows = [Triplet(f"anchor {n:03}", f"positive {n:03}", (f"negative {n:03}",)) for n in range(100)]
    job = ["data=files", f"data.train={write(tmp_path / 'a.jsonl', rows)}", "data.holdout=10", "train.steps=2"]
    prompt = ["prompt.query='some more words here: {text}'", "prompt.use=eval", "model.max_length=32"]
    runner.run(settings(tmp_path, *job, *prompt, "eval=rows"))
    found = {
        path.parent.name.split("-")[0]: json.loads(path.read_text())
        for path in run_folder(tmp_path).glob("evaluations/*/metrics.json")
    }
    assert {name: record["texts_cut"] for name, record in found.items()} == {"triplets": 10, "rows": 10}


@pytest.mark.parametrize(("length", "count"), [(149, 0), (150, 1)])
def test_a_text_is_cut_from_the_first_token_that_has_no_room(length, count):
    embedder = make_tiny("llama")  # a token a byte, and the EOS
    assert embedder.count_cut(["x" * length]) == count
    embedder.encode(["x" * length])
    assert embedder.texts_cut == count
    prompted = embedder.with_template("12345{text}67")
    assert prompted.count_cut(["x" * 142, "y" * 143]) == 1


@pytest.mark.parametrize("form", ["NFC", "NFD", "NFKC", "NFKD"])
def test_texts_that_a_normaliser_makes_longer_are_counted_as_they_are_cut(monkeypatch, form):
    def normalising():
        tokenizer = byte_tokenizer()
        tokenizer.backend_tokenizer.normalizer = getattr(normalizers, form)()
        return tokenizer

    monkeypatch.setattr("cft.model.backbone.byte_tokenizer", normalising)
    embedder = make_tiny("llama")
    room = embedder.contract.room
    texts = ["\ufdfa" * (room // 12), "\u00e9" * (room // 2 - 8), "\u212b" * (room // 3), "\uff21" * (room // 2), "x"]
    embedder.tokenize(texts)
    assert embedder.count_cut(texts) == embedder.texts_cut
    assert embedder.texts_cut > 0 or form == "NFC"


def test_a_job_says_how_much_of_training_and_of_each_evaluation_is_cut(tmp_path, caplog):
    path = write(tmp_path / "long.jsonl", triplets(60))
    job = ["data=files", f"data.train={path}", "data.holdout=5", "train.steps=2", "model.max_length=20"]
    runner.run(settings(tmp_path, *job))
    assert "training data: 165 of 165 texts (100.0%) are longer than model.max_length=20" in caplog.text
    assert "triplets: 15 of 15 texts (100.0%)" in caplog.text
    folder = run_folder(tmp_path)
    assert json.loads((folder / "data.json").read_text())["cut"]["equal"] == 55
    (record,) = (json.loads(path.read_text()) for path in folder.glob("evaluations/triplets-*/metrics.json"))
    assert record["texts_cut"] == 15
    caplog.clear()
    runner.run(settings(tmp_path, *job))
    assert "15 texts were too long to be read whole" in caplog.text, "stored scores say it too"


@pytest.mark.parametrize("use", ["train", "eval", "both", "after"])
@pytest.mark.parametrize("template", ["'{W} {text}'", "'{text} {W}'", "'{H}{text}{H}'"])
def test_a_prompt_that_leaves_no_room_is_refused_before_anything_is_scored(use, template, tmp_path):
    template = template.replace("{W}", "w" * 200).replace("{H}", "h" * 75)
    with pytest.raises(UserError, match=r"nothing of a text would be read; .*raise model\.max_length by"):
        runner.run(settings(tmp_path, f"prompt.template={template}", f"prompt.use={use}"))
    assert not list(tmp_path.rglob("metrics.json"))


def test_a_job_and_the_doctor_show_what_the_file_is_like(tmp_path, caplog):
    rows = triplets(60)
    path = write(tmp_path / "rows.jsonl", [*rows, rows[0]])
    job = ["data=files", f"data.train={path}", "data.holdout=5", "train.steps=2"]
    config = settings(tmp_path, *job)
    caplog.set_level(logging.INFO, "cft")
    runner.run(config)
    said = [
        "61 rows, 60 distinct anchors, 60 distinct positives, 60 distinct negatives",
        "1 of 61 rows stand there before",
    ]
    for line in said:
        assert f"rows.jsonl: {line}" in caplog.text
    (portrait,) = json.loads((run_folder(tmp_path) / "data.json").read_text())["portrait"].values()
    assert portrait["rows"] == 61 and portrait["duplicate_rows"] == 1
    assert (
        str(tmp_path) not in json.dumps(portrait) and "rows.jsonl" in (run_folder(tmp_path) / "data.json").read_text()
    )
    assert str(tmp_path) not in (run_folder(tmp_path) / "data.json").read_text(), "records say nothing of machines"
    caplog.clear()
    text, _ = examine(config)
    assert all(line in text for line in said)


def test_the_same_text_for_two_roles_is_refused_before_a_model_is_loaded(tmp_path):
    rows = [row._replace(positive=row.anchor) for row in triplets(60)]
    job = ["data=files", f"data.train={write(tmp_path / 'rows.jsonl', rows)}"]
    with pytest.raises(UserError, match="rows.jsonl: all 60 rows have their anchor as positive"):
        runner.run(settings(tmp_path, *job))
    for twice in ("data.positive_column=sent0", "data.negative_columns=[sent0]", "data.negative_columns=[a,a]"):
        with pytest.raises(UserError, match="is named more than once by data.anchor_column"):
            runner.run(settings(tmp_path, *job, twice))


def test_too_few_rows_are_counted_with_those_held_out(tmp_path):
    job = ["data=files", f"data.train={write(tmp_path / 'rows.jsonl', triplets(62))}", "train.batch_size=60"]
    with pytest.raises(
        UserError, match=r"56 training triplets do not fill .*; 6 more are held out, which data.holdout=0"
    ):
        runner.run(settings(tmp_path, *job))


def test_several_files_are_one_training(tmp_path, caplog):
    parts = [triplets(60)[:20], triplets(60)[20:]]
    for number, rows in enumerate(parts):
        write(tmp_path / f"part-{number}.jsonl", rows)
    whole = write(tmp_path / "whole.jsonl", triplets(60))
    named = [f"data.train=[{tmp_path}/part-0.jsonl,{tmp_path}/part-1.jsonl]", f"data.train={tmp_path}/part-*.jsonl"]
    runs = {str(make_plan(settings(tmp_path, "data=files", train)).folder) for train in (*named, f"data.train={whole}")}
    assert len(runs) == 1
    with pytest.raises(UserError, match="no file fits this pattern"):
        make_plan(settings(tmp_path, "data=files", f"data.train={tmp_path}/none-*.jsonl"))
    with pytest.raises(UserError, match="part-2.jsonl: no such file"):
        make_plan(settings(tmp_path, "data=files", f"data.train=[{whole},{tmp_path}/part-2.jsonl]"))
    for bad in ("[]", "7", "[3]", "{a:1}"):
        with pytest.raises(UserError, match="data.train="):
            make_plan(settings(tmp_path, "data=files", f"data.train={bad}"))


def test_columns_of_scored_pairs_can_be_named(tmp_path):
    (tmp_path / "mine.csv").write_text("a;b;gold\n" + "".join(f"x {n};y {n};{n}\n" for n in range(20)))
    write(tmp_path / "rows.jsonl", triplets(60))
    named = [
        "data=files",
        f"data.train={tmp_path}/rows.jsonl",
        f"data.dev={tmp_path}/mine.csv",
        "data.dev_columns=[a,b,gold]",
        "eval=sts",
        f"eval.folder={tmp_path}",
        "eval.sets=[mine]",
        "eval.columns=[a,b,gold]",
    ]
    plan = make_plan(settings(tmp_path, *named))
    assert plan.data.dev == plan.sets["mine"] and plan.data.dev[3].score == 3
    with pytest.raises(UserError, match=r"eval.columns=.*: must name three columns"):
        make_plan(settings(tmp_path, *named, "eval.columns=[a,b]"))


def test_an_evaluation_cannot_take_the_name_of_the_held_out_triplets(tmp_path):
    with pytest.raises(UserError, match="eval.name=triplets"):
        make_plan(settings(tmp_path, "eval.name=triplets"))
