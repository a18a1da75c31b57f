"""The memory and the steps of a training by how the C library keeps large blocks.

    python benchmarks/allocator.py                                    # on docstrings of installed packages
    python benchmarks/allocator.py --triplets nli.jsonl.gz

Two processes train the same model on the same batches, one behind the other: one as cft sets GNU's C library, one as it
is by default before version 2.38. They take turns, a step each.
"""

import argparse
import os
import statistics
import sys
import time
from pathlib import Path

from publish import Comparison, Found, publish
from shared_cores import CFT, Side, command_of, passed_on, step_arguments

DEFAULT = "the C library's default"
# What its own threshold comes to when larger blocks were freed (DEFAULT_MMAP_THRESHOLD_MAX in its malloc.c).
SETTINGS: dict[str, dict[str, str]] = {CFT: {}, DEFAULT: {"MALLOC_MMAP_THRESHOLD_": f"{32 << 20}"}}


def work(model: str, triplets: str | None, size: int) -> None:
    """In a child: a step on the next batch for each line that comes in; its loss and seconds go out."""
    from training_step import Where, batch_of, ours

    from cft.model.precision import LEAST_GAIN, bfloat16_gain
    from cft.model.sources import fetch

    settings, rows = batch_of(model, triplets)
    batch = rows[:size]
    step, embedder = ours(settings, batch, Where(bf16=bfloat16_gain(settings, fetch(settings)) >= LEAST_GAIN))
    embedder.model.train()
    print("ready", flush=True)
    for number, _ in enumerate(sys.stdin):
        first = number * size % (len(rows) - size)
        batch[:] = rows[first : first + size]
        began = time.perf_counter()
        loss = step()
        print(f"{loss:.6f} {time.perf_counter() - began:.6f}", flush=True)


def peak(side: Side) -> float:
    """The most memory that a side has had, in GiB."""
    lines = Path(f"/proc/{side.process.pid}/status").read_text().splitlines()
    return int(next(line for line in lines if line.startswith("VmHWM:")).split()[1]) / 2**20


def main() -> None:
    """Take turns, and publish one table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0], parents=[step_arguments()])
    parser.add_argument("--child", action="store_true", help=argparse.SUPPRESS)
    parser.set_defaults(repeats=60)
    given = parser.parse_args()
    if given.child:
        work(given.model, given.triplets, given.batch)
        return
    sides = {name: Side(setting, passed_on(given), script=__file__) for name, setting in SETTINGS.items()}
    seconds: dict[str, list[float]] = {name: [] for name in sides}
    early: dict[str, float] = {}
    for turn in range(given.repeats):
        losses = set()
        for name, side in sides.items():
            loss, taken = side.step()
            losses.add(round(loss, 4))
            seconds[name].append(taken)
            if turn == given.repeats // 6:
                early[name] = peak(side)
        assert len(losses) == 1, losses
    late = {name: peak(side) for name, side in sides.items()}
    for side in sides.values():
        side.process.kill()
    last = {name: statistics.median(times[-given.repeats // 3 :]) for name, times in seconds.items()}
    first = given.repeats // 6 + 1
    header = ("large blocks", "a step, of the last third", f"GiB after {first} steps", f"GiB after {given.repeats}")
    table: list[tuple[str, ...]] = [header]
    for name in sides:
        table.append((name, f"{last[name] / last[CFT]:.2f}", f"{early[name]:.1f}", f"{late[name]:.1f}"))
    what = f"training of {given.model}, {given.batch} triplets a step"
    publish(
        "allocator",
        Found(
            title="Memory of a long training",
            command=command_of("allocator.py", given, parser),
            table=table,
            comparisons=[
                Comparison(f"{what}: memory after {given.repeats} steps", DEFAULT, late[DEFAULT] / late[CFT]),
                Comparison(f"{what}: time of a step", DEFAULT, last[DEFAULT] / last[CFT], 0.97),
            ],
            notes=[
                f"Times, cft's = 1. Both sides have the same losses at every step. {os.confstr('CS_GNU_LIBC_VERSION')}."
            ],
        ),
    )


if __name__ == "__main__":
    main()
