"""Kaldi's filter bank for a whole batch: the features that most speaker models were trained on.

Povey et al. 2011, "The Kaldi speech recognition toolkit", as `compute-fbank-feats` documents it.
"""

import torch
from torch import Tensor, nn
from torch.nn import functional
from torchaudio.compliance.kaldi import get_mel_banks

EMPHASIS = 0.97  # share of the sample before that is taken off
EPSILON = torch.finfo(torch.float32).eps  # power of a band, at least, before the logarithm
WINDOWS = ("povey", "hamming", "hann")


class KaldiSpectrogram(nn.Module):
    """Power in mel bands of waveforms, `(B, samples)` to `(B, n_mels, frames)`.

    Only frames that lie in the clip whole are there, none is centred on its ends ("snip edges").
    Each loses its mean, is pre-emphasised on its own, windowed and transformed. A clip shorter than
    a window is one frame with silence behind it; Kaldi has none for it.

    Args:
        sampling_rate: in Hz.
        window, hop: samples of a frame, and from one to the next; the FFT is the next power of two.
        n_mels: bands.
        f_min, f_max: their range in Hz.
        shape: of the window, "povey" (a Hann window to the power 0.85), "hamming" or "hann".
        full_scale: what a sample of 1 counts.

    Attributes:
        filters: `(frequencies, n_mels)`, the weight of each frequency of the FFT in each band.
    """

    filters: Tensor
    weights: Tensor

    def __init__(
        self,
        sampling_rate: int,
        window: int,
        hop: int,
        n_mels: int,
        f_min: float,
        f_max: float,
        shape: str = "povey",
        full_scale: float = 1.0,
    ) -> None:
        super().__init__()
        self.window, self.hop = window, hop
        self.n_fft = 1 << (window - 1).bit_length()
        if shape == "hamming":
            weights = torch.hamming_window(window, periodic=False)
        else:
            hann = torch.hann_window(window, periodic=False)
            weights = hann**0.85 if shape == "povey" else hann
        weights *= full_scale  # all before it is linear
        # Kaldi's triangles are straight over the mel scale, those of `MelSpectrogram` over Hz.
        filters, _ = get_mel_banks(n_mels, self.n_fft, sampling_rate, f_min, f_max, 100, -500, 1)
        filters = functional.pad(filters.T, (0, 0, 0, 1))  # half the sampling rate is not heard
        self.register_buffer("weights", weights, persistent=False)
        self.register_buffer("filters", filters, persistent=False)

    def frames(self, samples: Tensor) -> Tensor:
        """Frames of clips of so many samples."""
        return (torch.div(samples - self.window, self.hop, rounding_mode="floor") + 1).clamp(min=1)

    def forward(self, waveforms: Tensor) -> Tensor:
        if waveforms.shape[-1] < self.window:
            waveforms = functional.pad(waveforms, (0, self.window - waveforms.shape[-1]))
        frames = waveforms.unfold(-1, self.window, self.hop)  # (B, frames, window), a view
        frames = frames - frames.mean(-1, keepdim=True)
        before = torch.cat([frames[..., :1], frames[..., :-1]], -1)
        spectrum = torch.fft.rfft((frames - EMPHASIS * before) * self.weights, self.n_fft)
        power = spectrum.real.square() + spectrum.imag.square()  # `abs` costs three times as much
        return (power @ self.filters).transpose(1, 2)
