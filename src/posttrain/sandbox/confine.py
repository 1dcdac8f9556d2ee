"""What Linux offers to confine a process, by system call: seccomp, landlock, namespaces, mounts.

Functions that confine act on the calling process and cannot be undone. If the kernel refuses, they
raise an OSError that names what failed.
"""

import ctypes
import errno
import os
import platform
import struct
from functools import cache
from typing import Any

NEW_MOUNTS = 0x00020000
NEW_NAMESPACES = NEW_MOUNTS | 0x10000000 | 0x20000000 | 0x40000000  # user, pid, network
NEW_NAMESPACES |= 0x08000000 | 0x04000000 | 0x02000000  # ipc, host name, cgroup

_PR_SET_PDEATHSIG, _PR_SET_DUMPABLE, _PR_SET_CHILD_SUBREAPER = 1, 4, 36
_PR_SET_SECCOMP, _PR_SET_NO_NEW_PRIVS = 22, 38
_SIGKILL = 9


@cache
def _libc() -> ctypes.CDLL:
    return ctypes.CDLL(None, use_errno=True)


def _check(result: int, what: str) -> int:
    if result < 0:
        number = ctypes.get_errno()
        raise OSError(number, f"{what}: {os.strerror(number)}")
    return result


def _prctl(option: int, *values: Any) -> None:
    padded = [*values, 0, 0, 0, 0][:4]
    arguments = [v if isinstance(v, ctypes.c_void_p) else ctypes.c_ulong(v) for v in padded]
    _check(_libc().prctl(option, *arguments), f"prctl({option})")


def _syscall(number: int, what: str, *values: Any) -> int:
    arguments = [v if not isinstance(v, int) else ctypes.c_long(v) for v in values]
    return _check(_libc().syscall(ctypes.c_long(number), *arguments), what)


def die_with_parent() -> None:
    """Have the kernel kill this process as soon as its parent ends."""
    _prctl(_PR_SET_PDEATHSIG, _SIGKILL)


def adopt_orphans() -> None:
    """Become the parent of descendants whose own parent ends, so that this process reaps them."""
    _prctl(_PR_SET_CHILD_SUBREAPER, 1)


def stay_dumpable() -> None:
    """Take /proc/self back after a change of user, which leaves it to root."""
    _prctl(_PR_SET_DUMPABLE, 1)


def no_new_privileges() -> None:
    """Renounce new privileges by exec; the kernel requires this before seccomp and landlock."""
    _prctl(_PR_SET_NO_NEW_PRIVS, 1)


# --- seccomp --------------------------------------------------------------------------------------

# name: (number on x86_64, on aarch64); None if the architecture has no such call.
_REFUSED: dict[str, tuple[int | None, int | None]] = {
    # new processes; clone, which threads need, is handled in the filter
    "fork": (57, None), "vfork": (58, None),
    # sockets (no namespace holds AF_VSOCK), other processes, shared memory that outlives a mapping
    "socket": (41, 198), "ptrace": (101, 117), "process_vm_readv": (310, 270),
    "process_vm_writev": (311, 271), "kcmp": (312, 272), "pidfd_getfd": (438, 438),
    "shmget": (29, 194), "msgget": (68, 186), "semget": (64, 190), "mq_open": (240, 180),
    "memfd_create": (319, 279), "memfd_secret": (447, 447),
    # namespaces and mounts
    "unshare": (272, 97), "setns": (308, 268), "mount": (165, 40), "umount2": (166, 39),
    "pivot_root": (155, 41), "chroot": (161, 51), "open_tree": (428, 428), "move_mount": (429, 429),
    "fsopen": (430, 430), "fsconfig": (431, 431), "fsmount": (432, 432), "fspick": (433, 433),
    "mount_setattr": (442, 442), "open_by_handle_at": (304, 265),
    # large, rarely needed parts of the kernel
    "bpf": (321, 280), "perf_event_open": (298, 241), "userfaultfd": (323, 282),
    "io_uring_setup": (425, 425), "io_uring_enter": (426, 426), "io_uring_register": (427, 427),
    "add_key": (248, 217), "request_key": (249, 218), "keyctl": (250, 219),
    "kexec_load": (246, 104), "init_module": (175, 105), "finit_module": (313, 273),
    "delete_module": (176, 106), "swapon": (167, 224), "swapoff": (168, 225), "reboot": (169, 142),
    "syslog": (103, 116), "quotactl": (179, 60), "acct": (163, 89), "personality": (135, 92),
    "fanotify_init": (300, 262), "settimeofday": (164, 170), "clock_settime": (227, 112),
}  # fmt: skip
_CLONE = (56, 220)
_CLONE3 = 435
_CLONE_THREAD = 0x00010000
_X32 = 0x40000000
_MACHINES = {"x86_64": (0, 0xC000003E), "aarch64": (1, 0xC00000B7)}

_LOAD, _JUMP_EQUAL, _JUMP_AT_LEAST, _JUMP_SET, _RETURN = 0x20, 0x15, 0x35, 0x45, 0x06
_ALLOW, _KILL, _ERROR = 0x7FFF0000, 0x80000000, 0x00050000


@cache
def seccomp_program() -> bytes:
    """Return a filter in the kernel's form: new processes and the calls above fail with EPERM.

    Threads are allowed. A call of another architecture kills the process.

    Raises:
        OSError: There is no table of system calls for this machine.
    """
    if platform.machine() not in _MACHINES:
        raise OSError(errno.ENOSYS, f"seccomp: no table for {platform.machine()}")
    column, architecture = _MACHINES[platform.machine()]
    refused = [n for name in _REFUSED if (n := _REFUSED[name][column]) is not None]
    steps: list[tuple[int, int, int, int]] = [
        (_LOAD, 0, 0, 4),  # the architecture
        (_JUMP_EQUAL, 1, 0, architecture),
        (_RETURN, 0, 0, _KILL),
        (_LOAD, 0, 0, 0),  # the number
        (_JUMP_AT_LEAST, 0, 1, _X32),
        (_RETURN, 0, 0, _KILL),
        # glibc then falls back to clone, whose flags a filter can read
        (_JUMP_EQUAL, 0, 1, _CLONE3),
        (_RETURN, 0, 0, _ERROR | errno.ENOSYS),
        (_JUMP_EQUAL, 0, 4, _CLONE[column]),
        (_LOAD, 0, 0, 16),  # the low half of the first argument: clone's flags
        (_JUMP_SET, 1, 0, _CLONE_THREAD),
        (_RETURN, 0, 0, _ERROR | errno.EPERM),
        (_RETURN, 0, 0, _ALLOW),
    ]
    for number in refused:
        steps += [(_JUMP_EQUAL, 0, 1, number), (_RETURN, 0, 0, _ERROR | errno.EPERM)]
    steps.append((_RETURN, 0, 0, _ALLOW))
    return b"".join(struct.pack("HBBI", *step) for step in steps)


def has_seccomp() -> bool:
    """Whether `apply_seccomp` can work here."""
    return platform.machine() in _MACHINES and os.path.exists("/proc/sys/kernel/seccomp")


def apply_seccomp() -> None:
    """Apply `seccomp_program` to this process, after `no_new_privileges`."""
    program = ctypes.create_string_buffer(seccomp_program(), len(seccomp_program()))
    header = struct.pack("HxxxxxxP", len(program) // 8, ctypes.addressof(program))
    pointer = ctypes.cast(ctypes.create_string_buffer(header, len(header)), ctypes.c_void_p)
    _prctl(_PR_SET_SECCOMP, 2, pointer)  # SECCOMP_MODE_FILTER


# --- landlock -------------------------------------------------------------------------------------

_CREATE_RULESET, _ADD_RULE, _RESTRICT_SELF = 444, 445, 446
_EXECUTE, _READ_FILE, _READ_DIR = 1, 4, 8
_FILE_RIGHTS = {1: (1 << 13) - 1, 2: (1 << 14) - 1, 3: (1 << 15) - 1, 4: (1 << 15) - 1}


def landlock_version() -> int:
    """Return the version of landlock in this kernel; 0 if it has none."""
    nothing, version = ctypes.c_size_t(0), ctypes.c_uint(1)
    return max(0, int(_libc().syscall(_CREATE_RULESET, None, nothing, version)))


def apply_landlock(readable: list[str]) -> None:
    """Allow files below `readable` to be read and run, no other to be opened, and none written.

    Version 4 also denies TCP; version 6 also denies signals and abstract sockets to processes
    outside. Call `no_new_privileges` first.
    """
    version = landlock_version()
    if version == 0:
        raise OSError(errno.ENOSYS, "landlock: this kernel has none (it came with Linux 5.13)")
    rights = _FILE_RIGHTS.get(version, (1 << 16) - 1)
    fields = [rights, 3 if version >= 4 else 0, 3 if version >= 6 else 0]
    ruleset = struct.pack("QQQ", *fields)[: 8 * (1 + (version >= 4) + (version >= 6))]
    fd = _syscall(_CREATE_RULESET, "landlock", ruleset, len(ruleset), 0)
    for path in readable:
        folder = os.open(path, os.O_PATH | os.O_CLOEXEC)
        allowed = _EXECUTE | _READ_FILE | (_READ_DIR if os.path.isdir(path) else 0)
        _syscall(_ADD_RULE, f"landlock: {path}", fd, 1, struct.pack("=Qi", allowed, folder), 0)
        os.close(folder)
    _syscall(_RESTRICT_SELF, "landlock", fd, 0)
    os.close(fd)


# --- namespaces and mounts ------------------------------------------------------------------------

_MOUNT_SETATTR = 442
_READ_ONLY, _NO_SUID, _NO_DEVICES = 1, 2, 4
_BIND, _RECURSIVE, _PRIVATE = 0x1000, 0x4000, 1 << 18


def unshare(flags: int) -> None:
    """Move this process to new namespaces of the kinds in `flags`."""
    _check(_libc().unshare(flags), "unshare")


def mount(source: str, target: str, kind: str = "", flags: int = 0, options: str = "") -> None:
    """Make the system call mount, with NULL for an empty string."""
    texts = [source, target, kind, options]
    source_, target_, kind_, options_ = (text.encode() or None for text in texts)
    _check(
        _libc().mount(source_, target_, kind_, ctypes.c_ulong(flags), options_),
        f"mount {kind} {target}",
    )


def private_mounts() -> None:
    """Keep all later mounts and unmounts inside this process's mount namespace."""
    mount("none", "/", flags=_RECURSIVE | _PRIVATE)


def bind(source: str, target: str) -> None:
    """Show `source`, and what is mounted below it, at `target` too."""
    mount(source, target, flags=_BIND | _RECURSIVE)


def read_only(target: str, devices: bool = False) -> None:
    """Make all mounts at and below `target` read-only and set-user-ID files in them powerless.

    Device files do not work there either, unless `devices`. This needs Linux 5.12.
    """
    set_ = _READ_ONLY | _NO_SUID | (0 if devices else _NO_DEVICES)
    attributes = struct.pack("QQQQ", set_, 0, 0, 0)
    # AT_FDCWD, path, AT_RECURSIVE
    arguments = (-100, target.encode(), 0x8000, attributes, len(attributes))
    _syscall(_MOUNT_SETATTR, f"mount_setattr {target}", *arguments)


def change_root(folder: str) -> None:
    """Make `folder`, a mount point, the only file system that this process sees."""
    os.chdir(folder)
    pivot_root = {"x86_64": 155, "aarch64": 41}[platform.machine()]
    _syscall(pivot_root, "pivot_root", b".", b".")
    _check(_libc().umount2(b".", 2), "umount2")  # MNT_DETACH: the old root, now on top of the new
    os.chdir("/")
