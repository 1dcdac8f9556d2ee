"""Ranks on this machine, started and watched by torchrun's own agent."""

from __future__ import annotations

import fcntl
import logging
import os
import re
import shutil
import signal
import socket
import struct
import sys
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import count
from pathlib import Path
from types import FrameType

from posttrain.common.errors import SettingError
from posttrain.common.lazy import torch
from posttrain.runs import launch_elastic

LAST_LINES = 15
STOPPING_WITHIN = 3600  # seconds for a rank to end its step; after SIGTERM it ends itself, earlier
STOPPED = (128 + signal.SIGINT, 128 + signal.SIGTERM)
"""Exit codes of a rank that was asked to stop."""
LONGEST_TIMEOUT = 10**6  # seconds
IN_USE = "address already in use"
SIOCGIFADDR = 0x8915  # Linux's request for an interface's address


@dataclass(frozen=True)
class LaunchSettings:
    """How many ranks, and where they meet. Names are those of the command's options."""

    nproc: int | None = None
    """Ranks on this machine; by default one for each GPU, or one."""
    nnodes: int = 1
    min_nodes: int | None = None
    """With fewer machines than nnodes, but this many, the run goes on; by default it does not."""
    node_rank: int = 0
    address: str | None = None
    """Host and port of node 0, which all nodes name."""
    max_restarts: int = 0
    timeout: float = 300.0
    """Seconds until all nodes must have come, at least 1."""


class RankFailed(ValueError):
    """A rank has failed or was stopped; its exit code is that of the command."""

    def __init__(self, message: str, code: int) -> None:
        super().__init__(message)
        self.code = code


def launch(arguments: Sequence[str], settings: LaunchSettings) -> None:
    """Run `posttrain ARGUMENTS` on every rank until all have ended.

    Rank 0 of this machine writes to the console, the others to files whose end is shown if one
    fails. Raise RankFailed with the first rank that did, after the others have been stopped, or,
    without a message, after SIGINT or SIGTERM, which are passed on to the ranks.
    """
    is_open = "TORCH_CPP_LOG_LEVEL" not in os.environ
    if is_open:  # read when torch is imported; no stack traces of machines that do not come
        os.environ["TORCH_CPP_LOG_LEVEL"] = "FATAL"
    from torch.distributed.elastic.multiprocessing import DefaultLogsSpecs, SignalException, Std
    from torch.distributed.elastic.multiprocessing.errors import ChildFailedError
    from torch.distributed.elastic.rendezvous import RendezvousError
    from torch.distributed.launcher.api import LaunchConfig, elastic_launch

    if is_open:  # for the ranks; no warnings of names that do not resolve
        os.environ["TORCH_CPP_LOG_LEVEL"] = "ERROR"
    nproc = check(settings)
    alone, elastic = settings.nnodes == 1, settings.min_nodes is not None
    if nproc > 1:  # torchrun would set 1
        os.environ.setdefault("OMP_NUM_THREADS", str(max(1, (os.cpu_count() or 1) // nproc)))
    own = None if alone else own_address(settings)
    if own is not None and (interface := interface_of(own)) is not None:
        # gloo would take the address that this machine's name has, which is often that of loopback
        os.environ.setdefault("GLOO_SOCKET_IFNAME", interface)
    logs = Path(tempfile.mkdtemp(prefix="posttrain-ranks-"))
    watch_failures(settings, nproc, logs)
    # static needs no names of machines that resolve, as the other backends of torch do
    backend = "c10d" if alone else "static"
    meeting = {"timeout": int(settings.timeout), "rank": settings.node_rank}
    command = [sys.executable, "-u", "-m", "posttrain", *arguments]
    if elastic:
        launch_elastic.register()
        backend = launch_elastic.BACKEND
        meeting = launch_elastic.rendezvous_configs(settings.node_rank, settings.timeout)
        command = ["/bin/sh", "-c", launch_elastic.COUNTED, "sh", *command]
    config = LaunchConfig(
        min_nodes=settings.min_nodes or settings.nnodes,
        max_nodes=settings.nnodes,
        nproc_per_node=nproc,
        rdzv_backend=backend,
        rdzv_endpoint="localhost:0" if alone else settings.address or "",
        rdzv_configs=meeting,
        run_id=f"posttrain-{os.getpid()}" if alone else "posttrain",
        max_restarts=settings.max_restarts,
        monitor_interval=0.2,
        start_method="spawn",
        local_addr="localhost" if alone else own,
        logs_specs=DefaultLogsSpecs(str(logs), redirects=dict.fromkeys(range(1, nproc), Std.ALL)),
        signals_to_handle="",  # the agent would handle signals that nohup ignores
        shutdown_timeout=STOPPING_WITHIN,
    )
    try:
        with passing_signals_on():
            elastic_launch(config, command[0])(*command[1:])
    except SignalException as error:
        raise RankFailed("", 128 + error.sigval) from None
    except ChildFailedError as error:
        rank, failure = error.get_first_failure()
        raise RankFailed(
            described(rank, failure.local_rank, failure.exitcode, logs), exit_code(failure.exitcode)
        ) from None
    except (RendezvousError, RuntimeError, TimeoutError) as error:
        reason = str(error.__cause__ or error).partition("\n")[0][:200]
        if not alone and settings.node_rank == 0 and IN_USE in reason.lower():
            raise SettingError(
                "address", f"{settings.address} is in use: name a free port"
            ) from None
        if alone:
            raise ValueError(f"the ranks could not be started: {reason}") from error
        if settings.min_nodes is not None:
            raise ValueError(
                launch_elastic.why_not(
                    error, str(settings.address), settings.timeout, settings.min_nodes
                )
            ) from None
        raise ValueError(
            f"the {settings.nnodes} nodes did not meet at {settings.address} within "
            f"{settings.timeout:g} s: start all of them with the same address and number of nodes, "
            f"and as node 0 the machine of that address ({reason})"
        ) from None
    finally:
        shutil.rmtree(logs, ignore_errors=True)


@contextmanager
def passing_signals_on() -> Iterator[None]:
    """Raise SignalException at the first signal to stop, and send later ones to the ranks.

    At the exception the agent sends the signal to the ranks and waits for them. Each rank has a
    session of its own, so that Ctrl-C in a terminal does not reach it.
    """
    from torch.distributed.elastic.multiprocessing import SignalException

    received: list[int] = []

    def handle(signum: int, frame: FrameType | None) -> None:
        received.append(signum)
        if len(received) == 1:
            raise SignalException(f"signal {signum}", signal.Signals(signum))
        for process in children():
            os.kill(process, signum)

    before = {
        number: signal.signal(number, handle)
        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGQUIT)
        if signal.getsignal(number) is not signal.SIG_IGN  # a job in the background, or nohup
    }
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, signal.SIG_DFL if handler is None else handler)


def children() -> list[int]:
    """Return the processes that this one has started."""
    found = []
    for file in Path("/proc").glob("[0-9]*/stat"):
        try:
            parent = file.read_text().rpartition(")")[2].split()[1]
        except OSError:
            continue  # it has ended
        if int(parent) == os.getpid():
            found.append(int(file.parent.name))
    return found


def watch_failures(settings: LaunchSettings, nproc: int, logs: Path) -> None:
    """Replace what the agent logs by a line for each restart: which rank has failed, and how.

    A rank that ended because it was asked to, here or on another machine, is no failure: the
    exception ends the agent as that signal would. If the run may go on with fewer machines, SIGTERM
    on another is that machine leaving.
    """
    from torch.distributed.elastic.multiprocessing import SignalException

    restarts = count(1)

    def announce(record: logging.LogRecord) -> bool:
        if not str(record.msg).startswith("failed (exitcode") or not isinstance(record.args, tuple):
            return False
        exitcode, local_rank = int(str(record.args[0])), int(str(record.args[1]))
        leaves = settings.min_nodes is not None and exitcode == 128 + signal.SIGTERM
        if exitcode in STOPPED and not leaves:
            raise SignalException("a rank was stopped", signal.Signals(exitcode - 128))
        rank = int(os.environ.get(launch_elastic.MACHINE, settings.node_rank)) * nproc + local_rank
        if (number := next(restarts)) <= settings.max_restarts:
            words = described(rank, local_rank, exitcode, logs) or f"rank {rank} has failed"
            if leaves:
                words = "the run was stopped and saved, since machines leave or come"
            print(f"{words}; restart {number} of {settings.max_restarts}", file=sys.stderr)
        return False

    elastic = logging.getLogger("torch.distributed.elastic")
    elastic.propagate = False
    elastic.addHandler(logging.NullHandler())
    logging.getLogger("torch.distributed.elastic.multiprocessing.api").addFilter(announce)


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
    if settings.min_nodes is not None and not 1 <= settings.min_nodes < settings.nnodes:
        raise SettingError(
            "nnodes",
            f"expected MIN:MAX with 1 <= MIN < MAX, got {settings.min_nodes}:{settings.nnodes}",
        )
    if settings.min_nodes is not None and settings.max_restarts < 1:
        raise SettingError(
            "max_restarts", "expected at least 1, since each machine that is lost takes a restart"
        )
    if settings.max_restarts < 0:
        raise SettingError("max_restarts", f"expected at least 0, got {settings.max_restarts}")
    if not 1 <= settings.timeout <= LONGEST_TIMEOUT:
        raise SettingError(
            "timeout", f"expected 1 to {LONGEST_TIMEOUT:,} seconds, got {settings.timeout:g}"
        )
    if settings.nnodes == 1:
        if settings.address is not None:
            raise SettingError("address", "is for several nodes, but nnodes is 1")
        return nproc
    host, _, port = (settings.address or "").rpartition(":")
    if not host or not port.isdecimal() or not 0 < int(port) < 65536:
        raise SettingError(
            "address",
            "expected HOST:PORT of node 0, the same on every node, got "
            f"{settings.address or 'nothing'}",
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
        words = "" if local_rank == 0 else "it wrote nothing"
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
