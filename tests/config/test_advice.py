"""Settings that cft does not have, or cannot read, are answered in its own words with what to type instead."""

import re
import shlex

import pytest

from cft.config.advice import _OTHER, _SAME
from cft.config.compose import all_groups, all_keys, check_overrides, require_settings
from cft.system.errors import UserError


def answer(*words: str) -> str:
    with pytest.raises(UserError) as error:
        check_overrides(list(words))
    return str(error.value)


@pytest.mark.parametrize(
    ("typed", "ours"),
    [
        ("learning_rate=1e-4", "lr=1e-4"),
        ("train.lr=1e-4", "lr=1e-4"),
        ("train.learning_rate=1e-4", "lr=1e-4"),
        ("epochs=3", "train.epochs=3"),
        ("num_train_epochs=3", "train.epochs=3"),
        ("batch_size=8", "train.batch_size=8"),
        ("per_device_train_batch_size=8", "train.batch_size=8"),
        ("max_seq_length=256", "model.max_length=256"),
        ("train.max_seq_length=256", "model.max_length=256"),
        ("max_steps=50", "train.steps=50"),
        ("lora_r=16", "lora.rank=16"),
        ("lora.r=16", "lora.rank=16"),
        ("lora_alpha=16", "lora.alpha=16"),
        ("tau=0.02", "loss.temperature=0.02"),
        ("model_name_or_path=owner/model", "model.path=owner/model"),
        ("model_name_or_path='my model'", "model.path='my model'"),
        ("output_dir=out", "outputs=out"),
        ("pooling_mode=mean", "model.pooling=mean"),
        ("trainer.weight_decay=0.1", "train.weight_decay=0.1"),
        ("lr_scheduler_type=linear", "schedule.kind=linear"),
        ("target_modules=[query,key]", "lora.targets=[query,key]"),
        ("train.step=3", "train.steps=3"),  # a letter amiss, not the key of that name in another section
    ],
)
def test_a_name_of_another_library_is_answered_with_ours(typed, ours):
    message = answer(typed)
    assert message.startswith(f"{typed.split('=')[0]}: no such key; write ")
    (word,) = shlex.split(message.partition("; write ")[2])
    assert word == ours
    check_overrides([word])


def test_quotes_that_a_list_of_files_needs_are_shown_as_they_can_be_typed():
    message = answer("data.train=[{file: qa.csv, anchor_column: question (lang)}, {file: more.jsonl}]")
    (word,) = shlex.split(message.partition("as in ")[2])
    (config,) = check_overrides(["data=files", word])
    assert config.data.train == [{"file": "qa, new.csv", "anchor_column": "question (lang)"}, "triplets.jsonl"]


@pytest.mark.parametrize(
    ("typed", "part"),
    [
        ("warmup_steps=100", "schedule.warmup_ratio=SHARE, a share of the steps: 0.1 of 1,000 steps are 100"),
        ("gradient_accumulation_steps=4", "train.accumulation=N, into which train.batch_size is divided"),
        ("scale=20", "a scale of 20 is loss.temperature=0.05"),
        ("fp16=true", "train.precision=bf16, fp32 or auto"),
        ("train.bf16=true", "train.precision=bf16"),
        ("load_in_4bit=true", "model.quantization=nf4"),
        ("temperature=1", "loss.temperature=1 or distill.temperature=1"),
        ("report_to=wandb", "logger=wandb"),
    ],
)
def test_a_setting_that_means_something_else_is_explained(typed, part):
    assert part in answer(typed)


def test_the_tables_lead_to_settings_that_exist_and_from_names_that_do_not():
    known = {*all_keys(), *all_groups()}
    assert {*_SAME, *_OTHER} <= known
    names = [name for names in _SAME.values() for name in names.split()]
    names += [name for names, _ in _OTHER.values() for name in names.split()]
    assert len(names) == len(set(names)) and not set(names) & known
    for _, advice in _OTHER.values():
        for word in re.findall(r"[a-z_.]+=", advice):
            assert word[:-1] in known


@pytest.mark.parametrize(
    ("typed", "message"),
    [
        ("lr=", "lr=: must be a number, as in 1e-4"),
        ("lr=null", "lr=null: must be a number, as in 1e-4"),
        ("loss.hard_negatives=maybe", "loss.hard_negatives=maybe: must be true or false"),
        ("data.rows=x", "data.rows=x: must be a whole number or null"),
        ("lora.targets=query", "lora.targets=query: must be a list of texts in brackets, as in 'lora.targets=[query]'"),
        ("train.keep=5", "must be a list of whole numbers in brackets, as in 'train.keep=[10,20]'"),
        ("model=null", "model=null: no such choice"),
        (
            "minilm",
            "it is no setting, which is KEY=VALUE as in lr=1e-4; did you mean baseline=minilm or distill=minilm or model=minilm?",
        ),
        ("triplets.csv", "write data=files data.train=triplets.csv"),
        ("lr", "give it a value: lr=..."),
        ("word", "at 'word': it is no setting, which is KEY=VALUE"),
        ("", "at '': it is no setting"),
        ("a b=c", "'a b' is no key"),
        ("lr=1e-4 train.steps=5", "several settings in one pair of quotes"),
        ("--lr=1e-4", "settings have no dashes before them; write lr=1e-4"),
        ("--num-train-epochs=3", "settings have no dashes before them; write train.epochs=3"),
        ("model.path='${nosuch}'", "what stands in ${} is read as the name of another setting"),
    ],
)
def test_what_cannot_be_read_or_does_not_fit_is_answered_in_our_words(typed, message):
    assert message in answer(typed)


@pytest.mark.parametrize(
    "typed",
    [
        "prompt.template={text} is:", "prompt.template=Query, {text}", "data.train=x(1).csv", "data.train=~/x.csv",
        "model.eos_token=<|im_end|>", "data.train=naïve.csv", "prompt.template='a {text}", "eval.sets=[STS12,STS13",
        "data.negative_columns=[a b,c", "model.path=wheel:p==1/m",
    ],
)  # fmt: skip
def test_a_value_that_needs_quotes_is_shown_in_them_and_can_be_pasted(typed):
    key, _, value = typed.partition("=")
    (word,) = shlex.split(answer(typed).rpartition(": ")[2].removeprefix("a list is written in brackets, as in "))
    needs = {
        "data": ["data=files", "data.train=x.csv"] if "train" not in key else ["data=files"],
        "eval": ["eval=sts"],
    }.get(key.split(".")[0], [])
    (config, *_) = check_overrides([*needs, word])
    section, name = key.split(".")
    found = getattr(getattr(config, section), name)
    assert found == (value[1:].split(",") if value[0] == "[" else value.strip("'"))


def test_no_message_speaks_of_hydras_classes():
    for typed in ("lr=fast", "x", "lr=[", "model.pooling=men", "lora.targets=1", "model.path=${a}", "==", "a=b=c"):
        assert not re.search(
            r"Error merging|ListConfig|Exception|viable|mismatched|full_key|object_type", answer(typed)
        )


@pytest.mark.parametrize(("words", "part"), [(["--lr", "5"], "write lr=..."), (["--epochs"], "write train.epochs=...")])
def test_an_option_of_another_command_line_is_answered(words, part):
    with pytest.raises(UserError, match=re.escape(part)):
        require_settings(words[:1])


def test_settings_on_both_sides_of_an_option_are_told_apart(commands):
    ended = commands.run("cft.run", "model=tiny", "-m", "lr=1e-5,5e-5", "train.steps=2")
    assert ended.status == 2 and "lr=1e-5,5e-5: this setting is cut off from those before it by an option" in ended.err


def test_the_command_itself_answers_so(commands):
    ended = commands.run("cft.run", "--learning_rate", "5")
    assert ended.status == 2 and "write lr=..." in ended.err and "usage:" not in ended.err
    told = commands.run("cft.run", "--help")
    assert "without any with those of the demo" in told.out
