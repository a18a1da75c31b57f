"""Rules about the code itself: the order of its rooms, who may see Hydra, and what is never done."""

import ast
from pathlib import Path

import pytest

CFT = Path(__file__).resolve().parents[2] / "cft"
SOURCES = sorted(CFT.rglob("*.py"))
# Each imports from those before it, never from those behind it. A file at the top of cft/ is a command.
ROOMS = "system config data batching model evaluation training job study deploy".split()
APART = {"study", "deploy"}  # neither imports the other
SEE_HYDRA = {"config/compose.py", "config/sweeps.py", "run.py", "study/worker.py"}


def name_of(path: Path) -> str:
    return path.relative_to(CFT).as_posix()


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
    names = {name_of(source) for source in SOURCES}
    parts = {name.removeprefix("cft.").replace(".", "/") + ".py" for name in imports(path) if name.startswith("cft.")}
    return parts & names


def rank(name: str) -> int:
    """The place in the order: a room's, or behind all of them for a command."""
    room, _, module = name.partition("/")
    return ROOMS.index(room) if module else len(ROOMS)


def test_the_folders_are_the_rooms():
    assert {path.parent.name for path in SOURCES if path.parent != CFT} == set(ROOMS)
    assert all((CFT / room / "__init__.py").exists() for room in ROOMS)


@pytest.mark.parametrize("path", [path for path in SOURCES if path.name != "__init__.py"], ids=name_of)
def test_a_module_imports_from_its_own_room_and_those_before_it(path):
    name = name_of(path)
    later = {other for other in own_imports(path) if rank(other) > rank(name)}
    assert not later, f"{name} imports {sorted(later)}"
    rooms = {other.split("/")[0] for other in own_imports(path)} | {name.split("/")[0]}
    assert not rooms >= APART, f"{name} joins two rooms that do not know one another"


def test_imports_make_no_circle():
    graph = {name_of(path): own_imports(path) - {name_of(path)} for path in SOURCES}
    while graph:  # take away what imports nothing that is left; a circle would stay
        free = {name for name, needs in graph.items() if not needs & set(graph)}
        assert free, f"these modules import one another: {sorted(graph)}"
        graph = {name: needs for name, needs in graph.items() if name not in free}


@pytest.mark.parametrize("path", SOURCES, ids=name_of)
def test_only_the_command_line_sees_hydra_and_omegaconf(path):
    roots = {name.split(".")[0] for name in imports(path)}
    assert name_of(path) in SEE_HYDRA or not roots & {"hydra", "omegaconf"}


@pytest.mark.parametrize("path", SOURCES, ids=name_of)
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
