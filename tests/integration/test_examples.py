"""The scripts in examples/ do what their first lines say."""

from __future__ import annotations

import importlib.util
import json
import re
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from command import Capture, output_of
from conftest import ROOT

import posttrain
from posttrain.algorithms import ALGORITHMS
from posttrain.data.sets import DATASETS

EXAMPLES = ROOT / "examples"


@pytest.fixture(autouse=True)
def _registries(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """What a script registers is gone afterwards."""
    monkeypatch.chdir(ROOT)  # recipes are named relative to it
    before = [(registry, dict(registry)) for registry in (ALGORITHMS, DATASETS)]
    yield
    for registry, names in before:
        registry.clear()
        registry.update(names)


def example(name: str) -> dict[str, Any]:
    """The names of a script that was imported, not run."""
    spec = importlib.util.spec_from_file_location(f"example_{name}", EXAMPLES / f"{name}.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module  # where pydantic looks annotations up
    spec.loader.exec_module(module)
    return vars(module)


def test_there_is_a_test_for_each() -> None:
    names = {path.stem for path in EXAMPLES.glob("*.py")}
    assert names == {"train_from_python", "custom_reward", "new_algorithm", "new_dataset"}


def test_train_from_python(tmp_path: Path, capfd: Capture) -> None:
    example("train_from_python")["main"](str(tmp_path))
    shown = capfd.readouterr().out
    first, last = (float(x) for x in shown.partition("loss: ")[2].split(";")[0].split(" -> "))
    assert last < first - 1
    assert "Qwen2ForCausalLM" in shown
    assert len(list(tmp_path.glob("from-python_*/report.html"))) == 1


def test_custom_reward(tmp_path: Path, capfd: Capture) -> None:
    rows = [
        ("so it is 1,205.", "1205", 1.0),
        ("7", "8", 0.1),
        ("no number", "3", 0.0),
        ("7", "x + 1", 1.0),
        ("7", "x", None),
    ]
    judge = example("custom_reward")["judge"]
    assert [judge(text, gold) for text, gold, _ in rows[:3]] == [1.0, 0.1, 0.0]
    assert [judge(*row[:2]).verdict for row in rows[:3]] == ["correct", "wrong", "no number"]
    assert judge("7", "x") is None
    file = tmp_path / "rows.jsonl"
    file.write_text(
        "".join(json.dumps({"completion": t, "answer": a}) + "\n" for t, a, _ in rows[:3])
    )
    shown = output_of(capfd, "score", "custom", file, f"path={EXAMPLES / 'custom_reward.py'}")
    assert "rows 3  mean 0.3667" in shown


def test_new_algorithm(tmp_path: Path, capfd: Capture) -> None:
    module = example("new_algorithm")
    module["main"](str(tmp_path))
    shown = capfd.readouterr().out
    first, last = (float(x) for x in shown.partition("nll: ")[2].split(" -> "))
    assert last < first
    saved = next(tmp_path.glob("focal_*")) / "config.yaml"
    assert "type: focal" in saved.read_text()


def test_the_new_algorithm_is_sft_without_its_focus() -> None:
    import tiny
    import torch

    from posttrain.algorithms.base import algorithm_named
    from posttrain.common.batch import pack
    from posttrain.model.forward import Output

    module = example("new_algorithm")
    batch = pack(tiny.random_sequences())
    logprobs = torch.where(batch.loss_mask, -torch.rand(batch.num_tokens), 0.0)
    keys = {"max_steps": 1}
    focal = module["focal"].loss(Output(logprobs), batch, module["FocalConfig"](focus=0.0, **keys))
    sft = algorithm_named("sft")
    plain = sft.loss(Output(logprobs), batch, sft.config(**keys))
    torch.testing.assert_close(focal.terms["token"], plain.terms["token"])
    sharp = module["focal"].loss(Output(logprobs), batch, module["FocalConfig"](focus=2.0, **keys))
    assert sharp.terms["token"] < plain.terms["token"]


def test_new_dataset(tmp_path: Path, capfd: Capture) -> None:
    module = example("new_dataset")
    train, test = (module["load"](split, num_rows=300) for split in ("train", "test"))
    assert not {row["prompt"] for row in train} & {row["prompt"] for row in test}
    assert all(eval(row["completion"].split(" = ")[0]) == int(row["answer"]) for row in train)
    module["main"](str(tmp_path))
    assert "held-out loss" in capfd.readouterr().out


def blocks_of(page: str) -> list[str]:
    """The Python code of a page."""
    text = (ROOT / "docs" / page).read_text()
    return re.findall(r"^```python\n(.*?)^```", text, re.DOTALL | re.MULTILINE)


def test_the_method_of_the_guide(tmp_path: Path, monkeypatch: Any, capfd: Capture) -> None:
    import tiny

    method, script = blocks_of("guide/methods.md")
    start = posttrain.train(tiny.run_config(tmp_path / "sft", max_steps=1))
    (tmp_path / "squared_hinge.py").write_text(method)
    rows = [{"prompt": f"{i}?", "chosen": f"{i} it is", "rejected": f"{i + 1}"} for i in range(24)]
    (tmp_path / "pairs.jsonl").write_text("".join(f"{json.dumps(row)}\n" for row in rows))
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    short = {"RUN_OR_MODEL": str(start), '"max_steps": 100': '"max_steps": 8', "1e-5": "1e-2"}
    for written, value in short.items():
        assert written in script
        script = script.replace(written, value)
    names: dict[str, Any] = {}
    exec(script, names)
    assert capfd.readouterr().out.splitlines()[-1] == "1.0"
    steps = [line for line in names["run"].metrics if "accuracy" in line]
    assert steps[-1]["loss"] < 0.9
    assert steps[-1]["accuracy"] > 0.9


def test_a_loss_that_is_no_likelihood_has_no_perplexity(tmp_path: Path) -> None:
    import tiny

    example("new_algorithm")
    tree = tiny.run_config(tmp_path, eval_steps=2, max_steps=2) | {"eval": {"split": 0.2}}
    perplexities = []
    for method in ("sft", "focal"):
        run = posttrain.train(tree, trainer={"type": method})
        perplexities.append("eval_perplexity" in run.metrics[-1])
    assert perplexities == [True, False]
