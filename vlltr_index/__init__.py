"""Long-tailed image recognition that knows its classes through text (VL-LTR, Tian et al., ECCV 2022)."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

from vlltr_index.version import VERSION

if TYPE_CHECKING:
    from vlltr_index.classes import add_class as add_class
    from vlltr_index.pipelines.estimator import VLLTRClassifier as VLLTRClassifier
    from vlltr_index.pipelines.fit import fit as fit
    from vlltr_index.recognizer import Recognizer as Recognizer
    from vlltr_index.schemas.options import PredictOptions as PredictOptions
    from vlltr_index.store.workspace import Workspace as Workspace

__version__ = VERSION

_LAZY = {
    "PredictOptions": "vlltr_index.schemas.options",
    "Recognizer": "vlltr_index.recognizer",
    "VLLTRClassifier": "vlltr_index.pipelines.estimator",
    "Workspace": "vlltr_index.store.workspace",
    "add_class": "vlltr_index.classes",
    "fit": "vlltr_index.pipelines.fit",
}

__all__ = ["PredictOptions", "Recognizer", "Workspace", "__version__", "add_class", "fit"]


def __getattr__(name: str) -> Any:
    """Import the public names on first use, so that `import vlltr_index` loads no torch."""
    if name in _LAZY:
        return getattr(import_module(_LAZY[name]), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    """List the public names."""
    return sorted(__all__)
