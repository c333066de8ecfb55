"""Typed configurations to and from plain dictionaries (JSON, YAML); errors for unknown keys name the nearest one."""

from __future__ import annotations

import dataclasses
import difflib
import types
import typing
from collections.abc import Mapping, Sequence
from typing import Any, TypeVar

from mcvd.errors import McvdError

T = TypeVar("T")


def to_dict(config: Any) -> Any:
    """A dataclass, with all that it contains, as dictionaries and lists."""
    if dataclasses.is_dataclass(config) and not isinstance(config, type):
        return {field.name: to_dict(getattr(config, field.name)) for field in dataclasses.fields(config)}
    if isinstance(config, dict):
        return {key: to_dict(item) for key, item in config.items()}
    if isinstance(config, (tuple, list)):
        return [to_dict(item) for item in config]
    return config.tolist() if hasattr(config, "tolist") else config  # numpy's numbers cannot be written as JSON


def differences(config: Any, usual: Any) -> dict[str, Any]:
    """The fields of a dataclass that differ from those of `usual` (None: the defaults), as dictionaries and lists.
    Compared with the defaults, the result does not change when fields are added to the class."""
    out = {}
    for field in dataclasses.fields(config):
        value = getattr(config, field.name)
        other = _default(field) if usual is None else getattr(usual, field.name)
        if value != other:
            out[field.name] = differences(value, other) if dataclasses.is_dataclass(value) else to_dict(value)
    return out


def _default(field: dataclasses.Field) -> Any:
    """What a field is if it is not given; None if it must be."""
    made = None if field.default is dataclasses.MISSING else field.default
    return made if field.default_factory is dataclasses.MISSING else field.default_factory()


def from_dict(cls: type[T], data: Any, where: str) -> T:
    """A dataclass of type `cls` from a dictionary; missing keys take their defaults.

    where: what is being read (a file name, then the path of keys), named in errors.
    Raises McvdError for an unknown key, a missing one without a default, or a value of the wrong type.
    """
    if not isinstance(data, dict):
        raise McvdError(f"{where}: expected keys and values, found {data!r}")
    hints = typing.get_type_hints(cls)
    fields = {field.name: field for field in dataclasses.fields(cls) if field.init}  # type: ignore[arg-type]
    for key in data:
        if key not in fields:
            near = difflib.get_close_matches(str(key), fields, n=1, cutoff=0.4)
            hint = f"did you mean {near[0]}?" if near else f"known keys: {', '.join(fields)}"
            raise McvdError(f"{where}: unknown key {key}; {hint}")
    for name, field in fields.items():
        if name not in data and field.default is dataclasses.MISSING and field.default_factory is dataclasses.MISSING:
            raise McvdError(f"{where}: {name} is missing")
    return cls(**{key: _convert(hints[key], value, f"{where}: {key}") for key, value in data.items()})


def parse_assignments(words: Sequence[str], where: str) -> dict[str, Any]:
    """``["optimizer.lr=1e-4"]`` -> {"optimizer.lr": "1e-4"}; values are YAML. Raises McvdError for other words."""
    import yaml  # only here: training on a bare GPU machine does not need it

    out = {}
    for word in words:
        key, equals, value = word.partition("=")
        if not (key and equals):
            raise McvdError(f"{where}: {word!r} is not KEY=VALUE, e.g. optimizer.lr=1e-4")
        try:
            out[key.strip()] = read_yaml(value)
        except yaml.YAMLError:
            raise McvdError(f"{where}: the value of {word!r} cannot be read as YAML") from None
    return out


def read_yaml(text: str | bytes) -> Any:
    """The content of a YAML text. Raises yaml.YAMLError, also for a duplicate key, of which PyYAML would silently take
    the last, and for what only looks like a date or a number."""
    import yaml

    class Loader(yaml.SafeLoader):
        def compose_mapping_node(self, anchor: Any) -> Any:
            node = super().compose_mapping_node(anchor)
            seen = set()
            for key, _ in node.value:
                if isinstance(key, yaml.ScalarNode) and key.value in seen:
                    raise yaml.composer.ComposerError(None, None, f"{key.value} is given twice", key.start_mark)
                seen.add(key.value if isinstance(key, yaml.ScalarNode) else key)
            return node

        def construct_scalar(self, node: Any) -> Any:
            # JSON, which is YAML, escapes a character beyond U+FFFF as two halves, and PyYAML leaves them apart
            value = super().construct_scalar(node)
            return value.encode("utf-16", "surrogatepass").decode("utf-16", "surrogatepass")

    try:
        return yaml.load(text, Loader)
    except ValueError as error:  # 2024-13-45, or a number of thousands of digits
        raise yaml.YAMLError(str(error)) from None


def override(config: T, values: Mapping[str, Any], where: str) -> T:
    """A copy of a configuration with other values at dotted paths of keys, e.g. {"optimizer.lr": 1e-4}.

    Raises McvdError for an unknown path, naming the nearest, or a value of the wrong type.
    """
    data = to_dict(config)
    for path, value in values.items():
        known = _paths(data)
        if path not in known:
            raise McvdError(f"{where}: unknown key {path}; {_nearest(path, known)}")
        *groups, key = path.split(".")
        group = data
        for name in groups:
            group = group[name]
        group[key] = value
    return from_dict(type(config), data, where)


def _paths(data: dict[str, Any], prefix: str = "") -> list[str]:
    """Every dotted path, groups included."""
    out = []
    for key, value in data.items():
        out.append(prefix + key)
        if isinstance(value, dict):
            out += _paths(value, f"{prefix}{key}.")
    return out


def _nearest(path: str, known: list[str]) -> str:
    leaf = path.rpartition(".")[2]
    same = [other for other in known if other.rpartition(".")[2] == leaf]
    leaves = {other.rpartition(".")[2]: other for other in reversed(known)}
    near = difflib.get_close_matches(path, same or known, n=1, cutoff=0.0 if same else 0.6)
    near = near or [leaves[match] for match in difflib.get_close_matches(leaf, leaves, n=1, cutoff=0.5)]
    return f"did you mean {near[0]}?" if near else f"top-level keys: {', '.join(k for k in known if '.' not in k)}"


_NOUNS = {int: "a whole number", float: "a number", str: "text", bool: "true or false"}


def _convert(hint: Any, value: Any, where: str) -> Any:
    if dataclasses.is_dataclass(hint):
        return from_dict(typing.cast(type, hint), value, where)
    origin, arguments = typing.get_origin(hint), typing.get_args(hint)
    if origin in (typing.Union, types.UnionType):
        if value is None and type(None) in arguments:
            return None
        return _convert(next(a for a in arguments if a is not type(None)), value, where)
    if origin is typing.Literal:
        if value not in arguments:
            raise McvdError(f"{where} is {value!r}; it is one of {', '.join(map(str, arguments))}")
        return value
    if origin is tuple:
        if not isinstance(value, (list, tuple)):
            raise McvdError(f"{where}: expected a list, e.g. [1, 2], found {value!r}")
        if arguments[-1] is not Ellipsis and len(value) != len(arguments):
            raise McvdError(f"{where}: expected {len(arguments)} values, e.g. [1, 2], found {len(value)}")
        return tuple(_convert(arguments[0], item, where) for item in value)
    if origin is dict:
        if not isinstance(value, dict):
            raise McvdError(f"{where}: expected keys and values, found {value!r}")
        return {key: _convert(arguments[1], item, f"{where}: {key}") for key, item in value.items()}
    if origin is list:
        if not isinstance(value, list):
            raise McvdError(f"{where}: expected a list, found {value!r}")
        return [_convert(arguments[0], item, where) for item in value]
    if hint is float and isinstance(value, (str, int)) and not isinstance(value, bool):
        try:
            return float(value)  # also of text: YAML 1.1 reads 1e-4 as text
        except (ValueError, OverflowError):
            raise McvdError(f"{where}: expected a number, found {value!r}") from None
    if hint in (int, float, str, bool) and (type(value) is not hint):
        raise McvdError(f"{where}: expected {_NOUNS[hint]}, found {value!r}")
    return value
