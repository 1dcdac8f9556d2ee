"""run.json, the record of how a run was made and what became of it."""

from __future__ import annotations

import json
import platform
import sys
import time
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import torch

from posttrain.common import distributed
from posttrain.common.disk import update_text
from posttrain.common.environment import versions
from posttrain.common.secrets import hide
from posttrain.model.kernels.quantized import num_parameters
from posttrain.rewards.checks import Checked
from posttrain.runs.plan import Plan


def write_run_info(plan: Plan, run_dir: Path, started: float, state: dict[str, str]) -> None:
    """Write run.json: state, command, versions, duration, sizes. Ranks other than 0 do nothing."""
    if distributed.rank() != 0:
        return
    workers = plan.models.policy.workers
    info: dict[str, Any] = state | {
        "num_steps": plan.num_steps,
        "command": " ".join(sys.argv),
        "started": datetime.fromtimestamp(started, UTC).isoformat(timespec="seconds"),
        "updated": datetime.now(UTC).isoformat(timespec="seconds"),
        "seconds": round(time.time() - started, 1),
        "versions": versions(),
        "num_ranks": distributed.num_ranks(),
        "machine": f"{platform.machine()}, {torch.get_num_threads()} threads",
        "num_workers": 1 if workers is None else workers.number,
        "num_parameters": num_parameters(plan.models.policy),
        "num_trainable": sum(p.numel() for p in plan.models.trainable().values()),
    }
    if isinstance(plan.reward, Checked):
        info["reward"] = plan.reward.about()
    update_text(run_dir / "run.json", hide(json.dumps(info, indent=1)))
