"""Machines that may leave and come back while a run goes on: torch's c10d rendezvous.

After a machine is lost, the others meet again and continue from the last checkpoint with their
ranks; one that comes is taken in at a restart that it causes. Machine 0 holds what all meet at.
"""

from __future__ import annotations

import os
import sys
from datetime import timedelta
from typing import Any

BACKEND = "posttrain"
"""The name of this rendezvous in torch's registry."""
LAST_CALL = 30  # seconds that the machines wait for one more, once enough have come
MEETING = "POSTTRAIN_MEETING"
"""The variable with the number of this meeting of the machines, from 0."""
MACHINE = "POSTTRAIN_MACHINE"
"""The variable with the number of this machine among those that have met."""
# the agent counts its own restarts: one that has just come would start a new run, and its ranks
# wait for the others where they are not
COUNTED = f'export TORCHELASTIC_RESTART_COUNT="${MEETING}"; exec "$@"'


def register() -> None:
    """Make the rendezvous known to torch's launcher by the name BACKEND."""
    from torch.distributed.elastic.rendezvous import (
        RendezvousInfo,
        RendezvousParameters,
        rendezvous_handler_registry,
    )
    from torch.distributed.elastic.rendezvous.c10d_rendezvous_backend import create_backend
    from torch.distributed.elastic.rendezvous.dynamic_rendezvous import (
        DynamicRendezvousHandler,
        RendezvousTimeout,
    )

    class Meetings(DynamicRendezvousHandler):
        """torch's rendezvous, which also tells the ranks how often the machines have met."""

        def next_rendezvous(self) -> RendezvousInfo:
            info = super().next_rendezvous()
            if info.rank == 0:
                info.store.set("number", str(self._store.add("meetings", 1) - 1))
            number = int(info.store.get("number"))
            os.environ[MEETING], os.environ[MACHINE] = str(number), str(info.rank)
            if number:
                say(info.world_size, self.settings.max_nodes)
            return info

        def get_backend(self) -> str:
            return BACKEND

    def create(parameters: RendezvousParameters) -> Any:
        backend, store = create_backend(parameters)
        return Meetings.from_backend(
            parameters.run_id,
            store,
            backend,
            parameters.min_nodes,
            parameters.max_nodes,
            parameters.local_addr,
            RendezvousTimeout(**parameters.get("waits")),
        )

    rendezvous_handler_registry.register(BACKEND, create)
    # the store of an earlier meeting is on a machine that may be gone
    os.environ["TORCH_DISABLE_SHARE_RDZV_TCP_STORE"] = "1"


def rendezvous_configs(node_rank: int, timeout: float) -> dict[str, Any]:
    """Return what the rendezvous is told; `timeout` in seconds."""
    waits = {"join": timedelta(seconds=timeout), "last_call": timedelta(seconds=LAST_CALL)}
    # torch would compare names of machines, which need not resolve
    return {"is_host": node_rank == 0, "read_timeout": int(timeout), "waits": waits}


def say(machines: int, most: int) -> None:
    """Print how many machines go on."""
    print(f"{machines} of {most} machines go on", file=sys.stderr, flush=True)


def why_not(error: Exception, address: str, timeout: float, fewest: int) -> str:
    """Return in one line why the machines did not meet, or no longer do."""
    from torch.distributed.elastic.rendezvous import (
        RendezvousClosedError,
        RendezvousConnectionError,
        RendezvousTimeoutError,
    )

    cause = error.__cause__ or error
    reason = str(cause).partition("\n")[0].partition("Exception raised from")[0][:200]
    if isinstance(error, RendezvousClosedError):
        return "the run has ended on another machine, whose console says how"
    if isinstance(error, RendezvousConnectionError):
        return (
            f"machine 0, at which all meet ({address}), is out of reach: start it, or all of them "
            f"again to resume ({reason})"
        )
    if isinstance(error, RendezvousTimeoutError):
        return (
            f"fewer than {fewest} machines met at {address} within {timeout:g} s: start all of "
            "them with the same address and numbers of nodes"
        )
    return f"the machines cannot meet at {address}: {reason}"
