"""The report: its numbers are evaluate's, what is not there names its command, and what users wrote stays text."""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path

import pytest
import torch

from tests.support.commands import run
from tests.support.pages import Page
from tests.support.reports import spoil
from vlltr_index.errors import InputError, MissingStepError, UsageError
from vlltr_index.evaluation.records import (
    Anchor,
    AnchorList,
    ClassAnchors,
    Curves,
    Measured,
    Missing,
    Problem,
    Quarantine,
    Report,
)
from vlltr_index.evaluation.report import render
from vlltr_index.pipelines.embed import embed
from vlltr_index.pipelines.evaluate import evaluate
from vlltr_index.pipelines.ingest import ingest_images
from vlltr_index.pipelines.report import gather_report, write_report
from vlltr_index.store.workspace import Workspace

POLICY = "default-src 'none'; img-src data:; style-src 'unsafe-inline'"


@pytest.fixture(scope="module")
def full(trained_once: Path, tmp_path_factory: pytest.TempPathFactory) -> Workspace:
    """A workspace with a baseline and a class that means harm."""
    folder = tmp_path_factory.mktemp("report")
    return spoil(Workspace.open(shutil.copytree(trained_once, folder / "workspace")), folder)


@pytest.mark.slow
def test_the_report_says_what_evaluate_says(full: Workspace, tmp_path: Path) -> None:
    """Every row and every interval, and the classes behind them."""
    done = write_report(full, tmp_path / "report.html")
    said = evaluate(full)
    assert done.evaluation == said
    assert done.missing == ()
    html = (tmp_path / "report.html").read_text(encoding="utf-8")
    assert done.bytes == len(html.encode()) < 4 * 2**20
    text = Page(html).text
    for name, row in said.rows.items():
        shown = [*row.top1.values(), row.balanced]
        cells = [
            f"{i.count} of {i.images}"
            if i.few
            else f"{100 * i.value:.1f} ({100 * i.low:.1f}–{100 * i.high:.1f})"
            for i in shown
        ]
        assert " ".join([name, *cells]) in text
    for shot, gain in said.differences.items():
        points = f"{round(100 * gain.value, 1) + 0.0:+.1f}"
        told = f"{gain.count:+d} of {gain.images}" if gain.few else points
        assert f"{told} against {said.against}" in text, shot
    of = said.rows["vl-ltr"].balanced
    ends = f"95 %: {100 * of.low:.1f} to {100 * of.high:.1f}"
    first = f"each class alike {100 * of.value:.1f} % right, of {of.images} pictures {ends}"
    assert text.index(first) < text.index("each picture alike "), "what is measured by comes first"
    assert "ECE, in points, each class counted alike" in text
    for fact in ("glyphs_lt/fast", "ours", "the release's bounds", f"torch {torch.__version__}", "sentences"):
        assert fact in text
    assert f"{said.commit} (train baseline fc)" in text
    write_report(full, tmp_path / "again.html")  # no time and no chance is in it
    assert (tmp_path / "again.html").read_text(encoding="utf-8") == html


@pytest.mark.slow
def test_its_figures_agree_with_each_other(full: Workspace) -> None:
    """Gains over groups add up to the whole gain; a confusion's images and answers are what it says."""
    report = gather_report(full, full.history.ids()[-1])
    found = report.measured
    assert isinstance(found, Measured)
    gains = found.gains
    assert not isinstance(gains, Missing)
    groups = gains.groups
    total = sum(g.gain.value * g.gain.images for g in groups) / found.evaluation.images
    assert total == pytest.approx(found.evaluation.differences["overall"].value)
    assert sum(g.classes for g in groups) == 61
    assert found.weakest
    worst = [c.right / c.images for c in found.weakest]
    assert worst == sorted(worst)
    assert found.gallery
    for heading, items in found.gallery:
        assert items
        assert all((item.right is not None) == (heading == "Wrong") for item in items)
    assert found.confusions
    counts = [c.wrong for c in found.confusions]
    assert counts == sorted(counts, reverse=True)
    for one in found.confusions:
        assert one.example.best.name == one.taken_for != one.truth
        assert one.example.right is not None
        assert one.example.right.name == one.truth
        assert len(one.others) == min(one.wrong - 1, 11)
        assert all("/" in file and picture.uri for file, picture in one.others)
    classes = found.evaluation.by_class
    assert len(classes) == 61
    assert (
        sum(one.images for one in classes) == found.evaluation.images == sum(one.answered for one in classes)
    )
    right = sum(one.right for one in classes) / found.evaluation.images
    assert right == pytest.approx(found.evaluation.rows["vl-ltr"].top1["overall"].value)
    assert sum(one.right_by_text for one in classes) / found.evaluation.images == pytest.approx(
        found.evaluation.rows["text branch"].top1["overall"].value
    )
    assert found.evaluation.chance("training") == max(one.images for one in classes) / found.evaluation.images
    assert found.evaluation.chance("balanced") == 1 / found.evaluation.tested
    assert [one.train for one in found.classes] == sorted(one.train for one in classes)


@pytest.mark.slow
def test_nothing_is_fetched_and_nothing_is_run(full: Workspace, tmp_path: Path) -> None:
    """One strict policy, no script, no frame, no address; markup from users is text, in SVG too."""
    write_report(full, tmp_path / "report.html")
    html = (tmp_path / "report.html").read_text(encoding="utf-8")
    page = Page(html)
    tags = {tag for tag, _ in page.elements}
    assert not tags & {"script", "link", "iframe", "object", "embed", "form", "base", "b\u202e", "i"}
    policies = [a["content"] for t, a in page.elements if t == "meta" and a.get("http-equiv")]
    assert policies == [POLICY]
    for tag, attributes in page.elements:
        assert not {name for name in attributes if name.startswith("on")}, tag
        for name in ("src", "href"):
            value = attributes.get(name)
            assert value is None or value.startswith(("data:image/", "#")), value
    assert "url(" not in html
    assert "@import" not in html
    assert "{{" in page.text  # the sentence's own braces, as they were
    assert "window.harmed" in page.text
    titles = re.findall(r"<title>([^<]*)</title>", html)
    assert any("&lt;script&gt;" in t for t in titles)
    assert "&lt;i&gt;broken.png" in html


def test_what_cannot_be_seen_in_a_name_is_escaped() -> None:
    """Line feeds, escapes, direction marks and characters without ink, wherever the report shows a name."""
    evil = "owl\n\x1b[31m\u202egnp\u200b"
    missing = Missing(evil, f"Run: vlltr {evil}")
    html = render(
        Report(
            title=evil,
            split="test",
            facts=((evil, evil),),
            notes=(evil,),
            measured=missing,
            curves=(missing,),
            anchors=AnchorList(((evil, (ClassAnchors(evil, 1, (Anchor(evil, evil, 0.5),), 0),)),), 1, 1, 1),
            quarantine=Quarantine(1, ((evil, 1),), (Problem(evil, "train", evil),)),
        )
    )
    assert html.count("owl\\u000a\\u001b[31m\\u202egnp\\u200b") >= 12
    assert not re.search("owl\n|[\x1b\u202e\u200b]", html)


def test_parts_that_are_not_there_name_their_command(trained: Workspace, tmp_path: Path) -> None:
    """No baseline, no split, no log, no val: the rest is written, and says what brings them."""
    done = write_report(trained, tmp_path / "report.html")
    baseline = Missing("there is no baseline to compare with", "Run: vlltr train baseline fc")
    assert done.missing == (baseline,)
    assert done.evaluation is not None
    assert done.evaluation.against is None
    page = Page((tmp_path / "report.html").read_text(encoding="utf-8"))
    assert "There is no baseline to compare with. Run: vlltr train baseline fc" in page.text
    done = write_report(trained, tmp_path / "other.html", split="other")
    lacking = Missing("there are no images in split 'other'", "Run: vlltr ingest images PATH --split other")
    assert done.missing == (lacking,)
    assert done.evaluation is None
    text = Page((tmp_path / "other.html").read_text(encoding="utf-8")).text
    assert text.count("There are no images in split 'other'. Run: vlltr ingest images PATH --split other") > 3
    assert "Stage 2 (LGR)" in text


def test_few_pictures_have_no_calibration_error(trained: Workspace, pictures: Path, tmp_path: Path) -> None:
    """Below thirty units there are counts, and no figure in points."""
    folder = tmp_path / "few" / trained.snapshot().class_table().names[0]
    shutil.copytree(pictures / "unseen", folder)
    ingest_images(trained, tmp_path / "few", "few")
    embed(trained)
    done = write_report(trained, tmp_path / "report.html", split="few")
    assert done.evaluation is not None
    assert done.evaluation.calibration_error == {}
    text = Page((tmp_path / "report.html").read_text(encoding="utf-8")).text
    assert " of 4" in text
    assert "ECE, in points" not in text


@pytest.mark.slow
def test_a_head_without_a_log(trained: Workspace) -> None:
    """A damaged one, an imported one, one whose files are gone."""
    commit = trained.history.last()
    log = trained.objects.path("heads", str(commit.head)) / "train.json"
    drawn = gather_report(trained, commit.id).curves[1]
    assert isinstance(drawn, Curves)
    assert list(drawn.values) == ["total", "text", "visual"]
    log.write_text('{"log": [{"loss": "much"}]}', encoding="utf-8")
    damaged = Missing("Stage 2 (LGR): its log cannot be read", "Train it again: vlltr train lgr")
    assert damaged in gather_report(trained, commit.id).curves
    log.unlink()
    assert [curves.title for curves in gather_report(trained, commit.id).curves] == ["Stage 1 (CVLP)"]
    shutil.rmtree(log.parent)
    report = gather_report(trained, commit.id)
    assert Missing("Stage 2 (LGR): its files are gone", "Run: vlltr train lgr") in report.curves
    assert isinstance(report.measured, Missing)
    assert report.measured.mend == "Make it again: vlltr train lgr"
    assert "Make it again: vlltr train lgr" in Page(render(report)).text


def test_a_workspace_at_its_beginning(workspace: Workspace, pictures: Path, tmp_path: Path) -> None:
    """Nothing committed is refused; images alone already have a report."""
    with pytest.raises(MissingStepError) as caught:
        write_report(workspace)
    assert caught.value.message == "nothing has been committed yet: there is nothing to report on"
    assert caught.value.hint == "Run: vlltr ingest images PATH --split train"
    folder = shutil.copytree(pictures, tmp_path / "pictures")
    (folder / "unseen" / "cut.png").write_bytes((folder / "unseen" / "0.png").read_bytes()[:60])
    ingest_images(workspace, folder, "train", create_classes=True)
    done = write_report(workspace)
    assert Path(done.path) == workspace.path / "reports" / "report-cross-validation-1.html"
    assert [m.mend for m in done.missing] == ["Run: vlltr select", "Run: vlltr select"]
    text = Page(Path(done.path).read_text(encoding="utf-8")).text
    assert "1 image takes no part." in text
    assert "unseen/cut.png train truncated or corrupt" in text
    assert "There is no split val" in text


def test_files_that_cannot_be_written(trained: Workspace, tmp_path: Path) -> None:
    """Refused before anything is measured; what was there stays."""
    (tmp_path / "taken.html").mkdir()
    for name, kind, words in (
        ("report.pdf", UsageError, "the report is an HTML file; 'report.pdf' ends otherwise"),
        ("nowhere/report.html", InputError, "no such folder: "),
        ("taken.html", InputError, r"cannot write .*taken.html: Is a directory"),
    ):
        with pytest.raises(kind, match=words):
            write_report(trained, tmp_path / name)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["taken.html", "trained"]


@pytest.mark.slow
def test_the_command(trained: Workspace, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Path and figures on stdout, under --json too; an unknown row is a usage error that names those there are."""
    target = tmp_path / "report.html"
    code, out, _ = run(capsys, "-w", trained.path, "--json", "report", "--out", target)
    said = json.loads(out)
    assert (code, said["path"], said["bytes"]) == (0, str(target), target.stat().st_size)
    found = said["evaluation"]["rows"]["vl-ltr"]["top1"]["overall"]["value"]
    assert found == evaluate(trained).rows["vl-ltr"].top1["overall"].value
    code, out, _ = run(capsys, "-w", trained.path, "report", "--out", target, "--against", "text branch")
    assert code == 0
    assert out.startswith("Top-1 on test: 360 images, 60 classes")
    assert out.endswith(f"Wrote {target} ({target.stat().st_size / 2**20:.1f} MiB).\n")
    assert "vl-ltr less text branch" in target.read_text(encoding="utf-8")
    code, _, err = run(capsys, "-w", trained.path, "report", "--against", "ncm")
    assert code == 2
    assert "no row 'ncm' to compare with\nThere are: image branch, text branch." in err
