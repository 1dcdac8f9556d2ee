"""What the levels of isolation keep a process from: the kernel's small doors, and how it ends."""

import importlib.util
import json
import os
import platform
import re
import signal
import subprocess
import sys
from functools import cache
from pathlib import Path
from typing import Any

import pytest

from posttrain.rewards.code import CodeExecution, build
from posttrain.sandbox import calls, isolation, pool

LEVELS = ["bubblewrap", "namespace", "process"]
STRONG = LEVELS[:2]

# Starts a program in each sandbox without what child.py and wire.py do, so that the sandbox alone
# is tested; a process of its own, since it may mount.
DRIVER = """
import json, marshal, os, sys
from posttrain.sandbox import confine, isolation
from posttrain.sandbox.view import Unavailable, system_view
MAIN = '''
def main(channel):
    import os, resource, sys
    os.close(channel)
    for name, value in LIMITS.items():
        resource.setrlimit(getattr(resource, name), value)
    exec(compile(PROGRAM, "program.py", "exec"), {"__name__": "__main__"})
    sys.exit()
'''
level = sys.argv[1]
os.environ["PRIVATE"] = "secret"
confine.adopt_orphans()
results = []
try:
    view = system_view(level)
    for program, limits in json.load(sys.stdin):
        code = compile(MAIN + f"PROGRAM = {program!r}\\nLIMITS = {limits!r}\\n", "main", "exec")
        data = marshal.dumps([("main", code)])
        isolation._program = lambda: b"%8d" % len(data) + data
        errors, write = os.pipe()
        sandbox = isolation.start(level, view, error=write)
        os.close(write)
        os.close(sandbox.stdin)
        sandbox.stdin = -1
        os.set_blocking(sandbox.stdout, True)
        output = b""
        while part := os.read(sandbox.stdout, 65536):
            output += part
        status = isolation.finish(sandbox, 5.0).status
        os.set_blocking(errors, False)
        try:
            problem = os.read(errors, 4096).decode(errors="replace")
        except BlockingIOError:
            problem = ""
        os.close(errors)
        results.append((status, output.decode(), problem))
except (Unavailable, OSError) as error:
    results = str(error)
print(json.dumps(results))
"""


def run_all(level: str, programs: list[str], **limits: tuple[int, int]) -> list[tuple[Any, ...]]:
    """Return (status, output, errors) of each program in a sandbox of its own."""
    done = subprocess.run(
        [sys.executable, "-P", "-c", DRIVER, level],
        input=json.dumps([(program, limits) for program in programs]),
        capture_output=True,
        text=True,
        env={**os.environ, "PYTHONPATH": str(Path(isolation.__file__).parents[2])},
        timeout=120,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    results = json.loads(done.stdout)
    if isinstance(results, str) or all(status == 127 for status, *_ in results):
        pytest.skip(f"{level} does not work here: {results}")
    return [tuple(result) for result in results]


# --- the table of system calls --------------------------------------------------------------------


def test_the_numbers_are_those_of_the_kernels_headers():
    """x86_64 has a table of its own; aarch64 uses the generic one."""
    headers = ("/usr/include/x86_64-linux-gnu/asm/unistd_64.h", "/usr/include/asm-generic/unistd.h")
    ours = calls.refused() | calls.refused(calls._PROGRAMS) | calls._SIGNALS
    ours |= {name: (x86_64, aarch64) for name, (x86_64, aarch64, *_) in calls._LIMITED.items()}
    compared = 0
    for column, header in enumerate(headers):
        if not os.path.exists(header):
            continue
        define = r"#\s*define __NR(?:3264)?_(\w+)\s+(\d+)\n"
        numbers = dict(re.findall(define, Path(header).read_text()))
        known = max(map(int, numbers.values()))
        for name, (*both,) in ours.items():
            number = both[column]
            if number is None:
                assert name not in numbers, name
            elif name in numbers or (number <= known and name not in ("uprobe", "uretprobe")):
                assert numbers[name] == str(number), name
                compared += 1
    if not compared:
        pytest.skip("no headers of the kernel here")


@pytest.mark.parametrize("machine", ["x86_64", "aarch64"])
@pytest.mark.parametrize("options", [{}, {"signals_to": 1234567}, {"tests": True}])
def test_the_filter_is_made_of_whole_steps(
    monkeypatch: pytest.MonkeyPatch, machine: str, options: dict[str, Any]
):
    monkeypatch.setattr(platform, "machine", lambda: machine)
    calls.filter_program.cache_clear()
    program = calls.filter_program(**options)
    calls.filter_program.cache_clear()
    assert len(program) % 8 == 0
    assert len(program) // 8 < 4096  # the kernel's limit


# --- small doors ----------------------------------------------------------------------------------

ATTEMPTS = r"""
import ctypes, errno, fcntl, json, os, platform, resource, signal, socket, struct, termios
libc = ctypes.CDLL(None, use_errno=True)
ARM = platform.machine() == "aarch64"

def call(x86_64, aarch64, *arguments):
    number = aarch64 if ARM else x86_64
    if number is None:
        raise PermissionError(errno.EPERM, "there is no such call")
    padded = [a if isinstance(a, (bytes, ctypes.Array)) else ctypes.c_long(a) for a in arguments]
    if libc.syscall(ctypes.c_long(number), *padded) < 0:
        raise OSError(ctypes.get_errno(), "refused")

def pair(kind=socket.SOCK_DGRAM):
    return socket.socketpair(socket.AF_UNIX, kind)[0]

def with_descriptor(a):
    socket.send_fds(a, [b"x"], [2])

LIBRARY, AT = os.__file__, -100
zeros = ctypes.create_string_buffer(512)
page = ctypes.create_string_buffer(8192)
attempts = {
    # times of the host's device file, by name and by the descriptor of standard error
    "utime of a device": lambda: os.utime("/dev/null"),
    "utime of a descriptor": lambda: os.utime(2),
    "utimensat": lambda: call(280, 88, AT, b"/dev/null", 0, 0),
    "utimes": lambda: call(235, None, b"/dev/null", 0),
    "futimesat": lambda: call(261, None, AT, b"/dev/null", 0),
    "old utime": lambda: call(132, None, b"/dev/null", 0),
    "utime of a library": lambda: os.utime(LIBRARY),
    # owner, rights, attributes
    "chmod": lambda: os.chmod(LIBRARY, os.stat(LIBRARY).st_mode & 0o7777),
    "fchmod": lambda: os.fchmod(2, 0o666),
    "fchmodat2": lambda: call(452, 452, AT, b"/dev/null", 0o666, 0),
    "chown": lambda: os.chown(LIBRARY, -1, -1),
    "fchown": lambda: os.fchown(2, -1, -1),
    "lchown": lambda: os.lchown("/dev/null", -1, -1),
    "setxattr": lambda: os.setxattr(LIBRARY, "user.door", b"x"),
    "removexattr": lambda: os.removexattr(LIBRARY, "user.door"),
    "chattr": lambda: fcntl.ioctl(os.open(LIBRARY, os.O_RDONLY), 0x40086602, struct.pack("l", 0)),
    # sockets that a pair of sockets can become
    "connect": lambda: pair().connect("/run/no_such_socket"),
    "connect to an abstract name": lambda: pair().connect("\0no_such_socket"),
    "bind": lambda: pair().bind("\0posttrain-door"),
    "listen": lambda: pair(socket.SOCK_STREAM).listen(),
    "accept": lambda: pair(socket.SOCK_STREAM).accept(),
    "old accept": lambda: call(43, 202, pair(socket.SOCK_STREAM).fileno(), 0, 0),
    "sendto": lambda: pair().sendto(b"x", "/run/no_such_socket"),
    "sendto an abstract name": lambda: pair().sendto(b"x", "\0no_such_socket"),
    "sendmsg": lambda: pair().sendmsg([b"x"], [], 0, "\0no_such_socket"),
    "descriptors by sendmsg": lambda: with_descriptor(pair()),
    "sendmmsg": lambda: call(307, 269, pair().fileno(), zeros, 0, 0),
    "setsockopt": lambda: pair().setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 4096),
    "a pair of another family": lambda: call(53, 199, 30, 1, 0, zeros),
    "socket": lambda: call(41, 198, 1, 1, 0),
    # clocks, names, priorities
    "adjtimex": lambda: call(159, 171, zeros),
    "clock_adjtime": lambda: call(305, 266, 0, zeros),
    "clock_settime": lambda: call(227, 112, 0, 0),
    "sethostname": lambda: socket.sethostname(os.uname().nodename),
    "setdomainname": lambda: call(171, 162, os.uname().nodename.encode(), 0),
    "nice": lambda: os.nice(1),
    "setpriority": lambda: os.setpriority(os.PRIO_PROCESS, 0, 19),
    "sched_setscheduler": lambda: os.sched_setscheduler(0, os.SCHED_BATCH, os.sched_param(0)),
    "sched_setparam": lambda: os.sched_setparam(0, os.sched_param(0)),
    "sched_setattr": lambda: call(314, 274, 0, zeros, 0),
    "sched_setaffinity": lambda: os.sched_setaffinity(0, os.sched_getaffinity(0)),
    "ioprio_set": lambda: call(251, 30, 1, 0, (3 << 13)),
    # other processes
    "prlimit of another": lambda: resource.prlimit(os.getppid(), resource.RLIMIT_CORE),
    "pidfd_open": lambda: os.pidfd_open(os.getppid()),
    "pidfd_send_signal": lambda: call(424, 424, 2, 0, 0, 0),
    "get_robust_list": lambda: call(274, 100, os.getppid(), zeros, zeros),
    "process_madvise": lambda: call(440, 440, 2, 0, 0, 4, 0),
    "process_mrelease": lambda: call(448, 448, 2, 0),
    "migrate_pages": lambda: call(256, 238, 0, 0, 0, 0),
    "move_pages": lambda: call(279, 239, 0, 0, 0, 0, 0, 0),
    "owner of a descriptor": lambda: fcntl.fcntl(os.pipe()[0], fcntl.F_SETOWN, os.getppid()),
    "signal of a descriptor": lambda: fcntl.fcntl(os.pipe()[0], fcntl.F_SETSIG, signal.SIGKILL),
    "owner by ioctl": lambda: fcntl.ioctl(pair(), 0x8901, struct.pack("i", os.getpid())),
    "lease": lambda: fcntl.fcntl(os.open(LIBRARY, os.O_RDONLY), fcntl.F_SETLEASE, fcntl.F_RDLCK),
    "notify": lambda: fcntl.fcntl(os.open("/usr/lib", os.O_RDONLY), fcntl.F_NOTIFY, 1),
    # shared memory and queues of the user
    "shmat": lambda: call(30, 196, 0, 0, 0o10000),
    "shmctl": lambda: call(31, 195, 0, 2, zeros),
    "semctl": lambda: call(66, 191, 0, 0, 2, zeros),
    "semop": lambda: call(65, 193, 0, zeros, 1),
    "msgctl": lambda: call(71, 187, 0, 2, zeros),
    "msgrcv": lambda: call(70, 188, 0, zeros, 8, 0, 0o4000),
    "mq_unlink": lambda: call(241, 181, b"posttrain-door"),
    # the machine's disks, files that others use, memory
    "sync": lambda: call(162, 81),
    "syncfs": lambda: call(306, 267, 2),
    "quotactl_fd": lambda: call(443, 443, 2, 0, 0, 0),
    "inotify_init": lambda: call(294, 26, 0),
    "fanotify_mark": lambda: call(301, 263, 2, 0, 0, 0, 0),
    "name_to_handle_at": lambda: call(303, 264, AT, b"/usr", zeros, zeros, 0),
    "mlock": lambda: call(149, 228, page, 4096),
    "mlockall": lambda: call(151, 230, 2),
    "mbind": lambda: call(237, 235, page, 0, 0, 0, 0, 0),
    "set_mempolicy": lambda: call(238, 237, 0, 0, 0),
    "set_mempolicy_home_node": lambda: call(450, 450, page, 0, 0, 0),
    # parts of the kernel that are rarely needed
    "splice": lambda: call(275, 76, 0, 0, 1, 0, 0, 0),
    "tee": lambda: call(276, 77, 0, 1, 0, 0),
    "vmsplice": lambda: call(278, 75, 1, zeros, 0, 0),
    "io_setup": lambda: call(206, 0, 8, ctypes.create_string_buffer(8)),
    "seccomp": lambda: call(317, 277, 2, 0, zeros),
    "statmount": lambda: call(457, 457, zeros, zeros, 512, 0),
    "personality": lambda: call(135, 92, 0),
    "typing on a terminal": lambda: fcntl.ioctl(0, termios.TIOCSTI, b"x"),
    "line discipline": lambda: fcntl.ioctl(0, termios.TIOCSETD, b"\0\0\0\0"),
    "a call of a newer kernel": lambda: call(600, 600),
    "ioperm": lambda: call(173, None, 0, 0, 0),
    "vhangup": lambda: call(153, 58),
}
if PROCESS:  # elsewhere the other processes are not there
    attempts |= {
        "a signal to the parent": lambda: os.kill(os.getppid(), 0),
        "a signal to everybody": lambda: os.kill(-1, 0),
        "a signal to a group": lambda: os.killpg(os.getpgid(os.getppid()), 0),
        "tgkill": lambda: call(234, 131, os.getppid(), os.getppid(), 0),
        "tkill": lambda: call(200, 130, os.getppid(), 0),
        "rt_sigqueueinfo": lambda: call(129, 138, os.getppid(), 10, zeros),
        "rt_tgsigqueueinfo": lambda: call(297, 240, os.getppid(), os.getppid(), 10, zeros),
    }
open_ = {}
for name, attempt in attempts.items():
    try:
        attempt()
        open_[name] = "works"
    except OSError as error:
        if error.errno not in (errno.EPERM, errno.ENOSYS):
            open_[name] = errno.errorcode[error.errno]
print(json.dumps([len(attempts), open_]))
"""


@pytest.mark.parametrize("level", LEVELS)
def test_small_doors_are_closed_before_the_kernel_looks_at_the_arguments(level: str):
    """Each is refused as such, not because there happens to be nothing behind it."""
    ((status, output, problem),) = run_all(level, [f"PROCESS = {level == 'process'}{ATTEMPTS}"])
    assert (status, problem) == (0, "")
    assert json.loads(output)[1] == {}
    assert json.loads(output)[0] >= 80


def test_at_process_level_the_filter_alone_keeps_signals_from_others():
    """Also on a kernel whose landlock does not."""
    program = """
import os, signal
from posttrain.sandbox import calls, confine
confine.no_new_privileges()
confine.apply_seccomp(calls.filter_program(signals_to=os.getpid()))
def allowed(action, *arguments):
    try:
        action(*arguments, 0)
    except PermissionError:
        return False
    return True
pid, parent = os.getpid(), os.getppid()
print(allowed(os.kill, parent), allowed(os.kill, -1), allowed(os.killpg, os.getpgid(parent)),
      allowed(os.kill, pid), allowed(os.kill, 0))
signal.raise_signal(signal.SIGTERM)
"""
    if not calls.known():
        pytest.skip("no table of system calls for this machine")
    env = {**os.environ, "PYTHONPATH": str(Path(isolation.__file__).parents[2])}
    done = subprocess.run(
        [sys.executable, "-c", program], stdout=subprocess.PIPE, text=True, env=env, check=False
    )
    assert (done.stdout.split(), done.returncode) == (["False"] * 3 + ["True"] * 2, -signal.SIGTERM)


# Ordinary programs that a filter could break: (program, what it prints).
HONEST = {
    "threads": (
        "import concurrent.futures as c\nwith c.ThreadPoolExecutor(4) as pool:\n"
        "    print(sum(pool.map(len, ['ab'] * 9)))",
        "18",
    ),
    "asyncio": (
        "import asyncio\nasync def f(n):\n    await asyncio.sleep(0.001)\n    return n\n"
        "async def g():\n    return sum(await asyncio.gather(*map(f, range(9))))\n"
        "async def h():\n    return await asyncio.to_thread(len, 'abc')\n"
        "print(asyncio.run(g()), asyncio.run(h()))",
        "36 3",
    ),
    "a pair of sockets": (
        "import socket\na, b = socket.socketpair()\na.sendall(b'xy')\nb.settimeout(1)\n"
        "print(b.recv(9), b.getsockopt(socket.SOL_SOCKET, socket.SO_TYPE) == 1)",
        "b'xy' True",
    ),
    "a signal to itself": (
        "import os, signal\nsignal.signal(signal.SIGUSR1, lambda *_: print('caught'))\n"
        "os.kill(os.getpid(), signal.SIGUSR1)\nsignal.raise_signal(signal.SIGUSR1)\n"
        "signal.pthread_kill(__import__('threading').get_ident(), signal.SIGUSR1)",
        "caught\ncaught\ncaught",
    ),
    "an alarm": (
        "import signal, time\nsignal.signal(signal.SIGALRM, lambda *_: print('late'))\n"
        "signal.setitimer(signal.ITIMER_REAL, 0.01)\ntime.sleep(0.2)",
        "late",
    ),
    "output thrown away": (
        "import contextlib, os\nwith open(os.devnull, 'w') as null:\n"
        "    with contextlib.redirect_stdout(null):\n        print('x')\n"
        "print(null.name, open(os.devnull).read() == '')",
        "/dev/null True",
    ),
    "a lower limit": (
        "import resource as r, sys\n_, most = r.getrlimit(r.RLIMIT_STACK)\n"
        "r.setrlimit(r.RLIMIT_STACK, (1 << 20, most))\nsys.setrecursionlimit(5000)\n"
        "print(r.getrlimit(r.RLIMIT_STACK)[0])",
        "1048576",
    ),
    "descriptors": (
        "import fcntl, os, select, sys\nr, w = os.pipe()\nos.set_blocking(r, False)\n"
        "os.set_inheritable(w, True)\nfcntl.fcntl(w, fcntl.F_SETFD, fcntl.FD_CLOEXEC)\n"
        "e = select.epoll()\ne.register(r)\nos.write(w, b'x')\n"
        "print(len(e.poll(1)), os.isatty(0), os.dup(w) > w, sys.stdin.read() == '')",
        "1 False True True",
    ),
    "memory": (
        "import array, ctypes, gc, mmap, tracemalloc\ntracemalloc.start()\n"
        "m = mmap.mmap(-1, 1 << 20)\nm[5] = 7\nm.resize(1 << 21)\nprint(m[5], len(m))",
        "7 2097152",
    ),
    "the machine": (
        "import locale, os, platform, uuid, zoneinfo, datetime\n"
        "locale.setlocale(locale.LC_ALL, 'C.UTF-8')\nuuid.uuid4(), os.cpu_count(), os.getloadavg\n"
        "t = datetime.datetime(2024, 7, 1, tzinfo=zoneinfo.ZoneInfo('Europe/Paris'))\n"
        "print(platform.system(), t.utcoffset(), len(os.urandom(4)))",
        "Linux 2:00:00 4",
    ),
}
# What a program sees of the place where it runs; the verdicts differ if this does.
PLACE = """
import glob, os, resource, sys, tempfile
def what(action, *arguments):
    try:
        return action(*arguments)
    except Exception as error:
        return type(error).__name__
print(os.getpid(), os.getppid(), os.getpgrp(), os.getsid(0), os.getuid(), os.getgid())
print(os.getcwd(), sorted(os.environ.items()), os.getgroups())
for path in ("/", ".", "/tmp", "/home", "/dev", "/proc", "/etc", "/usr", "/root"):
    print(path, what(lambda: sorted(os.listdir(path))))
print(what(open, "x", "w"), what(open, "/tmp/x", "w"), what(open, "/etc/passwd"), what(open, "."))
print(what(tempfile.mkdtemp), what(os.mkdir, "x"), what(os.fork), what(os.getlogin), glob.glob("*"))
print(what(os.open, "/dev/null", os.O_RDWR | os.O_CREAT | os.O_TRUNC), what(os.listdir, 5))
print(what(os.isatty, os.open("/dev/null", os.O_RDWR)), os.statvfs("/").f_flag & 1, sys.path)
kinds = [name for name in sorted(dir(resource)) if "RLIM" in name]
print([what(resource.getrlimit, getattr(resource, kind)) for kind in kinds])
print(sorted(os.sched_getaffinity(0)), what(os.umask, 0), what(os.getpriority, 0, 0))
"""


@cache
def honest(level: str) -> dict[str, tuple[Any, ...]]:
    results = run_all(level, [*(program for program, _ in HONEST.values()), PLACE])
    return dict(zip([*HONEST, "place"], results))


@pytest.mark.parametrize("name", sorted(HONEST))
@pytest.mark.parametrize("level", LEVELS)
def test_ordinary_programs_run(level: str, name: str):
    status, output, problem = honest(level)[name]
    assert (output.strip(), status) == (HONEST[name][1], 0), problem


def test_a_program_sees_the_same_at_both_strong_levels():
    bubblewrap, namespace = (honest(level)["place"][1].splitlines() for level in STRONG)
    assert namespace == bubblewrap
    assert bubblewrap[0] == "2 1 1 1 65534 65534"


# --- how a program ends ---------------------------------------------------------------------------


KILL = "os.kill(os.getpid(), n)"
RAISE = "signal.raise_signal(n)"
DEFAULT = "signal.signal(n, signal.SIG_DFL)\n"


def by_signal(number: int, how: str) -> str:
    return f"import os, signal, time\nn = signal.Signals({number})\n{how}"


# name: (program, status)
ENDS: dict[str, tuple[str, int]] = {
    "end of the program": ("x = 1", 0),
    "exit 0": ("raise SystemExit", 0),
    "exit 7": ("raise SystemExit(7)", 7),
    "exit 255": ("import os\nos._exit(255)", 255),
    "exit 256": ("import os\nos._exit(256)", 0),
    "exit 137": ("import os\nos._exit(137)", 137),
    "exit with a text": ("raise SystemExit('so')", 1),
    "exception": ("1 / 0", 1),
    "abort": ("import os\nos.abort()", 128 + signal.SIGABRT),
    "segmentation fault": ("import ctypes\nctypes.string_at(0)", 128 + signal.SIGSEGV),
    "bus or segmentation fault": (
        "import ctypes, mmap, os\nm = mmap.mmap(-1, 4096)\n"
        "p = ctypes.addressof(ctypes.c_char.from_buffer(m))\n"
        "ctypes.CDLL(None).mprotect(ctypes.c_void_p(p), 4096, 0)\nm[0]",
        128 + signal.SIGSEGV,
    ),
    "stack overflow in C": (
        "import sys, threading\nsys.setrecursionlimit(10**6)\nx = ()\n"
        "for _ in range(200000): x = (x,)\nhash(x)",
        128 + signal.SIGSEGV,
    ),
    "recursion": ("def f(): f()\nf()", 1),
    "memory": ("x = b'x' * (1 << 40)", 1),
    "memory in steps": ("x = []\nwhile True: x.append(bytes(1 << 24))", 1),
    "processor time": ("while True: pass", 128 + signal.SIGXCPU),
    "closed descriptors": ("import os\nos.closerange(0, 64)\nos._exit(3)", 3),
    "broken pipe": (by_signal(signal.SIGPIPE, DEFAULT + KILL), 141),
    "interrupt": (by_signal(signal.SIGINT, f"{KILL}\ntime.sleep(9)"), 130),
    "default interrupt": (by_signal(signal.SIGINT, DEFAULT + KILL), 130),
    "a handled signal": (
        by_signal(signal.SIGTERM, f"signal.signal(n, lambda *_: os._exit(5))\n{KILL}"),
        5,
    ),
    "a system call of another architecture": (
        "import ctypes\nctypes.CDLL(None).syscall(ctypes.c_long(0x40000000 + 39))",
        128 + signal.SIGSYS if platform.machine() == "x86_64" else 0,
    ),
    "its group": (by_signal(signal.SIGTERM, "os.kill(0, n)"), 128 + signal.SIGTERM),
    "interrupt of its group": (by_signal(signal.SIGINT, "os.kill(0, n)\ntime.sleep(9)"), 130),
    "kills the first process": (by_signal(signal.SIGKILL, "os.kill(1, n)\ntime.sleep(0.1)"), 0),
    "ends the first process": (by_signal(signal.SIGTERM, "os.kill(1, n)\ntime.sleep(0.1)"), 0),
    "interrupts the first process": (by_signal(signal.SIGINT, "os.kill(1, n)\ntime.sleep(0.1)"), 0),
    "stops the first process": (by_signal(signal.SIGSTOP, "os.kill(1, n)\ntime.sleep(0.1)"), 0),
    "kills all others": (by_signal(signal.SIGKILL, "os.kill(-1, n)"), 1),
    "a session of its own": ("import os\nos.setsid()\nos.killpg(0, 9)", 128 + signal.SIGKILL),
    "a thread's end": (
        "import os, threading, time\nthreading.Thread(target=os._exit, args=(9,)).start()\n"
        "time.sleep(9)",
        9,
    ),
    **{
        f"{signal.Signals(n).name} by {name}": (by_signal(n, how), 128 + n)
        for n, name, how in [
            (signal.SIGTERM, "kill", KILL),
            (signal.SIGKILL, "kill", KILL),
            (signal.SIGHUP, "kill", KILL),
            (signal.SIGQUIT, "kill", KILL),
            (signal.SIGUSR1, "raise", RAISE),
            (signal.SIGALRM, "alarm", "signal.setitimer(signal.ITIMER_REAL, 0.01)\nsignal.pause()"),
            (signal.SIGILL, "raise", RAISE),
            (signal.SIGFPE, "raise", RAISE),
            (signal.SIGTRAP, "raise", RAISE),
            (signal.SIGBUS, "raise", RAISE),
            (signal.SIGSYS, "raise", RAISE),
            (signal.SIGRTMIN, "kill", KILL),
            (signal.SIGRTMAX, "kill", KILL),
        ]
    },
}
LIMITS = {
    "RLIMIT_CPU": (1, 2),
    "RLIMIT_AS": (256 << 20, 256 << 20),
    "RLIMIT_STACK": (8 << 20, 8 << 20),
    "RLIMIT_CORE": (0, 0),
}


@cache
def ends(level: str) -> dict[str, int]:
    results = run_all(level, [program for program, _ in ENDS.values()], **LIMITS)
    return dict(zip(ENDS, (status for status, *_ in results)))


@pytest.mark.parametrize(
    "level", [STRONG[0], *(pytest.param(level, marks=pytest.mark.slow) for level in STRONG[1:])]
)
def test_every_end_has_the_same_status_at_both_strong_levels(level: str):
    assert ends(level) == {name: status for name, (_, status) in ENDS.items()}


@pytest.mark.slow
@pytest.mark.parametrize("level", STRONG)
def test_a_program_that_ignores_its_time_limit_is_killed(level: str):
    program = "import signal\nsignal.signal(signal.SIGXCPU, signal.SIG_IGN)\nwhile True: pass"
    assert run_all(level, [program], **LIMITS)[0][0] == 128 + signal.SIGKILL


# --- the tests' own sandbox -----------------------------------------------------------------------

ROOM = """
import json, os, sys, tempfile
from posttrain.sandbox import confine, room
level, without = sys.argv[1], sys.argv[2]
def refuse(*_):
    raise OSError(1, "the kernel refuses namespaces")
if "namespaces" in without:
    room.enter_namespaces = refuse
if "landlock" in without:
    confine.landlock_version = lambda: 0
if "seccomp" in without:
    confine.has_seccomp = lambda: False
os.environ["PRIVATE"] = "secret"
owned = tempfile.NamedTemporaryFile()
results = {}
try:
    the_room = room.open_room(level)
    results["check"] = room.check(the_room)
    for name, program in json.load(sys.stdin).items():
        read, write = os.pipe()
        pid = os.fork()
        if pid == 0:
            try:
                room.enter(the_room, (write,), 10)
                os.dup2(write, 1)
                sys.stdout = open(1, "w")
                exec(program, {"OWNED": owned.name})
            except BaseException as error:
                print(f"{type(error).__name__}: {error}")
            sys.stdout.flush()
            os._exit(0)
        os.close(write)
        with open(read) as lines:
            results[name] = lines.read().strip()
        os.waitpid(pid, 0)
    pid = os.fork()
    if pid == 0:
        os.dup2(1, 2)
        results["free"] = room._findings(owned.name, 1)
        print(json.dumps(results), flush=True)
        os._exit(0)
    os.waitpid(pid, 0)
except room.Unavailable as error:
    print(json.dumps({"unavailable": str(error)}))
"""
ROOM_PROGRAMS = {
    "doors": "PROCESS = True" + ATTEMPTS,
    "libraries": (
        "import asyncio, sqlite3, unittest, zoneinfo, wsgiref.headers, concurrent.futures as c\n"
        "async def f():\n    return await asyncio.to_thread(len, 'abc')\n"
        "print(asyncio.run(f()), sum(c.ThreadPoolExecutor(2).map(len, ['ab'] * 3)),\n"
        "      zoneinfo.ZoneInfo('Asia/Tokyo'), 'wsgiref.headers')"
    ),
    "packages": (
        "import importlib.util as u\n"
        "for name in ('numpy', 'pandas'):\n"
        "    if HAS[name]: print(__import__(name).__name__)"
    ),
    "files": """
import os
def shows(path):
    try:
        return os.listdir(path) if os.path.isdir(path) else open(path).close()
    except OSError:
        return "nothing"
for path in ("/etc/passwd", "/etc/shadow", "/proc/self/environ", OWNED, THIS_FILE, "/var", "/sys",
             "/dev/zero", "/dev/tty", "/run", "/boot", "/dev/shm", "/var/tmp"):
    if shows(path) != "nothing":
        print(path)
print(sorted(os.environ), os.getcwd())
""",
    "descriptors": """
import os
open_ = []
for fd in range(1024):
    try:
        os.fstat(fd)
        open_.append(fd)
    except OSError:
        pass
print(len(open_), os.read(0, 1))
""",
    "limits": """
import os, resource as r
print([r.getrlimit(k) for k in (r.RLIMIT_CORE, r.RLIMIT_FSIZE, r.RLIMIT_NOFILE, r.RLIMIT_CPU)])
try:
    r.setrlimit(r.RLIMIT_CPU, (100, 100))
except ValueError as error:
    print(error)
import threading
threading.stack_size(65536)
try:
    for _ in range(200):
        threading.Thread(target=threading.Event().wait, daemon=True).start()
except RuntimeError as error:
    print(error)
""",
    "user": "import os\nprint(os.getuid(), os.geteuid(), os.getgid(), os.getgroups())",
}


@cache
def in_room(level: str, without: str = "") -> dict[str, Any]:
    """Return what the programs print in the tests' sandbox; `without`: what the kernel lacks."""
    has = {name: bool(importlib.util.find_spec(name)) for name in ("numpy", "pandas")}
    programs = {} if "seccomp" in without else ROOM_PROGRAMS  # some would do harm
    facts = f"HAS, THIS_FILE = {has!r}, {__file__!r}\n"
    done = subprocess.run(
        [sys.executable, "-P", "-c", ROOM, level, without],
        input=json.dumps({name: facts + text for name, text in programs.items()}),
        capture_output=True,
        text=True,
        env={**os.environ, "PYTHONPATH": str(Path(isolation.__file__).parents[2])},
        timeout=120,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    results: dict[str, Any] = json.loads(done.stdout)
    if "unavailable" in results and not without:
        pytest.skip(f"{level} does not work here: {results}")
    return results


BREACHES = [
    "can read the system's files",
    "can read the user's files",
    "can write files",
    "can open sockets",
    "can start processes",
    "can signal other processes",
]


@pytest.mark.parametrize("level", ["namespace", "process"])
def test_a_test_can_do_nothing_but_compute(level: str):
    results = in_room(level)
    assert results["check"] == []
    assert [breach for breach in BREACHES if breach not in results["free"]] == []
    assert json.loads(results["doors"])[1] == {}
    assert results["files"] == ("['HOME', 'LANG', 'OMP_NUM_THREADS', 'OPENBLAS_NUM_THREADS'] /home")
    assert results["descriptors"].startswith("4 b''") or results["descriptors"] == "5 b''"
    assert (
        results["user"] == "65534 65534 65534 []" or "65534 65534 65534 [65534" in results["user"]
    )
    limits = results["limits"].splitlines()
    assert limits[0] == "[(1, 1), (0, 0), (64, 64), (10, 10)]"
    assert limits[1:] == ["not allowed to raise maximum limit", "can't start new thread"]


def test_a_test_may_import_what_is_installed():
    results = in_room("namespace")
    assert results["libraries"] == "3 6 Asia/Tokyo wsgiref.headers"
    wanted = [name for name in ("numpy", "pandas") if importlib.util.find_spec(name)]
    assert results["packages"].split() == wanted


def test_without_namespaces_landlock_keeps_files_from_a_test():
    results = in_room("process", "namespaces")
    assert json.loads(results["doors"])[1] == {}
    assert set(results["check"]) <= {"is root"}
    assert results["libraries"] == "3 6 Asia/Tokyo wsgiref.headers"
    assert results["files"].startswith("['HOME'")


def test_a_strong_level_does_not_run_tests_that_nothing_confines():
    for without in ("namespaces landlock", "seccomp"):
        assert "the tests cannot be confined" in in_room("namespace", without)["unavailable"]
    weak = in_room("process", "namespaces landlock seccomp")
    wanted = set(BREACHES)
    if os.geteuid() == 0 and "is root" not in weak["check"]:
        wanted.remove("can read the user's files")  # the tests run as another user
    assert wanted <= set(weak["check"])


# What a text that a test evaluates could try; here the test does it itself.
ROW = """
def fails(action, *arguments):
    try:
        action(*arguments)
    except OSError:
        return True
    return False

def check(candidate):
    import os, socket
    assert candidate() == 1
    assert fails(os.stat, "/etc/passwd") or fails(os.open, "/etc/passwd", os.O_RDONLY)
    assert fails(os.open, {file!r}, os.O_RDONLY)
    assert fails(os.listdir, {home!r}) or "posttrain-private" not in os.listdir({home!r})
    assert fails(socket.socket)
    assert fails(os.kill, os.getppid(), 0)
    assert fails(os.utime, os.devnull)
    assert fails(os.execv, os.__file__, ["x"])
    assert fails(os.open, "/tmp/posttrain-test", os.O_CREAT | os.O_WRONLY)
    assert "PATH" not in os.environ
"""


@pytest.mark.parametrize("level", LEVELS)
def test_the_tests_of_a_row_run_confined(level: str, tmp_path: Path):
    (tmp_path / "posttrain-private").touch()
    try:
        reward = build(CodeExecution(isolation=level, workers=1))  # type: ignore[arg-type]
    except ValueError as error:
        pytest.skip(f"{level} does not work here: {error}")
    row = {"entry_point": ["f"], "test": [ROW.format(file=__file__, home=str(tmp_path))]}
    (score,) = reward([""], ["```python\ndef f():\n    return 1\n```"], [[]], **row)
    pool.close(reward.pool)
    assert (score.verdict, score) == ("correct", 1.0)
