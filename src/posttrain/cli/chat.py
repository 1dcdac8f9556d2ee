"""`posttrain chat`: a conversation in the terminal."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated

import typer

from posttrain.cli.models import (
    PANEL,
    Device,
    Dtype,
    Model,
    Quantization,
    Seed,
    SystemPrompt,
    Temperature,
    Template,
    TopK,
    TopP,
)
from posttrain.cli.models import MaxNewTokens as Longest
from posttrain.cli.paths import local_name, local_path

Second = Annotated[
    str | None,
    typer.Argument(
        parser=local_name, metavar="[model2]", help="A second model, which answers, too."
    ),
]
Votes = Annotated[
    Path | None,
    typer.Option(
        parser=local_path,
        help="A JSONL file for the better of two answers, as rows that `dpo` trains on.",
    ),
]


def chat(
    model: Model,
    second: Second = None,
    votes: Votes = None,
    max_new_tokens: Longest = 512,
    temperature: Temperature = 0.7,
    top_p: TopP = 1.0,
    top_k: TopK = 0,
    seed: Seed = 0,
    template: Template = "auto",
    system_prompt: SystemPrompt = None,
    device: Device = "auto",
    dtype: Dtype = "auto",
    quantization: Quantization = None,
) -> None:
    """Talk with a model, or with two side by side, in the terminal."""
    from posttrain.serving.chat import ChatSettings
    from posttrain.serving.chat import chat as talk

    talk(
        [model] if second is None else [model, second],
        ChatSettings(max_new_tokens, temperature, top_p, top_k, seed),
        system_prompt,
        template,
        (device, dtype, quantization),
        votes,
        sys.stdin.isatty(),
    )


def add_to(app: typer.Typer) -> None:
    """Register the command."""
    app.command(rich_help_panel=PANEL)(chat)
