"""Run studies: `python -m cft.study run|retry|plan|pack EXPERIMENT... [--scale SCALE] [KEY=VALUE ...]`.

A study is a file in experiments/ (each table and figure of the paper is one) laid out at a scale. Its plan is frozen
when it starts; what is done, by this study or by any other job, is not done again.
"""

import argparse
import logging
import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from cft.config.compose import compose_config
from cft.study import spec
from cft.study.arguments import add_arguments, outputs_of, split_arguments
from cft.system.console import USER_ERROR_STATUS, exit_statuses, set_up_console
from cft.system.errors import UserError

if TYPE_CHECKING:
    from cft.study.plan import Study

log = logging.getLogger("cft.study")  # not __name__, which is __main__ when this is the command


def main() -> None:
    """Run the command line and end with status 0, 1 (a defect), 2 (a cell failed or the user can mend it) or 130."""
    set_up_console()
    arguments = _parser().parse_intermixed_args()
    with exit_statuses("the same command goes on from there"):
        sys.exit(_main(arguments))


def _parser() -> argparse.ArgumentParser:
    named = [*spec.available(), *spec.available_beside()]
    parser = argparse.ArgumentParser(
        prog="python -m cft.study",
        description="Run studies: every table and figure of the paper, or a file of your own.",
        epilog=f"experiments: {', '.join(named)}; scales: {', '.join(spec.scales())}",
    )
    parser.add_argument(
        "command",
        choices=("run", "retry", "plan", "pack"),
        help="retry: only what failed; plan: only say; pack: copy the records that reports are made of",
    )
    add_arguments(parser)
    parser.add_argument("--seeds", default="", metavar="S,S,...", help="train every cell with each of these seeds")
    parser.add_argument("--to", type=Path, metavar="FOLDER", help="where pack copies the records to")
    parser.add_argument("--replan", action="store_true", help="take the files as they are now, not the frozen plan")
    parser.add_argument(
        "--launcher", metavar="NAME", help="run cells through a Hydra launcher: joblib, submitit_local, submitit_slurm"
    )
    return parser


def _main(arguments: argparse.Namespace) -> int:
    if int(os.environ.get("WORLD_SIZE", "1")) > 1:
        raise UserError("a study runs its jobs one by one, or side by side with --launcher; torchrun is for cft.run")
    names, overrides = split_arguments(arguments.what)
    if not names:
        raise UserError(f"name an experiment: {', '.join(spec.available())}, all, or a .yaml file")
    if arguments.command == "pack":
        return _pack(names, arguments, overrides)
    launcher_overrides = [entry for entry in overrides if entry.startswith("hydra.")]
    overrides = [entry for entry in overrides if not entry.startswith("hydra.")]
    seeds = _seeds(arguments.seeds)
    studies = [_study(name, arguments, overrides, seeds) for name in names]
    studies = [study for study in studies if study.runs]
    from cft.study import runner  # torch takes seconds to import, and a typo should be told before

    missing = 0
    if studies:
        missing = runner.run(
            studies,
            only_failed=arguments.command == "retry",
            dry_run=arguments.command == "plan",
            launcher=arguments.launcher,
            launcher_overrides=launcher_overrides,
        )
    if arguments.command != "plan":
        from cft.study import report

        document, page = report.write([*dict.fromkeys(names)], arguments.scale, overrides)
        sys.stdout.write(report.render(document, "text") + f"\nreport: {page}\n")
    return USER_ERROR_STATUS if missing else 0


def _pack(names: list[str], arguments: argparse.Namespace, overrides: list[str]) -> int:
    from cft.study import pack, plan

    if arguments.to is None:
        raise UserError("name the folder that the records go to: --to FOLDER")
    outputs = outputs_of(overrides)
    studies = []
    for name in names:
        experiment = spec.load(name, arguments.scale, overrides, check_inputs=False)
        if experiment.layout != "config":
            study_name = f"{experiment.name}-{experiment.scale}"
            frozen = plan.load(plan.study_folder(outputs, study_name))
            if frozen is None:
                raise UserError(f"{study_name} was never run under {outputs}/: there is nothing to pack")
            studies.append(frozen)
    size = pack.pack(studies, arguments.to)
    many = "study" if len(studies) == 1 else "studies"
    sys.stdout.write(f"{len(studies)} {many}, {size / 1e6:.1f} MB of records in {arguments.to}\n")
    return 0


def _seeds(text: str) -> list[int]:
    try:
        return [int(entry) for entry in text.split(",") if entry.strip()]
    except ValueError as error:
        raise UserError(f"--seeds {text}: must be whole numbers with commas between, as in 1,2,3") from error


def _study(name: str, arguments: argparse.Namespace, overrides: list[str], seeds: list[int]) -> "Study":
    """A study as it was frozen when it started, or frozen now."""
    from cft.study import plan

    experiment = spec.load(name, arguments.scale, overrides)
    fresh = plan.compose_study(experiment, overrides, seeds, compose_config)
    if not fresh.runs:
        return fresh
    folder = plan.study_folder(fresh.outputs, fresh.name)
    frozen = plan.load(folder)
    changed = plan.differences(frozen, fresh) if frozen else []
    if frozen and changed and not arguments.replan:
        if any(plan.state_of(frozen.outputs, run).state != plan.DONE for run in frozen.runs):
            log.info(
                "%s: going on with the plan that was frozen when it started; the files or the command line now say "
                "other things for: %s (--replan takes those)",
                fresh.name,
                ", ".join(changed),
            )
            return frozen
    if arguments.command != "plan":
        fresh.save(folder)
    return fresh


if __name__ == "__main__":
    main()
