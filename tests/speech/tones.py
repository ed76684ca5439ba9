"""A language of tones: every letter is a pitch, a space is silence."""

from pathlib import Path
from typing import Any

import numpy as np
import pandas
import soundfile
import torch

from resbackbones.speech import Clips

RATE = 8000
LETTERS = "abcde"
LETTER = 0.16  # seconds


def spoken(text: str, random: Any, seconds: float = LETTER) -> np.ndarray:
    """float32 samples from -1 to 1."""
    parts = [np.zeros(RATE // 20)]
    for letter in text:
        t = np.arange(round(seconds * RATE * random.uniform(0.9, 1.2))) / RATE
        pitch = 0.0 if letter == " " else 300.0 * 1.6 ** LETTERS.find(letter)
        parts.append(0.3 * np.sin(2 * np.pi * pitch * t) * np.hanning(len(t)))
    sound = np.concatenate([*parts, np.zeros(RATE // 20)])
    return (sound + 0.003 * random.standard_normal(len(sound))).astype(np.float32)


def sentence(random: Any) -> str:
    words = ["".join(random.choice(list(LETTERS), random.integers(1, 4))) for _ in range(2)]
    return " ".join(words[: random.integers(1, 3)])


def clips(texts: list[str], seed: int = 0, seconds: float = LETTER) -> Clips:
    random = np.random.default_rng(seed)
    waveforms = [
        torch.from_numpy((32767 * spoken(text, random, seconds)).astype(np.int16)) for text in texts
    ]
    return Clips(waveforms, RATE, list(texts), (), list(range(len(texts))), [])


def folder(where: Path, splits: dict[str, int], seed: int = 0) -> Path:
    """Folders of WAV files beside a metadata.csv with their texts."""
    random = np.random.default_rng(seed)
    for split, count in splits.items():
        (where / split).mkdir(parents=True)
        texts = [sentence(random) for _ in range(count)]
        texts[0] = "abc de"  # so that all letters are in every split
        for number, text in enumerate(texts):
            soundfile.write(where / split / f"{number}.wav", spoken(text, random), RATE)
        names = [f"{number}.wav" for number in range(count)]
        table = pandas.DataFrame({"file_name": names, "text": texts})
        table.to_csv(where / split / "metadata.csv", index=False)
    return where
