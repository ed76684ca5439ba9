"""What the tests of the data share: small files and tables, and the sentence of a refusal."""

import io
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import PIL.Image
import pytest
import soundfile
from datasets import ClassLabel, Dataset

from resbackbones.errors import InputError

CLASS = ClassLabel(names=["no", "yes"])


def image(colour: int = 0) -> bytes:
    buffer = io.BytesIO()
    PIL.Image.new("RGB", (4, 3), (colour, 0, 0)).save(buffer, "png")
    return buffer.getvalue()


def tone(frequency: float = 440, file_format: str = "WAV") -> bytes:
    buffer = io.BytesIO()
    samples = np.sin(np.arange(1600) * 2 * np.pi * frequency / 8000)
    soundfile.write(buffer, samples, 8000, format=file_format)
    return buffer.getvalue()


def write(files: Mapping[Path, bytes | str]) -> None:
    for path, content in files.items():
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content.encode() if isinstance(content, str) else content)


def texts(labels: list[Any], **columns: list[Any]) -> Dataset:
    return Dataset.from_dict(
        {"text": [f"item {i}" for i in range(len(labels))], "label": labels, **columns}
    )


def pixels(value: Any) -> Any:
    """The first pixel, from the bytes or the file."""
    place = io.BytesIO(value["bytes"]) if value["bytes"] else value["path"]
    return PIL.Image.open(place).convert("RGB").getpixel((0, 0))


def samples(value: Any) -> np.ndarray:
    return soundfile.read(io.BytesIO(value["bytes"]) if value["bytes"] else value["path"])[0]


def refused(call: Callable[[], Any]) -> str:
    """The one sentence that says why."""
    with pytest.raises(InputError) as caught:
        call()
    sentence = str(caught.value)
    assert "\n" not in sentence and not sentence.endswith(".")
    return sentence
