"""Stage 2 that chooses everything by an out-of-fold table, on drawn vectors."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch
from torch import Tensor

from tests.support import drawings
from vlltr_index.data.words import number_words
from vlltr_index.heads.anchor_bank import AnchorBank
from vlltr_index.heads.checkpoint import RuleParameters
from vlltr_index.heads.configuration import TEMPERED, TextLevel
from vlltr_index.heads.dealing import row_keys
from vlltr_index.heads.fusion import PartWeights, fuse, visual_scores
from vlltr_index.heads.moments import Moments, class_sums
from vlltr_index.heads.plda import PLDA
from vlltr_index.heads.plda_fit import predict
from vlltr_index.heads.rejection import fit_parts, fit_scores
from vlltr_index.heads.units import units_of
from vlltr_index.schemas.config import LGRConfig
from vlltr_index.tensors import unit_rows
from vlltr_index.train.out_of_fold import images_held_out, row_folds
from vlltr_index.train.stage_two import StageTwoResult, fit_stage_two, without_images
from vlltr_index.train.training_set import TrainingSet
from vlltr_index.wording import share_within

WIDTH = 8
CONFIG = LGRConfig(batch_size=16, lr=1e-2, projection_lr=0.1, views=2)
TRAINED = CONFIG.model_copy(update={"train": True})
NOTHING_CHOSEN = PartWeights(image=0.0, generative=TEMPERED, text=0.0)
NO_TABLE = "No image could be held out: nothing was chosen, and the accuracy is not measured."
NOT_USED = "Texts are not used for classes that have images: with them the held-out images are no likelier."
Fits = list[tuple[set[int], Tensor]]


def drawn(
    counts: list[int],
    told: list[bool] | None = None,
    order: list[int] | None = None,
    groups: list[str | None] | None = None,
    apart: float = 0.5,
    seed: int = 0,
) -> TrainingSet:
    """Two views of images about their class's mean, and three sentences a class about the same, or that of `order`."""
    g = torch.Generator().manual_seed(seed)
    centres = torch.randn(len(counts), WIDTH, generator=g)
    labels = torch.arange(len(counts)).repeat_interleave(torch.tensor(counts))
    features = 3.0 * (centres[labels] + apart * torch.randn(2, len(labels), WIDTH, generator=g))
    there = [c for c in range(len(counts)) if told is None or told[c]]
    places = torch.full((len(counts),), -1)
    places[torch.tensor(there, dtype=torch.int64)] = torch.arange(len(there))
    of = torch.tensor([c if order is None else order[c] for c in there], dtype=torch.int64).repeat_interleave(
        3
    )
    sentences = centres[of] + 0.3 * torch.randn(len(of), WIDTH, generator=g) + 1.0
    none = torch.empty(0, dtype=torch.int64)
    bank = AnchorBank(sentences, torch.zeros(1, dtype=torch.int64), none, none, torch.empty(0))
    if there:
        bank = AnchorBank.build(sentences, torch.tensor(there).repeat_interleave(3), there)
    return data_of(
        features, labels, bank, places, units_of(features[0], labels, groups or [None] * len(labels))
    )


def data_of(
    features: Tensor, labels: Tensor, bank: AnchorBank, places: Tensor, units: list[str]
) -> TrainingSet:
    """Training data without a stage 1."""
    return TrainingSet(
        features=features,
        labels=labels,
        bank=bank,
        places=places,
        units=units,
        keys=row_keys(features[0]),
        unseen=torch.zeros(len(labels), dtype=torch.bool),
        unseen_classes=torch.zeros(len(places), dtype=torch.bool),
        visual_init=None,
        logit_scale=20.0,
    )


def answers(decision: StageTwoResult, data: TrainingSet) -> Tensor:
    """Probabilities of the training images, put together as a workspace does."""
    plain, head, parts = data.features[0], decision.head, parts_of(decision)
    assert decision.rows is not None
    counts, sums = class_sums(unit_rows(plain), data.labels, data.classes, data.weights)
    predicted = predict(parts.shared, data.prototypes)
    if parts.text_level == TextLevel.NONE:
        predicted[counts > 0] = 0.0
    images = unit_rows(plain)
    likelihoods = parts.weights.generative * PLDA(parts.shared, counts, sums, predicted).log_likelihoods(
        images
    )
    text = torch.zeros(len(plain), data.classes)
    with torch.no_grad():
        linear = parts.weights.image * head.visual_logits(plain) if parts.weights.image else None
        if data.bank.num_classes:
            there = data.places >= 0
            text[:, there] = head.text_logits(plain, data.bank)[:, data.places[there]]
    base = decision.rows.nonzero()[:, 0]
    offsets = torch.zeros(data.classes)
    side = visual_scores(likelihoods, likelihoods, linear, base, offsets, parts.weights.combined)
    return fuse(side, text, parts.weights).probabilities


def parts_of(decision: StageTwoResult) -> RuleParameters:
    """What was decided."""
    assert decision.parts is not None
    return decision.parts


def held_out(decision: StageTwoResult) -> int:
    """How many images the scalars were fitted on."""
    answers = parts_of(decision).held_out
    return 0 if answers is None else len(answers.labels)


def right(decision: StageTwoResult, data: TrainingSet) -> float:
    """Share of the training images that are named."""
    return float((answers(decision, data).argmax(1) == data.labels).double().mean())


@pytest.fixture
def fits(monkeypatch: pytest.MonkeyPatch) -> Fits:
    """Which images, by their first view, each generative model was fitted on, and their labels."""
    found: Fits = []

    measured = Moments.of

    def spy(features: Tensor, labels: Tensor, *others: *tuple[Tensor, int, float]) -> Moments:
        found.append(({round(float(x), 6) for x in features[0, :, 0]}, labels))  # type: ignore[misc]
        return measured(features, labels, *others)

    monkeypatch.setattr(Moments, "of", staticmethod(spy))
    return found


def left_out(fits: Fits, data: TrainingSet) -> list[set[int]]:
    """The positions of the images that each of those fits did without, for those that did without any but no class."""
    values = [round(float(x), 6) for x in unit_rows(data.features[0])[:, 0]]
    assert len(set(values)) == len(values)
    whole = (seen for seen, labels in fits if len(labels.unique()) == data.classes)
    sets = [{n for n, value in enumerate(values) if value not in seen} for seen in whole]
    return [out for out in sets if out]


def test_what_goes_together_is_held_out_together(fits: Fits) -> None:
    """Each image is held out once with its group, or with what is nearly the same; the fits keep every class."""
    groups = ["a", "a", None, None, None, "b", None, None]
    data = drawn([8] * 4, [False] * 4, groups=groups * 4)
    features = data.features.clone()
    for first in range(0, 32, 8):
        features[0, first + 3] = features[0, first + 2] * 1.001 + 1e-3
        features[0, first + 4] = features[0, first + 5] * 0.999 - 1e-3
    data = replace(data, features=features, units=units_of(features[0], data.labels, groups * 4))
    decision = fit_stage_two(data, CONFIG)
    out = left_out(fits, data)
    together = [[n for n in range(32) if groups[n % 8] == name] for name in ("a", "b")]
    together += [[first + 2, first + 3] for first in range(0, 32, 8)]
    together[1] += range(4, 32, 8)
    for some in out:
        for unit in together:
            assert some.isdisjoint(unit) or some.issuperset(unit)
    assert {n for some in out for n in some} == set(range(32))
    assert held_out(decision) == 32
    assert right(decision, data) > 0.9


def test_a_fold_has_the_anchors_that_its_own_images_chose() -> None:
    """Sentences that only the held-out images made look right do not count; asked for once a fold, for its images."""
    data, asked = drawn([6] * 8, apart=1.5, seed=1), list[set[int]]()
    assert parts_of(fit_stage_two(data, CONFIG)).weights.text > 0.0
    wrong = AnchorBank.build(data.bank.vectors.roll(9, 0), data.bank.class_of_row, data.bank.class_ids)

    def without(out: Tensor) -> tuple[AnchorBank, list[str]]:
        asked.append(set(out.nonzero()[:, 0].tolist()))
        return wrong, [f"sentence {n}" for n in range(24)]

    decision = fit_stage_two(replace(data, anchors_without=without), CONFIG)
    assert parts_of(decision).weights.text == 0.0
    assert len(asked) == 5
    assert sorted(n for out in asked for n in out) == list(range(48))
    for fold, out in zip(decision.folds, asked, strict=True):
        assert set(fold.out.nonzero()[:, 0].tolist()) == out
        assert torch.equal(fold.bank.vectors, wrong.vectors)
        assert list(fold.sentence_ids) == [f"sentence {n}" for n in range(24)]


@pytest.mark.parametrize("told", [True, False])
def test_the_models_of_the_folds_give_the_answers_of_the_table(told: bool) -> None:
    """Each with the classes' other images and the scalars of the other folds; nothing else is needed."""
    data = drawn([6] * 8, [told] * 8, apart=1.0)
    decision = fit_stage_two(data, CONFIG)
    held, fold_of = parts_of(decision).held_out, decision.fold_of
    assert held is not None
    assert fold_of is not None
    rows = torch.cat([(fold_of == number).nonzero()[:, 0] for number in range(5)])
    assert torch.equal(held.labels, data.labels[rows])
    images = unit_rows(data.features[0])
    found = torch.zeros(48, 8)
    for number, fold in enumerate(decision.folds):
        assert torch.equal(fold.out, fold_of == number)
        configuration, weights = decision.scalars[number]
        counts, sums = class_sums(images[~fold.out], data.labels[~fold.out], 8)
        predicted = predict(fold.shared, data.prototypes)
        if configuration.level == TextLevel.NONE:
            predicted = torch.zeros_like(predicted)
        model = PLDA(fold.shared, counts, sums, predicted, shifts=fold.shifts)
        scores = weights.generative * model.log_likelihoods(images[fold.out])
        if weights.text:
            with torch.no_grad():
                scores = scores + weights.text * fold.head.text_logits(data.features[0, fold.out], fold.bank)
        found[fold.out] = scores.softmax(1).float()
    torch.testing.assert_close(held.probabilities.float(), found[rows], rtol=0, atol=1e-3)


def test_a_class_keeps_its_last_images(fits: Fits) -> None:
    """One image, or two that are nearly the same, are never held out; nor is a group that is all a class has."""
    groups = [None] * 3 + ["g"] * 4 + [None] * 5
    data = drawn([1, 2, 3, 6], [False] * 4, groups=groups)
    features = data.features.clone()
    features[0, 2] = features[0, 1] * 1.001 + 1e-3
    data = replace(data, features=features, units=units_of(features[0], data.labels, groups))
    decision = fit_stage_two(data, CONFIG)
    held = {n for some in left_out(fits, data) for n in some}
    assert held == set(range(6, 12))
    assert held_out(decision) == 6


def test_from_5000_images_on_one_part_is_held_out(fits: Fits) -> None:
    """A tenth of the images; nothing is trained by gradient."""
    data = drawn([2500, 2500], [False, False], apart=1.5)
    decision = fit_stage_two(data, CONFIG)
    assert 400 <= held_out(decision) <= 600
    of_both = {len(labels) for _, labels in fits if len(labels.unique()) == 2}
    assert of_both == {5000, 5000 - held_out(decision)}
    assert (parts_of(decision).weights.image, decision.log) == (0.0, [])
    assert len(decision.folds) == 1
    assert set(decision.scalars) == set(range(5))
    assert decision.fold_of is not None
    assert torch.bincount(decision.fold_of + 1).tolist()[1:] == pytest.approx([100] * 5, abs=25)


def test_an_untrained_head_attends_with_identity_projections() -> None:
    """Without a stage 1 nothing is trained unless the recipe asks for it."""
    decision = fit_stage_two(drawn([6] * 8, apart=1.5), CONFIG)
    eye = torch.eye(WIDTH)
    heads = [decision.head, *(fold.head for fold in decision.folds)]
    for head in heads:
        assert torch.equal(head.query_proj.weight, eye)
        assert torch.equal(head.key_proj.weight, eye)
    assert decision.log == []
    assert parts_of(decision).weights.image == 0.0


@pytest.mark.slow
def test_on_request_the_head_is_trained_and_images_that_stop_it_decide_nothing_else() -> None:
    """A tenth of the groups is held out: a fifth of it decides the number of steps, the rest is the table."""
    data = drawn([60] * 8, apart=0.7, seed=1)
    parts = images_held_out(data, one_part=True)
    rows = row_folds(data, parts)
    decision = fit_stage_two(data, TRAINED)
    assert len(parts) == len(decision.folds) == 1
    assert 40 <= int(parts[0].sum()) <= 48
    assert decision.fold_of is not None
    assert torch.equal(decision.fold_of, torch.where(rows == 4, -1, rows))
    assert int((rows == 4).sum()) > 0
    assert held_out(decision) == int((decision.fold_of >= 0).sum()) < int(parts[0].sum())
    assert decision.log[-1]["steps"] > 0
    assert not torch.equal(decision.head.query_proj.weight, torch.eye(WIDTH))
    assert right(decision, data) > 0.8


@pytest.mark.parametrize(
    "data",
    [
        drawn([6]),
        drawn([6] * 5, [False] * 5),
        drawn([6] * 6, [True] * 5 + [False]),
        drawn([12, 3, 1, 2, 1, 1]),
    ],
    ids=["one class", "no sentence", "a class without a sentence", "few images"],
)
def test_classes_of_all_kinds_are_answered(data: TrainingSet) -> None:
    """The head has a row for each class, the weights are finite, and the training images are recognised."""
    decision = fit_stage_two(data, CONFIG)
    parts = parts_of(decision)
    assert decision.head.num_visual_classes == data.classes
    assert not decision.head.training
    assert right(decision, data) > 0.9
    covered = int((torch.bincount(data.labels) > 1).sum())
    classes = f"{data.classes} class{'es' * (data.classes > 1)}"
    measured = (
        f" on {held_out(decision)} held-out images in {held_out(decision)} groups, {covered} of {classes}."
    )
    assert decision.notes[0].startswith("Balanced accuracy ")
    assert decision.notes[0].endswith(measured)
    if not data.bank.num_classes:
        assert parts.texts == "There is no sentence: images alone decide."
        assert parts.texts in decision.notes
        assert parts.weights.text == parts.shared.text_r2 == 0.0
    if held_out(decision) < 20:
        assert parts.ood_threshold is None
        assert any("too few groups of images were held out" in note for note in decision.notes)
        return
    assert parts.ood_threshold is not None
    images = unit_rows(data.features[0])
    counts, sums = class_sums(images, data.labels, data.classes)
    predicted = predict(parts.shared, data.prototypes)
    predicted = predicted if parts.text_level else torch.zeros_like(predicted)
    fits = fit_scores(fit_parts(PLDA(parts.shared, counts, sums, predicted), images), parts.ratio_weight)
    assert float((fits >= parts.ood_threshold).double().mean()) > 0.8


@pytest.mark.parametrize(("apart", "least", "most"), [(0.1, 0.0, 0.1), (5.0, 0.8, 1.0)])
def test_the_false_accept_rate_is_measured_on_classes_left_out(
    apart: float, least: float, most: float
) -> None:
    """No image of classes that lie apart is accepted, nearly all where classes do not differ; the user is told."""
    decision = fit_stage_two(drawn([8] * 10, [False] * 10, apart=apart), CONFIG)
    share = parts_of(decision).unknown_accepted
    assert share is not None
    assert least <= share <= most
    ends = parts_of(decision).unknown_range
    assert ends is not None
    assert 0.0 <= ends[0] <= share <= ends[1] <= 1.0
    accepted = f"and {share_within(share, ends)} of images of classes left out."
    assert any(accepted in note for note in decision.notes)


def test_of_few_images_of_classes_left_out_no_rate_is_reported() -> None:
    decision = fit_stage_two(drawn([7] * 4, [False] * 4), CONFIG)
    assert parts_of(decision).unknown_accepted is None
    assert parts_of(decision).ood_threshold is not None


def test_where_every_class_has_one_image_nothing_is_chosen() -> None:
    """The PLDA decides, with the text as a prior; the classifier is the linear discriminant."""
    data = drawn([1] * 6)
    decision = fit_stage_two(data, CONFIG)
    parts = parts_of(decision)
    assert held_out(decision) == 0
    assert (decision.log, list(decision.folds)) == ([], [])
    assert (parts.ood_threshold, parts.held_out) == (None, None)
    assert (parts.weights, parts.text_level) == (NOTHING_CHOSEN, TextLevel.PRIOR)
    assert decision.notes == [NO_TABLE]
    assert right(decision, data) == 1.0
    with torch.no_grad():
        rows = decision.head.visual_logits(data.features[0])
    assert rows.argmax(1).tolist() == data.labels.tolist()


def test_below_30_held_out_groups_nothing_is_chosen() -> None:
    """But the table measures the accuracy."""
    data = drawn([7] * 4)
    decision = fit_stage_two(data, CONFIG)
    assert held_out(decision) == 28
    assert parts_of(decision).weights == NOTHING_CHOSEN
    assert "Too few groups of images were held out to choose anything by." in decision.notes
    assert all(weights == NOTHING_CHOSEN for _, weights in decision.scalars.values())
    assert parts_of(fit_stage_two(drawn([8] * 4), CONFIG)).weights != NOTHING_CHOSEN


def test_texts_of_other_classes_do_not_count() -> None:
    """Permuted between the classes they make no held-out image likelier: the answers are those of the images alone."""
    data = drawn([6] * 8, order=[3, 4, 5, 6, 7, 0, 1, 2])
    decision = fit_stage_two(data, CONFIG)
    parts = parts_of(decision)
    assert parts.text_level == TextLevel.NONE or not parts.shared.text_r2
    assert parts.weights.text == 0.0
    assert parts.texts == NOT_USED
    assert NOT_USED in decision.notes
    assert right(decision, data) > 0.9


def test_text_only_classes_are_reported_by_what_texts_predict() -> None:
    """Where they say where images lie, such a class can be recognised; where they say nothing, it cannot."""
    known = fit_stage_two(drawn([8] * 10, apart=0.2), CONFIG)
    assert parts_of(known).shared.text_r2 > 0.5
    assert not parts_of(known).texts_are_mute
    assert "Text-only classes can be recognised; such a class may attract unknown images, too." in known.notes
    silent, attending = (fit_stage_two(of_noise(seed), CONFIG) for seed in (0, 4))
    assert parts_of(silent).shared.text_r2 == parts_of(attending).shared.text_r2 == 0.0
    assert parts_of(silent).texts_are_mute
    assert NOT_USED in silent.notes
    assert "Text-only classes cannot be recognised: the texts do not predict class means." in silent.notes
    assert parts_of(attending).weights.text > 0.0
    said = "Attention over anchor sentences adds to the answer; texts do not predict class means."
    assert said in attending.notes


def of_noise(seed: int) -> TrainingSet:
    """Classes with sentences that say nothing."""
    data = drawn([8] * 10, apart=0.2)
    vectors = torch.randn(data.bank.vectors.shape, generator=torch.Generator().manual_seed(seed))
    return replace(data, bank=AnchorBank.build(vectors, data.bank.class_of_row, data.bank.class_ids))


@pytest.mark.slow
def test_a_decision_is_made_again() -> None:
    """The same numbers whatever the caller's random state, which stays."""
    data, config = drawn([60] * 8, apart=0.7, seed=1), TRAINED.model_copy(update={"projection_lr": 0.05})
    calls = list[int]()
    torch.manual_seed(1)
    before = torch.random.get_rng_state()
    whole = fit_stage_two(data, config, progress=lambda _, done, __: calls.append(done))
    assert torch.equal(torch.random.get_rng_state(), before)
    assert len(whole.log) > 1
    assert whole.log[-1]["best"] == whole.log[-1]["steps"] == calls[-1]
    torch.manual_seed(2)
    found = fit_stage_two(data, config)
    assert torch.equal(answers(found, data), answers(whole, data))
    assert drawings.untimed(found.log) == drawings.untimed(whole.log)
    assert (found.notes, held_out(found)) == (whole.notes, held_out(whole))


def after_stage_one(data: TrainingSet, unseen: list[int], classes: list[int]) -> TrainingSet:
    """The same with images and classes that stage 1 did not see, and its classifier: the class means."""
    counts, sums = class_sums(data.features[0], data.labels, data.classes)
    means = (sums / counts[:, None]).float()
    biases = -0.5 * means.square().sum(1)
    out = torch.zeros(data.classes, dtype=torch.bool)
    out[torch.tensor(classes, dtype=torch.int64)] = True
    biases[out] = math.nan
    means[out] = math.nan
    held = torch.zeros(len(data.labels), dtype=torch.bool)
    held[torch.tensor(unseen, dtype=torch.int64)] = True
    return replace(data, unseen=held, unseen_classes=out, visual_init=(means, biases))


def test_after_stage_one_the_images_that_it_did_not_see_decide(fits: Fits) -> None:
    """The scalars rest on those alone, the final parts on all; but never on a class's last images.

    A fifth of these images decides how long the head is trained, and is not in the table.
    """
    data = drawn([70] * 8 + [1], apart=0.8)
    unseen = [*range(0, 560, 5), 560]
    data = after_stage_one(data, unseen, [])
    decision = fit_stage_two(data, CONFIG.model_copy(update={"lr": 1e-3}))
    assert {frozenset(some) for some in left_out(fits, data)} == {frozenset(unseen[:-1])}
    rows = row_folds(data, images_held_out(data, one_part=True))
    assert rows[unseen[:-1]].min() == 0
    assert held_out(decision) == int(((rows >= 0) & (rows < 4)).sum())
    assert 80 <= held_out(decision) <= 100
    assert decision.fold_of is not None
    assert set(decision.fold_of.tolist()) == {-1, 0, 1, 2, 3}
    assert parts_of(decision).weights.image > 0.0
    assert right(decision, data) > 0.8


@pytest.mark.parametrize("images", [12, 1])
def test_classes_that_stage_one_did_not_see_are_in_no_choice(images: int, fits: Fits) -> None:
    """None of their images is in the table or in a fit of the folds; they say how far texts of added classes count."""
    data = drawn([25] * 8 + [images] * 5, apart=0.4)
    data = after_stage_one(data, list(range(0, 200, 5)), list(range(8, 13)))
    decision = fit_stage_two(data, CONFIG)
    parts = parts_of(decision)
    assert parts.held_out is not None
    assert int(parts.held_out.labels.max()) < 8
    assert parts.held_out.probabilities.shape[1] == 8
    for some in left_out(fits, data):
        assert some >= set(range(200, len(data.labels)))
    assert decision.rows is not None
    assert decision.rows.tolist() == [True] * 8 + [False] * 5  # as classes that are added later have none
    assert decision.head.num_visual_classes == 8
    assert all(bool(value.isfinite().all()) for value in decision.head.state_dict().values())
    assert right(decision, data) > 0.9
    assert parts.text_trust in (1.0, 0.75, 0.5, 0.25, 0.0)
    assert any("Texts of added classes shift their means by" in one for one in decision.notes) is (
        parts.text_trust < 1.0
    )


def test_texts_of_classes_that_stage_one_did_not_see_are_trusted_as_far_as_they_are_right() -> None:
    """Fully where they say as much as those of the classes that it saw, not at all where they are permuted."""
    counts = [25] * 10 + [12] * 6
    seen, unseen = list(range(0, 250, 5)), list(range(10, 16))
    found = []
    for order in (None, [*range(10), *range(11, 16), 10]):
        data = after_stage_one(drawn(counts, order=order, apart=0.3), seen, unseen)
        found.append(parts_of(fit_stage_two(data, CONFIG)).text_trust)
    assert found[0] >= 0.75
    assert found[1] <= 0.25


@pytest.mark.parametrize("unseen", [0, 8])
def test_few_images_that_stage_one_did_not_see_choose_nothing(unseen: int) -> None:
    """Its classifier is too confident of those that it saw: the PLDA decides."""
    data = after_stage_one(drawn([10] * 8, apart=0.4), list(range(0, 10 * unseen, 10)), [])
    decision = fit_stage_two(data, CONFIG)
    assert held_out(decision) <= unseen
    assert parts_of(decision).ood_threshold is None
    assert parts_of(decision).weights == NOTHING_CHOSEN
    few = "Too few groups of images were held out to choose anything by."
    assert few in decision.notes if unseen else decision.notes == [NO_TABLE]
    assert right(decision, data) > 0.9


def test_a_head_that_is_trained_already_is_weighed_as_it_is() -> None:
    """By the images that it did not see; without such images nothing is chosen."""
    data = after_stage_one(drawn([40] * 5, apart=0.8), list(range(0, 200, 5)), [])
    head = fit_stage_two(data, CONFIG).head
    before = {name: value.clone() for name, value in head.state_dict().items()}
    found = fit_stage_two(data, CONFIG, head=head)
    assert all(torch.equal(value, before[name]) for name, value in head.state_dict().items())
    assert held_out(found) == 40
    assert " on 40 held-out images in 40 groups, 5 of 5 classes." in found.notes[0]
    assert parts_of(found).weights.image > 0.0
    found = fit_stage_two(replace(data, unseen=torch.zeros_like(data.unseen)), CONFIG, head=head)
    assert found.notes == [NO_TABLE]
    assert parts_of(found).ood_threshold is None


def test_without_any_image_the_texts_decide() -> None:
    """A head without a visual row; the answer is that of attention."""
    data = drawn([1] * 4)
    decision = without_images(data.bank, CONFIG, 20.0)
    assert decision.head.num_visual_classes == 0
    assert decision.notes == ["There is no training image: the classes are recognised by their texts alone."]
    weights = parts_of(decision).weights
    text = decision.head.text_logits(data.features[0], data.bank).detach()
    nothing = torch.zeros(4, dtype=torch.int64), torch.zeros(4, WIDTH).double()
    shared = parts_of(decision).shared
    model = PLDA(shared, *nothing, predict(shared, data.prototypes))
    likelihoods = weights.generative * model.log_likelihoods(unit_rows(data.features[0]))
    none = torch.zeros(0, dtype=torch.int64)
    side = visual_scores(likelihoods, likelihoods, None, none, torch.zeros(4))
    torch.testing.assert_close(fuse(side, text, weights).probabilities, text.softmax(1))


@pytest.mark.parametrize("alike", [0.0, 0.9])
def test_how_alike_the_images_of_a_group_are_is_fitted(alike: float) -> None:
    """Groups of four images, which share most of their distance to the class's mean or none; 1 without such groups."""
    counts = [40] * 6
    data = drawn(counts, apart=0.9)
    g = torch.Generator().manual_seed(1)
    units = torch.arange(240) // 4
    centres = 1.2 * torch.randn(6, WIDTH, generator=g)
    own = torch.randn(60, WIDTH, generator=g)[units]
    noise = alike**0.5 * own + (1.0 - alike) ** 0.5 * torch.randn(240, WIDTH, generator=g)
    features = (centres[data.labels] + 1.5 * noise)[None]
    data = replace(
        data, features=features, keys=row_keys(features[0]), units=[str(unit) for unit in units.tolist()]
    )
    decision = fit_stage_two(replace(data, places=torch.full((6,), -1)), CONFIG)
    found = parts_of(decision).correlation
    assert found < 0.4 if alike == 0.0 else found > 0.6
    assert any("five images together (predict --group)" in note for note in decision.notes) is (found < 1.0)
    alone = fit_stage_two(drawn([8] * 5, told=[False] * 5), CONFIG)
    assert parts_of(alone).correlation == 1.0


def test_near_chance_is_reported() -> None:
    """Where images are recognised no more often than by chance; not where they are."""
    near = "That is near chance (25%): the encoder may not suit these images, or they are too few."
    lost = fit_stage_two(drawn([12] * 4, [False] * 4, apart=60.0), CONFIG)
    assert near in lost.notes
    assert near not in fit_stage_two(drawn([12] * 4, [False] * 4), CONFIG).notes


def wordy(order: list[int] | None = None, seed: int = 0) -> TrainingSet:
    """Images of 16 classes around a part for each of the two words of the class's name, and sentences with the name, or
    that of the class in `order`, which no text tower read."""
    g = torch.Generator().manual_seed(seed)
    first, second = torch.randn(2, 4, WIDTH, generator=g)
    centres = (first[:, None] + second[None]).flatten(0, 1)
    labels = torch.arange(16).repeat_interleave(6)
    features = 3.0 * (centres[labels] + 0.5 * torch.randn(2, len(labels), WIDTH, generator=g))
    named = [f"a colour{c // 4} thing{c % 4}." for c in order or range(16)]
    bank = AnchorBank.build(
        torch.zeros(16, WIDTH), torch.arange(16), torch.arange(16), words=number_words(named)
    )
    units = units_of(features[0], labels, [None] * len(labels))
    return data_of(features, labels, bank, torch.arange(16), units)


def test_without_a_text_tower_texts_are_a_prior_alone() -> None:
    """Attention has no weight; permuted texts tell nothing, and text-only classes cannot be recognised by them."""
    decision = fit_stage_two(wordy(), CONFIG)
    parts = parts_of(decision)
    assert parts.weights.text == 0.0
    assert parts.text_level == TextLevel.PRIOR
    assert parts.shared.text_r2 > 0.3
    assert not parts.texts_are_mute
    assert replace(parts, text_trust=0.0).texts_are_mute  # the likelihoods of such classes would be the same
    assert parts.texts.startswith("Texts predict ")
    assert "attention" not in parts.texts
    mute = 0
    for seed in range(4):
        shuffled = torch.randperm(16, generator=torch.Generator().manual_seed(seed)).tolist()
        mute += parts_of(fit_stage_two(wordy(shuffled), CONFIG)).texts_are_mute
    assert mute >= 3
