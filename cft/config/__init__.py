"""What a job is: typed keys and their rules, composed from YAML and the command line, and sweeps over them."""

# The modules that other rooms may use.
__all__ = [
    "schema",  # every key with its type, default and meaning
    "rules",  # what no job could run with
    "compose",  # YAML and overrides to a Config
    "sweeps",  # what a search chooses from
    "command_line",  # KEY=VALUE into the dataclasses of the small commands
    "reference",  # the page of all settings
]
