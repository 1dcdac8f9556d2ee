"""`posttrain plan`: memory, traffic and time of a run on ranks that are not there."""

from __future__ import annotations

import sys
from functools import partial
from typing import Annotated, Any

import typer

from posttrain.cli.aliases import Config, Override, recipe_of
from posttrain.cli.experiments import Overrides, read_tree
from posttrain.cli.generate import written
from posttrain.common.errors import SettingError

PANEL = "Training"
OF_SERVERS = ("server_rate", "server_slots", "step_time", "completion_tokens")
"""Options about rollout servers, of which the first is needed for the others."""


def plan(
    context: typer.Context,
    recipe: Annotated[str | None, typer.Argument(help="A YAML file.", show_default=False)] = None,
    overrides: Overrides = None,
    config_file: Config = None,
    override: Override = None,
    gpus: Annotated[int, typer.Option(min=1, help="Ranks on each machine.")] = 1,
    nodes: Annotated[int, typer.Option(min=1, help="Machines.")] = 1,
    gpu_memory: Annotated[float, typer.Option(min=0.001, help="GiB of a GPU, or of a rank.")] = 80,
    utilisation: Annotated[
        float,
        typer.Option(min=0.001, max=1.0, help="Share of the peak FLOP/s that training reaches."),
    ] = 0.4,
    gpu_flops: Annotated[
        float,
        typer.Option(min=0.001, help="Peak TFLOP/s of a rank in the compute dtype (H100: 989)."),
    ] = 989,
    bandwidth: Annotated[
        float, typer.Option(min=0.001, help="GB/s that a rank sends to other machines.")
    ] = 50,
    node_bandwidth: Annotated[
        float, typer.Option(min=0.001, help="GB/s that a rank sends within its machine.")
    ] = 450,
    server_rate: Annotated[
        float | None,
        typer.Option(min=0.001, help="Tokens/s of a rollout server, measured.", show_default=False),
    ] = None,
    server_slots: Annotated[
        int, typer.Option(min=1, help="Completions that a rollout server works on at once.")
    ] = 64,
    step_time: Annotated[
        float | None,
        typer.Option(
            min=0.001,
            help="Seconds of a training step without rollouts, measured; by default predicted.",
            show_default=False,
        ),
    ] = None,
    completion_tokens: Annotated[
        str | None,
        typer.Option(
            help="Tokens of completions, such as 80,200,512; by default the maximum.",
            show_default=False,
        ),
    ] = None,
) -> None:
    """Predict memory, traffic and time of a recipe under each parallel strategy.

    Needs no GPU and no weights: of the model it reads config.json.
    """
    from posttrain.runs.config import parse_config

    recipe, changes = recipe_of(recipe, config_file, overrides, override)
    tree = read_tree(recipe, changes, None)
    if "models" in tree:
        raise ValueError(f"{recipe} has a list of models: give one, with model.name=...")
    config = parse_config(tree, recipe)
    lengths = whole_numbers(completion_tokens)
    check_servers(written(context), config)

    from posttrain.sizing.forecast import Hardware
    from posttrain.sizing.report import servers
    from posttrain.sizing.servers import Rates

    hardware = Hardware(
        gpu_memory * 2**30, gpu_flops * 1e12, utilisation, node_bandwidth * 1e9, bandwidth * 1e9
    )
    seconds = show(config, gpus, nodes, hardware)
    rollout = config.rollout
    if server_rate is not None:
        assert rollout is not None  # see check_servers
        rates = Rates(
            step_time or seconds,
            config.trainer.examples_per_step * rollout.group_size,
            server_rate,
            server_slots,
            max(rollout.max_staleness, int(rollout.one_step_off)),
        )
        print(*servers(rates, lengths or [rollout.max_new_tokens]), sep="\n")


def show(config: Any, gpus: int, nodes: int, hardware: Any) -> float:
    """Print the forecast of a recipe; return the seconds of a step under the strategy to take.

    Raise ValueError if no strategy is possible, or none fits."""
    from posttrain.common.environment import tune_allocator
    from posttrain.sizing.asked import ask
    from posttrain.sizing.forecast import forecast, layouts, load_code, network_of
    from posttrain.sizing.forked import forked
    from posttrain.sizing.report import facts, recommended, tables

    device = "cpu" if config.model.device == "cpu" else "cuda"
    if device == "cpu":
        tune_allocator()  # as a run does: what the allocator cannot reuse is part of the forecast
    asked = ask(config, device)
    load_code(asked)
    network = forked(partial(network_of, asked))
    print(*facts(asked, network, hardware, gpus, nodes), sep="\n", flush=True)
    chosen = list(layouts(asked, gpus, nodes))
    found = []
    for number, layout in enumerate(chosen, 1):
        if sys.stderr.isatty():  # a deep network on many ranks takes half a minute or more
            words = f"counting {number} of {len(chosen)}: {layout.name}"
            print(words, file=sys.stderr, flush=True)
        found.append(forecast(asked, network, layout, hardware, device))
    if all(one.problem is not None for one in found):
        raise ValueError(str(found[0].problem))
    print(*tables(asked, found, hardware), sep="\n", flush=True)
    best, why = recommended(asked, found, hardware)
    print("", f"take {best.layout.name}: {why}", sep="\n")
    return best.seconds


def check_servers(given: set[str], config: Any) -> None:
    """Raise SettingError if an option about rollout servers would have no effect."""
    asked = [name for name in OF_SERVERS if name in given]
    if asked and config.rollout is None:
        kind = config.trainer.type
        raise SettingError(asked[0], f"is about rollout servers, and {kind} has no rollouts")
    if asked and OF_SERVERS[0] not in asked:
        raise SettingError(
            asked[0], "is about rollout servers: give --server-rate, their measured tokens/s, too"
        )


def whole_numbers(text: str | None) -> list[int]:
    """Return the numbers in a list with commas; raise ValueError if one is no length."""
    parts = [] if text is None else [part.strip() for part in text.split(",")]
    if wrong := [part for part in parts if not part.isdecimal() or int(part) == 0]:
        raise ValueError(f"--completion-tokens: {wrong[0]!r} is no number of tokens: give 80,200")
    return [int(part) for part in parts]


def add_to(app: typer.Typer) -> None:
    """Register the command."""
    app.command(rich_help_panel=PANEL)(plan)
