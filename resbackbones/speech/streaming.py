"""One recording as it comes: a recogniser's logits piece by piece, and the words in them.

`SpeechStream` (`model.stream()`) is of causal nets, which remember what they have read: nothing is
computed twice, and what is heard is told 56 ms later or so. `ChunkedSpeech` is of any net: pieces
read as far around them as the net reaches. Both take pieces of any size, and their logits, put
together, are those of the whole recording, wherever every operator is local.
"""

import copy
import math
from collections.abc import Iterable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from resbackbones.core.backbone import Backbone
from resbackbones.core.pieces import Pieces
from resbackbones.errors import InputError
from resbackbones.speech.decode import greedy
from resbackbones.speech.frames import FrameStream
from resbackbones.speech.frontend import FrontEnd, ResidualFeatureExtractor, pad_clips
from resbackbones.speech.hypotheses import Hypothesis, Span, parted, separates

AT_ONCE = 1 << 19  # samples that are read together
CHUNK = 30.0  # seconds


def whole_only(net: Backbone, front_end: FrontEnd) -> tuple[str, ...]:
    """What keeps a recogniser from being local, as it looks at a whole recording: by the options
    that ask for it, as "attention='se'" or "normalize='mean'"."""
    option = f"normalize={front_end.normalize!r}"
    return (*net.spec.unbounded, *((option,) if front_end.normalize.startswith("mean") else ()))


class _Reading:
    """What both ways to read share: samples to frames, and frames to logits."""

    def __init__(
        self, hear: ResidualFeatureExtractor, net: Backbone, head: nn.Module, said: str
    ) -> None:
        weight = next(net.parameters())
        self._front_end = copy.deepcopy(hear.front_end).to(weight.device)
        self._frames = FrameStream(hear.front_end, weight.device)
        self._net, self._head, self._weight = net, head, weight
        self._finished, self._said = False, said
        self.seconds_per_frame = net.strides[-1][-1] * hear.front_end.hop / hear.sampling_rate

    @torch.no_grad()
    def push(self, samples: Any) -> Tensor:
        """Read on.

        Args:
            samples: any number of them, as the processor takes a clip, at its sampling rate.

        Returns:
            The logits `(1, frames, V)` that became certain: of no frame where the samples complete
            none.

        Raises:
            InputError: samples of several recordings or that are no finite numbers, or the
                recording is finished.
        """
        self._go_on()
        if not len(samples):
            return self._together([])
        clips, _ = pad_clips(samples)
        if len(clips) != 1:
            raise InputError(f"{len(clips)} recordings were given; a stream hears one, (samples,)")
        powers = (power for part in clips[0].split(AT_ONCE) for power in self._frames.push(part))
        return self._together([self._read(power) for power in powers])

    @torch.no_grad()
    def finish(self) -> Tensor:
        """End the recording: the logits `(1, frames, V)` that were not certain before.

        Raises:
            InputError: it is finished already.
        """
        self._go_on()
        self._finished = True
        return self._together([*map(self._read, self._frames.finish()), self._rest()])

    def _go_on(self) -> None:
        if self._finished:
            raise InputError(f"the recording is finished; begin another one with {self._said}")

    def _together(self, logits: Iterable[Tensor]) -> Tensor:
        none = self._head(self._weight.new_zeros(1, self._net.channels[-1], 0))
        return torch.cat([none, *logits], 1)

    def _features(self, power: Tensor) -> Tensor:
        """Features `(1, F, T)` of powers `(1, n_mels, T)`."""
        count = torch.full((1,), power.shape[2], device=power.device)
        return self._front_end.features(power, count).to(self._weight.dtype)

    def _read(self, power: Tensor) -> Tensor:
        raise NotImplementedError

    def _rest(self) -> Tensor:
        return self._head(self._weight.new_zeros(1, self._net.channels[-1], 0))


class SpeechStream(_Reading):
    """A causal recogniser hearing one recording piece by piece: the logits of the pieces, put
    together, are those of the whole.

    >>> from resbackbones.speech import ResidualForCTC
    >>> model = ResidualForCTC.build("mel_resnet_ctc18", vocabulary=list("abc "), causal=True)
    >>> stream = model.eval().stream()
    >>> heard = [stream.push(torch.zeros(size)).shape[1] for size in (1, 799, 800, 1600)]
    >>> heard, stream.finish().shape[1], stream.latency_seconds
    ([0, 1, 2, 2], 1, 0.056)

    Args:
        hear: of "log_mel", "mfcc" or "fbank" features, normalised by learned numbers or not at all.
        net: causal, of finite reach, in evaluation mode.
        head: from its last feature to logits.

    Attributes:
        latency_seconds: what is said is in the logits so much later at most: half of an FFT's
            window, which a centred frame reads ahead, and a frame of the logits.
        seconds_per_frame: of the logits.

    Raises:
        InputError: something that looks at the whole recording, by name; a net that reads ahead or
            is in training mode.
    """

    def __init__(self, hear: ResidualFeatureExtractor, net: Backbone, head: nn.Module) -> None:
        if whole := whole_only(net, hear.front_end):
            raise InputError(
                f"{' and '.join(whole)} looks at the whole recording, so no piece of it would give "
                "what the whole gives; build the model without it (a front end may have "
                "normalize='global' or 'none')"
            )
        self._stream = net.stream()
        super().__init__(hear, net, head, "model.stream()")
        self.latency_seconds = self._frames.ahead / hear.sampling_rate + self.seconds_per_frame

    def _read(self, power: Tensor) -> Tensor:
        return self._head(self._stream.push(self._features(power))[-1])


class ChunkedSpeech(_Reading):
    """Any recogniser hearing one recording in chunks, each with so much around it as the net
    reaches, in the memory of a chunk however long the recording.

    Args:
        hear, net, head: of a model, in evaluation mode.
        chunk: seconds that are computed together, overlaps not counted, rounded up to a multiple of
            the total stride; None takes 30, or as many as the overlaps where these are more.
        overlap: seconds that are read before and behind; None takes as many as the net reaches,
            which there must be an end of.

    Attributes:
        is_exact: whether the logits are those of the whole recording.
        seconds_per_frame: of the logits.

    Raises:
        InputError: times that are none, or no `overlap` where something looks at the whole
            recording.
    """

    def __init__(
        self,
        hear: ResidualFeatureExtractor,
        net: Backbone,
        head: nn.Module,
        chunk: float | None = None,
        overlap: float | None = None,
    ) -> None:
        if chunk is not None and not 0 < chunk < math.inf:
            raise InputError(f"chunk={chunk!r} is no time; give seconds, above 0")
        if overlap is not None and not 0 <= overlap < math.inf:
            raise InputError(f"overlap={overlap!r} is no time; give seconds, from 0 up")
        super().__init__(hear, net, head, "another ChunkedSpeech")
        frame = hear.front_end.hop / hear.sampling_rate
        whole = whole_only(net, hear.front_end)
        reach = (math.inf, math.inf) if whole else net.spec.reaches[-1]
        if chunk is None:
            around = sum(reach) * frame if overlap is None else 2 * overlap
            chunk = max(CHUNK, around if around < math.inf else 0)
        pieces = Pieces(
            [reach],
            net.strides[-1],
            math.ceil(chunk / frame),
            None if overlap is None else math.ceil(overlap / frame),
            name="chunk",
            unit="seconds",
            why=f"looks at the whole recording ({', '.join(whole)})",
        )
        self.is_exact = pieces.is_exact
        ((self._before, self._own, self._after),) = pieces.sides
        self._power = self._weight.new_zeros(1, self._front_end.n_mels, 0, dtype=torch.float32)
        self._known = 0  # frames held that were told already, and stand before the next chunk

    def _read(self, power: Tensor) -> Tensor:
        self._power = torch.cat([self._power, power], 2)
        told: list[Tensor] = []
        while self._power.shape[2] >= (end := self._known + self._own) + self._after:
            told.append(self._logits(self._power[..., : end + self._after], end))
            drop = max(0, end - self._before)
            self._power, self._known = self._power[..., drop:].clone(), end - drop
        return self._together(told)

    def _rest(self) -> Tensor:
        frames = self._power.shape[2]
        return self._logits(self._power, frames) if frames > self._known else super()._rest()

    def _logits(self, power: Tensor, end: int) -> Tensor:
        """Of powers the logits of the frames that were not told, up to the one before `end`."""
        (feature,) = self._net(self._features(power), stages=(-1,))
        step = self._net.strides[-1][-1]
        return self._head(feature)[:, self._known // step : math.ceil(end / step)]


class WordStream:
    """The words of one recording as they become complete: by the likeliest symbol of every frame,
    those that `greedy` finds in the whole. A word is complete when the next one begins; of a
    vocabulary without anything between words, every token is told by itself.

    >>> words = WordStream(["", "a", "b", " "], seconds_per_frame=0.5)
    >>> words.push(9 * torch.eye(4)[None, [1, 0, 2]]), words.partial
    ([], 'ab')
    >>> words.push(9 * torch.eye(4)[None, [2, 3, 1]])
    [Span(text='ab', start=0.0, end=2.0, confidence=0.9996...)]
    >>> [word.text for word in words.finish()]
    ['a']

    Args:
        symbols: what the logits are of, the blank first.
        seconds_per_frame: of the logits.
    """

    def __init__(self, symbols: Sequence[str], seconds_per_frame: float) -> None:
        self._symbols, self._seconds = symbols, seconds_per_frame
        self._separates = separates(symbols)
        self._open = Hypothesis((), (), (), (), 0.0, 0.0)
        self._frames = 0

    @property
    def partial(self) -> str:
        """What there is of the word that is not complete."""
        return self._open.text(self._symbols)

    def push(self, logits: Tensor) -> list[Span]:
        """Read on: of logits `(1, T, V)` the words that became complete."""
        frames = logits.shape[1]
        if frames:
            heard = greedy(logits, torch.tensor([frames]))[0]
            self._open, self._frames = self._open.then(heard, self._frames), self._frames + frames
        tokens = self._open.tokens
        ends = len(tokens) - 1
        if self._separates:
            opening = (n for n in range(ends, 0, -1) if parted(self._symbols[tokens[n]])[0])
            ends = next(opening, 0)
        return self._take(max(0, ends))

    def finish(self) -> list[Span]:
        """The words that are left where the recording ends."""
        return self._take(len(self._open.tokens))

    def _take(self, count: int) -> list[Span]:
        """The first so many tokens, as words."""
        told, left = self._open.split(count)
        self._open = left
        return told.units(self._symbols, self._seconds)


__all__: Sequence[str] = ("ChunkedSpeech", "SpeechStream", "WordStream", "whole_only")
