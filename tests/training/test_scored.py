"""Scored pairs and NLI labels in training, by CoSENT and AnglE (data.scored, loss.scored)."""

import json
import logging

import pytest
import torch
from batches import assert_same, gradients, scored_pairs, triplets, tuned
from jobs import adapter_bytes, history, run_folder, settings

from cft.config.compose import compose_config
from cft.config.schema import DataSettings, DataSource, LossSettings
from cft.data.records import ScoredPair
from cft.data.scored import read_scored
from cft.data.training_data import _read_dev, load_training_data
from cft.job import runner
from cft.job.plan import make_plan
from cft.system.errors import UserError
from cft.training import contrastive
from cft.training.contrastive import BatchSetup, contrastive_backward
from cft.training.losses import angle_similarity, cosent, info_nce, scored_loss


def drawn(seed: int, *size: int) -> torch.Tensor:
    return torch.randn(*size, generator=torch.Generator().manual_seed(seed))


def test_two_pairs_in_the_wrong_order_cost_their_gap_and_in_the_right_one_little():
    wrong = cosent(torch.tensor([0.2, 0.7]), torch.tensor([1.0, 0.0]), temperature=0.05)
    assert wrong.item() == pytest.approx(torch.log1p(torch.tensor(0.5 / 0.05).exp()).item(), rel=1e-6)
    right = cosent(torch.tensor([0.7, 0.2]), torch.tensor([1.0, 0.0]), temperature=0.05)
    assert right.item() == pytest.approx(torch.log1p(torch.tensor(-0.5 / 0.05).exp()).item(), abs=1e-6)
    assert cosent(torch.tensor([0.7, 0.2]), torch.tensor([1.0, 1.0]), temperature=0.05).item() == 0.0


def test_only_the_order_of_the_scores_counts():
    similarities, scores = drawn(0, 9), torch.tensor([0.0, 1, 1, 2, 3, 0, 2, 1, 3])
    expected = cosent(similarities, scores, temperature=0.1)
    assert cosent(similarities, 100 * scores**3 - 7, temperature=0.1) == expected


@pytest.mark.parametrize("kind", ["cosent", "angle"])
@pytest.mark.parametrize("temperature", [0.05, 0.3])
def test_the_loss_and_its_gradient_are_sentence_transformers_own(kind, temperature):
    pytest.importorskip("sentence_transformers", reason="sentence-transformers is not installed")
    from sentence_transformers.sentence_transformer.losses import AnglELoss, CoSENTLoss

    class Given(torch.nn.Module):
        def forward(self, features):
            return features

    ours = [drawn(seed, 12, 8).requires_grad_(True) for seed in (1, 2)]
    theirs = [each.detach().clone().requires_grad_(True) for each in ours]
    scores = torch.tensor([0.0, 1, 2, 2, 1, 0, 3, 5, 4, 1, 0, 2])
    peer = (AnglELoss if kind == "angle" else CoSENTLoss)(Given(), scale=1 / temperature)
    expected = peer([{"sentence_embedding": each} for each in theirs], scores)
    expected.backward()
    found = scored_loss(*ours, scores, temperature=temperature, kind=kind)
    found.backward()
    torch.testing.assert_close(found, expected, rtol=1e-6, atol=1e-6)
    for one, other in zip(ours, theirs, strict=True):
        torch.testing.assert_close(one.grad, other.grad, rtol=1e-4, atol=1e-6)


def test_vectors_of_an_odd_length_have_no_angle():
    with pytest.raises(ValueError, match="5 numbers have no two halves"):
        angle_similarity(drawn(0, 2, 5), drawn(1, 2, 5))


@pytest.mark.parametrize("loss", [LossSettings(scored="cosent", scored_weight=0.5), LossSettings(scored="angle")])
@pytest.mark.parametrize("family", ["llama", "bloom"])
def test_it_is_both_losses_of_all_vectors_by_plain_autograd_in_chunks_of_any_size(family, loss):
    batch, pairs, embedder = triplets(6), scored_pairs(7), tuned(family)
    texts = [*contrastive.texts_of(batch, loss), *(p.sentence1 for p in pairs), *(p.sentence2 for p in pairs)]
    vectors = embedder.forward(embedder.layout(embedder.tokenize(texts)))
    anchor, positive, negative, one, other = vectors.split([6, 6, 6, 7, 7])
    first = info_nce(anchor, positive, negative, temperature=loss.temperature).loss
    scores = torch.tensor([pair.score for pair in pairs])
    second = scored_loss(one, other, scores, temperature=0.05, kind=loss.scored)
    (first + loss.scored_weight * second).backward()
    expected = gradients(embedder)
    for tokens in (None, 40, 200):
        found = contrastive_backward(embedder, batch, BatchSetup(loss, chunk_tokens=tokens), pairs=pairs)
        assert found.chunks == 1 if tokens is None else found.chunks >= 2
        assert (found.loss, found.scored) == pytest.approx((first.item(), second.item()), rel=1e-5)
        assert_same(gradients(embedder), expected)


def write(folder, rows: list[dict], name: str = "pairs.jsonl") -> str:
    (folder / name).write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(folder / name)


def pairs_of(scores, column: str = "score") -> list[dict]:
    return [{"sentence1": f"a {n}", "sentence2": f"b {n}", column: score} for n, score in enumerate(scores)]


def read(path: str, column: str = "score", **others) -> list[ScoredPair]:
    columns = ["sentence1", "sentence2", column]
    return read_scored(DataSettings(name="f", source=DataSource.files, scored=path, scored_columns=columns, **others))


def test_labels_of_nli_are_read_as_they_are(tmp_path):
    labels = ["entailment", "Neutral", "contradiction ", "neutral"]
    found = read(write(tmp_path, pairs_of(labels, "label")), "label")
    assert [pair.score for pair in found] == [2, 1, 0, 1]
    assert found[0] == ScoredPair("a 0", "b 0", 2.0)


@pytest.mark.parametrize(
    ("scores", "column", "message"),
    [
        ([0, 1, 2], "label", "are entailment, neutral and contradiction in NLI files, where the lowest is the most"),
        ([0, 1, 2], " Label", "are entailment, neutral and contradiction in NLI files"),
        ([1, 0, -1], "gold_label", "are entailment, neutral and contradiction"),
        (["entailment", 1.0], "label", "labels of NLI in some rows and numbers in others"),
        ([3, 3, 3], "score", "all 3 scores are equal"),
        (["neutral", "neutral"], "score", "all 2 scores are equal"),
        ([1, "perhaps"], "score", "row 2 .*'perhaps'.*not a finite number, nor entailment, neutral, contradiction"),
        ([1, None], "score", "row 2 .*null"),
    ],
)
def test_scores_that_may_be_meant_otherwise_are_refused(tmp_path, scores, column, message):
    with pytest.raises(UserError, match=message):
        read(write(tmp_path, pairs_of(scores, column)), column)


@pytest.mark.parametrize("scores", [[0, 1, 1], [0.0, 2.5, 5.0]])
def test_a_column_called_label_may_hold_scores_that_rise(tmp_path, scores):
    assert [pair.score for pair in read(write(tmp_path, pairs_of(scores, "label")), "label")] == scores


def test_what_numbers_of_labels_are_taken_for_is_said_where_it_is_a_guess(tmp_path, caplog):
    read(write(tmp_path, pairs_of([0, 1, 1], "label")), "label")
    assert "of the numbers 0 and 1 in the column 'label', 1 is taken as the more alike" in caplog.text
    caplog.clear()
    read(write(tmp_path, pairs_of([0, 1, 1], "score")))
    assert not caplog.text


def test_the_delimiter_of_scored_pairs_can_be_said_too(tmp_path):
    path = tmp_path / "pairs.csv"
    path.write_text("sentence1^sentence2^score\na, b^c^1\nd^e^0\n")
    assert read(str(path), delimiter="^")[0] == ScoredPair("a, b", "c", 1.0)
    settings = DataSettings(name="f", source=DataSource.files, dev=str(path), delimiter="^")
    assert _read_dev(settings)[1] == ScoredPair("d", "e", 0.0)


def test_a_bad_row_says_how_to_leave_it_out(tmp_path):
    path = write(tmp_path, pairs_of([0.5, "much", 0.1]))
    with pytest.raises(UserError, match="mend or drop it, or set data.on_bad_row=skip"):
        read(path)


def test_bad_rows_are_skipped_where_that_is_wanted(tmp_path, caplog):
    path = write(tmp_path, pairs_of(["entailment", "-", "neutral"], "gold_label"))
    assert len(read(path, "gold_label", on_bad_row="skip")) == 2
    assert "skipped" in caplog.text and "row 2" in caplog.text


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["data.scored=p.jsonl"], "data.scored=p.jsonl would not be read without loss.scored=cosent"),
        (["loss.scored=cosent"], "loss.scored=cosent would not be read without data.scored=pairs.csv"),
        (["loss.scored=cosine", "data.scored=p.jsonl"], "loss.scored=cosine: must be cosent, angle, or null"),
        (["loss.scored_weight=2"], "loss.scored_weight and loss.scored_temperature would not be read"),
        (["loss.scored=angle", "data.scored=p", "loss.scored_weight=0"], "loss.scored_weight=0: must be above 0"),
        (
            ["train.scored_batch=3", "train.accumulation=2", "data.scored=p", "loss.scored=angle"],
            "train.scored_batch=3: must be a multiple",
        ),
        (["data.scored_columns=[a,a,b]"], "data.scored_columns=.*must name three columns"),
    ],
)
def test_settings_that_do_not_go_together_are_refused(overrides, message):
    with pytest.raises(UserError, match=message):
        compose_config(["model=tiny", "train.batch_size=8", *overrides])


@pytest.fixture
def scored(tmp_path) -> list[str]:
    path = write(tmp_path, pairs_of([n % 4 for n in range(20)]))
    return [f"data.scored={path}", "loss.scored=cosent", "train.scored_batch=8", "eval=none", "data.holdout=0"]


def test_a_job_trains_on_both_says_so_and_resumes_to_the_same_bytes(tmp_path, scored, caplog):
    job = [*scored, "train.eval_every=0", "train.accumulation=2"]
    with caplog.at_level(logging.INFO):
        runner.run(settings(tmp_path / "whole", *job))
    assert "and 8 of 20 scored pairs a step, whose loss (cosent) counts 1 times" in caplog.text
    rows = history(run_folder(tmp_path / "whole"))
    assert len(rows) == 6 and all(row["scored_loss"] > 0 for row in rows)
    assert json.loads((run_folder(tmp_path / "whole") / "data.json").read_text())["scored_pairs"] == 20

    class Ended(Exception):
        pass

    def stop(row: dict) -> None:
        if row["step"] == 3:
            raise Ended

    with pytest.raises(Ended):
        runner.run(settings(tmp_path / "ended", *job), on_row=stop)
    runner.run(settings(tmp_path / "ended", *job))
    assert adapter_bytes(tmp_path / "ended") == adapter_bytes(tmp_path / "whole")


def test_the_pairs_and_their_batch_are_part_of_the_name_and_nothing_else_is_renamed(tmp_path, scored):
    def name(*overrides: str) -> str:
        return make_plan(settings(tmp_path / "o", "eval=none", "data.holdout=0", *overrides)).folder.name

    plain = name()
    with pytest.raises(UserError, match="train.scored_batch=16 would not be used"):
        name("train.scored_batch=16")
    others = [name(*scored), name(*scored, "train.scored_batch=4"), name(*scored, "loss.scored_weight=2")]
    others += [name(*scored[:1], "loss.scored=angle", *scored[2:])]
    assert len({plain, *others}) == 5


def test_too_few_pairs_for_a_batch_are_refused_before_a_model_is_loaded(tmp_path, scored):
    with pytest.raises(UserError, match="20 pairs of data.scored do not fill one batch of train.scored_batch=32"):
        make_plan(settings(tmp_path / "o", *scored, "train.scored_batch=32"))


def test_a_first_stage_learns_from_its_triplets_alone(tmp_path, scored):
    own = ["first=docstrings", "first.data.packages=[omegaconf]", "first.steps=2", "first.batch_size=4"]
    runner.run(settings(tmp_path / "o", *scored, *own, "train.steps=2", "train.eval_every=0"))
    first, second = sorted((tmp_path / "o").glob("tiny-*"), key=lambda folder: "docstrings" not in folder.name)
    assert "scored_loss" not in history(first)[0] and "scored_loss" in history(second)[0]


def test_texts_of_scored_pairs_count_as_trained_on(tmp_path, scored):
    config = settings(tmp_path / "o", *scored)
    assert "a 7" in set(load_training_data(config.data, seed=0).texts())
