"""The authors' HDF5 shards: files in their layout, written here, and the published rules of who is for what."""

from __future__ import annotations

import pickle
from pathlib import Path

import numpy as np
import pytest
import torch

from mcvd.data import hdf5
from mcvd.data.hdf5 import Hdf5Shards, hdf5_shards
from mcvd.data.prepare import Settings, data_sheet, info, prepare
from mcvd.data.shards import Shards, read_manifest
from mcvd.errors import McvdError

h5py = pytest.importorskip("h5py")


def write_shard(path: Path, videos: list[np.ndarray], persons: list[int] | None = None, num_train: int | None = None,
                num_test: int | None = None, empty: str = "") -> None:  # fmt: skip
    """The layout of REFERENCE: len/<i>, <i>/<j>, and what each data set adds."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with h5py.File(path, "w") as shard:
        for i, video in enumerate(videos):
            shard[f"len/{i}"] = len(video)
            for j, frame in enumerate(video):
                shard.create_dataset(f"{i}/{j}", data=frame, compression="lzf")
            if persons is not None:
                shard.create_dataset(f"person/{i}", data=persons[i], dtype=np.uint8)
                shard.create_dataset(f"target/{i}", data=i % 6, dtype=np.uint8)
        if num_train is not None:
            shard["num_train"] = num_train
            shard["num_test"] = len(videos) - num_train if num_test is None else num_test
        if empty:
            shard.create_group(empty)


def numbered(video: int, frames: int, shape: tuple[int, ...]) -> np.ndarray:
    """Every frame knows its video (first pixel) and its number (the others)."""
    out = np.tile(np.arange(frames, dtype=np.uint8).reshape(-1, *[1] * len(shape)), (1, *shape))
    out[:, 0, 0] = video
    return out


@pytest.fixture
def kth(tmp_path: Path) -> Path:
    persons = [1, 20, 21, 25, 7, 22]
    videos = [numbered(i, 12 + i, (16, 16)) for i in range(6)]
    write_shard(tmp_path / "kth" / "shard_0001.hdf5", videos, persons)
    (tmp_path / "kth" / "persons.pkl").write_bytes(pickle.dumps({"never": "opened"}))
    return tmp_path / "kth"


def seen(clips: torch.Tensor) -> set[int]:
    return set(clips[:, 0, 0, 0, 0].tolist())


def test_kth_is_split_by_the_persons_in_the_shard(kth: Path) -> None:
    train, test = (Hdf5Shards(kth, 5, split=split) for split in ("train", "test"))
    assert seen(train.batch(range(60))) == {0, 1, 4}
    clips = test.batch(range(60))
    assert seen(clips) == {2, 3, 5}
    assert clips.shape == (60, 5, 1, 16, 16)
    assert (clips[..., 3, 3].int().diff(dim=1) == 1).all()
    far = Hdf5Shards(kth, 4, split="test", stride=3).batch(range(60))
    assert (far[..., 3, 3].int().diff(dim=1) == 3).all()
    assert {video.group for video in train.all_videos} == {f"person{p:02d}" for p in (1, 20, 21, 25, 7, 22)}
    assert torch.equal(pickle.loads(pickle.dumps(test)).batch([4]), clips[4:5])


def test_ucf_takes_the_first_videos_and_one_of_each_whole_ten_of_the_rest(tmp_path: Path) -> None:
    videos = [numbered(i, 6, (16, 21, 3)) for i in range(8 + 35)]  # the last five are no ten
    write_shard(tmp_path / "UCF101_64.hdf5", videos, num_train=8, empty="data")
    train = Hdf5Shards(tmp_path / "UCF101_64.hdf5", 4)
    assert train.videos == list(range(8))
    test = Hdf5Shards(tmp_path / "UCF101_64.hdf5", 4, split="test", size=(16, 16), fixed=3)
    assert test.videos == [8, 18, 28]
    assert test.batch(range(3)).shape == (3, 4, 3, 16, 16)
    assert [test.place(i).left for i in range(3)] == [2, 2, 2]  # the middle


def test_ucf_in_several_shards_says_once_who_is_for_what(tmp_path: Path) -> None:
    """43 videos, 16 to a shard; the numbers are in the first, and count through all of them."""
    ucf = tmp_path / "ucf"
    videos = [numbered(i, 6, (16, 21, 3)) for i in range(8 + 35)]
    for number in range(3):
        counts = {} if number else {"num_train": 8, "num_test": 35}
        path = ucf / f"shard_{number + 1:04d}.hdf5"
        write_shard(path, videos[16 * number :][:16], empty="target", **counts)
    for split, wanted in (("train", [*range(8)]), ("test", [8, 18, 28])):
        clips = Hdf5Shards(ucf, 4, split=split, fixed=len(wanted))
        assert clips.batch(range(len(wanted)))[:, 0, 0, 0, 0].tolist() == wanted
    prepare(ucf, tmp_path / "data", Settings(size=(16, 21)), workers=1)
    sides = {entry.source: entry.split for entry in read_manifest(tmp_path / "data").videos}
    assert [name for name, split in sides.items() if split == "test"] == [
        "shard_0001.hdf5#8", "shard_0002.hdf5#2", "shard_0002.hdf5#12"
    ]  # fmt: skip
    assert list(sides.values()).count("train") == 8
    write_shard(tmp_path / "cut.hdf5", videos[:3], num_train=1)
    with h5py.File(tmp_path / "cut.hdf5", "a") as shard:
        del shard["num_test"]
    with pytest.raises(McvdError, match="no num_test"):
        Hdf5Shards(tmp_path / "cut.hdf5", 4)


def test_bair_has_folders_and_several_shards(tmp_path: Path) -> None:
    for split, number, first, count in (("train", 1, 0, 11), ("train", 2, 11, 3), ("test", 1, 50, 2)):
        videos = [numbered(first + i, 30, (8, 8, 3)) for i in range(count)]
        write_shard(tmp_path / split / f"shard_{number:04d}.hdf5", videos, empty="videos")
    train, test = (Hdf5Shards(tmp_path, 30, split=split) for split in ("train", "test"))
    assert seen(train.batch(range(200))) == set(range(14))  # video 10 comes after 9, not after 1
    assert len(train.videos) == 14
    assert seen(test.batch(range(20))) == {50, 51}


def test_every_shard_is_opened_once_to_list_its_videos(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for number in range(3):
        write_shard(tmp_path / f"shard_{number}.hdf5", [numbered(i, 5, (8, 8, 3)) for i in range(2)])
    opened: list[Path] = []
    monkeypatch.setattr(hdf5, "open_shard", lambda file, real=hdf5.open_shard: opened.append(file) or real(file))
    videos, _, shape = hdf5.stored_videos(tmp_path)
    assert opened == hdf5_shards(tmp_path)
    assert ([video.frames for video in videos], shape) == ([5] * 6, (8, 8, 3))
    # of UCF-101, whose numbers are in the first shard and count through all, every other once more
    for number in range(7):
        counts = {} if number else {"num_train": 4, "num_test": 10}
        write_shard(tmp_path / "ucf" / f"{number}.h5", [numbered(i, 5, (8, 8, 3)) for i in range(2)],
                    empty="target", **counts)  # fmt: skip
    opened.clear()
    assert [video.split for video in hdf5.stored_videos(tmp_path / "ucf")[0]].count("train") == 4
    assert len(opened) == 2 * 7 - 1


def test_a_first_video_without_frames_is_left_out(tmp_path: Path) -> None:
    # the published conversion writes one where it could not decode a file
    empty = np.zeros((0, 8, 8, 3), np.uint8)
    write_shard(tmp_path / "shard.hdf5", [empty, *(numbered(i, 6, (8, 8, 3)) for i in (1, 2))])
    with pytest.warns(UserWarning, match=r"shard.hdf5#0 \(0\)"):
        clips = [Hdf5Shards(tmp_path, 4, split=split) for split in ("train", "test")]
    assert seen(torch.cat([some.batch(range(20)) for some in clips])) == {1, 2}
    write_shard(tmp_path / "none" / "shard.hdf5", [empty])
    with pytest.raises(McvdError, match="holds no video"):
        Hdf5Shards(tmp_path / "none", 4)


def test_a_test_side_alone_can_be_looked_at(tmp_path: Path) -> None:
    write_shard(tmp_path / "test" / "shard_0001.hdf5", [numbered(i, 5, (8, 8, 3)) for i in range(3)])
    assert [(name, part.videos) for name, part in info(tmp_path).splits.items()] == [("test", 3)]
    assert data_sheet(tmp_path, clips=3, split="test").width > 5 * 64


def test_other_shards_hold_out_some_videos(tmp_path: Path) -> None:
    write_shard(tmp_path / "shard_0001.hdf5", [numbered(i, 5, (8, 8, 3)) for i in range(30)])
    train, test = (Hdf5Shards(tmp_path, 5, split=split) for split in ("train", "test"))
    assert not set(train.videos) & set(test.videos)
    assert len(train.videos) + len(test.videos) == 30


def test_shards_can_be_prepared_and_give_the_same_frames(kth: Path, tmp_path: Path) -> None:
    prepare(kth, tmp_path / "data", Settings(size=(16, 16), channels=1), workers=1)
    assert {e.group: e.split for e in read_manifest(tmp_path / "data").videos}["person21"] == "test"
    for split in ("train", "test"):
        direct, prepared = (kind(path, 5, split=split, fixed=9)
                            for kind, path in ((Hdf5Shards, kth), (Shards, tmp_path / "data")))  # fmt: skip
        assert torch.equal(direct.batch(range(9)), prepared.batch(range(9)))
    found = info(kth)
    assert (found.kind, found.stored) == ("hdf5", (16, 16, 1))
    assert (found.splits["train"].videos, found.splits["test"].videos) == (3, 3)
    data_sheet(kth, tmp_path / "sheet.png", clips=2, frames=4)


def test_shards_of_one_side_alone_are_described(tmp_path: Path) -> None:
    write_shard(tmp_path / "shard_0005.hdf5", [numbered(i, 6, (8, 8)) for i in range(2)], persons=[21, 24])
    found = info(tmp_path)
    assert {name: (side.videos, side.frames) for name, side in found.splits.items()} == {"test": (2, 12)}


def test_what_is_wrong_is_one_line(kth: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(McvdError, match="holds no HDF5 shard"):
        Hdf5Shards(tmp_path / "nothing", 5)
    (tmp_path / "bad.hdf5").write_bytes(b"not hdf5" * 100)
    with pytest.raises(McvdError, match="bad.hdf5 is damaged, or not an HDF5 file"):
        Hdf5Shards(tmp_path / "bad.hdf5", 5)
    with h5py.File(tmp_path / "other.h5", "w") as other:
        other["data"] = np.zeros(3)
    with pytest.raises(McvdError, match="not a shard of the published system"):
        Hdf5Shards(tmp_path / "other.h5", 5)
    with h5py.File(kth / "shard_0001.hdf5", "a") as shard:
        del shard["0/3"]
    with pytest.raises(McvdError, match="no frame 3 of video 0"):
        Hdf5Shards(kth, 12).batch(range(40))
    with h5py.File(kth / "shard_0002.hdf5", "w") as shard:
        shard["len/0"] = 5
        shard.create_group("person")
    for read in (lambda: Hdf5Shards(kth, 5), lambda: info(kth)):
        with pytest.raises(McvdError, match=r"shard_0002.hdf5 is damaged \("):
            read()
    manifest = prepare(kth, tmp_path / "data", Settings(size=(16, 16)), workers=1)
    assert "shard_0002.hdf5" in {entry.source for entry in manifest.skipped}
    assert len(manifest.videos) == 5
    (kth / "shard_0002.hdf5").unlink()
    for name, frame, says in (
        (
            "float",
            np.zeros((8, 8, 3), np.float32),
            r"frame 1 of video 0 in .*h5 is float32 \(8, 8, 3\), not uint8",
        ),
        ("flat", np.zeros(64, np.uint8), r"is uint8 \(64,\), not uint8"),
        ("large", np.zeros((9, 8, 3), np.uint8), r"video 0 of .*large.h5 has frames of another size than \(8, 8, 3\)"),
    ):
        write_shard(tmp_path / f"{name}.h5", [[np.zeros((8, 8, 3), np.uint8), frame]])  # type: ignore[list-item]
        with pytest.raises(McvdError, match=says):
            Hdf5Shards(tmp_path / f"{name}.h5", 2).batch([0])
    (kth / ".DS_Store").write_bytes(b"")
    (kth / ".clip.mp4").write_bytes(b"")
    (kth / "run" / "samples").mkdir(parents=True)
    (kth / "run" / "recipe.yaml").write_text("")
    (kth / "run" / "samples" / "0.gif").write_bytes(b"")
    assert hdf5_shards(kth) == [kth / "shard_0001.hdf5"]  # neither hidden files nor a run of ours are data beside them
    (kth / "clip.mp4").write_bytes(b"")
    assert hdf5_shards(kth) == []  # videos beside shards would be forgotten: then all goes through `prepare`
    monkeypatch.setitem(__import__("sys").modules, "h5py", None)
    with pytest.raises(McvdError, match=r"needs h5py: pip install 'mcvd\[hdf5\]'"):
        Hdf5Shards(kth / "shard_0001.hdf5", 5)
