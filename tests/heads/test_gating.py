"""Tests of `vlltr_index.heads.gating`: the fit beside a general optimiser, and what comes of it on other drawn data."""

from __future__ import annotations

import math
from dataclasses import asdict, replace
from functools import cache

import pytest
import torch
from scipy.optimize import minimize  # type: ignore[import-untyped]  # it has no types
from torch import Tensor
from torch.nn import functional as F

from vlltr_index.heads.fusion import Gate, Kinds, PartWeights, fuse, visual_scores
from vlltr_index.heads.gating import HeldOutClasses, LaterFigures, fit_gate, fit_trust, later_figures
from vlltr_index.heads.plda import PLDA, SharedGaussian
from vlltr_index.heads.weighing import balanced_shares, mean_spread

PLAIN = Gate(0.7, 0.3)


def design(
    seed: int, old: int, new: int, images: int, reach: float = 2.2
) -> tuple[HeldOutClasses, Tensor, Tensor]:
    """Likelihoods of points about the centres of old and new classes in a space of 8 dimensions, and their classes."""
    g = torch.Generator().manual_seed(seed)
    centres = reach * torch.randn(old + new, 8, generator=g)
    labels = torch.randint(0, old, (images,), generator=g)
    new_labels = old + torch.randint(0, new, (images,), generator=g)

    def said(owners: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        points = centres[owners] + torch.randn(len(owners), 8, generator=g)
        text = torch.eye(old + new)[owners] + torch.randn(len(owners), old + new, generator=g)
        likelihoods = -0.5 * torch.cdist(points, centres).square().double()
        return likelihoods, text.double(), likelihoods[:, :old].log_softmax(1)

    likelihoods, text, among = said(labels)
    new_likelihoods, new_text, new_among = said(new_labels)
    one = HeldOutClasses(
        images=1,
        likelihoods=likelihoods,
        text=text,
        best=among.amax(1),
        weights=balanced_shares(labels) * (among.argmax(1) == labels),
        new_likelihoods=new_likelihoods,
        new_text=new_text,
        new_best=new_among.amax(1),
        new_labels=new_labels,
        trained=old,
    )
    return one, labels, new_labels


def chances(gate: Gate, likelihoods: Tensor, text: Tensor, trained: int) -> Tensor:
    """Probabilities where later classes meet the others so, and the latter are parted by the generative model."""
    weights = PartWeights(0.0, 1.0, 0.0, gate, gate)
    known = torch.arange(likelihoods.shape[1]) < trained
    side = visual_scores(likelihoods, likelihoods, Kinds.of(known, torch.ones_like(known)), weights)
    return fuse(side, text, weights).probabilities.double()


@pytest.mark.parametrize(("old", "new", "reach"), [(40, 4, 0.5), (40, 1, 2.2), (5, 10, 2.2)])
def test_the_weights_are_the_most_probable(old: int, new: int, reach: float) -> None:
    """Held-out classes are found among all, others not taken for them, by weights near the usual and some offset."""
    designs = [design(seed, old, new, 200, reach)[0] for seed in range(3)]
    seen = mean_spread(torch.cat([one.new_likelihoods for one in designs]))
    told = mean_spread(torch.cat([one.new_text for one in designs]))
    whole = 0.7 * seen + 0.3 * told

    def loss(gate: Gate) -> float:
        apart = (gate.generative - 0.7) * seen / whole, (gate.text - 0.3) * told / whole, gate.offset
        total = 0.5 * sum(a**2 for a in apart)
        for one in designs:
            some = chances(gate, one.likelihoods, one.text, old)[:, :old].sum(1)
            others = chances(gate, one.new_likelihoods, one.new_text, old)
            total -= float(others.gather(1, one.new_labels[:, None]).log().sum())
            total -= float(some.log().mean()) * 200 * old / new
        return total

    def least(gate: Gate) -> float:
        """The loss with the offset that suits the weights best."""
        found = minimize(lambda x: loss(replace(gate, offset=float(x[0]))), [0.0], method="Nelder-Mead")
        return float(found.fun)

    found = replace(fit_gate(PLAIN, designs), limit=1e6, fit=0.0)
    for name in ("generative", "text"):
        for near in (0.03, -0.03):
            assert (
                least(found) <= least(replace(found, **{name: max(getattr(found, name) + near, 0.0)})) + 1e-3
            )
    alone = fit_gate(PLAIN, designs, weights=False)
    assert (alone.generative, alone.text) == (0.7, 0.3)


@pytest.mark.parametrize("seed", range(0, 50, 10))
def test_text_counts_where_it_says_which_newcomer_it_is(seed: int) -> None:
    """Text at random has no weight, for with one no more are found."""
    designs = [design(seed + number, 20, 5, 100, reach=1.0)[0] for number in range(3)]

    def naming(strength: float) -> list[HeldOutClasses]:
        """Text logits that are higher for the class of a newcomer's image by so much, and random otherwise."""
        g = torch.Generator().manual_seed(seed)
        return [
            replace(
                one,
                text=torch.randn(one.text.shape, generator=g).double(),
                new_text=torch.randn(one.new_text.shape, generator=g).double()
                + strength * F.one_hot(one.new_labels, 25),
            )
            for one in designs
        ]

    assert fit_gate(PLAIN, naming(2.0)).text > 0.5
    assert fit_gate(PLAIN, naming(0.0)).text == 0.0


@pytest.mark.parametrize(("old", "new"), [(40, 4), (5, 10)])
def test_offset_and_fit_are_those_of_a_logistic_regression(old: int, new: int) -> None:
    """Of all images, those of old classes that are right and those of newcomers, on the lead of the best newcomer."""
    designs = [design(seed, old, new, 60)[0] for seed in range(2)]
    usual = torch.cat([one.new_likelihoods.gather(1, one.new_labels[:, None]) for one in designs]).median()

    def loss(x: Tensor) -> float:
        total = 0.5 * ((x[0] / 0.5) ** 2 + x[1] ** 2 + x[2] ** 4)
        for one in designs:
            for likelihoods, text, best, is_new in (
                (one.likelihoods, one.text, one.best, False),
                (one.new_likelihoods, one.new_text, one.new_best, True),
            ):
                scores = 0.7 * likelihoods + 0.3 * text
                fits = likelihoods[:, old:] - usual
                later = (
                    scores[:, old:]
                    - scores[:, :old].logsumexp(1, keepdim=True)
                    + 0.25 * 0.7 * x[2] ** 2 * fits
                )
                own = later.gather(1, one.new_labels[:, None] - old)[:, 0] if is_new else later.amax(1)
                odds = torch.exp(torch.tensor(x[0])) * (own - best + x[1])
                chances = odds.sigmoid() if is_new else (-odds).sigmoid()
                weights = new * one.new_weights if is_new else old * one.weights
                total -= float((weights * chances.log()).sum())
        return total

    options = {"xatol": 1e-6, "fatol": 1e-10, "maxiter": 4000}
    x = minimize(loss, [0.0, 0.0, 1.0], method="Nelder-Mead", options=options).x
    found = fit_gate(PLAIN, designs, weights=False)
    fit = 0.25 * 0.7 * x[2] ** 2
    assert found.fit == pytest.approx(fit, abs=1e-3)
    assert found.offset == pytest.approx(x[1] - fit * float(usual), abs=2e-3)


def test_an_image_that_fits_no_class_is_not_taken_for_a_later_one() -> None:
    """A tenth of the old classes' images lies far from all; of newcomers less is known, so their densities are wide."""
    g = torch.Generator().manual_seed(0)
    centres = 3.0 * torch.randn(30, 8, generator=g)
    width = torch.ones(30)
    width[20:] = 2.0

    def said(owners: Tensor, far: Tensor) -> Tensor:
        points = centres[owners] + far[:, None] * torch.randn(len(owners), 8, generator=g)
        return (-0.5 * torch.cdist(points, centres).square() / width - 4.0 * width.log()).double()

    def drawn() -> HeldOutClasses:
        labels, new_labels = torch.arange(400) % 20, 20 + torch.arange(200) % 10
        far = torch.where(torch.rand(400, generator=g) < 0.1, 3.0, 1.0)
        likelihoods, new_likelihoods = said(labels, far), said(new_labels, torch.ones(200))
        among, new_among = (scores[:, :20].log_softmax(1) for scores in (likelihoods, new_likelihoods))
        return HeldOutClasses(
            images=1, likelihoods=likelihoods, text=0.0 * likelihoods, best=among.amax(1),
            weights=balanced_shares(labels) * (among.argmax(1) == labels), new_likelihoods=new_likelihoods,
            new_text=0.0 * new_likelihoods, new_best=new_among.amax(1), new_labels=new_labels, trained=20,
        )  # fmt: skip

    fitted_on, others = [drawn() for _ in range(3)], drawn()
    gate = fit_gate(Gate(0.3, 0.0), fitted_on, weights=False)

    def shares(gate: Gate) -> tuple[float, float]:
        offset = gate.offset_among(10)
        lost = float(others.weights @ (others.leads_lost(gate).amin(1) <= offset).double())
        return float(others.new_weights @ (others.lead_lacking(gate)[0] < offset).double()), lost

    plain = replace(gate, fit=0.0)
    level = others.leads_lost(plain).amin(1)[others.weights > 0].sort().values[len(others.best) // 100]
    found, lost = shares(gate)
    assert gate.fit > 0.02
    assert lost < 0.03
    assert found > shares(replace(plain, offset=float(level), limit=1e6))[0] + 0.1


@cache
def fitted(reach: float) -> Gate:
    """On 300 images of 40 classes beside 10 newcomers."""
    return fit_gate(PLAIN, [design(seed, 40, 10, 300, reach)[0] for seed in range(3)])


@pytest.mark.parametrize("reach", [1.5, 3.0])
@pytest.mark.parametrize("number", [1, 10, 40])
def test_at_the_limit_newcomers_cost_about_a_point(reach: float, number: int) -> None:
    """On classes and images that it was not fitted on."""
    gate = fitted(reach)
    lost = []
    for seed in range(20, 28):
        one, _, _ = design(seed, 40, number, 2000, reach)
        at_limit = replace(gate, offset=1e6)
        before = float(one.weights.sum())
        right = one.leads_lost(gate).amin(1) > at_limit.offset_among(number)
        lost.append(before - float(one.weights @ right.double()))
    assert 0.002 < sum(lost) / len(lost) < 0.03


def test_the_limit_holds_for_each_number_of_images() -> None:
    """Newcomers known by five images cost more than those known by one, for they are nearer to all."""
    one = [design(seed, 40, 10, 300, 1.5)[0] for seed in range(3)]
    nearer = 2.0 * (torch.arange(50) >= 40)
    five = [
        replace(
            each,
            images=5,
            likelihoods=each.likelihoods + nearer,
            new_likelihoods=each.new_likelihoods + nearer,
        )
        for each in one
    ]
    gate = fit_gate(PLAIN, one + five, weights=False)
    at_limit = replace(gate, offset=1e6)
    lost = {some[0].images: [f.lost for f in later_figures(at_limit, some)][1] for some in (one, five)}
    assert lost[1] < 0.005
    assert lost[5] == pytest.approx(0.01)
    two = design(9, 40, 2, 8, 1.5)[0]  # too few tell nothing
    nearer = replace(two, images=5, likelihoods=two.likelihoods + 50.0 * (torch.arange(42) >= 40))
    assert fit_gate(PLAIN, [*one, nearer], weights=False).limit > 0.0


def test_newcomers_that_are_alike_cost_as_much_as_one() -> None:
    """Whereas more of newcomers that lie apart take more."""
    apart = [design(seed, 40, 10, 300, 1.5)[0] for seed in range(3)]
    columns = torch.cat([torch.arange(40), torch.full((10,), 40)])
    alike = [
        replace(
            one,
            likelihoods=one.likelihoods[:, columns],
            text=one.text[:, columns],
            new_likelihoods=one.new_likelihoods[:, columns],
            new_text=one.new_text[:, columns],
        )
        for one in apart
    ]
    assert fitted(1.5).crowding > 0.5
    gate = fit_gate(PLAIN, alike)
    assert gate.crowding == pytest.approx(0.0, abs=0.01)
    one, ten, _ = later_figures(gate, alike)
    assert one.lost == pytest.approx(ten.lost, rel=0.5)
    assert one.lost > 0.0


def test_new_classes_that_lie_apart_are_found_and_cost_little() -> None:
    """On designs that the gate was not fitted on."""
    found = fit_gate(PLAIN, [design(seed, 40, 4, 300, reach=3.0)[0] for seed in range(3)])
    one, labels, new_labels = design(9, 40, 4, 1500, reach=3.0)
    some = chances(found, one.likelihoods, one.text, 40).argmax(1)
    assert float((some != labels).double().mean()) < 0.03
    others = chances(found, one.new_likelihoods, one.new_text, 40).argmax(1)
    assert float((others == new_labels).double().mean()) > 0.9


def test_the_figures_are_those_of_other_classes() -> None:
    """What is estimated for 1 and for 10 newcomers, beside what such newcomers get and cost elsewhere."""
    gate = fitted(1.5)
    figures = later_figures(gate, [design(seed, 40, 10, 300, 1.5)[0] for seed in range(3)])
    assert [(one.images, one.number) for one in figures] == [(1, 1), (1, 10), (1, 100)]
    for said in figures[:2]:
        found, lost = list[float](), list[float]()
        for seed in range(30, 42):
            one, labels, new_labels = design(seed, 40, said.number, 1000, 1.5)
            some = chances(gate, one.likelihoods, one.text, 40)
            right = (some.argmax(1) == labels).double()
            lost.append(float(one.weights.sum()) - float(balanced_shares(labels) @ right))
            others = chances(gate, one.new_likelihoods, one.new_text, 40)
            found.append(float(balanced_shares(new_labels) @ (others.argmax(1) == new_labels).double()))
        assert said.found == pytest.approx(sum(found) / 12, abs=0.1)
        assert said.lost == pytest.approx(sum(lost) / 12, rel=0.5)
        if said.number == 1:
            assert said.lost_range is not None
            assert said.lost_range[0] < said.lost < said.lost_range[1]
            assert said.lost_range[0] <= sum(lost) / 12 <= said.lost_range[1]


@pytest.mark.parametrize(("truth", "least", "most"), [(1.0, 1.0, 1.0), (0.4, 0.25, 0.5), (0.0, 0.0, 0.25)])
def test_texts_are_trusted_as_far_as_they_tell_where_classes_lie(
    truth: float, least: float, most: float
) -> None:
    """Of 40 classes whose means lie where so much of the text and so much of chance put them; of two nobody can say."""
    g = torch.Generator().manual_seed(0)
    dim = 12
    eye = torch.eye(dim, dtype=torch.float64)
    ones = torch.ones(dim, dtype=torch.float64)
    shared = SharedGaussian(0.0 * ones, eye, 0.5 * ones, 2.0 * ones, 0.0 * ones, eye)
    texts = 1.2 * torch.randn(40, dim, generator=g, dtype=torch.float64)
    width = truth * shared.spread + (1.0 - truth) * shared.blank
    means = truth * texts + width.sqrt() * torch.randn(40, dim, generator=g, dtype=torch.float64)
    counts = torch.full((40,), 50)
    model = PLDA(shared, counts, 50.0 * means, texts)
    assert least <= fit_trust(model) <= most
    assert fit_trust(model.select(torch.arange(2))) == 1.0


def test_designs_of_different_sizes_are_fitted_together() -> None:
    """A class without a text plays none that is known by text alone, so folds differ."""
    designs = [design(seed, 10, new, 60)[0] for seed, new in ((0, 2), (1, 1))]
    assert all(math.isfinite(value) for value in asdict(fit_gate(PLAIN, designs)).values())


def test_figures_stay_within_bounds_where_all_is_found() -> None:
    """The shares of 9 classes with 13 images each sum to a little more than one."""
    one, _, _ = design(0, 10, 9, 117, reach=30.0)
    labels = 10 + torch.arange(9).repeat_interleave(13)
    found = torch.where(torch.arange(19) == labels[:, None], 0.0, -100.0).double()
    best = torch.full((117,), -1.0, dtype=torch.float64)
    perfect = replace(one, new_likelihoods=found, new_text=0.0 * found, new_labels=labels, new_best=best)
    shares = [figures.found for figures in later_figures(Gate(1.0, 0.0), [perfect])]
    assert shares == [pytest.approx(1.0)] * len(shares)
    assert max(shares) <= 1.0


def test_newcomers_without_a_rival_tell_nothing_of_ten() -> None:
    """By a design with rivals beside such designs it is told as by that one alone."""
    alone = [design(seed, 40, 1, 300, 1.5)[0] for seed in range(5)]
    beside = design(9, 40, 5, 300, 1.5)[0]
    gate = fitted(1.5)
    assert [one.number for one in later_figures(gate, alone)] == [1]
    shares = [[one.found for one in later_figures(gate, some)] for some in ([beside], [*alone, beside])]
    fallen = [ten / one for one, ten, _ in shares]
    assert fallen[1] == pytest.approx(fallen[0], abs=0.15)
    assert fallen[1] < 0.95


def test_designs_of_nobody_leave_the_gate_alone() -> None:
    """Where no image of a newcomer is left to ask, or none of an old class is right."""
    one, _, _ = design(0, 10, 2, 50)
    fields = ("new_labels", "new_likelihoods", "new_text", "new_best")
    empty = replace(one, **{name: getattr(one, name)[:0] for name in fields})
    wrong = replace(one, weights=torch.zeros(50, dtype=torch.float64))
    assert fit_gate(PLAIN, [empty, wrong]) == PLAIN
    assert later_figures(PLAIN, [empty, wrong]) == ()
    assert fit_gate(PLAIN, [one, empty]) == fit_gate(PLAIN, [one])


def test_parts_that_tell_newcomers_nothing_keep_their_weights() -> None:
    """Then the offset keeps newcomers out."""
    one, _, _ = design(0, 10, 2, 50)
    same = replace(one, new_likelihoods=torch.zeros(50, 12).double(), new_text=torch.zeros(50, 12).double())
    found = fit_gate(PLAIN, [same])
    assert (found.generative, found.text) == (0.7, 0.3)
    for figures in later_figures(found, [same]):
        assert isinstance(figures, LaterFigures)
        assert figures.found_range is not None
        assert figures.found_range[0] <= figures.found <= figures.found_range[1]
        assert figures.lost < 0.03
