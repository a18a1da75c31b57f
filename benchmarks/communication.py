"""What travels between GPUs at a training step, computed, against the time that the model's own arithmetic takes.

    python benchmarks/communication.py

Nothing is measured: bytes follow from the algorithm (docs/scaling.md), times from the rates below.
"""

from cft.system.tables import as_markdown

WIDTH, TRAINED, WEIGHTS = 2304, 2_949_120, 2_450_000_000  # MiniCPM-2B: hidden size, LoRA weights, weights in its layers
TRIPLETS, LENGTH, NEGATIVES = 64, 18, 1  # a GPU's share of the batch, tokens of a text, hard negatives a triplet
RATE = 0.5 * 989e12  # half of an H100's or H200's dense bfloat16 rate
LINKS = {8: 450e9, 1024: 50e9}  # bytes a second of a GPU: NVLink within a machine of 8, 400 Gb/s between machines


def main() -> None:
    """Print the table, a row a number of GPUs."""
    tokens = TRIPLETS * (2 + NEGATIVES) * LENGTH
    # Forward, and backward with respect to activations alone: the weights are frozen.
    compute = 4 * WEIGHTS * tokens / RATE
    rows = [("GPUs", "batch", "vectors, MB", "their gradients, MB", "LoRA, MB", "all, ms", "of computing")]
    for gpus in (8, 16, 32, 64, 128, 256, 512, 1024):
        link = next(rate for most, rate in LINKS.items() if gpus <= most)
        other = (gpus - 1) / gpus
        candidates = 4 * (1 + NEGATIVES) * TRIPLETS * gpus * WIDTH
        # An all-gather brings everybody else's; an all-reduce sends and receives all but its own part, twice.
        sizes = [other * candidates, 2 * other * candidates, 2 * other * 4 * TRAINED]
        seconds = sum(sizes) / link
        rows.append(
            (
                str(gpus),
                f"{TRIPLETS * gpus:,}",
                *(f"{size / 1e6:,.0f}" for size in sizes),
                f"{1e3 * seconds:.1f}",
                f"{seconds / compute:.0%}",
            )
        )
    print(f"computing: {1e3 * compute:.0f} ms a step\n\n{as_markdown(rows)}")


if __name__ == "__main__":
    main()
