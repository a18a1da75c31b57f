"""Texts to token ids: the prompt around a text, truncation that loses neither prompt nor EOS, special tokens."""

import functools
import hashlib
import json
import threading
from collections.abc import Sequence
from typing import Any, NamedTuple

from transformers import PreTrainedTokenizerFast

from cft.config.schema import PLACEHOLDER, ModelSettings
from cft.system.errors import UserError
from cft.system.overrides import override
from cft.system.text import did_you_mean

# A fast tokenizer cannot be set up by two threads at a time, and each call sets it up.
_ONE_AT_A_TIME = threading.Lock()

# Texts on which a tokenizer shows its special tokens; the second serves those that do not know the first.
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


def special_tokens(
    model: ModelSettings, tokenizer: Any, eos_hint: int | list[int] | None
) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """Token ids before and after every text.

    The tokenizer shows on a sample what comes before (BOS, CLS). What comes after a causal model's text is our own
    EOS, because many tokenizers ignore `add_eos_token`; an encoder keeps its tokenizer's suffix.

    Args:
        eos_hint: the EOS that the model's own configuration names, for the error message.

    Raises:
        UserError: if there is no EOS to append.
    """
    for sample in _SAMPLES:
        bare = list(tokenizer(sample, add_special_tokens=False)["input_ids"])
        full = list(tokenizer(sample)["input_ids"])
        starts = [i for i in range(len(full)) if full[i : i + len(bare)] == bare]
        if bare and starts:
            suffix = tuple(full[starts[0] + len(bare) :])
            return tuple(full[: starts[0]]), (_eos(model, tokenizer, eos_hint),) if model.append_eos else suffix
    raise UserError(
        f"{override('model.path', model.path)}: its tokenizer ({type(tokenizer).__name__}) turns a text into other "
        "tokens when it "
        "adds its special ones, so that nobody can tell them apart; this tokenizer is not supported"
    )


def _eos(model: ModelSettings, tokenizer: Any, hint: int | list[int] | None) -> int:
    if model.eos_token is None:
        if tokenizer.eos_token_id is not None:
            return int(tokenizer.eos_token_id)
        token = next(iter(tokenizer.convert_ids_to_tokens([hint] if isinstance(hint, int) else hint or [])), None)
        better = (
            f"{override('model.eos_token', token)}, which the model's own configuration names"
            if token
            else "model.eos_token"
        )
        raise UserError(
            f"{override('model.path', model.path)}: its tokenizer has no EOS token to embed; name one by {better}, or "
            "set "
            "model.append_eos=false to embed the last word instead"
        )
    vocabulary = tokenizer.get_vocab()
    if model.eos_token not in vocabulary:
        special = sorted(set(tokenizer.all_special_tokens) | set(tokenizer.get_added_vocab()))
        guess = did_you_mean(model.eos_token, special, sentence=True, show=repr, cutoff=0.3)
        raise UserError(
            f"{override('model.eos_token', model.eos_token)} is no token of this tokenizer; its special tokens: "
            f"{', '.join(special[:12]) or 'none'}.{guess}"
        )
    return int(vocabulary[model.eos_token])


def tokenizer_digest(tokenizer: Any, *extra: object) -> str:
    """Digest of a tokenizer's content and of `extra`, equal on every machine."""
    backend = getattr(tokenizer, "backend_tokenizer", None)
    if backend is not None:
        content = backend.to_str()
    else:  # written in Python: its class and its words
        words = sorted(tokenizer.get_vocab().items())
        content = json.dumps([type(tokenizer).__name__, words, sorted(tokenizer.get_added_vocab().items())])
    return hashlib.sha256((content + repr(extra)).encode()).hexdigest()[:16]


def cached_tokenizer(digest: str, tokenizer: Any) -> Any:
    """The tokenizer of this digest that was loaded first, or this one; the four used last are kept.

    Every fast tokenizer that has tokenised leaves some 140 KiB behind when it is dropped (tokenizers 0.23), which
    would add up in a sweep of many jobs.
    """
    place = _cache_place(digest, type(tokenizer).__name__, tuple(tokenizer.all_special_tokens))
    return place.setdefault("tokenizer", tokenizer)


@functools.lru_cache(maxsize=4)
def _cache_place(*key: object) -> dict[str, Any]:
    """A dict for each key, empty at first."""
    return {}


class PromptedIds(NamedTuple):
    """Token ids of prompted texts, without the special tokens around them."""

    rows: list[list[int]]
    cut: list[bool]  # whether a text was longer than there was room for


def prompted_ids(tokenizer: Any, texts: Sequence[str], template: str, room: int, *, copies: int = 1) -> PromptedIds:
    """Token ids of prompted texts, without the special tokens around them.

    A text that is too long is cut at its own end: the words of the prompt after it stay. Special tokens that stand
    in a text as words (`</s>`) are words; in a prompt they are the special tokens.

    Args:
        template: the prompt, with a place for the text.
        room: tokens at most.
        copies: how often each will go in, for the error message.

    Raises:
        UserError: if the prompt alone fills the room of a text that is too long.
    """
    before, after = template.split(PLACEHOLDER)
    plain = special_word_in(template, tokenizer) is None
    special = [] if plain else _special_words(tokenizer)
    rows = _token_ids(tokenizer, [before + text + after for text in texts], plain=plain)
    cut = [False] * len(rows)
    for row, text in enumerate(texts):
        if any(token in text for token in special):
            # Piece by piece, as one call cannot treat the special tokens of prompt and text differently.
            start, end = (_token_ids(tokenizer, [words], plain=False)[0] for words in (before, after))
            rows[row] = [*start, *_token_ids(tokenizer, [text], plain=True)[0], *end]
        if len(rows[row]) > room:
            tail = _tokens_after(tokenizer, before + text, after, plain=plain) if after else 0
            require_room(tokenizer, template, room, tail, copies=copies)
            rows[row] = rows[row][: room - tail] + (rows[row][-tail:] if tail else [])
            cut[row] = True
    return PromptedIds(rows, cut)


def special_word_in(words: str, tokenizer: Any) -> str | None:
    """The first of a tokenizer's special tokens that stands in a prompt's words; None if there is none."""
    return next((token for token in _special_words(tokenizer) if token in words), None)


def _special_words(tokenizer: Any) -> list[str]:
    """The words that a tokenizer reads as special tokens, those among them that it has no use of its own for."""
    others = [str(token) for token in tokenizer.added_tokens_decoder.values() if token.special]
    return [token for token in dict.fromkeys([*tokenizer.all_special_tokens, *others]) if token]


def require_room(tokenizer: Any, template: str, room: int, tail: int | None = None, *, copies: int = 1) -> None:
    """Refuse a prompt whose own words leave no room for a token of a text: all texts would be equal.

    Args:
        template: the prompt, with a place for the text. room: tokens at most. tail: tokens of the words behind the
            text, if they are known. copies: how often a prompted text goes in.
    """
    before, after = template.split(PLACEHOLDER)
    plain = special_word_in(template, tokenizer) is None
    head = len(_token_ids(tokenizer, [before], plain=plain)[0]) if before.strip() else 0
    if tail is None:
        tail = len(_token_ids(tokenizer, [after], plain=plain)[0]) if after.strip() else 0
    if head + tail >= room:
        each = " in each of its copies" if copies > 1 else ""
        raise UserError(
            f"the prompt {template!r} alone has {head} tokens before the text and {tail} after it, and "
            f"model.max_length leaves room for {room}{each}: no room left, nothing of a text would be read; shorten "
            f"the prompt, or raise model.max_length by {(head + tail + 1 - room) * copies} at least"
        )


def _token_ids(tokenizer: Any, texts: list[str], *, plain: bool) -> list[list[int]]:
    """Token ids of texts; `plain` has special tokens in them read as words."""
    with _ONE_AT_A_TIME:
        return tokenizer(texts, add_special_tokens=False, split_special_tokens=plain)["input_ids"] if texts else []


def _tokens_after(tokenizer: Any, before: str, after: str, *, plain: bool) -> int:
    """Number of tokens that lie wholly in `after` when it follows `before`."""
    if not getattr(tokenizer, "is_fast", False):
        return len(_token_ids(tokenizer, [after], plain=plain)[0])
    with _ONE_AT_A_TIME:
        offsets = tokenizer(
            before + after, add_special_tokens=False, split_special_tokens=plain, return_offsets_mapping=True
        )["offset_mapping"]
    return sum(start >= len(before) for start, _ in offsets)
