"""Generation over real HTTP: the same rollouts as in process, and every failure named."""

from __future__ import annotations

import json
import socket
from pathlib import Path
from typing import Any

import pytest
import tiny
import torch
from completion_server import CompletionServer, total
from measured import repeatable

from posttrain.data.kinds.prompt import Prompt
from posttrain.model.folder import checkpoints_in
from posttrain.rollout.engines import client
from posttrain.rollout.engines import server as server_module
from posttrain.rollout.engines.client import Server
from posttrain.rollout.engines.dialects import DIALECTS
from posttrain.rollout.engines.server import ServerSampler, check_server
from posttrain.rollout.native.sampler import NativeSampler
from posttrain.rollout.sampler import EngineError, Rollout, SamplingParams
from posttrain.runs.config import parse_config
from posttrain.runs.engine import check_engine
from posttrain.runs.train import train

PROMPTS = [[5 + i % 7, 9, 11 + i] for i in range(9)]
PARAMS = SamplingParams(max_new_tokens=12, stop_token_ids=(tiny.STOP, 7))
SEEDS = list(range(50, 59))
START = "start it so"


@pytest.fixture(autouse=True)
def _no_waiting(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(client, "FIRST_PAUSE", 0.01)


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("models") / "tiny"
    tiny.causal_lm().save_pretrained(folder)
    return folder


def adapter_policy() -> Any:
    """The tiny model with an adapter that is no longer the identity."""
    policy = tiny.models(use_lora=True, lora={"r": 4}).policy
    generator = torch.Generator().manual_seed(3)
    for name, parameter in policy.named_parameters():
        if "lora_B" in name:
            parameter.data = torch.randn(parameter.shape, generator=generator) * 0.1
    return policy


def generate(sampler: ServerSampler, *arguments: Any) -> list[Rollout]:
    sampler.update_weights()
    return sampler.generate(*arguments)


def sampler_of(
    policy: Any, servers: list[CompletionServer], folder: Path, kind: str = "vllm", **keys: Any
) -> ServerSampler:
    keys = {"timeout": 20.0, "retries": 2, "start_with": START} | keys
    clients = [Server(server.url, **keys) for server in servers]
    return ServerSampler(policy, clients, DIALECTS[kind], folder, 3, patience=0.3)


@pytest.mark.parametrize("kind", list(DIALECTS))
@pytest.mark.parametrize("keys", [{"temperature": 0}, {}, {"temperature": 0.7, "top_k": 5}])
def test_rollouts_equal_the_native_samplers(kind, keys, model, tmp_path):
    policy = adapter_policy()
    params = SamplingParams(**(vars(PARAMS) | keys))
    expected = NativeSampler(policy, 16).generate(PROMPTS, params, SEEDS)
    with CompletionServer(model) as server:
        found = generate(sampler_of(policy, [server], tmp_path, kind), PROMPTS, params, SEEDS)
    for a, b in zip(found, expected, strict=True):
        assert (a.prompt_ids, a.response_ids, a.finish_reason) == (
            b.prompt_ids,
            b.response_ids,
            b.finish_reason,
        )
        ours, theirs = torch.tensor(a.logprobs), torch.tensor(b.logprobs)
        torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-5)
        assert a.weight_version == policy.version
    assert {r.finish_reason for r in found} == {"stop", "length"}, "only one case is tested"


def test_ids_alone_are_sent_and_every_sampling_parameter_is_set(model, tmp_path):
    with CompletionServer(model) as server:
        generate(sampler_of(adapter_policy(), [server], tmp_path), PROMPTS, PARAMS, SEEDS)
    body = next(b for b in server.completions if b["seed"] == SEEDS[0])
    assert body["prompt"] == PROMPTS[0]
    assert body["stop_token_ids"] == [tiny.STOP, 7]
    assert body["ignore_eos"] is True
    assert (body["temperature"], body["top_p"], body["top_k"]) == (1.0, 1.0, -1)
    assert (body["min_p"], body["repetition_penalty"]) == (0.0, 1.0)


@pytest.mark.parametrize("kind", list(DIALECTS))
def test_every_setting_of_sampling_is_in_the_request(kind):
    params = SamplingParams(7, (3, 5), temperature=0.6, top_p=0.8, top_k=9, min_p=0.05)
    body = DIALECTS[kind].request([1, 2], params, 4, None, "base")
    sent = body.get("sampling_params", body)
    for name, value in vars(params).items():
        key = {"max_new_tokens": "max_tokens"}.get(name, name) if kind == "vllm" else name
        assert sent[key] == (list(value) if isinstance(value, tuple) else value), name


def test_ids_are_read_from_servers_without_return_token_ids(model, tmp_path):
    policy = adapter_policy()
    with CompletionServer(model) as server:
        server.faults = {"old": 99}
        found = generate(sampler_of(policy, [server], tmp_path), PROMPTS, PARAMS, SEEDS)
    expected = NativeSampler(policy, 16).generate(PROMPTS, PARAMS, SEEDS)
    assert [r.response_ids for r in found] == [r.response_ids for r in expected]


def test_two_servers_share_the_work_and_connections_are_kept(model, tmp_path):
    policy = adapter_policy()
    expected = NativeSampler(policy, 16).generate(PROMPTS, PARAMS, SEEDS)
    with CompletionServer(model) as one, CompletionServer(model) as two:
        found = generate(sampler_of(policy, [one, two], tmp_path), PROMPTS, PARAMS, SEEDS)
        assert min(len(s.completions) for s in (one, two)) >= 3
        assert sorted(b["seed"] for s in (one, two) for b in s.completions) == SEEDS
        assert max(one.most_in_flight, two.most_in_flight) <= 3
        assert max(one.connections, two.connections) <= 3 + 2, "a connection for every request"
    assert [r.response_ids for r in found] == [r.response_ids for r in expected]


@pytest.mark.parametrize("kind", list(DIALECTS))
def test_every_version_is_delivered_once_and_the_one_before_taken_back(kind, model, tmp_path):
    policy = adapter_policy()
    with CompletionServer(model) as one, CompletionServer(model) as two:
        sampler = sampler_of(policy, [one, two], tmp_path, kind)
        for version in (0, 0, 1, 1, 2):
            policy.version = version
            for parameter in policy.parameters():
                if parameter.requires_grad:
                    parameter.data += 0.01 * version
            rollouts = generate(sampler, PROMPTS, PARAMS, SEEDS)
            assert {r.weight_version for r in rollouts} == {version}
            assert [p.name for p in tmp_path.iterdir()] == [sampler.adapter(version)]
            assert list(one.policies) == [one.name, sampler.adapter(version)]
        assert total([one, two]) == {sampler.adapter(v): 2 for v in (0, 1, 2)}
        sampler.close()
        assert list(one.policies) == list(two.policies) == [one.name]
        assert not tmp_path.exists()


def test_adapters_of_a_killed_process_are_taken_back(model, tmp_path):
    policy = adapter_policy()
    with CompletionServer(model) as server:
        killed = sampler_of(policy, [server], tmp_path)
        generate(killed, PROMPTS[:1], PARAMS, SEEDS[:1])
        again = sampler_of(policy, [server], tmp_path)
        generate(again, PROMPTS[:1], PARAMS, SEEDS[:1])
        assert list(server.policies) == [server.name, again.adapter(0)]
        assert [p.name for p in tmp_path.iterdir()] == [again.adapter(0)]


@pytest.mark.parametrize("kind", ["500", "429", "drop", "hang", "lost_load"])
def test_a_passing_fault_changes_nothing(kind, model, tmp_path):
    policy = adapter_policy()
    expected = NativeSampler(policy, 16).generate(PROMPTS, PARAMS, SEEDS)
    with CompletionServer(model) as server:
        server.faults = {kind: 1}
        # a few hundred milliseconds are more than a completion takes, and less than a hang does
        sampler = sampler_of(policy, [server], tmp_path, timeout=1.0)
        found = generate(sampler, PROMPTS, PARAMS, SEEDS)
        assert server.faults[kind] < 1, "the fault did not happen"
    assert [r.response_ids for r in found] == [r.response_ids for r in expected]


@pytest.mark.parametrize(
    ("kind", "expected"),
    [
        ("500", r"answered 500: .*out of memory.*\(tried 3 times\)"),
        ("drop", rf"dropped the request without an answer.*{START}.*\(tried 3 times\)"),
        ("hang", rf"did not answer within 0.5 s.*rollout.timeout.*{START}.*\(tried 3 times\)"),
        ("other_ids", "returned the token id 1000000, outside the policy's vocabulary of 61"),
        ("few_logprobs", r"returned \d+ token ids with \d+ log-probs"),
        ("nan", "returned invalid log-probs"),
        ("wrong_model", rf"generated with .*tiny', but the policy's weights are .*-v0.*{START}"),
        ("cut", r"ended after \d+ of 12 tokens without a stop token"),
        ("own_stop", "stopped at the token .* not one of the stop tokens"),
        ("other_prompt", r"read another prompt \(4 tokens\) than the 3 token ids"),
        ("no_choice", "sent no completion with token ids and log-probs"),
        ("ignore_load", r"\(404\): .*does not exist.*was delivered to it: was it restarted since"),
        ("no_lora", rf"refused POST /v1/load_lora_adapter \(404\).*rollout.adapter_dir.*{START}"),
        ("refuse_load", r"LoRA rank 8 is greater than max_lora_rank 4"),
    ],
)
def test_every_fault_is_named_with_its_server(kind, expected, model, tmp_path):
    with CompletionServer(model) as server:
        server.faults = {kind: 99}
        sampler = sampler_of(
            adapter_policy(), [server], tmp_path, timeout=0.5 if kind == "hang" else 20.0
        )
        with pytest.raises(EngineError, match=expected) as caught:
            generate(sampler, PROMPTS, PARAMS, SEEDS)
        assert f"server {server.url} " in str(caught.value)
        server.faults.clear()
        policy = sampler.policy
        assert generate(sampler, PROMPTS[:1], PARAMS, SEEDS[:1])[0].weight_version == policy.version


def test_a_server_that_is_down(model, tmp_path):
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        url = f"http://127.0.0.1:{unused.getsockname()[1]}"
    server = Server(url, timeout=5, retries=1, start_with=START)
    message = rf"{url} cannot be reached \(Connection refused\): is it running\? start it with: "
    with pytest.raises(EngineError, match=rf"{message}{START} \(tried 2 times\)"):
        check_server(server, DIALECTS["vllm"], "tiny", 20, [5], PARAMS)


def test_a_server_that_stays_with_the_old_adapter_is_caught_at_once(model, tmp_path, monkeypatch):
    """However little the weights changed: by the adapter's name, not by the log-probs."""
    policy = adapter_policy()
    with CompletionServer(model) as server:
        sampler = sampler_of(policy, [server], tmp_path)
        generate(sampler, PROMPTS, PARAMS, SEEDS)
        stale = sampler.adapter(0)
        policy.version = 1
        monkeypatch.setattr(sampler, "_take_back", lambda keep: None)
        asked = server_module.ask

        def stale_ask(*arguments: Any) -> Any:
            return asked(*arguments[:-2], stale, stale)

        monkeypatch.setattr(server_module, "ask", stale_ask)
        with pytest.raises(EngineError, match=r"generated with .*-v0', but .* are .*-v1'"):
            generate(sampler, PROMPTS, PARAMS, SEEDS)


@pytest.mark.parametrize(
    ("keys", "ask", "expected"),
    [
        ({}, {}, None),
        ({"name": "somewhere/else/TINY"}, {}, None),
        (
            {"name": "other"},
            {"model": "org/llama"},
            r"serves other, but the run .* of org/llama; start",
        ),
        ({"max_model_len": 30}, {}, "takes 30 tokens, but the longest prompt .* have 40"),
        ({"processed_logprobs": False}, {}, None),
        ({"processed_logprobs": False}, {"temperature": 0.7}, "--logprobs-mode processed_logprobs"),
        ({}, {"temperature": 0.7}, None),
        ({"api_key": "sesame"}, {}, r"refused GET /v1/models \(401\): set rollout.api_key_env"),
    ],
)
def test_a_server_is_checked_before_the_run(keys, ask, expected, model):
    params = SamplingParams(12, (tiny.STOP,), ask.get("temperature", 1.0))
    with CompletionServer(model, **keys) as server:
        client = Server(server.url, 20, 0, START)
        arguments = (client, DIALECTS["vllm"], ask.get("model", str(model)), 40, [5, 9], params)
        if expected is None:
            check_server(*arguments)
        else:
            with pytest.raises(EngineError, match=expected):
                check_server(*arguments)


def test_something_else_that_answers_on_the_port(model):
    with CompletionServer(model) as server:
        client = Server(server.url + "/elsewhere", 20, 0, START)
        with pytest.raises(EngineError, match=r"\(404\)"):
            check_server(client, DIALECTS["vllm"], "tiny", 1, [5], PARAMS)


# ---- whole runs ----


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model folder with a tokenizer, of a run from random weights."""
    folder = tmp_path_factory.mktemp("base")
    tree = tiny.run_config(folder, "sft", max_steps=2)
    return checkpoints_in(train(parse_config(tree, "test")))[-1]


def grpo(folder: Path, model: Path, **trainer: Any) -> dict[str, Any]:
    tree = tiny.run_config(folder, "grpo", **({"max_steps": 4, "learning_rate": 0.03} | trainer))
    tree["model"] = {"name": str(model), "use_lora": True, "lora": {"r": 4}}
    return tree


def over_http(tree: dict[str, Any], *servers: CompletionServer, **keys: Any) -> dict[str, Any]:
    rollout = tree["rollout"] | {"engine": "server", "servers": [s.url for s in servers]} | keys
    return tree | {"rollout": rollout}


def steps(run_dir: Path) -> list[dict[str, Any]]:
    lines = (run_dir / "metrics.jsonl").read_text().splitlines()
    rows = [json.loads(x) for x in lines]
    return [repeatable(row) for row in rows]


def run(tree: dict[str, Any]) -> Path:
    return train(parse_config(tree, "test"))


@pytest.mark.parametrize("one_step_off", [pytest.param(False, marks=pytest.mark.slow), True])
def test_training_over_http_equals_training_in_process(one_step_off, trained, tmp_path):
    def tree(name: str) -> dict[str, Any]:
        # corrected by the ratio of old to new, rounding grows with every large step
        more = {"sampler_correction": "token", "learning_rate": 0.003} if one_step_off else {}
        made = grpo(tmp_path / name, trained, eval_steps=2, **more)
        made["rollout"]["one_step_off"] = one_step_off
        return made | {"eval": {"generate": True, "max_samples": 5, "max_new_tokens": 8}}

    here = run(tree("here"))
    with CompletionServer(trained) as one, CompletionServer(trained) as two:
        there = run(over_http(tree("there"), one, two))
        versions = (0, 1, 2, 4) if one_step_off else (0, 1, 2, 3, 4)  # 4: for the evaluation
        delivered = {int(name.rpartition("-v")[2]) for name in total([one, two])}
        assert delivered == set(versions)
        assert set(total([one, two]).values()) == {2}
        assert list(one.policies) == [one.name], "the last adapter was left behind"
    assert not (there / "adapters").exists()
    ids = [
        [json.loads(x)["completion"] for x in (r / "samples.jsonl").read_text().splitlines()]
        for r in (here, there)
    ]
    assert ids[0] == ids[1]
    for a, b in zip(steps(here), steps(there), strict=True):
        assert a.keys() == b.keys()
        assert b == pytest.approx(a, rel=1e-4, abs=1e-6)
    mismatches = [s["sampling/sampling_logp_difference/mean"] for s in steps(there) if "loss" in s]
    assert max(mismatches[: 1 if one_step_off else None]) < 1e-5


def test_a_run_whose_server_dies_loses_nothing(trained, tmp_path):
    whole = run(grpo(tmp_path / "whole", trained))
    with CompletionServer(trained) as server:
        tree = over_http(grpo(tmp_path / "parts", trained), server, retries=0, server_patience=0.1)
        answer = server.answer

        def dies(path: str, body: dict[str, Any]) -> Any:
            return answer(path, body) if len(server.loads) < 3 else (503, "going down")

        server.answer = dies  # type: ignore[method-assign]
        with pytest.raises(
            EngineError,
            match=r"answered 503: going down.*the 2 finished steps are saved: "
            r"resume with trainer.resume_from_checkpoint=",
        ):
            run(tree)
    (parts,) = (tmp_path / "parts").glob("grpo_*")
    assert [p.name for p in checkpoints_in(parts)] == ["checkpoint-2"]
    with CompletionServer(trained) as elsewhere:  # another port: that is no other config
        tree = over_http(grpo(tmp_path / "parts", trained), elsewhere)
        tree["trainer"]["resume_from_checkpoint"] = "latest"
        assert run(tree) == parts
        assert [name[-2:] for name in elsewhere.loads] == ["v2", "v3"]
    for a, b in zip(steps(whole), steps(parts), strict=True):
        assert b == pytest.approx(a, rel=1e-4, abs=1e-6)


def test_weights_that_silently_stay_old_are_caught_in_one_step(trained, tmp_path):
    """A server that loads nothing and says it did: only the log-probs can tell."""
    with CompletionServer(trained) as server:
        server.faults = {"stale": 99}
        tree = over_http(grpo(tmp_path, trained, learning_rate=0.3, warmup=0), server)
        with pytest.raises(ValueError, match="sampler and trainer disagree by"):
            run(tree)
    (run_dir,) = tmp_path.glob("grpo_*")
    assert len(steps(run_dir)) == 1, "the first step has the initial weights, the second is caught"


def test_the_api_key_is_used_and_written_nowhere(trained, tmp_path, monkeypatch, capfd):
    monkeypatch.setenv("SOME_KEY", "sesame-open-1234")
    with CompletionServer(trained, api_key="sesame-open-1234") as server:
        tree = over_http(grpo(tmp_path, trained, max_steps=1), server, api_key_env="SOME_KEY")
        run_dir = run(tree)
        server.faults = {"quote": 99}
        with pytest.raises(EngineError, match=r"'Authorization': 'Bearer \*\*\*'") as quoted:
            run(tree)
        assert "1234" not in str(quoted.value)
        monkeypatch.setenv("SOME_KEY", "wrong-1234")
        with pytest.raises(EngineError, match=r"401.*rollout.api_key_env") as caught:
            run(tree)
    assert "wrong-1234" not in str(caught.value)
    monkeypatch.delenv("SOME_KEY")
    with pytest.raises(ValueError, match="the environment variable SOME_KEY is not set"):
        run(tree)
    said = capfd.readouterr()
    assert "1234" not in said.out + said.err + repr(Server("http://x", 1, 1, "", "sesame-1234"))
    files = [f for f in run_dir.rglob("*") if f.is_file()]
    assert len(files) > 5
    assert [f.name for f in files if b"sesame-open" in f.read_bytes()] == []


@pytest.mark.slow  # servers are shown above, and ranks in test_distributed.py
@pytest.mark.parametrize("strategy", ["ddp", "fsdp"])
def test_two_ranks_over_http_equal_one(strategy, trained, tmp_path):
    from test_distributed import launch

    found = []
    for ranks in (1, 2):
        with CompletionServer(trained) as server:
            tree = over_http(grpo(tmp_path / strategy, trained, max_steps=3, batch_size=3), server)
            found.append(steps(launch(tree, tmp_path / strategy, ranks)))
            assert set(total([server]).values()) == {1}, "delivered by more than one rank"
    for a, b in zip(*found, strict=True):
        for name in ("loss", "grad_norm", "num_tokens", "reward"):
            assert b[name] == pytest.approx(a[name], rel=2e-4, abs=1e-7), name


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({"scratch": {}, "name": None, "use_lora": False}, "model.scratch has none"),
    ],
)
def test_what_can_not_be_delivered_is_refused(changes, expected):
    tree = {
        "model": {"name": "org/model", "use_lora": False} | changes,
        "data": {"path": "rows.jsonl"},
        "trainer": {"type": "grpo", "max_steps": 1},
        "rollout": {"engine": "server", "servers": ["http://127.0.0.1:9"]},
        "reward": {"type": "math_correctness"},
    }
    config = parse_config(tree, "test")
    with pytest.raises(ValueError, match=expected):
        check_engine(config, config.model.name, [Prompt([5], {})], (3,))
