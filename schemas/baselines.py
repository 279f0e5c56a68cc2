"""The baselines on stored vectors: what each is called and what is said of it; `evaluation.baselines` fits them."""

from __future__ import annotations

from typing import NamedTuple


class BaselineFacts(NamedTuple):
    """What is known of a baseline without fitting it.

    Attributes:
        help: What it is, in a few words.
        is_simple: Whether it is a rule on the model's own vectors, which the model is to beat.
    """

    help: str
    is_simple: bool = True


BASELINES = {
    "ncm": BaselineFacts("nearest class mean, of fc's vectors if fc is trained"),
    "crt": BaselineFacts("fc's classifier trained again on balanced classes", is_simple=False),
    "tau-norm": BaselineFacts("fc's classifier with tau-normalised rows", is_simple=False),
    "lws": BaselineFacts("a learned scale for each class of fc's classifier", is_simple=False),
    "discriminant": BaselineFacts("linear discriminant with a shrunk covariance"),
    "logistic": BaselineFacts("logistic regression, up to 200 classes and 20,000 images"),
    "zero-shot": BaselineFacts("ensemble of prompts"),
    "knn": BaselineFacts("votes of the nearest sentences"),
    "tip-adapter": BaselineFacts("prompts and a cache of at most 16 images per class"),
}
"""By name, in the order of the table; each takes seconds to minutes."""
