"""A training step alone and beside a busy process, by how long OpenMP's threads turn before they sleep.

    python benchmarks/shared_cores.py                                 # on docstrings of installed packages
    python benchmarks/shared_cores.py --triplets nli.jsonl.gz

Two processes train the same model on the same batch: one as cft sets GNU's OpenMP, one as that library is by default.
They take turns, first with the machine to themselves, then beside one process that keeps one core busy.
"""

import argparse
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Callable

from publish import Comparison, Found, publish

CFT, DEFAULT = "cft", "OpenMP's default"
# 300,000 turns is what GNU's OpenMP takes where nothing is set (GOMP_SPINCOUNT in libgomp's manual).
SETTINGS: dict[str, dict[str, str]] = {CFT: {}, DEFAULT: {"GOMP_SPINCOUNT": "300000"}}


def work(model: str, triplets: str | None, batch: int) -> None:
    """In a child: a training step for each line that comes in; its loss and seconds go out."""
    from training_step import batch_of, ours

    settings, rows = batch_of(model, triplets)
    step, embedder = ours(settings, rows[:batch])
    embedder.model.eval()
    step()
    print("ready", flush=True)
    for _ in sys.stdin:
        began = time.perf_counter()
        loss = step()
        print(f"{loss:.6f} {time.perf_counter() - began:.6f}", flush=True)


class Side:
    """One process that takes steps when it is asked to.

    Args:
        setting: of OpenMP and others, in place of all of OpenMP's that is set here. arguments: of the child.
        enter: what the child calls first. script: that the child runs with --child.
    """

    def __init__(
        self,
        setting: dict[str, str],
        arguments: list[str],
        enter: Callable[[], None] | None = None,
        script: str = __file__,
    ) -> None:
        # OMP_WAIT_POLICY would outrank the number of turns on both sides.
        environment = {name: value for name, value in os.environ.items() if not name.startswith(("OMP_", "GOMP_"))}
        command = [sys.executable, script, "--child", *arguments]
        pipe = subprocess.PIPE
        self.process = subprocess.Popen(
            command, stdin=pipe, stdout=pipe, text=True, env=environment | setting, preexec_fn=enter
        )
        self._line()

    def _line(self) -> str:
        assert self.process.stdout is not None
        line = self.process.stdout.readline()
        assert line, "the side's process has ended; what it wrote stands above"
        return line

    def step(self) -> tuple[float, float]:
        """Loss and seconds of one step."""
        assert self.process.stdin is not None
        self.process.stdin.write("step\n")
        self.process.stdin.flush()
        loss, seconds = self._line().split()
        return float(loss), float(seconds)


def rounds(sides: dict[str, Side], repeats: int) -> tuple[dict[str, float], set[float]]:
    """Median seconds of each side's steps, taking turns, and every loss that was found."""
    times: dict[str, list[float]] = {name: [] for name in sides}
    losses = set()
    for _ in range(repeats):
        for name, side in sides.items():
            loss, seconds = side.step()
            times[name].append(seconds)
            losses.add(round(loss, 4))
    return {name: statistics.median(values) for name, values in times.items()}, losses


def step_arguments() -> argparse.ArgumentParser:
    """What a benchmark of one step on such sides is told."""
    parser = argparse.ArgumentParser(add_help=False)
    parser.add_argument("--triplets", help="a file of triplets: sent0, sent1, hard_neg; docstrings without")
    parser.add_argument("--model", default="smollm2", help="a choice of conf/model")
    parser.add_argument("--batch", type=int, default=60, help="the paper's 60")
    parser.add_argument("--repeats", type=int, default=7)
    return parser


def passed_on(given: argparse.Namespace) -> list[str]:
    """What of that a side's child is told."""
    triplets = [f"--triplets={given.triplets}"] if given.triplets else []
    return [f"--model={given.model}", f"--batch={given.batch}", *triplets]


def command_of(file: str, given: argparse.Namespace, parser: argparse.ArgumentParser) -> str:
    """The command that repeats it, without anybody's paths."""
    triplets = " --triplets FILE" if given.triplets else ""
    batch = f" --batch {given.batch}" if given.batch != parser.get_default("batch") else ""
    return f"python benchmarks/{file}{triplets}{batch}"


def main() -> None:
    """Measure both sides alone and beside a busy process, and publish one table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0], parents=[step_arguments()])
    parser.add_argument("--child", action="store_true", help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.child:
        work(given.model, given.triplets, given.batch)
        return
    sides = {name: Side(setting, passed_on(given)) for name, setting in SETTINGS.items()}
    alone, losses = rounds(sides, given.repeats)
    busy = subprocess.Popen([sys.executable, "-c", "while True: pass"])
    try:
        beside, again = rounds(sides, given.repeats)
    finally:
        busy.kill()
        for side in sides.values():
            side.process.kill()
    assert len(losses | again) == 1, losses | again
    table: list[tuple[str, ...]] = [("OpenMP's waiting", "alone", "beside one busy process", "beside / alone")]
    for name in sides:
        times = alone[name] / alone[CFT], beside[name] / alone[CFT], beside[name] / alone[name]
        table.append((name, *(f"{ratio:.2f}" for ratio in times)))
    what = f"training step of {given.model}, {given.batch} triplets"
    publish(
        "shared_cores",
        Found(
            title="Beside other work",
            command=command_of("shared_cores.py", given, parser),
            table=table,
            comparisons=[
                Comparison(f"{what}, alone", DEFAULT, alone[DEFAULT] / alone[CFT], 0.97),
                Comparison(f"{what}, beside a busy process", DEFAULT, beside[DEFAULT] / beside[CFT]),
            ],
            notes=[
                f"Times, cft's alone = 1; medians of {given.repeats} turns. A process that keeps one of "
                f"{os.cpu_count()} cores busy leaves three quarters of the machine at the best.",
            ],
        ),
    )


if __name__ == "__main__":
    main()
