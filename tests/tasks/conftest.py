"""What the tests of the recipes share."""

from collections.abc import Callable
from typing import Any

import pytest
import torch

from resbackbones import train


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
            patch.setattr(train, "fit", fit)
            with pytest.raises(Stop):
                recipe(*arguments)
        return given[0], given[1]

    return check
