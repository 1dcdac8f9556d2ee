"""Uploading to the Hugging Face hub: the token comes from the environment and is shown nowhere."""

from __future__ import annotations

import os
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
    raise ValueError(f"uploading needs a token of the hub with write access in {TOKENS[0]}")


def upload(folder: Path, repo: str, public: bool, api: Any = None) -> str:
    """Create the repository if it is new, upload a folder in one commit, and return its address.

    Raises ValueError if an existing repository is public and `public` is not given, and with the
    hub's own reason if it refuses."""
    import huggingface_hub
    from huggingface_hub.errors import HfHubHTTPError, OfflineModeIsEnabled, RepositoryNotFoundError

    secret = token()
    api = huggingface_hub.HfApi(token=secret) if api is None else api
    try:
        try:
            private = api.repo_info(repo, repo_type="model").private
            if not private and not public:
                raise SettingError(
                    "public", f"{repo} exists and is public, which was not asked for"
                )
        except RepositoryNotFoundError:
            api.create_repo(repo, private=not public, repo_type="model")
        result = api.upload_folder(
            repo_id=repo, folder_path=str(folder), commit_message="Upload by posttrain"
        )
    except (HfHubHTTPError, OfflineModeIsEnabled, OSError) as error:
        reason = " ".join(str(error).replace(secret, "***").split())[:200]
        raise ValueError(f"the hub did not take {repo}: {reason}") from None
    return str(getattr(result, "repo_url", None) or f"https://huggingface.co/{repo}")
