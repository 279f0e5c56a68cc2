"""Encoders of the kinds that people use, two layers deep: saved, opened without a network, trained a step, exported."""

from __future__ import annotations

import json
import shutil
import socket
from pathlib import Path
from typing import Any
from unittest.mock import Mock

import pytest
import torch
from safetensors.torch import save_file
from timm.models import register_model
from timm.models.eva import Eva
from timm.models.fastvit import FastVit
from timm.models.vision_transformer import VisionTransformer

from tests.support import drawings
from vlltr_index import Recognizer
from vlltr_index.encoders import openclip, weights
from vlltr_index.encoders.encoder import Encoder
from vlltr_index.encoders.openclip import HubTokenizer
from vlltr_index.errors import MissingPackageError
from vlltr_index.pipelines.train_all import train_all
from vlltr_index.recognition.exported.onnx_folder import export_onnx
from vlltr_index.recognition.exported.writing import export_model

SENTENCES = ["a drawing of one ring", "The Cross, made of lines!", "wave " * 90]
_SIDE = {"img_size": 32, "patch_size": 8, "embed_dim": 64, "depth": 2, "num_heads": 2}


@register_model
def vlltr_test_siglip(num_classes: int, global_pool: str, **_: Any) -> VisionTransformer:
    """SigLIP's image tower: no class token, pooled by attention."""
    return VisionTransformer(**_SIDE, class_token=False, num_classes=num_classes, global_pool=global_pool)


@register_model
def vlltr_test_pe(num_classes: int, global_pool: str, **_: Any) -> Eva:
    """PE-Core's image tower: rotary positions beside learned ones."""
    return Eva(
        **_SIDE,
        use_rot_pos_emb=True,
        ref_feat_shape=(4, 4),
        attn_pool_num_heads=2,
        num_classes=num_classes,
        global_pool=global_pool,
    )


@register_model
def vlltr_test_fastvit(num_classes: int, global_pool: str, **_: Any) -> FastVit:
    """MobileCLIP2's image tower: convolutions that mix tokens."""
    return FastVit(
        layers=(1, 1, 1, 1),
        embed_dims=(8, 16, 32, 64),
        mlp_ratios=(2, 2, 2, 2),
        num_classes=num_classes,
        global_pool=global_pool,
    )


_TEXT = {"vocab_size": 49408, "width": 64, "heads": 2, "layers": 2}
_HUB = {"hf_tokenizer_name": "nobody/has-this", "vocab_size": 120, "width": 64, "heads": 2, "layers": 2}
_VIT = {"image_size": 32, "layers": 2, "width": 64, "head_width": 32, "patch_size": 8}


def _timm(name: str, pool: str, proj: str | None) -> dict[str, Any]:
    return {"image_size": 32, "timm_model_name": name, "timm_pool": pool, "timm_proj": proj}


FAMILIES: dict[str, dict[str, Any]] = {
    "SigLIP 2": {
        "init_logit_bias": -10,
        "custom_text": True,
        "vision_cfg": _timm("vlltr_test_siglip", "map", "none"),
        "text_cfg": {
            **_HUB,
            "context_length": 24,
            "tokenizer_kwargs": {"clean": "canonicalize"},
            "no_causal_mask": True,
            "proj_bias": True,
            "pool_type": "last",
            "norm_kwargs": {"eps": 1e-6},
            "act_kwargs": {"approximate": "tanh"},
        },
    },
    "PE-Core": {
        "custom_text": True,
        "vision_cfg": _timm("vlltr_test_pe", "map", None),
        "text_cfg": {**_TEXT, "context_length": 32},
    },
    "MobileCLIP2": {
        "custom_text": True,
        "vision_cfg": _timm("vlltr_test_fastvit", "avg", None),
        "text_cfg": {**_TEXT, "context_length": 77, "no_causal_mask": True},
    },
    "MetaCLIP 2": {
        "quick_gelu": True,
        "vision_cfg": _VIT,
        "text_cfg": {**_HUB, "context_length": 77, "pool_type": "eos", "eos_id": 2},
    },
    "BERT": {
        "vision_cfg": _VIT,
        "text_cfg": {
            "hf_model_name": "nobody/has-this",
            "hf_tokenizer_name": "nobody/has-this",
            "hf_config": {
                "model_type": "bert",
                "hidden_act": "gelu",
                "vocab_size": 120,
                "hidden_size": 64,
                "num_hidden_layers": 2,
                "num_attention_heads": 2,
                "intermediate_size": 128,
                "max_position_embeddings": 32,
                "pad_token_id": 1,
            },
            "hf_pooler_type": "mean_pooler",
            "hf_proj_type": "linear",
            "context_length": 32,
        },
    },
    "BioCLIP 2": {"vision_cfg": _VIT, "text_cfg": {**_TEXT, "context_length": 77}},
}
GRAPHED = (
    "SigLIP 2",
    "PE-Core",
    "MobileCLIP2",
    "MetaCLIP 2",
)  # one of each image tower, of which the graph is
HALVED = ("PE-Core", "MobileCLIP2")  # graphs in float16, too: a transformer and convolutions


def _write_tokenizer(folder: Path) -> None:
    """A Hugging Face tokenizer of pieces of words, as SigLIP's and MetaCLIP 2's are, with 120 of them at most."""
    from tokenizers import Tokenizer, models, pre_tokenizers, processors, trainers
    from transformers import PreTrainedTokenizerFast

    made = Tokenizer(models.Unigram())
    made.pre_tokenizer = pre_tokenizers.Metaspace()
    special = ["<s>", "<pad>", "</s>", "<unk>"]
    trainer = trainers.UnigramTrainer(vocab_size=120, special_tokens=special, unk_token="<unk>")
    made.train_from_iterator([t for group in drawings.texts() for t in group], trainer)
    made.post_processor = processors.TemplateProcessing(
        single="<s> $A </s>", special_tokens=[("<s>", 0), ("</s>", 2)]
    )
    names = {"bos_token": "<s>", "pad_token": "<pad>", "eos_token": "</s>", "unk_token": "<unk>"}
    PreTrainedTokenizerFast(tokenizer_object=made, **names).save_pretrained(folder)


def _folder(path: Path, family: str) -> Path:
    """A folder in open_clip's layout, with random weights; its tokenizer beside them, where it is Hugging Face's."""
    path.mkdir(parents=True)
    cfg = {"embed_dim": 64, **FAMILIES[family]}
    (path / "open_clip_config.json").write_text(json.dumps({"model_cfg": cfg}), encoding="utf-8")
    torch.manual_seed(0)
    save_file(dict(openclip.build_model(cfg).state_dict()), str(path / "open_clip_model.safetensors"))
    if "hf_tokenizer_name" in cfg["text_cfg"]:
        _write_tokenizer(path)
    return path


@pytest.mark.slow
@pytest.mark.parametrize("family", FAMILIES)
def test_a_family_is_saved_opened_trained_and_exported(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, family: str
) -> None:
    """The folder it came from is gone after the start: saved, trained and exported models have all they need, and the
    graph of each image tower gives the answers in onnxruntime.
    """
    monkeypatch.setattr(socket.socket, "connect", Mock(side_effect=OSError("the network is not to be used")))
    folder = _folder(tmp_path / "source", family)
    first = Encoder.load("local-dir", str(folder), device="cpu")
    first.save(tmp_path / "saved")
    again = Encoder.open(tmp_path / "saved", device="cpu")
    again.save(tmp_path / "twice")
    tokens = first.tokenize(SENTENCES)
    context = FAMILIES[family]["text_cfg"]["context_length"]
    assert torch.equal(again.tokenize(SENTENCES).ids, tokens.ids)
    assert (tokens.ids.shape[1], tokens.truncated) == (context, 1)
    assert (again.text_fp, again.image_fp) == (first.text_fp, first.image_fp)
    assert torch.equal(again.encode_texts(SENTENCES), first.encode_texts(SENTENCES))
    for path in (tmp_path / "saved").iterdir():
        assert path.read_bytes() == (tmp_path / "twice" / path.name).read_bytes()

    settings = (
        "cvlp.epochs=1",
        "cvlp.batch_size=16",
        "lgr.epochs=1",
        "lgr.views=1",
        f"encoder.pretrained={folder}",
    )
    workspace = drawings.workspace(tmp_path, "encoder.model=local-dir", *settings)
    train_all(workspace, workspace.recipe)
    shutil.rmtree(folder)
    bias = drawings.trained_tensors(workspace).get("logit_bias")
    assert bias is None if family != "SigLIP 2" else bias is not None and bias != -10
    picture = next((tmp_path / "images" / "ring").iterdir())
    answer = Recognizer.open(workspace.address).predict([str(picture)])[0]
    assert answer.classes[0].name in drawings.WORDS
    if family in GRAPHED:
        export_onnx(workspace, tmp_path / "graph", float16=family in HALVED)
    export_model(workspace, tmp_path / "model")
    shutil.rmtree(workspace.address)
    exported = Recognizer.from_pretrained(str(tmp_path / "model"))
    assert exported.predict([str(picture)])[0].classes[0].name == answer.classes[0].name


@pytest.mark.slow
def test_a_saved_hub_tokenizer_gives_the_same_ids(tmp_path: Path) -> None:
    """Also after it was used, which sets how transformers' tokenizer cuts and pads; cut texts keep their end."""
    folder = _folder(tmp_path / "source", "SigLIP 2")
    tokenizer = openclip.make_tokenizer(json.loads((folder / "open_clip_config.json").read_text()), folder)
    assert isinstance(tokenizer, HubTokenizer)
    found = tokenizer(SENTENCES)
    tokenizer.save(tmp_path)
    facts = json.loads((tmp_path / "tokenizer_config.json").read_text())
    assert facts["tokenizer_class"] == "PreTrainedTokenizerFast"
    again = openclip.make_tokenizer(json.loads((folder / "open_clip_config.json").read_text()), tmp_path)
    assert torch.equal(again(SENTENCES).ids, found.ids)
    assert again.identity() == tokenizer.identity()
    assert found.ids[2, -1] == 2
    assert int(found.lengths[2]) > found.ids.shape[1] == 24
    assert bool((found.ids[0, found.lengths[0] :] == 1).all())  # <pad>, to the whole context
    # SigLIP's texts are cleaned as open_clip cleans them: lower case, no punctuation.
    assert torch.equal(
        tokenizer(["The Cross, made of lines!"]).ids, tokenizer(["the cross made of lines"]).ids
    )


def test_without_transformers_the_encoder_is_refused_before_anything_is_fetched(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """By name, from a folder and at `init`; the message names the part and the command."""
    monkeypatch.setattr(weights, "find_spec", lambda name: None)
    monkeypatch.setattr("open_clip.download_pretrained", lambda tag: pytest.fail("fetched"))
    for call in (Encoder.load, weights.check_source):
        with pytest.raises(MissingPackageError) as caught:
            call("ViT-B-16-SigLIP2", "webli")
        assert str(caught.value) == (
            "the encoder ViT-B-16-SigLIP2 needs transformers, for timm/ViT-B-16-SigLIP2; it is not installed\n"
            'Run: pip install "vlltr-index[hf]"'
        )
    cfg = {"embed_dim": 64, **FAMILIES["MetaCLIP 2"]}
    (tmp_path / "open_clip_config.json").write_text(json.dumps({"model_cfg": cfg}), encoding="utf-8")
    (tmp_path / "open_clip_model.safetensors").write_bytes(b"not read")
    for call in (Encoder.load, weights.check_source):
        with pytest.raises(MissingPackageError, match="for nobody/has-this"):
            call("local-dir", str(tmp_path))
