"""The machine: files written whole, locks, disk, devices, processes, signals, terminal, hub client, errors."""

# The modules that other rooms may use.
__all__ = [
    "console",  # messages and exit statuses of all commands
    "cores",  # how many threads there are cores for
    "devices",  # one GPU for each of several processes
    "digest",  # names by content; dataclasses to plain data and back
    "disk",  # free space, checked before it is needed
    "distributed",  # the processes that train together
    "environment",  # versions, code state and device of a run
    "errors",  # the error that a user can mend
    "files",  # files written whole or not at all; locks
    "hub",  # the Hugging Face hub
    "logs",  # a log file beside the terminal
    "memory",  # memory that may still be taken, and what is done when there is none
    "overrides",  # settings in messages, as they can be pasted
    "secrets",  # keys kept out of messages
    "shipped",  # folders of YAML that travel with the package
    "signals",  # SIGINT and SIGTERM, deferred to the end of a step
    "tables",  # text, Markdown, CSV and LaTeX
    "text",  # near misses, sizes, shortening
]
