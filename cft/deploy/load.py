"""A finished embedder, found by a folder or a name, and loaded."""

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

from cft.config.command_line import check_options
from cft.data.files import BadRows
from cft.model.contract import FILE_NAME as CONTRACT
from cft.system.errors import UserError
from cft.system.text import described, did_you_mean

if TYPE_CHECKING:
    from cft.model.embedder import Embedder

_MOST_LISTED = 6  # embedders in an error message

Device = Literal["auto", "cpu", "cuda"]


@dataclass(frozen=True, kw_only=True)
class EmbedderOptions:
    """Which embedder, under which prompt."""

    run: Annotated[str, "the embedder: a run's folder, or the end of its name under outputs/"]
    prompt: Annotated[str, "words around every text, as in 'query: {text}'; none takes those of its training"] = ""
    model_path: Annotated[str, "where its base model is now, if that was moved; its content is checked"] = ""

    def __post_init__(self) -> None:
        """Refuse what Python code gives that no command line could."""
        check_options(self)


@dataclass(frozen=True, kw_only=True)
class TextFileOptions(EmbedderOptions):
    """How a file's texts are read, and where they are embedded."""

    column: Annotated[str, "the column that holds the texts, in files that have columns"] = "text"
    on_bad_row: Annotated[BadRows, "what to do with a row that holds no text"] = BadRows.RAISE
    device: Annotated[Device, "where it runs"] = "auto"


def find_embedder(name: str | Path, outputs: Path = Path("outputs")) -> Path:
    """A finished embedder's folder, by its path, its name or the end of its name.

    Raises:
        UserError: if there is none, or several, naming those that are there.
    """
    if not isinstance(name, (str, Path)) or "\0" in str(name):
        raise UserError(f"run={described(name)}: must be a folder, or the end of a run's name")
    path, name = Path(name).expanduser(), str(name)
    if (path / CONTRACT).exists():
        return path
    final, kept = (_newest_first(outputs.glob(f"{place}/{CONTRACT}")) for place in ("*", "*/steps/*"))
    folders = [*final, *kept]
    matches = [folder for folder in folders if str(folder).endswith(name)] if name else []
    if len(matches) == 1:
        return matches[0]
    listed = matches or final or kept
    names = ", ".join(map(str, listed[:_MOST_LISTED])) or f"none under {outputs}"
    names += f" and {len(listed) - _MOST_LISTED} more" if len(listed) > _MOST_LISTED else ""
    problem = "several embedders end so" if matches else "no finished embedder"
    endings = [folder.name[-len(name) :] for folder in final if not matches]
    guess = did_you_mean(name, endings, show="run={}".format, cutoff=0.8)
    raise UserError(f"run={name}: {problem}; there: {names}{guess}")


def _newest_first(contracts: Iterable[Path]) -> list[Path]:
    return sorted((path.parent for path in contracts), key=lambda folder: folder.stat().st_mtime, reverse=True)


def load_embedder(run: str | Path, *, prompt: str = "", device: Device = "auto", model_path: str = "") -> "Embedder":
    """Load a finished embedder.

    Args:
        run: as `find_embedder` takes it. prompt: words around every text; none takes those of its training.
        device: where it runs. model_path: where its base model is now; none for where it was.

    Raises:
        UserError: if it cannot be had, or a prompt has no place for the text.
    """
    folder = find_embedder(run)
    from cft.job.start import choose_device
    from cft.model.embedder import Embedder

    embedder = Embedder.load(folder, device=choose_device(device), model_path=model_path or None)
    return embedder.with_template(prompt) if prompt else embedder
