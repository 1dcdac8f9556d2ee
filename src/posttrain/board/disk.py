"""What a run takes on the disk, and the deletion of runs and checkpoints."""

from __future__ import annotations

import re
import secrets
import shutil
from typing import Any

from posttrain.board.catalogue import Catalogue
from posttrain.common.lock import LOCK, is_written, writing
from posttrain.runs.listing import folder_bytes

CHECKPOINT = re.compile(r"checkpoint-\d+")


def usage(catalogue: Catalogue, run: str | None) -> dict[str, Any]:
    """Return the bytes of a run's parts, or of all runs, and those that are free."""
    folder = catalogue.root if run is None else catalogue.folder(run)
    free = shutil.disk_usage(folder).free
    if run is None:
        return {"free": free, "total": catalogue.total_bytes()}
    problem = obstacle(catalogue, run)
    parts = []
    for part in sorted(folder.iterdir()):
        try:
            num_bytes = folder_bytes(part) if part.is_dir() else part.lstat().st_size
        except OSError:
            continue  # removed while a run saves its next checkpoint
        checkpoint = CHECKPOINT.fullmatch(part.name) is not None and part.is_dir()
        kind = "checkpoint" if checkpoint else "folder" if part.is_dir() else "file"
        parts.append(
            {
                "name": part.name,
                "kind": kind,
                "bytes": num_bytes,
                "deletable": checkpoint and problem is None and not part.is_symlink(),
                "used_by": catalogue.users_of(part) if checkpoint else [],
            }
        )
    return {
        "free": free,
        "parts": parts,
        "deletable": problem is None,
        "why_not": problem,
        "used_by": catalogue.users_of(folder),
    }


def obstacle(catalogue: Catalogue, run: str) -> str | None:
    """Return why a run cannot be deleted, or None."""
    folder = catalogue.folder(run)
    if run == ".":
        return "the board was opened on this run alone: open it on the folder above"
    if folder.is_symlink() or not folder.resolve().is_relative_to(catalogue.root.resolve()):
        return "the folder is a link to another place"
    if is_written(folder):
        return "the run is being written to"
    inner = next((file.parent for file in folder.rglob(LOCK) if is_written(file.parent)), None)
    return None if inner is None else f"{inner.relative_to(folder)} in it is being written to"


def delete(catalogue: Catalogue, run: str, part: str | None) -> int:
    """Delete a run, or one of its checkpoints, and return the bytes that this frees.

    What is deleted disappears under its name at once. Raise ValueError if it cannot be deleted.
    """
    folder = catalogue.folder(run)
    if (problem := obstacle(catalogue, run)) is not None:
        raise ValueError(f"{run}: {problem}")
    target = folder if part is None else folder / part
    if part is not None and (not CHECKPOINT.fullmatch(part) or target.is_symlink()):
        raise ValueError(f"{part} is no checkpoint of {run}")
    if not target.is_dir():
        raise ValueError(f"{target} does not exist")
    freed = folder_bytes(target)
    with writing(folder):  # no run can be resumed in it meanwhile
        gone = target.with_name(f".deleted-{secrets.token_hex(4)}")
        target.rename(gone)
        catalogue.scanned_at, catalogue.complete = 0.0, False
        try:
            shutil.rmtree(gone)
        except OSError as error:
            raise ValueError(
                f"{gone} holds what could not be deleted: remove it by hand ({error})"
            ) from None
    return freed
