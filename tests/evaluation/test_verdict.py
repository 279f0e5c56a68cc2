"""What an evaluation means, in sentences."""

from __future__ import annotations

from dataclasses import replace

import pytest

from vlltr_index.evaluation.metrics import AccuracyReport, ClassFigures, EvaluationReport, Interval, Measure
from vlltr_index.evaluation.verdict import caveats, verdict


def row(value: float, low: float, high: float, images: int) -> AccuracyReport:
    """A row that has one bin."""
    overall = Interval(value, low, high, images, images)
    return AccuracyReport("release", {"overall": overall}, {}, replace(overall, value=value / 2))


def report(
    value: float = 0.5,
    low: float = 0.45,
    high: float = 0.55,
    images: int = 100,
    against: str | None = None,
    less: Interval | None = None,
) -> EvaluationReport:
    """An evaluation of three classes, the most frequent of 0.4 of the images; class means are right in 0.4."""
    rows = {"vl-ltr": row(value, low, high, images), "ncm": row(0.4, 0.0, 0.5, images)}
    by_class = tuple(
        ClassFigures(f"class {share}", 9, images=int(share * images), right=99, answered=99, right_by_text=9)
        for share in (0.4, 0.3, 0.3)
    )
    measures = (Measure("balanced", "vl-ltr", against, against, less),)
    return replace(
        EvaluationReport(
            "test", 1, "release", images, 3, "exhaustive", rows, measures, {}, by_class=by_class
        ),
        encoder="a:b",
    )


@pytest.mark.parametrize(
    ("less", "said"),
    [
        ((0.1, 0.02, 0.2), "The model is 10.0 points ahead of ncm in balanced accuracy (95% CI 2.0-20.0)."),
        (
            (-0.1, -0.2, 0.1),
            "The model and ncm are not distinguishable on these images: the difference in balanced accuracy is -10.0"
            " points (95% CI -20.0 to +10.0).",
        ),
        (
            (0.0, -0.1, 0.1),
            "The model and ncm are not distinguishable on these images: the difference in balanced accuracy is +0.0"
            " points (95% CI -10.0 to +10.0).",
        ),
    ],
)
def test_the_model_beside_the_best_baseline(less: tuple[float, float, float], said: str) -> None:
    """Which is ahead by about two standard errors of the paired difference, if any; the other accuracy too."""
    found = report(against="ncm", less=Interval(*less, 100, 100))
    alone = (
        "Of 100 pictures that it had not seen, the model named 25.0 % rightly, each class counted alike (95 %: 45.0 to"
        " 55.0); each picture counted alike, 50.0 % (95 %: 45.0 to 55.0); naming the same class every time, 33.3 %"
    )
    assert verdict(found) == (f"{alone}; the best baseline, ncm, 20.0 %. {said}",)
    assert verdict(replace(found, against_asked=True)) == (f"{alone}; ncm, 20.0 %. {said}",)
    assert verdict(report()) == (f"{alone}.",)


def test_a_baseline_that_is_ahead_is_said_first() -> None:
    """Before what makes the figures doubtful, and before any figure; of few units nothing is said of who is ahead."""
    found = replace(report(against="ncm", less=Interval(-0.1, -0.2, -0.02, 100, 100)), in_training=40)
    said = verdict(found)
    ahead = "is 10.0 points ahead of the model in balanced accuracy (95% CI 2.0-20.0)."
    assert said[0] == f"The best baseline, ncm, {ahead}"
    assert caveats(found) == said[:2]
    assert said[2].endswith("; the best baseline, ncm, 20.0 %.")
    assert verdict(replace(found, against_asked=True))[0] == f"The row ncm {ahead}"
    few = verdict(report(images=20, against="ncm", less=Interval(-0.1, -0.2, -0.02, 20, 20)))
    assert not any("ahead" in one for one in few)


def test_near_chance_is_said_first_and_the_encoder_is_named_where_no_rule_is_better() -> None:
    """Near chance: what naming the most frequent class gives lies in the interval."""
    near = report(low=0.3)
    assert verdict(near)[0] == (
        "Near chance: naming the same class every time would be right for 33.3 %, each class counted alike."
    )
    common = replace(near, prior="training", measures=(Measure("training", "vl-ltr", None, None, None),))
    assert verdict(common)[0] == (
        "Near chance: naming the most frequent class every time would be right for 40.0 %, each picture counted alike."
    )
    assert "the encoder (a:b) does not suit these pictures" in verdict(near)[1]
    better = replace(near, rows={**near.rows, "ncm": row(0.6, 0.5, 0.7, 100)})
    assert not any("encoder" in one for one in verdict(better))
    assert not any("Near chance" in one for one in verdict(report()))


def test_few_pictures_are_counted() -> None:
    """Below thirty a share of them says too little."""
    found = verdict(report(images=20, against="ncm", less=Interval(0.1, -0.1, 0.3, 20, 20)))
    assert found == (
        "20 pictures say little.",
        "Of 20 pictures that it had not seen, the model named 10 rightly; the most frequent class every time, 8;"
        " the best baseline, ncm, 8. Too few to tell which is better.",
    )


def test_a_cross_validation_says_who_answered_and_counts_units() -> None:
    """Below thirty units pictures are counted, however many they are."""
    crossed = replace(report(), folds=5)
    assert verdict(crossed)[0].startswith(
        "Of 100 pictures, each shown to a model that was trained without it and a fifth of the others,"
        " 25.0 % were named rightly"
    )
    method = crossed.rows["vl-ltr"]
    bursts = replace(method, top1={"overall": replace(method.top1["overall"], units=12)})
    assert verdict(replace(crossed, rows={**crossed.rows, "vl-ltr": bursts})) == (
        "100 pictures (12 units: what belongs together is one) say little.",
        "Of 100 pictures (12 units: what belongs together is one), each shown to a model that was trained without"
        " it and a fifth of the others, 50 were named rightly; the most frequent class every time, 40.",
    )
    more = replace(method, top1={"overall": replace(method.top1["overall"], units=60)})
    assert verdict(replace(crossed, rows={**crossed.rows, "vl-ltr": more}))[0].startswith(
        "Of 100 pictures (60 units: what belongs together is one; the interval goes by these), each shown to a model"
    )


def test_pictures_that_were_trained_on_are_not_called_unseen() -> None:
    """It says so first, of how many."""
    seen = replace(report(), in_training=40)
    assert verdict(seen)[0] == (
        "40 of 100 pictures were trained on: of new pictures these figures say too much."
    )
    assert verdict(seen)[1].startswith("Of 100 pictures, the model named 25.0 % rightly")


def test_it_names_classes_that_suffer_and_texts_that_tell_nothing() -> None:
    """The worst first; a class without pictures is no failure, and a text only where others tell something."""
    classes = (
        ClassFigures("newt", 9, images=4, right=1, answered=1, right_by_text=0),
        ClassFigures("toad", 2, images=4, right=0, answered=0, right_by_text=0),
        ClassFigures("frog", 9, images=4, right=4, answered=4, right_by_text=0),
        ClassFigures("olm", 9, images=0, right=0, answered=0, right_by_text=0),
        ClassFigures("eft", 9, images=4, right=4, answered=4, right_by_text=3),
    )
    said = verdict(replace(report(), by_class=classes))
    assert said[1:] == (
        "4 of 5 classes tested.",
        "Recognised least: toad (0 of 4; 2 training pictures), newt (1 of 4; 9 training pictures).",
        "Text alone recognises no picture of frog, newt, toad. Sentences about how they look might help.",
    )
    silent = tuple(replace(one, right_by_text=0) for one in classes)
    assert len(verdict(replace(report(), by_class=silent))) == 3
    many = tuple(ClassFigures(f"c{n}", 1, images=1, right=0, answered=0, right_by_text=0) for n in range(7))
    assert verdict(replace(report(), by_class=many))[1].endswith(
        "c4 (0 of 1; 1 training picture) and 2 more."
    )


def test_classes_without_pictures_that_take_answers_are_named() -> None:
    """From a twentieth of the answers on; those that are right, on a split that has pictures of them, do not count."""
    classes = (
        ClassFigures("newt", 9, images=100, right=90, answered=90, right_by_text=90),
        ClassFigures("olm", 0, images=0, right=0, answered=2, right_by_text=0),
        ClassFigures("axolotl", 0, images=3, right=3, answered=6, right_by_text=3),
    )
    assert verdict(replace(report(), by_class=classes))[-1] == (
        "Wrongly answered with a class that has no training picture: 5 of 100 pictures; axolotl (3), olm (2). Bring"
        " pictures of it (vlltr images add CLASS PATH), or remove it (vlltr classes remove CLASS)."
    )
    seldom = replace(classes[1], answered=1)
    assert "training picture:" not in verdict(replace(report(), by_class=(*classes[::2], seldom)))[-1]


def test_both_measures_are_said_and_the_one_asked_for_first() -> None:
    """Each with its rule, under the same prior, and whether the model is better by it; of few units one alone."""
    balanced = Measure("balanced", "vl-ltr", "ncm", "ncm", Interval(0.1, 0.01, 0.2, 100, 100))
    common = Measure(
        "training",
        "vl-ltr, --prior training",
        "ncm",
        "ncm, --prior training",
        Interval(-0.1, -0.2, -0.01, 100, 100),
    )
    rows = {
        "vl-ltr, --prior training": row(0.6, 0.5, 0.7, 100),
        "ncm, --prior training": row(0.7, 0.6, 0.8, 100),
    }
    found = replace(report(), measures=(balanced, common))
    uneven = tuple(replace(one, train=one.images) for one in found.by_class)
    found = replace(found, rows={**found.rows, **rows}, by_class=uneven)
    assert verdict(found) == (
        "With --prior training, the best baseline, ncm, is 10.0 points ahead of the model in accuracy"
        " (95% CI 1.0-20.0).",
        "Of 100 pictures that it had not seen, the model named 25.0 % rightly, each class counted alike (95 %: 45.0 to"
        " 55.0); naming the same class every time, 33.3 %; the best baseline, ncm, 20.0 %. The model is 10.0 points"
        " ahead of ncm in balanced accuracy (95% CI 1.0-20.0).",
        "With --prior training, each picture counted alike: 60.0 % (95 %: 50.0 to 70.0), with balanced 50.0 %; naming"
        " the most frequent class every time, 40.0 %; the best baseline, ncm, 70.0 %.",
    )
    plain = replace(found, measures=(balanced, replace(common, against="ncm")))
    assert verdict(plain)[2].endswith("the best baseline, ncm, 40.0 %.")
    even = replace(
        found,
        by_class=tuple(
            replace(one, images=30, train=train) for one, train in zip(uneven, (90, 9, 3), strict=True)
        ),
    )
    later = 6 * (replace(uneven[0], images=0, train=0),)  # of classes without pictures here nothing is told
    for some in (even, replace(even, by_class=even.by_class + later)):
        assert not any("--prior training" in said for said in verdict(some))
    asked = verdict(replace(even, prior="training", measures=(common, balanced)))
    assert asked[0].startswith("The best baseline, ncm, is 10.0 points ahead of the model in accuracy")
    assert "each picture counted alike" in asked[1]
    assert asked[2].startswith("With --prior balanced, each class counted alike: ")
    few = replace(report(images=20), measures=(balanced, replace(common, row="vl-ltr")))
    assert len(verdict(few)) == 2
