"""Folders such as the system's own `proc` and `sys`, made of a few files."""

from collections.abc import Mapping
from pathlib import Path


def tree(root: Path, files: Mapping[str, object]) -> Path:
    """The root, with these files below it, a line each."""
    for name, content in files.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(f"{content}\n")
    return root
