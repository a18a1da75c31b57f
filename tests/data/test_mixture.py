"""Several files in one training: what each has for itself, and what cannot be mixed."""

import json
import logging
import re

import pytest
from jobs import history, run_folder, settings

from cft.config.schema import DataSettings, DataSource, LossSettings, Prompts
from cft.data.retrieval import rows_as_sets
from cft.data.training_data import load_training_data
from cft.job import runner
from cft.system.errors import UserError
from cft.training import trainer
from cft.training.contrastive import tokens_of


def write(folder, name: str, count: int, columns=("sent0", "sent1", "hard_neg")) -> str:
    rows = [{column: f"{name} {column} {number}" for column in columns} for number in range(count)]
    (folder / name).write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(folder / name)


PAIRS = {"anchor_column": "question", "positive_column": "answer", "negative_columns": []}


@pytest.fixture
def entries(tmp_path) -> list[dict]:
    pairs = write(tmp_path, "faq.jsonl", 30, ("question", "answer"))
    return [{"file": write(tmp_path, "nli.jsonl", 60), "share": 3}, {"file": pairs, "share": 1, **PAIRS}]


def mixed(entries, **others) -> DataSettings:
    return DataSettings(name="files", source=DataSource.files, train=entries, **{"holdout": 0, **others})


def test_each_entry_is_read_by_its_own_columns_and_keeps_its_rows_together(entries):
    data = load_training_data(mixed(entries), seed=0)
    assert [(part.name, part.rows, part.share) for part in data.parts] == [
        ("nli.jsonl", 60, 0.75),
        ("faq.jsonl", 30, 0.25),
    ]
    assert data.triplets[59].negatives == ("nli.jsonl hard_neg 59",)
    assert data.triplets[60] == ("faq.jsonl question 0", "faq.jsonl answer 0", ())
    assert data.mixture.starts == (0, 60)


def test_held_out_rows_leave_the_others_with_their_own_entry(entries):
    data = load_training_data(mixed(entries, holdout=9), seed=0)
    assert len(data.holdout) == 9 and sum(part.rows for part in data.parts) == 81
    first = data.parts[0].rows
    assert all(row.anchor.startswith("nli") for row in data.triplets[:first])
    assert all(row.anchor.startswith("faq") for row in data.triplets[first:])


def test_a_small_entry_has_held_out_rows_however_large_the_other_is(tmp_path, caplog):
    """Of one pool, 20 of 2,000 rows would be held out, and of the 40 that matter perhaps none."""
    large, small = write(tmp_path, "nli.jsonl", 2000), write(tmp_path, "faq.jsonl", 40)
    given = [{"file": large, "share": 1}, {"file": small, "share": 1}]
    data = load_training_data(mixed(given, holdout=20), seed=0)
    assert [name for row in data.holdout for name in data.holdout_parts[row]] == ["nli.jsonl"] * 16 + ["faq.jsonl"] * 4
    assert [part.rows for part in data.parts] == [1984, 36]
    tiny = write(tmp_path, "tiny.jsonl", 9)
    data = load_training_data(mixed([*given, {"file": tiny, "share": 1}], holdout=20), seed=0)
    assert set(data.holdout_parts.values()) == {frozenset(["nli.jsonl"]), frozenset(["faq.jsonl"])}
    assert "tiny.jsonl: 9 rows are too few to hold one out, and nothing scores what is learnt of them" in caplog.text


def test_rows_that_two_entries_share_are_held_out_of_both(tmp_path):
    rows = [write(tmp_path, f"{name}.jsonl", 40) for name in "ab"]
    (tmp_path / "b.jsonl").write_text((tmp_path / "a.jsonl").read_text())
    data = load_training_data(mixed([{"file": each, "share": 1} for each in rows], holdout=8), seed=0)
    held = {row.anchor for row in data.holdout}
    assert held and held.isdisjoint(row.anchor for row in data.triplets)
    assert {name: len(found.queries) for name, found in rows_as_sets(data, 100, 0).items()} == {
        "held-out rows of a.jsonl": len(held),
        "held-out rows of b.jsonl": len(held),
    }


@pytest.mark.parametrize("positives", ["all", "redraw"])
def test_each_entry_is_a_set_of_its_own_among_its_own_documents(tmp_path, positives):
    files = [tmp_path / "one" / "faq.jsonl", tmp_path / "two" / "faq.jsonl"]
    for place, path in enumerate(files):
        path.parent.mkdir()
        lines = ({"sent0": f"q{place} {n}", "sent1": [f"d{place} {n}", f"e{place} {n}"]} for n in range(40))
        path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    given = [{"file": str(path), "share": 1, "negative_columns": []} for path in files]
    data = load_training_data(mixed(given, holdout=8, positives=positives), seed=0)
    assert [part.name for part in data.parts] == ["faq.jsonl", "faq.jsonl (2)"]
    for documents in (0, 30, 1000):
        sets = rows_as_sets(data, documents, 0)
        assert list(sets) == ["held-out rows of faq.jsonl", "held-out rows of faq.jsonl (2)"]
        for place, found in enumerate(sets.values()):
            assert found.queries and all(text.startswith(f"q{place}") for text in found.queries)
            assert all(text[1] == str(place) for text in found.documents)
            assert len(found.documents) == {0: 2 * len(found.queries), 30: 30, 1000: 80}[documents]


@pytest.mark.parametrize("shares", [{}, {"share": 1}])
def test_a_file_of_two_kinds_of_pairs_is_read_for_each(tmp_path, shares):
    path = write(tmp_path, "both.jsonl", 20, ("question", "answer", "title"))
    columns = [{"anchor_column": each, "positive_column": "answer"} for each in ("question", "title")]
    data = load_training_data(
        mixed([{"file": path, **each, **shares, "negative_columns": []} for each in columns]), seed=0
    )
    anchors = [row.anchor for row in data.triplets]
    assert len(anchors) == 40 and [anchors[0], anchors[20]] == ["both.jsonl question 0", "both.jsonl title 0"]


def test_a_file_is_one_however_its_path_is_written(tmp_path):
    path = write(tmp_path, "a.jsonl", 20)
    (tmp_path / "sub").mkdir()
    other = f"{tmp_path}/sub/../a.jsonl"
    assert len(load_training_data(mixed([path, other]), seed=0).triplets) == 20
    with pytest.raises(UserError, match=r"data.train\[1\]: a.jsonl is of an earlier entry already"):
        load_training_data(mixed([{"file": each, "share": 1} for each in (path, other)]), seed=0)


def test_rows_that_are_too_few_for_the_last_file_say_why(tmp_path):
    files = [{"file": write(tmp_path, f"{name}.jsonl", 20), "share": 1} for name in "ab"]
    with pytest.raises(UserError, match=r"no row of b.jsonl is left .*; data.rows=15 counts rows of all files"):
        load_training_data(mixed(files, rows=15), seed=0)


def test_without_anything_of_their_own_files_are_one_pool_as_before(tmp_path):
    files = [write(tmp_path, "nli.jsonl", 60), write(tmp_path, "more.jsonl", 20)]
    one = load_training_data(mixed(files), seed=0)
    other = load_training_data(mixed([{"file": each} for each in files]), seed=0)
    assert one.parts == other.parts == () and one.content == other.content and len(one.triplets) == 80


def test_evenness_gives_small_files_more_than_their_size(entries):
    plain = [{key: value for key, value in each.items() if key != "share"} for each in entries]
    by_size = load_training_data(mixed(plain, mixing="files"), seed=0).mixture.normalized
    assert by_size == pytest.approx((2 / 3, 1 / 3))
    evened = load_training_data(mixed(plain, evenness=2), seed=0).mixture.normalized
    assert evened == pytest.approx((2**0.5 / (2**0.5 + 1), 1 / (2**0.5 + 1)))


def test_a_file_that_two_entries_name_is_refused(entries):
    with pytest.raises(UserError, match=r"data.train\[1\]: nli.jsonl is of an earlier entry already"):
        load_training_data(mixed([entries[0], entries[0]]), seed=0)


def test_an_entry_that_holding_out_leaves_without_rows_is_refused(entries):
    with pytest.raises(UserError, match=r"data.train\[1\]: no row of faq.jsonl is left"):
        load_training_data(mixed(entries, rows=60), seed=0)


@pytest.mark.parametrize(
    ("others", "message"),
    [
        ({"share": 0.001}, r"data.train\[1\] \(faq.jsonl\): a share of 0.00033 gives it none of the 11 batches"),
        ({"file": "few"}, r"data.train\[1\] \(few.jsonl\): its 5 rows do not fill one batch of train.batch_size=8"),
    ],
)
def test_an_entry_that_never_fills_a_batch_is_refused(tmp_path, entries, others, message):
    if "file" in others:
        others = {"file": write(tmp_path, "few.jsonl", 5, ("question", "answer"))}
    config = settings(tmp_path / "out")
    config.data = mixed([entries[0], {**entries[1], **others}], mixing="files")
    with pytest.raises(UserError, match=message):
        trainer.plan_steps(config, load_training_data(config.data, seed=0))


def test_an_entry_whose_rows_make_no_batch_without_a_text_twice_is_refused(tmp_path):
    rows = [{"question": f"is {number} even?", "answer": "no" if number % 2 else "yes"} for number in range(40)]
    path = tmp_path / "yes-no.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    of_two = [{"file": write(tmp_path, "nli.jsonl", 40)}, {"file": str(path), **PAIRS}]
    data = load_training_data(mixed(of_two, mixing="files"), seed=0)
    config = settings(tmp_path, "train.steps=8", "train.no_duplicates=true")
    with pytest.raises(UserError, match=r"data\.train\[1\] \(yes-no\.jsonl\): train\.no_duplicates=true: .* 40 rows"):
        trainer.plan_steps(config, data)
    config.train.batch_size = 2
    assert trainer.plan_steps(config, data) == 8


def test_an_entry_whose_share_of_a_batch_has_more_rows_than_it_is_refused(tmp_path, entries):
    few = write(tmp_path, "few.jsonl", 3, ("question", "answer"))
    config = settings(tmp_path / "out")
    config.data = mixed([entries[0], {**entries[1], "file": few, "share": 3}])
    with pytest.raises(UserError, match=r"a share of 0.5 is 4 rows of a batch of train.batch_size=8, and it has 3"):
        trainer.plan_steps(config, load_training_data(config.data, seed=0))


def test_rows_have_the_words_of_their_own_entry(tiny, entries):
    data = load_training_data(mixed([{**entries[0], "query": "Q {text}", "document": "D {text}"}, entries[1]]), seed=0)
    embedder = tiny.with_prompts(Prompts(query="others {text}"))
    rows = [data.triplets[0], data.triplets[60], data.triplets[1]]
    own = [data.parts[data.mixture.source_of(row)].prompts(embedder.contract.prompts) for row in (0, 60, 1)]
    expected = ["Q nli.jsonl sent0 0", "others faq.jsonl question 0", "Q nli.jsonl sent0 1"]
    expected += ["D nli.jsonl sent1 0", "faq.jsonl answer 0", "D nli.jsonl sent1 1"]
    expected += ["D nli.jsonl hard_neg 0", "D nli.jsonl hard_neg 1"]
    assert tokens_of(embedder, rows, LossSettings(), prompts=own) == tiny.tokenize(expected)


@pytest.mark.parametrize("mixing", ["rows", "files"])
def test_a_job_takes_batches_by_the_shares_and_says_so(tmp_path, entries, mixing, caplog, monkeypatch):
    batches: list[list[str]] = []
    step = trainer._step

    def seen(state, batch, **how):
        batches.append([row.anchor.partition(".")[0] for row in batch.triplets])
        own = 0.2 if mixing == "files" and batches[-1][0] == "faq" else 0.05
        assert batch.loss.temperature == own
        return step(state, batch, **how)

    monkeypatch.setattr(trainer, "_step", seen)
    if mixing == "files":
        entries[1]["loss"] = {"temperature": 0.2}
    config = settings(tmp_path, "train.steps=8", "train.batch_size=4", "eval=none", "data.holdout=0")
    config.data = mixed(entries, mixing=mixing)
    with caplog.at_level(logging.INFO):
        runner.run(config)
    flat = [name for batch in batches for name in batch]
    assert flat.count("nli") == 24 and flat.count("faq") == 8
    assert all(len(set(batch)) == (1 if mixing == "files" else 2) for batch in batches)
    drawn = "batches" if mixing == "files" else "each batch"
    assert f"faq.jsonl           25.0% of {drawn}, 30 rows, 0.267 passes, 0 held out" in caplog.text
    assert len(history(run_folder(tmp_path))) == 8
    record = json.loads((run_folder(tmp_path) / "data.json").read_text())
    assert [part["name"] for part in record["parts"]] == ["nli.jsonl", "faq.jsonl"]


@pytest.mark.parametrize(
    ("mixing", "own", "said"),
    [
        ("rows", {}, ["each anchor chooses among 15 candidates: its positive, 7 in-batch negatives, 7 hard negatives"]),
        (
            "files",
            {"loss": {"anchors_as_negatives": True}},
            [
                "each anchor of nli.jsonl chooses among 16 candidates: its positive, 7 in-batch negatives, 8 hard",
                "each anchor of faq.jsonl chooses among 15 candidates: its positive, 7 in-batch negatives, 0 hard "
                "negatives, 7 other anchors",
            ],
        ),
    ],
)
def test_a_job_says_what_anchors_choose_among_as_it_turns_out(tmp_path, entries, mixing, own, said, caplog):
    entries = [{**entries[0], "share": 7}, {**entries[1], **own}]
    config = settings(tmp_path / "out", "eval=none", "train.steps=8", "train.batch_size=8")
    config.data = mixed(entries, mixing=mixing)
    caplog.set_level(logging.INFO, "cft")
    runner.run(config)
    assert all(line in caplog.text for line in said)
    counts = [row["candidates"] for row in history(run_folder(tmp_path / "out")) if row["event"] == "step"]
    assert set(counts) <= {float(re.search(r"among (\d+)", line)[1]) for line in said} and len(counts) == 8


def test_a_job_scores_what_is_held_out_file_by_file(tmp_path, entries, caplog):
    more = ["train.steps=4", "train.batch_size=4", "eval=rows", "train.eval_every=2", "baseline=none"]
    config = settings(tmp_path, *more)
    config.data = mixed([{**entries[0], "file": write(tmp_path, "nli.jsonl", 200)}, entries[1]], holdout=12)
    with caplog.at_level(logging.INFO):
        runner.run(config)
    (table,) = run_folder(tmp_path).glob("evaluations/*/table.md")
    rows = [[cell.strip() for cell in line.split("|")[1:3]] for line in table.read_text().splitlines()[4:7]]
    names = [f"held-out rows of {name}.jsonl" for name in ("nli", "faq")]
    assert rows == [[names[0], "9"], [names[1], "3"], ["mean over sets", ""]]
    for name, count in zip(names, (9, 3), strict=True):
        assert re.search(rf"{name}: \d (query|queries) of {count} found another document first", caplog.text)
    assert "12 held-out queries among 21 documents, mean over 2 files" in caplog.text
    development = [row for row in history(run_folder(tmp_path)) if row["event"] == "dev"]
    assert len(development) == 2 and all(0 <= row["ndcg@10"] <= 100 for row in development)


def test_shares_words_and_losses_are_part_of_the_name(tmp_path, entries):
    from cft.job.plan import make_plan

    def name(*given: dict, **others) -> str:
        config = settings(tmp_path, "train.steps=4", "train.batch_size=4", "eval=none")
        config.data = mixed(list(given), **others)
        return make_plan(config).folder.name

    nli, faq = entries
    names = [
        name(nli, faq),
        name(nli, faq, mixing="files"),
        name({**nli, "share": 2}, faq),
        name(nli, {**faq, "query": "Q {text}"}),
        name(nli, {**faq, "loss": {"temperature": 0.1}}, mixing="files"),
    ]
    assert len(set(names)) == len(names)
    assert name({**nli, "share": 6}, {**faq, "share": 2}) == names[0]


@pytest.mark.parametrize(
    ("entries", "others", "message"),
    [
        ([{"fil": "a"}], {}, r"data.train=\[\{fil:a\}\]'?: entry 0 has no setting 'fil'; it may have file, share"),
        ([{"share": 1}], {}, r"data.train=\[\{share:1\}\]'?: entry 0 names no file"),
        ([{"file": "a", "share": 1e308}, {"file": "b", "share": 1e308}], {}, "a number above 0, at most 1,000,000,000"),
        ([{"file": "a", "share": 0}, "b"], {}, r"data.train\[0\].share=0'?: must be a number above 0"),
        ([{"file": "a", "share": 1}, "b"], {}, r"data.train\[1\] has no share, and others have"),
        ([{"file": "a", "loss": {"temperature": 1}}, "b"], {}, "needs batches of its own: data.mixing=files"),
        ([{"file": "a", "loss": {"guide": "minilm"}}, "b"], {"mixing": "files"}, "an entry may have its own hard_neg"),
        ([{"file": "a", "query": "Q"}, "b"], {}, r"must hold \{text\} exactly once"),
        ([{"file": "a", "share": 1}], {}, "data.train has one entry: its share is all"),
        (["a"], {"mixing": "files"}, "there are not several"),
        (["a", "b"], {"mixing": "sometimes"}, "data.mixing=sometimes: must be rows or files"),
        (["a", "b"], {"evenness": 0}, r"data.evenness=0: must be 1 \(rows as often"),
        (
            [{"file": "a", "share": 1}, {"file": "b", "share": 1}],
            {"evenness": 2},
            "data.evenness=2 would not be read",
        ),
        (["a", {"file": "b", "anchor_column": "sent1"}], {}, r"'sent1' is named more than once by data.train\[1\]"),
        (["a", 7], {}, r"data.train=\[a,7\]'?: must be a file"),
    ],
)
def test_entries_that_cannot_be_are_refused_by_name(entries, others, message):
    problems = list(mixed(entries, **others).problems())
    assert any(re.search(message, problem) for problem in problems), problems
