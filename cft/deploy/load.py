"""What commands that use a finished embedder share: finding it by a folder or a name, and loading it."""

from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING

from cft.model.contract import FILE_NAME as CONTRACT
from cft.system.arguments import Key
from cft.system.errors import UserError
from cft.system.text import did_you_mean

if TYPE_CHECKING:
    from cft.model.embedder import Embedder

_MOST_TOLD = 6

RUN = Key("the embedder: a run's folder, or the end of its name under outputs/")
PROMPT = Key("words around every text, as in 'query: {text}'; none takes the one it was trained under", default="")
DEVICE = Key("where it runs", default="auto", choices=("auto", "cpu", "cuda"))


def find_embedder(name: str, outputs: Path = Path("outputs")) -> Path:
    """A finished embedder's folder, by its path, its name or the end of its name.

    Raises:
        UserError: if there is none, or several, naming those that are there.
    """
    given = Path(name).expanduser()
    if (given / CONTRACT).exists():
        return given
    whole, kept = (_newest_first(outputs.glob(f"{place}/{CONTRACT}")) for place in ("*", "*/steps/*"))
    there = [*whole, *kept]
    found = [folder for folder in there if str(folder).endswith(name)] if name else []
    if len(found) == 1:
        return found[0]
    listed = found or there
    names = ", ".join(map(str, listed[:_MOST_TOLD])) or f"none under {outputs}"
    names += f" and {len(listed) - _MOST_TOLD} more" if len(listed) > _MOST_TOLD else ""
    problem = "several embedders end so" if found else "no finished embedder"
    ends = [folder.name[-len(name) :] for folder in whole if not found]
    guess = did_you_mean(name, ends, show="run={}".format, cutoff=0.8)
    raise UserError(f"run={name}: {problem}; there: {names}{guess}")


def _newest_first(contracts: Iterable[Path]) -> list[Path]:
    return sorted((path.parent for path in contracts), key=lambda folder: folder.stat().st_mtime, reverse=True)


def load_embedder(values: dict[str, str]) -> "Embedder":
    """The embedder that `run=`, `prompt=` and `device=` name.

    Raises:
        UserError: if it cannot be had, or a prompt has no place for the text.
    """
    folder = find_embedder(values["run"])
    from cft.job.start import choose_device
    from cft.model.embedder import Embedder

    embedder = Embedder.load(folder, device=choose_device(values.get("device", "auto")))
    return embedder.with_template(values["prompt"]) if values.get("prompt") else embedder
