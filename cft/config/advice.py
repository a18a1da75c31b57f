"""What to type instead: answers to settings that cft does not have, or cannot read, in its own words."""

import re
import types
import typing
from collections.abc import Sequence
from dataclasses import fields, is_dataclass
from enum import Enum
from typing import Any

from cft.config.schema import BASELINE, TEACHER, Config
from cft.system.overrides import override, shell_word
from cft.system.text import did_you_mean, nearest, shorten

_FILE = re.compile(r"\.(csv|tsv|jsonl|ndjson|parquet)(\.gz)?$")
# Entries of data.train whose words need quotes.
_ENTRIES = """'data.train=[{file: "qa, new.csv", anchor_column: "question (lang)"}, triplets.jsonl]'"""
_SURELY = 0.9  # likeness of a key to one of its section, from which on it is that one that was meant
_LONGEST_SHOWN = 80  # characters of a word that cannot be read

# What other libraries call our settings. A setting whose values mean the same stands alone; otherwise behind it what
# to write.
_SAME = {
    "lr": "learning_rate peak_lr init_lr",
    "train.steps": "max_steps num_steps total_steps training_steps num_train_steps max_train_steps",
    "train.epochs": "num_epochs num_train_epochs max_epochs n_epochs epoch",
    "train.batch_size": "train_batch_size per_device_train_batch_size per_gpu_train_batch_size bs bsz batch",
    "train.weight_decay": "wd",
    "train.max_grad_norm": "grad_clip gradient_clip_val clip_grad_norm max_norm",
    "train.gradient_checkpointing": "grad_checkpoint gradient_checkpoint activation_checkpointing",
    "train.eval_every": "eval_steps evaluation_steps eval_interval val_check_interval",
    "train.checkpoint_every": "save_steps checkpoint_save_steps save_interval",
    "model.max_length": "max_seq_length max_seq_len max_len seq_length sequence_length model_max_length",
    "model.path": "model_name_or_path model_name model_id base_model base_model_name_or_path pretrained_model",
    "model.pooling": "pooling_mode pooling_method pooling_strategy pooler_type sentence_pooling_method",
    "model.revision": "model_revision",
    "model.echo": "echo_embeddings use_echo repeat_text",
    "lora.rank": "lora_r r lora_rank lora_dim",
    "lora.alpha": "lora_alpha",
    "lora.dropout": "lora_dropout",
    "lora.init": "init_lora_weights",
    "lora.targets": "target_modules lora_target_modules lora_targets",
    "loss.temperature": "tau temp",
    "loss.hard_negatives": "use_hard_negatives hard_negative",
    "schedule.kind": "lr_scheduler_type lr_scheduler scheduler lr_schedule",
    "schedule.warmup_ratio": "warmup_proportion",
    "prompt.template": "prompt_template instruction query_instruction query_instruction_for_retrieval",
    "data.train": "train_file train_data train_dataset training_data train_path",
    "data.dev": "eval_file dev_file validation_file val_file",
    "data.rows": "max_train_samples max_samples num_samples limit",
    "outputs": "output_dir output_path output save_dir logging_dir",
    "adapter": "adapter_path adapter_name_or_path peft_model lora_path resume_from",
    "seed": "random_seed data_seed",
    "logger.project": "wandb_project",
}
_OTHER = {
    "train.accumulation": (
        "gradient_accumulation_steps accumulation_steps grad_accum gradient_accumulation",
        "train.accumulation=N, into which train.batch_size is divided: it counts the triplets of all N together",
    ),
    "schedule.warmup_ratio": (
        "warmup warmup_steps num_warmup_steps",
        "schedule.warmup_ratio=SHARE, a share of the steps: 0.1 of 1,000 steps are 100",
    ),
    "loss.temperature": (
        "scale similarity_scale logit_scale",
        "loss.temperature=T, which divides where a scale multiplies: a scale of 20 is loss.temperature=0.05",
    ),
    "train.precision": (
        "fp16 bf16 mixed_precision dtype torch_dtype amp",
        "train.precision=bf16, fp32 or auto (float16 is not there)",
    ),
    "train.chunk_tokens": (
        "mini_batch_size chunk_size gc_chunk_size gradcache_chunk_size",
        "train.chunk_tokens=N, counted in tokens; null takes what memory holds",
    ),
    "model.quantization": (
        "load_in_4bit load_in_8bit quantize quantization_config qlora bits",
        "model.quantization=nf4, or none",
    ),
    "lora": ("use_lora use_peft peft full_finetune", "lora=paper, or lora=none, which trains the whole model"),
    "device": ("no_cuda use_cpu gpu cuda use_cuda", "device=cpu, cuda, mps or auto"),
    "logger": ("report_to use_wandb wandb", "logger=wandb, wandb_offline, csv, tensorboard, trackio or none"),
    "data": ("dataset dataset_name dataset_path", "data=files with data.train=FILE, or data=nli"),
    "train.steps": ("do_train eval_only evaluate_only", "train.steps=0, which only evaluates"),
    "eval.sets": ("eval_tasks tasks eval_dataset", "eval=sts, and eval.sets for some of its sets"),
}


# Settings of a second model, or of other data, which are rarely meant.
_SECOND = (f"{TEACHER}.", f"{BASELINE}.", "first.")


def known_elsewhere(key: str, value: str, keys: Sequence[str]) -> str:
    """What a setting is called here that has another name, or another section, elsewhere; empty if nobody knows.

    Args:
        key: as it was typed. value: as it was typed. keys: all settings.
    """
    name = key.rpartition(".")[2].lower().replace("-", "_")
    for ours, (names, advice) in _OTHER.items():
        if name in names.split() and ours != key:
            return f"; write {advice}"
    same = [ours for ours, names in _SAME.items() if name in names.split()]
    last = [ours for ours in keys if ours.rpartition(".")[2] == name and not ours.startswith(_SECOND)]
    section = [ours for ours in keys if ours.rpartition(".")[0] == key.rpartition(".")[0] != ""]
    near = nearest(key, section, cutoff=_SURELY)  # a letter amiss says more than an equal name elsewhere
    found = [near] if near and last and not same else [ours for ours in dict.fromkeys([*same, *last]) if ours != key]
    if not found:
        return ""
    return f"; write {' or '.join(shell_word(f'{ours}={value}') for ours in found)}"


def no_setting(word: str, groups: dict[str, list[str]], keys: Sequence[str]) -> str:
    """Why a word cannot be read as KEY=VALUE, and what may have been meant.

    Args:
        word: as the shell handed it over. groups: the choices of each group. keys: all settings.
    """
    shown = shorten(word, _LONGEST_SHOWN)
    key, equals, value = word.partition("=")
    start = f"cannot read the command line at {shown!r}"
    bare = key.lstrip("-").replace("-", "_")
    if key.startswith("-"):
        known = bare in {*keys, *groups}
        instead = shell_word(f"{bare}={value or '...'}") if known else ""
        advice = f"; write {instead}" if known else known_elsewhere(bare, value or "...", keys)
        return f"{start}: settings have no dashes before them{advice}"
    if not equals:
        of = [group for group, choices in groups.items() if word in choices]
        guess = f"; did you mean {' or '.join(f'{group}={word}' for group in of)}?" if of else ""
        if word in {*keys, *groups}:
            guess = f"; give it a value: {word}=..."
        elif _FILE.search(word):
            guess = f"; for a file of triplets write data=files {override('data.train', word)}"
        return f"{start}: it is no setting, which is KEY=VALUE as in lr=1e-4{guess or did_you_mean(word, keys)}"
    if not re.fullmatch(r"[+~]{0,2}[A-Za-z_][\w.@/]*", key):
        return f"{start}: {shorten(key, _LONGEST_SHOWN)!r} is no key, which is made of letters, as in train.steps=100"
    second = re.search(r"\s([a-z][a-z_.]*)=", value)
    if second and second[1] in {*keys, *groups}:
        return f"{start}: these are several settings in one pair of quotes; give each as a word of its own"
    plain = value.strip("'\"")
    kind = _kind_of(key)
    if _list_of(kind):
        items = [item.strip().strip("'\"") for item in plain.strip("[] ").split(",")]
        return f"{start}: a list is written in brackets, as in {override(key, items)}"
    if kind is Any and plain.startswith("["):
        return f"{start}: in a list, a word that holds blanks, commas or brackets is quoted, as in {_ENTRIES}"
    if kind in (str, Any):
        return f"{start}: this text needs quotes inside quotes: {override(key, plain)}"
    return f"{start}: {_must_be(key, plain) or 'the value of a setting is a text, a number or a list in brackets'}"


def misfit(line: str) -> str:
    """Why a setting that can be read does not fit its key, or empty if its key is not known.

    Args:
        line: KEY=VALUE, as it was typed.
    """
    key, _, value = line.partition("=")
    key = key.lstrip("+")
    wanted = _must_be(key, value)
    return f"{shell_word(line)}: {wanted}" if wanted else ""


def _must_be(key: str, value: str) -> str:
    """What a setting must be, as the end of a sentence."""
    kind = _kind_of(key)
    if kind is None:
        return ""
    of, guess, null = _list_of(kind), "", " or null" if _may_be_null(key) else ""
    if of:
        texts = [part.strip() for part in value.strip("[]").split(",")] if value not in ("", "null") else ["a", "b"]
        example = override(key, [10, 20] if of is int else texts)
        return f"must be a list of {'whole numbers' if of is int else 'texts'} in brackets, as in {example}"
    if kind is bool:
        words = "true or false"
    elif kind is int:
        words = "a whole number"
    elif kind is float:
        words = "a number, as in 1e-4"
    elif isinstance(kind, type) and issubclass(kind, Enum):
        choices = [member.value for member in kind]
        words, guess = f"{', '.join(choices[:-1])} or {choices[-1]}", did_you_mean(value, choices)
    else:
        words = "a text"
    return f"must be {words}{null}{guess}"


def _annotation(key: str) -> Any:
    """The declared type of a setting; None if there is no such setting."""
    kind: Any = Config
    for name in key.split("."):
        sections = [each for each in (kind, *typing.get_args(kind)) if is_dataclass(each)]
        hints = {field.name: field.type for section in sections for field in fields(section)}
        if name not in hints:
            return None
        kind = hints[name]
    return kind


def _kind_of(key: str) -> Any:
    """The type of a setting's values but for null; None for a section and for no setting."""
    kind = _annotation(key)
    if isinstance(kind, types.UnionType):
        (kind,) = [each for each in typing.get_args(kind) if each is not type(None)]
    return None if is_dataclass(kind) else kind


def _may_be_null(key: str) -> bool:
    return type(None) in typing.get_args(_annotation(key))


def _list_of(kind: Any) -> Any:
    """The type of a list's elements; None if it is no list."""
    return typing.get_args(kind)[0] if typing.get_origin(kind) is list else None
