"""What counts as one observation."""

from __future__ import annotations

import torch

from vlltr_index.heads.units import number_observations, units_of


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
