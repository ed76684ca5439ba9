"""Every item is decoded, and the bad ones are named."""

import time
from pathlib import Path

import pytest
from datasets import Dataset

from resbackbones.data import open_dataset, read
from tests.data.helpers import refused, samples, texts, tone, write


def shout(text: str) -> str:
    if text == "item 40":
        raise ValueError("too quiet\nto hear.")
    return text.upper()


@pytest.mark.parametrize("workers", [1, 2, 5])
def test_read_keeps_the_order(workers: int) -> None:
    source = open_dataset(texts([0, 1] * 100)).select(range(199, 99, -1))
    found = read(source, shout, workers=workers)
    assert found.items == [f"ITEM {i}" for i in range(199, 99, -1)]
    assert found.rows == list(range(100)) and found.skipped == []


def test_bad_items_are_named_or_skipped() -> None:
    rows = texts([0, 1] * 100)
    rows = Dataset.from_dict({**rows.to_dict(), "text": [*rows["text"][:199], None]})
    source = open_dataset(rows).select(range(20, 200))
    assert refused(lambda: read(source, shout)) == (
        "row 41 of the given data set [train] cannot be read (too quiet); repair or remove it, or "
        "leave bad items out (--on-bad skip)"
    )
    found = read(source, shout, on_bad="skip")
    assert found.skipped == [
        "row 41 of the given data set [train]: too quiet",
        "row 200 of the given data set [train]: it is empty",
    ]
    assert found.rows == [row for row in range(180) if row not in (20, 179)]
    assert found.items[20] == "ITEM 41"
    nothing = refused(lambda: read(source.select([20]), shout, on_bad="skip"))
    assert nothing.startswith("not one of the 1 items of the given data set [train] can be read")
    assert "did you mean 'skip'" in refused(lambda: read(source, shout, on_bad="skp"))


def test_damaged_files_are_named(tmp_path: Path) -> None:
    files = {"a/0.wav": tone(), "a/1.wav": b"", "b/0.wav": tone()[:30], "b/1.wav": tone()}
    write({tmp_path / name: content for name, content in files.items()})
    source = open_dataset(tmp_path)
    assert refused(lambda: read(source, samples)).startswith(f"{tmp_path / 'a/1.wav'} cannot be re")
    found = read(source, samples, on_bad="skip")
    assert found.rows == [0, 3]
    assert [name.partition(": ")[0] for name in found.skipped] == [
        str(tmp_path / "a/1.wav"),
        str(tmp_path / "b/0.wav"),
    ]
    (tmp_path / "a" / "0.wav").unlink()
    assert str(tmp_path / "a/0.wav") in refused(lambda: read(source, samples))


def test_reading_is_told_only_when_it_takes_a_while(capfd: pytest.CaptureFixture[str]) -> None:
    source = open_dataset(texts([0, 1] * 80))
    read(source, shout, on_bad="skip")
    assert capfd.readouterr().err == ""
    read(source, lambda text: time.sleep(0.02), workers=1)
    # No terminal: a line, not hundreds of states of a bar.
    assert capfd.readouterr().err == "reading the given data set [train]: 160 items\n"


def test_too_little_memory_is_no_bad_item() -> None:
    def decode(text: str) -> str:
        raise MemoryError("32 GiB")

    source = open_dataset(texts([0, 1] * 4))
    for on_bad in ("error", "skip"):
        with pytest.raises(MemoryError, match="32 GiB"):
            read(source, decode, on_bad=on_bad)
