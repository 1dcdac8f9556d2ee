"""The command that shows a run in a tracker after its end."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from posttrain.cli.paths import local_path

PANEL = "Training"


def track(
    run: Annotated[Path, typer.Argument(parser=local_path, metavar="RUN", help="A run directory.")],
    to: Annotated[list[str], typer.Option(help="tensorboard, wandb, mlflow or trackio.")],
    overrides: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="[tracking.key=value]...", help="Keys of the section tracking to change."
        ),
    ] = None,
) -> None:
    """Show a finished or killed run in a tracker: what it lacks is added, nothing twice."""
    from posttrain.tracking.track import track as show

    for name in to:
        steps = show(run, name, overrides or [])
        print(f"{name}: {run}, {steps:,} steps")


def add_to(app: typer.Typer) -> None:
    """Register the command."""
    app.command(rich_help_panel=PANEL)(track)
