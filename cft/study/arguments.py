"""What commands about studies are given: names of experiments, a scale, and overrides for all their jobs."""

import argparse
import itertools
from collections.abc import Iterable
from pathlib import Path

from cft.config.schema import Config
from cft.study import spec


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Arguments that name studies; `split_arguments` reads them."""
    parser.add_argument("what", nargs="+", metavar="EXPERIMENT|KEY=VALUE", help="experiments, then overrides for all")
    parser.add_argument("--scale", default="paper", help="paper (default), small, smoke, or a .yaml file")


def split_arguments(what: Iterable[str]) -> tuple[list[str], list[str]]:
    """Names of experiments ("all" is each of the paper's), and overrides."""
    names = [entry for entry in what if "=" not in entry]
    names = list(itertools.chain.from_iterable(spec.available() if name == "all" else [name] for name in names))
    return names, [entry for entry in what if "=" in entry]


def outputs_of(overrides: list[str]) -> Path:
    """The folder that `outputs=` names."""
    given = [entry.split("=", 1)[1] for entry in overrides if entry.startswith("outputs=")]
    return Path(given[-1] if given else Config.outputs)
