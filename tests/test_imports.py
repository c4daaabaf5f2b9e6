"""Who imports whom: one way, as docs/architecture.rst draws it."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from graphlib import TopologicalSorter
from pathlib import Path

import pytest

import hmac_file_server

PACKAGE = Path(hmac_file_server.__file__).parent
FOLDERS = ["web", "slots", "stores", "files", "housekeeping", "resumption", "daemon", "importing", "doctor", "command"]
"""Each knows only those before it, and modules that belong to none of them."""

WIRE = {"hmac_file_server", "hmac_file_server.log"}
"""What the wire knows beside itself."""

BLOCKS = {"fcntl", "threading", "_thread", "ctypes", "queue", "mmap", "tempfile", "shutil"}
"""What nobody needs who does not block, or know descriptors."""


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
    """Resumption wraps the files, they know the store, and it knows what a slot is: never the other way round."""
    after = set(FOLDERS[FOLDERS.index(name) + 1 :])
    wrong = {
        (module, other)
        for module, others in IMPORTS.items()
        for other in others
        if folder(module) == name and folder(other) in after
    }
    assert wrong == set()


def test_the_wire_knows_itself_alone() -> None:
    """HTTP is nobody's business but its own, and knows nobody's but the log's."""
    known = {other for module, others in IMPORTS.items() if folder(module) == "web" for other in others}
    assert {other for other in known if folder(other) != "web"} <= WIRE


def test_the_disk_is_known_to_its_store_alone() -> None:
    """Only one place names the store on the disk, and nobody beside it who handles files calls what blocks.

    What works on the files without a daemon knows it, too: the housekeeper, and what takes files over.
    """
    disk = "hmac_file_server.stores.local"
    outside = {name: file for name, file in MODULES.items() if not name.startswith(disk)}
    knowing = {name for name in outside if any(other.startswith(disk) for other in IMPORTS[name])}
    without = {"importing", "housekeeping", "command"}
    assert {name for name in knowing if folder(name) not in without} == {"hmac_file_server.daemon.health"}
    for name, file in outside.items():
        if folder(name) in ("slots", "stores", "files"):
            tree = ast.parse(file.read_text())
            named = {alias.name for node in ast.walk(tree) if isinstance(node, ast.Import) for alias in node.names}
            assert not named & BLOCKS, name
            calls = {ast.unparse(node.func) for node in ast.walk(tree) if isinstance(node, ast.Call)}
            assert {call for call in calls if call.startswith("os.")} <= {"os.geteuid"}, name
