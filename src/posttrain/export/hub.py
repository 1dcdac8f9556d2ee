"""Uploading to the Hugging Face hub: the token comes from the environment and is shown nowhere."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

from posttrain.common.errors import SettingError

TOKENS = ("HF_TOKEN", "HUGGING_FACE_HUB_TOKEN")


def check_repo(repo: str) -> None:
    """Raise SettingError unless a text is a name on the hub: NAME or OWNER/NAME."""
    from huggingface_hub.errors import HFValidationError
    from huggingface_hub.utils._validators import validate_repo_id

    try:
        validate_repo_id(repo)
    except HFValidationError as error:
        raise SettingError("repo", " ".join(str(error).split())) from None


def token() -> str:
    """Return the hub's token from the environment; raise ValueError if there is none."""
    for name in TOKENS:
        if value := os.environ.get(name, "").strip():
            return value
    raise ValueError(
        f"uploading needs a token of the hub with write access in the "
        f"environment variable {TOKENS[0]}, or in .env"
    )


def upload(folder: Path, repo: str, public: bool, api: Any = None) -> str:
    """Create the repository if it is new, upload a folder in one commit, and return its address.

    Raises SettingError if an existing repository is public and `public` is not given, or the
    reverse, and ValueError with the hub's own reason if it refuses or cannot be reached."""
    import huggingface_hub

    secret = token()
    api = huggingface_hub.HfApi(token=secret) if api is None else api
    private = _asked(lambda: _is_private(api, repo, public), repo, secret)
    if private == public:
        problem = (
            "private: make it public on the hub"
            if private
            else "public: set public, or name another"
        )
        raise SettingError("public", f"{repo} exists and is {problem}")
    result = _asked(
        lambda: api.upload_folder(
            repo_id=repo, folder_path=str(folder), commit_message="Upload by posttrain"
        ),
        repo,
        secret,
    )
    return str(getattr(result, "repo_url", None) or f"https://huggingface.co/{repo}")


def _is_private(api: Any, repo: str, public: bool) -> bool:
    """Return whether a repository is private, after creating it if it is new."""
    from huggingface_hub.errors import RepositoryNotFoundError

    try:
        return bool(api.repo_info(repo, repo_type="model").private)
    except RepositoryNotFoundError:
        api.create_repo(repo, private=not public, repo_type="model")
        return not public


def _asked(call: Callable[[], Any], repo: str, secret: str) -> Any:
    """Return what a call of the hub returns; raise ValueError with its reason in one line."""
    try:
        return call()
    except Exception as error:  # httpx2's, Xet's and the hub's own have no nearer base in common
        reason = " ".join(str(error).replace(secret, "***").split())[:200]
        raise ValueError(f"the hub did not take {repo}: {reason or type(error).__name__}") from None
