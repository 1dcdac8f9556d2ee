"""Ranks on this machine, started and watched by torchrun's own agent."""

from __future__ import annotations

import fcntl
import logging
import os
import re
import shutil
import socket
import struct
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch

from posttrain.common.errors import SettingError

LAST_LINES = 15
SIOCGIFADDR = 0x8915  # Linux's request for an interface's address


@dataclass(frozen=True)
class LaunchSettings:
    """How many ranks, and where they meet. Names are those of the command's options."""

    nproc: int | None = None
    """Ranks on this machine; by default one for each GPU, or one."""
    nnodes: int = 1
    node_rank: int = 0
    address: str | None = None
    """Host and port of node 0, which all nodes name."""
    max_restarts: int = 0
    timeout: float = 300.0
    """Seconds until all nodes must have come."""


class RankFailed(ValueError):
    """A rank has failed; its exit code is that of the command."""

    def __init__(self, message: str, code: int) -> None:
        super().__init__(message)
        self.code = code


def launch(arguments: Sequence[str], settings: LaunchSettings) -> None:
    """Run `posttrain ARGUMENTS` on every rank until all have ended.

    Rank 0 of this machine writes to the console, the others to files whose end is shown if one
    fails. Raise RankFailed with the first rank that did, after the others have been stopped.
    """
    from torch.distributed.elastic.multiprocessing import DefaultLogsSpecs, Std
    from torch.distributed.elastic.multiprocessing.errors import ChildFailedError
    from torch.distributed.elastic.rendezvous import RendezvousError
    from torch.distributed.launcher.api import LaunchConfig, elastic_launch

    nproc = check(settings)
    logging.getLogger("torch.distributed.elastic").setLevel(logging.CRITICAL)  # says it at length
    alone = settings.nnodes == 1
    if nproc > 1:  # as torchrun does, but with all the cores
        os.environ.setdefault("OMP_NUM_THREADS", str(max(1, (os.cpu_count() or 1) // nproc)))
    own = None if alone else own_address(settings)
    if own is not None and (interface := interface_of(own)) is not None:
        # gloo would take the address that this machine's name has, which is often that of loopback
        os.environ.setdefault("GLOO_SOCKET_IFNAME", interface)
    os.environ.setdefault("TORCH_CPP_LOG_LEVEL", "ERROR")  # names that do not resolve, and the like
    logs = Path(tempfile.mkdtemp(prefix="posttrain-ranks-"))
    config = LaunchConfig(
        min_nodes=settings.nnodes,
        max_nodes=settings.nnodes,
        nproc_per_node=nproc,
        # static needs no names of machines that resolve, as the other backends do
        rdzv_backend="c10d" if alone else "static",
        rdzv_endpoint="localhost:0" if alone else settings.address or "",
        rdzv_configs={"timeout": int(settings.timeout), "rank": settings.node_rank},
        run_id=f"posttrain-{os.getpid()}" if alone else "posttrain",
        max_restarts=settings.max_restarts,
        monitor_interval=0.2,
        start_method="spawn",
        local_addr="localhost" if alone else own,
        logs_specs=DefaultLogsSpecs(str(logs), redirects=dict.fromkeys(range(1, nproc), Std.ALL)),
    )
    try:
        elastic_launch(config, sys.executable)("-u", "-m", "posttrain", *arguments)
    except ChildFailedError as error:
        rank, failure = error.get_first_failure()
        raise RankFailed(
            described(rank, failure.local_rank, failure.exitcode, logs), exit_code(failure.exitcode)
        ) from None
    except (RendezvousError, RuntimeError, TimeoutError) as error:
        raise ValueError(
            f"the {settings.nnodes} nodes did not meet at {settings.address} within "
            f"{settings.timeout:g} s: start all of them with the same address and number of nodes, "
            f"and as node 0 the machine of that address ({str(error).splitlines()[0][:200]})"
        ) from None
    shutil.rmtree(logs, ignore_errors=True)


def check(settings: LaunchSettings) -> int:
    """Return the number of ranks on this machine; raise SettingError for a wrong setting."""
    gpus = torch.cuda.device_count()
    nproc = settings.nproc if settings.nproc is not None else max(1, gpus)
    if nproc < 1:
        raise SettingError("nproc", f"expected at least 1, got {nproc}")
    if gpus and nproc > gpus and not on_cpu():
        raise SettingError(
            "nproc", f"{nproc} ranks, but this machine has {gpus} GPUs: each rank takes one"
        )
    if settings.nnodes < 1:
        raise SettingError("nnodes", f"expected at least 1, got {settings.nnodes}")
    if not 0 <= settings.node_rank < settings.nnodes:
        raise SettingError(
            "node_rank", f"expected 0 to {settings.nnodes - 1}, got {settings.node_rank}"
        )
    if settings.max_restarts < 0:
        raise SettingError("max_restarts", f"expected at least 0, got {settings.max_restarts}")
    if settings.nnodes == 1:
        if settings.address is not None:
            raise SettingError("address", "is for several nodes: nnodes says how many")
        return nproc
    host, _, port = (settings.address or "").rpartition(":")
    if not host or not port.isdecimal() or not 0 < int(port) < 65536:
        raise SettingError(
            "address",
            f"expected HOST:PORT of node 0, the same on every node, got {settings.address}",
        )
    try:
        socket.getaddrinfo(host, int(port))
    except (OSError, UnicodeError) as error:
        raise SettingError("address", f"{host} is not known here: {error}") from None
    return nproc


def own_address(settings: LaunchSettings) -> str | None:
    """Return the IPv4 address under which the other nodes reach this one, or None."""
    host, _, port = (settings.address or "").rpartition(":")
    try:
        address = socket.getaddrinfo(host, int(port), socket.AF_INET)[0][4]
        if settings.node_rank == 0:
            return str(address[0])
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
            probe.connect(address)  # sends nothing, but chooses the interface
            return str(probe.getsockname()[0])
    except OSError:
        return None


def interface_of(address: str) -> str | None:
    """Return the name of the network interface that has an IPv4 address, or None."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as asking:
        for _, name in socket.if_nameindex():
            request = struct.pack("256s", name.encode()[:15])
            try:
                found = fcntl.ioctl(asking.fileno(), SIOCGIFADDR, request)
            except OSError:
                continue  # an interface without an address
            if socket.inet_ntoa(found[20:24]) == address:
                return name
    return None


def on_cpu() -> bool:
    """Return whether the GPUs are hidden from this process."""
    return os.environ.get("CUDA_VISIBLE_DEVICES") == ""


def described(rank: int, local_rank: int, exitcode: int, logs: Path) -> str:
    """Return which rank has failed, how, and its last words; empty if the console has them."""
    how = f"exit code {exitcode}" if exitcode >= 0 else f"signal {-exitcode}"
    if local_rank == 0 and exitcode > 0:
        return ""
    said = last_lines(logs, local_rank)
    errors = [line.removeprefix("error: ") for line in said if line.startswith("error: ")]
    words = errors[-1] if errors else " | ".join(said[-LAST_LINES:])
    if not words:
        words = "" if local_rank == 0 else f"it wrote nothing ({logs})"
    failed = f"rank {rank} on {socket.gethostname()} has failed ({how})"
    return f"{failed}: {words}" if words else failed


def last_lines(logs: Path, local_rank: int) -> list[str]:
    """Return the last lines that a rank of this machine wrote to stderr, without progress bars."""
    files = sorted(logs.glob(f"**/{local_rank}/stderr.log"), key=lambda f: f.stat().st_mtime)
    if not files:
        return []
    text = files[-1].read_text(errors="replace")
    lines = [re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", x).strip() for x in re.split(r"[\r\n]+", text)]
    return [line for line in lines if line][-200:]


def exit_code(code: int) -> int:
    """Return the exit code of the command for that of a rank; a signal's is 128 + its number."""
    return code if code > 0 else 128 - code
