"""The page `docs/shapes.md`, made from signatures and docstrings: `python -m benchmarks.shapes`."""

from __future__ import annotations

import inspect
import re
import sys
from collections.abc import Iterator
from importlib import import_module
from typing import Any

__all__ = ["MODULES", "public", "shapes"]

MODULES = (
    "recognizer",
    "train.losses",
    "anchors.anss",
    "heads.anchor_bank",
    "heads.lgr",
    "heads.moments",
    "heads.plda",
    "heads.weighing",
    "heads.fusion",
    "heads.explanation",
    "anchors.index",
    "evaluation.metrics",
    "train.sampling",
)

_HEAD = """# Shapes

Made from the program by `python -m benchmarks.shapes > docs/shapes.md`: the public functions of the numeric
modules and `Recognizer`, with the shapes, dtypes and errors that their docstrings state.

B images in a batch, C classes, M anchors of a class at most, A anchors in all, D width of the vectors, N_t sentences,
N_i images; [concepts](concepts.md#1-words-and-shapes) has the words. Vectors are not normalised unless it is said.
"""
_SECTION = re.compile(r"^(Args|Attributes|Returns|Yields|Raises):$")
_ENTRY = re.compile(r"^ {4}(\w+): (.*)$")


def public(module: Any) -> Iterator[tuple[str, Any]]:
    """The functions and classes that a module itself defines and offers, with the classes' public methods."""
    for name, value in sorted(vars(module).items()):
        own = getattr(value, "__module__", None) == module.__name__
        if name.startswith("_") or not own or not callable(value):
            continue
        yield name, value
        if inspect.isclass(value):
            for member, method in vars(value).items():
                plain = method.__func__ if isinstance(method, classmethod | staticmethod) else method
                if not member.startswith("_") and inspect.isfunction(plain) and plain.__doc__:
                    yield f"{name}.{member}", plain


def shapes() -> str:
    """The page as Markdown."""
    parts = [_HEAD]
    for path in MODULES:
        module = import_module(f"vlltr_index.{path}")
        parts.append(f"## {module.__name__}\n\n{_escaped(inspect.getdoc(module) or '').splitlines()[0]}\n")
        parts.extend(_entry(name, value) for name, value in public(module))
    return "\n".join(parts)


def _entry(name: str, value: Any) -> str:
    signature = "" if inspect.isclass(value) and not _own_init(value) else _signature(value)
    return f"### {name}\n\n```python\n{name}{signature}\n```\n\n{_body(inspect.getdoc(value) or '')}\n"


def _own_init(value: type) -> bool:
    return "__init__" in vars(value)


def _signature(value: Any) -> str:
    """The parameters, one a line where there are several."""
    signature = inspect.signature(value)
    parameters = [p for p in signature.parameters.values() if p.name not in ("self", "cls")]
    shown: list[str] = []
    for number, parameter in enumerate(parameters):
        if parameter.kind is parameter.KEYWORD_ONLY and (
            not number or parameters[number - 1].kind < parameter.kind
        ):
            shown.append("*")
        shown.append(_parameter(parameter))
    result = signature.return_annotation
    after = "" if result is inspect.Signature.empty or inspect.isclass(value) else f" -> {result}"
    inside = "\n    " + ",\n    ".join(shown) + ",\n" if len(shown) > 1 else "".join(shown)
    return f"({inside}){after}"


def _parameter(parameter: inspect.Parameter) -> str:
    stars = "*" * (
        (parameter.kind is parameter.VAR_POSITIONAL) + 2 * (parameter.kind is parameter.VAR_KEYWORD)
    )
    default = "" if parameter.default is inspect.Parameter.empty else f" = {parameter.default!r}"
    return f"{stars}{parameter.name}: {parameter.annotation}{default}"


def _body(doc: str) -> str:
    """A docstring's sections as Markdown: entries as a list."""
    lines: list[str] = []
    section = ""
    for line in doc.splitlines():
        head = _SECTION.match(line)
        entry = _ENTRY.match(line)
        if head:
            section = head[1]
            lines += [f"**{section}**", ""]
        elif section in ("Args", "Attributes", "Raises") and entry:
            lines.append(f"- `{entry[1]}`: {_escaped(entry[2])}")
        else:
            if line and not line.startswith(" "):
                section = ""
            lines.append(
                ("  " if section in ("Args", "Attributes", "Raises") and line else "")
                + _escaped(line.strip())
            )
    return "\n".join(lines)


def _escaped(text: str) -> str:
    """Text whose stars, underscores and angle brackets Markdown leaves alone; code in backticks stays."""
    pieces = text.split("`")
    pieces[::2] = [re.sub(r"([*_<\[])", r"\\\1", piece) for piece in pieces[::2]]
    return "`".join(pieces)


if __name__ == "__main__":
    sys.stdout.write(shapes())
