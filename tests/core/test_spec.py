"""Specs: frozen data, JSON there and back, and one clear sentence for what does not exist."""

import copy
import dataclasses
import json
import random
from dataclasses import replace

import pytest
import torch

import resbackbones as rb
from resbackbones.core.spec import CHOICES, REFUSALS
from resbackbones.core.zoo import resolve


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


def test_the_layers_of_a_deep_stem_survive_json() -> None:
    stem = rb.Stem(16, pool=2, before=[rb.Layer(4, (5, 3), (2, 1)), rb.Layer(8)])
    spec = rb.BackboneSpec((rb.Stage(16, 1),), stem=stem)
    again = rb.BackboneSpec.from_dict(json.loads(json.dumps(spec.to_dict())))
    assert again == spec and again.stem.before[0] == rb.Layer(4, (5, 3), (2, 1))
    assert hash(again) == hash(spec)


def test_specs_are_frozen() -> None:
    with pytest.raises(dataclasses.FrozenInstanceError):
        rb.SPECS["resnet18"].dims = 1  # type: ignore[misc]


DICT = rb.SPECS["resnet18"].to_dict()


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
        (lambda: resolve("resnet18", branch="bottleneck"), "branch=Bottleneck(groups=32)"),
        (
            lambda: rb.BackboneSpec.from_dict({**DICT, "branch": "bottelneck"}),
            "did you mean 'bottleneck'",
        ),
        (lambda: resolve("resnet18", dims=3), "use 1 for sequences or 2 for images"),
        (lambda: resolve("resnet18", stages=()), "at least one Stage"),
        (lambda: resolve("resnet18", groups=2), "BackboneSpec has no field 'groups'"),
        (
            lambda: rb.BackboneSpec.from_dict({**DICT, "branch": {"kind": "basic", "ratio": 1.0}}),
            "Basic has no field 'ratio'",
        ),
        (
            lambda: rb.BackboneSpec.from_dict({**DICT, "branch": "basic", "repeats": 3}),
            "Basic has no field 'repeats'",
        ),
        (lambda: rb.BackboneSpec.from_dict({}), "needs stages="),
        (lambda: rb.BackboneSpec.from_dict([1]), "is no spec"),
        (lambda: resolve(["resnet18"]), "a list is no spec; give one name"),
        (lambda: resolve([rb.SPECS["resnet18"]]), "a list is no spec; give one name"),
        (lambda: resolve(DICT), "a dict is no spec"),
        (lambda: resolve("resnet18", causal="false"), "causal='false'; use True or False"),
        (lambda: resolve("resnet18", causal=None), "causal=None; use True or False"),
        (lambda: resolve("resnet18", norm_eps=float("inf")), "a number above 0"),
        (lambda: rb.Stem(8, norm="layer"), "norm='layer'; use True or False"),
        (lambda: rb.Stem(8, activation="gelu"), "activation='gelu'; use True or False"),
        (lambda: resolve("resnet18", stages=[{"channels": 8}]), "no sequence of Stage"),
        (lambda: resolve("resnet18", stem=rb.Layer(8)), "is no Stem"),
        (lambda: resolve("resnet18", norm_groups=8), "set norm='group'"),
        (lambda: rb.Stem(8, before=[8]), "before=[8] is no sequence of Layer"),
        (lambda: rb.Stem(8, zero_padded=True), "no effect without a pooling"),
        (lambda: rb.Stem(8, averaged=True), "averaged=True, which has no effect without a pooling"),
        (lambda: rb.Stem(8, pool=2, zero_padded=True, averaged=True), "use one of the two"),
        (lambda: resolve("resnet18", norm="none", norm_affine=False), "no effect without norm="),
        (
            lambda: resolve("resnet18", norm="weight", norm_after_activation=True),
            "norm_after_activation=True has no effect without norm='batch'",
        ),
        (lambda: resolve("res8", tail_reads="all"), "tail_reads=all has no effect without a tail"),
        (lambda: resolve("resnet18", tail_reads="every"), "tail_reads='every' is not known"),
        (lambda: rb.Res2(1), "leaves nothing to convolve"),
        (lambda: resolve("resnet18", branch=rb.Res2(3)), "scale=3, which does not divide 64"),
        (lambda: rb.Broadcast(dropout=1.0), "a share from 0 to below 1"),
        (
            lambda: resolve("ecapa512", stages=(rb.Stage(512, 1, kernel=4),)),
            "even kernel 4",
        ),
        (
            lambda: resolve("bc_resnet1", stages=(rb.Stage(8, 1, kernel=(3, 4)),)),
            "even kernel (1, 4)",
        ),
        (
            lambda: rb.BackboneSpec.from_dict(
                {**DICT, "stem": {"channels": 8, "before": [{"chanels": 8}]}}
            ),
            "Layer has no field 'chanels'; did you mean 'channels'",
        ),
        (
            lambda: resolve("resnet18", stem=rb.Stem(8, before=(rb.Layer(4, 4),))),
            "even kernel 4",
        ),
        (
            lambda: resolve("resnet18", stages=(rb.Stage(8, 1, dilation=3, first_dilation=2),)),
            "does not divide its dilation=3",
        ),
        (
            lambda: rb.backbone(
                "resnet20",
                norm="group",
                weight_standardized=True,
                in_channels=1,
                stem=rb.Stem(16, 1),
            ),
            "leaves 0 of a convolution of one number per output channel",
        ),
        (lambda: rb.Stage(10**30, 1), "up to 65536"),
        (
            lambda: rb.backbone(rb.BackboneSpec((rb.Stage(65536, 1, kernel=255),))),
            "weights",
        ),
        (lambda: rb.backbone("resnet18", norm="group", norm_groups=7), "norm_groups=7 does not"),
        (lambda: resolve("resnet18", attention_reduction=8), "set attention='se'"),
        (lambda: resolve("resnet18", attention_everywhere=True), "set attention='se'"),
        (lambda: resolve("resnet18", attention="eca", attention_bias=False), "set attention='se'"),
        (lambda: resolve("resnet18", drop_path=1.0), "a share from 0 to below 1"),
        (lambda: resolve("resnet18", in_channels=0), "whole numbers of 1 or more"),
        (lambda: rb.Stage(8, 1, kernel=3.0), "whole numbers of 1 or more"),
        (lambda: rb.BackboneSpec((rb.Stage(8, 1, kernel=4),)), "even kernel"),
        (lambda: rb.BackboneSpec((rb.Stage(8, 1, kernel=(3, 3)),), dims=1), "dims=1 needs one"),
        (lambda: rb.backbone("resnet18", branch=rb.Basic(groups=7)), "groups=7 does not divide"),
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
    {"branch": rb.Broadcast(), "dims": 1},
    {"branch": rb.Broadcast(), "norm": "group"},
    {"branch": rb.Broadcast(), "init": "zero_last"},
    {"branch": rb.Res2(), "norm": "layer", "norm_after_activation": True},
    {"shortcut": "none", "branch_scale": "rezero"},
    {"skip": "none", "init": "zero_last"},
    {"skip": "none", "init": "fixup", "norm": "none"},
    {"skip": "none", "branch_scale": "rezero"},
    {"skip": "none", "branch_scale": "layerscale"},
    {"skip": "none", "branch_scale": "skipinit", "norm": "none"},
    {"skip": "none", "activation": "gelu", "norm": "none"},
    {"skip": "none", "norm": "weight", "branch": rb.Gated()},
    {"activation": "gelu", "branch_scale": "rezero"},
    {"skip": "none", "drop_path": 0.1},
    {"init": "zero_last", "branch_scale": "rezero"},
    {"init": "zero_last", "norm": "weight"},
    {"weight_standardized": True, "norm": "weight"},
    {"init": "zero_last", "norm": "group", "weight_standardized": True, "order": "pre"},
    {"weight_standardized": True, "norm_after_activation": True, "activation": "tanh"},
    {"init": "zero_last", "norm_affine": False},
    {"tail_reads": "all", "tail": (rb.Layer(8),)},
    {"downsample": "k_max"},
    {"downsample": "k_max", "dims": 1, "stages": (rb.Stage(8, 1, dilation=2, first_dilation=1),)},
    {"init": "fixup"},
    {"init": "fixup", "norm": "none", "branch_scale": "skipinit"},
    {"init": "fixup", "norm": "none", "branch": rb.Gated()},
    {"init": "zero_last", "branch": rb.Temporal()},
]


@pytest.mark.parametrize(("why", "changes"), list(zip(REFUSALS, REFUSED, strict=True)))
def test_refusals_are_by_name(why: str, changes: dict) -> None:
    with pytest.raises(rb.InputError) as error:
        resolve("resnet20", **changes)
    assert str(error.value) == why


@pytest.mark.parametrize(
    ("changes", "what"),
    [
        ({"attention": "se"}, "attention='se'"),
        ({"norm": "group"}, "norm='group'"),
        ({"downsample": "max"}, "max pooling"),
        ({"downsample": "blur"}, "downsample='blur'"),
        ({"downsample": "k_max", "dims": 1}, "downsample='k_max'"),
        ({"shortcut": "average"}, "shortcut='average'"),
        ({"stem": rb.Stem(16, pool=2, averaged=True)}, "a mean over cells"),
    ],
)
def test_what_looks_ahead_is_refused_in_causal_nets(changes: dict, what: str) -> None:
    with pytest.raises(rb.InputError, match=f"causal=True with {what} looks ahead"):
        resolve("resnet20", causal=True, **changes)


def test_flat_dicts_still_load() -> None:
    """A branch's name with its fields beside it, as specs were once written."""
    flat = {**DICT, "branch": "bottleneck", "groups": 32, "bottleneck_ratio": 0.5, "repeats": 1}
    assert rb.BackboneSpec.from_dict(flat).branch == rb.Bottleneck(0.5, groups=32)
    flat = {**DICT, "branch": "separable", "groups": 1, "bottleneck_ratio": 0.25, "repeats": 5}
    assert rb.BackboneSpec.from_dict(flat).branch == rb.Separable(5)


def test_a_branch_nobody_could_read_back_is_not_written() -> None:
    class Mine(rb.Basic):
        pass

    with pytest.raises(rb.InputError, match="add it, as BRANCHES"):
        replace(rb.SPECS["resnet18"], branch=Mine()).to_dict()


ODD = (
    None, True, False, 0, 1, -1, 2, 3, 7, 1.5, 0.25, -0.5, 10**9, 10**30, float("inf"),
    float("nan"), "", "none", "false", "layer", "relu", "batch", "bottleneck", "pre", (), [], [1],
    [3, 1], [1, 2, 3], {}, {"kind": "gated"}, {"kind": 1}, {"channels": 8}, [{"channels": 8}],
    [None],
)  # fmt: skip


SMALL_SPECS = [s for s in rb.SPECS.values() if sum(stage.blocks for stage in s.stages) <= 8]


def mutated(draw: random.Random) -> dict:
    """A spec of the zoo as a dict, with one to three values or names replaced."""
    values = copy.deepcopy(draw.choice(SMALL_SPECS).to_dict())
    for _ in range(draw.randint(1, 3)):
        places = [values, *values["stages"]] if isinstance(values.get("stages"), list) else [values]
        places += [values[k] for k in ("stem", "branch") if isinstance(values.get(k), dict)]
        stem = values.get("stem")
        if isinstance(stem, dict) and isinstance(stem.get("before"), list):
            places += stem["before"]
        places += values["tail"] if isinstance(values.get("tail"), list) else []
        place = draw.choice([p for p in places if isinstance(p, dict) and p])
        key = draw.choice(list(place))
        kind = draw.random()
        if kind < 0.05:
            del place[key]
        elif kind < 0.1:
            place[f"{key}s"] = place.pop(key)
        else:
            same = [v for v in CHOICES.get(key, ()) if v != place[key]]
            place[key] = copy.deepcopy(draw.choice(same * 4 + list(ODD)))
    return values


def says(given: object, built: object) -> bool:
    """Whether a built spec holds what a dict said, field by field and type by type."""
    if isinstance(given, dict):
        assert isinstance(built, dict)
        return all(says(value, built[name]) for name, value in given.items())
    if isinstance(given, list | tuple):
        return isinstance(built, list) and len(given) == len(built) and all(map(says, given, built))
    return type(given) is type(built) and given == built


@pytest.mark.parametrize("seed", range(4))
def test_mutated_dicts_are_refused_or_build_what_they_say(seed: int) -> None:
    """5,000 dicts each: InputError or a net that is what the dict said; nothing else is raised."""
    draw = random.Random(seed)
    built = 0
    for _ in range(5000):
        values = mutated(draw)
        try:
            spec = rb.BackboneSpec.from_dict(copy.deepcopy(values))
            with torch.device("meta"):
                net = rb.Backbone(spec)
        except rb.InputError:
            continue
        built += 1
        given = {
            **values,
            "branch": spec.to_dict()["branch"] if "branch" not in values else values["branch"],
        }
        if isinstance(given["branch"], str):
            given["branch"] = {"kind": given["branch"]}
        for name in ("groups", "bottleneck_ratio", "repeats"):
            given.pop(name, None)
        assert says(given, spec.to_dict()), values
        assert len(net.channels) == len(spec.stages) == len(net.strides)
        assert net.channels[-1] == (spec.tail[-1] if spec.tail else spec.stages[-1]).channels
        assert sum(len(stage.blocks) for stage in net.stages) == sum(s.blocks for s in spec.stages)
    assert built > 200


def test_choices_are_fields() -> None:
    assert set(CHOICES) <= {field.name for field in dataclasses.fields(rb.BackboneSpec)}
