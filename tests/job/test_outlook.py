"""What lies ahead of a training is said before its first step, and soon."""

import json

import pytest
from conftest import make_tiny
from jobs import settings

from cft.data.training_data import load_training_data
from cft.job import outlook
from cft.training.contrastive import texts_of


@pytest.mark.parametrize(("lora", "passes"), [("paper", 2), ("none", 3)])
def test_the_trial_of_a_step_embeds_few_texts_and_counts_for_all(tmp_path, monkeypatch, lora, passes):
    """On a clock by which a token takes a millisecond."""
    path = tmp_path / "t.jsonl"
    rows = [{"sent0": f"anchor {n} " * 5, "sent1": f"positive {n} " * 5, "hard_neg": "no"} for n in range(120)]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    words = ["train.batch_size=100", "data.rows=null", f"lora={lora}"]
    config = settings(tmp_path / "o", "data=files", f"data.train={path}", *words)
    data, embedder = load_training_data(config.data, seed=0), make_tiny("llama")
    now, runs = [0.0], []

    def encode(texts):
        runs.append(embedder.layout(embedder.tokenize(texts)).nodes)
        now[0] += runs[-1] / 1000

    monkeypatch.setattr(embedder, "encode", encode)
    monkeypatch.setattr(outlook.time, "perf_counter", lambda: now[0])
    found = outlook.seconds_a_step(embedder, config, data)
    numbers = [number * len(data.measured) // min(len(data.measured), 200) for number in range(100)]
    whole = embedder.layout(embedder.tokenize(texts_of([data.measured[n] for n in numbers], config.loss))).nodes
    assert whole > 5000 and len(runs) == 2 and sum(runs) < 800
    assert found == pytest.approx(passes * whole / 1000)
