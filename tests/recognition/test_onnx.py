"""Graphs for onnxruntime: the answers of the workspace, for classes of every kind, without torch, in two languages."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.support.commands import inside, refusal
from tests.support.exports import changed
from tests.support.rounding import PROBABILITY, same_order
from vlltr_index.classes import add_class
from vlltr_index.data.decoding import open_image
from vlltr_index.encoders.encoder import Encoder
from vlltr_index.errors import MissingPackageError, PretrainedError, UsageError
from vlltr_index.recognition.exported import graph, onnx_folder
from vlltr_index.recognition.exported.onnx_folder import export_onnx
from vlltr_index.recognition.exported.preprocess import resized_pixels
from vlltr_index.recognition.model import Model
from vlltr_index.recognizer import Recognizer
from vlltr_index.schemas.options import PredictOptions
from vlltr_index.store.workspace import Workspace

HOSTILE = '"; import os #</script>${process.exit(9)}`'
HALF_PICTURES = 200  # to compare float16 on, which takes long without a GPU
FILES = {"model.onnx", "labels.json", "README.md", "SHA256SUMS"} | {
    f"{name}.{ending}" for name in ("preprocess", "predict") for ending in ("py", "mjs")
}


@dataclass(frozen=True)
class Graphed:
    """A workspace with classes of every kind, and its graph in both precisions."""

    workspace: Workspace
    folder: Path
    pictures: list[Path]

    @property
    def labels(self) -> dict[str, Any]:
        found: dict[str, Any] = json.loads((self.folder / "labels.json").read_text(encoding="utf-8"))
        return found

    def pixels(self) -> np.ndarray:
        """What the graph takes of the pictures."""
        how = self.labels["preprocess"]
        return np.stack([resized_pixels(open_image(path), how) for path in self.pictures])

    def run(self, pixels: np.ndarray, file: str = "model.onnx") -> list[np.ndarray]:
        return run(self.folder / file, pixels)


def same_best(found: np.ndarray, expected: np.ndarray, near: float = 2 * PROBABILITY) -> bool:
    """Whether the best columns of `found` are those of `expected`, or as probable by it to within `near`."""
    chosen = np.take_along_axis(expected, found.argmax(1)[:, None], 1)[:, 0]
    return bool((expected.max(1) - chosen <= near).all())


def run(file: Path, pixels: np.ndarray) -> list[np.ndarray]:
    """The outputs of a graph."""
    from onnxruntime import InferenceSession

    outputs: list[np.ndarray] = InferenceSession(file).run(None, {"pixels": pixels})
    return outputs


@pytest.fixture(scope="module")
def graphed(
    trained_once: Path,
    heldout: dict[str, list[str]],
    pictures: Path,
    tmp_path_factory: pytest.TempPathFactory,
) -> Graphed:
    place = tmp_path_factory.mktemp("graphed")
    workspace = Workspace.open(shutil.copytree(trained_once, place / "workspace"))
    changed(workspace, heldout, pictures)
    add_class(workspace, HOSTILE, ['A sign with "quotes" and </script>.'])
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(onnx_folder, "_CHECKED_HALF", HALF_PICTURES)
        export_onnx(workspace, place / "graph", float16=True)
    return Graphed(workspace, place / "graph", sorted(pictures.glob("**/*.png")))


@pytest.mark.slow
def test_probabilities_are_those_of_the_workspace(graphed: Graphed) -> None:
    """Of trained, merged and added classes, by images or by text alone, for any number of pictures at once."""
    recognizer = Recognizer.open(graphed.workspace)
    expected = recognizer.predict_proba(graphed.pictures)
    known = [one.known_score for one in recognizer.predict(graphed.pictures, PredictOptions(reject=True))]
    pixels = graphed.pixels()
    for number in (1, 2, len(pixels)):
        found, known_score = graphed.run(pixels[:number])
        np.testing.assert_allclose(found, expected[:number], rtol=0, atol=PROBABILITY)
        assert same_best(found, expected[:number])
        np.testing.assert_allclose(known_score, known[:number], rtol=1e-4, atol=1e-2)
    many = np.concatenate([pixels] * 60)  # more than the library scores at once
    np.testing.assert_allclose(graphed.run(many)[0][-len(pixels) :], expected, rtol=0, atol=PROBABILITY)
    (half, _) = graphed.run(pixels, "model_fp16.onnx")
    assert same_best(half, expected, near=0.01)


@pytest.mark.slow
def test_labels_are_in_the_order_of_the_columns(graphed: Graphed) -> None:
    """With the kind of each class, its sentences and the level of `--reject`; names are data wherever they stand."""
    recognizer = Recognizer.open(graphed.workspace)
    model = recognizer.current()
    labels = graphed.labels
    assert [one["name"] for one in labels["classes"]] == recognizer.classes_.tolist()
    kinds = {one["name"]: one["known_by"] for one in labels["classes"]}
    assert set(kinds.values()) == {"trained", "images", "text"}
    assert kinds[HOSTILE] == "text"
    first = labels["classes"][0]
    own = {s.text for s in recognizer.explain(graphed.pictures[0], first["name"]).sentences}
    assert {anchor["text"] for anchor in first["anchors"]} == own
    assert labels["reject"]["threshold"] == model.least_likely
    assert labels["digests"]["head"] == model.source.record.head
    assert {path.name for path in graphed.folder.iterdir()} == FILES | {"model_fp16.onnx"}
    assert (graphed.folder / "model_fp16.onnx").stat().st_size < (
        graphed.folder / "model.onnx"
    ).stat().st_size
    assert str(graphed.workspace.path.parent).encode() not in (graphed.folder / "model.onnx").read_bytes()
    assert "site-packages" not in (graphed.folder / "model.onnx").read_text(encoding="latin-1")


def answers(graphed: Graphed, command: list[str], **how: Any) -> list[dict[str, Any]]:
    """What an example prints, beside what the workspace answers."""
    done = subprocess.run(command, check=True, capture_output=True, text=True, **how)
    found = [json.loads(line) for line in done.stdout.splitlines()]
    recognizer = Recognizer.open(graphed.workspace)
    options = PredictOptions(reject=True, top=len(recognizer.classes_), retrieval="exhaustive")
    expected = recognizer.predict(graphed.pictures, options)
    assert len(found) == len(expected)
    for one, answer in zip(found, expected, strict=True):
        names = [c["name"] for c in one["classes"]]
        chances = {c.name: c.probability for c in answer.classes}
        assert len(names) == 5
        assert same_order(names, chances)
        printed = [c["probability"] for c in one["classes"]]
        np.testing.assert_allclose(printed, [chances[name] for name in names], rtol=0, atol=PROBABILITY)
        assert one["known"] == answer.known
    return found


@pytest.mark.slow
def test_the_example_in_python_needs_no_torch(graphed: Graphed, tmp_path: Path) -> None:
    """Neither torch nor this library can be imported where it runs."""
    without = (
        "import sys\nfor name in ('torch', 'torchvision', 'vlltr_index'):\n    sys.modules[name] = None\n"
    )
    (tmp_path / "sitecustomize.py").write_text(without, encoding="utf-8")
    command = [sys.executable, str(graphed.folder / "predict.py"), *map(str, graphed.pictures)]
    answers(graphed, command, env={**os.environ, "PYTHONPATH": str(tmp_path)})


@pytest.mark.slow
def test_the_example_in_javascript_answers_the_same(graphed: Graphed, tmp_path: Path) -> None:
    """With onnxruntime-node, of which nothing but its own files is fetched."""
    node = shutil.which("node")
    npm = shutil.which("npm")
    if node is None or npm is None:
        pytest.skip("Node is not there: predict.mjs was not run")
    folder = shutil.copytree(graphed.folder, tmp_path / "graph")
    fetch = [npm, "install", "--prefix", str(tmp_path), "--ignore-scripts", "--no-audit", "onnxruntime-node"]
    if subprocess.run(fetch, capture_output=True, timeout=300).returncode:
        pytest.skip("onnxruntime-node cannot be fetched: predict.mjs was not run")
    files = []
    for number, path in enumerate(graphed.pictures):
        files.append(str(tmp_path / f"{number}.ppm"))
        open_image(path).save(files[-1])
    answers(graphed, [node, str(folder / "predict.mjs"), *files])


@pytest.mark.slow
def test_a_prior_is_part_of_the_graph(graphed: Graphed, tmp_path: Path) -> None:
    """As a file says; that of training is in the graph of a rule."""
    recognizer = Recognizer.open(graphed.workspace)
    weights = {name: 1.0 + number for number, name in enumerate(recognizer.classes_)}
    (tmp_path / "weights.json").write_text(json.dumps(weights), encoding="utf-8")
    inside(graphed.workspace, "export", tmp_path / "graph", "--onnx", "--prior", tmp_path / "weights.json")
    (found, _) = run(tmp_path / "graph" / "model.onnx", graphed.pixels())
    options = PredictOptions(prior=weights, top=1)
    for row, answer in zip(found, recognizer.predict(graphed.pictures, options), strict=True):
        best = answer.classes[0]
        assert row.max() == pytest.approx(best.probability, abs=PROBABILITY)
        assert row.max() - row[recognizer.classes_.tolist().index(best.name)] <= 2 * PROBABILITY
    assert not np.allclose(found, graphed.run(graphed.pixels())[0], atol=1e-4)


@pytest.mark.slow
@pytest.mark.parametrize("rule", ["ours", "no text", "paper", "logits"])
def test_texts_count_by_every_rule(graphed: Graphed, tmp_path: Path, rule: str) -> None:
    """By weights that few epochs do not give them, under a prior; without a sentence; and by other protocols' rules."""
    model = Recognizer.open(graphed.workspace).current()
    if rule == "ours":
        parts = model.saved.parts
        assert parts is not None
        weights = replace(parts.weights, text=0.3)
        saved = replace(model.saved, parts=replace(parts, weights=weights))
        other = model.with_known(saved=saved).under("training")
    elif rule == "no text":
        other = model.with_known(anchors=model.anchors.exchanged(model.bank.class_ids, None, [], []))
    else:
        other = replace(model, fusion=model.fusion.model_copy(update={"rule": rule}))
    graph.write_graph(other, tmp_path / "model.onnx")
    features, _ = other.features(graphed.pictures)
    expected = other.score(features, "exhaustive")[0].probabilities.numpy()
    found = run(tmp_path / "model.onnx", graphed.pixels())[0]
    np.testing.assert_allclose(found, expected, rtol=0, atol=PROBABILITY)
    before = model.score(features, "exhaustive")[0].probabilities.numpy()
    assert expected.shape != before.shape or np.abs(expected - before).max() > 0.01


@pytest.mark.slow
def test_large_weights_lie_beside_the_graph(
    graphed: Graphed, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Above the size that one file can have; here of a workspace that has no picture to compare answers on."""
    monkeypatch.setattr(graph, "ONE_FILE", 1000)
    monkeypatch.setattr(onnx_folder, "_chosen", lambda snapshot: [])
    report = export_onnx(graphed.workspace, tmp_path / "graph")
    assert "64 of 64 pictures of random pixels" in report.notes[0]
    assert (tmp_path / "graph" / "model.onnx").stat().st_size < 2**20
    for name in ("SHA256SUMS", "README.md"):
        assert "model.onnx.data" in (tmp_path / "graph" / name).read_text(encoding="utf-8")
    found = run(tmp_path / "graph" / "model.onnx", graphed.pixels())[0]
    np.testing.assert_allclose(found, graphed.run(graphed.pixels())[0], rtol=0, atol=1e-6)
    with pytest.raises(PretrainedError, match="float16 is tried on the workspace's pictures"):
        export_onnx(graphed.workspace, tmp_path / "half", float16=True)


def trace_wrongly(monkeypatch: pytest.MonkeyPatch, half: bool) -> None:
    """Let the graph in one of both precisions be of other features than the model's."""
    write = graph.write_graph
    encode = Encoder.encode_pixels

    def write_wrongly(model: Model, path: Path, **how: bool) -> None:
        with monkeypatch.context() as within:
            if how.get("half", False) == half:
                within.setattr(Encoder, "encode_pixels", lambda self, pixels: encode(self, -pixels))
            write(model, path, **how)

    monkeypatch.setattr(onnx_folder, "write_graph", write_wrongly)


@pytest.mark.slow
def test_a_graph_with_other_answers_is_not_kept(
    graphed: Graphed, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The export before stays as it is."""
    shutil.copytree(graphed.folder, tmp_path / "graph")
    before = (tmp_path / "graph" / "SHA256SUMS").read_text(encoding="utf-8")
    trace_wrongly(monkeypatch, half=False)
    with pytest.raises(PretrainedError, match="the graph's probabilities differ from the model's by"):
        export_onnx(graphed.workspace, tmp_path / "graph", force=True)
    assert (tmp_path / "graph" / "SHA256SUMS").read_text(encoding="utf-8") == before
    assert [path.name for path in tmp_path.iterdir()] == ["graph"]


@pytest.mark.slow
def test_float16_that_names_other_classes_is_refused(
    graphed: Graphed, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The folder is not written, for it would lack what was asked for."""
    monkeypatch.setattr(onnx_folder, "_CHECKED_HALF", HALF_PICTURES)
    trace_wrongly(monkeypatch, half=True)
    with pytest.raises(PretrainedError, match=r"float16 does not hold: .* get another class than in float32"):
        export_onnx(graphed.workspace, tmp_path / "graph", float16=True)
    assert not list(tmp_path.iterdir())


@pytest.mark.slow
def test_what_cannot_be_exported_is_refused_by_name(
    graphed: Graphed, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Before anything is traced or written."""
    workspace = graphed.workspace
    monkeypatch.setattr(onnx_folder, "write_graph", lambda *given: pytest.fail("traced"))
    target = tmp_path / "graph"
    wrong: list[tuple[list[object], int, str]] = [
        (["--onnx", "--prior", "estimated"], 2, "the prior 'estimated' depends on the pictures asked about"),
        (["--onnx", "--tables"], 2, "--onnx and --tables do not go together"),
        (["--onnx", "--push", "user/name"], 2, "--onnx and --push do not go together"),
        (["--float16"], 2, "--float16 is for --onnx"),
        (["--prior", "training"], 2, "--prior is for --onnx"),
    ]
    for words, code, why in wrong:
        assert why in refusal(workspace, capsys, "export", target, *words, code=code)
    with pytest.raises(UsageError, match="'balanced', 'training', 'estimated' or a weight"):
        export_onnx(workspace, target, prior="frequent")  # type: ignore[arg-type]
    model = Recognizer.open(workspace).current()
    encoder = model.encoder
    monkeypatch.setattr(encoder, "precision", "bf16")
    with pytest.raises(PretrainedError, match="vlltr-tiny computes in bfloat16"):
        graph.check_exportable(model)
    monkeypatch.setattr(encoder, "precision", "fp32")
    monkeypatch.setitem(encoder._config["preprocess_cfg"], "interpolation", "random")
    with pytest.raises(PretrainedError, match="resizes pictures by 'random' interpolation"):
        graph.check_exportable(model)
    monkeypatch.undo()
    monkeypatch.setattr(graph, "GRAM_FLOATS", 1000)
    with pytest.raises(PretrainedError, match=r"classes with up to .* anchors would need a graph with"):
        graph.check_exportable(model)
    assert not list(tmp_path.iterdir())


@pytest.mark.slow
def test_only_an_export_is_replaced(graphed: Graphed, tmp_path: Path) -> None:
    """A folder with anything else stays as it is, and the one that is there by `--force` alone."""
    (tmp_path / "notes.txt").write_text("mine", encoding="utf-8")
    with pytest.raises(PretrainedError, match="holds other things than an export"):
        export_onnx(graphed.workspace, tmp_path, force=True)
    with pytest.raises(PretrainedError, match="holds an export already"):
        export_onnx(graphed.workspace, graphed.folder)
    with pytest.raises(PretrainedError):
        Recognizer.from_pretrained(graphed.folder)


def test_a_comparison_counts_what_differs() -> None:
    """By class and by probability, over batches; what is no number is not forgotten."""
    expected = np.array([[0.6, 0.4], [0.5, 0.5]])
    found = onnx_folder.Comparison().with_batch(np.array([[0.3, 0.7], [0.4, 0.6]]), expected)
    assert (found.pictures, found.same) == (2, 0)
    assert found.difference == pytest.approx(0.3)
    assert found.regret == pytest.approx(0.2)
    found = found.with_batch(np.array([[np.nan, 1.0]]), expected[:1]).with_batch(expected, expected)
    assert (found.pictures, found.same) == (5, 3)
    assert np.isnan(found.difference)


def test_missing_packages_are_named(
    trained_once: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With the extra that brings them."""
    monkeypatch.setattr(onnx_folder, "find_spec", lambda name: None)
    with pytest.raises(MissingPackageError) as caught:
        export_onnx(Workspace.open(trained_once), tmp_path / "graph")
    assert str(caught.value) == (
        "an ONNX graph needs onnx and onnxruntime and onnxscript, not installed\n"
        'Run: pip install "vlltr-index[onnx]"'
    )
