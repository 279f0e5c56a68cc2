"""Where an encoder's weights come from, and what has to be known with them: activation and preprocessing."""

from __future__ import annotations

import hashlib
import logging
from dataclasses import dataclass, replace
from difflib import get_close_matches
from importlib.resources import files
from pathlib import Path
from typing import Any

from torch import Tensor

from vlltr_index import openclip
from vlltr_index.errors import EncoderError
from vlltr_index.weights import OPENAI_MARKS, half_with_float_norms, read_json, read_weights

__all__ = ["ENCODER_FILE", "Source", "check_source", "locate_folder", "read_source", "set_image_size"]

_log = logging.getLogger(__name__)

ENCODER_FILE = "encoder.json"
"""What a folder written by `Encoder.save` is known by."""

_CONFIG_FILE = "open_clip_config.json"
_WEIGHT_FILES = (
    "open_clip_model.safetensors",
    "open_clip_pytorch_model.safetensors",
    "model.safetensors",
    "open_clip_pytorch_model.bin",
    "open_clip_pytorch_model.pth",
    "pytorch_model.bin",
)
_PACKAGED = {("vlltr-tiny", "glyphs"): ("vlltr_index.recipes.glyphs_lt", "pretrained")}
"""Weights that ship with the package: (model, tag) -> package and the folder of `Encoder.save` in it."""
_MARKED = "the entries that only OpenAI's files have"


@dataclass(frozen=True)
class Source:
    """Weights and the configuration they need; `folder` is where tokenizer files may lie."""

    name: str
    config: dict[str, Any]
    state: dict[str, Tensor]
    where: str
    folder: Path | None = None


@dataclass(frozen=True)
class _Known:
    """What is certain about weights: their activation and preprocessing, and who says so."""

    quick_gelu: bool
    preprocess: dict[str, Any]
    who: str


def locate_folder(model: str, pretrained: str | None) -> Path | None:
    """The local folder that is meant, if one is: `FOLDER`, `local-dir:FOLDER`, a folder in place of a tag, or ours.

    Raises:
        EncoderError: If `local-dir:` names no folder, or weights of ours are not in this installation.
    """
    if (model, pretrained) in _PACKAGED:
        return _packaged(model, str(pretrained))
    if model == "local-dir" or model.startswith("local-dir:"):
        folder = Path(pretrained or model.partition(":")[2])
        if not folder.is_dir():
            raise EncoderError(f"no such folder: {folder}", "Check the path.")
        return folder
    if pretrained is not None:
        is_tag = openclip.find_tag(model, pretrained) is not None
        return Path(pretrained) if Path(pretrained).is_dir() and not is_tag else None
    return Path(model) if Path(model).is_dir() else None


def _packaged(model: str, tag: str) -> Path:
    package, name = _PACKAGED[model, tag]
    folder = Path(str(files(package))) / name
    if not (folder / ENCODER_FILE).is_file():
        raise EncoderError(
            f"the weights {model}:{tag} are not in this installation", "Install the package again."
        )
    return folder


def check_source(model: str, pretrained: str | None) -> None:
    """See whether there can be such an encoder, before anything is loaded or fetched.

    Raises:
        EncoderError: If no model has that name, or it has no such tag and there is no such file or folder; the hint
            names the closest.
    """
    folder = locate_folder(model, pretrained)
    if folder is not None:
        if not any((folder / name).is_file() for name in (ENCODER_FILE, _CONFIG_FILE)):
            raise _no_encoder(folder)
        return
    if model == "hf-hub" or model.startswith("hf-hub:"):
        return
    openclip.find_config(model)
    if pretrained and openclip.find_tag(model, pretrained) is None and not Path(pretrained).is_file():
        raise _no_such(model, pretrained)


def read_source(model: str, pretrained: str | None) -> Source:
    """Weights by tag, file, folder or hub repository, with the right activation and preprocessing.

    Args:
        model: A name that open_clip knows, `local-dir:FOLDER`, or `hf-hub:OWNER/NAME`.
        pretrained: A tag, a file, or a folder in open_clip's layout.

    Raises:
        EncoderError: If there are none, they cannot be fetched or read, or their activation is in doubt.
    """
    folder = locate_folder(model, pretrained)
    if folder is not None:
        return _from_folder(folder, None if model.startswith("local-dir") or pretrained is None else model)
    if model == "hf-hub" or model.startswith("hf-hub:"):
        return _from_folder(openclip.fetch_repository(pretrained or model.partition(":")[2]), None)
    config = openclip.find_config(model)
    if not pretrained:
        raise EncoderError(
            f"no weights are named for {model}",
            f"Name a tag or a file: vlltr init DIR --encoder {model}:FILE",
        )
    tag = openclip.find_tag(model, pretrained)
    if tag is not None:
        where = f"{model}:{pretrained}"
        known = _Known(bool(tag.get("quick_gelu")), _preprocess(tag), "open_clip's list")
        source = _agree(Source(model, config, {}, where), known, pretrained)  # before anything is fetched
        return replace(
            source, state=_without_marks(read_weights(openclip.fetch_tag(model, pretrained, tag)))[0]
        )
    path = Path(pretrained)
    if not path.is_file():
        raise _no_such(model, pretrained)
    return _from_file(model, config, path)


def _no_such(model: str, pretrained: str) -> EncoderError:
    if Path(pretrained).suffix or "/" in pretrained:
        return EncoderError(f"no such file: {pretrained}", "Check the path.")
    tags = [*openclip.tags_of(model), *(tag for name, tag in _PACKAGED if name == model)]
    close = get_close_matches(pretrained, tags, n=1)
    meant = f"Did you mean {model}:{close[0]}? " if close else ""
    return EncoderError(
        f"{model} has no weights called {pretrained!r}, and there is no such file",
        f"{meant}Its tags: {', '.join(tags)}."
        if tags
        else f"It has no tags; name a file: --encoder {model}:FILE",
    )


def _no_encoder(folder: Path) -> EncoderError:
    return EncoderError(
        f"{folder} holds no encoder: neither {ENCODER_FILE} nor {_CONFIG_FILE} with a model_cfg",
        "A local folder needs open_clip_config.json and open_clip_model.safetensors.",
    )


def _from_folder(folder: Path, model: str | None) -> Source:
    """open_clip's layout: its configuration beside its weights; `model`, where given, must describe the same."""
    facts = read_json(folder / _CONFIG_FILE) if (folder / _CONFIG_FILE).is_file() else None
    if facts is None or not isinstance(facts.get("model_cfg"), dict):
        raise _no_encoder(folder)
    if model is not None and not _same_architecture(
        openclip.find_config(model)["model_cfg"], facts["model_cfg"]
    ):
        raise EncoderError(
            f"{folder} holds another model than {model}",
            f"Take what the folder says: vlltr init DIR --encoder local-dir:{folder}",
        )
    files = [folder / name for name in _WEIGHT_FILES if (folder / name).is_file()]
    if not files:
        raise EncoderError(
            f"{folder} holds no weights", f"One of these is looked for: {', '.join(_WEIGHT_FILES)}."
        )
    state, openai = _without_marks(read_weights(files[0]))
    pre = {**openclip.default_preprocess(), **_preprocess(facts.get("preprocess_cfg") or {})}
    config = {"model_cfg": facts["model_cfg"], "preprocess_cfg": pre, "tokenizer": "open_clip"}
    source = Source(model or folder.name, config, state, str(files[0]), folder)
    return _agree(source, _Known(True, {}, _MARKED), None) if openai else source


def _from_file(model: str, config: dict[str, Any], path: Path) -> Source:
    state, openai = _without_marks(read_weights(path))
    source = Source(model, config, state, str(path))
    known = _beside(config, path) or _by_name(config, path)
    if openai:
        known = _Known(True, known.preprocess if known else {}, _MARKED)
    if known is not None:
        return _agree(source, known, str(path))
    twin = openclip.quick_gelu_twin(model)
    if twin is None:
        return source
    if half_with_float_norms(state) or "openai" in path.name.lower():
        raise EncoderError(
            f"{path} looks like OpenAI's weights, which need the QuickGELU activation; {model} has plain GELU",
            f"Run: vlltr init DIR --encoder {twin}:{path}\n"
            f'(If it was trained with plain GELU, say so in an {_CONFIG_FILE} beside the file: "quick_gelu": false.)',
        )
    _log.warning(
        "%s does not say whether it was trained with QuickGELU; it is loaded as %s, with plain GELU. "
        "Weights of OpenAI, MetaCLIP and DFN need %s:%s",
        path,
        model,
        twin,
        path,
    )
    return source


def _agree(source: Source, known: _Known, pretrained: str | None) -> Source:
    """`source` with the activation and preprocessing that its weights are known to need.

    Raises:
        EncoderError: If the model's name asks for QuickGELU and the weights are known to have been trained without.
    """
    config = source.config
    named = bool(config["model_cfg"].get("quick_gelu"))
    config["preprocess_cfg"] = {**config["preprocess_cfg"], **known.preprocess}
    if named and not known.quick_gelu:
        plain = source.name.removesuffix("-quickgelu")
        raise EncoderError(
            f"{source.where} was trained without QuickGELU, according to {known.who}; {source.name} has it",
            f"Run: vlltr init DIR --encoder {plain}:{pretrained}",
        )
    if named == known.quick_gelu:
        return source
    name = openclip.quick_gelu_twin(source.name) or source.name
    config["model_cfg"]["quick_gelu"] = True
    _log.warning(
        "%s was trained with QuickGELU, according to %s: it is loaded with it, as %s",
        source.where,
        known.who,
        name,
    )
    return replace(source, name=name)


def _without_marks(state: dict[str, Tensor]) -> tuple[dict[str, Tensor], bool]:
    """The weights alone, and whether OpenAI's marks were among them."""
    marked = state.keys() >= OPENAI_MARKS
    return {name: value for name, value in state.items() if name not in OPENAI_MARKS}, marked


def _preprocess(facts: dict[str, Any]) -> dict[str, Any]:
    keys = openclip.default_preprocess().keys()
    return {
        k: list(v) if isinstance(v, tuple) else v for k, v in facts.items() if k in keys and v is not None
    }


def _same_architecture(one: dict[str, Any], other: dict[str, Any]) -> bool:
    """Whether no value that both configurations give differs; the activation and what only training sees aside."""
    if one.get("embed_dim") != other.get("embed_dim"):
        return False
    aside = {"image_size", "patch_dropout", "timm_model_pretrained", "hf_model_pretrained"}
    for part in ("vision_cfg", "text_cfg"):
        a, b = one.get(part) or {}, other.get(part) or {}
        if any(a[k] != b[k] for k in a.keys() & b.keys() - aside):
            return False
    return True


def _beside(config: dict[str, Any], path: Path) -> _Known | None:
    """What an open_clip configuration beside the file says, if it describes the same model."""
    beside = path.parent / _CONFIG_FILE
    if not beside.is_file():
        return None
    facts = read_json(beside)
    cfg = facts.get("model_cfg")
    if not isinstance(cfg, dict) or not _same_architecture(config["model_cfg"], cfg):
        return None
    return _Known(bool(cfg.get("quick_gelu")), _preprocess(facts.get("preprocess_cfg") or {}), str(beside))


def _by_name(config: dict[str, Any], path: Path) -> _Known | None:
    """What open_clip knows of a file that it publishes under this name, where the digest in its address fits too."""
    digest: str | None = None
    for model, tag, facts, prefix in openclip.published_as(path.name):
        if not _same_architecture(openclip.find_config(model)["model_cfg"], config["model_cfg"]):
            continue
        if prefix:
            digest = digest or _sha256(path)
            if not digest.startswith(prefix):
                continue
        return _Known(bool(facts.get("quick_gelu")), _preprocess(facts), f"open_clip's list, {model}:{tag}")
    return None


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def set_image_size(config: dict[str, Any], image_size: int | None, resize: int | None = None) -> None:
    """Write the side in pixels into `config`, for model and preprocessing; None takes the model's own.

    Args:
        config: Changed in place.
        image_size: The side of the square that the tower sees. What `config` resizes to goes with it.
        resize: What the shorter side becomes before that square is cut out of the middle; None leaves what
            `config` says, and where it says nothing images are resized to the square's side.

    Raises:
        EncoderError: If the tower cannot take images of that size.
    """
    vision, pre = config["model_cfg"]["vision_cfg"], config["preprocess_cfg"]
    if image_size is not None:
        if vision.get("timm_model_name") == "vlltr_tiny":
            unit = 8
        elif "timm_model_name" in vision:
            unit = 1
        else:
            unit = 32 if isinstance(vision.get("layers"), list) else int(vision.get("patch_size", 16))
        if image_size < unit or image_size % unit:
            raise EncoderError(
                f"this encoder takes images whose side is a multiple of {unit} pixels, not {image_size}",
                f"For example: --set encoder.image_size={max(unit, image_size // unit * unit)}",
            )
        vision["image_size"] = image_size
        config["resized"] = True
        if "resize" in pre:
            pre["resize"] = pre["resize"] * image_size // pre["size"]
    pre["size"] = vision.get("image_size", 224)
    if resize is not None:
        pre["resize"] = resize
