"""Training triplets and development data: loaded, shuffled, split and named by content."""

import hashlib
import itertools
import logging
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from cft.config.schema import DataSettings, DataSource
from cft.data import scenes
from cft.data.arrow_cache import Corpus, Rows, open_corpus
from cft.data.files import BadRows, read_scored_pairs, stream_triplets
from cft.data.records import ScoredPair, Triplet, require_rankable
from cft.data.sts import DEV_SET, load_hub_set
from cft.system.digest import DIGEST_LENGTH, canonical
from cft.system.errors import UserError
from cft.system.hub import OFFLINE_HINT, hub_answers

log = logging.getLogger(__name__)

NLI_REPOSITORY = "princeton-nlp/datasets-for-simcse"
NLI_FILE = "nli_for_simcse.csv"

# A small file keeps at least nine tenths of its rows for training.
_LARGEST_HOLDOUT_SHARE = 10

# Rows that are named by their content at one time.
_BLOCK = 10_000

_SCENES_TRIPLETS = 5000
_SCENES_DEV_PAIRS = 200


@dataclass(frozen=True)
class TrainingData:
    """What a training eats and is watched with.

    triplets: to train on, in memory or on disk. holdout: triplets kept out of training. dev: scored pairs for
    in-training evaluation, perhaps none. content: digest of all of it. skipped: how many bad rows were left out.
    """

    triplets: Sequence[Triplet]
    holdout: list[Triplet]
    dev: list[ScoredPair]
    content: str
    skipped: int


def load_training_data(settings: DataSettings, *, seed: int) -> TrainingData:
    """Load triplets, set the holdout aside and load the development pairs.

    Args:
        settings: conf/data.
        seed: draws the scenes and which rows are held out.

    Raises:
        UserError: naming the file and row, or the hub file that cannot be had.
    """
    if settings.source is DataSource.scenes:
        rows: Sequence[Triplet] = scenes.triplets("train", settings.rows or _SCENES_TRIPLETS, seed)
        skipped = 0
        holdout = scenes.triplets("dev", settings.holdout, seed)
        dev = scenes.graded_pairs("dev", _SCENES_DEV_PAIRS, seed)
    else:
        corpus = _open_triplets(settings)
        skipped = corpus.skipped
        rows, holdout = _hold_out(corpus.rows[: settings.rows], settings.holdout, seed)
        dev = _read_dev(settings)
    return TrainingData(rows, holdout, dev, content=_content(rows, holdout, dev), skipped=skipped)


def _content(*parts: Sequence[Any]) -> str:
    """What `digest` gives for a list of these lists, without ever holding a text of all of them."""
    state = hashlib.sha256()
    for number, part in enumerate(parts):
        state.update(b"[[" if number == 0 else b",[")
        rows = iter(part)
        for start in itertools.count():
            block = list(itertools.islice(rows, _BLOCK))
            if not block:
                break
            state.update((b"," if start else b"") + canonical(block).encode()[1:-1])
        state.update(b"]")
    state.update(b"]")
    return state.hexdigest()[:DIGEST_LENGTH]


def _open_triplets(settings: DataSettings) -> Corpus:
    path = _hub_file(settings) if settings.source is DataSource.hub else Path(str(settings.train)).expanduser()
    anchor, positive, negatives = settings.anchor_column, settings.positive_column, list(settings.negative_columns)
    bad = BadRows(settings.on_bad_row)
    found = open_corpus(
        path,
        # the file's name is told in messages, and its ending says how it is read
        [path.name, anchor, positive, negatives, bad],
        lambda: stream_triplets(path, anchor=anchor, positive=positive, negatives=negatives, on_bad_row=bad),
    )
    for row in found.reasons:
        log.warning("skipped %s: %s", row.where, row.reason)
    if found.skipped > len(found.reasons):
        log.warning("skipped %d more bad rows", found.skipped - len(found.reasons))
    return found


def _hub_file(settings: DataSettings) -> Path:
    from huggingface_hub import hf_hub_download
    from huggingface_hub.errors import HfHubHTTPError

    try:
        return Path(
            hf_hub_download(
                NLI_REPOSITORY,
                NLI_FILE,
                repo_type="dataset",
                revision=settings.revision,
                local_files_only=not hub_answers(),
            )
        )
    except (OSError, HfHubHTTPError) as error:
        raise UserError(
            f"data={settings.name}: {NLI_REPOSITORY}/{NLI_FILE} is not on this machine and the hub does not answer; "
            f"{OFFLINE_HINT}"
        ) from error


def _hold_out(rows: Rows, count: int, seed: int) -> tuple[Rows, list[Triplet]]:
    """Set aside `count` rows, or a tenth of all if that is fewer; the rest keep their order."""
    count = min(count, len(rows) // _LARGEST_HOLDOUT_SHARE)
    held = np.sort(np.random.default_rng([seed, 1]).permutation(len(rows))[:count])
    return rows.select(np.delete(np.arange(len(rows)), held)), list(rows.select(held))


def _read_dev(settings: DataSettings) -> list[ScoredPair]:
    if settings.dev is None:
        return []
    if settings.dev == DEV_SET.name:
        return load_hub_set(DEV_SET)
    pairs = read_scored_pairs(Path(settings.dev).expanduser(), key="data.dev")[0]
    require_rankable([pair.score for pair in pairs], f"data.dev={settings.dev}")
    return pairs


def batches(count: int, batch_size: int, *, seed: int, start: int, stop: int) -> Iterator[np.ndarray]:
    """Row numbers of the batches of steps `start` to `stop`, a function of the seed and the step alone.

    Each epoch is a new shuffle; what is left of an epoch after its last full batch is dropped.

    Yields:
        (batch_size,) row numbers below `count`.
    """
    per_epoch = count // batch_size
    order, shuffled = np.empty(0, dtype=np.int64), -1
    for step in range(start, stop):
        epoch, place = divmod(step, per_epoch)
        if epoch != shuffled:
            order, shuffled = np.random.default_rng([seed, 0, epoch]).permutation(count), epoch
        yield order[place * batch_size : (place + 1) * batch_size]
