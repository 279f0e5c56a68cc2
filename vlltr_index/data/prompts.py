"""Prompts: sentences that any class has, made from its name."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path
from typing import Literal

from vlltr_index.data.files import read_lines, require
from vlltr_index.data.text import normalise_text
from vlltr_index.errors import ConfigError, InputError
from vlltr_index.schemas.records import SentenceRecord

_KEY = re.compile(r" \(n\d{8}\)$")  # a WordNet id that tells two classes of one name apart
_SLOT = re.compile(r"(?:\b([Aa]n?|[Tt]he) )?\{\}")
_OWN_ARTICLE = re.compile(r"(?:a|an|the)\s", re.IGNORECASE)
_VOWEL_SOUND = re.compile(r"(?:[aeiou]|hour|honest|honou?r|heir|8|11\b|18\b)", re.IGNORECASE)
_CONSONANT_SOUND = re.compile(
    r"(?:eu|ewe|one|once|u(?:ni(?![nm])|s[ae]|kulele|biqu|tensil|topi|r[aeiou]))", re.IGNORECASE
)


def class_prompts(class_name: str, templates: Literal["clip"] | Sequence[str]) -> list[SentenceRecord]:
    """One sentence for each template, with `a` or `an` as the name asks and underscores as spaces.

    Of `crane (n02012849)` the name is `crane`.

    Args:
        class_name: The class, as it is named in the workspace.
        templates: Each with one `{}`; "clip": the 80 that CLIP was evaluated with.

    Raises:
        ConfigError: If a template has no `{}`, or more than one.
    """
    spoken = " ".join(_KEY.sub("", class_name).replace("_", " ").split())
    if templates == "clip":
        from vlltr_index.encoders.openclip import (
            clip_templates,  # takes seconds, so only where prompts are made
        )

        templates = clip_templates()
    return [SentenceRecord(class_name, _fill(template, spoken), "prompt") for template in templates]


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


def _fill(template: str, name: str) -> str:
    if template.count("{}") != 1:
        raise ConfigError(
            f"the prompt {template!r} must have one {{}}, where the class name goes",
            "For example: prompts = ['a photo of a {}.']",
        )
    return _SLOT.sub(lambda slot: _with_article(slot.group(1), name), template)


def _with_article(article: str | None, name: str) -> str:
    if article is None or _OWN_ARTICLE.match(name):
        return name
    if article.lower() == "the":
        return f"{article} {name}"
    vowel = _VOWEL_SOUND.match(name) and not _CONSONANT_SOUND.match(name)
    return f"{article[0]}{'n' if vowel else ''} {name}"
