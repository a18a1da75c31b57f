"""Rules about the code itself: who may see Hydra, and what is never done."""

import ast
from pathlib import Path

import pytest

SOURCES = sorted((Path(__file__).resolve().parents[1] / "cft").glob("*.py"))
COMMAND_LINE = {"config.py", "run.py", "study_worker.py"}


def imports(path: Path) -> set[str]:
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found |= {name.name for name in node.names}
        elif isinstance(node, ast.ImportFrom):
            found |= {f"{node.module}.{name.name}" for name in node.names} | {str(node.module)}
    return found


def own_imports(path: Path) -> set[str]:
    """Modules of the package that a module imports, by file name."""
    names = {source.name for source in SOURCES}
    parts = {name.split(".")[1] + ".py" for name in imports(path) if name.startswith("cft.")}
    return parts & names


@pytest.mark.parametrize("path", SOURCES, ids=lambda path: path.name)
def test_only_the_command_line_sees_hydra_and_omegaconf(path):
    roots = {name.split(".")[0] for name in imports(path)}
    assert path.name in COMMAND_LINE or not roots & {"hydra", "omegaconf"}


def test_imports_only_point_downward():
    graph = {path.name: own_imports(path) - {path.name} for path in SOURCES}
    while graph:  # take away what imports nothing that is left; a circle would stay
        free = {name for name, needs in graph.items() if not needs & set(graph)}
        assert free, f"these modules import one another: {sorted(graph)}"
        graph = {name: needs for name, needs in graph.items() if name not in free}


@pytest.mark.parametrize("path", SOURCES, ids=lambda path: path.name)
def test_nothing_is_unpickled_no_remote_code_is_run_and_no_shell_is_called(path):
    tree = ast.parse(path.read_text())
    assert not imports(path) & {"pickle", "dill", "shelve", "marshal"}
    for node in ast.walk(tree):
        if isinstance(node, ast.keyword) and node.arg in ("trust_remote_code", "shell", "allow_pickle"):
            assert isinstance(node.value, ast.Constant) and node.value.value is False, (
                f"{path.name}:{node.value.lineno}"
            )
        if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name) and node.value.id == "torch":
            assert node.attr != "load", f"{path.name}:{node.lineno}"
