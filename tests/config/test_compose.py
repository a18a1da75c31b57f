"""Every YAML file composes, the paper's settings are what they should be, and typos are caught with a near match."""

import os
import re
import shutil

import pytest
from hydra import initialize_config_dir
from hydra.core.global_hydra import GlobalHydra
from hydra.core.utils import JobRuntime
from jobs import composed

from cft.config import compose
from cft.config.compose import all_groups, all_keys, check_overrides, compose_config, compose_job, conf_folder
from cft.config.schema import Attention, Config, DataSource, Pooling, Precision, PromptUse, ScheduleKind
from cft.system.errors import UserError

CHOICES = [(group, choice) for group, choices in all_groups().items() for choice in choices]
# What a choice cannot do without.
NEEDS = {
    ("data", "files"): ["data.train=x.csv"],
    ("data", "scored"): ["data.scored=x.csv"],
    ("eval", "pairs"): ["eval.file=x.csv"],
}


def test_there_is_a_choice_in_every_group():
    assert set(all_groups()) == {
        "model",
        "lora",
        "loss",
        "distill",
        "baseline",
        "prompt",
        "schedule",
        "first",
        "data",
        "eval",
        "logger",
        "train",
        "experiment",
    }


def test_a_composition_is_ones_own_and_follows_the_files_and_the_environment(tmp_path, monkeypatch):
    """It is kept, as a study asks for the same again and again; whoever changes his changes no other's."""
    shutil.copytree(conf_folder(), tmp_path / "conf")
    monkeypatch.setattr(compose, "conf_folder", lambda: tmp_path / "conf")
    composed_by_hydra = count_calls(monkeypatch, compose, "compose")
    first = compose_job(["model=tiny"])
    first.lora.targets.append("spoilt")
    assert "spoilt" not in compose_job(["model=tiny"]).lora.targets and len(composed_by_hydra) == 1

    choice = tmp_path / "conf" / "model" / "tiny.yaml"
    choice.write_text(choice.read_text().replace("name: tiny", "name: ${oc.env:NAMED,unset}"))
    assert compose_job(["model=tiny"]).model.name == "unset"
    for name in ("one", "other"):
        monkeypatch.setenv("NAMED", name)
        monkeypatch.setenv("RUN_NAME", name)
        assert compose_job(["model=tiny"]).model.name == name
        assert compose_job(["logger.group=${oc.env:RUN_NAME}"]).logger.group == name


def count_calls(monkeypatch, module, name: str) -> list:
    real, calls = getattr(module, name), []
    monkeypatch.setattr(module, name, lambda *a, **k: calls.append(a) or real(*a, **k))
    return calls


@pytest.mark.parametrize(("group", "choice"), CHOICES)
def test_every_choice_composes(group, choice):
    config = composed(f"{group}={choice}", *NEEDS.get((group, choice), []))
    assert isinstance(config, Config)


@pytest.mark.parametrize(("group", "choice"), CHOICES)
def test_every_value_of_every_file_is_explained(group, choice):
    lines = (conf_folder() / group / f"{choice}.yaml").read_text().splitlines()
    values = [line for line in lines if re.match(r"\s*\w+: \S", line)]
    assert any(line.startswith("# ") and "@package" not in line for line in lines), "what the file is for"
    sets_groups_alone = [("experiment", "none"), ("baseline", "minilm")]
    assert (values or (group, choice) in sets_groups_alone) and [line for line in values if " # " not in line] == []


def test_the_paper_is_what_minicpm_on_nli_composes_to():
    config = composed("model=minicpm", "data=nli", "eval=sts")
    assert config.model.path == "openbmb/MiniCPM-2B-dpo-bf16"
    assert config.model.pooling is Pooling.last and config.model.append_eos
    assert config.model.attention is Attention.causal
    assert config.model.max_length == 150
    assert (config.lora.rank, config.lora.alpha, config.lora.dropout) == (8, 32, 0.1)
    assert config.lora.init == "gaussian" and config.lora.targets == ["query", "value"]
    assert config.loss.hard_negatives and config.loss.temperature == 0.05 and not config.loss.mask_false_negatives
    assert config.lr == 5e-5
    assert config.schedule.kind is ScheduleKind.cosine
    assert config.schedule.warmup_ratio * config.train.steps == 100
    assert (config.train.steps, config.train.epochs, config.train.batch_size) == (1000, 1, 60)
    assert config.train.accumulation == 1 and config.train.weight_decay == 1e-4
    assert config.train.precision is Precision.auto  # bf16 mixed where the device has it
    assert config.prompt.train_template == config.prompt.eval_template == "{text}"
    assert config.data.source is DataSource.hub
    assert (config.data.anchor_column, config.data.positive_column) == ("sent0", "sent1")
    assert config.data.negative_columns == ["hard_neg"] and config.data.rows is None
    assert config.eval.sets == "STS12 STS13 STS14 STS15 STS16 STS17 STSBenchmark BIOSSES SICK-R".split()


@pytest.mark.parametrize(
    ("name", "template"),
    [
        ("prompt1", "This sentence: {text} means in one word: "),
        ("prompt2", "This sentence {text} means: "),
        ("prompt3", "{text} is: "),
    ],
)
def test_the_papers_prompts_apply_at_evaluation_only(name, template):
    prompt = composed(f"prompt={name}").prompt
    assert prompt.use is PromptUse.eval
    assert (prompt.train_template, prompt.eval_template) == ("{text}", template)


@pytest.mark.parametrize(
    ("use", "train", "evaluation", "saved"),
    [
        ("train", "<{text}>", "{text}", "<{text}>"),
        ("eval", "{text}", "<{text}>", "{text}"),
        ("both", "<{text}>", "<{text}>", "<{text}>"),
        ("after", "{text}", "<{text}>", "<{text}>"),
    ],
)
def test_where_a_prompt_applies(use, train, evaluation, saved):
    prompt = composed("prompt.template='<{text}>'", f"prompt.use={use}").prompt
    assert (prompt.train_template, prompt.eval_template, prompt.saved_template) == (train, evaluation, saved)


def test_the_recipe_brings_its_prompt_with_the_embedder_and_can_be_changed():
    recipe = composed("experiment=recipe")
    assert recipe.prompt.saved_template == composed("prompt=prompt2").prompt.template
    assert recipe.prompt.train_template == "{text}" and recipe.lr == 2e-3
    changed = composed("experiment=recipe", "prompt=none", "lr=1e-3")
    assert changed.prompt.saved_template == "{text}" and changed.lr == 1e-3


@pytest.mark.parametrize("written", ["3e-5", "0.00003", "0.3e-4"])
def test_any_number_is_a_learning_rate(written):
    assert composed(f"lr={written}").lr == pytest.approx(3e-5)


def test_docstrings_bring_their_training_unless_another_is_asked_for():
    assert composed().train.steps == composed("train=docstrings").train.steps < 100
    assert composed("train=paper").train.steps == 1000


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("model=ph2", r"model=ph2: no such choice; model may be .*phi2.*Did you mean phi2\?"),
        ("los=hard_neg", r"los: no such key. Did you mean loss\?"),
        ("loss.temprature=0.1", r"loss.temprature: no such key. Did you mean loss.temperature\?"),
        ("lr=fast", r"^lr=fast: must be a number, as in 1e-4$"),
        ("train.steps=1.5", r"^train.steps=1.5: must be a whole number$"),
        ("model.pooling=men", r"^model.pooling=men: must be last, mean, weighted_mean or first; did you mean mean\?$"),
        ("+colour=red", r"\+colour=red: keys cannot be added or removed"),
        ("lr=1e-5,slow", r"lr=slow"),
        ("model=tiny,phy2", r"model=phy2: no such choice"),
        ("lr=0", "lr=0.0: the learning rate must be above 0"),
        ("loss.temperature=-1", "loss.temperature=-1.0: must be above 0"),
        ("prompt.template=hello", r"must hold \{text\} exactly once"),
        ("model.max_length=1", "model.max_length=1: a token and the EOS need at least 2"),
        ("schedule.warmup_ratio=1", "schedule.warmup_ratio=1.0: a share of the steps"),
        ("data=files", "data.train is not set"),
        ("data.train=x.csv", "data.train=x.csv would not be read: add data=files"),
        ("eval.folder=x", "eval.folder=x would not be read: add eval=sts"),
        ("train.batch_size=1", "in-batch negatives need at least 2"),
        ("train.accumulation=7", "train.batch_size=32 is not a multiple of train.accumulation=7"),
        ("lora.dropout=1", "lora.dropout=1.0: must be at least 0 and below 1"),
        ("data.on_bad_row=ignore", "data.on_bad_row=ignore: must be raise or skip"),
        ("lr=[", "cannot read the command line"),
    ],
)
def test_a_mistake_is_refused_before_anything_is_loaded(override, message):
    with pytest.raises(UserError, match=message):
        check_overrides([override])


OWN_PAIRS = "eval=pairs eval.file=b.csv"


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ("data.positives=draw", "data.positives=draw would not be read: add data=files"),
        ("data.positives=redraw", "data.positives=redraw would not be read: add data=files"),
        ("data.anchor_column=question", "data.anchor_column=question would not be read: add data=files"),
        ("data.negative_columns=[]", r"data.negative_columns=\[\]' would not be read: add data=files"),
        ("data=scored data.scored=a.csv data.positive_column=b", "data.positive_column=b would not be read"),
        ("data=files data.train=a.csv data.revision=abc", "data.revision=abc would not be read: add data=nli"),
        ("first=docstrings first.data.positives=draw", "first.data.positives=draw would not be read"),
        ("data.delimiter=tab", "data.delimiter=tab would not be read: no file of this job has columns"),
        (f"{OWN_PAIRS} eval.sets=[STS12]", r"eval.sets=\S+ would not be read: add eval=sts, or eval=retrieval"),
        (f"{OWN_PAIRS} eval.split=dev", "eval.split=dev would not be read: add eval=retrieval"),
        ("eval=retrieval eval.split=dev", "eval.split=dev would not be read: the sets of the hub have their own"),
        ("eval=retrieval eval.folder=sets eval.documents=50", "eval.documents=50 would not be used: add eval=rows"),
        ("eval=sts eval.columns=[a,b,c]", r"eval.columns=\S+ would not be read: the sets of the hub have their own"),
        ("eval.columns=[a,b,c]", r"eval.columns=\S+ would not be read: add eval=pairs"),
        (
            "logger=trackio logger.artifact=true",
            "logger.artifact=true would not be read by logger=trackio: add logger=",
        ),
        ("logger=csv logger.tags=[a]", r"logger.tags=\S+ would not be read by logger=csv"),
        ("train.scored_batch=16", "train.scored_batch=16 would not be used: add data.scored=pairs.csv"),
        ("data=scored data.scored=a.csv train.batch_size=8", "train.batch_size=8 would not be read: .*scored_batch is"),
    ],
)
def test_what_a_job_would_not_read_is_refused(words, message):
    with pytest.raises(UserError, match=message):
        check_overrides(words.split())


@pytest.mark.parametrize(
    "words",
    [
        "data=nli data.positives=draw data.revision=abc data.delimiter=comma",
        "data=files data.train=a.csv data.anchor_column=a eval.documents=50 data.delimiter=tab",
        "data=scored data.scored=a.csv data.negative_columns=[] data.delimiter=tab train.scored_batch=8",
        "data.dev=a.csv data.delimiter=tab logger.tags=[a] logger.artifact=true",
        f"{OWN_PAIRS} eval.columns=[a,b,c] logger=none logger.artifact=true",
        "eval=retrieval eval.folder=sets eval.split=dev",
        "eval=sts eval.folder=sets eval.columns=[a,b,c]",
    ],
)
def test_what_a_job_reads_is_not_refused(words):
    check_overrides(words.split())


def test_a_name_that_no_record_could_hold_is_refused():
    name = os.fsdecode(b"caf\xe9")
    with pytest.raises(UserError, match=r"data.train='caf\\udce9.csv': is not UTF-8; rename what it names"):
        check_overrides(["data=files", f"data.train='{name}.csv'"])
    with pytest.raises(UserError, match=r"eval.sets='caf\\udce9': is not UTF-8"):
        check_overrides(["eval=sts", f"eval.sets=[STS12,'{name}']"])


def test_all_problems_are_told_at_once():
    with pytest.raises(UserError, match=r"(?s)lr=0.*loss.temperature=0"):
        check_overrides(["lr=0", "loss.temperature=0"])


def test_every_key_is_a_leaf_or_section_of_the_schema():
    names = all_keys()
    assert {"lr", "model", "model.path", "train.steps", "data.negative_columns"} <= set(names)
    assert len(names) == len(set(names))


def test_help_names_groups_keys_and_examples(commands):
    result = commands.run("cft.run", "--help")
    assert result.status == 0
    for part in (
        "model: gemma, gemma3, minicpm",
        "temperature: 0.05",
        "lr: 0.002",
        "-m lr=1e-5,5e-5,1e-4",
        "tab completion",
    ):
        assert part in result.out


def test_a_typo_ends_with_status_2_and_no_traceback(commands):
    result = commands.run("cft.run", "model=ph2")
    assert result.status == 2
    assert "Did you mean phi2?" in result.err and "Traceback" not in result.err


def test_tab_completion_knows_the_choices(commands):
    line = "cft-run model=p"
    environment = {"COMP_LINE": line, "COMP_POINT": str(len(line))}
    assert "model=phi2" in commands.run("cft.run", "-sc", "query=bash", env=environment).out.split()


def test_a_model_of_the_hub_says_what_is_missing_and_what_works_without_it(commands, tmp_path):
    result = commands.run("cft.run", "model=phi2", "loss=hard_neg", f"outputs={tmp_path}")
    assert result.status == 2
    assert "microsoft/phi-2" in result.err and "model=smollm2" in result.err
    assert "Traceback" not in result.err


@pytest.mark.parametrize(
    ("overrides", "name"),
    [
        (["model.path=/models/My Model-7B/"], "My-Model-7B"),
        (["model.path=owner/Qwen3-0.6B"], "Qwen3-0.6B"),
        (["model.path=weights/small.Q4.gguf"], "small.Q4"),
        (["model.path=owner/model", "model.name=mine"], "mine"),
        (["model=tiny", "model.path=random:phi"], "tiny"),
        (["model=phi2"], "phi2"),
    ],
)
def test_a_model_that_only_its_path_names_is_called_by_it(overrides, name):
    assert composed(*overrides).model.name == name


def test_the_first_token_of_a_causal_model_is_refused_as_an_embedding():
    with pytest.raises(UserError, match="the first token of a causal model sees nothing of the text behind it"):
        composed("model.pooling=first")
    assert composed("model.pooling=first", "model.attention=bidirectional")


def test_a_model_is_composed_while_hydra_runs_a_job():
    with initialize_config_dir(str(compose.conf_folder()), version_base="1.3"):
        running, name = GlobalHydra.instance().hydra, JobRuntime.instance().get("name")
        compose._composed.cache_clear()
        compose._composed_choices.cache_clear()
        assert compose.compose_model("tiny").path == "random:llama"
        assert GlobalHydra.instance().hydra is running and JobRuntime.instance().get("name") == name
    assert not GlobalHydra.instance().is_initialized()


@pytest.mark.parametrize("key", ["model", "loss", "loss.guide", "baseline", "distill", "train", "nothing"])
def test_a_choice_of_any_length_is_quoted_in_short(key):
    with pytest.raises(UserError, match=key) as caught:
        compose_config([f"{key}={'y' * 5000}"])
    assert len(str(caught.value)) < 1500
