"""The baselines on stored vectors over a workspace: each command, what it chooses on, what it needs, its files."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor
from torch.nn import functional as F

from tests.support import drawings
from tests.support.commands import run
from tests.support.objects import put
from vlltr_index.embedding.loading import image_set, usable_images
from vlltr_index.encoders.encoder import Encoder
from vlltr_index.errors import FingerprintMismatch, MissingStepError, UsageError, WorkspaceError
from vlltr_index.evaluation.baselines import Limits, Logistic
from vlltr_index.evaluation.compared import ADJUSTED
from vlltr_index.evaluation.rules import linear_logits, tau_normalised
from vlltr_index.pipelines import train_baseline as pipeline
from vlltr_index.pipelines.baseline_scores import FC, baseline_labels, score_baselines
from vlltr_index.pipelines.embed import embed
from vlltr_index.pipelines.ingest import ingest_images, ingest_text
from vlltr_index.pipelines.train_baseline import (
    BaselineRow,
    absent_baselines,
    fc_checkpoint,
    possible_baselines,
    train_baseline,
    train_baseline_stage,
)
from vlltr_index.schemas.baselines import BASELINES
from vlltr_index.schemas.config import EncoderConfig, Recipe
from vlltr_index.schemas.recipes import override
from vlltr_index.store.snapshot import Snapshot
from vlltr_index.store.tables import one_of
from vlltr_index.store.workspace import Workspace

pytestmark = pytest.mark.slow
QUICK = (
    "baselines.epochs=2",
    "baselines.lrs=[1e-3, 1e-2]",
    "baselines.taus=[0.0, 1.0]",
    "baselines.neighbours=[1, 5]",
    "baselines.alphas=[0.5, 5.0]",
    "baselines.betas=[2.0, 10.0]",
)


def make(workspace: Workspace, name: str) -> BaselineRow:
    """Make a baseline with few settings."""
    return train_baseline(workspace, name, override(workspace.recipe, QUICK).baselines)


def scored(workspace: Workspace) -> dict[str, tuple[BaselineRow, Tensor]]:
    """All rows, and their scores on split test."""
    snapshot = workspace.snapshot()
    ids = usable_images(snapshot, "test", [])["image_id"].to_pylist()
    return {row.label: (row, s) for row, s in score_baselines(workspace, snapshot, "test", ids)}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Drawings of eight classes (one with a single image) in folders train, val and test, and weights."""
    folder = tmp_path_factory.mktemp("drawings")
    for seed, split in enumerate(("train", "val", "test")):
        drawings.write(folder / split, seed)
    drawings.encoder(5).save(folder / "weights")
    return folder


@pytest.fixture(scope="module")
def untrained(folder: Path) -> Path:
    """Splits train and test, pretrained weights, prompts; nothing trained or embedded yet."""
    weights = EncoderConfig(model="vlltr-tiny", pretrained=str(folder / "weights"))
    prompts = ("a photo of a {}.", "a drawing of a {}.")
    workspace = Workspace.create(folder / "w", Recipe(name="small", encoder=weights, prompts=prompts))
    ingest_text(workspace, drawings.write_texts(folder))
    for split in ("train", "test"):
        ingest_images(workspace, folder / split, split)
    return workspace.path


@pytest.fixture
def small(untrained: Path, tmp_path: Path) -> Workspace:
    """A copy that a test may change."""
    return Workspace.open(shutil.copytree(untrained, tmp_path / "w"))


def fc(workspace: Workspace) -> None:
    """Train the image-only baseline for an epoch."""
    values = {"epochs": 1, "batch_size": 16, "lr": 2e-3, "workers": 0}
    train_baseline_stage(workspace, workspace.recipe.baseline.model_copy(update=values))


@pytest.fixture(scope="module")
def all_made(untrained: Path, folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Workspace:
    """With split val and every baseline; tests only read it."""
    path = tmp_path_factory.mktemp("baselines") / "w"
    workspace = Workspace.open(shutil.copytree(untrained, path))
    ingest_images(workspace, folder / "val", "val")
    fc(workspace)
    for name in BASELINES:
        make(workspace, name)
    return workspace


def test_every_baseline_is_a_row(all_made: Workspace) -> None:
    """In the table's order, each with finite scores of every test image; read again while another writes."""
    scored(all_made)
    with all_made.transaction("another writer"):
        rows = scored(all_made)
    assert list(rows) == [FC, ADJUSTED, *BASELINES] == baseline_labels(all_made.snapshot())
    for row, scores in rows.values():
        assert scores.shape == (56, len(row.class_ids))
        assert bool(scores.isfinite().all())
    assert {name for name, (row, _) in rows.items() if not row.probabilities} == {"ncm", "knn"}
    chosen = {name: row.settings for name, (row, _) in rows.items() if row.settings.get("chosen_on") == "val"}
    assert list(chosen) == ["crt", "tau-norm", "lws", "knn", "tip-adapter"]
    assert all(0 <= settings["accuracy"] <= 1 for settings in chosen.values())


def test_the_same_again_commits_nothing_and_an_earlier_tower_is_said(
    all_made: Workspace, tmp_path: Path
) -> None:
    """Same settings, same files; rows of another fc baseline are shown with what makes them again."""
    workspace = Workspace.open(shutil.copytree(all_made.path, tmp_path / "w"))
    before, there = workspace.history.last(), fc_checkpoint(workspace.snapshot())
    for name in ("ncm", "crt", "discriminant"):
        make(workspace, name)
    assert workspace.history.last() == before

    def copy(target: Path) -> None:
        shutil.copytree(there, target, dirs_exist_ok=True)
        (target / "other").touch()

    with workspace.transaction("test") as tx:
        tx.note(baseline_fc=put(workspace, "checkpoints", copy))
    rows = scored(workspace)
    assert rows["ncm"][0].note == "made with an earlier tower: vlltr train baseline ncm"
    assert rows["discriminant"][0].note == ""


def test_rows_are_of_the_tower_they_name(all_made: Workspace) -> None:
    """ncm against a loop over the fc tower's vectors; fc and tau-norm by fc's own classifier."""
    rows, snapshot = scored(all_made), all_made.snapshot()
    ncm, scores = rows["ncm"]
    train, test = (image_set(snapshot, split, image_fp=ncm.image_fp) for split in ("train", "test"))
    means = [F.normalize(train.features[train.class_ids == c], dim=1).mean(0) for c in ncm.class_ids]
    cosines = F.normalize(test.features, dim=1) @ F.normalize(torch.stack(means), dim=1).T
    torch.testing.assert_close(scores, cosines)
    visual = load_file(fc_checkpoint(snapshot) / "visual.safetensors")
    plain = linear_logits(test.features, visual["weight"])
    assert torch.equal(rows[FC][0].class_ids, visual["class_ids"])
    torch.testing.assert_close(rows[FC][1], plain + visual["bias"])
    mass = visual["counts"].double().sqrt()
    torch.testing.assert_close(rows[ADJUSTED][1], rows[FC][1] - (mass / mass.sum()).log().float())
    scaled = tau_normalised(visual["weight"], rows["tau-norm"][0].settings["tau"])
    torch.testing.assert_close(rows["tau-norm"][1], linear_logits(test.features, scaled))


def test_without_val_training_images_are_held_back(small: Workspace) -> None:
    """A class with one image keeps it; the model is then fitted on all images."""
    fc(small)
    for name in ("crt", "tau-norm", "lws", "knn", "tip-adapter"):
        assert make(small, name).settings["chosen_on"] == "held-back training images"
    counts = torch.bincount(drawings.labels())
    assert len(make(small, "tip-adapter").baseline.tensors["keys"]) == int(counts.clamp(max=16).sum())


def test_with_one_image_a_class_defaults_are_taken(small: Workspace) -> None:
    """Nothing can be held back: the middle of each list, and the file says so."""
    with small.transaction("test") as tx:
        rows = tx.table("images", ["image_id", "class_id"], "split = 'train'").to_pylist()
        first = {row["class_id"]: row["image_id"] for row in rows}
        for row in rows:
            if first[row["class_id"]] != row["image_id"]:
                tx.delete("images", f"image_id = '{row['image_id']}'")
    for name, key, value in (("knn", "k", 5), ("tip-adapter", "alpha", 5.0)):
        settings = make(small, name).settings
        assert (settings["chosen_on"], settings[key]) == ("nothing: defaults", value)
        assert "accuracy" not in settings


def test_zero_shot_takes_the_prompts_and_says_what_has_none(small: Workspace) -> None:
    """The mean of the normalised prompts; all sentences of a class without prompts; before training one row."""
    encoder = drawings.encoder(5)

    def check(row: BaselineRow, texts: list[str]) -> None:
        expected = F.normalize(F.normalize(encoder.encode_texts(texts), dim=1).mean(0), dim=0)
        torch.testing.assert_close(row.baseline.tensors["weight"][2], expected, atol=1e-5, rtol=1e-5)

    row = make(small, "zero-shot")
    name = small.snapshot().class_table().names[int(row.class_ids[2])]
    check(row, [f"a photo of a {name}.", f"a drawing of a {name}."])
    assert row.note == ""
    with small.transaction("test") as tx:
        tx.delete("sentences", f"source = 'prompt' AND class_id = {int(row.class_ids[2])}")
    row = make(small, "zero-shot")
    check(row, drawings.texts()[drawings.WORDS.index(name)])
    assert row.note == "1 of 8 classes has no prompt: the mean of all their sentences"


def test_other_weights_at_the_same_place_are_refused(small: Workspace, tmp_path: Path) -> None:
    """Scores are of the encoder that the row was made with, or of none."""
    weights = small.recipe.encoder.model_copy(update={"pretrained": str(tmp_path / "start")})
    drawings.encoder(9).save(tmp_path / "start")
    recipe = small.recipe.model_copy(update={"encoder": weights})
    small.write_config(small.config.model_copy(update={"recipe": recipe}))
    row = make(small, "zero-shot")
    shutil.rmtree(tmp_path / "start")
    drawings.encoder(10).save(tmp_path / "start")
    small.store.drop(f"image_vectors_{row.image_fp}")
    with pytest.raises(FingerprintMismatch, match="baseline 'zero-shot' was made with encoder") as caught:
        scored(small)
    assert caught.value.hint == "Make it again: vlltr train baseline zero-shot"


def test_images_that_change_meanwhile_are_refused(small: Workspace, monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing is committed; the same command again is of what is there now."""
    opened = pipeline.open_encoder

    def change_and_open(snapshot: Snapshot) -> Encoder:
        with small.transaction("an image goes") as tx:
            gone = usable_images(tx, "train", [])["image_id"][0].as_py()
            tx.delete("images", one_of("image_id", [gone]))
        return opened(snapshot)

    monkeypatch.setattr(pipeline, "open_encoder", change_and_open)
    with pytest.raises(WorkspaceError, match="changed meanwhile: the training images"):
        make(small, "ncm")
    assert not small.snapshot().commit.info.baselines
    monkeypatch.undo()
    make(small, "ncm")
    assert list(small.snapshot().commit.info.baselines) == ["ncm"]


def test_stored_vectors_need_no_encoder(small: Workspace, tmp_path: Path) -> None:
    """Once all is embedded, baselines are the same without the encoder's weights."""
    embed(small)
    names = "zero-shot", "knn", "ncm", "logistic", "tip-adapter"
    before = [make(small, name) for name in names]
    weights = Path(str(small.recipe.encoder.pretrained))
    weights.rename(tmp_path / "gone")
    try:
        after = [make(small, name) for name in names]
    finally:
        (tmp_path / "gone").rename(weights)
    for old, new in zip(before, after, strict=True):
        assert (old.image_fp, old.settings) == (new.image_fp, new.settings)
        assert all(
            torch.equal(value, new.baseline.tensors[name]) for name, value in old.baseline.tensors.items()
        )


def test_missing_steps_are_named(workspace: Workspace, small: Workspace) -> None:
    """No such baseline; no fc baseline; no sentences; no weights; no training images."""
    with pytest.raises(UsageError, match="no baseline 'best'") as wrong:
        make(workspace, "best")
    assert wrong.value.hint == f"There are: fc, {', '.join(BASELINES)}."
    with pytest.raises(MissingStepError, match="the image-only baseline has not been trained") as missing:
        make(small, "crt")
    assert missing.value.hint == "Run: vlltr train baseline fc"
    with pytest.raises(MissingStepError, match="there are no sentences") as missing:
        make(workspace, "zero-shot")
    assert missing.value.hint == "Run: vlltr ingest text PATH"
    with pytest.raises(MissingStepError, match="has no weights yet"):
        make(workspace, "discriminant")
    with small.transaction("test") as tx:
        tx.delete("images", "split = 'train'")
    with pytest.raises(MissingStepError, match="there are no images in split 'train'"):
        make(small, "discriminant")


@pytest.mark.parametrize("limits", [Limits(7, 20_000), Limits(200, 50)])
def test_too_many_classes_or_images_are_refused(
    small: Workspace, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], limits: Limits
) -> None:
    """The error has the limits and the numbers; nothing is committed, and `rest` says what it leaves out."""
    monkeypatch.setattr(Logistic, "limits", limits)
    images = usable_images(small.snapshot(), "train", []).num_rows
    why = (
        f"it is limited to {limits.classes:,} classes and {limits.images:,} training images, and there are 8 classes"
        f" and {images} images"
    )
    with pytest.raises(WorkspaceError, match="cannot be fitted") as refused:
        make(small, "logistic")
    assert refused.value.message == f"the baseline 'logistic' cannot be fitted: {why}"
    assert refused.value.hint == "Run: vlltr train baseline discriminant"
    assert not small.snapshot().commit.info.baselines
    assert "logistic" not in possible_baselines(small)
    assert absent_baselines(small.snapshot()) == {"logistic": why}
    code, out, _ = run(capsys, "-w", small.path, "train", "baseline", "rest")
    assert code == 1, "crt needs fc"
    assert f"logistic is absent: {why}\n" in out
    monkeypatch.setattr(Logistic, "limits", Limits(8, images))
    assert make(small, "logistic").settings["chosen_on"] == "folds of the training images"


def test_a_baseline_of_another_format_names_the_command(all_made: Workspace, tmp_path: Path) -> None:
    """Its files are those that were written."""
    workspace = Workspace.open(shutil.copytree(all_made.path, tmp_path / "w"))
    made = workspace.history.last().info.baselines
    folder = workspace.objects.path("heads", made["crt"])

    def other(path: Path) -> None:
        shutil.copytree(folder, path, dirs_exist_ok=True)
        (path / "baseline.json").write_text('{"format": 1, "rows": []}', encoding="utf-8")

    with workspace.transaction("test") as tx:
        tx.note(baselines={**made, "crt": put(workspace, "heads", other)})
    with pytest.raises(
        WorkspaceError,
        match=r"cannot be read: baseline\.json has format 1, but this vlltr-index .* reads format 2: ",
    ) as caught:
        scored(workspace)
    assert caught.value.hint == "Make it again: vlltr train baseline crt"


def test_files_that_are_gone_or_damaged_name_the_command(all_made: Workspace, tmp_path: Path) -> None:
    """Each with the baseline to make again."""
    workspace = Workspace.open(shutil.copytree(all_made.path, tmp_path / "w"))
    commit = workspace.history.last()
    folder = workspace.objects.path("heads", commit.info.baselines["crt"])
    (folder / "baseline.json").write_text("{", encoding="utf-8")
    with pytest.raises(
        WorkspaceError, match="is damaged: its files are not those that were written"
    ) as damaged:
        scored(workspace)
    assert damaged.value.hint == "Make it again: vlltr train baseline crt"
    shutil.rmtree(fc_checkpoint(workspace.snapshot()))
    with pytest.raises(MissingStepError, match="is gone") as fc_gone:
        make(workspace, "ncm")
    assert fc_gone.value.hint == "Make it again: vlltr train baseline fc"
