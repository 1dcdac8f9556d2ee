"""What a sandbox shows of the file system: the interpreter, its library, the system's libraries."""

import os
import sys
import sysconfig
from dataclasses import dataclass

from posttrain.sandbox import confine

NOBODY = 65534


class Unavailable(Exception):
    """An isolation level does not work on this machine; the text says why."""


@dataclass(frozen=True)
class View:
    """What a sandbox shows of the file system, all of it read-only."""

    python: str
    binds: tuple[tuple[str, str], ...]
    """(source, path in the sandbox) of files and folders."""
    links: tuple[tuple[str, str], ...]
    """(target, path) of symbolic links."""
    hidden: tuple[str, ...]
    """Folders that are shown empty: third-party packages."""
    nobody: bool
    """Whether to take the user id 65534 before anything else, as the lane runs as root."""


def system_view(level: str) -> View:
    """Return the view with the interpreter and the system's libraries.

    Raises:
        Unavailable: Only root can read the interpreter, and it cannot be shown to user 65534.
    """
    python, prefix = os.path.realpath(sys.executable), os.path.realpath(sys.base_prefix)
    system = prefix in ("/usr", "/usr/local")
    wanted = ["/usr/lib", "/usr/lib64", "/lib", "/lib64", "/etc/ld.so.cache", "/usr/share/zoneinfo"]
    wanted += [python, f"{prefix}/lib"] if system else [prefix]
    paths = [path for path in wanted if os.path.exists(path)]
    links = tuple((os.readlink(path), path) for path in paths if os.path.islink(path))
    shown = [path for path in paths if not os.path.islink(path)]
    version = f"python{sys.version_info[0]}.{sys.version_info[1]}"
    packages = {
        sysconfig.get_path("purelib", vars={"base": prefix, "platbase": prefix}),
        f"{prefix}/lib/{version}/site-packages",
        f"{prefix}/lib/{version}/dist-packages",
        "/usr/lib/python3/dist-packages",
    }
    hidden = [
        p for p in sorted(packages) if os.path.isdir(p) and any(p.startswith(s) for s in shown)
    ]
    nobody = os.geteuid() == 0 and _nobody_exists()
    sources = dict(zip(shown, shown))
    if nobody and not all(map(_open_to_all, shown)):
        if level == "process":  # it has no mounts of its own, so it cannot show them elsewhere
            nobody = False
        else:
            sources = _show_to_nobody(shown)
    binds = tuple((sources[path], path) for path in shown)
    return View(python, binds, links, tuple(hidden), nobody)


def _nobody_exists() -> bool:
    """Whether this user namespace has a user 65534."""
    with open("/proc/self/uid_map") as lines:
        ranges = [line.split() for line in lines]
    return any(int(first) <= NOBODY < int(first) + int(count) for first, _, count in ranges)


def _open_to_all(path: str) -> bool:
    """Whether every user may read `path` and enter the folders above it."""
    if not os.stat(path).st_mode & 4:
        return False
    parts = path.split("/")[1:-1]
    folders = ["/" + "/".join(parts[: i + 1]) for i in range(len(parts))]
    return all(os.stat(folder).st_mode & 1 for folder in folders)


def _show_to_nobody(paths: list[str]) -> dict[str, str]:
    """Bind `paths` where every user may look, in a mount namespace of this process's own.

    Return the new place of each.
    """
    place = next(p for p in ("/mnt", "/media", "/srv", "/tmp") if os.path.isdir(p))
    shown = {}
    try:
        confine.unshare(confine.NEW_MOUNTS)
        confine.private_mounts()
        handles = [os.open(path, os.O_PATH) for path in paths]
        confine.mount("tmpfs", place, "tmpfs", 0, "size=64k,mode=755")
        for i, (path, handle) in enumerate(zip(paths, handles)):
            shown[path] = f"{place}/{i}"
            make_place(path, shown[path])
            confine.bind(f"/proc/self/fd/{handle}", shown[path])
            os.close(handle)
    except OSError as error:
        raise Unavailable(
            f"only root can read the interpreter in {sys.base_prefix}, and it cannot be shown to "
            f"the sandbox's user ({error}): run as an ordinary user, or with another interpreter"
        ) from None
    return shown


def make_place(like: str, path: str) -> None:
    """Make an empty folder or file on which `like` can be bound."""
    os.makedirs(path if os.path.isdir(like) else os.path.dirname(path), exist_ok=True)
    if not os.path.isdir(like):
        with open(path, "a"):
            pass
