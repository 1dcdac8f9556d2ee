"""Additional heads: V(s) for `ppo`, scores of a reward model, logits of labels.

Scores and logits are read by position, at a sequence's last token (or at the ends of its steps).
transformers' sequence classifiers take as that token the last one that is not `pad_token_id`, so
`save` never writes a pad id that also ends a sequence.
"""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any, Literal

import torch
from torch import nn

from posttrain.model.backbone import unwrapped
from posttrain.model.classifiers import classifier_class
from posttrain.model.folder import SAVED_HEAD, is_classifier, saved_head
from posttrain.model.kernels.quantized import quantised_layers
from posttrain.model.language_model import LanguageModel


def add_value_head(policy: LanguageModel, own_network: bool) -> None:
    """Add a value head for `ppo`, on the policy's states or, with `own_network`, on a copy's.

    The head starts at 0, and so does every value.
    """
    width = policy.causal_lm().get_input_embeddings().weight.shape[1]
    device = policy.device
    policy.head_kind = "value"
    policy.head = nn.Linear(width, 1, device=device)
    nn.init.zeros_(policy.head.weight)
    nn.init.zeros_(policy.head.bias)
    if own_network:
        # deepcopy's memo: quantised weights, which are frozen, are shared with the copy
        shared = {id(layer.weight): layer.weight for layer in quantised_layers(policy)}
        policy.value_network = copy.deepcopy(policy.model, shared)
        network: Any = unwrapped(policy.value_network)
        output = network.get_output_embeddings().weight
        if output is not network.get_input_embeddings().weight:
            output.requires_grad_(False)  # the value network predicts no tokens


def add_scoring_head(
    policy: LanguageModel,
    name: str | None,
    kind: Literal["score", "labels"] = "score",
    num_labels: int = 1,
) -> None:
    """Add a head [num_labels, width] on the policy's states for a reward model or classifier.

    Its weights are those of the reward model or classifier in the folder `name`, if there is one,
    else 0, and so is every first score. The output head is not trained. Raises ValueError if the
    folder has another number of labels, or if the architecture can have no sequence classifier.
    """
    causal_lm = policy.causal_lm()
    classifier_class(causal_lm.config)
    embeddings = causal_lm.get_input_embeddings().weight
    width, device = embeddings.shape[1], embeddings.device
    policy.head_kind = kind
    policy.head = nn.Linear(width, num_labels, bias=False, device=device)
    with torch.no_grad():
        saved = saved_head(Path(name)) if name is not None else None
        if saved is None and is_classifier({"architectures": causal_lm.config.architectures}):
            raise ValueError(
                f"model.name: {name} is a sequence classifier, but not a folder whose "
                f"model.safetensors has {SAVED_HEAD}: save it in a folder, in one file"
            )
        if saved is not None and len(saved) != num_labels:
            expected = "a reward model has one" if num_labels == 1 else f"this run has {num_labels}"
            raise ValueError(f"model.name: {name} has {len(saved)} labels; {expected}")
        policy.head.weight.copy_(torch.zeros(()) if saved is None else saved)
    output = causal_lm.get_output_embeddings().weight
    if output is not embeddings:
        output.requires_grad_(False)


def score_label_tokens(policy: LanguageModel, tokens: list[int]) -> None:
    """Make the output head's logits of the labels' tokens the policy's additional head."""
    policy.head_kind, policy.label_tokens = "label_tokens", tokens
