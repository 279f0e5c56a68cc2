"""Build Glyphs-LT from unpacked Debian packages.

Command: python -m benchmarks.datasets.glyphs_lt.build --fonts UNPACKED --out DATA
Hardware: two CPU cores. Expected time: about two minutes. Needs: fonttools, pillow, numpy, pyarrow.
"""

from __future__ import annotations

import argparse
import hashlib
import io
import json
import logging
import platform
from collections import Counter
from collections.abc import Sequence
from importlib.metadata import version
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from benchmarks.datasets.glyphs_lt import designs as designing
from benchmarks.datasets.glyphs_lt import fonts, homoglyphs, render, splits, unicode_data
from benchmarks.datasets.glyphs_lt.assemble import SPLITS, Dataset, assemble, fast_slice
from benchmarks.datasets.glyphs_lt.licences import copyright_holder, copyright_text

LOG = logging.getLogger(__name__)

NAME = "glyphs_lt"


def draw(faces: Sequence[fonts.Face], codes: tuple[int, ...], jobs: int) -> list[dict[int, render.Image]]:
    """Draw the characters of every face, in `jobs` processes."""
    tasks = [(face, codes) for face in faces]
    if jobs < 2:
        return [render.render_face_task(task) for task in tasks]
    with get_context("spawn").Pool(jobs) as pool:
        return pool.map(render.render_face_task, tasks, chunksize=4)


def write_json(path: Path, value: Any) -> None:
    """Write JSON with sorted keys and one final newline."""
    path.write_text(json.dumps(value, ensure_ascii=False, indent=0, sort_keys=True) + "\n", encoding="utf-8")


def picture_table(data: Dataset, made: Sequence[designing.Design]) -> pa.Table:
    """The rows of a data set: image (PNG bytes), label, split, source."""
    columns = {
        "image": pa.array(
            [render.to_png(made[p.number].images[p.code]) for _, _, p in data.rows], pa.binary()
        ),
        "label": pa.array([name for name, _, _ in data.rows], pa.string()),
        "split": pa.array([split for _, split, _ in data.rows], pa.string()),
        "source": pa.array([p.source for _, _, p in data.rows], pa.string()),
    }
    return pa.table(columns)


def with_groups(table: pa.Table) -> pa.Table:
    """The table with a column `group`: the font group that each `source` begins with."""
    groups = [source.split("/")[0] for source in table["source"].to_pylist()]
    return table.append_column("group", pa.array(groups, pa.string()))


def encoded(table: pa.Table) -> bytes:
    """The table as a Parquet file."""
    buffer = io.BytesIO()
    pq.write_table(
        table,
        buffer,
        compression="zstd",
        compression_level=9,
        use_dictionary=["label", "split"],
        version="2.6",
        row_group_size=8192,
        write_statistics=False,
        store_schema=False,
    )
    return buffer.getvalue()


def _rules() -> dict[str, Any]:
    return {
        "side": render.SIDE,
        "oversample": render.OVERSAMPLE,
        "cap_height": render.CAP_HEIGHT,
        "baseline": render.BASELINE,
        "ink": "0 is paper, 255 is ink",
        "lost_ink": render.LOST_INK,
        "design_distance": fonts.DESIGN_DISTANCE,
        "least_recognised": designing.LEAST_RECOGNISED,
        "most_unicase": designing.MOST_UNICASE,
        "homoglyph_distance": homoglyphs.ALIKE,
        "homoglyph_share": homoglyphs.SHARE,
        "faint_share": homoglyphs.FAINT,
        "homoglyph_least_faces": homoglyphs.LEAST_FACES,
        "many_from": splits.MANY,
        "few_to": splits.FEW,
        "test_images": [splits.LEAST_TEST, splits.MOST_TEST],
        "val": f"1 image of a class with {splits.VAL_FROM} or more from train groups, 2 from {splits.VAL_TWO_FROM}",
        "support": splits.SUPPORT,
        "closure_classes": splits.CLOSURE_CLASSES,
        "held_out_word_classes": splits.HELD_OUT_WORD_CLASSES,
    }


def _counts(data: Dataset) -> dict[str, Any]:
    by_split = Counter(split for _, split, _ in data.rows)
    bins = Counter(c["bin"] for c in data.classes.values() if c["bin"])
    sentences = sorted(len(s) for s in data.texts.values())
    trained = [c["train"] for c in data.classes.values() if c["bin"]]
    return {
        "images": {split: by_split[split] for split in SPLITS if by_split[split]},
        "classes": {name: bins[name] for name in ("many", "medium", "few")},
        "few5": sum(1 for count in trained if count <= 5),
        "held_out": {name: len(held) for name, held in data.held_out.items()},
        "sentences": sum(sentences),
        "sentences_median": sentences[len(sentences) // 2],
    }


def write_all(out: Path, data: Dataset, made: Sequence[designing.Design], more: dict[str, Any]) -> str:
    """Write every file but FONTS.md and the Unicode notice, then the manifest; return the content hash.

    The content hash is made of the files' hashes, that of a table without `group`, which repeats part of `source`.
    """
    small, bare = fast_slice(data), dict[str, str]()
    for prefix, part in (("", data), ("fast_", small)):
        write_json(out / f"{prefix}texts.json", part.texts)
        write_json(out / f"{prefix}heldout.json", part.held_out)
    write_json(out / "classes.json", data.classes)
    for name, part in ((f"{NAME}.parquet", data), ("fast.parquet", small)):
        table = picture_table(part, made)
        bare[name] = hashlib.sha256(encoded(table)).hexdigest()
        (out / name).write_bytes(encoded(with_groups(table)))
    files = sorted(path for path in out.iterdir() if path.is_file() and path.name != "manifest.json")
    hashes = {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in files}
    content = hashlib.sha256(
        "".join(f"{name} {value}\n" for name, value in sorted({**hashes, **bare}.items())).encode()
    ).hexdigest()
    groups = {split: {p.group for _, s, p in data.rows if s == split} for split in ("train", "test")}
    made_of = {
        split: {(p.group, p.design) for _, s, p in data.rows if s == split} for split in ("train", "test")
    }
    write_json(
        out / "manifest.json",
        {
            "name": NAME,
            "content_sha256": content,
            "files": hashes,
            "counts": _counts(data),
            "fast_counts": _counts(small),
            "groups": {split: len(names) for split, names in groups.items()},
            "designs": {split: len(names) for split, names in made_of.items()},
            "sentences_struck": data.struck,
            "rules": _rules(),
            **more,
        },
    )
    return content


def _versions() -> dict[str, str]:
    from PIL import features

    return {
        "python": platform.python_version(),
        "freetype": str(features.version("freetype2")),
        "zlib": str(features.version("zlib")),
        **{name: version(name) for name in ("fonttools", "numpy", "pillow", "pyarrow")},
    }


def build(folder: Path, out: Path, jobs: int) -> str:
    """Build the data set from a folder of unpacked packages into `out`; return the content hash."""
    out.mkdir(parents=True, exist_ok=True)
    place = next(iter(sorted(folder.glob("unicode-data_*"))))
    table = unicode_data.read_unicode(place / "usr" / "share" / "unicode")
    codes = tuple(sorted(code for code, char in table.items() if unicode_data.is_drawn(char)))
    faces = fonts.collect(folder)
    LOG.info("%d families, %d characters", len(faces), len(codes))
    made, dropped = designing.make_designs(faces, draw(faces, codes, jobs))
    merged = homoglyphs.merge_homoglyphs([design.images for design in made])
    clean, miscoded = homoglyphs.drop_miscoded([design.images for design in made], merged)
    clean, faint = homoglyphs.drop_faint(clean, merged)
    for design, images in zip(made, clean, strict=True):
        design.images = images
    LOG.info("%d designs, %d glyphs under a wrong code dropped", len(made), miscoded)
    data = assemble(made, merged, table)
    used = Counter(made[p.number].source[p.code] for _, _, p in data.rows)
    holders = {
        face.package: copyright_holder(
            copyright_text(folder / f"{face.package}_{face.version}", face.package)
        )
        for face in faces
    }
    (out / "FONTS.md").write_text(fonts.fonts_markdown(faces, used, holders), encoding="utf-8")
    notice = (place / "usr" / "share" / "doc" / "unicode-data" / "copyright").read_text(encoding="utf-8")
    (out / "UNICODE-LICENSE.txt").write_text(notice, encoding="utf-8")
    more = {
        "families": len(used),
        "families_screened_out": dropped,
        "families_excluded": fonts.EXCLUDED,
        "glyphs_miscoded": miscoded,
        "glyphs_faint": faint,
        "characters_merged": sum(1 for code, standing in merged.items() if code != standing),
        "unicode_data": place.name.partition("_")[2],
        "versions": _versions(),
    }
    return write_all(out, data, made, more)


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.datasets.glyphs_lt.build", description=__doc__
    )
    parser.add_argument(
        "--fonts", type=Path, required=True, help="folder of unpacked packages, named package_version"
    )
    parser.add_argument("--out", type=Path, required=True, help="folder to write the data set into")
    parser.add_argument("--jobs", type=int, default=2, help="processes that draw (default 2)")
    options = parser.parse_args(argv)
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    LOG.info("content sha256 %s", build(options.fonts, options.out, options.jobs))
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
