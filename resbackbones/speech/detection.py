"""Listening on and on: a classifier of short clips reads a long signal as it comes, and says which
words it heard and when.

`Listener` gives the classes' scores of the last second or so, once per hop; `Detector` makes
moments of them: scores are smoothed, a threshold decides, and a word that was heard is not heard
again for a while (Chen et al. 2014, section 2.3). How often that misses a word, and how often it
hears one where none was spoken, is an `OperatingCurve`.
"""

import copy
import math
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor
from torchaudio.transforms import MelSpectrogram

from resbackbones.errors import InputError, nearest
from resbackbones.speech.frontend import pad_clips
from resbackbones.speech.models import ResidualForAudioClassification

Reading = Literal["windows", "features", "stream"]
READINGS: tuple[Reading, ...] = ("windows", "features", "stream")
WINDOW = 1.0  # seconds, of a model that does not say how long its clips were
MOST_THRESHOLDS = 1000  # of an operating curve


@dataclass(frozen=True)
class Detection:
    """A word that was heard.

    Attributes:
        seconds: from the beginning, what had been heard when the score reached the threshold.
        label: the word.
        score: its smoothed score there.
    """

    seconds: float
    label: str
    score: float


class Listener:
    """Scores of the classes in the last `window` seconds of a signal, once every `hop`.

    The signal may come in pieces of any size: work is done in blocks of a fixed number of hops, so
    that every number is the same, to the last bit, whatever the pieces. Each frame's Fourier
    transform is computed once. Before the signal, and after it, is silence.

    Args:
        model: in evaluation mode; its processor says how waveforms become features.
        window: seconds that an answer is about, best those of the training clips; None takes the
            processor's `pad_to`, which the recipe sets to them, or 1 s.
        hop: seconds from one answer to the next, rounded to what the net can give.
        block: hops computed together. 1 answers soonest; 32 reads a file several times faster.
        reading: how the net reads. "windows": each window as if it were a clip, as in training:
            any net, at the cost of a window per hop. "features": every frame once, and what the
            head pools are the window's features, which know what stands around it (a net of finite
            reach; answers come as much later as it reads ahead, `lag`). "stream": likewise, of a
            causal net, which remembers what it has read and does not lag. None takes "stream" of a
            causal net of finite reach, else "windows".

    Attributes:
        hop, window: in seconds, as they came out.
        lag: seconds that answers come later than the frames they are about.

    Raises:
        InputError: a model without a processor or in training mode, times that are none or do not
            fit together, or a reading that the net has not.
    """

    def __init__(
        self,
        model: ResidualForAudioClassification,
        *,
        window: float | None = None,
        hop: float = 0.1,
        block: int = 1,
        reading: Reading | None = None,
    ) -> None:
        if model.processor is None:
            raise InputError("the model has no processor, so it cannot hear; set model.processor")
        if model.training:
            raise InputError("a model in training mode cannot listen; call .eval() first")
        if type(block) is not int or block < 1:
            raise InputError(f"block={block!r} is no count of hops; give 1 or more")
        window = window or model.processor.pad_to or WINDOW
        for name, seconds in (("window", window), ("hop", hop)):
            if not 0 < seconds < math.inf:
                raise InputError(f"{name}={seconds!r} is no time; give seconds, above 0")
        self.model = model
        spec, rate = model.backbone.spec, model.processor.sampling_rate
        local = math.isfinite(model.backbone.receptive_field)
        front_end = copy.deepcopy(model.processor.front_end).to(model.device)
        steady = front_end.normalize not in ("mean", "mean_std")  # a frame's features are its own
        self.reading = _reading(reading, local and steady, spec.causal)
        if not isinstance(front_end.mel, MelSpectrogram):
            raise InputError(
                f"features of the kind {model.processor.options['kind']!r} cannot be listened to; "
                "use kind='log_mel' or 'mfcc'"
            )
        front_end.mel.spectrogram.center = False  # the margins are real samples here
        self._front_end, self._mel, self._normalises = front_end, front_end.mel, not steady
        frame = front_end.hop / rate
        step = 1 if self.reading == "windows" else model.backbone.strides[-1][-1]
        self._frames = 1 + round(window * rate) // front_end.hop
        self._step, self._size = step, step * max(1, round(hop / frame / step))
        if self._size > self._frames:
            raise InputError(
                f"a hop of {hop:g} s is longer than the window of {window:g} s, so words between "
                "two windows would not be heard; give a shorter hop"
            )
        self.hop, self.window, self._block = self._size * frame, self._frames * frame, block
        before, after = spec.reaches[-1] if self.reading == "features" else (0, 0)
        self._before, self._after = _up(before, step), _up(after, step)
        if self.reading == "windows":
            self._before = self._frames - self._size
        self.lag = self._after * frame
        self._samples = torch.zeros(self._mel.n_fft // 2, device=model.device)
        self._heard = torch.zeros(1, self._mel.n_mels, self._before, device=model.device)
        if steady:  # what silence gives
            self._heard = self._hear(self._heard)
        self._known: Tensor | None = None  # the last window's features, less a hop's
        self._stream = model.backbone.stream() if self.reading == "stream" else None
        self._received = self._answered = 0
        self._finished = False

    @torch.no_grad()
    def push(self, samples: Any) -> Tensor:
        """Read on.

        Args:
            samples: any number of them, as the processor takes a clip, at its sampling rate.

        Returns:
            float64 `(hops, K)` on the CPU, the scores of the hops that became certain; in the
            signal hop i ends at `(i + 1) * hop` seconds.

        Raises:
            InputError: samples of several clips or that are no finite numbers, or the signal is
                finished.
        """
        if self._finished:
            raise InputError("the signal is finished; begin another one with a new listener")
        if not len(samples):
            return self._answers([])
        clips, _ = pad_clips(samples)
        if len(clips) != 1:
            raise InputError(f"{len(clips)} signals were given; a listener hears one, (samples,)")
        self._received += clips.shape[1]
        return self._read(clips[0].to(self.model.device))

    @torch.no_grad()
    def finish(self) -> Tensor:
        """End the signal: the scores `(hops, K)` up to the one that has its last sample."""
        if self._finished:
            raise InputError("the signal is finished; begin another one with a new listener")
        self._finished = True
        if not self._received:
            return self._answers([])
        frames = 1 + self._received // self._front_end.hop
        hops = -(-frames // self._size) - self._answered
        silence = (_up(frames, self._block * self._size) + self._after) * self._front_end.hop
        silence += self._block * self._size * self._front_end.hop + self._mel.n_fft
        return self._read(self._samples.new_zeros(silence))[:hops]

    def _read(self, samples: Tensor) -> Tensor:
        mel, size = self._mel, self._block * self._size
        self._samples = torch.cat([self._samples, samples])
        needed = mel.n_fft + (size - 1) * mel.hop_length
        answers, start = [], 0
        while len(self._samples) - start >= needed:
            # A copy: what a processor adds up in which order may depend on the address.
            power = mel(self._samples[start : start + needed].clone()[None])
            start += size * mel.hop_length
            heard = power if self._normalises else self._hear(power)
            self._heard = torch.cat([self._heard, heard], 2)
            if self._heard.shape[2] >= self._before + size + self._after:
                answers.append(self._scores())
                self._heard = self._heard[..., size:].clone()
        self._samples = self._samples[start:].clone()
        return self._answers(answers)

    def _hear(self, power: Tensor) -> Tensor:
        """Features `(B, F, T)` of powers `(B, n_mels, T)`."""
        count = torch.full((len(power),), power.shape[2], device=power.device)
        return self._front_end.features(power, count)

    def _answers(self, blocks: list[Tensor]) -> Tensor:
        found = torch.cat([torch.empty(0, len(self.model.config.id2label or {})).double(), *blocks])
        self._answered += len(found)
        return found

    def _scores(self) -> Tensor:
        """Scores `(block, K)` of the next block of hops."""
        model, x = self.model, self._heard
        if self.reading == "windows":
            x = x[0].unfold(1, self._frames, self._size).movedim(1, 0).contiguous()
            x = self._hear(x) if self._normalises else x
            logits = model(x.to(model.dtype)).logits
        else:
            x = x if model.backbone.spec.dims == 1 else x.unsqueeze(1)
            logits = model.head(self._features(x.to(model.dtype)))
        # In double precision: how sure a net is of what it is sure of is what tells alarms apart.
        return model.scores(logits.double()).cpu()

    def _features(self, x: Tensor) -> Tensor:
        """The features `(block, C, …, positions)` of each hop's window."""
        net, step = self.model.backbone, self._step
        if self._stream is not None:
            new = self._stream.push(x)[-1]
        else:
            first = self._before // step
            (feature,) = net(x, stages=(-1,))
            new = feature[..., first : first + self._block * self._size // step]
        positions, size = -(-self._frames // step), self._size // step
        if self._known is None:
            self._known = new.new_zeros(*new.shape[:-1], positions - size)
        known = torch.cat([self._known, new], -1)
        self._known = known[..., known.shape[-1] - (positions - size) :].clone()
        return known[0].unfold(-1, positions, size).movedim(-2, 0).contiguous()


class Detector:
    """Words in a signal, told as they come.

    >>> model = ResidualForAudioClassification.build("tc_resnet8", labels=["yes", "other"]).eval()
    >>> detector = Detector(model, ["yes"], threshold=0.9)
    >>> detector.push(torch.zeros(4000)) + detector.finish()
    []

    Args:
        model: as `Listener` takes it, as everything that is not told here.
        keywords: the classes that are words to detect; None means all.
        threshold: the smoothed score from which a word was heard, or one of each keyword.
        smoothing: hops whose mean score decides.
        refractory: seconds after a detection in which there is no other, so that one word is one
            detection; None means as long as a window, in which it can still be heard.

    Raises:
        InputError: as `Listener`, a keyword or a threshold's word that is no class, or numbers out
            of range.
    """

    def __init__(
        self,
        model: ResidualForAudioClassification,
        keywords: Sequence[str] | None = None,
        threshold: float | Mapping[str, float] = 0.5,
        *,
        smoothing: int = 3,
        refractory: float | None = None,
        **listening: Any,
    ) -> None:
        self.listener = Listener(model, **listening)
        names = list((model.config.id2label or {}).values())
        self.keywords = list(names if keywords is None else keywords)
        for word in (*self.keywords, *(threshold if isinstance(threshold, Mapping) else ())):
            if word not in names:
                raise InputError(f"the model has no class {word!r}; {nearest(word, names)}")
        if not self.keywords:
            raise InputError("there is no keyword to listen for; name one of the model's classes")
        each = threshold if isinstance(threshold, Mapping) else dict.fromkeys(names, threshold)
        missing = next((word for word in self.keywords if word not in each), None)
        if missing is not None:
            raise InputError(f"threshold has none for {missing!r}; give one for every keyword")
        if type(smoothing) is not int or smoothing < 1:
            raise InputError(f"smoothing={smoothing!r} is no count of hops; give 1 or more")
        refractory = self.listener.window if refractory is None else refractory
        if not 0 <= refractory < math.inf:
            raise InputError(f"refractory={refractory!r} is no time; give seconds, 0 or more")
        self.smoothing, self.refractory = smoothing, refractory
        self._classes = [names.index(word) for word in self.keywords]
        self._thresholds = torch.tensor([each[word] for word in self.keywords]).double()
        self._pause = pause(refractory, self.listener.hop)
        self._before = torch.zeros(smoothing - 1, len(self.keywords)).double()
        self._position = 0
        self._next = 0  # the first hop that may be a detection

    def push(self, samples: Any) -> list[Detection]:
        """Read on; see `Listener.push`."""
        return self._detect(self.listener.push(samples))

    def finish(self) -> list[Detection]:
        """End the signal, and tell what was not certain before."""
        return self._detect(self.listener.finish())

    def _detect(self, scores: Tensor) -> list[Detection]:
        scores = torch.cat([self._before, scores[:, self._classes]])
        self._before = scores[len(scores) - (self.smoothing - 1) :]
        smooth = _means(scores, self.smoothing)
        found = []
        # By how far a score is above its own threshold: of two words the surer one counts.
        above, which = (smooth - self._thresholds).max(1)
        for hop in above.ge(0).nonzero()[:, 0].tolist():
            if self._position + hop < self._next:
                continue
            word = int(which[hop])
            seconds = (self._position + hop + 1) * self.listener.hop
            found.append(Detection(seconds, self.keywords[word], float(smooth[hop, word])))
            self._next = self._position + hop + self._pause
        self._position += len(smooth)
        return found


def smoothed(scores: Tensor, smoothing: int) -> Tensor:
    """The mean of the last `smoothing` hops at each hop of a signal's scores `(hops, K)`; before
    the first one all are 0."""
    return _means(torch.cat([scores.new_zeros(smoothing - 1, scores.shape[1]), scores]), smoothing)


def _means(scores: Tensor, count: int) -> Tensor:
    """The mean of every `count` rows that follow each other, added up in their order: the same bits
    however many rows there are."""
    rows = len(scores) - count + 1
    total = scores[:rows]
    for shift in range(1, count):
        total = total + scores[shift : shift + rows]
    return total / count


def pause(refractory: float, hop: float) -> int:
    """Hops from one detection to the first that may follow it."""
    return max(1, math.ceil(refractory / hop - 1e-9))


@dataclass(frozen=True)
class OperatingPoint:
    """What a threshold gave.

    Attributes:
        threshold: a word is detected from this score on.
        misses, clips: of so many clips with a keyword, those whose score stayed below it.
        false_alarms, hours: detections in so many hours without a keyword.
    """

    threshold: float
    misses: int
    clips: int
    false_alarms: int
    hours: float

    @property
    def miss_rate(self) -> float:
        return self.misses / self.clips

    @property
    def per_hour(self) -> float:
        return self.false_alarms / self.hours

    def __str__(self) -> str:
        """
        >>> print(OperatingPoint(0.9, 3, 100, 1, 2.0))
        3.0 % of 100 keywords missed, 0.50 false alarms per hour (1 in 2 hours)
        >>> print(OperatingPoint(0.9, 3, 100, 0, 0.5))
        3.0 % of 100 keywords missed, 0 false alarms in 0.5 hours
        """
        alarms = f"0 false alarms in {self.hours:.3g} hours"
        if self.false_alarms:
            counted = f"{self.false_alarms} in {self.hours:.3g} hours"
            alarms = f"{self.per_hour:.2f} false alarms per hour ({counted})"
        return f"{100 * self.miss_rate:.1f} % of {self.clips:,} keywords missed, {alarms}"


@dataclass(frozen=True)
class OperatingCurve:
    """Points from the lowest threshold to the highest."""

    points: tuple[OperatingPoint, ...]

    @property
    def hours(self) -> float:
        return self.points[0].hours

    def at(self, per_hour: float = 0.5) -> OperatingPoint:
        """The lowest threshold with no more false alarms than that, there and above.

        Warns:
            UserWarning: fewer hours than one false alarm takes at this rate; the point then has
                none, and what it says is "0 in so many hours", not a rate.
        """
        if not per_hour >= 0:
            raise InputError(f"per_hour={per_hour!r} is no rate; give false alarms per hour")
        if per_hour * self.hours < 1:
            warnings.warn(
                f"{self.hours:.2g} hours without a keyword cannot tell {per_hour:g} false alarms "
                f"per hour from none, as one would be {1 / self.hours:.2g}; the threshold is the "
                "lowest without any",
                stacklevel=2,
            )
        chosen = self.points[-1]
        for point in reversed(self.points):
            if point.false_alarms > per_hour * self.hours:
                break
            chosen = point
        return chosen

    def draw(self, chosen: OperatingPoint | None = None) -> Any:
        """A figure of matplotlib, misses over false alarms per hour: `.savefig("curve.png")`."""
        from matplotlib.figure import Figure

        figure = Figure(figsize=(5.2, 3.8), layout="constrained")
        axes = figure.subplots()
        most = max(10.0, 4 / self.hours)
        shown = [point for point in self.points if point.per_hour <= most]
        axes.step(
            [point.per_hour for point in shown],
            [100 * point.miss_rate for point in shown],
            where="post",
            color="#1d5fbf",
            linewidth=1.8,
        )
        if chosen is not None:
            axes.plot(chosen.per_hour, 100 * chosen.miss_rate, "o", color="#d9622b")
            axes.annotate(
                f"threshold {chosen.threshold:.4g}",
                (chosen.per_hour, 100 * chosen.miss_rate),
                xytext=(8, 8),
                textcoords="offset points",
                fontsize=9,
                color="#d9622b",
            )
        axes.set_xlim(left=0)
        axes.set_ylim(bottom=0)
        axes.margins(0.05)
        hours, clips = f"{self.hours:.3g}", self.points[0].clips
        axes.set_xlabel(f"false alarms per hour ({hours} hours without a keyword)", fontsize=9)
        axes.set_ylabel(f"keywords missed, % (of {clips:,})", fontsize=9)
        axes.spines[["top", "right"]].set_visible(False)
        axes.grid(color="#e5e7eb", linewidth=0.8)
        axes.set_axisbelow(True)
        return figure


def operating_curve(
    keywords: Tensor,
    negatives: Sequence[Tensor],
    hop: float,
    refractory: float,
    hours: float | None = None,
) -> OperatingCurve:
    """What every threshold costs: words missed, and words heard where there were none.

    Args:
        keywords: the highest smoothed score of its word in each clip of a keyword, `(N,)`.
        negatives: smoothed scores `(hops,)` of signals without a keyword, of several words the
            highest.
        hop, refractory: in seconds, as of the detector.
        hours: of the negatives; None means as many as their hops last.

    Raises:
        InputError: no keywords, or no negatives.
    """
    if not len(keywords) or not sum(map(len, negatives)):
        raise InputError(
            f"there are {len(keywords)} clips of keywords and {sum(map(len, negatives))} hops "
            "without; an operating curve needs both"
        )
    if hours is None:
        hours = sum(map(len, negatives)) * hop / 3600
    own = keywords.double().sort().values
    tracks = [track.double().numpy() for track in negatives]
    counts = [
        (threshold, sum(len(events(track, threshold, pause(refractory, hop))) for track in tracks))
        for threshold in _thresholds(torch.cat([*negatives]).double(), own)
    ]
    points = [
        OperatingPoint(t, int((own < t).sum()), len(own), alarms, hours) for t, alarms in counts
    ]
    return OperatingCurve(tuple(points))


def _thresholds(scores: Tensor, keywords: Tensor) -> list[float]:
    """Where counts change, from low to high: all of them near the top, ever fewer below, and one
    just above the highest score without a keyword."""
    falling = scores.unique().flip(0)
    ranks = torch.arange(MOST_THRESHOLDS // 2)
    rest = torch.logspace(0, math.log10(max(1, len(falling))), MOST_THRESHOLDS // 2).long() - 1
    chosen = torch.cat([ranks[ranks < len(falling)], rest]).unique()
    above = torch.nextafter(falling[:1], torch.tensor([math.inf]).double())
    low = keywords[:: max(1, len(keywords) // 100)]
    return torch.cat([falling[chosen], above, low]).unique().tolist()


def events(scores: Any, threshold: float, pause: int) -> list[int]:
    """The hops `(hops,)` at which a score that is the threshold or more is a detection: the first
    one, and then each first one that is `pause` hops or more behind the last detection.

    >>> import numpy as np
    >>> events(np.array([0.1, 0.9, 0.9, 0.8, 0.2, 0.9]), 0.8, 2)
    [1, 3, 5]
    """
    found: list[int] = []
    for hop in (scores >= threshold).nonzero()[0].tolist():
        if not found or hop >= found[-1] + pause:
            found.append(hop)
    return found


def _reading(given: Reading | None, local: bool, causal: bool) -> Reading:
    if given is None:
        return "stream" if causal and local else "windows"
    if given not in READINGS:
        raise InputError(f"reading={given!r} is not known; {nearest(given, READINGS)}")
    if given == "stream" and not causal:
        raise InputError(
            "reading='stream' is for a causal net, and this one reads ahead; build it with "
            "causal=True, or use 'features'"
        )
    if given != "windows" and not local:
        raise InputError(
            f"reading={given!r} needs a net of finite reach and features that are not normalised "
            "over a clip; this model looks at all of a clip, use reading='windows'"
        )
    return given


def _up(value: float, unit: int) -> int:
    return math.ceil(value / unit) * unit


__all__: Sequence[str] = (
    "Detection",
    "Detector",
    "Listener",
    "OperatingCurve",
    "OperatingPoint",
    "operating_curve",
    "smoothed",
)
