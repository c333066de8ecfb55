"""The config.yml beside one of the authors' checkpoints: checks every key that a network depends on."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from mcvd.diffusion.schedule import NoiseSchedule
from mcvd.errors import McvdError
from mcvd.layout import BlockLayout, Masking
from mcvd.model import ModelConfig
from mcvd.networks.config import UNetConfig
from mcvd.text import first_line

# keys that a released config.yml may lack, with the value that the published code then assumes; keys that it must have,
# with their type
_DEFAULTS: dict[str, dict[str, Any]] = {
    "data": {
        "channels": int,
        "image_size": int,
        "num_frames": int,
        "num_frames_cond": int,
        "num_frames_future": 0,
        "prob_mask_cond": 0.0,
        "prob_mask_future": 0.0,
        "prob_mask_sync": False,
        "rescaled": True,
        "logit_transform": False,
    },
    "model": {
        "arch": "unetmore",
        "ngf": int,
        "ch_mult": list,
        "num_res_blocks": int,
        "attn_resolutions": list,
        "n_head_channels": int,
        "dropout": 0.0,
        "spade": False,
        "spade_dim": 128,
        "time_conditional": True,
        "cond_emb": False,
        "noise_in_cond": False,
        "output_all_frames": False,
        "gamma": False,
        "version": "DDPM",
        "sigma_dist": "linear",
        "sigma_begin": 0.02,
        "sigma_end": 1e-4,
        "num_classes": 1000,
        "ema": True,
    },
}
# where the frames of a block are (`UNetConfig.frames`)
_ARCH = {"unetmore": "channels", "unetmore3d": "3d", "unetmorepseudo3d": "pseudo3d"}
_SOLVER = {"DDPM": "ddpm", "DDIM": "ddim", "FPNDM": "f-pndm"}  # all train in the same way
# options that our networks lack: the only values that can be loaded
_ONLY: dict[str, dict[str, tuple[Any, ...]]] = {
    "data": {"rescaled": (True,), "logit_transform": (False,)},
    "model": {
        "arch": tuple(_ARCH),
        "output_all_frames": (False,),
        "version": tuple(_SOLVER),
        "sigma_dist": ("linear", "cosine"),
    },
}
_KINDS = {
    int: "a whole number",
    float: "a number",
    bool: "true or false",
    str: "a word",
    list: "a list of whole numbers",
}


def read_config(path: Path) -> dict[str, dict[str, Any]]:
    """The `data` and `model` sections of a published config.yml, with the published defaults for missing keys.

    Raises McvdError unless every value has its key's type and belongs to a model that can be loaded.
    """
    try:
        raw = _read_yaml(path.read_bytes())
    except Exception as error:  # yaml's own errors, and whatever a wrong value makes its constructors raise
        reason = first_line(error)
        raise McvdError(f"{path} cannot be read as YAML: {reason}") from None
    sections = {}
    for section, defaults in _DEFAULTS.items():
        found = raw.get(section) if isinstance(raw, dict) else None
        if not isinstance(found, dict):
            raise McvdError(f"{path} has no section {section}: it is not the config.yml of a published checkpoint")
        sections[section] = {
            key: _value(found.get(key, default), default, _ONLY[section].get(key), f"{path}: {section}.{key}")
            for key, default in defaults.items()
        }
    return sections


def _read_yaml(data: bytes) -> Any:
    """Parses YAML in any of its encodings.

    Of Python's own tags, it accepts tuples, which `--config_mod` can leave, and namespaces, which a dump of the
    published code's configuration holds. Any other becomes text: nothing is called, and no key read here needs one.
    """
    import yaml  # only here: benchmarks on a bare GPU machine do not need it

    class Loader(yaml.SafeLoader):
        pass

    python = "tag:yaml.org,2002:python/"
    Loader.add_constructor(f"{python}tuple", Loader.construct_yaml_seq)  # type: ignore[type-var]
    Loader.add_constructor(f"{python}object:argparse.Namespace", Loader.construct_yaml_map)  # type: ignore[type-var]
    Loader.add_multi_constructor(python, lambda _, suffix, node: f"!!python/{suffix}")
    return yaml.load(data, Loader)


def _value(value: Any, default: Any, allowed: tuple[Any, ...] | None, where: str) -> Any:
    """A value of config.yml in the type of its default; if there is no default, `default` is the type."""
    kind = default if isinstance(default, type) else type(default)
    if value is kind:
        raise McvdError(f"{where} is missing, and the weights do not reveal it")
    typed = _typed(value, kind)
    if typed is None:
        raise McvdError(f"{where} is {value!r}; it must be {_KINDS[kind]}")
    if kind is str and typed.upper() in (allowed or ()):  # the published code reads model.version in any case
        typed = typed.upper()
    if allowed is not None and typed not in allowed:
        raise McvdError(f"{where} is {value!r}; only {', '.join(map(repr, allowed))} can be loaded")
    return typed


def _typed(value: Any, kind: type) -> Any:
    """The value as `kind`, None if it is not one."""
    if kind is list:
        items = [_typed(item, int) for item in value] if isinstance(value, (list, tuple)) else [None]
        return None if None in items else items
    if kind is bool:
        return bool(value) if value in (0, 1) else None
    if kind is float and isinstance(value, (int, float, str)) and not isinstance(value, bool):
        try:
            return float(value)  # YAML 1.1 reads 1e-4 as text
        except (ValueError, OverflowError):
            return None
    if kind is int and isinstance(value, float) and value.is_integer():
        return int(value)
    return value if type(value) is kind else None


def model_config(published: dict[str, dict[str, Any]]) -> ModelConfig:
    """Our configuration for the sections that `read_config` gives."""
    data, model = published["data"], published["model"]
    past, future = data["prob_mask_cond"], data["prob_mask_future"]
    # with prob_mask_sync, if both may be hidden, the future follows the draw of the past, with the past's probability;
    # a probability of 1 hides the future whatever the draw
    together = data["prob_mask_sync"] and data["num_frames_future"] > 0 and past > 0 and 0 < future < 1
    return ModelConfig(
        network=UNetConfig(
            size=(data["image_size"], data["image_size"]),
            channels=data["channels"],
            layout=BlockLayout(data["num_frames_cond"], data["num_frames"], data["num_frames_future"]),
            width=model["ngf"],
            multipliers=tuple(model["ch_mult"]),
            blocks=model["num_res_blocks"],
            attention=tuple(model["attn_resolutions"]),
            head_channels=model["n_head_channels"],
            dropout=model["dropout"],
            conditioning="spatin" if model["spade"] else "concat",
            spatin_width=model["spade_dim"],
            mask_embedding=model["cond_emb"] and model["time_conditional"],  # it is part of the time embedding
            time_embedding=model["time_conditional"],
            frames=_ARCH[model["arch"]],
        ),
        masking=Masking(past, past if together else future, together),
        schedule=NoiseSchedule(model["sigma_dist"], model["num_classes"], model["sigma_end"], model["sigma_begin"]),
        noisy_condition=model["noise_in_cond"],
        time_from_noise=True,
        solver=_SOLVER[model["version"]],
    )
