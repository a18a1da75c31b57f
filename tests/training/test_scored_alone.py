"""Trainings on scored pairs without triplets (data=scored)."""

import csv
import json
import logging
import re
from dataclasses import replace

import pytest
import torch
from batches import assert_same, gradients, scored_pairs, tuned
from jobs import adapter_bytes, composed, history, run_folder, settings

from cft.config.schema import LossSettings
from cft.job import runner
from cft.job.doctor import examine
from cft.job.plan import InputCache, fitted, make_plan
from cft.system.errors import UserError
from cft.training import trainer
from cft.training.contrastive import BatchSetup, contrastive_backward
from cft.training.losses import scored_loss


def write(folder, count: int = 40, name: str = "pairs.jsonl") -> str:
    rows = [{"sentence1": f"a thing {n}", "sentence2": f"thing {n // 2} b", "score": n % 5} for n in range(count)]
    (folder / name).write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(folder / name)


def job_of(folder, *more: str) -> list[str]:
    return [
        "model=tiny", "logger=none", "data=scored", f"data.scored={write(folder)}", "train.scored_batch=8",
        "train.steps=8", "train.epochs=9", "train.checkpoint_every=2", "train.eval_every=0", "lr=5e-3",
        f"outputs={folder / 'o'}", *more,
    ]  # fmt: skip


@pytest.mark.parametrize("kind", ["cosent", "angle"])
@pytest.mark.parametrize("family", ["llama", "bloom"])
def test_a_step_is_sentence_transformers_loss_of_all_vectors_in_chunks_of_any_size(family, kind):
    pytest.importorskip("sentence_transformers", reason="sentence-transformers is not installed")
    from sentence_transformers.sentence_transformer.losses import AnglELoss, CoSENTLoss

    class Given(torch.nn.Module):
        def forward(self, features):
            return features

    pairs, embedder = scored_pairs(9), tuned(family)
    texts = [pair.sentence1 for pair in pairs] + [pair.sentence2 for pair in pairs]
    one, other = embedder.forward(embedder.layout(embedder.tokenize(texts))).split([9, 9])
    peer = (AnglELoss if kind == "angle" else CoSENTLoss)(Given(), scale=20.0)
    scores = torch.tensor([pair.score for pair in pairs])
    loss = peer([{"sentence_embedding": each} for each in (one, other)], scores)
    loss.backward()
    expected = gradients(embedder)
    for tokens in (None, 40, 100):
        setup = BatchSetup(LossSettings(scored=kind, hard_negatives=False), chunk_tokens=tokens)
        found = contrastive_backward(embedder, [], setup, pairs=pairs)
        assert found.chunks == 1 if tokens is None else found.chunks >= 2
        assert found.scored == pytest.approx(loss.item(), rel=1e-5)
        assert (found.loss, found.accuracy, found.candidates) == (0, 0, 0)
        assert_same(gradients(embedder), expected)


def test_first_numbers_do_alone_too():
    pairs, embedder = scored_pairs(6), tuned()
    texts = [pair.sentence1 for pair in pairs] + [pair.sentence2 for pair in pairs]
    one, other = embedder.forward(embedder.layout(embedder.tokenize(texts))).split([6, 6])
    scores = torch.tensor([pair.score for pair in pairs])
    parts = [scored_loss(one[:, :k], other[:, :k], scores, temperature=0.05, kind="cosent") for k in (None, 8)]
    torch.stack(parts).mean().backward()
    expected = gradients(embedder)
    contrastive_backward(embedder, [], BatchSetup(LossSettings(scored="cosent", dimensions=[8])), pairs=pairs)
    assert_same(gradients(embedder), expected)


@pytest.mark.parametrize("more", [[], ["train.accumulation=2", "loss.scored=angle", "lora.dropout=0.2"]])
def test_a_job_trains_on_pairs_alone_says_so_and_resumes_to_the_same_bytes(tmp_path, monkeypatch, caplog, more):
    job = [*job_of(tmp_path), f"data.dev={write(tmp_path, 30, 'dev.jsonl')}", "train.eval_every=4", *more]
    seen: list[tuple[int, int, int]] = []
    real = trainer.contrastive_backward

    def look(embedder, batch, setup, **rest):
        seen.append((len(batch), len(rest["pairs"]), rest["seed"]))
        return real(embedder, batch, setup, **rest)

    monkeypatch.setattr(trainer, "contrastive_backward", look)
    with caplog.at_level(logging.INFO):
        runner.run(composed(*job, f"outputs={tmp_path / 'whole'}", "logger=csv"))
    of_step = 2 if more else 1
    assert {each[:2] for each in seen} == {(0, 8 // of_step)}
    assert len(seen) == 8 * of_step and len({each[2] for each in seen[:of_step]}) == of_step  # of dropout
    assert "40 scored pairs to train on, 0 held out" in caplog.text
    assert "8 steps of 8 scored pairs (40 at hand), " in caplog.text and "each anchor chooses" not in caplog.text
    assert "8 of 8 scored pairs, 1.6 passes" in caplog.text
    rows = history(run_folder(tmp_path / "whole"))
    steps = [row for row in rows if row["event"] == "step"]
    assert len(steps) == 8 and all(row["loss"] > 0 and "candidates" not in row for row in steps)
    assert [row["step"] for row in rows if row["event"] == "dev" and row["spearman"] is not None] == [4, 8]
    with (run_folder(tmp_path / "whole") / "history.csv").open() as stream:
        table = [row for row in csv.DictReader(stream) if row["event"] == "step"]
    assert [float(row["loss"]) for row in table] == [row["loss"] for row in steps]
    assert {row["triplets_per_second"] for row in table} == {""} and float(table[0]["tokens_per_second"]) > 0
    card = (run_folder(tmp_path / "whole") / "README.md").read_text()
    name = "AnglE" if more else "CoSENT"
    assert f"| objective | {name} of scored pairs, temperature 0.05 |\n| data | scored: 40 scored pairs (" in card
    assert "of 8 scored pairs |" in card

    class Ended(Exception):
        pass

    def stop(row: dict) -> None:
        if row["step"] == 5:
            raise Ended

    with pytest.raises(Ended):
        runner.run(composed(*job, f"outputs={tmp_path / 'ended'}"), on_row=stop)
    runner.run(composed(*job, f"outputs={tmp_path / 'ended'}"))
    assert adapter_bytes(tmp_path / "ended") == adapter_bytes(tmp_path / "whole")


def test_training_on_pairs_lowers_their_loss(tmp_path):
    words = ["cat", "dog", "river", "house"]
    rows = [{"sentence1": a, "sentence2": f"a {b}", "score": int(a == b)} for a in words for b in words]
    (tmp_path / "same.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    more = ["train.steps=40", "train.epochs=40", "train.scored_batch=16", "lr=2e-2"]
    runner.run(composed(*job_of(tmp_path, *more, f"data.scored={tmp_path / 'same.jsonl'}")))
    losses = [row["loss"] for row in history(run_folder(tmp_path / "o"))]
    assert losses[-1] < 0.5 * losses[0]


def test_passes_and_steps_follow_from_the_pairs(tmp_path):
    def steps(*more: str) -> int:
        return make_plan(composed(*job_of(tmp_path, *more))).steps

    assert [steps("train.epochs=1"), steps("train.epochs=1", "train.scored_batch=6"), steps()] == [5, 6, 8]
    config = composed("model=tiny", "logger=none", "data=scored", f"data.scored={tmp_path / 'pairs.jsonl'}")
    inputs = InputCache()
    chosen = fitted(config, inputs.data(config.data), inputs)
    assert (chosen.train.epochs, chosen.train.steps, chosen.train.scored_batch) == (10, 10, 32)
    assert chosen.model.max_length == 32
    message = "40 pairs of data.scored do not fill one batch of train.scored_batch=64"
    with pytest.raises(UserError, match=message):
        steps("train.scored_batch=64")


def test_its_name_has_what_is_read_alone(tmp_path):
    def name(*more: str) -> str:
        return make_plan(composed(*job_of(tmp_path, *more))).folder.name

    plain = name()
    assert plain.startswith("tiny-scored-")
    with pytest.raises(UserError, match="train.batch_size=10 would not be read"):
        name("train.batch_size=10")
    others = [name(f"train.scored_batch={4}"), name("loss.scored=angle"), name("loss.scored_temperature=0.1")]
    assert len({plain, *others}) == 4


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["loss=hard_neg"], "loss.hard_negatives=true would not be read: there are no triplets with data=scored"),
        (["loss.guide=minilm"], "loss.guide=minilm would not be read"),
        (["loss.temperature=0.1"], "loss.temperature=0.1 would not be read: .*; loss.scored_temperature is that of"),
        (["loss.both_directions=true"], "loss.both_directions=true would not be read"),
        (["loss.scored_weight=2"], "loss.scored_weight=2.* would not be read"),
        (["distill=minilm"], "distill=.* would not be read"),
        (["train.no_duplicates=true"], "train.no_duplicates=true would not be read"),
        (["data.train=a.csv"], "data.train=a.csv would not be read: add data=files"),
        (["data.holdout=5"], "data.holdout=5 would not be read: triplets alone are held out"),
        (["data.rows=5"], "data.rows=5 would not be read"),
        (["data.scored=null"], "data.scored is not set: name your file, as in data.scored=pairs.csv"),
        (["loss.scored=null"], "has no other loss than loss.scored: choose cosent or angle"),
        (["eval=rows"], "eval=rows scores held-out triplets, and data=scored has none"),
        (["train.scored_batch=9", "train.accumulation=2"], "train.scored_batch=9: must be a multiple"),
    ],
)
def test_what_would_not_be_read_is_refused_by_name(tmp_path, overrides, message):
    with pytest.raises(UserError, match=message):
        composed(*job_of(tmp_path, *overrides))


def test_scored_pairs_without_triplets_are_led_to_it():
    with pytest.raises(
        UserError, match="data.train is not set: .*; for scored pairs without triplets write data=scored"
    ):
        composed("model=tiny", "data=files", "data.scored=p.csv", "loss.scored=cosent")


def test_sizes_of_what_is_not_trained_on_are_no_contradiction(tmp_path):
    assert composed(*job_of(tmp_path, "train.accumulation=8", "train.scored_batch=32")).rows_a_step == 32
    assert settings(tmp_path, "train.batch_size=9", "train.accumulation=3").rows_a_step == 9


def test_a_first_stage_has_triplets(tmp_path):
    first = ["first=docstrings", "first.data.packages=[omegaconf]", "first.steps=2", "first.batch_size=4"]
    with pytest.raises(UserError, match="first.data.source=scored: a first stage has triplets"):
        composed(*job_of(tmp_path, *first, "first.data.source=scored", "first.data.packages=null"))
    runner.run(composed(*job_of(tmp_path, *first, "train.steps=2")))
    one, two = sorted((tmp_path / "o").glob("tiny-*"), key=lambda folder: "docstrings" not in folder.name)
    assert "candidates" in history(one)[0] and "candidates" not in history(two)[0]


def test_the_best_step_needs_development_pairs(tmp_path):
    job = job_of(tmp_path, "train.best=true", "train.eval_every=2")
    with pytest.raises(UserError, match=re.escape("train.best=true needs a development score: data.dev=FILE gives")):
        make_plan(composed(*job))
    runner.run(composed(*job, f"data.dev={write(tmp_path, 30, 'dev.jsonl')}"))
    assert json.loads((run_folder(tmp_path / "o") / "training.json").read_text())["best_step"] in (2, 4, 6, 8)


def test_a_loss_that_is_not_finite_names_the_pairs(tmp_path, monkeypatch):
    real = trainer.contrastive_backward

    def broken(*arguments, **named):
        return replace(real(*arguments, **named), scored=float("nan"))

    monkeypatch.setattr(trainer, "contrastive_backward", broken)
    with pytest.raises(
        UserError, match=r"the loss of step 1 is nan; scored pairs 12, .* made it \(their first sentences begin"
    ):
        runner.run(composed(*job_of(tmp_path)))


def test_the_doctor_knows_it(tmp_path):
    text, holds = examine(composed(*job_of(tmp_path)))
    assert holds and "40 scored pairs to train on" in text and "8 of 8 scored pairs" in text
