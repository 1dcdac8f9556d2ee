"""Trained checkpoints as models of transformers or PEFT."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from posttrain.model.adapters.peft import load_adapter
from posttrain.model.folder import holds_classifier, is_adapter, refuse_reft
from posttrain.model.load import load_classifier, load_stored


def load_trained(checkpoint: Path) -> Any:
    """Return the transformers or PEFT model of a checkpoint in fp32, in eval mode.

    A reward model or classifier is a sequence classifier, with its adapter merged if it has one.
    Raises ValueError if weights are missing.
    """
    if holds_classifier(checkpoint):
        model, missing = load_classifier(str(checkpoint), torch.float32)
        if missing:
            raise ValueError(f"{checkpoint} lacks weights: {', '.join(missing[:3])}")
        return model.eval()
    refuse_reft(checkpoint, "run by transformers: use posttrain generate, or serve")
    cpu, dtype = torch.device("cpu"), torch.float32
    model = load_stored(str(checkpoint), None, cpu, dtype, dtype)
    if is_adapter(checkpoint):
        model = load_adapter(model, str(checkpoint))
    return model.eval()
