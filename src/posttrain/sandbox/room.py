"""The sandbox of the trusted side: where the tests of a row run.

A test may evaluate text that a candidate returned, so the process that runs it has no more rights
than a candidate. It sees the interpreter, its library and the packages of this environment, and
nothing else: no other file, no network, no right to write, signal or start anything.

The namespaces are made once, when the lane starts, by a process that ends at once; descriptors keep
them. Each row's tests are forked from the lane and join them, in 0.05 ms. Namespaces of each row's
own cost 2.9 ms, and would add nothing: no process of an earlier row is left, and nothing in them
can be written. Each process sets landlock, seccomp and the limits for itself. A fork and `enter`
take 2.3 ms (median of 200), of which the fork is 0.8 and seccomp 0.5.
"""

import json
import os
import resource
import socket
import sys
import tempfile
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from typing import Any

from posttrain.sandbox import calls, confine
from posttrain.sandbox.view import (
    EMPTY,
    Unavailable,
    build_root,
    drop_root,
    enter_namespaces,
    package_folders,
    tester_view,
)

MEMORY = 2 << 30  # bytes
THREADS = 64
ENVIRONMENT = {
    "HOME": EMPTY,
    "LANG": "C.UTF-8",
    "OMP_NUM_THREADS": "1",
    "OPENBLAS_NUM_THREADS": "1",
}
# "user" first, as it brings the right to join the others; "mnt" last, as it hides the rest.
_KINDS = ("user", "net", "ipc", "uts", "cgroup", "mnt")


@dataclass(frozen=True)
class Room:
    """What the tests' processes join and apply."""

    lane: int
    """Id of the process that forks them."""
    nobody: bool
    """Whether they give up root first."""
    namespaces: tuple[int, ...]
    """Descriptors of namespaces, in the order of joining; empty if the kernel refuses them."""
    rules: int | None
    """Descriptor of landlock's rules; None if the kernel has none."""
    seccomp: bool


def open_room(level: str) -> Room:
    """Make the tests' namespaces and rules, as far as the kernel allows.

    Raises:
        Unavailable: At a level other than "process", the kernel offers neither namespaces nor
            landlock, or no seccomp.
    """
    ours, theirs = socket.socketpair()
    pid = os.fork()
    if pid == 0:
        try:
            _build(theirs)
        except (OSError, Unavailable) as error:
            theirs.send(f"{error}".encode()[:500])
        finally:
            os._exit(0)
    theirs.close()
    problem, received, _, _ = socket.recv_fds(ours, 512, len(_KINDS) + 1)
    ours.close()
    os.waitpid(pid, 0)
    for fd in received:
        os.set_inheritable(fd, False)
    seccomp = confine.has_seccomp()
    if seccomp:
        calls.filter_program(tests=True)  # kept for the processes that are forked
    if received:
        namespaces = tuple(received[: len(_KINDS)])
        rules = received[len(_KINDS)] if len(received) > len(_KINDS) else None
        nobody = problem == b"nobody"
    else:
        view = tester_view(may_mount=False)
        namespaces, nobody = (), view.nobody
        rules = None
        if confine.landlock_version():
            rules = confine.landlock_rules([path for _, path in view.binds])
    cause = problem.decode(errors="replace") or "the process that makes its namespaces died"
    if level != "process" and not seccomp:
        raise Unavailable("the tests cannot be confined: this kernel has no seccomp")
    hides_files = bool(received) or (rules is not None and (nobody or os.geteuid() != 0))
    if level != "process" and not hides_files:
        raise Unavailable(f"the tests cannot be confined: {cause}, and landlock does not suffice")
    return Room(os.getpid(), nobody, namespaces, rules, seccomp)


def _build(answer: socket.socket) -> None:
    """Make the namespaces, and send descriptors of them and of landlock's rules."""
    view = tester_view(may_mount=True)
    if view.nobody:
        drop_root()
    enter_namespaces(confine.NEW_NAMESPACES & ~confine.NEW_PROCESSES)
    descriptors = [os.open(f"/proc/self/ns/{kind}", os.O_RDONLY) for kind in _KINDS]
    build_root(view)
    if confine.landlock_version():
        descriptors.append(confine.landlock_rules([path for _, path in view.binds], ["/"]))
    socket.send_fds(answer, [b"nobody" if view.nobody else b"user"], descriptors)


def close_room(room: Room) -> None:
    """Close its descriptors, with which the namespaces end."""
    for fd in (*room.namespaces, *([] if room.rules is None else [room.rules])):
        os.close(fd)


def enter(room: Room, keep: tuple[int, ...], cpu_seconds: int) -> None:
    """Confine this process, which was forked from the lane, for good.

    Args:
        keep: The descriptors that stay open, in addition to 0, 1 and 2, which become /dev/null.
        cpu_seconds: Limit of this process's processor time.

    Raises:
        OSError: The kernel refuses what it allowed before; the process must end.
    """
    null = os.open(os.devnull, os.O_RDWR)
    for fd in (0, 1, 2):
        os.dup2(null, fd)
    os.environ.clear()
    os.environ.update(ENVIRONMENT)
    if room.nobody:
        drop_root()
    for namespace in room.namespaces:
        confine.join(namespace)
    os.chdir(EMPTY if room.namespaces else "/")
    confine.no_new_privileges()
    confine.drop_capabilities()
    confine.hide_memory()
    confine.die_with_parent()
    if os.getppid() != room.lane:  # it ended before that
        os._exit(1)
    _limit(cpu_seconds, count_threads=bool(room.namespaces))
    if room.rules is not None:
        confine.apply_landlock(room.rules)
    kept = sorted({2, *keep})
    for fd, following in zip(kept, [*kept[1:], 4096]):
        os.closerange(fd + 1, following)
    if room.seccomp:
        confine.apply_seccomp(calls.filter_program(tests=True))


def _limit(cpu_seconds: int, count_threads: bool) -> None:
    limits = {
        resource.RLIMIT_CPU: cpu_seconds,
        resource.RLIMIT_AS: MEMORY,
        resource.RLIMIT_FSIZE: 0,
        resource.RLIMIT_CORE: 1,  # byte: with 0, a handler of core dumps would still be started
        resource.RLIMIT_NOFILE: 64,
        resource.RLIMIT_MEMLOCK: 0,
    }
    if count_threads:  # else they are counted together with the user's other processes
        limits[resource.RLIMIT_NPROC] = THREADS
    for kind, value in limits.items():
        resource.setrlimit(kind, (value, value))


# --- the check ------------------------------------------------------------------------------------


def check(room: Room) -> list[str]:
    """Return what the tests can do and should not, as found in a process that enters the room.

    Raises:
        Unavailable: It cannot be entered, or does not show what tests need.
    """
    report, answer = os.pipe()
    with _owned_file() as owned:
        pid = os.fork()
        if pid == 0:
            try:
                enter(room, (answer,), 10)
                found = json.dumps(_findings(owned.name, answer))
            except Exception as error:
                found = json.dumps(f"{type(error).__name__}: {error}"[:500])
            with suppress(OSError):
                os.write(answer, found.encode())
            os._exit(0)
        os.close(answer)
        os.waitpid(pid, 0)
    text = os.read(report, 1 << 16)
    os.close(report)
    findings = json.loads(text or '"the process ended"')
    if isinstance(findings, str):
        raise Unavailable(f"the tests' process cannot be confined: {findings}")
    return list(findings)


def _owned_file() -> Any:
    try:
        return tempfile.NamedTemporaryFile()
    except OSError:  # there is no place for one
        return open("/etc/passwd")


def _findings(owned: str, answer: int) -> list[str]:
    """Return what this process can do; `owned` is a file of the user's, outside the room."""
    for path in (os.__file__, *package_folders()):
        os.stat(path)
    found = []
    if os.geteuid() == 0:
        found.append("is root")
    if any(_works(partial(os.fstat, fd)) for fd in range(3, 256) if fd != answer):
        found.append("has other descriptors")
    places = ("/", "/tmp", EMPTY, ".", os.path.dirname(owned), os.path.dirname(sys.executable))
    attempts: dict[str, list[Callable[[], Any]]] = {
        "can read the system's files": [
            partial(os.open, "/etc/passwd", os.O_RDONLY),
            partial(os.listdir, "/proc"),
        ],
        "can read the user's files": [partial(os.open, owned, os.O_RDONLY)],
        "can write files": [
            partial(os.open, owned, os.O_WRONLY),
            *(partial(tempfile.TemporaryFile, dir=place) for place in places),
        ],
        "can open sockets": [lambda: socket.socket(), lambda: socket.socket(socket.AF_UNIX)],
        "can start processes": [_fork, lambda: os.execv(sys.executable, ["python"])],
        "can signal other processes": [partial(os.kill, pid, 0) for pid in (os.getppid(), 1, -1)],
    }
    for breach, actions in attempts.items():
        if any(map(_works, actions)):
            found.append(breach)
    return found


def _fork() -> None:
    if os.fork() == 0:
        os._exit(0)


def _works(action: Callable[[], Any]) -> bool:
    try:
        action()
    except OSError:
        return False
    return True
