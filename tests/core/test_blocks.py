"""Every combination the compatibility table allows is alive, in 1-D and 2-D."""

import itertools
import math
import random
from dataclasses import replace

import pytest
import torch
from torch import nn

import resbackbones as rb
from resbackbones.core.blocks import DropPath
from resbackbones.core.spec import CHOICES

AXES = {
    **CHOICES,
    "branch": (
        rb.Basic(),
        rb.Bottleneck(0.5),
        rb.Separable(2),
        rb.Temporal(),
        rb.Gated(),
        rb.Inverted(),
        rb.Res2(2),
        rb.Res2(4, activation=True),
        rb.Broadcast(2),
        rb.Broadcast(1),
    ),
    "activation": ("relu", "silu"),
    "causal": (False, True),
    "weight_standardized": (False, True),
    "norm_after_activation": (False, True),
    "norm_affine": (False, True),
    "stem": (
        rb.Stem(8),
        rb.Stem(8, pool=2, zero_padded=True, before=(rb.Layer(6),)),
        rb.Stem(8, pool=2, averaged=True),
    ),
    "tail_reads": ("last",),  # "all" needs other stages, and has its own test
    "drop_path": (0.0, 0.2),
    "dropout": (0.0, 0.2),
    "dims": (1, 2),
}
BASE = rb.BackboneSpec(
    stages=(rb.Stage(8, 2), rb.Stage(16, 2, stride=2, dilation=2)), stem=rb.Stem(8), in_channels=3
)


def make(changes: dict, base: rb.BackboneSpec = BASE) -> rb.BackboneSpec | None:
    """The spec, or None where the table refuses it."""
    try:
        return replace(base, **changes)
    except rb.InputError:
        return None


def check_alive(spec: rb.BackboneSpec, seed: int = 0) -> None:
    torch.manual_seed(seed)
    net = rb.Backbone(spec)
    x = torch.randn(4, 3, *(16, 8)[: spec.dims])
    features = net(x)
    assert [f.shape[1] for f in features] == list(net.channels)
    torch.stack([(f * torch.randn_like(f)).sum() for f in features]).sum().backward()
    for name, parameter in net.named_parameters():
        assert parameter.grad is not None, f"{name} takes no part"
        assert parameter.grad.isfinite().all(), name
    for name, block in net.blocks:
        inside = [*block.branch.parameters(), *([] if block.scale is None else [block.scale])]
        assert any(p.grad.any() for p in inside), f"{name} is dead"


def check_reaches_its_stem(spec: rb.BackboneSpec) -> None:
    """At depth 110 (two convolutions per block) a loss of size 1 moves the first layer."""
    torch.manual_seed(0)
    net = rb.Backbone(spec)
    feature = net(torch.randn(4, 3, 8, 8))[-1]
    (feature * torch.randn_like(feature)).mean().backward()
    gradient = torch.stack([p.grad.norm() for p in net.stem.parameters()]).norm().item()
    assert 1e-8 < gradient < math.inf, f"{gradient:.1e}"


DEEP = rb.BackboneSpec((rb.Stage(16, 54),), stem=rb.Stem(16))
DEEP_AXES = {
    axis: AXES[axis]
    for axis in (
        "skip", "branch_scale", "init", "norm", "order", "weight_standardized", "activation",
        "norm_after_activation", "norm_affine",
    )
} | {"activation": CHOICES["activation"]}  # fmt: skip


def deep_specs(branches: list[rb.Branch]) -> list[rb.BackboneSpec]:
    every = itertools.product(branches, *DEEP_AXES.values())
    made = (make(dict(zip(["branch", *DEEP_AXES], values, strict=True)), DEEP) for values in every)
    return [spec for spec in made if spec is not None]


def test_no_allowed_net_is_dead_at_depth_110() -> None:
    specs = deep_specs([rb.Basic()])
    assert len(specs) > 300
    for spec in random.Random(0).sample(specs, 60):
        check_reaches_its_stem(spec)


@pytest.mark.slow
@pytest.mark.parametrize(
    "branch",
    [
        rb.Basic(),
        rb.Bottleneck(0.5),
        rb.Temporal(),
        rb.Separable(2),
        rb.Gated(),
        rb.Res2(),
        rb.Res2(8, activation=True),
        rb.Broadcast(2),
    ],
    ids=str,
)
def test_no_allowed_net_of_any_branch_is_dead_at_depth_110(branch: rb.Branch) -> None:
    specs = deep_specs([branch])
    for spec in random.Random(1).sample(specs, 200):
        check_reaches_its_stem(spec)


@pytest.mark.parametrize(
    "changes",
    [
        {"branch_scale": "layerscale"},
        {"branch_scale": "layerscale", "norm": "none"},
        {"branch_scale": "skipinit", "norm": "none"},
        {"branch_scale": "skipinit", "norm": "weight"},
    ],
    ids=str,
)
def test_dead_nets_are_refused(changes: dict) -> None:
    with pytest.raises(rb.InputError, match="is a dead net"):
        replace(DEEP, skip="none", **changes)


PLAIN = {axis: values[0] for axis, values in AXES.items()}
PAIRS = [
    pair
    for pair in itertools.combinations(
        [(a, value) for a, values in AXES.items() for value in values], 2
    )
    if pair[0][0] != pair[1][0]
]


def some_combinations(count: int, seed: int = 0) -> list[dict]:
    """Random allowed combinations, and more until every pair of choices that can be met was."""
    draw = random.Random(seed)
    chosen: list[dict] = []
    seen: set[tuple] = set()

    def choose(changes: dict) -> None:
        pairs = set(itertools.combinations(changes.items(), 2))
        if (len(chosen) < count or not pairs <= seen) and make(changes) is not None:
            chosen.append(changes)
            seen.update(pairs)

    for _ in range(8000):
        choose({axis: draw.choice(values) for axis, values in AXES.items()})
    for pair in PAIRS:  # those that chance has not met
        if pair not in seen:
            choose({**PLAIN, **dict(pair)})
    return chosen


def test_allowed_combinations_are_alive() -> None:
    chosen = some_combinations(400)
    for changes in chosen:
        spec = make(changes)
        assert spec is not None
        check_alive(spec)
    # Every pair of choices that is allowed at all was among them.
    seen = {pair for changes in chosen for pair in itertools.combinations(changes.items(), 2)}
    for pair in PAIRS:
        assert pair in seen or make({**PLAIN, **dict(pair)}) is None


@pytest.mark.parametrize("dims", [1, 2])
@pytest.mark.parametrize("order", CHOICES["order"])
@pytest.mark.parametrize("skip", CHOICES["skip"])
def test_a_tail_of_all_stages_is_alive(skip: str, order: str, dims: int) -> None:
    """It reads what each stage gives, the first one's too, side by side."""
    spec = replace(
        BASE, stages=(rb.Stage(8, 1, stride=2), rb.Stage(16, 2, dilation=2)), skip=skip,
        order=order, dims=dims, tail=(rb.Layer(6, 3, 2, centred=False),), tail_reads="all",
    )  # fmt: skip
    check_alive(spec)
    torch.manual_seed(0)
    net = rb.Backbone(spec).eval()
    x = torch.randn(2, 3, *(16,) * dims)
    first, second = net.stages
    given: list[torch.Tensor] = []
    net.tail.register_forward_pre_hook(lambda _, inputs: given.append(inputs[0]))
    *before, last = net(x)
    stem = net.stem(x if dims == 2 else x.unsqueeze(2))
    both = torch.cat([first(stem), second(first(stem))], 1)
    torch.testing.assert_close(given[0], both)
    torch.testing.assert_close(last, net.tail(both).reshape(last.shape))
    assert before[0].shape[1] == 8 and last.shape[1] == 6 and both.shape[1] == 24
    assert net(x, stages=(0,))[0].shape == before[0].shape and len(given) == 2


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(1, 5))
def test_many_more_allowed_combinations_are_alive(seed: int) -> None:
    for changes in some_combinations(1000, seed):
        spec = make(changes)
        assert spec is not None
        try:
            check_alive(spec)
        except AssertionError:  # of so many tiny nets one draws ReLUs that never open
            check_alive(spec, seed=1)


def test_plain_net_is_the_branch_alone() -> None:
    torch.manual_seed(0)
    residual = rb.backbone("resnet20").eval()
    plain = rb.backbone("resnet20", skip="none").eval()
    plain.load_state_dict(residual.state_dict())  # option A: the very same parameters
    assert plain.parameter_difference == 0
    x = torch.randn(2, 16, 8, 8)
    (_, with_skip), (_, without) = residual.blocks[0], plain.blocks[0]
    branch = without.branch(x)
    torch.testing.assert_close(without(x), branch.relu())
    torch.testing.assert_close(with_skip(x), (branch + x).relu())


def test_preactivated_identity_carries_the_raw_input() -> None:
    net = rb.backbone("preact_resnet110", branch_scale="rezero")
    _, block = net.blocks[1]
    x = torch.randn(2, 16, 8, 8)
    assert torch.equal(block(x), x)


def test_projection_sees_the_preactivated_input() -> None:
    net = rb.backbone("wrn_40_4").eval()
    _, block = net.blocks[0]
    x = torch.randn(2, 16, 8, 8)
    shortcut = block.shortcut(block.pre(x))
    branch = block.branch(block.pre(x))
    torch.testing.assert_close(block(x), branch + shortcut)


def test_sums_are_carried_raw_where_the_norm_comes_after_the_activation() -> None:
    """Tang & Lin 2018, section 3.1: what the block before left is added as it is, and normalised
    for the next convolution; the first block reads what the stem left."""
    torch.manual_seed(0)
    net = rb.backbone("res8_narrow")
    (_, first), (_, second), _ = net.blocks
    x = torch.randn(2, 19, 6, 6)

    def normalised(x: torch.Tensor) -> torch.Tensor:
        return nn.functional.batch_norm(x, None, None, training=True)

    for block, y in ((first, x), (second, normalised(x))):
        one, two = (m for m in block.branch.modules() if isinstance(m, nn.Conv2d))
        expected = x + two(normalised(one(y).relu())).relu()
        torch.testing.assert_close(block(x), expected)
    torch.testing.assert_close(net.tail(x), normalised(x))
    assert not any(isinstance(m, nn.BatchNorm2d) and m.affine for m in net.modules())


def test_without_a_shortcut_the_branch_is_alone_where_shapes_differ() -> None:
    net = rb.Backbone(replace(BASE, shortcut="none")).eval()
    skips = [block.skip for _, block in net.blocks]
    assert skips == [True, True, False, True] and net.parameter_difference == 0
    _, block = net.blocks[2]
    x = torch.randn(2, 8, 6, 6)
    torch.testing.assert_close(block(x), block.branch(x).relu())


@pytest.mark.parametrize("order", ["post", "pre", "none"])
def test_zero_last_starts_as_the_identity(order: str) -> None:
    spec = replace(BASE, stages=(rb.Stage(8, 3),), order=order, init="zero_last")
    net = rb.Backbone(spec)
    x = torch.randn(2, 8, 6, 6).relu()
    for _, block in net.blocks:
        torch.testing.assert_close(block(x), x)


def test_he_initialisation_has_its_variance() -> None:
    net = rb.backbone("resnet18")
    for name, module in net.named_modules():
        if isinstance(module, nn.Conv2d):
            fan_out = module.out_channels * module.kernel_size[0] * module.kernel_size[1]
            expected = (2 / fan_out) ** 0.5
            assert module.weight.std().item() == pytest.approx(expected, rel=0.1), name


def test_fixup_trains_at_depth_without_norm() -> None:
    torch.manual_seed(0)
    spec = rb.BackboneSpec((rb.Stage(8, 50),), stem=rb.Stem(8), norm="none", init="fixup")
    features = rb.Backbone(spec)(torch.randn(4, 3, 8, 8))
    assert 0.1 < features[-1].std() < 10


def test_branch_scales_start_where_the_papers_say() -> None:
    def scale(kind: str) -> torch.Tensor:
        return rb.backbone("resnet20", branch_scale=kind).blocks[0][1].scale

    assert scale("rezero").item() == 0
    assert scale("skipinit").item() == pytest.approx(1 / 3)
    assert scale("layerscale").shape == (16, 1, 1)
    assert scale("none") is None


def test_drop_path_drops_items_and_keeps_the_mean() -> None:
    torch.manual_seed(0)
    drop = DropPath(0.25)
    y = drop(torch.ones(20_000, 2, 3))
    assert torch.equal(y.amin((1, 2)), y.amax((1, 2)))
    assert y.mean().item() == pytest.approx(1, abs=0.02)
    assert torch.equal(drop.eval()(y), y)
    probabilities = [
        b.drop_path.probability if b.drop_path else 0.0
        for _, b in rb.backbone("resnet20", drop_path=0.5).blocks
    ]
    assert probabilities == pytest.approx([i * 0.5 / 8 for i in range(9)])


def test_reset_parameters_leaves_nothing_undrawn() -> None:
    for changes in (
        {"attention": "se", "branch_scale": "layerscale"},
        {"norm": "weight", "attention": "eca"},
        {"norm": "none", "init": "fixup"},
        {"norm": "group", "order": "pre"},
        {"branch": rb.Res2(), "norm_after_activation": True},
        {"branch": rb.Broadcast(1), "norm_affine": False},
    ):
        net = rb.backbone("resnet20", **changes)
        large = {n: p for n, p in net.named_parameters() if p.numel() > 100}
        expected = {name: parameter.std().item() for name, parameter in large.items()}
        with torch.no_grad():
            for tensor in [*net.parameters(), *net.buffers()]:
                tensor.fill_(77)
        net.reset_parameters()
        for name, parameter in net.named_parameters():
            assert not (parameter == 77).any(), name
            if expected.get(name):
                assert parameter.std().item() == pytest.approx(expected[name], rel=0.5), name
