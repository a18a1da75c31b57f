"""The probe: its record, tables and picture, kept and not made twice."""

import json
import subprocess
import sys

import matplotlib.image
import numpy as np
import pytest
from jobs import composed

from cft.job import figures, probe
from cft.system.errors import UserError


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
    monkeypatch.setattr(probe, "score_layers", lambda *_: pytest.fail("probed again"))
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
