"""Probabilities along a tree of classes, and the ranks that may answer, beside plain twins."""

from __future__ import annotations

import math
from collections.abc import Sequence

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import binom
from torch import Tensor

from vlltr_index.heads.tree import ClassTree, HeldOutAnswers, grow, least_needed, thresholds


@st.composite
def forests(draw: st.DrawFn) -> tuple[dict[str, str | None], list[str]]:
    """Parents of some nodes, none below itself, and the classes among them: inner nodes too, and one without a line."""
    count = draw(st.integers(1, 12))
    names = [f"n{i}" for i in range(count)]
    parents = {name: draw(st.sampled_from([None, *names[:i]])) if i else None for i, name in enumerate(names)}
    classes = draw(st.lists(st.sampled_from(names), min_size=1, unique=True))
    return parents, [*classes, "alone"]


def above(parents: dict[str, str | None], name: str | None) -> list[str]:
    """A node and what lies above it."""
    return [] if name is None else [name, *above(parents, parents.get(name))]


def drawn(images: int, classes: int, seed: int) -> Tensor:
    """Probabilities float64 [images, classes]."""
    return torch.rand(images, classes, generator=torch.Generator().manual_seed(seed)).double().pow(4) + 1e-9


@settings(max_examples=50, deadline=None)
@given(forests(), st.integers(0, 99))
def test_sums_are_those_of_the_classes_below(
    forest: tuple[dict[str, str | None], list[str]], seed: int
) -> None:
    """A node has what its classes have, no less than a node below it; a node of all classes has one."""
    parents, classes = forest
    tree = grow(parents, {}, classes)
    chances = drawn(3, len(classes), seed)
    chances /= chances.sum(1, keepdim=True)
    sums = tree.sums(chances)
    assert set(tree.names) == {node for name in classes for node in above(parents, name)}
    for node, name in enumerate(tree.names):
        own = [c for c, cls in enumerate(classes) if name in above(parents, cls)]
        assert sums[:, node].tolist() == pytest.approx(chances[:, own].sum(1).tolist())
        assert tree.sizes[node] == len(own)
        assert tree.names[tree.parents[node]] == parents[name] if tree.parents[node] >= 0 else True
        if tree.parents[node] >= 0:
            assert tree.parents[node] < node
            assert bool((sums[:, tree.parents[node]] >= sums[:, node] - 1e-12).all())
        if len(own) == len(classes):
            assert sums[:, node].tolist() == pytest.approx([1.0] * 3)
    assert torch.allclose(tree.sums(chances.float()).double(), sums, atol=1e-6)
    labels = torch.arange(len(classes))
    assert tree.holding(labels).tolist() == [[n in above(parents, c) for n in tree.names] for c in classes]


def test_ranks_have_names_and_an_order() -> None:
    """Given ranks stand; a class has `class`, others their depth; what holds all classes is of no rank."""
    parents = {"kestrel": "falcon", "merlin": "falcon", "falcon": "bird", "bird": "animal", "wren": "bird"}
    tree = grow(parents, {"falcon": "genus"}, ["kestrel", "merlin", "wren", "oak"])
    ranks = dict(zip(tree.names, tree.ranks, strict=True))
    assert ranks == {
        "animal": "top level", "bird": "level 2", "falcon": "genus", "kestrel": "class", "merlin": "class",
        "wren": "class", "oak": "class",
    }  # fmt: skip
    assert list(tree.levels) == ["class", "genus", "level 2", "top level"]
    assert [tree.names[i] if i >= 0 else None for i in tree.at_rank["genus"]] == [
        "falcon",
        "falcon",
        None,
        None,
    ]
    assert "top level" not in grow(parents, {}, ["kestrel", "wren"]).levels
    best = tree.best_at("class", torch.tensor([[0.3, 0.3, 0.4, 0.0]]))
    assert tree.names[int(best)] == "wren"
    assert tree.names[int(tree.best_at("genus", torch.tensor([[0.3, 0.3, 0.4, 0.0]])))] == "falcon"


def test_a_class_may_lie_below_another() -> None:
    """The probability of the upper one is summed with the lower one's; at its rank each has its own."""
    tree = grow({"kestrel": "falcon"}, {}, ["falcon", "kestrel", "wren"])
    chances = torch.tensor([[0.4, 0.35, 0.25]])
    assert dict(zip(tree.names, tree.sums(chances)[0].tolist(), strict=True))["falcon"] == pytest.approx(0.75)
    assert tree.names[int(tree.best_at("class", chances))] == "falcon"
    assert tree.names[int(tree.answers(tree.sums(chances), {"class": 0.6}))] == "falcon"


def plain_answer(tree: ClassTree, sums: Sequence[float], least: dict[str, float]) -> int:
    """The deepest node of the deepest rank that has one with enough."""
    for rank in tree.levels:
        fit = [n for n, r in enumerate(tree.ranks) if r == rank and rank in least and sums[n] >= least[rank]]
        fit = [n for n in fit if tree.sizes[n] < len(tree.nodes)]
        if fit:
            return max(fit, key=lambda n: len(tree.paths[n]))
    return -1


@settings(max_examples=30, deadline=None)
@given(forests(), st.integers(0, 99), st.floats(0.5, 0.99))
def test_answers_and_thresholds_beside_a_plain_twin(
    forest: tuple[dict[str, str | None], list[str]], seed: int, accuracy: float
) -> None:
    """The lowest threshold that holds is found, rank by rank, and answers are of the deepest rank that has one."""
    parents, classes = forest
    tree, images = grow(parents, {}, classes), 60
    chances = drawn(images, len(classes), seed).pow(3)
    chances = (chances / chances.sum(1, keepdim=True)).half()
    labels = torch.where(torch.arange(images) % 7 > 0, chances.argmax(1), 0)
    found = thresholds(tree, HeldOutAnswers(labels, chances), accuracy)
    sums, left, expected = tree.sums(chances.float()), list(range(images)), dict[str, float]()
    for rank in tree.levels:
        tried = sorted({float(sums[i, n]) for i in left for n in tree.levels[rank].tolist()})
        for least in (t for t in tried if t > 0.5):
            chosen = {i: plain_answer(tree, sums[i].tolist(), {rank: least}) for i in left}
            answered = {i: n for i, n in chosen.items() if n >= 0}
            wrong = sum(n not in tree.paths[tree.nodes[int(labels[i])]] for i, n in answered.items())
            if answered and binom.cdf(wrong, len(answered), 1 - accuracy) <= 0.05:
                expected[rank] = least
                left = [i for i in left if chosen[i] < 0]
                break
    assert found == pytest.approx(expected, abs=2**-11)  # what half precision rounds
    answers = tree.answers(sums, found).tolist()
    assert answers == [plain_answer(tree, row, found) for row in sums.tolist()]
    assert all(node < 0 or sums[i, node] > 0.5 for i, node in enumerate(answers))


def test_how_many_images_show_an_accuracy() -> None:
    """So many, all right, are what 5 % of draws from a rank just below would give."""
    for accuracy, images in ((0.9, 29), (0.95, 59), (0.99, 299)):
        assert least_needed(accuracy) == images
        assert accuracy**images <= 0.05 < accuracy ** (images - 1)
        tree = grow({"a": "x", "b": "x"}, {}, ["a", "b", "c"])
        for count in (images - 1, images):
            sure = HeldOutAnswers(
                torch.zeros(count).long(), torch.tensor([[0.75, 0.125, 0.125]]).repeat(count, 1)
            )
            expected = {"class": 0.75} if count == images else {}
            assert thresholds(tree, sure, accuracy) == pytest.approx(expected, abs=2**-11)


def test_held_out_answers_among_other_classes() -> None:
    """Classes that are gone, and their images, are left out; two that became one are summed; rows sum to one."""
    held = HeldOutAnswers(torch.tensor([0, 1, 2]), torch.tensor([[0.5, 0.25, 0.25]] * 3).half())
    found = held.among(torch.tensor([1, -1, 1]), 3)
    assert found.labels.tolist() == [1, 1]
    assert found.probabilities.tolist() == [[0.0, 1.0, 0.0]] * 2
    apart = held.among(torch.tensor([0, -1, 2]), 3)
    assert apart.probabilities[0].tolist() == pytest.approx([2 / 3, 0.0, 1 / 3], rel=1e-6)
    assert math.isclose(float(apart.probabilities.sum()), 2.0, rel_tol=1e-6)


def test_a_rank_called_class_is_not_that_of_classes_without_one() -> None:
    """As biologists have it."""
    tree = grow({"wren": "bird"}, {"bird": "class", "wren": "species"}, ["wren", "my cat"])
    assert dict(zip(tree.names, tree.ranks, strict=True)) == {
        "bird": "class",
        "wren": "species",
        "my cat": "leaf",
    }
