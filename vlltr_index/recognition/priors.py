"""The class prior by names."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from vlltr_index.errors import PriorError, UnknownClassError
from vlltr_index.tensors import class_positions
from vlltr_index.wording import plural

if TYPE_CHECKING:
    from vlltr_index.recognition.parameters import ClassParameters
    from vlltr_index.store.class_table import ClassTable


def frequencies_given(known: ClassParameters, classes: ClassTable, prior: Mapping[str, float]) -> Tensor:
    """Return the logarithm of how common each class is by names, float64 [C], up to a constant.

    Raises:
        PriorError: If there is no weight for a trained class, two for one, or one for what is no class.
    """
    class_ids = known.class_ids
    weights = torch.zeros(len(class_ids), dtype=torch.float64)
    named: dict[int, str] = {}
    for name, weight in prior.items():
        try:
            class_id = classes.lookup(name)
        except UnknownClassError as error:
            raise PriorError(f"the prior: {error.message}", error.hint) from None
        if class_id in named:
            what = f"the prior has two weights for class {classes.names[class_id]!r}"
            raise PriorError(f"{what}: as {named[class_id]!r} and as {name!r}", "Write it one way.")
        named[class_id] = name
        column = int(class_positions(class_ids, torch.tensor(class_id)))
        if column >= 0:  # a class of which nothing is known is no answer
            weights[column] = weight
    given = weights > 0.0
    lacking = [classes.names[i] for i in class_ids[~given & known.trained].tolist()]
    if lacking:
        what = f"the prior has no weight for {plural(len(lacking), 'class', 'classes')}"
        what += f", such as {lacking[0]!r}"
        raise PriorError(what, "Give each one, also those that cannot be the answer.")
    frequencies = weights.log()
    frequencies[~given] = frequencies[given].mean()  # added classes
    return frequencies
