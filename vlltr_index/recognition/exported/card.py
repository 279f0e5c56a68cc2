"""The model card of an exported folder: YAML front matter for the hub, Markdown for people."""

from __future__ import annotations

import html
import json
import logging
import re
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from fnmatch import fnmatch
from pathlib import Path
from typing import TYPE_CHECKING, Any

from vlltr_index.errors import WorkspaceError
from vlltr_index.recognition.exported.layout import CARD
from vlltr_index.schemas.exported import LIBRARY

if TYPE_CHECKING:
    import pyarrow as pa

    from vlltr_index.schemas.exported import ExportedConfig
    from vlltr_index.store.history import Commit
    from vlltr_index.store.workspace import Workspace

__all__ = ["Results", "licence_id", "licence_table", "newest_results", "plain", "write_card"]

_log = logging.getLogger(__name__)

_TAGS = ("image-classification", "long-tailed-recognition", "vision-language", "open_clip", "vl-ltr")
_BINS = ("overall", "many", "medium", "few", "few5", "new")
_SPECIAL = re.compile(r"([\\`*_{}\[\]()#+!|~-])")
_SHOWN = 50
_LICENCES = {
    "apache-2.0": "apache-2.0",
    "mit": "mit",
    "cc0-1.0": "cc0-1.0",
    "cc0": "cc0-1.0",
    "cc-by-4.0": "cc-by-4.0",
    "cc-by-3.0": "cc-by-3.0",
    "cc-by-2.0": "cc-by-2.0",
    "cc-by-sa-4.0": "cc-by-sa-4.0",
    "cc-by-sa-3.0": "cc-by-sa-3.0",
    "cc-by-nc-4.0": "cc-by-nc-4.0",
    "cc-by-nc-sa-4.0": "cc-by-nc-sa-4.0",
    "odc-by-1.0": "odc-by",
    "unlicense": "unlicense",
}
_SAME = ("head", "checkpoint", "text_fp", "image_fp", "fusion", "selection_id")
_TABLES = ("anchors", "class_stats")


@dataclass(frozen=True)
class Results:
    """One evaluation, as `vlltr evaluate` left it in the workspace's `reports/`.

    Attributes:
        split: Which images.
        commit: Which commit was measured.
        same: Whether what was measured is what is exported.
        facts: The report as it was written.
    """

    split: str
    commit: int
    same: bool
    facts: Mapping[str, Any]


def plain(text: object) -> str:
    """Text from anywhere as one line of Markdown that shows just it: no markup, no HTML, no table cell's end."""
    line = " ".join(str(text).split())
    return _SPECIAL.sub(r"\\\1", html.escape(line, quote=False))


def licence_id(licences: Sequence[str | None]) -> str:
    """The hub's identifier of a licence that all of these are, `other` where they differ or one is unknown."""
    known = {_LICENCES.get(re.sub(r"[\s_]+", "-", (text or "").strip().casefold())) for text in licences}
    found = known.pop() if len(known) == 1 else None
    return found or "other"


def licence_table(sentences: pa.Table) -> list[str]:
    """Lines of a Markdown table: how many sentences each source gave under which licence."""
    pairs = Counter(zip(sentences["source"].to_pylist(), sentences["licence"].to_pylist(), strict=True))
    lines = ["| source | licence | sentences |", "| --- | --- | ---: |"]
    for (source, licence), number in sorted(pairs.items(), key=lambda item: (-item[1], str(item[0]))):
        lines.append(f"| {plain(source)} | {plain(licence) if licence else 'not stated'} | {number:,} |")
    return lines


def write_card(folder: Path, config: ExportedConfig, sentences: pa.Table, results: Results | None) -> None:
    """Write `README.md` for an exported model.

    Args:
        folder: The folder.
        config: What is exported.
        sentences: All its sentences, with `source` and `licence`.
        results: The evaluation to quote; None: the card says that there is none.
    """
    licence = licence_id(sentences["licence"].unique().to_pylist())
    front = _front_matter(config, licence, results)
    body = "\n".join(_body(config, sentences, results))
    (folder / CARD).write_text(f"---\n{front}\n---\n\n{body}\n", encoding="utf-8")


def _front_matter(config: ExportedConfig, licence: str, results: Results | None) -> str:
    from huggingface_hub import EvalResult, ModelCardData

    measured = []
    if results is not None and results.same:
        for name, value in _top1(results).items():
            measured.append(
                EvalResult(
                    task_type="image-classification",
                    dataset_type="own",
                    dataset_name="own images",
                    dataset_split=results.split,
                    metric_type="accuracy",
                    metric_name=f"top-1, {name}",
                    metric_value=round(float(value["value"]), 4),
                )
            )
    card = ModelCardData(
        library_name=LIBRARY,
        tags=list(_TAGS),
        pipeline_tag="image-classification",
        license=licence,
        license_name="see-data-licences" if licence == "other" else None,
        model_name=f"vlltr-index {config.recipe}" if measured else None,
        eval_results=measured or None,
    )
    return str(card.to_yaml())


def _top1(results: Results) -> dict[str, dict[str, Any]]:
    top1 = results.facts["rows"]["vl-ltr"]["top1"]
    return {name: top1[name] for name in _BINS if name in top1}


def _body(config: ExportedConfig, sentences: pa.Table, results: Results | None) -> Iterator[str]:
    count = f"{len(config.classes):,} classes" if len(config.classes) > 1 else "1 class"
    yield f"# An image classifier for {count} that knows them through text"
    yield ""
    yield (
        "It attends over sentences about each class, and names those behind its text score "
        "(VL-LTR, Tian et al., ECCV 2022). "
        f"Made with {LIBRARY} {plain(config.program_version)}, recipe "
        f"{plain(config.recipe)}, protocol {plain(config.protocol)}, encoder {plain(config.encoder)}. "
        f"{config.anchors:,} of its {config.sentences:,} sentences are anchors. "
        f"Fingerprints: text tower `{config.text_fp}`, image tower `{config.image_fp}`."
    )
    yield ""
    yield from _use(config)
    yield from _results(config, results)
    yield "## Data licences"
    yield ""
    yield "The texts are in `sentences.parquet` and `anchors.parquet`, each with its source, reference and licence."
    yield ""
    yield from licence_table(sentences)
    yield ""
    yield (
        "No image is in this folder. The licence of the weights that the encoder started from and that of the training "
        "images are not recorded here; they apply, too."
    )
    yield ""
    yield from _classes(config)


def _use(config: ExportedConfig) -> Iterator[str]:
    yield "## How to use"
    yield ""
    yield "```sh"
    yield f'pip install "{LIBRARY}[cpu]"'
    yield "```"
    yield ""
    yield "```python"
    yield "from vlltr_index import Recognizer"
    yield ""
    yield 'recognizer = Recognizer.from_pretrained(".")  # this folder, or "user/name" on the hub'
    reject = ", reject=True" if config.rejects else ""
    yield f'for prediction in recognizer.predict(["photo.jpg"], top=5, explain=3{reject}):'
    yield "    for answer in prediction.classes:"
    yield "        print(answer.name, answer.probability, [s.text for s in answer.sentences])"
    yield "```"
    yield ""
    yield "## Intended use"
    yield ""
    yield (
        "Telling apart the classes below in images like those it was trained on. Probabilities say which of these "
        "classes fits best, not whether any does"
        + (": for that, ask for `reject`." if reject else "; no level for that is known.")
        + " An explanation says which sentences the text score rests on, not whether they are true. Not for "
        "decisions about people, and not where a wrong answer does harm without somebody looking at it."
    )
    yield ""


def _results(config: ExportedConfig, results: Results | None) -> Iterator[str]:
    yield "## Results"
    yield ""
    if results is None:
        yield "None: no evaluation has been run in the workspace that this was exported from."
        yield ""
        return
    facts = results.facts
    which = (
        "this model"
        if results.same
        else f"an earlier state of it (commit {results.commit}, this is {config.commit})"
    )
    yield (
        f"Measured on {which}: split {plain(results.split)}, {int(facts['images']):,} images, "
        f"{int(facts['classes']):,} classes, bounds of many, medium and few: {plain(facts['convention'])}, "
        f"retrieval {plain(facts['retrieval'])}, fusion rule {plain(facts['rule'])}."
    )
    yield ""
    yield "| images of | top-1, % | 95 % interval | images |"
    yield "| --- | ---: | --- | ---: |"
    for name, value in _top1(results).items():
        low, high = 100 * float(value["low"]), 100 * float(value["high"])
        yield f"| {name} | {100 * float(value['value']):.1f} | {low:.1f} to {high:.1f} | {int(value['images']):,} |"
    yield ""


def _classes(config: ExportedConfig) -> Iterator[str]:
    yield "## Classes"
    yield ""
    more = len(config.classes) - _SHOWN
    names = ", ".join(plain(item.name) for item in config.classes[:_SHOWN])
    yield names + (f", and {more:,} more: see `config.json`." if more > 0 else ".")


def newest_results(workspace: Workspace, commit: Commit) -> Results | None:
    """The newest plain evaluation of `commit` or one before it, preferring split test; None if there is none."""
    found: list[tuple[tuple[int, bool], Results]] = []
    for name in workspace.storage.names("reports"):
        if not fnmatch(name, "evaluate-*.json"):
            continue
        try:
            facts = json.loads(workspace.storage.read(f"reports/{name}"))
            number, split = int(facts["commit"]), str(facts["split"])
            rows = facts["rows"]["vl-ltr"]
            if not isinstance(rows, dict) or facts["crops"] != 1 or number > commit.id:
                continue
        except (OSError, ValueError, KeyError, TypeError, OverflowError, RecursionError) as error:
            path = workspace.storage.at(f"reports/{name}")
            _log.warning("%s is left out of the model card: %s: %s", path, type(error).__name__, error)
            continue
        same = _same(workspace, commit, number)
        found.append(((number, split == "test"), Results(split, number, same, facts)))
    return max(found, key=lambda item: item[0])[1] if found else None


def _same(workspace: Workspace, commit: Commit, number: int) -> bool:
    """Whether commit `number` answers as `commit` does: the same towers, head, anchors, class statistics and rule."""
    try:
        other = workspace.history.read(number)
    except WorkspaceError:
        return False
    return all(getattr(other, name) == getattr(commit, name) for name in _SAME) and all(
        other.tables.get(name) == commit.tables.get(name) for name in _TABLES
    )
