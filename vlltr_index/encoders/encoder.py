"""Encoder: image tower, text tower if there is one, tokenizer and preprocessing, saved and identified together."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from copy import deepcopy
from pathlib import Path
from typing import Any, Literal

import torch
from PIL import Image
from safetensors.torch import save_file
from torch import Tensor, nn

from vlltr_index.encoders import openclip, text_tower, weights
from vlltr_index.encoders.openclip import NoTokenizer, Tokenizer, Tokens, WordTokenizer
from vlltr_index.encoders.weights import Precision, revision
from vlltr_index.errors import EncoderError, InputError
from vlltr_index.schemas.fingerprint import digest_json, short
from vlltr_index.schemas.manifests import EncoderManifest, SavedEncoder
from vlltr_index.tensors import choose_device, float32_by, weights_digest

_TOKENS_A_BATCH = 16_384


class Encoder:
    """Both towers of an open_clip model, or an image tower of timm, with everything that belongs to their weights.

    Attributes:
        model: The open_clip model or `ImageTower`, weights in float32.
        tokenizer: The tokenizer of the text tower.
        name: The model's name.
        dim: Width D of the features.
        image_size: (height, width) in pixels.
        transform: The preprocessing of one image, which holds no weights and can be sent to other processes.
        mean: Float32 [3], mean of the normalisation.
        std: Float32 [3], standard deviation of the normalisation.
        precision: "bf16" runs both towers under bfloat16 autocast, "tf32" lets a GPU multiply with 10 bits of mantissa;
            outputs are always float32.
    """

    def __init__(
        self,
        model: nn.Module,
        tokenizer: Tokenizer,
        config: dict[str, Any],
        *,
        name: str,
        precision: Precision = "fp32",
        device: str | torch.device | None = None,
    ) -> None:
        if precision not in {"fp32", "tf32", "bf16"}:
            raise EncoderError(f"precision is fp32, tf32 or bf16, got {precision!r}")
        self.device = choose_device(device)
        self.model = model.to(self.device).eval()
        self.tokenizer = tokenizer
        self.name = name
        self.precision = precision
        self._config = deepcopy(config)
        if described := text_tower.tower_config(model):
            self._config["model_cfg"]["text_cfg"].setdefault("hf_config", described)
        pre = self._config["preprocess_cfg"]
        self.transform = openclip.Preprocessing(pre)
        height, width = pre["size"] if isinstance(pre["size"], list) else (pre["size"], pre["size"])
        self.image_size: tuple[int, int] = (height, width)
        self.mean = torch.tensor(pre["mean"], dtype=torch.float32)
        self.std = torch.tensor(pre["std"], dtype=torch.float32)
        self.dim = int(self._config["model_cfg"]["embed_dim"])
        self._channels_last = openclip.prefer_channels_last(model)
        self._trims = openclip.trims_exactly(model)
        self._digests: dict[str, tuple[object, str]] = {}

    @classmethod
    def scratch(
        cls,
        model: str,
        texts: Iterable[str] | None = None,
        seed: int = 0,
        *,
        image_size: int | None = None,
        resize: int | None = None,
        precision: Precision = "fp32",
        device: str | torch.device | None = None,
    ) -> Encoder:
        """Make an encoder with random weights; the caller's random state does not change.

        Args:
            model: A name that open_clip knows, or `vlltr-tiny`.
            texts: Texts that a word vocabulary is built from; only `vlltr-tiny` has one.
            seed: Seed of the weights; the same seed and texts give the same weights.
            image_size: As for `load`.
            resize: As for `load`.
            precision: As for `load`.
            device: As for `load`.

        Raises:
            EncoderError: There is no such model, or it needs texts and got none.
            MissingPackageError: The model needs transformers, which is not installed.
        """
        config = weights.find_config(model)
        text = config["model_cfg"]["text_cfg"]
        tokenizer: Tokenizer
        if config["tokenizer"] == "words":
            words = WordTokenizer.build(texts or (), text["context_length"])
            tokenizer = words
            text["vocab_size"] = words.vocab_size
            if not words.words:
                raise EncoderError(
                    f"{model} builds its vocabulary from the sentences, and there are none",
                    "Run: vlltr ingest text PATH",
                )
        else:
            tokenizer = openclip.make_tokenizer(config)
        weights.set_image_size(config, image_size, resize)
        with torch.random.fork_rng(devices=[]):
            torch.default_generator.manual_seed(seed)  # does not touch the GPUs' generators
            built = openclip.build_model(config["model_cfg"])
        if image_size is not None:
            openclip.set_timm_size(built, image_size)
        return cls(built, tokenizer, config, name=model, precision=precision, device=device)

    @classmethod
    def load(
        cls,
        model: str,
        pretrained: str | None = None,
        *,
        image_size: int | None = None,
        resize: int | None = None,
        precision: Precision | None = None,
        device: str | torch.device | None = None,
    ) -> Encoder:
        """Load weights from open_clip's list, a file or a folder, with the preprocessing that belongs to them.

        Only tensors are read, no code is run. If it is known whether the weights were trained with QuickGELU, this
        decides the activation, whatever the model's name says.

        Args:
            model: A name that open_clip knows, a folder, `local-dir:FOLDER`, or `hf-hub:OWNER/NAME[@REVISION]`; or
                `timm`, for an image tower alone.
            pretrained: A tag, or a .safetensors, .pt, .pth, .bin or .ckpt file, or a folder; for `timm` a folder, or
                `OWNER/NAME@COMMIT`.
            image_size: Side in pixels; position embeddings are interpolated to it.
            resize: Length of the shorter side before the crop, instead of the one that belongs to the weights.
            precision: Precision of the towers' arithmetic; None: as it was saved, else fp32.
            device: None: a GPU if there is one.

        Raises:
            EncoderError: The weights cannot be fetched or do not fit the model, or their description is damaged.
            MissingPackageError: The model needs transformers, which is not installed; raised before any download.
        """
        try:
            source = weights.read_source(model, pretrained)
            config = source.config
            resized = config.get("resized")
            stored = config["model_cfg"]["vision_cfg"].get("image_size", 224)
            tokenizer = openclip.make_tokenizer(config, source.folder)
            openclip.check_tokens(tokenizer, config, source.where)
            weights.set_image_size(config, image_size, resize)
            built = openclip.build_model(config["model_cfg"], drawn=False)
            if resized:
                openclip.set_timm_size(built, stored)
            openclip.load_state(built, source.state, source.where)
            if image_size is not None:
                openclip.set_timm_size(built, image_size)
            precision = precision or source.precision
            return cls(built, tokenizer, config, name=source.name, precision=precision, device=device)
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            raise EncoderError(
                f"what describes the encoder {model}:{pretrained or ''} is damaged: {error!r}"
            ) from error

    @classmethod
    def open(cls, folder: str | Path, device: str | torch.device | None = None) -> Encoder:
        """Load an encoder that `save` wrote."""
        return cls.load("local-dir", str(folder), device=device)

    def save(self, folder: str | Path) -> None:
        """Write encoder.json, model.safetensors and the tokenizer, unless it is part of open_clip, into `folder`.

        A word vocabulary is in words.json, a Hugging Face tokenizer in tokenizer.json and tokenizer_config.json.
        """
        folder = Path(folder)
        folder.mkdir(parents=True, exist_ok=True)
        state = {n: v.detach().cpu().contiguous().clone() for n, v in self.model.state_dict().items()}
        save_file(state, str(folder / "model.safetensors"))
        facts = EncoderManifest(name=self.name, precision=self.precision, config=SavedEncoder(**self._config))
        facts.save(folder / "encoder.json")
        self.tokenizer.save(folder)

    def copy(self) -> Encoder:
        """Return a second encoder with a copy of the weights."""
        how: dict[str, Any] = {"name": self.name, "precision": self.precision, "device": self.device}
        return Encoder(deepcopy(self.model), self.tokenizer, self._config, **how)

    def learn_words(self, texts: Iterable[str], seed: int) -> int:
        """Add the words of `texts` that a word vocabulary lacks, with an embedding for each; return their number.

        The new embeddings are drawn from `seed` like those of a new model, so they are meaningless until stage 1 has
        trained them. All others stay, and so do the features of texts without new words. Other tokenizers need no new
        words: 0.
        """
        if not isinstance(self.tokenizer, WordTokenizer):
            return 0
        wider = self.tokenizer.extended(texts)
        added = wider.vocab_size - self.tokenizer.vocab_size
        if added:
            openclip.insert_tokens(self.model, self.tokenizer.start_id, added, seed)
            self.tokenizer = wider
            self._config["model_cfg"]["text_cfg"]["vocab_size"] = wider.vocab_size
        return added

    def to(self, device: str | torch.device) -> Encoder:
        """Move the weights to a device; return self."""
        self.device = torch.device(device)
        self.model.to(self.device)
        return self

    def train(self, mode: bool = True) -> Encoder:
        """Put both towers into training mode, or out of it; return self."""
        self.model.train(mode)
        return self

    def eval(self) -> Encoder:
        """Put both towers into evaluation mode; return self."""
        return self.train(False)

    @property
    def config(self) -> dict[str, Any]:
        """A copy of the configuration: `model_cfg`, `preprocess_cfg` and `tokenizer`."""
        return deepcopy(self._config)

    @property
    def has_text_tower(self) -> bool:
        """Whether there is a text tower; without one the features of all texts are zeros."""
        return not isinstance(self.tokenizer, NoTokenizer)

    @property
    def logit_scale(self) -> float:
        """The multiplier of cosines, exp(`model.logit_scale`); 1 / temperature."""
        return float(self.model.logit_scale.detach().exp())  # type: ignore[operator]  # a Parameter, not a Module

    @property
    def logit_bias(self) -> nn.Parameter | None:
        """The bias that SigLIP adds to scale * cosine of a pair before the sigmoid; None for models without.

        It is the same for all classes, so that it does not change a softmax over classes.
        """
        bias = getattr(self.model, "logit_bias", None)
        return bias if isinstance(bias, nn.Parameter) else None

    @property
    def text_fp(self) -> str:
        """Fingerprint of the text tower: architecture, weights, tokenizer, precision."""
        return self._fingerprint("text")

    @property
    def image_fp(self) -> str:
        """Fingerprint of the image tower: architecture, weights, preprocessing, precision."""
        return self._fingerprint("image")

    def _fingerprint(self, tower: Literal["text", "image"]) -> str:
        """Compute a tower's fingerprint, anew if its weights have changed."""
        state = {
            n: v
            for n, v in self.model.state_dict().items()
            if n.startswith("visual.") == (tower == "image") and n not in {"logit_scale", "logit_bias"}
        }
        now = revision(state.values())
        if tower not in self._digests or self._digests[tower][0] != now:
            architecture = deepcopy(self._config["model_cfg"])
            del architecture["vision_cfg" if tower == "text" else "text_cfg"]
            # It follows from the model's name, and the version of transformers says how much of it is written.
            architecture.get("text_cfg", {}).pop("hf_config", None)
            facts = {
                "architecture": architecture,
                "weights": weights_digest(state),
                # tf32 is recorded beside the vectors instead.
                "precision": "bf16" if self.precision == "bf16" else "fp32",
                "input": self.tokenizer.identity() if tower == "text" else self._config["preprocess_cfg"],
            }
            self._digests[tower] = (now, short(digest_json(facts)))
        return self._digests[tower][1]

    def preprocess(self, image: Image.Image) -> Tensor:
        """Resize, crop and normalise one image as the weights expect: float32 [3, H, W]."""
        return self.transform(image)

    def tokenize(self, texts: Sequence[str]) -> Tokens:
        """Tokenize N texts, padded to the longest; texts longer than the context are cut and counted."""
        return self.tokenizer(texts)

    def encode_pixels(self, pixels: Tensor) -> Tensor:
        """Encode images to features float32 [B, D], unnormalised, with gradients.

        Args:
            pixels: Floating [B, 3, H, W] on the encoder's device, normalised by `mean` and `std`.

        Raises:
            InputError: The shape or the dtype does not fit.
        """
        if pixels.ndim != 4 or pixels.shape[1] != 3 or not pixels.is_floating_point():
            raise InputError(f"pixels must be floating [B, 3, H, W], got {pixels.dtype} {list(pixels.shape)}")
        if self._channels_last:
            pixels = pixels.contiguous(memory_format=torch.channels_last)
        with self._arithmetic():
            features: Tensor = self.model.encode_image(pixels, normalize=False)  # type: ignore[operator]  # nn.Module types its methods as Tensor
        return features.float()

    def encode_tokens(self, ids: Tensor) -> Tensor:
        """Encode tokens to features float32 [B, D], unnormalised, with gradients; padding does not matter.

        Args:
            ids: Int64 [B, L] on the encoder's device, L at most the context length.

        Raises:
            InputError: The shape, the dtype or the length does not fit.
        """
        length = self.tokenizer.context_length
        if ids.ndim != 2 or ids.dtype != torch.int64 or not 1 <= ids.shape[1] <= length:
            raise InputError(f"ids must be int64 [B, 1..{length}], got {ids.dtype} {list(ids.shape)}")
        if not self._trims and ids.shape[1] < length:
            ids = nn.functional.pad(ids, (0, length - ids.shape[1]), value=self.tokenizer.pad_id)
        with self._arithmetic():
            return openclip.encode_text(self.model, ids).float()

    def encode_texts(self, texts: Sequence[str] | Tokens) -> Tensor:
        """Encode texts to features float32 [N, D] on the CPU, unnormalised, without gradients, in their order.

        Texts of similar length are encoded together, each batch cut to its longest text: same values, less work.

        Args:
            texts: N texts, or their tokens from `tokenize`.
        """
        if not self.has_text_tower:
            return torch.zeros(len(texts), self.dim)
        tokens = texts if isinstance(texts, Tokens) else self.tokenize(texts)
        result = torch.empty(len(tokens), self.dim)
        lengths = tokens.lengths.clamp(max=self.tokenizer.context_length)
        order = torch.argsort(lengths, stable=True)
        done = 0
        while done < len(order):
            # A first estimate by the shortest text, which comes first; then the size by the longest, which comes last.
            step = max(1, _TOKENS_A_BATCH // max(1, int(lengths[order[done]])))
            rows = order[done : done + step]
            rows = rows[: max(1, _TOKENS_A_BATCH // max(1, int(lengths[rows[-1]])))]
            width = int(lengths[rows[-1]]) if self._trims else tokens.ids.shape[1]
            with torch.no_grad():
                result[rows] = self.encode_tokens(tokens.ids[rows, :width].to(self.device)).cpu()
            done += len(rows)
        return result

    @contextmanager
    def _arithmetic(self) -> Iterator[None]:
        """Set the arithmetic of `precision` within the block.

        An ambient autocast stays. With gradients the precision of float32 products is left to the training.
        """
        with ExitStack() as stack:
            if torch.is_inference_mode_enabled():
                # Under inference mode and autocast torch copies an attention layer's weights for every token.
                stack.enter_context(torch.inference_mode(False))
                stack.enter_context(torch.no_grad())
            if not torch.is_grad_enabled():
                stack.enter_context(float32_by(tf32=self.precision == "tf32"))
            if self.precision == "bf16":
                stack.enter_context(torch.autocast(self.device.type, torch.bfloat16))
            yield
