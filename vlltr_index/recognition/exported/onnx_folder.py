"""Export a model for onnxruntime: the graph, labels and texts as JSON, resizing as code, and examples without torch."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa
from PIL import Image

from vlltr_index.data.decoding import open_image
from vlltr_index.errors import InputError, MissingPackageError, PretrainedError, UsageError
from vlltr_index.recognition.anchors import TEXT_COLUMNS
from vlltr_index.recognition.exported.card import licence_id, save_card
from vlltr_index.recognition.exported.graph import (
    INPUT,
    OPSET,
    check_exportable,
    output_names,
    write_graph,
)
from vlltr_index.recognition.exported.preprocess import resized_pixels
from vlltr_index.recognition.exported.writing import ExportReport, absolute, exporting_to, folder_size
from vlltr_index.recognition.model import Model
from vlltr_index.schemas.exported import LIBRARY
from vlltr_index.schemas.options import checked_prior, named_prior
from vlltr_index.store.tables import one_of
from vlltr_index.version import VERSION
from vlltr_index.wording import plural

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from vlltr_index.schemas.options import Prior
    from vlltr_index.schemas.records import Progress
    from vlltr_index.store.snapshot import Snapshot
    from vlltr_index.store.workspace import Workspace

MODEL = "model.onnx"
HALF = "model_fp16.onnx"
LABELS = "labels.json"
CODE = ("preprocess.py", "preprocess.mjs", "predict.py", "predict.mjs")

_PACKAGES = ("onnx", "onnxruntime", "onnxscript")
_DIFFERENCE = 1e-4
_POINT = 0.01
_CHECKED = 64  # pictures that probabilities are compared on
_CHECKED_HALF = 5000
_BATCH = 16
_FIRST_SPLITS = ("test", "val")
_UNTRIED = ("float16 is tried on the workspace's pictures, and none can be read", "Leave out: --float16")


@dataclass(frozen=True)
class Comparison:
    """How the answers of a file differ from those that it should give.

    Attributes:
        pictures: Number of pictures that were compared.
        same: Of how many of these both name the same class.
        difference: The largest difference of a probability.
        regret: The largest probability that the class named lacks to the likeliest one, by what it should give.
        drawn: Whether the pictures are random pixels, for want of others.
    """

    pictures: int = 0
    same: int = 0
    difference: float = 0.0
    regret: float = 0.0
    drawn: bool = False

    @property
    def where(self) -> str:
        """Name the pictures."""
        return plural(self.pictures, "picture") + (" of random pixels" if self.drawn else "")

    def with_batch(self, found: NDArray[Any], expected: NDArray[Any]) -> Comparison:
        """Add the probabilities [B, C] of a batch that were found, and those that are expected."""
        rows = np.arange(len(found))
        named = expected[rows, found.argmax(1)]
        return replace(
            self,
            pictures=self.pictures + len(found),
            same=self.same + int((found.argmax(1) == expected.argmax(1)).sum()),
            difference=float(np.maximum(self.difference, np.abs(found - expected).max())),  # NaN stays
            regret=float(np.maximum(self.regret, (expected.max(1) - named).max())),
        )


def export_onnx(
    workspace: Workspace,
    folder: str | Path,
    at: int | None = None,
    *,
    force: bool = False,
    float16: bool = False,
    prior: Prior = "balanced",
    progress: Progress | None = None,
) -> ExportReport:
    """Write a folder that onnxruntime answers from: the graph, `labels.json`, resizing and examples without torch.

    The folder appears whole or not at all, once the graph's probabilities were within 1e-4 of the model's on pictures
    of the workspace, or on random pixels if it has none.

    Args:
        workspace: The workspace to export.
        folder: A new or empty folder.
        at: As of this commit; default: the newest.
        force: Replace an earlier export; a folder with anything else is refused all the same.
        float16: Write the graph with an image tower in float16, too. On 5,000 pictures, or all if there are fewer, it
            names the likeliest class, or one whose probability is less than a point below.
        prior: How common the classes are; `estimated` depends on the pictures, and is refused.
        progress: Called as pictures are compared.

    Raises:
        MissingPackageError: If a package of the extra `onnx` is missing.
        UsageError: If the prior is none, or is `estimated`; else as for `Model.under`.
        PretrainedError: If the folder may not be written, the model has no graph with the same answers, the graph's
            answers differ, or `float16` has no picture to be tried on.
        MissingStepError: If anchors or head are not there yet.
    """
    _check_packages()
    if checked_prior(prior) == "estimated":
        what = "the prior 'estimated' depends on the pictures asked about, and a graph knows none of them"
        raise UsageError(what, "Use --prior training, or a file.")
    snapshot = workspace.snapshot(at)
    model = Model.open(snapshot, device="cpu").under(prior)
    check_exportable(model)
    pictures = _chosen(snapshot)
    if float16 and not pictures:
        raise PretrainedError(*_UNTRIED)
    target = absolute(folder)
    with exporting_to(workspace, target, force) as new:
        write_graph(model, new / MODEL)
        files = {MODEL: _compare(model, new, snapshot, pictures)}
        if float16:
            write_graph(model, new / HALF, half=True)
            files[HALF] = _compare_half(model, new, snapshot, pictures, progress)
        labels = _labels(model, prior, files)
        text = json.dumps(labels, ensure_ascii=False, allow_nan=False, indent=1)
        (new / LABELS).write_text(text + "\n", encoding="utf-8")
        for name in CODE:
            shutil.copyfile(Path(__file__).with_name(name), new / name)
        _write_card(new, model, labels)
    rows = {"classes": len(model.class_ids), "anchors": len(model.anchors.keys)}
    notes = tuple(_said(name, found) for name, found in files.items())
    return ExportReport(str(target), model.first_commit, rows, folder_size(target), notes=notes)


def _check_packages() -> None:
    """Refuse to begin without the packages that write a graph and compare it."""
    missing = [name for name in _PACKAGES if find_spec(name) is None]
    if missing:
        raise MissingPackageError(
            f"an ONNX graph needs {' and '.join(missing)}, not installed",
            'Run: pip install "vlltr-index[onnx]"',
        )


def _chosen(snapshot: Snapshot) -> list[str]:
    """Choose pictures to compare answers on, at most 5,000 ids: test, val, then others, in the order of contents."""
    rows = snapshot.table("images", ["image_id", "content_hash", "split"], "problem IS NULL").to_pylist()
    rows.sort(key=lambda row: (*(row["split"] != split for split in _FIRST_SPLITS), row["content_hash"]))
    return [row["image_id"] for row in rows[:_CHECKED_HALF]]


def _pictures(snapshot: Snapshot, image_ids: Sequence[str]) -> Iterator[list[Image.Image]]:
    """Decode pictures, in lists of `_BATCH`; what cannot be read any more is left out."""
    for start in range(0, len(image_ids), _BATCH):
        some = one_of("image_id", image_ids[start : start + _BATCH])
        images = list[Image.Image]()
        for row in snapshot.table("images", ["uri", "data"], some).to_pylist():
            try:
                images.append(open_image(row["uri"] if row["data"] is None else row["data"]))
            except InputError:
                continue
        if images:
            yield images


def _random_pictures(model: Model) -> list[Image.Image]:
    """Draw pictures of random pixels."""
    size = (_CHECKED, *model.encoder.image_size, 3)
    return [Image.fromarray(one) for one in np.random.default_rng(0).integers(0, 256, size, dtype=np.uint8)]


def pixels_of(model: Model, images: Sequence[Image.Image]) -> NDArray[np.uint8]:
    """Make what the graph takes of pictures, by the code that goes into the folder: uint8 [B, H, W, 3]."""
    how = _preprocess(model)
    return np.stack([resized_pixels(image, how) for image in images])


def _session(path: Path) -> Any:
    from onnxruntime import InferenceSession

    return InferenceSession(path, providers=["CPUExecutionProvider"])


def _compare(model: Model, folder: Path, snapshot: Snapshot, pictures: Sequence[str]) -> Comparison:
    """Compare the graph with the model.

    Raises:
        PretrainedError: If a probability differs by more than 1e-4.
    """
    session = _session(folder / MODEL)

    def with_images(before: Comparison, images: Sequence[Image.Image]) -> Comparison:
        features, _ = model.features(images)
        expected, _ = model.score(features, "exhaustive")
        probabilities = session.run(None, {INPUT: pixels_of(model, images)})[0]
        return before.with_batch(probabilities, expected.probabilities.numpy())

    found = Comparison()
    for images in _pictures(snapshot, pictures[:_CHECKED]):
        found = with_images(found, images)
    if not found.pictures:
        found = with_images(Comparison(drawn=True), _random_pictures(model))
    if not found.difference <= _DIFFERENCE:  # `not <=` also refuses NaN
        raise PretrainedError(
            f"the graph's probabilities differ from the model's by {found.difference:.1e}, more than {_DIFFERENCE:g}",
            "Please report the encoder's name and the versions that vlltr doctor says.",
        )
    return found


def _compare_half(
    model: Model, folder: Path, snapshot: Snapshot, pictures: Sequence[str], progress: Progress | None
) -> Comparison:
    """Compare the graph in float16 with that in float32, which was compared with the model.

    Raises:
        PretrainedError: If it names a class that has a point of probability less than the likeliest one, or no picture
            can be read.
    """
    whole = _session(folder / MODEL)
    half = _session(folder / HALF)
    found = Comparison()
    for images in _pictures(snapshot, pictures):
        pixels = pixels_of(model, images)
        probabilities, expected = (session.run(None, {INPUT: pixels})[0] for session in (half, whole))
        found = found.with_batch(probabilities, expected)
        if progress:
            progress("compare float16", found.pictures, len(pictures))
    if not found.pictures:
        raise PretrainedError(*_UNTRIED)
    if not (found.regret < _POINT and np.isfinite(found.difference)):
        raise PretrainedError(
            f"float16 does not hold: {found.pictures - found.same:,} of {found.where} get another class than in "
            f"float32, of a probability up to {100 * found.regret:.1f} points lower",
            "Leave out: --float16",
        )
    return found


def _said(name: str, found: Comparison) -> str:
    """Say how a file was compared."""
    whose = f"of {MODEL}" if name == HALF else "that the model names"
    return (
        f"{name}: the class {whose} for {found.same:,} of {found.where}; "
        f"probabilities differ by {found.difference:.0e} at most."
    )


def _preprocess(model: Model) -> dict[str, Any]:
    """Return how pictures are resized, as `resized_pixels` takes it."""
    pre = model.encoder.config["preprocess_cfg"]
    size = model.encoder.image_size[0]
    names = ("mode", "resize_mode", "interpolation", "fill_color")
    return {"size": size, "resize": pre.get("resize") or size, **{name: pre[name] for name in names}}


def _labels(model: Model, prior: Prior, files: dict[str, Comparison]) -> dict[str, Any]:
    """Return what `labels.json` says."""
    record = model.source.record
    size = list(model.encoder.image_size)
    reject = None
    if model.rule.threshold is not None:
        parts = model.known.parts
        reject = {
            "threshold": model.rule.threshold,
            "meaning": "a picture is of none of the classes if the output known_score is below the threshold",
            "accepted_of_unknown_classes": parts.unknown_accepted,
        }
    return {
        "program": f"{LIBRARY} {VERSION}",
        "commit": model.first_commit,
        "encoder": model.encoder.name,
        "digests": {
            "text_tower": record.text_fp,
            "image_tower": record.image_fp,
            "head": record.head,
            "parts": list(record.parts),
        },
        "opset": OPSET,
        "files": {
            name: {"compared_on": one.where, "same_class": one.same, "largest_difference": one.difference}
            for name, one in files.items()
        },
        "input": {"name": INPUT, "type": "uint8", "shape": ["batch", *size, 3]},
        "outputs": output_names(model),
        "preprocess": _preprocess(model),
        "prior": named_prior(prior),
        "reject": reject,
        "classes": _classes(model),
    }


def _classes(model: Model) -> list[dict[str, Any]]:
    """Return the classes in the order of the columns: the name, by what each is known, and its anchors' sentences."""
    sides = model.known.visual_sides()
    texts = model.texts
    anchors: dict[int, list[dict[str, str | None]]] = {}
    owners = model.bank.class_ids[model.bank.class_of_row].tolist() if model.bank.num_classes else []
    for class_id, sentence_id in zip(owners, model.anchors.sentence_ids, strict=True):
        facts = dict(zip(TEXT_COLUMNS[1:], texts[sentence_id], strict=True))
        anchors.setdefault(class_id, []).append(facts)
    return [
        {"name": model.names[i], "known_by": sides.get(i, "text"), "anchors": anchors.get(i, [])}
        for i in model.class_ids.tolist()
    ]


def _write_card(folder: Path, model: Model, labels: dict[str, Any]) -> None:
    """Write `README.md`."""
    from huggingface_hub import ModelCardData

    sentences = [anchor for one in labels["classes"] for anchor in one["anchors"]]
    columns = {
        name: pa.array([one[name] for one in sentences], pa.string()) for name in ("source", "licence")
    }
    licence = licence_id(columns["licence"].unique().to_pylist())
    data = ModelCardData(
        library_name="onnx",
        tags=["image-classification", "onnx"],
        pipeline_tag="image-classification",
        license=licence,
        license_name="see-data-licences" if licence == "other" else None,
    )
    beside = [path.name for path in folder.glob("*.data")]
    save_card(
        folder,
        "onnx_card.md",
        data,
        pa.table(columns),
        labels=labels,
        beside=beside,
        encoder=model.encoder.name,
    )
