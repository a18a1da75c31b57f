"""The Hugging Face hub: whether it answers, and repositories fetched from it."""

import contextlib
import os
import re
import socket
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import urlsplit

from cft.system.errors import UserError
from cft.system.overrides import override

OFFLINE_HINT = (
    "without the hub these run: model=smollm2 and model=minilm (out of Python packages), model=tiny (random weights), "
    "or model.path=FOLDER or FILE.gguf with weights that you have; data=docstrings or data=files; eval=docstrings, "
    "rows or pairs, or eval=sts with eval.folder=FOLDER"
)


_HUB_NAME = re.compile(r"[\w.-]+/[\w.-]+")


def last_part(path: str) -> str:
    """The last part of a model's path, on whatever system it was written, without a file's ending."""
    last = re.split(r"[/\\]", path.rstrip("/\\"))[-1]
    return last[: -len(".gguf")] if last.lower().endswith(".gguf") else last


def may_be_repository(name: str) -> bool:
    """Whether a name may be a hub repository's, rather than a folder's that is not there."""
    owner = name.partition("/")[0]
    return bool(_HUB_NAME.fullmatch(name)) and not name.startswith((".", "~")) and not Path(owner).is_dir()


def fetch_repository(key: str, repository: str, revision: str | None, patterns: list[str]) -> Path:
    """A hub repository's files on this machine, in a folder named by their commit.

    The hub's own client downloads, goes on with broken downloads and keeps to HF_HUB_OFFLINE.

    Args:
        key: the setting that names it, for messages. repository: OWNER/NAME. revision: a commit, or None for the
            newest. patterns: of the files wanted.

    Raises:
        UserError: if it cannot be had, saying why.
    """
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import (
        GatedRepoError,
        LocalEntryNotFoundError,
        RepositoryNotFoundError,
        RevisionNotFoundError,
    )

    try:
        return Path(
            snapshot_download(
                repository, revision=revision, allow_patterns=patterns, local_files_only=not hub_answers()
            )
        )
    except GatedRepoError as error:
        raise UserError(
            f"{override(key, repository)} is gated: accept its licence at https://huggingface.co/{repository}, then "
            "log in with "
            "`hf auth login` (or set HF_TOKEN) on this machine and run the same command again"
        ) from error
    except RevisionNotFoundError as error:
        raise UserError(f"{override(key, repository)}: the hub's repository has no revision {revision}") from error
    except RepositoryNotFoundError as error:
        raise UserError(
            f"{override(key, repository)}: the hub has no such repository, or it is private: log in with `hf auth "
            "login`"
        ) from error
    except (LocalEntryNotFoundError, OSError) as error:
        raise UserError(
            f"{override(key, repository)} (revision {revision or 'main'}) is not on this machine and the hub does not "
            "answer" + (f"; {OFFLINE_HINT}" if key == "model.path" else "; name a folder instead")
        ) from error


def hub_answers() -> bool:
    """Whether it is worth asking the hub; the client alone would retry for half a minute before it gave up."""
    from huggingface_hub import constants

    if constants.HF_HUB_OFFLINE:
        return False
    if any(os.environ.get(name) for name in ("HTTPS_PROXY", "https_proxy", "ALL_PROXY", "all_proxy")):
        return True
    try:
        socket.getaddrinfo(urlsplit(constants.ENDPOINT).hostname, 443)
    except OSError:
        return False
    return True


@contextlib.contextmanager
def without_hub() -> Iterator[None]:
    """Have the hub's clients look at this machine alone; `datasets` asks the hub whatever its arguments say."""
    import datasets
    from huggingface_hub import constants

    before = constants.HF_HUB_OFFLINE, datasets.config.HF_HUB_OFFLINE
    constants.HF_HUB_OFFLINE = datasets.config.HF_HUB_OFFLINE = True
    try:
        yield
    finally:
        constants.HF_HUB_OFFLINE, datasets.config.HF_HUB_OFFLINE = before
