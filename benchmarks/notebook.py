"""The notebook: run it, keep its outputs, and write its page.

    python -m benchmarks.notebook

Runs the code cells of docs/notebook.ipynb in order, in an empty folder, puts what they give into the notebook, and
writes docs/notebook.md with its pictures in docs/notebook/.
"""

from __future__ import annotations

import ast
import base64
import json
import os
import sys
import tempfile
import warnings
from contextlib import redirect_stderr, redirect_stdout
from io import BytesIO, StringIO
from pathlib import Path
from typing import Any

from PIL import Image

DOCS = Path(__file__).parents[1] / "docs"
NOTEBOOK = DOCS / "notebook.ipynb"

Cell = dict[str, Any]


def read(path: Path = NOTEBOOK) -> dict[str, Any]:
    """The notebook as its file says it."""
    found: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    return found


def run(notebook: dict[str, Any], folder: Path) -> dict[str, Any]:
    """The notebook with the outputs that its code cells give in `folder`, an empty one."""
    names: dict[str, Any] = {"__name__": "__main__"}
    before = Path.cwd()
    os.chdir(folder)
    try:
        cells = [_run(cell, names, number) for number, cell in enumerate(notebook["cells"])]
    finally:
        os.chdir(before)
    return notebook | {"cells": cells}


def _run(cell: Cell, names: dict[str, Any], number: int) -> Cell:
    """A cell with its outputs: what it prints, and the value of a last line that is an expression."""
    if cell["cell_type"] != "code":
        return cell
    tree = ast.parse("".join(cell["source"]))
    last = tree.body[-1]
    value = None
    printed = StringIO()
    with redirect_stdout(printed), redirect_stderr(StringIO()), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        if isinstance(last, ast.Expr):
            exec(compile(ast.Module(tree.body[:-1], []), f"cell {number}", "exec"), names)
            value = eval(compile(ast.Expression(last.value), f"cell {number}", "eval"), names)
        else:
            exec(compile(tree, f"cell {number}", "exec"), names)
    outputs: list[dict[str, Any]] = []
    if printed.getvalue():
        outputs.append({"name": "stdout", "output_type": "stream", "text": _lines(printed.getvalue())})
    if value is not None:
        outputs.append({"output_type": "display_data", "metadata": {}, "data": _shown(value)})
    return cell | {"outputs": outputs, "execution_count": None}


def _lines(text: str) -> list[str]:
    return text.splitlines(keepends=True)


def _shown(value: object) -> dict[str, Any]:
    """What a value is shown as: a picture, or its text."""
    if not isinstance(value, Image.Image):
        return {"text/plain": _lines(repr(value))}
    file = BytesIO()
    value.quantize(64).save(file, "PNG", optimize=True)
    size = f"a picture of {value.width} x {value.height} pixels"
    return {"image/png": base64.b64encode(file.getvalue()).decode() + "\n", "text/plain": [size]}


def pictures(notebook: dict[str, Any]) -> dict[str, bytes]:
    """The notebook's pictures as PNG files, by name: the cell's id."""
    return {
        f"{cell['id']}.png": base64.b64decode(output["data"]["image/png"])
        for cell in notebook["cells"]
        for output in cell.get("outputs", ())
        if "image/png" in output.get("data", {})
    }


def page(notebook: dict[str, Any]) -> str:
    """The notebook as a page in Markdown, with its pictures in `notebook/`."""
    parts = []
    for cell in notebook["cells"]:
        source = "".join(cell["source"])
        if cell["cell_type"] == "markdown":
            parts.append(source)
            continue
        parts.append(f"```python\n{source}\n```")
        for output in cell["outputs"]:
            data = output.get("data", {})
            if "image/png" in data:
                parts.append(f"![{cell['metadata']['caption']}](notebook/{cell['id']}.png)")
            else:
                text = "".join(output.get("text", data.get("text/plain", ())))
                parts.append(f"```text\n{text.rstrip()}\n```")
    return "\n\n".join(parts) + "\n"


def write() -> None:
    """Run the notebook, and write it, its page and its pictures."""
    with tempfile.TemporaryDirectory() as folder:
        notebook = run(read(), Path(folder))
    NOTEBOOK.write_text(json.dumps(notebook, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
    (DOCS / "notebook.md").write_text(page(notebook), encoding="utf-8")
    place = DOCS / "notebook"
    place.mkdir(exist_ok=True)
    found = pictures(notebook)
    for old in place.glob("*.png"):
        if old.name not in found:
            old.unlink()
    for name, data in found.items():
        (place / name).write_bytes(data)


if __name__ == "__main__":
    sys.exit(write())
