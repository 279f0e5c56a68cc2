"""What an evaluation means, in sentences: against chance and baselines, and which classes and texts suffer."""

from __future__ import annotations

from math import log

from vlltr_index.evaluation.metrics import METHOD, ClassFigures, EvaluationReport, Interval, Measure
from vlltr_index.schemas.baselines import BASELINES
from vlltr_index.wording import plural, units_of_pictures

_NAMED = 5
_HALF = 0.5
_WORTH_SAYING = 0.05  # share of answers that wrongly name classes without training pictures
_SAME = 1e-9


def verdict(report: EvaluationReport) -> tuple[str, ...]:
    """Say what an evaluation means, the worst first; each sentence stands by itself."""
    asked, *others = _measures(report)
    said = [*caveats(report), _accuracy(report, asked, alone=not others)]
    said += [_other_accuracy(report, one) for one in others]
    if report.tested < len(report.by_class):
        classes = plural(len(report.by_class), "class", "classes")
        said.append(f"{report.tested} of {classes} tested.")
    said += _takers(report)
    said += _sufferers(report.by_class, report.texts_count)
    return tuple(said)


def _measures(report: EvaluationReport) -> list[Measure]:
    """Return the measures that say something about these pictures, the one that was asked for first."""
    asked, *others = report.measures
    if not _as_in_training(report):
        others = [one for one in others if one.prior != "training"]
    return [asked, *(one for one in others if not report.rows[one.row].balanced.few)]


def _as_in_training(report: EvaluationReport) -> bool:
    """Say whether classes as common as in training give these pictures' classes more likely than equally common ones.

    Otherwise, as in a test folder with as many pictures of each class, they say nothing of `--prior training`.
    """
    classes = [one for one in report.by_class if one.images]
    whole = sum(one.train + 0.5 for one in classes)
    return sum(one.images * log(len(classes) * (one.train + 0.5) / whole) for one in classes) >= 0


def caveats(report: EvaluationReport) -> tuple[str, ...]:
    """Say what is to be known before any figure; the first sentences of the verdict."""
    return (*_behind(report), *_near_chance(report), *_doubts(report))


def _behind(report: EvaluationReport) -> list[str]:
    """Say by which measures the row that is compared with is ahead of the method."""
    return [_comparison(report, one) for one in _measures(report) if _is_behind(report, one)]


def _is_behind(report: EvaluationReport, measure: Measure) -> bool:
    few = report.rows[measure.row].balanced.few
    return not few and measure.difference is not None and measure.difference.high < 0


def _comparison(report: EvaluationReport, measure: Measure) -> str:
    """Say which of the method and the row that is compared with is ahead, or that they are not distinguishable.

    One is ahead where the 95% interval of the paired difference excludes zero, which is about two standard errors.
    """
    less = measure.difference
    assert less is not None
    assert measure.rule is not None
    accuracy = "balanced accuracy" if report.rows[measure.row].alike(measure.prior) else "accuracy"
    if less.low > 0:
        return (
            f"The model is {100 * less.value:.1f} points ahead of {measure.rule} in {accuracy}"
            f" (95% CI {100 * less.low:.1f}-{100 * less.high:.1f})."
        )
    if less.high < 0:
        the = "The" if measure == report.measures[0] else f"With --prior {measure.prior}, the"
        named = _named(measure.rule, report.against_asked)
        first = f"row {measure.rule}" if named == measure.rule else f"best baseline, {measure.rule},"
        return (
            f"{the} {first} is {-100 * less.value:.1f} points ahead of the model in {accuracy}"
            f" (95% CI {-100 * less.high:.1f}-{-100 * less.low:.1f})."
        )
    return (
        f"The model and {measure.rule} are not distinguishable on these images: the difference in {accuracy} is"
        f" {100 * less.value:+.1f} points (95% CI {100 * less.low:+.1f} to {100 * less.high:+.1f})."
    )


def _doubts(report: EvaluationReport) -> list[str]:
    """Say what the figures cannot tell: of pictures that were trained on, or of few pictures."""
    mine = report.rows[METHOD].top1["overall"]
    said = []
    if report.in_training:
        seen = f"{report.in_training:,} of {plural(mine.images, 'picture')}"
        verb = "was" if report.in_training == 1 else "were"
        said.append(f"{seen} {verb} trained on: of new pictures these figures say too much.")
    if mine.few:
        said.append(f"{_pictures(mine, 'says', 'say')} little.")
    return [*said, *report.left_out]


def _near_chance(report: EvaluationReport) -> list[str]:
    """Say that answers are near chance, and whether the encoder is to blame, if so."""
    prior = report.prior
    chance = report.chance(prior)
    mine = report.rows[METHOD].measured(prior)
    if mine.few or mine.low > chance:
        return []
    said = [
        f"Near chance: {_one_answer(prior)} every time would be right for {100 * chance:.1f} %{_alike(prior)}."
    ]
    best = max(row.measured(prior).low for row in report.rows.values())
    if best <= chance and report.encoder:
        said.append(
            f"No rule does better on these vectors: the encoder ({report.encoder}) does not suit these pictures, or the"
            " classes of many are wrong. Try another encoder: vlltr fit DIR --encoder ViT-B-32-quickgelu:openai"
        )
    return said


def _one_answer(prior: str) -> str:
    return "naming the same class" if prior == "balanced" else "naming the most frequent class"


def _alike(prior: str) -> str:
    """Say what counts alike in the measure of a prior."""
    return ", each class counted alike" if prior == "balanced" else ", each picture counted alike"


def _accuracy(report: EvaluationReport, asked: Measure, alone: bool) -> str:
    """Give the method's accuracy by the measure that was asked for; with the other one if it is the only one."""
    row = report.rows[asked.row]
    mine = row.top1["overall"]
    right = f"{mine.count}" if mine.few else f"{100 * row.measured(asked.prior).value:.1f} %"
    if report.folds:
        # The commit's own model has all pictures: it is rather better, the more so the fewer there are.
        others = "a fifth" if report.folds > 1 else "a part"
        said = (
            f"Of {_pictures(mine)}, each shown to a model that was trained without it and {others} of the others,"
            f" {right} were named rightly"
        )
    else:
        unseen = "" if report.in_training else " that it had not seen"
        said = f"Of {_pictures(mine)}{unseen}, the model named {right} rightly"
    if mine.few:
        frequent = round(report.chance("training") * mine.images)
        return f"{said}; the most frequent class every time, {frequent}{_beside_few(report, asked)}"
    said += f"{_alike(asked.prior)}{_interval(row.measured(asked.prior))}"
    if alone:
        other = "training" if asked.prior == "balanced" else "balanced"
        found = row.measured(other)
        if abs(found.value - row.measured(asked.prior).value) > _SAME:
            said += f";{_alike(other)[1:]}, {100 * found.value:.1f} %{_interval(found)}"
    return said + _beside(report, asked)


def _other_accuracy(report: EvaluationReport, measure: Measure) -> str:
    """Give the accuracy by the measure that was not asked for, also that of the answers under the prior asked for."""
    found = report.rows[measure.row].measured(measure.prior)
    without = ""
    if measure.row != METHOD:
        without = f", with {report.prior} {100 * report.rows[METHOD].measured(measure.prior).value:.1f} %"
    return (
        f"With --prior {measure.prior}{_alike(measure.prior)}: {100 * found.value:.1f} %{_interval(found)}{without}"
        + _beside(report, measure)
    )


def _interval(of: Interval) -> str:
    return f" (95 %: {100 * of.low:.1f} to {100 * of.high:.1f})"


def _beside(report: EvaluationReport, measure: Measure) -> str:
    """End a sentence with what one answer for all and the row that is compared with give, and which is ahead.

    If the other row is ahead, the first sentences of the verdict say so.
    """
    said = f"; {_one_answer(measure.prior)} every time, {100 * report.chance(measure.prior):.1f} %"
    if measure.rule is None or measure.against is None or measure.difference is None:
        return f"{said}."
    theirs = report.rows[measure.against].measured(measure.prior).value
    said += f"; {_named(measure.rule, report.against_asked)}, {100 * theirs:.1f} %."
    return said if _is_behind(report, measure) else f"{said} {_comparison(report, measure)}"


def _beside_few(report: EvaluationReport, measure: Measure) -> str:
    """End a sentence of few units with how many images the row that is compared with has right."""
    if measure.rule is None or measure.against is None:
        return "."
    theirs = report.rows[measure.against].top1["overall"]
    same = theirs.count == report.rows[measure.row].top1["overall"].count
    return f"; {_named(measure.rule, report.against_asked)}, {theirs.count}." + (
        "" if same else " Too few to tell which is better."
    )


def _named(rule: str, asked: bool) -> str:
    """Name what the method is compared with, which was `asked` for or is the best."""
    is_simple = rule in BASELINES and BASELINES[rule].is_simple
    return f"the best baseline, {rule}" if is_simple and not asked else rule


def _pictures(of: Interval, one: str = "", more: str = "") -> str:
    """Count pictures, and the units that they are in, with a verb."""
    said = plural(of.images, "picture")
    if of.units < of.images:
        said += f" ({units_of_pictures(of.units)}{'' if of.few else '; the interval goes by these'})"
    verb = one if of.images == 1 else more
    return f"{said} {verb}".strip()


def _takers(report: EvaluationReport) -> list[str]:
    """Name the classes without training pictures that wrongly take a share of the answers, and say what mends it."""
    taken = [(one.answered - one.right, one.name) for one in report.by_class if not one.train]
    taken = sorted(((number, name) for number, name in taken if number), key=lambda one: (-one[0], one[1]))
    wrong = sum(number for number, _ in taken)
    if not wrong or wrong < _WORTH_SAYING * report.images:
        return []
    names = _first([f"{name} ({number:,})" for number, name in taken])
    return [
        f"Wrongly answered with a class that has no training picture: {wrong:,} of {plural(report.images, 'picture')};"
        f" {names}. Bring pictures of it (vlltr images add CLASS PATH), or remove it (vlltr classes remove CLASS)."
    ]


def _sufferers(classes: tuple[ClassFigures, ...], texts_count: bool) -> list[str]:
    """Name the classes that are recognised least, and those of which texts alone recognise no picture."""
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
        vague = [one for one in tested if not one.right_by_text]
        vague.sort(key=lambda one: (-one.images, one.name))
        if vague:
            names = _first([one.name for one in vague])
            said.append(
                f"Text alone recognises no picture of {names}. Sentences about how they look might help."
            )
    return said


def _first(words: list[str]) -> str:
    """List the first few of some words, and say how many more there are."""
    listed = ", ".join(words[:_NAMED])
    return f"{listed} and {len(words) - _NAMED:,} more" if len(words) > _NAMED else listed
