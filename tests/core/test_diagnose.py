"""The measurements have the signs the literature reports, and leave the net as it was."""

import copy
import math

import pytest
import torch
from torch import nn

import resbackbones as rb
from resbackbones.core.diagnose import BlockGradient, gradient_ratio


def deep_net(seed: int, **changes: str) -> tuple[rb.Backbone, torch.Tensor]:
    """Depth 110, 16 channels, on noise of 8 x 8."""
    torch.manual_seed(seed)
    spec = rb.BackboneSpec((rb.Stage(16, 54),), stem=rb.Stem(16), **changes)
    return rb.Backbone(spec), torch.randn(32, 3, 8, 8)


def ratio(seed: int, **changes: str) -> float:
    return gradient_ratio(rb.diagnose.gradient_profile(*deep_net(seed, **changes)))


@pytest.mark.parametrize("seed", range(3))
def test_three_signs_at_depth_110(seed: int) -> None:
    assert ratio(seed, skip="none") > 1e4  # plain + batch norm explodes
    assert 1e-2 < ratio(seed) < 1e2  # residual + batch norm stays within two orders
    assert ratio(seed, skip="none", norm="none") < 1  # plain without norm does not explode


def test_skips_keep_neighbouring_gradients_alike() -> None:
    plain = rb.diagnose.gradient_correlation(*deep_net(0, skip="none"))
    residual = rb.diagnose.gradient_correlation(*deep_net(0))
    assert abs(plain) < 0.1
    assert residual > 0.3


@pytest.mark.parametrize("measure", ["gradient_profile", "gradient_correlation"])
def test_state_is_restored(measure: str) -> None:
    net = rb.backbone("resnet20", dropout=0.1).eval()
    net.stages[1].train()
    x = torch.randn(4, 3, 8, 8)
    net(x)[-1].sum().backward()
    gradients = [p.grad.clone() for p in net.parameters()]
    modes = [m.training for m in net.modules()]
    state = copy.deepcopy(net.state_dict())
    random_state = torch.get_rng_state()
    first = getattr(rb.diagnose, measure)(net, x)
    assert first == getattr(rb.diagnose, measure)(net, x)
    assert torch.equal(torch.get_rng_state(), random_state)
    assert modes == [m.training for m in net.modules()]
    for name, tensor in net.state_dict().items():
        assert torch.equal(tensor, state[name]), name
    for parameter, gradient in zip(net.parameters(), gradients, strict=True):
        assert torch.equal(parameter.grad, gradient)


def test_profile_follows_a_given_loss_and_model() -> None:
    model = nn.Sequential(rb.backbone("resnet20"))
    x = torch.randn(2, 3, 8, 8)

    def loss(features: tuple[torch.Tensor, ...]) -> torch.Tensor:
        return features[0].square().mean()

    profile = rb.diagnose.gradient_profile(model, x, loss=loss)
    assert [g.name for g in profile] == [f"0.{n}" for n, _ in model[0].blocks]
    # The loss looks at the first stage only: later blocks get nothing.
    assert all(g.norm > 0 for g in profile[:3])
    assert all(g.norm == 0 for g in profile[3:])
    twice = rb.diagnose.gradient_profile(model, x, loss=lambda f: 2 * loss(f))
    assert twice[0].norm == pytest.approx(2 * profile[0].norm, rel=1e-4)


def test_lesion_cuts_one_block_at_a_time() -> None:
    torch.manual_seed(0)
    x = torch.randn(4, 3, 8, 8)
    for skip, blocks in (("identity", 9), ("none", 7)):  # two of nine change the shape
        net = rb.backbone("resnet20", skip=skip).eval()
        state = copy.deepcopy(net.state_dict())
        seen: list[torch.Tensor] = []

        def evaluate(model: nn.Module, x: torch.Tensor = x, seen: list = seen) -> float:
            with torch.no_grad():
                seen.append(model(x)[-1])
            return seen[-1].mean().item()

        results = rb.diagnose.lesion(net, evaluate)
        assert [name for name, _ in results][:2] == ["", "stages.0.blocks.0"]
        assert len(results) == 1 + blocks
        assert [value for _, value in results] == [feature.mean().item() for feature in seen]
        assert all((feature - seen[0]).abs().max() > 0 for feature in seen[1:])
        with torch.no_grad():  # the hooks are gone, and nothing has changed
            assert torch.equal(net(x)[-1], seen[0])
            # The second block without its branch: what came in, through the activation.
            inside = net.stages[0].blocks[0](net.stem(x))
            expected = net.stages[0].blocks[2](inside.relu())
            expected = net.stages[2](net.stages[1](expected))
        torch.testing.assert_close(seen[2], expected)
        assert all(torch.equal(value, state[name]) for name, value in net.state_dict().items())


def test_a_net_without_blocks_is_refused() -> None:
    with pytest.raises(rb.InputError, match="no residual block"):
        rb.diagnose.gradient_profile(nn.Linear(2, 2), torch.zeros(1, 2))


def test_ratio_of_nothing_is_vanished() -> None:
    def of(first: float, last: float) -> float:
        return gradient_ratio([BlockGradient("first", first), BlockGradient("last", last)])

    assert of(0, 0) == 0
    assert of(0, 1) == 0
    assert of(1, 0) == math.inf
    assert of(6, 2) == 3
