"""The table of rooms: imports point down it only, the model stays small enough to read, names stay general."""

import ast
import re
from collections import Counter
from collections.abc import Collection
from pathlib import Path

from mmfuse.model.fusion import FUSIONS

ROOT = Path(__file__).parents[1]
PACKAGE = ROOT / "mmfuse"
FILES = sorted(PACKAGE.rglob("*.py"))

PLAIN = {
    "architecture", "drawing", "errors", "files", "strict_yaml", "boxes", "scaling", "sample", "sensor", "recipes",
    "environment", "shipped", "version",
}  # fmt: skip
ALLOWED = {
    "plain": set(),
    "embedded": {"plain"},
    "images": {"plain"},
    "model": {"plain", "images"},
    "data": {"plain", "images"},
    "convert": {"plain", "images", "model", "data"},
    "run": {"plain", "model", "data"},
    "exporting": {"plain", "images", "model", "run"},
    "evaluation": {"plain", "images", "model", "data", "run", "exporting"},
    "training": {"plain", "images", "model", "data", "run", "evaluation", "report"},
    "report": {"plain", "images", "model", "data", "run", "evaluation"},
    "sources": {"plain", "images", "model", "data"},
}
BELOW = {"plain", *ALLOWED}
ALLOWED |= {"verbs": BELOW, "package": BELOW | {"verbs"}, "cli": BELOW | {"package", "verbs"}}
FOLDERS = {
    "embedded", "images", "model", "data", "convert", "exporting", "evaluation", "training", "report", "sources",
    "verbs",
}  # fmt: skip
SENSOR_NAMES = {"rgb", "ir", "nir", "infrared", "thermal", "lidar", "radar", "rgbt", "rgbd"}


def module_of(path: Path) -> str:
    parts = path.relative_to(PACKAGE).with_suffix("").parts
    return ".".join(("mmfuse", *(parts[:-1] if parts[-1] == "__init__" else parts)))


MODULES = {module_of(path): path for path in FILES}


def room_of(module: str) -> str:
    parts = module.split(".")
    if len(parts) == 1:
        return "package"
    if parts[1] in FOLDERS | {"run"}:
        return parts[1]
    if parts[1] in PLAIN:
        return "plain"
    return "cli" if parts[1] in ("cli", "__main__") else "nowhere"


def imported(tree: ast.AST, module: str, is_package: bool) -> set[str]:
    """Our modules that a file names in its imports, those inside functions included."""
    names = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            base = node.module or ""
            if node.level:
                parts = module.split(".")
                up = parts[: len(parts) - node.level + is_package]
                base = ".".join([*up, base] if base else up)
            for alias in node.names:
                inner = f"{base}.{alias.name}"
                names.add(inner if inner in MODULES else base)
    return {name for name in names if name.split(".")[0] == "mmfuse"}


def imports_of(module: str) -> set[str]:
    path = MODULES[module]
    return imported(ast.parse(path.read_text()), module, path.name == "__init__.py")


def climbs(module: str, names: set[str]) -> list[str]:
    """Those of `names` that lie above the module's room."""
    own = room_of(module)
    return sorted(name for name in names if room_of(name) not in ALLOWED[own] | {own})


def test_imports_are_read_in_every_form():
    text = """
import mmfuse.cli
from mmfuse import boxes, create_detector
from . import anchors
from .heads import Head
from ..training import loop
def late():
    from mmfuse.data.annotations.cards import load_card
import torch
"""
    found = imported(ast.parse(text), "mmfuse.model.x", False)
    assert found >= {"mmfuse.cli", "mmfuse.boxes", "mmfuse", "mmfuse.model.heads", "mmfuse.data.annotations.cards"}
    assert any(name.startswith("mmfuse.training") for name in found)
    assert any(name.startswith("mmfuse.model") and "heads" not in name for name in found)
    assert "torch" not in found
    assert climbs(
        "mmfuse.model.x", {"mmfuse.boxes", "mmfuse.model.y", "mmfuse.data.annotations.cards", "mmfuse.cli", "mmfuse"}
    ) == [
        "mmfuse",
        "mmfuse.cli",
        "mmfuse.data.annotations.cards",
    ]


def test_imports_point_down():
    climbing = {module: climbs(module, imports_of(module)) for module in MODULES}
    assert {module: names for module, names in climbing.items() if names} == {}


def test_every_folder_is_a_room():
    assert {p.name for p in PACKAGE.iterdir() if p.is_dir() and p.name != "__pycache__"} == FOLDERS


def opened_from(module: str, beside: Collection[str] = ()) -> list[str]:
    """The modules that must be read to follow a module's imports to their end, the package's own page left out.

    Those `beside` aren't followed.
    """
    read, waiting = set(), [module]
    while waiting:
        module = waiting.pop()
        if module not in read and module not in ("mmfuse", *beside):
            read.add(module)
            waiting += imports_of(module)
    return sorted(read)


def test_the_model_can_be_read_in_one_sitting():
    beside = {"mmfuse.drawing", "mmfuse.model.hub"}  # detections draw, and detectors share themselves with these
    beside |= {"mmfuse.model.fast"}  # the same again, for use
    beside |= {f"mmfuse.model.{name}" for name in ("kernels", "suppression_kernels", "focal_kernels")}  # and for CUDA
    opened = opened_from("mmfuse.model.detector", beside)
    assert len(opened) <= 15, opened


MODEL = [path for path in FILES if path.parent == PACKAGE / "model"]


def test_absence_has_one_form():
    """Few signatures of the model take a mask, or what holds masks, that may be left out."""
    masks = {"present", "presence", "mask", "masks", "rows", "there"}
    optional = [
        f"{path.name}: {node.name}"
        for path in MODEL
        for node in ast.walk(ast.parse(path.read_text()))
        if isinstance(node, ast.FunctionDef)
        for argument in (*node.args.posonlyargs, *node.args.args, *node.args.kwonlyargs)
        if argument.arg in masks and argument.annotation and "None" in ast.unparse(argument.annotation)
    ]
    assert len(optional) <= 3, optional


def compared(node: ast.AST) -> list[ast.expr]:
    """What a branch looks at: the sides of a comparison, the arguments of a test for a class or for how text begins."""
    if isinstance(node, ast.Compare):
        return [node.left, *node.comparators]
    if isinstance(node, ast.MatchValue):
        return [node.value]
    names = {"isinstance", "issubclass", "startswith", "endswith"}
    called = getattr(node, "func", None)
    return node.args if getattr(called, "id", getattr(called, "attr", "")) in names else []


def test_what_a_fusion_does_is_said_in_its_class():
    """No branch elsewhere is on a fusion's name or class."""
    names, classes = set(FUSIONS), {kind.__name__ for kind in FUSIONS.values()}
    branches = [
        f"{path.relative_to(PACKAGE)}:{part.lineno}"
        for path in FILES
        if path.name != "fusion.py"
        for node in ast.walk(ast.parse(path.read_text()))
        for side in compared(node)
        for part in ast.walk(side)
        if (isinstance(part, ast.Constant) and part.value in names)
        or (isinstance(part, ast.Name) and part.id in classes)
    ]
    assert branches == []


def test_a_header_is_read_into_values():
    """What it says of a detector is looked up in few places: all others ask `Architecture`, or the detector."""
    lookups = [
        f"{path.relative_to(PACKAGE)}:{node.lineno}"
        for path in FILES
        for node in ast.walk(ast.parse(path.read_text()))
        if isinstance(node, ast.Subscript) and re.search(r"""\bspec\b['"]?\]?$""", ast.unparse(node.value))
    ]
    assert len(lookups) <= 3, lookups


def test_detecting_needs_no_training_and_no_annotations():
    opened = opened_from("mmfuse.model.checkpoint")
    assert len(opened) <= 47, opened
    assert not {room_of(module) for module in opened} - {"plain", "images", "model"}


def test_names_say_what_they_do():
    vague = {path.stem for path in FILES} & {"util", "utils", "helper", "helpers", "misc", "common"}
    assert vague == set()
    for_one_sensor = [
        f"{path.relative_to(PACKAGE)}: {node.name}"
        for path in FILES
        for node in ast.walk(ast.parse(path.read_text()))
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef)
        and SENSOR_NAMES & {word.lower() for word in re.findall(r"[A-Z]?[a-z]+|[A-Z]+(?![a-z])", node.name)}
    ]
    assert for_one_sensor == []


def test_the_first_line_says_the_job():
    trees = {path: ast.parse(path.read_text()) for path in FILES}
    silent = [path for path, tree in trees.items() if tree.body and not ast.get_docstring(tree)]
    assert silent == []


def test_no_two_test_files_have_one_name():
    names = Counter(path.name for path in Path(__file__).parent.rglob("test_*.py"))
    assert [name for name, count in names.items() if count > 1] == []  # pytest would import one of them alone
