"""From one sampling rate to another, and arithmetic that autocast leaves alone."""

import functools
import itertools
import math
from collections.abc import Iterable, Iterator
from fractions import Fraction
from typing import Any

import torch
import torchaudio
from torch import Tensor

PIECE = 1 << 18  # samples resampled at a time


def resample(waveform: Any, rate: int, new_rate: int) -> Tensor:
    """Bring a waveform `(..., samples)` from one sampling rate (Hz) to another, piece by piece:
    next to what goes in and comes out, it needs the memory of a few seconds of sound.

    >>> resample(torch.zeros(8000), 8000, 16000).shape
    torch.Size([16000])
    """
    waveform = torch.as_tensor(waveform, dtype=torch.float32)
    if rate == new_rate:
        return waveform
    plan = _plan(rate, new_rate)
    if plan is None:
        return waveform
    resampler, up, down, step, margin = plan
    samples = waveform.shape[-1]
    new = waveform.new_empty(*waveform.shape[:-1], -(-samples * up // down))
    with without_autocast(waveform):
        for start in range(0, samples, step):
            before = min(margin, start)
            piece = resampler(waveform[..., start - before : start + step + margin])
            place = start * up // down
            piece = piece[..., before * up // down :][..., : step * up // down]
            new[..., place : place + piece.shape[-1]] = piece
    return new


def resampled(blocks: Iterable[Tensor], rate: int, new_rate: int) -> Iterator[Tensor]:
    """Likewise a signal that comes in blocks `(samples,)` of any sizes, of which it holds a few
    seconds: put together, the same numbers.

    >>> sum(len(block) for block in resampled(torch.zeros(8001).split(100), 8000, 16000))
    16002
    """
    plan = None if rate == new_rate else _plan(rate, new_rate)
    if plan is None:
        yield from blocks
        return
    resampler, up, down, step, margin = plan
    held, before = torch.zeros(0), 0  # samples, the first ones of which stand before the next piece
    for block in itertools.chain(blocks, [None]):
        held = held if block is None else torch.cat([held, block])
        least = 1 if block is None else step + margin  # of a piece, and of what is read behind it
        while len(held) >= before + least:
            with without_autocast(held):
                piece = resampler(held[: before + step + margin])
            yield piece[before * up // down :][: step * up // down]
            held, before = held[max(0, before + step - margin) :], min(margin, before + step)


def _plan(rate: int, new_rate: int) -> tuple[Any, int, int, int, int] | None:
    """What resamples, samples that come out for how many that go in, how many go in at a time, and
    those that are read around them; None where nothing is to do."""
    # The filter bank grows with both terms of the ratio: 44,101 to 16,000 Hz would take gigabytes.
    # No common pair of rates has terms above 1,000; for an odd one the pitch is off by a millionth.
    ratio = Fraction(new_rate, rate).limit_denominator(1000)
    up, down = ratio.numerator, ratio.denominator
    if up == down:
        return None
    resampler = _resampler(down, up)
    step = max(1, PIECE // down) * down  # `down` samples become `up` of them, so places are whole
    return resampler, up, down, step, math.ceil(resampler.width / down) * down


def without_autocast(x: Tensor) -> torch.autocast:
    """Inside, float32 is computed in float32 whatever autocast says: bfloat16 has three digits, and
    log-mel energies would be off by 0.07."""
    return torch.autocast(x.device.type, enabled=False)


@functools.lru_cache(maxsize=16)  # the filter costs more to make than to apply to a short clip
def _resampler(down: int, up: int) -> Any:
    return torchaudio.transforms.Resample(down, up)
