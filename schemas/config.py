"""Configurations: frozen models that refuse unknown keys and report all errors at once."""

from __future__ import annotations

import tomllib
from typing import Annotated, Any, Literal, Self, TypeVar, get_args

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from vlltr_index.errors import ConfigError
from vlltr_index.schemas.encoders import Family, Prompts, family_of

CONFIG_NAME = "vlltr.toml"
"""The file that makes a folder a workspace."""

FORMAT = 5
"""The workspace format; a workspace of another one is refused."""

_Model = TypeVar("_Model", bound=BaseModel)
_Positive = Annotated[float, Field(gt=0)]
_Whole = Annotated[int, Field(ge=1)]


class _Config(BaseModel):
    """Base of all configurations."""

    model_config = ConfigDict(frozen=True, extra="forbid", protected_namespaces=(), allow_inf_nan=False)

    @model_validator(mode="before")
    @classmethod
    def _none_is_null(cls, values: Any) -> Any:
        """Replace "none" by None where a field may be None, since TOML has no null."""
        fields = {n for n, field in cls.model_fields.items() if type(None) in get_args(field.annotation)}
        if not isinstance(values, dict):
            return values
        return {key: None if value == "none" and key in fields else value for key, value in values.items()}


class EncoderConfig(_Config):
    """The open_clip model, and the source of its weights: a tag, a file, or none to start from scratch.

    With the model `timm` the source is a folder or repository of an image tower of timm, without a text tower.
    """

    model: str = "ViT-B-16"
    pretrained: str | None = None
    image_size: int | None = Field(default=None, ge=16, le=1024)
    resize: int | None = Field(default=None, ge=16, le=2048)  # the shorter side, before the centre crop
    precision: Literal["fp32", "tf32", "bf16"] = "fp32"  # tf32 is for GPUs; it changes vectors by 1e-3

    @property
    def family(self) -> Family:
        """Its family, which says what can be done with it."""
        return family_of(self.model)

    @model_validator(mode="before")
    @classmethod
    def _weights_in_packages(cls, values: Any) -> Any:
        """Name the weights of a family that has no others."""
        if isinstance(values, dict) and values.get("pretrained") in (None, "none"):
            weights = family_of(values.get("model")).weights
            return {**values, "pretrained": weights} if weights == "packages" else values
        return values

    @model_validator(mode="after")
    def _named_place(self) -> Self:
        """Refuse a model that is a folder or repository without its name."""
        if self.family.is_place and not self.pretrained:
            raise ValueError(
                f"the model {self.model} names no folder or repository: "
                f"--encoder {self.model}:{self.family.weights.upper()}, or `pretrained` in vlltr.toml"
            )
        return self

    @model_validator(mode="after")
    def _room_for_the_crop(self) -> Self:
        """Refuse a resize that is smaller than the crop."""
        if self.resize is not None and self.image_size is not None and self.resize < self.image_size:
            raise ValueError(f"resize is {self.resize}, less than the crop's {self.image_size} pixels")
        return self


class AugmentConfig(_Config):
    """Training augmentation. `photo` is for colour photographs; `glyph` for small grey drawings (no flip)."""

    kind: Literal["photo", "glyph", "none"] = "photo"
    crop_min: float = Field(default=0.5, gt=0, le=1)
    flip: bool = True
    color_jitter: float = Field(default=0.2, ge=0, le=1)
    auto_augment: str | None = "rand-m6-mstd0.5-inc1"
    random_erase: float = Field(default=0.0, ge=0, le=1)


class LoRAConfig(_Config):
    """Low-rank adapters (LoRA) on the linear layers, convolutions and attention inputs of a tower."""

    rank: int = Field(default=8, ge=1)
    alpha: float = Field(default=16.0, gt=0)  # an adapter's product is multiplied by alpha / rank
    attention: bool = True  # also on the packed query, key and value matrix of attention


class _Training(_Config):
    """Settings of every training of a tower or a head."""

    epochs: int = Field(default=10, ge=1)
    batch_size: int = Field(default=256, ge=2, le=1_000_000)  # over all processes
    min_lr: float = Field(default=0.0, ge=0)  # the cosine schedule's last value
    weight_decay: float = Field(default=0.05, ge=0)
    clip_grad: float | None = Field(default=1.0, gt=0)
    sampler_power: float = Field(default=0.5, ge=0, le=1)  # an image's weight is n^-power; 0.5: square root
    label_smoothing: float = Field(default=0.0, ge=0, lt=1)
    # auto: bf16 if the hardware multiplies it natively
    precision: Literal["fp32", "tf32", "bf16", "auto"] = "fp32"
    # most rows that a tower encodes at once; slower, with the same gradients
    micro_batch: int | None = Field(default=None, ge=1)
    seed: int = Field(default=0, ge=0, lt=2**63)
    augment: AugmentConfig = AugmentConfig()


class CVLPConfig(_Training):
    """Stage 1: class-wise visual-linguistic pre-training."""

    tune: Literal["full", "lora", "text"] = "full"  # text: only the text tower, with stored image vectors
    lora: LoRAConfig = LoRAConfig()
    lr: float = Field(default=5e-5, gt=0)
    text_lr: float | None = Field(default=None, ge=0)  # rate of the text tower; none: lr; 0 freezes it
    warmup_epochs: float = Field(default=0.5, ge=0, le=1_000_000)
    batch_norm: Literal["train", "eval"] = "train"  # eval: statistics do not change
    ccl_weight: float = Field(default=1.0, ge=0)  # lambda of Eq. 3; distillation_weight is 1 - lambda there
    ccl_reduction: Literal["sum", "mean"] = "mean"
    distillation: Literal["none", "full", "paired"] = "none"
    distillation_weight: float = Field(default=0.0, ge=0)
    distillation_scale: Literal["teacher", "student"] = (
        "teacher"  # source of 1 / tau for the teacher's logits
    )
    joint_weight: float = Field(default=0.0, ge=0)  # of the joint loss; 0 turns it off
    joint_visual_weight: float = Field(default=1.0, ge=0)
    extra_classes: int = Field(default=256, ge=0, le=1_000_000)
    # sentences that are averaged for each candidate class of the joint loss
    joint_sentences: int = Field(default=1, ge=1, le=1_000_000)
    word_dropout: float = Field(default=0.0, ge=0, lt=1)
    temperature: float | None = Field(default=None, gt=0)  # initial tau; none: the encoder's
    learn_scale: bool = True
    max_scale: float | None = Field(default=100.0, gt=1)  # bound of 1 / tau after each step; none: no bound
    # most images that are held out to fit weights on; at most a tenth of all
    hold_out: int = Field(default=300, ge=0, le=1_000_000)
    hold_out_classes: bool = True  # with 100 classes or more hold out one in 50, at most 20; see holdout
    workers: int = Field(default=2, ge=0, le=1_000)
    checkpoint_every: int = Field(default=1, ge=1, le=1_000_000)  # epochs


class SelectConfig(_Config):
    """AnSS: selection of the anchor sentences."""

    mode: Literal["anss", "cutoff"] = "anss"
    max_anchors: int = Field(default=64, ge=1, le=1_000_000)
    max_share: float | None = Field(default=1 / 3, gt=0, le=1)  # of a class's own sentences, but at least 2
    images_per_class: int = Field(default=50, ge=1, le=1_000_000)
    split: str = Field(default="train", min_length=1)
    augmented: bool = False  # use the first augmented view of each image instead of the plain one

    @model_validator(mode="after")
    def _augmented_training_images(self) -> Self:
        """Refuse augmented views of another split than train."""
        if self.augmented and self.split != "train":
            raise ValueError(f"augmented views exist of split train alone, split is {self.split!r}")
        return self


class PriorConfig(_Config):
    """How the generative model reads texts, beside the text tower's vectors and their words."""

    # a sentence-embedding model of transformers: a folder, or OWNER/NAME@COMMIT of the Hugging Face hub
    text: str | None = None


class LGRConfig(_Training):
    """Stage 2: the language-guided recognition head.

    `epochs` holds where images pass the tower, and for the protocols; otherwise training ends when the held-out loss
    has converged. `clip_grad` is used if images pass the tower, not on stored vectors. `precision` is the tower's; the
    head always computes in float32.
    """

    tune: Literal["head", "visual", "lora"] = "head"  # visual and lora also tune the visual tower
    train: bool = False  # train attention and linear classifier without a stage 1, too
    lora: LoRAConfig = LoRAConfig()
    views: int = Field(default=4, ge=1)  # stored views of an image, the plain one included (tune = head)
    lr: float = Field(default=1e-3, gt=0)
    projection_lr: float = Field(default=1e-4, ge=0)
    encoder_lr: float = Field(default=1e-5, ge=0)
    warmup_epochs: float = Field(default=0.2, ge=0, le=1_000_000)
    batch_norm: Literal["train", "eval"] = "eval"  # in a tower that is tuned
    mixup: float = Field(
        default=0.0, ge=0
    )  # the beta distribution's parameter; above 0 images pass the tower
    cutmix: float = Field(default=0.0, ge=0)
    visual: Literal["linear", "mlp", "cosine"] = "linear"
    logit_adjustment: float = Field(default=1.0, ge=0)  # factor of the log of the sampler's prior; 0 = none
    learn_scale: bool = False
    max_scale: float | None = Field(default=100.0, gt=1)
    normalise_values: bool = False
    detach_value_norm: bool = False  # no gradient through the length of the attended anchors
    loss_bias: bool = (
        True  # subtract beta times an anchor's AnSS loss from its attention logit; beta is learned
    )
    anchor_dropout: float = Field(default=0.3, ge=0, lt=1)  # probability that a step leaves an anchor out
    distractors: float = Field(default=0.25, ge=0, le=10)  # anchors of other classes per anchor of a class

    @property
    def live(self) -> bool:
        """Whether images pass the visual tower in every step; otherwise training uses stored vectors."""
        return self.tune != "head" or self.mixup > 0 or self.cutmix > 0


class FusionConfig(_Config):
    """Fusion of both branches. The weights of the rule `ours` are stored with the head."""

    rule: Literal["ours", "paper", "logits"] = "ours"
    alpha: float = Field(default=0.5, ge=0, le=1)  # of the visual branch, under the rule `paper`


class BaselineConfig(_Training):
    """The image-only baseline: the visual tower and a linear layer, trained with cross-entropy."""

    lr: float = Field(default=5e-5, gt=0)
    warmup_epochs: float = Field(default=0.5, ge=0, le=1_000_000)
    mixup: float = Field(default=0.0, ge=0)  # as in stage 2
    cutmix: float = Field(default=0.0, ge=0)
    logit_adjustment: float = Field(default=0.0, ge=0)  # in training; 0 = plain cross-entropy
    workers: int = Field(default=2, ge=0, le=1_000)
    checkpoint_every: int = Field(default=1, ge=1, le=1_000_000)


class BaselinesConfig(_Config):
    """Baselines on stored vectors. Of several values the best on split val, or on held-back images, is used.

    `logistic` chooses by five folds of the training images.
    """

    epochs: int = Field(default=10, ge=1)  # crt and lws
    batch_size: int = Field(default=256, ge=1)
    lrs: tuple[_Positive, ...] = Field(default=(1e-3, 3e-3, 1e-2), min_length=1)  # crt and lws
    weight_decay: float = Field(default=0.0, ge=0)
    taus: tuple[float, ...] = Field(default=tuple(n / 10 for n in range(11)), min_length=1)  # tau-norm
    logistic_c: tuple[_Positive, ...] = Field(default=(1.0, 10.0, 100.0, 1000.0), min_length=1)  # logistic
    neighbours: tuple[_Whole, ...] = Field(default=(1, 3, 10, 30, 100), min_length=1)  # knn
    cache_images: int = Field(default=16, ge=1)  # per class, tip-adapter
    alphas: tuple[_Positive, ...] = Field(default=(0.1, 0.3, 1.0, 3.0, 10.0, 30.0), min_length=1)
    betas: tuple[_Positive, ...] = Field(default=(1.0, 3.0, 5.5, 10.0, 20.0, 40.0), min_length=1)
    held_back: float = Field(
        default=0.1, gt=0, lt=1
    )  # share of the training images, if there is no split val
    seed: int = Field(default=0, ge=0, lt=2**63)


class Recipe(_Config):
    """Recipe: all settings of both stages."""

    name: str
    protocol: Literal["paper", "release", "ours"] = "ours"
    device: str = Field(default="auto", pattern=r"^(auto|cpu|cuda(:\d+)?)$")  # for commands without --device
    prompts: Prompts = "clip"  # templates for every class; "clip": CLIP's 80
    encoder: EncoderConfig = EncoderConfig()
    cvlp: CVLPConfig = CVLPConfig()
    select: SelectConfig = SelectConfig()
    prior: PriorConfig = PriorConfig()
    lgr: LGRConfig = LGRConfig()
    fusion: FusionConfig = FusionConfig()
    baseline: BaselineConfig = BaselineConfig()
    baselines: BaselinesConfig = BaselinesConfig()

    @property
    def templates(self) -> Prompts:
        """Templates of every class's prompts, as this encoder needs them."""
        return self.encoder.family.templates(self.prompts)

    @model_validator(mode="after")
    def _rule_of_the_encoder(self) -> Self:
        """Refuse a fusion rule that the encoder does not have."""
        if self.fusion.rule not in self.encoder.family.rules:
            raise ValueError(
                f"the rule {self.fusion.rule!r} adds the probabilities of a text branch, and this encoder has no text "
                'tower: take a recipe with fusion.rule "ours"'
            )
        return self

    @model_validator(mode="after")
    def _views_for_selection(self) -> Self:
        """Refuse a selection by augmented views if there are none."""
        if self.select.augmented and self.lgr.views < 2:
            raise ValueError("select.augmented needs an augmented view of each image: lgr.views of 2 or more")
        return self


class WorkspaceConfig(_Config):
    """Content of `vlltr.toml`: the format, and the workspace's recipe, which the user may edit."""

    format: int = FORMAT
    recipe: Recipe


def validate(model: type[_Model], values: dict[str, Any], where: str) -> _Model:
    """Check values against a model, and return it.

    Raises:
        ConfigError: A value does not fit; the message names every such key, and `where` it is from.
    """
    try:
        return model.model_validate(values)
    except ValidationError as error:
        wrong = [f"{'.'.join(map(str, e['loc'])) or '(top)'}: {e['msg']}" for e in error.errors()]
        raise ConfigError(f"{where} does not fit: {'; '.join(wrong)}", "Correct these keys.") from None


def parse_toml(data: bytes, where: str) -> dict[str, Any]:
    """Parse a TOML file.

    Args:
        data: The file's bytes.
        where: The file's name, for messages.

    Raises:
        ConfigError: It is not UTF-8 or not TOML.
    """
    try:
        return tomllib.loads(data.decode("utf-8-sig"))  # Notepad puts a mark before it
    except (ValueError, RecursionError) as error:  # also for overlong numbers and deep nesting
        hint = "Mend it there: texts stand in quotes, names of sections in brackets. "
        hint += "To compare, `vlltr init NEWDIR` writes a whole one."
        raise ConfigError(f"{where} is not valid TOML: {error}", hint) from None


def apply_overrides(values: dict[str, Any], overrides: tuple[str, ...]) -> dict[str, Any]:
    """Return `values` with each `section.key=value` of `overrides` set; values are read as TOML, else as text.

    `null` gives None.

    Raises:
        ConfigError: An override has no `=`.
    """
    for item in overrides:
        key, sep, raw = item.partition("=")
        if not sep or not key.strip():
            raise ConfigError(f"--set takes key=value, got {item!r}", "For example: --set cvlp.epochs=3")
        try:
            value = tomllib.loads(f"v = {raw}")["v"]
        except (ValueError, RecursionError):
            value = None if raw == "null" else raw
        values = with_value(values, key.strip().split("."), value)
    return values


def with_value(table: Any, path: list[str], value: Any) -> Any:
    """Return `table` with `value` at the path; a value on the way that is no table is replaced by one."""
    if not path:
        return value
    table = table if isinstance(table, dict) else {}
    return table | {path[0]: with_value(table.get(path[0]), path[1:], value)}
