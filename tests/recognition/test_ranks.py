"""Answers above the classes: by the command, from Python, in files, exported, and in an evaluation."""

from __future__ import annotations

import csv
import json
import shutil
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from tests.support.commands import run
from tests.support.exports import edit_rows, edit_tensors
from tests.support.rounding import PROBABILITY
from vlltr_index.errors import MissingStepError, PretrainedError, UnknownClassError, UsageError
from vlltr_index.heads.checkpoint import load_head, save_head
from vlltr_index.heads.tree import HeldOutAnswers
from vlltr_index.pipelines.evaluate import evaluate
from vlltr_index.pipelines.predict import predict_to_file
from vlltr_index.pipelines.report import write_report
from vlltr_index.pipelines.taxonomy import ingest_classes
from vlltr_index.recognition.answering import predict
from vlltr_index.recognition.exported.writing import export_tables
from vlltr_index.recognizer import Recognizer
from vlltr_index.schemas.options import PredictOptions
from vlltr_index.schemas.records import Prediction
from vlltr_index.store.workspace import Workspace


@pytest.fixture(scope="module")
def tree(trained_once: Path, tmp_path_factory: pytest.TempPathFactory) -> Workspace:
    """The trained workspace with halves of its classes below "first" and "second", of rank half; one is without."""
    folder = tmp_path_factory.mktemp("ranks")
    workspace = Workspace.open(shutil.copytree(trained_once, folder / "workspace"))
    table = workspace.snapshot().class_table()
    halves = ["first" if n % 2 else "second" for n in range(len(table))]
    lines = [f'"{table.names[i]}",{half},' for i, half in zip(table.ids[1:], halves, strict=False)]
    text = "\n".join(["name,parent,rank", *lines, "first,,half", "second,,half"])
    (folder / "tree.csv").write_text(text, encoding="utf-8")
    ingest_classes(workspace, folder / "tree.csv")
    return workspace


def surely(workspace: Workspace, images: int = 400) -> Recognizer:
    """Its recognizer, as if it had been right and four fifths sure of every held-out image: of the class in one run
    through the classes, of its half alone in the next.
    """
    recognizer = Recognizer.open(workspace, reload=False)
    answers = recognizer.current()
    saved = answers.saved
    assert saved.parts is not None
    classes, every = len(saved.class_ids), torch.arange(images)
    labels, of_half = every % classes, (every // classes % 2).bool()
    chances = torch.full((images, classes), 0.2 / (classes - 1))
    same = labels[:, None] % 2 == torch.arange(classes) % 2
    chances[of_half] = torch.where(same, 0.4 / (same.sum(1, True) - 1), 0.2 / (~same).sum(1, True))[of_half]
    chances[every, labels] = torch.where(of_half, 0.4, 0.8)
    parts = replace(saved.parts, held_out=HeldOutAnswers(labels, chances.half()))
    return Recognizer(None, answers.with_known(saved=replace(saved, parts=parts)), follow=False)


def known(pictures: Path) -> list[Path]:
    """Pictures of classes in the workspace."""
    return sorted(pictures.glob("known-*.png"))


def test_a_head_keeps_what_it_answered_to_held_out_images(tree: Workspace, tmp_path: Path) -> None:
    """Labels and probabilities in the order of the visual rows, and the same when it is saved again."""
    saved = Recognizer.open(tree).current().saved
    assert saved.parts is not None
    held = saved.parts.held_out
    assert held is not None
    assert held.probabilities.shape == (len(held.labels), len(saved.class_ids))
    assert held.probabilities.dtype == torch.float16
    assert held.probabilities.float().sum(1).tolist() == pytest.approx([1.0] * len(held.labels), abs=5e-3)
    save_head(saved, tmp_path)
    again = load_head(tmp_path).parts
    assert again is not None
    assert again.held_out is not None
    assert torch.equal(again.held_out.probabilities, held.probabilities)


def test_predictions_name_what_the_best_class_lies_below(tree: Workspace, pictures: Path) -> None:
    """Probabilities of ranks are sums over classes; without a tree there are none."""
    recognizer = Recognizer.open(tree)
    halves = {name: taxon.parent for name, taxon in recognizer.current().taxonomy.items()}
    for one in recognizer.predict(known(pictures), PredictOptions(top=999, retrieval="exhaustive")):
        best = one.classes[0]
        assert one.answer is None
        assert one.ranks[-1].node == best.name
        assert one.ranks[-1].probability == pytest.approx(best.probability, abs=PROBABILITY)
        if halves.get(best.name) is not None:
            assert [(r.node, r.rank) for r in one.ranks[:-1]] == [(halves[best.name], "half")]
            below = [c.probability for c in one.classes if halves.get(c.name) == one.ranks[0].node]
            assert one.ranks[0].probability == pytest.approx(sum(below), abs=PROBABILITY)
    assert all(
        p.ranks == () for p in Recognizer.open(tree, at=1 + tree.history.ids()[-3]).predict(known(pictures))
    )


def test_answers_come_at_the_rank_that_held(tree: Workspace, pictures: Path) -> None:
    """A class where it is sure enough, else its half with sentences of the classes in it, else nothing."""
    recognizer = surely(tree)
    shown = tree.snapshot().table("images", ["data"], "split = 'test'")["data"].to_pylist()[:100]
    found = recognizer.predict(shown, PredictOptions(explain=2, min_accuracy=0.9))
    assert {one.answer.rank for one in found if one.answer is not None} == {"class", "half"}
    for one in found:
        best = one.classes[0]
        if best.probability >= 0.8:
            assert one.answer is not None
            assert (one.answer.node, one.answer.rank) == (best.name, "class")
            assert best.sentences
            assert [s.text for s in one.answer.sentences] == [s.text for s in best.sentences]
        elif one.answer is not None:
            assert one.answer.rank == "half"
            assert one.answer.probability > 0.5
            groups = {share.group for share in one.answer.sentences}
            assert groups == set(range(len(groups)))
            assert 1 <= len(groups) <= 2
            assert sum(share.percent for share in one.answer.sentences) <= 100.0
    few = surely(tree, images=20).predict(known(pictures)[:1], PredictOptions(min_accuracy=0.9))
    assert few[0].answer is None


def test_trees_of_many_questions_are_not_all_kept(tree: Workspace, pictures: Path) -> None:
    """However many sets of classes are asked about; the answers stay."""
    answers = Recognizer.open(tree).current()
    first, *others = sorted(answers.names.values())[:12]

    def ask(name: str) -> list[Prediction]:
        return predict(answers, known(pictures)[:1], PredictOptions(only=[name]))

    before = ask(first)
    for name in others:
        ask(name)
    assert len(answers._kept_ranks) <= 8
    assert ask(first) == before


def test_a_head_that_cannot_say(tree: Workspace, trained_once: Path, pictures: Path) -> None:
    """No tree, no such parent, no share, no held-out images: what is missing is named."""
    images, recognizer = known(pictures)[:1], Recognizer.open(tree)
    without = Recognizer.open(trained_once)
    for options in (PredictOptions(min_accuracy=0.9), PredictOptions(parent="first")):
        with pytest.raises(MissingStepError, match="no class has a parent"):
            without.predict(images, options)
    with pytest.raises(UnknownClassError, match="no class 'frist'\nDid you mean 'first'"):
        recognizer.predict(images, PredictOptions(parent="frist"))
    with pytest.raises(UsageError, match="the least accuracy lies between 0 and 1, got 1\n"):
        recognizer.predict(images, PredictOptions(min_accuracy=1.0))
    with pytest.raises(UsageError, match=r"an answer among some classes \(only, parent\) with reject"):
        recognizer.predict(images, PredictOptions(parent="first", reject=True))
    answers = recognizer.current()
    saved = answers.saved
    assert saved.parts is not None
    without_images = answers.with_known(saved=replace(saved, parts=replace(saved.parts, held_out=None)))
    few = "this head cannot say which rank held: fewer than 20 groups of images were held out"
    with pytest.raises(MissingStepError, match=few):
        predict(without_images, images, PredictOptions(min_accuracy=0.9))


def test_the_command(
    tree: Workspace, pictures: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """`--parent` answers among the classes below; `--min-accuracy` for people, as JSON and in a file."""
    image, workspace = known(pictures)[0], ("-w", tree.path)
    code, out, _ = run(capsys, "--json", *workspace, "predict", image, "--parent", "first")
    below = json.loads(out)[0]
    assert code == 0
    assert {r["node"] for r in below["ranks"]} == {"first", below["classes"][0]["name"]}
    code, out, err = run(capsys, *workspace, "predict", image, "--min-accuracy", "0.999")
    assert code == 0
    assert "no answer at any rank (closest: " in out
    assert "ranks that held 99.9 % on them: none (it takes 2995 at least)" in err
    code, out, _ = run(capsys, *workspace, "predict", image, "--min-accuracy", "0.05")
    assert " (class)   (closest: " in out
    target = tmp_path / "answers.csv"
    predict_to_file(
        surely(tree).current(), [str(pictures)], target, PredictOptions(top=1, explain=1, min_accuracy=0.9)
    )
    rows = list(csv.DictReader(target.read_text(encoding="utf-8").splitlines()))
    assert list(rows[0])[:5] == ["image", "answer", "answer_rank", "answer_probability", "class_1"]
    assert "class" in {row["answer_rank"] for row in rows} <= {"class", "half", ""}


@pytest.mark.slow
def test_an_evaluation_by_rank(
    tree: Workspace, trained_once: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """The class row is the method's own; halves are right at least as often; report and command show both."""
    found = evaluate(tree)
    assert list(found.ranks) == ["class", "half"]
    for how in ("best class", "summed"):
        assert found.ranks["class"][how]["overall"].value == found.rows["vl-ltr"].top1["overall"].value
        assert found.ranks["half"][how]["overall"].value >= found.ranks["class"][how]["overall"].value - 0.05
    assert evaluate(Workspace.open(trained_once)).ranks == {}
    code, out, _ = run(capsys, "-w", tree.path, "evaluate")
    assert code == 0
    assert " half   summed " in out
    write_report(tree, tmp_path / "report.html")
    assert "<h3>By rank</h3>" in (tmp_path / "report.html").read_text(encoding="utf-8")


def test_an_exported_folder_answers_with_ranks(tree: Workspace, pictures: Path, tmp_path: Path) -> None:
    """The same ranks and answers; the tables have the tree."""
    recognizer = Recognizer.open(tree)
    recognizer.export(tmp_path / "model")
    asked = (
        PredictOptions(),
        PredictOptions(min_accuracy=0.05, explain=1),
        PredictOptions(parent="second"),
    )
    for options in asked:
        one, other = (
            r.predict(known(pictures)[:2], options)
            for r in (recognizer, Recognizer.from_pretrained(tmp_path / "model"))
        )
        for mine, theirs in zip(one, other, strict=True):
            assert [r.node for r in mine.ranks] == [r.node for r in theirs.ranks]
            chances = [r.probability for r in mine.ranks]
            assert [r.probability for r in theirs.ranks] == pytest.approx(chances, abs=PROBABILITY)
            assert (mine.answer and mine.answer.node) == (theirs.answer and theirs.answer.node)
    export_tables(tree, tmp_path / "tables")
    report = ingest_classes(tree, tmp_path / "tables" / "taxonomy.parquet")
    assert report.changed == 0


def test_damaged_trees_and_answers(tree: Workspace, tmp_path: Path) -> None:
    """A circle in an exported tree, and held-out answers of no class or more than certain, are refused."""
    folder, head = tmp_path / "model", "head/head.safetensors"
    Recognizer.open(tree).export(folder)
    edit_rows(folder, "parts/taxonomy.arrow", lambda rows: rows[0].update(parent=rows[0]["name"]))
    with pytest.raises(PretrainedError, match=r"taxonomy\.arrow cannot be used: '.*' would lie below itself"):
        Recognizer.from_pretrained(folder)
    edit_tensors(folder, head, lambda t: t["held_out.probabilities"].fill_(2))
    with pytest.raises(PretrainedError, match=r"held_out\.probabilities must lie between 0 and 1"):
        Recognizer.from_pretrained(folder)
    edit_tensors(folder, head, lambda t: t["held_out.labels"].fill_(-1))
    with pytest.raises(PretrainedError, match=r"held_out\.labels must be integers from 0 to "):
        Recognizer.from_pretrained(folder)
