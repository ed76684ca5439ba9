"""A wake word from a phrase alone: synthesised speech that has it, and much that has not.

No voice is in two of train, validation and test. What is not the phrase is other words, and words
that sound like it: parts of it, its sounds in another order, and with sounds exchanged; those of
the test split were not trained on either. Everything follows from the phrase and a seed.
"""

import hashlib
import io
from collections.abc import Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import soundfile
import torch
from datasets import ClassLabel, Dataset, Features, Value

from tasks._made import made_once
from tasks.speech._listening import Negatives
from tasks.speech._voices import RATE, any_manner, phonemes, speak, split_voices
from tasks.speech._words import WORDS

OTHER = "other"
CACHE = Path("runs/spoken")
SAID = {"train": 40, "validation": 12, "test": 24}  # of the phrase by each voice
LIKE = {"train": 32, "validation": 8, "test": 8}  # of what sounds like it
SENTENCES = {"train": 32, "validation": 8, "test": 8}
SPEEDS = (120, 240)  # words per minute
MARGIN = 0.4  # seconds of a clip beside the phrase
CUTS = 3  # clips of a sentence
LIKENESS = 0.1  # share of the words of a sentence that sound like the phrase, of those cut
RARE = 0.005  # and of hours of speech, where a neighbour every few seconds would be no speech
HELD_OUT = {"train": (0, 1, 2), "validation": (3,), "test": (4,)}  # of what sounds like it, by hash
Noise = np.random.Generator


def folder(phrase: str, seed: int = 0) -> Path:
    """The folder of clips of a phrase, made now if it is not there: Parquet files that the recipe
    opens as any others, of two classes, the phrase and "other".

    Raises:
        InputError: a phrase without a word, espeak-ng is missing, or the folder cannot be written.
    """
    sounds = Sounds(phrase)
    code = b"".join(sorted(path.read_bytes() for path in Path(__file__).parent.glob("_[evw]*.py")))
    mark = hashlib.sha256(f"{phrase} {seed}".encode() + code).hexdigest()[:8]
    where = CACHE / f"{'-'.join(phrase.lower().split())}-{mark}"

    def splits() -> Iterator[tuple[str, Dataset]]:
        length = 0
        for split, voices in split_voices().items():
            made = Split(sounds, split, voices, seed)
            length = length or made.length
            yield split, made.clips(length)

    return made_once(where, splits, place=str(CACHE), advice="start elsewhere")


def speech(phrase: str, split: str, hours: float, seed: int = 0) -> Iterator[torch.Tensor]:
    """Hours of sentences without the phrase by the voices of a split, piece by piece: float32
    `(samples,)` at 16 kHz."""
    return Split(Sounds(phrase), split, split_voices()[split], seed).speech(hours)


def spoken(phrase: str, hours: float) -> tuple[str, Negatives]:
    """The folder of clips of a phrase, and hours of speech without it by the voices of validation
    and as many by those of test."""
    print(f"synthesising speech for {phrase!r} ...", flush=True)
    choose, tell = (partial(speech, phrase, split, hours) for split in ("validation", "test"))
    name = f"{hours:g} + {hours:g} hours of synthesised speech"
    return str(folder(phrase)), Negatives(choose, tell, name, (3600 * hours,) * 2)


class Sounds:
    """A phrase in phonemes, and what sounds like it."""

    def __init__(self, phrase: str) -> None:
        self.phrase = phrase
        self.words, *others = phonemes([phrase, *WORDS])
        self.others = sorted({sound for (word, *_) in others for sound in word})
        self.own = {"".join(word) for word in self.words}

    def alike(self, random: Noise, parts: Sequence[int]) -> str:
        """Something like the phrase that is not it, of those whose hash is one of these parts."""
        while True:
            words = [list(word) for word in self.words]
            how = random.integers(4)
            if how == 0 and len(words) > 1:  # some of its words, or in another order
                kept = random.permutation(len(words))[: random.integers(1, len(words) + 1)]
                words = [words[place] for place in kept]
            elif how == 1:  # a part of it
                flat = [sound for word in words for sound in word]
                size = random.integers(max(1, len(flat) // 3), max(2, 3 * len(flat) // 4 + 1))
                start = random.integers(0, len(flat) - size + 1)
                words = [flat[start : start + size]]
            else:  # with sounds exchanged, a third of them at least
                places = [(word, place) for word in words for place in range(len(word))]
                count = -(-len(places) // 3) + random.integers(max(1, len(places) // 3))
                for number in random.permutation(len(places))[:count]:
                    word, place = places[number]
                    same = [s for s in self.others if _is_vowel(s) == _is_vowel(word[place])]
                    word[place] = same[random.integers(len(same))]
            text = " ".join(f"[[{''.join(word)}]]" for word in words)
            known = {"".join(word) for word in words}
            part = int(hashlib.sha256(text.encode()).hexdigest()[:8], 16) % 5
            # A phrase of one or two sounds may have no such neighbour in some part.
            if (
                words != self.words
                and known != self.own
                and (part in parts or random.random() < 0.01)
            ):
                return text

    def sentence(self, random: Noise, parts: Sequence[int], share: float = LIKENESS) -> str:
        """Words, a share of them such that sound like the phrase."""
        words = [
            self.alike(random, parts)
            if random.random() < share
            else WORDS[random.integers(len(WORDS))]
            for _ in range(random.integers(4, 13))
        ]
        text = " ".join(words)
        # Chance may say the phrase itself.
        return self.sentence(random, parts, share) if self.phrase.lower() in text else text


class Split:
    """The speech of some voices."""

    def __init__(self, sounds: Sounds, split: str, voices: Sequence[str], seed: int) -> None:
        self.sounds, self.split, self.voices = sounds, split, voices
        self.seed = [seed, list(HELD_OUT).index(split)]
        random = np.random.default_rng(self.seed)
        parts = HELD_OUT[split]
        self.said, self.like, self.other = (
            [any_manner(text(), [voice], SPEEDS, random) for voice in voices for _ in range(count)]
            for text, count in (
                (lambda: sounds.phrase, SAID[split]),
                (lambda: sounds.alike(random, parts), LIKE[split]),
                (lambda: sounds.sentence(random, parts), SENTENCES[split]),
            )
        )
        self.random = random

    @property
    def length(self) -> int:
        """Samples of a clip that has nearly all renditions of the phrase whole."""
        spoken = sorted(len(trimmed(x.numpy())) for x in speak(self.said, self.seed[0]))
        tenth = RATE // 10
        return -(-round(spoken[int(0.98 * len(spoken))] + MARGIN * RATE) // tenth) * tenth

    def clips(self, length: int) -> Dataset:
        """Clips of so many samples, about a quarter of them with the phrase."""
        random = self.random
        spoken = [x.numpy() for x in speak([*self.said, *self.like, *self.other], self.seed[0])]
        said, rest = spoken[: len(self.said)], spoken[len(self.said) :]
        like, other = rest[: len(self.like)], rest[len(self.like) :]
        rows: list[dict[str, Any]] = []

        def add(samples: np.ndarray, label: int, voice: str) -> None:
            samples = noisy(samples, random)
            buffer = io.BytesIO()
            soundfile.write(buffer, samples, RATE, format="FLAC", subtype="PCM_16")
            audio = {"bytes": buffer.getvalue(), "path": f"{self.split}-{len(rows)}.flac"}
            rows.append({"audio": audio, "label": label, "speaker": voice.partition("+")[2]})

        for label, about, words in ((0, self.said, said), (1, self.like, like)):
            for each, word in zip(about, words, strict=True):
                around = other[random.integers(len(other))]
                add(placed(trimmed(word), around, length, random), label, each.voice)
        for each, sentence in zip(self.other, other, strict=True):
            for _ in range(CUTS):
                add(cut(sentence, length, random), 1, each.voice)
        for _ in range(len(said) // 8):  # nothing but noise
            add(np.zeros(length, np.float32), 1, f"+noise of {self.split}")
        features = Features(
            {
                "audio": {"bytes": Value("binary"), "path": Value("string")},
                "label": ClassLabel(names=[self.sounds.phrase, OTHER]),
                "speaker": Value("string"),
            }
        )
        return Dataset.from_list(rows, features)

    def speech(self, hours: float) -> Iterator[torch.Tensor]:
        random = np.random.default_rng([*self.seed, 1])
        left, number = round(3600 * hours * RATE), 0
        while left > 0:
            number += 1
            some = [
                any_manner(
                    self.sounds.sentence(random, HELD_OUT[self.split], RARE),
                    [voice],
                    SPEEDS,
                    random,
                )
                for voice in self.voices
            ]
            for spoken in speak(some, self.seed[0] + number):
                pause = np.zeros(int(random.integers(RATE // 10, RATE)), np.float32)
                piece = noisy(np.concatenate([spoken.numpy(), pause])[:left], random)
                left -= len(piece)
                yield torch.from_numpy(piece)
                if left <= 0:
                    return


def trimmed(samples: np.ndarray) -> np.ndarray:
    """Without the silence around it."""
    loud = np.flatnonzero(np.abs(samples) > 0.02 * np.abs(samples).max())
    return samples[loud[0] : loud[-1] + 1]


def placed(word: np.ndarray, around: np.ndarray, length: int, random: Noise) -> np.ndarray:
    """A word near the end of a clip; before and behind it is silence or, of half of them each,
    other speech."""
    word = word[:length]
    behind = int(random.integers(0, min(int(MARGIN * RATE), length - len(word)) + 1))
    before = length - len(word) - behind
    gaps = random.integers(RATE // 50, RATE // 4, 2)
    first, last = np.zeros(before, np.float32), np.zeros(behind, np.float32)
    if random.random() < 0.5:
        tail = around[: max(0, before - gaps[0])]
        first[before - gaps[0] - len(tail) : before - gaps[0]] = tail
    if random.random() < 0.5:
        head = around[: max(0, behind - gaps[1])]
        last[gaps[1] : gaps[1] + len(head)] = head
    return np.concatenate([first, word, last])


def cut(sentence: np.ndarray, length: int, random: Noise) -> np.ndarray:
    """A part of a sentence, from anywhere in it."""
    padded = np.pad(sentence, (length // 2, length // 2 + max(0, length - len(sentence))))
    start = int(random.integers(0, len(padded) - length + 1))
    return padded[start : start + length]


def noisy(samples: np.ndarray, random: Noise) -> np.ndarray:
    """Of any loudness, with noise 5 to 35 dB below it of any colour from white to brown."""
    sound = samples[samples != 0]  # silence is no part of how loud speech is
    power = np.mean(np.square(sound, dtype=np.float64)) if len(sound) else 1e-3
    shape = np.fft.rfft(random.standard_normal(len(samples)))
    shape *= np.maximum(np.arange(len(shape)), 1.0) ** -random.uniform(0, 1)
    noise = np.fft.irfft(shape, len(samples))
    noise *= np.sqrt(power / np.mean(np.square(noise)) * 10 ** -(random.uniform(0.5, 3.5)))
    mixed = samples + noise
    loudest = 10 ** random.uniform(-1.5, -0.05)
    return (mixed * (loudest / np.abs(mixed).max())).astype(np.float32)


def _is_vowel(sound: str) -> bool:
    return sound.lstrip("',%").startswith(tuple("aeiouAEIOU@03V"))
