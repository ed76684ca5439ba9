"""Listening on and on: a classifier of short clips reads a long signal as it comes, and says which
words it heard and when.

`Listener` gives the classes' scores of the last second or so, once per hop; `Detector` makes
moments of them: scores are smoothed, a threshold decides, and a word that was heard is not heard
again for a while (Chen et al. 2014, section 2.3). What that misses, and what it hears that was not
said, is counted in `operating.py`.
"""

import copy
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor
from torchaudio.transforms import MelSpectrogram

from resbackbones.errors import InputError, nearest
from resbackbones.speech.frames import FrameStream
from resbackbones.speech.frontend import pad_clips
from resbackbones.speech.models import ResidualForAudioClassification
from resbackbones.speech.operating import pause

Reading = Literal["windows", "features", "stream"]
READINGS: tuple[Reading, ...] = ("windows", "features", "stream")
WINDOW = 1.0  # seconds, of a model that does not say how long its clips were


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
        self._front_end, self._normalises = front_end, not steady
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
        self._powers = FrameStream(front_end, model.device, block * self._size)
        self._heard = torch.zeros(1, front_end.n_mels, self._before, device=model.device)
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
        return self._read(clips[0])

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
        silence += self._block * self._size * self._front_end.hop
        silence += self._front_end.mel.n_fft
        return self._read(torch.zeros(silence))[:hops]

    def _read(self, samples: Tensor) -> Tensor:
        size, answers = self._block * self._size, []
        for power in self._powers.push(samples):
            heard = power if self._normalises else self._hear(power)
            self._heard = torch.cat([self._heard, heard], 2)
            if self._heard.shape[2] >= self._before + size + self._after:
                answers.append(self._scores())
                self._heard = self._heard[..., size:].clone()
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
    "smoothed",
)
