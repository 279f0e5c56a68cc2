"""Build Icons-LT from the unpacked packages @iconify/json and wordnet-base.

Command: python -m benchmarks.datasets.icons_lt.build --icons PACKAGE --wordnet UNPACKED --out DATA
Hardware: two CPU cores. Expected time: about five minutes. Needs: what requirements.txt beside this file names.
"""

from __future__ import annotations

import argparse
import hashlib
import io
import json
import logging
import platform
from collections import Counter
from collections.abc import Mapping, Sequence
from importlib.metadata import version
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.parquet as pq

from benchmarks.datasets.icons_lt import classes, render, splits, texts
from benchmarks.datasets.icons_lt.collect import HERE, Icon, collect, read_set, table
from benchmarks.datasets.icons_lt.wordnet import WordNet

LOG = logging.getLogger(__name__)
NAME = "icons_lt"
Images = npt.NDArray[np.uint8]


def draw_all(icons: Sequence[Icon], jobs: int) -> tuple[list[Icon], Images]:
    """The icons that leave ink, and their images, uint8 [N, 48, 48]."""
    with get_context("spawn").Pool(jobs) as pool:
        images = pool.map(render.draw, [icon.drawing for icon in icons], chunksize=100)
    drawn = [(icon, image) for icon, image in zip(icons, images, strict=True) if image is not None]
    return [icon for icon, _ in drawn], np.stack([image for _, image in drawn])


def assemble(icons: Sequence[Icon], images: Images, nouns: WordNet) -> dict[str, Any]:
    """The data set: `picture_table` (for Parquet), `texts`, `heldout`, `classes`, and `figures` of the build."""
    found = classes.make_classes(icons, render.features(images), nouns)
    LOG.info("%d classes of three families or more", len(found.members))
    names = {noun: [noun, *found.merged.get(noun, [])] for noun in found.members}
    shared = splits.split(found.members, names, icons, nouns)
    spoken, struck = _speak(icons, names, found.twins, shared, nouns)
    rows = sorted(
        (splits.SPLITS.index(split), texts.plain(noun), icons[number].source, number)
        for noun, parts in shared.rows.items()
        for split, numbers in parts.items()
        for number in numbers
    )
    picture_table = pa.table(
        {
            "image": pa.array([render.to_png(images[number]) for *_, number in rows], pa.binary()),
            "label": pa.array([label for _, label, *_ in rows], pa.string()),
            "split": pa.array([splits.SPLITS[split] for split, *_ in rows], pa.string()),
            "source": pa.array([source for *_, source, _ in rows], pa.string()),
            "group": pa.array([icons[number].family for *_, number in rows], pa.string()),
        }
    )
    records = {
        texts.plain(noun): _record(noun, names[noun], parts, shared.held_out.get(noun), spoken[noun], nouns)
        for noun, parts in shared.rows.items()
    }
    said = {noun: [text for text, _ in sentences] for noun, sentences in spoken.items()}
    return {
        "picture_table": picture_table,
        "classes": records,
        "texts": {texts.plain(n): s for n, s in said.items() if n not in shared.held_out},
        "heldout": {
            part: {texts.plain(n): said[n] for n, of in shared.held_out.items() if of == part}
            for part in splits.HELD_OUT_SETS
        },
        "figures": {
            "icons_drawn": len(icons),
            "near_duplicates_dropped": len({number for number, _ in found.repeated}),
            "drawings_of_two_classes_dropped": found.ambiguous,
            "nouns_merged": sum(map(len, found.merged.values())),
            "sentences_struck": struck,
        },
    }


def _speak(
    icons: Sequence[Icon],
    names: Mapping[str, Sequence[str]],
    twins: Mapping[str, Sequence[str]],
    shared: splits.Split,
    nouns: WordNet,
) -> tuple[dict[str, list[texts.Sentence]], int]:
    """Sentences of every class without those that name a held-out class, and how many of these there were."""
    by_noun: dict[str, list[Icon]] = {}
    for icon in icons:
        by_noun.setdefault(icon.noun, []).append(icon)
    patterns = {
        held: texts.secret_pattern(texts.plain(name) for name in names[held]) for held in shared.held_out
    }
    anyone = texts.secret_pattern(texts.plain(name) for held in shared.held_out for name in names[held])
    spoken: dict[str, list[texts.Sentence]] = {}
    struck = 0
    for noun in shared.rows:
        own = [icon for name in names[noun] for icon in by_noun[name]]
        every = texts.sentences_of(noun, names[noun][1:], own, twins[noun], nouns)
        spoken[noun] = [
            (text, source)
            for text, source in every
            if not anyone.search(text.casefold())
            or not any(p.search(text.casefold()) for held, p in patterns.items() if held != noun)
        ]
        struck += len(every) - len(spoken[noun])
    return spoken, struck


def _record(
    noun: str,
    names: Sequence[str],
    parts: Mapping[str, Sequence[int]],
    held: str | None,
    spoken: Sequence[texts.Sentence],
    nouns: WordNet,
) -> dict[str, Any]:
    main = nouns.main_sense(noun)
    assert main is not None
    train = len(parts.get("train", ()))
    return {
        "aliases": [texts.plain(name) for name in names[1:]],
        "synset": main.offset,
        "hypernyms": main.related("@", "@i"),
        "senses": nouns.index[noun],
        "bin": None if held else splits.bin_of(train),
        "train": train,
        "heldout": held,
        "sources": [source for _, source in spoken],
    }


def encoded(pictures: pa.Table) -> bytes:
    """The table as a Parquet file."""
    buffer = io.BytesIO()
    pq.write_table(
        pictures,
        buffer,
        compression="zstd",
        compression_level=9,
        use_dictionary=["label", "split", "group"],
        version="2.6",
        row_group_size=8192,
        write_statistics=False,
        store_schema=False,
    )
    return buffer.getvalue()


def counts(pictures: pa.Table, records: Mapping[str, Mapping[str, Any]]) -> dict[str, Any]:
    """Images by split, classes by bin, families by side."""
    by_split = Counter(pictures["split"].to_pylist())
    bins = Counter(record["bin"] for record in records.values())
    train = {record["train"] for record in records.values()}
    pairs = zip(pictures["split"].to_pylist(), pictures["group"].to_pylist(), strict=True)
    sides = {(split.endswith("test"), group) for split, group in pairs}
    return {
        "images": {split: by_split[split] for split in splits.SPLITS},
        "classes": {name: bins[name] for name in ("many", "medium", "few")},
        "few5": sum(1 for record in records.values() if record["bin"] and record["train"] <= 5),
        "most_train": max(train),
        "held_out": dict(sorted(Counter(r["heldout"] for r in records.values() if r["heldout"]).items())),
        "families": {
            "train": sum(1 for is_test, _ in sides if not is_test),
            "test": sum(1 for is_test, _ in sides if is_test),
        },
        "sentences": sum(len(record["sources"]) for record in records.values()),
    }


def sets_markdown(package: Path, used: Mapping[str, int]) -> str:
    """The attribution: every set that images come from, with its family, author, licence, version and images."""
    release = json.loads((package / "package.json").read_text(encoding="utf-8"))["version"]
    lines = [
        "# Icon sets drawn from\n",
        f"Read from the npm package `@iconify/json` {release}. The icons were changed: drawn in grey at 48",
        "pixels, centred and scaled to one size. Copyright is each author's. CC BY asks to name the author, link the",
        "licence and say what was changed: this table does. `LICENCES.md` has the notices.\n",
        "| set | family | author | licence | version | images |",
        "| --- | --- | --- | --- | --- | --- |",
    ]
    for family, entry in table()["families"].items():
        for name in entry["sets"]:
            if name in used:
                info = read_set(package, name)["info"]
                author, licence = info["author"], info["license"]
                lines.append(
                    f"| {_link(info['name'], author.get('url'))} (`{name}`) | {family} | {author['name']} | "
                    f"{_link(licence.get('spdx') or licence['title'], licence.get('url'))} | "
                    f"{info.get('version', '')} | {used[name]} |"
                )
    return "\n".join(lines) + "\n"


def _link(text: str, url: str | None) -> str:
    return f"[{text}]({url})" if url else text


def write_json(path: Path, value: Any) -> None:
    """Write JSON with sorted keys and one final newline."""
    path.write_text(json.dumps(value, ensure_ascii=False, indent=0, sort_keys=True) + "\n", encoding="utf-8")


def write_all(out: Path, made: Mapping[str, Any], package: Path, wordnet: Path) -> dict[str, str]:
    """Write every file, the manifest last; return the files' hashes."""
    out.mkdir(parents=True, exist_ok=True)
    pictures = made["picture_table"]
    (out / f"{NAME}.parquet").write_bytes(encoded(pictures))
    for name in ("texts", "heldout", "classes"):
        write_json(out / f"{name}.json", made[name])
    used = Counter(source.split("/")[1] for source in pictures["source"].to_pylist())
    (out / "SETS.md").write_text(sets_markdown(package, used), encoding="utf-8")
    notice = (wordnet / "usr/share/doc/wordnet-base/copyright").read_text(encoding="utf-8")
    (out / "WORDNET-LICENSE.txt").write_text(notice, encoding="utf-8")
    written = [
        f"{NAME}.parquet",
        "texts.json",
        "heldout.json",
        "classes.json",
        "SETS.md",
        "WORDNET-LICENSE.txt",
    ]
    hashes = {name: hashlib.sha256((out / name).read_bytes()).hexdigest() for name in written}
    manifest = {
        "name": NAME,
        "files": hashes,
        "counts": counts(pictures, made["classes"]),
        "figures": made["figures"],
        "versions": {
            "python": platform.python_version(),
            **{name: version(name) for name in ("numpy", "pillow", "pyarrow", "resvg_py")},
        },
    }
    write_json(out / "manifest.json", manifest)
    return hashes


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.datasets.icons_lt.build", description=__doc__)
    parser.add_argument("--icons", type=Path, required=True, help="the unpacked npm package @iconify/json")
    parser.add_argument(
        "--wordnet", type=Path, required=True, help="the unpacked Debian package wordnet-base"
    )
    parser.add_argument("--out", type=Path, default=HERE / "data", help="folder to write the data set into")
    parser.add_argument("--jobs", type=int, default=2, help="processes that draw (default 2)")
    options = parser.parse_args(argv)
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    nouns = WordNet(options.wordnet / "usr/share/wordnet")
    icons, images = draw_all(collect(options.icons, nouns), options.jobs)
    LOG.info("%d icons drawn", len(icons))
    for name, value in write_all(
        options.out, assemble(icons, images, nouns), options.icons, options.wordnet
    ).items():
        LOG.info("%s  %s", value, name)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
