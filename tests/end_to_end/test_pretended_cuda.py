"""What computes gives on a GPU what it gives on the CPU, and waits for it seldom; the GPU is pretended."""

from __future__ import annotations

from copy import deepcopy
from dataclasses import astuple, replace
from itertools import pairwise
from pathlib import Path
from typing import Any, Literal

import pytest
import torch
from torch import Tensor

from tests.support import drawings
from tests.support.pretended_cuda import CardTensor, pretended
from tests.train.test_lgr import fitted
from tests.train.test_stage_two import CONFIG, drawn, held_out
from vlltr_index.anchors import anss
from vlltr_index.anchors.anss import positive_terms, score_sentences, shift_images
from vlltr_index.anchors.selection import select
from vlltr_index.evaluation.rules import (
    HeadTraining,
    TipCache,
    adjusted_logits,
    choose_tip,
    class_means,
    fc_head,
    hold_back,
    knn_sentence_logits,
    linear_logits,
    lws_scales,
    shrunk_discriminant,
    tau_normalised,
    tip_logits,
)
from vlltr_index.heads.anchor_bank import AnchorBank
from vlltr_index.heads.fusion import class_logits
from vlltr_index.heads.lgr import LGRHead
from vlltr_index.pipelines.build_index import index_anchors
from vlltr_index.pipelines.embed import embed
from vlltr_index.pipelines.evaluate import evaluate
from vlltr_index.pipelines.ingest import ingest_images
from vlltr_index.pipelines.train_all import train_all
from vlltr_index.pipelines.train_baseline import train_baseline
from vlltr_index.pipelines.train_lgr import train_lgr_stage
from vlltr_index.recognition.answering import predict
from vlltr_index.recognition.model import Model
from vlltr_index.schemas.config import LGRConfig
from vlltr_index.schemas.options import PredictOptions
from vlltr_index.schemas.records import Prediction
from vlltr_index.store.workspace import Workspace
from vlltr_index.tensors import cosine_logits
from vlltr_index.train.stage_two import fit_stage_two


def test_the_pretended_gpu_is_like_one() -> None:
    """It refuses what a GPU refuses, counts what costs, and gradients come back through copies."""
    here = torch.arange(6.0).view(2, 3)
    with pretended() as card:
        there = here.to("cuda")
        assert (there.device.type, here.device.type) == ("cuda", "cpu")
        with pytest.raises(RuntimeError, match="same device"):
            there + here
        with pytest.raises(RuntimeError, match="indices should be"):
            here[torch.zeros(1, dtype=torch.int64, device="cuda")]
        with pytest.raises(TypeError, match="numpy"):
            there.numpy()
        with pytest.raises(RuntimeError, match="generator"):
            torch.rand(2, device="cuda", generator=torch.Generator())
        assert card.waits.total() == 1  # the copy
        twice = (there * 2).sum(1)
        assert (card.waits.total(), isinstance(twice, CardTensor)) == (1, True)
        assert (twice.tolist(), float(there[there > 3].sum())) == ([6.0, 24.0], 9.0)
        assert card.waits.total() == 4  # the list, the mask, the value
        layer = torch.nn.Linear(3, 2)
        learns = here.clone().requires_grad_()
        moved = torch.nn.Linear(3, 2).to("cuda")
        moved.load_state_dict(layer.state_dict())
        moved(learns.to("cuda", non_blocking=True)).square().sum().backward()
        gradient = moved.weight.grad
        assert gradient is not None
        found: tuple[Tensor | None, Tensor] = learns.grad, gradient.cpu()
    learns.grad = None
    layer(learns).square().sum().backward()
    torch.testing.assert_close(found, (learns.grad, layer.weight.grad))


def bank_of(classes: int, dim: int = 16, most: int = 5, opposed: bool = False) -> AnchorBank:
    """Ragged anchors that lie on one side, as sentences about one thing do; or with two that cancel."""
    counts = torch.randint(1, most + 1, (classes,))
    vectors = torch.randn(int(counts.sum()), dim) * 0.5 + 1.0
    owner = torch.repeat_interleave(torch.arange(classes), counts)
    if opposed:
        vectors = torch.cat([vectors, vectors[:1], -vectors[:1]])
        owner = torch.cat([owner, torch.tensor([classes] * 2)])
        classes += 1
    return AnchorBank.build(vectors, owner, torch.arange(classes), torch.rand(len(owner)))


def head_of(bank: AnchorBank, rows: int, **options: Any) -> LGRHead:
    """A head with random weights."""
    head = LGRHead(bank.dim, rows, logit_scale=20.0, **options)
    with torch.no_grad():
        for parameter in head.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    return head


def test_anss_waits_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """Scores of sentences in many chunks, of classes with and without images, equal the CPU's within 1e-9."""
    torch.manual_seed(0)
    text, images = torch.randn(300, 16), torch.randn(70, 16)
    owners, labels = torch.arange(300) % 9, torch.arange(70) % 7
    plain = score_sentences(text, owners, images, labels, 30.0)
    monkeypatch.setattr(anss, "_COLUMNS", 4)  # 16 on a GPU
    monkeypatch.setattr(anss, "_MEMORY_BYTES", 32 * 3 * 16 * 4)
    with pretended() as card:
        scores = score_sentences(text, owners, images, labels, 30.0)
        assert card.waits.total() == 1, card.waits
        assert scores.lse.device.type == "cpu"
        shifted, _ = shift_images(plain, text, images[:5], images[5:9], 30.0)
        assert card.waits.total() == 3, card.waits
        terms = positive_terms(text, owners, images, labels, 30.0).cpu()
    torch.testing.assert_close(scores.lse, plain.lse, atol=1e-5, rtol=1e-6)
    torch.testing.assert_close(scores.positive, plain.positive, atol=1e-9, rtol=1e-9)
    torch.testing.assert_close(terms, plain.positive)
    expected, _ = shift_images(plain, text, images[:5], images[5:9], 30.0)
    torch.testing.assert_close(shifted.lse, expected.lse, atol=1e-4, rtol=1e-5)


@pytest.mark.parametrize("options", [{}, {"normalise_values": True}, {"detach_value_norm": True}])
def test_the_plain_path_of_lgr_equals_the_function(options: dict[str, bool]) -> None:
    """Values within 1e-6 of their size and gradients within 1e-5, for ragged classes and anchors left out."""
    torch.manual_seed(1)
    bank = bank_of(12)
    head = head_of(bank, 0, **options).double()
    features = torch.randn(6, 16, dtype=torch.float64, requires_grad=True)
    kept = torch.rand(len(bank.vectors)) < 0.7
    kept[bank.offsets[:-1]] = True

    def learned() -> list[Tensor]:
        return [p for p in head.parameters() if p.requires_grad and p.numel()]

    inputs = [features, *learned()]

    outer = torch.randn(6, 12, dtype=torch.float64)
    by_hand = head.text_logits(features, bank, kept)
    expected = torch.autograd.grad((by_hand * outer).sum(), inputs, allow_unused=True)
    with pretended():
        head.to("cuda")
        moved = [features.detach().to("cuda").requires_grad_(), *learned()]
        plain = head.text_logits(moved[0], bank.to("cuda"), kept.to("cuda"))
        found = torch.autograd.grad((plain * outer.to("cuda")).sum(), moved, allow_unused=True)
        values, found = plain.detach().cpu(), [g if g is None else g.cpu() for g in found]
    torch.testing.assert_close(values, by_hand.detach(), atol=2e-5, rtol=0)  # at a scale of 20
    for mine, theirs in zip(found, expected, strict=True):
        assert (mine is None) == (theirs is None)
        if theirs is not None:
            torch.testing.assert_close(
                mine, theirs, atol=1e-5 * max(1.0, float(theirs.abs().max())), rtol=1e-5
            )


def test_anchors_that_cancel_go_by_the_function() -> None:
    """Two opposite sentences, with attention to both alike: the plain path says so, and digits are not lost."""
    torch.manual_seed(2)
    bank = bank_of(3, opposed=True)
    head = LGRHead(16, 0, loss_bias=False)
    with torch.no_grad():
        head.query_proj.weight.zero_()
    features = torch.randn(4, 16)
    expected = head.text_logits(features, bank)
    with pretended():
        found = head.to("cuda").text_logits(features.to("cuda"), bank.to("cuda")).cpu()
    assert bank.opposed
    torch.testing.assert_close(found, expected, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("classes", [8, 40])
def test_a_training_step_of_lgr(classes: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """It equals the CPU's, and does not wait, whatever the number of classes: an epoch costs its copies and a look."""
    torch.manual_seed(3)
    monkeypatch.setenv("VLLTR_DEVICE", "cpu")
    bank, labels = bank_of(classes), torch.arange(6 * classes) % classes
    features = torch.randn(2, len(labels), 16)
    config = LGRConfig(epochs=1, batch_size=classes, views=2, distractors=0.0)
    head, log = fitted(features, labels, bank, config)
    with pretended() as card:
        monkeypatch.setenv("VLLTR_DEVICE", "cuda")
        before = list[int]()
        moved, there = fitted(
            features, labels, bank, config, progress=lambda *_: before.append(card.waits.total())
        )
    assert max(b - a for a, b in pairwise(before)) <= 3, card.waits
    assert before[-1] == before[1], card.waits  # none at all once what is kept is there
    assert there[0]["loss"] == pytest.approx(log[0]["loss"], abs=1e-4)
    for name, value in head.state_dict().items():
        assert moved.state_dict()[name].device.type == "cpu"
        torch.testing.assert_close(moved.state_dict()[name], value, atol=1e-3, rtol=1e-3)


@pytest.mark.slow
def test_stage_two_on_a_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    """Cross-fitting, head, generative model and weights decide as on the CPU; what is kept is there."""
    monkeypatch.setenv("VLLTR_DEVICE", "cpu")
    data = drawn([9, 8, 7, 6, 5, 4, 3], told=[True] * 6 + [False], groups=["a", "a", *[None] * 40])
    plain = fit_stage_two(data, CONFIG)
    with pretended():
        monkeypatch.setenv("VLLTR_DEVICE", "cuda")
        found = fit_stage_two(data, CONFIG)
        unseen = replace(data, unseen=torch.arange(42) % 5 == 0)
        judged = fit_stage_two(unseen, CONFIG, head=deepcopy(found.head)).parts
    assert held_out(found) == held_out(plain)
    assert plain.parts is not None
    assert found.parts is not None
    assert judged is not None
    assert found.parts.weights.generative == pytest.approx(plain.parts.weights.generative, rel=1e-2)
    for one, other in zip(astuple(found.parts.shared), astuple(plain.parts.shared), strict=True):
        torch.testing.assert_close(one, other, atol=1e-8, rtol=1e-6)
    assert {v.device.type for v in (*found.head.parameters(), judged.shared.basis)} == {"cpu"}


def test_rules_and_baselines_on_a_gpu() -> None:
    """Each rule on stored vectors gives what it gives on the CPU, within 1e-5."""
    torch.manual_seed(4)
    features, labels = torch.randn(60, 8), torch.arange(60) % 6
    sentences, owners = torch.randn(30, 8), torch.arange(30) % 6
    training = HeadTraining(epochs=1, batch_size=20, sampler_power=1.0)

    def everything(x: Tensor, y: Tensor, t: Tensor) -> list[Tensor]:
        means = class_means(x, y, 6)
        weight, bias = fc_head(x, y, 6, training)
        cache = TipCache(x[:12], y[:12], means, 20.0)
        (alpha, beta), accuracy = choose_tip(x, y, cache, [0.3, 1.0], [1.0, 5.0])
        return [
            means, weight, bias, lws_scales(x, y, weight, bias, training), *shrunk_discriminant(x, y, 6),
            tau_normalised(weight, 0.5), knn_sentence_logits(x, t, owners, 6, 3), tip_logits(x, cache, alpha, beta),
            adjusted_logits(linear_logits(x, weight, bias), torch.bincount(labels), 0.5), hold_back(y, 0.2).float(),
            class_logits(cosine_logits(x, means), torch.tensor([0, 1, 1, 2, -1, 3]), 4),
            torch.tensor([alpha, beta, accuracy]),
        ]  # fmt: skip

    expected = everything(features, labels, sentences)
    with pretended():
        found = [v.cpu() for v in everything(*(v.to("cuda") for v in (features, labels, sentences)))]
    for mine, theirs in zip(found, expected, strict=True):
        torch.testing.assert_close(mine, theirs, atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("rule", ["ours", "paper", "logits"])
def test_a_prediction_waits_twice(
    trained: Workspace,
    pictures: Path,
    monkeypatch: pytest.MonkeyPatch,
    rule: Literal["ours", "paper", "logits"],
) -> None:
    """Once to learn whether anchors cancelled, once for the answer; which is the CPU's, with all that is said of it."""
    paths = sorted(pictures.glob("known-*.png"))

    def answers(**how: Any) -> tuple[Model, list[Prediction]]:
        found = Model.open(trained.snapshot())
        found = replace(found, fusion=found.fusion.model_copy(update={"rule": rule}))
        predict(found, paths[:1])  # what is kept is made
        return found, predict(found, paths, PredictOptions(**how))

    _, expected = answers()
    _, explained = answers(explain=2, neighbours=1, reject=rule == "ours")
    with pretended() as card:
        monkeypatch.setenv("VLLTR_DEVICE", "cuda")
        there, _ = answers()
        before = card.waits.total()
        found = predict(there, paths)
        assert card.waits.total() - before <= 2, card.waits
        _, told = answers(explain=2, neighbours=1, reject=rule == "ours")
    for mine, theirs in zip((*found, *told), (*expected, *explained), strict=True):
        assert [c.class_id for c in mine.classes] == [c.class_id for c in theirs.classes]
        for one, other in zip(mine.classes, theirs.classes, strict=True):
            assert one.probability == pytest.approx(other.probability, abs=1e-4)
            assert [s.text for s in one.sentences] == [s.text for s in other.sentences]
        assert mine.known == theirs.known


@pytest.mark.parametrize(
    ("options", "grouped", "used"),
    [
        (PredictOptions(retrieval="faiss"), False, "faiss"),
        (PredictOptions(prior="training"), False, "exhaustive"),
        (PredictOptions(prior="estimated"), False, "exhaustive"),
        (PredictOptions(prior="estimated", reject=True, explain=2), True, "exhaustive"),
    ],
)
def test_an_index_a_prior_and_groups_are_asked_on_the_gpu(
    trained: Workspace,
    pictures: Path,
    monkeypatch: pytest.MonkeyPatch,
    options: PredictOptions,
    grouped: bool,
    used: str,
) -> None:
    """What is answered there is what the CPU answers."""
    index_anchors(trained, "flat")
    paths = sorted(pictures.glob("known-*.png"))
    groups = ["a", None, "b", "a", "b", "a"] if grouped else None
    expected = predict(Model.open(trained.snapshot()), paths, options, groups)
    with pretended():
        monkeypatch.setenv("VLLTR_DEVICE", "cuda")
        found = predict(Model.open(trained.snapshot()), paths, options, groups)
    for mine, theirs in zip(found, expected, strict=True):
        assert mine.retrieval == used
        assert [c.class_id for c in mine.classes] == [c.class_id for c in theirs.classes]
        chances = [c.probability for c in theirs.classes]
        assert [c.probability for c in mine.classes] == pytest.approx(chances, abs=1e-4)


@pytest.mark.slow
def test_the_steps_of_a_workspace_on_a_gpu(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Embedding anew, selection, stage 2, baselines and an evaluation run there, and the CPU's accuracy comes out."""
    drawings.encoder().save(tmp_path / "encoder")
    sets = (f"encoder.pretrained={tmp_path / 'encoder'}", "lgr.lr=3e-2", "lgr.projection_lr=3e-2")
    trained = drawings.workspace(tmp_path, *sets, *drawings.QUICK)
    ingest_images(trained, drawings.write(tmp_path / "others", 1), "test")
    train_all(trained, trained.recipe, stage_one=False)
    for name in ("ncm", "discriminant", "logistic", "knn", "tip-adapter"):
        train_baseline(trained, name, trained.recipe.baselines)
    plain = evaluate(trained).rows
    with pretended():
        monkeypatch.setenv("VLLTR_DEVICE", "cuda")
        assert embed(trained).images == 0
        select(trained, trained.recipe.select)
        train_lgr_stage(trained, trained.recipe.lgr)
        for name in ("ncm", "discriminant", "logistic", "knn", "tip-adapter"):
            train_baseline(trained, name, trained.recipe.baselines)
        found = evaluate(trained).rows
    assert found.keys() == plain.keys()
    for name, row in plain.items():
        assert found[name].top1["overall"].value == pytest.approx(row.top1["overall"].value, abs=0.01), name
