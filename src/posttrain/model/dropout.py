"""Dropout, layer drop and router jitter: what makes a forward pass in training mode random.

Outside training mode they never apply. In it they would make the policy differ from its reference
and from the sampler before anything was learnt, so preference methods and RL train without them
unless `model.dropout` is true.
"""

from __future__ import annotations

from typing import Any

import torch
from torch.nn.modules.dropout import _DropoutNd

from posttrain.common.batch import pack
from posttrain.model.forward import forward
from posttrain.model.language_model import LanguageModel


def noises(policy: LanguageModel) -> list[str]:
    """Return what the config and the adapter of a policy draw at random, with its rate."""
    model: Any = policy.model
    rates = {
        f"adapter {name}": value
        for config in getattr(model, "peft_config", {}).values()
        for name, value in vars(config).items()
        if name.endswith("dropout") and isinstance(value, float)
    }
    if (section := getattr(policy.causal_lm(), "reft_config", None)) is not None:
        rates["adapter dropout"] = section.drops
    for name, value in vars(policy.causal_lm().config).items():
        heads = "classifier" in name or "summary" in name  # of heads that are not used here
        if type(value) is float and ("drop" in name or "jitter" in name) and not heads:
            rates[name] = value
    return [f"{name} {rate:g}" for name, rate in rates.items() if rate > 0]


@torch.no_grad()
def turn_off(policy: LanguageModel) -> None:
    """Make training mode compute what evaluation mode does.

    Raises ValueError if it still does not, which is measured."""
    batch = wanted = None
    if policy.probe is not None:
        batch = pack(policy.probe.rows).to(policy.device)
        wanted = forward(policy.eval(), batch).logprobs
    for module in policy.model.modules():
        if isinstance(module, _DropoutNd):
            module.p = 0.0
        for name, value in vars(module).items():
            # a router's jitter is also a threshold, outside training mode too (PhiMoE)
            if type(value) is float and "drop" in name:
                setattr(module, name, 0.0)
    policy.dropout = False
    policy.train()
    if batch is None or wanted is None:
        return
    if (forward(policy, batch).logprobs - wanted).abs().max() > policy.tolerance:
        raise ValueError(
            f"{type(policy.causal_lm()).__name__} is random in training mode "
            f"({', '.join(noises(policy)) or 'not by its config'}) and model.dropout cannot turn "
            "that off: set model.gradient_checkpointing: false, or model.dropout: true"
        )
