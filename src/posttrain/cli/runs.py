"""Commands that start runs and show them: train, pipeline, report, doctor."""

from __future__ import annotations

import json
import os
from dataclasses import asdict
from pathlib import Path
from typing import Annotated

import typer

from posttrain.cli.aliases import Config, Override, recipe_of
from posttrain.cli.experiments import (
    Model,
    ModelIndex,
    OutputDir,
    Overrides,
    Retrain,
    read_tree,
    sweep,
    train_models,
)
from posttrain.cli.paths import local_path

PANEL = "Training"


def train(
    recipe: Annotated[
        str | None, typer.Argument(help="A YAML file; one file is one run.", show_default=False)
    ] = None,
    overrides: Overrides = None,
    config_file: Config = None,
    override: Override = None,
    dry_run: Annotated[
        bool,
        typer.Option("--dry-run", help="Check everything; train nothing and write nothing."),
    ] = False,
    resume: Annotated[
        bool,
        typer.Option(
            "--resume", help="Resume the newest run of this recipe; start one if there is none."
        ),
    ] = False,
    output_dir: OutputDir = None,
    model: Model = None,
    model_index: ModelIndex = None,
    retrain: Retrain = False,
    run_dir: Annotated[
        Path | None, typer.Option(parser=local_path, hidden=True, help="The run directory.")
    ] = None,
) -> None:
    """Train from a recipe: one run, or one for each of its `models`."""
    from posttrain.common import distributed
    from posttrain.model.folder import best_or_newest
    from posttrain.runs.config import parse_config

    recipe, changes = recipe_of(recipe, config_file, overrides, override)
    tree = read_tree(recipe, changes, output_dir)
    if "models" in tree or retrain or model is not None or model_index is not None:
        train_models(tree, recipe, model, model_index, dry_run, retrain)
        return
    config = parse_config(tree, recipe)
    if resume or os.environ.get("TORCHELASTIC_RESTART_COUNT", "0") != "0":
        from posttrain.runs.resume import resuming

        config = resuming(config)
    if dry_run:
        from posttrain.common import mesh
        from posttrain.runs.describe import describe
        from posttrain.runs.memory import estimate
        from posttrain.runs.plan import plan
        from posttrain.runs.preflight import preflight
        from posttrain.runs.strategy import check_split

        distributed.start(config.model.device, config.distributed.timeout)
        if distributed.num_ranks() > 1:  # alone, it is the dry run of a run elsewhere
            mesh.check(config.distributed.tensor_parallel, config.distributed.sequence_parallel)
        ranks = preflight(config)
        planned = plan(config)
        check_split(planned)
        if distributed.rank() == 0:
            print(*[ranks] if ranks else [], describe(planned), estimate(planned), sep="\n")
        distributed.stop()
        return
    from posttrain.runs.train import train as run

    run_dir = run(config, run_dir)
    if distributed.rank() == 0:
        if config.trainer.early_stopping is not None:
            print(f"best checkpoint: {best_or_newest(run_dir)}")
        print(f"run: {run_dir}\nreport: {run_dir / 'report.html'}")
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


def list_runs(
    folder: Annotated[
        Path,
        typer.Argument(parser=local_path, help="A folder with run directories, at any depth."),
    ] = Path("results"),
    as_json: Annotated[
        bool, typer.Option("--json", help="Write one JSON object for each run.")
    ] = False,
) -> None:
    """List the runs in a folder: state, step, metric, size; newest first.

    A run is running, finished, failed, interrupted (it saved and can be resumed) or killed.
    """
    from posttrain.runs.listing import runs_in, table

    found = runs_in(folder)
    if as_json:
        for run in found:
            print(json.dumps(asdict(run) | {"folder": str(run.folder)}))
    else:
        print(table(found, folder))


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
    for command in (train, sweep, pipeline, report, doctor):
        app.command(rich_help_panel=PANEL)(command)
    app.command("runs", rich_help_panel=PANEL)(list_runs)
