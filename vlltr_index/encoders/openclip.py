"""Models, tokenizers and preprocessing of open_clip by plain functions, and our own of `vlltr-tiny`."""

from __future__ import annotations

import json
import re
import textwrap
from abc import ABC, abstractmethod
from collections import Counter
from collections.abc import Iterable, Sequence
from copy import copy, deepcopy
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import open_clip
import torch
from open_clip.convert import convert_state_dict
from open_clip.model import convert_to_custom_text_state_dict, resize_pos_embed
from open_clip.modified_resnet import ModifiedResNet
from open_clip.tokenizer import HFTokenizer
from open_clip.transform import PreprocessCfg, image_transform_v2
from PIL import Image
from timm.models import register_model
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.utils.fusion import fuse_conv_bn_weights
from torchvision.transforms.functional import center_crop

from vlltr_index.encoders.image_tower import Building, ImageTower
from vlltr_index.encoders.text_tower import described_here, masks_padding
from vlltr_index.encoders.weights import read_json, set_tower_size
from vlltr_index.errors import EncoderError, InputError
from vlltr_index.schemas.fingerprint import digest_json

_POSITION_IDS = "text.transformer.embeddings.position_ids"
_WORD = re.compile(r"[^\W_]+")
_MAX_WORDS = 1 << 17
_SPECIAL = tuple(f"{name}_token" for name in ("bos", "eos", "unk", "sep", "pad", "cls", "mask"))
GENERIC = "PreTrainedTokenizerFast"
"""Class of transformers for tokenizers that are fully described by a tokenizer.json."""
SAVED_KEYS = frozenset({"tokenizer_class", "padding_side", "truncation_side", *_SPECIAL})
"""Keys that a tokenizer_config.json of ours may have."""
MAX_RESIZED = 64_000_000
"""Most pixels that an image may be resized to before the square crop; a thin image becomes very long."""
_MAX_SIDE = 4096
_MAX_COLOUR, _MIN_DEVIATION = 1000.0, 1e-6
_WIDTHS = (48, 96, 192)  # widths of the stages of the image tower of `vlltr-tiny`
_GRID = 4  # side of its last feature map


def clip_templates() -> tuple[str, ...]:
    """Return the 80 prompts that CLIP was evaluated with on ImageNet; `{}` stands for the class name."""
    return tuple(template("{}") for template in open_clip.OPENAI_IMAGENET_TEMPLATES)


def known_as(model_cfg: dict[str, Any]) -> str | None:
    """Return the name under which open_clip has this configuration; None if it does not have it."""
    names = open_clip.list_models()
    return next((name for name in names if open_clip.get_model_config(name) == model_cfg), None)


def build_model(model_cfg: dict[str, Any], drawn: bool = True) -> nn.Module:
    """Build a model in float32 on torch's default device, without any download; initialise its weights if `drawn`.

    Raises:
        EncoderError: open_clip cannot build a model from this configuration.
    """
    cfg = deepcopy(model_cfg)
    try:
        if not cfg["text_cfg"]:
            with Building(drawn):
                return ImageTower(cfg["vision_cfg"])
        cfg["vision_cfg"]["timm_model_pretrained"] = False
        cfg["text_cfg"]["hf_model_pretrained"] = False
        kind = open_clip.CLIP
        if cfg.pop("custom_text", False) or "hf_model_name" in cfg["text_cfg"]:
            kind = open_clip.CoCa if "multimodal_cfg" in cfg else open_clip.CustomTextCLIP
        with Building(drawn), described_here(cfg["text_cfg"]):
            return cast(nn.Module, kind(**cfg))
    except Exception as error:  # open_clip, timm and transformers raise many kinds of errors
        raise EncoderError(
            f"open_clip cannot build this model: {type(error).__name__}: {str(error).partition(chr(10))[0]}",
            "A text tower of transformers is described on the hub: the first time, this needs a network."
            if "hf_model_name" in (text := model_cfg.get("text_cfg") or {}) and "hf_config" not in text
            else "Its configuration is damaged, or of another program.",
        ) from error


def load_state(model: nn.Module, state: dict[str, Tensor], where: str) -> None:
    """Load weights into `model` with open_clip's functions: old layouts are converted, image positions interpolated.

    `open_clip.load_checkpoint` is not used: it reads files, and does not interpolate the positions of ResNets. The
    position ids in BERT towers that an older transformers saved are left out.

    Raises:
        EncoderError: Names or shapes do not fit.
    """
    state = convert_state_dict(model, dict(state))
    if _POSITION_IDS not in model.state_dict():
        state.pop(_POSITION_IDS, None)
    if "positional_embedding" in state and not hasattr(model, "positional_embedding"):
        state = convert_to_custom_text_state_dict(state)
    try:
        resize_pos_embed(state, model)
        if isinstance(model.visual, ModifiedResNet) and "visual.attnpool.positional_embedding" in state:
            grid = SimpleNamespace(grid_size=cast(int, model.visual.image_size) // 32)
            pooling = {"visual.positional_embedding": state["visual.attnpool.positional_embedding"]}
            resize_pos_embed(pooling, SimpleNamespace(visual=grid))
            state["visual.attnpool.positional_embedding"] = pooling["visual.positional_embedding"]
        model.load_state_dict(state)
    except RuntimeError as error:
        raise EncoderError(
            f"{where} holds the weights of another model: {textwrap.shorten(str(error), 400)}",
            "Name the model that the file belongs to: vlltr init DIR --encoder MODEL:FILE",
        ) from None


def set_timm_size(model: nn.Module, image_size: int) -> None:
    """Change the input size of a timm image tower, with interpolated positions; leave other towers alone.

    Raises:
        EncoderError: The size is not a multiple of the patch size.
    """
    visual: Any = model.visual
    if hasattr(visual, "set_input_size"):
        set_tower_size(visual, image_size)


def prefer_channels_last(model: nn.Module) -> bool:
    """Lay out CLIP's ResNets with channels last (1.7 times as fast in bfloat16 on a CPU); say whether it was done."""
    if not isinstance(model.visual, ModifiedResNet):
        return False
    model.visual.to(memory_format=torch.channels_last)
    return True


def _read_words(path: Path) -> list[str]:
    """Read the words of a vocabulary."""
    words: list[Any] = read_json(path, list)
    try:
        for word in words:
            str.encode(word)  # refuses half of a surrogate pair
    except (TypeError, UnicodeEncodeError) as error:
        raise EncoderError(f"{path} must hold words: {error}") from None
    return words


def make_tokenizer(config: dict[str, Any], folder: Path | None = None) -> Tokenizer:
    """Make the tokenizer that a configuration names; CLIP's needs no network, a Hugging Face one may need it.

    Args:
        config: A model's configuration.
        folder: Folder of a word vocabulary, or of a Hugging Face tokenizer's files, which are preferred to the hub;
            nothing in them is executed.

    Raises:
        EncoderError: A word vocabulary or a Hugging Face tokenizer is named and cannot be loaded.
    """
    text = config["model_cfg"]["text_cfg"]
    if not text:
        return NoTokenizer()
    length = text.get("context_length", 77)
    options = text.get("tokenizer_kwargs") or {}
    if config.get("tokenizer") == "words" and folder is not None:
        return WordTokenizer(_read_words(folder / "words.json"), length)
    source = text.get("hf_tokenizer_name")
    if not source:
        simple = open_clip.SimpleTokenizer(context_length=length, **options)
        return BPETokenizer(simple, options.get("clean", "lower"))
    options = {**options, "tokenizer_mode": text.get("tokenizer_mode"), "trust_remote_code": False}
    if folder is not None and (folder / "tokenizer_config.json").is_file():
        source = str(folder)
        options["local_files_only"] = True
    try:
        return HubTokenizer(HFTokenizer(source, length, **options))
    except Exception as error:  # transformers raises many kinds of errors
        raise EncoderError(
            f"the tokenizer {source} cannot be loaded: {type(error).__name__}: {str(error).partition(chr(10))[0]}",
            "It is a Hugging Face tokenizer: it needs a network the first time, or its files beside "
            "open_clip_config.json: vlltr init DIR --encoder local-dir:FOLDER",
        ) from error


def check_tokens(tokenizer: Tokenizer, config: dict[str, Any], where: str) -> None:
    """Check that a tokenizer of words or of CLIP has the tokens of the text tower; some towers have more than CLIP's.

    Raises:
        EncoderError: It has not.
    """
    made, known = tokenizer.vocab_size, config["model_cfg"]["text_cfg"].get("vocab_size", 0)
    words, clip = isinstance(tokenizer, WordTokenizer), isinstance(tokenizer, BPETokenizer)
    if (words and made != known) or (clip and made > known > 0):
        raise EncoderError(
            f"the tokenizer of {where} makes {made:,} tokens, its text tower has {known:,}",
            "Bring its folder back from a backup.",
        )


def _check_numbers(cfg: PreprocessCfg) -> None:
    """Check that there are sides and colours that pixels can have.

    Raises:
        ValueError: There are not.
    """
    sides = [cfg.size] if isinstance(cfg.size, int) else list(cfg.size)
    if not all(isinstance(side, int) and 1 <= side <= _MAX_SIDE for side in sides):
        raise ValueError(f"images of {cfg.size!r} pixels a side; 1 to {_MAX_SIDE} can be")
    if len(cfg.mean) != 3 or not all(abs(mean) <= _MAX_COLOUR for mean in cfg.mean):  # NaN is not, either
        raise ValueError("mean is three finite numbers")
    if len(cfg.std) != 3 or not all(_MIN_DEVIATION <= std <= _MAX_COLOUR for std in cfg.std):
        raise ValueError("std is three finite numbers above 0")


class Preprocessing:
    """Preprocessing of a PIL image to float32 [3, H, W], normalised; it can be pickled.

    Two settings are ours: mode "L" removes the colour first; `resize` is the size before the centre crop of `size`.

    Raises:
        EncoderError: open_clip does not know the configuration.
        InputError: When called, for an image so thin that it would be resized to more than `MAX_RESIZED` pixels.
    """

    def __init__(self, preprocess_cfg: dict[str, Any]) -> None:
        cfg = dict(preprocess_cfg)
        size = cfg.get("size")
        resize = cfg.pop("resize", None)
        self._grey = cfg.get("mode") == "L"
        self._crop = None if resize is None else [size, size]
        if self._grey:
            cfg["mode"] = "RGB"
        try:
            if resize is not None and resize < size:
                raise ValueError(f"resize {resize} is less than size {size}")
            if resize is not None:
                cfg["size"] = resize
            known = PreprocessCfg(**cfg)
            _check_numbers(known)
            self._transform = image_transform_v2(known, is_train=False)
            # Pixels of the shorter side after resizing; in the other modes no side becomes longer than the square's.
            self._shorter = max(known.input_size[1:]) if known.resize_mode == "shortest" else 1
        except (TypeError, ValueError, AssertionError) as error:
            raise EncoderError(f"this preprocessing cannot be used: {preprocess_cfg}: {error}") from error

    def __call__(self, image: Image.Image) -> Tensor:
        """Preprocess one image."""
        width, height = image.size
        longer = self._shorter * max(width, height) // min(width, height)
        if longer * self._shorter > MAX_RESIZED:
            raise InputError(
                f"{width:,} x {height:,} pixels, which {longer:,} x {self._shorter:,} would be made of: more than the "
                f"{MAX_RESIZED:,} allowed"
            )
        image = image.convert("L") if self._grey else image
        try:
            pixels = cast(Tensor, self._transform(image if image.mode == "RGB" else image.convert("RGB")))
        except (
            ValueError
        ) as error:  # if the longer side is resized to the size, the shorter one may get no pixel
            raise InputError(f"{width:,} x {height:,} pixels cannot be resized: {error}") from None
        return pixels if self._crop is None else center_crop(pixels, self._crop)


def trims_exactly(model: nn.Module) -> bool:
    """Say whether padding on the right cannot matter.

    It is masked, or attention is causal and the pooled token is one of the text.
    """
    if masks_padding(model):
        return True
    part = getattr(model, "text", model)
    if getattr(part, "attn_mask", None) is None or getattr(part, "cls_emb", None) is not None:
        return False
    if getattr(part, "use_pad_mask", False):
        return False
    return getattr(part, "text_pool_type", getattr(part, "pool_type", None)) in {"argmax", "eos", "first"}


def insert_tokens(model: nn.Module, at: int, count: int, seed: int) -> None:
    """Insert embeddings of `count` tokens before token `at`, drawn from `seed` as in a new model; keep all others."""
    clip: Any = model
    rows = clip.token_embedding.weight.detach()
    generator = torch.Generator().manual_seed(seed)
    new = 0.02 * torch.randn(count, rows.shape[1], generator=generator)  # CLIP's own standard deviation
    weight = torch.cat([rows[:at], new.to(rows), rows[at:]])
    clip.token_embedding = nn.Embedding(len(weight), rows.shape[1], _weight=weight).to(rows.device)
    clip.vocab_size = len(weight)


def encode_text(model: nn.Module, ids: Tensor) -> Tensor:
    """Encode ids int64 [B, L] to text features [B, D], unnormalised.

    L may be shorter than the context if `trims_exactly` holds: open_clip's own encoding then runs on a copy of the
    tower that shares the weights, with positions and mask cut to L. The model itself does not change.
    """
    if masks_padding(model) or not trims_exactly(model):
        return cast(Tensor, model.encode_text(ids, normalize=False))  # type: ignore[operator]  # nn.Module types its methods as Tensor
    part: Any = copy(getattr(model, "text", model))
    length = ids.shape[1]
    positions = part.positional_embedding[:length]
    mask = part.attn_mask[:length, :length]
    if positions.requires_grad and positions.device.type == "cpu" and torch.is_autocast_enabled("cpu"):
        # With a mask that requires a gradient torch does not use its flash kernel for CPUs, whose bfloat16 backward
        # takes five times as long on short texts. (Selecting a kernel by name would affect the whole process.)
        mask = mask.clone().requires_grad_()
    part._parameters = {**part._parameters, "positional_embedding": positions}
    part._buffers = {**part._buffers, "attn_mask": mask}
    return cast(Tensor, part(ids) if hasattr(model, "text") else part.encode_text(ids))


@dataclass(frozen=True)
class Tokens:
    """Token ids of N texts.

    Attributes:
        ids: Int64 [N, L], L being the longest text after the cut; shorter ones are padded on the right.
        lengths: Int64 [N], with the start and end tokens, before the cut.
        truncated: Number of texts that were longer than the context.
    """

    ids: Tensor
    lengths: Tensor
    truncated: int

    def __len__(self) -> int:
        return int(self.ids.shape[0])


class Tokenizer(ABC):
    """Tokenizer of texts to ids; the base class of all kinds."""

    def __init__(self, context_length: int, vocab_size: int, pad_id: int = 0) -> None:
        self.context_length = context_length
        self.vocab_size = vocab_size
        self.pad_id = pad_id

    @abstractmethod
    def encode(self, text: str) -> list[int]:
        """Return all ids of one text, with start and end, without any cut."""

    @abstractmethod
    def identity(self) -> dict[str, Any]:
        """Return what identifies the tokenizer, as JSON values; equal ones give equal ids."""

    def reads(self, text: str) -> bool:
        """Say whether a text has a word that is known."""
        return True  # byte pairs make up any word

    def save(self, folder: Path) -> None:  # noqa: B027 # CLIP's ships with open_clip
        """Write the files that `make_tokenizer` reads, if it needs any."""

    def __call__(self, texts: Sequence[str]) -> Tokens:
        """Tokenize texts, in their order; a text that is cut keeps its end token."""
        rows = [self.encode(text) for text in texts]
        lengths = torch.tensor([len(row) for row in rows], dtype=torch.int64)
        longest = self.context_length
        rows = [row if len(row) <= longest else [*row[: longest - 1], row[-1]] for row in rows]
        width = max((len(row) for row in rows), default=0)
        ids = torch.full((len(rows), width), self.pad_id, dtype=torch.int64)
        for at, row in enumerate(rows):
            ids[at, : len(row)] = torch.tensor(row, dtype=torch.int64)
        return Tokens(ids, lengths, int((lengths > longest).sum()))


class WordTokenizer(Tokenizer):
    """Tokenizer of lower-case words: PAD 0, unknown 1, words from 2, start V-2, end V-1 (the largest, as in CLIP)."""

    def __init__(self, words: Sequence[str], context_length: int) -> None:
        super().__init__(context_length, len(words) + 4)
        self.words = tuple(words)
        self.start_id = self.vocab_size - 2
        self.end_id = self.vocab_size - 1
        self._ids = {word: at for at, word in enumerate(self.words, start=2)}

    @staticmethod
    def split(text: str) -> list[str]:
        """Split one text into its words and numbers, in lower case."""
        return _WORD.findall(text.casefold())

    @classmethod
    def build(cls, texts: Iterable[str], context_length: int) -> WordTokenizer:
        """Build the vocabulary of `texts`, with the most frequent words first, and ties by spelling."""
        counts = Counter[str]()
        for text in texts:
            counts.update(cls.split(text))
        ranked = sorted(counts, key=lambda word: (-counts[word], word))
        return cls(ranked[:_MAX_WORDS], context_length)

    def extended(self, texts: Iterable[str]) -> WordTokenizer:
        """Return the tokenizer with the new words of `texts` after its own, in the order of `build`."""
        new = [word for word in self.build(texts, self.context_length).words if word not in self._ids]
        return WordTokenizer([*self.words, *new][: max(_MAX_WORDS, len(self.words))], self.context_length)

    def encode(self, text: str) -> list[int]:
        """Return the ids of the words, with start and end."""
        return [self.start_id, *(self._ids.get(word, 1) for word in self.split(text)), self.end_id]

    def reads(self, text: str) -> bool:
        """Say whether a word of a text is in the vocabulary."""
        return not self._ids.keys().isdisjoint(self.split(text))

    def identity(self) -> dict[str, Any]:
        """Return kind, context length and a digest of the words."""
        return {
            "kind": "words",
            "context_length": self.context_length,
            "words": digest_json(list(self.words)),
        }

    def save(self, folder: Path) -> None:
        """Write words.json."""
        text = json.dumps(self.words, ensure_ascii=False, indent=0) + "\n"
        (folder / "words.json").write_text(text, encoding="utf-8")


class NoTokenizer(Tokenizer):
    """In the place of a tokenizer where there is no text tower: no text has a token."""

    def __init__(self) -> None:
        super().__init__(context_length=0, vocab_size=0)

    def encode(self, text: str) -> list[int]:
        """Return no id."""
        return []

    def identity(self) -> dict[str, Any]:
        """Return the kind."""
        return {"kind": "none"}


class BPETokenizer(Tokenizer):
    """CLIP's byte-pair encoding by open_clip's `SimpleTokenizer`, but without padding to the whole context."""

    def __init__(self, simple: Any, clean: str) -> None:
        super().__init__(simple.context_length, simple.vocab_size)
        self._simple = simple
        self._clean = clean

    def encode(self, text: str) -> list[int]:
        """Return the ids of the byte pairs, with start and end."""
        return [self._simple.sot_token_id, *self._simple.encode(text), self._simple.eot_token_id]

    def identity(self) -> dict[str, Any]:
        """Return kind, context length, cleaning and a digest of the vocabulary."""
        return {
            "kind": "bpe",
            "context_length": self.context_length,
            "clean": self._clean,
            "vocabulary": digest_json(self._simple.encoder),
        }


class HubTokenizer(Tokenizer):
    """Hugging Face tokenizer by open_clip's `HFTokenizer`, which cuts and pads."""

    def __init__(self, hub: Any) -> None:
        inner = hub.tokenizer
        super().__init__(hub.context_length, len(inner), inner.pad_token_id or 0)
        self._hub = hub

    def save(self, folder: Path) -> None:
        """Write tokenizer.json and tokenizer_config.json; `HFTokenizer` can open this folder.

        The class named in tokenizer_config.json is the generic one, which uses tokenizer.json as it is. The tokenizer's
        own class may build another one from it, depending on the version of transformers.
        """
        inner = self._hub.tokenizer
        inner.backend_tokenizer.no_truncation()  # transformers sets truncation and padding again in each call
        inner.backend_tokenizer.no_padding()
        whole = inner.backend_tokenizer.to_str(pretty=False)
        (folder / "tokenizer.json").write_text(whole, encoding="utf-8")
        sides = {name: getattr(inner, name) for name in ("padding_side", "truncation_side")}
        special = {name: getattr(inner, name) for name in _SPECIAL if getattr(inner, name) is not None}
        facts = {"tokenizer_class": GENERIC} | sides | special
        (folder / "tokenizer_config.json").write_text(
            json.dumps(facts, ensure_ascii=False, indent=1, sort_keys=True) + "\n", encoding="utf-8"
        )

    def encode(self, text: str) -> list[int]:
        """Return the ids of one text, with the special tokens of the model."""
        return list(self._hub.tokenizer(self._hub.clean_fn(text), truncation=False).input_ids)

    def __call__(self, texts: Sequence[str]) -> Tokens:
        """Tokenize texts, padded to the whole context, since these models may attend to the padding."""
        if not texts:
            return super().__call__(texts)
        lengths = torch.tensor([len(self.encode(text)) for text in texts], dtype=torch.int64)
        return Tokens(self._hub(list(texts)).long(), lengths, int((lengths > self.context_length).sum()))

    def identity(self) -> dict[str, Any]:
        """Return kind, context length, mode and a digest of the vocabulary."""
        return {
            "kind": "hub",
            "context_length": self.context_length,
            "mode": str(self._hub.tokenizer_mode),
            "vocabulary": digest_json(self._hub.tokenizer.get_vocab()),
        }


class ConvNorm(nn.Sequential):
    """3x3 convolution with BatchNorm, one convolution where neither training nor a gradient asks for two steps."""

    def __init__(self, inputs: int, outputs: int, stride: int = 1) -> None:
        super().__init__(
            nn.Conv2d(inputs, outputs, 3, stride=stride, padding=1, bias=False), nn.BatchNorm2d(outputs)
        )

    def forward(self, x: Tensor) -> Tensor:
        """Apply both to [B, inputs, H, W]."""
        conv, norm = self[0], cast(nn.BatchNorm2d, self[1])
        if self.training or torch.is_grad_enabled() or type(conv) is not nn.Conv2d:  # an adapter's layer
            both: Tensor = norm(conv(x))
            return both
        mean, variance = cast(Tensor, norm.running_mean), cast(Tensor, norm.running_var)
        weight, bias = fuse_conv_bn_weights(
            conv.weight, None, mean, variance, norm.eps, norm.weight, norm.bias
        )
        return F.conv2d(x, weight, bias, conv.stride, conv.padding)


class _Residual(nn.Module):
    """Residual block of two 3x3 convolutions, the second initialised with zero, so that the block is the identity."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.first = ConvNorm(width, width)
        self.second = ConvNorm(width, width)
        nn.init.zeros_(cast(nn.BatchNorm2d, self.second[1]).weight)

    def forward(self, x: Tensor) -> Tensor:
        """Apply the block to [B, width, H, W]."""
        return F.relu(self.second(F.relu(self.first(x), inplace=True)).add_(x), inplace=True)


class TinyTower(nn.Module):
    """Image tower for grey drawings: pixel-unshuffle by 2, then widths 48, 96, 192 with a residual block each.

    The input is float [B, 3, H, W] with H and W even (the channels are averaged), the output float [B, 192 * 4 * 4],
    not normalised. The last map is flattened, not averaged: in centred drawings the place of a stroke matters.
    """

    num_features = _WIDTHS[-1] * _GRID * _GRID

    def __init__(self) -> None:
        super().__init__()
        stages: list[nn.Module] = []
        inputs = 4  # one grey channel, unshuffled by 2
        for width in _WIDTHS:
            stages += [
                ConvNorm(inputs, width, stride=1 if inputs == 4 else 2),
                nn.ReLU(inplace=True),
                _Residual(width),
            ]
            inputs = width
        self.stages = nn.Sequential(*stages)
        self.default_cfg: dict[str, Any] = {"input_size": (3, 32, 32), "pool_size": None}
        # 1.4 times as fast as the default layout on a CPU with bfloat16.
        self.to(memory_format=torch.channels_last)  # type: ignore[call-overload]  # torch's stubs lack this form

    def reset_classifier(self, num_classes: int = 0, global_pool: str | None = None) -> None:
        """Do nothing: there is no classifier to remove. The signature is timm's."""

    def forward(self, x: Tensor) -> Tensor:
        """Compute the features [B, 3072] of pixels [B, 3, H, W]."""
        x = F.pixel_unshuffle(x.mean(dim=1, keepdim=True), 2)
        x = self.stages(x.contiguous(memory_format=torch.channels_last))
        if x.shape[-2:] != (_GRID, _GRID):
            x = F.adaptive_avg_pool2d(x, _GRID)
        return x.flatten(1)


@register_model  # type: ignore[untyped-decorator]  # timm publishes no types
def vlltr_tiny(pretrained: bool = False, **_: Any) -> TinyTower:
    """Make the tower for timm's name "vlltr_tiny"; there are no weights to download."""
    if pretrained:
        raise ValueError("vlltr_tiny has no pretrained weights")
    return TinyTower()
