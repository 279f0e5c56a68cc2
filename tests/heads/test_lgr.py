"""Tests of the head: the released code's numbers, a twin that builds everything up, gradients, ragged banks."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.nn import functional as F

import vlltr_index.heads.anchor_bank
from tests.support import twins
from vlltr_index.errors import InputError
from vlltr_index.heads.anchor_bank import LAYER_NORM_EPS, AnchorBank
from vlltr_index.heads.lgr import LGRHead
from vlltr_index.heads.lgr_autograd import attended_cosine
from vlltr_index.tensors import unit_rows

quick = settings(max_examples=25, deadline=None)


def _parameters(head: LGRHead) -> dict[str, Tensor]:
    beta = {} if head.log_beta is None else {"log_beta": head.log_beta}
    return beta | {
        "query_norm_weight": head.query_norm.weight,
        "query_norm_bias": head.query_norm.bias,
        "key_norm_weight": head.key_norm.weight,
        "query_proj": head.query_proj.weight,
        "key_proj": head.key_proj.weight,
    }


def _bank(classes: list[Tensor], losses: list[Tensor] | None = None) -> AnchorBank:
    owner = torch.repeat_interleave(torch.arange(len(classes)), torch.tensor([len(c) for c in classes]))
    known = None if losses is None else torch.cat(losses)
    return AnchorBank.build(torch.cat(classes), owner, range(len(classes)), known)


def _draw(
    seed: int, lengths: list[int], dim: int, normalise_values: bool = False
) -> tuple[LGRHead, list[Tensor], list[Tensor]]:
    """A float64 head with random weights, and anchors of the given lengths with their losses."""
    torch.manual_seed(seed)
    head = LGRHead(dim, 2, logit_scale=20.0, normalise_values=normalise_values).double()
    with torch.no_grad():
        for parameter in _parameters(head).values():
            parameter.copy_(torch.randn_like(parameter))
    classes = [torch.randn(n, dim, dtype=torch.float64) * 3 + 1 for n in lengths]
    return head, classes, [torch.randn(n, dtype=torch.float64) + 9 for n in lengths]


def _parity_head() -> tuple[LGRHead, AnchorBank, dict[str, Tensor]]:
    data = twins.parity("lgr")
    head = LGRHead(16, 23, visual="mlp", logit_scale=float(data["logit_scale"]), loss_bias=False).double()
    state = {
        "query_norm.weight": data["query_norm_weight"],
        "query_norm.bias": data["query_norm_bias"],
        "key_norm.weight": data["key_norm_weight"],
        "key_norm.bias": torch.zeros(16, dtype=torch.float64),
        "query_proj.weight": data["query_proj"],
        "key_proj.weight": data["key_proj"],
        "log_logit_scale": data["logit_scale"].log(),
    }
    for layer in (0, 2):
        for part in ("weight", "bias"):
            state[f"visual_head.{layer}.{part}"] = data[f"mlp_{layer}_{part}"]
    head.load_state_dict(state)
    bank = _bank([data["anchors"][c, :n] for c, n in enumerate(data["lengths"].tolist())])
    return head, bank, data


@pytest.mark.parametrize("slots", [8192, 20])
def test_head_equals_the_release(monkeypatch: pytest.MonkeyPatch, slots: int) -> None:
    """Both branches, the loss and its gradients agree within 1e-6, in one block of classes or in many."""
    monkeypatch.setattr(vlltr_index.heads.anchor_bank, "_BLOCK_SLOTS", slots)
    head, bank, data = _parity_head()
    assert (len(bank.blocks) > 1) == (slots == 20)
    features = data["image_features"]
    visual, text = head.visual_logits(features), head.text_logits(features, bank)
    torch.testing.assert_close(visual, data["visual_logits"], atol=1e-6, rtol=0)
    torch.testing.assert_close(text, data["text_logits"], atol=1e-6, rtol=0)
    loss = F.cross_entropy(visual, data["labels"]) + F.cross_entropy(text, data["labels"])
    torch.testing.assert_close(loss, data["loss"], atol=1e-6, rtol=0)
    torch.autograd.backward(loss)
    parameters = _parameters(head)
    for name in ("query_proj", "key_proj", "query_norm_weight", "key_norm_weight"):
        torch.testing.assert_close(parameters[name].grad, data[f"grad_{name}"], atol=1e-6, rtol=0)


@pytest.mark.parametrize("images", [2, 9])
def test_anchors_in_float16_are_computed_with_in_full(images: int) -> None:
    """The logits are those of the same numbers in float64, of all classes and of pairs."""
    head, classes, losses = _draw(0, [3, 1, 4], 8)
    half = [vectors.half() for vectors in classes]
    whole = _bank([vectors.double() for vectors in half], losses)
    features = torch.randn(images, 8, dtype=torch.float64)
    expected = head.text_logits(features, whole).detach()
    bank = _bank(half, losses)
    torch.testing.assert_close(head.text_logits(features, bank).detach(), expected, rtol=0, atol=1e-4)
    at, of = torch.tensor([1, 0, 1]), torch.tensor([2, 2, 0])
    found = head.pair_text_logits(features, bank, at, of)
    torch.testing.assert_close(found, expected[at, of], rtol=0, atol=1e-4)


@quick
@given(
    lengths=st.lists(st.integers(1, 6), min_size=1, max_size=6),
    images=st.integers(1, 8),
    dim=st.integers(3, 9),
    normalise=st.booleans(),
    seed=st.integers(0, 2**31),
)
def test_text_logits_equal_their_twin(
    lengths: list[int], images: int, dim: int, normalise: bool, seed: int
) -> None:
    """Logits and every gradient, beta's too, agree with projecting each key and building G, for ragged classes."""
    head, classes, losses = _draw(seed, lengths, dim, normalise_values=normalise)
    features = torch.randn(images, dim, dtype=torch.float64, requires_grad=True)
    ours = head.text_logits(features, _bank(classes, losses))
    naive = twins.text_logits(_parameters(head), features, classes, losses, 20.0, normalise)
    torch.testing.assert_close(ours, naive, rtol=1e-7, atol=1e-5)
    outer = torch.randn_like(naive)
    inputs = [features, *_parameters(head).values()]
    mine = torch.autograd.grad((ours * outer).sum(), inputs)
    theirs = torch.autograd.grad((naive * outer).sum(), inputs)
    for a, b in zip(mine, theirs, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-5 * max(1.0, float(b.abs().max())))


@quick
@given(lengths=st.lists(st.integers(1, 40), min_size=1, max_size=9), seed=st.integers(0, 2**31))
def test_float32_stays_close_and_blocks_do_not_matter(lengths: list[int], seed: int) -> None:
    """In float32 the logits are within 1e-2 of float64 at scale 20, and many small blocks give what one block gives."""
    head, classes, losses = _draw(seed, lengths, 32)
    features, bank = torch.randn(5, 32, dtype=torch.float64), _bank(classes, losses)
    exact = head.text_logits(features, bank)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(vlltr_index.heads.anchor_bank, "_BLOCK_SLOTS", 16)
        many = _bank(classes, losses)
        torch.testing.assert_close(head.text_logits(features, many), exact, rtol=1e-9, atol=1e-9)
    narrow = head.float().text_logits(features.float(), _bank([c.float() for c in classes], losses))
    assert narrow.dtype == torch.float32
    torch.testing.assert_close(narrow.double(), exact, rtol=0, atol=1e-2)


@pytest.mark.parametrize("normalise", [False, True])
def test_detached_length_changes_gradients_alone(normalise: bool) -> None:
    """Values stay; the gradients are those of autograd with |G| detached, for ragged classes and a single anchor."""
    torch.manual_seed(0)
    classes = [torch.randn(n, 6, dtype=torch.float64) for n in (3, 1, 4)]
    bank = _bank(classes)
    query = torch.randn(5, 6, dtype=torch.float64, requires_grad=True)
    raw = torch.randn(5, 6, dtype=torch.float64, requires_grad=True)
    outer = torch.randn(5, 3, dtype=torch.float64)
    image = F.normalize(raw, dim=1)
    plain = attended_cosine(query, image, bank, normalise)
    found = attended_cosine(query, image, bank, normalise, detach_norm=True)
    assert torch.equal(plain, found)
    columns = []
    for anchors in classes:
        sigma = (anchors.var(1, unbiased=False) + LAYER_NORM_EPS).sqrt()
        attention = (query @ (anchors / sigma[:, None]).T).softmax(1)
        values = F.normalize(anchors, dim=1) if normalise else anchors
        attended = attention @ values
        columns.append((attended * image).sum(1) / attended.norm(dim=1).detach())
    expected = torch.stack(columns, 1)
    torch.testing.assert_close(found, expected)
    for one, other in zip(
        torch.autograd.grad((found * outer).sum(), (query, raw), retain_graph=True),
        torch.autograd.grad((expected * outer).sum(), (query, raw), retain_graph=True),
        strict=True,
    ):
        torch.testing.assert_close(one, other)


@pytest.mark.parametrize("normalise", [False, True])
def test_nearly_cancelling_anchors_are_built_up(normalise: bool) -> None:
    """Opposite anchors: the quadratic form has lost its digits, the result is that of float64, gradients included."""
    torch.manual_seed(1)
    base = torch.randn(4, 16)
    classes = [
        torch.stack([base[0], -base[0] + 1e-3 * base[1]]),
        base,
        torch.stack([base[2], -base[2] + 1e-2 * base[3], 1e-3 * base[1]]),
    ]
    query, image = torch.zeros(3, 16), unit_rows(torch.randn(3, 16))
    query = (query + 1e-4 * torch.randn(3, 16)).requires_grad_()
    image.requires_grad_()
    ours = attended_cosine(query, image, _bank(classes), normalise)
    wide = [query.detach().double().requires_grad_(), image.detach().double().requires_grad_()]
    exact = attended_cosine(wide[0], wide[1], _bank([c.double() for c in classes]), normalise)
    torch.testing.assert_close(ours.double(), exact, rtol=0, atol=2e-3)
    outer = torch.randn(3, 3)
    mine = torch.autograd.grad((ours * outer).sum(), (query, image))
    theirs = torch.autograd.grad((exact * outer).sum(), wide)
    for a, b in zip(mine, theirs, strict=True):
        assert float((a - b).norm() / b.norm()) < 2e-3


def test_anchors_that_cancel_to_nothing_give_zero_without_gradient() -> None:
    """Exactly opposite anchors, and anchors of zeros, have no direction: cosine 0 and finite gradients."""
    v = torch.randn(1, 8)
    bank = _bank([torch.cat([v, -v]), torch.zeros(2, 8), torch.zeros(1, 8)])
    query = torch.zeros(2, 8, requires_grad=True)
    image = unit_rows(torch.randn(2, 8)).requires_grad_()
    cosine = attended_cosine(query, image, bank)
    assert bool((cosine == 0).all())
    torch.autograd.backward(cosine.sum())
    assert query.grad is not None
    assert image.grad is not None
    assert bool((query.grad == 0).all())
    assert bool((image.grad == 0).all())


@pytest.mark.parametrize("scale", [1e-3, 1e4])
def test_huge_queries_and_features_stay_finite(scale: float) -> None:
    """Saturated attention and features of any length keep logits within the scale and gradients finite."""
    torch.manual_seed(2)
    head = LGRHead(16, 3, logit_scale=100.0, learn_scale=True)
    with torch.no_grad():
        head.key_norm.weight.mul_(1e4)
    features = (torch.randn(4, 16) * scale).requires_grad_()
    logits = head.text_logits(features, _bank([torch.randn(n, 16) * scale for n in (5, 1, 2)]))
    assert bool((logits.abs() <= 100.01).all())
    torch.autograd.backward(F.cross_entropy(logits, torch.tensor([0, 1, 2, 0])))
    for name, value in [("features", features), *head.named_parameters()]:
        assert (value.grad is None) == name.startswith("visual_head.")
        assert value.grad is None or bool(value.grad.isfinite().all())


def test_ambient_autocast_changes_nothing() -> None:
    """Under bfloat16 autocast results, and the gradients of the attended cosine, are those of float32."""
    torch.manual_seed(3)
    head, bank = LGRHead(32, 4), _bank([torch.randn(n, 32) for n in (3, 7, 1)])
    features = torch.randn(6, 32)
    query = head.query(features).detach().requires_grad_()
    image = unit_rows(features).requires_grad_()

    def results() -> list[Tensor]:
        found = [head.visual_logits(features)]
        found += [part(features, bank) for part in (head.text_logits, head.prototype_logits)]
        cosine = attended_cosine(query, image, bank)
        return [*found, *torch.autograd.grad(cosine.square().sum(), (query, image))]

    plain = results()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        ambient = results()
    torch.testing.assert_close(ambient, plain, rtol=0, atol=0)
    assert head.text_logits(features.bfloat16(), bank).dtype == torch.float32


@pytest.mark.parametrize("images", [1, 5, 600])
def test_inference_equals_training_whatever_the_batch(images: int) -> None:
    """Few images go by pairs and many are split; logits are the same."""
    torch.manual_seed(4)
    head, classes = LGRHead(12, 2), [torch.randn(n, 12) for n in (9, 4, 1, 9)]
    features, losses = torch.randn(images, 12), [torch.randn(len(c)) for c in classes]
    with torch.inference_mode():
        fresh = head.text_logits(features, _bank(classes, losses))
    trained = head.text_logits(features, _bank(classes, losses)).detach()
    torch.testing.assert_close(fresh, trained, rtol=1e-4, atol=1e-4)


def test_what_is_not_kept_might_as_well_not_be_there() -> None:
    """Logits and gradients with some anchors left out are those of a bank without them, with a bias by loss or not."""
    for loss_bias in (True, False):
        head, classes, losses = _draw(7, [4, 1, 3], 6)
        if not loss_bias:
            head.log_beta = None
        features, outer = torch.randn(5, 6, dtype=torch.float64), torch.randn(5, 3, dtype=torch.float64)
        kept = torch.tensor([True, False, True, False, True, False, True, True])
        left = [rows[part] for rows, part in zip(classes, kept.split([4, 1, 3]), strict=True)]
        less = [rows[part] for rows, part in zip(losses, kept.split([4, 1, 3]), strict=True)]
        found = head.text_logits(features, _bank(classes, losses), kept)
        expected = head.text_logits(features, _bank(left, less))
        torch.testing.assert_close(found, expected, rtol=1e-9, atol=1e-9)
        weights = list(_parameters(head).values())
        for mine, theirs in zip(
            torch.autograd.grad((found * outer).sum(), weights),
            torch.autograd.grad((expected * outer).sum(), weights),
            strict=True,
        ):
            torch.testing.assert_close(mine, theirs, rtol=1e-6, atol=1e-8)


@pytest.mark.parametrize("normalise", [False, True])
def test_prototype_logits(normalise: bool) -> None:
    """They are scale * cosine with the anchors' mean by softmax(-beta L), as the text logits where queries are zero."""
    torch.manual_seed(6)
    head = LGRHead(6, 2, logit_scale=10.0, normalise_values=normalise)
    classes, features = [torch.randn(n, 6) for n in (3, 1)], torch.randn(4, 6)
    losses = [torch.rand(n) * 4 + 80 for n in (3, 1)]
    with torch.no_grad():
        head.log_beta.fill_(0.7)
    bank, values = _bank(classes, losses), [F.normalize(c) if normalise else c for c in classes]
    weights = [(-head.beta * loss).softmax(0) for loss in losses]
    means = torch.stack([(w[:, None] * v).sum(0) for w, v in zip(weights, values, strict=True)])
    found = head.prototype_logits(features, bank)
    torch.testing.assert_close(found, 10.0 * twins.cosines(features, means))
    torch.testing.assert_close(bank.prototypes(normalise), torch.stack([v.mean(0) for v in values]))
    with torch.no_grad():
        head.key_norm.weight.zero_()
    torch.testing.assert_close(head.text_logits(features, bank), found)


def test_visual_heads() -> None:
    """Linear, MLP of width 4 D and cosine give [B, C_v]; no rows at all is allowed."""
    features = torch.randn(3, 8)
    head = LGRHead(8, 5)
    expected = features @ head.get_parameter("visual_head.weight").T + head.get_parameter("visual_head.bias")
    torch.testing.assert_close(head.visual_logits(features), expected)
    assert next(LGRHead(8, 5, "mlp").visual_head.parameters()).shape == (32, 8)
    cosine = LGRHead(8, 5, "cosine", logit_scale=7.0)
    expected = 7.0 * twins.cosines(features, cosine.get_parameter("visual_head.weight"))
    torch.testing.assert_close(cosine.visual_logits(features), expected)
    assert LGRHead(8, 0, "linear").visual_logits(features).shape == (3, 0)
    assert LGRHead(8, 0, "mlp").visual_logits(features).shape == (3, 0)
    with pytest.raises(InputError) as error:
        LGRHead(8, 5, "deep")  # type: ignore[arg-type] # on purpose
    assert str(error.value) == "visual must be 'linear', 'mlp' or 'cosine', got 'deep'"


def test_scale_is_a_multiplier() -> None:
    """Its logarithm is stored, and learned only on request."""
    head = LGRHead(4, 1, logit_scale=250.0, learn_scale=True)
    assert head.logit_scale.item() == pytest.approx(250.0)
    assert head.log_logit_scale.item() == pytest.approx(math.log(250.0))
    assert head.log_logit_scale.requires_grad
    assert not LGRHead(4, 1).log_logit_scale.requires_grad


@quick
@given(
    lengths=st.lists(st.integers(1, 5), min_size=1, max_size=6),
    wanted=st.lists(st.integers(0, 5), min_size=1, max_size=8),
    seed=st.integers(0, 2**31),
)
def test_select_equals_building_from_the_parts(lengths: list[int], wanted: list[int], seed: int) -> None:
    """A sub-bank gives the columns of the whole bank, in any order, repeats included."""
    wanted = [w % len(lengths) for w in wanted]
    head, classes, losses = _draw(seed, lengths, 6)
    features, bank = torch.randn(3, 6, dtype=torch.float64), _bank(classes, losses)
    whole = head.text_logits(features, bank)
    part = bank.select(wanted)
    torch.testing.assert_close(head.text_logits(features, part), whole[:, wanted], rtol=1e-6, atol=1e-5)
    assert part.class_ids.tolist() == wanted
    assert torch.equal(part.vectors, bank.vectors[part.rows])


@pytest.mark.parametrize(("owner", "ids"), [([3, 3], [3, 8]), ([3, 5], [3]), ([3, 3], [3, 3]), ([], [])])
def test_every_class_of_a_bank_has_anchors_and_every_anchor_a_class(owner: list[int], ids: list[int]) -> None:
    """Each class stands once; a bank has one at least."""
    with pytest.raises(InputError, match="class_ids must be the classes that have anchors, each once"):
        AnchorBank.build(torch.randn(len(owner), 4), torch.tensor(owner, dtype=torch.int64), ids)


def test_a_bank_refuses_anchors_that_are_not_finite() -> None:
    """The message names the class."""
    with pytest.raises(InputError) as error:
        AnchorBank.build(torch.tensor([[1.0, math.nan], [0.0, 1.0]]), torch.tensor([6, 2]), [2, 6])
    assert str(error.value) == "class 6 has an anchor that is not finite\nvlltr embed"


def test_text_logits_over_a_blank_bank_are_zeros() -> None:
    """For all ways to compute them, and without any class."""
    head = LGRHead(16, 3)
    features = torch.randn(5, 16)
    for sizes in ((4, 1, 2), ()):
        bank = AnchorBank(
            vectors=torch.zeros(sum(sizes), 16),
            offsets=torch.tensor([0, *sizes]).cumsum(0),
            class_ids=torch.arange(len(sizes)),
            rows=torch.arange(sum(sizes)),
            losses=torch.zeros(sum(sizes)),
        )
        assert bank.is_blank
        assert bank.gram_size == 0
        zeros = torch.zeros(5, len(sizes))
        assert torch.equal(head.text_logits(features, bank), zeros)
        assert torch.equal(head.whole_text_logits(features, bank), zeros)
