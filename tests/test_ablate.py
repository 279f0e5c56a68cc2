"""`vlltr ablate`: its rows over a small data set, what they share, going on after a stop, rows that lack weights."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import drawings
import pytest
from click.testing import CliRunner, Result

from vlltr_index.ablation import ROWS, RowSummary, markdown, parse_numbers, recipe_of, summarise
from vlltr_index.cli.main import main
from vlltr_index.errors import ConfigError, MissingStepError, UsageError
from vlltr_index.recipe import override
from vlltr_index.schemas.config import EncoderConfig, Recipe
from vlltr_index.stages import ablate as stage
from vlltr_index.stages.ablate import AblationReport, ablate, dataset_hash
from vlltr_index.stages.ingest import ingest_images, ingest_text
from vlltr_index.workspace import Workspace

VALUES = (
    *("cvlp.epochs=1", "cvlp.batch_size=16", "cvlp.lr=2e-3", "cvlp.joint_weight=1.0", "cvlp.workers=0"),
    *(
        "cvlp.augment.kind=glyph",
        "lgr.augment.kind=glyph",
        "lgr.views=2",
        "lgr.epochs=2",
        "lgr.batch_size=16",
    ),
    *("select.max_anchors=2", "baselines.lrs=[1e-2]", "baselines.neighbours=[1, 3]", "prompts=[]"),
)


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A workspace with images of eight classes in `train` and `test`, their sentences, and weights in a file."""
    folder = tmp_path_factory.mktemp("ablate")
    for split, seed in (("train", 0), ("test", 1)):
        seen = dict.fromkeys(drawings.WORDS, 0)
        for label, image in zip(drawings.labels().tolist(), drawings.pixels(seed), strict=True):
            word = drawings.WORDS[label]
            seen[word] += 1
            place = folder / split / word / f"{seen[word]}.png"
            place.parent.mkdir(parents=True, exist_ok=True)
            place.write_bytes(drawings.png(image[0]))
    texts = folder / "texts.json"
    texts.write_text(json.dumps(dict(zip(drawings.WORDS, drawings.texts(), strict=True))), encoding="utf-8")
    drawings.encoder(5).save(folder / "weights")
    weights = EncoderConfig(model="vlltr-tiny", pretrained=str(folder / "weights"))
    workspace = Workspace.create(folder / "w", override(Recipe(name="small", encoder=weights), VALUES))
    ingest_text(workspace, texts)
    for split in ("train", "test"):
        ingest_images(workspace, folder / split, split)
    return workspace.path


@pytest.fixture
def workspace(made: Path, tmp_path: Path) -> Workspace:
    """A copy that a test may change."""
    return Workspace.open(shutil.copytree(made, tmp_path / "w"))


@pytest.fixture
def runs(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Which encoder each run of stage 1 started from."""
    seen: list[str] = []
    real = stage.train_cvlp_stage

    def spy(workspace: Workspace, *args: Any, **options: Any) -> Any:
        seen.append("weights" if workspace.recipe.encoder.pretrained else "scratch")
        return real(workspace, *args, **options)

    monkeypatch.setattr(stage, "train_cvlp_stage", spy)
    return seen


def test_seven_rows_share_three_runs_of_stage_1(workspace: Workspace, runs: list[str]) -> None:
    """All rows get figures; 1, 5, 6 and 7 share a stage 1, row 2 has none; again, nothing is trained."""
    before = workspace.history.last()
    report = ablate(workspace, workspace.recipe, seeds=(0,))
    assert (report.trained, report.found) == (7, 0)
    assert runs == ["weights", "scratch", "weights"]
    assert [r.row for r in report.rows] == [1, 2, 3, 4, 5, 6, 7]
    assert all(0 <= r.mean["overall"] <= 1 and r.reason is None for r in report.rows)
    assert workspace.history.last() == before
    again = ablate(workspace, workspace.recipe, seeds=(0,))
    assert (again.trained, again.found, len(runs)) == (0, 7, 3)
    assert again.rows == report.rows
    texts = {r: json.loads((workspace.path / f"reports/ablate/{r}-0.json").read_text()) for r in (1, 3, 7)}
    assert texts[1]["recipe"]["cvlp"]["distillation"] == "full"
    assert texts[3]["recipe"]["encoder"]["pretrained"] is None
    assert texts[7]["recipe"]["select"]["mode"] == "cutoff"
    assert texts[1]["seconds"]["stage 1"] == texts[7]["seconds"]["stage 1"]
    assert texts[1]["dataset"] == report.dataset == dataset_hash(workspace.snapshot())
    assert {"machine", "versions", "protocol", "seed", "top1", "settings"} <= texts[1].keys()
    assert texts[1]["top1"]["overall"]["images"] == 56


def test_a_stopped_run_goes_on(
    workspace: Workspace, runs: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Stopped in row 7's head, the cells before stand, and neither they nor stage 1 are run again."""
    real = stage.train_all

    def stops(workspace: Workspace, recipe: Recipe, *args: Any, **options: Any) -> Any:
        if recipe.select.mode == "cutoff":
            raise KeyboardInterrupt
        return real(workspace, recipe, *args, **options)

    monkeypatch.setattr(stage, "train_all", stops)
    with pytest.raises(KeyboardInterrupt):
        ablate(workspace, workspace.recipe, (1, 6, 7), (3,))
    assert sorted(p.name for p in (workspace.path / "reports/ablate").iterdir()) == ["1-3.json", "6-3.json"]
    monkeypatch.setattr(stage, "train_all", real)
    report = ablate(workspace, workspace.recipe, (1, 6, 7), (3,))
    assert (report.trained, report.found, runs) == (1, 2, ["weights"])


def test_other_settings_are_run_again(workspace: Workspace, runs: list[str]) -> None:
    """A change of stage 2 keeps stage 1; a damaged report, other data and another seed do not count as done."""
    ablate(workspace, workspace.recipe, (6,), (0,))
    other = override(workspace.recipe, ("fusion.alpha=0.1",))
    assert ablate(workspace, other, (6,), (0,)).trained == 1
    assert len(runs) == 1
    (workspace.path / "reports/ablate/6-0.json").write_text("{")
    assert ablate(workspace, other, (6,), (0,)).trained == 1
    assert len(runs) == 1
    assert ablate(workspace, other, (6,), (0, 1)).trained == 1
    assert len(runs) == 2


def test_the_order_of_cells_does_not_matter(workspace: Workspace, made: Path, tmp_path: Path) -> None:
    """Row 1 gives the same figures before and after the rows it shares a stage 1 with."""
    other = Workspace.open(shutil.copytree(made, tmp_path / "other"))
    first = ablate(workspace, workspace.recipe, (1, 7), (0,)).rows
    second = [ablate(other, other.recipe, (row,), (0,)).rows[0] for row in (7, 1)]
    assert first == second[::-1]


def test_rows_without_weights_say_why(workspace: Workspace) -> None:
    """Without pretrained weights only row 3 is run; with weights that cannot be had the reason is theirs."""
    plain = override(workspace.recipe, ("encoder.pretrained=none",))
    report = ablate(workspace, plain, (1, 3), (0,))
    assert report.rows[0].reason == "the recipe small names no pretrained weights (encoder.pretrained)"
    assert report.rows[1].reason is None
    assert report.trained == 1
    gone = override(workspace.recipe, ("encoder.pretrained='/no/where.pt'",))
    assert ablate(workspace, gone, (2,), (0,)).rows[0].reason == "no such file: /no/where.pt"


def test_missing_splits(workspace: Workspace) -> None:
    """The error names the split and the command that fills it, before anything is trained."""
    with pytest.raises(MissingStepError, match="there are no images in split 'val'") as error:
        ablate(workspace, workspace.recipe, (1,), (0,), split="val")
    assert error.value.hint == "Run: vlltr ingest images PATH --split val"
    assert not (workspace.path / "runs" / "ablate").exists()


@pytest.mark.parametrize(
    ("text", "numbers"), [("1-7", (1, 2, 3, 4, 5, 6, 7)), ("5, 1-2,2", (1, 2, 5)), ("3", (3,))]
)
def test_numbers(text: str, numbers: tuple[int, ...]) -> None:
    """Ranges and single numbers, ascending and each once."""
    assert parse_numbers(text, "--rows", range(1, 8)) == numbers


@pytest.mark.parametrize("text", ["", "x", "3-1", "1,,2", "-1", "1-99999999", "٣"])
def test_what_is_no_number(text: str) -> None:
    """Anything else is refused with an example."""
    with pytest.raises(UsageError) as error:
        parse_numbers(text, "--seeds")
    assert error.value.message == f"--seeds takes numbers such as 0,1,2, got {text!r}"


def test_rows_change_only_what_they_are_about() -> None:
    """Each row's recipe differs from the recipe in the values that it names, and in the seeds."""
    recipe = override(
        Recipe(name="r", encoder=EncoderConfig(pretrained="openai")),
        ("cvlp.distillation=paired", "cvlp.distillation_weight=0.3", "cvlp.ccl_weight=0.7"),
    )
    changed = {}
    for number, row in ROWS.items():
        mine = _flat(recipe_of(row, recipe, 4).model_dump())
        changed[number] = {k: v for k, v in mine.items() if v != _flat(recipe.model_dump())[k]}
        assert changed[number].pop("cvlp.seed") == changed[number].pop("lgr.seed") == 4
    none = {"cvlp.distillation": "none", "cvlp.distillation_weight": 0.0}
    assert changed[1] == changed[5] == changed[6] == {}
    assert changed[2] == changed[4] == none
    assert changed[3] == {**none, "encoder.pretrained": None}
    assert changed[7] == {"select.mode": "cutoff"}
    bare = recipe_of(ROWS[1], Recipe(name="bare"), 0).cvlp
    assert (bare.distillation, bare.distillation_weight) == ("full", bare.ccl_weight)


def _flat(values: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for key, value in values.items():
        flat |= _flat(value, f"{prefix}{key}.") if isinstance(value, dict) else {prefix + key: value}
    return flat


def result(row: int, seed: int, **top1: float) -> dict[str, Any]:
    """What a cell's file holds, as far as the table reads it."""
    return {"row": row, "seed": seed, "top1": {b: {"value": v} for b, v in top1.items()}}


def test_the_table() -> None:
    """Mean and standard deviation in per cent; n/a with the reason below; a dash where a bin has no images."""
    results = [
        result(1, 0, overall=0.5, many=0.7),
        result(1, 1, overall=0.6, many=0.7),
        result(3, 0, overall=0.25),
    ]
    summaries = summarise((1, 2, 3), results, {2: "no weights"})
    assert summaries[0].seeds == (0, 1)
    assert markdown(summaries) == (
        "|  | weights | CVLP | head | sentences | overall | many |\n"
        "| --- | --- | --- | --- | --- | --- | --- |\n"
        "| 1 | yes | with distillation | LGR | AnSS | 55.0 ± 7.1 | 70.0 ± 0.0 |\n"
        "| 2 | yes | none | LGR | AnSS | n/a | n/a |\n"
        "| 3 | no | without distillation | LGR | AnSS | 25.0 | - |\n"
        "\nRow 2: n/a, no weights\n"
    )


@pytest.fixture
def vlltr(workspace: Workspace, monkeypatch: pytest.MonkeyPatch) -> Callable[..., Result]:
    """Run the program in the workspace, its trainings replaced by ready figures."""

    def ready(
        workspace: Workspace, recipe: Recipe, rows: Any, seeds: Any, split: str, progress: Any
    ) -> AblationReport:
        summaries = [
            RowSummary(r, ROWS[r].cells, tuple(seeds), {"overall": r / 10}, {"overall": 0.01})
            for r in rows[:-1]
        ]
        last = RowSummary(rows[-1], ROWS[rows[-1]].cells, (), reason="no weights")
        return AblationReport(
            "d", recipe.name, recipe.protocol, split, "release", [*summaries, last], [], 1, 0
        )

    monkeypatch.setattr(stage, "ablate", ready)

    def call(*args: str) -> Result:
        from vlltr_index.cli.main import vlltr as group

        return CliRunner().invoke(group, ["-w", str(workspace.path), *args])

    return call


def test_the_command_shows_the_table(vlltr: Callable[..., Result]) -> None:
    """Plain, Markdown and JSON; the recipe and single values can be changed."""
    plain = vlltr("ablate", "--rows", "1,2", "--seeds", "0-1")
    assert plain.exit_code == 0, plain.output
    assert "10.0 ± 1.0" in plain.stdout
    assert "Row 2: n/a, no weights" in plain.stdout
    assert vlltr("ablate", "--rows", "1,2", "--markdown").stdout.startswith("|  | weights |")
    value = json.loads(vlltr("--json", "ablate", "--rows", "1,2", "--recipe", "glyphs_lt/ours").stdout)
    assert value["recipe"] == "glyphs_lt/ours"
    assert value["rows"][1]["reason"] == "no weights"


def test_wrong_options(
    workspace: Workspace, vlltr: Callable[..., Result], capsys: pytest.CaptureFixture[str]
) -> None:
    """Rows that there are not, and settings that do not fit, are said in one line each."""
    with pytest.raises(SystemExit) as stop:
        main(["-w", str(workspace.path), "ablate", "--rows", "0-8"])
    assert stop.value.code == UsageError.exit_code
    assert capsys.readouterr().err == "Error: --rows: there is no row 0\nThe rows are 1 to 7: --rows 1-7\n"
    assert isinstance(vlltr("ablate", "--set", "cvlp.epochs=0").exception, ConfigError)
