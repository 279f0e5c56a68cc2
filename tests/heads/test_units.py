"""What counts as one observation."""

from __future__ import annotations

import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.support.bursts import bursts_of, scenes
from vlltr_index.embedding.loading import stats_rows
from vlltr_index.heads.bursts import bursts
from vlltr_index.heads.units import join_copies, number_observations, shared_units, units_by, units_of
from vlltr_index.tensors import unit_rows


def parts(units: list[str]) -> set[frozenset[int]]:
    """The images of each unit."""
    return {frozenset(n for n, one in enumerate(units) if one == unit) for unit in units}


def test_near_duplicates_of_a_class_are_one_unit_and_so_is_a_group() -> None:
    """A copy goes with the first image of its class, or with the group that has it; never with another class's."""
    g = torch.Generator().manual_seed(0)
    features = torch.randn(8, 16, generator=g)
    features[1] = 2.0 * features[0]  # the same direction
    features[3] = features[2] + 0.001
    features[6] = features[0]  # of another class
    labels = torch.tensor([0, 0, 0, 0, 1, 1, 1, 1])
    groups = [None, None, None, "burst", "burst", None, None, "burst"]
    units = units_of(features, labels, groups)
    assert units[0] == units[1]
    assert units[2] == units[3] == units[4] == units[7] == "group burst"
    assert len(set(units)) == 4
    assert units[6] != units[0]
    numbers = number_observations(labels, units)
    assert numbers[3] != numbers[4]  # of two classes
    assert numbers[4] == numbers[7]
    assert sorted(set(numbers.tolist())) == list(range(5))


def test_copies_of_copies_are_one_unit() -> None:
    """Though the ends of the chain are less alike than copies."""
    angles = torch.arange(6) * 0.025
    features = torch.stack([angles.cos(), angles.sin()], 1)
    assert unit_rows(features)[0] @ unit_rows(features)[5] < 0.9995
    assert len(set(units_of(features, torch.zeros(6, dtype=torch.int64), [None] * 6))) == 1


def test_an_image_that_is_like_those_of_two_groups_joins_the_first_by_name() -> None:
    """And takes its own near duplicates along; the groups stay two."""
    features = torch.ones(4, 3)
    units = units_of(features, torch.zeros(4, dtype=torch.int64), ["b", None, "a", None])
    assert units == ["group b", "group a", "group a", "group a"]


def test_pictures_taken_at_once_in_one_folder_and_class_are_one_unit() -> None:
    """Each within two seconds of the one before; not those of a group, whose unit is said."""
    taken = [0.0, 2.0, 4.0, 6.1, 0.0, 0.0, None, 1.0]
    places = ["x", "x", "x", "x", "x", "y", "x", "x"]
    labels = torch.tensor([0, 0, 0, 0, 1, 0, 0, 0])
    groups = [None] * 7 + ["g"]
    units = units_of(None, labels, groups, taken=taken, places=places)
    assert parts(units) == {frozenset(own) for own in ([0, 1, 2], [3], [4], [5], [6], [7])}
    assert shared_units(units) == ["image 0"] * 3 + [None] * 5


@given(st.lists(st.none() | st.integers(0, 40).map(float), max_size=30), st.integers(0, 5), st.randoms())
def test_bursts_are_runs_of_times(taken: list[float | None], seconds: int, random: object) -> None:
    """As a plain program finds them, which joins every two that are near until nothing changes."""
    part = list(range(len(taken)))
    for _ in taken:
        for a, one in enumerate(taken):
            for b, other in enumerate(taken):
                if one is not None and other is not None and abs(one - other) <= seconds:
                    part[a] = part[b] = min(part[a], part[b])
    found = bursts(taken, [0] * len(taken), seconds)
    for a in range(len(taken)):
        assert (found[a] is None) == (part.count(part[a]) == 1)
        for b in range(len(taken)):
            if found[a] is not None and found[b] is not None:
                assert (found[a] == found[b]) == (part[a] == part[b])


@settings(max_examples=10, deadline=None)
@given(st.integers(0, 1000), st.booleans())
def test_the_order_of_the_images_does_not_matter(seed: int, grouped: bool) -> None:
    """The same images are units, whatever their order."""
    g = torch.Generator().manual_seed(seed)
    thumbnails, _ = bursts_of(g, 12, 3)
    labels = torch.randint(0, 2, (len(thumbnails),), generator=g)
    features = torch.randn(len(thumbnails), 8, generator=g)
    taken = torch.randint(0, 200, (len(thumbnails),), generator=g).double().tolist()
    named = torch.randint(0, 9, (len(thumbnails),), generator=g).tolist()
    groups = [f"g{n}" if grouped and n < 3 else None for n in named]

    def found(order: torch.Tensor) -> set[frozenset[int]]:
        own = order.tolist()
        units = units_of(
            features[order],
            labels[order],
            [groups[n] for n in own],
            taken=[taken[n] for n in own],
            thumbnails=thumbnails[order],
        )
        return {frozenset(own[n] for n in part) for part in parts(units)}

    assert found(torch.randperm(len(thumbnails), generator=g)) == found(torch.arange(len(thumbnails)))


def test_class_statistics_count_units() -> None:
    """A class of three pictures, two of them one burst, is known by two: the picture, and the mean of the burst."""
    features = torch.randn(4, 16, generator=torch.Generator().manual_seed(0))
    found = stats_rows(features, torch.tensor([7, 7, 7, 9]), ["a", "burst", "burst", "b"], "fp", 1.0)
    rows = found.to_pylist()
    assert [(row["class_id"], row["images"]) for row in rows] == [(7, 2), (9, 1)]
    own = unit_rows(features).double()
    torch.testing.assert_close(torch.tensor(rows[0]["sum"]).double(), own[0] + own[1:3].mean(0))


def test_different_scenes_are_units_of_their_own() -> None:
    """Also where the encoder takes all for one, and nothing else is known."""
    thumbnails = scenes(torch.Generator().manual_seed(0), 60)
    alike = torch.ones(60, 8)
    assert (
        len(set(units_of(alike, torch.zeros(60, dtype=torch.int64), [None] * 60, thumbnails=thumbnails)))
        == 60
    )


def test_copies_are_one_unit_in_whatever_groups_they_are() -> None:
    """And so are the units that they are in; the first name stays."""
    assert join_copies(["a", "b", "c", "b", "d"], [1, 2, 3, 1, 4]) == ["a", "a", "c", "a", "d"]
    assert join_copies(["a", "b", "c"], [1, 1, 1]) == ["a", "a", "a"]


def test_known_pairs_join_classes_and_never_two_groups() -> None:
    """A chain of near duplicates across groups would join all of them; a picture without one joins the first."""
    labels = torch.tensor([0, 1, 0, 0, 0])
    pairs = torch.tensor([[0, 1], [2, 3], [3, 4]])
    found = units_by(pairs, labels, [None, None, "a", "b", None])
    assert found == ["image 0", "image 0", "group a", "group b", "group b"]
