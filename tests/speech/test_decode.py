"""What was heard, when and how surely means the same wherever it comes from."""

import itertools
import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from resbackbones.errors import InputError
from resbackbones.speech import decode
from resbackbones.speech.decode import Hypothesis, Span

VOCABULARY = ["_", " ", "a", "b", "c"]


@settings(max_examples=40)
@given(st.integers(0, 10**6), st.integers(0, 3), st.integers(0, 12), st.integers(1, 4))
def test_greedy_is_the_best_path_read(seed: int, items: int, frames: int, size: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    logits = torch.randn(items, frames, size, generator=generator) * 3
    lengths = torch.randint(frames + 1, (items,), generator=generator)
    found = decode.greedy(logits, lengths)
    assert len(found) == items
    for item, length in enumerate(lengths.tolist()):
        shares = logits[item, :length].softmax(-1)
        path = shares.argmax(-1).tolist()
        tokens, starts, ends, sure, frame = [], [], [], [], 0
        for token, run in itertools.groupby(path):
            after = frame + len(list(run))
            if token:
                tokens.append(token)
                starts.append(frame)
                ends.append(after)
                sure.append(float(shares[frame:after, token].mean()))
            frame = after
        hypothesis = found[item]
        assert hypothesis.tokens == tuple(tokens)
        assert (hypothesis.starts, hypothesis.ends) == (tuple(starts), tuple(ends))
        assert hypothesis.confidences == pytest.approx(tuple(sure), rel=1e-5)
        assert hypothesis.score == hypothesis.log_prob
        assert hypothesis.score == pytest.approx(float(shares.amax(-1).log().sum()), abs=1e-4)
        (alone,) = decode.greedy(logits[item : item + 1, :length], lengths[item : item + 1])
        assert alone.tokens == hypothesis.tokens and alone.starts == hypothesis.starts


def test_padding_is_not_read() -> None:
    logits = torch.randn(2, 9, 5, generator=torch.Generator().manual_seed(0))
    lengths = torch.tensor([9, 4])
    clean = decode.greedy(logits, lengths)
    logits[1, 4:] = math.nan
    assert decode.greedy(logits, lengths) == clean
    assert max(clean[1].ends) <= 4


def test_all_blank_is_silence() -> None:
    logits = torch.zeros(1, 6, 5)
    logits[..., 0] = 9
    for found in (decode.greedy(logits, torch.tensor([6])), decode.beam(logits, torch.tensor([6]))):
        assert found[0].tokens == () and found[0].text(VOCABULARY) == ""
        assert found[0].words(VOCABULARY, 0.04) == found[0].characters(VOCABULARY, 0.04) == []


def test_words_have_times_and_confidences() -> None:
    path = [0, 2, 2, 0, 3, 1, 1, 0, 4, 4]
    logits = torch.full((1, 10, 5), -math.inf)
    for frame, token in enumerate(path):
        logits[0, frame, token], logits[0, frame, 0] = 0.0, 0.0  # a half each, or the blank alone
    (found,) = decode.align(logits, torch.tensor([10]), ["ab c"], VOCABULARY)
    assert found.text(VOCABULARY) == "ab c"
    assert found.characters(VOCABULARY, 0.5)[2].text == " "
    words = found.words(VOCABULARY, 0.5)
    assert [word.text for word in words] == ["ab", "c"]
    assert words[0].start == 0.5 * found.starts[0] and words[0].end == 0.5 * found.ends[1]
    assert all(word.confidence == pytest.approx(0.5) for word in words)


def test_byte_pairs_are_words_by_their_marks() -> None:
    vocabulary = ["_", "▁he", "llo", "▁wor", "ld", "▁", "s"]
    found = Hypothesis(
        (1, 2, 3, 4, 5, 6), (0, 2, 4, 6, 8, 9), (1, 4, 5, 7, 9, 10), (1.0, 0.5, 0.4, 0.8, 0.1, 0.6),
        -1.0, -1.0,
    )  # fmt: skip
    assert found.text(vocabulary) == "hello world s"
    assert found.words(vocabulary, 0.1) == [
        Span("hello", 0.0, 0.4, 0.75),
        Span("world", 0.4, pytest.approx(0.7), pytest.approx(0.6)),
        Span("s", 0.9, 1.0, 0.6),
    ]
    assert found.characters(vocabulary, 1.0)[1] == Span("llo", 2.0, 4.0, 0.5)


def test_half_precision_is_read_in_single() -> None:
    logits = torch.randn(2, 20, 6, generator=torch.Generator().manual_seed(0)).bfloat16()
    lengths = torch.tensor([20, 7], dtype=torch.int32)
    assert decode.greedy(logits, lengths) == decode.greedy(logits.float(), lengths)


def test_nothing_is_learnt_through_it() -> None:
    logits = torch.randn(1, 5, 3, requires_grad=True)
    assert isinstance(decode.greedy(logits, torch.tensor([5]))[0].score, float)


@pytest.mark.parametrize(
    ("shape", "lengths", "message"),
    [
        ((5, 3), [5], r"logits are torch.float32 of shape \(5, 3\), but have to be numbers of"),
        ((2, 5, 0), [5, 5], r"logits are .* of shape \(2, 5, 0\)"),
        ((2, 5, 3), [5], r"lengths are torch.int64 of shape \(1,\), but 2 items need whole"),
        ((2, 5, 3), [1.0, 2.0], r"lengths are torch.float32"),
        ((2, 5, 3), [5, 6], "item 1 is said to have 6 frames of 5"),
        ((2, 5, 3), [-1, 5], "item 0 is said to have -1 frames of 5"),
    ],
)
def test_shapes_that_do_not_fit_are_refused(
    shape: tuple[int, ...], lengths: list[float], message: str
) -> None:
    for decoder in (decode.greedy, decode.beam):
        with pytest.raises(InputError, match=message):
            decoder(torch.zeros(shape), torch.tensor(lengths))


@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_logits_that_are_no_numbers_are_named(bad: float) -> None:
    logits = torch.zeros(3, 5, 3)
    logits[2, 3, 1] = bad
    with pytest.raises(InputError, match=r"the logits of item 2 are no numbers .* at frame 3"):
        decode.greedy(logits, torch.tensor([5, 5, 4]))
    decode.greedy(logits, torch.tensor([5, 5, 3]))  # behind the end it is nobody's
