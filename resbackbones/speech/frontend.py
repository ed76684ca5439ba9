"""From waveforms to features: the one front end every speech model here listens through.

`FrontEnd` is a torch module (batched, on any device); `ResidualFeatureExtractor` puts it into the
form transformers saves, loads and calls in its pipelines. It is not part of the model: a module
with constant tables inside a `PreTrainedModel` breaks `from_pretrained`.
"""

import math
import warnings
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
import torchaudio
from torch import Tensor, nn
from torch.nn import functional
from transformers import BatchFeature, SequenceFeatureExtractor

from resbackbones.core.context import valid_mask
from resbackbones.errors import InputError, nearest
from resbackbones.speech.kaldi import EPSILON, WINDOWS, KaldiSpectrogram
from resbackbones.speech.resampling import without_autocast

KINDS = ("log_mel", "mfcc", "fbank")
NORMALIZATIONS = ("none", "mean", "mean_std", "global")
FLOOR = 1e-6  # power of a mel band that counts as silence
STEADY = 0.1  # a feature that varies less than this is not scaled up
CHANNELS = 8  # at most; an array of more is taken for a batch
# Whole numbers that samples come in: the value of silence, and of full scale above it.
INTEGERS = {torch.uint8: (128, 2**7), torch.int16: (0, 2**15), torch.int32: (0, 2**31)}


class FrontEnd(nn.Module):
    """Log-mel energies, MFCC or Kaldi's filter bank of waveforms, `(B, samples)` to
    `(B, feature_size, frames)`.

    For "log_mel" and "mfcc" frames are centred on samples 0, hop, 2 hop, …, with zeros outside the
    clip, so a clip of n samples has `1 + n // hop` frames and every one of them is the same in a
    padded batch and alone (reflecting the ends, the usual default, changes the last two). Energies
    are `log(1 + power / 1e-6)`: silence is exactly 0, which is also what a convolution pads with.

    "fbank" is what Kaldi, and `torchaudio.compliance.kaldi.fbank(dither=0)`, make of a clip:
    `1 + (n - window) // hop` frames that lie in it whole (at least one here), each without its
    mean, pre-emphasised by 0.97; energies are `log(max(power, 1.2e-7))`. What models of others
    expect, all with `feature_size=80`: WeSpeaker's `window_shape="hamming", full_scale=32768,
    normalize="mean"`; 3D-Speaker's `normalize="mean"`; Kaldi's own recipes `full_scale=32768`.
    SpeechBrain's filter bank (decibels down to 80 below a clip's loudest) is another one.

    Args:
        kind: "log_mel", "mfcc" (orthonormal DCT-II of the log-mel energies) or "fbank".
        feature_size: mel bands, or cepstral coefficients.
        sampling_rate: of the waveforms, in Hz.
        n_mels: mel bands under the coefficients of "mfcc"; None means as many as coefficients.
        window: length of the window in seconds; the FFT is the next power of two.
        hop: from one frame to the next, in seconds.
        f_min, f_max: the mel bands' range in Hz; None means up to half the sampling rate.
        normalize: "none", "mean" (subtract each feature's mean over the clip), "mean_std" (then
            divide by its deviation, never by less than 0.1: silence must not become noise) or
            "global" (the same by `means` and `deviations`, whatever the clip).
        means, deviations: of each feature over all training clips, for "global";
            `learn_normalization` finds them.
        window_shape: of "fbank", "povey" (the same as None), "hamming" or "hann"; others have a
            Hann window.
        full_scale: of "fbank", what the loudest sample counts: 1, or 32768 as in Kaldi, whose
            samples are 16-bit numbers. The waveforms given are from -1 to 1 all the same.

    Raises:
        InputError: an unknown kind; sizes, times or frequencies that do not fit together; an option
            of another kind; or "global" without what it needs.

    >>> features, frames = FrontEnd()(torch.zeros(2, 16000), torch.tensor([16000, 1]))
    >>> tuple(features.shape), frames.tolist()
    ((2, 40, 101), [101, 1])
    """

    def __init__(
        self,
        kind: str = "log_mel",
        feature_size: int = 40,
        sampling_rate: int = 16000,
        n_mels: int | None = None,
        window: float = 0.025,
        hop: float = 0.010,
        f_min: float = 20.0,
        f_max: float | None = None,
        normalize: str = "none",
        means: Sequence[float] | None = None,
        deviations: Sequence[float] | None = None,
        window_shape: str | None = None,
        full_scale: float = 1.0,
    ) -> None:
        super().__init__()
        shape = "povey" if window_shape is None else window_shape
        for field, given, known in (
            ("kind", kind, KINDS),
            ("normalize", normalize, NORMALIZATIONS),
            ("window_shape", shape, WINDOWS),
        ):
            if given not in known:
                raise InputError(f"{field}={given!r} is not known; {nearest(given, known)}")
        for field, size in (
            ("feature_size", feature_size),
            ("sampling_rate", sampling_rate),
            ("n_mels", feature_size if n_mels is None else n_mels),
        ):
            if type(size) is not int or size < 1:
                raise InputError(f"{field}={size!r} must be a whole number of 1 or more")
        n_mels = feature_size if n_mels is None else n_mels
        if kind != "mfcc" and n_mels != feature_size:
            raise InputError(
                f"n_mels={n_mels} differs from feature_size={feature_size}, but {kind} features "
                "are the mel bands; leave n_mels out"
            )
        if kind != "fbank" and (window_shape is not None or full_scale != 1):
            raise InputError(
                f"window_shape={window_shape!r} and full_scale={full_scale!r} are options of "
                f"kind='fbank', not of {kind!r}; leave them out"
            )
        if not 0 < full_scale < math.inf:
            raise InputError(f"full_scale={full_scale!r} must be a number above 0, as 32768")
        _check_learned(normalize, feature_size, means, deviations)
        if kind == "fbank" and n_mels < 4:
            raise InputError(f"feature_size={n_mels} is too few for Kaldi's bank; use 4 or more")
        if feature_size > n_mels:
            raise InputError(
                f"feature_size={feature_size} coefficients cannot come from n_mels={n_mels} bands; "
                "raise n_mels"
            )
        window_samples, hop_samples = round(window * sampling_rate), round(hop * sampling_rate)
        if window_samples < 2 or hop_samples < 1:
            raise InputError(
                f"window={window} and hop={hop} are {window_samples} and {hop_samples} samples at "
                f"{sampling_rate} Hz; give both in seconds, the window two samples or more"
            )
        nyquist = sampling_rate / 2
        f_max = nyquist if f_max is None else f_max
        if not 0 <= f_min < f_max <= nyquist:
            raise InputError(
                f"f_min={f_min:g} and f_max={f_max:g} are no range of frequencies; they must rise "
                f"within 0 to {nyquist:g} Hz, half the sampling rate"
            )
        self.mel: nn.Module
        if kind == "fbank":
            self.mel = KaldiSpectrogram(
                sampling_rate,
                window_samples,
                hop_samples,
                n_mels,
                f_min,
                f_max,
                shape,
                full_scale,
            )
        else:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore", UserWarning)  # an empty band is refused just below
                self.mel = torchaudio.transforms.MelSpectrogram(
                    sampling_rate,
                    n_fft=1 << (window_samples - 1).bit_length(),
                    win_length=window_samples,
                    hop_length=hop_samples,
                    f_min=f_min,
                    f_max=f_max,
                    n_mels=n_mels,
                    center=True,
                    pad_mode="constant",
                )
        self.kind, self.n_mels, self.normalize = kind, n_mels, normalize
        self.sampling_rate, self.hop = sampling_rate, hop_samples
        self.f_min, self.f_max = f_min, f_max
        if (self.filters.amax(0) == 0).any():
            raise InputError(
                f"{n_mels} mel bands from {f_min:g} to {f_max:g} Hz are too narrow for a window of "
                f"{window} s, some would hear nothing; use fewer bands or a longer window"
            )
        self.dct: Tensor | None
        self.means: Tensor | None
        self.deviations: Tensor | None
        dct = torchaudio.functional.create_dct(feature_size, n_mels, norm="ortho")
        self.register_buffer("dct", dct if kind == "mfcc" else None, persistent=False)
        for name, learned in (("means", means), ("deviations", deviations)):
            column = None if learned is None else torch.tensor(learned).view(-1, 1)
            self.register_buffer(name, column, persistent=False)

    @property
    def filters(self) -> Tensor:
        """Weight of each frequency of the FFT in each mel band, `(frequencies, n_mels)`."""
        mel: Any = self.mel
        return mel.filters if self.kind == "fbank" else mel.mel_scale.fb

    @property
    def centres(self) -> Tensor:
        """The middle of each mel band in Hz, float64 `(n_mels,)`."""
        filters = self.filters.double()
        place = torch.arange(len(filters), dtype=filters.dtype, device=filters.device)
        hertz = place * (self.sampling_rate / 2 / (len(filters) - 1))
        return hertz @ filters / filters.sum(0)

    def frames(self, samples: Tensor) -> Tensor:
        """Frames of clips of so many samples, int64 like these."""
        if isinstance(self.mel, KaldiSpectrogram):
            return self.mel.frames(samples)
        return 1 + torch.div(samples, self.hop, rounding_mode="floor")

    def forward(self, waveforms: Tensor, lengths: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Compute the features of a batch.

        Args:
            waveforms: float `(B, samples)`, in -1 to 1.
            lengths: `(B,)`, real samples of each clip; None means all.

        Returns:
            Features `(B, feature_size, frames)`, 0 past a clip's end, and the frames of each clip,
            int64 `(B,)`.
        """
        power, frames = self.power(waveforms, lengths)
        return self.features(power, frames), frames

    @torch.no_grad()
    def power(self, waveforms: Tensor, lengths: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """The first half of `forward`: the power in each mel band, `(B, n_mels, frames)`, and the
        frames of each clip. Here sounds still add up, which is where training adds noise."""
        batch, samples = waveforms.shape
        if lengths is None:
            lengths = torch.full((batch,), samples, device=waveforms.device)
        lengths = lengths.to(waveforms.device, torch.int64)
        with without_autocast(waveforms):
            # What stands past an item's end would leak into its last frames.
            power = self.mel(waveforms.float().masked_fill(~valid_mask(lengths, samples), 0.0))
        return power, self.frames(lengths)

    @torch.no_grad()
    def features(self, power: Tensor, frames: Tensor) -> Tensor:
        """The second half of `forward`: features `(B, feature_size, T)` of powers `(B, n_mels, T)`,
        of which `frames` `(B,)` are real."""
        past = ~valid_mask(frames, power.shape[-1]).unsqueeze(1)
        with without_autocast(power):
            if self.kind == "fbank":
                features = power.float().clamp(min=EPSILON).log()
            else:
                features = torch.log1p(power.float() / FLOOR)
            if self.dct is not None:
                features = torch.einsum("bmt,mf->bft", features, self.dct)
            if self.means is not None and self.deviations is not None:
                features = (features - self.means) / self.deviations.clamp(min=STEADY)
            elif self.normalize != "none":
                count = frames.view(-1, 1, 1)
                features = features - features.masked_fill(past, 0.0).sum(-1, keepdim=True) / count
                if self.normalize == "mean_std":
                    square = features.masked_fill(past, 0.0).square().sum(-1, keepdim=True) / count
                    features = features / square.sqrt().clamp(min=STEADY)
            return features.masked_fill(past, 0.0)


class ResidualFeatureExtractor(SequenceFeatureExtractor):
    """Waveforms in, `input_features` `(B, F, T)` and `attention_mask` `(B, T)` out.

    All arguments are plain numbers and strings, saved as JSON. Everything is computed for the whole
    batch at once, on the device that the call names.

    Args:
        kind, feature_size, sampling_rate, n_mels, window, hop, f_min, f_max, normalize, means,
            deviations, window_shape, full_scale: as for `FrontEnd`.
        pad_to: seconds to which shorter clips are padded; the mask says so, and answers stay the
            same. It is for what must have one length, such as a captured graph; transformers'
            pipelines batch clips of different lengths without it (`speech.pipeline`).

    Raises:
        InputError: as `FrontEnd`, a `pad_to` below 0, or an argument it does not have.
    """

    model_input_names = ["input_features", "attention_mask"]  # noqa: RUF012 (transformers' form)

    def __init__(
        self,
        kind: str = "log_mel",
        feature_size: int = 40,
        sampling_rate: int = 16000,
        n_mels: int | None = None,
        window: float = 0.025,
        hop: float = 0.010,
        f_min: float = 20.0,
        f_max: float | None = None,
        normalize: str = "none",
        pad_to: float = 0.0,
        means: Sequence[float] | None = None,
        deviations: Sequence[float] | None = None,
        window_shape: str | None = None,
        full_scale: float = 1.0,
        **extra: Any,
    ) -> None:
        self.options = {
            "kind": kind,
            "feature_size": feature_size,
            "sampling_rate": sampling_rate,
            "n_mels": n_mels,
            "window": window,
            "hop": hop,
            "f_min": f_min,
            "f_max": f_max,
            "normalize": normalize,
            "means": None if means is None else list(means),
            "deviations": None if deviations is None else list(deviations),
            "window_shape": window_shape,
            "full_scale": full_scale,
        }
        for name in extra:  # transformers would keep a misspelt one as an attribute nobody reads
            if name not in ("feature_extractor_type", "processor_class", "auto_map"):
                raise InputError(
                    f"the feature extractor has no argument {name!r}; "
                    f"{nearest(name, [*self.options, 'pad_to'])}"
                )
        if not 0 <= pad_to < math.inf:
            raise InputError(f"pad_to={pad_to!r} must be a number of seconds, 0 or more")
        self.pad_to = pad_to
        super().__init__(feature_size, sampling_rate, padding_value=0.0)
        self.front_end = FrontEnd(**self.options)  # type: ignore[arg-type]

    def __call__(
        self,
        raw_speech: Any,
        sampling_rate: int | None = None,
        padding: bool | str = True,
        return_tensors: str | None = None,
        device: str | torch.device | None = None,
        return_attention_mask: bool = True,
    ) -> BatchFeature:
        """Extract features, padding a batch to its longest clip.

        Args:
            raw_speech: one clip or a list of clips, arrays or tensors of one channel, `(samples,)`,
                or of several, `(samples, channels)` or `(channels, samples)`: the smaller axis is
                the channels, whose mean is taken, as in training. Samples are real numbers from -1
                to 1, or whole ones of 8 (unsigned), 16 or 32 bits, which are brought there.
            sampling_rate: of the clips; other than this extractor's own is refused, `resample`
                them first.
            padding: True or "longest"; there is no other way to pad.
            return_tensors: "pt" or "np"; None means "np".
            device: where to compute; None means where the clips are.
            return_attention_mask: it always is returned; there for transformers' pipelines.

        Raises:
            InputError: another sampling rate or padding, no mask, or a clip that is empty, of more
                than 8 channels, of other whole numbers or not finite.
        """
        if padding not in (True, "longest"):
            raise InputError(
                f"padding={padding!r} is not known; a batch is padded to its longest clip, "
                "padding=True"
            )
        if not return_attention_mask:
            raise InputError(
                "return_attention_mask=False leaves nothing to tell padding by; leave it out"
            )
        if return_tensors not in ("pt", "np", None):
            raise InputError(f"return_tensors={return_tensors!r} is not known; use 'pt' or 'np'")
        if sampling_rate is not None and sampling_rate != self.sampling_rate:
            raise InputError(
                f"the clips are at {sampling_rate} Hz, but this feature extractor was made for "
                f"{self.sampling_rate} Hz; resample them with "
                f"resbackbones.speech.resample(clip, {sampling_rate}, {self.sampling_rate})"
            )
        waveforms, lengths = pad_clips(raw_speech)
        missing = round(self.pad_to * self.sampling_rate) - waveforms.shape[1]
        waveforms = functional.pad(waveforms, (0, max(0, missing)))
        waveforms = waveforms.to(device or waveforms.device)
        features, frames = self.front_end.to(waveforms.device)(waveforms, lengths)
        mask = valid_mask(frames, features.shape[-1]).to(torch.int64)
        values = {"input_features": features, "attention_mask": mask}
        if return_tensors == "pt":
            return BatchFeature(values)
        return BatchFeature({name: value.cpu().numpy() for name, value in values.items()})

    def pad(  # type: ignore[override]
        self,
        processed_features: Sequence[Mapping[str, Any]],
        padding: bool | str = True,
        return_tensors: str = "pt",
    ) -> BatchFeature:
        """Collate single items into a batch of tensors: `input_features` `(F, T)` are padded on the
        time axis (transformers pads the first), everything else (labels) is stacked."""
        features = [torch.as_tensor(item["input_features"]) for item in processed_features]
        lengths = torch.tensor([item.shape[-1] for item in features])
        by_time = nn.utils.rnn.pad_sequence([item.T for item in features], batch_first=True)
        values = {
            "input_features": by_time.transpose(1, 2).contiguous(),
            "attention_mask": valid_mask(lengths, by_time.shape[1]).to(torch.int64),
        }
        for name in set(processed_features[0]) - set(values):
            values[name] = torch.as_tensor(np.asarray([item[name] for item in processed_features]))
        return BatchFeature(values)

    def to_dict(self) -> dict[str, Any]:
        """The arguments, for JSON (transformers' own version drops `window`)."""
        named = {"pad_to": self.pad_to, "feature_extractor_type": type(self).__name__}
        return self.options | named


def pad_clips(clips: Any) -> tuple[Tensor, Tensor]:
    """One clip or several as a batch `(B, samples)` padded with zeros, and their lengths `(B,)`.

    Raises:
        InputError: as `list_clips`.
    """
    waveforms = list_clips(clips)
    lengths = torch.tensor([len(waveform) for waveform in waveforms])
    return nn.utils.rnn.pad_sequence(waveforms, batch_first=True), lengths


def list_clips(clips: Any) -> list[Tensor]:
    """One clip or several, of one channel each, float32 `(samples,)` from -1 to 1.

    Raises:
        InputError: no clip, or one that is empty, of too many channels, of whole numbers of an
            unknown range or not finite.
    """
    if isinstance(clips, np.ndarray | Tensor):
        clips = list(clips) if clips.ndim > 2 else [clips]
    elif len(clips) and np.ndim(clips[0]) == 0:
        clips = [clips]  # one clip as a list of numbers
    if not len(clips):
        raise InputError("there is no clip to extract features from; give one or more")
    return [one_channel(torch.as_tensor(clip), index) for index, clip in enumerate(clips)]


def one_channel(clip: Tensor, index: int) -> Tensor:
    """A clip as float32 `(samples,)` from -1 to 1."""
    if clip.ndim not in (1, 2) or (clip.ndim == 2 and min(clip.shape) > CHANNELS):
        raise InputError(
            f"clip {index} has shape {tuple(clip.shape)}, but a clip is (samples,) or has up to "
            f"{CHANNELS} channels; give several clips as a list"
        )
    if not clip.numel():
        raise InputError(f"clip {index} is empty; leave it out or record it again")
    if clip.dtype in INTEGERS:
        silence, full_scale = INTEGERS[clip.dtype]
        clip = (clip.double() - silence) / full_scale
    if not clip.is_floating_point():
        raise InputError(
            f"clip {index} holds whole numbers ({clip.dtype}) of an unknown range; give samples "
            "from -1 to 1, or an int16 or int32 array"
        )
    if not clip.isfinite().all():
        raise InputError(f"clip {index} holds samples that are not finite; record it again")
    clip = clip.float()
    return clip if clip.ndim == 1 else clip.mean(0 if clip.shape[0] < clip.shape[1] else 1)


def _check_learned(
    normalize: str,
    size: int,
    means: Sequence[float] | None,
    deviations: Sequence[float] | None,
) -> None:
    """Refuse a normalisation by numbers that are not there, or numbers without it."""
    learned = {"means": means, "deviations": deviations}
    if normalize != "global":
        if given := [name for name, values in learned.items() if values is not None]:
            raise InputError(
                f"normalize={normalize!r} has no use for {' and '.join(given)}; leave them out, or "
                "use normalize='global'"
            )
        return
    for name, values in learned.items():
        if values is None:
            raise InputError(
                f"normalize='global' was asked for, but its {name} have not been learned; make the "
                "extractor with learn_normalization(extractor, clips) from training clips"
            )
        least = -math.inf if name == "means" else 0
        if len(values) != size or not all(least <= value < math.inf for value in values):
            raise InputError(
                f"{name} of normalize='global' must be {size} finite numbers, one per feature"
                f"{', none below 0' if name == 'deviations' else ''}; learn them with "
                "learn_normalization(extractor, clips)"
            )
