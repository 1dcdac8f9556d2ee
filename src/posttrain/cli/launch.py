"""`posttrain launch`: a run, an evaluation, a file of completions or a server on several ranks."""

from __future__ import annotations

import sys
from difflib import get_close_matches
from typing import Annotated, Any

import typer

from posttrain.common.errors import SettingError

PANEL = "Training"
RANKED = ("train", "eval", "generate", "serve")
"""Commands whose work is split over ranks."""


def launch(
    context: typer.Context,
    nproc: Annotated[
        int | None,
        typer.Option(
            help="Ranks on this machine; by default one for each GPU.", show_default=False
        ),
    ] = None,
    nnodes: Annotated[
        str,
        typer.Option(
            metavar="N|MIN:MAX",
            help="Machines that train together; with MIN:MAX the run goes on while MIN are left.",
        ),
    ] = "1",
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

    Everything except these options goes to `posttrain train`: overrides, --resume, --dry-run. With
    the word eval, generate or serve in front, it goes to that command.
    """
    from posttrain.runs.launch import LaunchSettings, RankFailed
    from posttrain.runs.launch import launch as run

    check_options(context)
    arguments = arguments_of(context)
    if (ray is None) != (num_workers is None):
        raise ValueError("--ray and --num-workers belong together: give both, or neither")
    try:
        if ray is not None and num_workers is not None:
            if nproc is not None or nnodes != "1" or address is not None:
                raise ValueError("--ray places the ranks itself: give --num-workers alone")
            from posttrain.runs.launch_ray import RaySettings, launch_on_ray

            launch_on_ray(arguments, RaySettings(ray, num_workers, max_restarts, timeout))
            return
        fewest, most = numbers(nnodes)
        run(
            arguments,
            LaunchSettings(nproc, most, fewest, node_rank, address, max_restarts, timeout),
        )
    except RankFailed as error:
        if str(error):
            print(f"error: {error}", file=sys.stderr)
        sys.exit(error.code)


def numbers(nnodes: str) -> tuple[int | None, int]:
    """Return the least number of machines, None if all must be there, and the number of all."""
    fewest, colon, most = nnodes.rpartition(":")
    if not most.isdecimal() or (colon and not fewest.isdecimal()):
        raise SettingError("nnodes", f"expected a number or MIN:MAX, such as 1:2, got {nnodes}")
    return int(fewest) if colon else None, int(most)


def arguments_of(context: typer.Context) -> list[str]:
    """Return the command for each rank, train by default; raise ValueError for one without ranks.

    The words of a command that a rank runs follow its name.
    """
    first = context.args[0] if context.args else ""
    if first in RANKED:
        return context.args
    if first in commands(context):
        raise ValueError(
            f"posttrain {first} runs in one process: call it without launch, which is for "
            f"{', '.join(RANKED)}"
        )
    return ["train", *context.args]


def commands(context: typer.Context) -> dict[str, Any]:
    """Return the commands of the program by name."""
    return {} if context.parent is None else vars(context.parent.command).get("commands", {})


def check_options(context: typer.Context) -> None:
    """Raise ValueError for an option that is almost one of this command, as torchrun's are."""
    options = [name for parameter in context.command.params for name in parameter.opts]
    command = commands(context).get(arguments_of(context)[0])
    own = [] if command is None else [name for x in command.params for name in x.opts]
    for word in context.args:
        name = word.partition("=")[0].replace("_", "-")
        if name in own:
            continue
        near = [x for x in options if name.startswith(x)] or get_close_matches(
            name, options, 1, 0.8
        )
        if name.startswith("--") and near:
            raise ValueError(f"No such option: {word} (Possible options: {near[0]})")


def add_to(app: typer.Typer) -> None:
    """Register the command."""
    app.command(
        rich_help_panel=PANEL,
        options_metavar="[OPTIONS] [train|eval|generate|serve] RECIPE [SECTION.key=value]...",
        context_settings={"allow_extra_args": True, "ignore_unknown_options": True},
    )(launch)
