"""Counted n-grams are those of the paper, to the digit."""

from collections import Counter
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from resbackbones.errors import InputError
from resbackbones.ngrams import KneserNey, kneser_ney

SHAKESPEARE = Path(__file__).parents[3] / "shared" / "data" / "tinyshakespeare"
Gram = tuple[int, ...]


def by_the_paper(tokens: list[int], order: int) -> dict[int, Counter[Gram]]:
    """How often each gram counts, by its length: the longest as they stand, a shorter one once for
    each different token before it."""
    stand = {n: Counter(zip(*(tokens[i:] for i in range(n)), strict=False)) for n in range(1, 12)}
    counts = {order: stand[order]}
    for length in range(1, order):
        counts[length] = Counter(gram[1:] for gram in stand[length + 1])
        for gram in stand[length]:
            counts[length].setdefault(gram, 0)
    return counts


def told(counts: dict[int, Counter[Gram]], vocab_size: int, history: Gram, token: int) -> float:
    """The probability of a token after these, by recursion."""
    found = 1 / vocab_size
    for length in range(1, len(history) + 2):
        context = history[len(history) - length + 1 :]
        inside = {g: c for g, c in counts[length].items() if g[:-1] == context}
        whole = sum(inside.values())
        if not whole:
            continue  # never seen before any token: the shorter context tells
        n = [sum(c == k for c in counts[length].values()) for k in range(5)]
        taken = [0.0, 0.5, 1.0, 1.5]  # where the counts tell none
        if min(n[1:]):
            share = n[1] / (n[1] + 2 * n[2])
            formula = [k - (k + 1) * share * n[k + 1] / n[k] for k in (1, 2, 3)]
            taken = taken if min(formula) <= 0 else [0.0, *formula]
        count = inside.get((*context, token), 0)
        rest = sum(taken[min(c, 3)] for c in inside.values())
        found = (count - taken[min(count, 3)] + rest * found) / whole
    return found


@settings(deadline=None, max_examples=30)
@given(
    tokens=st.lists(st.integers(0, 3), min_size=6, max_size=200),
    order=st.integers(1, 4),
    history=st.lists(st.integers(0, 4), min_size=3, max_size=3),
)
def test_it_tells_what_the_paper_tells(tokens: list[int], order: int, history: list[int]) -> None:
    ngrams = KneserNey.fit(torch.tensor(tokens), 5, order)
    assert ngrams.order == order
    before = torch.tensor(history[: order - 1], dtype=torch.int64)
    found, known = ngrams(before, torch.arange(5))
    counts = by_the_paper(tokens, order)
    wanted = [told(counts, 5, tuple(history[: order - 1]), token) for token in range(5)]
    assert found.tolist() == pytest.approx(wanted, rel=1e-5)
    assert float(found.sum()) == pytest.approx(1, rel=1e-5) and float(found.min()) > 0
    ends = [tuple(history[: order - 1][start:]) for start in range(order - 1)]
    text = "".join(map(str, tokens))
    longest = max((len(e) for e in ends if "".join(map(str, e)) in text), default=0)
    assert int(known) == longest


def test_where_nothing_stands_nothing_is_known() -> None:
    ngrams = KneserNey.fit(torch.tensor([0, 1, 2] * 20), 3, 3)
    row = torch.tensor([[0, 1, 2, 0]])
    history = ngrams.history(row)
    assert history.tolist() == [[[-1, 0], [0, 1], [1, 2], [2, 0]]]
    assert ngrams(history, torch.arange(3))[1].tolist() == [[1, 2, 2, 2]]
    further = ngrams.history(row[:, :1], torch.tensor([[1, 2]]))
    assert further.tolist() == [[[2, 0]]]
    nothing, known = ngrams(torch.tensor([-1, -1]), torch.arange(3))
    assert int(known) == 0 and nothing.tolist() == pytest.approx([1 / 3] * 3, rel=0.1)


def test_a_long_row_is_told_in_pieces(monkeypatch: pytest.MonkeyPatch) -> None:
    row = torch.randint(3, (100,), generator=torch.Generator().manual_seed(0))
    ngrams = KneserNey.fit(row, 3, 3)
    whole = ngrams.nats(row)
    found, _ = ngrams(ngrams.history(row[None, :-1]), row[None, 1:, None])
    assert whole == pytest.approx(-float(found.log().mean()), rel=1e-5)
    for piece in (1, 7, 98, 99):
        monkeypatch.setattr(kneser_ney, "PIECE", piece)
        assert ngrams.nats(row) == pytest.approx(whole, rel=1e-6)


def test_the_order_is_the_one_that_tells_others_best() -> None:
    noise = torch.randint(30, (6000,), generator=torch.Generator().manual_seed(0)).tolist()
    row = [0, 1]
    for drawn in noise:  # the two before tell, nine times in ten
        row.append(drawn if drawn < 3 else (row[-1] + 2 * row[-2]) % 3)
    text = torch.tensor(row)
    best = KneserNey.fit_best(text[:4000], 3, text[4000:])
    nats = [KneserNey.fit(text[:4000], 3, order).nats(text[4000:]) for order in range(1, 6)]
    assert best.order == 3 == 1 + nats.index(min(nats))
    assert KneserNey.fit_best(torch.tensor([1, 2]), 3, torch.tensor([1, 2])).order == 2
    for order in (0, 3):
        with pytest.raises(InputError, match=f"2 tokens have no n-grams of {order}; give an order"):
            KneserNey.fit(torch.tensor([1, 2]), 3, order)
    with pytest.raises(InputError, match="tokens run from 1 to 3, but a vocabulary of 3 ends at 2"):
        KneserNey.fit(torch.tensor([1, 3]), 3, 2)
    with pytest.raises(InputError, match="a text of 1 tokens has none to tell; give 2 or more"):
        best.nats(text[:1])


def test_probabilities_stay_exact_in_a_model_of_half_precision() -> None:
    text = torch.randint(50, (3000,), generator=torch.Generator().manual_seed(0))
    ngrams = KneserNey.fit(text, 50, 3)
    wanted, _ = ngrams(text[:2], torch.arange(50))
    for found in (ngrams.bfloat16(), ngrams.half(), ngrams.to(torch.float64)):
        assert found.shares.dtype == torch.float32
        assert torch.equal(found(text[:2], torch.arange(50))[0], wanted)


@pytest.mark.skipif(not SHAKESPEARE.is_dir(), reason="needs ../shared/data/tinyshakespeare")
def test_it_tells_shakespeare_well() -> None:
    text = {s: (SHAKESPEARE / f"{s}.txt").read_text() for s in ("train", "validation")}
    numbers = {character: number for number, character in enumerate(sorted(set(text["train"])))}
    train, other = (torch.tensor([numbers[c] for c in t]) for t in text.values())
    ngrams = KneserNey.fit(train, len(numbers), 7)
    assert ngrams.nats(other) == pytest.approx(1.5165, abs=1e-4)
