"""Imports between the library's parts only point down, and importing the library stays light."""

import ast
import importlib.metadata
import re
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

import resbackbones as rb

ROOT = Path(__file__).parent.parent
# Every part of the library, bottom to top, and the parts it may import beside itself.
CORE = {"errors", "core"}
WINGS = {"vision", "speech", "text"}
MAY_IMPORT: dict[str, set[str]] = {
    "errors": set(),
    "core": {"errors"},
    "metrics": CORE,
    "ngrams": {"errors"},
    "report": CORE,
    "pretrained": CORE,
    "classifier": CORE | {"metrics", "pretrained"},
    "data": CORE,
    **dict.fromkeys(WINGS, CORE | {"classifier", "pretrained", "data", "metrics", "ngrams"}),
    "train": CORE | WINGS | {"pretrained", "data", "metrics", "report"},
    "weights": CORE | {"pretrained"},
    "deploy": CORE,
}
# Packages that only some parts may import; one that no part may is for `tasks` alone.
ONLY_IN = {
    "torchvision": {"vision"},
    "torchaudio": {"speech"},
    "espeakng_loader": set(),  # GPL
    "accelerate": set(),  # training is explicit
    "tasks": set(),
}
HEAVY = (
    "accelerate datasets matplotlib pandas sklearn tokenizers torchaudio torchvision transformers"
)


def imported_names(source: str) -> set[str]:
    """What a module imports, at any depth of it: "a.b" for both `import a.b` and `from a import b`.

    A relative import keeps its dots in front.
    """
    names: set[str] = set()
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            origin = "." * node.level + (node.module or "")
            names |= {f"{origin}.{alias.name}" for alias in node.names}
    return names


def may_import(part: str, name: str) -> bool:
    """Whether a module of this part of the library may import that name."""
    package, _, inside = name.partition(".")
    if package == "resbackbones":
        target = inside.partition(".")[0]
        # The package itself, and what its `__init__` takes from the core, cost what the core costs.
        target = target if target in MAY_IMPORT else "core"
        return target == part or target in MAY_IMPORT[part]
    if package in sys.stdlib_module_names:
        return True
    if part in CORE:
        return part == "core" and package == "torch"
    return package != "" and part in ONLY_IN.get(package, {part})  # "": relative, hides its part


def modules(package: str) -> list[Path]:
    return sorted((ROOT / package).rglob("*.py"))


def part_of(module: Path) -> str:
    return module.relative_to(ROOT / "resbackbones").parts[0].removesuffix(".py")


def test_every_part_has_a_floor() -> None:
    assert {part_of(module) for module in modules("resbackbones")} - {"__init__"} == set(MAY_IMPORT)


def test_arrows_only_point_down() -> None:
    wrong = [
        f"{module.relative_to(ROOT)} imports {name}"
        for module in modules("resbackbones")
        if (part := part_of(module)) != "__init__"
        for name in sorted(imported_names(module.read_text(encoding="utf-8")))
        if not may_import(part, name)
    ]
    assert not wrong, "\n".join(wrong)


def test_the_core_reads_from_top_to_bottom() -> None:
    """Each of its files rests on those named before it."""
    order = (
        "layers branches plan refusals spec dilating context ops modules blocks backbone zoo heads "
        "pieces diagnose"
    ).split()
    files = {module.stem: module for module in modules("resbackbones/core")}
    assert set(files) == {*order, "__init__"}
    for index, name in enumerate(order):
        imported = imported_names(files[name].read_text(encoding="utf-8"))
        inside = {n.split(".")[2] for n in imported if n.startswith("resbackbones.core.")}
        beside = inside - set(order[:index])
        # `from resbackbones.core import layers` names the file last.
        assert not beside & set(order), f"{name} imports {beside}"
    assert not imported_names(files["__init__"].read_text(encoding="utf-8"))


def test_no_import_hides_in_a_function() -> None:
    hidden = [
        f"{module.relative_to(ROOT)}:{inner.lineno}"
        for module in modules("resbackbones/core")
        for node in ast.walk(ast.parse(module.read_text(encoding="utf-8")))
        if isinstance(node, ast.FunctionDef)
        for inner in ast.walk(node)
        if isinstance(inner, ast.Import | ast.ImportFrom)
    ]
    assert not hidden


def test_the_floors_have_no_circle() -> None:
    done: set[str] = set()
    while ready := {part for part in set(MAY_IMPORT) - done if MAY_IMPORT[part] <= done}:
        done |= ready
    assert done == set(MAY_IMPORT)


@pytest.mark.parametrize(
    ("part", "line", "allowed"),
    [
        ("core", "import math, torch.nn as nn", True),
        ("core", "from resbackbones.errors import InputError", True),
        ("core", "import numpy as np", False),
        ("core", "from resbackbones import train", False),
        ("errors", "import torch", False),
        ("errors", "from resbackbones.core import spec", False),
        ("pretrained", "import resbackbones", True),
        ("pretrained", "from resbackbones import __version__", True),
        ("pretrained", "import resbackbones.vision.models", False),
        ("data", "import torchaudio", False),
        ("report", "import resbackbones.train as train", False),
        ("vision", "from resbackbones.vision import heads", True),
        ("vision", "from torchvision.transforms import v2", True),
        ("vision", "from resbackbones.text.data import TextItems", False),
        ("vision", "from resbackbones.train import fit", False),
        ("speech", "import torchaudio.functional as F", True),
        ("speech", "from ..text import data", False),
        ("speech", "from . import frontend", False),
        ("train", "from resbackbones.vision import models", True),
        ("train", "from tasks._running import run", False),
        ("train", "import espeakng_loader", False),
        ("train", "from accelerate import Accelerator", False),
    ],
)
def test_the_rule_itself(part: str, line: str, allowed: bool) -> None:
    hidden = f"def late():\n    if True:\n        {line}\n"
    for source in (line, hidden):
        names = imported_names(source)
        assert names
        assert all(may_import(part, name) for name in names) == allowed


def third_party(package: str) -> set[str]:
    names = {
        name.partition(".")[0]
        for module in modules(package)
        for name in imported_names(module.read_text(encoding="utf-8"))
    }
    return names - set(sys.stdlib_module_names) - {"resbackbones", "tasks"}


@pytest.mark.parametrize(("package", "extras"), [("resbackbones", []), ("tasks", ["benchmark"])])
def test_imported_packages_are_declared(package: str, extras: list[str]) -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    declared = list(project["dependencies"])
    for extra in extras:
        declared += project["optional-dependencies"][extra]
    known = {normalised(re.split(r"[<>=!~;\[ ]", requirement)[0]) for requirement in declared}
    providers = importlib.metadata.packages_distributions()
    for name in sorted(third_party(package)):
        found = {normalised(distribution) for distribution in providers.get(name, [])}
        assert found & known, f"{package} imports {name}, which pyproject.toml does not declare"


def normalised(distribution: str) -> str:
    return re.sub(r"[-_.]+", "-", distribution).lower()


def run_python(code: str) -> str:
    """Standard output of a fresh interpreter in which warnings are errors."""
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", code], capture_output=True, text=True, timeout=300
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_importing_the_library_costs_what_the_core_costs() -> None:
    loaded = set(run_python("import sys, resbackbones; print(*sys.modules)").split())
    assert {"resbackbones.core.backbone", "torch"} <= loaded
    assert not loaded & set(HEAVY.split())
    ours = {name.split(".")[1] for name in loaded if name.startswith("resbackbones.")}
    assert ours == CORE


def test_other_parts_load_on_first_use() -> None:
    run_python(
        "import sys, resbackbones as rb\n"
        "for name in 'report data ngrams train vision speech text weights'.split():\n"
        "    assert name in dir(rb) and name in rb.__all__\n"
        "    assert getattr(rb, name) is sys.modules['resbackbones.' + name]\n"
    )


def test_public_names_alone_are_shown() -> None:
    assert dir(rb) == sorted([*rb.__all__, "__version__"])
    assert all(hasattr(rb, name) for name in dir(rb))


def test_unknown_attributes_are_refused() -> None:
    with pytest.raises(AttributeError, match="no attribute 'trane'"):
        rb.trane  # noqa: B018
