"""The command line, as a person uses it: files in, files out, and one line for everything that goes wrong."""

from __future__ import annotations

import io
import os
import shlex
import subprocess
import sys
import time
import warnings
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch

import mcvd
from mcvd.cli import data as data_module
from mcvd.cli import main as main_module
from mcvd.cli import predict as predict_module
from mcvd.cli.fill import parse_ranges
from mcvd.cli.main import COMMANDS, _parse, main
from mcvd.cli.options import Sampling
from mcvd.cli.progress import ProgressBar
from mcvd.cli.work import targets
from mcvd.config import override, parse_assignments
from mcvd.data.video import read_video, video_info, write_video
from mcvd.diffusion.solvers import SOLVERS
from mcvd.errors import McvdError
from mcvd.layout import BlockLayout, Masking
from mcvd.model import ModelConfig, VideoDiffusion
from mcvd.networks.config import UNetConfig
from mcvd.training.recipe import Recipe

QUICK = ["--steps", "2", "--solver", "dpm++", "--device", "cpu"]
TINY_RECIPE = """
model:
  network: {size: [32, 32], channels: 1, layout: {past: 5, current: 5, future: 5}, width: 8, multipliers: [1, 2],
            blocks: 1, attention: [], head_channels: 8}
  masking: {past: 0.5, future: 0.5}
data: {kind: videos}
batch: 2
log_every: 1
"""


def save_tiny(folder: Path, masking: Masking, channels: int = 1) -> str:
    torch.manual_seed(0)
    network = UNetConfig(
        size=(32, 32),
        channels=channels,
        layout=BlockLayout(5, 5, 5),
        width=8,
        multipliers=(1, 2),
        blocks=1,
        attention=(),
        head_channels=8,
    )
    return str(VideoDiffusion(ModelConfig(network=network, masking=masking)).save(folder, notes={"steps": 7}))


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    root = tmp_path_factory.mktemp("models")
    return {
        "tiny": save_tiny(root / "tiny", Masking(0.5, 0.5)),
        "colour": save_tiny(root / "colour", Masking(0.5, 0.5), channels=3),
        "interpolator": save_tiny(root / "interpolator", Masking()),
    }


def moving_strokes(frames: int, size: int = 32) -> torch.Tensor:
    """Two bright strokes that drift and bounce, (T, 1, H, W) uint8: digits without MNIST."""
    video = torch.zeros(frames, 1, size, size, dtype=torch.uint8)
    reach = size - 14
    for t in range(frames):
        for y0, x0, vy, vx in ((0, 4, 2, 1), (9, 0, -1, 2)):
            y, x = (abs((p + v * t + reach) % (2 * reach) - reach) for p, v in ((y0, vy), (x0, vx)))
            video[t, 0, y : y + 12, x + 4 : x + 7] = 255
            video[t, 0, y : y + 3, x : x + 11] = 255
    return video


@pytest.fixture
def clip(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An exact clip of 12 frames, and its folder as the working directory."""
    monkeypatch.chdir(tmp_path)
    return write_video(tmp_path / "clip.npz", moving_strokes(12))


def array(path: Path | str) -> np.ndarray:
    return np.load(path)["video"]


def fails(capsys: pytest.CaptureFixture[str], code: int, *words: str) -> str:
    """Runs a command that must fail with exactly one line on stderr; returns the line."""
    assert main(words) == code
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 1, lines
    assert lines[0].startswith("mcvd: error: ")
    return lines[0]


# ----------------------------------------------------------------------------------------------------- the four tasks


def test_predict_writes_the_whole_clip_and_the_picture(clip, models, capsys):
    assert main(["predict", "clip.npz", "--frames", "7", "--model", models["tiny"], *QUICK]) == 0
    out = capsys.readouterr().out
    assert "clip.npz: 32x32, 12 frames -> 32x32 grey" in out
    assert "wrote output/clip-predict.mp4 (12 frames at 10 fps)" in out
    assert "wrote output/clip-predict.png" in out
    written = read_video("output/clip-predict.mp4", size=32, channels=1)
    assert len(written) == 12
    assert Path("output/clip-predict.png").stat().st_size > 1000
    # H.264 is lossy: the given frames are the clip's last ones, and near
    assert (written[:5].float() - moving_strokes(12)[7:].float()).abs().mean() < 3
    assert main(["predict", "clip.npz", "--model", models["tiny"], *QUICK]) == 0
    assert "replaced output/clip-predict.mp4 (10 frames at 10 fps)" in capsys.readouterr().out


def test_given_frames_come_back_to_the_bit(clip, models):
    real, model = moving_strokes(12).permute(0, 2, 3, 1).numpy(), ["--model", models["tiny"], *QUICK]

    def made(*words: str) -> np.ndarray:
        assert main([*words, *model, "--out", "made.npz"]) == 0
        return array("made.npz").reshape(-1, 32, 32, 1)

    assert (made("predict", "clip.npz", "--frames", "3")[:5] == real[-5:]).all()
    assert (made("predict", "clip.npz", "--frames", "3", "--context", "all")[:12] == real).all()
    backward = made("predict", "clip.npz", "--frames", "3", "--backward", "--context", "6")
    assert len(backward) == 9
    assert (backward[3:] == real[:6]).all()
    between = made("interpolate", "clip.npz", "clip.npz", "--frames", "4")
    assert len(between) == 14
    assert (between[:5] == real[-5:]).all()
    assert (between[9:] == real[:5]).all()
    filled = made("fill", "clip.npz", "--known", "0-2,7,10-11", "--length", "15")
    assert len(filled) == 15
    for i in (0, 1, 2, 7, 10, 11):
        assert (filled[i] == real[i]).all()
    assert len(made("generate", "--frames", "6")) == 6
    # every second frame
    assert (made("predict", "clip.npz", "--frames", "1", "--stride", "2")[:5] == real[::2][-5:]).all()
    # as the model was trained, unless asked otherwise
    mcvd.load(models["tiny"]).save("every_other", notes={"stride": 2})
    model[1] = "every_other"
    assert (made("predict", "clip.npz", "--frames", "1")[:5] == real[::2][-5:]).all()
    assert (made("predict", "clip.npz", "--frames", "1", "--stride", "1")[:5] == real[-5:]).all()


def test_samples_are_files_and_seeds_repeat(clip, models):
    generate = ["generate", "--frames", "5", "--model", models["tiny"], *QUICK]
    assert main([*generate, "--samples", "2", "--seed", "3", "--out", "a.npz"]) == 0
    assert main([*generate, "--samples", "2", "--seed", "3", "--batch-size", "1", "--out", "b.npz"]) == 0
    assert main([*generate, "--samples", "1", "--seed", "4", "--out", "c.npz"]) == 0
    assert {path.name for path in Path().iterdir()} >= {"a-1.npz", "a-2.npz", "a.png", "b-2.npz", "c.npz"}
    first, second = array("a-1.npz"), array("a-2.npz")
    assert np.abs(first.astype(int) - array("b-1.npz")).max() <= 1
    assert (first != second).any()
    assert (first != array("c.npz")).any()


def test_samples_are_numbered_in_their_order(tmp_path):
    files, _ = targets(str(tmp_path / "a.mp4"), "", 10, [], 10.0)
    assert [files[0].name, files[-1].name] == ["a-01.mp4", "a-10.mp4"]


def test_where_output_goes(clip, models):
    generate = ["generate", "--frames", "2", "--model", models["tiny"], *QUICK]
    for out, expected in (
        ("frames", "frames/frame_00001.png"),
        ("frames", "frames/frame_00001.png"),  # again: its own folder is replaced
        ("new/", "new/generate.mp4"),
        ("new", "new/generate.mp4"),
        ("picture.png", "picture.png"),
        ("picture.PNG", "picture.PNG"),
        ("deep/down/x.gif", "deep/down/x.png"),
    ):
        assert main([*generate, "--out", out]) == 0
        assert Path(expected).is_file()
    assert not Path("frames/generate.mp4").exists()
    assert video_info("deep/down/x.gif").frames == 2
    assert main([*generate, "--out", "fast.mp4", "--fps", "25"]) == 0
    assert video_info("fast.mp4").fps == pytest.approx(25)


def test_the_rate_is_that_of_the_frames_that_are_read_or_the_models(clip, models):
    write_video("film.mkv", moving_strokes(12), fps=20)
    model = mcvd.load(models["tiny"])
    model.config = replace(model.config, fps=7.0)
    model.save("seven")
    quick = ["--frames", "1", "--model", "seven", *QUICK, "--out", "made.mkv"]
    for words, fps in (
        (["predict", "film.mkv", "--stride", "2"], 10),
        (["interpolate", "clip.npz", "film.mkv"], 20),  # arrays have none
        (["predict", "clip.npz"], 7),
        (["generate"], 7),
        (["predict", "film.mkv", "--fps", "3"], 3),
    ):
        assert main([*words, *quick]) == 0
        assert video_info("made.mkv").fps == pytest.approx(fps)


def test_the_picture_of_a_filled_clip_begins_with_the_real_one(clip, models, monkeypatch):
    drawn = []
    monkeypatch.setattr("mcvd.cli.work.contact_sheet", lambda rows, edges, path: drawn.append((rows, edges)))
    words = ["fill", "clip.npz", "--known", "0-1", "--length", "6", "--samples", "2", "--out", "made.npz"]
    assert main([*words, "--model", models["tiny"], *QUICK]) == 0
    [(rows, edges)] = drawn
    assert [name for name, _ in rows] == ["real clip", "sample 1", "sample 2"]
    assert torch.equal(rows[0][1], moving_strokes(6))
    # its other frames have no edge: the model did not see them
    assert edges.tolist() == [[0, 0, -1, -1, -1, -1], *[[0, 0, 1, 1, 1, 1]] * 2]


def test_a_real_clip_in_colour(assets_dir, models, tmp_path, capsys):
    clip, out = assets_dir / "clips" / "bikes.mp4", tmp_path / "bikes.mp4"
    words = ["predict", str(clip), "--frames", "3", "--show-plan", "--out", str(out), "--model", models["colour"]]
    assert main([*words, *QUICK]) == 0
    said = capsys.readouterr().out
    assert "bikes.mp4: 640x272, 250 frames at 25 fps -> 32x32 RGB" in said
    assert "block 1  <<<<<+++" in said
    assert said.index("block 1") < said.index("wrote")
    assert video_info(out).frames == 8
    assert video_info(out).fps == pytest.approx(25)


def test_every_sampling_option_reaches_the_library(clip, models, monkeypatch):
    seen: dict[str, object] = {}
    fill = VideoDiffusion.fill

    def spy(self: VideoDiffusion, video: torch.Tensor, known: list[bool], **options: object) -> torch.Tensor:
        seen.update(options)
        return fill(self, video, known, **options)

    monkeypatch.setattr(VideoDiffusion, "fill", spy)
    base = ["predict", "clip.npz", "--model", models["tiny"], "--frames", "2"]
    assert main([*base, "--solver", "ddim", "--steps", "3", "--guidance", "2", "--reference"]) == 0
    del seen["progress"]
    assert seen == {
        "samples": 1,
        "solver": "ddim",
        "steps": 3,
        "seed": 0,
        "guidance": 2.0,
        "context_noise": 0.0,
        "batch_size": 32,
        "reference": True,
        "precision": "fp32",
        "engine": "torch",
    }
    assert main([*base, "--precision", "fp16", "--device", "cpu"]) == 1  # a CPU is not fast in it
    assert seen["precision"] == "fp16"
    assert main([*base, "--context-noise", "0.2"]) == 1  # it was trained without
    assert seen["context_noise"] == 0.2


@pytest.mark.slow
def test_the_bundled_digits(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    write_video("clip.mp4", moving_strokes(20, 64))
    quick = ["--steps", "5", "--solver", "dpm++"]
    assert main(["predict", "clip.mp4", "--frames", "10", "--samples", "2", *quick]) == 0
    assert main(["interpolate", "clip.mp4", "clip.mp4", "--frames", "5", *quick]) == 0
    assert main(["generate", "--frames", "10", *quick]) == 0
    assert main(["fill", "clip.mp4", "--known", "0-4,15-19", *quick]) == 0
    assert main(["info", "digits"]) == 0
    assert capsys.readouterr().err == ""
    frames = {path.name: video_info(path).frames for path in Path("output").glob("*.mp4")}
    assert frames["clip-predict-1.mp4"] == frames["clip-predict-2.mp4"] == 15
    assert frames["clip-fill.mp4"] == 20
    assert frames["generate.mp4"] == 10


# ----------------------------------------------------------------------------------------------------- other commands


@pytest.mark.parametrize("units", [True, False])
def test_train_says_where_a_cpu_could_be_faster(clip, capsys, monkeypatch, units):
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: {"avx512_bf16": units})
    Path("my.yaml").write_text(TINY_RECIPE)
    Path("videos").mkdir()
    write_video("videos/one.npz", moving_strokes(20))
    train = ["train", "my.yaml", "--data", "videos", "--device", "cpu", "--steps", "1"]
    assert main([*train, "--output", "auto"]) == 0
    assert ("--set precision=bf16" in capsys.readouterr().out) is units
    assert main([*train, "--output", "half", "--set", "precision=bf16"]) == (0 if units else 1)
    assert "--set precision=bf16" not in capsys.readouterr().out


def test_train_runs_and_resumes(clip, capsys):
    Path("my.yaml").write_text(TINY_RECIPE)
    Path("videos").mkdir()
    write_video("videos/one.npz", moving_strokes(20))
    train = ["train", "my.yaml", "--data", "videos", "--output", "run", "--device", "cpu"]
    assert main([*train, "--steps", "2", "--set", "optimizer.lr=1e-4", "--set", "optimizer.warmup=1"]) == 0
    said = capsys.readouterr().out
    assert (
        "training my.yaml into run: 32x32 grey, 5 past, 5 current, 5 future frames; "
        "tasks: predict, backward, interpolate, generate; 2 steps of 2 clips"
    ) in said
    assert main([*train, "--steps", "3"]) == 0
    assert "continuing run at step 2" in capsys.readouterr().out
    assert main(["generate", "--model", "run", "--frames", "2", "--out", "x.npz", *QUICK]) == 0
    assert main(["info", "run"]) == 0
    assert "steps        3" in capsys.readouterr().out


def test_train_says_when_no_level_has_the_attention_asked_for(clip, capsys):
    note = "note: no level has attention: model.network.attention is 8, levels have 64, 32, 16 pixels per side"
    assert main(["train", "videos-small", "--dry-run", "--set", "model.network.size=[64,64]"]) == 0
    assert note in capsys.readouterr().out
    assert main(["train", "videos-small", "--dry-run"]) == 0
    assert "note: no level" not in capsys.readouterr().out


def test_a_run_is_continued_with_its_recipe(clip, capsys):
    Path("run/samples").mkdir(parents=True)
    Path("run/recipe.yaml").write_text(TINY_RECIPE)
    assert "run is a run; to continue it, give its recipe: run/recipe.yaml --output run" in fails(
        capsys, 1, "train", "run"
    )


def test_info_says_what_a_model_can_do(models, clip, capsys):
    assert main(["info", models["tiny"]]) == 0
    said = capsys.readouterr().out
    assert "tasks        predict, predict --backward, interpolate, generate\n" in said
    assert "steps        7" in said
    assert "32x32 pixels, grey" in said
    assert main(["info", models["interpolator"]]) == 0
    assert "tasks        interpolate\n" in capsys.readouterr().out
    write_video("film.mp4", moving_strokes(10), fps=5)
    assert main(["info", "film.mp4"]) == 0
    said = capsys.readouterr().out
    assert "frames       10\n" in said
    assert "duration     2.00 s" in said


def test_fetch_takes_a_folder(assets_dir, tmp_path, capsys):
    assert main(["fetch", "mnist", "--source", str(assets_dir / "mnist"), "--output", str(tmp_path / "mnist")]) == 0
    assert len(list((tmp_path / "mnist").iterdir())) == 4
    assert str(tmp_path / "mnist") in capsys.readouterr().out


def test_fetch_brings_weights_of_a_metric(assets_dir, tmp_path, capsys):
    place = tmp_path / "weights"
    assert main(["fetch", "lpips", "--source", str(assets_dir / "lpips_alex.npz"), "--output", str(place)]) == 0
    assert (place / "lpips.safetensors").is_file()
    assert main(["fetch", "i3d", "--source", str(assets_dir / "lpips_alex.npz"), "--output", str(place)]) == 1
    assert capsys.readouterr().err.count("\n") == 1
    assert not (place / "i3d.safetensors").exists()


def test_import_writes_a_model_folder(clip, monkeypatch, capsys):
    import mcvd.interop.official as official

    def stands_in(path: Path, folder: Path, ema: bool, dtype: torch.dtype) -> VideoDiffusion:
        assert (ema, dtype) == (False, torch.float16)
        save_tiny(folder, Masking())
        return VideoDiffusion.from_folder(folder)

    monkeypatch.setattr(official, "import_checkpoint", stands_in)
    monkeypatch.setenv("HOME", str(Path.cwd()))
    assert main(["import", "checkpoint_5.pt", "--raw", "--dtype", "float16", "--output=~/elsewhere"]) == 0
    assert "wrote" in capsys.readouterr().out
    assert main(["import", "checkpoint_5.pt", "--raw", "--dtype", "float16"]) == 0
    assert "wrote models/checkpoint_5 (0.1 M parameters" in capsys.readouterr().out


@pytest.mark.oracle
def test_import_of_a_published_checkpoint(oracle_dir, tmp_path, capsys):
    published = oracle_dir / "checkpoint_spade" / "logs" / "checkpoint.pt"
    assert main(["import", str(published), "--output", str(tmp_path / "model")]) == 0
    assert main(["info", str(tmp_path / "model")]) == 0
    assert "source       checkpoint.pt" in capsys.readouterr().out


def test_no_frame_of_a_clip_is_replaced_or_joined_by_a_picture_of_ours(clip, models, capsys):
    """A clip that is a folder of frames, and one of its frames alone."""
    frames = write_video(Path("frames"), moving_strokes(6))
    before = {path.name: path.read_bytes() for path in frames.iterdir()}
    quick = ["--model", models["tiny"], "--frames", "1", "--solver", "ddim", "--steps", "2", "--out"]
    for words, said in (
        (["frames/frame_00003.png", *quick, "frames"], "frames is the clip itself, or holds it"),
        (["frames", *quick, "frames"], "frames is the clip itself, or holds it"),
        (["frames", *quick, "frames/frame_00000.mp4"], "would be one more frame of the clip frames"),
        (["frames", *quick, "frames/new.mp4"], "frames/new.png would be one more frame of the clip frames"),
    ):
        assert said in fails(capsys, 1, "predict", *words)
    assert {path.name: path.read_bytes() for path in frames.iterdir()} == before


def test_where_nothing_can_be_written_is_said_before_anything_is_made(clip, models, monkeypatch, capsys):
    monkeypatch.setattr(VideoDiffusion, "fill", None)
    Path("made").symlink_to(write_video(Path("frames"), moving_strokes(2)))
    quick = ["predict", "clip.npz", "--model", models["tiny"], "--frames", "1", "--out"]
    for place, said in (("made", "it is a link to a folder"), ("/proc/x.mp4", "cannot write into /proc")):
        assert said in fails(capsys, 1, *quick, place)
    longest = "x" * 250 + ".mp4"  # the name of a temporary file is longer
    assert "File name too long" in fails(capsys, 1, *quick, longest)


# -------------------------------------------------------------------------------------------------------------- errors


@pytest.mark.parametrize(
    ("words", "code", "says"),
    [
        ("predict nope.mp4", 1, "nope.mp4 does not exist"),
        ("predict notes.mp4", 1, "cannot read notes.mp4 as a video"),
        ("predict https://x.org/clip.mp4", 1, "https:/x.org/clip.mp4 is an address, not a file: download it first"),
        ("train my.yaml --data s3://videos", 1, "s3:/videos is an address, not a file"),
        ("info my.yaml", 1, "my.yaml is a file, not a model"),
        ("report .", 1, "not the folder of an evaluation"),
        ("train digits-small --data .", 1, "for your own videos take a recipe for videos, e.g. videos-small"),
        ("predict clip.npz --frames 0", 2, "--frames: 0 must be at least 1"),
        ("predict clip.npz --frames 100000000000", 1, "--frames is 100000000000; it must be at most 1000000"),
        ("fill clip.npz --known 0-1 --length 100000000000", 1, "--length is 100000000000; it must be at most"),
        ("predict clip.npz --frames many", 2, "'many' is not a whole number"),
        ("predict clip.npz --solver euler", 1, "one of ddpm, ddim, f-pndm, dpm++"),
        ("predict clip.npz --steps 5000", 1, "allows 1 to 1000"),
        ("predict clip.npz --context 13", 1, "only 12 frames"),
        ("predict clip.npz --frmes 3", 2, "--frames"),
        ("predict clip.npz --seed -1", 2, "at least 0"),
        ("predict clip.npz --fps nan", 2, "above 0"),
        ("predict clip.npz --fit cut", 2, "'crop', 'stretch'"),
        ("predict clip.npz --out clip.npz", 1, "the clip itself"),
        ("predict clip.npz --out film.mpx", 1, "the suffix must be"),
        ("predict clip.npz --out -", 1, "cannot write to standard output (-); name a file"),
        ("predict clip.npz --out notes.mp4/x.mp4", 1, "cannot write into"),
        ("predict clip.npz --device toaster", 1, "toaster"),
        ("predict clip.npz --solver dpm++ --reference", 1, "reference mode"),
        ("predict", 2, "CLIP"),
        ("interpolate clip.npz", 2, "AFTER"),
        ("interpolate clip.npz nope.gif", 1, "nope.gif does not exist"),
        ("fill clip.npz", 2, "--known"),
        ("fill clip.npz --known 0-x", 1, "write it like 0-4,15-19"),
        ("fill clip.npz --known 4-0", 1, "did you mean 0-4"),
        ("fill clip.npz --known 0-12", 1, "only frames 0-11"),
        ("fill clip.npz --known 0-7 --length 6", 1, "only frames 0-5"),
        ("fill clip.npz --known 0-11", 1, "every frame is known"),
        ("generate --model nothing", 1, "no model nothing"),
        ("generate --model .", 1, "config.json"),
        ("train nothing", 1, "bundled ones"),
        ("train nothing.yaml", 1, "nothing.yaml"),
        ("train my.yaml --data nowhere", 1, "nowhere"),
        ("train my.yaml --set lr=3", 1, "did you mean optimizer.lr?"),
        ("train my.yaml --set optimizer.lr=x", 1, "expected a number"),
        ("train my.yaml --set steps", 1, "KEY=VALUE"),
        ("import nope.pt", 1, "nope.pt"),
        ("fetch cifar", 2, "mnist"),
        ("fetch mnist --source nowhere --output here", 1, "nowhere"),
        ("info nothing", 1, "no model nothing"),
        ("info clips/nope.mp4", 1, "clips/nope.mp4 does not exist"),
        ("predit clip.npz", 2, "did you mean predict?"),
    ],
)
def test_every_error_is_one_line(words, code, says, clip, models, capsys):
    Path("notes.mp4").write_text("not a video at all\n" * 50)
    Path("my.yaml").write_text(TINY_RECIPE)
    split = words.split()
    if split[0] in ("predict", "interpolate", "fill"):
        split += ["--model", models["tiny"]]
    assert says in fails(capsys, code, *split)
    assert not Path("output/clip-predict.mp4").exists()


def test_a_task_that_the_model_cannot_do(clip, models, capsys):
    for words in (["generate"], ["predict", "clip.npz"]):
        assert "trained with them hidden" in fails(capsys, 1, *words, "--model", models["interpolator"])


def test_tracebacks_only_with_debug(clip, models, monkeypatch, capsys):
    def broken(self: object) -> None:
        raise ZeroDivisionError("a bug\nwith two lines")

    monkeypatch.setattr(predict_module.Command, "run", broken)
    assert fails(capsys, 1, "predict", "x") == "mcvd: error: ZeroDivisionError: a bug (--debug shows where)"
    for words in (["--debug", "predict", "x"], ["predict", "x", "--debug"]):
        assert main(words) == 1
        assert "Traceback" in capsys.readouterr().err


def test_interrupted_and_warned(monkeypatch, capsys):
    def stopped(self: object) -> None:
        warnings.warn("clip may be\ncut short", stacklevel=1)  # from another package: not shown
        warnings.warn_explicit("clip may be\ncut short", UserWarning, predict_module.__file__, 1)
        raise KeyboardInterrupt

    monkeypatch.setattr(predict_module.Command, "run", stopped)
    assert main(["predict", "x"]) == 130
    assert capsys.readouterr().err.splitlines() == ["mcvd: note: clip may be cut short", "mcvd: error: interrupted"]


# ------------------------------------------------------------------------------------------------ help, parts, start-up


@pytest.mark.parametrize("name", COMMANDS)
def test_help_of_every_command(name, capsys):
    assert main([name, "--help"]) == 0
    said = capsys.readouterr().out
    assert f"usage: mcvd {name}" in said
    units = {"train": "minutes", "import": "bytes each", "fetch": "MB", "info": "pixels"}
    units |= {"evaluate": "pixels", "score": "pixels", "report": "MB", "compare": "95 %", "serve": "address"}
    units["guide"] = "standard deviation"
    assert units.get(name, "frames per second") in said
    assert "default" in said or name in ("info", "report")
    if name in ("predict", "interpolate", "generate", "fill"):
        for words in (*SOLVERS, "(default: digits)", "--guidance"):
            assert words in said
        for solver, entry in SOLVERS.items():
            assert f"{solver} {entry.steps}" in " ".join(said.replace("│", " ").split())


@pytest.mark.parametrize("name", COMMANDS)
def test_the_example_of_every_command_parses(name):
    program, command, *rest = shlex.split(COMMANDS[name].example)
    assert (program, command) == ("mcvd", name)
    module = __import__(f"mcvd.cli.{COMMANDS[name].module}", fromlist=["Command"])
    assert isinstance(_parse(module.Command, name, rest), module.Command)


def test_a_size_is_height_then_width():
    command = _parse(data_module.Command, "data", ["prepare", "a", "b", "--size", "16", "32"])
    assert command.action.size == (16, 32)


def test_overview_and_version(capsys):
    assert main([]) == 0
    overview = capsys.readouterr().out
    assert all(entry.example in overview for entry in COMMANDS.values())
    assert max(map(len, overview.splitlines())) <= 120
    assert main(["--version"]) == 0
    assert capsys.readouterr().out.startswith("mcvd 0.")


def test_ranges():
    assert parse_ranges("0-4, 15,7-7") == [range(5), range(15, 16), range(7, 8)]
    for text in ("", "1,,2", "-3", "1-2-3"):
        with pytest.raises(McvdError, match="--known"):
            parse_ranges(text)


def test_overrides_of_a_recipe():
    values = parse_assignments(["optimizer.lr=1e-4", "model.network.multipliers=[1, 2]", "data.path=null"], "--set")
    recipe = override(Recipe(), values, "--set")
    assert recipe.optimizer.lr == 1e-4
    assert recipe.model.network.multipliers == (1, 2)
    for word, near in (
        ("modle.network.width=3", "model.network.width"),
        ("width=3", "model.network.width"),
        ("optimizer.lrr=3", "optimizer.lr"),
        ("xyzzy=3", "top-level keys: model"),
    ):
        with pytest.raises(McvdError, match=near):
            override(Recipe(), parse_assignments([word], "--set"), "--set")
    with pytest.raises(McvdError, match="expected keys and values"):
        override(Recipe(), {"model.network": 3}, "--set")


def test_a_bar_appears_only_for_what_lasts(monkeypatch):
    clock = [0.0]
    monkeypatch.setattr(time, "monotonic", lambda: clock[0])
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True, raising=False)
    with ProgressBar("sampling", "steps") as bar:
        bar(1, 100)
        assert bar.bar is None
        clock[0] = 0.9
        bar(99, 100)
        assert bar.bar is None
        bar(20, 100)
        assert bar.bar is not None
        bar(40, 100)


def test_a_file_gets_a_line_every_half_minute(monkeypatch, capsys):
    clock = [0.0]
    monkeypatch.setattr(time, "monotonic", lambda: clock[0])
    with ProgressBar("sampling", "steps") as bar:
        for now in (10.0, 31.0, 32.0, 61.0, 62.0):
            clock[0] = now
            bar(int(now), 100)
    assert capsys.readouterr().err.splitlines() == [
        "mcvd: sampling: 31 of 100 steps, 69 s left",
        "mcvd: sampling: 62 of 100 steps, 38 s left",
    ]


def test_work_goes_on_when_its_terminal_is_closed(tmp_path):
    """A shell that was left after `disown` leaves its programs running."""
    code = """
import sys
from pathlib import Path
sys.path.insert(0, sys.argv[2])
from mcvd.cli import progress
progress.PATIENCE = -1
with progress.ProgressBar("sampling", "steps") as bar:
    bar(1, 3)
    input()
    bar(2, 3)
    bar(3, 3)
Path(sys.argv[1]).touch()
"""
    mine, terminal = os.openpty()
    src = Path(__file__).resolve().parent.parent / "src"
    command = [sys.executable, "-c", code, str(tmp_path / "done"), str(src)]
    work = subprocess.Popen(command, stdin=subprocess.PIPE, stderr=terminal, env=os.environ | {"TERM": "xterm"})
    os.close(terminal)
    shown = b""
    while b"1 of 3" not in shown:
        shown += os.read(mine, 4096)
    os.close(mine)
    work.communicate(b"\n")
    assert work.returncode == 0
    assert (tmp_path / "done").exists()


def run(*words: str, **options: object) -> subprocess.CompletedProcess[str]:
    src = str(Path(__file__).resolve().parent.parent / "src")
    path = os.pathsep.join([src, os.environ.get("PYTHONPATH", "")])
    env = {**os.environ, "PYTHONPATH": path}
    return subprocess.run([sys.executable, *words], env=env, capture_output=True, text=True, timeout=120, check=False)


def test_the_process_itself(tmp_path):
    done = run("-m", "mcvd", "--help")
    assert (done.returncode, done.stderr) == (0, "")
    assert "mcvd predict clip.mp4" in done.stdout
    done = run("-m", "mcvd.cli.main", "info", str(tmp_path / "nope"))
    assert done.returncode == 1
    assert done.stderr.count("\n") == 1


@pytest.mark.parametrize("closed", [">&-", "2>&-", ">&- 2>&-"])
def test_nobody_need_read_what_is_printed(clip, models, closed, tmp_path):
    words = ["-m", "mcvd", "predict", str(clip), "--model", models["tiny"], "--samples", "2", *QUICK]
    command = f"{shlex.join([sys.executable, *words, '--out', str(tmp_path / 'made.npz')])} {closed}"
    src = str(Path(__file__).resolve().parent.parent / "src")
    env = {**os.environ, "PYTHONPATH": os.pathsep.join([src, os.environ.get("PYTHONPATH", "")])}
    done = subprocess.run(["bash", "-c", command], env=env, capture_output=True, text=True, timeout=120, check=False)
    assert (done.returncode, done.stderr) == (0, "")
    assert (tmp_path / "made-2.npz").is_file()


@pytest.mark.parametrize(
    ("words", "to", "code", "said"),
    [
        (["info", "tiny"], "/dev/full", 1, "mcvd: error: what is printed cannot be written: No space left on device\n"),
        (["info", "nope"], "/dev/full", 1, "mcvd: error: no model nope"),
        (["generate", "--model", "tiny", *QUICK], "/dev/full", 1, "mcvd: error: OSError: [Errno 28] No space left"),
        (["info", "tiny"], None, 1, ""),  # as in `| true`
    ],
)
def test_what_cannot_be_printed_at_the_end_is_one_line(clip, models, words, to, code, said):
    """Python keeps back what goes to a file or a pipe, and would fail with lines and a code of its own at exit."""
    if to is None:
        read, write = os.pipe()
        os.close(read)
    else:
        write = os.open(to, os.O_WRONLY)
    src = str(Path(__file__).resolve().parent.parent / "src")
    env = {**os.environ, "PYTHONPATH": os.pathsep.join([src, os.environ.get("PYTHONPATH", "")])}
    env.pop("PYTHONUNBUFFERED", None)
    words = [models.get(word, word) for word in words]
    command = [sys.executable, "-m", "mcvd", *words]
    done = subprocess.run(command, env=env, stdout=write, stderr=subprocess.PIPE, text=True, timeout=120, check=False)
    os.close(write)
    assert done.returncode == code
    assert done.stderr.startswith(said)
    assert done.stderr.count("\n") == bool(said)


def test_what_was_generated_is_kept_where_nobody_reads_what_is_printed(clip, models, monkeypatch):
    """As in `mcvd predict ... | head -2` with unbuffered output: the reader leaves while frames are generated."""

    class Gone(io.StringIO):
        def write(self, text: str) -> int:
            if "generated in" in text:
                raise BrokenPipeError
            return super().write(text)

    monkeypatch.setattr(main_module, "drop_output", lambda: None)
    with monkeypatch.context() as patch:
        patch.setattr(sys, "stdout", Gone())
        words = ["predict", "clip.npz", "--model", models["tiny"], "--samples", "2", "--out", "made.npz", *QUICK]
        assert main(words) == 1
    assert {path.name for path in Path().glob("made*")} == {"made-1.npz", "made-2.npz", "made.png"}


def test_what_was_written_is_named_even_if_the_rest_cannot_be(clip, models, monkeypatch, capsys):
    def full(*_: object, **__: object) -> None:
        raise McvdError("cannot write made.png: No space left on device")

    monkeypatch.setattr("mcvd.cli.work.contact_sheet", full)
    assert main(["predict", "clip.npz", "--model", models["tiny"], "--out", "made.npz", *QUICK]) == 1
    assert "wrote made.npz" in capsys.readouterr().out


def test_a_current_folder_that_is_gone(tmp_path, monkeypatch, capsys):
    (tmp_path / "gone").mkdir()
    monkeypatch.chdir(tmp_path / "gone")
    (tmp_path / "gone").rmdir()
    assert "the current folder no longer exists" in fails(capsys, 1, "info", "digits")


def test_memory_that_runs_out_has_a_remedy(monkeypatch, capsys):
    for error in (MemoryError(), RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried 8 bytes")):
        monkeypatch.setattr(predict_module.Command, "run", lambda self, error=error: (_ for _ in ()).throw(error))
        assert "a smaller --batch-size" in fails(capsys, 1, "predict", "x")


def test_training_goes_on_where_nobody_reads_what_it_prints(clip, monkeypatch):
    """As behind `| tee`, which Ctrl-C ends, too."""
    Path("my.yaml").write_text(TINY_RECIPE)
    Path("videos").mkdir()
    write_video("videos/one.npz", moving_strokes(20))
    read, write = os.pipe()
    os.close(read)
    with open(write, "w") as stream:
        monkeypatch.setattr(sys, "stdout", stream)
        words = ["train", "my.yaml", "--data", "videos", "--output", "run", "--device", "cpu", "--steps", "2"]
        assert main(words) == 0
    assert Path("run/checkpoint-000000002.pt").is_file()


def test_what_a_terminal_has_no_letter_for_is_printed_all_the_same(clip, models, monkeypatch):
    clip.rename("ü\udce9.npz")
    for encoding in ("utf-8", "ascii"):
        with open("printed", "w", encoding=encoding) as stream, monkeypatch.context() as patch:
            patch.setattr(sys, "stdout", stream)
            assert main(["predict", "ü\udce9.npz", "--model", models["tiny"], *QUICK]) == 0
        letter = "ü" if encoding == "utf-8" else "\\xfc"
        assert f"{letter}\\udce9.npz: 32x32, 12 frames" in Path("printed").read_text(encoding=encoding)


def test_help_imports_nothing_heavy():
    heavy = ["torch", "numpy", "av", "PIL", "rich"]
    for words, also in ((["--help"], ["tyro"]), (["predict", "--help"], []), (["train", "--help"], [])):
        code = (
            f"import sys; from mcvd.cli.main import main; main({words}); print(set({heavy + also}) & set(sys.modules))"
        )
        assert run("-c", code).stdout.splitlines()[-1] == "set()"
    assert Sampling().model == "digits"


@pytest.mark.parametrize(
    ("given", "running", "policy"),
    [
        ({}, [99], "PASSIVE"),
        ({}, [0], None),
        ({}, [0, 99, 0, 99, 0], None),  # a passing process
        ({"OMP_WAIT_POLICY": "ACTIVE"}, [99], "ACTIVE"),
        ({"GOMP_SPINCOUNT": "100"}, [99], None),
    ],
)
def test_threads_sleep_while_they_wait_only_on_a_busy_machine(monkeypatch, given, running, policy):
    for name in ("OMP_WAIT_POLICY", "GOMP_SPINCOUNT"):
        monkeypatch.delenv(name, raising=False)
    for name, value in given.items():
        monkeypatch.setenv(name, value)
    counts = iter(running * 5)
    monkeypatch.setattr(main_module, "_running", lambda: next(counts))
    main_module._share_processors()
    assert os.environ.get("OMP_WAIT_POLICY") == policy
    monkeypatch.undo()


def test_the_running_threads_of_others_are_counted(monkeypatch):
    monkeypatch.setattr(main_module.Path, "read_text", lambda _: "0.20 0.18 0.12 3/80 11206\n")
    assert main_module._running() == 2  # all but this one


@pytest.mark.parametrize(
    ("given", "kept"), [({}, True), ({"MALLOC_ARENA_MAX": "2"}, False), ({"GLIBC_TUNABLES": ""}, False)]
)
def test_freed_memory_is_kept_unless_the_environment_says_something(monkeypatch, given, kept):
    for name in list(os.environ):
        if name.startswith("MALLOC_") or name == "GLIBC_TUNABLES":
            monkeypatch.delenv(name)
    for name, value in given.items():
        monkeypatch.setenv(name, value)
    said = {}
    monkeypatch.setattr(main_module.ctypes, "CDLL", lambda _: SimpleNamespace(mallopt=said.__setitem__))
    main_module._keep_memory()
    assert said == (main_module.KEEP_MEMORY if kept else {})
    monkeypatch.setattr(main_module.ctypes, "CDLL", lambda _: SimpleNamespace())  # another C library
    main_module._keep_memory()


@pytest.mark.parametrize(
    ("words", "says"),
    [
        ("benchmark --batch 1 x", "--batch: cannot read '1', 'x'; write --batch N ... (see mcvd benchmark --help)"),
        ("predict a.mp4 --frames x", "--frames: 'x' is not a whole number; write --frames N (see mcvd predict --help)"),
        (
            "generate --guidance inf",
            "--guidance: inf is not a finite number; write --guidance X (see mcvd generate --help)",
        ),
        (
            "generate --fps 1001",
            "--fps: 1001 must be at most 1000; write --fps FPS (see mcvd generate --help)",
        ),
        ("predict a.mp4 --frames", "--frames takes a value (see mcvd predict --help)"),
        ("predict", "Missing from mcvd predict: CLIP (see mcvd predict --help)"),
        (
            "data prepare a b --workers x",
            "--workers: 'x' is not a whole number; write --workers N (see mcvd data prepare --help)",
        ),
        ("data info", "Missing from mcvd data info: PATH (see mcvd data info --help)"),
        ("data fetch", "Missing from mcvd data fetch: bair|ucf101 (see mcvd data fetch --help)"),
        (
            "data prepar",
            "Unrecognized options: prepar; Available subcommands: prepare, info, fetch (see mcvd data --help)",
        ),
        (
            "train digits -- --steps 5",
            "Unrecognized options: --steps, 5; Perhaps you meant: --steps N (see mcvd train --help)",
        ),
        (
            "train digits --set steps=5 batch=2",
            "Unrecognized options: batch=2; every value needs a --set of its own, KEY=VALUE without spaces "
            "(see mcvd train --help)",
        ),
        (
            "fill a.mp4 --known 0-4, 15-19",
            "Unrecognized options: 15-19; write lists without spaces (see mcvd fill --help)",
        ),
    ],
)
def test_options_that_cannot_be_read_are_named_with_what_they_take(words, says, capsys):
    assert fails(capsys, 2, *words.split()) == f"mcvd: error: {says}"


@pytest.mark.parametrize(
    ("words", "says"),
    [
        ("data prepare a b --channels 2", ("--channels", "'1'", "'3'")),
        ("data prepare a b --size 16 x", ("--size", "HEIGHT WIDTH")),
        ("data prepare a b --size 16", ("--size",)),
        ("predict a.mp4 -- --", ("Unrecognized options: --;",)),
    ],
)
def test_no_words_of_python_and_no_help_text_in_what_is_said_of_options(words, says, capsys):
    said = fails(capsys, 2, *words.split())
    assert all(word in said for word in says)
    assert not any(word in said for word in ("None", "[", "tuple", "type"))
    assert len(said) < 300


def test_what_tyro_says_of_a_choice_between_types_is_said_plainly():
    text = [
        "Error parsing --size: no type matching {None}|{INT INT} could be ",
        "instantiated from ['16'].",
        "",
        "Got errors:",
        "- tuple[int, int]: input length 1 did not match expected argument",
        "count 2 of `[bold]INT INT[/bold]`",
        "─" * 66,
        "Argument helptext:",
        "    --size HEIGHT WIDTH",
        "    Of the stored frames, in pixels.",
        "─" * 66,
        "For full helptext, see mcvd data --help",
    ]
    said = "--size: cannot read '16'; write --size HEIGHT WIDTH"
    assert main_module._unboxed("\n".join(["╭─ Value error ─╮", *(f"│ {x:66} │" for x in text), "╰─╯"])) == said
    assert main_module._unboxed("\n".join([" Value error", *(f"  {x:66}" for x in text)])) == said


def test_a_clip_named_like_an_option_can_be_written_otherwise(clip, capsys):
    Path("-a.npz").write_bytes(Path("clip.npz").read_bytes())
    assert fails(capsys, 2, "info", "-a.npz").endswith("; write ./-a.npz (see mcvd info --help)")


def test_a_name_may_begin_like_the_home_folder_of_a_user_who_is_not_there(clip, models, capsys):
    clip.rename("~a.npz")
    assert main(["info", "~a.npz"]) == 0
    assert main(["predict", "~a.npz", "--model", models["tiny"], "--out", "~b.npz", *QUICK]) == 0
    assert Path("~b.npz").exists()
    assert "~c.npz does not exist" in fails(capsys, 1, "predict", "~c.npz", "--model", models["tiny"])
    assert "~c.pt is missing" in fails(capsys, 1, "import", "~c.pt", "--output", "~model")
    mcvd.load(models["tiny"]).save("~model")
    assert main(["info", "~model"]) == 0
    for command in ("report ~c", "compare ~c ~c", "data info ~c", "fetch i3d --source ~c", "fetch mnist --source ~c"):
        assert "~c" in fails(capsys, 1, *command.split())


def test_info_of_a_folder_of_clips_says_what_to_ask(clip, capsys):
    Path("vids").mkdir()
    assert "mcvd data info vids says" in fails(capsys, 1, "info", "vids")
    Path("vids/a.npz").write_bytes(Path("clip.npz").read_bytes())
    Path("vids/._a.npz").touch()  # what macOS leaves on other file systems
    assert "name one in it (vids/a.npz), or: mcvd data info vids" in fails(capsys, 1, "info", "vids")
    Path("vids/a.png").write_bytes(b"the sheet that predict writes beside it")
    assert "name one in it (vids/a.npz), or: mcvd data info vids" in fails(capsys, 1, "info", "vids")
    assert main(["info", str(write_video(Path("frames"), moving_strokes(3)))]) == 0
