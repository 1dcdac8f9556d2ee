"""A checkpoint on its way to the disk: what ends it, and what is left then."""

from __future__ import annotations

import json
import os
import shutil
import signal
import sys
import threading
from pathlib import Path
from typing import Any

import pytest
import tiny
import torch
import yaml
from killing import killed_when
from rank_calls import on_ranks
from trainer_states import trainer_tensors

from posttrain.common import distributed
from posttrain.model.folder import CHECKPOINT_INFO, checkpoints_in
from posttrain.runs.config import parse_config
from posttrain.runs.train import train
from posttrain.training import background, trainer_state
from posttrain.training.checkpoint import Checkpoints
from posttrain.training.trainer_state import STATE

CONFIG = {"distributed": {"timeout": 5.0}}


class Tokenizer:
    """A tokenizer without files."""

    pad_token_id = 0

    def save_pretrained(self, folder: Path) -> None:
        """Write nothing."""


def trainer_of() -> Any:
    models = tiny.models()
    models.tokenizer = Tokenizer()
    trainer = tiny.trainer_of("sft", models)
    trainer.source = type("Source", (), {"state_dict": lambda self: {}})()
    for parameter in models.trainable().values():
        parameter.grad = torch.ones_like(parameter)
    trainer.optimizer.step()
    trainer.step = 1
    return trainer


def test_training_goes_on_while_a_checkpoint_is_written(tmp_path, monkeypatch):
    """What is saved are the weights and moments of the step, not those of later ones."""
    may_write, write = threading.Event(), background.write_tensors

    def late(*args: Any) -> str:
        assert may_write.wait(30)
        return write(*args)

    monkeypatch.setattr(background, "write_tensors", late)
    trainer, checkpoints = trainer_of(), Checkpoints(tmp_path, 2, CONFIG, "")
    weights = {n: p.detach().clone() for n, p in trainer.models.trainable().items()}
    moments = {n: x.clone() for n, x in trainer_state.tensors_of(trainer).items()}
    checkpoints.save(trainer)
    checkpoints.save(trainer)  # of the same step: nothing to do
    assert not checkpoints_in(tmp_path)
    trainer.optimizer.step()
    may_write.set()
    checkpoints.wait()
    (saved,) = checkpoints_in(tmp_path)
    found = trainer_tensors(saved)
    assert found.keys() == moments.keys()
    assert all(torch.equal(found[n], moments[n]) for n in moments)
    other = trainer_of()
    from posttrain.model.save import restore_weights

    restore_weights(other.models, saved)
    assert all(torch.equal(p, weights[n]) for n, p in other.models.trainable().items())


def test_a_fault_of_the_thread_is_not_lost(tmp_path, monkeypatch):
    """Even one without a word."""

    def faulty(*args: Any) -> str:
        raise AssertionError

    monkeypatch.setattr(background, "write_tensors", faulty)
    trainer, checkpoints = trainer_of(), Checkpoints(tmp_path, 2, CONFIG, "")
    checkpoints.save(trainer)
    with pytest.raises(AssertionError):
        checkpoints.wait()
    assert not list(tmp_path.iterdir())


def test_without_room_for_a_copy_training_waits(tmp_path, monkeypatch, caplog):
    monkeypatch.setattr("posttrain.training.staging.free_memory", lambda device: 1000)
    trainer, checkpoints = trainer_of(), Checkpoints(tmp_path, 2, CONFIG, "")
    checkpoints.save(trainer)
    assert checkpoints.writing is None
    assert checkpoints_in(tmp_path)
    assert "is written while training waits: a copy of its tensors takes 0." in caplog.text


def failing_rank(folder: Path, failed: int) -> None:
    write = background.write_tensors

    def fail(*args: Any) -> str:
        if distributed.rank() == failed:
            raise OSError(28, "No space left on device")
        return write(*args)

    background.write_tensors = fail
    trainer, checkpoints = trainer_of(), Checkpoints(folder, 2, CONFIG, "")
    # small files, so that each rank has some
    from posttrain.model import save

    save.FILE_BYTES = 4000
    checkpoints.save(trainer)
    with pytest.raises(ValueError, match=r"checkpoint-1 could not be written \(the disk is full"):
        checkpoints.wait()
    assert not list(folder.iterdir())


@pytest.mark.parametrize("failed", [pytest.param(0, marks=pytest.mark.slow), 1])
def test_a_rank_that_cannot_write_ends_the_run_on_all(failed, tmp_path):
    (tmp_path / "run").mkdir()
    on_ranks(2, tmp_path / "ranks", failing_rank, tmp_path / "run", failed)


def silent_rank(folder: Path) -> None:
    if distributed.rank() == 1:
        background.Writing.start = lambda self: None  # its thread died without a word
        background.Writing.join = lambda self, limit=None: None
    trainer, checkpoints = trainer_of(), Checkpoints(folder, 2, {"distributed": {"timeout": 1}}, "")
    checkpoints.save(trainer)
    with pytest.raises(ValueError, match="rank 1 has not written its part for 1 s"):
        checkpoints.wait()
    assert not list(folder.iterdir())


def test_a_rank_that_writes_nothing_is_named(tmp_path):
    (tmp_path / "run").mkdir()
    on_ranks(2, tmp_path / "ranks", silent_rank, tmp_path / "run")


def ending(checkpoints: Checkpoints, trainer: Any, error: BaseException) -> None:
    with checkpoints.settling():
        checkpoints.save(trainer)
        raise error


def test_an_interrupt_abandons_what_is_not_written(tmp_path, monkeypatch):
    """Ctrl-C a second time ends at once; the checkpoint before stays, and nothing else."""
    trainer, checkpoints = trainer_of(), Checkpoints(tmp_path, 2, CONFIG, "")
    checkpoints.save(trainer)
    checkpoints.wait()
    check = background.Writing._check

    def slow(self: background.Writing) -> None:
        self.stop.wait(30)
        check(self)

    monkeypatch.setattr(background.Writing, "_check", slow)
    trainer.step = 2
    with pytest.raises(KeyboardInterrupt):
        ending(checkpoints, trainer, KeyboardInterrupt())
    assert [path.name for path in tmp_path.iterdir()] == ["checkpoint-1"]


def test_an_error_waits_for_the_checkpoint_on_its_way(tmp_path):
    trainer, checkpoints = trainer_of(), Checkpoints(tmp_path, 2, CONFIG, "")
    with pytest.raises(ValueError, match="of the run"):
        ending(checkpoints, trainer, ValueError("of the run"))
    assert [path.name for path in checkpoints_in(tmp_path)] == ["checkpoint-1"]


@pytest.mark.slow
def test_a_kill_while_a_checkpoint_is_written_leaves_the_one_before(tmp_path):
    """SIGKILL between any two of its files: what has the name of a checkpoint is whole."""
    tree = tiny.run_config(tmp_path, save_steps=1, max_steps=40, keep_checkpoints=2)
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text(yaml.safe_dump(tree))
    command = [sys.executable, "-m", "posttrain", "train", str(recipe)]

    def half_written() -> bool:
        folders = [p for p in tmp_path.glob("sft_*/.writing-checkpoint-*") if p.is_dir()]
        return any(len(list(p.rglob("*.safetensors"))) == 1 for p in folders if step(p) > 2)

    def step(folder: Path) -> int:
        return int(folder.name.rpartition("-")[2])

    with killed_when(command, half_written) as pid:
        os.kill(pid, signal.SIGKILL)
    (run,) = tmp_path.glob("sft_*")
    saved = checkpoints_in(run)
    assert saved
    for checkpoint in saved:
        files = json.loads((checkpoint / CHECKPOINT_INFO).read_text())["files"]
        assert all((checkpoint / name).is_file() for name in files)
    tree["trainer"] |= {"resume_from_checkpoint": str(run), "max_steps": 40}
    assert checkpoints_in(train(parse_config(tree, "test")))[-1].name == "checkpoint-40"
    assert not list(run.glob(".writing-*"))


def test_a_checkpoint_of_an_older_version_is_resumed(tmp_path, monkeypatch):
    """Whole tensors in trainer_state.pt: the moments, and a reference that moves."""
    tree = tiny.run_config(tmp_path, "dpo", save_steps=2, max_steps=4)
    tree["reference"] = {"sync_steps": 1, "sync_alpha": 0.5}
    run = train(parse_config(tree, "test"))
    expected = trainer_tensors(run / "checkpoint-4")
    old = run / "checkpoint-2"
    state = torch.load(old / STATE, weights_only=True) | {"optimizer": {}, "reference": {}}
    for name, tensor in trainer_tensors(old).items():
        kind, _, rest = name.partition("/")
        if kind == "reference":
            state["reference"][rest] = tensor
        else:
            parameter, _, key = rest.rpartition("/")
            state["optimizer"].setdefault(parameter, {})[key] = tensor
    torch.save(state, old / STATE)
    shutil.rmtree(old / "trainer_state")
    shutil.rmtree(run / "checkpoint-4")
    info = json.loads((old / CHECKPOINT_INFO).read_text())
    info["files"] = {n: h for n, h in info["files"].items() if not n.startswith("trainer_state")}
    (old / CHECKPOINT_INFO).write_text(json.dumps(info))
    tree["trainer"]["resume_from_checkpoint"] = str(old)
    train(parse_config(tree, "test"))
    found = trainer_tensors(run / "checkpoint-4")
    assert found.keys() == expected.keys()
    assert all(torch.equal(found[name], expected[name]) for name in expected)


def test_a_part_that_is_missing_is_named(tmp_path):
    trainer, checkpoints = trainer_of(), Checkpoints(tmp_path, 2, CONFIG, "")
    checkpoints.save(trainer)
    checkpoints.wait()
    index = tmp_path / "checkpoint-1" / "trainer_state" / "index.json"
    content = json.loads(index.read_text())
    name = "optimizer/model.model.norm.weight/exp_avg"
    (part,) = content[name].values()
    part["shape"] = [part["shape"][0] - 3]
    part["offset"] = [3]
    index.write_text(json.dumps(content))
    with pytest.raises(ValueError, match=r"lacks 3 numbers of optimizer/model\.model\.norm"):
        trainer_state.restore(trainer_of(), tmp_path / "checkpoint-1")
