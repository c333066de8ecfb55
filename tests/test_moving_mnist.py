"""Stochastic Moving MNIST: the published stream to the bit, and the statistics and manners of ours."""

import gzip
import json
import shutil
import socket
import struct
import threading
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file
from torch import Tensor

from mcvd.cache import cache_dir
from mcvd.data import moving_mnist
from mcvd.data.fetch import MNIST_MD5, fetch_mnist
from mcvd.data.moving_mnist import (
    MovingMNIST,
    check_frames,
    find_mnist,
    load_digits,
    move,
    reference_sequence,
    render,
)
from mcvd.errors import McvdError

SMALL = {"a-images.gz": b"pictures" * 1000, "a-labels.gz": b"names"}


@pytest.fixture(scope="module")
def blobs() -> Tensor:
    """Stand-ins for digits: (40, 32, 32) uint8, smooth, bright inside, dark at the edge."""
    noise = torch.rand(40, 1, 8, 8, generator=torch.Generator().manual_seed(0))
    smooth = torch.nn.functional.interpolate(noise, 32, mode="bilinear")[:, 0]
    inside = torch.hann_window(32, periodic=False)
    return (smooth * inside[:, None] * inside * 400).clamp(0, 255).to(torch.uint8)


def idx_file(path: Path, images: np.ndarray) -> None:
    path.write_bytes(gzip.compress(struct.pack(">4I", 2051, *images.shape) + images.tobytes(), 1))


# ------------------------------------------------------------------------------------------ the published stream


def oracle_cases(folder: Path) -> tuple[dict[str, Tensor], list[dict]]:
    cases = json.loads((folder / "smmnist/smmnist.json").read_text())
    return load_file(folder / "smmnist/smmnist.safetensors"), [case for case in cases if "k" in case]


@pytest.mark.oracle
def test_reference_sequence_is_the_published_stream(oracle_dir: Path) -> None:
    vectors, cases = oracle_cases(oracle_dir)
    assert {case["deterministic"] for case in cases} == {False, True}
    digits = (vectors["digits32"][:, 0] * 255).round().to(torch.uint8)
    for case in cases:
        rng = np.random.RandomState(case["first_index_(=np seed)"])
        subset = digits if case["total_videos"] < 0 else digits[: case["total_videos"]]
        for j in range(1 + len(case["then_index"])):
            video = reference_sequence(
                subset,
                rng,
                case["seq_len"],
                num_digits=case["num_digits"],
                deterministic=case["deterministic"],
            )
            assert torch.equal(video, vectors[f"{case['k']}.{j}.video_u8"]), (case["k"], j)


@pytest.mark.oracle
def test_resize_gives_the_published_digits(oracle_dir: Path, tmp_path: Path) -> None:
    vectors, _ = oracle_cases(oracle_dir)
    idx_file(tmp_path / "t10k-images-idx3-ubyte.gz", vectors["digits28_u8"].numpy())
    assert torch.equal(load_digits(tmp_path, "test").float() / 255, vectors["digits32"][:, 0])
    assert torch.equal(load_digits(tmp_path, "test", limit=7), load_digits(tmp_path, "test")[:7])
    assert torch.equal(load_digits(tmp_path, "test", resize=28), vectors["digits28_u8"])


def test_real_mnist(assets_dir: Path) -> None:
    digits = load_digits(find_mnist(assets_dir / "mnist"), "test", limit=256)
    assert digits.shape == (256, 32, 32)
    assert digits.dtype == torch.uint8
    assert 20 < digits.float().mean() < 45  # MNIST's mean ink is 33 of 255
    for name, md5 in MNIST_MD5.items():
        assert (assets_dir / "mnist" / name).is_file(), (name, md5)


# ------------------------------------------------------------------------------------------------------ our stream


def test_an_item_is_a_function_of_seed_and_index(blobs: Tensor) -> None:
    data = MovingMNIST(blobs, 12, seed=5)
    video = data.batch(range(20))
    assert video.shape == (20, 12, 1, 64, 64)
    assert video.dtype == torch.uint8
    order = torch.tensor([13, 2, 2, 19])
    assert torch.equal(data.batch(order), video[order])
    assert torch.equal(data[7], video[7])
    assert torch.equal(
        MovingMNIST(blobs, 30, seed=5).batch([4])[:, :12], video[[4]]
    )  # longer clips go on from the same start
    for other in (MovingMNIST(blobs, 12, seed=6).batch(range(20)), data.batch(range(100, 120))):
        assert not (video == other).flatten(1).all(1).any()
    with pytest.raises(IndexError):
        data[len(data)]


def test_ranges_have_the_items_of_lists_in_whatever_order_they_are_asked_for(blobs: Tensor, monkeypatch) -> None:
    monkeypatch.setattr(moving_mnist, "AHEAD", 200)  # frames: 50 items
    data, single = MovingMNIST(blobs, 4, seed=5), MovingMNIST(blobs, 4, seed=5)
    for asked in (
        range(20),
        range(20, 40),
        range(40, 60),
        range(70, 140),
        range(5, 9),
        range(0),
        range(9, 4),
        range(3, 30, 9),
    ):
        assert torch.equal(data.batch(asked), single.batch(list(asked)))


def test_of_long_clips_few_are_made_ahead(blobs: Tensor) -> None:
    data = MovingMNIST(blobs, 500)
    data.batch(range(2))
    _, which, path = data.window
    assert path.shape[:3] == (moving_mnist.AHEAD // 500, 2, 500)
    data.batch(range(1000, 1000 + 3 * len(which)))  # more than that at once: all that were asked for
    assert len(data.window[1]) == 3 * len(which)


def test_what_interrupts_a_range_leaves_the_items_of_others_as_they_are(blobs: Tensor, monkeypatch) -> None:
    data, single = MovingMNIST(blobs, 4, seed=5), MovingMNIST(blobs, 4, seed=5)

    def interrupted(*_: object) -> None:
        """Ctrl-C, or another thread's turn to ask."""
        raise KeyboardInterrupt

    data.batch(range(20))
    with monkeypatch.context() as patch:
        patch.setattr(moving_mnist, "move", interrupted)
        with pytest.raises(KeyboardInterrupt):
            data.batch(range(90_000, 90_020))
    assert torch.equal(data.batch(range(90_000, 90_020)), single.batch(list(range(90_000, 90_020))))


def test_pinned_values_keep_old_runs_reproducible(blobs: Tensor) -> None:
    """A change of these numbers changes every training run: it needs a line in the change log."""
    which, path = MovingMNIST(blobs, 40, seed=1).paths([0, 123_456_789])
    assert which.tolist() == PINNED_WHICH
    assert path[:, :, -1].tolist() == PINNED_LAST


PINNED_WHICH = [[32, 29], [17, 32]]
PINNED_LAST = [[[8, 0], [22, 26]], [[23, 14], [21, 12]]]


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device here")
def test_same_clips_on_the_gpu(blobs: Tensor) -> None:
    assert torch.equal(
        MovingMNIST(blobs, 15, device="cuda").batch(range(9)).cpu(), MovingMNIST(blobs, 15).batch(range(9))
    )


def test_paths_obey_the_law(blobs: Tensor) -> None:
    _, path = MovingMNIST(blobs, 40, seed=3).paths(torch.arange(2000))
    assert path.min() == 0
    assert path.max() == 31
    step = path.diff(dim=2)
    assert step.abs().max() == 4
    free = ((path[:, :, 1:] > 0) & (path[:, :, 1:] < 31)).all(-1)  # no wall was met on the way here: velocity kept
    kept = (step[:, :, 1:] == step[:, :, :-1]).all(-1)
    assert kept[free[:, :, 1:] & free[:, :, :-1]].all()


def test_draws_are_uniform_and_independent(blobs: Tensor) -> None:
    which, path = MovingMNIST(blobs, 2, seed=9).paths(torch.arange(20_000))
    inner = ((path[:, :, 0] >= 4) & (path[:, :, 0] < 28)).all(-1)
    velocity = path.diff(dim=2)[:, :, 0][inner]

    def chi2(values: Tensor, n: int) -> float:
        """Chi-square over its degrees of freedom; 1 +- 0.35 is 5 sigma at n = 32 or so."""
        counts = torch.bincount(values.flatten(), minlength=n).double()
        assert len(counts) == n
        expected = counts.sum() / n
        return float(((counts - expected) ** 2 / expected).sum() / (n - 1))

    for values, n in (
        (which, 40),
        (path[:, :, 0, 0], 32),
        (path[:, :, 0, 1], 32),
        (velocity[:, 0] + 4, 9),
        (velocity[:, 1] + 4, 9),
    ):
        assert chi2(values, n) < 2.2
    both = torch.stack(
        [path[:, 0, 0, 0], path[:, 0, 0, 1], path[:, 1, 0, 0], path[:, 1, 0, 1], which[:, 0], which[:, 1]]
    )
    assert (torch.corrcoef(both.double()) - torch.eye(6)).abs().max() < 0.04
    assert chi2(path[:, 0, 0, 0] * 32 + path[:, 0, 0, 1], 1024) < 1.25


def test_clips_of_one_digit_are_those_of_two_without_the_second(blobs: Tensor) -> None:
    one, two, either = (MovingMNIST(blobs, 6, num_digits=n, seed=4) for n in (1, 2, (1, 2)))
    items = torch.arange(4000)
    which, path = either.paths(items)
    assert torch.equal(path, two.paths(items)[1])
    alone = which[:, 1] < 0
    assert 0.46 < alone.double().mean() < 0.54  # 5 sigma
    assert torch.equal(which[:, 0], two.paths(items)[0][:, 0])
    video = either.batch(items[:50])
    same_one, same_two = ((video == data.batch(items[:50])).flatten(1).all(1) for data in (one, two))
    assert torch.equal(same_one, alone[:50])
    assert torch.equal(same_two, ~alone[:50])


def test_speed_after_a_bounce(blobs: Tensor) -> None:
    """Leaving a wall: 1..4 along, -4..4 across, uniformly; never along the wall it has just hit."""
    start = torch.tensor([[-2, 16]]).expand(9000, 2)
    speeds = torch.arange(9000)

    def redraw(frame: int, axis: int, low: Tensor, high: Tensor) -> tuple[Tensor, Tensor]:
        return 1 + speeds % 4, speeds % 9 - 4

    path = move(start, torch.zeros_like(start), 2, redraw)
    assert (path[:, 0] == torch.tensor([0, 16])).all()
    assert torch.equal(path[:, 1, 0], 1 + speeds % 4)
    assert torch.equal(path[:, 1, 1], 16 + speeds % 9 - 4)
    assert torch.equal(move(31 - start, torch.zeros_like(start), 2, redraw)[:, 1, 0], 31 - (1 + speeds % 4))


def test_rendering_adds_and_saturates(blobs: Tensor) -> None:
    digits = blobs[:6].view(2, 3, 32, 32)
    path = torch.randint(0, 32, (2, 3, 4, 2), generator=torch.Generator().manual_seed(1))
    expected = torch.zeros(2, 4, 64, 64, dtype=torch.int64)
    for b, d, t in np.ndindex(2, 3, 4):
        y, x = path[b, d, t].tolist()
        expected[b, t, y : y + 32, x : x + 32] += digits[b, d]
    assert expected.max() > 255
    assert torch.equal(render(digits, path), expected.clamp(max=255).to(torch.uint8))


def test_small_clips_are_the_averaged_large_ones(blobs: Tensor) -> None:
    large = MovingMNIST(blobs, 5).batch([0, 1])
    small = MovingMNIST(blobs, 5, size=32).batch([0, 1])
    assert small.shape == (2, 5, 1, 32, 32)
    mean = torch.nn.functional.avg_pool2d(large.flatten(0, 1).float(), 2).view_as(small)
    assert torch.equal(small, (mean + 0.5).floor().to(torch.uint8))


# -------------------------------------------------------------------------------------------------------- errors


def test_bad_arguments_are_named(blobs: Tensor) -> None:
    with pytest.raises(McvdError, match="load_digits"):
        MovingMNIST(blobs.float(), 5)
    with pytest.raises(McvdError, match="64 or 32"):
        MovingMNIST(blobs, 5, size=48)
    for bad in ({"frames": 0}, {"num_digits": 0}, {"num_digits": ()}, {"num_digits": (2, 0)}):
        with pytest.raises(McvdError, match="at least 1"):
            MovingMNIST(blobs, **{"frames": 5} | bad)
    with pytest.raises(McvdError, match="'valid'"):
        load_digits(".", "valid")  # type: ignore[arg-type]


def test_missing_and_damaged_mnist(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MCVD_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("MCVD_DATA", str(tmp_path / "data"))
    with pytest.raises(McvdError, match="mcvd fetch mnist"):
        find_mnist()
    with pytest.raises(McvdError, match="mcvd fetch mnist"):
        load_digits(tmp_path)
    folder = tmp_path / "data/mnist"
    folder.mkdir(parents=True)
    train = folder / "train-images-idx3-ubyte.gz"
    idx_file(train, np.zeros((3, 28, 28), np.uint8))
    assert find_mnist() == folder
    assert load_digits(folder).shape == (3, 32, 32)
    whole = train.read_bytes()
    for damaged in (
        whole[:-10],
        b"not gzip",
        gzip.compress(b"\0" * 20),
        gzip.compress(gzip.decompress(whole)[:-5]),
        b"",
    ):
        train.write_bytes(damaged)
        with pytest.raises(McvdError, match="damaged"):
            load_digits(folder)
    train.with_suffix("").write_bytes(gzip.decompress(whole))
    train.unlink()
    assert load_digits(folder).shape == (3, 32, 32)


def test_each_digit_is_resized_as_if_alone(tmp_path: Path) -> None:
    images = np.random.default_rng(0).integers(0, 256, (5, 28, 28), dtype=np.uint8)
    idx_file(tmp_path / "train-images-idx3-ubyte.gz", images)
    alone = [np.asarray(Image.fromarray(image).resize((32, 32), Image.Resampling.BILINEAR)) for image in images]
    assert np.array_equal(load_digits(tmp_path).numpy(), np.stack(alone))


# -------------------------------------------------------------------------------------------------------- fetch


@pytest.fixture
def small_set(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Two small files stand for MNIST's four, in a folder that serves as the source."""
    import hashlib

    monkeypatch.setattr("mcvd.data.fetch.MNIST_MD5", {n: hashlib.md5(c).hexdigest() for n, c in SMALL.items()})
    source = tmp_path / "source"
    source.mkdir()
    for name, content in SMALL.items():
        (source / name).write_bytes(content)
    return source


def test_fetch_from_folder_and_url(small_set: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[tuple[str, int, int | None]] = []
    monkeypatch.setenv("MCVD_CACHE", str(tmp_path / "cache"))
    folder = fetch_mnist(source=small_set, progress=lambda *step: seen.append(step))
    assert folder == cache_dir() / "mnist"
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == SMALL
    assert seen[0] == ("a-images.gz", 8000, 8000)
    shutil.rmtree(small_set)
    assert fetch_mnist(source=small_set) == folder  # whole files are not fetched again
    (folder / "a-labels.gz").write_bytes(b"cut")
    with pytest.raises(McvdError, match="cannot get a-labels"):
        fetch_mnist(source=small_set)
    assert sorted(path.name for path in folder.iterdir()) == sorted(SMALL)  # no temporary left


def test_fetch_tries_the_next_mirror(small_set: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    bad = tmp_path / "bad"
    shutil.copytree(small_set, bad)
    (bad / "a-images.gz").write_bytes(b"an error page")
    monkeypatch.setattr("mcvd.data.fetch.MNIST_MIRRORS", (bad.as_uri() + "/", small_set.as_uri() + "/"))
    folder = fetch_mnist(tmp_path / "out")
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == SMALL
    with pytest.raises(McvdError, match="checksum"):
        fetch_mnist(tmp_path / "none", source=bad)
    assert list((tmp_path / "none").iterdir()) == []


def test_what_is_no_address_or_no_web_server_is_one_line(small_set: Path, tmp_path: Path) -> None:
    server = socket.create_server(("127.0.0.1", 0))

    def answer() -> None:
        connection, _ = server.accept()
        with connection:
            connection.recv(1000)
            connection.sendall(b"SSH-2.0\r\n\r\n")

    threading.Thread(target=answer, daemon=True).start()
    with server:
        for source in ("http://no such place/", "http://[::1/", f"http://127.0.0.1:{server.getsockname()[1]}/"):
            with pytest.raises(McvdError, match=r"cannot get a-images\.gz .*by hand"):
                fetch_mnist(tmp_path / "out", source)


def test_fetch_real_mnist(assets_dir: Path, tmp_path: Path) -> None:
    folder = fetch_mnist(tmp_path, source=assets_dir / "mnist")
    assert sorted(path.name for path in folder.iterdir()) == sorted(MNIST_MD5)


def test_cache_dir_follows_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", "/somewhere")
    monkeypatch.delenv("MCVD_CACHE", raising=False)
    assert cache_dir() == Path("/somewhere/mcvd")
    monkeypatch.setenv("MCVD_CACHE", "/else")
    assert cache_dir() == Path("/else")


def test_a_user_without_a_home_folder_is_told_how_to_have_a_cache(monkeypatch: pytest.MonkeyPatch) -> None:
    def homeless() -> Path:
        raise RuntimeError("Could not determine home directory.")

    for name in ("MCVD_CACHE", "XDG_CACHE_HOME"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(Path, "home", homeless)
    with pytest.raises(McvdError, match="set MCVD_CACHE"):
        cache_dir()


@pytest.mark.parametrize(
    ("size", "channels", "asked"),
    [((64, 64), 3, "64x64, RGB"), ((32, 64), 1, "64x32, grey"), ((28, 28), 1, "28x28, grey")],
)
def test_other_frames_are_named_with_their_channels(size, channels, asked):
    with pytest.raises(McvdError, match=rf"32x32 and grey; the recipe asks for {asked}$"):
        check_frames(size, channels, "the recipe")
