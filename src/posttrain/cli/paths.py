"""Paths on the command line."""

from __future__ import annotations

from pathlib import Path

import typer

from posttrain.common.files import expanded


def local_name(text: str) -> str:
    """Return a name with ~ and ${VAR} replaced, for what is a folder or a name on the hub."""
    try:
        return expanded(text)
    except ValueError as error:
        raise typer.BadParameter(str(error)) from None


def local_path(text: str) -> Path:
    """Return a path with ~ and ${VAR} replaced: a shell leaves the ~ of --output=~/x as it is."""
    return Path(local_name(str(text)))
