"""Who imports whom: one way, as docs/architecture.rst draws it."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from graphlib import TopologicalSorter
from pathlib import Path

import pytest

import hmac_file_server

PACKAGE = Path(hmac_file_server.__file__).parent
FOLDERS = ["slots", "stores", "uploads", "web"]
"""Each knows only those before it, and modules that belong to none of them."""


def imports(node: ast.AST) -> Iterator[str]:
    """The modules of ours that are imported in a piece of code, but for what only a type checker reads."""
    for child in ast.iter_child_nodes(node):
        if isinstance(child, ast.If) and ast.unparse(child.test) == "TYPE_CHECKING":
            continue
        if isinstance(child, ast.ImportFrom) and (child.module or "").split(".")[0] == PACKAGE.name:
            for alias in child.names:
                full = f"{child.module}.{alias.name}"
                yield full if full in MODULES else str(child.module)
        yield from imports(child)


def name_of(file: Path) -> str:
    return ".".join(file.relative_to(PACKAGE.parent).with_suffix("").parts).removesuffix(".__init__")


MODULES = {name_of(file): file for file in PACKAGE.rglob("*.py")}
IMPORTS = {name: set(imports(ast.parse(file.read_text()))) - {name} for name, file in MODULES.items()}


def folder(module: str) -> str:
    """The folder that a module lies in; a module on top stands for itself."""
    return module.split(".")[1] if "." in module else module


@pytest.mark.parametrize("level", ["module", "folder"])
def test_no_circle(level: str) -> None:
    """No module, and no folder, needs another one that needs it."""
    graph: dict[str, set[str]] = {}
    for module, others in IMPORTS.items():
        here = module if level == "module" else folder(module)
        there = others if level == "module" else {folder(other) for other in others} - {here}
        graph.setdefault(here, set()).update(there)
    assert list(TopologicalSorter(graph).static_order())


@pytest.mark.parametrize("name", FOLDERS)
def test_one_way(name: str) -> None:
    """The wire knows uploads, they know the store, and the store knows what a slot is: never the other way round."""
    after = set(FOLDERS[FOLDERS.index(name) + 1 :])
    wrong = {
        (module, other)
        for module, others in IMPORTS.items()
        for other in others
        if folder(module) == name and folder(other) in after
    }
    assert wrong == set()
