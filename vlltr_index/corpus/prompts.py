"""Prompts: sentences that any class has, made from its name."""

from __future__ import annotations

import re
from collections.abc import Sequence

from vlltr_index.errors import ConfigError
from vlltr_index.schemas.records import SentenceRecord

__all__ = ["DEFAULT_PROMPTS", "class_prompts"]

_QUALITIES = (
    "good", "bad", "bright", "dark", "sharp", "blurry", "small", "large", "clean", "grainy",
    "close-up", "cropped", "low-resolution", "high-resolution", "black and white", "colourful", "faded",
    "overexposed", "underexposed", "old", "recent", "professional", "amateur", "casual",
)  # fmt: skip
_OBJECTS = (
    "big", "little", "young", "old", "new", "clean", "dirty", "pretty", "odd", "common", "rare", "typical",
    "single", "whole", "colourful", "plain", "wild", "beautiful",
)  # fmt: skip
_MEDIA = (
    "drawing", "painting", "sketch", "sculpture", "toy", "print", "poster", "cartoon", "illustration", "rendering",
    "tattoo", "mosaic", "stamp", "scan", "video frame", "logo", "engraving", "watercolour",
)  # fmt: skip
_PLACES = (
    "a photo of a {} outdoors.", "a photo of a {} indoors.", "a photo of a {} at night.",
    "a photo of a {} in daylight.",
    "a photo of a {} from above.", "a photo of a {} from the side.", "a photo of a {} from the front.",
    "a photo of a {} from behind.", "a photo of a {} far away.", "a photo of a {} partly hidden.",
    "a photo of a {} in its usual surroundings.", "a photo of a {} on a plain background.",
    "a photo of one {}.", "a photo of part of a {}.", "a photo of my {}.", "a photo of the {}.",
    "this is a {}.", "there is a {} in the scene.", "an image of a {}.",
)  # fmt: skip


def _article(word: str) -> str:
    return "an" if word[0] in "aeiou" else "a"


DEFAULT_PROMPTS: tuple[str, ...] = (
    "a photo of a {}.",
    *(f"{_article(quality)} {quality} photo of a {{}}." for quality in _QUALITIES),
    *(f"a photo of {_article(quality)} {quality} {{}}." for quality in _OBJECTS),
    *(f"{_article(medium)} {medium} of a {{}}." for medium in _MEDIA),
    *_PLACES,
)
"""The 80 templates for photographs; `{}` stands for the class name."""

_KEY = re.compile(r" \(n\d{8}\)$")  # a WordNet id that tells two classes of one name apart
_SLOT = re.compile(r"(?:\b([Aa]n?|[Tt]he) )?\{\}")
_OWN_ARTICLE = re.compile(r"(?:a|an|the)\s", re.IGNORECASE)
_VOWEL_SOUND = re.compile(r"(?:[aeiou]|hour|honest|honou?r|heir|8|11\b|18\b)", re.IGNORECASE)
_CONSONANT_SOUND = re.compile(
    r"(?:eu|ewe|one|once|u(?:ni(?![nm])|s[ae]|kulele|biqu|tensil|topi|r[aeiou]))", re.IGNORECASE
)


def class_prompts(class_name: str, templates: Sequence[str] | None = None) -> list[SentenceRecord]:
    """One sentence for each template, with `a` or `an` as the name asks and underscores as spaces.

    Of `crane (n02012849)` the name is `crane`.

    Args:
        class_name: The class, as it is named in the workspace.
        templates: Each with one `{}`; none given: the 80 for photographs.

    Raises:
        ConfigError: If a template has no `{}`, or more than one.
    """
    spoken = " ".join(_KEY.sub("", class_name).replace("_", " ").split())
    chosen = DEFAULT_PROMPTS if templates is None else templates
    return [SentenceRecord(class_name, _fill(template, spoken), "prompt") for template in chosen]


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
