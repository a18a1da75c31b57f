"""The probe: its record, tables and picture, kept and not made twice."""

import json
from dataclasses import replace

import matplotlib.image
import numpy as np
import pytest
from jobs import SCORED, composed, run_folder, settings

from cft.evaluation.layer_scores import LayerScores
from cft.job import figures, probe, runner
from cft.system.errors import UserError


def test_a_probe_is_kept_with_tables_and_picture_and_not_made_twice(drawn_in_full, tmp_path, monkeypatch):
    config = composed("model=tiny", *SCORED, "eval.rows=30", "prompt=prompt1", f"outputs={tmp_path}")
    said = probe.probe_job(config)
    (folder,) = (tmp_path / "probes").iterdir()
    assert folder.name.startswith("tiny-captions-")
    record = json.loads((folder / "probe.json").read_text())
    assert record["contract"]["template"] == "This sentence: {text} means in one word: "
    assert record["scores"]["captions"][0][3] is None, "undefined scores are null, which JSON knows"
    assert "| layer | last | mean | weighted mean | first |" in (folder / "table.md").read_text()
    assert matplotlib.image.imread(folder / "layers.png").std() > 0.01
    assert "best: layer" in said and "flatters itself" in said
    monkeypatch.setattr(probe, "score_layers", lambda *_: pytest.fail("probed again"))
    assert probe.probe_job(config) == said
    # what is configured beside layer and pooling is another probe
    monkeypatch.undo()
    probe.probe_job(composed("model=tiny", *SCORED, "eval.rows=30", f"outputs={tmp_path}"))
    assert len(list((tmp_path / "probes").iterdir())) == 2


def test_the_picture_of_several_sets_shows_each(tmp_path):
    scores = {"STS12": np.array([[1.0, np.nan], [30.0, 20.0]]), "STS13": np.array([[5.0, 6.0], [70.0, 8.0]])}
    figure = figures.layers(scores, np.mean(list(scores.values()), axis=0), ("last", "mean"), "a model")
    names = [label.get_text() for axes in figure.axes for label in axes.get_yticklabels()]
    assert {"last", "mean", "STS12", "STS13"} <= set(names)


def test_scores_that_are_nowhere_defined_are_a_message_and_not_a_defect(tmp_path, monkeypatch):
    """One set is scored, the other by no layer: the mean over both is nowhere defined."""
    cells = {"good": np.ones((2, 4)), "bad": np.full((2, 4), np.nan)}
    monkeypatch.setattr(
        probe, "score_layers", lambda *_: LayerScores(cells, ("last", "mean", "weighted_mean", "first"))
    )
    config = composed("model=tiny", *SCORED, "eval.rows=30", f"outputs={tmp_path}")
    for _ in range(2):  # made, and out of its record
        with pytest.raises(UserError, match="no layer with any pooling orders the pairs of bad: "):
            probe.probe_job(config)


def test_texts_that_a_prompt_leaves_no_room_for_are_a_message(tmp_path):
    words = "the same words again and again " * 5
    config = composed("model=tiny", *SCORED, "eval.rows=30", f"outputs={tmp_path}", "model.max_length=40")
    config = replace(config, prompt=replace(config.prompt, template=words + "{text}"))
    with pytest.raises(UserError):
        probe.probe_job(config)


def test_a_configured_cell_without_a_score_is_shown_as_such(tmp_path, monkeypatch):
    cells = {"captions": np.array([[1.0, 2.0, 3.0, np.nan], [np.nan] * 4])}
    monkeypatch.setattr(
        probe, "score_layers", lambda *_: LayerScores(cells, ("last", "mean", "weighted_mean", "first"))
    )
    said = probe.probe_job(composed("model=tiny", *SCORED, "eval.rows=30", f"outputs={tmp_path}"))
    assert "as configured: —" in said and "nan" not in said


def test_a_layer_to_stop_at_is_refused():
    with pytest.raises(UserError, match="model.layer_weights=true: a probe scores each layer by itself"):
        probe.probe_job(composed("model=tiny", "model.layer_weights=true"))
    with pytest.raises(UserError, match="model.layer=1: a probe scores all layers"):
        probe.probe_job(composed("model=tiny", "model.layer=1"))


@pytest.mark.parametrize("setting", ["model.layer=1", "model.layer_weights=true"])
def test_an_adapter_is_looked_into_whatever_layers_it_was_trained_on(tmp_path, setting):
    """Its contract wants the setting that is refused where a base model is looked into."""
    runner.run(settings(tmp_path, "model=tiny", setting, "data.dev=null", "eval=none"))
    overrides = ["model=tiny", setting, *SCORED, "eval.rows=30", f"outputs={tmp_path}"]
    said = probe.probe_job(composed(*overrides, f"adapter={run_folder(tmp_path)}"))
    (folder,) = (tmp_path / "probes").iterdir()
    cut = setting == "model.layer=1"
    assert len(json.loads((folder / "probe.json").read_text())["scores"]["captions"]) == (1 if cut else 2)
    assert ("as configured: " in said) == cut and (not cut or "model.layer=1)" in said)


@pytest.mark.parametrize("choice", ["none", "rows", "docstrings"])
def test_a_probe_without_scored_pairs_is_refused(tmp_path, choice):
    with pytest.raises(UserError, match=f"eval={choice}: a probe scores pairs, and there are none; choose eval=sts"):
        probe.probe_job(composed("model=tiny", f"eval={choice}", f"outputs={tmp_path}"))
    assert not list(tmp_path.iterdir())


def test_the_command_refuses_what_run_refuses(commands):
    done = commands.run("cft.probe", "model=tiny", "model.pooling=men")
    assert done.status == 2 and "; did you mean mean?" in done.err and "Traceback" not in done.err
