"""Heads as files: the LGR head, the classes of its visual rows, the generative model's parameters, the weights."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

import torch
from pydantic import AfterValidator, BaseModel, ConfigDict, Field
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from vlltr_index.errors import WorkspaceError
from vlltr_index.heads.configuration import TextLevel
from vlltr_index.heads.fusion import PartWeights
from vlltr_index.heads.lgr import LGRHead
from vlltr_index.heads.plda import Outside, SharedGaussian
from vlltr_index.heads.rejection import RatioWeight
from vlltr_index.heads.text_prior import TextKernel
from vlltr_index.heads.tree import HeldOutAnswers
from vlltr_index.schemas.manifests import Manifest

_TIMES = ("seconds", "images_per_s")  # left out of the log, so that the same training gives the same digest
SHARED = ("centre", "basis", "spread", "text_centre", "text_map")
"""Names of the generative model's tensors in a head's file, after the prefix `generative.`."""
KERNEL = ("centre", "scale", "landmarks")
"""Names of the tensors of its kernel in that file, after `kernel.`; missing where it reads the vectors alone."""
TOLD = ("class_ids", "digests", "means")
"""Names of the tensors of prior means in that file, after `told.`; missing without a kernel."""
SPAN = "generative.span"
"""Name of the tensor of `Outside` in that file; missing where the basis has all dimensions."""
HELD_OUT = ("labels", "probabilities")
"""Names of the tensors of held-out answers in that file, after `held_out.`; missing without held-out images."""


@dataclass(frozen=True, eq=False)
class ToldMeans:
    """The prior means that the texts of K classes gave when the head was trained: with a kernel they take long.

    Attributes:
        class_ids: Int64 [K], ascending.
        digests: Int64 [K], by which a class's anchors are known to be the same, see `recognition.anchors.Anchors`.
        means: Float32 [K, D], see `plda.prior_means`.
    """

    class_ids: Tensor
    digests: Tensor
    means: Tensor


Share = Annotated[float, Field(ge=0.0, le=1.0)]


def _ascending(ends: tuple[float, float]) -> tuple[float, float]:
    if ends[0] > ends[1]:
        raise ValueError("the lower end comes first")
    return ends


Interval = Annotated[tuple[Share, Share], AfterValidator(_ascending)]
"""Ends of an interval of a share."""


@dataclass(frozen=True)
class RuleParameters:
    """Parameters of the rule `ours` beside the head, as `vlltr train lgr` chose them.

    Attributes:
        shared: The PLDA's shared parameters.
        weights: Weights of the parts.
        text_level: What the texts of classes with images are used for.
        ood_threshold: The score that 95% of held-out groups reach, see `rejection`; None below 20 groups.
        ratio_weight: Weight of the likelihood ratio in that score.
        held_out: Answers for the held-out images, with the classes in the order of the visual rows; None without any.
        unknown_accepted: Share of images of classes left out that reach the threshold; None where no class, or too few
            images, could be left out.
        unknown_range: Ends of its 95% interval, over classes.
        correlation: Intraclass correlation of the answers in a group, see `pooling.together`.
        unit_correlation: Intraclass correlation of the vectors in a group, see `moments.unit_correlation`.
        text_trust: How far the PLDA trusts the texts of added classes, see `PLDA`.
        shifts: Float64 [C_v, Z], see `PLDA`, of the classes of the visual rows; None: nothing.
        told: The prior means that the classes' texts gave; None: they are computed when the model is opened.
        texts: What texts are used for, in a sentence.
    """

    shared: SharedGaussian
    weights: PartWeights
    text_level: TextLevel = TextLevel.ATTENTION
    ood_threshold: float | None = None
    ratio_weight: float = 0.0
    held_out: HeldOutAnswers | None = None
    unknown_accepted: float | None = None
    unknown_range: tuple[float, float] | None = None
    correlation: float = 1.0
    unit_correlation: float = 1.0
    text_trust: float = 1.0
    shifts: Tensor | None = None
    told: ToldMeans | None = None
    texts: str = ""

    @property
    def texts_are_mute(self) -> bool:
        """Whether nothing is known of a text-only class: neither attention nor a prior by its text counts."""
        prior_counts = bool(self.text_trust) and bool(self.shared.text_map.any())
        return not self.weights.text and not prior_counts


@dataclass(frozen=True)
class SavedHead:
    """A trained head, and all that is stored with it.

    Attributes:
        head: The module, in eval mode.
        class_ids: Int64 [C_v], the class of each visual row, ascending: the classes it was trained on.
        text_fp: Fingerprint of the text tower whose vectors it was trained on.
        image_fp: Fingerprint of the visual tower.
        parts: Parameters of the rule `ours`; None for a head of the protocols `paper` and `release`.
    """

    head: LGRHead
    class_ids: Tensor
    text_fp: str
    image_fp: str
    parts: RuleParameters | None = None

    @property
    def texts_are_mute(self) -> bool:
        """As for `RuleParameters`; of another protocol they never are."""
        return self.parts is not None and self.parts.texts_are_mute

    @property
    def unit_correlation(self) -> float:
        """By which images of a unit are counted, see `RuleParameters`; 1 for a head without parts."""
        return 1.0 if self.parts is None else self.parts.unit_correlation

    @property
    def texts(self) -> str:
        """What texts are used for, in a sentence; empty for a head without parts."""
        return "" if self.parts is None else self.parts.texts


PROJECTIONS = ("query_proj.weight", "key_proj.weight")
"""Parameters of the head that its file lacks where they are the identity, as they are before any training."""


def _is_identity(matrix: Tensor) -> bool:
    return torch.equal(matrix, torch.eye(len(matrix), dtype=matrix.dtype))


_STRICT = ConfigDict(frozen=True, extra="forbid", strict=True, allow_inf_nan=False)


class RuleFacts(BaseModel):
    """Numbers of `RuleParameters` in `head.json`."""

    model_config = _STRICT

    weights: PartWeights
    text_level: int = Field(ge=0, le=2)
    text_r2: float = Field(ge=0.0, lt=1.0)
    ood_threshold: float | None
    ratio_weight: RatioWeight
    unknown_accepted: Share | None
    unknown_range: Interval | None
    correlation: Share
    unit_correlation: Share
    text_trust: Share
    outside: tuple[float, float] | None  # `scale` and `text_scale` of `Outside`
    texts: str


class HeadManifest(Manifest):
    """Content of the file `head.json`."""

    model_config = _STRICT

    format: Literal[3] = 3
    dim: int = Field(ge=1)
    visual: Literal["linear", "mlp", "cosine"]
    normalise_values: bool
    loss_bias: bool
    text_fp: str
    image_fp: str
    parts: RuleFacts | None


def save_head(
    saved: SavedHead,
    folder: Path,
    log: Sequence[Mapping[str, float]] = (),
    config: Mapping[str, Any] | None = None,
) -> None:
    """Write `head.safetensors` and `head.json` into `folder`, and `train.json` where there is a `log`.

    Args:
        saved: The head.
        folder: The folder to write to.
        log: The log of its training, one entry for each epoch; times are left out.
        config: The settings of its training.
    """
    state = {k: v.detach().cpu().contiguous() for k, v in saved.head.state_dict().items()}
    tensors = {f"head.{k}": v for k, v in state.items() if k not in PROJECTIONS or not _is_identity(v)}
    tensors["class_ids"] = saved.class_ids.long().contiguous()
    parts = saved.parts
    part_facts = None
    if parts is not None:
        outside = parts.shared.outside
        part_facts = RuleFacts(
            weights=parts.weights,
            text_level=int(parts.text_level),
            text_r2=parts.shared.text_r2,
            ood_threshold=parts.ood_threshold,
            ratio_weight=parts.ratio_weight,
            unknown_accepted=parts.unknown_accepted,
            unknown_range=parts.unknown_range,
            correlation=parts.correlation,
            unit_correlation=parts.unit_correlation,
            text_trust=parts.text_trust,
            outside=None if outside is None else (outside.scale, outside.text_scale),
            texts=parts.texts,
        )
        tensors |= {f"generative.{n}": getattr(parts.shared, n).float().contiguous() for n in SHARED}
        if outside is not None:
            tensors[SPAN] = outside.span.float().contiguous()
        if parts.shared.kernel is not None:
            tensors |= {f"kernel.{n}": getattr(parts.shared.kernel, n).contiguous() for n in KERNEL}
        if parts.shifts is not None:
            tensors["generative.shifts"] = parts.shifts.float().contiguous()
        if parts.told is not None:
            tensors |= {f"told.{n}": getattr(parts.told, n).contiguous() for n in TOLD}
        if parts.held_out is not None:
            tensors |= {f"held_out.{n}": getattr(parts.held_out, n).contiguous() for n in HELD_OUT}
    save_file(tensors, folder / "head.safetensors")
    head = saved.head
    facts = HeadManifest(
        dim=head.dim,
        visual=head.visual,
        normalise_values=head.normalise_values,
        loss_bias=head.log_beta is not None,
        text_fp=saved.text_fp,
        image_fp=saved.image_fp,
        parts=part_facts,
    )
    facts.save(folder / "head.json")
    if log:
        kept = [{k: v for k, v in entry.items() if k not in _TIMES} for entry in log]
        text = json.dumps({"kind": "lgr", "config": config, "log": kept}, indent=2, sort_keys=True)
        (folder / "train.json").write_text(text + "\n", encoding="utf-8")


def load_head(folder: Path) -> SavedHead:
    """Read what `save_head` wrote. Whether its weights are still those, `Workspace.objects.whole` tells.

    Raises:
        WorkspaceError: A file is missing or damaged.
    """
    try:
        facts = HeadManifest.load(folder / "head.json")
        tensors = load_file(folder / "head.safetensors")
        class_ids = tensors.pop("class_ids")
        if class_ids.dtype != torch.int64:
            raise ValueError(f"class_ids are {class_ids.dtype}, expected int64")
        parts = None if facts.parts is None else _parts(facts.parts, tensors)
        with torch.device("meta"):  # the tensors that were read take its parameters' places
            head = LGRHead(
                facts.dim,
                len(class_ids),
                facts.visual,
                normalise_values=facts.normalise_values,
                loss_bias=facts.loss_bias,
            )
        state = {k.removeprefix("head."): v.float() for k, v in tensors.items()}
        for name in PROJECTIONS:
            state.setdefault(name, torch.eye(facts.dim))
        head.load_state_dict(state, assign=True)
    except (OSError, ValueError, KeyError, RuntimeError, SafetensorError) as error:
        raise WorkspaceError(
            f"the head in {folder} cannot be read: {error}", "Train it again: vlltr train lgr"
        ) from None
    return SavedHead(
        head=head.eval(), class_ids=class_ids, text_fp=facts.text_fp, image_fp=facts.image_fp, parts=parts
    )


def _parts(facts: RuleFacts, tensors: dict[str, Tensor]) -> RuleParameters:
    """Make the parts of a head, and remove their tensors from `tensors`."""
    shared = {name: tensors.pop(f"generative.{name}").double() for name in SHARED}
    if not bool((shared["spread"] > 0.0).all()):
        raise ValueError("a variance in head.safetensors is not above 0")
    held = None
    if "held_out.labels" in tensors:
        held = HeldOutAnswers(*(tensors.pop(f"held_out.{name}") for name in HELD_OUT))
    kernel = None
    if "kernel.landmarks" in tensors:
        kernel = TextKernel(*(tensors.pop(f"kernel.{name}").float() for name in KERNEL))
    shifts = tensors.pop("generative.shifts", None)
    told = None
    if "told.means" in tensors:
        class_ids, digests, means = (tensors.pop(f"told.{name}") for name in TOLD)
        told = ToldMeans(class_ids, digests, means.float())
    outside = None
    if facts.outside is not None:
        scale, text_scale = facts.outside
        outside = Outside(tensors.pop(SPAN).double(), scale=scale, text_scale=text_scale)
    gaussian = SharedGaussian(**shared, text_r2=facts.text_r2, kernel=kernel, outside=outside)
    return RuleParameters(
        gaussian,
        facts.weights,
        text_level=TextLevel(facts.text_level),
        ood_threshold=facts.ood_threshold,
        ratio_weight=facts.ratio_weight,
        held_out=held,
        unknown_accepted=facts.unknown_accepted,
        unknown_range=facts.unknown_range,
        correlation=facts.correlation,
        unit_correlation=facts.unit_correlation,
        text_trust=facts.text_trust,
        shifts=None if shifts is None else shifts.double(),
        told=told,
        texts=facts.texts,
    )
