"""Every bundled recipe builds the network that it says; the published ones have the published number of weights."""

import re

import pytest
import torch

from mcvd.errors import McvdError
from mcvd.networks.unet import UNet
from mcvd.training.estimate import BYTES_PER_WEIGHT
from mcvd.training.recipe import RECIPES, read_recipe, recipe_names

PARAMETERS = {  # of the networks in the paper's experiments, counted in the published code
    "smmnist-concat": 27_941_765,
    "smmnist-concat-pastmask": 27_941_765,
    "smmnist-spatin": 53_953_989,
    "smmnist-spatin-pastmask": 53_953_989,
    "smmnist-spatin-interpolation-5": 54_282_309,
    "smmnist-spatin-interpolation-10": 54_288_074,
    "smmnist-concat-futuremask": 27_944_645,
    "smmnist-spatin-futuremask": 54_282_309,
    "smmnist-concat-general": 27_944_645,
    "smmnist-spatin-general": 54_282_309,
    "kth-concat": 62_831_141,
    "kth-spatin": 367_650_437,
    "kth-spatin-interpolation-10": 102_342_634,
    "kth-spatin-interpolation-5": 102_005_669,
    "kth-concat-general": 62_831_141,
    "bair-concat-1": 251_169_807,
    "bair-concat-1-pastmask": 251_169_807,
    "bair-concat-2": 251_174_991,
    "bair-concat-2-pastmask": 251_174_991,
    "bair-spatin-1": 328_407_375,
    "bair-spatin-1-pastmask": 328_407_375,
    "bair-spatin-2": 328_604_367,
    "bair-spatin-2-pastmask": 328_604_367,
    "bair-concat-1-general": 251_174_991,
    "bair-concat-1-general-f2": 251_180_175,
    "bair-concat-2-general": 251_185_359,
    "cityscapes-concat": 262_133_775,
    "cityscapes-spatin": 579_159_695,
    "cityscapes-spatin-pastmask": 579_650_447,
    "cityscapes-spatin-general": 579_650_447,
    "ucf101-concat": 564_990_060,
    "ucf101-concat-pastmask": 564_990_060,
    "ucf101-spatin": 739_438_572,
    "ucf101-spatin-pastmask": 739_438_572,
    "ucf101-spatin-futuremask": 740_620_524,
    "ucf101-spatin-general": 740_620_524,
}


def count(name):
    with torch.device("meta"):
        return sum(p.numel() for p in UNet(read_recipe(name).model.network).parameters())


@pytest.mark.parametrize("name", sorted(PARAMETERS))
def test_published_experiments_have_the_published_number_of_weights(name):
    assert count(name) == PARAMETERS[name]


def test_every_published_experiment_has_a_recipe_and_every_recipe_is_listed():
    assert {path.stem for path in (RECIPES / "paper").glob("*.yaml")} == set(PARAMETERS)
    assert {"digits", "digits-small"} <= set(recipe_names())


def test_the_full_digits_model_fits_the_package():
    assert count("digits") * 2 <= 16 * 2**20  # bf16


@pytest.mark.parametrize("path", sorted(RECIPES.rglob("*.yaml")), ids=lambda path: path.stem)
def test_the_header_states_what_to_expect_and_what_it_costs(path):
    header = [line for line in path.read_text().splitlines() if line.startswith("#")]
    text = " ".join(header)
    assert "Expected:" in text
    assert "Cost:" in text
    assert all(len(line) <= 120 for line in header)


@pytest.mark.parametrize("name", sorted(PARAMETERS))
def test_the_header_counts_weights_and_their_memory_as_a_dry_run_does(name):
    text = (RECIPES / "paper" / f"{name}.yaml").read_text()
    cost = re.search(r"Cost: ([\d.]+) M weights \(([\d.]+) GB with gradients, Adam and EMA", text)
    millions, gigabytes = cost.groups()
    assert millions == f"{count(name) / 1e6:.1f}"
    assert gigabytes == f"{BYTES_PER_WEIGHT * count(name) / 1e9:.2g}"


def test_an_unknown_recipe_names_the_nearest():
    with pytest.raises(McvdError, match=r"no recipe digit; did you mean digits"):
        read_recipe("digit")
