"""The public surface of the package: what `import mcvd` gives, whatever has been imported before."""

import inspect
import pkgutil
import typing

import mcvd
from mcvd.model import FillOptions


def test_no_module_takes_the_place_of_a_public_name():
    """Python sets `mcvd.x` to the module x as soon as anything imports it: a function of that name would be gone."""
    assert not {module.name for module in pkgutil.iter_modules(mcvd.__path__)} & set(mcvd.__all__)


def test_every_public_name_is_there_and_explained():
    for name in mcvd.__all__:
        assert inspect.getdoc(getattr(mcvd, name)), name
    assert set(mcvd.__all__) <= set(dir(mcvd))


def test_editors_and_type_checkers_know_the_options_of_every_task():
    parameters = inspect.signature(mcvd.VideoDiffusion.fill).parameters.values()
    options = {p.name for p in parameters if p.kind is p.KEYWORD_ONLY}
    hints = typing.get_type_hints(mcvd.VideoDiffusion.fill)
    assert typing.get_type_hints(FillOptions) == {name: hints[name] for name in options}
    for task in ("predict", "interpolate", "generate"):
        assert typing.get_type_hints(getattr(mcvd.VideoDiffusion, task))["options"] == typing.Unpack[FillOptions]
