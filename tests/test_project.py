"""The project's own papers agree with each other: README, changelog, build, continuous checks."""

import re
import subprocess
import tomllib
import zipfile
from importlib.metadata import version
from pathlib import Path

import pytest
from hatchling.builders.wheel import WheelBuilder

import resbackbones as rb
from resbackbones.report import TABLES, markers

ROOT = Path(__file__).parent.parent


def read(name: str) -> str:
    return (ROOT / name).read_text(encoding="utf-8")


def readme_command(name: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([ROOT / ".ci/readme-command", name], capture_output=True, text=True)


def test_the_version_has_one_home() -> None:
    assert version("resbackbones") == rb.__version__
    newest = re.search(r"^## \[(.+?)\] - (Unreleased|\d{4}-\d\d-\d\d)$", read("CHANGELOG.md"), re.M)
    assert newest is not None
    assert newest[1] == rb.__version__


def test_the_wheel_holds_the_library_and_nothing_else(tmp_path: Path) -> None:
    (built,) = WheelBuilder(str(ROOT)).build(directory=str(tmp_path), versions=["standard"])
    names = set(zipfile.ZipFile(built).namelist())
    information = f"resbackbones-{rb.__version__}.dist-info"
    assert {name.split("/")[0] for name in names} == {"resbackbones", information}
    modules = {str(path.relative_to(ROOT)) for path in (ROOT / "resbackbones").rglob("*.py")}
    assert modules | {"resbackbones/py.typed", f"{information}/licenses/LICENSE"} <= names


@pytest.mark.parametrize(
    ("name", "last"), [("benchmark", "-m tasks.benchmark"), ("test", "-m pytest")]
)
def test_the_readme_command_is_complete(name: str, last: str) -> None:
    command = readme_command(name).stdout
    extras = tomllib.loads(read("pyproject.toml"))["project"]["optional-dependencies"]
    assert command.startswith("python3 -m venv .venv && .venv/bin/pip install ")
    assert command.endswith(f" && .venv/bin/python {last}\n")
    assert re.search(r"-e '\.\[(\w+)\]'", command)[1] in extras  # type: ignore[index]


def test_a_missing_readme_command_is_named() -> None:
    answer = readme_command("nothing")
    assert answer.returncode == 2
    assert "<!-- command:nothing -->" in answer.stderr


def test_the_test_command_stands_in_the_readme_alone() -> None:
    assert "readme-command test" in read(".ci/run")
    for repeated in ("-m venv", "pip install", "-m pytest"):
        assert repeated not in read(".ci/run")


def test_the_readme_examples_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    examples = re.findall(r"```python\n(.*?)```", read("README.md"), re.DOTALL)
    assert len(examples) == 8  # two of the core, five of the wings, one of training
    for example in examples:
        exec(compile(example, "README.md", "exec"), {})
    assert "in the first block" in capsys.readouterr().out


def test_the_readme_has_a_place_for_results() -> None:
    assert all(read("README.md").count(mark) == 1 for name in TABLES for mark in markers(name))


def test_nightly_runs_both_ends_of_the_torch_pin() -> None:
    pin = re.search(r'"torch>=2\.(\d+),<2\.(\d+)"', read("pyproject.toml"))
    assert pin is not None
    assert f"for torch in 2.{pin[1]} 2.{int(pin[2]) - 1};" in read(".ci/nightly")


def test_no_file_points_outside_the_project() -> None:
    # The one path that may lead outside is ../shared/data, whose data sets some tests read.
    outside = re.compile(r"/wor[k]/|/tm[p]/w/|shared/(?!data\b)[\w]|\bissues? #?\d", re.IGNORECASE)
    listed = subprocess.run(
        ["git", "ls-files", "-z"], cwd=ROOT, capture_output=True, text=True, check=True
    )
    files = [ROOT / name for name in listed.stdout.split("\0") if name]
    assert len(files) > 20
    for path in files:
        found = outside.search(path.read_text(encoding="utf-8", errors="replace"))
        assert found is None, f"{path.relative_to(ROOT)} says {found}"
