"""Folders of YAML that travel with the package."""

from pathlib import Path

PACKAGE = Path(__file__).resolve().parents[1]


def shipped_folder(name: str) -> Path:
    """A folder such as conf/: beside the package in a checkout, inside it when installed from a wheel."""
    inside = PACKAGE / name
    return inside if inside.is_dir() else PACKAGE.parent / name
