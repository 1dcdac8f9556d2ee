"""Which checkpoint a run resumes from."""

from __future__ import annotations

from pathlib import Path

import pytest

from posttrain.algorithms.language_modeling import SFTConfig
from posttrain.model.folder import CHECKPOINT_INFO
from posttrain.runs.resume import find_resume


def checkpoint(folder: Path) -> Path:
    folder.mkdir(parents=True)
    (folder / CHECKPOINT_INFO).write_text("{}")
    return folder


def test_latest_is_the_newest_run_of_exactly_this_name(tmp_path: Path) -> None:
    checkpoint(tmp_path / "demo_20250101-101010" / "checkpoint-9")
    newest = checkpoint(tmp_path / "demo_20250102-101010" / "checkpoint-4")
    checkpoint(tmp_path / "demo_long_20250103-101010" / "checkpoint-5")
    (tmp_path / "demo_20250104-101010").mkdir()  # stopped before its first checkpoint
    config = SFTConfig(
        run_name="demo", output_dir=str(tmp_path), resume_from_checkpoint="latest", max_steps=1
    )
    assert find_resume(config) == newest


def test_a_name_whose_only_runs_belong_to_a_longer_name_has_none(tmp_path: Path) -> None:
    checkpoint(tmp_path / "demo_long_20250103-101010" / "checkpoint-5")
    config = SFTConfig(
        run_name="demo", output_dir=str(tmp_path), resume_from_checkpoint="latest", max_steps=1
    )
    with pytest.raises(ValueError, match=r"holds no run demo_\* with a checkpoint"):
        find_resume(config)
