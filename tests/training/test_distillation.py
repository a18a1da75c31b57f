"""Learning a finished embedder's similarities beside which text is the positive."""

import json
import re
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from batches import TEACHER, a_teacher, assert_same, gradients, triplets, tuned
from jobs import QUICK, composed, history, run_folder

from cft.config.compose import compose_config
from cft.config.schema import Config, LossSettings
from cft.job import runner
from cft.job.plan import make_plan
from cft.model.embedder import Embedder
from cft.system.digest import from_plain, to_plain
from cft.system.errors import UserError
from cft.training.contrastive import BatchSetup, contrastive_backward, texts_of
from cft.training.losses import distillation_targets, info_nce


def test_a_target_is_the_label_and_the_teachers_opinion():
    anchor = torch.tensor([[1.0, 0.0], [0.0, 2.0]])
    candidates = torch.tensor([[3.0, 0.0], [0.0, 1.0], [0.0, 1.0]])
    found = distillation_targets(anchor, candidates, share=0.25, temperature=0.5)
    # cosines 1, 0, 0 and 0, 1, 1; e^2 = 7.389
    near, far = 7.389056 / 9.389056, 1 / 9.389056
    expected = torch.tensor([[0.75 + 0.25 * near, 0.25 * far, 0.25 * far]])
    torch.testing.assert_close(found[:1], expected)
    both = 7.389056 / 15.778112
    torch.testing.assert_close(found[1], torch.tensor([0.25 * (1 / 15.778112), 0.75 + 0.25 * both, 0.25 * both]))
    masked = distillation_targets(
        anchor,
        candidates,
        share=1.0,
        temperature=0.5,
        false_negatives=torch.tensor([[False] * 3, [False, False, True]]),
    )
    torch.testing.assert_close(masked[1], torch.tensor([1 / 8.389056, 7.389056 / 8.389056, 0.0]))


def test_the_label_alone_as_target_is_info_nce():
    generator = torch.Generator().manual_seed(0)
    anchor, positive, negatives = (torch.randn(n, 8, generator=generator) for n in (4, 4, 3))
    label = torch.eye(4, 7)
    expected = info_nce(anchor, positive, negatives, temperature=0.05)
    found = info_nce(anchor, positive, negatives, temperature=0.05, targets=label)
    torch.testing.assert_close(found.loss, expected.loss)
    assert found[1:] == expected[1:]


def test_a_student_that_sees_what_the_teacher_sees_has_nothing_to_learn():
    generator = torch.Generator().manual_seed(0)
    anchor = torch.randn(4, 8, generator=generator).requires_grad_(True)
    candidates = torch.randn(9, 8, generator=generator)
    targets = distillation_targets(anchor.detach() * 3, candidates, share=1.0, temperature=0.05)
    info_nce(anchor, candidates, temperature=0.05, targets=targets).loss.backward()
    assert anchor.grad.abs().max() < 1e-5


@pytest.mark.parametrize("masked", [False, True])
def test_a_taught_batch_by_plain_autograd_whole_and_in_chunks(masked):
    batch = triplets(6, 2)
    batch[3] = batch[3]._replace(positive=batch[1].positive, anchor=batch[0].anchor)
    loss = LossSettings(both_directions=True, anchors_as_negatives=True, mask_false_negatives=masked)
    embedder, teacher = tuned(), a_teacher(share=0.7, temperature=0.1)
    found = contrastive_backward(embedder, batch, BatchSetup(loss, teacher=teacher))
    taken = gradients(embedder)
    parts = contrastive_backward(embedder, batch, BatchSetup(loss, teacher=teacher, chunk_tokens=60))
    in_parts = gradients(embedder)
    without = contrastive_backward(embedder, batch, BatchSetup(loss))
    assert_different(gradients(embedder), taken)

    texts = texts_of(batch, loss)
    vectors = F.normalize(embedder.forward(embedder.layout(embedder.tokenize(texts))), dim=-1)
    known = torch.from_numpy(teacher.embedder.encode(texts))

    def asked(row: int, right: int, others: list[int]) -> torch.Tensor:
        among = [right, *others]
        logp = (vectors[among] @ vectors[row] / loss.temperature).log_softmax(0)
        target = 0.7 * (known[among] @ known[row] / 0.1).softmax(0)
        target[0] += 0.3
        return -(target * logp).sum()

    costs = []
    for i, triplet in enumerate(batch):
        others = [6 + j for j in range(6) if j != i and not (masked and batch[j].positive == triplet.positive)]
        others += [12 + j for j in range(12) if not (masked and texts[12 + j] == triplet.positive)]
        others += [j for j in range(6) if batch[j].anchor != triplet.anchor]
        costs.append(asked(i, 6 + i, others))
        back = [j for j in range(6) if j != i and not (masked and batch[j].anchor == triplet.anchor)]
        costs.append(asked(6 + i, i, back))
    expected = torch.stack(costs).mean()
    expected.backward()
    assert found.loss == pytest.approx(expected.item(), rel=1e-5) and found.loss != pytest.approx(
        without.loss, rel=1e-3
    )
    assert_same(taken, gradients(embedder))
    assert parts.chunks >= 2 and parts.loss == pytest.approx(found.loss, rel=1e-5)
    assert_same(in_parts, taken)


def assert_different(one: dict, other: dict) -> None:
    assert max((one[name] - other[name]).norm() for name in one) > 1e-3


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_a_job_learns_from_a_teacher_and_says_so(tmp_path, precision):
    alone = composed(*QUICK, f"outputs={tmp_path}", f"train.precision={precision}")
    config = composed(*QUICK, f"outputs={tmp_path}", f"train.precision={precision}", *TEACHER)
    assert make_plan(config).folder != make_plan(alone).folder
    runner.run(config)
    folder = run_folder(tmp_path)
    assert [row["step"] for row in history(folder) if row["event"] == "step"] == [1, 2, 3, 4, 5, 6]
    assert (
        "| taught by | tiny (random:bert), 0.5 of the target, temperature 0.05 |" in (folder / "README.md").read_text()
    )
    assert "loading the teacher" in (folder / "log.txt").read_text()
    assert Embedder.load(folder).encode(["A man plays."]).shape == (1, 32)  # needs no teacher
    taught_steps = history(folder)
    runner.run(alone)
    (other,) = (path for path in tmp_path.glob("tiny-*") if path != folder)
    assert [row.get("loss") for row in history(other)] != [row.get("loss") for row in taught_steps]
    assert "taught by" not in (other / "README.md").read_text()


@pytest.mark.parametrize("override", ["distill.share=0.4", "distill.temperature=0.1", "distill.model.pooling=last"])
def test_what_changes_the_lesson_changes_the_folder(tmp_path, override):
    one, other = (make_plan(composed(*QUICK, f"outputs={tmp_path}", *TEACHER, *extra)) for extra in ([], [override]))
    assert one.folder != other.folder and one.base_folder == other.base_folder


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["distill.share=0"], "distill.share=0.0: must be above 0 and at most 1"),
        (["distill.share=1.5"], "distill.share=1.5"),
        (["distill.temperature=0"], "distill.temperature=0.0: must be above 0"),
        (["distill.model.pth=x"], "distill.model.pth: no such key. Did you mean distill.model.path?"),
        (["distill.model=a/b"], "is a whole section, not a name; write distill=minilm distill.model.path=a/b"),
        (["distill.model=tiny"], "is a whole section, not a name; write distill=minilm model@distill.model=tiny"),
    ],
)
def test_settings_of_a_lesson_that_cannot_be_are_refused(overrides, message):
    with pytest.raises(UserError, match=re.escape(message)):
        compose_config(["distill=minilm", *overrides])


@pytest.mark.parametrize(
    ("override", "then"),
    [
        ("distill.model.path=a/b", ("b", 0.5)),
        ("model@distill.model=tiny", ("tiny", 0.5)),
        ("distill.share=0.4", ("minilm", 0.4)),
    ],
)
def test_a_teacher_must_be_chosen_before_it_is_changed(override, then):
    with pytest.raises(UserError, match=re.escape(f"choose one first: distill=minilm {override}")):
        compose_config([override])
    chosen = compose_config(["distill=minilm", override]).distill
    assert (chosen.model.name, chosen.share) == then


def test_a_teacher_that_cannot_be_had_is_named_by_its_own_keys_before_anything_is_trained(tmp_path):
    def refused(folder: Path) -> str:
        with pytest.raises(UserError) as error:
            make_plan(composed(*QUICK, f"outputs={tmp_path}", *TEACHER, f"distill.model.path={folder}"))
        return str(error.value)

    said = refused(tmp_path / "nowhere")
    assert said.startswith(f"distill.model.path={tmp_path}/nowhere: no such folder")
    assert "these run: model@distill.model=smollm2 and model@distill.model=minilm" in said
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "contract.json").write_text("{}")
    assert f"distill.model.path={tmp_path}/run: is an embedder of cft's, not a base model" in refused(tmp_path / "run")


def test_minilm_is_composed_as_a_teacher_and_comes_back_from_a_record():
    config = composed("distill=minilm")
    assert config.distill.model.path == composed("model=minilm").model.path and config.distill.share == 0.5
    assert from_plain(Config, json.loads(json.dumps(to_plain(config)))) == config
    assert from_plain(Config, to_plain(composed())).distill.model is None
