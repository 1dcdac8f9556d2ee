"""Secrets: they come from the environment or from .env files, and go only where they are needed."""

from __future__ import annotations

import os
import re
from pathlib import Path

SECRET = re.compile(r"(^|_)(KEY|TOKEN|SECRET|PASSWORD|PASSWD|CREDENTIALS?)(_|$)", re.IGNORECASE)
"""Names of variables whose values nobody should see."""
ALIASES = {"HUGGINGFACE_TOKEN": "HF_TOKEN"}
"""Names that people write, and those that the libraries read."""

_LOADED: set[str] = set()
"""Names that came from .env files, of whatever form."""


def load_env_files(*folders: Path) -> list[str]:
    """Set the variables of the folders' .env files that the environment lacks; return their names.

    A variable that is set stays as it is, an empty value sets nothing, and an earlier folder wins.
    Raise ValueError if a file is not text. Values are never shown.
    """
    new: list[str] = []
    for folder in folders:
        file = folder / ".env"
        if not file.is_file():
            continue
        from dotenv import dotenv_values  # only those who have such a file wait for it

        try:
            values = dotenv_values(file, encoding="utf-8")
        except UnicodeDecodeError:
            raise ValueError(f"{file} is not UTF-8 text: write NAME=VALUE on each line") from None
        for name, value in values.items():
            if value and name not in os.environ:
                os.environ[name] = value
                new.append(name)
    for name, read in ALIASES.items():
        if name in os.environ and read not in os.environ:
            os.environ[read] = os.environ[name]
            new.append(read)
    _LOADED.update(new)
    return new


def without_secrets() -> dict[str, str]:
    """Return the environment for a child process that needs no secret."""
    return {
        name: value
        for name, value in os.environ.items()
        if not SECRET.search(name) and (name not in _LOADED or name.upper().endswith("_PROXY"))
    }
