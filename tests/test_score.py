"""`mcvd score`: any videos against real ones, with the numbers that `mcvd evaluate` gives for the same."""

import json
import os
import zipfile
from dataclasses import replace

import numpy as np
import pytest
import torch
from PIL import Image

import tiny
from mcvd.cli.main import main
from mcvd.data.video import write_video
from mcvd.errors import McvdError
from mcvd.evaluation.presets import PRESETS
from mcvd.evaluation.result import Result
from mcvd.evaluation.saved import Evaluation
from mcvd.evaluation.score import score
from mcvd.evaluation.video_sets import find_videos, pair
from test_evaluate import PROTOCOL, STUBS, go

PLAIN = replace(PROTOCOL, name="plain", pixels="plain", binary=False, lpips_size=None)
GENERATE = replace(PLAIN, name="generate", task="generate", past=0, frames=9, samples=1, clips=4)


@pytest.fixture(autouse=True)
def own_cache(tmp_path, monkeypatch):
    monkeypatch.setenv("MCVD_CACHE", str(tmp_path / "cache"))


def measured(real, made, output, protocol=PLAIN, **options):
    lines = []
    options = {"instruments": STUBS, "report": lines.append, **options}
    return score(real, made, protocol, output, **options), lines


def arrays(count, frames=9, samples=None, seed=0):
    shape = (count, *([samples] if samples else []), frames, 16, 16, 1)
    return tiny.video(*shape, seed=seed).numpy()


# --- the same numbers as evaluate -----------------------------------------------------------------------------------


def test_plain_scores_of_evaluated_videos_are_exactly_those_of_evaluate(tmp_path):
    result, _ = go(tiny.model(), tmp_path / "run", PLAIN)
    videos = tmp_path / "run" / "videos"
    again, lines = measured(videos, videos, tmp_path / "again")
    assert again.numbers == result.numbers
    assert again.frames == result.frames
    assert again.data == result.data  # the same pixels
    assert again.system.name == "videos"
    assert not lines[:-1]  # paired by name, complete: nothing to say but the last


def test_one_sample_of_every_clip_is_paired_by_name(tmp_path):
    one = replace(PLAIN, samples=1)
    go(tiny.model(), tmp_path / "run", one)
    _, lines = measured(tmp_path / "run" / "videos", tmp_path / "run" / "videos", tmp_path / "again", one)
    assert not lines[:-1]


def test_published_scores_differ_by_the_rounding_of_what_was_saved(tmp_path):
    result, _ = go(tiny.model(), tmp_path / "run", PROTOCOL)
    again, _ = measured(tmp_path / "run" / "videos", tmp_path / "run" / "videos", tmp_path / "again", PROTOCOL)
    assert again.numbers["psnr"].value != result.numbers["psnr"].value
    assert again.numbers["psnr"].value == pytest.approx(result.numbers["psnr"].value, abs=0.01)  # dB
    assert again.data == result.data


# --- sets -------------------------------------------------------------------------------------------------------------


def test_files_of_every_kind_give_the_same_numbers(tmp_path):
    real, made = arrays(6), arrays(6, samples=2, seed=1)
    for name in ("real", "made", "frames"):
        (tmp_path / name).mkdir()
    np.savez(tmp_path / "real.npz", **{f"clip{i}": clip for i, clip in enumerate(real, 7)})
    np.savez(tmp_path / "made.npz", video=made)  # (N, S, T, H, W, C)
    np.save(tmp_path / "flat.npy", made.reshape(12, 9, 16, 16, 1))
    for i, clip in enumerate(real, 7):
        np.savez(tmp_path / "real" / f"clip{i}.npz", video=clip)
        for j in range(2):
            frames = torch.from_numpy(made[i - 7, j].transpose(0, 3, 1, 2).copy())
            write_video(tmp_path / "made" / f"clip{i}-{j + 1}.mkv", frames)
            write_video(tmp_path / "frames" / f"clip{i}-{j + 1}", frames)
    results = []
    for number, (one, other) in enumerate(
        [("real", "made"), ("real.npz", "frames"), ("real.npz", "made.npz"), ("real", "flat.npy")]
    ):
        result, lines = measured(tmp_path / one, tmp_path / other, tmp_path / f"out{number}")
        assert any("sorted order" in line for line in lines) == (number >= 2)
        results.append(result)
    assert all(result.numbers == results[0].numbers for result in results)
    assert len({result.data for result in results}) == 1


def test_a_video_is_the_images_that_belong_to_it_and_no_other(tmp_path):
    stills = [Image.fromarray(np.full((16, 16), 40 * i, np.uint8)) for i in range(4)]
    for i, still in enumerate(stills):
        still.save(tmp_path / f"{i}.png")
    stills[0].save(tmp_path / "moving.gif", save_all=True, append_images=stills[1:])
    found = {video.name: video.read(1) for video in find_videos(tmp_path, "made")}
    assert found["moving"].shape == (4, 1, 16, 16)
    assert found[tmp_path.name][:, 0, 0, 0].tolist() == [0, 40, 80, 120]
    (alone,) = find_videos(tmp_path / "2.png", "made")
    assert alone.read(1)[:, 0, 0, 0].tolist() == [80]


def test_systems_are_named_by_whole_folder_names(tmp_path):
    for name in ("real", "lr-0.1"):
        (tmp_path / name).mkdir()
        np.save(tmp_path / name / "a.npy", arrays(6))
    result, _ = measured(tmp_path / "real", tmp_path / "lr-0.1", tmp_path / "out", replace(PLAIN, samples=1))
    assert result.system.name == "lr-0.1"


def test_names_decide_before_order(tmp_path):
    for name in ("clip2", "clip10", "clip1"):
        (tmp_path / name).mkdir()
    names = [video.name for video in find_videos(_written(tmp_path / "r", ["b", "a10", "a9"]), "real")]
    assert names == ["a9", "a10", "b"]
    real = find_videos(tmp_path / "r", "real")
    made = find_videos(_written(tmp_path / "m", ["b-1", "a9-1", "a10-1", "a9-2", "b-2", "a10-2"]), "made")
    groups, named = pair(real, made, 2)
    assert named
    assert [[made[i].name for i in group] for group in groups] == [["a9-1", "a9-2"], ["a10-1", "a10-2"], ["b-1", "b-2"]]


@pytest.mark.parametrize("names", [["a", "a-b"], ["a-1", "a-b-1"], ["a-3", "a-b-7"]])
def test_one_sample_may_have_a_number(tmp_path, names):
    real = find_videos(_written(tmp_path / "r", ["a-b", "a"]), "real")
    made = find_videos(_written(tmp_path / "m", names), "made")
    groups, named = pair(real, made, 1)
    assert named
    assert {real[i].name: made[j].name for i, (j,) in enumerate(groups)} == dict(zip(["a", "a-b"], names))


def test_names_with_a_number_mean_the_whole_name_first(tmp_path):
    videos = find_videos(_written(tmp_path / "r", ["a", "a-1"]), "real")
    assert pair(videos, videos, 1) == ([[0], [1]], True)


@pytest.mark.parametrize(
    ("made", "samples", "said"),
    [
        (["a", "c", "x"], 1, "missing: b; too many: x"),
        (["a-1", "a-2", "b-1", "b-3", "c-1", "x-1"], 2, "missing: c-2; too many: x-1"),
        (["a-0", "a-1", "b-0", "b-1", "c-0", "y"], 2, "missing: c-1; too many: y"),
        (["a-1", "a-2", "a-3", "b-1", "c-1", "c-2"], 2, "missing: b-2; too many: a-3"),
        (["a-1", "a-2", "b-1", "c-1", "c-2"], 2, "takes 2 for each real one; missing: b-2$"),
        (["a-1", "b-1", "c-1"], 2, "takes 2 for each real one; --set samples=1 would fit$"),
    ],
)
def test_videos_without_theirs_are_named_not_mispaired(tmp_path, made, samples, said):
    real = find_videos(_written(tmp_path / "r", ["a", "b", "c"]), "real")
    with pytest.raises(McvdError, match=said):
        pair(real, find_videos(_written(tmp_path / "m", made), "made"), samples)


def test_names_of_which_none_is_met_are_paired_in_sorted_order(tmp_path):
    real = find_videos(_written(tmp_path / "r", ["a", "b"]), "real")
    assert pair(real, find_videos(_written(tmp_path / "m", ["x", "y"]), "made"), 1) == ([[0], [1]], False)


def test_names_with_a_number_sign_are_whole(tmp_path):
    clips = torch.from_numpy(arrays(2)).permute(0, 1, 4, 2, 3)
    for i, clip in enumerate(clips, 1):
        write_video(tmp_path / "real" / f"take#{i}", clip)
        write_video(tmp_path / "made" / f"take#{i}.mkv", clip)
    np.savez(tmp_path / "made" / "take#3.npz", one=clips[0].numpy(), two=clips[1].numpy())
    names = [[video.name for video in find_videos(tmp_path / side, "made")] for side in ("real", "made")]
    assert names == [["take#1", "take#2"], ["take#1", "take#2", "take#3#one", "take#3#two"]]


def test_names_that_are_no_text(tmp_path):
    folders = [tmp_path / os.fsdecode(name) for name in (b"real", b"made\xff")]
    for folder in folders:
        folder.mkdir()
        np.save(folder / os.fsdecode(b"a\xfe.npy"), arrays(1)[0])
    one = replace(PLAIN, samples=1, clips=1)
    output = tmp_path / os.fsdecode(b"out\xff")
    result, lines = measured(*folders, output, one)
    assert result.system.name == "made?"
    assert "| made? |" in (output / "result.md").read_text()
    assert Evaluation.load(output).table is not None
    assert main(["report", str(output)]) == 0
    assert not any("sorted order" in line for line in lines)


def _written(folder, names):
    folder.mkdir()
    for i, name in enumerate(names):
        np.savez(folder / f"{name}.npz", video=arrays(1, seed=i)[0])
    return folder


def test_made_frames_alone_get_the_given_ones(tmp_path):
    real, made = arrays(6), arrays(6, samples=2, seed=1)
    whole = made.copy()
    whole[:, :, :2] = real[:, None, :2]
    for name, array in (("real", real), ("whole", whole), ("part", made[:, :, 2:])):
        np.save(tmp_path / f"{name}.npy", array)
    results = [measured(tmp_path / "real.npy", tmp_path / f"{n}.npy", tmp_path / n)[0] for n in ("whole", "part")]
    assert results[0].numbers == results[1].numbers


@pytest.mark.parametrize("protocol", [PLAIN, PROTOCOL])
def test_a_set_against_itself(tmp_path, protocol):
    np.save(tmp_path / "real.npy", arrays(6))
    np.save(tmp_path / "made.npy", arrays(6))
    result, _ = measured(tmp_path / "real.npy", tmp_path / "made.npy", tmp_path / "out", replace(protocol, samples=1))
    assert result.numbers["fvd"].value == pytest.approx(0, abs=1e-9)
    assert result.numbers["ssim"].value == pytest.approx(1)
    assert result.numbers["lpips"].value == 0
    kvd = result.numbers["kvd"]
    assert (kvd.value, kvd.low, kvd.high) == pytest.approx((0, 0, 0), abs=1e-9)
    assert result.numbers["psnr"].value == float("inf")
    assert Result.load(tmp_path / "out") == result
    text = (tmp_path / "out" / "result.json").read_text()
    data = json.loads(text, parse_constant=lambda name: pytest.fail(f"{name} is no JSON"))
    assert data["numbers"]["psnr"]["value"] == "inf"


def test_generation_needs_no_pairs(tmp_path):
    np.save(tmp_path / "real.npy", arrays(5, frames=12))
    np.save(tmp_path / "made.npy", arrays(4, seed=1))
    result, lines = measured(tmp_path / "real.npy", tmp_path / "made.npy", tmp_path / "out", GENERATE)
    assert set(result.numbers) == {"fvd", "kvd"}
    assert "measuring the first 4 of 5 real and 4 of 4 generated videos" in lines
    assert any("real videos are longer than a clip" in line for line in lines)
    assert result.complete
    assert (len(result.sources), result.videos) == (4, 4)  # those that were measured


def test_of_longer_real_videos_the_first_frames_count(tmp_path):
    real = arrays(6, frames=12)
    np.save(tmp_path / "real.npy", real)
    np.save(tmp_path / "made.npy", real[:, :9])
    one = replace(PLAIN, samples=1)
    result, _ = measured(tmp_path / "real.npy", tmp_path / "made.npy", tmp_path / "out", one, metrics=["ssim"])
    assert result.numbers["ssim"].value == pytest.approx(1)


def test_an_incomplete_set_says_so(tmp_path):
    np.save(tmp_path / "real.npy", arrays(3))
    np.save(tmp_path / "made.npy", arrays(3, samples=2, seed=1))
    result, lines = measured(tmp_path / "real.npy", tmp_path / "made.npy", tmp_path / "out")
    assert not result.complete
    assert any("3 clips of the 6" in line for line in lines)
    assert "Incomplete: 3 of 6 clips" in (tmp_path / "out" / "result.md").read_text()


def test_a_caption_describes_what_was_measured_and_nothing_else(tmp_path):
    real, made = tmp_path / "real.npy", tmp_path / "made.npy"
    np.save(real, arrays(6))
    np.save(made, arrays(6, samples=2, seed=1))
    said = {}
    for metrics in ("psnr", "psnr,lpips", "kvd", "psnr,ssim,lpips,fvd"):
        result, _ = measured(real, made, tmp_path / metrics, metrics=metrics.split(","))
        said[metrics] = (tmp_path / metrics / "result.md").read_text()
        assert result.words in said[metrics]
    assert "each; PSNR of plain 8-bit frames, best of the samples. In" in said["psnr"]
    assert "each; PSNR and LPIPS at full size of plain 8-bit frames, best of the samples. In" in said["psnr,lpips"]
    assert "each; KVD (I3D, Kinetics-400 logits) on 9 frames, the given ones included. In" in said["kvd"]
    assert PLAIN.words in said["psnr,ssim,lpips,fvd"]
    assert "seed" not in said["psnr"]  # of what sampled the videos nothing is known


def test_a_file_that_was_written_anew_is_read_anew(tmp_path):
    for value in (3, 7):
        np.savez(tmp_path / "a.npz", np.full((4, 8, 8, 3), value, np.uint8))
        assert find_videos(tmp_path / "a.npz", "made")[0].read(3).unique().tolist() == [value]


def test_colours_are_brought_to_the_protocols(tmp_path):
    np.save(tmp_path / "real.npy", arrays(6))
    np.save(tmp_path / "made.npy", arrays(6, samples=2, seed=1))
    np.save(tmp_path / "rgb.npy", arrays(6, samples=2, seed=1).repeat(3, -1))
    grey, _ = measured(tmp_path / "real.npy", tmp_path / "made.npy", tmp_path / "grey")
    rgb, _ = measured(tmp_path / "real.npy", tmp_path / "rgb.npy", tmp_path / "rgb")
    assert grey.numbers == rgb.numbers


# --- what cannot be compared is refused -----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("real", "made", "said"),
    [
        (
            arrays(6),
            arrays(6),
            "6 real and 6 generated videos: the protocol takes 2 for each real one; --set samples=1",
        ),
        (
            arrays(6),
            arrays(6, samples=2, frames=8),
            "has 8 frames; protocol plain takes 9 frames, or the 7 generated ones",
        ),
        (arrays(6, frames=8), arrays(6, samples=2), "has 8 frames; a clip of protocol plain has 9"),
        (arrays(7), arrays(7, samples=2), "--set clips=7"),
        (arrays(6)[:, :, :12], arrays(6, samples=2), r"--set size=\[12,16\]"),
        (arrays(6), arrays(6, samples=2).repeat(2, 3).repeat(2, 4), "mcvd enlarges small frames in mp4"),
        (arrays(6), arrays(6, samples=2)[None], "3 to 6 dimensions"),
        (arrays(6), arrays(6)[..., 0], r"made.npy holds an array \(6, 9, 16, 16\).*grey videos need an axis of 1"),
    ],
)
def test_what_does_not_fit_is_one_line(tmp_path, real, made, said):
    np.save(tmp_path / "real.npy", real)
    np.save(tmp_path / "made.npy", made)
    with pytest.raises(McvdError, match=said):
        measured(tmp_path / "real.npy", tmp_path / "made.npy", tmp_path / "out")


def test_other_videos_do_not_go_into_the_same_folder(tmp_path):
    for name, seed in (("real", 0), ("a", 1), ("b", 2)):
        np.save(tmp_path / f"{name}.npy", arrays(6, samples=None if name == "real" else 2, seed=seed))
    measured(tmp_path / "real.npy", tmp_path / "a.npy", tmp_path / "out", name="mine")
    with pytest.raises(McvdError, match="holds another evaluation .*videos"):
        measured(tmp_path / "real.npy", tmp_path / "b.npy", tmp_path / "out", name="mine")


def test_what_fails_before_any_row_leaves_the_folder_free(tmp_path):
    np.save(tmp_path / "real.npy", arrays(6))
    np.save(tmp_path / "made.npy", arrays(6, samples=2, frames=8))
    with pytest.raises(McvdError, match="has 8 frames"):
        measured(tmp_path / "real.npy", tmp_path / "made.npy", tmp_path / "out")
    np.save(tmp_path / "made.npy", arrays(6, samples=2))
    result, _ = measured(tmp_path / "real.npy", tmp_path / "made.npy", tmp_path / "out")
    assert result.complete


def test_frames_that_are_too_small_are_told_at_the_start(tmp_path):
    small = replace(PLAIN, size=(8, 8))
    np.save(tmp_path / "real.npy", arrays(6)[:, :, :8, :8])
    np.save(tmp_path / "made.npy", arrays(6, samples=2)[:, :, :, :8, :8])
    result, lines = measured(tmp_path / "real.npy", tmp_path / "made.npy", tmp_path / "out", small)
    assert "ssim" not in result.numbers
    assert lines[0] == "SSIM is left out: it needs frames of 11 or more pixels per side, this protocol gives it 8"


def test_names_do_not_leave_the_folder_of_scores(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    for name in ("real", "made"):
        np.save(tmp_path / f"{name}.npy", arrays(1))
    edits = [f"--set={e}" for e in ("past=2", "frames=7", "size=[16,16]", "samples=1", "clips=1", "channels=1")]
    command = ["score", "real.npy", "made.npy", "--protocol", "videos-5to10", *edits, "--metrics", "psnr"]
    assert main([*command, "--name", "../x", "--device", "cpu"]) == 0
    assert [path.name for path in (tmp_path / "runs" / "score").iterdir()] == ["..-x-videos-5to10+edited"]
    out = capsys.readouterr().out
    assert "paired in sorted order: real-1 with made-1\n" in out
    assert "../x" in out


def test_the_command_names_its_protocols(capsys):
    assert main(["score", "a", "b", "--protocol", "list"]) == 0
    assert len(capsys.readouterr().out.splitlines()) == len(PRESETS)


def test_the_command(tmp_path, capsys):
    for name, count in (("real", None), ("made", 2)):
        array = tiny.video(3, *([count] if count else []), 9, 16, 16, 1, seed=count or 0).numpy()
        np.save(tmp_path / f"{name}.npy", array)
    edits = [f"--set={e}" for e in ("past=2", "frames=7", "size=[16,16]", "samples=2", "clips=3", "channels=1")]
    command = ["score", str(tmp_path / "real.npy"), str(tmp_path / "made.npy"), "--protocol", "videos-5to10", *edits,
               "--metrics", "psnr,ssim,calibration", "--name", "other", "--device", "cpu", "--output",
               str(tmp_path / "out")]  # fmt: skip
    assert main(command) == 0
    assert "PSNR, dB" in capsys.readouterr().out
    assert set(Result.load(tmp_path / "out").numbers) == {"psnr", "ssim", "crps", "spread_skill"}
    assert main(["score", str(tmp_path / "real.npy"), str(tmp_path / "nothing"), "--protocol", "videos-5to10"]) == 1
    assert "nothing does not exist" in capsys.readouterr().err


def test_an_npz_of_many_videos_is_opened_once_for_all(tmp_path, monkeypatch):
    """Opening it reads the names of all."""
    videos = {f"v{i}": array for i, array in enumerate(arrays(20))}
    np.savez(tmp_path / "many.npz", **videos)
    found = find_videos(tmp_path / "many.npz", "made")
    monkeypatch.setattr(zipfile, "ZipFile", None)
    for video in found:
        assert np.array_equal(video.read(1).permute(0, 2, 3, 1).numpy(), videos[video.name])
