"""A model that was published for sentence-transformers with more than cft does is refused, or told of."""

import json
import re
import shlex
import shutil

import pytest
from conftest import write_model
from jobs import settings

from cft.config.compose import compose_config
from cft.config.schema import ModelSettings
from cft.job import runner
from cft.model.embedder import Embedder
from cft.model.lora import add_lora
from cft.system.errors import UserError


@pytest.fixture(scope="module")
def plain(tmp_path_factory):
    return write_model(tmp_path_factory.mktemp("models") / "plain", "llama")


@pytest.fixture
def folder(plain, tmp_path):
    return shutil.copytree(plain, tmp_path / "model")


def publish(folder, *modules: str, style: str = "sentence_transformers.models.{}", **files: object) -> None:
    """Write what sentence-transformers would: the list of modules, and other files by their names."""
    entries = [
        {"idx": number, "name": str(number), "path": f"{number}_{name}" if number else "", "type": style.format(name)}
        for number, name in enumerate(modules)
    ]
    (folder / "modules.json").write_text(json.dumps(entries))
    for name, record in files.items():
        path = folder / name.replace("__", "/")
        path.parent.mkdir(exist_ok=True)
        path.with_suffix(".json").write_text(json.dumps(record))


def warnings(folder, caplog, **given) -> list[str]:
    caplog.clear()
    Embedder.base(ModelSettings(name="x", path=str(folder)), **given)
    return [record.getMessage().partition(" was published with ")[2] for record in caplog.records]


@pytest.mark.parametrize("style", ["sentence_transformers.models.{}", "sentence_transformers.base.modules.x.{}"])
def test_modules_that_cft_has_are_no_matter(folder, caplog, style):
    publish(folder, "Transformer", "Pooling", "Dropout", "Normalize", style=style)
    assert warnings(folder, caplog) == []


@pytest.mark.parametrize("name", ["Dense", "LayerNorm", "CNN", "LSTM", "WeightedLayerPooling", "Router", "CLIPModel"])
def test_a_module_that_cft_lacks_is_refused_by_name_with_what_to_do(folder, caplog, name):
    publish(folder, "Transformer", "Pooling", name, "Normalize")
    message = rf"model/modules\.json has the module {name}.*copy the folder without modules\.json"
    with pytest.raises(UserError, match=message):
        warnings(folder, caplog)
    (folder / "modules.json").unlink()
    assert warnings(folder, caplog) == []


def test_an_embedder_of_ours_on_such_a_model_still_loads(folder, tmp_path):
    base = Embedder.base(ModelSettings(name="x", path=str(folder)))
    embedder = Embedder(add_lora(base.model, compose_config(["model=tiny"]).lora, seed=0), base.backbone, base.contract)
    embedder.save(tmp_path / "run")
    publish(folder, "Transformer", "Pooling", "Dense")
    assert Embedder.load(tmp_path / "run").encode(["a"]).shape == (1, 32)


@pytest.mark.parametrize(
    ("record", "warned"),
    [
        ({"pooling_mode_mean_tokens": True, "pooling_mode_lasttoken": False}, "pooling=mean; here it is pooling=last"),
        ({"pooling_mode_lasttoken": True}, None),
        ({"pooling_mode": "mean"}, "pooling=mean; here it is pooling=last"),
        ({"pooling_mode": "lasttoken"}, None),
        ({"pooling_mode": ["cls", "max"]}, "pooling=cls_token and max_tokens, which cft does not have"),
        ({"pooling_mode_max_tokens": True}, "pooling=max_tokens, which cft does not have; here it is pooling=last"),
        (
            {"pooling_mode_mean_tokens": True, "pooling_mode_lasttoken": True},
            "pooling=mean_tokens and lasttoken, which",
        ),
        ({"pooling_mode": "lasttoken", "include_prompt": False}, "a pooling that leaves the prompt's tokens out"),
        (["nonsense"], None),
    ],
)
@pytest.mark.parametrize("place", ["1_Pooling", "with modules"])
def test_a_folder_that_is_pooled_otherwise_than_it_says_is_told_of(folder, caplog, record, warned, place):
    if place == "with modules":
        publish(folder, "Transformer", "Dropout", "Pooling", **{"2_Pooling__config": record})
    else:
        publish(folder, "Transformer", "Pooling", **{"1_Pooling__config": record})
        (folder / "modules.json").unlink()
    assert [warned in message for message in warnings(folder, caplog)] == [True] * bool(warned)


@pytest.mark.parametrize("name", ["sentence_bert_config", "sentence_roberta_config"])
def test_another_length_and_lower_case_are_told_of(folder, caplog, name):
    publish(folder, "Transformer", **{name: {"max_seq_length": 256, "do_lower_case": True}})
    length, case = warnings(folder, caplog)
    assert length == "max_length=256; here it is max_length=150 (model.max_length=256 takes its own)"
    assert case.startswith("all texts in lower case; here they keep their capitals")
    publish(folder, "Transformer", **{name: {"max_seq_length": 150, "do_lower_case": False}})
    assert warnings(folder, caplog) == []


def test_a_prompt_that_goes_before_every_text_is_told_of_with_the_override_that_sets_it(folder, caplog, tmp_path):
    prompts = {"prompts": {"query": 'it\'s a "query": ', "other": "x"}, "default_prompt_name": "query"}
    publish(folder, "Transformer", "Pooling", config_sentence_transformers=prompts)
    (message,) = warnings(folder, caplog)
    assert message.startswith("the prompt 'it\\'s a \"query\": ' before every text; here it has none of it")
    words = shlex.split(re.search(r"\((.*) puts it there\)", message)[1])
    prompt = compose_config(words).prompt
    assert prompt.template == prompt.train_template == 'it\'s a "query": {text}'
    assert warnings(folder, caplog, templates=[prompt.template]) == []
    caplog.clear()
    runner.run(settings(tmp_path, f"model.path={folder}", "train.steps=0", *words))
    assert "was published with" not in caplog.text
    runner.run(settings(tmp_path, f"model.path={folder}", "train.steps=0"))
    assert "was published with the prompt" in caplog.text


def test_prompts_of_which_none_is_the_default_are_no_matter(folder, caplog):
    prompts = {"prompts": {"query": "query: "}, "default_prompt_name": None}
    publish(folder, "Transformer", config_sentence_transformers=prompts)
    assert warnings(folder, caplog) == []


@pytest.mark.parametrize(
    "name", ["modules", "config_sentence_transformers", "sentence_bert_config", "1_Pooling__config"]
)
@pytest.mark.parametrize("content", [[], {}, None, 3, "x", [None], {"prompts": 3}, {"pooling_mode": {}}])
def test_odd_records_are_no_defect(folder, caplog, name, content):
    publish(folder, "Transformer", **{name: content})
    warnings(folder, caplog)
