"""`posttrain board`: a local web page over runs."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from posttrain.cli.paths import local_path
from posttrain.common.secrets import forget_secrets

PANEL = "Training"


def board(
    folder: Annotated[
        Path,
        typer.Argument(parser=local_path, help="A folder with run directories, at any depth."),
    ] = Path("results"),
    port: Annotated[int, typer.Option(help="Port of this machine; 0 is any free one.")] = 8001,
    allow_delete: Annotated[
        bool, typer.Option("--allow-delete", help="Let the page delete runs and checkpoints.")
    ] = False,
) -> None:
    """Show runs in a local web page: curves, settings, rollouts, evaluations, disk."""
    from posttrain.board.serve import serve

    forget_secrets()  # the page needs none
    serve(folder, port, allow_delete)


def add_to(app: typer.Typer) -> None:
    """Register the command."""
    app.command(rich_help_panel=PANEL)(board)
