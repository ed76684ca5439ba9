"""Every position is one piece's own, which reads as far around it as the net reaches."""

import math
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

import resbackbones as rb
from resbackbones.core.pieces import Pieces


@given(length=st.integers(1, 60), size=st.integers(1, 20), unit=st.integers(1, 8))
def test_every_position_is_one_pieces_own(length: int, size: int, unit: int) -> None:
    counts = torch.zeros(length, 1)
    pieces = Pieces([(3, 2), (0, 0)], [unit, 1], size)
    assert pieces.is_exact
    for read, own in pieces.cut([length, 1]):
        counts[own] += 1
        assert read[0].start % unit == 0 and read[0].start <= max(0, own[0].start - 3)
        assert read[0].stop >= min(length, own[0].stop + 2)
    assert (counts == 1).all()


@pytest.mark.parametrize(("overlap", "is_exact"), [(2, False), (3, True), (None, True)])
def test_an_overlap_is_exact_from_the_reach_on(overlap: int | None, is_exact: bool) -> None:
    pieces = Pieces([(1, 3)], [1], 10, overlap)
    assert pieces.is_exact == is_exact
    first, second = pieces.cut([20])
    before, after = (1, 3) if overlap is None else (overlap, overlap)
    assert first == ((slice(0, 10 + after),), (slice(0, 10),))
    assert second == ((slice(10 - before, 20),), (slice(10, 20),))


def test_a_reach_without_an_end_is_never_exact() -> None:
    assert not Pieces([(math.inf, 0)], [1], 4, overlap=10**9).is_exact


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        ({"size": 0}, "side=0 is no number of pixels; give a whole one from 1 up"),
        ({"size": 4.0}, "side=4.0 is no number of pixels"),
        ({"size": True}, "side=True is no number of pixels"),
        ({"overlap": -1}, "overlap=-1 is no number of pixels; give a whole one from 0 up"),
        ({"reach": [(math.inf, 0)]}, "no side gives what the whole gives.*give overlap= in pixels"),
    ],
    ids=str,
)
def test_what_cuts_nothing_is_refused(options: dict[str, Any], sentence: str) -> None:
    options = {"reach": [(1, 1)], "step": [1], "size": 4, **options}
    with pytest.raises(rb.InputError, match=sentence):
        Pieces(**options, name="side", unit="pixels")
