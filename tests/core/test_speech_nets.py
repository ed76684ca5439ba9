"""The speech nets of the zoo compute what their papers say, written out in plain torch."""

import pytest
import torch
from torch import nn

import resbackbones as rb
from tests.core.test_zoo import COUNTS, ECAPA_HEAD, randomise


@pytest.mark.parametrize(("name", "published"), [("ecapa512", 6.19), ("ecapa1024", 14.65)])
def test_ecapa_without_the_norms_that_some_leave_out(name: str, published: float) -> None:
    """Where none follows the aggregation and the hidden layer of the attention: 3,328 fewer, which
    is what is published as 6.19 and 14.65 million. SpeechBrain's has both, and so has ours."""
    with torch.device("meta"):
        net = rb.backbone(name, tail=(rb.Layer(1536, 1, norm=False, bias=True),))
    total = rb.count_parameters(net) + ECAPA_HEAD - 2 * 128
    assert total == COUNTS[name][2] + ECAPA_HEAD - 2 * 128 - 2 * 1536
    assert total == {"ecapa512": 6_190_720, "ecapa1024": 14_657_088}[name]
    assert abs(total / 1e6 - published) < 0.01


@pytest.mark.parametrize("name", ["bc_resnet1", "res8", "res15", "resnet34_tstp", "ecapa512"])
def test_speech_nets_have_plain_twins(name: str) -> None:
    """The same branches; only ResNet34 has shortcuts with weights."""
    net, plain = rb.backbone(name), rb.backbone(name, skip="none")
    projections = sum(
        a * b + 2 * b for a, b in ((32, 64), (64, 128), (128, 256)) if name == "resnet34_tstp"
    )
    assert plain.parameter_difference == projections and net.parameter_difference == 0
    assert [b.skip for _, b in plain.blocks] == [False] * len(net.blocks)
    alone = {i for i, (_, b) in enumerate(net.blocks) if not b.skip}
    assert alone == ({0, 2, 4, 8} if name == "bc_resnet1" else set())
    size = (40, 33) if net.spec.dims == 2 else (33,)
    x = torch.randn(2, net.spec.in_channels, *size)
    for each in (net, plain):
        profile = rb.diagnose.gradient_profile(each, x)
        assert all(1e-6 < gradient.norm < 1e6 for gradient in profile)


def test_bc_resnet_is_the_published_one() -> None:
    """Kim et al. 2021, table 1 and equations 2 to 4, of 40 bands by 101 frames."""
    torch.manual_seed(0)
    net = rb.backbone("bc_resnet1").eval()
    randomise(net)
    x = torch.randn(2, 1, 40, 101)
    sizes = [(8, 20, 101), (12, 10, 101), (16, 5, 101), (32, 1, 101)]
    assert [tuple(feature.shape[1:]) for feature in net(x)] == sizes
    assert net.receptive_field == 117  # more than the second that a word takes

    def conv(x: torch.Tensor, module: nn.Conv2d, **options: object) -> torch.Tensor:
        return nn.functional.conv2d(x, module.weight, **options)

    def norm(x: torch.Tensor, own: nn.BatchNorm2d, bands: int = 1) -> torch.Tensor:
        """Each band as if its channels were others."""
        outs = []
        for band, part in enumerate(x.chunk(bands, 2)):
            mean, var, weight, bias = (
                getattr(own, name).view(-1, bands)[:, band]
                for name in ("running_mean", "running_var", "weight", "bias")
            )
            outs.append(nn.functional.batch_norm(part, mean, var, weight, bias))
        return torch.cat(outs, 2)

    # The first blocks of the third stage: a transition that halves frequency, and a normal block.
    y = torch.randn(2, 12, 10, 33)
    for block, stride in zip((b for _, b in net.blocks[4:6]), (2, 1), strict=True):
        convs = [m for m in block.modules() if isinstance(m, nn.Conv2d)]
        norms = [m for m in block.modules() if isinstance(m, nn.BatchNorm2d)]
        inside = y
        if stride == 2:
            inside = norm(conv(y, convs.pop(0)), norms.pop(0)).relu()
        frequency, time, across = convs
        f2 = conv(inside, frequency, stride=(stride, 1), padding=(1, 0), groups=16)
        f2 = norm(f2, norms[0], bands=5)
        f1 = conv(f2.mean(2, keepdim=True), time, dilation=(1, 4), padding=(0, 4), groups=16)
        f1 = conv(nn.functional.silu(norm(f1, norms[1])), across)
        expected = (f2 + f1 + (y if stride == 1 else 0)).relu()
        y = block(y)
        torch.testing.assert_close(y, expected)
    # Five rows are left, and the tail reads them without padding.
    y = torch.randn(2, 20, 5, 33)
    depthwise, pointwise = (m for m in net.tail.modules() if isinstance(m, nn.Conv2d))
    (own,) = (m for m in net.tail.modules() if isinstance(m, nn.BatchNorm2d))
    y_tail = conv(y, depthwise, padding=(0, 2), groups=20)
    assert y_tail.shape[2] == 1
    torch.testing.assert_close(net.tail(y), norm(conv(y_tail, pointwise), own).relu())


@pytest.mark.parametrize(
    ("name", "maps", "depth"),
    [("res8", 45, 6), ("res15", 45, 13), ("res8_narrow", 19, 6), ("res15_narrow", 19, 13)],
)
def test_res_is_the_published_one(name: str, maps: int, depth: int) -> None:
    """Tang & Lin 2018, section 3.1: convolutions without biases, each behind its ReLU; every second
    one adds what the norm before it had not seen; what goes on is normalised without weights."""
    torch.manual_seed(0)
    net = rb.backbone(name).eval()
    randomise(net)
    convs = [m for m in net.modules() if isinstance(m, nn.Conv2d)]
    norms = [m for m in net.modules() if isinstance(m, nn.BatchNorm2d)]
    assert len(convs) == depth + 1 and len(norms) == depth
    # In the order they run: each norm follows the convolution whose output it sees.
    assert all(c.bias is None and c.weight.shape[0] == maps for c in convs)
    deep = name.startswith("res15")
    assert [c.dilation[0] for c in convs[1:]] == [
        2 ** (i // 3) if deep else 1 for i in range(depth)
    ]
    x = torch.randn(2, 1, 39, 100)

    def plain(x: torch.Tensor) -> torch.Tensor:
        x = nn.functional.conv2d(x, convs[0].weight, padding=1).relu()
        if not deep:
            x = nn.functional.avg_pool2d(x, (3, 4))
        old = x
        for index in range(1, depth + 1):
            pad = convs[index].dilation
            y = nn.functional.conv2d(x, convs[index].weight, padding=pad, dilation=pad).relu()
            if index % 2 == 0:
                y = old = y + old
            own = norms[index - 1]
            x = nn.functional.batch_norm(y, own.running_mean, own.running_var)
        return x

    with torch.no_grad():
        torch.testing.assert_close(net(x)[-1], plain(x), rtol=1e-4, atol=1e-4)
