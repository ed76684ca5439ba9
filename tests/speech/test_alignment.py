"""A known text lies along its frames as torchaudio lays it, many at once."""

import itertools
import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torchaudio.functional import forced_align

from resbackbones.errors import InputError
from resbackbones.speech import decode

VOCABULARY = ["_", " ", "a", "b"]


@settings(max_examples=30)
@given(st.integers(0, 10**6))
def test_paths_are_those_of_torchaudio(seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    lengths = torch.randint(1, 30, (5,), generator=generator)
    logits = torch.randn(5, 30, 4, generator=generator) * 2
    targets = []
    for length in lengths.tolist():
        target = torch.randint(1, 4, (length // 2 + 1,), generator=generator).tolist()
        while len(target) + sum(a == b for a, b in itertools.pairwise(target)) > length:
            target.pop()
        targets.append(target)
    found = decode.align(logits, lengths, targets)
    for item, (hypothesis, target) in enumerate(zip(found, targets, strict=True)):
        assert hypothesis.tokens == tuple(target)
        log_probs = logits[item : item + 1, : int(lengths[item])].log_softmax(-1)
        path, scores = forced_align(log_probs, torch.tensor([target], dtype=torch.int32))
        assert hypothesis.score == pytest.approx(float(scores.double().sum()), abs=1e-4)
        said = torch.zeros(int(lengths[item]), dtype=torch.int64)
        for token, start, end in zip(
            hypothesis.tokens, hypothesis.starts, hypothesis.ends, strict=True
        ):
            said[start:end] = token
        assert said.tolist() == path[0].tolist()


@settings(max_examples=20)
@given(st.integers(0, 10**6), st.integers(1, 6), st.lists(st.integers(1, 2), max_size=4))
def test_no_path_is_likelier(seed: int, frames: int, target: list[int]) -> None:
    logits = torch.randn(1, frames, 3, generator=torch.Generator().manual_seed(seed))
    log_probs = logits[0].log_softmax(-1)
    paths = {
        path: sum(float(log_probs[t, token]) for t, token in enumerate(path))
        for path in itertools.product(range(3), repeat=frames)
        if [token for token, _ in itertools.groupby(path) if token] == target
    }
    if not paths:
        with pytest.raises(InputError, match=f"item 0 has {frames} frames, but its {len(target)}"):
            decode.align(logits, torch.tensor([frames]), [target])
        return
    (found,) = decode.align(logits, torch.tensor([frames]), [target])
    assert found.score == pytest.approx(max(paths.values()), abs=1e-5)


def test_texts_are_aligned_alone_as_together() -> None:
    logits = torch.randn(4, 20, 4, generator=torch.Generator().manual_seed(0)) * 2
    lengths = torch.tensor([20, 3, 0, 11])
    texts = ["ab ba", "aa", "", "b"]
    together = decode.align(logits, lengths, texts, VOCABULARY)
    assert [h.text(VOCABULARY) for h in together] == texts
    logits[1, 3:] = math.nan
    assert decode.align(logits, lengths, texts, VOCABULARY) == together
    for item, text in enumerate(texts):
        length = int(lengths[item])
        (alone,) = decode.align(
            logits[item : item + 1, :length], lengths[item : item + 1], [text], VOCABULARY
        )
        assert (alone.tokens, alone.starts, alone.ends) == (
            together[item].tokens, together[item].starts, together[item].ends,
        )  # fmt: skip
        assert alone.score == pytest.approx(together[item].score, rel=1e-6)
    assert together[1].starts == (0, 2) and together[1].ends == (1, 3)  # a blank between them


def test_tensors_and_half_precision_will_do() -> None:
    logits = torch.randn(2, 8, 4, generator=torch.Generator().manual_seed(0)).bfloat16()
    lengths = torch.tensor([8, 8])
    wanted = decode.align(logits.float(), lengths, [[2, 3], [1]])
    assert decode.align(logits, lengths, [torch.tensor([2, 3]), torch.tensor([1])]) == wanted
    assert decode.align(logits[:0], lengths[:0], []) == []


def test_the_token_between_words_has_two_names() -> None:
    logits = torch.randn(1, 8, 4, generator=torch.Generator().manual_seed(0))
    vocabulary = ["_", "▁", "a", "b"]
    (found,) = decode.align(logits, torch.tensor([8]), ["a b"], vocabulary)
    assert found.tokens == (2, 1, 3) and found.text(vocabulary) == "a b"


def test_what_cannot_be_aligned_is_refused() -> None:
    logits, lengths = torch.randn(2, 6, 4), torch.tensor([6, 4])
    with pytest.raises(
        InputError, match="item 1 has 4 frames, but its 3 tokens with 2 repeats need 5; give the"
    ):
        decode.align(logits, lengths, [[1, 1, 1], [2, 2, 2]])
    with pytest.raises(InputError, match=r"token 1 of item 1 is 4, but those .* from 1 to 3, as 0"):
        decode.align(logits, lengths, [[1], [2, 4]])
    with pytest.raises(InputError, match="token 0 of item 0 is 0, but those that can be said"):
        decode.align(logits, lengths, [[0], [2]])
    with pytest.raises(InputError, match="there are 1 texts for 2 items of logits; give one each"):
        decode.align(logits, lengths, [[1]])
    with pytest.raises(InputError, match="targets are texts, but what their tokens are is not"):
        decode.align(logits, lengths, ["a", "b"])
    with pytest.raises(InputError, match="the text of item 1 has 'x', which is no token of the"):
        decode.align(logits, lengths, ["a", "bx"], VOCABULARY)
    with pytest.raises(InputError, match="a text can be parted into byte pairs in many ways"):
        decode.align(logits, lengths, ["a", "b"], ["_", "▁a", "b", "c"])
    logits[0, :, 2] = -math.inf
    with pytest.raises(InputError, match="no path of item 0 through its text has a probability"):
        decode.align(logits, lengths, ["a", "b"], VOCABULARY)
