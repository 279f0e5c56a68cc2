"""Which meaning of a noun its icons show, by hand, and whether selection (AnSS) keeps the glosses of that one.

    python -m benchmarks senses sheets --dir DIR         what a labeller sees: pictures and glosses, in two orders
    python -m benchmarks senses run --workspace DIR

Drawn are pairs of a trained class of Icons-LT with several senses in WordNet and one of these. A pair is right if a
good part of the class's icons show what the gloss says, if only as its usual symbol. recipes/icons_lt/senses.csv has
two labellings: 1 is right, 0 wrong. DIR of `run` is a finished workspace of long_tailed.
"""

from __future__ import annotations

import csv
import io
import json
import random
import re
from collections import Counter, defaultdict
from collections.abc import Sequence
from pathlib import Path
from statistics import median
from typing import Any

import pyarrow.parquet as pq
from PIL import Image, ImageDraw, ImageOps

from benchmarks.kept import keep, read, surroundings
from benchmarks.studies.workspaces import ICONS, RECIPES, dataset, files_of
from benchmarks.study import Command, Study, add_folder
from vlltr_index.data.text import sentence_id, text_hash
from vlltr_index.store.workspace import Workspace

PAIRS = 200
SEED = 0
LABELS = RECIPES / ICONS / "senses.csv"
_ACROSS = 12
_SIDE = 64
_ROWS = 16


def sources() -> dict[str, list[tuple[str, str]]]:
    """Each trained class's sentences and where they come from, such as `wordnet:gloss:2`."""
    files = files_of(ICONS)
    told = json.loads(files.texts.read_text(encoding="utf-8"))
    classes = json.loads((files.folder / "classes.json").read_text(encoding="utf-8"))
    return {name: list(zip(told[name], classes[name]["sources"], strict=True)) for name in told}


def glosses() -> dict[tuple[str, int], list[str]]:
    """The gloss sentences of each trained class and sense."""
    found = defaultdict[tuple[str, int], list[str]](list)
    for name, pairs in sources().items():
        for sentence, source in pairs:
            if source.startswith("wordnet:gloss:"):
                found[name, int(source.rpartition(":")[2])].append(sentence)
    return dict(found)


def drawn() -> list[tuple[str, int]]:
    """The pairs of a class and the number of a sense, of classes with several."""
    found = sorted(glosses())
    several = {name for name, number in found if number > 1}
    return random.Random(SEED).sample([pair for pair in found if pair[0] in several], PAIRS)


def sheets(folder: Path) -> None:
    """Write for each of two passes the glosses in its own order, and pictures of their classes, other ones each."""
    table = pq.read_table(files_of(ICONS).images, filters=[("split", "==", "train")]).to_pylist()
    images = defaultdict[str, list[bytes]](list)
    for row in table:
        images[row["label"]].append(row["image"])
    told = glosses()
    for turn in (1, 2):
        order = drawn()
        random.Random(turn).shuffle(order)
        names = list(dict.fromkeys(name for name, _ in order))
        plain = [next(s for s in told[pair] if not s.startswith("The word")) for pair in order]
        lines = [
            f"{n}\t{name}\t{gloss}" for n, ((name, _), gloss) in enumerate(zip(order, plain, strict=True))
        ]
        (folder / f"pass-{turn}.tsv").write_text("\n".join(lines) + "\n", encoding="utf-8")
        for start in range(0, len(names), _ROWS):
            _sheet(names[start : start + _ROWS], images, turn).save(
                folder / f"pass-{turn}-{start // _ROWS:02}.png"
            )


def _sheet(names: list[str], images: dict[str, list[bytes]], turn: int) -> Image.Image:
    page = Image.new("L", (130 + _ACROSS * _SIDE, _ROWS * _SIDE), 255)
    for row, name in enumerate(names):
        ImageDraw.Draw(page).text((2, row * _SIDE + 24), name, fill=0)
        own = list(images[name])
        random.Random(f"{turn}:{name}").shuffle(own)
        for place, data in enumerate(own[:_ACROSS]):
            icon = ImageOps.invert(Image.open(io.BytesIO(data)).convert("L"))
            page.paste(icon.resize((_SIDE - 6, _SIDE - 6)), (130 + place * _SIDE, row * _SIDE + 3))
    return page


def labelled() -> list[tuple[str, int, int, int]]:
    """Class, sense, and what the two labellings say."""
    with LABELS.open(encoding="utf-8", newline="") as file:
        return [(row[0], *map(int, row[1:])) for row in list(csv.reader(file))[1:]]  # type: ignore[misc] # three numbers


def kappa(first: Sequence[int], second: Sequence[int]) -> float:
    """Cohen's kappa of two labellings by 0 and 1."""
    n = len(first)
    agree = sum(a == b for a, b in zip(first, second, strict=True)) / n
    ones = sum(first) / n, sum(second) / n
    chance = ones[0] * ones[1] + (1 - ones[0]) * (1 - ones[1])
    return (agree - chance) / (1 - chance)


def run(workspace: Path) -> None:
    """See which of the labelled glosses a workspace's selection kept, and where it ranked them."""
    opened = Workspace.open(workspace)
    snapshot = opened.snapshot()
    lookup = snapshot.class_table().lookup
    anchors = set(snapshot.table("anchors", ["sentence_id"])["sentence_id"].to_pylist())
    scores = snapshot.table("sentence_scores", ["sentence_id", "loss"])
    loss = dict(zip(scores["sentence_id"].to_pylist(), scores["loss"].to_pylist(), strict=True))
    kinds = {"all": Counter[str](), "anchors": Counter[str]()}
    keys: dict[str, list[tuple[str, str]]] = {}
    for name, pairs in sources().items():
        keys[name] = [(sentence_id(lookup(name), text_hash(s)), source) for s, source in pairs]
        for key, source in keys[name]:
            kind = source.rpartition(":")[0] or source
            kinds["all"][kind] += 1
            kinds["anchors"][kind] += key in anchors
    rows = []
    for name, sense, first, second in labelled():
        if any(loss[key] is None for key, _ in keys[name]):  # stage 1 saw no image of the class
            continue
        own = sorted(loss[key] for key, _ in keys[name])
        gloss = [key for key, source in keys[name] if source == f"wordnet:gloss:{sense}"]
        whole = [key for key, source in keys[name] if re.fullmatch(f"wordnet:[a-z]+:{sense}", source)]
        rank = own.index(min(loss[key] for key in gloss)) / (len(own) - 1)
        rows.append({
            "class": name, "sense": sense, "first": first, "second": second, "best_rank": round(rank, 4),
            "gloss_kept": sum(key in anchors for key in gloss), "glosses": len(gloss),
            "sense_kept": sum(key in anchors for key in whole), "sentences": len(whole),
        })  # fmt: skip
    result = {
        "seed": opened.recipe.lgr.seed,
        "dataset": dataset(files_of(ICONS)),
        "kinds": kinds,
        "pairs": rows,
    }
    keep("senses", ICONS, {**result, **surroundings()})


def parts() -> dict[str, str]:
    """Return the tables of the labelled workspace."""
    found = read("senses")
    return {"results/senses.md": generated(found[ICONS])} if found else {}


def generated(result: dict[str, Any]) -> str:
    """Agreement, and what was kept of right and wrong glosses, as Markdown."""
    pairs = result["pairs"]
    first = [one for _, _, one, _ in labelled()]
    second = [two for _, _, _, two in labelled()]
    same = sum(a == b for a, b in zip(first, second, strict=True))
    agreed = [pair for pair in pairs if pair["first"] == pair["second"]]
    lines = [
        f"{PAIRS} pairs of a class and a sense. Right by the first labelling {sum(first)}, by the second {sum(second)};"
        f" they agree on {same}, Cohen's kappa {kappa(first, second):.2f}. Of those, as the run of seed"
        f" {result['seed']} chose, without {PAIRS - len(pairs)} pairs of classes whose images it kept out of stage 1:",
        "",
        "| gloss | pairs | dropped | sentences of the sense dropped | median rank of the gloss in its class |",
        "| --- | --- | --- | --- | --- |",
    ]
    for label, value in (("right", 1), ("wrong", 0)):
        part = [pair for pair in agreed if pair["first"] == value]
        dropped = 100 * sum(pair["gloss_kept"] == 0 for pair in part) / len(part)
        kept, there = (sum(pair[key] for pair in part) for key in ("sense_kept", "sentences"))
        rank = median(pair["best_rank"] for pair in part)
        lines.append(
            f"| {label} | {len(part)} | {dropped:.0f} % | {100 - 100 * kept / there:.0f} % | {100 * rank:.0f} % |"
        )
    right, wrong = ([p["best_rank"] for p in agreed if p["first"] == value] for value in (1, 0))
    ahead = sum((a < b) + (a == b) / 2 for a in right for b in wrong) / (len(right) * len(wrong))
    every = result["kinds"]["all"]
    kept = result["kinds"]["anchors"]
    shares = sorted(every, key=lambda kind: -kept[kind])
    lines += [
        "",
        f"A right gloss stands before a wrong one in {100 * ahead:.0f} % of all such pairs, each ranked in its class.",
        "",
        "| sentences | of all, % | of the anchors, % |",
        "| --- | --- | --- |",
    ]
    for kind in shares:
        cells = [f"{100 * some[kind] / sum(some.values()):.0f}" for some in (every, kept)]
        lines.append(f"| {kind.replace('wordnet:', 'WordNet: ')} | {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"


STUDY = Study(
    {
        "run": Command(run, lambda parser: parser.add_argument("--workspace", type=Path, required=True)),
        "sheets": Command(sheets, add_folder),
    },
    parts,
)
