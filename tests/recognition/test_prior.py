"""Answers where classes are not equally common: by training, by a file, in tables, and what is refused."""

from __future__ import annotations

import csv
import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from tests.support.commands import run
from vlltr_index.errors import MissingStepError, PriorError, UsageError
from vlltr_index.heads.fusion import with_prior
from vlltr_index.heads.tree import HeldOutAnswers
from vlltr_index.recognition.frequencies import frequencies_among
from vlltr_index.recognizer import Recognizer
from vlltr_index.schemas.options import PredictOptions
from vlltr_index.store.workspace import Workspace


def test_the_model_under_a_prior_is_the_model_with_one_part_more(
    recognizer: Recognizer, pictures: Path
) -> None:
    """The prior is added as it is; the contributions of each class add up to its log-odds."""
    model = recognizer.current()
    images = sorted(pictures.glob("known-*.png"))
    features = recognizer.features(images)[0]
    under = model.under("training")
    assert under is model.under("training")
    with torch.inference_mode():
        side = under.rule.visual_scores(features)
        plain = under.rule.fuse(side, under.text_logits(features))
    assert under.log_prior is not None
    expected = with_prior(plain._replace(prior_part=None), under.log_prior)
    torch.testing.assert_close(under.exhaustive(features).probabilities, expected.probabilities)
    for found in recognizer.predict(images, PredictOptions(top=2, prior="training")):
        first, second = found.classes
        odds = torch.tensor(first.probability / second.probability).log()
        assert first.image_part + first.text_part + first.prior_part == pytest.approx(float(odds), abs=1e-3)
    assert all(one.prior_part == 0.0 for found in recognizer.predict(images) for one in found.classes)


def test_a_common_class_wins(recognizer: Recognizer, pictures: Path) -> None:
    """Given weights go by name, and among some classes too; equal ones leave the order as it is."""
    image = pictures / "known-0.png"
    names = recognizer.classes_.tolist()
    plain = recognizer.predict([image])[0].classes
    level = recognizer.predict([image], PredictOptions(prior=dict.fromkeys(names, 2.0)))[0].classes
    assert [one.name for one in level] == [one.name for one in plain]
    rare = plain[1].name
    skewed = dict.fromkeys(names, 1.0) | {rare: 1e300}
    assert recognizer.predict([image], PredictOptions(prior=skewed))[0].classes[0].name == rare
    some = PredictOptions(prior=skewed, only=[plain[0].name, rare])
    assert [one.name for one in recognizer.predict([image], some)[0].classes] == [rare, plain[0].name]


def test_an_index_is_of_classes_that_are_equally_common() -> None:
    with pytest.raises(UsageError, match="an index finds classes that are equally common"):
        PredictOptions(prior="training", retrieval="faiss")


def test_what_is_no_prior_is_refused(recognizer: Recognizer, pictures: Path) -> None:
    image = pictures / "known-0.png"
    names = recognizer.classes_.tolist()
    with pytest.raises(PriorError, match=r"no weight for .* such as"):
        recognizer.predict([image], PredictOptions(prior={names[0]: 1.0}))
    with pytest.raises(PriorError, match="the prior: no class 'no such'"):
        recognizer.predict([image], PredictOptions(prior=dict.fromkeys([*names, "no such"], 1.0)))
    twice = dict.fromkeys([*names, names[0].upper()], 1.0)
    both = f"two weights for class {names[0]!r}: as {names[0]!r} and as {names[0].upper()!r}"
    with pytest.raises(PriorError, match=both):
        recognizer.predict([image], PredictOptions(prior=twice))
    with pytest.raises(UsageError, match="one by one"):
        list(recognizer.stream([image], PredictOptions(prior="estimated")))
    for wrong in ("frequent", None, {names[0]: 0.0}, {names[0]: float("nan")}, {names[0]: "many"}):
        with pytest.raises(UsageError):
            PredictOptions(prior=wrong)  # type: ignore[arg-type]
    model = recognizer.current()
    other = replace(model, fusion=model.fusion.model_copy(update={"rule": "logits"}))
    with pytest.raises(UsageError):
        other.under("training")
    with pytest.raises(MissingStepError):
        other.with_known(saved=replace(model.saved, parts=None)).under("training")


def test_the_images_tell_how_common_classes_are(recognizer: Recognizer, pictures: Path) -> None:
    """Copies have one vote, and what no class fits has none; all classes have a weight, those that are there more."""
    model = recognizer.current()
    features = recognizer.features([pictures / "known-0.png", pictures / "known-1.png"])[0]
    found = frequencies_among(model, features)
    assert set(found) == set(recognizer.classes_.tolist())
    assert sum(found.values()) == pytest.approx(1.0)
    copies = torch.cat([features, features[:1].expand(30, -1)])
    assert frequencies_among(model, copies) == pytest.approx(found)
    strange = 100.0 * torch.randn(40, features.shape[1], generator=torch.Generator().manual_seed(0))
    assert frequencies_among(model, torch.cat([features, strange])) == pytest.approx(found)
    images = [pictures / "known-0.png", pictures / "known-1.png"]
    asked, given = (PredictOptions(prior=prior) for prior in ("estimated", found))
    assert recognizer.predict(images, asked) == recognizer.predict(images, given)


def test_held_out_answers_know_the_prior() -> None:
    """Only ratios of weights matter, and a class that is gone has no part, also where others are rare."""
    held = HeldOutAnswers(torch.tensor([0, 1]), torch.tensor([[0.6, 0.3, 0.1], [0.2, 0.5, 0.3]]).half())
    there = torch.tensor([0, 1, -1])
    for weight in (1.0, 1e-12):
        log_prior = torch.tensor([weight, 2 * weight, 0.0], dtype=torch.float64).log()
        found = held.under_prior(log_prior).among(there, 2).probabilities
        expected = torch.tensor([[0.5, 0.5], [1 / 6, 5 / 6]])
        torch.testing.assert_close(found, expected, atol=2e-3, rtol=0)


@pytest.mark.slow
def test_the_commands(
    trained: Workspace, pictures: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """A file of weights; a table has the prior part where one was asked for; an evaluation says which it knows."""
    image = pictures / "known-0.png"
    names = Recognizer.open(trained).classes_.tolist()
    told = tmp_path / "weights.csv"
    told.write_text("class,weight\n" + "".join(f'"{name}",3\n' for name in names), encoding="utf-8")
    code, out, _ = run(capsys, "-w", trained.path, "--json", "predict", image, "--prior", told)
    assert code == 0
    assert json.loads(out)[0]["classes"][0]["prior_part"] == pytest.approx(0.0, abs=1e-5)
    for prior, there in (("balanced", False), ("training", True), ("estimated", True)):
        table = tmp_path / f"{prior}.csv"
        assert run(capsys, "-w", trained.path, "predict", image, "--prior", prior, "--out", table)[0] == 0
        with table.open(encoding="utf-8", newline="") as file:
            assert ("prior_part" in next(csv.DictReader(file))) is there
    code, out, _ = run(capsys, "-w", trained.path, "--json", "evaluate", "--prior", "training")
    assert code == 0
    assert json.loads(out)["prior"] == "training"
    assert len(list((trained.path / "reports").glob("evaluate-test-*-prior-training.json"))) == 1
    code, _, said = run(capsys, "-w", trained.path, "evaluate", "--prior", "training", "--retrieval", "faiss")
    assert (code, "--retrieval faiss" in said) == (2, True)
    code, out, _ = run(capsys, "-w", trained.path, "--json", "evaluate", "--prior", "estimated")
    assert (code, json.loads(out)["prior"]) == (0, "estimated")
    code, out, _ = run(capsys, "-w", trained.path, "--json", "evaluate", "--prior", told)
    name = json.loads(out)["prior"]
    assert name.startswith("given-")
    assert len(list((trained.path / "reports").glob(f"evaluate-test-*-prior-{name}.json"))) == 1
    code, _, said = run(capsys, "-w", trained.path, "predict", image, "--prior", "Training")
    assert (code, "balanced, training, estimated" in said) == (2, True)
    told.write_text("class,weight\nwren,0\n", encoding="utf-8")
    code, _, said = run(capsys, "-w", trained.path, "predict", image, "--prior", told)
    assert code == 1
    assert f"{told}:2" in said
