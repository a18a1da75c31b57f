"""Candidates that a guide finds as near as the positive do not count (loss.guide)."""

import contextlib

import pytest
import torch
import torch.nn.functional as F
from batches import a_teacher, assert_same, gradients, triplets, tuned
from jobs import QUICK, composed, history, quick, run_folder

from cft.config.compose import compose_config
from cft.config.schema import LossSettings
from cft.job import runner
from cft.job.plan import make_plan
from cft.model.embedder import Embedder
from cft.system.errors import UserError
from cft.training import contrastive
from cft.training.contrastive import BatchSetup, Guide, contrastive_backward, texts_of
from cft.training.losses import guided_mask, info_nce


def drawn(*sizes: int, width: int = 8) -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(sum(sizes))
    return [torch.randn(size, width, generator=generator) for size in sizes]


def test_what_is_as_near_as_the_positive_is_marked_and_the_positive_never():
    anchor = torch.tensor([[1.0, 0.0], [0.0, 1.0]])
    candidates = torch.tensor([[0.6, 0.8], [0.8, 0.6], [0.0, 5.0]])  # cosines 0.6, 0.8, 0 and 0.8, 0.6, 1
    marked = guided_mask(anchor, candidates, margin=0.0, relative=False)
    assert marked.tolist() == [[False, True, False], [True, False, True]]
    marked = guided_mask(anchor, candidates, margin=-0.25, relative=False)
    assert marked.tolist() == [[False, False, False], [False, False, True]]
    marked = guided_mask(anchor[1:], candidates, margin=0.61, relative=False, first=1)
    assert marked.tolist() == [[True, False, True]]


@pytest.mark.parametrize("relative", [False, True])
@pytest.mark.parametrize("margin", [0.0, 0.1, -0.1, 0.5])
@pytest.mark.parametrize("negatives", [0, 5])
def test_the_loss_is_sentence_transformers_own(monkeypatch, negatives, margin, relative):
    pytest.importorskip("sentence_transformers", reason="sentence-transformers is not installed")
    from sentence_transformers.sentence_transformer.losses import gist_embed

    ours = [each.requires_grad_(True) for each in drawn(*[5] * (3 if negatives else 2))]
    theirs = [each.detach().clone().requires_grad_(True) for each in ours]
    known = drawn(*[5] * len(ours), width=6)
    peer = gist_embed.GISTEmbedLoss.__new__(gist_embed.GISTEmbedLoss)
    torch.nn.Module.__init__(peer)
    peer.model, peer.guide = torch.nn.Identity(), torch.nn.ReLU()
    peer.temperature, peer.margin, peer.margin_strategy = 0.05, margin, "relative" if relative else "absolute"
    peer.similarity_fct, peer.cross_entropy_loss = torch.nn.CosineSimilarity(dim=-1), torch.nn.CrossEntropyLoss()
    peer.must_retokenize = peer.contrast_anchors = peer.contrast_positives = peer.gather_across_devices = False
    monkeypatch.setattr(gist_embed, "embed_columns", lambda model, _: theirs if model is peer.model else known)
    expected = peer([{}] * len(ours), None)
    expected.backward()

    mask = guided_mask(known[0], torch.cat(known[1:]), margin=margin, relative=relative)
    found = info_nce(*ours, temperature=0.05, false_negatives=mask)
    found.loss.backward()
    assert mask.any()
    torch.testing.assert_close(found.loss, expected, atol=1e-6, rtol=1e-6)
    for one, other in zip(ours, theirs, strict=True):
        torch.testing.assert_close(one.grad, other.grad, atol=1e-6, rtol=1e-5)


@pytest.mark.parametrize("masked", [False, True])
def test_a_guided_batch_by_plain_autograd_whole_and_in_chunks(masked):
    batch = triplets(6, 2)
    batch[3] = batch[3]._replace(positive=batch[1].positive)
    loss = LossSettings(both_directions=True, mask_false_negatives=masked, guide="tiny", guide_margin=0.02)
    embedder, finished = tuned(), a_teacher().embedder
    found = contrastive_backward(embedder, batch, BatchSetup(loss, guide=Guide(finished)))
    taken = gradients(embedder)
    parts = contrastive_backward(embedder, batch, BatchSetup(loss, guide=Guide(finished), chunk_tokens=60))
    in_parts = gradients(embedder)
    without = contrastive_backward(embedder, batch, BatchSetup(loss))
    gradients(embedder)

    texts = texts_of(batch, loss)
    vectors = F.normalize(embedder.forward(embedder.layout(embedder.tokenize(texts))), dim=-1)
    known = torch.from_numpy(finished.encode(texts))

    def cost(row: int, right: int, others: list[int]) -> torch.Tensor:
        nearest = known[row] @ known[right] - 0.02
        among = [right, *(other for other in others if known[row] @ known[other] <= nearest)]
        return -(vectors[among] @ vectors[row] / loss.temperature).log_softmax(0)[0]

    costs = []
    for i, triplet in enumerate(batch):
        others = [6 + j for j in range(6) if j != i and not (masked and batch[j].positive == triplet.positive)]
        others += [12 + j for j in range(12) if not (masked and texts[12 + j] == triplet.positive)]
        costs += [cost(i, 6 + i, others), cost(6 + i, i, [j for j in range(6) if j != i])]
    expected = torch.stack(costs).mean()
    expected.backward()
    assert found.loss == pytest.approx(expected.item(), rel=1e-5)
    assert found.loss != pytest.approx(without.loss, rel=1e-3) and found.candidates < without.candidates
    assert_same(taken, gradients(embedder))
    assert parts.chunks >= 2 and parts.loss == pytest.approx(found.loss, rel=1e-5)
    assert_same(in_parts, taken)


def test_a_text_that_comes_again_is_not_embedded_again(monkeypatch):
    finished, seen = a_teacher().embedder, []
    whole = Embedder.encode
    monkeypatch.setattr(Embedder, "encode", lambda self, texts, **o: seen.extend(texts) or whole(self, texts, **o))
    guide = Guide(finished)
    first = guide.encode(["a", "b", "a"])
    assert (guide.encode(["b", "c", "a"])[[2, 0, 2]] == first).all() and seen == ["a", "b", "c"]
    monkeypatch.setattr(contrastive, "_GUIDE_BYTES", 0)
    full = Guide(finished)
    assert (full.encode(["a"]) == full.encode(["a"])).all() and seen == ["a", "b", "c", "a", "a"]


def test_a_guide_that_leaves_next_to_nothing_is_said(tmp_path):
    with contextlib.suppress(UserError):  # that the result is without effect, if rounding lets it be
        runner.run(composed(*QUICK, f"outputs={tmp_path}", "loss.guide=tiny", "loss.guide_margin=0.1"))
    logged = (run_folder(tmp_path) / "log.txt").read_text()
    assert "of 16 candidates it leaves an anchor 1" in logged and "lower loss.guide_margin=0.1" in logged


def test_a_job_is_guided_and_says_so(tmp_path):
    alone = composed(*QUICK, f"outputs={tmp_path}")
    config = composed(*QUICK, f"outputs={tmp_path}", "loss.guide=tiny", "loss.guide_margin=1e-4")
    other = composed(*QUICK, f"outputs={tmp_path}", "loss.guide=tiny", "loss.guide_margin=2e-4")
    folders = {make_plan(each).folder for each in (alone, config, other)}
    assert len(folders) == 3 and len({make_plan(each).base_folder for each in (alone, config, other)}) == 1
    runner.run(config)
    folder = run_folder(tmp_path)
    rows = [row for row in history(folder) if row["event"] == "step"]
    assert len(rows) == 6 and all(row["candidates"] < 16 for row in rows)
    assert "loading the guide tiny" in (folder / "log.txt").read_text()
    logged = (folder / "log.txt").read_text()
    assert "candidates that tiny finds as near as the positive do not count" in logged
    assert "nearly all texts" not in logged


def test_jobs_of_the_command_line_are_guided_too(commands, tmp_path):
    overrides = [*quick("eval=none"), "eval=none", f"outputs={tmp_path}", "loss.guide_margin=1e-4"]
    result = commands.run("cft.run", "-m", *overrides, "loss.guide=tiny", "seed=0,1")
    assert result.status == 0, result.err
    logs = [path.read_text() for path in tmp_path.glob("tiny-*/log.txt")]
    assert len(logs) == 2 and all("loading the guide tiny" in log for log in logs)


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["loss.guide=minlm"], "loss.guide=minlm: no such choice; .*minilm"),
        (["loss.guide=minilm", "loss.guide_margin=2"], "loss.guide_margin=2: must be -1 to 1"),
        (["loss.guide_margin=0.1"], "would not be read: name a guide, as in loss.guide=minilm"),
        (["loss.guide_relative=true"], "would not be read: name a guide, as in loss.guide=minilm"),
    ],
)
def test_a_guide_that_means_nothing_is_refused(overrides, message):
    with pytest.raises(UserError, match=message):
        compose_config(overrides)


def test_a_guide_that_cannot_be_had_is_named_before_anything_is_trained(tmp_path, monkeypatch):
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    with pytest.raises(UserError, match="^loss.guide=phi2: .*is not on this machine"):
        make_plan(composed(*QUICK, f"outputs={tmp_path}", "loss.guide=phi2"))
