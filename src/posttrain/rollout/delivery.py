"""The policy's adapter as a folder in PEFT's format, for engines that load weights from files."""

from __future__ import annotations

import os
import shutil
from pathlib import Path
from typing import Any

from posttrain import distributed
from posttrain.checkpoint import save_adapter


def write_adapter(folder: Path, policy: Any) -> None:
    """Write the policy's adapter to `folder`, which appears whole or not at all.

    A collective: sharded weights are gathered on every rank, rank 0 writes. Raises OSError there.
    """
    trainable = ((n, p) for n, p in policy.named_parameters() if p.requires_grad)
    weights = {name: distributed.full(p.detach()).cpu() for name, p in trainable}
    if distributed.rank() != 0:
        return
    temporary = folder.with_name(f".writing-{folder.name}")
    shutil.rmtree(temporary, ignore_errors=True)
    temporary.mkdir(parents=True)
    save_adapter(temporary, policy.model, weights)
    shutil.rmtree(folder, ignore_errors=True)  # of a delivery that failed
    os.replace(temporary, folder)


def has_adapter(policy: Any) -> bool:
    return hasattr(policy.model, "peft_config")
