"""Where an export goes: a new folder that appears whole, or not at all."""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from posttrain.common.disk import write_failure
from posttrain.common.errors import SettingError
from posttrain.common.files import sync


def check_new(target: Path) -> None:
    """Raise SettingError if a target exists already, or cannot be made."""
    if os.path.lexists(target):
        raise SettingError("output", f"{target} exists already: name a folder that does not")
    if target.suffix.lower() in (".gguf", ".safetensors"):
        raise SettingError(
            "output", f"{target}: name a folder; it gets the model's files and its README.md"
        )
    place = next((p for p in target.absolute().parents if p.exists()), Path("/"))
    if not place.is_dir():
        raise SettingError("output", f"{place} is a file, not a folder")
    if not os.access(place, os.W_OK | os.X_OK):
        raise SettingError("output", f"{place} cannot be written to")


@contextmanager
def new_folder(target: Path) -> Iterator[Path]:
    """Yield an empty folder beside `target`, which gets its name when the block ends well.

    Raises SettingError if the target exists, at the end too, and ValueError if the disk takes no
    more. Nothing is left after an error.
    """
    check_new(target)
    target = target.parent.resolve() / target.name
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        temporary = Path(
            tempfile.mkdtemp(prefix=f".writing-{target.name[:80]}-", dir=target.parent)
        )
    except OSError as error:
        raise SettingError("output", f"{target} cannot be made: {error.strerror}") from None
    try:
        yield temporary
        temporary.chmod(0o755)
        for path in (*temporary.rglob("*"), temporary):
            sync(path)
        check_new(target)
        os.rename(temporary, target)
    except Exception as error:
        shutil.rmtree(temporary, ignore_errors=True)
        if (reason := write_failure(error)) is None:
            raise
        raise ValueError(
            f"{target} could not be written ({reason}); nothing is left of it: mend that, or "
            "name another folder"
        ) from error
    except BaseException:
        shutil.rmtree(temporary, ignore_errors=True)
        raise
    sync(target.parent)
