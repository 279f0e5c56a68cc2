"""The row that the method is compared with, of answers that are made up."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from vlltr_index.evaluation.compared import Asked, RowAnswers, compared

OWN = ("vl-ltr", "image branch", "text branch")


def answered(rows: dict[str, Tensor], labels: Tensor, priors: list[str], rules: list[str]) -> dict[str, Any]:
    """Compare the method, which is right as `vl-ltr` of `rows` says, with rules, each image being a unit."""
    answers = {}
    for name, right in (dict.fromkeys(OWN, rows["vl-ltr"]) | rows).items():
        best = torch.where(right, labels, (labels + 1) % 3)
        answers[name] = RowAnswers(best[:, None], right, None)
    number = torch.arange(len(labels))
    asked = Asked(labels, torch.bincount(labels), units=number, models=torch.zeros_like(number))
    return compared(answers, asked, None, priors, rules)


def test_under_a_prior_a_rule_has_one_answer_as_the_method_does() -> None:
    """That under the prior, if it knows it, were the other better; the plain one, if there is no other."""
    labels = torch.arange(60) % 3
    right = torch.arange(60)
    rows = {
        "vl-ltr": right < 30,
        "vl-ltr, --prior training": right < 40,
        "ncm": right < 50,
        "ncm, --prior training": right < 20,
        "knn": right < 30,
    }
    plain, common = answered(rows, labels, ["balanced", "training"], ["ncm", "knn"])["measures"]
    assert (plain.rule, plain.against) == ("ncm", "ncm")
    assert (common.rule, common.against) == ("knn", "knn")
    del rows["knn"]
    alone = answered(rows, labels, ["balanced", "training"], ["ncm"])["measures"][1]
    assert (alone.rule, alone.against) == ("ncm", "ncm, --prior training")
    assert round(60 * alone.difference.value) == 20


def test_of_few_units_the_rule_is_the_best_by_pictures() -> None:
    """As they are counted, not by classes of one or two pictures."""
    labels = torch.tensor([0] * 16 + [1] * 2 + [2] * 2)
    rows = {
        "vl-ltr": labels == 0,
        "ncm": labels != 0,
        "knn": torch.arange(20) < 15,
    }
    (found,) = answered(rows, labels, ["balanced"], ["ncm", "knn"])["measures"]
    assert found.against == "knn"
    assert found.difference.count == 1


def test_calibration_counts_as_the_accuracy_of_the_prior_that_was_asked_for() -> None:
    """Answers that are right as often as they are sure in each class alike have no error under `balanced`."""
    labels = torch.tensor([0] * 30 + [1] * 10)
    number = torch.arange(40)
    right = number < 30  # of each class alike a half, three quarters of the pictures
    sure = torch.full((40,), 0.5)
    rows = {
        name: RowAnswers(torch.where(right, labels, 1 - labels)[:, None], right, sure)
        for name in ("vl-ltr", "vl-ltr, --prior training")
    }
    asked = Asked(labels, torch.bincount(labels), units=number, models=torch.zeros_like(number))
    errors = compared(rows, asked, None, ["balanced", "training"], [])["calibration_error"]
    assert errors == pytest.approx(dict.fromkeys(rows, 0.0), abs=1e-9)
    of_training = {"vl-ltr": rows["vl-ltr"]}
    errors = compared(of_training, asked, None, ["training"], [])["calibration_error"]
    assert errors == pytest.approx({"vl-ltr": 0.25})
