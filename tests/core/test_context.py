"""An item gives the same features alone and padded in a batch; a causal net never looks ahead."""

import contextlib
import math
from collections.abc import Iterator
from dataclasses import replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import resbackbones as rb
from resbackbones.core.blocks import Bias, Convolution, Residual
from resbackbones.core.context import Context
from resbackbones.core.ops import k_max_pool, masked_max, masked_mean

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
    {"branch": rb.Bottleneck(), "stem": rb.Stem(8, 7, 2, pool=2)},
    {"branch": rb.Separable(2), "shortcut": "always"},
    {"branch": rb.Temporal(), "norm": "weight"},
    {"branch": rb.Gated(), "norm": "none"},
    {"branch": rb.Inverted(), "order": "none", "downsample": "patch", "stem": rb.Stem(8, 4, 4)},
    {"norm": "group", "norm_groups": 1},
    {"norm": "group", "weight_standardized": True, "order": "pre"},
    {"downsample": "blur", "stem": rb.Stem(8, pool=2)},
    {"shortcut": "average", "stem": rb.Stem(8, pool=2, before=(rb.Layer(4, 5, 2), rb.Layer(6)))},
    {"stem": rb.Stem(8, 7, 2, activation=False, pool=2, zero_padded=True)},
    {"branch": rb.Res2(), "attention": "se"},
    {"branch": rb.Res2(8, activation=True), "order": "none", "norm_after_activation": True},
    {
        "branch": rb.Temporal(),
        "order": "pre",
        "norm_after_activation": True,
        "norm_affine": False,
        "stem": rb.Stem(8, pool=2, averaged=True, norm=False),
    },
    {"norm": "group", "norm_affine": False, "tail": (rb.Layer(8, 3, 3, centred=False),)},
    {
        "stages": (rb.Stage(8, 1, 2), rb.Stage(16, 2, dilation=2)),
        "order": "pre",
        "tail": (rb.Layer(8),),
        "tail_reads": "all",
    },
    *(
        {"stages": (rb.Stage(8, 1), rb.Stage(16, 1, 1, 5, 2, 1), rb.Stage(16, 1, 1, 3, 4, 2))}
        | changes
        for changes in (
            {"shortcut": "average"},
            {"downsample": "blur"},
            {"downsample": "max"},
            {"downsample": "patch", "branch": rb.Inverted()},
        )
    ),
]
# What has a second axis: 6 rows of frequency, of which 3 are left.
BANDS = (rb.Stage(8, 1), rb.Stage(16, 2, stride=2, kernel=5), rb.Stage(16, 1, dilation=2))
IMAGE_VARIANTS = [
    {"branch": rb.Broadcast(3), "shortcut": "none", "stages": BANDS},
    {"branch": rb.Broadcast(3), "order": "pre", "norm_after_activation": True, "stages": BANDS},
    {"branch": rb.Broadcast(1), "norm": "group", "stages": BANDS},
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
        if isinstance(module, Bias):
            torch.nn.init.normal_(module.value, std=0.5)
        if isinstance(module, Residual) and net.spec.init == "fixup":
            last = [m for m in module.branch.modules() if isinstance(m, Convolution)][-1]
            torch.nn.init.normal_(last.conv.weight, std=0.1)
    return net.eval()


def check_batch_is_single(
    net: rb.Backbone,
    lengths: list[int],
    tolerance: float = 1e-5,
    extra: int = 0,
    garbage: float = math.nan,
    rows: int = 6,
) -> None:
    """An item's features are the same in a batch, whatever stands in the padding. Where features
    were divided by their own deviation, the bound is relative to what was divided."""
    spec = net.spec
    height = (rows,) * (spec.dims - 1)
    items = [torch.randn(1, spec.in_channels, *height, length) for length in lengths]
    size = max(lengths) + extra
    # What stands in the padding must not matter.
    batch = torch.full((len(items), spec.in_channels, *height, size), garbage)
    for row, item in zip(batch, items, strict=True):
        row[..., : item.shape[-1]] = item[0]
    with torch.no_grad():
        together = net(batch, torch.tensor(lengths))
        for index, item in enumerate(items):
            with largest_quotient(net) as divided:
                singles = net(item)
            for feature, alone, valid in zip(
                together, singles, net.output_lengths(lengths), strict=True
            ):
                length = int(valid[index])
                assert alone.shape[-1] == length
                difference = (feature[index, ..., :length] - alone[0]).abs().max()
                assert difference <= tolerance * max(1.0, alone.abs().max(), divided[0])
                assert not feature[index, ..., length:].any()


@contextlib.contextmanager
def largest_quotient(net: rb.Backbone) -> Iterator[list[float]]:
    """What the norms that compute their own statistics divided: the largest number they got, over
    the smallest deviation. An error of rounding grows by as much."""
    largest = [0.0]

    def look(norm: torch.nn.Module, inputs: tuple[torch.Tensor, ...]) -> None:
        x = inputs[0]
        if isinstance(norm, torch.nn.GroupNorm):
            variance = x.reshape(x.shape[0], norm.num_groups, -1).var(-1, correction=0)
        else:
            variance = x.var(-1, correction=0)
        largest[0] = max(largest[0], (x.abs().max() / (variance.min() + norm.eps).sqrt()).item())

    kinds = (torch.nn.LayerNorm, torch.nn.GroupNorm)
    hooks = [m.register_forward_pre_hook(look) for m in net.modules() if isinstance(m, kinds)]
    try:
        yield largest
    finally:
        for hook in hooks:
            hook.remove()


# What has no second axis.
SEQUENCE_VARIANTS = [
    {"downsample": "k_max"},
    {"downsample": "k_max", "skip": "none", "norm": "layer"},
    {"downsample": "k_max", "order": "pre", "shortcut": "pad"},
]
lengths_strategy = st.lists(st.integers(1, 40), min_size=1, max_size=4)


@pytest.mark.parametrize(
    ("changes", "dims"),
    [
        *((changes, dims) for changes in VARIANTS for dims in (1, 2)),
        *((changes, 1) for changes in SEQUENCE_VARIANTS),
        *((changes, 2) for changes in IMAGE_VARIANTS),
    ],
    ids=lambda c: "-".join(map(str, c.values()))[:60] or "base" if isinstance(c, dict) else str(c),
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


@pytest.mark.parametrize(
    ("name", "changes"),
    [
        *((name, {}) for name in SEQUENCES),
        *(("vdcnn9", {"downsample": way}) for way in ("stride", "k_max")),
        *(("vdcnn9", {"downsample": way, "skip": "none"}) for way in ("stride", "max", "k_max")),
    ],
    ids=lambda value: "-".join(value.values()) if isinstance(value, dict) else value,
)
def test_every_sequence_net_of_the_zoo(name: str, changes: dict) -> None:
    torch.manual_seed(0)
    spec = replace(rb.SPECS[name], **changes)
    if name == "gcnn14":  # as published it has 100 million weights
        stages = tuple(replace(stage, channels=32) for stage in spec.stages)
        spec = replace(spec, stages=stages, stem=replace(spec.stem, channels=32))
    net = randomise(rb.Backbone(spec))

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


@pytest.mark.parametrize("name", ["bc_resnet1", "res8_narrow", "res15_narrow", "resnet34_tstp"])
def test_spectrograms_of_40_bands(name: str) -> None:
    torch.manual_seed(0)
    net = randomise(rb.backbone(name))
    check_batch_is_single(net, [61, 5, 1, 30], extra=3, rows=40)


@pytest.mark.parametrize("name", ["resnet110", "preact_resnet110"])
@pytest.mark.parametrize("dims", [1, 2])
def test_depth_110(name: str, dims: int) -> None:
    torch.manual_seed(0)
    net = rb.backbone(name, dims=dims).eval()  # features grow to 1e3 here: the promise is relative
    check_batch_is_single(net, [33, 9, 20], extra=5)


@pytest.mark.parametrize(
    ("changes", "dims"),
    [
        *(({"norm": norm}, 1) for norm in ("batch", "group", "layer")),
        ({"branch": rb.Res2(), "order": "none", "norm_after_activation": True}, 1),
        ({"branch": rb.Temporal(), "order": "pre", "norm_after_activation": True,
          "norm_affine": False}, 2),
        ({"branch": rb.Broadcast(3, dropout=0.0), "stages": BANDS}, 2),
    ],
    ids=str,
)  # fmt: skip
def test_padding_enters_no_statistics_in_training(changes: dict, dims: int) -> None:
    torch.manual_seed(0)
    net = rb.Backbone(replace(SMALL, dims=dims, **changes)).train()
    lengths = torch.tensor([21, 13])
    height = (6,) * (dims - 1)
    short, long = torch.randn(2, 4, *height, 21), torch.full((2, 4, *height, 30), 50.0)
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
        masks = {"aten::mul_", "aten::mul", "aten::where", "aten::lt"}
        assert not masks & operators(net)
        assert {"aten::mul_", "aten::where"} <= operators(net, torch.tensor([9, 4]))


def operators(net: rb.Backbone, lengths: torch.Tensor | None = None) -> set[str]:
    with torch.autograd.profiler.profile() as profile:
        net(torch.randn(2, 4, 9), lengths)
    return {event.name for event in profile.function_events}


@pytest.mark.parametrize(
    "changes",
    [
        {"norm": "layer"},
        {"norm": "batch", "order": "pre"},
        {"branch": rb.Temporal(), "norm": "weight"},
        {"branch": rb.Separable(2)},
        {"branch": rb.Bottleneck(), "shortcut": "pad"},
        {"branch": rb.Res2(), "norm_after_activation": True},
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


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("dims", [1, 2])
@pytest.mark.parametrize("changes", [{}, {"attention": "se"}, {"downsample": "max"}], ids=str)
def test_half_precision(changes: dict, dims: int, dtype: torch.dtype) -> None:
    """The promise at 8 or 11 bits: as far as one rounding per operator goes."""
    torch.manual_seed(0)
    net = randomise(rb.Backbone(replace(SMALL, dims=dims, **changes))).to(dtype)
    lengths = [40, 7, 23]
    items = [torch.randn(1, 4, *(6,) * (dims - 1), length, dtype=dtype) for length in lengths]
    batch = torch.full((3, 4, *(6,) * (dims - 1), 44), math.nan, dtype=dtype)
    for row, item in zip(batch, items, strict=True):
        row[..., : item.shape[-1]] = item[0]
    bound = 8 * torch.finfo(dtype).eps
    with torch.no_grad():
        together = net(batch, torch.tensor(lengths))
        for index, item in enumerate(items):
            for feature, alone in zip(together, net(item), strict=True):
                real = feature[index, ..., : alone.shape[-1]]
                assert (real - alone[0]).abs().max() <= bound * max(1.0, alone.abs().max())
                assert not feature[index, ..., alone.shape[-1] :].any()


def test_a_masked_mean_in_half_precision_does_not_overflow() -> None:
    x = torch.full((1, 2, 4000), 100.0, dtype=torch.float16)
    assert masked_mean(x, torch.tensor([3000])).tolist() == [[100.0, 100.0]]


def test_layer_norm_over_few_channels() -> None:
    """Four numbers nearly alike are divided by next to nothing: rounding shows, relative to it."""
    spec = rb.BackboneSpec(
        (rb.Stage(4, 2), rb.Stage(4, 2, stride=2)), in_channels=4, stem=rb.Stem(4),
        norm="layer", activation="tanh",
    )  # fmt: skip
    for seed in range(60):
        torch.manual_seed(seed)
        check_batch_is_single(randomise(rb.Backbone(spec)), [19, 4, 11, 1])


@pytest.mark.parametrize(
    ("lengths", "sentence"),
    [
        ([3], "one whole number per item"),
        ([3, 9], "run from 3 to 9"),
        ([-1, 2], "run from -1 to 2"),
        ([8.0, 3.0], "torch.float32, but a batch of 2 needs one whole number per item"),
        (torch.tensor([True, False]), "torch.bool, but a batch of 2 needs one whole number"),
        (8, r"has shape \(\)"),
        ([[8], [3, 1]], r"are no numbers; give one whole number per item, shape \(2,\)"),
        ("ab", "lengths='ab' are no numbers"),
    ],
)
def test_wrong_lengths_are_refused(lengths: object, sentence: str) -> None:
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


@given(
    rows=st.lists(st.lists(st.integers(-2, 2), min_size=1, max_size=12), min_size=1, max_size=4),
    stride=st.integers(2, 4),
    extra=st.integers(0, 5),
)
def test_k_max_keeps_of_every_item_what_its_own_length_says(
    rows: list[list[int]], stride: int, extra: int
) -> None:
    """Exactly, and of equal numbers the first, whatever stands in the padding."""
    size = max(map(len, rows)) + extra
    batch = torch.full((len(rows), 1, 1, size), 9.0)
    for item, row in zip(batch, rows, strict=True):
        item[..., : len(row)] = torch.tensor(row)
    pooled = k_max_pool(batch, stride, Context(torch.tensor([len(row) for row in rows])))
    assert pooled.shape[-1] == -(-size // stride)
    for item, row in zip(pooled, rows, strict=True):
        places = sorted(range(len(row)), key=lambda place: -row[place])[: -(-len(row) // stride)]
        kept = [float(row[place]) for place in sorted(places)]
        assert item.flatten().tolist() == kept + [0.0] * (pooled.shape[-1] - len(kept))
        alone = k_max_pool(torch.tensor([[[row]]]).float(), stride, Context())
        assert alone.flatten().tolist() == kept


def test_gradients_reach_what_k_max_keeps_and_nothing_else() -> None:
    x = torch.tensor([[[[3.0, 1.0, 2.0, 9.0]]]], requires_grad=True)
    k_max_pool(x, 2, Context(torch.tensor([3]))).sum().backward()
    assert x.grad.flatten().tolist() == [1.0, 0.0, 1.0, 0.0]


@pytest.mark.parametrize("dims", [1, 2])
def test_group_norm_over_one_or_two_positions(dims: int) -> None:
    for seed in range(20):
        torch.manual_seed(seed)
        net = randomise(rb.Backbone(replace(SMALL, dims=dims, norm="group")))
        check_batch_is_single(net, [1, 2], extra=3)
