"""Which templates the prompts of a workspace are made from."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

from vlltr_index.corpus.clean import normalise_text
from vlltr_index.corpus.files import read_lines, require
from vlltr_index.corpus.prompts import class_prompts
from vlltr_index.errors import InputError

__all__ = ["prompt_templates"]


def prompt_templates(which: str) -> Literal["clip"] | tuple[str, ...]:
    """What a recipe's `prompts` are: "clip" as it is, or the templates of a text file with one a line.

    Blank lines, and lines that start with `#`, are left out.

    Raises:
        InputError: If the file is missing or has no template.
        ConfigError: If a template does not have one `{}`.
    """
    if which == "clip":
        return "clip"
    path = Path(which).expanduser()
    lines = (normalise_text(line) for _, line in read_lines(require(path)))
    templates = tuple(line for line in lines if line and not line.startswith("#"))
    if not templates:
        raise InputError(f"{path} has no template", "Write one a line, such as: a photo of a {}.")
    class_prompts("a class", templates)  # raises for one that cannot be filled
    return templates
