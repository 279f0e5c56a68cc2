"""What counts as one observation."""

from __future__ import annotations

import torch

from vlltr_index.embedding.loading import stats_rows
from vlltr_index.heads.units import number_observations, units_of
from vlltr_index.tensors import unit_rows


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


def test_class_statistics_count_units() -> None:
    """A class of three pictures, two of them one burst, is known by two: the picture, and the mean of the burst."""
    features = torch.randn(4, 16, generator=torch.Generator().manual_seed(0))
    rows = stats_rows(features, torch.tensor([7, 7, 7, 9]), ["a", "burst", "burst", "b"], "fp").to_pylist()
    assert [(row["class_id"], row["images"]) for row in rows] == [(7, 2), (9, 1)]
    own = unit_rows(features).double()
    torch.testing.assert_close(torch.tensor(rows[0]["sum"]).double(), own[0] + own[1:3].mean(0))
