"""Utterances end at pauses, in the logits or in the sound, whatever pieces these come in; nothing
that was said is lost, and nothing long is held."""

import itertools
from collections.abc import Iterator

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from resbackbones.speech import decode
from resbackbones.speech.endpoints import by_blanks, by_energy
from tests.speech import tones

LETTERS = ("", "a", "b", "c", " ")
PIECES = ("", "▁a", "b", "▁ab", "c")
PLAIN = ("", "日", "本", "語", "文")


def logits_of(path: str, symbols: tuple[str, ...] = LETTERS) -> Tensor:
    """Of a path written out, "_" being the blank: `(1, T, V)`."""
    numbers = [0 if each == "_" else symbols.index(each) for each in path]
    return 5 * torch.nn.functional.one_hot(torch.tensor(numbers), len(symbols))[None].float()


def pieces_of(whole: Tensor, sizes: list[int], axis: int) -> Iterator[Tensor]:
    edges = np.minimum(np.cumsum([0, *sizes]), whole.shape[axis]).tolist()
    for start, end in itertools.pairwise([*edges, whole.shape[axis]]):
        yield whole.narrow(axis, start, end - start)


def read(utterances: list[tuple[int, Tensor]], symbols: tuple[str, ...]) -> list[str]:
    return [
        decode.greedy(logits, torch.tensor([logits.shape[1]]))[0].text(symbols)
        for _, logits in utterances
    ]


SIZES = st.lists(st.integers(0, 30), max_size=20)


@pytest.mark.parametrize("symbols", [LETTERS, PIECES, PLAIN], ids=["letters", "pieces", "plain"])
@settings(max_examples=60)
@given(
    seed=st.integers(0, 10**6), frames=st.integers(0, 150), sizes=SIZES, pause=st.integers(1, 12)
)
def test_blanks_cut_between_words_alone(
    symbols: tuple[str, ...], seed: int, frames: int, sizes: list[int], pause: int
) -> None:
    random = np.random.default_rng(seed)
    runs = random.integers(1, 15, frames) * (random.random(frames) < 0.5) + 1
    path = np.repeat(random.integers(0, len(symbols), frames), runs)[:frames]
    whole = 5 * torch.nn.functional.one_hot(torch.from_numpy(path), len(symbols))[None].float()
    found = list(by_blanks(pieces_of(whole, sizes, 1), symbols, pause, 1000))
    expected = read([(0, whole)], symbols)[0] if frames else ""
    between = "" if symbols == PLAIN else " "
    assert between.join(read(found, symbols)) == expected
    behind = 0
    for first, logits in found:  # each where it stands, and none where another is
        assert first >= behind and torch.equal(whole[:, first:][:, : logits.shape[1]], logits)
        behind = first + logits.shape[1]
    # The same whatever the pieces.
    again = list(by_blanks([whole], symbols, pause, 1000))
    assert [first for first, _ in again] == [first for first, _ in found]


@pytest.mark.parametrize(
    ("path", "pause", "longest", "texts"),
    [
        ("ab__ __c", 4, 99, ["ab", "c"]),
        ("ab__ __c", 6, 99, ["ab c"]),
        ("ab_____c", 4, 99, ["abc"]),  # a pause inside a word ends none
        ("a_ b__ _c", 9, 7, ["a b", "c"]),  # the longest pause before the seventh frame
        ("ab_ccc", 9, 4, ["ab", "c"]),  # a word that is too long is cut at its pause
        ("abcabc", 9, 4, ["abc", "abc"]),  # or where a blank is likeliest
        ("______", 2, 99, []),
        ("a" + 50 * "_" + " b", 4, 10, ["a", "b"]),
    ],
)
def test_where_blanks_cut(path: str, pause: int, longest: int, texts: list[str]) -> None:
    logits = logits_of(path)
    if path == "abcabc":
        logits[0, 3, 0] = 3
    found = list(by_blanks([logits], LETTERS, pause, longest))
    assert read(found, LETTERS) == texts
    assert all(logits.shape[1] <= longest for _, logits in found)


@pytest.mark.parametrize("path", ["_", "a", " "])
def test_hours_of_one_symbol_are_not_held(path: str) -> None:
    held = []

    def blocks() -> Iterator[Tensor]:
        for _ in range(60):
            yield logits_of(path * 20)

    for _, logits in by_blanks(blocks(), LETTERS, 5, 30):
        held.append(logits.shape[1])
    assert max(held, default=0) <= 30 and (path == "a") == bool(held)


def sound(*parts: tuple[float, float], noise: float = 0.001) -> Tensor:
    """Tones of so many seconds, so loud."""
    random = torch.Generator().manual_seed(0)
    found = [
        loud * torch.sin(torch.arange(round(seconds * tones.RATE)) * 0.3) for seconds, loud in parts
    ]
    whole = torch.cat(found)
    return whole + noise * torch.randn(len(whole), generator=random)


@settings(max_examples=30)
@given(
    parts=st.lists(st.tuples(st.floats(0.02, 2), st.sampled_from([0.0, 0.1, 0.5])), min_size=1),
    sizes=st.lists(st.integers(0, 9000), max_size=9),
    longest=st.floats(0.5, 4),
)
def test_pieces_of_sound_are_the_sound(
    parts: list[tuple[float, float]], sizes: list[int], longest: float
) -> None:
    whole = sound(*parts)
    found = list(by_energy(pieces_of(whole, sizes, 0), tones.RATE, 0.3, longest))
    assert torch.equal(torch.cat([samples for _, samples in found]), whole)
    assert [first for first, _ in found] == np.cumsum(
        [0, *(len(samples) for _, samples in found[:-1])]
    ).tolist()
    assert max(len(samples) for _, samples in found) <= (longest + 0.02) * tones.RATE
    again = list(by_energy([whole], tones.RATE, 0.3, longest))
    assert [first for first, _ in again] == [first for first, _ in found]


def test_quiet_ends_a_piece_in_its_middle() -> None:
    whole = sound((1.0, 0.5), (0.8, 0.0), (1.5, 0.4), (0.2, 0.0), (1.0, 0.5), (0.6, 0.0), (1, 0.3))
    found = [first / tones.RATE for first, _ in by_energy([whole], tones.RATE, 0.5, 30.0)]
    assert found == pytest.approx([0, 1.4, 4.8], abs=0.05)
    # Digital silence beside what is recorded quiet hides no pause.
    padded = torch.cat([torch.zeros(3 * tones.RATE), whole])
    found = [first / tones.RATE for first, _ in by_energy([padded], tones.RATE, 0.5, 30.0)]
    assert found == pytest.approx([0, 4.4, 7.8], abs=0.05)
    # A tone that never pauses is cut where it is softest; steady noise anywhere.
    steady = sound((2.0, 0.5), (0.05, 0.2), (2.0, 0.5))
    cut = [first / tones.RATE for first, _ in by_energy([steady], tones.RATE, 0.5, 3.0)]
    assert len(cut) == 2 and cut[1] == pytest.approx(2.03, abs=0.05)
    for odd in (torch.zeros(1), torch.zeros(9), torch.zeros(70_000), 0.1 * torch.ones(30_000)):
        pieces = list(by_energy([odd], tones.RATE, 0.5, 3.0))
        assert sum(len(samples) for _, samples in pieces) == len(odd)
