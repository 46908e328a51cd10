"""The order in which the modules of `wan` build on each other."""

import ast
from graphlib import TopologicalSorter
from pathlib import Path

import wan

ROOT = Path(wan.__file__).parent


def imports(path: Path) -> set[str]:
    """Modules of `wan` that the file imports anywhere, inside functions too."""
    names = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.ImportFrom):
            names |= {node.module} | {f"{node.module}.{alias.name}" for alias in node.names}
        elif isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
    return names


def test_no_module_needs_itself_through_others():
    files = {".".join(("wan", *p.relative_to(ROOT).with_suffix("").parts)): p for p in ROOT.rglob("*.py")}
    modules = {name: path for name, path in files.items() if path.name != "__init__.py"}
    graph = {name: imports(path) & set(modules) for name, path in modules.items()}
    assert graph["wan.dit"] >= {"wan.attention"}
    assert list(TopologicalSorter(graph).static_order())  # raises CycleError
