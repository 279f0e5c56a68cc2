"""`vlltr_index.heads.plda_fit.fit_plda`, as `vlltr train lgr` calls it."""

from __future__ import annotations

from typing import Any

import torch

from benchmarks.speed.feature_width import FITS
from benchmarks.speed.harness import Arrays
from vlltr_index.heads import plda_fit
from vlltr_index.heads.configuration import SHRINKAGES
from vlltr_index.heads.moments import Moments


def prepare(inputs: Arrays, values: dict[str, Any]) -> Any:
    """The images, their labels, the texts of the classes, and how many sets of images are fitted."""
    tensors = [torch.from_numpy(inputs[name].copy()) for name in ("features", "labels", "texts")]
    return *tensors, round(FITS * values["portion"])


def run(state: Any) -> Arrays:
    """Fit all models; compute the log-likelihoods of the images that were left out of each."""
    features, labels, texts, fits = state
    found = []
    for fold in range(fits):  # nothing is left out of the last one
        rest = torch.arange(len(labels)) % (FITS - 1) != fold
        own = labels[rest]
        moments = Moments.of(features[None, rest], own, torch.arange(len(own)), len(texts))
        for shrinkage in SHRINKAGES:
            model = plda_fit.fit_plda(moments, texts, shrinkage)
            found.append(model.log_likelihoods(features[~rest]))
    return {"log_likelihoods": torch.cat(found).numpy()}
