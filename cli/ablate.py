"""`vlltr ablate`."""

from __future__ import annotations

from dataclasses import asdict
from typing import TYPE_CHECKING

import click

from vlltr_index.cli.context import Context, pass_context

if TYPE_CHECKING:
    from rich.table import Table

    from vlltr_index.stages.ablate import AblationReport


@click.command("ablate")
@click.option("--rows", default="1-7", show_default=True, help="Which rows, such as 1,5-7.")
@click.option("--seeds", default="0,1,2", show_default=True, help="Each row is run once for each.")
@click.option("--recipe", metavar="NAME", help="Use this recipe's values instead of the workspace's.")
@click.option("--set", "overrides", multiple=True, metavar="KEY=VALUE", help="Change one value; repeatable.")
@click.option("--split", default="test", show_default=True, help="What is evaluated.")
@click.option("--markdown", "as_markdown", is_flag=True, help="Write the table as Markdown.")
@pass_context
def ablate_command(
    context: Context,
    rows: str,
    seeds: str,
    recipe: str | None,
    overrides: tuple[str, ...],
    split: str,
    as_markdown: bool,
) -> None:
    """Run the paper's ablation (Table 4) on the workspace's data.

    Rows: 1 the full method; 2 without stage 1; 3 without pretrained weights and distillation; 4 without distillation;
    5 a linear layer instead of the language-guided head; 6 the votes of the nearest sentences; 7 the first sentences
    instead of selected ones. Each cell is a training run of its own, kept in reports/ablate as it comes; run again, the
    command goes on where it was. The trained encoders stay under runs/ablate, which may be deleted afterwards.
    """
    from vlltr_index.ablation import ROWS, markdown, parse_numbers
    from vlltr_index.recipe import load_recipe, override
    from vlltr_index.stages.ablate import ablate

    numbers = parse_numbers(rows, "--rows", range(1, len(ROWS) + 1))
    chosen = parse_numbers(seeds, "--seeds")
    workspace = context.open()
    base = override(load_recipe(recipe) if recipe else workspace.recipe, overrides)
    with context.progress() as progress:
        report = ablate(workspace, base, numbers, chosen, split, progress)
    if context.as_json:
        context.emit(asdict(report))
    elif as_markdown:
        click.echo(markdown(report.rows), nl=False)
    else:
        context.console().print(_table(report))
    for row in report.rows:
        if row.reason is not None and not as_markdown:
            context.say(f"Row {row.row}: n/a, {row.reason}")


def _table(report: AblationReport) -> Table:
    from vlltr_index.ablation import figure, shown_bins
    from vlltr_index.cli.render import table

    names = shown_bins(report.rows)
    rows = [
        [str(r.row), *r.cells, str(len(r.seeds)), *(figure(r, name) for name in names)] for r in report.rows
    ]
    title = (
        f"Table 4: top-1 on {report.split}, mean and standard deviation over the seeds; recipe {report.recipe},"
        f" protocol {report.protocol}; {report.convention} bounds (many >= 100, few <= 20)"
    )
    return table(title, ["", "weights", "CVLP", "head", "sentences", "seeds", *names], rows, left=5)
