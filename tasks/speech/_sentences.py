"""Sentences of common words by synthesised voices, for a recogniser without recordings.

No voice, and no sentence, is in two of train, validation and test. Everything follows from a seed.
"""

import hashlib
import io
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import soundfile
from datasets import Dataset, Features, Value
from tqdm import tqdm

from tasks._made import made_once
from tasks.speech._voices import RATE, Utterance, any_manner, speak, split_voices
from tasks.speech._words import WORDS

NAME = "synthesised sentences"
CACHE = Path("runs/spoken")
SENTENCES = {"train": 2000, "validation": 150, "test": 300}
LENGTHS = (3, 6)  # words of a sentence, fewest and most
# As people speak: espeak-ng takes short words faster than it says, and a recogniser needs a frame
# for every letter.
SPEEDS = (100, 160)


def folder(seed: int = 0) -> Path:
    """The folder of the sentences, made now if it is not there: Parquet files that the recipe opens
    as any others, with columns audio, text and speaker.

    Raises:
        InputError: espeak-ng is missing, or the folder cannot be written.
    """
    code = b"".join(sorted(path.read_bytes() for path in Path(__file__).parent.glob("_[esvw]*.py")))
    where = CACHE / f"sentences-{hashlib.sha256(f'{seed}'.encode() + code).hexdigest()[:8]}"

    def splits() -> Iterator[tuple[str, Dataset]]:
        print(f"synthesising {sum(SENTENCES.values()):,} sentences, this once ...", flush=True)
        for split, said in utterances(seed).items():
            yield split, spoken(split, said, seed)

    return made_once(where, splits, place=str(CACHE), advice="start elsewhere")


def utterances(seed: int = 0) -> dict[str, list[Utterance]]:
    """What is said in each split, by which voice."""
    random, used = np.random.default_rng(seed), set()
    found: dict[str, list[Utterance]] = {}
    for split, voices in split_voices(seed).items():
        found[split] = []
        while len(found[split]) < SENTENCES[split]:
            words = random.choice(WORDS, random.integers(LENGTHS[0], LENGTHS[1] + 1))
            text = " ".join(words.tolist())
            if text in used:
                continue
            used.add(text)
            found[split].append(any_manner(text, voices, SPEEDS, random))
    return found


def spoken(split: str, said: list[Utterance], seed: int) -> Dataset:
    """Recordings of utterances."""
    rows = []
    heard = tqdm(speak(said, seed), split, total=len(said), leave=False, disable=None)
    for number, (each, samples) in enumerate(zip(said, heard, strict=True)):
        buffer = io.BytesIO()
        soundfile.write(buffer, samples.numpy(), RATE, format="FLAC", subtype="PCM_16")
        audio = {"bytes": buffer.getvalue(), "path": f"{split}-{number}.flac"}
        speaker = each.voice.partition("+")[2]
        rows.append({"audio": audio, "text": each.text, "speaker": speaker})
    audio_type = {"bytes": Value("binary"), "path": Value("string")}
    columns = {"audio": audio_type, "text": Value("string"), "speaker": Value("string")}
    return Dataset.from_list(rows, Features(columns))
