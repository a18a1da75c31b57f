"""Whether a server of embeddings gives an embedder's own vectors, and if not, of which other embedder they are.

The server is any that answers `POST /v1/embeddings` as OpenAI's does.
"""

import http.client
import itertools
import json
import math
import os
import urllib.error
import urllib.request
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

import numpy as np

from cft.deploy.load import load_embedder
from cft.system.errors import UserError
from cft.system.overrides import override
from cft.system.tables import Row, as_text
from cft.system.text import printable, shorten

if TYPE_CHECKING:
    from cft.model.embedder import Embedder

KEY = "CFT_SERVED_KEY"

# Short texts are moved most by a token or a word that is missing.
TEXTS = (
    "A man is playing a flute.",
    "x",
    "Is there somewhere quiet to read?",
    "Two dogs run over a field, and bark at everything that moves.",
    "Paris",
    "The price rose by 3.5% in 2019, and fell again.",
    "def first(items): return items[0]",
    "Émile a mangé une crêpe à Nîmes.",
    "How do I return a book that I borrowed from another library?",
)
_LONG = "The train to the coast leaves at seven, and nobody on the platform knows why it is late. "

# Least cosine of the same computation in float32, bfloat16 or float16: 0.99999 was measured for float16 in llama.cpp.
SAME = 0.999
# And in 8 bits: 0.9968 was measured for q8_0 in llama.cpp, 0.9887 for int8 in onnxruntime.
LOW_PRECISION = 0.98

_TIMEOUT = 120.0  # seconds
_MOST_BYTES = 64 * 2**20  # of an answer
_CAUSES = (
    "another model, or other weights: compare what the server loaded with the export",
    "no EOS: the server's tokenizer must append it, as an exported one does",
    "another pooling than the contract's, such as the server's default",
    "no prompt: the words before a text are the caller's, except where the server puts them on",
)


@dataclass(frozen=True)
class Variant:
    """The embedder with something left out or otherwise."""

    name: str  # what is otherwise; empty for the embedder itself
    embedder: "Embedder"


def check_served(url: str, options: dict[str, Any], *, served_model: str = "") -> tuple[str, bool]:
    """Compare a server's vectors of some texts with an embedder's own.

    Args:
        url: of the server, or of its endpoint. options: which embedder, as `load_embedder` takes it.
        served_model: the name that the server has for the model; none for one of no meaning.

    Returns:
        A table with a verdict, and whether the vectors are the same.

    Raises:
        UserError: if the server cannot be reached, or answers otherwise than it should.
    """
    endpoint = _endpoint(url)
    key = _key()
    embedder = load_embedder(**options)
    name = served_model or next(str(options[way]) for way in ("run", "model", "path") if options.get(way))
    found = _ask(endpoint, TEXTS, name, key, width=embedder.width)
    units = found / np.linalg.norm(found, axis=1, keepdims=True)
    cosines = (units * embedder.encode(TEXTS)).sum(axis=1)
    rows: list[Row] = [("text", "cosine")]
    rows += [(shorten(text, 60), f"{cosine:.6f}") for text, cosine in zip(TEXTS, cosines, strict=True)]
    least, notes = float(cosines.min()), []
    long = _long_text(embedder)
    try:
        vector = _ask(endpoint, [long], name, key, width=embedder.width)[0]
        cosine = float((vector / np.linalg.norm(vector) * embedder.encode([long])[0]).sum())
        rows.append((shorten(long, 60), f"{cosine:.6f}"))
        if cosine < LOW_PRECISION <= least:
            notes.append(f"a text of more than {embedder.contract.max_length} tokens is cut elsewhere there, or not")
            least = cosine
    except UserError as error:  # a server may refuse what is too long for it
        rows.append((shorten(long, 60), "refused"))
        notes.append(f"a text of more than {embedder.contract.max_length} tokens is refused there: {error}")
    lengths = np.linalg.norm(found, axis=1)
    if np.abs(lengths - 1).max() > 1e-2:
        notes.append(f"vectors have lengths of {lengths.min():.3g} to {lengths.max():.3g} there: scale them to 1")
    verdict, holds = _verdict(embedder, units, least)
    return "\n".join([as_text(rows), "", f"{endpoint}: {verdict}", *notes]), holds


def _verdict(embedder: "Embedder", units: np.ndarray, least: float) -> tuple[str, bool]:
    """What unit vectors (texts, D) of `TEXTS` are, in words, and whether they are the embedder's."""
    if least >= SAME:
        return f"the same vectors (cosines of {SAME} or more)", True
    best, name = -1.0, ""
    for variant in _variants(embedder):
        cosine = float((units * variant.embedder.encode(TEXTS)).sum(axis=1).min())
        if cosine > best:
            best, name = cosine, variant.name
    own = float((units * embedder.encode(TEXTS)).sum(axis=1).min())
    if best > own and best >= LOW_PRECISION:
        return f"other vectors: they are those of this embedder {name} (cosines of {best:.4f} or more)", False
    if least >= LOW_PRECISION:
        return f"the same vectors at low precision (cosines of {least:.4f} or more; 8 bits have that)", True
    if own >= LOW_PRECISION:
        return f"other vectors of long texts (a cosine of {least:.4f}), and the same of short ones", False
    causes = "\n".join(f"  {cause}" for cause in _CAUSES)
    return f"other vectors (a cosine of {least:.4f}). Likely reasons:\n{causes}", False


def _variants(embedder: "Embedder") -> Iterator[Variant]:
    """The embedder without its prompt, without EOS, with EOS twice, under other poolings, and all of these together."""
    from cft.config.schema import PLACEHOLDER, Attention, Pooling
    from cft.model.embedder import Embedder

    contract = embedder.contract
    templates = {"": contract.template}
    if contract.template != PLACEHOLDER:
        templates["without its prompt"] = PLACEHOLDER
    for role, template in (("queries", contract.query_template), ("documents", contract.document_template)):
        if template and template not in templates.values():
            templates[f"under its prompt of {role}"] = template
    suffixes, ending = {"": contract.suffix_ids}, "EOS" if contract.append_eos else "its last special token"
    if contract.suffix_ids:
        suffixes |= {f"without {ending}": (), f"with {ending} twice": contract.suffix_ids * 2}
    poolings = {"": contract.pooling}
    both = contract.attention is Attention.bidirectional
    for pooling in (Pooling.mean, Pooling.last, *([Pooling.first] if both else [])):
        if pooling is not contract.pooling:
            poolings[f"with pooling={pooling.value}"] = pooling
    for parts in itertools.product(templates, suffixes, poolings):
        template, suffix, pool = parts
        if any(parts):
            changed = replace(contract, suffix_ids=suffixes[suffix], pooling=poolings[pool])
            changed = changed.with_template(templates[template])
            yield Variant(" and ".join(filter(None, parts)), Embedder(embedder.model, embedder.backbone, changed))


def _long_text(embedder: "Embedder") -> str:
    """A text that the embedder cuts, unless it takes very many tokens."""
    return _LONG * min(max(embedder.contract.max_length // 10, 1), 60)


def _endpoint(url: str) -> str:
    """The address of the endpoint, of which `http://host:port` is enough.

    Raises:
        UserError: if it is no address, or holds a password.
    """
    named = override("served", url)
    try:
        parts = urlsplit(url)
        _ = parts.port  # which is read only when it is used
    except ValueError as error:
        raise UserError(f"{named}: is no address ({error})") from error
    if parts.scheme not in ("http", "https") or not parts.hostname or not url.isprintable() or " " in url:
        raise UserError(f"{named}: must be an address, as in served=http://localhost:8080")
    if parts.username or parts.password:
        raise UserError(f"served={parts.scheme}://...@{parts.hostname}: give a key by the variable {KEY}, not here")
    path = parts.path.rstrip("/")
    if path in ("", "/v1"):
        path = "/v1/embeddings"
    return parts._replace(path=path, fragment="").geturl()


def _key() -> str:
    """The server's key, empty if it needs none.

    Raises:
        UserError: if it cannot stand in a header; without it.
    """
    key = os.environ.get(KEY, "").strip()
    if not (key.isascii() and key.isprintable()):
        raise UserError(f"the variable {KEY} holds characters that no key has; set it again")
    return key


class _NoRedirect(urllib.request.HTTPRedirectHandler):
    """A key is for the server that was named, and a POST that is sent elsewhere becomes a GET."""

    def redirect_request(self, *_: Any) -> None:
        """Leave the answer as it is: an error."""


def _ask(endpoint: str, texts: Sequence[str], model: str, key: str, *, width: int) -> np.ndarray:
    """The server's vectors (texts, width).

    Raises:
        UserError: naming the address.
    """
    headers = {"Content-Type": "application/json"} | ({"Authorization": f"Bearer {key}"} if key else {})
    body = json.dumps({"model": model, "input": list(texts)}).encode()
    request = urllib.request.Request(endpoint, body, headers, method="POST")
    try:
        with urllib.request.build_opener(_NoRedirect).open(request, timeout=_TIMEOUT) as answer:
            content = answer.read(_MOST_BYTES + 1)
    except urllib.error.HTTPError as error:
        words = _excerpt(error, key)
        hint = f"; its key goes into the variable {KEY}" if error.code in (401, 403) else ""
        reason = printable(_without(key, str(error.reason)))
        raise UserError(f"{endpoint} answers HTTP {error.code} {reason}{words}{hint}") from error
    except (OSError, http.client.HTTPException) as error:
        cause = getattr(error, "reason", None) or error
        reason = printable(_without(key, str(cause))) or type(cause).__name__
        raise UserError(f"{endpoint} cannot be reached ({reason})") from error
    if len(content) > _MOST_BYTES:
        raise UserError(f"{endpoint} answers with more than {_MOST_BYTES // 2**20} MiB for {len(texts)} texts")
    try:
        answered = json.loads(content)
    except (ValueError, RecursionError) as error:
        raise UserError(f"{endpoint} does not answer in JSON: is it the right path?") from error
    return _vectors(endpoint, answered, len(texts), width)


def _excerpt(error: urllib.error.HTTPError, key: str) -> str:
    """What the server says of an error, without the key."""
    try:
        text = error.read(2000).decode(errors="replace")
    except (OSError, http.client.HTTPException):
        return ""
    text = printable(shorten(" ".join(_without(key, text).split()), 200))
    return f": {text}" if text else ""


def _without(key: str, text: str) -> str:
    """What a server says, which may quote the key that it was given."""
    return text.replace(key, "***") if key else text


def _vectors(endpoint: str, answered: Any, count: int, width: int) -> np.ndarray:
    """Vectors (count, width) out of an answer, in the order of the texts.

    Raises:
        UserError: if it holds others.
    """
    entries = answered.get("data") if isinstance(answered, dict) else None
    if not isinstance(entries, list) or not all(isinstance(entry, dict) for entry in entries):
        raise UserError(f"{endpoint} answers without a list `data`, which OpenAI's form has: is it the right path?")
    if len(entries) != count:
        raise UserError(f"{endpoint} answers with {len(entries)} vectors for {count} texts")
    order = [entry.get("index", place) for place, entry in enumerate(entries)]
    if any(isinstance(each, bool) or not isinstance(each, int) for each in order) or sorted(order) != [*range(count)]:
        raise UserError(f"{endpoint} numbers its {count} vectors otherwise than from 0 to {count - 1}")
    vectors = np.empty((count, width), dtype=np.float64)
    for place, entry in zip(order, entries, strict=True):
        vector = entry.get("embedding")
        if not isinstance(vector, list) or not all(
            isinstance(number, (int, float)) and not isinstance(number, bool) for number in vector
        ):
            raise UserError(f"{endpoint} gives text {place + 1} of {count} an `embedding` that is no list of numbers")
        if len(vector) != width:
            raise UserError(f"{endpoint} gives vectors of {len(vector)} numbers, and this embedder's have {width}")
        if not all(map(_is_finite, vector)) or not any(vector):
            raise UserError(f"{endpoint} gives text {place + 1} of {count} a vector with NaN or infinity, or of zeros")
        vectors[place] = vector
    return vectors


def _is_finite(number: float) -> bool:
    """Whether a number of JSON is one in 64 bits too; integers have no end there."""
    try:
        return math.isfinite(number)
    except OverflowError:
        return False
