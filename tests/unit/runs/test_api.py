"""`import posttrain`: the commands as functions, and the run that they return."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import tiny
import torch

import posttrain
from posttrain.runs.loading import load_trained


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> posttrain.Run:
    tree = tiny.run_config(tmp_path_factory.mktemp("api"), eval_steps=3, save_steps=3)
    return posttrain.train(tree, trainer={"max_steps": 6}, eval={"max_samples": 4})


def test_the_package_offers_what_it_says() -> None:
    assert sorted(posttrain.__all__) == sorted(posttrain._MODULES)
    for name in posttrain.__all__:
        assert getattr(posttrain, name) is not None
        assert name in dir(posttrain)
    with pytest.raises(AttributeError, match="no attribute 'trian'"):
        posttrain.trian  # noqa: B018
    assert posttrain.__version__.count(".") == 2


def test_importing_it_loads_nothing_heavy() -> None:
    code = "import sys, posttrain; assert not {'torch', 'pydantic', 'yaml'} & set(sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True)


def test_a_run_gives_its_files(run: posttrain.Run) -> None:
    assert run.folder.is_dir()
    steps = [line for line in run.metrics if "loss" in line]
    assert [line["step"] for line in steps] == [1, 2, 3, 4, 5, 6]
    assert sum("eval_loss" in line for line in run.metrics) == 2
    assert run.best_checkpoint == run.checkpoints[-1] == run.folder / "checkpoint-6"
    assert run.config.trainer.max_steps == 6
    assert run.report.is_file()
    assert posttrain.Run(run.folder).metrics == run.metrics


def test_a_run_gives_the_model_that_was_trained(run: posttrain.Run) -> None:
    model, tokenizer = run.model(), run.tokenizer()
    assert type(model).__name__ == "Qwen2ForCausalLM"
    assert not model.training
    saved = load_trained(run.folder / "checkpoint-3")
    ids = tokenizer("3 and 4", return_tensors="pt")["input_ids"]
    assert not torch.equal(model(ids).logits, saved(ids).logits), "it trained between the two"


def test_of_an_adapter_it_is_a_peft_model(run: posttrain.Run, tmp_path: Path) -> None:
    tree = tiny.run_config(tmp_path)
    tree["model"] = {"name": str(run.folder), "use_lora": True}
    adapted = posttrain.train(tree, trainer={"max_steps": 1})
    assert type(adapted.model()).__name__ == "PeftModelForCausalLM"


def test_of_a_classifier_it_is_a_sequence_classifier(tmp_path: Path) -> None:
    run = posttrain.train(tiny.run_config(tmp_path, "classification"), trainer={"max_steps": 1})
    assert type(run.model()).__name__ == "Qwen2ForSequenceClassification"
    assert run.model().config.num_labels == 2


def test_no_run_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"is not a run directory: it has no metrics\.jsonl"):
        posttrain.Run(tmp_path)


def test_completions_are_those_of_the_command(run: posttrain.Run, capfd: Any) -> None:
    keys: dict[str, Any] = {"max_new_tokens": 6, "num_samples": 2, "seed": 3}
    found = posttrain.generate(run, ["3 and 4?", [{"role": "user", "content": "5?"}]], **keys)
    assert [one.prompt for one in found[:2]] == ["3 and 4?"] * 2
    assert all(len(one.token_ids) == len(one.logprobs) <= 6 for one in found)
    assert all(str(one) == one.text for one in found)
    from command import output_of

    shown = output_of(
        capfd, "generate", run.folder, "3 and 4?", "--max-new-tokens", 6, "-n", 2, "--seed", 3
    )
    assert all(one.text.strip() in shown for one in found[:2])


def test_results_are_those_of_the_command(run: posttrain.Run, tmp_path: Path) -> None:
    output = tmp_path / "a.json"
    results = posttrain.evaluate(
        run, "word_problems", output=output, max_samples=3, max_new_tokens=8
    )
    assert results["word_problems"]["num_problems"] == 3
    again = posttrain.evaluate(
        run.folder, ["word_problems"], output=output, max_samples=3, max_new_tokens=8
    )
    assert again == results


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"trainer": {"lr": 1}}, "config: unknown key trainer.lr: write trainer.learning_rate"),
        ({"trainer": {"type": "sftt"}}, "config: trainer.type 'sftt' is not known; did you mean"),
        ({"trainer.max_stesp": 3}, "config: unknown key trainer.max_stesp: did you mean max_steps"),
        ({"data": {"nme": "x"}}, "config: unknown key data.nme: did you mean name?"),
        ({"lenght": {}}, "config: unknown key lenght: did you mean length?"),
    ],
)
def test_a_wrong_key_gets_the_line_that_yaml_gets(
    tmp_path: Path, changes: dict[str, Any], message: str
) -> None:
    with pytest.raises(ValueError, match="^" + re.escape(message)):
        posttrain.load_config(tiny.run_config(tmp_path), **changes)


def test_overrides_change_keys_and_nothing_of_the_callers(tmp_path: Path) -> None:
    tree = tiny.run_config(tmp_path)
    before = repr(tree)
    options = {"num_rows": 7}
    config = posttrain.load_config(
        tree, trainer={"seed": 5}, data={"options": options}, **{"length.max_length": 99}
    )
    assert (config.trainer.seed, config.length.max_length) == (5, 99)
    assert config.trainer.batch_size == tree["trainer"]["batch_size"]
    assert repr(tree) == before
    assert options == {"num_rows": 7}


def test_a_path_is_as_good_as_its_text(tmp_path: Path) -> None:
    tree = tiny.run_config(tmp_path) | {"data": {"path": tmp_path / "rows.jsonl"}}
    config = posttrain.load_config(tree, trainer={"output_dir": tmp_path})
    assert config.trainer.output_dir == str(tmp_path)


def test_a_config_takes_no_overrides(tmp_path: Path) -> None:
    config = posttrain.load_config(tiny.run_config(tmp_path))
    with pytest.raises(ValueError, match=r"use config\.model_copy for a Config"):
        posttrain.train(config, trainer={"seed": 1})


def test_a_setting_that_does_not_exist_is_named() -> None:
    with pytest.raises(ValueError, match=r"no setting 'max_sample'; did you mean max_samples\?"):
        posttrain.evaluate("x", "gsm8k", max_sample=3)


def test_a_setting_is_named_as_a_field(run: posttrain.Run) -> None:
    with pytest.raises(ValueError, match=r"^num_samples: 2 samples need a temperature above 0"):
        posttrain.evaluate(run, "word_problems", num_samples=2)
    with pytest.raises(ValueError, match=r"^max_new_tokens: 9999 after a prompt of"):
        posttrain.generate(run, "3?", max_new_tokens=9999)


@pytest.mark.parametrize(
    ("setting", "value"),
    [
        ("temperature", -1.0),
        ("temperature", float("nan")),
        ("top_p", 0.0),
        ("top_p", 3.0),
        ("top_k", -1),
        ("max_new_tokens", 0),
        ("max_new_tokens", -5),
        ("num_samples", 0),
        ("max_num_seqs", 0),
    ],
)
def test_a_setting_out_of_range_is_refused(setting: str, value: float, run: posttrain.Run) -> None:
    with pytest.raises(ValueError, match=rf"^{setting}: expected .*, got {value}$"):
        posttrain.generate(run, "3?", **{setting: value})  # type: ignore[arg-type]
    with pytest.raises(ValueError, match=rf"^{setting}: expected .*, got {value}$"):
        posttrain.evaluate(run, "word_problems", **{setting: value})


@pytest.mark.parametrize("setting", ["shots", "max_samples"])
def test_a_number_of_rows_below_zero_is_refused(setting: str, run: posttrain.Run) -> None:
    with pytest.raises(ValueError, match=rf"^{setting}: expected at least .*, got -1$"):
        posttrain.evaluate(run, "word_problems", **{setting: -1})


def test_tasks_may_be_a_dict_of_files(run: posttrain.Run, tmp_path: Path) -> None:
    file = tmp_path / "own.jsonl"
    file.write_text('{"question": "1 and 2?", "answer": "#### 3"}\n')
    results = [
        posttrain.evaluate(run, tasks, max_new_tokens=4)["gsm8k"]
        for tasks in ({"gsm8k": file}, [f"gsm8k={file}"])
    ]
    assert results[0] == results[1]
    assert results[0]["num_problems"] == 1
