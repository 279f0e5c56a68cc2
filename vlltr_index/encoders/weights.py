"""An encoder's weights: where they come from, what has to be known with them, reading them, and their digests."""

from __future__ import annotations

import hashlib
import json
import logging
import zipfile
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from difflib import get_close_matches
from importlib.resources import files
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Literal, TypeVar, cast

import open_clip
import torch
from open_clip.pretrained import download_pretrained_from_hf
from open_clip.transform import PreprocessCfg, merge_preprocess_dict
from safetensors.torch import load_file
from torch import Tensor

from vlltr_index.errors import EncoderError, MissingPackageError, VlltrError

OPENAI_MARKS = frozenset({"input_resolution", "context_length", "vocab_size"})
"""Entries that only OpenAI's own CLIP files have beside their weights."""

Config = dict[str, Any]
"""`model_cfg` and `preprocess_cfg` as in an open_clip_config.json, and `tokenizer`: "open_clip" or "words"."""

Precision = Literal["fp32", "tf32", "bf16"]

_Json = TypeVar("_Json", dict[str, Any], list[Any])

_log = logging.getLogger(__name__)

_OWN = "vlltr-tiny"
_SHIPPED = "glyphs"
_SAVED_FILE = "encoder.json"
_CONFIG_FILE = "open_clip_config.json"
_FORMAT = 1
_WEIGHT_FILES = (
    "open_clip_model.safetensors",
    "open_clip_pytorch_model.safetensors",
    "model.safetensors",
    "open_clip_pytorch_model.bin",
    "open_clip_pytorch_model.pth",
    "pytorch_model.bin",
)


def read_json(path: Path, kind: type[_Json]) -> _Json:
    """A JSON object (`dict`) or array (`list`).

    Raises:
        EncoderError: If the file is missing or holds something else.
    """
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise EncoderError(f"{path} cannot be read as JSON: {error}") from None
    if not isinstance(value, kind):
        raise EncoderError(f"{path} must hold a JSON {'object' if kind is dict else 'array'}")
    return value


def read_weights(path: Path) -> dict[str, Tensor]:
    """The tensors of a file, on the CPU, by name: see `tensors_in`. Nothing in the file is executed.

    Raises:
        EncoderError: If the file is missing or damaged, or holds no tensors.
    """
    if state := tensors_in(load_checkpoint(path)):
        return state
    raise EncoderError(
        f"{path} does not hold weights by name",
        "Save them with: safetensors.torch.save_file(model.state_dict(), 'FILE.safetensors')",
    )


def tensors_in(checkpoint: Any) -> dict[str, Tensor]:
    """The tensors of a training checkpoint, by name.

    Its `state_dict` or `model` is taken out, and the `module.` that data-parallel training puts before every name is
    dropped.
    """
    whole = checkpoint if isinstance(checkpoint, dict) else {}
    found = next((whole[k] for k in ("model", "state_dict") if isinstance(whole.get(k), dict)), whole)
    state = {k: v for k, v in found.items() if isinstance(k, str) and isinstance(v, Tensor)}
    if all(name.startswith("module.") for name in state):
        state = {name.removeprefix("module."): value for name, value in state.items()}
    return state


def load_checkpoint(path: Path, allowed: Sequence[type] = ()) -> Any:
    """What a file of weights holds, on the CPU: tensors, numbers, texts, lists and dictionaries of them.

    Nothing in the file is executed.

    Args:
        path: A .safetensors file, or one that torch saved.
        allowed: Classes whose instances may be in it too. Only such as merely hold values: `argparse.Namespace`.

    Raises:
        EncoderError: If the file is missing or damaged, or holds anything else.
    """
    if not path.is_file():
        raise EncoderError(f"no such file: {path}", "Check the path.")
    try:
        if path.suffix.lower() == ".safetensors":
            return load_file(str(path))
        with torch.serialization.safe_globals(list(allowed)):
            return torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # torch and safetensors raise many kinds for damaged files
        hint = "Fetch or copy it again, unpack it if it is an archive, or save its weights as .safetensors."
        if _is_torchscript(path):
            hint = (
                "It is a program (TorchScript). If you trust where it comes from, take the weights out once, and name "
                'the new file instead: python -c "import torch, safetensors.torch as s; '
                f"s.save_file({{k: v.clone() for k, v in torch.jit.load({path.name!r}, 'cpu').state_dict().items()}}, "
                f'{path.with_suffix(".safetensors").name!r})"'
            )
        elif not allowed:
            hint += f"\nIf it is a checkpoint of the VL-LTR release: vlltr import release {path}"
        raise EncoderError(
            f"{path} is refused: it is damaged, or holds more than tensors, and loading it could run code "
            f"({type(error).__name__})",
            hint,
        ) from None


def _is_torchscript(path: Path) -> bool:
    if not zipfile.is_zipfile(path):
        return False
    with zipfile.ZipFile(path) as archive:
        return any(name.endswith("/constants.pkl") for name in archive.namelist())


def weights_digest(tensors: Mapping[str, Tensor]) -> str:
    """SHA-256 over names, dtypes, shapes and values, in the order of the names.

    The device and the memory layout do not count, so a saved and opened copy has the same digest.
    """
    digest = hashlib.sha256()
    for name in sorted(tensors):
        value = tensors[name].detach().cpu().contiguous()
        digest.update(f"{name}\0{value.dtype}\0{tuple(value.shape)}\0".encode())
        digest.update(value.reshape(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()


def revision(tensors: Iterable[Tensor]) -> tuple[tuple[int, int], ...]:
    """Changes when one of the tensors is written in place or replaced: an optimiser's step, a load, a move."""
    return tuple((value._version, value.data_ptr()) for value in tensors)


@dataclass
class Source:
    """Weights and the configuration they need; `folder` is where a tokenizer's files may lie."""

    name: str
    config: Config
    state: dict[str, Tensor]
    where: str
    folder: Path | None = None
    precision: Precision = "fp32"


def preprocessing(facts: Config) -> Config:
    """open_clip's preprocessing, with what `facts` say of it; other facts are left out."""
    merged = merge_preprocess_dict(PreprocessCfg(), facts)
    return cast(Config, json.loads(json.dumps(merged)))  # lists for tuples, as they come back from a file


def find_config(model: str) -> Config:
    """The configuration of `vlltr-tiny`, or of a model that open_clip knows by name.

    Raises:
        EncoderError: If there is none; the hint names the closest.
        MissingPackageError: If it needs transformers, which is not installed.
    """
    if model == _OWN:
        text = (files("vlltr_index.encoders") / f"{_OWN}.json").read_text(encoding="utf-8")
        return cast(Config, json.loads(text))
    cfg = open_clip.get_model_config(model.replace("/", "-"))
    if cfg is None:
        close = get_close_matches(model, [_OWN, *open_clip.list_models()], n=3, cutoff=0.5)
        raise EncoderError(
            f"no encoder is called {model!r}",
            (f"Did you mean {' or '.join(close)}? " if close else "For example ViT-B-16-quickgelu:openai. ")
            + "`python -c 'import open_clip; print(open_clip.list_models())'` lists them.",
        )
    _check_packages(model, cfg)
    return {"model_cfg": cfg, "preprocess_cfg": preprocessing({}), "tokenizer": "open_clip"}


def _check_packages(name: str, model_cfg: Config) -> None:
    """See whether what a model's text side is made with is installed."""
    text = model_cfg.get("text_cfg") or {}
    part = text.get("hf_model_name") or text.get("hf_tokenizer_name")
    if part and find_spec("transformers") is None:
        raise MissingPackageError(
            f"the encoder {name} needs transformers, for {part}; it is not installed",
            'Run: pip install "vlltr-index[hf]"',
        )


def check_source(model: str, pretrained: str | None, image_size: int | None = None) -> None:
    """See whether there can be such an encoder, before anything is loaded or fetched.

    Raises:
        EncoderError: If no model has that name, or it has no such tag and there is no such file or folder. If it cannot
            take images of that size.
        MissingPackageError: If it needs transformers, which is not installed.
    """
    folder = _find_folder(model, pretrained)
    if folder is not None:
        set_image_size(_describe(folder)["config"], image_size)
    elif model.partition(":")[0] != "hf-hub":
        set_image_size(find_config(model), image_size)
        if pretrained:
            _tag_or_file(model, pretrained)


def read_source(model: str, pretrained: str | None) -> Source:
    """Weights by tag, file, folder or hub repository, with the right activation and preprocessing.

    Args:
        model: A name that open_clip knows, a folder, `local-dir:FOLDER`, or `hf-hub:OWNER/NAME[@REVISION]`.
        pretrained: A tag, a file or a folder.

    Raises:
        EncoderError: If there are none, or they cannot be fetched or read.
    """
    folder = _find_folder(model, pretrained)
    scheme, _, repository = model.partition(":")
    what = ":".join(filter(None, (model, pretrained)))
    try:
        if folder is None and scheme == "hf-hub":
            return _from_hub(pretrained or repository)
        if folder is not None:
            return _from_folder(folder)
        config = find_config(model)
        if not pretrained:
            raise EncoderError(
                f"no weights are named for {model}",
                f"Name a tag or a file: vlltr init DIR --encoder {model}:FILE",
            )
        tag = _tag_or_file(model, pretrained)
        if not tag:
            return _from_file(model, config, Path(pretrained))
        path = Path(open_clip.download_pretrained(tag))
    except VlltrError:
        raise
    except (OSError, RuntimeError) as error:  # what the network, the hub and the file system raise
        raise EncoderError(
            f"the weights {what} are not on this machine, and cannot be downloaded: {type(error).__name__}: "
            f"{str(error).partition(chr(10))[0]}",
            "Without a network, copy the file here and name it instead: "
            "vlltr init DIR --encoder MODEL:/path/to/open_clip_model.safetensors",
        ) from error
    config["preprocess_cfg"] = preprocessing(tag)
    return _settle(
        Source(model, config, read_weights(path), what), bool(tag.get("quick_gelu")), "open_clip's list"
    )


def _find_folder(model: str, pretrained: str | None) -> Path | None:
    """The local folder that is meant, if one is: `FOLDER`, `local-dir:FOLDER`, a folder in place of a tag, or ours."""
    if (model, pretrained) == (_OWN, _SHIPPED):
        return Path(str(files("vlltr_index.recipes.glyphs_lt"))) / "pretrained"
    scheme, _, rest = model.partition(":")
    folder = Path(pretrained or (rest if scheme == "local-dir" else model))
    if scheme == "local-dir" and not folder.is_dir():
        raise EncoderError(f"no such folder: {folder}", "Check the path.")
    return folder if folder.is_dir() and not _tag(model, pretrained or "") else None


def _tag(model: str, tag: str) -> Config:
    """What open_clip knows of a tag of the model or of its twin with plain GELU; nothing where there is none."""
    name = model.replace("/", "-")
    plain = name.removesuffix("-quickgelu")
    return dict(open_clip.get_pretrained_cfg(name, tag) or open_clip.get_pretrained_cfg(plain, tag))


def _tag_or_file(model: str, pretrained: str) -> Config:
    """What open_clip knows of a tag; nothing where `pretrained` is a file."""
    tag = _tag(model, pretrained)
    if not tag and not Path(pretrained).is_file():
        tags = (
            [_SHIPPED] if model == _OWN else open_clip.list_pretrained_tags_by_model(model.replace("/", "-"))
        )
        raise EncoderError(
            f"{model} has no weights called {pretrained!r}, and there is no such file",
            f"Its tags: {', '.join(tags) or 'none'}. Or name a file: --encoder {model}:FILE",
        )
    return tag


def _describe(folder: Path) -> dict[str, Any]:
    """What a folder says of its encoder: `config`, and where `Encoder.save` wrote it, `name` and `precision`."""
    try:
        if (folder / _SAVED_FILE).is_file():
            facts = read_json(folder / _SAVED_FILE, dict)
            if facts["format"] != _FORMAT:
                raise EncoderError(
                    f"{folder / _SAVED_FILE} has format {facts['format']!r}, this program reads {_FORMAT}",
                    "Run: pip install -U vlltr-index",
                )
            _check_packages(str(folder), facts["config"]["model_cfg"])
            return facts
        if (folder / _CONFIG_FILE).is_file():
            facts = read_json(folder / _CONFIG_FILE, dict)
            cfg = facts["model_cfg"]
            pre = preprocessing(facts.get("preprocess_cfg") or {})
            _check_packages(str(folder), cfg)
            return {"config": {"model_cfg": cfg, "preprocess_cfg": pre, "tokenizer": "open_clip"}}
    except (KeyError, TypeError, AttributeError) as error:
        raise EncoderError(f"what describes the encoder {folder} is damaged: {error!r}") from error
    raise EncoderError(
        f"{folder} holds no encoder: neither {_SAVED_FILE} nor {_CONFIG_FILE}",
        "A local folder needs open_clip_config.json and open_clip_model.safetensors.",
    )


def _from_folder(folder: Path, name: str | None = None) -> Source:
    """What `Encoder.save` wrote, or open_clip's layout: its configuration beside its weights."""
    facts = _describe(folder)
    config = facts["config"]
    called = facts.get("name") or name or folder.name
    found = next((folder / name for name in _WEIGHT_FILES if (folder / name).is_file()), None)
    if found is None:
        raise EncoderError(
            f"{folder} holds no weights", f"One of these is looked for: {', '.join(_WEIGHT_FILES)}."
        )
    source = Source(called, config, read_weights(found), str(found), folder, facts.get("precision", "fp32"))
    saved = "format" in facts
    return source if saved else _settle(source, bool(config["model_cfg"].get("quick_gelu")), _CONFIG_FILE)


def _from_hub(repository: str) -> Source:
    """A repository in open_clip's layout, at a revision or the newest; its name says at which commit it was read."""
    owner_name, _, wanted = repository.partition("@")
    # The folder is called by the commit, which the weights are then taken from too.
    folder = Path(download_pretrained_from_hf(owner_name, _CONFIG_FILE, wanted or None)).parent
    _describe(folder)
    download_pretrained_from_hf(owner_name, revision=folder.name)
    return _from_folder(folder, f"hf-hub:{owner_name}@{folder.name}")


def _from_file(model: str, config: Config, path: Path) -> Source:
    """A named model's weights; an open_clip configuration beside the file is believed if it is the model's."""
    beside = path.parent / _CONFIG_FILE
    known = None
    facts = read_json(beside, dict) if beside.is_file() else {}
    cfg = facts.get("model_cfg") or {}
    if {**config["model_cfg"], "quick_gelu": None} == {**cfg, "quick_gelu": None}:
        known = bool(cfg.get("quick_gelu"))
        config["preprocess_cfg"] = preprocessing(facts.get("preprocess_cfg") or {})
    return _settle(Source(model, config, read_weights(path), str(path)), known, str(beside))


def _settle(source: Source, known: bool | None, who: str) -> Source:
    """Give `source` the activation that its weights were trained with, where that is known, and say so.

    Args:
        source: Changed in place. OpenAI's marks, which prove QuickGELU, are taken out of its weights.
        known: Whether they were trained with QuickGELU; None where nothing says so.
        who: Who says so.
    """
    if source.state.keys() >= OPENAI_MARKS:
        known = True
        who = "the entries that only OpenAI's files have"
        source.state = {name: value for name, value in source.state.items() if name not in OPENAI_MARKS}
    cfg = source.config["model_cfg"]
    twin = source.name.replace("/", "-") + "-quickgelu"
    named = bool(cfg.get("quick_gelu"))
    has_twin = twin in open_clip.list_models()
    if known is None and has_twin and not named:
        _log.warning(
            "%s does not say whether it was trained with QuickGELU; it is loaded as %s, with plain GELU. "
            "Weights of OpenAI, MetaCLIP and DFN need %s:%s",
            *(source.where, source.name, twin, source.where),
        )
    if known in (None, named):
        return source
    if known:
        cfg["quick_gelu"] = True
        source.name = twin if has_twin else source.name
    else:
        del cfg["quick_gelu"]
        source.name = source.name.removesuffix("-quickgelu")
    _log.warning(
        "%s was trained %s QuickGELU, according to %s: it is loaded so, as %s",
        *(source.where, "with" if known else "without", who, source.name),
    )
    return source


def check_side(image_size: int, unit: int) -> None:
    """See whether patches (or strides) of `unit` pixels fill a side of `image_size` pixels.

    Raises:
        EncoderError: If they do not.
    """
    if image_size < unit or image_size % unit:
        raise EncoderError(
            f"this encoder takes images whose side is a multiple of {unit} pixels, not {image_size}",
            f"For example: --set encoder.image_size={max(unit, image_size // unit * unit)}",
        )


def set_image_size(config: Config, image_size: int | None, resize: int | None = None) -> None:
    """Write the side in pixels into `config`, for model and preprocessing; None takes the model's own.

    Args:
        config: Changed in place.
        image_size: The side of the square that the tower sees. What `config` resizes to goes with it.
        resize: What the shorter side becomes before that square is cut out of the middle; None leaves what
            `config` says, and where it says nothing images are resized to the square's side.

    Raises:
        EncoderError: If the tower cannot take images of that size, or takes others than squares of one size.
    """
    vision = config["model_cfg"].setdefault("vision_cfg", {})
    pre = config["preprocess_cfg"]
    sides = vision.get("image_size", 224)
    timm_name = str(vision.get("timm_model_name", ""))
    if isinstance(sides, list | tuple):
        vision["image_size"], sides = sides[0], set(sides)
    if "naflex" in timm_name or (isinstance(sides, set) and len(sides) > 1):
        raise EncoderError(
            f"this encoder takes images of {'any shape' if 'naflex' in timm_name else 'oblong shape'}; images are "
            "squares of one size here, in preprocessing, augmentation and crops",
            "Name one that takes squares, such as --encoder ViT-B-16-SigLIP2:webli",
        )
    if image_size is not None:
        unit = 8 if timm_name == "vlltr_tiny" else 1
        if not timm_name:
            unit = 32 if isinstance(vision.get("layers"), list) else vision.get("patch_size", 16)
        check_side(image_size, unit)
        vision["image_size"] = image_size
        config["resized"] = True
        if "resize" in pre:
            pre["resize"] = pre["resize"] * image_size // pre["size"]
    pre["size"] = vision.get("image_size", 224)
    if resize is not None:
        pre["resize"] = resize
