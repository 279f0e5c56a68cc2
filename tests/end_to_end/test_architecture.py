"""The house: ten rooms, imports in one direction, one room for each heavy library, files of a readable size."""

from __future__ import annotations

import ast
import subprocess
import sys
import tomllib
from graphlib import TopologicalSorter
from pathlib import Path
from typing import get_args

import pytest

from vlltr_index.schemas.records import IndexKind

ROOT = Path(__file__).parents[2]
FOLDERS = {"vlltr_index": "vlltr_index"} | {
    name: f"vlltr_index.{name}" for name in ("cli", "train", "schemas", "recipes")
}
ORDER = (
    "recipes", "errors", "version", "wording", "tensors", "schemas", "heads", "encoders", "data", "store", "embedding",
    "anchors", "recognition", "train", "recognizer", "classes", "evaluation", "pipelines", "cli",
)  # fmt: skip
"""Rooms and modules of the root: each imports from those before it alone."""
BESIDE = {"recipes", "schemas", "train", "cli"}
DOORS = {
    "open_clip": "encoders",
    "lancedb": "store",
    "obstore": "data",
    "ray": "embedding",
    "faiss": "anchors",
    "gradio": "cli.ui",
}
FILE, FUNCTION = 600, 60  # lines at most; of a function without its docstring


def modules() -> dict[str, Path]:
    """Every module of the package by the name it is installed under."""
    found = {}
    for folder, package in FOLDERS.items():
        for path in (ROOT / folder).rglob("*.py"):
            parts = path.relative_to(ROOT / folder).with_suffix("").parts
            found[".".join([package, *(p for p in parts if p != "__init__")])] = path
    return found


MODULES = modules()
TREES = {name: ast.parse(path.read_text(encoding="utf-8")) for name, path in MODULES.items()}


def imports(name: str) -> set[str]:
    """What a module imports anywhere, for type checking too: our modules, and others as they are written."""
    found: set[str] = set()
    for node in ast.walk(TREES[name]):
        if isinstance(node, ast.Import):
            found.update(alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{name}: relative import in line {node.lineno}"
            full = [f"{node.module}.{alias.name}" for alias in node.names]
            found.update(item if item in MODULES else node.module or "" for item in full)
    return found


GRAPH = {name: imports(name) & set(MODULES) for name in MODULES}


def room(name: str) -> str:
    """The room of a module, or its own name in the root; empty for the package itself."""
    return name.split(".")[1] if "." in name else ""


def test_the_house_has_ten_rooms() -> None:
    """At most six modules lie in the root, the others in at most ten rooms, and each place is in the order."""
    assert {room(name) for name in MODULES} == {"", *ORDER}
    packages = {path.parent.name for path in (ROOT / "vlltr_index").glob("*/__init__.py")}
    assert len(packages) <= 10
    assert packages | BESIDE < set(ORDER)
    assert len(list((ROOT / "vlltr_index").glob("*.py"))) <= 6


def test_imports_go_one_way() -> None:
    """No room imports from one that comes after it, and no two files import each other, in however many steps."""
    order = {place: number for number, place in enumerate(ORDER)}
    back = [
        f"{name} -> {other}"
        for name, used in GRAPH.items()
        for other in used
        if room(name) and order[room(name)] < order.get(room(other), len(order))
    ]
    assert not back
    TopologicalSorter(GRAPH).prepare()  # a CycleError names the circle


@pytest.mark.parametrize("library", sorted(DOORS))
def test_heavy_libraries_have_one_room(library: str) -> None:
    """Only modules of the room named above import the library."""
    users = {name for name in MODULES if any(i.split(".")[0] == library for i in imports(name))}
    assert users
    assert all(name.startswith(f"vlltr_index.{DOORS[library]}.") for name in users)


def test_only_encoders_asks_which_family_there_is() -> None:
    """Other packages read the properties of `Family` that they need, so that a new family changes none of them."""
    for name, tree in TREES.items():
        if room(name) in ("encoders", "schemas"):
            continue
        found = {node.attr for node in ast.walk(tree) if isinstance(node, ast.Attribute)}
        assert "has_text_tower" not in found, name
        declared = {
            alias.name
            for node in ast.walk(tree)
            if isinstance(node, ast.ImportFrom) and node.module == "vlltr_index.schemas.encoders"
            for alias in node.names
        }
        assert declared <= {"Family", "Prompts"}, name


def test_only_anchors_asks_which_index_there_is() -> None:
    """Other packages pass the option on and get an index or none; `schemas.options` checks its value."""
    words = {"faiss", "exhaustive", *get_args(IndexKind)}
    for name, tree in TREES.items():
        if room(name) == "anchors" or name == "vlltr_index.schemas.options":
            continue
        compared = {
            one.value
            for node in ast.walk(tree)
            if isinstance(node, ast.Compare)
            for one in ast.walk(node)
            if isinstance(one, ast.Constant) and isinstance(one.value, str)
        }
        assert not compared & words, name
        used = {
            alias.name for node in ast.walk(tree) if isinstance(node, ast.ImportFrom) for alias in node.names
        }
        assert not used & {"FaissIndex", "TorchIndex", "WithDelta"}, name


def test_numeric_core_is_pure() -> None:
    """Heads, losses, selection and metrics know neither tables nor files."""
    pure = {name for name in MODULES if room(name) == "heads"} - {"vlltr_index.heads.checkpoint"}
    pure |= {f"vlltr_index.{name}" for name in ("train.losses", "anchors.anss", "evaluation.metrics")}
    for name in pure:
        used = {i.split(".")[0] for i in imports(name)}
        assert not used & {"lancedb", "faiss", "open_clip", "pyarrow", "pathlib", "json"}, name


def test_files_and_functions_are_of_a_readable_size() -> None:
    """What is longer is two things."""
    for name, path in MODULES.items():
        assert len(path.read_text(encoding="utf-8").splitlines()) <= FILE, name
        for node in ast.walk(TREES[name]):
            if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
                doc = node.body[0] if ast.get_docstring(node) is not None else None
                told = (doc.end_lineno or 0) - doc.lineno + 1 if doc is not None else 0
                assert (node.end_lineno or 0) - node.lineno + 1 - told <= FUNCTION, f"{name}.{node.name}"


def test_every_package_is_listed_and_installed() -> None:
    """The list in pyproject.toml has every package: one that is missing would vanish from the wheel alone."""
    config = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
    listed = set(config["tool"]["setuptools"]["packages"])
    assert listed == {name for name, path in MODULES.items() if path.name == "__init__.py"}


def test_importing_the_package_and_help_load_nothing_heavy() -> None:
    """`import vlltr_index` and `vlltr --help` load no torch, lancedb, faiss, open_clip, pyarrow, rich or sklearn."""
    code = (
        "import sys, vlltr_index\nfrom vlltr_index.cli.main import vlltr\n"
        "vlltr.main(['--help'], standalone_mode=False)\n"
        "heavy = {'torch', 'lancedb', 'faiss', 'open_clip', 'pyarrow', 'torchvision', 'numpy', 'rich', 'sklearn'}\n"
        "print(sorted(heavy & set(sys.modules)), file=sys.stderr)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stderr.strip() == "[]"
    assert "quickstart" in done.stdout


def test_public_api_is_what_all_says() -> None:
    """The package's lazy names resolve and are the ones listed."""
    import vlltr_index

    for name in vlltr_index.__all__:
        assert getattr(vlltr_index, name) is not None
    assert dir(vlltr_index) == sorted(vlltr_index.__all__)
    with pytest.raises(AttributeError, match="no attribute 'nothing'"):
        _ = vlltr_index.nothing
