"""A disk that fills up during a run: a warning before the next checkpoint, then one true line."""

from __future__ import annotations

import errno
import json
import os
import shutil
import subprocess
import time
from pathlib import Path
from typing import TextIO

import pytest
import tiny

from posttrain.common import disk, files
from posttrain.common.disk import BESIDES, RunDisk, update_text
from posttrain.model.folder import checkpoints_in
from posttrain.runs.config import parse_config
from posttrain.runs.train import train
from posttrain.tracking.tracker import Tracker
from posttrain.training import background
from posttrain.training.background import write_tensors


def open_full() -> TextIO:
    """Return a file on a full disk."""
    return Path("/dev/full").open("w")


@pytest.fixture
def free(monkeypatch):
    """A function that sets the free bytes of every disk."""
    usage = shutil.disk_usage("/")

    def set_free(num_bytes: int) -> None:
        fake = usage._replace(free=num_bytes)
        monkeypatch.setattr(disk.shutil, "disk_usage", lambda path: fake)

    monkeypatch.setattr(disk, "LOOK_EVERY", 0.0)
    return set_free


def test_a_warning_comes_once_each_time_the_room_is_lost(tmp_path, free):
    watched = RunDisk(tmp_path, checkpoint_bytes=1000)
    seen = []
    for num_bytes in (1000, 999, 999, 10, 1000, 1000, 0):
        free(BESIDES + num_bytes if num_bytes else 0)
        seen.append(watched.warning() is not None)
    assert seen == [False, True, False, False, False, False, True]


def test_a_checkpoint_larger_than_the_estimate_counts(tmp_path, free):
    free(BESIDES + 2_000)
    watched = RunDisk(tmp_path, checkpoint_bytes=1000)
    assert watched.warning() is None
    (tmp_path / "checkpoint-5" / "adapter").mkdir(parents=True)
    (tmp_path / "checkpoint-5" / "adapter" / "x").write_bytes(b"x" * 2_001)
    assert "the next checkpoint needs 8.4 MB" in str(watched.warning())


@pytest.mark.parametrize(
    ("error", "num_bytes", "words"),
    [
        (errno.ENOSPC, 100, "(the disk is full, with 0.0 MB free): free some space, then start"),
        (errno.ENOSPC, 10**9, "with 1.00 GB free: a quota, or the number of files, is used up): "),
        (errno.EDQUOT, 10**9, "with 1.00 GB free: a quota, or the number of files, is used up): "),
        (errno.EFBIG, 10**9, "x could not be written (File too large): mend that, then start"),
        (errno.EIO, 10**9, "x could not be written (Input/output error): mend that, then start"),
    ],
)
def test_why_a_file_could_not_be_written(error, num_bytes, words, tmp_path, free):
    free(num_bytes)
    (tmp_path / "checkpoint-x").touch()
    assert words in RunDisk(tmp_path).failure("x", OSError(error, os.strerror(error)))


def test_the_disk_is_looked_at_every_30_seconds(tmp_path, monkeypatch):
    looks: list[Path] = []
    usage = shutil.disk_usage(tmp_path)
    monkeypatch.setattr(disk.shutil, "disk_usage", lambda path: looks.append(path) or usage)
    moment = [100.0]
    monkeypatch.setattr(disk.time, "monotonic", lambda: moment[0])
    watched = RunDisk(tmp_path)
    for moment[0] in range(100, 200):
        watched.warning()
    assert len(looks) == 4


def test_a_run_warns_before_the_checkpoint_that_has_no_room(tmp_path, free, monkeypatch, capsys):
    step = Tracker.train

    def filling(self, number, metrics):
        if number == 3:
            free(10**6)
        step(self, number, metrics)

    monkeypatch.setattr(Tracker, "train", filling)
    tree = tiny.run_config(tmp_path, save_steps=2, max_steps=6)
    with pytest.raises(ValueError, match=r"has 1.0 MB free, a checkpoint .*resume from .*-2$"):
        train(parse_config(tree, "test"))
    text = " ".join(capsys.readouterr().out.split())
    assert text.count("warning, step 3:") == text.count("the next checkpoint needs") == 1
    (folder,) = tmp_path.glob("sft_*")
    assert [path.name for path in checkpoints_in(folder)] == ["checkpoint-2"]


@pytest.mark.parametrize("name", ["metrics", "samples"])
def test_a_file_that_the_disk_does_not_take_stops_the_run(name, tmp_path, monkeypatch):
    step = Tracker.train

    def filling(self, number, metrics):
        if number == 4:
            getattr(self, name).close()
            setattr(self, name, open_full())
            self.sample({"step": 4})
        step(self, number, metrics)

    def slowly(*args):
        time.sleep(0.5)
        return write_tensors(*args)

    monkeypatch.setattr(Tracker, "train", filling)
    monkeypatch.setattr(background, "write_tensors", slowly)  # still on its way at step 4
    tree = tiny.run_config(tmp_path, save_steps=2, max_steps=6)
    with pytest.raises(ValueError, match="could not be written") as stopped:
        train(parse_config(tree, "test"))
    (folder,) = tmp_path.glob("sft_*")
    text = str(stopped.value)
    assert text.startswith("/dev/full could not be written (the disk is full, with ")
    assert f"resume from checkpoint-2 with trainer.resume_from_checkpoint={folder}" in text
    info = json.loads((folder / "run.json").read_text())
    assert (info["state"], info["error"]) == ("failed", text)
    monkeypatch.setattr(Tracker, "train", step)
    tree["trainer"]["resume_from_checkpoint"] = str(folder)
    train(parse_config(tree, "test"))
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines if "loss" in line] == [1, 2, 3, 4, 5, 6]


def test_a_report_that_finds_no_room_leaves_a_finished_run(tmp_path, monkeypatch):
    def full(path):
        if "report.html" in str(path):
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        sync(path)

    sync = files.sync
    monkeypatch.setattr(files, "sync", full)
    with pytest.raises(ValueError, match=r"report.html could not be written \(the disk is full\)"):
        train(parse_config(tiny.run_config(tmp_path, max_steps=2), "test"))
    (folder,) = tmp_path.glob("sft_*")
    assert json.loads((folder / "run.json").read_text())["state"] == "finished"
    assert not list(folder.glob("*report.html"))


def test_samples_lost_at_the_end_are_reported(tmp_path, capsys):
    tracker = Tracker(tmp_path, 1, 1, [])
    tracker.samples.close()
    tracker.samples = open_full()
    tracker.sample({"step": 1})
    tracker.close("finished")
    assert "/dev/full lacks its last lines: the disk is full" in capsys.readouterr().out


def test_a_resumed_run_that_finds_no_room_leaves_its_files(tmp_path, monkeypatch):
    (tmp_path / "checkpoint-1").mkdir()
    text = "".join(f'{{"step": {s}}}\n' for s in range(3))
    (tmp_path / "metrics.jsonl").write_text(text)

    def full(path):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(files, "sync", full)
    with pytest.raises(ValueError, match=r"metrics.jsonl could not be .*resume from checkpoint-1"):
        Tracker(tmp_path, 3, 1, [], first_step=1)
    assert (tmp_path / "metrics.jsonl").read_text() == text
    names = {path.name for path in tmp_path.iterdir()}
    assert names == {"checkpoint-1", "metrics.jsonl", "samples.jsonl"}


@pytest.fixture
def small_disk(tmp_path):
    """A file system of 12 MiB."""
    folder = tmp_path / "small"
    folder.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=12m", "none", str(folder)]
    try:
        done = subprocess.run(mount, capture_output=True, check=False)
    except FileNotFoundError:
        pytest.skip("no mount command")
    if done.returncode != 0:
        pytest.skip("file systems can be mounted by root only")
    yield folder
    subprocess.run(["umount", "-l", str(folder)], check=True)


def fill(folder: Path) -> None:
    try:
        (folder / "fill").write_bytes(b"0" * 2**24)
    except OSError:
        assert shutil.disk_usage(folder).free == 0


def test_a_file_is_written_over_on_a_full_disk(small_disk):
    file = small_disk / "run.json"
    update_text(file, "a" * 3000)
    fill(small_disk)
    update_text(file, "b" * 2000)
    assert file.read_text() == "b" * 2000
    update_text(file, "c" * 9000)  # it has no room, and a part of it would be worth nothing
    assert file.read_text() == "b" * 2000
    update_text(small_disk / "other.json", "d")
    assert sorted(path.name for path in small_disk.iterdir()) == ["fill", "run.json"]


def test_a_disk_that_fills_up_during_a_run(small_disk, tmp_path, monkeypatch):
    step = Tracker.train

    def filling(self, number, metrics):
        if number == 4:
            fill(small_disk)
        step(self, number, metrics)

    monkeypatch.setattr(Tracker, "train", filling)
    tree = tiny.run_config(tmp_path, save_steps=2, max_steps=60, keep_checkpoints=1)
    tree["trainer"]["output_dir"] = str(small_disk)
    with pytest.raises(ValueError, match=r"(could not be written|has 0.0 MB free).*resume from"):
        train(parse_config(tree, "test"))
    (folder,) = small_disk.glob("sft_*")
    assert json.loads((folder / "run.json").read_text())["state"] == "failed"
    assert [path.name for path in folder.iterdir() if "checkpoint" in path.name] == ["checkpoint-2"]
    (small_disk / "fill").unlink()
    monkeypatch.setattr(Tracker, "train", step)
    tree["trainer"] |= {"resume_from_checkpoint": str(folder)}
    train(parse_config(tree, "test"))
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines if "loss" in line] == list(range(1, 61))
