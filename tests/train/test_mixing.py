"""Mixup and cutmix: pixels, targets, and that only the given random numbers play a part."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import Tensor

from vlltr_index.errors import ConfigError
from vlltr_index.schemas.config import BaselineConfig, LGRConfig
from vlltr_index.train import augment
from vlltr_index.train.augment import BatchMixer
from vlltr_index.train.sampling import stream

LABELS = torch.tensor([0, 1, 2, 0])
PIXELS = torch.rand(4, 3, 8, 8, generator=torch.Generator().manual_seed(0))


def mixed(mixer: BatchMixer, *seed: object) -> tuple[Tensor, Tensor]:
    return mixer(PIXELS, LABELS, stream(*seed))


@pytest.mark.parametrize("smoothing", [0.0, 0.1])
def test_mixup_blends_pixels_and_targets_by_one_share(smoothing: float) -> None:
    """x = share * x + (1 - share) * mirrored x; targets likewise, after smoothing over all classes."""
    for step in range(5):
        image, target = mixed(BatchMixer(0.8, 0.0, smoothing, 3), step)
        hard = torch.nn.functional.one_hot(LABELS, 3) * (1 - smoothing) + smoothing / 3
        difference = (PIXELS - PIXELS.flip(0))[0]
        share = ((image - PIXELS.flip(0))[0] / difference).median()
        torch.testing.assert_close(image, share * PIXELS + (1 - share) * PIXELS.flip(0), atol=1e-5, rtol=1e-5)
        torch.testing.assert_close(target, share * hard + (1 - share) * hard.flip(0), atol=1e-5, rtol=1e-5)


def test_cutmix_pastes_a_box_and_counts_its_pixels() -> None:
    """Every pixel is one of the two images', and the target's share is that of the pixels kept."""
    for step in range(5):
        image, target = mixed(BatchMixer(0.0, 1.0, 0.0, 3), step)
        own = (image == PIXELS).all(1)
        assert bool((own | (image == PIXELS.flip(0)).all(1)).all())
        torch.testing.assert_close(target[1, 1], own[1].float().mean())
        torch.testing.assert_close(target.sum(1), torch.ones(4))


def test_the_callers_random_state_plays_no_part_and_the_pixels_stay() -> None:
    """The same generator gives the same batch; NumPy's and torch's states, and the input, are as before."""
    mixer, before = BatchMixer(0.8, 1.0, 0.1, 3), PIXELS.clone()
    np.random.seed(1)
    state = np.random.get_state()[1].copy()
    first = mixed(mixer, "a")
    assert np.array_equal(np.random.get_state()[1], state)
    np.random.seed(2)
    again, other = mixed(mixer, "a"), mixed(mixer, "b")
    assert all(torch.equal(x, y) for x, y in zip(first, again, strict=True))
    assert not torch.equal(first[0], other[0])
    assert torch.equal(PIXELS, before)


def test_nothing_to_mix_and_an_odd_batch(monkeypatch: pytest.MonkeyPatch) -> None:
    """Without either there is no mixer; a process's part of the batch must be even."""
    assert BatchMixer.of(LGRConfig(), 3) is None
    assert BatchMixer.of(LGRConfig(mixup=0.8, batch_size=6), 3) is not None
    with pytest.raises(ConfigError) as error:
        BatchMixer.of(LGRConfig(cutmix=1.0, batch_size=7), 3)
    assert (
        error.value.message
        == "mixup and cutmix pair images up: each process has 7 of the batch, which is odd"
    )
    assert error.value.hint == "Use --set lgr.batch_size=8"
    with pytest.raises(ConfigError, match=r"Use --set baseline\.batch_size=8"):
        BatchMixer.of(BaselineConfig(mixup=0.8, batch_size=7), 3)
    monkeypatch.setattr(augment, "world", lambda: (0, 2))
    with pytest.raises(ConfigError, match="each process has 3 of the batch"):
        BatchMixer.of(LGRConfig(mixup=0.8, batch_size=6), 3)
