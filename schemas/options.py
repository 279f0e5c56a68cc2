"""Options of predictions: one frozen record for the command line, Python, Ray and a run that goes on."""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

from vlltr_index.errors import UsageError

RETRIEVALS = ("auto", "faiss", "exhaustive")
PRIORS = ("balanced", "training", "estimated")
Prior = Literal["balanced", "training", "estimated"] | Mapping[str, float]
"""How common the classes are: all equally; as in training; as among the images asked about, which are looked at once
more for it; or a weight above 0 for each class by name."""

Measurable = Literal["balanced", "training"]
"""Priors that are known before any picture is asked about."""


def checked_prior(prior: Prior) -> Prior:
    """Return a prior, with weights as a dict of numbers.

    Raises:
        UsageError: If it is none.
    """
    if not isinstance(prior, Mapping):
        if prior not in PRIORS:
            raise UsageError(
                f"the prior is 'balanced', 'training', 'estimated' or a weight for each class, got {prior!r}"
            )
        return prior
    found = {str(name): _number(weight) for name, weight in prior.items()}
    wrong = [name for name, weight in found.items() if not (math.isfinite(weight) and weight > 0.0)]
    if wrong:
        raise UsageError(
            f"the prior's weight of class {wrong[0]!r} is no number above 0", "Leave classes out with `only`."
        )
    return found


def checked_retrieval(retrieval: str, prior: Prior = "balanced") -> str:
    """Return a retrieval.

    Raises:
        UsageError: It is none, or one by an index under a prior.
    """
    if retrieval not in RETRIEVALS:
        raise UsageError(f"retrieval is 'auto', 'faiss' or 'exhaustive', got {retrieval!r}")
    if retrieval == "faiss" and prior != "balanced":
        raise UsageError(
            "an index finds classes that are equally common: all are scored under another prior",
            "Leave out: --retrieval faiss",
        )
    return retrieval


def _number(value: object) -> float:
    """Return a value as a number, NaN for what is none."""
    try:
        return float(value)  # type: ignore[arg-type] # anything that converts will do
    except (TypeError, ValueError, OverflowError):
        return math.nan


def named_prior(prior: Prior) -> str:
    """Return a name of a prior: its word, or `given-` and a digest of its weights."""
    if not isinstance(prior, Mapping):
        return prior
    weights = json.dumps(sorted(prior.items())).encode()
    return f"given-{hashlib.sha256(weights).hexdigest()[:8]}"


@dataclass(frozen=True, kw_only=True, slots=True)
class PredictOptions:
    """How images are recognised, and what is said of each.

    Attributes:
        top: Classes an image.
        explain: Sentences a class, by their share of its text score; those that say the same but for a template count
            as one. 0: none.
        retrieval: `faiss` scores the classes that the index retrieves; `exhaustive` all of them; `auto` takes what is
            quicker for a batch: all, where there are fewer than 64,000 anchors, an exact index or a GPU, and for
            several images where there are fewer than 32 anchors a class.
        reject: Whether each prediction says if the image is of any of the classes at all (`known`).
        crops: Crops of each image that make its feature: 1 or 5 (the centre and the corners).
        only: Names of classes: the answer is among them, as if there were no others. All of them are scored.
        neighbours: Nearest training images of the best class, by stored vectors. 0: none.
        parent: The answer is among the classes below this name in the tree of classes, as if there were no others.
        min_probability: Classes that are less probable are left out of an answer, which may leave none.
        min_accuracy: Between 0 and 1: `answer` is of the deepest rank that was right so often on the images held out
            when the head was trained, with the sentences of the classes it holds; None where no rank can answer.
        prior: How common the classes are; with one other than `balanced` all classes are scored.

    Raises:
        UsageError: If `top` is below 1, `explain` or `neighbours` below 0, `retrieval` or `prior` none of these,
            `faiss` is asked for under a prior, `min_accuracy` or `min_probability` does not lie between 0 and 1, or
            `reject`, which looks at all classes, is asked for together with `only` or `parent`.
    """

    top: int = 5
    explain: int = 0
    retrieval: str = "auto"
    reject: bool = False
    crops: int = 1
    only: Sequence[str] | None = None
    neighbours: int = 0
    parent: str | None = None
    min_probability: float = 0.0
    min_accuracy: float | None = None
    prior: Prior = "balanced"

    def __post_init__(self) -> None:
        object.__setattr__(self, "prior", checked_prior(self.prior))
        for name, least in (("top", 1), ("explain", 0), ("neighbours", 0)):
            if getattr(self, name) < least:
                raise UsageError(f"{name} is {least} at least, got {getattr(self, name)}")
        checked_retrieval(self.retrieval, self.prior)
        if not 0.0 <= self.min_probability <= 1.0:
            raise UsageError(
                f"the least probability lies between 0 and 1, got {self.min_probability:g}",
                "For example: 0.8",
            )
        if self.min_accuracy is not None and not 0.0 < self.min_accuracy < 1.0:
            raise UsageError(
                f"the least accuracy lies between 0 and 1, got {self.min_accuracy:g}",
                "For example: 0.95",
            )
        if self.reject and self.some:
            what = "an answer among some classes (only, parent) with reject, which looks at all classes"
            raise UsageError(what, "Leave one of them out.")

    @property
    def some(self) -> bool:
        """Whether the answer is among some of the classes."""
        return self.only is not None or self.parent is not None


USUAL = PredictOptions()
