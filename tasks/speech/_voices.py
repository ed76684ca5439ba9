"""Synthesised speech: many voices of espeak-ng, at 16 kHz.

espeak-ng is GPL, and comes with the extra `wakeword` (the package espeakng-loader); it is asked for
only where speech is to be made, and runs as a program of its own (`_espeak.py`). Its voices are
rules, not recordings: what is measured on them says what a net can do, and less of people.
"""

import importlib.util
import json
import re
import subprocess
import sys
from collections.abc import Iterator, Sequence
from dataclasses import astuple, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from resbackbones.errors import InputError
from resbackbones.speech import resample

RATE = 16_000
# English as espeak-ng speaks it here and there; what else is called en- takes no variants.
ACCENTS = (
    *("en-us", "en", "en-029", "en-gb-scotland", "en-gb-x-rp", "en-gb-x-gbclan", "en-gb-x-gbcwmd"),
    "en-us-nyc",
)
KIN = "andy anika edward robo".split()  # in the names of voices made of one another


@dataclass(frozen=True)
class Utterance:
    """What is said, and how.

    Attributes:
        voice: an accent and a variant, as "en-us+f2".
        text: words, or phonemes by espeak-ng's names inside [[ ]].
        speed: words per minute, 175 is usual.
        pitch, range: 0 to 99, 50 is usual; how high, and how much it rises and falls.
    """

    voice: str
    text: str
    speed: int = 175
    pitch: int = 50
    range: int = 50


def any_manner(
    text: str, voices: Sequence[str], speeds: tuple[int, int], random: np.random.Generator
) -> Utterance:
    """A text by any of these variants and at any of these speeds, with any accent and pitch."""
    voice = f"{ACCENTS[random.integers(len(ACCENTS))]}+{random.choice(voices)}"
    speed, pitch, rises = (int(random.integers(*r)) for r in (speeds, (25, 76), (20, 90)))
    return Utterance(voice, text, speed, pitch, rises)


def variants() -> list[str]:
    """The voices, each of which speaks with any accent; but for those with breath in them, which
    say the same thing a little differently each time.

    Raises:
        InputError: espeakng-loader is not installed.
    """
    found = importlib.util.find_spec("espeakng_loader")
    if found is None or found.origin is None:
        raise InputError(
            "speech is synthesised by espeak-ng, which is not installed (it is GPL, and so never "
            "asked for by the rest); install it with pip install espeakng-loader, or give "
            "recordings with --data"
        )
    folder = Path(found.origin).parent / "espeak-ng-data" / "voices" / "!v"
    breath = re.compile(rb"^breath\b", re.MULTILINE)
    return sorted(path.name for path in folder.iterdir() if not breath.search(path.read_bytes()))


def split_voices(seed: int = 0) -> dict[str, list[str]]:
    """About 60 / 20 / 20 % of the variants for train, validation and test; numbered ones of one
    name, and the several whispers, stay together."""
    families: dict[str, list[str]] = {}
    for name in variants():
        stem = name.rstrip("0123456789").lower()
        stem = next((kin for kin in KIN if kin in stem), stem)
        families.setdefault(name if stem in "fm" else stem, []).append(name)
    names = sorted(families)
    order = np.random.default_rng(seed).permutation(len(names))
    splits: dict[str, list[str]] = {"test": [], "validation": [], "train": []}
    total = sum(map(len, families.values()))
    wanted = {"test": 0.2 * total, "validation": 0.2 * total, "train": total}
    for place in order:
        split = next(name for name, chosen in splits.items() if len(chosen) < wanted[name])
        splits[split] += families[names[place]]
    return {name: splits[name] for name in ("train", "validation", "test")}


def speak(utterances: Sequence[Utterance], seed: int = 0) -> Iterator[Tensor]:
    """Each one as float32 `(samples,)` from -1 to 1 at 16 kHz, as it is said. The same list and
    seed give the same samples.

    Raises:
        InputError: espeak-ng is not installed, or fails.
    """
    with _program({"seed": seed, "utterances": [astuple(each) for each in utterances]}) as program:
        try:
            rate = int.from_bytes(_read(program, 4), "little")
            for each in utterances:
                count = int.from_bytes(_read(program, 4), "little")
                samples = np.frombuffer(_read(program, 2 * count), np.int16)
                if not count:
                    raise InputError(f"espeak-ng has nothing to say for {each.text!r}; give words")
                yield resample(torch.from_numpy(samples / np.float32(32768)), rate, RATE)
        finally:
            program.kill()  # whoever looks on may have had enough


def phonemes(texts: Sequence[str]) -> list[list[list[str]]]:
    """The phonemes of each word of each text, by espeak-ng's names, as an American says them.

    Raises:
        InputError: as `speak`, or a text without a word.
    """
    with _program({"phonemes": list(texts)}) as program:
        out, error = program.stdout.read(), program.stderr.read()
        if program.wait():
            raise _failed(error)
    found = [
        [word.split("_") for word in text.replace("_ ", " ").split()] for text in json.loads(out)
    ]
    for text, words in zip(texts, found, strict=True):
        if not words:
            raise InputError(f"{text!r} has no word to say; give words, as 'hey robot'")
    return found


def _program(asked: dict[str, Any]) -> Any:
    variants()
    program = subprocess.Popen(
        [sys.executable, str(Path(__file__).with_name("_espeak.py"))],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    )
    assert program.stdin is not None
    program.stdin.write(json.dumps(asked).encode())
    program.stdin.close()
    return program


def _read(program: Any, count: int) -> bytes:
    found: bytes = program.stdout.read(count)
    if len(found) < count:
        raise _failed(program.stderr.read())
    return found


def _failed(error: bytes) -> InputError:
    lines = error.decode(errors="replace").strip().splitlines()
    return InputError(
        f"espeak-ng gave up ({lines[-1] if lines else 'without a word'}); install espeakng-loader "
        "anew"
    )
