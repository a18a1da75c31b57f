"""What the documentation says of models is what the tests check."""

import re
from pathlib import Path

import pytest
from families import ENCODERS, PADDED, TREE

from cft.config import keys

ROOT = Path(__file__).resolve().parents[1]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]


def families_in(section: str) -> dict[str, str]:
    """Kind of batch by family, out of the table."""
    table = section.split("| --- | --- | --- | --- |\n")[1].split("\n\n")[0]
    found = {}
    for line in table.splitlines():
        names, _, batches, _ = (cell.strip() for cell in line.strip("|").split("|"))
        found |= {name: batches for name in re.findall(r"`(\w+)`", names)}
    return found


def test_the_table_of_families_lists_those_that_are_tested_and_their_batches():
    section = (ROOT / "docs" / "models.md").read_text().split("## Family by family")[1]
    listed = families_in(section)
    assert listed.pop("minicpm") == "tree"  # tested on its own
    padded = {name for name, batches in listed.items() if batches.startswith("padded")}
    assert padded == {*PADDED, *(name for name, kind in ENCODERS.items() if kind == "padded")}
    assert set(listed) - padded == {*TREE, *(name for name, kind in ENCODERS.items() if kind == "tree")}


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links_between_pages_lead_somewhere(page):
    for target in re.findall(r"\]\(([^)#]+?)(?:#[^)]*)?\)", page.read_text()):
        assert target.startswith("http") or (page.parent / target).exists(), f"{page.name}: {target}"


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_targets_that_a_page_names_are_in_the_makefile_and_its_help(page):
    targets = set(re.findall(r"^([a-z0-9-]+):.*##", (ROOT / "Makefile").read_text(), re.MULTILINE))
    named = set(re.findall(r"(?:^ {4}|`)make ([a-z0-9-]+)", page.read_text(), re.MULTILINE))
    assert named <= targets, named - targets


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_settings_that_a_page_names_exist(page):
    known = set(keys())
    named = set(
        re.findall(r"\b((?:model|lora|loss|prompt|schedule|train|data|eval|logger)\.[a-z_]+)(?==|`)", page.read_text())
    )
    named = {name for name in named if not name.endswith(".py")}
    assert named <= known, named - known
