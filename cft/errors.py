"""The one exception for mistakes that a user can mend."""


class UserError(ValueError):
    """A mistake in the input, the configuration or the surroundings, worded for the person who can mend it.

    The message names the file, row, config key or value at fault and says what to do. The command line prints
    it without a traceback and exits with status 2.
    """


def first_line(error: BaseException) -> str:
    """What another library's error says, without what it adds below; its kind if it says nothing."""
    return (str(error).strip().splitlines() or [type(error).__name__])[0]
