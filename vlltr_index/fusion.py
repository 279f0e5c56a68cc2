"""One distribution from the visual and the text branch, over classes that may or may not have a visual row.

The visual branch is a distribution over the classes it has rows for. Three rules put the two together:

- `ours`: what the text branch gives to the classes without a row, u, is kept for them, and the rest is shared between
  the branches by alpha. A class that came later is not starved. Where the branches disagree about which trained class
  an image shows, it may well show none of them: by `agreement`, that speaks for the classes that came later.
- `paper`: alpha P^I + (1 - alpha) P^T, whatever classes have rows (VL-LTR's sum at alpha = 0.5; its release has 0.2
  and 0.7).
- `logits`: softmax of the sum of both branches' logits, by which the release counts its many, medium and few.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, NamedTuple, get_args

import torch
from torch import Tensor

from vlltr_index.errors import InputError
from vlltr_index.schemas.config import LARGEST, LARGEST_FACTOR
from vlltr_index.tensors import check_labels, check_matrix, check_vector, working_dtype

__all__ = ["FusedScores", "FusionParams", "Rule", "disagreement", "fuse", "imprint_row", "moderate"]

Rule = Literal["ours", "paper", "logits"]

_LEAST_AGREEMENT = 1e-6
_LARGEST = {
    "tau_visual": LARGEST,
    "tau_text": LARGEST,
    "margin": LARGEST,
    "imprint_lift": LARGEST,
    "agreement": LARGEST_FACTOR,
    "imprint_strength": LARGEST_FACTOR,
}


@dataclass(frozen=True, slots=True)
class FusionParams:
    """What calibration fits.

    Attributes:
        alpha: Weight of the visual branch, 0 to 1; the rule `logits` has no use for it.
        tau_visual: Temperature of the visual logits, above 0.
        tau_text: Temperature of the text logits, above 0.
        margin: Taken off the text logits of classes the head was trained on, after the temperature.
        rule: How the branches are put together, see the module.
        agreement: How often -log of the branches' agreement about the trained classes is taken off too, 0 or more; only
            the rule `ours` has a use for it.
        imprint_strength: What imprinted rows' logits are multiplied by, about their level at the training mean; over 0.
            At full strength a hundred of them take several points from the old classes, for each has a direction that
            no training has smoothed. See `moderate`.
        imprint_lift: Added to them, before the temperature.
    """

    alpha: float = 0.5
    tau_visual: float = 1.0
    tau_text: float = 1.0
    margin: float = 0.0
    rule: Rule = "ours"
    agreement: float = 0.0
    imprint_strength: float = 0.8
    imprint_lift: float = 1.0

    def __post_init__(self) -> None:
        if self.rule not in get_args(Rule):
            raise InputError(f"the rule of fusion must be 'ours', 'paper' or 'logits', got {self.rule!r}")
        if not 0.0 <= self.alpha <= 1.0:
            raise InputError(f"alpha must lie in 0..1, got {self.alpha}", "vlltr calibrate")
        if not self.agreement >= 0.0:
            raise InputError(f"agreement must not be below 0, got {self.agreement}", "vlltr calibrate")
        if not self.imprint_strength > 0.0:
            raise InputError(
                f"imprint_strength must be above 0, got {self.imprint_strength}", "vlltr calibrate"
            )
        if not (self.tau_visual > 0.0 and self.tau_text > 0.0):
            raise InputError(
                f"temperatures must be above 0, got {self.tau_visual} and {self.tau_text}", "vlltr calibrate"
            )
        for name in ("tau_visual", "tau_text"):
            if not getattr(self, name) >= 1 / LARGEST:
                raise InputError(
                    f"{name} must not be below {1 / LARGEST:g}, got {getattr(self, name)}", "vlltr calibrate"
                )
        for name, largest in _LARGEST.items():
            if not abs(getattr(self, name)) <= largest:  # nan too
                raise InputError(
                    f"{name} must lie within {largest:,.0f}, got {getattr(self, name)}", "vlltr calibrate"
                )


class FusedScores(NamedTuple):
    """Probabilities and where they come from.

    Under the rules `ours` and `paper` the parts add up to the probabilities; under `logits` to the logarithm of each
    probability, up to a constant of the image: they are the branches' logits there.

    Attributes:
        probabilities: Float [B, C], rows sum to one.
        visual_part: Float [B, C]: what the visual branch gives, see `fuse`.
        text_part: Float [B, C]: what the text branch gives.
        u: Float [B]: text probability of all classes without a visual row.
        by_image: Float [B, C]: P^I, the visual branch alone; zero for classes without a row.
        by_text: Float [B, C]: P^T, the text branch alone.
    """

    probabilities: Tensor
    visual_part: Tensor
    text_part: Tensor
    u: Tensor
    by_image: Tensor
    by_text: Tensor


def fuse(
    visual_logits: Tensor, text_logits: Tensor, row_class: Tensor, trained: Tensor, params: FusionParams
) -> FusedScores:
    """Fuse the branches by `params.rule`.

    `ours`: alpha P^I (1 - u) + (1 - alpha) P^T for classes with a visual row, P^T for the others, where the trained
    classes' text logits are lower by the margin, and by agreement * `disagreement`. `paper`:
    alpha P^I + (1 - alpha) P^T. `logits`: softmax of visual logit + text logit, where a class without a row has the
    mean visual logit of the rows (it speaks neither for nor against), and one with several rows their logsumexp.

    Args:
        visual_logits: Float [B, C_v], one column a visual row.
        text_logits: Float [B, C].
        row_class: Integers [C_v]: position among the C classes of each visual row's class; -1 for a retired
            row, which is masked before the softmax. Rows of one class (merged classes) add their
            probabilities.
        trained: Bool [C]: classes the head was trained on; imprinted and text-only ones are not.
        params: Rule, weight, temperatures and margin.

    Returns:
        The scores, in float32 at least. Without any live row the probabilities are P^T.

    Raises:
        InputError: Shapes or dtypes do not fit, or a row points outside the classes.
    """
    _check(visual_logits, text_logits, row_class, trained)
    dtype = working_dtype(text_logits, visual_logits)
    text = text_logits.to(dtype) / params.tau_text - params.margin * trained.to(dtype)
    live = (row_class >= 0).nonzero()[:, 0]
    owner = row_class[live].long()
    has_row = trained.new_zeros(text.shape[1])
    has_row[owner] = True
    visual = visual_logits[:, live].to(dtype) / params.tau_visual
    if params.rule == "ours" and params.agreement and not bool(trained.all()):
        lower = params.agreement * disagreement(visual, text, owner, trained)
        text = text - lower[:, None] * trained.to(dtype)
    by_text = text.softmax(1)
    by_image = torch.zeros_like(by_text)
    if not len(live):
        zero = torch.zeros_like(by_text)
        part = text if params.rule == "logits" else by_text
        return FusedScores(by_text, zero, part, torch.ones_like(by_text[:, 0]), by_image, by_text)
    by_image = by_image.index_add(1, owner, visual.softmax(1))
    u = torch.where(has_row, 0.0, by_text).sum(1)
    if params.rule == "logits":
        by_class = _class_logits(visual, owner, has_row)
        return FusedScores((by_class + text).softmax(1), by_class, text, u, by_image, by_text)
    if params.rule == "paper":
        visual_part, text_part = params.alpha * by_image, (1.0 - params.alpha) * by_text
    else:
        # The mass the text leaves to classes with a row, summed directly: 1 - u would lose its digits near one.
        known = torch.where(has_row, by_text, 0.0).sum(1, keepdim=True)
        visual_part = params.alpha * known * by_image
        text_part = torch.where(has_row, (1.0 - params.alpha) * by_text, by_text)
    return FusedScores(visual_part + text_part, visual_part, text_part, u, by_image, by_text)


def disagreement(visual: Tensor, text: Tensor, owner: Tensor, trained: Tensor) -> Tensor:
    """-log of the chance that both branches, asked for one trained class each, name the same; float [B], 0 to 14.

    Classes that came later play no part in it, so that adding them changes nothing for those that are there.

    Args:
        visual: Float [B, R], logits of live visual rows, after the temperature.
        text: Float [B, C], text logits, after the temperature.
        owner: Int64 [R], the position of each row's class.
        trained: Bool [C].

    Without a trained class that has a row it is 0.
    """
    rows = trained[owner]
    if not bool(rows.any()):
        return text.new_zeros(len(text))
    by_image = torch.zeros_like(text).index_add(1, owner[rows], visual[:, rows].softmax(1))
    by_text = text.masked_fill(~trained, float("-inf")).softmax(1)
    return -(by_image * by_text).sum(1).clamp(min=_LEAST_AGREEMENT).log()


def _check(visual_logits: Tensor, text_logits: Tensor, row_class: Tensor, trained: Tensor) -> None:
    check_matrix("text_logits", text_logits)
    batch, classes = text_logits.shape
    check_matrix("visual_logits", visual_logits, rows=batch)
    rows = visual_logits.shape[1]
    check_labels("row_class", row_class, rows)
    if rows and not -1 <= int(row_class.min()) <= int(row_class.max()) < classes:
        raise InputError(f"row_class must lie in -1..{classes - 1}, got {torch.unique(row_class).tolist()}")
    check_vector("trained", trained, classes)
    if trained.dtype != torch.bool:
        raise InputError(f"trained must be bool, got {trained.dtype}")


def _class_logits(visual: Tensor, owner: Tensor, has_row: Tensor) -> Tensor:
    """Logits of live rows [B, R] to logits of all classes [B, C]: logsumexp over a class's rows, else the mean."""
    highest = visual.amax(1, keepdim=True)
    columns = owner.expand(len(visual), -1)
    best = visual.new_full((len(visual), len(has_row)), float("-inf")).scatter_reduce(
        1, columns, visual, "amax"
    )
    above = visual - best.gather(1, columns)
    sums = torch.zeros_like(best).index_add(1, owner, above.exp())
    filled = torch.where(has_row, best, highest)  # finite everywhere, so that no infinity meets a zero
    return torch.where(has_row, filled + sums.clamp(min=1.0).log(), visual.mean(1, keepdim=True))


def imprint_row(
    class_mean: Tensor, training_mean: Tensor, trained_weight: Tensor, trained_bias: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """A visual row for a class the linear visual head was not trained on.

    r = class mean - training mean, scaled to the trained rows' mean norm; its bias puts the training mean's
    logit at the trained rows' average there. Without the centring the new row wins everywhere.

    Args:
        class_mean: Float [D], mean feature of the new class's images, as the head sees features
            (unnormalised).
        training_mean: Float [D], mean feature of the training images, g.
        trained_weight: Float [C_v, D], trained rows.
        trained_bias: Float [C_v], or None for zeros.

    Returns:
        The row [D] and its bias, a scalar, in the weight's dtype (float32 at least).

    Raises:
        InputError: Shapes do not fit, there is no trained row, or the class mean equals the training mean.
    """
    check_matrix("trained_weight", trained_weight)
    rows, dim = trained_weight.shape
    check_vector("class_mean", class_mean, dim)
    check_vector("training_mean", training_mean, dim)
    if rows == 0:
        raise InputError("there is no trained visual row to imprint beside", "vlltr train lgr")
    dtype = working_dtype(trained_weight)
    weight, mean = trained_weight.detach().to(dtype), training_mean.detach().to(dtype)
    bias = weight.new_zeros(rows) if trained_bias is None else trained_bias.detach().to(dtype)
    check_vector("trained_bias", bias, rows)
    direction = class_mean.detach().to(dtype) - mean
    length = direction.norm()
    if not float(length) > 0.0:
        raise InputError("the class's mean feature equals the training mean: its images tell nothing apart")
    row = direction / length * weight.norm(dim=1).mean()
    return row, (bias + weight @ mean).mean() - row @ mean


def moderate(logits: Tensor, trained_level: Tensor | float, params: FusionParams) -> Tensor:
    """Logits of imprinted rows as they are used: level + lift + strength * (logit - level).

    Args:
        logits: Float [..., R], of rows from `imprint_row`.
        trained_level: Scalar, the trained rows' mean logit at the training mean; `imprint_row` puts its rows there.
        params: Strength and lift.

    Returns:
        As `logits`.
    """
    return trained_level + params.imprint_lift + params.imprint_strength * (logits - trained_level)
