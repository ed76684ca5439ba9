"""From a feature to logits: pooling, linear maps, cosines."""

import copy
import math
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
from resbackbones.core.heads import (
    AttentiveStatistics,
    Classifier,
    Embedder,
    Head,
    margin_loss,
)
from resbackbones.core.ops import masked_statistics

WIDTHS = {"mean": 8, "max": 8, "mean_max": 16, "k_max": 24, "attentive": 8}
WIDTHS |= {"statistics": 16, "attentive_statistics": 16}
OF_ATTENTION = {"attentive": 8, "attentive_statistics": 128 * (3 * 8 + 1) + 2 * 128 + 129 * 8}
IN_PIECES = [name for name in WIDTHS if name != "attentive_statistics"]


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
    if pooling == "statistics":
        deviation = (x.var(1) + 1e-7).sqrt() if x.shape[1] > 1 else torch.full((8,), 1e-7).sqrt()
        return torch.cat([x.mean(1), deviation])
    if pooling == "attentive_statistics":
        assert isinstance(head.attention, AttentiveStatistics)
        return attended(x[None], head.attention)[0]
    if pooling == "attentive":
        assert isinstance(head.attention, nn.Linear)
        shares = (x.T @ head.attention.weight[0]).exp()
        return (x * shares).sum(1) / shares.sum()
    parts = {"mean": x.mean(1), "max": x.amax(1)}
    return torch.cat([parts[name] for name in pooling.split("_")])


def attended(x: Tensor, attention: AttentiveStatistics) -> Tensor:
    """Of `(B, C, N)`, all real, as the paper writes it: nothing is mapped apart."""
    deviation = x.var(2, correction=0, keepdim=True).clamp(min=1e-12).sqrt()
    context = [x, x.mean(2, keepdim=True).expand_as(x), deviation.expand_as(x)]
    hidden = attention.hidden(torch.cat(context, 1).movedim(1, -1)).relu().movedim(-1, 1)
    scores = attention.scores(attention.norm(hidden).tanh().movedim(1, -1)).movedim(-1, 1)
    shares = scores.softmax(2)
    mean = (x * shares).sum(2)
    variance = (x.square() * shares).sum(2) - mean.square()
    return torch.cat([mean, variance.clamp(min=1e-12).sqrt()], 1)


def a_head(pooling: str, **options: Any) -> Classifier:
    head = Classifier(8, 3, Head(pooling=pooling, k=3, bias=False, **options)).eval()
    if isinstance(head.attention, nn.Linear):
        nn.init.normal_(head.attention.weight)
    elif head.attention is not None:
        head.attention.norm.running_mean.normal_()
        head.attention.norm.running_var.uniform_(0.5, 2)
    return head


@pytest.mark.parametrize("space", [(5,), (2,), (5, 4)], ids=str)
@pytest.mark.parametrize("pooling", WIDTHS)
def test_pooling(pooling: str, space: tuple[int, ...]) -> None:
    torch.manual_seed(0)
    head = a_head(pooling)
    assert head.width == head.linear.weight.shape[1] == WIDTHS[pooling]
    assert rb.count_parameters(head) == 3 * WIDTHS[pooling] + OF_ATTENTION.get(pooling, 0)
    feature = torch.randn(2, 8, *space).round()  # with equal values among them
    pooled = torch.stack([pooled_by_hand(pooling, item, head) for item in feature])
    torch.testing.assert_close(head.pool(feature), pooled, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(head(feature), pooled @ head.linear.weight.T, rtol=1e-5, atol=1e-5)


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


@pytest.mark.parametrize("pooling", IN_PIECES)
@given(sizes=st.lists(st.integers(1, 7), min_size=1, max_size=6))
def test_pieces_pool_to_what_the_whole_pools_to(pooling: str, sizes: list[int]) -> None:
    torch.manual_seed(0)
    head = a_head(pooling, norm="layer")
    feature = torch.randn(2, 8, sum(sizes)).round()  # with equal values among them
    pooled = head.pool_pieces(iter(feature.split(sizes, -1)))
    torch.testing.assert_close(pooled, head.pool(feature))


@pytest.mark.parametrize("pooling", IN_PIECES)
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
        p.grad is not None
        and p.grad.isfinite().all()
        and (p.grad.any() or name == "attention.scores.bias")
        for name, p in head.named_parameters()  # that bias changes no softmax
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
    expected = torch.ones(WIDTHS[pooling])
    if "statistics" in pooling:
        expected[8:] = 0.0
    assert pooled.dtype == torch.float16
    torch.testing.assert_close(pooled[0].float(), expected, rtol=0, atol=1e-3)


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
        ({"rows": 0}, "rows=0; use whole numbers of 1 or more"),
    ],
    ids=str,
)
def test_wrong_heads_are_refused(options: dict[str, Any], sentence: str) -> None:
    with pytest.raises(rb.InputError, match=sentence):
        Head.of(options)


@pytest.mark.parametrize("pooling", list(WIDTHS))
def test_rows_are_pooled_each_by_itself(pooling: str) -> None:
    torch.manual_seed(0)
    head = a_head(pooling, rows=4)
    assert head.width == 4 * WIDTHS[pooling]
    feature, lengths = torch.randn(2, 8, 4, 6), torch.tensor([6, 3])
    if head.attention is None:  # which looks at all rows to weigh one
        by_row = [a_head(pooling).pool(feature[:, :, row], lengths) for row in range(4)]
        last = 3 if pooling == "k_max" else 1  # the k values of a channel stand together
        stacked = torch.stack([each.view(2, -1, 8, last) for each in by_row], 3)
        torch.testing.assert_close(head.pool(feature, lengths), stacked.flatten(1))
    with pytest.raises(rb.InputError, match=r"pools 4 rows, but a feature .* has 5"):
        head.pool(torch.randn(2, 8, 5, 6))


def test_statistics_are_those_of_temporal_statistics_pooling() -> None:
    """Of each channel and frequency, over time: unbiased, 1e-7 under the root, means first."""
    torch.manual_seed(0)
    feature = torch.randn(3, 8, 10, 20)
    head = Classifier(8, 3, Head(pooling="statistics", rows=10))
    mean, variance = feature.mean(-1).flatten(1), feature.var(-1).flatten(1)
    torch.testing.assert_close(head.pool(feature), torch.cat([mean, (variance + 1e-7).sqrt()], 1))
    one = masked_statistics(feature, torch.tensor([1, 1, 1]))[:, 8:]
    assert not torch.equal(one, one[:, :1].expand_as(one))  # of one frame: ten frequencies
    alone = masked_statistics(feature.flatten(1, 2), torch.tensor([1, 1, 1]))[:, 80:]
    torch.testing.assert_close(alone, torch.full_like(alone, 1e-7**0.5))


def test_attention_is_trained_on_real_positions_alone() -> None:
    torch.manual_seed(0)
    together, alone = (AttentiveStatistics(8) for _ in range(2))
    alone.load_state_dict(together.state_dict())
    x = torch.randn(1, 8, 12)
    padded = torch.nn.functional.pad(x, (0, 5), value=torch.nan)
    torch.testing.assert_close(together(padded, torch.tensor([12])), alone(x))
    for name, value in alone.state_dict().items():
        torch.testing.assert_close(together.state_dict()[name], value)


def test_attentive_statistics_cannot_be_pooled_in_pieces() -> None:
    head = a_head("attentive_statistics")
    with pytest.raises(rb.InputError, match="look at the whole input before they weigh a part"):
        head.pool_pieces([torch.randn(1, 8, 5)])


@pytest.mark.parametrize(
    ("channels", "head", "size", "count"),
    [
        # What ECAPA has behind its 1536 channels, by 512 or 1024 before them.
        (1536, Head("attentive_statistics", norm="batch"), 192, 788_352 + 6_144 + 590_016),
        # WeSpeaker's ResNet34: 256 channels by 10 frequencies.
        (256, Head("statistics", rows=10), 256, 5120 * 256 + 256),
    ],
    ids=["ECAPA", "ResNet34-TSTP"],
)
def test_published_heads_have_their_parameters(
    channels: int, head: Head, size: int, count: int
) -> None:
    embedder = Embedder(channels, size, 2, head)
    directions = 2 * size
    assert rb.count_parameters(embedder) - directions == count


def test_an_embedder_embeds_linearly_and_compares_by_cosine() -> None:
    torch.manual_seed(0)
    embedder = Embedder(8, 5, 3, Head(pooling="statistics", norm="batch")).eval()
    feature = torch.randn(4, 8, 6)
    embeddings = embedder(feature)
    torch.testing.assert_close(embeddings, embedder.embedding(embedder.pool(feature)))
    expected = functional.cosine_similarity(embeddings[:, None], embedder.directions[None], -1)
    torch.testing.assert_close(embedder.cosines(embeddings), expected)
    before = {name: value.clone() for name, value in embedder.state_dict().items()}
    embedder.reset_parameters()
    changed = {n for n, v in embedder.state_dict().items() if not torch.equal(v, before[n])}
    assert changed == {"directions"}
    with torch.autocast("cpu", torch.bfloat16):
        assert embedder.cosines(embeddings).dtype == torch.float32
    with pytest.raises(rb.InputError, match="kind='cosine' is of classifiers"):
        Embedder(8, 5, 3, Head(kind="cosine"))


@given(
    degrees=st.floats(0, 180),
    margin=st.floats(0, 1.5),
    scale=st.floats(1, 64),
    rival=st.floats(-1, 1),
)
def test_a_margin_widens_the_angle_to_the_own_class(
    degrees: float, margin: float, scale: float, rival: float
) -> None:
    angle = math.radians(degrees)
    own = math.cos(angle)
    wider = (
        math.cos(angle + margin) if angle + margin < math.pi else own - margin * math.sin(margin)
    )
    loss = margin_loss(torch.tensor([[rival, own]]), torch.tensor([1]), margin, scale)
    expected = (
        math.log1p(math.exp(scale * (rival - wider)))
        if scale * (rival - wider) < 50
        else scale * (rival - wider)
    )
    assert float(loss) == pytest.approx(expected, rel=1e-3, abs=1e-3 * scale)


def test_a_margin_asks_more_everywhere_and_falls_steadily() -> None:
    cosines = torch.linspace(-1, 1, 2001, requires_grad=True)
    rows = torch.stack([torch.zeros(2001), cosines], 1)
    losses = torch.stack([margin_loss(row[None], torch.tensor([1]), 0.2, 30.0) for row in rows])
    assert (losses.diff() <= 0).all()  # the nearer, the better, also beyond pi - margin
    plain = torch.stack([margin_loss(row[None], torch.tensor([1]), 0.0, 30.0) for row in rows])
    assert (losses >= plain).all()
    (slopes,) = torch.autograd.grad(losses.sum(), cosines)
    assert slopes.isfinite().all() and (slopes <= 0).all()


def test_a_speaker_of_nobody_is_left_out_of_the_loss() -> None:
    cosines = torch.rand(3, 4)
    whole = margin_loss(cosines, torch.tensor([1, -100, 3]), 0.2, 30.0)
    torch.testing.assert_close(whole, margin_loss(cosines[[0, 2]], torch.tensor([1, 3]), 0.2, 30.0))
