"""The classifier for scikit-learn: its contract, groups, texts, data sets of others, and a workspace's answers."""

from __future__ import annotations

import json
import pickle
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
from numpy.typing import NDArray
from PIL import Image
from sklearn import config_context
from sklearn.base import clone
from sklearn.exceptions import NotFittedError
from sklearn.model_selection import GroupKFold, cross_val_score
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from torchvision.datasets import ImageFolder

from vlltr_index import Recognizer, VLLTRClassifier, fit
from vlltr_index.data.glyphs import glyph_files
from vlltr_index.embedding.loading import usable_images
from vlltr_index.encoders.encoder import Encoder
from vlltr_index.errors import FingerprintMismatch, InputError, UsageError
from vlltr_index.pipelines.in_memory import picture_features

EXPECTED_FAILURES: dict[str, str] = {}
"""Checks of scikit-learn that the estimator fails, each with its reason: none."""
ENCODER = "vlltr-tiny:glyphs"
VIEWS = ("lgr.views=2", "lgr.augment.kind=glyph")
WORDLESS = ("prompts=[]",)  # a fit without texts takes a second

Table = NDArray[np.float32]


def bursts(classes: int = 3, groups: int = 6, each: int = 4, seed: int = 0) -> tuple[Table, Any, list[str]]:
    """Features of classes in groups that resemble each other, with labels and groups."""
    draw = np.random.default_rng(seed)
    centres = 2 * np.eye(classes, 16)
    rows, labels, names = [], [], []
    for label in range(classes):
        for group in range(groups):
            place = centres[label] + draw.normal(size=16)
            rows.append(place + 0.3 * draw.normal(size=(each, 16)))
            labels += [f"class {label}"] * each
            names += [f"{label}-{group}"] * each
    return np.concatenate(rows).astype(np.float32), np.array(labels), names


@pytest.fixture(scope="module")
def glyphs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of class folders, five pictures each of six characters that the encoder has not seen; and texts.json."""
    folder = tmp_path_factory.mktemp("glyphs")
    files = glyph_files()
    texts = files.heldout_classes("dev")
    names = sorted(texts)[:6]
    wanted = [("split", "==", "dev_support"), ("label", "in", names)]
    for number, row in enumerate(pq.read_table(files.images, filters=wanted).to_pylist()):
        place = folder / "pictures" / row["label"]
        place.mkdir(parents=True, exist_ok=True)
        (place / f"{number:03}.png").write_bytes(row["image"])
    told = {name: texts[name] for name in names}
    (folder / "texts.json").write_text(json.dumps(told), encoding="utf-8")
    return folder


def pictures_in(folder: Path) -> tuple[list[str], list[str]]:
    """The paths of a folder's pictures, and their classes."""
    paths = sorted((folder / "pictures").glob("*/*.png"))
    return [str(path) for path in paths], [path.parent.name for path in paths]


@pytest.mark.slow
def test_the_checks_of_scikit_learn() -> None:
    """All of them hold but those listed."""
    from sklearn.utils.estimator_checks import check_estimator

    found = check_estimator(VLLTRClassifier(), expected_failed_checks=EXPECTED_FAILURES, on_skip=None)
    assert len(found) > 40
    assert {one["check_name"] for one in found if one["status"] == "xfail"} == set(EXPECTED_FAILURES)
    assert {one["check_name"] for one in found if one["status"] == "skipped"} <= {"check_array_api_input"}


@pytest.mark.slow
def test_answers_are_those_of_a_workspace(glyphs: Path, tmp_path: Path) -> None:
    """By the same pictures in the same order, sentences and seed: anchors, head and probabilities are alike."""
    texts = glyphs / "texts.json"
    settings = ("lgr.seed=3", *VIEWS)
    made = fit(glyphs / "pictures", text=texts, encoder=ENCODER, overrides=settings, to=tmp_path)
    snapshot = made.workspace.snapshot()
    names = snapshot.class_table().names
    rows = usable_images(snapshot, "train", ["uri"])
    pictures = rows["uri"].to_pylist()
    labels = [names[i] for i in rows["class_id"].to_pylist()]
    ours = VLLTRClassifier(texts=texts, encoder=ENCODER, overrides=VIEWS, random_state=3)
    ours.fit(pictures, labels)
    model = Recognizer.open(made.workspace).current()
    assert [names[i] for i in model.class_ids.tolist()] == ours.classes_.tolist()
    assert ours.model_.anchors.sentence_ids == model.anchors.sentence_ids
    assert torch.equal(ours.model_.stats.counts, model.stats.counts)
    for name, values in model.saved.head.state_dict().items():
        torch.testing.assert_close(ours.model_.saved.head.state_dict()[name], values, atol=1e-4, rtol=1e-4)
    assert np.abs(ours.predict_proba(pictures) - model.probabilities(pictures)).max() < 1e-4


def test_groups_are_one_observation_and_held_out_together() -> None:
    """Groups that `fit` gets count once each, whether scikit-learn routes them or hands them on by name."""
    rows, labels, groups = bursts()
    alone = VLLTRClassifier().fit(rows, labels)
    together = VLLTRClassifier().fit(rows, labels, groups=groups)
    assert alone.model_.stats.counts.tolist() == [24] * 3
    assert together.model_.stats.counts.tolist() == [6] * 3
    folds = GroupKFold(3)
    by_hand = []
    for train, test in folds.split(rows, labels, groups):
        fitted = clone(together).fit(rows[train], labels[train], groups=[groups[n] for n in train])
        by_hand.append(fitted.score(rows[test], labels[test]))
    handed = cross_val_score(
        VLLTRClassifier(), rows, labels, groups=groups, cv=folds, params={"groups": groups}
    )
    with config_context(enable_metadata_routing=True):
        asking = VLLTRClassifier().set_fit_request(groups=True)
        routed = cross_val_score(asking, rows, labels, cv=folds, params={"groups": groups})
    assert handed.tolist() == routed.tolist() == by_hand
    assert min(by_hand) > 0.6
    with pytest.raises(ValueError, match="inconsistent numbers of samples"):
        alone.fit(rows, labels, groups=groups[1:])


def test_in_a_pipeline_and_copied() -> None:
    """It is a step as any other; a clone has its settings and nothing fitted; a seed gives the same fit again."""
    rows, labels, _ = bursts()
    line = make_pipeline(StandardScaler(), VLLTRClassifier(random_state=1))
    assert line.fit(rows, labels).score(rows, labels) > 0.9
    copied = clone(line[-1])
    assert copied.get_params() == line[-1].get_params()
    with pytest.raises(NotFittedError):
        copied.predict(rows)
    again = clone(line).set_params(vlltrclassifier__random_state=np.random.RandomState(5))
    assert again.fit(rows, labels).predict_proba(rows).shape == (len(rows), 3)


def test_texts_as_vectors() -> None:
    """With features and no encoder a class's sentences are vectors: they become its anchors, and place its mean."""
    draw = np.random.default_rng(0)
    classes = 12
    centres = draw.normal(size=(classes, 16))
    labels = np.repeat(np.arange(classes), 3)
    rows = centres[labels] + 0.9 * draw.normal(size=(len(labels), 16))
    texts = {label: centres[label] + 0.2 * draw.normal(size=(4, 16)) for label in range(classes)}
    test = np.repeat(np.arange(classes), 20)
    unseen = centres[test] + 0.9 * draw.normal(size=(len(test), 16))
    plain = VLLTRClassifier().fit(rows, labels)
    told = VLLTRClassifier(texts=texts | {"of no class": []}).fit(rows, labels)
    assert plain.model_.bank.num_classes == 0
    assert told.model_.bank.num_classes == classes
    assert told.score(unseen, test) > plain.score(unseen, test) + 0.05


@pytest.mark.parametrize(
    ("texts", "message"),
    [
        (
            {"class 0": ["It has wings."]},
            r"the texts of class 'class 0' are no vectors \[n, 16\].*(.|\n)*\nName the",
        ),
        (
            {"class 0": np.zeros((2, 3))},
            r"the vectors of the sentences of class 'class 0' must .* got \[2, 3\]",
        ),
        (["It has wings."], "texts is a list"),
        ({"klass 0": np.zeros((2, 16))}, "the texts are of 'klass 0', the labels are 'class 0', 'class 1'"),
    ],
)
def test_texts_that_do_not_fit(texts: Any, message: str) -> None:
    """Sentences without an encoder, vectors of another width, and texts of other classes alone are errors."""
    rows, labels, _ = bursts(groups=1)
    with pytest.raises(InputError, match=message):
        VLLTRClassifier(texts=texts).fit(rows, labels)


def test_what_cannot_be_fitted() -> None:
    """One class, pictures without labels, and a recipe that trains on images in stage 2."""
    rows, labels, _ = bursts(groups=1)
    with pytest.raises(ValueError, match="there is 1 class"):
        VLLTRClassifier().fit(rows[:4], labels[:4])
    with pytest.raises(ValueError, match="requires y to be passed"):
        VLLTRClassifier().fit(["a.png", "b.png"])
    with pytest.raises(UsageError, match="imagenet_lt/paper-rn50 cannot be fitted in memory"):
        VLLTRClassifier(recipe="imagenet_lt/paper-rn50").fit(rows, labels)
    fitted = VLLTRClassifier().fit(rows, labels)
    with pytest.raises(InputError, match="this model was fitted on features, and no encoder is named"):
        fitted.predict(["a.png"])


def test_under_the_prior_of_training_common_classes_are_named_more_often() -> None:
    """Where pictures hardly tell; as a workspace under `--prior training`, by the counts of `fit`."""
    draw = np.random.default_rng(0)
    labels = np.array(["common"] * 60 + ["rare"] * 12)
    X = (draw.normal(size=(72, 8)) + 0.3 * (labels == "rare")[:, None]).astype(np.float32)
    alike = VLLTRClassifier(overrides=WORDLESS).fit(X, labels)
    common = VLLTRClassifier(overrides=WORDLESS, prior="training").fit(X, labels)
    column = list(common.classes_).index("common")
    assert common.predict_proba(X)[:, column].mean() > alike.predict_proba(X)[:, column].mean() + 0.1
    with pytest.raises(UsageError, match="the prior is 'balanced' or 'training', got 'estimated'"):
        VLLTRClassifier(prior="estimated").fit(X, labels)


def test_missing_groups_are_none() -> None:
    """None, NaN, and what a table has in its place: each such picture is by itself."""
    rows, labels, _ = bursts()
    alone = VLLTRClassifier().fit(rows, labels).predict_proba(rows)
    for missing in ([None] * len(rows), np.full(len(rows), np.nan)):
        assert np.array_equal(VLLTRClassifier().fit(rows, labels, groups=missing).predict_proba(rows), alone)


@pytest.mark.parametrize("one", ["a.png", Path("a.png"), b"a", Image.new("L", (8, 8)), iter(["a.png"])])
def test_one_picture_is_no_list(one: Any) -> None:
    """Nor is what can be read once only: the error names the way out."""
    with pytest.raises(InputError, match="one picture, or can be read once only") as caught:
        VLLTRClassifier().fit(one, ["a"])
    assert caught.value.hint == "Give a list: [picture], list(pictures)"


@pytest.mark.slow
def test_every_kind_of_picture(glyphs: Path) -> None:
    """Paths, bytes, PIL images and arrays are one picture each; features that the encoder made are, too."""
    paths, labels = pictures_in(glyphs)
    data = [Path(path).read_bytes() for path in paths]
    opened = [Image.open(BytesIO(one)).convert("RGB") for one in data]
    arrays = np.stack([np.asarray(one) for one in opened])
    fitted = VLLTRClassifier(encoder=ENCODER, overrides=WORDLESS).fit(paths, labels)
    wanted = fitted.predict_proba(paths)
    for kind in ([Path(path) for path in paths], data, opened, arrays):
        assert np.abs(fitted.predict_proba(kind) - wanted).max() < 1e-6
    again = clone(fitted).fit(opened, labels)
    assert np.abs(again.predict_proba(arrays) - wanted).max() < 1e-4
    features = picture_features(Encoder.load(*ENCODER.split(":")), paths).numpy()
    assert np.abs(fitted.predict_proba(features) - wanted).max() < 1e-6
    with pytest.raises(ValueError, match="has 3 features"):
        fitted.predict(features[:, :3])


@pytest.mark.slow
def test_data_sets_go_in_as_they_are(glyphs: Path) -> None:
    """A `datasets.Dataset` and an `ImageFolder` are their pictures with the names of their classes."""
    from datasets import ClassLabel, Dataset, DatasetDict, Features
    from datasets import Image as Column

    paths, labels = pictures_in(glyphs)
    folder = ImageFolder(str(glyphs / "pictures"))
    kinds = Features({"picture": Column(), "kind": ClassLabel(names=folder.classes)})
    rows = {"picture": paths, "kind": folder.targets}
    dataset = Dataset.from_dict(rows, features=kinds)
    stored = [{"bytes": Path(path).read_bytes(), "path": None} for path in paths]
    held = Dataset.from_dict(rows | {"picture": stored}, features=kinds)
    line = VLLTRClassifier(encoder=ENCODER, overrides=WORDLESS)
    wanted = clone(line).fit(paths, labels).predict_proba(paths)
    for one in (folder, dataset, held):
        fitted = clone(line).fit(one)
        assert fitted.classes_.tolist() == folder.classes
        assert np.abs(fitted.predict_proba(one) - wanted).max() < 1e-4
        assert fitted.score(one) == np.mean(fitted.predict(paths) == np.array(labels))
    unlabelled = Dataset.from_dict(rows | {"kind": [-1, *folder.targets[1:]]}, features=kinds)
    assert fitted.predict(unlabelled).tolist() == fitted.predict(paths).tolist()
    with pytest.raises(InputError, match="row 0 of the data set has no class in its column 'kind'"):
        fitted.score(unlabelled)
    with pytest.raises(InputError, match="the data set has splits, 'train', and no pictures\nGive one"):
        fitted.predict(DatasetDict(train=dataset))
    with pytest.raises(
        InputError, match="no column of the type Image, and none called 'image'; it has 'kind'"
    ):
        fitted.predict(dataset.select_columns(["kind"]))


@pytest.mark.slow
def test_sentences_of_features(glyphs: Path) -> None:
    """With features and a named encoder texts are sentences, and classes have their prompts."""
    paths, labels = pictures_in(glyphs)
    features = picture_features(Encoder.load(*ENCODER.split(":")), paths).numpy()
    line = VLLTRClassifier(texts=glyphs / "texts.json", encoder=ENCODER)
    by_features = clone(line).fit(features, labels)
    by_pictures = clone(line).fit(paths, labels)
    assert by_features.model_.anchors.sentence_ids
    assert np.abs(by_features.predict_proba(paths) - by_features.predict_proba(features)).max() < 1e-6
    assert by_features.score(paths, labels) == by_pictures.score(paths, labels)
    with pytest.raises(InputError, match="X has 3 features, the encoder vlltr-tiny makes"):
        line.fit(features[:, :3], labels)


@pytest.mark.slow
def test_a_picture_that_cannot_be_read(glyphs: Path) -> None:
    """Its place is named, in fitting and in predicting."""
    paths, labels = pictures_in(glyphs)
    line = VLLTRClassifier(encoder=ENCODER, overrides=WORDLESS)
    with pytest.raises(InputError, match=r"pictures\[1\] cannot be read: no such file"):
        line.fit([paths[0], "none.png", *paths[2:]], labels)
    with pytest.raises(InputError, match=r"pictures\[1\]: .*no such file"):
        line.fit(paths, labels).predict([paths[0], "none.png"])


@pytest.mark.slow
def test_a_pickle_has_no_encoder(glyphs: Path, tmp_path: Path) -> None:
    """It is read again where it is needed; other weights than those of the fit are refused."""
    paths, labels = pictures_in(glyphs)
    encoder = Encoder.load(*ENCODER.split(":"))
    encoder.save(tmp_path / "encoder")
    line = VLLTRClassifier(encoder=f"local-dir:{tmp_path / 'encoder'}", overrides=WORDLESS)
    line.fit(paths, labels)
    kept = pickle.dumps(line)
    assert len(kept) < (tmp_path / "encoder" / "model.safetensors").stat().st_size
    assert np.array_equal(pickle.loads(kept).predict_proba(paths), line.predict_proba(paths))  # noqa: S301  # our own
    with torch.no_grad():
        next(encoder.model.visual.parameters()).mul_(1.01)
    encoder.save(tmp_path / "encoder")
    with pytest.raises(FingerprintMismatch, match="this model was fitted with the encoder"):
        pickle.loads(kept).predict(paths)  # noqa: S301
