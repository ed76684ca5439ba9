"""A branch and a spec of one's own, from outside the package: every promise holds for them."""

from pathlib import Path

import pytest
import torch

import resbackbones as rb
from resbackbones.core import BRANCHES
from resbackbones.vision import ResidualForImageClassification


def hourglass(channels, kernel, stride, dilation, bottleneck_ratio):
    """Wide first, narrow inside, wide again: spatial convolutions at both ends."""
    inner = max(1, int(channels * bottleneck_ratio))
    return (
        rb.Layer(inner, kernel, stride, dilation),
        rb.Layer(channels, kernel, 1, dilation, activation=False),
    )


@pytest.fixture
def spec(monkeypatch: pytest.MonkeyPatch) -> rb.BackboneSpec:
    monkeypatch.setitem(BRANCHES, "hourglass", hourglass)
    stages = (rb.Stage(16, 2), rb.Stage(32, 2, stride=2))
    spec = rb.BackboneSpec(stages, stem=rb.Stem(16), branch="hourglass", bottleneck_ratio=0.5)
    monkeypatch.setitem(rb.SPECS, "hourglass10", spec)
    return spec


@pytest.mark.parametrize("dims", [1, 2])
@pytest.mark.parametrize(
    "changes", [{}, {"order": "pre"}, {"skip": "none"}, {"causal": True}], ids=str
)
def test_it_builds_runs_and_keeps_the_padding_promise(spec, dims: int, changes: dict) -> None:
    torch.manual_seed(0)
    net = rb.backbone("hourglass10", dims=dims, in_channels=4, **changes).eval()
    lengths = torch.tensor([17, 6, 11])
    x = torch.randn(3, 4, *(8,) * (dims - 1), 17)
    together = net(x, lengths)
    assert [f.shape[1] for f in together] == list(net.channels) == [16, 32]
    for index, length in enumerate(lengths.tolist()):
        alone = net(x[index : index + 1, ..., :length])
        for feature, single in zip(together, alone, strict=True):
            real = feature[index : index + 1, ..., : single.shape[-1]]
            torch.testing.assert_close(real, single, atol=1e-5, rtol=1e-5)
    sum(feature.square().mean() for feature in together).backward()
    assert all(p.grad.isfinite().all() for p in net.parameters())
    assert rb.diagnose.gradient_profile(net, x)[0].norm > 0


def test_it_is_checked_like_any_other(spec) -> None:
    assert rb.BackboneSpec.from_dict(spec.to_dict()) == spec
    with pytest.raises(rb.InputError, match="the hourglass branch does not read it"):
        rb.backbone("hourglass10", repeats=3)
    with pytest.raises(rb.InputError, match="dead net"):
        rb.backbone("hourglass10", skip="none", init="zero_last")


def test_it_builds_saves_and_loads(spec, tmp_path: Path) -> None:
    model = ResidualForImageClassification.build("hourglass10", num_labels=3).eval()
    model.save_pretrained(tmp_path)
    loaded = ResidualForImageClassification.from_pretrained(tmp_path)
    x = torch.randn(2, 3, 20, 20)
    assert torch.equal(model(x).logits, loaded(x).logits)
