"""Imports go one way, heavy libraries have one door each, and public names are what `__all__` says."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
FOLDERS = {"vlltr_index": "vlltr_index", "cli": "vlltr_index.cli", "train": "vlltr_index.train"}
FOLDERS |= {"schemas": "vlltr_index.schemas", "recipes": "vlltr_index.recipes"}

# A module may import from its own layer and from those below it (a lower number).
LAYERS = {
    "errors": 0,
    "version": 0,
    "wording": 0,
    "schemas": 1,
    "tensors": 1,
    "corpus": 2,
    "images": 2,
    "recipe": 2,
    "glyphs": 2,
    "recipes": 2,
    "models": 2,
    "weights": 2,
    "tokenizing": 2,
    "openclip": 2,
    "sources": 3,
    "encoder": 3,
    "store": 3,
    "lock": 3,
    "storage": 3,
    "history": 3,
    "classtable": 3,
    "snapshot": 3,
    "transaction": 3,
    "workspace": 3,
    "losses": 3,
    "anchors": 3,
    "bank": 3,
    "rows": 3,
    "nearest": 3,
    "lgr": 3,
    "lgr_autograd": 3,
    "index": 3,
    "fusion": 3,
    "metrics": 3,
    "generative": 3,
    "weighing": 3,
    "holdout": 3,
    "explanation": 4,
    "retrieval": 4,
    "heads": 4,
    "release_weights": 4,
    "loading": 4,
    "engines": 4,
    "ray_engine": 4,
    "embedding": 4,
    "crops": 4,
    "selection": 5,
    "search": 6,
    "sheet": 3,
    "doctor": 5,
    "scoring": 5,
    "answers": 6,
    "recognizer": 6,
    "pretrained": 6,
    "ingestion": 6,
    "classes": 6,
    "train": 6,
    "examination": 6,
    "report": 6,
    "baselines": 6,
    "stages": 7,
    "page": 7,
    "cli": 8,
}
DOORS = {
    "lancedb": {"store"},
    "obstore": {"storage"},
    "faiss": {"index"},
    "open_clip": {"openclip", "sources"},
    "gradio": {"page.blocks", "page.server"},
    "ray": {"ray_engine"},
}


def modules() -> dict[str, Path]:
    """Every module of the package by the name it is installed under."""
    found = {}
    for folder, package in FOLDERS.items():
        for path in (ROOT / folder).rglob("*.py"):
            parts = path.relative_to(ROOT / folder).with_suffix("").parts
            found[".".join([package, *(p for p in parts if p != "__init__")])] = path
    return found


def imports(path: Path, name: str) -> set[str]:
    """Absolute names a module imports at run time (imports for type checking alone are left out)."""
    found: set[str] = set()
    tree = ast.parse(path.read_text(encoding="utf-8"))
    typing_only = {
        id(inner)
        for node in ast.walk(tree)
        if isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING"
        for inner in ast.walk(node)
    }
    for node in ast.walk(tree):
        if id(node) in typing_only:
            continue
        if isinstance(node, ast.Import):
            found.update(alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{name}: relative import in line {node.lineno}"
            found.add(node.module or "")
            found.update(f"{node.module}.{alias.name}" for alias in node.names)
    return found


def layer_of(name: str) -> int | None:
    """The layer of a module, None for the package itself and what is not ours."""
    parts = name.split(".")
    if parts[0] != "vlltr_index" or len(parts) < 2:
        return None
    return LAYERS.get(parts[1])


def test_every_module_has_a_layer() -> None:
    """A new module must be given its room."""
    missing = {n for n in modules() if n.count(".") >= 1 and layer_of(n) is None}
    assert not missing


def test_imports_go_one_way() -> None:
    """No module imports from a layer above its own."""
    wrong = []
    for name, path in modules().items():
        mine = layer_of(name)
        if mine is None:
            continue
        wrong += [f"{name} -> {other}" for other in imports(path, name) if (layer_of(other) or 0) > mine]
    assert not wrong


@pytest.mark.parametrize("library", sorted(DOORS))
def test_heavy_libraries_have_one_door(library: str) -> None:
    """Only the modules named here import the library."""
    users = set()
    for name, path in modules().items():
        if any(i == library or i.startswith(library + ".") for i in imports(path, name)):
            users.add(name.removeprefix("vlltr_index."))
    assert users <= DOORS[library]


def test_numeric_core_is_pure() -> None:
    """Losses, anchors, head and what decides between them know neither tables nor files."""
    listing = modules()
    losses, decision = (
        ("losses", "anchors", "lgr", "lgr_autograd", "bank"),
        ("fusion", "generative", "weighing"),
    )
    for short in (*losses, *decision, "metrics"):
        name = f"vlltr_index.{short}"
        used = {i.split(".")[0] for i in imports(listing[name], name)}
        assert not used & {"lancedb", "faiss", "open_clip", "pyarrow", "pathlib", "json"}, short


def test_every_package_is_listed_and_installed() -> None:
    """The list in pyproject.toml has every package: one that is missing would vanish from the wheel alone."""
    import tomllib

    config = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
    listed = set(config["tool"]["setuptools"]["packages"])
    there = {n for n, path in modules().items() if path.name == "__init__.py"}
    assert listed == there


def test_all_names_what_there_is() -> None:
    """Each name in a module's `__all__` is defined there, and each module with public functions has one."""
    for name, path in modules().items():
        tree = ast.parse(path.read_text(encoding="utf-8"))
        exported = next(
            (
                ast.literal_eval(node.value)
                for node in tree.body
                if isinstance(node, ast.Assign) and ast.unparse(node.targets[0]) == "__all__"
            ),
            None,
        )
        defined = {n.name for n in tree.body if isinstance(n, ast.FunctionDef | ast.ClassDef)}
        for node in tree.body:
            if isinstance(node, ast.Assign):
                defined |= {ast.unparse(target) for target in node.targets}
            elif isinstance(node, ast.AnnAssign):
                defined.add(ast.unparse(node.target))
            elif isinstance(node, ast.ImportFrom | ast.Import):
                defined |= {alias.asname or alias.name.split(".")[0] for alias in node.names}
        if exported is not None and name != "vlltr_index":
            assert set(exported) <= defined, name


def test_importing_the_package_and_help_load_nothing_heavy() -> None:
    """`import vlltr_index` and `vlltr --help` load no torch, lancedb, faiss, open_clip, pyarrow or rich."""
    code = (
        "import sys, vlltr_index\nfrom vlltr_index.cli.main import vlltr\n"
        "vlltr.main(['--help'], standalone_mode=False)\n"
        "heavy = {'torch', 'lancedb', 'faiss', 'open_clip', 'pyarrow', 'torchvision', 'numpy', 'rich'}\n"
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


def test_no_leftover_prints_or_pickles() -> None:
    """Library code neither prints nor unpickles."""
    for name, path in modules().items():
        if name.startswith(("vlltr_index.cli", "vlltr_index.recipes.glyphs_lt.build")):
            continue
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Call):
                called = ast.unparse(node.func)
                assert called != "print", name
                assert not called.startswith("pickle."), name
