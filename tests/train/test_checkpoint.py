"""Checkpoints: whole or absent, never taken for good when they are not, in a folder of one run."""

import contextlib
import dataclasses
import hashlib
import json
import os
import pickle
import resource
import shutil
import signal
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from resbackbones.errors import InputError
from resbackbones.train import DamagedCheckpoint, Options, Result, checkpoint, fit
from tests.train.helpers import (
    RUN,
    Blobs,
    Interrupted,
    Interrupting,
    assert_equal,
    checkpoints,
    entries,
    log,
    one_sentence,
    options,
    run_until_killed,
    tiny,
)

NEWEST, BEFORE = "checkpoint-8", "checkpoint-6"


@pytest.fixture(scope="module")
def whole() -> tuple[Any, Result]:
    """A run that nothing cut off."""
    model = tiny()
    return model, fit(model, Blobs(), Blobs(seed=1), RUN)


@pytest.fixture(scope="module")
def cut(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of one that was, in the third of four epochs."""
    folder = tmp_path_factory.mktemp("cut") / "run"
    with pytest.raises(Interrupted):
        fit(tiny(), Interrupting((2, 1)), Blobs(seed=1), dataclasses.replace(RUN, output=folder))
    assert checkpoints(folder) == [BEFORE, NEWEST]
    return folder


def resumed(folder: Path) -> tuple[Any, Result]:
    model = tiny(seed=7)  # weights come from the checkpoint
    given = dataclasses.replace(RUN, output=folder, resume=True)
    return model, fit(model, Blobs(), Blobs(seed=1), given)


class Bomb:
    """Pickled, it writes a file where it is loaded."""

    def __reduce__(self) -> Any:
        return Path.touch, (Path("it_ran"),)


def flip(file: str, where: float) -> Callable[[Path], None]:
    def damage(folder: Path) -> None:
        content = bytearray((folder / file).read_bytes())
        content[min(len(content) - 1, int(len(content) * where))] ^= 1
        (folder / file).write_bytes(content)

    return damage


def shorten(file: str, share: float) -> Callable[[Path], None]:
    def damage(folder: Path) -> None:
        content = (folder / file).read_bytes()
        (folder / file).write_bytes(content[: int(len(content) * share)])

    return damage


def replace(file: str, content: bytes) -> Callable[[Path], None]:
    return lambda folder: (folder / file).write_bytes(content) and None


def older(*files: str) -> Callable[[Path], None]:
    def damage(folder: Path) -> None:
        for file in files:
            shutil.copy(folder.with_name(BEFORE) / file, folder / file)

    return damage


def remove(file: str) -> Callable[[Path], None]:
    return lambda folder: (folder / file).unlink()


def make_folder(file: str) -> Callable[[Path], None]:
    def damage(folder: Path) -> None:
        (folder / file).unlink()
        (folder / file).mkdir()

    return damage


def make_dangling(file: str) -> Callable[[Path], None]:
    def damage(folder: Path) -> None:
        (folder / file).unlink()
        (folder / file).symlink_to("nowhere")

    return damage


def empty(folder: Path) -> None:
    shutil.rmtree(folder)
    folder.mkdir()


def make_file(folder: Path) -> None:
    shutil.rmtree(folder)
    folder.write_text("no folder")


def edit(**changes: Any) -> Callable[[Path], None]:
    def damage(folder: Path) -> None:
        manifest = json.loads((folder / "manifest.json").read_text())
        (folder / "manifest.json").write_text(json.dumps(manifest | changes))

    return damage


def forge(folder: Path) -> None:
    """A pickle that runs code, with a manifest that fits it."""
    content = pickle.dumps(Bomb(), protocol=2)
    (folder / "state.pt").write_bytes(content)
    manifest = json.loads((folder / "manifest.json").read_text())
    manifest["state.pt"] = hashlib.sha256(content).hexdigest()
    del manifest["manifest"]
    own = hashlib.sha256(json.dumps(manifest, sort_keys=True).encode()).hexdigest()
    (folder / "manifest.json").write_text(json.dumps(manifest | {"manifest": own}))


def save_again(change: Callable[[dict[str, Any]], None]) -> Callable[[Path], None]:
    def damage(folder: Path) -> None:
        content = torch.load(folder / "state.pt", weights_only=True)
        change(content)
        torch.save(content, folder / "state.pt")

    return damage


def lengthen(folder: Path) -> None:
    with (folder / "state.pt").open("ab") as file:
        file.write(b"x")


PLACES = (0.0, 0.03, 0.25, 0.5, 0.75, 0.97, 1.0)
DAMAGES: dict[str, Callable[[Path], None]] = {
    **{f"state.pt, a bit at {place}": flip("state.pt", place) for place in PLACES},
    **{f"manifest.json, a bit at {place}": flip("manifest.json", place) for place in PLACES[:-1]},
    **{f"state.pt, {share} of it": shorten("state.pt", share) for share in (0, 0.5, 0.999)},
    **{f"manifest.json, {share} of it": shorten("manifest.json", share) for share in (0, 0.5)},
    "state.pt is missing": remove("state.pt"),
    "manifest.json is missing": remove("manifest.json"),
    "state.pt of the one before": older("state.pt"),
    "manifest.json of the one before": older("manifest.json"),
    "all of the one before": older("state.pt", "manifest.json"),
    "state.pt is a folder": make_folder("state.pt"),
    "manifest.json is a folder": make_folder("manifest.json"),
    "state.pt is a dangling link": make_dangling("state.pt"),
    "both are missing": empty,
    "it is a file": make_file,
    "state.pt is garbage": replace("state.pt", b"\x00\xff garbage" * 99),
    "state.pt is a pickle": replace("state.pt", pickle.dumps(Bomb())),
    "state.pt is a pickle that the manifest knows": forge,
    "state.pt has more behind it": lengthen,
    "state.pt with another step": save_again(lambda content: content["state"].update(step=1)),
    "state.pt without best": save_again(lambda content: content.pop("best")),
    "state.pt with NaN": save_again(lambda content: content["model"]["net.0.bias"].mul_(torch.nan)),
    "manifest.json is garbage": replace("manifest.json", b"\xff\xfe\x00"),
    "manifest.json is a number": replace("manifest.json", b"NaN"),
    "manifest.json is a list": replace("manifest.json", b"[1, 2]"),
    "manifest.json is an empty object": replace("manifest.json", b"{}"),
    "manifest.json is too deep": replace("manifest.json", b"[" * 100_000),
    "manifest.json with another step": edit(step=6),
    "manifest.json with another identity": edit(identity={}),
    "manifest.json with another digest": edit(**{"state.pt": "0" * 64}),
    "manifest.json with NaN": edit(identity=float("nan")),
}


@pytest.mark.parametrize("name", DAMAGES)
def test_a_damaged_checkpoint_is_named_and_fallen_back_from(
    name: str,
    cut: Path,
    whole: tuple[Any, Result],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(tmp_path)
    folder = tmp_path / "run"
    shutil.copytree(cut, folder)
    DAMAGES[name](folder / NEWEST)
    with pytest.warns(DamagedCheckpoint) as warned:
        model, result = resumed(folder)
    (warning,) = warned
    said = str(warning.message)
    assert said.startswith(f"{folder / NEWEST} is damaged (") and "\n" not in said
    assert said.endswith(f"): going on from {BEFORE}, the one before it")
    assert_equal(model, whole[0])
    assert entries(result) == entries(whole[1])
    assert (folder / f"damaged-{NEWEST}").exists() and checkpoints(folder) == ["checkpoint-16"]
    assert not Path("it_ran").exists()


@pytest.mark.parametrize("name", ["both are missing", "state.pt is garbage", "it is a file"])
def test_without_a_good_one_nothing_begins_in_silence(name: str, cut: Path, tmp_path: Path) -> None:
    folder = tmp_path / "run"
    shutil.copytree(cut, folder)
    for checkpoint_name in (NEWEST, BEFORE):
        DAMAGES[name](folder / checkpoint_name)
    with pytest.raises(InputError, match="no checkpoint before it is good; begin anew") as error:
        resumed(folder)
    assert one_sentence(error).startswith(f"{folder / NEWEST} is damaged (")
    assert checkpoints(folder) == [BEFORE, NEWEST] and len(log(folder)) == 2


def test_two_are_kept_and_what_lies_ahead_is_removed(tmp_path: Path) -> None:
    for step in (3, 9, 12, 15):
        checkpoint.save(tmp_path, step, {}, {"step": step})
    assert checkpoints(tmp_path) == ["checkpoint-12", "checkpoint-15"]
    # A run that counts its steps otherwise goes on from 15, and arrives at 13.
    checkpoint.save(tmp_path, 13, {}, {"step": 13})
    assert checkpoints(tmp_path) == ["checkpoint-12", "checkpoint-13"]
    assert checkpoint.load(tmp_path) == ({}, {"step": 13})


# The folder


def test_a_folder_belongs_to_one_run(tmp_path: Path) -> None:
    given = options(output=tmp_path, epochs=1)
    fit(tiny(), Blobs(), None, given)
    (tmp_path / "log.jsonl").unlink()  # its checkpoints tell it, too
    with pytest.raises(InputError, match="holds a run already; resume it") as error:
        fit(tiny(), Blobs(), None, given)
    one_sentence(error)


def test_a_folder_is_locked_while_a_run_is_in_it(tmp_path: Path) -> None:
    given = options(output=tmp_path, epochs=1, resume=True)
    said = []

    def another() -> None:
        with pytest.raises(InputError) as error:
            fit(tiny(), Blobs(), None, given)
        said.append(one_sentence(error))

    fit(tiny(), Interrupting((0, 3), another), None, given)
    assert said == [
        f"another process is running in {tmp_path}; wait for its end, or name another output folder"
    ]
    fit(tiny(), Blobs(), None, given)


def hold_and_die(folder: Path) -> None:
    with checkpoint.locked(folder):
        if os.fork() == 0:  # as a worker that fetches batches, which lives on for a while
            os.execvp("sleep", ["sleep", "5"])
        os.kill(os.getpid(), 9)


def test_a_lock_ends_with_the_process_that_holds_it(tmp_path: Path) -> None:
    run_until_killed(hold_and_die, tmp_path)
    with checkpoint.locked(tmp_path):
        pass


@contextlib.contextmanager
def file_size_limit(size: int) -> Iterator[None]:
    """No file can grow beyond so many bytes: what a full disk does, without filling one."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


@pytest.mark.parametrize("size", [100, 2_000, 4_000])  # the log, the state's start, its middle
def test_a_full_disk_is_told_and_the_checkpoint_before_it_stays(tmp_path: Path, size: int) -> None:
    stack = contextlib.ExitStack()
    data = Interrupting((1, 0), lambda: stack.enter_context(file_size_limit(size)))
    with stack, pytest.raises(InputError, match="cannot write") as error:
        fit(tiny(), data, Blobs(), options(output=tmp_path))
    one_sentence(error)
    assert checkpoints(tmp_path) == ["checkpoint-7"]
    assert not (tmp_path / ".part").exists()
    resumed, whole = tiny(), tiny()
    fit(resumed, Blobs(), Blobs(), options(output=tmp_path, resume=True))
    fit(whole, Blobs(), Blobs(), options())
    assert_equal(resumed, whole)
    assert len(log(tmp_path)) == 3


def test_a_signal_waits_until_the_state_is_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    written: list[Path] = []
    save = torch.save

    def interrupted(state: object, file: Any) -> None:
        signal.raise_signal(signal.SIGTERM)
        save(state, file)
        written.append(Path(file.name))

    def stop(number: int, _: object) -> None:
        raise KeyboardInterrupt(number)

    monkeypatch.setattr(torch, "save", interrupted)
    usual = signal.signal(signal.SIGTERM, stop)
    try:
        with pytest.raises(KeyboardInterrupt):
            checkpoint.save(tmp_path, 1, {}, {"x": torch.zeros(3)})
        assert signal.getsignal(signal.SIGTERM) is stop
    finally:
        signal.signal(signal.SIGTERM, usual)
    assert len(written) == 1 and not list(tmp_path.iterdir())


def test_options_say_when_to_save(tmp_path: Path) -> None:
    saved: list[int] = []
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(checkpoint, "save", lambda folder, step, *rest: saved.append(step))
        given = Options(
            **dataclasses.asdict(options(epochs=5, checkpoint_every=2, checkpoint_steps=5))
            | {"output": tmp_path}
        )
        fit(tiny(), Blobs(), None, given)
    assert saved == [5, 10, 14, 15, 20, 25, 28, 30, 35]
