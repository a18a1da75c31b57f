"""Mined negatives: those that sentence-transformers' function finds, out of files, before or without a model."""

import json
import random
import re
from types import SimpleNamespace

import numpy as np
import pytest
from conftest import make_tiny
from hypothesis import given
from hypothesis import strategies as st

from cft.config.schema import DataSettings, DataSource
from cft.data.files import TripletColumns, stream_triplets
from cft.data.records import Triplet
from cft.data.training_data import load_training_data
from cft.deploy.mine import MineOptions, mine_file
from cft.deploy.mining import MiningRules, Sampling, choose_negatives
from cft.job.plan import DATA_SEED
from cft.mine import COMMAND
from cft.model.embedder import Embedder
from cft.system.errors import UserError

WORDS = "red green blue cat dog bird house river runs sleeps sings old new small tall".split()


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("CFT_CACHE", str(tmp_path / "cache"))


def sentence(rng: random.Random) -> str:
    return " ".join(rng.choice(WORDS) for _ in range(rng.randint(3, 7)))


@pytest.fixture
def files(tmp_path):
    """40 pairs, some anchors of which have several positives, and 120 documents, some of them twice."""
    rng = random.Random(1)
    anchors = [f"what {sentence(rng)}?" for _ in range(30)]
    pairs = [(anchors[n % 30], f"answer: {sentence(rng)}") for n in range(40)]
    documents = [sentence(rng) for _ in range(110)] + [positive for _, positive in pairs[:10]]
    (tmp_path / "pairs.jsonl").write_text("".join(json.dumps({"q": a, "d": p}) + "\n" for a, p in pairs))
    (tmp_path / "docs.jsonl").write_text("".join(json.dumps({"text": text}) + "\n" for text in documents))
    return SimpleNamespace(folder=tmp_path, pairs=pairs, documents=documents)


def options(files, **more) -> MineOptions:
    given = {
        "model": "tiny",
        "train": str(files.folder / "pairs.jsonl"),
        "anchor_column": "q",
        "positive_column": "d",
        "corpus": str(files.folder / "docs.jsonl"),
        "out": str(files.folder / "out.jsonl"),
        "relative_margin": None,
    }
    return MineOptions(**(given | more))


def mined(files, **more) -> list[dict]:
    mine_file(options(files, overwrite=True, **more))
    return [json.loads(line) for line in (files.folder / "out.jsonl").read_text().splitlines()]


class Oracle:
    """What sentence-transformers asks of a model."""

    device = "cpu"

    def __init__(self) -> None:
        self.embedder: Embedder = make_tiny("llama")

    def encode_query(self, texts, **_):
        return self.embedder.encode(texts)

    encode_document = encode_query

    def similarity(self, one, other):
        import torch

        return torch.as_tensor(one) @ torch.as_tensor(other).T

    def similarity_pairwise(self, one, other):
        import torch

        return (torch.as_tensor(one) * torch.as_tensor(other)).sum(dim=1)


RULES = {
    "the nearest": {"num_negatives": 1, "range_max": 20},
    "several": {"num_negatives": 4, "range_max": 30},
    "not the very nearest": {"range_min": 5, "num_negatives": 2, "range_max": 12},
    "a margin": {"absolute_margin": 0.001, "num_negatives": 2, "range_max": 60},
    "a share": {"relative_margin": 0.001, "num_negatives": 3, "range_max": 60},
    "limits": {"max_score": 0.995, "min_score": 0.9, "num_negatives": 3, "range_max": 60},
    "all of them": {
        "range_min": 1, "range_max": 40, "absolute_margin": 0.001, "relative_margin": 0.001, "max_score": 0.99,
        "num_negatives": 3,
    },
}  # fmt: skip


@pytest.mark.parametrize("kind", RULES)
@pytest.mark.parametrize("separate", [True, False])
def test_they_are_those_of_sentence_transformers(files, kind, separate):
    util = pytest.importorskip("sentence_transformers.util")
    from datasets import Dataset

    rules = RULES[kind] | ({} if separate else {"range_max": 20, "range_min": 0})
    pairs = Dataset.from_dict({"q": [a for a, _ in files.pairs], "d": [p for _, p in files.pairs]})
    theirs = util.mine_hard_negatives(
        pairs, Oracle(), corpus=files.documents if separate else None, verbose=False, **rules
    )
    expected: dict[tuple[str, str], list[str]] = {}
    for row in theirs:
        expected.setdefault((row["q"], row["d"]), []).append(row["negative"])
    ours = mined(files, **rules, **({} if separate else {"corpus": ""}))
    assert {(row["sent0"], row["sent1"]): row["hard_neg"] for row in ours} == expected
    assert len(ours) == len(expected) > 5


def test_no_positive_of_any_row_of_an_anchor_is_its_negative_nor_is_the_anchor(files):
    anchor, positive = files.pairs[0]
    documents = [*files.documents, anchor, anchor]
    (files.folder / "docs.jsonl").write_text("".join(json.dumps({"text": text}) + "\n" for text in documents))
    ours = mined(files, num_negatives=100, range_max=100)
    positives: dict[str, set[str]] = {}
    for one, other in files.pairs:
        positives.setdefault(one, set()).add(other)
    for row in ours:
        assert not {row["sent0"], *positives[row["sent0"]]} & set(row["hard_neg"])
        assert len(row["hard_neg"]) == len(set(row["hard_neg"])) > 90


@pytest.mark.parametrize("corpus", [True, False])
def test_answers_in_rows_that_are_not_written_are_known_too(files, corpus):
    rows = [("what?", "one"), ("who?", "two"), ("what?", "two"), ("what?", "three"), ("what?", ["four", "five"])]
    (files.folder / "pairs.jsonl").write_text("".join(json.dumps({"q": a, "d": d}) + "\n" for a, d in rows))
    answers = ["one", "two", "three", "four", "five", "six"]
    (files.folder / "docs.jsonl").write_text("".join(json.dumps({"text": text}) + "\n" for text in answers))
    ours = mined(files, rows=2, num_negatives=2, **({} if corpus else {"corpus": ""}))
    found = {(row["sent0"], row["sent1"]): row["hard_neg"] for row in ours}
    if corpus:
        assert found.keys() == {("what?", "one"), ("who?", "two")}
        assert found["what?", "one"] == ["six"], "all others are answers to it in some row"
        assert len(found["who?", "two"]) == 2
    else:
        assert found == {("who?", "two"): ["one"]}, (
            "what is looked through are the answers of the rows that are written"
        )


def test_a_list_of_positives_stays_one_and_none_of_them_is_a_negative(files):
    rows = [{"q": f"what is {n}?", "d": [f"answer {k} to {n}" for k in range(1 + n % 3)]} for n in range(12)]
    (files.folder / "pairs.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    ours = mined(files, num_negatives=20, range_max=20, corpus="")
    expected = [(row["q"], row["d"] if len(row["d"]) > 1 else row["d"][0]) for row in rows]
    assert [(row["sent0"], row["sent1"]) for row in ours] == expected
    for row, own in zip(ours, rows, strict=True):
        assert row["hard_neg"] and not {own["q"], *own["d"]} & set(row["hard_neg"])


def test_random_ones_follow_from_the_seed_and_stand_within_the_ranks(files):
    within = {(row["sent0"], row["sent1"]): row["hard_neg"] for row in mined(files, num_negatives=10, range_max=10)}
    drawn = [mined(files, num_negatives=3, range_max=10, sampling_strategy="random", seed=seed) for seed in (1, 1, 2)]
    assert drawn[0] == drawn[1] != drawn[2]
    for row in drawn[0]:
        ranks = [within[row["sent0"], row["sent1"]].index(text) for text in row["hard_neg"]]
        assert ranks == sorted(set(ranks)) and len(ranks) == 3


def test_the_report_counts_rows_and_shows_some_and_the_file_is_one_to_train_on(files):
    text = mine_file(options(files, num_negatives=2, relative_margin=0.02))
    rows = (files.folder / "out.jsonl").read_text().splitlines()
    assert re.search(rf"^2 +{sum(len(json.loads(row)['hard_neg']) == 2 for row in rows)}$", text, re.MULTILINE)
    assert text.count("anchor    ") == 5 and text.count("positive  ") == 5 and "relative_margin" in text
    assert "next: python -m cft.run data=files data.train=" in text
    read = list(stream_triplets(files.folder / "out.jsonl", TripletColumns("sent0", "sent1", ["hard_neg"])))
    assert len(read) == len(rows) and all(len(row.negatives) <= 2 for row in read)


def test_docstrings_are_the_rows_that_a_run_takes_first(files, monkeypatch):
    rows = [Triplet(f"{sentence(random.Random(n))}, {n}", f"call {n}", ("sibling",)) for n in range(40)]
    monkeypatch.setattr("cft.deploy.mine.training_rows", lambda packages, seed: rows)
    monkeypatch.setattr("cft.data.docstrings.training_rows", lambda packages, seed: rows)
    usual = {"anchor_column": "sent0", "positive_column": "sent1"}
    ours = mined(files, data="docstrings", train="", corpus="", rows=25, **usual)
    settings = DataSettings(name="docstrings", source=DataSource.docstrings, rows=25, holdout=0)
    taken = load_training_data(settings, seed=DATA_SEED).triplets
    assert [(row["sent0"], row["sent1"]) for row in ours] == [(row.anchor, row.positive) for row in taken]
    assert {text for row in ours for text in row["hard_neg"]} <= {row.positive for row in rows[:25]}


def test_texts_that_are_too_long_are_counted_once_each(files, capsys):
    documents = [f"a long document {number} " * 40 for number in range(6)]
    (files.folder / "docs.jsonl").write_text("".join(json.dumps({"text": text}) + "\n" for text in documents))
    mined(files)
    assert re.findall(r"\d+ texts? reached", capsys.readouterr().err) == ["6 texts reached"]


def test_another_command_over_the_same_texts_embeds_nothing(files, monkeypatch):
    first = mined(files)
    whole = Embedder.encode
    seen: list[str] = []
    monkeypatch.setattr(Embedder, "encode", lambda self, texts, **o: seen.extend(texts) or whole(self, texts, **o))
    assert mined(files) == first
    mined(files, num_negatives=3)
    assert seen == []


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"range_max": 500}, "range_max=500: there are 150 distinct documents, and ranks up to 500"),
        ({"range_min": 400}, "range_min=400: there are 150 distinct documents"),
        ({"num_negatives": 160}, "num_negatives=160: there are 150 distinct documents, and ranks up to 160"),
        (
            {"num_negatives": 140, "range_min": 20},
            "range_min=20: there are 150 distinct documents, and ranks up to 160",
        ),
        (
            {"num_negatives": 5, "range_max": 4},
            "num_negatives=5: between range_min=0 and range_max=4 there are 4 ranks",
        ),
        ({"absolute_margin": -0.5}, "absolute_margin=-0.5: must be 0 to 2"),
        ({"min_score": 0.9, "max_score": 0.1}, "min_score=0.9 is above max_score=0.1"),
        ({"corpus": "nothing.txt"}, "nothing.txt"),
        ({"data": "docstrings"}, "would not be read with data=docstrings"),
        ({"train": ""}, "data.train= is missing"),
        ({"anchor_column": "query"}, "data.anchor_column"),
        ({"seed": 3}, "seed=3 would not be used: add sampling_strategy=random"),
        ({"data": "docstrings", "train": ""}, "data.anchor_column=q would not be read with data=docstrings"),
        ({"column": "body", "corpus": ""}, "column=body: there is no file of columns; leave it out"),
        ({"column": "body", "corpus": "d.txt"}, "column=body: lines of plain text have no columns; leave it out"),
        ({"out": "t.csv"}, ".jsonl"),
        ({"max_score": -2.0}, "no document passes the rules for any row (max_score"),
    ],
)
def test_what_cannot_be_meant_is_refused_by_name(files, monkeypatch, given, message):
    if "max_score" not in given:
        monkeypatch.setattr("cft.deploy.mine.load_embedder", lambda **_: pytest.fail("a model was loaded"))
    with pytest.raises(UserError, match=re.escape(message)):
        mine_file(options(files, **given))
    assert not (files.folder / "out.jsonl").exists()


@pytest.mark.parametrize("read", ["pairs.jsonl", "docs.jsonl"])
def test_no_file_that_is_read_is_written_over_even_on_request(files, read):
    before = (files.folder / read).read_text()
    with pytest.raises(UserError, match=rf"{read} is read, and would be written over; name another output"):
        mine_file(options(files, out=str(files.folder / read), overwrite=True))
    assert (files.folder / read).read_text() == before


def test_a_home_folder_is_one_in_every_file_of_it(files, monkeypatch):
    monkeypatch.setenv("HOME", str(files.folder))
    mine_file(options(files, train="~/pairs.jsonl", corpus="~/docs.jsonl", out="~/out.jsonl"))
    assert (files.folder / "out.jsonl").exists()


def test_its_command_line_has_the_keys_of_a_run(tmp_path):
    words = ["model=minilm", "data.train=a.csv", "out=b.jsonl", "relative_margin=null", "max_score=.8", "range_max=9"]
    found = COMMAND.read(words)
    assert (found.train, found.relative_margin, found.max_score, found.range_max) == ("a.csv", None, 0.8, 9)
    for word in ("max_score=high", "max_score=nan", "range_max=-1", "data.trains=a"):
        with pytest.raises(UserError, match=word.split("=")[0].removesuffix("s")):
            COMMAND.read([*words[:3], word])


@given(
    cosines=st.lists(st.lists(st.integers(-20, 20), min_size=6, max_size=6), min_size=1, max_size=4),
    rules=st.builds(
        MiningRules,
        num_negatives=st.integers(1, 4),
        range_min=st.integers(0, 3),
        range_max=st.integers(4, 6),
        absolute_margin=st.none() | st.sampled_from([0.0, 0.1]),
        max_score=st.none() | st.sampled_from([0.3]),
        sampling_strategy=st.sampled_from(Sampling),
    ),
)
def test_every_negative_passes_every_rule(cosines, rules):
    scores = -np.sort(-np.array(cosines, dtype=np.float32) / 20, axis=1)
    numbers = np.tile(np.arange(6), (len(scores), 1))
    positive = np.full(len(scores), 0.4, dtype=np.float32)
    found = choose_negatives(numbers, scores, [[2]] * len(scores), positive, rules)
    for row, negatives in enumerate(found.negatives):
        passing = [
            number
            for number in range(6)
            if number != 2
            and (
                rules.absolute_margin is None
                or scores[row, number] + np.float32(rules.absolute_margin) <= positive[row]
            )
            and (rules.max_score is None or scores[row, number] <= np.float32(rules.max_score))
        ][rules.range_min : rules.range_max]
        assert set(negatives) <= set(passing)
        assert len(negatives) == min(rules.num_negatives, len(passing))
        if rules.sampling_strategy is Sampling.top:
            assert negatives.tolist() == passing[: rules.num_negatives]
