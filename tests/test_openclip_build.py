"""Building a model whose weights are to be loaded: nothing is drawn, and nothing of that is left afterwards."""

from __future__ import annotations

from pathlib import Path

import torch

from vlltr_index import openclip
from vlltr_index.encoder import Encoder
from vlltr_index.tensors import NoDraws


def test_weights_that_are_loaded_are_not_drawn_first() -> None:
    """The generator is not moved on by more than shapes need, and the model equals one that was drawn and loaded."""
    config = openclip.find_config("vlltr-tiny")
    config["model_cfg"]["text_cfg"]["vocab_size"] = 12
    torch.manual_seed(3)
    drawn = openclip.build_model(config["model_cfg"])
    with NoDraws():
        empty = openclip.build_model(config["model_cfg"])
    openclip.load_state(empty, drawn.state_dict(), "here")
    for name, value in drawn.state_dict().items():
        assert torch.equal(value, empty.state_dict()[name]), name
    ids = torch.ones(2, 5, dtype=torch.int64)
    assert torch.equal(openclip.encode_text(drawn.eval(), ids), openclip.encode_text(empty.eval(), ids))
    assert float(torch.zeros(100).normal_().std()) > 0.5  # drawing works again


def test_saved_and_opened_encoders_agree(tmp_path: Path) -> None:
    """Features of an encoder that was saved and opened are the same, bit for bit."""
    first = Encoder.scratch("vlltr-tiny", ["a small red bird"], device="cpu")
    first.save(tmp_path)
    second = Encoder.open(tmp_path, device="cpu")
    pixels = torch.rand(2, 3, 32, 32)
    assert torch.equal(first.eval().encode_pixels(pixels), second.eval().encode_pixels(pixels))
    assert (first.image_fp, first.text_fp) == (second.image_fp, second.text_fp)
