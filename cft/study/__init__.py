"""Many jobs planned, run, judged and reported: the paper's tables and figures, studies of one's own, searches."""

__all__ = [
    "arguments",  # what commands about studies are given
    "pack",  # a study's records in one file
    "plan",  # a study frozen as it started, and the states of its runs
    "report",  # reports written and rendered
    "runner",  # studies carried out
    "search",  # settings searched with Optuna
    "spec",  # experiments as files
]
