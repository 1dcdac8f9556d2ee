"""The keys of the engines: each belongs to one, and a run says which."""

from __future__ import annotations

import copy
import socket
from pathlib import Path
from typing import Any

import pytest
import tiny
import yaml
from command import complaint, state

from posttrain.config.recipe import with_overrides
from posttrain.rollout.config import RolloutConfig
from posttrain.runs.config import Config, dump, parse_config
from posttrain.runs.resume import differences, free_keys

GRPO: dict[str, Any] = {
    "model": {"name": "org/model", "use_lora": True},
    "data": {"path": "rows.jsonl"},
    "trainer": {"type": "grpo", "max_steps": 1},
    "reward": {"type": "math_correctness"},
}
SERVER = ["rollout.engine=server", "rollout.servers=[http://127.0.0.1:8000]"]
ENGINE_KEYS = {
    key: engines
    for config in (
        RolloutConfig(engine="native"),
        RolloutConfig(engine="server", servers=["http://127.0.0.1:8000"]),
        RolloutConfig(engine="vllm"),
    )
    for key, engines in config.keys_of_other_engines().items()
}


def parse(*overrides: str) -> Config:
    return parse_config(with_overrides(copy.deepcopy(GRPO), list(overrides)), "run.yaml")


@pytest.mark.parametrize(
    ("overrides", "expected"),
    [
        (["rollout.servers=[http://x:1]"], "rollout.servers is for rollout.engine: server, not"),
        (["rollout.timeout=3"], "rollout.timeout is for rollout.engine: server, not for native"),
        ([*SERVER, "rollout.max_num_seqs=3"], "max_num_seqs is for rollout.engine: native or vllm"),
        (["rollout.gpu_memory_utilization=0.5"], "is for rollout.engine: vllm, not for native"),
        (
            ["rollout.temperature=1e-9"],
            "rollout.temperature: input should be greater than or equal",
        ),
        (["rollout.engine=server"], r"rollout.engine: server needs rollout.servers"),
        (["rollout.engine=vlm"], r"rollout.engine: .*\(got 'vlm'\)"),
        ([*SERVER, "rollout.server_type=tgi"], r"rollout.server_type: .*\(got 'tgi'\)"),
        ([*SERVER, "rollout.servers=[127.0.0.1:8000]"], "write each as http://host:port"),
        ([*SERVER, "rollout.servers=[http://me:key@x:80]"], "without user or key"),
        ([*SERVER, "rollout.retry=3"], "unknown key rollout.retry: did you mean retries"),
        (["rollout.vllm_mode=server"], "write rollout.engine: server, or vllm"),
    ],
)
def test_a_key_of_another_engine_is_an_error(overrides: list[str], expected: str) -> None:
    with pytest.raises(ValueError, match=expected):
        parse(*overrides)


def test_every_engine_key_is_a_key() -> None:
    assert ENGINE_KEYS.keys() <= RolloutConfig.model_fields.keys()


@pytest.mark.parametrize("engine", ["native", "server", "vllm"])
def test_the_saved_config_has_the_keys_of_its_engine_and_runs(engine: str) -> None:
    config = parse(*(SERVER if engine == "server" else [f"rollout.engine={engine}"]))
    tree = dump(config)
    read = {key for key, engines in ENGINE_KEYS.items() if engine in engines}
    optional = {"api_key_env", "adapter_dir"}
    assert tree["rollout"].keys() & ENGINE_KEYS.keys() == read - optional
    assert parse_config(copy.deepcopy(tree), "saved") == config


def test_how_many_at_a_time_is_said_once() -> None:
    message = "eval.max_num_seqs: grpo uses rollout.max_num_seqs"
    with pytest.raises(ValueError, match=message):
        parse("eval.max_num_seqs=8", "trainer.eval_steps=1")
    assert parse("eval.max_samples=8", "trainer.eval_steps=1").eval is not None


def test_urls_are_taken_with_or_without_v1() -> None:
    config = parse("rollout.engine=server", "rollout.servers=[http://a:1/, https://b/v1, http://c]")
    assert config.rollout is not None
    assert config.rollout.servers == ["http://a:1", "https://b", "http://c"]


def test_a_run_may_be_resumed_with_other_servers() -> None:
    other = parse(
        *SERVER,
        "rollout.servers=[http://elsewhere:1]",
        "rollout.timeout=9",
        "rollout.api_key_env=KEY",
        "rollout.adapter_dir=/mnt/x",
    )
    assert differences(dump(parse(*SERVER)), dump(other), free_keys()) == []
    assert differences(dump(parse(*SERVER)), dump(parse()), free_keys()) != []


@pytest.mark.parametrize("arguments", [[], ["--dry-run"]])
def test_a_server_that_is_down_is_one_line_and_nothing_written(
    arguments: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    tiny.causal_lm(vocab_size=300).save_pretrained(tmp_path / "model")
    from posttrain.model.scratch import train_tokenizer

    train_tokenizer(["1 + 2 = 3"], 300, 128).save_pretrained(tmp_path / "model")
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        port = unused.getsockname()[1]
    tree = tiny.run_config(tmp_path / "run", "grpo")
    tree["model"] = {"name": str(tmp_path / "model"), "use_lora": True}
    tree["length"] = {"max_length": 100, "on_overlong": "drop"}
    tree["rollout"] |= {"engine": "server", "servers": [f"http://127.0.0.1:{port}"], "retries": 0}
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text(yaml.safe_dump(tree))
    before = state(tmp_path)
    line = complaint(capsys, "train", recipe, *arguments)
    assert f"server http://127.0.0.1:{port} cannot be reached (Connection refused)" in line
    assert "--enable-lora --max-lora-rank 16 --logprobs-mode processed_logprobs" in line
    assert state(tmp_path) == before
