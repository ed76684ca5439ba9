"""Which rows make a batch: every one, as often on each rank, and within the budget."""

from collections import Counter
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from resbackbones.data import Bucketed, InOrder, Shuffled, padding_share
from resbackbones.errors import InputError

SIZES = st.integers(1, 9)
WORLDS = st.integers(1, 4)
LENGTHS = st.lists(st.one_of(st.integers(0, 400), st.sampled_from([7, 50])), min_size=1).map(
    torch.tensor
)


def interleaved(batches: Any, seed: int, epoch: int, world: int) -> list[list[int]]:
    """What the ranks do together, in the order of one process."""
    ranks = [batches(seed, epoch, rank, world) for rank in range(world)]
    return [batch for step in zip(*ranks, strict=True) for batch in step]


def rows(batches: list[list[int]]) -> Counter[int]:
    return Counter(row for batch in batches for row in batch)


@given(st.integers(1, 80), SIZES, WORLDS, WORLDS)
def test_shuffled_takes_every_row(items: int, size: int, accumulate: int, world: int) -> None:
    shuffled = Shuffled(items, size, accumulate)
    found = interleaved(shuffled, 3, 1, world)
    together = accumulate * world
    updates = -(-items // (size * together))
    assert len(found) == updates * together
    sizes = [len(batch) for batch in found]
    assert 1 <= min(sizes) and max(sizes) <= size and max(sizes) - min(sizes) <= 2
    counts = rows(found)
    assert set(counts) == set(range(items))
    if items // updates >= together:  # each update has a row for each of its batches
        assert set(counts.values()) == {1}


@given(st.integers(1, 80), SIZES, st.sampled_from([(1, 6), (2, 3), (3, 2), (6, 1)]))
def test_updates_are_the_same_whatever_the_split(
    items: int, size: int, split: tuple[int, int]
) -> None:
    """Rows per update depend on rows per batch, batches and ranks by their product alone."""
    accumulate, world = split
    whole = Shuffled(items, size * 6)(5, 2)
    found = interleaved(Shuffled(items, size, accumulate), 5, 2, world)
    for update, start in zip(whole, range(0, len(found), 6), strict=True):
        assert set(rows(found[start : start + 6])) == set(update)


@given(LENGTHS, SIZES, st.integers(1, 900), WORLDS, WORLDS)
def test_bucketed_takes_every_row_within_the_budget(
    lengths: torch.Tensor, size: int, budget: int, accumulate: int, world: int
) -> None:
    bucketed = Bucketed(lengths, size, budget, accumulate)
    found = interleaved(bucketed, 3, 1, world)
    together = accumulate * world
    assert len(found) % together == 0
    assert {len(interleaved(bucketed, 3, epoch, world)) for epoch in range(3)} == {len(found)}
    for batch in found:
        assert 1 <= len(batch) <= size
        assert len(batch) == 1 or len(batch) * int(lengths[batch].max()) <= budget
    counts = rows(found)
    assert set(counts) == set(range(len(lengths)))
    assert set(counts.values()) == {1} or len(lengths) < len(found)
    # The same updates, whatever the split.
    assert found == Bucketed(lengths, size, budget, together)(3, 1)


@given(st.integers(1, 60), st.integers(1, 30), SIZES, st.integers(1, 200), WORLDS)
def test_bucketed_of_equal_lengths_cuts_as_shuffled_does(
    items: int, length: int, size: int, budget: int, world: int
) -> None:
    bucketed = Bucketed(torch.full((items,), length), size, budget)
    held = max(1, min(size, budget // length))
    found = interleaved(bucketed, 0, 0, world)
    assert len(found) == len(interleaved(Shuffled(items, held), 0, 0, world))
    sizes = [len(batch) for batch in found]
    assert max(sizes) - min(sizes) <= 1 and max(sizes) <= held


@given(LENGTHS, SIZES, st.one_of(st.none(), st.integers(1, 900)), WORLDS)
def test_evaluation_takes_every_row_once(
    lengths: torch.Tensor, size: int, budget: int | None, world: int
) -> None:
    for batches in (InOrder(len(lengths), size), InOrder(len(lengths), size, lengths, budget)):
        whole = batches()
        assert rows(whole) == Counter(range(len(lengths)))
        assert max(map(len, whole)) <= size
        for rank in range(world):
            assert batches(9, 9, rank, world) == whole[rank::world]
    if budget is not None:
        assert all(len(b) == 1 or len(b) * int(lengths[b].max()) <= budget for b in whole)


def test_the_budget_holds_for_the_longest_of_a_bin() -> None:
    lengths = torch.arange(94, 102).repeat(10)  # one bin
    for epoch in range(4):
        found = Bucketed(lengths, 99, budget=5 * 94)(0, epoch)
        assert len(found) == 20
        assert all(len(batch) * int(lengths[batch].max()) <= 5 * 94 for batch in found)


def test_rows_that_fit_stay_together() -> None:
    """However much shorter than its first the others of a batch are."""
    lengths = torch.tensor([50, 50, 100, 50])
    assert InOrder(4, 9, lengths, budget=400)() == [[2, 0, 1, 3]]
    assert list(map(sorted, Bucketed(lengths, 9, budget=400)(0, 0))) == [[0, 1, 2, 3]]


def test_evaluation_keeps_rows_in_order_or_sorts_them_by_length() -> None:
    assert InOrder(5, 2)() == [[0, 1], [2, 3], [4]]
    assert InOrder(4, 2, torch.tensor([3, 9, 3, 4]))() == [[1, 3], [0, 2]]
    # One item is longer than the budget.
    assert InOrder(4, 4, torch.tensor([3, 90, 3, 4]), budget=12)() == [[1], [3, 0, 2]]


@pytest.mark.parametrize(
    "batches",
    [Shuffled(50, 4), Bucketed(torch.arange(50), 4, 100), InOrder(50, 4, torch.arange(50))],
)
def test_batches_are_pure_and_lists_of_int(batches: Any) -> None:
    first = batches(1, 2, 1, 2)
    np.random.seed(0)
    torch.manual_seed(0)
    assert first == batches(1, 2, 1, 2)
    assert {type(row) for batch in first for row in batch} == {int}
    assert {type(batch) for batch in first} == {list}


@pytest.mark.parametrize("batches", [Shuffled(50, 4), Bucketed(torch.arange(50), 4, 100)])
def test_every_epoch_and_seed_has_an_order_of_its_own(batches: Any) -> None:
    orders = [batches(seed, epoch) for seed in range(3) for epoch in range(3)]
    assert all(a != b for i, a in enumerate(orders) for b in orders[:i])
    # Company changes too, not only the order of the batches.
    assert not {frozenset(b) for b in orders[0]} >= {frozenset(b) for b in orders[1]}


def test_shuffled_moves_every_row() -> None:
    """Over epochs a row stands first as often as last."""
    first = [Shuffled(10, 5)(0, epoch)[0] for epoch in range(2000)]
    share = np.bincount(np.concatenate(first), minlength=10) / 2000
    assert np.abs(share - 0.5).max() < 0.05  # four and a half standard deviations


def test_batches_of_a_bucketed_epoch_do_not_come_by_length() -> None:
    lengths = torch.arange(1, 1001)
    longest = [int(lengths[batch].max()) for batch in Bucketed(lengths, 10, 10_000)(0, 0)]
    assert abs(np.corrcoef(longest, np.arange(len(longest)))[0, 1]) < 0.3


def test_padding_is_little_and_its_share_exact() -> None:
    lengths = torch.from_numpy(np.random.default_rng(0).integers(20, 400, 2000))
    bucketed = Bucketed(lengths, 64, 6400)
    held = sum(len(batch) * int(lengths[batch].max()) for batch in bucketed(0, 0))
    assert bucketed.padding_share() == pytest.approx(1 - int(lengths.sum()) / held)
    assert bucketed.padding_share() < 0.05
    mixed = sum(len(batch) * int(lengths[batch].max()) for batch in Shuffled(2000, 30)(0, 0))
    assert 1 - int(lengths.sum()) / mixed > 0.4
    assert Bucketed(torch.full((9,), 5), 4, 100).padding_share() == 0


def test_batches_are_as_full_as_one_another() -> None:
    """No rest of a row or two, which would break batch norm."""
    lengths = torch.cat([torch.full((17,), 100), torch.full((33,), 50)])
    for accumulate in (1, 4):
        found = Bucketed(lengths, 99, 800, accumulate)(0, 0)
        held = [len(batch) * int(lengths[batch].max()) for batch in found]
        assert min(held) >= 0.5 * max(held)


@pytest.mark.parametrize(
    ("wrong", "says"),
    [
        (lambda: Shuffled(0, 4), "items=0"),
        (lambda: Shuffled(4, 0), "size=0"),
        (lambda: Shuffled(4, 4, 0), "accumulate=0"),
        (lambda: InOrder(4, 0), "size=0"),
        (lambda: InOrder(4, 2, torch.tensor([1, 2, 3, 4]), 0), "budget=0"),
        (lambda: InOrder(4, 2, torch.tensor([1, 2])), r"lengths of 2 items .* 4"),
        (lambda: Bucketed(torch.tensor([1]), 4, 0), "budget=0"),
        (lambda: Bucketed(torch.tensor([1.5]), 4, 9), "no counts"),
        (lambda: Bucketed(torch.tensor([[1]]), 4, 9), "no counts"),
        (lambda: Bucketed(torch.tensor([-1]), 4, 9), "no counts"),
        (lambda: Bucketed(torch.tensor([], dtype=torch.int64), 4, 9), "no counts"),
    ],
)
def test_what_cannot_be_batched_is_refused(wrong: Any, says: str) -> None:
    with pytest.raises(InputError, match=says):
        wrong()


@pytest.mark.parametrize("items", [1000, 3000])
@pytest.mark.parametrize("accumulate", [1, 4])
def test_lengths_as_of_speech_leave_little_padding(items: int, accumulate: int) -> None:
    """Recordings of 4 s in the middle, some of 0.5 and some of 30, in frames."""
    generator = np.random.default_rng(0)
    lengths = torch.from_numpy(generator.lognormal(np.log(400), 0.7, items).astype(np.int64))
    bucketed = Bucketed(lengths, 64, 16_000, accumulate)
    assert all(padding_share(lengths, bucketed(0, epoch)) < 0.1 for epoch in range(3))
    in_order = InOrder(items, 64, lengths, 16_000)()
    assert padding_share(lengths, in_order) < 0.1
    drawn = Shuffled(items, 64)(0, 0)
    share = 1 - float(lengths.sum()) / sum(len(each) * int(lengths[each].max()) for each in drawn)
    assert padding_share(lengths, drawn) == pytest.approx(share) and share > 0.5
