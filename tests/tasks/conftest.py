"""What the tests of the recipes share."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pandas
import PIL.Image
import pytest
import soundfile
import torch

from resbackbones import train
from tasks import _recipe


@pytest.fixture
def refused(capsys: pytest.CaptureFixture[str]) -> Callable[..., str]:
    """`refused(recipe, *arguments)`: the one line on standard error of a recipe that ends with exit
    code 2."""

    def check(recipe: Callable[..., None], *arguments: object) -> str:
        capsys.readouterr()
        with pytest.raises(SystemExit) as stop:
            recipe(*arguments)
        assert stop.value.code == 2
        error = capsys.readouterr().err.strip()
        assert error.startswith("error: ") and "\n" not in error
        return error

    return check


@pytest.fixture
def no_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    """A machine without a GPU, whatever this one has."""
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)


@pytest.fixture
def handed_to_fit(monkeypatch: pytest.MonkeyPatch) -> Callable[..., tuple[Any, train.Options]]:
    """`handed_to_fit(recipe, *arguments)`: the training items and the options that a recipe hands
    to `fit`; it ends there."""

    class Stop(Exception):
        pass

    given: list[Any] = []

    def fit(model: Any, training: Any, validation: Any, options: train.Options) -> None:
        given[:] = training, options
        raise Stop

    def check(recipe: Callable[..., None], *arguments: object) -> tuple[Any, train.Options]:
        with monkeypatch.context() as patch:
            patch.setattr(_recipe, "fit", fit)
            with pytest.raises(Stop):
                recipe(*arguments)
        return given[0], given[1]

    return check


@pytest.fixture
def recordings(tmp_path: Path) -> Path:
    """Folders of class folders: low and high tones of a quarter of a second, 8 kHz WAV and FLAC."""
    random = np.random.default_rng(0)
    for split, count in (("train", 8), ("validation", 2), ("test", 4)):
        for label, pitch in (("low", 300), ("high", 2000)):
            folder = tmp_path / "tones" / split / label
            folder.mkdir(parents=True)
            for index in range(count):
                t = np.arange(2000 + 10 * index) / 8000
                tone = 0.3 * np.sin(2 * np.pi * pitch * t * random.uniform(0.8, 1.2))
                samples = tone + 0.01 * random.standard_normal(len(t))
                suffix = "flac" if index % 2 else "wav"
                soundfile.write(folder / f"{index}.{suffix}", samples, 8000)
    return tmp_path / "tones"


@pytest.fixture
def pictures(tmp_path: Path) -> Path:
    """Folders of class folders: noise with one strong colour, of several sizes."""
    random = np.random.default_rng(0)
    for split, count in (("train", 10), ("test", 3)):
        for channel, label in enumerate(("red", "green", "blue")):
            folder = tmp_path / "pictures" / split / label
            folder.mkdir(parents=True)
            for index in range(count):
                pixels = random.integers(0, 120, (12 + index % 3, 14, 3), dtype=np.uint8)
                pixels[..., channel] += 100
                PIL.Image.fromarray(pixels).save(folder / f"{index}.png")
    return tmp_path / "pictures"


@pytest.fixture
def questions(tmp_path: Path) -> Path:
    """A folder of CSV files: questions about people and about places."""
    random = np.random.default_rng(0)
    folder = tmp_path / "questions"
    folder.mkdir()
    for split, count in (("train", 32), ("test", 8)):
        rows = [
            {
                "text": f"{'who' if row % 2 else 'where'} is {random.integers(1000)} ?",
                "label": ("place", "person")[row % 2],
            }
            for row in range(count)
        ]
        pandas.DataFrame(rows).to_csv(folder / f"{split}.csv", index=False)
    return folder
