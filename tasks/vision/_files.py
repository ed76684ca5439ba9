"""What the recipes of images share."""

from pathlib import Path
from typing import Any

from resbackbones.vision import open_image


def read(path: Path, processor: Any) -> list[Any]:
    """The image in a file, as a model's processor takes it."""
    return [open_image(path)]
