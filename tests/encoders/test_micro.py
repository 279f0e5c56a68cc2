"""A batch in parts: values and gradients of the whole, and no tower sees more rows at once."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from tests.support import drawings, small_clip
from tests.train.test_lgr import drawing_bank
from vlltr_index.encoders.encoder import Encoder
from vlltr_index.errors import ConfigError
from vlltr_index.schemas.config import BaselineConfig, CVLPConfig, LGRConfig
from vlltr_index.train.cvlp import train_cvlp, train_image_only
from vlltr_index.train.distributed import in_parts
from vlltr_index.train.lgr import tune_visual
from vlltr_index.train.losses import class_contrastive_loss

JOINT = CVLPConfig(
    epochs=1, batch_size=28, micro_batch=8, joint_weight=1.0, extra_classes=1, distillation="full",
    distillation_weight=0.3, augment=drawings.AUGMENT,
)  # fmt: skip


@pytest.fixture
def encoder() -> Encoder:
    """A small CLIP with two transformers."""
    return small_clip.encoder()


def most_rows(tower: nn.Module) -> list[int]:
    """The rows of each call of a tower, from now on."""
    seen = list[int]()
    tower.register_forward_pre_hook(lambda module, args: seen.append(len(args[0])))
    return seen


def test_parts_have_the_gradients_of_the_whole(encoder: Encoder) -> None:
    """Loss and every gradient of both towers within 1e-5 of their size, with dropout between; the rest is not kept."""
    pixels, ids = torch.randn(11, 3, *encoder.image_size), encoder.tokenize(["a ring", "one cross"] * 5).ids
    drop, labels = nn.Dropout(0.1), torch.arange(11) % 3

    def loss(size: int | None) -> Tensor:
        def towers(rows: Tensor) -> Tensor:
            return drop(encoder.encode_pixels(rows))

        encoder.model.zero_grad()
        torch.manual_seed(0)
        image = torch.cat([in_parts(towers, part, size) for part in pixels.split(4)])
        text = in_parts(encoder.encode_tokens, ids, size)
        total = sum(class_contrastive_loss(image, text, labels, labels[:10], 20.0))
        assert isinstance(total, Tensor)
        total.backward()
        return total.detach()

    whole = loss(None)
    expected = {name: p.grad.clone() for name, p in encoder.model.named_parameters() if p.grad is not None}
    seen = most_rows(encoder.model.visual)  # type: ignore[arg-type]  # a module
    torch.testing.assert_close(loss(2), whole, atol=1e-5, rtol=1e-5)
    assert (max(seen), len(seen)) == (2, 12)
    found = {name: p.grad for name, p in encoder.model.named_parameters() if p.grad is not None}
    assert found.keys() == expected.keys()
    for name, gradient in expected.items():
        torch.testing.assert_close(
            found[name], gradient, atol=1e-5 * max(1.0, float(gradient.abs().max())), rtol=1e-5
        )


def test_all_trainings_of_towers_take_parts(encoder: Encoder) -> None:
    """Stage 1, stage 2 with the tower, and the baseline: never more than `micro_batch` images at once."""
    images, config = drawings.images(encoder), {"epochs": 1, "batch_size": 28, "micro_batch": 8}
    seen = most_rows(encoder.model.visual)  # type: ignore[arg-type]  # a module
    train_cvlp(encoder, images, drawings.sentences(encoder), JOINT)
    train_image_only(encoder, images, BaselineConfig(**config, augment=drawings.AUGMENT))
    tune_visual(
        encoder, images, drawing_bank(encoder), LGRConfig(**config, tune="visual", augment=drawings.AUGMENT)
    )
    assert max(seen) == 8


def test_batch_norm_needs_the_whole_batch() -> None:
    """Refused, with the settings that go together."""
    encoder = drawings.encoder()
    encoder.model.visual.add_module("norm", nn.BatchNorm2d(3))  # type: ignore[operator]  # a module
    with pytest.raises(ConfigError) as caught:
        train_cvlp(encoder, drawings.images(encoder), drawings.sentences(encoder), JOINT)
    assert str(caught.value) == (
        "cvlp.micro_batch is 8, and the model's BatchNorm needs the whole batch at once\n"
        "Leave it out with --set cvlp.micro_batch=none, or use --set cvlp.batch_norm=eval."
    )
