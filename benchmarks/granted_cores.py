"""A training step in a control group with the time of half of the cores: as many threads as are granted, or as seen.

    python benchmarks/granted_cores.py                                 # on docstrings; as root, on Linux
    python benchmarks/granted_cores.py --triplets nli.jsonl.gz

Two processes train the same model on the same batch in the same group, taking turns: one with as many threads as cft
starts there, one with a thread for every core, as torch is by itself. Containers are held to their share in this way.
"""

import argparse
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from publish import Comparison, Found, publish
from shared_cores import CFT, Side, command_of, passed_on, rounds, step_arguments

EVERY = "a thread for every core"
PERIOD = 100_000  # microseconds, the system's default

# Where the system keeps its groups, by version, and how the limit is written there.
GROUPS = {1: Path("/sys/fs/cgroup/cpu"), 2: Path("/sys/fs/cgroup")}


@contextmanager
def group_with(cores: int) -> Iterator[Path]:
    """A control group whose processes have the time of so many cores between them."""
    version = 2 if (GROUPS[2] / "cgroup.controllers").exists() else 1
    folder = GROUPS[version] / f"cft-{os.getpid()}"
    try:
        folder.mkdir()
    except OSError as error:
        raise SystemExit(f"no control group can be made ({error}): run this as root on Linux") from error
    try:
        if version == 2:
            (folder / "cpu.max").write_text(f"{cores * PERIOD} {PERIOD}")
        else:
            (folder / "cpu.cfs_period_us").write_text(f"{PERIOD}")
            (folder / "cpu.cfs_quota_us").write_text(f"{cores * PERIOD}")
        yield folder
    finally:
        folder.rmdir()


def main() -> None:
    """Measure both sides and publish their table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0], parents=[step_arguments()])
    given = parser.parse_args()
    seen = os.cpu_count() or 1
    if seen < 2:
        raise SystemExit("one core cannot be halved")
    with group_with(seen // 2) as folder:

        def enter() -> None:
            (folder / "cgroup.procs").write_text(f"{os.getpid()}")

        settings = {CFT: {}, EVERY: {"OMP_NUM_THREADS": f"{seen}"}}
        sides = {name: Side(setting, passed_on(given), enter) for name, setting in settings.items()}
        try:
            times, losses = rounds(sides, given.repeats)
        finally:
            for side in sides.values():
                side.process.kill()
                side.process.wait()
    assert max(losses) - min(losses) <= 1e-3, losses  # another number of threads adds in another order
    table: list[tuple[str, ...]] = [("threads", "a training step")]
    table += [(name, f"{times[name] / times[CFT]:.2f}") for name in sides]
    publish(
        "granted_cores",
        Found(
            title="Where fewer cores are granted than seen",
            command=command_of("granted_cores.py", given, parser),
            table=table,
            comparisons=[
                Comparison(
                    f"training step of {given.model}, {given.batch} triplets, {seen // 2} of {seen} cores granted",
                    EVERY,
                    times[EVERY] / times[CFT],
                )
            ],
            notes=[
                f"Times, cft's = 1; medians of {given.repeats} turns in a control group that grants half of the cores."
            ],
        ),
    )


if __name__ == "__main__":
    main()
