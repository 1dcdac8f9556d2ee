"""`posttrain serve`: a model behind OpenAI's API."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Annotated

import typer

from posttrain.cli.models import (
    PANEL,
    Device,
    Dtype,
    Model,
    Quantization,
    RankTimeout,
    SystemPrompt,
    Template,
    TensorParallel,
)
from posttrain.cli.paths import local_name, local_path
from posttrain.common.environment import bound_kernels
from posttrain.common.errors import SettingError

of_server = partial(typer.Option, rich_help_panel="The server")
of_page = partial(typer.Option, rich_help_panel="The chat page")
limit = partial(typer.Option, rich_help_panel="What it takes on")

Host = Annotated[
    str,
    of_server(help="The address to listen on; others than this machine's own need an API key."),
]
Port = Annotated[int, of_server(help="0 is any free port.")]
Name = Annotated[
    str | None,
    of_server(help="The model's name in requests, by default as given."),
]
ApiKeyEnv = Annotated[
    str | None,
    of_server(
        metavar="VARIABLE", help="The environment variable with the key that clients must send."
    ),
]
Adapters = Annotated[
    list[str] | None,
    of_server(
        "--adapter",
        metavar="NAME=FOLDER",
        help="A LoRA adapter that requests choose by this name; may be repeated.",
    ),
]
AllowWeightUpdates = Annotated[
    str | None,
    of_server(
        metavar="FOLDER",
        help="Let a trainer replace all weights by safetensors within this folder.",
    ),
]
Beside = Annotated[
    str | None,
    of_page(
        parser=local_name,
        help="A second model, for the comparison on the chat page; its API is at /beside/v1.",
    ),
]
Votes = Annotated[
    Path | None,
    of_page(
        parser=local_path,
        help="A JSONL file for the votes of the chat page, as rows that `dpo` trains on.",
    ),
]
MaxNumSeqs = Annotated[int, limit(min=1, help="Completions in one batch.")]
MaxWaiting = Annotated[
    int,
    limit(min=0, help="Completions that may wait; more are refused (429)."),
]
MaxLength = Annotated[
    int | None,
    limit(
        min=2,
        help="Tokens of a prompt with its completion; by default the model's limit, at most 32768.",
    ),
]
TimeLimit = Annotated[float, limit(help="Seconds for a request, waiting included.")]
CacheGib = Annotated[
    float | None,
    limit(
        help="GiB for keys and values of running completions, of each model; by default all models "
        "share half of what is free."
    ),
]
PrefixGib = Annotated[
    float,
    limit(help="GiB for keys and values of recent prompts; 0 keeps none."),
]


def serve(
    model: Model,
    host: Host = "127.0.0.1",
    port: Port = 8000,
    name: Name = None,
    api_key_env: ApiKeyEnv = None,
    adapter: Adapters = None,
    allow_weight_updates: AllowWeightUpdates = None,
    max_num_seqs: MaxNumSeqs = 64,
    max_waiting: MaxWaiting = 256,
    max_length: MaxLength = None,
    time_limit: TimeLimit = 600.0,
    cache_gib: CacheGib = None,
    prefix_gib: PrefixGib = 0.5,
    template: Template = "auto",
    system_prompt: SystemPrompt = None,
    device: Device = "auto",
    dtype: Dtype = "auto",
    quantization: Quantization = None,
    beside: Beside = None,
    votes: Votes = None,
    tensor_parallel: TensorParallel = 1,
    rank_timeout: RankTimeout = 300.0,
) -> None:
    """Serve a model over HTTP, as OpenAI's API, and a page to chat with it."""
    bound_kernels()
    from posttrain.runs.serve import serve as run
    from posttrain.serving.serve import ServeSettings

    settings = ServeSettings(
        host=host,
        port=port,
        name=name,
        api_key_env=api_key_env,
        adapters=named(adapter or []),
        max_num_seqs=max_num_seqs,
        max_waiting=max_waiting,
        max_length=max_length,
        time_limit=time_limit,
        cache_gib=cache_gib,
        prefix_gib=prefix_gib,
        template=template,
        system_prompt=system_prompt,
        device=device,
        dtype=dtype,
        quantization=quantization,
        beside=beside,
        votes=None if votes is None else str(votes),
        allow_weight_updates=allow_weight_updates and str(local_path(allow_weight_updates)),
        tensor_parallel=tensor_parallel,
    )
    run(model, settings, rank_timeout)


def named(pairs: list[str]) -> dict[str, str]:
    """Return the folders of adapters by name; raise SettingError for what is not NAME=FOLDER."""
    folders: dict[str, str] = {}
    for pair in pairs:
        name, equals, folder = pair.partition("=")
        if not (name and equals and folder):
            raise SettingError("adapter", f"expected NAME=FOLDER, got {pair!r}")
        if name in folders:
            raise SettingError("adapter", f"{name} is given twice")
        folders[name] = str(local_path(folder))
    return folders


def add_to(app: typer.Typer) -> None:
    """Register the command."""
    app.command(rich_help_panel=PANEL)(serve)
