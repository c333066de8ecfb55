"""What a run shows: validation by task and noise level, sheets and GIFs, trackers, rates, the live table."""

import dataclasses
import errno
import io
import json
import math
import sys
from types import SimpleNamespace
from unittest.mock import Mock

import pytest
import torch
from PIL import Image
from rich.console import Console
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

import tiny
from mcvd.cli.train import _say
from mcvd.data.sheet import GIVEN, MADE
from mcvd.draw import generator_at
from mcvd.errors import McvdError
from mcvd.layout import BlockLayout, Masking, hide, split
from mcvd.model import VideoDiffusion
from mcvd.training import meter as metering
from mcvd.training import run as running
from mcvd.training.checkpoint import last_checkpoint
from mcvd.training.estimate import estimate
from mcvd.training.live import LiveTable
from mcvd.training.log import RunLog
from mcvd.training.meter import Meter
from mcvd.training.recipe import OptimizerConfig, Recipe
from mcvd.training.run import train
from mcvd.training.samples import Sample, save_samples, side_by_side
from mcvd.training.source import to_model_range
from mcvd.training.trackers import JsonLines, TensorBoard, open_trackers
from mcvd.training.trainer import Trainer
from mcvd.training.validation import validate

CPU = torch.device("cpu")
CLIPS = tiny.video(24, 6, 1, 16, 16)
RECIPE = Recipe(
    model=tiny.config(), optimizer=OptimizerConfig(lr=1e-3, warmup=0), steps=2, batch=2, log_every=1, sample_every=2
)


def go(recipe, output, **options):
    """A short run -> the lines that it reported."""
    lines = []
    source = SimpleNamespace(batch=lambda indices: CLIPS[torch.as_tensor(indices) % len(CLIPS)])
    train(recipe, output, device="cpu", clips=lambda *_: source, report=lines.append, **options)
    return lines


# --- validation -------------------------------------------------------------------------------------------------------


@torch.no_grad()
def test_validation_is_the_mean_error_and_its_bins_are_parts_of_it():
    model = tiny.model()
    found = validate(model, CLIPS)
    draw = model.draw(len(CLIPS), generator_at(0, 0, CPU, stream=1))
    errors = 2 * model.loss(to_model_range(CLIPS, CPU), draw) / (3 * 16 * 16)
    assert found["validation"] == pytest.approx(float(errors.mean()), rel=1e-5)
    bins = {name: value for name, value in found.items() if name.startswith("validation/t")}
    assert list(bins) == [f"validation/t{i}-{i + 19}" for i in range(0, 100, 20)]
    for i, value in enumerate(bins.values()):
        inside = (draw.t >= 20 * i) & (draw.t < 20 * (i + 1))
        assert value == pytest.approx(float(errors[inside].mean()), rel=1e-5)


@torch.no_grad()
def test_noisy_conditions_are_measured_and_trained_with_the_noise_of_the_draw():
    model, clips = tiny.model(noisy_condition=True), tiny.video(4, 6, 1, 16, 16)
    torch.manual_seed(0)
    first = validate(model, clips)
    torch.manual_seed(1)
    assert validate(model, clips) == first
    video, draw = clips / 127.5 - 1, model.draw(4, torch.Generator().manual_seed(0))
    alone = [model.loss(video[i : i + 1], draw.rows(i, i + 1)) for i in range(4)]  # as processes take their rows
    torch.testing.assert_close(torch.cat(alone), model.loss(video, draw))


def test_every_task_is_measured_on_the_same_clips_times_and_noise():
    model = tiny.model()
    found = validate(model, CLIPS)
    assert list(found)[-4:] == [f"validation/{task}" for task in ("predict", "backward", "interpolate", "generate")]
    past, current, future = split(to_model_range(CLIPS[::4], CPU), model.layout)
    eps = model.draw(len(CLIPS), generator_at(0, 0, CPU, stream=1)).eps[::4]
    t = torch.tensor([8, 25, 41, 58, 75, 91])
    for task, (see_past, see_future) in tiny.OPEN.tasks(model.layout).items():
        yes = torch.ones(6, dtype=torch.bool)
        loss = model.loss_at(current, hide(past, yes & see_past), hide(future, yes & see_future), t, eps)
        per_value = 2 * loss.detach().mean() / (3 * 16 * 16)
        assert found[f"validation/{task}"] == pytest.approx(float(per_value), rel=1e-5), task


def test_validation_measures_what_training_showed_and_costs_at_most_twice_the_clips(monkeypatch):
    model, calls = tiny.model(masking=Masking(0.5, 0.0)), []
    loss = model.loss
    monkeypatch.setattr(model, "loss", lambda clips, draw: calls.append(len(clips)) or loss(clips, draw))
    tasks = {name for name in validate(model, CLIPS) if not name.startswith("validation/t")}
    assert tasks == {"validation", "validation/backward", "validation/interpolate"}
    assert sum(calls) <= 2 * len(CLIPS)
    assert Masking(0.5).tasks(BlockLayout(2, 3)) == {"predict": (True, False), "generate": (False, False)}
    assert Masking().tasks(BlockLayout(0, 3)) == {"generate": (False, False)}


# --- pictures ---------------------------------------------------------------------------------------------------------


def test_a_gif_has_the_clips_above_what_was_made_of_them():
    clips, made = CLIPS[:2], torch.rand(2, 6, 1, 16, 16)
    film = side_by_side(clips, Sample([True] * 2 + [False] * 4, made))
    assert film.shape == (6, 3, 36, 36)
    assert torch.equal(film[:, 1, 1:17, 19:35], clips[1, :, 0])
    assert torch.equal(film[:, 2, 19:35, 1:17], (made[0, :, 0] * 255).round().to(torch.uint8))
    assert [tuple(film[i, :, 18, 0].tolist()) for i in (0, 1, 2, 5)] == [GIVEN, GIVEN, MADE, MADE]
    assert side_by_side(clips, Sample([False] * 6, made)).shape == (6, 3, 18, 36)  # nothing given, nothing to compare


def test_the_default_device_does_not_matter_to_pictures(tmp_path):
    """It is often a GPU; here the one that holds no contents, so that anything left on it shows."""
    model = tiny.model()
    with torch.device("meta"):
        made = save_samples(model, CLIPS, tmp_path / "made")
    for name, path in save_samples(model, CLIPS, tmp_path / "again").items():
        assert path.read_bytes() == made[name].read_bytes()


def test_sheets_and_gifs_are_saved_for_each_task_and_tensorboard_shows_them(tmp_path):
    files = save_samples(tiny.model(masking=Masking(0.5, 0.0)), CLIPS, tmp_path / "step-1")
    assert {name: path.name for name, path in files.items()} == {
        "samples": "step-1.png",
        "samples/backward": "step-1-backward.gif",
        "samples/interpolate": "step-1-interpolate.gif",
    }
    board = TensorBoard(tmp_path / "board", 0)
    for name, path in files.items():
        board.picture(1, name, path)
    board.scalars(1, {"loss": 2.0, "validation/predict": 3.0})
    board.close()
    events = EventAccumulator(str(tmp_path / "board"))
    events.Reload()
    assert sorted(events.Tags()["images"]) == sorted(files)
    assert sorted(events.Tags()["scalars"]) == ["loss", "validation/predict"]
    for name, path in files.items():
        (image,) = events.Images(name)
        assert image.encoded_image_string == path.read_bytes()
        with Image.open(path) as opened:
            assert (image.width, image.height) == opened.size
            assert (opened.format, getattr(opened, "n_frames", 1)) == (("PNG", 1) if name == "samples" else ("GIF", 6))


def test_sheets_are_made_of_any_model(tmp_path):
    """Of few noise levels, and of more frames a second than a GIF can show."""
    model = VideoDiffusion(dataclasses.replace(tiny.config(steps=5), fps=240.0)).eval()
    assert all(path.is_file() for path in save_samples(model, CLIPS, tmp_path / "step-1").values())


def test_the_clips_that_are_shown_are_not_neighbours(tmp_path):
    """Neighbours among the test clips begin a few frames apart in the same video, where there are few videos."""
    clips = torch.arange(8, dtype=torch.uint8).mul(30).view(8, 1, 1, 1, 1).expand(8, 6, 1, 16, 16)
    with Image.open(save_samples(tiny.model(), clips, tmp_path / "step-1")["samples/predict"]) as opened:
        film = opened.convert("L")
    assert [film.getpixel((film.width * at // 4, film.height // 4)) for at in (1, 3)] == pytest.approx([0, 210], abs=4)


# --- trackers ---------------------------------------------------------------------------------------------------------


class Fake(SimpleNamespace):
    """As much of wandb, or trackio, as is used."""

    def __init__(self):
        super().__init__(calls=[])
        for name in ("init", "log", "finish"):
            setattr(self, name, lambda *a, _name=name, **k: self.calls.append((_name, a, k)))
        self.Image = lambda path: ("image", path)
        self.Video = lambda path, format: (format, path)


@pytest.mark.parametrize("package", ["wandb", "trackio"])
def test_a_hosted_tracker_gets_everything_and_is_continued(tmp_path, monkeypatch, package):
    fake = Fake()
    monkeypatch.setitem(sys.modules, package, fake)
    recipe = dataclasses.replace(RECIPE, tracker=package, model=tiny.config(masking=Masking()))
    go(recipe, tmp_path / "run")
    first, *logs, last = fake.calls
    assert (first[0], last[0]) == ("init", "finish")
    assert first[2]["project"] == "mcvd"
    assert first[2]["name"].startswith("run-")
    assert first[2]["resume"] == "allow"
    assert first[2]["config"]["steps"] == 2
    assert ("id" in first[2]) == (package == "wandb")
    assert all(name == "log" and set(more) == {"step"} for name, _, more in logs)
    assert [more["step"] for _, _, more in logs] == [1, 2, 2, 2, 2]
    sent = {name: value for _, (values,), _ in logs for name, value in values.items()}
    lines = [json.loads(line) for line in (tmp_path / "run" / "log.jsonl").read_text().splitlines()]
    assert {name: value for name, value in sent.items() if "samples" not in name} == {
        name: value for line in lines for name, value in line.items() if name != "step"
    }
    samples = tmp_path / "run" / "samples"
    assert sent["samples"] == ("image", str(samples / "step-000000002.png"))
    assert sent["samples/interpolate"] == ("gif", str(samples / "step-000000002-interpolate.gif"))
    go(dataclasses.replace(recipe, steps=3, sample_every=100), tmp_path / "run")
    assert fake.calls[len(logs) + 2][2]["name"] == first[2]["name"]


@pytest.mark.parametrize("package", ["wandb", "trackio"])
def test_a_tracker_that_is_not_installed_is_named_with_its_extra(tmp_path, monkeypatch, package):
    monkeypatch.setitem(sys.modules, package, None)  # as if it were not there
    assert [type(tracker) for tracker in open_trackers(tmp_path, RECIPE, 0)] == [JsonLines, TensorBoard]
    with pytest.raises(McvdError, match=rf"pip install 'mcvd\[{package}\]'"):
        open_trackers(tmp_path, dataclasses.replace(RECIPE, tracker=package), 0)


def test_lines_of_steps_that_are_made_again_are_dropped(tmp_path):
    path = tmp_path / "log.jsonl"
    first = JsonLines(path, 0)
    for step in (1, 2, 3):
        first.scalars(step, {"loss": float(step)})
    with path.open("a") as file:
        file.write('{"step": 4, "lo')
    JsonLines(path, 2).scalars(3, {"loss": 9.0})
    assert [json.loads(line)["loss"] for line in path.read_text().splitlines()] == [1.0, 2.0, 9.0]


# --- rates and the table ----------------------------------------------------------------------------------------------


def test_rates_count_the_steps_between_two_calls_and_not_what_lay_between_them(monkeypatch):
    now = [100.0]
    monkeypatch.setattr(metering, "time", SimpleNamespace(monotonic=lambda: now[0]))
    monkeypatch.setattr(metering, "matmul_rate", lambda device: 1e9)
    meter = Meter(RECIPE, CPU, processes=2, step=5)
    now[0] += 4
    rates = meter.rates(7)
    assert (rates["steps_per_second"], rates["clips_per_second"]) == (0.5, 1.0)
    assert rates["mfu"] == pytest.approx(0.5 * estimate(RECIPE).flops * (2 / 2) / 1e9)
    assert 0.01 < rates["memory_gb"] < 1000
    assert meter.rates(7) == {}
    now[0] += 1000  # sampling
    meter.restart(7)
    now[0] += 1
    assert meter.rates(8)["steps_per_second"] == 1.0


def test_the_time_of_validation_and_saving_is_in_no_rate(tmp_path, monkeypatch):
    now, step = [100.0], Trainer.train_step

    def slow(seconds, run):
        return lambda *args: (run(*args), now.__setitem__(0, now[0] + seconds))[0]

    monkeypatch.setattr(metering, "time", SimpleNamespace(monotonic=lambda: now[0]))
    monkeypatch.setattr(Trainer, "train_step", slow(0.5, step))
    for name in ("validate", "save_model", "save_checkpoint"):
        monkeypatch.setattr(running, name, slow(100.0, getattr(running, name)))
    monkeypatch.setitem(sys.modules, "mcvd.training.samples", None)  # a machine that makes no pictures
    go(dataclasses.replace(RECIPE, steps=5, log_every=3, save_every=3), tmp_path)
    lines = [json.loads(line) for line in (tmp_path / "log.jsonl").read_text().splitlines()]
    rated = [line["step"] for line in lines if "steps_per_second" in line]
    assert rated == [1, 2, 3, 4, 5]
    assert all("loss" in line for line in lines if "steps_per_second" in line)
    assert [line["steps_per_second"] for line in lines if "loss" in line] == [2.0] * 5
    assert [line["step"] for line in lines if "validation" in line] == [2, 4, 5]


def test_a_value_that_is_not_finite_is_shown_and_the_log_stays_json(tmp_path):
    lines = []
    with RunLog(tmp_path, RECIPE, 0, device=CPU, report=lines.append) as log:
        log.step(1, loss=1.0, validation=math.nan)
    assert "validation nan" in lines[0]
    (line,) = (tmp_path / "log.jsonl").read_text().splitlines()
    assert "NaN" not in line
    assert json.loads(line)["loss"] == 1.0


def test_the_time_left_does_not_count_the_first_step_which_may_compile(tmp_path, monkeypatch):
    now, lines = [0.0], []
    monkeypatch.setattr("mcvd.training.log.time", SimpleNamespace(monotonic=lambda: now[0]))
    recipe = dataclasses.replace(RECIPE, steps=101, compile=True)
    with RunLog(tmp_path, recipe, 0, device=CPU, report=lines.append) as log:
        for step, now[0] in ((1, 180.0), (11, 190.0), (31, 210.0)):
            log.step(step, loss=1.0)
    assert [line.split("left ")[1] for line in lines] == ["?", "0:01:30", "0:01:10"]
    assert json.loads((tmp_path / "log.jsonl").read_text().splitlines()[-1])["seconds"] == 210


def test_the_live_table_shows_the_newest_values_and_lines_stay_above_it():
    out = io.StringIO()
    table = LiveTable(10, Console(file=out, force_terminal=True, width=140))
    table.update(3, {"loss": 12.5, "steps_per_second": 2.5, "mfu": 0.125, "learning_rate": 0.1}, "0:00:03")
    table.say("[a] line")
    table.update(4, {"validation": 0.25}, "0:00:02")
    table.close()
    text = out.getvalue()
    last = text[text.rindex("4/10") :]
    assert all(word in last for word in ("12.5", "0.2500", "2.5", "12.5%", "0:00:02"))
    assert "[a] line" in text
    assert all(head in text for head in ("loss", "it/s", "samples/s", "memory", "MFU", "left"))
    assert "learning_rate" not in text


def test_a_run_is_saved_though_its_terminal_has_gone(tmp_path, monkeypatch):
    class Terminal(io.StringIO):
        def write(self, text: str) -> int:
            if "1/2" in text or self.closed_by_user:
                self.closed_by_user = True
                raise OSError(errno.EIO, "Input/output error")
            return super().write(text)

        closed_by_user = False

        def isatty(self) -> bool:
            return True

    monkeypatch.setattr("mcvd.training.log.RunLog.picture", lambda *a: None)
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setattr(sys, "stdout", terminal := Terminal())
    go(RECIPE, tmp_path / "run", live=True)
    assert terminal.closed_by_user
    assert sys.stdout is terminal  # rich has given it back
    assert last_checkpoint(tmp_path / "run").endswith("checkpoint-000000002.pt")


def test_lines_that_cannot_be_printed_do_not_end_a_run(monkeypatch):
    def full(*_: object, **__: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr("builtins.print", full)
    monkeypatch.setattr("mcvd.cli.main.drop_output", dropped := Mock())
    _say("step 1/2")
    dropped.assert_called_once_with()


def test_a_run_with_a_table_says_no_lines_for_its_steps_but_logs_the_same(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr("mcvd.training.log.RunLog.picture", lambda *a: None)
    monkeypatch.setenv("COLUMNS", "140")
    assert any(line.startswith("step 2/2") for line in go(RECIPE, tmp_path / "lines"))
    capsys.readouterr()
    assert go(RECIPE, tmp_path / "table", live=True) == []
    assert "2/2" in capsys.readouterr().out
    logs = [(tmp_path / name / "log.jsonl").read_text().splitlines() for name in ("lines", "table")]
    assert [[*json.loads(line)] for line in logs[0]] == [[*json.loads(line)] for line in logs[1]]
    assert json.loads(logs[0][0])["loss"] == json.loads(logs[1][0])["loss"]
