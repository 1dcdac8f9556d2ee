"""The type of a key that names a file or folder."""

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
