"""From raw files, in the formats they are downloaded in, to a prepared data set; interrupted or not."""

from __future__ import annotations

import contextlib
import errno
import hashlib
import io
import json
import os
import re
import shutil
import signal
import struct
import subprocess
import sys
import tarfile
import threading
import time
import warnings
import zipfile
from collections.abc import Iterable
from dataclasses import asdict, replace
from fractions import Fraction
from pathlib import Path, PurePosixPath
from typing import IO

import av
import numpy as np
import pytest
import torch
from PIL import Image

from mcvd.cli.main import main
from mcvd.cli.work import targets
from mcvd.config import override, to_dict
from mcvd.data import hub
from mcvd.data.frames import SourceFrame
from mcvd.data.prepare import PRESETS, Settings, bair, decode, info, items, parts, prepare, prepared_data, run, tar
from mcvd.data.prepare.bair import masked_crc32c, record_positions
from mcvd.data.prepare.items import find_items
from mcvd.data.prepare.workers import make_parts
from mcvd.data.settings import settings_for
from mcvd.data.shards import MANIFEST, Entry, Shards, read_manifest, shard_path
from mcvd.data.video import contact_sheet, read_video, write_video
from mcvd.errors import McvdError
from mcvd.evaluation.video_sets import find_videos
from mcvd.layout import BlockLayout
from mcvd.model import ModelConfig
from mcvd.networks.config import UNetConfig
from mcvd.training.recipe import DataConfig, Recipe, read_recipe, recipe_names
from mcvd.training.source import clip_source

SMALL = Settings(size=(16, 16), channels=3)


def clip(frames: int, height: int = 16, width: int = 16, seed: int = 0, channels: int = 3) -> torch.Tensor:
    """Smooth moving colours."""
    draw = torch.Generator().manual_seed(seed)
    phase = torch.rand(channels, generator=draw)[:, None, None] * 6
    y, x = torch.linspace(0, 3, height)[:, None], torch.linspace(0, 4, width)
    frames_ = [(torch.sin(x + y + phase + 0.3 * t) * 110 + 128).to(torch.uint8) for t in range(frames)]
    return torch.stack(frames_)


def stored(folder: Path) -> dict[str, np.ndarray]:
    """Frames by name."""
    return {
        e.source: np.load(shard_path(folder, e.shard), mmap_mode="r")[e.offset : e.offset + e.frames]
        for e in read_manifest(folder).videos
    }


def contents(folder: Path) -> dict[str, str]:
    return {
        path.relative_to(folder).as_posix(): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }


@pytest.fixture
def mixed(tmp_path: Path) -> Path:
    """A folder of videos of all kinds and sizes, some of no use."""
    folder = tmp_path / "videos"
    for i, name in enumerate(("a.mp4", "sub/b.gif", "c.npz", "sub/deep/d", "e.mkv", "f.webm", "v10.avi", "v9.avi")):
        write_video(folder / name, clip(8 + i, 16 + 2 * i, 24, seed=i), scale=1)
    np.savez(folder / "many.npz", x=clip(6).numpy(), y=clip(7, channels=1)[:, 0].numpy(), bad=np.zeros((4, 4)))
    np.save(folder / "plain.npy", clip(9).permute(0, 2, 3, 1).numpy() / 255)
    write_video(folder / "short.npz", clip(1))
    (folder / "broken.mp4").write_bytes(b"not a video" * 50)
    (folder / "broken.npz").write_bytes(b"not a zip" * 50)
    (folder / "cut.avi").write_bytes((folder / "v10.avi").read_bytes()[:1500])
    (folder / "notes.txt").write_text("no video")
    (folder / ".hidden").mkdir()
    write_video(folder / ".hidden" / "h.npz", clip(9))
    return folder


# --- any folder -------------------------------------------------------------------------------------------------------


def test_everything_of_use_is_stored_and_the_rest_is_named(mixed: Path, tmp_path: Path) -> None:
    seen: list[tuple[int, int]] = []
    manifest = prepare(mixed, tmp_path / "data", SMALL, workers=1, progress=lambda *at: seen.append(at))
    assert [entry.source for entry in manifest.videos] == [
        "a.mp4", "c.npz", "e.mkv", "f.webm", "many.npz#x", "many.npz#y", "plain.npy", "sub/b.gif", "sub/deep/d",
        "v9.avi", "v10.avi",
    ]  # fmt: skip
    reasons = {entry.source: entry.skipped for entry in manifest.skipped}
    assert sorted(reasons) == ["broken.mp4", "broken.npz", "cut.avi", "many.npz#bad", "short.npz"]
    assert "short.npz has 1 frame(s); at least 2" in reasons["short.npz"]
    assert "many.npz#bad holds an array (4, 4)" in reasons["many.npz#bad"]
    assert manifest.ignored == {".txt": 1}
    assert seen == [(i, 16) for i in range(17)]
    frames = stored(tmp_path / "data")
    for name in ("c.npz", "e.mkv", "sub/b.gif", "sub/deep/d", "a.mp4"):
        expected = read_video(mixed / name, size=16, channels=3)
        assert np.array_equal(frames[name], expected.permute(0, 2, 3, 1)), name
    assert np.array_equal(frames["plain.npy"], clip(9).permute(0, 2, 3, 1))
    assert frames["many.npz#y"].shape == (7, 16, 16, 3)
    entry = next(entry for entry in manifest.videos if entry.source == "e.mkv")
    assert (entry.source_size, entry.fps, entry.sha256) == ((24, 24), 10.0, hashlib.sha256(
        hashlib.sha256((mixed / "e.mkv").read_bytes()).hexdigest().encode()).hexdigest())  # fmt: skip
    assert any("broken.mp4" in line for line in info(tmp_path / "data").lines())
    seen.clear()
    (mixed / "a.mp4").write_bytes((mixed / "e.mkv").read_bytes())
    prepare(mixed, tmp_path / "data", SMALL, workers=1, progress=lambda *at: seen.append(at))
    assert seen[-1][0] == seen[-1][1] < 16  # what is left to do, or the time left would count what took none


def test_a_video_that_may_be_cut_short_is_used_and_named(tmp_path: Path) -> None:
    path = write_video(tmp_path / "videos" / "a.mkv", clip(60, 16, 16), fps=10, scale=1)
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    prepare(tmp_path / "videos", tmp_path / "data", SMALL, workers=1)
    assert [line for line in info(tmp_path / "data").lines() if line.startswith("note: ") and "cut short" in line]


def test_training_names_a_video_that_may_be_cut_short(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MCVD_CACHE", str(tmp_path / "cache"))
    path = write_video(tmp_path / "videos" / "a.mkv", clip(60, 16, 16), fps=10, scale=1)
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    lines: list[str] = []
    folder = prepared_data(tmp_path / "videos", SMALL, lines.append)
    assert lines[-1].endswith(f"; 1 used with a warning (a.mkv); the reasons: mcvd data info {folder}")


def test_a_split_that_cannot_be_is_refused_before_anything_is_decoded(tmp_path: Path) -> None:
    for wrong, said in (({"split_by": "("}, "not a regular expression"), ({"test_share": 1.5}, "less than 1 together")):
        with pytest.raises(McvdError, match=said):
            Settings(**wrong)  # type: ignore[arg-type]
    for name in ("person1.mkv", "b.mkv"):
        write_video(tmp_path / "videos" / name, clip(6))
    with pytest.raises(McvdError, match="finds nothing in b.mkv"):
        prepare(tmp_path / "videos", tmp_path / "data", replace(SMALL, split_by=r"person(\d)"), workers=1)
    assert [path.name for path in (tmp_path / "data").iterdir()] == [".lock"]


@pytest.mark.parametrize("wrong", [{"fit": "pad"}, {"resample": "cubic"}, {"layout": "KTH"}, {"size": 64}])
def test_settings_that_there_are_not_are_refused(wrong: dict) -> None:
    with pytest.raises(McvdError, match=f"{next(iter(wrong))} is {next(iter(wrong.values()))!r}; it is "):
        Settings(**wrong)


def test_numbers_of_settings_may_be_numpys(tmp_path: Path) -> None:
    write_video(tmp_path / "videos" / "a.npz", clip(4))
    whole, real = np.int64(16), np.float32(0.5)
    settings = Settings((whole, whole), channels=np.int32(3), fps=real, min_frames=np.uint8(2), test_share=real)
    manifest = prepare(tmp_path / "videos", tmp_path / "data", settings, workers=1)
    assert prepare(tmp_path / "videos", tmp_path / "data", settings, workers=1) == manifest
    assert manifest.settings == to_dict(Settings((16, 16), fps=Fraction(1, 2), test_share=0.5))  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("wrong", "says"),
    [
        ({"size": (64.5, 64)}, "size is 64.5; it must be a whole number"),
        ({"size": (64, 0)}, "size is 0; it must be at least 1"),
        ({"channels": 2}, r"channels is 2; it must be 1 \(grey\) or 3 \(RGB\)"),
        ({"fps": 0}, "fps is 0; it must be above 0 and at most 1000"),
        ({"fps": 1001}, "fps is 1001; it must be above 0"),
        ({"fps": "10"}, "fps is '10'; it must be above 0 and at most 1000"),
        ({"min_frames": 0}, "min_frames is 0; it must be at least 1"),
        ({"min_frames": 2.5}, "min_frames is 2.5; it must be a whole number"),
        ({"test_share": 0.5, "val_share": 0.5}, "shares must be >= 0 and less than 1 together"),
        ({"test_share": -0.1}, "shares must be >= 0"),
        ({"test_share": "0.1"}, "test_share is '0.1'; it must be a finite number"),
    ],
)
def test_numbers_of_settings_that_cannot_be_are_refused(wrong: dict, says: str) -> None:
    with pytest.raises(McvdError, match=says):
        Settings(**wrong)


def test_raw_shards_beside_other_videos_are_counted(tmp_path: Path) -> None:
    h5py = pytest.importorskip("h5py")
    write_video(tmp_path / "a.npz", clip(5))
    with h5py.File(tmp_path / "shard_0001.hdf5", "w") as shard:
        shard["len/0"], shard["person/0"] = 7, 21
    found = info(tmp_path)
    assert not found.skipped
    assert found.splits["test"].frames == 7
    assert sum(split.videos for split in found.splits.values()) == 2


def test_arrays_that_preparing_leaves_out_are_no_videos_of_raw_data_either(tmp_path: Path) -> None:
    np.savez(tmp_path / "raw.npz", good=clip(5).numpy(), several=np.zeros((7, 4, 8, 8, 3), np.uint8),
             single=clip(1).numpy())  # fmt: skip
    prepare(tmp_path / "raw.npz", tmp_path / "data", SMALL, workers=1)
    for path in (tmp_path / "raw.npz", tmp_path / "data"):
        found = info(path)
        assert [name for name, _ in found.skipped] == ["raw.npz#several", "raw.npz#single"]
        assert sum(side.frames for side in found.splits.values()) == 5


def test_a_worker_process_or_this_one_make_the_same(mixed: Path, tmp_path: Path) -> None:
    for workers in (1, 2):
        prepare(mixed, tmp_path / f"data{workers}", SMALL, workers=workers, shard_bytes=20 * 768)
    assert contents(tmp_path / "data1") == contents(tmp_path / "data2")
    assert len(list((tmp_path / "data1" / "shards").iterdir())) > 3


def test_copies_are_on_one_side_or_told(tmp_path: Path) -> None:
    """What training has seen is no test."""
    for i in range(12):
        for name in (f"free/{i}.npz", f"free/{i} (1).npz", f"sorted/{'train' if i < 8 else 'test'}/{i}.npz"):
            write_video(tmp_path / name, clip(4, seed=i))
        write_video(tmp_path / "free" / f"{i} in another format.mkv", clip(4, seed=i))
    arrays = {f"{i}{again}": clip(4, seed=i).numpy() for i in range(12) for again in ("", " again")}
    np.savez(tmp_path / "free" / "many.npz", **arrays)
    write_video(tmp_path / "sorted" / "test" / "again.npz", clip(4, seed=3))
    write_video(tmp_path / "sorted" / "val" / "too.npz", clip(4, seed=5))
    with warnings.catch_warnings(action="error"):
        manifest = prepare(tmp_path / "free", tmp_path / "data", SMALL, workers=1)
    sides: dict[str, set[str]] = {}
    for entry in manifest.videos:
        sides.setdefault(entry.content, set()).add(entry.split)
    assert len(manifest.videos) == 12 * 5
    assert sorted(map(len, sides.values())) == [1] * 12
    assert set.union(*sides.values()) == {"train", "test"}
    said = r"^2 of .* are copies .* \(test/again.npz of train/3.npz, val/too.npz of train/5.npz\): "
    with pytest.warns(UserWarning, match=said):
        manifest = prepare(tmp_path / "sorted", tmp_path / "sorted_data", SMALL, workers=1)
    assert {e.source: e.split for e in manifest.videos}["test/again.npz"] == "test"
    with pytest.warns(UserWarning, match=said):  # as often as it is used
        prepare(tmp_path / "sorted", tmp_path / "sorted_data", SMALL, workers=1)


def test_a_copy_is_found_where_an_earlier_version_took_no_hash_of_frames(tmp_path: Path) -> None:
    settings = replace(SMALL, test_share=0.4)
    for i in range(10):
        write_video(tmp_path / "raw" / f"{i}.npz", clip(4, seed=i))
    prepare(tmp_path / "raw", tmp_path / "data", settings, workers=1, shard_bytes=20 * 768)
    made = read_manifest(tmp_path / "data").videos
    path = tmp_path / "data" / MANIFEST
    path.write_text(re.sub(r' "content": "\w+",', "", path.read_text()))
    assert not any(entry.content for entry in read_manifest(tmp_path / "data").videos)
    for i in range(10):
        shutil.copy(tmp_path / "raw" / f"{i}.npz", tmp_path / "raw" / f"copy of {i}.npz")
    videos = prepare(tmp_path / "raw", tmp_path / "data", settings, workers=1, shard_bytes=20 * 768).videos
    assert len(videos) == 20
    assert {entry.source: entry.content for entry in made}.items() <= {e.source: e.content for e in videos}.items()
    assert len({(entry.content, entry.split) for entry in videos}) == 10


@pytest.mark.parametrize("kind", ["mp4", "npy", "png"])
def test_what_the_system_refuses_is_tried_again(kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Permissions and networks are mended without a trace in the file: its size and time stay the same."""
    write_video(tmp_path / "raw" / "good.npz", clip(4))
    wanted = tmp_path / "raw" / ("frames" if kind == "png" else f"a.{kind}")
    if kind == "npy":
        np.save(wanted, clip(4).permute(0, 2, 3, 1).numpy())
    else:
        write_video(wanted, clip(4), scale=1)
    name, wanted = wanted.name, next(wanted.iterdir()) if kind == "png" else wanted
    real_open = io.open

    def refused(file, *rest, **options):
        if str(file) == str(wanted):
            raise PermissionError(errno.EACCES, "Permission denied", str(file))
        return real_open(file, *rest, **options)

    with monkeypatch.context() as patched:
        patched.setattr(io, "open", refused)
        patched.setattr("builtins.open", refused)
        manifest = prepare(tmp_path / "raw", tmp_path / "data", SMALL, workers=1)
    assert [entry.source for entry in manifest.skipped] == [name]
    assert "Permission denied" in manifest.skipped[0].skipped
    assert "damaged, or not a numpy file" not in manifest.skipped[0].skipped
    assert len(prepare(tmp_path / "raw", tmp_path / "data", SMALL, workers=1).videos) == 2


def test_a_full_temporary_folder_blames_no_video(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name, frames in (("x", 6), ("y", 7)):
        write_video(tmp_path / "raw" / f"{name}.mkv", clip(frames))
    raw = packed(tmp_path / "many.tar", tmp_path / "raw")

    class Full(io.FileIO):
        def write(self, data):
            raise OSError(errno.ENOSPC, "No space left on device")

    real_open = Path.open

    def opened(path, mode="r", buffering=-1, **options):
        return Full(path, "w") if buffering == 0 and "w" in mode else real_open(path, mode, buffering, **options)

    with monkeypatch.context() as patched:
        patched.setattr(Path, "open", opened)
        with pytest.raises(McvdError, match=r"cannot write .*No space left on device\); TMPDIR names another"):
            prepare(raw, tmp_path / "data", SMALL, workers=1)
    assert len(prepare(raw, tmp_path / "data", SMALL, workers=1).videos) == 2


@pytest.mark.parametrize("in_tar", [False, True])
def test_an_npz_of_many_arrays_is_opened_once_for_all(
    in_tar: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Opening it reads the names of all; that it is read where it lies in a tar file."""
    videos = {f"v{i:02d}": clip(4 + i, seed=i).permute(0, 2, 3, 1).numpy() for i in range(20)}
    (tmp_path / "raw").mkdir()
    np.savez_compressed(tmp_path / "raw" / "many.npz", **videos)
    raw = packed(tmp_path / "many.tar", tmp_path / "raw") if in_tar else tmp_path / "raw"
    opened: list[object] = []

    class Counted(zipfile.ZipFile):
        def __init__(self, file, *rest, **options):
            opened.append(file)
            super().__init__(file, *rest, **options)

    monkeypatch.setattr(zipfile, "ZipFile", Counted)
    monkeypatch.setattr(items, "copy_out", None)
    prepare(raw, tmp_path / "data", SMALL, workers=1)
    assert len(opened) == 2  # the names, then the arrays
    assert sum(part.videos for part in info(raw).splits.values()) == 20
    assert len(opened) == 3
    for name, frames in stored(tmp_path / "data").items():
        assert np.array_equal(frames, videos[name.rpartition("#")[2]])


def test_names_that_would_be_equal_are_told_apart(tmp_path: Path) -> None:
    for folder in ("walk", "walk/walk"):
        write_video(tmp_path / folder / "frames", clip(3 + len(folder)))
        for file in (tmp_path / folder / "frames").iterdir():
            file.rename(tmp_path / folder / file.name)
        (tmp_path / folder / "frames").rmdir()
    manifest = prepare(tmp_path / "walk", tmp_path / "data", SMALL)
    assert [(entry.source, entry.frames) for entry in manifest.entries] == [("./walk", 7), ("walk", 12)]


def test_an_npz_without_arrays_is_named(tmp_path: Path) -> None:
    write_video(tmp_path / "raw" / "a.mkv", clip(4))
    np.savez(tmp_path / "raw" / "none.npz")
    manifest = prepare(tmp_path / "raw", tmp_path / "data", SMALL)
    assert [(entry.source, entry.skipped) for entry in manifest.skipped] == [("none.npz", "none.npz holds no array")]


@pytest.mark.parametrize("resample", ["area", "bilinear", "lanczos"])
@pytest.mark.parametrize("turn", [0, 90])
def test_pixels_that_are_not_square_are_cut_as_they_are_displayed(resample: str, turn: int, tmp_path: Path) -> None:
    """Pixels twice as wide as high: a ring, seen as round, of 45 pixels' radius is 45 columns wide."""
    y, x = np.mgrid[:128, :128] - 63.5
    picture = np.where(np.hypot(x[:, ::2] + 0.5, y[:, ::2]) < 45, 255, 0).astype(np.uint8)[..., None]
    settings = Settings((64, 64), channels=1, resample=resample)  # type: ignore[arg-type]
    frame = decode._Fit(settings)(SourceFrame(picture, Fraction(2), turn))[..., 0] > 127
    for axis in (0, 1):
        assert abs(int(frame.any(axis).sum()) - 45) <= 1


def test_packing_a_video_does_not_walk_through_those_that_wait(tmp_path: Path) -> None:
    """Of tiny videos, 100,000 wait for one shard."""

    class Waiting(list):
        def __iter__(self):
            raise AssertionError("walked through")

    work = run._Work(tmp_path, SMALL, None, run.SHARD_BYTES)
    work.batch = Waiting()
    for frames in (2, 5, 3):
        work._pack(Entry("v", 1, 1, frames=frames))
    assert [work.batch[i].offset for i in range(3)] == [0, 2, 7]


def test_only_what_changed_is_decoded_again(mixed: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    decoded: list[str] = []
    real = run.make_parts

    def counting(items, *rest):
        decoded.extend(item.name for item in items)
        return real(items, *rest)

    monkeypatch.setattr(run, "make_parts", counting)

    def again(settings: Settings = SMALL) -> list[str]:
        decoded.clear()
        prepare(mixed, tmp_path / "data", settings, workers=1)
        return sorted(decoded)

    np.save(mixed / "same.npy", clip(5, seed=76).numpy())
    assert len(again()) == 17
    before, written = contents(tmp_path / "data"), (tmp_path / "data" / MANIFEST).stat().st_mtime_ns
    assert again() == []
    assert contents(tmp_path / "data") == before
    assert (tmp_path / "data" / MANIFEST).stat().st_mtime_ns == written
    os.utime(mixed / "e.mkv", ns=(1, 1))  # touched, not changed
    assert again() == []
    np.save(mixed / "same.npy", clip(5, seed=75).numpy())  # of the same size
    assert again() == ["same.npy"]
    write_video(mixed / "c.npz", clip(5, seed=77))
    write_video(mixed / "new.npz", clip(5, seed=78))
    (mixed / "a.mp4").unlink()
    assert again() == ["c.npz", "new.npz"]
    frames = stored(tmp_path / "data")
    assert np.array_equal(frames["c.npz"], clip(5, seed=77).permute(0, 2, 3, 1))
    assert "a.mp4" not in frames
    shards = sorted((tmp_path / "data" / "shards").iterdir())
    shards[0].unlink()
    lost = again()
    assert 0 < len(lost) < 15
    last = shard_path(tmp_path / "data", max(entry.shard for entry in read_manifest(tmp_path / "data").videos))
    os.truncate(last, last.stat().st_size - 1)
    assert again() == lost
    assert again() == []
    assert stored(tmp_path / "data").keys() == frames.keys()
    # another split needs no decoding; another size is another data set
    assert again(replace(SMALL, split_by="folder")) == []
    assert {e.group for e in read_manifest(tmp_path / "data").videos} == {".", "many.npz", "sub", "sub/deep"}
    with pytest.raises(McvdError, match=r"was begun with size \[16, 16\], not \[8, 8\]; choose another folder"):
        again(replace(SMALL, size=(8, 8)))


def test_places_that_cannot_be_used(mixed: Path, tmp_path: Path) -> None:
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "thesis.txt").write_text("dear")
    with pytest.raises(McvdError, match="full holds other files .thesis.txt"):
        prepare(mixed, tmp_path / "full", SMALL)
    for folder in ("work", "shards"):  # which are ours if we made them, and else may be all that somebody has
        write_video(tmp_path / f"with_{folder}" / folder / "a.npz", clip(5))
        for source in (mixed, tmp_path / f"with_{folder}" / folder):
            with pytest.raises(McvdError, match=f"with_{folder} holds other files .{folder}/a.npz"):
                prepare(source, tmp_path / f"with_{folder}", SMALL)
        assert (tmp_path / f"with_{folder}" / folder / "a.npz").is_file()
    with pytest.raises(McvdError, match="outside of"):
        prepare(mixed, mixed / "data", SMALL)
    for layout in PRESETS:
        with pytest.raises(McvdError, match="gone does not exist"):
            prepare(tmp_path / "gone", tmp_path / "data", PRESETS[layout])
    (tmp_path / "empty").mkdir()
    with pytest.raises(McvdError, match="empty holds no videos"):
        prepare(tmp_path / "empty", tmp_path / "data", SMALL)
    with pytest.raises(McvdError, match="no usable video in .*; 1 left out, e.g. .*broken.mp4"):
        prepare(mixed / "broken.mp4", tmp_path / "data", SMALL)
    prepare(mixed / "c.npz", tmp_path / "data", SMALL)
    with pytest.raises(McvdError, match=r"data was prepared from .*c.npz, not .*e.mkv"):
        prepare(mixed / "e.mkv", tmp_path / "data", SMALL)
    assert len(read_manifest(tmp_path / "data").videos) == 1
    (tmp_path / "data" / "shards" / "mine.npy").write_text("dear")
    os.utime(mixed / "c.npz", ns=(1, 1))
    prepare(mixed / "c.npz", tmp_path / "data", SMALL)
    assert (tmp_path / "data" / "shards" / "mine.npy").is_file()
    with pytest.raises(McvdError, match="is prepared already"):
        prepare(tmp_path / "data", tmp_path / "data2", SMALL)


ODD = ["latin\udce9.npz", "line\u2028end.npz", "line\x85end.npz", "two\nlines.npz", "ü.npz"]


def test_names_may_be_anything_that_a_disk_takes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Bytes that are no UTF-8, and what ends a line for some readers."""
    for i, name in enumerate(ODD):
        try:
            write_video(tmp_path / "raw" / name, clip(5, seed=i))
        except McvdError:  # this disk takes none but UTF-8
            pytest.skip(f"the disk takes no {name!r}")
    (tmp_path / "raw" / "frames\udce9").mkdir()
    for i in range(3):
        Image.new("L", (16, 16)).save(tmp_path / "raw" / "frames\udce9" / f"{i}\udce9.png")
    manifest = prepare(tmp_path / "raw", tmp_path / "data", SMALL, workers=2)
    assert {entry.source for entry in manifest.videos} == {*ODD, "frames\udce9"}
    assert read_manifest(tmp_path / "data") == manifest
    assert '"ü.npz"' in (tmp_path / "data" / MANIFEST).read_text(encoding="utf-8")
    before = contents(tmp_path / "data")
    monkeypatch.setattr("mcvd.data.prepare.run.make_parts", None)  # nothing is decoded again
    prepare(tmp_path / "raw", tmp_path / "data", SMALL)
    assert contents(tmp_path / "data") == before


def test_links_that_lead_nowhere_or_to_folders_are_named(mixed: Path, tmp_path: Path) -> None:
    (tmp_path / "linked").mkdir()
    (tmp_path / "linked" / "more").symlink_to(mixed)
    with pytest.raises(McvdError, match="the link more is not followed"):
        prepare(tmp_path / "linked", tmp_path / "data", SMALL)
    write_video(tmp_path / "linked" / "a.npz", clip(5))
    (tmp_path / "linked" / "gone.mp4").symlink_to("nothing.mp4")
    manifest = prepare(tmp_path / "linked", tmp_path / "data", SMALL)
    assert [entry.source for entry in manifest.skipped] == ["gone.mp4"]
    assert manifest.ignored == {"linked folder (more)": 1}


def test_folders_that_may_not_be_read_are_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_video(tmp_path / "raw" / "a.npz", clip(5))
    (tmp_path / "raw" / "closed").mkdir()  # empty, as such a folder seems to be
    allowed = os.access
    monkeypatch.setattr(os, "access", lambda place, mode: Path(place).name != "closed" and allowed(place, mode))
    manifest = prepare(tmp_path / "raw", tmp_path / "data", SMALL)
    assert manifest.ignored == {"folder that may not be read (closed)": 1}


def test_workers_import_nothing_from_the_current_folder(
    mixed: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The command `mcvd` does not either: whatever lies there is the user's, even if it is called torch.py."""
    (tmp_path / "here").mkdir()
    (tmp_path / "here" / "torch.py").write_text("raise SystemExit('not torch')")
    monkeypatch.chdir(tmp_path / "here")
    assert len(prepare(mixed, tmp_path / "data", SMALL, workers=2).videos) == 11


def test_a_full_disk_stops_the_work_and_blames_no_video(mixed: Path, tmp_path: Path) -> None:
    (tmp_path / "data" / "work").mkdir(parents=True)
    (tmp_path / "data" / "work" / "settings.json").write_text(json.dumps(SMALL.decoding()))
    (tmp_path / "data" / "work" / "parts").write_text("a file where the folder should be")
    with pytest.raises(McvdError, match="cannot write .* run the same again"):
        prepare(mixed, tmp_path / "data", SMALL, workers=1)
    (tmp_path / "data" / "work" / "parts").unlink()
    assert len(prepare(mixed, tmp_path / "data", SMALL, workers=1).videos) == 11


# --- interruptions ----------------------------------------------------------------------------------------------------


def start_child(source: Path, destination: Path, workers: int) -> subprocess.Popen:
    code = (
        "from mcvd.data.prepare import *\n"
        f"prepare({str(source)!r}, {str(destination)!r}, Settings(size=(16, 16)), workers={workers}, "
        "shard_bytes=60 * 768)"
    )
    return subprocess.Popen([sys.executable, "-c", code])


def test_killed_in_the_middle_it_goes_on_and_ends_as_if_nothing_had_been(tmp_path: Path) -> None:
    raw = tmp_path / "raw"
    for i in range(40):
        # large enough that decoding takes a while; scaled down to 16x16
        write_video(raw / f"{i}.mkv", clip(30, 120, 160, seed=i))
    prepare(raw, tmp_path / "whole", SMALL, workers=1, shard_bytes=60 * 768)
    killed = tmp_path / "killed"
    interrupted = 0
    for workers, enough in ((1, 3), (2, 9)):
        child = start_child(raw, killed, workers)
        deadline = time.monotonic() + 60
        while child.poll() is None and time.monotonic() < deadline:
            work = killed / "work"
            done = len(list((work / "parts").glob("*.json"))) + len(list((killed / "shards").glob("*.npy"))) * 2
            if done >= enough:
                break
            time.sleep(0.005)
        interrupted += child.poll() is None
        child.send_signal(signal.SIGKILL)
        child.wait()
    assert interrupted == 2
    assert not (killed / MANIFEST).exists()
    # (a shard whose line is not in the journal yet is joined again from its parts)
    journaled = (killed / "work" / "journal.jsonl").read_text().count("\n")
    assert journaled > 0
    kept = {path: path.stat().st_mtime_ns for path in (shard_path(killed, shard) for shard in range(journaled))}
    prepare(raw, killed, SMALL, workers=1, shard_bytes=60 * 768)
    assert contents(killed) == contents(tmp_path / "whole")
    assert all(path.stat().st_mtime_ns == when for path, when in kept.items())


def test_two_processes_that_make_the_same_part_do_not_meet(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As when the parent of a worker is killed and started again while the worker is at its last video."""
    write_video(tmp_path / "raw" / "a.npz", clip(10))
    [item], _ = find_items(tmp_path / "raw")
    other = (
        "import sys, json; from pathlib import Path; from mcvd.config import from_dict\n"
        "from mcvd.data.prepare.items import Item; from mcvd.data.prepare.parts import make_part\n"
        "from mcvd.data.settings import Settings\n"
        "item, settings = json.loads(sys.argv[1])\n"
        "make_part(from_dict(Item, item, ''), from_dict(Settings, settings, ''), Path(sys.argv[2]))\n"
    )
    order = json.dumps([asdict(item), to_dict(SMALL)])
    settle, met = parts.settle, []

    def settle_slowly(out: IO) -> None:
        settle(out)
        met.append(out.name)
        subprocess.run([sys.executable, "-c", other, order, str(tmp_path)], check=True)

    monkeypatch.setattr(parts, "settle", settle_slowly)
    entry = parts.make_part(item, SMALL, tmp_path)
    assert len(met) == 2
    assert parts.load_part(tmp_path, item.name, 16 * 16 * 3) == entry
    assert sorted(path.suffix for path in tmp_path.glob("*.*")) == [".json", ".raw"]


def test_a_worker_ends_with_its_parent(tmp_path: Path) -> None:
    write_video(tmp_path / "raw" / "long.mkv", clip(600, 240, 320), scale=1)
    [item], _ = find_items(tmp_path / "raw")
    command = [sys.executable, "-m", "mcvd.data.prepare.workers"]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as worker:
        assert worker.stdin
        assert worker.stdout
        assert worker.stdout.readline() == "ready\n"
        task = {"item": asdict(item), "settings": to_dict(SMALL), "parts": str(tmp_path)}
        worker.stdin.write(json.dumps(task) + "\n")
        worker.stdin.close()
        assert worker.wait(60) == 1
    assert not list(tmp_path.glob("*.json"))


def test_a_full_disk_gets_back_what_half_a_part_took(
    mixed: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_frames = parts._write_frames

    def full(frames: Iterable[np.ndarray], path: Path) -> tuple[int, str]:
        write_frames(frames, path)
        raise parts.unwritable(path, OSError(errno.ENOSPC, "No space left on device"))

    monkeypatch.setattr(parts, "_write_frames", full)
    with pytest.raises(McvdError, match=r"No space left.*run the same again"):
        prepare(mixed, tmp_path / "data", SMALL, workers=1)
    assert not list((tmp_path / "data" / "work" / "parts").iterdir())


def test_a_torn_journal_and_half_a_part_are_as_if_not_begun(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for i in range(6):
        write_video(tmp_path / "raw" / f"{i}.npz", clip(10, seed=i))
    prepare(tmp_path / "raw", tmp_path / "whole", SMALL, workers=1, shard_bytes=20 * 768)
    monkeypatch.setattr(run, "_write_manifest", lambda *a: (_ for _ in ()).throw(KeyboardInterrupt))
    with pytest.raises(KeyboardInterrupt):
        prepare(tmp_path / "raw", tmp_path / "torn", SMALL, workers=1, shard_bytes=20 * 768)
    monkeypatch.undo()
    journal = tmp_path / "torn" / "work" / "journal.jsonl"
    lines = journal.read_text().splitlines(keepends=True)
    assert len(lines) == 3
    journal.write_text("".join(lines[:2]) + lines[2][:50])
    (tmp_path / "torn" / "work" / "parts" / "0.raw").write_bytes(b"half")
    prepare(tmp_path / "raw", tmp_path / "torn", SMALL, workers=1, shard_bytes=20 * 768)
    assert contents(tmp_path / "torn") == contents(tmp_path / "whole")


def test_what_follows_a_torn_line_of_the_journal_is_not_done_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from mcvd.data.prepare import run

    for i in range(6):
        write_video(tmp_path / "raw" / f"{i}.npz", clip(10, seed=i))
    todo: list[int] = []

    def interrupted() -> None:
        with monkeypatch.context() as patch:
            patch.setattr(run, "_write_manifest", lambda *a: (_ for _ in ()).throw(KeyboardInterrupt))
            with pytest.raises(KeyboardInterrupt):
                go()

    def go() -> None:
        make = run.make_parts
        with monkeypatch.context() as patch:
            patch.setattr(run, "make_parts", lambda items, *a: todo.append(len(items)) or make(items, *a))
            prepare(tmp_path / "raw", tmp_path / "data", SMALL, workers=1, shard_bytes=20 * 768)

    interrupted()
    journal = tmp_path / "data" / "work" / "journal.jsonl"
    journal.write_text(journal.read_text()[:50])  # a full disk, or a power cut
    interrupted()
    go()
    assert todo == [6, 6]  # the third time there is nothing to decode


def test_of_two_that_start_together_one_waits_and_finds_it_done(mixed: Path, tmp_path: Path) -> None:
    made: list[dict[str, str]] = []

    def go() -> None:
        prepare(mixed, tmp_path / "data", SMALL, workers=1)
        made.append({name: str((tmp_path / "data" / name).stat().st_mtime_ns) for name in contents(tmp_path / "data")})

    threads = [threading.Thread(target=go) for _ in range(2)]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    first, second = ({name: when for name, when in times.items() if name != ".lock"} for times in made)
    assert first == second


def test_a_decoder_that_crashes_costs_one_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for i in range(4):
        write_video(tmp_path / "raw" / f"{i}.npz", clip(5, seed=i))
    (tmp_path / "site").mkdir()
    # every new Python process runs this: the worker dies on one of the arrays
    (tmp_path / "site" / "sitecustomize.py").write_text(
        "import numpy, os\nload = numpy.load\n"
        "def deadly(path, *a, **k):\n"
        "    out = load(path, *a, **k)\n"
        "    os.environ.get('DEADLY') and out.flat[0] == int(os.environ['DEADLY']) and os._exit(3)\n"
        "    return out\n"
        "numpy.load = deadly\n"
    )
    monkeypatch.syspath_prepend(str(tmp_path / "site"))
    monkeypatch.setenv("DEADLY", str(int(clip(5, seed=2).flatten()[0])))
    manifest = prepare(tmp_path / "raw", tmp_path / "data", SMALL, workers=2)
    assert [(e.source, e.skipped) for e in manifest.skipped] == [
        ("2.npz", "the decoder failed: its process ended with code 3")
    ]
    monkeypatch.delenv("DEADLY")
    assert len(prepare(tmp_path / "raw", tmp_path / "data", SMALL, workers=1).videos) == 4  # tried again


def test_crashes_leave_no_pipes_open(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for i in range(5):
        write_video(tmp_path / "raw" / f"{i}.npz", clip(5))
    (tmp_path / "site").mkdir()
    (tmp_path / "site" / "sitecustomize.py").write_text("import numpy, os\nnumpy.load = lambda *a, **k: os._exit(3)\n")
    monkeypatch.syspath_prepend(str(tmp_path / "site"))
    (tmp_path / "parts").mkdir()

    def pipes() -> int:
        found = 0
        for fd in os.listdir("/proc/self/fd"):
            with contextlib.suppress(OSError):
                found += os.readlink(f"/proc/self/fd/{fd}").startswith("pipe:")
        return found

    before, items = pipes(), find_items(tmp_path / "raw")[0]
    open_then = [pipes() - before for _ in make_parts(items, SMALL, tmp_path / "parts", 2)]
    assert open_then[-1] <= 4  # of two workers


# --- time and size ----------------------------------------------------------------------------------------------------


def test_frames_are_picked_by_time(tmp_path: Path) -> None:
    frames = (10 * torch.arange(20))[:, None, None, None].expand(-1, 3, 16, 16).to(torch.uint8)
    write_video(tmp_path / "raw" / "a.mkv", frames, fps=20)
    write_video(tmp_path / "raw" / "slow.mkv", frames[:5], fps=5)
    write_video(tmp_path / "raw" / "timeless.npz", frames[:4])
    with av.open(str(tmp_path / "raw" / "late.mkv"), "w") as container:  # a recording that begins at 50 s
        stream = container.add_stream("ffv1", rate=5)
        stream.height, stream.width, stream.pix_fmt = 16, 16, "bgr0"
        for index, picture in enumerate(frames[:5].permute(0, 2, 3, 1).contiguous().numpy()):
            frame = av.VideoFrame.from_ndarray(picture, "rgb24")
            frame.pts, frame.time_base = 250 + index, Fraction(1, 5)
            container.mux(stream.encode(frame))
        container.mux(stream.encode(None))
    prepare(tmp_path / "raw", tmp_path / "data", replace(SMALL, fps=8), workers=1)
    shown = {name: (video[:, 5, 5, 0] // 10).tolist() for name, video in stored(tmp_path / "data").items()}
    assert shown["a.mkv"] == [0, 2, 5, 7, 10, 12, 15, 17]  # one second at 8 a second
    assert shown["slow.mkv"] == shown["late.mkv"] == [0, 0, 1, 1, 2, 3, 3, 4]
    assert shown["timeless.npz"] == [0, 1, 2, 3]
    assert [entry.fps for entry in read_manifest(tmp_path / "data").videos] == [8, 8, 8, None]


def test_frames_of_animations_are_picked_by_their_own_times(tmp_path: Path) -> None:
    first, *rest = (Image.new("L", (16, 16), 10 * i) for i in range(8))
    (tmp_path / "raw").mkdir()
    for name in ("a.gif", "a.webp", "a.apng", "a.png"):  # a png may be animated, too
        lossless = {"lossless": True} if name == "a.webp" else {}
        first.save(tmp_path / "raw" / name, save_all=True, append_images=rest, duration=[1000] + [20] * 7, **lossless)
    prepare(tmp_path / "raw", tmp_path / "data", replace(SMALL, fps=10), workers=1)
    shown = {name: (video[:, 5, 5, 0] // 10).tolist() for name, video in stored(tmp_path / "data").items()}
    assert shown == dict.fromkeys(("a.apng", "a.gif", "a.png", "a.webp"), [0] * 10 + [1, 6])


def test_only_pngs_that_move_are_videos_of_their_own(tmp_path: Path) -> None:
    pictures = [Image.new("RGB", (8, 8), (i, 0, 0)) for i in range(3)]
    profile = np.random.default_rng(0).bytes(20000)  # stands before the pixels, and before what announces an animation
    for i, picture in enumerate(pictures):
        picture.save(tmp_path / f"{i}.png", icc_profile=profile if i else None)
    pictures[0].save(tmp_path / "moves.png", save_all=True, append_images=pictures[1:])
    pictures[0].save(tmp_path / "long.png", save_all=True, append_images=pictures[1:], icc_profile=profile)
    items, _ = find_items(tmp_path)
    assert [(item.kind, len(item.files)) for item in items if item.name.endswith(".png")] == [("video", 1)] * 2
    assert [len(item.files) for item in items if item.kind == "images"] == [3]


# --- tar files --------------------------------------------------------------------------------------------------------


def packed(tar: Path, folder: Path, names: list[str] | None = None, mode: str = "w") -> Path:
    """A tar file of what lies in a folder."""
    with tarfile.open(tar, mode) as archive:  # type: ignore[call-overload]
        for name in names or sorted(path.name for path in folder.iterdir()):
            archive.add(folder / name, f"./{name}")
    return tar


def test_a_tar_file_is_the_folder_that_it_would_unpack_to(mixed: Path, tmp_path: Path) -> None:
    prepare(mixed, tmp_path / "plain", SMALL, workers=1)
    (tmp_path / "shards").mkdir()
    tar = packed(tmp_path / "shards" / "all.tar", mixed)
    for workers in (1, 2):
        prepare(tar, tmp_path / f"data{workers}", SMALL, workers=workers)
    assert contents(tmp_path / "data1") == contents(tmp_path / "data2")
    plain, manifest = read_manifest(tmp_path / "plain"), read_manifest(tmp_path / "data1")
    assert [entry.source for entry in manifest.entries] == [f"all.tar/{entry.source}" for entry in plain.entries]
    assert [entry.sha256 for entry in manifest.videos] == [entry.sha256 for entry in plain.videos]
    frames = stored(tmp_path / "data1")
    for name, expected in stored(tmp_path / "plain").items():
        assert np.array_equal(frames[f"all.tar/{name}"], expected), name
    reasons = {entry.source: entry.skipped for entry in manifest.skipped}
    assert str(tar / "broken.mp4") in reasons["all.tar/broken.mp4"]
    assert str(tar / "broken.npz") in reasons["all.tar/broken.npz"]
    assert manifest.ignored == {".txt": 1}
    raw, unpacked = info(tar), info(mixed)
    assert (raw.splits.keys(), raw.fps, raw.sizes) == (unpacked.splits.keys(), unpacked.fps, unpacked.sizes)
    with pytest.raises(McvdError, match="all.tar: tar files are for training; unpack it"):
        find_videos(tar, "real")


def test_of_a_tar_file_that_grew_only_what_is_new_is_decoded(
    mixed: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "shards" / "train").mkdir(parents=True)
    tar = packed(tmp_path / "shards" / "train" / "0.tar", mixed, ["a.mp4", "c.npz"])
    (tmp_path / "shards" / "test").mkdir()
    packed(tmp_path / "shards" / "test" / "0.tar", mixed, ["e.mkv"])
    before = prepare(tmp_path / "shards", tmp_path / "data", SMALL, workers=1)
    assert [(entry.source, entry.split) for entry in before.videos] == [
        ("test/0.tar/e.mkv", "test"), ("train/0.tar/a.mp4", "train"), ("train/0.tar/c.npz", "train"),
    ]  # fmt: skip
    write_video(mixed / "c.npz", clip(20, seed=9), scale=1)
    packed(tar, mixed, ["f.webm"], "a")
    with tarfile.open(tar, "a") as archive:
        archive.add(mixed / "c.npz", "c.npz")  # was ./c.npz
    made: list[str] = []
    real = run.make_parts
    monkeypatch.setattr(run, "make_parts", lambda items, *rest: real([made.append(i.name) or i for i in items], *rest))
    prepare(tmp_path / "shards", tmp_path / "data", SMALL, workers=1)
    assert made == ["train/0.tar/c.npz", "train/0.tar/f.webm"]  # of a name that is there twice, the last
    assert stored(tmp_path / "data")["train/0.tar/c.npz"].shape[0] == 20
    prepare(tmp_path / "shards", tmp_path / "data", SMALL, workers=1)
    assert len(made) == 2


def test_samples_of_several_pictures_are_videos(tmp_path: Path) -> None:
    """As WebDataset writes them: all that has a name up to the first dot is one sample."""
    folder = tmp_path / "flat"
    folder.mkdir()
    for key in ("000000", "000001"):
        for i, frame in enumerate(clip(12, seed=int(key))):
            Image.fromarray(frame.permute(1, 2, 0).numpy()).save(folder / f"{key}.{i}.png")
        (folder / f"{key}.json").write_text("{}")
    write_video(folder / "still", clip(5))
    manifest = prepare(packed(tmp_path / "0.tar", folder), tmp_path / "data", SMALL, workers=1)
    assert [(entry.source, entry.frames) for entry in manifest.videos] == [
        ("0.tar/still", 5), ("0.tar/000000", 12), ("0.tar/000001", 12),
    ]  # fmt: skip
    assert manifest.ignored == {".json": 2}
    expected = clip(12, seed=1).permute(0, 2, 3, 1)
    assert np.array_equal(stored(tmp_path / "data")["0.tar/000001"], expected)


@pytest.mark.parametrize("in_tar", [False, True])
def test_pictures_named_as_a_video_beside_them_are_previews(tmp_path: Path, in_tar: bool) -> None:
    folder = tmp_path / "clips"
    for name in ("a", "b", "c"):
        write_video(folder / f"{name}.mkv", clip(6))
        for picture in (f"{name}.jpg", f"{name}.thumb.PNG"):
            Image.new("RGB", (16, 16)).save(folder / picture)
    items, ignored = find_items(packed(tmp_path / "0.tar", folder) if in_tar else folder)
    assert [PurePosixPath(item.name).name for item in items] == ["a.mkv", "b.mkv", "c.mkv"]
    assert ignored == {".jpg": 3, ".png": 3}
    write_video(folder / "still", clip(5))
    assert len(find_items(folder)[0]) == 4


@pytest.mark.parametrize("suffix", [".mkv", ".npz", ".gif", ""])
@pytest.mark.parametrize("samples", [1, 2])
def test_contact_sheets_beside_generated_videos_are_no_frames(tmp_path: Path, suffix: str, samples: int) -> None:
    for name in ("a", "b-7"):
        files, sheet = targets(str(tmp_path / f"{name}{suffix}"), "", samples, [], 10.0)
        for file in files:
            write_video(file, clip(6))
        contact_sheet([("sample", clip(6))], path=sheet)
    items, ignored = find_items(tmp_path)
    assert len(items) == 2 * samples
    assert ignored == {".png": 2}


def test_tar_files_beside_videos_are_what_these_came_in(mixed: Path, tmp_path: Path) -> None:
    packed(mixed / "download.tar", mixed, ["a.mp4", "c.npz"])
    items, ignored = find_items(mixed)
    assert not any("download" in item.name for item in items)
    assert ignored[".tar"] == 1


def test_damaged_and_compressed_archives_are_named(mixed: Path, tmp_path: Path) -> None:
    (tmp_path / "shards").mkdir()
    whole = packed(tmp_path / "whole.tar", mixed, ["c.npz", "e.mkv", "v9.avi"])
    size, data = whole.stat().st_size, whole.read_bytes()
    with tarfile.open(whole) as archive:
        second, third = archive.getmembers()[1:]
    (tmp_path / "shards" / "cut.tar").write_bytes(data[: second.offset_data + 100])
    (tmp_path / "shards" / "header.tar").write_bytes(data[: third.offset] + b"x" * (size - third.offset))
    (tmp_path / "shards" / "none.tar").write_bytes(b"no tar" * 1000)
    manifest = prepare(tmp_path / "shards", tmp_path / "data", SMALL, workers=1)
    assert [entry.source for entry in manifest.videos] == [
        "cut.tar/c.npz", "header.tar/c.npz", "header.tar/e.mkv",
    ]  # fmt: skip
    reasons = {entry.source: entry.skipped for entry in manifest.skipped}
    assert sorted(reasons) == ["cut.tar#damaged", "cut.tar/e.mkv", "header.tar#damaged", "none.tar#damaged"]
    assert reasons["cut.tar/e.mkv"] == f"{tmp_path / 'shards' / 'cut.tar'} is cut short"
    assert f"bad header at byte {third.offset}" in reasons["header.tar#damaged"]
    (tmp_path / "zips").mkdir()
    packed(tmp_path / "zips" / "clips.tar.gz", mixed, ["c.npz"], "w:gz")
    for place in (tmp_path / "zips", tmp_path / "zips" / "clips.tar.gz"):
        with pytest.raises(McvdError, match="holds no videos, .*; unpack clips.tar.gz first"):
            prepare(place, tmp_path / "other", SMALL)


def test_a_large_file_in_a_tar_file_is_read_whole(tmp_path: Path) -> None:
    data = np.random.default_rng(0).bytes((2 << 20) + 5)
    (tmp_path / "archive").write_bytes(b"before" + data + b"behind")
    span = 6, len(data)
    assert b"".join(tar.pieces(str(tmp_path / "archive"), span)) == data
    with tar.Part(str(tmp_path / "archive"), span) as part:
        assert part.read() == data
        assert part.seek(-4, io.SEEK_END) == len(data) - 4
        assert part.read(99) == data[-4:]
        assert part.read(1) == b""
    with pytest.raises(McvdError, match="archive is cut short"):
        list(tar.pieces(str(tmp_path / "archive"), (6, len(data) + 7)))


# --- the published data sets ------------------------------------------------------------------------------------------


def test_kth(tmp_path: Path) -> None:
    raw = tmp_path / "kth"
    for person in (1, 20, 21, 25):
        for action in ("boxing", "walking"):
            name = f"person{person:02d}_{action}_d1_uncomp.avi"
            write_video(raw / action / name, clip(6, 120, 160, seed=person, channels=1), scale=1)
    (raw / "00sequences.txt").write_text("person01_boxing_d1 frames 1-95")
    manifest = prepare(raw, tmp_path / "data", PRESETS["kth"], workers=1)
    assert {entry.group: entry.split for entry in manifest.videos} == {
        "person01": "train", "person20": "train", "person21": "test", "person25": "test",
    }  # fmt: skip
    frames = stored(tmp_path / "data")["boxing/person21_boxing_d1_uncomp.avi"]
    assert frames.shape == (6, 64, 64, 1)
    # the whole picture, squeezed, from the 2x2 pixels around each point as OpenCV's bilinear resize takes them
    source = read_video(raw / "boxing" / "person21_boxing_d1_uncomp.avi", channels=1)[3, 0].numpy().astype(float)
    y, x = (np.arange(64) + 0.5) * 120 / 64 - 0.5, (np.arange(64) + 0.5) * 160 / 64 - 0.5
    y0, x0 = np.floor(y).astype(int), np.floor(x).astype(int)
    fy, fx = (y - y0)[:, None], (x - x0)[None]
    corner = [[source[np.ix_(y0 + dy, x0 + dx)] for dx in (0, 1)] for dy in (0, 1)]
    expected = (1 - fy) * ((1 - fx) * corner[0][0] + fx * corner[0][1])
    expected += fy * ((1 - fx) * corner[1][0] + fx * corner[1][1])
    assert np.abs(frames[3, ..., 0] - expected).max() <= 0.51
    (tmp_path / "none").mkdir()
    with pytest.raises(McvdError, match="none holds no files like person01_boxing_d1_uncomp.avi; .* use layout `vid"):
        prepare(tmp_path / "none", tmp_path / "x", PRESETS["kth"])


def field(number: int, payload: bytes) -> bytes:
    """A length-delimited protobuf field."""
    length, out = len(payload), bytes([number << 3 | 2])
    while length > 0x7F:
        out += bytes([length & 0x7F | 0x80])
        length >>= 7
    return out + bytes([length]) + payload


def tfrecord(videos: list[np.ndarray]) -> bytes:
    """A file of tf.train.Example records with what softmotion30_44k holds: two cameras and the robot's state."""
    out = b""
    for video in videos:
        features = b""
        for i, frame in enumerate(video):
            for camera, pixels in (("image_main", 255 - frame), ("image_aux1", frame)):
                value = field(1, field(1, pixels.tobytes()))
                features += field(1, field(1, f"{i}/{camera}/encoded".encode()) + field(2, value))
            floats = field(2, field(1, struct.pack("<3f", 0.1, 0.2, 0.3)))
            features += field(1, field(1, f"{i}/endeffector_pos".encode()) + field(2, floats))
        data = field(1, features)
        head = struct.pack("<Q", len(data))
        out += head + struct.pack("<I", masked_crc32c(head)) + data + struct.pack("<I", 0)
    return out


def test_bair(tmp_path: Path) -> None:
    raw = tmp_path / "softmotion30_44k"
    videos = [clip(30, 64, 64, seed=i).permute(0, 2, 3, 1).numpy() for i in range(5)]
    for split, part in (("train", videos[:3]), ("test", videos[3:])):
        (raw / split).mkdir(parents=True)
        (raw / split / "traj_0_to_255.tfrecords").write_bytes(tfrecord(part))
    whole = (raw / "train" / "traj_0_to_255.tfrecords").read_bytes()
    (raw / "train" / "traj_256_to_511.tfrecords").write_bytes(whole[: len(whole) // 2])
    manifest = prepare(raw, tmp_path / "data", PRESETS["bair"], workers=1)
    frames = stored(tmp_path / "data")
    for i in range(3):
        assert np.array_equal(frames[f"train/traj_0_to_255.tfrecords#{i}"], videos[i])
    assert np.array_equal(frames["test/traj_0_to_255.tfrecords#1"], videos[4])
    assert [entry.split for entry in manifest.videos] == ["test"] * 2 + ["train"] * 4
    assert ["cut short at byte" in entry.skipped for entry in manifest.skipped] == [True]
    (tmp_path / "bad.tfrecords").write_bytes(b"\x05" + whole[1:])
    with pytest.raises(McvdError, match="damaged or cut short at byte 0"):
        list(record_positions(tmp_path / "bad.tfrecords"))
    (tmp_path / "cut.tfrecords").write_bytes(whole[:-3])  # in the last checksum
    with pytest.raises(McvdError, match="damaged or cut short at byte"):
        list(record_positions(tmp_path / "cut.tfrecords"))
    (tmp_path / "cut.tfrecords").write_bytes(whole[:1000])  # since its records were counted
    with pytest.raises(McvdError, match="damaged or cut short at byte 0"):
        next(bair.record_frames(tmp_path / "cut.tfrecords", 0))
    (tmp_path / "other.tfrecords").write_bytes(tfrecord([videos[0][:29]]))
    with pytest.raises(
        McvdError, match=r"record at byte 0 of .* has no 29/image_aux1/encoded; names there: \['0/image"
    ):
        list(bair.record_frames(tmp_path / "other.tfrecords", 0))
    for wrong in (field(1, b"frames")[:-1], tfrecord([videos[0]])[12:-5], b"\x0f", b"\x80", field(1, field(1, b""))):
        with pytest.raises(McvdError, match="a record is not a tf.train.Example"):
            bair.example_bytes(wrong)


def test_a_record_may_hold_pictures_but_no_programs(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("PIL.EpsImagePlugin.Ghostscript", lambda *a, **k: pytest.fail("it was run"))
    picture = Image.fromarray(clip(1, 64, 64)[0].permute(1, 2, 0).numpy())
    for kind in ("PNG", "EPS"):
        file = io.BytesIO()
        picture.save(file, kind)
        if kind == "PNG":
            assert np.array_equal(bair._picture(file.getvalue(), Path("a")), np.asarray(picture))
            continue
        with pytest.raises(McvdError, match="neither 64x64x3 raw bytes nor an image"):
            bair._picture(file.getvalue(), Path("a"))


def test_the_checksum_is_castagnolis() -> None:
    # RFC 3720 B.4: 32 bytes of zeros have CRC-32C 8a9136aa; the mask is the one of the TFRecord format
    assert masked_crc32c(bytes(32)) == ((0x8A9136AA >> 15 | 0x8A9136AA << 17) + 0xA282EAD8) & 0xFFFFFFFF


def test_bair_as_folders_of_frames(tmp_path: Path) -> None:
    for seed, split in enumerate(("train", "test")):
        write_video(tmp_path / "raw" / split / "traj_0" / "0", clip(30, 64, 64, seed))
    manifest = prepare(tmp_path / "raw", tmp_path / "data", PRESETS["bair"], workers=1)
    assert [(e.source, e.split) for e in manifest.videos] == [("test/traj_0/0", "test"), ("train/traj_0/0", "train")]


def test_cityscapes(tmp_path: Path) -> None:
    raw = tmp_path / "leftImg8bit_sequence"
    wanted = [
        ("train", "aachen", 0, range(30)),
        ("train", "aachen", 1, range(30)),
        ("train", "bochum", 0, range(60)),
        ("train", "ulm", 2, range(12)),
        ("val", "lindau", 0, range(30)),
        ("test", "bonn", 0, range(5, 35)),
    ]
    for place, (split, city, sequence, numbers) in enumerate(wanted):
        (raw / split / city).mkdir(parents=True, exist_ok=True)
        for number in numbers:
            picture = clip(1, 16, 32, seed=100 * place + number)[0].permute(1, 2, 0).numpy()
            Image.fromarray(picture).save(raw / split / city / f"{city}_{sequence:06d}_{number:06d}_leftImg8bit.png")
    settings = replace(PRESETS["cityscapes"], size=(8, 8))
    manifest = prepare(raw, tmp_path / "data", settings, workers=1)
    assert [(e.split, e.group, e.frames) for e in manifest.videos] == [
        ("test", "bonn", 30), *[("train", "aachen", 30)] * 2, *[("train", "bochum", 30)] * 2, ("val", "lindau", 30),
    ]  # fmt: skip
    assert ["run of 12 frames, not 30" in e.skipped for e in manifest.skipped] == [True]
    name = "train/bochum/bochum_000000_000030_leftImg8bit.png"
    square = Image.open(raw / name).crop((8, 0, 24, 16)).resize((8, 8), Image.Resampling.LANCZOS)
    assert np.array_equal(stored(tmp_path / "data")[f"{name}#30"][0], np.asarray(square))


def test_ucf101(tmp_path: Path) -> None:
    raw = tmp_path / "UCF-101"
    names = [f"v_Archery_g{group:02d}_c01.avi" for group in (1, 2, 8, 9)]
    for seed, name in enumerate(names):
        write_video(raw / "Archery" / name, clip(6, 60, 80, seed), scale=1)
    lists = raw / "ucfTrainTestlist"
    lists.mkdir()
    (lists / "trainlist03.txt").write_text("".join(f"Archery/{name} 3\n" for name in names[:2]))
    with pytest.raises(McvdError, match=r"no testlist03.txt: unpack UCF101TrainTestSplits"):
        prepare(raw, tmp_path / "data", PRESETS["ucf101"])
    (lists / "testlist03.txt").write_text(f"Archery/{names[2]}\nArchery/v_Gone_g01_c01.avi\n")
    manifest = prepare(raw, tmp_path / "data", PRESETS["ucf101"], workers=1)
    assert [(e.source[-12:], e.split, e.group) for e in manifest.videos] == [
        ("_g01_c01.avi", "train", "Archery_g01"),
        ("_g02_c01.avi", "train", "Archery_g02"),
        ("_g08_c01.avi", "test", "Archery_g08"),
    ]
    assert manifest.ignored == {}  # the lists are no strangers
    assert sorted(e.skipped for e in manifest.skipped) == [
        "v_Archery_g09_c01.avi is in neither list 03",
        "v_Gone_g01_c01.avi is in list 03 but not there",
    ]
    frame = read_video(raw / "Archery" / names[0])[2].permute(1, 2, 0).numpy()
    expected = np.asarray(Image.fromarray(frame).resize((85, 64), Image.Resampling.LANCZOS))
    assert np.array_equal(stored(tmp_path / "data")[f"Archery/{names[0]}"][2], expected)
    assert Shards(tmp_path / "data", 4, size=(64, 64)).batch(range(3)).shape == (3, 4, 3, 64, 64)
    assert {Shards(tmp_path / "data", 4, size=(64, 64)).place(i).left for i in range(300)} == set(range(22))
    # the lists change: the videos are looked at again
    (lists / "testlist03.txt").write_text(f"Archery/{names[2]}\nArchery/{names[3]}\n")
    manifest = prepare(raw, tmp_path / "data", PRESETS["ucf101"], workers=1)
    assert [e.split for e in manifest.videos] == ["train", "train", "test", "unused"]  # every tenth, as published


# --- the command line, and training -----------------------------------------------------------------------------------


def test_the_commands(mixed: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    data, png = str(tmp_path / "data"), tmp_path / "clips.png"
    words = ["data", "prepare", str(mixed), data, "--size", "16", "16", "--workers", "1", "--split-by", "folder"]
    assert main(words) == 0
    said = capsys.readouterr().out
    assert "11 videos" in said or ("train" in said and "test" in said)
    assert "left out: " in said
    assert main(["data", "info", data, "--sheet", str(png), "--frames", "4", "--clips", "2"]) == 0
    assert png.is_file()
    assert main(["data", "info", str(tmp_path / "gone")]) == 1
    assert "gone does not exist" in capsys.readouterr().err
    assert main(["data", "prepare", str(mixed), data, "--layout", "kth"]) == 1
    assert "person01_boxing" in capsys.readouterr().err


def test_prepared_data_that_a_recipe_would_have_otherwise_are_taken_with_a_note(tmp_path: Path) -> None:
    write_video(tmp_path / "raw" / "a.npz", clip(9))
    prepare(tmp_path / "raw", tmp_path / "data", replace(SMALL, fps=10))

    def said(settings: Settings) -> list[str]:
        lines: list[str] = []
        assert prepared_data(tmp_path / "data", settings, lines.append) == tmp_path / "data"
        return lines

    assert said(SMALL) == said(replace(SMALL, fps=10)) == []  # a recipe need not name a rate
    note = f"note: {tmp_path / 'data'} was prepared with"
    assert said(replace(SMALL, fps=5)) == [f"{note} fps 10, not 5, and is used as it is"]
    assert said(PRESETS["kth"]) == [f"{note} layout videos, not kth, and is used as it is"]
    assert said(replace(SMALL, fit="stretch", split_by="folder")) == [
        f"{note} {key}, and is used as it is" for key in ("fit crop, not stretch", "split_by auto, not folder")
    ]


def test_training_prepares_raw_videos_once_in_the_cache(
    mixed: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MCVD_CACHE", str(tmp_path / "cache"))
    network = UNetConfig(size=(16, 16), channels=3, layout=BlockLayout(2, 2, 1))
    recipe = Recipe(model=ModelConfig(network=network), data=DataConfig("videos", str(mixed), flip=True))
    lines: list[str] = []
    device = torch.device("cpu")
    train_clips = clip_source(recipe, "train", device, lines.append)
    assert train_clips.batch(range(4)).shape == (4, 5, 3, 16, 16)
    (folder,) = (tmp_path / "cache" / "prepared").iterdir()
    lines = [line for line in lines if not line.startswith("preparing ")]  # every so often on a slow machine
    assert len(lines) == 1
    assert f"11 videos, 114 frames of {mixed} are prepared in {folder}; 5 left out (broken.mp4, " in lines[0]
    made = contents(folder)
    test = clip_source(recipe, "test", device, lines.append)
    assert len(lines) == 1
    assert torch.equal(test.batch(range(64)), test.batch(range(64, 128)))  # fixed ones
    assert contents(folder) == made
    # the prepared folder itself, and other videos: no new preparation, and one of its own
    direct = clip_source(replace(recipe, data=DataConfig("videos", str(folder), flip=True)), "train", device)
    assert torch.equal(direct.batch(range(4)), train_clips.batch(range(4)))
    clip_source(replace(recipe, data=DataConfig("videos", str(mixed / "c.npz"))), "train", device, lines.append)
    assert len(list((tmp_path / "cache" / "prepared").iterdir())) == 2
    with pytest.raises(McvdError, match="--data FOLDER"):
        clip_source(replace(recipe, data=DataConfig("videos")), "train", device)


def test_recipes_of_the_paper_train_on_the_published_side_of_the_split(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MCVD_CACHE", str(tmp_path / "cache"))
    for person in (1, 20, 21, 25):
        name = f"person{person:02d}_boxing_d1_uncomp.avi"
        write_video(tmp_path / "kth" / name, clip(20, 12, 16, seed=person, channels=1), scale=1)
    recipe = override(read_recipe("kth-concat"), {"data.path": str(tmp_path / "kth")}, "here")
    for split, persons in (("train", {"person01", "person20"}), ("test", {"person21", "person25"})):
        source = clip_source(recipe, split, torch.device("cpu"), lambda line: None)
        assert isinstance(source, Shards)
        assert {source.all_videos[i].group for i in source.videos} == persons
    (folder,) = (tmp_path / "cache" / "prepared").iterdir()  # decoded as its evaluation has it: the same folder
    settings = settings_for("kth", (64, 64), 1)
    assert prepared_data(tmp_path / "kth", settings, lambda line: None) == folder
    for name in recipe_names():
        layout = read_recipe(name).data.layout
        assert layout == next((known for known in PRESETS if name.startswith(f"{known}-")), "videos")


def test_validation_videos_are_preferred_for_validation(tmp_path: Path) -> None:
    for i, split in enumerate(("train", "val", "test")):
        frames = torch.full((6, 3, 16, 16), i, dtype=torch.uint8)
        write_video(tmp_path / "raw" / split / "a.npz", frames)
    prepare(tmp_path / "raw", tmp_path / "data", SMALL)
    network = UNetConfig(size=(16, 16), channels=3, layout=BlockLayout(2, 2, 1))
    recipe = Recipe(model=ModelConfig(network=network), data=DataConfig("videos", str(tmp_path / "data")))
    assert set(clip_source(recipe, "test", torch.device("cpu")).batch(range(8)).flatten().tolist()) == {1}


# --- real files, and the hub ------------------------------------------------------------------------------------------


def test_real_sequences_are_split_by_person(assets_dir: Path, tmp_path: Path) -> None:
    settings = Settings(split_by=r"person(\d+)", test_share=0.3)
    items, _ = find_items(assets_dir / "sequences" / "actions64.npz")
    assert len(items) == 36
    from mcvd.data.splits import assign_splits

    with warnings.catch_warnings():
        splits = assign_splits([item.name for item in items], settings.split_by, test_share=0.3)
    assert len({group for _, group in splits}) == 9
    assert not {g for s, g in splits if s == "train"} & {g for s, g in splits if s == "test"}


def test_a_changed_byte_in_a_tar_file_is_found_by_its_checksum(tmp_path: Path) -> None:
    (tmp_path / "plain.bin").write_bytes(bytes(range(256)) * 100)
    with tarfile.open(tmp_path / "all.tar.gz", "w:gz", compresslevel=0) as tar:
        tar.add(tmp_path / "plain.bin", "plain.bin")
    data = (tmp_path / "all.tar.gz").read_bytes()
    at = data.index(bytes(range(256)))
    (tmp_path / "all.tar.gz").write_bytes(data[:at] + b"\x01" + data[at + 1 :])
    with pytest.raises(McvdError, match="cannot unpack .*all.tar.gz .*CRC"):
        hub.unpack(tmp_path / "all.tar.gz")
    assert not (tmp_path / "all").exists()


@pytest.mark.parametrize("filters", [True, False])
def test_mirrors_are_fetched_and_unpacked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, filters: bool) -> None:
    import huggingface_hub

    if not filters:  # Python before 3.11.4
        monkeypatch.delattr(tarfile, "data_filter", raising=False)
    asked = []

    def download(repo_id, *, repo_type, local_dir):
        asked.append((repo_id, repo_type))
        local_dir.mkdir(parents=True, exist_ok=True)
        for seed, name in enumerate("ab"):
            write_video(tmp_path / f"{name}.npz", clip(5, seed=seed))
        with zipfile.ZipFile(local_dir / "train.zip", "w") as archive:
            archive.write(tmp_path / "a.npz", "train/a.npz")
        with tarfile.open(local_dir / "test.tar.gz", "w:gz") as tar:
            tar.add(tmp_path / "b.npz", "test/b.npz")

    monkeypatch.setattr(huggingface_hub, "snapshot_download", download)
    folder = hub.fetch_mirror("bair", tmp_path / "bair")
    assert asked == [("guyuchao/BAIR", "dataset")]
    manifest = prepare(folder, tmp_path / "data", SMALL, workers=1)
    assert [(e.source, e.split) for e in manifest.videos] == [
        ("test/test/b.npz", "test"),
        ("train/train/a.npz", "train"),
    ]
    hub.fetch_mirror("bair", tmp_path / "bair")  # again: nothing is unpacked twice
    with pytest.raises(McvdError, match="no mirror of kth is known; known ones: bair, ucf101"):
        hub.fetch_mirror("kth")
    monkeypatch.setattr(huggingface_hub, "snapshot_download", lambda *a, **k: 1 / 0)
    with pytest.raises(McvdError, match="cannot get guyuchao/UCF101 from the hub .division by zero"):
        hub.fetch_mirror("ucf101", tmp_path / "ucf")
    (tmp_path / "bad.zip").write_bytes(b"no zip")
    with pytest.raises(McvdError, match="cannot unpack .*bad.zip"):
        hub.unpack(tmp_path / "bad.zip")
    (tmp_path / "plain.bin").write_bytes(bytes(range(256)) * 100)
    for name, mode in (("bad.zip", ""), ("bad.tar.gz", "w:gz"), ("bad.tar.xz", "w:xz")):  # damaged in the middle
        if mode:
            packed(tmp_path / name, tmp_path, ["plain.bin"], mode)
        else:
            with zipfile.ZipFile(tmp_path / name, "w", zipfile.ZIP_DEFLATED) as archive:
                archive.write(tmp_path / "plain.bin", "plain.bin")
        data = bytearray((tmp_path / name).read_bytes())
        start = data.index(b"plain.bin") + 9 if name == "bad.zip" else len(data) // 3
        data[start : start + 8] = b"\xff" * 8
        (tmp_path / name).write_bytes(data)
        with pytest.raises(McvdError, match=f"cannot unpack .*{name}"):
            hub.unpack(tmp_path / name)
    with tarfile.open(tmp_path / "bad.tar", "w") as tar:
        tar.add(tmp_path / "a.npz", "../outside.npz")
    with pytest.raises(McvdError, match="cannot unpack .*bad.tar .*outside"):
        hub.unpack(tmp_path / "bad.tar")
    assert not list(tmp_path.glob(".bad*"))
    assert not (tmp_path / "outside.npz").exists()
