"""Low-rank adapters: which layers get one, that they learn, and that merging leaves a plain encoder."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
import torch
from torch import nn

from tests.support import drawings, small_clip
from tests.train.test_cvlp import fit
from vlltr_index.encoders.encoder import Encoder
from vlltr_index.errors import ConfigError
from vlltr_index.heads.anchor_bank import AnchorBank
from vlltr_index.schemas.config import CVLPConfig, LGRConfig, LoRAConfig
from vlltr_index.train.lgr import tune_visual
from vlltr_index.train.lora import adapted

pytestmark = pytest.mark.slow
CONFIG = LoRAConfig(rank=2, alpha=4.0)


def learn(encoder: Encoder, visual_only: bool) -> None:
    """One large step inside the block, which changes the features; they are the same when adapters are merged."""
    generator = torch.Generator().manual_seed(0)
    pixels = torch.randn(3, 3, *encoder.image_size, generator=generator)
    ids = encoder.tokenize(["one", "two of them", "three more of them"]).ids
    before = encoder.encode_pixels(pixels).detach()
    with adapted(encoder, CONFIG, visual_only=visual_only, seed=0):
        named = {n: p for n, p in encoder.model.named_parameters() if p.requires_grad}
        image = encoder.encode_pixels(pixels)
        torch.testing.assert_close(image, before)  # they start as nothing
        optimizer = torch.optim.AdamW(named.values(), lr=0.1)
        (image.square().sum() + encoder.encode_tokens(ids).square().sum()).backward()
        assert all(p.grad is not None for p in named.values())
        optimizer.step()
        inside = encoder.encode_pixels(pixels).detach(), encoder.encode_tokens(ids).detach()
    after = encoder.encode_pixels(pixels), encoder.encode_tokens(ids)
    for one, other in zip(inside, after, strict=True):
        torch.testing.assert_close(one, other, atol=1e-4, rtol=1e-4)
    assert not torch.allclose(inside[0], before, atol=1e-3)


@pytest.mark.parametrize("visual_only", [False, True])
def test_adapters_on_a_vit_reach_attention_and_mlp(visual_only: bool) -> None:
    """Packed attention and both MLP layers learn; after the merge names, types and all other weights are as before."""
    encoder = Encoder.scratch(small_clip.NAME, seed=0, device="cpu")
    before = {k: v.clone() for k, v in encoder.model.state_dict().items()}
    text_fp, image_fp = encoder.text_fp, encoder.image_fp
    learn(encoder, visual_only)
    after = encoder.model.state_dict()
    assert set(after) == set(before)
    changed = {k for k in after if not torch.equal(after[k], before[k])}
    towers = ("visual.",) if visual_only else ("visual.", "transformer.")
    assert changed == {
        k
        for k in after
        if k.startswith(towers) and k.endswith(("in_proj_weight", "c_fc.weight", "c_proj.weight"))
    } | {"visual.conv1.weight"}
    assert (encoder.text_fp == text_fp) is visual_only
    assert encoder.image_fp != image_fp
    assert not any("peft" in type(m).__module__ for m in encoder.model.modules())


def test_adapters_on_convolutions(tmp_path: Path) -> None:
    """`vlltr-tiny` learns through its convolutions, and what is saved is a plain checkpoint."""
    encoder = drawings.encoder()
    learn(encoder, visual_only=True)
    encoder.save(tmp_path)
    assert drawings.same_weights(Encoder.open(tmp_path, device="cpu"), encoder)


def test_an_encoder_without_a_layer_for_adapters() -> None:
    """What can be done instead is said."""
    encoder = drawings.encoder()
    encoder.model.visual = nn.Identity()
    with (
        pytest.raises(ConfigError, match="vlltr-tiny has no layer that takes a low-rank adapter\nUse --set"),
        adapted(encoder, CONFIG, visual_only=True, seed=0),
    ):
        pass


def test_without_peft_the_extra_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    """And so is what to install."""
    monkeypatch.setitem(sys.modules, "peft", None)
    with (
        pytest.raises(ConfigError) as error,
        adapted(drawings.encoder(), CONFIG, visual_only=True, seed=0),
    ):
        pass
    assert error.value.message == (
        "low-rank adapters (tune = lora) need the package peft, which is not installed"
    )
    assert error.value.hint == 'Install it: pip install "vlltr-index[lora]"'


def test_stage_1_trains_adapters_and_resumes(tmp_path: Path) -> None:
    """The loss falls, norms and embeddings stay, the scale learns, and an interrupted run ends the same."""
    config = CVLPConfig(
        tune="lora", lora=CONFIG, epochs=3, batch_size=16, lr=1e-2, joint_weight=1.0, extra_classes=4,
        augment=drawings.AUGMENT,
    )  # fmt: skip
    stage = fit(config)
    assert stage.log[-1]["loss"] < stage.log[0]["loss"]
    start, end = drawings.encoder().model.state_dict(), stage.encoder.model.state_dict()
    changed = {k for k in end if not torch.equal(start[k], end[k])}
    assert "logit_scale" in changed
    assert not any("ln_" in k or "running" in k or k == "token_embedding.weight" for k in changed)
    with pytest.raises(KeyboardInterrupt):
        fit(config, tmp_path, 7)
    assert drawings.same_weights(fit(config, tmp_path).encoder, stage.encoder)


def test_stage_2_tunes_the_visual_tower_through_adapters() -> None:
    """The text tower stays, the visual one moves less far than its weights are many, and the loss falls."""
    encoder = drawings.encoder()
    text_fp, image_fp = encoder.text_fp, encoder.image_fp
    config = LGRConfig(
        tune="lora", lora=CONFIG, epochs=3, batch_size=16, lr=1e-2, encoder_lr=1e-2, augment=drawings.AUGMENT
    )
    texts = encoder.encode_texts([t for group in drawings.texts() for t in group])
    bank = AnchorBank.build(texts, torch.arange(8).repeat_interleave(3), torch.arange(8))
    _, log = tune_visual(encoder, drawings.images(encoder), bank, config)
    assert log[-1]["loss"] < log[0]["loss"]
    assert encoder.text_fp == text_fp
    assert encoder.image_fp != image_fp
