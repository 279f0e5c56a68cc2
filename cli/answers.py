"""Lines of an answer: a prediction with its sentences, and why an image is, or is not, of a class."""

from __future__ import annotations

from collections.abc import Sequence

from vlltr_index.cli.terminal import broken, percent
from vlltr_index.schemas.records import ClassScore, Prediction, SentenceShare, by_group
from vlltr_index.wording import NO_DIFFERENCE, NOTHING_KNOWN, UNKNOWN

_INDENT = " " * 11
_SILENT = f"{NO_DIFFERENCE} (vlltr status says what texts are used for)"
_BARE = "none of these classes has a sentence"


def prediction_lines(prediction: Prediction, width: int | None = None, covered: bool = False) -> list[str]:
    """Return a prediction as lines: classes with image part and text part, and below each its sentences, by share.

    Args:
        prediction: What the recognizer says of one image.
        width: Columns to break lines at; none: a sentence a line, however long.
        covered: Whether the answer is that of a rank (`--min-accuracy`).
    """
    if prediction.problem is not None:
        return [f"{prediction.image}: not read: {prediction.problem}"]
    lines = [prediction.image + (f"   group {prediction.group}" if prediction.group else "")]
    silent = _silent(prediction.classes)
    answer = prediction.answer
    best = ", ".join(f"{s.name} {percent(s.probability)} %" for s in prediction.classes[:3])
    if prediction.known is False:
        return [*lines, f"  none of these (closest: {best})"]
    if covered and answer is None:
        return [*lines, f"  no answer at any rank (closest: {best})"]
    if answer is None and not prediction.classes:
        return [*lines, "  no class is probable enough (--min-probability)"]
    if answer is not None:
        lines.append(
            f"  {percent(answer.probability):>5} %  {answer.node} ({answer.rank})   (closest: {best})"
        )
        lines += [] if silent else _said(by_group(answer.sentences), width)
    for score in prediction.classes if answer is None else ():
        lines += _head(score, width)
        lines += _said(score.folded, width) if score.is_explained_by_text else []
        lines += [f"{_INDENT}near {near.cosine:.3f}  {near.uri}" for near in score.neighbours]
    return lines + _notes(prediction.classes, silent, width)


def _said(groups: Sequence[Sequence[SentenceShare]], width: int | None) -> list[str]:
    """Return groups of sentences with their per cent, which is negative for what speaks against the answer."""
    lines: list[str] = []
    for group in groups:
        share = sum(sentence.percent for sentence in group)
        if round(share):
            more = f" (and {len(group) - 1} like it)" if len(group) > 1 else ""
            said = f"{group[0].text}{more}  [{group[0].source}]"
            lines += broken(f"{_INDENT}{round(share):3d} %  ", said, width)
    return lines


def _head(score: ClassScore, width: int | None) -> list[str]:
    """Return a class with a bar of image part and text part beside it, or below it in a narrow terminal."""
    head = f"  {percent(score.probability):>5} %  {score.name}"
    if score.unknown:
        return [head, *broken(_INDENT, UNKNOWN, width)]
    sides = {"image": score.image_part, "text": 0.0 if score.mute else score.text_part}
    against = " and ".join(name for name, part in sides.items() if part < 0)
    bar = against and f"{against} against it"
    share = round(100 * score.image_share)
    drawn = "█" * round(share / 10) + "░" * (10 - round(share / 10))
    if min(sides.values()) > 0:
        bar = f"image {share} % {drawn} text {100 - share} %"
    elif max(sides.values()) > 0:
        bar = f"{'image' if share else 'text'} alone" + (bar and f", {bar}")
    if score.prior_part:
        bar = ", ".join(filter(None, (bar, f"how common it is {score.prior_part:+.1f}")))
    if bar and width is not None and len(head) + len(bar) + 3 > width:
        return [head, _INDENT + bar]
    return [f"{head}   {bar}".rstrip()]


def _notes(scores: Sequence[ClassScore], silent: bool, width: int | None) -> list[str]:
    """Return notes on what the numbers mean and what a prompt is, or why no sentence decided."""
    sentences = [s for score in scores for s in score.sentences]
    if silent:
        notes = _silence(scores)
    elif not sentences:
        notes = []
    else:
        notes = ["%: the sentence's share of what speaks for or against the class"]
        hidden = [s.name for s in scores if s.sentences and not s.is_explained_by_text]
        if hidden:
            notes.append(f"{', '.join(hidden)}: {NO_DIFFERENCE}")
        if any(s.source == "prompt" for s in sentences):
            notes.append("[prompt]: a sentence made of the class's name alone")
    if any(score.neighbours for score in scores):
        notes.append("near: a training picture of the class, and its cosine")
    notes += _without_images(scores)
    return broken("  ", "; ".join(notes), width) if notes else []


def _without_images(scores: Sequence[ClassScore]) -> list[str]:
    """Say what the image side of classes without training pictures is, if there are some."""
    names = ", ".join(score.name for score in scores if score.without_images and not score.unknown)
    return [f"no training picture: {names}; the image side is {NOTHING_KNOWN}"] if names else []


def _silent(scores: Sequence[ClassScore]) -> bool:
    """Say whether no class is explained by its text."""
    return not any(score.is_explained_by_text for score in scores)


def _silence(scores: Sequence[ClassScore]) -> list[str]:
    """Say why no sentence decided, as far as sentences were asked for: the classes have none, or they said nothing."""
    if any(score.sentences for score in scores):
        return [_SILENT]
    return [_BARE] if scores and all(score.text_score is not None for score in scores) else []


def explanation_lines(image: str, scores: Sequence[ClassScore], width: int | None = None) -> list[str]:
    """Return one class, or two to compare, as lines with all anchor sentences, wrapped at `width` columns."""
    from vlltr_index.recognition.in_words import contrast

    lines = [image]
    if len(scores) == 2:
        lines += broken("  ", contrast(*scores), width)
    for score in scores:
        image_part = score.image_part
        text_part = score.text_part
        parts = f"image branch {percent(image_part)} + text branch {percent(text_part)}"
        if score.unit == "log-odds":
            total = image_part + text_part + score.prior_part
            parts = f"log-odds {total:+.2f} = image side {image_part:+.2f}, text {text_part:+.2f}"
            parts += f", how common it is {score.prior_part:+.2f}" if score.prior_part else ""
        lines += _head(score, width)
        if score.unknown:
            continue
        attended = score.cosine is not None
        cosine = f", cosine {score.cosine:.3f}" if attended else ""
        lines += broken(_INDENT, f"{parts}; text score {score.text_score:+.3f}{cosine}", width)
        if not score.is_explained_by_text:
            for s in score.sentences:
                lines += broken(_INDENT, f"{s.text}  [{s.source}]", width)
            continue
        lines.append(f"{_INDENT}    %   share  effect" + ("  attention" if attended else ""))
        for s in score.sentences:
            numbers = f"{s.percent:5.1f}  {s.share:+.3f}  {s.effect:+.3f}  "
            numbers += f"{s.attention:.3f}  " if attended else ""
            lines += broken(_INDENT + numbers, f"{s.text}  [{s.source}]", width)
    said = "share: points of the text score, which all shares add up to; effect: what it loses without the sentence"
    known = [score for score in scores if not score.unknown]
    notes = [*(_silence(known) if _silent(known) else [said]), *_without_images(known)] if known else []
    return lines + [line for note in notes for line in broken("  ", note, width)]
