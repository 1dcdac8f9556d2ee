"""Ranks on the machines of a running Ray cluster: one actor a rank, which runs the same command."""

from __future__ import annotations

import importlib.util
import logging
import os
import re
import signal
import socket
import subprocess
import sys
import threading
import time
from collections import Counter, deque
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from posttrain.common.errors import SettingError
from posttrain.runs.launch import LONGEST_TIMEOUT, RankFailed, exit_code

LAST_LINES = 200
LOOK_EVERY = 0.5  # seconds
LEAVE_WITHIN = 120.0  # seconds that a rank has to save after SIGTERM
NO_MASK = "RAY_EXPERIMENTAL_NOSET_CUDA_VISIBLE_DEVICES"
"""With it, a rank sees all GPUs of its machine and takes its own by number, as NCCL needs it."""


@dataclass(frozen=True)
class RaySettings:
    """Where the cluster is, and what it is asked for. Names are those of the command's options."""

    ray: str
    """Address of the cluster: HOST:PORT, auto, or ray://HOST:PORT."""
    num_workers: int
    """Ranks."""
    max_restarts: int = 0
    timeout: float = 300.0
    """Seconds until the cluster must have given all ranks a place."""


class RankProcess:
    """What a Ray actor holds: the process of one rank on its machine."""

    def __init__(self) -> None:
        self.process: subprocess.Popen[str] | None = None
        self.lines: deque[str] = deque(maxlen=10 * LAST_LINES)
        self.reader: threading.Thread | None = None

    def place(self) -> dict[str, Any]:
        """Return host, address and node of this actor, a free port there, and its GPUs."""
        import ray

        with socket.create_server(("", 0)) as listener:
            port = listener.getsockname()[1]
        return {
            "host": socket.gethostname(),
            "address": ray.util.get_node_ip_address(),
            "node": ray.get_runtime_context().get_node_id(),
            "port": port,
            "gpus": [int(x) for x in ray.get_runtime_context().get_accelerator_ids()["GPU"]],
        }

    def start(self, arguments: list[str], folder: str, variables: dict[str, str]) -> str | None:
        """Start `posttrain ARGUMENTS` in a folder; return why it cannot be, or None."""
        if not Path(folder).is_dir():
            return f"there is no folder {folder} on {socket.gethostname()}"
        command = [sys.executable, "-u", "-m", "posttrain", *arguments]
        self.process = subprocess.Popen(
            ["sh", "-c", WATCHED, "sh", str(os.getpid()), *command],
            cwd=folder,
            env=os.environ | variables,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            errors="replace",
            start_new_session=True,
        )
        self.reader = threading.Thread(target=self._read, daemon=True)
        self.reader.start()
        return None

    def look(self) -> tuple[list[str], int | None]:
        """Return the lines written since the last look, and the exit code once it has ended."""
        assert self.process is not None
        assert self.reader is not None
        code = self.process.poll()
        if code is not None:
            self.reader.join(timeout=5)
        lines = []
        while self.lines:
            lines.append(self.lines.popleft())
        return lines, code

    def stop(self, signum: int) -> None:
        """Send the process and its children a signal, if it is still there."""
        if self.process is not None and self.process.poll() is None:
            os.killpg(self.process.pid, signum)

    def _read(self) -> None:
        assert self.process is not None
        assert self.process.stdout is not None
        for line in self.process.stdout:
            self.lines.append(line.rstrip("\n"))


# the rank must not outlive its actor, which a lost connection to the cluster kills without a word
WATCHED = (
    'parent=$1; shift; "$@" & rank=$!; trap "kill -TERM $rank" TERM INT; '
    '(while kill -0 "$parent" 2>/dev/null; do sleep 1; done; kill -KILL $rank 2>/dev/null) & '
    "watch=$!; wait $rank; code=$?; while kill -0 $rank 2>/dev/null; do wait $rank; code=$?; done; "
    "kill $watch 2>/dev/null; exit $code"
)


@dataclass
class Ranks:
    """The actors of all ranks, and what they were last heard to say."""

    group: Any
    actors: list[Any] = field(default_factory=list)
    places: list[dict[str, Any]] = field(default_factory=list)
    said: list[deque[str]] = field(default_factory=list)


def launch_on_ray(arguments: Sequence[str], settings: RaySettings) -> None:
    """Run `posttrain ARGUMENTS` on every rank until all have ended.

    Rank 0's lines are printed. Raise RankFailed with the first rank that fails, after the others
    have been stopped, and ValueError if the cluster is out of reach or too small.
    """
    check(settings)
    import ray

    connect(settings.ray)
    before = signal.signal(signal.SIGTERM, _interrupt)
    try:
        for attempt in range(settings.max_restarts + 1):
            ranks = reserve(settings)
            try:
                run(ranks, list(arguments), attempt, settings.timeout)
                return
            except RankFailed as error:
                if attempt == settings.max_restarts:
                    raise
                print(f"note: {error}; starting again", file=sys.stderr, flush=True)
            finally:
                release(ranks)
    finally:
        signal.signal(signal.SIGTERM, before)
        ray.shutdown()


def _interrupt(signum: int, frame: Any) -> None:
    """Let the ranks save, as after Ctrl-C."""
    raise KeyboardInterrupt


def check(settings: RaySettings) -> None:
    """Raise ValueError without Ray, and SettingError for a wrong setting."""
    if importlib.util.find_spec("ray") is None:
        raise ValueError("Ray is not installed: pip install 'posttrain[ray]'")
    if settings.num_workers < 1:
        raise SettingError("num_workers", f"expected at least 1, got {settings.num_workers}")
    if settings.max_restarts < 0:
        raise SettingError("max_restarts", f"expected at least 0, got {settings.max_restarts}")
    if not 1 <= settings.timeout <= LONGEST_TIMEOUT:
        raise SettingError(
            "timeout", f"expected 1 to {LONGEST_TIMEOUT:,} seconds, got {settings.timeout:g}"
        )


def connect(address: str) -> None:
    """Join the cluster. No variable of this process goes with it: Ray's dashboard shows them."""
    import ray

    host, _, port = address.removeprefix("ray://").rpartition(":")
    if address != "auto" and not (host and port.isdecimal()):
        raise SettingError("ray", f"expected HOST:PORT or auto, got {address}")
    if address != "auto":  # Ray itself tries for minutes, and says much
        try:
            socket.create_connection((host, int(port)), timeout=10).close()
        except (OSError, OverflowError) as error:
            raise SettingError("ray", f"no cluster answers at {address}: {error}") from None
    try:
        ray.init(address=address, logging_level=logging.ERROR, log_to_driver=False)
    except (ConnectionError, RuntimeError, ValueError) as error:
        if address == "auto" and isinstance(error, ConnectionError):
            raise SettingError("ray", "no cluster runs on this machine: name HOST:PORT") from None
        words = str(error).splitlines()[0][:200]
        raise SettingError("ray", f"the cluster at {address} cannot be joined: {words}") from None


def reserve(settings: RaySettings) -> Ranks:
    """Return an actor for each rank, with a CPU and, if the cluster has GPUs, one of them."""
    import ray
    from ray.util.placement_group import placement_group, remove_placement_group
    from ray.util.scheduling_strategies import PlacementGroupSchedulingStrategy

    available = ray.cluster_resources()
    bundle = {"CPU": 1.0} | ({"GPU": 1.0} if available.get("GPU") else {})
    group = placement_group([bundle] * settings.num_workers, strategy="PACK")
    done, _ = ray.wait([group.ready()], timeout=settings.timeout)
    if not done:
        remove_placement_group(group)
        has = ", ".join(f"{available.get(name, 0):g} {name}s" for name in bundle)
        raise ValueError(
            f"the cluster gave {settings.num_workers} ranks no place within {settings.timeout:g} "
            f"s: it has {has}, some perhaps in use, and each rank needs one of each"
        )
    ranks = Ranks(group)
    kind = ray.remote(RankProcess)
    for index in range(settings.num_workers):
        ranks.actors.append(
            kind.options(
                num_cpus=bundle["CPU"],
                num_gpus=bundle.get("GPU", 0),
                scheduling_strategy=PlacementGroupSchedulingStrategy(
                    group, placement_group_bundle_index=index
                ),
                runtime_env={"env_vars": {NO_MASK: "1"}},
            ).remote()
        )
    ranks.said = [deque(maxlen=LAST_LINES) for _ in ranks.actors]
    return ranks


def run(ranks: Ranks, arguments: list[str], attempt: int, timeout: float) -> None:
    """Start all ranks and print rank 0's lines until all have ended."""
    import ray

    try:
        ranks.places = ray.get([actor.place.remote() for actor in ranks.actors], timeout=timeout)
        folder, common = str(Path.cwd()), shared_variables(ranks, attempt)
        problems = ray.get(
            [
                actor.start.remote(arguments, folder, common | own_variables(ranks, rank))
                for rank, actor in enumerate(ranks.actors)
            ],
            timeout=timeout,
        )
    except ray.exceptions.RayError as error:
        raise ValueError(f"the ranks could not be started: {str(error).splitlines()[0]}") from None
    if problem := next((p for p in problems if p is not None), None):
        raise ValueError(f"{problem}: call this from a folder that all machines share")
    try:
        watch(ranks)
    except KeyboardInterrupt:
        leave(ranks)
        raise


def shared_variables(ranks: Ranks, attempt: int) -> dict[str, str]:
    """Return the variables that are the same for all ranks, as torchrun sets them."""
    first = ranks.places[0]
    return {
        "WORLD_SIZE": str(len(ranks.actors)),
        "MASTER_ADDR": str(first["address"]),
        "MASTER_PORT": str(first["port"]),
        "TORCHELASTIC_RESTART_COUNT": str(attempt),
        "TORCH_CPP_LOG_LEVEL": "ERROR",
    }


def own_variables(ranks: Ranks, rank: int) -> dict[str, str]:
    """Return the variables of one rank."""
    place = ranks.places[rank]
    together = [i for i, other in enumerate(ranks.places) if other["node"] == place["node"]]
    local = place["gpus"][0] if place["gpus"] else together.index(rank)
    threads = max(
        1, (os.cpu_count() or 1) // max(Counter(p["node"] for p in ranks.places).values())
    )
    return {
        "RANK": str(rank),
        "LOCAL_RANK": str(local),
        "LOCAL_WORLD_SIZE": str(len(together)),
        "OMP_NUM_THREADS": os.environ.get("OMP_NUM_THREADS", str(threads)),
    }


def watch(ranks: Ranks) -> None:
    """Print rank 0's lines until all ranks have ended; raise RankFailed if one fails."""
    running = set(range(len(ranks.actors)))
    while running:
        time.sleep(LOOK_EVERY)
        failed: tuple[int, int] | None = None
        for rank in sorted(running):
            code = look(ranks, rank)
            if code is not None:
                running.discard(rank)
                # of several, the one that was not ended by the loss of another
                if code != 0 and (failed is None or lost(ranks, failed[0])):
                    failed = rank, code
        if failed is not None:
            rank, code = failed
            leave(ranks, running)
            raise RankFailed(described(ranks, rank, code), exit_code(code))


def look(ranks: Ranks, rank: int) -> int | None:
    """Take in what a rank has written, and return its exit code; -9 if its actor is gone."""
    import ray

    try:
        lines, code = ray.get(ranks.actors[rank].look.remote(), timeout=60)
    except (ray.exceptions.RayError, ray.exceptions.GetTimeoutError) as error:
        ranks.said[rank].append(f"error: its machine is lost ({type(error).__name__})")
        return -int(signal.SIGKILL)
    ranks.said[rank].extend(lines)
    for line in lines if rank == 0 else ():
        print(line, flush=True)
    return None if code is None else int(code)


def lost(ranks: Ranks, rank: int) -> bool:
    """Return whether a rank ended because another no longer answered."""
    return any("did not answer in" in line for line in ranks.said[rank])


def described(ranks: Ranks, rank: int, code: int) -> str:
    """Return which rank has failed, where, how, and its last words."""
    how = f"exit code {code}" if code > 0 else f"signal {-code}"
    lines = [re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", line).strip() for line in ranks.said[rank]]
    errors = [line.removeprefix("error: ") for line in lines if line.startswith("error: ")]
    words = errors[-1] if errors else " | ".join([line for line in lines if line][-15:])
    return f"rank {rank} on {ranks.places[rank]['host']} has failed ({how}): {words or 'no words'}"


def leave(ranks: Ranks, running: set[int] | None = None) -> None:
    """Ask the ranks that run to save and end, and print what rank 0 still says."""
    import ray

    left = set(range(len(ranks.actors))) if running is None else set(running)
    for rank in left:
        ranks.actors[rank].stop.remote(int(signal.SIGTERM))
    deadline = time.monotonic() + LEAVE_WITHIN
    while left and time.monotonic() < deadline:
        time.sleep(LOOK_EVERY)
        left = {rank for rank in left if look(ranks, rank) is None}
    for rank in left:
        ray.kill(ranks.actors[rank])


def release(ranks: Ranks) -> None:
    """Give back what the ranks held."""
    import ray
    from ray.util.placement_group import remove_placement_group

    for actor in ranks.actors:
        ray.kill(actor)
    remove_placement_group(ranks.group)
