"""From a feature to logits: pooling, linear maps, cosines."""

import copy
import weakref
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.nn import functional

import resbackbones as rb
from resbackbones.core.heads import Classifier, Head

WIDTHS = {"mean": 8, "max": 8, "mean_max": 16, "k_max": 24, "attentive": 8}


def pooled_by_hand(pooling: str, feature: Tensor, head: Classifier) -> Tensor:
    """Of one item `(C, *space)`, all of it real."""
    x = feature.flatten(1)
    if pooling == "k_max":
        rows = []
        for channel in x.tolist():
            places = sorted(sorted(range(len(channel)), key=lambda p: (-channel[p], p))[:3])
            kept = [channel[place] for place in places]
            rows += [*kept, *[0.0] * (3 - len(kept))]
        return torch.tensor(rows)
    if pooling == "attentive":
        assert head.attention is not None
        shares = (x.T @ head.attention.weight[0]).exp()
        return (x * shares).sum(1) / shares.sum()
    parts = {"mean": x.mean(1), "max": x.amax(1)}
    return torch.cat([parts[name] for name in pooling.split("_")])


def a_head(pooling: str, **options: Any) -> Classifier:
    head = Classifier(8, 3, Head(pooling=pooling, k=3, bias=False, **options)).eval()
    if head.attention is not None:
        nn.init.normal_(head.attention.weight)
    return head


@pytest.mark.parametrize("space", [(5,), (2,), (5, 4)], ids=str)
@pytest.mark.parametrize("pooling", WIDTHS)
def test_pooling(pooling: str, space: tuple[int, ...]) -> None:
    torch.manual_seed(0)
    head = a_head(pooling)
    assert head.width == head.linear.weight.shape[1] == WIDTHS[pooling]
    assert rb.count_parameters(head) == 3 * WIDTHS[pooling] + 8 * (pooling == "attentive")
    feature = torch.randn(2, 8, *space).round()  # with equal values among them
    pooled = torch.stack([pooled_by_hand(pooling, item, head) for item in feature])
    torch.testing.assert_close(head.pool(feature), pooled)
    torch.testing.assert_close(head(feature), pooled @ head.linear.weight.T)


@pytest.mark.parametrize("pooling", WIDTHS)
@given(
    lengths=st.lists(st.integers(0, 6), min_size=1, max_size=4),
    rows=st.sampled_from([(), (1,), (3,)]),
    padding=st.sampled_from([0.0, 1e4, -1e4, torch.inf, torch.nan]),
)
def test_what_is_padded_changes_no_pooling(
    pooling: str, lengths: list[int], rows: tuple[int, ...], padding: float
) -> None:
    torch.manual_seed(0)
    head = a_head(pooling, norm="layer")
    feature = torch.randn(len(lengths), 8, *rows, 6).relu()
    for item, length in zip(feature, lengths, strict=True):
        item[..., length:] = padding
    together = head(feature, torch.tensor(lengths))
    assert together.isfinite().all()
    for row, length in enumerate(lengths):
        if length:  # nothing is no input alone
            alone = head(feature[row : row + 1, ..., :length])
            torch.testing.assert_close(together[row : row + 1], alone, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("pooling", WIDTHS)
@given(sizes=st.lists(st.integers(1, 7), min_size=1, max_size=6))
def test_pieces_pool_to_what_the_whole_pools_to(pooling: str, sizes: list[int]) -> None:
    torch.manual_seed(0)
    head = a_head(pooling, norm="layer")
    feature = torch.randn(2, 8, sum(sizes)).round()  # with equal values among them
    pooled = head.pool_pieces(iter(feature.split(sizes, -1)))
    torch.testing.assert_close(pooled, head.pool(feature))


@pytest.mark.parametrize("pooling", WIDTHS)
def test_pooling_pieces_lets_each_go(pooling: str) -> None:
    alive: weakref.WeakSet[Tensor] = weakref.WeakSet()

    def pieces() -> Iterator[Tensor]:
        for _ in range(9):
            piece = torch.randn(1, 8, 20)
            alive.add(piece)
            assert len(alive) <= 3  # it, and the two before at most
            yield piece

    with torch.no_grad():
        assert a_head(pooling).pool_pieces(pieces()).isfinite().all()


@pytest.mark.parametrize("pooling", WIDTHS)
def test_poolings_learn_without_a_nan_where_items_are_empty(pooling: str) -> None:
    torch.manual_seed(0)
    head = a_head(pooling)
    feature = torch.randn(2, 8, 5, requires_grad=True)
    head(feature, torch.tensor([0, 3])).square().sum().backward()
    assert feature.grad is not None and all(
        p.grad is not None and p.grad.isfinite().all() and p.grad.any() for p in head.parameters()
    )
    assert feature.grad.isfinite().all() and not feature.grad[0].any()
    assert feature.grad[1, :, :3].any() and not feature.grad[1, :, 3:].any()


def test_attention_starts_as_the_mean_and_again_when_drawn_anew() -> None:
    head = Classifier(8, 3, Head(pooling="attentive"))
    feature = torch.randn(2, 8, 5)
    torch.testing.assert_close(head.pool(feature), feature.mean(2))
    nn.init.normal_(head.attention.weight)  # type: ignore[union-attr]
    head.reset_parameters()
    torch.testing.assert_close(head.pool(feature), feature.mean(2))


@pytest.mark.parametrize("pooling", WIDTHS)
def test_poolings_in_half_precision_sum_in_single(pooling: str) -> None:
    head = a_head(pooling).half()
    feature = torch.full((1, 8, 70_000), 1.0, dtype=torch.float16)
    pooled = head.pool(feature, torch.tensor([66_000]))  # more than float16 counts to
    assert pooled.dtype == torch.float16 and torch.equal(pooled, torch.ones_like(pooled))


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
        ({"pooling": "k_max", "k": 0}, "k=0; use whole numbers of 1 or more"),
        ({"scale": 3}, "scale"),
    ],
    ids=str,
)
def test_wrong_heads_are_refused(options: dict[str, Any], sentence: str) -> None:
    with pytest.raises(rb.InputError, match=sentence):
        Head.of(options)
