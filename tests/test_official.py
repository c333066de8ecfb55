"""The importer: published names, shapes and order; files whole, old and broken."""

import json
import os
import shutil
from argparse import Namespace
from pathlib import Path

import pytest
import torch
import yaml

from mcvd.cli.main import main
from mcvd.diffusion.schedule import NoiseSchedule
from mcvd.errors import McvdError
from mcvd.files import model_name
from mcvd.interop import official
from mcvd.interop.official_config import model_config, read_config
from mcvd.layout import BlockLayout, Masking
from mcvd.model import ModelConfig, VideoDiffusion
from mcvd.networks.config import UNetConfig
from mcvd.networks.unet import UNet
from oracle_cases import tensors

# --- the published configurations, from docs/reference.md ----------------------------------------------------------

DIGITS = {"size": (64, 64), "channels": 1, "layout": BlockLayout(5, 5), "width": 64, "head_channels": 64}
KTH = {"size": (64, 64), "channels": 1, "layout": BlockLayout(10, 5), "width": 96, "head_channels": 96}
BAIR = {"size": (64, 64), "channels": 3, "layout": BlockLayout(2, 5), "width": 96, "head_channels": 96}
CITY = {"size": (128, 128), "channels": 3, "layout": BlockLayout(2, 5), "width": 128, "head_channels": 128}
CITY |= {"multipliers": (1, 1, 2, 3, 4)}
UCF = {"size": (64, 64), "channels": 3, "layout": BlockLayout(4, 4), "width": 192, "head_channels": 192}
DIGITS_3D = {"size": (64, 64), "channels": 1, "layout": BlockLayout(5, 2), "width": 12, "head_channels": -1}
DIGITS_3D |= {"multipliers": (1, 1, 2, 2), "blocks": 1, "attention": (16,)}
SPATIN = {"conditioning": "spatin"}


def wide(width):
    return {"width": width, "head_channels": width}


KEY_LISTS = {
    "smmnist_5c5_concat": DIGITS,
    "smmnist_5c5_concat_condemb_gamma": DIGITS | {"mask_embedding": True},
    "smmnist_5c5_spade": DIGITS | SPATIN,
    "smmnist_5c5f5_concat": DIGITS | {"layout": BlockLayout(5, 5, 5)},
    "smmnist_5c5f5_spade": DIGITS | SPATIN | {"layout": BlockLayout(5, 5, 5)},
    "kth_5c10_concat": KTH,
    "kth_5c10_spade_ngf192": KTH | SPATIN | {"width": 192, "spatin_width": 192},
    "bair_5c2_concat_ngf192": BAIR | wide(192),
    "bair_5c2_spade_ngf192": BAIR | SPATIN | wide(192),
    "city_5c2_concat_ngf192": CITY | wide(192),
    "city_5c2_spade_ngf256": CITY | SPATIN | wide(256),
    "ucf_4c4_concat_ngf288": UCF | wide(288),
    "ucf_4c4_spade_ngf288": UCF | SPATIN | wide(288) | {"spatin_width": 192},
    "smmnist_3d_concat": DIGITS_3D | {"frames": "3d"},
    "smmnist_3d_spade": DIGITS_3D | SPATIN | {"frames": "3d"},
    "smmnist_pseudo3d_concat": DIGITS_3D | {"frames": "pseudo3d"},
    "smmnist_pseudo3d_spade": DIGITS_3D | SPATIN | {"frames": "pseudo3d"},
}
PARAMETERS = [  # (configuration, parameters of the published network)
    (DIGITS, 27_941_765),
    (DIGITS | SPATIN, 53_953_989),
    (DIGITS | {"layout": BlockLayout(5, 5, 5)}, 27_944_645),
    (DIGITS | SPATIN | {"layout": BlockLayout(5, 5, 5)}, 54_282_309),
    (DIGITS | SPATIN | {"layout": BlockLayout(5, 10, 5)}, 54_288_074),
    (KTH, 62_831_141),
    (KTH | SPATIN, 102_005_669),
    (KTH | SPATIN | {"layout": BlockLayout(10, 10, 5)}, 102_342_634),
    (KTH | SPATIN | {"width": 192, "spatin_width": 192}, 367_650_437),
    (BAIR, 62_844_975),
    (BAIR | SPATIN, 101_760_303),
    (BAIR | wide(192) | {"layout": BlockLayout(1, 5)}, 251_169_807),
    (BAIR | wide(192), 251_174_991),
    (BAIR | wide(192) | {"layout": BlockLayout(1, 5, 2)}, 251_180_175),
    (BAIR | wide(192) | {"layout": BlockLayout(2, 5, 2)}, 251_185_359),
    (BAIR | SPATIN | wide(192) | {"layout": BlockLayout(1, 5)}, 328_407_375),
    (BAIR | SPATIN | wide(192), 328_604_367),
    (CITY, 116_551_695),
    (CITY | wide(192), 262_133_775),
    (CITY | SPATIN | wide(256), 579_159_695),
    (CITY | SPATIN | wide(256) | {"layout": BlockLayout(2, 5, 2)}, 579_650_447),
    (UCF, 251_174_988),
    (UCF | wide(288), 564_990_060),
    (UCF | SPATIN | wide(288) | {"spatin_width": 192}, 739_438_572),
    (UCF | SPATIN | wide(288) | {"spatin_width": 192, "layout": BlockLayout(4, 4, 4)}, 740_620_524),
    (DIGITS_3D | {"frames": "3d"}, 1_235_041),
]


def on_meta(options):
    with torch.device("meta"):
        return UNet(UNetConfig(**options))


@pytest.mark.oracle
def test_key_lists(oracle_dir):
    """Names, shapes and order: the order is that of the published optimizer."""
    folder = oracle_dir.parent / "reference" / "keys"
    if not folder.is_dir():
        pytest.skip(f"{folder} is not there")
    for path in sorted(folder.glob("*.json")):
        published, network = json.loads(path.read_text()), on_meta(KEY_LISTS[path.stem])
        ours = [[name, list(value.shape)] for name, value in official.to_official(network).items()]
        assert ours == published["parameters_in_optimizer_order"], path.stem
        assert len(list(official.layers(network))) == published["n_all_modules"], path.stem


def test_parameter_counts():
    for options, expected in PARAMETERS:
        assert sum(p.numel() for p in on_meta(options).parameters()) == expected, options


# --- weights -------------------------------------------------------------------------------------------------------

SMALL = {"size": (16, 16), "width": 8, "multipliers": (1, 2), "blocks": 1, "attention": (8,), "head_channels": 8}
VARIANTS = {
    "concat": {"layout": BlockLayout(2, 3, 1), "mask_embedding": True},
    "spatin": {"layout": BlockLayout(2, 3, 1), "conditioning": "spatin", "spatin_width": 8},
    "no time": {"layout": BlockLayout(2, 3), "time_embedding": False},
    "no time, spatin": {"layout": BlockLayout(2, 3), "time_embedding": False, "conditioning": "spatin"},
    "3d": {"layout": BlockLayout(2, 3), "frames": "3d"},
    "3d, spatin": {"layout": BlockLayout(2, 3), "frames": "3d", "conditioning": "spatin"},
    "pseudo3d": {"layout": BlockLayout(2, 3), "frames": "pseudo3d"},
    "pseudo3d, spatin": {"layout": BlockLayout(2, 3), "frames": "pseudo3d", "conditioning": "spatin"},
}


@pytest.mark.parametrize("options", VARIANTS.values(), ids=VARIANTS)
def test_round_trip(options):
    network = UNet(UNetConfig(**SMALL, **options))
    there = official.to_official(network)
    back = official.from_official(network, there, "here")
    own = network.state_dict()
    assert back.keys() == own.keys()
    assert all(torch.equal(back[name], own[name]) for name in own)
    again = official.from_official(network, {f"module.{name}": value for name, value in there.items()}, "here")
    assert all(torch.equal(again[name], own[name]) for name in own)


# --- config.yml ----------------------------------------------------------------------------------------------------

NEEDED = {
    "data": {"channels": 3, "image_size": 32, "num_frames": 4, "num_frames_cond": 2},
    "model": {"ngf": 12, "ch_mult": [1, 2], "num_res_blocks": 3, "attn_resolutions": [16], "n_head_channels": 6},
}
AS_NEEDED = {"size": (32, 32), "channels": 3, "layout": BlockLayout(2, 4), "width": 12, "multipliers": (1, 2)}
AS_NEEDED |= {"blocks": 3, "attention": (16,), "head_channels": 6, "dropout": 0.0, "spatin_width": 128}


def read_published(folder, **changes):
    """What is read of a config.yml with all keys that it must have, and these (`section__key`)."""
    config = {section: dict(keys) for section, keys in NEEDED.items()}
    for name, value in changes.items():
        section, key = name.split("__")
        config[section][key] = value
    (folder / "config.yml").write_text(yaml.safe_dump(config))
    return read_config(folder / "config.yml")


def test_missing_keys_mean_what_the_published_code_takes_for_them(tmp_path):
    published = read_published(tmp_path)
    assert model_config(published) == ModelConfig(UNetConfig(**AS_NEEDED), time_from_noise=True)
    assert published["model"]["ema"]
    assert not published["model"]["gamma"]


def test_every_option_of_a_published_config_reaches_the_model(tmp_path):
    linear = {"num_classes": 500, "sigma_begin": 0.03, "sigma_end": 2e-4}
    for options, network, others in (
        ({"data__image_size": 64.0, "data__channels": 1}, {"size": (64, 64), "channels": 1}, {}),
        ({"data__num_frames_future": 1}, {"layout": BlockLayout(2, 4, 1)}, {}),
        ({"data__prob_mask_cond": 0.25}, {}, {"masking": Masking(0.25, 0.0)}),
        ({"data__prob_mask_future": 0.75}, {}, {"masking": Masking(0.0, 0.75)}),
        (
            {"data__num_frames_future": 1, "data__prob_mask_cond": 0.5, "data__prob_mask_future": 0.5},
            {"layout": BlockLayout(2, 4, 1)},
            {"masking": Masking(0.5, 0.5)},  # independent of each other, without prob_mask_sync
        ),
        ({"model__dropout": 0.25}, {"dropout": 0.25}, {}),
        ({"model__spade": True, "model__spade_dim": 16}, {"conditioning": "spatin", "spatin_width": 16}, {}),
        ({"model__cond_emb": True}, {"mask_embedding": True}, {}),
        ({"model__time_conditional": False}, {"time_embedding": False}, {}),
        ({"model__n_head_channels": -1}, {"head_channels": -1}, {}),
        ({"model__arch": "unetmore3d"}, {"frames": "3d"}, {}),
        ({"model__arch": "unetmorepseudo3d"}, {"frames": "pseudo3d"}, {}),
        ({"model__noise_in_cond": True}, {}, {"noisy_condition": True}),
        ({"model__version": "DDIM"}, {}, {"solver": "ddim"}),
        ({"model__sigma_dist": "cosine"}, {}, {"schedule": NoiseSchedule("cosine")}),
        (
            {f"model__{key}": value for key, value in linear.items()},
            {},
            {"schedule": NoiseSchedule(steps=500, beta_first=2e-4, beta_last=0.03)},
        ),
    ):
        expected = ModelConfig(UNetConfig(**AS_NEEDED | network), time_from_noise=True, **others)
        assert model_config(read_published(tmp_path, **options)) == expected, options


# --- files ---------------------------------------------------------------------------------------------------------


@pytest.fixture
def logs(oracle_dir, tmp_path):
    """A copy of a published run's folder, to break."""
    return shutil.copytree(oracle_dir / "checkpoint_concat" / "logs", tmp_path / "logs")


def edit_config(logs, change):
    path = logs / "config.yml"
    config = yaml.safe_load(path.read_text())
    change(config)
    path.write_text(yaml.safe_dump(config))


def edit_states(logs, change):
    path = logs / "checkpoint.pt"
    states = torch.load(path, weights_only=True)
    states = change(states) or states
    torch.save(states, path)


def load(logs, **options):
    return official.load_checkpoint(logs / "checkpoint.pt", **options)


def same(a, b):
    a, b = a.state_dict(), b.state_dict()
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)


def refused(logs, *words, **options):
    with pytest.raises(McvdError) as raised:
        load(logs, **options)
    text = str(raised.value)
    assert "\n" not in text
    for word in words:
        assert word in text
    return text


@pytest.mark.oracle
def test_averaged_and_raw_weights(logs):
    states = torch.load(logs / "checkpoint.pt", weights_only=True)
    name = "unet.all_modules.2.weight"
    assert torch.equal(load(logs).network.conv_in.weight, states[4][name])
    assert not load(logs).training  # dropout would change every frame
    assert torch.equal(load(logs, ema=False).network.conv_in.weight, states[0][f"module.{name}"])
    edit_states(logs, lambda states: states[:4])
    refused(logs, "averaged", "mcvd import --raw", "ema=False")
    load(logs, ema=False)
    edit_config(logs, lambda config: config["model"].update(ema=False))
    assert same(load(logs), load(logs, ema=False))


@pytest.mark.oracle
def test_gamma_noise_is_not_passed_over_in_silence(logs, capsys):
    edit_config(logs, lambda config: config["model"].update(gamma=True))
    with pytest.warns(UserWarning, match="checkpoint.pt was trained with Gamma noise"):
        load(logs)
    assert main(["import", str(logs / "checkpoint.pt"), "--output", str(logs / "model")]) == 0
    said = "mcvd: note: checkpoint.pt was trained with Gamma noise; it is sampled with Gaussian noise here\n"
    assert capsys.readouterr().err == said


@pytest.mark.oracle
def test_old_files(logs):
    """Files from before May 2022: fewer keys in config.yml, surplus ones, and the last norm without its wrapper."""
    new = load(logs)
    last = len(list(official.layers(new.network))) - 1

    def older_config(config):
        for key in ("num_frames_future", "prob_mask_cond", "prob_mask_future", "prob_mask_sync"):
            config["data"].pop(key)
        for key in ("spade_dim", "spade", "cond_emb", "output_all_frames", "noise_in_cond", "time_conditional"):
            config["model"].pop(key)
        # keys that the published networks do not read are not ours to judge
        config["model"]["gff"] = False
        config["something"] = {"else": 1}

    def older_names(states):
        for state, prefix in ((states[0], "module."), (states[4], "")):
            for leaf in ("weight", "bias"):
                name = f"{prefix}unet.all_modules.{last - 1}.Norm_0.{leaf}"
                state[name.replace(".Norm_0", "")] = state.pop(name)

    edit_config(logs, older_config)
    assert same(load(logs), new)
    edit_states(logs, older_names)
    assert same(load(logs), new)


@pytest.mark.oracle
def test_broken_files_are_refused_in_one_line(logs):
    checkpoint, config = logs / "checkpoint.pt", logs / "config.yml"
    whole, text = checkpoint.read_bytes(), config.read_text()

    config.unlink()
    refused(logs, "config.yml", "checkpoint.pt")
    config.write_text("just text")
    refused(logs, "section data")
    config.write_text("data: [")
    refused(logs, "YAML")
    config.write_text(text)

    for section, key, value in (
        ("model", "arch", "ncsn"),
        ("model", "output_all_frames", True),
        ("model", "version", "SMLD"),
        ("model", "sigma_dist", "geometric"),
        ("data", "rescaled", False),
        ("data", "logit_transform", True),
    ):
        edit_config(logs, lambda config, s=section, k=key, v=value: config[s].update({k: v}))
        refused(logs, f"{section}.{key}", repr(value))
        config.write_text(text)
    edit_config(logs, lambda config: config["model"].pop("ngf"))
    refused(logs, "model.ngf")
    config.write_text(text)

    for damaged in (whole[: len(whole) // 2], whole[:10], b"", b"<html>Sign in to download</html>"):
        checkpoint.write_bytes(damaged)
        refused(logs, "cannot be read")
    checkpoint.unlink()
    refused(logs, "is missing")


@pytest.mark.oracle
def test_wrong_contents_are_refused_in_one_line(logs):
    checkpoint = logs / "checkpoint.pt"
    whole = checkpoint.read_bytes()

    def check(change, *words):
        edit_states(logs, change)
        refused(logs, *words)
        checkpoint.write_bytes(whole)

    name, nin = "unet.all_modules.3.Conv_0.weight", "unet.all_modules.6.NIN_0.W"
    check(lambda states: states[4].update({"unet.surprise": torch.zeros(1)}), "unet.surprise", "config.yml")
    check(lambda states: states[4].__delitem__(name), name, "lacks")
    check(lambda states: states[4].update({name: torch.zeros(1, 2, 3, 3)}), "another shape", name, "(1, 2, 3, 3)")
    for wrong in (torch.zeros(4, 8), torch.zeros(16, 20), torch.zeros(20, 16), torch.zeros(16, 16, 1)):
        check(lambda states, wrong=wrong: states[4].update({nin: wrong}), "another shape", nin)
    for wrong in (3, None, torch.zeros(16, 16).to_sparse(), torch.zeros(16, 16, dtype=torch.long)):
        check(lambda states, wrong=wrong: states[4].update({nin: wrong}), "not a dense tensor", nin)
    check(lambda states: states[4].update({0: torch.zeros(1)}), "name is not text", "int")
    check(lambda states: states[0].update({"module.alphas": 5}), "not a dense tensor", "module.alphas")
    check(lambda states: states[0].update({"module.alphas": torch.rand(1000)}), "noise schedule")
    check(lambda states: states[0].__delitem__("module.alphas"), "noise schedule")
    check(lambda states: states[0], "not a published checkpoint")
    check(lambda states: ["a", "b", "c", "d", "e"], "not a published checkpoint")
    check(lambda states: states[:3], "not a published checkpoint")
    check(lambda states: [*states[:4], "e"], "not a published checkpoint")
    edit_config(logs, lambda config: config["model"].update(num_res_blocks=2))
    refused(logs, "config.yml does not fit")


class Calls:
    """Pickled, a call."""

    def __init__(self, *call):
        self.call = call

    def __reduce__(self):
        return self.call[0], self.call[1:]


@pytest.mark.oracle
@pytest.mark.parametrize("code", [print, Calls(eval, "1 / 0"), Calls(os.system, "exit 1")], ids=["print", "eval", "os"])
def test_code_in_a_file_is_not_run(logs, code, recwarn):
    states = [*torch.load(logs / "checkpoint.pt", weights_only=True), code]
    for options in ({}, {"_use_new_zipfile_serialization": False}, {"pickle_protocol": 4}):
        torch.save(states, logs / "checkpoint.pt", **options)
        text = refused(logs, "cannot be read", "holds code, which is never run")
        assert "weights_only" not in text  # advice to switch the protection off
    assert not list(recwarn)


@pytest.mark.oracle
def test_a_config_as_the_published_code_reads_it(logs):
    model, path = load(logs), logs / "config.yml"

    def variant(config):
        config["model"].update(version="ddpm", ch_mult=(1, 2), attn_resolutions=(8,), sigma_end="1e-4", spade=0)

    config = yaml.safe_load(path.read_text())
    variant(config)
    text = yaml.dump(config)
    assert text.count("!!python/tuple") == 2
    for encoding in ("utf-8", "utf-8-sig", "utf-16"):
        path.write_bytes(text.encode(encoding))
        assert load(logs).config == model.config
        assert same(load(logs), model)


@pytest.mark.oracle
def test_a_config_of_namespaces(logs):
    """What the published code makes of a config.yml, dumped: objects of Python, none of which is ever made."""
    model, path = load(logs), logs / "config.yml"
    sections = {name: Namespace(**section) for name, section in yaml.safe_load(path.read_text()).items()}
    path.write_text(yaml.dump(Namespace(**sections, device=torch.device("cuda", 0))))
    assert "!!python/object:argparse.Namespace" in path.read_text()
    assert load(logs).config == model.config
    sections["model"].ngf = print
    path.write_text(yaml.dump(sections))
    refused(logs, "model.ngf is '!!python/name:builtins.print'; it must be a whole number")


@pytest.mark.oracle
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_files_of_another_precision(logs, dtype):
    """The tables are rounded like the weights, yet still tell one noise schedule from another."""
    model = load(logs)

    def convert(states):
        for state in (states[0], states[4]):
            state.update({name: value.to(dtype) for name, value in state.items()})

    edit_states(logs, convert)
    for name, value in load(logs).state_dict().items():
        assert value.dtype == torch.float32
        assert torch.equal(value, model.state_dict()[name].to(dtype).float())
    edit_config(logs, lambda config: config["model"].update(sigma_begin=0.03))
    refused(logs, "noise schedule")


@pytest.mark.oracle
@pytest.mark.parametrize(
    ("future", "probabilities", "masking"),
    [
        (1, (0.5, 0.5), Masking(0.5, 0.5, together=True)),
        (1, (0.3, 0.7), Masking(0.3, 0.3, together=True)),
        (1, (0.5, 1.0), Masking(0.5, 1.0)),
        (1, (0.5, 0.0), Masking(0.5, 0.0)),
        (1, (0.0, 0.5), Masking(0.0, 0.5)),
        (0, (0.5, 0.0), Masking(0.5, 0.0)),
        (0, (0.3, 0.7), Masking(0.3, 0.7)),
    ],
)
def test_one_draw_for_past_and_future_as_published(logs, future, probabilities, masking):
    """prob_mask_sync: the future follows the past, whatever its own probability, unless that is 0 or 1."""
    past, q = probabilities
    changes = {"num_frames_future": future, "prob_mask_cond": past, "prob_mask_future": q, "prob_mask_sync": True}
    edit_config(logs, lambda config: config["data"].update(changes))
    assert model_config(read_config(logs / "config.yml")).masking == masking


@pytest.mark.oracle
@pytest.mark.parametrize(
    ("version", "solver", "reference"),
    [("DDPM", "ddpm", "ddpm"), ("DDIM", "ddim", "ddim"), ("ddim", "ddim", "ddim"), ("FPNDM", "f-pndm", "ddpm")],
)
def test_a_checkpoint_is_sampled_by_its_own_solver(logs, version, solver, reference):
    edit_config(logs, lambda config: config["model"].update(version=version))
    model = load(logs)
    assert model.sampler()[0] == solver
    assert model.sampler(reference=True) == (reference, 100)


@pytest.mark.oracle
def test_cond_emb_without_a_time_embedding_is_nothing(logs):
    edit_config(logs, lambda config: config["model"].update(time_conditional=False, cond_emb=True))
    config = model_config(read_config(logs / "config.yml"))
    assert not config.network.time_embedding
    assert not config.network.mask_embedding


@pytest.mark.oracle
def test_a_config_of_wrong_values_is_refused_in_one_line(logs):
    path = logs / "config.yml"
    text = path.read_text()
    for section, key, value in (
        ("model", "attn_resolutions", None),
        ("model", "attn_resolutions", 8),
        ("model", "ch_mult", [1, "2"]),
        ("model", "dropout", None),
        ("model", "dropout", False),
        ("model", "ngf", "8"),
        ("model", "ngf", True),
        ("model", "spade", "yes"),
        ("model", "sigma_end", "small"),
        ("model", "version", None),
        ("data", "image_size", None),
        ("data", "num_frames_future", None),
        ("data", "prob_mask_cond", None),
    ):
        edit_config(logs, lambda config, s=section, k=key, v=value: config[s].update({k: v}))
        refused(logs, f"{path}: {section}.{key} is {value!r}; it must be ")
        path.write_text(text)
    for section, key, value, says in (
        ("model", "ngf", 0, "width is 0"),
        ("model", "ch_mult", [], "multipliers"),
        ("model", "n_head_channels", 3, "head_channels 3 does not divide"),
        ("model", "num_classes", 0, "noise schedule"),
        ("data", "num_frames", 0, "current=0"),
        ("data", "prob_mask_cond", 1.5, "masking past=1.5"),
    ):
        edit_config(logs, lambda config, s=section, k=key, v=value: config[s].update({k: v}))
        refused(logs, f"{path}: ", says)
        path.write_text(text)
    for damaged in (b"# caf\xe9\n" + text.encode(), bytes(range(256)), b"a: !!int ''", b"a: 2020-13-45", b"[" * 5000):
        path.write_bytes(damaged)
        refused(logs, f"{path} cannot be read as YAML")


@pytest.mark.parametrize("beside", ["recipe.yaml", "model"])
def test_a_checkpoint_of_our_own_training_is_told_apart(tmp_path, beside):
    path = tmp_path / "checkpoint-000000006.pt"
    path.touch()
    with pytest.raises(McvdError, match=r"needs the config\.yml"):
        official.load_checkpoint(path)
    (tmp_path / beside).mkdir()
    with pytest.raises(McvdError, match=f"name the run folder, {tmp_path}"):
        official.load_checkpoint(path)


# --- our own folders -----------------------------------------------------------------------------------------------


@pytest.mark.oracle
@pytest.mark.parametrize("case", ["concat", "spade"])
def test_import_writes_a_folder_that_gives_the_same_output(oracle_dir, tmp_path, case):
    source = oracle_dir / f"checkpoint_{case}" / "logs" / "checkpoint.pt"
    model = official.import_checkpoint(source, tmp_path / "model")
    again = VideoDiffusion.from_folder(tmp_path / "model")
    assert again.config == model.config
    assert same(again, model)

    expected = tensors(oracle_dir / f"checkpoint_{case}" / "expected.safetensors")
    x, past = expected["x_t"].unsqueeze(2), expected["cond"].unsqueeze(2)
    outputs = [m.network(x, expected["t"], m.network.encode(past, past[:, :0])).detach() for m in (model, again)]
    assert torch.equal(*outputs)
    assert (outputs[0].flatten(1, 2) - expected["eps_ema"]).abs().max() < 5e-6

    # averaged weights only: neither the raw ones nor Adam's two moments
    weights = tmp_path / "model" / "model.safetensors"
    assert 0.2 < weights.stat().st_size / source.stat().st_size < 0.3
    notes = json.loads((tmp_path / "model" / "config.json").read_text())["notes"]
    assert notes["source"] == "checkpoint.pt"
    assert notes["step"] == 6
    assert notes["ema"] is True
    assert len(notes["sha256"]) == 64


@pytest.mark.oracle
def test_an_import_replaces_no_other_model(logs, tmp_path, monkeypatch):
    """The same import may be done again."""
    monkeypatch.setenv("HOME", str(tmp_path))
    folder, source = tmp_path / "model", logs / "checkpoint.pt"
    official.import_checkpoint(source, folder)
    before = (folder / "model.safetensors").read_bytes()
    official.import_checkpoint(source.rename(logs / "checkpoint_6.pt"), folder)

    def refused(source, **options):
        for named in (folder, "~/model"):
            with pytest.raises(McvdError, match=f"{folder} holds another model.*--output") as raised:
                official.import_checkpoint(source, named, **options)
            assert "\n" not in str(raised.value)
            assert (folder / "model.safetensors").read_bytes() == before

    source = logs / "checkpoint_6.pt"
    refused(source, ema=False)
    edit_config(logs, lambda config: config["model"].update(dropout=0.5))
    refused(source)
    edit_config(logs, lambda config: config["model"].update(dropout=0.0))
    states = torch.load(source, weights_only=True)
    torch.save([*states[:3], torch.tensor(7), states[4]], source)
    refused(source)
    (folder / "config.json").write_text("{}")
    refused(source)

    with pytest.raises(McvdError, match="cannot write .*--output"):
        official.import_checkpoint(source, source)
    official.import_checkpoint(source, tmp_path / "other")
    assert json.loads((tmp_path / "other" / "config.json").read_text())["notes"]["step"] == "7"


@pytest.mark.oracle
def test_imports_of_two_experiments_have_two_names(logs, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    shutil.copytree(logs, "one/logs")
    shutil.copytree(logs, "two")
    assert main(["import", "one/logs/checkpoint.pt"]) == main(["import", "two/checkpoint.pt"]) == 0
    assert (tmp_path / "models" / "one" / "config.json").is_file()
    (tmp_path / "models" / "two" / "notes.txt").write_bytes(bytes(10_000_000))
    capsys.readouterr()
    assert main(["import", "two/checkpoint.pt"]) == 0
    size = sum((tmp_path / "models" / "two" / name).stat().st_size for name in ("config.json", "model.safetensors"))
    assert f"wrote models/two (0.1 M parameters, {size / 1e6:.1f} MB)" in capsys.readouterr().out


def test_an_import_hides_no_run(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "run" / "samples").mkdir(parents=True)
    (tmp_path / "run" / "recipe.yaml").touch()
    for output in ("run", "run/model"):
        assert main(["import", "checkpoint.pt", "--output", output]) == 1
        assert f"{output} is of a run of mcvd train, whose own model it would hide" in capsys.readouterr().err


def test_names_of_published_checkpoints(tmp_path, monkeypatch):
    (tmp_path / "kth" / "logs").mkdir(parents=True)
    monkeypatch.chdir(tmp_path / "kth")
    for path, name in (
        (tmp_path / "kth" / "logs" / "checkpoint_700000.pt", "kth_700000"),
        (tmp_path / "kth" / "checkpoint.pt", "kth"),
        ("logs/checkpoint_5.pt", "kth_5"),
        ("../bair/checkpoint_5.pt", "bair_5"),
        ("checkpoint_5.pt", "checkpoint_5"),
        ("logs/best.pt", "best"),
        ("/checkpoint.pt", "checkpoint"),
        ("owner/kth-1.5", "kth-1.5"),  # on a hub
    ):
        assert model_name(Path(path)) == name


def test_saved_as_bfloat16_loads_as_float32(tmp_path):
    model = VideoDiffusion(ModelConfig(UNetConfig(**SMALL, **VARIANTS["concat"])))
    model.save(tmp_path / "full")
    model.save(tmp_path / "half", torch.bfloat16)
    full, half = (tmp_path / name / "model.safetensors" for name in ("full", "half"))
    assert 0.4 < half.stat().st_size / full.stat().st_size < 0.7
    loaded = VideoDiffusion.from_folder(tmp_path / "half")
    for name, value in loaded.state_dict().items():
        assert value.dtype == torch.float32
        assert torch.equal(value, model.state_dict()[name].bfloat16().float())
