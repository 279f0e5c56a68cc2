"""Tests of the digests in `vlltr_index.encoders.weights`."""

from __future__ import annotations

import torch

from vlltr_index.encoders.weights import revision, weights_digest


def test_digest_does_not_depend_on_order_or_layout() -> None:
    """The order of the entries and the memory layout are not part of the weights; shapes are."""
    a, b = torch.randn(3, 4, 2, 2), torch.randn(5)
    one = weights_digest({"a": a, "b": b})
    assert one == weights_digest({"b": b, "a": a.to(memory_format=torch.channels_last)})
    assert one != weights_digest({"a": a.view(-1), "b": b})


def test_digest_is_a_known_value() -> None:
    """It must stay the same between processes and versions: it names stored vectors."""
    found = weights_digest({"w": torch.tensor([1.0, -2.0])})
    assert found == "b1cb542b528f166a313e65a98b996bd463e3486fac571d928a63fc54857fece7"


def test_revision_changes_with_a_step_and_a_load() -> None:
    """Every way in which training changes weights is noticed."""
    layer = torch.nn.Linear(2, 2)
    before = revision(layer.parameters())
    assert revision(layer.parameters()) == before
    layer(torch.ones(1, 2)).sum().backward()
    torch.optim.AdamW(layer.parameters()).step()
    after = revision(layer.parameters())
    assert after != before
    layer.load_state_dict(torch.nn.Linear(2, 2).state_dict())
    assert revision(layer.parameters()) != after
