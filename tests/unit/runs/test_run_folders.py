"""Run folders, disks, rewards and metrics that fail: one line, early, and nothing left behind."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from command import Capture, complaint, recipe
from damage import save_model_folder
from safetensors import SafetensorError

from posttrain.cli.main import of_the_machine
from posttrain.common.disk import check_writable
from posttrain.model.folder import CHECKPOINT_INFO, checkpoints_in
from posttrain.rewards.base import RewardFailure
from posttrain.rewards.custom import Custom, build
from posttrain.rewards.scoring import score
from posttrain.runs import train as train_module
from posttrain.runs.config import load_config
from posttrain.runs.train import train

FULL = "Error while serializing: I/O error: No space left on device (os error 28)"


def trainer(folder: Path, **keys: Any) -> dict[str, Any]:
    own = {"type": "sft", "max_steps": 2, "batch_size": 4, "logger": []}
    return own | {"output_dir": str(folder / "out")} | keys


def test_a_folder_that_cannot_be_written_is_found_by_a_dry_run(
    tmp_path: Path, capsys: Capture
) -> None:
    (tmp_path / "file").write_text("")
    (tmp_path / "link").symlink_to(tmp_path / "nowhere")
    file = recipe(tmp_path, trainer=trainer(tmp_path))
    for place, problem in (("file", "is a file, not a folder"), ("file/x", "is a file, not a"),
                           ("link", "which does not exist")):  # fmt: skip
        said = complaint(
            capsys, "train", file, f"trainer.output_dir={tmp_path / place}", "--dry-run"
        )
        assert "trainer.output_dir: " in said
        assert problem in said
    check_writable(tmp_path / "new" / "folder", "trainer.output_dir")


def test_no_empty_folder_stays_if_a_run_fails_before_its_first_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = load_config(recipe(tmp_path, trainer=trainer(tmp_path)))

    def fail(*_: Any) -> None:
        raise RuntimeError("no engine")

    monkeypatch.setattr(train_module, "prepare_models", fail)
    with pytest.raises(RuntimeError, match="no engine"):
        train(config)
    assert list((tmp_path / "out").iterdir()) == []


def test_a_folder_that_is_deleted_meanwhile_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = load_config(recipe(tmp_path, trainer=trainer(tmp_path)))

    def delete(plan: Any, trainer: Any) -> None:
        shutil.rmtree(trainer.tracker.run_dir)

    monkeypatch.setattr(train_module, "execute", delete)
    with pytest.raises(ValueError, match="was moved or deleted while the run was writing to it"):
        train(config)


@pytest.mark.parametrize("error", [SafetensorError(FULL), OSError(28, "No space left on device")])
def test_a_full_disk_is_named_wherever_it_is_noticed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, error: Exception
) -> None:
    """Before the first step, of the folder for temporary files, and in a checkpoint."""
    from posttrain.model import trial
    from posttrain.training import staging

    def fail(*_: Any) -> None:
        raise error

    config = load_config(recipe(tmp_path, trainer=trainer(tmp_path)))
    with monkeypatch.context() as patch:
        patch.setattr(trial, "save_model", fail)
        with pytest.raises(ValueError, match="is full: free some space, or set TMPDIR"):
            train(config)
    monkeypatch.setattr(staging, "describe_model", fail)
    with pytest.raises(ValueError, match=r"checkpoint-2 could not be written \(the disk is full"):
        train(config)


@pytest.mark.parametrize(
    ("error", "expected"),
    [
        (torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.5 GiB. GPU 0"), "2.5 GiB"),
        (RuntimeError("[enforce] can't allocate memory: you tried to allocate 9 bytes"), "9 bytes"),
        (MemoryError(), "out of memory: lower trainer.micro_batch_tokens"),
        (SafetensorError(FULL), "the disk is full"),
        (RuntimeError("PytorchStreamWriter failed writing file data/1"), "the disk is full"),
    ],
)
def test_what_a_machine_lacks_is_one_line(error: Exception, expected: str) -> None:
    assert expected in of_the_machine(error)
    assert "\n" not in of_the_machine(error)
    assert of_the_machine(RuntimeError("shapes do not match")) == ""


@pytest.fixture(scope="module")
def adapted(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """A recipe of a LoRA run whose base is in a folder of its own, and the run."""
    place = tmp_path_factory.mktemp("adapted")
    save_model_folder(place / "base")
    rows = [{"prompt": "the cat", "completion": "sat on the mat"}] * 4
    model = {"name": str(place / "base"), "use_lora": True, "lora": {"r": 2}}
    file = recipe(place, rows, model=model, trainer=trainer(place, save_steps=1))
    return file, train(load_config(file))


def test_a_run_resumes_from_the_weights_that_it_began_with(
    adapted: tuple[Path, Path], capsys: Capture
) -> None:
    file, run = adapted
    resume = f"trainer.resume_from_checkpoint={run / 'checkpoint-1'}"
    load_config(file, [resume])
    weights = file.parent / "base" / "model.safetensors"
    before = weights.read_bytes()
    changed = bytearray(before)
    changed[-4096:] = bytes(4096)  # zeros in the last tensors
    weights.write_bytes(changed)
    try:
        said = complaint(capsys, "train", file, resume, "--dry-run")
        assert "the weights of model.name changed since the run began" in said
    finally:
        weights.write_bytes(before)
    assert train(load_config(file, [resume])) == run


def test_a_damaged_checkpoint_or_run_is_named(
    adapted: tuple[Path, Path], tmp_path: Path, capsys: Capture
) -> None:
    file, run = adapted
    copied = Path(shutil.copytree(run, tmp_path / "copy"))
    resume = f"trainer.resume_from_checkpoint={copied}"
    lines = (copied / "metrics.jsonl").read_text()
    (copied / "metrics.jsonl").write_text("hello\n" + lines)
    assert "metrics.jsonl, line 1: not a line of a run (hello)" in complaint(
        capsys, "train", file, resume
    )
    (checkpoints_in(copied)[-1] / CHECKPOINT_INFO).write_text("{}")
    assert "is damaged: it has no files" in complaint(capsys, "train", file, resume)


REWARD = """def helper(text):
    return {}[text]


def reward(prompts, completions, completion_ids, **columns):
    return [helper(text) for text in completions]
"""


def test_a_reward_that_fails_names_row_and_line_of_its_own_code(tmp_path: Path) -> None:
    file = tmp_path / "own.py"
    file.write_text(REWARD)
    reward = build(Custom(path=str(file)))
    with pytest.raises(RewardFailure, match="failed on row 1") as caught:
        score(reward, ["p"], ["c"], [[1]], [{"answer": "a"}])
    assert f"KeyError: 'c'; {file}, line 2: return {{}}[text])" in str(caught.value)
    assert isinstance(caught.value.__cause__, KeyError)


def test_a_reward_that_exits_does_not_end_the_run_without_a_word() -> None:
    def reward(prompts: Any, completions: Any, completion_ids: Any) -> list[float]:
        raise SystemExit(0)

    with pytest.raises(RewardFailure, match=r"failed on row 1 \(RuntimeError: it called exit with"):
        score(reward, ["p"], ["c"], [[1]], [{}])


@pytest.mark.parametrize(
    ("code", "expected"),
    [
        ("def reward(a:\n  pass\n", ", line 1: SyntaxError: "),
        (
            "\nimport not_there_at_all\n",
            ", line 2: ModuleNotFoundError: No module named 'not_there",
        ),
        ("x = 1\ny = x / 0\n", ", line 2: ZeroDivisionError: division by zero"),
    ],
)
def test_a_reward_file_that_cannot_be_run(tmp_path: Path, code: str, expected: str) -> None:
    file = tmp_path / "own.py"
    file.write_text(code)
    with pytest.raises(ValueError, match=r"reward\.path: .+") as caught:
        build(Custom(path=str(file)))
    assert f"{file}{expected}" in str(caught.value)


@pytest.mark.parametrize("method", ["sft", "dpo"])
def test_an_unknown_early_stopping_metric_is_found_before_the_first_step(
    tmp_path: Path, capsys: Capture, method: str
) -> None:
    pair = {"prompt": "1+1", "chosen": "two", "rejected": "three"}
    row = {"prompt": "1+1", "completion": "two"} if method == "sft" else pair
    rows = "".join(json.dumps(row | {"prompt": f"1+{i}"}) + "\n" for i in range(6))
    early = {"metric": "eval_los", "patience": 1}
    keys = trainer(tmp_path, type=method, eval_steps=2, early_stopping=early)
    data = {"path": str(tmp_path / "rows.jsonl")}
    file = recipe(tmp_path, rows, trainer=keys, eval={"data": data})
    said = complaint(capsys, "train", file)
    assert "trainer.early_stopping.metric: no metric eval_los; there are eval_loss" in said
    (run,) = (tmp_path / "out").iterdir()
    assert (run / "metrics.jsonl").read_text() == ""
    known = "eval_loss" if method == "sft" else "eval_rewards/accuracies"
    assert train(load_config(file, [f"trainer.early_stopping.metric={known}"]))
