"""Recordings of any length are written down as the whole would be where the net is local, called
approximate elsewhere, and take the memory of a chunk."""

import functools
import io
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

import resbackbones as rb
from resbackbones.core.pieces import Approximate
from resbackbones.errors import InputError
from resbackbones.speech import (
    ResidualCTCProcessor,
    ResidualFeatureExtractor,
    ResidualForCTC,
    Segment,
    decode,
    departure,
    given_vocabulary,
    joined,
    transcribe_long,
)
from tests.speech import tones
from tests.speech.helpers import as_if_trained

SPEC = rb.BackboneSpec(
    (rb.Stage(32, 1, 2, kernel=3),), dims=1, in_channels=20, stem=rb.Stem(32, 5, 2)
)
LETTERS = given_vocabulary([" ", *tones.LETTERS])


def labelled(text: str, random: Any) -> tuple[Tensor, Tensor]:
    """Tones, as `tones.spoken` has them, and of each sample its letter from 2 on, or 1 for what is
    silent, or 0 for what is between."""
    sounds, labels = [], []
    for letter in text:
        t = np.arange(round(tones.LETTER * tones.RATE * random.uniform(0.9, 1.2))) / tones.RATE
        loud = np.hanning(len(t)) * (letter != " ")
        place = tones.LETTERS.find(letter)
        sounds.append(0.3 * np.sin(2 * np.pi * 300 * 1.6**place * t) * loud)
        labels.append(np.select([loud > 0.3, loud < 0.02], [place + 2, 1], 0))
    sound = np.concatenate(sounds) + 0.003 * random.standard_normal(sum(map(len, sounds)))
    return torch.from_numpy(sound).float(), torch.from_numpy(np.concatenate(labels))


@functools.cache
def model(normalize: str = "none", tokenizer: Any = LETTERS, **changes: Any) -> ResidualForCTC:
    """One that knows its letters: its net as drawn, its head fitted by least squares. Silence is a
    space, where there is one."""
    hear = ResidualFeatureExtractor(feature_size=20, sampling_rate=tones.RATE, normalize=normalize)
    torch.manual_seed(3)
    processor = ResidualCTCProcessor(hear, tokenizer)
    made = as_if_trained(ResidualForCTC.build(SPEC, processor=processor, **changes))
    random, known, wanted = np.random.default_rng(1), [], []
    size = made.config.inputs_to_logits_ratio
    for _ in range(30):
        text = "".join(random.choice([*tones.LETTERS, *"   "], 20))
        sound, labels = labelled(text, random)
        with torch.no_grad():
            (feature,) = made.backbone(hear(sound, return_tensors="pt")["input_features"])[-1:]
        own = labels[::size]
        known.append(feature[0].T[: len(own)].double())
        wanted.append(own if tokenizer is LETTERS else (own - 1).clamp(min=0))
    x, y = torch.cat(known), torch.cat(wanted)
    x = torch.cat([x, torch.ones(len(x), 1)], 1)
    targets = 8 * torch.nn.functional.one_hot(y, made.config.vocab_size).double()
    fitted = torch.linalg.lstsq(x, targets, driver="gelsd").solution.float()
    with torch.no_grad():
        made.head.linear.weight.copy_(fitted[:-1].T)
        made.head.linear.bias.copy_(fitted[-1])
    return made


@functools.cache
def talk(seconds: int = 20, seed: int = 0) -> Tensor:
    """Sentences of tones with pauses between them."""
    random = np.random.default_rng(seed)
    parts: list[np.ndarray] = []
    while sum(map(len, parts)) < seconds * tones.RATE:
        pause = np.zeros(int(random.uniform(0, 1.5) * tones.RATE), np.float32)
        parts += [tones.spoken(tones.sentence(random), random), pause]
    return torch.from_numpy(np.concatenate(parts)[: seconds * tones.RATE]).float()


def texts(segments: Any) -> list[str]:
    return [segment.text for segment in segments]


@pytest.mark.parametrize("causal", [False, True])
@settings(max_examples=8)
@given(chunk=st.floats(0.05, 5.0), pause=st.floats(0.04, 1.0), size=st.integers(100, 50_000))
def test_what_is_written_is_what_the_whole_says(
    causal: bool, chunk: float, pause: float, size: int
) -> None:
    made, samples = model(causal=causal), talk(6)
    found = list(transcribe_long(made, samples.split(size), chunk=chunk, pause=pause))
    assert joined(found, made.symbols) == made.transcribe(samples)[0]
    # The words, and their times, are those of the whole.
    with torch.no_grad():
        logits = made(**made.processor([samples], return_tensors="pt")).logits
    (whole,) = decode.greedy(logits, torch.tensor([logits.shape[1]]))
    seconds = made.config.inputs_to_logits_ratio / tones.RATE
    words = whole.words(made.symbols, seconds)
    told = [word for segment in found for word in segment.words]
    assert [word.text for word in told] == [word.text for word in words]
    for one, other in zip(told, words, strict=True):
        assert (one.start, one.end) == pytest.approx((other.start, other.end))
        assert one.confidence == pytest.approx(other.confidence, abs=1e-4)
    for segment in found:
        first, last = segment.words[0], segment.words[-1]
        assert (segment.start, segment.end) == (first.start, last.end)


def test_it_knows_its_letters() -> None:
    """So that what is said of it here is of a recogniser."""
    random = np.random.default_rng(9)
    sound = torch.from_numpy(tones.spoken("abc de bad", random))
    (text,) = model().transcribe(sound)
    assert text.replace(" ", "") == "abcdebad"
    (segment,) = transcribe_long(model(), sound)
    assert segment.text == text and segment.words[-1].text == "bad"
    assert segment.words[-1].start == pytest.approx(0.05 + 7 * 1.05 * tones.LETTER, abs=0.25)


def test_a_longer_pause_makes_fewer_segments() -> None:
    counts = [len(list(transcribe_long(model(), talk(), pause=p))) for p in (0.08, 0.3, 20.0)]
    assert counts[0] > counts[1] > counts[2] >= 1
    spans = [s.end - s.start for s in transcribe_long(model(), talk(), pause=20.0, longest=2.0)]
    assert len(spans) >= 10 and max(spans) <= 2.0 + 1e-6


def test_nets_that_look_at_the_whole_are_approximate() -> None:
    squeezed = model(attention="se", attention_reduction=4)
    for made, why in ((squeezed, "attention='se'"), (model("mean_std"), "normalize='mean_std'")):
        with pytest.warns(Approximate, match=f"heard alone, as {why} looks at the whole"):
            found = transcribe_long(made, talk(), longest=4.0)
        found = list(found)
        assert len(found) > 3 and found == sorted(found, key=lambda s: s.start)
        with pytest.raises(InputError, match=f"whole recording .{why}"):
            transcribe_long(made, talk(), endpoints="model")
        with pytest.warns(Approximate, match="overlap by 0.5 s"):
            list(transcribe_long(made, talk(), chunk=2.0, overlap=0.5))
        rates = departure(made, talk(), longest=4.0)
        assert 0 < rates.compute()["cer"] < 1
    assert departure(model(), talk()).compute()["cer"] == 0
    # Each piece alone, in a batch or not.
    with pytest.warns(Approximate):
        one, many = (list(transcribe_long(squeezed, talk(), chunk=c)) for c in (0.1, 30.0))
    assert texts(one) == texts(many)
    assert [s.start for s in one] == pytest.approx([s.start for s in many])
    with pytest.warns(Approximate, match="heard alone$"):  # what it would not need
        list(transcribe_long(model(), talk(), endpoints="energy"))


def test_any_search_may_find_the_texts() -> None:
    made = model()
    search = decode.BeamSearch(made.symbols, width=4, length_bonus=3.0)
    found = list(transcribe_long(made, talk(), search=search))
    assert texts(found) != texts(transcribe_long(made, talk()))


def test_a_script_without_spaces_is_told_by_symbols() -> None:
    made = model(tokenizer=given_vocabulary("日本語文字列"))
    found = list(transcribe_long(made, talk(), pause=0.1))
    assert len(found) > 1 and all(len(word.text) == 1 for s in found for word in s.words)
    assert joined(found, made.symbols) == made.transcribe(talk())[0]


def file_of(samples: Any, form: str = "WAV", rate: int = tones.RATE) -> dict[str, Any]:
    file = io.BytesIO()
    soundfile.write(file, samples, rate, format=form)
    return {"bytes": file.getvalue(), "path": None}


def test_any_source_gives_the_same(tmp_path: Path) -> None:
    samples = (talk(6) * 32767).short()
    expected = list(transcribe_long(model(), samples))
    soundfile.write(tmp_path / "x.wav", samples.numpy(), tones.RATE)
    stereo = torch.stack([samples, samples], 1)
    for source in (
        tmp_path / "x.wav",
        str(tmp_path / "x.wav"),
        file_of(samples.numpy()),
        samples.numpy(),
        stereo,
        stereo.split(1000),
        (samples.double() / 32768).tolist(),
        iter([samples[:3], samples[:0], samples[3:]]),
    ):
        found = list(transcribe_long(model(), source))
        assert texts(found) == texts(expected)
        assert [s.start for s in found] == pytest.approx([s.start for s in expected])


def test_odd_recordings_are_heard_and_broken_ones_named(tmp_path: Path) -> None:
    for odd in (torch.zeros(1), torch.zeros(50_000), torch.ones(7)):
        for made in (model(), model(causal=True)):
            (whole,) = made.transcribe(odd)
            assert joined(transcribe_long(made, odd), made.symbols) == whole
        with pytest.warns(Approximate):
            list(transcribe_long(model("mean_std"), odd))
    assert list(transcribe_long(model(), [])) == []
    (tmp_path / "cut.wav").write_bytes(file_of(talk(2).numpy())["bytes"][:5000])
    (tmp_path / "no.wav").write_bytes(b"")
    for source, said in (
        (tmp_path / "cut.wav", "cut short"),
        (tmp_path / "no.wav", "empty"),
        (torch.tensor([0.0, float("nan")]), "not finite"),
        (torch.zeros(9, 9), "clip 0 has shape"),
    ):
        with pytest.raises(InputError, match=said):
            list(transcribe_long(model(), source))


def test_bad_input_is_one_sentence() -> None:
    for wrong, said in (
        ({"pause": 0}, "pause=0"),
        ({"longest": -1}, "longest=-1"),
        ({"chunk": float("nan")}, "chunk=nan"),
        ({"overlap": -1}, "overlap=-1"),
        ({"endpoints": "modell"}, "'model'"),
    ):
        with pytest.raises(InputError, match=said):
            transcribe_long(model(), talk(6), **wrong)


def test_the_model_stays_in_its_mode() -> None:
    made = model().train()
    try:
        found = transcribe_long(made, talk(6))
        first = next(found)
        assert isinstance(first, Segment) and made.training
        list(found)
        assert made.training
    finally:
        made.eval()


LONG = """
import resource, sys
import torch
from tests.speech.test_long import model, talk
from resbackbones.speech import transcribe_long

made, minute = model(), talk(60)
def blocks(minutes):
    for _ in range(minutes):
        yield minute
unit = 2**20 if sys.platform == "darwin" else 2**10
peak = lambda: resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / unit
few = sum(len(s.text) for s in transcribe_long(made, blocks(3)))
before = peak()
many = sum(len(s.text) for s in transcribe_long(made, blocks(30)))
print(many / few, peak() - before)
"""


def test_half_an_hour_takes_the_memory_of_minutes() -> None:
    """Its samples alone would be 58 MB."""
    pytest.importorskip("resource")
    ended = subprocess.run(
        [sys.executable, "-c", LONG],
        capture_output=True, text=True, timeout=300, cwd=Path(__file__).parents[2],
    )  # fmt: skip
    assert ended.returncode == 0, ended.stderr
    share, megabytes = map(float, ended.stdout.split())
    assert share == pytest.approx(10, rel=0.01) and megabytes < 30
