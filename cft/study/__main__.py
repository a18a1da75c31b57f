"""Run studies: `python -m cft.study run|retry|plan|pack EXPERIMENT... [scale=SCALE] [KEY=VALUE ...]`.

A study is a file in experiments/ (each table and figure of the paper is one) laid out at a scale. Its plan is frozen
when it starts; what is done, by this study or by any other job, is not done again.
"""

import logging
import os
import sys
from dataclasses import KW_ONLY, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

from cft.config.command_line import CommandLine
from cft.study import spec
from cft.study.arguments import StudyOptions, outputs_of
from cft.system.console import USER_ERROR_STATUS
from cft.system.errors import UserError
from cft.system.overrides import override, overrides

if TYPE_CHECKING:
    from cft.study.plan import Study

log = logging.getLogger("cft.study")  # not __name__, which is __main__ when this is the command


@dataclass(frozen=True)
class RunOptions(StudyOptions):
    """Run studies: every table and figure of the paper, or a file of your own."""

    command: Annotated[
        Literal["run", "retry", "plan", "pack"],
        "run; retry: only what failed; plan: only say; pack: copy the records that reports are made of",
    ]
    _: KW_ONLY
    seeds: Annotated[list[int], "train every cell with each of these, as in 1,2,3"] = field(default_factory=list)
    to: Annotated[Path | None, "the folder that pack copies the records to"] = None
    replan: Annotated[bool, "take the files as they are now, not the frozen plan"] = False
    launcher: Annotated[str | None, "run cells through a Hydra launcher: joblib, submitit_local, submitit_slurm"] = None

    def __post_init__(self) -> None:
        """Refuse what this command would not read."""
        if self.to is not None and self.command != "pack":
            raise UserError(f"{override('to', self.to)} would not be read by {self.command}: it goes with pack")
        of_runs = {"seeds": self.seeds, "replan": self.replan, "launcher": self.launcher}
        unread = {key: value for key, value in of_runs.items() if value}
        if self.command == "pack" and unread:
            raise UserError(f"{overrides(unread)} would not be read by pack, which copies what was run")
        of_hydra = [entry for entry in self.overrides if entry.startswith("hydra.")]
        if of_hydra and not self.launcher:
            raise UserError(
                f"{' '.join(of_hydra)} would not be read without a launcher: add launcher=joblib, or another"
            )


def main() -> None:
    """Run the command line; the status is 2 if a cell failed."""
    command = CommandLine("cft.study", RunOptions, example="run table4 scale=smoke seeds=1,2", notes=_choices())
    command.run(lambda options: sys.exit(_run(options)), "the same command goes on from there")


def _choices() -> str:
    experiments = ", ".join([*spec.available(), *spec.available_beside()])
    return f"experiments: {experiments}; scales: {', '.join(spec.scales())}"


def _run(options: RunOptions) -> int:
    """Carry out the command; returns the exit status."""
    if int(os.environ.get("WORLD_SIZE", "1")) > 1:
        raise UserError("a study runs its jobs one by one, or side by side with --launcher; torchrun is for cft.run")
    names = options.names
    if not names:
        raise UserError(f"name an experiment: {', '.join(spec.available())}, all, or a .yaml file")
    if options.command == "pack":
        return _pack(names, options)
    launcher_overrides = [entry for entry in options.overrides if entry.startswith("hydra.")]
    overrides = [entry for entry in options.overrides if not entry.startswith("hydra.")]
    studies = [_study(name, options, overrides) for name in names]
    studies = [study for study in studies if study.runs]
    from cft.study import runner  # torch takes seconds to import, and a typo should be told before

    missing = 0
    if studies:
        missing = runner.run(
            studies,
            only_failed=options.command == "retry",
            dry_run=options.command == "plan",
            launcher=options.launcher,
            launcher_overrides=launcher_overrides,
        )
    if options.command != "plan":
        from cft.study import report

        document, page = report.write([*dict.fromkeys(names)], options.scale, overrides)
        sys.stdout.write(report.render(document, "text") + f"\nreport: {page}\n")
    return USER_ERROR_STATUS if missing else 0


def _pack(names: list[str], options: RunOptions) -> int:
    from cft.study import pack, plan

    if options.to is None:
        raise UserError("name the folder that the records go to: --to FOLDER")
    studies = []
    for name in names:
        experiment = spec.load(name, options.scale, options.overrides, check_inputs=False)
        if experiment.layout != "config":
            study_name = f"{experiment.name}-{experiment.scale}"
            outputs = outputs_of(experiment.cells[0].overrides)
            frozen = plan.load(plan.study_folder(outputs, study_name))
            if frozen is None:
                raise UserError(f"{study_name} was never run under {outputs}/: there is nothing to pack")
            studies.append(frozen)
    size = pack.pack(studies, options.to)
    noun = "study" if len(studies) == 1 else "studies"
    sys.stdout.write(f"{len(studies)} {noun}, {size / 1e6:.1f} MB of records in {options.to}\n")
    return 0


def _study(name: str, options: RunOptions, overrides: list[str]) -> "Study":
    """A study as it was frozen when it started, or frozen now."""
    from cft.config.compose import compose_config
    from cft.study import plan

    experiment = spec.load(name, options.scale, overrides)
    fresh = plan.compose_study(experiment, overrides, options.seeds, compose_config)
    if not fresh.runs:
        return fresh
    folder = plan.study_folder(fresh.outputs, fresh.name)
    frozen = plan.load(folder)
    changed = plan.differences(frozen, fresh) if frozen else []
    if frozen and changed and not options.replan:
        done = all(plan.state_of(frozen.outputs, run).state == plan.DONE for run in frozen.runs)
        log.info(
            "%s: %s; the files or the command line now say other things for: %s (--replan takes those)",
            fresh.name,
            "finished by the plan that was frozen when it started"
            if done
            else "going on with the plan that was frozen when it started",
            ", ".join(changed),
        )
        return frozen
    if options.command != "plan":
        fresh.save(folder)
    return fresh


if __name__ == "__main__":
    main()
