"""Stage 1: what it minimises, that it learns, and that an interrupted run resumes exactly."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from torch.nn import functional as F

from tests.support import drawings
from vlltr_index.encoders.encoder import Encoder
from vlltr_index.errors import ConfigError, VlltrError, WorkspaceError
from vlltr_index.schemas.config import CVLPConfig
from vlltr_index.train.checkpoint import STATE
from vlltr_index.train.cvlp import draw_candidates, train_cvlp
from vlltr_index.train.data import TrainImages
from vlltr_index.train.loop import StageOne
from vlltr_index.train.sampling import stream

OURS = CVLPConfig(
    epochs=3,
    batch_size=16,
    lr=2e-3,
    joint_weight=1.0,
    ccl_weight=0.5,
    extra_classes=3,
    word_dropout=0.1,
    warmup_epochs=0.5,
    augment=drawings.AUGMENT,
)
PAPER = CVLPConfig(epochs=2, batch_size=16, lr=1e-3, ccl_reduction="sum", augment=drawings.AUGMENT)


def fit(
    config: CVLPConfig,
    run_dir: Path | None = None,
    stop: int | None = None,
    of: Callable[[Encoder], TrainImages] = drawings.images,
) -> StageOne:
    """Train on the drawings; with `stop`, raise KeyboardInterrupt after that many steps."""
    encoder = drawings.encoder()
    texts, progress = drawings.sentences(encoder), drawings.stop_at(stop)
    return train_cvlp(encoder, of(encoder), texts, config, run_dir=run_dir, progress=progress)


def same(one: StageOne, other: StageOne) -> bool:
    """Equal weights, classifiers and logs, to the bit."""
    assert one.visual is not None
    assert other.visual is not None
    return (
        drawings.same_weights(one.encoder, other.encoder)
        and torch.equal(one.visual.weight, other.visual.weight)
        and drawings.untimed(one.log) == drawings.untimed(other.log)
    )


@pytest.fixture(scope="module")
def whole() -> StageOne:
    """An uninterrupted run."""
    return fit(OURS)


def test_the_log_tells_loss_parts_scale_rate_and_speed(whole: StageOne) -> None:
    """One entry an epoch, and the loss is the weighted sum of its parts."""
    assert [e["epoch"] for e in whole.log] == [1, 2, 3]
    for entry in whole.log:
        assert set(entry) == {
            *("epoch", "loss", "ccl", "text", "visual", "lr", "scale", "seconds", "images_per_s")
        }
        assert entry["loss"] == pytest.approx(0.5 * entry["ccl"] + entry["text"] + entry["visual"], rel=1e-5)
        assert entry["images_per_s"] > 0
    assert whole.log[-1]["loss"] < whole.log[0]["loss"]


@pytest.mark.slow
def test_it_learns_both_branches() -> None:
    """After some epochs, the classifier and the sentences both name the drawings of the larger classes."""
    stage = fit(OURS.model_copy(update={"epochs": 16}))
    assert stage.visual is not None
    encoder = stage.encoder
    pixels = (drawings.pixels(seed=5).float() / 255).expand(-1, 3, -1, -1)
    mean, std = encoder.mean.view(1, 3, 1, 1), encoder.std.view(1, 3, 1, 1)
    with torch.no_grad():
        features = encoder.encode_pixels((pixels - mean) / std)
        by_row = stage.visual(features).argmax(1)
        texts = F.normalize(encoder.encode_texts([g[0] for g in drawings.texts()]), dim=1)
    by_text = (F.normalize(features, dim=1) @ texts.T).argmax(1)
    labels = drawings.labels()
    assert (by_row == labels).float().mean() > 0.9
    assert (by_text == labels).float().mean() > 0.8


def test_the_same_seed_gives_the_same_run(whole: StageOne) -> None:
    """And another one another; the caller's random state plays no part and stays as it is."""
    torch.manual_seed(123)
    before = torch.random.get_rng_state()
    assert same(fit(OURS), whole)
    assert torch.equal(torch.random.get_rng_state(), before)
    other = fit(OURS.model_copy(update={"seed": 1, "epochs": 1}))
    assert other.log[0]["loss"] != whole.log[0]["loss"]


def test_a_model_with_a_bias_is_trained_with_the_sigmoid_loss() -> None:
    """Its bias learns with its scale, which keeps no upper bound; label smoothing is refused."""

    def trained(**settings: float) -> tuple[StageOne, torch.Tensor]:
        encoder = drawings.encoder()
        encoder.model.logit_bias = torch.nn.Parameter(torch.tensor(-10.0))
        config = PAPER.model_copy(update={"epochs": 1, "temperature": 1 / 200, **settings})
        stage = train_cvlp(encoder, drawings.images(encoder), drawings.sentences(encoder), config)
        assert encoder.logit_bias is not None
        assert encoder.logit_bias.requires_grad
        return stage, encoder.logit_bias.detach()

    learned, bias = trained()
    assert bias != -10
    assert learned.log[0]["scale"] > 150
    kept, same_bias = trained(learn_scale=False)
    assert same_bias == -10
    assert kept.log[0]["scale"] == pytest.approx(200)
    with pytest.raises(ConfigError) as caught:
        trained(label_smoothing=0.1)
    assert str(caught.value) == (
        "vlltr-tiny is trained with SigLIP's sigmoid loss, which has no label smoothing\n"
        "Use --set cvlp.label_smoothing=0"
    )


@pytest.mark.parametrize("every", [1, 2])
def test_an_interrupted_run_resumes_to_the_same_end(whole: StageOne, tmp_path: Path, every: int) -> None:
    """To the bit, whether there is a state each epoch or fewer; run again after its end, it takes no step."""
    config = OURS.model_copy(update={"checkpoint_every": every})
    with pytest.raises(KeyboardInterrupt):
        fit(config, tmp_path, 11)
    with safe_open(tmp_path / STATE, "pt") as file:
        assert len(json.loads(file.metadata()["log"])) == 2
    assert same(fit(config, tmp_path), whole)
    assert same(fit(config, tmp_path, stop=1), whole)
    with pytest.raises(WorkspaceError, match=r"cannot be used.*(?s:.)*--restart"):
        fit(PAPER, tmp_path)


def stored(encoder: Encoder) -> TrainImages:
    """The drawings as stored vectors."""
    pixels = (drawings.pixels().float() / 255).expand(-1, 3, -1, -1)
    with torch.no_grad():
        features = encoder.encode_pixels((pixels - encoder.mean.view(3, 1, 1)) / encoder.std.view(3, 1, 1))
    return TrainImages.from_features(features, drawings.labels())


def zero_shot(encoder: Encoder, images: TrainImages) -> float:
    """The share of stored vectors whose class's sentences are nearest."""
    assert images.features is not None
    texts = torch.stack([F.normalize(encoder.encode_texts(g), dim=1).mean(0) for g in drawings.texts()])
    return float(((images.features @ F.normalize(texts, dim=1).T).argmax(1) == images.labels).float().mean())


@pytest.mark.slow
def test_the_text_tower_alone_learns_from_stored_vectors(tmp_path: Path) -> None:
    """The visual tower stays to the bit, zero-shot accuracy rises, and a stopped run goes on to the same end."""
    update = {"tune": "text", "epochs": 12, "lr": 5e-3, "distillation": "full", "distillation_weight": 0.05}
    config, before = OURS.model_copy(update=update), drawings.encoder()
    whole = fit(config, of=stored)
    with pytest.raises(KeyboardInterrupt):
        fit(config, tmp_path, 20, of=stored)
    assert same(whole, fit(config, tmp_path, of=stored))
    after = whole.encoder
    assert after.image_fp == before.image_fp
    assert after.text_fp != before.text_fp
    assert after.logit_scale != before.logit_scale
    for name, value in before.model.state_dict().items():
        assert torch.equal(value, after.model.state_dict()[name]) == name.startswith("visual."), name
    assert zero_shot(after, stored(after)) > zero_shot(before, stored(before)) + 0.4
    by_pixels = fit(config.model_copy(update={"epochs": 1})).encoder  # they pass the tower, which stays too
    assert by_pixels.image_fp == before.image_fp
    assert by_pixels.text_fp != before.text_fp


def test_the_papers_way_has_no_visual_classifier() -> None:
    """Without the joint stage there is one sentence an image, the sum of the sides, and no classifier."""
    stage = fit(PAPER)
    assert stage.visual is None
    assert set(stage.log[0]) >= {"loss", "ccl"}
    assert "text" not in stage.log[0]


@pytest.mark.parametrize("mode", ["full", "paired"])
def test_distillation_by_one_tau_or_by_two(mode: str) -> None:
    """S' has the student's scale or the teacher's own: another loss where the student's is set."""
    update = {"distillation": mode, "distillation_weight": 0.5, "ccl_weight": 0.5, "epochs": 1}
    found = []
    for whose in ("student", "teacher"):
        changes = update | {"distillation_scale": whose, "temperature": 0.5}
        entry = fit(PAPER.model_copy(update=changes)).log[0]
        assert entry["loss"] == pytest.approx(0.5 * entry["ccl"] + 0.5 * entry["distillation"], rel=1e-5)
        found.append(entry["distillation"])
    assert abs(found[1] / found[0] - 1) > 1e-3


def test_what_cannot_be_trained_is_refused() -> None:
    """Paired distillation with the joint stage, nothing to train, and a loss that is not finite any more."""
    with pytest.raises(ConfigError, match="paired distillation needs a sentence for every image"):
        fit(OURS.model_copy(update={"distillation": "paired", "distillation_weight": 0.5}))
    with pytest.raises(ConfigError, match="every weight is zero"):
        fit(PAPER.model_copy(update={"ccl_weight": 0.0}))
    with pytest.raises(VlltrError, match="the loss is nan"):
        fit(OURS.model_copy(update={"lr": 1e30, "clip_grad": None, "epochs": 2}))


def test_candidates_are_the_batchs_classes_and_distinct_others() -> None:
    """Every target points at its class; extra classes have images, are not in the batch, and are all used if few."""
    labels = torch.tensor([4, 1, 4, 0])
    present = torch.tensor([0, 1, 3, 4, 6, 7])
    for extra in (0, 2, 50):
        found = draw_candidates(labels, present, extra, stream(extra))
        assert found.in_batch == 3
        assert torch.equal(found.classes[found.targets], labels)
        others = found.classes[3:].tolist()
        assert len(others) == len(set(others)) == min(extra, 3)
        assert set(others) <= {3, 6, 7}


def test_the_temperature_and_what_becomes_of_it() -> None:
    """tau starts where it is told, stays where it is not learned, and has no bound where there is none."""
    frozen = fit(OURS.model_copy(update={"epochs": 1, "temperature": 0.05, "learn_scale": False}))
    assert frozen.log[0]["scale"] == pytest.approx(20.0)
    assert frozen.encoder.model.logit_scale.requires_grad  # for the next run
    free = fit(OURS.model_copy(update={"epochs": 1, "temperature": 0.005, "max_scale": None}))
    assert free.log[0]["scale"] > 101.0
    held = fit(OURS.model_copy(update={"epochs": 1, "temperature": 0.005}))
    assert held.encoder.logit_scale <= 100.01
