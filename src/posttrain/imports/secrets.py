"""Secrets in a config: they are recognised by name or by form, and never written or printed."""

from __future__ import annotations

import re
from typing import Any

HIDDEN = "(not shown)"
NAME = re.compile(
    r"(?i)(?:^|[._-])(?:api_?key|secret|password|passwd|access_?key(?:_id)?|webhook_url|credentials)$"
    r"|(?:^|[._-])(?:hf|hub|huggingface(?:hub)?|wandb|access|auth|api|bearer|github|slack|login)"
    r"_?(?:api_?)?token$|^token$|_api_?key$|secret"
)
VALUE = re.compile(
    r"\bhf_[A-Za-z0-9]{16,}|\bsk-[A-Za-z0-9_-]{16,}|\bnvapi-[A-Za-z0-9_-]{16,}|\bgh[pousr]_\w{16,}"
    r"|\bAKIA[0-9A-Z]{12,}|\bxox[abprs]-[\w-]{10,}|\bglpat-[\w-]{16,}|\bwandb_v1_\w{16,}"
    r"|\beyJ[\w-]{16,}\.[\w-]+|(?<=://)[^/\s:@]+:[^/\s@]+(?=@)"
)
VARIABLES = {
    "wandb": "WANDB_API_KEY",
    "nvidia": "NVIDIA_API_KEY",
    "nvapi": "NVIDIA_API_KEY",
    "hf": "HF_TOKEN",
    "hub": "HF_TOKEN",
    "huggingface": "HF_TOKEN",
}


def variable_of(key: str, value: Any) -> str:
    """Return the environment variable for a secret; empty if the setting is none.

    A name alone decides, unless the value is empty, a number or a truth value."""
    texts = isinstance(value, str) and value.strip()
    by_name = texts and NAME.search(key) is not None
    if not by_name and not VALUE.search(str(value)):
        return ""
    text = f"{key} {value if isinstance(value, str) else ''}".lower()
    named = next((name for part, name in VARIABLES.items() if part in text), "")
    return named or re.sub(r"\W", "_", key.rpartition(".")[2]).upper()


def masked(value: Any) -> Any:
    """Return a value in which texts of a secret's form are replaced."""
    if isinstance(value, str):
        return VALUE.sub(HIDDEN, value)
    if isinstance(value, list):
        return [masked(item) for item in value]
    if isinstance(value, dict):
        return {key: masked(item) for key, item in value.items()}
    return value
