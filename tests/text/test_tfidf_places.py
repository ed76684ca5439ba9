"""The TF-IDF classifier's answer is what the characters of a text say, and its bias."""

import numpy as np
import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st
from sklearn.feature_extraction import FeatureHasher
from sklearn.feature_extraction.text import HashingVectorizer

from resbackbones.text import TfidfClassifier
from resbackbones.text.tfidf import (
    BUCKETS,
    CHARACTERS,
    WORD,
    WORDS,
    _character_ngrams,
    _word_ngrams,
)

PIECES = st.sampled_from(["the", "The ", "river", " ", "\n\t", "!?", "İ", "ΟΔΟΣ", "ß", "x" * 50])
RANDOM = st.one_of(st.text(max_size=40), st.lists(PIECES, max_size=12).map("".join))


def classifier(columns: np.ndarray) -> TfidfClassifier:
    """One that knows these n-grams, and says something at random of each."""
    random = np.random.default_rng(0)
    weight, bias = random.normal(size=(len(columns), 3)), random.normal(size=3)
    idf = random.uniform(1, 9, len(columns))
    return TfidfClassifier(columns, *(each.astype(np.float32) for each in (idf, weight, bias)))


HALF = classifier(np.arange(0, 2 * BUCKETS, 2))  # of all n-grams


def knowing(word: str = "", characters: str = "") -> TfidfClassifier:
    """One whose logit 0 is moved by one n-gram, of words or of characters, by 1."""
    ngram, start = (word, 0) if word else (characters, BUCKETS)
    hasher = FeatureHasher(BUCKETS, input_type="string", alternate_sign=False)
    column = hasher.transform([[ngram]]).indices.astype(np.int64) + start
    ones = np.ones((1, 1), np.float32)
    return TfidfClassifier(column, ones[0], ones, np.zeros(1, np.float32))


@settings(max_examples=60, deadline=None)
@given(text=RANDOM, number=st.integers(0, 2))
@example(text="", number=0)
@example(text="THE the the river, the river! " * 40, number=1)
def test_what_the_characters_say_is_the_answer_but_for_its_bias(text: str, number: int) -> None:
    said = HALF.said(text, number)
    assert said.shape == (len(text),) and said.dtype == torch.float32
    expected = float(HALF.logits([text])[0, number]) - HALF.bias[number]
    assert float(said.sum()) == pytest.approx(expected, abs=1e-4)
    assert not any(value for value, c in zip(said.tolist(), text, strict=True) if c.isspace())


@settings(max_examples=100, deadline=None)
@given(text=RANDOM)
def test_n_grams_are_those_that_are_counted_where_they_stand(text: str) -> None:
    words = HashingVectorizer(ngram_range=WORDS, token_pattern=WORD.pattern)
    characters = HashingVectorizer(analyzer="char_wb", ngram_range=CHARACTERS)
    lowered = text.lower()
    for vectorizer, found in (
        (words, list(_word_ngrams(lowered))),
        (characters, list(_character_ngrams(lowered))),
    ):
        assert vectorizer.build_analyzer()(text) == [ngram for ngram, _ in found]
        for ngram, where in found:
            assert "".join(lowered[place] for place in where) == ngram.replace(" ", "")


@pytest.mark.parametrize(
    ("known", "text", "shares"),
    [
        ({"word": "big river"}, "Big  RIVER,big river", "111  11111 111 11111"),
        ({"word": "river"}, "river rivers RIVER", "11111        11111"),
        ({"characters": "ver "}, "river over verse", "  111  111      "),
        ({"characters": "aa"}, "aaa", "121"),
        ({"characters": " i"}, "İs it", "1  1 "),  # whose lower case has two characters
        ({"word": "οδος"}, "a ΟΔΟΣ", "  1111"),  # whose last letter has another, at a word's end
        ({"word": "!?"}, "what!?", "    11"),
        ({"word": "why"}, "what!?", "      "),
    ],
)
def test_an_n_gram_is_shared_by_its_characters_wherever_it_stands(
    known: dict[str, str], text: str, shares: str
) -> None:
    parts = torch.tensor([float(share.strip() or 0) for share in shares])
    expected = parts / parts.sum().clamp(min=1)
    assert torch.allclose(knowing(**known).said(text, 0), expected, atol=1e-6)
