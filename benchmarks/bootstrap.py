"""The verdict on two embedders over nine sets of the STS sets' sizes: this package against a loop over scipy.

    python benchmarks/bootstrap.py

Both sides draw the same counts; their scores are compared before anything is timed.
"""

import time

import numpy as np
from publish import Comparison, Found, publish
from scipy.stats import spearmanr

from cft.evaluation.bootstrap import _CHUNK, _Set, resample

SIZES = {"STS12": 3108, "STS13": 1500, "STS14": 3750, "STS15": 3000, "STS16": 1186, "STS17": 250}
SIZES |= {"STSBenchmark": 1379, "BIOSSES": 100, "SICK-R": 9927}
RESAMPLES = 10_000
SCIPY_RESAMPLES = 20


def main() -> None:
    """Time both sides and publish their ratio."""
    generator = np.random.default_rng(0)
    scores = {name: np.round(generator.uniform(0, 5, size), 1) for name, size in SIZES.items()}
    systems = [
        [{name: (gold + generator.normal(0, noise, len(gold))).astype(np.float32) for name, gold in scores.items()}]
        for noise in (1.0, 1.1)
    ]
    starts = np.cumsum([0, *SIZES.values()])
    identity = {name: np.arange(size) + start for (name, size), start in zip(SIZES.items(), starts, strict=False)}

    largest = 0.0
    scipy_seconds = 0.0
    for _ in range(SCIPY_RESAMPLES):
        for name, gold in scores.items():
            counts = generator.poisson(1.0, len(gold))
            ours = _Set(gold, [[system[0][name]] for system in systems]).spearman(counts[:, None].astype(np.float32))
            began = time.perf_counter()
            rows = np.repeat(np.arange(len(gold)), counts)
            theirs = [100 * spearmanr(system[0][name][rows], gold[rows]).statistic for system in systems]
            scipy_seconds += time.perf_counter() - began
            largest = max(largest, float(np.abs(ours[:, 0] - theirs).max()))
    assert largest < 1e-3, f"the two sides differ by {largest} points"

    began = time.perf_counter()
    resample(systems, scores, identity, resamples=RESAMPLES)
    seconds = time.perf_counter() - began
    theirs_seconds = scipy_seconds / SCIPY_RESAMPLES * RESAMPLES
    ratio = theirs_seconds / seconds
    pairs = sum(SIZES.values())
    publish(
        "bootstrap",
        Found(
            title="Confidence intervals",
            command="python benchmarks/bootstrap.py",
            table=[("side", "resamples timed", "time a resample, cft's = 1")]
            + [("cft", str(RESAMPLES), "1.00"), ("a loop over scipy", str(SCIPY_RESAMPLES), f"{ratio:.2f}")],
            comparisons=[Comparison(f"{RESAMPLES:,} resamples of nine sets", "a loop over scipy's spearmanr", ratio)],
            notes=[
                f"{pairs:,} pairs in {len(SIZES)} sets, two embedders, {_CHUNK} resamples at a time. Largest "
                f"difference of a score: {largest:.0e} points."
            ],
        ),
    )


if __name__ == "__main__":
    main()
