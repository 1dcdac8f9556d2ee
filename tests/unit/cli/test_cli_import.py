"""`posttrain import`, its recipe as `posttrain train --dry-run` reads it, and aliases of train."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import yaml
from command import Capture, command, complaint, output_of, recipe, state
from conftest import shared

PAIRS = [
    {"prompt": f"{i} and {i}?", "chosen": f"{2 * i}", "rejected": f"{3 * i} or so"}
    for i in range(1, 9)
]
SUMS = [{"prompt": f"{i}+1", "completion": f"{i + 1}", "answer": f"{i + 1}"} for i in range(8)]


def write(folder: Path, name: str, content: Any) -> Path:
    file = folder / name
    file.write_text(content if isinstance(content, str) else yaml.safe_dump(content))
    return file


def rows(folder: Path, content: list[dict[str, Any]]) -> str:
    file = folder / "rows.jsonl"
    file.write_text("".join(f"{json.dumps(row)}\n" for row in content))
    return str(file)


def test_a_recipe_is_written_once_with_its_table(tmp_path: Path, capsys: Capture) -> None:
    config = write(tmp_path, "c.yaml", {"model_name_or_path": "m", "dataset_name": "d"})
    target = tmp_path / "new" / "recipe.yaml"
    target.parent.mkdir()
    out = output_of(capsys, "import", config, "--method", "dpo", "--output", target)
    assert "mapped" in out
    assert f"recipe: {target}" in out
    assert yaml.safe_load(target.read_text())["trainer"]["type"] == "dpo"
    assert "exists" in complaint(capsys, "import", config, "--method", "dpo", "--output", target)


def test_a_refused_key_is_exit_code_1_and_the_recipe_is_written(
    tmp_path: Path, capsys: Capture
) -> None:
    config = write(tmp_path, "c.yaml", {"model_name_or_path": "m", "dataset_name": "d", "zzz": 1})
    assert command("import", config, "--method", "sft") == 1
    printed = capsys.readouterr()
    assert yaml.safe_load(printed.out)["trainer"]["type"] == "sft"
    assert "refused" in printed.err
    assert "zzz" in printed.err


def test_a_command_after_two_dashes(capsys: Capture) -> None:
    words = ["trl", "kto", "--model_name_or_path", "m", "--dataset_name", "d"]
    words += ["--desirable_weight", "1.5"]
    out = output_of(capsys, "import", "--processes", 2, "--", *words)
    tree = yaml.safe_load(out)
    assert tree["trainer"]["desirable_weight"] == 1.5
    assert tree["trainer"]["batch_size"] == 16


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["import"], "Missing argument"),
        (["import", "nowhere.yaml"], "no file nowhere.yaml"),
        (["import", "--", "echo", "hello"], "starts no training"),
        (["import", "--set", "A", "x.yaml"], "expected NAME=VALUE"),
        (["import", "--from", "xtuner", "{config}"], "--from: xtuner is not known"),
        (["import", "--method", "sftt", "{config}"], "no method sftt"),
        (["train"], "Missing argument"),
        (["train", "{config}", "--config", "{config}"], "two recipes"),
        (["train", "{config}", "~trainer.seed"], "keys are not removed"),
        (["train", "--config", "{config}", "--override", "trainer.seed"], "not of the form"),
    ],
)
def test_complaints(tmp_path: Path, capsys: Capture, arguments: list[str], words: str) -> None:
    config = write(tmp_path, "c.yaml", {"model_name_or_path": "m", "dataset_name": "d"})
    given = [part.format(config=config) for part in arguments]
    before = state(tmp_path)
    assert words in complaint(capsys, *given)
    assert state(tmp_path) == before


@pytest.mark.parametrize(
    "form",
    [
        ["{r}", "trainer.max_steps=3"],
        ["--config", "{r}", "--override", "trainer.max_steps=3"],
        ["--config", "{r}", "trainer.max_steps=3"],
        ["{r}", "+trainer.max_steps=3"],
        ["{r}", "trainer.max_steps=9", "--override", "++trainer.max_steps=3"],
    ],
)
def test_aliases_of_train(
    tmp_path: Path, capsys: Capture, form: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[dict[str, Any]] = []

    def note(tree: dict[str, Any], source: str) -> Any:
        seen.append(tree)
        raise ValueError("seen")

    monkeypatch.setattr("posttrain.runs.config.parse_config", note)
    file = recipe(tmp_path)
    complaint(capsys, "train", *(part.format(r=file) for part in form))
    assert seen[0]["trainer"]["max_steps"] == 3


def llamafactory(folder: Path, model: str) -> tuple[Path, list[str]]:
    info = {"mine": {"file_name": "rows.jsonl", "columns": {"prompt": "p", "response": "r"}}}
    (folder / "dataset_info.json").write_text(json.dumps(info))
    rows(folder, [{"p": "1+1", "r": "2", "input": ""} for _ in range(8)])
    tree = {
        "model_name_or_path": model,
        "stage": "sft",
        "finetuning_type": "lora",
        "dataset": "mine",
        "dataset_dir": str(folder),
        "template": "default",
        "cutoff_len": 64,
        "max_steps": 2,
    }
    return write(folder, "c.yaml", tree), []


def trl(folder: Path, model: str) -> tuple[Path, list[str]]:
    tree = {
        "model_name_or_path": model,
        "dataset_name": rows(folder, PAIRS),
        "max_length": 128,
        "use_peft": True,
        "max_steps": 2,
        "eval_strategy": "no",
    }
    return write(folder, "c.yaml", tree), ["--method", "dpo"]


def axolotl(folder: Path, model: str) -> tuple[Path, list[str]]:
    tree = {
        "base_model": model,
        "datasets": [{"path": rows(folder, PAIRS), "type": "chatml.intel"}],
        "rl": "orpo",
        "micro_batch_size": 2,
        "learning_rate": 1e-4,
        "sequence_len": 128,
        "val_set_size": 0.25,
        "evals_per_epoch": 1,
    }
    return write(folder, "c.yaml", tree), []


def torchtune(folder: Path, model: str) -> tuple[Path, list[str]]:
    tree = {
        "checkpointer": {"checkpoint_dir": model},
        "dataset": {
            "_component_": "torchtune.datasets.instruct_dataset",
            "source": rows(folder, SUMS),
        },
        "loss": {"_component_": "torchtune.modules.loss.LinearCrossEntropyLoss"},
        "optimizer": {"_component_": "torch.optim.AdamW", "lr": 1e-4},
        "batch_size": 2,
        "device": "cpu",
        "dtype": "fp32",
    }
    return write(folder, "c.yaml", tree), []


def open_instruct(folder: Path, model: str) -> tuple[Path, list[str]]:
    tree = {
        "model_name_or_path": model,
        "dataset_mixer": {rows(folder, SUMS): 1.0},
        "num_train_epochs": 1,
        "max_seq_length": 64,
    }
    return write(folder, "c.yaml", tree), []


def verl(folder: Path, model: str) -> tuple[Path, list[str]]:
    text = (
        f"MODEL={model}\npython3 -m verl.trainer.main_ppo algorithm.adv_estimator=grpo \\\n"
        f"  data.train_files={rows(folder, SUMS)} data.train_batch_size=4 \\\n"
        "  data.max_prompt_length=64 data.max_response_length=16 \\\n"
        "  actor_rollout_ref.model.path=$MODEL actor_rollout_ref.rollout.n=4 \\\n"
        "  actor_rollout_ref.actor.ppo_mini_batch_size=2 trainer.total_training_steps=2 \\\n"
        "  trainer.logger=console custom_reward_function.path=reward.py\n"
    )
    (folder / "reward.py").write_text(
        "def compute_score(prompts, completions, completion_ids, **k):\n"
        "    return [0.0] * len(completions)\n"
    )
    return write(folder, "run.sh", text.replace("reward.py", str(folder / "reward.py"))), []


FORMS = (llamafactory, trl, axolotl, torchtune, open_instruct, verl)


@pytest.mark.parametrize(
    "form", [llamafactory, *(pytest.param(f, marks=pytest.mark.slow) for f in FORMS[1:])]
)
def test_the_recipe_passes_a_dry_run(form: Any, tmp_path: Path, capsys: Capture) -> None:
    model = str(shared("models/stories260k"))
    source, options = form(tmp_path, model)
    target = tmp_path / "recipe.yaml"
    code = command("import", source, *options, "--output", target)
    assert code == 0, capsys.readouterr()
    out = output_of(capsys, "train", target, "--dry-run", "model.dtype=float32")
    assert "trained" in out
