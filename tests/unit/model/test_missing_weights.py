"""Weights that a folder lacks are never made up: transformers and PEFT only warn of them."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import tiny
import torch
from safetensors.torch import load_file, save_file
from test_reward_head import trained
from transformers import AutoModelForCausalLM, LlamaForSequenceClassification

from posttrain.model.config import ModelConfig
from posttrain.model.folder import checkpoints_in
from posttrain.model.heads import add_scoring_head
from posttrain.model.load import load_policy
from posttrain.rewards.base import RewardFailure
from posttrain.rewards.build import build_reward
from posttrain.rewards.reward_model import RewardModel
from posttrain.rewards.scoring import score

ADAPTER = "adapter_model.safetensors"


@pytest.fixture(scope="module")
def adapter(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return checkpoints_in(trained(tmp_path_factory.mktemp("lora"), lora=True, max_steps=2))[-1]


@pytest.fixture
def copy(adapter: Path, tmp_path: Path) -> Path:
    return shutil.copytree(adapter, tmp_path / "copy")


def without(folder: Path, part: str) -> None:
    tensors = load_file(folder / ADAPTER)
    del tensors[next(name for name in tensors if part in name)]
    save_file(tensors, folder / ADAPTER)


def load(folder: Path, scores: bool = False) -> None:
    config = ModelConfig(name=str(folder), use_lora=False)
    load_policy(config, str(folder), tiny.CPU, seed=0, scores=scores)


@pytest.mark.parametrize("part", ["lora_A", "lora_B", "score"])
def test_an_adapter_of_a_reward_model(part, copy):
    reward = build_reward(RewardModel(path=str(copy)))
    without(copy, part)
    with pytest.raises(RewardFailure, match=f"lacks weights .*{part}"):
        score(reward, ["1"], ["2"], [[1]], [{}])


def test_an_adapter_that_training_goes_on_from(copy):
    load(copy, scores=True)
    without(copy, "lora_B")
    with pytest.raises(ValueError, match=r"lacks weights of the model.*lora_B"):
        load(copy, scores=True)


def test_pickled_adapters_are_not_loaded(copy):
    torch.save(load_file(copy / ADAPTER), copy / "adapter_model.bin")
    (copy / ADAPTER).unlink()
    with pytest.raises(ValueError, match=r"pickled weights \(.bin\) can run code"):
        load(copy, scores=True)
    with pytest.raises(ValueError, match=r"pickled weights \(.bin\) can run code"):
        build_reward(RewardModel(path=str(copy)))


def test_an_adapter_without_its_base(copy):
    config = json.loads((copy / "adapter_config.json").read_text())
    config["base_model_name_or_path"] = str(copy / "gone")
    (copy / "adapter_config.json").write_text(json.dumps(config))
    with pytest.raises(
        ValueError, match=r"is an adapter of .*gone, which is not a model on this machine"
    ):
        build_reward(RewardModel(path=str(copy)))


def test_a_classifier_has_no_output_head(tmp_path):
    """A reward model needs none, whatever is sampled from does."""
    config = tiny.causal_lm("llama", num_labels=1).config
    LlamaForSequenceClassification(config).save_pretrained(tmp_path)
    load(tmp_path, scores=True)
    with pytest.raises(ValueError, match="is a sequence classifier or reward model, which writes"):
        load(tmp_path)


def test_the_head_of_a_classifier_on_the_hub_is_not_left_behind(tmp_path):
    """Whatever its name, where the head can not be read it is not taken for none."""
    config = tiny.causal_lm("llama", num_labels=1).config
    LlamaForSequenceClassification(config).save_pretrained(tmp_path)
    policy = tiny.models("llama").policy
    policy.model = AutoModelForCausalLM.from_pretrained(tmp_path)
    with pytest.raises(
        ValueError, match="org/model is a sequence classifier, but not a folder whose"
    ):
        add_scoring_head(policy, "org/model")
