"""All trackers of a run that is killed ten times show what those of an undisturbed run show."""

from __future__ import annotations

import json
import random
import sys
import time
from pathlib import Path

import pytest
import tiny
import tracker_stores
import yaml
from killing import kill_groups, killed_when
from test_resume import metrics
from test_trackers import complete, installed

from posttrain.model.folder import checkpoints_in
from posttrain.runs.config import parse_config
from posttrain.runs.train import train

KILLS = 10


def newest(folder: Path) -> str | None:
    found = [p for run in folder.glob("*") for p in checkpoints_in(run)]
    return found[-1].name if found else None


@pytest.mark.slow
def test_ten_times_at_random_steps(tmp_path: Path) -> None:
    names = [name for name in tracker_stores.READERS if installed(name)]
    keys = {"save_steps": 2, "max_steps": 90, "keep_checkpoints": 2, "eval_steps": 5}
    (tmp_path / "whole").mkdir()
    (parts_dir := tmp_path / "parts").mkdir()
    tree = tiny.run_config(tmp_path / "whole", "sft", **keys)
    tree["eval"] = {"split": 0.2, "max_samples": 8}
    whole = train(parse_config(tree, "whole"))
    tree["trainer"] |= {"output_dir": str(parts_dir), "logger": names}
    tree["tracking"] = {"mode": "offline"}
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text(yaml.safe_dump(tree))
    command = [sys.executable, "-m", "posttrain", "train", str(recipe)]
    chance = random.Random(time.time_ns())
    for kill in range(KILLS):
        before = newest(parts_dir)
        resume = ["trainer.resume_from_checkpoint=latest"] if before else []
        new = killed_when([*command, *resume], lambda old=before: newest(parts_dir) != old)
        with new as pid:
            time.sleep(chance.random() * 0.1)
            followers = children_of(pid)
            assert len(followers) == len(names)
        if kill % 2:
            kill_groups(followers)
    output = complete(tmp_path, [*command, "trainer.resume_from_checkpoint=latest"])
    assert "warning" not in output
    (parts,) = parts_dir.iterdir()
    assert metrics(whole) == metrics(parts)
    for name in names:
        assert tracker_stores.READERS[name](parts) == tracker_stores.expected(parts, name), name
    steps = [json.loads(x)["step"] for x in (parts / "metrics.jsonl").read_text().splitlines()]
    assert sorted(set(steps)) == list(range(1, 91))


def children_of(pid: int) -> list[int]:
    return [int(x) for x in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]
