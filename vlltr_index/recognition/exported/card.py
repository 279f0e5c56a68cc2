"""Write the cards of exported folders: YAML front matter for the hub, Markdown for people."""

from __future__ import annotations

import html
import logging
import re
from collections import Counter
from collections.abc import Sequence
from fnmatch import fnmatch
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pydantic import Field, ValidationInfo, field_validator

from vlltr_index.encoders.packaged import LICENCES
from vlltr_index.errors import WorkspaceError
from vlltr_index.recognition.exported.checks import CARD
from vlltr_index.schemas.exported import LIBRARY
from vlltr_index.schemas.manifests import Manifest
from vlltr_index.schemas.records import FEW_UNITS
from vlltr_index.wording import shown

if TYPE_CHECKING:
    import pyarrow as pa
    from huggingface_hub import CardData

    from vlltr_index.schemas.exported import ExportedConfig
    from vlltr_index.store.snapshot import Commit
    from vlltr_index.store.workspace import Workspace

_log = logging.getLogger(__name__)

_TAGS = ("image-classification", "long-tailed-recognition", "vision-language", "open_clip", "vl-ltr")
_ALIKE = "overall, each class counted alike"
_BINS = (_ALIKE, "overall", "many", "medium", "few", "few5", "new")
_SPECIAL = re.compile(r"([\\`*_{}\[\]()#+!|~-])")
_SHOWN = 50
_LICENCES = (
    *("apache-2.0", "mit", "cc0-1.0", "cc-by-4.0", "cc-by-3.0", "cc-by-2.0", "cc-by-sa-4.0", "cc-by-sa-3.0"),
    *("cc-by-nc-4.0", "cc-by-nc-sa-4.0", "unlicense"),
)
_SAME = ("head", "checkpoint", "text_fp", "image_fp", "fusion", "selection_id")
_TABLES = ("anchors", "class_stats")


def plain(text: object) -> str:
    """Escape any text as one line of Markdown without markup, HTML or table syntax."""
    line = shown(" ".join(str(text).split()))
    return _SPECIAL.sub(r"\\\1", html.escape(line, quote=False))


def licence_id(licences: Sequence[str | None]) -> str:
    """Return the hub's identifier of a licence that all of these are, or `other` if they differ or one is unknown."""
    named = {re.sub(r"[\s_]+", "-", (text or "").strip().casefold()) for text in licences}
    return named.pop() if len(named) == 1 and named < set(_LICENCES) else "other"


def weights_licences(encoder: str) -> str:
    """Return what is known of the licences of the weights of an encoder, by its name, and of the training images."""
    known = LICENCES.get(encoder)
    if known is None:
        what = "The licence of the weights that the encoder started from and that of the training images are"
        return f"{what} not recorded here; they apply, too."
    images = "The licence of the training images is not recorded here; it applies, too."
    return f"The encoder's weights are made from {known}. {images}"


def save_card(folder: Path, template: str, data: CardData, sentences: pa.Table, **facts: Any) -> None:
    """Write `README.md` from a template beside this module.

    Args:
        folder: The exported folder.
        template: File name of the template.
        data: The front matter.
        sentences: All exported sentences, with `source` and `licence`.
        facts: Other variables of the template.
    """
    from huggingface_hub import RepoCard

    pairs = Counter(zip(sentences["source"].to_pylist(), sentences["licence"].to_pylist(), strict=True))
    card = RepoCard.from_template(
        data,
        str(Path(__file__).with_name(template)),
        plain=plain,
        number="{:,}".format,
        weights_licences=weights_licences,
        licences=sorted(((*pair, n) for pair, n in pairs.items()), key=lambda row: (-row[2], str(row[0]))),
        **facts,
    )
    card.save(folder / CARD)


def write_card(
    folder: Path,
    config: ExportedConfig,
    names: Sequence[str],
    *,
    sentences: pa.Table,
    results: Results | None,
    texts: str,
    attends: bool,
) -> None:
    """Write `README.md` for an exported model.

    Args:
        folder: The exported folder.
        config: Its configuration.
        names: The classes' names.
        sentences: All exported sentences, with `source` and `licence`.
        results: The evaluation to quote, from `newest_results`; None: the card says that there is none.
        texts: What was decided of the texts when the head was trained, in a sentence, or "".
        attends: Whether the text score, which rests on attention over sentences, has a weight.
    """
    from huggingface_hub import EvalResult, ModelCardData

    found = {} if results is None else results.top1
    top1 = {name: found[name] for name in _BINS if name in found}
    measured = [
        EvalResult(
            task_type="image-classification",
            dataset_type="own",
            dataset_name="own images",
            dataset_split=results.split,
            metric_type="accuracy",
            metric_name=f"top-1, {name}",
            metric_value=round(share.value, 4),
        )
        for name, share in top1.items()
        if results is not None and results.same and not share.few
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
    facts = {"config": config, "names": names, "results": results, "top1": top1, "shown": _SHOWN}
    facts["encoder"] = config.encoder
    save_card(folder, "model_card.md", data, sentences, **facts, texts=texts, attends=attends)


class Share(Manifest):
    """A share of images, with its 95 % interval, the number of images and of the units that these are."""

    value: float
    low: float
    high: float
    images: int
    units: int

    @property
    def few(self) -> bool:
        """Whether a share of so few units says too little."""
        return self.units < FEW_UNITS


class Row(Manifest):
    """Top-1 accuracy of one row by bin; `balanced`: of all, each class counted alike."""

    top1: dict[str, Share] = Field(min_length=1)
    balanced: Share


class MeasuredRow(Manifest):
    """The method's row under a prior."""

    prior: str
    row: str


def _balanced(measures: Sequence[MeasuredRow]) -> str:
    """Return the method's row where all classes are taken to be equally common."""
    return next((one.row for one in measures if one.prior == "balanced"), "vl-ltr")


class Results(Manifest):
    """The part of an evaluation's report that a card quotes.

    Attributes:
        prior: How common the classes were taken to be.
        measures: The method's rows, that under `prior` first.
        rows: The rows of the table.
        same: Whether the exported commit predicts as the evaluated one does.
    """

    commit: int
    split: str
    crops: int
    images: int
    classes: int
    convention: str
    retrieval: str
    rule: str
    prior: str
    measures: tuple[MeasuredRow, ...]
    rows: dict[str, Row]
    same: bool = False

    @field_validator("rows")
    @classmethod
    def _has_the_methods(cls, rows: dict[str, Row], info: ValidationInfo) -> dict[str, Row]:
        """Refuse rows without the one that a card quotes."""
        row = _balanced(info.data.get("measures", ()))
        if row not in rows:
            raise ValueError(f"there is no row {row!r}")
        return rows

    @property
    def top1(self) -> dict[str, Share]:
        """Accuracy of the method under `balanced`, first where each class counts alike, then by bin."""
        row = self.rows[_balanced(self.measures)]
        first = {} if row.balanced.few else {_ALIKE: row.balanced}
        return first | row.top1


def newest_results(workspace: Workspace, commit: Commit) -> Results | None:
    """Return the newest plain evaluation of `commit` or an earlier one, of training images only if there is no other.

    It is a report that `vlltr evaluate` wrote to `reports/`. `same` says whether the evaluated commit predicts as
    `commit` does, with the same towers, head, anchors, class statistics and rule.
    """
    found = []
    for name in workspace.storage.names("reports"):
        if fnmatch(name, "evaluate-*[0-9].json") or fnmatch(name, "evaluate-*[0-9]-prior-training.json"):
            try:
                results = Results.parse(workspace.storage.read(f"reports/{name}"), name)
            except (ValueError, OSError) as error:
                _log.warning("reports/%s is left out of the model card: %s", name, error)
            else:
                plain = results.crops == 1 and results.prior in ("balanced", "training")
                if plain and results.commit <= commit.id:
                    found.append(results)
    if not found:
        return None
    best = max(found, key=lambda one: (one.split != "train", one.commit, one.split == "test"))
    same = best.commit in (commit.id, commit.state)
    if not same and best.commit in workspace.history.ids():
        try:
            other = workspace.history.read(best.commit)
        except WorkspaceError:  # the evaluated commit's file is damaged
            return best
        same = all(getattr(other, name) == getattr(commit, name) for name in _SAME)
        same = same and all(other.tables.get(name) == commit.tables.get(name) for name in _TABLES)
    return best.model_copy(update={"same": same})
