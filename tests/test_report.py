"""The report of an evaluation, and the published values in it."""

from __future__ import annotations

import base64
import dataclasses
import io
import re
import shutil
import xml.etree.ElementTree as ElementTree
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from PIL import Image
from safetensors.torch import save_file

import evaluations
import mcvd.reports.published as published_module
from mcvd.cli.main import main
from mcvd.errors import McvdError
from mcvd.evaluation import summary
from mcvd.evaluation.presets import PRESETS
from mcvd.evaluation.protocol import Protocol
from mcvd.evaluation.published_frames import published_ssim, through_network_range
from mcvd.evaluation.result import Number
from mcvd.evaluation.saved import Evaluation
from mcvd.evaluation.table import Table
from mcvd.reports.compare import compare, to_markdown
from mcvd.reports.curves import Curve, copied, copy_table, frame_values, system_curves
from mcvd.reports.match import measured
from mcvd.reports.published import Quoted, benchmark_of, published
from mcvd.reports.report import write_report
from mcvd.reports.shown import _samples, choose_clips
from mcvd.reports.svg import line_chart, nice_ticks

FVD = {"fvd": Number(101.25, 95.04, 107.46, "1.96 standard errors over 10 trajectories", "pooled")}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return evaluations.write_folder(tmp_path / "run", evaluations.errors(), numbers=FVD)


def cells(html: str) -> list[list[str]]:
    rows = re.findall(r"<tr[^>]*>(.*?)</tr>", html)
    return [re.findall(r"<t[dh]>(.*?)</t[dh]>", row) for row in rows]


def test_all_published_values_belong_to_a_preset_and_are_found():
    reached = {row for name in PRESETS for row in map(id, published(benchmark_of(PRESETS[name])))}
    assert reached == set(map(id, published()))


def test_page_holds_every_number_and_needs_nothing_else(folder: Path) -> None:
    html_path, markdown_path = write_report(folder)
    html, markdown = html_path.read_text(), markdown_path.read_text()
    rows = {row[0]: row for row in cells(html)}
    assert rows["FVD ↓"][1:3] == ["101.2", "[95.0, 107.5]"]
    table = Evaluation.load(folder).table
    best = table.summary("psnr")
    assert rows["PSNR, dB ↑"][1] == f"{best.mean:.2f}"
    assert rows["PSNR, dB ↑"][2] == f"[{best.mean - best.conf95:.2f}, {best.mean + best.conf95:.2f}]"
    assert not re.search(r"https?:|<script|<link|@import", html)
    sources = re.findall(r'src="([^"]*)"', html)
    assert sources
    assert all(source.startswith("data:image/") for source in sources)
    # the Markdown's pictures are there, and are what the page holds
    names = re.findall(r"\]\((report_files/[^)]+)\)", markdown)
    assert {Path(name).suffix for name in names} == {".svg", ".gif", ".png"}
    assert all((folder / name).is_file() for name in names)
    assert sorted(path.name for path in (folder / "report_files").iterdir()) == sorted(Path(n).name for n in names)
    for name in names:
        if name.endswith(".svg"):
            assert ElementTree.parse(folder / name).getroot().tag == "{http://www.w3.org/2000/svg}svg"
        else:
            assert base64.b64encode((folder / name).read_bytes()).decode() in html


def test_every_text_of_a_folder_is_escaped(tmp_path: Path) -> None:
    folder = evaluations.write_folder(tmp_path / "run", evaluations.errors(), name="<b>a|b</b>", videos=0)
    html, markdown = (path.read_text() for path in write_report(folder))
    assert "<b>" not in html
    assert "&lt;b&gt;a|b&lt;/b&gt;" in html
    assert r"\<b\>a\|b\</b\>" in markdown
    assert summary.markdown(Evaluation.load(folder).result).splitlines()[2].startswith(r"| \<b\>a\|b\</b\>, ddpm")


def test_curves_are_means_over_clips_of_the_best_sample_and_of_all(folder: Path) -> None:
    table, errors = Evaluation.load(folder).table, evaluations.errors()
    best, mean = system_curves(table, "psnr", best=True)
    chosen = errors[torch.arange(12), errors.mean(2).argmin(1)]  # of each clip, by its whole error
    values = -10 * chosen.log10()
    torch.testing.assert_close(torch.tensor(best.mean).double(), values.mean(0))
    half = 1.959964 * values.std(0) / 12**0.5
    torch.testing.assert_close(torch.tensor(best.high).double(), values.mean(0) + half)
    torch.testing.assert_close(torch.tensor(mean.mean).double(), (-10 * errors.log10()).mean((0, 1)))
    assert best.low is not None
    assert mean.low is None
    (only,) = system_curves(table, "psnr", best=False)
    assert only.mean == mean.mean
    one = Table()
    one.add(range(12), mse=errors[:, 0])
    assert [curve.label for curve in system_curves(one, "psnr", best=True)] == ["the sample"]
    # and they are in the page, under the pointer
    html = write_report(folder)[0].read_text()
    told = f"frame 2, best of 3 samples: {best.mean[0]:.2f} [{best.low[0]:.2f}, {best.high[0]:.2f}]"
    assert f"<title>{told}</title>" in html


def test_copying_is_measured_on_the_real_clips(folder: Path) -> None:
    evaluation = Evaluation.load(folder)
    table = copy_table(evaluation)
    assert len(table) == 4
    real = torch.from_numpy(np.load(folder / "videos" / "00001.npz")["real"]).double() / 255
    expected = (real[2:] - real[1]).square().mean((1, 2, 3))
    torch.testing.assert_close(table.rows("mse")[1], expected, atol=1e-6, rtol=0)
    html = write_report(folder)[0].read_text()
    assert f"frame 15, last given frame copied (4 clips): {(-10 * table.rows('mse').log10()).mean(0)[-1]:.2f}" in html


def test_copying_digits_is_measured_as_digits_are(tmp_path: Path) -> None:
    """SSIM of frames in black and white, real ones truncated after going through the network's range."""
    protocol = dataclasses.replace(evaluations.PROTOCOL, binary=True)
    evaluation = Evaluation.load(evaluations.write_folder(tmp_path / "run", evaluations.errors(), protocol))
    real = through_network_range(evaluation.real(1))
    expected = published_ssim(real[1].expand_as(real[2:]), real[2:], binary=True)
    torch.testing.assert_close(copy_table(evaluation).rows("ssim")[1], expected)
    shades = published_ssim(real[1].expand_as(real[2:]), real[2:])
    assert (shades - expected).abs().max() > 0.01


def test_frames_that_are_copied_exactly_have_100_db() -> None:
    table = Table()
    table.add([0], mse=torch.tensor([[0.0, 0.01]]))
    assert frame_values(table, "psnr").flatten().tolist() == pytest.approx([100, 20])


def test_what_is_copied_depends_on_the_task() -> None:
    clip = torch.tensor([0, 10, 20, 30, 40, 100], dtype=torch.uint8).view(6, 1, 1, 1).expand(6, 1, 16, 16)

    def values(task: str, past: int, future: int) -> list[int]:
        protocol = Protocol("p", "d", task, past, 6 - past - future, future)  # type: ignore[arg-type]
        made = copied(clip, protocol)
        return [] if made is None else made[:, 0, 0, 0].tolist()

    assert values("predict", 2, 0) == [10] * 4
    assert values("backward", 0, 2) == [40] * 4
    assert values("interpolate", 2, 1) == [32, 55, 78]  # 10 to 100 in four steps: 32.5, 55, 77.5, rounded to even
    assert values("generate", 0, 0) == []


def test_best_median_and_worst_clip(tmp_path: Path) -> None:
    scale = torch.tensor([3.0, 1.0, 5.0, 2.0, 4.0, 0.1]).view(6, 1, 1)  # the last one's videos are not kept
    mse = 0.01 * scale * torch.ones(6, 3, 14).double()
    mse[:, 2] *= 0.5  # the best sample of every clip
    folder = evaluations.write_folder(tmp_path / "run", mse, videos=5)
    chosen = choose_clips(Evaluation.load(folder))
    assert list(chosen) == [1, 0, 2]
    assert chosen[1] == ["best by PSNR (23.01)", "best by LPIPS (0.0707)"]  # 0.005: 23.01 dB; its root
    assert chosen[0][0].startswith("median by PSNR")
    assert chosen[2][0].startswith("worst by PSNR")
    html = write_report(folder)[0].read_text()
    assert "Clip 1: best by PSNR (23.01), best by LPIPS (0.0707)" in html
    gif = Image.open(folder / "report_files" / "clip-00001.gif")
    assert gif.n_frames == 16  # the whole clip
    edge = [gif.convert("RGB").getpixel((140, 20)) for frame in (1, 2) if gif.seek(frame) is None]  # of sample 1
    assert edge[0][2] > edge[0][0]  # given: blue
    assert edge[1][0] > edge[1][2]  # made: orange


def test_many_samples_show_the_best_among_them(tmp_path: Path) -> None:
    mse = evaluations.errors(samples=9)
    mse[:, 7] *= 0.1
    folder = evaluations.write_folder(tmp_path / "run", mse, videos=1)
    html = write_report(folder)[0].read_text()
    assert "5 of 9 samples" in html
    sheet = Image.open(io.BytesIO((folder / "report_files" / "clip-00000.png").read_bytes()))
    assert sheet.height > 6 * 64  # the real clip and five samples
    assert _samples(9, 7) == [0, 1, 2, 3, 7]
    assert _samples(9, 2) == _samples(9, None) == [0, 1, 2, 3, 4]


def test_works_without_videos_rows_lpips_and_fvd(tmp_path: Path) -> None:
    folder = evaluations.write_folder(tmp_path / "run", evaluations.errors(), lpips=False, videos=0)
    shutil.rmtree(folder / "videos")
    html = write_report(folder)[0].read_text()
    assert "The videos were not kept" in html
    assert "There is no copy baseline" in html
    assert "LPIPS of every frame" not in html
    assert "PSNR, dB of every frame" in html
    (folder / "rows.safetensors").unlink()
    html = write_report(folder)[0].read_text()
    assert "or no frame metric was measured" in html
    assert not (folder / "report_files" / "curve-psnr.svg").exists()  # that of the report before
    result = Evaluation.load(folder).result
    dataclasses.replace(result, frames={"psnr": [20.0] * 14}).save(folder / "result.json")
    assert (
        "PSNR is that of the mean error. Without rows.safetensors there is no band"
        in write_report(folder)[0].read_text()
    )


def test_generation_has_no_curves_and_shows_the_first_clips(tmp_path: Path) -> None:
    protocol = Protocol("bair-generate-16", "BAIR, test", "generate", 0, 16, size=(16, 16), clips=12, samples=1)
    folder = evaluations.write_folder(tmp_path / "run", evaluations.errors(samples=1), protocol, videos=4)
    (folder / "rows.safetensors").unlink()
    html = write_report(folder)[0].read_text()
    assert "There is no ground truth" in html
    assert html.count("<img") == 6
    assert "Clip 2</h3>" in html


def test_an_incomplete_evaluation_is_called_one(folder: Path) -> None:
    result = Evaluation.load(folder).result
    dataclasses.replace(result, protocol=dataclasses.replace(result.protocol, clips=256)).save(folder / "result.json")
    html = write_report(folder)[0].read_text()
    assert "Incomplete: 12 of 256 clips, 3 of 3 samples" in html
    assert "12 (the protocol asks for 256)" in html


def test_damaged_folders_are_named(folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (folder / "videos" / "00002.npz").write_bytes(b"PK")
    with pytest.raises(McvdError, match=r"00002.npz cannot be read"):
        write_report(folder)
    np.savez(folder / "videos" / "00002.npz", real=np.zeros((3, 1, 16, 16), np.uint8))
    with pytest.raises(McvdError, match="with 16 frames"):
        write_report(folder)
    assert main(["report", str(tmp_path)]) == 1
    assert "not the folder of an evaluation" in capsys.readouterr().err
    (folder / "videos" / "00002.npz").unlink()
    for name in ("weight", "value.mse"):  # rows of something else
        save_file({name: torch.zeros(12, 14)}, folder / "rows.safetensors")
        with pytest.raises(McvdError, match=r"rows\.safetensors holds no rows of an evaluation"):
            write_report(folder)
    (folder / "videos" / "²³.npz").write_bytes(b"PK")
    with pytest.raises(McvdError, match="named by its number"):
        write_report(folder)


def test_report_command_says_what_it_wrote(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["report", str(folder)]) == 0
    assert capsys.readouterr().out.split() == ["wrote", f"{folder}/report.html", "wrote", f"{folder}/report.md"]


def test_a_chart_leaves_out_what_is_not_finite() -> None:
    inf, nan = float("inf"), float("nan")
    curve = Curve("a", [20.0, inf, 22.0, nan], [19.0, nan, 21.0, nan], [21.0, inf, 23.0, nan])
    chart = line_chart("psnr", [curve], 0, "frame", "PSNR", alone=True)
    assert chart.count("<circle") == 2
    assert not re.search(r'="[^"]*(inf|nan)', chart)
    assert line_chart("psnr", [Curve("a", [inf, inf])], 0, "frame", "PSNR", alone=True).count("<circle") == 0


@pytest.mark.parametrize(("low", "high"), [(0.0, 1.0), (12.3, 12.9), (-3.0, 250.0), (0.5, 0.5), (1e-4, 3e-4)])
def test_ticks_are_round_and_enclose(low: float, high: float) -> None:
    ticks = nice_ticks(low, high)
    assert ticks[0] <= low + 1e-9
    assert ticks[-1] >= high - 1e-9
    assert 3 <= len(ticks) <= 6


# ------------------------------------------------------------------------------------------- published values


def test_published_rows_have_a_source_and_belong_to_a_benchmark() -> None:
    rows = published()
    assert len(rows) > 70
    assert all(row.source and row.method and row.values for row in rows)
    assert len({(row.benchmark, row.method, row.source) for row in rows}) == len(rows)
    fields = {field.name for field in dataclasses.fields(Protocol)}
    assert all(row.protocol.keys() <= fields for row in rows)
    assert all(0 < row.values[m].value < 1 for row in rows for m in ("ssim", "lpips") if m in row.values)
    assert all(10 < row.values["psnr"].value < 40 for row in rows if "psnr" in row.values)
    for row in rows:  # the name says the same frames as the fields
        numbers = re.fullmatch(r"\w+?-(\d+)to(\d+)", row.benchmark)
        if numbers:
            assert (row.protocol["past"], row.protocol["frames"]) == tuple(map(int, numbers.groups()))


def test_published_values_of_the_talk() -> None:
    rows = {row.method: row for row in published("bair-2to28") if "talk" in row.source}
    assert rows["MCVD concat past-future-mask"].values["fvd"].value == 118.4
    assert rows["MCVD concat past-mask"].values["fvd"].text == "119.0"
    assert {row.confidence for row in rows.values()} == {"verified"}
    fvd = [row.values["fvd"].value for row in published("bair-1to15")]
    assert fvd == sorted(fvd)
    transformer = next(row for row in published("bair-1to15") if row.method.startswith("Video Transformer"))
    assert transformer.values["fvd"] == Quoted("94–96", 95.0)
    assert {row.confidence for row in published("smmnist-5to10")} == {"recalled"}


def test_values_as_printed() -> None:
    assert Quoted.parse("0.121 +- 0.05", "x") == Quoted("0.121 ± 0.05", 0.121)
    assert Quoted.parse("~17", "x") == Quoted("~17", 17.0)
    with pytest.raises(McvdError, match="x: 'many' is not a value"):
        Quoted.parse("many", "x")


def test_match_says_what_differs_and_what_is_not_stated() -> None:
    protocol = Protocol(
        "bair-2to14", "BAIR", "predict", 2, 14, clips=256, samples=10, choice="published", pixels="published"
    )
    row = next(row for row in published("bair-2to14") if row.method == "MCVD concat")
    match = row.match(protocol)
    assert not match.differing
    assert str(match) == "the same as far as stated (not stated: FVD over samples)"
    match = row.match(dataclasses.replace(protocol, samples=1, best=False))
    assert match.differing
    assert "samples of a clip: 1, not 10; value of a clip: mean over its samples, not its best sample" in str(match)
    other = next(row for row in published("bair-1to15") if row.method == "Video Diffusion Models")
    assert "differs: pictures of another camera" in str(other.match(protocol))
    assert benchmark_of(dataclasses.replace(protocol, name="bair-2to14+edited")) == "bair-2to14"


def test_cityscapes_pictures_are_not_resized_for_lpips() -> None:
    row = next(
        row for row in published("cityscapes-2to28") if row.method == "MCVD concat" and row.protocol.get("clips")
    )
    protocol = Protocol("cityscapes-2to28", "Cityscapes", "predict", 2, 28, size=(128, 128), lpips_size=None)
    assert not row.match(protocol).differing
    resized = dataclasses.replace(protocol, lpips_size=128)
    assert "side of pictures for LPIPS: 128, not as they are" in str(row.match(resized))


@pytest.mark.parametrize(
    ("name", "same"),
    [("bair-2to28", True), ("cityscapes-2to28", True), ("bair-generate-30", True), ("bair-2to14", False)],
)
def test_clips_of_all_30_frames_of_a_video_are_those_of_the_authors(name: str, same: bool) -> None:
    """Their loader draws the first frame where there is a choice: videos of BAIR and Cityscapes have just 30 frames."""
    rows = [row for row in published(name) if row.method.startswith("MCVD") and "clips" in row.protocol]
    assert {row.match(PRESETS[name]).differing for row in rows} == {not same}
    told = "the same as far as stated (not stated: FVD over samples)"  # nothing of SSIM and LPIPS, in generation
    assert {str(row.match(PRESETS[name])) == told for row in rows} == {same}


def test_report_compares_with_published_values(folder: Path) -> None:
    html = write_report(folder)[0].read_text()
    rows = {row[0]: row for row in cells(html)}
    assert rows["tiny"][1] == "101.2"
    row = rows["MCVD concat past-future-mask"]
    assert row[1:4] == ["89.6", "17.1", "0.787"]
    assert "size of frames: 16x16, not 64x64" in row[5]
    assert row[6:] == ["verified", "BAIR table of the authors&#x27; talk of 12 August 2022 on MCVD (arXiv 2205.09853)"]
    assert measured(Evaluation.load(folder).result).clips == 12


def test_fvd_of_one_sample_stands_beside_published_values(tmp_path: Path) -> None:
    """The paper's protocols count the mean over trajectories, which is not computed for one."""
    one = dataclasses.replace(evaluations.PROTOCOL, samples=1, fvd_pooled=False)
    folder = evaluations.write_folder(tmp_path / "one", evaluations.errors(samples=1), one, numbers=FVD)
    rows = {row[0]: row for row in cells(write_report(folder)[0].read_text())}
    assert rows["tiny"][1] == "101.2"
    columns = to_markdown(compare([folder], mixed=True, with_published=True)).splitlines()[0]
    assert "| FVD ↓ |" in columns
    assert "trajectories" not in columns
    assert "trajectories" not in one.words
    assert "trajectories" in dataclasses.replace(one, samples=2).words


def test_broken_published_files_are_refused() -> None:
    path = Path(published_module.__file__).with_name("published.yaml")
    data = yaml.safe_load(path.read_text())
    data["groups"][0]["source"] = "hearsay"
    with pytest.raises(McvdError, match="hearsay is not one of its sources"):
        published_module.parse(data)
