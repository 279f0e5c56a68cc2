"""Stage 2 and the image-only baseline."""

from __future__ import annotations

from copy import deepcopy
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from tests.support import drawings
from vlltr_index.anchors.anss import score_sentences, select_anchors
from vlltr_index.encoders.encoder import Encoder
from vlltr_index.errors import VlltrError
from vlltr_index.heads.anchor_bank import AnchorBank
from vlltr_index.heads.lgr import LGRHead
from vlltr_index.schemas.config import BaselineConfig, LGRConfig
from vlltr_index.train.augment import BatchMixer
from vlltr_index.train.checkpoint import Log
from vlltr_index.train.cvlp import train_image_only, visual_classifier
from vlltr_index.train.lgr import StoredImages, new_head, train_until, tune_visual
from vlltr_index.train.losses import adjusted_cross_entropy, sampler_prior
from vlltr_index.train.sampling import epoch_batches, stream

CLASSES, WIDTH = 6, 12
CONFIG = LGRConfig(epochs=6, batch_size=16, lr=5e-2, projection_lr=1e-3)


def stored(seed: int = 0) -> tuple[Tensor, Tensor, AnchorBank]:
    """Two views of images around their class's direction, and three anchors a class around it, the first the best."""
    g = torch.Generator().manual_seed(seed)
    labels = torch.arange(CLASSES).repeat_interleave(torch.tensor([30, 20, 10, 5, 2, 1]))
    centres = torch.randn(CLASSES, WIDTH, generator=g)
    features = centres[labels] + 0.3 * torch.randn(2, len(labels), WIDTH, generator=g)
    owner = torch.arange(CLASSES).repeat_interleave(3)
    anchors = centres[owner] + 0.5 * torch.randn(len(owner), WIDTH, generator=g)
    losses = torch.arange(3.0).repeat(CLASSES)
    return features, labels, AnchorBank.build(anchors, owner, torch.arange(CLASSES), losses)


def fitted(
    features: Tensor, labels: Tensor, bank: AnchorBank, config: LGRConfig, scale: float = 20.0, **how: Any
) -> tuple[LGRHead, Log]:
    """A new head trained for `config.epochs`; `how` is for `train_until`."""
    head = new_head(bank, config, None, scale)
    images = StoredImages(features, labels, bank, torch.arange(bank.num_classes))
    return train_until(head, images, config, None, **how)


def accuracy(head: LGRHead, features: Tensor, labels: Tensor, bank: AnchorBank) -> tuple[float, float]:
    with torch.no_grad():
        both = head.visual_logits(features), head.text_logits(features, bank)
        visual, text = ((logits.argmax(1) == labels).float().mean() for logits in both)
    return float(visual), float(text)


def test_both_branches_learn_and_the_log_tells_it() -> None:
    """The loss falls, both branches name most images, and progress comes once a step."""
    features, labels, bank = stored()
    calls: list[tuple[str, int, int | None]] = []
    head, log = fitted(features, labels, bank, CONFIG, progress=lambda *c: calls.append(c))
    assert not head.training
    assert min(accuracy(head, features[0], labels, bank)) > 0.9
    assert [e["epoch"] for e in log] == [1, 2, 3, 4, 5, 6]
    assert log[-1]["loss"] < log[0]["loss"]
    assert log[0]["loss"] == pytest.approx(log[0]["visual"] + log[0]["text"])
    assert log[0]["scale"] == pytest.approx(20.0)
    assert calls == [("train lgr", i + 1, 24) for i in range(24)]


def test_the_same_seed_gives_the_same_head() -> None:
    """And the caller's random state plays no part and stays."""
    features, labels, bank = stored()
    torch.manual_seed(1)
    before = torch.random.get_rng_state()
    one, _ = fitted(features, labels, bank, CONFIG)
    assert torch.equal(torch.random.get_rng_state(), before)
    torch.manual_seed(2)
    two, _ = fitted(features, labels, bank, CONFIG)
    other, _ = fitted(features, labels, bank, CONFIG.model_copy(update={"seed": 1}))
    assert same_head(one, two)
    assert not same_head(one, other)


def test_a_view_is_drawn_for_each_image() -> None:
    """Where one view is nothing but NaN, the loss shows that it is used."""
    features, labels, bank = stored()
    spoilt = torch.stack([features[0], torch.full_like(features[0], float("nan"))])
    with pytest.raises(VlltrError, match="the loss is nan in epoch 1"):
        fitted(spoilt, labels, bank, CONFIG)


def test_the_scale_is_learned_only_when_asked_and_clamped() -> None:
    """Frozen by default; learned, it stays at or below its bound, if it has one."""
    features, labels, bank = stored()

    def scale(start: float, **changes: object) -> float:
        config = CONFIG.model_copy(update={"lr": 0.5, "epochs": 2, **changes})
        head, _ = fitted(features, labels, bank, config, start)
        return float(head.logit_scale.detach())

    assert scale(20.0) == pytest.approx(20.0)
    assert scale(99.0, learn_scale=True) != pytest.approx(99.0)
    assert scale(200.0, learn_scale=True, max_scale=50.0) <= 50.01
    assert scale(200.0, learn_scale=True, max_scale=None) > 101.0


def test_a_stopped_run_on_stored_vectors_goes_on(tmp_path: Path) -> None:
    """Stopped in its third epoch it does two of them no more, and ends with the same weights and log."""
    features, labels, bank = stored()
    config = CONFIG.model_copy(update={"visual": "mlp", "learn_scale": True, "epochs": 4})

    def run(folder: Path | None, until: int) -> tuple[LGRHead, Log, list[int]]:
        steps = list[int]()

        def progress(step: str, done: int, total: int | None) -> None:
            steps.append(done)
            if done == until:
                raise KeyboardInterrupt

        return *fitted(features, labels, bank, config, run_dir=folder, progress=progress), steps

    head, whole, _ = run(None, 0)
    with pytest.raises(KeyboardInterrupt):
        run(tmp_path, 9)
    again, log, steps = run(tmp_path, 0)
    assert steps[0] == 9
    assert drawings.untimed(log) == drawings.untimed(whole)
    assert same_head(head, again)


@pytest.mark.parametrize("kind", ["linear", "mlp", "cosine"])
def test_each_kind_of_visual_branch_trains(kind: str) -> None:
    """Its loss falls; a cosine classifier starts from the classes' mean anchors."""
    features, labels, bank = stored()
    config = CONFIG.model_copy(update={"visual": kind})
    _, log = fitted(features, labels, bank, config)
    assert log[-1]["visual"] < log[0]["visual"]
    if kind == "cosine":
        head = new_head(bank, config, None, 20.0)
        assert isinstance(head.visual_head, nn.Module)
        torch.testing.assert_close(
            head.visual_head.weight.detach(), F.normalize(bank.prototypes(False), dim=1)
        )


def test_other_sentences_than_the_anchors_do_not_break_a_trained_head() -> None:
    """All sentences, and three of other classes for each right one: plain attention breaks, ours does not."""
    g = torch.Generator().manual_seed(0)
    centres, labels = torch.randn(40, 24, generator=g), torch.arange(40).repeat_interleave(8)
    images, fresh = centres[labels] + 0.5 * torch.randn(2, len(labels), 24, generator=g)
    owner = torch.arange(40).repeat_interleave(12)
    spread = torch.linspace(0.3, 2.0, 12).repeat(40)[:, None]
    texts = centres[owner] + spread * torch.randn(len(owner), 24, generator=g)
    stray, host = torch.randint(len(owner), (3 * len(owner),), generator=g), owner.repeat(3)
    stray, host = stray[owner[stray] != host], host[owner[stray] != host]

    def bank_of(texts: Tensor, owner: Tensor, most: int) -> AnchorBank:
        losses = score_sentences(texts, owner, images, labels, 10.0).loss
        kept = select_anchors(losses, owner, torch.arange(len(owner)), most).positions
        return AnchorBank.build(texts[kept], owner[kept], range(40), losses[kept])

    anchors = bank_of(texts, owner, 4)
    others = (
        bank_of(texts, owner, 99),
        bank_of(torch.cat([texts, texts[stray]]), torch.cat([owner, host]), 99),
    )
    config = LGRConfig(epochs=12, batch_size=32, lr=1e-2, projection_lr=3e-2)
    plain = config.model_copy(update={"loss_bias": False, "anchor_dropout": 0.0, "distractors": 0.0})
    for settings, all_of_them, noisy in ((plain, (0.7, 0.9), (0.0, 0.2)), (config, (0.98, 1), (0.98, 1))):
        head, _ = fitted(images[None], labels, anchors, settings, 10.0)
        assert accuracy(head, fresh, labels, anchors)[1] > 0.98
        for bank, (low, high) in zip(others, (all_of_them, noisy), strict=True):
            assert low <= accuracy(head, fresh, labels, bank)[1] <= high


def start(bank: AnchorBank, config: LGRConfig, rows: int = CLASSES) -> LGRHead:
    """An untrained head with a linear visual classifier of zeros."""
    return new_head(bank, config, (torch.zeros(rows, WIDTH), torch.zeros(rows)), 20.0)


def same_head(one: LGRHead, other: LGRHead) -> bool:
    """Whether all weights agree."""
    return all(torch.equal(value, other.state_dict()[name]) for name, value in one.state_dict().items())


def test_a_head_trains_until_the_held_out_loss_has_converged() -> None:
    """It ends as it was when that was lowest: as one trained for just so many steps, each check in the log."""
    features, labels, bank = stored()
    calls = list[int]()
    images = StoredImages(features[:1], labels, bank, torch.arange(CLASSES))
    held = features[1], labels
    head, log = train_until(
        start(bank, CONFIG), images, CONFIG, held, progress=lambda _, done, __: calls.append(done)
    )
    assert not head.training
    assert min(accuracy(head, features[1], labels, bank)) > 0.9
    best, each = int(log[-1]["best"]), int(log[0]["steps"])
    assert [entry["steps"] for entry in log] == [each * (n + 1) for n in range(len(log))]
    assert calls == list(range(1, len(log) * each + 1))
    assert 0 < best < len(log) * each
    losses = [entry["held_out"] for entry in log]
    assert losses[best // each - 1] <= 1.005 * min(losses) + 0.002
    again, steps = train_until(start(bank, CONFIG), images, CONFIG, best)
    assert same_head(again, head)
    assert steps[-1]["best"] == steps[-1]["steps"] == best


def test_a_head_that_only_gets_worse_is_left_as_it_was() -> None:
    """With a ruinous rate the best head is the one before the first step."""
    features, labels, bank = stored()
    config = CONFIG.model_copy(update={"lr": 30.0, "projection_lr": 30.0})
    good, _ = fitted(features[:1], labels, bank, CONFIG)
    before = deepcopy(good)
    images = StoredImages(features[:1], labels, bank, torch.arange(CLASSES))
    head, log = train_until(good, images, config, (features[1], labels))
    assert log[-1]["best"] == 0.0
    assert same_head(head, before)


def test_classes_without_a_sentence_have_a_visual_row_alone() -> None:
    """Their images teach the classifier; the text branch learns from the others."""
    features, labels, bank = stored()
    told = 4
    some = bank.select(torch.arange(told))
    places = torch.where(torch.arange(CLASSES) < told, torch.arange(CLASSES), -1)
    images = StoredImages(features[:1], labels, some, places)
    head, _ = train_until(start(some, CONFIG), images, CONFIG, (features[1], labels))
    right = head.visual_logits(features[1]).argmax(1) == labels
    assert float(right.float().mean()) > 0.9
    seen = labels < told
    text = head.text_logits(features[1, seen], some).argmax(1)
    assert float((text == labels[seen]).float().mean()) > 0.9


def test_a_last_step_that_ruins_the_weights_is_refused() -> None:
    """The loss of the only step is finite, the weights after it are not."""
    features, labels, bank = stored()
    config = CONFIG.model_copy(update={"epochs": 1, "batch_size": len(labels), "lr": 1e39})
    with pytest.raises(VlltrError) as caught:
        fitted(features, labels, bank, config)
    assert caught.value.message.startswith("train lgr: the weights ")
    assert caught.value.message.endswith(" are not finite any more")
    assert caught.value.hint == "Try a lower lr."


def drawing_bank(encoder: Encoder) -> AnchorBank:
    flat = [t for group in drawings.texts() for t in group]
    owner = torch.arange(8).repeat_interleave(3)
    return AnchorBank.build(encoder.encode_texts(flat), owner, torch.arange(8), torch.arange(24.0) % 3)


VISUAL = LGRConfig(
    tune="visual",
    epochs=3,
    batch_size=16,
    lr=1e-2,
    encoder_lr=1e-3,
    projection_lr=1e-3,
    augment=drawings.AUGMENT,
)


def test_tuning_the_tower_moves_it_alone(tmp_path: Path) -> None:
    """The visual tower learns, the text tower and BatchNorm's statistics stay, and an interrupted run resumes."""
    encoder = drawings.encoder()
    before = {k: v.clone() for k, v in encoder.model.state_dict().items()}
    text_fp, image_fp = encoder.text_fp, encoder.image_fp
    bank = drawing_bank(encoder)
    head, log = tune_visual(encoder, drawings.images(encoder), bank, VISUAL)
    assert log[-1]["loss"] < log[0]["loss"]
    assert encoder.text_fp == text_fp
    assert encoder.image_fp != image_fp
    after = encoder.model.state_dict()
    assert all(
        torch.equal(after[k], before[k]) for k in after if "running" in k or not k.startswith("visual")
    )

    other, stop = drawings.encoder(), drawings.stop_at(7)
    with pytest.raises(KeyboardInterrupt):
        tune_visual(other, drawings.images(other), bank, VISUAL, run_dir=tmp_path, progress=stop)
    other = drawings.encoder()
    again, _ = tune_visual(other, drawings.images(other), bank, VISUAL, run_dir=tmp_path)
    assert drawings.same_weights(other, encoder)
    assert same_head(head, again)


def test_with_mixing_a_frozen_tower_stays_and_the_head_learns(tmp_path: Path) -> None:
    """`tune = "head"` with mixup and cutmix: not a weight or statistic of the encoder moves; a stopped run resumes."""
    config = VISUAL.model_copy(
        update={"tune": "head", "mixup": 0.8, "cutmix": 1.0, "label_smoothing": 0.1, "epochs": 4}
    )
    encoder = drawings.encoder()
    bank = drawing_bank(encoder)
    head, _ = tune_visual(encoder, drawings.images(encoder), bank, config)
    assert drawings.same_weights(encoder, drawings.encoder())
    assert not same_head(head, new_head(bank, config, None, encoder.logit_scale))
    stop = drawings.stop_at(6)
    with pytest.raises(KeyboardInterrupt):
        tune_visual(encoder, drawings.images(encoder), bank, config, run_dir=tmp_path, progress=stop)
    again, _ = tune_visual(encoder, drawings.images(encoder), bank, config, run_dir=tmp_path)
    assert same_head(head, again)


@pytest.mark.slow
def test_every_setting_of_a_tuned_tower_counts() -> None:
    """Changed alone, each of them gives another tower after one epoch."""
    seen = list[Encoder]()
    changes: dict[str, object] = {
        **{"mixup": 0.8, "cutmix": 1.0, "label_smoothing": 0.1, "logit_adjustment": 0.0},
        **{"batch_norm": "train", "detach_value_norm": True, "normalise_values": True, "visual": "mlp"},
        **{"loss_bias": False, "anchor_dropout": 0.6, "learn_scale": True},
        **{"clip_grad": 0.01, "warmup_epochs": 1.0, "sampler_power": 0.0, "projection_lr": 1e-6},
        **{"min_lr": 5e-4, "precision": "bf16", "epochs": 1},
    }
    for name, value in changes.items():
        config = LGRConfig.model_validate({**VISUAL.model_dump(), "epochs": 1, name: value})
        encoder = drawings.encoder()
        tune_visual(encoder, drawings.images(encoder), drawing_bank(encoder), config)
        assert not any(drawings.same_weights(encoder, other) for other in seen), name
        seen.append(encoder)


BASELINE = BaselineConfig(epochs=3, batch_size=16, lr=2e-3, augment=drawings.AUGMENT)


def test_the_baseline_trains_the_tower_without_texts(tmp_path: Path) -> None:
    """The text tower stays, the loss falls, and an interrupted run resumes."""
    encoder = drawings.encoder()
    text_fp = encoder.text_fp
    stage = train_image_only(encoder, drawings.images(encoder), BASELINE)
    assert encoder.text_fp == text_fp
    assert stage.visual is not None
    assert stage.visual.weight.shape == (8, encoder.dim)
    assert stage.log[-1]["visual"] < stage.log[0]["visual"]
    assert "scale" not in stage.log[0]
    other, images, stop = drawings.encoder(), drawings.images(encoder), drawings.stop_at(6)
    with pytest.raises(KeyboardInterrupt):
        train_image_only(other, images, BASELINE, run_dir=tmp_path, progress=stop)
    again = train_image_only(drawings.encoder(), drawings.images(encoder), BASELINE, run_dir=tmp_path)
    assert drawings.same_weights(again.encoder, encoder)


@pytest.mark.parametrize(("mixup", "cutmix"), [(0.8, 0.0), (0.8, 1.0)])
def test_the_baselines_batches_are_mixed(mixup: float, cutmix: float) -> None:
    """The first step's loss is the cross-entropy of mixed pixels with mixed targets, drawn here once more."""
    changes = {"mixup": mixup, "cutmix": cutmix, "label_smoothing": 0.1, "logit_adjustment": 0.5}
    config = BASELINE.model_copy(update={"epochs": 1, "batch_size": 56, **changes})
    encoder = drawings.encoder()
    images = drawings.images(encoder)
    (batch,) = epoch_batches(images.labels, 56, config.sampler_power, stream(config.seed, 0, "images"))
    (pixels,) = images.epoch(batch[None], slice(None), config.seed, 0)
    mixer = BatchMixer(mixup, cutmix, 0.1, images.num_classes)
    mixed, targets = mixer(pixels, images.labels[batch], stream(config.seed, 0, "step"))
    classifier = visual_classifier(encoder, images.num_classes, config.seed)
    encoder.train()
    with torch.no_grad():
        logits = classifier(encoder.encode_pixels(mixed))
    prior = sampler_prior(images.class_counts, config.sampler_power).log().float()
    expected = adjusted_cross_entropy(logits, targets, prior, 0.5)
    encoder = drawings.encoder()
    found = train_image_only(encoder, drawings.images(encoder), config).log[0]
    assert found["loss"] == found["visual"] == pytest.approx(float(expected), rel=1e-5)
