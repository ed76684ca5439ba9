"""A whitened stem: what its outputs' covariance is, and what it leaves alone."""

import pytest
import torch

import resbackbones as rb
from resbackbones.errors import InputError
from resbackbones.vision import whiten_stem


def smooth(count: int, side: int = 33, channels: int = 3) -> torch.Tensor:
    """Noise whose neighbouring pixels and channels go together, as those of photographs."""
    generator = torch.Generator().manual_seed(0)
    noise = torch.randn(count, 1, side, side, generator=generator)
    fine = torch.randn(count, channels, side, side, generator=generator)
    return torch.nn.functional.avg_pool2d(noise, 5, 1, 2) * 3 + 0.3 * fine


def first_convolution(net: torch.nn.Module) -> torch.nn.Conv2d:
    return next(module for module in net.modules() if isinstance(module, torch.nn.Conv2d))


def outputs(net: torch.nn.Module, x: torch.Tensor) -> torch.Tensor:
    """Of the first convolution at the patches it was whitened on, `(N, channels)`."""
    conv = first_convolution(net)
    y = torch.nn.functional.conv2d(x, conv.weight, stride=conv.kernel_size)
    return y.transpose(0, 1).flatten(1).T.detach()


def test_outputs_are_alike_and_uncorrelated() -> None:
    net, x = rb.backbone("resnet14_small"), smooth(400)
    before = first_convolution(net).weight.detach().clone()
    assert whiten_stem(net, x) == 54
    after = first_convolution(net).weight
    assert torch.equal(after[54:], before[54:])
    assert torch.equal(after[:54:2], -after[1:54:2])
    found = torch.cov(outputs(net, x).T)[:54:2, :54:2]
    # The variances are 1 but for what is added to them: of the weakest component by 5e-4 of 0.09.
    assert torch.allclose(found, torch.eye(27), atol=0.01)
    norms = after[:54:2].flatten(1).norm(dim=1)
    assert bool((norms[:-1] <= norms[1:] + 1e-6).all())  # the strongest component first


def test_of_more_components_than_channels_the_strongest_are_taken() -> None:
    net, x = rb.backbone("resnet18"), smooth(100, 42)
    assert whiten_stem(net, x) == 64  # of 2 x 147
    found = torch.cov(outputs(net, x).T)[::2, ::2]
    assert torch.allclose(found.diagonal(), torch.ones(32), atol=0.01)


def test_images_of_other_channels() -> None:
    net = rb.backbone("resnet20", in_channels=1)
    assert whiten_stem(net, smooth(50, channels=1)) == 16


def test_a_single_patch_gives_finite_filters() -> None:
    net = rb.backbone("resnet14_small")
    whiten_stem(net, torch.ones(1, 3, 3, 3))
    assert bool(first_convolution(net).weight.isfinite().all())


def test_what_cannot_be_whitened() -> None:
    net = rb.backbone("resnet18")
    with pytest.raises(InputError, match="images of 6x6 pixels are smaller than the 7x7 patches"):
        whiten_stem(net, torch.zeros(4, 3, 6, 6))
    first_convolution(net).groups = 3
    with pytest.raises(InputError, match="has 3 groups"):
        whiten_stem(net, torch.zeros(4, 3, 32, 32))
