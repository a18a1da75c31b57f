"""A first look at a user's files, before what takes seconds to import and minutes to load."""

from cft.config.schema import Config
from cft.data import retrieval, sts, training_data
from cft.data.formats import without_notes


def require_readable(config: Config) -> None:
    """Read the first row of each file that a job trains on or is scored by: paths and columns are right then.

    Raises:
        UserError: as the job itself, which reads the other rows too.
    """
    with without_notes():
        training_data.require_readable(config.data)
        sts.require_readable(config.eval)
        retrieval.require_readable(config.eval)
