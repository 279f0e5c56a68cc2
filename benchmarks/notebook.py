"""The page docs/notebook.md: run its code, and write what it gives into the page.

    python -m benchmarks.notebook

Runs the Python blocks of the page in order, in an empty folder. What a block prints is the block of text behind it; a
picture as its last expression is the file in docs/notebook/ that the link behind it names.
"""

from __future__ import annotations

import ast
import os
import re
import sys
import tempfile
import warnings
from contextlib import redirect_stderr, redirect_stdout
from io import BytesIO, StringIO
from pathlib import Path
from typing import Any

from PIL import Image

PAGE = Path(__file__).parents[1] / "docs" / "notebook.md"
PICTURES = PAGE.with_suffix("")
_BLOCK = re.compile(
    r"^```python\n(?P<code>.*?)^```\n(\n(```text\n.*?^```|(?P<link>!\[[^]]*\]\(notebook/(?P<name>[\w-]+\.png)\)))\n)?",
    re.M | re.S,
)


def run(page: str, folder: Path) -> tuple[str, dict[str, bytes]]:
    """Return the page with the outputs that its code gives in `folder`, an empty one, and its pictures by file name."""
    names: dict[str, Any] = {"__name__": "__main__"}
    pictures: dict[str, bytes] = {}

    def done(block: re.Match[str]) -> str:
        printed, value = _run(block["code"], names)
        parts = [f"```python\n{block['code']}```\n"]
        if printed:
            parts.append(f"```text\n{printed.rstrip()}\n```\n")
        if isinstance(value, Image.Image):
            pictures[block["name"]] = _png(value)
            parts.append(f"{block['link']}\n")
        return "\n".join(parts)

    before = Path.cwd()
    os.chdir(folder)
    try:
        return _BLOCK.sub(done, page), pictures
    finally:
        os.chdir(before)


def _run(code: str, names: dict[str, Any]) -> tuple[str, object]:
    """Return what a block prints, and the value of its last line if that is an expression."""
    tree = ast.parse(code)
    last = tree.body[-1]
    value = None
    printed = StringIO()
    with redirect_stdout(printed), redirect_stderr(StringIO()), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        if isinstance(last, ast.Expr):
            exec(compile(ast.Module(tree.body[:-1], []), PAGE.name, "exec"), names)
            value = eval(compile(ast.Expression(last.value), PAGE.name, "eval"), names)
        else:
            exec(compile(tree, PAGE.name, "exec"), names)
    return printed.getvalue(), value


def _png(picture: Image.Image) -> bytes:
    file = BytesIO()
    picture.quantize(64).save(file, "PNG", optimize=True)
    return file.getvalue()


def write() -> None:
    """Run the page, and write it and its pictures."""
    with tempfile.TemporaryDirectory() as folder:
        page, pictures = run(PAGE.read_text(encoding="utf-8"), Path(folder))
    PAGE.write_text(page, encoding="utf-8")
    PICTURES.mkdir(exist_ok=True)
    for old in PICTURES.glob("*.png"):
        if old.name not in pictures:
            old.unlink()
    for name, data in pictures.items():
        (PICTURES / name).write_bytes(data)


if __name__ == "__main__":
    sys.exit(write())
