"""How a program ends: in one sentence, with its own exit code, saying what is kept."""

import signal
import subprocess
import sys
import warnings
from pathlib import Path

import pytest

from resbackbones.errors import InputError
from resbackbones.train import Diverged
from tasks import __main__ as listing
from tasks._running import Stopped, ended_in_one_sentence, quieten, run_folder

ROOT = Path(__file__).parents[2]
SIGNALS = [signal.SIGINT, signal.SIGTERM, signal.SIGHUP]


def ending(error: BaseException, capsys: pytest.CaptureFixture[str]) -> tuple[object, str]:
    """Exit code and message."""
    with pytest.raises(SystemExit) as stop, ended_in_one_sentence():
        raise error
    said = capsys.readouterr()
    assert said.out == ""
    return stop.value.code, said.err


def test_errors_end_in_a_sentence_and_a_code(capsys: pytest.CaptureFixture[str]) -> None:
    assert ending(InputError("no such file"), capsys) == (2, "error: no such file\n")
    assert ending(Diverged("it is no number"), capsys) == (1, "failed: it is no number\n")
    with pytest.raises(ZeroDivisionError), ended_in_one_sentence():  # a fault of ours stays whole
        raise ZeroDivisionError


@pytest.mark.parametrize("number", SIGNALS, ids=lambda number: number.name)
def test_a_signal_ends_in_a_sentence_and_its_own_code(
    number: signal.Signals, capsys: pytest.CaptureFixture[str]
) -> None:
    before = [signal.getsignal(one) for one in SIGNALS]
    with pytest.raises(SystemExit) as stop, ended_in_one_sentence():
        signal.raise_signal(number)
    assert stop.value.code == 128 + number
    error = capsys.readouterr().err
    assert error == f"stopped by {number.name}: there is nothing yet to go on with\n"
    assert [signal.getsignal(one) for one in SIGNALS] == before


def stopped() -> Stopped:
    error = Stopped(signal.SIGTERM)
    error.folder, error.further = Path("runs/x"), ["--resume", "--output", "runs/x"]
    return error


def test_the_command_to_go_on_with_is_named(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "orig_argv", ["python3", "-m", "tasks.it", "--name", "a b"])
    code, said = ending(stopped(), capsys)
    assert code == 143 and "are kept in runs/x" in said
    command = said.splitlines()[-1]
    assert command == "python -m tasks.it --name 'a b' --resume --output runs/x"
    monkeypatch.setenv("WORLD_SIZE", "2")  # torchrun's own arguments are not known here
    assert "the same command and --resume --output runs/x" in ending(stopped(), capsys)[1]


def test_the_other_processes_are_silent(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("RANK", "1")
    assert ending(stopped(), capsys) == (143, "")
    assert ending(InputError("no such file"), capsys) == (2, "")
    with warnings.catch_warnings(record=True) as heard:
        quieten()
        warnings.warn("a text was cut", UserWarning, stacklevel=1)
    assert not heard


@pytest.mark.parametrize("number", SIGNALS, ids=lambda number: number.name)
def test_a_signal_while_starting_is_a_sentence(number: signal.Signals, tmp_path: Path) -> None:
    command = [sys.executable, "-X", "importtime", "-m", "tasks.speech.spot_keywords", "--help"]
    started = subprocess.Popen(
        command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    assert started.stderr is not None
    for line in started.stderr:  # one per import; torch and the rest, seconds, come after this one
        if line.split("|")[-1].strip() == "tasks":
            break
    started.send_signal(number)
    out, error = started.communicate(timeout=100)
    assert started.returncode == 128 + number and out == ""
    said = [line for line in error.splitlines() if not line.startswith("import time:")]
    assert said == [f"stopped by {number.name}: nothing is under way"]


def test_the_folder_of_a_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(InputError, match="there is no run in runs/it to go on with"):
        run_folder("it", None, resume=True)
    made = run_folder("it", None, resume=False)
    assert made.parent == Path("runs/it") and made.is_dir()
    others = {run_folder("it", None, resume=False) for _ in range(3)}  # of one second, or two
    assert len(others | {made}) == 4
    for other in others:
        other.rmdir()
    (made.parent / "2000-01-01-000000").mkdir()
    assert run_folder("it", None, resume=True) == made  # the newest
    assert run_folder("it", Path("mine"), resume=True) == Path("mine")
    Path("file").write_text("")
    with pytest.raises(InputError, match=r"cannot write to file/out .* with --output"):
        run_folder("it", Path("file/out"), resume=False)


def test_what_can_be_run_is_listed(capsys: pytest.CaptureFixture[str]) -> None:
    listing.main()
    listed = capsys.readouterr().out
    for name in (
        "benchmark",
        "speed",
        "speech.spot_keywords",
        "text.analyze_sentiment",
        "text.classify_text",
        "vision.classify_images",
    ):
        (line,) = (line for line in listed.splitlines() if f"python -m tasks.{name} " in line)
        assert len(line.split(name)[1].split()) > 3  # and said what it does
    assert "_" not in {part[0] for part in listed.replace(".", " ").split()}
