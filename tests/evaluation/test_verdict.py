"""What an evaluation means, in sentences."""

from __future__ import annotations

from dataclasses import replace

import pytest

from vlltr_index.evaluation.metrics import COMMON, AccuracyReport, ClassFigures, EvaluationReport, Interval
from vlltr_index.evaluation.verdict import verdict


def row(value: float, low: float, high: float, images: int) -> AccuracyReport:
    """A row that has one bin."""
    overall = Interval(value, low, high, images, images)
    return AccuracyReport("release", {"overall": overall}, {}, replace(overall, value=value / 2))


def report(
    value: float = 0.5, low: float = 0.45, high: float = 0.55, images: int = 100, against: str | None = None
) -> EvaluationReport:
    """An evaluation of three classes, the most frequent of 0.4 of the images; class means are right in 0.4."""
    rows = {"vl-ltr": row(value, low, high, images), "ncm": row(0.4, 0.0, 0.5, images)}
    by_class = tuple(
        ClassFigures(f"class {share}", 9, images=int(share * images), right=99, answered=99, right_by_text=9)
        for share in (0.4, 0.3, 0.3)
    )
    return EvaluationReport(
        "test", 1, "release", images, 3, "exhaustive", rows, {}, {}, against, by_class=by_class, encoder="a:b"
    )


@pytest.mark.parametrize(
    ("less", "said"),
    [((0.1, 0.02, 0.2), " The model is better."), ((-0.1, -0.2, -0.02), " ncm is better than the model."),
     ((-0.1, -0.2, 0.1), " The difference may be chance."), ((0.0, -0.1, 0.1), "")],
)  # fmt: skip
def test_the_model_beside_the_best_simple_rule(less: tuple[float, float, float], said: str) -> None:
    """Whether the difference is more than chance; per class too, with intervals."""
    found = replace(report(against="ncm"), differences={"overall": Interval(*less, 100, 100)})
    alone = (
        "Of 100 pictures that it had not seen, the model named 50.0 % rightly (95 %: 45.0 to 55.0); each class counted"
        " alike, 25.0 % (45.0 to 55.0); the most frequent class every time, 40.0 %"
    )
    assert verdict(found) == (f"{alone}; the best simple rule, ncm, 40.0 %.{said}",)
    assert verdict(replace(found, against=None)) == (f"{alone}.",)


def test_near_chance_is_said_first_and_the_encoder_is_named_where_no_rule_is_better() -> None:
    """Near chance: what naming the most frequent class gives lies in the interval."""
    near = report(low=0.3)
    assert verdict(near)[0] == (
        "Near chance: naming the most frequent class every time would be right for 40.0 %."
    )
    assert "the encoder (a:b) does not suit these pictures" in verdict(near)[1]
    better = replace(near, rows={**near.rows, "ncm": row(0.6, 0.5, 0.7, 100)})
    assert not any("encoder" in one for one in verdict(better))
    assert not any("Near chance" in one for one in verdict(report()))


def test_few_pictures_are_counted() -> None:
    """Below thirty a share of them says too little."""
    few = report(images=20, against="ncm")
    found = verdict(replace(few, differences={"overall": Interval(0.1, -0.1, 0.3, 20, 20)}))
    assert found == (
        "20 pictures say little.",
        "Of 20 pictures that it had not seen, the model named 10 rightly; the most frequent class every time, 8;"
        " the best simple rule, ncm, 8. Too few to tell which is better.",
    )


def test_a_cross_validation_says_who_answered_and_counts_units() -> None:
    """Below thirty units pictures are counted, however many they are."""
    crossed = replace(report(), folds=5)
    assert verdict(crossed)[0].startswith(
        "Of 100 pictures, each shown to a model that was trained without it, 50.0 % were named rightly"
    )
    method = crossed.rows["vl-ltr"]
    bursts = replace(method, top1={"overall": replace(method.top1["overall"], units=12)})
    assert verdict(replace(crossed, rows={**crossed.rows, "vl-ltr": bursts})) == (
        "100 pictures (12 units of near duplicates or groups) say little.",
        "Of 100 pictures (12 units of near duplicates or groups), each shown to a model that was trained without it, 50"
        " were named rightly; the most frequent class every time, 40.",
    )


def test_pictures_that_were_trained_on_are_not_called_unseen() -> None:
    """It says so first, of how many."""
    seen = replace(report(), in_training=40)
    assert verdict(seen)[0] == (
        "40 of 100 pictures were trained on: of new pictures these figures say too much."
    )
    assert verdict(seen)[1].startswith("Of 100 pictures, the model named 50.0 % rightly")


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
        "Text alone recognises no picture of frog. Sentences about how they look would help.",
    )
    silent = tuple(replace(one, right_by_text=0) for one in classes)
    assert len(verdict(replace(report(), by_class=silent))) == 3
    many = tuple(ClassFigures(f"c{n}", 1, images=1, right=0, answered=0, right_by_text=0) for n in range(7))
    assert verdict(replace(report(), by_class=many))[1].endswith(
        "c4 (0 of 1; 1 training picture) and 2 more."
    )


def test_the_prior_of_training_is_named_where_it_is_right_more_often() -> None:
    """With both accuracies; not where the gain may be chance, or there are few units."""
    found = report()
    found = replace(found, rows={**found.rows, COMMON: row(0.6, 0.5, 0.7, 100)})
    said = (
        "With --prior training, for pictures in which classes are as common as in training: 60.0 %; each class counted"
        " alike, 30.0 %."
    )
    for low, units, told in ((0.01, 100, True), (-0.01, 100, False), (0.01, 12, False)):
        gain = Interval(0.1, low, 0.2, 100, units)
        assert (said in verdict(replace(found, common_gain=gain))) == told
