"""Data for `tasks.benchmark` that need no network, made once and cached as Parquet.

vision  scikit-learn's 1,797 handwritten digits, 8x8 pixels
speech  ten words spoken by the espeak-ng voices, noise added: synthesised speech, and called so;
        no voice, nor a numbered variant of it, is in two of train, validation and test
text    paragraphs of installed libraries' docstrings; the label is the library
"""

import ast
import collections
import ctypes
import hashlib
import importlib.metadata
import importlib.util
import io
import itertools
import re
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import PIL.Image
from datasets import ClassLabel, Dataset, Features, Image, Value

from resbackbones.errors import InputError
from tasks._made import made_once

WORDS = ("yes", "no", "up", "down", "left", "right", "on", "off", "stop", "go")
RENDITIONS = 2  # of each word by each voice: other speed, pitch, place and noise
RATE = 16_000
LIBRARIES = ("numpy", "pandas", "scipy", "sklearn", "torch")
PARAGRAPHS = 800  # a library, at most
FILES = 250  # read a library, at most: whole libraries take a minute

NAMES = {
    "vision": "scikit-learn digits",
    "speech": "synthesised speech",
    "text": "library docstrings",
}
PACKAGES = {
    "vision": ("scikit-learn",),
    "speech": ("espeakng-loader",),
    "text": ("numpy", "pandas", "scipy", "scikit-learn", "torch"),
}


def default_data(domain: str, cache: str | Path) -> Path:
    """The folder of a domain's default data, made now if the cache does not hold it.

    The folder's name carries the versions the data come from and a mark of this file, so that
    neither a new library nor new code meets old data.
    """
    make = {"vision": digits, "speech": spoken_words, "text": docstrings}[domain]
    return made_once(
        default_folder(domain, cache),
        lambda: make().items(),
        place=f"the data cache {cache}",
        advice="name another with --cache",
    )


def default_folder(domain: str, cache: str | Path) -> Path:
    """Where a domain's default data are, or will be, kept."""
    try:
        versions = [importlib.metadata.version(name) for name in PACKAGES[domain]]
    except importlib.metadata.PackageNotFoundError as error:
        raise InputError(
            f"the default {domain} data need the package {error.name}; install it with "
            f"pip install {error.name}, or name your own data with --{domain}"
        ) from error
    mark = hashlib.sha256(Path(__file__).read_bytes() + "".join(versions).encode()).hexdigest()[:8]
    return Path(cache) / "-".join([NAMES[domain].replace(" ", "-"), *versions[:1], mark])


def digits() -> dict[str, Dataset]:
    """The digits as 8x8 grey PNGs, a quarter and a bit of them held out as the test split."""
    from sklearn.datasets import load_digits
    from sklearn.model_selection import train_test_split

    pixels, labels = load_digits(return_X_y=True)
    pixels = np.round(pixels.reshape(-1, 8, 8) * (255 / 16)).astype(np.uint8)
    features = Features({"image": Image(), "label": ClassLabel(names=list("0123456789"))})
    numbers = np.arange(len(labels))
    train, test = train_test_split(numbers, test_size=497, stratify=labels, random_state=0)

    def rows(chosen: np.ndarray) -> Dataset:
        images = [PIL.Image.fromarray(pixels[row]) for row in chosen]
        return Dataset.from_dict({"image": images, "label": labels[chosen]}, features=features)

    return {"train": rows(np.sort(train)), "test": rows(np.sort(test))}


def spoken_words() -> dict[str, Dataset]:
    """Each word by each voice, one second at 16 kHz as FLAC, white noise 3 to 20 dB below it.

    Everything is seeded but espeak-ng's own breath noise: two builds are alike, not equal bit for
    bit, which is one more reason to keep the first.
    """
    import soundfile
    from scipy.signal import resample_poly

    espeak = Espeak()
    splits = _split_voices(espeak.voices)
    features = Features(
        {
            "audio": {"bytes": Value("binary"), "path": Value("string")},
            "label": ClassLabel(names=list(WORDS)),
            "speaker": Value("string"),
        }
    )

    def clips(voice: str) -> Iterator[dict[str, Any]]:
        # A stream of its own for every voice: no clip depends on which voices came before.
        random = np.random.default_rng(int(hashlib.sha256(voice.encode()).hexdigest()[:8], 16))
        espeak.voice(voice)
        for (label, word), rendition in itertools.product(enumerate(WORDS), range(RENDITIONS)):
            speed, pitch = random.integers(140, 221), random.integers(30, 71)
            spoken = espeak.say(word, speed=int(speed), pitch=int(pitch))
            clip = _placed(resample_poly(spoken, RATE, espeak.rate), random)
            power = np.mean(clip[clip != 0] ** 2)
            noise = np.sqrt(power / 10 ** (random.uniform(3, 20) / 10))
            clip = clip + noise * random.standard_normal(RATE)
            clip *= random.uniform(0.3, 0.9) / np.abs(clip).max()
            buffer = io.BytesIO()
            soundfile.write(buffer, clip, RATE, format="FLAC", subtype="PCM_16")
            audio = {"bytes": buffer.getvalue(), "path": f"{voice}-{word}-{rendition}.flac"}
            yield {"audio": audio, "label": label, "speaker": voice}

    return {
        split: Dataset.from_list([clip for name in voices for clip in clips(name)], features)
        for split, voices in splits.items()
    }


def _placed(clip: np.ndarray, random: np.random.Generator) -> np.ndarray:
    """The word without silence around it, in a random place of one second; a longer one is cut."""
    loud = np.flatnonzero(np.abs(clip) > 0.02 * np.abs(clip).max())
    word = clip[loud[0] : loud[-1] + 1][:RATE]
    start = random.integers(0, RATE - len(word) + 1)
    return np.pad(word, (start, RATE - len(word) - start))


def _split_voices(voices: list[str]) -> dict[str, list[str]]:
    """About 65 / 10 / 25 % of the voices; numbered variants of one voice stay together."""
    families = collections.defaultdict(list)
    for voice in sorted(voices):
        families[voice.rstrip("0123456789")].append(voice)
    names = sorted(families)
    order = [names[i] for i in np.random.default_rng(0).permutation(len(names))]
    splits: dict[str, list[str]] = {"test": [], "validation": [], "train": []}
    wanted = {"test": 0.25 * len(voices), "validation": 0.1 * len(voices), "train": len(voices)}
    for family in order:
        split = next(name for name, chosen in splits.items() if len(chosen) < wanted[name])
        splits[split] += families[family]
    return {name: splits[name] for name in ("train", "validation", "test")}


class Espeak:
    """The part of espeak-ng's C interface that speaks words into arrays."""

    RATE_PARAMETER, PITCH_PARAMETER = 1, 3

    def __init__(self) -> None:
        import espeakng_loader

        self.library = ctypes.CDLL(espeakng_loader.get_library_path())
        data = Path(espeakng_loader.get_data_path())
        # 2: synthesise at once, into the callback. 0x8000: report a failure, do not exit().
        self.rate = self.library.espeak_Initialize(2, 0, str(data).encode(), 0x8000)
        if self.rate <= 0:
            raise InputError(
                f"espeak-ng cannot read its voices in {data}; a path longer than 160 letters is "
                "known to do this: use a shorter one, or name your own data with --speech"
            )
        self.chunks: list[np.ndarray] = []

        @ctypes.CFUNCTYPE(
            ctypes.c_int, ctypes.POINTER(ctypes.c_short), ctypes.c_int, ctypes.c_void_p
        )
        def collect(samples: Any, count: int, events: Any) -> int:
            if samples and count > 0:
                self.chunks.append(np.ctypeslib.as_array(samples, shape=(count,)).copy())
            return 0

        self._collect = collect  # the library keeps only an address: this object must live
        self.library.espeak_SetSynthCallback(collect)
        # Not every language takes variants ("en-gb+..." mostly fails), so ask; an unknown variant
        # is quietly the plain voice, so take only those that the data hold.
        variants = sorted(path.name for path in (data / "voices" / "!v").iterdir())
        self.voices = [name for name in variants if self.voice(name)]

    def voice(self, name: str) -> bool:
        """Speak with this variant of the American voice from now on; False where it has none."""
        return self.library.espeak_SetVoiceByName(f"en-us+{name}".encode()) == 0

    def say(self, word: str, *, speed: int, pitch: int) -> np.ndarray:
        """One word as float64 samples in [-1, 1] at `self.rate`."""
        self.library.espeak_SetParameter(self.RATE_PARAMETER, speed, 0)
        self.library.espeak_SetParameter(self.PITCH_PARAMETER, pitch, 0)
        self.chunks.clear()
        text = word.encode() + b"\0"
        size = ctypes.c_size_t(len(text))
        # Positions count characters (1); text is UTF-8 (1).
        error = self.library.espeak_Synth(text, size, 0, 1, 0, 1, None, None)
        if error or not self.chunks:
            raise RuntimeError(f"espeak-ng spoke nothing for {word!r} (code {error})")
        return np.concatenate(self.chunks) / 32768.0


def docstrings() -> dict[str, Dataset]:
    """The same number of paragraphs from each library, every fifth (by hash) in the test split.

    A paragraph that stands twice (case and numbers make no difference) counts once, one that two
    libraries share not at all."""
    owners: dict[str, set[int]] = collections.defaultdict(set)
    texts: dict[str, str] = {}
    for label, name in enumerate(LIBRARIES):
        for text in paragraphs(name):
            plain = re.sub(r"\d+", "0", text.lower())
            owners[plain].add(label)
            texts[plain] = text
    found: list[list[str]] = [[] for _ in LIBRARIES]
    for plain, labels in owners.items():
        if len(labels) == 1:
            found[min(labels)].append(texts[plain])
    count = min(PARAGRAPHS, *map(len, found))
    splits: dict[str, list[dict[str, Any]]] = {"train": [], "test": []}
    for label, chosen in enumerate(found):
        for text in chosen[:count]:
            number = int(hashlib.sha256(text.encode()).hexdigest()[:8], 16)
            splits["train" if number % 5 else "test"].append({"text": text, "label": label})
    features = Features({"text": Value("string"), "label": ClassLabel(names=list(LIBRARIES))})
    return {name: Dataset.from_list(rows, features) for name, rows in splits.items()}


def paragraphs(library: str) -> Iterator[str]:
    """Paragraphs of 8 to 120 words out of a library's docstrings, without examples."""
    spec = importlib.util.find_spec(library)  # finds, does not import
    if spec is None or not spec.submodule_search_locations:
        raise InputError(f"the library {library} is not installed; name your own data with --text")
    root = Path(spec.submodule_search_locations[0])
    other = {"tests", "testing", "_vendor", "externals"}
    names = {path.relative_to(root) for path in root.rglob("*.py") if path.stat().st_size < 300_000}
    ours = [name for name in names if not other & set(name.parts)]
    # By hash: a bounded number of files spread over the whole library, the same on every machine.
    ours.sort(key=lambda name: hashlib.sha256(name.as_posix().encode()).digest())
    for path in (root / name for name in ours[:FILES]):
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # other people's invalid escapes
            tree = ast.parse(path.read_text(encoding="utf-8"))
        for node in ast.walk(tree):
            if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef):
                for part in re.split(r"\n\s*\n", ast.get_docstring(node) or ""):
                    words = part.split()
                    if ">>>" not in words and 8 <= len(words) <= 120:
                        yield " ".join(words)
