"""Predictions: both branches, the sentences behind them, retrieval, pinned commits, bad images."""

from __future__ import annotations

import logging
import shutil
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch.nn import functional as F

from tests.support.objects import put
from tests.support.parts import check_parts
from tests.support.rounding import PROBABILITY
from vlltr_index.anchors import retrieval
from vlltr_index.classes import ChangeOptions, add_class
from vlltr_index.embedding.loading import image_set
from vlltr_index.errors import (
    FingerprintMismatch,
    InputError,
    MissingStepError,
    UnknownClassError,
    UsageError,
)
from vlltr_index.heads.checkpoint import save_head
from vlltr_index.pipelines.build_index import index_anchors
from vlltr_index.pipelines.history import rollback
from vlltr_index.pipelines.ingest import ingest_images
from vlltr_index.recognition.answering import predict
from vlltr_index.recognizer import Recognizer
from vlltr_index.schemas.config import FusionConfig
from vlltr_index.schemas.options import PredictOptions
from vlltr_index.store.workspace import Workspace
from vlltr_index.tensors import class_positions


@pytest.mark.parametrize("rule", ["ours", "logits", "paper"])
def test_parts_add_up(trained: Workspace, pictures: Path, rule: str) -> None:
    """What each side gave adds up to a class's log-odds against the best other class, under `paper` to its probability;
    all probabilities add up to one."""
    with trained.transaction("test") as tx:
        tx.set(fusion=FusionConfig.model_validate({"rule": rule, "alpha": 0.4}))
    recognizer = Recognizer.open(trained)
    classes = len(recognizer.current().class_ids)
    for prediction in recognizer.predict(
        sorted(pictures.glob("known-*.png")), PredictOptions(top=classes, retrieval="exhaustive")
    ):
        assert len(prediction.classes) == classes
        ordered = [c.probability for c in prediction.classes]
        assert sum(ordered) == pytest.approx(1.0, abs=1e-5)
        assert ordered == sorted(ordered, reverse=True)
        assert {c.unit for c in prediction.classes} == {"probability" if rule == "paper" else "log-odds"}
        check_parts(prediction.classes)


def test_shares_add_up_to_the_text_score(recognizer: Recognizer, pictures: Path) -> None:
    """The shares of all anchors of a class sum to what its text adds by both parts that read it; between trained
    classes the difference of these scores is the text part.
    """
    image = pictures / "known-0.png"
    current = recognizer.current()
    features, _ = recognizer.features([image])
    bank = current.bank
    assert current.saved.parts is not None
    weights = current.saved.parts.weights
    assert current.known.plda.without_text is not current.known.plda
    with torch.no_grad():
        logits = current.saved.head.text_logits(features, bank)[0]
        unit = F.normalize(features.double(), dim=1)
        shifts = (
            current.known.plda.log_likelihoods(unit) - current.known.plda.without_text.log_likelihoods(unit)
        )[0]
    first, second = predict(current, [image], PredictOptions(top=2, explain=99))[0].classes
    assert first.text_part == pytest.approx(first.text_score - second.text_score, abs=2e-3)
    for position in (0, 7, 31):
        name = recognizer.current().names[int(bank.class_ids[position])]
        score = recognizer.explain(image, name)
        assert len(score.sentences) == bank.bounds[position + 1] - bank.bounds[position]
        total = sum(s.share for s in score.sentences)
        expected = weights.text * float(logits[position]) + weights.generative * float(shifts[position])
        expected *= weights.combined  # all are base classes
        assert total == pytest.approx(score.text_score, abs=1e-6)
        assert total == pytest.approx(expected, abs=1e-3)
        assert sum(s.attention for s in score.sentences) == pytest.approx(1.0, abs=1e-5)
        sums = [sum(s.percent for s in group) for group in score.folded]
        assert sums == sorted(sums, reverse=True)
        gave = sum(abs(s.percent) for s in score.sentences)
        assert gave == pytest.approx(100 if any(s.share for s in score.sentences) else 0)
        (top,) = (
            c
            for c in recognizer.predict([image], PredictOptions(top=99, explain=1, retrieval="exhaustive"))[
                0
            ].classes
            if c.name == name
        )
        assert [s.text for s in top.sentences] == [s.text for s in score.folded[0]]


@pytest.mark.slow
def test_text_scores_of_added_classes_follow_their_text_contributions(
    trained: Workspace, heldout: dict[str, list[str]], pictures: Path
) -> None:
    """Their differences are those of the text contributions; under a prior the contributions add up, too."""
    names = sorted(heldout)[:4]
    images = sorted((pictures / "unseen").iterdir())
    for place, name in enumerate(names):
        add_class(trained, name, heldout[name], images=images[place] if place > 1 else None)
    plain = Recognizer.open(trained).current()
    assert plain.saved.parts is not None
    weights = replace(plain.saved.parts.weights, text=0.1)
    plain = plain.with_known(saved=replace(plain.saved, parts=replace(plain.saved.parts, weights=weights)))
    for found in (plain, plain.under("training")):
        feature = found.feature(images[0])
        fused = found.exhaustive(feature[None])
        ids = [found.classes.lookup(name) for name in names]
        scores = found.explained(feature, ids, None)
        columns = class_positions(found.class_ids, torch.tensor(ids))
        parts = fused.text_part[0, columns].tolist()
        for one, other in ((0, 1), (2, 3)):
            apart = scores[one].text_score - scores[other].text_score
            assert apart == pytest.approx(parts[one] - parts[other], abs=2e-3)
        for score in scores:
            assert sum(s.share for s in score.sentences) == pytest.approx(score.text_score, abs=1e-6)
        check_parts(
            found.explained(feature, found.class_ids[fused.probabilities[0].topk(5).indices].tolist(), 1)
        )


def test_neighbours_are_the_nearest_training_images(
    recognizer: Recognizer, trained_once: Path, pictures: Path
) -> None:
    """Of the best class alone, by the stored vectors of the plain view; the exact twin over the whole split."""
    image = pictures / "known-0.png"
    best, other = recognizer.predict([image], PredictOptions(top=2, neighbours=3))[0].classes
    images = image_set(Workspace.open(trained_once).snapshot(), "train")
    (feature,), _ = recognizer.features([image])
    cosines = torch.cosine_similarity(images.features, feature[None])
    cosines[images.class_ids != best.class_id] = -1.0
    wanted = cosines.topk(min(3, int((cosines > -1.0).sum())))
    assert [n.cosine for n in best.neighbours] == pytest.approx(wanted.values.tolist(), abs=1e-5)
    assert [n.image_id for n in best.neighbours] == [images.image_ids[i] for i in wanted.indices.tolist()]
    assert other.neighbours == ()


def test_pictures_that_are_not_embedded_yet_are_no_neighbours(
    trained: Workspace, pictures: Path, tmp_path: Path
) -> None:
    """They came in since: neighbours are the others."""
    image = pictures / "known-0.png"
    asked = PredictOptions(top=1, neighbours=3)
    (before,) = Recognizer.open(trained).predict([image], asked)
    shutil.copytree(pictures / "unseen", tmp_path / "more" / before.classes[0].name)
    ingest_images(trained, tmp_path / "more", "train")
    (after,) = Recognizer.open(trained).predict([image], asked)
    assert after.classes[0].neighbours == before.classes[0].neighbours


def test_what_cannot_be_answered(
    recognizer: Recognizer, pictures: Path, tmp_path: Path, workspace: Workspace
) -> None:
    """Wrong words and an untrained workspace are refused with what was expected."""
    with pytest.raises(MissingStepError, match="no anchor sentences have been selected yet") as caught:
        Recognizer.open(workspace)
    assert caught.value.hint == "Run: vlltr select"
    with pytest.raises(UsageError, match="retrieval is 'auto', 'faiss' or 'exhaustive', got 'magic'"):
        recognizer.predict([pictures / "known-0.png"], PredictOptions(retrieval="magic"))
    with pytest.raises(UnknownClassError, match="no class 'hippopotamus'"):
        recognizer.explain(pictures / "known-0.png", "hippopotamus")
    with pytest.raises(InputError):
        recognizer.explain(tmp_path / "none.png", recognizer.current().names[0])


def test_retrieval_is_taken_where_it_is_quicker(
    trained: Workspace, pictures: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With many anchors; for several images at once with many of each class."""
    index_anchors(trained, "ivf")
    paths = sorted(pictures.glob("known-*.png"))[:2]

    def taken(images: list[Path]) -> set[str]:
        return {prediction.retrieval for prediction in Recognizer.open(trained).predict(images)}

    assert taken(paths[:1]) == {"exhaustive"}
    monkeypatch.setattr(retrieval, "MANY_ANCHORS", 1)
    assert (taken(paths[:1]), taken(paths)) == ({"faiss"}, {"exhaustive"})
    monkeypatch.setattr(retrieval, "_DENSE", 1)
    assert taken(paths) == {"faiss"}


@pytest.mark.parametrize("way", ["exhaustive", "faiss"])
def test_images_scored_apart_have_the_same_scores(
    trained: Workspace, pictures: Path, monkeypatch: pytest.MonkeyPatch, way: str
) -> None:
    """However few are scored at once."""
    index_anchors(trained)
    recognizer = Recognizer.open(trained)
    features = recognizer.features(sorted(pictures.glob("known-*.png")))[0]
    expected, left = recognizer.score(features, way)
    monkeypatch.setattr(
        "vlltr_index.recognition.model._SCORES_AT_ONCE", 2 * len(recognizer.current().class_ids)
    )
    found, residual = recognizer.score(features, way)
    torch.testing.assert_close(found.tensors, expected.tensors, rtol=1e-3, atol=1e-3)
    torch.testing.assert_close(found.probabilities, expected.probabilities, rtol=0, atol=PROBABILITY)
    torch.testing.assert_close(residual, left, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("way", ["exhaustive", "faiss"])
def test_anchors_that_take_much_memory_are_kept_in_float16(
    trained: Workspace, pictures: Path, monkeypatch: pytest.MonkeyPatch, way: str
) -> None:
    """Probabilities hold to a thousandth, and a class is added as to any workspace."""
    index_anchors(trained)
    images = sorted(pictures.glob("known-*.png"))
    recognizer = Recognizer.open(trained)
    features = recognizer.features(images)[0]
    expected, _ = recognizer.score(features, way)
    monkeypatch.setattr("vlltr_index.recognition.anchors._HALVED", 1)
    halved = Recognizer.open(trained)
    assert halved.current().bank.vectors.dtype == torch.float16
    for some in (features, features[:1]):
        found, _ = halved.score(some, way)
        torch.testing.assert_close(
            found.probabilities, expected.probabilities[: len(some)], rtol=0, atol=1e-3
        )
    add_class(trained, "one more", ["It has corners."], options=ChangeOptions(recognizer=halved))
    found, _ = halved.score(features, way)
    assert found.probabilities.shape[1] == expected.probabilities.shape[1] + 1


def test_features_of_another_width_are_refused(recognizer: Recognizer) -> None:
    """Before anything is computed with them."""
    for features in (torch.ones(2, 3), torch.ones(recognizer.current().saved.head.dim)):
        with pytest.raises(InputError, match=r"features must have shape \[N, "):
            recognizer.score(features)


def test_a_head_of_another_encoder_is_refused(trained: Workspace) -> None:
    """A head whose fingerprint is not the vectors' is refused, not used."""
    other = replace(Recognizer.open(trained).current().saved, image_fp="0" * 16)
    with trained.transaction("test") as tx:
        tx.set(head=put(trained, "heads", lambda folder: save_head(other, folder)))
    with pytest.raises(
        FingerprintMismatch, match=r"the head was trained on vectors of the towers .*'0{16}'"
    ) as caught:
        Recognizer.open(trained)
    assert caught.value.hint == "Train it again: vlltr train lgr"


def test_an_open_recognizer_takes_newer_commits(
    trained: Workspace, pictures: Path, heldout: dict[str, list[str]]
) -> None:
    """The next prediction is the new commit's, as if opened anew, by the encoder that is loaded already."""
    images = sorted(pictures.glob("known-*.png"))[:2]
    following = Recognizer.open(trained)
    staying = Recognizer.open(trained, reload=False)
    before = following.predict(images, PredictOptions(explain=2))
    encoder = following.current().encoder
    name = min(heldout)
    add_class(Workspace.open(trained.path), name, heldout[name])
    after = following.predict(images, PredictOptions(explain=2))
    assert after == Recognizer.open(trained).predict(images, PredictOptions(explain=2)) != before
    assert {p.commit for p in after} == {following.commit} == {before[0].commit + 1}
    assert name in following.current().names.values()
    assert following.current().encoder is encoder
    assert staying.predict(images, PredictOptions(explain=2)) == before
    assert following.explain(images[0], name).name == name
    rollback(trained, before[0].commit)
    assert following.predict(images, PredictOptions(explain=2)) == before


def test_another_encoder_is_loaded(trained: Workspace, pictures: Path) -> None:
    """Where a commit's vectors are of other towers, its encoder is opened anew: here that fails, as there is none."""
    recognizer = Recognizer.open(trained)
    recognizer.predict([pictures / "known-0.png"])
    other = replace(recognizer.current().saved, image_fp="0" * 16)
    with trained.transaction("train lgr") as tx:
        tx.set(image_fp="0" * 16, head=put(trained, "heads", lambda folder: save_head(other, folder)))
    with pytest.raises(FingerprintMismatch, match="the vectors of the images were made by encoder 0000"):
        recognizer.predict([pictures / "known-0.png"])


def test_a_commit_that_cannot_answer_is_passed_over(
    trained: Workspace, pictures: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """While the head is being trained anew the old one answers, with one warning; then the new one does."""
    image = [pictures / "known-0.png"]
    recognizer = Recognizer.open(trained)
    before = recognizer.predict(image)
    head = trained.history.read(recognizer.commit).head
    with trained.transaction("train cvlp") as tx:
        tx.set(head=None)
    with caplog.at_level(logging.WARNING, "vlltr_index.recognizer"):
        assert [recognizer.predict(image), recognizer.predict(image)] == [before, before]
    number = before[0].commit
    assert [r.getMessage().splitlines()[0] for r in caplog.records] == [
        f"answering as of commit {number}: commit {number + 1} cannot yet: no head has been trained yet"
    ]
    with trained.transaction("train lgr") as tx:
        tx.set(head=head)
    assert recognizer.predict(image)[0].commit == number + 2


def test_threads_share_a_recognizer(
    trained: Workspace, pictures: Path, heldout: dict[str, list[str]]
) -> None:
    """Threads that predict while a class is added get one commit's answers each, old or new, and then the new."""
    images = sorted(pictures.glob("known-*.png"))[:2]
    recognizer = Recognizer.open(trained)
    number = recognizer.commit
    with ThreadPoolExecutor(4) as pool:
        futures = [pool.submit(recognizer.predict, images) for _ in range(4)]
        add_class(Workspace.open(trained.path), min(heldout), heldout[min(heldout)])
        futures += [pool.submit(recognizer.predict, images) for _ in range(4)]
        answers = [[p.commit for p in future.result()] for future in futures]
    assert all(a in ([number, number], [number + 1, number + 1]) for a in answers)
    assert answers[4:] == [[number + 1, number + 1]] * 4
