"""Stage 2 that decides by itself how much each part counts, on drawn vectors."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch
from torch import Tensor

from tests.support import drawings
from vlltr_index.data.words import number_words
from vlltr_index.heads.anchor_bank import AnchorBank
from vlltr_index.heads.checkpoint import Parts
from vlltr_index.heads.fusion import Gate, Kinds, fuse, visual_scores
from vlltr_index.heads.moments import Moments, class_sums
from vlltr_index.heads.plda import PLDA
from vlltr_index.heads.rejection import directions, fit_parts
from vlltr_index.heads.units import units_of
from vlltr_index.schemas.config import LGRConfig
from vlltr_index.tensors import unit_rows
from vlltr_index.train.held_out import near_chance
from vlltr_index.train.stage_two import StageTwoResult, fit_stage_two, weigh, without_images
from vlltr_index.train.stage_two_data import StageTwoData, text_matches
from vlltr_index.wording import share_within

WIDTH = 8
CONFIG = LGRConfig(batch_size=16, lr=1e-2, projection_lr=0.1, views=2)
Fits = list[tuple[set[int], Tensor]]


def drawn(
    counts: list[int],
    told: list[bool] | None = None,
    order: list[int] | None = None,
    groups: list[str | None] | None = None,
    apart: float = 0.5,
    seed: int = 0,
) -> StageTwoData:
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
    return StageTwoData(
        features,
        labels,
        bank,
        places,
        units_of(features[0], labels, groups or [None] * len(labels)),
        torch.zeros(len(labels), dtype=torch.bool),
        torch.zeros(len(counts), dtype=torch.bool),
        None,
        20.0,
    )


def answers(decision: StageTwoResult, data: StageTwoData) -> Tensor:
    """Probabilities of the training images, put together as a workspace does."""
    plain, head, parts = data.features[0], decision.head, parts_of(decision)
    assert decision.rows is not None
    counts, sums = class_sums(unit_rows(plain), data.labels, data.classes, data.weights)
    model = PLDA(parts.shared, counts, sums, data.prototypes)
    likelihoods = model.log_likelihoods(unit_rows(plain))
    with torch.no_grad():
        visual, text = torch.zeros(2, len(plain), data.classes)
        visual[:, decision.rows] = head.visual_logits(plain)
        if data.bank.num_classes:
            there = data.places >= 0
            text[:, there] = head.text_logits(plain, data.bank)[:, data.places[there]]
    side = visual_scores(visual, likelihoods, Kinds.of(decision.rows, counts > 0), parts.weights)
    return fuse(side, text, parts.weights).probabilities


def parts_of(decision: StageTwoResult) -> Parts:
    """What was decided."""
    assert decision.parts is not None
    return decision.parts


def held_out(decision: StageTwoResult) -> int:
    """How many images the weights were fitted on."""
    answers = parts_of(decision).held_out
    return 0 if answers is None else len(answers.labels)


def right(decision: StageTwoResult, data: StageTwoData) -> float:
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


def left_out(fits: Fits, data: StageTwoData) -> list[set[int]]:
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


@pytest.mark.slow
def test_a_fold_has_the_anchors_that_its_own_images_chose() -> None:
    """Sentences that only the held-out images made look right do not count; asked for once a fold, for its images, and
    once more for these and those of the classes that play later ones.
    """
    data, asked = drawn([6] * 8, apart=1.5), list[set[int]]()
    assert parts_of(fit_stage_two(data, CONFIG)).weights.text > 0.0
    wrong = AnchorBank.build(data.bank.vectors.roll(9, 0), data.bank.class_of_row, data.bank.class_ids)

    def without(out: Tensor) -> AnchorBank:
        asked.append(set(out.nonzero()[:, 0].tolist()))
        return wrong

    assert parts_of(fit_stage_two(replace(data, anchors_without=without), CONFIG)).weights.text == 0.0
    folds, later = asked[:5], asked[5:]
    assert sorted(n for out in folds for n in out) == list(range(48))
    assert len(later) == 5
    for out, more in zip(folds, later, strict=True):
        classes = {n // 6 for n in more - out}
        assert classes
        assert more == out | {n for n in range(48) if n // 6 in classes}


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
    """A tenth of the images, and then the trained classifier counts too."""
    data = drawn([2500, 2500], [False, False], apart=1.5)
    decision = fit_stage_two(data, CONFIG.model_copy(update={"batch_size": 256, "lr": 0.1}))
    assert 400 <= held_out(decision) <= 600
    of_both = {len(labels) for _, labels in fits if len(labels.unique()) == 2}
    assert of_both == {5000, 5000 - held_out(decision)}
    assert parts_of(decision).weights.image > 0.0


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
def test_classes_of_all_kinds_are_answered(data: StageTwoData) -> None:
    """The head has a row for each class, the weights are finite, and the training images are named."""
    decision = fit_stage_two(data, CONFIG)
    assert decision.head.num_visual_classes == data.classes
    assert not decision.head.training
    assert right(decision, data) > 0.9
    said = decision.notes[0]
    assert said.startswith("Parts that count: ")
    assert f". Their weights were chosen on {held_out(decision)} training images (" in said
    assert (
        " % of these are right, each class and unit counted alike. New pictures are not measured so" in said
    )
    if not data.bank.num_classes:
        assert decision.notes[1] == "There is no sentence: the images alone count."
        assert parts_of(decision).weights.text == parts_of(decision).shared.text_r2 == 0.0
    level, rejection = parts_of(decision).ood_threshold, parts_of(decision).rejection
    assert level is not None
    assert rejection is not None
    images = unit_rows(data.features[0])
    counts, sums = class_sums(images, data.labels, data.classes)
    model = PLDA(parts_of(decision).shared, counts, sums, data.prototypes)
    fits = rejection.weights.sum(fit_parts(model, images, rejection.images))
    assert float((fits >= level).double().mean()) > 0.8
    assert len(rejection.rows) == pytest.approx(0.95 * len(data.labels), abs=1)


def test_nothing_is_compared_with_a_foreign_image_under_a_wrong_label() -> None:
    """So that its like is not let in."""
    data = drawn([8] * 10, [False] * 10, apart=2.0)
    data.features[0, 3] = -20.0 * data.features[0].mean(0)
    parts = parts_of(fit_stage_two(data, CONFIG))
    assert parts.rejection is not None
    foreign = directions(parts.shared, unit_rows(data.features[0, 3:4]))
    assert float((foreign @ parts.rejection.images.float().T).max()) < 0.99
    assert len(parts.rejection.rows) == 76


@pytest.mark.parametrize(("apart", "least", "most"), [(0.1, 0.0, 0.1), (5.0, 0.8, 1.0)])
def test_what_none_of_these_lets_in_is_measured_on_classes_left_out(
    apart: float, least: float, most: float
) -> None:
    """Nothing of classes that lie apart, nearly all where classes do not differ; the user is told."""
    decision = fit_stage_two(drawn([8] * 10, [False] * 10, apart=apart), CONFIG)
    share = parts_of(decision).unknown_accepted
    assert share is not None
    assert least <= share <= most
    ends = parts_of(decision).unknown_range
    assert ends is not None
    assert 0.0 <= ends[0] <= share <= ends[1] <= 1.0
    let_in = f"and {share_within(share, ends)} of images of other classes like these"
    assert any(let_in in note for note in decision.notes)


def test_held_out_images_do_not_meet_themselves() -> None:
    """Their likeness to the images of the fit varies, as it would not to themselves; a unit is compared with once."""
    data = drawn([9] * 10, [False] * 10, groups=[f"{n // 3}" for n in range(90)])
    rejection = parts_of(fit_stage_two(data, CONFIG)).rejection
    assert rejection is not None
    assert rejection.weights.likeness > 0
    assert 28 <= len(rejection.rows) <= 30


def test_few_images_of_classes_left_out_say_nothing() -> None:
    decision = fit_stage_two(drawn([7] * 4, [False] * 4), CONFIG)
    assert parts_of(decision).unknown_accepted is None
    assert parts_of(decision).ood_threshold is not None


def test_where_every_class_has_one_image_nothing_is_weighed() -> None:
    """The images count, with the text as a prior; the classifier starts from the discriminant and stays there."""
    data = drawn([1] * 6)
    decision = fit_stage_two(data, CONFIG)
    assert held_out(decision) == 0
    assert decision.log == []
    assert parts_of(decision).ood_threshold is None
    weights = parts_of(decision).weights
    assert (weights.image, weights.text) == (0.0, 0.0)
    assert weights.generative > 0.0
    assert decision.notes == [
        "No image could be kept out of training, so nothing could be weighed: the images count, text as a prior."
    ]
    assert right(decision, data) == 1.0
    with torch.no_grad():
        rows = decision.head.visual_logits(data.features[0])
    assert rows.argmax(1).tolist() == data.labels.tolist()


def test_texts_of_other_classes_do_not_count() -> None:
    """Swapped between the classes they are seen not to match, and the answers are those of the images alone."""
    data = drawn([6] * 8, order=[3, 4, 5, 6, 7, 0, 1, 2])
    assert text_matches(data) is False
    decision = fit_stage_two(data, CONFIG)
    assert parts_of(decision).weights.text == 0.0
    assert decision.notes[1] == (
        "The texts do not match the images: permuted between the classes they fit as well. They do not count."
    )
    assert right(decision, data) > 0.9


def test_texts_match_where_they_lie_nearer_to_their_own_images() -> None:
    """True texts do, permuted ones seldom; below five classes with both nobody can say."""
    true = [text_matches(drawn([3] * 12, seed=seed)) for seed in range(6)]
    permuted = [
        text_matches(drawn([3] * 12, order=[*range(5, 12), *range(5)], seed=seed)) for seed in range(12)
    ]
    assert true == [True] * 6
    assert permuted.count(False) >= 10
    assert text_matches(drawn([3] * 4)) is None
    assert text_matches(drawn([3] * 8, [True] * 4 + [False] * 4)) is None


@pytest.mark.slow
def test_classes_left_out_tell_how_many_are_found_by_text_alone() -> None:
    """Those whose texts say where their images lie are; of silent ones nothing is known."""
    parts = parts_of(fit_stage_two(drawn([8] * 10, apart=0.2), CONFIG))
    assert parts.weights.text_only.offset != 0.0
    (found,) = [one.found for one in parts.later if (one.images, one.number) == (0, 1)]
    assert found > 0.9
    silent = parts_of(fit_stage_two(drawn([8] * 10, [False] * 10, apart=0.2), CONFIG))
    assert silent.weights.text_only.offset == -1e5  # nothing is known of them
    assert {one.images for one in silent.later} == {1, 5}


@pytest.mark.slow
def test_a_decision_is_made_again() -> None:
    """The same numbers whatever the caller's random state, which stays."""
    data, config = drawn([4] * 4, apart=0.7), CONFIG.model_copy(update={"projection_lr": 0.05})
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


def after_stage_one(data: StageTwoData, unseen: list[int], classes: list[int]) -> StageTwoData:
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
    """The weights rest on those alone, the final parts on all; but never on a class's last images."""
    data = drawn([70] * 8 + [1], apart=0.8)
    data = after_stage_one(data, [*range(0, 560, 5), 560], [])
    decision = fit_stage_two(data, CONFIG.model_copy(update={"lr": 1e-3}))
    assert held_out(decision) == 112
    assert {frozenset(some) for some in left_out(fits, data)} == {frozenset(range(0, 560, 5))}
    assert parts_of(decision).weights.image > 0.0
    weights = parts_of(decision).weights
    # By classes that stage 1 saw.
    assert max(weights.few_shot.limit, weights.text_only.limit) < 10.0
    assert parts_of(decision).later == ()
    assert right(decision, data) > 0.8


@pytest.mark.parametrize("images", [12, 1])
def test_classes_that_stage_one_did_not_see_set_how_new_ones_meet_the_others(images: int, fits: Fits) -> None:
    """They stand for new ones: none of their images is weighed on, and the offset lets them in; with few images too."""
    data = drawn([20] * 8 + [images] * 5, apart=0.4)
    data = after_stage_one(data, list(range(0, 160, 5)), list(range(8, 13)))
    decision = fit_stage_two(data, CONFIG)
    assert held_out(decision) == 32
    for some in left_out(fits, data):
        assert some >= set(range(160, len(data.labels)))
    assert decision.rows is not None
    assert decision.rows.tolist() == [True] * 8 + [False] * 5  # as classes that come later have none
    assert decision.head.num_visual_classes == 8
    assert all(bool(value.isfinite().all()) for value in decision.head.state_dict().values())
    assert right(decision, data) > 0.9
    weights = parts_of(decision).weights
    assert weights.text_only.offset != 0.0
    assert (weights.few_shot.offset != 0.0) is (images > 1)  # with one each there is none left to ask about
    later = parts_of(decision).later
    assert [one.images for one in later] == [0] * 3 + ([1] * 3 + [5] * 3 if images > 1 else [])
    assert all(one.found_range is not None for one in later)
    assert len([note for note in decision.notes if "classes left out: " in note]) == len(later) / 3
    told = next(note for note in decision.notes if "known by its text alone" in note)
    assert f" {share_within(later[0].found, later[0].found_range)} of the images would be found" in told
    assert told.endswith(
        f"; of 100 such classes {100 * later[2].found:.0f} %, and {100 * later[2].lost:.1f} points."
    )


@pytest.mark.parametrize("unseen", [0, 8])
def test_few_images_that_stage_one_did_not_see_weigh_nothing(unseen: int) -> None:
    """Of those it saw its classifier would be sure: the generative model answers, with some text."""
    data = after_stage_one(drawn([10] * 8, apart=0.4), list(range(0, 10 * unseen, 10)), [])
    decision = fit_stage_two(data, CONFIG)
    assert held_out(decision) == unseen
    assert (parts_of(decision).ood_threshold is None) is (unseen == 0)
    none = "No image could be kept out of training, so nothing could be weighed: the images count, text as a prior."
    few = (
        "Too few images were held out to weigh the parts by: the usual weights hold, and texts count little."
    )
    untold = (
        "Too little was kept out of stage 1: what later classes get is not foretold, and they may cost the others more"
        " than a point."
    )
    assert decision.notes == ([few, untold] if unseen else [none])
    assert decision.notes[0] == parts_of(decision).texts
    assert parts_of(decision).weights.image == 0.0
    assert (parts_of(decision).weights.text > 0.0) is (unseen > 0)
    assert right(decision, data) > 0.9


def test_a_head_that_is_trained_already_is_weighed_as_it_is() -> None:
    """On the images that it did not see; without such images the default weights hold."""
    data = after_stage_one(drawn([40] * 5, apart=0.8), list(range(0, 200, 5)), [])
    head = fit_stage_two(data, CONFIG).head
    before = {name: value.clone() for name, value in head.state_dict().items()}
    parts, notes = weigh(data, head)
    assert all(torch.equal(value, before[name]) for name, value in head.state_dict().items())
    assert "chosen on 40 training images (40 units) that the parts were not fitted on;" in notes[0]
    assert parts.weights.image > 0.0
    parts, notes = weigh(replace(data, unseen=torch.zeros_like(data.unseen)), head)
    assert notes == [
        "No image could be kept out of training, so nothing could be weighed: the images count, text as a prior."
    ]
    assert parts.ood_threshold is None


def test_without_any_image_the_texts_decide() -> None:
    """A head without a visual row; the answer is the text branch's."""
    data = drawn([1] * 4)
    decision = without_images(data.bank, CONFIG, 20.0)
    assert decision.head.num_visual_classes == 0
    assert decision.notes == ["There is no training image: the classes are told apart by their texts alone."]
    weights = parts_of(decision).weights
    text = decision.head.text_logits(data.features[0], data.bank).detach()
    nothing = torch.zeros(4, dtype=torch.int64), torch.zeros(4, WIDTH).double()
    model = PLDA(parts_of(decision).shared, *nothing, data.prototypes)
    likelihoods = model.log_likelihoods(unit_rows(data.features[0]))
    none = torch.zeros(4, dtype=torch.bool)
    side = visual_scores(likelihoods, likelihoods, Kinds.of(none, none), weights)
    torch.testing.assert_close(fuse(side, text, weights).probabilities, text.softmax(1))


@pytest.mark.parametrize("alike", [0.0, 0.9])
def test_how_alike_the_images_of_a_unit_are_is_fitted(alike: float) -> None:
    """Units of four images, which share most of their distance to the class's mean or none; 1 without such units."""
    counts = [40] * 6
    data = drawn(counts, apart=0.9)
    g = torch.Generator().manual_seed(1)
    units = torch.arange(240) // 4
    centres = 1.2 * torch.randn(6, WIDTH, generator=g)
    own = torch.randn(60, WIDTH, generator=g)[units]
    noise = alike**0.5 * own + (1.0 - alike) ** 0.5 * torch.randn(240, WIDTH, generator=g)
    features = (centres[data.labels] + 1.5 * noise)[None]
    data = replace(data, features=features, units=[str(unit) for unit in units.tolist()])
    decision = fit_stage_two(replace(data, places=torch.full((6,), -1)), CONFIG)
    found = parts_of(decision).correlation
    assert found < 0.4 if alike == 0.0 else found > 0.6
    assert any("five together (predict --group)" in note for note in decision.notes) is (found < 1.0)
    alone = fit_stage_two(drawn([8] * 5, told=[False] * 5), CONFIG)
    assert parts_of(alone).correlation == 1.0


def test_near_chance_is_said_first() -> None:
    """Where images are named rightly no more often than by chance; not where they are, nor where one unit decides."""
    generator = torch.Generator().manual_seed(0)
    labels = torch.arange(4).repeat(30)
    scores = torch.randn(120, 4, generator=generator)
    weights = torch.ones(120, dtype=torch.float64)
    units = torch.arange(120)
    (said,) = near_chance(scores, labels, weights, units)
    assert said.startswith("Near chance: of held-out images ")
    assert ", and 25 % by chance." in said
    known = scores + 3.0 * torch.nn.functional.one_hot(labels, 4)
    assert near_chance(known, labels, weights, units) == []
    (said,) = near_chance(known, labels, weights, torch.zeros(120, dtype=torch.int64))
    assert said.startswith("Near chance")
    assert near_chance(scores[:, :1], 0 * labels, weights, units) == []


def wordy(order: list[int] | None = None, seed: int = 0) -> StageTwoData:
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
    unseen = torch.zeros(len(labels), dtype=torch.bool)
    return StageTwoData(
        features, labels, bank, torch.arange(16), units, unseen, torch.zeros(16, dtype=torch.bool), None, 20.0
    )


def test_without_a_text_tower_words_match_images_or_not() -> None:
    """Own names do, permuted ones seldom; below ten classes it cannot be told."""
    shuffled = torch.randperm(16, generator=torch.Generator().manual_seed(3)).tolist()
    assert all(text_matches(wordy(seed=seed)) for seed in range(6))
    assert sum(bool(text_matches(wordy(shuffled, seed))) for seed in range(12)) <= 2
    few = replace(wordy(), bank=wordy().bank.select(range(9)), places=torch.tensor([*range(9), *7 * [-1]]))
    assert text_matches(few) is None


@pytest.mark.slow
def test_without_a_text_tower_texts_are_a_prior_alone() -> None:
    """The text branch is not trained and has no weight; permuted texts tell nothing."""
    data = wordy()
    decision = fit_stage_two(data, CONFIG)
    parts = parts_of(decision)
    gates = (parts.weights, parts.weights.few_shot, parts.weights.text_only)
    assert [one.text for one in gates] == [0.0, 0.0, 0.0]
    assert parts.shared.text_r2 > 0.3
    assert not parts.texts_are_mute
    weightless = replace(parts.weights, text_only=Gate(0.0, 0.0, 1.1))
    for one in (replace(parts, weights=weightless), replace(parts, text_trust=0.0)):
        assert one.texts_are_mute  # the likelihoods of such classes would be the same
        assert one.muted().weights.text_only.offset < -1e4
        assert {figures.images for figures in one.muted().later} == {1, 5}
    assert ", by their words: the encoder has no text tower." in " ".join(decision.notes)
    assert any(one.images == 0 and one.found > 0.2 for one in parts.later if one.number == 1)
    shuffled = torch.randperm(16, generator=torch.Generator().manual_seed(3)).tolist()
    decision = fit_stage_two(wordy(shuffled), CONFIG)
    assert parts_of(decision).texts_are_mute
    assert "The texts do not match the images" in " ".join(decision.notes)
