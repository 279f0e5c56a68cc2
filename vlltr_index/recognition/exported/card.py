"""The cards of exported folders: YAML front matter for the hub, Markdown for people."""

from __future__ import annotations

import html
import json
import logging
import re
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from fnmatch import fnmatch
from pathlib import Path
from typing import TYPE_CHECKING, Any

from vlltr_index.errors import WorkspaceError
from vlltr_index.recognition.exported.layout import CARD
from vlltr_index.schemas.exported import LIBRARY

if TYPE_CHECKING:
    import pyarrow as pa
    from huggingface_hub import CardData

    from vlltr_index.schemas.exported import ExportedConfig
    from vlltr_index.store.snapshot import Commit
    from vlltr_index.store.workspace import Workspace

__all__ = ["Results", "licence_id", "newest_results", "plain", "save_card", "write_card"]

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

    def top1(self) -> dict[str, dict[str, Any]]:
        """The method's top-1 accuracy by bin, those that were measured."""
        found = self.facts["rows"]["vl-ltr"]["top1"]
        return {name: found[name] for name in _BINS if name in found}


def plain(text: object) -> str:
    """Text from anywhere as one line of Markdown that shows just it: no markup, no HTML, no table cell's end."""
    line = " ".join(str(text).split())
    return _SPECIAL.sub(r"\\\1", html.escape(line, quote=False))


def licence_id(licences: Sequence[str | None]) -> str:
    """The hub's identifier of a licence that all of these are, `other` where they differ or one is unknown."""
    known = {_LICENCES.get(re.sub(r"[\s_]+", "-", (text or "").strip().casefold())) for text in licences}
    found = known.pop() if len(known) == 1 else None
    return found or "other"


def save_card(folder: Path, template: str, data: CardData, sentences: pa.Table, **facts: Any) -> None:
    """Write `README.md` from a template beside this module.

    Args:
        folder: Where to.
        template: Its name.
        data: The front matter.
        sentences: All that are exported, with `source` and `licence`.
        facts: What else the template names.
    """
    from huggingface_hub import RepoCard

    pairs = Counter(zip(sentences["source"].to_pylist(), sentences["licence"].to_pylist(), strict=True))
    card = RepoCard.from_template(
        data,
        str(Path(__file__).with_name(template)),
        plain=plain,
        number="{:,}".format,
        licences=sorted(((*pair, n) for pair, n in pairs.items()), key=lambda row: (-row[2], str(row[0]))),
        **facts,
    )
    card.save(folder / CARD)


def write_card(folder: Path, config: ExportedConfig, sentences: pa.Table, results: Results | None) -> None:
    """Write `README.md` for an exported model.

    Args:
        folder: The folder.
        config: What is exported.
        sentences: All its sentences, with `source` and `licence`.
        results: The evaluation to quote; None: the card says that there is none.
    """
    from huggingface_hub import EvalResult, ModelCardData

    top1 = results.top1() if results is not None else {}
    measured = [
        EvalResult(
            task_type="image-classification",
            dataset_type="own",
            dataset_name="own images",
            dataset_split=results.split,
            metric_type="accuracy",
            metric_name=f"top-1, {name}",
            metric_value=round(float(value["value"]), 4),
        )
        for name, value in top1.items()
        if results is not None and results.same
    ]
    licence = licence_id(sentences["licence"].unique().to_pylist())
    data = ModelCardData(
        library_name=LIBRARY,
        tags=list(_TAGS),
        pipeline_tag="image-classification",
        license=licence,
        license_name="see-data-licences" if licence == "other" else None,
        model_name=f"vlltr-index {config.recipe}" if measured else None,
        eval_results=measured or None,
    )
    save_card(
        folder, "model_card.md", data, sentences, config=config, results=results, top1=top1, shown=_SHOWN
    )


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
