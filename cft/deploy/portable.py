"""A finished embedder in the form that other libraries load: weights in one piece, and a tokenizer that appends EOS and
the prompt's words behind the text.

What that form cannot hold is refused: other libraries would silently make other vectors of it.
"""

import copy
from pathlib import Path
from typing import Any

import numpy as np
from peft import PeftModel

from cft.config.schema import PLACEHOLDER, Attention, Quantization, Role
from cft.model.contract import Contract
from cft.model.embedder import Embedder
from cft.model.published import DIMENSIONS_FILE
from cft.model.sources import POOLING_FILE, POOLING_NAMES
from cft.model.tokenizer import prompted_ids, special_word_in
from cft.system.errors import UserError, first_line
from cft.system.files import write_json, write_record

PROMPTS_FILE = "config_sentence_transformers.json"

_BEHIND = "behind"  # the words behind a text, in the template of a tokenizer's post-processor

_SHARED_TOKENS = (
    "has words behind the text that share tokens with it, for which other libraries have no place: begin them with a "
    "blank, or export under another prompt, as in prompt='{text}', and put the words around each text yourself"
)

# Texts whose tokens and vectors must be the same in other libraries.
SAMPLES = (
    "A man is playing a flute.",
    "x",
    ' Blanks around, "quotes" and Émile\'s 🎻 ',
    "The end </s> <|im_end|> <eos> of text.",
    "Two women are talking about the weather in the mountains. " * 40,
)


def merge_adapter(embedder: Embedder) -> tuple[Any, float]:
    """Merge the adapter into the trunk, in float32, under the trunk's own attention; the embedder is used up.

    Returns:
        The trunk, and the largest change of a coordinate of a unit vector that merging made on `SAMPLES`.
    """
    contract, backbone = embedder.contract, embedder.backbone
    before = embedder.encode(SAMPLES)
    trunk: Any = embedder.model.float()
    if isinstance(trunk, PeftModel):
        trunk = trunk.merge_and_unload()
    after = Embedder(trunk, backbone, contract).encode(SAMPLES)
    trunk.set_attn_implementation(backbone.batching.own_attention)
    trunk.config.use_cache = True
    return trunk, float(np.abs(after - before).max())


def check_portable(embedder: Embedder, *, as_graph: bool = False) -> None:
    """Refuse an embedder that other libraries cannot hold.

    Args:
        embedder: the embedder.
        as_graph: whether its computation goes along, rather than weights for a class that they have.

    Raises:
        UserError: saying why.
    """
    contract, backbone = embedder.contract, embedder.backbone
    if contract.quantization is not Quantization.none:
        raise UserError(f"this embedder's base model is held in {contract.quantization.value}: it cannot be merged")
    if contract.layer is not None and not as_graph:
        raise UserError(
            f"this embedder is cut after layer {contract.layer}, without the norm behind the last one: transformers "
            "has no such model"
        )
    if contract.layer_weights:
        raise UserError(
            "this embedder was made with model.layer_weights=true, a weighted sum of all layers' states, for which "
            "other libraries have no place"
        )
    if contract.echo:
        raise UserError(
            "this embedder was made with model.echo=true: a text goes in twice and is pooled the second time, for "
            "which other libraries have no place"
        )
    if backbone.batching.made_bidirectional and not as_graph:
        raise UserError(
            f"this embedder was trained with model.attention={Attention.bidirectional.value} on a model that looks "
            "backwards: other libraries would run it backwards only"
        )
    words = {tuple(_ids_behind(embedder.in_role(role))): words_before(embedder.in_role(role)) for role in Role}
    if len(words) > 1:
        raise UserError(
            f"this embedder's prompts ({contract.prompts}) have different words behind the text, and other libraries "
            "have a place for one: export under one prompt, as in prompt='{text}'"
        )


def portable_tokenizer(embedder: Embedder) -> Any:
    """A copy of the tokenizer that itself puts the contract's special tokens around every text.

    It also appends the prompt's words behind the text: other libraries have a place only for words before it.

    Raises:
        UserError: if the tokenizer has no fast form, or the words behind a text are no tokens of their own.
    """
    from tokenizers.processors import TemplateProcessing

    contract = embedder.contract
    tokenizer = copy.deepcopy(embedder.backbone.tokenizer)
    if not getattr(tokenizer, "is_fast", False):
        raise UserError(f"{type(tokenizer).__name__} is written in Python: it cannot be told to append EOS in a file")
    tokens = {id: tokenizer.convert_ids_to_tokens(id) for id in (*contract.prefix_ids, *contract.suffix_ids)}
    pieces = [tokens[id] for id in contract.prefix_ids] + ["$A"]
    special: list[Any] = [(token, id) for id, token in tokens.items()]
    behind = _ids_behind(embedder.in_role(Role.text))
    if behind:
        pieces.append(_BEHIND)
        special.append({"id": _BEHIND, "ids": behind, "tokens": tokenizer.convert_ids_to_tokens(behind)})
    pieces += [tokens[id] for id in contract.suffix_ids]
    tokenizer.backend_tokenizer.post_processor = TemplateProcessing(single=pieces, special_tokens=special)
    tokenizer.chat_template = None  # sentence-transformers would make a conversation of every text
    tokenizer.padding_side = tokenizer.truncation_side = "right"
    tokenizer.model_max_length = contract.max_length
    # Special tokens that stand in a text are words, now and after it is loaded again.
    tokenizer.split_special_tokens = tokenizer.init_kwargs["split_special_tokens"] = True
    if tokenizer.pad_token is None:
        tokenizer.pad_token = tokenizer.eos_token or tokens[contract.suffix_ids[-1]]
    return tokenizer


def _ids_behind(embedder: Embedder) -> list[int]:
    """Token ids of the prompt's words behind the text."""
    contract, tokenizer = embedder.contract, embedder.backbone.tokenizer
    without = contract.template.partition(PLACEHOLDER)[0] + PLACEHOLDER
    start, full = (
        prompted_ids(tokenizer, ["some words"], template, contract.room).rows[0]
        for template in (without, contract.template)
    )
    if full[: len(start)] != start:
        raise UserError(f"the prompt {contract.template!r} {_SHARED_TOKENS}")
    return full[len(start) :]


def words_before(embedder: Embedder) -> str:
    """The prompt's words before a text.

    Raises:
        UserError: if they hold a special token.
    """
    before = embedder.contract.template.partition(PLACEHOLDER)[0]
    special = special_word_in(before, embedder.backbone.tokenizer)
    if special is not None:
        raise UserError(f"the prompt holds the special token {special!r}, which would be read as words there")
    return before


def check_tokens(embedder: Embedder, folder: Path) -> None:
    """Check that the tokenizer in a folder, loaded by transformers, gives the embedder's own tokens.

    Raises:
        UserError: if it gives a sample other tokens.
    """
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(folder, trust_remote_code=False)
    for role in Role:
        _check_tokens_of(embedder.in_role(role), tokenizer)


def _check_tokens_of(embedder: Embedder, tokenizer: Any) -> None:
    before = words_before(embedder)
    for text, expected in zip(SAMPLES, embedder.tokenize(SAMPLES), strict=True):
        ids = tokenizer(before + text, truncation=True, max_length=embedder.contract.max_length)["input_ids"]
        if tuple(ids) != expected:
            if not embedder.contract.template.endswith(PLACEHOLDER):
                raise UserError(f"the prompt {embedder.contract.template!r} {_SHARED_TOKENS}")
            raise UserError(
                f"the exported tokenizer gives {text[:40]!r} other tokens than this embedder has: it cannot be exported"
            )


def write_modules(folder: Path, embedder: Embedder) -> None:
    """Write what `SentenceTransformer` needs beside a transformers folder: pooling, normalisation, prompt, length."""
    contract = embedder.contract
    folders = {"Transformer": "", "Pooling": "1_Pooling", "Normalize": "2_Normalize"}
    modules = [
        {"idx": number, "name": str(number), "path": path, "type": f"sentence_transformers.models.{name}"}
        for number, (name, path) in enumerate(folders.items())
    ]
    write_json(folder / "modules.json", modules)
    write_json(folder / "sentence_bert_config.json", {"max_seq_length": contract.max_length, "do_lower_case": False})
    write_pooling(folder, embedder)
    (folder / "2_Normalize").mkdir(exist_ok=True)
    write_prompts(folder, embedder)


def write_pooling(folder: Path, embedder: Embedder) -> None:
    """Write how states become a vector, as sentence-transformers and cft read it."""
    trunk: Any = embedder.backbone.trunk
    mode = POOLING_NAMES[embedder.contract.pooling]
    modes = (*POOLING_NAMES.values(), "max_tokens")
    pooling: dict[str, Any] = {f"pooling_mode_{each}": each == mode for each in modes}
    write_json(folder / POOLING_FILE, {"word_embedding_dimension": trunk.config.hidden_size, **pooling})


def write_prompts(folder: Path, embedder: Embedder) -> None:
    """Write the words before a text, by its role, as sentence-transformers reads them."""
    before = {role.value: words_before(embedder.in_role(role)) for role in Role}
    write_json(
        folder / PROMPTS_FILE,
        {
            "prompts": before,
            "default_prompt_name": "text" if before["text"] else None,
            "similarity_fn_name": "cosine",
        },
    )


def write_dimensions(folder: Path, contract: Contract) -> None:
    """Write how many first numbers were trained to do alone, for which other libraries have no place; cft reads it."""
    if contract.dimensions:
        write_record(folder / DIMENSIONS_FILE, {"dimensions": contract.dimensions})


def sample_vectors(embedder: Embedder) -> dict[Role, np.ndarray]:
    """Vectors (samples, D) of `SAMPLES` in every role."""
    return {role: embedder.in_role(role).encode(SAMPLES) for role in Role}


def sentence_transformers_difference(folder: Path, expected: dict[Role, np.ndarray]) -> float | None:
    """Largest difference of a coordinate between sentence-transformers' vectors of `SAMPLES` and the expected ones.

    Returns:
        The difference, or None if sentence-transformers is not installed.

    Raises:
        UserError: if it cannot load the folder.
    """
    try:
        from sentence_transformers import SentenceTransformer
    except ImportError:
        return None
    try:
        model = SentenceTransformer(str(folder), device="cpu", trust_remote_code=False)
        encoders: dict[Role, Any] = {
            Role.text: model.encode,
            Role.query: model.encode_query,
            Role.document: model.encode_document,
        }
        vectors = {role: encode(list(SAMPLES)) for role, encode in encoders.items()}
    except (OSError, ValueError, RuntimeError, KeyError, TypeError) as error:
        raise UserError(f"sentence-transformers cannot load what was made of it ({first_line(error)})") from error
    return max(float(np.abs(vectors[role] - expected[role]).max()) for role in Role)
