"""The memory and the steps of a training on a CPU by what hands out memory: the C library, or another allocator.

    python benchmarks/allocator.py --library /usr/lib/x86_64-linux-gnu/libtcmalloc_minimal.so.4
    python benchmarks/allocator.py --library ... --triplets nli.jsonl.gz      # docstrings without

Two processes train the same model on the same batches, one behind the other, and take turns, a step each. Before
version 2.38, GNU's C library leaves holes behind large aligned blocks, as tensors are, wherever small ones stand
between them (its bug 14581).
"""

import argparse
import os
import statistics
import sys
import time
from pathlib import Path

from publish import Comparison, Found, publish
from shared_cores import Side, command_of, passed_on, step_arguments

PLAIN = "the C library"


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
    parser.add_argument("--library", type=Path, help="the other allocator, which is loaded first")
    parser.set_defaults(repeats=60)
    given = parser.parse_args()
    if given.child:
        work(given.model, given.triplets, given.batch)
        return
    if not (given.library and given.library.is_file()):
        parser.error("--library must name a file, such as Debian's libtcmalloc-minimal4 or libjemalloc2 bring")
    other = given.library.name.partition(".so")[0]
    settings = {PLAIN: {"LD_PRELOAD": ""}, other: {"LD_PRELOAD": str(given.library)}}
    sides = {name: Side(setting, passed_on(given), script=__file__) for name, setting in settings.items()}
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
    header = ("memory by", "a step, of the last third", f"GiB after {first} steps", f"GiB after {given.repeats}")
    table: list[tuple[str, ...]] = [header]
    for name in sides:
        table.append((name, f"{last[name] / last[PLAIN]:.2f}", f"{early[name]:.1f}", f"{late[name]:.1f}"))
    what = f"training of {given.model}, {given.batch} triplets a step, with {other}"
    publish(
        "allocator",
        Found(
            title="Another allocator",
            command=f"{command_of('allocator.py', given, parser)} --library {given.library.name}",
            table=table,
            comparisons=[
                Comparison(f"{what}: memory after {given.repeats} steps", PLAIN, late[PLAIN] / late[other]),
                Comparison(f"{what}: time of a step", PLAIN, last[PLAIN] / last[other]),
            ],
            notes=[
                f"Times, the C library's = 1 ({os.confstr('CS_GNU_LIBC_VERSION')}). Both sides have the same losses at "
                "every step."
            ],
        ),
    )


if __name__ == "__main__":
    main()
