"""LoRA+: B learns at a multiple of A's rate, against AdamW written out by hand."""

from __future__ import annotations

import pytest
import tiny
import torch

from posttrain.model.config import ModelConfig
from posttrain.model.models import Models
from posttrain.training.optim import build_optimizer


def models_with(ratio: float) -> Models:
    models = tiny.models(adapter={"type": "lora", "r": 2, "lr_ratio": ratio})
    models.lr_ratio = ratio
    return models


def by_hand(
    start: dict[str, torch.Tensor], grads: list[dict[str, torch.Tensor]], rate: float, ratio: float
) -> dict[str, torch.Tensor]:
    """AdamW of Loshchilov and Hutter 2019, with the learning rate of Hayou et al. for each B."""
    result = {}
    for name, value in start.items():
        x, m, v = value.double(), torch.zeros_like(value).double(), torch.zeros_like(value).double()
        own = rate * ratio if "lora_B" in name else rate
        for t, step in enumerate(grads, 1):
            g = step[name].double()
            m, v = 0.9 * m + 0.1 * g, 0.999 * v + 0.001 * g * g
            x = x * (1 - own * 0.1)
            x = x - own * (m / (1 - 0.9**t)) / ((v / (1 - 0.999**t)).sqrt() + 1e-8)
        result[name] = x.float()
    return result


@pytest.mark.parametrize("ratio", [1.0, 16.0])
def test_three_steps(ratio):
    models = models_with(ratio)
    trainer = tiny.trainer_of(
        "sft",
        models,
        weight_decay=0.1,
        scheduler="constant",
        warmup=0,
        max_grad_norm=None,
        adam_betas=(0.9, 0.999),
    )
    batch = tiny.raw_batch(trainer.algorithm, models)
    start = {name: p.detach().clone() for name, p in models.trainable().items()}
    grads = []
    for group in trainer.optimizer.param_groups:
        group["lr"] = trainer.config.learning_rate * group["lr_scale"]
    for _ in range(3):
        grads.append(tiny.gradients(trainer, batch))
        del trainer._clip  # type: ignore[attr-defined]
        trainer.update(batch)
    expected = by_hand(start, grads, trainer.config.learning_rate, ratio)
    for name, parameter in models.trainable().items():
        torch.testing.assert_close(parameter.detach(), expected[name], atol=2e-6, rtol=2e-4)


def test_only_b_has_the_ratio_also_in_a_value_network():
    trainable = {
        name: torch.nn.Parameter(torch.zeros(2, 2))
        for name in (
            "model.layers.0.q_proj.lora_A.default.weight",
            "model.layers.0.q_proj.lora_B.default.weight",
            "model.layers.0.q_proj.lora_magnitude_vector.default.weight",
            "model.embed_tokens.lora_embedding_B.default",
            "model.lm_head.modules_to_save.default.weight",
            "value_network.layers.0.q_proj.lora_B.default.weight",
            "head.weight",
        )
    }
    config = tiny.config_of("ppo", value_learning_rate=1e-3)
    optimizer = build_optimizer(trainable, config, 8.0)
    scales = {id(p): group["lr_scale"] for group in optimizer.param_groups for p in group["params"]}
    plain = build_optimizer(trainable, config)
    before = {id(p): group["lr_scale"] for group in plain.param_groups for p in group["params"]}
    assert len(set(before.values())) == 2
    for name, parameter in trainable.items():
        factor = 8.0 if ".lora_B." in name else 1.0
        assert scales[id(parameter)] == factor * before[id(parameter)], name


def test_other_kinds_have_no_b():
    for kind in ("loreft", "none"):
        with pytest.raises(ValueError, match="lr_ratio"):
            ModelConfig(name="m", adapter={"type": kind, "lr_ratio": 4})
