"""Training triplets and development data: loaded, shuffled, split and named by content."""

import logging
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from cft.config.schema import DataSettings, DataSource
from cft.data import scenes
from cft.data.arrow_cache import Corpus, Rows, open_corpus
from cft.data.files import BadRows, read_scored_pairs, stream_triplets
from cft.data.records import ScoredPair, Triplet, content_digest, require_rankable
from cft.data.sts import DEV_SET, load_hub_set
from cft.system.errors import UserError
from cft.system.hub import OFFLINE_HINT, hub_answers
from cft.system.overrides import override

log = logging.getLogger(__name__)

NLI_REPOSITORY = "princeton-nlp/datasets-for-simcse"
NLI_FILE = "nli_for_simcse.csv"

# A small file keeps at least nine tenths of its rows for training.
_LARGEST_HOLDOUT_SHARE = 10

_SCENES_TRIPLETS = 5000
_SCENES_DEV_PAIRS = 200


@dataclass(frozen=True)
class TrainingData:
    """Triplets to train on, and what evaluates the training while it runs."""

    triplets: Sequence[Triplet]  # to train on, in memory or on disk
    holdout: list[Triplet]  # kept out of training
    dev: list[ScoredPair]  # development pairs, perhaps none
    content: str  # digest of all three
    skipped: int  # how many bad rows were left out


def load_training_data(settings: DataSettings, *, seed: int) -> TrainingData:
    """Load triplets, set the holdout aside and load the development pairs.

    Args:
        settings: conf/data.
        seed: of the scenes, and of the choice of held-out rows.

    Raises:
        UserError: naming the file and row, or the hub file that is neither on this machine nor to be had.
    """
    skipped = 0
    if settings.source is DataSource.scenes:
        rows: Sequence[Triplet] = scenes.triplets("train", settings.rows or _SCENES_TRIPLETS, seed)
        holdout = scenes.triplets("dev", settings.holdout, seed)
        dev = scenes.graded_pairs("dev", _SCENES_DEV_PAIRS, seed)
    else:
        corpus = _open_triplets(settings)
        skipped = corpus.skipped
        rows, holdout = _hold_out(corpus.rows[: settings.rows], settings.holdout, seed)
        dev = _read_dev(settings)
    return TrainingData(rows, holdout, dev, content=content_digest(rows, holdout, dev), skipped=skipped)


def _open_triplets(settings: DataSettings) -> Corpus:
    path = _hub_file(settings) if settings.source is DataSource.hub else Path(str(settings.train)).expanduser()
    anchor, positive, negatives = settings.anchor_column, settings.positive_column, list(settings.negative_columns)
    bad = BadRows(settings.on_bad_row)
    corpus = open_corpus(
        path,
        # the file's name is in messages, and its ending says how it is read
        [path.name, anchor, positive, negatives, bad],
        lambda: stream_triplets(path, anchor=anchor, positive=positive, negatives=negatives, on_bad_row=bad),
    )
    for row in corpus.reasons:
        log.warning("skipped %s: %s", row.where, row.reason)
    if corpus.skipped > len(corpus.reasons):
        log.warning("skipped %d more bad rows", corpus.skipped - len(corpus.reasons))
    return corpus


def _hub_file(settings: DataSettings) -> Path:
    from huggingface_hub import hf_hub_download
    from huggingface_hub.errors import HfHubHTTPError

    try:
        local = not hub_answers()
        path = hf_hub_download(
            NLI_REPOSITORY, NLI_FILE, repo_type="dataset", revision=settings.revision, local_files_only=local
        )
    except (OSError, HfHubHTTPError) as error:
        raise UserError(
            f"data={settings.name}: {NLI_REPOSITORY}/{NLI_FILE} is not on this machine and the hub does not answer; "
            f"{OFFLINE_HINT}"
        ) from error
    return Path(path)


def _hold_out(rows: Rows, count: int, seed: int) -> tuple[Rows, list[Triplet]]:
    """Set aside `count` random rows, or a tenth of all if that is fewer; the others keep their order."""
    count = min(count, len(rows) // _LARGEST_HOLDOUT_SHARE)
    held = np.sort(np.random.default_rng([seed, 1]).permutation(len(rows))[:count])
    return rows.select(np.delete(np.arange(len(rows)), held)), list(rows.select(held))


def _read_dev(settings: DataSettings) -> list[ScoredPair]:
    if settings.dev is None:
        return []
    if settings.dev == DEV_SET.name:
        return load_hub_set(DEV_SET)
    pairs = read_scored_pairs(Path(settings.dev).expanduser(), key="data.dev")[0]
    require_rankable([pair.score for pair in pairs], override("data.dev", settings.dev))
    return pairs


def batches(count: int, batch_size: int, *, seed: int, start: int, stop: int) -> Iterator[np.ndarray]:
    """Row numbers of the batches of steps `start` to `stop`, which depend on the seed and the step alone.

    Each epoch is a new shuffle; the rows behind its last full batch are dropped.

    Yields:
        (batch_size,) row numbers below `count`.
    """
    per_epoch = count // batch_size
    order, shuffled = np.empty(0, dtype=np.int64), -1
    for step in range(start, stop):
        epoch, batch = divmod(step, per_epoch)
        if epoch != shuffled:
            order, shuffled = np.random.default_rng([seed, 0, epoch]).permutation(count), epoch
        yield order[batch * batch_size : (batch + 1) * batch_size]
