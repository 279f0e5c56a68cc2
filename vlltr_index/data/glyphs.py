"""Glyphs-LT, the data set that ships with the package: its files, parts of it, and samples as PNG files."""

from __future__ import annotations

import json
from dataclasses import dataclass, replace
from importlib.resources import files
from pathlib import Path

from vlltr_index.data.writing import whole_file, write_file


@dataclass(frozen=True)
class GlyphFiles:
    """Files of the whole data set, or of its small version for a first look."""

    images: Path
    texts: Path
    heldout: Path
    folder: Path

    def heldout_classes(self, group: str = "dev") -> dict[str, list[str]]:
        """Read the sentences of the held-out classes of `dev` or `final`, by class name."""
        values: dict[str, dict[str, list[str]]] = json.loads(self.heldout.read_text(encoding="utf-8"))
        return values[group]


def glyph_files(fast: bool = False) -> GlyphFiles:
    """Return the files of the data set; with `fast` those of the small version."""
    folder = Path(str(files("vlltr_index.recipes.glyphs_lt"))) / "data"
    images = folder / ("fast.parquet" if fast else "glyphs_lt.parquet")
    prefix = "fast_" if fast else ""
    return GlyphFiles(images, folder / f"{prefix}texts.json", folder / f"{prefix}heldout.json", folder)


def write_part(files: GlyphFiles, every: int, folder: Path) -> GlyphFiles:
    """Write each `every`-th class by name, with its images and texts, and all held-out classes, into `folder`."""
    import pyarrow as pa
    import pyarrow.compute as pc
    import pyarrow.parquet as pq

    texts = json.loads(files.texts.read_text(encoding="utf-8"))
    kept = sorted(texts)[::every]
    part = replace(files, images=folder / files.images.name, texts=folder / files.texts.name)
    write_file(part.texts, json.dumps({name: texts[name] for name in kept}, ensure_ascii=False).encode())
    wanted = pa.array([*kept, *files.heldout_classes("dev"), *files.heldout_classes("final")])
    with whole_file(part.images) as unfinished:
        pq.write_table(pq.read_table(files.images, filters=pc.field("label").isin(wanted)), unfinished)
    return part


def write_sample(parquet: Path, split: str, label: str, target: Path, number: int = 0) -> Path:
    """Write one image of a class and split as a PNG file; return `target`."""
    import pyarrow.compute as pc
    import pyarrow.parquet as pq

    table = pq.read_table(parquet, filters=(pc.field("split") == split) & (pc.field("label") == label))
    write_file(target, table["image"][number].as_py())
    return target
