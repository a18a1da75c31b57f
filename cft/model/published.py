"""What sentence-transformers records of a model's own way from texts to vectors, beside the weights of its transformer.

cft runs the transformer, pools and normalises. A folder that needs more (a dense layer, a prompt, lower case) would
give other vectors than it was published for: what cannot be done is refused, what a setting does is said with it.
"""

import logging
from collections.abc import Collection, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

from cft.config.schema import PLACEHOLDER, ModelSettings, Pooling, Prompts
from cft.model.sources import POOLING_FILE, POOLING_NAMES
from cft.system.errors import UserError
from cft.system.files import read_json
from cft.system.overrides import override, overrides

log = logging.getLogger(__name__)

# What cft writes beside a model of which some first numbers of vectors were trained to do alone.
DIMENSIONS_FILE = "cft_dimensions.json"
_MODULES = "modules.json"
_PROMPTS = "config_sentence_transformers.json"
# The names under which sentence-transformers looks for the words before a document.
_DOCUMENT_PROMPTS = ("document", "passage", "corpus")
_LENGTHS = "sentence_*_config.json"  # sentence_bert_config.json, of older versions also with other families' names
# Modules that change no vector's direction beyond what cft does itself; a dropout does nothing after training.
_OURS = ("Transformer", "Pooling", "Normalize", "Dropout")
_OURS_BY_NAME = {name: pooling for pooling, name in POOLING_NAMES.items()}
# The names of poolings from version 5.5 on, if they are not the older ones.
_NEWER = {"cls": "cls_token", "mean": "mean_tokens", "weightedmean": "weightedmean_tokens", "max": "max_tokens"}


def require_known_modules(folder: Path, model: ModelSettings) -> None:
    """Refuse a model that was published with a module that cft does not have.

    Raises:
        UserError: naming the module, and how the transformer is had without it.
    """
    kinds = [str(module.get("type", "")).rpartition(".")[2] for module in _modules(folder)]
    beyond = [kind for kind in kinds if kind not in _OURS]
    if beyond:
        raise UserError(
            f"{override('model.path', model.path)}: {folder / _MODULES} has the module {beyond[0]}, through which its "
            "vectors go and which cft does not have: they would be others than it was published for; to take the "
            f"transformer alone, copy the folder without {_MODULES} and name the copy by model.path"
        )


def published_settings(folder: Path, model: ModelSettings) -> tuple[ModelSettings, Prompts] | None:
    """How a model embeds by what sentence-transformers wrote beside it, for a model that no configuration describes.

    Args:
        folder: with the record. model: the settings that it completes: pooling, length and special tokens.

    Returns:
        The settings, and the words around a text by its role; None if nothing is recorded.

    Raises:
        UserError: if it was published with a module or a pooling that cft does not have.
    """
    require_known_modules(folder, model)
    path = _pooling_file(folder)
    if not path.exists() and not _modules(folder):
        return None
    names = _poolings(_record(path, dict))
    if len(names) != 1 or names[0] not in _OURS_BY_NAME:
        pooling = " and ".join(names) or "none that is readable"
        raise UserError(f"{override('model.path', model.path)}: was published with pooling={pooling}, which cft lacks")
    settings = replace(
        model,
        pooling=_OURS_BY_NAME[names[0]],
        max_length=_published_length(folder) or model.max_length,
        append_eos=False,  # its tokenizer puts there what belongs there
    )
    record = _record(folder / _PROMPTS, dict)
    prompts = record.get("prompts")
    words = {name: f"{text}{PLACEHOLDER}" for name, text in (prompts or {}).items() if isinstance(text, str)}
    document = next((words[name] for name in _DOCUMENT_PROMPTS if name in words), None)
    text = words.get(str(record.get("default_prompt_name")), PLACEHOLDER)
    return settings, Prompts(text, words.get("query"), document)


def published_dimensions(folder: Path, width: int) -> tuple[int, ...]:
    """How many first numbers of a model's vectors of `width` were trained to do alone, by cft's export of it."""
    dimensions = _record(folder / DIMENSIONS_FILE, dict).get("dimensions")
    if not isinstance(dimensions, list) or not all(type(each) is int and 0 < each <= width for each in dimensions):
        return ()
    return tuple(dimensions)


def _published_length(folder: Path) -> int | None:
    """Tokens at most: its own limit, or else what its tokenizer or its positions allow."""
    records = [*sorted(folder.glob(_LENGTHS)), folder / "tokenizer_config.json", folder / "config.json"]
    keys = ("max_seq_length", "model_max_length", "max_position_embeddings")
    lengths = [_record(path, dict).get(key) for key in keys for path in records]
    # a tokenizer without a limit has one beyond all numbers
    return next((length for length in lengths if isinstance(length, int) and 1 < length < 10**9), None)


def warn_of_differences(folder: Path, model: ModelSettings, tokenizer: Any, templates: Collection[str]) -> None:
    """Say what a model was published with and is not used with.

    Args:
        folder: of the model. model: how it is to embed. tokenizer: its own. templates: prompts that it is used with.
    """
    for difference in _differences(folder, model, tokenizer, templates):
        log.warning("%s was published with %s", model.path, difference)


def _differences(folder: Path, model: ModelSettings, tokenizer: Any, templates: Collection[str]) -> Iterator[str]:
    """What it was published with and is not used with, as the end of a sentence."""
    yield from _of_pooling(folder, model)
    for path in sorted(folder.glob(_LENGTHS)):
        record = _record(path, dict)
        length = record.get("max_seq_length")
        if isinstance(length, int) and length > 0 and length != model.max_length:
            same = override("model.max_length", length)
            yield f"max_length={length}; here it is max_length={model.max_length} ({same} takes its own)"
        if record.get("do_lower_case") and not _is_lowered(tokenizer):
            yield "all texts in lower case; here they keep their capitals, so give it texts in lower case"
    record = _record(folder / _PROMPTS, dict)
    prompts, name = record.get("prompts"), record.get("default_prompt_name")
    prompt = prompts.get(name) if isinstance(prompts, dict) else None
    if isinstance(prompt, str) and prompt and f"{prompt}{PLACEHOLDER}" not in templates:
        same = overrides({"prompt.template": f"{prompt}{PLACEHOLDER}", "prompt.use": "both"})
        yield f"the prompt {prompt!r} before every text; here it has none of it ({same} puts it there)"


def _of_pooling(folder: Path, model: ModelSettings) -> Iterator[str]:
    record = _record(_pooling_file(folder), dict)
    names = _poolings(record)
    here = f"here it is pooling={model.pooling.value}"
    if len(names) == 1 and names[0] in _OURS_BY_NAME:
        pooling: Pooling = _OURS_BY_NAME[names[0]]
        if pooling is not model.pooling:
            yield f"pooling={pooling.value}; {here} ({override('model.pooling', pooling)} takes its own)"
    elif names:
        yield f"pooling={' and '.join(names)}, which cft does not have; {here}"
    if record.get("include_prompt") is False:
        yield "a pooling that leaves the prompt's tokens out; here they are pooled with the text's"


def _pooling_file(folder: Path) -> Path:
    """Where the pooling is recorded, if it is."""
    paths = [folder / str(each.get("path")) for each in _modules(folder) if str(each.get("type")).endswith("Pooling")]
    return paths[0] / "config.json" if paths else folder / POOLING_FILE


def _poolings(record: dict[str, Any]) -> list[str]:
    """The names of a pooling module's modes, several if it puts their vectors beside one another."""
    modes = record.get("pooling_mode")
    if modes is not None:
        modes = modes if isinstance(modes, list) else [modes]
        return [_NEWER.get(str(mode), str(mode)) for mode in modes]
    prefix = "pooling_mode_"
    return [name.removeprefix(prefix) for name, chosen in record.items() if name.startswith(prefix) and chosen is True]


def _is_lowered(tokenizer: Any) -> bool:
    """Whether a tokenizer reads capitals as small letters."""
    return tokenizer("A B")["input_ids"] == tokenizer("a b")["input_ids"]


def _modules(folder: Path) -> list[dict[str, Any]]:
    return [module for module in _record(folder / _MODULES, list) if isinstance(module, dict)]


def _record(path: Path, kind: type) -> Any:
    """A file's record, empty if it is not there or is no such thing."""
    try:
        record = read_json(path, object) if path.exists() else None
    except UserError:
        record = None
    return record if isinstance(record, kind) else kind()
