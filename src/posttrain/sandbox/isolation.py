"""The levels of isolation: how a Python process is started at each, and how it is ended.

    bubblewrap   own user, pid, network, mount, ipc, host-name and cgroup namespaces, made by bwrap;
                 of the file system only the interpreter and libraries, read-only; seccomp
    namespace    the same namespaces, view and seccomp, made by system calls; landlock in addition
    process      limits and a session of its own; landlock and seccomp if the kernel has them. No
                 isolation is promised: it shares the user's processes, and sees what landlock
                 cannot hide

At the first two the candidate has uid 65534, no capability, no writable file, no /proc, no network
and no new process (threads only). All this runs in a lane (`lane.py`), which may fork because it
has one thread.
"""

import json
import os
import shutil
import signal
import time
from contextlib import suppress
from dataclasses import dataclass
from functools import cache

from posttrain.sandbox import calls, confine
from posttrain.sandbox.view import (
    EMPTY,
    NOBODY,
    Unavailable,
    View,
    build_root,
    drop_root,
    enter_namespaces,
)

LEVELS = ("bubblewrap", "namespace", "process")
# How many processes of the sandbox's user there are in addition to the program's threads.
OTHER_PROCESSES = {"bubblewrap": 1, "namespace": 2, "process": 0}
ENVIRONMENT = {
    "HOME": EMPTY,
    "PWD": EMPTY,  # as bwrap sets it
    "LANG": "C.UTF-8",
    "PYTHONHASHSEED": "0",
    "MALLOC_ARENA_MAX": "1",
}
STDIN, STDOUT, NULL, CHANNEL, INFO, SECCOMP = range(6)

# Runs the two files that arrive over the channel; child.py continues from there.
_BOOT = f"""
import marshal, os, sys
def read(n):
    data = b""
    while len(data) < n: data += os.read({CHANNEL}, n - len(data)) or os._exit(0)
    return data
for name, code in marshal.loads(read(int(read(8)))):
    module = sys.modules[name] = type(sys)(name)
    exec(code, vars(module))
module.main({CHANNEL})
"""


@dataclass
class Sandbox:
    """A started process that waits for its program."""

    pid: int
    """The lane's child: bwrap, the process that made the namespaces, or the candidate itself."""
    group: bool
    """Whether the whole process group is killed, as at the level "process"."""
    channel: int
    stdin: int
    stdout: int
    info: int
    """Pipe with the process id of the namespace's first process, as JSON."""
    pidfd: int


@dataclass
class Ending:
    """How a sandbox ended; `status` is the candidate's exit status, or 128 + n for signal n."""

    status: int
    cpu_seconds: float


# --- starting -------------------------------------------------------------------------------------


def start(level: str, view: View, *, error: int | None = None) -> Sandbox:
    """Start a process at `level`; `error` is a file descriptor for what goes wrong in the start."""
    channel, their_channel = _socket_pair()
    # a file, as in a contest: programs ask for its size, or map it
    stdin = os.memfd_create("stdin")
    their_stdin = os.open(f"/proc/self/fd/{stdin}", os.O_RDONLY)
    stdout, their_stdout = os.pipe()
    info, their_info = os.pipe()
    null = os.open(os.devnull, os.O_RDWR)
    filter_, filter_in = os.pipe()
    if level == "bubblewrap":
        os.write(filter_in, calls.filter_program())
    os.close(filter_in)
    stderr = null if error is None else error
    pid = os.fork()
    if pid == 0:
        try:
            # in the order of STDIN, STDOUT, NULL, CHANNEL, INFO, SECCOMP
            _place((their_stdin, their_stdout, stderr, their_channel, their_info, filter_))
            os.setsid()
            default_signals()
            if view.nobody:
                drop_root()
            # bwrap does so itself, once its child cannot outlive it
            if level != "bubblewrap":
                confine.die_with_parent()
            _START[level](view)
        except BaseException as problem:
            os.write(2, f"{problem}\n".encode())
        finally:
            os._exit(127)
    for fd in (their_stdin, their_stdout, their_channel, their_info, null, filter_):
        os.close(fd)
    sandbox = Sandbox(pid, level == "process", channel, stdin, stdout, info, os.pidfd_open(pid))
    os.set_blocking(stdout, False)
    os.write(channel, _program())
    return sandbox


def default_signals() -> None:
    """Undo what nohup and shells do to signals, which would change how a program ends."""
    for number in signal.valid_signals() - {signal.SIGPIPE, signal.SIGXFSZ}:
        if signal.getsignal(number) is signal.SIG_IGN:
            signal.signal(number, signal.SIG_DFL)


def _socket_pair() -> tuple[int, int]:
    import socket

    a, b = socket.socketpair()
    return a.detach(), b.detach()


def _place(descriptors: tuple[int, ...]) -> None:
    """Make the given descriptors 0, 1, 2, ..., in order, and close all others."""
    import fcntl

    # copied out of the way first, as one may have the number that another gets
    high = [fcntl.fcntl(fd, fcntl.F_DUPFD_CLOEXEC, 64) for fd in descriptors]
    for number, fd in enumerate(high):
        os.dup2(fd, number)
    os.closerange(len(descriptors), 1024)


_PARTS = (
    *("frames", "values", "containers", "shared", "wire", "operations"),
    *("borrowed", "script", "child"),
)


@cache
def _program() -> bytes:
    """Return wire.py and child.py in the form that the boot code reads."""
    import marshal

    codes = []
    for name in _PARTS:
        path = os.path.join(os.path.dirname(os.path.abspath(__file__)), f"{name}.py")
        with open(path) as file:
            codes.append((f"posttrain.sandbox.{name}", compile(file.read(), name, "exec")))
    data = marshal.dumps(codes)
    return b"%8d" % len(data) + data


def _command(view: View) -> list[str]:
    return [view.python, "-P", "-s", "-S", "-B", "-X", "utf8", "-c", _BOOT]


def bubblewrap_path() -> str:
    """Return the path of bwrap; raise Unavailable if it is not installed."""
    path = shutil.which("bwrap")
    if path is None:
        raise Unavailable("bwrap is not installed (apt-get install bubblewrap)")
    return path


def _start_bubblewrap(view: View) -> None:
    arguments = [bubblewrap_path(), "--unshare-all", "--die-with-parent", "--new-session"]
    arguments += ["--cap-drop", "ALL", "--uid", str(NOBODY), "--gid", str(NOBODY), "--clearenv"]
    for name, value in ENVIRONMENT.items():
        arguments += ["--setenv", name, value]
    for source, path in view.binds:
        arguments += ["--ro-bind", source, path]
    for target, path in view.links:
        arguments += ["--symlink", target, path]
    arguments += ["--dev-bind", "/dev/null", "/dev/null", "--dir", EMPTY, "--dir", "/tmp"]
    for path in view.hidden:
        arguments += ["--tmpfs", path, "--remount-ro", path]
    arguments += ["--remount-ro", "/", "--chdir", EMPTY]
    arguments += ["--info-fd", str(INFO), "--seccomp", str(SECCOMP), "--", *_command(view)]
    os.execve(arguments[0], arguments, {})


def _start_namespace(view: View) -> None:
    enter_namespaces(confine.NEW_NAMESPACES)
    build_root(view)
    confine.no_new_privileges()
    _end_with(INFO)  # only processes started from now on are in the namespace of processes
    confine.die_with_parent()
    os.setsid()
    confine.drop_capabilities()
    confine.apply_landlock(confine.landlock_rules([path for _, path in view.binds], ["/"]))
    # The first process of a namespace gets no signal from inside that it does not handle. So it
    # only waits, as bwrap's does, and the program runs in the second, where signals work as usual.
    signal.signal(signal.SIGINT, signal.SIG_DFL)  # Python's own handler
    _end_with()
    os.closerange(INFO, 64)
    confine.apply_seccomp(calls.filter_program())
    os.execve(view.python, _command(view), ENVIRONMENT)


def _end_with(info: int | None = None) -> None:
    """Continue in a new process; the calling one waits for its end, and ends with its status."""
    pid = os.fork()
    if not pid:
        return
    if info is not None:
        os.write(info, json.dumps({"child-pid": pid}).encode())
    os.closerange(0, 64)  # so that the lane sees when the program closes its own
    _, status = os.waitpid(pid, 0)
    os._exit(os.WEXITSTATUS(status) if os.WIFEXITED(status) else 128 + os.WTERMSIG(status))


def _start_process(view: View) -> None:
    os.chdir("/")
    os.closerange(INFO, 64)
    confine.no_new_privileges()
    confine.drop_capabilities()
    if confine.landlock_version():
        confine.apply_landlock(confine.landlock_rules([path for _, path in view.binds]))
    if confine.has_seccomp():
        confine.apply_seccomp(calls.filter_program(signals_to=os.getpid()))
    os.execve(view.python, _command(view), ENVIRONMENT)


_START = {
    "bubblewrap": _start_bubblewrap,
    "namespace": _start_namespace,
    "process": _start_process,
}


# --- ending ---------------------------------------------------------------------------------------


def finish(sandbox: Sandbox, patience: float = 0.0) -> Ending:
    """End a sandbox and everything in it, reap it, and close its descriptors.

    Args:
        patience: Seconds to wait for it to end by itself, so that its status is its own.
    """
    import select

    select.select([sandbox.pidfd], [], [], patience)
    inner = _inner_pid(sandbox)
    with suppress(ProcessLookupError):
        os.kill(sandbox.pid, signal.SIGKILL)
    if sandbox.group:
        with suppress(ProcessLookupError):
            os.killpg(sandbox.pid, signal.SIGKILL)
    _, status, usage = os.wait4(sandbox.pid, 0)
    # bwrap may end before the first process in its pid namespace, which this lane then adopts
    used = usage.ru_utime + usage.ru_stime + (_reap(inner) if inner is not None else 0.0)
    for fd in (sandbox.channel, sandbox.stdin, sandbox.stdout, sandbox.info, sandbox.pidfd):
        if fd >= 0:
            os.close(fd)
    code = os.WEXITSTATUS(status) if os.WIFEXITED(status) else 128 + os.WTERMSIG(status)
    return Ending(code, used)


def _inner_pid(sandbox: Sandbox) -> int | None:
    """Return the id of the first process in the sandbox's pid namespace; None if there is none.

    When it ends, so do all others there.
    """
    if sandbox.group:
        return None
    text = b""
    while b"}" not in text:
        part = os.read(sandbox.info, 4096)
        if not part:
            return None
        text += part
    pid: int = json.loads(text)["child-pid"]
    return pid


def _reap(pid: int) -> float:
    """Kill and reap a process whose parent, the lane's child, has ended; return its CPU seconds."""
    deadline = time.monotonic() + 5
    while time.monotonic() < deadline:
        try:
            reaped, _, usage = os.wait4(pid, os.WNOHANG)
        except ChildProcessError:  # its parent reaped it, and its time is part of the parent's
            return 0.0
        if reaped:
            return usage.ru_utime + usage.ru_stime
        os.kill(pid, signal.SIGKILL)  # a bwrap that is killed early leaves its child alive
        time.sleep(0.0005)
    return 0.0
