"""Real English without a hub: what the docstrings of installed Python packages say, and what they say it about.

A query is the first sentence of a docstring; its document is the call that it stands at, with the name in words, as in
`pandas.io.parsers.readers.read_csv(filepath_or_buffer, sep, ...): read csv`. An embedder learns from
installed packages to find a function by what it does, and is judged by the standard library, of which no training row
holds a query or a name.

The rows depend on which packages are installed, and in which versions; their digest is in every run's name.
"""

import importlib.util
import logging
import random
import re
import sys
import sysconfig
from collections.abc import Iterator, Sequence
from importlib.metadata import packages_distributions
from pathlib import Path

from cft.data.python_source import Definition, read_source
from cft.data.records import Triplet
from cft.system.errors import UserError
from cft.system.overrides import override
from cft.system.text import did_you_mean

log = logging.getLogger(__name__)

NAME = "standard library"
"""What tables call what an embedder is judged by."""

# Read where data.packages is null, those that are installed. Most of them come with cft.
PACKAGES = (
    "numpy scipy pandas matplotlib sklearn networkx datasets huggingface_hub PIL pyarrow fsspec anyio httpx requests "
    "urllib3 jinja2 werkzeug click rich psutil joblib tqdm"
).split()

# In the folder of the standard library: what is installed beside it, applications, toolkits of windows, machinery of
# Python itself, and modules that later versions of Python do not have (PEP 594, PEP 632).
_NOT_ASKED_FOR = (
    "site-packages dist-packages idlelib lib2to3 turtledemo ensurepip tkinter turtle pydoc pydoc_data pdb bdb "
    "asyncio importlib unittest doctest symtable ctypes distutils aifc asynchat asyncore cgi cgitb chunk crypt imghdr "
    "imp mailcap msilib nntplib ossaudiodev pipes smtpd sndhdr sunau telnetlib uu xdrlib"
).split()

_OTHERS = re.compile(r"[\W_]+")  # than letters and digits

Query = tuple[str, str]  # id and text, as documents have them too
Judgement = tuple[str, str, int]  # ids of query and document, and the grade


def training_rows(packages: Sequence[str] | None, seed: int) -> list[Triplet]:
    """Summaries, each with its function as positive and another one of the same module as hard negative.

    No summary, no function and no name of a function comes twice, or stands in `standard_library`, whatever its case
    and punctuation.

    Args:
        packages: to read, such as numpy or scipy.stats; None for PACKAGES, as far as they are installed.
        seed: of the order and of the negatives; the same seed gives the same rows on one machine.

    Raises:
        UserError: if a package is not installed, or nothing is left to learn from.
    """
    places = _places(packages)
    log.info("reading the docstrings of %s (half a minute when it is the first time)", ", ".join(places))
    sources = [read_source(place, name) for name, place in places.items()]
    rows = [row for source in sources for row in source.definitions]
    kept = list(_distinct(rows))
    log.info(
        "docstrings: %s rows out of %s documented definitions; %d files passed over",
        f"{len(kept):,}",
        f"{len(rows):,}",
        sum(source.passed_over for source in sources),
    )
    if len(kept) < 2:
        raise UserError(
            f"{override('data.packages', list(places))}: {len(kept)} documented functions are too few to learn from; "
            "name packages with docstrings"
        )
    chance = random.Random(f"cft.docstrings/{seed}")  # of which only `random` gives the same in every Python
    negatives = _siblings(kept, chance)
    pairs = zip(kept, negatives, strict=True)
    triplets = [Triplet(row.summary, row.document, (kept[other].document,)) for row, other in pairs]
    return [triplet for _, triplet in sorted((chance.random(), triplet) for triplet in triplets)]


def _distinct(rows: Sequence[Definition]) -> Iterator[Definition]:
    """Rows of which neither summary nor document stood in an earlier one, nor summary nor name in the evaluation."""
    judged = _standard_library()
    names = {_letters(row.words) for row in judged}
    known = {_letters(row.summary) for row in judged}
    for row in rows:
        keys = {_letters(row.summary), _letters(row.document)}
        if _letters(row.words) not in names and not keys & known:
            known |= keys
            yield row


def _letters(text: str) -> str:
    """By which summaries and signatures are the same: their letters and digits.

    Wider than the rule for users' texts, so that nothing near to the evaluation is trained on: `x[0]` and `x(0)` are
    one.
    """
    return _OTHERS.sub("", text.casefold()) or text


def _siblings(rows: Sequence[Definition], chance: random.Random) -> Iterator[int]:
    """For each of at least two rows, another one: of its module, or else of its package, or else any."""
    groups: dict[str, list[int]] = {}  # ascending numbers of rows
    keys = [list(dict.fromkeys((row.module, row.module.split(".")[0], ""))) for row in rows]
    for number, of_row in enumerate(keys):
        for key in of_row:
            groups.setdefault(key, []).append(number)
    for number, of_row in enumerate(keys):
        group = next(groups[key] for key in of_row if len(groups[key]) > 1)
        place = int(chance.random() * (len(group) - 1))
        yield group[place] if group[place] < number else group[place + 1]


def standard_library(most: int | None = None) -> tuple[list[Query], list[Query], list[Judgement]]:
    """Queries, documents and judgements: summaries that look for their functions in the standard library.

    Summaries that differ in case, blanks and punctuation alone are one query with several right documents.

    Args:
        most: queries, at even distances; None for all.

    Raises:
        UserError: if this Python has no source files of its standard library.
    """
    rows = {row.qualified: row for row in reversed(_standard_library())}  # the first of those of one name
    by_summary: dict[str, list[Definition]] = {}
    for row in reversed(rows.values()):
        by_summary.setdefault(_letters(row.summary), []).append(row)
    groups = list(by_summary.values())
    if most is not None and len(groups) > most:
        groups = [groups[number * len(groups) // most] for number in range(most)]
    return (
        [(group[0].qualified, group[0].summary) for group in groups],
        [(row.qualified, row.document) for row in reversed(rows.values())],
        [(group[0].qualified, row.qualified, 1) for group in groups for row in group],
    )


def _standard_library() -> list[Definition]:
    """Functions, methods and properties of the public modules of the standard library."""
    folder = _library_folder()
    rows = read_source(folder, "", _NOT_ASKED_FOR).definitions
    found = [row for row in rows if not row.module.startswith("_") and not row.is_class]
    if len(found) < 2:
        raise UserError(
            f"{folder} holds no source files with docstrings: data=docstrings and eval=docstrings need a Python whose "
            "standard library comes as .py files"
        )
    return found


def _library_folder() -> Path:
    return Path(sysconfig.get_path("stdlib"))


def _places(packages: Sequence[str] | None) -> dict[str, Path]:
    """The folder or file of each package."""
    names = list(dict.fromkeys(PACKAGES if packages is None else packages))
    places = {name: place for name in names if (place := _place(name)) is not None}
    if packages is not None and len(places) < len(names):
        missing = next(name for name in names if name not in places)
        raise UserError(f"{override('data.packages', names)}: {missing} {_why_missing(missing)}")
    if not places:
        raise UserError(
            f"data=docstrings: none of {', '.join(names)} is installed beside cft; name packages that are, as in "
            f"{override('data.packages', ['flask', 'sqlalchemy'])}"
        )
    return places


def _place(name: str) -> Path | None:
    """Where a package's source is; None if it is not installed or part of Python. Nothing is imported."""
    package, *inner = name.split(".")
    if not all(part.isidentifier() for part in (package, *inner)) or package in sys.stdlib_module_names:
        return None
    try:
        spec = importlib.util.find_spec(package)  # asked for an inner package, it would import the outer one
    except (ImportError, ValueError):
        return None
    if spec is None:
        return None
    if spec.submodule_search_locations is None:
        place = Path(spec.origin or "")
        return place if place.suffix == ".py" and not inner else None
    place = Path(next(iter(spec.submodule_search_locations)), *inner)
    return next((each for each in (place, place.with_suffix(".py")) if each.exists()), None)


def _why_missing(name: str) -> str:
    """The rest of a sentence that begins with a package that cannot be read."""
    if name.split(".")[0] in sys.stdlib_module_names:
        return "is part of the standard library, by which eval=docstrings judges; name installed packages"
    installed = packages_distributions()
    imported = [package for package, owners in installed.items() if name in owners and package != name]
    if imported:
        return f"is imported by another name; write {imported[0]}"
    return f"is not installed here, or not as source files{did_you_mean(name, installed)}"
