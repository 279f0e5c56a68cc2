"""Adding classes without training: by sentences, by images, by both, from a manifest; exactness and refusals."""

from __future__ import annotations

import json
import math
import shlex
import shutil
from pathlib import Path

import pytest
import torch

from tests.support.changes import anchors as anchors_of
from tests.support.changes import losses as losses_of
from tests.support.engines import Halved
from tests.support.exports import Shared
from vlltr_index.anchors.selection import select
from vlltr_index.classes import (
    ChangeOptions,
    NewClass,
    add_class,
    add_classes,
    add_images,
    read_manifest,
)
from vlltr_index.cli.render import report_lines
from vlltr_index.data.decoding import open_image
from vlltr_index.data.glyphs import glyph_files, write_sample
from vlltr_index.data.text import text_hash
from vlltr_index.embedding.loading import image_set, open_encoder, text_vectors_of
from vlltr_index.embedding.vectors import text_vectors
from vlltr_index.errors import InputError, UsageError
from vlltr_index.heads.offsets import BOUNDED
from vlltr_index.pipelines.classlist import show_class
from vlltr_index.pipelines.embed import embed
from vlltr_index.pipelines.ingest import ingest_images
from vlltr_index.recognition.model import Model
from vlltr_index.recognizer import Recognizer
from vlltr_index.schemas.options import PredictOptions
from vlltr_index.store.workspace import Workspace
from vlltr_index.train.augment import ViewAugment
from vlltr_index.wording import plural


def test_a_class_by_its_description_alone(
    trained: Workspace, heldout: dict[str, list[str]], pictures: Path
) -> None:
    """One commit; it can be explained at once; no other anchors or scores change, and the index stays."""
    name = min(heldout)
    anchors, losses, before = anchors_of(trained), losses_of(trained), trained.history.last()
    report = add_class(trained, name, heldout[name])
    after = trained.history.last()
    assert (after.id, after.index) == (before.id + 1, before.index)
    assert anchors_of(trained).items() >= anchors.items()
    assert losses_of(trained).items() >= losses.items()
    added = report.classes[0]
    assert (added.images, added.visual, added.anchors) == (0, "none", 8)
    assert added.sentences == len(heldout[name])
    recognizer = Recognizer.open(trained)
    position = recognizer.current().class_ids.tolist().index(added.class_id)
    assert not bool(recognizer.current().trained[position])
    scores = recognizer.predict(
        [pictures / "unseen" / "0.png"], PredictOptions(top=61, retrieval="exhaustive")
    )[0].classes
    told = recognizer.explain(pictures / "unseen" / "0.png", name)
    rival = next(score for score in scores if score.name != name)
    assert told.image_part + told.text_part == pytest.approx(
        math.log(told.probability / rival.probability), abs=1e-3
    )


def test_an_engine_computes_the_vectors_of_a_new_class(trained: Workspace, pictures: Path) -> None:
    """Of its sentences and of its images."""
    sentence = "Five dots that nobody drew before."
    encoder = open_encoder(trained.snapshot()).eval()
    known = NewClass("five dots", (sentence,), images=(pictures / "unseen" / "0.png",))
    augment = ViewAugment(trained.recipe.lgr.augment, encoder)
    add_classes(trained, [known], ChangeOptions(engine=Halved(encoder, augment)))
    snapshot = trained.snapshot()
    vectors = text_vectors_of(snapshot, [text_hash(sentence)])
    torch.testing.assert_close(vectors, text_vectors(encoder, [sentence])[0] / 2, atol=1e-5, rtol=1e-5)
    images = image_set(snapshot, "train")
    own = images.features[images.class_ids == snapshot.class_table().lookup("five dots")]
    pixels = encoder.preprocess(open_image((pictures / "unseen" / "0.png").read_bytes()))[None]
    torch.testing.assert_close(own, encoder.encode_pixels(pixels).detach() / 2, atol=1e-5, rtol=1e-5)


@pytest.mark.slow
def test_images_are_counted_and_recognised(
    trained: Workspace, heldout: dict[str, list[str]], pictures: Path
) -> None:
    """A class with images is known by them too: the image branch speaks more for its pictures than by text alone."""
    name, picture = min(heldout), pictures / "unseen" / "0.png"
    report = add_class(trained, name, heldout[name])
    told = Recognizer.open(trained).explain(picture, name)
    seen = add_images(trained, name, [pictures / "unseen"]).classes[0]
    assert (report.classes[0].visual, seen.visual, seen.images) == ("none", "images", 4)
    score = Recognizer.open(trained).explain(picture, name)
    assert (told.without_images, score.without_images) == (True, False)
    assert score.image_part > told.image_part
    assert score.probability > told.probability


def test_misclassified_new_images_are_reported(trained: Workspace, pictures: Path) -> None:
    """As the model answers afterwards; nothing is said where all are recognised."""
    files = [*sorted(pictures.glob("known-*.png")), *sorted((pictures / "unseen").glob("*.png"))]
    report = add_classes(trained, [NewClass("mixed", images=tuple(files))])
    found = [p.classes[0].name for p in Recognizer.open(trained).predict(files)]
    wrong = [name for name in found if name != "mixed"]
    (told,) = [note for note in report.notes if "misclassified" in note]
    assert told.startswith(
        f"{len(wrong)} of 10 new images are still misclassified, although the model was updated with them: "
    )
    assert f"{wrong[0]!r} {wrong.count(wrong[0])}" in told
    alone = add_classes(trained, [NewClass("a sign", ("It is a sign.",))])
    assert not any("misclassified" in note for note in alone.notes)


@pytest.mark.slow
def test_duplicates_of_another_class_are_reported(trained: Workspace, pictures: Path, tmp_path: Path) -> None:
    """By their bytes, under whatever names; a class's own copies are none."""
    first = add_classes(trained, [NewClass("a sign", images=(pictures / "unseen",))])
    assert not any("Exact duplicates" in note for note in first.notes)
    copy = shutil.copytree(pictures / "unseen", tmp_path / "copies")
    again = add_images(trained, "a sign", [copy])
    assert not any("Exact duplicates" in note for note in again.notes)
    report = add_classes(
        trained, [NewClass("another", images=(Path(shutil.copytree(copy, tmp_path / "more")),))]
    )
    (told,) = [note for note in report.notes if "Exact duplicates" in note]
    assert (
        told == "Exact duplicates of images in another class: 'a sign' 4. Their labels contradict each other."
    )


def test_what_a_class_is_known_by(trained: Workspace, heldout: dict[str, list[str]], pictures: Path) -> None:
    """Prompts alone are its name; where a head has no weight for texts (`test_one_sided`) they are not named."""
    bare = NewClass("five dots", images=(str(pictures / "unseen" / "0.png"),))
    told = NewClass("six dots", ("It has six dots.",), images=(pictures / "unseen" / "1.png",))
    spoken = NewClass("seven dots", ("It has seven dots.",))
    report = add_classes(trained, [bare, told, spoken])
    assert [one.text for one in report.classes] == ["name", "own", "own"]
    said = [line.partition(", known ")[2].partition(".")[0] for line in report_lines(report)[:3]]
    assert said == ["by its name and images", "by text and images", "by text alone"]


def test_existing_classes_keep_their_ratios(trained: Workspace, heldout: dict[str, list[str]]) -> None:
    """A class added by text takes the same share from each existing class."""
    features = image_set(trained.snapshot(), "test").features[:50]
    before = Model.open(trained.snapshot()).exhaustive(features).probabilities
    add_class(trained, min(heldout), heldout[min(heldout)])
    scorer = Model.open(trained.snapshot())
    after = scorer.exhaustive(features).probabilities
    assert torch.allclose(after.sum(1), torch.ones(50), atol=1e-5)
    old = after[:, scorer.trained]
    assert torch.allclose(old / old.sum(1, keepdim=True), before, atol=1e-5)


def test_a_manifest_of_many(
    trained: Workspace, heldout: dict[str, list[str]], tmp_path: Path, pictures: Path
) -> None:
    """Both forms of an entry, with images relative to the file, in one commit."""
    names = sorted(heldout)[:3]
    picture = tmp_path / "one.png"
    picture.write_bytes((pictures / "unseen" / "0.png").read_bytes())
    values = {
        names[0]: {
            "sentences": heldout[names[0]],
            "images": ["one.png", "gone.png"],
            "aliases": ["the first"],
        },
        names[1]: heldout[names[1]],
        names[2]: heldout[names[2]],
    }
    path = tmp_path / "many.json"
    path.write_text(json.dumps(values), encoding="utf-8")
    before = trained.history.last()
    report = add_classes(trained, read_manifest(path))
    after = trained.history.last()
    assert after.id == before.id + 1
    assert [a.images for a in report.classes] == [1, 0, 0]
    left_out = [note for note in report.notes if note.startswith("Left out")]
    assert left_out == [f"Left out: {tmp_path / 'gone.png'}: no such file"]
    assert trained.snapshot().class_table().lookup("the first") == report.classes[0].class_id


def test_what_an_addition_measured_is_reported(trained: Workspace, pictures: Path) -> None:
    """Accuracy on existing classes before and after, what each class takes and from which, and how certain that is.

    A refit is recommended from three added classes with images on.
    """
    files = sorted((pictures / "unseen").glob("*.png"))
    two = add_classes(trained, [NewClass(f"new {n}", images=(files[n],)) for n in range(2)])
    effect = two.effect
    assert effect.before is not None
    assert effect.after is not None
    assert 0 < effect.right_groups <= effect.groups <= effect.images
    lost = sum(number for _, number, _ in effect.takes)
    assert (lost > 0) == (effect.after < effect.before)
    for name, number, owner in effect.takes:
        images = plural(number, "held-out image")
        assert f"{name!r} takes {images} from existing classes, most from {owner!r}." in two.notes
    right = plural(effect.right_groups, "correctly classified group")
    bounded = f"Measured on {right} of images: the loss on new images is not bounded."
    assert (bounded in two.notes) == (effect.right_groups < BOUNDED)
    assert not any("not trained on" in note for note in two.notes)
    third = add_classes(trained, [NewClass("new 2", images=(files[2],))])
    refit = "The head was not trained on 3 classes that have images. To train on them: vlltr refit"
    assert refit in third.notes
    by_text = add_classes(trained, [NewClass("new 3", ("a picture of a new one.",))])
    assert "A text-only class may attract unknown images, too." in by_text.notes
    assert refit not in by_text.notes, "the class has no image"


def test_a_folder_of_class_folders(
    trained: Workspace, pictures: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """Each is a class with its pictures; a folder without any is none, and a link is not followed."""
    later = tmp_path / "later"
    for name in ("okapi", "quagga"):
        shutil.copytree(pictures / "unseen", later / name)
    (later / "empty").mkdir()
    (later / "linked").symlink_to(pictures / "unseen")
    shutil.copy(pictures / "unseen" / "0.png", later)
    report = add_classes(trained, read_manifest(later))
    assert [(one.name, one.images) for one in report.classes] == [("okapi", 4), ("quagga", 4)]
    (told,) = [note for note in report.notes if "Exact duplicates" in note]
    assert "'okapi' 4, 'quagga' 4" in told
    left_out = [message for message in caplog.messages if message.startswith("left out")]
    assert [message.split(": ")[1:] for message in left_out] == [
        [str(later / "0.png"), "an image outside every class folder"],
        [str(later / "linked"), "a link that leaves the folder"],
    ]
    with pytest.raises(InputError, match="no image in a class folder of"):
        read_manifest(pictures / "unseen")


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ('{"a": ["x"], "a": ["y"]}', "{path}: not JSON: 'a' occurs twice"),
        ("{}", "{path}: Dictionary should have at least 1 item after validation, not 0"),
        ('{"a": {"text": []}}', "{path}: 'a': 'text': Extra inputs are not permitted"),
        ('{"a": [1]}', "{path}: 'a': 0: Input should be a valid string"),
    ],
)
def test_bad_manifests(tmp_path: Path, content: str, message: str) -> None:
    """The class is named, and what was expected."""
    path = tmp_path / "m.json"
    path.write_text(content, encoding="utf-8")
    with pytest.raises(InputError) as caught:
        read_manifest(path)
    assert caught.value.message == message.format(path=path)


def test_refusals_leave_the_workspace_as_it_was(trained: Workspace, pictures: Path, tmp_path: Path) -> None:
    """A known name, an empty one, one given twice, and one of which nothing can be read are refused."""
    known, also = (trained.snapshot().class_table().names[i] for i in (0, 1))
    broken = tmp_path / "broken.png"
    broken.write_bytes(b"no image")
    picture = Path(shutil.copy(pictures / "unseen" / "0.png", tmp_path))
    before = trained.history.last()
    cases = [
        ([NewClass(known, ("x",))], f"there is a class {known!r} already"),
        ([NewClass(known.upper(), ("x",))], f"there is a class {known.upper()!r} already: {known!r}"),
        (
            [NewClass(name, ("x",)) for name in (known, "okapi", also)],
            f"of 3 classes 2 are there already: {known!r}, {also!r}",
        ),
        (
            [NewClass("okapi", images=(picture,)), NewClass("quagga", images=(picture,))],
            f"{picture} is given for two classes, 'okapi' and 'quagga'",
        ),
        ([NewClass("  ", ("x",))], "the new class: the class name is empty"),
        ([NewClass("okapi", ("x",)), NewClass("Okapi", ("y",))], "class 'Okapi' is given twice"),
        (
            [NewClass("okapi", (" ",), images=(broken,))],
            "nothing is known of class 'okapi': no sentence and no readable image"
            f"; {broken}: not a JPEG, PNG, WebP, BMP, GIF or TIFF image, or damaged",
        ),
        (
            [NewClass("okapi", ("x",), aliases=(known,))],
            f"class 'okapi': the alias {known!r} is another class's name",
        ),
        ([NewClass("okapi", ("x",), aliases=(" ",))], "an alias of 'okapi': the class name is empty"),
        (
            [NewClass("ring", ("x",), aliases=("big  ring",)), NewClass("big ring", ("y",))],
            "class 'big ring' is given twice",
        ),
    ]
    for wanted, message in cases:
        with pytest.raises(InputError) as caught:
            add_classes(trained, wanted)
        assert caught.value.message == message
        if message.startswith("there is a class"):
            assert caught.value.hint.startswith(f"Give it more: vlltr images add {shlex.quote(known)} PATH")
    assert trained.history.last() == before
    added = add_class(trained, "okapi", ["An animal."], aliases=["Okapi", "  forest\ngiraffe "])
    assert added.classes[0].name == "okapi"
    assert show_class(trained, "okapi").aliases == ["Okapi", "forest giraffe"]


@pytest.mark.slow
def test_a_folder_of_class_folders_is_not_one_class(
    trained: Workspace, pictures: Path, tmp_path: Path
) -> None:
    """Folders with names of their own may be classes; those of dates, one alone, and any that are named are not."""

    def put(folder: str, *places: str) -> Path:
        for number, place in enumerate(places):
            (tmp_path / folder / place).mkdir(parents=True, exist_ok=True)
            shutil.copy(pictures / "unseen" / f"{number}.png", tmp_path / folder / place)
        return tmp_path / folder

    for above in (".", "train"):
        many = put(f"in {above}", f"{above}/great tit", f"{above}/owl", f"{above}/owl/more")
        with pytest.raises(InputError) as caught:
            add_class(trained, "okapi", images=many)
        assert caught.value.message == (
            f"the pictures of {many} lie in 2 folders, which may be classes of their own: 'great tit', 'owl'"
        )
        add = shlex.join(["vlltr", "classes", "add", "--from", str(many / above)])
        assert caught.value.hint == (
            f"Add them: {add}. If all are 'okapi', name each of these folders in place of {many}."
        )
    with pytest.raises(InputError, match="which may be classes"):
        add_images(trained, trained.snapshot().class_table().names[0], [many])
    dates = put("dates", "2024-05", "2024-06", "2025/01")
    assert add_class(trained, "okapi", images=dates).classes[0].images == 3
    assert add_class(trained, "ibis", images=put("ibis", ".", "young")).classes[0].images == 2
    named = NewClass("tit", images=tuple((many / "train").iterdir()))
    assert add_classes(trained, [named]).classes[0].images == 3


def test_images_that_came_since_the_selection_are_counted(
    trained: Workspace, heldout: dict[str, list[str]], pictures: Path, tmp_path: Path
) -> None:
    """Stored scores of another image set are not updated but made anew: the losses are those of a new selection."""
    known = trained.snapshot().class_table().names[0]
    for number in range(4):
        target = tmp_path / "more" / known / f"{number}.png"
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_bytes((pictures / "unseen" / f"{number}.png").read_bytes())
    ingest_images(trained, tmp_path / "more", "train")
    embed(trained, views=1)
    name = max(heldout)
    write_sample(glyph_files(fast=True).images, "dev_support", name, tmp_path / "new" / "a.png")
    add_class(trained, name, heldout[name], images=tmp_path / "new")
    losses = losses_of(trained)
    select(trained, trained.recipe.select)
    again = losses_of(trained)
    assert max(abs(again[k] - losses[k]) for k in again) < 1e-3


def test_a_change_takes_the_model_of_its_own_workspace(trained: Workspace, shared: Shared) -> None:
    """A recognizer of another one, or of an export, is refused before anything is written."""
    before = trained.history.last()
    foreign = Recognizer.from_pretrained(shared.folder)
    with pytest.raises(UsageError, match="the recognizer is not of this workspace"):
        add_class(trained, "okapi", ["An animal."], options=ChangeOptions(recognizer=foreign))
    assert trained.history.last() == before
