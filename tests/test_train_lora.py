"""Low-rank adapters: which layers get one, that they learn, and that merging leaves a plain encoder."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path

import drawings
import pytest
import small_clip
import torch
from torch import Tensor, nn

from vlltr_index.bank import AnchorBank
from vlltr_index.encoder import Encoder
from vlltr_index.errors import ConfigError
from vlltr_index.schemas.config import CVLPConfig, LGRConfig, LoRAConfig
from vlltr_index.train.cvlp import train_cvlp
from vlltr_index.train.lora import adapted, lora_targets
from vlltr_index.train.recognition import tune_visual

CONFIG = LoRAConfig(rank=2, alpha=4.0)


@pytest.fixture(scope="module")
def _registered(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    small_clip.register(tmp_path_factory.mktemp("models"))
    return


def vit() -> Encoder:
    return Encoder.scratch(small_clip.NAME, seed=0, device="cpu")


def learn(encoder: Encoder, visual_only: bool) -> tuple[list[str], Tensor, Tensor]:
    """One large step inside the block; names that learn, and both towers' features within it."""
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
    return list(named), *inside


@pytest.mark.parametrize("visual_only", [False, True])
@pytest.mark.usefixtures("_registered")
def test_adapters_on_a_vit_reach_attention_and_mlp(visual_only: bool) -> None:
    """Packed attention and both MLP layers learn; after the merge names, types and all other weights are as before."""
    encoder = vit()
    before = {k: v.clone() for k, v in encoder.model.state_dict().items()}
    text_fp, image_fp = encoder.text_fp, encoder.image_fp
    names, *_ = learn(encoder, visual_only)
    assert all("lora_" in name for name in names)
    assert any("attn" in name for name in names)
    assert any("c_fc" in name for name in names)
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
    assert all(p.requires_grad for p in encoder.model.parameters())


def test_adapters_on_convolutions(tmp_path: Path) -> None:
    """`vlltr-tiny` learns through its convolutions, and what is saved is a plain checkpoint."""
    encoder = drawings.encoder()
    names, *_ = learn(encoder, visual_only=True)
    assert any("stages" in name for name in names)
    encoder.save(tmp_path)
    assert drawings.same_weights(Encoder.open(tmp_path, device="cpu"), encoder)


def test_layers_whose_weights_others_read_get_none() -> None:
    """The projections inside attention and CLIP's attention pooling are not called, so an adapter would do nothing."""

    class AttentionPool2d(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.q_proj = nn.Linear(4, 4)

    model = nn.Module()
    model.visual = nn.ModuleDict(
        {
            "attnpool": AttentionPool2d(),
            "attn": nn.MultiheadAttention(4, 2),
            "other": nn.MultiheadAttention(4, 2, kdim=3, vdim=3),
            "conv": nn.Conv2d(4, 4, 3),
            "grouped": nn.Conv2d(4, 4, 3, groups=2),
        }
    )
    model.text = nn.ModuleDict({"fc": nn.Linear(4, 4)})
    assert lora_targets(model, True, True) == (["visual.conv"], ["visual.attn.in_proj_weight"])
    assert lora_targets(model, False, False) == (["visual.conv", "text.fc"], [])


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


def bank(encoder: Encoder) -> AnchorBank:
    flat = [t for group in drawings.texts() for t in group]
    return AnchorBank.build(encoder.encode_texts(flat), torch.arange(8).repeat_interleave(3), torch.arange(8))


def test_stage_1_trains_adapters_and_resumes(tmp_path: Path) -> None:
    """The loss falls, norms and embeddings stay, the scale learns, and an interrupted run ends the same."""
    config = CVLPConfig(
        tune="lora", lora=CONFIG, epochs=3, batch_size=16, lr=1e-2, joint_weight=1.0, extra_classes=4,
        augment=drawings.AUGMENT,
    )  # fmt: skip

    def fit(run_dir: Path | None = None, stop: int | None = None) -> tuple[Encoder, list[dict[str, float]]]:
        encoder = drawings.encoder()

        def watch(step: str, done: int, total: int | None) -> None:
            if done == stop:
                raise KeyboardInterrupt

        images, texts = drawings.images(encoder), drawings.sentences(encoder)
        stage = train_cvlp(encoder, images, texts, config, run_dir=run_dir, progress=watch)
        return encoder, stage.log

    encoder, log = fit()
    assert log[-1]["loss"] < log[0]["loss"]
    start, end = drawings.encoder().model.state_dict(), encoder.model.state_dict()
    changed = {k for k in end if not torch.equal(start[k], end[k])}
    assert "logit_scale" in changed
    assert not any("ln_" in k or "running" in k or k == "token_embedding.weight" for k in changed)
    with pytest.raises(KeyboardInterrupt):
        fit(tmp_path, stop=7)
    assert drawings.same_weights(fit(tmp_path)[0], encoder)


def test_stage_2_tunes_the_visual_tower_through_adapters() -> None:
    """The text tower stays, the visual one moves less far than its weights are many, and the loss falls."""
    encoder = drawings.encoder()
    text_fp, image_fp = encoder.text_fp, encoder.image_fp
    config = LGRConfig(
        tune="lora", lora=CONFIG, epochs=3, batch_size=16, lr=1e-2, encoder_lr=1e-2, augment=drawings.AUGMENT
    )
    _, log = tune_visual(encoder, drawings.images(encoder), bank(encoder), config)
    assert log[-1]["loss"] < log[0]["loss"]
    assert encoder.text_fp == text_fp
    assert encoder.image_fp != image_fp
