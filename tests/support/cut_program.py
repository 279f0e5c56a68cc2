"""What the test of power cuts records: `python -m tests.support.cut_program FOLDER` makes a workspace, and writes."""

from __future__ import annotations

import sys
from pathlib import Path

from tests.support.objects import put
from tests.support.tablerows import class_rows, vector_rows
from vlltr_index.pipelines.history import prune
from vlltr_index.schemas.config import Recipe
from vlltr_index.schemas.tables import sentence_vectors, sentence_vectors_name
from vlltr_index.store.workspace import Workspace


def main(folder: Path) -> None:
    """Make a workspace and two commits, and prune."""
    done = folder / "acknowledged"
    workspace = Workspace.create(folder / "workspace", Recipe(name="test"))
    (done / "0").mkdir()
    name = sentence_vectors_name("t")
    for number in (1, 2):

        def build(made: Path, text: str = str(number)) -> None:
            (made / "head.json").write_text(text)

        with workspace.transaction(f"step {number}") as tx:
            tx.upsert("classes", class_rows([number]))
            tx.store.create(name, sentence_vectors(3), "text_hash")
            tx.store.append(name, vector_rows([f"h{number}"], [[1.0, 2.0, float(number)]]))
            tx.set(text_fp="t", head=put(workspace, "heads", build))
        (done / str(number)).mkdir()
    prune(workspace, 1)
    (done / "3").mkdir()


if __name__ == "__main__":
    main(Path(sys.argv[1]))
