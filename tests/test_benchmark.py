"""`mcvd benchmark`: what it measures, what it prints, and what a peer is given. No test looks at a time's size."""

from __future__ import annotations

import contextlib
import dataclasses
import itertools
import json
import math
import statistics
import time
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

import tiny
from mcvd.benchmark import memory, ours, run
from mcvd.benchmark.calibrate import calibrate
from mcvd.benchmark.cases import CASES, Setting, forward_flops, random_weights, setting_model
from mcvd.benchmark.figures import figures, peaks
from mcvd.benchmark.i3d import i3d_row
from mcvd.benchmark.measure import Laps, Sample, interleave, summarise, timed
from mcvd.benchmark.peer import load_peer
from mcvd.benchmark.run import FORMAT, Options, benchmark
from mcvd.benchmark.table import table
from mcvd.cli.main import main
from mcvd.errors import McvdError
from mcvd.networks.precision import PRECISIONS
from mcvd.networks.unet import UNet

CPU = torch.device("cpu")
PLAIN = Path(__file__).parent.parent / "benchmarks" / "peers" / "plain.py"
ATTENDING = {"attention": (8,), "head_channels": 8, "dropout": 0.1}
# a peer that is this package, with what it puts out changed by ERROR; it lacks the training step
TOY = """
from mcvd.benchmark import ours
NOTE = "a toy"
def build(config, state_dict):
    assert config.time_from_noise and all(name.startswith("unet.all_modules.") for name in state_dict)
    offered = ours.implementation().build(config, state_dict)
    def network(past, future):
        call = offered["network"](past, future)
        return lambda x, time: call(x, time) + ERROR
    return {"network": network, "sample": offered["sample"]}
"""


def toy(folder: Path, name: str, error: float) -> Path:
    path = folder / f"{name}.py"
    path.write_text(TOY.replace("ERROR", str(error)))
    return path


def options(**changes) -> Options:
    quick = Options(
        {"tiny": tiny.config(**ATTENDING)},
        solver_steps=10,
        timed_steps=2,
        rounds=2,
        memory=False,
        quick_calibration=True,
    )
    return dataclasses.replace(quick, **changes)


def test_rounds_alternate_and_the_first_is_not_timed():
    called: list[str] = []
    rounds = interleave({name: lambda name=name: called.append(name) for name in "abc"}, 3, CPU)
    assert "".join(called) == "cba" + "abc" + "cba" + "abc"
    assert [set(taken) for taken in rounds] == [set("abc")] * 3
    assert all(sample.wall >= 0 and sample.processor >= 0 for taken in rounds for sample in taken.values())


def test_more_untimed_rounds_count_as_one():
    called, reported = [], []
    rounds = interleave({"a": lambda: called.append("a")}, 1, CPU, lambda: reported.append(len(called)), untimed=4)
    assert (len(rounds), len(called), reported) == (1, 5, [4, 5])


def test_wall_time_and_processor_time_are_told_apart(monkeypatch):
    for clock, step in (("perf_counter", 5.0), ("process_time", 2.0)):
        ticks = itertools.count(1.0, step)
        monkeypatch.setattr(f"mcvd.benchmark.measure.time.{clock}", lambda ticks=ticks: next(ticks))
    assert timed(lambda: None, CPU) == (5.0, 2.0)


def test_a_lap_is_the_median_of_all_steps_but_the_first():
    laps = Laps(lambda done: None, CPU)
    laps.marks = [Sample(wall, wall / 2) for wall in (50.0, 51.0, 53.0, 63.0)]
    assert laps.lap() == (2.0, 1.0)


def test_laps_leave_the_first_step_out():
    def steps(done):
        for seconds in (0.2, 0.01, 0.01):
            time.sleep(seconds)
            done()
        return "result"

    laps = Laps(steps, CPU)
    assert laps() == "result"
    assert len(laps.marks) == 3
    assert laps.lap().wall == statistics.median([b.wall - a.wall for a, b in zip(laps.marks, laps.marks[1:])])
    (taken,) = interleave({"run": laps}, 1, CPU)
    assert set(taken) == {"run", "run/lap"}
    assert taken["run/lap"].wall < taken["run"].wall


def test_the_interval_of_the_median():
    assert summarise([3.0, 1.0, 2.0]) == (2.0, 1.0, 3.0)  # too few for 95 %: the range
    values = [float(i) for i in range(20)]
    assert summarise(values) == (9.5, 5.0, 14.0)  # the 6th and 15th: the textbook's 95 % interval for 20
    n, cut = 20, 5
    assert 2 * sum(math.comb(n, j) for j in range(cut + 1)) / 2**n <= 0.05


@pytest.mark.parametrize("n", range(6, 41))
def test_the_interval_of_the_median_is_the_shortest_of_at_least_95_percent(n):
    outside = [2 * sum(math.comb(n, j) for j in range(cut + 1)) / 2**n for cut in range(n // 2)]
    cut = max(cut for cut, share in enumerate(outside) if share <= 0.05)
    assert summarise(range(n))[1:] == (cut, n - 1 - cut)


def test_ceilings_are_work_per_second(monkeypatch):
    """A multiply-add is 2 operations, a copy reads and writes; short work is repeated until it can be timed."""
    called = []
    monkeypatch.setattr("mcvd.benchmark.calibrate.timed", lambda run, _: (called.append(run()), Sample(1e-3, 0.0))[1])
    ceilings = calibrate(CPU, torch.float32, quick=True)
    works = {"matmul": 2 * 64**3, "convolution": 2 * 9 * 8 * 8 * 8 * 8, "bandwidth": 2 * 4 * 2**12}
    assert {name: ceiling.rate for name, ceiling in ceilings.items()} == {n: 20 * w / 1e-3 for n, w in works.items()}
    assert {name: ceiling.work for name, ceiling in ceilings.items()} == {n: 20 * w for n, w in works.items()}


def test_figures_are_those_of_their_round():
    ceilings = {name: SimpleNamespace(work=work) for name, work in (("matmul", 60.0), ("convolution", 40.0))}
    rounds = [{"/matmul": Sample(m, 0.0), "/convolution": Sample(c, 0.0)} for m, c in ((3.0, 1.0), (1.0, 1.0))]
    assert peaks(ceilings, rounds) == [40.0, 60.0]  # the better of both
    entry = figures([Sample(2.0, 3.0), Sample(4.0, 5.0)], [40.0, 60.0], flops=24, frames=6)
    assert entry["seconds"] == {"median": 3.0, "low": 2.0, "high": 4.0}
    assert entry["processor_seconds"]["median"] == 4.0
    assert entry["frames_per_second"] == 2.0
    assert (entry["mfu"]["low"], entry["mfu"]["high"]) == (24 / 4 / 60, 24 / 2 / 40)


def test_ratios_are_a_peers_over_ours_and_costs_those_of_the_first_row():
    out = torch.ones(2)
    beside = run._beside([Sample(4.0, 9.0)] * 2, [Sample(2.0, 3.0), Sample(1.0, 3.0)], out, out + 0.5)
    assert beside["ratio"] == {"median": 3.0, "low": 2.0, "high": 4.0}
    assert beside["processor_ratio"]["median"] == 3.0
    assert (beside["difference"], beside["largest_output"], beside["equal"]) == (0.5, 1.5, False)
    times = [Sample(1.0, 1.0)]
    assert [run._beside(times, times, out, out + error)["equal"] for error in (5e-5, 2e-4)] == [True, False]
    assert run._least([{"a": Sample(2.0, 1.0)}, {"a": Sample(1.0, 3.0)}]) == {"a": Sample(1.0, 1.0)}
    entry = {"mcvd": {"memory_bytes": 10}, "peer": {"memory_bytes": 40}, "unmeasured": {"memory_bytes": None}}
    run._add_memory_ratios({"implementations": entry})
    assert [entry[name].get("memory_ratio") for name in entry] == [None, 0.25, None]
    rows = [
        {"case": case, "recipe": recipe, "frames": 2, "implementations": {"mcvd": {"seconds": {"median": seconds}}}}
        for case, recipe, seconds in (("network", "a", 4.0), ("network", "a", 2.0), ("network", "b", 8.0))
    ]
    run._add_growth(rows)
    assert [row["frame_cost"] for row in rows] == [1.0, 0.5, 1.0]


def test_the_figures_of_a_row_are_those_of_its_rounds(tmp_path, monkeypatch):
    walls = {"/matmul": (1.0, 1.0), "/convolution": (1.0, 1.0), "mcvd/call": (3.0, 2.0), "same/call": (6.0, 8.0)}
    asked = []

    def interleaved(functions, *_):
        assert functions.keys() == walls.keys()
        return [{name: Sample(walls[name][i], i + 1.0) for name in functions} for i in range(2)]

    def peak_bytes(request):
        asked.append((request.case, request.setting.batch, request.precision, request.engine, request.peer))
        return 400 if request.peer else 100

    monkeypatch.setattr("mcvd.networks.precision.fast_on", lambda device: tuple(PRECISIONS))
    monkeypatch.setattr(run, "interleave", interleaved)
    monkeypatch.setattr(run, "peak_bytes", peak_bytes)
    monkeypatch.setattr(run, "peaks", lambda ceilings, rounds: [1e6, 1e6])
    path = toy(tmp_path, "same", 0.0)
    [row] = benchmark(options(peers=(path,), cases=("network",), batches=(2,), memory=True, precision="bf16"))["rows"]
    mine, theirs = (row["implementations"][name] for name in ("mcvd", "same"))
    assert (mine["least_seconds"], theirs["least_seconds"], theirs["least_ratio"]) == (2.0, 6.0, 3.0)
    assert theirs["ratio"] == {"median": 3.0, "low": 2.0, "high": 4.0}
    assert mine["processor_seconds"] == {"median": 1.5, "low": 1.0, "high": 2.0}
    assert mine["frames_per_second"] == 2 * 3 / 2.5
    assert mine["mfu"]["high"] == row["flops"] / 2.0 / 1e6
    assert theirs["memory_ratio"] == 0.25
    assert asked == [("network", 2, "bf16", "torch", peer) for peer in (None, str(path))]


def test_a_row_for_every_size_and_for_i3d_and_startup(monkeypatch):
    def row(rounds, tick, /, **about):
        for _ in range(rounds + 1):  # one of them untimed
            tick()
        return about

    monkeypatch.setattr(run, "i3d_row", lambda batch, *more: row(*more[-2:], case="i3d", batch=batch))
    monkeypatch.setattr(run, "startup_rows", lambda rounds, tick: [row(rounds, tick, case="startup", rounds=rounds)])
    seen = []
    asked = options(cases=("network", "i3d", "startup"), sizes=(8, 16), batches=(1, 2))
    rows = benchmark(asked, lambda done, total: seen.append((done, total)))["rows"]
    assert seen == [(done, len(rows) * 3) for done in range(1, len(rows) * 3 + 1)]
    assert [(row["size"], row["batch"]) for row in rows[:4]] == [([n, n], b) for n in (8, 16) for b in (1, 2)]
    assert [row["batch"] for row in rows[4:6]] == [1, 2]
    assert rows[6:] == [{"case": "startup", "rounds": 2}]


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_ceilings_and_all_calls_are_in_the_precision_asked_for(precision, monkeypatch):
    half, ceilings = [], []

    def spied(method):
        def call(self, x, *more):
            if x.device == CPU:  # not when operations are counted
                half.append(torch.is_autocast_enabled("cpu"))
            return method(self, x, *more)

        return call

    for method in (UNet.encode, UNet.forward):
        monkeypatch.setattr(UNet, method.__name__, spied(method))
    monkeypatch.setattr("mcvd.networks.precision.fast_on", lambda device: tuple(PRECISIONS))
    monkeypatch.setattr(run, "calibrate", lambda *given: ceilings.append(given[1]) or calibrate(*given))
    benchmark(options(cases=("network", "sampling"), precision=precision))
    assert set(half) == {precision == "bf16"}
    assert ceilings == [PRECISIONS[precision]]


def test_the_engine_asked_for_runs_every_network_call(monkeypatch):
    engines = []
    monkeypatch.setattr(ours, "calls_by", lambda _, name: contextlib.nullcontext(engines.append(name)))
    benchmark(options(cases=("network", "sampling"), engine="openvino", rounds=1))
    assert len(engines) > 2
    assert set(engines) == {"openvino"}


def test_the_document(tmp_path):
    seen = []
    peers = (toy(tmp_path, "same", 0.0), toy(tmp_path, "other", 0.5))
    document = benchmark(options(peers=peers, batches=(1, 2), samples=2), lambda *done: seen.append(done))
    json.dumps(document)
    assert document["format"] == FORMAT
    assert set(document["implementations"]) == {"mcvd", "same", "other"}
    assert document["implementations"]["same"] == "a toy"
    assert document["machine"]["threads"] == torch.get_num_threads()
    assert [(row["case"], row["batch"]) for row in document["rows"]] == [
        (case, batch) for case in ("network", "sampling", "training") for batch in (1, 2)
    ]
    assert seen[-1] == (18, 18)  # 6 rows of 2 rounds and an untimed one
    for row in document["rows"]:
        mine = row["implementations"]["mcvd"]
        assert row["flops"] > 0
        assert row["frames"] > 0
        assert row["frame_cost"] > 0
        assert mine["seconds"]["low"] <= mine["seconds"]["median"] <= mine["seconds"]["high"]
        assert mine["mfu"]["median"] != 0
        assert "ratio" not in mine
        # who does not offer a case is left out
        assert set(row["implementations"]) == ({"mcvd"} if row["case"] == "training" else {"mcvd", "same", "other"})
    network, sampling = (next(row for row in document["rows"] if row["case"] == c) for c in ("network", "sampling"))
    assert network["implementations"]["same"]["difference"] == 0.0
    assert network["implementations"]["same"]["equal"]
    assert network["implementations"]["other"]["difference"] == pytest.approx(0.5, abs=1e-5)
    assert not network["implementations"]["other"]["equal"]
    assert sampling["implementations"]["other"]["equal"]
    assert sampling["samples"] == 2
    assert sampling["frames"] == 2 * 3
    assert network["frames"] == 3
    text = table(document)
    assert "DIFFERS" in text
    assert "2 samples each, 10 DDPM steps (2 of them timed)" in text
    assert "1 sample each, " in table({**document, "rows": [sampling | {"samples": 1}]})


@pytest.mark.parametrize("conditioning", ["concat", "spatin"])
@pytest.mark.parametrize("name", CASES)
def test_the_plain_peer_computes_the_same(name, conditioning):
    model = setting_model(tiny.config(conditioning=conditioning, spatin_width=8, **ATTENDING))
    setting = Setting("tiny", model, batch=2, samples=3, solver_steps=10, timed_steps=10)
    weights = random_weights(model, CPU)
    outputs = [
        CASES[name].check(lambda config, i=i: i.build(config, weights), setting, CPU)
        for i in (ours.implementation(), load_peer(PLAIN))
    ]
    assert outputs[0].std() > 0.01
    assert outputs[0].isfinite().all()
    assert (outputs[0] - outputs[1]).abs().max() <= 1e-5
    assert all(torch.equal(a, b) for a, b in zip(weights.values(), random_weights(model, CPU).values()))
    assert min(float(weight.abs().max()) for weight in weights.values()) > 1e-3  # one near zero hides differences


def test_every_row_of_a_network_call_has_its_own_time_number():
    setting = Setting("tiny", setting_model(tiny.config(**ATTENDING)), batch=2)
    generator = torch.Generator().manual_seed(0)
    past, future = (setting.frames(count, 2, generator) for count in (setting.layout.past, setting.layout.future))
    x, time = setting.noise(2, generator), torch.tensor([5, 80])
    network = ours.implementation().build(setting.model, random_weights(setting.model, CPU))["network"]
    alone = [network(past[[i]], future[[i]])(x[[i]], time[[i]]) for i in range(2)]
    assert torch.allclose(network(past, future)(x, time), torch.cat(alone), atol=1e-5)


def test_what_is_trained_is_as_asked(monkeypatch):
    monkeypatch.setattr(ours, "Trainer", lambda recipe, *_: SimpleNamespace(recipe=recipe, start_from=lambda _: None))
    model = setting_model(tiny.config())
    for precision, engine in (("fp32", "torch"), ("bf16", "torch"), ("fp32", "compile")):
        recipe = ours.Ours(model, random_weights(model, CPU), precision, engine)._make_trainer(3).recipe
        assert (recipe.precision, recipe.compile, recipe.batch) == (precision, engine == "compile", 3)
        assert not recipe.recorded  # which needs a GPU


def test_the_whole_is_what_the_timed_steps_tell():
    case = CASES["sampling"]
    setting = Setting("tiny", setting_model(tiny.config()), solver_steps=100, timed_steps=5)
    # encoding costs 7, a step 2
    assert case.seconds({"steps": 17.0, "steps/lap": 2.0}, setting) == pytest.approx(7 + 100 * 2)
    whole = dataclasses.replace(setting, timed_steps=100)
    assert case.seconds({"steps": 207.0}, whole) == 207.0
    assert not isinstance(case.parts(lambda *_: None, whole, CPU)["steps"], Laps)
    with pytest.raises(McvdError, match="at least 2"):
        dataclasses.replace(setting, timed_steps=1)


def test_operations_are_counted_by_definition():
    model = setting_model(tiny.config(width=8, multipliers=(1,), blocks=1, attention=()))
    one, encode = forward_flops(model, 1, 1)
    assert forward_flops(model, 3, 2) == (3 * one, 2 * encode)
    # the condition's share of the first convolution: 3x3, 3 frames to 8 channels, 16x16 pixels
    assert encode == 2 * 9 * 3 * 8 * 16 * 16


def test_work_is_that_of_all_clips_and_samples():
    one = Setting("tiny", setting_model(tiny.config()), samples=2)  # of 2 past, 3 current and 1 future frames
    three = dataclasses.replace(one, batch=3)
    assert {name: case.frames(three) for name, case in CASES.items()} == {"network": 9, "sampling": 18, "training": 18}
    for case in CASES.values():
        assert case.flops(three) == 3 * case.flops(one) > 0
    call, encode = forward_flops(one.model, 6, 3)
    assert CASES["sampling"].flops(three) == 100 * call + encode  # of all steps, timed or not
    assert CASES["network"].flops(three) == call / 2


@pytest.mark.skipif(not memory.CLEAR.exists(), reason="resident memory is read from Linux")
def test_memory_of_training_is_more_than_that_of_a_call():
    setting = Setting("tiny", setting_model(tiny.config(width=64)), batch=8)
    call, step = (memory.measure(memory.Request(case, setting, "cpu", 1)) for case in ("network", "training"))
    assert step > 4 * 2**20  # weights, gradients, two of Adam, average: 0.4 million each
    assert step > call


def test_memory_is_the_most_during_all_runs_beyond_that_before(tmp_path, monkeypatch):
    """The tiny run loads code; of the other, training has the optimizer's state from its second step on."""
    for name in ("STATUS", "CLEAR"):
        monkeypatch.setattr(memory, name, tmp_path / name)
    steps = []

    def step(video, draw):
        steps.append(len(video))
        memory.STATUS.write_text(f"VmHWM:\t {1000 * len(steps)} kB\nVmRSS:\t {len(steps)} kB\n")

    peer = SimpleNamespace(build=lambda config, state: {"train_step": step})
    monkeypatch.setattr(ours, "implementation", lambda *_: peer)
    setting = Setting("tiny", setting_model(tiny.config()), batch=3)
    threads = torch.get_num_threads()
    assert memory.measure(memory.Request("training", setting, "cpu", threads)) == (4000 - 2) * 1024
    assert steps == [1, 1, 3, 3]


def test_i3d_row():
    ceilings = calibrate(CPU, torch.float32, quick=True)
    row = i3d_row(1, CPU, ceilings, 1, lambda: None, frames=9)
    assert row["frames"] == 9
    assert row["flops"] > 1e9
    assert row["implementations"]["mcvd"]["frames_per_second"] > 0


def test_what_cannot_be_measured_is_said(tmp_path):
    with pytest.raises(McvdError, match="no such file"):
        load_peer(tmp_path / "none.py")
    (tmp_path / "empty.py").write_text("")
    with pytest.raises(McvdError, match="no build"):
        load_peer(tmp_path / "empty.py")
    with pytest.raises(McvdError, match="noisy_condition is not measured"):
        benchmark(options(models={"old": tiny.config(noisy_condition=True)}))
    with pytest.raises(McvdError, match="cannot use the device 'toaster'"):
        benchmark(options(device="toaster"))
    with pytest.raises(McvdError, match="nothing to measure"):
        benchmark(options(batches=()))
    (tmp_path / "mcvd.py").write_text(TOY)
    with pytest.raises(McvdError, match="must have different names"):
        benchmark(options(peers=(tmp_path / "mcvd.py",)))


def test_the_command_prints_one_json_document(tmp_path, capsys):
    recipe = tmp_path / "tiny.yaml"
    recipe.write_text(
        "model: {network: {size: [16, 16], layout: {past: 1, current: 1, future: 0}, width: 8, multipliers: [1], "
        "blocks: 1, attention: []}}"
    )
    loud = tmp_path / "loud.py"
    loud.write_text("print('a peer may talk')\n" + TOY.replace("ERROR", "0"))
    words = ["benchmark", "--recipe", str(recipe), "--cases", "network", "--rounds", "1", "--skip-memory", "--json"]
    assert main([*words, "--device", "cpu", "--peer", str(loud)]) == 0
    said = capsys.readouterr()
    document = json.loads(said.out)
    assert document["format"] == FORMAT
    assert document["rows"][0]["recipe"] == "tiny"
    assert "a peer may talk" in said.err


def test_recipes_of_one_file_name_are_told_apart(tmp_path, capsys):
    recipes = [tmp_path / folder / "tiny.yaml" for folder in ("a", "b")]
    for recipe, width in zip(recipes, (8, 16)):
        recipe.parent.mkdir()
        recipe.write_text(
            f"model: {{network: {{size: [16, 16], layout: {{past: 1, current: 1, future: 0}}, width: {width}, "
            "multipliers: [1], blocks: 1, attention: []}}"
        )
    words = ["--cases", "network", "--rounds", "1", "--skip-memory", "--json", "--device", "cpu"]
    assert main(["benchmark", "--recipe", *map(str, recipes), *words]) == 0
    rows = json.loads(capsys.readouterr().out)["rows"]
    assert [row["recipe"] for row in rows] == list(map(str, recipes))
    assert rows[0]["flops"] < rows[1]["flops"]


def test_a_network_is_measured_whatever_it_predicts():
    """Which changes no time: peers know the published ones."""
    model = tiny.config(prediction="x0", context_noise=0.3)
    model = dataclasses.replace(model, schedule=dataclasses.replace(model.schedule, zero_terminal=True))
    document = benchmark(options(models={"x0": model}, peers=(PLAIN,)))
    assert all(row["implementations"]["plain"]["equal"] for row in document["rows"])


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ("[None]", "shape (1, 1, 3, 1, 16, 16), not (1, 3, 1, 16, 16) DIFFERS"),  # which would broadcast
        ("[:, :1]", "shape (1, 1, 1, 16, 16), not (1, 3, 1, 16, 16) DIFFERS"),
        (" * float('nan')", "not finite DIFFERS"),
    ],
)
def test_outputs_that_cannot_be_compared_differ(tmp_path, change, said):
    path = tmp_path / "odd.py"
    path.write_text(TOY.replace(" + ERROR", change))
    document = benchmark(options(peers=(path,), cases=("network",)))
    entry = json.loads(json.dumps(document, allow_nan=False))["rows"][0]["implementations"]["odd"]
    assert entry["difference"] is None
    assert not entry["equal"]
    assert said in table(document)


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("def build(", "cannot be imported: SyntaxError"),
        ("import no_such_module", "cannot be imported: ModuleNotFoundError: No module named 'no_such_module'"),
        ("import sys; sys.exit(0)", "cannot be imported: SystemExit: 0"),
        ("def build(c, s): raise ValueError('two\\nlines')", "build failed: ValueError: two"),
        ("def build(c, s): pass", "build returns NoneType; it must return a dictionary"),
        ("def build(c, s): return {'netwrok': 1}", "build offers netwrok; it may offer network, sample, train_step"),
        ("def build(c, s): return {'network': 5}", "network failed: TypeError"),
        ("def build(c, s): return {'network': lambda p, f: lambda x, t: 1 / 0}", "network's call failed: ZeroDivision"),
        ("def build(c, s): return {'network': lambda p, f: lambda x, t: None}", "network's call returns NoneType"),
        ("def build(c, s): return {'network': lambda p, f: exit(0)}", "network failed: SystemExit: 0"),
        (
            "def build(c, s): return {'train_step': lambda v, d: 0.5}",
            "train_step returns float; it must return a tensor",
        ),
        ("def build(c, s): return {'sample': lambda p, f, x, *_: x}", "sample called noise() 0 times in 2 steps"),
    ],
)
def test_what_a_peer_does_wrong_is_one_line_with_its_name(tmp_path, text, says):
    path = tmp_path / "wrong.py"
    path.write_text(text)
    with pytest.raises(McvdError) as caught:
        benchmark(options(peers=(path,)))
    assert str(caught.value).startswith(f"--peer {path}: {says}")
    assert len(str(caught.value).splitlines()) == 1


def test_a_peer_may_define_a_dataclass(tmp_path):
    (tmp_path / "classy.py").write_text(
        "from __future__ import annotations\nfrom dataclasses import dataclass\n"
        "@dataclass\nclass A:\n    x: ClassVar = 1\n" + TOY.replace("ERROR", "0")
    )
    assert load_peer(tmp_path / "classy.py").note == "a toy"


@pytest.mark.skipif(not memory.CLEAR.exists(), reason="resident memory is read from Linux")
def test_a_peer_that_leaves_while_memory_is_measured_is_named(tmp_path):
    path = tmp_path / "leaves.py"
    path.write_text("exit(0)")
    setting = Setting("tiny", setting_model(tiny.config()))
    with pytest.raises(McvdError, match=r"\(network\) failed: --peer .*leaves.py: cannot be imported: SystemExit"):
        memory.peak_bytes(memory.Request("network", setting, "cpu", 1, peer=str(path)))
