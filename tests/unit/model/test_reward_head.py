"""A trained reward model loads with transformers and PEFT, scores the same, and rewards."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import tiny
import torch

from posttrain.model.folder import checkpoints_in
from posttrain.model.forward import forward
from posttrain.rewards.build import build_reward
from posttrain.rewards.reward_model import RewardModel
from posttrain.rewards.scoring import score
from posttrain.runs.config import parse_config
from posttrain.runs.plan import plan
from posttrain.runs.train import train


def trained(folder: Path, lora: bool = False, **keys) -> Path:
    tree = tiny.run_config(folder, "reward_model", learning_rate=1e-2, **keys)
    if lora:
        base = train(parse_config(tiny.run_config(folder / "base", "sft", max_steps=2), "test"))
        tree["model"] = {"name": str(checkpoints_in(base)[-1]), "use_lora": True, "lora": {"r": 4}}
    tree["model"]["device"] = "cpu"  # compared with other libraries there
    return train(parse_config(tree, "test"))


@pytest.mark.parametrize("lora", [False, True])
def test_loads_elsewhere_and_scores_the_same(lora, tmp_path, monkeypatch):
    from transformers import AutoModelForSequenceClassification, AutoTokenizer

    from posttrain.training.trainer import Trainer

    kept = {}
    fit = Trainer.fit

    def keep(self):
        fit(self)
        self.models.policy.eval()
        kept["policy"] = self.models.policy
        kept["batch"], _ = self.source.next_batch()

    monkeypatch.setattr(Trainer, "fit", keep)
    folder = checkpoints_in(trained(tmp_path, lora))[-1]
    batch = kept["batch"]
    with torch.no_grad():
        ours = forward(kept["policy"], batch, head=True).scores[batch.last_tokens()]
    rows = [ids.tolist() for ids in batch.input_ids.split(batch.lengths)]
    if lora:
        from peft import PeftModel

        base = json.loads((folder / "adapter_config.json").read_text())["base_model_name_or_path"]
        model = AutoModelForSequenceClassification.from_pretrained(base, num_labels=1)
        model = PeftModel.from_pretrained(model, folder)
    else:
        model, info = AutoModelForSequenceClassification.from_pretrained(
            folder, output_loading_info=True
        )
        assert not info["missing_keys"]
        assert not info["unexpected_keys"]
        assert model.config.num_labels == 1
    model.eval()
    tokenizer = AutoTokenizer.from_pretrained(folder)
    pad = model.config.pad_token_id
    assert pad not in (model.config.eos_token_id, tokenizer.eos_token_id)
    with torch.no_grad():
        theirs = torch.stack([model(torch.tensor([ids])).logits[0, 0] for ids in rows])
    torch.testing.assert_close(theirs, ours, rtol=1e-4, atol=1e-5)
    assert theirs.std() > 0
    # and as a reward
    prompts, completions = ["1 and 2?", "4 and 5?"], ["3", "12 maybe"]
    reward = build_reward(RewardModel(path=str(folder)))
    found = score(reward, prompts, completions, [[1]] * 2, [{}] * 2)
    assert len(set(found)) == 2


def test_training_goes_on_from_a_reward_model(tmp_path):
    folder = checkpoints_in(trained(tmp_path))[-1]
    tree = tiny.run_config(tmp_path / "more", "reward_model")
    tree["model"] = {"name": str(folder)}
    planned = plan(parse_config(tree, "test"))
    head = planned.models.policy.head.weight
    assert head.abs().max() > 0


def test_learns_its_pairs(tmp_path):
    run = trained(tmp_path, max_steps=30)
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    assert lines[0]["loss"] == pytest.approx(0.6931, abs=1e-3)
    assert lines[-1]["rewards/accuracies"] == 1.0
