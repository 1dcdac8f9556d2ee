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

from posttrain.sandbox import calls

NEW_MOUNTS = 0x00020000
NEW_NAMESPACES = NEW_MOUNTS | 0x10000000 | 0x20000000 | 0x40000000  # user, pid, network
NEW_NAMESPACES |= 0x08000000 | 0x04000000 | 0x02000000  # ipc, host name, cgroup
NEW_PROCESSES = 0x20000000

_PR_SET_PDEATHSIG, _PR_SET_DUMPABLE, _PR_SET_CHILD_SUBREAPER = 1, 4, 36
_PR_GET_SECCOMP, _PR_SET_SECCOMP, _PR_SET_NO_NEW_PRIVS = 21, 22, 38
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


def hide_memory() -> None:
    """Let no other process of this user trace this one, read its memory or its descriptors."""
    _prctl(_PR_SET_DUMPABLE, 0)


def drop_capabilities() -> None:
    """Give up all capabilities; after `no_new_privileges`, no program brings them back."""
    number = {"x86_64": 126, "aarch64": 91}.get(platform.machine(), -1)
    header = struct.pack("Ii", 0x20080522, 0)  # version 3, this process
    _syscall(number, "capset", header, bytes(24))


def no_new_privileges() -> None:
    """Renounce new privileges by exec; the kernel requires this before seccomp and landlock."""
    _prctl(_PR_SET_NO_NEW_PRIVS, 1)


# --- seccomp --------------------------------------------------------------------------------------


def has_seccomp() -> bool:
    """Whether `apply_seccomp` can work here."""
    return calls.known() and _libc().prctl(_PR_GET_SECCOMP, 0, 0, 0, 0) >= 0


def apply_seccomp(steps: bytes) -> None:
    """Apply a filter (`calls.filter_program`) to this process, after `no_new_privileges`."""
    program = ctypes.create_string_buffer(steps, len(steps))
    header = struct.pack("HxxxxxxP", len(program) // 8, ctypes.addressof(program))
    pointer = ctypes.cast(ctypes.create_string_buffer(header, len(header)), ctypes.c_void_p)
    _prctl(_PR_SET_SECCOMP, 2, pointer)  # SECCOMP_MODE_FILTER


# --- landlock -------------------------------------------------------------------------------------

_CREATE_RULESET, _ADD_RULE, _RESTRICT_SELF = 444, 445, 446
_EXECUTE, _WRITE_FILE, _READ_FILE, _READ_DIR, _TRUNCATE, _USE_DEVICE = 1, 2, 4, 8, 1 << 14, 1 << 15
_FILE_RIGHTS = {1: (1 << 13) - 1, 2: (1 << 14) - 1, 3: (1 << 15) - 1, 4: (1 << 15) - 1}


def landlock_version() -> int:
    """Return the version of landlock in this kernel; 0 if it has none."""
    nothing, version = ctypes.c_size_t(0), ctypes.c_uint(1)
    return max(0, int(_libc().syscall(_CREATE_RULESET, None, nothing, version)))


def landlock_rules(readable: list[str], listed: list[str] | None = None) -> int:
    """Return a descriptor of the rules for `apply_landlock`.

    Files below `readable` may be read and run, the folders at and below `listed` may be listed,
    /dev/null may be written, and no other file may be opened or changed. Version 4 also denies
    TCP; version 6 also denies signals and abstract sockets to processes outside.
    """
    version = landlock_version()
    if version == 0:
        raise OSError(errno.ENOSYS, "landlock: this kernel has none (it came with Linux 5.13)")
    rights = _FILE_RIGHTS.get(version, (1 << 16) - 1)
    fields = [rights, 3 if version >= 4 else 0, 3 if version >= 6 else 0]
    ruleset = struct.pack("QQQ", *fields)[: 8 * (1 + (version >= 4) + (version >= 6))]
    rules = _syscall(_CREATE_RULESET, "landlock", ruleset, len(ruleset), 0)
    allowed = [(path, _EXECUTE | _READ_FILE | _READ_DIR) for path in readable]
    allowed += [(path, _READ_DIR) for path in listed or []]
    allowed += [("/dev/null", _READ_FILE | _WRITE_FILE | _TRUNCATE | _USE_DEVICE)]
    for path, wanted in allowed:
        place = os.open(path, os.O_PATH | os.O_CLOEXEC)
        wanted &= rights & (-1 if os.path.isdir(path) else ~_READ_DIR)
        _syscall(_ADD_RULE, f"landlock: {path}", rules, 1, struct.pack("=Qi", wanted, place), 0)
        os.close(place)
    return rules


def apply_landlock(rules: int) -> None:
    """Apply rules (`landlock_rules`) to this process, after `no_new_privileges`."""
    _syscall(_RESTRICT_SELF, "landlock", rules, 0)


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


def join(namespace: int) -> None:
    """Move this process to the namespace of a descriptor."""
    _check(_libc().setns(namespace, 0), "setns")


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
