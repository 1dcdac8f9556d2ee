"""The types of keys that name a file or folder."""

from __future__ import annotations

from typing import Annotated

from pydantic import AfterValidator
from pydantic_core import PydanticCustomError

from posttrain.common.files import expanded


def expanded_or_error(path: str) -> str:
    """Return a path with ~ and ${VAR} replaced; raise an error of pydantic if it cannot be."""
    try:
        return expanded(path)
    except ValueError as error:
        raise PydanticCustomError("path", "{problem}", {"problem": str(error)}) from None


LocalPath = Annotated[str, AfterValidator(expanded_or_error)]
"""A file or folder, in which ~ and ${VAR} are replaced."""

LONGEST_NAME = 200  # bytes; file systems take 255, of which a date and more are added


def plain_name(name: str) -> str:
    """Return the name of a run; raise an error of pydantic for one that is a path."""
    problem = ""
    if "/" in name or name in (".", "..") or name.startswith("~") or name.strip() != name:
        problem = "is a name, not a path: the folder is trainer.output_dir"
    elif not name.isprintable():
        problem = "must be on one line, without control characters"
    elif len(name.encode()) > LONGEST_NAME:
        problem = f"has more than {LONGEST_NAME} bytes"
    elif "$" in name:
        problem = "is taken as it is, and no variable is replaced: write it without $"
    if problem:
        raise PydanticCustomError("path", "{problem}", {"problem": f"{problem} (got {name!r})"})
    return name


RunName = Annotated[str, AfterValidator(plain_name)]
"""What the name of a new folder begins with."""
