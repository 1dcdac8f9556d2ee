"""`posttrain data download`: the original files of named data sets, resumable and verified.

A file is received as NAME.part; NAME.part.from holds its URL and version, so that parts of two
versions are never joined. manifest.json lists each finished file with its URL, size and sha256; the
next call verifies these and does not fetch the file again. Files on the hub also come over https,
from one commit, and are compared with the sha256 that the hub lists.
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
from posttrain.data.origin import MANIFEST, HubFiles, Origin, origin_of
from posttrain.data.sets import DATASETS

ARCHIVES = (".zip", ".tgz", ".tar.gz")
BLOCK = 1 << 20
TIMEOUT = 60.0  # seconds without a byte
TRIES = 4
PAUSE = 2.0  # seconds before the next try after a broken connection

Say = Callable[[str], None]


@dataclass(frozen=True)
class Remote:
    """A file to fetch."""

    name: str
    """Its path in the data set's folder."""
    url: str
    sha256: str | None = None
    """As the source lists it; None if it does not."""
    num_bytes: int | None = None
    """As the source lists it; None if only the response has it."""


def chosen(names: Sequence[str], *, sft_only: bool = False, rl_only: bool = False) -> list[str]:
    """Return the data sets to fetch: those named, or all that have files, optionally of one use."""
    if sum((bool(names), sft_only, rl_only)) > 1:
        raise SettingError("sft_only", "give only one of names, sft_only and rl_only")
    origins = {name: origin_of(name) for name in DATASETS}
    files = {name: origin for name, origin in origins.items() if origin and _has_files(origin)}
    for name in names:
        if name not in DATASETS:
            raise ValueError(f"no data set {name!r}; {did_you_mean(name, files)}")
        if name not in files:
            raise ValueError(
                f"{name} has no files to fetch; data sets with files: {', '.join(files)}"
            )
    wanted = {"sft"} if sft_only else {"rl", "preference"} if rl_only else set()
    return list(names) or [n for n, o in files.items() if not wanted or wanted & set(o.uses)]


def _has_files(origin: Origin) -> bool:
    return bool(origin.urls or origin.hub)


def download(
    names: Sequence[str], output_dir: Path, say: Say = print, *, dry_run: bool = False
) -> None:
    """Fetch the files of each data set into output_dir/NAME, for `data.path` to name.

    `dry_run` only prints the files and their sizes. If a data set cannot be fetched, the others
    still are, and a ValueError follows at the end; but two in a row without a connection raise
    ConnectionError at once.
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
        say(f"{size(total)} {'to fetch' if dry_run else 'in total'}")
    if failed:
        raise ValueError(
            f"{len(failed)} of {len(names)} data sets were not {'found' if dry_run else 'fetched'}:"
            f" {', '.join(failed)} (reasons above)"
            + ("" if dry_run else "; run the same command again to resume")
        )


def _list_one(name: str, folder: Path, say: Say) -> int:
    """Print the files of a data set; return how many bytes _download_one() would fetch."""
    origin = origin_of(name)
    assert origin is not None
    say(f"{name}: licence {origin.licence}; {origin.page}")
    listed = _read_manifest(folder)["files"]
    total = 0
    for remote in _remotes(origin):
        num_bytes = _length(remote.url) if remote.num_bytes is None else remote.num_bytes
        is_present = remote.name in listed and (folder / remote.name).is_file()
        readable = "size unknown" if num_bytes is None else size(num_bytes)
        say(f"  {remote.name}  {readable}" + (", already fetched" if is_present else ""))
        total += 0 if is_present else num_bytes or 0
    return total


def _download_one(name: str, folder: Path, say: Say) -> int:
    """Fetch the missing files of a data set; return the bytes that it takes on disk."""
    origin = origin_of(name)
    assert origin is not None
    manifest = _read_manifest(folder)
    files = manifest["files"]
    missing = [path for path in files if not _is_intact(folder, path, files[path])]
    if manifest["complete"] and not missing:
        say(f"{name}: already fetched, {len(files)} files, all checksums match")
        return _total(files)
    say(f"{name}: licence {origin.licence}; {origin.page}")

    def write() -> None:
        _write_manifest(folder, manifest)

    for remote in _remotes(origin):
        target = folder / remote.name
        if not target.exists():
            _fetch(remote, target, files, write, say)
        elif remote.name not in files:
            raise ValueError(f"{target} was not written by this command: move it away")
        elif remote.sha256 not in (None, files[remote.name]["sha256"]):
            raise ValueError(
                f"{target} has changed at its source: delete {folder} to fetch it again"
            )
        if remote.name.endswith(ARCHIVES):
            _unpack(target, remote.url, files, write)
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
        valid = all({"bytes", "sha256"} <= set(entry) for entry in manifest["files"].values())
        valid = valid and isinstance(manifest["complete"], bool)
    except (ValueError, KeyError, TypeError, AttributeError):
        valid = False
    if not valid:
        raise ValueError(f"{file}: not a manifest of this command: delete {folder} and run again")
    return manifest


def _write_manifest(folder: Path, manifest: dict[str, Any]) -> None:
    new = folder / f"{MANIFEST}.new"
    new.write_text(json.dumps(manifest, indent=1))
    new.replace(folder / MANIFEST)


def _is_intact(folder: Path, path: str, entry: dict[str, Any]) -> bool:
    """Return whether a file of the manifest exists; raise ValueError if its content differs."""
    file = folder / path
    if not file.is_file():
        return False
    if file.stat().st_size != entry["bytes"] or sha256(file) != entry["sha256"]:
        raise ValueError(f"{file}: its sha256 differs from {MANIFEST}: delete it and run again")
    return True


def _entry(file: Path, url: str) -> dict[str, Any]:
    return {"url": url, "bytes": file.stat().st_size, "sha256": sha256(file)}


def size(num_bytes: int) -> str:
    """Return a number of bytes in a readable unit."""
    for unit, factor in (("GB", 1e9), ("MB", 1e6), ("kB", 1e3)):
        if num_bytes >= factor:
            return f"{num_bytes / factor:.1f} {unit}"
    return f"{num_bytes} B"


# --- where the files are --------------------------------------------------------------------------


def _remotes(origin: Origin) -> list[Remote]:
    remotes = [Remote(PurePosixPath(urlsplit(url).path).name, url) for url in origin.urls]
    for files in origin.hub:
        remotes += _hub_remotes(files)
    return remotes


def _hub_remotes(files: HubFiles) -> list[Remote]:
    """Return the files of the newest commit, as the hub's API lists them."""
    hub = os.environ.get("HF_ENDPOINT", "https://huggingface.co").rstrip("/")
    url = f"{hub}/api/datasets/{files.repo}?blobs=true"
    with _open(url, {}) as response:
        try:
            content = response.read()
        except (OSError, http.client.HTTPException) as error:
            raise ConnectionError(f"{url}: the connection broke ({error}): run again") from None
        try:
            listing = json.loads(content)
            siblings = listing["siblings"]
            matching = [f for f in siblings if fnmatchcase(f["rfilename"], files.pattern)]
            base = f"{hub}/datasets/{files.repo}/resolve/{listing['sha']}"
            remotes = [
                Remote(
                    f["rfilename"].removeprefix(files.folder),
                    f"{base}/{quote(f['rfilename'])}",
                    (f.get("lfs") or {}).get("sha256"),
                    f.get("size"),
                )
                for f in sorted(matching, key=lambda f: str(f["rfilename"]))
            ]
        except (ValueError, KeyError, TypeError, AttributeError):
            raise ValueError(f"{url}: the response is not a file listing of the hub") from None
    if not remotes:
        raise ValueError(f"{files.repo} on the hub no longer has a file {files.pattern}")
    return remotes


# --- one file -------------------------------------------------------------------------------------


def _fetch(
    remote: Remote, target: Path, files: dict[str, Any], write: Callable[[], None], say: Say
) -> None:
    part = target.with_name(f"{target.name}.part")
    for left in reversed(range(TRIES)):
        if _receive(remote.url, part, remote.name, say):
            break
        if not left:
            raise ValueError(
                f"{remote.url}: the connection broke {TRIES} times, the last time after "
                f"{size(part.stat().st_size if part.exists() else 0)}; run again to resume"
            )
        time.sleep(PAUSE)
    entry = _entry(part, remote.url)
    if remote.sha256 not in (None, entry["sha256"]):
        _discard(part)
        raise ValueError(
            f"{remote.url}: expected sha256 {str(remote.sha256)[:16]}..., got "
            f"{entry['sha256'][:16]}...: the download was discarded, run again"
        )
    files[remote.name] = entry
    write()  # before the rename: a file without an entry would count as the user's own
    part.replace(target)
    _discard(part)


def _receive(url: str, part: Path, name: str, say: Say) -> bool:
    """Receive the bytes that `part` lacks; return False if this has to be tried again."""
    start, version = _resumable(url, part)
    headers = {"Range": f"bytes={start}-"} if start else {}
    if start and version:
        headers["If-Range"] = version
    with _open(url, headers) as response:
        content_range = response.headers.get("Content-Range", "")
        if response.status == 416:  # nothing is left, or the part is longer than the file
            if content_range == f"bytes */{start}":
                return True
            _discard(part)
            return False
        if response.status == 206 and not content_range.startswith(f"bytes {start}-"):
            _discard(part)
            return False
        start = start if response.status == 206 else 0
        length = response.headers.get("Content-Length")
        total = None if length is None else start + int(length)
        readable = "size unknown" if total is None else size(total)
        say(f"  {name}  {readable}" + (f", resuming at {size(start)}" if start else ""))
        if not start:
            part.parent.mkdir(parents=True, exist_ok=True)
            tag = response.headers.get("ETag", "")
            # a weak ETag does not identify the bytes
            _source_of(part).write_text(f"{url}\n{'' if tag.startswith('W/') else tag}")
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
    """Return the size of a file as its server states it, without reading the file."""
    with _open(url, {}) as response:
        length = response.headers.get("Content-Length")
    return None if length is None else int(length)


def _resumable(url: str, part: Path) -> tuple[int, str]:
    """Return how many bytes of this URL `part` holds, and their version."""
    if not part.is_file() or not _source_of(part).is_file():
        return 0, ""
    part_url, _, version = _source_of(part).read_text().partition("\n")
    return (part.stat().st_size, version) if part_url == url else (0, "")


def _source_of(part: Path) -> Path:
    """Return the path of the file that holds a part's URL and version."""
    return part.with_name(f"{part.name}.from")


def _discard(part: Path) -> None:
    part.unlink(missing_ok=True)
    _source_of(part).unlink(missing_ok=True)


def _open(url: str, headers: dict[str, str]) -> Any:
    """Return the response, including one with status 416; raise one-line errors for the others."""
    try:
        return urlopen(Request(url, headers={"User-Agent": "posttrain"} | headers), timeout=TIMEOUT)
    except HTTPError as error:
        if error.code == 416:
            return error
        raise ValueError(f"{url}: the server responded {error.code} {error.reason}") from None
    except (URLError, OSError, http.client.HTTPException) as error:
        reason = getattr(error, "reason", None) or str(error) or type(error).__name__
        raise ConnectionError(
            f"no connection to {urlsplit(url).netloc} ({reason}): run the same command again with "
            f"a network, or copy {url} here by hand and set data.path to its folder"
        ) from None


def _extract(tarred: tarfile.TarFile, folder: Path) -> None:
    """Extract files and folders, and nothing else or elsewhere.

    Raises TarError for any other member. Python before 3.11.4 has no filter that does it."""
    for member in tarred.getmembers():
        parts = PurePosixPath(member.name)
        if not (member.isfile() or member.isdir()) or parts.is_absolute() or ".." in parts.parts:
            raise tarfile.ExtractError(f"{member.name} is no file inside it")
    safe: dict[str, Any] = {"filter": "data"} if hasattr(tarfile, "data_filter") else {}
    tarred.extractall(folder, **safe)


def _unpack(archive: Path, url: str, files: dict[str, Any], write: Callable[[], None]) -> None:
    """Unpack next to the archive, through a separate folder so that a kill leaves no half file."""
    folder, temporary = archive.parent, archive.with_name(f"{archive.name}.unpacking")
    shutil.rmtree(temporary, ignore_errors=True)
    try:
        if archive.suffix == ".zip":
            with zipfile.ZipFile(archive) as zipped:
                zipped.extractall(temporary)
        else:
            with tarfile.open(archive) as tarred:
                _extract(tarred, temporary)
    except (zipfile.BadZipFile, tarfile.TarError, EOFError, zlib.error) as error:
        raise ValueError(f"{archive} cannot be unpacked ({error}): delete it") from None
    paths = sorted(
        file.relative_to(temporary).as_posix() for file in temporary.rglob("*") if file.is_file()
    )
    for path in paths:
        if (folder / path).exists() and path not in files:
            raise ValueError(f"{folder / path} was not written by this command: move it away")
        files[path] = _entry(temporary / path, f"{url}, unpacked")
    write()
    for path in paths:
        (folder / path).parent.mkdir(parents=True, exist_ok=True)
        (temporary / path).replace(folder / path)
    shutil.rmtree(temporary)
