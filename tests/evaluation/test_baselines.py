"""The baselines: each is fitted on small data, and comes back from what is stored of it."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from vlltr_index.evaluation.baselines import BY_NAME, FitData, Texts
from vlltr_index.schemas.config import BaselinesConfig
from vlltr_index.schemas.records import BASELINES

CONFIG = BaselinesConfig(epochs=1, lrs=(1e-2, 1e-3), taus=(0.0, 1.0), neighbours=(1, 2, 3))


def drawn(seen: int) -> FitData:
    """Twelve images and six sentences of three classes, and some images to choose settings on."""
    g = torch.Generator().manual_seed(0)
    centres = torch.randn(3, 5, generator=g)
    labels = torch.arange(3).repeat(4)
    owners = torch.arange(3).repeat(2)
    return FitData(
        features=centres[labels] + 0.3 * torch.randn(12, 5, generator=g),
        labels=labels,
        num_classes=3,
        fitted=torch.ones(12, dtype=torch.bool),
        seen=(centres[labels] + 0.3 * torch.randn(12, 5, generator=g))[:seen],
        seen_labels=labels[:seen],
        chosen_on="val",
        logit_scale=10.0,
        classifier=(centres, torch.zeros(3)),
        texts=Texts(centres[owners] + 0.1 * torch.randn(6, 5, generator=g), owners, 3, "fp"),
    )


def test_the_names_are_those_that_the_command_offers() -> None:
    """In the order of the table."""
    assert tuple(BY_NAME) == BASELINES


@pytest.mark.parametrize("name", BASELINES)
def test_what_is_stored_gives_the_same_baseline(name: str) -> None:
    """Tensors and settings are all of it, but for texts that are read again; it names most images."""
    data = drawn(12)
    fitted = BY_NAME[name].fit(data, CONFIG, None).to(torch.device("cpu"))
    again = BY_NAME[name].of(fitted.tensors, fitted.settings)
    assert again.settings == fitted.settings
    if again.reads_texts:
        again = replace(again, texts=data.texts)
    scores = again.scores(data.seen)
    assert torch.equal(scores, fitted.scores(data.seen))
    assert float((scores.argmax(1) == data.seen_labels).double().mean()) > 0.7


@pytest.mark.parametrize(("name", "setting", "middle"), [("knn", "k", 2), ("tip-adapter", "alpha", 3.0)])
def test_without_images_to_choose_on_the_middle_setting_is_taken(
    name: str, setting: str, middle: float
) -> None:
    """And there is no accuracy to tell."""
    settings = BY_NAME[name].fit(drawn(0), CONFIG, None).settings
    assert settings[setting] == middle
    assert "accuracy" not in settings
