"""Commands for what comes after training: export, merge, push."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from posttrain.cli.paths import local_name, local_path

PANEL = "After training"
Name = Annotated[
    str,
    typer.Argument(
        parser=local_name, metavar="RUN", help="A run, checkpoint, model folder or GGUF file."
    ),
]
Form = Annotated[
    str,
    typer.Option(
        "--format",
        help="safetensors: the model's or adapter's own files. merged: whole weights. peft: the "
        "adapter. gguf: one file for llama.cpp.",
    ),
]
Base = Annotated[
    str | None,
    typer.Option("--base-model", help="The base model's name on the hub, for adapter and card."),
]
Licence = Annotated[
    str | None, typer.Option("--license", help="The licence of this model, for its card.")
]
Dtype = Annotated[
    str | None, typer.Option(help="f32, bf16 or f16; by default as the weights are stored.")
]


def export(
    run: Name,
    form: Form = "safetensors",
    output: Annotated[
        Path | None,
        typer.Option(parser=local_path, help="A new folder; by default RUN-FORMAT here."),
    ] = None,
    dtype: Dtype = None,
    quant: Annotated[
        str | None,
        typer.Option(help="For gguf: q8_0, q5_1, q5_0, q4_1 or q4_0 instead of a dtype."),
    ] = None,
    base_model: Base = None,
    licence: Licence = None,
    dequantize: Annotated[
        bool,
        typer.Option(
            "--dequantize",
            help="Merge an adapter that was trained in 4 or 8 bits into the base as training saw "
            "it, rounded, instead of the whole weights.",
        ),
    ] = False,
) -> None:
    """Write a trained model as files that other programs load, with a model card."""
    from posttrain.export.run import export as write

    print(write(run, form, output, dtype, quant, base_model, licence, dequantize=dequantize))


def merge(
    adapters: Annotated[
        list[str],
        typer.Argument(metavar="ADAPTER...", help="Runs, checkpoints or folders of LoRA adapters."),
    ],
    output: Annotated[Path, typer.Option(parser=local_path, help="A new folder.")],
    weights: Annotated[
        str | None, typer.Option(help="Comma-separated numbers; by default 1/n each.")
    ] = None,
    method: Annotated[
        str,
        typer.Option(
            help="linear (exact, adds up the ranks), svd, ties, dare_linear, dare_ties, magnitude."
        ),
    ] = "linear",
    rank: Annotated[
        int | None, typer.Option(help="Rank of the result; by default the mean of the ranks.")
    ] = None,
    density: Annotated[
        float | None,
        typer.Option(help="Share of the numbers that ties, dare_* and magnitude keep."),
    ] = None,
    seed: Annotated[int, typer.Option(help="Seed of what dare_* leave out.")] = 0,
    into_base: Annotated[
        bool, typer.Option("--into-base", help="Write the whole model instead of an adapter.")
    ] = False,
    dtype: Dtype = None,
) -> None:
    """Merge several LoRA adapters of one base into one adapter, or into the base."""
    from posttrain.common.errors import SettingError
    from posttrain.export.run import merge as write

    try:
        numbers = [float(w) for w in weights.split(",")] if weights is not None else None
    except ValueError:
        raise SettingError("weights", f"expected numbers like 0.5,0.5, got {weights!r}") from None
    names = [local_name(name) for name in adapters]
    write(names, output, numbers, method, rank, density, seed, into_base, dtype)  # type: ignore[arg-type]  # checked there


def push(
    run: Name,
    repo: Annotated[str, typer.Argument(metavar="HUB-NAME", help="OWNER/NAME on the hub.")],
    form: Annotated[
        str | None,
        typer.Option(
            "--format", help="As of export, for what is none yet; safetensors by default."
        ),
    ] = None,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Show the files and the card; send nothing.")
    ] = False,
    public: Annotated[
        bool, typer.Option("--public", help="Make it public; by default it is private.")
    ] = False,
    base_model: Base = None,
    licence: Licence = None,
) -> None:
    """Upload a model, or an export of it, to the Hugging Face hub; needs HF_TOKEN."""
    from posttrain.export.run import push as send

    send(run, repo, form, dry_run, public, base_model, licence)


def add_to(app: typer.Typer) -> None:
    """Register the commands."""
    for command in (export, merge, push):
        app.command(rich_help_panel=PANEL)(command)
