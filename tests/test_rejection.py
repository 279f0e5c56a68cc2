"""None of these: scores and threshold against naive twins, and a prediction that is refused."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from vlltr_index.calibration import BranchLogits
from vlltr_index.cli.main import main
from vlltr_index.cli.render import prediction_lines
from vlltr_index.errors import InputError
from vlltr_index.fusion import FusionParams, fuse
from vlltr_index.recognizer import Recognizer
from vlltr_index.rejection import SCORES, fit_rejection, known_scores
from vlltr_index.schemas.records import Prediction
from vlltr_index.stages.calibrate import fit_none_of_these
from vlltr_index.workspace import Workspace

PARAMS = FusionParams(0.4, 1.5, 0.8, 0.7)


def logits(seed: int, images: int = 6) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Visual [N, 6], text [N, 5], the rows' classes (one retired, two of one class) and the trained classes."""
    generator = torch.Generator().manual_seed(seed)
    visual = torch.randn(images, 6, generator=generator, dtype=torch.float64) * 3
    text = torch.randn(images, 5, generator=generator, dtype=torch.float64) * 3
    return visual, text, torch.tensor([0, 1, 1, -1, 2, 0]), torch.tensor([True, True, True, False, False])


def naive(visual: Tensor, text: Tensor, rows: Tensor, trained: Tensor, score: str) -> list[float]:
    """The scores with loops over images and classes."""
    found = []
    chances = fuse(visual, text, rows, trained, PARAMS).probabilities
    for image in range(len(text)):
        told = [float(text[image, c]) / 0.8 - 0.7 * bool(trained[c]) for c in range(5)]
        seen = {
            c: max(float(visual[image, r]) / 1.5 for r in range(6) if rows[r] == c)
            for c in {int(r) for r in rows if r >= 0}
        }
        both = [0.4 * seen[c] + 0.6 * told[c] if c in seen else told[c] for c in range(5)]
        found.append(
            {
                "text": max(told),
                "visual": max(seen.values()),
                "fused": max(both),
                "evidence": max(told) + float(chances[image].max().log()),
            }[score]
        )
    return found


@pytest.mark.parametrize("score", SCORES)
def test_scores_equal_their_twin(score: str) -> None:
    """Temperatures, margin, retired rows and several rows of a class, as the loops have them."""
    inputs = logits(3)
    found = known_scores(*inputs, PARAMS)
    assert found[score].tolist() == pytest.approx(naive(*inputs, score))  # type: ignore[index]  # a str that fits
    assert torch.equal(known_scores(*inputs, PARAMS, (score,))[score], found[score])  # type: ignore[arg-type, index]


def test_without_visual_rows_the_text_speaks() -> None:
    """With every row retired the visual score is the text's, and nothing is infinite."""
    visual, text, rows, trained = logits(4)
    found = known_scores(visual, text, torch.full_like(rows, -1), trained, PARAMS)
    assert torch.equal(found["visual"], found["text"])
    assert torch.equal(found["fused"], found["text"])
    with pytest.raises(InputError, match="no such score: loudest; there are text, visual, fused, evidence"):
        known_scores(visual, text, rows, trained, PARAMS, ("loudest",))  # type: ignore[arg-type]  # the point


@settings(max_examples=40, deadline=None)
@given(
    known=st.lists(st.integers(-5, 5), min_size=1, max_size=30),
    unknown=st.lists(st.integers(-5, 5), min_size=1, max_size=30),
    tpr=st.floats(0.05, 0.99),
)
def test_the_threshold_is_the_highest_that_accepts_enough(
    known: list[int], unknown: list[int], tpr: float
) -> None:
    """Any known score above it would accept too few; AUROC and the other rate count pairs, ties half."""
    generator = torch.Generator().manual_seed(len(known))
    weights = torch.rand(len(known), generator=generator, dtype=torch.float64) + 0.1
    weights /= weights.sum()
    values, other = torch.tensor(known).float(), torch.tensor(unknown).float()
    fit = fit_rejection({"text": values}, {"text": other}, weights, tpr)

    def accepted(limit: float) -> float:
        return sum(w for v, w in zip(known, weights.tolist(), strict=True) if v >= limit)

    assert fit.tpr == pytest.approx(accepted(fit.threshold))
    assert fit.tpr >= tpr - 1e-9
    assert all(accepted(v) < tpr for v in known if v > fit.threshold)
    assert fit.fpr["text"] == pytest.approx(sum(v >= fit.threshold for v in unknown) / len(unknown))
    pairs = sum(
        w * ((k > u) + (k == u) / 2) for k, w in zip(known, weights.tolist(), strict=True) for u in unknown
    )
    assert fit.auroc["text"] == pytest.approx(pairs / len(unknown))


def test_the_best_score_is_chosen() -> None:
    """The one with the largest AUROC gives the threshold."""
    generator = torch.Generator().manual_seed(0)
    noise = torch.randn(200, generator=generator)
    known = {"text": noise[:100], "visual": noise[:100] + 3}
    unknown = {"text": noise[100:], "visual": noise[100:]}
    fit = fit_rejection(known, unknown)  # type: ignore[arg-type]  # two of the scores
    assert fit.score == "visual"
    assert fit.auroc["visual"] > fit.auroc["text"]
    with pytest.raises(InputError, match="needs images of known and of unknown classes"):
        fit_rejection({"text": noise[:0]}, {"text": noise})
    with pytest.raises(InputError, match="must lie between 0 and 1, got 1"):
        fit_rejection({"text": noise}, {"text": noise}, tpr=1.0)


def test_calibration_looks_as_before_the_classes_came() -> None:
    """The new classes' own columns play no part in the fit, and all in how many are accepted once they are there."""
    generator = torch.Generator().manual_seed(1)
    trained = torch.arange(6) < 4
    text = torch.randn(80, 6, generator=generator)
    visual = torch.randn(80, 4, generator=generator)
    labels = torch.arange(80) % 4
    text[torch.arange(40), labels[:40]] += 6
    visual[torch.arange(40), labels[:40]] += 6
    old = BranchLogits(visual[:40], text[:40], labels[:40])
    new = BranchLogits(visual[40:], text[40:], 4 + labels[40:] % 2)
    fit, added = fit_none_of_these(old, new, torch.arange(4), trained, FusionParams(), 0.0)
    louder = BranchLogits(new.visual, new.text + 50 * (~trained).float(), new.labels)
    again, accepted = fit_none_of_these(old, louder, torch.arange(4), trained, FusionParams(), 0.0)
    assert again == fit
    assert fit.auroc[fit.score] > 0.9
    assert added < 0.9
    assert accepted == 1.0


def test_predict_says_none_of_these(
    trained: Workspace, pictures: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Above and below the threshold, in JSON and for people, by both kinds of retrieval; without one a clear error."""
    image = str(pictures / "known-0.png")
    args = ["-w", str(trained.path), "--json", "predict", image, "--reject"]
    with pytest.raises(SystemExit) as left:
        main(args)
    assert left.value.code == 1
    assert capsys.readouterr().err.splitlines() == [
        "Error: no threshold for 'none of these' has been calibrated",
        "Run: vlltr calibrate",
    ]
    score = calibrated(trained, image, -1e9).known_score
    assert score is not None
    for retrieval in ("faiss", "exhaustive"):
        (accepted,) = Recognizer.open(trained).predict([image], retrieval=retrieval, reject=True)
        assert accepted.known is True
        assert accepted.known_score == pytest.approx(score, abs=1e-4)
    refused = calibrated(trained, image, score + 0.01)
    assert refused.known is False
    name = refused.classes[0].name
    lines = prediction_lines(refused)
    assert len(lines) == 2
    assert lines[1].startswith(f"  none of these (closest: {name} ")
    with pytest.raises(SystemExit) as left:
        main(args)
    assert left.value.code == 0
    (shown,) = json.loads(capsys.readouterr().out)
    assert (shown["known"], shown["classes"][0]["name"]) == (False, name)
    (plain,) = Recognizer.open(trained).predict([image])
    assert (plain.known, plain.known_score) == (None, None)
    assert not Recognizer.open(trained).predict([pictures / "gone.png"], reject=True)[0].known


def calibrated(workspace: Workspace, image: str, threshold: float) -> Prediction:
    """The prediction for an image under a threshold."""
    with workspace.transaction("test") as tx:
        assert tx.commit is not None
        fusion = tx.commit.fusion or workspace.recipe.fusion
        values = {"reject_score": "evidence", "reject_threshold": threshold, "reject_tpr": 0.95}
        tx.set(fusion=fusion.model_copy(update=values))
    return Recognizer.open(workspace).predict([image], reject=True)[0]
