"""Fitting fusion: against brute force, the margin's promise, and what calibration hides from its run."""

from __future__ import annotations

from dataclasses import replace

import pyarrow as pa
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from vlltr_index.calibration import BranchLogits, balanced_accuracy, fit_fusion, image_weights
from vlltr_index.errors import InputError, MissingStepError, UsageError
from vlltr_index.fusion import FusionParams, fuse
from vlltr_index.recipe import override
from vlltr_index.stages.calibrate import _plan, _run_id, calibrate, without_names
from vlltr_index.workspace import Workspace


def branches(seed: int, images: int, classes: int, trained: int, only_new: bool = False) -> BranchLogits:
    """Logits that are right more often than not; trained classes' text logits stand higher, as they do in truth."""
    generator = torch.Generator().manual_seed(seed)
    low, high = (trained, classes) if only_new else (0, trained)
    labels = torch.randint(low, high, (images,), generator=generator)
    text = torch.randn(images, classes, generator=generator, dtype=torch.float64)
    text[:, :trained] += 1.5
    text[torch.arange(images), labels] += 3.0
    visual = torch.randn(images, trained, generator=generator, dtype=torch.float64)
    if not only_new:
        visual[torch.arange(images), labels] += 2.5
    return BranchLogits(3 * visual, 2 * text, labels)


@settings(max_examples=15, deadline=None)
@given(seed=st.integers(0, 1000))
def test_the_margin_keeps_its_promise(seed: int) -> None:
    """Old classes lose at most what was allowed, and new ones are never worse off than without a margin."""
    trained = torch.arange(14) < 10
    rows = torch.arange(10)
    fit = fit_fusion(
        branches(seed, 400, 14, 10), branches(seed + 1, 200, 14, 10, True), rows, trained, max_loss=0.02
    )
    without = fit_fusion(branches(seed, 400, 14, 10), None, rows, trained)
    assert fit.old_alone == pytest.approx(without.old_alone)
    if fit.params.margin > -4:
        assert fit.old_with_new >= fit.old_alone - 0.02
    if fit.params.margin >= 0:
        assert fit.new >= fit.new_without_margin


@pytest.mark.parametrize("seed", [1, 2, 3])
def test_margin_and_agreement_against_brute_force(seed: int) -> None:
    """No agreement and margin of a grid does more for the new classes without costing the old ones too much."""
    trained, rows = torch.arange(14) < 10, torch.arange(10)
    old, new = branches(seed, 400, 14, 10), branches(seed + 9, 200, 14, 10, True)
    fit = fit_fusion(old, new, rows, trained, max_loss=0.02)
    assert fit.old_with_new >= fit.old_alone - 0.02 - 1e-9

    def accuracy(images: BranchLogits, params: FusionParams) -> float:
        return balanced_accuracy(
            fuse(images.visual, images.text, rows, trained, params).probabilities, images.labels
        )

    def right(params: FusionParams, classes: int) -> torch.Tensor:
        fused = fuse(old.visual, old.text[:, :classes], rows, trained[:classes], params)
        return fused.probabilities.argmax(1) == old.labels

    def largest_loss(params: FusionParams) -> float:
        """Loss and 1.645 standard errors, image by image, each class counted alike."""
        shares = 1 / torch.bincount(old.labels)[old.labels].double() / len(old.labels.unique())
        pairs = zip(
            shares.tolist(), (right(params, 10).double() - right(params, 14).double()).tolist(), strict=True
        )
        lost = list(pairs)
        loss = sum(s * d for s, d in lost)
        return float(loss + 1.645 * sum((s * (d - loss)) ** 2 for s, d in lost) ** 0.5)

    assert accuracy(new, fit.params) == pytest.approx(fit.new)
    assert accuracy(old, fit.params) == pytest.approx(fit.old_with_new)
    assert largest_loss(fit.params) <= 0.02 + 1e-9
    for agreement in (0.0, 0.5, 1.0, 1.5):
        for margin in range(-2, 8):
            other = replace(fit.params, agreement=agreement, margin=float(margin))
            if largest_loss(other) <= 0.02:
                assert accuracy(new, other) <= fit.new + 1e-9


def test_weight_and_temperatures_against_brute_force() -> None:
    """No grid point of weight and temperatures has a lower class-balanced loss by more than the grid's own step."""
    old = branches(5, 500, 10, 10)
    trained, rows = torch.ones(10, dtype=torch.bool), torch.arange(10)
    fit = fit_fusion(old, None, rows, trained)

    def loss(params: FusionParams) -> float:
        chances = fuse(old.visual, old.text, rows, trained, params).probabilities
        per_class = [-chances[old.labels == c, c].log().mean() for c in range(10)]
        return float(torch.stack(per_class).mean())

    best = loss(fit.params)
    for alpha in (0.0, 0.25, 0.5, 0.75, 1.0):
        for tau in (0.5, 1.0, 2.0, 4.0):
            single = FusionParams(alpha, fit.params.tau_visual, fit.params.tau_text)
            assert best <= loss(single) + 1e-9
            assert best <= loss(FusionParams(0.0, 1.0, tau)) + 1e-9
            assert best <= loss(FusionParams(1.0, tau, 1.0)) + 1e-9


def test_balanced_accuracy_counts_classes_alike() -> None:
    """A class with many images weighs as much as one with a single image."""
    scores = torch.eye(2)[torch.tensor([0, 0, 0, 0, 0])]
    assert balanced_accuracy(scores, torch.tensor([0, 0, 0, 0, 1])) == pytest.approx(0.5)


def test_few_shot_images_weigh_what_their_classes_do() -> None:
    """The images that stand for few-shot classes get their share, classes within a group count alike."""
    labels = torch.tensor([0, 0, 1, 2, 2, 2])
    images = BranchLogits(torch.zeros(6, 3), torch.zeros(6, 3), labels, few=labels == 2)
    assert image_weights(images, 0.3).tolist() == pytest.approx([0.175, 0.175, 0.35, 0.1, 0.1, 0.1])
    alike = BranchLogits(images.visual, images.text, labels)
    assert image_weights(alike, 0.3).tolist() == pytest.approx([1 / 6, 1 / 6, 1 / 3, 1 / 9, 1 / 9, 1 / 9])


def test_nothing_to_calibrate_on() -> None:
    """Without an image of a trained class there is nothing to fit."""
    empty = BranchLogits(torch.zeros(0, 2), torch.zeros(0, 2), torch.zeros(0, dtype=torch.int64))
    with pytest.raises(InputError, match="there is no held-back image of a trained class to calibrate on"):
        fit_fusion(empty, None, torch.arange(2), torch.ones(2, dtype=torch.bool))


def test_left_out_names_are_struck_from_other_classes() -> None:
    """A sentence that names a left-out class goes, unless the class's own name holds that name."""
    names = {0: "letter e", 1: "letter e with acute", 2: "letter o", 3: "letter e with acute and dot"}
    rows = pa.table(
        {
            "class_id": pa.array([0, 2, 2, 3], pa.int32()),
            "text": [
                "With a stroke it is the Letter E with Acute.",
                "Not the letter e with acutely bent arm.",
                "Compare letter e with acute.",
                "A letter e with acute and dot.",
            ],
        }
    )
    kept = without_names(rows, names, [1])
    assert kept["text"].to_pylist() == [
        "Not the letter e with acutely bent arm.",
        "A letter e with acute and dot.",
    ]


def test_calibrate_writes_values_and_its_run(trained: Workspace) -> None:
    """The values go into vlltr.toml and a commit; test images are never looked at; the run leaves nothing behind.

    A recipe that selects by split val, as the release's does, has it fitted on nonetheless.
    """
    recipe = override(trained.recipe, ("cvlp.epochs=1", "select.split=val"))
    with trained.transaction("test") as tx:
        tx.delete("images", "split = 'test'")
    report = calibrate(trained, recipe)
    assert report.pseudo_new == 6
    assert report.new_images > 0
    assert Workspace.open(trained.path).recipe.fusion == report.fusion
    names = ("alpha", "tau_visual", "tau_text", "margin", "agreement", "imprint_strength", "imprint_lift")
    fitted = [getattr(report.fusion, n) for n in names]
    assert fitted == [round(value, 6) for value in fitted]
    commit = trained.history.last()
    assert commit is not None
    assert commit.fusion == report.fusion
    assert report.fusion.run_id == report.run_id
    fusion = report.fusion
    assert fusion.reject_score == max(report.reject_auroc, key=lambda name: report.reject_auroc[name])
    assert fusion.reject_threshold is not None
    assert fusion.reject_tpr is not None
    assert 0.95 <= fusion.reject_tpr <= 1
    said = "\n".join(report.lines())
    assert "None of these: below" in said
    assert report.imprinted is not None
    assert report.imprinted.params.imprint_strength == pytest.approx(report.fusion.imprint_strength)
    assert f"Rows imprinted from 1 to 5 images each: strength {report.fusion.imprint_strength:.1f}," in said
    assert not list((trained.path / "runs").glob("calibrate-*"))
    assert calibrate(trained, recipe, write=False).fusion == report.fusion


def test_the_runs_name_depends_on_texts_and_contents(trained: Workspace) -> None:
    """Other bytes of an image, or another sentence, are another run."""
    recipe, plan = trained.recipe, _plan(trained.snapshot())
    names = [_run_id(trained.snapshot(), recipe, plan)]
    for table, column in (("images", "content_hash"), ("sentences", "text_hash")):
        with trained.transaction("test") as tx:
            rows = tx.table(table)
            rows = (
                rows.filter(pa.array([s != "test" for s in rows["split"].to_pylist()]))
                if table == "images"
                else rows
            )
            changed = rows.slice(0, 1).set_column(
                rows.column_names.index(column), rows.schema.field(column), pa.array(["0" * 32], pa.string())
            )
            tx.upsert(table, changed)
        names.append(_run_id(trained.snapshot(), recipe, plan))
    assert len(set(names)) == 3
    assert _run_id(trained.snapshot(), override(recipe, ("cvlp.seed=9",)), plan) not in names


def test_nothing_held_back(trained: Workspace) -> None:
    """Without large classes and without split val the run is refused before it starts."""
    with trained.transaction("test") as tx:
        tx.delete("images", "split = 'val' OR image_id >= '4'")  # a quarter of each class is left
    with pytest.raises(MissingStepError, match="classes with 100 or more, or reads split val") as caught:
        calibrate(trained, trained.recipe)
    assert caught.value.hint == "Bring in validation images: vlltr ingest images PATH --split val"


def test_one_of_several_processes(workspace: Workspace, monkeypatch: pytest.MonkeyPatch) -> None:
    """Under torchrun each process would train the same run."""
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(UsageError, match=r"calibration runs in one process, this is one of 2 \(WORLD_SIZE\)"):
        calibrate(workspace, workspace.recipe)


def test_too_few_classes(workspace: Workspace) -> None:
    """The error says how many are needed and what to do instead."""
    with pytest.raises(
        MissingStepError, match="needs 20 classes with training images; there are 0"
    ) as caught:
        calibrate(workspace, workspace.recipe)
    assert caught.value.hint is not None
    assert caught.value.hint.startswith("Set the values by hand in vlltr.toml")
