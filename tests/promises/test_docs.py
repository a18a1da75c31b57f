"""What the documentation says of models is what the tests check."""

import json
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pyarrow.parquet
import pytest
from families import ENCODERS, PADDED, TREE
from packaging.version import Version

from cft import Embedder
from cft.config import reference
from cft.config.compose import all_groups, all_keys

ROOT = Path(__file__).resolve().parents[2]
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


def test_every_promise_names_a_test_that_exists():
    page = (ROOT / "docs" / "reliability.md").read_text()
    named = re.findall(r"`(\w+/test_\w+\.py)::(test_\w+)`", page)
    assert len(named) > 40
    for file, test in named:
        assert f"def {test}(" in (ROOT / "tests" / file).read_text(), f"{file}::{test}"
    for table in page.split("| promise | held by |\n| --- | --- |\n")[1:]:
        for row in table.split("\n\n")[0].splitlines():
            assert "::test_" in row, f"nothing holds: {row}"


def test_the_page_of_settings_is_what_the_settings_are():
    assert (ROOT / "docs" / "configuration.md").read_text() == reference.page(), "run `make docs`"


def test_the_page_of_settings_has_every_key_with_a_meaning():
    rows = [line.split(" | ") for line in reference.page().splitlines() if line.startswith("| `")]
    listed = {row[0].strip("| `") for row in rows if len(row) == 4}
    # a teacher, a baseline and a first stage are named as a whole: their settings are other groups'
    known = {key for key in all_keys() if not key.startswith(("distill.model.", "baseline.model.", "first.data."))}
    groups = {key for key in known if any(other.startswith(f"{key}.") for other in known)}
    assert listed == known - groups
    model = {key.removeprefix("model.") for key in known if key.startswith("model.")}
    for second in ("distill.model.", "baseline.model."):
        assert model == {key.removeprefix(second) for key in all_keys() if key.startswith(second)}
    assert all(row[3].strip(" |") for row in rows if len(row) == 4)


def test_the_page_of_benchmarks_is_what_the_benchmarks_kept(monkeypatch):
    monkeypatch.syspath_prepend(str(ROOT / "benchmarks"))
    import publish

    assert (ROOT / "docs" / "benchmarks.md").read_text() == publish.page(), "run python benchmarks/publish.py"


def test_the_site_builds_and_its_navigation_is_whole(tmp_path):
    mkdocs = pytest.importorskip("mkdocs", reason="mkdocs is not installed (the extra `docs`)")
    from mkdocs.commands.build import build
    from mkdocs.config import load_config

    assert mkdocs
    config = load_config(str(ROOT / "mkdocs.yml"), site_dir=str(tmp_path), strict=True)
    build(config)
    for page in PAGES[1:]:
        assert (tmp_path / f"{page.stem}.html").exists(), page.name
    assert set(re.findall(r": (\w+\.md)", (ROOT / "mkdocs.yml").read_text())) == {page.name for page in PAGES[1:]}


def test_the_commands_of_the_package_are_the_modules_that_have_one():
    named = dict(re.findall(r'^cft-(\w+) = "cft\.([\w.]+):main"', (ROOT / "pyproject.toml").read_text(), re.MULTILINE))
    commands = {path.stem: path.stem for path in (ROOT / "cft").glob("*.py") if path.stem != "__init__"}
    assert named == commands | {"study": "study.__main__"}
    for module in named.values():
        assert "\ndef main()" in (ROOT / "cft" / f"{module.replace('.', '/')}.py").read_text()


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_targets_that_a_page_names_are_in_the_makefile_and_its_help(page):
    targets = set(re.findall(r"^([a-z0-9-]+):.*##", (ROOT / "Makefile").read_text(), re.MULTILINE))
    named = set(re.findall(r"(?:^ {4}|`)make ([a-z0-9-]+)", page.read_text(), re.MULTILINE))
    assert named <= targets, named - targets


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_settings_that_a_page_names_exist(page):
    known = set(all_keys())
    named = set(
        re.findall(r"\b((?:model|lora|loss|prompt|schedule|train|data|eval|logger)\.[a-z_]+)(?==|`)", page.read_text())
    )
    named = {name for name in named if not name.endswith(".py")}
    assert named <= known, named - known


def test_the_first_embedder_runs_from_its_file_to_its_table(commands, tmp_path):
    quick = ["model=tiny", "train.steps=2", "train.eval_every=0", f"outputs={tmp_path}"]
    done = commands.run(str(ROOT / "docs" / "first_embedder.py"), *quick, cwd=tmp_path, drawn_in_full=True)
    assert done.status == 0, done.err
    lines = done.out.splitlines()
    table = lines[next(n for n, line in enumerate(lines) if line.startswith("question")) :]
    assert len([line for line in table if re.fullmatch(r".{52} +\d+ +\d+", line)]) == 10
    assert any(line.startswith("mean rank of the right answer, of 40") for line in table)


@pytest.mark.slow
def test_a_corpus_is_embedded_by_ray_as_by_the_embedder(trained, tmp_path):
    pytest.importorskip("ray.data", reason="Ray is not installed: pip install 'ray[data]' runs this test")
    rows = [{"id": number, "body": f"what is said of {number % 40}"} for number in range(100)]
    for part in (0, 1):
        lines = "".join(json.dumps(row) + "\n" for row in rows[part::2])
        (tmp_path / f"{part}.jsonl").write_text(lines)
    script, texts = ROOT / "docs" / "encode_with_ray.py", [str(tmp_path / f"{part}.jsonl") for part in (0, 1)]
    command = [
        sys.executable,
        str(script),
        str(trained),
        *texts,
        "--into",
        str(tmp_path / "vectors"),
        "--column",
        "body",
    ]
    done = subprocess.run([*command, "--batch", "30"], capture_output=True, text=True, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert "100 texts embedded" in done.stdout
    found = pyarrow.parquet.read_table(tmp_path / "vectors").to_pylist()
    found.sort(key=lambda row: row["id"])
    assert [{key: row[key] for key in ("id", "body")} for row in found] == rows
    expected = Embedder.load(trained).encode([row["body"] for row in rows])
    np.testing.assert_allclose(np.array([row["vector"] for row in found]), expected, atol=1e-6)
    again = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path)
    assert again.returncode != 0 and "already exists" in again.stderr


def test_the_notebook_is_what_its_script_writes_and_every_cell_ran(commands, tmp_path):
    kept = json.loads((ROOT / "docs" / "find_your_documents.ipynb").read_text())
    words = [str(ROOT / "docs" / "write_notebook.py"), "tiny", str(tmp_path / "again.ipynb")]
    done = commands.run(*words, cwd=tmp_path, drawn_in_full=True)
    assert done.status == 0, done.err
    again = json.loads((tmp_path / "again.ipynb").read_text())
    assert not list(tmp_path.rglob("outputs")), "it leaves nothing else"
    for one, other in zip(kept["cells"], again["cells"], strict=True):
        assert "".join(one["source"]).replace("minilm", "tiny") == "".join(other["source"])
        assert [each["output_type"] for each in one.get("outputs", [])] == [
            each["output_type"] for each in other.get("outputs", [])
        ]
    code = [cell for cell in kept["cells"] if cell["cell_type"] == "code"]
    assert [cell["execution_count"] for cell in code] == list(range(1, len(code) + 1))
    assert any("image/png" in output.get("data", {}) for cell in code for output in cell["outputs"])
    assert "mean place" in "".join(code[-3]["outputs"][0]["text"])


def test_every_place_that_names_the_version_names_the_same():
    named = {
        name: re.search(pattern, (ROOT / name).read_text(), re.MULTILINE).group(1)
        for name, pattern in {
            "pyproject.toml": r'^version = "(.+)"$',
            "cft/__init__.py": r'^__version__ = "(.+)"$',
            "CITATION.cff": r"^version: (.+)$",
            "CHANGELOG.md": r"^## (\S+)$",  # its first section
        }.items()
    }
    assert len(set(named.values())) == 1, named


def test_lower_bounds_are_the_versions_that_the_lowest_environment_has():
    # builds; want an extra of their own; tools of developers
    untested = {"hatchling", "bitsandbytes", "trackio", "ruff", "mypy"}
    bounds = dict(re.findall(r'"([\w-]+)>=([\d.]+)', (ROOT / "pyproject.toml").read_text()))
    pins = dict(re.findall(r"^([\w-]+)==([\d.]+)$", (ROOT / "constraints-lowest.txt").read_text(), re.MULTILINE))
    for name in bounds.keys() - untested:
        assert Version(pins[name]) == Version(bounds[name]), name


@pytest.mark.parametrize("group", sorted(all_groups()))
def test_the_table_of_choices_has_every_choice(group):
    page = (ROOT / "docs" / "concepts.md").read_text()
    (row,) = (line for line in page.splitlines() if line.startswith(f"| `{group}` | "))
    assert not [choice for choice in all_groups()[group] if f"`{choice}`" not in row], row


def test_every_meaning_on_the_page_of_settings_is_whole():
    """A comment of several lines in the schema is one meaning, not its last line."""
    for line in reference.page().splitlines():
        if line.startswith("| `") and line.count(" | ") == 3:
            meaning = line.split(" | ")[3].strip(" |")
            assert meaning.count("(") == meaning.count(")"), line
            assert "Any" not in line.split(" | ")[1], line
