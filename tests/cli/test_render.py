"""What people read in a terminal: nothing is wider than it, and numbers stay whole."""

from __future__ import annotations

from dataclasses import asdict, replace
from io import StringIO
from typing import Any

import pytest
from rich.console import Console

from vlltr_index.classes.effect import Effect
from vlltr_index.cli.answers import explanation_lines, prediction_lines
from vlltr_index.cli.render import difference_lines, evaluation_table, report_lines
from vlltr_index.cli.ui.service import piece
from vlltr_index.evaluation.metrics import AccuracyReport, EvaluationReport, Interval, Measure
from vlltr_index.evaluation.report import environment
from vlltr_index.pipelines.train_lgr import RefitReport
from vlltr_index.pipelines.training import TrainReport
from vlltr_index.recognition.counterfactual import ExaminedClass, ExaminedSentence
from vlltr_index.schemas.records import ClassScore, Neighbour, Prediction, SentenceShare
from vlltr_index.wording import NO_DIFFERENCE, UNKNOWN

LONG = "A very large and heavy bird with a grey head, a chestnut breast and a back that is barred in black and gold."


def score(name: str) -> ClassScore:
    """A class with a long and a short sentence."""
    shares = tuple(
        SentenceShare(text, source, None, None, 0.25, share, -0.1, 100 * share / 0.42, group)
        for text, source, share, group in (
            (LONG, "wikipedia", 0.2, 0),
            (f"a photo of a {name}.", "prompt", 0.12, 1),
            (f"a drawing of a {name}.", "prompt", 0.08, 1),
            ("It walks.", "wikipedia", -0.02, 3),
        )
    )
    return ClassScore(0, name, 0.75, 0.5, 0.25, 0.5, shares, text_score=0.4)


def prediction() -> Prediction:
    """Two classes for one image."""
    return Prediction("bird.jpg", (score("great bustard"), score("little bustard")), 0.0, "faiss", 1)


@pytest.mark.parametrize("width", [66, 120])
def test_lines_are_broken_below_their_beginning(width: int) -> None:
    """No line is wider than the terminal; every word is still there."""
    for lines in (
        prediction_lines(prediction(), width),
        explanation_lines("bird.jpg", prediction().classes, width),
    ):
        assert max(map(len, lines)) <= width
        assert " ".join(" ".join(lines).split()).count(LONG) == 2


def test_a_prediction_in_words() -> None:
    """Sentences that say the same are one line; neighbours, and what each mark means, said once."""
    first, second = prediction().classes
    first = replace(first, neighbours=(Neighbour("id", "birds/0.jpg", 0.8123),))
    assert prediction_lines(replace(prediction(), classes=(first, second)))[1:6] == [
        "   75.0 %  great bustard   image 67 % ███████░░░ text 33 %",
        f"            48 %  {LONG}  [wikipedia]",
        "            48 %  a photo of a great bustard. (and 1 like it)  [prompt]",
        "            -5 %  It walks.  [wikipedia]",
        "           near 0.812  birds/0.jpg",
    ]
    assert prediction_lines(replace(prediction(), classes=(first, second)))[-1] == (
        "  %: the sentence's share of what speaks for or against the class; [prompt]: a sentence made of the class's "
        "name alone; near: a training picture of the class, and its cosine"
    )
    assert len(prediction_lines(replace(prediction(), classes=(replace(first, sentences=()),)))) == 4


@pytest.mark.parametrize(
    ("image", "text", "said"),
    [
        (3.0, 1.0, "image 75 % ████████░░ text 25 %"),
        (3.0, -1.0, "image alone, text against it"),
        (-1.0, 3.0, "text alone, image against it"),
        (3.0, 0.0, "image alone"),
        (-3.0, -1.0, "image and text against it"),
        (0.0, 0.0, ""),
    ],
)
def test_both_sides_are_drawn(image: float, text: float, said: str) -> None:
    """What speaks for the class as a bar, what speaks against it as words; below the name in a narrow terminal."""
    one = replace(
        score("bustard"), image_part=image, text_part=text, unit="log-odds", sentences=(), text_score=None
    )
    shown = replace(prediction(), classes=(one,))
    assert prediction_lines(shown)[1] == f"   75.0 %  bustard   {said}".rstrip()
    assert prediction_lines(shown, 20)[1:3] == (
        ["   75.0 %  bustard", " " * 11 + said] if said else ["   75.0 %  bustard"]
    )


def test_an_explanation_has_the_exact_numbers() -> None:
    """Why one rather than the other, first; each sentence by itself."""
    lines = explanation_lines("bird.jpg", prediction().classes)
    assert lines[1].startswith("  great bustard rather than little bustard because ")
    assert lines[3] == "           image branch 50.0 + text branch 25.0; text score +0.400, cosine 0.500"
    assert lines[5] == f"            47.6  +0.200  -0.100  0.250  {LONG}  [wikipedia]"
    assert sum("a photo of a great bustard." in line for line in lines) == 1


def test_sentences_without_weight_are_said_to_decide_nothing() -> None:
    """Where the text gave less than a tenth of the log-odds, whatever weight it has; not where it gave more.

    Where the classes have no sentence, that is said instead, if sentences were asked for.
    """
    told = f"  {NO_DIFFERENCE} (vlltr status says what texts are used for)"
    none = "  none of these classes has a sentence"
    mute = [replace(one, unit="log-odds", text_part=0.0) for one in prediction().classes]
    little = [replace(one, image_part=5.0, text_part=0.2) for one in mute]
    some = [mute[0], replace(mute[1], text_part=0.1)]
    bare = [replace(one, sentences=()) for one in mute]
    unasked = [replace(one, text_score=None) for one in bare]
    for scores, said in ((mute, [told]), (little, [told]), (some, []), (bare, [none]), (unasked, [])):
        lines = prediction_lines(replace(prediction(), classes=tuple(scores)))
        assert [line for line in lines if line in (told, none)] == said
    assert not any(LONG in line for line in prediction_lines(replace(prediction(), classes=tuple(little))))
    for scores, said in ((mute, [told]), (little, [told]), (prediction().classes, []), (bare, [none])):
        assert [line for line in explanation_lines("bird.jpg", scores) if line in (told, none)] == said
    assert f"{' ' * 11}{LONG}  [wikipedia]" in explanation_lines("bird.jpg", little)


def test_a_class_without_sentences_beside_one_with_some_is_named() -> None:
    """Its text contribution is below a tenth, that of the other class is not."""
    quiet = replace(score("owl"), image_part=-0.9, text_part=0.04)
    lines = prediction_lines(replace(prediction(), classes=(score("kestrel"), quiet)))
    assert f"; owl: {NO_DIFFERENCE}; " in lines[-1]
    assert not any(f"owl: {NO_DIFFERENCE}" in line for line in prediction_lines(prediction()))


def test_what_the_image_side_of_a_class_without_pictures_is() -> None:
    """It is said once, below the answer and below an explanation."""
    told = "no training picture: great bustard; the image side is that of a class nothing is known of"
    first, second = prediction().classes
    shown = (replace(first, without_images=True), second)
    assert prediction_lines(replace(prediction(), classes=shown))[-1].endswith(f"; {told}")
    assert explanation_lines("bird.jpg", shown)[-1] == f"  {told}"


def test_a_class_of_which_nothing_is_known_has_no_figures() -> None:
    """Neither pictures nor texts tell it: that is said in place of its parts and sentences."""
    told = UNKNOWN
    first, second = (replace(one, unit="log-odds", text_part=0.0) for one in prediction().classes)
    unknown = replace(first, probability=0.0, image_part=-1e5, without_images=True, unknown=True)
    assert explanation_lines("bird.jpg", [unknown])[1:3] == ["    0.0 %  great bustard", f"{' ' * 11}{told}"]
    assert not any("100000" in line or LONG in line for line in explanation_lines("bird.jpg", [unknown]))
    both = explanation_lines("bird.jpg", [unknown, second])
    assert both[1] == "  little bustard rather than great bustard because nothing is known of the latter"
    assert f"{' ' * 11}{told}" in prediction_lines(replace(prediction(), classes=(second, unknown)))


def examined(image_part: float, **facts: Any) -> ExaminedClass:
    """A class whose text gave nothing, as the page shows it."""
    return ExaminedClass(
        class_id=0,
        name="great bustard",
        probability=0.0,
        image_part=image_part,
        text_part=0.0,
        cosine=None,
        unit="log-odds",
        text_score=0.0,
        probability_before=0.0,
        cosine_before=None,
        text_score_before=0.0,
        **facts,
    )


def in_the_report(one: ClassScore) -> str:
    """A class as the report shows it."""
    return str(environment("vlltr_index.evaluation").get_template("parts.html").module.score(one))


def test_the_page_and_the_report_say_so_too() -> None:
    """One text in place of the parts."""
    said = prediction().classes[0].sentences
    one = examined(-1e5, without_images=True, unknown=True, sentences=said)
    for shown in (in_the_report(one), piece("best", [one], "")):
        assert UNKNOWN in shown
        assert "100000" not in shown
        assert LONG not in shown


def test_the_page_and_the_report_say_why_no_sentence_decided() -> None:
    """The class has none, or what it has made no difference; not that the text has no weight, which is not known."""
    shares = (
        ExaminedSentence(**asdict(share), sentence_id=str(n), struck=False)
        for n, share in enumerate(score("bustard").sentences)
    )
    told = examined(2.0, sentences=tuple(shares))
    bare = examined(2.0)
    silent = f"{NO_DIFFERENCE[:1].upper()}{NO_DIFFERENCE[1:]}."
    for one, in_page, in_report in (
        (told, silent, silent),
        (bare, "0 sentences", "The class has no sentence."),
    ):
        page = piece("sentences", one)
        assert in_page in page
        assert in_report in in_the_report(one)
        assert (silent in page) == (one is told)
        assert "no weight" not in page + in_the_report(one)


def report() -> EvaluationReport:
    """All bins, and a baseline with a long name."""
    bins = ("overall", "many", "medium", "few", "few5", "new")
    interval = Interval(0.912, 0.9, 0.93, 100, 100)
    alike = Interval(0.823, 0.81, 0.84, 100, 100)
    rows = {
        name: AccuracyReport("release", dict.fromkeys(bins, interval), dict.fromkeys(bins, interval), alike)
        for name in ("vl-ltr", "image branch", "image-only + logit adjustment")
    }
    gain = dict.fromkeys(bins, Interval(0.018, 0.01, 0.025, 100, 100))
    adjusted = "image-only + logit adjustment"
    measures = (Measure("balanced", "vl-ltr", adjusted, adjusted, gain["overall"]),)
    return EvaluationReport(
        "test", 1, "release", 100, 20, "exhaustive", rows, measures, {"vl-ltr": 0.05}, gain
    )


@pytest.mark.parametrize("width", [80, 120])
def test_the_table_fits_a_terminal(width: int) -> None:
    """At 80 columns names are broken and numbers are not; the paired difference stands below, a bin a line."""
    target = StringIO()
    Console(file=target, width=width).print(evaluation_table(report()))
    shown = target.getvalue()
    assert max(map(len, shown.splitlines())) <= width
    assert shown.count("91.2 ±1.5") == 15
    assert shown.count("82.3 ±1.5") == 3
    assert "  overall  each class  " in shown
    assert "image-only" in shown
    lines = difference_lines(report())
    assert lines[0] == "vl-ltr less image-only + logit adjustment, in points [95 % of the paired bootstrap]"
    assert lines[1] == "  overall    +1.8 [+1.0, +2.5]"
    assert lines[-2] == "  few5       +1.8 [+1.0, +2.5] (classes of at most 5 training images)"
    assert len(lines) == 7


def test_of_few_units_a_difference_is_a_count_of_pictures() -> None:
    """With each class counted alike it is none."""
    few = Interval(0.05, -0.1, 0.2, 20, 20)
    lines = difference_lines(replace(report(), differences={"overall": few, "balanced": few, "many": few}))
    assert lines[1:] == ["  overall    +1 of 20", "  many       +1 of 20"]
    lines = difference_lines(replace(report(), differences={"balanced": replace(few, units=40)}))
    assert lines[1:] == ["  each class +5.0 [-10.0, +20.0]"]


def test_of_few_units_no_column_counts_each_class_alike() -> None:
    """There is no count of pictures for it."""
    few = Interval(0.9, 0.7, 1.0, 20, 20)
    rows = {"vl-ltr": AccuracyReport("release", {"overall": few, "many": few}, {}, few)}
    target = StringIO()
    Console(file=target, width=80).print(evaluation_table(replace(report(), rows=rows)))
    assert target.getvalue().count("18 of 20") == 2
    assert "each class" not in target.getvalue()


def test_what_belongs_together_is_counted_where_a_head_is_trained() -> None:
    """Where nothing does, images alone are."""
    trained = TrainReport("lgr", "d" * 64, 12, images=65, epochs=0, resumed=False, last={}, units=63)
    assert report_lines(trained) == [
        f"Trained lgr on 65 images (63 units: what belongs together is one) of 12 classes: {'d' * 16}"
    ]
    assert report_lines(replace(trained, units=65)) == [f"Trained lgr on 65 images of 12 classes: {'d' * 16}"]


def test_a_refit_is_compared_with_the_head_before() -> None:
    """On the images of the folds that both heads have; without any the next command is named."""
    report = RefitReport("d" * 64, 2, [], 0, images=9, notes=(), effect=Effect(unmeasured=True), before=4)
    assert (
        report_lines(report)[-1] == "The new head has not been compared with the one before: vlltr evaluate"
    )
    measured = replace(report, effect=Effect(0.9, 0.8, 50, 40))
    accuracy = "Existing classes on 50 held-out images: balanced accuracy 90.0% before, 80.0% after."
    assert report_lines(measured)[-2] == accuracy
    few = replace(report, effect=Effect(0.9, 0.8, 50, 4))
    assert report_lines(few)[-1] == f"{accuracy} So few images say little."
