"""What a classifier of sounds listens to: Grad-CAM over the spectrogram, and a picture of it."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from resbackbones.classifier import class_heat
from resbackbones.core.backbone import modes_kept
from resbackbones.errors import InputError
from resbackbones.speech.models import ResidualForAudioClassification

STRENGTH = 0.65  # of the colour where the heat is 1


def grad_cam(
    model: ResidualForAudioClassification,
    waveform: Any,
    label: str | int | None = None,
    *,
    stage: int = -1,
) -> Tensor:
    """Which times, and to a 2-D backbone which frequencies, of a clip speak for a class (Grad-CAM,
    Selvaraju et al. 2017, section 3; see `resbackbones.classifier.class_heat`).

    Args:
        model: in any mode; its modes, gradients and statistics stay as they are.
        waveform: one clip at the processor's sampling rate, as the processor takes it.
        label: the class, by name or number; by default the likeliest.
        stage: of the backbone, whose feature is looked at; the last one is the coarsest.

    Returns:
        float32 `(F, T)` on the CPU, over the clip's features: 1 where most speaks for the class, 0
        where nothing does. A 1-D backbone has the features of a frame as channels, so all of a
        frame are alike.

    Raises:
        InputError: no such class or stage, several clips, or what the processor refuses.
    """
    x = _features(model, waveform)
    heat, _ = class_heat(model, x.unsqueeze(1) if _sees(model) else x, label, stage)
    return heat if _sees(model) else heat.expand(x.shape[1], -1).clone()


def picture(
    model: ResidualForAudioClassification,
    waveform: Any,
    label: str | int | None = None,
    *,
    stage: int = -1,
    title: str = "",
) -> Any:
    """A figure of matplotlib, as `.savefig("why.png")` writes: the features over seconds, mel bands
    named by their middle in Hz, and in colour where they speak for a class, which the title names
    with its score. Arguments as those of `grad_cam`, and what the title begins with."""
    from matplotlib.cm import ScalarMappable
    from matplotlib.figure import Figure

    x = _features(model, waveform)
    heat, number = class_heat(model, x.unsqueeze(1) if _sees(model) else x, label, stage)
    heat = heat.expand(x.shape[1:])
    with modes_kept(model), torch.no_grad():
        score = float(model.eval().scores(model(x).logits)[0, number])
    features, bands = x[0].float().cpu(), heat.shape[0]
    hop = model.processor.front_end.hop / model.processor.sampling_rate
    place: Any = {
        "origin": "lower",
        "aspect": "auto",
        # A frame is drawn around the moment it is about.
        "extent": (-hop / 2, (heat.shape[1] - 0.5) * hop, -0.5, bands - 0.5),
    }
    figure = Figure(figsize=(7.2, 3.6), layout="constrained")
    axes = figure.subplots()
    axes.imshow(features.numpy(), cmap="gray", **place)
    over: Any = {"cmap": "turbo", "vmin": 0.0, "vmax": 1.0}
    axes.imshow(heat.numpy(), alpha=(STRENGTH * heat).numpy(), **over, **place)
    ticks = list(range(0, bands, max(1, bands // 8)))
    if model.processor.options["kind"] == "mfcc":
        axes.set_yticks(ticks)
        axes.set_ylabel("cepstral coefficients", fontsize=9)
    else:
        hertz = band_centres(model)
        axes.set_yticks(ticks, [f"{hertz[tick]:,.0f}" for tick in ticks])
        axes.set_ylabel("mel bands, Hz", fontsize=9)
    axes.set_xlabel("seconds", fontsize=9)
    axes.tick_params(labelsize=8.5)
    name = list((model.config.id2label or {}).values())[number]
    about = f"{title}: " if title else ""
    axes.set_title(f"{about}{name}, {100 * score:.1f} %", fontsize=11, loc="left")
    colours = ScalarMappable(cmap="turbo")
    colours.set_clim(0, 1)
    bar = figure.colorbar(colours, ax=axes, fraction=0.04, pad=0.02)
    bar.set_label("speaks for the class", fontsize=9)
    bar.ax.tick_params(labelsize=8.5)
    return figure


def band_centres(model: ResidualForAudioClassification) -> list[float]:
    """The middle of each mel band, in Hz."""
    filters = model.processor.front_end.mel.mel_scale.fb.cpu().double()  # (frequencies, n_mels)
    hertz = torch.linspace(0, model.processor.sampling_rate / 2, len(filters), dtype=torch.float64)
    return (hertz @ filters / filters.sum(0)).tolist()


def _features(model: ResidualForAudioClassification, waveform: Any) -> Tensor:
    """Features `(1, F, T)` of one clip."""
    features = model.processor(waveform, return_tensors="pt")["input_features"]
    if len(features) != 1:
        raise InputError(f"{len(features)} clips were given; explain one at a time")
    return features.to(model.device, model.dtype)


def _sees(model: ResidualForAudioClassification) -> bool:
    """Whether the backbone sees a spectrogram as a picture."""
    return model.backbone.spec.dims == 2


__all__: Sequence[str] = ("band_centres", "grad_cam", "picture")
