"""Texts to token ids: the prompt around a text, truncation that loses neither prompt nor EOS, special tokens."""

import hashlib
import json
import threading
from collections.abc import Sequence
from typing import Any

from transformers import PreTrainedTokenizerFast

from cft.config.schema import PLACEHOLDER, ModelSettings
from cft.system.errors import UserError
from cft.system.text import did_you_mean

# A fast tokenizer cannot be set up by two threads at a time, and each call sets it up.
_ONE_AT_A_TIME = threading.Lock()

_kept: dict[tuple, Any] = {}
_MOST_KEPT = 4

# What a tokenizer is asked to show its special tokens on; the second serves those that do not know the first.
_SAMPLES = ("a", "1 2")


def byte_tokenizer() -> PreTrainedTokenizerFast:
    """A tokenizer that needs no file: one token a byte, an EOS and no BOS."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers

    special = {"<pad>": 0, "<eos>": 1}
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocabulary = special | {letter: len(special) + index for index, letter in enumerate(alphabet)}
    backend = Tokenizer(models.BPE(vocab=vocabulary, merges=[]))
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    return PreTrainedTokenizerFast(tokenizer_object=backend, eos_token="<eos>", pad_token="<pad>")


def special_tokens(model: ModelSettings, tokenizer: Any, eos_hint: int | None) -> tuple[tuple[int, ...], tuple]:
    """What goes before and after every text.

    The tokenizer says what comes before (BOS, CLS) by showing it on a sample. What comes after a causal model's
    text is our own EOS, because many tokenizers ignore `add_eos_token`; an encoder keeps its tokenizer's suffix.

    Args:
        model: whether an EOS is appended, and which.
        tokenizer: of any kind that transformers has.
        eos_hint: the EOS that the model's own configuration names, for the error message.

    Raises:
        UserError: if there is no EOS to append.
    """
    prefix, suffix = _around(model, tokenizer)
    return (prefix, (_eos(model, tokenizer, eos_hint),)) if model.append_eos else (prefix, suffix)


def _around(model: ModelSettings, tokenizer: Any) -> tuple[tuple[int, ...], tuple[int, ...]]:
    for sample in _SAMPLES:
        bare = list(tokenizer(sample, add_special_tokens=False)["input_ids"])
        full = list(tokenizer(sample)["input_ids"])
        starts = [i for i in range(len(full)) if full[i : i + len(bare)] == bare]
        if bare and starts:
            return tuple(full[: starts[0]]), tuple(full[starts[0] + len(bare) :])
    raise UserError(
        f"model.path={model.path}: its tokenizer ({type(tokenizer).__name__}) turns a text into other tokens when it "
        "adds its special ones, so that nobody can tell them apart; this tokenizer is not supported"
    )


def _eos(model: ModelSettings, tokenizer: Any, hint: int | None) -> int:
    if model.eos_token is None:
        if tokenizer.eos_token_id is not None:
            return int(tokenizer.eos_token_id)
        named = tokenizer.convert_ids_to_tokens(hint) if hint is not None else None
        better = f"model.eos_token='{named}', which the model's own configuration names" if named else "model.eos_token"
        raise UserError(
            f"model.path={model.path}: its tokenizer has no EOS token to embed; name one by {better}, or set "
            "model.append_eos=false to embed the last word instead"
        )
    vocabulary = tokenizer.get_vocab()
    if model.eos_token not in vocabulary:
        special = sorted(set(tokenizer.all_special_tokens) | set(tokenizer.get_added_vocab()))
        guess = did_you_mean(model.eos_token, special, sentence=True, show=repr, cutoff=0.3)
        raise UserError(
            f"model.eos_token={model.eos_token!r} is no token of this tokenizer; its special tokens: "
            f"{', '.join(special[:12]) or 'none'}.{guess}"
        )
    return int(vocabulary[model.eos_token])


def tokenizer_digest(tokenizer: Any, *extra: object) -> str:
    """A name of what a tokenizer does, equal on every machine, fast or slow."""
    backend = getattr(tokenizer, "backend_tokenizer", None)
    if backend is not None:
        content = backend.to_str()
    else:  # written in Python: its class and its words
        words = sorted(tokenizer.get_vocab().items())
        content = json.dumps([type(tokenizer).__name__, words, sorted(tokenizer.get_added_vocab().items())])
    return hashlib.sha256((content + repr(extra)).encode()).hexdigest()[:16]


def cached_tokenizer(named: str, tokenizer: Any) -> Any:
    """The tokenizer of this content that this process has worked with already, or this one.

    Every fast tokenizer that has tokenised leaves some 140 KiB behind when it is let go (tokenizers 0.23), which a
    sweep of many jobs would add up.

    Args:
        named: its digest. tokenizer: freshly loaded.
    """
    key = (named, type(tokenizer).__name__, tuple(tokenizer.all_special_tokens))
    with _ONE_AT_A_TIME:
        found = _kept.pop(key, tokenizer)
        _kept[key] = found  # the one used last stands last
        while len(_kept) > _MOST_KEPT:
            _kept.pop(next(iter(_kept)))
    return found


def bodies(tokenizer: Any, texts: Sequence[str], template: str, room: int) -> list[list[int]]:
    """Token ids of prompted texts, without the special tokens around them.

    A text that is too long is cut at its own end: what the prompt says after it stays. Special tokens that stand in
    a text as words (`</s>`) are words; in a prompt they are the special tokens.

    Args:
        tokenizer: of any kind. texts: without prompt. template: the prompt. room: tokens at most.

    Raises:
        UserError: if the prompt alone fills the room.
    """
    special = [token for token in tokenizer.all_special_tokens if token]
    before, after = template.split(PLACEHOLDER)
    prompt_is_plain = not any(token in template for token in special)

    def ids(batch: list[str], *, plain: bool) -> list[list[int]]:
        with _ONE_AT_A_TIME:
            return tokenizer(batch, add_special_tokens=False, split_special_tokens=plain)["input_ids"] if batch else []

    found = [list(body) for body in ids([before + text + after for text in texts], plain=prompt_is_plain)]
    for row, text in enumerate(texts):
        mixed = not prompt_is_plain and any(token in text for token in special)
        if mixed:  # piece by piece, as one call cannot treat them differently
            start, middle, end = ids([before], plain=False)[0], ids([text], plain=True)[0], ids([after], plain=False)[0]
            found[row] = [*start, *middle, *end]
        if len(found[row]) > room:
            tail = _tail(tokenizer, before + text, after, plain=prompt_is_plain, ids=ids) if after else 0
            if tail >= room:
                raise UserError(f"the prompt {template!r} alone has {tail} tokens or more after the text: no room left")
            found[row] = found[row][: room - tail] + (found[row][-tail:] if tail else [])
    return found


def _tail(tokenizer: Any, up_to: str, after: str, *, plain: bool, ids: Any) -> int:
    """Tokens that lie wholly behind the text."""
    if not getattr(tokenizer, "is_fast", False):
        return len(ids([after], plain=plain)[0])
    with _ONE_AT_A_TIME:
        offsets = tokenizer(
            up_to + after, add_special_tokens=False, split_special_tokens=plain, return_offsets_mapping=True
        )["offset_mapping"]
    return sum(start >= len(up_to) for start, _ in offsets)
