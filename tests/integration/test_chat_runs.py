"""Runs from models whose templates write a date or come in several: saved, resumed and asked."""

import datetime
import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from chat_templates import CHATML, HEADERS, tokenizer_with

from posttrain.data.render import make_renderer
from posttrain.evaluation.loading import load_for_sampling
from posttrain.model.folder import checkpoints_in, read_info, trained_date
from posttrain.model.load import load_tokenizer
from posttrain.runs.config import parse_config
from posttrain.runs.describe import describe
from posttrain.runs.plan import plan
from posttrain.runs.train import train

CHAT = [
    {"role": "user", "content": "a"},
    {"role": "model", "content": "b"},
    {"role": "user", "content": "c"},
    {"role": "model", "content": "d"},
]


def start_model(folder: Path, template: Any) -> Path:
    """Write a tiny model with a chat template."""
    from transformers import LlamaConfig, LlamaForCausalLM

    tokenizer = tokenizer_with(template)
    torch.manual_seed(0)
    sizes: Any = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1}
    config = LlamaConfig(
        vocab_size=len(tokenizer), num_attention_heads=2, max_position_embeddings=128, **sizes
    )
    LlamaForCausalLM(config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def tree(tmp_path: Path, template: Any, **trainer: Any) -> dict[str, Any]:
    (tmp_path / "rows.jsonl").write_text(json.dumps({"messages": CHAT}) + "\n")
    return {
        "model": {"name": str(start_model(tmp_path / "model", template)), "dtype": "float32"},
        "data": {"path": str(tmp_path / "rows.jsonl")},
        "trainer": {
            "type": "sft",
            "max_steps": 1,
            "batch_size": 1,
            "output_dir": str(tmp_path / "out"),
            "logger": [],
        }
        | trainer,
    }


def on(day: datetime.date, monkeypatch: pytest.MonkeyPatch) -> None:
    """Make `day` the day on which runs begin."""

    class Day(datetime.date):
        @classmethod
        def today(cls) -> datetime.date:  # type: ignore[override]
            return day

    monkeypatch.setattr("posttrain.runs.dates.datetime", SimpleNamespace(date=Day))


def test_named_templates_are_saved_and_resumed(tmp_path: Path) -> None:
    templates = {"default": CHATML, "tool_use": CHATML.replace("|im_end|", "|eot|")}
    run = train(parse_config(tree(tmp_path, templates), "recipe"))
    (checkpoint,) = checkpoints_in(run)
    assert load_tokenizer(str(checkpoint)).chat_template == templates
    files = read_info(checkpoint)["files"]
    (inner,) = [name for name in files if "tool_use" in name]
    assert (checkpoint / inner).is_file()
    again = tree(tmp_path, templates, resume_from_checkpoint=str(checkpoint))
    plan(parse_config(again, "recipe"))
    (checkpoint / inner).write_text("damaged")
    with pytest.raises(ValueError, match=r"is damaged: .*tool_use"):
        plan(parse_config(again, "recipe"))


def test_a_run_is_resumed_on_another_day(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    first, later = datetime.date(2026, 11, 29), datetime.date(2026, 11, 30)
    on(first, monkeypatch)
    run = train(parse_config(tree(tmp_path, HEADERS), "recipe"))
    (checkpoint,) = checkpoints_in(run)
    assert trained_date(str(checkpoint)) == first
    on(later, monkeypatch)
    config = parse_config(tree(tmp_path, HEADERS), "recipe")
    assert "30 Nov 2026" in rendered(plan(config))
    resumed = parse_config(tree(tmp_path, HEADERS, resume_from_checkpoint=str(checkpoint)), "r")
    assert "29 Nov 2026" in rendered(plan(resumed))
    other = tree(tmp_path, HEADERS, resume_from_checkpoint=str(checkpoint))
    other["data"]["date"] = "2026-11-30"
    with pytest.raises(ValueError, match=r"data\.date was '2026-11-29', now '2026-11-30'"):
        plan(parse_config(other, "recipe"))
    renderer, _, _ = load_for_sampling(str(checkpoint), "auto", "cpu", "float32")
    expected = make_renderer(renderer.tokenizer, date=first).prompt_ids({"prompt": "a"})
    assert renderer.prompt_ids({"prompt": "a"}) == expected


def rendered(planned: Any) -> str:
    ((sequence,),) = planned.data.examples
    return str(planned.renderer.tokenizer.decode(sequence.input_ids))


def test_the_date_is_recorded_only_if_the_template_writes_it(tmp_path: Path) -> None:
    assert plan(parse_config(tree(tmp_path, CHATML), "recipe")).config.mixture[0].date is None
    planned = plan(parse_config(tree(tmp_path, HEADERS), "r"))
    assert planned.config.mixture[0].date == datetime.date.today()
    text = describe(planned)
    assert "the role 'model' is read as 'assistant'; 1 of 1 rows (100.0%), first row 1" in text
    assert f"data.date: {datetime.date.today()}" in text


@pytest.mark.parametrize(
    ("method", "keys", "problem"),
    [
        ("dpo", {"turns": "split"}, "data.turns: dpo does not read it"),
        ("dpo", {"train_empty_turns": True}, "data.train_empty_turns: dpo does not read it"),
        ("sft", {"date": "2026-11-29"}, "data.date is 2026-11-29, but no chat template writes it"),
    ],
)
def test_keys_that_nothing_reads(
    method: str, keys: dict[str, Any], problem: str, tmp_path: Path
) -> None:
    config = tree(tmp_path, CHATML, type=method)
    row = {"messages": CHAT} if method == "sft" else {"prompt": "a", "chosen": "b", "rejected": "c"}
    (tmp_path / "rows.jsonl").write_text(json.dumps(row))
    config["data"] |= keys
    with pytest.raises(ValueError, match=problem):
        plan(parse_config(config, "recipe"))


def test_a_reward_model_reads_the_tools_of_a_row(tmp_path: Path) -> None:
    """What it scores is rendered as what it was trained on."""
    from posttrain.rewards.reward_model import RewardModel, build

    template = "{% if tools %}<|im_start|>{{ tools | tojson }}{% endif %}" + CHATML
    config = tree(tmp_path, template, type="reward_model")
    tools = [{"type": "function", "function": {"name": "weather"}}]
    row = {"prompt": "a", "chosen": "b", "rejected": "c", "tools": tools}
    (tmp_path / "rows.jsonl").write_text(json.dumps(row))
    (checkpoint,) = checkpoints_in(train(parse_config(config, "recipe")))
    score = build(RewardModel(type="reward_model", path=str(checkpoint)))
    with_tools = score(["a", "a"], ["b", "b"], None, tools=[tools, None])
    without = score(["a"], ["b"], None)
    assert with_tools[1] == pytest.approx(without[0], abs=1e-6)
    assert with_tools[0] != pytest.approx(without[0], abs=1e-6)
