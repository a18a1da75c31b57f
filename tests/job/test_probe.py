"""The probe: every layer and pooling scored as if it had been configured, in one pass."""

import json
import subprocess
import sys

import matplotlib.image
import numpy as np
import pytest
from conftest import make_tiny, write_model
from jobs import composed

from cft.config.schema import Attention, ModelSettings, Pooling
from cft.data.records import ScoredPair
from cft.evaluation.scores import evaluate
from cft.job import figures, probe
from cft.model.embedder import Embedder
from cft.system.errors import UserError

PAIRS = [
    ("A man is playing.", "A man is playing a flute."),
    ("A man is playing.", "Nobody sleeps."),
    ("Two dogs run.", "Dogs are running."),
    ("A dog.", "A man is playing."),
    ("She reads a book.", "A woman reads."),
    ("Rain falls.", "The sun is out."),
]
SETS = {
    "one": [ScoredPair(*pair, score=float(score)) for pair, score in zip(PAIRS, [4, 1, 5, 0, 3, 2], strict=True)],
    "other": [ScoredPair(*pair, score=float(score)) for pair, score in zip(PAIRS[2:], [1, 0, 2, 5], strict=True)],
}


@pytest.mark.parametrize(
    ("family", "attention"),
    [("llama", "causal"), ("gpt2", "bidirectional"), ("bloom", "causal"), ("bert", "bidirectional")],
)
def test_each_cell_is_the_score_of_the_model_configured_like_it(family, attention, tmp_path):
    folder = write_model(tmp_path, family, num_hidden_layers=3)
    settings = {"path": str(folder), "attention": Attention(attention), "append_eos": family != "bert"}
    found = probe.probe(Embedder.base(ModelSettings(**settings)), SETS)
    assert found.poolings == ("last", "mean", "weighted_mean", "first")
    assert all(scores.shape == (3, 4) for scores in found.scores.values())
    for layer in (1, 2, 3):
        for column, pooling in enumerate(Pooling):
            if np.isnan(found.mean[layer - 1, column]):
                assert pooling is Pooling.first and attention == "causal"
                continue
            configured = Embedder.base(ModelSettings(**settings, layer=layer, pooling=pooling))
            expected = evaluate(configured, SETS).scores
            for name, scores in found.scores.items():
                assert scores[layer - 1, column] == pytest.approx(expected[name], abs=1e-6), (layer, pooling)
    assert np.isfinite(found.mean).sum() >= 9


def test_batches_of_any_size_give_the_same(monkeypatch):
    whole = probe.probe(make_tiny("llama"), SETS)
    monkeypatch.setattr(probe, "_TOKEN_BUDGET", 1)
    parts = probe.probe(make_tiny("llama"), SETS)
    for name in SETS:
        assert np.allclose(whole.scores[name], parts.scores[name], equal_nan=True)


def test_the_first_token_of_a_causal_model_has_no_score():
    """It sees nothing of the text behind it: texts that begin alike have one state, which rounding alone would rank."""
    found = probe.probe(make_tiny("llama"), SETS)
    first = found.poolings.index("first")
    assert np.isnan(found.mean[:, first]).all() and np.isfinite(found.mean[:, :first]).all()
    assert found.best[1] != "first"


def test_a_probe_is_kept_with_tables_and_picture_and_not_made_twice(tmp_path, monkeypatch):
    config = composed("model=tiny", "eval.pairs=30", "prompt=prompt1", f"outputs={tmp_path}")
    said = probe.probe_job(config)
    (folder,) = (tmp_path / "probes").iterdir()
    assert folder.name.startswith("tiny-scenes-")
    record = json.loads((folder / "probe.json").read_text())
    assert record["contract"]["template"] == "This sentence: {text} means in one word: "
    assert record["scores"]["scenes"][0][3] is None, "undefined scores are null, which JSON knows"
    assert "| layer | last | mean | weighted mean | first |" in (folder / "table.md").read_text()
    assert matplotlib.image.imread(folder / "layers.png").std() > 0.01
    assert "best: layer" in said and "flatters itself" in said
    monkeypatch.setattr(probe, "probe", lambda *_: pytest.fail("probed again"))
    assert probe.probe_job(config) == said
    # what is configured beside layer and pooling is another probe
    monkeypatch.undo()
    probe.probe_job(composed("model=tiny", "eval.pairs=30", f"outputs={tmp_path}"))
    assert len(list((tmp_path / "probes").iterdir())) == 2


def test_the_picture_of_several_sets_shows_each(tmp_path):
    scores = {"STS12": np.array([[1.0, np.nan], [30.0, 20.0]]), "STS13": np.array([[5.0, 6.0], [70.0, 8.0]])}
    figure = figures.layers(scores, np.mean(list(scores.values()), axis=0), ("last", "mean"), "a model")
    names = [label.get_text() for axes in figure.axes for label in axes.get_yticklabels()]
    assert {"last", "mean", "STS12", "STS13"} <= set(names)


def test_a_layer_to_stop_at_is_refused():
    with pytest.raises(UserError, match="model.layer=1: a probe scores all layers"):
        probe.probe_job(composed("model=tiny", "model.layer=1"))


def test_the_command_refuses_what_run_refuses():
    command = [sys.executable, "-m", "cft.probe", "model=tiny", "model.pooling=men"]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 2 and "Did you mean mean?" in done.stderr and "Traceback" not in done.stderr
