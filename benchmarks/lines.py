"""Lines of code of the library: without blank lines, comments and docstrings.

python -m benchmarks.lines
"""

from __future__ import annotations

import ast
import io
import tokenize
from pathlib import Path

ROOT = Path(__file__).parents[1]
FOLDERS = ("vlltr_index", "cli", "train", "schemas")
_NO_CODE = {tokenize.COMMENT, tokenize.NL, tokenize.NEWLINE, tokenize.INDENT, tokenize.DEDENT}


def code_lines(source: str) -> int:
    """Lines of a module that hold code."""
    lines = {
        line
        for token in tokenize.generate_tokens(io.StringIO(source).readline)
        if token.type not in _NO_CODE and token.type != tokenize.ENDMARKER
        for line in range(token.start[0], token.end[0] + 1)
    }
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
            first = node.body[0] if node.body else None
            if ast.get_docstring(node, clean=False) is not None and first is not None:
                lines -= set(range(first.lineno, (first.end_lineno or first.lineno) + 1))
    return len(lines)


def main() -> None:
    """Print a line a folder, and the sum."""
    counts = {
        folder: sum(code_lines(p.read_text(encoding="utf-8")) for p in sorted((ROOT / folder).rglob("*.py")))
        for folder in FOLDERS
    }
    for name, count in [*counts.items(), ("all", sum(counts.values()))]:
        print(f"{count:7,} {name}")  # noqa: T201 # what it is for


if __name__ == "__main__":
    main()
