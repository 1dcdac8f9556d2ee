"""What a rank tells the others about itself, which they read when it no longer answers."""

from __future__ import annotations

import json
import socket
import time
from typing import Any

from posttrain.common import distributed
from posttrain.common.lazy import torch


def tell(topic: str, what: dict[str, Any]) -> None:
    """Tell the other ranks something about this one, which `told` returns. Not a collective."""
    if distributed.num_ranks() > 1:
        said = what | {"time": time.time(), "host": socket.gethostname()}
        _store().set(f"posttrain/{topic}/{distributed.rank()}", json.dumps(said))


def told(topic: str, by: int) -> dict[str, Any] | None:
    """Return what a rank told last about a topic, with its time and host; None if nothing."""
    key = f"posttrain/{topic}/{by}"
    return dict(json.loads(_store().get(key))) if _store().check([key]) else None


def _store() -> Any:
    return torch.distributed.distributed_c10d._get_default_store()
