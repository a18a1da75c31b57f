"""Texts that are longer than the embedder reads are counted and said, and a prompt that leaves no room is refused."""

import json

import numpy as np
import pytest
from conftest import make_tiny
from jobs import run_folder, settings

from cft.data.records import Triplet
from cft.job import runner
from cft.job.lengths import find_cut
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


@pytest.mark.parametrize(("length", "count"), [(149, 0), (150, 1)])
def test_a_text_is_cut_from_the_first_token_that_has_no_room(length, count):
    embedder = make_tiny("llama")  # a token a byte, and the EOS
    assert embedder.count_cut(["x" * length]) == count
    embedder.encode(["x" * length])
    assert embedder.texts_cut == count
    prompted = embedder.with_template("12345{text}67")
    assert prompted.count_cut(["x" * 142, "y" * 143]) == 1


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
