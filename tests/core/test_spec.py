"""Specs: frozen data, JSON there and back, and one clear sentence for what does not exist."""

import dataclasses
import json

import pytest

import resbackbones as rb
from resbackbones.core.spec import CHOICES, REFUSALS, resolve


@pytest.mark.parametrize("name", rb.SPECS)
def test_json_there_and_back(name: str) -> None:
    spec = rb.SPECS[name]
    assert rb.BackboneSpec.from_dict(json.loads(json.dumps(spec.to_dict()))) == spec


def test_axes_and_stems_survive_json() -> None:
    spec = rb.BackboneSpec(
        stages=[rb.Stage(8, 1, stride=(2, 1), kernel=(3, 5))],
        stem=rb.Stem(8, (5, 3), (2, 1), pool=(2, 1)),
        tail=[rb.Layer(16, 1)],
    )
    again = rb.BackboneSpec.from_dict(json.loads(json.dumps(spec.to_dict())))
    assert again == spec
    assert isinstance(again.stem, rb.Stem)
    assert hash(again) == hash(spec)


def test_specs_are_frozen() -> None:
    with pytest.raises(dataclasses.FrozenInstanceError):
        rb.SPECS["resnet18"].dims = 1  # type: ignore[misc]


@pytest.mark.parametrize(
    ("call", "sentence"),
    [
        (
            lambda: resolve("resnext50_32x4"),
            "no spec is called 'resnext50_32x4'; did you mean 'resnext50_32x4d'",
        ),
        (lambda: resolve("resnet18", in_chanels=1), "did you mean 'in_channels'"),
        (lambda: rb.BackboneSpec.from_dict({"stage": []}), "did you mean 'stages'"),
        (
            lambda: rb.BackboneSpec.from_dict({"stages": [{"channels": 8, "block": 1}]}),
            "Stage has no field 'block'; did you mean 'blocks'",
        ),
        (lambda: resolve("resnet18", activation="rellu"), "did you mean 'relu'"),
        (lambda: resolve("resnet18", branch="bottelneck"), "did you mean 'bottleneck'"),
        (lambda: resolve("resnet18", dims=3), "use 1 for sequences or 2 for images"),
        (lambda: resolve("resnet18", stages=()), "at least one Stage"),
        (lambda: resolve("resnet18", bottleneck_ratio=0.5), "the basic branch does not read it"),
        (lambda: resolve("resnet18", repeats=3), "repeats=3 has no effect"),
        (lambda: resolve("quartznet5x5", groups=2), "groups=2 has no effect"),
        (lambda: resolve("resnet18", attention_reduction=8), "set attention='se'"),
        (lambda: resolve("resnet18", drop_path=1.0), "a share from 0 to below 1"),
        (lambda: resolve("resnet18", in_channels=0), "whole numbers of 1 or more"),
        (lambda: rb.Stage(8, 1, kernel=3.0), "whole numbers of 1 or more"),
        (lambda: rb.BackboneSpec((rb.Stage(8, 1, kernel=4),)), "even kernel"),
        (lambda: rb.BackboneSpec((rb.Stage(8, 1, kernel=(3, 3)),), dims=1), "dims=1 needs one"),
        (lambda: rb.backbone("resnet18", groups=7), "groups=7 does not divide"),
        (
            lambda: rb.backbone(rb.BackboneSpec((rb.Stage(4, 1),), in_channels=8, shortcut="pad")),
            "cannot go from 8 to 4 channels",
        ),
    ],
)
def test_what_is_wrong_is_said(call, sentence: str) -> None:
    with pytest.raises(rb.InputError) as error:
        call()
    assert sentence in str(error.value)


# One spec for every row of the compatibility table, in the table's order.
REFUSED = [
    {"skip": "none", "init": "zero_last"},
    {"skip": "none", "init": "fixup", "norm": "none"},
    {"skip": "none", "branch_scale": "rezero"},
    {"skip": "none", "drop_path": 0.1},
    {"init": "zero_last", "branch_scale": "rezero"},
    {"init": "zero_last", "norm": "weight"},
    {"init": "fixup"},
    {"init": "fixup", "norm": "none", "branch_scale": "skipinit"},
    {"init": "fixup", "norm": "none", "branch": "separable"},
    {"init": "zero_last", "branch": "temporal"},
    {"causal": True, "attention": "se"},
    {"causal": True, "norm": "group"},
    {"causal": True, "downsample": "max"},
    {"causal": True, "shortcut": "average"},
]


@pytest.mark.parametrize(("why", "changes"), list(zip(REFUSALS, REFUSED, strict=True)))
def test_refusals_are_by_name(why: str, changes: dict) -> None:
    with pytest.raises(rb.InputError) as error:
        resolve("resnet20", **changes)
    assert str(error.value) == why
    assert next(iter(changes)) in why


def test_choices_are_fields() -> None:
    assert set(CHOICES) <= {field.name for field in dataclasses.fields(rb.BackboneSpec)}
