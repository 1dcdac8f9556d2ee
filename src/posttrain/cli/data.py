"""`posttrain data`: the commands that show, generate, convert and download data."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from posttrain.cli.experiments import Overrides
from posttrain.cli.paths import local_path

app = typer.Typer(help="Show, generate, convert and download data.", no_args_is_help=True)


@app.command("preview")
def preview(
    recipe: Annotated[str, typer.Argument(help="The recipe whose data to show.")],
    overrides: Overrides = None,
    rows: Annotated[int, typer.Option(min=1, help="Number of rows to show.")] = 3,
) -> None:
    """Show rendered rows with the trained tokens coloured, then lengths and dropped rows."""
    from posttrain.runs.config import load_config
    from posttrain.runs.preview import show

    show(load_config(recipe, overrides), rows)


@app.command("preferences")
def preferences(
    recipe: Annotated[str, typer.Argument(help="A recipe with make.type: preferences.")],
    overrides: Overrides = None,
) -> None:
    """Sample several completions of each prompt and pair them by their scores."""
    _make(recipe, overrides, "preferences")


@app.command("filter")
def rejection_sampling(
    recipe: Annotated[str, typer.Argument(help="A recipe with make.type: filter.")],
    overrides: Overrides = None,
) -> None:
    """Sample several completions of each prompt and keep the correct ones."""
    _make(recipe, overrides, "filter")


def _make(recipe: str, overrides: list[str] | None, kind: str) -> None:
    from posttrain.runs.synthesize import load_making, make

    config = load_making(recipe, overrides)
    if config.make.type != kind:
        raise ValueError(
            f"{recipe} has make.type {config.make.type}: use posttrain data {config.make.type}"
        )
    for name, value in make(config).items():
        print(f"{name:<20}{value}")
    print(f"written to {config.output_dir}")


@app.command("prepare")
def prepare(
    files: Annotated[list[str], typer.Argument(help="JSONL or Parquet files, also .gz; or globs.")],
    output_dir: Annotated[
        Path,
        typer.Option(parser=local_path, help="Folder for train.parquet and validation.parquet."),
    ],
    val_split: Annotated[
        float, typer.Option(help="Share of the prompts (or groups) in validation.parquet.")
    ] = 0.1,
    seed: Annotated[int, typer.Option(help="Seed of the choice of those prompts.")] = 0,
    prompt_key: Annotated[str | None, typer.Option(help="The column of the prompt.")] = None,
    response_key: Annotated[str | None, typer.Option(help="The column of the answer.")] = None,
    answer_key: Annotated[
        str | None, typer.Option(help="The column of the final answer, for a reward.")
    ] = None,
    group_key: Annotated[
        str | None, typer.Option(help="A column; rows with equal values in it stay in one file.")
    ] = None,
    keep: Annotated[
        str | None,
        typer.Option(
            help="Other columns to keep, comma-separated, or none; by default those with simple "
            "values."
        ),
    ] = None,
    format: Annotated[
        str, typer.Option(help="Format to write: posttrain, verl_sft or verl_rl.")
    ] = "posttrain",
    data_source: Annotated[
        str | None, typer.Option(help="data_source of verl_rl rows that have no such column.")
    ] = None,
    ability: Annotated[
        str | None, typer.Option(help="ability of verl_rl rows that have no such column.")
    ] = None,
    decontaminate: Annotated[
        str | None, typer.Option(help="Drop rows that overlap with this evaluation set.")
    ] = None,
) -> None:
    """Convert files of rows to train.parquet and validation.parquet, with no prompt in both."""
    from posttrain.data.prepare.convert import prepare as convert
    from posttrain.data.prepare.standard import Preparation

    columns = None if keep is None else () if keep == "none" else tuple(keep.split(","))
    config = Preparation(
        output_dir,
        val_split,
        seed,
        prompt_key,
        response_key,
        answer_key,
        group_key,
        columns,
        format,
        data_source,
        ability,
        decontaminate,
    )
    for line in convert(files, config).lines():
        print(line)


@app.command("overlap")
def overlap(
    train: Annotated[str, typer.Argument(help="Training rows: a file or a glob.")],
    evaluation: Annotated[str, typer.Argument(help="The evaluation set: a file or a glob.")],
    n: Annotated[
        int, typer.Option("--n", help="Number of successive words that must be shared.")
    ] = 13,
) -> None:
    """Count training rows that share n successive words with an evaluation set."""
    from posttrain.data.folders import SUFFIXES
    from posttrain.data.prepare.convert import expand
    from posttrain.data.prepare.decontamination import measure_overlap

    train_files, held_out = expand([train], SUFFIXES), expand([evaluation], SUFFIXES)
    for line in measure_overlap(train_files, held_out, n).lines():
        print(line)


@app.command("templates")
def templates() -> None:
    """List the built-in prompt templates, each with an example."""
    from posttrain.data.templates import described

    for line in described():
        print(line)


@app.command("list")
def list_datasets() -> None:
    """List the built-in data sets with licence, splits, numbers of rows, use and source."""
    from posttrain.data.origin import describe
    from posttrain.data.sets import DATASETS

    width = max(map(len, DATASETS)) + 2
    for name in DATASETS:
        print("\n".join(describe(name, width)))


@app.command("download")
def download_datasets(
    names: Annotated[
        list[str] | None,
        typer.Argument(metavar="[NAME]...", help="Data sets by name; all by default."),
    ] = None,
    sft_only: Annotated[
        bool, typer.Option("--sft-only", help="Only data sets with completions to train on.")
    ] = False,
    rl_only: Annotated[
        bool,
        typer.Option(
            "--rl-only", help="Only data sets with answers, tests, labels or preferences."
        ),
    ] = False,
    output_dir: Annotated[
        Path, typer.Option(parser=local_path, help="Folder that holds a folder for each data set.")
    ] = Path("data"),
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Show files and sizes; download and write nothing.")
    ] = False,
) -> None:
    """Download the original files of named data sets, or of all; resumes where it stopped."""
    from posttrain.data.download import chosen, download

    wanted = chosen(names or [], sft_only=sft_only, rl_only=rl_only)
    download(wanted, output_dir, dry_run=dry_run)
