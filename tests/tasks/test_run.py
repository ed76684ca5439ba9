"""What the recipes share: one meaning of --device."""

import dataclasses
import importlib
from typing import Literal

import pytest
import torch

from resbackbones.errors import InputError
from tasks._run import resolve_device

RECIPES = [
    "tasks.benchmark",
    "tasks.speech.spot_keywords",
    "tasks.text.classify_text",
    "tasks.vision.classify_images",
]


@pytest.mark.parametrize(
    ("name", "there", "device"),
    [
        ("auto", False, "cpu"),
        ("auto", True, "cuda"),
        ("cpu", False, "cpu"),
        ("cpu", True, "cpu"),
        ("cuda", True, "cuda"),
    ],
)
def test_auto_is_the_gpu_where_there_is_one(
    name: Literal["auto", "cpu", "cuda"], there: bool, device: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: there)
    assert resolve_device(name) == device


def test_a_gpu_that_is_not_there_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(InputError, match="--device cuda needs a GPU and there is none"):
        resolve_device("cuda")


@pytest.mark.parametrize("recipe", RECIPES)
def test_every_recipe_takes_the_same_devices(recipe: str) -> None:
    fields = dataclasses.fields(importlib.import_module(recipe).Config)
    (device,) = (field for field in fields if field.name == "device")
    assert device.type == Literal["auto", "cpu", "cuda"] and device.default == "auto"
