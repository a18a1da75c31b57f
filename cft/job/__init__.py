"""One configuration to a complete record: plan, runner, report, tracking, model card."""

# The modules that other rooms may use.
__all__ = [
    "runner",  # `run` carries out one job
    "library",  # `train` from Python
    "plan",  # what a job will do, and the folders of its results
    "start",  # what a job starts from
    "run_folder",  # every file of a run's folder
    "figures",  # pictures of a job
    "card",  # the model card
    "runs",  # trainings listed, compared and removed
    "doctor",  # a model looked over before it is trained
    "probe",  # scores of every layer and pooling
]
