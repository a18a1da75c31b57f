"""Rules about the code itself: the order of its rooms, who may see Hydra, and what is never done."""

import ast
import dataclasses
import inspect
import os
import sys
from pathlib import Path

import pytest
from jobs import CAPTIONS

from cft import run as command
from cft.config.compose import all_keys
from cft.config.schema import Config
from cft.training import contrastive

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


def offered(room: str) -> set[str]:
    """The modules that a room lists for other rooms."""
    tree = ast.parse((CFT / room / "__init__.py").read_text())
    assert ast.get_docstring(tree), f"{room} does not say what it is for"
    (names,) = [node.value for node in tree.body if isinstance(node, ast.Assign)]
    return {f"{room}/{name}.py" for name in ast.literal_eval(names)}


def test_rooms_use_of_one_another_what_is_listed():
    listed = set.union(*map(offered, ROOMS))
    assert listed <= {name_of(path) for path in SOURCES}
    for path in SOURCES:
        room = name_of(path).split("/")[0]
        others = {other for other in own_imports(path) if "/" in other and other.split("/")[0] != room}
        inner = {other for other in others - listed if not other.endswith("__init__.py")}
        assert not inner, f"{name_of(path)} uses {sorted(inner)}, which their rooms do not list"


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


@pytest.mark.parametrize("path", SOURCES, ids=name_of)
def test_memory_is_read_and_its_want_is_known_in_one_place(path):
    """Free memory is the least of several limits, and allocators raise errors of several kinds."""
    if name_of(path) == "system/memory.py":
        return
    for node in ast.walk(ast.parse(path.read_text())):
        name = getattr(node, "attr", getattr(node, "id", ""))
        assert name not in ("OutOfMemoryError", "MemoryError", "virtual_memory", "mem_get_info"), (
            f"{name_of(path)}:{node.lineno}: {name}"
        )


def functions() -> list[tuple[str, ast.FunctionDef, str]]:
    """Every function with its module's name and its source."""
    found = []
    for path in SOURCES:
        text = path.read_text()
        for node in ast.walk(ast.parse(text)):
            if isinstance(node, ast.FunctionDef):
                found.append((name_of(path), node, ast.get_source_segment(text, node) or ""))
    assert len(found) > 500
    return found


def test_a_function_has_six_parameters_and_sixty_lines_at_most_or_says_why():
    for module, node, source in functions():
        parameters = [*node.args.posonlyargs, *node.args.args, *node.args.kwonlyargs]
        count = len([each for each in parameters if each.arg not in ("self", "cls", "ctx")])
        lines = (node.end_lineno or 0) - node.lineno + 1
        reason = "# Long because" in source or "# So many parameters because" in source
        assert (count <= 6 and lines <= 60) or reason, f"{module}: {node.name} has {count} parameters, {lines} lines"


def test_nobody_changes_a_configuration_in_place():
    sections = {"config", "settings", *(field.name for field in dataclasses.fields(Config))}
    keys = {key.split(".")[-1] for key in all_keys()}
    for path in SOURCES:
        for node in ast.walk(ast.parse(path.read_text())):
            targets = node.targets if isinstance(node, ast.Assign) else [getattr(node, "target", None)]
            for target in targets:
                if isinstance(target, ast.Attribute) and target.attr in keys:
                    owner = target.value
                    name = owner.attr if isinstance(owner, ast.Attribute) else getattr(owner, "id", "")
                    assert name not in sections, f"{name_of(path)}:{node.lineno}: {ast.unparse(target)}"


def test_from_the_command_to_the_loss_there_are_seven_functions(tmp_path, monkeypatch):
    ways = []
    real = contrastive.info_nce

    def info_nce(*arguments, **keywords):
        frames = [frame for frame in inspect.stack()[1:] if frame.filename.startswith(str(CFT))]
        names = [frame.function for frame in reversed(frames)]
        ways.append([name for name in names if not name.startswith("<")])  # a comprehension is no function
        return real(*arguments, **keywords)

    monkeypatch.setattr(contrastive, "info_nce", info_nce)
    words = "model=tiny logger=none train.steps=1 train.batch_size=4 data.rows=40 data.holdout=4 eval.rows=10".split()
    monkeypatch.setattr(sys, "argv", ["cft-run", *CAPTIONS, *words, f"outputs={tmp_path}"])
    monkeypatch.chdir(tmp_path)
    command.main()
    assert ways == [["main", "job", "run", "train", "_step", "contrastive_backward"]], "and info_nce itself"


@pytest.mark.skipif("PYTEST_XDIST_WORKER" not in os.environ, reason="in one process all tests share what they can")
def test_the_tests_of_a_file_share_a_process(request):
    """Else what they share is made in every process, which took a sixth of all tests' time and was seen by nobody."""
    assert request.node.nodeid.endswith("@promises/test_architecture"), "pytest-xdist does not see the groups"
