"""Every layer and pooling scored as if it had been configured, in one pass."""

import numpy as np
import pytest
from conftest import make_tiny, write_model

from cft.config.schema import Attention, ModelSettings, Pooling
from cft.data.records import ScoredPair
from cft.evaluation import layer_scores
from cft.evaluation.layer_scores import score_layers
from cft.evaluation.scores import evaluate
from cft.model.embedder import Embedder

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
    ("family", "attention", "echo"),
    [
        ("llama", "causal", False),
        ("gpt2", "bidirectional", False),
        ("llama", "causal", True),
        ("bloom", "causal", False),
        ("bert", "bidirectional", False),
    ],
)
def test_each_cell_is_the_score_of_the_model_configured_like_it(family, attention, echo, tmp_path):
    folder = write_model(tmp_path, family, num_hidden_layers=3)
    settings = {"path": str(folder), "attention": Attention(attention), "append_eos": family != "bert", "echo": echo}
    found = score_layers(Embedder.base(ModelSettings(**settings)), SETS)
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
    whole = score_layers(make_tiny("llama"), SETS)
    monkeypatch.setattr(layer_scores, "_TOKEN_BUDGET", 1)
    parts = score_layers(make_tiny("llama"), SETS)
    for name in SETS:
        assert np.allclose(whole.scores[name], parts.scores[name], equal_nan=True)


def test_the_first_token_of_a_causal_model_has_no_score():
    """It sees nothing of the text behind it: texts that begin alike have one state, which rounding alone would rank."""
    found = score_layers(make_tiny("llama"), SETS)
    first = found.poolings.index("first")
    assert np.isnan(found.mean[:, first]).all() and np.isfinite(found.mean[:, :first]).all()
    assert found.best[1] != "first"
