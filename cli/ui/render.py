"""The page's pieces as HTML. Every text that a person may have written goes through `html.escape`."""

from __future__ import annotations

from collections.abc import Sequence
from html import escape

from vlltr_index.classes import ChangeReport
from vlltr_index.errors import VlltrError
from vlltr_index.pipelines.history import RollbackReport
from vlltr_index.recognition.counterfactual import Comparison, ExaminedClass, ExaminedSentence

__all__ = [
    "added_html",
    "best_html",
    "comparison_html",
    "error_html",
    "notice_html",
    "sentences_html",
    "status_html",
    "undone_html",
]

_SHOWN = 8  # sentences a side in a comparison
_NONE = '<p class="vl-quiet">{}</p>'


def _points(value: float) -> str:
    """Points of similarity, signed; what rounds to nothing has no sign."""
    return f"{value:+.3f}" if abs(value) >= 5e-4 else "0.000"


def status_html(name: str, commit: int, classes: int, read_only: bool) -> str:
    """The head of the page."""
    only = ' · <span class="vl-tag">read only</span>' if read_only else ""
    return (
        f'<h1 class="vl-title">{escape(name)}</h1><p class="vl-quiet" id="vl-status" data-commit="{commit}">'
        f"commit {commit} · {classes:,} classes{only}</p>"
    )


def notice_html(lines: Sequence[str], kind: str = "done") -> str:
    """A notice of some lines; `kind` is "done" or "error"; nothing for no lines."""
    if not lines:
        return ""
    role = "alert" if kind == "error" else "status"
    shown = "".join(f"<p>{escape(line)}</p>" for line in lines)
    return f'<div class="vl-notice vl-{kind}" role="{role}">{shown}</div>'


def error_html(error: VlltrError) -> str:
    """An error with its hint, as the command line says it."""
    return notice_html([error.message, *([error.hint] if error.hint else [])], "error")


def added_html(report: ChangeReport) -> str:
    """What an addition did: the class, what was left out, and what it did to the others."""
    return notice_html(report.lines())


def undone_html(name: str, report: RollbackReport) -> str:
    """What an undo did."""
    return notice_html(
        [
            f"Undone: the class {name!r} is gone again.",
            f"Commit {report.commit} has the state of commit {report.target}."
            f" To have the class back: vlltr rollback {report.commit - 1}",
        ]
    )


def best_html(classes: Sequence[ExaminedClass], chosen: str | None) -> str:
    """The best classes with what both branches gave; each is a button that chooses the class."""
    if not classes:
        return _NONE.format("Give a picture to see what it shows.")
    rows = "".join(_class_row(one, one.name == chosen) for one in classes)
    key = (
        '<p class="vl-key"><span class="vl-box vl-image"></span>image side '
        '<span class="vl-box vl-text"></span>text</p>'
    )
    return f'{key}<ol class="vl-best">{rows}</ol>'


def _class_row(one: ExaminedClass, chosen: bool) -> str:
    name = escape(one.name)
    if one.unit == "log-odds":
        parts = f"log-odds: image side {one.image_part:+.2f}, text {one.text_part:+.2f}"
    else:
        parts = f"image branch {100 * one.image_part:.1f} + text branch {100 * one.text_part:.1f}"
    image, text = 100 * one.probability * one.image_share, 100 * one.probability * (1.0 - one.image_share)
    bar = (
        f'<span class="vl-bar" aria-hidden="true"><span class="vl-image" style="width:{image:.2f}%"></span>'
        f'<span class="vl-text" style="width:{text:.2f}%"></span></span>'
    )
    change = ""
    if abs(one.probability - one.probability_before) >= 5e-4:
        change = f' <span class="vl-was">was {100 * one.probability_before:.1f} %</span>'
    return (
        f'<li><button type="button" class="vl-class" data-choose="{name}" aria-pressed="{str(chosen).lower()}">'
        f'<span class="vl-line"><span class="vl-name">{name}</span>'
        f'<span class="vl-number">{100 * one.probability:.1f} %{change}</span></span>'
        f'{bar}<span class="vl-quiet">{parts}</span></button></li>'
    )


def sentences_html(one: ExaminedClass | None) -> str:
    """A class's sentences with shares and effects, each with a box that strikes it out."""
    if one is None:
        return _NONE.format("The sentences of the class appear here.")
    rows = "".join(_sentence_row(sentence) for sentence in one.sentences)
    return (
        f'{_score_html(one)}<table class="vl-table"><thead><tr><th scope="col">strike out</th>'
        '<th scope="col">sentence</th><th scope="col">share</th><th scope="col">effect</th></tr></thead>'
        f"<tbody>{rows}</tbody></table>"
        '<p class="vl-quiet">In points of similarity. The shares add up to the cosine. The effect is what striking the'
        " sentence out takes from the cosine; for one that is struck out, what putting it back would give.</p>"
    )


def _score_html(one: ExaminedClass) -> str:
    cells = [
        ("cosine", f"{one.cosine:.3f}", f"{one.cosine_before:.3f}"),
        ("text logit", f"{one.logit:.2f}", f"{one.logit_before:.2f}"),
        ("probability", f"{100 * one.probability:.1f} %", f"{100 * one.probability_before:.1f} %"),
    ]
    struck = sum(sentence.struck for sentence in one.sentences)
    shown = "".join(
        f'<div><dt>{what}</dt><dd data-score="{what}">{now}'
        + (f' <span class="vl-was">was {was}</span>' if struck and now != was else "")
        + "</dd></div>"
        for what, now, was in cells
    )
    left = f", {struck} struck out" if struck else ""
    return (
        f'<p class="vl-head"><b>{escape(one.name)}</b>: {len(one.sentences)} sentences{left}</p>'
        f'<dl class="vl-score">{shown}</dl>'
    )


def _sentence_row(sentence: ExaminedSentence) -> str:
    text = escape(sentence.text)
    source = " · ".join(
        escape(part) for part in (sentence.source, sentence.source_ref, sentence.licence) if part
    )
    share = "-" if sentence.struck else _points(sentence.share)
    return (
        f'<tr{" class=vl-struck" if sentence.struck else ""}><td><input type="checkbox"'
        f'{" checked" if sentence.struck else ""} data-strike="{escape(sentence.sentence_id)}"'
        f' aria-label="Strike out: {text}"></td>'
        f'<td><span class="vl-words">{text}</span> <span class="vl-quiet">{source}</span></td>'
        f'<td class="vl-number" data-label="share">{share}</td>'
        f'<td class="vl-number" data-label="effect">{_points(sentence.effect)}</td></tr>'
    )


def comparison_html(found: Comparison | None) -> str:
    """Two classes: the gap, where it comes from, and the sentences that argue for either."""
    if found is None:
        return _NONE.format("Choose two classes to compare.")
    one, other = found.first, found.second
    sides = "".join(
        f'<div class="vl-side"><p class="vl-head">for <b>{escape(side.name)}</b> '
        f'<span class="vl-quiet">cosine {side.cosine:.3f}</span></p>{_arguments(arguments)}</div>'
        for side, arguments in ((one, found.for_first), (other, found.for_second))
    )
    verdict = "speaks" if found.gap > 0 else "does not speak"
    return (
        f'<p class="vl-head"><b>{escape(one.name)}</b> against <b>{escape(other.name)}</b>: {_whole(one, other)}. '
        f'<span data-score="gap">{_points(found.gap)}</span> points of similarity: the text {verdict} for'
        f' {escape(one.name)}.</p><div class="vl-sides">{sides}</div>'
    )


def _whole(one: ExaminedClass, other: ExaminedClass) -> str:
    """The difference, and how much of it comes from the image branch."""
    if one.unit == "log-odds":
        return f"{100 * one.probability:.1f} % against {100 * other.probability:.1f} %"
    by_image = one.image_part - other.image_part
    return (
        f"{100 * (one.probability - other.probability):+.1f} points of probability,"
        f" {100 * by_image:+.1f} of them from the image branch"
    )


def _arguments(sentences: Sequence[ExaminedSentence]) -> str:
    if not sentences:
        return _NONE.format("No sentence speaks for it.")
    items = "".join(
        f'<li><span class="vl-number">{_points(one.effect)}</span> {escape(one.text)}</li>'
        for one in sentences[:_SHOWN]
    )
    more = len(sentences) - _SHOWN
    rest = _NONE.format(f"and {more} more") if more > 0 else ""
    return f'<ul class="vl-arguments">{items}</ul>{rest}'
