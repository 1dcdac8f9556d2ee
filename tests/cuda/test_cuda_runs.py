"""Whole runs on the pretended GPU: training, sampling, evaluation and resume, of one method without
a sampler and one with, and all others in a slow test."""

from __future__ import annotations

import shutil
from itertools import product

import pretend_cuda
import pytest
import test_evaluation_during as during
import test_resume
import tiny
import torch
import yaml
from command import output_of
from device_counts import Watch
from repeats import choice

from posttrain.algorithms import ALGORITHMS
from posttrain.rollout.native.sampler import NativeSampler
from posttrain.rollout.sampler import SamplingParams
from posttrain.runs.config import parse_config
from posttrain.runs.train import train
from posttrain.training.offload import OffloadedAdamW

pretend_cuda.only_here()

BOTH = ("float32", "bfloat16")
REPRESENTATIVE = [("sft", "float32"), ("grpo", "bfloat16")]
REST = [pair for pair in product(ALGORITHMS, BOTH) if pair not in REPRESENTATIVE]


def run_config(folder, method, dtype="bfloat16", **keys):
    tree = tiny.run_config(folder, method, **keys)
    tree["model"] |= {"device": "cuda", "dtype": dtype}
    return tree


def run(tree):
    return train(parse_config(tree, "test"))


def check_resume(method, dtype, tmp_path, monkeypatch):
    tree = run_config(tmp_path, method, dtype, save_steps=1, keep_checkpoints=9, max_steps=4)
    tree["trainer"]["output_dir"] = str(tmp_path / "whole")
    whole = run(tree)
    tree["trainer"]["output_dir"] = str(tmp_path / "parts")
    parts = test_resume.run_killed_and_resumed(tree, 2, monkeypatch)
    assert test_resume.metrics(whole) == test_resume.metrics(parts)
    test_resume.assert_same_bits(whole, parts)


@pytest.mark.parametrize(("method", "dtype"), REPRESENTATIVE)
def test_a_killed_run_resumes_with_the_same_bits(method, dtype, tmp_path, monkeypatch):
    check_resume(method, dtype, tmp_path, monkeypatch)


@pytest.mark.slow
@pytest.mark.parametrize(("method", "dtype"), REST)
def test_so_do_the_others(method, dtype, tmp_path, monkeypatch):
    check_resume(method, dtype, tmp_path, monkeypatch)


def test_the_optimisers_state_in_the_cpus_memory(tmp_path, monkeypatch):
    """The same bits, resumed with the state where it was not."""
    devices = set()
    step = OffloadedAdamW.step

    def watched(self, closure=None):
        step(self)
        devices.update(x.device.type for kept in self.state.values() for x in kept.values())

    monkeypatch.setattr(OffloadedAdamW, "step", watched)
    tree = run_config(tmp_path, "sft", "float32", save_steps=2, keep_checkpoints=9, max_steps=4)
    whole = run(tree)
    assert not devices
    tree["distributed"] = {"offload": "optimizer"}
    away = run(tree)
    test_resume.assert_same_bits(whole, away)
    shutil.rmtree(whole / "checkpoint-4")
    tree["trainer"]["resume_from_checkpoint"] = str(whole)
    test_resume.assert_same_bits(run(tree), away)
    assert devices == {"cpu"}


@pytest.mark.parametrize("method", ["grpo", "ppo"])
def test_lora_with_dropout_kl_and_a_value_model(method, tmp_path):
    base = run(run_config(tmp_path / "base", "sft", max_steps=1))
    tree = run_config(tmp_path / "rl", method, max_steps=2, beta=0.05, num_inner_epochs=2)
    tree["model"] = {"name": str(base), "use_lora": True, "device": "cuda", "dtype": "bfloat16"}
    tree["model"]["lora"] = {"r": 4, "dropout": 0.1}
    run(tree)


def test_one_step_off_and_gradient_checkpointing(tmp_path):
    tree = run_config(tmp_path, "grpo", max_steps=3, sampler_correction="token")
    tree["model"]["gradient_checkpointing"] = True
    tree["rollout"]["one_step_off"] = True
    run(tree)


@pytest.mark.parametrize("method", ["sft", "grpo"])
def test_evaluation_during_training(method, tmp_path):
    tree = during.tree(tmp_path, method)
    tree["model"]["device"] = "cuda"
    found = during.evaluations(run(tree))
    assert [line["step"] for line in found] == [3, 6]


TRUNCATIONS: list[dict] = [{}, {"top_k": 5}, {"top_p": 0.7}, {"temperature": 0.0}]
SAMPLED = [(x, kind) for kind in ("qwen2", "llama") for x in TRUNCATIONS]


@pytest.mark.parametrize(("truncation", "kind"), choice(SAMPLED, SAMPLED[:5]))
def test_the_sampler_gives_the_cpus_completions(kind, truncation):
    params = SamplingParams(max_new_tokens=20, stop_token_ids=(tiny.STOP,), **truncation)
    prompts = [[4, 9, 5 + i % 3] + [7] * (i % 4) for i in range(9)]
    found = []
    for device in ("cpu", "cuda"):
        policy = tiny.models(kind).policy.to(device)
        sampler = NativeSampler(policy, max_num_seqs=4)
        found.append(sampler.generate(prompts, params, list(range(9))))
    for ours, theirs in zip(*found):
        assert ours.response_ids == theirs.response_ids
        assert torch.allclose(*(torch.tensor(x.logprobs) for x in (ours, theirs)), atol=1e-4)


def test_a_bf16_sampler_multiplies_in_bf16():
    policy = tiny.models().policy.to("cuda")
    policy.autocast = torch.bfloat16
    params = SamplingParams(max_new_tokens=20, stop_token_ids=())
    with Watch() as watch:
        NativeSampler(policy, 4).generate([[4, 9, 5]] * 4, params, [0, 1, 2, 3])
    assert watch.fp32_share == 0
    looks = [n for (_, line), n in watch.waits.items() if "sampler.py" in line]
    assert sum(looks) < 40, f"20 tokens cost {watch.waits}"


@pytest.mark.parametrize("method", choice(("sft", "grpo", "ppo"), ("sft", "ppo")))
def test_a_deterministic_run(method, tmp_path):
    """An operator that has no deterministic kernel on CUDA raises."""
    tree = run_config(tmp_path, method, max_steps=2)
    tree["model"]["deterministic"] = True
    try:
        run(tree)
        assert torch.are_deterministic_algorithms_enabled()
    finally:
        torch.use_deterministic_algorithms(False)


def test_the_dry_run_names_device_dtype_and_attention(tmp_path, capsys):
    recipe = tmp_path / "recipe.yaml"
    tree = run_config(tmp_path, "sft", "auto")
    tree["model"]["device"] = "auto"
    recipe.write_text(yaml.safe_dump(tree))
    text = " ".join(output_of(capsys, "train", recipe, "--dry-run").split())
    for part in ("pretended", "compute capability 9.0", "bfloat16", "one flash kernel"):
        assert part in text, text
