"""Evaluation over a workspace: each row is what its name says, on exactly the commit's images."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

from tests.support.commands import run
from vlltr_index.classes import add_class, add_images
from vlltr_index.embedding.loading import image_set
from vlltr_index.errors import MissingStepError, UsageError
from vlltr_index.evaluation.metrics import under
from vlltr_index.pipelines.embed import embed
from vlltr_index.pipelines.evaluate import evaluate, evaluation
from vlltr_index.pipelines.ingest import ingest_images
from vlltr_index.pipelines.report import write_report
from vlltr_index.pipelines.train_baseline import train_baseline
from vlltr_index.recognition.model import Model
from vlltr_index.schemas.baselines import BASELINES
from vlltr_index.schemas.config import FusionConfig
from vlltr_index.store.workspace import Workspace


@pytest.mark.slow
def test_the_text_row_is_the_text_branch_alone(trained: Workspace, heldout: dict[str, list[str]]) -> None:
    """Also beside classes that came later, and under the rule `paper` with its weight."""
    for name in sorted(heldout)[:3]:
        add_class(trained, name, heldout[name])
    with trained.transaction("test") as tx:
        tx.set(fusion=FusionConfig(rule="paper", alpha=0.9))
    report = evaluate(trained)
    scorer, data = Model.open(trained.snapshot()), image_set(trained.snapshot(), "test")
    text = scorer.saved.head.text_logits(data.features, scorer.bank)
    right = scorer.class_ids[text.argmax(1)] == data.class_ids
    assert report.rows["text branch"].top1["overall"].value == pytest.approx(float(right.double().mean()))


@pytest.mark.slow
def test_an_earlier_commit_is_evaluated_on_its_own_images(
    small: Workspace, pictures: Path, tmp_path: Path
) -> None:
    """Method and baseline see the images of that commit, not those that came later."""
    train_baseline(small, "ncm", small.recipe.baselines)
    last = small.history.last()
    before = evaluate(small, "val")
    folder = tmp_path / "more" / small.snapshot().class_table().names[0]
    shutil.copytree(pictures / "unseen", folder)
    ingest_images(small, tmp_path / "more", "val")
    embed(small)
    assert evaluate(small, "val").images == before.images + 4
    assert evaluate(small, "val", at=last.id) == before


def test_images_of_a_class_without_anchors_are_refused(
    trained: Workspace, pictures: Path, tmp_path: Path
) -> None:
    """A class that came after the selection cannot be answered; it is named."""
    shutil.copytree(pictures / "unseen", tmp_path / "more" / "okapi")
    ingest_images(trained, tmp_path / "more", "test", create_classes=True)
    embed(trained)
    with pytest.raises(
        MissingStepError, match=r"1 class of split 'test' with neither .* for example 'okapi'"
    ):
        evaluate(trained)


@pytest.mark.slow
def test_the_method_is_compared_with_any_row(trained: Workspace) -> None:
    """By default with the adjusted image-only row; `--against` takes another, and names what there is."""
    assert evaluate(trained).against is None
    train_baseline(trained, "knn", trained.recipe.baselines)
    train_baseline(trained, "zero-shot", trained.recipe.baselines)
    report = evaluate(trained, against="knn")
    own = ["vl-ltr", "image branch", "text branch", "vl-ltr, --prior training"]
    assert list(report.rows) == [*own, "zero-shot", "zero-shot, --prior training", "knn"]
    assert report.against == "knn"
    gain = report.rows["vl-ltr"].top1["overall"].value - report.rows["knn"].top1["overall"].value
    assert report.differences["overall"].value == pytest.approx(gain)
    assert "knn" not in report.calibration_error
    assert report.rows.keys() - report.calibration_error.keys() == {"knn"}
    assert "classes have no prompt" in report.notes["zero-shot"]
    with pytest.raises(UsageError) as caught:
        evaluate(trained, against="ncm")
    assert caught.value.message == "no row 'ncm' to compare with"
    assert caught.value.hint == (
        "There are: image branch, text branch, zero-shot, knn. Make others: vlltr train baseline NAME"
    )


def test_images_alone_name_no_class_that_is_known_by_text_alone(
    trained: Workspace, pictures: Path, tmp_path: Path
) -> None:
    """They know nothing of it, as the rules do that were trained without it; the row's note says so."""
    for name in ("okapi", "quagga"):
        add_class(trained, name, [f"The {name} has a striped leg."])
        shutil.copytree(pictures / "unseen", tmp_path / "more" / name)
    ingest_images(trained, tmp_path / "more", "test")
    embed(trained)
    found = evaluation(trained)
    assert found.answers["image branch"].best.max() < len(found.class_ids) - 2
    assert found.report.rows["image branch"].top5["new"].count == 0
    assert found.report.notes["image branch"] == "cannot name 2 classes known by text alone"


@pytest.mark.slow
def test_a_rule_that_was_made_before_a_class_came_is_not_compared(
    trained: Workspace, pictures: Path, tmp_path: Path
) -> None:
    """It could not be right there; it is shown, with a note. A class without a training image it need not know."""
    train_baseline(trained, "ncm", trained.recipe.baselines)
    add_class(trained, "okapi", ["A striped leg."])
    shutil.copytree(pictures / "unseen", tmp_path / "more" / "okapi")
    ingest_images(trained, tmp_path / "more", "test")
    embed(trained)
    assert evaluate(trained).against == "ncm"
    add_images(trained, "okapi", [pictures / "known-0.png"])
    report = evaluate(trained)
    assert report.against is None
    assert report.notes["ncm"] == (
        "made of other training pictures than there are now: vlltr train baseline ncm; made before 1 class of these"
        " came, and not compared"
    )
    gained = write_report(trained, split="test").missing[-1]
    assert gained.why == "the baselines were made before some classes came"
    assert gained.mend == "Run: vlltr train baseline ncm"
    assert evaluate(trained, against="ncm").against == "ncm"


def test_each_prior_is_measured_beside_the_other(trained: Workspace) -> None:
    """As if the other had been asked for; not where another prior was, and not beside other rules or an index."""
    report = evaluate(trained)
    asked = evaluate(trained, prior="training")
    common = under("vl-ltr", "training")
    assert report.rows[common] == asked.rows["vl-ltr"]
    assert asked.rows[under("vl-ltr", "balanced")] == report.rows["vl-ltr"]
    assert [one.prior for one in report.measures] == ["balanced", "training"]
    assert [one.prior for one in asked.measures] == ["training", "balanced"]
    assert [one.row for one in report.measures] == ["vl-ltr", common]
    for other in (evaluate(trained, rule="paper"), evaluate(trained, retrieval="faiss")):
        assert common not in other.rows
        assert [one.prior for one in other.measures] == ["balanced"]


@pytest.mark.slow
def test_simple_rules_know_the_prior_as_the_method_does(trained: Workspace) -> None:
    """By each measure the method is beside the rule that is best by it; one that is named knows the prior, too."""
    for name in ("ncm", "discriminant", "zero-shot", "knn"):
        train_baseline(trained, name, trained.recipe.baselines)
    report = evaluate(trained)
    rules = {
        "balanced": ["ncm", "discriminant", "zero-shot", "knn"],
    }
    rules["training"] = [*(under(name, "training") for name in rules["balanced"][:3]), "knn"]
    for one in report.measures:
        right = {name: report.rows[name].measured(one.prior).value for name in rules[one.prior]}
        assert one.against in right
        assert right[one.against] == max(right.values())
        assert one.difference is not None
        mine = report.rows[one.row].measured(one.prior).value
        assert one.difference.value == pytest.approx(mine - right[one.against])
    assert report.against == report.measures[0].against
    assert report.differences["balanced"] == report.measures[0].difference
    named = evaluate(trained, against="discriminant", prior="training")
    assert [one.against for one in named.measures] == ["discriminant, --prior training", "discriminant"]


@pytest.mark.slow
def test_the_table_shows_every_baseline(small: Workspace, capsys: pytest.CaptureFixture[str]) -> None:
    """`train baseline rest` makes them all and says what was chosen; `evaluate` has a row for each, and its notes."""
    sets = ["--set", "baselines.epochs=1", "--set", "baselines.lrs=[1e-2]"]

    def call(*args: str, code: int = 0) -> str:
        found, out, err = run(capsys, "-w", small.path, *args)
        assert found == code
        return err if code else out

    assert "Run: vlltr train baseline fc" in call("train", "baseline", "crt", code=1)
    call("train", "baseline", "fc", "--set", "baseline.epochs=1")
    said = call("train", "baseline", "rest", *sets)
    assert "\ntau-norm: tau " in said
    assert "chosen_on val" in said
    assert said.endswith("Next: vlltr evaluate\n")
    shown = call("evaluate", "--split", "train", "--against", "crt")
    for name in ("image-only", *BASELINES):
        assert f"\n {name} " in shown
    assert "vl-ltr less crt, in points [95 % of the paired bootstrap]\n  overall  " in shown
    report = json.loads(call("--json", "evaluate", "--split", "train"))
    assert report["against"] == "image-only + logit adjustment"
    assert set(report["rows"]) > set(BASELINES)
    refused = call("train", "baseline", "ncm", "--processes", "2", code=2)
    assert "baseline ncm is made in one process; --processes is for fc" in refused
