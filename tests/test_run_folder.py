"""The folder of a training run: one run at a time, never its own data, and a line about whatever cannot be."""

import os
import shutil
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import pytest
import torch

import mcvd
import tiny
from mcvd.cli.evaluate import Command as Evaluate
from mcvd.cli.main import main
from mcvd.data.prepare import Settings, info, prepare
from mcvd.data.prepare.items import find_items
from mcvd.data.video import write_video
from mcvd.device import usable_device
from mcvd.errors import McvdError
from mcvd.evaluation.presets import find_protocol
from mcvd.files import model_name
from mcvd.lock import locked
from mcvd.training.recipe import DataConfig, OptimizerConfig, Recipe
from mcvd.training.run import train

RECIPE = Recipe(
    model=tiny.config(multipliers=(1,)),
    optimizer=OptimizerConfig(lr=1e-3, warmup=0),
    steps=2,
    batch=2,
    log_every=1,
    save_every=1,
    sample_every=1000,
)


class Clips:
    def batch(self, indices):
        return torch.stack([tiny.video(6, 1, 16, 16, seed=int(i)) for i in indices])


@pytest.fixture(autouse=True)
def few_clips(monkeypatch):
    monkeypatch.setattr("mcvd.training.run.TEST_CLIPS", 4)
    monkeypatch.setattr("mcvd.training.source.TEST_CLIPS", 4)


def go(recipe, output, **options):
    """A run in this process -> what it reported."""
    lines: list[str] = []
    train(recipe, output, **{"device": "cpu", "clips": lambda *_: Clips(), "report": lines.append, **options})
    return lines


# --- never its own data -----------------------------------------------------------------------------------------------


def test_a_run_inside_the_folder_of_the_videos_is_not_trained_on_its_own_samples(tmp_path, monkeypatch):
    monkeypatch.setenv("MCVD_CACHE", str(tmp_path / "cache"))
    here, run = tmp_path / "here", tmp_path / "here" / "runs" / "mine"
    for i in range(3):
        write_video(here / f"{i}.npz", tiny.video(8, 1, 16, 16, seed=i))
    recipe = replace(RECIPE, data=DataConfig("videos", str(here)), sample_every=1)
    assert "3 videos, 24 frames" in go(recipe, run, clips=None)[0]
    assert list((run / "samples").glob("*.gif"))
    assert "3 videos, 24 frames" in go(replace(recipe, steps=3), run, clips=None)[0]
    assert info(here).ignored == {"folder of mcvd's own (runs/mine)": 1}
    with pytest.raises(McvdError, match="here is the folder of the data; choose another --output"):
        go(recipe, here, clips=None)


def test_what_mcvd_prepared_or_measured_is_not_found_among_videos(tmp_path):
    for i in range(2):
        write_video(tmp_path / "raw" / f"{i}.npz", tiny.video(4, 1, 16, 16, seed=i))
    prepare(tmp_path / "raw", tmp_path / "all" / "data", Settings((16, 16), 1))
    for name in ("all/results/videos/0.npz", "all/mine.npz", "all/samples/also_mine.npz"):
        write_video(tmp_path / name, tiny.video(4, 1, 16, 16))
    (tmp_path / "all" / "results" / "identity.json").write_text("{}")
    items, ignored = find_items(tmp_path / "all")
    assert [item.name for item in items] == ["mine.npz", "samples/also_mine.npz"]
    assert list(ignored) == ["folder of mcvd's own (data)", "folder of mcvd's own (results)"]
    assert len(find_items(tmp_path / "all" / "results")[0]) == 1  # who names it means it


# --- one run at a time ------------------------------------------------------------------------------------------------


def test_a_second_run_into_the_same_folder_is_refused(tmp_path):
    refused = []

    def report(line):
        if not refused:
            with pytest.raises(
                McvdError, match="another run is using .*run; wait for its end, or choose another --output"
            ):
                go(RECIPE, tmp_path / "run")
            refused.append(line)

    go(RECIPE, tmp_path / "run", report=report)
    assert refused
    assert go(RECIPE, tmp_path / "run")[0].startswith("nothing is left to do")


HOLD = """
import sys, time
from pathlib import Path
from mcvd.lock import locked

with locked(Path(sys.argv[1]), exit):
    print("held", flush=True)
    time.sleep(60)
"""


def test_a_process_that_is_killed_holds_nothing(tmp_path):
    def busy():
        raise McvdError("busy")

    environment = {**os.environ, "PYTHONPATH": str(Path(mcvd.__file__).parent.parent)}
    command = [sys.executable, "-c", HOLD, str(tmp_path / "run")]
    with subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, text=True) as holder:
        assert holder.stdout.readline() == "held\n"
        with pytest.raises(McvdError, match="busy"), locked(tmp_path / "run", busy):
            pass
        began = time.monotonic()
        holder.send_signal(signal.SIGKILL)
    with locked(tmp_path / "run", busy):
        assert time.monotonic() - began < 10


def test_a_disk_without_locks_is_no_hindrance(tmp_path, monkeypatch):
    import fcntl

    def none(*_):
        raise OSError("No locks available")

    monkeypatch.setattr(fcntl, "flock", none)
    go(RECIPE, tmp_path / "run")
    assert (tmp_path / "run" / "model" / "config.json").is_file()


@pytest.mark.parametrize("place", ["file", "file/run", "/proc/run"])
def test_a_place_that_can_be_no_folder_is_one_line(tmp_path, place):
    (tmp_path / "file").write_text("mine")
    with pytest.raises(McvdError, match=r"^cannot use \S+ as a folder \(.+\); choose another$"):
        go(RECIPE, tmp_path / place)
    write_video(tmp_path / "raw" / "a.npz", tiny.video(4, 1, 16, 16))
    with pytest.raises(McvdError, match=r"^cannot use \S+ as a folder \(.+\); choose another$"):
        prepare(tmp_path / "raw", tmp_path / place, Settings((16, 16), 1))


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"recorded": True}, "only steps on a GPU can be recorded, not on cpu; set recorded to false"),
        ({"accumulate": 3}, "batch 2 does not divide among 1 processes of 3 parts"),
        ({"precision": "fp16"}, "cpu has no fast fp16"),
        ({"tracker": "wandb"}, "tracker wandb is a package that is not installed"),
        ({"model": tiny.config(width=16)}, "most of the weights to start from do not fit"),
    ],
)
def test_what_cannot_work_is_said_before_videos_are_prepared_or_a_folder_is_made(tmp_path, monkeypatch, options, says):
    monkeypatch.setenv("MCVD_CACHE", str(tmp_path / "cache"))
    monkeypatch.setitem(sys.modules, "wandb", None)  # as if it were not installed
    tiny.model().save(tmp_path / "start")
    write_video(tmp_path / "raw" / "a.npz", tiny.video(8, 1, 16, 16))
    recipe = replace(RECIPE, data=DataConfig("videos", str(tmp_path / "raw")), **options)
    with pytest.raises(McvdError, match=f"^{says}"):
        go(recipe, tmp_path / "run", clips=None, init_from=tmp_path / "start" if "model" in options else None)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["raw", "start"]


@pytest.mark.parametrize("only_best", [False, True])
def test_a_model_whose_checkpoints_are_gone_is_not_overwritten(tmp_path, monkeypatch, only_best):
    errors = iter([3.0, 2.0, 1.0, *[4.0] * 9])
    monkeypatch.setattr("mcvd.training.run.validate", lambda *_: {"validation": next(errors)})
    run = tmp_path / "run"
    go(replace(RECIPE, steps=3, save_every=2, sample_every=1), run)
    for path in run.glob("checkpoint-*.pt"):
        path.unlink()
    if only_best:
        shutil.rmtree(run / "model")
    before = {path: path.read_bytes() for path in run.rglob("*") if path.is_file()}
    with pytest.raises(
        McvdError, match="run holds a model of 3 steps and no checkpoint to continue from: choose anoth"
    ):
        go(replace(RECIPE, steps=4, save_every=2), run)
    assert {path: path.read_bytes() for path in run.rglob("*") if path.is_file()} == before
    assert go(replace(RECIPE, steps=4, save_every=3), run)[0].startswith("step 1/4 ")  # as after a kill before a save


def test_a_cache_that_cannot_be_written_is_named(tmp_path, monkeypatch):
    (tmp_path / "file").write_text("mine")
    monkeypatch.setenv("MCVD_CACHE", str(tmp_path / "file"))
    write_video(tmp_path / "raw" / "a.npz", tiny.video(8, 1, 16, 16))
    with pytest.raises(McvdError, match=r"^cannot use .* as a folder .*; MCVD_CACHE says where the cache is$"):
        go(replace(RECIPE, data=DataConfig("videos", str(tmp_path / "raw"))), tmp_path / "run", clips=None)


def test_a_run_without_a_model_yet_says_so(tmp_path, capsys):
    diverging = replace(RECIPE, optimizer=OptimizerConfig(lr=1e30, warmup=0), steps=9, save_every=100)
    with pytest.raises(McvdError, match="the loss is .*; the last good checkpoint is none"):
        go(diverging, tmp_path)
    with pytest.raises(McvdError, match=f"^{tmp_path} is a run of mcvd train that has not saved a model yet$"):
        mcvd.load(tmp_path)
    assert main(["info", str(tmp_path)]) == 1
    assert "has not saved a model yet" in capsys.readouterr().err


# --- what is said -----------------------------------------------------------------------------------------------------


def test_a_run_that_goes_on_says_what_is_new_and_what_is_not_used(tmp_path):
    tiny.model(multipliers=(1,)).save(tmp_path / "start")
    go(RECIPE, tmp_path / "run")
    assert go(replace(RECIPE, steps=3), tmp_path / "run")[:1] == [f"continuing {tmp_path / 'run'} at step 2"]
    other = replace(RECIPE, steps=4, batch=4, optimizer=replace(RECIPE.optimizer, lr=0.5))
    lines = go(other, tmp_path / "run", init_from=tmp_path / "start")
    assert lines[1] == "note: from here on optimizer.lr 0.5 (was 0.001), batch 4 (was 2)"
    assert (
        lines[2]
        == f"note: {tmp_path / 'run'} continues from its own weights; those of {tmp_path / 'start'} are for a new run"
    )
    assert mcvd.load(tmp_path / "run").notes == {"steps": 4, "clips_seen": 3 * 2 + 4}
    assert "note: from here on" not in " ".join(go(replace(other, steps=5), tmp_path / "run"))
    moved = replace(other, steps=6, data=DataConfig("videos", str(tmp_path / "moved")))
    said = f"note: until now it was trained on videos, from here on {tmp_path / 'moved'}"
    assert go(moved, tmp_path / "run")[1] == said


def test_where_nothing_is_left_to_do_that_is_all(tmp_path):
    go(RECIPE, tmp_path / "run")
    before = {path: path.read_bytes() for path in (tmp_path / "run").rglob("*") if path.is_file()}
    lines = go(replace(RECIPE, steps=1), tmp_path / "run")
    assert lines == [f"nothing is left to do: {tmp_path / 'run'} is at step 2 of 1; --steps asks for more"]
    assert {path: path.read_bytes() for path in (tmp_path / "run").rglob("*") if path.is_file()} == before


def test_a_device_that_is_not_there_is_one_line(tmp_path):
    assert usable_device("cpu") == "cpu"
    for device in ("meta", "hpu", "nonsense", "cuda:99"):
        with pytest.raises(McvdError, match=f"torch cannot use the device '{device}' on this machine; try cpu"):
            go(RECIPE, tmp_path / "run", device=device)
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("fps", [float("inf"), float("nan"), 1001.0, 0.0])
def test_rates_that_no_disk_has_room_for_are_refused(tmp_path, fps, capsys):
    with pytest.raises(McvdError, match=r"fps is .*; it must be above 0 and at most 1000"):
        Settings(fps=fps)
    write_video(tmp_path / "raw" / "a.npz", tiny.video(4, 1, 16, 16))
    recipe = replace(RECIPE, data=DataConfig("videos", str(tmp_path / "raw"), fps=fps))
    with pytest.raises(McvdError, match="fps is"):
        go(recipe, tmp_path / "run", clips=None)
    assert main(["data", "prepare", str(tmp_path / "raw"), str(tmp_path / "out"), "--fps", str(fps)]) == 2
    assert "--fps" in capsys.readouterr().err


def test_the_costs_of_a_run_whose_data_are_not_here_come_with_a_note(tmp_path, capsys):
    words = ["train", "digits", "--dry-run", "--device", "cpu", "--data"]
    assert main([*words, "nothere"]) == 0
    assert capsys.readouterr().out.splitlines()[-1].startswith("note: nothere does not exist on this machine")
    assert main([*words, str(tmp_path)]) == 0
    assert "note:" not in capsys.readouterr().out


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (["train", "digits", "--dry-run", "--device", "meta"], "torch cannot use the device 'meta'"),
        (["data", "prepare", "raw", "out", "--size", "16"], "--size"),
        (["data", "prepare", "raw", "out", "--size", "16", "x"], "'x' is not a whole number"),
        (["data", "prepare", "raw", "out", "--test-share", "x"], "'x' is not a number"),
    ],
)
def test_words_that_cannot_be_are_one_plain_line(words, says, capsys):
    assert main(words) != 0
    said = capsys.readouterr().err
    assert says in said
    assert said.count("\n") == 1
    assert "[bold]" not in said


def test_models_of_a_run_are_called_by_its_name(tmp_path, monkeypatch):
    for folder in ("mine/model", "mine/best", "mine/samples", "other/model"):
        (tmp_path / folder).mkdir(parents=True)
    (tmp_path / "mine" / "recipe.yaml").touch()
    monkeypatch.chdir(tmp_path / "mine")
    names = {"..": tmp_path.name, ".": "mine", "model": "mine", "best/": "mine-best", "../other/model": "model"}
    assert {path: model_name(path) for path in names} == names
    best = Evaluate(model="../mine/best", protocol="videos-5to10")
    folder = best._folder(find_protocol("videos-5to10"), "ddim")
    assert folder == Path("runs/evaluate/mine-best-videos-5to10-ddim")
