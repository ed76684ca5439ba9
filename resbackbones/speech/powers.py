"""Sounds as powers in mel bands, frame after frame: of the clips, of noise, of rooms."""

import os

import torch
from torch import Tensor, nn
from torch.nn import functional

from resbackbones.core.context import valid_mask
from resbackbones.errors import InputError
from resbackbones.speech.frontend import FrontEnd
from resbackbones.speech.recordings import FULL_SCALE, chunks, read_unlabelled

LONGEST_NOISE = 600.0  # seconds that are kept of a recording of noise
LONGEST_ROOM = 2.0  # and of an impulse response


def listen(front_end: FrontEnd, waveforms: list[Tensor]) -> tuple[Tensor, Tensor]:
    """Power of int16 waveforms, all their frames one after the other, `(total, n_mels)` on the
    front end's device: none is padded to the longest; and the frames of each, `(N,)` on the CPU."""
    lengths = front_end.frames(torch.tensor([len(waveform) for waveform in waveforms]))
    starts = lengths.cumsum(0) - lengths
    powers = front_end.filters.new_empty(int(lengths.sum()), front_end.n_mels)
    for first, last in chunks([len(waveform) for waveform in waveforms]):
        chunk = waveforms[first:last]
        samples = torch.tensor([len(waveform) for waveform in chunk])
        batch = nn.utils.rnn.pad_sequence(chunk, batch_first=True).to(powers.device)
        power, frames = front_end.power(batch.float() / FULL_SCALE, samples)
        heard = power.transpose(1, 2)[valid_mask(frames, power.shape[-1])]
        start = int(starts[first])
        powers[start : start + len(heard)] = heard
    return powers, lengths


def white_noise(front_end: FrontEnd, samples: int) -> tuple[Tensor, Tensor]:
    """Power `(frames, n_mels)` of white noise, and its frames, `(1,)`."""
    noise = torch.randn(1, samples, generator=torch.Generator().manual_seed(0))
    power = front_end.power(noise.to(front_end.filters.device))[0][0].T.contiguous()
    return power, torch.tensor([len(power)])


def recorded_noise(
    front_end: FrontEnd, where: "str | os.PathLike[str]", sampling_rate: int
) -> tuple[Tensor, Tensor]:
    """The same of recordings, of each the first 10 minutes.

    Raises:
        InputError: nothing there that can be read, or nothing but silence.
    """
    recordings = read_unlabelled(where, sampling_rate, LONGEST_NOISE)
    if not (loud := [waveform for waveform in recordings if waveform.any()]):
        raise InputError(f"{where} holds nothing but silence; give recordings of noise")
    return listen(front_end, loud)


def recorded_rooms(
    front_end: FrontEnd, where: "str | os.PathLike[str]", sampling_rate: int
) -> Tensor:
    """Energy per frame of impulse responses, from the loudest sample on, `(rooms, size)`, each of
    sum 1.

    Raises:
        InputError: nothing there that can be read, or a response that is silent.
    """
    rooms = []
    for waveform in read_unlabelled(where, sampling_rate, LONGEST_ROOM):
        energy = waveform.double().square()
        if not energy.any():
            raise InputError(f"{where} holds an impulse response that is silent; leave it out")
        energy = energy[int(energy.argmax()) :]
        energy = functional.pad(energy, (0, -len(energy) % front_end.hop))
        per_frame = energy.view(-1, front_end.hop).sum(1)
        rooms.append((per_frame / per_frame.sum()).float())
    return nn.utils.rnn.pad_sequence(rooms, batch_first=True).to(front_end.filters.device)


def octaves(front_end: FrontEnd) -> Tensor:
    """How far each mel band lies above the lowest one, `(n_mels,)`."""
    centres = front_end.centres
    return (centres / centres[0]).log2().to(front_end.filters.dtype)
