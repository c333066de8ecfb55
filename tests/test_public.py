"""The public surface of the package: what `import mcvd` gives, whatever has been imported before."""

import ast
import graphlib
import inspect
import json
import pkgutil
import typing
from pathlib import Path

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


def imports(package):
    """Rooms of the house (packages and modules right below mcvd) -> those that they import when they run."""
    rooms = {}
    for file in package.rglob("*.py"):
        room, tree = file.relative_to(package).parts[0].removesuffix(".py"), ast.parse(file.read_text())
        for_types = [
            node for node in ast.walk(tree) if isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING"
        ]
        skipped = {id(inner) for node in for_types for inner in ast.walk(node)}
        found = [node for node in ast.walk(tree) if isinstance(node, ast.ImportFrom) and id(node) not in skipped]
        names = {node.module.split(".")[1] for node in found if node.module.startswith("mcvd.")}
        rooms.setdefault(room, set()).update(names - {room})
    return rooms


def test_dependencies_point_one_way():
    """As docs/architecture.md draws them."""
    rooms = imports(Path(mcvd.__file__).parent)
    graphlib.TopologicalSorter(rooms).prepare()  # raises CycleError
    assert rooms["cli"] > {"evaluation", "reports", "training", "web", "benchmark"}
    outer = {"cli", "web", "benchmark", "reports", "training", "evaluation", "interop", "model", "rollout"}
    assert not rooms["data"] & {*outer, "planner", "diffusion", "networks"}
    assert not rooms["diffusion"] & {*outer, "data", "layout", "networks"}
    assert not rooms["networks"] & {*outer, "data", "diffusion"}
    assert not rooms["training"] & {"evaluation", "reports"}
    assert not rooms["evaluation"] & {"training", "reports"}


def test_the_tour_runs_and_shows_its_pictures(monkeypatch):
    """Every cell of the notebook, with a single network call per block."""
    examples = Path(__file__).parent.parent / "examples"
    monkeypatch.chdir(examples)
    fill = mcvd.VideoDiffusion.fill
    monkeypatch.setattr(
        mcvd.VideoDiffusion, "fill", lambda self, *given, **options: fill(self, *given, **options | {"steps": 1})
    )
    scope: dict = {}
    cells = [cell for cell in json.loads(Path("tour.ipynb").read_text())["cells"] if cell["cell_type"] == "code"]
    for cell in cells:
        source = "".join(cell["source"])
        exec(source, scope)
        kinds = {kind for output in cell["outputs"] for kind in output.get("data", {})}
        assert ("image/png" in kinds) == ("contact_sheet" in source)
    assert scope["many"].shape == (16, 10, 1, 64, 64)
    assert scope["filled"][scope["known"]].equal(scope["clip"][scope["known"]])
