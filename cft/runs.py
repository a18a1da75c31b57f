"""What is under outputs/: `python -m cft.runs list|compare|remove`.

python -m cft.runs list lr=5e-4 model=smollm2      trainings, those with these settings
python -m cft.runs compare RUN RUN                 settings that differ, beside scores that differ, with verdicts
python -m cft.runs remove RUN...                   delete trainings with all their scores
"""

from dataclasses import KW_ONLY, dataclass
from pathlib import Path
from typing import Annotated, Literal

from cft.config.command_line import CommandLine
from cft.system.errors import UserError
from cft.system.tables import as_text


@dataclass(frozen=True)
class RunsOptions:
    """List trainings and their scores, compare two with verdicts, or remove trainings with all their scores."""

    command: Annotated[Literal["list", "compare", "remove"], "list, compare or remove"]
    runs: Annotated[list[str], "a folder, or the end of its name; to list, settings such as lr=5e-4 or model=phi2"]
    _: KW_ONLY
    outputs: Annotated[Path, "the folder of all results"] = Path("outputs")
    yes: Annotated[bool, "remove without asking"] = False


COMMAND = CommandLine("cft.runs", RunsOptions, example="list lr=5e-4 model=smollm2")


def main() -> None:
    """Run the command line."""
    COMMAND.run(_carry_out)


def _carry_out(options: RunsOptions) -> str | None:
    from cft.job.runs import compare_runs, find_run, list_runs, remove_runs

    if options.command == "list":
        table = list_runs(options.outputs, options.runs)
        if len(table) == 1:
            raise UserError(f"no training under {options.outputs}{' that fits' if options.runs else ''}")
        return as_text(table)
    if not options.runs or (options.command == "compare" and len(options.runs) != 2):
        raise UserError(f"{options.command}: name {'two runs' if options.command == 'compare' else 'the runs'}")
    folders = [find_run(options.outputs, name) for name in options.runs]
    if options.command == "compare":
        return compare_runs(*folders)
    remove_runs(folders, sure=options.yes)
    return None


if __name__ == "__main__":
    main()
