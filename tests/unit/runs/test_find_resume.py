"""Which folder a run gets, and which checkpoint one resumes from."""

from __future__ import annotations

import json
import os
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from posttrain.algorithms.language_modeling import SFTConfig
from posttrain.model.folder import CHECKPOINT_INFO
from posttrain.runs import resume
from posttrain.runs.resume import create_run_dir, find_resume


def checkpoint(folder: Path, **trainer: Any) -> Path:
    folder.mkdir(parents=True)
    info = {"config": {"trainer": {"type": "sft"} | trainer}}
    (folder / CHECKPOINT_INFO).write_text(json.dumps(info))
    return folder


def config(folder: Path, name: str | None = "demo", request: Any = "latest") -> SFTConfig:
    return SFTConfig(
        run_name=name, output_dir=str(folder), resume_from_checkpoint=request, max_steps=1
    )


def test_latest_is_the_newest_run_of_exactly_this_name(tmp_path: Path) -> None:
    checkpoint(tmp_path / "demo_20250101-101010" / "checkpoint-9", run_name="demo")
    newest = checkpoint(tmp_path / "demo_20250102-101010" / "checkpoint-4", run_name="demo")
    checkpoint(tmp_path / "demo_long_20250103-101010" / "checkpoint-5", run_name="demo_long")
    (tmp_path / "demo_20250104-101010").mkdir()  # stopped before its first checkpoint
    assert find_resume(config(tmp_path)) == newest
    assert find_resume(config(tmp_path, request=True)) == newest


def test_a_name_whose_only_runs_belong_to_a_longer_name_has_none(tmp_path: Path) -> None:
    checkpoint(tmp_path / "demo_long_20250103-101010" / "checkpoint-5", run_name="demo_long")
    with pytest.raises(ValueError, match=r"holds no run demo_\* with a checkpoint"):
        find_resume(config(tmp_path))


@pytest.mark.parametrize(
    "other", ["sft_b", "sft_20250109-101010", "sft_c_20250101-000000", "sftb", "sft_2", "sf"]
)
def test_what_a_run_is_called_is_read_from_its_checkpoint(tmp_path: Path, other: str) -> None:
    """No name of another run, whatever it looks like, is taken for one of this name."""
    own = checkpoint(tmp_path / "sft_20250101-101010" / "checkpoint-1")  # named by its method
    checkpoint(tmp_path / f"{other}_20250109-101010" / "checkpoint-1", run_name=other)
    assert find_resume(config(tmp_path, None)) == own
    assert find_resume(config(tmp_path, "sft")) == own
    assert find_resume(config(tmp_path, other)).parent.name.startswith(f"{other}_2025")


def test_the_second_run_of_a_second_is_newer_and_a_copy_is_older(tmp_path: Path) -> None:
    for name in ("demo_20250101-101010", "demo_20250101-101010-2", "demo_20250101-101010-10"):
        newest = checkpoint(tmp_path / name / "checkpoint-1", run_name="demo")
    checkpoint(tmp_path / "my best run" / "checkpoint-1", run_name="demo")
    assert find_resume(config(tmp_path)) == newest


def test_a_folder_that_only_looks_like_a_checkpoint_is_none(tmp_path: Path) -> None:
    own = checkpoint(tmp_path / "demo_20250101-101010" / "checkpoint-3", run_name="demo")
    checkpoint(own.parent / "checkpoint-best", run_name="demo")
    assert find_resume(config(tmp_path)) == own


def test_runs_that_begin_in_one_second_get_folders_of_their_own(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    moment = resume.datetime.now()

    class Stopped(resume.datetime):
        @classmethod
        def now(cls, tz: Any = None) -> Any:
            return moment

    monkeypatch.setattr(resume, "datetime", Stopped)
    with ThreadPoolExecutor(8) as pool:
        folders = list(pool.map(lambda _: create_run_dir(config(tmp_path)), range(16)))
    assert len(set(folders)) == 16
    assert {folder.parent for folder in folders} == {tmp_path}
    assert all(os.listdir(folder) == [] for folder in folders)


def test_a_file_in_place_of_the_output_folder_is_an_error(tmp_path: Path) -> None:
    (tmp_path / "out").write_text("")
    with pytest.raises(ValueError, match=r"trainer\.output_dir: .*out.* cannot be made"):
        create_run_dir(config(tmp_path / "out"))
