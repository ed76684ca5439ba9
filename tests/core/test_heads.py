"""From a feature to logits: pooling, linear maps, cosines."""

import copy
from typing import Any

import pytest
import torch
from torch.nn import functional

import resbackbones as rb
from resbackbones.core.heads import Classifier, Head


@pytest.mark.parametrize("pooling", ["mean", "max", "mean_max"])
def test_pooling(pooling: str) -> None:
    head = Classifier(8, 3, Head(pooling=pooling, bias=False)).eval()
    assert head.width == head.linear.weight.shape[1] == (16 if pooling == "mean_max" else 8)
    assert head.linear.bias is None
    feature = torch.randn(2, 8, 5, 4)
    parts = {"mean": feature.mean((2, 3)), "max": feature.amax((2, 3))}
    pooled = torch.cat([parts[name] for name in pooling.split("_")], 1)
    torch.testing.assert_close(head.pool(feature), pooled)
    torch.testing.assert_close(head(feature), pooled @ head.linear.weight.T)


def test_a_cosine_counts_directions_alone() -> None:
    torch.manual_seed(0)
    head = Classifier(8, 3, Head(kind="cosine")).eval()
    feature = torch.rand(4, 8, 5)
    expected = functional.cosine_similarity(feature.mean(2)[:, None], head.linear.weight[None], -1)
    torch.testing.assert_close(head(feature), 10 * expected)
    torch.testing.assert_close(head(1000 * feature), head(feature))
    with torch.no_grad():
        head.linear.weight.mul_(7)
        head.linear.scale.fill_(2.0)
    torch.testing.assert_close(head(feature), 2 * expected)
    assert set(dict(head.named_parameters())) == {"linear.weight", "linear.scale"}
    assert torch.equal(head(torch.zeros(1, 8, 5)), torch.zeros(1, 3))  # has no direction


def test_a_cosine_learns_its_scale_and_forgets_it_when_drawn_anew() -> None:
    torch.manual_seed(0)
    head = Classifier(8, 3, Head(kind="cosine"))
    before = copy.deepcopy(head.state_dict())
    functional.cross_entropy(head(torch.rand(6, 8, 5)), torch.arange(6) % 3).backward()
    torch.optim.SGD(head.parameters(), lr=1.0).step()
    assert head.linear.scale != 10 and not torch.equal(head.linear.weight, before["linear.weight"])
    head.reset_parameters()
    assert head.linear.scale == 10 and not torch.equal(head.linear.weight, before["linear.weight"])


@pytest.mark.parametrize("kind", ["linear", "cosine"])
def test_a_head_is_plain_and_reads_itself_back(kind: str) -> None:
    head = Head(pooling="max", dropout=0.1, norm="layer", kind=kind)
    assert Head.of(head.to_dict()) == head
    logits = Classifier(8, 3, head)(torch.randn(2, 8, 5).bfloat16().float())
    assert logits.shape == (2, 3) and logits.dtype == torch.float32


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        ({"kind": "cosin"}, "kind='cosin' is not known; did you mean 'cosine'"),
        ({"pooling": "sum"}, "pooling='sum' is not known"),
        ({"scale": 3}, "scale"),
    ],
    ids=str,
)
def test_wrong_heads_are_refused(options: dict[str, Any], sentence: str) -> None:
    with pytest.raises(rb.InputError, match=sentence):
        Head.of(options)
