"""Errors are counted by a shortest alignment, exactly however the recordings are shared out."""

import math
import pickle
from collections import Counter
from functools import lru_cache

from hypothesis import given, settings
from hypothesis import strategies as st

from resbackbones.speech import ErrorRates

WORDS = st.text("ab c", max_size=8).map(lambda text: " ".join(text.split()))
PAIRS = st.lists(st.tuples(WORDS, WORDS), max_size=8)


def distance(one: str, other: str) -> int:
    """Levenshtein's, by its definition."""

    @lru_cache(None)
    def between(i: int, j: int) -> int:
        if not i or not j:
            return i + j
        differ = one[i - 1] != other[j - 1]
        return min(between(i - 1, j) + 1, between(i, j - 1) + 1, between(i - 1, j - 1) + differ)

    return between(len(one), len(other))


@settings(max_examples=200, deadline=None)
@given(st.text("abc", max_size=9), st.text("abc", max_size=9))
def test_the_errors_are_those_of_a_shortest_alignment(one: str, other: str) -> None:
    counts = ErrorRates.of([(one, other)]).characters
    said, written = Counter[str](), Counter[str]()
    for (left, right), count in counts.items():
        said[left or ""] += count
        written[right or ""] += count
    assert said - Counter({"": 99}) == Counter(one) and written - Counter({"": 99}) == Counter(
        other
    )
    wrong = sum(count for (left, right), count in counts.items() if left != right)
    assert wrong == distance(one, other)


@settings(max_examples=50, deadline=None)
@given(PAIRS, st.integers(0, 8))
def test_counts_are_the_same_however_they_are_shared_out(
    pairs: list[tuple[str, str]], cut: int
) -> None:
    whole = ErrorRates.of(pairs)
    first, second = ErrorRates.of(pairs[:cut]), ErrorRates.of(pairs[cut:])
    first.merge(pickle.loads(pickle.dumps(second)))
    assert first.characters == whole.characters and first.words == whole.words
    assert repr(first.compute()) == repr(whole.compute())


def test_rates_are_of_all_that_was_said() -> None:
    pairs = [("the cat", "the bat"), ("", "oh"), ("yes", ""), ("", "")]
    rates = ErrorRates.of(pairs)
    kinds = {"hits": 6, "substitutions": 1, "deletions": 3, "insertions": 2}
    assert rates.kinds() == kinds
    assert rates.kinds("words") == {
        "hits": 1, "substitutions": 1, "deletions": 1, "insertions": 1,
    }  # fmt: skip
    assert rates.compute() == {"cer": 6 / 10, "wer": 3 / 3, "empty": 1 / 2}
    more = ErrorRates.of([("so", "bo"), ("yes", "ye")])
    rates.merge(more)
    assert rates.most_confused(2) == [("s", None, 2), ("c", "b", 1)]
    assert len(rates.most_confused(99)) == 7
    assert list(rates.confused(2)) == ["'s' left out (2)", "'c' taken for 'b' (1)"]
    assert "'o' put in (1)" in rates.confused(99)
    nothing = ErrorRates.of([("", "")]).compute()
    assert all(math.isnan(figure) for figure in nothing.values())
