"""Frames of a signal that comes piece by piece."""

import copy
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor

from resbackbones.speech.frontend import FrontEnd


class FrameStream:
    """The power in mel bands of a signal of one channel, whose samples come in pieces of any size:
    the frames of the whole, each computed once. Those of "log_mel" and "mfcc" are centred, so half
    an FFT of zeros stands before the signal and behind it, as `FrontEnd` has it.

    Args:
        front_end: as it hears whole clips; it stays as it is.
        device: where to compute.
        block: frames that come together: what is computed, to the last bit, then does not depend on
            the pieces. None gives all that are complete.

    Attributes:
        ahead: samples from the one a frame stands at to the last that it reads.
    """

    def __init__(
        self, front_end: FrontEnd, device: torch.device | str = "cpu", block: int | None = None
    ) -> None:
        mel: Any = copy.deepcopy(front_end.mel).to(device)
        self._centred = front_end.kind != "fbank"
        if self._centred:
            mel.spectrogram.center = False  # what stands around a frame is there
        self._mel, self._hop, self._block = mel, front_end.hop, block
        self._width = mel.n_fft if self._centred else mel.window
        before = mel.n_fft // 2 if self._centred else 0
        self.ahead = self._width - before
        self._held = torch.zeros(before, device=device)
        self._skip = 0  # samples to come that no frame reads
        self._heard = self._told = False

    def push(self, samples: Tensor) -> Iterator[Tensor]:
        """Read on: of float samples `(n,)` the powers `(1, n_mels, frames)`, a block at a time."""
        self._heard |= len(samples) > 0
        self._held = torch.cat([self._held, samples[self._skip :].to(self._held)])
        self._skip = max(0, self._skip - len(samples))
        start = 0
        while (complete := self._complete(start)) >= (self._block or 1):
            frames = self._block or complete
            self._told = True
            end = start + self._width + (frames - 1) * self._hop
            # A copy: what a processor adds up in which order may depend on the address.
            power = self._mel(self._held[start:end].clone()[None])
            start += frames * self._hop
            yield power
        self._skip += max(0, start - len(self._held))
        self._held = self._held[start:].clone()

    def finish(self) -> Iterator[Tensor]:
        """End the signal: the frames that were not complete before; of no signal there are none."""
        if not self._heard:
            return
        # Kaldi's frames lie inside the signal, but there is one at least.
        missing = self.ahead if self._centred else 0
        if not self._centred and not self._told:
            missing = max(0, self._width - len(self._held))
        self._block = None
        yield from self.push(self._held.new_zeros(missing))

    def _complete(self, start: int) -> int:
        return 1 + (len(self._held) - start - self._width) // self._hop
