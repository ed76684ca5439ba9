"""A beam that holds everything finds what counting all paths finds, whatever is known of the
language."""

import itertools
import math
from collections import defaultdict
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from resbackbones.errors import InputError
from resbackbones.ngrams import BackoffModel
from resbackbones.speech import decode
from resbackbones.speech.decode import BeamSearch

CHARACTERS = ["_", " ", "a", "b"]
PIECES = ["_", "▁a", "b", "▁", "ab"]
VOCABULARIES = {"characters": CHARACTERS, "pieces": PIECES}
WORDS = BackoffModel.fit([s.split() for s in ("a ab", "ab a b", "b ab ab", "zebra a")], 3)
TOKENS = BackoffModel.fit(["ab ab", "a b", "ba"], 3)
PIECE_TOKENS = BackoffModel.fit([["▁a", "b"], ["▁", "ab", "▁a"]], 2)
KNOWLEDGE: dict[str, dict[str, Any]] = {
    "nothing": {},
    "length": {"length_bonus": 0.7},
    "tokens": {"lm": TOKENS, "lm_unit": "token", "lm_weight": 0.8, "length_bonus": 0.3},
    "words": {"lm": WORDS, "lm_weight": 0.6, "length_bonus": 0.9},
    "unknown words": {"lm": WORDS, "unknown_bonus": -1.5, "hot_words": {"ba": 2.0}},
    "words alone": {"lm": WORDS, "unknown_bonus": 0.0},
    "lexicon": {"lexicon": ["ab", "b"]},
    "empty lexicon": {"lexicon": []},
    "hot": {"hot_words": {"ab": 2.0, "aba": 1.5}},
    "words and lexicon": {"lm": WORDS, "lexicon": ["a", "ba"], "length_bonus": -0.4},
    "all": {
        "lm": WORDS, "lm_weight": 0.3, "length_bonus": 0.5, "lexicon": ["ab", "b", "bb"],
        "hot_words": ["bb"], "hot_word_bonus": 3.0,
    },
    "hot tokens": {"lm": TOKENS, "lm_unit": "token", "lexicon": ["ab", "a"], "hot_words": ["a"]},
}  # fmt: skip


def all_texts(log_probs: Tensor) -> dict[tuple[int, ...], float]:
    """The probability of everything that can be read, from all paths `(T, V)`."""
    found: dict[tuple[int, ...], float] = defaultdict(float)
    for path in itertools.product(range(log_probs.shape[1]), repeat=len(log_probs)):
        tokens = tuple(token for token, _ in itertools.groupby(path) if token)
        told = sum(float(log_probs[t, token]) for t, token in enumerate(path))
        found[tokens] += math.exp(told)
    return found


def worth(tokens: tuple[int, ...], vocabulary: list[str], known: dict[str, Any]) -> float:
    """What a text gets besides, by its definition."""
    written = "".join(vocabulary[t].replace("▁", " ") for t in tokens)
    words = written.split()
    if "lexicon" in known and set(words) - set(known["lexicon"]):
        return -math.inf
    hot = known.get("hot_words", {})
    bonus = known.get("hot_word_bonus", 5.0)
    total = sum(hot[w] if isinstance(hot, dict) else bonus for w in words if w in hot)
    lm, weight = known.get("lm"), known.get("lm_weight", 0.5)
    by_words = lm is not None and known.get("lm_unit") != "token"
    if lm is not None and by_words:
        total += known.get("unknown_bonus", -10.0) * sum(word not in lm.ids for word in words)
    told = words if by_words else [vocabulary[t] for t in tokens]
    total += known.get("length_bonus", 0.0) * len(told)
    return total if lm is None else total + weight * float(lm.log_probs_of([told]))


@pytest.mark.parametrize("known", KNOWLEDGE)
@pytest.mark.parametrize("tokens", VOCABULARIES)
@settings(max_examples=5)
@given(seed=st.integers(0, 10**6), frames=st.integers(0, 4), scale=st.sampled_from([0.3, 1.0, 3.0]))
def test_a_beam_without_bounds_is_exact(
    tokens: str, known: str, seed: int, frames: int, scale: float
) -> None:
    vocabulary, knowledge = VOCABULARIES[tokens], KNOWLEDGE[known]
    if knowledge.get("lm") is TOKENS and tokens == "pieces":
        knowledge = {**knowledge, "lm": PIECE_TOKENS}
    generator = torch.Generator().manual_seed(seed)
    logits = torch.randn(2, frames, len(vocabulary), generator=generator) * scale
    lengths = torch.tensor([frames, frames // 2])
    search = BeamSearch(vocabulary, width=1000, **knowledge)
    for item, hypotheses in enumerate(search.n_best(logits, lengths, 1000)):
        paths = all_texts(logits[item, : int(lengths[item])].log_softmax(-1))
        wanted = {
            text: math.log(p) + worth(text, vocabulary, knowledge) for text, p in paths.items()
        }
        wanted = {text: score for text, score in wanted.items() if score > -math.inf}
        found = {h.tokens: h.score for h in hypotheses}
        assert found == pytest.approx(wanted, abs=1e-4)
        assert len(found) == len(hypotheses)
        assert [h.score for h in hypotheses] == sorted(found.values(), reverse=True)
        for h in hypotheses:
            assert h.log_prob == pytest.approx(math.log(paths[h.tokens]), abs=1e-4)


def same(one: list[list[decode.Hypothesis]], other: list[list[decode.Hypothesis]]) -> None:
    """Texts and times are equal, and scores to what single precision tells."""
    assert [[(h.tokens, h.starts, h.ends) for h in item] for item in one] == [
        [(h.tokens, h.starts, h.ends) for h in item] for item in other
    ]
    pairs = zip(itertools.chain(*one), itertools.chain(*other), strict=True)
    for h, wanted in pairs:
        assert (h.log_prob, h.score) == pytest.approx((wanted.log_prob, wanted.score), rel=1e-5)
        assert h.confidences == pytest.approx(wanted.confidences, rel=1e-6)


@pytest.mark.parametrize("known", KNOWLEDGE)
@pytest.mark.parametrize("width", [1, 16])
def test_an_item_is_found_alone_as_in_a_batch(known: str, width: int) -> None:
    torch.manual_seed(0)
    lengths = torch.tensor([5, 0, 13, 9])
    logits = torch.randn(4, 13, 4) * 2
    options = {"vocabulary": CHARACTERS, "width": width, **KNOWLEDGE[known]}
    search = BeamSearch(**options)
    together = search.n_best(logits, lengths, width)
    garbage = logits.clone()
    for item, length in enumerate(lengths.tolist()):
        garbage[item, length:] = math.nan
        alone = search.n_best(logits[item : item + 1, :length], lengths[item : item + 1], width)
        same(alone, together[item : item + 1])
    same(search.n_best(garbage, lengths, width), together)
    same([[best] for best in search(logits, lengths)], [item[:1] for item in together])
    assert decode.beam(logits, lengths, CHARACTERS, width, **KNOWLEDGE[known]) == search(
        logits, lengths
    )
    assert together[1] == [decode.Hypothesis((), (), (), (), 0.0, together[1][0].score)]


def test_hypotheses_are_different_texts() -> None:
    torch.manual_seed(1)
    logits = torch.randn(3, 60, 5)
    logits[1, :, 2:] = -math.inf  # few texts: the beam holds places that are none
    logits[2] = 0  # all alike
    for found in decode.n_best(logits, torch.tensor([60, 4, 60]), 40, width=40):
        assert len({h.tokens for h in found}) == len(found) > 0
        for h in found:
            assert all(map(math.isfinite, (h.score, h.log_prob)))
            assert len(h.tokens) == len(h.starts) == len(h.ends) == len(h.confidences)
            edges = [edge for pair in zip(h.starts, h.ends, strict=True) for edge in pair]
            assert edges == sorted(edges) and all(0 <= c <= 1 for c in h.confidences)


def test_one_prefix_at_a_time_is_still_a_search() -> None:
    logits = torch.eye(3)[torch.tensor([[0, 1, 1, 0, 1, 2]])] * 9
    (found,) = decode.beam(logits, torch.tensor([6]), width=1)
    assert found.tokens == (1, 1, 2) and found.starts == (1, 4, 5) and found.ends == (3, 5, 6)


def test_the_sum_of_paths_beats_the_best_of_them() -> None:
    """Blank twice is the best path, 0.36, but a alone has 0.24 + 0.24 + 0.16 (Hannun 2017)."""
    logits = torch.tensor([[[0.6, 0.4], [0.6, 0.4]]]).log()
    lengths = torch.tensor([2])
    assert decode.greedy(logits, lengths)[0].tokens == ()
    (found,) = decode.beam(logits, lengths, width=2)
    assert found.tokens == (1,) and math.exp(found.score) == pytest.approx(0.64)


def test_knowledge_decides_between_what_sounds_alike() -> None:
    vocabulary = ["_", " ", *"acknowrt"]
    ids = {token: number for number, token in enumerate(vocabulary)}
    logits = torch.full((1, 16, len(vocabulary)), -9.0)
    for frame, said in enumerate("i_can_not_know".replace("i_", "") + "_"):
        logits[0, frame, ids.get(said, 0) if said != "_" else 1] = 4.0
    logits[0, 13:, 0] = 4.0
    logits[0, 8, 0] = 4.5  # the k of know is rather not heard
    lengths = torch.tensor([16])

    def said(**knowledge: Any) -> str:
        return decode.beam(logits, lengths, vocabulary, 32, **knowledge)[0].text(vocabulary)

    assert said() == "can not now"
    lm = BackoffModel.fit([s.split() for s in ("i can not know", "can not know that")], 3)
    assert said(lm=lm, lm_weight=1.0) == "can not know"
    assert said(hot_words=["know"]) == "can not know"
    assert said(lexicon=["can", "not", "know", "rat"]) == "can not know"
    assert said(hot_words={"know": 0.1}) == "can not now"


def test_a_narrow_beam_ends_in_words_of_the_lexicon() -> None:
    torch.manual_seed(0)
    vocabulary = ["_", " ", *"abcdefgh"]
    lexicon = ["abc", "abcdefgh", "hgfedcba", "fade", "cab"]
    logits = torch.randn(6, 50, len(vocabulary)) * 3
    lengths = torch.tensor([50, 1, 7, 0, 33, 20])
    for width in (1, 2, 8):
        for found in decode.beam(logits, lengths, vocabulary, width, lexicon=lexicon):
            assert set(found.text(vocabulary).split()) <= set(lexicon)


def test_hot_words_and_lexica_know_pieces_however_a_word_is_cut() -> None:
    vocabulary = ["_", "▁he", "llo", "▁hel", "lo", "▁", "h", "e", "l", "o"]
    search = BeamSearch(vocabulary, 16, lexicon=["hello"])
    for cut in ([1, 2], [3, 4], [5, 6, 7, 8, 8, 9], [1, 8, 4]):
        path = [part for token in cut for part in (token, 0)]
        logits = torch.eye(len(vocabulary))[torch.tensor([path])] * 9
        (found,) = search(logits, torch.tensor([len(path)]))
        assert found.tokens == tuple(cut) and found.text(vocabulary) == "hello"


def test_unknown_words_are_told_as_such() -> None:
    closed = BackoffModel.fit([["a"], ["b"]], 2)  # "ab" is none of its words
    logits = torch.eye(4)[torch.tensor([[2, 3, 1, 3]])] * 9
    lengths = torch.tensor([4])
    for lexicon in (None, ["ab", "b"]):
        search = BeamSearch(
            CHARACTERS, lm=closed, lm_weight=0.1, lexicon=lexicon, unknown_bonus=-0.25
        )
        (found,) = search(logits, lengths)
        assert found.text(CHARACTERS) == "ab b"
        wanted = 0.1 * float(closed.log_probs_of([["<unk>", "b"]]))
        assert found.score - found.log_prob == pytest.approx(wanted - 0.25, abs=1e-4)


def test_words_do_not_grow_together_to_unknown_ones() -> None:
    logits = torch.eye(4)[torch.tensor([[2, 3, 1, 3]])] * 9
    logits[0, 2, 0] = 9.0  # the separator is hardly heard
    lengths = torch.tensor([4])
    known: dict[str, Any] = {"lm": WORDS, "lm_weight": 2.0}
    (found,) = decode.beam(logits, lengths, CHARACTERS, 8, **known)
    assert found.text(CHARACTERS) == "ab b"
    (found,) = decode.beam(logits, lengths, CHARACTERS, 8, **known, unknown_bonus=20.0)
    assert found.text(CHARACTERS) == "abb"


def test_half_precision_is_computed_in_single() -> None:
    logits = torch.randn(2, 30, 6, generator=torch.Generator().manual_seed(0)).bfloat16()
    lengths = torch.tensor([30, 11])
    assert decode.beam(logits, lengths) == decode.beam(logits.float(), lengths)


def test_a_vocabulary_of_the_blank_alone_says_nothing() -> None:
    found = decode.n_best(torch.randn(2, 5, 1), torch.tensor([5, 2]), 3, ["_"], 3)
    assert found == [[decode.Hypothesis((), (), (), (), 0.0, 0.0)]] * 2
    assert decode.beam(torch.randn(0, 5, 3), torch.zeros(0, dtype=torch.int64)) == []


def test_an_arpa_file_is_a_language_model(tmp_path: Path) -> None:
    WORDS.write(tmp_path / "words.arpa")
    logits = torch.randn(1, 12, 4, generator=torch.Generator().manual_seed(0))
    lengths = torch.tensor([12])
    by_file = decode.beam(logits, lengths, CHARACTERS, lm=tmp_path / "words.arpa")
    assert by_file == decode.beam(logits, lengths, CHARACTERS, lm=WORDS)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"width": 0}, "width=0 is no number of prefixes; give 1 or more"),
        ({"lm": WORDS, "lm_unit": "letter"}, "lm_unit='letter' is not known"),
        ({"vocabulary": None, "lm": WORDS}, "lm is of words and tokens, but vocabulary is not"),
        ({"vocabulary": None, "lexicon": []}, "lexicon is of words and tokens"),
        ({"lexicon": "ab"}, "lexicon and hot_words are lists of words, not one string"),
        ({"lexicon": ["ab", "naïve"]}, "the lexicon's word 'naïve' has 'n', which the model's"),
        ({"hot_words": ["a b"]}, "the hot word 'a b' is none or several; give single words"),
        ({"lexicon": ["a"], "hot_words": ["b"]}, "the hot word 'b' is not in the lexicon"),
        (
            {"lm": BackoffModel.fit([["THE", "CAT"]], 2)},
            "no word of the language model, which tells 2 words such as 'CAT', 'THE', can be",
        ),
        (
            {"lm": WORDS, "lm_unit": "token", "vocabulary": ["_", "x", "y"]},
            "none of the model's 2 tokens, such as 'y', is known to the language model, which",
        ),
    ],
)
def test_what_does_not_fit_is_refused(options: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        BeamSearch(**{"vocabulary": CHARACTERS, **options})


def test_logits_that_do_not_fit_are_refused() -> None:
    search = BeamSearch(CHARACTERS, width=4)
    lengths = torch.tensor([3, 2])
    with pytest.raises(InputError, match="logits are of 5 tokens, but the vocabulary has 4"):
        search(torch.randn(2, 3, 5), lengths)
    with pytest.raises(InputError, match="5 hypotheses are asked for; give a number from 1 to"):
        search.n_best(torch.randn(2, 3, 4), lengths, 5)
    logits = torch.randn(2, 3, 4)
    logits[1, 1, 0] = math.nan
    with pytest.raises(InputError, match=r"the logits of item 1 are no numbers .* at frame 1"):
        search(logits, lengths)
    only = torch.full((2, 3, 4), -math.inf)
    only[:, :, 2] = 0
    only[0] = 0
    with pytest.raises(InputError, match=r"nothing that the lexicon allows has .* in item 1"):
        decode.beam(only, lengths, CHARACTERS, lexicon=["b"])
