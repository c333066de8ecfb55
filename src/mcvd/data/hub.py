"""Copies of data sets that others keep on the Hugging Face hub: downloaded, unpacked, ready for `prepare`."""

from __future__ import annotations

import lzma
import shutil
import tarfile
import zipfile
import zlib
from pathlib import Path

from mcvd.cache import cache_dir
from mcvd.errors import McvdError
from mcvd.files import expanded
from mcvd.text import first_line

MIRRORS = {"bair": "guyuchao/BAIR", "ucf101": "guyuchao/UCF101"}
"""Name -> data set on the hub. These are other people's copies: mcvd vouches for nothing in them."""
_DAMAGE = (OSError, EOFError, zipfile.BadZipFile, RuntimeError, tarfile.TarError, zlib.error, lzma.LZMAError)
ARCHIVES = (".zip", ".tar", ".tar.gz", ".tgz", ".tar.xz", ".tar.bz2")


def fetch_mirror(name: str, destination: Path | str | None = None) -> Path:
    """Downloads a data set of `MIRRORS` and unpacks its archives next to them; returns the folder.

    destination: default ``cache_dir()/raw/NAME``. An interrupted download continues where it stopped; complete files
    are not downloaded again. Raises McvdError for an unknown name, or if the hub cannot be reached.
    """
    if name not in MIRRORS:
        raise McvdError(f"no mirror of {name} is known; known ones: {', '.join(MIRRORS)}")
    folder = expanded(destination) if destination is not None else cache_dir() / "raw" / name
    import huggingface_hub

    try:
        huggingface_hub.snapshot_download(MIRRORS[name], repo_type="dataset", local_dir=folder)
    except Exception as error:  # its errors come from several libraries
        reason = first_line(error)
        raise McvdError(f"cannot get {MIRRORS[name]} from the hub ({reason}); run it again to continue") from error
    for archive in sorted(folder.rglob("*")):
        if archive.name.lower().endswith(ARCHIVES) and ".cache" not in archive.parts and archive.is_file():
            unpack(archive)
    return folder


def unpack(archive: Path) -> Path:
    """Unpacks a zip or tar file, once and atomically, into a folder beside it that has its name without the suffix.

    Raises McvdError for a damaged archive, or one with paths that lead out of the folder.
    """
    stem = archive.name[: -len(next(end for end in ARCHIVES[::-1] if archive.name.lower().endswith(end)))]
    folder, partial = archive.with_name(stem), archive.with_name(f".{stem}.part")
    if folder.exists():
        return folder
    shutil.rmtree(partial, ignore_errors=True)
    try:
        if archive.name.lower().endswith(".zip"):
            with zipfile.ZipFile(archive) as opened:  # zipfile itself drops roots and ".." from names
                opened.extractall(partial)
        else:
            with tarfile.open(archive) as tar:
                _extract(tar, partial)
                while tar.fileobj and tar.fileobj.read(1 << 20):
                    pass  # to the end, where the checksum of all is; tarfile stops before it
        partial.rename(folder)
    except _DAMAGE as error:
        shutil.rmtree(partial, ignore_errors=True)
        raise McvdError(f"cannot unpack {archive} ({error}); delete it and fetch again") from error
    return folder


def _extract(tar: tarfile.TarFile, folder: Path) -> None:
    """Extracts plain files and folders, all of them inside `folder`: what filter="data" does from Python 3.11.4 on."""
    if hasattr(tarfile, "data_filter"):
        tar.extractall(folder, filter="data")
        return
    members = [member for member in tar if member.isfile() or member.isdir()]
    for member in members:
        if member.name.startswith("/") or ".." in Path(member.name).parts:
            raise tarfile.ExtractError(f"{member.name} leads out of the folder")
    tar.extractall(folder, members)
