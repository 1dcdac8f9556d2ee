"""What a sandbox shows of the file system: the interpreter, its library, the system's libraries.

The sandbox of the tests shows third-party packages too.
"""

import os
import sys
import sysconfig
from dataclasses import dataclass

from posttrain.sandbox import confine

NOBODY = 65534
EMPTY = "/home"  # an empty folder in a sandbox


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
    prefix = os.path.realpath(sys.base_prefix)
    version = f"python{sys.version_info[0]}.{sys.version_info[1]}"
    packages = {
        sysconfig.get_path("purelib", vars={"base": prefix, "platbase": prefix}),
        f"{prefix}/lib/{version}/site-packages",
        f"{prefix}/lib/{version}/dist-packages",
        "/usr/lib/python3/dist-packages",
    }
    paths = _system_paths()
    hidden = [p for p in sorted(packages) if os.path.isdir(p) and _is_below(p, paths)]
    return _view_of(paths, tuple(hidden), may_mount=level != "process")


def tester_view(may_mount: bool) -> View:
    """Return the view with, in addition, the third-party packages that this process can import.

    Raises:
        Unavailable: Only root can read the interpreter, and it cannot be shown to user 65534.
    """
    paths = _system_paths()
    for path in ("/usr/local/lib", *package_folders()):
        if os.path.isdir(path) and not _is_below(path, paths):
            paths.append(path)
    return _view_of(paths, (), may_mount)


def package_folders() -> list[str]:
    """Return the folders of third-party packages on this process's path."""
    names = ("site-packages", "dist-packages")
    return [p for p in sys.path if os.path.basename(p) in names and os.path.isdir(p)]


def _is_below(path: str, folders: list[str]) -> bool:
    return any(path == folder or path.startswith(folder + "/") for folder in folders)


def _system_paths() -> list[str]:
    """Return the paths of the interpreter, its library and the system's libraries."""
    python, prefix = os.path.realpath(sys.executable), os.path.realpath(sys.base_prefix)
    system = prefix in ("/usr", "/usr/local")
    paths = ["/usr/lib", "/usr/lib64", "/lib", "/lib64", "/etc/ld.so.cache", "/usr/share/zoneinfo"]
    paths += [python, f"{prefix}/lib"] if system else [prefix]
    return [path for path in paths if os.path.exists(path)]


def _view_of(paths: list[str], hidden: tuple[str, ...], may_mount: bool) -> View:
    """Return the view of `paths`; for root, of those that user 65534 can read if there are any."""
    links = tuple((os.readlink(path), path) for path in paths if os.path.islink(path))
    shown = [path for path in paths if not os.path.islink(path)]
    nobody = os.geteuid() == 0 and _nobody_exists()
    sources = dict(zip(shown, shown))
    if nobody and not all(map(_open_to_all, shown)):
        if may_mount:
            sources = _show_to_nobody(shown)
        else:
            nobody = False
    binds = tuple((sources[path], path) for path in shown)
    return View(os.path.realpath(sys.executable), binds, links, hidden, nobody)


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


# --- from inside ----------------------------------------------------------------------------------


def drop_root() -> None:
    """Take the user id 65534 for good."""
    os.setgroups([])
    os.setresgid(NOBODY, NOBODY, NOBODY)
    os.setresuid(NOBODY, NOBODY, NOBODY)
    confine.stay_dumpable()


def enter_namespaces(kinds: int) -> None:
    """Move this process to new namespaces, in which its user is 65534 and has every capability."""
    uid, gid = os.geteuid(), os.getegid()
    confine.unshare(kinds)
    for file, text in (
        ("setgroups", "deny"),
        ("uid_map", f"{NOBODY} {uid} 1"),
        ("gid_map", f"{NOBODY} {gid} 1"),
    ):
        with open(f"/proc/self/{file}", "w") as out:
            out.write(text)


def build_root(view: View) -> None:
    """Make a read-only file system with the view's files the only one that this process sees."""
    root = "/tmp"
    shown = [*view.binds, ("/dev/null", "/dev/null")]
    handles = [os.open(source, os.O_PATH) for source, _ in shown]
    confine.private_mounts()
    confine.mount("tmpfs", root, "tmpfs", 0, "size=64k,mode=755")
    os.makedirs(root + EMPTY)
    os.makedirs(root + "/tmp")
    for handle, (_, path) in zip(handles, shown):
        source = f"/proc/self/fd/{handle}"
        make_place(source, root + path)
        confine.bind(source, root + path)
        confine.read_only(root + path, devices=path == "/dev/null")
        os.close(handle)
    for path in view.hidden:
        confine.mount("tmpfs", root + path, "tmpfs", 0, "size=4k,mode=755")
    for target, path in view.links:
        os.makedirs(os.path.dirname(root + path), exist_ok=True)
        os.symlink(target, root + path)
    confine.change_root(root)
    confine.read_only("/", devices=True)
    os.chdir(EMPTY)
