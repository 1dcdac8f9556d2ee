"""`posttrain launch`: a training run on several ranks."""

from __future__ import annotations

import sys
from typing import Annotated

import typer

PANEL = "Training"


def launch(
    context: typer.Context,
    nproc: Annotated[
        int | None,
        typer.Option(
            help="Ranks on this machine; by default one for each GPU.", show_default=False
        ),
    ] = None,
    nnodes: Annotated[int, typer.Option(help="Machines that train together.")] = 1,
    node_rank: Annotated[int, typer.Option(help="Number of this machine, from 0.")] = 0,
    address: Annotated[
        str | None,
        typer.Option(help="HOST:PORT of machine 0, the same on every machine.", show_default=False),
    ] = None,
    max_restarts: Annotated[
        int,
        typer.Option(help="How often to start again from the newest checkpoint after a failure."),
    ] = 0,
    timeout: Annotated[
        float, typer.Option(help="Seconds until all machines must have come.")
    ] = 300.0,
) -> None:
    """Run `posttrain train` on several ranks: launch --nproc 4 RECIPE [SECTION.key=value]...

    Everything but these options goes to `posttrain train`.
    """
    from posttrain.runs.launch import LaunchSettings, RankFailed
    from posttrain.runs.launch import launch as run

    settings = LaunchSettings(nproc, nnodes, node_rank, address, max_restarts, timeout)
    try:
        run(["train", *context.args], settings)
    except RankFailed as error:
        if str(error):
            print(f"error: {error}", file=sys.stderr)
        sys.exit(error.code)


def add_to(app: typer.Typer) -> None:
    """Register the command."""
    settings = {"allow_extra_args": True, "ignore_unknown_options": True}
    app.command(rich_help_panel=PANEL, context_settings=settings)(launch)
