"""What `vlltr calibrate` found, for people."""

from __future__ import annotations

from dataclasses import dataclass

from vlltr_index.calibration import ImprintFit
from vlltr_index.schemas.config import FusionConfig

__all__ = ["CalibrationReport"]


@dataclass(frozen=True)
class CalibrationReport:
    """The fitted values, the run they come from, and what they give on what that run never saw."""

    fusion: FusionConfig
    run_id: str
    pseudo_new: int
    pseudo_few: int
    old_images: int
    new_images: int
    old_alone: float
    old_with_new: float
    new: float
    new_without_margin: float
    reject_auroc: dict[str, float]  # of each score, known images against those of the classes left out
    reject_fpr: dict[
        str, float
    ]  # of each: share of the latter that it accepts beside `fusion.reject_tpr` of the known
    added_accepted: float  # share of the latter that the chosen score accepts once their classes are added
    imprinted: (
        ImprintFit | None
    )  # None where the visual classifier is not linear, or no left-out class has two images

    def lines(self) -> list[str]:
        """The report for people."""
        f = self.fusion
        return [
            f"Calibration {self.run_id}: {self.pseudo_new} classes left out, {self.pseudo_few} cut to 1-5 images.",
            f"alpha {f.alpha:.2f}, temperatures {f.tau_visual:.2f} (image) and {f.tau_text:.2f} (text),"
            f" margin {f.margin:.2f}, agreement {f.agreement:.2f}",
            f"Old classes, each counted alike: {100 * self.old_alone:.1f} % alone,"
            f" {100 * self.old_with_new:.1f} % beside the new ones ({self.old_images:,} images).",
            f"New classes from text: {100 * self.new:.1f} % ({100 * self.new_without_margin:.1f} % without margin and"
            f" agreement; {self.new_images:,} images).",
            *self._imprinted(),
            *self._rejection(),
        ]

    def _imprinted(self) -> list[str]:
        if self.imprinted is None:
            return [
                "Strength and lift of imprinted rows were not fitted: that takes a linear visual classifier and two"
                " images of a left-out class."
            ]
        f, fit = self.fusion, self.imprinted
        return [
            f"Rows imprinted from 1 to 5 images each: strength {f.imprint_strength:.1f}, lift {f.imprint_lift:.1f}. New"
            f" classes {100 * fit.new:.1f} % ({100 * fit.new_from_text:.1f} % of the same images from text), old ones"
            f" {100 * fit.old_with_new:.1f} %."
        ]

    def _rejection(self) -> list[str]:
        f = self.fusion
        if f.reject_score is None or f.reject_threshold is None or f.reject_tpr is None:
            return []
        rates = ", ".join(
            f"{k} {v:.3f} and {100 * self.reject_fpr[k]:.1f} %" for k, v in self.reject_auroc.items()
        )
        return [
            f"None of these: below {f.reject_threshold:.2f} by the score {f.reject_score!r}. That accepts"
            f" {100 * f.reject_tpr:.1f} % of the images of known classes, {100 * self.reject_fpr[f.reject_score]:.1f} %"
            f" of those of classes left out, and {100 * self.added_accepted:.1f} % of the latter once these are added.",
            f"AUROC, and images of unknown classes accepted at that rate, of each score: {rates}.",
        ]
