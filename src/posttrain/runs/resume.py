"""The checkpoint that a run resumes from, and the check that it is the same run."""

from __future__ import annotations

import logging
import re
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import datetime
from importlib.metadata import version
from pathlib import Path
from typing import Any

from posttrain.algorithms.config import TrainerConfig
from posttrain.common import distributed
from posttrain.common.disk import check_writable
from posttrain.common.errors import SettingError
from posttrain.common.files import sha256
from posttrain.common.lock import LOCK, writing
from posttrain.config.base import Free, keys, marked
from posttrain.model.folder import CHECKPOINT_INFO, checkpoints_in, read_info
from posttrain.runs.config import Config, dump

log = logging.getLogger(__name__)

STAMP = re.compile(r"_(\d{8}-\d{6})(?:-(\d+))?$")
"""Date and time at the end of a run directory's name; `-2` for the second run of one second."""


def run_name(config: TrainerConfig) -> str:
    """Return the first part of the run directory's name, in front of the date and time."""
    return config.run_name or config.type


def create_run_dir(config: TrainerConfig) -> Path:
    """Create and return the directory of a new run, which no other run has, at the same time too.

    Jobs that begin in the same second get different names: the later one ends in -2.
    """
    stamp = datetime.now().strftime("%Y%m%d-%H%M%S")
    first = Path(config.output_dir) / f"{run_name(config)}_{stamp}"
    number = 1
    while True:
        run_dir = first if number == 1 else first.with_name(f"{first.name}-{number}")
        try:
            run_dir.mkdir(parents=True)
            return run_dir
        except FileExistsError:
            if not run_dir.is_dir():
                raise
            number += 1
        except OSError as error:
            reason = error.strerror or str(error)
            raise ValueError(f"trainer.output_dir: {run_dir} cannot be made: {reason}") from None


@contextmanager
def guarding(run_dir: Path) -> Iterator[None]:
    """Lock a run directory; remove it if an error leaves it empty, name it if it disappeared."""
    if distributed.rank() != 0:
        yield
        return
    run_dir.mkdir(parents=True, exist_ok=True)
    with writing(run_dir):
        try:
            yield
        except Exception as error:
            if isinstance(error, OSError) and not run_dir.is_dir():
                raise ValueError(
                    f"{run_dir} was moved or deleted while the run was writing to it"
                ) from error
            if run_dir.is_dir() and [file.name for file in run_dir.iterdir()] == [LOCK]:
                shutil.rmtree(run_dir)
            raise


def runs_named(name: str, output_dir: Path) -> list[Path]:
    """Return the runs of exactly this name that have a checkpoint, oldest first.

    The name is read from the config in the newest checkpoint, since run_name sft_b too begins with
    sft_. A folder that was renamed, such as a copy, counts as older than those with their time.
    """
    found = []
    for folder in output_dir.iterdir() if output_dir.is_dir() else []:
        if not (folder.is_dir() and (checkpoints := checkpoints_in(folder))):
            continue
        trainer = read_info(checkpoints[-1]).get("config", {}).get("trainer", {})
        if name == (trainer.get("run_name") or trainer.get("type")):
            stamp = STAMP.search(folder.name)
            began = (stamp[1], int(stamp[2] or 1)) if stamp else ("", 0)
            found.append((began, folder))
    return [folder for _, folder in sorted(found)]


def resuming(config: Config) -> Config:
    """Return the config set to resume its newest run; a new run if it has none with a checkpoint.

    Runs of this name with another config are passed over. Raise ValueError if there are only those.
    """
    trainer = config.trainer
    changed: list[str] = []
    for run in reversed(runs_named(run_name(trainer), Path(trainer.output_dir))):
        newest = checkpoints_in(run)[-1]
        before = with_one_adapter(read_info(newest).get("config", {}))
        # what the recipe leaves open, the run has set by its device, its data or its model
        changed = [
            line
            for line in differences(before, dump(config), free_keys())
            if not line.endswith(", now None")
        ]
        if not changed:
            update = {"resume_from_checkpoint": str(newest)}
            return config.model_copy(update={"trainer": trainer.model_copy(update=update)})
    if changed:
        raise SettingError(
            "resume",
            f"{trainer.output_dir} holds runs named {run_name(trainer)}, all with another config; "
            f"of the oldest, {changed[0]}: start a new run, or name the one to continue in "
            "trainer.resume_from_checkpoint",
        )
    return config


def find_resume(config: TrainerConfig) -> Path | None:
    """Return the checkpoint that `resume_from_checkpoint` names; None if it is not set.

    `latest` is the newest run of this name. Raises ValueError if there is no such checkpoint.
    """
    name = run_name(config)
    request, output_dir = config.resume_from_checkpoint, Path(config.output_dir)
    check_writable(output_dir, "trainer.output_dir")
    if request is None:
        return None
    if request == "latest":
        runs = runs_named(name, output_dir)
        if not runs:
            raise ValueError(
                f"trainer.resume_from_checkpoint is latest, but {output_dir} holds no run "
                f"{name}_* with a checkpoint: it was killed before the first, which "
                "trainer.save_steps decides, or had another run_name"
            )
        return checkpoints_in(runs[-1])[-1]
    path = Path(request)
    if (path / CHECKPOINT_INFO).is_file():
        return path
    if path.is_dir() and checkpoints_in(path):
        return checkpoints_in(path)[-1]
    raise ValueError(
        f"trainer.resume_from_checkpoint: {request} is not a checkpoint, nor a run that has one; "
        "latest is the newest run"
    )


def check_resume(path: Path, config: Config, data_hash: str, start: list[str]) -> None:
    """Raise ValueError if the files, config, data or start weights are not the checkpoint's."""
    info = read_info(path)
    if lost := [key for key in ("files", "config", "versions", "data_hash") if key not in info]:
        raise ValueError(f"{path / CHECKPOINT_INFO} is damaged: it has no {lost[0]}")
    for name, expected in info["files"].items():
        file = path / name
        if not file.is_file() or sha256(file) != expected:
            raise ValueError(f"{path} is damaged: {name} is not the file that was saved")
    before, now = with_one_adapter(info["config"]), dump(config)
    if info["versions"]["posttrain"] != version("posttrain"):
        before, new = with_new_keys(before, now)
        if new:
            log.warning("the version that saved the checkpoint did not have %s", ", ".join(new))
    changed = differences(before, now, free_keys())
    if changed:
        raise ValueError(f"cannot resume from {path}: the config changed: {'; '.join(changed)}")
    if info["data_hash"] != data_hash:
        raise ValueError(f"cannot resume from {path}: the data changed since it was saved")
    before = info.get("start", start)  # older versions did not save it
    changed = [key for key, old, new in zip(("model", "reference"), before, start) if old != new]
    if changed:
        raise ValueError(
            f"cannot resume from {path}: the weights of {changed[0]}.name changed since the run "
            "began: put the old ones back"
        )


def with_one_adapter(config: dict[str, Any]) -> dict[str, Any]:
    """Return a checkpoint's config with model.adapter, for which version 0.1 had two keys."""
    model = dict(config.get("model", {}))
    if "adapter" in model:
        return config
    use, lora = model.pop("use_lora", False), model.pop("lora", {})
    model["adapter"] = {"type": "lora", **lora} if use else {"type": "none"}
    return config | {"model": model}


def with_new_keys(
    before: dict[str, Any], now: dict[str, Any], where: str = ""
) -> tuple[dict[str, Any], list[str]]:
    """Return `before` with the keys of `now` that it lacks, and the names of these keys."""
    whole, new = dict(before), []
    for key, value in now.items():
        name = f"{where}.{key}" if where else str(key)
        if key not in before:
            whole[key] = value
            new.append(name)
        elif isinstance(before[key], dict) and isinstance(value, dict):
            whole[key], inner = with_new_keys(before[key], value, name)
            new += inner
    return whole, new


def free_keys() -> set[str]:
    """Return the paths of the keys that may change when a run is resumed."""
    return {key.path for key in keys(Config) if marked(key, Free)}


def differences(before: Any, now: Any, free: set[str], where: str = "") -> list[str]:
    """Return the differences between two resolved configs in words, except in `free` keys."""
    if where in free:
        return []
    if isinstance(before, dict) and isinstance(now, dict):
        names = [*before, *(k for k in now if k not in before)]
        return [
            line
            for name in names
            for line in differences(
                before.get(name), now.get(name), free, f"{where}.{name}" if where else str(name)
            )
        ]
    return [] if before == now else [f"{where} was {before!r}, now {now!r}"]
