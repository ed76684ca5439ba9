"""A recording heard piece by piece, or chunk by chunk, gives the logits and words of the whole, as
soon as said, in bounded memory; what cannot be is refused by name."""

import functools
import itertools
import math
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

import resbackbones as rb
from resbackbones.errors import InputError
from resbackbones.speech import (
    FrontEnd,
    ResidualCTCProcessor,
    ResidualFeatureExtractor,
    ResidualForCTC,
    decode,
    given_vocabulary,
    learn_vocabulary,
)
from resbackbones.speech.frames import FrameStream
from resbackbones.speech.streaming import ChunkedSpeech, WordStream
from tests.speech.helpers import as_if_trained, noise

RATE = 8000
LETTERS = learn_vocabulary(["abcde fghi"])
PIECES = given_vocabulary(["▁a", "b", "▁cd", "e", "f"])
DENSE = rb.BackboneSpec(
    (rb.Stage(16, 1, 2, kernel=3), rb.Stage(24, 1, 2, kernel=3)),
    dims=1,
    in_channels=20,
    stem=rb.Stem(16, 5),
)
# As QuartzNet: separable, a stride at the door, a dilated tail.
SEPARABLE = rb.BackboneSpec(
    (rb.Stage(16, 2, kernel=5),),
    dims=1,
    in_channels=20,
    branch=rb.Separable(2),
    shortcut="always",
    stem=rb.Stem(16, 5, 2, separable=True),
    tail=(rb.Layer(24, 5, dilation=2, separable=True),),
)
SQUEEZED = rb.BackboneSpec(
    (rb.Stage(16, 1, 2, kernel=3),),
    dims=1,
    in_channels=20,
    attention="se",
    attention_reduction=4,
    stem=rb.Stem(16, 5),
)
NETS: dict[str, tuple[rb.BackboneSpec, dict[str, Any]]] = {
    "dense": (DENSE, {}),
    "separable, Kaldi's features": (SEPARABLE, {"kind": "fbank"}),
    "normalised by learned numbers": (
        DENSE,
        {"normalize": "global", "means": [4.0] * 20, "deviations": [2.0] * 20},
    ),
}
FRONT_ENDS: dict[str, dict[str, Any]] = {
    "log_mel": {},
    "mfcc": {"kind": "mfcc", "n_mels": 30},
    "fbank": {"kind": "fbank"},
    "fbank, apart": {"kind": "fbank", "hop": 0.06},
    "log_mel, apart": {"hop": 0.1},
}


@functools.cache
def model(name: str = "dense", causal: bool = True, tokenizer: Any = LETTERS) -> ResidualForCTC:
    """In evaluation mode, with more than one answer."""
    spec, options = NETS.get(name) or (SQUEEZED, {})
    hear = ResidualFeatureExtractor(feature_size=20, sampling_rate=RATE, **options)
    torch.manual_seed(1)
    made = ResidualForCTC.build(
        spec, processor=ResidualCTCProcessor(hear, tokenizer), causal=causal
    )
    torch.nn.init.normal_(made.head.linear.weight)
    return as_if_trained(made)


def chunked(made: ResidualForCTC, *times: Any) -> ChunkedSpeech:
    return ChunkedSpeech(made.processor.feature_extractor, made.backbone, made.head, *times)


def whole(made: ResidualForCTC, samples: Tensor) -> Tensor:
    with torch.no_grad():
        return made(**made.processor([samples], return_tensors="pt")).logits


def in_pieces(samples: Tensor, sizes: list[int]) -> list[Tensor]:
    edges = np.minimum(np.cumsum([0, *sizes]), len(samples)).tolist()
    return [*(samples[a:b] for a, b in itertools.pairwise(edges)), samples[edges[-1] :]]


def read(stream: Any, pieces: list[Tensor]) -> Tensor:
    return torch.cat([*map(stream.push, pieces), stream.finish()], 1)


def close(found: Tensor, expected: Tensor) -> bool:
    same = found.shape == expected.shape
    return same and bool((found - expected).abs().max() <= 1e-4 * max(1.0, expected.abs().max()))


LENGTHS = st.one_of(st.integers(1, 12_000), st.integers(1, 500))
SIZES = st.lists(st.one_of(st.integers(0, 3), st.integers(0, 5_000)), max_size=12)


@pytest.mark.parametrize("options", FRONT_ENDS.values(), ids=FRONT_ENDS)
@settings(max_examples=25)
@given(length=LENGTHS, sizes=SIZES, block=st.one_of(st.none(), st.integers(1, 9)))
def test_frames_of_pieces_are_those_of_the_whole(
    options: dict[str, Any], length: int, sizes: list[int], block: int | None
) -> None:
    front_end = FrontEnd(feature_size=20, sampling_rate=RATE, **options)
    (samples,) = noise(length, seed=length)
    expected, frames = front_end(samples[None])

    def powers() -> Tensor:
        stream = FrameStream(front_end, block=block)
        told = [power for piece in in_pieces(samples, sizes) for power in stream.push(piece)]
        assert block is None or all(power.shape[2] == block for power in told)
        return torch.cat([*told, *stream.finish()], 2)

    assert close(front_end.features(powers(), frames), expected)


@pytest.mark.parametrize("name", NETS)
@settings(max_examples=25)
@given(length=LENGTHS, sizes=SIZES)
def test_a_stream_gives_what_the_whole_gives(name: str, length: int, sizes: list[int]) -> None:
    (samples,) = noise(length, seed=length)
    made = model(name)
    stream = made.stream()
    assert close(read(stream, in_pieces(samples, sizes)), whole(made, samples))
    assert stream.seconds_per_frame == made.config.inputs_to_logits_ratio / RATE


def test_a_stream_takes_sample_by_sample_and_any_kind_of_samples() -> None:
    (samples,) = noise(1500)
    expected = whole(model(), samples)
    assert close(read(model().stream(), list(samples.split(1))), expected)
    coarse = (samples * 32767).short()
    assert close(read(model().stream(), list(coarse.split(400))), whole(model(), coarse))
    pieces: list[Any] = [samples[:700].tolist(), [], samples[700:].numpy()]
    assert close(read(model().stream(), pieces), expected)
    both = torch.stack([samples, samples], 1)  # two channels
    assert close(read(model().stream(), list(both.split(500))), expected)


@pytest.mark.parametrize("name", NETS)
@pytest.mark.parametrize("causal", [False, True])
@settings(max_examples=15)
@given(length=LENGTHS, sizes=SIZES, chunk=st.floats(0.01, 1.0))
def test_chunks_give_what_the_whole_gives(
    name: str, causal: bool, length: int, sizes: list[int], chunk: float
) -> None:
    (samples,) = noise(length, seed=length)
    made = model(name, causal)
    reading = chunked(made, chunk)
    assert reading.is_exact
    assert close(read(reading, in_pieces(samples, sizes)), whole(made, samples))


def test_chunks_that_read_less_than_the_net_reaches_are_approximate() -> None:
    (samples,), made = noise(12_000), model(causal=False)
    reach = max(made.backbone.spec.reaches[-1]) * 0.01
    expected = whole(made, samples)
    for overlap, exact in ((reach, True), (reach + 0.3, True), (0.0, False)):
        reading = chunked(made, 0.2, overlap)
        found = read(reading, [samples])
        assert reading.is_exact is exact is close(found, expected)
        assert found.shape == expected.shape
    # Of a net without an end of its reach, all that can be is an approximation.
    squeezed = model("squeezed", causal=False)
    with pytest.raises(InputError, match=r"whole recording \(attention='se'\).* give overlap= in"):
        chunked(squeezed, 0.2)
    reading = chunked(squeezed, 0.4, 0.2)
    assert not reading.is_exact
    assert read(reading, [samples]).shape == whole(squeezed, samples).shape


def test_chunks_are_at_least_as_long_as_what_is_read_around_them() -> None:
    quartz = rb.SPECS["quartznet15x5"]
    head = torch.nn.Linear(1024, 3)
    net = rb.Backbone(quartz).eval()
    reading = ChunkedSpeech(ResidualFeatureExtractor(feature_size=64), net, head)
    assert reading._own >= reading._before + reading._after > 8000
    assert chunked(model())._own == 30 * 100


def test_latency_is_as_said_and_no_less() -> None:
    """The frame of the logits centred on a sample, or the next one, is told so much later."""
    (samples,) = noise(3000)
    for name in NETS:
        stream = model(name).stream()
        frame, told, waits = stream.seconds_per_frame * RATE, 0, []
        for heard, sample in enumerate(samples.split(1), 1):
            new = stream.push(sample).shape[1]
            if new:  # of samples up to the last frame that is told
                first = 0 if told == 0 else (told - 1) * frame + 1
                waits.append((heard - first) / RATE)
            told += new
        assert stream.latency_seconds - 2 / RATE <= max(waits) <= stream.latency_seconds


def test_a_stream_keeps_no_more_than_the_net_reaches() -> None:
    def held(stream: Any) -> int:
        kept = [stream._frames._held, *(x for x, _ in stream._stream._context.memory.values())]
        return sum(each.untyped_storage().nbytes() for each in kept)

    stream, (second,) = model().stream(), noise(RATE)
    sizes = []
    for _ in range(12):
        stream.push(second)
        sizes.append(held(stream))
    assert max(sizes[2:]) <= max(sizes[:2])
    reading = chunked(model(causal=False), 0.3)
    for _ in range(12):
        reading.push(second)
    seconds = 0.3 + 0.01 * (model(causal=False).backbone.receptive_field + 8)
    assert reading._power.untyped_storage().nbytes() <= 4 * 20 * 100 * seconds
    # However much is given at once.
    assert close(read(model().stream(), [noise(600_000)[0]]), whole(model(), noise(600_000)[0]))


@pytest.mark.parametrize("tokenizer", [LETTERS, PIECES, given_vocabulary("日本語")])
@settings(max_examples=40)
@given(seed=st.integers(0, 10_000), frames=st.integers(0, 60), sizes=st.lists(st.integers(0, 20)))
def test_words_come_as_they_are_complete(
    tokenizer: Any, seed: int, frames: int, sizes: list[int]
) -> None:
    symbols = tokenizer.symbols
    random = torch.Generator().manual_seed(seed)
    path = torch.randint(len(symbols), (frames,), generator=random).repeat_interleave(2)
    noisy = torch.randn(len(path), len(symbols), generator=random)
    logits = (noisy + 4 * torch.nn.functional.one_hot(path, len(symbols)))[None]
    (hypothesis,) = decode.greedy(logits, torch.tensor([len(path)]))
    expected = hypothesis.units(symbols, 0.04)
    words, told = WordStream(symbols, 0.04), []
    edges = np.minimum(np.cumsum([0, *sizes]), len(path)).tolist()
    for start, end in itertools.pairwise([*edges, len(path)]):
        told += words.push(logits[:, start:end])
        # What is told is what no later frame changes: the words of the whole, in their order.
        assert [word.text for word in told] == [word.text for word in expected[: len(told)]]
        heard = decode.greedy(logits[:, :end], torch.tensor([end]))[0]
        left = heard.units(symbols, 0.04)[len(told) :]
        assert words.partial == "".join(word.text for word in left) and len(left) <= 1
    told += words.finish()
    assert [word.text for word in told] == [word.text for word in expected]
    for one, other in zip(told, expected, strict=True):
        assert (one.start, one.end) == (other.start, other.end)
        assert math.isclose(one.confidence, other.confidence, rel_tol=1e-5)
    assert words.partial == ""


def test_silence_and_nothing() -> None:
    silence = torch.zeros(5000)
    assert close(read(model().stream(), [silence]), whole(model(), silence))
    for stream in (model().stream(), chunked(model(causal=False))):
        assert stream.push([]).shape == stream.finish().shape == (1, 0, len(LETTERS))


def test_what_cannot_stream_is_refused_by_name() -> None:
    squeezed, ahead = model("squeezed", causal=False), model(causal=False)
    with pytest.raises(InputError, match="attention='se' looks at the whole recording"):
        squeezed.stream()
    with pytest.raises(InputError, match=r"reads ahead.* causal=True"):
        ahead.stream()
    hear = ResidualFeatureExtractor(feature_size=20, sampling_rate=RATE, normalize="mean_std")
    processor = ResidualCTCProcessor(hear, LETTERS)
    normalised = ResidualForCTC.build(DENSE, processor=processor, causal=True).eval()
    with pytest.raises(InputError, match="normalize='mean_std' looks at the whole"):
        normalised.stream()
    with pytest.raises(InputError, match=r"whole recording .normalize='mean_std'"):
        chunked(normalised)
    with pytest.raises(InputError, match=r"call \.eval\(\)"):
        ResidualForCTC.build(DENSE, vocabulary=LETTERS, causal=True).stream()
    normalised.processor = None
    with pytest.raises(InputError, match="no processor"):
        normalised.stream()
    for times, said in (((0,), "chunk=0"), ((math.nan,), "chunk=nan"), ((1, -1), "overlap=-1")):
        with pytest.raises(InputError, match=said):
            chunked(ahead, *times)
    stream = model().stream()
    for samples, said in (
        ([torch.zeros(5), torch.zeros(5)], "2 recordings"),
        (torch.tensor([0.0, math.nan]), "not finite"),
    ):
        with pytest.raises(InputError, match=said):
            stream.push(samples)
    stream.push(torch.zeros(100))
    stream.finish()
    for call in (stream.finish, lambda: stream.push(torch.zeros(1))):
        with pytest.raises(InputError, match=r"finished; begin another one with model\.stream"):
            call()
