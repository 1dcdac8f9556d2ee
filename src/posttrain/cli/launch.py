"""`posttrain launch`: a training run on several ranks."""

from __future__ import annotations

import sys
from difflib import get_close_matches
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
    ray: Annotated[
        str | None,
        typer.Option(
            help="HOST:PORT of a running Ray cluster that places the ranks, or auto.",
            show_default=False,
        ),
    ] = None,
    num_workers: Annotated[
        int | None, typer.Option(help="Ranks on the Ray cluster.", show_default=False)
    ] = None,
) -> None:
    """Run `posttrain train` on several ranks, of this machine or of several.

    Everything except these options goes to `posttrain train`: overrides, --resume, --dry-run.
    """
    from posttrain.runs.launch import LaunchSettings, RankFailed
    from posttrain.runs.launch import launch as run

    check_options(context)
    arguments = ["train", *context.args]
    if (ray is None) != (num_workers is None):
        raise ValueError("--ray and --num-workers belong together: give both, or neither")
    try:
        if ray is not None and num_workers is not None:
            if nproc is not None or nnodes != 1 or address is not None:
                raise ValueError("--ray places the ranks itself: give --num-workers alone")
            from posttrain.runs.launch_ray import RaySettings, launch_on_ray

            launch_on_ray(arguments, RaySettings(ray, num_workers, max_restarts, timeout))
            return
        run(arguments, LaunchSettings(nproc, nnodes, node_rank, address, max_restarts, timeout))
    except RankFailed as error:
        if str(error):
            print(f"error: {error}", file=sys.stderr)
        sys.exit(error.code)


def check_options(context: typer.Context) -> None:
    """Raise ValueError for an option that is almost one of this command, as torchrun's are."""
    options = [name for parameter in context.command.params for name in parameter.opts]
    for word in context.args:
        name = word.partition("=")[0].replace("_", "-")
        near = [x for x in options if name.startswith(x)] or get_close_matches(
            name, options, 1, 0.8
        )
        if name.startswith("--") and near:
            raise ValueError(f"No such option: {word} (Possible options: {near[0]})")


def add_to(app: typer.Typer) -> None:
    """Register the command."""
    app.command(
        rich_help_panel=PANEL,
        options_metavar="[OPTIONS] RECIPE [SECTION.key=value]...",
        context_settings={"allow_extra_args": True, "ignore_unknown_options": True},
    )(launch)
