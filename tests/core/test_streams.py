"""A causal net reads its input piece by piece: the pieces are the whole."""

from dataclasses import replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

import resbackbones as rb

CAUSAL = rb.BackboneSpec(
    (rb.Stage(8, 1, kernel=4), rb.Stage(16, 2, stride=2, dilation=2), rb.Stage(16, 1, stride=3)),
    dims=1,
    in_channels=4,
    stem=rb.Stem(8, 5, 2),
    tail=(rb.Layer(6, 3, 2), rb.Layer(5, 1)),
    causal=True,
)
STREAMS = [
    {},
    {"norm": "layer", "order": "pre"},
    {"norm": "none", "init": "fixup", "shortcut": "pad"},
    {"norm": "weight", "branch": rb.Temporal(), "shortcut": "always"},
    {"branch": rb.Separable(2), "skip": "none"},
    {"branch": rb.Gated(), "order": "none"},
    {"branch": rb.Inverted(), "downsample": "patch", "stem": rb.Stem(8, 4, 4)},
    {
        "branch": rb.Inverted(),
        "downsample": "patch",
        "stages": (rb.Stage(8, 1), rb.Stage(16, 1, 1, 3, 4, 2)),
    },
    {"stem": rb.Stem(8, 3, before=(rb.Layer(6, 5, 2), rb.Layer(4, 3)))},
    {"norm": "layer", "weight_standardized": True},
    {"branch": rb.Bottleneck(0.5), "stem": None, "tail": (), "in_channels": 8},
    {"branch": rb.Res2(), "shortcut": "none"},
    {"branch": rb.Res2(8, activation=True), "order": "none", "norm_after_activation": True},
    {
        "branch": rb.Temporal(),
        "order": "pre",
        "norm_after_activation": True,
        "norm_affine": False,
        "tail": (rb.Layer(6, 3, 3, centred=False),),
    },
    {"stages": (rb.Stage(8, 2, 2, 5), rb.Stage(16, 1, 1, 3, 4)), "tail_reads": "all"},
]
# What has a second axis: 6 rows of it, of which the stem leaves 3.
BANDS = [
    {
        "branch": rb.Broadcast(3),
        "shortcut": "none",
        "stages": (rb.Stage(8, 1, kernel=(3, 4)), rb.Stage(16, 2, (1, 2), dilation=(1, 2))),
        "tail": (rb.Layer(16, 3, (3, 2), groups=16, centred=False), rb.Layer(5, 1)),
    }
]


def causal_net(changes: dict, dims: int) -> rb.Backbone:
    torch.manual_seed(0)
    stages = CAUSAL.stages
    if dims == 2:  # only the last axis may have an even kernel
        stages = (replace(stages[0], kernel=(3, 4)), *stages[1:])
    net = rb.Backbone(replace(CAUSAL, **{"dims": dims, "stages": stages} | changes))
    for module in net.modules():
        if isinstance(getattr(module, "running_mean", None), Tensor):
            module.running_mean.normal_()
            module.running_var.uniform_(0.5, 2)
        if isinstance(getattr(module, "bias", None), nn.Parameter):
            nn.init.normal_(module.bias)
    return net.eval()


def check_pieces_are_the_whole(net: rb.Backbone, sizes: list[int]) -> None:
    spec = net.spec
    x = torch.randn(2, spec.in_channels, *(6,) * (spec.dims - 1), sum(sizes))
    stream = net.stream()
    pieces = [stream.push(chunk) for chunk in x.split(sizes, -1)]
    pieces.append(stream.finish())
    with torch.no_grad():
        for whole, parts in zip(net(x), zip(*pieces, strict=True), strict=True):
            together = torch.cat(parts, -1)
            assert together.shape == whole.shape
            assert (together - whole).abs().max() <= 1e-5 * max(1.0, whole.abs().max())


@pytest.mark.parametrize(
    ("changes", "dims"),
    [*((changes, dims) for changes in STREAMS for dims in (1, 2)), *((c, 2) for c in BANDS)],
    ids=lambda c: "-".join(c) or "base" if isinstance(c, dict) else str(c),
)
def test_pieces_are_the_whole(changes: dict, dims: int) -> None:
    net = causal_net(changes, dims)

    @settings(max_examples=8, deadline=None)
    @given(sizes=st.lists(st.integers(0, 30), min_size=1, max_size=7).filter(any))
    def check(sizes: list[int]) -> None:
        check_pieces_are_the_whole(net, sizes)

    check()
    check_pieces_are_the_whole(net, [1] * 60)


@pytest.mark.parametrize("name", ["tcn_char", "tcn"])
def test_published_causal_nets_stream(name: str) -> None:
    check_pieces_are_the_whole(rb.backbone(name).eval(), [1, 7, 30, 2])


def test_what_a_stream_remembers_is_bounded() -> None:
    net = causal_net({}, 1)
    stream = net.stream()
    sizes = []
    for _ in range(40):
        stream.push(torch.randn(1, 4, 16))
        sizes.append(sum(kept.numel() for kept, _ in stream._context.memory.values()))
    assert max(sizes[2:]) == sizes[2]


@pytest.mark.parametrize(
    ("use", "sentence"),
    [
        (lambda net: rb.backbone("tc_resnet8").eval().stream(), "causal=True to stream"),
        (lambda net: net.train().stream(), r"call .eval\(\) first"),
        (lambda net: net.stream().finish(), "nothing was pushed"),
        (lambda net: net.stream().push(torch.zeros(1, 3, 8)), r"takes \(B, 4, T\)"),
    ],
)
def test_what_cannot_stream_is_refused(use, sentence: str) -> None:
    with pytest.raises(rb.InputError, match=sentence):
        use(causal_net({}, 1))


def test_a_finished_stream_and_another_batch_are_refused() -> None:
    stream = causal_net({}, 1).stream()
    stream.push(torch.zeros(2, 4, 8))
    with pytest.raises(rb.InputError, match="only the last axis may differ"):
        stream.push(torch.zeros(3, 4, 8))
    assert all(feature.shape[-1] == 0 for feature in stream.finish())
    with pytest.raises(rb.InputError, match="the stream is finished"):
        stream.push(torch.zeros(2, 4, 8))
