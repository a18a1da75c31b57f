"""A finished embedder sent to the hub, looked over first."""

import os
import shutil
import tempfile
from pathlib import Path

from cft.deploy.export import export
from cft.deploy.load import PROMPT, RUN, find_embedder
from cft.system import secrets
from cft.system.arguments import Command, Key
from cft.system.errors import UserError, first_line
from cft.system.hub import may_be_repository
from cft.system.tables import Row, as_text

# Beside what the export writes.
_FROM_RUN = ("training.png", "history.jsonl")


_TEXTS = (".md", ".json", ".jsonl", ".txt")


def push(values: dict[str, str]) -> str:
    """Gather what is to be sent, look it over, and send it.

    Returns:
        What was sent, or would be.

    Raises:
        UserError: if there is no such embedder, it could not be used elsewhere, a file holds a secret, or the hub
            refuses.
    """
    repository = values["repo"]
    if not may_be_repository(repository):
        raise UserError(f"repo={repository}: must be OWNER/NAME, as the hub names repositories")
    folder = find_embedder(values["run"])
    _refuse_links(folder)
    with tempfile.TemporaryDirectory() as scratch:
        staged = Path(scratch) / "files"
        export({**values, "output": str(staged)})
        for name in _FROM_RUN:
            if (folder / name).exists():
                shutil.copy(folder / name, staged / name)
        if not (staged / "README.md").exists():
            raise UserError(
                f"{folder} has no model card (README.md): run its training's command again, which writes it"
            )
        card = (staged / "README.md").read_text(encoding="utf-8")
        (staged / "README.md").write_text(
            card.replace('"FOLDER")  # this folder', f'"{repository}")'), encoding="utf-8"
        )
        if values["format"] == "peft":
            _require_public_base(staged)
        look_over(staged)
        listed = _listed(staged)
        if values["dry_run"] == "true":
            return f"{listed}\n\nnothing was sent (dry_run=true); all of it would go to {repository}"
        _send(staged, repository, private=values["private"] == "true")
    return f"{listed}\n\nsent to https://huggingface.co/{repository}"


def _refuse_links(folder: Path) -> None:
    """Refuse a run with links in it: what they lead to may be anything on this machine."""
    for path in sorted(folder.rglob("*")):
        if path.is_symlink():
            raise UserError(f"nothing was sent: {path} is a link to {os.readlink(path)}; put the file itself there")


def _require_public_base(staged: Path) -> None:
    """Refuse an adapter for a model that only this machine has."""
    from cft.model.contract import Contract

    base = Contract.load(staged).model
    if not may_be_repository(base) and not base.startswith(("wheel:", "random:")):
        raise UserError(
            "this adapter's base model is a folder or file of this machine, which nobody else has; send the whole "
            "model with format=sentence-transformers"
        )


def look_over(folder: Path) -> None:
    """Refuse to send secrets or this machine's paths.

    Raises:
        UserError: naming the file and what it holds, but not the secret itself.
    """
    for path in sorted(folder.rglob("*")):
        # A tokenizer's words are anybody's: no pattern says anything about them.
        if path.suffix not in _TEXTS or path.name in ("tokenizer.json", "vocab.json"):
            continue
        text = path.read_text(encoding="utf-8")
        problems = secrets.found_in(text)
        problems += ["a path in your home folder"] if str(Path.home()) + os.sep in text else []
        if problems:
            raise UserError(f"nothing was sent: {path.relative_to(folder)} holds {problems[0]}")


def _listed(folder: Path) -> str:
    table: list[Row] = [("file", "bytes")]
    paths = [path for path in sorted(folder.rglob("*")) if path.is_file()]
    table += [(str(path.relative_to(folder)), f"{path.stat().st_size:,}") for path in paths]
    table.append(("together", f"{sum(path.stat().st_size for path in paths):,}"))
    return as_text(table)


def _send(folder: Path, repository: str, *, private: bool) -> None:
    from huggingface_hub import HfApi

    try:
        client = HfApi()
        client.create_repo(repository, private=private, exist_ok=True)
        client.upload_folder(repo_id=repository, folder_path=folder, commit_message="An embedder made by cft")
    except Exception as error:  # the client raises its own, its network library's and the system's errors alike
        reason = secrets.masked(first_line(error))
        raise UserError(
            f"the hub did not take it ({reason}); log in with `hf auth login`, or set HF_TOKEN, with a token that may "
            "write"
        ) from error


COMMAND = Command(
    "cft.push",
    "Send a finished embedder, with its model card, to a repository on the Hugging Face hub.",
    keys={
        "run": RUN,
        "repo": Key("OWNER/NAME on the hub; made if it is not there"),
        "format": Key(
            "peft: the adapter and its contract; sentence-transformers: the whole merged model",
            default="peft",
            choices=("peft", "sentence-transformers"),
        ),
        "prompt": PROMPT,
        "private": Key("who may see a repository that is made", default="true", choices=("true", "false")),
        "dry_run": Key("only list what would be sent", default="false", choices=("true", "false")),
    },
    example="run=outputs/smollm2-files-1a2b3c4d5e6f repo=me/my-embedder dry_run=true",
)
