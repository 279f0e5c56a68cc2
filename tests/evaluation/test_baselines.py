"""The baselines: each is fitted on small data, and comes back from what is stored of it."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import log_loss
from torch.nn import functional as F

from vlltr_index.evaluation.baselines import BY_NAME, FitData, Linear, Logistic, Texts
from vlltr_index.heads.dealing import deal_groups, row_keys
from vlltr_index.schemas.baselines import BASELINES
from vlltr_index.schemas.config import BaselinesConfig

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
        units=[str(number) for number in range(12)],
    )


def test_the_names_are_those_that_the_command_offers() -> None:
    """In the order of the table."""
    assert tuple(BY_NAME) == tuple(BASELINES)


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


@pytest.mark.parametrize("name", ["ncm", "discriminant", "zero-shot"])
def test_a_rule_under_a_prior_is_fitted_on_images_that_it_was_not_fitted_on(name: str) -> None:
    """Where classes cannot be told apart the common one is named; stored with it, and none without two units."""
    g = torch.Generator().manual_seed(0)
    labels = torch.tensor([0] * 40 + [1] * 8)
    alike = replace(
        drawn(0),
        features=torch.randn(48, 5, generator=g),
        labels=labels,
        num_classes=2,
        units=[str(number) for number in range(48)],
        texts=Texts(torch.randn(4, 5, generator=g), torch.tensor([0, 0, 1, 1]), 2, "fp"),
    )
    fitted = BY_NAME[name].fit(alike, CONFIG, None)
    weighed = fitted.with_prior(alike, CONFIG)
    again = BY_NAME[name].of(weighed.tensors, weighed.settings)
    features = torch.randn(200, 5, generator=g)
    scores = again.scores(features)
    assert torch.equal(scores, fitted.scores(features)), "the answers without a prior are as before"
    common = again.under_prior(scores, torch.tensor([40.5, 8.5]).log())
    assert common is not None
    assert (
        float((common.argmax(1) == 0).double().mean()) > 0.9 > float((scores.argmax(1) == 0).double().mean())
    )
    assert fitted.under_prior(scores, torch.zeros(2)) is None
    together = replace(alike, units=["one"] * 48)
    assert fitted.with_prior(together, CONFIG).parts is None


def blurred() -> FitData:
    """Images of three classes that overlap, one of which is common; 60 units of two equal images."""
    g = torch.Generator().manual_seed(1)
    labels = torch.tensor([0, 0, 0, 1, 2]).repeat(12).repeat_interleave(2)
    centres = 0.2 * torch.randn(3, 8, generator=g)
    places = torch.arange(len(labels)) // 2
    return replace(
        drawn(0),
        features=centres[labels] + torch.randn(60, 8, generator=g)[places],
        labels=labels,
        units=[str(place) for place in places.tolist()],
    )


def test_logistic_regression_chooses_c_on_folds_of_units() -> None:
    """The likeliest C on units that the model was fitted without, each counting as one; and the same every time."""
    data = blurred()
    config = BaselinesConfig(logistic_c=(100.0, 0.1, 0.01, 1.0))
    folds = deal_groups(data.labels, data.units, row_keys(data.features), 5)
    rows = F.normalize(data.features, dim=1).numpy()
    losses = {}
    for c in config.logistic_c:
        loss = 0.0
        for fold in range(5):
            kept = (folds != fold).numpy()
            model = LogisticRegression(C=c, max_iter=1000).fit(rows[kept], data.labels[kept].numpy())
            loss += log_loss(data.labels[~kept], model.predict_proba(rows[~kept]), normalize=False)
        losses[c] = loss
    fitted = Logistic.fit(data, config, None)
    assert fitted.settings["c"] == fitted.c == min(losses, key=lambda c: losses[c]) == 0.1
    assert fitted.settings["chosen_on"] == "folds of the training images"
    apart = replace(data, units=[str(number) for number in range(len(data.labels))])
    assert Logistic.fit(apart, config, None).c == 1.0, "a copy of each image would be fitted on"
    again = Logistic.fit(data, config, None)
    assert torch.equal(again.weight, fitted.weight)
    assert torch.equal(again.bias, fitted.bias)
    assert again.parts == fitted.parts


def test_logistic_regression_answers_as_if_classes_were_equally_common() -> None:
    """Its probabilities times the classes' shares of the training images are scikit-learn's."""
    data = blurred()
    fitted = Logistic.fit(data, BaselinesConfig(logistic_c=(1.0,)), None)
    rows = F.normalize(data.features, dim=1)
    plain = LogisticRegression(C=1.0, max_iter=1000).fit(rows.numpy(), data.labels.numpy())
    shares = torch.bincount(data.labels) / len(data.labels)
    found = (fitted.scores(7.0 * data.features) + shares.log()).softmax(1)
    expected = torch.from_numpy(plain.predict_proba(rows.numpy()))
    assert float((found - expected).abs().max()) < 1e-2  # 1e-4 of the solver times C times the images
    assert fitted.with_prior(data, CONFIG) is fitted
    common = fitted.under_prior(fitted.scores(data.features), shares.log())
    assert common is not None
    assert int((common.argmax(1) == 0).sum()) > int((fitted.scores(data.features).argmax(1) == 0).sum())


def test_logistic_regression_of_single_units_takes_the_middle_c() -> None:
    """Nothing can be held out: no C is chosen, and no prior is known."""
    data = drawn(0)
    fitted = Logistic.fit(replace(data, units=[str(label) for label in data.labels.tolist()]), CONFIG, None)
    assert fitted.settings == {"c": 100.0, "chosen_on": "nothing: defaults"}
    assert fitted.parts is None


def test_a_burst_counts_as_one_image_under_a_prior() -> None:
    """A class's images taken many times over give the same temperature."""
    g = torch.Generator().manual_seed(0)
    labels = torch.tensor([0] * 40 + [1] * 8)
    single = replace(
        drawn(0),
        features=torch.randn(48, 5, generator=g) + 0.5 * labels[:, None],
        labels=labels,
        num_classes=2,
        units=[str(number) for number in range(48)],
    )
    places = torch.cat([torch.arange(40), torch.arange(40, 48).repeat(20)])
    bursts = replace(
        single,
        features=single.features[places],
        labels=labels[places],
        units=[str(number) for number in places.tolist()],
    )
    once, often = (
        BY_NAME["ncm"].fit(data, CONFIG, None).with_prior(data, CONFIG) for data in (single, bursts)
    )
    assert once.parts is not None
    assert often.parts == pytest.approx(once.parts, rel=1e-2)


def test_a_class_that_is_gone_is_never_named_under_a_prior() -> None:
    """Also where its score is the largest."""
    rule = Linear(weight=torch.eye(3), bias=torch.zeros(3), parts=1.0)
    found = rule.under_prior(torch.tensor([[0.0, 1.0, 2.0]]), torch.tensor([0.0, -1.0, -torch.inf]))
    assert found is not None
    assert found.tolist() == [[0.0, 0.0, -torch.inf]]


def test_of_many_images_a_tenth_is_held_out_once() -> None:
    """Groups stay whole, every class keeps an image, and at most a thousand images are held out."""
    labels = torch.arange(12600) % 7
    many = replace(
        drawn(0),
        features=torch.arange(12600.0)[:, None],
        labels=labels,
        num_classes=7,
        units=[str(number // 14) for number in range(12600)],
    )
    (out,) = many.parts
    rest, held = many.without(out), many.held_out
    assert 500 < len(held) < 800
    assert len(rest.labels) == 12600 - len(held)
    fitted = {number // 14 for number in rest.features[:, 0].long().tolist()}
    assert not fitted & {number // 14 for number in held.tolist()}
    assert len(fitted) == len(rest.labels) / 14, "what is held out is whole groups"
    assert len(rest.labels.unique()) == 7
