"""What the recipe of keywords does with long recordings: set a threshold by them, count false
alarms in them, and tell the moments of words in a file."""

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from tqdm import tqdm

from resbackbones import report
from resbackbones.data import NoTarget, open_dataset
from resbackbones.data.columns import MEDIA
from resbackbones.deploy import fold
from resbackbones.errors import InputError
from resbackbones.speech import Augment, Clips, ResidualFeatureExtractor, decode_audio
from resbackbones.speech import ResidualForAudioClassification as Model
from resbackbones.speech.detection import Detector, Listener, smoothed
from resbackbones.speech.explain import picture
from resbackbones.speech.operating import (
    OperatingCurve,
    OperatingPoint,
    events,
    operating_curve,
    pause,
)
from resbackbones.speech.recordings import FULL_SCALE
from tasks._classification import Classification
from tasks._running import wrapped

# Classes that are no word to detect, whatever stands around their names.
OTHER_WORDS = ("other", "unknown", "negative")
NO_WORDS = {*OTHER_WORDS, "silence", "noise", "background", "background noise"}
SPLICE = 0.15
BLOCK = 32  # hops of a file that are computed together
SMOOTHINGS = (1, 2, 3, 5, 7, 10)  # hops to choose from
PIECE = 10  # seconds of a file between two steps of the bar
Speech = Callable[[], Iterable[Tensor]]


@dataclass(frozen=True, kw_only=True)
class Listening(Classification):
    """The fields of a recipe whose models listen to long recordings."""

    phrase: str | None = None
    """Learn this wake word, as "hey robot", from synthesised speech instead of --data."""
    synthesised: int = 0
    """So many clips of the name of each class, by voices of espeak-ng (the extra `wakeword`), that
    training hears beside --data, where it has few speakers."""
    negatives: str | None = None
    """Long recordings without a keyword, a folder or a data set: half of them choose the threshold
    of a detector, the other half count its false alarms (of --phrase: synthesised)."""
    hours: float = 2.0
    """Of synthesised speech for each half."""
    false_alarms: float = 0.5
    """Per hour; the threshold is chosen for so many."""
    keywords: tuple[str, ...] = ()
    """Classes that are words to detect (all but those called other, unknown, silence or noise)."""
    listen: tuple[Path, ...] = ()
    """With --predict MODEL: recordings of any length, of which the moments of words are told."""
    splice: float | None = None
    """Share of training clips that go on with the second half of another one and are no word, as
    what a detector hears between words: fewer false alarms, and less accuracy (0.15 with
    --negatives and a class called other, unknown or negative, else none)."""
    explain: Path | None = None
    """With --predict MODEL FILE: a picture of where in the spectrogram the answer comes from (of
    several files a folder)."""

    def __post_init__(self) -> None:
        if self.phrase is not None:
            made = f"synthesised {self.phrase}"
            if self.data not in (None, made):
                raise InputError("--phrase makes its own data; give --phrase or --data")
            object.__setattr__(self, "data", made)
        super().__post_init__()
        for name in ("listen", "explain"):
            if getattr(self, name) and not self.predict:
                raise InputError(f"--{name} asks a saved model; give it with --predict MODEL")
        if self.synthesised < 0 or (self.synthesised and self.phrase is not None):
            raise InputError(
                f"--synthesised is {self.synthesised}; give a number from 0 up, and recordings "
                "with --data (all that --phrase hears is synthesised)"
            )
        for name in ("hours", "false_alarms"):
            if not getattr(self, name) > 0:
                raise InputError(
                    f"--{name.replace('_', '-')} is {getattr(self, name)}; give a number above 0"
                )

    @property
    def asks(self) -> bool:
        return bool(self.listen)

    @property
    def variant(self) -> str:
        return super().variant + ("-synthesised" if self.synthesised else "")


@dataclass(frozen=True)
class Negatives:
    """Signals without a keyword, piece by piece, float32 `(samples,)` each.

    Attributes:
        choose: for the threshold.
        report: for the false alarms that are reported; no piece of it is in the other.
        name: of both.
        seconds: of each, for the bar.
    """

    choose: Speech
    report: Speech
    name: str
    seconds: tuple[float, float]


def negatives(where: str, rate: int) -> Negatives:
    """Recordings of a folder or a data set without labels, in an order drawn with seed 0: the first
    half of them chooses, the second is reported.

    Raises:
        InputError: nothing to listen to, or fewer than two recordings.
    """
    cells: list[Any] = []
    if Path(where).is_dir():
        found = Path(where).rglob("*")
        cells = sorted(path for path in found if path.suffix.lower() in MEDIA["audio"])
    if not cells:
        source = open_dataset(
            where, ("test", "validation", "train"), target=NoTarget(), kind="audio"
        )
        cells = list(source.dataset[source.columns["input"]])
    if len(cells) < 2:
        raise InputError(
            f"{where} has {len(cells)} recordings; false alarms need two or more, as half of them "
            "choose the threshold"
        )
    order = torch.randperm(len(cells), generator=torch.Generator().manual_seed(0)).tolist()

    def half(rows: Sequence[int]) -> Iterator[Tensor]:
        for row in rows:
            yield decode_audio(cells[row], rate).float() / FULL_SCALE

    middle = len(order) // 2
    return Negatives(
        partial(half, order[:middle]), partial(half, order[middle:]), Path(where).name, (0, 0)
    )


def keywords_of(model: Model, given: Sequence[str] = ()) -> list[str]:
    """The classes that are words to detect: those given, or all but the others."""
    names = list((model.config.id2label or {}).values())
    return list(given) or [name for name in names if plain_name(name) not in NO_WORDS]


def plain_name(name: str) -> str:
    return name.lower().strip("_<>[] ").replace("_", " ")


def varied(config: Any, names: Sequence[str]) -> dict[str, Any]:
    """How `AudioItems` vary training clips of these classes.

    Raises:
        InputError: clips are to be no word, and no class is for that.
    """
    others = [n for n, name in enumerate(names) if plain_name(name) in OTHER_WORDS]
    no_word = others[0] if others and not config.multi_label else None
    if config.splice and (no_word is None or not config.augment):
        raise InputError(
            f"--splice {config.splice} makes clips of no word: it takes a class called "
            f"{', '.join(OTHER_WORDS)}, one class per clip, and no --no-augment; leave it out"
        )
    if not config.augment:
        return {}
    splice = config.splice
    if splice is None:
        splice = SPLICE if config.negatives and no_word is not None else 0.0
    return {"augment": Augment(mixup=config.mixup or 0.0, splice=splice), "no_word": no_word}


def calibrate(
    config: Listening, validation: Clips, test: Clips, speech: Negatives, model: Model, place: Path
) -> str:
    """Choose the smoothing and the threshold of a model's detector on validation clips and
    negatives, store them in its configuration, draw the curve, and tell what they give on the other
    clips and negatives."""
    was_training = model.training
    model.eval()
    words, per_hour = keywords_of(model, config.keywords), config.false_alarms
    detector = Detector(model, words)  # what does not fit is told before long
    hop, refractory = detector.listener.hop, detector.refractory
    tracks = [
        _track(model, words, part(), f"{speech.name}, {name} half", seconds)
        for part, name, seconds in zip(
            (speech.choose, speech.report), ("first", "second"), speech.seconds, strict=True
        )
    ]
    spoken = [_spoken(model, words, clips) for clips in (validation, test)]

    def heard(half: int, smoothing: int) -> tuple[Tensor, Tensor, OperatingCurve]:
        peaks, track = _peaks(*spoken[half], smoothing), _highest(tracks[half], smoothing)
        return peaks, track, operating_curve(peaks, [track], hop, refractory)

    points = {smoothing: heard(0, smoothing)[2].at(per_hour) for smoothing in SMOOTHINGS}
    smoothing = min(points, key=lambda smoothing: points[smoothing].misses)
    chosen = points[smoothing]
    peaks, track, curve = heard(1, smoothing)
    alarms = len(events(track.numpy(), chosen.threshold, pause(refractory, hop)))
    missed = int((peaks < chosen.threshold).sum())
    hours = len(track) * hop / 3600
    reported = OperatingPoint(chosen.threshold, missed, len(peaks), alarms, hours)
    model.config.detection = {
        "keywords": words,
        "threshold": chosen.threshold,
        "smoothing": smoothing,
        "hop": hop,
        "refractory": refractory,
        "chosen": str(chosen),
        "reported": str(reported),
        "negatives": speech.name,
    }
    picture = report.save_figure(curve.draw(reported), place / "false-alarms.png")
    told = (
        f"threshold {chosen.threshold:.6g} of scores smoothed over {smoothing * hop:.2g} s for "
        f"{per_hour:g} false alarms per hour, chosen by half of {speech.name} and validation clips "
        f"({chosen}); the rest and test clips: {reported}"
    )
    print(f"{wrapped(told)}\n{picture} shows other thresholds", flush=True)
    model.train(was_training)
    return told


def _track(
    model: Model, words: Sequence[str], pieces: Iterable[Tensor], name: str, seconds: float
) -> Tensor:
    """The scores of words at each hop of a signal, `(hops, words)`."""
    listener = Listener(model, block=BLOCK)
    rate, found = model.processor.sampling_rate, []
    with _bar(name, seconds) as bar:
        for piece in pieces:
            found.append(listener.push(piece))
            bar.update(round(len(piece) / rate, 3))
    found.append(listener.finish())
    return torch.cat(found)[:, _numbers(model, words)]


def _highest(track: Tensor, smoothing: int) -> Tensor:
    """The highest smoothed score of a word at each hop, `(hops,)`."""
    return smoothed(track, smoothing).max(1).values


def _spoken(
    model: Model, words: Sequence[str], clips: Clips
) -> tuple[Tensor, list[tuple[int, int, int]]]:
    """The scores of all classes at each hop of clips of keywords, one after the other with silence
    between them, `(hops, K)`; and first hop, end and word of each."""
    listener = Listener(model, block=BLOCK)
    size = round(listener.hop * clips.sampling_rate)
    gap, found, bounds, at = round(listener.window / listener.hop) + max(SMOOTHINGS), [], [], 0
    shares = clips.labels if clips.labels.ndim == 2 else None
    numbers = _numbers(model, words)
    for row, waveform in enumerate(clips.waveforms):
        own = [
            number
            for number in numbers
            if (shares[row, number] > 0 if shares is not None else clips.labels[row] == number)
        ]
        if not own:
            continue
        hops = -(-len(waveform) // size) + gap
        padded = torch.zeros(hops * size)
        padded[: len(waveform)] = waveform.float() / FULL_SCALE
        found.append(listener.push(padded))
        bounds += [(at, at + hops, number) for number in own]
        at += hops
    return torch.cat([*found, listener.finish()]), bounds


def _peaks(scores: Tensor, bounds: Sequence[tuple[int, int, int]], smoothing: int) -> Tensor:
    """The highest smoothed score of its word in each clip of a keyword, `(N,)`."""
    smooth = smoothed(scores, smoothing)
    peaks = [float(smooth[a:b, number].max()) for a, b, number in bounds]
    return torch.tensor(peaks, dtype=torch.float64)


def _numbers(model: Model, words: Sequence[str]) -> list[int]:
    return [model.class_number(word) for word in words]


def detector_of(model: Model, block: int = 1) -> Detector:
    """A model's detector, with the threshold that it was saved with."""
    known = dict(getattr(model.config, "detection", None) or {"keywords": keywords_of(model)})
    for name in ("chosen", "reported", "negatives"):
        known.pop(name, None)
    return Detector(model, block=block, **known)


def tell(model: Model, file: Path) -> None:
    """Print the moments of a recording at which a word was heard."""
    detector, rate = detector_of(fold(model), BLOCK), model.processor.sampling_rate
    if getattr(model.config, "detection", None) is None:
        print("the model has no threshold of its own (train with --negatives); 0.5 is taken")
    samples = decode_audio(file, rate).float() / FULL_SCALE
    found = []
    with _bar(file.name, len(samples) / rate) as bar:
        for piece in samples.split(PIECE * rate):
            found += detector.push(piece)
            bar.update(round(len(piece) / rate, 3))
    found += detector.finish()
    words = ", ".join(detector.keywords)
    if not found:
        print(f"none of {words} was heard in {len(samples) / rate:.1f} s of {file}")
        return
    rows = [[f"{each.seconds:.2f}", each.label, f"{each.score:.3f}"] for each in found]
    print(report.markdown_table(["seconds", "word", "score"], rows))


def _bar(name: str, seconds: float) -> Any:
    return tqdm(total=round(seconds, 1) or None, unit="s", desc=name, leave=False, disable=None)


def explain(model: Model, inputs: Sequence[Any], where: Path) -> None:
    """Draw where in the spectrogram each answer comes from: into this PNG or, of several, into
    this folder.

    Raises:
        InputError: there is no file to answer, or the pictures cannot be written.
    """
    if not inputs:
        raise InputError("--explain is of recordings; give them with --predict MODEL FILE")
    try:
        for value in inputs:
            name = Path(value["path"])
            place = where if len(inputs) == 1 and where.suffix else where / f"{name.stem}.png"
            figure = picture(model, value["raw"], title=name.name)
            print(f"{report.save_figure(figure, place)} shows where the answer comes from")
    except OSError as error:
        raise InputError(
            f"cannot write {where} ({error.strerror}); name another with --explain"
        ) from error


def readable(path: Path, processor: ResidualFeatureExtractor) -> list[Any]:
    """A recording as the pipeline takes it."""
    samples = decode_audio(path, processor.sampling_rate).float() / FULL_SCALE
    return [{"raw": samples.numpy(), "sampling_rate": processor.sampling_rate, "path": str(path)}]
