"""Commands that start runs and show them: train, pipeline, report, doctor."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from posttrain.cli.paths import local_path

PANEL = "Training"
Overrides = Annotated[
    list[str] | None,
    typer.Argument(
        metavar="[section.key=value]...", help="Keys of the recipe to change, as YAML values."
    ),
]


def train(
    recipe: Annotated[str, typer.Argument(help="A YAML file; one file is one run.")],
    overrides: Overrides = None,
    dry_run: Annotated[
        bool,
        typer.Option("--dry-run", help="Check everything; train nothing and write nothing."),
    ] = False,
) -> None:
    """Train from a recipe."""
    from posttrain.common import distributed
    from posttrain.model.folder import best_or_newest
    from posttrain.runs.config import load_config

    config = load_config(recipe, overrides)
    if dry_run:
        from posttrain.runs.describe import describe
        from posttrain.runs.memory import estimate
        from posttrain.runs.plan import plan

        planned = plan(config)
        print(describe(planned))
        print(estimate(planned))
        return
    from posttrain.runs.train import train as run

    try:
        run_dir = run(config)
        if distributed.rank() == 0:
            if config.trainer.early_stopping is not None:
                print(f"best checkpoint: {best_or_newest(run_dir)}")
            print(f"run: {run_dir}\nreport: {run_dir / 'report.html'}")
    finally:
        distributed.stop()


def pipeline(
    recipe: Annotated[str, typer.Argument(help="A YAML file with stages.")],
    overrides: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="[STAGE.section.key=value]...", help="Keys of the stages' recipes to change."
        ),
    ] = None,
) -> None:
    """Run stages one after another, each starting from the model of an earlier one."""
    from posttrain.runs.pipeline import load_pipeline, run_pipeline

    run_pipeline(load_pipeline(recipe, overrides))


def report(
    runs: Annotated[
        list[Path],
        typer.Argument(parser=local_path, help="One run directory, or several to compare."),
    ],
    output: Annotated[
        Path | None,
        typer.Option(parser=local_path, help="The page to write; by default report.html."),
    ] = None,
) -> None:
    """Write a self-contained HTML page about one run, or about several side by side."""
    from posttrain.tracking.report import write_report

    if output is None and len(runs) > 1:
        output = Path("report.html")
    print(write_report(runs, output))


def doctor() -> None:
    """Show what this machine offers: devices, precision, sandbox, extras, disk, hub.

    Paste the output into bug reports.
    """
    from posttrain.runs.doctor import examine

    signs = {"ok": " ", "note": "-", "missing": "!"}
    for finding in examine():
        print(f"{signs[finding.state]} {finding.name:<18}{finding.text}")


def add_to(app: typer.Typer) -> None:
    """Register the commands."""
    for command in (train, pipeline, report, doctor):
        app.command(rich_help_panel=PANEL)(command)
