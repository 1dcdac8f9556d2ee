"""The system calls that a confined process may not make, as a seccomp filter.

The table refuses what it names and allows the rest. An allow list would be shorter in the end, but
it breaks honest programs whenever an interpreter, libc or numpy takes up another harmless call. A
call that is newer than the table does not exist for the process, so the kernel's next surprise is
refused too.

Not in the table, though a reader may look for them: execve (bwrap and `isolation.py` start the
interpreter under the filter; what it starts is confined alike), opening, renaming and removing of
files (mounts and landlock prevent it), setuid and the like (no capability is left), setrlimit
(nobody raises a hard limit without one).
"""

import errno
import platform
import struct
from functools import cache

# "why: name, number on x86_64, number on aarch64 (- if there is no such call); ..."
_REFUSED = """
new processes (clone, which threads need, is handled in the filter): fork 57 -; vfork 58 -
sockets that reach outside, as socket pairs can too: socket 41 198; connect 42 203; bind 49 200;
    listen 50 201; accept 43 202; accept4 288 242; setsockopt 54 208
an address or descriptors in memory, which a filter cannot read: sendmsg 46 211; sendmmsg 307 269
other processes, read or changed: ptrace 101 117; process_vm_readv 310 270; kcmp 312 272;
    process_vm_writev 311 271; pidfd_open 434 434; pidfd_getfd 438 438; get_robust_list 274 100;
    process_madvise 440 440; process_mrelease 448 448; migrate_pages 256 238; move_pages 279 239
signals by descriptor: pidfd_send_signal 424 424
memory shared by name or number: shmget 29 194; shmat 30 196; shmctl 31 195; semget 64 190;
    semctl 66 191; semop 65 193; semtimedop 220 192; msgget 68 186; msgctl 71 187; msgrcv 70 188;
    msgsnd 69 189; mq_open 240 180; mq_unlink 241 181; memfd_create 319 279; memfd_secret 447 447
memory that cannot be paged out: mlock 149 228; mlock2 325 284; mlockall 151 230
placement of memory and share of the processors: mbind 237 235; set_mempolicy 238 237;
    set_mempolicy_home_node 450 450; setpriority 141 140; sched_setparam 142 118;
    sched_setscheduler 144 119; sched_setattr 314 274; sched_setaffinity 203 122; ioprio_set 251 30
clocks and names of the machine: settimeofday 164 170; clock_settime 227 112; adjtimex 159 171;
    clock_adjtime 305 266; sethostname 170 161; setdomainname 171 162
owner, rights, times and attributes of shown files, which landlock leaves open: chmod 90 -;
    fchmod 91 52; fchmodat 268 53; fchmodat2 452 452; chown 92 -; fchown 93 55; lchown 94 -;
    fchownat 260 54; utime 132 -; utimes 235 -; futimesat 261 -; utimensat 280 88; setxattr 188 5;
    lsetxattr 189 6; fsetxattr 190 7; removexattr 197 14; lremovexattr 198 15; fremovexattr 199 16;
    setxattrat 463 463; removexattrat 466 466; file_setattr 469 469
what others do with files: inotify_init 253 -; inotify_init1 294 26; fanotify_init 300 262;
    fanotify_mark 301 263
handles of files, which pass by their folders: name_to_handle_at 303 264; open_by_handle_at 304 265
disks of the machine: sync 162 81; syncfs 306 267; quotactl 179 60; quotactl_fd 443 443;
    swapon 167 224; swapoff 168 225
namespaces and mounts: unshare 272 97; setns 308 268; mount 165 40; umount2 166 39;
    pivot_root 155 41; chroot 161 51; open_tree 428 428; open_tree_attr 467 467; move_mount 429 429;
    fsopen 430 430; fsconfig 431 431; fsmount 432 432; fspick 433 433; mount_setattr 442 442;
    statmount 457 457; listmount 458 458
parts of the kernel that are large, rarely needed and have had holes: bpf 321 280; uselib 134 -;
    perf_event_open 298 241; userfaultfd 323 282; io_uring_setup 425 425; io_uring_enter 426 426;
    io_uring_register 427 427; io_setup 206 0; add_key 248 217; request_key 249 218;
    keyctl 250 219; splice 275 76; vmsplice 278 75; tee 276 77; seccomp 317 277; modify_ldt 154 -;
    personality 135 92; lookup_dcookie 212 18; lsm_set_self_attr 460 460; uprobe 336 -;
    uretprobe 335 -
for administrators: syslog 103 116; acct 163 89; reboot 169 142; kexec_load 246 104;
    kexec_file_load 320 294; init_module 175 105; finit_module 313 273; delete_module 176 106;
    iopl 172 -; ioperm 173 -; vhangup 153 58; sysfs 139 -; ustat 136 -; _sysctl 156 -
"""
_PROGRAMS = "new programs, for which tests have no need: execve 59 221; execveat 322 281"
# Calls that are refused unless an argument (its place, from 0) has one of some values.
_LIMITED: dict[str, tuple[int, int, int, tuple[int, ...]]] = {
    # of the family AF_UNIX
    "socketpair": (53, 199, 0, (1,)),
    # without an address
    "sendto": (44, 206, 4, (0,)),
    # of this process itself
    "prlimit64": (302, 261, 0, (0,)),
    # duplicates, flags and locks; not F_SETOWN, which has the kernel signal another process, nor
    # F_SETLEASE, which keeps others waiting, nor F_NOTIFY
    "fcntl": (72, 25, 1, (0, 1, 2, 3, 4, 5, 6, 7, 9, 1030, 1032)),
    # TCGETS (isatty), sizes, FIONBIO, FIOCLEX; not TIOCSTI, which types on a terminal, nor
    # FS_IOC_SETFLAGS, which changes a file that is open for reading
    "ioctl": (16, 29, 1, (0x5401, 0x802C542A, 0x5411, 0x5413, 0x541B, 0x5421, 0x5450, 0x5451)),
}
# Signals; the first argument is a process or thread.
_SIGNALS = {
    "kill": (62, 129),
    "tkill": (200, 130),
    "tgkill": (234, 131),
    "rt_sigqueueinfo": (129, 138),
    "rt_tgsigqueueinfo": (297, 240),
}

_LAST = 469  # of the calls that were looked at, up to Linux 6.18
_CLONE, _CLONE3 = (56, 220), 435
_CLONE_THREAD, _CLONE_NEW = 0x00010000, 0x7E020000
_X32 = 0x40000000
_MACHINES = {"x86_64": (0, 0xC000003E), "aarch64": (1, 0xC00000B7)}
_LOAD, _JUMP_EQUAL, _JUMP_ABOVE, _JUMP_AT_LEAST, _JUMP_SET, _RETURN = 32, 21, 37, 53, 69, 6
_KILL, _ERROR, _ALLOW = 0x80000000, 0x00050000, 0x7FFF0000
_REFUSE = (_RETURN, 0, 0, _ERROR | errno.EPERM)
_DENY_EXISTENCE = (_RETURN, 0, 0, _ERROR | errno.ENOSYS)

Step = tuple[int, int, int, int]


def known() -> bool:
    """Whether there is a table of system calls for this machine."""
    return platform.machine() in _MACHINES


def refused(table: str = _REFUSED) -> dict[str, tuple[int | None, int | None]]:
    """Return the numbers (on x86_64, on aarch64) of the calls in a table, by name."""
    numbers = {}
    for line in table.replace(";\n", ";").strip().splitlines():
        for call in line.rpartition(": ")[2].split(";"):
            name, *columns = call.split()
            x86_64, aarch64 = (None if column == "-" else int(column) for column in columns)
            numbers[name] = (x86_64, aarch64)
    return numbers


@cache
def filter_program(signals_to: int | None = None, tests: bool = False) -> bytes:
    """Return a filter in the kernel's form: the calls above fail with EPERM, threads are allowed.

    A call of another architecture kills the process.

    Args:
        signals_to: The only process to which signals may go, by id; None for those that it sees.
        tests: Refuse new programs and all signals, too.

    Raises:
        OSError: There is no table of system calls for this machine.
    """
    if not known():
        raise OSError(errno.ENOSYS, f"seccomp: no table for {platform.machine()}")
    column, architecture = _MACHINES[platform.machine()]
    steps: list[Step] = [
        (_LOAD, 0, 0, 4),  # the architecture
        (_JUMP_EQUAL, 1, 0, architecture),
        (_RETURN, 0, 0, _KILL),
        (_LOAD, 0, 0, 0),  # the number
        (_JUMP_AT_LEAST, 0, 1, _X32),
        (_RETURN, 0, 0, _KILL),
        (_JUMP_ABOVE, 0, 1, _LAST),
        _DENY_EXISTENCE,
        # glibc then falls back to clone, whose flags a filter can read
        (_JUMP_EQUAL, 0, 1, _CLONE3),
        _DENY_EXISTENCE,
        (_JUMP_EQUAL, 0, 5, _CLONE[column]),
        (_LOAD, 0, 0, 16),  # the low half of the first argument: clone's flags
        (_JUMP_SET, 2, 0, _CLONE_NEW),
        (_JUMP_SET, 0, 1, _CLONE_THREAD),
        (_RETURN, 0, 0, _ALLOW),
        _REFUSE,
    ]
    names = refused() | (refused(_PROGRAMS) if tests else {})
    for number in (numbers[column] for numbers in names.values()):
        if number is not None:
            steps += [(_JUMP_EQUAL, 0, 1, number), _REFUSE]
    limited = list(_LIMITED.values())
    if tests or signals_to is not None:
        receivers = () if tests or signals_to is None else (0, signals_to)  # 0: its own group
        limited += [(*numbers, 0, receivers) for numbers in _SIGNALS.values()]
    for *columns, argument, allowed in limited:
        steps += _limited(columns[column], argument, allowed)
    steps.append((_RETURN, 0, 0, _ALLOW))
    return b"".join(struct.pack("HBBI", *step) for step in steps)


def _limited(number: int, argument: int, allowed: tuple[int, ...]) -> list[Step]:
    """Return steps that refuse a call unless an argument is one of `allowed`.

    The kernel reads the low half of these arguments only, except of a pointer, here a 0.
    """
    low = 16 + 8 * argument
    body: list[Step] = [(_LOAD, 0, 0, low + 4), (_JUMP_EQUAL, 1, 0, 0), _REFUSE]
    body = (body if allowed == (0,) else []) + [(_LOAD, 0, 0, low)]
    for value in allowed:
        body += [(_JUMP_EQUAL, 0, 1, value), (_RETURN, 0, 0, _ALLOW)]
    body.append(_REFUSE)
    return [(_JUMP_EQUAL, 0, len(body), number), *body]
