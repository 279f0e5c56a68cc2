"""What an evaluation means, in sentences: against chance and simple rules, and which classes and texts suffer."""

from __future__ import annotations

from vlltr_index.evaluation.metrics import COMMON, METHOD, ClassFigures, EvaluationReport, Interval
from vlltr_index.wording import plural

_NAMED = 5
_SIMPLE = ("ncm", "discriminant", "zero-shot", "knn", "tip-adapter")
_HALF = 0.5


def verdict(report: EvaluationReport) -> tuple[str, ...]:
    """Say what an evaluation means, the worst first; each sentence stands by itself."""
    mine = report.rows[METHOD].top1["overall"]
    said = [*caveats(report), _accuracy(report, mine), *_common(report)]
    if report.tested < len(report.by_class):
        classes = plural(len(report.by_class), "class", "classes")
        said.append(f"{report.tested} of {classes} tested.")
    said += _sufferers(report.by_class, report.texts_count)
    return tuple(said)


def caveats(report: EvaluationReport) -> tuple[str, ...]:
    """Say what is to be known before any figure; the first sentences of the verdict."""
    mine = report.rows[METHOD].top1["overall"]
    return (*_near_chance(report, mine), *_doubts(report, mine))


def _doubts(report: EvaluationReport, mine: Interval) -> list[str]:
    """Say what the figures cannot tell: of pictures that were trained on, or of few pictures."""
    said = []
    if report.in_training:
        seen = f"{report.in_training:,} of {plural(mine.images, 'picture')}"
        verb = "was" if report.in_training == 1 else "were"
        said.append(f"{seen} {verb} trained on: of new pictures these figures say too much.")
    if mine.few:
        said.append(f"{_pictures(mine, 'says', 'say')} little.")
    return said


def _near_chance(report: EvaluationReport, mine: Interval) -> list[str]:
    """Say that answers are near chance, and whether the encoder is to blame, if so."""
    if mine.few or mine.low > report.chance:
        return []
    frequent = _share(report.chance, mine)
    said = [f"Near chance: naming the most frequent class every time would be right for {frequent}."]
    best = max(row.top1["overall"].low for row in report.rows.values())
    if best <= report.chance and report.encoder:
        said.append(
            f"No rule does better on these vectors: the encoder ({report.encoder}) does not suit these pictures, or the"
            " classes of many are wrong. Try another encoder: vlltr fit DIR --encoder ViT-B-32-quickgelu:openai"
        )
    return said


def _accuracy(report: EvaluationReport, mine: Interval) -> str:
    """Give the method's accuracy, by picture and by class, beside the row that it is compared with."""
    balanced = report.rows[METHOD].balanced
    right = _share(mine.value, mine)
    if report.folds:
        said = f"Of {_pictures(mine)}, each shown to a model that was trained without it, {right} were named rightly"
    else:
        unseen = "" if report.in_training else " that it had not seen"
        said = f"Of {_pictures(mine)}{unseen}, the model named {right} rightly"
    if not mine.few:
        said += (
            f" (95 %: {100 * mine.low:.1f} to {100 * mine.high:.1f}); each class counted alike,"
            f" {100 * balanced.value:.1f} % ({100 * balanced.low:.1f} to {100 * balanced.high:.1f})"
        )
    said += f"; the most frequent class every time, {_share(report.chance, mine)}"
    other = report.against
    if other is None:
        return f"{said}."
    rule = "the best simple rule, " if other in _SIMPLE else ""
    theirs = report.rows[other].top1["overall"].value
    said += f"; {rule}{other}, {_share(theirs, mine)}."
    less = report.differences["overall"]
    if less.few:
        return f"{said} Too few to tell which is better." if less.value else said
    if less.low > 0:
        return f"{said} The model is better."
    if less.high < 0:
        return f"{said} {other} is better than the model."
    return f"{said} The difference may be chance." if less.value else said


def _common(report: EvaluationReport) -> list[str]:
    """Say what the prior `training` gives, if it is right for more pictures."""
    if report.common_gain is None or report.common_gain.few or report.common_gain.low <= 0:
        return []
    row = report.rows[COMMON]
    return [
        f"With --prior training, for pictures in which classes are as common as in training:"
        f" {100 * row.top1['overall'].value:.1f} %; each class counted alike, {100 * row.balanced.value:.1f} %."
    ]


def _share(value: float, of: Interval) -> str:
    """Write a share of images in per cent, or, of a few units, as the number of images."""
    return f"{round(value * of.images)}" if of.few else f"{100 * value:.1f} %"


def _pictures(of: Interval, one: str = "", more: str = "") -> str:
    """Count pictures, and the units that they are, with a verb."""
    said = plural(of.images, "picture")
    if of.units < of.images:
        said += f" ({plural(of.units, 'unit')} of near duplicates or groups)"
    verb = one if of.images == 1 else more
    return f"{said} {verb}".strip()


def _sufferers(classes: tuple[ClassFigures, ...], texts_count: bool) -> list[str]:
    """Name the classes that are recognised least, and those that the text tells worse than the images do."""
    tested = [one for one in classes if one.images]
    weak = [one for one in tested if one.right < _HALF * one.images]
    weak.sort(key=lambda one: (one.right / one.images, one.train, one.name))
    said = []
    if weak:
        words = [
            f"{one.name} ({one.right} of {one.images}; {plural(one.train, 'training picture')})"
            for one in weak
        ]
        said.append(f"Recognised least: {_first(words)}.")
    if texts_count and any(one.right_by_text for one in tested):  # else no text tells anything
        vague = [one for one in tested if not one.right_by_text and one.right >= _HALF * one.images]
        vague.sort(key=lambda one: (-one.images, one.name))
        if vague:
            names = _first([one.name for one in vague])
            said.append(
                f"Text alone recognises no picture of {names}. Sentences about how they look would help."
            )
    return said


def _first(words: list[str]) -> str:
    """List the first few of some words, and say how many more there are."""
    listed = ", ".join(words[:_NAMED])
    return f"{listed} and {len(words) - _NAMED:,} more" if len(words) > _NAMED else listed
