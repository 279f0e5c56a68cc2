"""Explain in words: which sentences say the same, and why one class rather than another."""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Hashable, Iterable, Mapping, Sequence

from vlltr_index.schemas.records import ClassScore

_WORD = re.compile(r"[^\W_]+")


def template_groups(sentences: Iterable[tuple[int, str, str]], names: Mapping[int, str]) -> list[Hashable]:
    """Return a group key for each sentence that is a template around its class's name, None for every other one.

    All prompts have one key. Any other sentence is a template if it contains the class's name, or words of it, and its
    other words occur in sentences of at least a tenth of the classes (two at least), as in "a picture of the X."; its
    key depends on these words and on the words of the name. "The kestrel has pointed wings." is not a template: no
    other class has that sentence.

    Args:
        sentences: Class id, text and source of each, of all classes.
        names: Class id to name.
    """
    spoken = {class_id: _words(name) for class_id, name in names.items()}
    found = []
    users = defaultdict[str, set[int]](set)
    for class_id, text, source in sentences:
        words = () if source == "prompt" else _words(text)
        name = spoken[class_id]
        own = frozenset(name)
        said = f" {' '.join(words)} ".split(f" {' '.join(name)} ")
        rest = [w for w in words if w not in own]
        template = "{}".join(said) if len(said) > 1 else " ".join(rest)
        users[template].add(class_id)
        found.append((source == "prompt", template, own.intersection(words)))
    least = max(2, len({i for ids in users.values() for i in ids}) / 10)
    return [
        (prompt, said) if prompt or (said and len(users[template]) >= least) else None
        for prompt, template, said in found
    ]


def _words(text: str) -> tuple[str, ...]:
    return tuple(_WORD.findall(text.casefold()))


def numbered(said: Sequence[Hashable]) -> list[int]:
    """Number the groups of a class's sentences, from `template_groups`, by the place of the first in each."""
    first: dict[Hashable, int] = {}
    return [first.setdefault(place if what is None else what, place) for place, what in enumerate(said)]


def contrast(one: ClassScore, other: ClassScore) -> str:
    """Say in one sentence why the likelier of two classes is the answer, and not the other.

    Args:
        one: A class with its sentences.
        other: Another class of the same image, with its sentences.
    """
    image, text, prior = _difference(one, other)
    if image + text + prior < 0:
        one, other = other, one
        image, text, prior = -image, -text, -prior
    if other.unknown and not one.unknown:
        return f"{one.name} rather than {other.name} because nothing is known of the latter"
    if image > 0 and text > 0:
        share = round(100 * image / (image + text))
        why = f"the image ({share} % of the difference) and the text ({100 - share} %) both speak for it"
    elif image == text == 0:
        why = "image and text make no difference" if prior else "both are as likely"
    elif text == 0:
        why = f"the image speaks {'for' if image > 0 else 'against'} it; the text makes no difference"
    elif max(image, text) <= 0:  # how common they are decides
        why = "neither the image nor the text speaks for it"
    else:
        first = "the image" if image > 0 else "the text"
        second = "the text" if image > 0 else "the image"
        more = "more" if image + text > 0 else "less"
        why = f"{first} speaks for it" + (f", {more} than {second} against it" if image else "")
    if prior:
        why += f"; it is the {'more common' if prior > 0 else 'rarer'} one"
    speaking = one if text > 0 else other
    common = {s.text for s in one.sentences} & {s.text for s in other.sentences}  # these tell neither apart
    own = (s for s in speaking.sentences if s.text not in common)
    best = max(own, key=lambda s: s.effect, default=None)
    if text and best is not None and best.effect > 0:
        why += f'. The text\'s best argument{"" if text > 0 else " against it"}: "{best.text}"'
    return f"{one.name} rather than {other.name} because {why}"


def _difference(one: ClassScore, other: ClassScore) -> tuple[float, float, float]:
    """Return the image's, the text's and the prior's part of log P(one) / P(other), or of the difference of both
    probabilities.

    Parts of log-odds are against the best other class, which is `other` if one of the two is the best, else a third.
    """
    mine, theirs = ((s.image_part, s.text_part, s.prior_part) for s in (one, other))
    image, text, prior = (own - others for own, others in zip(mine, theirs, strict=True))
    if one.unit == "log-odds" and sum(mine) > 0:
        image, text, prior = (-part for part in theirs)
    elif one.unit == "log-odds" and sum(theirs) > 0:
        image, text, prior = mine
    return image, text, prior
