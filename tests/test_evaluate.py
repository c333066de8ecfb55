"""`mcvd evaluate`: the same number however it was computed, and never under another name."""

import copy
import json
import os
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from safetensors import SafetensorError
from safetensors.torch import save_file

import tiny
from mcvd.cli.evaluate import local_device
from mcvd.cli.main import main
from mcvd.data.clips import published_starts
from mcvd.data.moving_mnist import MovingMNIST, find_mnist, load_digits
from mcvd.data.prepare import Settings, prepare
from mcvd.errors import McvdError
from mcvd.evaluation import statistics, summary
from mcvd.evaluation.clips import content, real_clips
from mcvd.evaluation.evaluate import Sampling, _system, check_fit, evaluate
from mcvd.evaluation.folder import Folder
from mcvd.evaluation.frechet import Moments, frechet_distance, kernel_distance
from mcvd.evaluation.image import psnr
from mcvd.evaluation.measure import Instruments, measure
from mcvd.evaluation.presets import PRESETS, find_protocol
from mcvd.evaluation.protocol import Protocol
from mcvd.evaluation.result import Result, Source
from mcvd.evaluation.run import Worker, _batches
from mcvd.evaluation.statistics import (
    half_width,
    kvd_number,
    numbers,
    resampled_counts,
    resampled_frechet,
    videos_of,
)
from mcvd.evaluation.table import Table
from mcvd.interop.load import load
from mcvd.reports.report import write_report
from mcvd.text import counted

PROTOCOL = Protocol(
    "tiny", "noise", "predict", past=2, frames=7, size=(16, 16), channels=1, clips=6, samples=2, binary=True
)
SAMPLING = Sampling("dpm++", 2, batch_size=4)  # two clips at once


class Clips:
    """Clip i is noise, a function of i."""

    def __init__(self, frames=9):
        self.frames = frames

    def batch(self, indices):
        return torch.stack([tiny.video(self.frames, 1, 16, 16, seed=int(i)) for i in indices])


def features(videos):
    """8 numbers of a video."""
    return torch.stack([videos.mean((2, 3, 4))[:, :4], videos.std((2, 3, 4))[:, :4]], 1).flatten(1)


def distance(a, b):
    return (a.float() - b.float()).abs().mean((1, 2, 3))


STUBS = Instruments(features, distance, {"i3d": "stub", "lpips": "stub"})


@pytest.fixture(scope="module")
def model():
    return tiny.model()


@pytest.fixture(autouse=True)
def own_cache(tmp_path, monkeypatch):
    monkeypatch.setenv("MCVD_CACHE", str(tmp_path / "cache"))


def go(model, output, protocol=PROTOCOL, **options):
    lines = []
    options = {"name": "tiny", "clips": Clips(protocol.clip_frames), "sampling": SAMPLING, "instruments": STUBS,
               "report": lines.append, **options}  # fmt: skip
    return evaluate(model, protocol, output, **options), lines


def by_definition(real, fake):
    """KVD of made videos that belong to clips, over pairs of different clips; real (N, D), fake (N, S, D)."""

    def k(a, b):
        return float((a @ b) / len(a) + 1) ** 3

    total, n, s = 0.0, *fake.shape[:2]
    for i in range(n):
        for j in range(n):
            if i != j:
                total += k(real[i], real[j])
                total += sum(k(a, b) for a in fake[i] for b in fake[j]) / s**2
                total -= 2 * sum(k(real[i], b) for b in fake[j]) / s
    return total / (n * (n - 1))


def same(a, b, tolerance=0.0):
    """Two results hold the same numbers."""
    assert a.numbers.keys() == b.numbers.keys()
    for name, one in a.numbers.items():
        other = b.numbers[name]
        assert (one.low is None, one.interval, one.of) == (other.low is None, other.interval, other.of)
        ends = [(one.value, other.value)] + ([] if one.low is None else [(one.low, other.low), (one.high, other.high)])
        for x, y in ends:
            assert x == pytest.approx(y, rel=tolerance, abs=tolerance), name
    for name, curve in a.frames.items():
        assert curve == pytest.approx(b.frames[name], rel=tolerance, abs=tolerance), name
    assert (a.protocol, a.system, a.data, a.clips, a.samples) == (b.protocol, b.system, b.data, b.clips, b.samples)


@pytest.fixture(scope="module")
def whole(model, tmp_path_factory):
    folder = tmp_path_factory.mktemp("evaluate") / "whole"
    os.environ["MCVD_CACHE"] = str(folder.parent / "cache")
    try:
        return go(model, folder)[0], folder
    finally:
        del os.environ["MCVD_CACHE"]


# --- what is measured ---------------------------------------------------------------------------------------------


def test_numbers_are_those_of_the_metrics_written_out(model, whole):
    result, folder = whole
    real = Clips().batch(range(6))
    made = model.fill(real, PROTOCOL.known, samples=2, solver="dpm++", steps=2, batch_size=12).unflatten(0, (6, 2))
    truth = (2 * (real.float() / 255) - 1 + 1) / 2
    each = psnr(made[:, :, 2:], truth[:, None, 2:].expand(-1, 2, -1, -1, -1, -1))
    assert result.numbers["psnr"].value == pytest.approx(float(each.amax(1).mean()), abs=1e-4)
    fvd = frechet_distance(Moments(features(truth)), Moments(features(made.flatten(0, 1))))
    assert result.numbers["fvd"].value == pytest.approx(fvd, rel=1e-4)
    x, y = features(truth).double(), features(made.flatten(0, 1)).unflatten(0, (6, 2)).double()
    kvd = by_definition(x, y)
    assert result.numbers["kvd"].value == pytest.approx(kvd, abs=1e-6)
    each_fvd = [frechet_distance(Moments(features(truth)), Moments(features(made[:, s]))) for s in range(2)]
    assert result.numbers["fvd_trajectory"].value == pytest.approx(sum(each_fvd) / 2, rel=1e-4)
    table = Folder(folder).table()
    rows, fakes = table.rows("real", sample=0), table.grid("features")
    each_fvd = [frechet_distance(Moments(rows), Moments(fakes[:, s])) for s in range(2)]
    assert result.numbers["fvd_trajectory"].value == pytest.approx(sum(each_fvd) / 2, rel=1e-12)  # not float32
    assert {"ssim", "lpips", "crps", "spread_skill"} <= set(result.numbers)
    assert all(len(curve) == PROTOCOL.frames for curve in result.frames.values())
    assert result.complete
    saved = np.load(folder / "videos" / "00003.npz")
    assert np.array_equal(saved["real"], real[3].numpy())
    assert np.array_equal(saved["made"], (made[3] * 255).round().to(torch.uint8).numpy())
    assert np.array_equal(saved["made"][1, :2], saved["real"][:2])  # the given frames are in place


@pytest.mark.parametrize(("size", "seen"), [(128, 128), (24, 24), (None, 16)])
def test_lpips_is_of_frames_of_the_size_that_the_protocol_states(size, seen):
    sizes = set()

    def network(a, b):
        sizes.update(a.shape[-2:])
        sizes.update(b.shape[-2:])
        return distance(a, b)

    real = Clips().batch(range(1))
    measure(replace(PROTOCOL, lpips_size=size), ("lpips",), Instruments(features, network, {}), 0, real, real[:, None])
    assert sizes == {seen}


def test_digits_are_rounded_to_black_and_white_for_ssim_alone(model):
    """As published: LPIPS is of the frames as they are."""
    real = Clips().batch(range(2))
    made = torch.rand(2, 2, 9, 1, 16, 16, generator=torch.Generator().manual_seed(0))
    protocols = (PROTOCOL, replace(PROTOCOL, binary=False))
    digits, others = (measure(p, ("ssim", "lpips"), STUBS, 0, real, made) for p in protocols)
    assert torch.equal(digits.rows("lpips"), others.rows("lpips"))
    assert not torch.equal(digits.rows("ssim"), others.rows("ssim"))
    assert "SSIM (rounded to black and white) and LPIPS at 128 px" in PROTOCOL.words


def test_the_folder_holds_what_is_promised(whole):
    result, folder = whole
    assert sorted(item.name for item in folder.iterdir()) == [
        "identity.json", "result.json", "result.md", "rows.safetensors", "videos",
    ]  # fmt: skip
    assert Result.load(folder) == result
    text = (folder / "result.md").read_text()
    assert PROTOCOL.words in text
    assert result.data[:12] in text
    assert "| tiny, dpm++ 2 steps |" in text
    again, _ = numbers(Table.load(folder / "rows.safetensors"), PROTOCOL, ("psnr", "fvd", "kvd"))
    assert again["fvd"] == result.numbers["fvd"]  # the rows alone give the numbers and intervals again


def test_fvd_of_made_frames_alone_differs(model, tmp_path, whole):
    result, _ = go(model, tmp_path / "made", replace(PROTOCOL, frames=9, name="longer", fvd="made"), metrics=["fvd"])
    assert set(result.numbers) == {"fvd", "fvd_trajectory"}
    assert result.numbers["fvd"].value != whole[0].numbers["fvd"].value


@pytest.mark.parametrize("task", ["generate", "interpolate", "backward"])
def test_other_tasks(model, tmp_path, task):
    layouts = {"generate": (0, 9, 0), "interpolate": (2, 6, 1), "backward": (0, 8, 1)}
    past, frames, future = layouts[task]
    protocol = replace(PROTOCOL, name=task, task=task, past=past, frames=frames, future=future, clips=3)
    result, _ = go(model, tmp_path / task, protocol)
    assert ("psnr" in result.numbers) == (task != "generate")
    assert result.numbers["fvd"].value > 0


# --- the same number however it was computed ----------------------------------------------------------------------


class Stop(Exception):
    pass


def test_a_killed_evaluation_goes_on_to_the_same_number(model, tmp_path, whole):
    def killed(done, total):
        if done >= 4:
            raise Stop

    with pytest.raises(Stop):
        go(model, tmp_path / "run", progress=killed)
    assert not (tmp_path / "run" / "result.json").exists()
    assert len(list((tmp_path / "run" / "rows").glob("*.safetensors"))) == 1
    made = []
    result, lines = go(model, tmp_path / "run", progress=lambda done, total: made.append((done, total)))
    assert "2 of 6 clips are done" in lines[0]
    assert made == [(4, 8), (8, 8)]
    same(result, whole[0])
    again, _ = go(model, tmp_path / "run", progress=lambda done, total: pytest.fail("nothing is left to do"))
    assert again == result


def test_kill_9_at_any_moment_leaves_a_folder_that_goes_on(model, tmp_path, whole):
    name = model.save(tmp_path / "model")
    code = (
        "import os, sys; sys.path.insert(0, 'tests')\n"
        "from test_evaluate import *\n"
        f"model = VideoDiffusion.from_folder({str(name)!r})\n"
        "go(model, sys.argv[1], progress=lambda done, total: done < 8 or os.kill(os.getpid(), 9))\n"
    )
    root = Path(__file__).parent.parent
    code = "from mcvd.model import VideoDiffusion\n" + code
    done = subprocess.run([sys.executable, "-c", code, str(tmp_path / "run")], cwd=root, check=False)
    assert done.returncode == -9
    (tmp_path / "run" / "rows" / "00004-00006.safetensors.abcd").write_bytes(b"half")  # as a kill while writing leaves
    result, _ = go(model, tmp_path / "run")
    same(result, whole[0], 1e-6)


def test_batches_of_another_size_change_rounding_at_most(model, tmp_path, whole):
    result, _ = go(model, tmp_path / "run", sampling=replace(SAMPLING, batch_size=12))
    same(result, whole[0], 1e-3)


def test_the_default_device_does_not_matter(model, tmp_path, whole):
    """It is often a GPU; here the one that holds no contents, so that anything left on it shows."""
    with torch.device("meta"):
        result, _ = go(model, tmp_path / "run")
        write_report(tmp_path / "run")
    same(result, whole[0])


def test_processes_share_the_work_and_find_the_same_number(model, tmp_path, whole):
    last, _ = go(model, tmp_path / "run", worker=Worker(1, 2))
    assert last is None
    rows = sorted(file.stem for file in (tmp_path / "run" / "rows").iterdir())
    assert rows == ["00002-00004"]
    first, _ = go(model, tmp_path / "run", worker=Worker(0, 2))
    same(first, whole[0])


def test_batches_begin_where_they_always_do():
    """Whatever is done already: what is batched together may not depend on where a start was interrupted."""
    table = Table()
    table.add([1, 5], 0, seconds=torch.ones(2))
    job = SimpleNamespace(clips=10, batch=4)
    assert _batches(job, table) == [(0, 1), (2, 4), (4, 5), (6, 8), (8, 10)]


def test_torchrun_with_two_processes(model, tmp_path, whole):
    name = model.save(tmp_path / "model")
    script = tmp_path / "script.py"
    script.write_text(
        "import sys; sys.path.insert(0, 'tests')\n"
        "from mcvd.model import VideoDiffusion\n"
        "from test_evaluate import go\n"
        f"go(VideoDiffusion.from_folder({str(name)!r}), sys.argv[1])\n"
    )
    command = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", "2", "--master-port", "0",
               str(script), str(tmp_path / "run")]  # fmt: skip
    done = subprocess.run(command, cwd=Path(__file__).parent.parent, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    same(Result.load(tmp_path / "run"), whole[0], 1e-6)


def test_two_starts_at_once_in_one_folder_come_to_the_number(model, tmp_path, whole):
    """Both measure the clips, in other batches; the second one finds the rows of the first beside its own."""

    def other(done, total):
        if done == 4:
            go(model, tmp_path / "other", sampling=replace(SAMPLING, batch_size=6), progress=two_batches)

    def two_batches(done, total):
        if done >= 12:
            for file in (tmp_path / "other" / "rows").iterdir():
                shutil.copy(file, tmp_path / "run" / "rows")
            raise Stop

    with pytest.raises(Stop):
        go(model, tmp_path / "run", progress=other)
    rows = sorted(file.stem for file in (tmp_path / "run" / "rows").iterdir())
    assert rows == ["00000-00002", "00000-00003", "00003-00006"]
    assert Folder(tmp_path / "run").clips_done() == 6
    result, _ = go(model, tmp_path / "run")
    same(result, whole[0], 1e-3)


def test_rows_of_one_clip_may_differ_by_rounding_and_time_alone():
    table = Table()
    table.add([6], 0, ssim=torch.tensor([[0.9, 0.8]]), seconds=torch.tensor([3.0]))
    table.add([6], 0, ssim=torch.tensor([[0.901, 0.8]]), seconds=torch.tensor([4.0]))
    assert table.rows("seconds").item() == 3
    assert table.rows("ssim")[0].tolist() == pytest.approx([0.9, 0.8])
    with pytest.raises(McvdError, match="clip 6, sample 0 was measured twice with different ssim"):
        table.add([6], 0, ssim=torch.tensor([[0.3, 0.6]]))


def test_clips_that_another_start_finishes_are_not_waited_for(model, tmp_path, whole, monkeypatch):
    go(model, tmp_path / "run", worker=Worker(1, 2))
    looks = []

    def finished_by_another(seconds):
        looks.append(seconds)
        assert len(looks) < 3
        shutil.rmtree(tmp_path / "run")
        shutil.copytree(whole[1], tmp_path / "run")

    monkeypatch.setattr("mcvd.evaluation.run.time.sleep", finished_by_another)
    monkeypatch.setattr("mcvd.evaluation.run._batches", lambda job, table: [])
    result, _ = go(model, tmp_path / "run", worker=Worker(0, 2))
    same(result, whole[0])


def test_rows_merge_in_any_order(model, tmp_path, whole):
    table = Table.load(whole[1] / "rows.safetensors")
    parts = []
    for clip in (4, 0, 5, 2, 1, 3):
        part = Table()
        for sample in range(2):
            part.add([clip], sample, features=table.rows("features", sample)[[clip]])
        part.add([clip], 0, real=table.rows("real", 0)[[clip]])
        parts.append(part)
    merged, _ = numbers(Table().merge(*parts), PROTOCOL, ("fvd",))
    assert merged["fvd"].value == pytest.approx(whole[0].numbers["fvd"].value, rel=1e-6)


def test_real_features_are_computed_once(model, tmp_path, whole):
    go(model, tmp_path / "first")
    seen = []

    def counted(videos):
        seen.append(len(videos))
        return features(videos)

    result, _ = go(model, tmp_path / "second", instruments=replace(STUBS, features=counted))
    assert sum(seen) == 12  # the made ones alone
    same(result, whole[0])


def test_real_features_in_the_cache_are_of_the_same_frames_by_the_same_network(model, tmp_path):
    protocol = replace(PROTOCOL, frames=9, clips=2)
    ways = [(protocol, STUBS), (replace(protocol, pixels="plain"), STUBS), (replace(protocol, fvd="made"), STUBS),
            (protocol, replace(STUBS, hashes={"i3d": "other"}))]  # fmt: skip
    for number, (protocol, instruments) in enumerate(ways, 1):
        go(model, tmp_path / str(number), protocol, instruments=instruments, metrics=["fvd"])
        assert len(list((tmp_path / "cache" / "features").iterdir())) == number


@pytest.mark.parametrize("damage", ["cut", "short"])
def test_damaged_features_in_the_cache_are_computed_again(model, tmp_path, whole, damage):
    go(model, tmp_path / "first")
    (file,) = (tmp_path / "cache" / "features").iterdir()
    good = file.read_bytes()
    if damage == "cut":
        file.write_bytes(good[:100])
    else:
        save_file({"real": torch.zeros(5, 8)}, file)
    result, _ = go(model, tmp_path / "second")
    same(result, whole[0])
    assert file.read_bytes() == good


def test_a_cache_that_cannot_be_written_costs_no_result(model, tmp_path, whole):
    (tmp_path / "cache").mkdir()
    (tmp_path / "cache" / "features").write_text("as where others own the cache")
    result, _ = go(model, tmp_path / "first")
    same(result, whole[0])


def test_rows_that_cannot_be_written_are_one_clear_error(model, tmp_path, monkeypatch):
    def fail(*_):
        raise SafetensorError("Error while serializing: No space left on device")

    monkeypatch.setattr("mcvd.evaluation.files.save_file", fail)
    with pytest.raises(McvdError, match=r"cannot write .*00000-.*\.safetensors: .*No space left on device"):
        go(model, tmp_path / "first")


def test_rows_that_somebody_removes_are_not_waited_for(model, tmp_path, monkeypatch):
    table = Folder.table

    def removed(folder):
        for file in list(folder.rows.glob("*.safetensors"))[:1]:
            file.unlink()
        return table(folder)

    monkeypatch.setattr(Folder, "table", removed)
    with pytest.raises(McvdError, match=r"the rows of \d clips? are missing from .*first; run the same again"):
        go(model, tmp_path / "first")


@pytest.mark.parametrize(("rank", "count"), [("1", None), ("abc", "2"), ("0", "0"), ("-1", "2"), ("2", "2")])
def test_processes_that_cannot_be_are_refused(monkeypatch, rank, count):
    monkeypatch.setenv("RANK", rank)
    if count is None:
        monkeypatch.delenv("WORLD_SIZE", raising=False)
    else:
        monkeypatch.setenv("WORLD_SIZE", count)
    with pytest.raises(McvdError, match=f"RANK={rank} and WORLD_SIZE={count or 1} in the environment"):
        Worker.of_torchrun()


# --- counts ---------------------------------------------------------------------------------------------------------


def test_clips_that_repeat_are_told(model, tmp_path):
    class Few(Clips):
        def batch(self, indices):
            return super().batch([i % 4 for i in indices])

    result, lines = go(model, tmp_path / "run", clips=Few())
    assert result.different == 4
    assert "note: 4 of 6 clips are distinct, the others repeat them" in lines
    assert "only 4 of 6 clips are distinct" in " ".join(summary.lines(result))
    assert "Only 4 of 6 clips are distinct" in (tmp_path / "run" / "result.md").read_text()
    assert "Only 4 of 6 clips are distinct" in write_report(tmp_path / "run")[1].read_text()


def test_one_clip_has_no_fvd_and_says_so(model, tmp_path):
    result, lines = go(model, tmp_path / "run", replace(PROTOCOL, clips=1), metrics=["fvd"])
    assert not result.numbers
    assert "note: FVD and KVD need at least 2 clips, there is 1: they are left out" in lines
    result, _ = go(model, tmp_path / "psnr", replace(PROTOCOL, clips=1), metrics=["psnr"])
    assert result.numbers["psnr"].of.endswith("mean over 1 clip")
    assert "; 1 clip (" in result.protocol.words


# --- nothing under another name -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"protocol": replace(PROTOCOL, samples=3)}, "protocol.samples 2, not 3"),
        ({"sampling": replace(SAMPLING, steps=3)}, "system.steps 2, not 3"),
        ({"sampling": replace(SAMPLING, seed=1)}, "system.seed 0, not 1"),
        ({"metrics": ["psnr"]}, "metrics"),
        ({"instruments": replace(STUBS, hashes={"i3d": "other"})}, "networks"),
    ],
)
def test_a_folder_of_another_evaluation_is_refused(model, whole, change, said):
    before = (whole[1] / "result.json").read_bytes()
    with pytest.raises(McvdError, match=f"holds another evaluation .*{said}"):
        go(model, whole[1], **change)
    assert (whole[1] / "result.json").read_bytes() == before


def test_other_weights_and_other_data_are_refused(model, whole):
    with pytest.raises(McvdError, match="holds another evaluation .*weights"):
        go(tiny.model(1), whole[1])
    with pytest.raises(McvdError, match="holds another evaluation .*data"):
        go(model, whole[1], clips=type("Other", (), {"batch": lambda self, i: 255 - Clips().batch(i)})())


def test_a_system_is_its_weights_its_configuration_and_its_steps(model):
    def system(**options):
        return _system(other, "tiny", Sampling("ddpm", **options))

    other = copy.deepcopy(model)
    plain = system()
    assert system(reference=True).steps == min(100, model.config.schedule.steps)
    assert system(steps=3).steps == 3
    other.config = replace(other.config, schedule=replace(other.config.schedule, steps=500))
    assert system(reference=True).steps == 100
    assert system().weights != plain.weights  # other noise, other videos


def test_what_the_model_cannot_do_is_told_at_the_start(model):
    other = copy.deepcopy(model)
    other.config = replace(other.config, masking=replace(other.config.masking, past=0.0, future=0.0))
    generate = replace(PROTOCOL, task="generate", past=0, frames=9)
    check_fit(model, generate, "tiny")
    with pytest.raises(McvdError, match="^protocol tiny: "):
        check_fit(other, generate, "tiny")


def test_a_folder_with_other_files_is_refused(model, tmp_path):
    (tmp_path / "thesis.tex").write_text("years of work")
    with pytest.raises(McvdError, match=r"holds other files \(.*\); choose another --output"):
        go(model, tmp_path)


def test_a_folder_that_cannot_be_written_is_told_at_the_start(model, tmp_path, monkeypatch):
    monkeypatch.setattr(os, "access", lambda path, mode: False)
    with pytest.raises(McvdError, match="cannot use .*: Permission denied"):
        go(model, tmp_path / "run", progress=lambda done, total: pytest.fail("something was made"))


def test_a_model_of_another_size_is_told_what_to_do(model, tmp_path):
    with pytest.raises(McvdError, match=r"--set size=\[16,16\]"):
        go(model, tmp_path / "run", replace(PROTOCOL, size=(64, 64)))
    with pytest.raises(McvdError, match="--set channels=1"):
        go(model, tmp_path / "run", replace(PROTOCOL, channels=3))


# --- clips ----------------------------------------------------------------------------------------------------------


def test_moving_digits_are_fixed_and_those_of_the_first_256_test_digits(assets_dir):
    protocol = replace(PRESETS["smmnist-5to10"], clips=4)
    clips = real_clips(protocol, assets_dir / "mnist")
    assert clips.batch([0, 3]).shape == (2, 15, 1, 64, 64)
    assert torch.equal(clips.batch([3]), real_clips(protocol, assets_dir / "mnist").batch(range(4))[3:])
    other = real_clips(replace(protocol, choice_seed=1), assets_dir / "mnist")
    assert content(clips, 4) != content(other, 4)
    small = real_clips(replace(protocol, size=(32, 32), choice="published"), assets_dir / "mnist").batch([1])
    large = real_clips(replace(protocol, choice="published"), assets_dir / "mnist").batch([1])
    means = torch.nn.functional.avg_pool2d(large[0].float(), 2)
    assert (small[0].float() - means).abs().max() <= 0.5


@pytest.mark.parametrize("split", ["train", "test"])
def test_moving_digits_are_of_their_split_and_stride(assets_dir, split):
    protocol = replace(PRESETS["smmnist-5to10"], frames=3, split=split, stride=2)
    digits = load_digits(find_mnist(assets_dir / "mnist"), split, limit=256)
    expected = MovingMNIST(digits, 15, size=64, seed=0).batch(range(8))[:, ::2]
    assert torch.equal(real_clips(protocol, assets_dir / "mnist").batch(range(8)), expected)


def test_published_starts_never_take_the_last_place():
    starts = published_starts([1, 2, 15, 15, 15] * 20, seed=3)
    assert starts == published_starts([1, 2, 15, 15, 15] * 20, seed=3)
    assert all(start == 0 for i, start in enumerate(starts) if i % 5 < 2)
    assert {start for i, start in enumerate(starts) if i % 5 >= 2} == set(range(14))
    order = torch.randperm(6, generator=torch.Generator().manual_seed(3)).tolist()
    starts = published_starts([15] * 6, seed=3)
    assert [starts[i] for i in order] == np.random.RandomState(3).randint(0, 14, 6).tolist()


def test_clips_of_raw_videos_are_prepared_once_and_fixed(tmp_path):
    for i in range(3):
        (tmp_path / "raw" / "test").mkdir(parents=True, exist_ok=True)
        (tmp_path / "raw" / "train").mkdir(exist_ok=True)
        np.save(tmp_path / "raw" / ("test" if i else "train") / f"{i}.npy", tiny.video(12, 16, 20, 3, seed=i).numpy())
    protocol = replace(PROTOCOL, channels=3, clips=4)
    lines = []
    fixed = real_clips(protocol, tmp_path / "raw", lines.append).batch(range(4))
    assert "3 videos, 36 frames" in lines[0]
    test = "measuring on 2 videos of 3 (split test); --set split=all takes all, those for training too"
    assert lines[1:] == [test]
    first = torch.from_numpy(np.load(tmp_path / "raw" / "test" / "1.npy")).permute(0, 3, 1, 2)
    assert torch.equal(fixed[0], first[:9, ..., 2:18])  # the middle, from the first frame on; never the training video
    assert torch.equal(fixed[1], first[3:, ..., 2:18])  # the second clip of a video is its last frames
    drawn = real_clips(replace(protocol, choice="published"), tmp_path / "raw", lines.append).batch(range(4))
    starts = published_starts([4] * 4, 0)
    assert torch.equal(drawn[1], first[starts[1] : starts[1] + 9, ..., 2:18])
    real_clips(replace(protocol, split="train"), tmp_path / "raw", lines.append)
    assert lines[-1] == "measuring on 1 video of 3 (split train); --set split=all takes all"
    told = len(lines)
    everything = real_clips(replace(protocol, split="all"), tmp_path / "raw", lines.append).batch(range(4))
    last = torch.from_numpy(np.load(tmp_path / "raw" / "train" / "0.npy")).permute(0, 3, 1, 2)
    assert torch.equal(everything[3], last[:9, ..., 2:18])
    assert lines[-1] == "measuring on 3 videos of 3; a model trained on this folder has seen 1 of them"
    assert not any("split=all" in line for line in lines[told:])
    folder = next((tmp_path / "cache" / "prepared").iterdir())
    with pytest.raises(McvdError, match="are needed: prepare the videos again"):
        real_clips(replace(protocol, channels=1), folder, lines.append)


def test_how_many_videos_of_a_published_set_are_measured_is_said(tmp_path):
    for i in range(12):
        (tmp_path / "test").mkdir(exist_ok=True)
        np.save(tmp_path / "test" / f"{i}.npy", tiny.video(12, 16, 16, 3, seed=i).numpy())
    protocol, lines = replace(PROTOCOL, source="bair", channels=3), []
    prepare(tmp_path / "test", tmp_path / "data", Settings((16, 16)), workers=1)
    clips = real_clips(protocol, tmp_path / "data", lines.append)
    # the folder of the test side alone is split like any videos: the number tells
    assert lines[-1:] == [f"measuring on {counted(len(clips.videos), 'video')} of 12 (split test)"]


def test_a_result_says_where_its_clips_come_from(model, tmp_path):
    for side, i in (("train", 0), ("test", 1), ("test", 2)):
        (tmp_path / "raw" / side).mkdir(parents=True, exist_ok=True)
        np.save(tmp_path / "raw" / side / f"{i}.npy", tiny.video(12, 16, 16, 1, seed=i).numpy())
    result, _ = go(model, tmp_path / "out", clips=None, data=tmp_path / "raw", metrics=["psnr"])
    spread = [("test/1.npy", 0), ("test/1.npy", 2), ("test/1.npy", 3)]
    assert [(source.video, source.start) for source in result.sources[:3]] == spread
    assert (len(result.sources), result.videos) == (6, 2)
    assert " from 2 videos, weights" in (tmp_path / "out" / "result.md").read_text()
    write_report(tmp_path / "out")
    assert "test/1.npy, from frame" in (tmp_path / "out" / "report.md").read_text()
    file = tmp_path / "out" / "result.json"
    old = {key: value for key, value in json.loads(file.read_text()).items() if key != "sources"}
    file.write_text(json.dumps(old))
    assert Result.load(file) == replace(result, sources=[])  # as written before there was this field


def test_another_stride_than_that_of_the_training_is_said(model, tmp_path):
    other = tiny.model()
    other.notes["stride"] = 2
    for stride, said in ((1, 1), (2, 0)):
        _, lines = go(other, tmp_path / str(stride), replace(PROTOCOL, stride=stride), metrics=["psnr"])
        assert sum("--set stride=2 measures as it was trained" in line for line in lines) == said


def test_which_videos_a_protocol_says_it_is_of(assets_dir):
    kth = {split: find_protocol("kth-10to30", [f"split={split}"]).data for split in ("test", "train", "all")}
    assert kth == {"test": "KTH, persons 21-25", "train": "KTH, persons 1-20", "all": "KTH"}
    with pytest.raises(McvdError, match="set split to train or test"):
        real_clips(find_protocol("smmnist-5to10", ["split=all"]), assets_dir / "mnist")


def test_videos_without_data_are_asked_for():
    with pytest.raises(McvdError, match="--data FOLDER"):
        real_clips(PRESETS["bair-1to15"])


# --- intervals ------------------------------------------------------------------------------------------------------


def test_resampled_frechet_is_the_frechet_distance_of_the_drawn_clips():
    generator = torch.Generator().manual_seed(0)
    for clips in (6, 30):  # fewer clips than features, and more
        real = torch.randn(clips, 8, generator=generator)
        fake = torch.randn(clips, 3, 8, generator=generator) + 0.5
        counts = resampled_counts(range(clips), 2)[1]
        drawn = torch.arange(clips).repeat_interleave(counts.long())
        expected = frechet_distance(Moments(real[drawn]), Moments(fake[drawn].flatten(0, 1)))
        assert resampled_frechet(real, fake, counts) == pytest.approx(expected, rel=1e-6)


def test_calibration_alone_is_of_all_samples(model, tmp_path, whole):
    """Its columns are one row per clip: the rows do not tell the number of samples."""
    alone, _ = go(model, tmp_path, metrics=["calibration"])
    assert alone.complete
    for name in ("crps", "spread_skill"):
        assert alone.numbers[name] == whole[0].numbers[name]


def test_intervals_hold_the_value_and_shrink_with_clips():
    def width(clips):
        generator = torch.Generator().manual_seed(clips)
        real, fake = (torch.randn(clips, n, 8, generator=generator) for n in (1, 2))
        table = Table()
        for sample in range(2):
            table.add(range(clips), sample, mse=0.01 + 0.01 * torch.rand(clips, 3, generator=generator),
                      features=fake[:, sample])  # fmt: skip
        table.add(range(clips), 0, real=real[:, 0])
        found, _ = numbers(table, PROTOCOL, ("psnr", "fvd", "kvd"))
        assert ("fvd_infinity" in found) == (2 * clips >= 4 * 8)
        for name in ("psnr", "fvd", "kvd"):
            assert found[name].low < found[name].value < found[name].high
        return [found[name].high - found[name].low for name in ("psnr", "fvd", "kvd")]

    assert all(many < few for many, few in zip(width(160), width(15)))


def test_intervals_hold_what_they_promise_where_clips_share_videos():
    """Ten clips each of 26 videos that differ more than their clips: drawn one by one, only 4 in 10 would cover."""
    generator, covered, of_clips, half = torch.Generator().manual_seed(0), 0, 0, []
    sources = [Source(f"{clip % 26}.mp4", clip // 26) for clip in range(260)]
    videos = videos_of(range(260), sources)
    for _ in range(200):
        level = 3 * torch.randn(1, 26, dtype=torch.float64, generator=generator)
        values = (level + torch.randn(10, 26, dtype=torch.float64, generator=generator)).flatten()
        found = statistics._mean_number(values, videos, "")
        one_by_one = statistics._mean_number(values, range(260), "")
        covered, of_clips = covered + (found.low < 0 < found.high), of_clips + (one_by_one.low < 0 < one_by_one.high)
        half.append(float(half_width(values, videos)))
    assert found.interval == "bootstrap over videos, 1000 resamples"
    assert 0.88 <= covered / 200 <= 0.98
    assert 0.35 <= of_clips / 200 <= 0.5
    assert sum(half) / 200 == pytest.approx(1.96 * (9 / 26 + 1 / 260) ** 0.5, rel=0.05)
    each = values.view(10, 26)[0]  # of clips that are all from other videos, the usual standard error
    assert float(half_width(each, range(26))) == pytest.approx(1.96 * float(each.std()) / 26**0.5, rel=1e-4)


def test_intervals_are_of_95_percent():
    values = torch.randn(400, generator=torch.Generator().manual_seed(1)).double()
    found = statistics._mean_number(values, range(400), "")
    half = 1.96 * float(values.std()) / 20
    assert (found.low, found.high) == pytest.approx((found.value - half, found.value + half), abs=0.012)


def test_spread_over_skill_is_of_all_frames_and_so_is_its_interval():
    generator = torch.Generator().manual_seed(0)
    crps, variance, error = torch.rand(3, 40, 7, generator=generator, dtype=torch.float64)
    table = Table()
    table.add(range(40), crps=crps, variance=variance, error=error)
    found, curves = numbers(table, replace(PROTOCOL, samples=3), ("calibration",))
    number = found["spread_skill"]
    assert number.value == pytest.approx(float(4 / 3 * variance.mean() / error.mean()) ** 0.5)
    assert curves["spread_skill"] == pytest.approx((4 / 3 * variance.mean(0) / error.mean(0)).sqrt().tolist())
    assert (found["crps"].value, curves["crps"]) == (pytest.approx(crps.mean()), pytest.approx(crps.mean(0).tolist()))
    drawn = resampled_counts(range(40)).long()
    ratios = [
        float(4 / 3 * variance[c].mean() / error[c].mean()) ** 0.5
        for c in map(torch.arange(40).repeat_interleave, drawn)
    ]
    assert (number.low, number.high) == pytest.approx(tuple(np.quantile(ratios, [0.025, 0.975])))


@pytest.mark.parametrize("best", [True, False])
def test_curves_are_of_the_samples_that_count(best):
    """Each metric has its own best sample, chosen by the whole video; PSNR is that of the mean error."""
    generator = torch.Generator().manual_seed(0)
    columns = dict(zip(("mse", "ssim", "lpips"), torch.rand(3, 5, 4, 7, generator=generator, dtype=torch.float64)))
    table = Table()
    for sample in range(4):
        table.add(range(5), sample, **{name: values[:, sample] for name, values in columns.items()})
    _, curves = numbers(table, replace(PROTOCOL, samples=4, best=best), ("psnr", "ssim", "lpips"))
    for name, values in zip(("psnr", "ssim", "lpips"), columns.values()):
        whole = values.mean(2)
        chosen = whole.argmax(1) if name == "ssim" else whole.argmin(1)
        expected = (values[range(5), chosen] if best else values.mean(1)).mean(0)
        expected = -10 * expected.log10() if name == "psnr" else expected
        assert curves[name] == pytest.approx(expected.tolist())


def test_which_videos_clips_are_from():
    sources = [Source("b.mp4"), Source("a.mp4"), Source("b.mp4", 7)]
    assert videos_of([0, 1, 2], sources) == [0, 1, 0]
    assert videos_of([1, 2], sources) == [0, 1]
    assert videos_of([0, 1, 2], []) == videos_of([0, 1, 3], sources) == [0, 1, 2]  # not known: each from its own


def test_clips_of_one_video_have_no_intervals(model, tmp_path):
    np.save(tmp_path / "one.npy", tiny.video(40, 16, 16, 1).numpy())
    result, _ = go(model, tmp_path / "out", replace(PROTOCOL, split="all"), clips=None, data=tmp_path / "one.npy")
    assert result.videos == 1
    assert {"psnr", "fvd", "kvd", "crps", "spread_skill"} <= result.numbers.keys()
    for name, number in result.numbers.items():
        assert (number.low is None) == (name != "fvd_trajectory")
    assert "curve-psnr.svg" in write_report(tmp_path / "out")[1].read_text()


def test_kvd_from_sums_is_kvd():
    generator = torch.Generator().manual_seed(0)
    real, fake = torch.randn(5, 8, generator=generator), torch.randn(5, 3, 8, generator=generator)
    generated, predicted = (kvd_number(real, fake, conditional, range(5)).value for conditional in (False, True))
    assert generated == pytest.approx(kernel_distance(real, fake.flatten(0, 1)), rel=1e-9)
    assert predicted == pytest.approx(by_definition(real.double(), fake.double()), rel=1e-9)


@pytest.mark.parametrize("conditional", [False, True])
def test_kvd_of_two_clips_has_no_interval(conditional):
    """Every resample of both clips is the set itself: an interval of no width would claim certainty."""
    found = kvd_number(torch.randn(2, 8), torch.randn(2, 3, 8), conditional, range(2))
    assert (found.low, found.high, found.interval) == (None, None, "")


@pytest.mark.parametrize("samples", [1, 4])
def test_kvd_of_a_perfect_model_is_0_on_average_although_videos_share_given_frames(samples):
    generator = torch.Generator().manual_seed(0)
    found = []
    for _ in range(400):
        given = torch.randn(12, 1, 8, generator=generator)
        videos = given + 0.3 * torch.randn(12, 1 + samples, 8, generator=generator)
        found.append(kvd_number(videos[:, 0], videos[:, 1:], True, range(12)).value)
    values = torch.tensor(found)
    assert abs(float(values.mean())) < 3 * float(values.std()) / len(values) ** 0.5
    copies = kvd_number(videos[:, 0], videos[:, :1].expand(-1, samples, -1), True, range(12))
    assert (copies.value, copies.low, copies.high) == pytest.approx((0, 0, 0), abs=1e-9)


@pytest.mark.parametrize("of_one_video", [1, 4])
@pytest.mark.parametrize("conditional", [False, True])
def test_kvd_of_resamples_is_kvd_on_average(conditional, of_one_video):
    """A made video is much like the real one of its clip, and clips of one video are like each other: a video that a
    resample holds twice must not count across."""
    generator = torch.Generator().manual_seed(0)
    videos = [clip // of_one_video for clip in range(60 * of_one_video)]
    real = torch.randn(60, 1, 8, generator=generator).repeat_interleave(of_one_video, 0)
    fake = real + 0.3 + 0.1 * torch.randn(len(videos), 2, 8, generator=generator)
    found = kvd_number(real[:, 0], fake, conditional, videos)
    sums, together = statistics._kernel_sums(real[:, 0].double(), fake.double()), torch.tensor(videos)[:, None]
    resampled = statistics._kernel_distance(
        *sums, resampled_counts(videos), together == together.T, samples=2, conditional=conditional
    )
    assert found.low < found.value < found.high
    assert float(resampled.mean()) == pytest.approx(found.value, abs=4 * float(resampled.std()) / len(resampled) ** 0.5)


# --- the command ----------------------------------------------------------------------------------------------------


def test_the_command_with_the_real_networks(assets_dir, tmp_path, capsys, monkeypatch):
    monkeypatch.setenv("MCVD_ASSETS", str(assets_dir))
    command = ["evaluate", "digits", "--protocol", "smmnist-5to10", "--data", str(assets_dir / "mnist"), "--device",
               "cpu", "--solver", "dpm++", "--steps", "2", "--set", "clips=2", "--set", "samples=1", "--set",
               "past=5", "--set", "frames=4", "--output", str(tmp_path / "run")]  # fmt: skip
    assert main(command) == 0
    said = capsys.readouterr().out
    assert "protocol smmnist-5to10+edited" in said
    result = Result.load(tmp_path / "run")
    assert set(result.numbers) == {"psnr", "ssim", "lpips", "fvd", "kvd"}
    assert set(result.networks) == {"i3d", "lpips"}
    assert json.loads((tmp_path / "run" / "result.json").read_text())["protocol"]["name"] == "smmnist-5to10+edited"
    assert main(command) == 0  # finished: told again, nothing computed
    assert capsys.readouterr().out.splitlines()[0] == said.splitlines()[-len(result.numbers) - 3]


def test_your_own_videos_are_measured_as_the_model_was_trained(tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("MCVD_CACHE", "cache")
    tiny.model().save("model", notes={"stride": 2})
    np.save("clip.npy", tiny.video(40, 1, 16, 16).movedim(1, -1).numpy())
    command = [
        "evaluate",
        "model",
        "--protocol",
        "videos-5to10",
        "--data",
        "clip.npy",
        "--device",
        "cpu",
        "--steps",
        "1",
    ]
    command += ["--metrics", "psnr", "--set", "clips=1", "--set", "samples=1", "--set", "split=all"]
    for edits, says, expected in (
        ([], "size=[16,16], channels=1, stride=2", ((16, 16), 1, 2)),
        (["--set", "stride=1"], "size=[16,16], channels=1", ((16, 16), 1, 1)),
    ):
        output = f"run{len(edits)}"
        assert main([*command, *edits, "--output", output]) == 0
        said = capsys.readouterr().out.splitlines()
        assert said[0] == f"measuring as model was trained: {says}"
        protocol = Result.load(output).protocol
        assert (protocol.size, protocol.channels, protocol.stride) == expected
        assert protocol.name == "videos-5to10+edited"
        assert any(line.startswith("any videos (all); 16x16 grey") for line in said)
    assert main([*command, "--set", "size=[8,8]", "--output", "other"]) == 1  # what is asked for is not overruled
    assert "generates frames of 16x16" in capsys.readouterr().err


def test_missing_weights_of_metrics_are_one_line(tmp_path, capsys, monkeypatch, assets_dir):
    monkeypatch.setenv("MCVD_ASSETS", str(tmp_path))
    monkeypatch.setattr("mcvd.evaluation.weights.local_source", lambda name: None)
    command = ["evaluate", "digits", "--protocol", "smmnist-5to10", "--data", str(assets_dir / "mnist"), "--set",
               "clips=1", "--device", "cpu", "--output", str(tmp_path / "run")]  # fmt: skip
    assert main(command) == 1
    said = capsys.readouterr().err
    assert "mcvd fetch i3d" in said
    assert "--metrics psnr,ssim" in said


def test_every_option_of_the_command_reaches_the_evaluation(monkeypatch):
    asked = {}
    monkeypatch.setattr("mcvd.evaluation.evaluate.evaluate", lambda *given, **named: asked.update(named, given=given))

    def ask(options):
        asked.clear()
        words = ["evaluate", "digits", "--protocol", "smmnist-5to10", "--device", "cpu", *options.split()]
        assert main(words) == 0
        return asked["sampling"], asked["given"][2].as_posix()

    folder = "runs/evaluate/digits-smmnist-5to10"
    sampling, output = ask("")
    assert (sampling, output) == (Sampling(), f"{folder}-{load('digits', device='cpu').config.solver}")
    assert (asked["name"], asked["data"], asked["metrics"], asked["videos"]) == ("digits", None, None, True)
    for options, expected, place in (
        ("--solver ddim --steps 7", Sampling("ddim", 7), "ddim7"),
        ("--solver ddim --seed 3 --guidance 1.5", Sampling("ddim", seed=3, guidance=1.5), "ddim-g1.5-seed3"),
        ("--reference", Sampling(reference=True), "ddpm-reference"),
        ("--solver ddim --batch-size 5", Sampling("ddim", batch_size=5), "ddim"),
        (
            "--solver ddim --precision bf16 --engine compile",
            Sampling("ddim", precision="bf16", engine="compile"),
            "ddim-bf16-compile",
        ),
    ):
        assert ask(options) == (expected, f"{folder}-{place}"), options
    _, output = ask("--metrics psnr,ssim --no-videos --data D --output O --set samples=2")
    assert (asked["metrics"], asked["videos"], asked["data"], output) == (["psnr", "ssim"], False, Path("D"), "O")
    assert asked["given"][1].samples == 2


def test_processes_of_torchrun_have_a_gpu_each_unless_a_device_is_named(monkeypatch):
    monkeypatch.setattr("torch.cuda.is_available", lambda: True)
    assert local_device(None) is None
    for name, value in (("RANK", "1"), ("WORLD_SIZE", "2"), ("LOCAL_RANK", "1")):
        monkeypatch.setenv(name, value)
    assert local_device(None) == "cuda:1"
    assert local_device("cuda:0") == "cuda:0"
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    assert local_device(None) == "cpu"


def test_the_command_names_its_protocols(capsys):
    assert main(["evaluate", "digits", "--protocol", "list"]) == 0
    assert len(capsys.readouterr().out.splitlines()) == len(PRESETS)
    assert main(["evaluate", "digits", "--protocol", "smnist-5to10"]) == 1
    assert "did you mean smmnist-5to10?" in capsys.readouterr().err
