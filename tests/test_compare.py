"""Evaluations side by side."""

from __future__ import annotations

import csv
import dataclasses
import io
import json
from pathlib import Path

import pytest
import torch

import evaluations
from mcvd.cli.main import main
from mcvd.errors import McvdError
from mcvd.evaluation import statistics
from mcvd.evaluation.result import Number, Source
from mcvd.evaluation.saved import Evaluation
from mcvd.evaluation.statistics import FVD_RESAMPLES, percentiles, resampled_means
from mcvd.evaluation.table import Table
from mcvd.evaluation.wording import best_of, printed
from mcvd.reports.compare import compare, to_csv, to_json, to_markdown


@pytest.fixture
def a(tmp_path: Path) -> Path:
    return evaluations.write_folder(tmp_path / "a", evaluations.errors(), name="ours", videos=0)


@pytest.fixture
def b(tmp_path: Path) -> Path:
    """1 dB worse than `a` on every clip."""
    mse = evaluations.shift(evaluations.errors(), -1.0)
    return evaluations.write_folder(tmp_path / "b", mse, name="theirs", videos=0)


def edit(folder: Path, protocol: dict[str, object] | None = None, **fields: object) -> Path:
    result = Evaluation.load(folder).result
    changed = dataclasses.replace(result.protocol, **(protocol or {}))  # type: ignore[arg-type]
    dataclasses.replace(result, protocol=changed, **fields).save(folder / "result.json")  # type: ignore[arg-type]
    return folder


def test_the_caption_is_the_protocol_in_words(a: Path, b: Path) -> None:
    """The name of an edited preset says nothing."""
    words = evaluations.PROTOCOL.sentence({"psnr", "ssim", "lpips"})
    assert f"Protocol bair-2to14: {words} Brackets" in to_markdown(compare([a, b]))
    edit(b, {"size": (32, 32)})
    assert f"Protocol of the first system, bair-2to14: {words} Brackets" in to_markdown(compare([a, b], mixed=True))


def test_best_is_bold_in_its_own_direction(a: Path, b: Path) -> None:
    lines = to_markdown(compare([a, b])).splitlines()
    assert lines[0] == "| system | PSNR, dB ↑ | SSIM ↑ | LPIPS ↓ |"
    ours, theirs = lines[2], lines[3]
    assert any(line.endswith("Bold: best.") for line in lines)
    assert ours.startswith("| ours | **")
    assert ours.count("**") == 6  # better by every metric
    assert "**" not in theirs
    psnr = Evaluation.load(a).result.numbers["psnr"]
    assert f"**{psnr.value:.2f}** [{psnr.low:.2f}, {psnr.high:.2f}]" in ours


def test_paired_difference_by_construction(a: Path, b: Path) -> None:
    """Every clip is 1 dB better, so the difference is 1 dB without any spread, although the clips differ much."""
    paired = {row.metric: row for row in compare([a, b]).paired}
    row = paired["psnr"]
    assert (row.difference, row.low, row.high) == pytest.approx((1.0, 1.0, 1.0))
    assert (row.a, row.b, row.clips, row.verdict) == ("ours", "theirs", 12, "significant")
    assert paired["lpips"].high < 0
    assert "| ours - theirs | PSNR, dB ↑ | +1.00 [1.00, 1.00] | 12 | significant |" in to_markdown(compare([a, b]))


def test_differences_that_cancel_are_not_significant(a: Path, tmp_path: Path) -> None:
    errors = evaluations.errors()
    errors[:6], errors[6:] = evaluations.shift(errors[:6], 1.0), evaluations.shift(errors[6:], -1.0)
    c = evaluations.write_folder(tmp_path / "c", errors, name="c", videos=0)
    row = next(row for row in compare([a, c]).paired if row.metric == "psnr")
    assert row.difference == pytest.approx(0, abs=1e-9)
    assert row.low < 0 < row.high
    assert row.verdict == "not significant"


def test_mean_over_samples_is_paired_where_the_protocol_says_so(a: Path, b: Path) -> None:
    errors = evaluations.errors()
    errors[:, 1:] *= 2  # of b: its first sample as of a, the others worse
    for folder in (a, b):
        edit(folder, {"best": False})
    table = evaluations.write_folder(b.parent / "spare", errors, videos=0) / "rows.safetensors"
    table.replace(b / "rows.safetensors")
    row = next(row for row in compare([a, b]).paired if row.metric == "psnr")
    assert row.difference == pytest.approx(2 / 3 * 10 * torch.tensor(2.0).log10().item())


@pytest.mark.parametrize(("clips", "verdict"), [(9, "too few clips"), (10, "significant")])
def test_few_clips_are_too_few(tmp_path: Path, clips: int, verdict: str) -> None:
    protocol = dataclasses.replace(evaluations.PROTOCOL, clips=clips)
    errors = evaluations.errors(clips)
    one = evaluations.write_folder(tmp_path / "one", errors, protocol, videos=0)
    two = evaluations.write_folder(tmp_path / "two", evaluations.shift(errors, -1), protocol, videos=0)
    assert {row.verdict for row in compare([one, two]).paired} == {verdict}


def test_clips_of_one_video_are_not_independent(a: Path, tmp_path: Path) -> None:
    """24 clips of 12 videos, of which 9 are alike and 3 otherwise: significant only if clips are drawn one by one. `b`
    was scored from files, which do not say where the clips come from."""
    protocol, errors = dataclasses.replace(evaluations.PROTOCOL, clips=24), evaluations.errors(24)
    by = torch.tensor([1.0] * 18 + [-1.0] * 6).view(24, 1, 1)
    one = evaluations.write_folder(tmp_path / "one", errors, protocol, name="one", videos=0)
    two = evaluations.write_folder(tmp_path / "two", errors * 10 ** (by / 10), protocol, name="two", videos=0)
    edit(two, sources=[Source(f"{clip}.npz") for clip in range(24)])
    assert next(iter(compare([one, two]).paired)).verdict == "significant"
    edit(one, sources=[Source(f"{clip // 2}.mp4") for clip in range(24)])
    row = next(row for row in compare([one, two]).paired if row.metric == "psnr")
    assert (row.clips, row.videos, row.verdict) == (24, 12, "not significant")
    assert "| 24 of 12 videos | not significant |" in to_markdown(compare([one, two]))
    edit(one, sources=[Source(f"{clip // 3}.mp4") for clip in range(24)])
    assert {row.verdict for row in compare([one, two]).paired} == {"too few videos"}
    three = evaluations.write_folder(tmp_path / "three", errors, protocol, name="three", videos=0, data="e" * 64)
    edit(three, sources=[Source("0.mp4")] * 24)  # of other clips: it says nothing about these
    assert {row.videos for row in compare([one, two, three]).paired} == {8}
    edit(one, sources=[Source("0.mp4")] * 24)
    comparison = compare([one, two])
    assert not comparison.paired
    assert any("only one video" in note for note in comparison.notes)


def test_bootstrap_covers_the_mean_as_the_normal_interval_does() -> None:
    values = torch.randn(400, generator=torch.Generator().manual_seed(1)).double()
    low, high = percentiles(resampled_means(values, range(400)))
    half = 1.96 * values.std().item() / 20
    assert low == pytest.approx(values.mean().item() - half, abs=0.012)
    assert high == pytest.approx(values.mean().item() + half, abs=0.012)


def test_fvd_is_paired_over_the_same_clips(a: Path, b: Path) -> None:
    """b's features are farther from the real ones by a constant, whose square is the difference, whatever the clips."""
    draw = torch.Generator().manual_seed(0)
    real, made = torch.randn(12, 6, generator=draw), torch.randn(12, 3, 6, generator=draw)
    made = made - made.mean((0, 1)) + real.mean(0)
    apart = torch.tensor([3.0, 0, 0, 0, 0, 0])
    for folder, features, value in ((a, made, 5.0), (b, made + apart, 14.0)):
        table = Evaluation.load(folder).table
        table.add(range(12), 0, real=real)
        for sample in range(3):
            table.add(range(12), sample, features=features[:, sample])
        table.save(folder / "rows.safetensors")
        edit(folder, numbers={"fvd": Number(value)})
    row = next(row for row in compare([a, b]).paired if row.metric == "fvd")
    assert (row.difference, row.clips, row.verdict) == (-9.0, 12, "significant")
    assert row.low < -9.0 < row.high < 0


def test_the_interval_of_an_fvd_difference_is_about_the_difference(a: Path, b: Path) -> None:
    """A resample holds fewer distinct clips, which raises FVD, the more so the more a system's videos vary."""
    draw = torch.Generator().manual_seed(0)
    real, made = torch.randn(12, 6, generator=draw), torch.randn(12, 3, 6, generator=draw)
    resampled = []
    for folder, features in ((a, made), (b, 3 * made)):
        table = Evaluation.load(folder).table
        table.add(range(12), 0, real=real)
        for sample in range(3):
            table.add(range(12), sample, features=features[:, sample])
        table.save(folder / "rows.safetensors")
        found = statistics.numbers(table, evaluations.PROTOCOL, ("fvd",))[0]
        edit(folder, numbers=found)
        resampled.append(statistics.resampled_fvd(real, features, range(12)))
    row = next(row for row in compare([a, b]).paired if row.metric == "fvd")
    changes = resampled[0] - resampled[1]
    assert abs(float(changes.mean()) - row.difference) > 0.1 * float(changes.std())
    low, high = percentiles(changes - changes.mean())
    assert (row.low, row.high) == pytest.approx((row.difference + low, row.difference + high))


def test_crps_is_paired_and_rows_of_other_clips_are_not(a: Path, b: Path) -> None:
    for folder, value in ((a, 0.2), (b, 0.3)):
        table = Evaluation.load(folder).table
        table.add(range(12), 0, crps=torch.full((12, 14), value))
        table.save(folder / "rows.safetensors")
    row = next(row for row in compare([a, b]).paired if row.metric == "crps")
    assert (row.difference, row.low, row.high) == pytest.approx((-0.1, -0.1, -0.1))
    later = Table()
    for sample in range(3):
        later.add(range(1, 13), sample, mse=torch.rand(12, 14))
    later.save(b / "rows.safetensors")
    comparison = compare([a, b])
    assert not comparison.paired
    assert "no paired difference of ours and theirs: their rows are of different clips" in comparison.notes


def test_fvd_is_resampled_once_per_system_not_per_pair(
    a: Path, b: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    third = evaluations.write_folder(tmp_path / "third", evaluations.errors(seed=2), name="third", videos=0)
    for folder in (a, b, third):
        table = Evaluation.load(folder).table
        table.add(range(12), 0, real=torch.rand(12, 6))
        for sample in range(3):
            table.add(range(12), sample, features=torch.rand(12, 6))
        table.save(folder / "rows.safetensors")
        edit(folder, numbers={"fvd": Number(1.0)})
    calls: list[object] = []
    monkeypatch.setattr(statistics, "resampled_frechet", lambda *given: float(calls.append(given) is None))
    assert sum(row.metric == "fvd" for row in compare([a, b, third]).paired) == 3
    assert len(calls) == 3 * FVD_RESAMPLES


def test_an_fvd_that_is_no_number_has_no_difference(a: Path, b: Path) -> None:
    for folder, value in ((a, 5.0), (b, float("nan"))):
        table = Evaluation.load(folder).table
        table.add(range(12), 0, real=torch.rand(12, 6))
        for sample in range(3):
            table.add(range(12), sample, features=value * torch.rand(12, 6))
        table.save(folder / "rows.safetensors")
        edit(folder, numbers={"fvd": Number(value)})
    comparison = compare([a, b])
    assert all(row.metric != "fvd" for row in comparison.paired)
    assert "no paired difference of ours and theirs in fvd: one of the two values is not finite" in comparison.notes


def test_other_protocols_are_refused_and_marked_when_mixed(a: Path, b: Path) -> None:
    edit(b, {"best": False, "name": "bair-2to14+edited"})
    with pytest.raises(McvdError, match=r"theirs.*value of a clip: mean over its samples, not its best.*--mixed"):
        compare([a, b])
    comparison = compare([a, b], mixed=True)
    text = to_markdown(comparison)
    assert "| theirs [1] |" in text
    assert "[1] value of a clip: mean over its samples, not its best sample" in text
    assert "**" not in text
    assert comparison.paired == ()
    assert "they were measured differently" in text


def test_fewer_clips_and_other_networks_are_other_protocols_too(a: Path, b: Path) -> None:
    edit(b, clips=11)
    with pytest.raises(McvdError, match="test clips: 11, not 12"):
        compare([a, b])
    edit(a, networks={"lpips": "1" * 64})
    edit(b, clips=12, networks={"lpips": "2" * 64})
    with pytest.raises(McvdError, match="network of lpips: 22222222, not 11111111"):
        compare([a, b])


def test_a_preset_under_another_name_is_the_same_protocol(a: Path, b: Path) -> None:
    edit(b, {"name": "bair-2to14+edited"})
    assert not compare([a, b]).mixed


def test_what_does_nothing_to_plain_frames_makes_no_difference(a: Path, b: Path) -> None:
    edit(a, {"pixels": "plain", "lpips_size": 128, "binary": True})
    edit(b, {"pixels": "plain", "lpips_size": None})
    comparison = compare([a, b])
    assert not comparison.mixed
    assert comparison.paired


def test_names_are_escaped_in_markdown(tmp_path: Path) -> None:
    folders = [
        evaluations.write_folder(tmp_path / str(i), evaluations.errors(), name=name, videos=0)
        for i, name in enumerate(["<b>a|b</b>", "c\nd", "$e$"])
    ]
    edit(folders[1], different=3)
    lines = to_markdown(compare(folders)).splitlines()
    assert lines[2].startswith(r"| \<b\>a\|b\</b\> | ")
    assert lines[3].startswith("| c d | ")
    assert lines[4].startswith(r"| \$e\$ | ")  # no mathematics
    assert any(line.startswith(r"| \<b\>a\|b\</b\> - c d |") for line in lines)
    assert (
        "Note: c d: only 3 of 12 clips are distinct, as the data hold no more: the intervals are too narrow.  " in lines
    )


def test_an_unfinished_evaluation_is_called_one(a: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (a / "result.json").rename(a / "identity.json")
    for command in ("report", "compare"):
        assert main([command, str(a)]) == 1
        assert "holds an unfinished evaluation; run the same command again" in capsys.readouterr().err


def test_other_clips_are_told_and_not_paired(a: Path, b: Path) -> None:
    edit(b, data="e" * 64)
    comparison = compare([a, b])
    assert any("theirs saw other real clips than ours (sha256 eeeeeeee, dddddddd)" in n for n in comparison.notes)
    assert comparison.paired == ()


def test_missing_rows_leave_the_table_and_a_note(a: Path, b: Path) -> None:
    (b / "rows.safetensors").unlink()
    comparison = compare([a, b])
    assert comparison.paired == ()
    assert "rows.safetensors is not in both" in " ".join(comparison.notes)


def test_systems_of_one_name_are_told_apart(a: Path, tmp_path: Path) -> None:
    quick = evaluations.write_folder(tmp_path / "q", evaluations.errors(), name="ours", videos=0, steps=10)
    assert compare([a, quick]).names == ("ours (ddpm 100)", "ours (ddpm 10)")
    again = evaluations.write_folder(tmp_path / "again", evaluations.errors(), name="ours", videos=0)
    assert compare([a, again]).names == ("ours (a)", "ours (again)")
    with pytest.raises(McvdError, match="named twice"):
        compare([a, a])


def test_published_rows(a: Path) -> None:
    comparison = compare([a], with_published=True)  # 16 px, 12 clips: nothing published is like it
    assert comparison.published == ()
    assert "published rows were measured differently; --mixed shows them" in comparison.notes[0]
    protocol = {
        "size": (64, 64),
        "clips": 256,
        "samples": 10,
        "choice": "published",
        "channels": 3,
        "fvd_pooled": False,
    }
    edit(a, protocol, clips=256, samples=10)
    comparison = compare([a], with_published=True)
    methods = [row.method for row in comparison.published]
    assert "MCVD concat past-mask" in methods
    assert "FAR-B" not in methods  # 100 samples
    assert "FAR-B" in [row.method for row in compare([a], mixed=True, with_published=True).published]
    text = to_markdown(comparison)
    assert "| system | FVD, mean of trajectories ↓ |" in text  # what the protocol counts
    assert "| 87.9 |" in text
    assert "verified; BAIR table of the authors' talk" in text
    assert "Bold" not in text  # of one evaluation nothing is


def test_csv_and_json(a: Path, b: Path) -> None:
    comparison = compare([a, b])
    rows = list(csv.DictReader(io.StringIO(to_csv(comparison))))
    number = Evaluation.load(b).result.numbers["ssim"]
    assert rows[1]["system"] == "theirs"
    assert [float(rows[1][key]) for key in ("ssim", "ssim_low", "ssim_high")] == [number.value, number.low, number.high]
    data = json.loads(to_json(comparison))
    assert data["systems"][1]["result"]["numbers"]["ssim"]["value"] == number.value
    assert data["paired"][0]["verdict"] == "significant"
    edit(a, numbers={"psnr": Number(float("inf")), "ssim": Number(float("nan"))})
    text = to_json(compare([a, b]))
    data = json.loads(text, parse_constant=lambda name: pytest.fail(f"{name} is no JSON"))
    assert data["systems"][0]["result"]["numbers"]["psnr"]["value"] == "inf"


def test_command(a: Path, b: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["compare", str(a), str(b / "result.json")]) == 0
    assert "| ours - theirs |" in capsys.readouterr().out
    edit(b, {"stride": 2})
    assert main(["compare", str(a), str(b)]) == 1
    assert "every n-th frame, n: 2, not 1" in capsys.readouterr().err
    assert main(["compare", str(a), str(b), "--mixed", "--format", "csv"]) == 0
    assert "every n-th frame" in capsys.readouterr().out
    assert main(["compare"]) != 0
    assert "error" in capsys.readouterr().err


def test_best_values() -> None:
    assert printed("kvd", -1e-9) == "0.0000"
    assert best_of("fvd", [3.0, 1.0, None, 1.04]) == {1, 3}  # both print as 1.0
    assert best_of("spread_skill", [0.5, 1.2, 2.0]) == {1}
    assert best_of("mystery", [1.0, 2.0]) == set()
    assert best_of("psnr", [1.0]) == set()
