"""The shape of the tree: which room may import which, no circles, few floors, files that can be read at a sitting."""

import ast
from functools import cache
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
# Room -> the rooms that it may import (docs/architecture.md).
ROOMS = {
    "contract": set(),
    "wan": {"contract"},
    "service": {"contract"},
    "stages": {"contract", "wan"},
    "tiny": {"contract", "wan"},
    "export": {"contract", "wan", "stages"},
    "model_repository": {"contract", "wan", "stages"},
    "loadtest": {"contract", "wan", "stages", "export", "tiny", "service"},
}
HIGHEST_FLOOR = 6
LONGEST_FILE = 400


def sources(*rooms: str) -> list[Path]:
    return sorted(path for room in rooms for path in (ROOT / room).rglob("*.py"))


def name_of(path: Path) -> str:
    return ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__")


MODULES = {name_of(path): path for path in sources(*ROOMS)}


def imported(path: Path) -> set[str]:
    """Every module that the file imports anywhere in it, also inside functions; `from a import b` is a.b if that is one."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert not node.level, f"{path}:{node.lineno} imports relatively; allowed: full names"
            inside = {f"{node.module}.{alias.name}" for alias in node.names}
            found |= (inside & MODULES.keys()) | (set() if inside <= MODULES.keys() else {node.module})
    return found


@pytest.fixture(scope="module")
def graph() -> dict[str, set[str]]:
    """Module -> the modules of this project that it imports."""
    return {name: (imported(path) & MODULES.keys()) - {name} for name, path in MODULES.items()}


def test_no_modules_import_each_other_in_a_circle(graph):
    try:
        TopologicalSorter(graph).prepare()
    except CycleError as error:
        pytest.fail(f"import circle: {' <- '.join(error.args[1])}")


@pytest.mark.parametrize("room", ROOMS)
def test_a_room_imports_only_the_rooms_below_it(graph, room):
    wrong = {
        f"{name} imports {other}"
        for name, others in graph.items()
        for other in others
        if name.split(".")[0] == room and other.split(".")[0] not in {room, *ROOMS[room]}
    }
    assert not wrong


def test_the_gateway_needs_no_torch():
    rooms = ("service", "contract")
    heavy = {name for name, path in MODULES.items() if name.startswith(rooms) and "torch" in imported(path)}
    assert not heavy


def test_kinds_of_measurements_share_their_base_and_nothing_else(graph):
    def kind(name: str) -> str:
        return name.split(".")[1] if name.count(".") > 1 else "base"

    wrong = {
        f"{name} imports {other}"
        for name, others in graph.items()
        for other in others
        if name.startswith("loadtest.") and other.startswith("loadtest.") and kind(other) not in {kind(name), "base"}
    }
    assert not wrong


def test_loadtest_has_few_floors(graph):
    @cache
    def floor(name: str) -> int:
        return 1 + max((floor(other) for other in graph[name] if other.startswith("loadtest")), default=0)

    high = {name: floor(name) for name in graph if name.startswith("loadtest") and floor(name) > HIGHEST_FLOOR}
    assert not high


def test_no_python_file_is_too_long():
    counts = {path: len(path.read_text(encoding="utf-8").splitlines()) for path in sources(*ROOMS, "tests")}
    assert {str(path.relative_to(ROOT)): count for path, count in counts.items() if count > LONGEST_FILE} == {}
