"""Secrets: they come from the environment or from .env files, and go only where they are needed."""

from __future__ import annotations

import json
import os
import re
from pathlib import Path
from typing import Any
from urllib.parse import quote

SECRET = re.compile(
    r"(^|_)(API)?(KEY|TOKEN|SECRET|PASSPHRASE|PASSWD|CREDENTIAL)S?(_|$)|PASSWORD|_(PWD|PAT|AUTH)$",
    re.IGNORECASE,
)
"""Names of variables whose values nobody should see."""
FORM = re.compile(
    r"\bhf_[A-Za-z0-9]{30,}|\bnvapi-[\w-]{40,}|\bgh[pousr]_\w{30,}|\bgithub_pat_\w{30,}"
    r"|\bAKIA[0-9A-Z]{16}\b|\bglpat-[\w-]{20,}|\bwandb_v1_\w{30,}"
    r"|\bsk-(?=[\w-]*\d)(?=[\w-]*[A-Z])[\w-]{30,}"
)
"""Keys of well-known services, as a whole: shorter ones could be words."""
IN_ADDRESS = re.compile(r"(?<=://)[^/@\s\"']+@")
"""The user and password of an address."""
HIDDEN = "***"
MIN_LENGTH = 8
"""Values of fewer characters, such as "none", would be found in innocent texts."""
ALIASES = {"HUGGINGFACE_TOKEN": "HF_TOKEN"}
"""Names that people write, and those that the libraries read."""

LOADED = "POSTTRAIN_FROM_ENV_FILES"
"""The variable with the names, of whatever form, that came from .env files.

The runs of a series and ranks inherit it, and with it what they may not pass on."""
_NAMED: set[str] = set()
"""Names that a config gives as those of its keys, of whatever form."""


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
    if new:
        os.environ[LOADED] = ",".join(sorted({*_loaded(), *new}))
    return new


def _loaded() -> set[str]:
    """Return the names that came from .env files, also of a process that started this one."""
    return set(filter(None, os.environ.get(LOADED, "").split(",")))


def add_secret(name: str) -> None:
    """Treat a variable as secret from here on, whatever its name."""
    _NAMED.add(name)


def is_secret(name: str) -> bool:
    """Whether nobody should see the value of a variable, by its name."""
    return name in _NAMED or SECRET.search(name) is not None


def without_secrets(*needed: str) -> dict[str, str]:
    """Return the environment for a child process.

    It has secrets, variables of .env files and addresses with a password only if their names begin
    with one of the `needed`, except for proxies, without which nothing is reached.
    """
    loaded = _loaded()
    return {
        name: value
        for name, value in os.environ.items()
        if name.startswith(needed)
        or not (
            is_secret(name)
            or (
                (name in loaded or IN_ADDRESS.search(value)) and not name.upper().endswith("_PROXY")
            )
        )
    }


def forget_secrets() -> None:
    """Take all secrets out of this process, and so of its children: for one that needs none."""
    left = without_secrets()
    for name in os.environ.keys() - left.keys():
        del os.environ[name]


def hide(text: str) -> str:
    """Return a text without the values of secret variables, well-known keys and passwords.

    Values are found also line by line, and as JSON, a Python literal or an address writes them."""
    spelled: set[str] = set()
    for value in _values().values():
        inside = (json.dumps(value)[1:-1], repr(value)[1:-1], quote(value, safe=""))
        forms = (value, *inside, *value.splitlines())
        spelled.update(form for form in forms if len(form) >= MIN_LENGTH)
    for form in sorted(spelled, key=len, reverse=True):
        text = text.replace(form, HIDDEN)
    return IN_ADDRESS.sub(f"{HIDDEN}@", FORM.sub(HIDDEN, text))


def _values() -> dict[str, str]:
    """Return the secret variables; a file that is there is only the place of a secret."""
    return {
        name: value
        for name, value in os.environ.items()
        if len(value) >= MIN_LENGTH and is_secret(name) and not os.path.exists(value)
    }


def refuse_secrets(value: Any, where: str = "") -> None:
    """Raise ValueError, which names the key and not the value, if a secret is in a config.

    Everything in a config is written to files that are shared: config.yaml and the report.
    """
    if isinstance(value, dict):
        for key, item in value.items():
            refuse_secrets(item, f"{where}.{key}" if where else str(key))
    elif isinstance(value, list):
        for number, item in enumerate(value):
            refuse_secrets(item, f"{where}.{number}")
    elif isinstance(value, str) and (kind := _secret_in(value)):
        raise ValueError(
            f"{where} holds {kind}, and a run writes its config to files: put the key into the "
            "environment or into .env, and only the variable's name into a recipe (api_key_env)"
        )


def _secret_in(text: str) -> str:
    """Return what a text holds that is secret; empty if it holds nothing."""
    for name, value in _values().items():
        # a short value may be a word that a longer text merely has, too
        if value in text if len(value) >= 2 * MIN_LENGTH else value == text:
            return f"the value of the environment variable {name}"
    return "the key of a service" if FORM.search(text) else ""
