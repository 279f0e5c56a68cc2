"""Families of encoders: how a recipe names them, what their weights are, and what can be done with them.

A new family takes an entry here and a loader in `vlltr_index.encoders`. Nothing else asks which families there are or
whether one has a text tower: commands read what follows from it from the properties of `Family`.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

from vlltr_index.errors import UsageError

Prompts = Literal["clip"] | tuple[str, ...]
"""Templates of the prompts; `clip`: CLIP's 80."""


@dataclass(frozen=True, kw_only=True)
class Family:
    """A family of encoders.

    Attributes:
        model: What `encoder.model` is in a recipe.
        weights: What `encoder.pretrained` is: a tag or a file; a folder or a repository, which names one encoder of
            the family; or always `packages`, where the weights come from installed packages alone.
        has_text_tower: Whether texts have vectors. Otherwise these are zeros, and texts count by their words.
    """

    model: str
    weights: Literal["tag", "folder", "repository", "packages"] = "tag"
    has_text_tower: bool = True

    @property
    def is_place(self) -> bool:
        """Whether `encoder.pretrained` names the encoder, which `encoder.model` does otherwise."""
        return self.weights in ("folder", "repository")

    def require_texts(self, what: str, hint: str) -> None:
        """Check that texts have vectors.

        Args:
            what: What needs them.
            hint: What to do without.

        Raises:
            UsageError: They have none.
        """
        if not self.has_text_tower:
            raise UsageError(f"{what}, and this encoder has no text tower", hint)

    @property
    def has_cosines(self) -> bool:
        """Whether texts can be compared with images by the cosine of their vectors, which is what stage 1 trains."""
        return self.has_text_tower

    @property
    def rules(self) -> tuple[str, ...]:
        """Fusion rules; those of the protocols `paper` and `release` add the probabilities of the text branch."""
        return ("ours", "paper", "logits") if self.has_text_tower else ("ours",)

    @property
    def selection(self) -> Mapping[str, Any]:
        """Settings that replace those of `[select]`.

        Without cosines no score distinguishes sentences: the first ones of each class are selected.
        """
        return {} if self.has_text_tower else {"mode": "cutoff", "max_share": 1.0}

    def templates(self, prompts: Prompts) -> Prompts:
        """Return the templates that `prompts` stands for.

        CLIP's templates have the same words for every class. Where texts count by their words alone, the class name is
        used instead.
        """
        return ("{}",) if prompts == "clip" and not self.has_text_tower else prompts


TIMM = Family(model="timm", weights="folder", has_text_tower=False)
"""Image towers of timm."""

PHOTO = Family(model="vlltr-photo", weights="packages")
"""The paired encoder for photographs."""

TINY = Family(model="vlltr-tiny")
"""The small encoder whose weights for drawn characters ship with this program."""

LOCAL = Family(model="local-dir", weights="folder")
"""Encoders in folders that open_clip or this program wrote."""

HUB = Family(model="hf-hub", weights="repository")
"""Encoders of open_clip on the Hugging Face hub."""

_FAMILIES = (TIMM, PHOTO, TINY, LOCAL, HUB)


def family_of(model: object) -> Family:
    """Return the family that `encoder.model` names; every other name is one of open_clip's."""
    return next((family for family in _FAMILIES if family.model == model), Family(model=str(model)))
