"""The sampler, its random streams, the schedule and the optimizer's groups."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from vlltr_index.train.losses import sampler_prior
from vlltr_index.train.sampling import epoch_batches, seed_of, steps_per_epoch, stream
from vlltr_index.train.schedule import Constant, Cosine, parameter_groups, set_rates


@pytest.mark.parametrize("power", [0.0, 0.5, 1.0])
def test_classes_come_up_as_often_as_the_prior_says(power: float) -> None:
    """Over many draws the share of each class is within five standard errors of `sampler_prior`."""
    counts = torch.tensor([300, 90, 30, 9, 1])
    labels = torch.arange(5).repeat_interleave(counts)
    draws = torch.cat([epoch_batches(labels, 43, power, stream(0, e)).flatten() for e in range(100)])
    share = torch.bincount(labels[draws], minlength=5) / len(draws)
    prior = sampler_prior(counts, power)
    assert ((share - prior).abs() < 5 * (prior * (1 - prior) / len(draws)).sqrt()).all()


@given(st.integers(1, 500), st.integers(1, 64))
@settings(max_examples=50, deadline=None)
def test_an_epoch_has_full_batches_and_about_as_many_images_as_there_are(images: int, batch: int) -> None:
    """The shape is [steps, batch], and steps * batch is within half a batch of the images, or one batch."""
    batches = epoch_batches(torch.zeros(images, dtype=torch.int64), batch, 0.5, stream(0))
    assert batches.shape == (steps_per_epoch(images, batch), batch)
    assert int(batches.min()) >= 0
    assert int(batches.max()) < images
    assert len(batches) == 1 or abs(batches.numel() - images) <= batch / 2


def test_streams_depend_on_all_their_names() -> None:
    """The same names give the same numbers; others do not, nor does another split of the same characters."""
    assert seed_of(1, 2, "a") == seed_of(1, 2, "a")
    assert len({seed_of(1, 2), seed_of(12), seed_of(2, 1), seed_of(1, 2, "")}) == 4
    assert torch.equal(torch.rand(3, generator=stream(1)), torch.rand(3, generator=stream(1)))


def test_the_rate_ends_at_its_floor() -> None:
    """min + (peak - min) * cosine after the warm-up, as timm has it; a peak below the floor stays where it is."""
    high, low = (nn.Parameter(torch.zeros(1)) for _ in range(2))
    groups = [{"params": [high], "peak": 4e-3}, {"params": [low], "peak": 1e-4}]
    optimizer = torch.optim.AdamW(groups)
    for step in range(111):
        set_rates(optimizer, Cosine(110, warmup=10, min_lr=1e-3), step)
        fallen = 0.5 * (1 + math.cos(math.pi * (step - 10) / 100))
        expected = 4e-3 * (step + 1) / 11 if step < 10 else 1e-3 + 3e-3 * fallen
        assert optimizer.param_groups[0]["lr"] == pytest.approx(expected)
        assert optimizer.param_groups[1]["lr"] == pytest.approx(1e-4 * min(1, (step + 1) / 11))


def test_a_constant_rate_comes_after_its_warm_up() -> None:
    """The first step is never zero, and from the last of the warm-up on the rate is the peak."""
    schedule = Constant(4)
    assert [schedule(2.0, step) for step in range(6)] == [0.5, 1.0, 1.5, 2.0, 2.0, 2.0]


def test_only_matrices_decay_and_prefixes_set_rates() -> None:
    """Biases, vectors, and the logit scale have no decay; a rate of zero freezes."""
    module = nn.Module()
    module.layer, module.slow, module.off = nn.Linear(2, 2), nn.Linear(2, 2, bias=False), nn.Linear(2, 2)
    module.norm, module.logit_scale = nn.LayerNorm(2), nn.Parameter(torch.tensor(1.0))
    module.frozen = nn.Parameter(torch.ones(2, 2), requires_grad=False)
    groups = parameter_groups(module.named_parameters(), 1.0, 0.1, {"slow": 0.5, "off": 0.0})
    found = {(g["peak"], g["weight_decay"]): g["params"] for g in groups}
    assert set(found) == {(1.0, 0.1), (1.0, 0.0), (0.5, 0.1)}
    assert found[1.0, 0.1] == [module.layer.weight]
    assert found[0.5, 0.1] == [module.slow.weight]
    assert {id(p) for p in found[1.0, 0.0]} == {
        id(p) for p in (module.layer.bias, module.norm.weight, module.norm.bias, module.logit_scale)
    }
