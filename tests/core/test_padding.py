"""An item gives the same features alone and padded in a batch; a causal net never looks ahead."""

from dataclasses import replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import resbackbones as rb
from resbackbones.core.ops import masked_max, masked_mean

SEQUENCES = [name for name, spec in rb.SPECS.items() if spec.dims == 1]
# The same nets, narrow and not very deep: padding depends on neither.
VARIANTS = [
    {},
    {"attention": "se"},
    {"attention": "eca", "order": "none"},
    {"norm": "group"},
    {"norm": "layer", "order": "pre"},
    {"norm": "none", "init": "fixup"},
    {"shortcut": "average"},
    {"shortcut": "pad", "downsample": "max"},
    {"causal": True, "norm": "layer"},
    {"branch": "bottleneck", "stem": rb.Stem(8, 7, 2, pool=2)},
    {"branch": "separable", "shortcut": "always", "repeats": 2},
    {"branch": "temporal", "norm": "weight"},
]
SMALL = rb.BackboneSpec(
    (rb.Stage(8, 1), rb.Stage(16, 2, stride=2, kernel=5), rb.Stage(16, 1, stride=2, dilation=2)),
    in_channels=4,
    stem=rb.Stem(8),
)


def randomise(net: rb.Backbone) -> rb.Backbone:
    """Running statistics and biases of a trained net: padding must not hide behind zeros."""
    for module in net.modules():
        if isinstance(getattr(module, "running_mean", None), torch.Tensor):
            module.running_mean.normal_()
            module.running_var.uniform_(0.5, 2)
        if isinstance(getattr(module, "bias", None), torch.nn.Parameter):
            torch.nn.init.normal_(module.bias, std=0.5)
    return net.eval()


def check_batch_is_single(
    net: rb.Backbone, lengths: list[int], tolerance: float = 1e-5, extra: int = 0
) -> None:
    spec = net.spec
    height = (6,) * (spec.dims - 1)
    items = [torch.randn(1, spec.in_channels, *height, length) for length in lengths]
    size = max(lengths) + extra
    # What stands in the padding must not matter.
    batch = torch.full((len(items), spec.in_channels, *height, size), 1e3)
    for row, item in zip(batch, items, strict=True):
        row[..., : item.shape[-1]] = item[0]
    with torch.no_grad():
        together = net(batch, torch.tensor(lengths))
        for index, item in enumerate(items):
            for feature, alone, valid in zip(
                together, net(item), net.output_lengths(lengths), strict=True
            ):
                length = int(valid[index])
                assert alone.shape[-1] == length
                difference = (feature[index, ..., :length] - alone[0]).abs().max()
                assert difference <= tolerance * max(1.0, alone.abs().max())
                assert not feature[index, ..., length:].any()


lengths_strategy = st.lists(st.integers(1, 40), min_size=1, max_size=4)


@pytest.mark.parametrize("dims", [1, 2])
@pytest.mark.parametrize(
    "changes", VARIANTS, ids=lambda c: "-".join(map(str, c.values())) or "base"
)
def test_batch_is_single(changes: dict, dims: int) -> None:
    torch.manual_seed(0)
    net = randomise(rb.Backbone(replace(SMALL, dims=dims, **changes)))

    @settings(max_examples=8, deadline=None)
    @given(lengths=lengths_strategy, extra=st.integers(0, 9), seed=st.integers(0, 99))
    def check(lengths: list[int], extra: int, seed: int) -> None:
        torch.manual_seed(seed)
        check_batch_is_single(net, lengths, extra=extra)

    check()


@pytest.mark.parametrize("name", SEQUENCES)
def test_every_sequence_net_of_the_zoo(name: str) -> None:
    torch.manual_seed(0)
    net = randomise(rb.backbone(name))

    @settings(max_examples=3, deadline=None)
    @given(lengths=st.lists(st.integers(1, 70), min_size=2, max_size=3), seed=st.integers(0, 99))
    def check(lengths: list[int], seed: int) -> None:
        torch.manual_seed(seed)
        check_batch_is_single(net, lengths)

    check()


@pytest.mark.parametrize("name", ["resnet18", "resnetv2_50", "resnet20", "wrn_40_4"])
def test_images_with_time_last(name: str) -> None:
    torch.manual_seed(0)
    check_batch_is_single(randomise(rb.backbone(name, in_channels=1)), [37, 5, 18], extra=3)


@pytest.mark.parametrize("name", ["resnet110", "preact_resnet110"])
@pytest.mark.parametrize("dims", [1, 2])
def test_depth_110(name: str, dims: int) -> None:
    torch.manual_seed(0)
    net = rb.backbone(name, dims=dims).eval()  # features grow to 1e3 here: the promise is relative
    check_batch_is_single(net, [33, 9, 20], extra=5)


@pytest.mark.parametrize("norm", ["batch", "group", "layer"])
def test_padding_enters_no_statistics_in_training(norm: str) -> None:
    torch.manual_seed(0)
    net = rb.Backbone(replace(SMALL, dims=1, norm=norm)).train()
    lengths = torch.tensor([21, 13])
    short, long = torch.randn(2, 4, 21), torch.full((2, 4, 30), 50.0)
    long[..., :21] = short
    few = net(short, lengths)
    statistics = {n: b.clone() for n, b in net.named_buffers()}
    for module in net.modules():
        if hasattr(module, "reset_running_stats"):
            module.reset_running_stats()
    many = net(long, lengths)
    for a, b in zip(few, many, strict=True):
        torch.testing.assert_close(b[..., : a.shape[-1]], a)
    for name, buffer in net.named_buffers():
        torch.testing.assert_close(buffer, statistics[name])


def test_gradients_through_padding_are_finite() -> None:
    net = rb.Backbone(replace(SMALL, dims=1, downsample="max", stem=rb.Stem(8, 7, 2, pool=2)))
    net(torch.randn(3, 4, 40), torch.tensor([40, 3, 1]))[-1].sum().backward()
    assert all(p.grad.isfinite().all() for p in net.parameters())


def test_no_lengths_costs_no_mask() -> None:
    net = rb.Backbone(replace(SMALL, dims=1)).eval()
    with torch.no_grad():
        assert "aten::masked_fill" not in operators(net)
        assert "aten::masked_fill" in operators(net, torch.tensor([9, 4]))


def operators(net: rb.Backbone, lengths: torch.Tensor | None = None) -> set[str]:
    with torch.autograd.profiler.profile() as profile:
        net(torch.randn(2, 4, 9), lengths)
    return {event.name for event in profile.function_events}


@pytest.mark.parametrize(
    "changes",
    [
        {"norm": "layer"},
        {"norm": "batch", "order": "pre"},
        {"branch": "temporal", "norm": "weight"},
        {"branch": "separable", "repeats": 2},
        {"branch": "bottleneck", "shortcut": "pad"},
    ],
    ids=str,
)
@pytest.mark.parametrize("dims", [1, 2])
def test_causal_nets_do_not_look_ahead(changes: dict, dims: int) -> None:
    torch.manual_seed(0)
    net = randomise(rb.Backbone(replace(SMALL, dims=dims, causal=True, **changes)))
    x = torch.randn(1, 4, *(6,) * (dims - 1), 32)
    changed = x.clone()
    changed[..., 17:] += 1
    with torch.no_grad():
        for before, after, stride in zip(net(x), net(changed), net.strides, strict=True):
            known = -(-17 // stride[-1])
            assert torch.equal(before[..., :known], after[..., :known])
            assert not torch.equal(before, after)


def test_the_receptive_field_is_what_the_output_depends_on() -> None:
    for changes in ({}, {"downsample": "max"}, {"branch": "temporal"}, {"shortcut": "average"}):
        net = rb.Backbone(replace(SMALL, dims=1, **changes)).eval().double()
        x = torch.randn(1, 4, 201, dtype=torch.float64, requires_grad=True)
        feature = net(x)[-1]
        feature[..., feature.shape[-1] // 2].sum().backward()
        seen = x.grad.abs().sum(1).squeeze(0).nonzero()
        width = int(seen.max() - seen.min()) + 1
        # ReLU hides a rim position now and then; nothing outside may be seen.
        assert net.receptive_field - 6 <= width <= net.receptive_field


@pytest.mark.parametrize(
    ("lengths", "sentence"),
    [([3], "one length an item"), ([3, 9], "run from 3 to 9"), ([-1, 2], "run from -1 to 2")],
)
def test_wrong_lengths_are_refused(lengths: list[int], sentence: str) -> None:
    net = rb.Backbone(replace(SMALL, dims=1))
    with pytest.raises(rb.InputError, match=sentence):
        net(torch.zeros(2, 4, 8), lengths)


def test_wrong_shapes_are_refused() -> None:
    with pytest.raises(rb.InputError, match=r"takes \(B, 3, H, W\)"):
        rb.backbone("resnet18")(torch.zeros(1, 1, 32, 32))


def test_masked_pooling() -> None:
    x = torch.randn(3, 5, 4, 10)
    lengths = torch.tensor([10, 4, 0])
    mean, largest = masked_mean(x, lengths), masked_max(x, lengths)
    torch.testing.assert_close(mean[1], x[1, :, :, :4].mean((1, 2)))
    torch.testing.assert_close(largest[1], x[1, :, :, :4].amax((1, 2)))
    torch.testing.assert_close(mean[0], masked_mean(x)[0])
    torch.testing.assert_close(largest[0], masked_max(x)[0])
    assert not mean[2].any() and not largest[2].any()


@pytest.mark.parametrize("dims", [1, 2])
def test_group_norm_over_one_or_two_positions(dims: int) -> None:
    for seed in range(20):
        torch.manual_seed(seed)
        net = randomise(rb.Backbone(replace(SMALL, dims=dims, norm="group")))
        check_batch_is_single(net, [1, 2], extra=3)
