"""Change the row of a class, and what is written in its name."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import pyarrow as pa

from vlltr_index.data.text import class_prompts, folded, text_hash
from vlltr_index.schemas.records import SentenceRecord
from vlltr_index.schemas.tables import CLASSES
from vlltr_index.store.ingestion import sentence_rows
from vlltr_index.store.taxonomy import rename_node

if TYPE_CHECKING:
    from vlltr_index.store.transaction import Transaction


@dataclass(frozen=True)
class Renaming:
    """What a new name of a class changed.

    Attributes:
        made: Rows of the sentences that are made from the new name.
        replaced: How many sentences had been made from the old one.
        kept: How many other sentences the class has.
        in_tree: Whether the tree of classes had a node of the new name already.
    """

    made: pa.Table
    replaced: int
    kept: int
    in_tree: bool


def change_class(tx: Transaction, class_id: int, **fields: Any) -> None:
    """Update some fields of a class."""
    row = tx.table("classes", where=f"class_id = {class_id}").to_pylist()[0]
    tx.upsert("classes", pa.Table.from_pylist([{**row, **fields}], schema=CLASSES))


def rename(tx: Transaction, class_id: int, new: str) -> Renaming:
    """Rename a class and its node in the tree, and make the sentences again that were made from its name."""
    table = tx.class_table()
    old = table.names[class_id]
    aliases = [alias for alias in table.aliases.get(class_id, ()) if folded(alias) != folded(new)]
    change_class(tx, class_id, name=new, aliases=aliases)
    in_tree = rename_node(tx, old, new)
    rows = tx.table("sentences", ["sentence_id", "text_hash", "source"], f"class_id = {class_id}").to_pylist()
    # Either may have been the recipe's templates when the prompts were made.
    prompts = [*class_prompts(old, tx.recipe.prompts), *class_prompts(old, tx.recipe.templates)]
    made = {("prompt", text_hash(record.text)) for record in prompts}
    made.add(("name", text_hash(old)))
    gone = {row["sentence_id"]: row["source"] for row in rows if (row["source"], row["text_hash"]) in made}
    records = class_prompts(new, tx.recipe.templates) if "prompt" in gone.values() else []
    if "name" in gone.values():
        records = [*records, SentenceRecord(new, new, "name")]
    stay = {row["sentence_id"] for row in rows} - gone.keys()
    new_rows = sentence_rows({class_id: records}, known=stay)
    tx.delete_any("sentences", "sentence_id", gone.keys() - set(new_rows["sentence_id"].to_pylist()))
    tx.upsert("sentences", new_rows)
    return Renaming(new_rows, len(gone), kept=len(stay), in_tree=in_tree)
