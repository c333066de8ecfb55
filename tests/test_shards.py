"""Prepared data sets: what is read back, clip by clip, and who is on which side of the split."""

from __future__ import annotations

import json
import pickle
import warnings
from pathlib import Path

import numpy as np
import pytest
import torch

from mcvd.data.clips import Clips, StoredVideo, published_starts
from mcvd.data.prepare import Settings, data_sheet, info, prepare
from mcvd.data.shards import MANIFEST, Shards, read_manifest, shard_path
from mcvd.data.splits import assign_splits
from mcvd.data.video import write_video
from mcvd.errors import McvdError

NUMBERED = Settings(size=(16, 16), channels=1, test_share=0.0)


def numbered(video: int, frames: int, side: int = 16) -> torch.Tensor:
    """Frame i has the value 40 video + i, but for a brighter left column."""
    out = (40 * video + torch.arange(frames))[:, None, None, None].repeat(1, 1, side, side)
    out[..., 0] = 255
    return out.to(torch.uint8)


@pytest.fixture
def data(tmp_path: Path) -> Path:
    """Three numbered videos of 10, 11 and 12 frames, prepared into shards that hold two at most."""
    for video in range(3):
        write_video(tmp_path / "raw" / f"{video}.npz", numbered(video, 10 + video))
    prepare(tmp_path / "raw", tmp_path / "data", NUMBERED, shard_bytes=22 * 256)
    return tmp_path / "data"


# --- the format -------------------------------------------------------------------------------------------------------


def test_a_shard_is_a_plain_array_and_the_manifest_says_where_everything_is(data: Path) -> None:
    manifest = read_manifest(data)
    assert [(e.source, e.shard, e.offset, e.frames) for e in manifest.videos] == [
        ("0.npz", 0, 0, 10),
        ("1.npz", 0, 10, 11),
        ("2.npz", 1, 0, 12),
    ]
    first = np.load(shard_path(data, 0))
    assert first.shape == (21, 16, 16, 1)
    assert first[:, 5, 5, 0].tolist() == [*range(10), *range(40, 51)]
    assert len(list((data / "shards").iterdir())) == 2
    head, *lines = (data / MANIFEST).read_text().splitlines()
    assert json.loads(head)["lines"] == len(lines) == 3
    assert not (data / "work").exists()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda text: text[: text.rindex("{")], "damaged .2 of 3 lines"),
        (lambda text: text[: len(text) // 2], "damaged"),
        (lambda text: text.replace('"mcvd_data": 1', '"mcvd_data": 9'), "update mcvd"),
        (lambda text: text.replace('"frames"', '"pictures"'), "damaged"),
        (lambda text: "", "damaged"),
    ],
)
def test_a_damaged_manifest_is_one_line(data: Path, change, message: str) -> None:
    path = data / MANIFEST
    path.write_text(change(path.read_text()))
    with pytest.raises(McvdError, match=message):
        Shards(data, 4)


def test_a_damaged_shard_is_one_line(data: Path) -> None:
    path = shard_path(data, 1)
    path.write_bytes(path.read_bytes()[:-500])
    with pytest.raises(McvdError, match="00001.npy is missing or damaged"):
        Shards(data, 4).batch(range(40))
    np.save(path, np.zeros((3, 16, 16, 1), np.uint8))
    with pytest.raises(McvdError, match="not 12 frames"):
        Shards(data, 4).batch(range(40))
    with pytest.raises(McvdError, match="not a prepared data set"):
        Shards(data.parent, 4)


# --- clips ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("stride", [1, 3])
def test_clips_are_frames_of_one_video_and_every_start_comes(data: Path, stride: int) -> None:
    shards = Shards(data, 3, stride=stride)
    values = shards.batch(range(400))[:, :, 0, 5, 5].int()
    assert (values.diff(dim=1) == stride).all()
    span = 2 * stride
    assert set(values[:, 0].tolist()) == {40 * v + s for v in range(3) for s in range(10 + v - span)}
    assert len(shards) == sum(10 + v - span for v in range(3))


def test_the_default_device_does_not_matter_to_clips(data: Path) -> None:
    """It is often a GPU; here the one that holds no contents, so that anything left on it shows."""
    clips, starts = Shards(data, 4, flip=True).batch(range(40)), published_starts([5, 9, 1, 7], 3)
    with torch.device("meta"):
        assert torch.equal(Shards(data, 4, flip=True).batch(range(40)), clips)
        assert published_starts([5, 9, 1, 7], 3) == starts


def test_long_videos_come_more_often() -> None:
    class Two(Clips):
        def _read(self, video: int, start: int) -> np.ndarray:
            return np.full((self.frames, 4, 4, 1), video, np.uint8)

    videos = [StoredVideo("a", 13, "train", "a"), StoredVideo("b", 94, "train", "b")]
    drawn = Two(videos, (4, 4, 1), 5).batch(range(2000))[:, 0, 0, 0, 0]
    assert drawn.float().mean().item() == pytest.approx(90 / 99, abs=0.02)


def test_a_clip_is_a_function_of_seed_and_position(data: Path) -> None:
    first, again = Shards(data, 4, seed=1, flip=True), Shards(data, 4, seed=1, flip=True)
    clips = first.batch(range(12))
    assert clips.shape == (12, 4, 1, 16, 16)
    assert clips.dtype == torch.uint8
    assert clips.is_contiguous()
    assert torch.equal(again.batch(torch.arange(6, 12)), clips[6:])
    assert torch.equal(pickle.loads(pickle.dumps(first)).batch([3]), clips[3:4])
    assert len(pickle.dumps(first)) < 5000  # no frames in it
    assert not torch.equal(Shards(data, 4, seed=2, flip=True).batch(range(12)), clips)


@pytest.mark.parametrize("wrong", [{"frames": 2.5}, {"stride": 0}, {"stride": 1.5}, {"fixed": 0}, {"seed": None}])
def test_counts_that_are_none_are_refused(data: Path, wrong: dict) -> None:
    with pytest.raises(McvdError, match=f"{next(iter(wrong))} is {next(iter(wrong.values()))}; it must be"):
        Shards(data, **{"frames": 3, **wrong})


def test_flip_mirrors_half_of_the_clips_as_a_whole(data: Path) -> None:
    plain, flipped = Shards(data, 4).batch(range(200)), Shards(data, 4, flip=True).batch(range(200))
    mirrored = [torch.equal(a.flip(-1), b) for a, b in zip(plain, flipped)]
    kept = [torch.equal(a, b) for a, b in zip(plain, flipped)]
    assert sum(mirrored) + sum(kept) == 200
    assert 70 < sum(mirrored) < 130


def test_larger_frames_are_cut_once_for_a_clip_at_random_and_in_the_middle_for_test(tmp_path: Path) -> None:
    # each pixel tells its column
    frames = torch.arange(21).expand(6, 1, 16, 21).to(torch.uint8)
    write_video(tmp_path / "raw" / "a.npz", frames)
    prepare(tmp_path / "raw", tmp_path / "data", Settings(size=(16, 21), channels=1))
    clips = Shards(tmp_path / "data", 4, size=(16, 16)).batch(range(100))
    left = clips[..., 0]
    assert (left == left[:, :1, :, :1]).all()
    assert set(left.flatten().tolist()) == {0, 1, 2, 3, 4, 5}
    assert (clips.int().diff(dim=-1) == 1).all()
    fixed = Shards(tmp_path / "data", 4, size=(16, 16), fixed=3).batch(range(3))
    assert set(fixed[..., 0].flatten().tolist()) == {2}
    with pytest.raises(McvdError, match="frames of 21x16, grey; 32x32, grey"):
        Shards(tmp_path / "data", 4, size=(32, 32))
    with pytest.raises(McvdError, match="21x16, RGB, are needed"):
        Shards(tmp_path / "data", 4, channels=3)


def test_fixed_clips_are_spread_and_never_change(data: Path) -> None:
    few = Shards(data, 4, fixed=2, seed=0).batch(range(2))[:, 0, 0, 5, 5]
    assert few.tolist() == [0, 80]  # the first and the last video, from their beginning
    many = [Shards(data, 4, fixed=20, flip=True, seed=seed) for seed in (0, 5)]
    clips = many[0].batch(range(20))
    assert torch.equal(clips, many[1].batch(range(20)))
    assert torch.equal(clips[:5], many[0].batch(range(20, 25)))
    starts = clips[:, 0, 0, 5, 5].tolist()
    for video in range(3):
        mine = [value - 40 * video for value in starts if 40 * video <= value < 40 * video + 40]
        assert mine == sorted(mine)
        assert (mine[0], mine[-1]) == (0, 6 + video)
    # the published rule: which of 120 videos are the 256 test clips
    videos = [StoredVideo(str(i), 20, "test", str(i)) for i in range(120)]
    places = [Clips(videos, (1, 1, 1), 5, split="test", fixed=256).place(i).video for i in range(256)]
    assert places == [round(i / 255 * 119) for i in range(256)]
    # those of KTH are sorted by persons, as published; a prepared folder lists them by their actions
    videos = [
        StoredVideo(f"{a}/person{p}.avi", 20, "test", f"person{p}") for a in ("boxing", "walking") for p in (21, 22)
    ]
    places = [Clips(videos, (1, 1, 1), 5, split="test", fixed=4).place(i).video for i in range(4)]
    assert places == [0, 2, 1, 3]


def test_short_videos_are_named_and_left_out(data: Path) -> None:
    short = r"1 of 3 videos for train .*shorter than a clip \(11 frames\): 0.npz \(10\); left out"
    with pytest.warns(UserWarning, match=short):
        shards = Shards(data, 11)
    assert len(shards) == 1 + 2
    none = (
        "no video for train in .*data is as long as a clip, 19 frames .*of 3 has 12; take longer videos, clips of fewer"
    )
    with pytest.raises(McvdError, match=none):
        Shards(data, 7, stride=3)


def test_where_another_side_of_the_split_holds_longer_videos_the_error_says_so() -> None:
    videos = [StoredVideo("a", 4, "train", "a"), StoredVideo("b", 6, "train", "b"), StoredVideo("c", 30, "test", "c")]
    text = "no video for train in here .* 7 frames .*longest of 2 has 6; one of 30 is for test: sort the videos into"
    with pytest.raises(McvdError, match=text):
        Clips(videos, (1, 1, 1), 7, where="here")
    assert len(Clips(videos, (1, 1, 1), 7, where="here", split="test")) == 24
    with pytest.raises(McvdError, match="one of 30 is for test"):  # just long enough
        Clips(videos, (1, 1, 1), 30, where="here")


def test_a_missing_split_is_an_error_but_one_video_serves_for_both(data: Path, tmp_path: Path) -> None:
    with pytest.raises(McvdError, match=r"no video for test, only \{'train': 3\}"):
        Shards(data, 4, split="test")
    write_video(tmp_path / "one.npz", numbered(0, 9))
    prepare(tmp_path / "one.npz", tmp_path / "one", NUMBERED)
    with pytest.warns(UserWarning, match="the same as training"):
        assert len(Shards(tmp_path / "one", 4, split="test", fixed=2)) == 6
    pair = [StoredVideo(name, 9, "train", "one person") for name in "ab"]
    with pytest.warns(UserWarning, match="one group of videos, so 'test' is the same as training"):
        assert len(Clips(pair, (1, 1, 1), 4, split="test")) == 12


# --- splits -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("count", [2, 3, 8, 40, 300])
def test_splits_are_of_whole_groups_and_stay_when_videos_are_added(count: int) -> None:
    names = [f"person{i}_{action}.avi" for i in range(count) for action in ("run", "walk")]
    splits = dict(zip(names, assign_splits(names, r"person(\d+)")))
    for i in range(count):
        assert splits[f"person{i}_run.avi"] == splits[f"person{i}_walk.avi"]
    test = {name for name, (split, _) in splits.items() if split == "test"}
    assert 0 < len(test) < max(3, count)
    assert {split for split, _ in splits.values()} == {"train", "test"}
    if count >= 40:
        more = [*names, *(f"person{i}_run.avi" for i in range(count, count + 50))]
        later = dict(zip(more, assign_splits(more, r"person(\d+)")))
        assert all(later[name] == splits[name] for name in names)


def test_only_the_group_held_out_for_want_of_another_makes_room() -> None:
    names = [f"v{i}.mp4" for i in range(60)]
    hashed = dict(zip(names, assign_splits(names)))  # so many that none is forced
    swapped = 0
    for count in range(2, 60):
        before, after = (dict(zip(names, assign_splits(names[:n]))) for n in (count, count + 1))
        moved = [name for name in before if before[name] != after[name]]
        assert all(before[name][0] == "test" and hashed[name][0] == "train" for name in moved)
        swapped += len(moved)
    assert swapped


def test_split_by_folder_file_and_existing_folders() -> None:
    names = ["a/1.mp4", "a/2.mp4", "b/1.mp4", "x.npz#k1", "x.npz#k2"]
    assert [group for _, group in assign_splits(names, "folder")] == ["a", "a", "b", "x.npz", "x.npz"]
    names = ["a/take#1.mp4", "a/take.mp4", "day#1/x.npz#key", "day#1/x.NPZ#other/key"]  # a letter of names, too
    assert [group for _, group in assign_splits(names, "folder")] == ["a", "a", "day#1/x.npz", "day#1/x.NPZ"]
    assert [split for split, _ in assign_splits(["day#1/train/a.mp4", "day#1/test/a.mp4"])] == ["train", "test"]
    assert [group for _, group in assign_splits(names, "file")] == names
    said = ["train/a.mp4", "train/b.mp4", "Test/a.mp4", "validation/sub/c.mp4", "other.mp4"]
    assert [split for split, _ in assign_splits(said)] == ["train", "train", "test", "val", "train"]
    assert [split for split, _ in assign_splits(["train/a.mp4"])] == ["train"]
    shares = [split for split, _ in assign_splits([str(i) for i in range(2000)], test_share=0.2, val_share=0.1)]
    assert shares.count("test") == pytest.approx(400, abs=60)
    assert shares.count("val") == pytest.approx(200, abs=45)


def test_there_is_always_something_to_train_on() -> None:
    for i in range(40):
        assert assign_splits([f"v{i}.mp4"], test_share=0.9) == [("train", f"v{i}.mp4")]
        names = [f"v{j}.mp4" for j in range(i, i + 3)]
        assert {split for split, _ in assign_splits(names, test_share=0.99)} == {"train", "test"}


def test_copies_of_a_video_are_drawn_together() -> None:
    names = [f"v{i}.mp4" for i in range(40)]
    alone = dict(zip(names, assign_splits(names)))
    more = [f"v{i} (1).mp4" for i in range(40)]
    drawn = dict(zip([*names, *more], assign_splits([*names, *more], contents=[str(i) for i in range(40)] * 2)))
    assert all(drawn[name] == drawn[copy] for name, copy in zip(names, more))
    assert all(drawn[name] == alone[name] for name in names if alone[name][0] == "test")  # copies move nothing out
    reverse = assign_splits([*more, *names], contents=[str(i) for i in range(40)] * 2)
    assert dict(zip([*more, *names], reverse)) == drawn
    assert assign_splits(names, contents=names) == assign_splits(names)
    for name in names:  # what is left without videos counts for nothing: these are one group
        assert {split for split, _ in assign_splits([name, f"again/{name}"], contents=["a", "a"])} == {"train"}
    folders = ["train/a.mp4", "test/a.mp4"]  # where folders decide, they do
    assert [split for split, _ in assign_splits(folders, contents=["a", "a"])] == ["train", "test"]


@pytest.mark.parametrize(
    ("split_by", "message"),
    [
        ("person", "expression with a group"),
        ("(", "not a regular expression"),
        (r"person(\d+)", "finds nothing in b.mp4"),
    ],
)
def test_wrong_expressions_are_one_line(split_by: str, message: str) -> None:
    with pytest.raises(McvdError, match=message):
        assign_splits(["person1.mp4", "b.mp4"], split_by)
    with pytest.raises(McvdError, match="less than 1"):
        assign_splits(["a"], test_share=0.6, val_share=0.5)


# --- info -------------------------------------------------------------------------------------------------------------


def test_info_and_sheet(data: Path, tmp_path: Path) -> None:
    found = info(data)
    assert (found.kind, found.stored) == ("prepared", (16, 16, 1))
    train = found.splits["train"]
    assert (train.videos, train.frames, len(train.groups), train.shortest, train.longest) == (3, 33, 3, 10, 12)
    assert found.sizes == {(16, 16): 3}
    assert any("3 videos in 3 groups, 33 frames (10 to 12 a video)" in line for line in found.lines())
    for frames in (0, 1):  # of which nothing is prepared
        np.save(tmp_path / "raw" / f"short{frames}.npy", np.zeros((frames, 16, 16), np.uint8))
    raw = info(tmp_path / "raw")
    assert raw.kind == "raw"
    assert sum(part.frames for part in raw.splits.values()) == 33
    assert sum(part.videos for part in raw.splits.values()) == 3
    assert [name for name, why in raw.skipped if "at least 2 are needed" in why] == ["short0.npy", "short1.npy"]
    sheet = data_sheet(data, tmp_path / "sheet.png", clips=3, frames=5)
    assert (tmp_path / "sheet.png").is_file()
    assert sheet.width > 5 * 64
    # the default 10 frames, of videos that have fewer: as many as there are
    write_video(tmp_path / "7.npz", numbered(0, 7))
    prepare(tmp_path / "7.npz", tmp_path / "short", NUMBERED)
    with pytest.warns(UserWarning, match="holds one group"):
        sizes = [data_sheet(tmp_path / "short", clips=1, frames=n, split="test").size for n in (6, 7, 10)]
    assert sizes[0] != sizes[1] == sizes[2]
    with warnings.catch_warnings(), pytest.raises(McvdError, match="neither a prepared folder"):
        data_sheet(tmp_path / "raw")
