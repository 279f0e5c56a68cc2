"""The baselines on stored vectors over a workspace: each command, what it chooses on, what it needs, its files."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import drawings
import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor
from torch.nn import functional as F

from vlltr_index.baselines import linear_logits
from vlltr_index.cli.train import _BASELINES
from vlltr_index.errors import FingerprintMismatch, MissingStepError, UsageError, WorkspaceError
from vlltr_index.loading import class_positions, image_set, load_bank, usable_images
from vlltr_index.recipe import override
from vlltr_index.schemas.config import EncoderConfig, Recipe
from vlltr_index.selection import select
from vlltr_index.stages.baseline_fits import FITS, Making
from vlltr_index.stages.baseline_text_fits import TEXT_FITS
from vlltr_index.stages.baselines import (
    ADJUSTED,
    CHEAP,
    FC,
    BaselineRow,
    ScoredRow,
    baseline_labels,
    fc_checkpoint,
    load_baseline,
    score_baselines,
)
from vlltr_index.stages.cheap_baselines import train_cheap_baseline
from vlltr_index.stages.embed import embed
from vlltr_index.stages.ingest import ingest_images, ingest_text
from vlltr_index.stages.train_baseline import train_baseline_stage
from vlltr_index.workspace import Workspace

QUICK = (
    "baselines.epochs=2",
    "baselines.lrs=[1e-3, 1e-2]",
    "baselines.taus=[0.0, 1.0]",
    "baselines.neighbours=[1, 5]",
    "baselines.alphas=[0.5, 5.0]",
    "baselines.betas=[2.0, 10.0]",
    "baselines.tip_epochs=2",
    "baselines.waffle_seeds=3",
)


def make(workspace: Workspace, name: str, *values: str) -> list[BaselineRow]:
    """Make a baseline with few settings; its rows as they were kept."""
    config = override(workspace.recipe, (*QUICK, *values)).baselines
    report = train_cheap_baseline(workspace, name, config)
    return load_baseline(workspace, name, report.digest)


def scored(workspace: Workspace) -> dict[str, ScoredRow]:
    """All rows on split test."""
    snapshot = workspace.snapshot()
    ids = usable_images(snapshot, "test", [])["image_id"].to_pylist()
    return {row.label: row for row in score_baselines(workspace, snapshot, "test", ids)}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Drawings of eight classes (one with a single image) in folders train, val and test; sentences; weights."""
    folder = tmp_path_factory.mktemp("drawings")
    for seed, split in enumerate(("train", "val", "test")):
        for number, (label, image) in enumerate(
            zip(drawings.labels().tolist(), drawings.pixels(seed), strict=True)
        ):
            place = folder / split / drawings.WORDS[label] / f"{number}.png"
            place.parent.mkdir(parents=True, exist_ok=True)
            place.write_bytes(drawings.png(image[0]))
    texts = dict(zip(drawings.WORDS, drawings.texts(), strict=True))
    (folder / "texts.json").write_text(json.dumps(texts), encoding="utf-8")
    drawings.encoder(5).save(folder / "weights")
    return folder


@pytest.fixture(scope="module")
def untrained(folder: Path) -> Path:
    """Splits train and test, pretrained weights, prompts; nothing trained or embedded yet."""
    weights = EncoderConfig(model="vlltr-tiny", pretrained=str(folder / "weights"))
    prompts = ("a photo of a {}.", "a drawing of a {}.")
    workspace = Workspace.create(folder / "w", Recipe(name="small", encoder=weights, prompts=prompts))
    ingest_text(workspace, folder / "texts.json")
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
    """With split val, augmented views, anchors and every baseline; tests only read it."""
    path = tmp_path_factory.mktemp("baselines") / "w"
    workspace = Workspace.open(shutil.copytree(untrained, path))
    ingest_images(workspace, folder / "val", "val")
    embed(workspace, views=3)
    select(workspace, workspace.recipe.select.model_copy(update={"max_anchors": 3}))
    fc(workspace)
    for name in CHEAP:
        make(workspace, name)
    return workspace


def plain_features(workspace: Workspace, split: str) -> tuple[Tensor, Tensor]:
    """Features of the workspace's encoder and class ids."""
    data = image_set(workspace.snapshot(), split)
    return data.features, data.class_ids


def test_every_name_is_everywhere() -> None:
    """The command's choices, the fits and the table's order are the same names."""
    assert tuple(_BASELINES) == ("fc", *CHEAP)
    assert {**FITS, **TEXT_FITS}.keys() == set(CHEAP)


def test_every_baseline_is_a_row(all_made: Workspace) -> None:
    """In the table's order, each with finite scores of every test image; the commit names each by its digest."""
    rows = scored(all_made)
    names = [FC, ADJUSTED, *CHEAP]
    assert list(rows) == [*names, "waffle with our anchors"]
    assert baseline_labels(all_made, all_made.snapshot()) == list(rows)
    images = len(image_set(all_made.snapshot(), "test").image_ids)
    for row in rows.values():
        assert row.scores.shape == (images, len(row.class_ids))
        assert bool(row.scores.isfinite().all())
    commit = all_made.history.last()
    assert commit is not None
    assert sorted(commit.info["baselines"]) == sorted(CHEAP)
    assert {name for name, row in rows.items() if not row.probabilities} == {"ncm", "knn"}


def test_the_same_command_again_commits_nothing(all_made: Workspace, tmp_path: Path) -> None:
    """Same settings, same files, no new commit."""
    workspace = Workspace.open(shutil.copytree(all_made.path, tmp_path / "w"))
    before = workspace.history.last()
    for name in ("ncm", "crt", "waffle"):
        make(workspace, name)
    assert workspace.history.last() == before


def test_scores_are_those_of_their_definitions(all_made: Workspace) -> None:
    """Class means, anchors averaged and zero-shot against loops over the workspace's own vectors."""
    rows = scored(all_made)
    features, owners = plain_features(all_made, "train")
    test, _ = plain_features(all_made, "test")
    means = torch.stack(
        [F.normalize(features[owners == c], dim=1).mean(0) for c in rows["imprint"].class_ids]
    )
    cosines = F.normalize(test, dim=1) @ F.normalize(means, dim=1).T
    assert torch.equal(rows["imprint"].scores.argmax(1), cosines.argmax(1))
    bank = load_bank(all_made.snapshot()).bank
    ours = torch.stack(
        [F.normalize(bank.vectors[bank.class_of_row == c], dim=1).mean(0) for c in range(bank.num_classes)]
    )
    cosines = F.normalize(test, dim=1) @ F.normalize(ours, dim=1).T
    assert torch.equal(rows["waffle with our anchors"].scores.argmax(1), cosines.argmax(1))
    alike = F.normalize(test, dim=1) @ F.normalize(means, dim=1).T
    assert not torch.allclose(rows["ncm"].scores, alike, atol=1e-3)  # of another tower


def test_what_was_chosen_is_kept_with_where(all_made: Workspace) -> None:
    """Split val chooses where there is one; the accuracy there and the value stand in the file."""
    commit = all_made.history.last()
    assert commit is not None
    for name, key in (
        ("crt", "lr"),
        ("tau-norm", "tau"),
        ("lws", "lr"),
        ("knn", "k"),
        ("tip-adapter", "alpha"),
    ):
        settings = load_baseline(all_made, name, commit.info["baselines"][name])[0].settings
        assert settings["chosen_on"] == "val"
        assert 0 <= settings["accuracy"] <= 1
        assert key in settings
    waffle, ours = load_baseline(all_made, "waffle", commit.info["baselines"]["waffle"])
    accuracies = waffle.settings["accuracies"]
    assert sorted(accuracies)[1] == accuracies[waffle.settings["seed"]]  # the median of three
    assert "random words, the median of 3 seeds on val, where they range from" in waffle.note
    assert ours.note == "waffle's rule, our sentences"


def test_without_val_training_images_are_held_back(small: Workspace) -> None:
    """A class with one image keeps it; the model is then fitted on all images."""
    row = make(small, "imprint")[0]
    assert row.settings["chosen_on"] == "held-back training images"
    embed(small, views=1)
    features, owners = plain_features(small, "train")
    expected = F.normalize(F.normalize(features[owners == row.class_ids[0]], dim=1).mean(0), dim=0)
    torch.testing.assert_close(row.tensors["weight"][0], expected)
    fc(small)
    for name in ("crt", "tau-norm", "lws", "knn", "tip-adapter", "tip-adapter-f"):
        assert make(small, name)[0].settings["chosen_on"] == "held-back training images"
    assert set(scored(small)) >= {FC, ADJUSTED, "crt", "knn", "tip-adapter-f"}


def test_with_one_image_a_class_defaults_are_taken(small: Workspace) -> None:
    """Nothing can be held back: the middle of each list, and the file says so."""
    with small.transaction("test") as tx:
        rows = tx.table("images", ["image_id", "class_id"], "split = 'train'").to_pylist()
        first = {row["class_id"]: row["image_id"] for row in rows}
        for row in rows:
            if first[row["class_id"]] != row["image_id"]:
                tx.delete("images", f"image_id = '{row['image_id']}'")
    assert make(small, "imprint")[0].settings == {"scale": 16.0, "chosen_on": "nothing: defaults"}
    for name, key, value in (("knn", "k", 5), ("tip-adapter", "alpha", 5.0)):
        settings = make(small, name)[0].settings
        assert (settings["chosen_on"], settings[key]) == ("nothing: defaults", value)
        assert "accuracy" not in settings


def test_zero_shot_takes_the_prompts_and_says_what_has_none(small: Workspace) -> None:
    """The mean of the normalised prompts; all sentences of a class without prompts; before training one row."""
    rows = make(small, "zero-shot")
    assert [(row.label, row.note) for row in rows] == [("zero-shot", "")]
    encoder = drawings.encoder(5)
    name = small.snapshot().class_table().names[int(rows[0].class_ids[2])]
    vectors = encoder.encode_texts([f"a photo of a {name}.", f"a drawing of a {name}."])
    expected = F.normalize(F.normalize(vectors, dim=1).mean(0), dim=0)
    torch.testing.assert_close(rows[0].tensors["weight"][2], expected, atol=1e-5, rtol=1e-5)
    with small.transaction("test") as tx:
        tx.delete("sentences", f"source = 'prompt' AND class_id = {int(rows[0].class_ids[2])}")
    row = make(small, "zero-shot")[0]
    assert row.note == "1 of 8 classes have no prompt: the mean of all their sentences"
    vectors = encoder.encode_texts(drawings.texts()[drawings.WORDS.index(name)])
    expected = F.normalize(F.normalize(vectors, dim=1).mean(0), dim=0)
    torch.testing.assert_close(row.tensors["weight"][2], expected, atol=1e-5, rtol=1e-5)


def test_zero_shot_shows_the_starting_weights_too(small: Workspace, tmp_path: Path) -> None:
    """Where the recipe starts from weights; other weights at the same place are refused."""
    weights = small.recipe.encoder.model_copy(update={"pretrained": str(tmp_path / "start")})
    drawings.encoder(9).save(tmp_path / "start")
    recipe = small.recipe.model_copy(update={"encoder": weights})
    small.write_config(small.config.model_copy(update={"recipe": recipe}))
    with small.transaction("test") as tx:
        tx.set(checkpoint=small.put_object("checkpoints", drawings.encoder(5).save))
    rows = make(small, "zero-shot")
    assert [row.label for row in rows] == ["zero-shot", "zero-shot, starting weights"]
    assert rows[0].image_fp != rows[1].image_fp
    found = scored(small)
    assert not torch.equal(found["zero-shot"].scores, found["zero-shot, starting weights"].scores)
    shutil.rmtree(tmp_path / "start")
    drawings.encoder(10).save(tmp_path / "start")
    small.store.drop(f"image_vectors_{rows[1].image_fp}")
    with pytest.raises(FingerprintMismatch, match="baseline 'zero-shot' was made with encoder") as caught:
        scored(small)
    assert caught.value.hint == "Make it again: vlltr train baseline zero-shot"


@pytest.mark.parametrize("name", ["ncm", "crt", "tau-norm", "lws"])
def test_the_fc_baseline_must_be_there(small: Workspace, name: str) -> None:
    """Those that stand on its tower name the command."""
    with pytest.raises(MissingStepError) as caught:
        make(small, name)
    assert str(caught.value) == (
        "the image-only baseline has not been trained yet\nRun: vlltr train baseline fc"
    )


def test_other_missing_steps_are_named(workspace: Workspace, small: Workspace) -> None:
    """No such baseline; no sentences; no weights; no anchors for the random-words control."""
    with pytest.raises(UsageError, match="no baseline 'best'") as wrong:
        train_cheap_baseline(workspace, "best", workspace.recipe.baselines)
    assert wrong.value.hint == f"There are: fc, {', '.join(CHEAP)}."
    with pytest.raises(MissingStepError, match="there are no sentences") as missing:
        make(workspace, "zero-shot")
    assert missing.value.hint == "Run: vlltr ingest text PATH"
    with pytest.raises(MissingStepError, match="has no weights yet"):
        make(workspace, "imprint")
    with pytest.raises(MissingStepError, match="no anchor sentences have been selected yet"):
        make(small, "waffle")


def test_files_that_are_gone_or_damaged_name_the_command(all_made: Workspace, tmp_path: Path) -> None:
    """Each with the baseline to make again."""
    workspace = Workspace.open(shutil.copytree(all_made.path, tmp_path / "w"))
    commit = workspace.history.last()
    assert commit is not None
    folder = workspace.object_path("heads", commit.info["baselines"]["crt"])
    (folder / "baseline.json").write_text("{", encoding="utf-8")
    with pytest.raises(WorkspaceError, match=r"the baseline in .* cannot be read") as damaged:
        scored(workspace)
    assert damaged.value.hint == "Make it again: vlltr train baseline crt"
    shutil.rmtree(folder)
    with pytest.raises(MissingStepError, match="is gone") as gone:
        baseline_labels(workspace, workspace.snapshot())
    assert gone.value.hint == "Make it again: vlltr train baseline crt"
    shutil.rmtree(fc_checkpoint(workspace, workspace.snapshot()))
    with pytest.raises(MissingStepError, match="is gone") as fc_gone:
        make(workspace, "ncm")
    assert fc_gone.value.hint == "Run: vlltr train baseline fc"


def test_rows_of_an_earlier_tower_say_so(all_made: Workspace, tmp_path: Path) -> None:
    """Another fc baseline, another encoder: the rows are shown with what makes them again."""
    workspace = Workspace.open(shutil.copytree(all_made.path, tmp_path / "w"))
    there = fc_checkpoint(workspace, workspace.snapshot())

    def copy(target: Path) -> None:
        shutil.copytree(there, target, dirs_exist_ok=True)
        (target / "other").touch()

    with workspace.transaction("test") as tx:
        tx.note(baseline_fc=workspace.put_object("checkpoints", copy))
    rows = scored(workspace)
    assert rows["ncm"].note == "made with an earlier tower: vlltr train baseline ncm"
    assert rows["imprint"].note == ""


def test_weights_of_the_fc_tower_stay_with_their_classes(all_made: Workspace) -> None:
    """tau 0 is the fc classifier without its bias."""
    config = override(all_made.recipe, (*QUICK, "baselines.taus=[0.0]")).baselines
    row = FITS["tau-norm"](Making(all_made, all_made.snapshot(), config, None))[0]
    visual = load_file(fc_checkpoint(all_made, all_made.snapshot()) / "visual.safetensors")
    assert torch.equal(row.class_ids, visual["class_ids"])
    x = torch.randn(3, visual["weight"].shape[1])
    torch.testing.assert_close(row.scores(x, all_made.snapshot()), linear_logits(x, visual["weight"]))
    assert bool((class_positions(visual["class_ids"], row.class_ids) >= 0).all())
