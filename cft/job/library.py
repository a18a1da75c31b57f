"""Training from Python: settings and rows in, an embedder out."""

import json
import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from cft.config.compose import compose_config
from cft.config.schema import Config
from cft.data.records import Triplet
from cft.data.texts import problem_of
from cft.job import runner
from cft.job.plan import InputCache
from cft.model.embedder import Embedder
from cft.system.digest import digest
from cft.system.errors import UserError
from cft.system.files import atomic_write
from cft.system.overrides import unquoted
from cft.system.text import described
from cft.training.trainer import RowCallback

Row = Triplet | Sequence[str] | Mapping[str, str | Sequence[str]]

# Where rows that were given are kept: a run names the file that it learnt from.
_ROWS = "rows"
_ROLES = ("anchor", "positive", "negatives")
# Settings that say where rows are.
_OF_ROWS = ("data", "data.source", "data.train", "data.anchor_column", "data.positive_column", "data.negative_columns")


def train(
    settings: Iterable[str] | Config = (),
    *,
    triplets: Iterable[Row] | None = None,
    callbacks: Iterable[RowCallback] = (),
) -> Embedder:
    """Train an embedder as `python -m cft.run` does, and load it.

    What was trained before, with the same settings and rows, is only loaded; what was interrupted goes on. The run's
    folder under `outputs` has all that the command leaves: scores before and after, pictures, history, model card.

    Args:
        settings: as on the command line, such as ["model=minilm", "lr=1e-3"], or a whole configuration.
        triplets: rows to train on, in place of a file: (anchor, positive) or (anchor, positive, negative, ...), or
            mappings with the keys anchor, positive and, perhaps, negatives. Rows without negatives are trained with
            in-batch negatives alone. None takes what the settings name.
        callbacks: called with every row of the history as it arises: of a step, {"event": "step", "step": 1, "loss":
            ..., "accuracy": ..., "lr": ...}.

    Returns:
        The trained embedder, on the CPU.

    Raises:
        UserError: for whatever is wrong with settings or rows, by name.

    Example:
        >>> import cft
        >>> pairs = [(f"what is number {n}?", f"it is {n} and no other") for n in range(64)]
        >>> settings = ["model=tiny", "train.steps=2", "eval=none", "logger=none"]
        >>> embedder = cft.train(settings, triplets=pairs)
        >>> embedder.encode(["what is number 7?", "a text"]).shape
        (2, 32)
    """
    if int(os.environ.get("WORLD_SIZE", "1")) > 1:
        raise UserError("cft.train is one process's; under torchrun, run `-m cft.run` with the same settings")
    words = settings if isinstance(settings, Config) else _words(settings)
    called = _functions(callbacks)
    config = _with_rows(words, _rows(triplets)) if triplets is not None else _composed(words)
    if not config.train.steps:
        raise UserError("train.steps=0: there is nothing to train; Embedder.base gives a base model")

    def on_row(row: dict) -> None:
        for callback in called:
            callback(row)

    inputs = InputCache()
    runner.run(config, inputs, on_row, alone=False)
    return Embedder.load(runner.result_of(config, inputs))


def _composed(settings: list[str] | Config) -> Config:
    return settings if isinstance(settings, Config) else compose_config(settings)


def _words(settings: Iterable[str]) -> list[str]:
    """Settings as a list."""
    return _listed(settings, "settings are a list of texts such as ['lr=1e-3']", lambda each: isinstance(each, str))


def _functions(callbacks: Iterable[RowCallback]) -> list[RowCallback]:
    """Callbacks as a list."""
    return _listed(callbacks, "callbacks are a list of functions such as [print]", callable)


def _rows(triplets: Iterable[Row]) -> Iterable[Row]:
    """What gives rows, one after the other; they are read when the settings are known to be right."""
    if isinstance(triplets, (str, bytes, Mapping)) or not isinstance(triplets, Iterable):
        raise UserError(f"triplets are a list of rows, not {described(triplets)}; {_FORM}")
    return triplets


def _listed(given: Any, rule: str, fits: Callable[[Any], bool]) -> list[Any]:
    """The members of a list, or of whatever gives them, perhaps only once, one after the other."""
    many = isinstance(given, Iterable) and not isinstance(given, (str, bytes, Mapping))
    known = list(given) if many else given
    if not many or not all(map(fits, known)):
        raise UserError(f"{rule}, not {'None' if known is None else described(known)}")
    return known


def _with_rows(settings: list[str] | Config, triplets: Iterable[Row]) -> Config:
    """The settings, trained on these rows."""
    if isinstance(settings, Config):
        raise UserError("triplets go with a list of settings; a whole configuration names its own data")
    twice = [each for each in settings if each.partition("=")[0].lstrip("+~") in _OF_ROWS]
    if twice:
        raise UserError(f"{twice[0]} names rows, and triplets are rows too; leave one out")
    _composed(settings)  # what is wrong with them is wrong before any row is looked at
    rows = [_row(number, row) for number, row in enumerate(triplets, start=1)]
    if not rows:
        raise UserError("triplets: there are none")
    with_negatives = [bool(row.negatives) for row in rows]
    if len(set(with_negatives)) > 1:
        raise UserError(
            f"triplets: row {with_negatives.index(False) + 1} has no negatives, and row "
            f"{with_negatives.index(True) + 1} has; give all rows some, or none"
        )
    data = ["data=files", f"data.negative_columns=[{'hard_neg' if all(with_negatives) else ''}]"]
    if not all(with_negatives):
        data.append("loss=in_batch")
    outputs = Path(_composed([*data, "data.train=rows.jsonl", *settings]).outputs)
    return _composed([*data, unquoted("data.train", str(_kept(rows, outputs))), *settings])


def _row(number: int, row: Row) -> Triplet:
    """A row as a triplet, its texts checked."""
    texts: list[Any]
    if isinstance(row, Mapping):
        odd = sorted(set(map(str, row)) - set(_ROLES))
        if odd or not {"anchor", "positive"} <= set(row):
            raise UserError(f"triplets: row {number} has the keys {', '.join(map(str, row)) or 'none'}; {_FORM}")
        negatives = row.get("negatives") or ()
        listed = negatives if isinstance(negatives, Sequence) and not isinstance(negatives, str) else [negatives]
        texts = [row["anchor"], row["positive"], *listed]
    elif isinstance(row, Triplet):
        texts = [row.anchor, row.positive, *row.negatives]
    elif isinstance(row, Sequence) and not isinstance(row, (str, bytes)) and len(row) > 1:
        texts = list(row)
    else:
        raise UserError(f"triplets: row {number} is {described(row)}; {_FORM}")
    for text in texts:
        problem = problem_of(text) if isinstance(text, str) else f"is {'None' if text is None else described(text)}"
        if problem:
            raise UserError(f"triplets: a text of row {number} {problem}")
    return Triplet(texts[0], texts[1], tuple(texts[2:]))


_FORM = "a row is (anchor, positive, negative, ...), or has the keys anchor, positive and negatives"


def _entry(row: Triplet) -> dict[str, Any]:
    """A row as a file has it."""
    negatives = {"hard_neg": list(row.negatives)} if row.negatives else {}
    return {"sent0": row.anchor, "sent1": row.positive} | negatives


def _kept(rows: Sequence[Triplet], outputs: Path) -> Path:
    """The rows as a file, named by their content; one that was changed since is written anew."""
    path = outputs / _ROWS / f"rows-{digest([list(row) for row in rows])}.jsonl"
    content = "".join(json.dumps(_entry(row), ensure_ascii=False) + "\n" for row in rows).encode()
    if not path.exists() or path.read_bytes() != content:
        with atomic_write(path) as scratch:
            scratch.write_bytes(content)
    return path
