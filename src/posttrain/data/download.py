"""`posttrain data download`: the original files of named data sets, resumed and checked.

A file grows as NAME.part, with NAME.part.from beside it: its address and version, so that no two
versions are joined. A finished one is in manifest.json with its address, bytes and sha256, which
the next call checks; it is not fetched again. Files of the hub come over https as well, from one
commit, with the sums that the hub tells.
"""

from __future__ import annotations

import http.client
import json
import os
import shutil
import tarfile
import time
import zipfile
import zlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from pathlib import Path, PurePosixPath
from typing import Any
from urllib.error import HTTPError, URLError
from urllib.parse import quote, urlsplit
from urllib.request import Request, urlopen

from posttrain.common.errors import SettingError
from posttrain.common.files import sha256
from posttrain.common.suggest import did_you_mean
from posttrain.data.origin import HubFiles, Origin, origin_of
from posttrain.data.sets import DATASETS

MANIFEST = "manifest.json"
ARCHIVES = (".zip", ".tgz", ".tar.gz")
BLOCK = 1 << 20
TIMEOUT = 60.0  # seconds without a byte
TRIES = 4
PAUSE = 2.0  # seconds before a broken connection is tried again

Say = Callable[[str], None]


@dataclass(frozen=True)
class Remote:
    name: str
    """Its path in the data set's folder."""
    url: str
    sha256: str | None = None
    """Where the source tells it."""
    num_bytes: int | None = None
    """Where the source lists it; of other files the answer tells it."""


def chosen(names: Sequence[str], *, sft_only: bool = False, rl_only: bool = False) -> list[str]:
    """The data sets to fetch: those named, or all that have files, perhaps of one use alone."""
    if sum((bool(names), sft_only, rl_only)) > 1:
        raise SettingError("sft_only", "give either names, or one of sft_only and rl_only")
    origins = {name: origin_of(name) for name in DATASETS}
    files = {name: origin for name, origin in origins.items() if origin and _has_files(origin)}
    for name in names:
        if name not in DATASETS:
            raise ValueError(f"no data set {name!r}; {did_you_mean(name, files)}")
        if name not in files:
            raise ValueError(f"{name} has no files to fetch; those that have: {', '.join(files)}")
    wanted = {"sft"} if sft_only else {"rl", "preference"} if rl_only else set()
    return list(names) or [n for n, o in files.items() if not wanted or wanted & set(o.uses)]


def _has_files(origin: Origin) -> bool:
    return bool(origin.urls or origin.hub)


def download(
    names: Sequence[str], output_dir: Path, say: Say = print, *, dry_run: bool = False
) -> None:
    """Fetch the files of each data set into output_dir/NAME, which `data.path` then reads; with
    `dry_run` only say what they are and how large.

    A data set that can not be had does not keep the others from being fetched: the ValueError
    comes at the end. Two in a row without a connection are a ConnectionError at once.
    """
    failed: list[str] = []
    total, unconnected = 0, 0
    for name in names:
        try:
            total += (_list_one if dry_run else _download_one)(name, output_dir / name, say)
            unconnected = 0
        except (ValueError, ConnectionError) as error:
            kind = ConnectionError if isinstance(error, ConnectionError) else ValueError
            if len(names) == 1:
                raise kind(f"{name}: {error}") from None
            unconnected = unconnected + 1 if kind is ConnectionError else 0
            if unconnected == 2:
                raise
            say(f"{name}: {error}")
            failed.append(name)
    if len(names) > 1 or dry_run:
        say(f"{size(total)} {'to fetch' if dry_run else 'in all'}")
    if failed:
        raise ValueError(
            f"{len(failed)} of {len(names)} data sets were not {'found' if dry_run else 'fetched'}:"
            f" {', '.join(failed)} (reasons above)"
            + ("" if dry_run else "; the same command goes on where this one stopped")
        )


def _list_one(name: str, folder: Path, say: Say) -> int:
    """Say the files that _download_one() would fetch, and how many bytes they have together."""
    origin = origin_of(name)
    assert origin is not None
    say(f"{name}: licence {origin.licence}; {origin.page}")
    there = _read_manifest(folder)["files"]
    total = 0
    for remote in _remotes(origin):
        num_bytes = _length(remote.url) if remote.num_bytes is None else remote.num_bytes
        is_there = remote.name in there and (folder / remote.name).is_file()
        of = "size unknown" if num_bytes is None else size(num_bytes)
        say(f"  {remote.name}  {of}" + (", there already" if is_there else ""))
        total += 0 if is_there else num_bytes or 0
    return total


def _download_one(name: str, folder: Path, say: Say) -> int:
    """The bytes that the data set has on the disk."""
    origin = origin_of(name)
    assert origin is not None
    manifest = _read_manifest(folder)
    files = manifest["files"]
    missing = [path for path in files if not _there(folder, path, files[path])]
    if manifest["complete"] and not missing:
        say(f"{name}: there already, {len(files)} files, their sums agree")
        return _total(files)
    say(f"{name}: licence {origin.licence}; {origin.page}")

    def write() -> None:
        _write_manifest(folder, manifest)

    for remote in _remotes(origin):
        place = folder / remote.name
        if not place.exists():
            _fetch(remote, place, files, write, say)
        elif remote.name not in files:
            raise ValueError(f"{place} is not from this command: move it away")
        elif remote.sha256 not in (None, files[remote.name]["sha256"]):
            raise ValueError(f"{place} has changed at its source: delete {folder} to fetch it anew")
        if remote.name.endswith(ARCHIVES):
            _unpack(place, remote.url, files, write)
    manifest["complete"] = True
    write()
    total = _total(files)
    say(f"{name}: {len(files)} files, {size(total)}; data: {{name: {name}, path: {folder}}}")
    return total


def _total(files: dict[str, Any]) -> int:
    return sum(int(entry["bytes"]) for entry in files.values())


def _read_manifest(folder: Path) -> dict[str, Any]:
    file = folder / MANIFEST
    if not file.is_file():
        return {"complete": False, "files": {}}
    try:
        manifest: dict[str, Any] = json.loads(file.read_text())
        good = all({"bytes", "sha256"} <= set(entry) for entry in manifest["files"].values())
        good = good and isinstance(manifest["complete"], bool)
    except (ValueError, KeyError, TypeError, AttributeError):
        good = False
    if not good:
        raise ValueError(f"{file}: not a manifest of this command: delete {folder} and run again")
    return manifest


def _write_manifest(folder: Path, manifest: dict[str, Any]) -> None:
    new = folder / f"{MANIFEST}.new"
    new.write_text(json.dumps(manifest, indent=1))
    new.replace(folder / MANIFEST)


def _there(folder: Path, path: str, entry: dict[str, Any]) -> bool:
    """Whether a file of the manifest is there; a ValueError where its bytes are others."""
    place = folder / path
    if not place.is_file():
        return False
    if place.stat().st_size != entry["bytes"] or sha256(place) != entry["sha256"]:
        raise ValueError(f"{place}: its sha256 is not that of {MANIFEST}: delete it and run again")
    return True


def _entry(file: Path, url: str) -> dict[str, Any]:
    return {"url": url, "bytes": file.stat().st_size, "sha256": sha256(file)}


def size(num_bytes: int) -> str:
    """Bytes as people read them."""
    for unit, factor in (("GB", 1e9), ("MB", 1e6), ("kB", 1e3)):
        if num_bytes >= factor:
            return f"{num_bytes / factor:.1f} {unit}"
    return f"{num_bytes} B"


# --- where the files are --------------------------------------------------------------------------


def _remotes(origin: Origin) -> list[Remote]:
    remotes = [Remote(PurePosixPath(urlsplit(url).path).name, url) for url in origin.urls]
    for files in origin.hub:
        remotes += _of_hub(files)
    return remotes


def _of_hub(files: HubFiles) -> list[Remote]:
    """The files of the newest commit, as the hub's own interface lists them."""
    hub = os.environ.get("HF_ENDPOINT", "https://huggingface.co").rstrip("/")
    url = f"{hub}/api/datasets/{files.repo}?blobs=true"
    with _open(url, {}) as response:
        try:
            content = response.read()
        except (OSError, http.client.HTTPException) as error:
            raise ConnectionError(f"{url}: the connection broke ({error}): run again") from None
        try:
            listing = json.loads(content)
            found = [f for f in listing["siblings"] if fnmatchcase(f["rfilename"], files.pattern)]
            base = f"{hub}/datasets/{files.repo}/resolve/{listing['sha']}"
            remotes = [
                Remote(
                    f["rfilename"].removeprefix(files.folder),
                    f"{base}/{quote(f['rfilename'])}",
                    (f.get("lfs") or {}).get("sha256"),
                    f.get("size"),
                )
                for f in sorted(found, key=lambda f: str(f["rfilename"]))
            ]
        except (ValueError, KeyError, TypeError, AttributeError):
            raise ValueError(f"{url}: not a list of files of the hub") from None
    if not remotes:
        raise ValueError(f"{files.repo} on the hub has no file {files.pattern} any more")
    return remotes


# --- one file -------------------------------------------------------------------------------------


def _fetch(
    remote: Remote, place: Path, files: dict[str, Any], write: Callable[[], None], say: Say
) -> None:
    part = place.with_name(f"{place.name}.part")
    for left in reversed(range(TRIES)):
        if _receive(remote.url, part, remote.name, say):
            break
        if not left:
            raise ValueError(
                f"{remote.url}: the connection broke {TRIES} times, the last time after "
                f"{size(part.stat().st_size if part.exists() else 0)}; run again to go on"
            )
        time.sleep(PAUSE)
    entry = _entry(part, remote.url)
    if remote.sha256 not in (None, entry["sha256"]):
        _forget(part)
        raise ValueError(
            f"{remote.url}: sha256 {entry['sha256'][:16]}... instead of {str(remote.sha256)[:16]}"
            "...: what came was thrown away, run again"
        )
    files[remote.name] = entry
    write()  # before the file has its name: one with a name but no entry is somebody else's
    part.replace(place)
    _forget(part)


def _receive(url: str, part: Path, name: str, say: Say) -> bool:
    """Get the bytes that `part` lacks. False where the connection broke."""
    start, version = _resumable(url, part)
    headers = {"Range": f"bytes={start}-"} if start else {}
    if start and version:
        headers["If-Range"] = version
    with _open(url, headers) as response:
        answer = response.headers.get("Content-Range", "")
        if response.status == 416:  # nothing is left, or the part is longer than the file
            if answer == f"bytes */{start}":
                return True
            _forget(part)
            return False
        if response.status == 206 and not answer.startswith(f"bytes {start}-"):
            _forget(part)
            return False
        start = start if response.status == 206 else 0
        length = response.headers.get("Content-Length")
        total = None if length is None else start + int(length)
        of = "size unknown" if total is None else size(total)
        say(f"  {name}  {of}" + (f", going on at {size(start)}" if start else ""))
        if not start:
            part.parent.mkdir(parents=True, exist_ok=True)
            tag = response.headers.get("ETag", "")
            _from(part).write_text(f"{url}\n{'' if tag.startswith('W/') else tag}")
        with part.open("ab" if start else "wb") as out:
            while True:
                try:
                    block = response.read(BLOCK)
                except (OSError, http.client.HTTPException):
                    return False
                if not block:
                    break
                out.write(block)
    return total is None or part.stat().st_size == total


def _length(url: str) -> int | None:
    """The bytes of a file as its server tells them; the file itself is not read."""
    with _open(url, {}) as response:
        length = response.headers.get("Content-Length")
    return None if length is None else int(length)


def _resumable(url: str, part: Path) -> tuple[int, str]:
    """How many bytes of this address are there, and of which version of it."""
    if not part.is_file() or not _from(part).is_file():
        return 0, ""
    address, _, version = _from(part).read_text().partition("\n")
    return (part.stat().st_size, version) if address == url else (0, "")


def _from(part: Path) -> Path:
    return part.with_name(f"{part.name}.from")


def _forget(part: Path) -> None:
    part.unlink(missing_ok=True)
    _from(part).unlink(missing_ok=True)


def _open(url: str, headers: dict[str, str]) -> Any:
    """The response, also with status 416; other errors in a line."""
    try:
        return urlopen(Request(url, headers={"User-Agent": "posttrain"} | headers), timeout=TIMEOUT)
    except HTTPError as error:
        if error.code == 416:
            return error
        raise ValueError(f"{url}: the server says {error.code} {error.reason}") from None
    except (URLError, OSError, http.client.HTTPException) as error:
        reason = getattr(error, "reason", None) or str(error) or type(error).__name__
        raise ConnectionError(
            f"no connection to {urlsplit(url).netloc} ({reason}): run the same command again with "
            f"a network, or bring {url} here by hand and give its folder as data.path"
        ) from None


def _unpack(archive: Path, url: str, files: dict[str, Any], write: Callable[[], None]) -> None:
    """Unpack beside the archive, first into a folder of its own: a killed call leaves no half."""
    folder, aside = archive.parent, archive.with_name(f"{archive.name}.unpacking")
    shutil.rmtree(aside, ignore_errors=True)
    try:
        if archive.suffix == ".zip":
            with zipfile.ZipFile(archive) as zipped:
                zipped.extractall(aside)
        else:
            with tarfile.open(archive) as tarred:
                tarred.extractall(aside, filter="data")
    except (zipfile.BadZipFile, tarfile.TarError, EOFError, zlib.error) as error:
        raise ValueError(f"{archive} can not be unpacked ({error}): delete it") from None
    paths = sorted(
        file.relative_to(aside).as_posix() for file in aside.rglob("*") if file.is_file()
    )
    for path in paths:
        if (folder / path).exists() and path not in files:
            raise ValueError(f"{folder / path} is not from this command: move it away")
        files[path] = _entry(aside / path, f"{url}, unpacked")
    write()
    for path in paths:
        (folder / path).parent.mkdir(parents=True, exist_ok=True)
        (aside / path).replace(folder / path)
    shutil.rmtree(aside)
