"""Text towers of transformers: what is kept of their configuration, and padding that does not matter."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from tests.support import small_clip
from vlltr_index.encoders import openclip
from vlltr_index.encoders.text_tower import check_config, masks_padding, plain_config, tower_config

BERT = {
    "model_type": "bert",
    "hidden_act": "gelu",
    "vocab_size": 50,
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "intermediate_size": 64,
    "max_position_embeddings": 16,
    "pad_token_id": 0,
}


def _model(pooler: str) -> Any:
    """A small model with a BERT, made from its configuration alone."""
    text = {
        "hf_model_name": "nobody/has-this",
        "hf_config": BERT,
        "hf_pooler_type": pooler,
        "hf_proj_type": "linear",
    }
    torch.manual_seed(0)
    cfg = {**small_clip.MODEL_CFG, "text_cfg": text}
    return openclip.build_model(cfg).eval()


@pytest.mark.slow
@pytest.mark.parametrize("pooler", ["mean_pooler", "cls_pooler", "cls_last_hidden_state_pooler"])
def test_padding_does_not_matter(pooler: str) -> None:
    """A text cut to its length has the features of the padded one."""
    model = _model(pooler)
    assert openclip.trims_exactly(model)
    ids = torch.zeros(3, 16, dtype=torch.int64)
    for row, length in enumerate((3, 5, 4)):
        ids[row, :length] = torch.randint(1, 50, (length,))
    with torch.no_grad():
        expected = model.encode_text(ids)
        torch.testing.assert_close(openclip.encode_text(model, ids[:, :5]), expected, rtol=1e-5, atol=1e-6)


@pytest.mark.slow
def test_the_configuration_is_enough_to_build_it_again() -> None:
    """Of what transformers states, numbers and kinds are kept: no name, no version, no address."""
    model = _model("mean_pooler")
    kept = tower_config(model)
    assert kept is not None
    assert kept.items() >= BERT.items()
    assert not {"_name_or_path", "transformers_version", "architectures"} & kept.keys()
    check_config(kept)


def test_other_text_towers_have_none() -> None:
    """They are described by open_clip's own configuration."""
    model = small_clip.make()
    assert tower_config(model) is None
    assert not masks_padding(model)


@pytest.mark.parametrize(
    ("facts", "why"),
    [
        (["bert"], "hf_config is of none of the text towers"),
        ({"hidden_size": 32}, "hf_config is of none of the text towers"),
        ({**BERT, "model_type": "clip"}, "hf_config is of none of the text towers"),
        (
            {**BERT, "_name_or_path": "user/evil"},
            "'_name_or_path' is no setting of a text tower: 'user/evil'",
        ),
        ({**BERT, "layer_norm_eps": float("nan")}, "'layer_norm_eps' is no setting of a text tower: nan"),
        ({**BERT, "quantization_config": {"a": 1}}, "'quantization_config' is no setting of a text tower"),
    ],
)
def test_settings_that_could_name_something_are_refused(facts: Any, why: str) -> None:
    """They are left out where an encoder is saved."""
    with pytest.raises(ValueError, match=why):
        check_config(facts)
    if isinstance(facts, dict) and facts.get("model_type") == "bert":
        assert plain_config(facts) == {key: BERT[key] for key in BERT if key in plain_config(facts)}
