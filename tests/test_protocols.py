"""Presets against the published experiments; edits, names, and what a protocol allows to measure."""

import json
import re

import pytest

from mcvd.errors import McvdError
from mcvd.evaluation.presets import METRICS, PRESETS, choose_metrics, find_protocol
from mcvd.evaluation.protocol import Protocol
from mcvd.text import listed
from mcvd.training.recipe import read_recipe, recipe_names

# Evaluated experiments of the published scripts: data, past, block, future, predicted frames (num_frames_pred).
EXPERIMENTS = [
    ("smmnist", 5, 5, 0, 10),
    ("smmnist", 5, 5, 5, 10),
    ("smmnist", 5, 10, 5, 10),
    ("kth", 10, 5, 0, 30),
    ("kth", 10, 5, 0, 40),
    ("kth", 10, 10, 5, 30),
    ("kth", 5, 5, 5, 40),
    ("bair", 1, 5, 0, 15),
    ("bair", 1, 5, 1, 15),
    ("bair", 1, 5, 2, 15),
    ("bair", 2, 5, 0, 14),
    ("bair", 2, 5, 0, 28),
    ("bair", 2, 5, 2, 28),
    ("cityscapes", 2, 5, 0, 28),
    ("cityscapes", 2, 5, 2, 28),
    ("ucf101", 4, 4, 0, 16),
    ("ucf101", 4, 4, 4, 16),
]


@pytest.mark.parametrize(("data", "past", "block", "future", "predicted"), EXPERIMENTS)
def test_every_published_experiment_has_its_presets(data, past, block, future, predicted):
    prediction = PRESETS[f"{data}-{past}to{predicted}"]
    assert (prediction.task, prediction.past, prediction.frames, prediction.future) == ("predict", past, predicted, 0)
    if future:
        between = PRESETS[f"{data}-interpolate-{past}-{block}-{future}"]
        assert (between.past, between.frames, between.future) == (
            past,
            block,
            future,
        )  # exactly one block, as published


@pytest.mark.parametrize(
    ("name", "frames"),
    [("bair-generate-16", 1 + 15), ("bair-generate-30", 2 + 28), ("ucf101-generate-20", 4 + 16),
     ("smmnist-generate-15", 5 + 10), ("kth-generate-35", 5 + 30), ("cityscapes-generate-30", 2 + 28)],
)  # fmt: skip
def test_generation_makes_as_many_frames_as_the_real_clips_of_prediction_have(name, frames):
    protocol = PRESETS[name]
    assert (protocol.task, protocol.past, protocol.future, protocol.clip_frames) == ("generate", 0, 0, frames)
    assert not any(protocol.known)


def test_what_all_published_presets_share():
    paper = {name: p for name, p in PRESETS.items() if name.split("-")[0] in ("smmnist", "kth", "bair", "cityscapes")}
    for name, protocol in paper.items():
        assert protocol.clips == 256
        assert protocol.size == ((128, 128) if name.startswith("cityscapes") else (64, 64))
        assert protocol.channels == (1 if name.startswith(("smmnist", "kth")) else 3)
        if not name.endswith("-100"):
            assert (protocol.samples, protocol.best, protocol.pixels) == (10, True, "published")
            assert protocol.binary == name.startswith("smmnist")
            assert protocol.lpips_size == (None if name.startswith("cityscapes") else 128)


def test_names_say_what_differs():
    assert len(PRESETS) == len({str(p) for p in PRESETS.values()})
    assert all(name == protocol.name for name, protocol in PRESETS.items())
    with_context, made = PRESETS["bair-2to28"], PRESETS["bair-2to28-made"]
    assert (with_context.fvd_frames, made.fvd_frames) == (30, 28)
    assert PRESETS["bair-1to15-100"].samples == 100
    stylegan = PRESETS["styleganv-fvd16"]
    assert (stylegan.clips, stylegan.frames, stylegan.samples, stylegan.task) == (2048, 16, 1, "generate")


def test_every_recipe_of_the_paper_can_be_measured_by_a_preset():
    for name in recipe_names():
        data = name.split("-")[0]
        network = read_recipe(name).model.network
        if data not in ("smmnist", "kth", "bair", "cityscapes", "ucf101"):
            continue
        fitting = [
            p
            for p in PRESETS.values()
            if p.name.startswith(data)
            and p.past == network.layout.past
            and (p.task == "predict" or (p.task == "interpolate" and p.future == network.layout.future))
        ]
        assert fitting, name
        assert all((p.size, p.channels) == (network.size, network.channels) for p in fitting), name


def test_words_name_everything_a_value_depends_on():
    words = PRESETS["smmnist-5to10"].words
    parts = ["first 256 test digits", "64x64 grey", "10 frames predicted from 5", "256 clips", "10 samples", "128 px",
             "black and white", "best", "15 frames", "mean over trajectories"]  # fmt: skip
    for part in parts:
        assert part in words
    sentences = [p.words for p in PRESETS.values()]
    assert len(set(sentences)) == len(sentences)  # two protocols never read the same
    sentences.append(Protocol("before", "any videos", "backward", past=0, frames=5, future=5).words)
    assert not any(re.search(r"\bmade\b", sentence) for sentence in sentences)  # "generated", as everywhere


def test_names_in_a_sentence():
    assert [listed("abc"[:n]) for n in range(4)] == ["", "a", "a and b", "a, b and c"]


def test_an_edit_renames():
    edited = find_protocol("smmnist-5to10", ["size=[32,32]", "samples=2"])
    assert (edited.name, edited.size, edited.samples) == ("smmnist-5to10+edited", (32, 32), 2)
    training = find_protocol("smmnist-5to10", ["split=train"]).words
    assert "first 256 training digits (train)" in training
    assert find_protocol("smmnist-5to10", ["samples=10"]) == PRESETS["smmnist-5to10"]  # nothing was changed


@pytest.mark.parametrize(
    ("name", "edits", "said"),
    [
        ("smmnist-5to1O", [], "did you mean smmnist-5to10?"),
        ("xyz", [], "protocols: smmnist-5to10"),
        ("smmnist-5to10", ["sample=3"], "did you mean samples?"),
        ("smmnist-5to10", ["samples=0"], "samples is 0"),
        ("smmnist-5to10", ["past=0"], "predict does not go with 0 past"),
        ("smmnist-5to10", ["channels=2"], "channels"),
        ("smmnist-5to10", ["task=guess"], "it is one of predict"),
        ("smmnist-5to10", ["lpips_size=0"], "lpips_size is 0"),
        ("smmnist-5to10", ["lpips_size=-128"], "lpips_size is -128"),
        ("smmnist-5to10", ["choice_seed=-1"], "choice_seed is -1; it must lie in 0 .. 4294967295"),
        ("smmnist-5to10", ["choice_seed=4294967296"], "choice_seed is 4294967296"),
        ("smmnist-5to10", ["name=smmnist-5to10", "samples=1"], "name cannot be set"),
    ],
)
def test_a_wrong_name_or_value_is_one_line(name, edits, said):
    with pytest.raises(McvdError) as error:
        find_protocol(name, edits)
    assert said in str(error.value)


def test_what_can_be_measured():
    prediction = PRESETS["smmnist-5to10"]
    assert choose_metrics(prediction) == (METRICS, [])
    assert choose_metrics(prediction, ["ssim", "psnr"]) == (("psnr", "ssim"), [])
    assert choose_metrics(find_protocol("smmnist-5to10", ["samples=1"]))[0] == ("psnr", "ssim", "lpips", "fvd", "kvd")
    assert choose_metrics(PRESETS["bair-generate-16"]) == (("fvd", "kvd"), [])
    short, notes = choose_metrics(PRESETS["bair-interpolate-2-5-2"])
    assert "fvd" in short  # 9 frames, the fewest that I3D takes
    assert not notes
    short, notes = choose_metrics(PRESETS["bair-interpolate-1-5-1"])
    assert "fvd" not in short
    assert "9 or more frames, this protocol gives it 7" in notes[0]


def test_only_the_protocol_for_any_videos_takes_what_the_model_was_trained_with():
    trained = {"size": (32, 48), "channels": 1, "stride": 2}
    mine = find_protocol("videos-5to10", ["channels=3"], trained)
    assert (mine.size, mine.channels, mine.stride, mine.name) == ((32, 48), 3, 2, "videos-5to10+edited")
    assert find_protocol("bair-2to28", (), trained) == PRESETS["bair-2to28"]
    same = {"size": (64, 64), "channels": 3, "stride": 1}
    assert find_protocol("videos-5to10", (), same) == PRESETS["videos-5to10"]


def test_frames_that_are_too_small_for_a_metric():
    small = find_protocol("videos-5to10", ["size=[8,30]"])
    chosen, notes = choose_metrics(small)
    assert not {"ssim", "lpips"} & set(chosen)
    assert notes == [
        "SSIM is left out: it needs frames of 11 or more pixels per side, this protocol gives it 8",
        "LPIPS is left out: it needs frames of 31 or more pixels per side, this protocol gives it 8",
    ]
    resized = find_protocol("smmnist-5to10", ["size=[16,16]"])  # to 128 pixels, as published
    assert {"ssim", "lpips"} <= set(choose_metrics(resized)[0])
    with pytest.raises(McvdError, match="lpips under .*gives it 30"):
        choose_metrics(find_protocol("smmnist-5to10", ["lpips_size=30"]), ["lpips"])


def test_plain_frames_are_not_resized_for_lpips_whatever_the_size_says():
    plain = find_protocol("bair-2to14", ["pixels=plain"])
    assert plain.lpips_size == 128
    assert "LPIPS at full size" in plain.words
    assert plain.words == find_protocol("bair-2to14", ["pixels=plain", "lpips_size=null"]).words


@pytest.mark.parametrize(
    ("name", "metrics", "said"),
    [
        ("bair-generate-16", ["psnr"], "no ground truth"),
        ("bair-interpolate-1-5-1", ["fvd"], "gives it 7"),
        ("smmnist-5to10", ["psrn"], "did you mean psnr?"),
        ("smmnist-5to10", [], "no metric requested"),
    ],
)
def test_what_cannot_be_measured_is_refused_when_asked_for(name, metrics, said):
    with pytest.raises(McvdError, match=said.replace("?", r"\?")):
        choose_metrics(PRESETS[name], metrics)


def test_a_protocol_survives_json():
    from mcvd.config import from_dict, to_dict

    for protocol in PRESETS.values():
        assert from_dict(Protocol, json.loads(json.dumps(to_dict(protocol))), "test") == protocol
