"""A finished embedder sent to the hub, searched for secrets and paths first."""

import os
import shutil
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

from cft.config.command_line import check_options
from cft.deploy.export import ExportOptions, export
from cft.deploy.load import PlaceOfBase, PromptWords, find_embedder
from cft.system import secrets
from cft.system.errors import UserError, first_line
from cft.system.hub import may_be_repository
from cft.system.tables import Row, as_text

_FROM_RUN = ("training.png", "history.jsonl")  # beside what the export writes
_TEXTS = (".md", ".json", ".jsonl", ".txt")


@dataclass(frozen=True, kw_only=True)
class PushOptions:
    """Send a finished embedder, with its model card, to a repository on the Hugging Face hub."""

    run: Annotated[str, "the embedder: a run's folder, or the end of its name under outputs/"]
    repo: Annotated[str, "OWNER/NAME on the hub; made if it is not there"]
    format: Annotated[
        Literal["peft", "sentence-transformers"],
        "peft: the adapter and its contract; sentence-transformers: the whole merged model",
    ] = "peft"
    private: Annotated[bool, "who may see a repository that is made"] = True
    dry_run: Annotated[bool, "only list what would be sent"] = False
    prompt: PromptWords = ""
    model_path: PlaceOfBase = ""

    def __post_init__(self) -> None:
        """Refuse what Python code gives that no command line could."""
        check_options(self)


def push(options: PushOptions) -> str:
    """Gather what is to be sent, look it over, and send it.

    Returns:
        What was sent, or would be.

    Raises:
        UserError: if there is no such embedder, it could not be used elsewhere, a file holds a secret, or the hub
            refuses.
    """
    from cft.job.card import FILE_NAME as CARD
    from cft.job.card import for_reader
    from cft.model.contract import Contract

    if not may_be_repository(options.repo):
        raise UserError(f"repo={options.repo}: must be OWNER/NAME, as the hub names repositories")
    run = find_embedder(options.run)
    _refuse_links(run)
    with tempfile.TemporaryDirectory() as scratch:
        staged = Path(scratch) / "files"
        export(
            ExportOptions(
                run=str(run), output=staged, format=options.format, prompt=options.prompt, model_path=options.model_path
            )
        )
        if options.format == "peft":
            Contract.load(staged).save(staged)  # without the place of the base model on this machine
        for name in _FROM_RUN:
            if (run / name).exists():
                shutil.copy(run / name, staged / name)
        card = staged / CARD
        if not card.exists():
            raise UserError(
                f"{run} has no model card ({CARD}): write one there, or run the command of its training again, or "
                "merge its runs again, which write one"
            )
        text = for_reader(card.read_text(encoding="utf-8"), library=options.format, place=options.repo)
        card.write_text(text, encoding="utf-8")
        if options.format == "peft":
            _require_public_base(staged)
        look_over(staged)
        table = _file_table(staged)
        if options.dry_run:
            return f"{table}\n\nnothing was sent (dry_run=true); all of it would go to {options.repo}"
        _send(staged, options.repo, private=options.private)
    return f"{table}\n\nsent to https://huggingface.co/{options.repo}"


def _refuse_links(folder: Path) -> None:
    """Refuse a run with links in it: what they lead to may be anything on this machine."""
    for path in sorted(folder.rglob("*")):
        if path.is_symlink():
            raise UserError(f"nothing was sent: {path} is a link to {os.readlink(path)}; put the file itself there")


def _require_public_base(staged: Path) -> None:
    """Refuse an adapter for a model that only this machine has."""
    from cft.model.contract import Contract

    contract = Contract.load(staged)
    # A folder models/mini is named like a repository; weights that came from one have a commit.
    on_hub = may_be_repository(contract.model) and contract.weights.startswith("commit:")
    if not on_hub and not contract.model.startswith(("wheel:", "random:")):
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
        # The words of a tokenizer's vocabulary say nothing about this machine.
        if path.suffix not in _TEXTS or path.name in ("tokenizer.json", "vocab.json"):
            continue
        text = path.read_text(encoding="utf-8")
        problems = secrets.found_in(text)
        problems += ["a path in your home folder"] if str(Path.home()) + os.sep in text else []
        if problems:
            raise UserError(f"nothing was sent: {path.relative_to(folder)} holds {problems[0]}")


def _file_table(folder: Path) -> str:
    sizes = {path.relative_to(folder): path.stat().st_size for path in sorted(folder.rglob("*")) if path.is_file()}
    table: list[Row] = [("file", "bytes"), *((str(path), f"{size:,}") for path, size in sizes.items())]
    return as_text([*table, ("together", f"{sum(sizes.values()):,}")])


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
