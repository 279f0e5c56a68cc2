"""Visual rows made from a class's images instead of training; `Scorer` moderates their logits."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pyarrow as pa
import torch
from torch import nn

from vlltr_index.fusion import imprint_row
from vlltr_index.loading import image_vectors_of
from vlltr_index.schemas.tables import imprints
from vlltr_index.store import one_of

if TYPE_CHECKING:
    from vlltr_index.scoring import Scorer
    from vlltr_index.transaction import Transaction

__all__ = ["update_imprints"]


def update_imprints(tx: Transaction, scorer: Scorer, touched: set[int]) -> None:
    """Imprint the touched classes that have images and no trained row; drop the rows of those that have neither.

    Args:
        tx: With images and classes as they are to be.
        scorer: Whose head and merges count.
        touched: Classes whose images changed, those that are gone too.
    """
    assert tx.commit is not None
    head = scorer.saved.head
    if not touched or not isinstance(head.visual_head, nn.Linear):
        return
    trained = set(scorer.row_owners.tolist())
    wanted = sorted((touched & set(tx.class_table().ids)) - trained)
    images = tx.table(
        "images",
        ["image_id", "class_id"],
        f"split = 'train' AND problem IS NULL AND {one_of('class_id', wanted)}",
    ).sort_by("image_id")
    rows = _rows(tx, scorer, images) if images.num_rows else []
    made = {row["class_id"] for row in rows}
    gone = sorted(touched - made)
    if gone and tx.has("imprints"):
        tx.delete("imprints", one_of("class_id", gone))
    if rows:
        tx.upsert("imprints", pa.Table.from_pylist(rows, schema=imprints(head.dim)))


def _rows(tx: Transaction, scorer: Scorer, images: pa.Table) -> list[dict[str, Any]]:
    assert tx.commit is not None
    features = image_vectors_of(tx, images["image_id"].to_pylist())
    owners = torch.tensor(images["class_id"].to_pylist())
    visual = scorer.saved.head.visual_head
    assert isinstance(visual, nn.Linear)
    weight, bias = visual.weight.detach(), visual.bias.detach()
    made = []
    for class_id in torch.unique(owners).tolist():
        mine = features[owners == class_id]
        row, offset = imprint_row(mine.mean(0), scorer.saved.training_mean, weight, bias)
        made.append(
            {
                "class_id": class_id,
                "head": tx.commit.head,
                "image_count": len(mine),
                "bias": float(offset),
                "vector": row.tolist(),
            }
        )
    return made
