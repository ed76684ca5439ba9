"""What the tests of the recipes share."""

from collections.abc import Callable

import pytest


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
